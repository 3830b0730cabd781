//! Calls of one member's handler never overlap, also across an agent's death.

use super::Verdict;
use crate::history::{Evidence, host_of};
use crate::member::{FENCE, Line};
use std::collections::BTreeMap;

pub(super) fn check(evidence: &Evidence) -> Verdict {
    let mut verdict = Verdict::default();
    let mut last: BTreeMap<&str, (&Line, &Line)> = BTreeMap::new();
    let calls = evidence.ended_calls();
    let of_members = |line: &Line| host_of(&line.member) != evidence.excused && line.phase != FENCE;
    for (begin, end) in calls.iter().filter(|(line, _)| of_members(line)) {
        if let Some((before, its_end)) = last.get(begin.member.as_str()) {
            verdict.expect(its_end.at <= begin.at, || {
                format!(
                    "{} was called to {} at {} while it was called to {} from {} to {}",
                    begin.member, begin.phase, begin.at, before.phase, before.at, its_end.at
                )
            });
        }
        // One that was killed ended at an instant that nobody knows.
        if let Some(end) = end {
            last.insert(&begin.member, (begin, end));
        }
    }
    verdict
}

#[cfg(test)]
mod tests {
    use super::super::sample;
    use super::*;

    #[test]
    fn two_calls_at_once_are_found() {
        let mut evidence = Evidence::default();
        sample::call(&mut evidence, "db@h1", "check", "t1", 1, 5);
        sample::call(&mut evidence, "db@h1", "prepare", "t1", 5, 9);
        sample::expect_fine(&check(&evidence));
        sample::call(&mut evidence, "db@h1", "commit", "t1", 8, 12);
        sample::expect_broken(&check(&evidence), "db@h1 was called to commit");
    }
}
