//! `lockstep agent-conformance`: our agent passes, and so does a small one that is written from docs/protocol.md alone.
//! That one can be made wrong in one way at a time, and each case is seen to fail by it.

#![allow(clippy::unwrap_used, reason = "a test fails by it")]

mod common;

use common::host;
use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;
use std::process::Command;

mod small_agent;

/// What the small agent does wrong; the case that is to notice; a part of what that case expects instead.
const DEFECTS: &[(&str, &str, &str)] = &[
    ("talks-early", "greeting", "nothing between hello and welcome"),
    ("protocol-2", "greeting", "a hello of protocol 1"),
    ("assigned-later-unreported", "assignment", "a state of each of"),
    ("plan-left-out", "check", "with its plan"),
    ("plan-unseen", "check", "check carried out 2 times"),
    ("state-unreported", "commit", "reported in online"),
    ("wrong-attempt", "commit", "the answer to check of attempt 1"),
    ("undo-no", "undo", "yes to undo"),
    ("token-unchecked", "undo", "no to commit: its token is lower"),
    ("cancel-forgotten", "cancel", "cancel carried out 1 times"),
    ("hold-end-despite-release", "hold", "a hold that lasts until its release"),
    ("hold-without-end", "hold-end", "hold-ended at the hold's end"),
    ("hold-too-short", "hold-end", "a hold of 1000 ms"),
    ("token-unchecked", "lower-token", "no to prepare: its token is lower"),
    ("refused-left-out", "lower-token", "refused: "),
    ("token-of-all-groups", "lower-token", "tokens by group"),
    ("carried-out-twice", "same-call", "commit carried out 1 times"),
    ("outcome-ignored", "ended", "no to check: its transition has ended"),
    ("release-refused-late", "ended", "yes to release"),
    ("notices-backwards", "notices", "notices taken in order"),
    ("repetition-ignored", "notices", "noticed"),
    ("repetition-told", "notices", "notice carried out 1 times"),
    ("strict-fields", "unknown-fields", "the answer to check"),
    ("strict-orders", "unknown-orders", "the answer to check"),
    ("renews-late", "renewals", "a renewal every 500 ms"),
    ("lease-fixed", "renewals", "a renewal every 300 ms"),
    ("renews-after-a-third", "first-renewal", "a renewal right after welcome"),
    ("lease-end-ignored", "lease-end", "a member that is stopped once before the lease ends"),
    ("stops-late", "lease-end", "a member that is stopped once before the lease ends"),
    ("lease-unchecked", "lease-missing", "again, or no: the host has no lease"),
    ("patient", "silent-server", "that a server is left"),
    ("any-reign", "lower-reign", "that a server of a lower reign is left"),
    ("reign-forgotten", "lower-reign", "in hello"),
    ("run-per-session", "reconnect", "in run"),
    ("agent-per-session", "reconnect", "agent"),
    ("cluster-forgotten", "reconnect", "cluster conformance in hello"),
    ("open-left-out", "reconnect", "among the open transitions"),
    ("never-forgets", "reconnect", "has ended"),
    ("run-kept", "restart", "a new run"),
    ("nothing-kept", "restart", "agent"),
    ("tokens-lost", "restart", "token"),
    ("answers-lost", "restart", "commit carried out 1 times"),
    ("holds-lost", "restart-hold", "hold-ended at the hold's end"),
];

/// Tries an agent out; gives the exit code and the cases.
fn try_out(dir: &Path, options: &[&str], agent: &[&str], defect: &str) -> (i32, Vec<Value>) {
    let output = Command::new(env!("CARGO_BIN_EXE_lockstep"))
        .args(["agent-conformance", "-o", "json"])
        .args(options)
        .arg("--")
        .args(agent)
        .current_dir(dir)
        .env("SMALL_AGENT_DEFECT", defect)
        .output()
        .unwrap();
    let answer: Value = serde_json::from_slice(&output.stdout)
        .unwrap_or_else(|error| panic!("{error}: {}", String::from_utf8_lossy(&output.stderr)));
    let cases = answer["cases"].as_array().unwrap().clone();
    let count = |result: &str| cases.iter().filter(|case| case["result"] == result).count();
    for result in ["passed", "failed", "skipped"] {
        assert_eq!(answer[result], count(result), "{answer}");
    }
    (output.status.code().unwrap(), cases)
}

