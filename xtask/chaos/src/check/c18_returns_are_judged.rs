//! 18: no software stays above its member's goal on a host that was given up and is back: by what the software itself
//! wrote down, and the goals that readers were shown.

use super::Verdict;
use crate::clock::Stamp;
use crate::history::{Evidence, Goals, Struck, host_of};
use crate::member::Run;
use crate::network::Layout;
use crate::workload::GROUPS;
use std::collections::BTreeSet;

/// How long it may take to ask the member's handler where it is and then to stop it, with nothing in the way.
const BOUND_MS: u64 = 7000;
/// How long what was in the way is still felt.
const AFTERMATH_MS: u64 = 3000;
/// When a call is over that nobody has seen end: it is killed at its time-out, or was killed.
const CALL_MS: u64 = 7000;
/// How long before its host is seen to be back software may have ended that was there when it came.
const SEEN_MS: u64 = 1000;

pub(super) fn check(evidence: &Evidence) -> Verdict {
    let mut verdict = Verdict::default();
    let mut goals: Vec<&Goals> = evidence.history.goals.iter().collect();
    goals.sort_by_key(|read| read.revision);
    let mut away = BTreeSet::new();
    for (revision, event) in evidence.events("host-liveness") {
        let host = event.text("host");
        match event.text("liveness") {
            "lost" | "fenced" => _ = away.insert(host),
            "alive" if away.remove(host) && host != evidence.excused => {
                let reads = &goals[goals.partition_point(|read| read.revision < revision)..];
                let is_there = |run: &&Run| {
                    host_of(&run.member) == host
                        && run.begin <= event.at
                        && run.last.plus_ms(SEEN_MS) > event.at
                };
                for run in evidence.runs.iter().filter(is_there) {
                    judge(evidence, run, event.at, reads, &mut verdict);
                }
            }
            _ => {}
        }
    }
    verdict
}

/// Judges software that runs as its host comes back, by all reads since then.
fn judge(evidence: &Evidence, run: &Run, back: Stamp, reads: &[&Goals], verdict: &mut Verdict) {
    // What a transition drives is that one's to see to.
    let is_expected = |read: &Goals| is_above(run, read) && !read.driven.contains(&run.member);
    if !reads.first().is_some_and(|read| is_expected(read)) {
        return;
    }
    let mut excused = in_the_way(evidence, run);
    for (place, read) in reads.iter().enumerate().filter(|(_, read)| !is_expected(read)) {
        excused.push((read.at, reads.get(place + 1).map(|next| next.at)));
    }
    excused.push((run.last, None));
    excused.sort_unstable();
    let (mut from, mut longest_ms) = (back, 0);
    for (begin, end) in excused {
        longest_ms = longest_ms.max(begin.min(run.last).ms_since(from));
        from = from.max(end.unwrap_or(run.last));
    }
    verdict.expect(longest_ms <= BOUND_MS, || {
        format!(
            "{} came back at {back} as {}, above its goal, and ran on until {}, of that for {longest_ms} ms with nothing in the way",
            run.member, run.state, run.last
        )
    });
}

/// Whether software runs in a state above its member's goal.
fn is_above(run: &Run, read: &Goals) -> bool {
    let group = GROUPS.iter().find(|group| run.member.split('@').next() == Some(group.name));
    let rank = |state: &str| group.and_then(|group| group.states.iter().position(|known| *known == state));
    read.goals.get(&run.member).is_some_and(|goal| rank(&run.state) > rank(goal))
}

