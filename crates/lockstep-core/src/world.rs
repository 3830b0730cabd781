//! A cluster in memory: servers, agents, the network between them and the software that the agents look after, in
//! virtual time. Stories, rehearsals, the exhaustive check and the simulator run production's own engines in it.
//!
//! It never chooses. [`World::choices`] lists what may happen now, [`World::perform`] lets one of it happen, and
//! [`World::step`] takes the first, so that the same script gives the same trace, byte for byte. Faults are calls
//! like any other: whoever wants them decides when.

mod clock;
mod happened;
mod host;
mod network;
mod service;
mod shared;
mod standby;

pub use clock::Clock;
pub use happened::{Happened, journal_lines};
use service::Service;
pub use service::{Ask, AskId, Asked, Machine, StoreEvent, StoreWay};
use shared::{Journal, Shared};
use standby::{Standby, Tenure};

use crate::agent::{AgentEngine, AgentInput, AgentOutput, AgentRecord, AgentState, CallId, HandlerRules};
use crate::cluster::Cluster;
use crate::engine::{Accepted, Engine, Event, HostAsk, Input, Output, ReplyId, SessionId};
use crate::freeze::FreezeEnd;
use crate::id::{AgentId, GroupName, HandlerName, HostName, Index, MemberId, StateName, TransitionId};
use crate::message::{Call, Findings, Order, Phase, Report};
use crate::plan::Scores;
use crate::record::Record;
use crate::relation::Published;
use crate::request::{Rejection, Request};
use crate::spec::{Settings, SpecFile};
use crate::time::{Now, Time, WallTime};
use crate::vote::Answer;
use serde_json::{Map, Value};
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;

/// How often agents ask for a status, in milliseconds.
const STATUS_MS: u64 = 10_000;
/// More steps than this at one moment are a loop that time does not end.
const STEPS_MAX: usize = 1_000_000;

/// An agent's name in the world: its host's, unless two agents are to share one host name.
pub type Name = Arc<str>;

/// A server's start, counted from 1.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ServerId(pub u64);

/// What may happen next.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Choice {
    /// A server's next output is taken.
    Server(ServerId),
    /// An agent's next output is taken.
    Agent(Name),
    /// The store answers a server: its batch is durable, or the server is deposed.
    Append(ServerId),
    /// An agent's batch is durable.
    AgentAppend(Name),
    /// An agent connects to the active server.
    Connect(Name),
    /// An agent connects to a server that says that it is the active one, where several share a journal service.
    Dial(Name, ServerId),
    /// A question comes to the journal service that servers share, or its answer to the server.
    Store(AskId),
    /// The next order on a connection reaches its agent; after the last one, the connection's end does.
    ToAgent(SessionId),
    /// The next report on a connection reaches its server; after the last one, the connection's end does.
    ToServer(SessionId),
    /// A handler ends.
    End(Name, CallId),
}

/// A direction of the network.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Way {
    /// From agents to servers.
    ToServer,
    /// From servers to agents.
    ToAgent,
}

/// What a scripted handler does when it is called.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
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

/// A handler at work.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Running {
    /// What it was called for.
    pub call: Call,
    /// What it does.
    pub script: Script,
    begun: Time,
    timeout_ms: u64,
}

impl Running {
    fn end(&self) -> Time {
        self.begun.plus(self.script.takes_ms.min(self.timeout_ms))
    }
}

/// A server that runs.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Server {
    engine: Engine,
    in_flight: Option<Vec<Record>>,
    /// The batch in flight is durable, and the answer is on its way.
    has_landed: bool,
    clock: Clock,
    /// Since when it does not run, when it was stopped.
    paused_at: Option<Time>,
    /// Its reign, where servers share a journal service.
    tenure: Option<Tenure>,
}

/// An agent, what survives it, and the software on its host.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Process {
    host: HostName,
    identity: AgentId,
    labels: BTreeMap<String, String>,
    address: Option<String>,
    clock: Clock,
    starts: u64,
    engine: Option<AgentEngine>,
    /// What the journal was begun with.
    base: AgentState,
    journal: Vec<AgentRecord>,
    in_flight: Option<Vec<AgentRecord>>,
    appends: u64,
    session: Option<SessionId>,
    cut: BTreeSet<Way>,
    is_paused: bool,
    /// It is stopped alone: its handlers go on.
    is_stopped_alone: bool,
    /// What has come for it while it was stopped.
    unheard: Vec<AgentInput>,
    connect_at: Time,
    /// What its guard was last told; it outlives the agent. None: there is nothing to stop, or the host has no guard.
    guard: Option<Watch>,
    has_guard: bool,
    /// Whether it can make sure that other hosts have stopped.
    has_fence: bool,
    /// Without an engine: handlers that have outlived their agent.
    running: BTreeMap<CallId, Running>,
}

impl Process {
    fn handlers_run(&self) -> bool {
        !self.is_paused || self.is_stopped_alone
    }
}

/// Whom a guard stops, and when by its host's clock.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Watch {
    until: Time,
    /// Each with its processes, as far as they are known; their handlers are ended with them.
    members: BTreeMap<MemberId, BTreeSet<u32>>,
}

