//! 11: the store takes no write from a deposed server, by what stands in etcd: each batch was written once, behind the one
//! before it, while its reign held, and reigns only grow.

use super::{Verdict, on_the_spot};
use crate::etcd::Batch;
use crate::history::Evidence;

pub(super) fn check(evidence: &Evidence) -> Verdict {
    let mut verdict = Verdict { looked: 0, broken: on_the_spot(evidence, 11) };
    let Some(seen) = &evidence.etcd else { return verdict };
    verdict.broken.extend(seen.broken.iter().cloned());
    let mut before: Option<&Batch> = None;
    for batch in seen.batches.values() {
        verdict.expect(batch.times == 1, || format!("{batch:?} was written {} times", batch.times));
        let next = before.map_or(1, |before| before.first + before.count);
        verdict.expect(batch.first == next, || format!("{batch:?} does not begin at {next}"));
        let is_later = before.is_none_or(|before| before.written_at < batch.written_at);
        verdict.expect(is_later, || format!("{batch:?} was written before {before:?}"));
        // The first record of a reign says whose it is, and no other one does.
        let is_same = before.is_some_and(|before| before.reign == batch.reign);
        let grows = before.is_none_or(|before| before.reign <= batch.reign);
        verdict
            .expect(grows && is_same == batch.begins.is_none(), || format!("{batch:?} follows {before:?}"));
        let known = seen.reigns.get(&batch.reign);
        if let Some((since, name)) = known {
            verdict.expect(batch.written_at > *since, || {
                format!("{batch:?} is older than its reign, which began at {since}")
            });
            let is_theirs = batch.begins.as_ref().is_none_or(|begins| begins == name);
            verdict.expect(is_theirs, || format!("{batch:?} begins the reign of {name}"));
        }
        let over = seen.reigns.range(batch.reign + 1..).next();
        verdict.expect(over.is_none_or(|(_, (since, _))| batch.written_at < *since), || {
            format!("{batch:?} was written after its reign: {over:?} had begun")
        });
        before = Some(batch);
    }
    let since: Vec<u64> = seen.reigns.values().map(|(since, _)| *since).collect();
    verdict.expect(since.is_sorted(), || format!("reigns do not only grow: {:?}", seen.reigns));
    verdict
}

#[cfg(test)]
mod tests {
    use super::super::sample;
    use super::*;
    use crate::etcd::Seen;

    /// Two reigns: one from revision 10 on, with batches at 11 and 13, another one from 20 on, with one at 21.
    fn seen() -> Seen {
        let batch = |first, reign, written_at, begins: Option<&str>| Batch {
            first,
            count: 2,
            reign,
            written_at,
            times: 1,
            begins: begins.map(str::to_owned),
        };
        let batches = [batch(1, 1, 11, Some("s1")), batch(3, 1, 13, None), batch(5, 5, 21, Some("s2"))];
        Seen {
            batches: batches.into_iter().map(|batch| (batch.first, batch)).collect(),
            reigns: [(1, (10, "s1".to_owned())), (5, (20, "s2".to_owned()))].into(),
            ..Seen::default()
        }
    }

    #[test]
    fn what_is_written_outside_a_reign_is_found() {
        let judge = |spoil: fn(&mut Seen)| {
            let mut seen = seen();
            spoil(&mut seen);
            check(&Evidence { etcd: Some(seen), ..Evidence::default() })
        };
        sample::expect_fine(&judge(|_| {}));
        let spoil = |first: u64, spoil: fn(&mut Batch)| {
            let mut seen = seen();
            spoil(seen.batches.get_mut(&first).unwrap());
            check(&Evidence { etcd: Some(seen), ..Evidence::default() })
        };
        sample::expect_broken(&spoil(3, |batch| batch.times = 2), "was written 2 times");
        sample::expect_broken(&spoil(3, |batch| batch.written_at = 22), "was written after its reign");
        sample::expect_broken(&spoil(3, |batch| batch.written_at = 9), "is older than its reign");
        sample::expect_broken(&spoil(3, |batch| batch.reign = 5), "follows");
        sample::expect_broken(&spoil(5, |batch| batch.reign = 1), "follows");
        sample::expect_broken(&spoil(5, |batch| batch.begins = None), "follows");
        sample::expect_broken(
            &spoil(5, |batch| batch.begins = Some("s3".to_owned())),
            "begins the reign of s2",
        );
        sample::expect_broken(&judge(|seen| _ = seen.batches.remove(&3)), "does not begin at 3");
        sample::expect_broken(&judge(|seen| seen.reigns.get_mut(&5).unwrap().0 = 5), "do not only grow");
    }
}
