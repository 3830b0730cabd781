//! The server's deciding half: one way in ([`Engine::handle`]), one way out ([`Engine::poll_output`]), one alarm
//! clock ([`Engine::next_deadline`]).
//!
//! The engine works on a cluster that includes what it has proposed (`head`), so that it never contradicts
//! itself; readers are shown the one that has been acknowledged. Outputs wait in the outbox for the
//! records before them. When it is deposed it is dropped, and a new one is loaded from the journal.
//!
//! This file is sessions, hosts and requests; `transition.rs` drives what was requested.

use crate::cluster::{Cluster, Host};
use crate::freeze::FreezeEnd;
use crate::held_back::HeldBack;
use crate::id::{
    ClusterId, GroupName, HostName, Index, MemberId, Reign, RunId, StateName, Token, TransitionId,
};
use crate::lease::Heard;
use crate::message::{
    Assignment, Call, ContextMember, Decision, Done, Hello, Order, PROTOCOL, Phase, Report,
};
use crate::mutant::{self, Mutant};
use crate::outbox::{Out, Outbox};
use crate::plan::{self, Plan, Scores};
use crate::record::{Acknowledged, Body, Cause, HostChange, Liveness, Record, StepResult};
use crate::refusal::{Refusal, Refusals};
use crate::relation::{self, Published};
use crate::repair::Recovery;
use crate::request::{Code, Obstacle, Rejection, Request, check_same_cluster};
use crate::spec::{Recover, SpecError, SpecFile};
use crate::time::{Now, Time};
use crate::transition::Run;
use crate::vote::Vote;
use serde_json::{Map, Value};
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;

/// The largest spec, written out, in bytes. It is one record of the journal, and each has to fit with room.
pub const SPEC_BYTES_MAX: usize = 8 << 20;
/// What hosts acknowledge is recorded this often, in milliseconds. Too low: a record for each of them. Too high: it is
/// kept for longer than it has to be, and a server that starts tells again what was acknowledged before.
const ACKNOWLEDGE_MS: u64 = 60_000;
/// And as soon as so many outcomes are acknowledged: a busy cluster has thousands in a minute.
const ACKNOWLEDGED_MAX: usize = 500;
/// The most transitions without an outcome; more are refused with `busy`.
pub const OPEN_MAX: usize = 1000;

/// How long the result of a step waits for others before it is written, if nothing else is and nobody waits for it, in
/// milliseconds. Too low: answers to one order come in a burst, and what has just missed a write waits for its end and
/// for the next one. Too high: readers see later how far a transition has come.
const RESULTS_MS: u64 = 20;

/// How long a server may say that it is going to be away, in milliseconds. Too low is of no use; too high, and a host
/// that dies meanwhile is not replaced for as long.
pub const AWAY_MS: std::ops::RangeInclusive<u64> = 1000..=3_600_000;
/// The most labels that may be set of one host.
pub const LABELS_MAX: usize = 1000;
/// What is to be done about an agent that does not keep to the protocol.
const AGENT_IS_WRONG: &str = "mend the agent, see docs/protocol.md";
/// How many runs of its agent are known of a host. Too few: of that many agents under one name, none is told.
const AGENT_RUNS_MAX: usize = 8;

/// An agent's connection, named by the driver.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SessionId(pub u64);

/// Where an answer goes, named by the driver.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ReplyId(pub u64);

/// What happens to the engine.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Input {
    /// The batch in flight is durable.
    Appended,
    /// The reign held at some moment after [`Output::Confirm`].
    Confirmed,
    /// An agent says something.
    Report {
        /// On which connection.
        session: SessionId,
        /// What.
        report: Report,
    },
    /// A connection is gone.
    Closed {
        /// Which.
        session: SessionId,
    },
    /// An operator asks for a transition.
    Run {
        /// Where the answer goes.
        reply: ReplyId,
        /// What for.
        request: Request,
    },
    /// An operator wants a transition aborted.
    Abort {
        /// Where the answer goes.
        reply: ReplyId,
        /// Which.
        transition: TransitionId,
    },
    /// An operator wants something of a host.
    Host {
        /// Where the answer goes.
        reply: ReplyId,
        /// Which.
        host: HostName,
        /// What.
        ask: HostAsk,
    },
    /// An operator declares the cluster.
    Apply {
        /// Where the answer goes.
        reply: ReplyId,
        /// As it was written.
        spec: SpecFile,
        /// Who.
        principal: String,
    },
    /// A person says where a member is that cannot tell.
    Resolve {
        /// Where the answer goes.
        reply: ReplyId,
        /// Which.
        member: MemberId,
        /// Where it is.
        state: StateName,
        /// Who says so.
        principal: String,
        /// In that person's words.
        reason: String,
    },
    /// The server is going to be away: hosts are told of a longer lease, and the answer comes when all of them go by it.
    Away {
        /// Where the answer goes.
        reply: ReplyId,
        /// That lease, in milliseconds.
        lease_ms: u64,
        /// Who says so.
        principal: String,
    },
    /// An operator wants no planned change of some groups, or of the whole cluster.
    Freeze {
        /// Where the answer goes.
        reply: ReplyId,
        /// Which; none: the whole cluster.
        groups: BTreeSet<GroupName>,
        /// Until when.
        end: FreezeEnd,
        /// Why.
        reason: String,
        /// Who.
        principal: String,
    },
    /// An operator wants that to be over.
    Thaw {
        /// Where the answer goes.
        reply: ReplyId,
        /// Of which groups; none: of all that is frozen.
        groups: BTreeSet<GroupName>,
        /// Who.
        principal: String,
    },
    /// A deadline may have passed.
    Tick,
    /// The process was stopped and goes on. What agents said meanwhile has not been read yet: nobody is to be
    /// blamed for that silence.
    Woke {
        /// For how long, in milliseconds.
        after_ms: u64,
    },
}

/// What an operator may want of a host.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum HostAsk {
    /// Labels are set over those of its configuration.
    Label {
        /// The labels; none: the one of its configuration counts again.
        labels: BTreeMap<String, Option<String>>,
    },
    /// It is gone for good.
    Forget {
        /// Whether somebody has made sure that nothing of it runs.
        is_stopped: bool,
    },
    /// It takes members again after it was drained.
    Undrain,
    /// It is to be stopped for sure, by a fence handler.
    Fence,
    /// It has stopped: a person has made sure.
    Fenced {
        /// Who.
        principal: String,
        /// In that person's words.
        reason: String,
    },
}

/// What the engine wants done.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Output {
    /// Make these records durable, the first under this index, and say [`Input::Appended`].
    Append {
        /// The first one's index.
        first: Index,
        /// The records.
        records: Vec<Record>,
    },
    /// Ask the store whether this reign still holds, and say [`Input::Confirmed`] if it does.
    Confirm,
    /// Send an order.
    Order {
        /// On which connection.
        session: SessionId,
        /// The order.
        order: Order,
    },
    /// Close a connection, after what was sent before.
    Close {
        /// Which.
        session: SessionId,
    },
    /// Answer an operator.
    Reply {
        /// Where.
        reply: ReplyId,
        /// The answer.
        answer: Result<Accepted, Rejection>,
    },
    /// Something that readers may want to see.
    Event(Event),
}

/// What an operator is told when a request is accepted.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Accepted {
    /// The transition was requested, now or earlier under the same id.
    Transition(TransitionId),
    /// There is nothing to do.
    Nothing,
    /// The spec is in force from this revision on.
    Spec(Index),
    /// The transition is aborted.
    Aborted,
    /// The host is as it was asked to be from this revision on.
    Host(Index),
    /// So many hosts go by the longer lease, and so many have not been heard of.
    Away {
        /// Those that do.
        told: usize,
        /// Those that may not.
        missing: usize,
    },
    /// What is frozen is as it was asked to be from this revision on.
    Freezes(Index),
}

