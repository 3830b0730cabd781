//! 18: a host that comes back hears how what it had open has ended, before it is asked for anything, by what went over
//! its connection.

use super::Verdict;
use crate::history::{Evidence, Wire};
use std::collections::{BTreeMap, BTreeSet};

pub(super) fn check(evidence: &Evidence) -> Verdict {
    let mut verdict = Verdict::default();
    let ended: BTreeMap<u64, _> = evidence
        .events("outcome")
        .filter_map(|(_, event)| Some((event.text("transition").strip_prefix('t')?.parse().ok()?, event.at)))
        .collect();
    let mut missed: BTreeMap<(&str, u64), BTreeSet<u64>> = BTreeMap::new();
    for heard in evidence.history.wire.iter().filter(|heard| heard.host != evidence.excused) {
        let connection = (heard.host.as_str(), heard.connection);
        match &heard.what {
            Wire::Hello { open } => {
                // Somebody has seen it end before.
                let over = open.iter().filter(|id| ended.get(*id).is_some_and(|at| *at < heard.at));
                missed.insert(connection, over.copied().collect());
            }
            Wire::Outcome { transition } => {
                missed.entry(connection).or_default().remove(transition);
            }
            Wire::Call { transition: _, phase } => {
                let asks = ["check", "prepare", "hold", "commit", "undo", "stop"].contains(&phase.as_str());
                let missed = missed.get(&connection).filter(|missed| asks && !missed.is_empty());
                verdict.expect(missed.is_none(), || {
                    format!(
                        "{} is asked to {phase} at {} before it hears of {missed:?}",
                        heard.host, heard.at
                    )
                });
            }
            Wire::Notice { .. } | Wire::Gap { .. } | Wire::Renewed { .. } | Wire::Welcome { .. } => {}
        }
    }
    verdict
}

#[cfg(test)]
mod tests {
    use super::super::sample;
    use super::*;
    use crate::clock::Stamp;
    use crate::history::Heard;
    use serde_json::json;

    #[test]
    fn being_asked_before_being_told_is_found() {
        let mut evidence = Evidence::default();
        sample::event(
            &mut evidence,
            9,
            1,
            json!({ "kind": "outcome", "transition": "t7", "outcome": "aborted" }),
        );
        let heard = |what| Heard { host: "h3".to_owned(), connection: 1, at: Stamp(5000), what };
        let call = || Wire::Call { transition: Some(11), phase: "check".to_owned() };
        let hello = || Wire::Hello { open: vec![7] };
        evidence.history.wire = vec![heard(hello()), heard(Wire::Outcome { transition: 7 }), heard(call())];
        sample::expect_fine(&check(&evidence));
        evidence.history.wire = vec![heard(hello()), heard(call())];
        sample::expect_broken(&check(&evidence), "h3 is asked to check");
    }
}
