//! 19: once the faults are over everything resolves in its time, first with one host still gone and then with all.

use super::Verdict;
use crate::history::{Evidence, text};

pub(super) fn check(evidence: &Evidence) -> Verdict {
    let mut verdict = Verdict::default();
    let resolved = evidence.history.resolved.iter();
    for resolved in resolved {
        verdict.expect(resolved.is_ok(), || resolved.as_ref().err().cloned().unwrap_or_default());
    }
    if evidence.is_final {
        for host in &evidence.hosts {
            verdict.expect(host["liveness"] == "alive", || {
                format!("{} is {}", text(host, "name"), host["liveness"])
            });
        }
        let stored = evidence.store.iter().flat_map(|store| &store.transitions);
        for (id, transition) in stored {
            verdict.expect(transition.outcome.is_some(), || format!("{id} has no outcome"));
        }
    }
    verdict
}

#[cfg(test)]
mod tests {
    use super::super::sample;
    use super::*;
    use serde_json::json;

    #[test]
    fn a_host_that_stays_away_is_found() {
        let mut evidence = Evidence { is_final: true, ..Evidence::default() };
        evidence.hosts = vec![json!({ "name": "h1", "liveness": "alive" })];
        sample::expect_fine(&check(&evidence));
        evidence.hosts.push(json!({ "name": "h2", "liveness": "lost" }));
        sample::expect_broken(&check(&evidence), "h2 is \"lost\"");
        evidence.history.resolved = Some(Err("t9 is queued".to_owned()));
        sample::expect_broken(&check(&evidence), "t9 is queued");
    }
}
