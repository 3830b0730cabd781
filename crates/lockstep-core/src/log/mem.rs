//! A disk in memory that can lose power, for tests and the simulator. The same calls give the same bytes.

use super::disk::{Disk, DiskError};
use std::cell::{RefCell, RefMut};
use std::collections::BTreeMap;
use std::rc::Rc;

/// Power cuts keep or lose whole blocks of this many bytes.
const BLOCK: u64 = 512;

/// A directory of files in memory, with what a power cut would leave of it.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default)]
pub struct MemDisk {
    names: BTreeMap<String, u64>,
    /// The names as of the last `sync_dir`.
    safe_names: BTreeMap<String, u64>,
    files: BTreeMap<u64, MemFile>,
    next_file: u64,
    capacity: Option<u64>,
    failing: BTreeMap<Op, Failure>,
}

/// What a stop leaves of the writes that were not synced.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Crash {
    /// The process was killed: the system still has everything.
    Process,
    /// The power went: nothing that was not synced is left, names neither.
    PowerLost,
    /// The power went: new names are left, and of each file's unsynced bytes the first so many.
    Torn(u64),
    /// The power went: new names are left, and those 512-byte blocks whose number has its bit set (modulo 64).
    Blocks(u64),
}

/// An operation that can be made to fail.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Op {
    /// [`Disk::write_at`]; half of the bytes are written.
    Write,
    /// [`Disk::set_len`].
    SetLen,
    /// [`Disk::sync`]; the bytes stay readable and are never made safe by a later one.
    Sync,
    /// [`Disk::sync_dir`].
    SyncDir,
    /// [`Disk::rename`].
    Rename,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Failure {
    after: u32,
    error: DiskError,
}

/// Bytes behind `bytes` and before `len` are zeros that take no memory.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default)]
struct MemFile {
    bytes: Vec<u8>,
    len: u64,
    unsafe_writes: Vec<Change>,
    /// Writes whose sync failed: a later sync says yes and does not save them.
    forgotten: Vec<Change>,
}

/// One write, with what it replaced.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Change {
    offset: u64,
    old: Vec<u8>,
    old_len: u64,
    new: Vec<u8>,
    new_len: u64,
}

impl MemDisk {
    /// An empty directory.
    pub fn new() -> Self {
        Self::default()
    }

    /// Limits the sum of all file lengths, in bytes; `None` is no limit.
    pub fn set_capacity(&mut self, bytes: Option<u64>) {
        self.capacity = bytes;
    }

    /// Makes one call of `op` fail with `error`, after `after` more that succeed.
    pub fn fail(&mut self, op: Op, after: u32, error: DiskError) {
        self.failing.insert(op, Failure { after, error });
    }

    /// Stops whoever uses the disk, and leaves what `crash` says. Pending failures are gone.
    pub fn crash(&mut self, crash: Crash) {
        self.failing.clear();
        if crash == Crash::PowerLost {
            self.names = self.safe_names.clone();
        }
        if crash != Crash::Process {
            self.files.values_mut().for_each(|file| file.crash(crash));
            self.safe_names = self.names.clone();
        }
        self.drop_nameless();
    }

    /// Changes one byte in place, as decay would: `byte ^= mask`.
    pub fn flip(&mut self, name: &str, offset: u64, mask: u8) {
        let file = self.file_mut(name);
        let byte = file.read(offset, 1).first().copied().expect("the byte is within the file");
        file.put(offset, &[byte ^ mask]);
    }

    /// Cuts a file to `len` bytes, as somebody from outside would.
    pub fn truncate(&mut self, name: &str, len: u64) {
        self.file_mut(name).cut(len);
    }

    fn file(&self, name: &str) -> Option<&MemFile> {
        self.files.get(self.names.get(name)?)
    }

    fn file_mut(&mut self, name: &str) -> &mut MemFile {
        let next = &mut self.next_file;
        let id = *self.names.entry(name.to_owned()).or_insert_with(|| {
            *next += 1;
            *next
        });
        self.files.entry(id).or_default()
    }

