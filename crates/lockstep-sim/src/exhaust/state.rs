//! A state of a configuration, and the moves that lead on from it.
//!
//! # What is not tried, and why nothing is missed
//!
//! - What a machine wants done (`poll_output`) is done at once. It reads nothing and reaches nobody: a batch is in
//!   flight, a message is on its way, a handler is at work, and all that comes of them is a move of its own. A process
//!   that is killed between two outputs differs from one that is killed after both in that the later one is missing: a
//!   batch that was never in flight is one that was lost, a handler that never started is one that is killed before its
//!   effect, and a message that was not sent is one that is lost with the connection. For the last, an agent may lose
//!   the rest of what a killed server has sent it at any moment ([`Move::HangUp`]), and the rest of what a killed
//!   agent has sent may be lost with it ([`Move::KillAgent`]); the moment is free, so any first part may have come.
//! - A `status` call ends at once. It changes nothing outside; ended later it would only keep the member's next call
//!   waiting, as a longer way of that call's order to the agent does.
//! - In configurations that hurry ([`Scope::hurries`]) agents connect, and learn that their writes are durable, as
//!   soon as they can. A late connection differs from a late `Hello` on it, and a late acknowledgement from late
//!   messages and handlers behind it, only in what an agent does in between; smaller configurations try that.
//! - Time passes only when nothing else can happen, but for [`super::scope::Faults::waits`].

use super::scope::{Faults, Scope, no};
use crate::invariant::{Invariants, Violation};
use lockstep_core::agent::CallId;
use lockstep_core::cluster::{Cluster, Mark, Member};
use lockstep_core::engine::{Accepted, ReplyId, SessionId};
use lockstep_core::id::{MemberId, TransitionId};
use lockstep_core::message::Phase;
use lockstep_core::record::Liveness;
use lockstep_core::spec::Recover;
use lockstep_core::time::Time;
use lockstep_core::world::{Choice, Happened, Name, Script, ServerId, World, unsettled};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

/// Time passes in steps of at most so many milliseconds: longer than any deadline, hold or retry, shorter than what
/// passes between renewals of the longest lease.
const WAIT_MS: u64 = 100_000;

/// Something that may happen next.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Move {
    /// What the world lists by itself.
    Happens(Choice),
    /// An operator asks for the next request.
    Ask,
    /// The server dies.
    KillServer { keeps_in_flight: bool },
    /// The server is stopped for a while.
    PauseServer,
    /// A server starts; one that is stopped is deposed.
    StartServer,
    /// A server that was stopped goes on.
    ResumeServer(ServerId),
    /// An agent dies, its handlers with it.
    KillAgent { name: Name, keeps_in_flight: bool, loses_sent: bool },
    /// An agent dies, and its handlers go on until it starts again.
    KillAgentOnly(Name),
    /// An agent starts.
    StartAgent(Name),
    /// A connection is lost with all that is on its way.
    Break(Name),
    /// An agent closes its end; the server learns of it after what was sent before.
    HangUp(Name),
    /// Nothing gets through to or from an agent.
    Cut(Name),
    /// Everything gets through again.
    Heal(Name),
    /// A handler ends with a no.
    Fail { name: Name, call: CallId, has_effect: bool },
    /// A handler hangs until its time is up.
    Hang { name: Name, call: CallId },
    /// Time passes until something is due.
    Wait,
}

/// A state: what decides what may happen, and how it is judged.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct State {
    world: World,
    /// What the journal says. Its order stands for nothing that is to come, and is not in the world's hash.
    durable: Arc<Cluster>,
    invariants: Invariants,
    faults: Faults,
    /// Connections to a server that is dead or deposed, or is going to be.
    stale: BTreeSet<SessionId>,
    /// A server that was stopped.
    paused: Option<ServerId>,
    /// See [`Scope::hurries`].
    hurries: bool,
    /// How many requests have been asked.
    asked: usize,
    /// Which request each answer is for.
    replies: Vec<(ReplyId, usize)>,
}

