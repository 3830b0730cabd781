//! A cluster in memory: one server, its agents, the network between them and the software that they look after,
//! in virtual time. Stories, and tests that kill at every write, run production's own engines in it.
//!
//! It never chooses: what may happen next happens in one fixed order, so the same script gives the same trace,
//! byte for byte. Whoever wants other orders takes [`World::step`] by step and cuts, kills and loses in between.

use crate::agent::{
    AgentEngine, AgentInput, AgentOutput, AgentRecord, AgentState, CallId, HandlerRules, Identity,
};
use crate::cluster::Cluster;
use crate::engine::{Accepted, Engine, Event, Input, Output, ReplyId, SessionId};
use crate::id::{AgentId, HandlerName, HostName, Index, MemberId, RunId, StateName, TransitionId};
use crate::message::{Call, Findings, Order, Phase, Report};
use crate::record::{Body, HostChange, Record, StepResult};
use crate::request::{Rejection, Request};
use crate::spec::SpecFile;
use crate::time::{Now, Time, WallTime};
use crate::vote::Answer;
use serde_json::{Map, Value};
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::fmt::Write;

/// How long an agent waits before it connects again to a server that closed its connection, in milliseconds.
const RECONNECT_MS: u64 = 100;
/// How often agents ask for a status, in milliseconds.
const STATUS_MS: u64 = 10_000;
/// More steps than this at one moment are a loop that time does not end.
const STEPS_MAX: usize = 1_000_000;

/// What a scripted handler does when it is called.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Script {
    /// What it answers.
    pub answer: Answer,
    /// Why.
    pub reason: Option<String>,
    /// What it hands on.
    pub out: Map<String, Value>,
    /// The state it claims; its own knowledge when none.
    pub state: Option<StateName>,
    /// How long it takes in milliseconds; one that takes longer than it may ends with a no.
    pub takes_ms: u64,
    /// Whether a commit, an undo or a stop has its effect, whatever is answered.
    pub has_effect: bool,
}

impl Default for Script {
    fn default() -> Self {
        let (reason, out, state) = (None, Map::new(), None);
        Self { answer: Answer::Yes, reason, out, state, takes_ms: 0, has_effect: true }
    }
}

/// An agent, what survives it, and the software on its host.
#[derive(Debug, Clone)]
struct Process {
    host: HostName,
    identity: AgentId,
    labels: BTreeMap<String, String>,
    address: Option<String>,
    starts: u64,
    engine: Option<AgentEngine>,
    journal: Vec<AgentRecord>,
    in_flight: Option<Vec<AgentRecord>>,
    appends: u64,
    link: Option<Link>,
    is_cut: bool,
    connect_at: Time,
    running: BTreeMap<CallId, (Time, Call, Script)>,
}

/// A connection; it delivers in order.
#[derive(Debug, Clone)]
struct Link {
    id: SessionId,
    to_server: VecDeque<Report>,
    to_agent: VecDeque<Order>,
    /// The server's end is closed; the agent learns of it after what was sent before.
    is_closed: bool,
}

/// The cluster.
#[derive(Debug, Clone, Default)]
pub struct World {
    time: Time,
    server: Option<Engine>,
    server_starts: u64,
    journal: Vec<Record>,
    in_flight: Option<Vec<Record>>,
    appends: u64,
    processes: BTreeMap<String, Process>,
    scripts: BTreeMap<(MemberId, Phase), VecDeque<Script>>,
    software: BTreeMap<MemberId, StateName>,
    /// What software has been asked to prepare or hold, and not to forget again.
    promises: BTreeSet<(MemberId, Phase)>,
    answers: BTreeMap<ReplyId, Result<Accepted, Rejection>>,
    sessions: u64,
    replies: u64,
    trace: Vec<String>,
}

impl World {
    /// An empty cluster, its server not started.
    pub fn new() -> Self {
        // Not at zero: what reckons backwards from the beginning is to be noticed.
        Self { time: Time(1_000_000), ..Self::default() }
    }

