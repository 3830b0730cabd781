//! Bytes of the log file: its header, its frames, and the judgement of what follows the last good frame.

use super::{BATCH_BYTES_MAX, FORMAT_VERSION};
use crate::id::{Index, Reign};
use crate::mutant::{self, Mutant};

/// Length of the header. Frames begin here.
pub(super) const HEADER_LEN: usize = 64;
/// Frames begin and end at multiples of this, so that no frame's head or tail lies across two blocks.
const ALIGN: usize = 8;
/// Length and checksum before the body.
const HEAD_LEN: usize = 8;
/// The same, inverted and in reverse order, behind it.
const TAIL_LEN: usize = 8;
/// What a power cut leaves whole: the smallest block that disks write in one piece.
const BLOCK: usize = 512;
/// Reign, first index and count, before the payloads.
const BODY_HEAD_LEN: usize = 20;
const MAGIC: &[u8; 8] = b"lockslog";

/// What a log file says of itself before its first frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Header {
    /// Every entry below it may be gone.
    pub floor: Index,
    /// The last index when the file was made.
    pub head: Index,
    /// The reign when the file was made.
    pub reign: Reign,
}

/// Why a header was refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum BadHeader {
    /// Made by a program that knows a later format.
    Version(u32),
    /// Not a header, or a damaged one.
    Damaged,
}

impl Header {
    pub(super) fn encode(self) -> [u8; HEADER_LEN] {
        let mut bytes = [0; HEADER_LEN];
        bytes[..8].copy_from_slice(MAGIC);
        bytes[8..12].copy_from_slice(&FORMAT_VERSION.to_le_bytes());
        bytes[16..24].copy_from_slice(&self.floor.0.to_le_bytes());
        bytes[24..32].copy_from_slice(&self.head.0.to_le_bytes());
        bytes[32..40].copy_from_slice(&self.reign.0.to_le_bytes());
        let sum = crc32c::crc32c(&bytes[..60]);
        bytes[60..].copy_from_slice(&sum.to_le_bytes());
        bytes
    }

    pub(super) fn decode(bytes: &[u8]) -> Result<Header, BadHeader> {
        let whole = bytes.len() >= HEADER_LEN
            && &bytes[..8] == MAGIC
            && u32_at(bytes, 60) == crc32c::crc32c(&bytes[..60]);
        if !whole {
            return Err(BadHeader::Damaged);
        }
        match u32_at(bytes, 8) {
            FORMAT_VERSION => Ok(Header {
                floor: Index(u64_at(bytes, 16)),
                head: Index(u64_at(bytes, 24)),
                reign: Reign(u64_at(bytes, 32)),
            }),
            other => Err(BadHeader::Version(other)),
        }
    }
}

/// One batch as it lies in the file. A batch without payloads only raises the reign.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Frame<'a> {
    pub reign: Reign,
    /// Index of the first payload; in a batch without any, the head at that time.
    pub first: Index,
    pub count: u32,
    /// Everything between the frame's head and its padding.
    pub body: &'a [u8],
    /// Length of the whole frame in the file.
    pub len: usize,
}

impl Frame<'_> {
    /// The index of the last payload, if there is any.
    pub(super) fn last(&self) -> Option<Index> {
        let more = u64::from(self.count).checked_sub(1)?;
        Some(Index(self.first.0 + more))
    }

    /// The payloads in order.
    pub(super) fn payloads(&self) -> impl Iterator<Item = &[u8]> {
        let mut rest = &self.body[BODY_HEAD_LEN..];
        (0..self.count).map(move |_| {
            let (payload, behind) = rest[4..].split_at(u32_at(rest, 0) as usize);
            rest = behind;
            payload
        })
    }
}

/// How long the body of a batch with these payloads is.
pub(super) fn body_len<P: AsRef<[u8]>>(batch: &[P]) -> usize {
    BODY_HEAD_LEN + batch.iter().map(|payload| 4 + payload.as_ref().len()).sum::<usize>()
}

/// The body of a frame; payloads are within the limits.
pub(super) fn body<P: AsRef<[u8]>>(reign: Reign, first: Index, batch: &[P]) -> Vec<u8> {
    let mut body = Vec::with_capacity(body_len(batch));
    body.extend(reign.0.to_le_bytes());
    body.extend(first.0.to_le_bytes());
    body.extend(length(batch.len()).to_le_bytes());
    for payload in batch {
        body.extend(length(payload.as_ref().len()).to_le_bytes());
        body.extend(payload.as_ref());
    }
    body
}

/// The frame around `body` at `offset` of the file.
pub(super) fn seal(offset: u64, body: &[u8]) -> Vec<u8> {
    let len = length(body.len());
    let padded = body.len().next_multiple_of(ALIGN);
    let mut frame = Vec::with_capacity(HEAD_LEN + padded + TAIL_LEN);
    frame.extend(len.to_le_bytes());
    frame.extend([0; 4]);
    frame.extend(body);
    frame.resize(HEAD_LEN + padded, 0);
    let sum = checksum(offset, len, &frame[HEAD_LEN..]);
    frame[4..HEAD_LEN].copy_from_slice(&sum.to_le_bytes());
    frame.extend((!sum).to_le_bytes());
    frame.extend((!len).to_le_bytes());
    frame
}

