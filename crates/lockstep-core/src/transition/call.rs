//! Calls: what an agent is ordered to run, and what its handler is told of the transition and the members around it.

use super::{Run, Stage};
use crate::cluster::Transition;
use crate::engine::Engine;
use crate::id::{GroupName, MemberId, SettingId, TransitionId};
use crate::message::{Call, Context, ContextMember, Decision, Phase, Role, SettingChange};
use crate::plan::Plan;
use crate::spec::{Ask, HANDLER_NONE, Settings};
use crate::vote::Ballot;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

impl Engine {
    pub(super) fn call(
        &mut self,
        id: TransitionId,
        run: &Run,
        member: &MemberId,
        phase: Phase,
        role: Role,
    ) -> Call {
        let context = self.context(id, run, member, phase);
        let transition = &self.head.transitions[&id];
        let ask = match role {
            Role::Holder => Some(Ask::Hold),
            Role::Voter => Some(Ask::Vote),
            Role::Actor | Role::Observer => None,
        };
        let subject = match ask {
            Some(ask) => run.plan.asked_for(&member.group, ask),
            None => run.moving.clone(),
        };
        Call {
            role,
            transition: Some(id),
            token: transition.current_token,
            subject,
            decision: transition.decision,
            context,
            ..Call::bare(member.clone(), phase)
        }
    }

    /// What a handler is told; nothing when there is none to tell.
    fn context(&mut self, id: TransitionId, run: &Run, member: &MemberId, phase: Phase) -> Option<Context> {
        let group = self.head.spec.groups.get(&member.group)?;
        if group.handler.as_str() == HANDLER_NONE {
            return None;
        }
        let key = (id, member.group.clone(), self.head.revision);
        let members = match &self.told {
            Some((known, members)) if *known == key => members.clone(),
            Some(_) | None => {
                let members = Arc::new(self.context_members(id, &run.plan, &member.group));
                self.told = Some((key, members.clone()));
                members
            }
        };
        let open = match &run.stage {
            Stage::Check(poll) | Stage::Prepare { poll, .. } => Some(&poll.ballot),
            Stage::Queued | Stage::Status { .. } | Stage::Abort { .. } | Stage::Commit(_) => None,
        };
        let transition = &self.head.transitions[&id];
        let votes = transition.votes.iter().chain(&run.votes).chain(open.into_iter().flat_map(Ballot::votes));
        let out =
            votes.filter(|vote| !vote.out.is_empty()).map(|vote| (vote.member.clone(), vote.out.clone()));
        let is_back = transition.undo.is_some() && phase != Phase::Commit;
        let (settings, was) = self.context_settings(transition, &run.plan, member, is_back);
        let changes = changes(transition, &run.plan, is_back);
        Some(Context { settings, was, changes, members, out: out.collect() })
    }

    /// The settings of a member's group as they are to be and as they were, or as it has them itself: the other way
    /// round while they are taken back, and the same twice when nothing comes of a change. A step that is ordered again
    /// while others are taken back, so that its end is known, says what it said before: what is recorded of it rests on
    /// that.
    fn context_settings(
        &self,
        transition: &Transition,
        plan: &Plan,
        member: &MemberId,
        is_back: bool,
    ) -> (Settings, Settings) {
        let (after, before) = plan.settings_of(&self.head.settings(&member.group), member);
        match transition.decision {
            Some(Decision::Abort) => (before.clone(), before),
            Some(Decision::Commit) if is_back => (before, after),
            Some(Decision::Commit) | None => (after, before),
        }
    }

    /// What a handler is told of its own and the related groups outside of any transition; nothing when there is none
    /// to tell.
    pub(crate) fn context_of(&self, name: &GroupName) -> Option<Context> {
        self.head.spec.groups.get(name).filter(|group| group.handler.as_str() != HANDLER_NONE)?;
        // What it may be told of: the groups that relations lead to, however far.
        let mut groups = BTreeSet::from([name]);
        let mut next = vec![name];
        while let Some(from) = next.pop() {
            let related = self.head.relations.of(from).filter(|relation| relation.from == *from);
            next.extend(related.flat_map(|relation| &relation.to).filter(|to| groups.insert(to)));
        }
        let members = groups.into_iter().flat_map(|group| self.head.members_of(group)).map(|id| {
            let known = &self.head.members[id];
            ContextMember {
                member: id.clone(),
                address: self.head.hosts[&id.host].address.clone(),
                from: known.actual.clone(),
                goal: known.goal.clone(),
                actual: known.actual.clone(),
            }
        });
        let settings = (*self.head.settings(name)).clone();
        let members = Arc::new(members.collect());
        Some(Context { was: settings.clone(), settings, members, ..Context::default() })
    }

    /// The members of the groups that move, of `group`, and of those that are related to it.
    fn context_members(&self, id: TransitionId, plan: &Plan, group: &GroupName) -> Vec<ContextMember> {
        let transition = &self.head.transitions[&id];
        let mut groups: BTreeSet<&GroupName> = plan.moving();
        groups.insert(group);
        for relation in &plan.relations {
            if relation.from == *group {
                groups.extend(&relation.to);
            } else if relation.to.contains(group) {
                groups.insert(&relation.from);
            }
        }
        let befores: BTreeMap<_, _> =
            plan.steps.iter().rev().map(|step| (&step.member, &step.from)).collect();
        let members = groups.into_iter().flat_map(|group| self.head.members_of(group)).map(|id| {
            let known = &self.head.members[id];
            ContextMember {
                member: id.clone(),
                address: self.head.hosts[&id.host].address.clone(),
                from: befores.get(id).map(|state| (*state).clone()).or_else(|| known.actual.clone()),
                goal: match transition.decision {
                    Some(_) => known.goal.clone(),
                    None => plan.goals.get(id).cloned().or_else(|| known.goal.clone()),
                },
                actual: known.actual.clone(),
            }
        });
        members.collect()
    }
}

/// The settings that a transition changes, the way that it takes now: nothing changes once it is decided that nothing
/// does.
fn changes(transition: &Transition, plan: &Plan, is_back: bool) -> BTreeMap<SettingId, SettingChange> {
    if transition.decision == Some(Decision::Abort) {
        return BTreeMap::new();
    }
    let (to, from) = match is_back {
        true => (&plan.settings_before, &plan.settings),
        false => (&plan.settings, &plan.settings_before),
    };
    let keys = plan.settings.iter().flat_map(|(group, set)| set.keys().map(move |key| (group, key)));
    let changes = keys.map(|(group, key)| {
        let value = |set: &BTreeMap<GroupName, Settings>| set.get(group)?.get(key).cloned();
        let id = SettingId { group: group.clone(), key: key.clone() };
        (id, SettingChange { from: value(from), to: value(to) })
    });
    changes.collect()
}
