//! What several servers show, by when they were asked and what anybody had seen by then. Of one server, a later read never
//! shows less than an earlier one. A consistent read, of whichever server, shows all that was seen or acknowledged
//! before it was begun: a transition that was accepted, its decision, its outcome.

use super::Verdict;
use crate::clock::Stamp;
use crate::history::{Evidence, number};
use std::collections::BTreeMap;

pub(super) fn check(evidence: &Evidence) -> Verdict {
    let mut verdict = Verdict::default();
    let history = &evidence.history;
    let accepted = highest(history.accepted.iter().filter_map(|it| Some((it.at, number(&it.transition)?))));
    let shown = highest(history.revisions.iter().copied());
    // By server, when its newest read ended that showed the most.
    let mut most: BTreeMap<&str, (Stamp, u64)> = BTreeMap::new();
    for read in &history.reads {
        let (at, revision) = most.get(read.server.as_str()).copied().unwrap_or_default();
        verdict.expect(at > read.begun || read.revision >= revision, || {
            format!("{} showed {revision} at {at}, and at {} only {}", read.server, read.at, read.revision)
        });
        if read.revision >= revision {
            most.insert(&read.server, (read.at, read.revision));
        }
        if !read.is_consistent {
            continue;
        }
        let known = before(&shown, read.begun);
        verdict.expect(read.revision >= known, || {
            format!(
                "{} was asked at {} and showed {}, {known} was known",
                read.server, read.begun, read.revision
            )
        });
        let Some((newest, open)) = &read.transitions else { continue };
        let known = before(&accepted, read.begun);
        verdict.expect(*newest >= known, || {
            format!(
                "{} was asked at {} and does not know t{known}, which was acknowledged",
                read.server, read.begun
            )
        });
        for (id, is_decided) in open {
            let was_told = |what: &'static str| {
                history.first_told.get(&(format!("t{id}"), what)).is_some_and(|at| *at < read.begun)
            };
            let lacks = was_told("outcome") || (was_told("decision") && !is_decided);
            verdict.expect(!lacks, || {
                format!("{} was asked at {} and does not know how t{id} was decided", read.server, read.begun)
            });
        }
    }
    verdict
}

/// The highest number up to each instant.
pub(super) fn highest(seen: impl Iterator<Item = (Stamp, u64)>) -> Vec<(Stamp, u64)> {
    let mut seen: Vec<_> = seen.collect();
    seen.sort_unstable();
    let mut most = 0;
    for (_, number) in &mut seen {
        most = most.max(*number);
        *number = most;
    }
    seen
}

/// The highest number before an instant.
pub(super) fn before(highest: &[(Stamp, u64)], at: Stamp) -> u64 {
    let count = highest.partition_point(|(seen, _)| *seen < at);
    count.checked_sub(1).map_or(0, |last| highest[last].1)
}

#[cfg(test)]
mod tests {
    use super::super::sample;
    use super::*;
    use crate::history::{Accepted, Read};

    fn read(server: &str, begun: u64, revision: u64, is_consistent: bool) -> Read {
        let (begun, at) = (Stamp(begun), Stamp(begun + 5));
        Read { server: server.to_owned(), begun, at, is_consistent, revision, transitions: None }
    }

    #[test]
    fn a_server_that_goes_back_is_found() {
        let mut evidence = Evidence::default();
        evidence.history.reads =
            vec![read("s1", 10, 7, false), read("s2", 20, 5, false), read("s1", 30, 7, false)];
        sample::expect_fine(&check(&evidence));
        // Asked before the other was answered, it may say what it knew before.
        evidence.history.reads.push(read("s1", 33, 6, false));
        sample::expect_fine(&check(&evidence));
        evidence.history.reads.push(read("s1", 40, 6, false));
        sample::expect_broken(&check(&evidence), "s1 showed 7");
    }

    #[test]
    fn a_consistent_read_that_lacks_something_is_found() {
        let mut evidence = Evidence::default();
        evidence.history.revisions = vec![(Stamp(10), 7)];
        evidence.history.reads =
            vec![read("s1", 10, 6, true), read("s2", 20, 7, true), read("s3", 20, 6, false)];
        sample::expect_fine(&check(&evidence));
        evidence.history.reads.push(read("s3", 30, 6, true));
        sample::expect_broken(&check(&evidence), "s3 was asked");

        let mut evidence = Evidence::default();
        let transition = "t7".to_owned();
        evidence.history.accepted = vec![Accepted { transition, at: Stamp(10), ..Accepted::default() }];
        evidence.history.first_told.insert(("t4".to_owned(), "decision"), Stamp(20));
        let with = |begun, newest, open: &[(u64, bool)]| Read {
            transitions: Some((newest, open.iter().copied().collect())),
            ..read("s1", begun, 9, true)
        };
        evidence.history.reads = vec![with(9, 4, &[(4, false)]), with(30, 7, &[(4, true), (7, false)])];
        sample::expect_fine(&check(&evidence));
        evidence.history.reads = vec![with(15, 4, &[])];
        sample::expect_broken(&check(&evidence), "does not know t7");
        evidence.history.reads = vec![with(30, 7, &[(4, false)])];
        sample::expect_broken(&check(&evidence), "how t4 was decided");
        evidence.history.first_told.insert(("t4".to_owned(), "outcome"), Stamp(20));
        evidence.history.reads = vec![with(30, 7, &[(4, true)])];
        sample::expect_broken(&check(&evidence), "how t4 was decided");
    }
}
