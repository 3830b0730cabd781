//! One run of the plan in a world of its own, with at most one fault in it, and what is seen on the way.

use super::fault::{self, Fault};
use super::{Broken, Case, Elsewhere, Limit, Stage};
use crate::agent::{AgentRecord, CallId};
use crate::cluster::Transition;
use crate::engine::{Engine, ReplyId};
use crate::id::{HostName, MemberId, StateName, TransitionId};
use crate::lease::lost_after_ms;
use crate::message::{Call, Outcome, Phase};
use crate::record::Cause;
use crate::request::{Rejection, Request};
use crate::time::Time;
use crate::vote::Answer;
use crate::world::{Choice, Happened, World};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

/// How long a lost server is away, in milliseconds: what a service manager takes to start it again, and less than the
/// default hold, so that what a hold is worth to a restart is seen.
pub const SERVER_AWAY_MS: u64 = 2000;
/// More rounds than this in one run are a loop that time does not end.
const ROUNDS_MAX: usize = 1_000_000;
/// What makes the rehearsed request idempotent.
const REQUEST_ID: &str = "rehearsal";

/// What is due in a run that the world does not know of.
#[derive(Debug, Clone)]
enum Alarm {
    /// The lease of a lost host ends.
    LeaseEnds(HostName),
    /// The lost server is back.
    ServerStarts,
}

/// A hold, as its holder's journal tells of it.
#[derive(Debug, Clone, Copy)]
struct Held {
    /// Since when its clients wait; none while its handler has not said yes.
    since: Option<Time>,
    /// When it ends by itself.
    until: Time,
}

/// One run of the plan.
#[derive(Clone)]
pub(super) struct Trial<'a> {
    stage: &'a Stage<'a>,
    world: World,
    reply: ReplyId,
    begun: Time,
    first_write: u64,
    alarm: Option<(Time, Alarm)>,
    /// Where software really is.
    states: BTreeMap<MemberId, StateName>,
    holds: BTreeMap<MemberId, Held>,
    held_ms: BTreeMap<MemberId, u64>,
    broken: BTreeSet<Broken>,
}

impl<'a> Trial<'a> {
    /// The world with everybody in place, and the request made.
    pub(super) fn new(stage: &'a Stage<'a>) -> Self {
        let mut trial = Self {
            stage,
            world: stage.world(),
            reply: ReplyId(0),
            begun: Time(0),
            first_write: 0,
            alarm: None,
            states: stage.states.clone(),
            holds: BTreeMap::new(),
            held_ms: BTreeMap::new(),
            broken: BTreeSet::new(),
        };
        trial.settle(&mut |_, _| {});
        trial.world.know_scores(stage.scores);
        trial.begun = trial.world.now();
        trial.first_write = trial.world.appends();
        trial.ask();
        trial
    }

    fn ask(&mut self) {
        let asked = self.stage.request;
        self.reply = self.world.run(Request {
            request_id: REQUEST_ID.to_owned(),
            principal: REQUEST_ID.to_owned(),
            targets: asked.targets.clone(),
            exclude_lost: asked.exclude_lost,
            // Whether a freeze is in the way has been looked at with the plan; windows are of another clock.
            override_freeze: true,
            ..Request::default()
        });
    }

    /// Why the request was refused, if it was.
    pub(super) fn rejection(&self) -> Option<Rejection> {
        self.world.answer(self.reply)?.as_ref().err().cloned()
    }

    pub(super) fn world(&self) -> &World {
        &self.world
    }

    pub(super) fn world_mut(&mut self) -> &mut World {
        &mut self.world
    }

    /// Which write is in flight, counted from the request's, 1.
    pub(super) fn write_number(&self) -> u64 {
        self.world.appends() - self.first_write
    }

    /// What a handler at work was called for.
    pub(super) fn running(&self, name: &str, id: CallId) -> Option<&Call> {
        self.world.running(name).find(|(known, _)| *known == id).map(|(_, running)| &running.call)
    }

