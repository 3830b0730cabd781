//! A write-ahead log: batches of opaque payloads, and two snapshots.
//!
//! Server, agent and simulator share it. It does no IO of its own: a [`Disk`] does. It gives no promise before the
//! disk has: a batch that [`Log::append`] returned for is synced, and every other batch may or may not be there
//! after the next opening, whole or not at all. It never interprets a payload.
//!
//! # The file
//!
//! `log` has a header (magic, version, floor, head, reign, CRC32C), then frames, then preallocated zeros. A batch is
//! one frame: a head (length, CRC32C), the body (reign, first index, payloads), zeros up to a multiple of eight, and
//! a tail, which is the head inverted and in reverse order. The checksum covers the frame's offset too, so that
//! bytes of a frame count nowhere but in their place. An index is given once; batches may leave gaps forward.
//!
//! # Where a log ends
//!
//! After the last good frame there are zeros, a write that a crash cut short, or damage. Torn and damaged must not
//! be mixed up: the first was never acknowledged and has to go; cutting the second would take back what somebody
//! was promised. Two facts tell them apart. *Only the last frame can be torn*: each append waits for its sync, and
//! after a failed write or sync the log takes no more. *A torn frame has zeros in it*: its place was preallocated
//! and synced before, so a killed process leaves the frame's beginning before zeros, and a power cut leaves 512-byte
//! blocks new or zero. Hence, for bytes that are no good frame:
//!
//! 1. Zeros up to the end of the file: the log ends there.
//! 2. A good frame lies anywhere behind them: damage. Opening is refused and names file and offset.
//! 3. Neither head nor tail says that the frame ends before the last byte that is not zero, or one of its blocks is
//!    still zero: torn. It is cut, and [`Log::repairs`] says so.
//! 4. Otherwise all of the frame was there once: damage, as in 2.
//!
//! So a changed bit is found in every frame, the last one included. What cannot be told from a torn write, and is
//! cut like one: damage to the last frame that clears its end, or a last frame with a payload of 512 zero bytes in
//! one block. A file that somebody shortened loses the records behind the cut. But the header knows the head of the
//! time when the file was made, and a snapshot its index: when the log ends before either, opening is refused.
//!
//! # Opening
//!
//! Every opening copies the good frames into a new file, syncs it and its directory, and renames. After a failed
//! sync the system may show bytes that are on no disk and call them clean; serving those, and then losing power,
//! would take back what was read. A copy is new to the system and is written for certain. As this holds for any
//! stop, there is no mark for a clean one.
//!
//! # Snapshots
//!
//! `snapshot.0` and `snapshot.1` take turns, each written aside, synced and renamed. [`Log::compact`] keeps all
//! entries that the *older* one needs. So when the newest is damaged, opening goes back to the older one and the
//! log has all that followed. When the log does not reach back to any good snapshot, state would have a hole in it,
//! and opening is refused.

mod disk;
mod frame;
mod mem;
mod snapshot;
#[cfg(test)]
mod tests;

pub use disk::{Disk, DiskError};
pub use mem::{Crash, MemDisk, Op, SharedDisk};
pub use snapshot::Snapshot;

use crate::id::{Index, Reign};
use crate::mutant::{self, Mutant};
use frame::{BadHeader, Frame, HEADER_LEN, Header, Rest};
use snapshot::Slot;

/// The most bytes of one payload: short enough to be written and synced in less than a second on a slow disk.
pub const PAYLOAD_BYTES_MAX: usize = 16 << 20;
/// The most bytes of one batch with its lengths: a batch is built in memory and written in one call, and whoever
/// waits for it waits for all of it.
pub const BATCH_BYTES_MAX: usize = 64 << 20;
/// The most bytes of one snapshot: it is held in memory whole, by its writer and by its reader.
pub const SNAPSHOT_BYTES_MAX: usize = 1 << 30;