/// Something provisional: not in the journal, and never a reason for anything.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Event {
    /// A transition has come to a phase.
    Phase {
        /// Which.
        transition: TransitionId,
        /// `queued`, `check`, `prepare`, `commit` or `release`; none when it has ended.
        phase: Option<&'static str>,
    },
    /// A transition waits in the queue for another one.
    Blocked {
        /// Which.
        transition: TransitionId,
        /// The first one that is in its way.
        blocker: TransitionId,
    },
    /// A vote was counted.
    Voted {
        /// In which transition.
        transition: TransitionId,
        /// The vote.
        vote: Vote,
    },
    /// A member said something of itself.
    Reported {
        /// Which.
        member: MemberId,
        /// How fit it is to be chosen.
        score: Option<i64>,
        /// Small values for people.
        facts: Map<String, Value>,
        /// Why its state cannot be told.
        reason: Option<String>,
    },
    /// What keeps groups from being repaired now, all of it.
    Waits(BTreeMap<GroupName, Rejection>),
    /// Agents that are refused now, by the host that each says it is: all of them that are kept.
    Refused(BTreeMap<HostName, Refusal>),
    /// Something for the log that an operator should look at.
    Warning(String),
}

/// A connected agent.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct Session {
    pub(crate) id: SessionId,
    pub(crate) run: RunId,
    /// What the agent was last told of its members.
    assigned: Vec<Assignment>,
    /// Transitions whose outcome it waits for: it said so when it came, or has voted since.
    pub(crate) waits_for: BTreeSet<TransitionId>,
    /// Whether its host has a handler that makes sure that another host has stopped.
    pub(crate) fences: bool,
}

/// A renewal that is not answered yet.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct Renewal {
    /// When it was sent, by its host's clock.
    sent: Time,
    /// The lease that its host is told, in milliseconds; none: it goes by it already.
    lease_ms: Option<u64>,
}

/// Answers that no write confirms the reign for. It has to hold after what they answer came.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default)]
struct Unconfirmed {
    /// The newest of each connection. A store that does not answer must not fill the memory.
    renewals: BTreeMap<SessionId, Renewal>,
    /// To operators, each of whom waits for one.
    replies: Vec<(ReplyId, Result<Accepted, Rejection>)>,
}

/// Hosts are told of a longer lease before this server goes away.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Away {
    lease_ms: u64,
    /// Who waits for that.
    reply: Option<ReplyId>,
    /// Nobody waits for longer.
    until: Time,
    /// How many hosts are told.
    asked: usize,
    /// The hosts that have not said that they go by it.
    missing: BTreeSet<HostName>,
}

/// What a host has shown of a later server.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default)]
pub(crate) struct Ahead {
    pub(crate) token: Token,
    pub(crate) reign: Reign,
    /// Its groups.
    pub(crate) groups: BTreeSet<GroupName>,
}

/// For which transition, group and revision, and what.
pub(crate) type Told = ((TransitionId, GroupName, Index), Arc<Vec<ContextMember>>);

/// The server's deciding half.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Engine {
    pub(crate) head: Cluster,
    acked: Arc<Cluster>,
    pending: VecDeque<(Index, Record)>,
    pub(crate) outbox: Outbox<(Index, Record), Output>,
    /// When results of steps that wait for others are written, while there are some.
    results_due: Time,
    pub(crate) now: Now,
    pub(crate) sessions: BTreeMap<HostName, Session>,
    hosts_by_session: BTreeMap<SessionId, HostName>,
    /// When each host was last heard of; those that have not been since this engine began count from then.
    last_heard: BTreeMap<HostName, Heard>,
    /// The runs of agents that each host was seen with in this reign, newest last; a few of them.
    agent_runs: BTreeMap<HostName, VecDeque<RunId>>,
    /// The hosts that have had a session since this engine began. Leases do not go by it: each has a whole one to come.
    heard: Arc<BTreeSet<HostName>>,
    pub(crate) scores: Scores,
    pub(crate) runs: BTreeMap<TransitionId, Run>,
    /// The transitions for which something may have become possible.
    pub(crate) stirred: BTreeSet<TransitionId>,
    /// When something is due in each open transition.
    wakes: BTreeMap<TransitionId, Time>,
    /// What handlers of one group were last told of the members around them, at which revision: a thousand calls of
    /// one wave share it.
    pub(crate) told: Option<Told>,
    /// No host is lost before then. Renewals are what an engine hears most, and must not look at every host.
    hosts_due: Option<Time>,
    /// The states that members report.
    reports: HeldBack<MemberId, Option<StateName>>,
    /// The capabilities that they publish.
    publications: HeldBack<MemberId, Published>,
    /// The states in which they are guarded.
    guards: HeldBack<MemberId, BTreeSet<StateName>>,
    /// What hosts that are known say of themselves when they come back, where it differs.
    introductions: HeldBack<HostName, HostChange>,
    /// How hosts are seen whose sessions have ended: `suspect` or `left`.
    departures: HeldBack<HostName, Liveness>,
    /// Those that were not taken, since they would relate groups in a circle or beyond all bounds.
    refused: BTreeMap<MemberId, Published>,
    /// Whether relations have changed since those were tried.
    refused_may_fit: bool,
    /// Hosts that have seen a higher token or reign than this journal has. Nobody in their groups is ordered anything:
    /// another server has gone on from here.
    pub(crate) ahead: BTreeMap<HostName, Ahead>,
    /// What hosts have acknowledged, and is not recorded yet.
    acknowledged: BTreeMap<HostName, Acknowledged>,
    /// How many outcomes are in it.
    acknowledged_count: usize,
    /// When that was recorded last. Nothing waits for it, so no alarm clock is set: the next renewal is soon enough.
    acknowledged_at: Time,
    pub(crate) recovery: Recovery,
    /// What is to be answered once the store has confirmed the reign, and that for which it has been asked.
    unconfirmed: Unconfirmed,
    confirming: Option<Unconfirmed>,
    away: Option<Away>,
    /// For people: agents that are refused.
    refusals: Refusals,
    /// Whether the record that begins this reign is durable.
    has_begun: bool,
}

/// What a cluster goes by that says nothing else.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default)]
pub struct Defaults {
    /// The lease of hosts where the spec has none, in milliseconds; none: 3000.
    pub lease_ms: Option<u64>,
    /// What it is known by from now on, where it has no identity yet; none: it gets none.
    pub id: Option<ClusterId>,
}

impl Engine {
    /// An engine over a replayed journal. It appends the record that begins its reign, aborts what was begun
    /// and not decided, and carries on with what was decided.
    pub fn new(cluster: Cluster, server: &str, now: Now) -> Self {
        Self::with_defaults(cluster, server, Defaults::default(), now)
    }

    /// The same, with what the cluster goes by where nothing else is said.
    pub fn with_defaults(cluster: Cluster, server: &str, defaults: Defaults, now: Now) -> Self {
        let mut engine = Self {
            acked: Arc::new(cluster.clone()),
            head: cluster,
            pending: VecDeque::new(),
            outbox: Outbox::default(),
            results_due: now.time,
            now,
            sessions: BTreeMap::new(),
            hosts_by_session: BTreeMap::new(),
            last_heard: BTreeMap::new(),
            agent_runs: BTreeMap::new(),
            heard: Arc::default(),
            scores: Scores::new(),
            runs: BTreeMap::new(),
            stirred: BTreeSet::new(),
            wakes: BTreeMap::new(),
            told: None,
            hosts_due: Some(now.time),
            reports: HeldBack::default(),
            publications: HeldBack::default(),
            guards: HeldBack::default(),
            introductions: HeldBack::default(),
            departures: HeldBack::default(),
            refused: BTreeMap::new(),
            refused_may_fit: false,
            ahead: BTreeMap::new(),
            acknowledged: BTreeMap::new(),
            acknowledged_count: 0,
            acknowledged_at: now.time,
            recovery: Recovery::default(),
            unconfirmed: Unconfirmed::default(),
            confirming: None,
            away: None,
            refusals: Refusals::default(),
            has_begun: false,
        };
        let Defaults { lease_ms, id } = defaults;
        let cluster = id.filter(|_| engine.head.id.is_none());
        engine.propose(Body::Reign { server: server.to_owned(), lease_ms, cluster });
        for host in engine.head.hosts.keys() {
            // A host that the reign before has told of a longer lease renews it that seldom.
            let lease_ms = engine.head.leases_ms.into_iter().fold(engine.lease_ms(), u64::max);
            let is_graceless = mutant::is(Mutant::GraceForgotten);
            let since = if is_graceless { Time(now.time.0.saturating_sub(2 * lease_ms)) } else { now.time };
            engine.last_heard.insert(host.clone(), Heard::new(since, lease_ms));
        }
        engine.end_freezes();
        engine.resume();
        // The server before may have recorded that a host is lost, and have ended before it could record what follows.
        let lost = engine.head.hosts.iter().filter(|(_, host)| host.liveness == Liveness::Lost);
        for host in lost.map(|(name, _)| name.clone()).collect::<Vec<_>>() {
            engine.lease_is_evidence(&host);
        }
        engine.stir_all();
        engine.watch_hosts();
        engine.stir_recovery();
        engine.settle();
        engine
    }

