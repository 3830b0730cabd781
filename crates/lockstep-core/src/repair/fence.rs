//! Fencing: a whole host is made sure to have stopped, by a fence handler on another host or by a person.

use super::{PAUSE_MS, seconds};
use crate::engine::{Accepted, Engine, Event, ReplyId};
use crate::id::{HostName, MemberId};
use crate::message::{Call, Done, Order, Phase};
use crate::mutant::{self, Mutant};
use crate::record::{Body, Evidence, HostChange, Liveness};
use crate::request::{Code, Rejection};
use crate::time::{Time, pause_ms};
use crate::vote::Answer;
use std::collections::{BTreeMap, BTreeSet};

/// How long a fence handler may take, in milliseconds: a power switch answers within seconds.
const FENCE_MS: u64 = 60_000;

/// A host that is being fenced.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct Fencing {
    /// For whom.
    member: MemberId,
    /// Where the handler runs; none: nobody offers one that has not been tried.
    on: Option<HostName>,
    /// The hosts whose handlers have failed, in this round.
    tried: BTreeSet<HostName>,
    /// What each of them has said last.
    said: BTreeMap<HostName, String>,
    /// The number of the call there.
    attempt: u32,
    /// How often all of them have failed.
    rounds: u32,
    /// The host has come since the handler was called: it says itself where its members are, and may have come after
    /// the handler's effect.
    is_back: bool,
    /// When it is given up there, or tried again.
    pub(super) due: Time,
    pub(super) reply: Option<ReplyId>,
}

impl Fencing {
    /// What those have said that could not do it.
    fn answers(&self) -> String {
        let said = self.said.iter().map(|(on, reason)| format!("{on} says: {reason}"));
        said.collect::<Vec<_>>().join("; ")
    }
}

impl Engine {
    /// A person says that a host has stopped.
    pub(crate) fn fenced_by(
        &mut self,
        host: &HostName,
        principal: String,
        reason: String,
    ) -> Result<Accepted, Rejection> {
        let known = self.known_host(host)?;
        if self.sessions.contains_key(host) {
            let message = format!("host {host} is {}, and its agent is connected", known.liveness);
            let help =
                "a host that is connected has not stopped: fence it without --confirm, or stop it first";
            return Err(Rejection::new(Code::NotAllowed, message, help));
        }
        self.host_is_stopped(host, Evidence::Person { principal, reason });
        Ok(Accepted::Host(self.head.revision))
    }

    /// An operator wants a host fenced; the answer comes when that is done, or cannot be.
    pub(crate) fn fence(&mut self, host: &HostName, reply: ReplyId) -> Result<(), Rejection> {
        self.known_host(host)?;
        match self.recovery.fences.get_mut(host) {
            Some(Fencing { reply: Some(_), .. }) => {
                let message = format!("host {host} is being fenced");
                return Err(Rejection::new(Code::Busy, message, "wait for the one who asked before"));
            }
            // A repair has called a handler that is at work: it would only be in the way of a second one.
            Some(Fencing { on: Some(_), is_back: false, reply: waiting, .. }) => {
                *waiting = Some(reply);
                return Ok(());
            }
            Some(_) | None => {}
        }
        let Some(member) = self.head.members.keys().find(|id| id.host == *host).cloned() else {
            let message = format!("host {host} has no members");
            return Err(Rejection::new(Code::NotAllowed, message, "there is nothing to make sure of"));
        };
        self.recovery.fences.remove(host);
        if self.fencer(host, &BTreeSet::new()).is_none() {
            let message = format!(
                "no other living host has a handler called fence, to make sure that {host} has stopped"
            );
            let help = format!(
                "add [handlers.fence] to the agent.toml of another host, or make sure yourself and say so: lockstep fence {host} --confirm --reason TEXT"
            );
            return Err(Rejection::new(Code::NoCandidate, message, help));
        }
        self.begin_fencing(host, member, Some(reply));
        Ok(())
    }

    pub(super) fn fencer(&self, host: &HostName, tried: &BTreeSet<HostName>) -> Option<HostName> {
        let offers = self.sessions.iter().filter(|(name, session)| session.fences && *name != host);
        let mut offers = offers.map(|(name, _)| name).filter(|name| !tried.contains(*name));
        offers.find(|name| self.is_reachable(name)).cloned()
    }

    pub(super) fn begin_fencing(&mut self, host: &HostName, member: MemberId, reply: Option<ReplyId>) {
        if self.recovery.fences.contains_key(host) {
            return;
        }
        let (on, tried, said, due) = (None, BTreeSet::new(), BTreeMap::new(), self.now.time);
        let fencing = Fencing { member, on, tried, said, attempt: 0, rounds: 0, is_back: false, due, reply };
        self.recovery.fences.insert(host.clone(), fencing);
        self.fence_next(host);
    }

