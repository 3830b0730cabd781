//! What happens by itself when hosts and members fail: the evidence of where members are that cannot be asked, repair,
//! and what is asked of those that come back. `fence.rs` has fencing.
//!
//! Repair is planned and carried out as everything else is. What is here decides when, and for whom it waits.

mod fence;

use self::fence::Fencing;
use crate::cluster::Mark;
use crate::engine::{Accepted, Engine, Event};
use crate::id::{GroupName, HostName, MemberId, StateName, TransitionId};
use crate::message::{Call, Done, Outcome, Phase};
use crate::mutant::{self, Mutant};
use crate::plan;
use crate::record::{Body, Cause, Evidence, Liveness};
use crate::request::{Code, Rejection, Request, Target};
use crate::spec::{OnFailure, Recover};
use crate::time::{Time, pause_ms};
use crate::transition::Try;
use crate::vote::Answer;
use std::collections::{BTreeMap, BTreeSet};

/// What is lost within a tenth of a lease is one event; at most so many milliseconds. Too low: a switch that fails
/// leads to a repair for each of its hosts. Too high: repair comes late.
const TOGETHER_MS_MAX: u64 = 500;
/// The pause before a group is repaired once more, or all that can fence a host are asked once more, in milliseconds,
/// doubled each time: the first and the last. A host that flaps has to stand for no longer than the last either.
const PAUSE_MS: (u64, u64) = (1000, 300_000);
/// Losses of a host within so many milliseconds of each other make it one that flaps: nothing is moved onto it until it
/// has stood for a while, longer each time. Of a group's repairs likewise.
const FLAP_MS: u64 = 600_000;

/// What is under way, or waited for, beside transitions. It is all made anew from the cluster by a server that starts.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default)]
pub(crate) struct Recovery {
    /// When groups are looked at next.
    due: Option<Time>,
    /// What keeps a group from being repaired.
    waits: BTreeMap<GroupName, Rejection>,
    /// Groups that were repaired lately.
    repaired: BTreeMap<GroupName, Repaired>,
    /// Members that are being taken down because they came back elsewhere than they should be.
    stops: BTreeMap<MemberId, Try>,
    /// The hosts that are being fenced.
    fences: BTreeMap<HostName, Fencing>,
    /// The number of the last call of a fence handler, counted on from the reign. None is used twice: a handler may be at
    /// work yet when its host has come back and is lost again, and what it has done then is evidence of nothing.
    fence_calls: u32,
    /// How often hosts were lost lately, and from when on they count as steady again.
    losses: BTreeMap<HostName, (u32, Time)>,
}

/// How often a group was repaired lately, and with what success.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct Repaired {
    /// So many times, none of them long after the one before.
    count: u32,
    /// When the last one ended.
    at: Time,
    has_failed: bool,
}

impl Repaired {
    /// For so many milliseconds nothing is tried again: software that ends again as soon as it is started would be
    /// started for ever.
    fn pause_ms(self) -> u64 {
        if mutant::is(Mutant::RepairUnpaused) {
            return 0;
        }
        let again = self.count - u32::from(!self.has_failed);
        again.checked_sub(1).map_or(0, |before| pause_ms(PAUSE_MS, before))
    }

    /// When something may be tried again.
    fn pause_until(self) -> Time {
        self.at.plus(self.pause_ms())
    }
}

impl Recovery {
    /// Gives what is under way more time.
    pub(crate) fn postpone(&mut self, ms: u64) {
        self.stops.values_mut().for_each(|stop| stop.deadline = stop.deadline.plus(ms));
        self.fences.values_mut().for_each(|fencing| fencing.due = fencing.due.plus(ms));
    }

    fn next_due(&self) -> Option<Time> {
        let stops = self.stops.values().map(Try::wake);
        let fences = self.fences.values().map(|fencing| fencing.due);
        self.due.into_iter().chain(stops).chain(fences).min()
    }
}

impl Engine {
    pub(crate) fn recovery_due(&self) -> Option<Time> {
        self.recovery.next_due()
    }

    /// What keeps groups from being repaired, of those that repair themselves.
    pub fn waits(&self) -> &BTreeMap<GroupName, Rejection> {
        &self.recovery.waits
    }

    /// Something may have to be repaired, or may be possible that was not.
    pub(crate) fn stir_recovery(&mut self) {
        let together_ms = (self.lease_ms() / 10).min(TOGETHER_MS_MAX);
        self.look_again(self.now.time.plus(together_ms));
    }

