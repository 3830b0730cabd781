//! The guard as a real process: what it kills, when, and whom it spares.

#![allow(clippy::unwrap_used, reason = "a test fails by it")]

mod common;

use common::{Process, lockstep, wait_for};
use lockstep::agent::guard::{Guard, NotGuarded, Taken};
use lockstep::guard::WatchdogConfig;
use lockstep::guard::message::Pids;
use lockstep_core::time::Time;
use rustix::process::{Pid, Signal, kill_process, kill_process_group};
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;
use tempfile::TempDir;

/// What a busy machine may take for anything.
const LATE_MS: u64 = 5_000;

fn now() -> Time {
    let clock = rustix::time::clock_gettime(rustix::time::ClockId::Boottime);
    Time(u64::try_from(clock.tv_sec * 1000 + clock.tv_nsec / 1_000_000).unwrap())
}

fn guard(data: &Path) -> Guard {
    guarded_by(data, None)
}

fn guarded_by(data: &Path, watchdog: Option<WatchdogConfig>) -> Guard {
    Guard::start_program(Path::new(env!("CARGO_BIN_EXE_lockstep")), data, watchdog)
}

/// `db@a` is these.
fn db(pids: &[u32]) -> Pids {
    Pids::from([("db@a".parse().unwrap(), pids.iter().copied().collect())])
}

/// The guard of a directory, by the lock that it holds.
fn guard_of(data: &Path) -> u32 {
    let mut pid = None;
    wait_for("a guard to hold the lock", || {
        pid = fs::read_to_string(data.join("guard.lock")).unwrap_or_default().trim().parse().ok();
        pid.is_some_and(lives)
    });
    pid.unwrap()
}

fn said(data: &Path) -> String {
    fs::read_to_string(data.join("guard.log")).unwrap_or_default()
}

/// The fields of a process's `stat` after its name.
fn stat(pid: u32) -> Option<Vec<String>> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    Some(stat.rsplit_once(')').unwrap().1.split_ascii_whitespace().map(str::to_owned).collect())
}

fn lives(pid: u32) -> bool {
    stat(pid).is_some_and(|fields| !matches!(fields[0].as_str(), "Z" | "X"))
}

fn signal(pid: u32, signal: Signal) {
    kill_process(Pid::from_raw(i32::try_from(pid).unwrap()).unwrap(), signal).unwrap();
}

/// A script with its process ids in files. Its group ends with this.
struct Script {
    child: Child,
    dir: PathBuf,
}

impl Script {
    fn start(dir: &Path, script: &str, vars: &[(&str, &str)]) -> Self {
        let mut command = Command::new("sh");
        command.args(["-c", script]).current_dir(dir).process_group(0).stdin(Stdio::null());
        command.envs(vars.iter().copied());
        Self { child: command.spawn().unwrap(), dir: dir.to_owned() }
    }

    fn pid(&self) -> u32 {
        self.child.id()
    }

    /// What it wrote into a file.
    fn noted(&self, file: &str) -> u32 {
        let mut pid = None;
        wait_for(&format!("the script to write {file}"), || {
            pid = fs::read_to_string(self.dir.join(file)).unwrap_or_default().trim().parse().ok();
            pid.is_some()
        });
        pid.unwrap()
    }
}

impl Drop for Script {
    fn drop(&mut self) {
        let _ = kill_process_group(Pid::from_child(&self.child), Signal::KILL);
        let _ = self.child.wait();
        let apart = fs::read_to_string(self.dir.join("apart")).unwrap_or_default();
        if let Some(apart) = apart.trim().parse().ok().and_then(Pid::from_raw) {
            let _ = kill_process(apart, Signal::KILL);
        }
    }
}

/// Ends when its time is up, whoever is left of a test that failed.
const SLEEP: &str = "sleep 90";

fn software(dir: &Path) -> Script {
    Script::start(dir, &format!("{SLEEP} & echo $! > child; setsid {SLEEP} & echo $! > apart; wait"), &[])
}

/// Waits for its end; tells when that was.
#[track_caller]
fn end_of(pid: u32) -> Time {
    wait_for(&format!("{pid} to be ended"), || !lives(pid));
    now()
}

