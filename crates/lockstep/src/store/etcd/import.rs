//! What a migration writes: entries under the reigns that they were written in, into a prefix where nothing was.

use super::client::{ANSWER, Trouble};
use super::key::FORMAT;
use super::{Etcd, Fence, Purpose};
use crate::cli::option::EtcdOptions;
use crate::store::{Appended, Candidate, Error, Fenced, Snapshot, Store};
use etcd_client::{Compare, CompareOp, Txn, TxnOp};
use lockstep_core::id::{Index, Reign};
use std::time::Duration;

const TTL: Duration = Duration::from_secs(10);

/// A prefix that is being filled. It is marked until [`Import::finish`], and no server begins on it.
#[derive(Debug)]
pub(in crate::store) struct Import {
    store: Etcd,
    address: String,
    /// The migration's own reign.
    reign: Reign,
    /// The last reign that was given where the entries come from.
    last: Reign,
    head: Index,
}

impl Import {
    /// Marks an empty prefix, and puts a snapshot there.
    pub(in crate::store) async fn begin(
        address: &str,
        options: &EtcdOptions,
        last: Reign,
        snapshot: Option<&Snapshot>,
    ) -> Result<Self, Error> {
        let store = Etcd::at(address, options)?;
        let shared = &store.inner.shared;
        let told = |trouble| shared.cluster.error("be written to", trouble);
        let is_empty = Compare::version(shared.keys.all(), CompareOp::Equal, 0).with_prefix();
        let mark =
            [shared.put_number(shared.keys.migrating(), 1), shared.put_number(shared.keys.format(), FORMAT)];
        let answer =
            shared.cluster.txn(ANSWER, Txn::new().when([is_empty]).and_then(mark)).await.map_err(told)?;
        if !answer.is_done {
            return Err(Error::Unusable {
                place: address.to_owned(),
                reason: "there are keys already".to_owned(),
                help: "name another prefix, or delete them if they are of no use",
            });
        }
        let candidate = Candidate { name: "lockstep-migrate".to_owned(), url: String::new() };
        let reign = store.reign_for(&candidate, TTL, Purpose::Migrate).await?;
        let mut import = Import { store, address: address.to_owned(), reign, last, head: Index(0) };
        if let Some(Snapshot { index, reign, bytes }) = snapshot {
            let shared = &import.store.inner.shared;
            let keys = &shared.keys;
            let puts =
                vec![shared.put_number(keys.head(), index.0), shared.put_number(keys.floor(), index.0 + 1)];
            import.write(puts).await?;
            let fence = import.fence()?;
            let shared = &import.store.inner.shared;
            let saved = shared.save_snapshot(fence, *reign, *index, bytes).await;
            import.check(saved.map_err(|trouble| shared.cluster.error("save a snapshot", trouble))?)?;
            import.head = *index;
        }
        Ok(import)
    }

    /// Where it writes.
    pub(in crate::store) fn store(&self) -> &Etcd {
        &self.store
    }

    /// Appends entries of one reign.
    pub(in crate::store) async fn append(
        &mut self,
        reign: Reign,
        payloads: Vec<Vec<u8>>,
    ) -> Result<(), Error> {
        let fence = self.fence()?;
        let shared = &self.store.inner.shared;
        match shared.append(fence, reign, self.head, &payloads).await {
            Ok(Appended::Done(head)) => {
                self.head = head;
                Ok(())
            }
            Ok(Appended::Deposed | Appended::Conflict(_) | Appended::Unknown) => Err(self.disturbed()),
            Err(trouble) => Err(shared.cluster.error("append", trouble)),
        }
    }

    /// Lets servers begin on it, above all reigns that were given.
    pub(in crate::store) async fn finish(self) -> Result<(), Error> {
        let shared = &self.store.inner.shared;
        let last = self.last.max(self.reign);
        let done = vec![
            shared.put_number(shared.keys.reign(), last.0),
            TxnOp::delete(shared.keys.migrating(), None),
        ];
        self.write(done).await?;
        let resigned = self.store.resign(self.reign).await?;
        self.check(resigned)
    }

    async fn write(&self, ops: Vec<TxnOp>) -> Result<(), Error> {
        let fence = self.fence()?;
        let shared = &self.store.inner.shared;
        let done: Result<_, Trouble> = shared.fenced(fence, ANSWER, ops).await;
        self.check(done.map_err(|trouble| shared.cluster.error("be written to", trouble))?.0)
    }

    fn fence(&self) -> Result<Fence, Error> {
        self.store.fence(self.reign).ok_or_else(|| self.disturbed())
    }

    fn check(&self, fenced: Fenced) -> Result<(), Error> {
        match fenced {
            Fenced::Held => Ok(()),
            Fenced::Deposed => Err(self.disturbed()),
        }
    }

    fn disturbed(&self) -> Error {
        Error::Unusable {
            place: self.address.clone(),
            reason: "something else was written there meanwhile, or etcd did not answer for too long"
                .to_owned(),
            help: "delete the keys under the prefix and migrate again; the source is as it was",
        }
    }
}