    fn look_again(&mut self, at: Time) {
        self.recovery.due = Some(self.recovery.due.map_or(at, |due| due.min(at)));
    }

    /// Does what is due.
    pub(crate) fn recover(&mut self) {
        if self.recovery.next_due().is_none_or(|due| due > self.now.time) {
            return;
        }
        self.stop_again();
        self.fence_again();
        if self.recovery.due.is_some_and(|due| due <= self.now.time) {
            self.recovery.due = None;
            self.repair();
        }
    }

    // ---- evidence

    /// A host's lease has ended: members that are surely stopped by then are out of the way.
    pub(crate) fn lease_is_evidence(&mut self, host: &HostName) {
        let ends = |id: &&MemberId| {
            id.host == *host && (self.head.ends_with_lease(id) || mutant::is(Mutant::LossIsEvidence))
        };
        let ended = self.head.members.keys().filter(ends).filter(|id| self.head.may_hold_a_place(id));
        let ended = ended.cloned().collect();
        self.take_evidence(ended, Evidence::Lease);
    }

    fn take_evidence(&mut self, stopped: BTreeSet<MemberId>, by: Evidence) {
        let lowest = |id: &MemberId| Some(self.head.spec.groups.get(&id.group)?.lifecycle.lowest().clone());
        let members: BTreeMap<MemberId, StateName> =
            stopped.iter().filter_map(|id| Some((id.clone(), lowest(id)?))).collect();
        if members.is_empty() {
            return;
        }
        self.propose(Body::Evidence { members: members.clone(), by });
        for id in members.keys() {
            self.stopped_for_sure(id);
        }
        self.stir_all();
    }

    /// A person says where a member is that cannot tell, or of which nobody knows.
    pub(crate) fn resolve(
        &mut self,
        id: &MemberId,
        state: &StateName,
        principal: String,
        reason: String,
    ) -> Result<Accepted, Rejection> {
        let Some(member) = self.head.members.get(id) else {
            let help = "`lockstep member list` shows the members";
            return Err(Rejection::new(Code::UnknownMember, format!("there is no member {id}"), help));
        };
        let group = &self.head.spec.groups[&id.group];
        if group.lifecycle.rank(state).is_none() {
            let message = format!("group {} has no state {state}", id.group);
            let help = format!("its states are {}", crate::spec::list(&group.lifecycle.states));
            return Err(Rejection::new(Code::UnknownState, message, help));
        }
        if let Some(transition) = member.transition {
            let message = format!("{id} is driven by {transition}");
            return Err(Rejection::new(
                Code::Busy,
                message,
                format!("resolve it when {transition} has ended"),
            ));
        }
        let host = &self.head.hosts[&id.host];
        let is_told = host.is_reachable() && member.actual.is_some() && member.mark != Mark::InDoubt;
        if is_told {
            let message = format!("{id} is not in doubt: its own host says where it is");
            let help = format!("to move it, ask for it: lockstep run {id}={state}");
            return Err(Rejection::new(Code::NotAllowed, message, help));
        }
        let members = BTreeMap::from([(id.clone(), state.clone())]);
        let by = Evidence::Person { principal, reason };
        let index = self.propose(Body::Evidence { members, by });
        self.stir_all();
        Ok(Accepted::Host(index))
    }

    // ---- hosts that come back

    /// What was asked of a host's members outside of transitions is asked again on a new connection.
    pub(crate) fn stop_again_on(&mut self, host: &HostName) {
        let here: Vec<_> = self.recovery.stops.keys().filter(|id| id.host == *host).cloned().collect();
        here.iter().for_each(|id| self.order_stop(id));
    }

    /// A host is gone: nothing is asked of its members, and they are judged anew when they are back.
    pub(crate) fn host_is_gone(&mut self, host: &HostName) {
        self.recovery.stops.retain(|id, _| id.host != *host);
        let (count, last) = self.recovery.losses.get(host).copied().unwrap_or_default();
        let is_recent = count > 0 && self.now.time.since(last) < FLAP_MS;
        let count = if is_recent { count + 1 } else { 1 };
        self.recovery.losses.insert(host.clone(), (count, self.now.time));
    }

