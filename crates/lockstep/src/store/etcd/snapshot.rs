//! Snapshots in etcd, and the compaction that they allow.

use super::client::{ANSWER, BULK_ANSWER, Trouble, get, only, present, range};
use super::key::{CHUNK_BYTES, StoredSnapshot, damaged};
use super::{Fence, Shared, TRIES_MAX};
use crate::store::{Error, Fenced, Snapshot};
use etcd_client::{Compare, CompareOp, GetOptions, SortOrder, SortTarget, Txn, TxnOp};
use lockstep_core::id::{Index, Reign};
use lockstep_core::log::{self, SNAPSHOT_BYTES_MAX};
use tracing::debug;

/// How many chunks one request reads: a few megabytes.
const CHUNKS_READ: i64 = 8;
const NO_HEAD: Index = Index(0);

/// What there is, as a save or a compaction finds it.
pub(super) struct Found {
    /// The snapshot that counts.
    snapshot: Option<StoredSnapshot>,
    /// The revision since when.
    since: i64,
    head: Index,
}

impl Shared {
    /// What there is. `None` when the reign has ended.
    pub(super) async fn snapshots(&self, fence: Fence) -> Result<Option<Found>, Trouble> {
        let keys = &self.keys;
        let gets = [keys.leader(), keys.snapshot(), keys.head()].map(get).to_vec();
        let answer = self.cluster.read("read which snapshot counts", gets).await?;
        if only(answer.found(0)).is_none_or(|found| Fence::of(found) != fence) {
            return Ok(None);
        }
        let head = Index(self.number(present(answer.found(2), &keys.head())?)?);
        let Some(found) = only(answer.found(1)) else {
            return Ok(Some(Found { snapshot: None, since: 0, head }));
        };
        let snapshot = Some(keys.read_json(found.key(), found.value())?);
        Ok(Some(Found { snapshot, since: found.mod_revision(), head }))
    }

    /// Writes the chunks of a snapshot, makes it the one that counts, and deletes all others.
    pub(super) async fn save_snapshot(
        &self,
        fence: Fence,
        reign: Reign,
        index: Index,
        bytes: &[u8],
    ) -> Result<Fenced, Trouble> {
        match self.snapshots(fence).await? {
            Some(found) => self.save_after(found, fence, reign, index, bytes).await,
            None => Ok(Fenced::Deposed),
        }
    }

    /// A save, after what was found while the reign held. It may have ended since: each write asks for it.
    pub(super) async fn save_after(
        &self,
        Found { snapshot, since, head }: Found,
        fence: Fence,
        reign: Reign,
        index: Index,
        bytes: &[u8],
    ) -> Result<Fenced, Trouble> {
        let keys = &self.keys;
        let refused = |error| Err(Trouble::Known(Error::Refused(error)));
        let newest = snapshot.as_ref().map_or(NO_HEAD, |snapshot| Index(snapshot.index));
        if index > head || index < newest {
            return refused(log::Error::SnapshotIndex { given: index, newest, head });
        }
        if bytes.len() > SNAPSHOT_BYTES_MAX {
            let (bytes, bytes_max) = (bytes.len(), SNAPSHOT_BYTES_MAX);
            return refused(log::Error::TooLarge { what: "snapshot", bytes, bytes_max });
        }
        let number = snapshot.map_or(1, |snapshot| snapshot.number + 1);
        // What a save that broke off has left is in the way of nothing, but takes room.
        if self.delete_snapshots(fence, number - 1).await? == Fenced::Deposed {
            return Ok(Fenced::Deposed);
        }
        for (chunk, bytes) in bytes.chunks(CHUNK_BYTES).enumerate() {
            let put = self.put(keys.snapshot_chunk(number, chunk), bytes.to_vec());
            if self.fenced(fence, BULK_ANSWER, vec![put]).await?.0 == Fenced::Deposed {
                return Ok(Fenced::Deposed);
            }
        }
        let stored = StoredSnapshot {
            number,
            index: index.0,
            reign: reign.0,
            bytes: bytes.len() as u64,
            sum: crc32c::crc32c(bytes),
        };
        let key = keys.snapshot();
        let is_expected = Compare::mod_revision(key.clone(), CompareOp::Equal, since);
        let put = TxnOp::put(key.clone(), keys.json(&key, &stored), None);
        let mut holds = self.holds(fence);
        holds.push(is_expected);
        let txn = Txn::new().when(holds).and_then([put]);
        if !self.cluster.txn(ANSWER, txn).await?.is_done {
            // Only who reigns writes it, one snapshot at a time: it was the reign that did not hold.
            return Ok(Fenced::Deposed);
        }
        self.delete_snapshots(fence, number).await
    }

    /// Deletes the chunks of all snapshots but this one.
    async fn delete_snapshots(&self, fence: Fence, kept: u64) -> Result<Fenced, Trouble> {
        let keys = &self.keys;
        if self.delete(fence, keys.snapshots_from(0), keys.snapshots_from(kept)).await? == Fenced::Deposed {
            return Ok(Fenced::Deposed);
        }
        self.delete(fence, keys.snapshots_from(kept + 1), keys.snapshots_end()).await
    }

