//! What a server keeps over time, and brings back: snapshots, backups and restores, by the real binary.

#![allow(clippy::unwrap_used, reason = "a test fails by it")]

mod common;

use common::{Cluster, http, wait_for};
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
