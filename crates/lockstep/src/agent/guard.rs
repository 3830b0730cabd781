//! The agent's side of its guard ([`crate::guard`]): finds the one that stands, or starts one, and tells it what to
//! guard. It decides nothing, and however the guard fares, an answer comes within a bounded time: that nobody answers
//! means that nothing is guarded.

use crate::guard::WatchdogConfig;
use crate::guard::message::{Answer, LOG, PACKET_BYTES_MAX, Pids, Request, SOCKET, Said, Say, VERSION};
pub use crate::guard::message::{Taken, Watching};
use lockstep_core::time::Time;
use rustix::fs::{Mode, OFlags};
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};
use std::fs::File;
use std::future::{Future, pending};
use std::io;
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::UnixDatagram;
use tokio::process::{Child, Command};
use tokio::sync::{Notify, mpsc, oneshot};
use tokio::time::{Instant, sleep, timeout_at};
use tracing::{info, warn};

/// The most that an answer may take, in ms: of a lease a small part, for a guard that is not stopped a thousand times
/// what it needs.
pub const ANSWER_MS_MAX: u64 = 500;
/// The most that a guard may take to stand, in ms, before the first answer.
pub const START_MS_MAX: u64 = 2_000;
/// The pause between two looks whether it stands.
const START_LOOK: Duration = Duration::from_millis(5);
/// How many questions wait for the guard. An agent has one or two.
const QUESTIONS_MAX: usize = 16;

/// Why nothing is guarded.
#[derive(Debug, thiserror::Error)]
pub enum NotGuarded {
    /// It is stopped, or starved.
    #[error("the guard does not answer in time")]
    Silent,
    /// It cannot be started, or is gone.
    #[error("there is no guard")]
    Absent(#[source] io::Error),
    /// It speaks another version, or the pids are too many for it.
    #[error("the guard does not take it: {0}")]
    Refused(String),
}

/// An agent's guard. It goes on when this is dropped: that is what it is for.
#[derive(Debug, Clone)]
pub struct Guard {
    questions: mpsc::Sender<Question>,
    lost: Arc<Notify>,
}

struct Question {
    say: Say,
    answer: oneshot::Sender<Result<Said, NotGuarded>>,
}

impl Guard {
    /// The guard of the agent whose directory is `data`: the one that stands there already, or a new one, now or
    /// whenever it is asked. Needs a Tokio runtime; waits for nothing.
    pub fn start(data: &Path, watchdog: Option<WatchdogConfig>) -> Self {
        // This very program, also after its file has been replaced.
        Self::start_program(Path::new("/proc/self/exe"), data, watchdog)
    }

    /// The same, by another program than this process runs.
    pub fn start_program(program: &Path, data: &Path, watchdog: Option<WatchdogConfig>) -> Self {
        let (questions, asked) = mpsc::channel(QUESTIONS_MAX);
        let place = Place { program: program.to_owned(), data: data.to_owned(), watchdog };
        let lost = Arc::new(Notify::new());
        tokio::spawn(keep(place, asked, lost.clone()));
        Self { questions, lost }
    }

    /// Waits until a guard that answered has gone without a goodbye. A loss that nobody has waited for counts at the next
    /// call. Another is started by whatever is said next.
    pub async fn lost(&self) {
        self.lost.notified().await;
    }

    /// What the guard was told last, perhaps by an earlier run of this agent: when its lease ends.
    pub fn ask(&self) -> impl Future<Output = Result<Watching, NotGuarded>> + Send + 'static {
        let said = self.put(Say::Ask);
        async {
            said.await
                .and_then(|said| if let Said::Watching(watching) = said { Ok(watching) } else { odd(said) })
        }
    }

    /// Guards `members` from now on, and nothing else, until `until` (milliseconds of CLOCK_BOOTTIME; at once, if that is
    /// over). They are known since `at`: a process that started later only has the id of one of them. With `calls`, their
    /// handlers that are at work then are ended too. Calls take effect in the order in which they are made; a
    /// future that is dropped takes nothing back.
    ///
    /// A member is guarded when it has a process here and none in [`Taken::unknown`].
    pub fn watch(
        &self,
        at: Time,
        until: Time,
        members: Pids,
        calls: bool,
    ) -> impl Future<Output = Result<Taken, NotGuarded>> + Send + 'static {
        let said = self.put(Say::Watch { at, until, members, calls });
        async {
            said.await.and_then(|said| if let Said::Taken(taken) = said { Ok(taken) } else { odd(said) })
        }
    }

    /// Nothing is to be guarded any more: the guard ends, without having killed anything. It is started anew by the
    /// next `watch`.
    pub fn goodbye(&self) -> impl Future<Output = Result<(), NotGuarded>> + Send + 'static {
        let said = self.put(Say::Goodbye);
        async { said.await.and_then(|said| if said == Said::Goodbye { Ok(()) } else { odd(said) }) }
    }

    /// Puts a question in its place at once, so that order is the caller's.
    fn put(&self, say: Say) -> impl Future<Output = Result<Said, NotGuarded>> + Send + 'static {
        let (answer, answered) = oneshot::channel();
        let put = self.questions.try_send(Question { say, answer });
        async move {
            put.map_err(|_| NotGuarded::Silent)?;
            answered.await.map_err(|_| NotGuarded::Silent)?
        }
    }
}

fn odd<T>(said: Said) -> Result<T, NotGuarded> {
    Err(NotGuarded::Refused(match said {
        Said::Refused { why } => why,
        other @ (Said::Taken(_) | Said::Watching(_) | Said::Goodbye) => format!("it answered {other:?}"),
    }))
}

