//! The agent's deciding half, in the same shape as the engine: what it has promised and done is in its journal
//! before it is said, and a handler starts only under the highest token that was ever seen for its group.
//!
//! Calls for one member never overlap: each member has a queue. A step whose end is not in the journal when the
//! agent starts again is run again when the server orders it again, never presumed done.

mod lease;
mod state;

use self::lease::Watched;
pub use self::state::{AgentRecord, AgentState, HeldUntil, OpenTransition, TakenStep};
use crate::id::{
    AgentId, ClusterId, HandlerName, HostName, Index, MemberId, Reign, RunId, StateName, TransitionId,
};
use crate::lease::Held;
use crate::message::{
    Assignment, Call, Decision, Done, Findings, Gap, Hello, Notice, Order, Outcome, PROTOCOL, Phase, Report,
    Role,
};
use crate::mutant::{self, Mutant};
use crate::outbox::{Out, Outbox};
use crate::relation::Published;
use crate::spec::{HANDLER_FENCE, HANDLER_NONE, LEASE_MS};
use crate::time::{Time, pause_ms};
use crate::vote::Answer;
use std::collections::{BTreeMap, BTreeSet, VecDeque};

/// How many answers are remembered for when their question comes again. Transitions that ended while the server
/// was away may leave some behind; a host takes part in few at a time.
const ANSWERS_MAX: usize = 1000;
/// How often a notice or a cancel is tried again. The release of a hold that has reached its end is tried until it
/// succeeds, since clients wait for it and nobody else is going to; after so many tries somebody is told.
const RETRIES_MAX: u32 = 10;
/// The pause before that in milliseconds, doubled each time: the first one and the last.
const RETRY_MS: (u64, u64) = (500, 30_000);
/// How long a handler may take that is called without an order, in milliseconds, unless it has its own bound.
const OWN_CALL_MS: u64 = 60_000;

/// What `agent.toml` says of a handler, its command left aside.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct HandlerRules {
    /// The phases it is called for.
    pub phases: BTreeSet<Phase>,
    /// How long a call may take, in milliseconds, by phase.
    pub timeout_ms: BTreeMap<Phase, u64>,
    /// How often its status is asked, in milliseconds.
    pub status_ms: u64,
    /// Whether what it moves refuses tokens lower than one that it has seen, and so needs no guard.
    pub checks_tokens: bool,
}

/// What a guard remembers of an earlier run of its agent.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default)]
pub struct Remembered {
    /// When the lease ends, by the host's clock since boot.
    pub until: Time,
    /// Whom it stops then.
    pub pids: BTreeMap<MemberId, BTreeSet<u32>>,
}

/// Who an agent is.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Identity {
    /// The host.
    pub host: HostName,
    /// What its data directory says it is.
    pub agent: AgentId,
    /// This run of it.
    pub run: RunId,
    /// Where other hosts reach the host.
    pub address: Option<String>,
    /// The labels of its configuration.
    pub labels: BTreeMap<String, String>,
}

/// A handler's run, named by the agent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct CallId(pub u64);

/// What happens to an agent.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum AgentInput {
    /// The batch in flight is durable.
    Appended,
    /// A connection to the server stands.
    Connected,
    /// It is gone.
    Disconnected,
    /// The server orders something.
    Order(Order),
    /// A handler has ended.
    Ended {
        /// Which run.
        call: CallId,
        /// Yes or done, no or failed, again.
        answer: Answer,
        /// Why.
        reason: Option<String>,
        /// What it said.
        findings: Findings,
    },
    /// A guard has answered [`AgentOutput::Guard`].
    Guarded {
        /// The members that it makes sure of.
        members: BTreeSet<MemberId>,
        /// How much before the lease's end it acts, in milliseconds: a watchdog takes its own time.
        early_ms: u64,
    },
    /// There is no guard any more, or none that answers.
    GuardLost,
    /// A deadline may have passed.
    Tick,
}

/// What an agent wants done.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
#[expect(clippy::large_enum_variant, reason = "reports are what an agent sends most, one at a time")]
pub enum AgentOutput {
    /// Make these records durable and say [`AgentInput::Appended`].
    Append(Vec<AgentRecord>),
    /// Tell the server; dropped when there is no connection.
    Send(Report),
    /// Run a handler and say [`AgentInput::Ended`].
    Run {
        /// This run.
        call: CallId,
        /// Which handler.
        handler: HandlerName,
        /// What for.
        order: Box<Call>,
        /// It is ended after so many milliseconds.
        timeout_ms: u64,
    },
    /// End a handler now and say [`AgentInput::Ended`].
    Kill(CallId),
    /// Tell the guard, or a new one where there is none, when it has to stop these processes, unless it is told another
    /// time before, and say [`AgentInput::Guarded`] or [`AgentInput::GuardLost`]. It acts at once on a time that is over.
    Guard {
        /// Since when these processes are known, by the host's clock since boot: one that started later is another.
        at: Time,
        /// When, by the same clock.
        until: Time,
        /// The processes of each member; none are known of one without any.
        pids: BTreeMap<MemberId, BTreeSet<u32>>,
    },
    /// The session stands.
    Joined,
    /// The connection is of no use: close it, and try again later.
    Disconnect(String),
    /// Something for the log that an operator should look at.
    Warning(String),
}

/// Why a handler is called.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
enum Why {
    /// The server ordered it and waits for the answer.
    Ordered,
    /// Its status is due.
    Status,
    /// The hold has reached its end.
    HoldEnd,
    /// The transition was aborted while the server was away.
    Cancel,
    /// A notice.
    Notice(Index),
    /// The lease ends.
    Lapse,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Job {
    call: Call,
    why: Why,
    received: Time,
    deadline: Time,
    tries: u32,
}

/// One member's calls.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default)]
struct Queue {
    waiting: VecDeque<Job>,
    running: Option<(CallId, Job)>,
    /// Tried again then.
    later: Vec<(Time, Job)>,
    status_at: Time,
    /// The last report, so that only news is sent; none: the next one is news.
    reported: Option<Report>,
}

impl Queue {
    fn jobs(&self) -> impl Iterator<Item = &Job> {
        self.waiting
            .iter()
            .chain(self.running.iter().map(|(_, job)| job))
            .chain(self.later.iter().map(|(_, job)| job))
    }

