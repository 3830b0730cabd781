//! The guard: a small process beside the agent, which outlives it when it is killed, stopped or starved. It has been
//! told when the lease ends and which processes may run no longer, and kills them then unless it hears of a longer one.
//!
//! It decides nothing else: it knows no groups and no states, talks to nobody but the agent, and starts nothing. What
//! it is told is the whole state each time, so one that was started anew is as good as the old one after a renewal.
//!
//! An agent and its guard meet at a socket in the agent's directory ([`message`]). Its packets keep their limits, so
//! an agent that is killed in the middle of a word leaves nothing half said, and each of them learns at once that the
//! other is gone. Everything in the directory is reached through a handle on it (`/proc/self/fd/N/...`): a socket's
//! address has room for 107 bytes, a directory's name may be longer, and it may be moved.

mod kill;
mod log;
pub mod message;
mod watchdog;

use crate::agent::leftover::RUNNING;
use crate::agent::now;
use crate::config::WATCHDOG_TIMEOUT_MS_RANGE;
use crate::process::{All, Process};
use clap::Args;
use lockstep_core::id::MemberId;
use lockstep_core::time::Time;
use log::Log;
use message::{
    Answer, LOCK, LOG, PACKET_BYTES_MAX, Pids, Request, SOCKET, Said, Say, Taken, VERSION, Watching,
};
use rustix::event::{PollFd, PollFlags, poll};
use rustix::fs::{AtFlags, FlockOperation, Mode, OFlags, Timespec};
use rustix::io::{Errno, retry_on_intr};
use rustix::mm::MlockAllFlags;
use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketAddrUnix, SocketFlags, SocketType};
use rustix::time::{Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags};
use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::io::{self, Write};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tracing::{error, info, warn};
use tracing_subscriber::EnvFilter;
use watchdog::Watchdog;
pub use watchdog::WatchdogConfig;

/// The most agents that are connected at once. There is one, and at times the remains of one that was killed.
const LINES_MAX: usize = 16;
/// How many packets are heard before the time is looked at again: an agent says one at a time.
const PACKETS_AT_ONCE: usize = 64;
/// How often to try again to kill what has not ended, and to look whether anybody can still reach the guard.
const AGAIN_MS: u64 = 1_000;
/// A guard that was told nothing within this time ends: its agent was killed before it could say a word.
const UNTOLD_MS: u64 = 60_000;

/// `lockstep guard`.
#[derive(Debug, Clone, PartialEq, Eq, Args)]
pub struct GuardOptions {
    /// The agent's directory
    #[arg(long, value_name = "DIR")]
    pub data: PathBuf,
    /// A watchdog device that resets the machine when the guard cannot act
    #[arg(long, value_name = "DEVICE")]
    pub watchdog: Option<PathBuf>,
    /// After how long the device does, where the kernel does not say
    #[arg(long, value_name = "MS", requires = "watchdog")]
    #[arg(value_parser = clap::value_parser!(u64).range(WATCHDOG_TIMEOUT_MS_RANGE))]
    pub watchdog_timeout_ms: Option<u64>,
}

/// Why a guard could not start, or had to end.
#[derive(Debug, thiserror::Error)]
pub enum GuardError {
    /// Another one has the directory.
    #[error("another guard has {}", .0.display())]
    InUse(PathBuf),
    /// Something that it cannot do without.
    #[error("cannot {doing}")]
    System {
        /// What it was about to do.
        doing: &'static str,
        /// What the system said.
        source: io::Error,
    },
}

/// For `map_err`.
fn cannot<E: Into<io::Error>>(doing: &'static str) -> impl FnOnce(E) -> GuardError {
    move |source| GuardError::System { doing, source: source.into() }
}