fn broken(invariant: &'static str, what: String) -> Violation {
    Violation { invariant, what }
}

impl State {
    /// The cluster before anything is asked, and what has happened in it so far.
    pub(super) fn first(scope: &Scope) -> Result<(Self, Vec<Happened>), Violation> {
        let mut state = Self {
            world: scope.world(),
            durable: Arc::default(),
            invariants: Invariants::default(),
            faults: scope.faults,
            stale: BTreeSet::new(),
            paused: None,
            hurries: scope.hurries,
            asked: 0,
            replies: Vec::new(),
        };
        let happened = state.settle()?;
        Ok((state, happened))
    }

    /// All that may happen next; nothing once all is over.
    pub(super) fn moves(&self, scope: &Scope) -> Vec<Move> {
        if self.asked == 0 {
            return vec![Move::Ask];
        }
        let mut moves: Vec<_> = self.world.choices().map(Move::Happens).collect();
        let is_idle = moves.is_empty();
        if self.may_ask(scope) {
            moves.push(Move::Ask);
        }
        if moves.is_empty() && self.is_over(scope) {
            return moves;
        }
        moves.extend(self.recoveries());
        let due = self.world.next_due().filter(|due| due.since(self.world.now()) <= WAIT_MS);
        let may_wait =
            due.is_some() && if is_idle { self.faults.absences > 0 } else { self.faults.waits > 0 };
        if (is_idle && !self.is_away(scope)) || may_wait {
            moves.push(Move::Wait);
        }
        self.add_faults(scope, &mut moves);
        moves
    }

    fn may_ask(&self, scope: &Scope) -> bool {
        let is_up = self.world.active().is_some() && self.world.active() != self.paused;
        is_up && self.asked < scope.requests.len()
    }

    /// Whether somebody is expected, who may keep the others waiting.
    fn is_away(&self, scope: &Scope) -> bool {
        self.may_ask(scope) || !self.recoveries().is_empty()
    }

    /// What brings back whoever is away.
    fn recoveries(&self) -> Vec<Move> {
        let mut moves = Vec::new();
        if self.world.active().is_none() || self.world.active() == self.paused {
            moves.push(Move::StartServer);
        }
        moves.extend(self.paused.map(Move::ResumeServer));
        let dead = self.world.agents().filter(|name| self.world.agent(name).is_none());
        moves.extend(dead.cloned().map(Move::StartAgent));
        let cut = self.world.agents().filter(|name| !self.world.cuts(name).is_empty());
        moves.extend(cut.cloned().map(Move::Heal));
        for (session, name, _, to_agent) in self.world.links() {
            let is_deaf = self.paused.is_some() && self.world.active() != self.paused;
            if self.stale.contains(&session) && (to_agent > 0 || is_deaf) {
                moves.push(Move::HangUp(name.clone()));
            }
        }
        moves
    }

    fn add_faults(&self, scope: &Scope, moves: &mut Vec<Move>) {
        let Faults { server_kills, depositions, agent_kills, breaks, cuts, failures, waits: _, absences: _ } =
            self.faults;
        let active = self.world.active().filter(|id| Some(*id) != self.paused);
        if let Some(id) = active {
            if server_kills > 0 {
                moves.push(Move::KillServer { keeps_in_flight: false });
                if self.world.in_flight(id).is_some() {
                    moves.push(Move::KillServer { keeps_in_flight: true });
                }
            }
            if depositions > 0 && self.paused.is_none() {
                moves.push(Move::PauseServer);
            }
        }
        for name in self.world.agents().filter(|name| self.world.agent(name).is_some()) {
            let links = || self.world.links().filter(|(_, agent, ..)| *agent == name);
            if agent_kills > 0 {
                let has_sent = links().any(|(_, _, to_server, _)| to_server > 0);
                let has_write = self.world.agent_in_flight(name).is_some();
                for (keeps_in_flight, loses_sent) in
                    [(false, false), (true, false), (false, true), (true, true)]
                {
                    if keeps_in_flight <= has_write && loses_sent <= has_sent {
                        moves.push(Move::KillAgent { name: name.clone(), keeps_in_flight, loses_sent });
                    }
                }
            }
            if agent_kills > 0 && self.world.running(name).next().is_some() {
                moves.push(Move::KillAgentOnly(name.clone()));
            }
            if cuts > 0 {
                moves.push(Move::Cut(name.clone()));
            }
            if breaks > 0 && links().next().is_some() {
                moves.push(Move::Break(name.clone()));
                moves.push(Move::HangUp(name.clone()));
            }
            if failures > 0 {
                let running = self.world.running(name);
                for (call, _) in running.filter(|(_, running)| scope.failing.contains(&running.call.phase)) {
                    moves.push(Move::Fail { name: name.clone(), call, has_effect: false });
                    moves.push(Move::Fail { name: name.clone(), call, has_effect: true });
                    moves.push(Move::Hang { name: name.clone(), call });
                }
            }
        }
    }

