//! A transition as it goes: a line for each phase that has ended, and on a terminal one more for the present one.

use super::option::shown;
use super::output::clean;
use super::plan::{summary, taken};
use crate::api::object::{Plan, StepResult, Transition, Vote};
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

/// Members that are named one by one; more are counted.
const NAMED_MAX: usize = 8;
/// Where the times stand, in characters.
const TIME_COLUMN: usize = 72;

/// When it is told of a transition that it waits in the queue.
const QUEUED_TOLD: Duration = Duration::from_secs(3);

/// What has been shown of a transition.
#[derive(Debug, Default)]
pub struct Progress {
    plan: bool,
    check: bool,
    prepare: bool,
    decision: bool,
    release: bool,
    outcome: bool,
    /// Whether it has been told that it waits.
    queued: bool,
    /// Steps that have been shown, each way.
    steps: BTreeSet<(u32, String)>,
    /// When the last line ended.
    since: Duration,
}

impl Progress {
    /// The lines that are due now; `at` is the time since the start.
    pub fn advance(&mut self, transition: &Transition, at: Duration) -> Vec<String> {
        let mut lines = Vec::new();
        if !self.queued && at >= QUEUED_TOLD && transition.phase.as_deref() == Some("queued") {
            self.queued = true;
            let waits = match &transition.blocked_by {
                Some(blocker) => format!("waits for {0}: lockstep transition show {0}", clean(blocker)),
                None => "waits for another transition: lockstep status".to_owned(),
            };
            lines.push(timed("queued", &waits, &mut self.since, at));
        }
        if let Some(plan) = &transition.plan
            && !self.plan
        {
            self.plan = true;
            lines.extend(summary(plan).lines().map(str::to_owned));
        }
        let is_decided = transition.decision.is_some();
        for (round, is_over, is_shown) in [
            ("check", transition.token.is_some() || is_decided, &mut self.check),
            ("prepare", is_decided, &mut self.prepare),
        ] {
            let votes = votes(transition, round);
            if is_over && !*is_shown && !votes.is_empty() {
                *is_shown = true;
                lines.push(timed(round, &votes, &mut self.since, at));
            }
        }
        if let Some(decision) = &transition.decision
            && !self.decision
        {
            self.decision = true;
            let why = transition.cause.as_ref().map(|cause| format!(", {}", clean(cause)));
            let token = transition.token.map(|token| format!(", token {token}"));
            let detail = why.or(token).unwrap_or_default();
            lines.push(timed("decided", &format!("{decision}{detail}"), &mut self.since, at));
        }
        let has_ended = transition.outcome.is_some();
        let is_released = is_decided
            && !transition.holds.is_empty()
            && transition.holds.iter().all(|hold| hold.end.is_some());
        if (is_released && !self.release) || has_ended || self.has_failed(transition) {
            lines.extend(self.steps(transition, at));
        }
        if is_released && !self.release {
            self.release = true;
            let shared = shared(transition);
            let holds = transition.holds.iter().map(|hold| {
                let how = hold.end.as_deref().filter(|end| *end != "released");
                place(&hold.member, &shared) + &how.map(|end| format!(" {end}")).unwrap_or_default()
            });
            lines.push(timed("release", &some(holds.collect()), &mut self.since, at));
        }
        self.outcome |= has_ended;
        lines
    }

    /// What is going on now, for a terminal.
    pub fn now(&self, transition: &Transition) -> Option<String> {
        let phase = transition.phase.as_deref().filter(|_| !self.outcome)?;
        let detail = match phase {
            "queued" => {
                let blocker = transition.blocked_by.as_deref().map(clean);
                format!("waiting for {}", blocker.unwrap_or_else(|| "another transition".to_owned()))
            }
            "check" | "prepare" => votes(transition, phase),
            "commit" => {
                let steps = transition.plan.as_ref().map_or(0, |plan| plan.steps.len());
                let done = transition.steps.iter().flatten().filter(|step| step.result == "confirmed");
                format!("{} of {steps} steps", done.count())
            }
            _ => String::new(),
        };
        Some(format!("{:<10}{detail}", clean(phase)))
    }