/// Guards until its agent says goodbye.
///
/// # Errors
/// If another guard has the directory, or the system refuses what it cannot do without.
pub fn run(options: &GuardOptions) -> Result<(), GuardError> {
    // It may be the leader of a group, when a person starts it. It stays in that session then.
    let detached = rustix::process::setsid();
    // Nobody but the agent's own user is to tell it anything.
    rustix::process::umask(Mode::from_raw_mode(0o077));
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let dir = rustix::fs::open(&options.data, flags, Mode::empty()).map_err(cannot("open its directory"))?;
    let place = PathBuf::from(format!("/proc/self/fd/{}", dir.as_raw_fd()));
    let _lock = lock(&place, &options.data)?;
    let log = Log::open(place.join(LOG)).map_err(cannot("open its log"))?;
    let lines = tracing_subscriber::fmt().with_env_filter(EnvFilter::new("info")).with_ansi(false);
    // A full disk silences the log, and nothing else.
    lines.with_writer(Mutex::new(log)).log_internal_errors(false).init();
    std::env::set_current_dir("/").map_err(cannot("leave the directory that it was started in"))?;
    let _deaf = Deaf::to_farewells().map_err(cannot("ignore signals that are meant for the agent"))?;
    info!(pid = std::process::id(), data = %options.data.display(), "the guard stands");
    if let Err(error) = detached {
        warn!(%error, "no session of its own: what ends whoever started it may end it too");
    }
    // Before anybody reaches it: whoever does is answered at once.
    hold_on();
    let listener = listen(&place).map_err(cannot("listen for the agent"))?;
    let flags = TimerfdFlags::CLOEXEC | TimerfdFlags::NONBLOCK;
    let timer =
        rustix::time::timerfd_create(TimerfdClockId::Boottime, flags).map_err(cannot("make a timer"))?;
    let watchdog = options.watchdog.clone();
    let watchdog = watchdog.map(|device| WatchdogConfig { device, timeout_ms: options.watchdog_timeout_ms });
    let guard = Guard { dir, place, watchdog, started: now(), watch: None, armed: None, unarmed: None };
    guard.stand(&listener, &timer).map_err(cannot("wait"))
}

/// Takes the directory, until the process ends.
fn lock(place: &Path, data: &Path) -> Result<File, GuardError> {
    let file = File::options().create(true).truncate(false).write(true).open(place.join(LOCK));
    let mut file = file.map_err(cannot("open its lock file"))?;
    match retry_on_intr(|| rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive)) {
        Ok(()) => {}
        Err(Errno::WOULDBLOCK) => return Err(GuardError::InUse(data.to_owned())),
        Err(error) => return Err(cannot("lock its lock file")(error)),
    }
    // For people; the lock itself is what counts.
    let _ = file.set_len(0).and_then(|()| file.write_all(format!("{}\n", std::process::id()).as_bytes()));
    Ok(file)
}

fn listen(place: &Path) -> Result<OwnedFd, Errno> {
    let path = place.join(SOCKET);
    // Left by a guard that was killed: whoever has the lock has the socket.
    match rustix::fs::unlink(&path) {
        Ok(()) | Err(Errno::NOENT) => {}
        Err(error) => return Err(error),
    }
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = rustix::net::socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None)?;
    rustix::net::bind(&socket, &SocketAddrUnix::new(&path)?)?;
    rustix::net::listen(&socket, i32::try_from(LINES_MAX).expect("a small number"))?;
    Ok(socket)
}

/// Signals that are meant for the agent, or for all of its group, and that this process only takes note of.
struct Deaf {
    _signals: Vec<Signal>,
    _runtime: tokio::runtime::Runtime,
}

impl Deaf {
    fn to_farewells() -> io::Result<Self> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_io().build()?;
        let entered = runtime.enter();
        let kinds =
            [SignalKind::hangup(), SignalKind::terminate(), SignalKind::interrupt(), SignalKind::quit()];
        let signals = kinds.into_iter().map(signal).collect::<io::Result<_>>()?;
        drop(entered);
        Ok(Self { _signals: signals, _runtime: runtime })
    }
}

/// Asks for what makes it act in time on a machine that is out of memory or busy. Each of it needs a right that it may
/// not have; it goes on without.
fn hold_on() {
    let flags = MlockAllFlags::CURRENT | MlockAllFlags::FUTURE | MlockAllFlags::ONFAULT;
    let mut refused = Vec::new();
    // Only what it really uses: its allocator reserves a lot of address space.
    refused.extend(rustix::mm::mlockall(flags).err().map(|error| format!("memory that stays: {error}")));
    let spared = fs::write("/proc/self/oom_score_adj", "-1000");
    refused.extend(spared.err().map(|error| format!("to be spared when memory is short: {error}")));
    let first = rustix::process::setpriority_process(None, -20);
    refused.extend(first.err().map(|error| format!("to run before others: {error}")));
    if !refused.is_empty() {
        warn!("not granted: {}", refused.join("; "));
    }
    // What this needs is in memory from now on.
    All::look();
}

