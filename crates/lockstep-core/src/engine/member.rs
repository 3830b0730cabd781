//! What members say of themselves: recorded if it is news, and not more often than it has to be.

use super::{Engine, Event};
use crate::id::{MemberId, StateName};
use crate::record::{Body, HostChange};
use crate::relation::{self, Published};
use crate::spec::{Recover, SpecError};
use crate::time::Time;
use serde_json::{Map, Value};
use std::collections::BTreeSet;
use std::sync::Arc;

impl Engine {
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
    pub(super) fn note_guarded(&mut self, id: &MemberId, mut states: BTreeSet<StateName>) {
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
    pub(super) fn note_published(&mut self, id: &MemberId, published: Published) {
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
    pub(super) fn retry_published(&mut self) {
        for (id, published) in std::mem::take(&mut self.refused) {
            let _still_refused = self.try_published(&id, published);
        }
    }

    /// Records what was held back and is due by then.
    pub(super) fn record_reports(&mut self, by: Time) {
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
}