/// How far the file is preallocated at a time, in bytes. Each step costs one more sync; the log of a light host
/// takes one.
const CHUNK: u64 = 1 << 20;
/// How much is copied with one write, in bytes.
const COPY_BYTES: usize = 1 << 20;
const FORMAT_VERSION: u32 = 1;
const LOG: &str = "log";
const LOG_NEW: &str = "log.new";
const SLOTS: [&str; 2] = ["snapshot.0", "snapshot.1"];
const SNAPSHOT_NEW: &str = "snapshot.new";

/// What the log refused, or what the disk did to it. Files are named as [`Disk::place`] names them.
#[derive(Debug, Clone, PartialEq, Eq, Hash, thiserror::Error)]
pub enum Error {
    /// No room, found before anything was written where it counts: the log goes on as it was.
    #[error("{file}: no space is left to {doing}; nothing was written: free some space there and try again")]
    Full {
        /// The file that should have grown.
        file: String,
        /// What for.
        doing: &'static str,
    },
    /// The disk failed. A log that was open takes no more writes.
    #[error(
        "{file}: could not {doing}; check the disk, then start again: what was acknowledged is read back"
    )]
    Disk {
        /// The file concerned.
        file: String,
        /// What was tried.
        doing: &'static str,
        /// The disk's answer.
        source: DiskError,
    },
    /// An earlier failure ended writing; whether what failed is on the disk shows at the next opening.
    #[error("the log takes no more writes after an earlier failure; start again once the disk is sound")]
    Stopped {
        /// That failure.
        source: Box<Error>,
    },
    /// A record that may have been acknowledged is damaged.
    #[error(
        "{file}: damaged at byte {offset}: {what}; nothing was changed: repair the disk; a server's directory \
         is then restored from a backup, an agent's is begun anew: see docs/backup.md"
    )]
    Damaged {
        /// The damaged file.
        file: String,
        /// Where in it.
        offset: u64,
        /// What shows that this is damage and not a write cut short.
        what: &'static str,
    },
    /// Entries or snapshots that others rest on are gone.
    #[error(
        "{file}: {what}; nothing was changed: bring the file back; or a server's directory is restored from a backup, an \
         agent's is begun anew: see docs/backup.md"
    )]
    Missing {
        /// The file that is missing or does not reach far enough.
        file: String,
        /// What is gone.
        what: &'static str,
    },
    /// The file was made by a later program.
    #[error(
        "{file}: has format {found}, this program knows {FORMAT_VERSION}; run the version that wrote it, or a \
         later one"
    )]
    Version {
        /// The file.
        file: String,
        /// Its format.
        found: u32,
    },
    /// There is a log already where a new one was to be.
    #[error("{file}: there is a log already; restore into an empty directory")]
    Exists {
        /// The file that is in the way.
        file: String,
    },
    /// A write under a reign that has ended.
    #[error("reign {given} has ended: the log is in reign {reign}")]
    Deposed {
        /// The reign of the write.
        given: Reign,
        /// The log's.
        reign: Reign,
    },
    /// A batch that does not come after the head, or leaves no index after itself.
    #[error("a batch cannot start at index {given}: the log's head is {head}")]
    NotForward {
        /// The batch's first index.
        given: Index,
        /// The last index in the log.
        head: Index,
    },
    /// A snapshot that is older than the newest, or reaches past the head.
    #[error(
        "a snapshot cannot be taken at index {given}: the newest is at {newest}, the log's head is {head}"
    )]
    SnapshotIndex {
        /// The refused snapshot's index.
        given: Index,
        /// The newest snapshot's.
        newest: Index,
        /// The last index in the log.
        head: Index,
    },
    /// More bytes than a limit allows.
    #[error("a {what} of {bytes} bytes is too large: at most {bytes_max} are accepted")]
    TooLarge {
        /// Payload, batch or snapshot.
        what: &'static str,
        /// Its length.
        bytes: usize,
        /// The limit.
        bytes_max: usize,
    },
    /// The entries asked for were compacted away.
    #[error("entries before {floor} are compacted; start from the snapshot")]
    Compacted {
        /// The first index that may still be read.
        floor: Index,
    },
}