    /// The present moment; the wall clock shows it as well.
    pub fn now(&self) -> Now {
        Now { time: self.time, wall: WallTime(self.time.0) }
    }

    /// The server, while it runs.
    pub fn server(&self) -> Option<&Engine> {
        self.server.as_ref()
    }

    /// The server's durable records.
    pub fn journal(&self) -> &[Record] {
        &self.journal
    }

    /// The durable records of an agent.
    pub fn agent_journal(&self, name: &str) -> &[AgentRecord] {
        self.processes.get(name).map_or(&[], |process| &process.journal)
    }

    /// The agent, while it runs.
    pub fn agent(&self, name: &str) -> Option<&AgentEngine> {
        self.processes.get(name)?.engine.as_ref()
    }

    /// The states that the software is really in.
    pub fn software(&self) -> &BTreeMap<MemberId, StateName> {
        &self.software
    }

    /// The software that is prepared, or holds its clients.
    pub fn promises(&self) -> &BTreeSet<(MemberId, Phase)> {
        &self.promises
    }

    /// How many writes the server has begun.
    pub fn appends(&self) -> u64 {
        self.appends
    }

    /// How many writes an agent has begun.
    pub fn agent_appends(&self, name: &str) -> u64 {
        self.processes.get(name).map_or(0, |process| process.appends)
    }

    /// The answer to a request, once there is one.
    pub fn answer(&self, reply: ReplyId) -> Option<&Result<Accepted, Rejection>> {
        self.answers.get(&reply)
    }

    /// What has happened since it was last taken, a line each.
    pub fn take_trace(&mut self) -> Vec<String> {
        std::mem::take(&mut self.trace)
    }

    fn note(&mut self, line: impl Into<String>) {
        self.trace.push(line.into());
    }

    fn process(&mut self, name: &str) -> &mut Process {
        self.processes.get_mut(name).expect("the script names agents that it has made")
    }

    // ---- what a script does

    /// Starts the server over what is durable.
    pub fn start_server(&mut self) {
        let mut cluster = Cluster::default();
        for (place, record) in self.journal.iter().enumerate() {
            cluster.apply(Index(place as u64 + 1), record);
        }
        self.server_starts += 1;
        self.server = Some(Engine::new(cluster, &format!("server-{}", self.server_starts), self.now()));
        let now = self.time;
        self.processes.values_mut().for_each(|process| process.connect_at = now);
    }

    /// Kills the server. The batch in flight is lost, or durable although nobody has been told.
    pub fn kill_server(&mut self, keeps_in_flight: bool) {
        let in_flight = self.in_flight.take().filter(|_| keeps_in_flight);
        self.journal.extend(in_flight.into_iter().flatten());
        self.server = None;
        for process in self.processes.values_mut() {
            if let Some(link) = &mut process.link {
                link.is_closed = true;
                link.to_server.clear();
            }
        }
    }

    /// A new agent, named by its host unless two are to share one host name, and its software.
    pub fn join(
        &mut self,
        name: &str,
        host: &HostName,
        labels: BTreeMap<String, String>,
        address: Option<String>,
    ) {
        let process = Process {
            host: host.clone(),
            identity: AgentId::new(&format!("id-{name}")).expect("host names are fit for identities"),
            labels,
            address,
            starts: 0,
            engine: None,
            journal: Vec::new(),
            in_flight: None,
            appends: 0,
            link: None,
            is_cut: false,
            connect_at: self.time,
            running: BTreeMap::new(),
        };
        self.processes.insert(name.to_owned(), process);
        self.start_agent(name);
    }

