//! Processes as `/proc` shows them, named so that an id which is used again never stands for another one.

use lockstep_core::time::Time;
use rustix::io::Errno;
use rustix::process::{
    Pid, PidfdFlags, Signal, kill_process, pidfd_open, pidfd_send_signal, test_kill_process,
    test_kill_process_group,
};
use std::collections::{BTreeMap, BTreeSet};
use std::fs;

/// One process, for good: its id and when it started, in clock ticks since boot.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Process {
    pub(crate) pid: i32,
    pub(crate) started: u64,
}

/// A process at one moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Seen {
    pub(crate) process: Process,
    /// Its letter in `/proc/PID/stat`.
    state: u8,
    parent: i32,
    pub(crate) group: i32,
    pub(crate) session: i32,
}

impl Seen {
    /// None: there is no such process.
    pub(crate) fn read(pid: i32) -> Option<Self> {
        let stat = fs::read(format!("/proc/{pid}/stat")).ok()?;
        // The name in it may be of any bytes: the system cuts a longer one after the fifteenth, also within a character.
        Self::of(pid, &String::from_utf8_lossy(&stat))
    }

    /// Of pid (name, which may hold anything) state ppid pgrp session ...; the start is the 22nd.
    fn of(pid: i32, stat: &str) -> Option<Self> {
        let (_, after_name) = stat.rsplit_once(')')?;
        let mut fields = after_name.split_ascii_whitespace();
        let state = *fields.next()?.as_bytes().first()?;
        let mut id = || fields.next()?.parse().ok();
        let (parent, group, session) = (id()?, id()?, id()?);
        let started = fields.nth(15)?.parse().ok()?;
        Some(Self { process: Process { pid, started }, state, parent, group, session })
    }

    /// All processes, one after the other; none, if they cannot be read.
    pub(crate) fn all() -> Option<impl Iterator<Item = Self>> {
        let entries = fs::read_dir("/proc").ok()?;
        let ids = entries.flatten().filter_map(|entry| entry.file_name().to_str()?.parse().ok());
        Some(ids.filter_map(Self::read))
    }

    /// Whether it can still do something: the dead may lie around until their parent buries them.
    fn lives(&self) -> bool {
        !matches!(self.state, b'Z' | b'X' | b'x')
    }

    /// Whether it runs, or may run at any moment. One in the kernel's hands (D) stops when it comes back from there.
    pub(crate) fn runs(&self) -> bool {
        matches!(self.state, b'R' | b'S')
    }
}

impl Process {
    /// The living process of an id that an agent named at `at`; none: there is none, it is a later one, or it is not
    /// one that may be killed.
    pub(crate) fn named(pid: u32, at: Time) -> Option<Self> {
        let pid = i32::try_from(pid).ok().filter(|pid| *pid > 1)?;
        let seen = Seen::read(pid).filter(Seen::lives)?;
        let started_ms = seen.process.started * 1000 / rustix::param::clock_ticks_per_second();
        let may = test_kill_process(Pid::from_raw(pid)?).is_ok();
        (started_ms <= at.0 && may && pid != own()).then_some(seen.process)
    }

    pub(crate) fn lives(self) -> bool {
        Seen::read(self.pid).is_some_and(|seen| seen.process == self && seen.lives())
    }

    /// Signals it, and no other.
    pub(crate) fn signal(self, signal: Signal) -> Result<(), Errno> {
        let pid = Pid::from_raw(self.pid).ok_or(Errno::SRCH)?;
        let handle = match pidfd_open(pid, PidfdFlags::empty()) {
            Ok(handle) => Some(handle),
            // Before Linux 5.3, and in some sandboxes.
            Err(Errno::NOSYS | Errno::PERM | Errno::MFILE | Errno::NFILE | Errno::NOMEM) => None,
            Err(error) => return Err(error),
        };
        if Seen::read(self.pid).is_none_or(|seen| seen.process != self) {
            return Err(Errno::SRCH);
        }
        match handle {
            Some(handle) => pidfd_send_signal(handle, signal),
            None => kill_process(pid, signal),
        }
    }
}

/// Whether something of a process group can still act. Its dead may lie around: in many a container the first process
/// buries those late or never whose parent has gone.
pub(crate) fn group_lives(group: Pid) -> bool {
    if test_kill_process_group(group) == Err(Errno::SRCH) {
        return false;
    }
    let group = group.as_raw_nonzero().get();
    Seen::all().is_none_or(|mut all| all.any(|seen| seen.group == group && seen.lives()))
}

/// The id of whoever asks.
fn own() -> i32 {
    rustix::process::getpid().as_raw_nonzero().get()
}

/// All processes that live, but whoever looks, at one moment or nearly so.
#[derive(Debug, Default)]
pub(crate) struct All {
    by_id: BTreeMap<i32, Seen>,
    children: BTreeMap<i32, Vec<Process>>,
}