/// One payload with its place.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Entry {
    /// Its own index.
    pub index: Index,
    /// The reign of its batch.
    pub reign: Reign,
    /// What was appended.
    pub payload: Vec<u8>,
}

/// What opening set right, for the operator's eyes.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
pub struct Repairs {
    /// A write that was cut short and never acknowledged, at this byte of this file; it is gone.
    pub torn: Option<(String, u64)>,
    /// A snapshot that is damaged; the older one and the log stand in for it.
    pub snapshot: Option<String>,
}

/// A frame in the open log.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Place {
    reign: Reign,
    first: Index,
    /// `None` when it only raises the reign.
    last: Option<Index>,
    offset: u64,
    len: usize,
}

/// An open log. After an [`Error::Disk`] from a write it only reads.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Log<D> {
    disk: D,
    places: Vec<Place>,
    floor: Index,
    head: Index,
    reign: Reign,
    /// Where the next frame goes.
    end: u64,
    /// How far the file is preallocated.
    room: u64,
    slots: [Option<Slot>; 2],
    repairs: Repairs,
    failure: Option<Box<Error>>,
}

impl<D: Disk> Log<D> {
    /// Opens the log in the disk's directory, or makes an empty one where there is nothing.
    ///
    /// Errors: [`Error::Damaged`], [`Error::Missing`] and [`Error::Version`], with nothing changed; [`Error::Full`]
    /// when there is no room for the copy that every opening makes; [`Error::Disk`].
    pub fn open(mut disk: D) -> Result<Self, Error> {
        let names = disk.list().map_err(|source| failed(&disk, LOG, "list its directory", source))?;
        let there = |name: &str| names.iter().any(|found| found == name);
        let Some(file) = read_whole(&disk, LOG)? else {
            if let Some(slot) = SLOTS.into_iter().find(|slot| there(slot)) {
                let what = "there is a snapshot but no log beside it";
                return Err(Error::Missing { file: disk.place(slot), what });
            }
            return Self::create(disk, Header { floor: Index(1), head: Index(0), reign: Reign(0) });
        };
        let scan = scan(&disk, &file)?;
        let (slots, bad_slot) = read_slots(&disk)?;
        check_snapshots(&disk, &scan, &slots, bad_slot)?;
        let mut copy = Copy::begin(&mut disk, Header { head: scan.head, reign: scan.reign, ..scan.header })?;
        for frame in &scan.frames {
            copy.push(&mut disk, frame)?;
        }
        let (places, end, room) = copy.finish(&mut disk)?;
        let repairs = Repairs {
            torn: scan.torn.map(|offset| (disk.place(LOG), offset)),
            snapshot: bad_slot.map(|slot| disk.place(slot)),
        };
        let Scan { header: Header { floor, .. }, head, reign, .. } = scan;
        Ok(Log { disk, places, floor, head, reign, end, room, slots, repairs, failure: None })
    }

    /// Makes a log that begins with a snapshot: what a restore from backup leaves. Later entries follow `index`, so
    /// it has to be above every index ever given out, beyond the backup too: tokens never repeat.
    ///
    /// Errors: [`Error::Exists`]; as [`Log::open`] and [`Log::save_snapshot`].
    pub fn restore(disk: D, index: Index, reign: Reign, bytes: &[u8]) -> Result<Self, Error> {
        let names = disk.list().map_err(|source| failed(&disk, LOG, "list its directory", source))?;
        if let Some(name) =
            [LOG, SLOTS[0], SLOTS[1]].into_iter().find(|name| names.iter().any(|found| found == name))
        {
            return Err(Error::Exists { file: disk.place(name) });
        }
        let floor = next(index).ok_or(Error::NotForward { given: index, head: Index(0) })?;
        // The log first: a restore that ends here is refused at opening, as no snapshot covers the floor.
        let mut log = Self::create(disk, Header { floor, head: index, reign })?;
        log.save_snapshot(index, bytes)?;
        Ok(log)
    }