    /// The place of the job that comes next. What a member is told comes in order: while one notice is tried again,
    /// those after it wait, or the member would take an old outcome for the newest one. And while it holds, its release
    /// may come at any moment, which would have to wait for a notice that hangs.
    fn next(&self, holds: bool) -> Option<usize> {
        let is_notice = |job: &Job| matches!(job.why, Why::Notice(_));
        let waits = holds || self.later.iter().any(|(_, job)| is_notice(job));
        self.waiting.iter().position(|job| !(waits && is_notice(job)))
    }
}

/// The agent's deciding half.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct AgentEngine {
    identity: Identity,
    rules: BTreeMap<HandlerName, HandlerRules>,
    state: AgentState,
    outbox: Outbox<AgentRecord, AgentOutput>,
    now: Time,
    is_connected: bool,
    is_welcome: bool,
    lease_ms: u64,
    renew_at: Time,
    /// When the server last greeted or answered a renewal.
    heard_at: Time,
    queues: BTreeMap<MemberId, Queue>,
    next_call: u64,
    /// The answers to what was asked in open transitions, for when the question comes again.
    answers: BTreeMap<(TransitionId, MemberId, Phase), Done>,
    /// Transitions that have ended, and wait for handlers, holds and cancels. Lost when the agent ends: it then
    /// asks for the outcome again with its `Hello`.
    closing: BTreeMap<TransitionId, Outcome>,
    /// Transitions that stay open here, and of which the server knows nothing: it drives nobody by them.
    unknown: BTreeSet<TransitionId>,
    /// Notices whose calls have not all ended, oldest first.
    notices: VecDeque<(Index, usize)>,
    /// The lease.
    lease: Held,
    /// It has ended, and whoever needs it is being stopped or was.
    has_lapsed: bool,
    /// The processes that handlers have named.
    pids: BTreeMap<MemberId, BTreeSet<u32>>,
    /// What the guard was last told.
    watched: Option<Watched>,
    /// When a guard is to be told the same once more, in the place of one that is lost.
    replace_at: Option<Time>,
    /// When that was done last.
    replaced_at: Option<Time>,
    /// The members that it makes sure of.
    guarded: BTreeSet<MemberId>,
    /// How much before the lease's end it acts.
    guard_early_ms: u64,
}

impl AgentEngine {
    /// An agent over its replayed journal. What the guard of an earlier run remembers goes on; without one that does, the
    /// lease counts as over.
    pub fn new(
        identity: Identity,
        rules: BTreeMap<HandlerName, HandlerRules>,
        state: AgentState,
        now: Time,
        remembered: Option<Remembered>,
    ) -> Self {
        let Remembered { until, pids } =
            remembered.clone().unwrap_or_else(|| Remembered { until: now, ..Remembered::default() });
        let mut engine = Self {
            rules,
            outbox: Outbox::default(),
            now,
            is_connected: false,
            is_welcome: false,
            lease_ms: 3000,
            renew_at: now,
            heard_at: now,
            queues: BTreeMap::new(),
            next_call: 0,
            answers: BTreeMap::new(),
            closing: BTreeMap::new(),
            unknown: BTreeSet::new(),
            notices: VecDeque::new(),
            lease: Held::until(until),
            // Whoever never ran by a lease runs on until it has one.
            has_lapsed: !state.members.values().any(|assignment| !assignment.leased.is_empty()),
            watched: remembered.map(|_| Watched { at: now, until, pids: pids.clone() }),
            replace_at: None,
            replaced_at: None,
            pids,
            guarded: BTreeSet::new(),
            guard_early_ms: 0,
            state,
            identity,
        };
        if engine.state.agent.is_none() {
            let agent = engine.identity.agent.clone();
            engine.record(AgentRecord::Identity { agent });
        }
        engine
    }

    /// Whether it has turned to stopping whoever needs the lease, or has nobody to stop.
    pub fn has_lapsed(&self) -> bool {
        self.has_lapsed
    }

    /// What is in the journal, what is on its way there included.
    pub fn state(&self) -> &AgentState {
        &self.state
    }

    /// Whether it listens to its connection: one that it has given up says nothing to it.
    pub fn is_connected(&self) -> bool {
        self.is_connected
    }

    /// Takes one input in. Outputs are to be polled afterwards.
    pub fn handle(&mut self, now: Time, input: AgentInput) {
        self.now = now;
        // Before anything else is heard: what comes after a long stop was sent before it.
        self.lapse();
        match input {
            AgentInput::Appended => {
                self.outbox.acknowledge();
            }
            AgentInput::Connected => {
                self.is_connected = true;
                self.heard_at = now;
                self.hello();
            }
            AgentInput::Disconnected => {
                self.is_connected = false;
                self.is_welcome = false;
                if mutant::is(Mutant::GivesUpAfterYes) {
                    let open: Vec<_> = self.state.open.keys().copied().collect();
                    open.into_iter().for_each(|id| self.close(id, Outcome::Aborted));
                }
            }
            // It came on a connection that is given up.
            AgentInput::Order(_) if !self.is_connected => {}
            AgentInput::Order(order) => {
                // Whatever else a server says, without its store it can neither record nor renew anything.
                if matches!(order, Order::Welcome { .. } | Order::Renewed { .. }) {
                    self.heard_at = now;
                }
                self.order(order);
            }
            AgentInput::Guarded { members, early_ms } => {
                self.guard_early_ms = early_ms;
                self.note_guarded(members);
            }
            AgentInput::GuardLost => self.guard_lost(),
            AgentInput::Ended { call, answer, reason, findings } => {
                self.ended(call, answer, reason, findings)
            }
            AgentInput::Tick => {}
        }
        self.renew();
        self.turn_from_silence();
        self.end_holds();
        self.start();
        self.ask_status();
        self.start();
        self.watch();
    }

