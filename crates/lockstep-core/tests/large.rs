//! Large clusters: that they work at all, and, with `cargo test --release --test large -- --nocapture`, how long
//! they take. Nothing is asserted about time: it is not this machine that counts.

#![allow(clippy::unwrap_used, reason = "these are tests")]
#![allow(
    clippy::disallowed_types,
    clippy::disallowed_methods,
    reason = "the time that planning takes is shown"
)]

use lockstep_core::cluster::Cluster;
use lockstep_core::engine::{Accepted, Engine, Input, Output, ReplyId, SessionId};
use lockstep_core::id::{AgentId, HostName, Index, RunId, StateName};
use lockstep_core::message::{Done, Findings, Hello, Order, PROTOCOL, Phase, Report};
use lockstep_core::plan::{self, Scores};
use lockstep_core::record::{Body, HostChange, Record};
use lockstep_core::request::{Code, Request, Target};
use lockstep_core::time::{Now, Time, WallTime};
use lockstep_core::vote::Answer;
use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::Instant;

fn host(number: usize) -> HostName {
    HostName::new(&format!("h{number:05}")).unwrap()
}

fn labels() -> BTreeMap<String, String> {
    BTreeMap::from([("db".to_owned(), "y".to_owned())])
}

/// A cluster whose hosts have joined, `state` says in which state each member is.
fn cluster(groups: &str, hosts: usize, state: impl Fn(usize) -> &'static str) -> Cluster {
    let mut cluster = Cluster::default();
    let mut apply = |body| {
        let index = Index(cluster.revision.0 + 1);
        cluster.apply(index, &Record { at: WallTime(0), body });
    };
    let spec = format!(r#"{{"cluster":"large","groups":{groups}}}"#);
    let spec = Arc::new(serde_json::from_str(&spec).unwrap());
    apply(Body::Spec { spec, principal: "operator".to_owned() });
    for number in 0..hosts {
        let agent = AgentId::new(&format!("id-{}", host(number))).unwrap();
        let change = HostChange::Joined { agent, address: None, labels: labels() };
        apply(Body::Host { host: host(number), change });
        let member = format!("db@{}", host(number)).parse().unwrap();
        apply(Body::Report { member, actual: Some(StateName::new(state(number)).unwrap()) });
    }
    cluster
}

fn planned(title: &str, cluster: &Cluster, target: &str) {
    let target: Target = target.parse().unwrap();
    let begun = Instant::now();
    let plan = plan::plan(cluster, &[target], &Scores::new()).unwrap();
    println!(
        "plan {title}: {} steps, {} barriers, {:?}",
        plan.steps.len(),
        plan.barriers.len(),
        begun.elapsed()
    );
    let edges: usize = plan.steps.iter().map(|step| step.after.len()).sum();
    assert!(edges <= 3 * plan.steps.len(), "the plan stays linear: {edges} edges");
}

#[test]
fn ten_thousand_members_are_planned() {
    const HOSTS: usize = 10_000;
    let begun = Instant::now();
    let service = r#"{"db":{"select":{"db":"y"}}}"#;
    let off = cluster(service, HOSTS, |_| "offline");
    println!("fold of {HOSTS} hosts: {:?}", begun.elapsed());
    planned("service up", &off, "db=up");
    let limited = r#"{"db":{"select":{"db":"y"},"limits":{"online":{"max":"50%"}}}}"#;
    let half = cluster(limited, HOSTS, |number| if number % 2 == 0 { "online" } else { "offline" });
    planned("half stays", &half, "db=up");
    let standby = r#"{"db":{"select":{"db":"y"},"lifecycle":"primary-standby"}}"#;
    planned("primary-standby up", &cluster(standby, HOSTS, |_| "offline"), "db=up");
    let on = cluster(standby, HOSTS, |number| if number == 0 { "primary" } else { "standby" });
    planned("switchover", &on, "db@h00009=primary");
    planned("down", &on, "db=down");
    let through = r#"{"db":{"select":{"db":"y"},"lifecycle":"primary-standby","limits":{"primary":{"max":"all"},"standby":{"max":"50%"}}}}"#;
    planned("through a limited state", &cluster(through, HOSTS, |_| "offline"), "db=primary");
}

/// Everybody says yes at once.
fn settle(engine: &mut Engine, now: Now) -> usize {
    let mut reports: VecDeque<(SessionId, Report)> = VecDeque::new();
    let mut count = 0;
    loop {
        while let Some(output) = engine.poll_output() {
            match output {
                Output::Append { .. } => engine.handle(now, Input::Appended),
                Output::Confirm => engine.handle(now, Input::Confirmed),
                Output::Order { session, order: Order::Call(call) } => {
                    if call.phase == Phase::Commit {
                        assert!(call.decision.is_some());
                    }
                    let done = Done {
                        member: call.member,
                        phase: call.phase,
                        transition: call.transition,
                        step: call.step,
                        attempt: call.attempt,
                        plan: call.plan,
                        answer: Answer::Yes,
                        reason: None,
                        refused: None,
                        findings: Findings::default(),
                    };
                    reports.push_back((session, Report::Done(done)));
                }
                Output::Reply { answer, .. } => drop(answer.unwrap()),
                Output::Order { .. } | Output::Close { .. } | Output::Event(_) => {}
            }
        }
        let Some((session, report)) = reports.pop_front() else { return count };
        count += 1;
        engine.handle(now, Input::Report { session, report });
    }
}

#[test]
fn a_thousand_members_are_moved() {
    // Unoptimised it is slow, and shows the same.
    const HOSTS: usize = if cfg!(debug_assertions) { 100 } else { 1000 };
    for handler in ["none", "sim"] {
        let groups = format!(r#"{{"db":{{"select":{{"db":"y"}},"handler":"{handler}"}}}}"#);
        let now = Now { time: Time(1000), wall: WallTime(0) };
        let mut engine = Engine::new(cluster(&groups, HOSTS, |_| "offline"), "server", now);
        for number in 0..HOSTS {
            let hello = Hello {
                protocol: PROTOCOL,
                host: host(number),
                agent: AgentId::new(&format!("id-{}", host(number))).unwrap(),
                run: RunId::new("run").unwrap(),
                address: None,
                labels: labels(),
                cluster: None,
                reign: Default::default(),
                token: Default::default(),
                open: Vec::new(),
                noticed: Index(0),
                fences: false,
            };
            let session = SessionId(number as u64);
            engine.handle(now, Input::Report { session, report: Report::Hello(hello) });
        }
        settle(&mut engine, now);
        let begun = Instant::now();
        let request = Request {
            request_id: "1".to_owned(),
            principal: "operator".to_owned(),
            targets: vec!["db=online".parse().unwrap()],
            ..Request::default()
        };
        engine.handle(now, Input::Run { reply: ReplyId(1), request: request.clone() });
        let reports = settle(&mut engine, now);
        println!("{HOSTS} members with handler {handler}: {reports} reports, {:?}", begun.elapsed());
        assert!(engine.acknowledged().members.values().all(|member| member.actual == member.goal));
        assert!(engine.acknowledged().open.is_empty());
        let begun = Instant::now();
        for number in 0..HOSTS {
            let session = SessionId(number as u64);
            engine.handle(
                now,
                Input::Report {
                    session,
                    report: Report::Renew { sent: now.time, open: None, lease_ms: None },
                },
            );
            while engine.poll_output().is_some() {}
            assert!(engine.next_deadline().is_some());
        }
        println!("{HOSTS} renewals: {:?}", begun.elapsed());
    }
}

#[test]
fn a_thousand_transitions_wait_and_no_more() {
    let now = Now { time: Time(1000), wall: WallTime(0) };
    let groups = r#"{"db":{"select":{"db":"y"}}}"#;
    let mut engine = Engine::new(cluster(groups, 2, |_| "offline"), "server", now);
    settle(&mut engine, now);
    let begun = Instant::now();
    let mut codes = Vec::new();
    for number in 0..=1000 {
        let request = Request {
            request_id: number.to_string(),
            principal: "operator".to_owned(),
            targets: vec!["db=online".parse().unwrap()],
            ..Request::default()
        };
        engine.handle(now, Input::Run { reply: ReplyId(number), request });
        while let Some(output) = engine.poll_output() {
            match output {
                Output::Append { .. } => engine.handle(now, Input::Appended),
                Output::Confirm => engine.handle(now, Input::Confirmed),
                Output::Reply { answer, .. } => codes.push(answer),
                Output::Order { .. } | Output::Close { .. } | Output::Event(_) => {}
            }
        }
    }
    println!("1001 requests for one group: {:?}", begun.elapsed());
    assert!(matches!(codes[999], Ok(Accepted::Transition(_))));
    assert_eq!(codes[1000].as_ref().unwrap_err().code.as_str(), "busy");
    let begun = Instant::now();
    for step in 1..2000 {
        let now = Now { time: Time(1000 + step * 3000), wall: WallTime(0) };
        engine.handle(now, Input::Tick);
        while let Some(output) = engine.poll_output() {
            if let Output::Append { .. } = output {
                engine.handle(now, Input::Appended);
            }
        }
    }
    assert!(engine.acknowledged().open.is_empty(), "nobody answers, and nothing waits for ever");
    println!("1000 of them end: {:?}", begun.elapsed());
}

#[test]
fn a_plan_that_would_not_fit_a_record_is_refused() {
    // Long names make a plan of few steps large.
    let group = "g".repeat(60);
    let spec = format!(r#"{{"cluster":"c","groups":{{"{group}":{{"select":{{"role":"x"}}}}}}}}"#);
    let mut cluster = Cluster::default();
    let mut apply = |body| {
        let index = Index(cluster.revision.0 + 1);
        cluster.apply(index, &Record { at: WallTime(0), body });
    };
    apply(Body::Spec { spec: Arc::new(serde_json::from_str(&spec).unwrap()), principal: "test".to_owned() });
    for host in 0..20_000 {
        let name: HostName = format!("{}{host:05}", "h".repeat(55)).parse().unwrap();
        let labels = [("role".to_owned(), "x".to_owned())].into();
        let change = HostChange::Joined { agent: "a".parse().unwrap(), address: None, labels };
        apply(Body::Host { host: name.clone(), change });
        let member = format!("{group}@{name}").parse().unwrap();
        apply(Body::Report { member, actual: Some("offline".parse().unwrap()) });
    }
    let targets = [format!("{group}=online").parse().unwrap()];
    let rejection = plan::plan(&cluster, &targets, &Scores::new()).unwrap_err();
    assert_eq!(rejection.code, Code::TooLarge, "{rejection}");
}

/// Without searching the graph once for each of 20,000 pairs.
#[test]
fn two_hundred_groups_that_never_move_at_once_are_planned() {
    const GROUPS: usize = if cfg!(debug_assertions) { 100 } else { 200 };
    let group = |number: usize| format!(r#""g{number}":{{"select":{{"db":"y"}}}}"#);
    let groups: Vec<_> = (0..GROUPS).map(group).collect();
    let relation = |number: usize| {
        let others: Vec<_> = (number + 1..GROUPS).map(|other| format!(r#""g{other}""#)).collect();
        format!(r#"{{"from":"g{number}","to":[{}],"kind":"excludes","moving":true}}"#, others.join(","))
    };
    let relations: Vec<_> = (0..GROUPS - 1).map(relation).collect();
    let groups = format!(r#"{{"db":{{"select":{{"db":"y"}}}},{}}}"#, groups.join(","));
    let rest = format!(r#"{groups},"relations":[{}]"#, relations.join(","));
    let mut cluster = cluster(&rest, 1, |_| "offline");
    for number in 0..GROUPS {
        let member = format!("g{number}@{}", host(0)).parse().unwrap();
        let body = Body::Report { member, actual: Some(StateName::new("offline").unwrap()) };
        cluster.apply(Index(cluster.revision.0 + 1), &Record { at: WallTime(0), body });
    }
    let targets: Vec<Target> = (0..GROUPS).map(|number| format!("g{number}=up").parse().unwrap()).collect();
    let begun = Instant::now();
    let plan = plan::plan(&cluster, &targets, &Scores::new()).unwrap();
    println!("plan one group after the other: {} steps, {:?}", plan.steps.len(), begun.elapsed());
    assert_eq!(plan.steps.iter().filter(|step| step.after.is_empty()).count(), 1, "one begins");
}