    fn has_failed(&self, transition: &Transition) -> bool {
        let mut steps = transition.steps.iter().flatten();
        steps.any(|step| step.result != "confirmed" && !self.steps.contains(&key(step)))
    }

    /// The steps that have not been shown yet, those forward and those back on lines of their own.
    fn steps(&mut self, transition: &Transition, at: Duration) -> Vec<String> {
        let mut lines = Vec::new();
        let shared = shared(transition);
        let depths = transition.plan.as_ref().map(depths).unwrap_or_default();
        for (direction, label) in [("forward", "commit"), ("back", "undo")] {
            let fresh: Vec<&StepResult> = transition.steps.iter().flatten().collect();
            let mut fresh: Vec<&StepResult> = fresh
                .into_iter()
                .filter(|step| step.direction == direction && self.steps.insert(key(step)))
                .collect();
            if fresh.is_empty() {
                continue;
            }
            // As they follow from each other: the numbers of steps say nothing about that.
            fresh.sort_by_key(|step| depths.get(step.step as usize).copied());
            if direction == "back" {
                fresh.reverse();
            }
            let planned = transition.plan.iter().flat_map(|plan| &plan.steps).collect::<Vec<_>>();
            let texts = fresh.iter().map(|step| {
                let planned = planned.get(step.step as usize);
                let state = planned.map(|planned| match label {
                    "commit" if planned.from == planned.to => taken(&planned.set),
                    "commit" => clean(&planned.to),
                    _ => clean(&planned.from),
                });
                let state = state.unwrap_or_default();
                let member = place(&step.member, &shared);
                match (step.result.as_str(), &step.reason) {
                    ("confirmed", _) => format!("{member} {state}"),
                    (result, Some(reason)) => {
                        format!("{member} {state} {}: {}", clean(result), clean(reason))
                    }
                    (result, None) => format!("{member} {state} {}", clean(result)),
                }
            });
            lines.push(timed(label, &some(texts.collect()), &mut self.since, at));
        }
        lines
    }
}

fn key(step: &StepResult) -> (u32, String) {
    (step.step, step.direction.clone())
}

fn timed(label: &str, detail: &str, since: &mut Duration, at: Duration) -> String {
    let span = at.saturating_sub(*since);
    *since = at;
    format!("{:<TIME_COLUMN$}  {:>9}", format!("{label:<10}{detail}"), shown(span))
}

/// The votes of a round, no first: `p1 yes  pg-b no (lag 3 s)`.
fn votes(transition: &Transition, round: &str) -> String {
    let mut votes: Vec<&Vote> =
        transition.votes.iter().flatten().filter(|vote| vote.round == round).collect();
    votes.sort_by_key(|vote| vote.answer != "no");
    let shared = shared(transition);
    let text = |vote: &&Vote| {
        let mut text = format!("{} {}", place(&vote.member, &shared), clean(&vote.answer));
        if vote.role == "holder" && vote.round == "prepare" && vote.answer == "yes" {
            text = format!("{} holding", place(&vote.member, &shared));
        }
        let out = vote.out.iter().map(|(key, value)| match value {
            serde_json::Value::String(value) => format!("{key}={value}"),
            other => format!("{key}={other}"),
        });
        let details: Vec<String> = vote.reason.iter().cloned().chain(out).collect();
        if details.is_empty() { text } else { format!("{text} ({})", clean(&details.join(" "))) }
    };
    some(votes.iter().map(text).collect())
}

fn some(texts: Vec<String>) -> String {
    let rest = texts.len().saturating_sub(NAMED_MAX);
    let mut line = texts.into_iter().take(NAMED_MAX).collect::<Vec<_>>().join("  ");
    if rest > 0 {
        line.push_str(&format!("  and {rest} more"));
    }
    line
}

/// The hosts of which more than one member is asked or moves.
fn shared(transition: &Transition) -> BTreeSet<String> {
    let planned = transition.plan.iter().flat_map(|plan| &plan.participants);
    let planned = planned.filter(|who| who.role != "observer").map(|who| (&*who.host, &*who.group));
    let voted = transition.votes.iter().flatten().filter_map(|vote| vote.member.split_once('@'));
    let mut seen: BTreeMap<&str, &str> = BTreeMap::new();
    let both = planned.chain(voted.map(|(group, host)| (host, group)));
    both.filter(|(host, group)| *seen.entry(host).or_insert(group) != *group)
        .map(|(host, _)| host.to_owned())
        .collect()
}

