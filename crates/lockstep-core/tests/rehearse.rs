//! Rehearsals: what is shown of a small plan, case by case, and, with `cargo test --release --test rehearse --
//! --nocapture`, how long larger ones take. Nothing is asserted about time: it is not this machine that counts.

#![allow(clippy::unwrap_used, reason = "these are tests")]
#![allow(
    clippy::disallowed_types,
    clippy::disallowed_methods,
    reason = "the time that a rehearsal takes is shown"
)]

use lockstep_core::cluster::Cluster;
use lockstep_core::id::{AgentId, Index, MemberId, StateName};
use lockstep_core::message::Outcome;
use lockstep_core::plan::Scores;
use lockstep_core::record::{Body, HostChange, Record};
use lockstep_core::rehearse::{
    ASKED_MAX, Case, Elsewhere, Fault, FaultKind, Limit, Place, Rehearsal, rehearse,
};
use lockstep_core::request::{Code, Request, Target};
use lockstep_core::time::WallTime;
use std::collections::BTreeMap;
use std::fmt::Write;
use std::sync::Arc;
use std::time::Instant;

const SHOP: &str = r#"{"cluster":"shop","groups":{
    "db":{"select":{"role":"db"},"lifecycle":"primary-standby","handler":"pg"},
    "pool":{"select":{"role":"pool"},"handler":"pgbouncer"}},
    "relations":[{"from":"pool","to":"db","kind":"requires","ask":"hold"}]}"#;

/// A cluster of these members, `group@host` and the state; a host's label `role` is its group.
fn asking(targets: &[Target]) -> Request {
    Request { targets: targets.to_vec(), ..Request::default() }
}

fn cluster(spec: &str, members: &[(String, &str)]) -> Cluster {
    let mut cluster = Cluster::default();
    let mut apply = |body| {
        let index = Index(cluster.revision.0 + 1);
        cluster.apply(index, &Record { at: WallTime(0), body });
    };
    let spec = Arc::new(serde_json::from_str(spec).unwrap());
    apply(Body::Spec { spec, principal: "operator".to_owned() });
    for (member, state) in members {
        let member: MemberId = member.parse().unwrap();
        let agent = AgentId::new(&format!("id-{}", member.host)).unwrap();
        let labels = BTreeMap::from([("role".to_owned(), member.group.to_string())]);
        let change = HostChange::Joined { agent, address: None, labels };
        apply(Body::Host { host: member.host.clone(), change });
        apply(Body::Report { member, actual: Some(StateName::new(state).unwrap()) });
    }
    cluster
}

/// A cluster of these members, `group@host state`; a host has a label for each of its groups.
fn placed(spec: &str, members: &[&str]) -> Cluster {
    let mut cluster = Cluster::default();
    let mut apply = |body| {
        let index = Index(cluster.revision.0 + 1);
        cluster.apply(index, &Record { at: WallTime(0), body });
    };
    let spec = Arc::new(serde_json::from_str(spec).unwrap());
    apply(Body::Spec { spec, principal: "operator".to_owned() });
    let members: Vec<(MemberId, StateName)> = members
        .iter()
        .map(|member| member.split_once(' ').unwrap())
        .map(|(member, state)| (member.parse().unwrap(), state.parse().unwrap()))
        .collect();
    let mut labels: BTreeMap<_, BTreeMap<String, String>> = BTreeMap::new();
    for (member, _) in &members {
        labels.entry(member.host.clone()).or_default().insert(member.group.to_string(), "y".to_owned());
    }
    for (host, labels) in labels {
        let agent = AgentId::new(&format!("id-{host}")).unwrap();
        apply(Body::Host { host, change: HostChange::Joined { agent, address: None, labels } });
    }
    for (member, state) in members {
        apply(Body::Report { member, actual: Some(state) });
    }
    cluster
}

fn shop() -> Cluster {
    let members = [("db@a", "primary"), ("db@b", "standby"), ("pool@p", "online")];
    cluster(SHOP, &members.map(|(member, state)| (member.to_owned(), state)))
}

fn rehearsed(cluster: &Cluster, target: &str) -> Rehearsal {
    rehearse(cluster, &asking(&[target.parse().unwrap()]), &Scores::new()).unwrap()
}

