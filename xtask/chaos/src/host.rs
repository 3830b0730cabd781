//! What runs of one host, by `/proc`: its agent, the guard, handlers at work, software. A machine that dies or stands
//! still takes all of it along, whoever started it.

use crate::history::host_of;
use crate::world::is_stopped;
use rustix::process::{Pid, Signal, kill_process};
use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::time::{Duration, Instant};

/// How long all of it may take to end or to stop.
const PATIENCE: Duration = Duration::from_secs(3);
const PAUSE: Duration = Duration::from_millis(10);

/// What a process is to its host.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Part {
    Agent,
    Guard,
    Handler,
    Software,
}

/// All that runs there. Who is dead and not yet buried has no command line any more.
fn parts(host: &str) -> Vec<(Pid, Part)> {
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    let pids = entries.filter_map(|entry| Pid::from_raw(entry.file_name().to_str()?.parse().ok()?));
    pids.filter_map(|pid| Some((pid, part(pid, host)?))).collect()
}

fn part(pid: Pid, host: &str) -> Option<Part> {
    let read = |what: &str| fs::read_to_string(format!("/proc/{}/{what}", pid.as_raw_nonzero())).ok();
    let line = read("cmdline")?;
    let words: Vec<&str> = line.split('\0').collect();
    // Both agents, where there are two.
    let has_data = || {
        words.iter().any(|word| {
            word.contains(&format!("/{host}-disk/")) || word.ends_with(&format!("/{host}.double"))
        })
    };
    match *words.get(1)? {
        "agent" => has_data().then_some(Part::Agent),
        "guard" => has_data().then_some(Part::Guard),
        // One that makes sure of a host runs on another one.
        "handler" if words.get(2) != Some(&"fence") => {
            let environment = read("environ")?;
            let member = environment.split('\0').find_map(|var| var.strip_prefix("LOCKSTEP_MEMBER="))?;
            (host_of(member) == host).then_some(Part::Handler)
        }
        "software" => (host_of(words.get(2)?) == host).then_some(Part::Software),
        _ => None,
    }
}

/// Kills all of it, and returns when it has ended; tells what there was. Who is restarted meanwhile may be killed too.
pub(crate) fn end(host: &str) -> io::Result<BTreeSet<Part>> {
    let (began, mut ended, mut empty_looks) = (Instant::now(), BTreeSet::new(), 0);
    // What a dying process has just started may have been missed by one look.
    while empty_looks < 2 {
        if began.elapsed() > PATIENCE {
            return Err(io::Error::other(format!("not all of {host} ends")));
        }
        let living = parts(host);
        empty_looks = if living.is_empty() { empty_looks + 1 } else { 0 };
        for (pid, part) in living {
            // It may have ended by itself.
            let _ = kill_process(pid, Signal::KILL);
            ended.insert(part);
        }
        std::thread::sleep(PAUSE);
    }
    Ok(ended)
}

/// Stops all of it, as a virtual machine is paused; tells what stands still.
pub(crate) fn pause(host: &str) -> BTreeSet<Part> {
    let began = Instant::now();
    loop {
        let parts = parts(host);
        let running = || parts.iter().filter(|(pid, _)| !is_stopped(*pid));
        if running().next().is_none() || began.elapsed() > PATIENCE {
            return parts.iter().filter(|(pid, _)| is_stopped(*pid)).map(|(_, part)| *part).collect();
        }
        for (pid, _) in running() {
            let _ = kill_process(*pid, Signal::STOP);
        }
        std::thread::sleep(PAUSE);
    }
}

/// Lets it go on.
pub(crate) fn wake(host: &str) {
    for (pid, _) in parts(host) {
        let _ = kill_process(pid, Signal::CONT);
    }
}