    /// The cluster as far as it has been acknowledged: what readers may see.
    pub fn acknowledged(&self) -> &Arc<Cluster> {
        &self.acked
    }

    /// The cluster with what has been proposed and may not be durable yet: for those who doubt, never for readers.
    pub fn proposed(&self) -> &Cluster {
        &self.head
    }

    /// How fit members are to be chosen, as they last said.
    pub fn scores(&self) -> &Scores {
        &self.scores
    }

    /// The hosts that have had a session since this engine began; another one whenever that changes.
    pub fn heard(&self) -> &Arc<BTreeSet<HostName>> {
        &self.heard
    }

    /// Takes one input in. Outputs are to be polled afterwards.
    pub fn handle(&mut self, now: Now, input: Input) {
        self.handle_all(now, [input]);
    }

    /// Takes in what has come at once, in order. What it makes possible is looked at once: a thousand answers to one
    /// question would else be counted a thousand times.
    pub fn handle_all(&mut self, now: Now, inputs: impl IntoIterator<Item = Input>) {
        self.now = now;
        if mutant::is(Mutant::WallClockLease) {
            self.now.time = Time(now.wall.0);
        }
        self.end_freezes();
        inputs.into_iter().for_each(|input| self.take(input));
        self.watch_hosts();
        if self.late_due().is_some_and(|due| due <= self.now.time) {
            self.record_reports(self.now.time);
            self.record_hosts();
        }
        self.settle();
        self.recover();
        self.settle();
        if self.away.as_ref().is_some_and(|away| away.until <= self.now.time) {
            self.answer_away();
        }
        if self.refusals.due().is_some_and(|due| due <= self.now.time) && self.refusals.expire(self.now.time)
        {
            self.refusals_change();
        }
        self.confirm();
        if self.results_due <= self.now.time {
            self.outbox.hurry();
        }
    }

    fn take(&mut self, input: Input) {
        match input {
            Input::Appended => {
                let count = self.outbox.acknowledge();
                let acked = Arc::make_mut(&mut self.acked);
                if !std::mem::replace(&mut self.has_begun, true) && !mutant::is(Mutant::GraceForgotten) {
                    // Another server may have answered renewals until then.
                    let now = self.now.time;
                    self.last_heard.values_mut().for_each(|heard| heard.again(now));
                }
                for (index, record) in self.pending.drain(..count) {
                    if !mutant::is(Mutant::UnacknowledgedShown) {
                        acked.apply(index, &record);
                    }
                }
                // Each record is asserted as it is applied; a walk over everything is for builds that doubt.
                if cfg!(debug_assertions) {
                    acked.assert_invariants();
                }
            }
            Input::Confirmed => {
                if let Some(confirmed) = self.confirming.take() {
                    self.emit_confirmed(confirmed);
                }
            }
            Input::Report { session, report } => self.report(session, report),
            Input::Closed { session } => self.closed(session),
            Input::Run { reply, request } => {
                let answer = self.request(request);
                self.reply(reply, answer);
            }
            Input::Abort { reply, transition } => {
                let answer = self.abort_by_operator(transition);
                self.reply(reply, answer);
            }
            Input::Host { reply, host, ask } => {
                let answer = match ask {
                    HostAsk::Label { labels } => self.label(&host, labels),
                    HostAsk::Forget { is_stopped } => self.forget(&host, is_stopped),
                    HostAsk::Undrain => self.undrain(&host),
                    HostAsk::Fenced { principal, reason } => self.fenced_by(&host, principal, reason),
                    HostAsk::Fence => match self.fence(&host, reply) {
                        // The answer comes when the handler has ended.
                        Ok(()) => return,
                        Err(rejection) => Err(rejection),
                    },
                };
                self.reply(reply, answer);
            }
            Input::Resolve { reply, member, state, principal, reason } => {
                let answer = self.resolve(&member, &state, principal, reason);
                self.reply(reply, answer);
            }
            Input::Away { reply, lease_ms, principal } => self.go_away(reply, lease_ms, principal),
            Input::Apply { reply, spec, principal } => {
                let answer = self.apply(spec, principal);
                self.reply(reply, answer);
            }
            Input::Freeze { reply, groups, end, reason, principal } => {
                let answer = self.freeze(&groups, end, reason, principal);
                self.reply(reply, answer);
            }
            Input::Thaw { reply, groups, principal } => {
                let answer = self.thaw(&groups, principal);
                self.reply(reply, answer);
            }
            Input::Tick => {}
            Input::Woke { after_ms } => self.woke(after_ms),
        }
    }

    /// What is to be done next, if anything is.
    pub fn poll_output(&mut self) -> Option<Output> {
        Some(match self.outbox.poll()? {
            Out::Append(batch) => {
                let first = batch[0].0;
                self.pending.extend(batch.iter().cloned());
                Output::Append { first, records: batch.into_iter().map(|(_, record)| record).collect() }
            }
            Out::Ready(output) => output,
        })
    }

    /// Whether [`Engine::poll_output`] has something.
    pub fn has_output(&self) -> bool {
        self.outbox.is_ready()
    }

    /// When [`Input::Tick`] is due at the latest; none when nothing waits for time.
    pub fn next_deadline(&self) -> Option<Time> {
        let away = self.away.as_ref().filter(|away| away.reply.is_some()).map(|away| away.until);
        let results = self.outbox.is_late().then_some(self.results_due);
        let due = self.wakes.values().copied().chain(self.hosts_due).chain(self.late_due()).chain(results);
        due.chain(self.recovery_due()).chain(self.freeze_due()).chain(away).chain(self.refusals.due()).min()
    }

    fn late_due(&self) -> Option<Time> {
        let of_members =
            self.reports.due().into_iter().chain(self.publications.due()).chain(self.guards.due());
        of_members.chain(self.introductions.due()).chain(self.departures.due()).min()
    }

    pub(crate) fn propose(&mut self, body: Body) -> Index {
        let index = self.propose_late(body);
        self.outbox.hurry();
        index
    }

    /// Proposes a record that nobody waits for until something else is proposed or sent.
    fn propose_late(&mut self, body: Body) -> Index {
        let index = Index(self.head.revision.0 + 1);
        let record = Record { at: self.now.wall, body };
        // While it is held here, whoever changes it makes another one.
        let relations = (!self.refused.is_empty()).then(|| self.head.relations.clone());
        self.head.apply(index, &record);
        self.refused_may_fit |= relations.is_some_and(|were| !Arc::ptr_eq(&were, &self.head.relations));
        if mutant::is(Mutant::UnacknowledgedShown) {
            self.acked = Arc::new(self.head.clone());
        }
        self.outbox.propose_late((index, record));
        index
    }

    /// Writes a result down: with those before it, when they are not on their way to the journal yet, and with those
    /// that come soon after it. That it is durable is no condition of anything but what follows from it, and that makes
    /// it be written at once.
    pub(crate) fn note_step(&mut self, id: TransitionId, result: StepResult) {
        match self.outbox.last_mut() {
            Some((_, Record { body: Body::Step { transition, results }, .. })) if *transition == id => {
                self.head.apply_step(id, &result);
                results.push(result);
                // It was told at this revision, and is no longer as it was.
                self.told = None;
            }
            Some(_) | None => {
                if !self.outbox.is_late() {
                    self.results_due = self.now.time.plus(RESULTS_MS);
                }
                self.propose_late(Body::Step { transition: id, results: vec![result] });
            }
        }
    }

    pub(crate) fn event(&mut self, event: Event) {
        self.outbox.emit(Output::Event(event));
    }

