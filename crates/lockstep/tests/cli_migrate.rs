//! `lockstep migrate`, by the real binary, between directories; what concerns etcd is tested beside the store.

#![allow(clippy::unwrap_used, reason = "a test fails by it")]

mod common;

use common::{Cluster, lockstep};
use serde_json::Value;

#[test]
fn a_journal_is_copied_and_goes_on() {
    let mut cluster = Cluster::start();
    cluster.apply("cluster = \"shop\"\n[groups.db]\nselect = { role = \"db\" }\n");
    let spec = cluster.get("/v1/spec");
    let dir = cluster.dir.clone();
    let copy = || lockstep(&dir, None, &["migrate", "--from", "server", "--to", "copy", "-o", "json"]);

    let (code, _, told) = copy();
    assert!(code == 1 && told.contains("is in use by process"), "{told}");
    cluster.server.kill();
    let (code, printed, told) = copy();
    assert_eq!(code, 0, "{told}");
    let report: Value = serde_json::from_str(&printed).unwrap();
    assert_eq!(report["sha256"]["from"], report["sha256"]["to"]);
    assert_eq!(report["sha256"]["to"].as_str().unwrap().len(), 64);
    assert!(report["records"].as_u64().unwrap() >= 2, "{report}");
    let (code, _, told) = copy();
    assert!(code == 1 && told.contains("its journal was migrated to copy"), "{told}");
    let (code, _, told) = lockstep(&dir, None, &["server", "--data", "server", "--listen", "127.0.0.1:0"]);
    assert!(code == 1 && told.contains("its journal was migrated to copy"), "{told}");
    std::fs::remove_file(dir.join("server/migrated")).unwrap();
    let (code, _, told) = copy();
    assert!(code == 1 && told.contains("it is not empty"), "{told}");

    std::fs::rename(dir.join("server"), dir.join("old")).unwrap();
    std::fs::rename(dir.join("copy"), dir.join("server")).unwrap();
    cluster.restart_server();
    assert_eq!(cluster.get("/v1/spec"), spec);
}