    /// A copy of this run in which the next thing goes wrong, as far as its end.
    pub(super) fn with(&self, choice: &Choice, fault: Fault) -> Case {
        let mut trial = self.clone();
        fault::strike(&mut trial, choice, &fault);
        trial.end(Some(fault), &mut |_, _| {})
    }

    // ---- what goes wrong

    /// A host stops, and never comes back. The server gives it up when its lease, renewed a moment ago, has run out.
    pub(super) fn lose_host(&mut self, host: &HostName) {
        self.world.kill_agent(host.as_str(), false);
        let at = self.world.now().plus(lost_after_ms(self.stage.lease_ms));
        self.alarm = Some((at, Alarm::LeaseEnds(host.clone())));
    }

    /// The server stops, and is started again after a while.
    pub(super) fn lose_server(&mut self, keeps_in_flight: bool) {
        self.world.kill_server(keeps_in_flight);
        self.alarm = Some((self.world.now().plus(SERVER_AWAY_MS), Alarm::ServerStarts));
    }

    fn sound(&mut self, alarm: Alarm) {
        match alarm {
            Alarm::LeaseEnds(host) => self.world.end_lease(&host),
            Alarm::ServerStarts => {
                self.world.start_server();
                // An operator's tool that had no answer asks again, under the same id.
                if self.transition().is_none() {
                    self.ask();
                }
            }
        }
    }

    // ---- what happens

    /// Goes on until the transition has ended and nobody is held any more, or until so much time has passed that it
    /// never will. `look` sees each thing before it happens.
    pub(super) fn end(mut self, fault: Option<Fault>, look: &mut impl FnMut(&mut Self, &Choice)) -> Case {
        let last = self.begun.plus(self.stage.bound_ms);
        loop {
            self.settle(look);
            if self.is_over() {
                break;
            }
            let alarm = self.alarm.as_ref().map(|(at, _)| *at);
            let Some(next) =
                self.world.next_due().into_iter().chain(alarm).min().filter(|next| *next <= last)
            else {
                break;
            };
            self.world.advance_to_next(next.since(self.world.now()));
            if let Some((_, alarm)) = self.alarm.take_if(|(at, _)| *at <= next) {
                self.sound(alarm);
            }
        }
        self.case(fault)
    }

    /// Lets everything happen that needs no time. What may happen at one moment happens in turn, as on hosts that do
    /// not wait for each other.
    fn settle(&mut self, look: &mut impl FnMut(&mut Self, &Choice)) {
        for _ in 0..ROUNDS_MAX {
            let choices: Vec<_> = self.world.choices().collect();
            if choices.is_empty() {
                return;
            }
            for choice in &choices {
                if let Choice::ToAgent(session) | Choice::ToServer(session) = choice
                    && !self.world.is_linked(*session)
                {
                    // What happened before it in this round has closed it.
                    continue;
                }
                look(self, choice);
                self.world.perform(choice);
                while matches!(choice, Choice::Server(_))
                    && self.world.server().is_some_and(Engine::has_output)
                {
                    self.world.perform(choice);
                }
            }
            self.watch();
        }
        unreachable!("a rehearsal that time does not end");
    }

    fn transition(&self) -> Option<(TransitionId, &Arc<Transition>)> {
        let cluster = self.world.server()?.proposed();
        let id = *cluster.requests.get(REQUEST_ID)?;
        Some((id, &cluster.transitions[&id]))
    }

    fn is_over(&self) -> bool {
        let has_ended = self.transition().is_some_and(|(_, transition)| transition.outcome.is_some());
        let is_alive = |member: &MemberId| self.world.agent(member.host.as_str()).is_some();
        let is_refused = self.rejection().is_some();
        is_refused || (has_ended && !self.holds.keys().any(is_alive))
    }

