//! Saves the cluster as a snapshot now and then, and lets the store forget what it covers: a journal that only grows
//! fills its disk, and a server that starts would read all of it.
//!
//! The engine's task gives the cluster away, which costs one reference, and goes on. Writing it out happens on a thread
//! for blocking work; the store writes it between appends.

use crate::store::{self, Fenced, Store};
use lockstep_core::cluster::Cluster;
use lockstep_core::id::{Index, Reign};
use lockstep_core::snapshot;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use tokio::task::JoinHandle;
use tracing::{debug, warn};

/// A snapshot is taken once the journal has grown by so many bytes since the last one, or by as many as that one has,
/// whichever is more: then writing snapshots costs no more than writing the journal does. Too low: a small cluster
/// writes more than it has to. Too high: a server takes longer to start, and the directory is larger; it holds two
/// snapshots and about two such spans of journal.
const SPAN_BYTES_MIN: u64 = 4 << 20;

pub(super) struct Saver<S> {
    pub(super) store: S,
    pub(super) reign: Reign,
    /// How much has been written since the last snapshot.
    bytes: u64,
    /// The size of the last snapshot.
    size: Arc<AtomicU64>,
    saving: Option<JoinHandle<()>>,
}

impl<S: Store> Saver<S> {
    /// One that goes on where a server has begun: `bytes` of journal were read after a snapshot of `size`.
    pub(super) fn new(store: S, reign: Reign, bytes: u64, size: u64) -> Self {
        Self { store, reign, bytes, size: Arc::new(AtomicU64::new(size)), saving: None }
    }

    /// The journal has grown, and says what `cluster` is.
    pub(super) fn grown(&mut self, bytes: u64, cluster: &Arc<Cluster>) {
        self.bytes += bytes;
        let is_due = self.bytes >= SPAN_BYTES_MIN.max(self.size.load(Ordering::Relaxed));
        if !is_due || self.saving.as_ref().is_some_and(|saving| !saving.is_finished()) {
            return;
        }
        self.bytes = 0;
        let (store, reign, cluster, size) =
            (self.store.clone(), self.reign, cluster.clone(), self.size.clone());
        self.saving = Some(tokio::spawn(async move {
            match save(&store, reign, cluster).await {
                Ok(saved) => size.store(saved, Ordering::Relaxed),
                // The journal has all of it, and the next snapshot is tried when it has grown by as much again. A disk
                // that is full or has failed shows with the next append, which nobody can do without.
                Err(fault) => warn!(%fault, "no snapshot could be saved; the journal goes on"),
            }
        }));
    }
}

/// Saves a snapshot and forgets what it covers; tells its size.
async fn save<S: Store>(store: &S, reign: Reign, cluster: Arc<Cluster>) -> Result<u64, store::Error> {
    let revision = cluster.revision;
    let encode = move || snapshot::encode(&cluster);
    let bytes = tokio::task::spawn_blocking(encode).await.expect("it neither panics nor is it cancelled");
    let size = bytes.len() as u64;
    // Whoever is deposed is told with its next append.
    if store.save_snapshot(reign, revision, bytes).await? == Fenced::Held {
        store.compact(reign, Index(revision.0 + 1)).await?;
        debug!(%revision, size, "snapshot saved");
    }
    Ok(size)
}