    fn create(mut disk: D, header: Header) -> Result<Self, Error> {
        let (places, end, room) = Copy::begin(&mut disk, header)?.finish(&mut disk)?;
        let Header { floor, head, reign } = header;
        let repairs = Repairs::default();
        Ok(Log { disk, places, floor, head, reign, end, room, slots: [None; 2], repairs, failure: None })
    }

    /// The last index in the log; 0 in an empty one.
    pub fn head(&self) -> Index {
        self.head
    }

    /// The reign of the last write; 0 in an empty log.
    pub fn reign(&self) -> Reign {
        self.reign
    }

    /// The first index that can still be read.
    pub fn floor(&self) -> Index {
        self.floor
    }

    /// What this opening set right.
    pub fn repairs(&self) -> &Repairs {
        &self.repairs
    }

    /// The failure that ended writing, if one has.
    pub fn failure(&self) -> Option<&Error> {
        self.failure.as_deref()
    }

    /// The disk below.
    pub fn disk(&self) -> &D {
        &self.disk
    }

    /// The disk below, for faults: a test makes it fail, the simulator cuts its power.
    pub fn disk_mut(&mut self) -> &mut D {
        &mut self.disk
    }

    /// Gives the disk back, as the death of the process would.
    pub fn into_disk(self) -> D {
        self.disk
    }

    /// Writes one batch and returns its last index once it is safe. Its payloads take the indices from `first` on.
    ///
    /// Errors: [`Error::Deposed`], [`Error::NotForward`], [`Error::TooLarge`] and [`Error::Full`] have changed
    /// nothing. After [`Error::Disk`] the next opening shows whether the batch is there, and until then every write
    /// answers [`Error::Stopped`].
    pub fn append<P: AsRef<[u8]>>(
        &mut self,
        reign: Reign,
        first: Index,
        batch: &[P],
    ) -> Result<Index, Error> {
        assert!(!batch.is_empty(), "a batch has at least one payload");
        self.check_sound()?;
        if reign < self.reign {
            return Err(Error::Deposed { given: reign, reign: self.reign });
        }
        let not_forward = Error::NotForward { given: first, head: self.head };
        if first <= self.head {
            return Err(not_forward);
        }
        let more = batch.len() as u64 - 1;
        let last = first.0.checked_add(more).filter(|last| *last < u64::MAX).map(Index).ok_or(not_forward)?;
        check_size("batch", frame::body_len(batch), BATCH_BYTES_MAX)?;
        for payload in batch {
            check_size("payload", payload.as_ref().len(), PAYLOAD_BYTES_MAX)?;
        }
        self.write_frame(
            &frame::body(reign, first, batch),
            Place { reign, first, last: Some(last), offset: 0, len: 0 },
        )?;
        self.head = last;
        Ok(last)
    }

    /// Begins a reign and returns once it is safe: writes under lower ones are refused from then on.
    ///
    /// Errors: [`Error::Deposed`] unless it is higher than the present one; as [`Log::append`].
    pub fn begin_reign(&mut self, reign: Reign) -> Result<(), Error> {
        self.check_sound()?;
        if reign <= self.reign {
            return Err(Error::Deposed { given: reign, reign: self.reign });
        }
        let first = self.head;
        let body = frame::body::<&[u8]>(reign, first, &[]);
        self.write_frame(&body, Place { reign, first, last: None, offset: 0, len: 0 })
    }

