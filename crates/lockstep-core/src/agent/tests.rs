use super::*;
use crate::id::{StepId, Token};

pub(super) fn assignment(member: &MemberId) -> Assignment {
    let (handler, lowest) = (HandlerName::new("sim").unwrap(), StateName::new("offline").unwrap());
    Assignment { member: member.clone(), handler, lowest, leased: BTreeSet::new() }
}

pub(super) fn folded(records: &[AgentRecord]) -> AgentState {
    let mut state = AgentState::default();
    records.iter().for_each(|record| state.apply(record));
    state
}

fn agent(state: AgentState, now: Time) -> AgentEngine {
    let identity = Identity {
        host: HostName::new("p").unwrap(),
        agent: AgentId::new("id").unwrap(),
        run: RunId::new("run").unwrap(),
        address: None,
        labels: BTreeMap::new(),
    };
    let rules = HandlerRules {
        phases: Phase::ALL.into(),
        timeout_ms: BTreeMap::new(),
        status_ms: 1000,
        checks_tokens: false,
    };
    let rules = BTreeMap::from([(HandlerName::new("sim").unwrap(), rules)]);
    AgentEngine::new(identity, rules, state, now, None)
}

/// An agent that starts at `now`, over a hold that was to last from 100 s for 5 s.
fn releases(now: Time) -> bool {
    let member: MemberId = "pool@p".parse().unwrap();
    let state = folded(&[
        AgentRecord::Identity { agent: AgentId::new("id").unwrap() },
        AgentRecord::Assigned { members: vec![assignment(&member)] },
        AgentRecord::Held { transition: TransitionId(7), member, until: Time(105_000), hold_ms: 5000 },
    ]);
    let mut engine = agent(state, now);
    engine.handle(now, AgentInput::Tick);
    std::iter::from_fn(|| engine.poll_output())
        .any(|output| matches!(output, AgentOutput::Run { order, .. } if order.phase == Phase::Release))
}

#[test]
fn an_overdue_hold_is_let_go_at_the_start_without_a_server() {
    assert!(!releases(Time(100_000)), "it has just begun");
    assert!(!releases(Time(104_999)), "it is not over yet");
    assert!(releases(Time(105_000)), "it is over");
    assert!(releases(Time(90_000)), "the host has booted since: its clock is void");
}

/// Lets everything out; tells the states that were reported, and which handlers were started.
fn told(engine: &mut AgentEngine, now: Time) -> (Vec<Option<StateName>>, Vec<CallId>) {
    let (mut states, mut calls) = (Vec::new(), Vec::new());
    while let Some(output) = engine.poll_output() {
        match output {
            AgentOutput::Append(_) => engine.handle(now, AgentInput::Appended),
            AgentOutput::Send(Report::State { state, .. }) => states.push(state),
            AgentOutput::Run { call, .. } => calls.push(call),
            AgentOutput::Send(_)
            | AgentOutput::Joined
            | AgentOutput::Disconnect(_)
            | AgentOutput::Kill(_)
            | AgentOutput::Guard { .. }
            | AgentOutput::Warning(_) => {}
        }
    }
    (states, calls)
}

#[test]
fn a_member_that_comes_back_while_its_handler_is_at_work_is_reported() {
    let member: MemberId = "db@p".parse().unwrap();
    let lowest = assignment(&member).lowest;
    let members = || vec![assignment(&member)];
    let mut engine = agent(AgentState::default(), Time(0));
    let findings = || Findings { state: Some(lowest.clone()), ..Findings::default() };
    let ended = |call| AgentInput::Ended { call, answer: Answer::Yes, reason: None, findings: findings() };

    engine.handle(Time(0), AgentInput::Connected);
    let welcome = Order::Welcome { reign: Reign(1), cluster: None, lease_ms: 3000, members: members() };
    engine.handle(Time(0), AgentInput::Order(welcome));
    let (_, calls) = told(&mut engine, Time(0));
    engine.handle(Time(10), ended(calls[0]));
    assert_eq!(told(&mut engine, Time(10)).0, [Some(lowest.clone())]);

    engine.handle(Time(1900), AgentInput::Tick);
    let (_, calls) = told(&mut engine, Time(1900));
    for members in [Vec::new(), members()] {
        engine.handle(Time(1900), AgentInput::Order(Order::Assign { members }));
    }
    engine.handle(Time(2010), ended(calls[0]));
    let (states, _) = told(&mut engine, Time(2010));
    assert_eq!(states, [Some(lowest.clone())], "the server has forgotten what it was told before");
}

/// What an agent wants of others than the server.
#[derive(Debug, PartialEq, Default)]
struct Wanted {
    runs: Vec<(CallId, Phase)>,
    kills: Vec<CallId>,
    /// When the guard is to act, and on how many processes.
    guards: Vec<(u64, usize)>,
    /// In how many states members were said to be guarded.
    guarded: Vec<usize>,
}

