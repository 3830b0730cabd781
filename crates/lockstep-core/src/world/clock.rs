//! Clocks that run at rates of their own.

use crate::time::Time;

/// A host's clock, as seen from the world's.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct Clock {
    /// The world's time at which it read `reading`, and since which it has run at its present rate.
    since: Time,
    reading: Time,
    /// How much faster than the world's it runs, in millionths.
    rate_ppm: i32,
}

impl Clock {
    /// A clock that begins to count now.
    pub fn booted(now: Time) -> Self {
        Self { since: now, reading: Time(1), rate_ppm: 0 }
    }

    /// What it reads at a moment of the world.
    pub fn read(self, now: Time) -> Time {
        let passed = u128::from(now.since(self.since)) * self.rate() / MILLION;
        self.reading.plus(u64::try_from(passed).unwrap_or(u64::MAX))
    }

    /// The first moment of the world at which it reads so late.
    pub fn when(self, reading: Time) -> Time {
        let left = (u128::from(reading.since(self.reading)) * MILLION).div_ceil(self.rate());
        self.since.plus(u64::try_from(left).unwrap_or(u64::MAX))
    }

    /// Goes on at another rate.
    pub fn drift(&mut self, now: Time, rate_ppm: i32) {
        *self = Self { since: now, reading: self.read(now), rate_ppm };
    }

    fn rate(self) -> u128 {
        u128::try_from(1_000_000 + i64::from(self.rate_ppm)).expect("clocks do not run backwards").max(1)
    }
}

const MILLION: u128 = 1_000_000;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_deadline_is_reached_when_the_clock_says_so() {
        for rate_ppm in [-50_000, -1, 0, 1, 50_000] {
            let mut clock = Clock::booted(Time(1000));
            clock.drift(Time(5000), rate_ppm);
            for reading in [4002, 5000, 1_000_003, 77_777_777] {
                let at = clock.when(Time(reading));
                assert!(clock.read(at) >= Time(reading), "{rate_ppm} {reading}");
                assert!(clock.read(Time(at.0 - 1)) < Time(reading), "{rate_ppm} {reading}");
            }
        }
    }
}