    /// Answers an operator, once the reign is known to have held after the question came: what it wrote shows that, or
    /// the store says so. A server that does not know yet that it is deposed would else refuse what the next one has
    /// accepted by then.
    pub(crate) fn reply(&mut self, reply: ReplyId, answer: Result<Accepted, Rejection>) {
        if self.outbox.has_queued() || mutant::is(Mutant::AnswerUnconfirmed) {
            self.outbox.emit(Output::Reply { reply, answer });
        } else {
            self.unconfirmed.replies.push((reply, answer));
        }
    }

    /// Sends an order to a host, if it is connected; it is sent again when the host comes back.
    pub(crate) fn order(&mut self, host: &HostName, order: Order) {
        if let Order::Call(call) = &order
            && self.ahead_in(&call.member.group).is_some()
        {
            return;
        }
        if let Some(session) = self.sessions.get(host) {
            self.outbox.emit(Output::Order { session: session.id, order });
        }
    }

    // ---- requests

    fn request(&mut self, request: Request) -> Result<Accepted, Rejection> {
        if let Some(known) = self.head.requested(&request.request_id)
            && !mutant::is(Mutant::RequestForgotten)
        {
            if self.head.transition(&known).is_some_and(|known| *known.request == request) {
                return Ok(Accepted::Transition(known));
            }
            let message =
                format!("request id {:?} has been used for {known}, with another body", request.request_id);
            return Err(Rejection::new(
                Code::RequestConflict,
                message,
                "use a new request id for a new request",
            ));
        }
        if self.head.open.len() >= OPEN_MAX {
            let message = format!("{OPEN_MAX} transitions are open");
            return Err(Rejection::new(
                Code::Busy,
                message,
                "wait for some to end: `lockstep transition list`",
            ));
        }
        self.record_reports(Time(u64::MAX));
        let asked: BTreeSet<GroupName> =
            request.targets.iter().flat_map(|target| self.head.groups_of(target)).collect();
        let is_contended = self.runs.values().any(|run| asked.iter().any(|group| run.claims(group)));
        let plan = match self.plan(&request) {
            Ok(plan) => {
                self.check_not_behind(&plan)?;
                self.check_windows(&request, &plan)?;
                if !is_contended {
                    self.check_overrides(&request, &plan)?;
                    check_hash(&request, &plan.hash)?;
                    if plan.is_empty() {
                        return Ok(Accepted::Nothing);
                    }
                }
                Some(plan)
            }
            // What stands in the way may be only on its way: it is planned anew when its turn comes.
            Err(rejection) if is_contended && rejection.code.obstacle() == Obstacle::States => None,
            Err(rejection) => return Err(rejection),
        };
        let id = TransitionId(self.propose(Body::Request { request: Arc::new(request) }).0);
        self.enqueue(id, plan);
        Ok(Accepted::Transition(id))
    }

    /// Nobody is moved against its own no: only voters and holders are overridden.
    pub(crate) fn check_overrides(&self, request: &Request, plan: &Plan) -> Result<(), Rejection> {
        for member in &request.overrides {
            if !self.head.members.contains_key(member) {
                let help = "`lockstep member list` shows the members";
                return Err(Rejection::new(
                    Code::UnknownMember,
                    format!("there is no member {member}"),
                    help,
                ));
            }
            if plan.goals.contains_key(member) {
                let message = format!("{member} is to move itself, and its vote cannot be overridden");
                return Err(Rejection::new(Code::NotAllowed, message, "override voters and holders only"));
            }
        }
        Ok(())
    }

    fn abort_by_operator(&mut self, id: TransitionId) -> Result<Accepted, Rejection> {
        let Some(transition) = self.head.transition(&id) else {
            return Err(Rejection::new(
                Code::NotAllowed,
                format!("there is no transition {id}"),
                "see `lockstep transition list`",
            ));
        };
        match transition.decision {
            Some(Decision::Abort) => {}
            Some(Decision::Commit) => {
                let message = format!("{id} is decided: commit");
                let help = "what is decided is carried out; ask for a transition back once it has ended";
                return Err(Rejection::new(Code::NotAllowed, message, help));
            }
            None => {
                let message = "an operator aborted it".to_owned();
                self.abort(id, Cause { code: "operator".to_owned(), message, member: None });
            }
        }
        Ok(Accepted::Aborted)
    }

    pub(crate) fn known_host(&self, name: &HostName) -> Result<&Host, Rejection> {
        self.head.hosts.get(name).map(|host| &**host).ok_or_else(|| {
            let help = "`lockstep host list` shows those that have joined";
            Rejection::new(Code::UnknownHost, format!("there is no host {name}"), help)
        })
    }

    fn label(
        &mut self,
        name: &HostName,
        labels: BTreeMap<String, Option<String>>,
    ) -> Result<Accepted, Rejection> {
        let host = self.known_host(name)?;
        let is_set = |(label, value): &(&String, &Option<String>)| host.set.get(*label) == value.as_ref();
        if labels.iter().all(|label| is_set(&label)) {
            return Ok(Accepted::Host(self.head.revision));
        }
        if host.set.len() + labels.len() > LABELS_MAX {
            let message = format!("more than {LABELS_MAX} labels set of one host");
            return Err(Rejection::new(
                Code::TooLarge,
                message,
                "take some away: lockstep host label HOST KEY-",
            ));
        }
        let index = self.propose(Body::Host { host: name.clone(), change: HostChange::Labelled { labels } });
        self.assign_all();
        self.stir_all();
        Ok(Accepted::Host(index))
    }

    /// Forgets a host that is gone for good. Places that only its members may hold are given away by that, so
    /// somebody has to have made sure that they do not.
    fn forget(&mut self, name: &HostName, is_stopped: bool) -> Result<Accepted, Rejection> {
        let host = self.known_host(name)?;
        if host.is_reachable() || self.sessions.contains_key(name) {
            let message = format!("host {name} is {}", host.liveness);
            let help = "stop its agent for good first; it would only come back";
            return Err(Rejection::new(Code::NotAllowed, message, help));
        }
        let takes_part = |id: &&TransitionId| {
            let plan = self.head.transitions[*id].plan.as_ref();
            plan.is_some_and(|plan| plan.participants.iter().any(|who| who.member.host == *name))
        };
        if let Some(id) = self.head.open.iter().find(takes_part) {
            let message = format!("host {name} takes part in {id}");
            return Err(Rejection::new(Code::Busy, message, format!("forget it when {id} has ended")));
        }
        let holder = self.head.members.keys().find(|id| id.host == *name && self.head.may_hold_a_place(id));
        if let Some(id) = holder.filter(|_| !is_stopped) {
            let message = format!("{id} may still be where only so many may be, and nobody has seen it stop");
            let help = "make sure that nothing of it runs, then say so: --stopped";
            return Err(Rejection::new(Code::HostLost, message, help));
        }
        let index = self.propose(Body::Host { host: name.clone(), change: HostChange::Forgotten });
        self.last_heard.remove(name);
        self.host_is_forgotten(name);
        self.agent_runs.remove(name);
        Arc::make_mut(&mut self.heard).remove(name);
        self.scores.retain(|id, _| id.host != *name);
        self.reports.forget_all(|id| id.host == *name);
        self.publications.forget_all(|id| id.host == *name);
        self.guards.forget_all(|id| id.host == *name);
        self.introductions.forget_all(|host| host == name);
        self.departures.forget_all(|host| host == name);
        self.refused.retain(|id, _| id.host != *name);
        self.stir_all();
        Ok(Accepted::Host(index))
    }

    fn undrain(&mut self, name: &HostName) -> Result<Accepted, Rejection> {
        if self.known_host(name)?.is_drained {
            self.propose(Body::Host { host: name.clone(), change: HostChange::Undrained });
            self.stir_all();
        }
        Ok(Accepted::Host(self.head.revision))
    }

