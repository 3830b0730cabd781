//! 2: a decision and an outcome are recorded once.

use super::Verdict;
use crate::history::Evidence;
use std::collections::BTreeMap;

pub(super) fn check(evidence: &Evidence) -> Verdict {
    let mut verdict = Verdict::default();
    let mut records: BTreeMap<(&str, &str), Vec<u64>> = BTreeMap::new();
    for kind in ["decision", "outcome"] {
        for (revision, event) in evidence.events(kind) {
            records.entry((event.text("transition"), kind)).or_default().push(revision);
        }
    }
    for ((transition, kind), revisions) in records {
        verdict.expect(revisions.len() == 1, || format!("{transition} has a {kind} at {revisions:?}"));
    }
    verdict
}

#[cfg(test)]
mod tests {
    use super::super::sample;
    use super::*;
    use serde_json::json;

    #[test]
    fn a_second_outcome_is_found() {
        let mut evidence = Evidence::default();
        let outcome = json!({ "kind": "outcome", "transition": "t1", "outcome": "committed" });
        sample::event(&mut evidence, 5, 1, outcome.clone());
        sample::expect_fine(&check(&evidence));
        sample::event(&mut evidence, 6, 2, outcome);
        sample::expect_broken(&check(&evidence), "t1 has a outcome at [5, 6]");
    }
}