    /// What is to be done next, if anything is.
    pub fn poll_output(&mut self) -> Option<AgentOutput> {
        loop {
            match self.outbox.poll()? {
                Out::Append(records) => return Some(AgentOutput::Append(records)),
                // A higher token came while its start was being written down.
                Out::Ready(AgentOutput::Run { call, order, .. })
                    if self.is_overtaken(&order) || self.needs_lease(&order) =>
                {
                    let reason = "a newer order came before it could start".to_owned();
                    self.ended(call, Answer::No, Some(reason), Findings::default());
                    self.start();
                }
                Out::Ready(output) => return Some(output),
            }
        }
    }

    /// Whether [`AgentEngine::poll_output`] has something.
    pub fn has_output(&self) -> bool {
        self.outbox.is_ready()
    }

    /// When [`AgentInput::Tick`] is due at the latest.
    pub fn next_deadline(&self) -> Option<Time> {
        let holds = self.state.open.values().flat_map(|open| open.holds.iter());
        let holds = holds
            .filter(|(member, hold)| !hold.is_over && !self.is_releasing(member))
            .filter(|_| !mutant::is(Mutant::HoldWithoutEnd))
            .map(|(_, hold)| hold.until);
        let later = self.queues.values().flat_map(|queue| queue.later.iter().map(|(at, _)| *at));
        let status = self.state.members.keys().filter(|member| self.polls_status(member));
        let status = status.map(|member| self.queues.get(member).map_or(self.now, |queue| queue.status_at));
        let renew = self.is_welcome.then_some(self.renew_at);
        let silent = self.is_connected.then(|| self.silent_at());
        let lapse = (!self.has_lapsed && self.leased().next().is_some()).then(|| self.lease.stops_at());
        let silent = silent.into_iter().chain(lapse).chain(self.replace_at);
        holds.chain(later).chain(status).chain(renew).chain(silent).min()
    }

    fn record(&mut self, record: AgentRecord) {
        self.state.apply(&record);
        self.outbox.propose(record);
    }

    fn send(&mut self, report: Report) {
        if self.is_connected {
            self.outbox.emit(AgentOutput::Send(report));
        }
    }

    fn warn(&mut self, message: String) {
        self.outbox.emit(AgentOutput::Warning(message));
    }

    fn hello(&mut self) {
        let Identity { host, agent, run, address, labels } = self.identity.clone();
        let token = self.state.tokens.values().copied().max().unwrap_or_default();
        let open = self.state.open.keys().copied().collect();
        let (reign, cluster, noticed) = (self.state.reign, self.state.cluster.clone(), self.state.noticed);
        let protocol = PROTOCOL;
        self.send(Report::Hello(Hello {
            protocol,
            host,
            agent,
            run,
            address,
            labels,
            reign,
            cluster,
            token,
            open,
            noticed,
            fences: self.rules.keys().any(|handler| handler.as_str() == HANDLER_FENCE),
        }));
    }

    // ---- orders

    fn order(&mut self, order: Order) {
        match order {
            Order::Welcome { reign, cluster, lease_ms, members } => {
                self.welcome(reign, cluster, lease_ms, members);
            }
            Order::Refused { message } => self.outbox.emit(AgentOutput::Disconnect(message)),
            Order::Assign { members } => self.assign(members),
            Order::Call(call) => self.ordered(call),
            Order::Outcome { transition, outcome: Some(outcome) } => self.close(transition, outcome),
            Order::Outcome { transition, outcome: None } => {
                self.warn(format!(
                    "the server knows nothing of {transition}: it stays open here; has it lost its journal?"
                ));
                self.unknown.insert(transition);
            }
            Order::Notice(Notice { index, previous, calls, .. }) => self.notice(index, previous, calls),
            // Whatever came before is part of what a gap tells.
            Order::Gap(Gap { index, calls }) => self.notice(index, Index(0), calls),
            Order::Renewed { sent, lease_ms } => {
                let length_ms = lease_ms.unwrap_or(self.lease_ms);
                let lease = Held::renewed(sent.min(self.now), length_ms, self.guard_early_ms);
                // It was long on its way, and says nothing of now. If it brings a shorter lease, the longer one counts for
                // the server until this agent says otherwise; a first lease that is over already would stop what was
                // left alone so far.
                if lease.stops_at() <= self.now {
                    return;
                }
                (self.lease_ms, self.lease) = (length_ms, lease);
                self.has_lapsed = false;
                // Where members are is for the server to say again: a stop that comes late would end what was begun since.
                for queue in self.queues.values_mut() {
                    queue.later.retain(|(_, job)| job.why != Why::Lapse);
                }
                self.renew_at = self.renew_at.min(self.now.plus((self.lease_ms / 3).max(1)));
            }
        }
    }

    fn welcome(&mut self, reign: Reign, cluster: Option<ClusterId>, lease_ms: u64, members: Vec<Assignment>) {
        if reign < self.state.reign {
            let message =
                format!("its reign is {reign}, and {} has been seen: it is out of date", self.state.reign);
            return self.outbox.emit(AgentOutput::Disconnect(message));
        }
        if reign > self.state.reign {
            self.record(AgentRecord::Reign { reign });
        }
        if let Some(cluster) = cluster.filter(|cluster| self.state.cluster.as_ref() != Some(cluster)) {
            self.record(AgentRecord::Cluster { cluster });
        }
        self.is_welcome = true;
        self.unknown.clear();
        self.lease_ms = lease_ms;
        // A greeting is no renewal, and members may wait for one.
        self.renew_at = self.now;
        self.outbox.emit(AgentOutput::Joined);
        self.assign(members);
        self.queues.values_mut().for_each(|queue| {
            queue.reported = None;
            queue.status_at = self.now;
        });
        // The server may still count on a guard that has done its work. It hears so before it renews anything or counts a
        // vote: a status would come after the calls that wait.
        let leased: Vec<_> = self.leased().map(|assignment| assignment.member.clone()).collect();
        for member in leased {
            let states = self.guarded_in(&member);
            if states.is_empty() && !mutant::is(Mutant::GuardStillCounted) {
                self.send(Report::Guarded { member, states });
            }
        }
    }

