//! Relations are a function of spec, capabilities and settings: brought up to date piece by piece they come to the same as
//! derived anew, and never go in a circle.

use super::{Invariant, Verdict};
use lockstep_core::id::Index;
use lockstep_core::world::{ServerId, World};
use std::collections::{BTreeMap, BTreeSet};

#[derive(Debug, Clone, PartialEq, Eq, Hash, Default)]
pub(crate) struct RelationsFollow {
    seen: BTreeMap<ServerId, Index>,
}

impl Invariant for RelationsFollow {
    const NAME: &'static str = "17 relations-follow";

    fn look(&mut self, world: &World) -> Verdict {
        for (server, engine) in world.servers() {
            let cluster = engine.proposed();
            if self.seen.insert(server, cluster.revision) == Some(cluster.revision) {
                continue;
            }
            let anew = cluster.relations_under(&cluster.spec, &cluster.settings, Default::default());
            let (are, should) = (&cluster.relations, &anew);
            let (are, should): (BTreeSet<_>, BTreeSet<_>) = (are.iter().collect(), should.iter().collect());
            if are != should {
                let missing: Vec<_> = should.difference(&are).collect();
                let left_over: Vec<_> = are.difference(&should).collect();
                return Err(format!("missing are {missing:?}, left over {left_over:?}"));
            }
            cluster.relations.check_circles(&[], &[]).map_err(|circle| circle.to_string())?;
        }
        Ok(())
    }
}
