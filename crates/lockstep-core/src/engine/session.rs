//! Connections with agents: who is let in, what hosts are told of their members, and what they know by now.

use super::{Engine, Event, Output, SessionId};
use crate::cluster::Host;
use crate::id::{GroupName, HostName, Index, Reign, RunId, Token, TransitionId};
use crate::lease::Heard;
use crate::message::{Assignment, Hello, Order, PROTOCOL};
use crate::plan::Plan;
use crate::record::{Body, HostChange, Liveness};
use crate::request::{Code, Rejection};
use std::collections::BTreeSet;
use std::sync::Arc;

/// What hosts acknowledge is recorded this often, in milliseconds. Too low: a record for each of them. Too high: it is
/// kept for longer than it has to be, and a server that starts tells again what was acknowledged before.
const ACKNOWLEDGE_MS: u64 = 60_000;
/// And as soon as so many outcomes are acknowledged: a busy cluster has thousands in a minute.
const ACKNOWLEDGED_MAX: usize = 500;
/// How many runs of its agent are known of a host. Too few: of that many agents under one name, none is told.
const AGENT_RUNS_MAX: usize = 8;

/// What is to be done about an agent that does not keep to the protocol.
const AGENT_IS_WRONG: &str = "mend the agent, see docs/protocol.md";

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

/// What a host has shown of a later server.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default)]
pub(crate) struct Ahead {
    pub(crate) token: Token,
    pub(crate) reign: Reign,
    /// Its groups.
    pub(crate) groups: BTreeSet<GroupName>,
}

impl Engine {
    pub(super) fn hello(&mut self, session: SessionId, hello: Hello) {
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
        let due = heard.late_at(lease_ms);
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

    pub(super) fn refusals_change(&mut self) {
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

    pub(crate) fn check_not_behind(&self, plan: &Plan) -> Result<(), Rejection> {
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

    pub(super) fn closed(&mut self, session: SessionId) {
        if let Some(host) = self.forget_session(session)
            && self.head.hosts[&host].liveness == Liveness::Alive
        {
            self.departed(&host, Liveness::Suspect);
        }
    }

    /// Drops a session, unless a newer one has taken its place.
    pub(super) fn forget_session(&mut self, session: SessionId) -> Option<HostName> {
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

    // ---- what hosts know by now

    /// A host has taken its notices up to there.
    pub(super) fn notices_taken(&mut self, host: &HostName, index: Index) {
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
    pub(super) fn outcomes_taken(&mut self, host: &HostName, open: &[TransitionId]) {
        let Some(awaited) = self.head.retention.awaited.get(host) else { return };
        let taken: BTreeSet<_> = awaited.iter().filter(|id| !open.contains(id)).copied().collect();
        if !taken.is_empty() {
            let known = &mut self.acknowledged.entry(host.clone()).or_default().outcomes;
            self.acknowledged_count -= known.len();
            known.extend(taken);
            self.acknowledged_count += known.len();
        }
    }

    pub(super) fn record_acknowledged(&mut self) {
        let is_due = self.acknowledged_at.plus(ACKNOWLEDGE_MS) <= self.now.time;
        if (is_due && !self.acknowledged.is_empty()) || self.acknowledged_count >= ACKNOWLEDGED_MAX {
            self.acknowledged_at = self.now.time;
            self.acknowledged_count = 0;
            let hosts = std::mem::take(&mut self.acknowledged);
            self.propose(Body::Acknowledged { hosts });
        }
    }
}
