//! Names of keys and what their values are made of. Every value ends with a checksum over its key's name and all that
//! comes before: what was damaged, or belongs under another name, is refused. `docs/etcd-keys.md` tells operators.

use crate::store::{Candidate, Entry, Error, Leader};
use lockstep_core::id::{Index, Reign};
use lockstep_core::log;
use serde::{Deserialize, Serialize};
use std::str::FromStr;

/// The form of what is stored. What an older program would misread needs a new one, which that program then refuses.
pub(super) const FORMAT: u64 = 1;
/// A batch is one value up to so many bytes, and else chunks. A page of a read has up to 64 values, so this times 64
/// is what a read may have to hold in memory.
pub(super) const INLINE_BYTES_MAX: usize = 512 << 10;
/// How large a chunk is: with its key it stays under 1 MiB, and a request under the 1.5 MiB that etcd takes.
pub(super) const CHUNK_BYTES: usize = 960 << 10;
const SUM_LEN: usize = 4;

/// The names below one prefix, which ends in a slash.
#[derive(Debug, Clone)]
pub(super) struct Keys {
    prefix: String,
}

impl Keys {
    pub(super) fn new(prefix: &str) -> Self {
        Keys { prefix: prefix.to_owned() }
    }
    pub(super) fn all(&self) -> &str {
        &self.prefix
    }
    /// Who reigns; leased. Its modification's revision is the fence of all that is written.
    pub(super) fn leader(&self) -> String {
        self.named("leader")
    }
    /// The last reign that was given; never deleted.
    pub(super) fn reign(&self) -> String {
        self.named("reign")
    }
    /// The last index that was given.
    pub(super) fn head(&self) -> String {
        self.named("head")
    }
    /// All batches in one hash, as [`super::history`] has it.
    pub(super) fn chain(&self) -> String {
        self.named("chain")
    }
    /// The first index that can still be read.
    pub(super) fn floor(&self) -> String {
        self.named("floor")
    }
    pub(super) fn format(&self) -> String {
        self.named("format")
    }
    /// There while a migration writes here.
    pub(super) fn migrating(&self) -> String {
        self.named("migrating")
    }
    /// There once a migration has taken all of it elsewhere.
    pub(super) fn migrated(&self) -> String {
        self.named("migrated")
    }
    /// The same below each prefix that this one lies within.
    pub(super) fn outer(&self) -> impl Iterator<Item = Keys> {
        // The first slash begins every prefix, and the last one ends this one.
        let slashes = self.prefix.match_indices('/').map(|(at, _)| at + 1);
        let outer = slashes.filter(|end| (2..self.prefix.len()).contains(end));
        outer.map(|end| Keys::new(&self.prefix[..end]))
    }
    /// From where to where nothing lies below the prefix but single keys, and what is none of ours: all of it before a
    /// cluster has begun there.
    pub(super) fn gaps(&self, has_begun: bool) -> Vec<(String, String)> {
        let end = format!("{}0", self.prefix.trim_end_matches('/'));
        if !has_begun {
            return vec![(self.prefix.clone(), end)];
        }
        let many = ["c/", "j/", "snap/"].map(|name| (self.named(name), self.named(&format!("{name}:"))));
        let [(chunks, behind_chunks), (batches, behind_batches), (snapshots, behind_snapshots)] = many;
        vec![
            (self.prefix.clone(), chunks),
            (behind_chunks, batches),
            (behind_batches, snapshots),
            (behind_snapshots, end),
        ]
    }
    /// The batch that begins with this index.
    pub(super) fn batch(&self, first: Index) -> String {
        self.named(&format!("j/{:020}", first.0))
    }
    /// Behind the batch of the highest index.
    pub(super) fn batches_end(&self) -> String {
        self.named("j/:")
    }
    /// A chunk of the batch that begins with this index.
    pub(super) fn chunk(&self, first: Index, number: usize) -> String {
        self.named(&format!("c/{:020}/{number:06}", first.0))
    }
    /// Before all chunks of batches from `first` on.
    pub(super) fn chunks_from(&self, first: Index) -> String {
        self.named(&format!("c/{:020}", first.0))
    }
    pub(super) fn chunks_end(&self) -> String {
        self.named("c/:")
    }
    /// Which snapshot counts.
    pub(super) fn snapshot(&self) -> String {
        self.named("snap/current")
    }
    /// A chunk of the snapshot with this number.
    pub(super) fn snapshot_chunk(&self, number: u64, chunk: usize) -> String {
        self.named(&format!("snap/{number:020}/{chunk:06}"))
    }
    /// Before all chunks of snapshots from this number on.
    pub(super) fn snapshots_from(&self, number: u64) -> String {
        self.named(&format!("snap/{number:020}"))
    }
    /// Behind the chunks of all snapshots.
    pub(super) fn snapshots_end(&self) -> String {
        self.named("snap/:")
    }
    fn named(&self, name: &str) -> String {
        format!("{}{name}", self.prefix)
    }

