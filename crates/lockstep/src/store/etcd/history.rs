//! Which history this process has seen. An etcd whose data was set back to an older copy, under running servers, goes on
//! from there: its head may be lower than what they have read, or have grown past that with other entries.
//!
//! So each batch is chained to those before it: the key `chain` has a hash of all of them, put with the batch. Who reads
//! goes on with the hash as it was when it read last, and has to come to the same.

use super::client::{Answer, get, only};
use super::key::Batch;
use super::{Error, Shared};
use lockstep_core::id::Index;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use std::sync::{MutexGuard, PoisonError};

/// What an operator does about an etcd that has forgotten.
pub(super) const RESTORED: &str = "end all servers on it, and see \"A restored etcd has forgotten\" in docs/etcd.md \
                                   before one is started again";

pub(super) const SET_BACK: &str = "etcd was set back to older data";

/// The value of `chain`: all batches up to an index, in one hash. A version of Lockstep that does not know it leaves it
/// behind the head, and the next one that does begins another one there.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Chain {
    /// It has the batches after this index.
    since: u64,
    /// The last index of the last one.
    last: u64,
    sum: String,
}

impl Chain {
    fn begin(since: Index) -> Self {
        Chain { since: since.0, last: since.0, sum: String::new() }
    }

    /// With the batch that comes next. Its head is enough: that has a checksum of its payloads.
    pub(super) fn with(&self, batch: &Batch) -> Self {
        let hash = Sha256::new().chain_update(&self.sum).chain_update(batch.head()).finalize();
        let sum = hash.iter().map(|byte| format!("{byte:02x}")).collect();
        Chain { since: self.since, last: batch.last().0, sum }
    }
}

/// What one answer says of the history.
pub(super) struct Said {
    /// The highest head that was known before etcd was asked.
    pub(super) known: Index,
    pub(super) head: Index,
    /// The first index that can be read.
    pub(super) floor: Index,
    pub(super) stored: Option<Chain>,
}

impl Shared {
    /// What this process has seen of the history.
    fn seen(&self) -> MutexGuard<'_, Option<Chain>> {
        // Nothing under this lock can panic half-way.
        self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn chain_of(&self, answer: &Answer, at: usize) -> Result<Option<Chain>, Error> {
        only(answer.found(at)).map(|found| self.keys.read_json(found.key(), found.value())).transpose()
    }

    /// The chain that a batch after `expected` goes on with.
    pub(super) async fn chain(&self, expected: Index) -> Result<Chain, Error> {
        let is_there = |chain: &Chain| chain.last == expected.0;
        if let Some(chain) = self.seen().clone().filter(is_there) {
            return Ok(chain);
        }
        // What was written last has not been read: its answer was lost, or nobody has read anything.
        let answer = self.cluster.read("append", vec![get(self.keys.chain())]).await?;
        let stored = self.chain_of(&answer, 0)?;
        Ok(stored.filter(is_there).unwrap_or_else(|| Chain::begin(expected)))
    }

    /// This process has written up to there.
    pub(super) fn wrote(&self, chain: Chain) {
        let mut seen = self.seen();
        if seen.as_ref().is_none_or(|seen| seen.last < chain.last) {
            *seen = Some(chain);
        }
    }

    /// Refuses a history that is not the one that was seen, and goes on with `batches` that were read of it.
    pub(super) fn check(&self, said: Said, batches: &[Batch]) -> Result<(), Error> {
        let Said { known, head, floor, stored } = said;
        if head < known {
            return Err(self.set_back(format!("its last index is {head}, and was {known} before")));
        }
        let stored = stored.filter(|stored| stored.last == head.0);
        let mut seen = self.seen();
        // Nobody can say what was between: the entries are gone, into a snapshot.
        let Some(mut chain) = seen.clone().filter(|seen| seen.last + 1 >= floor.0) else {
            *seen = stored;
            self.tell(head);
            return Ok(());
        };
        for batch in batches {
            if batch.first.0 == chain.last + 1 {
                if let Some(stored) = stored.as_ref().filter(|stored| stored.since == chain.last) {
                    chain = Chain::begin(Index(stored.since));
                }
                chain = chain.with(batch);
            }
        }
        if let Some(stored) = stored.filter(|stored| stored.last == chain.last && *stored != chain) {
            let reason = format!("its entries up to {} are not those that were there before", stored.last);
            return Err(self.set_back(reason));
        }
        *seen = Some(chain);
        self.tell(head);
        Ok(())
    }

    pub(super) fn set_back(&self, what: String) -> Error {
        self.cluster.unusable(format!("{what}: {SET_BACK}"), RESTORED)
    }
}
