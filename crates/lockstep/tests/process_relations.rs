//! Relations and members that change while the cluster lives: each change shows in the relations, in `explain`, in the next
//! plan and in the event stream.

#![allow(clippy::unwrap_used, reason = "these are tests")]

mod common;

use common::{Cluster, wait_for};
use std::fs;

const SPEC: &str = r#"
cluster = "shop"

[groups.web]
select = { role = "web" }
handler = "sh"
consumes = ["sql"]

[groups.db]
select = { role = "db" }
handler = "sh"
"#;

#[test]
fn what_members_publish_relates_their_groups() {
    let mut cluster = Cluster::start();
    for (member, host, label) in [("web@w", "w", "role=web"), ("db@d", "d", "role=db")] {
        fs::write(cluster.dir.join(format!("{member}.state")), "offline\n").unwrap();
        cluster.start_agent(host, label);
    }
    cluster.apply(SPEC);
    let is_known = |member: &serde_json::Value| member["actual"].is_string();
    wait_for("every member's state", || {
        let members = cluster.items("/v1/members");
        members.len() == 2 && members.iter().all(is_known)
    });
    let first = cluster.run(&["web=online", "db=online"], "r1");
    assert_eq!(cluster.outcome(&first), "committed");
    assert!(cluster.items("/v1/relations").is_empty());
    assert_eq!(cluster.lockstep(&["plan", "db=down"]).0, 0, "nothing rests on it");

    fs::write(cluster.dir.join("db@d.also"), ",\"provides\":[\"sql\"]\n").unwrap();
    wait_for("the relation", || !cluster.items("/v1/relations").is_empty());
    let relation = cluster.items("/v1/relations")[0].clone();
    let said: Vec<_> = ["from", "kind", "to", "origin", "capability"].map(|key| relation[key].clone()).into();
    assert_eq!(said, ["web", "requires", "db", "capability", "sql"]);
    let (exit, because, _) = cluster.lockstep(&["explain", "web", "db"]);
    assert_eq!(exit, 0);
    assert!(because.contains("web consumes sql, which db provides; since revision"), "{because}");
    let (exit, _, why) = cluster.lockstep(&["plan", "db=down"]);
    assert_eq!(exit, 3);
    assert!(why.contains("would-break-requires"), "{why}");
    let (_, events, _) = cluster.lockstep(&["events", "--since", "0"]);
    assert!(events.contains("db@d provides sql, consumes nothing"), "{events}");

    fs::write(cluster.dir.join("db@d.also"), "\n").unwrap();
    wait_for("the relation to be gone", || cluster.items("/v1/relations").is_empty());
    assert_eq!(cluster.lockstep(&["plan", "db=down"]).0, 0);
}

#[test]
fn labels_that_are_set_make_members() {
    let mut cluster = Cluster::start();
    fs::write(cluster.dir.join("web@x.state"), "offline\n").unwrap();
    cluster.start_agent("x", "role=spare");
    cluster.apply(SPEC);
    wait_for("the host", || cluster.joined("x") == 1);
    assert!(cluster.items("/v1/members").is_empty());
    let (exit, said, _) = cluster.lockstep(&["host", "label", "x", "role=web"]);
    assert_eq!((exit, said.as_str()), (0, "x has role=web\n"));
    wait_for("its state", || {
        cluster.items("/v1/members").first().is_some_and(|member| member["actual"] == "offline")
    });
    let (exit, plan, _) = cluster.lockstep(&["plan", "web=online"]);
    assert_eq!(exit, 0);
    assert!(plan.contains("web: x offline -> online"), "{plan}");
    let (_, events, _) = cluster.lockstep(&["events", "--since", "0"]);
    assert!(events.contains("x labelled role=web"), "{events}");

    // It outlives the agent and the server.
    cluster.restart_agent("x");
    cluster.restart_server();
    wait_for("the agent to be back", || cluster.liveness("x") == "alive");
    assert_eq!(cluster.items("/v1/members").len(), 1);
    assert_eq!(cluster.lockstep(&["host", "label", "x", "role-"]).0, 0);
    wait_for("nobody to be a member", || cluster.items("/v1/members").is_empty());

    // A host that is gone for good is forgotten, and its name is free for another agent.
    let (exit, _, why) = cluster.lockstep(&["host", "forget", "x"]);
    assert_eq!(exit, 3, "{why}");
    cluster.agents.get_mut("x").unwrap().kill();
    wait_for("its lease to end", || cluster.liveness("x") == "lost");
    assert_eq!(cluster.lockstep(&["host", "forget", "x"]).0, 0);
    fs::remove_dir_all(cluster.dir.join("data-x")).unwrap();
    cluster.start_agent("x", "role=web");
    wait_for("another agent under its name", || cluster.items("/v1/members").len() == 1);
}
