//! The engine, one call at a time.

#![allow(clippy::unwrap_used, reason = "these are tests")]

use lockstep_core::cluster::Cluster;
use lockstep_core::engine::{Accepted, Defaults, Engine, Event, HostAsk, Input, Output, ReplyId, SessionId};
use lockstep_core::freeze::{FREEZES_MAX, FreezeEnd};
use lockstep_core::id::{ClusterId, HostName, Index, Reign, Token, TransitionId};
use lockstep_core::message::{Call, Done, Findings, Hello, Order, Outcome, PROTOCOL, Phase, Report};
use lockstep_core::record::{Body, HostChange, Liveness, Record};
use lockstep_core::relation::Published;
use lockstep_core::request::{Code, Request};
use lockstep_core::spec::SpecFile;
use lockstep_core::time::{Now, Time, WallTime};
use lockstep_core::vote::Answer;
use std::sync::Arc;

/// Hosts are called h1, h2 and so on.
fn session(host: &HostName) -> SessionId {
    SessionId(host.as_str()[1..].parse().unwrap())
}

/// A cluster whose hosts have this lease unless its spec says otherwise.
fn lease(lease_ms: u64) -> Defaults {
    Defaults { lease_ms: Some(lease_ms), ..Defaults::default() }
}

fn at(ms: u64) -> Now {
    Now { time: Time(ms), wall: WallTime(ms) }
}

fn done(call: Call) -> Input {
    let Call { member, phase, transition, step, attempt, plan, .. } = call;
    let session = session(&member.host);
    let (answer, reason, refused, findings) = (Answer::Yes, None, None, Findings::default());
    let done = Done { member, phase, transition, step, attempt, plan, answer, reason, refused, findings };
    Input::Report { session, report: Report::Done(done) }
}

/// Answers every call but those of steps; gives these back.
fn run_until_commit(engine: &mut Engine, now: Now) -> Vec<Call> {
    let mut commits = Vec::new();
    while let Some(output) = engine.poll_output() {
        match output {
            Output::Append { .. } => engine.handle(now, Input::Appended),
            Output::Confirm => engine.handle(now, Input::Confirmed),
            Output::Order { order: Order::Call(call), .. } if call.phase == Phase::Commit => {
                commits.push(call)
            }
            Output::Order { order: Order::Call(call), .. } => engine.handle(now, done(call)),
            Output::Order { .. } | Output::Close { .. } | Output::Reply { .. } | Output::Event(_) => {}
        }
    }
    commits
}

/// One host in the middle of a step at 0 ms, whose deadline is at 8,000.
fn in_a_step() -> (Engine, Call) {
    let mut engine = requested();
    let call = run_until_commit(&mut engine, at(0)).pop().expect("the step is ordered");
    (engine, call)
}

const SPEC: &str = r#"{"cluster":"c","groups":{"a":{"select":{"role":"a"},"deadlines_ms":{"commit":8000}}}}"#;

/// One host, and a request for its member to go online.
fn requested() -> Engine {
    requested_on(&["h1"], SPEC)
}

/// Hosts with a member of group a each, which is offline.
fn declared(hosts: &[&str], spec: &str) -> Cluster {
    let mut cluster = Cluster::default();
    let mut apply = |body| {
        let index = Index(cluster.revision.0 + 1);
        cluster.apply(index, &Record { at: WallTime(0), body });
    };
    apply(Body::Spec { spec: Arc::new(serde_json::from_str(spec).unwrap()), principal: "test".to_owned() });
    let hosts: Vec<HostName> = hosts.iter().map(|host| host.parse().unwrap()).collect();
    let labels = || [("role".to_owned(), "a".to_owned())].into();
    for host in &hosts {
        let change = HostChange::Joined { agent: "agent".parse().unwrap(), address: None, labels: labels() };
        apply(Body::Host { host: host.clone(), change });
        let member = format!("a@{host}").parse().unwrap();
        apply(Body::Report { member, actual: Some("offline".parse().unwrap()) });
    }
    cluster
}

/// And a request for all of them to go online.
fn requested_on(hosts: &[&str], spec: &str) -> Engine {
    let mut engine = Engine::new(declared(hosts, spec), "server", at(0));
    let hosts: Vec<HostName> = hosts.iter().map(|host| host.parse().unwrap()).collect();
    for host in &hosts {
        let report = Report::Hello(hello(host));
        engine.handle(at(0), Input::Report { session: session(host), report });
    }
    engine.handle(at(0), Input::Run { reply: ReplyId(1), request: request() });
    engine
}

/// What an agent of a host with the label of group a says of itself.
fn hello(host: &HostName) -> Hello {
    Hello {
        protocol: PROTOCOL,
        host: host.clone(),
        agent: "agent".parse().unwrap(),
        run: "run".parse().unwrap(),
        address: None,
        labels: [("role".to_owned(), "a".to_owned())].into(),
        reign: Default::default(),
        cluster: None,
        token: Default::default(),
        open: Vec::new(),
        noticed: Index(0),
        fences: false,
    }
}

fn request() -> Request {
    Request {
        request_id: "r".to_owned(),
        principal: "test".to_owned(),
        targets: vec!["a=online".parse().unwrap()],
        ..Request::default()
    }
}

fn outcome(engine: &Engine) -> Option<Outcome> {
    engine.acknowledged().transitions.values().next().unwrap().outcome
}

#[test]
fn a_step_that_ended_while_the_server_was_stopped_is_done() {
    let (mut engine, call) = in_a_step();
    engine.handle(at(10_000), Input::Woke { after_ms: 10_000 });
    run_until_commit(&mut engine, at(10_000));
    assert_eq!(outcome(&engine), None);
    let host = &engine.acknowledged().hosts.values().next().unwrap();
    assert_eq!(host.liveness, Liveness::Alive, "a host is not lost because the server was away");
    engine.handle(at(10_000), done(call));
    run_until_commit(&mut engine, at(10_000));
    assert_eq!(outcome(&engine), Some(Outcome::Committed));
}

#[test]
fn a_step_that_nobody_ended_in_time_is_not() {
    let (mut engine, _) = in_a_step();
    engine.handle(at(10_000), Input::Tick);
    run_until_commit(&mut engine, at(10_000));
    assert_eq!(outcome(&engine), Some(Outcome::Degraded));
}