    fn apply(&mut self, file: SpecFile, principal: String) -> Result<Accepted, Rejection> {
        let spec = file.check()?;
        let bytes = serde_json::to_string(&file).map_or(usize::MAX, |written| written.len());
        if bytes > SPEC_BYTES_MAX {
            let message = format!("a spec of {bytes} bytes, at most {SPEC_BYTES_MAX}");
            return Err(Rejection::new(Code::TooLarge, message, "split the cluster"));
        }
        if let Some(known) = self.head.spec_file.as_deref() {
            check_same_cluster(known, &file)?;
            if *known == file {
                return Ok(Accepted::Spec(self.head.revision));
            }
        }
        // With the settings in force and what members publish there may be more relations than the spec alone makes.
        let settings = self.head.settings_under(&spec);
        let relations = self.head.relations_under(&spec, &settings, Default::default());
        relations.check_circles(&[], &[])?;
        relation::check_count(relations.pairs())?;
        // A decided plan is carried out under the rules it was made by.
        for id in &self.head.open {
            let Some(plan) = &self.head.transitions[id].plan else { continue };
            let changed =
                plan.exclusive.iter().find(|name| spec.groups.get(name) != self.head.spec.groups.get(name));
            if let Some(group) = changed {
                let message = format!("{id} is moving group {group}, which this spec changes");
                return Err(Rejection::new(Code::Busy, message, format!("apply it when {id} has ended")));
            }
        }
        let index = self.propose(Body::Spec { spec: Arc::new(file), principal });
        self.assign_all();
        self.stir_all();
        // The lease may be another one.
        self.hosts_due = Some(self.now.time);
        Ok(Accepted::Spec(index))
    }

    // ---- sessions and hosts

    fn report(&mut self, session: SessionId, report: Report) {
        if let Report::Hello(hello) = report {
            return self.hello(session, hello);
        }
        let Some(host) = self.hosts_by_session.get(&session).cloned() else {
            // Said by a connection that was refused, replaced or that never introduced itself.
            return self.outbox.emit(Output::Close { session });
        };
        if let Some(heard) = self.last_heard.get_mut(&host) {
            heard.again(self.now.time);
        }
        match report {
            Report::Hello(_) => unreachable!("handled above"),
            Report::Renew { sent, open, lease_ms: goes_by } => {
                if let Some(open) = open {
                    self.outcomes_taken(&host, &open);
                }
                self.record_acknowledged();
                let (lease_ms, now) = (self.lease_ms(), self.now.time);
                let heard = self.last_heard.get_mut(&host).expect("it was just heard");
                goes_by.into_iter().for_each(|goes_by| heard.goes_by(now, goes_by));
                let is_other = heard.tell(now, lease_ms);
                if goes_by.is_some_and(|goes_by| goes_by >= lease_ms) {
                    self.goes_away(&host);
                }
                // What the one before it would have been told, which is not answered any more.
                let untold = self.unconfirmed.renewals.remove(&session).and_then(|before| before.lease_ms);
                let lease_ms = is_other.then_some(lease_ms).or(untold);
                self.unconfirmed.renewals.insert(session, Renewal { sent, lease_ms });
            }
            Report::Done(done) => self.done(&host, done),
            Report::HoldEnded { transition, member } => {
                if member.host == host {
                    self.hold_ended(transition, &member);
                }
            }
            Report::State { member, state, score, reason, facts, published, guarded } => {
                if member.host == host && self.head.members.contains_key(&member) {
                    self.note_state(&member, state, score, reason, facts);
                    if let Some(published) = published {
                        self.note_published(&member, published);
                    }
                    self.note_guarded(&member, guarded);
                }
            }
            Report::Guarded { member, states } => {
                if member.host == host {
                    self.note_guarded(&member, states);
                }
            }
            Report::Noticed { index } => self.notices_taken(&host, index),
            Report::Goodbye => {
                // Members that run by its lease do not run on: the host is lost when that ends.
                let is_leased = |id: &MemberId| {
                    let group = self.head.spec.groups.get(&id.group);
                    id.host == host && group.is_some_and(|group| group.recover == Recover::Lease)
                };
                let runs_on = !self.head.members.keys().any(is_leased);
                let liveness = if runs_on { Liveness::Left } else { Liveness::Suspect };
                self.forget_session(session);
                self.outbox.emit(Output::Close { session });
                self.departed(&host, liveness);
                self.host_lost(&host);
            }
        }
    }

    fn hello(&mut self, session: SessionId, hello: Hello) {
        // What somebody else under a host's name has seen is no sign of anything.
        let is_itself = !self.is_foreign(&hello) && !self.is_another(&hello);
        if hello.protocol == PROTOCOL && is_itself && self.is_behind(&hello) {
            self.fall_behind(&hello);
        }
        if let Some((message, help)) = self.refusal(session, &hello) {
            if self.refusals.note(&hello.host, self.now, &message, &help) {
                self.refusals_change();
            }
            let message = format!("{message}: {help}");
            self.event(Event::Warning(format!("agent of host {} refused: {message}", hello.host)));
            self.outbox.emit(Output::Order { session, order: Order::Refused { message } });
            return self.outbox.emit(Output::Close { session });
        }
        let host = hello.host.clone();
        if self.refusals.forget(&host) {
            self.refusals_change();
        }
        self.is_less_ahead(&hello);
        if let Some(older) = self.sessions.get(&host).map(|session| session.id)
            && older != session
        {
            self.forget_session(older);
            self.outbox.emit(Output::Close { session: older });
        }
        let was_away = self.head.hosts.get(&host).is_some_and(|known| !known.is_reachable());
        let Hello { agent, address, labels, .. } = hello.clone();
        let joined = Host::joined(agent, address, labels, self.head.hosts.get(&host).map(|known| &**known));
        self.departures.forget(&host);
        self.introductions.forget(&host);
        match self.head.hosts.get(&host) {
            Some(known) if **known == joined => {}
            Some(known) if (Host { liveness: Liveness::Alive, ..(**known).clone() }) == joined => {
                self.set_liveness(&host, Liveness::Alive);
            }
            known => {
                let is_known = known.is_some();
                let Host { agent, address, configured: labels, .. } = joined;
                let change = HostChange::Joined { agent, address, labels };
                match self.introductions.until(&host, self.now.time) {
                    Some(due) => {
                        self.introductions.keep(&host, due, change);
                        self.set_liveness(&host, Liveness::Alive);
                    }
                    None if is_known => self.introduced(&host, change),
                    None => _ = self.propose(Body::Host { host: host.clone(), change }),
                }
            }
        }
        let members = self.head.assignments(&host);
        let is_new_run = self.seen_with(&host, &hello.run);
        if !self.heard.contains(&host) {
            Arc::make_mut(&mut self.heard).insert(host.clone());
        }
        let (assigned, waits_for) = (members.clone(), hello.open.iter().copied().collect());
        let (run, fences) = (hello.run.clone(), hello.fences);
        self.sessions.insert(host.clone(), Session { id: session, run, assigned, waits_for, fences });
        self.hosts_by_session.insert(session, host.clone());
        let (now, lease_ms) = (self.now.time, self.lease_ms());
        let heard = self.last_heard.entry(host.clone()).or_insert(Heard::new(now, lease_ms));
        heard.tell(now, lease_ms);
        let due = heard.lost_at(lease_ms);
        self.hosts_due = Some(self.hosts_due.map_or(due, |at| at.min(due)));
        self.stir_all();
        let (reign, cluster, lease_ms) = (self.head.reign, self.head.id.clone(), self.lease_ms());
        self.order(&host, Order::Welcome { reign, cluster, lease_ms, members });
        self.host_comes(&host, was_away);
        if is_new_run {
            self.new_run(&host, &hello.run);
        }
        self.catch_up(&host, &hello);
        self.stop_again_on(&host);
        self.notices_taken(&host, hello.noticed);
        self.outcomes_taken(&host, &hello.open);
    }

    /// A host comes with a run of its agent; tells whether it is another one than last.
    fn seen_with(&mut self, host: &HostName, run: &RunId) -> bool {
        let runs = self.agent_runs.entry(host.clone()).or_default();
        if runs.back() == Some(run) {
            return false;
        }
        runs.retain(|older| older != run);
        runs.push_back(run.clone());
        if runs.len() > AGENT_RUNS_MAX {
            runs.pop_front();
        }
        true
    }

    /// Whether the agent of a connected host was started after this one, which runs all the same.
    fn is_overtaken(&self, hello: &Hello) -> bool {
        let runs = self.agent_runs.get(&hello.host).filter(|_| self.sessions.contains_key(&hello.host));
        runs.is_some_and(|runs| runs.contains(&hello.run) && runs.back() != Some(&hello.run))
    }