    pub(super) async fn load_snapshot(&self) -> Result<Option<Snapshot>, Error> {
        let key = self.keys.snapshot();
        for _ in 0..TRIES_MAX {
            let answer = self.cluster.read("read its snapshot", vec![get(key.clone())]).await?;
            let Some(found) = only(answer.found(0)) else { return Ok(None) };
            let stored: StoredSnapshot = self.keys.read_json(found.key(), found.value())?;
            // A chunk is missing while a newer snapshot takes this one's place: that one is read then.
            let Some(bytes) = self.snapshot_chunks(&stored).await? else { continue };
            if bytes.len() as u64 != stored.bytes || crc32c::crc32c(&bytes) != stored.sum {
                return Err(damaged(found.key(), "the snapshot does not match its checksum"));
            }
            let (index, reign) = (Index(stored.index), Reign(stored.reign));
            return Ok(Some(Snapshot { index, reign, bytes }));
        }
        Err(damaged(key.as_bytes(), "a chunk of the snapshot is missing"))
    }

    async fn snapshot_chunks(&self, stored: &StoredSnapshot) -> Result<Option<Vec<u8>>, Error> {
        let (keys, number) = (&self.keys, stored.number);
        let count = usize::try_from(stored.bytes).unwrap_or(usize::MAX).div_ceil(CHUNK_BYTES);
        let mut bytes = Vec::new();
        let mut next = 0;
        while next < count {
            let options = GetOptions::new().with_limit(CHUNKS_READ);
            let chunks = range(keys.snapshot_chunk(number, next), keys.snapshots_from(number + 1), options);
            let answer = self.cluster.read("read its snapshot", vec![chunks]).await?;
            if answer.found(0).is_empty() {
                return Ok(None);
            }
            for found in answer.found(0) {
                if found.key() != keys.snapshot_chunk(number, next).as_bytes() {
                    return Ok(None);
                }
                bytes.extend(keys.open(found.key(), found.value())?);
                next += 1;
            }
        }
        Ok(Some(bytes))
    }

    /// Raises the floor as far as the snapshot allows, deletes what is below it, and lets etcd forget what was before
    /// the floor was raised last.
    pub(super) async fn compact(&self, fence: Fence, before: Index) -> Result<Fenced, Trouble> {
        match self.snapshots(fence).await? {
            Some(found) => self.compact_after(found, fence, before).await,
            None => Ok(Fenced::Deposed),
        }
    }

    /// A compaction, likewise after what was found.
    pub(super) async fn compact_after(
        &self,
        Found { snapshot, head, .. }: Found,
        fence: Fence,
        before: Index,
    ) -> Result<Fenced, Trouble> {
        let keys = &self.keys;
        let covered = snapshot.map_or(NO_HEAD, |snapshot| Index(snapshot.index));
        let wanted = Index(before.0.min(covered.0 + 1));
        // Batches go whole: the one that has the wanted index stays.
        let up_to =
            GetOptions::new().with_sort(SortTarget::Key, SortOrder::Descend).with_limit(1).with_keys_only();
        let batch = range(keys.batch(Index(0)), keys.batch(Index(wanted.0 + 1)), up_to);
        let answer = self.cluster.read("read its floor", vec![batch, get(keys.floor())]).await?;
        let (old, since) = match only(answer.found(1)) {
            Some(found) => (self.number(found)?, found.mod_revision()),
            None => (1, 0),
        };
        let kept = only(answer.found(0)).filter(|_| wanted <= head);
        let floor = match kept {
            Some(found) => {
                let digits = found.key().rsplit(|byte| *byte == b'/').next().unwrap_or_default();
                let first = std::str::from_utf8(digits).ok().and_then(|digits| digits.parse().ok());
                first.ok_or_else(|| damaged(found.key(), "it is no batch's key"))?
            }
            None => wanted.0,
        };
        if floor > old {
            let put = self.put_number(keys.floor(), floor);
            if self.fenced(fence, ANSWER, vec![put]).await?.0 == Fenced::Deposed {
                return Ok(Fenced::Deposed);
            }
        }
        // Also what an earlier compaction was kept from deleting.
        let floor = Index(floor.max(old));
        for (from, to) in
            [(keys.batch(Index(0)), keys.batch(floor)), (keys.chunks_from(Index(0)), keys.chunks_from(floor))]
        {
            if self.delete(fence, from, to).await? == Fenced::Deposed {
                return Ok(Fenced::Deposed);
            }
        }
        if floor.0 > old && since > 0 {
            // Somebody else may see to it, or this user may not: the journal is compacted either way.
            if let Err(trouble) = self.cluster.forget(since).await {
                debug!(?trouble, "etcd keeps what was before; let it compact by itself");
            }
        }
        Ok(Fenced::Held)
    }
}
