//! Settings are in force as they were decided, all of a transition or none, and a member that is shown to have taken
//! some has them: asked of the software itself. (Part of the promise of one decision; it has no number of its own.)
//!
//! Software that is adopted as it runs is taken to have what is in force, and nobody can know better: a host that was
//! forgotten while its software ran begins anew, and counts once a step has led that software somewhere.

use super::{Invariant, Verdict};
use lockstep_core::cluster::Mark;
use lockstep_core::id::{GroupName, MemberId, TransitionId};
use lockstep_core::message::Decision;
use lockstep_core::plan::Plan;
use lockstep_core::record::{Body, HostChange, StepResult, Turn};
use lockstep_core::spec::{Settings, SpecFile};
use lockstep_core::world::{Happened, Name, World};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

#[derive(Debug, Clone, PartialEq, Eq, Hash, Default)]
pub(crate) struct SettingsAsDecided {
    plans: BTreeMap<TransitionId, Arc<Plan>>,
    /// By the records alone.
    expected: BTreeMap<GroupName, Settings>,
    /// Members whose host was forgotten, and whom no step has moved since.
    adopted: BTreeSet<MemberId>,
    excused: BTreeSet<Name>,
}

impl SettingsAsDecided {
    fn declare(&mut self, file: &SpecFile) {
        self.expected.retain(|group, _| file.groups.contains_key(group));
        for (group, declared) in file.groups.iter().filter(|(_, group)| !group.settings.is_empty()) {
            let known = self.expected.entry(group.clone()).or_default();
            known.retain(|key, _| declared.settings.contains_key(key));
            for (key, value) in &declared.settings {
                known.entry(key.clone()).or_insert_with(|| value.clone());
            }
        }
    }

    fn put(&mut self, changes: &BTreeMap<GroupName, Settings>) {
        for (group, set) in changes {
            let known = self.expected.entry(group.clone()).or_default();
            known.extend(set.iter().map(|(key, value)| (key.clone(), value.clone())));
        }
    }
}

impl Invariant for SettingsAsDecided {
    const NAME: &'static str = "settings-as-decided";

    fn excuse(&mut self, name: &Name) {
        self.excused.insert(name.clone());
    }

    fn happened(&mut self, world: &World, what: &Happened) -> Verdict {
        let Happened::Recorded { record, .. } = what else { return Ok(()) };
        match &record.body {
            Body::Spec { spec, .. } => self.declare(spec),
            Body::Begin { transition, plan } => drop(self.plans.insert(*transition, plan.clone())),
            Body::Decision { transition, decision: Decision::Commit, .. } => {
                let plan = self.plans[transition].clone();
                self.put(&plan.settings);
            }
            Body::Turn { transition, turn: Turn::Undo, .. } => {
                let plan = self.plans[transition].clone();
                self.put(&plan.settings_before);
            }
            Body::Outcome { transition, .. } => drop(self.plans.remove(transition)),
            Body::Host { host, change: HostChange::Forgotten } => {
                self.adopted.extend(world.taken().keys().filter(|id| id.host == *host).cloned());
            }
            Body::Step { transition, results } => {
                let steps = results.iter().filter_map(|result| match result {
                    StepResult::Confirmed { step, .. } => Some(step.0 as usize),
                    StepResult::Failed { .. } | StepResult::Unknown { .. } => None,
                    StepResult::Stopped { .. } | StepResult::HoldEnded { .. } => None,
                });
                for step in steps {
                    self.adopted.remove(&self.plans[transition].steps[step].member);
                }
            }
            Body::Decision { decision: Decision::Abort, .. }
            | Body::Turn { turn: Turn::Exclude, .. }
            | Body::Reign { .. }
            | Body::Host { .. }
            | Body::Request { .. }
            | Body::Acknowledged { .. }
            | Body::Evidence { .. }
            | Body::Away { .. }
            | Body::Freeze { .. }
            | Body::Thaw { .. }
            | Body::Lease { .. }
            | Body::Report { .. } => {}
        }
        Ok(())
    }

    fn end(&mut self, world: &World) -> Verdict {
        let Some(server) = world.server() else { return Ok(()) };
        let cluster = server.acknowledged();
        let in_force: BTreeMap<_, _> =
            cluster.settings.iter().map(|(group, settings)| (group.clone(), (**settings).clone())).collect();
        if in_force != self.expected {
            return Err(format!("{in_force:?} is in force, decided was {:?}", self.expected));
        }
        for (id, member) in &cluster.members {
            let serves = |state| cluster.spec.groups.get(&id.group).is_some_and(|group| group.lifecycle.serves(state));
            let is_quiet = member.transition.is_none() && member.mark == Mark::None && !member.leaving;
            let name: Name = id.host.as_str().into();
            if !is_quiet || self.adopted.contains(id) || !member.actual.as_ref().is_some_and(serves) || self.excused.contains(&name) {
                continue;
            }
            let (Some(shown), Some(taken)) = (&member.settings, world.taken().get(id)) else { continue };
            if let Some((key, value)) = shown.iter().find(|(key, value)| taken.get(*key) != Some(value)) {
                return Err(format!("{id} is shown to have taken {key} = {value}, and has {:?}", taken.get(key)));
            }
        }
        Ok(())
    }
}
