//! What a handler is told of a call: its environment and its standard input.

use crate::handler;
use lockstep_core::message::{Call, Context, ContextMember, Decision, Phase};
use serde::Serialize;
use serde_json::{Map, Value};
use std::collections::BTreeMap;

/// The context as handlers read it.
#[derive(Serialize)]
struct Input<'a> {
    me: String,
    phase: Phase,
    #[serde(skip_serializing_if = "Option::is_none")]
    decision: Option<Decision>,
    settings: BTreeMap<String, Value>,
    was: BTreeMap<String, Value>,
    members: &'a [ContextMember],
    /// Left out unless it is true.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    gap: bool,
    out: BTreeMap<String, &'a Map<String, Value>>,
}

/// One call of a handler, from the server's order.
pub(super) fn of(order: &Call, timeout_ms: u64) -> handler::Call {
    let mut vars = BTreeMap::new();
    let mut set = |name: &str, value: String| vars.insert(name.to_owned(), value);
    set("MEMBER", order.member.to_string());
    set("GROUP", order.member.group.to_string());
    set("HOST", order.member.host.to_string());
    set("ROLE", order.role.to_string());
    set("DEADLINE_MS", timeout_ms.to_string());
    let subject: Vec<_> = order.subject.iter().map(|group| group.as_str()).collect();
    if !subject.is_empty() {
        set("SUBJECT", subject.join(","));
    }
    // A member that is stopped leaves its state outside of any transition, whoever had it stopped.
    if order.phase != Phase::Stop {
        order.transition.map(|id| set("TRANSITION", id.to_string()));
    }
    if is_gap(order) {
        set("GAP", "1".to_owned());
    }
    order.step.map(|step| set("STEP", step.to_string()));
    order.token.map(|token| set("TOKEN", token.to_string()));
    order.from.as_ref().map(|state| set("FROM", state.to_string()));
    order.to.as_ref().map(|state| set("TO", state.to_string()));
    order.decision.map(|decision| set("DECISION", decision.to_string()));
    order.hold_ms.map(|ms| set("HOLD_MS", ms.to_string()));
    let none = Context::default();
    let context = order.context.as_ref().unwrap_or(&none);
    for (prefix, settings) in [("SET", &context.settings), ("WAS", &context.was)] {
        for (key, value) in settings {
            set(&format!("{prefix}_{}", key.as_str().to_ascii_uppercase()), value.to_string());
        }
    }
    handler::Call { phase: order.phase, vars, context: input(order, context), timeout_ms }
}

/// Whether it tells, instead of one transition, that there were more than can be told.
fn is_gap(order: &Call) -> bool {
    order.phase == Phase::Notice && order.transition.is_none()
}

fn input(order: &Call, context: &Context) -> Vec<u8> {
    let settings = |settings: &BTreeMap<_, _>| {
        let json = |value| serde_json::to_value(value).expect("settings are plain data");
        settings
            .iter()
            .map(|(key, value): (&lockstep_core::id::SettingKey, _)| (key.to_string(), json(value)))
            .collect()
    };
    let input = Input {
        me: order.member.to_string(),
        phase: order.phase,
        decision: order.decision,
        settings: settings(&context.settings),
        was: settings(&context.was),
        members: &context.members,
        gap: is_gap(order),
        out: context.out.iter().map(|(member, out)| (member.to_string(), out)).collect(),
    };
    serde_json::to_vec(&input).expect("a context is plain data")
}

#[cfg(test)]
mod tests {
    use super::*;
    use expect_test::expect;

    #[test]
    fn a_handler_is_told_what_it_needs_and_no_more() {
        let order = r#"{"member":"pool@p1","phase":"release","role":"holder","transition":7,"attempt":1,"token":9,
            "subject":["db"],"decision":"commit","within_ms":5000,"context":{"settings":{"live":"blue","epoch":41},
            "was":{},"members":[{"member":"db@pg-b","address":"10.0.0.2","from":"standby","goal":"primary",
            "actual":"primary"}],"out":{"db@pg-a":{"lsn":"0/3A0"}}}}"#;
        let call = of(&serde_json::from_str(order).unwrap(), 4000);
        let vars: Vec<_> = call.vars.iter().map(|(name, value)| format!("{name}={value}")).collect();
        expect![[r#"
            DEADLINE_MS=4000
            DECISION=commit
            GROUP=pool
            HOST=p1
            MEMBER=pool@p1
            ROLE=holder
            SET_EPOCH=41
            SET_LIVE=blue
            SUBJECT=db
            TOKEN=9
            TRANSITION=t7"#]]
        .assert_eq(&vars.join("\n"));
        expect![[r#"{"me":"pool@p1","phase":"release","decision":"commit","settings":{"epoch":41,"live":"blue"},"was":{},"members":[{"member":"db@pg-b","address":"10.0.0.2","from":"standby","goal":"primary","actual":"primary"}],"out":{"db@pg-a":{"lsn":"0/3A0"}}}"#]]
        .assert_eq(std::str::from_utf8(&call.context).unwrap());
    }

    #[test]
    fn a_handler_is_told_that_notices_are_missing_and_how_things_are() {
        let order = r#"{"member":"app@w","phase":"notice","role":"observer","attempt":1,"within_ms":60000,
            "context":{"settings":{},"was":{},"members":[{"member":"db@a","address":null,"from":"primary",
            "goal":"primary","actual":"primary"}],"out":{}}}"#;
        let call = of(&serde_json::from_str(order).unwrap(), 4000);
        assert_eq!(call.vars["GAP"], "1");
        assert!(!call.vars.contains_key("TRANSITION") && !call.vars.contains_key("DECISION"));
        expect![[r#"{"me":"app@w","phase":"notice","settings":{},"was":{},"members":[{"member":"db@a","address":null,"from":"primary","goal":"primary","actual":"primary"}],"gap":true,"out":{}}"#]]
        .assert_eq(std::str::from_utf8(&call.context).unwrap());
    }
}
