//! The one clock by which everything is stamped: since boot, so no fault moves it.

use rustix::time::{ClockId, clock_gettime};
use serde::{Deserialize, Serialize};
use std::fmt;

/// Microseconds since the machine's boot, the same in every process and namespace.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default, Serialize, Deserialize)]
#[serde(transparent)]
pub(crate) struct Stamp(pub(crate) u64);

impl Stamp {
    pub(crate) fn now() -> Self {
        let clock = clock_gettime(ClockId::Boottime);
        let us = clock.tv_sec * 1_000_000 + clock.tv_nsec / 1000;
        Self(u64::try_from(us).expect("the time since boot is not negative"))
    }

    pub(crate) fn plus_ms(self, ms: u64) -> Self {
        Self(self.0 + ms * 1000)
    }

    pub(crate) fn minus_ms(self, ms: u64) -> Self {
        Self(self.0.saturating_sub(ms * 1000))
    }

    /// Milliseconds since an earlier stamp; 0 when it is a later one.
    pub(crate) fn ms_since(self, earlier: Self) -> u64 {
        self.0.saturating_sub(earlier.0) / 1000
    }
}

impl fmt::Display for Stamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{:06}", self.0 / 1_000_000, self.0 % 1_000_000)
    }
}
