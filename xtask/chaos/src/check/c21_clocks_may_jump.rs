//! 21: a wall clock that jumps by an hour moves nothing. All other checks hold it to that; this one looks at the moment:
//! with no other fault about, nobody comes or goes.

use super::Verdict;
use crate::history::{Evidence, Struck};

/// How long after a jump something that came of it would be seen, and after other faults what comes of them.
const SEEN_MS: u64 = 2000;
const AFTERMATH_MS: u64 = 6000;

pub(super) fn check(evidence: &Evidence) -> Verdict {
    let mut verdict = Verdict::default();
    let is_jump = |struck: &Struck| struck.kind.contains("-clock-");
    for jump in evidence.history.struck.iter().filter(|struck| is_jump(struck) && struck.has_bitten) {
        for at in [Some(jump.from), jump.to].into_iter().flatten() {
            let until = at.plus_ms(SEEN_MS);
            let others = |struck: &Struck| !is_jump(struck) && struck.target != "subscriber";
            if evidence.is_struck(others, at.minus_ms(AFTERMATH_MS), until) {
                continue;
            }
            let mut changes =
                evidence.events("host-liveness").filter(|(_, event)| event.at >= at && event.at <= until);
            let change = changes.next().map(|(revision, event)| (revision, event.what.clone()));
            verdict.expect(change.is_none(), || {
                format!("the clock of {} jumped at {at}, and then: {change:?}", jump.target)
            });
        }
    }
    verdict
}

#[cfg(test)]
mod tests {
    use super::super::sample;
    use super::*;
    use crate::clock::Stamp;
    use serde_json::json;

    #[test]
    fn a_host_that_goes_with_a_clock_is_found() {
        let mut evidence = Evidence::default();
        evidence.history.struck = vec![Struck {
            kind: "server-clock-forward",
            target: "server/clock".to_owned(),
            from: Stamp(20_000_000),
            to: Some(Stamp(25_000_000)),
            has_bitten: true,
            turns: 1,
        }];
        sample::expect_fine(&check(&evidence));
        sample::event(
            &mut evidence,
            1,
            20_500,
            json!({ "kind": "host-liveness", "host": "h1", "liveness": "lost" }),
        );
        sample::expect_broken(&check(&evidence), "server/clock jumped");
    }
}
