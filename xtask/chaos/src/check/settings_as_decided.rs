//! When all has resolved, every member that serves and is as it should be has taken its group's settings, and its
//! software is in the state that is shown.

use super::Verdict;
use crate::history::{Evidence, text};
use crate::member::LOWEST;

pub(super) fn check(evidence: &Evidence) -> Verdict {
    let mut verdict = Verdict::default();
    if !evidence.is_final {
        return verdict;
    }
    for member in &evidence.members {
        let name = format!("{}@{}", text(member, "group"), text(member, "host"));
        if !member["mark"].is_null() || member["actual"] == LOWEST {
            continue;
        }
        let newest = evidence.runs.iter().rev().find(|run| run.member == name);
        verdict.expect(newest.is_some_and(|run| run.state == text(member, "actual")), || {
            format!("{name} is shown {}, and what ran last is {newest:?}", member["actual"])
        });
        let shown = member["settings"].as_object();
        for (key, value) in shown.into_iter().flatten() {
            let decided = evidence.settings.get(text(member, "group")).and_then(|settings| settings.get(key));
            let taken = evidence
                .taken
                .get(&name)
                .and_then(|taken| taken.get(&format!("LOCKSTEP_SET_{}", key.to_uppercase())));
            verdict.expect(taken == Some(&value.to_string()), || {
                format!("{name} is shown with {key} = {value}, decided is {decided:?}, and its software took {taken:?}")
            });
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
    fn software_with_other_settings_is_found() {
        let mut evidence = Evidence { is_final: true, ..Evidence::default() };
        evidence.members = vec![
            json!({ "group": "web", "host": "h3", "actual": "online", "mark": null, "settings": { "epoch": 4 } }),
        ];
        let taken = |value: &str| [("LOCKSTEP_SET_EPOCH".to_owned(), value.to_owned())].into();
        evidence.taken.insert("web@h3".to_owned(), taken("4"));
        sample::expect_broken(&check(&evidence), "web@h3 is shown \"online\"");
        sample::run(&mut evidence, "web@h3", "online", 1, 9);
        sample::expect_fine(&check(&evidence));
        evidence.taken.insert("web@h3".to_owned(), taken("3"));
        sample::expect_broken(&check(&evidence), "its software took Some(\"3\")");
    }
}