struct Guard {
    dir: OwnedFd,
    /// The directory, by its handle.
    place: PathBuf,
    watchdog: Option<WatchdogConfig>,
    started: Time,
    /// What it was told last.
    watch: Option<Watch>,
    armed: Option<Watchdog>,
    /// Why it is not, said once.
    unarmed: Option<String>,
}

/// What is guarded.
struct Watch {
    until: Time,
    members: BTreeMap<MemberId, BTreeMap<u32, Process>>,
    calls: bool,
    /// What descended from each named process when it was last named: one that outlives its parent is found by this.
    family: BTreeMap<Process, BTreeSet<Process>>,
    /// What was killed at the lease's end and is not gone. None: the lease stands.
    left: Option<BTreeSet<Process>>,
    /// When to try again.
    again: Time,
}

/// Whether the guard goes on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Next {
    Stay,
    End,
}

impl Guard {
    fn stand(mut self, listener: &OwnedFd, timer: &OwnedFd) -> Result<(), Errno> {
        // In the order in which they came: what an agent says that was killed counts before what the next one says.
        let mut lines: Vec<OwnedFd> = Vec::new();
        loop {
            self.set(timer)?;
            wait(listener, timer, &lines)?;
            while lines.len() < LINES_MAX {
                let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
                match rustix::net::accept_with(listener, flags) {
                    Ok(line) => lines.push(line),
                    Err(Errno::INTR) => {}
                    // None waits, it has gone again, or there is no room: the next look shows it.
                    Err(_) => break,
                }
            }
            // A guard that was stopped hears what it missed before it looks at the clock.
            let mut next = Next::Stay;
            lines.retain(|line| next == Next::Stay && self.hear(line, &mut next));
            if next == Next::Stay {
                next = self.look(now(), lines.is_empty());
            }
            match next {
                Next::Stay => {}
                Next::End => break,
            }
        }
        if let Some(Err(error)) = self.armed.take().map(Watchdog::disarm) {
            error!(%error, "the watchdog cannot be stopped: it will reset this machine");
        }
        info!("the guard ends");
        // Before the lock goes: the next guard's is to stay.
        let _ = rustix::fs::unlinkat(&self.dir, SOCKET, AtFlags::empty());
        Ok(())
    }

    /// Hears one agent out; whether it is still there.
    fn hear(&mut self, line: &OwnedFd, next: &mut Next) -> bool {
        let mut buffer = vec![0; PACKET_BYTES_MAX];
        for _ in 0..PACKETS_AT_ONCE {
            let bytes = match rustix::net::recv(line, &mut buffer[..], RecvFlags::TRUNC) {
                Ok((_, 0)) => return false,
                Ok((read, whole)) if read == whole => &buffer[..read],
                // What is cut cannot be read, and is refused as such.
                Ok(_) => &[],
                Err(Errno::INTR) => continue,
                Err(Errno::AGAIN) => return true,
                Err(_) => return false,
            };
            let answer = match Request::read(bytes) {
                Ok(Request { v: _, n, say }) => {
                    if say == Say::Goodbye {
                        *next = Next::End;
                    }
                    Answer { v: VERSION, n, what: self.take(say) }
                }
                Err(refused) => {
                    warn!(?refused, "the agent says what this guard does not understand");
                    refused
                }
            };
            let answer = serde_json::to_vec(&answer).expect("an answer is plain data");
            // An agent that does not read is not waiting for it.
            let _ = rustix::net::send(line, &answer, SendFlags::NOSIGNAL);
            if *next == Next::End {
                return false;
            }
            // After the answer, which the agent waits for.
            self.look_around();
        }
        true
    }