    /// Starts an agent over what is durable.
    pub fn start_agent(&mut self, name: &str) {
        let now = self.time;
        let process = self.process(name);
        process.starts += 1;
        let mut state = AgentState::default();
        process.journal.iter().for_each(|record| state.apply(record));
        let identity = Identity {
            host: process.host.clone(),
            agent: process.identity.clone(),
            run: RunId::new(&format!("run-{}", process.starts)).expect("a valid name"),
            address: process.address.clone(),
            labels: process.labels.clone(),
        };
        let rules = HandlerRules {
            phases: Phase::ALL.into_iter().collect(),
            timeout_ms: BTreeMap::new(),
            status_ms: STATUS_MS,
        };
        let handler = HandlerName::new("sim").expect("a valid name");
        let mut engine = AgentEngine::new(identity, BTreeMap::from([(handler, rules)]), state, now);
        engine.handle(now, AgentInput::Tick);
        process.engine = Some(engine);
        process.connect_at = now;
    }

    /// Changes an agent's labels, from its next start on.
    pub fn label(&mut self, name: &str, labels: BTreeMap<String, String>) {
        self.process(name).labels = labels;
    }

    /// Kills an agent, and its handlers with it before they have an effect.
    pub fn kill_agent(&mut self, name: &str, keeps_in_flight: bool) {
        let process = self.process(name);
        let in_flight = process.in_flight.take().filter(|_| keeps_in_flight);
        process.journal.extend(in_flight.into_iter().flatten());
        process.engine = None;
        process.running.clear();
        let closed = process.link.take().map(|link| link.id);
        if let (Some(session), Some(server)) = (closed, &mut self.server) {
            server.handle(Now { time: self.time, wall: WallTime(self.time.0) }, Input::Closed { session });
        }
    }

    /// From now on nothing gets through to or from an agent; what is sent waits.
    pub fn cut(&mut self, name: &str) {
        self.process(name).is_cut = true;
    }

    /// Everything gets through again.
    pub fn heal(&mut self, name: &str) {
        self.process(name).is_cut = false;
    }

    /// Drops the messages on the way to and from an agent, and its connection with them.
    pub fn break_link(&mut self, name: &str) {
        let now = self.now();
        if let Some(link) = self.process(name).link.take() {
            let process = self.process(name);
            process.connect_at = now.time;
            if let Some(engine) = &mut process.engine {
                engine.handle(now.time, AgentInput::Disconnected);
            }
            if let Some(server) = &mut self.server {
                server.handle(now, Input::Closed { session: link.id });
            }
        }
    }

    /// What a handler answers, one script for each call; the last is for all that follow.
    pub fn script(&mut self, member: &MemberId, phase: Phase, scripts: Vec<Script>) {
        self.scripts.insert((member.clone(), phase), scripts.into());
    }

    /// Puts software into a state behind everybody's back.
    pub fn set_software(&mut self, member: &MemberId, state: &StateName) {
        self.software.insert(member.clone(), state.clone());
    }

    fn input(&mut self, input: impl FnOnce(ReplyId) -> Input) -> ReplyId {
        self.replies += 1;
        let (reply, now) = (ReplyId(self.replies), self.now());
        self.server.as_mut().expect("the script asks a server that runs").handle(now, input(reply));
        reply
    }

    /// Declares the cluster.
    pub fn apply(&mut self, spec: SpecFile) -> ReplyId {
        self.input(|reply| Input::Apply { reply, spec, principal: "operator".to_owned() })
    }

    /// Asks for a transition.
    pub fn run(&mut self, request: Request) -> ReplyId {
        self.input(|reply| Input::Run { reply, request })
    }

    /// Asks for a transition to be aborted.
    pub fn abort(&mut self, transition: TransitionId) -> ReplyId {
        self.input(|reply| Input::Abort { reply, transition })
    }

    /// Says something in an agent's name that it would not say.
    pub fn forge(&mut self, name: &str, report: Report) {
        if let Some(link) = &mut self.process(name).link {
            link.to_server.push_back(report);
        }
    }

    // ---- what happens by itself

    /// Lets everything happen that needs no time.
    pub fn deliver(&mut self) {
        for _ in 0..STEPS_MAX {
            if !self.step() {
                return;
            }
        }
        panic!("a loop without an end:\n{}", self.trace[self.trace.len().saturating_sub(40)..].join("\n"));
    }