    fn assign(&mut self, members: Vec<Assignment>) {
        // A member that comes back is news, also when a call of its earlier time here is still at work. So is one that
        // is assigned otherwise: the server may have forgotten that it is guarded.
        for assignment in &members {
            let member = &assignment.member;
            if self.state.members.get(member) != Some(assignment)
                && let Some(queue) = self.queues.get_mut(member)
            {
                queue.reported = None;
            }
        }
        if !members.iter().eq(self.state.members.values()) {
            self.record(AgentRecord::Assigned { members });
        }
        for member in self.state.members.keys() {
            let queue = self.queues.entry(member.clone()).or_default();
            queue.status_at = self.now;
        }
        self.queues
            .retain(|member, queue| self.state.members.contains_key(member) || queue.jobs().next().is_some());
    }

    fn ordered(&mut self, call: Call) {
        if let Some(refusal) = self.refusal(&call) {
            return self.send(Report::Done(refusal));
        }
        if let Some(token) = call.token
            && self.state.tokens.get(&call.member.group).is_none_or(|known| *known < token)
        {
            self.record(AgentRecord::Token { group: call.member.group.clone(), token });
        }
        let is_same = |job: &Job| {
            let (a, b) = (&job.call, &call);
            job.why == Why::Ordered
                && (a.transition, a.phase, a.step, a.attempt) == (b.transition, b.phase, b.step, b.attempt)
                && a.plan == b.plan
        };
        if self.queues.get(&call.member).is_some_and(|queue| queue.jobs().any(is_same)) {
            return;
        }
        if let Some(done) = self.answered(&call) {
            return self.send(Report::Done(done));
        }
        // It was planned from what this member said on an earlier connection, and may have been stopped since: a vote for
        // its move counts only behind a status of now.
        let queue = self.queues.entry(call.member.clone()).or_default();
        let is_told = queue.reported.is_some() || queue.jobs().any(|job| job.why == Why::Status);
        if call.phase == Phase::Check && call.from.is_some() && !is_told {
            self.ask_status_now(&call.member);
        }
        let deadline = self.now.plus(call.within_ms);
        let queue = self.queues.entry(call.member.clone()).or_default();
        queue.waiting.push_back(Job { call, why: Why::Ordered, received: self.now, deadline, tries: 0 });
    }

    /// An order under a lower token than the highest one seen, or for a transition that has ended, is refused,
    /// whoever sends it: a server that was deposed may not know it yet.
    fn refusal(&self, call: &Call) -> Option<Done> {
        let known = self.state.tokens.get(&call.member.group).copied().unwrap_or_default();
        let is_checked = !mutant::is(Mutant::TokenUnchecked) && !self.lets_go_its_own(call);
        if let Some(token) = call.token.filter(|token| *token < known && is_checked) {
            let reason =
                format!("token {token} is lower than {known}, which has been seen for {}", call.member.group);
            return Some(Done { refused: Some(known), ..answer(call, Answer::No, Some(reason)) });
        }
        let is_closed = call.transition.is_some_and(|id| self.state.closed.contains(&id));
        let is_ending = call.transition.is_some_and(|id| self.closing.contains_key(&id));
        let is_refused = match call.phase {
            Phase::Release => false,
            // What waits in the queue when the outcome comes must not start, and what was prepared is cancelled.
            Phase::Check | Phase::Prepare | Phase::Hold | Phase::Commit | Phase::Undo => {
                is_closed || is_ending
            }
            Phase::Cancel | Phase::Stop | Phase::Status | Phase::Notice | Phase::Fence => is_closed,
        };
        is_refused.then(|| answer(call, Answer::No, Some("the transition has ended here".to_owned())))
    }

    /// Whether an order releases a hold of its own transition, and no later one: that lets nobody through who is held
    /// for somebody else, and clients wait for it, whatever has been ordered since.
    fn lets_go_its_own(&self, call: &Call) -> bool {
        let mut others = self.state.open.iter().filter(|(id, _)| Some(**id) != call.transition);
        let is_held = |open: &OpenTransition| open.holds.get(&call.member).is_some_and(|hold| !hold.is_over);
        let own = call.transition.and_then(|id| self.state.open.get(&id));
        let has_held = own.is_some_and(|open| open.holds.contains_key(&call.member));
        call.phase == Phase::Release && has_held && !others.any(|(_, open)| is_held(open))
    }

    /// Whether a handler that was about to act must not any more: its agent has learned of a higher token meanwhile.
    fn is_overtaken(&self, call: &Call) -> bool {
        let known = self.state.tokens.get(&call.member.group);
        let acts = match call.phase {
            Phase::Prepare | Phase::Hold | Phase::Commit | Phase::Undo | Phase::Stop => true,
            Phase::Check | Phase::Cancel | Phase::Release => false,
            Phase::Status | Phase::Notice | Phase::Fence => false,
        };
        let acts = acts && !mutant::is(Mutant::TokenUnchecked);
        acts && call.token.is_some_and(|token| known.is_some_and(|known| token < *known))
    }