#[test]
fn steps_that_are_ordered_while_results_wait_for_the_journal_are_told_of_all_of_them() {
    let spec = r#"{"cluster":"c",
        "groups":{"a":{"select":{"role":"a"},"handler":"sim","lifecycle":"two-steps"}},
        "lifecycles":{"two-steps":{"states":["offline","ready","online"],"serving":["online"],
            "edges":[["offline","ready"],["ready","online"],["online","offline"]]}}}"#;
    for at_once in [true, false] {
        let mut engine = requested_on(&["h1", "h2", "h3"], spec);
        let first: Vec<_> = run_until_commit(&mut engine, at(0)).into_iter().map(done).collect();
        assert_eq!(first.len(), 3);
        // Nothing is polled in between: what they have come to is one record, that grows.
        let bursts = if at_once { vec![first] } else { first.into_iter().map(|one| vec![one]).collect() };
        let mut ready = Vec::new();
        for burst in bursts {
            ready.extend(vec![ready.len() + burst.len(); burst.len()]);
            engine.handle_all(at(1), burst);
        }
        let second = run_until_commit(&mut engine, at(1));
        let told = second.iter().map(|call| {
            let members = &call.context.as_ref().unwrap().members;
            members.iter().filter(|member| member.actual.as_ref().unwrap().as_str() == "ready").count()
        });
        assert_eq!(told.collect::<Vec<_>>(), ready, "at once: {at_once}");
    }
}

#[test]
fn a_vote_that_hands_on_more_than_a_record_holds_is_a_no() {
    let mut engine = requested();
    while let Some(output) = engine.poll_output() {
        match output {
            Output::Append { .. } => engine.handle(at(0), Input::Appended),
            Output::Confirm => engine.handle(at(0), Input::Confirmed),
            Output::Order { order: Order::Call(call), .. } if call.phase == Phase::Check => {
                let Input::Report { session, report: Report::Done(mut done) } = done(call) else {
                    unreachable!()
                };
                done.findings.out.insert("much".to_owned(), "x".repeat(5 << 20).into());
                engine.handle(at(0), Input::Report { session, report: Report::Done(done) });
            }
            Output::Order { .. } | Output::Close { .. } | Output::Reply { .. } | Output::Event(_) => {}
        }
    }
    let transition = engine.acknowledged().transitions.values().next().unwrap();
    assert_eq!(transition.outcome, Some(Outcome::Aborted));
    assert_eq!(transition.cause.as_ref().unwrap().code, "vote-no");
    assert!(transition.votes.iter().all(|vote| vote.out.is_empty()));
}