/// A connection; it delivers in order. Each end is closed by itself, and learns that the other one is after all
/// that was sent before.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Link {
    agent: Name,
    server: ServerId,
    to_server: VecDeque<Report>,
    to_agent: VecDeque<Order>,
    agent_is_there: bool,
    server_end: End,
}

/// A server's end of a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum End {
    Open,
    /// The engine wants it closed, and is going to be told that it is.
    Closing,
    Gone,
}

/// The cluster.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default)]
pub struct World {
    time: Time,
    /// How far the servers' wall clock is ahead, in milliseconds.
    wall_ahead_ms: i64,
    /// What the journal was begun with.
    base: Arc<Cluster>,
    journal: Journal,
    servers: BTreeMap<ServerId, Shared<Server>>,
    /// The one whose writes the store takes.
    active: Option<ServerId>,
    /// What servers share, if they do: who reigns, and the journal.
    service: Option<Shared<Service>>,
    standbys: BTreeMap<ServerId, Shared<Standby>>,
    /// What servers wait for an answer to, and gets none.
    lost: BTreeMap<AskId, Asked>,
    /// Whom operators ask, where that is not the active server.
    asked: Option<ServerId>,
    server_starts: u64,
    appends: u64,
    links: BTreeMap<SessionId, Link>,
    processes: BTreeMap<Name, Shared<Process>>,
    scripts: BTreeMap<(MemberId, Phase), VecDeque<Script>>,
    /// What agent.toml says of handlers on every host.
    rules: Arc<BTreeMap<HandlerName, HandlerRules>>,
    software: BTreeMap<MemberId, StateName>,
    /// The settings that software has taken, once it has taken some.
    taken: BTreeMap<MemberId, Settings>,
    /// How fit members say that they are to be chosen.
    scores: Scores,
    /// What software says that it provides and consumes.
    published: BTreeMap<MemberId, Published>,
    /// What software has been asked to prepare or hold, and not to forget again.
    promises: BTreeSet<(MemberId, Phase)>,
    answers: BTreeMap<ReplyId, Result<Accepted, Rejection>>,
    sessions: u64,
    replies: u64,
    happened: Vec<Happened>,
}

impl World {
    /// An empty cluster, its server not started.
    pub fn new() -> Self {
        // Not at zero: what reckons backwards from the beginning is to be noticed.
        let rules = HandlerRules {
            phases: Phase::ALL.into_iter().collect(),
            timeout_ms: BTreeMap::new(),
            status_ms: STATUS_MS,
            checks_tokens: false,
        };
        let handler = HandlerName::new("sim").expect("a valid name");
        let rules = Arc::new(BTreeMap::from([(handler, rules)]));
        Self { time: Time(1_000_000), rules, ..Self::default() }
    }

    /// The same with a journal that begins after `base`.
    pub(crate) fn over(base: Cluster) -> Self {
        Self { base: Arc::new(base), ..Self::new() }
    }

    /// The present moment, by the world's own clock.
    pub fn now(&self) -> Time {
        self.time
    }

    /// The active server, while it runs.
    pub fn server(&self) -> Option<&Engine> {
        self.active.map(|id| &self.servers[&id].engine)
    }

    /// What those who judge go by: what the active server's readers see, and, where servers share a journal service, what
    /// is durable there, whoever reigns.
    pub fn cluster(&self) -> Option<&Cluster> {
        let shared = self.service.as_ref().map(|service| &service.durable);
        shared.or_else(|| Some(self.server()?.acknowledged()))
    }

    /// The servers that run, the active one and those that do not know yet that they no longer are.
    pub fn servers(&self) -> impl Iterator<Item = (ServerId, &Engine)> {
        self.servers.iter().map(|(id, server)| (*id, &server.engine))
    }

    /// The active server's name.
    pub fn active(&self) -> Option<ServerId> {
        self.active
    }

    /// The server's durable records.
    pub fn journal(&self) -> &[Record] {
        &self.journal
    }

    /// The durable records of an agent.
    pub fn agent_journal(&self, name: &str) -> &[AgentRecord] {
        self.processes.get(name).map_or(&[], |process| &process.journal)
    }

    /// What a server has asked to be written, and has no answer to.
    pub fn in_flight(&self, server: ServerId) -> Option<&[Record]> {
        self.servers.get(&server)?.in_flight.as_deref()
    }

    /// What an agent has asked to be written, and has no answer to.
    pub fn agent_in_flight(&self, name: &str) -> Option<&[AgentRecord]> {
        self.processes.get(name)?.in_flight.as_deref()
    }

    /// Whether the active server's batch in flight is durable already.
    pub fn has_landed(&self) -> bool {
        self.active.is_some_and(|id| self.servers[&id].has_landed)
    }

    /// Whether the active server's process is stopped.
    pub fn is_server_paused(&self) -> bool {
        self.active.is_some_and(|id| self.servers[&id].paused_at.is_some())
    }

    /// The agents, running or not.
    pub fn agents(&self) -> impl Iterator<Item = &Name> {
        self.processes.keys()
    }

    /// The agent, while it runs.
    pub fn agent(&self, name: &str) -> Option<&AgentEngine> {
        self.processes.get(name)?.engine.as_ref()
    }

    /// Whether an agent's host has been stopped.
    pub fn is_paused(&self, name: &str) -> bool {
        self.processes.get(name).is_some_and(|process| process.is_paused)
    }

