//! Stops what a lease let run: the processes that handlers named, all that descends from them, and the handlers that
//! were at work for the same members, since one that outlives its agent may be about to start the software.

use crate::agent::leftover::{CALL, Noted, noted};
use crate::process::{All, Process, Seen};
use lockstep_core::id::MemberId;
use rustix::io::Errno;
use rustix::process::Signal;
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;
use std::thread::sleep;
use std::time::{Duration, Instant};

/// For how long to look for more to stop. What is stopped starts nothing, so a second look finds what the first one
/// met in the middle of a fork; more are for what takes its time to stop. One look takes a millisecond for a hundred
/// processes or so.
const STOPPING: Duration = Duration::from_millis(50);
/// Even if one look takes longer than that.
const LOOKS_MIN: u32 = 3;
/// For how long to look whether the killed are gone. Longer takes only what is in the kernel's hands, and that is tried
/// again later.
const GOING: Duration = Duration::from_millis(400);
/// The pause between two looks.
const LOOK: Duration = Duration::from_millis(1);

/// What killing came to.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Killed {
    /// Who is gone.
    pub(super) gone: BTreeSet<Process>,
    /// Who is not, and why where the kernel said so.
    pub(super) left: BTreeMap<Process, Option<Errno>>,
}

/// Whose handlers are to be ended.
pub(super) struct Calls<'a> {
    /// Where the agent notes those at work.
    pub(super) running: &'a Path,
    pub(super) members: &'a BTreeSet<MemberId>,
}

/// Stops and kills `roots` and what descends from them, then the handlers.
///
/// Two rounds, for the first reads nothing from a disk: one that hangs must not save anybody.
pub(super) fn kill(roots: &BTreeSet<Process>, calls: Option<Calls<'_>>) -> Killed {
    let mut killed = round(roots, |all| all.family(roots));
    let Some(calls) = calls else { return killed };
    let handlers = round(roots, |all| {
        let notes = noted(calls.running);
        let at_work = if notes.is_empty() { BTreeSet::new() } else { at_work(all, &notes, &calls) };
        all.family(at_work.union(roots))
    });
    killed.gone.extend(&handlers.gone);
    killed.left.extend(handlers.left);
    killed.left.retain(|process, _| !killed.gone.contains(process));
    killed
}

/// `find` names, of all processes, those to kill.
fn round(roots: &BTreeSet<Process>, find: impl Fn(&All) -> BTreeSet<Process>) -> Killed {
    let mut signalled: BTreeMap<Process, Option<Errno>> = BTreeMap::new();
    // The software's heart first, before anything is looked up.
    for root in roots {
        send(&mut signalled, *root, Signal::STOP);
    }
    let began = Instant::now();
    for look in 0.. {
        if look >= LOOKS_MIN && began.elapsed() >= STOPPING {
            break;
        }
        let all = All::look();
        let found = find(&all);
        let new: Vec<_> = found.iter().filter(|process| !signalled.contains_key(process)).copied().collect();
        let stopped = |process: &Process| {
            let refused = signalled.get(process).is_some_and(Option::is_some);
            refused || all.find(*process).is_none_or(|seen| !seen.runs())
        };
        if new.is_empty() && found.iter().all(stopped) {
            break;
        }
        for process in new {
            send(&mut signalled, process, Signal::STOP);
        }
        sleep(LOOK);
    }
    let mut killed: BTreeMap<Process, Option<Errno>> = BTreeMap::new();
    for process in signalled.keys() {
        send(&mut killed, *process, Signal::KILL);
    }
    let began = Instant::now();
    loop {
        let is_last = began.elapsed() >= GOING;
        let all = All::look();
        // What a handler had in the making when it was killed.
        for process in find(&all) {
            if !killed.contains_key(&process) {
                send(&mut killed, process, Signal::KILL);
            }
        }
        let lives = |process: &Process| all.find(*process).is_some();
        if is_last || !killed.keys().any(lives) {
            let (left, gone) =
                killed.into_iter().partition::<BTreeMap<_, _>, _>(|(process, _)| lives(process));
            return Killed { gone: gone.into_keys().collect(), left };
        }
        sleep(LOOK);
    }
}

/// Notes what came of it; one that is gone is no error.
fn send(done: &mut BTreeMap<Process, Option<Errno>>, process: Process, signal: Signal) {
    let error = process.signal(signal).err().filter(|error| *error != Errno::SRCH);
    done.insert(process, error);
}

/// The processes of handlers at work: those of their groups, and those elsewhere that carry the name of their call.
/// What a handler of another member does is none of the lease's business, where that can be seen.
fn at_work(all: &All, notes: &[Noted], calls: &Calls<'_>) -> BTreeSet<Process> {
    let variables: BTreeSet<_> = notes.iter().map(|note| format!("LOCKSTEP_{CALL}={}", note.name)).collect();
    // While a group has a member its id is given to no new process: a leader with another start means that the group
    // is gone.
    let stands = |leader: &Process| all.holder(leader.pid).is_none_or(|seen| seen.process == *leader);
    let leaders = notes.iter().filter_map(|note| note.leader);
    let groups: BTreeSet<i32> = leaders.filter(stands).map(|leader| leader.pid).collect();
    let is_at_work = |seen: &&Seen| {
        let environ = fs::read(format!("/proc/{}/environ", seen.process.pid)).unwrap_or_default();
        let mut is_named = groups.contains(&seen.group);
        let mut is_ours = true;
        for entry in environ.split(|byte| *byte == 0).filter_map(|entry| std::str::from_utf8(entry).ok()) {
            is_named |= variables.contains(entry);
            if let Some(member) = entry.strip_prefix("LOCKSTEP_MEMBER=") {
                is_ours = member.parse().map_or(true, |member| calls.members.contains(&member));
            }
        }
        is_named && is_ours
    };
    all.iter().filter(is_at_work).map(|seen| seen.process).collect()
}
