//! Bytes of a snapshot file.

use super::FORMAT_VERSION;
use super::frame::{u32_at, u64_at};
use crate::id::{Index, Reign};

const HEADER_LEN: usize = 64;
const MAGIC: &[u8; 8] = b"lockssnp";

/// State as of an index, in place of all entries up to it.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Snapshot {
    /// The last entry that it covers.
    pub index: Index,
    /// The log's reign when it was saved.
    pub reign: Reign,
    /// What was saved.
    pub bytes: Vec<u8>,
}

/// Which snapshot a slot holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Slot {
    /// Counts saves: the higher one is newer.
    pub number: u64,
    pub index: Index,
    pub reign: Reign,
}

pub(super) fn encode(slot: Slot, bytes: &[u8]) -> Vec<u8> {
    let mut file = Vec::with_capacity(HEADER_LEN + bytes.len());
    file.extend(MAGIC);
    file.extend(FORMAT_VERSION.to_le_bytes());
    file.extend(crc32c::crc32c(bytes).to_le_bytes());
    for number in [slot.number, slot.index.0, slot.reign.0, bytes.len() as u64] {
        file.extend(number.to_le_bytes());
    }
    file.resize(HEADER_LEN - 4, 0);
    file.extend(crc32c::crc32c(&file).to_le_bytes());
    file.extend(bytes);
    file
}

/// The snapshot in a file; `None` unless it is whole and unchanged.
pub(super) fn decode(mut file: Vec<u8>) -> Option<(Slot, Vec<u8>)> {
    if file.len() < HEADER_LEN || &file[..8] != MAGIC || u32_at(&file, 8) != FORMAT_VERSION {
        return None;
    }
    if u32_at(&file, HEADER_LEN - 4) != crc32c::crc32c(&file[..HEADER_LEN - 4]) {
        return None;
    }
    let slot =
        Slot { number: u64_at(&file, 16), index: Index(u64_at(&file, 24)), reign: Reign(u64_at(&file, 32)) };
    let (len, sum) = (u64_at(&file, 40), u32_at(&file, 12));
    let bytes = file.split_off(HEADER_LEN);
    (bytes.len() as u64 == len && crc32c::crc32c(&bytes) == sum).then_some((slot, bytes))
}
