//! A real directory behind the log.

use super::Error;
use lockstep_core::log::{Disk, DiskError};
use rustix::fs::{FallocateFlags, FlockOperation};
use rustix::io::{Errno, retry_on_intr};
use std::collections::BTreeMap;
use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, ErrorKind, Read as _, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, FileExt as _, MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Records may hold what operators wrote and handlers said: nobody else reads them.
const FILE_MODE: u32 = 0o600;
const DIR_MODE: u32 = 0o700;
const LOCK: &str = "lock";
/// How many zeros are written at a time.
const ZEROS_LEN: usize = 256 << 10;

/// One directory, locked for this process as long as this lives. Files are made with mode 0600, the directory, if
/// missing, with 0700.
#[derive(Debug)]
pub struct FileDisk {
    dir: PathBuf,
    /// Files that are being written.
    open: BTreeMap<String, File>,
    /// Holds the lock; the kernel releases it with the process, however that ends.
    lock: File,
}

impl Drop for FileDisk {
    /// Closing the file is not enough: a child process between fork and exec has it open too, for an instant.
    fn drop(&mut self) {
        // An error leaves the lock to the end of the process.
        let _ = rustix::fs::flock(&self.lock, FlockOperation::Unlock);
    }
}

impl FileDisk {
    /// Takes the directory for this process, and makes it when it is missing.
    ///
    /// Errors: [`Error::InUse`] when another process, or this one, has it; [`Error::Directory`].
    pub fn open(dir: &Path) -> Result<Self, Error> {
        make_dir(dir).map_err(|source| unusable(dir, "make the directory", source))?;
        let path = dir.join(LOCK);
        let lock = options().create(true).truncate(false).open(&path);
        let mut lock = lock.map_err(|source| unusable(&path, "open the lock file", source))?;
        match retry_on_intr(|| rustix::fs::flock(&lock, FlockOperation::NonBlockingLockExclusive)) {
            Ok(()) => {}
            Err(Errno::WOULDBLOCK) => {
                return Err(Error::InUse { dir: dir.to_owned(), holder: holder(&mut lock) });
            }
            Err(errno) => return Err(unusable(&path, "lock the lock file", errno.into())),
        }
        // For the message of whoever comes next; the lock itself is what counts.
        let noted =
            lock.set_len(0).and_then(|()| lock.write_all(format!("{}\n", std::process::id()).as_bytes()));
        match noted.map_err(disk_error) {
            Ok(()) | Err(DiskError::Full) => {}
            Err(DiskError::Io(text)) => {
                return Err(unusable(&path, "write the lock file", io::Error::other(text)));
            }
        }
        Ok(FileDisk { dir: dir.to_owned(), open: BTreeMap::new(), lock })
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }

    /// A lock on a file that nobody can find keeps nobody out.
    fn check_lock(&self) -> Result<(), DiskError> {
        let held = self.lock.metadata().map_err(disk_error)?;
        match fs::metadata(self.path(LOCK)) {
            Ok(found) if (found.dev(), found.ino()) == (held.dev(), held.ino()) => Ok(()),
            Ok(_) | Err(_) => {
                let text = "the lock file was removed or replaced, so another process may write here too";
                Err(DiskError::Io(text.to_owned()))
            }
        }
    }

    /// The file, open for writing; made when it is missing.
    fn file(&mut self, name: &str) -> io::Result<&File> {
        if !self.open.contains_key(name) {
            let file = options().create(true).truncate(false).open(self.path(name))?;
            self.open.insert(name.to_owned(), file);
        }
        Ok(&self.open[name])
    }
}

fn options() -> OpenOptions {
    let mut options = File::options();
    options.read(true).write(true).mode(FILE_MODE);
    options
}

fn make_dir(dir: &Path) -> io::Result<()> {
    if dir.is_dir() {
        return Ok(());
    }
    DirBuilder::new().recursive(true).mode(DIR_MODE).create(dir)?;
    // The name of the new directory must be as safe as what is about to be written into it.
    match dir.parent() {
        Some(parent) if parent != Path::new("") => File::open(parent)?.sync_all(),
        Some(_) | None => File::open(".")?.sync_all(),
    }
}

