//! A journal copied from one store into another, while no server is on either: the newest snapshot, the entries after
//! it under their own reigns, and the last reign. Indices and reigns go on above all that were given out.
//!
//! What was copied is read back and compared before the copy can be used. One that broke off never can: a directory
//! has another name until it is whole, and a prefix of etcd a mark. Nor can what was copied, from then on: two servers,
//! one on each, would give out the same tokens.

use super::embedded::UNFINISHED;
use super::etcd::Import;
use super::{Candidate, Embedded, Entry, Error, Etcd, Fenced, Journal, Snapshot, Store};
use crate::cli::option::EtcdOptions;
use lockstep_core::id::{Index, Reign};
use sha2::{Digest, Sha256};
use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use tokio::time::timeout;

/// How long the source's reign is kept without a sign of life of this process.
const TTL: Duration = Duration::from_secs(10);
/// How many bytes of entries are written at once, unless one alone has more.
const WRITE_BYTES: usize = 256 << 10;

/// What was copied.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Copied {
    /// The last index.
    pub head: Index,
    /// The last reign that was given.
    pub reign: Reign,
    /// The snapshot's index, if there is one.
    pub snapshot: Option<Index>,
    /// How many entries follow it.
    pub entries: u64,
    /// SHA-256 of the snapshot and of each entry with its index, as they were read from the source.
    pub source_sha256: String,
    /// The same, as they were read back.
    pub target_sha256: String,
}

/// Copies the journal of one place into another: a directory, or an address such as `etcd://a:2379/prefix`.
///
/// Errors: of opening either; [`Error::InUse`] and [`Error::Unusable`] when a server is on the source, the target is
/// not empty, or what was read back is not what was written.
pub async fn migrate(from: &str, to: &str, options: &EtcdOptions) -> Result<Copied, Error> {
    if is_etcd(from) {
        let source = Etcd::open(from, options).await?;
        if let Some(leader) = source.leader().await? {
            let reason = format!("the server {} at {} reigns", leader.candidate.name, leader.candidate.url);
            return Err(unusable(from, reason, "stop all servers on it first"));
        }
        if source.head().await? == Index(0) {
            return Err(unusable(from, "there is no journal", "name the --store address of a server"));
        }
        let candidate = Candidate { name: "lockstep-migrate".to_owned(), url: String::new() };
        // Nobody reigns, so that this does not wait, unless a server comes this very moment.
        let campaign = timeout(TTL, source.campaign(&candidate, TTL)).await;
        let Ok(reign) = campaign else {
            return Err(unusable(from, "a server has begun to reign", "stop all servers on it first"));
        };
        let reign = reign?;
        let copied = match copy(&source, reign, to, options).await {
            Ok(copied) => copied,
            Err(refusal) => {
                // Servers may begin here again, at once: nothing has been taken elsewhere.
                let _ = source.resign(reign).await;
                return Err(refusal);
            }
        };
        // It kept servers away while it was read.
        if source.retire(reign, to).await? == Fenced::Deposed {
            let reason = "a server has begun to reign while it was copied";
            return Err(unusable(from, reason, "stop it, delete the copy and migrate again"));
        }
        Ok(copied)
    } else {
        let dir = Path::new(from);
        // Opening a directory makes what is missing, and an empty journal would be copied.
        if !dir.join("log").exists() {
            return Err(unusable(from, "there is no journal", "name the --data directory of a server"));
        }
        let source = Embedded::open(dir).await?;
        let copied = async { copy(&source, source.last_reign().await?, to, options).await };
        // No server has it before that is so.
        let copied = copied.await.and_then(|copied| Embedded::retire(dir, to).map(|()| copied));
        source.close().await;
        copied
    }
}

fn is_etcd(place: &str) -> bool {
    place.starts_with("etcd://") || place.starts_with("etcds://")
}

fn unusable(place: &str, reason: impl Into<String>, help: &'static str) -> Error {
    Error::Unusable { place: place.to_owned(), reason: reason.into(), help }
}

