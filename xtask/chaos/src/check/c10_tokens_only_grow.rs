//! 10: no handler starts under a lower token than one that has started for its group on its host.

use super::Verdict;
use crate::history::{Evidence, host_of};
use std::collections::BTreeMap;

pub(super) fn check(evidence: &Evidence) -> Verdict {
    let mut verdict = Verdict::default();
    let mut highest: BTreeMap<&str, u64> = BTreeMap::new();
    let moves = ["prepare", "hold", "commit", "undo"];
    let begins =
        evidence.calls.iter().filter(|line| line.code.is_none() && moves.contains(&line.phase.as_str()));
    for line in begins.filter(|line| host_of(&line.member) != evidence.excused) {
        let Some(token) = line.token else { continue };
        let highest = highest.entry(&line.member).or_default();
        verdict.expect(token >= *highest, || {
            format!(
                "{} was called to {} under {token} after {highest}, at {}",
                line.member, line.phase, line.at
            )
        });
        *highest = token.max(*highest);
    }
    verdict
}

#[cfg(test)]
mod tests {
    use super::super::sample;
    use super::*;

    #[test]
    fn a_lower_token_is_found() {
        let mut evidence = Evidence::default();
        for (at, token) in [(1, 7), (3, 7), (5, 9)] {
            sample::call(&mut evidence, "db@h1", "commit", "t1", at, at + 1);
            sample::newest(&mut evidence, |line| line.token = Some(token));
        }
        sample::expect_fine(&check(&evidence));
        sample::call(&mut evidence, "db@h1", "undo", "t1", 7, 8);
        sample::newest(&mut evidence, |line| line.token = Some(8));
        sample::expect_broken(&check(&evidence), "under 8 after 9");
    }
}
