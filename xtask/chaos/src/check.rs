//! What has to be true of all that was seen. Each check is a file and a function, named by the number of its invariant in
//! `docs/guarantee.md`; it judges by what came from different sides, and never asks Lockstep whether it is right.

mod c01_one_outcome;
mod c02_written_once;
mod c05_prepared_until_decided;
mod c06_all_goals_or_none;
mod c08_acknowledged_survives;
mod c09_minority_never_acknowledges;
mod c10_leases_end;
mod c10_tokens_only_grow;
mod c11_deposed_write_nothing;
mod c12_max_is_kept;
mod c13_done_means_done;
mod c14_holds_end;
mod c16_notices_in_order;
mod c18_missed_outcomes_first;
mod c18_returns_are_judged;
mod c19_all_resolves;
mod c20_members_stay;
mod c21_clocks_may_jump;
mod calls_never_overlap;
mod reads_are_linear;
mod settings_as_decided;
mod writes_in_order;

use crate::history::Evidence;
use crate::network::{Layout, layout};

/// What a check came to: how much it looked at, and what is broken.
#[derive(Debug, Default, PartialEq)]
pub(crate) struct Verdict {
    pub(crate) looked: u64,
    pub(crate) broken: Vec<String>,
}

impl Verdict {
    /// Looks at one thing; `broken` says what is wrong with it.
    fn expect(&mut self, is_so: bool, broken: impl FnOnce() -> String) {
        self.looked += 1;
        if !is_so {
            self.broken.push(broken());
        }
    }
}

/// A check, by its number and name.
pub(crate) type Check = (&'static str, fn(&Evidence) -> Verdict);

/// Those that are made whatever servers there are. What is found on the spot (22 altogether, parts of 1, 6, 7, 11 and 16)
/// comes from the history.
const ALL: [Check; 21] = [
    ("1 one-outcome", c01_one_outcome::check),
    ("2 written-once", c02_written_once::check),
    ("5 prepared-until-decided", c05_prepared_until_decided::check),
    ("6 all-goals-or-none", c06_all_goals_or_none::check),
    ("7 same-request-same-answer", same_request),
    ("8 acknowledged-survives", c08_acknowledged_survives::check),
    ("10 tokens-only-grow", c10_tokens_only_grow::check),
    ("10 leases-end", c10_leases_end::check),
    ("12 max-is-kept", c12_max_is_kept::check),
    ("13 done-means-done", c13_done_means_done::check),
    ("14 holds-end", c14_holds_end::check),
    ("16 notices-in-order", c16_notices_in_order::check),
    ("18 missed-outcomes-first", c18_missed_outcomes_first::check),
    ("18 returns-are-judged", c18_returns_are_judged::check),
    ("19 all-resolves", c19_all_resolves::check),
    ("20 members-stay", c20_members_stay::check),
    ("21 clocks-may-jump", c21_clocks_may_jump::check),
    ("22 failed-syncs-and-full-disks", failed_syncs),
    ("calls-never-overlap", calls_never_overlap::check),
    ("settings-as-decided", settings_as_decided::check),
    ("writes-in-order", writes_in_order::check),
];

/// Those that need several servers, on etcd.
const OF_SEVERAL: [Check; 3] = [
    ("9 minority-never-acknowledges", c09_minority_never_acknowledges::check),
    ("11 deposed-write-nothing", c11_deposed_write_nothing::check),
    ("reads-are-linear", reads_are_linear::check),
];

/// All checks of this run.
pub(crate) fn all() -> impl Iterator<Item = Check> {
    let of_several: &[Check] = match layout() {
        Layout::One => &[],
        Layout::Three => &OF_SEVERAL,
    };
    ALL.iter().chain(of_several).copied()
}

/// 7: found by the operators, who know what they sent.
fn same_request(evidence: &Evidence) -> Verdict {
    let (again, otherwise) = evidence.history.repeated;
    Verdict { looked: again + otherwise, broken: on_the_spot(evidence, 7) }
}

/// 22: found when a fault is mended, and when journals are read. What was acknowledged meanwhile is 8's.
fn failed_syncs(evidence: &Evidence) -> Verdict {
    let kinds = ["-disk-full", "-sync-fails", "-killed-in-sync", "-power-cut"];
    let of_disks = |kind: &str| kinds.iter().any(|end| kind.ends_with(end));
    let looked = evidence.history.struck.iter().filter(|struck| struck.has_bitten && of_disks(struck.kind));
    Verdict { looked: looked.count() as u64, broken: on_the_spot(evidence, 22) }
}

fn on_the_spot(evidence: &Evidence, number: u8) -> Vec<String> {
    let broken = evidence.history.broken.iter().filter(|(of, _)| *of == number);
    broken.map(|(_, why)| why.clone()).collect()
}

/// What checks are tried out with: evidence of a cluster that is as it should be, to be spoilt.
#[cfg(test)]
mod sample {
    use super::*;
    use crate::clock::Stamp;
    use crate::member::{Line, Run};
    use serde_json::Value;

    /// A handler's call of a transition, from one stamp to another, in milliseconds.
    pub(super) fn call(evidence: &mut Evidence, member: &str, phase: &str, of: &str, from: u64, to: u64) {
        let begin = Line {
            at: Stamp(from * 1000),
            pid: u32::try_from(from).unwrap(),
            member: member.to_owned(),
            phase: phase.to_owned(),
            transition: Some(of.to_owned()),
            ..Line::default()
        };
        evidence.calls.push(begin.clone());
        evidence.calls.push(Line { at: Stamp(to * 1000), code: Some(0), ..begin });
    }

    /// The two lines of the newest call.
    pub(super) fn newest(evidence: &mut Evidence, change: impl Fn(&mut Line)) {
        let len = evidence.calls.len();
        evidence.calls[len - 2..].iter_mut().for_each(change);
    }

    pub(super) fn event(evidence: &mut Evidence, revision: u64, at: u64, what: Value) {
        evidence.history.event(revision, &{
            let mut what = what;
            what["provisional"] = Value::Bool(false);
            what.to_string()
        });
        if let Some(event) = evidence.history.events.get_mut(&revision) {
            event.at = Stamp(at * 1000);
        }
    }

    pub(super) fn run(evidence: &mut Evidence, member: &str, state: &str, from: u64, to: u64) {
        let (member, state) = (member.to_owned(), state.to_owned());
        evidence.runs.push(Run { member, state, begin: Stamp(from * 1000), last: Stamp(to * 1000) });
    }

    #[track_caller]
    pub(super) fn expect_fine(verdict: &Verdict) {
        assert!(verdict.looked > 0 && verdict.broken.is_empty(), "{verdict:?}");
    }

    #[track_caller]
    pub(super) fn expect_broken(verdict: &Verdict, why: &str) {
        assert!(verdict.broken.iter().any(|broken| broken.contains(why)), "{verdict:?}");
    }
}
