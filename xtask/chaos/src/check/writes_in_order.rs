//! Writes take effect between their sending and their answer: a transition whose request was sent after another one was
//! acknowledged comes after that one in the journal, by its number, whichever servers took them. That both are there at the
//! end is 8's.

use super::Verdict;
use super::reads_are_linear::{before, highest};
use crate::history::{Accepted, Evidence, number};

pub(super) fn check(evidence: &Evidence) -> Verdict {
    let mut verdict = Verdict::default();
    let accepted = || {
        let accepted = evidence.history.accepted.iter();
        accepted.filter_map(|it: &Accepted| Some((it, number(&it.transition)?)))
    };
    let acknowledged = highest(accepted().map(|(it, number)| (it.at, number)));
    for (Accepted { transition, request_id, begun, .. }, number) in accepted() {
        let known = before(&acknowledged, *begun);
        verdict.expect(number > known, || {
            format!(
                "{request_id} was sent at {begun} and is {transition}, and t{known} was acknowledged before"
            )
        });
    }
    verdict
}

#[cfg(test)]
mod tests {
    use super::super::sample;
    use super::*;
    use crate::clock::Stamp;

    #[test]
    fn a_write_that_comes_before_what_was_acknowledged_is_found() {
        let accepted = |transition: &str, begun: u64, at: u64| Accepted {
            transition: transition.to_owned(),
            begun: Stamp(begun),
            at: Stamp(at),
            ..Accepted::default()
        };
        let mut evidence = Evidence::default();
        // Those that overlap may come in either order, and the same request has the same answer later.
        evidence.history.accepted = vec![
            accepted("t9", 10, 20),
            accepted("t7", 15, 30),
            accepted("t9", 10, 90),
            accepted("t12", 40, 50),
        ];
        sample::expect_fine(&check(&evidence));
        evidence.history.accepted.push(accepted("t8", 25, 60));
        sample::expect_broken(&check(&evidence), "is t8, and t9 was acknowledged before");
    }
}
