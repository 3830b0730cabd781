//! What the oracle found, in a few lines each.

use lockstep_core::cluster::Cluster;
use lockstep_core::id::Index;
use lockstep_core::message::Role;
use lockstep_core::plan::{self, Plan, Scores};
use lockstep_core::record::{Body, HostChange, Liveness, Record};
use lockstep_core::request::{Code, Request};
use lockstep_core::time::WallTime;
use std::collections::BTreeMap;
use std::sync::Arc;

/// Plans targets in a cluster of groups `a`, `b`, ...: each with these keys, on the hosts that its members are listed
/// for. A member is written `a@h1 online`, a state that it never told `?`, and what follows is `lost` or its zone.
fn planned(
    groups: &[(&str, &str)],
    relations: &str,
    lifecycles: &str,
    members: &[&str],
    targets: &[&str],
) -> Result<Plan, Code> {
    let groups: Vec<String> = groups
        .iter()
        .map(|(name, keys)| format!(r#""{name}":{{"select":{{"{name}":"y"}}{keys}}}"#))
        .collect();
    let spec = format!(
        r#"{{"cluster":"c","groups":{{{}}},"relations":[{relations}],"lifecycles":{{{lifecycles}}}}}"#,
        groups.join(",")
    );
    let mut cluster = Cluster::default();
    let mut apply = |body| {
        let index = Index(cluster.revision.0 + 1);
        cluster.apply(index, &Record { at: WallTime(0), body });
    };
    apply(Body::Spec { spec: Arc::new(serde_json::from_str(&spec).unwrap()), principal: "test".to_owned() });
    let mut hosts: BTreeMap<&str, BTreeMap<String, String>> = BTreeMap::new();
    let words: Vec<Vec<&str>> = members.iter().map(|member| member.split(' ').collect()).collect();
    for word in &words {
        let (group, host) = word[0].split_once('@').unwrap();
        let labels = hosts.entry(host).or_default();
        labels.insert(group.to_owned(), "y".to_owned());
        let zone = word[2..].iter().find(|word| **word != "lost");
        labels.extend(zone.map(|zone| ("zone".to_owned(), (*zone).to_owned())));
    }
    for (host, labels) in &hosts {
        let change =
            HostChange::Joined { agent: "a".parse().unwrap(), address: None, labels: labels.clone() };
        apply(Body::Host { host: host.parse().unwrap(), change });
    }
    for word in words.iter().filter(|word| word[1] != "?") {
        apply(Body::Report { member: word[0].parse().unwrap(), actual: Some(word[1].parse().unwrap()) });
    }
    for word in words.iter().filter(|word| word.contains(&"lost")) {
        let host = word[0].split_once('@').unwrap().1.parse().unwrap();
        apply(Body::Host { host, change: HostChange::Liveness { liveness: Liveness::Lost } });
    }
    let targets = targets.iter().map(|target| target.parse().unwrap()).collect();
    let request = Request { targets, ..Request::default() };
    plan::plan_request(&cluster, &request, &Scores::new()).map_err(|rejection| rejection.code)
}

fn goals(plan: &Plan) -> String {
    let goals: Vec<String> = plan.goals.iter().map(|(id, goal)| format!("{id}={goal}")).collect();
    goals.join(" ")
}

#[test]
fn targets_mean_the_same_in_any_order() {
    let groups = [("a", r#","lifecycle":"primary-standby""#)];
    let members = ["a@h1 primary", "a@h2 standby"];
    for targets in [["a=up", "drain h1"], ["drain h1", "a=up"]] {
        let plan = planned(&groups, "", "", &members, &targets).unwrap();
        assert_eq!(goals(&plan), "a@h1=offline a@h2=primary");
    }
}

#[test]
fn what_was_adopted_beyond_a_limit_is_only_shown() {
    let groups = [("a", r#","limits":{"online":{"max":1}}"#)];
    let members = ["a@h1 online", "a@h2 online", "a@h3 online"];
    let plan = planned(&groups, "", "", &members, &["a@h1=offline"]).unwrap();
    assert_eq!(goals(&plan), "a@h1=offline");
}

#[test]
fn a_lost_member_takes_no_settings() {
    let groups = [("a", r#","settings":{"live":"blue"}"#)];
    let members = ["a@h1 online", "a@h2 online lost"];
    let refused = planned(&groups, "", "", &members, &["a.live=green", "a=online"]);
    assert_eq!(refused, Err(Code::HostLost));
}

#[test]
fn a_lost_member_does_not_serve_because_it_should() {
    let members = ["a@h1 online lost", "a@h2 online"];
    let refused = planned(
        &[("a", r#","limits":{"online":{"min":1}}"#)],
        "",
        "",
        &members,
        &["a@h1=online", "a@h2=offline"],
    );
    assert_eq!(refused, Err(Code::LimitBroken));
}

#[test]
fn groups_that_do_not_move_are_shared() {
    let relation = r#"{"from":"a","to":"b","kind":"excludes","moving":true}"#;
    let members = ["a@h1 offline", "b@h1 online"];
    let plan = planned(&[("a", ""), ("b", "")], relation, "", &members, &["a=online"]).unwrap();
    assert_eq!(plan.exclusive, ["a".parse().unwrap()].into());
    assert_eq!(plan.shared, ["b".parse().unwrap()].into());
}

#[test]
fn a_setting_brings_relations_between_other_groups() {
    let groups = [("a", ""), ("b", ""), ("c", r#","settings":{"live":"blue"}"#)];
    for (relation, b, code) in [
        (
            r#"{"from":"a","to":"b","kind":"requires","when":{"c.live":"green"}}"#,
            "offline",
            Code::RequirementDown,
        ),
        (r#"{"from":"a","to":"b","kind":"excludes","when":{"c.live":"green"}}"#, "online", Code::Excluded),
    ] {
        let b = format!("b@h2 {b}");
        let members = ["a@h1 online", b.as_str(), "c@h3 online"];
        assert_eq!(planned(&groups, relation, "", &members, &["c.live=green"]), Err(code));
        let other = if code == Code::Excluded { "b=down" } else { "b=up" };
        let plan = planned(&groups, relation, "", &members, &["c.live=green", other]).unwrap();
        assert_eq!(plan.steps[1].after, [plan.steps[0].id], "{other} comes before the setting is taken");
        assert!(plan.shared.contains(&"a".parse().unwrap()));
    }
}

#[test]
fn whoever_is_asked_for_a_setting_is_asked_where_nobody_takes_it() {
    let relation = r#"{"from":"a","to":"b","ask":"vote","on":["live"],"scope":"zone"}"#;
    let groups = [("a", ""), ("b", r#","settings":{"live":"blue"}"#)];
    let members = ["a@h1 online n", "a@h2 online s", "b@h3 offline n"];
    let plan = planned(&groups, relation, "", &members, &["b.live=green"]).unwrap();
    let voters: Vec<String> = plan.with_role(Role::Voter).map(ToString::to_string).collect();
    assert_eq!(voters, ["a@h1"]);
}

#[test]
fn notices_follow_requires_also_where_another_group_of_the_list_moves() {
    let relations = r#"{"from":"c","to":"a","kind":"requires"},
        {"from":"d","to":["a","b","c"],"kind":"requires","need":1,"scope":"zone"}"#;
    let groups = [("a", ""), ("b", ""), ("c", ""), ("d", "")];
    let members = ["a@h1 offline n", "c@h2 offline s", "d@h3 offline s"];
    let plan = planned(&groups, relations, "", &members, &["a=up"]).unwrap();
    let told: Vec<String> = plan.with_role(Role::Observer).map(ToString::to_string).collect();
    assert_eq!(told, ["c@h2", "d@h3"]);
}

#[test]
fn nobody_is_pulled_along_for_what_was_broken_before() {
    let relation = r#"{"from":"a","to":"b","kind":"requires","cascade":true}"#;
    let groups = [("a", r#","limits":{"online":{"min":2}}"#), ("b", "")];
    let members = ["a@h1 online", "a@h2 offline", "b@h3 offline"];
    let refused = planned(&groups, relation, "", &members, &["a@h2=online"]);
    assert_eq!(refused, Err(Code::RequirementDown), "who is to come up takes nobody down");
    let members = ["a@h1 online", "a@h2 online", "b@h3 offline", "b@h4 offline"];
    let plan = planned(&groups, relation, "", &members, &["b@h4=offline", "a@h2=online"]).unwrap();
    assert!(plan.is_empty(), "{}", goals(&plan));
}

#[test]
fn a_role_moves_to_a_member_that_serves_in_another_state() {
    let cache = r#""cache":{"states":["off","replica","primary"],"serving":["replica","primary"],
        "limits":{"primary":{"max":1}},
        "edges":[["off","replica"],["replica","primary"],["primary","replica"],["replica","off"]]}"#;
    let groups = [("a", r#","lifecycle":"cache""#)];
    let members = ["a@h1 primary", "a@h2 replica", "a@h3 replica"];
    let plan = planned(&groups, "", cache, &members, &["drain h1"]).unwrap();
    assert_eq!(goals(&plan), "a@h1=off a@h2=primary");
    let last = ["a@h1 primary", "a@h2 replica"];
    assert_eq!(planned(&groups, "", cache, &last, &["drain h1"]), Err(Code::NoCandidate));
}

#[test]
fn who_goes_to_the_highest_state_passes_first() {
    let sync = r#""sync":{"states":["off","sync","on","top"],"serving":["on","top"],"limits":{"sync":{"max":1},
        "top":{"max":1}},"edges":[["off","sync"],["sync","on"],["sync","top"],["on","off"],["top","off"]]}"#;
    let groups = [("a", r#","lifecycle":"sync""#)];
    let plan = planned(&groups, "", sync, &["a@h1 off", "a@h2 off"], &["a@h1=on", "a@h2=top"]).unwrap();
    assert!(plan.steps[0].after.contains(&plan.steps[3].id), "h1 waits until h2 is in the highest state");
}

const RING: &str =
    r#""ring":{"states":["a","b","c"],"serving":["c"],"edges":[["a","b"],["b","c"],["c","a"]]}"#;

#[test]
fn lanes_follow_the_order_that_keeps_a_group_serving() {
    let groups = [("a", r#","lifecycle":"ring","parallel":1"#)];
    let plan = planned(&groups, "", RING, &["a@h1 c", "a@h2 b"], &["a=a"]).unwrap();
    assert_eq!(plan.steps[0].after, [plan.steps[1].id, plan.steps[2].id], "h2 enters c before h1 leaves it");
}

#[test]
fn whoever_passes_through_makes_no_gap() {
    let groups = [("a", r#","lifecycle":"ring","limits":{"c":{"max":2}}"#)];
    let members = ["a@h1 c", "a@h2 c", "a@h3 b", "a@h4 c"];
    let plan = planned(&groups, "", RING, &members, &["a@h3=a", "a@h2=a", "a@h4=a"]).unwrap();
    assert!(plan.gaps.is_empty(), "h1 serves on");
}

#[test]
fn who_is_nearer_takes_the_free_place() {
    let sync = r#""sync":{"states":["off","sync","on"],"serving":["on"],"limits":{"sync":{"max":1},"on":{"max":2}},
        "edges":[["off","sync"],["sync","on"],["on","off"],["sync","off"]]}"#;
    let groups = [("a", r#","lifecycle":"sync""#)];
    let members = ["a@h1 off", "a@h2 sync", "a@h3 on"];
    let plan = planned(&groups, "", sync, &members, &["a=up", "drain h3"]).unwrap();
    assert!(plan.gaps.is_empty(), "h2 comes up before h3 leaves");
}