fn data() -> TempDir {
    tempfile::tempdir().unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_named_and_all_that_it_started_ends_with_the_lease_and_not_before() {
    let data = data();
    let (db_a, other) = (software(data.path()), Script::start(data.path(), SLEEP, &[]));
    let guard = guard(data.path());
    assert_eq!(guard.ask().await.unwrap().until, None);
    let until = now().plus(1_500);
    assert_eq!(guard.watch(now(), until, db(&[db_a.pid()]), true).await.unwrap(), Taken::default());
    let watching = guard.ask().await.unwrap();
    assert_eq!((watching.until, watching.members, watching.over), (Some(until), db(&[db_a.pid()]), false));
    let all = [db_a.pid(), db_a.noted("child"), db_a.noted("apart")];
    let ended = all.map(end_of);
    assert!(ended.iter().all(|ended| (until.0..until.0 + LATE_MS).contains(&ended.0)), "{until:?} {ended:?}");
    assert!(lives(other.pid()), "nobody named it");
    wait_for("the guard to say so", || said(data.path()).contains("the lease is over: these have ended"));
    let watching = guard.ask().await.unwrap();
    assert!(watching.over && watching.left.is_empty(), "{watching:?}");
}

/// A machine that has slept: the clock that stands still meanwhile is far behind the one that a lease is reckoned in. A time
/// namespace sets the two apart as sleep does.
#[tokio::test(flavor = "multi_thread")]
async fn a_lease_ends_by_the_clock_that_goes_on_in_sleep() {
    const SLEPT_S: u64 = 100_000;
    let data = data();
    let program = data.path().join("guard.sh");
    // Whoever is not root becomes it in a namespace of its own.
    let user = if rustix::process::geteuid().is_root() { "" } else { "--user --map-root-user" };
    let unshare = format!("unshare {user} --time --boottime {SLEPT_S}");
    if !Command::new("sh").args(["-c", &format!("{unshare} true")]).status().unwrap().success() {
        return eprintln!("time namespaces are not to be had here: the clock of a lease was not tried");
    }
    let lockstep = env!("CARGO_BIN_EXE_lockstep");
    let script = format!("#!/bin/sh\nexec {unshare} {lockstep} \"$@\"\n");
    fs::write(&program, script).unwrap();
    fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).unwrap();
    let db_a = Script::start(data.path(), SLEEP, &[]);
    let guard = Guard::start_program(&program, data.path(), None);
    let theirs = || now().plus(SLEPT_S * 1000);
    let until = theirs().plus(1_500);
    assert_eq!(guard.watch(theirs(), until, db(&[db_a.pid()]), true).await.unwrap(), Taken::default());
    wait_for("the software to be ended", || !lives(db_a.pid()));
    let ended = theirs();
    assert!((until.0..until.0 + LATE_MS).contains(&ended.0), "{until:?} {ended:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_renewal_moves_the_end_and_a_member_that_is_left_out_is_free() {
    let data = data();
    let (first, second) = (Script::start(data.path(), SLEEP, &[]), software(data.path()));
    let child = second.noted("child");
    let guard = guard(data.path());
    let soon = now().plus(700);
    guard.watch(now(), soon, db(&[first.pid(), second.pid()]), true).await.unwrap();
    let until = now().plus(1_800);
    guard.watch(now(), until, db(&[first.pid()]), true).await.unwrap();
    let ended = end_of(first.pid());
    assert!(ended >= until, "{until:?} {ended:?}");
    assert!(lives(second.pid()) && lives(child));
    // After its end a lease may stand again: the agent was back in time for another one.
    let until = now().plus(300);
    guard.watch(now(), until, db(&[second.pid()]), true).await.unwrap();
    assert!(end_of(second.pid()) >= until);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_orphan_of_the_named_is_ended_too() {
    let data = data();
    let db_a = software(data.path());
    let (child, apart) = (db_a.noted("child"), db_a.noted("apart"));
    let guard = guard(data.path());
    guard.watch(now(), now().plus(60_000), db(&[db_a.pid()]), true).await.unwrap();
    // Answers come before it looks around; the second one comes after.
    guard.ask().await.unwrap();
    signal(db_a.pid(), Signal::KILL);
    end_of(db_a.pid());
    let taken = guard.watch(now(), now().plus(300), db(&[db_a.pid()]), true).await.unwrap();
    assert_eq!(taken.unknown, db(&[db_a.pid()]), "it is gone");
    end_of(child);
    end_of(apart);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_process_that_got_the_id_of_a_dead_one_is_spared() {
    let data = data();
    let guard = guard(data.path());
    let mut old = Command::new("sleep").arg("90").spawn().unwrap();
    let pid = old.id();
    let both = |other: &Script| db(&[pid, other.pid()]);
    let other = Script::start(data.path(), SLEEP, &[]);
    guard.watch(now(), now().plus(60_000), both(&other), true).await.unwrap();
    old.kill().unwrap();
    old.wait().unwrap();
    // The kernel gives ids in order, so the next one can be chosen by who may; others may be quicker.
    let mut heir = None;
    if fs::write("/proc/sys/kernel/ns_last_pid", (pid - 1).to_string()).is_ok() {
        wait_for("another process with this id", || {
            fs::write("/proc/sys/kernel/ns_last_pid", (pid - 1).to_string()).unwrap();
            let script = Script::start(data.path(), SLEEP, &[]);
            heir = (script.pid() == pid).then_some(script);
            heir.is_some()
        });
    }
    let taken = guard.watch(now(), now().plus(300), both(&other), true).await.unwrap();
    assert_eq!(taken.unknown, db(&[pid]), "named again, it is still the dead one");
    end_of(other.pid());
    wait_for("the guard to have acted", || said(data.path()).contains("the lease is over"));
    assert!(heir.is_none_or(|heir| lives(heir.pid())), "it was nobody's");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_ends_or_stops_its_agent_does_not_end_or_stop_the_guard() {
    for signals in
        [vec![Signal::HUP, Signal::INT, Signal::TERM, Signal::KILL], vec![Signal::TERM, Signal::STOP]]
    {
        let data = data();
        let db_a = software(data.path());
        // Whoever starts it has it in its process group, as a shell without job control has.
        let lockstep = env!("CARGO_BIN_EXE_lockstep");
        let start = format!("trap '' TERM HUP INT; {lockstep} guard --data . > /dev/null 2>&1 & {SLEEP}");
        let agent = Script::start(data.path(), &start, &[]);
        let pid = guard_of(data.path());
        wait_for("the guard to listen", || data.path().join("guard.sock").exists());
        let told = guard(data.path());
        let until = now().plus(1_000);
        told.watch(now(), until, db(&[db_a.pid()]), true).await.unwrap();
        for signal in &signals {
            kill_process_group(Pid::from_child(&agent.child), *signal).unwrap();
        }
        for farewell in [Signal::HUP, Signal::INT, Signal::TERM] {
            signal(pid, farewell);
        }
        if signals.contains(&Signal::KILL) {
            // With nobody left to tell it anything, it ends after that.
            drop(told);
            assert!(end_of(db_a.pid()) >= until);
        } else {
            assert!(end_of(db_a.pid()) >= until);
            assert!(lives(pid), "it waits for what comes next");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restarted_agent_learns_when_its_lease_ends() {
    let data = data();
    let db_a = software(data.path());
    let until = now().plus(60_000);
    let earlier = guard(data.path());
    earlier.watch(now(), until, db(&[db_a.pid()]), true).await.unwrap();
    let pid = guard_of(data.path());
    drop(earlier);
    let later = guard(data.path());
    let watching = later.ask().await.unwrap();
    assert_eq!((watching.until, watching.members), (Some(until), db(&[db_a.pid()])));
    assert_eq!(guard_of(data.path()), pid, "it is the same one");
    later.goodbye().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn it_ends_with_a_goodbye_and_is_started_anew_when_it_is_needed() {
    let data = data();
    let db_a = software(data.path());
    let guard = guard(data.path());
    guard.goodbye().await.unwrap();
    assert!(!data.path().join("guard.sock").exists(), "none is started for that");
    guard.watch(now(), now().plus(1_000), db(&[db_a.pid()]), true).await.unwrap();
    let pid = guard_of(data.path());
    guard.goodbye().await.unwrap();
    wait_for("the guard to end", || !lives(pid));
    assert!(!data.path().join("guard.sock").exists());
    assert!(lives(db_a.pid()));
    let until = now().plus(1_000);
    guard.watch(now(), until, db(&[db_a.pid()]), true).await.unwrap();
    let again = guard_of(data.path());
    assert_ne!(again, pid);
    // One that dies is as good as none.
    signal(again, Signal::KILL);
    wait_for("the guard to end", || !lives(again));
    guard.watch(now(), until, db(&[db_a.pid()]), true).await.unwrap();
    assert!(end_of(db_a.pid()) >= until);
}

#[tokio::test(flavor = "multi_thread")]
async fn there_is_one_a_directory() {
    let data = data();
    let guard = guard(data.path());
    guard.ask().await.unwrap();
    let (exit, _, said) = lockstep(data.path(), None, &["guard", "--data", "."]);
    assert_eq!(exit, 1);
    assert!(said.contains("another guard has ."), "{said}");
    guard.ask().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn handlers_at_work_for_its_members_end_with_all_that_they_started() {
    let data = data();
    let running = data.path().join("running");
    fs::create_dir(&running).unwrap();
    // As a handler does that starts the software: in a session of its own, and orphaned.
    let script = |name: &str| {
        format!("(setsid sh -c 'echo $$ > {name}.daemon; exec {SLEEP}' &); echo $$ > {name}.pid; {SLEEP}")
    };
    let handler = |name: &str, member: &str| {
        let vars = [("LOCKSTEP_CALL", name), ("LOCKSTEP_MEMBER", member)];
        Script::start(data.path(), &script(name), &vars)
    };
    let (noted, begun) = (handler("noted", "db@a"), handler("begun", "db@a"));
    let (others, ended) = (handler("others", "web@a"), handler("ended", "db@a"));
    for (name, handler) in [("noted", &noted), ("others", &others)] {
        let started = stat(handler.pid()).unwrap()[19].clone();
        fs::write(running.join(name), format!("{} {started}\n", handler.pid())).unwrap();
    }
    fs::write(running.join("begun"), "").unwrap();
    let daemons = ["noted", "begun", "others", "ended"].map(|name| noted.noted(&format!("{name}.daemon")));
    let guard = guard(data.path());
    let named = Script::start(data.path(), SLEEP, &[]);
    let until = now().plus(300);
    guard.watch(now(), until, db(&[named.pid()]), false).await.unwrap();
    end_of(named.pid());
    wait_for("the guard to have acted", || said(data.path()).contains("the lease is over"));
    assert!(lives(noted.pid()) && lives(begun.pid()), "calls were not to be ended");
    let until = now().plus(300);
    guard.watch(now(), until, db(&[]), true).await.unwrap();
    for pid in [noted.pid(), begun.pid(), daemons[0], daemons[1]] {
        assert!(end_of(pid) >= until);
    }
    wait_for("the guard to have acted", || said(data.path()).matches("the lease is over").count() == 2);
    for pid in [others.pid(), ended.pid(), daemons[2], daemons[3]] {
        assert!(
            lives(pid),
            "it belongs to another member, or is what a handler that has ended left on purpose"
        );
    }
    for pid in &daemons[2..] {
        signal(*pid, Signal::KILL);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stopped_guard_does_not_stop_its_agent_and_acts_when_it_goes_on() {
    let data = data();
    let db_a = software(data.path());
    let guard = guard(data.path());
    let until = now().plus(700);
    guard.watch(now(), until, db(&[db_a.pid()]), true).await.unwrap();
    let pid = guard_of(data.path());
    signal(pid, Signal::STOP);
    for _ in 0..2 {
        let answer =
            tokio::time::timeout(Duration::from_millis(LATE_MS), guard.watch(now(), until, db(&[]), true));
        let error = answer.await.expect("a bounded time").unwrap_err();
        assert!(matches!(error, NotGuarded::Silent), "{error}");
    }
    guard.ask().await.unwrap_err();
    // What it was told meanwhile counts, the last of it, and answers that come too late confuse nobody.
    signal(pid, Signal::CONT);
    wait_for("the guard to have acted", || said(data.path()).contains("the lease is over"));
    let watching = guard.ask().await.unwrap();
    assert!(watching.over && watching.members == db(&[]), "{watching:?}");
    assert!(lives(db_a.pid()), "it was not named any more");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_guard_that_went_on_late_kills_at_once() {
    let data = data();
    let db_a = software(data.path());
    let guard = guard(data.path());
    let until = now().plus(500);
    guard.watch(now(), until, db(&[db_a.pid()]), true).await.unwrap();
    let pid = guard_of(data.path());
    signal(pid, Signal::STOP);
    wait_for("the lease to end", || now() > until.plus(200));
    assert!(lives(db_a.pid()));
    signal(pid, Signal::CONT);
    end_of(db_a.pid());
}

/// A guard that was killed while it was stopped has left its work to the next one, which is told the same.
#[tokio::test(flavor = "multi_thread")]
async fn the_loss_of_a_guard_is_noticed_and_one_that_is_told_late_kills_at_once() {
    let data = data();
    let db_a = software(data.path());
    let guard = guard(data.path());
    let at = now();
    let until = at.plus(700);
    guard.watch(at, until, db(&[db_a.pid()]), true).await.unwrap();
    let pid = guard_of(data.path());
    signal(pid, Signal::STOP);
    wait_for("the lease to end", || now() > until.plus(200));
    assert!(lives(db_a.pid()));
    signal(pid, Signal::KILL);
    tokio::time::timeout(Duration::from_millis(LATE_MS), guard.lost()).await.expect("nobody had to ask");
    // It may have the id of one that has ended meanwhile.
    let stranger = software(data.path());
    let told = async {
        loop {
            match guard.watch(at, until, db(&[db_a.pid(), stranger.pid()]), true).await {
                // The one that was killed may not be gone for its connections yet; its agent tells it again, too.
                Err(NotGuarded::Absent(_)) => {}
                taken => break taken.unwrap(),
            }
        }
    };
    let taken = tokio::time::timeout(Duration::from_millis(LATE_MS), told).await.expect("another one stands");
    assert_eq!(taken.unknown, db(&[stranger.pid()]));
    end_of(db_a.pid());
    wait_for("the guard to have acted", || said(data.path()).contains("the lease is over"));
    assert!(lives(stranger.pid()));
    assert_ne!(guard_of(data.path()), pid);
}

#[tokio::test(flavor = "multi_thread")]
async fn without_its_directory_it_does_its_work_and_ends() {
    let data = data();
    let place = data.path().join("agent");
    fs::create_dir(&place).unwrap();
    let db_a = software(data.path());
    let guard = guard(&place);
    let until = now().plus(1_000);
    guard.watch(now(), until, db(&[db_a.pid()]), true).await.unwrap();
    let pid = guard_of(&place);
    fs::remove_dir_all(&place).unwrap();
    assert!(end_of(db_a.pid()) >= until);
    wait_for("the guard to end", || !lives(pid));
}

#[tokio::test(flavor = "multi_thread")]
async fn it_outlives_its_agent_until_its_work_is_done_and_no_longer() {
    let data = data();
    let db_a = software(data.path());
    let guard = guard(data.path());
    let until = now().plus(1_000);
    guard.watch(now(), until, db(&[db_a.pid()]), true).await.unwrap();
    let pid = guard_of(data.path());
    drop(guard);
    assert!(end_of(db_a.pid()) >= until);
    wait_for("the guard to end", || !lives(pid));
    assert!(!data.path().join("guard.sock").exists());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_directory_with_a_long_name_has_a_guard_too() {
    let data = data();
    let place = data.path().join("n".repeat(200));
    fs::create_dir(&place).unwrap();
    guard(&place).ask().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_watchdog_is_fed_while_all_is_well_and_leaves_itself_time_to_bite() {
    let data = data();
    let device = data.path().join("dog");
    fs::write(&device, "").unwrap();
    let fed = || fs::read_to_string(&device).unwrap();
    let watchdog = WatchdogConfig { device: device.clone(), timeout_ms: Some(1_000) };
    let guard = guarded_by(data.path(), Some(watchdog));
    guard.ask().await.unwrap();
    let db_a = software(data.path());
    let too_short = guard.watch(now(), now().plus(2_000), db(&[db_a.pid()]), true).await.unwrap();
    assert_eq!((too_short.early_ms, fed().as_str()), (0, ""), "it would reset a healthy host");
    let until = now().plus(4_000);
    let taken = guard.watch(now(), until, db(&[db_a.pid()]), true).await.unwrap();
    assert_eq!(taken, Taken { unknown: Pids::new(), early_ms: 1_250 });
    wait_for("the watchdog to be fed", || fed().len() > 2);
    let ended = end_of(db_a.pid());
    assert!((until.0 - 1_250..until.0).contains(&ended.0), "{until:?} {ended:?}");
    let before = fed().len();
    wait_for("the watchdog to be fed, for nothing runs that should not", || fed().len() > before + 2);
    // One that cannot act does not feed it.
    let pid = guard_of(data.path());
    signal(pid, Signal::STOP);
    wait_for("it to be stopped", || stat(pid).unwrap()[0] == "T");
    let before = fed();
    let later = now().plus(600);
    wait_for("two meals to be missed", || now() > later);
    assert_eq!(fed(), before);
    signal(pid, Signal::CONT);
    guard.goodbye().await.unwrap();
    wait_for("the guard to end", || !lives(pid));
    let fed = fed();
    assert!(fed.ends_with("1V") && !fed.trim_end_matches('V').contains('V'), "{fed}");
}

#[test]
fn people_do_not_see_the_command() {
    let data = data();
    let (exit, help, _) = lockstep(data.path(), None, &["--help"]);
    assert!(exit == 0 && !help.contains("guard"), "{help}");
    let mut lone = Process::start(data.path(), "lone", &["guard", "--data", "nowhere"]);
    assert_eq!(lone.exit(), Some(1));
    assert!(lone.said().contains("cannot open its directory"), "{}", lone.said());
}