    /// Entries from `from` on, in order: as many whole batches as fit into `bytes_max`, and one at least. Nothing
    /// when `from` is past the head. Every byte is checked again.
    ///
    /// Errors: [`Error::Compacted`]; [`Error::Damaged`] when the disk has changed under us; [`Error::Disk`].
    pub fn read(&self, from: Index, bytes_max: usize) -> Result<Vec<Entry>, Error> {
        if from < self.floor {
            return Err(Error::Compacted { floor: self.floor });
        }
        // Frames without entries have `first` at the head of their time, so ends are in order all the same.
        let start = self.places.partition_point(|place| place.last.unwrap_or(place.first) < from);
        let mut entries = Vec::new();
        let mut bytes = 0;
        for place in self.places[start..].iter().filter(|place| place.last.is_some()) {
            if bytes > 0 && bytes + place.len > bytes_max {
                break;
            }
            bytes += place.len;
            let raw = self.read_place(place)?;
            let frame = open_place(&self.disk, place, &raw)?;
            let indices = (frame.first.0..).map(Index);
            let all = indices.zip(frame.payloads()).filter(|(index, _)| *index >= from);
            entries.extend(all.map(|(index, payload)| Entry {
                index,
                reign: frame.reign,
                payload: payload.to_vec(),
            }));
        }
        Ok(entries)
    }

    /// Saves state as of `index` in place of the older snapshot and returns once it is safe.
    ///
    /// Errors: [`Error::SnapshotIndex`], [`Error::TooLarge`] and [`Error::Full`] have changed nothing.
    pub fn save_snapshot(&mut self, index: Index, bytes: &[u8]) -> Result<(), Error> {
        self.check_sound()?;
        check_size("snapshot", bytes.len(), SNAPSHOT_BYTES_MAX)?;
        let newest = self.newest().map(|at| self.slots[at].expect("the newest is there"));
        let newest_index = newest.map_or(Index(0), |slot| slot.index);
        if index < newest_index || index > self.head {
            return Err(Error::SnapshotIndex { given: index, newest: newest_index, head: self.head });
        }
        let slot = Slot { number: newest.map_or(1, |slot| slot.number + 1), index, reign: self.reign };
        let at = self.newest().map_or(0, |at| 1 - at);
        let written = write_aside(&mut self.disk, SNAPSHOT_NEW, &snapshot::encode(slot, bytes))
            .and_then(|()| move_over(&mut self.disk, SNAPSHOT_NEW, SLOTS[at]));
        self.note_failure(written)?;
        self.slots[at] = Some(slot);
        Ok(())
    }

    /// The newest snapshot, or `None` when there never was one.
    ///
    /// Errors: [`Error::Damaged`] when the disk has changed under us; [`Error::Disk`].
    pub fn load_snapshot(&self) -> Result<Option<Snapshot>, Error> {
        let Some(at) = self.newest() else { return Ok(None) };
        let file = read_whole(&self.disk, SLOTS[at])?;
        match file.and_then(snapshot::decode) {
            Some((slot, bytes)) if Some(slot) == self.slots[at] => {
                Ok(Some(Snapshot { index: slot.index, reign: slot.reign, bytes }))
            }
            Some(_) | None => {
                let what = "the snapshot is not what was saved";
                Err(Error::Damaged { file: self.disk.place(SLOTS[at]), offset: 0, what })
            }
        }
    }

    /// Forgets entries below `before`, except those that the older snapshot still needs. Returns the new floor.
    ///
    /// Errors: [`Error::Full`] has changed nothing; as [`Log::read`] and [`Log::append`].
    pub fn compact(&mut self, before: Index) -> Result<Index, Error> {
        self.check_sound()?;
        let older = self.newest().and_then(|at| self.slots[1 - at]).map_or(Index(0), |slot| slot.index);
        let floor = before.min(next(older).expect("a head is below the last index")).max(self.floor);
        if floor == self.floor {
            return Ok(floor);
        }
        let header = Header { floor, head: self.head, reign: self.reign };
        let copied = self.copy_from(header);
        let (places, end, room) = self.note_failure(copied)?;
        (self.places, self.end, self.room, self.floor) = (places, end, room, floor);
        Ok(floor)
    }

