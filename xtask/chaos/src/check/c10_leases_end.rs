//! 10: no member of a `recover = "lease"` group runs in its limited state past its lease's end, by what its software wrote
//! down on one side, and the renewals that passed the proxy on the other. Whether its agent lived then, or a guard had to
//! see to it, makes no difference. It is expected of members that are recorded as guarded: the place of others is given
//! to nobody by a lease's end.

use super::Verdict;
use crate::clock::Stamp;
use crate::history::{Evidence, Wire, host_of};
use std::collections::BTreeMap;

/// A kill is not the same instant as what leads to it; the software's last beat is before its end.
const KILL_MS: u64 = 100;

pub(super) fn check(evidence: &Evidence) -> Verdict {
    let mut verdict = Verdict::default();
    let leases = leases(evidence);
    let limited = evidence.limited.iter().find(|(group, _)| *group == evidence.leased);
    let is_limited = |state: &str| limited.is_some_and(|(_, limited)| limited == state);
    let runs = evidence.runs.iter().filter(|run| run.member.split('@').next() == Some(&evidence.leased));
    for run in runs.filter(|run| is_limited(&run.state)) {
        // Of hosts that do not dial through the proxy nothing is known.
        let Some(leases) = leases.get(host_of(&run.member)) else { continue };
        let Some(last) = evidence.ran_until(run) else { continue };
        let mut until = None;
        for (known_at, end) in leases {
            // What went on after an end was not held up by a lease that came later.
            if until.is_some_and(|until: Stamp| *known_at > until.plus_ms(KILL_MS))
                && until >= Some(run.begin)
            {
                break;
            }
            if *known_at <= last {
                until = until.max(Some(*end));
            }
        }
        if !is_guarded(evidence, &run.member, &run.state, until.unwrap_or(run.begin)) {
            continue;
        }
        verdict.expect(until.is_some_and(|until| last <= until.plus_ms(KILL_MS)), || {
            format!(
                "{} ran as {} from {} until {}, and its lease ended at {until:?}",
                run.member, run.state, run.begin, run.last
            )
        });
    }
    verdict
}

/// Whether a member was recorded as one that is surely stopped when its lease ends.
fn is_guarded(evidence: &Evidence, member: &str, state: &str, at: Stamp) -> bool {
    let records = evidence.events("member-guarded").filter(|(_, event)| event.text("member") == member);
    let newest = records.take_while(|(_, event)| event.at <= at).last();
    newest.is_some_and(|(_, event)| {
        event.what["states"].as_array().is_some_and(|states| states.contains(&state.into()))
    })
}

/// For each host the instants from which on a lease was known, and its end: counted from the renewal's sending, as its
/// holder counts it.
fn leases(evidence: &Evidence) -> BTreeMap<&str, Vec<(Stamp, Stamp)>> {
    let mut lengths: BTreeMap<&str, u64> = BTreeMap::new();
    let mut leases: BTreeMap<&str, Vec<(Stamp, Stamp)>> = BTreeMap::new();
    for heard in &evidence.history.wire {
        let host = heard.host.as_str();
        match heard.what {
            Wire::Welcome { lease_ms } => _ = lengths.insert(host, lease_ms),
            Wire::Renewed { sent_ms, lease_ms } => {
                if let Some(lease_ms) = lease_ms {
                    lengths.insert(host, lease_ms);
                }
                let end = Stamp(sent_ms * 1000).plus_ms(lengths.get(host).copied().unwrap_or(0));
                leases.entry(host).or_default().push((heard.at, end));
            }
            Wire::Hello { .. }
            | Wire::Outcome { .. }
            | Wire::Call { .. }
            | Wire::Notice { .. }
            | Wire::Gap { .. } => {}
        }
    }
    leases
}

#[cfg(test)]
mod tests {
    use super::super::sample;
    use super::*;
    use crate::history::Heard;
    use serde_json::json;

    fn renewed(evidence: &mut Evidence, sent_ms: u64, at: u64) {
        let what = Wire::Renewed { sent_ms, lease_ms: None };
        evidence.history.wire.push(Heard {
            host: "h3".to_owned(),
            connection: 1,
            at: Stamp(at * 1000),
            what,
        });
    }

    #[test]
    fn software_that_runs_past_its_lease_is_found() {
        let mut evidence = Evidence {
            limited: vec![("lead".to_owned(), "primary".to_owned())],
            leased: "lead".to_owned(),
            ..Evidence::default()
        };
        let what = Wire::Welcome { lease_ms: 3000 };
        evidence.history.wire = vec![Heard { host: "h3".to_owned(), connection: 1, at: Stamp(0), what }];
        renewed(&mut evidence, 1000, 1010);
        renewed(&mut evidence, 2000, 2010);
        let guarded = json!({ "kind": "member-guarded", "member": "lead@h3", "states": ["primary"] });
        sample::event(&mut evidence, 5, 1600, guarded);
        sample::run(&mut evidence, "lead@h3", "primary", 1500, 4990);
        sample::expect_fine(&check(&evidence));
        evidence.runs.clear();
        sample::run(&mut evidence, "lead@h3", "primary", 1500, 5200);
        sample::expect_broken(&check(&evidence), "lead@h3 ran as primary");
        // A later one does not heal it.
        renewed(&mut evidence, 5150, 5160);
        evidence.runs.clear();
        sample::run(&mut evidence, "lead@h3", "primary", 1500, 6000);
        sample::expect_broken(&check(&evidence), "lead@h3 ran as primary");
        evidence.runs.clear();
        sample::run(&mut evidence, "lead@h3", "primary", 5200, 6000);
        sample::expect_fine(&check(&evidence));
        // Nobody takes the place of one that is not guarded.
        sample::event(
            &mut evidence,
            6,
            4000,
            json!({ "kind": "member-guarded", "member": "lead@h3", "states": [] }),
        );
        sample::run(&mut evidence, "lead@h3", "primary", 1500, 6000);
        evidence.runs.remove(0);
        assert_eq!(check(&evidence), Verdict::default());
    }
}
