//! What the log asks of a disk: files by name in one directory, and nothing hidden.

/// A disk operation that failed.
#[derive(Debug, Clone, PartialEq, Eq, Hash, thiserror::Error)]
pub enum DiskError {
    /// No room is left (ENOSPC, or a quota).
    #[error("no space is left")]
    Full,
    /// Anything else, in the system's own words.
    #[error("{0}")]
    Io(String),
}

/// One directory of files, as the log sees it.
///
/// Nothing written is safe before [`Disk::sync`] of its file, and no new, renamed or removed name before
/// [`Disk::sync_dir`]. The binary puts a real directory behind it, tests and the simulator [`super::MemDisk`].
pub trait Disk {
    /// How a message names this file: the path for a real disk.
    fn place(&self, name: &str) -> String;

    /// The whole file, or `None` when there is no such file.
    fn read(&self, name: &str) -> Result<Option<Vec<u8>>, DiskError>;

    /// Up to `len` bytes from `offset`; fewer where the file ends.
    fn read_at(&self, name: &str, offset: u64, len: usize) -> Result<Vec<u8>, DiskError>;

    /// Writes all of `bytes` at `offset` and creates the file when it is missing. After an error any part of it
    /// may have been written.
    fn write_at(&mut self, name: &str, offset: u64, bytes: &[u8]) -> Result<(), DiskError>;

    /// Makes the file `len` bytes long and creates it when it is missing. What is new reads as zeros and has its
    /// room on the disk, so that a later write there does not meet a full disk. After an error the file may have
    /// grown by some zeros; no byte that it held before has changed.
    fn set_len(&mut self, name: &str, len: u64) -> Result<(), DiskError>;

    /// Returns once the file's bytes and length are safe. After an error they may never be, even if a second call
    /// succeeds: kernels report a failed write-back once and then forget it.
    fn sync(&mut self, name: &str) -> Result<(), DiskError>;

    /// Returns once the directory's names are safe.
    fn sync_dir(&mut self) -> Result<(), DiskError>;

    /// Gives `from` the name `to` in one move, in place of the file that had it.
    fn rename(&mut self, from: &str, to: &str) -> Result<(), DiskError>;

    /// Removes a file; it is no error when there is none.
    fn remove(&mut self, name: &str) -> Result<(), DiskError>;

    /// The names of all files, sorted.
    fn list(&self) -> Result<Vec<String>, DiskError>;
}