/// A member by its host, which is what operators call it, as long as that says which.
fn place(member: &str, shared: &BTreeSet<String>) -> String {
    match member.split_once('@') {
        Some((_, host)) if !shared.contains(host) => clean(host),
        _ => clean(member),
    }
}

/// How many steps have to be taken before each, one after another: an order in which they can be shown.
fn depths(plan: &Plan) -> Vec<usize> {
    let mut depths = vec![0; plan.steps.len()];
    let mut waiting: Vec<usize> = plan.steps.iter().map(|step| step.after.len()).collect();
    let mut followers: Vec<Vec<usize>> = vec![Vec::new(); plan.steps.len()];
    for (at, step) in plan.steps.iter().enumerate() {
        for before in &step.after {
            if let Some(followers) = followers.get_mut(*before as usize) {
                followers.push(at);
            }
        }
    }
    let mut free: Vec<usize> = (0..waiting.len()).filter(|at| waiting.get(*at) == Some(&0)).collect();
    while let Some(at) = free.pop() {
        for follower in std::mem::take(&mut followers[at]) {
            depths[follower] = depths[follower].max(depths[at] + 1);
            waiting[follower] -= 1;
            if waiting[follower] == 0 {
                free.push(follower);
            }
        }
    }
    depths
}

#[cfg(test)]
mod tests {
    use super::*;
    use expect_test::expect;
    use serde_json::json;

    fn object(changes: serde_json::Value) -> Transition {
        let mut object = serde_json::to_value(Transition::default()).unwrap();
        let fields = object.as_object_mut().unwrap();
        fields.extend(changes.as_object().unwrap().clone());
        serde_json::from_value(object).unwrap()
    }

    fn vote(
        member: &str,
        role: &str,
        round: &str,
        answer: &str,
        out: &serde_json::Value,
    ) -> serde_json::Value {
        json!({"member": member, "role": role, "round": round, "answer": answer, "reason": null, "out": out,
               "provisional": false})
    }

