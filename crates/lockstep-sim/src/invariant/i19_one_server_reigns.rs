//! Once the faults have ended one server reigns, every other one knows that it does not, and those that stand by show
//! what the journal says.

use super::{Invariant, Verdict};
use lockstep_core::world::World;

/// How many records one that stands by may be behind when nothing is wrong.
const BEHIND_MAX: u64 = 100;

#[derive(Debug, Clone, PartialEq, Eq, Hash, Default)]
pub(crate) struct OneServerReigns;

impl Invariant for OneServerReigns {
    const NAME: &'static str = "19 one-server-reigns";

    fn end(&mut self, world: &World) -> Verdict {
        let Some(server) = world.server() else { return Err("no server runs".to_owned()) };
        if let Some((other, _)) = world.servers().find(|(id, _)| Some(*id) != world.active()) {
            return Err(format!("{other:?} does not know that it was deposed"));
        }
        let revision = server.acknowledged().revision;
        let mut standbys = world.standbys();
        match standbys.find(|(_, cluster)| cluster.revision.0 + BEHIND_MAX < revision.0) {
            Some((id, known)) => {
                Err(format!("{id:?} shows {} and the journal goes to {revision}", known.revision))
            }
            None => Ok(()),
        }
    }
}