    /// Lets time pass, and whatever becomes due on the way happen.
    pub fn advance(&mut self, ms: u64) {
        let end = self.time.plus(ms);
        self.deliver();
        while let Some(next) = self.next_due().filter(|next| *next <= end) {
            self.time = next;
            self.tick();
            self.deliver();
        }
        self.time = end;
    }

    /// Lets time pass until something is due, at most so long; what is due then is left to [`World::step`].
    pub fn advance_to_next(&mut self, ms: u64) {
        let end = self.time.plus(ms);
        self.time = self.next_due().map_or(end, |next| next.min(end));
        self.tick();
    }

    fn tick(&mut self) {
        let now = self.now();
        if let Some(server) = &mut self.server {
            server.handle(now, Input::Tick);
            let next = server.next_deadline();
            assert!(next.is_none_or(|next| next > now.time), "the server is due again at once: {next:?}");
        }
        for (name, process) in &mut self.processes {
            let Some(engine) = &mut process.engine else { continue };
            engine.handle(now.time, AgentInput::Tick);
            let next = engine.next_deadline();
            assert!(next.is_none_or(|next| next > now.time), "agent {name} is due again at once: {next:?}");
        }
    }

    fn next_due(&self) -> Option<Time> {
        let server = self.server.iter().filter_map(Engine::next_deadline);
        let processes = self.processes.values().filter(|process| process.engine.is_some());
        let processes = processes.flat_map(|process| {
            let engine = process.engine.as_ref().and_then(AgentEngine::next_deadline);
            let running = process.running.values().map(|(end, ..)| *end);
            let connects = process.link.is_none() && !process.is_cut && self.server.is_some();
            running.chain(engine).chain(connects.then_some(process.connect_at))
        });
        server.chain(processes).map(|due| Time(due.0.max(self.time.0 + 1))).min()
    }

    /// Lets the next thing happen that needs no time. Tells whether there was one.
    pub fn step(&mut self) -> bool {
        let names: Vec<_> = self.processes.keys().cloned().collect();
        self.poll_server()
            || names.iter().any(|name| self.poll_agent(name))
            || self.acknowledge_server()
            || names.iter().any(|name| self.acknowledge_agent(name))
            || names.iter().any(|name| self.carry(name))
            || names.iter().any(|name| self.end_handler(name))
    }

    fn poll_server(&mut self) -> bool {
        let Some(output) = self.server.as_mut().and_then(Engine::poll_output) else { return false };
        match output {
            Output::Append { first, records } => {
                assert_eq!(first.0, self.journal.len() as u64 + 1, "records follow each other");
                assert!(self.in_flight.replace(records).is_none(), "one batch in flight at a time");
                self.appends += 1;
            }
            Output::Order { session, order } => {
                if let Some(link) = self.link(session).filter(|link| !link.is_closed) {
                    link.to_agent.push_back(order);
                }
            }
            Output::Close { session } => {
                let at = self.time.plus(RECONNECT_MS);
                if let Some(process) = self
                    .processes
                    .values_mut()
                    .find(|process| process.link.as_ref().is_some_and(|link| link.id == session))
                {
                    process.connect_at = at;
                }
                if let Some(link) = self.link(session) {
                    link.is_closed = true;
                    link.to_server.clear();
                }
            }
            Output::Reply { reply, answer } => {
                self.note(match &answer {
                    Ok(Accepted::Transition(id)) => format!("accepted {id}"),
                    Ok(Accepted::Nothing) => "nothing to do".to_owned(),
                    Ok(Accepted::Spec(index)) => format!("spec in force from {index}"),
                    Ok(Accepted::Aborted) => "aborted".to_owned(),
                    Err(Rejection { code, message, .. }) => format!("rejected {code}: {message}"),
                });
                self.answers.insert(reply, answer);
            }
            Output::Event(Event::Warning(message)) => self.note(format!("server warns: {message}")),
            Output::Event(Event::Phase { .. } | Event::Voted { .. } | Event::Reported { .. }) => {}
        }
        true
    }