fn line(case: &Case) -> String {
    let mut line = String::new();
    match &case.fault {
        None => line.push_str("clean"),
        Some(fault) => {
            let place = match &fault.place {
                Place::Call { member, phase, step: None } => format!("{phase} {member}"),
                Place::Call { member, phase, step: Some(step) } => format!("{phase} {member} step {step}"),
                Place::Host { host, what } => format!("{what} {host}"),
                Place::Write { number, records } => format!("{number} {}", records.join(" ")),
            };
            write!(line, "{} {place}", fault.kind).unwrap();
        }
    }
    let outcome = case.outcome.map_or("never ends".to_owned(), |outcome| outcome.to_string());
    write!(line, ": {outcome}").unwrap();
    if let Some(cause) = &case.cause {
        write!(line, " {}", cause.code).unwrap();
    }
    for (member, Elsewhere { planned, actual, in_doubt }) in &case.elsewhere {
        let doubt = if *in_doubt { " in doubt" } else { "" };
        write!(line, "; {member}{doubt} {actual}, not {planned}").unwrap();
    }
    for broken in &case.broken {
        write!(line, "; BREAKS {broken:?}").unwrap();
    }
    for (member, ms) in &case.held_ms {
        write!(line, "; {member} held {ms} ms").unwrap();
    }
    write!(line, "; {} ms", case.took_ms).unwrap();
    line
}

fn text(rehearsal: &Rehearsal) -> String {
    let cases = [&rehearsal.clean].into_iter().chain(&rehearsal.cases);
    cases.map(|case| line(case) + "\n").collect()
}

#[test]
fn a_switchover_of_three_hosts() {
    let rehearsal = rehearsed(&shop(), "db@b=primary");
    expect_test::expect_file!["data/rehearse/switchover.txt"].assert_eq(&text(&rehearsal));
    assert_eq!(rehearsal, rehearsed(&shop(), "db@b=primary"), "the same rehearsal twice");
}

#[test]
fn there_is_a_case_for_each_fault_at_each_point() {
    let mut counts: BTreeMap<FaultKind, usize> = BTreeMap::new();
    let rehearsal = rehearsed(&shop(), "db@b=primary");
    for case in &rehearsal.cases {
        *counts.entry(case.fault.as_ref().unwrap().kind).or_default() += 1;
    }
    // Three members are asked twice, three steps are taken, one holder is released, three hosts are told the outcome,
    // and one of them gets two notices.
    let (votes, steps, releases, outcomes, notices) = (6, 3, 1, 3, 2);
    let writes = rehearsal
        .cases
        .iter()
        .filter(|case| matches!(case.fault, Some(Fault { place: Place::Write { .. }, .. })));
    let writes = writes.count() / 2;
    assert!(writes >= 5, "{writes} writes");
    for kind in FaultKind::ALL {
        let expected = match kind {
            FaultKind::VoteNo
            | FaultKind::VoteMissing
            | FaultKind::HostLostBeforeVote
            | FaultKind::HostLostAfterVote => votes,
            FaultKind::StepFails
            | FaultKind::StepHangs
            | FaultKind::HostLostBeforeStep
            | FaultKind::HostLostInStep
            | FaultKind::HostLostAfterStep => steps,
            FaultKind::HostLostBeforeRelease => releases,
            FaultKind::OrderLost => votes + steps + releases + outcomes + notices,
            FaultKind::ReportLost => votes + steps + releases + notices,
            FaultKind::ServerLostBeforeWrite | FaultKind::ServerLostAfterWrite => writes,
        };
        assert_eq!(counts.get(&kind), Some(&expected), "{kind}");
    }
}

#[test]
fn who_is_left_out_may_leave_too_few() {
    let spec = r#"{"cluster":"c","groups":{"db":{"select":{"role":"db"},"handler":"h","retries":0,
        "on_failure":"exclude","limits":{"online":{"min":MIN}}}}}"#;
    for (min, expected) in [("1", Outcome::Committed), ("2", Outcome::Degraded)] {
        let members = ["db@a", "db@b"].map(|member| (member.to_owned(), "offline"));
        let rehearsal = rehearsed(&cluster(&spec.replace("MIN", min), &members), "db=online");
        let fails =
            rehearsal.cases.iter().filter(|case| case.fault.as_ref().unwrap().kind == FaultKind::StepFails);
        for case in fails {
            assert_eq!(case.outcome, Some(expected), "min {min}: {}", line(case));
            assert_eq!(case.is_bad(), expected == Outcome::Degraded);
            assert_eq!(case.elsewhere.len(), 1, "{}", line(case));
        }
    }
}