/// Lets everything out.
fn wanted(engine: &mut AgentEngine, now: Time) -> Wanted {
    let mut wanted = Wanted::default();
    while let Some(output) = engine.poll_output() {
        match output {
            AgentOutput::Append(_) => engine.handle(now, AgentInput::Appended),
            AgentOutput::Run { call, order, .. } => wanted.runs.push((call, order.phase)),
            AgentOutput::Guard { at: _, until, pids } => {
                wanted.guards.push((until.0, pids.values().map(BTreeSet::len).sum()));
            }
            AgentOutput::Send(Report::State { guarded, .. } | Report::Guarded { states: guarded, .. }) => {
                wanted.guarded.push(guarded.len())
            }
            AgentOutput::Kill(call) => wanted.kills.push(call),
            AgentOutput::Send(_)
            | AgentOutput::Joined
            | AgentOutput::Disconnect(_)
            | AgentOutput::Warning(_) => {}
        }
    }
    wanted
}

/// A host that had no need of a lease, and whose last one is long over, is told that it needs one: its software was
/// stopped once, for an end that was no news.
#[test]
fn software_that_runs_before_its_first_lease_is_left_alone() {
    let member: MemberId = "db@p".parse().unwrap();
    let online = StateName::new("online").unwrap();
    for is_old in [false, true] {
        let mut engine = agent(AgentState::default(), Time(0));
        engine.handle(Time(0), AgentInput::Connected);
        let welcome = |members| {
            AgentInput::Order(Order::Welcome { reign: Reign(1), cluster: None, lease_ms: 3000, members })
        };
        if is_old {
            engine.handle(Time(0), welcome(vec![assignment(&member)]));
            let renewed = |sent| AgentInput::Order(Order::Renewed { sent: Time(sent), lease_ms: None });
            engine.handle(Time(1), renewed(0));
            let runs = wanted(&mut engine, Time(1)).runs;
            let findings = Findings { state: Some(online.clone()), ..Findings::default() };
            let (answer, reason) = (Answer::Yes, None);
            engine.handle(Time(2), AgentInput::Ended { call: runs[0].0, answer, reason, findings });
            wanted(&mut engine, Time(2));
            engine.handle(Time(3), AgentInput::Disconnected);
            wanted(&mut engine, Time(3));
        }
        let back = 100_000;
        engine.handle(Time(back), AgentInput::Connected);
        let needs = Assignment { leased: BTreeSet::from([online.clone()]), ..assignment(&member) };
        engine.handle(Time(back), welcome(vec![needs]));
        let Wanted { runs, guards, .. } = wanted(&mut engine, Time(back));
        let phases: Vec<_> = runs.iter().map(|(_, phase)| *phase).collect();
        assert_eq!((phases, guards), (vec![Phase::Status], vec![]), "{is_old}");
        let pids = Some(BTreeSet::from([7]));
        let findings = || Findings { state: Some(online.clone()), pids: pids.clone(), ..Findings::default() };
        let ended =
            |call| AgentInput::Ended { call, answer: Answer::Yes, reason: None, findings: findings() };
        engine.handle(Time(back + 10), ended(runs[0].0));
        let said = Wanted { guarded: vec![0], ..Wanted::default() };
        assert_eq!(wanted(&mut engine, Time(back + 10)), said, "{is_old}");
        let renewed = Order::Renewed { sent: Time(back), lease_ms: None };
        engine.handle(Time(back + 20), AgentInput::Order(renewed));
        assert_eq!(wanted(&mut engine, Time(back + 20)).guards, [(back + 3000, 1)], "{is_old}");
        let members = BTreeSet::from([member.clone()]);
        engine.handle(Time(back + 30), AgentInput::Guarded { members, early_ms: 0 });
        let runs = wanted(&mut engine, Time(back + 30)).runs;
        engine.handle(Time(back + 40), ended(runs[0].0));
        assert_eq!(wanted(&mut engine, Time(back + 40)).guarded, [1], "{is_old}");
        // Somebody starts it again after the lease has ended. The guard knows nothing of that before the next one.
        engine.handle(Time(back + 2700), AgentInput::Tick);
        let runs = wanted(&mut engine, Time(back + 2700)).runs;
        assert_eq!(runs.iter().map(|(_, phase)| *phase).collect::<Vec<_>>(), [Phase::Stop], "{is_old}");
        engine.handle(Time(back + 2710), ended(runs[0].0));
        engine.handle(Time(back + 2720), AgentInput::Disconnected);
        engine.handle(Time(back + 9000), AgentInput::Connected);
        let needs = Assignment { leased: BTreeSet::from([online.clone()]), ..assignment(&member) };
        engine.handle(Time(back + 9000), welcome(vec![needs]));
        let runs = wanted(&mut engine, Time(back + 9000)).runs;
        engine.handle(Time(back + 9010), ended(runs[0].0));
        assert_eq!(wanted(&mut engine, Time(back + 9010)).guarded, [0], "{is_old}");
    }
}

