//! Reads a journal: the whole of it when a server starts, and what comes later while it stands by.

use super::ServerError;
use super::handle::{Role, View};
use crate::store::{Entry, Error, Snapshot, Store};
use lockstep_core::cluster::Cluster;
use lockstep_core::id::Index;
use lockstep_core::record::Record;
use lockstep_core::snapshot;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;
use tokio::time::sleep;
use tracing::{debug, info};

/// The pause before a store that could not be reached is asked again. It is most often a store that chooses a new leader,
/// which takes a second.
const UNAVAILABLE_PAUSE: Duration = Duration::from_millis(100);

/// What a store says, as far as it has been read.
#[derive(Debug, Default)]
pub(crate) struct Replayed {
    /// The cluster.
    pub(crate) cluster: Arc<Cluster>,
    /// How large its snapshot was; 0 when there is none.
    pub(super) snapshot_bytes: u64,
    /// How many bytes of records followed it.
    pub(super) journal_bytes: u64,
}

impl Replayed {
    fn next(&self) -> Index {
        Index(self.cluster.revision.0 + 1)
    }

    /// Reads on until there is nothing more, as soon as the store can be reached.
    ///
    /// # Errors
    /// If the store fails, or holds what this version cannot read. What was read before stays.
    pub(crate) async fn catch_up<S: Store>(&mut self, store: &S) -> Result<(), ServerError> {
        if self.cluster.revision == Index(0) {
            self.load(store).await?;
        }
        loop {
            let next = self.next();
            match until_reached("read", || store.read(next)).await {
                Ok(entries) if entries.is_empty() => return Ok(()),
                Ok(entries) => self.apply(&entries)?,
                // What comes next is part of a snapshot by now.
                Err(Error::Compacted { .. }) => self.load(store).await?,
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// Goes on from the newest snapshot, if there is one and it is ahead.
    async fn load<S: Store>(&mut self, store: &S) -> Result<(), ServerError> {
        let newest = until_reached("load", || store.load_snapshot()).await?;
        let Some(Snapshot { index, bytes, .. }) = newest else { return Ok(()) };
        if index <= self.cluster.revision {
            return Ok(());
        }
        let cluster = snapshot::decode(&bytes).map_err(|source| ServerError::Snapshot { index, source })?;
        assert_eq!(cluster.revision, index, "a snapshot is saved under its own revision");
        let (cluster, snapshot_bytes) = (Arc::new(cluster), bytes.len() as u64);
        *self = Self { cluster, snapshot_bytes, journal_bytes: 0 };
        Ok(())
    }

    fn apply(&mut self, entries: &[Entry]) -> Result<(), ServerError> {
        let cluster = Arc::make_mut(&mut self.cluster);
        for Entry { index, payload, .. } in entries {
            let index = *index;
            let record: Record =
                serde_json::from_slice(payload).map_err(|source| ServerError::Record { index, source })?;
            cluster.apply(index, &record);
            self.journal_bytes += payload.len() as u64;
        }
        Ok(())
    }
}

/// Asks a store until it can be reached, which the store itself says to people meanwhile ([`Store::silence`]). Everything
/// else that goes wrong is told.
pub(super) async fn until_reached<T, F>(doing: &str, mut ask: impl FnMut() -> F) -> Result<T, Error>
where
    F: Future<Output = Result<T, Error>>,
{
    loop {
        match ask().await {
            Err(error @ Error::Unavailable { .. }) => {
                debug!(%error, doing, "the store cannot be reached: trying on");
                sleep(UNAVAILABLE_PAUSE).await;
            }
            done => return done,
        }
    }
}

/// Reads what comes, and shows it to readers, for as long as the store can be read. What they are shown never goes back.
pub(super) async fn follow<S: Store>(
    store: &S,
    replayed: &mut Replayed,
    publish: &watch::Sender<View>,
) -> ServerError {
    loop {
        if let Err(fault) = replayed.catch_up(store).await {
            return fault;
        }
        show(replayed, publish);
        let mut watch = store.watch(replayed.next());
        loop {
            let read = match watch.next().await {
                Ok(entries) => replayed.apply(&entries),
                Err(Error::Compacted { .. } | Error::Unavailable { .. }) => break,
                Err(fault) => Err(fault.into()),
            };
            if let Err(fault) = read {
                return fault;
            }
            show(replayed, publish);
        }
    }
}

fn show(replayed: &Replayed, publish: &watch::Sender<View>) {
    publish.send_if_modified(|view| {
        let is_first = view.role == Role::Starting;
        if is_first {
            info!(revision = %replayed.cluster.revision, "journal replayed");
            view.role = Role::Standby { active: None };
        }
        let is_news = view.cluster.revision < replayed.cluster.revision;
        if is_news {
            view.cluster = replayed.cluster.clone();
        }
        is_first || is_news
    });
}
