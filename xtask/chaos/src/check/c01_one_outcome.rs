//! 1: nobody learns of another decision or outcome than anybody else: lists, events, journals, handlers.

use super::{Verdict, on_the_spot};
use crate::history::{Evidence, Told};
use std::collections::{BTreeMap, BTreeSet};

pub(super) fn check(evidence: &Evidence) -> Verdict {
    let mut verdict = Verdict { looked: 0, broken: on_the_spot(evidence, 1) };
    let mut told: BTreeMap<(&str, &str), BTreeSet<(&str, &str)>> = BTreeMap::new();
    for Told { transition, what, value, source } in &evidence.history.told {
        told.entry((transition, what)).or_default().insert((value, source));
    }
    let by_handlers = evidence.calls.iter().filter_map(|line| {
        let (transition, decision) = (line.transition.as_deref()?, line.decision.as_deref()?);
        Some((transition, decision, line.member.as_str()))
    });
    for (transition, decision, member) in by_handlers {
        told.entry((transition, "decision")).or_default().insert((decision, member));
    }
    let stored: Vec<_> = evidence.store.iter().flat_map(|store| &store.transitions).collect();
    let stored: Vec<_> = stored
        .into_iter()
        .map(|(id, stored)| {
            (
                id.to_string(),
                stored.decision.map(|it| it.to_string()),
                stored.outcome.map(|it| it.to_string()),
            )
        })
        .collect();
    for (id, decision, outcome) in &stored {
        for (what, value) in [("decision", decision), ("outcome", outcome)] {
            if let Some(value) = value {
                told.entry((id, what)).or_default().insert((value, "store"));
            }
        }
    }
    for ((transition, what), said) in &told {
        let values: BTreeSet<_> = said.iter().map(|(value, _)| value).collect();
        verdict.expect(values.len() == 1, || format!("{transition}'s {what}: {said:?}"));
    }
    // An outcome says how it was decided.
    for ((transition, _), outcomes) in told.iter().filter(|((_, what), _)| *what == "outcome") {
        let was_aborted = outcomes.iter().any(|(value, _)| *value == "aborted");
        let decisions = told.get(&(*transition, "decision")).into_iter().flatten();
        for (decision, source) in decisions {
            verdict.expect((*decision == "abort") == was_aborted, || {
                format!("{transition} is {outcomes:?}, and {source} has heard {decision}")
            });
        }
    }
    // Nobody takes a step of what was not decided to happen.
    for line in evidence.calls.iter().filter(|line| ["commit", "undo"].contains(&line.phase.as_str())) {
        let transition = line.transition.as_deref().unwrap_or_default();
        let is_aborted = told
            .get(&(transition, "decision"))
            .is_some_and(|said| said.iter().any(|(value, _)| *value == "abort"));
        verdict
            .expect(!is_aborted, || format!("{} took a step of {transition}, which is aborted", line.member));
    }
    verdict
}

#[cfg(test)]
mod tests {
    use super::super::sample;
    use super::*;

    #[test]
    fn two_outcomes_are_found_and_a_step_of_what_is_aborted() {
        let mut evidence = Evidence::default();
        evidence.history.tell("t1", "outcome", "committed", "list");
        evidence.history.tell("t1", "outcome", "committed", "events");
        sample::call(&mut evidence, "db@h1", "commit", "t1", 1, 2);
        sample::newest(&mut evidence, |line| line.decision = Some("commit".to_owned()));
        sample::expect_fine(&check(&evidence));
        sample::newest(&mut evidence, |line| line.decision = Some("abort".to_owned()));
        sample::expect_broken(&check(&evidence), "db@h1 has heard abort");
        evidence.history.tell("t1", "outcome", "undone", "transition");
        sample::expect_broken(&check(&evidence), "t1's outcome");
        sample::call(&mut evidence, "db@h2", "commit", "t2", 1, 2);
        evidence.history.tell("t2", "decision", "abort", "list");
        sample::expect_broken(&check(&evidence), "db@h2 took a step of t2");
    }
}