async fn copy<S: Store>(source: &S, reign: Reign, to: &str, options: &EtcdOptions) -> Result<Copied, Error> {
    let snapshot = source.load_snapshot().await?;
    let snapshot = snapshot.as_ref();
    if is_etcd(to) {
        let target = Import::begin(to, options, reign, snapshot).await?;
        copy_into(target, source, reign, snapshot, to).await
    } else {
        let target = Directory::begin(Path::new(to), source, reign, snapshot).await?;
        copy_into(target, source, reign, snapshot, to).await
    }
}

/// Copies what follows the snapshot, and lets the target be used if it has it all.
async fn copy_into<S: Store>(
    mut target: impl Target,
    source: &S,
    reign: Reign,
    snapshot: Option<&Snapshot>,
    to: &str,
) -> Result<Copied, Error> {
    let read = pour(source, snapshot, &mut target).await?;
    let written = target.read_back().await?;
    let copied = compare(to, reign, snapshot, read, &written)?;
    target.finish().await?;
    Ok(copied)
}

/// What takes entries, in order.
trait Target {
    /// Appends entries of one reign.
    async fn append(&mut self, reign: Reign, payloads: Vec<Vec<u8>>) -> Result<(), Error>;

    /// After the last one: all of it, as it is stored.
    async fn read_back(&mut self) -> Result<Read, Error>;

    /// From now on it can be used.
    async fn finish(self) -> Result<(), Error>;
}

impl Target for Import {
    async fn append(&mut self, reign: Reign, payloads: Vec<Vec<u8>>) -> Result<(), Error> {
        Import::append(self, reign, payloads).await
    }

    async fn read_back(&mut self) -> Result<Read, Error> {
        digest(self.store()).await
    }

    async fn finish(self) -> Result<(), Error> {
        Import::finish(self).await
    }
}

/// Everything that a store says, as it was read.
struct Read {
    sum: Sha256,
    head: Index,
    entries: u64,
}

impl Read {
    fn begin(snapshot: Option<&Snapshot>) -> Self {
        let mut sum = Sha256::new();
        if let Some(Snapshot { index, bytes, .. }) = snapshot {
            put(&mut sum, *index, bytes);
        }
        Read { sum, head: snapshot.map_or(Index(0), |snapshot| snapshot.index), entries: 0 }
    }

    fn take(&mut self, entry: &Entry) {
        put(&mut self.sum, entry.index, &entry.payload);
        (self.head, self.entries) = (entry.index, self.entries + 1);
    }
}

fn put(sum: &mut Sha256, index: Index, bytes: &[u8]) {
    sum.update(index.0.to_le_bytes());
    sum.update((bytes.len() as u64).to_le_bytes());
    sum.update(bytes);
}

/// Copies all entries after the snapshot.
async fn pour<S: Store>(
    source: &S,
    snapshot: Option<&Snapshot>,
    target: &mut impl Target,
) -> Result<Read, Error> {
    let mut read = Read::begin(snapshot);
    loop {
        let page = source.read(Index(read.head.0 + 1)).await?;
        if page.is_empty() {
            return Ok(read);
        }
        let (mut stamp, mut bytes, mut batch) = (Reign(0), 0, Vec::new());
        for entry in page {
            read.take(&entry);
            if !batch.is_empty() && (entry.reign != stamp || bytes + entry.payload.len() > WRITE_BYTES) {
                target.append(stamp, std::mem::take(&mut batch)).await?;
                bytes = 0;
            }
            stamp = entry.reign;
            bytes += entry.payload.len();
            batch.push(entry.payload);
        }
        target.append(stamp, batch).await?;
    }
}

/// Reads everything that a store says.
async fn digest<S: Store>(store: &S) -> Result<Read, Error> {
    let mut read = Read::begin(store.load_snapshot().await?.as_ref());
    loop {
        let page = store.read(Index(read.head.0 + 1)).await?;
        if page.is_empty() {
            return Ok(read);
        }
        page.iter().for_each(|entry| read.take(entry));
    }
}

