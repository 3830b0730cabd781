//! What the command line says of a cluster that is not as it should be, whose handlers do what a test wants.

#![allow(clippy::unwrap_used, reason = "a test fails by it")]

mod common;

use common::{Cluster, wait_for};
use serde_json::Value;

const APP: &str = "cluster = \"shop\"\n[groups.app]\nselect = { role = \"app\" }\nhandler = \"sh\"\n";

/// Hosts with one member of group app each, in that state.
fn start(spec: &str, hosts: &[(&str, &str)]) -> Cluster {
    let mut cluster = Cluster::start();
    cluster.apply(spec);
    for (host, state) in hosts {
        std::fs::write(cluster.dir.join(format!("app@{host}.state")), format!("{state}\n")).unwrap();
        cluster.start_agent(host, "role=app");
    }
    wait_for("all states to be known", || {
        hosts.iter().all(|(host, state)| cluster.member("app", host)["actual"] == *state)
    });
    cluster
}

fn told(cluster: &Cluster, args: &[&str]) -> String {
    let (exit, out, err) = cluster.lockstep(args);
    assert_eq!((exit, err.as_str()), (0, ""), "{args:?}: {out}");
    out
}

#[test]
fn whoever_waits_in_the_queue_is_told_for_what() {
    let cluster = start(APP, &[("a1", "offline"), ("a2", "offline")]);
    cluster.block("app@a1", "check");
    let ids: Vec<String> =
        ["first", "second", "third"].iter().map(|request| cluster.run(&["app=up"], request)).collect();
    let blocker = |id: &str| cluster.transition(id)["blocked_by"].clone();
    wait_for("the queue to be told", || blocker(&ids[1]) == *ids[0] && blocker(&ids[2]) == *ids[0]);
    assert_eq!(blocker(&ids[0]), Value::Null, "it is asked");
    let queued = format!("queued after {}", ids[0]);
    for args in [&["status"][..], &["transition", "list"]] {
        assert_eq!(told(&cluster, args).matches(&queued).count(), 2, "{args:?}");
    }
    assert!(told(&cluster, &["transition", "show", &ids[1]]).contains(&format!("blocked_by: {}\n", ids[0])));
    let (exit, _, err) = cluster.lockstep(&["run", "app=up", "--request-id", "second", "--wait", "100ms"]);
    assert_eq!(exit, 7, "{err}");
    assert!(err.contains(&format!("\nit is queued and waits for {}\n", ids[0])), "{err}");
    cluster.unblock("app@a1", "check");
    assert_eq!(cluster.outcome(&ids[2]), "committed");
    assert_eq!(blocker(&ids[2]), Value::Null);
}

#[test]
fn a_relation_that_a_setting_keeps_away_is_told_of() {
    let spec = "cluster = \"shop\"\n[groups.db]\n[groups.edge]\nsettings = { live = \"blue\" }\n\
                [[relations]]\nfrom = \"edge\"\nto = \"db\"\nwhen = { \"edge.live\" = \"green\" }\n";
    let cluster = start(spec, &[]);
    let absent = "edge watches db (while edge.live = green): it is declared, and does not exist now, since edge.live is blue\n";
    let head = "FROM  KIND  TO  ASK  ORIGIN  TERMS\n";
    assert_eq!(told(&cluster, &["relation", "list"]), format!("{head}\n{absent}"));
    assert_eq!(told(&cluster, &["relation", "show", "edge", "db"]), format!("{head}\n{absent}"));
    assert_eq!(told(&cluster, &["explain", "edge", "db"]), absent);
    assert_eq!(cluster.lockstep(&["relation", "show", "db", "edge"]).0, 1, "there is none that way");
    let listed = cluster.get("/v1/relations");
    assert_eq!(listed["items"], serde_json::json!([]), "it does not exist");
    assert_eq!(listed["absent"][0]["unmet"], serde_json::json!({"edge.live": "blue"}));
    let (exit, _, err) = cluster.lockstep(&["run", "edge.live=green"]);
    assert_eq!(exit, 0, "{err}");
    let listed = told(&cluster, &["relation", "list"]);
    assert!(listed.ends_with("declared  while edge.live = green\n"), "{listed}");
}

#[test]
fn a_group_that_was_taken_down_is_not_wrong() {
    let cluster = start(APP, &[("a1", "online")]);
    let (exit, _, err) = cluster.lockstep(&["run", "app=down"]);
    assert_eq!(exit, 0, "{err}");
    let status = told(&cluster, &["status"]);
    assert!(status.contains("\napp    is down  a1 offline\n\nnothing is wrong\n"), "{status}");
    // Software that ends by itself is another matter.
    assert_eq!(cluster.lockstep(&["run", "app=up"]).0, 0);
    std::fs::write(cluster.dir.join("app@a1.state"), "offline\n").unwrap();
    wait_for("its end to be seen", || cluster.member("app", "a1")["actual"] == "offline");
    let status = told(&cluster, &["status"]);
    assert!(
        status.contains(
            "\n  app does not serve: 0 online, at least 1 must be\n    next: lockstep run app=up\n"
        ),
        "{status}"
    );
}