    /// The answer to a question that has been answered, when it comes again.
    fn answered(&self, call: &Call) -> Option<Done> {
        let id = call.transition?;
        let known = match call.step {
            Some(step) => {
                let taken = self.state.open.get(&id)?.steps.get(&(step, call.phase))?;
                if mutant::is(Mutant::StartedIsDone) && taken.done.is_none() {
                    return Some(answer(call, Answer::Yes, None));
                }
                taken.done.as_deref()?
            }
            None => self.answers.get(&(id, call.member.clone(), call.phase))?,
        };
        // A server that has taken over plans anew, and asks the same question about another plan. What one member
        // did answers for no other, whatever a confused server calls its step.
        if known.plan != call.plan || known.member != call.member {
            return None;
        }
        // A step that was done is done whichever try asks; a failure answers the tries up to its own.
        let holds = known.attempt >= call.attempt || (call.step.is_some() && known.answer == Answer::Yes);
        holds.then(|| Done { attempt: call.attempt, ..known.clone() })
    }

    fn close(&mut self, id: TransitionId, outcome: Outcome) {
        self.closing.insert(id, outcome);
        self.close_if_done(id);
    }

    /// An ended transition is forgotten once nothing of it is left to do here. Only then it is known who has to
    /// be cancelled: a handler that is at work when the outcome comes may prepare something yet.
    fn close_if_done(&mut self, id: TransitionId) {
        let Some(&outcome) = self.closing.get(&id) else { return };
        let is_of_it = |job: &Job| job.call.transition == Some(id) && job.call.phase != Phase::Notice;
        let is_busy = self.queues.values().flat_map(Queue::jobs).any(is_of_it);
        let open = self.state.open.get(&id);
        if is_busy || open.is_some_and(|open| open.holds.values().any(|hold| !hold.is_over)) {
            return;
        }
        let prepared: Vec<_> = open.iter().flat_map(|open| open.prepared.iter().cloned()).collect();
        for member in &prepared {
            let decision = if outcome == Outcome::Aborted { Decision::Abort } else { Decision::Commit };
            let own = self.own_call(member, Phase::Cancel);
            self.enqueue_own(Call { transition: Some(id), decision: Some(decision), ..own }, Why::Cancel);
        }
        if !prepared.is_empty() {
            return;
        }
        self.closing.remove(&id);
        self.answers.retain(|(transition, ..), _| *transition != id);
        if !self.state.open.contains_key(&id) {
            // It said yes to nothing: there is nothing to remember.
            return;
        }
        self.record(AgentRecord::Closed { transition: id });
        // What it moved is told anew, whatever was said of it meanwhile. A member without a handler has no state
        // but the one that its last step confirmed.
        for (member, queue) in &mut self.queues {
            let known = self.state.members.get(member);
            if known.is_some_and(|assignment| assignment.handler.as_str() != HANDLER_NONE) {
                queue.reported = None;
                queue.status_at = self.now;
            }
        }
    }

    fn notice(&mut self, index: Index, previous: Index, calls: Vec<Call>) {
        let newest = self.notices.back().map_or(self.state.noticed, |(index, _)| *index);
        if index <= newest {
            return self.send(Report::Noticed { index: self.state.noticed });
        }
        if previous > newest {
            self.warn(format!(
                "notice {index} follows {previous}, and the last one here is {newest}: some were lost"
            ));
        }
        let calls: Vec<_> =
            calls.into_iter().filter(|call| self.state.members.contains_key(&call.member)).collect();
        self.notices.push_back((index, calls.len()));
        for call in calls {
            self.enqueue_own(call, Why::Notice(index));
        }
        self.take_notices();
    }

    /// Notices are taken in order, each when all its calls have ended.
    fn take_notices(&mut self) {
        while let Some((index, 0)) = self.notices.front().copied() {
            self.notices.pop_front();
            self.record(AgentRecord::Noticed { index });
            self.send(Report::Noticed { index });
        }
    }

    fn own_call(&self, member: &MemberId, phase: Phase) -> Call {
        Call {
            role: if phase == Phase::Release { Role::Holder } else { Role::Actor },
            within_ms: OWN_CALL_MS,
            context: Some(crate::message::Context::default()),
            ..Call::bare(member.clone(), phase)
        }
    }

    fn enqueue_own(&mut self, call: Call, why: Why) {
        let deadline = self.now.plus(call.within_ms);
        let queue = self.queues.entry(call.member.clone()).or_default();
        queue.waiting.push_back(Job { call, why, received: self.now, deadline, tries: 0 });
    }

    // ---- time

    fn renew(&mut self) {
        if self.is_welcome && self.renew_at <= self.now {
            self.renew_at = self.now.plus((self.lease_ms / 3).max(1));
            let open = self.state.open.keys().copied().collect();
            // What it was told in a greeting counts once a renewal is answered.
            let lease_ms = self.lease.lease_ms;
            self.send(Report::Renew { sent: self.now, open: Some(open), lease_ms });
        }
    }

    /// From then on the server counts as gone: it has answered two renewals with nothing, or a greeting, for which a
    /// server that a thousand agents greet at once gets a little longer. There has to be time left to reach another
    /// one before the lease ends.
    fn silent_at(&self) -> Time {
        // No spec has a shorter one, and a server that says so is answered all the same.
        let lease_ms = self.lease_ms.max(*LEASE_MS.start());
        self.heard_at.plus(if self.is_welcome { lease_ms / 3 * 2 } else { lease_ms / 6 * 5 })
    }

    /// A server that stands still keeps its connections. Whoever has taken over from it gives this host up when the
    /// lease ends, so its agent looks for that one while there is time.
    fn turn_from_silence(&mut self) {
        if self.is_connected && self.silent_at() <= self.now {
            self.is_connected = false;
            self.is_welcome = false;
            self.outbox.emit(AgentOutput::Disconnect("the server has gone silent".to_owned()));
        }
    }

    fn is_releasing(&self, member: &MemberId) -> bool {
        self.queues.get(member).is_some_and(|queue| queue.jobs().any(|job| job.call.phase == Phase::Release))
    }

