//! The guard's log: a file that does not grow for ever.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::PathBuf;

/// Where the file is put aside and begun anew, in bytes. One more of them is kept, as `guard.log.1`.
const LOG_BYTES_MAX: u64 = 256 * 1024;

/// A file that is put aside when it is full.
pub(super) struct Log {
    path: PathBuf,
    file: File,
    len: u64,
}

impl Log {
    pub(super) fn open(path: PathBuf) -> io::Result<Self> {
        let file = append(&path)?;
        let len = file.metadata()?.len();
        Ok(Self { path, file, len })
    }
}

fn append(path: &std::path::Path) -> io::Result<File> {
    File::options().create(true).append(true).open(path)
}

impl Write for Log {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.len >= LOG_BYTES_MAX {
            fs::rename(&self.path, self.path.with_extension("log.1"))?;
            self.file = append(&self.path)?;
            self.len = 0;
        }
        let written = self.file.write(bytes)?;
        self.len += written as u64;
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_keeps_the_last_of_what_was_said_and_not_all() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("guard.log");
        let mut log = Log::open(path.clone()).unwrap();
        let line = |number: u64| format!("{number:0>99}\n");
        let lines = LOG_BYTES_MAX / 100 * 3;
        for number in 0..lines {
            log.write_all(line(number).as_bytes()).unwrap();
        }
        drop(log);
        Log::open(path.clone()).unwrap().write_all(line(lines).as_bytes()).unwrap();
        let (old, new) = (fs::read_to_string(dir.path().join("guard.log.1")), fs::read_to_string(&path));
        let all = old.unwrap() + &new.unwrap();
        assert!(all.len() as u64 <= 2 * LOG_BYTES_MAX + 200);
        assert!(all.lines().count() as u64 > LOG_BYTES_MAX / 100);
        assert!(all.ends_with(&line(lines)));
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 2);
    }
}
