//! What is kept of what is over: enough for those who were away and those who ask again, and no more.

#![allow(clippy::unwrap_used, reason = "these are tests")]

use lockstep_core::cluster::{BRIEF_MAX, BRIEF_MS, Cluster, NOTICES_MAX, UNACKNOWLEDGED_FACTOR, WHOLE_MAX};
use lockstep_core::engine::{Accepted, Engine, Input, Output, ReplyId, SessionId};
use lockstep_core::id::{AgentId, HostName, Index, RunId, StateName, TransitionId};
use lockstep_core::message::{Decision, Gap, Hello, Notice, Order, Outcome, PROTOCOL, Phase, Report};
use lockstep_core::plan::{self, Plan, Scores};
use lockstep_core::record::{Acknowledged, Body, HostChange, Record};
use lockstep_core::request::{Code, Request};
use lockstep_core::snapshot;
use lockstep_core::time::{Now, WallTime};
use lockstep_core::world::{Script, World};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

const SPEC: &str = r#"{"cluster":"c","groups":{
    "db":{"select":{"role":"db"},"handler":"sim"},
    "app":{"select":{"role":"app"},"handler":"sim"}},
    "relations":[{"from":"app","to":"db"}]}"#;

fn labels(role: &str) -> BTreeMap<String, String> {
    BTreeMap::from([("role".to_owned(), role.to_owned())])
}

fn named(name: &str) -> HostName {
    name.parse().unwrap()
}

/// A cluster and the journal that tells it.
struct Fold {
    cluster: Cluster,
    at: WallTime,
    plan: Arc<Plan>,
}

impl Fold {
    /// Database d, and application w, which is told of it.
    fn new() -> Self {
        let mut fold = Self { cluster: Cluster::default(), at: WallTime(1), plan: Arc::default() };
        fold.add(Body::Spec {
            spec: Arc::new(serde_json::from_str(SPEC).unwrap()),
            principal: "p".to_owned(),
        });
        for (host, role) in [("d", "db"), ("w", "app")] {
            let agent = AgentId::new(host).unwrap();
            let change = HostChange::Joined { agent, address: None, labels: labels(role) };
            fold.add(Body::Host { host: named(host), change });
            let member = format!("{role}@{host}").parse().unwrap();
            fold.add(Body::Report { member, actual: Some(StateName::new("offline").unwrap()) });
        }
        let plan = plan::plan(&fold.cluster, &["db=online".parse().unwrap()], &Scores::new()).unwrap();
        fold.plan = Arc::new(plan);
        fold
    }

    fn add(&mut self, body: Body) -> Index {
        let index = Index(self.cluster.revision.0 + 1);
        self.cluster.apply(index, &Record { at: self.at, body });
        index
    }

    /// A transition that is aborted after its intent was told, so that it can be asked for again.
    fn transition(&mut self, name: usize) -> TransitionId {
        let transition = TransitionId(self.add(Body::Request { request: Arc::new(request(name)) }).0);
        self.add(Body::Begin { transition, plan: self.plan.clone() });
        let (decision, votes) = (Decision::Abort, Arc::default());
        self.add(Body::Decision { transition, decision, cause: None, votes, plan: None });
        let (left, untold) = (BTreeMap::new(), BTreeSet::new());
        self.add(Body::Outcome { transition, outcome: Outcome::Aborted, left, untold });
        transition
    }

    fn acknowledge(&mut self, host: &str, noticed: Index, outcomes: &[TransitionId]) {
        let said = Acknowledged { noticed, outcomes: outcomes.iter().copied().collect() };
        self.add(Body::Acknowledged { hosts: [(named(host), said)].into() });
    }

    fn snapshot_stands_in(&self) {
        assert_eq!(snapshot::decode(&snapshot::encode(&self.cluster)).unwrap(), self.cluster);
    }
}

fn request(name: usize) -> Request {
    Request {
        request_id: format!("r{name}"),
        principal: "p".to_owned(),
        targets: vec!["db=online".parse().unwrap()],
        ..Request::default()
    }
}

