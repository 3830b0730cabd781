//! The stored and the spoken format, held still: one line for each variant, with every field set. A line that
//! changes here breaks journals that are on disk, or agents that are out there.
//!
//! Readers ignore fields that they do not know, so that an older one can follow a newer writer. Two types refuse
//! them: a spec, of which half a reading would be another cluster, and findings, where a misspelt key of a
//! handler is to be noticed; a new key of either needs a new version of the protocol.

#![allow(clippy::unwrap_used, reason = "these are tests")]

use lockstep_core::agent::AgentRecord;
use lockstep_core::message::{Order, Report};
use lockstep_core::record::{Body, HostChange, Record};
use lockstep_core::snapshot;
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;
use std::collections::BTreeSet;
use std::fmt::Debug;

/// Reads each line, writes it again, and reads it once more with a field that nobody knows. Tells which variants
/// there are.
fn hold_still<T>(file: &str, name: impl Fn(&T) -> &'static str) -> BTreeSet<&'static str>
where
    T: Serialize + DeserializeOwned + PartialEq + Debug,
{
    let path = format!("{}/tests/data/golden/{file}.jsonl", env!("CARGO_MANIFEST_DIR"));
    let text = std::fs::read_to_string(path).unwrap();
    let mut names = BTreeSet::new();
    for line in text.lines() {
        let value: T = serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line}"));
        assert_eq!(serde_json::to_string(&value).unwrap(), line, "written as it was read");
        let newer = line.replacen('{', r#"{"a_new_field":{"deep":[1]},"#, 1);
        assert_eq!(serde_json::from_str::<T>(&newer).unwrap(), value, "a newer writer can be followed");
        names.insert(name(&value));
    }
    names
}

#[test]
fn records_stay_as_they_are() {
    let names = hold_still("record", |record: &Record| match &record.body {
        Body::Reign { .. } => "reign",
        Body::Spec { .. } => "spec",
        Body::Host { change, .. } => match change {
            HostChange::Joined { .. } => "host joined",
            HostChange::Published { .. } => "host published",
            HostChange::Guarded { .. } => "host guarded",
            HostChange::Undrained => "host undrained",
            HostChange::Labelled { .. } => "host labelled",
            HostChange::Forgotten => "host forgotten",
            HostChange::Liveness { .. } => "host liveness",
        },
        Body::Request { .. } => "request",
        Body::Begin { .. } => "begin",
        Body::Decision { .. } => "decision",
        Body::Step { .. } => "step",
        Body::Turn { .. } => "turn",
        Body::Outcome { .. } => "outcome",
        Body::Report { .. } => "report",
        Body::Evidence { .. } => "evidence",
        Body::Away { .. } => "away",
        Body::Lease { .. } => "lease",
        Body::Acknowledged { .. } => "acknowledged",
        Body::Freeze { .. } => "freeze",
        Body::Thaw { .. } => "thaw",
    });
    assert_eq!(names.len(), 22, "every variant has a line: {names:?}");
}

#[test]
fn orders_stay_as_they_are() {
    let names = hold_still("order", |order: &Order| match order {
        Order::Welcome { .. } => "welcome",
        Order::Refused { .. } => "refused",
        Order::Assign { .. } => "assign",
        Order::Call(_) => "call",
        Order::Outcome { .. } => "outcome",
        Order::Notice(_) => "notice",
        Order::Gap(_) => "gap",
        Order::Renewed { .. } => "renewed",
    });
    assert_eq!(names, Order::KINDS.into(), "every variant has a line");
}

#[test]
fn reports_stay_as_they_are() {
    let names = hold_still("report", |report: &Report| match report {
        Report::Hello(_) => "hello",
        Report::Renew { .. } => "renew",
        Report::Done(_) => "done",
        Report::HoldEnded { .. } => "hold-ended",
        Report::State { .. } => "state",
        Report::Guarded { .. } => "guarded",
        Report::Noticed { .. } => "noticed",
        Report::Goodbye => "goodbye",
    });
    assert_eq!(names.len(), 8, "every variant has a line: {names:?}");
}

#[test]
fn agent_records_stay_as_they_are() {
    let names = hold_still("agent-record", |record: &AgentRecord| match record {
        AgentRecord::Identity { .. } => "identity",
        AgentRecord::Reign { .. } => "reign",
        AgentRecord::Cluster { .. } => "cluster",
        AgentRecord::Token { .. } => "token",
        AgentRecord::Assigned { .. } => "assigned",
        AgentRecord::Preparing { .. } => "preparing",
        AgentRecord::Cancelled { .. } => "cancelled",
        AgentRecord::Voted { .. } => "voted",
        AgentRecord::Held { .. } => "held",
        AgentRecord::HoldEnded { .. } => "hold-ended",
        AgentRecord::Started { .. } => "started",
        AgentRecord::Ended { .. } => "ended",
        AgentRecord::State { .. } => "state",
        AgentRecord::Noticed { .. } => "noticed",
        AgentRecord::Closed { .. } => "closed",
    });
    assert_eq!(names.len(), 15, "every variant has a line: {names:?}");
}

#[test]
fn specs_and_findings_refuse_what_they_do_not_know() {
    let spec = r#"{"at":1,"record":"spec","spec":{"cluster":"shop","colour":"blue"},"principal":"ann"}"#;
    serde_json::from_str::<Record>(spec).unwrap_err();
    let done = r#"{"report":"done","member":"db@a","phase":"check","attempt":1,"answer":"yes","findings":{"scores":1}}"#;
    serde_json::from_str::<Report>(done).unwrap_err();
}

#[test]
fn an_agent_s_state_survives_being_written_anew() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/data/golden/agent-record.jsonl");
    let mut state = lockstep_core::agent::AgentState::default();
    for line in std::fs::read_to_string(path).unwrap().lines() {
        state.apply(&serde_json::from_str(line).unwrap());
        let mut again = lockstep_core::agent::AgentState::default();
        state.records().iter().for_each(|record| again.apply(record));
        assert_eq!(again, state, "after {line}");
    }
}

