//! What is kept of what is over, and for how long. Part of the fold, so that every server keeps the same.
//!
//! A transition that has ended is kept *whole*, with its plan, votes and steps, until every host that was asked in it
//! has acknowledged its outcome, and longer while it is among the newest. After that it is kept *in brief*: request
//! and outcome, so that a request that comes again gets the answer that it got. After a day it is forgotten.
//!
//! Notices are kept for each host until it has acknowledged them. Of a host that stays away the oldest go first, and
//! with a transition that is no longer whole the notices of it: what its handlers would be told is gone.

use super::{Cluster, Transition};
use crate::id::{HostName, Index, TransitionId};
use crate::message::Role;
use crate::plan::Plan;
use crate::record::Acknowledged;
use crate::time::WallTime;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;

/// The most ended transitions that are kept whole once their outcome has been acknowledged: what an operator looks
/// back at.
pub const WHOLE_MAX: usize = 1000;
/// The most steps, participants and votes in all of them together: a plan may have as many as other thousand plans.
pub const PARTS_MAX: usize = 200_000;
/// So many times these bounds, and what hosts have not acknowledged is no longer waited for either. A host that
/// never acknowledges anything must not fill every server's memory.
pub const UNACKNOWLEDGED_FACTOR: usize = 4;
/// How long a request id is kept after its transition has ended, in milliseconds by the wall clocks of records: a day,
/// and two hours more for clocks that are set.
pub const BRIEF_MS: u64 = 26 * 60 * 60 * 1000;
/// And for so much longer at most, so that not every record has to drop one.
const BRIEF_SLACK_MS: u64 = 60 * 60 * 1000;
/// The most that are kept in brief, when more than that end in a day.
pub const BRIEF_MAX: usize = 20_000;
/// The most notices that are kept for a host that does not acknowledge them. Ten thousand hosts that are away at once
/// may fill it.
pub const NOTICES_MAX: usize = 256;

/// The notices of one host.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Notices {
    /// The newest one that the host has acknowledged.
    pub acknowledged: Index,
    /// The newest one that is no longer kept. What lies between the two, the host was never told, and is not going to.
    pub dropped: Index,
    /// Those that are kept, oldest first: of which record, and of which transition.
    pub kept: VecDeque<(Index, TransitionId)>,
}

impl Notices {
    /// The index of the notice before the one at `place`.
    pub fn previous(&self, place: usize) -> Index {
        place.checked_sub(1).map_or(self.dropped, |before| self.kept[before].0)
    }

    /// The place of the first one that a host has not taken which has taken those up to `noticed`.
    pub fn after(&self, noticed: Index) -> usize {
        self.kept.partition_point(|(index, _)| *index <= noticed)
    }

    fn push(&mut self, index: Index, transition: TransitionId) {
        self.kept.push_back((index, transition));
        if self.kept.len() > NOTICES_MAX {
            self.drop_to(1);
        }
    }

    fn acknowledge(&mut self, index: Index) {
        self.acknowledged = self.acknowledged.max(index);
        self.drop_to(self.after(index));
    }

    /// Forgets so many of the oldest.
    fn drop_to(&mut self, count: usize) {
        if let Some((index, _)) = self.kept.drain(..count).next_back() {
            self.dropped = index;
        }
    }
}

/// The transitions that are kept in brief: what was asked for, and what came of it.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Brief {
    /// The transitions, without plan, votes and steps.
    pub transitions: BTreeMap<TransitionId, Arc<Transition>>,
    /// Which of them a request id asked for.
    pub requests: BTreeMap<Arc<str>, TransitionId>,
}

/// Which ended transitions are kept, and who is still to learn of them.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Retention {
    /// Those that are kept whole, because hosts that were asked have not acknowledged the outcome: how many.
    pub waiting: BTreeMap<TransitionId, usize>,
    /// Those that are kept whole because they are among the newest.
    pub settled: BTreeSet<TransitionId>,
    /// Those that are kept in brief.
    pub brief: Arc<Brief>,
    /// How many steps, participants and votes those have that are whole.
    parts: usize,
    /// The outcomes that each host has not acknowledged.
    pub awaited: BTreeMap<HostName, BTreeSet<TransitionId>>,
}

impl Retention {
    /// How many are kept whole.
    pub fn whole(&self) -> usize {
        self.waiting.len() + self.settled.len()
    }

    fn acknowledge(&mut self, host: &HostName, id: TransitionId) {
        let Some(awaited) = self.awaited.get_mut(host).filter(|awaited| awaited.contains(&id)) else {
            return;
        };
        awaited.remove(&id);
        if awaited.is_empty() {
            self.awaited.remove(host);
        }
        let hosts = self.waiting.get_mut(&id).expect("it is awaited from this host");
        *hosts -= 1;
        if *hosts == 0 {
            self.waiting.remove(&id);
            self.settled.insert(id);
        }
    }
}

fn parts(transition: &Transition) -> usize {
    let plans = transition.plan.iter().chain(&transition.unbegun);
    1 + plans.map(|plan| plan.parts()).sum::<usize>() + transition.votes.len()
}

/// The hosts that were asked. Of a plan that was never begun only those are recorded that have answered.
fn asked(transition: &Transition) -> BTreeSet<HostName> {
    match &transition.plan {
        Some(plan) => plan.asked().map(|who| who.member.host.clone()).collect(),
        None => transition.votes.iter().map(|vote| vote.member.host.clone()).collect(),
    }
}

impl Cluster {
    /// A transition, kept whole or in brief.
    pub fn transition(&self, id: &TransitionId) -> Option<&Arc<Transition>> {
        self.transitions.get(id).or_else(|| self.retention.brief.transitions.get(id))
    }