/// The agent was killed when a step's handler had done its work and had not ended; the server is away since.
#[test]
fn who_was_on_its_way_when_the_agent_died_is_stopped_when_the_lease_ends() {
    let member: MemberId = "db@p".parse().unwrap();
    let [offline, standby, primary] =
        ["offline", "standby", "primary"].map(|name| StateName::new(name).unwrap());
    let (transition, step) = (TransitionId(7), StepId(0));
    let leased = Assignment { leased: BTreeSet::from([primary]), ..assignment(&member) };
    let confirmed = |state: &StateName| AgentRecord::State { member: member.clone(), state: state.clone() };
    let begun = AgentRecord::Started { transition, member: member.clone(), step, phase: Phase::Commit };
    for (is_begun, state, stops) in [(false, &standby, 0), (true, &standby, 1), (true, &offline, 1)] {
        let mut records = vec![AgentRecord::Assigned { members: vec![leased.clone()] }, confirmed(state)];
        records.extend(is_begun.then(|| begun.clone()));
        let mut engine = agent(folded(&records), Time(5000));
        engine.handle(Time(5000), AgentInput::Tick);
        let runs = wanted(&mut engine, Time(5000)).runs;
        let phases: Vec<_> = runs.iter().map(|(_, phase)| *phase).collect();
        assert_eq!(phases, vec![Phase::Stop; stops], "{state}, {is_begun}");
    }
}

/// A step may leave other processes than it found, and its transition may go on for long: the guard is told at once.
#[test]
fn whom_a_step_started_is_named_to_the_guard_before_its_transition_ends() {
    let member: MemberId = "db@p".parse().unwrap();
    let primary = StateName::new("primary").unwrap();
    for named in [false, true] {
        let leased = Assignment { leased: BTreeSet::from([primary.clone()]), ..assignment(&member) };
        let mut engine = agent(AgentState::default(), Time(0));
        engine.handle(Time(0), AgentInput::Connected);
        let members = vec![leased];
        let welcome = Order::Welcome { reign: Reign(1), cluster: None, lease_ms: 3000, members };
        engine.handle(Time(0), AgentInput::Order(welcome));
        let renewed = Order::Renewed { sent: Time(0), lease_ms: None };
        engine.handle(Time(1), AgentInput::Order(renewed));
        let ended = |call, pids| {
            let findings = Findings { pids, ..Findings::default() };
            AgentInput::Ended { call, answer: Answer::Yes, reason: None, findings }
        };
        let old = Some(BTreeSet::from([7]));
        let runs = wanted(&mut engine, Time(1)).runs;
        engine.handle(Time(2), ended(runs[0].0, old));
        assert_eq!(wanted(&mut engine, Time(2)).guards, [(3000, 1)]);
        let (transition, step) = (Some(TransitionId(7)), Some(StepId(0)));
        let own = engine.own_call(&member, Phase::Commit);
        for phase in [Phase::Prepare, Phase::Commit] {
            let step = step.filter(|_| phase == Phase::Commit);
            let call = Call { phase, transition, step, to: Some(primary.clone()), ..own.clone() };
            engine.handle(Time(3), AgentInput::Order(Order::Call(call)));
            let runs = wanted(&mut engine, Time(3)).runs;
            let new = Some(BTreeSet::from([8, 9])).filter(|_| named && phase == Phase::Commit);
            engine.handle(Time(4), ended(runs[0].0, new));
        }
        let said = wanted(&mut engine, Time(4));
        if named {
            assert_eq!((said.runs, said.guards), (Vec::new(), vec![(3000, 2)]), "nobody has to be asked");
            continue;
        }
        assert_eq!(said.runs.iter().map(|(_, phase)| *phase).collect::<Vec<_>>(), [Phase::Status]);
        engine.handle(Time(5), ended(said.runs[0].0, Some(BTreeSet::from([8, 9]))));
        assert_eq!(wanted(&mut engine, Time(5)).guards, [(3000, 2)]);
    }
}

/// The answer that brings a shorter lease, or the first one, was so long on its way that this lease is over.
#[test]
fn a_renewal_that_comes_too_late_ends_no_lease() {
    let member: MemberId = "db@p".parse().unwrap();
    let primary = StateName::new("primary").unwrap();
    let leased = Assignment { leased: BTreeSet::from([primary]), ..assignment(&member) };
    for is_first in [false, true] {
        let mut engine = agent(AgentState::default(), Time(0));
        engine.handle(Time(0), AgentInput::Connected);
        let welcome = Order::Welcome {
            reign: Reign(1),
            cluster: None,
            lease_ms: 10_000,
            members: vec![leased.clone()],
        };
        engine.handle(Time(0), AgentInput::Order(welcome));
        let renewed = |sent, lease_ms| AgentInput::Order(Order::Renewed { sent: Time(sent), lease_ms });
        if !is_first {
            engine.handle(Time(1), renewed(0, None));
        }
        wanted(&mut engine, Time(1));
        engine.handle(Time(5000), renewed(1000, Some(3000)));
        let said = wanted(&mut engine, Time(5000));
        assert!(said.runs.iter().all(|(_, phase)| *phase != Phase::Stop), "{is_first}: {said:?}");
        assert!(said.guards.iter().all(|(until, _)| *until > 5000), "{is_first}: {said:?}");
    }
}