/// Whether all that is in `old` is in `new`, under the same names.
fn contains(new: &Value, old: &Value) -> bool {
    match (new, old) {
        (Value::Object(new), Value::Object(old)) => {
            old.iter().all(|(key, old)| new.get(key).is_some_and(|new| contains(new, old)))
        }
        (Value::Array(new), Value::Array(old)) => {
            new.len() == old.len() && new.iter().zip(old).all(|(new, old)| contains(new, old))
        }
        (new, old) => new == old,
    }
}

/// A line for each form that a snapshot has had. More fields may come; none may go, or say something else.
#[test]
fn snapshots_that_were_taken_can_be_read() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/data/golden/snapshot.jsonl");
    for line in std::fs::read_to_string(path).unwrap().lines() {
        let cluster = snapshot::decode(line.as_bytes()).unwrap();
        assert_eq!(
            cluster.spec.groups.len(),
            cluster.spec_file.as_ref().unwrap().groups.len(),
            "derived anew"
        );
        let again = snapshot::encode(&cluster);
        assert_eq!(snapshot::decode(&again).unwrap(), cluster);
        let (old, new): (Value, Value) =
            (serde_json::from_str(line).unwrap(), serde_json::from_slice(&again).unwrap());
        assert!(contains(&new, &old), "something is lost:\n{old}\n{new}");
        let newer = line.replacen(r#""cluster":{"#, r#""cluster":{"a_new_field":{"deep":[1]},"#, 1);
        assert_eq!(snapshot::decode(newer.as_bytes()).unwrap(), cluster, "a newer writer can be followed");
    }
}

#[test]
fn snapshots_of_a_later_format_are_refused_whatever_is_in_them() {
    let later = snapshot::decode(br#"{"format":2,"groups":[]}"#);
    assert!(matches!(later, Err(snapshot::Unreadable::Newer { found: 2 })), "{later:?}");
    assert!(matches!(snapshot::decode(b"{}"), Err(snapshot::Unreadable::Malformed(_))));
    let undeclared = br#"{"format":1,"cluster":{"spec_file":{"cluster":"c","groups":{"a":{"select":{},"lifecycle":"none"}}}}}"#;
    assert!(matches!(snapshot::decode(undeclared), Err(snapshot::Unreadable::Spec(_))));
}