    /// The directions in which nothing gets through to or from an agent.
    pub fn cuts(&self, name: &str) -> BTreeSet<Way> {
        self.processes.get(name).map(|process| process.cut.clone()).unwrap_or_default()
    }

    /// An agent's handlers at work.
    pub fn running(&self, name: &str) -> impl Iterator<Item = (CallId, &Running)> {
        self.processes.get(name).into_iter().flat_map(|process| &process.running).map(|(id, run)| (*id, run))
    }

    /// The connections, with how many messages are on their way to the server and to the agent.
    pub fn links(&self) -> impl Iterator<Item = (SessionId, &Name, usize, usize)> {
        self.links.iter().map(|(id, link)| (*id, &link.agent, link.to_server.len(), link.to_agent.len()))
    }

    /// The states that the software is really in.
    pub fn software(&self) -> &BTreeMap<MemberId, StateName> {
        &self.software
    }

    /// The order that is next on its way to an agent.
    pub(crate) fn next_order(&self, session: SessionId) -> Option<(&Name, &Order)> {
        let link = self.links.get(&session)?;
        Some((&link.agent, link.to_agent.front()?))
    }

    /// The report that is next on its way to a server.
    pub(crate) fn next_report(&self, session: SessionId) -> Option<(&Name, &Report)> {
        let link = self.links.get(&session)?;
        Some((&link.agent, link.to_server.front()?))
    }

    /// Whether anybody is still at either end of a connection.
    pub(crate) fn is_linked(&self, session: SessionId) -> bool {
        self.links.contains_key(&session)
    }

    /// The software that is prepared, or holds its clients.
    pub fn promises(&self) -> &BTreeSet<(MemberId, Phase)> {
        &self.promises
    }

    /// How many writes servers have begun.
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

    /// What has happened since it was last taken.
    pub fn take_happened(&mut self) -> Vec<Happened> {
        std::mem::take(&mut self.happened)
    }

    /// What has happened since it was last taken, a line for each thing that stories show.
    pub fn take_trace(&mut self) -> Vec<String> {
        self.take_happened().iter().filter_map(Happened::line).collect()
    }

    /// Forgets how many writes there were: worlds that go on alike become equal, whatever the size of the batches in
    /// which they came to where they are.
    pub fn forget_counts(&mut self) {
        self.appends = 0;
        for process in self.processes.values_mut().filter(|process| process.appends > 0) {
            process.appends = 0;
        }
    }

    fn note(&mut self, happened: Happened) {
        self.happened.push(happened);
    }

    fn process(&mut self, name: &str) -> &mut Process {
        self.processes.get_mut(name).expect("the script names agents that it has made")
    }

    fn now_of(&self, clock: Clock) -> Now {
        Now { time: clock.read(self.time), wall: self.wall() }
    }

    // ---- servers

    /// Starts a server over what is durable, as the active one. An earlier one that still runs learns with its next
    /// write that it is deposed.
    pub fn start_server(&mut self) {
        let mut cluster = (*self.base).clone();
        for record in self.journal.iter() {
            cluster.apply(Index(cluster.revision.0 + 1), record);
        }
        self.server_starts += 1;
        let clock = Clock::default();
        let engine = Engine::new(cluster, &format!("server-{}", self.server_starts), self.now_of(clock));
        let id = ServerId(self.server_starts);
        let (in_flight, has_landed, paused_at, tenure) = (None, false, None, None);
        let server = Server { engine, in_flight, has_landed, clock, paused_at, tenure };
        self.servers.insert(id, Shared::new(server));
        self.active = Some(id);
        let now = self.time;
        self.processes.values_mut().for_each(|process| process.connect_at = now);
    }

    /// Kills the active server. The batch in flight is lost, or durable although nobody has been told.
    pub fn kill_server(&mut self, keeps_in_flight: bool) {
        let Some(id) = self.active.take() else { return };
        let server = self.servers.get_mut(&id).expect("the active server runs");
        let in_flight = server.in_flight.take().filter(|_| keeps_in_flight && !server.has_landed);
        self.record(in_flight.into_iter().flatten());
        self.end_server(id);
    }

    fn end_server(&mut self, id: ServerId) {
        self.servers.remove(&id);
        self.abandon_asks(id);
        self.active = self.active.filter(|active| *active != id);
        for link in self.links.values_mut().filter(|link| link.server == id) {
            link.server_end = End::Gone;
            link.to_server.clear();
        }
        self.drop_links();
    }

    /// The active server's write arrives, and its answer takes a while: whoever takes over meanwhile has read it.
    pub fn land(&mut self) {
        let Some(server) = self.active.and_then(|id| self.servers.get_mut(&id)) else { return };
        if let Some(records) = server.in_flight.clone().filter(|_| !server.has_landed) {
            server.has_landed = true;
            self.record(records);
        }
    }

    fn record(&mut self, records: impl IntoIterator<Item = Record>) {
        for record in records {
            let index = Index(self.base.revision.0 + self.journal.len() as u64 + 1);
            if let Some(service) = &mut self.service {
                service.durable.apply(index, &record);
            }
            self.happened.push(Happened::Recorded { index, record: record.clone() });
            self.journal.push(record);
        }
    }