    /// A host is none any more. Whoever waits for it to be fenced is told so.
    pub(crate) fn host_is_forgotten(&mut self, host: &HostName) {
        self.host_is_gone(host);
        self.recovery.losses.remove(host);
        let waits = self.recovery.fences.remove(host).and_then(|fencing| fencing.reply);
        if let (Some(reply), Err(rejection)) = (waits, self.known_host(host).map(drop)) {
            self.reply(reply, Err(rejection));
        }
    }

    /// How long a host that was lost so many times lately has to stand, in milliseconds from the last time on.
    fn stands_ms(&self, losses: u32) -> u64 {
        self.lease_ms().saturating_mul((1 << (losses - 1).min(16)) - 1).min(PAUSE_MS.1)
    }

    /// From when on a host that was lost lately is taken for steady.
    fn steady_at(&self, host: &HostName) -> Time {
        let Some(&(losses, last)) = self.recovery.losses.get(host) else { return Time(0) };
        if mutant::is(Mutant::FlappingUndamped) {
            return Time(0);
        }
        last.plus(self.stands_ms(losses))
    }

    /// A member of a host that has come back says where it is. It leaves at once, downwards, what its goal or a limit
    /// forbids. That it is to be judged is durable: a server that starts meanwhile asks the same of it.
    pub(crate) fn judge_return(&mut self, id: &MemberId, actual: Option<&StateName>) {
        let Some(actual) = actual else { return };
        let member = self.head.members.get(id);
        let is_due = member.is_some_and(|member| member.is_returning && member.transition.is_none());
        let is_asked = self.recovery.stops.contains_key(id) || mutant::is(Mutant::ReturnUnjudged);
        if !is_due || is_asked || self.head.may_stay(id, actual) {
            return;
        }
        let deadline = self.now.time.plus(self.commit_ms(&id.group));
        self.recovery.stops.insert(id.clone(), Try::first(deadline));
        self.order_stop(id);
    }

    fn order_stop(&mut self, id: &MemberId) {
        let Some(group) = self.head.spec.groups.get(&id.group) else { return };
        let Some(stop) = self.recovery.stops.get(id) else { return };
        let order = Call {
            attempt: stop.attempt,
            from: self.head.members.get(id).and_then(|member| member.actual.clone()),
            to: Some(group.lifecycle.lowest().clone()),
            within_ms: stop.deadline.since(self.now.time).max(1),
            context: self.context_of(&id.group),
            ..Call::bare(id.clone(), Phase::Stop)
        };
        self.send_call(order);
    }

    fn stop_again(&mut self) {
        let now = self.now.time;
        let ids: Vec<MemberId> = self.recovery.stops.keys().cloned().collect();
        for id in ids {
            let is_driven = self.head.members.get(&id).is_none_or(|member| member.transition.is_some());
            if is_driven {
                self.recovery.stops.remove(&id);
                continue;
            }
            let commit_ms = self.commit_ms(&id.group);
            let stop = self.recovery.stops.get_mut(&id).expect("it was listed");
            if stop.deadline <= now {
                // Nobody else is going to stop it.
                stop.deadline = now.plus(commit_ms);
                stop.again_at = Some(now);
            }
            if stop.is_due(now) {
                self.order_stop(&id);
            }
        }
    }

    /// A member that came back has been taken down, or not.
    pub(crate) fn return_stopped(&mut self, done: &Done) {
        let Some(stop) = self.recovery.stops.get_mut(&done.member) else { return };
        if done.attempt != stop.attempt {
            return;
        }
        if done.answer != Answer::Yes {
            return stop.again(self.now.time);
        }
        self.recovery.stops.remove(&done.member);
        let lowest =
            self.head.spec.groups.get(&done.member.group).map(|group| group.lifecycle.lowest().clone());
        let is_free = self.head.members.get(&done.member).is_some_and(|member| member.transition.is_none());
        if is_free && lowest.is_some() {
            self.propose(Body::Report { member: done.member.clone(), actual: lowest });
            self.stir_all();
        }
    }

    // ---- repair

    /// Looks at every group that repairs itself, those first that others require.
    fn repair(&mut self) {
        let mut waits = BTreeMap::new();
        for name in self.repairable() {
            if mutant::is(Mutant::Unrepaired) {
                break;
            }
            // What is on its way may be all that is missing.
            if self.required_by(&name).chain([&name]).any(|group| self.is_on_its_way(group)) {
                continue;
            }
            if let Err(rejection) = self.repair_group(&name) {
                self.seek_evidence(&name);
                waits.insert(name.clone(), self.with_fencing(rejection));
            }
        }
        if waits != self.recovery.waits {
            for (name, rejection) in &waits {
                if self.recovery.waits.get(name) != Some(rejection) {
                    self.event(Event::Warning(format!("{name} waits to be repaired: {}", rejection.message)));
                }
            }
            self.recovery.waits = waits.clone();
            self.event(Event::Waits(waits));
        }
    }

