//! The store in a directory of the server's own disk.
//!
//! The lock on the directory decides which process is the active server; reigns tell apart the times of one process
//! from those before it. While its server is down, nothing is decided: safe, and it waits.

use super::{Appended, Candidate, Entry, Error, Fenced, FileDisk, Journal, Leader, Snapshot, Store};
use lockstep_core::id::{Index, Reign};
use lockstep_core::log::{Disk, Log};
use std::fs::{self, File};
use std::io;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::sync::watch;

/// The file in a directory whose journal was taken elsewhere, which says where.
const MIGRATED: &str = "migrated";
/// What the name of a directory ends with until all of a migration is in it.
pub(super) const UNFINISHED: &str = ".migrating";

/// The embedded store.
#[derive(Debug)]
pub struct Embedded<D = FileDisk> {
    journal: Journal<D>,
    /// Who has campaigned last in this process; the lock keeps every other one out.
    leader: Arc<Mutex<Option<Leader>>>,
}

impl<D> Clone for Embedded<D> {
    fn clone(&self) -> Self {
        Embedded { journal: self.journal.clone(), leader: self.leader.clone() }
    }
}

impl Embedded {
    /// Takes a directory and opens the store in it, or makes an empty one. Errors as of [`Journal::open`], and
    /// [`Error::Unusable`] for one whose journal was migrated, or is not whole.
    pub async fn open(dir: &Path) -> Result<Self, Error> {
        if dir.file_name().is_some_and(|name| name.to_string_lossy().ends_with(UNFINISHED)) {
            return Err(Error::Unusable {
                place: dir.display().to_string(),
                reason: "a migration into it has not finished".to_owned(),
                help: "wait for it; if it broke off, remove the directory and migrate again",
            });
        }
        let path = dir.join(MIGRATED);
        match fs::read_to_string(&path) {
            Ok(to) => return Err(Error::migrated(&dir.display().to_string(), to.trim_end())),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(source) => {
                return Err(Error::Directory { path, doing: "read a mark", source: Arc::new(source) });
            }
        }
        Ok(Embedded::new(Journal::open(dir).await?))
    }

    /// The journal of a directory was taken elsewhere: from now on no server begins in it.
    pub(super) fn retire(dir: &Path, to: &str) -> Result<(), Error> {
        let path = dir.join(MIGRATED);
        let marked = fs::write(&path, format!("{to}\n"))
            .and_then(|()| File::open(&path)?.sync_all())
            .and_then(|()| File::open(dir)?.sync_all());
        let doing = "mark it as migrated";
        marked.map_err(|source| Error::Directory { path, doing, source: Arc::new(source) })
    }
}

impl<D: Disk + 'static> Embedded<D> {
    /// The store on a journal that is open already.
    pub fn new(journal: Journal<D>) -> Self {
        Embedded { journal, leader: Arc::default() }
    }

    /// Ends the store and returns once its directory is free.
    pub async fn close(self) {
        self.journal.close().await;
    }

    /// The last reign that was given.
    pub(super) async fn last_reign(&self) -> Result<Reign, Error> {
        self.journal.run(|log| Ok(log.reign())).await
    }

    fn known(&self) -> std::sync::MutexGuard<'_, Option<Leader>> {
        // Nothing under this lock can panic half-way.
        self.leader.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Does `work` if `reign` is the present one.
    async fn fenced<T: Send + 'static>(
        &self,
        reign: Reign,
        work: impl FnOnce(&mut Log<D>) -> Result<T, Error> + Send + 'static,
    ) -> Result<Option<T>, Error> {
        self.journal.run(move |log| if holds(log, reign) { work(log).map(Some) } else { Ok(None) }).await
    }
}

/// Reign 0 is before the first campaign: nobody's.
fn holds<D: Disk>(log: &Log<D>, reign: Reign) -> bool {
    reign == log.reign() && reign > Reign(0)
}

fn outcome<T>(done: Option<T>) -> Fenced {
    if done.is_some() { Fenced::Held } else { Fenced::Deposed }
}

impl<D: Disk + 'static> Store for Embedded<D> {
    /// The lock has chosen the server already, so this never waits, and the reign lasts as long as the lock.
    async fn campaign(&self, candidate: &Candidate, _ttl: Duration) -> Result<Reign, Error> {
        let begin = |log: &mut Log<D>| {
            // Above the head too: a backup does not know the reigns after it, but a restore goes on at an index
            // above all that were given out.
            let reign = Reign((log.reign().0 + 1).max(log.head().0 + 1));
            log.begin_reign(reign)?;
            Ok(reign)
        };
        let reign = self.journal.run(begin).await?;
        *self.known() = Some(Leader { candidate: candidate.clone(), reign });
        Ok(reign)
    }

    /// Nothing is left of a reign but its number: a higher one makes it void.
    async fn resign(&self, reign: Reign) -> Result<Fenced, Error> {
        let next = Reign(reign.0.saturating_add(1));
        let resigned = self.fenced(reign, move |log| Ok(log.begin_reign(next)?)).await?;
        if resigned.is_some() {
            *self.known() = None;
        }
        Ok(outcome(resigned))
    }

    async fn ended(&self, _reign: Reign) {
        std::future::pending().await
    }

    async fn leader(&self) -> Result<Option<Leader>, Error> {
        Ok(self.known().clone())
    }

    async fn append(&self, reign: Reign, expected: Index, batch: Vec<Vec<u8>>) -> Result<Appended, Error> {
        assert!(!batch.is_empty(), "a batch has at least one payload");
        let append = move |log: &mut Log<D>| {
            if log.head() != expected {
                return Ok(Appended::Conflict(log.head()));
            }
            Ok(Appended::Done(log.append(reign, Index(expected.0 + 1), &batch)?))
        };
        Ok(self.fenced(reign, append).await?.unwrap_or(Appended::Deposed))
    }

    async fn head(&self) -> Result<Index, Error> {
        self.journal.head().await
    }

    async fn read(&self, from: Index) -> Result<Vec<Entry>, Error> {
        self.journal.read(from).await
    }

    fn heads(&self) -> watch::Receiver<Index> {
        self.journal.heads()
    }

    async fn save_snapshot(&self, reign: Reign, index: Index, bytes: Vec<u8>) -> Result<Fenced, Error> {
        Ok(outcome(self.fenced(reign, move |log| Ok(log.save_snapshot(index, &bytes)?)).await?))
    }

    async fn load_snapshot(&self) -> Result<Option<Snapshot>, Error> {
        self.journal.load_snapshot().await
    }

    async fn compact(&self, reign: Reign, before: Index) -> Result<Fenced, Error> {
        Ok(outcome(self.fenced(reign, move |log| Ok(log.compact(before)?)).await?))
    }

    async fn confirm(&self, reign: Reign) -> Result<Fenced, Error> {
        Ok(outcome(self.fenced(reign, |_| Ok(())).await?))
    }
}

#[cfg(test)]
mod tests;