    /// The transition that a request id asked for, as long as that is kept.
    pub fn requested(&self, request_id: &str) -> Option<TransitionId> {
        self.requests.get(request_id).or_else(|| self.retention.brief.requests.get(request_id)).copied()
    }

    /// Notes which hosts the record is told to.
    pub(super) fn tell(&mut self, index: Index, transition: TransitionId, plan: &Plan) {
        let hosts: BTreeSet<_> = plan.with_role(Role::Observer).map(|member| &member.host).collect();
        for host in hosts {
            self.notices.entry(host.clone()).or_default().push(index, transition);
        }
    }

    /// The notices of a host that says up to where it has taken them. One that has taken some, and is not known, came
    /// after the backup that this cluster was restored from: nobody knows what it was told.
    pub fn notices_of(&self, host: &HostName, noticed: Index) -> Notices {
        match (self.notices.get(host), &self.restored) {
            (Some(known), _) => known.clone(),
            (None, Some(restored)) if noticed.0 > 0 => {
                Notices { dropped: restored.index, ..Notices::default() }
            }
            (None, Some(_) | None) => Notices::default(),
        }
    }

    /// What hosts have said that they know.
    pub(super) fn acknowledge(&mut self, hosts: &BTreeMap<HostName, Acknowledged>, at: WallTime) {
        for (host, Acknowledged { noticed, outcomes }) in hosts {
            if let Some(notices) = self.notices.get_mut(host) {
                notices.acknowledge(*noticed);
            }
            outcomes.iter().for_each(|id| self.retention.acknowledge(host, *id));
        }
        self.forget(at);
    }

    /// A host is none any more: nobody waits for what it would say.
    pub fn acknowledge_all_of(&mut self, host: &HostName) {
        self.notices.remove(host);
        for id in self.retention.awaited.get(host).cloned().unwrap_or_default() {
            self.retention.acknowledge(host, id);
        }
    }

    /// A transition has ended.
    pub(super) fn retire(&mut self, id: TransitionId, at: WallTime) {
        let transition = &self.transitions[&id];
        let mut hosts = asked(transition);
        hosts.retain(|host| self.hosts.contains_key(host));
        let retention = &mut self.retention;
        retention.parts += parts(transition);
        if hosts.is_empty() {
            retention.settled.insert(id);
        } else {
            retention.waiting.insert(id, hosts.len());
        }
        for host in hosts {
            retention.awaited.entry(host).or_default().insert(id);
        }
        self.forget(at);
    }

    /// Forgets what need not be kept any more: many at once and seldom, because readers keep the cluster of before, and
    /// what is changed is copied for them.
    fn forget(&mut self, at: WallTime) {
        if self.is_over(WHOLE_MAX, PARTS_MAX) {
            while self.is_over(WHOLE_MAX / 4 * 3, PARTS_MAX / 4 * 3)
                && let Some(&id) = self.retention.settled.first()
            {
                self.shorten(id);
            }
        }
        let factor = UNACKNOWLEDGED_FACTOR;
        while self.is_over(factor * WHOLE_MAX, factor * PARTS_MAX)
            && let Some(&id) = self.retention.waiting.keys().next()
        {
            self.shorten(id);
        }
        let is_old = |known: &Transition, ms: u64| {
            known.ended_at.is_some_and(|ended_at| ended_at.0.saturating_add(ms) <= at.0)
        };
        let brief = &self.retention.brief;
        let is_due =
            brief.transitions.values().next().is_some_and(|known| is_old(known, BRIEF_MS + BRIEF_SLACK_MS));
        if !is_due && brief.transitions.len() <= BRIEF_MAX {
            return;
        }
        let keeps = if brief.transitions.len() > BRIEF_MAX { BRIEF_MAX / 4 * 3 } else { BRIEF_MAX };
        let brief = Arc::make_mut(&mut self.retention.brief);
        while brief.transitions.len() > keeps
            || brief.transitions.values().next().is_some_and(|known| is_old(known, BRIEF_MS))
        {
            let (id, known) = brief.transitions.pop_first().expect("there is one");
            let request_id = known.request.request_id.as_str();
            if brief.requests.get(request_id) == Some(&id) {
                brief.requests.remove(request_id);
            }
        }
    }

    /// Whether more is whole than that. The newest is kept, however large it is.
    fn is_over(&self, whole_max: usize, parts_max: usize) -> bool {
        let whole = self.retention.whole();
        whole > 1 && (whole > whole_max || self.retention.parts > parts_max)
    }

    /// Keeps of a transition what its request id is owed, and no more.
    fn shorten(&mut self, id: TransitionId) {
        let mut transition = self.transitions.remove(&id).expect("it is kept");
        let transition = Arc::make_mut(&mut transition);
        self.retention.parts -= parts(transition);
        asked(transition).iter().for_each(|host| self.retention.acknowledge(host, id));
        self.retention.settled.remove(&id);
        let plan = transition.plan.take();
        transition.unbegun = None;
        transition.votes = Arc::default();
        transition.excluded.clear();
        transition.steps.clear();
        transition.holds.clear();
        transition.stopped.clear();
        transition.left.clear();
        let brief = Arc::make_mut(&mut self.retention.brief);
        if let Some((request_id, _)) = self.requests.remove_entry(transition.request.request_id.as_str()) {
            brief.requests.insert(request_id, id);
        }
        brief.transitions.insert(id, Arc::new(transition.clone()));
        let Some(plan) = plan else { return };
        let told: BTreeSet<_> = plan.with_role(Role::Observer).map(|member| &member.host).collect();
        for host in told {
            let Some(notices) = self.notices.get_mut(host) else { continue };
            let last = notices.kept.iter().rposition(|(_, transition)| *transition == id);
            notices.drop_to(last.map_or(0, |last| last + 1));
        }
    }
}