fn holder(lock: &mut File) -> String {
    let mut text = String::new();
    let read = lock.read_to_string(&mut text);
    match (read, text.trim().parse::<u32>()) {
        (Ok(_), Ok(pid)) => format!("process {pid}"),
        (Ok(_) | Err(_), _) => "another process".to_owned(),
    }
}

fn unusable(path: &Path, doing: &'static str, source: io::Error) -> Error {
    Error::Directory { path: path.to_owned(), doing, source: Arc::new(source) }
}

fn disk_error(error: io::Error) -> DiskError {
    match error.kind() {
        ErrorKind::StorageFull | ErrorKind::QuotaExceeded => DiskError::Full,
        _ => DiskError::Io(error.to_string()),
    }
}

/// Grows a file by zeros that have their room. Asking for the room first fails at once where there is none; writing
/// the zeros spares every later sync the change from "no blocks yet" to "these blocks", and gets the room where
/// asking is not supported.
fn grow(file: &File, from: u64, to: u64) -> io::Result<()> {
    match retry_on_intr(|| rustix::fs::fallocate(file, FallocateFlags::empty(), from, to - from)) {
        Ok(()) | Err(Errno::OPNOTSUPP | Errno::NOSYS | Errno::INVAL) => {}
        Err(errno) => return Err(errno.into()),
    }
    let zeros = vec![0; ZEROS_LEN];
    let mut at = from;
    while at < to {
        let len = (to - at).min(ZEROS_LEN as u64);
        file.write_all_at(&zeros[..len as usize], at)?;
        at += len;
    }
    Ok(())
}

impl Disk for FileDisk {
    fn place(&self, name: &str) -> String {
        self.path(name).display().to_string()
    }

    fn read(&self, name: &str) -> Result<Option<Vec<u8>>, DiskError> {
        match fs::read(self.path(name)) {
            Ok(bytes) => Ok(Some(bytes)),
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
            Err(error) => Err(disk_error(error)),
        }
    }

    fn read_at(&self, name: &str, offset: u64, len: usize) -> Result<Vec<u8>, DiskError> {
        let read = || {
            let opened;
            let file = match self.open.get(name) {
                Some(file) => file,
                None => {
                    opened = File::open(self.path(name))?;
                    &opened
                }
            };
            let mut bytes = vec![0; len];
            let mut filled = 0;
            while filled < len {
                match file.read_at(&mut bytes[filled..], offset + filled as u64) {
                    Ok(0) => break,
                    Ok(more) => filled += more,
                    Err(error) if error.kind() == ErrorKind::Interrupted => {}
                    Err(error) => return Err(error),
                }
            }
            bytes.truncate(filled);
            Ok(bytes)
        };
        read().map_err(disk_error)
    }

    fn write_at(&mut self, name: &str, offset: u64, bytes: &[u8]) -> Result<(), DiskError> {
        self.file(name).and_then(|file| file.write_all_at(bytes, offset)).map_err(disk_error)
    }

    fn set_len(&mut self, name: &str, len: u64) -> Result<(), DiskError> {
        let set = |file: &File| {
            let now = file.metadata()?.len();
            if now < len { grow(file, now, len) } else { file.set_len(len) }
        };
        self.file(name).and_then(set).map_err(disk_error)
    }

    fn sync(&mut self, name: &str) -> Result<(), DiskError> {
        self.file(name).and_then(File::sync_data).map_err(disk_error)?;
        // After the sync, so that nothing is acknowledged in a directory that is no longer there or ours alone.
        self.check_lock()
    }

    fn sync_dir(&mut self) -> Result<(), DiskError> {
        File::open(&self.dir).and_then(|dir| dir.sync_all()).map_err(disk_error)
    }

    fn rename(&mut self, from: &str, to: &str) -> Result<(), DiskError> {
        fs::rename(self.path(from), self.path(to)).map_err(disk_error)?;
        self.open.remove(to);
        if let Some(file) = self.open.remove(from) {
            self.open.insert(to.to_owned(), file);
        }
        Ok(())
    }