/// A server was restored from a backup of before a transition. What its members voted on is no reason to say nothing of them.
#[test]
fn members_of_a_transition_that_the_server_does_not_know_are_reported() {
    let member: MemberId = "db@p".parse().unwrap();
    let lowest = assignment(&member).lowest;
    let id = TransitionId(7);
    let members = || vec![assignment(&member)];
    let mut engine = agent(AgentState::default(), Time(0));
    let welcome = || {
        AgentInput::Order(Order::Welcome {
            reign: Reign(1),
            cluster: None,
            lease_ms: 3000,
            members: members(),
        })
    };
    let ended = |call| {
        let findings = Findings { state: Some(lowest.clone()), ..Findings::default() };
        AgentInput::Ended { call, answer: Answer::Yes, reason: None, findings }
    };
    engine.handle(Time(0), AgentInput::Connected);
    engine.handle(Time(0), welcome());
    let (_, calls) = told(&mut engine, Time(0));
    engine.handle(Time(1), ended(calls[0]));
    let check = Call { transition: Some(id), ..engine.own_call(&member, Phase::Check) };
    engine.handle(Time(2), AgentInput::Order(Order::Call(check)));
    let (_, calls) = told(&mut engine, Time(2));
    engine.handle(Time(3), ended(calls[0]));
    told(&mut engine, Time(3));

    engine.handle(Time(10), AgentInput::Disconnected);
    engine.handle(Time(20), AgentInput::Connected);
    engine.handle(Time(20), welcome());
    assert_eq!(told(&mut engine, Time(20)), (Vec::new(), Vec::new()), "it is driven");
    engine.handle(Time(21), AgentInput::Order(Order::Outcome { transition: id, outcome: None }));
    let (_, calls) = told(&mut engine, Time(21));
    engine.handle(Time(22), ended(calls[0]));
    assert_eq!(told(&mut engine, Time(22)).0, [Some(lowest.clone())]);
}

/// A release hangs when the guard ends, and later the lease: the server is told of the one at once, and the member is
/// stopped at the other, before its clients are let go.
#[test]
fn a_release_that_hangs_keeps_neither_news_of_the_guard_nor_the_stop_waiting() {
    let member: MemberId = "db@p".parse().unwrap();
    let primary = StateName::new("primary").unwrap();
    let leased = Assignment { leased: BTreeSet::from([primary.clone()]), ..assignment(&member) };
    let mut engine = agent(AgentState::default(), Time(0));
    let phases = |wanted: &Wanted| wanted.runs.iter().map(|(_, phase)| *phase).collect::<Vec<_>>();
    let ended = |call, answer, is_status: bool| {
        let state = Some(primary.clone()).filter(|_| is_status);
        let pids = Some(BTreeSet::from([7])).filter(|_| is_status);
        let findings = Findings { state, pids, ..Findings::default() };
        AgentInput::Ended { call, answer, reason: None, findings }
    };
    engine.handle(Time(0), AgentInput::Connected);
    let welcome = Order::Welcome { reign: Reign(1), cluster: None, lease_ms: 3000, members: vec![leased] };
    engine.handle(Time(0), AgentInput::Order(welcome));
    engine.handle(Time(1), AgentInput::Order(Order::Renewed { sent: Time(0), lease_ms: None }));
    let runs = wanted(&mut engine, Time(1)).runs;
    engine.handle(Time(2), ended(runs[0].0, Answer::Yes, true));
    let guarded = |members| AgentInput::Guarded { members, early_ms: 0 };
    engine.handle(Time(3), guarded(BTreeSet::from([member.clone()])));
    let runs = wanted(&mut engine, Time(3)).runs;
    engine.handle(Time(4), ended(runs[0].0, Answer::Yes, true));
    assert_eq!(wanted(&mut engine, Time(4)).guarded, [1]);

    let transition = Some(TransitionId(7));
    let own = engine.own_call(&member, Phase::Hold);
    for phase in [Phase::Hold, Phase::Release] {
        let call = Call { phase, transition, hold_ms: Some(60_000), ..own.clone() };
        engine.handle(Time(5), AgentInput::Order(Order::Call(call)));
        let said = wanted(&mut engine, Time(5));
        assert_eq!(phases(&said), [phase]);
        if phase == Phase::Hold {
            engine.handle(Time(6), ended(said.runs[0].0, Answer::Yes, false));
        }
    }
    engine.handle(Time(10), guarded(BTreeSet::new()));
    assert_eq!(wanted(&mut engine, Time(10)).guarded, [0], "while the release is at work");

    let release = engine.queues[&member].running.as_ref().map(|(call, _)| *call).unwrap();
    engine.handle(Time(2700), AgentInput::Tick);
    assert_eq!(wanted(&mut engine, Time(2700)).kills, [release]);
    engine.handle(Time(2710), ended(release, Answer::No, false));
    let said = wanted(&mut engine, Time(2710));
    assert_eq!(phases(&said), [Phase::Stop]);
    engine.handle(Time(2720), ended(said.runs[0].0, Answer::Yes, false));
    let said = wanted(&mut engine, Time(2720));
    assert_eq!(phases(&said), [Phase::Status], "asked for when the guard ended");
    engine.handle(Time(2730), ended(said.runs[0].0, Answer::Yes, false));
    engine.handle(Time(4000), AgentInput::Tick);
    assert_eq!(phases(&wanted(&mut engine, Time(4000))), [Phase::Release]);
}