    /// A value for `key`. The checksum leaves the prefix out, so that all keys can be copied below another one.
    pub(super) fn seal(&self, key: &str, mut body: Vec<u8>) -> Vec<u8> {
        let sum = self.sum(key.as_bytes(), &body);
        body.extend(sum.to_le_bytes());
        body
    }

    /// What was sealed for `key`.
    pub(super) fn open<'a>(&self, key: &[u8], value: &'a [u8]) -> Result<&'a [u8], Error> {
        let (body, sum) =
            value.split_last_chunk::<SUM_LEN>().ok_or_else(|| damaged(key, "it is too short"))?;
        let is_good = u32::from_le_bytes(*sum) == self.sum(key, body);
        if is_good { Ok(body) } else { Err(damaged(key, "it does not match its checksum")) }
    }

    fn sum(&self, key: &[u8], body: &[u8]) -> u32 {
        let name = key.strip_prefix(self.prefix.as_bytes()).unwrap_or(key);
        crc32c::crc32c_append(crc32c::crc32c(name), body)
    }

    pub(super) fn number(&self, key: &str, number: u64) -> Vec<u8> {
        self.seal(key, number.to_string().into_bytes())
    }

    pub(super) fn read_number(&self, key: &[u8], value: &[u8]) -> Result<u64, Error> {
        let body = self.open(key, value)?;
        let number = std::str::from_utf8(body).ok().and_then(|text| u64::from_str(text).ok());
        number.ok_or_else(|| damaged(key, "it is no number"))
    }

    pub(super) fn json(&self, key: &str, value: &impl Serialize) -> Vec<u8> {
        self.seal(key, serde_json::to_vec(value).expect("plain data"))
    }

    pub(super) fn read_json<'a, T: Deserialize<'a>>(&self, key: &[u8], value: &'a [u8]) -> Result<T, Error> {
        let body = self.open(key, value)?;
        serde_json::from_slice(body).map_err(|_| damaged(key, "it is not what belongs there"))
    }
}

pub(super) fn damaged(key: &[u8], what: &str) -> Error {
    Error::Damaged { place: format!("etcd key {}", String::from_utf8_lossy(key)), what: what.to_owned() }
}

/// The value of `leader`.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct StoredLeader {
    name: String,
    url: String,
    reign: u64,
}

impl StoredLeader {
    pub(super) fn new(Candidate { name, url }: &Candidate, reign: Reign) -> Self {
        StoredLeader { name: name.clone(), url: url.clone(), reign: reign.0 }
    }
}

impl From<StoredLeader> for Leader {
    fn from(StoredLeader { name, url, reign }: StoredLeader) -> Self {
        Leader { candidate: Candidate { name, url }, reign: Reign(reign) }
    }
}

/// The value of `snap/current`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct StoredSnapshot {
    /// Counts saves, so that no save writes over the chunks of the one that counts.
    pub(super) number: u64,
    pub(super) index: u64,
    pub(super) reign: u64,
    pub(super) bytes: u64,
    pub(super) sum: u32,
}

/// A batch as it is stored: a head, and its payloads beside it or in chunks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Batch {
    pub(super) reign: Reign,
    pub(super) first: Index,
    count: u32,
    pub(super) chunks: u32,
    len: u32,
    sum: u32,
}

const BATCH_LEN: usize = 32;

impl Batch {
    /// The head of a batch, and all its payloads, each behind its length. Errors: it is too large.
    pub(super) fn new(
        reign: Reign,
        first: Index,
        payloads: &[Vec<u8>],
    ) -> Result<(Self, Vec<u8>), log::Error> {
        let bytes = payloads.iter().map(|payload| 4 + payload.len()).sum();
        check_size("batch", bytes, log::BATCH_BYTES_MAX)?;
        let mut body = Vec::with_capacity(bytes);
        for payload in payloads {
            check_size("payload", payload.len(), log::PAYLOAD_BYTES_MAX)?;
            body.extend(length(payload.len()).to_le_bytes());
            body.extend(payload);
        }
        let chunks = if bytes > INLINE_BYTES_MAX { bytes.div_ceil(CHUNK_BYTES) } else { 0 };
        let batch = Batch {
            reign,
            first,
            count: length(payloads.len()),
            chunks: length(chunks),
            len: length(bytes),
            sum: crc32c::crc32c(&body),
        };
        Ok((batch, body))
    }

    pub(super) fn last(&self) -> Index {
        Index(self.first.0 + u64::from(self.count) - 1)
    }

    /// The unsealed value: with the payloads, unless they are in chunks.
    pub(super) fn encode(&self, body: &[u8]) -> Vec<u8> {
        let inline = if self.chunks == 0 { body } else { &[] };
        let mut value = Vec::with_capacity(BATCH_LEN + inline.len() + SUM_LEN);
        value.extend(self.head());
        value.extend(inline);
        value
    }

