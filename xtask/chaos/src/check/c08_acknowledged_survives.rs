//! 8: what was acknowledged or shown is in the journal at the end, whatever was killed and cut off meanwhile.

use super::Verdict;
use crate::history::{Accepted, Evidence};

pub(super) fn check(evidence: &Evidence) -> Verdict {
    let mut verdict = Verdict::default();
    let Some(store) = &evidence.store else { return verdict };
    let shown = evidence.history.revision;
    verdict.expect(store.revision.0 >= shown, || {
        format!("the journal ends at {}, and {shown} was shown", store.revision.0)
    });
    for Accepted { transition, request_id, .. } in &evidence.history.accepted {
        // Also of what is no longer kept whole.
        let kept = store.requested(request_id).map(|id| id.to_string());
        verdict.expect(kept.as_ref() == Some(transition), || {
            format!("request {request_id} was acknowledged as {transition}, and is {kept:?}")
        });
    }
    verdict
}

#[cfg(test)]
mod tests {
    use super::super::sample;
    use super::*;
    use lockstep_core::cluster::Cluster;

    #[test]
    fn a_request_that_is_gone_is_found() {
        let mut evidence = Evidence { store: Some(Cluster::default()), ..Evidence::default() };
        sample::expect_fine(&check(&evidence));
        evidence.history.accepted = vec![Accepted {
            transition: "t1".to_owned(),
            request_id: "r-1".to_owned(),
            ..Accepted::default()
        }];
        evidence.history.revision = 1;
        sample::expect_broken(&check(&evidence), "request r-1 was acknowledged as t1");
        sample::expect_broken(&check(&evidence), "the journal ends at 0");
    }
}