    fn take(&mut self, say: Say) -> Said {
        let (at, until, members, calls) = match say {
            Say::Watch { at, until, members, calls } => (at, until, members, calls),
            Say::Ask => return Said::Watching(self.watching()),
            Say::Goodbye => {
                info!("the agent has nothing to guard any more");
                return Said::Goodbye;
            }
        };
        let before = self.watch.take();
        let mut unknown = Pids::new();
        let mut found: BTreeMap<MemberId, BTreeMap<u32, Process>> = BTreeMap::new();
        for (member, pids) in members {
            let known = before.as_ref().and_then(|watch| watch.members.get(&member));
            for pid in pids {
                // One that is named again is the one that was named before: the id of a dead one may be another's by
                // now, and the handler that named it has not looked since.
                let before = known.and_then(|known| known.get(&pid)).copied();
                match before.or_else(|| Process::named(pid, at)) {
                    Some(process) if process.lives() => {
                        found.entry(member.clone()).or_default().insert(pid, process);
                    }
                    gone => {
                        unknown.entry(member.clone()).or_default().insert(pid);
                        // It stays known as the one that is gone.
                        if let Some(process) = gone {
                            found.entry(member.clone()).or_default().insert(pid, process);
                        }
                    }
                }
            }
            found.entry(member).or_default();
        }
        let names = |members: &BTreeMap<MemberId, BTreeMap<u32, Process>>| -> Vec<_> {
            members
                .iter()
                .map(|(member, pids)| (member.clone(), pids.keys().copied().collect::<Vec<_>>()))
                .collect()
        };
        if before.as_ref().is_none_or(|watch| names(&watch.members) != names(&found)) {
            info!(members = ?names(&found), ?unknown, left_ms = until.since(now()), "guards");
        }
        let is_renewal = before.as_ref().is_none_or(|watch| watch.until < until);
        let family = before.map(|watch| watch.family).unwrap_or_default();
        self.watch = Some(Watch { until, members: found, calls, family, left: None, again: until });
        if is_renewal {
            self.arm();
        }
        Said::Taken(Taken { unknown, early_ms: self.early_ms() })
    }

    /// By how much before the lease's end it has to act.
    fn early_ms(&self) -> u64 {
        self.armed.as_ref().map_or(0, Watchdog::early_ms)
    }

    fn watching(&self) -> Watching {
        let Some(watch) = &self.watch else { return Watching::default() };
        let ids = |processes: &BTreeMap<u32, Process>| {
            processes.iter().filter(|(_, process)| process.lives()).map(|(pid, _)| *pid).collect()
        };
        let left = watch.left.iter().flatten().filter_map(|process| u32::try_from(process.pid).ok());
        Watching {
            until: Some(watch.until),
            members: watch.members.iter().map(|(member, pids)| (member.clone(), ids(pids))).collect(),
            over: watch.left.is_some(),
            left: left.collect(),
        }
    }

    /// Arms the watchdog once there is something to guard, for as long as it fits into the lease.
    fn arm(&mut self) {
        let (Some(config), Some(watch)) = (&self.watchdog, &self.watch) else { return };
        if watch.members.is_empty() {
            return;
        }
        let left_ms = watch.until.since(now());
        let armed = match self.armed.take() {
            Some(watchdog) if watchdog.fits(left_ms) => Ok(watchdog),
            Some(watchdog) => watchdog.disarm().and_then(|()| Err(watchdog::too_long(left_ms))),
            None => Watchdog::arm(config, left_ms, now()),
        };
        match armed {
            Ok(watchdog) => {
                if self.unarmed.take().is_some() {
                    info!(device = %config.device.display(), "the watchdog is armed now");
                }
                self.armed = Some(watchdog);
            }
            Err(error) => {
                let why = error.to_string();
                if self.unarmed.as_ref() != Some(&why) {
                    error!(device = %config.device.display(), why, "no watchdog");
                }
                self.unarmed = Some(why);
            }
        }
    }

    /// Notes what descends from the named.
    fn look_around(&mut self) {
        let Some(watch) = &mut self.watch else { return };
        if watch.left.is_some() || watch.members.is_empty() {
            return;
        }
        let all = All::look();
        let family = |root: Process| {
            let before = watch.family.get(&root).into_iter().flatten();
            (root, all.family(before.chain([&root])))
        };
        watch.family = watch.named().into_iter().map(family).collect();
    }

    /// Does what is due. Nobody needs a guard that has done its work, but an agent that is there: it asks what was done.
    fn look(&mut self, now: Time, is_alone: bool) -> Next {
        let early_ms = self.early_ms();
        if let Some(watch) = &mut self.watch
            && watch.due(early_ms).is_some_and(|due| due <= now)
        {
            watch.act(&self.place.join(RUNNING), now);
        }
        self.feed();
        let reachable = rustix::fs::statat(&self.dir, SOCKET, AtFlags::SYMLINK_NOFOLLOW).is_ok();
        let is_over = match &self.watch {
            // It may be needed until the lease ends, and has nobody to tell it of another.
            Some(watch) => watch.left.as_ref().is_some_and(BTreeSet::is_empty) && (is_alone || !reachable),
            None => !reachable || now.since(self.started) >= UNTOLD_MS,
        };
        if is_over { Next::End } else { Next::Stay }
    }