    /// Its head, which has a checksum of the payloads.
    pub(super) fn head(&self) -> [u8; BATCH_LEN] {
        let mut head = [0; BATCH_LEN];
        head[..8].copy_from_slice(&self.reign.0.to_le_bytes());
        head[8..16].copy_from_slice(&self.first.0.to_le_bytes());
        for (at, number) in [self.count, self.chunks, self.len, self.sum].into_iter().enumerate() {
            head[16 + 4 * at..][..4].copy_from_slice(&number.to_le_bytes());
        }
        head
    }

    /// A batch, and its payloads unless they are in chunks.
    pub(super) fn decode<'a>(key: &[u8], value: &'a [u8]) -> Result<(Self, &'a [u8]), Error> {
        let bad = || damaged(key, "it is no batch");
        let (head, body) = value.split_at_checked(BATCH_LEN).ok_or_else(bad)?;
        let wide = |at: usize| u64::from_le_bytes(head[at..at + 8].try_into().expect("eight bytes"));
        let narrow = |at: usize| u32::from_le_bytes(head[at..at + 4].try_into().expect("four bytes"));
        let batch = Batch {
            reign: Reign(wide(0)),
            first: Index(wide(8)),
            count: narrow(16),
            chunks: narrow(20),
            len: narrow(24),
            sum: narrow(28),
        };
        let ends = batch.first.0.checked_add(u64::from(batch.count));
        if batch.count == 0 || ends.is_none() || batch.len as usize > log::BATCH_BYTES_MAX {
            return Err(bad());
        }
        Ok((batch, body))
    }

    /// Its entries, out of all its payloads.
    pub(super) fn entries(&self, key: &[u8], body: &[u8]) -> Result<Vec<Entry>, Error> {
        if body.len() != self.len as usize || crc32c::crc32c(body) != self.sum {
            return Err(damaged(key, "its payloads do not match its checksum"));
        }
        let mut rest = body;
        let mut entries = Vec::with_capacity(self.count as usize);
        for more in 0..u64::from(self.count) {
            let cut = rest
                .split_first_chunk::<4>()
                .and_then(|(len, behind)| behind.split_at_checked(u32::from_le_bytes(*len) as usize));
            let (payload, behind) = cut.ok_or_else(|| damaged(key, "it is no batch"))?;
            let index = Index(self.first.0 + more);
            entries.push(Entry { index, reign: self.reign, payload: payload.to_vec() });
            rest = behind;
        }
        if rest.is_empty() { Ok(entries) } else { Err(damaged(key, "it is no batch")) }
    }
}

fn check_size(what: &'static str, bytes: usize, bytes_max: usize) -> Result<(), log::Error> {
    if bytes <= bytes_max { Ok(()) } else { Err(log::Error::TooLarge { what, bytes, bytes_max }) }
}

fn length(len: usize) -> u32 {
    u32::try_from(len).expect("it is checked against a limit far below 4 GiB")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_changed_bit_of_a_value_is_served() {
        let keys = Keys::new("/lockstep/");
        let key = keys.batch(Index(7));
        let (batch, body) = Batch::new(Reign(3), Index(7), &[b"one".to_vec(), Vec::new()]).unwrap();
        let value = keys.seal(&key, batch.encode(&body));
        let (read, inline) =
            Batch::decode(key.as_bytes(), keys.open(key.as_bytes(), &value).unwrap()).unwrap();
        assert_eq!((read, read.last()), (batch, Index(8)));
        let entries = read.entries(key.as_bytes(), inline).unwrap();
        assert_eq!(
            entries.iter().map(|entry| entry.payload.as_slice()).collect::<Vec<_>>(),
            [&b"one"[..], b""]
        );
        for bit in 0..value.len() * 8 {
            let mut changed = value.clone();
            changed[bit / 8] ^= 1 << (bit % 8);
            assert!(keys.open(key.as_bytes(), &changed).is_err(), "bit {bit}");
        }
        for len in 0..value.len() {
            assert!(keys.open(key.as_bytes(), &value[..len]).is_err(), "{len} bytes");
        }
        let elsewhere = keys.batch(Index(8));
        assert!(
            keys.open(elsewhere.as_bytes(), &value).is_err(),
            "a value of another key is none of this one"
        );
    }

    #[test]
    fn ranges_hold_what_they_are_for() {
        let keys = Keys::new("/p/");
        assert!(keys.batch(Index(u64::MAX)) < keys.batches_end() && keys.batches_end() < keys.leader());
        assert!(keys.chunk(Index(9), 0) > keys.chunks_from(Index(9)));
        assert!(keys.chunk(Index(9), 999_999) < keys.chunks_from(Index(10)));
        assert!(keys.chunk(Index(u64::MAX), 0) < keys.chunks_end());
        assert!(keys.snapshot_chunk(u64::MAX, 0) < keys.snapshots_end());
        assert!(keys.snapshots_end() < keys.snapshot());
    }
}