    fn link(&mut self, session: SessionId) -> Option<&mut Link> {
        self.processes
            .values_mut()
            .filter_map(|process| process.link.as_mut())
            .find(|link| link.id == session)
    }

    fn acknowledge_server(&mut self) -> bool {
        let Some(records) = self.in_flight.take() else { return false };
        for record in records {
            self.journal.push(record);
            let line = describe(self.journal.len(), &self.journal[self.journal.len() - 1]);
            self.note(line);
        }
        let now = self.now();
        self.server.as_mut().expect("a batch in flight is its server's").handle(now, Input::Appended);
        true
    }

    fn poll_agent(&mut self, name: &str) -> bool {
        let now = self.time;
        let process = self.process(name);
        let Some(output) = process.engine.as_mut().and_then(AgentEngine::poll_output) else { return false };
        match output {
            AgentOutput::Append(records) => {
                assert!(process.in_flight.replace(records).is_none(), "one batch in flight at a time");
                process.appends += 1;
            }
            AgentOutput::Send(report) => {
                if let Some(link) = process.link.as_mut().filter(|link| !link.is_closed) {
                    link.to_server.push_back(report);
                }
            }
            AgentOutput::Run { call, order, timeout_ms, .. } => {
                self.start_handler(name, call, *order, timeout_ms);
            }
            AgentOutput::Joined => self.note(format!("{name} joined")),
            AgentOutput::Disconnect(message) => {
                process.connect_at = now.plus(RECONNECT_MS);
                self.note(format!("{name} turns away: {message}"));
                if let Some(link) = &mut self.process(name).link {
                    link.is_closed = true;
                    link.to_agent.clear();
                }
            }
            AgentOutput::Warning(message) => self.note(format!("{name} warns: {message}")),
        }
        true
    }

    fn acknowledge_agent(&mut self, name: &str) -> bool {
        let now = self.time;
        let process = self.process(name);
        let Some(records) = process.in_flight.take() else { return false };
        process.journal.extend(records);
        process.engine.as_mut().expect("a batch in flight is its agent's").handle(now, AgentInput::Appended);
        true
    }

    /// Connects an agent, or carries one message, or tells one end that the other has closed.
    fn carry(&mut self, name: &str) -> bool {
        let (now, is_up) = (self.now(), self.server.is_some());
        let id = SessionId(self.sessions + 1);
        let process = self.process(name);
        let Some(engine) = process.engine.as_mut().filter(|_| !process.is_cut) else { return false };
        let Some(link) = &mut process.link else {
            let connects = is_up && process.connect_at <= now.time;
            if connects {
                let (to_server, to_agent) = (VecDeque::new(), VecDeque::new());
                process.link = Some(Link { id, to_server, to_agent, is_closed: false });
                engine.handle(now.time, AgentInput::Connected);
                self.sessions += 1;
            }
            return connects;
        };
        if let Some(order) = link.to_agent.pop_front() {
            let line = describe_order(name, &order);
            engine.handle(now.time, AgentInput::Order(order));
            self.trace.extend(line);
        } else if link.is_closed {
            let session = link.id;
            process.link = None;
            engine.handle(now.time, AgentInput::Disconnected);
            if let Some(server) = &mut self.server {
                server.handle(now, Input::Closed { session });
            }
        } else if let Some(report) = link.to_server.pop_front() {
            let session = link.id;
            self.trace.extend(describe_report(name, &report));
            let server = self.server.as_mut().expect("links to a dead server are closed");
            server.handle(now, Input::Report { session, report });
        } else {
            return false;
        }
        true
    }

    // ---- handlers

