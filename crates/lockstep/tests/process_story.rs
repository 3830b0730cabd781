//! What becomes of transitions when processes die, stop and come back: the real binary, several of it at once. The
//! witness is what the handlers wrote, one line a call; it knows nothing of Lockstep.

#![allow(clippy::unwrap_used, reason = "a test fails by it")]

mod common;

use common::{Cluster, Process, http, lockstep, wait_for};
use rustix::process::Signal;
use serde_json::Value;
use std::fs;

/// Two databases that stop, and a pooler that holds clients while they do.
const SPEC: &str = r#"
cluster = "shop"
lease_ms = 10000
[groups.db]
select = { role = "db" }
handler = "sh"
hold_ms = HOLD
deadlines_ms = { check = 40000, prepare = PREPARE, commit = 60000 }
[groups.pool]
select = { role = "pool" }
handler = "sh"
hold_ms = HOLD
deadlines_ms = { check = 40000, prepare = PREPARE, commit = 60000 }
[[relations]]
from = "pool"
to = "db"
ask = "hold"
"#;

const MEMBERS: [(&str, &str); 3] = [("db", "a"), ("db", "b"), ("pool", "c")];

/// The cluster with everything online and known.
fn shop(prepare_ms: u64, hold_ms: u64) -> Cluster {
    let mut cluster = Cluster::start();
    cluster.apply(&SPEC.replace("HOLD", &hold_ms.to_string()).replace("PREPARE", &prepare_ms.to_string()));
    for (group, host) in MEMBERS {
        fs::write(cluster.dir.join(format!("{group}@{host}.state")), "online\n").unwrap();
        cluster.start_agent(host, &format!("role={group}"));
    }
    wait_for("all members to be online", || {
        MEMBERS.iter().all(|(group, host)| cluster.member(group, host)["actual"] == "online")
    });
    cluster
}

/// What every outcome has to leave behind, wherever one looks.
#[track_caller]
fn check_committed(cluster: &Cluster, id: &str) {
    assert_eq!(cluster.outcome(id), "committed", "{}", cluster.transition(id));
    for (group, host) in MEMBERS {
        let member = format!("{group}@{host}");
        let state = if group == "db" { "offline" } else { "online" };
        assert_eq!(cluster.state(&member), state, "{member}");
        wait_for("the members to be shown where they are", || {
            let shown = cluster.member(group, host);
            shown["actual"] == state && shown["mark"] == Value::Null && shown["transition"] == Value::Null
        });
        assert_eq!(cluster.calls(&member, "overlap"), [""; 0], "{member}");
        assert_eq!(cluster.calls(&member, "begin cancel"), [""; 0], "{member}");
        assert_eq!(cluster.calls(&member, "begin undo"), [""; 0], "{member}");
    }
    for db in ["db@a", "db@b"] {
        assert!(!cluster.calls(db, "end commit").is_empty(), "{db}");
    }
    let released = cluster.calls("pool@c", "begin release");
    assert!(released.iter().any(|call| call.contains("decision=commit")), "{released:?}");
    assert!(released.iter().all(|call| !call.contains("decision=abort")), "{released:?}");
}

#[test]
fn a_server_that_is_killed_after_the_decision_carries_it_out() {
    let mut cluster = shop(40_000, 120_000);
    cluster.block("db@a", "commit");
    let id = cluster.run(&["db=offline"], "once");
    // A step is ordered once the decision is durable, and not before.
    cluster.wait_blocked("db@a", "commit");
    wait_for("the decision to be shown", || cluster.transition(&id)["decision"] == "commit");
    cluster.server.kill();
    cluster.unblock("db@a", "commit");
    // The handler ends while nobody is there to hear it.
    wait_for("the step to end", || !cluster.calls("db@a", "end commit").is_empty());
    cluster.restart_server();
    check_committed(&cluster, &id);
    for (group, host) in MEMBERS {
        let member = format!("{group}@{host}");
        let phase = if group == "db" { "commit" } else { "hold" };
        assert_eq!(cluster.calls(&member, &format!("begin {phase}")).len(), 1, "{member}");
        wait_for("every session to be told of", || cluster.joined(host) >= 2);
    }
    assert_eq!(cluster.run(&["db=offline"], "once"), id, "the same request is the same transition");
    cluster.restart_server();
    assert_eq!(cluster.outcome(&id), "committed");
    assert_eq!(cluster.transition(&id)["token"].as_u64().map(|token| token > 0), Some(true));
}

