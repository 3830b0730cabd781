//! 12: no more members' software runs in a limited state than may, by what the software itself wrote down. Members in
//! doubt and on hosts that are given up run on, and are in it.

use super::Verdict;
use crate::clock::Stamp;
use crate::history::{Evidence, host_of};
use crate::member::Run;

pub(super) fn check(evidence: &Evidence) -> Verdict {
    let mut verdict = Verdict::default();
    for (group, state) in &evidence.limited {
        let is_in = |run: &&Run| run.member.split('@').next() == Some(group) && run.state == *state;
        let runs = evidence.runs.iter().filter(is_in);
        let runs: Vec<(&Run, Stamp)> = runs.filter_map(|run| Some((run, evidence.ran_until(run)?))).collect();
        for (place, (run, _)) in runs.iter().enumerate() {
            // They are sorted by their begins. The last beat is before the end, never after it.
            let beside = runs[..place]
                .iter()
                .find(|(before, last)| *last > run.begin && host_of(&before.member) != host_of(&run.member));
            verdict.expect(beside.is_none(), || {
                format!(
                    "{} was {state} from {} on, while {:?} was until {:?}",
                    run.member,
                    run.begin,
                    beside.map(|(before, _)| &before.member),
                    beside.map(|(_, last)| last)
                )
            });
        }
    }
    verdict
}

#[cfg(test)]
mod tests {
    use super::super::sample;
    use super::*;
    use crate::history::Struck;

    #[test]
    fn two_primaries_are_found() {
        let mut evidence =
            Evidence { limited: vec![("db".to_owned(), "primary".to_owned())], ..Evidence::default() };
        sample::run(&mut evidence, "db@h1", "primary", 1, 5);
        sample::run(&mut evidence, "db@h2", "standby", 2, 5);
        sample::run(&mut evidence, "db@h2", "primary", 6, 9);
        sample::expect_fine(&check(&evidence));
        sample::run(&mut evidence, "db@h3", "primary", 8, 12);
        sample::expect_broken(&check(&evidence), "db@h3 was primary");
    }

    #[test]
    fn who_stood_still_and_runs_on_is_found_and_not_who_is_ended_at_once() {
        let ran_until = |until| {
            let (kind, target) = ("host-stopped", "h1".to_owned());
            let (from, to) = (Stamp(3_000_000), Some(Stamp(8_000_000)));
            let mut evidence =
                Evidence { limited: vec![("lead".to_owned(), "primary".to_owned())], ..Evidence::default() };
            evidence.history.struck = vec![Struck { kind, target, from, to, has_bitten: true, turns: 1 }];
            sample::run(&mut evidence, "lead@h1", "primary", 1000, until);
            sample::run(&mut evidence, "lead@h3", "primary", 7000, 9000);
            evidence
        };
        sample::expect_fine(&check(&ran_until(8300)));
        sample::expect_broken(&check(&ran_until(8700)), "lead@h3 was primary");
        // On another host nothing stood still.
        let mut elsewhere = ran_until(8300);
        elsewhere.history.struck[0].target = "h4".to_owned();
        sample::expect_broken(&check(&elsewhere), "lead@h3 was primary");
    }
}