fn small(dir: &Path, options: &[&str], defect: &str) -> (i32, Vec<Value>) {
    let program = std::env::current_exe().unwrap();
    let agent =
        [program.to_str().unwrap(), "run_the_small_agent", "{url}", "--exact", "--ignored", "--nocapture"];
    let options = [&["--handler", "small", "--calls", "calls"], options].concat();
    try_out(dir, &options, &agent, defect)
}

#[track_caller]
fn all_passed((exit, cases): (i32, Vec<Value>)) {
    let others: Vec<_> = cases.iter().filter(|case| case["result"] != "passed").collect();
    assert!(others.is_empty() && exit == 0, "exit {exit}: {others:#?}");
    let names: Vec<_> = cases.iter().map(|case| case["case"].as_str().unwrap()).collect();
    assert_eq!(names, lockstep::conformance::names().collect::<Vec<_>>());
}

#[test]
fn our_agent_passes_with_handlers() {
    let host = host();
    let handler = fs::read_to_string(host.path().join("handler")).unwrap();
    // The test's handler, keeping the count that is asked for besides.
    let count = "touch \"$me.calls\"\necho \"$1 $LOCKSTEP_TRANSITION\" >> \"$DIR/calls\"\n";
    fs::write(host.path().join("handler"), handler.replacen("touch \"$me.calls\"\n", count, 1)).unwrap();
    let agent = ["agent", "--server", "{url}", "--name", "h", "--data", "data", "--config", "agent.toml"];
    let agent = [&[env!("CARGO_BIN_EXE_lockstep")], &agent[..]].concat();
    all_passed(try_out(host.path(), &["--handler", "sh", "--calls", "calls"], &agent, ""));
}

#[test]
fn our_agent_passes_without_handlers() {
    let dir = tempfile::tempdir().unwrap();
    let agent = ["agent", "--server", "{url}", "--name", "h", "--data", "data"];
    let agent = [&[env!("CARGO_BIN_EXE_lockstep")], &agent[..]].concat();
    all_passed(try_out(dir.path(), &[], &agent, ""));
    // What it has seen in another cluster's time is no hindrance.
    let (exit, cases) = try_out(dir.path(), &["--only", "reconnect,restart,notices"], &agent, "");
    assert_eq!((exit, cases.len()), (0, 3), "{cases:#?}");
}

#[test]
fn an_agent_made_from_the_page_alone_passes() {
    let dir = tempfile::tempdir().unwrap();
    all_passed(small(dir.path(), &[], ""));
}

#[test]
fn each_case_fails_by_an_agent_that_is_wrong() {
    let tried: BTreeSet<_> = DEFECTS.iter().map(|(_, case, _)| *case).collect();
    assert_eq!(tried, lockstep::conformance::names().collect(), "every case was seen to fail");
    for some in DEFECTS.chunks(8) {
        std::thread::scope(|scope| {
            for (defect, case, expected) in some {
                scope.spawn(move || {
                    let dir = tempfile::tempdir().unwrap();
                    let (exit, cases) = small(dir.path(), &["--only", case, "--patience", "6s"], defect);
                    let said = cases[0]["expected"].as_str().unwrap_or_default();
                    // An agent that hangs up may be gone before it has been told all: that is as wrong.
                    let is_told = said.contains(expected) || said == "a session that takes an order";
                    assert!(exit == 1 && is_told, "{defect}: {cases:#?}");
                });
            }
        });
    }
}

#[test]
fn an_agent_that_others_started_is_not_killed() {
    let dir = tempfile::tempdir().unwrap();
    // Nobody dials: what cannot be tried is no success.
    let (exit, cases) = try_out(dir.path(), &["--only", "greeting", "--patience", "100ms"], &[], "");
    assert_eq!((exit, &cases[0]["came"]), (1, &json!("nothing within 100ms")), "{cases:#?}");
    let answer: BTreeMap<&str, &Value> =
        cases[0].as_object().unwrap().iter().map(|(key, value)| (key.as_str(), value)).collect();
    assert_eq!(answer.keys().copied().collect::<Vec<_>>(), ["about", "came", "case", "expected", "result"]);
}

/// Not a test: it is the program that is tried out.
#[test]
#[ignore = "it runs until it is killed"]
fn run_the_small_agent() {
    let url = std::env::args().find(|arg| arg.starts_with("http://")).unwrap();
    small_agent::run(&url, &std::env::var("SMALL_AGENT_DEFECT").unwrap());
}