    fn remove(&mut self, name: &str) -> Result<(), DiskError> {
        self.open.remove(name);
        match fs::remove_file(self.path(name)) {
            Ok(()) => Ok(()),
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(()),
            Err(error) => Err(disk_error(error)),
        }
    }

    fn list(&self) -> Result<Vec<String>, DiskError> {
        let names = || -> io::Result<Vec<String>> {
            let mut names = Vec::new();
            for file in fs::read_dir(&self.dir)? {
                // A name that is not text is none of ours.
                names.extend(file?.file_name().into_string());
            }
            names.sort();
            Ok(names)
        };
        names().map_err(disk_error)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt as _;

    #[test]
    fn files_are_for_the_owner_only() {
        let parent = tempfile::tempdir().unwrap();
        let dir = parent.path().join("a").join("b");
        let mut disk = FileDisk::open(&dir).unwrap();
        disk.write_at("log", 0, b"x").unwrap();
        let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
        assert_eq!(mode(&dir), 0o700);
        assert_eq!(mode(&dir.join("log")), 0o600);
        assert_eq!(mode(&dir.join("lock")), 0o600);
    }

    #[test]
    fn a_second_user_is_told_where_and_who() {
        let dir = tempfile::tempdir().unwrap();
        let first = FileDisk::open(dir.path()).unwrap();
        let error = FileDisk::open(dir.path()).unwrap_err().to_string();
        let who = format!("{} is in use by process {}", dir.path().display(), std::process::id());
        assert!(error.starts_with(&who) && error.contains("--data"), "{error}");
        drop(first);
        FileDisk::open(dir.path()).unwrap();
    }

    #[test]
    fn nothing_is_synced_without_the_lock_file() {
        let dir = tempfile::tempdir().unwrap();
        let mut disk = FileDisk::open(dir.path()).unwrap();
        disk.write_at("log", 0, b"x").unwrap();
        disk.sync("log").unwrap();
        fs::remove_file(dir.path().join("lock")).unwrap();
        assert!(matches!(disk.sync("log"), Err(DiskError::Io(_))));
        let second = FileDisk::open(dir.path()).unwrap();
        assert!(matches!(disk.sync("log"), Err(DiskError::Io(_))));
        drop(second);
    }

    #[test]
    fn a_place_that_is_no_directory_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("file");
        fs::write(&file, "").unwrap();
        let error = FileDisk::open(&file).unwrap_err().to_string();
        assert!(error.contains(&file.display().to_string()), "{error}");
    }

    #[test]
    fn files_behave_as_the_log_expects() {
        let dir = tempfile::tempdir().unwrap();
        let mut disk = FileDisk::open(dir.path()).unwrap();
        assert_eq!(disk.read("a"), Ok(None));
        disk.set_len("a", 300_000).unwrap();
        disk.write_at("a", 299_998, b"end").unwrap();
        disk.sync("a").unwrap();
        assert_eq!(disk.read_at("a", 299_997, 10), Ok(b"\0end".to_vec()));
        assert_eq!(disk.read("a").unwrap().unwrap().len(), 300_001);
        disk.write_at("b", 0, b"other").unwrap();
        disk.rename("b", "a").unwrap();
        disk.sync_dir().unwrap();
        disk.write_at("a", 0, b"O").unwrap();
        assert_eq!(disk.read("a"), Ok(Some(b"Other".to_vec())));
        disk.set_len("a", 2).unwrap();
        assert_eq!(disk.read_at("a", 0, 10), Ok(b"Ot".to_vec()));
        assert_eq!(disk.list(), Ok(vec!["a".to_owned(), "lock".to_owned()]));
        disk.remove("a").unwrap();
        disk.remove("a").unwrap();
        assert_eq!(disk.read("a"), Ok(None));
    }

    #[test]
    fn a_full_disk_is_told_apart() {
        assert_eq!(disk_error(Errno::NOSPC.into()), DiskError::Full);
        assert_eq!(disk_error(Errno::DQUOT.into()), DiskError::Full);
        assert!(matches!(disk_error(Errno::IO.into()), DiskError::Io(_)));
    }
}