/// Where a guard is, and how it is started.
struct Place {
    program: PathBuf,
    data: PathBuf,
    watchdog: Option<WatchdogConfig>,
}

/// A connection, and the guard itself where it is a child of this process.
struct Line {
    socket: UnixDatagram,
    n: u64,
}

/// Answers questions, one at a time, and sees whether the guard is there in between.
async fn keep(place: Place, mut asked: mpsc::Receiver<Question>, lost: Arc<Notify>) {
    let mut line: Option<Line> = None;
    // Kept, so that it is buried when it ends.
    let mut child = None;
    loop {
        let question = tokio::select! {
            biased;
            question = asked.recv() => question,
            error = gone(line.as_ref()) => {
                warn!(%error, "the guard is gone");
                line = None;
                lost.notify_one();
                continue;
            }
        };
        let Some(Question { say, answer }) = question else { return };
        let said = place.say(&mut line, &mut child, say).await;
        if matches!(said, Err(NotGuarded::Absent(_)) | Ok(Said::Goodbye)) {
            line = None;
        }
        // Nobody may wait for it any more.
        let _ = answer.send(said);
    }
}

/// Waits until the guard at the other end has gone.
async fn gone(line: Option<&Line>) -> io::Error {
    let Some(line) = line else { return pending().await };
    loop {
        // What it says now answers what nobody waits for any more.
        if let Err(error) = line.hear().await {
            return error;
        }
    }
}

impl Place {
    async fn say(
        &self,
        line: &mut Option<Line>,
        child: &mut Option<Child>,
        say: Say,
    ) -> Result<Said, NotGuarded> {
        // A guard that has died meanwhile is found out by this; then there is a second way, over a new one.
        if let Some(line) = line.as_mut() {
            match line.say(&say).await {
                Err(NotGuarded::Absent(error)) => warn!(%error, "the guard is gone: starting another"),
                said => return said,
            }
        }
        if say == Say::Goodbye && self.connect().is_err() {
            return Ok(Said::Goodbye);
        }
        let new = line.insert(self.reach(child).await.map_err(NotGuarded::Absent)?);
        new.say(&say).await
    }

    /// A connection to the guard that stands, or to a new one.
    async fn reach(&self, child: &mut Option<Child>) -> io::Result<Line> {
        let until = Instant::now() + Duration::from_millis(START_MS_MAX);
        loop {
            let error = match self.connect() {
                Ok(line) => return Ok(line),
                // It stands, and hears nobody.
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Err(error),
                Err(error) => error,
            };
            if Instant::now() >= until {
                return Err(error);
            }
            // One that says goodbye keeps its place for an instant: then the new one ends, and another is tried.
            let starts = child.as_mut().is_some_and(|child| matches!(child.try_wait(), Ok(None)));
            if !starts {
                *child = Some(self.spawn()?);
            }
            sleep(START_LOOK).await;
        }
    }

    fn connect(&self) -> io::Result<Line> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let dir = rustix::fs::open(&self.data, flags, Mode::empty())?;
        // A socket's address has room for 107 bytes; the directory's own name may be longer.
        let address = SocketAddrUnix::new(format!("/proc/self/fd/{}/{SOCKET}", dir.as_raw_fd()))?;
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let socket = rustix::net::socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None)?;
        rustix::net::connect(&socket, &address)?;
        // A type for datagrams, and right for this: it sends and receives whole packets through what is connected.
        let socket = UnixDatagram::from_std(socket.into())?;
        Ok(Line { socket, n: 0 })
    }

    fn spawn(&self) -> io::Result<Child> {
        let data = std::path::absolute(&self.data)?;
        // For what it has to say before it has a log of its own.
        let log = File::options().create(true).append(true).open(data.join(LOG))?;
        let mut command = Command::new(&self.program);
        command.arg0("lockstep").arg("guard").arg("--data").arg(data);
        if let Some(WatchdogConfig { device, timeout_ms }) = &self.watchdog {
            command.arg("--watchdog").arg(device);
            if let Some(ms) = timeout_ms {
                command.arg("--watchdog-timeout-ms").arg(ms.to_string());
            }
        }
        command.env_clear().current_dir("/");
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log);
        let child = command.spawn()?;
        info!(pid = child.id(), "started a guard");
        Ok(child)
    }
}

impl Line {
    /// Says it and waits for the answer, for a bounded time.
    async fn say(&mut self, say: &Say) -> Result<Said, NotGuarded> {
        let until = Instant::now() + Duration::from_millis(ANSWER_MS_MAX);
        self.n += 1;
        let bytes = Request { v: VERSION, n: self.n, say: say.clone() }.bytes();
        if bytes.len() > PACKET_BYTES_MAX {
            return Err(NotGuarded::Refused(format!("the pids take more than {PACKET_BYTES_MAX} bytes")));
        }
        // One that has not read what it was told before has no room for more.
        let sent = timeout_at(until, self.socket.send(&bytes)).await.map_err(|_| NotGuarded::Silent)?;
        sent.map_err(NotGuarded::Absent)?;
        loop {
            let heard = timeout_at(until, self.hear()).await.map_err(|_| NotGuarded::Silent)?;
            let answer = heard.map_err(NotGuarded::Absent)?;
            // Others are too late; one without a number answers what could not be read at all.
            if answer.n == self.n || answer.n == 0 {
                return Ok(answer.what);
            }
        }
    }

    /// The next answer. Nothing is lost of one when this is dropped.
    async fn hear(&self) -> io::Result<Answer> {
        let mut buffer = vec![0; PACKET_BYTES_MAX];
        let read = self.socket.recv(&mut buffer).await?;
        if read == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        serde_json::from_slice(&buffer[..read]).map_err(io::Error::from)
    }
}
