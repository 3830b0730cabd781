//! A log on a thread of its own, so that a slow sync never holds up the runtime.

use super::{Error, FileDisk, READ_BYTES_MAX};
use lockstep_core::id::{Index, Reign};
use lockstep_core::log::{Disk, Entry, Log, Snapshot};
use std::path::Path;
use std::sync::Arc;
use std::thread;
use tokio::sync::{mpsc, oneshot, watch};

/// How many calls may wait for the thread. The server has one write in flight and readers ask one page at a time;
/// whoever comes on top of that waits for a place.
const QUEUE_LEN_MAX: usize = 64;

type Work<D> = Box<dyn FnOnce(&mut Log<D>) + Send>;

enum Job<D> {
    Run(Work<D>),
    Close(oneshot::Sender<()>),
}

/// A handle on a log that one thread owns; cheap to clone. Calls are done in the order in which they arrive.
///
/// Dropping every handle ends the thread and releases the directory; [`Journal::close`] also waits for that. Killing
/// the process does no harm.
#[derive(Debug)]
pub struct Journal<D = FileDisk> {
    jobs: mpsc::Sender<Job<D>>,
    heads: watch::Receiver<Index>,
}

impl<D> Clone for Journal<D> {
    fn clone(&self) -> Self {
        Journal { jobs: self.jobs.clone(), heads: self.heads.clone() }
    }
}

impl Journal {
    /// Opens the journal in a directory, or makes an empty one.
    ///
    /// Errors: [`Error::InUse`], [`Error::Directory`], [`Error::NoRoom`], [`Error::Failed`].
    pub async fn open(dir: &Path) -> Result<Self, Error> {
        let dir = dir.to_owned();
        Journal::start(move || Ok(Log::open(FileDisk::open(&dir)?)?)).await
    }

    /// Makes a journal that begins with a snapshot, in a directory that has none; see [`Log::restore`].
    pub async fn restore(dir: &Path, index: Index, reign: Reign, bytes: Vec<u8>) -> Result<Self, Error> {
        let dir = dir.to_owned();
        Journal::start(move || Ok(Log::restore(FileDisk::open(&dir)?, index, reign, &bytes)?)).await
    }
}

impl<D: Disk + 'static> Journal<D> {
    /// Starts the thread; `open` runs on it.
    pub async fn start(open: impl FnOnce() -> Result<Log<D>, Error> + Send + 'static) -> Result<Self, Error> {
        let (jobs, queue) = mpsc::channel(QUEUE_LEN_MAX);
        let (opened, opening) = oneshot::channel();
        let thread = thread::Builder::new().name("journal".to_owned()).spawn(move || {
            let log = match open() {
                Ok(log) => log,
                Err(error) => return drop(opened.send(Err(error))),
            };
            report_repairs(&log);
            let (signal, heads) = watch::channel(log.head());
            if opened.send(Ok(heads)).is_ok() {
                serve(log, queue, signal);
            }
        });
        thread.map_err(|source| Error::Directory {
            path: "journal".into(),
            doing: "start a thread for it",
            source: Arc::new(source),
        })?;
        let heads = opening.await.map_err(|_| Error::Closed)??;
        Ok(Journal { jobs, heads })
    }

    /// Appends a batch of at least one payload after the head, under the present reign, and returns its last index
    /// once it is safe. Errors as of [`Log::append`].
    pub async fn append(&self, batch: Vec<Vec<u8>>) -> Result<Index, Error> {
        assert!(!batch.is_empty(), "a batch has at least one payload");
        self.run(move |log| Ok(log.append(log.reign(), Index(log.head().0 + 1), &batch)?)).await
    }

    /// Entries from `from` on, about [`READ_BYTES_MAX`] of them, none only when `from` is past the head.
    pub async fn read(&self, from: Index) -> Result<Vec<Entry>, Error> {
        self.run(move |log| Ok(log.read(from, READ_BYTES_MAX)?)).await
    }

    /// The last index, 0 in an empty journal.
    pub async fn head(&self) -> Result<Index, Error> {
        self.run(|log| Ok(log.head())).await
    }

    /// Changes soon after each append, and ends with the journal or its disk.
    pub fn heads(&self) -> watch::Receiver<Index> {
        self.heads.clone()
    }

    /// Saves state as of `index`; see [`Log::save_snapshot`].
    pub async fn save_snapshot(&self, index: Index, bytes: Vec<u8>) -> Result<(), Error> {
        self.run(move |log| Ok(log.save_snapshot(index, &bytes)?)).await
    }

    /// The newest sound snapshot.
    pub async fn load_snapshot(&self) -> Result<Option<Snapshot>, Error> {
        self.run(|log| Ok(log.load_snapshot()?)).await
    }

    /// Forgets entries below `before` as far as both snapshots allow, and returns the first index left.
    pub async fn compact(&self, before: Index) -> Result<Index, Error> {
        self.run(move |log| Ok(log.compact(before)?)).await
    }

    /// Ends the thread after the calls before this one, and returns once the directory is free. Calls through other
    /// handles then answer [`Error::Closed`].
    pub async fn close(self) {
        let (closed, closing) = oneshot::channel();
        if self.jobs.send(Job::Close(closed)).await.is_ok() {
            // An error means the same: the thread is gone.
            let _ = closing.await;
        }
    }

    /// Runs `work` on the thread, unless the disk has failed: then every call answers that.
    pub(crate) async fn run<T: Send + 'static>(
        &self,
        work: impl FnOnce(&mut Log<D>) -> Result<T, Error> + Send + 'static,
    ) -> Result<T, Error> {
        let (done, answer) = oneshot::channel();
        let job = move |log: &mut Log<D>| {
            let result = match log.failure() {
                Some(failure) => Err(Error::Failed(failure.clone())),
                None => work(log),
            };
            // Nobody may be waiting any more; what was done stays done.
            let _ = done.send(result);
        };
        self.jobs.send(Job::Run(Box::new(job))).await.map_err(|_| Error::Closed)?;
        answer.await.map_err(|_| Error::Closed)?
    }
}

fn serve<D: Disk>(mut log: Log<D>, mut queue: mpsc::Receiver<Job<D>>, signal: watch::Sender<Index>) {
    let mut signal = Some(signal);
    let mut closed = None;
    while let Some(job) = queue.blocking_recv() {
        match job {
            Job::Run(work) => work(&mut log),
            Job::Close(done) => {
                closed = Some(done);
                break;
            }
        }
        if log.failure().is_some() {
            // Watchers wake, ask, and are told.
            signal = None;
        }
        if let Some(signal) = &signal {
            signal.send_if_modified(|head| std::mem::replace(head, log.head()) != log.head());
        }
    }
    drop(log);
    if let Some(done) = closed {
        let _ = done.send(());
    }
}

fn report_repairs<D: Disk>(log: &Log<D>) {
    if let Some((file, offset)) = &log.repairs().torn {
        tracing::warn!(file, offset, "cut a write that a crash left unfinished; it was never acknowledged");
    }
    if let Some(file) = &log.repairs().snapshot {
        tracing::warn!(file, "a snapshot is damaged; the older one and the journal stand in; check the disk");
    }
}