    fn copy_from(&mut self, header: Header) -> Result<(Vec<Place>, u64, u64), Error> {
        let mut copy = Copy::begin(&mut self.disk, header)?;
        let start = self.places.partition_point(|place| place.last.unwrap_or(place.first) < header.floor);
        for place in &self.places[start..] {
            let raw = self.read_place(place)?;
            let frame = open_place(&self.disk, place, &raw)?;
            copy.push(&mut self.disk, &frame)?;
        }
        copy.finish(&mut self.disk)
    }

    /// The slot of the newest snapshot.
    fn newest(&self) -> Option<usize> {
        newest(&self.slots)
    }

    fn write_frame(&mut self, body: &[u8], mut place: Place) -> Result<(), Error> {
        let bytes = frame::seal(self.end, body);
        (place.offset, place.len) = (self.end, bytes.len());
        let end = self.end + bytes.len() as u64;
        let written = self.make_room(end).and_then(|()| self.write_synced(&bytes));
        self.note_failure(written)?;
        (self.end, self.reign) = (end, place.reign);
        self.places.push(place);
        Ok(())
    }

    /// Preallocates and syncs before the frame is written: the judgement of a torn frame rests on its place having
    /// been zeros, and a full disk shows here, where nothing is lost by it.
    fn make_room(&mut self, end: u64) -> Result<(), Error> {
        if end <= self.room {
            return Ok(());
        }
        let room = end.next_multiple_of(CHUNK);
        let grown = self.disk.set_len(LOG, room);
        grown.map_err(|source| no_room(&self.disk, LOG, "append", source))?;
        self.disk.sync(LOG).map_err(|source| failed(&self.disk, LOG, "sync the file", source))?;
        self.room = room;
        Ok(())
    }

    fn write_synced(&mut self, bytes: &[u8]) -> Result<(), Error> {
        let written = self.disk.write_at(LOG, self.end, bytes);
        written.map_err(|source| failed(&self.disk, LOG, "write a batch", source))?;
        match self.disk.sync(LOG) {
            Err(_) if mutant::is(Mutant::FailedSyncAccepted) => Ok(()),
            synced => synced.map_err(|source| failed(&self.disk, LOG, "sync a batch", source)),
        }
    }

    fn check_sound(&self) -> Result<(), Error> {
        match &self.failure {
            Some(source) => Err(Error::Stopped { source: source.clone() }),
            None => Ok(()),
        }
    }

    /// Ends writing on any failure that may have left the file in doubt.
    fn note_failure<T>(&mut self, result: Result<T, Error>) -> Result<T, Error> {
        if let Err(error) = &result
            && !matches!(error, Error::Full { .. })
        {
            self.failure = Some(Box::new(error.clone()));
        }
        result
    }

    fn read_place(&self, place: &Place) -> Result<Vec<u8>, Error> {
        let raw = self.disk.read_at(LOG, place.offset, place.len);
        raw.map_err(|source| failed(&self.disk, LOG, "read a batch", source))
    }
}

fn open_place<'a, D: Disk>(disk: &D, place: &Place, raw: &'a [u8]) -> Result<Frame<'a>, Error> {
    let same = |frame: &Frame<'_>| {
        (frame.reign, frame.first, frame.last(), frame.len)
            == (place.reign, place.first, place.last, place.len)
    };
    frame::open(place.offset, raw).filter(same).ok_or_else(|| Error::Damaged {
        file: disk.place(LOG),
        offset: place.offset,
        what: "the record is not what was written",
    })
}

/// What a log file holds.
struct Scan<'a> {
    header: Header,
    frames: Vec<Frame<'a>>,
    head: Index,
    reign: Reign,
    torn: Option<u64>,
}

