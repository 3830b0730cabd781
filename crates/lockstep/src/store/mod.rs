//! The store: a fenced, append-only journal with snapshots.
//!
//! All state is a fold over its entries. [`Store`] has one implementation on a directory ([`Embedded`]) and one on a
//! replicated service ([`Etcd`]); both pass `conformance`. It orders and keeps opaque bytes; it never interprets them,
//! and it never retries by itself. Group commit is above it: one batch in flight, what arrives meanwhile goes into
//! the next one.
//!
//! [`Journal`] is the part without fencing, a log on a thread of its own. The agent keeps its own records with it.

mod disk;
mod embedded;
#[cfg_attr(not(feature = "etcd"), path = "etcd/absent.rs")]
mod etcd;
mod journal;
mod migrate;

#[cfg(test)]
mod conformance;

pub use disk::FileDisk;
pub use embedded::Embedded;
pub use etcd::Etcd;
pub use journal::Journal;
pub use lockstep_core::append::Appended;
pub use lockstep_core::log::{Entry, Snapshot};
pub use migrate::{Copied, migrate};

use lockstep_core::id::{Index, Reign};
use lockstep_core::log;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::watch;

/// About how much one read answers with, in bytes: enough to make a replay one of large reads, little enough for
/// many slow readers at once. A single batch that is larger comes whole.
pub const READ_BYTES_MAX: usize = 1 << 20;

/// What became of a fenced operation other than an append.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fenced {
    /// The reign held while it was done.
    Held,
    /// The reign has ended; nothing was done.
    Deposed,
}

/// A server that wants to be the active one, as it tells the others of itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Candidate {
    /// Its name among those that share the store.
    pub name: String,
    /// Where operators and agents reach it: `http://HOST:PORT`.
    pub url: String,
}

/// That a store does not answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Silence {
    /// Since when, as far as it was asked.
    pub since: Instant,
    /// What is known of why, as it was last.
    pub why: String,
}

impl Silence {
    /// How long it may last before people are told. Too low: each new leader of etcd's is news. Too high: whoever starts a
    /// server with a wrong address, or looks why nothing moves, wonders.
    pub const UNREMARKABLE: Duration = Duration::from_secs(2);
}

/// The server that reigns.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Leader {
    /// Who it is.
    pub candidate: Candidate,
    /// Its reign.
    pub reign: Reign,
}

/// Why the store could not do as it was asked. Being deposed is none of these: it is a normal answer.
#[derive(Debug, Clone, thiserror::Error)]
pub enum Error {
    /// Another process has the directory open.
    #[error("{} is in use by {holder}; stop that one first, or choose another directory with --data", dir.display())]
    InUse {
        /// The directory.
        dir: PathBuf,
        /// Who has it, as far as is known.
        holder: String,
    },
    /// The directory could not be used at all.
    #[error("{}: could not {doing}; check that the directory may be written by this user", path.display())]
    Directory {
        /// The directory, or the file in it.
        path: PathBuf,
        /// What was tried.
        doing: &'static str,
        /// The system's answer.
        source: Arc<io::Error>,
    },
    /// No room: nothing was written, and it may be tried again once there is some.
    #[error(transparent)]
    NoRoom(log::Error),
    /// What was asked for cannot be: too large, or a snapshot where none can be. Nothing was written.
    #[error(transparent)]
    Refused(log::Error),
    /// The entries asked for are gone; a reader starts again from the snapshot.
    #[error("entries before index {floor} are compacted; start from the snapshot")]
    Compacted {
        /// The first index that may still be read.
        floor: Index,
    },
    /// The disk failed or what it holds is damaged. Every later call answers the same until the store is opened
    /// again, and only that shows whether an append that failed like this is there.
    #[error(transparent)]
    Failed(log::Error),
    /// The store did not answer in time, or could not be reached. What was asked for was not done, except where
    /// [`Appended::Unknown`] would say so; it may be asked again.
    #[error("the store could not {doing}: {reason}")]
    Unavailable {
        /// What was asked for.
        doing: &'static str,
        /// What is known of why.
        reason: String,
    },
    /// The store cannot be used like this: an address, credentials or a right that is missing. Nothing was done.
    #[error("{place} cannot be used: {reason}; {help}")]
    Unusable {
        /// Which store.
        place: String,
        /// What is in the way.
        reason: String,
        /// What to do about it.
        help: &'static str,
    },
    /// A replicated store holds what nobody wrote, or lacks what was written. It is not served.
    #[error("{place}: {what}; nothing was changed: bring back what was there, or restore from a backup")]
    Damaged {
        /// Where.
        place: String,
        /// What shows it.
        what: String,
    },
    /// The store was closed.
    #[error("the store is closed: this process is stopping")]
    Closed,
}

impl Error {
    /// The journal was taken elsewhere.
    fn migrated(place: &str, to: &str) -> Self {
        Self::Unusable {
            place: place.to_owned(),
            reason: format!(
                "its journal was migrated to {to}: servers on both would give out the same tokens"
            ),
            help: "start servers there; delete this one, and migrate back, to have it here again",
        }
    }
}

