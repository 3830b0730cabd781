//! What a server keeps over time, and brings back: snapshots, backups and restores, by the real binary.

#![allow(clippy::unwrap_used, reason = "a test fails by it")]

mod common;

use common::{Cluster, Process, http, listening, wait_for};
use serde_json::{Value, json};
use std::fs;
use std::path::Path;

/// All that is in a directory, in bytes.
fn size(dir: &Path) -> u64 {
    fs::read_dir(dir).unwrap().map(|file| file.unwrap().metadata().unwrap().len()).sum()
}

/// A spec that takes some room, another one each time.
fn large(round: usize) -> Value {
    let group = |number: usize| {
        let label = format!("{}-{round}", "x".repeat(200));
        (format!("g{number:04}"), json!({ "select": { "role": label } }))
    };
    json!({ "cluster": "large", "groups": (0..900).map(group).collect::<serde_json::Map<_, _>>() })
}

#[test]
fn the_journal_of_a_busy_server_stays_bounded_and_starts_from_its_snapshot() {
    let mut cluster = Cluster::start();
    let data = cluster.dir.join("server");
    let bytes = large(0).to_string().len() as u64;
    let apply = |cluster: &Cluster, round: usize| {
        let (status, answer) = http(cluster.address, "PUT", "/v1/spec", Some(&large(round))).unwrap();
        assert_eq!(status, 200, "{answer}");
    };
    // Four times what a snapshot is taken after, and as much as is kept at most beside two snapshots and what is being
    // copied.
    let rounds = usize::try_from((16 << 20) / bytes).unwrap();
    (0..rounds).for_each(|round| apply(&cluster, round));
    let written = bytes * rounds as u64;
    let saved = |cluster: &Cluster| cluster.server.said().matches("snapshot saved").count();
    wait_for("snapshots", || saved(&cluster) >= 2);
    wait_for("the journal to be cut", || size(&data) < written * 3 / 4);

    let spec = cluster.get("/v1/spec");
    cluster.restart_server();
    assert_eq!(cluster.get("/v1/spec"), spec);
    // It goes on from there, and so does the one after it.
    apply(&cluster, rounds);
    let spec = cluster.get("/v1/spec");
    cluster.restart_server();
    assert_eq!(cluster.get("/v1/spec"), spec);
}

/// Two databases that start and stop, on hosts a and b.
const SPEC: &str = r#"
cluster = "shop"
[groups.db]
select = { role = "db" }
handler = "sh"
deadlines_ms = { check = 40000, prepare = 40000, commit = 60000 }
"#;

fn shop() -> Cluster {
    let mut cluster = Cluster::start();
    cluster.apply(SPEC);
    for host in ["a", "b"] {
        fs::write(cluster.dir.join(format!("db@{host}.state")), "online\n").unwrap();
        cluster.start_agent(host, "role=db");
    }
    wait_shown(&cluster, "online");
    cluster
}

#[track_caller]
fn wait_shown(cluster: &Cluster, state: &str) {
    wait_for(&format!("both members to be shown {state}"), || {
        ["a", "b"].iter().all(|host| {
            let member = cluster.member("db", host);
            member["actual"] == state && member["goal"] == state && member["mark"] == Value::Null
        })
    });
}

/// The tokens that handlers were called under to take a step, in the order in which they were.
fn tokens(cluster: &Cluster, member: &str) -> Vec<u64> {
    let calls = cluster.calls(member, "begin commit");
    let token = |call: &String| {
        let (_, rest) = call.split_once("token=").unwrap();
        rest.split(' ').next().unwrap().parse().unwrap()
    };
    calls.iter().map(token).collect()
}

/// Ends the server, and starts one on what a backup is restored to. Agents meet it where the old one was.
fn restore(cluster: &mut Cluster, backup: &str) {
    cluster.server.kill();
    let (exit, said, _) = cluster.lockstep(&["restore", "--data", "restored", backup, "-o", "json"]);
    assert_eq!(exit, 0, "{said}");
    let address = cluster.address.to_string();
    cluster.server = Process::start(
        &cluster.dir,
        "restored-server",
        &["server", "--data", "restored", "--listen", &address],
    );
    assert_eq!(listening(&mut cluster.server, 1), cluster.address);
}

#[test]
fn a_restored_server_repeats_no_token_and_adopts_what_came_after_the_backup() {
    let mut cluster = shop();
    let before = cluster.run(&["db=offline"], "before");
    assert_eq!(cluster.outcome(&before), "committed");
    let (exit, said, _) = cluster.lockstep(&["backup", "shop.backup", "-o", "json"]);
    assert_eq!(exit, 0, "{said}");
    let after = cluster.run(&["db=online"], "after");
    assert_eq!(cluster.outcome(&after), "committed");
    let lost = cluster.run(&["db=offline"], "lost");
    assert_eq!(cluster.outcome(&lost), "committed");
    let known = tokens(&cluster, "db@a");
    assert_eq!(known.len(), 3);

    restore(&mut cluster, "shop.backup");
    // What is true is where the software is, whoever has forgotten how it came there.
    wait_shown(&cluster, "offline");
    assert_eq!(cluster.run(&["db=offline"], "before"), before, "what was asked before the backup is known");
    let (status, _) = http(cluster.address, "GET", &format!("/v1/transitions/{lost}"), None).unwrap();
    assert_eq!(status, 404, "what came after it is not");

    let again = cluster.run(&["db=online"], "again");
    assert_eq!(cluster.outcome(&again), "committed", "{}", cluster.transition(&again));
    for member in ["db@a", "db@b"] {
        let tokens = tokens(&cluster, member);
        assert_eq!(tokens.len(), 4, "each step once");
        assert!(tokens.is_sorted_by(|a, b| a < b), "{tokens:?}");
        assert_eq!(cluster.calls(member, "begin undo"), [""; 0]);
    }
    let backup: Value = serde_json::from_str(&said).unwrap();
    assert!(tokens(&cluster, "db@a")[3] > known[2] && known[2] > backup["revision"].as_u64().unwrap());

    // The directory is in use now, and stays as it is.
    let (exit, _, said) = cluster.lockstep(&["restore", "--data", "restored", "shop.backup"]);
    assert_eq!(exit, 1, "{said}");
}