#[test]
fn members_without_a_handler_move_and_neither_refuse_nor_hang() {
    let members = ["db@a", "db@b"].map(|member| (member.to_owned(), "offline"));
    let rehearsal =
        rehearsed(&cluster(r#"{"cluster":"c","groups":{"db":{"select":{"role":"db"}}}}"#, &members), "db=up");
    assert_eq!(line(&rehearsal.clean), "clean: committed; 0 ms");
    for case in &rehearsal.cases {
        match case.fault.as_ref().unwrap().kind {
            FaultKind::VoteNo | FaultKind::VoteMissing | FaultKind::StepFails | FaultKind::StepHangs => {
                panic!("{}", line(case))
            }
            FaultKind::HostLostBeforeVote
            | FaultKind::HostLostAfterVote
            | FaultKind::HostLostBeforeStep
            | FaultKind::HostLostInStep
            | FaultKind::HostLostAfterStep
            | FaultKind::HostLostBeforeRelease
            | FaultKind::OrderLost
            | FaultKind::ReportLost
            | FaultKind::ServerLostBeforeWrite
            | FaultKind::ServerLostAfterWrite => {}
        }
    }
}

#[test]
fn what_is_planned_by_score_is_rehearsed_by_score() {
    let spec = r#"{"cluster":"c","groups":{"db":{"select":{"role":"db"},"lifecycle":"primary-standby","handler":"h"}}}"#;
    let members = ["db@a", "db@b"].map(|member| (member.to_owned(), "standby"));
    let scores = Scores::from([("db@b".parse().unwrap(), 7)]);
    let rehearsal =
        rehearse(&cluster(spec, &members), &asking(&["db=up".parse().unwrap()]), &scores).unwrap();
    assert_eq!(rehearsal.plan.goals[&"db@b".parse().unwrap()].as_str(), "primary");
    assert_eq!(line(&rehearsal.clean), "clean: committed; 0 ms", "nobody is elsewhere");
}

/// The same cluster, with a transition of `target` that has been requested and has not begun.
fn asked_for(mut cluster: Cluster, target: &str) -> Cluster {
    let request = Request {
        request_id: "other".to_owned(),
        principal: "operator".to_owned(),
        targets: vec![target.parse().unwrap()],
        ..Request::default()
    };
    let index = Index(cluster.revision.0 + 1);
    cluster.apply(index, &Record { at: WallTime(0), body: Body::Request { request: Arc::new(request) } });
    cluster
}

#[test]
fn transitions_of_others_are_in_the_way_or_left_out() {
    let spec =
        SHOP.replace(r#""groups":{"#, r#""groups":{"cache":{"select":{"role":"cache"},"handler":"h"},"#);
    let members = [("db@a", "primary"), ("db@b", "standby"), ("pool@p", "online"), ("cache@c", "online")];
    let quiet = cluster(&spec, &members.map(|(member, state)| (member.to_owned(), state)));
    let targets = ["db@b=primary".parse().unwrap()];
    let rejection =
        rehearse(&asked_for(quiet.clone(), "pool=offline"), &asking(&targets), &Scores::new()).unwrap_err();
    assert_eq!(rejection.code, Code::Busy, "{rejection}");
    let beside =
        rehearse(&asked_for(quiet.clone(), "cache=offline"), &asking(&targets), &Scores::new()).unwrap();
    let alone = rehearse(&quiet, &asking(&targets), &Scores::new()).unwrap();
    assert_eq!(text(&beside), text(&alone));
    assert_eq!(text(&alone), text(&rehearsed(&shop(), "db@b=primary")), "groups apart change nothing");
    // What is so already may be asked for too.
    let both = [targets[0].clone(), "cache@c=online".parse().unwrap()];
    assert_eq!(text(&alone), text(&rehearse(&quiet, &asking(&both), &Scores::new()).unwrap()));
}

#[test]
fn what_is_too_large_is_refused() {
    for (count, message) in [
        (ASKED_MAX + 1, "the plan asks 501 members, at most 500 are rehearsed"),
        (300, "4208 cases of 300 members each come to 1262400, at most 1000000"),
    ] {
        let members: Vec<_> = (0..count).map(|number| (format!("db@h{number}"), "offline")).collect();
        let cluster = cluster(r#"{"cluster":"c","groups":{"db":{"select":{"role":"db"}}}}"#, &members);
        let rejection = rehearse(&cluster, &asking(&["db=up".parse().unwrap()]), &Scores::new()).unwrap_err();
        assert_eq!((rejection.code, rejection.message.as_str()), (Code::TooLarge, message));
    }
}

#[test]
fn a_plan_that_is_refused_or_empty_has_no_cases() {
    let refused = rehearse(&shop(), &asking(&["db=down".parse().unwrap()]), &Scores::new()).unwrap_err();
    assert_eq!(refused.code, Code::WouldBreakRequires);
    let empty = rehearsed(&shop(), "db@a=primary");
    assert_eq!((empty.cases.len(), line(&empty.clean)), (0, "clean: committed; 0 ms".to_owned()));
}

/// Ways in which a group may be declared: handler, policy, times, and how long it holds at most, in milliseconds.
const WAYS: [(&str, &str, &str, u64); 4] = [
    ("h", "undo", r#""retries":0"#, 5000),
    ("h", "exclude", r#""retries":3,"hold_ms":500"#, 500),
    (
        "h",
        "undo",
        r#""retries":3,"hold_ms":60000,"deadlines_ms":{"check":300,"prepare":700,"commit":1500}"#,
        60_000,
    ),
    ("none", "exclude", r#""retries":0"#, 5000),
];

/// Whatever the plan: no single fault puts more software into a state than may be there, moves software in a
/// transition that is aborted, leaves any elsewhere in one that is undone, or holds clients for longer than was said;
/// and each case ends.
#[test]
fn whatever_goes_wrong_what_is_promised_holds() {
    let pool = "db primary-standby,pool service";
    for (groups, relation, members, targets) in [
        ("db primary-standby", "", "db@a primary,db@b standby", "db@b=primary"),
        ("db primary-standby", "", "db@a offline,db@b offline,db@c offline", "db=up"),
        ("db primary-standby", "", "db@a primary,db@b standby,db@c standby", "db=down"),
        ("db slot", "", "db@a busy,db@b idle,db@c idle", "db@b=busy"),
        ("db slot", "", "db@a busy,db@b off,db@c off", "db@c=busy"),
        (pool, "hold", "db@a primary,db@b standby,pool@a online,pool@p online", "db@b=primary"),
        (pool, "vote", "db@a primary,db@b standby,pool@b online", "db@b=primary"),
        (pool, "hold", "db@a offline,db@b offline,pool@p offline", "db=up,pool=up"),
        (pool, "hold", "db@a primary,db@b standby,pool@p online", "db=down,pool=down"),
    ] {
        for (handler, on_failure, times, hold_ms) in WAYS {
            let declared = |group: &str| {
                let (name, lifecycle) = group.split_once(' ').unwrap();
                format!(
                    r#""{name}":{{"select":{{"{name}":"y"}},"lifecycle":"{lifecycle}","handler":"{handler}",
                    "on_failure":"{on_failure}",{times}}}"#
                )
            };
            let groups: Vec<_> = groups.split(',').map(declared).collect();
            let relation = match relation {
                "" => String::new(),
                ask => format!(r#"{{"from":"pool","to":"db","kind":"requires","ask":"{ask}"}}"#),
            };
            let spec = format!(
                r#"{{"cluster":"c","groups":{{{}}},"relations":[{relation}],"lifecycles":{{"slot":{{
                "states":["off","idle","busy"],"serving":["busy"],"limits":{{"busy":{{"min":1,"max":1}}}},
                "edges":[["off","idle"],["idle","busy"],["busy","idle"],["idle","off"]]}}}}}}"#,
                groups.join(",")
            );
            let cluster = placed(&spec, &members.split(',').collect::<Vec<_>>());
            let asked: Vec<_> = targets.split(',').map(|target| target.parse().unwrap()).collect();
            let rehearsal = rehearse(&cluster, &asking(&asked), &Scores::new()).unwrap();
            assert_eq!(rehearsal.clean.outcome, Some(Outcome::Committed), "{spec} {members} {targets}");
            assert!(rehearsal.clean.elsewhere.is_empty() && rehearsal.clean.broken.is_empty());
            for case in &rehearsal.cases {
                let goes_back = matches!(case.outcome, Some(Outcome::Aborted | Outcome::Undone));
                let is_right = case.outcome.is_some()
                    && case.broken.iter().all(|broken| broken.limit != Limit::Max)
                    && (!goes_back || case.elsewhere.is_empty())
                    && case.held_ms.values().all(|held| *held <= hold_ms);
                assert!(is_right, "{spec} {members} {targets}\n{}", line(case));
            }
        }
    }
}