    /// Takes note of what has happened.
    pub(super) fn watch(&mut self) {
        for happened in self.world.take_happened() {
            match happened {
                Happened::Ended { call: Call { phase, member, to: Some(to), .. }, answer, .. } => {
                    let moves = matches!(phase, Phase::Commit | Phase::Undo | Phase::Stop);
                    if moves && answer == Answer::Yes {
                        self.moved(member, to);
                    }
                }
                Happened::Guarded { .. } => unreachable!("nobody runs by a lease in a rehearsal"),
                Happened::AgentRecorded { record, .. } => self.recorded(record),
                Happened::Ended { .. }
                | Happened::Recorded { .. }
                | Happened::Asked { .. }
                | Happened::Answered { .. }
                | Happened::Ordered { .. }
                | Happened::Reported { .. }
                | Happened::Joined(_)
                | Happened::TurnedAway { .. }
                | Happened::Started { .. }
                | Happened::ServerWarned(_)
                | Happened::Store(_)
                | Happened::AgentWarned { .. } => {}
            }
        }
    }

    fn recorded(&mut self, record: AgentRecord) {
        let now = self.world.now();
        match record {
            // Members without a handler have no software but this.
            AgentRecord::State { member, state } => self.moved(member, state),
            AgentRecord::Held { member, until, .. } => {
                self.holds.insert(member, Held { since: None, until });
            }
            AgentRecord::Voted { member, phase: Phase::Hold, .. } => {
                if let Some(hold) = self.holds.get_mut(&member) {
                    hold.since = Some(now);
                }
            }
            AgentRecord::HoldEnded { member, .. } => {
                if let Some(hold) = self.holds.remove(&member) {
                    self.let_go(&member, hold, now);
                }
            }
            AgentRecord::Identity { .. }
            | AgentRecord::Reign { .. }
            | AgentRecord::Cluster { .. }
            | AgentRecord::Token { .. }
            | AgentRecord::Assigned { .. }
            | AgentRecord::Preparing { .. }
            | AgentRecord::Cancelled { .. }
            | AgentRecord::Voted { .. }
            | AgentRecord::Started { .. }
            | AgentRecord::Ended { .. }
            | AgentRecord::Noticed { .. }
            | AgentRecord::Closed { .. } => {}
        }
    }

    fn let_go(&mut self, member: &MemberId, hold: Held, at: Time) {
        let Some(since) = hold.since else { return };
        *self.held_ms.entry(member.clone()).or_default() += at.since(since);
    }

    /// Software is in another state now.
    fn moved(&mut self, member: MemberId, state: StateName) {
        if self.states.get(&member) == Some(&state) {
            return;
        }
        let group = member.group.clone();
        self.states.insert(member, state.clone());
        let Some(declared) = self.stage.cluster.spec.groups.get(&group) else { return };
        let Some(allowed) = declared.max(&state, self.stage.count(&group)) else { return };
        let count = self.stage.count_in(&self.states, &group, &state);
        // What was adopted above its limit may stay so.
        if count > allowed.max(self.stage.count_in(&self.stage.states, &group, &state)) {
            self.broken.insert(Broken { group, state, limit: Limit::Max, count, allowed });
        }
    }

    // ---- what came of it