#[test]
fn what_was_under_way_at_a_backup_is_not_carried_out_again() {
    let mut cluster = shop();
    cluster.block("db@a", "commit");
    let id = cluster.run(&["db=offline"], "once");
    cluster.wait_blocked("db@a", "commit");
    wait_for("the decision to be shown", || cluster.transition(&id)["decision"] == "commit");
    assert_eq!(cluster.lockstep(&["backup", "shop.backup"]).0, 0);
    cluster.unblock("db@a", "commit");
    assert_eq!(cluster.outcome(&id), "committed");
    let back = cluster.run(&["db=online"], "back");
    assert_eq!(cluster.outcome(&back), "committed");

    restore(&mut cluster, "shop.backup");
    wait_shown(&cluster, "online");
    let transition = cluster.transition(&id);
    assert_eq!(transition["outcome"], "degraded", "how it went on is in no backup");
    assert!(
        transition["left"].as_array().unwrap().iter().any(|left| left["in_doubt"] == true),
        "{transition}"
    );
    for member in ["db@a", "db@b"] {
        assert_eq!(tokens(&cluster, member).len(), 2, "{member}");
        assert_eq!(cluster.calls(member, "begin undo"), [""; 0], "{member}");
        assert_eq!(cluster.calls(member, "begin stop"), [""; 0], "{member}");
    }
}

#[test]
fn a_server_on_another_clusters_journal_takes_none_of_its_hosts() {
    let mut cluster = shop();
    let own = cluster.dir.join("server");
    // It declares the same, and has never heard of these hosts.
    let mut other = Cluster::start();
    other.apply(SPEC);

    let address = cluster.address.to_string();
    let serve = |cluster: &mut Cluster, name: &str, data: &Path| {
        cluster.server.kill();
        let data = data.to_str().unwrap();
        cluster.server =
            Process::start(&cluster.dir, name, &["server", "--data", data, "--listen", &address]);
        assert_eq!(listening(&mut cluster.server, 1), cluster.address);
    };
    other.server.kill();
    serve(&mut cluster, "on-other", &other.dir.join("server"));
    for host in ["a", "b"] {
        wait_for("the agent to say why it is refused", || {
            cluster.agents[host].said().contains("it belongs to another cluster")
        });
    }
    // Also where operators look.
    for host in ["a", "b"] {
        wait_for("status to say so too", || {
            let (_, screen, _) = cluster.lockstep(&["status"]);
            screen.contains(&format!("the agent of host {host} is refused"))
                && screen.contains("docs/backup.md")
        });
    }
    assert_eq!(cluster.calls("db@a", "begin commit"), [""; 0]);

    serve(&mut cluster, "on-own", &own);
    wait_shown(&cluster, "online");
    let id = cluster.run(&["db=offline"], "own");
    assert_eq!(cluster.outcome(&id), "committed");
}

#[test]
fn backups_are_checked_and_restored_into_empty_directories_only() {
    let mut cluster = Cluster::start();
    cluster.apply(SPEC);
    assert_eq!(cluster.lockstep(&["backup", "online.backup"]).0, 0);
    let (exit, _, said) = cluster.lockstep(&["backup", "--data", "server", "offline.backup"]);
    assert!(exit == 1 && said.contains("in use"), "a server that runs is asked: {said}");
    cluster.server.kill();
    let (exit, _, said) = cluster.lockstep(&["backup", "--data", "server", "offline.backup"]);
    assert_eq!(exit, 0, "{said}");
    let read = |name: &str| fs::read(cluster.dir.join(name)).unwrap();
    assert_eq!(read("online.backup"), read("offline.backup"), "nothing has happened in between");
    let (exit, _, said) = cluster.lockstep(&["backup", "--data", "sever", "typo.backup"]);
    assert!(exit == 1 && said.contains("no journal") && !cluster.dir.join("sever").exists(), "{said}");

    let (exit, _, said) = cluster.lockstep(&["restore", "--data", "server", "offline.backup"]);
    assert!(exit == 1 && said.contains("empty directory"), "{said}");
    let mut damaged = read("offline.backup");
    let last = damaged.len() - 9;
    damaged[last] ^= 1;
    fs::write(cluster.dir.join("damaged.backup"), damaged).unwrap();
    let (exit, _, said) = cluster.lockstep(&["restore", "--data", "new", "damaged.backup"]);
    assert!(exit == 1 && said.contains("damaged") && !cluster.dir.join("new").exists(), "{said}");
    assert_eq!(cluster.lockstep(&["restore", "--data", "new", "offline.backup"]).0, 0);
}