fn compare(
    to: &str,
    reign: Reign,
    snapshot: Option<&Snapshot>,
    read: Read,
    written: &Read,
) -> Result<Copied, Error> {
    let hex = |sum: &Sha256| -> String {
        sum.clone().finalize().iter().map(|byte| format!("{byte:02x}")).collect()
    };
    let copied = Copied {
        head: read.head,
        reign,
        snapshot: snapshot.map(|snapshot| snapshot.index),
        entries: read.entries,
        source_sha256: hex(&read.sum),
        target_sha256: hex(&written.sum),
    };
    if copied.source_sha256 == copied.target_sha256
        && (read.head, read.entries) == (written.head, written.entries)
    {
        return Ok(copied);
    }
    let reason = format!(
        "what was read back has SHA-256 {} instead of {}",
        copied.target_sha256, copied.source_sha256
    );
    Err(unusable(to, reason, "delete it and migrate again; the source is as it was"))
}

/// A directory that is being made beside its place.
struct Directory {
    place: PathBuf,
    aside: PathBuf,
    journal: Journal,
    /// The last reign that was given where the entries come from.
    last: Reign,
}

impl Directory {
    async fn begin<S: Store>(
        place: &Path,
        source: &S,
        last: Reign,
        snapshot: Option<&Snapshot>,
    ) -> Result<Self, Error> {
        let shown = place.display().to_string();
        if fs::read_dir(place).is_ok_and(|mut files| files.next().is_some()) || place.is_file() {
            return Err(unusable(&shown, "it is not empty", "name a directory that is empty or not there"));
        }
        let mut name = place.file_name().unwrap_or_default().to_owned();
        name.push(UNFINISHED);
        let aside = place.with_file_name(name);
        if aside.exists() {
            let reason = "a migration into it has not finished";
            let help = "wait for it; if it broke off, remove the directory and migrate again";
            return Err(unusable(&aside.display().to_string(), reason, help));
        }
        let journal = match snapshot {
            Some(Snapshot { index, reign, bytes }) => {
                // A snapshot may have been saved in a later reign than the first entries after it.
                let next = source.read(Index(index.0 + 1)).await?;
                let reign = next.first().map_or(*reign, |entry| entry.reign.min(*reign));
                Journal::restore(&aside, *index, reign, bytes.clone()).await?
            }
            None => Journal::open(&aside).await?,
        };
        Ok(Directory { place: place.to_owned(), aside, journal, last })
    }
}

impl Target for Directory {
    async fn append(&mut self, reign: Reign, payloads: Vec<Vec<u8>>) -> Result<(), Error> {
        let append = move |log: &mut lockstep_core::log::Log<_>| {
            let first = Index(log.head().0 + 1);
            Ok(log.append(reign, first, &payloads)?)
        };
        self.journal.run(append).await.map(drop)
    }

    /// From the disk: the journal that wrote it is closed.
    async fn read_back(&mut self) -> Result<Read, Error> {
        let last = self.last;
        let begin = move |log: &mut lockstep_core::log::Log<_>| {
            if log.reign() < last {
                log.begin_reign(last)?;
            }
            Ok(())
        };
        self.journal.run(begin).await?;
        self.journal.clone().close().await;
        let store = Embedded::new(Journal::open(&self.aside).await?);
        let read = digest(&store).await;
        store.close().await;
        read
    }

    /// Gives it its name.
    async fn finish(self) -> Result<(), Error> {
        let named = fs::rename(&self.aside, &self.place).and_then(|()| {
            let parent = self.place.parent().filter(|dir| *dir != Path::new("")).unwrap_or(Path::new("."));
            File::open(parent)?.sync_all()
        });
        named.map_err(|source: io::Error| Error::Directory {
            path: self.place.clone(),
            doing: "give the copy its name",
            source: Arc::new(source),
        })
    }
}

#[cfg(test)]
#[cfg(feature = "etcd")]
mod tests;