#[test]
fn what_was_acknowledged_is_kept_whole_while_it_is_among_the_newest() {
    let mut fold = Fold::new();
    let ids: Vec<_> = (0..WHOLE_MAX + 5).map(|name| fold.transition(name)).collect();
    assert!(fold.cluster.transitions.values().all(|known| known.plan.is_some()), "d has acknowledged none");
    fold.acknowledge("d", Index(0), &ids[..3]);
    fold.snapshot_stands_in();
    let brief = |fold: &Fold| fold.cluster.retention.brief.transitions.keys().copied().collect::<Vec<_>>();
    assert_eq!(brief(&fold), ids[..3], "those that are awaited are kept whole beyond the bound");
    fold.acknowledge("d", Index(0), &ids);
    assert!(fold.cluster.retention.awaited.is_empty());
    let kept = WHOLE_MAX / 4 * 3;
    assert_eq!(brief(&fold), ids[..ids.len() - kept]);
    assert!(fold.cluster.transitions.keys().eq(&ids[ids.len() - kept..]));
    for id in &ids {
        let known = fold.cluster.transition(id).unwrap();
        assert_eq!(known.plan.is_some(), fold.cluster.transitions.contains_key(id), "{id}");
        assert_eq!(known.outcome, Some(Outcome::Aborted));
    }
    fold.snapshot_stands_in();
}

#[test]
fn a_request_id_is_kept_for_a_day_and_then_dropped() {
    let mut fold = Fold::new();
    let ids: Vec<_> = (0..WHOLE_MAX + 1).map(|name| fold.transition(name)).collect();
    fold.acknowledge("d", Index(0), &ids);
    fold.at = WallTime(fold.at.0 + BRIEF_MS - 1);
    fold.acknowledge("d", Index(0), &[]);
    let mut engine = Engine::new(fold.cluster.clone(), "server", Now::default());
    engine.handle(Now::default(), Input::Run { reply: ReplyId(1), request: request(0) });
    assert_eq!(answer(&mut engine), Ok(Accepted::Transition(ids[0])), "the same request, the same answer");
    let other = Request { targets: vec!["db=offline".parse().unwrap()], ..request(0) };
    engine.handle(Now::default(), Input::Run { reply: ReplyId(2), request: other });
    assert_eq!(answer(&mut engine).unwrap_err().code, Code::RequestConflict);
    fold.at = WallTime(fold.at.0 + 2 * 60 * 60 * 1000);
    fold.acknowledge("d", Index(0), &[]);
    assert!(fold.cluster.retention.brief.transitions.is_empty());
    assert_eq!((fold.cluster.transition(&ids[0]), fold.cluster.requested("r0")), (None, None));
    assert_eq!(fold.cluster.requests.len(), WHOLE_MAX / 4 * 3, "the newest are kept whole, however old");
}

#[test]
fn a_host_that_acknowledges_nothing_fills_no_memory() {
    let mut fold = Fold::new();
    let whole = WHOLE_MAX * UNACKNOWLEDGED_FACTOR;
    let ids: Vec<_> = (0..whole + BRIEF_MAX + 1).map(|name| fold.transition(name)).collect();
    assert_eq!(fold.cluster.retention.whole(), whole);
    assert_eq!(fold.cluster.retention.awaited[&named("d")].len(), whole);
    assert_eq!((fold.cluster.transitions.len(), fold.cluster.requests.len()), (whole, whole));
    let brief = &fold.cluster.retention.brief;
    assert_eq!((brief.transitions.len(), brief.requests.len()), (BRIEF_MAX / 4 * 3, BRIEF_MAX / 4 * 3));
    assert_eq!(fold.cluster.transition(&ids[0]), None, "the oldest go first");
    assert_eq!(fold.cluster.notices[&named("w")].kept.len(), NOTICES_MAX);
    fold.snapshot_stands_in();
}

/// What a host is ordered when it comes.
fn greeted(engine: &mut Engine, host: &str, role: &str, noticed: Index) -> Vec<Order> {
    let session = SessionId(7);
    let hello = Hello {
        protocol: PROTOCOL,
        host: named(host),
        agent: AgentId::new(host).unwrap(),
        run: RunId::new("run").unwrap(),
        address: None,
        labels: labels(role),
        cluster: None,
        reign: Default::default(),
        token: Default::default(),
        open: Vec::new(),
        noticed,
        fences: false,
    };
    // A host that comes again comes on another connection.
    engine.handle(Now::default(), Input::Closed { session });
    engine.handle(Now::default(), Input::Report { session, report: Report::Hello(hello) });
    let mut orders = Vec::new();
    while let Some(output) = engine.poll_output() {
        match output {
            Output::Append { .. } => engine.handle(Now::default(), Input::Appended),
            Output::Confirm => engine.handle(Now::default(), Input::Confirmed),
            Output::Order { order, .. } => orders.push(order),
            Output::Close { .. } | Output::Reply { .. } | Output::Event(_) => {}
        }
    }
    orders
}

