//! 16: what an observer is told comes in the journal's order, and without a gap unless it is told that there is one.

use super::Verdict;
use crate::history::{Evidence, Wire, host_of, text};
use std::collections::{BTreeMap, BTreeSet};

pub(super) fn check(evidence: &Evidence) -> Verdict {
    let mut verdict = Verdict { looked: 0, broken: super::on_the_spot(evidence, 16) };
    on_the_wire(evidence, &mut verdict);
    by_handlers(evidence, &mut verdict);
    verdict
}

/// On one connection each notice names the one before it.
fn on_the_wire(evidence: &Evidence, verdict: &mut Verdict) {
    let mut last: BTreeMap<(&str, u64), u64> = BTreeMap::new();
    for heard in &evidence.history.wire {
        let known = last.get(&(heard.host.as_str(), heard.connection)).copied();
        let index = match heard.what {
            Wire::Notice { index, previous } => {
                verdict.expect(known.is_none_or(|known| known == previous) && previous < index, || {
                    format!("{} was sent notice {index} after {previous}, and had {known:?}", heard.host)
                });
                index
            }
            Wire::Gap { index } => index,
            Wire::Hello { .. }
            | Wire::Outcome { .. }
            | Wire::Call { .. }
            | Wire::Renewed { .. }
            | Wire::Welcome { .. } => continue,
        };
        last.insert((heard.host.as_str(), heard.connection), index);
    }
}

/// As handlers were told: in order, and everything.
fn by_handlers(evidence: &Evidence, verdict: &mut Verdict) {
    let mut numbers: BTreeMap<(&str, bool), u64> = BTreeMap::new();
    for (kind, is_outcome) in [("begin", false), ("outcome", true)] {
        for (revision, event) in evidence.events(kind) {
            numbers.insert((event.text("transition"), is_outcome), revision);
        }
    }
    let mut told: BTreeMap<&str, BTreeSet<u64>> = BTreeMap::new();
    let mut has_gap = BTreeSet::new();
    let calls = evidence.ended_calls();
    let notices =
        calls.iter().filter(|(line, _)| line.phase == "notice" && host_of(&line.member) != evidence.excused);
    for (line, end) in notices {
        if line.gap {
            has_gap.insert(line.member.as_str());
        }
        let Some(transition) = &line.transition else { continue };
        let Some(number) = numbers.get(&(transition.as_str(), line.decision.is_some())) else { continue };
        let told = told.entry(&line.member).or_default();
        let newest = told.last().copied().unwrap_or(0);
        // One whose taking was not written down comes again.
        verdict.expect(told.contains(number) || newest < *number, || {
            format!("{} was told of {number} ({transition}) after {newest}, at {}", line.member, line.at)
        });
        if end.is_some_and(|end| end.code == Some(0)) {
            told.insert(*number);
        }
    }
    if !evidence.is_final {
        return;
    }
    for (transition, whole) in &evidence.history.transitions {
        let Some(number) = numbers.get(&(transition.as_str(), true)) else { continue };
        // What never began has a plan, and nobody is told of it.
        if !numbers.contains_key(&(transition.as_str(), false)) {
            continue;
        }
        for taking_part in whole["plan"]["participants"].as_array().into_iter().flatten() {
            let member = format!("{}@{}", text(taking_part, "group"), text(taking_part, "host"));
            if taking_part["role"] != "observer"
                || host_of(&member) == evidence.excused
                || has_gap.contains(member.as_str())
            {
                continue;
            }
            // What was given up after ten tries is nobody's loss but its own; nothing here fails so often.
            let was_told = told.get(member.as_str()).is_some_and(|told| told.contains(number));
            verdict.expect(was_told, || format!("{member} was never told how {transition} ended"));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::sample;
    use super::*;
    use crate::clock::Stamp;
    use crate::history::Heard;
    use serde_json::json;

    #[test]
    fn a_notice_left_out_and_one_out_of_order_are_found() {
        let mut evidence = Evidence { is_final: true, ..Evidence::default() };
        let heard = |index, previous| Heard {
            host: "h3".to_owned(),
            connection: 1,
            at: Stamp(0),
            what: Wire::Notice { index, previous },
        };
        evidence.history.wire = vec![heard(5, 0), heard(7, 5)];
        sample::event(&mut evidence, 5, 1, json!({ "kind": "begin", "transition": "t1", "token": 5 }));
        sample::event(
            &mut evidence,
            7,
            1,
            json!({ "kind": "outcome", "transition": "t1", "outcome": "committed" }),
        );
        sample::event(
            &mut evidence,
            9,
            1,
            json!({ "kind": "outcome", "transition": "t2", "outcome": "committed" }),
        );
        let plan =
            json!({ "plan": { "participants": [{ "group": "audit", "host": "h2", "role": "observer" }] } });
        // The second one never began.
        evidence.history.transitions.insert("t2".to_owned(), plan.clone());
        evidence.history.transitions.insert("t1".to_owned(), plan);
        sample::expect_broken(&check(&evidence), "audit@h2 was never told how t1 ended");
        sample::call(&mut evidence, "audit@h2", "notice", "t1", 10, 11);
        sample::newest(&mut evidence, |line| line.decision = Some("commit".to_owned()));
        sample::expect_fine(&check(&evidence));
        evidence.history.wire.push(heard(9, 8));
        sample::expect_broken(&check(&evidence), "h3 was sent notice 9 after 8, and had Some(7)");
        evidence.calls.clear();
        for (transition, at) in [("t2", 10), ("t1", 20)] {
            sample::call(&mut evidence, "audit@h2", "notice", transition, at, at + 1);
            sample::newest(&mut evidence, |line| line.decision = Some("commit".to_owned()));
        }
        sample::expect_broken(&check(&evidence), "was told of 7 (t1) after 9");
    }
}
