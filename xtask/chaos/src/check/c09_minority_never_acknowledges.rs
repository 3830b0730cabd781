//! 9: a server that cannot reach a majority of etcd's members acknowledges nothing, by what it was asked for meanwhile.
//! That what was acknowledged outlives the loss of a minority is 8's, by what is in etcd at the end.

use super::Verdict;
use crate::history::Evidence;

pub(super) fn check(evidence: &Evidence) -> Verdict {
    let mut verdict = Verdict::default();
    for cut_off in &evidence.history.cut_off {
        verdict.looked += cut_off.asked;
        let acknowledged = evidence.history.accepted.iter().find(|accepted| {
            accepted.server == cut_off.server
                && accepted.begun >= cut_off.from
                && cut_off.to.is_none_or(|to| accepted.at <= to)
        });
        verdict.expect(acknowledged.is_none(), || {
            format!(
                "{} was cut off from {} until {:?}, and acknowledged {acknowledged:?}",
                cut_off.server, cut_off.from, cut_off.to
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
    use crate::history::{Accepted, CutOff};

    #[test]
    fn what_a_minority_acknowledges_is_found() {
        let mut evidence = Evidence::default();
        let (from, to) = (Stamp(5000), Some(Stamp(9000)));
        evidence.history.cut_off = vec![CutOff { server: "s1".to_owned(), from, to, asked: 3 }];
        let accepted = |server: &str, begun, at| Accepted {
            server: server.to_owned(),
            begun: Stamp(begun),
            at: Stamp(at),
            ..Accepted::default()
        };
        // Another server may; and what was on its way before, or is answered afterwards, says nothing.
        evidence.history.accepted =
            vec![accepted("s2", 6000, 7000), accepted("s1", 4999, 6000), accepted("s1", 6000, 9001)];
        sample::expect_fine(&check(&evidence));
        evidence.history.accepted.push(accepted("s1", 6000, 7000));
        sample::expect_broken(&check(&evidence), "s1 was cut off");
    }
}