#[test]
fn large_plans_are_rehearsed() {
    let sizes: &[usize] = if cfg!(debug_assertions) { &[10] } else { &[10, 30, 100] };
    for &count in sizes {
        for held in [false, true] {
            let ask = if held { r#","ask":"hold""# } else { "" };
            let spec = format!(
                r#"{{"cluster":"c","groups":{{"db":{{"select":{{"role":"db"}},"handler":"h"}},
                "pool":{{"select":{{"role":"pool"}},"handler":"h"}}}},
                "relations":[{{"from":"pool","to":"db"{ask}}}]}}"#
            );
            let (dbs, pools) = if held { (count / 2, count / 2) } else { (count, 0) };
            let mut members: Vec<_> = (0..dbs).map(|i| (format!("db@d{i:03}"), "online")).collect();
            members.extend((0..pools).map(|i| (format!("pool@p{i:03}"), "online")));
            let cluster = cluster(&spec, &members);
            let begun = Instant::now();
            let rehearsal = rehearsed(&cluster, "db=offline");
            let mut outcomes: BTreeMap<Option<Outcome>, usize> = BTreeMap::new();
            rehearsal.cases.iter().for_each(|case| *outcomes.entry(case.outcome).or_default() += 1);
            println!(
                "{count} members, held {held}: {} cases, {:?}, {outcomes:?}",
                rehearsal.cases.len(),
                begun.elapsed()
            );
        }
    }
}