    /// Stops the active server's process for a while; [`World::start_server`] meanwhile deposes it.
    pub fn pause_server(&mut self) {
        if let Some(id) = self.active {
            self.servers.get_mut(&id).expect("it runs").paused_at = Some(self.time);
        }
    }

    /// Lets a server's process go on.
    pub fn resume_server(&mut self, id: ServerId) {
        if let Some(standby) = self.standbys.get_mut(&id) {
            standby.paused_at = None;
        }
        let Some(server) = self.servers.get_mut(&id) else { return };
        if let Some(at) = server.paused_at.take() {
            let after_ms = self.time.since(at);
            self.tell_server(id, Input::Woke { after_ms });
        }
    }

    /// A server that was deposed finds out by itself, as one does whose lease on the store has ended.
    pub fn end_deposed(&mut self, id: ServerId) {
        if self.active != Some(id) {
            self.end_server(id);
        }
    }

    /// What the servers' wall clock shows.
    pub fn wall(&self) -> WallTime {
        WallTime(self.time.0.saturating_add_signed(self.wall_ahead_ms))
    }

    /// Moves the servers' wall clock.
    pub fn jump_wall_clock(&mut self, ms: i64) {
        self.wall_ahead_ms += ms;
    }

    /// Makes the active server's clock run at another rate, in millionths more or less.
    pub fn drift_server(&mut self, rate_ppm: i32) {
        let now = self.time;
        if let Some(id) = self.active {
            self.servers.get_mut(&id).expect("it runs").clock.drift(now, rate_ppm);
        }
    }

    /// What a server reads from its store when it starts next: what is durable now, and perhaps more.
    pub fn set_journal(&mut self, records: Vec<Record>) {
        assert!(self.active.is_none(), "a store is read by servers that start");
        let known = self.journal.len().min(records.len());
        let mut records = records.into_iter();
        self.journal.0 = records.by_ref().take(known).collect();
        self.record(records);
    }

    fn tell_server(&mut self, id: ServerId, input: Input) {
        self.tell_server_all(id, vec![input]);
    }

    fn tell_server_all(&mut self, id: ServerId, inputs: Vec<Input>) {
        let Some(clock) = self.servers.get(&id).map(|server| server.clock) else { return };
        let now = self.now_of(clock);
        self.servers.get_mut(&id).expect("it was just there").engine.handle_all(now, inputs);
    }

    fn input(&mut self, input: impl FnOnce(ReplyId) -> Input) -> ReplyId {
        self.replies += 1;
        let reply = ReplyId(self.replies);
        self.tell_server(self.asked_server(), input(reply));
        reply
    }

    /// Whom operators ask.
    fn asked_server(&self) -> ServerId {
        let asked = self.asked.filter(|id| self.servers.contains_key(id));
        asked.or(self.active).expect("the script asks a server that runs")
    }

    /// Declares the cluster.
    pub fn apply(&mut self, spec: SpecFile) -> ReplyId {
        self.input(|reply| Input::Apply { reply, spec, principal: "operator".to_owned() })
    }

    /// Wants something of a host.
    pub fn ask_of_host(&mut self, host: HostName, ask: HostAsk) -> ReplyId {
        self.input(|reply| Input::Host { reply, host, ask })
    }

    /// Wants no planned change of some groups, or of the whole cluster.
    pub fn freeze(&mut self, groups: BTreeSet<GroupName>, end: FreezeEnd, reason: String) -> ReplyId {
        let principal = "operator".to_owned();
        self.input(|reply| Input::Freeze { reply, groups, end, reason, principal })
    }

    /// Wants that to be over.
    pub fn thaw(&mut self, groups: BTreeSet<GroupName>) -> ReplyId {
        self.input(|reply| Input::Thaw { reply, groups, principal: "operator".to_owned() })
    }

    /// Asks for a transition.
    pub fn run(&mut self, request: Request) -> ReplyId {
        let (server, asked) = (self.asked_server(), request.clone());
        let reply = self.input(|reply| Input::Run { reply, request });
        self.note(Happened::Asked { reply, server, request: asked });
        reply
    }

    /// Lets members say from now on how fit they are to be chosen, and the active server know it already.
    pub fn know_scores(&mut self, scores: &Scores) {
        self.scores.clone_from(scores);
        if let Some(server) = self.active.and_then(|id| self.servers.get_mut(&id)) {
            server.engine.scores.clone_from(scores);
        }
    }

    /// Ends a host's lease at the active server, however long it would have lasted.
    pub(crate) fn end_lease(&mut self, host: &HostName) {
        let Some(id) = self.active else { return };
        let now = self.now_of(self.servers[&id].clock);
        self.servers.get_mut(&id).expect("it is the active one").engine.lease_ended(now, host);
    }

    /// Says where a member is that cannot tell.
    pub fn resolve(&mut self, member: MemberId, state: StateName) -> ReplyId {
        let (principal, reason) = ("operator".to_owned(), "seen".to_owned());
        self.input(|reply| Input::Resolve { reply, member, state, principal, reason })
    }

    /// Says that the active server is going to be away.
    pub fn go_away(&mut self, lease_ms: u64) -> ReplyId {
        self.input(|reply| Input::Away { reply, lease_ms, principal: "operator".to_owned() })
    }

    /// Asks for a transition to be aborted.
    pub fn abort(&mut self, transition: TransitionId) -> ReplyId {
        self.input(|reply| Input::Abort { reply, transition })
    }

