//! Handlers that outlived a killed agent. A step may be taken back only after its handler has ended, so the next
//! run of the agent ends them before it says a word.
//!
//! Each call has a file, made before its handler starts and named after it; the handler's process id is written into
//! it at once. An agent that is killed between the two leaves a file without one. Then the handler is found by the
//! name of its call, which is in its environment.

use crate::process::{Process, Seen, group_lives};
use crate::store::Error;
use rustix::process::{Pid, Signal, kill_process_group};
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use tracing::warn;

/// How often to look whether a killed group is gone.
const LOOK_MS: u64 = 10;
/// After so many looks, 2 s, it is said that it takes long.
const LOOKS_TOLD: u64 = 200;
/// The variable that names a call in its handler's environment, without the prefix that all of them have.
pub(crate) const CALL: &str = "CALL";
/// The directory of those files, in the agent's own.
pub(crate) const RUNNING: &str = "running";

/// The directory in which each running handler has a file with its process group.
#[derive(Debug, Clone)]
pub(super) struct Leftovers {
    dir: Arc<PathBuf>,
}

/// A handler that is about to run; its file goes when this is dropped.
pub(super) struct Note {
    /// What its call is named, and no other ever.
    pub(super) name: String,
    path: PathBuf,
}

/// What a file says of a handler that runs, or ran when its agent was killed.
pub(crate) struct Noted {
    /// What its call is named; the file has this name.
    pub(crate) name: String,
    /// The leader of its process group, where that was written down.
    pub(crate) leader: Option<Process>,
}

/// All that is noted in a directory.
pub(crate) fn noted(dir: &Path) -> Vec<Noted> {
    let Ok(files) = fs::read_dir(dir) else { return Vec::new() };
    let read = |file: fs::DirEntry| {
        let text = fs::read_to_string(file.path()).unwrap_or_default();
        let mut words = text.split_ascii_whitespace();
        let pid = words.next().and_then(|pid| pid.parse().ok());
        let started = words.next().and_then(|started| started.parse().ok());
        let leader = pid.zip(started).map(|(pid, started)| Process { pid, started });
        Some(Noted { name: file.file_name().to_str()?.to_owned(), leader })
    };
    files.flatten().filter_map(read).collect()
}

impl Leftovers {
    pub(super) fn open(data: &Path) -> Result<Self, Error> {
        let dir = data.join(RUNNING);
        let made = fs::create_dir_all(&dir);
        let doing = "make a directory for running handlers";
        made.map_err(|source| Error::Directory { path: dir.clone(), doing, source: Arc::new(source) })?;
        Ok(Self { dir: Arc::new(dir) })
    }

    /// Notes that a handler is about to start.
    ///
    /// Errors: there is no room for it, or the directory is gone.
    pub(super) fn note(&self) -> io::Result<Note> {
        let name = super::random();
        let path = self.dir.join(&name);
        fs::write(&path, "")?;
        Ok(Note { name, path })
    }

    /// Ends what an earlier run of this agent left, and waits until it is gone.
    pub(super) async fn end(&self) {
        for Noted { name, leader } in noted(&self.dir) {
            let leaders = leader.map_or_else(|| leaders_of_call(&name), |leader| vec![leader]);
            for leader in leaders {
                end_group(leader).await;
            }
            remove(&self.dir.join(name));
        }
    }
}

impl Note {
    /// The handler runs under this process id, which is its group's too.
    pub(super) fn started(&self, pid: u32) {
        let seen = i32::try_from(pid).ok().and_then(Seen::read);
        let started = seen.map(|seen| seen.process.started.to_string()).unwrap_or_default();
        self.write(&format!("{pid} {started}\n"));
    }

    fn write(&self, text: &str) {
        if let Err(error) = fs::write(&self.path, text) {
            warn!(%error, path = %self.path.display(), "cannot note a running handler");
        }
    }
}

impl Drop for Note {
    fn drop(&mut self) {
        remove(&self.path);
    }
}

fn remove(path: &Path) {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            warn!(%error, path = %path.display(), "cannot remove the note of a handler that has ended");
        }
        Ok(()) | Err(_) => {}
    }
}

/// Ends the group of a leader that may have ended itself.
async fn end_group(leader: Process) {
    // While a group has a member its id is given to no new process. So a leader with another start means that
    // the group is gone and its id is somebody else's.
    if Seen::read(leader.pid).is_some_and(|seen| seen.process != leader) {
        return;
    }
    let Some(group) = Pid::from_raw(leader.pid) else { return };
    if kill_process_group(group, Signal::KILL).is_ok() {
        warn!(group = group.as_raw_nonzero(), "ended a handler that outlived an earlier run of this agent");
    }
    // However long it takes: what it is in the middle of must not meet what is ordered next.
    for look in 1_u64.. {
        if !group_lives(group) {
            return;
        }
        if look % LOOKS_TOLD == 0 {
            let group = group.as_raw_nonzero();
            warn!(
                group,
                "a killed handler is still there, in the kernel's hands: the agent waits for its end"
            );
        }
        tokio::time::sleep(Duration::from_millis(LOOK_MS)).await;
    }
}