#[test]
fn a_spec_that_no_record_could_hold_is_refused() {
    let names: Vec<_> =
        (0..9000).map(|group| format!("\"g{group}\":{{\"select\":{{\"role\":[{}]}}}}", values())).collect();
    let spec: SpecFile =
        serde_json::from_str(&format!(r#"{{"cluster":"c","groups":{{{}}}}}"#, names.join(","))).unwrap();
    let mut engine = Engine::new(Cluster::default(), "server", at(0));
    engine.handle(at(0), Input::Apply { reply: ReplyId(1), spec, principal: "test".to_owned() });
    let mut answer = None;
    while let Some(output) = engine.poll_output() {
        match output {
            Output::Append { .. } => engine.handle(at(0), Input::Appended),
            Output::Confirm => engine.handle(at(0), Input::Confirmed),
            Output::Reply { answer: given, .. } => answer = Some(given),
            Output::Order { .. } | Output::Close { .. } | Output::Event(_) => {}
        }
    }
    assert_eq!(answer.unwrap().unwrap_err().code, Code::TooLarge);
}

fn values() -> String {
    vec![format!("\"{}\"", "x".repeat(250)); 5].join(",")
}

/// What a member reports of itself, unasked.
fn reports(engine: &mut Engine, now: Now, state: Option<&str>) -> Vec<Body> {
    let (member, state) = ("a@h1".parse().unwrap(), state.map(|state| state.parse().unwrap()));
    let (score, reason, facts) = (None, None, Default::default());
    let report =
        Report::State { member, state, score, reason, facts, published: None, guarded: Default::default() };
    engine.handle(now, Input::Report { session: SessionId(1), report });
    written(engine, now)
}

/// The records that are to be written; they are.
fn written(engine: &mut Engine, now: Now) -> Vec<Body> {
    let mut bodies = Vec::new();
    while let Some(output) = engine.poll_output() {
        if let Output::Append { records, .. } = output {
            bodies.extend(records.into_iter().map(|record| record.body));
            engine.handle(now, Input::Appended);
        }
    }
    bodies
}

/// One host whose member is offline, and no transition.
fn idle() -> Engine {
    let (mut engine, call) = in_a_step();
    engine.handle(at(0), done(call));
    written(&mut engine, at(0));
    assert_eq!(outcome(&engine), Some(Outcome::Committed));
    engine
}

#[test]
fn a_member_that_flaps_is_recorded_once_a_second_and_its_last_state_is_not_lost() {
    let mut engine = idle();
    let mut records = 0;
    for ms in 1..=10_000 {
        records += reports(&mut engine, at(ms), Some(["offline", "online"][ms as usize % 2])).len();
    }
    assert!((9..=11).contains(&records), "{records} records of 10,000 reports in 10 s");
    // The last one was held back, and comes with the alarm clock.
    reports(&mut engine, at(10_001), Some("online"));
    reports(&mut engine, at(10_002), None);
    let due = engine.next_deadline().unwrap();
    assert!(due <= Time(11_002), "{due:?}");
    engine.handle(at(due.0), Input::Tick);
    let member = "a@h1".parse().unwrap();
    let last = Body::Report { member, actual: None };
    assert_eq!(written(&mut engine, at(due.0)), [last], "the newest state, once");
    assert!(engine.next_deadline().is_none_or(|next| next > due), "nothing is held back any more");
}

#[test]
fn a_state_that_is_as_recorded_again_is_not_recorded() {
    let mut engine = idle();
    assert_eq!(reports(&mut engine, at(1), Some("offline")).len(), 1, "the first change at once");
    assert_eq!(reports(&mut engine, at(2), Some("online")), [], "the second is held back");
    assert_eq!(reports(&mut engine, at(3), Some("offline")), [], "and is over");
    engine.handle(at(2000), Input::Tick);
    assert_eq!(written(&mut engine, at(2000)), []);
}

#[test]
fn whoever_plans_sees_what_was_held_back() {
    let mut engine = idle();
    reports(&mut engine, at(1), Some("offline"));
    reports(&mut engine, at(2), Some("online"));
    let request = Request { request_id: "again".to_owned(), ..request() };
    engine.handle(at(3), Input::Run { reply: ReplyId(2), request });
    let mut answers = Vec::new();
    while let Some(output) = engine.poll_output() {
        match output {
            Output::Append { .. } => engine.handle(at(3), Input::Appended),
            Output::Confirm => engine.handle(at(3), Input::Confirmed),
            Output::Reply { answer, .. } => answers.push(answer),
            Output::Order { .. } | Output::Close { .. } | Output::Event(_) => {}
        }
    }
    assert_eq!(answers, [Ok(Accepted::Nothing)], "it is online already");
}

#[test]
fn a_server_that_a_host_has_seen_a_later_one_of_orders_nothing_in_that_host_s_groups() {
    let spec = r#"{"cluster":"c","groups":{"a":{"select":{"role":"a"}}}}"#;
    let mut engine = requested_on(&["h1", "h2"], spec);
    let warned = |engine: &mut Engine| {
        let (mut calls, mut warnings, mut answers) = (Vec::new(), Vec::new(), Vec::new());
        while let Some(output) = engine.poll_output() {
            match output {
                Output::Append { .. } => engine.handle(at(1), Input::Appended),
                Output::Confirm => engine.handle(at(1), Input::Confirmed),
                Output::Order { order: Order::Call(call), .. } => calls.push(call),
                Output::Event(Event::Warning(message)) => warnings.push(message),
                Output::Reply { answer, .. } => answers.push(answer),
                Output::Order { .. } | Output::Close { .. } | Output::Event(_) => {}
            }
        }
        (calls, warnings, answers)
    };
    assert_eq!(warned(&mut engine).0.len(), 2, "both are asked");
    let hello = Hello { token: Token(900), ..hello(&"h2".parse().unwrap()) };
    engine.handle(at(1), Input::Report { session: SessionId(2), report: Report::Hello(hello) });
    let (calls, warnings, _) = warned(&mut engine);
    assert_eq!(calls, [], "also those of other hosts");
    assert!(warnings[0].contains("token 900"), "{warnings:?}");
    let cause = engine.acknowledged().transitions.values().next().unwrap().cause.clone();
    assert_eq!(cause.unwrap().code, "server-behind");
    let request = Request { request_id: "again".to_owned(), ..request() };
    engine.handle(at(1), Input::Run { reply: ReplyId(2), request });
    let (calls, _, answers) = warned(&mut engine);
    assert_eq!(calls, []);
    assert_eq!(answers[0].clone().unwrap_err().code, Code::ServerBehind);
}

/// What an agent has seen is a sign if it is the host's own, or the host is not known.
#[test]
fn what_a_stranger_has_seen_under_a_known_host_s_name_is_no_sign_of_a_later_server() {
    let says = |engine: &mut Engine, session, host: &str, agent: &str, (token, reign)| {
        let (agent, token, reign) = (agent.parse().unwrap(), Token(token), Reign(reign));
        let hello = Hello { agent, token, reign, ..hello(&host.parse().unwrap()) };
        engine.handle(at(1), Input::Report { session: SessionId(session), report: Report::Hello(hello) });
        refused(engine, at(1)).pop().map(|refused| refused.into_iter().map(|(.., why, _)| why).collect())
    };
    let why = |said: Option<Vec<String>>| said.unwrap_or_default().pop().unwrap_or_default();
    let is_behind = |engine: &mut Engine, reply: u64| {
        let targets = vec!["a=offline".parse().unwrap()];
        let request = Request { request_id: format!("r{reply}"), targets, ..request() };
        engine.handle(at(1), Input::Run { reply: ReplyId(reply), request });
        let mut answers = Vec::new();
        while let Some(output) = engine.poll_output() {
            match output {
                Output::Append { .. } => engine.handle(at(1), Input::Appended),
                Output::Confirm => engine.handle(at(1), Input::Confirmed),
                Output::Reply { answer, .. } => answers.push(answer),
                Output::Order { .. } | Output::Close { .. } | Output::Event(_) => {}
            }
        }
        answers.pop().unwrap().is_err_and(|rejection| rejection.code == Code::ServerBehind)
    };
    let mut engine = idle();
    let said = why(says(&mut engine, 7, "h1", "stranger", (0, 1 << 63)));
    assert!(said.contains("another agent has joined as h1"), "{said}");
    assert!(!is_behind(&mut engine, 2));

    let mut engine = idle();
    let said = why(says(&mut engine, 7, "h9", "stranger", (0, 1 << 63)));
    assert!(said.contains("reign"), "{said}");
    assert!(is_behind(&mut engine, 2), "it may be a host that another server has taken in");
    assert_eq!(says(&mut engine, 8, "h9", "agent", (0, 0)), Some(vec![]), "its own agent has seen nothing");
    assert!(!is_behind(&mut engine, 3));

    // That the journal has grown up to it meanwhile proves nothing.
    let mut engine = idle();
    let next = engine.proposed().revision.0 + 1;
    assert!(why(says(&mut engine, 7, "h1", "agent", (next, 0))).contains("token"));
    assert!(is_behind(&mut engine, 2));
    engine.handle(at(1), Input::Closed { session: SessionId(1) });
    written(&mut engine, at(1));
    assert!(engine.proposed().revision.0 >= next);
    assert_eq!(says(&mut engine, 8, "h1", "agent", (next, 0)), Some(vec![]), "it is welcome");
    assert!(is_behind(&mut engine, 3));
}

/// Its own hosts it takes whatever they say: a version from before there was an identity may have left it out of a snapshot.
#[test]
fn a_host_of_another_cluster_is_refused_and_leaves_no_trace() {
    let id = |id: &str| Some(ClusterId::new(id).unwrap());
    let defaults = Defaults { id: id("this"), lease_ms: None };
    let mut engine = Engine::with_defaults(declared(&["h1"], SPEC), "server", defaults, at(0));
    written(&mut engine, at(0));
    let before = engine.acknowledged().clone();
    assert_eq!(before.id, id("this"));
    let mut sessions = (1..).map(SessionId);
    let mut says = |host: &str, cluster: Option<ClusterId>, token: u64| {
        let hello = Hello { cluster, token: Token(token), ..hello(&host.parse().unwrap()) };
        let session = sessions.next().unwrap();
        engine.handle(at(1), Input::Report { session, report: Report::Hello(hello) });
        let mut orders = Vec::new();
        while let Some(output) = engine.poll_output() {
            match output {
                Output::Append { .. } => engine.handle(at(1), Input::Appended),
                Output::Order { order, .. } => orders.push(order),
                Output::Confirm | Output::Reply { .. } | Output::Close { .. } | Output::Event(_) => {}
            }
        }
        (orders.remove(0), engine.acknowledged().clone())
    };
    // One that has seen much there is no sign that this server is behind.
    for (host, token) in [("h2", 0), ("h1-of-it", 900)] {
        let (Order::Refused { message }, after) = says(host, id("another"), token) else { panic!("{host}") };
        assert!(message.contains("another cluster"), "{message}");
        assert_eq!(after, before);
    }
    for (host, cluster) in [("h1", id("another")), ("h1", id("this")), ("h2", id("this")), ("h3", None)] {
        let (Order::Welcome { cluster: told, .. }, _) = says(host, cluster, 1) else { panic!("{host}") };
        assert_eq!(told, id("this"));
    }
}

/// Until the host's own agent is welcome, or nobody has tried for long.
#[test]
fn whose_agents_are_refused_is_shown_for_as_long_as_they_try() {
    let defaults = || Defaults { id: Some(ClusterId::new("this").unwrap()), lease_ms: None };
    let mut engine = Engine::with_defaults(declared(&["h1"], SPEC), "server", defaults(), at(0));
    let says = |engine: &mut Engine, ms, session, agent: &str| {
        let (agent, cluster) = (agent.parse().unwrap(), Some(ClusterId::new("another").unwrap()));
        let hello = Hello { agent, cluster, ..hello(&"h1".parse().unwrap()) };
        engine.handle(at(ms), Input::Report { session: SessionId(session), report: Report::Hello(hello) });
        refused(engine, at(ms))
    };
    let shown = |ms| vec![vec![("h1".to_owned(), "it belongs to another cluster".to_owned(), WallTime(ms))]];
    assert_eq!(says(&mut engine, 10, 1, "stranger"), shown(10));
    assert_eq!(says(&mut engine, 20, 2, "stranger"), [[]; 0], "that is known");
    assert_eq!(says(&mut engine, 30, 3, "agent"), [[]], "its own");
    assert_eq!(says(&mut engine, 40, 4, "stranger"), shown(40));
    engine.handle(at(300_039), Input::Tick);
    assert_eq!(refused(&mut engine, at(300_039)), [[]; 0]);
    assert_eq!(engine.next_deadline(), Some(Time(300_040)));
    engine.handle(at(300_040), Input::Tick);
    assert_eq!(refused(&mut engine, at(300_040)), [[]]);
}

/// What is shown of refused agents, each time that it changes.
fn refused(engine: &mut Engine, now: Now) -> Vec<Vec<(String, String, WallTime)>> {
    let mut shown = Vec::new();
    while let Some(output) = engine.poll_output() {
        match output {
            Output::Append { .. } => engine.handle(now, Input::Appended),
            Output::Confirm => engine.handle(now, Input::Confirmed),
            Output::Event(Event::Refused(refused)) => {
                let all = refused.into_iter();
                shown.push(all.map(|(host, said)| (host.to_string(), said.message, said.since)).collect());
            }
            Output::Order { .. } | Output::Close { .. } | Output::Reply { .. } | Output::Event(_) => {}
        }
    }
    shown
}

#[test]
fn a_cluster_keeps_the_identity_that_it_was_given_first() {
    let id = |id: &str| Some(ClusterId::new(id).unwrap());
    let mut cluster = declared(&["h1"], SPEC);
    for given in ["first", "second"] {
        let defaults = Defaults { id: id(given), lease_ms: None };
        let mut engine = Engine::with_defaults(cluster, "server", defaults, at(0));
        written(&mut engine, at(0));
        cluster = (**engine.acknowledged()).clone();
        assert_eq!(cluster.id, id("first"));
    }
}

fn published(provides: &[&str], consumes: &[&str]) -> Report {
    let all = |names: &[&str]| names.iter().map(|name| name.parse().unwrap()).collect();
    Report::State {
        member: "a@h1".parse().unwrap(),
        state: Some("offline".parse().unwrap()),
        score: None,
        reason: None,
        facts: Default::default(),
        published: Some(Published { provides: all(provides), consumes: all(consumes) }),
        guarded: Default::default(),
    }
}

/// One member that publishes this and that, a thousand times.
#[test]
fn software_that_publishes_this_and_that_fills_no_journal() {
    let spec = r#"{"cluster":"c","groups":{"a":{"select":{"role":"a"}}}}"#;
    let mut engine = requested_on(&["h1"], spec);
    run_until_commit(&mut engine, at(0)).into_iter().for_each(|call| engine.handle(at(0), done(call)));
    run_until_commit(&mut engine, at(0));
    let before = engine.proposed().revision.0;
    for turn in 0..1000 {
        let provides: &[&str] = if turn % 2 == 0 { &["sql"] } else { &["http"] };
        let report = published(provides, &[]);
        engine.handle(at(turn), Input::Report { session: SessionId(1), report });
        run_until_commit(&mut engine, at(turn));
    }
    let recorded = engine.proposed().revision.0 - before;
    assert!(recorded <= 2, "{recorded} records in a second");
    // The last one counts, when its time has come and nothing more is heard.
    let due = engine.next_deadline().unwrap();
    assert!(due <= Time(2000), "{due:?}");
    engine.handle(at(due.0), Input::Tick);
    run_until_commit(&mut engine, at(due.0));
    let last = &engine.acknowledged().members[&"a@h1".parse().unwrap()].published;
    assert_eq!(last.provides, ["http".parse().unwrap()].into());
}

/// Labels may differ from hello to hello, so each would be a record.
#[test]
fn a_connection_says_hello_once() {
    let mut engine = requested();
    run_until_commit(&mut engine, at(0));
    let host = HostName::new("h1").unwrap();
    let report = Report::Hello(hello(&host));
    engine.handle(at(1), Input::Report { session: SessionId(1), report });
    let mut outputs = Vec::new();
    while let Some(output) = engine.poll_output() {
        outputs.push(output);
    }
    assert!(outputs.contains(&Output::Close { session: SessionId(1) }), "{outputs:?}");
}

/// A step that is under way when undo begins is ordered again, to learn its end: the same step with the same values.
#[test]
fn a_step_that_is_ordered_again_during_undo_says_what_it_said() {
    let spec = r#"{"cluster":"c","groups":{"a":{"select":{"role":"a"},"handler":"x","retries":0,"settings":{"epoch":1}}}}"#;
    let mut engine = requested_on(&["h1", "h2"], spec);
    let online = run_until_commit(&mut engine, at(0));
    online.into_iter().for_each(|call| engine.handle(at(0), done(call)));
    run_until_commit(&mut engine, at(0));
    let request =
        Request { request_id: "s".to_owned(), targets: vec!["a.epoch=2".parse().unwrap()], ..request() };
    engine.handle(at(10), Input::Run { reply: ReplyId(2), request });
    let mut calls = run_until_commit(&mut engine, at(10));
    let value = |call: &Call| call.context.as_ref().unwrap().settings[&"epoch".parse().unwrap()].clone();
    let first = calls.iter().position(|call| call.member.host.as_str() == "h1").unwrap();
    let (first, failing) = (calls.swap_remove(first), calls.pop().unwrap());
    engine.handle(at(20), Input::Closed { session: SessionId(1) });
    let Input::Report { session, report: Report::Done(answer) } = done(failing) else { unreachable!() };
    let report = Report::Done(Done { answer: Answer::No, ..answer });
    engine.handle(at(20), Input::Report { session, report });
    run_until_commit(&mut engine, at(20));
    let host = HostName::new("h1").unwrap();
    engine.handle(at(30), Input::Report { session: SessionId(1), report: Report::Hello(hello(&host)) });
    let again = run_until_commit(&mut engine, at(30)).pop().expect("it is ordered again");
    assert!(again.token > first.token, "undo has begun");
    assert_eq!((again.step, value(&again)), (first.step, value(&first)));
}

/// A large batch is cut where it is written: of an abort before `begin` the decision may be durable, and not the outcome.
#[test]
fn an_abort_whose_outcome_was_not_written_ends_in_the_next_reign() {
    let mut engine = requested();
    let mut journal = Vec::new();
    engine.handle(at(0), Input::Abort { reply: ReplyId(2), transition: TransitionId(5) });
    while let Some(output) = engine.poll_output() {
        if let Output::Append { first, records } = output {
            journal.extend((first.0..).zip(records));
            engine.handle(at(0), Input::Appended);
        }
    }
    assert_eq!(outcome(&engine), Some(Outcome::Aborted));
    let (_, decision) =
        journal.iter().find(|(_, record)| matches!(record.body, Body::Decision { .. })).unwrap();
    let Body::Decision { plan: Some(plan), .. } = &decision.body else { panic!("{decision:?}") };
    assert_eq!(plan.steps.len(), 1, "what was to be done is kept");
    let mut cluster = declared(&["h1"], SPEC);
    let lost = journal.iter().position(|(_, record)| matches!(record.body, Body::Outcome { .. })).unwrap();
    journal[..lost].iter().for_each(|(index, record)| cluster.apply(Index(*index), record));
    let mut engine = Engine::new(cluster, "server", at(1));
    assert_eq!(run_until_commit(&mut engine, at(1)), []);
    assert_eq!(outcome(&engine), Some(Outcome::Aborted));
}

/// What a host publishes may come too early: it counts as soon as it goes in no circle any more, whoever came first.
#[test]
fn what_was_not_taken_for_its_circle_is_taken_once_that_is_gone() {
    let spec =
        |b: &str| format!(r#"{{"cluster":"c","groups":{{"a":{{"select":{{"role":"a"}}}},"b":{{{b}}}}}}}"#);
    let circular = spec(r#""provides":["sql"],"consumes":["http"]"#);
    let mut engine = Engine::new(declared(&["h1"], &circular), "server", at(0));
    engine.handle(
        at(0),
        Input::Report { session: SessionId(1), report: Report::Hello(hello(&"h1".parse().unwrap())) },
    );
    let warnings = |engine: &mut Engine, now| {
        let mut warnings = 0;
        while let Some(output) = engine.poll_output() {
            match output {
                Output::Append { .. } => engine.handle(now, Input::Appended),
                Output::Confirm => engine.handle(now, Input::Confirmed),
                Output::Event(Event::Warning(_)) => warnings += 1,
                Output::Order { .. } | Output::Close { .. } | Output::Reply { .. } | Output::Event(_) => {}
            }
        }
        warnings
    };
    for (ms, told) in [(0, 1), (2000, 0), (4000, 0)] {
        let report = published(&["http"], &["sql"]);
        engine.handle(at(ms), Input::Report { session: SessionId(1), report });
        assert_eq!(warnings(&mut engine, at(ms)), told, "it is told once, at {ms} ms");
    }
    let of_a = |engine: &Engine| engine.acknowledged().members[&"a@h1".parse().unwrap()].published.clone();
    assert!(of_a(&engine).provides.is_empty(), "a would require b, which requires a");
    let apply = |engine: &mut Engine, ms, spec: &str| {
        let (spec, principal) = (serde_json::from_str(spec).unwrap(), "test".to_owned());
        engine.handle(at(ms), Input::Apply { reply: ReplyId(ms), spec, principal });
        warnings(engine, at(ms))
    };
    // Other relations change, and the circle stays.
    assert_eq!(apply(&mut engine, 5000, &circular.replace("http", "http\",\"mail")), 0);
    assert!(of_a(&engine).provides.is_empty());
    assert_eq!(apply(&mut engine, 6000, &spec(r#""provides":["sql"]"#)), 0);
    assert_eq!(of_a(&engine).provides, ["http".parse().unwrap()].into(), "nothing more was said");
    assert_eq!(engine.acknowledged().relations.pairs(), 1, "a requires b");
}

/// Its connection comes and goes a thousand times in ten seconds, each time with another label.
#[test]
fn a_host_that_comes_and_goes_fills_no_journal_and_its_last_labels_count() {
    for says_goodbye in [false, true] {
        let mut engine = idle();
        let host: HostName = "h1".parse().unwrap();
        let comes = |engine: &mut Engine, ms: u64| {
            let label = ("turn".to_owned(), ms.to_string());
            let mut hello = hello(&host);
            hello.labels.extend([label]);
            engine.handle(at(ms), Input::Report { session: SessionId(ms), report: Report::Hello(hello) });
            written(engine, at(ms))
        };
        let mut records = 0;
        for ms in (10..=10_000).step_by(10) {
            records += comes(&mut engine, ms).len();
            let session = SessionId(ms);
            let goes = Input::Report { session, report: Report::Goodbye };
            engine.handle(at(ms), if says_goodbye { goes } else { Input::Closed { session } });
            records += written(&mut engine, at(ms)).len();
        }
        assert!((20..=35).contains(&records), "{records} records of 1,000 sessions in 10 s");
        comes(&mut engine, 10_001);
        let due = engine.next_deadline().unwrap();
        assert!(due <= Time(11_001), "{due:?}");
        engine.handle(at(due.0), Input::Tick);
        written(&mut engine, at(due.0));
        let known = &engine.acknowledged().hosts[&host];
        assert_eq!((known.labels["turn"].as_str(), known.liveness), ("10001", Liveness::Alive));
        // And when it is gone for good, that is seen.
        engine.handle(at(11_001), Input::Closed { session: SessionId(10_001) });
        written(&mut engine, at(11_001));
        engine.handle(at(12_001), Input::Tick);
        written(&mut engine, at(12_001));
        assert_eq!(engine.acknowledged().hosts[&host].liveness, Liveness::Suspect);
    }
}

/// Lets a freeze be recorded; gives the records.
fn frozen(engine: &mut Engine, now: Now, end: FreezeEnd) -> Vec<Body> {
    let (groups, reason, principal) = (Default::default(), "why".to_owned(), "test".to_owned());
    engine.handle(now, Input::Freeze { reply: ReplyId(7), groups, end, reason, principal });
    written(engine, now)
}

#[test]
fn a_freeze_ends_when_the_wall_clock_says_so_and_the_alarm_clock_follows_it() {
    let mut engine = idle();
    written(&mut engine, at(0));
    let wall = |ms, wall| Now { time: Time(ms), wall: WallTime(wall) };
    assert_eq!(frozen(&mut engine, wall(1000, 5000), FreezeEnd::After(500)).len(), 1);
    assert_eq!(engine.next_deadline(), Some(Time(1500)));
    // It was set back meanwhile: not yet, and no sooner than it says.
    engine.handle(wall(1500, 5100), Input::Tick);
    assert_eq!(
        (written(&mut engine, wall(1500, 5100)), engine.next_deadline()),
        (Vec::new(), Some(Time(1900)))
    );
    // It was set forward: as soon as anybody looks.
    engine.handle(wall(1510, 5500), Input::Tick);
    let thaw = written(&mut engine, wall(1510, 5500));
    assert!(matches!(&thaw[..], [Body::Thaw { principal: None, .. }]), "{thaw:?}");
    assert!(engine.acknowledged().freezes.is_empty());
    engine.handle(wall(1520, 5500), Input::Tick);
    assert_eq!(written(&mut engine, wall(1520, 5500)), Vec::new());
}

#[test]
fn there_are_so_many_freezes_and_no_more() {
    let mut engine = idle();
    for number in 0..=FREEZES_MAX {
        let (groups, reason, principal) = (Default::default(), number.to_string(), "test".to_owned());
        let (reply, end) = (ReplyId(number as u64), FreezeEnd::Never);
        engine.handle(at(0), Input::Freeze { reply, groups, end, reason, principal });
    }
    let mut refused = Vec::new();
    let mut count = 0;
    while let Some(output) = engine.poll_output() {
        match output {
            Output::Append { .. } => engine.handle(at(0), Input::Appended),
            Output::Confirm => engine.handle(at(0), Input::Confirmed),
            Output::Reply { answer: Ok(_), .. } => count += 1,
            Output::Reply { answer: Err(rejection), .. } => refused.push(rejection.code),
            Output::Order { .. } | Output::Close { .. } | Output::Event(_) => {}
        }
    }
    assert_eq!((count, refused), (FREEZES_MAX, vec![Code::TooLarge]));
}

/// Two hosts, of which the second one can pull the first one's plug.
fn with_a_fencer() -> Engine {
    let mut engine = Engine::new(declared(&["h1", "h2"], SPEC), "server", at(0));
    comes(&mut engine, at(0), "h1");
    comes(&mut engine, at(0), "h2");
    written(&mut engine, at(0));
    engine
}

/// A host's agent connects; it has a fence handler.
fn comes(engine: &mut Engine, now: Now, host: &str) {
    let host: HostName = host.parse().unwrap();
    let report = Report::Hello(Hello { fences: true, ..hello(&host) });
    engine.handle(now, Input::Report { session: session(&host), report });
}

/// Time passes in which the second host is heard.
fn passes(engine: &mut Engine, from_ms: u64, to_ms: u64) {
    for ms in (from_ms..=to_ms).step_by(1000) {
        let report = Report::Renew { sent: Time(0), open: None, lease_ms: None };
        engine.handle(at(ms), Input::Report { session: SessionId(2), report });
        written(engine, at(ms));
    }
}

/// The first host's connection is gone at a time, and its lease over 5 s later.
fn loses_the_first(engine: &mut Engine, at_ms: u64) {
    engine.handle(at(at_ms), Input::Closed { session: SessionId(1) });
    passes(engine, at_ms, at_ms + 5000);
    let host: HostName = "h1".parse().unwrap();
    assert_eq!(engine.acknowledged().hosts[&host].liveness, Liveness::Lost);
}

/// An operator wants the first one fenced: what the other one is ordered.
fn fences_the_first(engine: &mut Engine, now: Now) -> Call {
    engine.handle(now, Input::Host { reply: ReplyId(9), host: "h1".parse().unwrap(), ask: HostAsk::Fence });
    let mut calls = Vec::new();
    while let Some(output) = engine.poll_output() {
        match output {
            Output::Append { .. } => engine.handle(now, Input::Appended),
            Output::Confirm => engine.handle(now, Input::Confirmed),
            Output::Order { session: SessionId(2), order: Order::Call(call) }
                if call.phase == Phase::Fence =>
            {
                calls.push(call);
            }
            Output::Order { .. } | Output::Close { .. } | Output::Reply { .. } | Output::Event(_) => {}
        }
    }
    calls.pop().expect("it is to be fenced")
}

/// The second host says yes to a fence call.
fn has_fenced(engine: &mut Engine, now: Now, call: Call) -> Vec<Body> {
    let Input::Report { report, .. } = done(call) else { unreachable!("it is a report") };
    engine.handle(now, Input::Report { session: SessionId(2), report });
    written(engine, now)
}

#[test]
fn a_host_may_be_forgotten_while_it_is_being_fenced() {
    let mut engine = with_a_fencer();
    loses_the_first(&mut engine, 0);
    let call = fences_the_first(&mut engine, at(5000));
    let ask = HostAsk::Forget { is_stopped: true };
    engine.handle(at(5100), Input::Host { reply: ReplyId(10), host: "h1".parse().unwrap(), ask });
    let mut answers = Vec::new();
    while let Some(output) = engine.poll_output() {
        match output {
            Output::Append { .. } => engine.handle(at(5100), Input::Appended),
            Output::Reply { reply, answer } => {
                answers.push((reply, answer.map_err(|rejection| rejection.code)))
            }
            Output::Confirm | Output::Order { .. } | Output::Close { .. } | Output::Event(_) => {}
        }
    }
    let revision = engine.acknowledged().revision;
    let expected = [(ReplyId(9), Err(Code::UnknownHost)), (ReplyId(10), Ok(Accepted::Host(revision)))];
    assert_eq!(answers, expected, "whoever waits for the fencing is told");
    assert_eq!(has_fenced(&mut engine, at(5200), call), [], "there is no such host any more");
}

#[test]
fn whoever_has_a_host_fenced_is_told_when_somebody_else_makes_sure() {
    let mut engine = with_a_fencer();
    loses_the_first(&mut engine, 0);
    fences_the_first(&mut engine, at(5000));
    let ask = HostAsk::Fenced { principal: "test".to_owned(), reason: "its plug is in my hand".to_owned() };
    engine.handle(at(5100), Input::Host { reply: ReplyId(10), host: "h1".parse().unwrap(), ask });
    let mut told = Vec::new();
    while let Some(output) = engine.poll_output() {
        match output {
            Output::Append { .. } => engine.handle(at(5100), Input::Appended),
            Output::Reply { reply, answer } => told.push((reply, answer.is_ok())),
            Output::Confirm | Output::Order { .. } | Output::Close { .. } | Output::Event(_) => {}
        }
    }
    assert_eq!(told, [(ReplyId(9), true), (ReplyId(10), true)]);
}

/// The answer to one call is none to a later one: the host has been back in between.
#[test]
fn a_fence_handler_that_answers_late_says_nothing_of_a_host_that_came_back_since() {
    let mut engine = with_a_fencer();
    loses_the_first(&mut engine, 0);
    let early = fences_the_first(&mut engine, at(5000));
    // It takes so long that it is given up; the host has booted meanwhile, and is lost once more.
    passes(&mut engine, 5000, 66_000);
    comes(&mut engine, at(66_000), "h1");
    written(&mut engine, at(66_000));
    loses_the_first(&mut engine, 67_000);
    let late = fences_the_first(&mut engine, at(72_000));
    assert_eq!(has_fenced(&mut engine, at(72_100), early), [], "that was before");
    let told = has_fenced(&mut engine, at(72_200), late);
    assert!(matches!(&told[..], [Body::Host { .. }, ..]), "{told:?}");
}

/// What a member says of its guard, time and again.
#[test]
fn a_guard_that_is_said_to_be_here_and_there_fills_no_journal() {
    let leased = r#"{"cluster":"c","groups":{"a":{"select":{"role":"a"},"recover":"lease"}}}"#;
    let mut engine = Engine::new(declared(&["h1"], leased), "server", at(0));
    comes(&mut engine, at(0), "h1");
    written(&mut engine, at(0));
    let mut records = 0;
    for ms in 1..=10_000 {
        let (member, state) = ("a@h1".parse().unwrap(), None);
        let (score, reason, facts) = (None, None, Default::default());
        let guarded = [["online", "offline"][ms as usize % 2].parse().unwrap()].into();
        let report = Report::State { member, state, score, reason, facts, published: None, guarded };
        engine.handle(at(ms), Input::Report { session: SessionId(1), report });
        let written = written(&mut engine, at(ms));
        records += written.iter().filter(|body| matches!(body, Body::Host { .. })).count();
    }
    assert!((9..=21).contains(&records), "{records} records of 10,000 reports in 10 s");
}

/// Agents turn away from a server that stands still, and pause between their tries to come back.
#[test]
fn a_server_that_stood_still_gives_its_hosts_a_whole_lease_to_come_back() {
    let host: HostName = "h1".parse().unwrap();
    let mut engine = Engine::new(declared(&["h1"], SPEC), "server", at(0));
    comes(&mut engine, at(0), "h1");
    written(&mut engine, at(0));
    engine.handle(at(30_000), Input::Woke { after_ms: 29_000 });
    engine.handle(at(30_000), Input::Closed { session: SessionId(1) });
    for (ms, liveness) in [(33_149, Liveness::Suspect), (33_150, Liveness::Lost)] {
        engine.handle(at(ms), Input::Tick);
        written(&mut engine, at(ms));
        assert_eq!(engine.acknowledged().hosts[&host].liveness, liveness, "{ms}");
    }
}

/// On a shared store, hosts outlast a take-over: their lease is a longer one, and each server that takes over gives them
/// all of it to come.
#[test]
fn hosts_have_a_whole_lease_to_come_to_a_server_that_takes_over() {
    let host: HostName = "h1".parse().unwrap();
    let liveness = |engine: &Engine| engine.acknowledged().hosts[&host].liveness;
    let mut cluster = declared(&["h1"], SPEC);
    for start in [0, 100_000] {
        let mut engine = Engine::with_defaults(cluster, "server", lease(6000), at(start));
        // Another server may have answered renewals until the reign is recorded.
        written(&mut engine, at(start + 2000));
        assert_eq!(engine.acknowledged().lease_ms(), 6000);
        for (ms, expected) in [(8299, Liveness::Alive), (8300, Liveness::Lost)] {
            engine.handle(at(start + ms), Input::Tick);
            written(&mut engine, at(start + ms));
            assert_eq!(liveness(&engine), expected, "{ms}");
        }
        comes(&mut engine, at(start + 9000), "h1");
        written(&mut engine, at(start + 9000));
        assert_eq!(liveness(&engine), Liveness::Alive);
        cluster = (**engine.acknowledged()).clone();
    }
    // A server on a disk of its own, to which it is restored: hosts may still go by the longer one.
    let mut engine = Engine::new(cluster, "server", at(200_000));
    written(&mut engine, at(200_000));
    assert_eq!(engine.acknowledged().lease_ms(), 3000);
    for (ms, expected) in [(206_299, Liveness::Alive), (206_300, Liveness::Lost)] {
        engine.handle(at(ms), Input::Tick);
        written(&mut engine, at(ms));
        assert_eq!(liveness(&engine), expected, "{ms}");
    }
}

/// It counts as alive until then, and whoever asks can tell whether it has come.
#[test]
fn hosts_are_heard_once_they_have_come_to_this_server() {
    let mut engine = Engine::new(declared(&["h1", "h2"], SPEC), "server", at(0));
    written(&mut engine, at(0));
    assert!(engine.heard().is_empty());
    comes(&mut engine, at(1), "h1");
    written(&mut engine, at(1));
    let heard = [HostName::new("h1").unwrap()].into();
    assert_eq!(**engine.heard(), heard);
    engine.handle(at(2), Input::Closed { session: SessionId(1) });
    assert_eq!(**engine.heard(), heard);
    let hosts = &engine.acknowledged().hosts;
    assert_eq!(hosts[&HostName::new("h2").unwrap()].liveness, Liveness::Alive);
}

/// What is declared counts, whatever the store.
#[test]
fn a_declared_lease_goes_before_that_of_the_store() {
    let spec = r#"{"cluster":"c","lease_ms":1000,"groups":{"a":{"select":{"role":"a"}}}}"#;
    let mut engine = Engine::with_defaults(declared(&["h1"], spec), "server", lease(6000), at(0));
    written(&mut engine, at(0));
    assert_eq!(engine.acknowledged().lease_ms(), 1000);
}

type Answers = Vec<(ReplyId, Result<Accepted, Code>)>;

/// What comes out while the store answers only when the test says so: how often it is asked, and what operators are told.
fn asked_and_answered(engine: &mut Engine) -> (usize, Answers) {
    let (mut questions, mut answers) = (0, Vec::new());
    while let Some(output) = engine.poll_output() {
        match output {
            Output::Confirm => questions += 1,
            Output::Reply { reply, answer } => {
                answers.push((reply, answer.map_err(|rejection| rejection.code)))
            }
            Output::Append { .. } | Output::Order { .. } | Output::Close { .. } | Output::Event(_) => {}
        }
    }
    (questions, answers)
}

/// A server that has been deposed and does not know it would refuse what the next one has accepted by then.
#[test]
fn what_writes_nothing_is_answered_once_the_reign_has_been_confirmed_since_it_was_asked() {
    let mut engine = idle();
    let ask = |engine: &mut Engine, reply, target: &str| {
        let targets = vec![target.parse().unwrap()];
        let request = Request { request_id: format!("r{reply}"), targets, ..request() };
        engine.handle(at(1), Input::Run { reply: ReplyId(reply), request });
    };
    ask(&mut engine, 1, "a=online");
    assert_eq!(asked_and_answered(&mut engine), (1, vec![]), "there is nothing to do");
    // Too late for the question that is on its way: the next one serves both.
    ask(&mut engine, 2, "b=online");
    ask(&mut engine, 3, "a=online");
    assert_eq!(asked_and_answered(&mut engine), (0, vec![]));
    engine.handle(at(2), Input::Confirmed);
    assert_eq!(asked_and_answered(&mut engine), (1, vec![(ReplyId(1), Ok(Accepted::Nothing))]));
    engine.handle(at(3), Input::Confirmed);
    let both = vec![(ReplyId(2), Err(Code::UnknownGroup)), (ReplyId(3), Ok(Accepted::Nothing))];
    assert_eq!(asked_and_answered(&mut engine), (0, both));
    // What is written needs no question: the store takes no write of whoever is deposed.
    let (groups, reason, principal) = (["a".parse().unwrap()].into(), "audit".to_owned(), "test".to_owned());
    engine
        .handle(at(3), Input::Freeze { reply: ReplyId(4), groups, end: FreezeEnd::Never, reason, principal });
    assert_eq!(asked_and_answered(&mut engine), (0, vec![]));
    // But that write may have been done by when this one comes.
    ask(&mut engine, 5, "b=online");
    assert_eq!(asked_and_answered(&mut engine).1, []);
    engine.handle(at(4), Input::Appended);
    let (questions, answers) = asked_and_answered(&mut engine);
    assert!(matches!(answers[..], [(ReplyId(4), Ok(Accepted::Freezes(_)))]), "{answers:?}");
    assert_eq!(questions, 1);
    engine.handle(at(5), Input::Confirmed);
    assert_eq!(asked_and_answered(&mut engine).1, [(ReplyId(5), Err(Code::UnknownGroup))]);
}
