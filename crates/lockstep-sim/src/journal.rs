//! Journals on disks that fail: core's own log over a disk in memory, and what has been acknowledged of it.

use crate::invariant::{Violation, i22_disks_keep_their_word};
use lockstep_core::id::{Index, Reign};
use lockstep_core::log::{Crash, Disk, DiskError, Error, Log, MemDisk, Op, SharedDisk};

/// How much is read at a time, in bytes.
const READ_BYTES: usize = 1 << 20;

/// Why a journal could not be opened.
#[derive(Debug)]
pub(crate) enum Unopened {
    /// The disk is in trouble, and its owner is told: it may be tried again.
    Trouble(Error),
    /// It was opened, and is not what was acknowledged.
    Broken(Violation),
}

/// A journal, with what its owner has been told is safe.
#[derive(Debug, Default)]
pub(crate) struct Journal {
    disk: SharedDisk,
    log: Option<Log<SharedDisk>>,
    acknowledged: Vec<Vec<u8>>,
}

impl Journal {
    /// Opens the log under a new reign and reads it. All that was acknowledged is there, or it says that it is not.
    pub(crate) fn open(&mut self, who: &str) -> Result<Vec<Vec<u8>>, Unopened> {
        self.log = None;
        let mut log = Log::open(self.disk.clone()).map_err(Unopened::Trouble)?;
        let reign = Reign((log.reign().0 + 1).max(log.head().0 + 1));
        log.begin_reign(reign).map_err(Unopened::Trouble)?;
        let mut found = Vec::new();
        loop {
            let next = Index(found.len() as u64 + 1);
            let entries = log.read(next, READ_BYTES).map_err(Unopened::Trouble)?;
            if entries.is_empty() {
                break;
            }
            found.extend(entries.into_iter().map(|entry| entry.payload));
        }
        i22_disks_keep_their_word::check(who, &self.acknowledged, &found).map_err(Unopened::Broken)?;
        self.acknowledged.clone_from(&found);
        self.log = Some(log);
        Ok(found)
    }

    /// Appends a batch; once this has returned `Ok` it is acknowledged.
    pub(crate) fn append(&mut self, payloads: Vec<Vec<u8>>) -> Result<(), Error> {
        let log = self.log.as_mut().expect("whoever writes has opened it");
        let (reign, first) = (log.reign(), Index(log.head().0 + 1));
        log.append(reign, first, &payloads)?;
        self.acknowledged.extend(payloads);
        Ok(())
    }

    /// Begins to write a batch and does not come to its end: whatever `crash` leaves of it is there or not.
    pub(crate) fn tear(&mut self, payloads: &[Vec<u8>], crash: Crash) {
        if let Some(log) = self.log.as_mut().filter(|log| log.failure().is_none()) {
            self.disk.get().fail(Op::Write, 0, DiskError::Io("the process ended".to_owned()));
            let (reign, first) = (log.reign(), Index(log.head().0 + 1));
            let torn = log.append(reign, first, payloads);
            assert!(torn.is_err(), "a write that is cut short fails");
        }
        self.crash(crash);
    }

    /// Ends its owner, and leaves of the disk what `crash` says.
    pub(crate) fn crash(&mut self, crash: Crash) {
        self.log = None;
        self.disk.get().crash(crash);
    }

    /// Lets the next call of `op` fail.
    pub(crate) fn fail(&mut self, op: Op) {
        self.disk.get().fail(op, 0, DiskError::Io("input/output error".to_owned()));
    }

    /// Leaves so many bytes of room, or no limit.
    pub(crate) fn set_room(&mut self, bytes: Option<u64>) {
        let used = self.disk.read("log").ok().flatten().map_or(0, |file| file.len() as u64);
        self.disk.get().set_capacity(bytes.map(|bytes| used + bytes));
    }

    /// Opens it with one bit of its file decayed; the bit is brought back when that is refused, as from a backup.
    /// Tells what came of it: it is refused, or nothing that was acknowledged is missing.
    pub(crate) fn open_decayed(&mut self, who: &str, at: u64, bit: u8) -> Result<Vec<Vec<u8>>, Unopened> {
        let file = self.disk.read("log").ok().flatten().unwrap_or_default();
        let written = file.iter().rposition(|byte| *byte != 0).map_or(0, |last| last as u64 + 1);
        if written == 0 {
            return self.open(who);
        }
        let mask = 1 << (bit % 8);
        self.disk.get().flip("log", at % written, mask);
        let opened = self.open(who);
        if let Err(Unopened::Trouble(_)) = opened {
            self.disk.get().flip("log", at % written, mask);
        }
        opened
    }

    /// The disk as it is now, to come back to.
    pub(crate) fn image(&self) -> (MemDisk, Vec<Vec<u8>>) {
        (self.disk.get().clone(), self.acknowledged.clone())
    }

    /// Comes back to an earlier state of the disk, what was acknowledged since is gone.
    pub(crate) fn restore(&mut self, (disk, acknowledged): (MemDisk, Vec<Vec<u8>>)) {
        self.log = None;
        *self.disk.get() = disk;
        self.acknowledged = acknowledged;
    }
}