fn scan<'a, D: Disk>(disk: &D, file: &'a [u8]) -> Result<Scan<'a>, Error> {
    let damaged = |offset: usize, what| Error::Damaged { file: disk.place(LOG), offset: offset as u64, what };
    let header = Header::decode(file).map_err(|bad| match bad {
        BadHeader::Version(found) => Error::Version { file: disk.place(LOG), found },
        BadHeader::Damaged => damaged(0, "the header does not match its checksum"),
    })?;
    // The header's head and reign are those at the time of its writing, which the frames copied behind it lead up
    // to: they are compared at the end. Without such frames, as after a restore, entries follow the header's head.
    let start = if header.head < header.floor { header.head } else { Index(0) };
    let mut scan = Scan { header, frames: Vec::new(), head: start, reign: Reign(0), torn: None };
    let mut offset = HEADER_LEN;
    while let Some(frame) = frame::open(offset as u64, &file[offset..]) {
        let forward = if frame.count == 0 { frame.first >= scan.head } else { frame.first > scan.head };
        if !forward || frame.reign < scan.reign {
            return Err(damaged(offset, "its index or reign is below the one before"));
        }
        scan.head = frame.last().unwrap_or(scan.head);
        scan.reign = frame.reign;
        offset += frame.len;
        scan.frames.push(frame);
    }
    match frame::judge(file, offset) {
        Rest::Nothing => {}
        Rest::Torn => scan.torn = Some(offset as u64),
        Rest::Damaged(what) => return Err(damaged(offset, what)),
    }
    if scan.head < header.head {
        return Err(damaged(offset, "it ends before records that it was made with"));
    }
    scan.reign = scan.reign.max(header.reign);
    Ok(scan)
}

type Slots = [Option<Slot>; 2];

/// The good snapshots, and the name of one that is not.
fn read_slots<D: Disk>(disk: &D) -> Result<(Slots, Option<&'static str>), Error> {
    let mut slots = [None; 2];
    let mut bad = None;
    for (name, slot) in SLOTS.into_iter().zip(&mut slots) {
        let Some(file) = read_whole(disk, name)? else { continue };
        *slot = snapshot::decode(file).map(|(slot, _)| slot);
        if slot.is_none() {
            bad = Some(name);
        }
    }
    Ok((slots, bad))
}

fn newest(slots: &Slots) -> Option<usize> {
    (0..2).filter(|at| slots[*at].is_some()).max_by_key(|at| slots[*at].map(|slot| slot.number))
}

/// Refuses a state with a hole: log and snapshots must meet.
fn check_snapshots<D: Disk>(
    disk: &D,
    scan: &Scan<'_>,
    slots: &Slots,
    bad: Option<&str>,
) -> Result<(), Error> {
    let newest = newest(slots);
    let covered = newest.and_then(|at| slots[at]).map_or(Index(0), |slot| slot.index);
    if covered > scan.head {
        let what = "the log ends before the snapshot was taken";
        return Err(Error::Missing { file: disk.place(LOG), what });
    }
    if next(covered).is_some_and(|first| scan.header.floor <= first) {
        return Ok(());
    }
    match bad {
        Some(name) => {
            let what = "the snapshot does not match its checksum, and the log does not reach back behind it";
            Err(Error::Damaged { file: disk.place(name), offset: 0, what })
        }
        None => {
            let what = "the log does not reach back to a snapshot";
            Err(Error::Missing { file: disk.place(SLOTS[newest.map_or(0, |at| 1 - at)]), what })
        }
    }
}

/// A new log file that is being filled.
struct Copy {
    places: Vec<Place>,
    /// Not written yet; it goes to `written`.
    pending: Vec<u8>,
    written: u64,
}

impl Copy {
    fn begin<D: Disk>(disk: &mut D, header: Header) -> Result<Self, Error> {
        let removed = disk.remove(LOG_NEW);
        removed.map_err(|source| failed(disk, LOG_NEW, "remove the file", source))?;
        Ok(Copy { places: Vec::new(), pending: header.encode().to_vec(), written: 0 })
    }