impl From<log::Error> for Error {
    fn from(error: log::Error) -> Self {
        match error {
            log::Error::Full { .. } => Error::NoRoom(error),
            log::Error::Compacted { floor } => Error::Compacted { floor },
            log::Error::TooLarge { .. }
            | log::Error::SnapshotIndex { .. }
            | log::Error::NotForward { .. }
            | log::Error::Deposed { .. }
            | log::Error::Exists { .. } => Error::Refused(error),
            log::Error::Disk { .. }
            | log::Error::Stopped { .. }
            | log::Error::Damaged { .. }
            | log::Error::Missing { .. }
            | log::Error::Version { .. } => Error::Failed(error),
        }
    }
}

/// A journal that only the active server writes. A handle is cheap to clone.
///
/// What a call returned for is safe: it survives the crash of every process and a power cut. A call whose future is
/// dropped may or may not have happened, as with [`Appended::Unknown`].
pub trait Store: Clone + Send + Sync + 'static {
    /// Waits until this server is the active one and begins its reign, higher than every one before. Where the reign
    /// rests on a lease, it ends `ttl` after the last sign of life.
    fn campaign(
        &self,
        candidate: &Candidate,
        ttl: Duration,
    ) -> impl Future<Output = Result<Reign, Error>> + Send;

    /// Ends a reign, so that another server may begin one at once.
    fn resign(&self, reign: Reign) -> impl Future<Output = Result<Fenced, Error>> + Send;

    /// Returns once the reign is over, or may be: its lease was not renewed for at least as long as it lasts. It never
    /// returns where a reign rests on no lease. Nothing depends on it: the fence holds whether or not anybody listens.
    fn ended(&self, reign: Reign) -> impl Future<Output = ()> + Send;

    /// Who reigns now; `None` while nobody does. Never an outdated answer.
    fn leader(&self) -> impl Future<Output = Result<Option<Leader>, Error>> + Send;

    /// Appends one batch of at least one payload, all or nothing, if the reign holds and the head is `expected`.
    /// Its entries take the indices from `expected + 1` on. Limits: [`log::PAYLOAD_BYTES_MAX`],
    /// [`log::BATCH_BYTES_MAX`].
    fn append(
        &self,
        reign: Reign,
        expected: Index,
        batch: Vec<Vec<u8>>,
    ) -> impl Future<Output = Result<Appended, Error>> + Send;

    /// The index of the last acknowledged entry, 0 when there is none; never an outdated one.
    fn head(&self) -> impl Future<Output = Result<Index, Error>> + Send;

    /// Acknowledged entries from `from` on, in order and without a gap: about [`READ_BYTES_MAX`] of them, none only
    /// when `from` is past the head.
    ///
    /// Errors: [`Error::Compacted`].
    fn read(&self, from: Index) -> impl Future<Output = Result<Vec<Entry>, Error>> + Send;

    /// A signal that changes soon after each append, and ends with the store. For [`Watch`]; what it carries may lag
    /// behind.
    fn heads(&self) -> watch::Receiver<Index>;

    /// Follows the journal from `from` on.
    fn watch(&self, from: Index) -> Watch<Self> {
        Watch { store: self.clone(), next: from, heads: self.heads() }
    }

    /// Saves state as of `index`, at most the head and at least the newest snapshot's index.
    fn save_snapshot(
        &self,
        reign: Reign,
        index: Index,
        bytes: Vec<u8>,
    ) -> impl Future<Output = Result<Fenced, Error>> + Send;

    /// The newest snapshot that is sound, or `None` before the first. The journal has every entry after it.
    fn load_snapshot(&self) -> impl Future<Output = Result<Option<Snapshot>, Error>> + Send;

    /// Allows the store to forget entries below `before`. It keeps those that no snapshot covers, and may keep more.
    fn compact(&self, reign: Reign, before: Index) -> impl Future<Output = Result<Fenced, Error>> + Send;

    /// Whether the store is silent; for whoever tells people. A store that is part of this process never is.
    fn silence(&self) -> watch::Receiver<Option<Silence>> {
        watch::Sender::new(None).subscribe()
    }

    /// Whether the reign held at some instant between call and return.
    fn confirm(&self, reign: Reign) -> impl Future<Output = Result<Fenced, Error>> + Send;
}

/// Acknowledged entries as they come, in order, each once.
///
/// It asks when it is asked: a slow reader costs no memory, and is told [`Error::Compacted`] when it fell too far
/// behind.
#[derive(Debug)]
pub struct Watch<S> {
    store: S,
    next: Index,
    heads: watch::Receiver<Index>,
}

impl<S: Store> Watch<S> {
    /// The next entries, one at least, as soon as there are any. Dropping the future loses none.
    pub async fn next(&mut self) -> Result<Vec<Entry>, Error> {
        loop {
            // Seen before the read, so that an entry that comes in between wakes us.
            self.heads.borrow_and_update();
            let entries = self.store.read(self.next).await?;
            if let Some(last) = entries.last() {
                self.next = Index(last.index.0 + 1);
                return Ok(entries);
            }
            if self.heads.changed().await.is_err() {
                // The store has ended; it says why.
                self.store.read(self.next).await?;
                return Err(Error::Closed);
            }
        }
    }
}