    fn case(mut self, fault: Option<Fault>) -> Case {
        // Who is lost lets its clients go at its hold's end: ready handlers arm it in the software.
        for (member, hold) in std::mem::take(&mut self.holds) {
            self.let_go(&member, hold, hold.until);
        }
        let transition = self.transition().map(|(_, transition)| transition.clone());
        let outcome = transition.as_ref().and_then(|transition| transition.outcome);
        let is_back = match outcome {
            Some(Outcome::Aborted | Outcome::Undone) => true,
            Some(Outcome::Committed) | None => false,
            Some(Outcome::Degraded) => {
                transition.as_ref().is_some_and(|transition| transition.undo.is_some())
            }
        };
        let plan = &self.stage.plan;
        let mut elsewhere = BTreeMap::new();
        for (member, goal) in &plan.goals {
            // One that takes no step only gets another goal.
            let stays = is_back || plan.steps_of(member).next().is_none();
            let planned = if stays { &self.stage.states[member] } else { goal };
            let actual = &self.states[member];
            let left = transition.as_ref().and_then(|transition| transition.left.get(member));
            if actual != planned || left.is_some() {
                let (planned, actual) = (planned.clone(), actual.clone());
                let in_doubt = left.is_some_and(|left| left.in_doubt);
                elsewhere.insert(member.clone(), Elsewhere { planned, actual, in_doubt });
            }
        }
        self.broken.extend(self.stage.missed(&self.states));
        Case {
            fault,
            outcome,
            cause: transition.as_deref().and_then(cause),
            elsewhere,
            broken: self.broken.into_iter().collect(),
            held_ms: self.held_ms,
            took_ms: self.world.now().since(self.begun),
        }
    }
}

/// Why it was aborted, taken back or went on without somebody.
fn cause(transition: &Transition) -> Option<Cause> {
    let turn = |code: &str, member: &MemberId, reason: &String| Cause {
        code: code.to_owned(),
        message: reason.clone(),
        member: Some(member.clone()),
    };
    let undo = transition.undo.as_ref().map(|(member, reason)| turn("undo", member, reason));
    let exclude = transition.excluded.iter().next().map(|(member, reason)| turn("exclude", member, reason));
    transition.cause.clone().or(undo).or(exclude)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cluster::Cluster;
    use crate::id::{AgentId, Index};
    use crate::plan::{self, Scores};
    use crate::record::{Body, HostChange, Record};
    use crate::time::WallTime;

    /// The engine keeps limits; that one which breaks would be seen is shown without it.
    #[test]
    fn software_beyond_a_limit_is_noticed() {
        let mut cluster = Cluster::default();
        let spec = r#"{"cluster":"c","groups":{"db":{"select":{"db":"y"},"lifecycle":"primary-standby"}}}"#;
        let mut bodies = vec![Body::Spec {
            spec: Arc::new(serde_json::from_str(spec).unwrap()),
            principal: "test".to_owned(),
        }];
        for (host, state) in [("a", "primary"), ("b", "standby")] {
            let labels = BTreeMap::from([("db".to_owned(), "y".to_owned())]);
            let change = HostChange::Joined { agent: AgentId::new(host).unwrap(), address: None, labels };
            bodies.push(Body::Host { host: host.parse().unwrap(), change });
            let member = format!("db@{host}").parse().unwrap();
            bodies.push(Body::Report { member, actual: Some(state.parse().unwrap()) });
        }
        for (index, body) in (1..).map(Index).zip(bodies) {
            cluster.apply(index, &Record { at: WallTime(0), body });
        }
        let (targets, scores) = (vec!["db@b=primary".parse().unwrap()], Scores::new());
        let request = Request { targets, ..Request::default() };
        let plan = plan::plan_request(&cluster, &request, &scores).unwrap();
        let stage = Stage::new(&cluster, plan, &request, &scores);
        let state = |name: &str| name.parse::<StateName>().unwrap();
        let mut trial = Trial::new(&stage);
        trial.moved("db@b".parse().unwrap(), state("primary"));
        let (group, limit) = ("db".parse().unwrap(), Limit::Max);
        let broken = Broken { group, state: state("primary"), limit, count: 2, allowed: 1 };
        assert_eq!(trial.broken, BTreeSet::from([broken]));
        let mut states = trial.states;
        states.insert("db@a".parse().unwrap(), state("offline"));
        assert!(stage.missed(&states).is_empty());
        states.insert("db@b".parse().unwrap(), state("standby"));
        let missed = stage.missed(&states);
        assert_eq!((missed.len(), missed[0].limit, missed[0].count), (1, Limit::Min, 0));
    }
}