    /// A hold that has reached its end is let go, whatever has become of the server. One that ends later than
    /// its whole length from now was begun before the host restarted: its clock is void, and it is over.
    fn end_holds(&mut self) {
        let mut over = Vec::new();
        for (&id, open) in &self.state.open {
            for (member, hold) in open.holds.iter().filter(|(_, hold)| !hold.is_over) {
                let is_due = hold.until <= self.now || hold.until > self.now.plus(hold.hold_ms);
                let is_due = is_due && !mutant::is(Mutant::HoldWithoutEnd);
                if is_due && !self.is_releasing(member) {
                    over.push((id, member.clone()));
                }
            }
        }
        for (id, member) in over {
            let call = Call { transition: Some(id), ..self.own_call(&member, Phase::Release) };
            let deadline = self.now.plus(call.within_ms);
            let queue = self.queues.entry(member).or_default();
            // Before whatever waits: behind a later hold it would let go whom that one holds.
            queue.waiting.push_front(Job { call, why: Why::HoldEnd, received: self.now, deadline, tries: 0 });
        }
    }

    /// Whether a member's status is asked now and then: not while a transition drives it.
    fn polls_status(&self, member: &MemberId) -> bool {
        let is_over = |id: &TransitionId| self.closing.contains_key(id) || self.unknown.contains(id);
        let is_driven = self.state.open.iter().filter(|(id, _)| !is_over(id)).any(|(_, open)| {
            open.votes.iter().any(|(voter, _)| voter == member) || open.holds.contains_key(member)
        });
        let is_busy =
            self.queues.get(member).is_some_and(|queue| queue.running.is_some() || !queue.waiting.is_empty());
        self.is_welcome && !is_driven && !is_busy
    }

    fn ask_status(&mut self) {
        let members: Vec<_> = self.state.members.keys().cloned().collect();
        for member in members {
            let is_due = self.queues.get(&member).is_none_or(|queue| queue.status_at <= self.now);
            if is_due && self.polls_status(&member) {
                let rules = self
                    .state
                    .members
                    .get(&member)
                    .and_then(|assignment| self.rules.get(&assignment.handler));
                let pause = rules.map_or(OWN_CALL_MS, |rules| rules.status_ms);
                self.queues.entry(member.clone()).or_default().status_at = self.now.plus(pause);
                let call = self.own_call(&member, Phase::Status);
                self.enqueue_own(call, Why::Status);
            }
        }
    }

    /// Asks for a member's status, also while a transition drives it: for who it is now, more than for where.
    fn ask_status_now(&mut self, member: &MemberId) {
        let queue = self.queues.entry(member.clone()).or_default();
        if !queue.waiting.iter().any(|job| job.why == Why::Status) {
            self.enqueue_own(self.own_call(member, Phase::Status), Why::Status);
        }
    }

    // ---- calls

    fn start(&mut self) {
        loop {
            let now = self.now;
            let mut next = None;
            let open = &self.state.open;
            for (member, queue) in &mut self.queues {
                while let Some(place) = queue.later.iter().position(|(at, _)| *at <= now) {
                    let (_, job) = queue.later.remove(place);
                    match job.why {
                        Why::Notice(_) | Why::HoldEnd => queue.waiting.push_front(job),
                        Why::Ordered | Why::Status | Why::Cancel | Why::Lapse => {
                            queue.waiting.push_back(job);
                        }
                    }
                }
                let mut holds = open.values().filter_map(|open| open.holds.get(member));
                if (queue.running.is_none() || mutant::is(Mutant::CallsOverlap))
                    && let Some(place) = queue.next(holds.any(|hold| !hold.is_over))
                {
                    next = queue.waiting.remove(place);
                    break;
                }
            }
            let Some(job) = next else { return };
            self.start_job(job);
        }
    }

    fn start_job(&mut self, job: Job) {
        // A higher token may have come while it waited.
        if job.why == Why::Ordered
            && let Some(refusal) = self.refusal(&job.call)
        {
            self.send(Report::Done(refusal));
            return job.call.transition.into_iter().for_each(|id| self.close_if_done(id));
        }
        // A release is worth something however late it is: clients wait for it, and nobody may order it again.
        let is_bound = job.why == Why::Ordered && job.call.phase != Phase::Release;
        if job.deadline <= self.now && is_bound {
            let reason = "its time was up before it could start: the member was busy".to_owned();
            return self.finish(job, Answer::No, Some(reason), Findings::default());
        }
        if job.call.phase == Phase::Hold && self.hold_left_ms(&job) == Some(0) {
            let reason = "its hold was over before it could begin: the member was busy".to_owned();
            return self.finish(job, Answer::No, Some(reason), Findings::default());
        }
        if job.why == Why::Ordered && self.needs_lease(&job.call) {
            let reason = "the lease of this host has ended, or is about to".to_owned();
            return self.finish(job, Answer::Again, Some(reason), Findings::default());
        }
        if job.call.phase == Phase::Fence {
            return self.start_fence(job);
        }
        let Some(assignment) = self.state.assignment(&job.call.member) else {
            let reason = format!("{} is not a member here", job.call.member);
            // Who is none any more has to be told nothing, and must not hold up what others are told.
            let answer = if matches!(job.why, Why::Notice(_)) { Answer::Yes } else { Answer::No };
            return self.finish(job, answer, Some(reason), Findings::default());
        };
        let handler = assignment.handler.clone();
        if handler.as_str() == HANDLER_NONE {
            return self.without_call(job, &assignment.lowest.clone());
        }
        let Some(rules) = self.rules.get(&handler) else {
            let reason = format!("agent.toml on this host has no handler {handler}");
            return self.finish(job, Answer::No, Some(reason), Findings::default());
        };
        if !rules.phases.contains(&job.call.phase) {
            return self.without_call(job, &assignment.lowest.clone());
        }
        let timeout_ms = rules.timeout_ms.get(&job.call.phase).copied().unwrap_or(OWN_CALL_MS);
        // An order is worth nothing after its deadline. What the agent does of its own accord has to be done
        // however late: a hold is let go also by the handler that had to wait for a long commit to end.
        let timeout_ms = match job.why {
            Why::Ordered if is_bound => timeout_ms.min(job.deadline.since(self.now)).max(1),
            Why::Ordered | Why::Status | Why::HoldEnd | Why::Cancel | Why::Notice(_) | Why::Lapse => {
                timeout_ms
            }
        };
        self.run(job, handler, timeout_ms);
    }