    fn start_handler(&mut self, name: &str, id: CallId, call: Call, timeout_ms: u64) {
        let key = (call.member.clone(), call.phase);
        let script = match self.scripts.get_mut(&key) {
            Some(scripts) if scripts.len() > 1 => scripts.pop_front(),
            Some(scripts) => scripts.front().cloned(),
            None => None,
        };
        let mut script = script.unwrap_or_default();
        if script.takes_ms >= timeout_ms {
            let reason = Some(format!("ended after {timeout_ms} ms"));
            script = Script { answer: Answer::No, reason, takes_ms: timeout_ms, ..script };
        }
        if call.phase != Phase::Status {
            let mut line = format!("{name} runs {}", describe_call(&call));
            let seen = call.context.iter().flat_map(|context| &context.out);
            for (member, out) in seen.filter(|_| matches!(call.phase, Phase::Prepare | Phase::Commit)) {
                write!(line, " {member} says {}", Value::Object(out.clone())).expect("a String takes all");
            }
            self.note(line);
        }
        let end = self.time.plus(script.takes_ms);
        self.process(name).running.insert(id, (end, call, script));
    }

    /// What pretend software says of itself; new software is in the lowest state.
    fn status(&self, member: &MemberId) -> Option<StateName> {
        let lowest = || {
            let groups = &self.server.as_ref()?.acknowledged().spec.groups;
            Some(groups.get(&member.group)?.lifecycle.lowest().clone())
        };
        self.software.get(member).cloned().or_else(lowest)
    }

    fn end_handler(&mut self, name: &str) -> bool {
        let now = self.time;
        let process = self.process(name);
        let due = process.running.iter().find(|(_, (end, ..))| *end <= now).map(|(id, _)| *id);
        let Some(id) = due else { return false };
        let (_, call, script) = process.running.remove(&id).expect("it was just found");
        let moves = matches!(call.phase, Phase::Commit | Phase::Undo | Phase::Stop);
        if let (true, true, Some(to)) = (moves, script.has_effect, &call.to) {
            self.software.insert(call.member.clone(), to.clone());
        }
        let member = call.member.clone();
        match call.phase {
            Phase::Prepare | Phase::Hold => _ = self.promises.insert((member, call.phase)),
            Phase::Commit | Phase::Undo | Phase::Cancel | Phase::Stop => {
                self.promises.remove(&(member, Phase::Prepare));
            }
            Phase::Release if script.answer == Answer::Yes => {
                self.promises.remove(&(member, Phase::Hold));
            }
            Phase::Check | Phase::Release | Phase::Status | Phase::Notice | Phase::Fence => {}
        }
        let own = (call.phase == Phase::Status).then(|| self.status(&call.member)).flatten();
        let state = script.state.or(own);
        let findings = Findings { out: script.out, state, ..Findings::default() };
        let ended = AgentInput::Ended { call: id, answer: script.answer, reason: script.reason, findings };
        let engine = self.process(name).engine.as_mut();
        engine.expect("handlers die with their agent").handle(now, ended);
        true
    }
}

fn describe_call(call: &Call) -> String {
    let mut line = format!("{} {}", call.phase, call.member);
    let id = call.transition.map(|id| format!(" {id}")).unwrap_or_default();
    write!(line, "{id}").expect("a String takes all");
    if let (Phase::Commit | Phase::Undo | Phase::Stop, Some(from), Some(to)) =
        (call.phase, &call.from, &call.to)
    {
        write!(line, " {from} -> {to}").expect("a String takes all");
    }
    if let (Phase::Release, decision) = (call.phase, call.decision) {
        let decision = decision.map_or("unknown".to_owned(), |decision| decision.to_string());
        write!(line, " decision {decision}").expect("a String takes all");
    }
    if call.attempt > 1 {
        write!(line, " try {}", call.attempt).expect("a String takes all");
    }
    line
}

fn describe_order(name: &str, order: &Order) -> Option<String> {
    let Order::Outcome { transition, outcome } = order else { return None };
    let outcome = outcome.map_or("unknown".to_owned(), |outcome| outcome.to_string());
    Some(format!("{name} learns {transition} {outcome}"))
}

