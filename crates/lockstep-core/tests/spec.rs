//! Each way in which a spec is refused, once: where, and in which words.

#![allow(clippy::unwrap_used, reason = "these are tests")]

use lockstep_core::relation::Relations;
use lockstep_core::spec::SpecFile;

fn refusal(spec: &str) -> String {
    let file: SpecFile = serde_json::from_str(spec).unwrap_or_else(|error| panic!("{error}: {spec}"));
    let error = file.check().expect_err(spec);
    assert!(!error.help.is_empty(), "{error} says what to do");
    error.to_string()
}

fn group(body: &str) -> String {
    format!(r#"{{"cluster":"c","groups":{{"g":{{{body}}},"h":{{}}}}}}"#)
}

fn lifecycle(body: &str) -> String {
    format!(r#"{{"cluster":"c","lifecycles":{{"l":{body}}}}}"#)
}

fn relations(body: &str) -> String {
    format!(r#"{{"cluster":"c","groups":{{"g":{{}},"h":{{}}}},"relations":[{body}]}}"#)
}

#[test]
fn a_spec_is_refused_at_its_place() {
    let long = "x".repeat(300);
    for (spec, wanted) in [
        (r#"{"cluster":""}"#.to_owned(), "cluster: the cluster has no name"),
        (format!(r#"{{"cluster":"{long}"}}"#), "cluster: the text is longer than 255 bytes"),
        (r#"{"cluster":"a\u0007"}"#.to_owned(), "cluster: the text has control characters"),
        (r#"{"cluster":"a\u202e"}"#.to_owned(), "cluster: the text has marks that turn its direction"),
        (r#"{"cluster":"c","lease_ms":299}"#.to_owned(), "lease_ms: a lease of 299 ms"),
        (r#"{"cluster":"c","lease_ms":600001}"#.to_owned(), "lease_ms: a lease of 600001 ms"),
        (group(r#""groups":["x"]"#), "groups.g.groups: there is no group x"),
        (group(r#""groups":["g"]"#), "groups.g.groups: g is part of itself"),
        (group(r#""groups":["i"]},"i":{"groups":["g"]"#), "groups.g.groups: g is part of itself"),
        (
            group(r#""groups":["h"],"select":{"a":"b"}"#),
            "groups.g.select: g is made of groups, and has no select of its own",
        ),
        (
            group(r#""groups":["h"],"retries":1"#),
            "groups.g.retries: g is made of groups, and has no retries of its own",
        ),
        (group(r#""handler":"fence""#), "groups.g.handler: the handler fence is no member's"),
        (group(r#""parallel":0"#), "groups.g.parallel: parallel = 0"),
        (group(r#""parallel":"0%""#), "groups.g.parallel: parallel = 0%"),
        (group(r#""select":{"a\n":"b"}"#), "groups.g.select.a\n: the text has control characters"),
        (group(r#""select":{"a":">x"}"#), r#"groups.g.select.a: ">x" compares with no number"#),
        (group(r#""select":{"a":["b\u0000"]}"#), "groups.g.select.a: the text has control characters"),
        (
            group(r#""lifecycle":"none"}, "k":{"lifecycle":"service""#),
            "groups.g.lifecycle: there is no lifecycle none",
        ),
        (
            group(r#""limits":{"primary":{"max":1}}"#),
            "groups.g.limits.primary: primary is not a state of lifecycle service",
        ),
        (
            group(r#""limits":{"online":{"min":3,"max":2}}"#),
            "groups.g.limits.online: min 3 is more than max 2",
        ),
        (group(r#""settings":{"k":"\u0000"}"#), "groups.g.settings.k: the text has control characters"),
        (group(r#""settings":{"Key":1}"#), "groups.g.settings.Key: setting Key has upper case letters"),
        (group(r#""deadlines_ms":{"check":0}"#), "groups.g.deadlines_ms: 0 ms"),
        (group(r#""hold_ms":86400001"#), "groups.g.hold_ms: 86400001 ms"),
        (group(r#""retries":1001"#), "groups.g.retries: 1001 retries"),
        (group(r#""windows":["mon 10:00-11:00","10:00-11:00"]"#), r#"groups.g.windows.1: it is none of "mon-fri 22:00-04:00" and the like"#),
        (
            group(&format!(r#""windows":[{}"mon 10:00-11:00"]"#, r#""mon 10:00-11:00","#.repeat(168))),
            "groups.g.windows: 169 windows, at most 168",
        ),
        (
            group(r#""groups":["h"],"windows":["mon 10:00-11:00"]"#),
            "groups.g.windows: g is made of groups, and has no windows of its own",
        ),
        (relations(r#"{"from":"g","to":["h","h"]}"#), "relations.0.to: a group is listed twice"),
        (relations(r#"{"from":"g","to":"h","need":1}"#), "relations.0.need: need goes with requires, not with watches"),
        (
            relations(r#"{"from":"g","to":"h","kind":"requires","need":2}"#),
            "relations.0.need: need = 2 of 1 groups",
        ),
        (
            relations(r#"{"from":"g","to":"h","kind":"after","cascade":true}"#),
            "relations.0.cascade: cascade goes with requires and excludes, not with after",
        ),
        (
            relations(r#"{"from":"g","to":"h","kind":"requires","moving":true}"#),
            "relations.0.moving: moving goes with excludes, not with requires",
        ),
        (
            relations(r#"{"from":"g","to":"h","kind":"excludes","moving":true,"cascade":true}"#),
            "relations.0.cascade: cascade and moving exclude each other",
        ),
        (relations(r#"{"from":"g","to":"h","scope":"a\n"}"#), "relations.0.scope: the text has control characters"),
        (
            relations(r#"{"from":"g","to":"h","on":["k"]}"#),
            "relations.0.on: on says when to ask, and nothing is asked",
        ),
        (relations(r#"{"from":"g","to":"h","ask":"vote","on":["k"]}"#), "relations.0.on: h has no setting k"),
        (
            relations(r#"{"from":"g","to":"h","when":{"h.k":1}}"#),
            "relations.0.when: there is no setting h.k",
        ),
        (
            group(r#""settings":{"k":1}"#).replace("}}}", r#"}},"relations":[{"from":"h","to":"g","when":{"g.k":"1"}}]}"#),
            "relations.0.when: g.k is 1 when declared, and can never be 1",
        ),
        (
            r#"{"cluster":"c","groups":{"a":{},"b":{},"all":{"groups":["a","b"]}},"relations":[{"from":"a","to":"all"}]}"#
                .to_owned(),
            "relations.0.to: a is related to itself",
        ),
        (
            r#"{"cluster":"c","groups":{"a":{},"b":{},"c":{},"all":{"groups":["a","b"]}},"relations":[{"from":"c","to":["all"],"kind":"requires","need":1}]}"#
                .to_owned(),
            "relations.0.need: need = 1 counts groups, and all is made of several",
        ),
        (
            lifecycle(r#"{"states":["a","b"],"serving":["b"],"drained":"b","edges":[["a","b"],["b","a"]]}"#),
            "lifecycles.l.drained: b serves",
        ),
        (
            group(r#""consumes":["x"],"provides":["x"]"#),
            "groups.g.consumes: g consumes x, which it provides itself",
        ),
        (relations(r#"{"from":"x","to":"h"}"#), "relations.0.from: there is no group x"),
        (relations(r#"{"from":"g","to":"x"}"#), "relations.0.to: there is no group x"),
        (
            relations(r#"{"from":"g","to":"h"},{"from":"g","to":"g"}"#),
            "relations.1.to: g is related to itself",
        ),
        (
            relations(r#"{"from":"g","to":"h","kind":"after"},{"from":"h","to":"g","kind":"requires"}"#),
            "relations: g -> h -> g go in a circle",
        ),
        (lifecycle(r#"{"states":["a"],"serving":[],"edges":[]}"#), "lifecycles.l.states: 1 states"),
        (
            lifecycle(r#"{"states":["a","a"],"serving":[],"edges":[]}"#),
            "lifecycles.l.states: a state is listed twice",
        ),
        (
            lifecycle(r#"{"states":["a","b"],"serving":[],"edges":[]}"#),
            "lifecycles.l.serving: no state serves",
        ),
        (
            lifecycle(r#"{"states":["a","b"],"serving":["c"],"edges":[]}"#),
            "lifecycles.l.serving: c is not a state of l",
        ),
        (
            lifecycle(r#"{"states":["a","b"],"serving":["a"],"edges":[]}"#),
            "lifecycles.l.serving: a is the lowest state and serves",
        ),
        (
            lifecycle(r#"{"states":["a","b"],"serving":["b"],"edges":[["a","c"]]}"#),
            "lifecycles.l.edges: c is not a state of l",
        ),
        (
            lifecycle(r#"{"states":["a","b"],"serving":["b"],"edges":[["a","a"]]}"#),
            "lifecycles.l.edges: an edge from a to itself",
        ),
        (
            lifecycle(r#"{"states":["a","b"],"serving":["b"],"edges":[["a","b"]],"limits":{"c":{}}}"#),
            "lifecycles.l.limits: c is not a state of l",
        ),
        (
            lifecycle(r#"{"states":["a","b"],"serving":["b"],"edges":[["a","b"]]}"#),
            "lifecycles.l.edges: no edges lead from b to a",
        ),
        (
            lifecycle(r#"{"states":["a","b"],"serving":["b"],"edges":[["b","a"]]}"#),
            "lifecycles.l.edges: no edges lead from a to b",
        ),
        (
            r#"{"cluster":"c","lifecycles":{"service":{"states":["a","b"],"serving":["b"],"edges":[]}}}"#
                .to_owned(),
            "lifecycles.service: service is built in",
        ),
    ] {
        assert_eq!(refusal(&spec), wanted);
    }
}

#[test]
fn relations_are_declared_and_derived_in_one_order() {
    let groups = r#""web":{"consumes":["sql"]},"db":{"provides":["sql"]},"app":{}"#;
    let declared = r#"{"from":"app","to":"web","ask":"vote"},{"from":"app","to":"db","kind":"after"}"#;
    let spec = format!(r#"{{"cluster":"c","groups":{{{groups}}},"relations":[{declared},{declared}]}}"#);
    let file: SpecFile = serde_json::from_str(&spec).unwrap();
    let relations = Relations::declared(&file.check().unwrap());
    let shown: Vec<_> = relations
        .iter()
        .map(|relation| format!("{} {} {} {:?}", relation.from, relation.kind, relation.to, relation.origin))
        .collect();
    assert_eq!(shown, ["app after db Declared", "app watches web Declared", "web requires db Capability"]);
}

#[test]
fn composites_are_taken_apart_and_choices_are_not() {
    let groups = r#""a":{},"b":{},"in":{"groups":["a","b"]},"out":{"groups":["in"]},"x":{},"y":{"consumes":["sql"]},
        "p":{"provides":["sql"]},"q":{"provides":["sql"]},"e":{"settings":{"live":"blue"}}"#;
    let declared = r#"{"from":"x","to":"out","kind":"requires"},{"from":"out","to":"e","kind":"after"},
        {"from":"x","to":["p","q"],"kind":"requires","need":1},{"from":"x","to":["p","q"]},
        {"from":"e","to":"p","when":{"e.live":"blue"}},{"from":"e","to":"q","when":{"e.live":"green"}}"#;
    let spec = format!(r#"{{"cluster":"c","groups":{{{groups}}},"relations":[{declared}]}}"#);
    let file: SpecFile = serde_json::from_str(&spec).unwrap();
    let relations = Relations::declared(&file.check().unwrap());
    let shown: Vec<_> = relations
        .iter()
        .map(|relation| format!("{} {} {} need {}", relation.from, relation.kind, relation.to, relation.need))
        .collect();
    assert_eq!(
        shown,
        [
            "a after e need all",
            "b after e need all",
            "e watches p need all",
            "x requires a need all",
            "x requires b need all",
            "x watches p need all",
            "x requires p and q need 1",
            "x watches q need all",
            "y requires p and q need 1",
        ]
    );
}

#[test]
fn a_long_chain_is_no_cycle_and_a_long_cycle_is_found() {
    let groups: Vec<_> = (0..10_000).map(|number| format!(r#""g{number}":{{}}"#)).collect();
    let chain = |count: usize| -> Vec<_> {
        let edge = |from: usize| {
            format!(r#"{{"from":"g{from}","to":"g{}","kind":"requires"}}"#, (from + 1) % 10_000)
        };
        (0..count).map(edge).collect()
    };
    let spec = |count| {
        format!(
            r#"{{"cluster":"c","groups":{{{}}},"relations":[{}]}}"#,
            groups.join(","),
            chain(count).join(",")
        )
    };
    let file: SpecFile = serde_json::from_str(&spec(9_999)).unwrap();
    assert_eq!(Relations::declared(&file.check().unwrap()).pairs(), 9_999);
    let file: SpecFile = serde_json::from_str(&spec(10_000)).unwrap();
    assert!(file.check().unwrap_err().is_cycle);
}