/// At nine tenths of the lease what is at work for a member that runs by it is killed; what is at work for another is not.
#[test]
fn at_the_end_of_a_lease_only_the_handlers_of_those_that_run_by_it_are_killed() {
    let primary = StateName::new("primary").unwrap();
    for is_leased in [true, false] {
        let member: MemberId = "db@p".parse().unwrap();
        let leased = BTreeSet::from([primary.clone()]).into_iter().filter(|_| is_leased).collect();
        let mut engine = agent(AgentState::default(), Time(0));
        engine.handle(Time(0), AgentInput::Connected);
        let members = vec![Assignment { leased, ..assignment(&member) }];
        let welcome = Order::Welcome { reign: Reign(1), cluster: None, lease_ms: 3000, members };
        engine.handle(Time(0), AgentInput::Order(welcome));
        engine.handle(Time(1), AgentInput::Order(Order::Renewed { sent: Time(0), lease_ms: None }));
        let runs = wanted(&mut engine, Time(1)).runs;
        let findings = Findings { state: Some(primary.clone()), ..Findings::default() };
        let ended = AgentInput::Ended { call: runs[0].0, answer: Answer::Yes, reason: None, findings };
        engine.handle(Time(2), ended);
        let status = wanted(&mut engine, Time(2)).runs;
        assert_eq!(status, [], "it has just said where it is");
        let transition = Some(TransitionId(7));
        let to = Some(StateName::new("offline").unwrap());
        let own = engine.own_call(&member, Phase::Commit);
        let commit = Call { transition, to, within_ms: 60_000, ..own };
        engine.handle(Time(3), AgentInput::Order(Order::Call(commit)));
        let runs = wanted(&mut engine, Time(3)).runs;
        assert_eq!(runs.iter().map(|(_, phase)| *phase).collect::<Vec<_>>(), [Phase::Commit]);
        let killed = [2699, 2700, 4000].map(|at| {
            engine.handle(Time(at), AgentInput::Tick);
            wanted(&mut engine, Time(at)).kills.len()
        });
        assert_eq!(killed, if is_leased { [0, 1, 0] } else { [0; 3] });
    }
}

/// Of a resource that refuses what comes under a lower token it is known that nothing is done after the lease: no process has
/// to be named.
#[test]
fn a_member_of_a_resource_that_checks_tokens_is_guarded_by_that() {
    let (member, primary): (MemberId, _) = ("db@p".parse().unwrap(), StateName::new("primary").unwrap());
    for checks_tokens in [true, false] {
        let mut engine = agent(AgentState::default(), Time(0));
        engine.rules.values_mut().for_each(|rules| rules.checks_tokens = checks_tokens);
        engine.handle(Time(0), AgentInput::Connected);
        let members = vec![Assignment { leased: BTreeSet::from([primary.clone()]), ..assignment(&member) }];
        let welcome = Order::Welcome { reign: Reign(1), cluster: None, lease_ms: 3000, members };
        engine.handle(Time(0), AgentInput::Order(welcome));
        let runs = wanted(&mut engine, Time(1)).runs;
        let findings = Findings { state: Some(primary.clone()), ..Findings::default() };
        let ended = AgentInput::Ended { call: runs[0].0, answer: Answer::Yes, reason: None, findings };
        engine.handle(Time(2), ended);
        assert_eq!(wanted(&mut engine, Time(2)).guarded, [usize::from(checks_tokens)]);
    }
}