    // ---- software

    /// What a handler answers, one script for each call; the last is for all that follow.
    pub fn script(&mut self, member: &MemberId, phase: Phase, scripts: Vec<Script>) {
        self.scripts.insert((member.clone(), phase), scripts.into());
    }

    /// What one call does, instead of what was scripted for it.
    pub fn rescript(&mut self, name: &str, call: CallId, script: Script) {
        if let Some(running) = self.process(name).running.get_mut(&call) {
            running.script = within(script, running.timeout_ms);
        }
    }

    /// The settings that software has taken, whatever its agent and the server know of it.
    pub fn taken(&self) -> &BTreeMap<MemberId, Settings> {
        &self.taken
    }

    /// Lets software say that it provides and consumes something else from now on.
    pub fn publish(&mut self, member: &MemberId, published: Published) {
        self.published.insert(member.clone(), published);
    }

    /// Lets a member say from its next status on how fit it is to be chosen.
    pub fn set_score(&mut self, member: &MemberId, score: i64) {
        self.scores.insert(member.clone(), score);
    }

    /// Puts software into a state behind everybody's back.
    pub fn set_software(&mut self, member: &MemberId, state: &StateName) {
        self.software.insert(member.clone(), state.clone());
    }

    // ---- what happens by itself

    /// Lets everything happen that needs no time.
    pub fn deliver(&mut self) {
        for _ in 0..STEPS_MAX {
            if !self.step() {
                return;
            }
        }
        let shown = self.happened.len().saturating_sub(40);
        panic!("a loop without an end:\n{:#?}", &self.happened[shown..]);
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
        let now = self.time;
        self.tick_store();
        let running = self.servers.iter().filter(|(_, server)| server.paused_at.is_none());
        let is_due = |next: Option<Time>, clock: Clock| next.is_some_and(|next| next <= clock.read(now));
        let due = running.filter(|(_, server)| is_due(server.engine.next_deadline(), server.clock));
        for id in due.map(|(id, _)| *id).collect::<Vec<_>>() {
            self.tell_server(id, Input::Tick);
            let Server { engine, clock, .. } = &*self.servers[&id];
            assert!(!is_due(engine.next_deadline(), *clock), "{id:?} is due again at once");
        }
        self.guard();
        for (name, process) in self.processes.iter_mut().filter(|(_, process)| !process.is_paused) {
            let clock = process.clock;
            if process.engine.as_ref().is_none_or(|engine| !is_due(engine.next_deadline(), clock)) {
                continue;
            }
            let engine = process.engine.as_mut().expect("it was just there");
            engine.handle(clock.read(now), AgentInput::Tick);
            assert!(!is_due(engine.next_deadline(), clock), "agent {name} is due again at once");
        }
    }

    /// When something is due next by itself; none when nothing ever is.
    pub fn next_due(&self) -> Option<Time> {
        let servers = self.servers.values().filter(|server| server.paused_at.is_none());
        let servers = servers.filter_map(|server| Some(server.clock.when(server.engine.next_deadline()?)));
        let guards = self.processes.values();
        let guards = guards.filter_map(|process| Some(process.clock.when(process.guard.as_ref()?.until)));
        let processes = self.processes.values().filter(|process| !process.is_paused);
        let processes = processes.flat_map(|process| {
            let deadline = process.engine.as_ref().and_then(AgentEngine::next_deadline);
            let deadline = deadline.map(|deadline| process.clock.when(deadline));
            let connects = self.would_connect(process).then_some(process.connect_at);
            deadline.into_iter().chain(connects)
        });
        let handlers = self.processes.values().filter(|process| process.handlers_run());
        let handlers = handlers.flat_map(|process| process.running.values().map(Running::end));
        servers
            .chain(processes)
            .chain(handlers)
            .chain(guards)
            .chain(self.store_due())
            .map(|due| Time(due.0.max(self.time.0 + 1)))
            .min()
    }

    fn would_connect(&self, process: &Process) -> bool {
        let is_up = |server: &Server| server.paused_at.is_none();
        let is_up = match &self.service {
            Some(_) => self.servers.values().any(|server| is_up(server)),
            None => self.active.is_some_and(|id| is_up(&self.servers[&id])),
        };
        is_up && process.engine.is_some() && process.session.is_none() && process.cut.is_empty()
    }

    /// Lets the next thing happen that needs no time. Tells whether there was one.
    pub fn step(&mut self) -> bool {
        let first = self.choices().next();
        first.into_iter().any(|choice| {
            self.perform(&choice);
            true
        })
    }