    fn push<D: Disk>(&mut self, disk: &mut D, frame: &Frame<'_>) -> Result<(), Error> {
        let offset = self.written + self.pending.len() as u64;
        let bytes = frame::seal(offset, frame.body);
        let Frame { reign, first, .. } = *frame;
        self.places.push(Place { reign, first, last: frame.last(), offset, len: bytes.len() });
        self.pending.extend(bytes);
        if self.pending.len() < COPY_BYTES { Ok(()) } else { self.flush(disk) }
    }

    fn flush<D: Disk>(&mut self, disk: &mut D) -> Result<(), Error> {
        let written = disk.write_at(LOG_NEW, self.written, &self.pending);
        written.map_err(|source| undo(disk, LOG_NEW, source))?;
        self.written += self.pending.len() as u64;
        self.pending.clear();
        Ok(())
    }

    /// Returns the frames' places, the end of the last and the room that the file has, once it is in place.
    fn finish<D: Disk>(mut self, disk: &mut D) -> Result<(Vec<Place>, u64, u64), Error> {
        self.flush(disk)?;
        let room = self.written.next_multiple_of(CHUNK);
        disk.set_len(LOG_NEW, room).map_err(|source| undo(disk, LOG_NEW, source))?;
        disk.sync(LOG_NEW).map_err(|source| failed(disk, LOG_NEW, "sync the file", source))?;
        move_over(disk, LOG_NEW, LOG)?;
        Ok((self.places, self.written, room))
    }
}

fn write_aside<D: Disk>(disk: &mut D, name: &str, bytes: &[u8]) -> Result<(), Error> {
    disk.remove(name).map_err(|source| failed(disk, name, "remove the file", source))?;
    disk.write_at(name, 0, bytes).map_err(|source| undo(disk, name, source))?;
    disk.sync(name).map_err(|source| failed(disk, name, "sync the file", source))
}

/// Puts a synced file in the place of another. The directory is synced before as well: a file whose own name never
/// became safe must not be what a rename leads to.
fn move_over<D: Disk>(disk: &mut D, from: &str, to: &str) -> Result<(), Error> {
    disk.sync_dir().map_err(|source| failed(disk, from, "sync its directory", source))?;
    disk.rename(from, to).map_err(|source| failed(disk, from, "rename the file", source))?;
    disk.sync_dir().map_err(|source| failed(disk, to, "sync its directory", source))
}

/// Removes a file that could not be filled, so that it does not keep what little room there is.
fn undo<D: Disk>(disk: &mut D, name: &str, source: DiskError) -> Error {
    match disk.remove(name) {
        Ok(()) => no_room(disk, name, "write a copy", source),
        Err(removing) => failed(disk, name, "remove the file", removing),
    }
}

fn read_whole<D: Disk>(disk: &D, name: &str) -> Result<Option<Vec<u8>>, Error> {
    disk.read(name).map_err(|source| failed(disk, name, "read the file", source))
}

fn failed<D: Disk>(disk: &D, name: &str, doing: &'static str, source: DiskError) -> Error {
    Error::Disk { file: disk.place(name), doing, source }
}

/// A full disk that was met where nothing counts yet, or any other failure.
fn no_room<D: Disk>(disk: &D, name: &str, doing: &'static str, source: DiskError) -> Error {
    match source {
        DiskError::Full => Error::Full { file: disk.place(name), doing },
        DiskError::Io(_) => failed(disk, name, doing, source),
    }
}

fn next(index: Index) -> Option<Index> {
    index.0.checked_add(1).map(Index)
}

fn check_size(what: &'static str, bytes: usize, bytes_max: usize) -> Result<(), Error> {
    if bytes <= bytes_max { Ok(()) } else { Err(Error::TooLarge { what, bytes, bytes_max }) }
}
