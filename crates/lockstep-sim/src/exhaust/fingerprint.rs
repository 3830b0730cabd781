//! 128 bits that stand for a state.
//!
//! Two lanes, each a multiply-and-fold over all that a state's `Hash` writes, with odd constants of their own. Nobody
//! picks states to collide here, so speed is what counts: of a million states, two different ones have the same
//! fingerprint with odds of about 10^12 / 2^129, or 1 in 10^26. A collision would hide a state, never invent one.

use std::hash::{Hash, Hasher};

/// The fractions of the golden ratio and of the square root of 3, made odd.
const LANES: [u64; 2] = [0x9e37_79b9_7f4a_7c15, 0xbb67_ae85_84ca_a73b];

/// The fingerprint of something.
pub(super) fn of(state: &impl Hash) -> u128 {
    let mut lanes = Lanes(LANES);
    state.hash(&mut lanes);
    let [a, b] = lanes.0;
    u128::from(a) << 64 | u128::from(b)
}

struct Lanes([u64; 2]);

impl Hasher for Lanes {
    fn write(&mut self, bytes: &[u8]) {
        for chunk in bytes.chunks(8) {
            let mut word = [0; 8];
            word[..chunk.len()].copy_from_slice(chunk);
            self.write_u64(u64::from_le_bytes(word));
        }
    }

    fn write_u64(&mut self, word: u64) {
        for (lane, constant) in self.0.iter_mut().zip(LANES) {
            let product = u128::from(*lane ^ word) * u128::from(constant);
            // The lane goes in again, or two zeros in a row could wipe out what was before.
            *lane = lane.rotate_left(23).wrapping_add((product >> 64) as u64 ^ product as u64);
        }
    }

    fn write_u8(&mut self, byte: u8) {
        self.write_u64(byte.into());
    }

    fn write_u32(&mut self, word: u32) {
        self.write_u64(word.into());
    }

    fn write_usize(&mut self, word: usize) {
        self.write_u64(word as u64);
    }

    fn finish(&self) -> u64 {
        self.0[0] ^ self.0[1]
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn neighbours_differ_in_both_lanes() {
        let mut seen = [BTreeSet::new(), BTreeSet::new()];
        for number in 0..100_000_u64 {
            let print = of(&(0_u64, number, "text", number % 7));
            seen[0].insert((print >> 64) as u64);
            seen[1].insert(print as u64);
        }
        assert_eq!(seen.map(|lane| lane.len()), [100_000, 100_000]);
    }
}
