//! Leases: how long a host may act without having been heard, as its server and its agent reckon it. Each counts by its
//! own clock, and the holder stops first.

use crate::time::Time;

/// A host counts as lost 1.05 leases after it was last heard of; in milliseconds. The clocks of a server and an agent may
/// run at rates that differ by so much.
pub(crate) fn lost_after_ms(lease_ms: u64) -> u64 {
    lease_ms + lease_ms / 20
}

/// When a host was last heard of, and the lease that it knows of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct Heard {
    at: Time,
    lease_ms: u64,
    /// It may not have heard of a shorter lease yet, and keep the longer one until then.
    not_before: Time,
}

impl Heard {
    pub(crate) fn new(at: Time, lease_ms: u64) -> Self {
        Self { at, lease_ms, not_before: at }
    }

    /// It is heard of now.
    pub(crate) fn again(&mut self, now: Time) {
        self.at = now;
    }

    /// It is going to be told a lease of this length. Tells whether that is another one than it was told last.
    pub(crate) fn tell(&mut self, now: Time, lease_ms: u64) -> bool {
        let is_other = self.lease_ms != lease_ms;
        // What it is told may be lost: what it was told before counts until that has run out.
        if lease_ms < self.lease_ms {
            self.not_before = self.lost_at(lease_ms);
        }
        (self.at, self.lease_ms) = (now, lease_ms);
        is_other
    }

    /// It asks for its lease to go on, and says by which it goes.
    pub(crate) fn goes_by(&mut self, now: Time, lease_ms: u64) {
        if lease_ms <= self.lease_ms {
            self.not_before = now;
        }
    }

    /// Time in which nobody could have been heard does not count.
    pub(crate) fn postpone(&mut self, ms: u64) {
        self.at = self.at.plus(ms);
        self.not_before = self.not_before.plus(ms);
    }

    /// Whether the host goes by no longer lease than this one, or by none any more.
    pub(crate) fn has_shortened(self, now: Time, lease_ms: u64) -> bool {
        (self.lease_ms <= lease_ms && self.not_before <= now) || self.lost_at(lease_ms) <= now
    }

    /// When it is late, if nothing more is heard: it renews its lease every third of it, and has missed one whole turn by then.
    pub(crate) fn late_at(self, lease_ms: u64) -> Time {
        self.at.plus(self.lease_ms.max(lease_ms) * 2 / 3)
    }

    /// When the host is lost, if nothing more is heard: its own lease counts, if that is longer than the one in force.
    pub(crate) fn lost_at(self, lease_ms: u64) -> Time {
        let lease_ms = self.lease_ms.max(lease_ms);
        self.at.plus(lost_after_ms(lease_ms)).max(self.not_before)
    }
}

/// A host's lease, as its agent knows it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct Held {
    /// When it ends, counted from the sending of the renewal that was answered last.
    pub(crate) until: Time,
    /// How long before its end members are to be stopped, in milliseconds.
    margin_ms: u64,
    /// Its length, in milliseconds; none: it is not known, because it is of before the agent started.
    pub(crate) lease_ms: Option<u64>,
}

impl Held {
    /// One that ends then, as somebody else remembers.
    pub(crate) fn until(until: Time) -> Self {
        Self { until, margin_ms: 0, lease_ms: None }
    }

    /// A renewal that was sent then has been answered. A guard acts so much before the end.
    pub(crate) fn renewed(sent: Time, lease_ms: u64, early_ms: u64) -> Self {
        let margin_ms = lease_ms / 10 + early_ms;
        Self { until: sent.plus(lease_ms), margin_ms, lease_ms: Some(lease_ms) }
    }

    /// From then on nothing may begin that needs the lease, and what runs by it is stopped.
    pub(crate) fn stops_at(self) -> Time {
        Time(self.until.0.saturating_sub(self.margin_ms))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_holder_stops_first() {
        for (lease_ms, delay_ms) in [(3000, 0), (3000, 700), (300, 20), (600_000, 3)] {
            let held = Held::renewed(Time(1000), lease_ms, 0);
            let mut heard = Heard::new(Time(0), lease_ms);
            heard.tell(Time(1000 + delay_ms), lease_ms);
            assert!(held.stops_at() < held.until && held.until < heard.lost_at(lease_ms));
        }
    }

    #[test]
    fn a_longer_lease_counts_until_it_has_run_out_or_the_host_goes_by_a_shorter_one() {
        let mut heard = Heard::new(Time(0), 60_000);
        assert!(heard.tell(Time(10_000), 3000));
        assert_eq!(heard.lost_at(3000), Time(63_000), "it may not have heard of the shorter one");
        assert!(!heard.tell(Time(11_000), 3000));
        assert_eq!(heard.lost_at(3000), Time(63_000));
        heard.goes_by(Time(12_000), 60_000);
        assert_eq!(heard.lost_at(3000), Time(63_000));
        assert!(!heard.has_shortened(Time(12_000), 3000) && heard.has_shortened(Time(63_000), 3000));
        heard.goes_by(Time(12_000), 3000);
        heard.again(Time(12_000));
        assert!(heard.has_shortened(Time(12_000), 3000));
        assert_eq!(heard.lost_at(3000), Time(15_150));
        assert!(heard.tell(Time(13_000), 60_000), "a longer one counts at once");
        assert_eq!(heard.lost_at(3000), Time(76_000));
    }
}