fn describe_report(name: &str, report: &Report) -> Option<String> {
    let line = match report {
        Report::Done(done) => {
            let answer = match done.answer {
                Answer::Yes => "yes",
                Answer::No => "no",
                Answer::Again => "again",
            };
            let reason = done.reason.as_ref().map(|reason| format!(": {reason}")).unwrap_or_default();
            format!("{name} says {answer} to {} {}{reason}", done.phase, done.member)
        }
        Report::HoldEnded { transition, member } => {
            format!("{name} says hold of {member} ended {transition}")
        }
        Report::Goodbye => format!("{name} says goodbye"),
        Report::Hello(_) | Report::Renew { .. } | Report::State { .. } | Report::Noticed { .. } => {
            return None;
        }
    };
    Some(line)
}

fn describe(index: usize, record: &Record) -> String {
    let text = match &record.body {
        Body::Reign { server } => format!("reign {server}"),
        Body::Spec { .. } => "spec".to_owned(),
        Body::Host { host, change: HostChange::Joined { .. } } => format!("host {host} joined"),
        Body::Host { host, change: HostChange::Liveness { liveness } } => format!("host {host} {liveness}"),
        Body::Request { request } => {
            let targets: Vec<_> = request.targets.iter().map(ToString::to_string).collect();
            format!("request t{index} {}", targets.join(" "))
        }
        Body::Begin { transition, .. } => format!("begin {transition}"),
        Body::Decision { transition, decision, cause, .. } => {
            let cause = cause.as_ref().map(|cause| format!(" {}: {}", cause.code, cause.message));
            format!("decision {transition} {decision}{}", cause.unwrap_or_default())
        }
        Body::Step { transition, results } => {
            let results: Vec<_> = results.iter().map(describe_result).collect();
            format!("step {transition} {}", results.join(", "))
        }
        Body::Turn { transition, turn, member, reason } => {
            format!("turn {transition} {turn:?} {member}: {reason}")
                .replace("Undo", "undo")
                .replace("Exclude", "exclude")
        }
        Body::Outcome { transition, outcome, left } => {
            let mut line = format!("outcome {transition} {outcome}");
            for (member, left) in left {
                let doubt = if left.in_doubt { "in doubt" } else { "failed" };
                write!(line, "; {member} {doubt}: {}", left.problem).expect("a String takes all");
            }
            line
        }
        Body::Report { member, actual } => {
            format!("report {member} {}", actual.as_ref().map_or("unknown", StateName::as_str))
        }
    };
    format!("{index} {text}")
}

fn describe_result(result: &StepResult) -> String {
    match result {
        StepResult::Confirmed { step, direction } => format!("{step} {direction:?} confirmed").to_lowercase(),
        StepResult::Failed { step, direction, reason } => {
            format!("{step} {} failed: {reason}", format!("{direction:?}").to_lowercase())
        }
        StepResult::Unknown { step, direction } => format!("{step} {direction:?} unknown").to_lowercase(),
        StepResult::Stopped { member } => format!("{member} stopped"),
        StepResult::HoldEnded { member, end } => {
            format!("hold of {member} {}", format!("{end:?}").to_lowercase())
        }
    }
}

/// The lines that describe durable records, for those who look back.
pub fn journal_lines(records: &[Record]) -> Vec<String> {
    records.iter().enumerate().map(|(place, record)| describe(place + 1, record)).collect()
}

/// The hosts whose agents hold a hold that has not been let go, or a promise that no outcome has ended.
pub fn unsettled(world: &World) -> BTreeSet<HostName> {
    let processes = world.processes.values();
    let unsettled = processes.filter(|process| {
        let mut state = AgentState::default();
        process.journal.iter().for_each(|record| state.apply(record));
        !state.open.is_empty()
    });
    unsettled.map(|process| process.host.clone()).collect()
}
