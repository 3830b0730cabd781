//! 6: a read shows all or none of a transition's goals, and none that is not decided.

use super::{Verdict, on_the_spot};
use crate::history::{Evidence, text};
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};

/// What one decision sets.
struct Set<'a> {
    revision: u64,
    transition: &'a str,
    /// Whatever was set in these groups before may be overwritten: goals change without a step, too.
    groups: BTreeSet<&'a str>,
    goals: BTreeMap<String, String>,
    /// From here on a turn has changed it again.
    until: Option<u64>,
}

/// A read is compared with so many decisions before it: each group has had a newer one long since.
const DECISIONS_MAX: usize = 12;

pub(super) fn check(evidence: &Evidence) -> Verdict {
    let mut verdict = Verdict { looked: 0, broken: on_the_spot(evidence, 6) };
    let mut turns: BTreeMap<&str, u64> = BTreeMap::new();
    for (revision, event) in evidence.events("turn") {
        turns.entry(event.text("transition")).or_insert(revision);
    }
    let commits = evidence.events("decision").filter(|(_, event)| event.text("decision") == "commit");
    let sets: Vec<Set<'_>> = commits
        .map(|(revision, event)| {
            let transition = event.text("transition");
            // One that is not known whole yet sets what nobody knows.
            let whole = evidence.history.transitions.get(transition);
            let goals = whole.map(|whole| goals(&whole["plan"]["steps"])).unwrap_or_default();
            let groups = event.what["groups"].as_array().into_iter().flatten().filter_map(Value::as_str);
            Set {
                revision,
                transition,
                groups: groups.collect(),
                goals,
                until: turns.get(transition).copied(),
            }
        })
        .collect();
    for read in &evidence.history.goals {
        let mut overwritten: BTreeSet<&str> = BTreeSet::new();
        let before = sets.partition_point(|set| set.revision <= read.revision);
        for set in sets[..before].iter().rev().take(DECISIONS_MAX) {
            let is_turned = set.until.is_some_and(|until| until <= read.revision);
            if set.groups.is_disjoint(&overwritten) && !is_turned {
                let differs = set.goals.iter().find(|(member, goal)| read.goals.get(*member) != Some(goal));
                verdict.expect(differs.is_none(), || {
                    format!(
                        "a read at {} shows not all goals of {}, decided at {}: {differs:?}",
                        read.revision, set.transition, set.revision
                    )
                });
            }
            overwritten.extend(&set.groups);
        }
    }
    verdict
}

/// Where each member of a plan ends: what it enters and does not leave again.
fn goals(steps: &Value) -> BTreeMap<String, String> {
    let mut paths: BTreeMap<String, Vec<(&str, &str)>> = BTreeMap::new();
    for step in steps.as_array().into_iter().flatten() {
        let member = format!("{}@{}", text(step, "group"), text(step, "host"));
        let path = paths.entry(member).or_default();
        if step["from"] != step["to"] {
            path.push((text(step, "from"), text(step, "to")));
        }
    }
    let ends = paths.into_iter().filter_map(|(member, path)| {
        let end = path.iter().find(|(_, to)| !path.iter().any(|(from, _)| from == to))?;
        Some((member, end.1.to_owned()))
    });
    ends.collect()
}

#[cfg(test)]
mod tests {
    use super::super::sample;
    use super::*;
    use crate::history::Goals;
    use serde_json::json;

    #[test]
    fn a_read_between_two_goals_is_found() {
        let mut evidence = Evidence::default();
        sample::event(
            &mut evidence,
            5,
            1,
            json!({ "kind": "decision", "transition": "t1", "decision": "commit" }),
        );
        let steps = json!([
            { "group": "db", "host": "h1", "from": "primary", "to": "offline" },
            { "group": "db", "host": "h1", "from": "offline", "to": "standby" },
            { "group": "db", "host": "h2", "from": "standby", "to": "primary" },
        ]);
        evidence.history.transitions.insert("t1".to_owned(), json!({ "plan": { "steps": steps } }));
        let read = |revision, one: &str, two: &str| Goals {
            revision,
            goals: [("db@h1", one), ("db@h2", two)]
                .map(|(member, goal)| (member.to_owned(), goal.to_owned()))
                .into(),
            ..Goals::default()
        };
        evidence.history.goals = vec![read(4, "primary", "standby"), read(5, "standby", "primary")];
        sample::expect_fine(&check(&evidence));
        evidence.history.goals.push(read(6, "primary", "primary"));
        sample::expect_broken(&check(&evidence), "a read at 6 shows not all goals of t1");
    }
}