/// The frame at the start of `bytes`, which lie at `offset` of the file; `None` unless it is whole and unchanged.
pub(super) fn open(offset: u64, bytes: &[u8]) -> Option<Frame<'_>> {
    let size = framed(bytes)?;
    let bytes = bytes.get(..size)?;
    let (len, sum) = (u32_at(bytes, 0), u32_at(bytes, 4));
    let is_checked = !mutant::is(Mutant::TornTailAccepted);
    if is_checked && (u32_at(bytes, size - 8) != !sum || u32_at(bytes, size - 4) != !len) {
        return None;
    }
    if is_checked && checksum(offset, len, &bytes[HEAD_LEN..size - TAIL_LEN]) != sum {
        return None;
    }
    let body = &bytes[HEAD_LEN..HEAD_LEN + len as usize];
    let count = u32_at(body, 16);
    let frame =
        Frame { reign: Reign(u64_at(body, 0)), first: Index(u64_at(body, 8)), count, body, len: size };
    well_formed(&frame).then_some(frame)
}

/// Where the frame that begins with `bytes` ends, by the length in its head.
fn framed(bytes: &[u8]) -> Option<usize> {
    if bytes.len() < HEAD_LEN {
        return None;
    }
    let len = u32_at(bytes, 0) as usize;
    let sane = (BODY_HEAD_LEN..=BATCH_BYTES_MAX).contains(&len);
    sane.then(|| HEAD_LEN + len.next_multiple_of(ALIGN) + TAIL_LEN)
}

/// A checksum proves that we wrote it, not that what wrote it was right: lengths are checked before use.
fn well_formed(frame: &Frame<'_>) -> bool {
    let mut rest = &frame.body[BODY_HEAD_LEN..];
    for _ in 0..frame.count {
        if rest.len() < 4 || rest.len() - 4 < u32_at(rest, 0) as usize {
            return false;
        }
        rest = &rest[4 + u32_at(rest, 0) as usize..];
    }
    rest.is_empty() && frame.first.0.checked_add(u64::from(frame.count)).is_some()
}

/// What the file holds from `offset` on, when no good frame starts there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Rest {
    /// Zeros: the log ends here.
    Nothing,
    /// A write that never finished: it was never acknowledged and is cut.
    Torn,
    /// A frame that was whole once: it may have been acknowledged.
    Damaged(&'static str),
}

/// Tells the end of the log from a torn write and both from damage; [`super`] has the reasons.
pub(super) fn judge(file: &[u8], offset: usize) -> Rest {
    let end = written_end(file);
    if end <= offset {
        return Rest::Nothing;
    }
    let mut later = (offset + ALIGN..end).step_by(ALIGN);
    if later.any(|at| open(at as u64, &file[at..]).is_some()) {
        return Rest::Damaged("good records follow it");
    }
    if was_whole(file, offset, end) { Rest::Damaged("all of it was written once") } else { Rest::Torn }
}

/// The place behind the last byte that is not zero. Most of a file may be preallocated, so whole blocks are compared
/// before bytes are.
fn written_end(file: &[u8]) -> usize {
    const ZEROS: [u8; 8 * BLOCK] = [0; 8 * BLOCK];
    let zeros: usize =
        file.rchunks(ZEROS.len()).take_while(|chunk| **chunk == ZEROS[..chunk.len()]).map(<[u8]>::len).sum();
    let rest = &file[..file.len() - zeros];
    rest.iter().rposition(|&byte| byte != 0).map_or(0, |last| last + 1)
}

/// Whether the frame's head or its tail says that it ends before `end`, behind the last byte that is not zero, and all
/// of it up to there was written. What lies behind it may be a frame that was cut short, and tells nothing of this one.
fn was_whole(file: &[u8], offset: usize, end: usize) -> bool {
    let by_head = framed(&file[offset..end]).map(|size| offset + size).filter(|&own_end| own_end <= end);
    let ends = (offset + HEAD_LEN + TAIL_LEN..=end).step_by(ALIGN);
    let by_tail = ends.filter(|&own_end| {
        let len = (!u32_at(file, own_end - 4) as usize).next_multiple_of(ALIGN);
        offset + HEAD_LEN + len + TAIL_LEN == own_end
    });
    by_head.into_iter().chain(by_tail).any(|own_end| !has_hole(file, offset, own_end))
}

/// Whether a block between `offset` and `end` is still as zero as it was preallocated.
fn has_hole(file: &[u8], offset: usize, end: usize) -> bool {
    let mut from = offset;
    while from < end {
        let to = end.min((from / BLOCK + 1) * BLOCK);
        if file[from..to].iter().all(|&byte| byte == 0) {
            return true;
        }
        from = to;
    }
    false
}

/// Covers the place in the file too: bytes of a frame that turn up elsewhere are no frame.
fn checksum(offset: u64, len: u32, padded: &[u8]) -> u32 {
    let sum = crc32c::crc32c(&offset.to_le_bytes());
    let sum = crc32c::crc32c_append(sum, &len.to_le_bytes());
    crc32c::crc32c_append(sum, padded)
}

fn length(len: usize) -> u32 {
    u32::try_from(len).expect("a batch is checked against its limit, far below 4 GiB, before it is encoded")
}

pub(super) fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(bytes[at..at + 4].try_into().expect("four bytes"))
}

pub(super) fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(bytes[at..at + 8].try_into().expect("eight bytes"))
}
