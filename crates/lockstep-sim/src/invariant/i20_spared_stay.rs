//! A host that no fault touches is never given up, whatever happens to the server and to other hosts.

use super::{Invariant, Verdict};
use lockstep_core::record::{Body, HostChange, Liveness};
use lockstep_core::world::{Happened, Name, World};

#[derive(Debug, Clone, PartialEq, Eq, Hash, Default)]
pub(crate) struct SparedStay {
    spared: Option<Name>,
}

impl Invariant for SparedStay {
    const NAME: &'static str = "20 spared-stay";

    fn spare(&mut self, name: &Name) {
        self.spared = Some(name.clone());
    }

    fn happened(&mut self, _: &World, what: &Happened) -> Verdict {
        if let Happened::Recorded { record, .. } = what
            && let Body::Host { host, change: HostChange::Liveness { liveness: Liveness::Lost } } = &record.body
            && self.spared.as_deref() == Some(host.as_str())
        {
            return Err(format!("{host} is given up, and nothing was wrong with it"));
        }
        Ok(())
    }
}