#[test]
fn a_step_is_not_done_before_its_handler_has_said_so() {
    let mut cluster = shop(40_000, 120_000);
    cluster.block("db@a", "commit");
    let id = cluster.run(&["db=offline"], "once");
    cluster.wait_blocked("db@a", "commit");
    cluster.agents.get_mut("a").unwrap().kill();
    let first = cluster.calls("db@a", "begin commit");
    let pid = first[0].rsplit_once("pid=").unwrap().1.to_owned();
    assert!(is_alive(&pid), "a handler outlives its agent");
    wait_for("the other step to be done", || cluster.state("db@b") == "offline");
    assert_ne!(cluster.member("db", "a")["mark"], Value::Null, "{}", cluster.member("db", "a"));

    cluster.restart_agent("a");
    // The step runs once more, and the handler of the run before is gone by then: it notes it otherwise.
    wait_for("the second try", || cluster.calls("db@a", "begin commit").len() == 2);
    assert!(!is_alive(&pid), "it has been ended");
    assert_eq!(cluster.transition(&id)["outcome"], Value::Null);
    assert_eq!(cluster.calls("db@a", "end commit"), [""; 0]);
    cluster.unblock("db@a", "commit");
    check_committed(&cluster, &id);
}

fn is_alive(pid: &str) -> bool {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit_once(") ").is_some_and(|(_, rest)| !rest.starts_with(['Z', 'X']))
}

#[test]
fn everybody_dies_at_once_and_comes_back() {
    let mut cluster = shop(40_000, 120_000);
    cluster.block("db@a", "commit");
    let id = cluster.run(&["db=offline"], "once");
    cluster.wait_blocked("db@a", "commit");
    for agent in cluster.agents.values_mut() {
        agent.signal(Signal::STOP);
    }
    cluster.server.kill();
    cluster.agents.values_mut().for_each(Process::kill);
    cluster.unblock("db@a", "commit");
    for (_, host) in MEMBERS {
        cluster.restart_agent(host);
    }
    // They try for ever: the server is still away.
    wait_for("the agents to try in vain", || {
        cluster.agents.values().all(|agent| agent.said().matches("cannot connect").count() >= 3)
    });
    cluster.restart_server();
    check_committed(&cluster, &id);
}

#[test]
fn what_is_not_decided_ends_with_the_server_and_holds_end_by_themselves() {
    let mut cluster = shop(40_000, 1_500);
    cluster.block("db@a", "prepare");
    let id = cluster.run(&["db=offline"], "once");
    cluster.wait_blocked("db@a", "prepare");
    assert_eq!(cluster.calls("pool@c", "end hold").len(), 1, "who holds is asked first");
    cluster.server.kill();
    // Nobody says so: the holder lets its clients go at the end that it was told.
    wait_for("the hold to end", || !cluster.calls("pool@c", "end release").is_empty());
    assert!(cluster.calls("pool@c", "begin release")[0].contains("decision= "));
    cluster.restart_server();
    assert_eq!(cluster.outcome(&id), "aborted");
    assert_eq!(cluster.transition(&id)["cause"], "new-reign");
    cluster.unblock("db@a", "prepare");
    for db in ["db@a", "db@b"] {
        wait_for("what was prepared to be cancelled", || {
            cluster.calls(db, "begin prepare").len() == cluster.calls(db, "end cancel").len()
        });
        assert_eq!(cluster.calls(db, "begin commit"), [""; 0]);
        assert_eq!(cluster.state(db), "online");
    }
    assert_eq!(cluster.run(&["db=offline"], "once"), id);
}

#[test]
fn agents_that_stand_still_hold_nobody_up() {
    let cluster = shop(2_000, 30_000);
    // In the hold, so that the actor is asked to prepare when it stands still.
    cluster.block("pool@c", "hold");
    let id = cluster.run(&["db=offline"], "once");
    cluster.wait_blocked("pool@c", "hold");
    cluster.agents["b"].signal(Signal::STOP);
    cluster.unblock("pool@c", "hold");
    wait_for("the hold to stand", || !cluster.calls("pool@c", "end hold").is_empty());
    cluster.agents["c"].signal(Signal::STOP);
    wait_for("the decision", || cluster.transition(&id)["decision"] == "abort");
    let cause = cluster.transition(&id)["cause"].clone();
    assert!(cause == "vote-missing" || cause == "vote-no", "{cause}");
    cluster.agents["b"].signal(Signal::CONT);
    cluster.agents["c"].signal(Signal::CONT);
    assert_eq!(cluster.outcome(&id), "aborted");
    wait_for("the hold to be let go", || !cluster.calls("pool@c", "end release").is_empty());
    wait_for("all hosts to be back", || MEMBERS.iter().all(|(_, host)| cluster.liveness(host) == "alive"));
    // Whoever prepared, however late, is cancelled; nobody has moved.
    for db in ["db@a", "db@b"] {
        wait_for("nothing to be left prepared", || {
            cluster.calls(db, "begin prepare").len() <= cluster.calls(db, "end cancel").len()
        });
        assert_eq!(cluster.calls(db, "begin commit"), [""; 0]);
        assert_eq!(cluster.state(db), "online");
    }
    // And nothing is in the way of another.
    let id = cluster.run(&["db=offline"], "again");
    check_committed_after_cancel(&cluster, &id);
}