    /// Makes sure that another host has stopped: with the handler that is there for that, whatever the groups.
    fn start_fence(&mut self, job: Job) {
        let fence = self.rules.iter().find(|(handler, _)| handler.as_str() == HANDLER_FENCE);
        let Some((handler, rules)) = fence.map(|(handler, rules)| (handler.clone(), rules)) else {
            let reason = format!("agent.toml on this host has no handler {HANDLER_FENCE}");
            return self.finish(job, Answer::No, Some(reason), Findings::default());
        };
        let timeout_ms = rules.timeout_ms.get(&Phase::Fence).copied().unwrap_or(OWN_CALL_MS);
        let left_ms = job.deadline.since(self.now).max(1);
        self.run(job, handler, timeout_ms.min(left_ms));
    }

    fn run(&mut self, job: Job, handler: HandlerName, timeout_ms: u64) {
        self.note_start(&job);
        let call = CallId(self.next_call);
        self.next_call += 1;
        let order = Box::new(Call { hold_ms: self.hold_left_ms(&job), ..job.call.clone() });
        let queue = self.queues.entry(job.call.member.clone()).or_default();
        queue.running = Some((call, job));
        self.outbox.emit(AgentOutput::Run { call, handler, order, timeout_ms });
    }

    /// What is left of a hold that a call is about, in milliseconds: it counts from receipt, as the server counts it
    /// from sending. A handler that had to wait for its turn would otherwise hold clients when nobody counts on it.
    fn hold_left_ms(&self, job: &Job) -> Option<u64> {
        job.call.hold_ms.map(|hold_ms| job.received.plus(hold_ms).since(self.now))
    }

    /// What must be durable before the handler starts: that a step may have been taken, that clients may be held.
    fn note_start(&mut self, job: &Job) {
        let Call { transition: Some(transition), phase, member, .. } = job.call.clone() else { return };
        match (phase, job.call.step) {
            (Phase::Commit | Phase::Undo, Some(step)) => {
                self.record(AgentRecord::Started { transition, member, step, phase });
            }
            (Phase::Prepare, _) => self.record(AgentRecord::Preparing { transition, member }),
            (Phase::Hold, _) => {
                let hold_ms = job.call.hold_ms.unwrap_or(OWN_CALL_MS);
                let until = self.now.plus(self.hold_left_ms(job).unwrap_or(OWN_CALL_MS));
                self.record(AgentRecord::Held { transition, member, until, hold_ms });
            }
            // A commit or undo without a step is none.
            (Phase::Commit | Phase::Undo, None)
            | (
                Phase::Check
                | Phase::Cancel
                | Phase::Release
                | Phase::Status
                | Phase::Notice
                | Phase::Fence
                | Phase::Stop,
                _,
            ) => {}
        }
    }

    /// A call that needs no handler: it succeeds, unless success would be a lie.
    fn without_call(&mut self, job: Job, lowest: &StateName) {
        let handler = &self.state.assignment(&job.call.member).expect("the caller has looked").handler;
        let is_real = handler.as_str() != HANDLER_NONE;
        let confirmed = self.state.states.get(&job.call.member).unwrap_or(lowest).clone();
        let (answer, reason) = match job.call.phase {
            // Success would be evidence of where software is that was never asked.
            Phase::Undo | Phase::Stop | Phase::Fence if is_real => {
                (Answer::No, Some(format!("handler {handler} has no {} phase", job.call.phase)))
            }
            Phase::Fence => (Answer::No, Some("a member without a handler cannot fence".to_owned())),
            Phase::Check
            | Phase::Prepare
            | Phase::Commit
            | Phase::Undo
            | Phase::Cancel
            | Phase::Hold
            | Phase::Release
            | Phase::Status
            | Phase::Notice
            | Phase::Stop => (Answer::Yes, None),
        };
        let state = (job.call.phase == Phase::Status).then_some(confirmed);
        if job.call.phase == Phase::Hold {
            self.note_start(&job);
        }
        self.finish(job, answer, reason, Findings { state, ..Findings::default() });
    }

    fn ended(&mut self, call: CallId, answer: Answer, reason: Option<String>, findings: Findings) {
        let queue =
            self.queues.values_mut().find(|queue| queue.running.as_ref().is_some_and(|(id, _)| *id == call));
        let Some((_, job)) = queue.and_then(|queue| queue.running.take()) else { return };
        self.finish(job, answer, reason, findings);
    }

