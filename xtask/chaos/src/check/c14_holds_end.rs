//! 14: every hold ends, by its release, or at its stated end by the holder's own agent.

use super::Verdict;
use crate::history::{Evidence, Struck, host_of};

/// What an agent may take to let go at a hold's end, on a machine with much to do.
const SLACK_MS: u64 = 3000;
/// How long before a hold a fault may have ended whose traces are still felt, in a handler that is being ended.
const AFTERMATH_MS: u64 = 5000;

pub(super) fn check(evidence: &Evidence) -> Verdict {
    let mut verdict = Verdict::default();
    let calls = evidence.ended_calls();
    let holds =
        calls.iter().filter(|(line, _)| line.phase == "hold" && host_of(&line.member) != evidence.excused);
    for (hold, _) in holds {
        let releases = calls.iter().filter(|(line, _)| {
            line.phase == "release"
                && line.member == hold.member
                && line.transition == hold.transition
                && line.at > hold.at
        });
        let due = hold.at.plus_ms(hold.hold_ms.unwrap_or(0) + SLACK_MS);
        let first = releases.clone().map(|(line, _)| line.at).min();
        let host = host_of(&hold.member);
        let touches =
            |struck: &Struck| struck.target.split('/').next() == Some(host) || struck.kind == "all-killed";
        let is_touched = evidence.is_struck(touches, hold.at.minus_ms(AFTERMATH_MS), due);
        let newest = evidence.calls.last().map(|line| line.at).unwrap_or_default();
        if !is_touched && newest > due {
            verdict.expect(first.is_some_and(|at| at <= due), || {
                format!(
                    "{} held for {:?} from {}, and let go at {first:?}",
                    hold.member, hold.transition, hold.at
                )
            });
        }
        let is_over = releases.clone().any(|(_, end)| end.is_some_and(|end| end.code == Some(0)));
        if evidence.is_final {
            verdict.expect(is_over, || {
                format!("{} holds for {:?} and never lets go", hold.member, hold.transition)
            });
        }
    }
    verdict
}

#[cfg(test)]
mod tests {
    use super::super::sample;
    use super::*;

    #[test]
    fn a_hold_without_an_end_is_found_and_one_that_ends_late() {
        let mut evidence = Evidence { is_final: true, ..Evidence::default() };
        sample::call(&mut evidence, "pool@h4", "hold", "t1", 1000, 1010);
        sample::newest(&mut evidence, |line| line.hold_ms = Some(2000));
        sample::expect_broken(&check(&evidence), "never lets go");
        sample::call(&mut evidence, "pool@h4", "release", "t1", 2500, 2600);
        sample::expect_fine(&check(&evidence));
        let len = evidence.calls.len();
        evidence.calls.truncate(len - 2);
        sample::call(&mut evidence, "pool@h4", "release", "t1", 9000, 9100);
        sample::expect_broken(&check(&evidence), "let go at");
    }
}