/// The lease ends without a server, and a stop hangs. A guard that is lost then has another in its place, which hears
/// what the first one was told, however late it is; and one that cannot be started is tried again after a pause.
#[test]
fn a_lost_guard_is_replaced_when_the_lease_is_over_too() {
    let member: MemberId = "db@p".parse().unwrap();
    let primary = StateName::new("primary").unwrap();
    let leased = Assignment { leased: BTreeSet::from([primary.clone()]), ..assignment(&member) };
    let mut engine = agent(AgentState::default(), Time(0));
    engine.handle(Time(0), AgentInput::GuardLost);
    assert_eq!(wanted(&mut engine, Time(0)).guards, [], "there is nobody to guard");
    engine.handle(Time(0), AgentInput::Connected);
    let welcome = Order::Welcome { reign: Reign(1), cluster: None, lease_ms: 3000, members: vec![leased] };
    engine.handle(Time(0), AgentInput::Order(welcome));
    engine.handle(Time(1), AgentInput::Order(Order::Renewed { sent: Time(0), lease_ms: None }));
    let status = wanted(&mut engine, Time(1)).runs[0].0;
    let ended = |call, pid| {
        let (state, pids) = (Some(primary.clone()), Some(BTreeSet::from([pid])));
        let findings = Findings { state, pids, ..Findings::default() };
        AgentInput::Ended { call, answer: Answer::Yes, reason: None, findings }
    };
    engine.handle(Time(2), ended(status, 7));
    assert_eq!(wanted(&mut engine, Time(2)).guards, [(3000, 1)]);
    let members = BTreeSet::from([member.clone()]);
    engine.handle(Time(3), AgentInput::Guarded { members, early_ms: 0 });
    let status = wanted(&mut engine, Time(3)).runs[0].0;
    engine.handle(Time(4), ended(status, 7));
    assert_eq!(wanted(&mut engine, Time(4)).guarded, [1]);
    engine.handle(Time(5), AgentInput::Disconnected);
    engine.handle(Time(2700), AgentInput::Tick);
    let said = wanted(&mut engine, Time(2700));
    assert!(said.runs.iter().any(|(_, phase)| *phase == Phase::Stop), "{said:?}");

    let replaced = |engine: &mut AgentEngine, now, input| {
        engine.handle(Time(now), input);
        let mut told = Vec::new();
        while let Some(output) = engine.poll_output() {
            if let AgentOutput::Guard { at, until, pids } = output {
                told.push((at.0, until.0, pids[&member].iter().copied().collect::<Vec<_>>()));
            }
        }
        told
    };
    let same = [(2, 3000, vec![7])];
    assert_eq!(replaced(&mut engine, 2800, AgentInput::GuardLost), same);
    // It does not stand.
    assert_eq!(replaced(&mut engine, 2801, AgentInput::GuardLost), []);
    assert_eq!(engine.next_deadline(), Some(Time(3800)));
    assert_eq!(replaced(&mut engine, 3799, AgentInput::Tick), []);
    assert_eq!(replaced(&mut engine, 3800, AgentInput::Tick), same, "it acts at once");
    let members = BTreeSet::from([member.clone()]);
    assert_eq!(replaced(&mut engine, 3801, AgentInput::Guarded { members, early_ms: 0 }), []);
    assert!(engine.guarded.is_empty(), "that lease is over");
    assert_eq!(replaced(&mut engine, 90_000, AgentInput::GuardLost), same, "at once again");
}

/// What is to be run, and what was answered.
fn done(engine: &mut AgentEngine, now: Time) -> (Vec<(CallId, Call)>, Vec<Done>) {
    let (mut runs, mut answers) = (Vec::new(), Vec::new());
    while let Some(output) = engine.poll_output() {
        match output {
            AgentOutput::Append(_) => engine.handle(now, AgentInput::Appended),
            AgentOutput::Run { call, order, .. } => runs.push((call, *order)),
            AgentOutput::Send(Report::Done(done)) => answers.push(done),
            AgentOutput::Send(_)
            | AgentOutput::Joined
            | AgentOutput::Disconnect(_)
            | AgentOutput::Kill(_)
            | AgentOutput::Guard { .. }
            | AgentOutput::Warning(_) => {}
        }
    }
    (runs, answers)
}

#[test]
fn a_hold_counts_from_receipt_also_when_it_has_to_wait() {
    let member: MemberId = "pool@p".parse().unwrap();
    for (waits_ms, left) in [(0, Some(1000)), (400, Some(600)), (1000, None)] {
        let assigned = AgentRecord::Assigned { members: vec![assignment(&member)] };
        let mut engine = agent(folded(&[assigned]), Time(0));
        engine.handle(Time(0), AgentInput::Connected);
        let own = |phase, within_ms| Call { within_ms, ..engine.own_call(&member, phase) };
        let (check, hold) = (own(Phase::Check, 5000), own(Phase::Hold, 5000));
        let (transition, hold_ms) = (Some(TransitionId(7)), Some(1000));
        engine.handle(Time(0), AgentInput::Order(Order::Call(Call { transition, ..check })));
        let (runs, _) = done(&mut engine, Time(0));
        let hold = Call { transition, hold_ms, ..hold };
        engine.handle(Time(0), AgentInput::Order(Order::Call(hold)));
        let now = Time(waits_ms);
        let (answer, findings) = (Answer::Yes, Findings::default());
        engine.handle(now, AgentInput::Ended { call: runs[0].0, answer, reason: None, findings });
        let (runs, answers) = done(&mut engine, now);
        assert_eq!(runs.first().and_then(|(_, order)| order.hold_ms), left, "after {waits_ms} ms");
        let until = engine.state().open[&TransitionId(7)].holds.get(&member).map(|hold| hold.until);
        assert_eq!(until, left.map(|_| Time(1000)), "after {waits_ms} ms");
        let answer = answers.last().map(|done| (done.phase, done.answer));
        let expected = if left.is_none() { (Phase::Hold, Answer::No) } else { (Phase::Check, Answer::Yes) };
        assert_eq!(answer, Some(expected), "after {waits_ms} ms");
    }
}