    // ---- what hosts know by now

    /// A host has taken its notices up to there.
    fn notices_taken(&mut self, host: &HostName, index: Index) {
        let is_news = self.head.notices.contains_key(host) && index > self.noticed(host);
        if is_news {
            self.acknowledged.entry(host.clone()).or_default().noticed = index;
        }
    }

    /// The newest notice that a host is known to have taken.
    pub(crate) fn noticed(&self, host: &HostName) -> Index {
        let recorded = self.head.notices.get(host).map(|notices| notices.acknowledged);
        let said = self.acknowledged.get(host).map(|said| said.noticed);
        recorded.max(said).unwrap_or_default()
    }

    /// A host has said which transitions it has not been told the outcome of: it has taken the others. One that it says
    /// yes in only now is answered at once, and has been told by then.
    fn outcomes_taken(&mut self, host: &HostName, open: &[TransitionId]) {
        let Some(awaited) = self.head.retention.awaited.get(host) else { return };
        let taken: BTreeSet<_> = awaited.iter().filter(|id| !open.contains(id)).copied().collect();
        if !taken.is_empty() {
            let known = &mut self.acknowledged.entry(host.clone()).or_default().outcomes;
            self.acknowledged_count -= known.len();
            known.extend(taken);
            self.acknowledged_count += known.len();
        }
    }

    fn record_acknowledged(&mut self) {
        let is_due = self.acknowledged_at.plus(ACKNOWLEDGE_MS) <= self.now.time;
        if (is_due && !self.acknowledged.is_empty()) || self.acknowledged_count >= ACKNOWLEDGED_MAX {
            self.acknowledged_at = self.now.time;
            self.acknowledged_count = 0;
            let hosts = std::mem::take(&mut self.acknowledged);
            self.propose(Body::Acknowledged { hosts });
        }
    }

    fn refusals_change(&mut self) {
        self.event(Event::Refused(self.refusals.all().clone()));
    }

    /// Why an agent's session is refused, if it is, and what to do about it.
    fn refusal(&self, session: SessionId, hello: &Hello) -> Option<(String, String)> {
        let refused = |message: &str, help: &str| Some((message.to_owned(), help.to_owned()));
        if hello.protocol != PROTOCOL {
            let theirs = hello.protocol;
            let message = format!("it speaks protocol {theirs}, this server speaks {PROTOCOL}");
            return refused(&message, "upgrade the older one");
        }
        if self.is_foreign(hello) {
            return refused(
                "it belongs to another cluster",
                "give it the servers of that one; or the server is not on its own journal: see its --data or --store; if the \
                 server's directory was lost, see docs/backup.md first. To move the host here, stop its software, and start its \
                 agent with a new --data directory",
            );
        }
        if self.is_another(hello) {
            return refused(
                &format!("another agent has joined as {}", hello.host),
                &format!(
                    "start this one with that one's --data directory or under another name; if that one is gone for good: \
                     lockstep host forget {}",
                    hello.host
                ),
            );
        }
        if self.is_behind(hello) {
            let journal = self.head.revision;
            let (token, reign) = (hello.token, hello.reign);
            let message = format!(
                "it has seen token {token} and reign {reign}, this server's journal ends at {journal}"
            );
            let help = "the server's directory is an older copy, see docs/errors/server-behind.md";
            return refused(&message, help);
        }
        if hello.labels.iter().any(|(key, value)| {
            crate::spec::text_problem(key).is_some() || crate::spec::text_problem(value).is_some()
        }) {
            return refused(
                "a label is not plain text of at most 255 bytes",
                "mend the labels that it is given",
            );
        }
        match self.hosts_by_session.get(&session) {
            Some(host) if *host != hello.host => {
                return refused("one connection speaks for one host", AGENT_IS_WRONG);
            }
            // Each hello may bring other labels, and so a record.
            Some(_) => return refused("a connection says hello once", AGENT_IS_WRONG),
            None => {}
        }
        match self.head.hosts.get(&hello.host) {
            Some(_) if self.is_overtaken(hello) => refused(
                &format!(
                    "another agent runs as {} from a copy of this one's --data directory, and was started later",
                    hello.host
                ),
                "stop one of the two, and give it a directory and a name of its own",
            ),
            Some(_) | None => None,
        }
    }

    /// Whether a host comes from another cluster: it says so, and is not known here.
    fn is_foreign(&self, hello: &Hello) -> bool {
        let is_known = self.head.hosts.get(&hello.host).is_some_and(|known| known.agent == hello.agent);
        !is_known && hello.cluster.is_some() && hello.cluster != self.head.id
    }

    /// Whether a host is known by another agent.
    fn is_another(&self, hello: &Hello) -> bool {
        self.head.hosts.get(&hello.host).is_some_and(|known| known.agent != hello.agent)
    }

    /// Whether a host has seen more than this server's journal holds: then somebody has gone on from an earlier state of
    /// it, and knows better who is to do what.
    fn is_behind(&self, hello: &Hello) -> bool {
        let journal = self.head.revision.0;
        hello.token.0 > journal || hello.reign.0 > journal
    }

    /// A host's agent is welcome. If it has seen less than was shown under its name, another one has shown that: what an
    /// agent has seen only grows. That the journal has grown since is no such sign.
    fn is_less_ahead(&mut self, hello: &Hello) {
        let seen_less = |ahead: &Ahead| hello.token < ahead.token || hello.reign < ahead.reign;
        if !self.ahead.get(&hello.host).is_some_and(seen_less) {
            return;
        }
        let groups = self.ahead.remove(&hello.host).map(|ahead| ahead.groups).unwrap_or_default();
        let here = self.head.members.keys().filter(|id| groups.contains(&id.group));
        let hosts: BTreeSet<_> = here.map(|id| id.host.clone()).collect();
        // What was not ordered meanwhile is ordered when they come back.
        hosts.iter().for_each(|host| self.drop_session(host));
    }

    /// A host of a group that has seen a later server.
    pub(crate) fn ahead_in(&self, group: &GroupName) -> Option<&HostName> {
        self.ahead.iter().find(|(_, ahead)| ahead.groups.contains(group)).map(|(host, _)| host)
    }

    pub(crate) fn check_not_behind(&self, plan: &plan::Plan) -> Result<(), Rejection> {
        let ahead = plan.asked().map(|who| &who.member.group);
        let ahead = ahead.filter_map(|group| Some((group, self.ahead_in(group)?))).next();
        let Some((group, host)) = ahead else { return Ok(()) };
        Err(Rejection::new(
            Code::ServerBehind,
            format!(
                "host {host} of group {group} has seen a later server than this one: nothing is ordered there"
            ),
            "bring back the newest backup with `lockstep restore`, or see that the host's agent dials the right cluster",
        ))
    }

    fn closed(&mut self, session: SessionId) {
        if let Some(host) = self.forget_session(session)
            && self.head.hosts[&host].liveness == Liveness::Alive
        {
            self.departed(&host, Liveness::Suspect);
        }
    }

    fn introduced(&mut self, host: &HostName, change: HostChange) {
        self.introductions.note(host, self.now.time);
        self.propose(Body::Host { host: host.clone(), change });
    }

    /// A host's session has ended. One that comes and goes all the time is shown as alive meanwhile; nothing but what
    /// is shown rests on that, since votes count by sessions.
    fn departed(&mut self, host: &HostName, liveness: Liveness) {
        if let Some(due) = self.departures.until(host, self.now.time) {
            return self.departures.keep(host, due, liveness);
        }
        self.departures.note(host, self.now.time);
        self.set_liveness(host, liveness);
    }

    /// Records what of hosts was held back and is due by now.
    fn record_hosts(&mut self) {
        let now = self.now.time;
        for (host, liveness) in self.departures.take(now, now) {
            // It may be lost by now.
            if self.is_reachable(&host) {
                self.departed(&host, liveness);
                if liveness == Liveness::Left {
                    self.host_lost(&host);
                }
            }
        }
        for (host, change) in self.introductions.take(now, now) {
            // One that is not there says it again when it comes.
            if self.sessions.contains_key(&host) {
                self.introduced(&host, change);
                self.assign_all();
                self.stir_all();
            }
        }
    }