    /// Asks the next host that offers a fence handler; after the last one, the first again after a pause.
    fn fence_next(&mut self, host: &HostName) {
        let Some(mut fencing) = self.recovery.fences.remove(host) else { return };
        let now = self.now.time;
        fencing.on = self.fencer(host, &fencing.tried);
        let Some(on) = fencing.on.clone() else {
            if let Some(reply) = fencing.reply.take() {
                let said = fencing.answers();
                let message = format!("nobody could make sure that host {host} has stopped: {said}");
                let help =
                    format!("make sure yourself and say so: lockstep fence {host} --confirm --reason TEXT");
                return self.reply(reply, Err(Rejection::new(Code::NoCandidate, message, help)));
            }
            fencing.tried.clear();
            fencing.due = now.plus(pause_ms(PAUSE_MS, fencing.rounds));
            fencing.rounds += 1;
            self.recovery.fences.insert(host.clone(), fencing);
            return;
        };
        // A reign's number is higher than those before it; of its digits the last ones do.
        let reign = u32::try_from(self.head.reign.0 & u64::from(u32::MAX)).expect("it is masked");
        self.recovery.fence_calls = self.recovery.fence_calls.max(reign).wrapping_add(1);
        fencing.attempt = self.recovery.fence_calls;
        fencing.is_back = false;
        fencing.due = now.plus(FENCE_MS);
        let context = self.context_of(&fencing.member.group);
        let order = Call {
            attempt: fencing.attempt,
            within_ms: FENCE_MS,
            context,
            ..Call::bare(fencing.member.clone(), Phase::Fence)
        };
        self.recovery.fences.insert(host.clone(), fencing);
        self.order(&on, Order::Call(order));
    }

    pub(super) fn fence_again(&mut self) {
        let now = self.now.time;
        let due = self.recovery.fences.iter().filter(|(_, fencing)| fencing.due <= now);
        for host in due.map(|(host, _)| host.clone()).collect::<Vec<_>>() {
            self.fence_failed(&host, &format!("no answer in {}", seconds(FENCE_MS)));
        }
    }

    /// The handler that was called has failed, if one was: it is the next one's turn.
    fn fence_failed(&mut self, host: &HostName, reason: &str) {
        let fencing = self.recovery.fences.get_mut(host).expect("it is being fenced");
        if let Some(on) = fencing.on.take() {
            let message = format!("host {host} could not be fenced from {on}: {reason}");
            fencing.said.insert(on.clone(), reason.to_owned());
            fencing.tried.insert(on);
            self.event(Event::Warning(message));
            // What waits for it has to say so; and a repair may go on where somebody else had asked.
            self.stir_recovery();
        }
        self.fence_next(host);
    }

    /// What keeps a group from being repaired, with what has come of fencing the host that is in the way.
    pub(super) fn with_fencing(&self, rejection: Rejection) -> Rejection {
        let fencing = rejection.host.as_ref().and_then(|host| self.recovery.fences.get(host));
        let Some(fencing) = fencing.filter(|fencing| !fencing.is_back) else { return rejection };
        let so_far = match (&fencing.on, fencing.said.is_empty()) {
            (_, false) => format!("fencing it has failed, and is tried again: {}", fencing.answers()),
            (Some(on), true) => format!("it is being fenced from {on}"),
            (None, true) => return rejection,
        };
        Rejection { message: format!("{}; {so_far}", rejection.message), ..rejection }
    }

    /// A fence handler has ended, on that host.
    pub(crate) fn fence_done(&mut self, on: &HostName, done: &Done) {
        let host = &done.member.host;
        let Some(fencing) = self.recovery.fences.get(host) else { return };
        if fencing.on.as_ref() != Some(on) || fencing.attempt != done.attempt {
            return;
        }
        if done.answer != Answer::Yes && !mutant::is(Mutant::FencePresumed) {
            return self.fence_failed(host, done.reason.as_deref().unwrap_or("no reason given"));
        }
        if fencing.is_back {
            self.answer_fencing(host);
        } else {
            self.drop_session(host);
            self.host_is_stopped(host, Evidence::Fence { on: on.clone() });
        }
    }

    /// Nobody has a host fenced any more; whoever waits for that is answered that it is done.
    fn answer_fencing(&mut self, host: &HostName) {
        if let Some(reply) = self.recovery.fences.remove(host).and_then(|fencing| fencing.reply) {
            self.reply(reply, Ok(Accepted::Host(self.head.revision)));
        }
    }

    /// A host has a new connection. After it was lost nobody fences it any more, but for somebody who waits for that.
    pub(crate) fn host_comes(&mut self, host: &HostName, was_away: bool) {
        let Some(fencing) = self.recovery.fences.get_mut(host) else { return };
        fencing.is_back = true;
        if was_away && fencing.reply.is_none() {
            self.recovery.fences.remove(host);
        }
    }

    /// All of a host has stopped.
    fn host_is_stopped(&mut self, host: &HostName, by: Evidence) {
        let is_loss = self.is_reachable(host);
        let change = HostChange::Liveness { liveness: Liveness::Fenced };
        self.propose(Body::Host { host: host.clone(), change });
        let here = self.head.members.keys().filter(|id| id.host == *host);
        let here = here.filter(|id| !self.is_surely_lowest(id)).cloned().collect();
        self.take_evidence(here, by);
        // Whoever waits for a handler to make sure of it is told that somebody else has.
        self.answer_fencing(host);
        if is_loss {
            self.host_is_gone(host);
        }
        self.host_lost(host);
        self.stir_all();
    }

    fn is_surely_lowest(&self, id: &MemberId) -> bool {
        let member = &self.head.members[id];
        let lowest = self.head.spec.groups.get(&id.group).map(|group| group.lifecycle.lowest());
        lowest.is_none()
            || (member.actual.as_ref() == lowest && !member.is_in_doubt() && member.transition.is_none())
    }
}
