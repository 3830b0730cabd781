//! 13: a step is done when its handler has said so and its software is where it should be, and not before: by events
//! and agents' journals on one side, handlers and software on the other.

use super::Verdict;
use crate::clock::Stamp;
use crate::fault::Kind;
use crate::history::{Evidence, host_of, text};
use crate::member::{LOWEST, Line};
use lockstep_core::agent::AgentRecord;
use lockstep_core::vote::Answer;
use std::collections::BTreeMap;

/// How long before a handler's end its software may have ended by itself.
const DIED_SINCE_MS: u64 = 300;
/// What may have ended it.
const KILLS: [Kind; 4] = [Kind::SoftwareKilled, Kind::HostKilled, Kind::HostStopped, Kind::HostFenced];

pub(super) fn check(evidence: &Evidence) -> Verdict {
    let mut verdict = Verdict::default();
    let mut done: BTreeMap<(&str, &str, u32, &str), &Line> = BTreeMap::new();
    for line in evidence.calls.iter().filter(|line| line.code == Some(0)) {
        if let (Some(transition), Some(step)) = (&line.transition, line.step) {
            done.entry((&line.member, transition, step, &line.phase)).or_insert(line);
        }
    }
    for (revision, event) in evidence.events("step") {
        for result in event.what["results"].as_array().into_iter().flatten() {
            let (member, step) = (text(result, "member"), result["step"].as_u64());
            let Some(step) = step.and_then(|step| u32::try_from(step).ok()) else { continue };
            if result["result"] != "confirmed" || member.is_empty() || host_of(member) == evidence.excused {
                continue;
            }
            let phase = if result["direction"] == "back" { "undo" } else { "commit" };
            let transition = event.text("transition");
            let said = done.get(&(member, transition, step, phase)).filter(|line| line.at <= event.at);
            verdict.expect(said.is_some(), || {
                format!("step {step} of {transition} is confirmed at {revision}, and {member}'s handler never said so")
            });
        }
    }
    for (host, records) in evidence.journals.iter().filter(|(host, _)| **host != evidence.excused) {
        for record in records {
            let AgentRecord::Ended { transition, step, done: answer } = record else { continue };
            if answer.answer != Answer::Yes {
                continue;
            }
            let (member, phase, transition) =
                (answer.member.to_string(), answer.phase.to_string(), transition.to_string());
            let said = done.contains_key(&(member.as_str(), transition.as_str(), step.0, phase.as_str()));
            verdict.expect(said, || {
                format!("{host}'s journal has step {step:?} of {transition} done, and {member}'s handler never said so")
            });
        }
    }
    for line in done.values().filter(|line| line.from != line.to && host_of(&line.member) != evidence.excused)
    {
        let to = line.to.as_deref().unwrap_or_default();
        let host = host_of(&line.member);
        let was_killed = evidence.is_struck(
            |struck| {
                KILLS.iter().any(|kind| kind.name() == struck.kind) && host_of_target(&struck.target) == host
            },
            line.at.minus_ms(DIED_SINCE_MS + 1000),
            line.at,
        );
        let is_there = is_in(evidence, &line.member, to, line.at);
        // Its lease may have ended in this very moment, and then it may not be there.
        let is_by_lease = line.member.split('@').next() == Some(&evidence.leased) && to != LOWEST;
        verdict.expect(is_there || was_killed || is_by_lease, || {
            format!(
                "{}'s handler said at {} that it was {to}, and its software was not",
                line.member, line.at
            )
        });
    }
    verdict
}

fn host_of_target(target: &str) -> &str {
    target.split('/').next().unwrap_or_default()
}

/// Whether a member's software was in a state: what wrote down after an instant that it ran, and had begun before, ran.
fn is_in(evidence: &Evidence, member: &str, state: &str, at: Stamp) -> bool {
    let mut begun = evidence.runs.iter().filter(|run| run.member == member && run.begin <= at);
    let is_elsewhere = begun.clone().any(|run| run.state != state && run.last > at);
    !is_elsewhere
        && (state == LOWEST || begun.any(|run| run.state == state && run.last.plus_ms(DIED_SINCE_MS) >= at))
}

#[cfg(test)]
mod tests {
    use super::super::sample;
    use super::*;
    use serde_json::json;

    #[test]
    fn a_step_that_nobody_took_is_found() {
        let mut evidence = Evidence::default();
        sample::call(&mut evidence, "db@h1", "commit", "t1", 1000, 2000);
        sample::newest(&mut evidence, |line| {
            line.step = Some(0);
            (line.from, line.to) = (Some("offline".to_owned()), Some("standby".to_owned()));
        });
        sample::run(&mut evidence, "db@h1", "standby", 1500, 9000);
        let step = |number| {
            let result =
                json!({ "member": "db@h1", "step": number, "direction": "forward", "result": "confirmed" });
            json!({ "kind": "step", "transition": "t1", "results": [result] })
        };
        sample::event(&mut evidence, 5, 2500, step(0));
        sample::expect_fine(&check(&evidence));
        sample::event(&mut evidence, 6, 2600, step(1));
        sample::expect_broken(&check(&evidence), "step 1 of t1 is confirmed at 6");
        evidence.runs.clear();
        sample::expect_broken(&check(&evidence), "it was standby, and its software was not");
        evidence.runs.clear();
        sample::run(&mut evidence, "db@h1", "primary", 500, 9000);
        sample::expect_broken(&check(&evidence), "it was standby, and its software was not");
    }
}
