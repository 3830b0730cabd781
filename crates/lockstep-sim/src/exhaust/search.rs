//! Breadth first over all states of a configuration, so that the first violation found is one of the shortest.

use super::fingerprint;
use super::scope::Scope;
use super::state::{Move, State};
use crate::invariant::Violation;
use lockstep_core::world::Happened;
use std::collections::{BTreeMap, HashSet, VecDeque};
use std::hash::{BuildHasherDefault, Hasher};
use std::panic::{AssertUnwindSafe, catch_unwind};

/// Takes a fingerprint for its own hash.
#[derive(Default)]
struct Itself(u64);

impl Hasher for Itself {
    fn write(&mut self, _: &[u8]) {
        unreachable!("fingerprints are numbers");
    }

    fn write_u128(&mut self, fingerprint: u128) {
        self.0 = fingerprint as u64;
    }

    fn finish(&self) -> u64 {
        self.0
    }
}

/// What was found in one configuration.
#[derive(Debug, Default)]
pub(super) struct Found {
    /// How many different states there are.
    pub(super) states: usize,
    /// How many moves lead from one to another, or back to the same.
    pub(super) moves: usize,
    /// The most moves that the shortest way to a state takes.
    pub(super) depth: usize,
    /// The ways in which transitions ended, with how many ends they have.
    pub(super) outcomes: BTreeMap<String, usize>,
    /// The first violation, and the moves that lead to it.
    pub(super) violation: Option<(Violation, Vec<String>)>,
}

/// Where a state was first reached from: the earlier state's place, and the place of the move among its moves.
type Reached = (u32, u16);

/// Explores a configuration until no state is left, or one breaks a promise, or so many have been looked at.
pub(super) fn explore(scope: &Scope, states_max: usize) -> Found {
    let mut found = Found::default();
    let mut reached: Vec<Reached> = Vec::new();
    if let Err((violation, path)) = walk(scope, states_max, &mut found, &mut reached) {
        found.violation = Some((violation, retell(scope, &reached, path)));
    }
    found
}

/// The place of a state, and of the move from it that broke a promise; no move: the state itself does.
type Path = (u32, Option<u16>);

fn walk(
    scope: &Scope,
    states_max: usize,
    found: &mut Found,
    reached: &mut Vec<Reached>,
) -> Result<(), (Violation, Path)> {
    let mut seen: HashSet<u128, BuildHasherDefault<Itself>> = HashSet::default();
    let (first, _) = guarded(|| State::first(scope)).map_err(|violation| (violation, (0, None)))?;
    let began = first.now();
    seen.insert(fingerprint::of(&first));
    reached.push((0, 0));
    let mut next: VecDeque<(u32, usize, State)> = VecDeque::from([(0, 0, first)]);
    while let Some((place, depth, mut state)) = next.pop_front().filter(|_| found.states < states_max) {
        found.states += 1;
        found.depth = depth;
        let moves = state.moves(scope);
        if moves.is_empty() {
            let ended = guarded(|| state.end(scope)).map_err(|violation| (violation, (place, None)))?;
            *found.outcomes.entry(ended).or_default() += 1;
        }
        let took_ms = state.now().since(began);
        if took_ms > scope.within_ms {
            let what = format!("not everything has resolved after {took_ms} ms");
            return Err((Violation { invariant: "19 resolves", what }, (place, None)));
        }
        for (choice, each) in (0..).zip(&moves) {
            let mut after = state.clone();
            found.moves += 1;
            guarded(|| after.make(scope, each)).map_err(|violation| (violation, (place, Some(choice))))?;
            if seen.insert(fingerprint::of(&after)) {
                let new = u32::try_from(reached.len()).expect("memory ends before");
                reached.push((place, choice));
                next.push_back((new, depth + 1, after));
            }
        }
    }
    Ok(())
}

/// An assertion of production's own that fails is a violation like any other.
fn guarded<T>(work: impl FnOnce() -> Result<T, Violation>) -> Result<T, Violation> {
    catch_unwind(AssertUnwindSafe(work)).unwrap_or_else(|panic| {
        let text = panic.downcast_ref::<String>().map(String::as_str);
        let text = text.or_else(|| panic.downcast_ref::<&str>().copied());
        Err(Violation { invariant: "asserts", what: text.unwrap_or("a panic").to_owned() })
    })
}

/// The way to a violation, made once more: each move, and what happens in it.
fn retell(scope: &Scope, reached: &[Reached], (mut place, last): Path) -> Vec<String> {
    let mut choices: Vec<u16> = last.into_iter().collect();
    while place != 0 {
        let (before, choice) = reached[place as usize];
        choices.push(choice);
        place = before;
    }
    let Ok((mut state, happened)) = guarded(|| State::first(scope)) else { return Vec::new() };
    let mut lines: Vec<_> = happened.iter().filter_map(Happened::line).collect();
    for choice in choices.into_iter().rev() {
        let next: Move = state.moves(scope).swap_remove(choice.into());
        lines.push(format!("> {next:?}"));
        let Ok(happened) = guarded(|| state.make(scope, &next)) else { break };
        lines.extend(happened.iter().filter_map(Happened::line));
    }
    lines
}