    /// All that may happen now without time passing.
    pub fn choices(&self) -> impl Iterator<Item = Choice> {
        let servers = || self.servers.iter().filter(|(_, server)| server.paused_at.is_none());
        let agents = || {
            let live = self.processes.iter().filter(|(_, process)| !process.is_paused);
            live.filter_map(|(name, process)| Some((name, process, process.engine.as_ref()?)))
        };
        let outputs = servers().filter(|(_, server)| server.engine.has_output());
        let agent_outputs = agents().filter(|(_, _, engine)| engine.has_output());
        let appends = servers().filter(|(_, server)| server.in_flight.is_some() && server.tenure.is_none());
        let agent_appends = agents().filter(|(_, process, _)| process.in_flight.is_some());
        let connects =
            agents().filter(|(_, process, _)| process.connect_at <= self.time && self.would_connect(process));
        let ends = self.processes.iter().filter(|(_, process)| process.handlers_run());
        let ends = ends.flat_map(|(name, process)| {
            let due = process.running.iter().filter(|(_, running)| running.end() <= self.time);
            due.map(|(call, _)| Choice::End(name.clone(), *call))
        });
        outputs
            .map(|(id, _)| Choice::Server(*id))
            .chain(agent_outputs.map(|(name, ..)| Choice::Agent(name.clone())))
            .chain(appends.map(|(id, _)| Choice::Append(*id)))
            .chain(agent_appends.map(|(name, ..)| Choice::AgentAppend(name.clone())))
            .chain(connects.flat_map(|(name, ..)| self.dialled(name)))
            .chain(self.store_choices())
            .chain(self.links.iter().flat_map(|(session, link)| self.carried(*session, link)))
            .chain(ends)
    }

    /// Which servers an agent may connect to.
    fn dialled(&self, name: &Name) -> Vec<Choice> {
        if self.service.is_none() {
            return vec![Choice::Connect(name.clone())];
        }
        let running = self.servers.iter().filter(|(_, server)| server.paused_at.is_none());
        running.map(|(id, _)| Choice::Dial(name.clone(), *id)).collect()
    }

    fn carried(&self, session: SessionId, link: &Link) -> impl Iterator<Item = Choice> + use<> {
        let process = &self.processes[&link.agent];
        let is_cut = |way| process.cut.contains(&way);
        let reaches_agent = link.agent_is_there && !process.is_paused && !is_cut(Way::ToAgent);
        let to_agent = reaches_agent && !(link.to_agent.is_empty() && link.server_end == End::Open);
        let is_served = self.servers.get(&link.server).is_some_and(|server| server.paused_at.is_none());
        let to_server = is_served
            && match link.server_end {
                End::Open if is_cut(Way::ToServer) => false,
                End::Open => !(link.to_server.is_empty() && link.agent_is_there),
                End::Closing => true,
                End::Gone => false,
            };
        let to_agent = to_agent.then_some(Choice::ToAgent(session));
        to_agent.into_iter().chain(to_server.then_some(Choice::ToServer(session)))
    }

    /// Lets one thing happen that [`World::choices`] has named.
    pub fn perform(&mut self, choice: &Choice) {
        match choice {
            Choice::Server(id) => self.poll_server(*id),
            Choice::Agent(name) => self.poll_agent(name),
            Choice::Append(id) => self.append(*id),
            Choice::AgentAppend(name) => self.append_agent(name),
            Choice::Connect(name) => {
                let server = self.active.expect("agents connect to a server that runs");
                self.connect(name, server);
            }
            Choice::Dial(name, server) => self.connect(name, *server),
            Choice::Store(ask) => self.carry_store(*ask),
            Choice::ToAgent(session) => self.carry_to_agent(*session),
            Choice::ToServer(session) => self.carry_to_server(*session),
            Choice::End(name, call) => self.end_handler(name, *call),
        }
    }

    fn poll_server(&mut self, id: ServerId) {
        let server = self.servers.get_mut(&id).expect("it was named as one that runs");
        match server.engine.poll_output().expect("it was named as one with an output") {
            Output::Append { first, records } => {
                assert!(server.in_flight.replace(records).is_none(), "one batch in flight at a time");
                let is_shared = server.tenure.is_some();
                self.appends += 1;
                if is_shared {
                    self.write_shared(id, Index(first.0 - 1));
                }
            }
            Output::Confirm if server.tenure.is_some() => self.confirm_shared(id),
            // The store knows at once; whoever is deposed gets no answer.
            Output::Confirm if self.active == Some(id) => self.tell_server(id, Input::Confirmed),
            Output::Confirm => {}
            Output::Order { session, order } => {
                let link = self.links.get_mut(&session);
                if let Some(link) = link.filter(|link| link.agent_is_there && link.server_end == End::Open) {
                    link.to_agent.push_back(order);
                }
            }
            Output::Close { session } => {
                if let Some(link) = self.links.get_mut(&session) {
                    link.server_end = End::Closing;
                    link.to_server.clear();
                }
            }
            Output::Reply { reply, answer } => {
                self.note(Happened::Answered { reply, answer: answer.clone() });
                self.answers.insert(reply, answer);
            }
            Output::Event(Event::Warning(message)) => self.note(Happened::ServerWarned(message)),
            Output::Event(Event::Phase { .. } | Event::Blocked { .. } | Event::Voted { .. }) => {}
            Output::Event(Event::Reported { .. } | Event::Waits(_) | Event::Refused(_)) => {}
        }
    }

    /// The store takes no write but the active server's.
    fn append(&mut self, id: ServerId) {
        let server = self.servers.get_mut(&id).expect("it was named as one that runs");
        let has_landed = std::mem::take(&mut server.has_landed);
        if self.active != Some(id) && !has_landed {
            return self.end_server(id);
        }
        let records = server.in_flight.take().expect("it was named as one with a write");
        if !has_landed {
            self.record(records);
        }
        self.tell_server(id, Input::Appended);
    }