    fn strike(&mut self, op: Op) -> Result<(), DiskError> {
        match self.failing.get_mut(&op) {
            Some(Failure { after: 0, error }) => {
                let error = error.clone();
                self.failing.remove(&op);
                Err(error)
            }
            Some(failure) => {
                failure.after -= 1;
                Ok(())
            }
            None => Ok(()),
        }
    }

    fn check_room(&self, name: &str, len: u64) -> Result<(), DiskError> {
        let own = self.file(name).map_or(0, |file| file.len);
        let used: u64 = self.names.values().map(|id| self.files[id].len).sum();
        match self.capacity {
            Some(capacity) if len > own && used - own + len > capacity => Err(DiskError::Full),
            Some(_) | None => Ok(()),
        }
    }

    fn drop_nameless(&mut self) {
        let (names, safe) = (&self.names, &self.safe_names);
        self.files.retain(|id, _| names.values().chain(safe.values()).any(|named| named == id));
    }
}

impl MemFile {
    fn read(&self, offset: u64, len: usize) -> Vec<u8> {
        let there = self.len.saturating_sub(offset).min(len as u64) as usize;
        let from = (offset as usize).min(self.bytes.len());
        let to = (offset as usize + there).min(self.bytes.len()).max(from);
        let mut bytes = vec![0; there];
        bytes[..to - from].copy_from_slice(&self.bytes[from..to]);
        bytes
    }

    fn put(&mut self, offset: u64, bytes: &[u8]) {
        if bytes.is_empty() {
            return;
        }
        let end = offset as usize + bytes.len();
        if self.bytes.len() < end {
            self.bytes.resize(end, 0);
        }
        self.bytes[offset as usize..end].copy_from_slice(bytes);
        self.len = self.len.max(end as u64);
    }

    fn cut(&mut self, len: u64) {
        self.bytes.truncate(len as usize);
        self.len = len;
    }

    fn change(&mut self, offset: u64, new: &[u8], new_len: u64) {
        // Only a cut loses bytes that no write names.
        let old_end = if new_len < self.len { self.len } else { offset + new.len() as u64 };
        let from = offset.min(new_len);
        let old = self.read(from, (old_end - from) as usize);
        let old_len = self.len;
        self.cut(new_len);
        self.put(offset.min(new_len), new);
        self.unsafe_writes.push(Change { offset: from, old, old_len, new: new.to_vec(), new_len });
    }

    fn crash(&mut self, crash: Crash) {
        let mut changes = std::mem::take(&mut self.forgotten);
        let forgotten = changes.len();
        changes.append(&mut self.unsafe_writes);
        for change in changes.iter().rev() {
            self.cut(change.old_len);
            self.put(change.offset.min(change.old_len), &change.old);
            self.cut(change.old_len);
        }
        let mut budget = if let Crash::Torn(bytes) = crash { bytes } else { u64::MAX };
        for change in &changes[forgotten..] {
            match crash {
                Crash::Process | Crash::PowerLost => {}
                Crash::Torn(_) => {
                    let kept = budget.min(change.new.len() as u64);
                    budget -= kept;
                    self.cut(change.new_len);
                    self.put(change.offset.min(change.new_len), &change.new[..kept as usize]);
                }
                Crash::Blocks(mask) => {
                    self.cut(change.new_len);
                    for (at, byte) in (change.offset..).zip(&change.new) {
                        if mask >> (at / BLOCK % 64) & 1 == 1 {
                            self.put(at, &[*byte]);
                        }
                    }
                }
            }
        }
    }
}

impl Disk for MemDisk {
    fn place(&self, name: &str) -> String {
        format!("memory/{name}")
    }

    fn read(&self, name: &str) -> Result<Option<Vec<u8>>, DiskError> {
        Ok(self.file(name).map(|file| file.read(0, file.len as usize)))
    }