#[test]
fn a_step_that_led_elsewhere_is_not_done_and_is_tried_again() {
    let member: MemberId = "db@p".parse().unwrap();
    let assigned = AgentRecord::Assigned { members: vec![assignment(&member)] };
    let mut engine = agent(folded(&[assigned]), Time(0));
    engine.handle(Time(0), AgentInput::Connected);
    let [offline, online] = ["offline", "online"].map(|name| StateName::new(name).unwrap());
    let own = engine.own_call(&member, Phase::Commit);
    let (transition, step) = (Some(TransitionId(7)), Some(StepId(0)));
    for (attempt, state, expected) in [(1, &offline, Answer::No), (2, &online, Answer::Yes)] {
        let to = Some(online.clone());
        let call = Call { transition, step, attempt, to, ..own.clone() };
        engine.handle(Time(0), AgentInput::Order(Order::Call(call)));
        let (runs, _) = done(&mut engine, Time(0));
        assert_eq!(runs.len(), 1, "try {attempt} is a run of its own");
        let findings = Findings { state: Some(state.clone()), ..Findings::default() };
        let (call, answer) = (runs[0].0, Answer::Yes);
        engine.handle(Time(0), AgentInput::Ended { call, answer, reason: None, findings });
        let (_, answers) = done(&mut engine, Time(0));
        assert_eq!(answers[0].answer, expected, "{:?}", answers[0].reason);
        let confirmed = engine.state().states.get(&member);
        assert_eq!(confirmed, (expected == Answer::Yes).then_some(&online));
    }
}

/// What renewals say of the lease, as they leave.
fn renewals(engine: &mut AgentEngine, now: Time, input: AgentInput) -> Vec<(Time, Option<u64>)> {
    engine.handle(now, input);
    let mut renewals = Vec::new();
    while let Some(output) = engine.poll_output() {
        match output {
            AgentOutput::Append(_) => engine.handle(now, AgentInput::Appended),
            AgentOutput::Send(Report::Renew { sent, lease_ms, .. }) => renewals.push((sent, lease_ms)),
            AgentOutput::Send(_)
            | AgentOutput::Run { .. }
            | AgentOutput::Joined
            | AgentOutput::Disconnect(_)
            | AgentOutput::Kill(_)
            | AgentOutput::Guard { .. }
            | AgentOutput::Warning(_) => {}
        }
    }
    renewals
}

#[test]
fn a_notice_waits_while_its_member_holds() {
    let member: MemberId = "pool@p".parse().unwrap();
    let held = |until| AgentRecord::Held {
        transition: TransitionId(7),
        member: member.clone(),
        until: Time(until),
        hold_ms: 1000,
    };
    let mut engine =
        agent(folded(&[AgentRecord::Assigned { members: vec![assignment(&member)] }, held(1000)]), Time(0));
    engine.handle(Time(0), AgentInput::Connected);
    let calls = vec![engine.own_call(&member, Phase::Notice)];
    let (index, previous, transition) = (Index(9), Index(0), TransitionId(7));
    let notice = Notice { index, previous, transition, outcome: None, calls };
    engine.handle(Time(1), AgentInput::Order(Order::Notice(notice)));
    assert_eq!(done(&mut engine, Time(1)).0, [], "a release that comes now starts at once");
    engine.handle(Time(1000), AgentInput::Tick);
    let (runs, _) = done(&mut engine, Time(1000));
    assert_eq!(runs.iter().map(|(_, call)| call.phase).collect::<Vec<_>>(), [Phase::Release]);
    let (answer, findings) = (Answer::Yes, Findings::default());
    engine.handle(Time(1001), AgentInput::Ended { call: runs[0].0, answer, reason: None, findings });
    let (runs, _) = done(&mut engine, Time(1001));
    assert_eq!(runs.iter().map(|(_, call)| call.phase).collect::<Vec<_>>(), [Phase::Notice]);
}

#[test]
fn a_greeting_shortens_no_lease() {
    let mut engine = agent(AgentState::default(), Time(0));
    let welcome = |lease_ms| {
        AgentInput::Order(Order::Welcome { reign: Reign(1), cluster: None, lease_ms, members: Vec::new() })
    };
    let renewed = |sent| AgentInput::Order(Order::Renewed { sent, lease_ms: None });
    renewals(&mut engine, Time(0), AgentInput::Connected);
    assert_eq!(renewals(&mut engine, Time(0), welcome(20_000)), [(Time(0), None)], "it has none yet");
    renewals(&mut engine, Time(1), renewed(Time(0)));
    for input in [AgentInput::Disconnected, AgentInput::Connected] {
        renewals(&mut engine, Time(100), input);
    }
    let first = renewals(&mut engine, Time(100), welcome(3000));
    assert_eq!(first, [(Time(100), Some(20_000))], "the server may not count on the shorter one yet");
    assert_eq!(renewals(&mut engine, Time(101), renewed(Time(100))), []);
    assert_eq!(renewals(&mut engine, Time(1100), AgentInput::Tick), [(Time(1100), Some(3000))]);
}

/// A server that has lost its store still talks, and another one is about to take over from it.
#[test]
fn a_server_that_renews_no_lease_is_left_whatever_else_it_says() {
    let mut engine = agent(AgentState::default(), Time(0));
    let order = |order| AgentInput::Order(order);
    let welcome = Order::Welcome { reign: Reign(1), cluster: None, lease_ms: 6000, members: Vec::new() };
    for input in [AgentInput::Connected, order(welcome)] {
        renewals(&mut engine, Time(0), input);
    }
    renewals(&mut engine, Time(1), order(Order::Renewed { sent: Time(0), lease_ms: None }));
    for ms in 2..4001 {
        renewals(&mut engine, Time(ms), order(Order::Assign { members: Vec::new() }));
        assert!(engine.is_connected(), "at {ms}");
    }
    engine.handle(Time(4001), AgentInput::Tick);
    assert!(!engine.is_connected(), "two thirds of the lease are over");
}