impl All {
    pub(crate) fn look() -> Self {
        let own = own();
        let all = Seen::all().into_iter().flatten();
        all.filter(|seen| seen.process.pid != own && seen.lives()).collect()
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = &Seen> {
        self.by_id.values()
    }

    /// Whoever has this id.
    pub(crate) fn holder(&self, pid: i32) -> Option<&Seen> {
        self.by_id.get(&pid)
    }

    pub(crate) fn find(&self, process: Process) -> Option<&Seen> {
        self.holder(process.pid).filter(|seen| seen.process == process)
    }

    /// Those of `roots` that live, and all that descends from them.
    pub(crate) fn family<'a>(&self, roots: impl IntoIterator<Item = &'a Process>) -> BTreeSet<Process> {
        let mut to_visit: Vec<_> =
            roots.into_iter().copied().filter(|root| self.find(*root).is_some()).collect();
        let mut family = BTreeSet::new();
        while let Some(process) = to_visit.pop() {
            if family.insert(process) {
                to_visit.extend(self.children.get(&process.pid).into_iter().flatten());
            }
        }
        family
    }
}

impl FromIterator<Seen> for All {
    fn from_iter<I: IntoIterator<Item = Seen>>(seen: I) -> Self {
        let mut all = Self::default();
        for seen in seen {
            all.children.entry(seen.parent).or_default().push(seen.process);
            all.by_id.insert(seen.process.pid, seen);
        }
        all
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::{Child, Command};

    fn seen(pid: i32, parent: i32, started: u64) -> Seen {
        Seen { process: Process { pid, started }, state: b'S', parent, group: pid, session: pid }
    }

    #[test]
    fn a_name_with_anything_in_it_misleads_nobody() {
        let rest = "S 3 4 5 0 -1 0 0 0 0 0 0 0 0 0 20 0 1 0 777 0 0";
        let process = Process { pid: 9, started: 777 };
        let expected = Seen { process, state: b'S', parent: 3, group: 4, session: 5 };
        for name in ["sh", "a) Z 1 1 (b", "", "\u{fffd} \n"] {
            assert_eq!(Seen::of(9, &format!("9 ({name}) {rest}")), Some(expected), "{name:?}");
        }
        for cut in ["", "9 (sh)", "9 (sh) S 3", "9 (sh) S x 4 5 0 -1 0 0 0 0 0 0 0 0 0 20 0 1 0 777"] {
            assert_eq!(Seen::of(9, cut), None, "{cut:?}");
        }
    }

    #[test]
    fn a_family_is_all_that_descends_from_those_who_are_still_themselves() {
        let all = [seen(2, 1, 1), seen(3, 2, 2), seen(4, 3, 3), seen(5, 1, 4), seen(6, 5, 5)];
        let all: All = all.into_iter().collect();
        let of = |roots: &[(i32, u64)]| {
            let roots = roots.iter().map(|(pid, started)| Process { pid: *pid, started: *started });
            let roots: Vec<_> = roots.collect();
            all.family(&roots).into_iter().map(|process| process.pid).collect::<Vec<_>>()
        };
        assert_eq!(of(&[(2, 1)]), [2, 3, 4]);
        assert_eq!(of(&[(3, 2), (5, 4)]), [3, 4, 5, 6]);
        assert_eq!(of(&[(5, 3), (9, 1)]), Vec::<i32>::new(), "another one has the id now");
    }

    /// A process that ends with the test.
    struct Sleeper(Child);

    impl Drop for Sleeper {
        fn drop(&mut self) {
            // It may have ended.
            let _ = self.0.kill();
            let _ = self.0.wait();
        }
    }

    #[test]
    fn only_the_process_that_was_meant_is_named_and_signalled() {
        let mut sleeper = Sleeper(Command::new("sleep").arg("60").spawn().unwrap());
        let pid = sleeper.0.id();
        let process = Process::named(pid, crate::agent::now()).unwrap();
        assert!(process.lives());
        assert_eq!(Process::named(pid, Time(0)), None, "it started after it was named");
        assert_eq!(Process::named(std::process::id(), crate::agent::now()), None, "not itself");
        for nobody in [0, 1, u32::MAX] {
            assert_eq!(Process::named(nobody, crate::agent::now()), None, "{nobody}");
        }
        let another = Process { started: process.started + 1, ..process };
        assert_eq!(another.signal(Signal::KILL), Err(Errno::SRCH));
        assert!(!another.lives() && process.lives() && All::look().find(process).is_some());
        process.signal(Signal::KILL).unwrap();
        sleeper.0.wait().unwrap();
        assert!(!process.lives());
        assert_eq!(process.signal(Signal::KILL), Err(Errno::SRCH));
    }
}