/// The leader of the process group of a call's handler. What the handler started in a session of its own has the
/// same environment, and is meant to stay.
fn leaders_of_call(name: &str) -> Vec<Process> {
    let variable = format!("LOCKSTEP_{CALL}={name}");
    let leads = |seen: &Seen| seen.group == seen.process.pid && seen.session != seen.process.pid;
    let is_of_call = |process: &Process| {
        let environ = fs::read(format!("/proc/{}/environ", process.pid)).unwrap_or_default();
        environ.split(|byte| *byte == 0).any(|entry| entry == variable.as_bytes())
    };
    let all = Seen::all().into_iter().flatten();
    all.filter(leads).map(|seen| seen.process).filter(is_of_call).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::process::CommandExt;
    use std::process::{Child, Command};

    /// A process that ends with the test.
    struct Sleeper(Child);

    impl Sleeper {
        fn start(name: &str) -> Self {
            Self::start_program(Path::new("sleep"), name)
        }

        fn start_program(program: &Path, name: &str) -> Self {
            let mut command = Command::new(program);
            command.arg("60").env(format!("LOCKSTEP_{CALL}"), name).process_group(0);
            Self(command.spawn().unwrap())
        }

        fn has_ended(&mut self) -> bool {
            self.0.try_wait().unwrap().is_some()
        }
    }

    impl Drop for Sleeper {
        fn drop(&mut self) {
            // It may have ended.
            let _ = self.0.kill();
            let _ = self.0.wait();
        }
    }

    /// A note that a killed agent did not remove.
    fn leave(note: Note) {
        std::mem::forget(note);
    }

    #[tokio::test]
    async fn a_handler_is_ended_whether_its_id_was_noted_or_not() {
        let data = tempfile::tempdir().unwrap();
        let leftovers = Leftovers::open(data.path()).unwrap();
        let (noted, begun, ended) =
            (leftovers.note().unwrap(), leftovers.note().unwrap(), leftovers.note().unwrap());
        let (mut first, mut second) = (Sleeper::start(&noted.name), Sleeper::start(&begun.name));
        let mut others = [Sleeper::start(&ended.name), Sleeper::start("another's")];
        noted.started(first.0.id());
        drop(ended);
        leave(noted);
        leave(begun);
        leftovers.end().await;
        assert!(first.has_ended() && second.has_ended());
        assert!(!others.iter_mut().any(Sleeper::has_ended), "nobody noted them");
        assert_eq!(fs::read_dir(data.path().join("running")).unwrap().count(), 0);
    }

    #[tokio::test]
    async fn a_handler_whose_name_is_cut_within_a_character_is_ended_too() {
        let data = tempfile::tempdir().unwrap();
        let leftovers = Leftovers::open(data.path()).unwrap();
        let program = data.path().join("umschalten-aufü");
        std::os::unix::fs::symlink("/bin/sleep", &program).unwrap();
        for is_noted in [true, false] {
            let note = leftovers.note().unwrap();
            let mut handler = Sleeper::start_program(&program, &note.name);
            if is_noted {
                note.started(handler.0.id());
            }
            leave(note);
            leftovers.end().await;
            assert!(handler.has_ended(), "noted: {is_noted}");
        }
    }

    #[tokio::test]
    async fn a_process_that_got_a_handlers_id_is_spared() {
        let data = tempfile::tempdir().unwrap();
        let leftovers = Leftovers::open(data.path()).unwrap();
        let mut other = Sleeper::start("another's");
        let note = leftovers.note().unwrap();
        note.write(&format!("{} 1\n", other.0.id()));
        leave(note);
        leftovers.end().await;
        assert!(!other.has_ended());
    }

    #[tokio::test]
    async fn a_group_whose_dead_nobody_has_buried_is_gone() {
        let mut child = Command::new("sleep").arg("60").process_group(0).spawn().unwrap();
        let group = Pid::from_child(&child);
        let leader = || Seen::read(group.as_raw_nonzero().get());
        assert!(group_lives(group), "it lives");
        end_group(leader().unwrap().process).await;
        assert!(!group_lives(group), "it is dead");
        assert!(leader().is_some(), "it was not to be buried yet");
        child.wait().unwrap();
        assert!(!group_lives(group), "it is buried");
    }
}
