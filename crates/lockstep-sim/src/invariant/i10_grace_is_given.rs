//! A server that begins to reign gives every host a whole lease to come to it, before it gives one up: whoever reigned
//! before may have answered its last renewal just then.

use super::{Invariant, Verdict};
use lockstep_core::record::{Body, HostChange, Liveness};
use lockstep_core::spec::LEASE_MS_DEFAULT;
use lockstep_core::time::Time;
use lockstep_core::world::{Happened, World};

#[derive(Debug, Clone, PartialEq, Eq, Hash, Default)]
pub(crate) struct GraceIsGiven {
    /// When the record that began the present reign was durable, while a lease has not passed since.
    began: Option<Time>,
    /// The lease that the spec says, in milliseconds.
    lease_ms: Option<u64>,
    /// Without that, the one that the reign has brought.
    default_ms: Option<u64>,
}

impl GraceIsGiven {
    fn lease_ms(&self) -> u64 {
        self.lease_ms.or(self.default_ms).unwrap_or(LEASE_MS_DEFAULT)
    }
}

impl Invariant for GraceIsGiven {
    const NAME: &'static str = "10 grace-is-given";

    fn happened(&mut self, world: &World, what: &Happened) -> Verdict {
        let Happened::Recorded { record, .. } = what else { return Ok(()) };
        if let Body::Reign { lease_ms, .. } = &record.body {
            self.default_ms = *lease_ms;
            self.began = Some(world.now());
        }
        if let Body::Spec { spec, .. } = &record.body {
            self.lease_ms = spec.lease_ms;
        }
        if let Body::Host { host, change: HostChange::Liveness { liveness: Liveness::Lost } } = &record.body
            && let Some(began) = self.began.filter(|began| world.now().since(*began) < self.lease_ms())
        {
            let (lease_ms, after_ms) = (self.lease_ms(), world.now().since(began));
            return Err(format!(
                "{host} is given up {after_ms} ms after a server has begun, its lease is {lease_ms} ms"
            ));
        }
        Ok(())
    }

    fn look(&mut self, world: &World) -> Verdict {
        let lease_ms = self.lease_ms();
        self.began = self.began.filter(|began| world.now().since(*began) < lease_ms);
        Ok(())
    }
}