    /// Drops a session, unless a newer one has taken its place.
    fn forget_session(&mut self, session: SessionId) -> Option<HostName> {
        let host = self.hosts_by_session.remove(&session)?;
        self.unconfirmed.renewals.remove(&session);
        self.stir_all();
        if self.sessions.get(&host).is_some_and(|known| known.id == session) {
            self.sessions.remove(&host);
            return Some(host);
        }
        None
    }

    /// Closes a host's connection; its agent comes back with a new one.
    pub(crate) fn drop_session(&mut self, host: &HostName) {
        if let Some(session) = self.sessions.get(host).map(|session| session.id) {
            self.forget_session(session);
            self.outbox.emit(Output::Close { session });
        }
    }

    /// The lease in force.
    pub(crate) fn lease_ms(&self) -> u64 {
        let declared = self.head.lease_ms();
        self.away.as_ref().map_or(declared, |away| away.lease_ms.max(declared))
    }

    /// Time in which this process did not run is nobody's silence: leases and steps get it back. Votes and holds do
    /// not: their ends are known to others, and an abort is safe.
    fn woke(&mut self, after_ms: u64) {
        for heard in self.last_heard.values_mut() {
            heard.postpone(after_ms);
            // Most have turned away meanwhile, and need as long to come back as after a restart.
            heard.again(self.now.time);
        }
        self.hosts_due = self.hosts_due.map(|due| due.plus(after_ms));
        for run in self.runs.values_mut() {
            run.postpone_steps(after_ms);
        }
        self.recovery.postpone(after_ms);
        self.stirred.extend(self.runs.keys());
    }

    fn watch_hosts(&mut self) {
        if self.hosts_due.is_none_or(|due| due > self.now.time) {
            return;
        }
        let lease_ms = self.lease_ms();
        let is_due = |heard: &Heard| heard.lost_at(lease_ms) <= self.now.time;
        let due: Vec<_> = self
            .last_heard
            .iter()
            .filter(|(host, heard)| is_due(heard) && self.is_reachable(host))
            .map(|(host, _)| host.clone())
            .collect();
        due.iter().for_each(|host| self.give_up_host(host));
        let watched = self.last_heard.iter().filter(|(host, _)| self.is_reachable(host));
        self.hosts_due = watched.map(|(_, heard)| heard.lost_at(lease_ms)).min();
        // A server that takes over counts with the longest lease that anybody may go by, however many have been before it.
        let has_shortened = |heard: &Heard| heard.has_shortened(self.now.time, lease_ms);
        if self.head.leases_ms[0] > lease_ms && self.has_begun && self.last_heard.values().all(has_shortened)
        {
            self.propose(Body::Lease { lease_ms });
        }
    }

    fn give_up_host(&mut self, host: &HostName) {
        self.set_liveness(host, Liveness::Lost);
        self.host_is_gone(host);
        // Its connection may stand. It comes back as any other does, with a new one: what is still on its way
        // on the old one was said before the host was given up, and would be taken for news.
        self.drop_session(host);
        self.host_lost(host);
        self.lease_is_evidence(host);
    }

    /// A host's lease has run out, whatever its length: rehearsals, whose agents renew nothing, say when.
    pub(crate) fn lease_ended(&mut self, now: Now, host: &HostName) {
        self.now = now;
        if self.is_reachable(host) {
            self.give_up_host(host);
        }
        self.settle();
    }

    fn set_liveness(&mut self, host: &HostName, liveness: Liveness) {
        if self.head.hosts.get(host).is_some_and(|known| known.liveness != liveness) {
            self.propose(Body::Host { host: host.clone(), change: HostChange::Liveness { liveness } });
            self.stir_all();
        }
    }

    /// Tells every connected agent whose members have changed.
    pub(crate) fn assign_all(&mut self) {
        let hosts: Vec<_> = self.sessions.keys().cloned().collect();
        for host in hosts {
            let members = self.head.assignments(&host);
            let session = self.sessions.get_mut(&host).expect("it is connected");
            if session.assigned != members {
                session.assigned.clone_from(&members);
                self.order(&host, Order::Assign { members });
            }
        }
    }

    pub(crate) fn note_state(
        &mut self,
        id: &MemberId,
        state: Option<StateName>,
        score: Option<i64>,
        reason: Option<String>,
        facts: Map<String, Value>,
    ) {
        match score {
            Some(score) => self.scores.insert(id.clone(), score),
            None => self.scores.remove(id),
        };
        // A state that the lifecycle does not have is no answer: nothing could be planned from it.
        let lifecycle = self.head.spec.groups.get(&id.group).map(|group| &group.lifecycle);
        let is_known = |state: &StateName| lifecycle.is_some_and(|known| known.rank(state).is_some());
        let (state, reason) = match state {
            Some(state) if !is_known(&state) => {
                (None, Some(format!("its handler reports {state}, which group {} does not have", id.group)))
            }
            state => (state, reason),
        };
        self.event(Event::Reported { member: id.clone(), score, facts, reason });
        self.reports.forget(id);
        match self.reports.until(id, self.now.time) {
            Some(due) if self.is_news(id, &state) => self.reports.keep(id, due, state.clone()),
            Some(_) => {}
            None => self.record_report(id, state.clone()),
        }
        self.judge_return(id, state.as_ref());
    }

    fn is_news(&self, id: &MemberId, state: &Option<StateName>) -> bool {
        let Some(member) = self.head.members.get(id) else { return false };
        // What a transition drives is known from its steps; a report that crossed with one would be stale.
        let differs = member.actual != *state || (member.is_in_doubt() && state.is_some());
        // Nor is a member judged again that has been seen where it may stay.
        let is_settled =
            member.is_returning && state.as_ref().is_some_and(|state| self.head.may_stay(id, state));
        member.transition.is_none() && (differs || is_settled)
    }

    fn record_report(&mut self, id: &MemberId, state: Option<StateName>) {
        if self.is_news(id, &state) {
            self.propose(Body::Report { member: id.clone(), actual: state });
            self.reports.note(id, self.now.time);
            self.stir_all();
        }
    }

    /// In which states a member is surely stopped when its host's lease ends.
    fn note_guarded(&mut self, id: &MemberId, mut states: BTreeSet<StateName>) {
        self.guards.forget(id);
        let Some(known) = self.head.members.get(id).map(|member| &member.guarded) else { return };
        let lifecycle = self.head.spec.groups.get(&id.group).map(|group| &group.lifecycle);
        states.retain(|state| lifecycle.is_some_and(|lifecycle| lifecycle.rank(state).is_some()));
        let Some(due) = self.guards.until(id, self.now.time) else { return self.record_guarded(id, states) };
        // That something is not guarded any more counts at once: places are given away on it. What is guarded instead
        // can wait.
        let kept: BTreeSet<_> = known.intersection(&states).cloned().collect();
        let is_more = kept != states;
        self.record_guarded(id, kept);
        if is_more {
            self.guards.keep(id, due, states);
        }
    }

    fn record_guarded(&mut self, id: &MemberId, mut states: BTreeSet<StateName>) {
        // It may have been said, or held back, before the group stopped asking for a lease: its agent lets go of the
        // guard then, and says so only where it still can.
        let group = self.head.spec.groups.get(&id.group);
        if group.is_none_or(|group| group.recover != Recover::Lease) {
            states.clear();
        }
        if self.head.members.get(id).is_some_and(|member| member.guarded != states) {
            self.guards.note(id, self.now.time);
            let change = HostChange::Guarded { group: id.group.clone(), states };
            self.propose(Body::Host { host: id.host.clone(), change });
        }
    }

    /// What a member says it provides and consumes.
    fn note_published(&mut self, id: &MemberId, published: Published) {
        self.publications.forget(id);
        if self.refused.get(id).is_some_and(|refused| *refused != published) {
            self.refused.remove(id);
        }
        match self.publications.until(id, self.now.time) {
            Some(due) if self.is_published_anew(id, &published) => {
                self.publications.keep(id, due, published);
            }
            Some(_) => {}
            None => self.record_published(id, published),
        }
    }