    fn read_at(&self, name: &str, offset: u64, len: usize) -> Result<Vec<u8>, DiskError> {
        let file = self.file(name).ok_or_else(|| DiskError::Io("no such file".to_owned()))?;
        Ok(file.read(offset, len))
    }

    fn write_at(&mut self, name: &str, offset: u64, bytes: &[u8]) -> Result<(), DiskError> {
        let struck = self.strike(Op::Write);
        let bytes = if struck.is_err() { &bytes[..bytes.len() / 2] } else { bytes };
        let end = offset + bytes.len() as u64;
        self.check_room(name, end)?;
        let file = self.file_mut(name);
        file.change(offset, bytes, file.len.max(end));
        struck
    }

    fn set_len(&mut self, name: &str, len: u64) -> Result<(), DiskError> {
        self.strike(Op::SetLen)?;
        self.check_room(name, len)?;
        self.file_mut(name).change(len, &[], len);
        Ok(())
    }

    fn sync(&mut self, name: &str) -> Result<(), DiskError> {
        let struck = self.strike(Op::Sync);
        let file = self.file_mut(name);
        let writes = std::mem::take(&mut file.unsafe_writes);
        if struck.is_err() {
            file.forgotten.extend(writes);
        }
        struck
    }

    fn sync_dir(&mut self) -> Result<(), DiskError> {
        self.strike(Op::SyncDir)?;
        self.safe_names = self.names.clone();
        self.drop_nameless();
        Ok(())
    }

    fn rename(&mut self, from: &str, to: &str) -> Result<(), DiskError> {
        self.strike(Op::Rename)?;
        let id = self.names.remove(from).ok_or_else(|| DiskError::Io("no such file".to_owned()))?;
        self.names.insert(to.to_owned(), id);
        Ok(())
    }

    fn remove(&mut self, name: &str) -> Result<(), DiskError> {
        self.names.remove(name);
        Ok(())
    }

    fn list(&self) -> Result<Vec<String>, DiskError> {
        Ok(self.names.keys().cloned().collect())
    }
}

/// A disk in memory that outlives the log on it, and that whoever makes it fail keeps a hand on.
#[derive(Debug, Clone, Default)]
pub struct SharedDisk(Rc<RefCell<MemDisk>>);

impl SharedDisk {
    /// Shares a disk.
    pub fn new(disk: MemDisk) -> Self {
        Self(Rc::new(RefCell::new(disk)))
    }

    /// The disk itself, not to be held while a log works on it.
    pub fn get(&self) -> RefMut<'_, MemDisk> {
        self.0.borrow_mut()
    }
}

impl Disk for SharedDisk {
    fn place(&self, name: &str) -> String {
        self.get().place(name)
    }
    fn read(&self, name: &str) -> Result<Option<Vec<u8>>, DiskError> {
        self.get().read(name)
    }
    fn read_at(&self, name: &str, offset: u64, len: usize) -> Result<Vec<u8>, DiskError> {
        self.get().read_at(name, offset, len)
    }
    fn write_at(&mut self, name: &str, offset: u64, bytes: &[u8]) -> Result<(), DiskError> {
        self.get().write_at(name, offset, bytes)
    }
    fn set_len(&mut self, name: &str, len: u64) -> Result<(), DiskError> {
        self.get().set_len(name, len)
    }
    fn sync(&mut self, name: &str) -> Result<(), DiskError> {
        self.get().sync(name)
    }
    fn sync_dir(&mut self) -> Result<(), DiskError> {
        self.get().sync_dir()
    }
    fn rename(&mut self, from: &str, to: &str) -> Result<(), DiskError> {
        self.get().rename(from, to)
    }
    fn remove(&mut self, name: &str) -> Result<(), DiskError> {
        self.get().remove(name)
    }
    fn list(&self) -> Result<Vec<String>, DiskError> {
        self.get().list()
    }
}