    /// Feeds the watchdog, unless something runs that should not.
    fn feed(&mut self) {
        let Some(watchdog) = &mut self.armed else { return };
        let overdue = match &self.watch {
            Some(watch) => match &watch.left {
                Some(left) => !left.is_empty(),
                // It would have acted by now.
                None => watch.until <= now().plus(watchdog.early_ms()),
            },
            None => false,
        };
        let now = now();
        if !overdue
            && watchdog.next() <= now
            && let Err(error) = watchdog.feed(now)
        {
            error!(%error, "the watchdog takes nothing: it will reset this machine");
        }
    }

    /// Sets the timer to when something is due next.
    fn set(&self, timer: &OwnedFd) -> Result<(), Errno> {
        let look = match &self.watch {
            None => Some(now().plus(AGAIN_MS)),
            Some(watch) => watch.due(self.early_ms()),
        };
        let fed = self.armed.as_ref().map(|watchdog| watchdog.next().max(now()));
        // Zero would stop the timer, and 1 ns is over.
        let next = [look, fed].into_iter().flatten().min().unwrap_or(Time(u64::MAX)).0.max(1);
        let seconds = i64::try_from(next / 1000).unwrap_or(i64::MAX);
        let nanoseconds = i64::try_from(next % 1000 * 1_000_000).expect("less than a second");
        let it_value = Timespec { tv_sec: seconds, tv_nsec: nanoseconds };
        let spec = Itimerspec { it_interval: Timespec { tv_sec: 0, tv_nsec: 0 }, it_value };
        rustix::time::timerfd_settime(timer, TimerfdTimerFlags::ABSTIME, &spec).map(|_| ())
    }
}

impl Watch {
    fn named(&self) -> BTreeSet<Process> {
        self.members.values().flat_map(|pids| pids.values()).copied().collect()
    }

    /// When there is something to do.
    fn due(&self, early_ms: u64) -> Option<Time> {
        match &self.left {
            None => Some(Time(self.until.0.saturating_sub(early_ms))),
            // Again, or to see whether anybody can still reach the guard.
            Some(_) => Some(self.again),
        }
    }

    /// The lease is over.
    fn act(&mut self, running: &Path, now: Time) {
        self.again = now.plus(AGAIN_MS);
        let members: BTreeSet<_> = self.members.keys().cloned().collect();
        let roots = match &self.left {
            Some(left) if left.is_empty() => return,
            Some(left) => left.clone(),
            None => self.family.values().flatten().copied().chain(self.named()).collect(),
        };
        let calls = kill::Calls { running, members: &members };
        let killed = kill::kill(&roots, self.calls.then_some(calls));
        // Nothing is logged before: a disk that hangs would save what is to be killed.
        let pids =
            |processes: &BTreeSet<Process>| processes.iter().map(|process| process.pid).collect::<Vec<_>>();
        let late_ms = now.since(self.until);
        if self.left.is_none() {
            let members: Vec<_> = members.iter().map(ToString::to_string).collect();
            let gone = pids(&killed.gone);
            warn!(members = members.join(","), ?gone, late_ms, "the lease is over: these have ended");
        }
        for (process, error) in &killed.left {
            let why =
                error.map_or_else(|| "it is in the kernel's hands".to_owned(), |error| error.to_string());
            error!(pid = process.pid, %why, late_ms, "the lease is over, and a process CANNOT BE KILLED");
        }
        self.left = Some(killed.left.into_keys().collect());
    }
}

/// Waits for an agent or for the timer.
fn wait(listener: &OwnedFd, timer: &OwnedFd, lines: &[OwnedFd]) -> Result<(), Errno> {
    // One that is full hears nobody new until somebody has gone.
    let listener = (lines.len() < LINES_MAX).then_some(listener);
    let all = listener.into_iter().chain([timer]).chain(lines);
    let mut all: Vec<_> = all.map(|fd| PollFd::from_borrowed_fd(fd.as_fd(), PollFlags::IN)).collect();
    match poll(&mut all, None) {
        Ok(_) | Err(Errno::INTR) => Ok(()),
        Err(error) => Err(error),
    }
}