    fn poll_agent(&mut self, name: &Name) {
        let process = self.process(name);
        let engine = process.engine.as_mut().expect("it was named as one that runs");
        // What it had to say may have become void meanwhile.
        let Some(output) = engine.poll_output() else { return };
        match output {
            AgentOutput::Append(records) => {
                assert!(process.in_flight.replace(records).is_none(), "one batch in flight at a time");
                process.appends += 1;
            }
            AgentOutput::Send(report) => {
                let session = process.session;
                if let Some(link) = session.and_then(|session| self.links.get_mut(&session)) {
                    link.to_server.push_back(report);
                }
            }
            AgentOutput::Run { call, order, timeout_ms, .. } => {
                self.start_handler(name, call, *order, timeout_ms);
            }
            AgentOutput::Kill(call) => {
                if let Some(running) = process.running.get_mut(&call) {
                    let reason = Some("killed: the lease has ended".to_owned());
                    running.script =
                        Script { answer: Answer::No, reason, has_effect: false, ..running.script.clone() };
                    running.script.takes_ms = 0;
                }
            }
            AgentOutput::Guard { .. } if !process.has_guard => self.tell_agent(name, AgentInput::GuardLost),
            AgentOutput::Guard { at: _, until, pids } => {
                let has_some = |(_, pids): &(&MemberId, &BTreeSet<u32>)| !pids.is_empty();
                let found = pids.iter().filter(has_some).map(|(member, _)| member.clone()).collect();
                process.guard = (!pids.is_empty()).then_some(Watch { until, members: pids });
                self.tell_agent(name, AgentInput::Guarded { members: found, early_ms: 0 });
            }
            AgentOutput::Joined => self.note(Happened::Joined(name.clone())),
            AgentOutput::Disconnect(message) => {
                self.note(Happened::TurnedAway { agent: name.clone(), message });
                self.hang_up(name);
            }
            AgentOutput::Warning(message) => {
                self.note(Happened::AgentWarned { agent: name.clone(), message });
            }
        }
    }

    fn append_agent(&mut self, name: &Name) {
        let process = self.process(name);
        let records = process.in_flight.take().expect("it was named as one with a write");
        self.record_agent(name, records);
        self.tell_agent(name, AgentInput::Appended);
    }

    fn connect(&mut self, name: &Name, server: ServerId) {
        self.sessions += 1;
        let session = SessionId(self.sessions);
        let (to_server, to_agent) = (VecDeque::new(), VecDeque::new());
        let (agent_is_there, server_end) = (true, End::Open);
        let agent = name.clone();
        self.links.insert(session, Link { agent, server, to_server, to_agent, agent_is_there, server_end });
        self.process(name).session = Some(session);
        self.tell_agent(name, AgentInput::Connected);
    }

    fn carry_to_agent(&mut self, session: SessionId) {
        let link = self.links.get_mut(&session).expect("it was named as one that is there");
        let agent = link.agent.clone();
        let Some(order) = link.to_agent.pop_front() else { return self.hang_up(&agent) };
        let server = link.server;
        self.note(Happened::Ordered { agent: agent.clone(), server, session, order: order.clone() });
        self.tell_agent(&agent, AgentInput::Order(order));
    }

    fn carry_to_server(&mut self, session: SessionId) {
        let server = self.links[&session].server;
        let input = self.next_to_server(session);
        self.tell_server(server, input);
    }

    /// What a server hears next on a connection that has something for it.
    fn next_to_server(&mut self, session: SessionId) -> Input {
        let link = self.links.get_mut(&session).expect("it was named as one that is there");
        let (agent, server) = (link.agent.clone(), link.server);
        let Some(report) = link.to_server.pop_front() else {
            link.server_end = End::Gone;
            self.drop_links();
            return Input::Closed { session };
        };
        self.note(Happened::Reported { agent, server, session, report: report.clone() });
        Input::Report { session, report }
    }

    /// All that waits for the active server reaches it in one go, as it does when the server was busy meanwhile.
    pub fn carry_all_to_server(&mut self) {
        let Some(id) = self.active else { return };
        let mut inputs = Vec::new();
        loop {
            let next = self.links.iter().filter(|(_, link)| link.server == id);
            let mut next = next.filter(|(session, link)| {
                self.carried(**session, link).any(|choice| choice == Choice::ToServer(**session))
            });
            let Some(session) = next.next().map(|(session, _)| *session) else { break };
            inputs.push(self.next_to_server(session));
        }
        // One that is stopped does not look at its clock either.
        if !inputs.is_empty() {
            self.tell_server_all(id, inputs);
        }
    }

    // ---- guards

    /// Lets every guard act whose time has come: it stops what it was told of, and the handlers that may be about to
    /// start it, whatever has become of the agent.
    fn guard(&mut self) {
        let now = self.time;
        let due = self.processes.iter().filter(|(_, process)| {
            process.guard.as_ref().is_some_and(|guard| guard.until <= process.clock.read(now))
        });
        for name in due.map(|(name, _)| name.clone()).collect::<Vec<_>>() {
            let process = self.process(&name);
            let members = process.guard.take().expect("it was just seen").members;
            let is_of_it = |running: &Running| members.contains_key(&running.call.member);
            let ended: Vec<CallId> =
                process.running.iter().filter(|(_, running)| is_of_it(running)).map(|(id, _)| *id).collect();
            ended.iter().for_each(|id| _ = process.running.remove(id));
            for call in ended {
                let (reason, findings) = (Some("killed by the guard".to_owned()), Findings::default());
                self.tell_agent(&name, AgentInput::Ended { call, answer: Answer::No, reason, findings });
            }
            for (member, _) in members.into_iter().filter(|(_, pids)| !pids.is_empty()) {
                self.stop_software(&member);
                self.note(Happened::Guarded { agent: name.clone(), member });
            }
        }
    }