    /// Makes a move, and looks at everything that happens in it.
    pub(super) fn make(&mut self, scope: &Scope, next: &Move) -> Result<Vec<Happened>, Violation> {
        match next {
            Move::Happens(choice) => self.world.perform(choice),
            Move::Ask => {
                self.asked += 1;
                self.ask(scope, self.asked - 1);
            }
            Move::KillServer { keeps_in_flight } => {
                self.faults.server_kills -= 1;
                self.stale = self.world.links().map(|(session, ..)| session).collect();
                self.world.kill_server(*keeps_in_flight);
            }
            Move::PauseServer => {
                self.faults.depositions -= 1;
                self.paused = self.world.active();
                self.world.pause_server();
            }
            Move::StartServer => {
                self.stale = self.world.links().map(|(session, ..)| session).collect();
                self.world.start_server();
                // Whoever has asked asks again, as an operator's tool does: it may have got no answer.
                (0..self.asked).for_each(|place| self.ask(scope, place));
            }
            Move::ResumeServer(id) => {
                self.paused = None;
                self.world.resume_server(*id);
            }
            Move::KillAgent { name, keeps_in_flight, loses_sent } => {
                self.faults.agent_kills -= 1;
                if *loses_sent {
                    self.world.break_link(name);
                }
                self.world.kill_agent(name, *keeps_in_flight);
            }
            Move::KillAgentOnly(name) => {
                self.faults.agent_kills -= 1;
                self.world.kill_agent_only(name, false);
            }
            Move::StartAgent(name) => self.world.start_agent(name),
            Move::Cut(name) => {
                self.faults.cuts -= 1;
                self.world.cut(name);
            }
            Move::Heal(name) => self.world.heal(name),
            Move::Break(name) => {
                self.faults.breaks -= 1;
                self.world.break_link(name);
            }
            Move::HangUp(name) => {
                let is_fault = !self
                    .world
                    .links()
                    .any(|(session, agent, ..)| agent == name && self.stale.contains(&session));
                self.faults.breaks -= u8::from(is_fault);
                self.world.hang_up(name);
            }
            Move::Fail { name, call, has_effect } => {
                self.faults.failures -= 1;
                self.world.rescript(name, *call, Script { has_effect: *has_effect, ..no() });
                self.world.perform(&Choice::End(name.clone(), *call));
            }
            Move::Hang { name, call } => {
                self.faults.failures -= 1;
                self.world.rescript(name, *call, Script { takes_ms: u64::MAX, ..no() });
            }
            Move::Wait => {
                if self.world.choices().next().is_some() {
                    self.faults.waits -= 1;
                } else if self.is_away(scope) {
                    self.faults.absences -= 1;
                }
                self.world.advance_to_next(WAIT_MS);
            }
        }
        self.settle()
    }

    fn ask(&mut self, scope: &Scope, place: usize) {
        let reply = self.world.run(scope.request(place));
        self.replies.push((reply, place));
    }