fn answer(engine: &mut Engine) -> Result<Accepted, lockstep_core::request::Rejection> {
    let mut answers = Vec::new();
    while let Some(output) = engine.poll_output() {
        match output {
            Output::Append { .. } => engine.handle(Now::default(), Input::Appended),
            Output::Confirm => engine.handle(Now::default(), Input::Confirmed),
            Output::Reply { answer, .. } => answers.push(answer),
            Output::Order { .. } | Output::Close { .. } | Output::Event(_) => {}
        }
    }
    answers.pop().unwrap()
}

/// The notices among orders; the gap before them, if there is one.
fn notices(orders: Vec<Order>) -> (Option<Gap>, Vec<Notice>) {
    let (mut gap, mut notices) = (None, Vec::new());
    for order in orders {
        match order {
            Order::Gap(told) => assert!(gap.replace(told).is_none() && notices.is_empty(), "once, and first"),
            Order::Notice(notice) => notices.push(notice),
            Order::Welcome { .. }
            | Order::Refused { .. }
            | Order::Assign { .. }
            | Order::Call(_)
            | Order::Outcome { .. }
            | Order::Renewed { .. } => {}
        }
    }
    (gap, notices)
}

#[test]
fn a_host_that_was_away_past_retention_gets_a_gap_marker_and_then_every_notice() {
    let mut fold = Fold::new();
    (0..NOTICES_MAX).for_each(|name| _ = fold.transition(name));
    let kept = fold.cluster.notices[&named("w")].clone();
    assert_eq!(kept.acknowledged, Index(0));
    let mut engine = Engine::new(fold.cluster.clone(), "server", Now::default());
    let (gap, told) = notices(greeted(&mut engine, "w", "app", Index(0)));
    let gap = gap.expect("what is gone is said to be gone");
    assert_eq!(gap.index, kept.dropped);
    let [call] = &gap.calls[..] else { panic!("one member observes: {:?}", gap.calls) };
    assert_eq!(
        (call.member.to_string(), call.phase, call.transition),
        ("app@w".to_owned(), Phase::Notice, None)
    );
    let members = &call.context.as_ref().unwrap().members;
    let shown: Vec<_> =
        members.iter().map(|member| (member.member.to_string(), member.actual.clone())).collect();
    let offline = || Some(StateName::new("offline").unwrap());
    assert_eq!(shown, [("app@w".to_owned(), offline()), ("db@d".to_owned(), offline())]);
    assert_eq!(told.len(), NOTICES_MAX);
    let mut last = gap.index;
    for notice in &told {
        assert_eq!(notice.previous, last, "contiguous from the marker on");
        last = notice.index;
    }

    // One that has taken all that is gone has no gap.
    let (gap, told) = notices(greeted(&mut engine, "w", "app", kept.kept[9].0));
    assert_eq!((gap, told.len()), (None, NOTICES_MAX - 10));
    assert_eq!(told[0].previous, kept.kept[9].0);
}

#[test]
fn what_was_acknowledged_is_told_no_more_and_leaves_no_gap() {
    let mut fold = Fold::new();
    (0..3).for_each(|name| _ = fold.transition(name));
    let third = fold.cluster.notices[&named("w")].kept[2].0;
    fold.acknowledge("w", third, &[]);
    let mut engine = Engine::new(fold.cluster.clone(), "server", Now::default());
    let (gap, told) = notices(greeted(&mut engine, "w", "app", third));
    assert_eq!((gap, told.len(), told[0].previous), (None, 3, third));
    // An agent whose disk was set back has lost what it took.
    let (gap, told) = notices(greeted(&mut engine, "w", "app", Index(0)));
    assert_eq!((gap.unwrap().index, told.len()), (third, 3));
}

#[test]
fn the_outcome_names_those_who_were_not_told_and_waits_for_nobody() {
    let mut world = World::new();
    world.start_server();
    world.deliver();
    world.apply(serde_json::from_str(SPEC).unwrap());
    for (host, role) in [("d", "db"), ("v", "app"), ("w", "app")] {
        world.set_software(&format!("{role}@{host}").parse().unwrap(), &"offline".parse().unwrap());
        world.join(host, &named(host), labels(role), None);
    }
    world.deliver();
    let slow = Script { takes_ms: 5000, ..Script::default() };
    world.script(&"app@w".parse().unwrap(), Phase::Notice, vec![slow]);
    world.script(
        &"db@d".parse().unwrap(),
        Phase::Commit,
        vec![Script { takes_ms: 100, ..Script::default() }],
    );
    world.run(request(1));
    world.advance(200);
    let transition = world.server().unwrap().acknowledged().transitions.values().next().unwrap().clone();
    assert_eq!(transition.outcome, Some(Outcome::Committed));
    let untold: Vec<_> = transition.untold.iter().map(ToString::to_string).collect();
    assert_eq!(untold, ["app@w"]);
}