#[test]
fn what_a_refused_transition_was_to_do_is_kept() {
    let mut cluster = start(APP, &[("a1", "offline")]);
    cluster.touch("app@a1.check.fail");
    let (exit, _, err) = cluster.lockstep(&["run", "app=up"]);
    assert_eq!(exit, 4, "{err}");
    assert!(err.starts_with("plan "), "it is told: {err}");
    let id = cluster.items("/v1/transitions")[0]["id"].as_str().unwrap().to_owned();
    cluster.restart_server();
    let shown = told(&cluster, &["transition", "show", &id]);
    assert!(shown.contains("\n      from: offline\n") && shown.contains("cause: vote-no\n"), "{shown}");
    let why = told(&cluster, &["explain", &id]);
    assert!(why.contains("\nit was never begun: vote-no\napp@a1 is actor: app was asked for\n"), "{why}");
}

/// In it: a drained host, a setting that has been changed and that one member has not taken, software that ended by
/// itself, a state that is not known, a member that is leaving, one that publishes a capability, and scores.
#[test]
fn an_exported_state_is_planned_with_as_the_server_plans() {
    let spec = r#"
cluster = "shop"
[groups.app]
select = { role = "app" }
handler = "sh"
lifecycle = "primary-standby"
settings = { live = "blue", epoch = 1 }
[groups.front]
select = { role = "app", front = "yes" }
consumes = ["sql"]
[groups.all]
groups = ["app", "front"]
"#;
    let hosts =
        [("a1", "primary"), ("a2", "standby"), ("a3", "standby"), ("a4", "standby"), ("a5", "standby")];
    let mut cluster = start(spec, &hosts);
    for (host, also) in
        [("a1", r#","provides":["sql"],"score":1"#), ("a2", r#","score":7"#), ("a3", r#","score":9"#)]
    {
        std::fs::write(cluster.dir.join(format!("app@{host}.also")), format!("{also}\n")).unwrap();
    }
    wait_for("scores and capabilities", || {
        let score = |host| cluster.member("app", host)["score"].clone();
        let provides = cluster.member("app", "a1")["provides"] == serde_json::json!(["sql"]);
        provides && score("a2") == 7 && score("a3") == 9
    });
    for args in [
        &["drain", "a3"][..],
        &["host", "label", "a1", "front=yes"],
        &["run", "front=up"],
        &["run", "app.live=green"],
    ] {
        let (exit, _, err) = cluster.lockstep(args);
        assert_eq!(exit, 0, "{args:?}: {err}");
    }
    std::fs::write(cluster.dir.join("app@a4.state"), "offline\n").unwrap();
    wait_for("its end to be seen", || cluster.member("app", "a4")["actual"] == "offline");
    std::fs::write(cluster.dir.join("app@a5.state"), "who knows\n").unwrap();
    wait_for("its state not to be known", || cluster.member("app", "a5")["actual"].is_null());
    told(&cluster, &["host", "label", "a2", "role=none"]);

    let plans = |cluster: &Cluster, targets: &[&str]| {
        let (exit, out, err) = cluster.lockstep(&["status", "--export"]);
        assert_eq!((exit, err.as_str()), (0, ""));
        std::fs::write(cluster.dir.join("state.json"), &out).unwrap();
        let plan = |args: &[&str]| cluster.lockstep(&[args, targets, &["-o", "json"]].concat());
        let online = plan(&["plan"]);
        assert_eq!(
            plan(&["plan", "-f", "cluster.toml", "--state", "state.json"]),
            online,
            "{targets:?}: {out}"
        );
        online
    };
    let targets = [
        "app@a2=offline",
        "app=up",
        "app@a4=standby",
        "app.epoch=2",
        "front=down",
        "app@a1=offline",
        "app@a3=primary",
    ];
    let mut ends = std::collections::BTreeSet::new();
    let all = targets
        .iter()
        .map(|target| vec![*target])
        .chain([vec!["all=down"], vec!["drain a1", "app.live=blue"]]);
    for targets in all {
        ends.insert(plans(&cluster, &targets).0);
    }
    assert_eq!(ends, [0, 3].into(), "some are planned, and some are refused");
    // A host that is gone, once it is.
    std::fs::write(cluster.dir.join("app@a5.state"), "standby\n").unwrap();
    wait_for("its state to be known", || cluster.member("app", "a5")["actual"] == "standby");
    cluster.agents.get_mut("a4").unwrap().kill();
    wait_for("the host to be lost", || cluster.liveness("a4") == "lost");
    assert_eq!(plans(&cluster, &["app.epoch=2", "--exclude-lost"]).0, 0);
}
