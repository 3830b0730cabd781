//! Readers see durable records only, and all or none of a transition's goals; of one server they never see less than
//! before, also when it stands by.

use super::{Invariant, Verdict};
use lockstep_core::cluster::Cluster;
use lockstep_core::id::Index;
use lockstep_core::message::Decision;
use lockstep_core::world::{ServerId, World};
use std::collections::BTreeMap;

#[derive(Debug, Clone, PartialEq, Eq, Hash, Default)]
pub(crate) struct ReadsAreWhole {
    seen: BTreeMap<ServerId, Index>,
}

fn check(cluster: &Cluster) -> Verdict {
    for id in &cluster.open {
        let transition = &cluster.transitions[id];
        let Some(plan) = &transition.plan else { continue };
        let is_decided = transition.decision == Some(Decision::Commit);
        for (member, goal) in &plan.goals {
            let Some(known) = cluster.members.get(member) else { continue };
            if is_decided != (known.transition == Some(*id)) {
                return Err(format!("{member} is shown in {:?} while {id} is decided: {is_decided}", known.transition));
            }
            let is_turned = transition.undo.is_some() || transition.excluded.contains_key(member);
            if is_decided && !is_turned && known.goal.as_ref() != Some(goal) {
                return Err(format!("{id} is shown without its goal for {member}"));
            }
        }
    }
    Ok(())
}

impl ReadsAreWhole {
    /// Looks at what a server shows, if that is another revision than before.
    fn look_at(&mut self, world: &World, id: ServerId, cluster: &Cluster) -> Verdict {
        let before = self.seen.insert(id, cluster.revision);
        if before == Some(cluster.revision) {
            return Ok(());
        }
        if let Some(before) = before.filter(|before| *before > cluster.revision) {
            return Err(format!("readers of {id:?} see record {}, and have seen {before}", cluster.revision));
        }
        let durable = world.journal().len() as u64;
        if cluster.revision.0 > durable {
            return Err(format!("readers see record {}, and {durable} are durable", cluster.revision));
        }
        check(cluster)
    }
}

impl Invariant for ReadsAreWhole {
    const NAME: &'static str = "6 reads-are-whole";

    fn look(&mut self, world: &World) -> Verdict {
        for (id, server) in world.servers() {
            let cluster = server.acknowledged();
            if self.seen.get(&id) != Some(&cluster.revision) {
                self.look_at(world, id, cluster)?;
                cluster.assert_invariants();
            }
        }
        for (id, cluster) in world.standbys() {
            self.look_at(world, id, cluster)?;
        }
        Ok(())
    }

    fn end(&mut self, world: &World) -> Verdict {
        let Some(server) = world.server() else { return Ok(()) };
        let mut told = Cluster::default();
        let revision = server.acknowledged().revision;
        for (record, index) in world.journal().iter().zip((1..=revision.0).map(Index)) {
            told.apply(index, record);
        }
        let shown = world.standbys().map(|(_, cluster)| cluster);
        for cluster in shown.chain([&**server.acknowledged()]).filter(|cluster| cluster.revision == revision) {
            if told != *cluster {
                return Err("readers see something else than the journal".to_owned());
            }
        }
        Ok(())
    }
}