    fn finish(&mut self, mut job: Job, given: Answer, reason: Option<String>, findings: Findings) {
        let transition = job.call.transition;
        match job.why.clone() {
            Why::Ordered => self.answer(&job.call, given, reason, findings),
            Why::Status => self.report_state(&job.call.member, given, reason, findings),
            Why::HoldEnd | Why::Cancel | Why::Notice(_) | Why::Lapse
                if given != Answer::Yes && (job.tries < RETRIES_MAX || job.why == Why::HoldEnd) =>
            {
                let at = self.now.plus(pause_ms(RETRY_MS, job.tries));
                job.tries += 1;
                if job.tries == RETRIES_MAX && job.why == Why::HoldEnd {
                    let reason = reason.unwrap_or_default();
                    self.warn(format!("{} still holds, its release fails: {reason}", job.call.member));
                }
                return self.queues.entry(job.call.member.clone()).or_default().later.push((at, job));
            }
            Why::HoldEnd => {
                let (member, id) = (job.call.member.clone(), transition.expect("holds are of transitions"));
                self.record(AgentRecord::HoldEnded {
                    transition: id,
                    member: member.clone(),
                    is_final: false,
                });
                self.send(Report::HoldEnded { transition: id, member });
            }
            Why::Lapse => {
                if let (Answer::Yes, Some(state)) = (given, job.call.to.clone()) {
                    let member = job.call.member.clone();
                    self.pids.remove(&member);
                    self.record(AgentRecord::State { member, state });
                }
                let queue = self.queues.entry(job.call.member.clone()).or_default();
                (queue.reported, queue.status_at) = (None, self.now);
            }
            // After so many failures it is reported, and not waited for any more.
            Why::Cancel => {
                let (member, transition) =
                    (job.call.member.clone(), transition.expect("cancels are of transitions"));
                self.record(AgentRecord::Cancelled { transition, member });
            }
            Why::Notice(index) => {
                if let Some((_, open)) = self.notices.iter_mut().find(|(notice, _)| *notice == index) {
                    *open -= 1;
                }
                self.take_notices();
            }
        }
        if given != Answer::Yes && job.why != Why::Ordered && job.why != Why::Status {
            self.warn(format!("{} of {} failed for good", job.call.phase, job.call.member));
        }
        if let Some(id) = transition {
            self.close_if_done(id);
        }
    }

    /// Writes down what is about to be said, and says it.
    fn answer(&mut self, call: &Call, mut given: Answer, mut reason: Option<String>, findings: Findings) {
        // Written down as done it would be answered so for ever, and the tries that follow would do nothing.
        if let (Phase::Commit | Phase::Undo | Phase::Stop, Answer::Yes, Some(state), Some(to)) =
            (call.phase, given, &findings.state, &call.to)
            && state != to
        {
            (given, reason) = (Answer::No, Some(format!("its handler reports {state}, not {to}")));
        }
        self.note_pids(&call.member, &findings);
        let is_step = matches!(call.phase, Phase::Commit | Phase::Undo);
        let is_leased = self.leased().any(|assignment| assignment.member == call.member);
        if is_step && is_leased && findings.pids.is_none() {
            // Its processes may be others now. The guard has to know them before the transition ends, which may take long.
            self.ask_status_now(&call.member);
        }
        if call.phase == Phase::Status && given == Answer::Yes {
            // It is also what a status tells at any time.
            self.report_state(&call.member, given, reason.clone(), findings.clone());
        }
        let done = Done { findings, ..answer(call, given, reason) };
        let member = call.member.clone();
        let Some(id) = call.transition else {
            if call.phase == Phase::Stop {
                self.note_state(&done, call);
            }
            return self.send(Report::Done(done));
        };
        match (call.phase, call.step) {
            (Phase::Commit | Phase::Undo, Some(step)) => {
                self.record(AgentRecord::Ended { transition: id, step, done: Box::new(done.clone()) });
                self.note_state(&done, call);
            }
            (Phase::Check | Phase::Prepare | Phase::Hold, _) if given == Answer::Yes => {
                self.record(AgentRecord::Voted { transition: id, member: member.clone(), phase: call.phase });
            }
            (Phase::Release, _) if given == Answer::Yes => {
                let is_open = self.state.open.contains_key(&id);
                if is_open {
                    self.record(AgentRecord::HoldEnded {
                        transition: id,
                        member: member.clone(),
                        is_final: true,
                    });
                }
            }
            (Phase::Cancel, _) if given == Answer::Yes && self.state.open.contains_key(&id) => {
                self.record(AgentRecord::Cancelled { transition: id, member: member.clone() });
            }
            (Phase::Stop, _) => self.note_state(&done, call),
            // Only a yes is a promise, and only of a transition that is still open here.
            (
                Phase::Check
                | Phase::Prepare
                | Phase::Hold
                | Phase::Commit
                | Phase::Undo
                | Phase::Release
                | Phase::Cancel,
                _,
            ) => {}
            (Phase::Status | Phase::Notice | Phase::Fence, _) => {}
        }
        if call.step.is_none() && !self.state.closed.contains(&id) {
            self.answers.insert((id, member, call.phase), done.clone());
            while self.answers.len() > ANSWERS_MAX {
                self.answers.pop_first();
            }
        }
        self.send(Report::Done(done));
    }

    fn note_state(&mut self, done: &Done, call: &Call) {
        if let (Answer::Yes, Some(to)) = (done.answer, &call.to) {
            self.record(AgentRecord::State { member: call.member.clone(), state: to.clone() });
            let assignment = self.state.assignment(&call.member);
            if assignment.is_some_and(|assignment| assignment.lowest == *to) {
                self.pids.remove(&call.member);
            }
        }
    }

    fn report_state(&mut self, member: &MemberId, given: Answer, reason: Option<String>, findings: Findings) {
        self.note_pids(member, &findings);
        let Findings { state, score, facts, provides, consumes, .. } = findings;
        let state = state.filter(|_| given == Answer::Yes);
        // What could not be told is as it was.
        let published = state.is_some().then_some(Published { provides, consumes });
        let reason = match &state {
            Some(_) => None,
            None => Some(reason.unwrap_or_else(|| "status gave no state".to_owned())),
        };
        let member_id = member.clone();
        let guarded = self.guarded_in(member);
        let report = Report::State { member: member_id, state, score, reason, facts, published, guarded };
        let queue = self.queues.entry(member.clone()).or_default();
        if queue.reported.as_ref() != Some(&report) && self.is_welcome {
            queue.reported = Some(report.clone());
            self.send(report);
        }
    }
}

fn answer(call: &Call, given: Answer, reason: Option<String>) -> Done {
    Done {
        member: call.member.clone(),
        phase: call.phase,
        transition: call.transition,
        step: call.step,
        attempt: call.attempt,
        plan: call.plan.clone(),
        answer: given,
        reason,
        refused: None,
        findings: Findings::default(),
    }
}

#[cfg(test)]
mod tests;