#[test]
fn a_gap_in_notices_is_told_and_keeps_nobody_waiting() {
    let mut engine = agent(folded(&[AgentRecord::Noticed { index: Index(7) }]), Time(0));
    engine.handle(Time(0), AgentInput::Connected);
    let (mut warnings, mut noticed) = (0, Vec::new());
    for (previous, index) in [(7, 9), (9, 12), (14, 15)] {
        let (index, previous) = (Index(index), Index(previous));
        let (transition, calls) = (TransitionId(8), Vec::new());
        let notice = Notice { index, previous, transition, outcome: None, calls };
        engine.handle(Time(1), AgentInput::Order(Order::Notice(notice)));
        while let Some(output) = engine.poll_output() {
            match output {
                AgentOutput::Append(_) => engine.handle(Time(1), AgentInput::Appended),
                AgentOutput::Send(Report::Noticed { index }) => noticed.push(index),
                AgentOutput::Warning(_) => warnings += 1,
                AgentOutput::Send(_)
                | AgentOutput::Run { .. }
                | AgentOutput::Joined
                | AgentOutput::Disconnect(_)
                | AgentOutput::Kill(_)
                | AgentOutput::Guard { .. } => {}
            }
        }
    }
    assert_eq!((warnings, noticed), (1, vec![Index(9), Index(12), Index(15)]));
}

#[test]
fn a_notice_that_is_tried_again_is_not_overtaken_by_the_next_one() {
    let member: MemberId = "app@p".parse().unwrap();
    let state = folded(&[AgentRecord::Assigned { members: vec![assignment(&member)] }]);
    let mut engine = agent(state, Time(0));
    engine.handle(Time(0), AgentInput::Connected);
    let own = engine.own_call(&member, Phase::Notice);
    for index in [9, 12] {
        let (transition, previous) = (TransitionId(index), Index(index - 3));
        let calls = vec![Call { transition: Some(transition), ..own.clone() }];
        let notice = Notice { index: Index(index), previous, transition, outcome: None, calls };
        engine.handle(Time(0), AgentInput::Order(Order::Notice(notice)));
    }
    // The first one fails twice; what is told in between is that and nothing else.
    let mut told = Vec::new();
    for (now, answer) in [(0, Answer::No), (500, Answer::No), (1500, Answer::Yes), (1500, Answer::Yes)] {
        engine.handle(Time(now), AgentInput::Tick);
        let (runs, _) = done(&mut engine, Time(now));
        assert_eq!(runs.len(), 1, "at {now}");
        told.push(runs[0].1.transition.unwrap().0);
        let (call, findings) = (runs[0].0, Findings::default());
        engine.handle(Time(now), AgentInput::Ended { call, answer, reason: None, findings });
    }
    assert_eq!(told, [9, 9, 9, 12]);
}

#[test]
fn a_handler_whose_start_is_being_written_down_does_not_start_under_an_overtaken_token() {
    let member: MemberId = "db@p".parse().unwrap();
    let mut engine = agent(folded(&[AgentRecord::Assigned { members: vec![assignment(&member)] }]), Time(0));
    engine.handle(Time(0), AgentInput::Connected);
    told(&mut engine, Time(0));
    let call = |engine: &AgentEngine, phase, token| {
        let (transition, step) = (Some(TransitionId(7)), Some(StepId(0)));
        let call = engine.own_call(&member, phase);
        AgentInput::Order(Order::Call(Call { transition, step, token: Some(Token(token)), ..call }))
    };
    let commit = call(&engine, Phase::Commit, 8);
    engine.handle(Time(1), commit);
    assert!(matches!(engine.poll_output(), Some(AgentOutput::Append(_))));
    // The disk is slow, and the transition turns back meanwhile.
    let undo = call(&engine, Phase::Undo, 9);
    engine.handle(Time(2), undo);
    engine.handle(Time(3), AgentInput::Appended);
    let mut started = Vec::new();
    let mut refused = Vec::new();
    while let Some(output) = engine.poll_output() {
        match output {
            AgentOutput::Append(_) => engine.handle(Time(3), AgentInput::Appended),
            AgentOutput::Run { order, .. } => started.push(order.phase),
            AgentOutput::Send(Report::Done(done)) => refused.push((done.phase, done.answer)),
            AgentOutput::Send(_)
            | AgentOutput::Joined
            | AgentOutput::Disconnect(_)
            | AgentOutput::Kill(_)
            | AgentOutput::Guard { .. }
            | AgentOutput::Warning(_) => {}
        }
    }
    assert_eq!(started, [Phase::Undo]);
    assert_eq!(refused, [(Phase::Commit, Answer::No)]);
}