/// From when until when there was what may keep it from being stopped, for good where there is no end: faults of its host
/// and of servers, calls of its handler that come first, and a handler that says that it cannot.
fn in_the_way(evidence: &Evidence, run: &Run) -> Vec<(Stamp, Option<Stamp>)> {
    let touches = |struck: &&Struck| {
        let target = struck.target.split('/').next().unwrap_or_default();
        let is_near = [host_of(&run.member), "server", "all", "net", "etcd"].contains(&target);
        (is_near || Layout::Three.is_server(target)) && !struck.kind.contains("-clock-")
    };
    let faults = evidence.history.struck.iter().filter(touches);
    let mut spans: Vec<_> =
        faults.map(|struck| (struck.from, struck.to.map(|to| to.plus_ms(AFTERMATH_MS)))).collect();
    let calls = evidence.ended_calls().into_iter().filter(|(begin, _)| begin.member == run.member);
    spans.extend(calls.filter_map(|(begin, end)| match (begin.phase.as_str(), end) {
        // That says that it has stopped it.
        ("stop", Some(end)) if end.code == Some(0) => None,
        ("stop", Some(_)) => Some((begin.at, None)),
        (_, Some(end)) => Some((begin.at, Some(end.at))),
        (_, None) => Some((begin.at, Some(begin.at.plus_ms(CALL_MS)))),
    }));
    spans
}

#[cfg(test)]
mod tests {
    use super::super::sample;
    use super::*;
    use serde_json::json;

    fn liveness(evidence: &mut Evidence, revision: u64, at: u64, liveness: &str) {
        let what = json!({ "kind": "host-liveness", "host": "h4", "liveness": liveness });
        sample::event(evidence, revision, at, what);
    }

    fn read(evidence: &mut Evidence, revision: u64, at: u64, goal: &str) {
        let goals = [("pool@h4".to_owned(), goal.to_owned())].into();
        evidence.history.goals.push(Goals { at: Stamp(at * 1000), revision, goals, ..Goals::default() });
    }

    /// A host that was given up came back after 10 s, with software that has no goal but the lowest.
    fn came_back(ran_until: u64) -> Evidence {
        let mut evidence = Evidence::default();
        liveness(&mut evidence, 5, 4000, "lost");
        liveness(&mut evidence, 8, 10_000, "alive");
        read(&mut evidence, 4, 3000, "online");
        read(&mut evidence, 7, 6000, "offline");
        read(&mut evidence, 8, 10_100, "offline");
        sample::run(&mut evidence, "pool@h4", "online", 1000, ran_until);
        evidence
    }

    #[test]
    fn software_that_runs_on_above_its_goal_is_found() {
        sample::expect_fine(&check(&came_back(12_000)));
        sample::expect_broken(&check(&came_back(21_000)), "pool@h4 came back");
        // Nobody has to stop what may serve.
        let mut evidence = came_back(21_000);
        read(&mut evidence, 9, 12_000, "online");
        sample::expect_fine(&check(&evidence));
        read(&mut evidence, 11, 17_000, "offline");
        sample::expect_fine(&check(&evidence));
    }

    #[test]
    fn what_is_in_the_way_is_counted_out_and_no_more() {
        let with = |phase: &str, code: u8, ran_until: u64| {
            let mut evidence = came_back(ran_until);
            sample::call(&mut evidence, "pool@h4", phase, "t1", 11_000, 14_000);
            evidence.calls.last_mut().unwrap().code = Some(code);
            check(&evidence)
        };
        sample::expect_fine(&with("stop", 1, 60_000));
        sample::expect_fine(&with("commit", 0, 20_000));
        sample::expect_broken(&with("commit", 0, 25_000), "pool@h4 came back");
        // One that says that it has stopped it has not: that is no excuse.
        sample::expect_broken(&with("stop", 0, 25_000), "pool@h4 came back");
        let mut evidence = came_back(57_000);
        let (kind, target) = ("agent-killed", "h4".to_owned());
        let (from, to) = (Stamp(12_000_000), Some(Stamp(48_000_000)));
        evidence.history.struck = vec![Struck { kind, target, from, to, has_bitten: true, turns: 1 }];
        sample::expect_fine(&check(&evidence));
        evidence.history.struck[0].target = "h2".to_owned();
        sample::expect_broken(&check(&evidence), "pool@h4 came back");
    }
}
