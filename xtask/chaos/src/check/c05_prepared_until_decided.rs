//! 5: whoever has said yes stays prepared until there is a decision, by the agents' own journals.

use super::Verdict;
use crate::history::Evidence;
use lockstep_core::agent::AgentRecord;
use lockstep_core::message::Phase;
use std::collections::BTreeSet;

pub(super) fn check(evidence: &Evidence) -> Verdict {
    let mut verdict = Verdict::default();
    let decision = |transition: &str| {
        let mut told = evidence.history.told.iter();
        told.find(|told| told.transition == transition && told.what == "decision")
            .map(|told| told.value.as_str())
    };
    for (host, records) in evidence.journals.iter().filter(|(host, _)| **host != evidence.excused) {
        let (mut said_yes, mut started) = (BTreeSet::new(), BTreeSet::new());
        for record in records {
            match record {
                AgentRecord::Voted { transition, member, phase: Phase::Prepare } => {
                    said_yes.insert((*transition, member.clone()));
                }
                AgentRecord::Started { transition, member, step: _, phase: _ } => {
                    started.insert((*transition, member.clone()));
                    let decided = decision(&transition.to_string());
                    verdict.expect(decided == Some("commit"), || {
                        format!("{member} on {host} took a step of {transition}, decided: {decided:?}")
                    });
                }
                AgentRecord::Cancelled { transition, member } => {
                    let name = transition.to_string();
                    let pair = (*transition, member.clone());
                    if !said_yes.contains(&pair) || started.contains(&pair) {
                        continue;
                    }
                    let decided = decision(&name);
                    verdict.expect(decided.is_some(), || {
                        format!("{member} on {host} said yes in {name} and gave up without a decision")
                    });
                    let was_needed = evidence.history.transitions.get(&name).is_some_and(|whole| {
                        let has = |list: &str| {
                            let items = whole[list].as_array().into_iter().flatten();
                            items.into_iter().any(|item| item["member"] == member.to_string())
                        };
                        let moves = whole["plan"]["steps"].as_array().into_iter().flatten().any(|step| {
                            step["group"] == member.group.to_string()
                                && step["host"] == member.host.to_string()
                        });
                        whole["outcome"] == "committed" && moves && !has("excluded") && !has("left")
                    });
                    verdict.expect(!was_needed, || {
                        format!("{member} on {host} gave up what it had promised in {name}, which committed")
                    });
                }
                AgentRecord::Identity { .. }
                | AgentRecord::Reign { .. }
                | AgentRecord::Cluster { .. }
                | AgentRecord::Token { .. }
                | AgentRecord::Assigned { .. }
                | AgentRecord::Preparing { .. }
                | AgentRecord::Voted { .. }
                | AgentRecord::Held { .. }
                | AgentRecord::HoldEnded { .. }
                | AgentRecord::Ended { .. }
                | AgentRecord::State { .. }
                | AgentRecord::Noticed { .. }
                | AgentRecord::Closed { .. } => {}
            }
        }
    }
    verdict
}

#[cfg(test)]
mod tests {
    use super::super::sample;
    use super::*;
    use serde_json::json;

    #[test]
    fn giving_up_after_a_yes_is_found() {
        let mut evidence = Evidence::default();
        let records = json!([
            { "record": "voted", "transition": 7, "member": "db@h1", "phase": "prepare" },
            { "record": "cancelled", "transition": 7, "member": "db@h1" },
        ]);
        evidence.journals.insert("h1".to_owned(), serde_json::from_value(records).unwrap());
        sample::expect_broken(&check(&evidence), "gave up without a decision");
        evidence.history.tell("t7", "decision", "abort", "list");
        sample::expect_fine(&check(&evidence));
        let started = json!([{ "record": "started", "transition": 7, "member": "db@h1", "step": 0, "phase": "commit" }]);
        evidence.journals.insert("h2".to_owned(), serde_json::from_value(started).unwrap());
        sample::expect_broken(&check(&evidence), "took a step of t7");
    }
}