    fn repairable(&self) -> Vec<GroupName> {
        let groups = &self.head.spec.groups;
        let repairs_itself =
            |name: &GroupName| groups.get(name).is_some_and(|group| group.recover != Recover::Off);
        let mut order = Vec::new();
        let mut seen = BTreeSet::new();
        for name in groups.keys().filter(|name| repairs_itself(name)) {
            // What it requires, however far, comes before it.
            let mut open = vec![(name, false)];
            while let Some((group, is_done)) = open.pop() {
                if is_done {
                    order.push(group.clone());
                } else if seen.insert(group) {
                    open.push((group, true));
                    open.extend(self.required_by(group).map(|to| (to, false)));
                }
            }
        }
        order.retain(repairs_itself);
        order
    }

    /// The groups that one requires.
    fn required_by<'a>(&'a self, name: &'a GroupName) -> impl Iterator<Item = &'a GroupName> + 'a {
        self.head.relations.required_by(name).flat_map(|known| known.to.iter())
    }

    /// Whether a transition moves a group, or a repair of it waits for its turn.
    fn is_on_its_way(&self, group: &GroupName) -> bool {
        self.runs.values().any(|run| run.moves(group))
    }

    /// Has a group repaired, if it has to be and can be.
    fn repair_group(&mut self, name: &GroupName) -> Result<(), Rejection> {
        let mut request = Request {
            request_id: format!("repair-{name}-{}", self.head.revision),
            principal: "lockstep".to_owned(),
            targets: vec![Target::Repair(name.clone())],
            on_failure: Some(OnFailure::Exclude),
            exclude_lost: true,
            is_automatic: true,
            ..Request::default()
        };
        let plan = self.plan(&request)?;
        // Whose connection is closed, or who is late, is back in a moment, or lost and not asked.
        if plan.is_empty() || !plan.asked().all(|who| self.is_heard(&who.member.host)) {
            return Ok(());
        }
        self.check_steady(&request, &plan)?;
        self.check_not_behind(&plan)?;
        request.reason = Some(self.why(name));
        let id = TransitionId(self.propose(Body::Request { request: std::sync::Arc::new(request) }).0);
        self.enqueue(id, Some(plan));
        self.preempt(id);
        Ok(())
    }

    /// Plans a request by what is known now. What Lockstep repairs by itself it repairs with steady hosts, if they can.
    pub(crate) fn plan(&self, request: &Request) -> Result<plan::Plan, Rejection> {
        if repaired_by(request).is_some() {
            let lost_lately = self.recovery.losses.keys();
            let unsteady = lost_lately.filter(|host| self.steady_at(host) > self.now.time).cloned().collect();
            match plan::plan_without(&self.head, request, &self.scores, &unsteady) {
                Ok(plan) if !plan.is_empty() => return Ok(plan),
                // It has to wait for one of them.
                Ok(_) | Err(_) => {}
            }
        }
        plan::plan_request(&self.head, request, &self.scores)
    }

    /// What Lockstep repairs by itself is not moved onto a host that comes and goes, and not repaired again at once.
    pub(crate) fn check_steady(&mut self, request: &Request, plan: &plan::Plan) -> Result<(), Rejection> {
        let Some(name) = repaired_by(request) else { return Ok(()) };
        // Whose place is given to another has a new goal and no step: nobody waits for it to stand.
        let hosts = plan.steps.iter().map(|step| &step.member.host);
        let flaps = hosts.map(|host| (self.steady_at(host), host)).max();
        let paused = self.recovery.repaired.get(name).map(|repaired| (repaired.pause_until(), *repaired));
        let is_to_come = |until: Time| until > self.now.time;
        let (until, rejection) = match (flaps, paused) {
            (Some((steady, host)), _)
                if is_to_come(steady) && paused.is_none_or(|(pause, _)| pause < steady) =>
            {
                let (losses, _) = self.recovery.losses[host];
                let stands = seconds(self.stands_ms(losses));
                let message = format!(
                    "host {host} comes and goes: it was lost {losses} times lately, and nothing is moved onto it until \
                     {stands} after the last"
                );
                let help = "wait: it is tried again by itself; see why it is lost: its agent's log, `lockstep events`";
                (steady, Rejection::new(Code::Busy, message, help))
            }
            (_, Some((pause, repaired))) if is_to_come(pause) => {
                let (count, after) = (repaired.count, seconds(repaired.pause_ms()));
                let message = format!(
                    "it was repaired lately ({count} in a row), and is tried again {after} after the last time"
                );
                (pause, Rejection::new(Code::Busy, message, "see why: `lockstep transition list`"))
            }
            (Some(_) | None, Some(_) | None) => return Ok(()),
        };
        self.look_again(until);
        Err(rejection)
    }

    /// Why a group is repaired, in words: the first of its members that is not where it should be, and how that is known.
    fn why(&self, name: &GroupName) -> String {
        let gone = self.head.members_of(name).find_map(|id| {
            let member = &self.head.members[id];
            let (actual, by) = (member.actual.as_ref()?, member.evidence.as_ref()?);
            let is_elsewhere = member.should_be().is_some_and(|should| actual != should);
            let liveness = self.head.hosts[&id.host].liveness;
            is_elsewhere.then(|| format!("host {} is {liveness}, and {id} is {actual}: {by}", id.host))
        });
        let wrong = || {
            self.head.members_of(name).find_map(|id| {
                let member = &self.head.members[id];
                let host = &self.head.hosts[&id.host];
                let should = member.should_be()?;
                if !host.is_reachable() && !host.has_left() {
                    return Some(format!("host {} is {}", id.host, host.liveness));
                }
                let actual = member.actual.as_ref()?;
                (actual != should).then(|| format!("{id} is {actual}, should be {should}"))
            })
        };
        let vacant = || {
            let state = self.head.vacant_in(name).first()?;
            Some(format!("nobody has got the place of a host that was forgotten: it was {state}"))
        };
        let why = gone.or_else(vacant).or_else(wrong);
        why.unwrap_or_else(|| format!("what {name} requires has failed"))
    }

    /// Repair goes first: what is not decided yet, and stands in its way, is aborted.
    fn preempt(&mut self, id: TransitionId) {
        let Some(repair) = self.runs.get(&id) else { return };
        let in_the_way = self.runs.iter().filter(|(_, theirs)| theirs.gives_way_to(repair));
        let in_the_way: Vec<_> = in_the_way.map(|(id, _)| *id).collect();
        for other in in_the_way {
            let message = format!("{id} repairs what it would move");
            self.abort(other, Cause { code: "preempted".to_owned(), message, member: None });
        }
    }

    /// A group cannot be repaired as it is: whoever may still be where only so many may be has to be known to be gone.
    fn seek_evidence(&mut self, name: &GroupName) {
        let is_lost = |id: &&MemberId| self.head.hosts[&id.host].liveness == Liveness::Lost;
        let lost = self.head.members_of(name).filter(is_lost).filter(|id| self.head.may_hold_a_place(id));
        for id in lost.cloned().collect::<Vec<_>>() {
            if self.fencer(&id.host, &BTreeSet::new()).is_some() {
                self.begin_fencing(&id.host.clone(), id, None);
            }
        }
    }

    /// A repair has ended: one that failed is tried again, later each time.
    pub(crate) fn repair_ended(&mut self, id: TransitionId) {
        let transition = &self.head.transitions[&id];
        let Some(name) = repaired_by(&transition.request).cloned() else { return };
        let has_failed = transition.outcome != Some(Outcome::Committed);
        let at = self.now.time;
        self.recovery.repaired.retain(|_, last| at.since(last.at) < FLAP_MS);
        let last = self.recovery.repaired.get(&name);
        let repaired = Repaired { count: last.map_or(1, |last| last.count + 1), at, has_failed };
        self.recovery.repaired.insert(name, repaired);
        self.look_again(repaired.pause_until().max(at.plus(1)));
    }
}

/// `6 s`: at least that long.
fn seconds(ms: u64) -> String {
    format!("{} s", ms.div_ceil(1000))
}

/// The group that a request of Lockstep's own repairs.
fn repaired_by(request: &Request) -> Option<&GroupName> {
    match request.targets.first() {
        Some(Target::Repair(name)) if request.is_automatic => Some(name),
        Some(_) | None => None,
    }
}
