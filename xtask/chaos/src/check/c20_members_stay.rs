//! 20: a host that nothing is wrong with is not given up, and one whose link flaps does not come and go more often than
//! its link does.

use super::Verdict;
use crate::history::{Evidence, Struck};
use crate::network::Layout;
use std::collections::BTreeMap;

/// Suspect, lost, alive, and once more alive when a session that was cut in the middle is replaced.
const CHANGES_PER_TURN: u64 = 4;
/// What a start of the cluster takes.
const CHANGES_AT_FIRST: u64 = 8;
/// This program was kept from running for so long: so was everything else here, and a renewal may have come too late.
const STALL_MS: u64 = 700;

pub(super) fn check(evidence: &Evidence) -> Verdict {
    let mut verdict = Verdict::default();
    let mut changes: BTreeMap<&str, u64> = BTreeMap::new();
    for (revision, event) in evidence.events("host-liveness") {
        let host = event.text("host");
        *changes.entry(host).or_default() += 1;
        if host == evidence.spared {
            let was_stalled = evidence.history.stalls.iter().any(|(at, ms)| {
                *ms > STALL_MS && at.plus_ms(8000) > event.at && *at < event.at.plus_ms(1000)
            });
            verdict.expect(event.text("liveness") != "lost" || was_stalled, || {
                format!("{host} is given up at {revision} ({}), and nothing was wrong with it", event.at)
            });
        }
    }
    for (host, count) in changes {
        let touches = |struck: &&Struck| {
            let target = struck.target.split('/').next().unwrap_or_default();
            [host, "server", "all", "net", "etcd"].contains(&target) || Layout::Three.is_server(target)
        };
        let turns: u64 =
            evidence.history.struck.iter().filter(touches).map(|struck| struck.turns.max(1)).sum();
        // A server that cannot start meets its full disk again and again.
        let bound = CHANGES_AT_FIRST + CHANGES_PER_TURN * turns;
        verdict.expect(count <= bound, || {
            format!("{host} came and went {count} times, in {turns} turns of faults")
        });
    }
    verdict
}

#[cfg(test)]
mod tests {
    use super::super::sample;
    use super::*;
    use serde_json::json;

    #[test]
    fn a_spared_host_that_is_given_up_is_found_and_one_that_flaps_by_itself() {
        let mut evidence = Evidence { spared: "h1".to_owned(), ..Evidence::default() };
        let seen = |liveness: &str| json!({ "kind": "host-liveness", "host": "h1", "liveness": liveness });
        sample::event(&mut evidence, 1, 1, seen("suspect"));
        sample::expect_fine(&check(&evidence));
        sample::event(&mut evidence, 2, 2, seen("lost"));
        sample::expect_broken(&check(&evidence), "h1 is given up at 2");
        for revision in 3..12 {
            sample::event(&mut evidence, revision, revision, seen("alive"));
        }
        sample::expect_broken(&check(&evidence), "h1 came and went 11 times");
    }
}