    fn stop_software(&mut self, member: &MemberId) {
        let groups = self.cluster().map(|cluster| &cluster.spec.groups);
        let lowest = groups.and_then(|groups| Some(groups.get(&member.group)?.lifecycle.lowest().clone()));
        match lowest {
            Some(lowest) => drop(self.software.insert(member.clone(), lowest)),
            // New software is in the lowest state.
            None => drop(self.software.remove(member)),
        }
    }

    // ---- handlers

    fn start_handler(&mut self, name: &Name, id: CallId, call: Call, timeout_ms: u64) {
        let key = (call.member.clone(), call.phase);
        let script = match self.scripts.get_mut(&key) {
            Some(scripts) if scripts.len() > 1 => scripts.pop_front(),
            Some(scripts) => scripts.front().cloned(),
            None => None,
        };
        let script = within(script.unwrap_or_default(), timeout_ms);
        self.note(Happened::Started { agent: name.clone(), id, call: call.clone() });
        let running = Running { call, script, begun: self.time, timeout_ms };
        self.process(name).running.insert(id, running);
    }

    /// What pretend software says of itself; new software is in the lowest state.
    fn status(&self, member: &MemberId) -> Option<StateName> {
        let lowest = || {
            let groups = &self.cluster()?.spec.groups;
            Some(groups.get(&member.group)?.lifecycle.lowest().clone())
        };
        self.software.get(member).cloned().or_else(lowest)
    }

    /// Software that is not in its lowest state has a process.
    fn pids_of(&self, member: &MemberId) -> Option<BTreeSet<u32>> {
        let groups = &self.cluster()?.spec.groups;
        let lowest = groups.get(&member.group)?.lifecycle.lowest();
        let runs = self.software.get(member).is_some_and(|state| state != lowest);
        Some(if runs { BTreeSet::from([1]) } else { BTreeSet::new() })
    }

    fn end_handler(&mut self, name: &Name, id: CallId) {
        let running = self.process(name).running.remove(&id).expect("it was named as one that ends");
        let Running { call, script, .. } = running;
        if call.phase == Phase::Fence && script.has_effect {
            self.power_off(&call.member.host);
        }
        let moves = matches!(call.phase, Phase::Commit | Phase::Undo | Phase::Stop);
        if let (true, true, Some(to)) = (moves, script.has_effect, &call.to) {
            self.software.insert(call.member.clone(), to.clone());
            if let (Phase::Commit | Phase::Undo, Some(context)) = (call.phase, &call.context) {
                self.taken.insert(call.member.clone(), context.settings.clone());
            }
        }
        let member = call.member.clone();
        match call.phase {
            Phase::Prepare | Phase::Hold => _ = self.promises.insert((member, call.phase)),
            Phase::Cancel => _ = self.promises.remove(&(member, Phase::Prepare)),
            Phase::Release if script.answer == Answer::Yes => {
                self.promises.remove(&(member, Phase::Hold));
            }
            Phase::Commit | Phase::Undo | Phase::Stop => {}
            Phase::Check | Phase::Release | Phase::Status | Phase::Notice | Phase::Fence => {}
        }
        let own = (call.phase == Phase::Status).then(|| self.status(&call.member)).flatten();
        let state = script.state.or(own);
        let published =
            (call.phase == Phase::Status).then(|| self.published.get(&call.member).cloned()).flatten();
        let Published { provides, consumes } = published.unwrap_or_default();
        let pids = (call.phase == Phase::Status).then(|| self.pids_of(&call.member)).flatten();
        let score = (call.phase == Phase::Status).then(|| self.scores.get(&call.member).copied()).flatten();
        let findings =
            Findings { out: script.out, state, score, pids, provides, consumes, ..Findings::default() };
        self.note(Happened::Ended { agent: name.clone(), call, answer: script.answer });
        let Script { answer, reason, .. } = script;
        self.tell_agent(name, AgentInput::Ended { call: id, answer, reason, findings });
    }
}

/// A script that may take so long; one that takes longer is ended with a no.
fn within(script: Script, timeout_ms: u64) -> Script {
    if script.takes_ms < timeout_ms {
        return script;
    }
    let reason = Some(format!("ended after {timeout_ms} ms"));
    Script { answer: Answer::No, reason, takes_ms: timeout_ms, ..script }
}

/// The hosts whose agents hold a hold that has not been let go, or a promise that no outcome has ended.
pub fn unsettled(world: &World) -> BTreeSet<HostName> {
    let processes = world.processes.values();
    let unsettled = processes.filter(|process| {
        let mut state = process.base.clone();
        process.journal.iter().for_each(|record| state.apply(record));
        !state.open.is_empty()
    });
    unsettled.map(|process| process.host.clone()).collect()
}
