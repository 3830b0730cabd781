//! Handlers that outlived a killed agent. A step may be taken back only after its handler has ended, so the next
//! run of the agent ends them before it says a word.

use crate::store::Error;
use lockstep_core::agent::CallId;
use rustix::io::Errno;
use rustix::process::{Pid, Signal, kill_process_group, test_kill_process_group};
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use tracing::warn;

/// How often, and how many times, to look whether a killed group is gone: for 2 s.
const LOOK_MS: u64 = 10;
const LOOKS_MAX: u32 = 200;

/// The directory in which each running handler has a file with its process group.
#[derive(Debug, Clone)]
pub(super) struct Leftovers {
    dir: Arc<PathBuf>,
}

/// A handler that is about to run; its file goes when this is dropped.
pub(super) struct Note {
    path: PathBuf,
}

impl Leftovers {
    pub(super) fn open(data: &Path) -> Result<Self, Error> {
        let dir = data.join("running");
        let made = fs::create_dir_all(&dir);
        let doing = "make a directory for running handlers";
        made.map_err(|source| Error::Directory { path: dir.clone(), doing, source: Arc::new(source) })?;
        Ok(Self { dir: Arc::new(dir) })
    }

    pub(super) fn note(&self, call: CallId) -> Note {
        Note { path: self.dir.join(call.0.to_string()) }
    }

    /// Ends what an earlier run of this agent left, and waits until it is gone.
    pub(super) async fn end(&self) {
        let Ok(files) = fs::read_dir(self.dir.as_path()) else { return };
        for path in files.flatten().map(|file| file.path()) {
            let text = fs::read_to_string(&path).unwrap_or_default();
            let mut words = text.split_ascii_whitespace();
            let group = words.next().and_then(|pid| pid.parse().ok()).and_then(Pid::from_raw);
            if let (Some(group), Some(started)) = (group, words.next()) {
                end_group(group, started).await;
            }
            remove(&path);
        }
    }
}

impl Note {
    /// The handler runs under this process id, which is its group's too.
    pub(super) fn started(&self, pid: u32) {
        let started = i32::try_from(pid).ok().and_then(Pid::from_raw).and_then(start_of).unwrap_or_default();
        if let Err(error) = fs::write(&self.path, format!("{pid} {started}\n")) {
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

/// A process's start, in clock ticks since boot: with its id, it names the process for good.
fn start_of(pid: Pid) -> Option<String> {
    let stat = fs::read_to_string(format!("/proc/{}/stat", pid.as_raw_nonzero())).ok()?;
    after_name(&stat)?.nth(19).map(str::to_owned)
}

/// The fields of a `/proc/PID/stat` from its third, the state, on: pid (name, which may hold anything) state ppid
/// pgrp ... start is the 22nd, the 20th after the name.
fn after_name(stat: &str) -> Option<impl Iterator<Item = &str>> {
    stat.rsplit_once(')').map(|(_, after_name)| after_name.split_ascii_whitespace())
}

/// Whether nothing of a group can act any more. Its dead may lie around: their parent was the killed agent, and in
/// many a container the first process buries others late or never.
fn is_gone(group: Pid) -> bool {
    if test_kill_process_group(group) == Err(Errno::SRCH) {
        return true;
    }
    let group = group.as_raw_nonzero().to_string();
    let lives = |stat: String| {
        let Some(mut fields) = after_name(&stat) else { return false };
        let is_dead = matches!(fields.next(), Some("Z" | "X"));
        !is_dead && fields.nth(1) == Some(group.as_str())
    };
    let Ok(processes) = fs::read_dir("/proc") else { return false };
    !processes.flatten().filter_map(|process| fs::read_to_string(process.path().join("stat")).ok()).any(lives)
}

async fn end_group(group: Pid, started: &str) {
    // While a group has a member its id is given to no new process. So a leader with another start means that
    // the group is gone and its id is somebody else's.
    if start_of(group).is_some_and(|start| start != started) {
        return;
    }
    for look in 0..LOOKS_MAX {
        if look == 0 && kill_process_group(group, Signal::KILL).is_ok() {
            warn!(
                group = group.as_raw_nonzero(),
                "ended a handler that outlived an earlier run of this agent"
            );
        }
        if is_gone(group) {
            return;
        }
        tokio::time::sleep(Duration::from_millis(LOOK_MS)).await;
    }
    warn!(group = group.as_raw_nonzero(), "a killed handler is still there: it hangs in the kernel");
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::process::CommandExt;
    use std::process::Command;

    #[tokio::test]
    async fn a_group_whose_dead_nobody_has_buried_is_gone() {
        let mut child = Command::new("sleep").arg("60").process_group(0).spawn().unwrap();
        let group = Pid::from_child(&child);
        assert!(!is_gone(group), "it lives");
        end_group(group, &start_of(group).unwrap()).await;
        assert!(is_gone(group), "it is dead");
        assert!(start_of(group).is_some(), "it was not to be buried yet");
        child.wait().unwrap();
        assert!(is_gone(group), "it is buried");
    }
}