    #[test]
    fn a_host_with_two_members_is_no_name_and_steps_follow_from_each_other() {
        let plan = json!({"hash": "6f1c0a2b99", "steps": [
            {"id": 0, "group": "blue", "host": "w1", "from": "online", "to": "offline", "after": [1]},
            {"id": 1, "group": "edge", "host": "w1", "from": "offline", "to": "online", "after": [2]},
            {"id": 2, "group": "green", "host": "w2", "from": "offline", "to": "online", "after": []}],
            "participants": [
                {"group": "blue", "host": "w1", "role": "actor"}, {"group": "edge", "host": "w1", "role": "actor"},
                {"group": "green", "host": "w2", "role": "actor"}, {"group": "edge", "host": "w2", "role": "observer"}],
            "relations": [], "gaps": []});
        let step = |step: u32, member: &str| json!({"step": step, "member": member, "direction": "forward", "result": "confirmed", "reason": null});
        let votes = ["blue@w1", "edge@w1", "green@w2"]
            .map(|member| vote(member, "actor", "check", "yes", &json!({})));
        let mut progress = Progress::default();
        let mut lines = Vec::new();
        for (at, changes) in [
            (2000, json!({"phase": "queued", "blocked_by": "t7"})),
            (12_000, json!({"phase": "queued", "blocked_by": "t7"})),
            (22_000, json!({"phase": "queued", "blocked_by": "t7"})),
            (
                22_010,
                json!({"outcome": "committed", "decision": "commit", "token": 9, "plan": plan, "votes": votes,
                            "steps": [step(0, "blue@w1"), step(1, "edge@w1"), step(2, "green@w2")]}),
            ),
        ] {
            lines.extend(progress.advance(&object(changes), Duration::from_millis(at)));
        }
        expect![[r#"
            queued    waits for t7: lockstep transition show t7                          12.0 s
            plan 6f1c0a2b  blue: w1 online -> offline
                           edge: w1 offline -> online
                           green: w2 offline -> online
                           tells: edge (1)
            check     blue@w1 yes  edge@w1 yes  w2 yes                                   10.0 s
            decided   commit, token 9                                                      0 ms
            commit    w2 online  edge@w1 online  blue@w1 offline                           0 ms"#]]
        .assert_eq(&lines.join("\n"));
    }

    #[test]
    fn a_switchover_is_told_in_lines() {
        let plan = json!({"hash": "6f1c0a2b99", "steps": [
            {"id": 0, "group": "db", "host": "pg-a", "from": "primary", "to": "offline", "after": []},
            {"id": 1, "group": "db", "host": "pg-a", "from": "offline", "to": "standby", "after": [0, 2]},
            {"id": 2, "group": "db", "host": "pg-b", "from": "standby", "to": "primary", "after": [0]}],
            "participants": [
                {"group": "app", "host": "a1", "role": "observer"}, {"group": "app", "host": "a2", "role": "observer"},
                {"group": "db", "host": "pg-a", "role": "actor"}, {"group": "db", "host": "pg-b", "role": "actor"},
                {"group": "pool", "host": "p1", "role": "holder"}, {"group": "pool", "host": "p2", "role": "holder"},
                {"group": "pool", "host": "p1", "role": "observer"}],
            "relations": [], "gaps": ["db"]});
        let none = json!({});
        let votes = [
            vote("db@pg-a", "actor", "check", "yes", &none),
            vote("db@pg-b", "actor", "check", "yes", &json!({"lag": 0})),
            vote("pool@p1", "holder", "check", "yes", &none),
            vote("db@pg-a", "actor", "prepare", "yes", &json!({"lsn": "0/3A0"})),
            vote("pool@p1", "holder", "prepare", "yes", &json!({"held": 12})),
        ];
        let step = |step: u32, member: &str| json!({"step": step, "member": member, "direction": "forward", "result": "confirmed", "reason": null});
        let hold = |end: Option<&str>| json!([{"member": "pool@p1", "end": end}]);
        let mut progress = Progress::default();
        let mut text = String::new();
        for (at, changes) in [
            (0, json!({"phase": "queued"})),
            (10, json!({"phase": "check", "votes": votes[..1]})),
            (
                41,
                json!({"phase": "prepare", "token": 118, "plan": plan, "votes": votes[..4], "holds": hold(None)}),
            ),
            (
                104,
                json!({"phase": "commit", "decision": "commit", "token": 118, "plan": plan, "votes": votes,
                         "holds": hold(None), "steps": [step(0, "db@pg-a")]}),
            ),
            (
                284,
                json!({"phase": "commit", "decision": "commit", "token": 118, "plan": plan, "votes": votes,
                         "holds": hold(Some("released")), "steps": [step(0, "db@pg-a"), step(2, "db@pg-b")]}),
            ),
            (
                1200,
                json!({"outcome": "committed", "decision": "commit", "token": 118, "plan": plan, "votes": votes,
                          "holds": hold(Some("released")),
                          "steps": [step(0, "db@pg-a"), step(1, "db@pg-a"), step(2, "db@pg-b")]}),
            ),
        ] {
            let transition = object(changes);
            for line in progress.advance(&transition, Duration::from_millis(at)) {
                text.push_str(&line);
                text.push('\n');
            }
            if let Some(now) = progress.now(&transition) {
                text.push_str(&format!("... {now}\n"));
            }
        }
        expect![[r#"
            ... queued    waiting for another transition
            ... check     pg-a yes
            plan 6f1c0a2b  db: pg-a primary -> offline -> standby, pg-b standby -> primary   gap: db   holds: pool@p1 pool@p2   tells: app (2)
            check     pg-a yes  pg-b yes (lag=0)  p1 yes                                  41 ms
            ... prepare   pg-a yes (lsn=0/3A0)
            prepare   pg-a yes (lsn=0/3A0)  p1 holding (held=12)                          63 ms
            decided   commit, token 118                                                    0 ms
            ... commit    1 of 3 steps
            commit    pg-a offline  pg-b primary                                         180 ms
            release   p1                                                                   0 ms
            ... commit    2 of 3 steps
            commit    pg-a standby                                                       916 ms
        "#]].assert_eq(&text);
    }
}
