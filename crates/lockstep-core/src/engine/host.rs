//! Hosts: what operators ask of them, how they come and go, and when their leases have ended.

use super::{Accepted, Engine, ReplyId};
use crate::cluster::Host;
use crate::id::{HostName, TransitionId};
use crate::lease::Heard;
use crate::record::{Body, HostChange, Liveness};
use crate::request::{Code, Rejection};
use crate::time::{Now, Time};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

/// How long a server may say that it is going to be away, in milliseconds. Too low is of no use; too high, and a host
/// that dies meanwhile is not replaced for as long.
pub const AWAY_MS: std::ops::RangeInclusive<u64> = 1000..=3_600_000;
/// The most labels that may be set of one host.
pub const LABELS_MAX: usize = 1000;

/// Hosts are told of a longer lease before this server goes away.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct Away {
    lease_ms: u64,
    /// Who waits for that.
    pub(super) reply: Option<ReplyId>,
    /// Nobody waits for longer.
    pub(super) until: Time,
    /// How many hosts are told.
    asked: usize,
    /// The hosts that have not said that they go by it.
    missing: BTreeSet<HostName>,
}

impl Engine {
    pub(crate) fn known_host(&self, name: &HostName) -> Result<&Host, Rejection> {
        self.head.hosts.get(name).map(|host| &**host).ok_or_else(|| {
            let help = "`lockstep host list` shows those that have joined";
            Rejection::new(Code::UnknownHost, format!("there is no host {name}"), help)
        })
    }

    pub(super) fn label(
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
    pub(super) fn forget(&mut self, name: &HostName, is_stopped: bool) -> Result<Accepted, Rejection> {
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

    pub(super) fn undrain(&mut self, name: &HostName) -> Result<Accepted, Rejection> {
        if self.known_host(name)?.is_drained {
            self.propose(Body::Host { host: name.clone(), change: HostChange::Undrained });
            self.stir_all();
        }
        Ok(Accepted::Host(self.head.revision))
    }

    pub(super) fn introduced(&mut self, host: &HostName, change: HostChange) {
        self.introductions.note(host, self.now.time);
        self.propose(Body::Host { host: host.clone(), change });
    }

    /// A host's session has ended. One that comes and goes all the time is shown as alive meanwhile; nothing but what
    /// is shown rests on that, since votes count by sessions.
    pub(super) fn departed(&mut self, host: &HostName, liveness: Liveness) {
        if let Some(due) = self.departures.until(host, self.now.time) {
            return self.departures.keep(host, due, liveness);
        }
        self.departures.note(host, self.now.time);
        self.set_liveness(host, liveness);
    }

    /// Records what of hosts was held back and is due by now.
    pub(super) fn record_hosts(&mut self) {
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

    pub(super) fn set_liveness(&mut self, host: &HostName, liveness: Liveness) {
        if self.head.hosts.get(host).is_some_and(|known| known.liveness != liveness) {
            self.propose(Body::Host { host: host.clone(), change: HostChange::Liveness { liveness } });
            self.stir_all();
        }
    }

    // ---- leases

    /// The lease in force.
    pub(crate) fn lease_ms(&self) -> u64 {
        let declared = self.head.lease_ms();
        self.away.as_ref().map_or(declared, |away| away.lease_ms.max(declared))
    }

    pub(super) fn watch_hosts(&mut self) {
        if self.hosts_due.is_none_or(|due| due > self.now.time) {
            return;
        }
        let (now, lease_ms) = (self.now.time, self.lease_ms());
        let late = self.last_heard.iter().filter(|(_, heard)| heard.late_at(lease_ms) <= now);
        let late: Vec<_> = late.map(|(host, heard)| (host.clone(), heard.lost_at(lease_ms) <= now)).collect();
        for (host, is_lost) in late {
            if is_lost && self.is_reachable(&host) {
                self.give_up_host(&host);
            } else if !is_lost && self.is_heard(&host) {
                // Of one that has not come since this server began it is not known whether it is late.
                self.departed(&host, Liveness::Suspect);
            }
        }
        let watched = self.last_heard.iter().filter(|(host, _)| self.is_reachable(host));
        let next = watched.map(|(_, heard)| {
            let late = Some(heard.late_at(lease_ms)).filter(|late| *late > now);
            late.unwrap_or(heard.lost_at(lease_ms))
        });
        self.hosts_due = next.min();
        // A server that takes over counts with the longest lease that anybody may go by, however many have been before it.
        let has_shortened = |heard: &Heard| heard.has_shortened(self.now.time, lease_ms);
        if self.head.leases_ms[0] > lease_ms && self.has_begun && self.last_heard.values().all(has_shortened)
        {
            self.propose(Body::Lease { lease_ms });
        }
    }

    /// A host whose connection stands is heard again: if it was late, it is not any more.
    pub(super) fn heard_again(&mut self, host: &HostName) {
        if let Some(heard) = self.last_heard.get_mut(host) {
            heard.again(self.now.time);
        }
        self.departures.forget(host);
        if self.head.hosts.get(host).is_some_and(|known| known.liveness == Liveness::Suspect) {
            self.set_liveness(host, Liveness::Alive);
        }
    }

    /// Whether a host is connected, and not late.
    pub(crate) fn is_heard(&self, host: &HostName) -> bool {
        let is_alive = self.head.hosts.get(host).is_some_and(|known| known.liveness == Liveness::Alive);
        is_alive && self.sessions.contains_key(host)
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

    /// Time in which this process did not run is nobody's silence: leases and steps get it back. Votes and holds do
    /// not: their ends are known to others, and an abort is safe.
    pub(super) fn woke(&mut self, after_ms: u64) {
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

    // ---- going away

    pub(super) fn go_away(&mut self, reply: ReplyId, lease_ms: u64, principal: String) {
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
    pub(super) fn goes_away(&mut self, host: &HostName) {
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

    pub(super) fn answer_away(&mut self) {
        let Some(away) = &mut self.away else { return };
        if let Some(reply) = away.reply.take() {
            let (told, missing) = (away.asked - away.missing.len(), away.missing.clone());
            self.reply(reply, Ok(Accepted::Away { told, missing }));
        }
    }
}
