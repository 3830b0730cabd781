//! The exhaustive check: production's own engines in small configurations, in every order of events and with a fault at
//! every moment, until no state is left.
//!
//! A state is a whole [`lockstep_core::world::World`], the faults that may still come, and what the invariants
//! remember. What is durable counts by what it says, not by the order in which it was written. States are known by
//! 128-bit fingerprints.

mod fingerprint;
mod scope;
mod search;
mod state;

use lockstep_core::mutant::Mutant;
use scope::Scope;
use search::Found;
use std::io::{self, Write};
use std::time::Instant;

/// With a deliberate fault in force, a configuration is given up after so many states: one that catches it does so
/// early, and each of them is tried, first for a short while and then for longer.
const MUTANT_STATES_MAX: [usize; 2] = [4000, 100_000];

/// Explores every configuration, or one, and tells what was found. Whether nothing was broken.
pub fn run(only: Option<&str>, out: &mut impl Write) -> io::Result<bool> {
    let mut scopes = scope::ALL.iter().filter(|scope| only.is_none_or(|name| name == scope.name)).peekable();
    if scopes.peek().is_none() {
        let names: Vec<_> = scope::ALL.iter().map(|scope| scope.name).collect();
        writeln!(out, "no such configuration; there are {}", names.join(", "))?;
        return Ok(false);
    }
    silence_panics();
    let (mut states, mut moves, mut violations) = (0, 0, 0);
    for scope in scopes {
        let began = Instant::now();
        let found = search::explore(scope, usize::MAX);
        eprintln!("{}: {:.1} s", scope.name, began.elapsed().as_secs_f64());
        tell(scope, &found, out)?;
        states += found.states;
        moves += found.moves;
        violations += usize::from(found.violation.is_some());
    }
    writeln!(out, "states {states} moves {moves} violations {violations}")?;
    Ok(violations == 0)
}

fn tell(scope: &Scope, found: &Found, out: &mut impl Write) -> io::Result<()> {
    let Found { states, moves, depth, outcomes, violation } = found;
    let outcomes: Vec<_> = outcomes.iter().map(|(name, ends)| format!("{name} {ends}")).collect();
    let outcomes = outcomes.join(", ");
    writeln!(out, "{:26} states {states:7} moves {moves:8} depth {depth:3} ends: {outcomes}", scope.name)?;
    if let Some((violation, path)) = violation {
        path.iter().try_for_each(|line| writeln!(out, "    {line}"))?;
        writeln!(out, "VIOLATION of {violation}")?;
        writeln!(out, "again: cargo run --release -p lockstep-sim -- exhaust --only {}", scope.name)?;
    }
    Ok(())
}

/// Puts a deliberate fault in force, and tells which configuration catches it first, by which invariant, after how
/// many states. Whether one does; none does in builds without mutants.
pub fn catches(mutant: Mutant, out: &mut impl Write) -> io::Result<bool> {
    if !crate::run::force(Some(mutant)) {
        writeln!(out, "{mutant}: this build has no mutants")?;
        return Ok(false);
    }
    silence_panics();
    let tries =
        MUTANT_STATES_MAX.into_iter().flat_map(|max| scope::ALL.iter().map(move |scope| (scope, max)));
    for (scope, states_max) in tries {
        let found = search::explore(scope, states_max);
        if let Some((violation, path)) = &found.violation {
            let moves = path.iter().filter(|line| line.starts_with('>')).count();
            let Found { states, .. } = found;
            writeln!(out, "{mutant:22} {} after {states} states, {moves} moves: {violation}", scope.name)?;
            return Ok(true);
        }
    }
    writeln!(out, "{mutant:22} is not caught")?;
    Ok(false)
}

/// What breaks an assertion is told with the way to it; the panic's own message would come in between.
fn silence_panics() {
    std::panic::set_hook(Box::new(|_| {}));
}

#[cfg(all(test, not(lockstep_mutants)))]
mod tests {
    use super::*;

    #[test]
    fn what_is_small_is_explored_to_the_end() {
        let quick = scope::ALL.iter().filter(|scope| scope.is_quick);
        let mut states = 0;
        for scope in quick {
            let found = search::explore(scope, usize::MAX);
            assert_eq!(found.violation, None, "{}", scope.name);
            let seen: Vec<_> = found.outcomes.keys().map(String::as_str).collect();
            let mut expected = scope.outcomes.to_vec();
            expected.sort_unstable();
            assert_eq!(seen, expected, "{}", scope.name);
            states += found.states;
        }
        assert!(states > 10_000, "{states} states");
    }

    #[test]
    fn the_same_states_are_found_again() {
        let scope = scope::ALL.iter().find(|scope| scope.name == "two-hosts-commit").unwrap();
        let [first, second] = [0, 1].map(|_| search::explore(scope, usize::MAX));
        assert_eq!((first.states, first.moves, first.depth), (second.states, second.moves, second.depth));
    }
}