#[track_caller]
fn check_committed_after_cancel(cluster: &Cluster, id: &str) {
    assert_eq!(cluster.outcome(id), "committed", "{}", cluster.transition(id));
    assert_eq!([cluster.state("db@a"), cluster.state("db@b")], ["offline", "offline"]);
}

#[test]
fn a_name_belongs_to_who_had_it_first() {
    let mut cluster = shop(40_000, 120_000);
    let server = format!("http://{}", cluster.address);
    let args = ["agent", "--server", &server, "--name", "a", "--label", "role=db", "--data", "other"];
    let mut other = Process::start(&cluster.dir, "other", &args);
    let refused = "another agent has joined as a: start this one with that one's --data directory";
    wait_for("the refusal", || other.said().contains(refused));
    assert!(other.is_running(), "it goes on trying");
    assert!(!other.said().lines().any(|line| line.starts_with("joined as")));
    assert_eq!((cluster.liveness("a"), cluster.joined("a")), ("alive".to_owned(), 1));
    // The same identity takes its own place again.
    cluster.restart_agent("a");
    wait_for("the second session", || cluster.joined("a") == 2);
    wait_for("the host to be shown alive", || cluster.liveness("a") == "alive");
}

#[test]
fn who_reads_the_log_may_go() {
    let mut cluster = Cluster::start();
    cluster.apply("cluster = \"shop\"\n[groups.db]\nselect = { role = \"db\" }\nhandler = \"sh\"\n");
    fs::write(cluster.dir.join("db@a.state"), "online\n").unwrap();
    let server = format!("http://{}", cluster.address);
    let args = ["agent", "--server", &server, "--name", "a", "--label", "role=db", "--data", "data-a"];
    let mut agent = Process::start_unheard(&cluster.dir, &[&args[..], &["--config", "agent.toml"]].concat());
    wait_for("the agent to join", || cluster.member("db", "a")["actual"] == "online");
    cluster.server.kill();
    let address = cluster.address.to_string();
    let again = ["server", "--data", "server", "--listen", &address];
    cluster.server = Process::start_unheard(&cluster.dir, &again);
    wait_for("the server to answer", || http(cluster.address, "GET", "/readyz", None).is_some());
    fs::write(cluster.dir.join("db@a.state"), "offline\n").unwrap();
    wait_for("the agent to tell the news", || cluster.member("db", "a")["actual"] == "offline");
    assert!(agent.is_running() && cluster.server.is_running());
}

#[test]
fn a_start_that_cannot_be_says_why() {
    let cluster = Cluster::start();
    let (exit, _, said) =
        lockstep(&cluster.dir, None, &["server", "--data", "server", "--listen", "127.0.0.1:0"]);
    assert_eq!(exit, 1);
    assert!(
        said.contains("is in use by process ") && said.contains("another directory with --data"),
        "{said}"
    );

    std::fs::write(cluster.dir.join("file"), "").unwrap();
    for args in [
        &["server", "--data", "file"][..],
        &["agent", "--server", "http://127.0.0.1:1", "--name", "a", "--data", "file"],
        &["dev", "--data", "file"],
        &["restore", "--data", "file", "shop.backup"],
    ] {
        let (exit, _, said) = lockstep(&cluster.dir, None, args);
        assert_eq!(exit, 2, "{said}");
        assert!(said.contains("'file' for '--data <DIR>': that is a file: name a directory"), "{said}");
    }

    let address = cluster.address.to_string();
    let (exit, _, said) = lockstep(&cluster.dir, None, &["server", "--data", "b", "--listen", &address]);
    assert_eq!(exit, 1);
    assert!(said.contains("cannot listen on ") && said.contains("Address already in use"), "{said}");

    let (exit, _, said) = lockstep(&cluster.dir, None, &["server", "--data", "c", "--listen", "0.0.0.0:0"]);
    assert_eq!(exit, 1);
    assert!(
        said.contains("0.0.0.0:0 can be reached from other machines") && said.contains("--insecure"),
        "{said}"
    );
    assert!(!cluster.dir.join("c").exists(), "nothing was made");

    let far = ["agent", "--server", "http://192.0.2.1:7420", "--name", "a", "--data", "d"];
    let (exit, _, said) = lockstep(&cluster.dir, None, &far);
    assert_eq!(exit, 1);
    assert!(
        said.contains("http://192.0.2.1:7420 is on another machine") && said.contains("--insecure"),
        "{said}"
    );

    fs::write(cluster.dir.join("bad.toml"), "[handlers.pg]\nexec = [\"/bin/true\"]\nstatus_ms = 0\n")
        .unwrap();
    let server = format!("http://{address}");
    let bad = ["agent", "--server", &server, "--name", "a", "--data", "d", "--config", "bad.toml"];
    let (exit, _, said) = lockstep(&cluster.dir, None, &bad);
    assert_eq!(exit, 1);
    for part in ["bad.toml:3:13", "status_ms = 0", "help: "] {
        assert!(said.contains(part), "{part}: {said}");
    }
    assert!(cluster.items("/v1/hosts").is_empty(), "it has not joined");
}