    fn is_published_anew(&self, id: &MemberId, published: &Published) -> bool {
        let known = self.head.members.get(id).map(|member| &*member.published);
        let is_new = known.is_some_and(|known| known != published) && self.refused.get(id) != Some(published);
        is_new && self.head.spec.groups.contains_key(&id.group)
    }

    fn record_published(&mut self, id: &MemberId, published: Published) {
        if let Err(refusal) = self.try_published(id, published) {
            let message = format!("what {id} provides and consumes is not taken: {}", refusal.message);
            self.event(Event::Warning(message));
        }
    }

    /// What would relate groups in a circle, or beyond all bounds, is not taken: a host that runs cannot be refused, so
    /// the operator is told, and the relations stay as they are. It is tried again whenever they have changed: they
    /// are not to depend on what came first.
    fn try_published(&mut self, id: &MemberId, published: Published) -> Result<(), SpecError> {
        if !self.is_published_anew(id, &published) {
            return Ok(());
        }
        self.publications.note(id, self.now.time);
        let known = self.head.members[id].published.clone();
        let relations = &self.head.relations;
        let come = relations.would_come(&id.group, &known, &published);
        let pairs = relations.pairs() + come.iter().map(|relation| relation.to.count()).sum::<usize>();
        let circles = if come.is_empty() { Ok(()) } else { relations.check_circles(&come, &[]) };
        if let Err(refusal) = circles.and_then(|()| relation::check_count(pairs)) {
            self.refused.insert(id.clone(), published);
            return Err(refusal);
        }
        let change = HostChange::Published { group: id.group.clone(), published: Arc::new(published) };
        self.propose(Body::Host { host: id.host.clone(), change });
        self.stir_all();
        Ok(())
    }

    /// Tries again what was not taken. That it is still not taken, the operator has been told.
    fn retry_published(&mut self) {
        for (id, published) in std::mem::take(&mut self.refused) {
            let _still_refused = self.try_published(&id, published);
        }
    }

    /// Records what was held back and is due by then.
    fn record_reports(&mut self, by: Time) {
        let now = self.now.time;
        for (id, state) in self.reports.take(by, now) {
            self.record_report(&id, state);
        }
        for (id, published) in self.publications.take(by, now) {
            self.record_published(&id, published);
        }
        for (id, states) in self.guards.take(by, now) {
            self.record_guarded(&id, states);
        }
    }

    fn done(&mut self, host: &HostName, done: Done) {
        if done.phase == Phase::Fence {
            return self.fence_done(host, &done);
        }
        if done.member.host != *host {
            return;
        }
        if let Some(token) = done.refused {
            let message = format!("{} refused an order: it has seen token {token}", done.member);
            self.event(Event::Warning(message));
        }
        self.stirred.extend(done.transition.filter(|id| self.runs.contains_key(id)));
        let known = done.transition.and_then(|id| Some((id, self.head.transition(&id)?.outcome)));
        match known {
            // A handler that was at work when its transition ended: its agent has written the answer down, and waits
            // for an outcome that it may have been told before.
            Some((transition, outcome @ Some(_))) if done.phase != Phase::Release => {
                self.order(host, Order::Outcome { transition, outcome });
            }
            // A handler that was at work when the reign before ended: this one's plan may not ask it, and its agent
            // waits for the outcome all the same.
            Some((transition, None)) if done.phase == Phase::Check => {
                if let Some(session) = self.sessions.get_mut(host) {
                    session.waits_for.insert(transition);
                }
            }
            Some(_) | None => {}
        }
        match done.phase {
            Phase::Check | Phase::Prepare | Phase::Hold => self.vote(done),
            Phase::Commit | Phase::Undo => self.step_done(done),
            Phase::Stop if done.transition.is_none() => self.return_stopped(&done),
            Phase::Stop => self.stop_done(done),
            Phase::Status => self.status_done(done),
            Phase::Release => self.release_done(done),
            Phase::Cancel => self.cancel_done(done),
            Phase::Notice | Phase::Fence => {}
        }
    }

    /// Something that every open transition may wait for has changed.
    pub(crate) fn stir_all(&mut self) {
        self.stirred.extend(self.runs.keys());
        self.stir_recovery();
    }

    /// Does whatever has become possible, until nothing more is.
    fn settle(&mut self) {
        let now = self.now.time;
        self.stirred.extend(self.wakes.iter().filter(|(_, at)| **at <= now).map(|(id, _)| *id));
        if !self.stirred.is_empty() {
            self.record_reports(Time(u64::MAX));
        }
        loop {
            while let Some(id) = self.stirred.pop_first() {
                self.advance(id);
                match self.runs.get(&id).and_then(Run::wake) {
                    Some(wake) => self.wakes.insert(id, wake),
                    None => self.wakes.remove(&id),
                };
            }
            if !std::mem::take(&mut self.refused_may_fit) {
                return;
            }
            self.retry_published();
        }
    }

    /// What writes nothing is answered only if nobody had taken over by when it came: whoever has may have given places
    /// away that hosts hold by their leases, and may have accepted what this server would refuse. One question serves
    /// all that has come since the last one.
    fn confirm(&mut self) {
        if mutant::is(Mutant::RenewalUnconfirmed) {
            let renewals = std::mem::take(&mut self.unconfirmed.renewals);
            self.emit_confirmed(Unconfirmed { renewals, ..Unconfirmed::default() });
        }
        if self.confirming.is_none() && self.unconfirmed != Unconfirmed::default() {
            self.confirming = Some(std::mem::take(&mut self.unconfirmed));
            self.outbox.emit(Output::Confirm);
        }
    }

    fn emit_confirmed(&mut self, confirmed: Unconfirmed) {
        for (session, Renewal { sent, lease_ms }) in confirmed.renewals {
            self.outbox.emit(Output::Order { session, order: Order::Renewed { sent, lease_ms } });
        }
        for (reply, answer) in confirmed.replies {
            self.outbox.emit(Output::Reply { reply, answer });
        }
    }

    // ---- going away

    fn go_away(&mut self, reply: ReplyId, lease_ms: u64, principal: String) {
        if !AWAY_MS.contains(&lease_ms) {
            let (first, last) = (AWAY_MS.start() / 1000, AWAY_MS.end() / 1000);
            let message = format!("away for {lease_ms} ms");
            let help = format!("between {first} s and {last} s");
            return self.reply(reply, Err(Rejection::new(Code::NotAllowed, message, help)));
        }
        if self.away.as_ref().is_some_and(|away| away.reply.is_some()) {
            let (message, help) =
                ("hosts are being told of a longer lease", "wait for the one who asked before");
            return self.reply(reply, Err(Rejection::new(Code::Busy, message, help)));
        }
        if lease_ms > self.lease_ms() {
            self.propose(Body::Away { lease_ms, principal });
        }
        let missing: BTreeSet<_> = self.sessions.keys().cloned().collect();
        // Every host renews within a third of its lease, and once more after it was told.
        let until = self.now.time.plus(self.lease_ms());
        let asked = missing.len();
        self.away = Some(Away { lease_ms, reply: Some(reply), until, asked, missing });
        self.goes_away_without();
    }

    /// A host goes by the longer lease.
    fn goes_away(&mut self, host: &HostName) {
        if let Some(away) = &mut self.away {
            away.missing.remove(host);
        }
        self.goes_away_without();
    }

    fn goes_away_without(&mut self) {
        if self.away.as_ref().is_some_and(|away| away.missing.is_empty()) {
            self.answer_away();
        }
    }

    fn answer_away(&mut self) {
        let Some(away) = &mut self.away else { return };
        let missing = away.missing.len();
        if let Some(reply) = away.reply.take() {
            let told = away.asked - missing;
            self.reply(reply, Ok(Accepted::Away { told, missing }));
        }
    }

    pub(crate) fn send_call(&mut self, call: Call) {
        let host = call.member.host.clone();
        self.order(&host, Order::Call(call));
    }
}

fn check_hash(request: &Request, hash: &str) -> Result<(), Rejection> {
    match &request.plan_hash {
        Some(wanted) if !plan::names(wanted, hash) => {
            let message = format!("the plan is {hash} now, not {wanted}");
            Err(Rejection::new(
                Code::PlanChanged,
                message,
                "look at the new plan: `lockstep plan` with the same targets",
            ))
        }
        Some(_) | None => Ok(()),
    }
}