    /// Does at once what needs no choice, and lets the invariants look at each step.
    fn settle(&mut self) -> Result<Vec<Happened>, Violation> {
        let mut happened = self.look()?;
        while let Some(choice) = self.local_choice() {
            self.world.perform(&choice);
            happened.extend(self.look()?);
        }
        self.world.forget_counts();
        Ok(happened)
    }

    fn look(&mut self) -> Result<Vec<Happened>, Violation> {
        let happened = self.world.take_happened();
        for what in &happened {
            if let Happened::Recorded { index, record } = what {
                Arc::make_mut(&mut self.durable).apply(*index, record);
            }
        }
        self.invariants.look(&self.world, &happened)?;
        Ok(happened)
    }

    fn local_choice(&self) -> Option<Choice> {
        self.world.choices().find(|choice| self.is_local(choice))
    }

    fn is_local(&self, choice: &Choice) -> bool {
        match choice {
            Choice::Server(_) | Choice::Agent(_) => true,
            Choice::End(name, id) => {
                let mut running = self.world.running(name);
                running.any(|(call, running)| call == *id && running.call.phase == Phase::Status)
            }
            Choice::AgentAppend(_) => self.hurries && self.faults.agent_kills == 0,
            Choice::Connect(_) => self.hurries,
            Choice::Append(_) | Choice::ToAgent(_) | Choice::ToServer(_) => false,
            // They have one server.
            Choice::Dial(..) | Choice::Store(_) => false,
        }
    }

    /// Whether nothing is left to do but to ask for a status now and then.
    fn is_over(&self, scope: &Scope) -> bool {
        let Some(server) = self.world.server().filter(|_| self.paused.is_none()) else { return false };
        let cluster = server.acknowledged();
        // What repairs itself is going to.
        let is_below = |id: &MemberId, known: &Member| {
            cluster.spec.groups[&id.group].recover != Recover::Off && known.goal != known.actual
        };
        let is_connected = |name: &Name| self.world.links().any(|(_, agent, ..)| agent == name);
        self.asked == scope.requests.len()
            && cluster.open.is_empty()
            && unsettled(&self.world).is_empty()
            && self.world.promises().is_empty()
            && cluster.hosts.values().all(|host| host.liveness == Liveness::Alive)
            && self.world.agents().all(is_connected)
            && self.world.links().count() == self.world.agents().count()
            && cluster.members.iter().all(|(id, known)| {
                known.actual.as_ref() == self.world.software().get(id) && !is_below(id, known)
            })
    }

    /// The world's time.
    pub(super) fn now(&self) -> Time {
        self.world.now()
    }

    /// How the transitions have ended, when everything has resolved as it should.
    pub(super) fn end(&mut self, scope: &Scope) -> Result<String, Violation> {
        self.invariants.end(&self.world)?;
        let server = self.world.server().expect("it is over only with a server");
        let cluster = server.acknowledged();
        let mut known: BTreeMap<usize, TransitionId> = BTreeMap::new();
        for (reply, place) in &self.replies {
            let Some(Ok(Accepted::Transition(id))) = self.world.answer(*reply) else { continue };
            let first = known.entry(*place).or_insert(*id);
            if first != id {
                return Err(broken(
                    "7 request-once",
                    format!("one request, two transitions: {first} and {id}"),
                ));
            }
        }
        let outcomes = cluster.transitions.values().filter_map(|known| known.outcome);
        let outcomes: Vec<_> = outcomes.map(|outcome| outcome.to_string()).collect();
        let ended = outcomes.join("+");
        if !scope.outcomes.is_empty() && !scope.outcomes.contains(&ended.as_str()) {
            return Err(broken("ends", format!("{ended:?} is none of {:?}", scope.outcomes)));
        }
        for (id, member) in &cluster.members {
            let is_settled = member.mark == Mark::None && member.goal == member.actual;
            if !is_settled && !ended.contains("degraded") {
                let Member { goal, actual, mark, .. } = &**member;
                let what = format!("{id} is {actual:?}, should be {goal:?}, {mark:?}");
                return Err(broken("settles", what));
            }
        }
        Ok(ended)
    }
}
