//! One call of an exec handler: start it, feed it, read it, end it.
//!
//! What a handler gets: fixed arguments and the phase as the last one, no shell; a cleared environment; `/` as
//! its directory; a process group of its own; the context on stdin. What it cannot do: block the agent (by
//! reading nothing, by writing for ever, by leaving a child that keeps its output open), outlive its time-out
//! inside its group, or leave a zombie.
//!
//! What this does not do, because it would need code between fork and exec, which only `unsafe` can place there:
//! - A handler that runs as another user has that user's own group and no supplementary ones; the standard
//!   library drops root's, and cannot set the user's. One that needs more starts itself through `setpriv
//!   --init-groups`.
//! - A handler is not told to die with its agent. After `kill -9` of the agent it runs on until the
//!   agent's next run ends it, before it says a word ([`crate::agent`]).
//!
//! A child that leaves the group on purpose (`setsid`) survives time-outs and normal ends alike: that is how a
//! handler arms the end of a hold. It should close its stdout and stderr, which nobody reads after the call.

use std::collections::BTreeMap;
use std::future::{Future, pending};
use std::io::ErrorKind;
use std::os::fd::AsFd;
use std::os::unix::process::ExitStatusExt;
use std::path::PathBuf;
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process_group};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWriteExt};
use tokio::process::{Child, ChildStdin, Command};
use tokio::time::{Instant, sleep, sleep_until};

use lockstep_core::message::{Findings, Phase};
use lockstep_core::vote::Answer;

use crate::process::group_lives;

use super::answer::parse;
use super::reason::{last_line, printable};

/// Most bytes that a call may print on stdout: twice what `out` and `facts` may take, so that their own limits
/// are what a handler meets first. More fails the call, since part of an answer is no answer.
pub const STDOUT_BYTES_MAX: usize = 64 * 1024;

/// Bytes of stderr that are kept, the last ones, for the reason is at its end. More does not fail the call.
pub const STDERR_BYTES_MAX: usize = 64 * 1024;

/// Exit status that asks to be asked again: EX_TEMPFAIL of sysexits.h.
pub const EXIT_AGAIN: i32 = 75;

/// Search path of a handler, unless its `env` sets another.
pub const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// Bytes read in one go.
const READ_BYTES: usize = 16 * 1024;

/// Bytes read from each pipe after the handler has exited. A pipe holds at most 1 MiB (pipe-max-size), so this
/// is all that the handler itself wrote, whatever a child of its writes meanwhile.
const DRAIN_BYTES_MAX: usize = 1024 * 1024;

/// How long to wait for a killed group to be gone. SIGKILL takes effect within microseconds, except on a process
/// inside an uninterruptible system call; then the end of the call says so.
const GROUP_GONE_WAIT: Duration = Duration::from_millis(500);

/// How often to look meanwhile.
const GROUP_GONE_POLL: Duration = Duration::from_millis(2);

/// What to run for a handler, from the host's own configuration.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Program {
    /// The program's absolute path. Never looked up in a search path.
    pub path: PathBuf,
    /// Its arguments, as they are; the phase follows as the last one.
    pub args: Vec<String>,
    /// Whom it runs as; `None` for the agent's own user and groups.
    pub user: Option<User>,
    /// Environment on top of `PATH` and `LANG`, which it may replace.
    pub env: BTreeMap<String, String>,
}

/// A user that a handler runs as.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct User {
    /// Login name, for messages.
    pub name: String,
    /// User id.
    pub uid: u32,
    /// Id of the user's own group. There are no supplementary groups.
    pub gid: u32,
}

/// One call of a handler.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Call {
    /// Passed as the last argument.
    pub phase: Phase,
    /// The call's own environment, by the name after `LOCKSTEP_`: `TOKEN`, `SET_LIVE`. The prefix is added here,
    /// so nothing that a server sends can set `PATH` or `LD_PRELOAD`.
    pub vars: BTreeMap<String, String>,
    /// JSON for stdin, of any length. The handler need not read it.
    pub context: Vec<u8>,
    /// How long the call may take. Then its process group is killed.
    pub timeout_ms: u64,
}

/// How a call ended.
#[derive(Debug, Clone, PartialEq)]
pub struct CallEnd {
    /// What it comes to: yes or done at exit status 0 with an empty stdout or good findings, again at
    /// [`EXIT_AGAIN`], no or failed at everything else.
    pub answer: Answer,
    /// Why, unless the answer is yes: printable, at most 1,000 characters.
    pub reason: Option<String>,
    /// What the handler said. Empty unless the answer is yes.
    pub findings: Findings,
}

impl CallEnd {
    fn not_yes(answer: Answer, reason: &str) -> CallEnd {
        CallEnd { answer, reason: Some(printable(reason)), findings: Findings::default() }
    }
}

/// Calls `program` once and returns when the call has ended, however it does.
///
/// It ends when the handler exits, when its time is up, or when `kill` resolves (a lease ends); in the latter two
/// cases its process group gets SIGKILL at once. The handler is reaped before this returns, so a handler stuck in
/// an uninterruptible system call keeps it waiting: its end is not known, and nothing here pretends that it is.
/// Dropping the future kills the group too, and the runtime reaps the handler.
///
/// `started` learns the handler's process id, which is also its group's, as soon as it has one.
///
/// Needs a Tokio runtime with IO and time.
pub async fn run(
    program: &Program,
    call: Call,
    started: impl FnOnce(u32),
    kill: impl Future<Output = ()>,
) -> CallEnd {
    let deadline = Instant::now() + Duration::from_millis(call.timeout_ms);
    let mut child = match command(program, &call).spawn() {
        Ok(child) => child,
        Err(error) => return CallEnd::not_yes(Answer::No, &cannot_start(program, &error)),
    };
    let mut group = Group::of(&child);
    if let Some(pid) = child.id() {
        started(pid);
    }
    let mut input = Feed { pipe: child.stdin.take(), rest: &call.context };
    let mut stdout = Capture::new(child.stdout.take(), STDOUT_BYTES_MAX);
    let mut stderr = Capture::new(child.stderr.take(), STDERR_BYTES_MAX);
    let mut kill = std::pin::pin!(kill);

    let end = loop {
        tokio::select! {
            status = child.wait() => break End::Exited(status),
            () = sleep_until(deadline) => break End::TimedOut,
            () = &mut kill => break End::Killed,
            () = input.feed() => {}
            () = stdout.fill() => {}
            () = stderr.fill() => {}
        }
    };
    let mut all_gone = true;
    match &end {
        // Children that it left behind on purpose live on.
        End::Exited(_) => group.spare(),
        End::TimedOut | End::Killed => {
            group.kill();
            // Its status says SIGKILL, or that it was about to exit: either way too late to count.
            let _ = child.wait().await;
            all_gone = group.gone().await;
            group.spare();
        }
    }
    stdout.drain();
    stderr.drain();
    conclude(end, &call, all_gone, &stdout, &stderr)
}

/// How the wait for a handler ended.
enum End {
    Exited(std::io::Result<ExitStatus>),
    TimedOut,
    Killed,
}

fn conclude<O, E>(
    end: End,
    call: &Call,
    all_gone: bool,
    stdout: &Capture<O>,
    stderr: &Capture<E>,
) -> CallEnd {
    let said = last_line(&stderr.kept);
    let with_last_words = |mut reason: String| {
        if !all_gone {
            reason.push_str("; killed, but some of its processes have not ended");
        }
        if stdout.lost {
            reason.push_str(&format!("; it printed more than {STDOUT_BYTES_MAX} bytes"));
        }
        match &said {
            Some(said) => format!("{reason}; last said: {said}"),
            None => reason,
        }
    };
    let status = match end {
        End::Exited(Ok(status)) => status,
        End::Exited(Err(error)) => {
            return CallEnd::not_yes(Answer::No, &with_last_words(format!("cannot wait for it: {error}")));
        }
        End::TimedOut => {
            let reason = format!("no answer within {} ms", call.timeout_ms);
            return CallEnd::not_yes(Answer::No, &with_last_words(reason));
        }
        End::Killed => {
            return CallEnd::not_yes(Answer::No, &with_last_words("killed by the agent".to_owned()));
        }
    };
    match status.code() {
        Some(0) if stdout.lost => {
            CallEnd::not_yes(Answer::No, &format!("stdout holds more than {STDOUT_BYTES_MAX} bytes"))
        }
        Some(0) => match parse(&stdout.kept) {
            Ok(findings) => CallEnd { answer: Answer::Yes, reason: None, findings },
            Err(error) => CallEnd::not_yes(Answer::No, &error.to_string()),
        },
        Some(code) => {
            let answer = if code == EXIT_AGAIN { Answer::Again } else { Answer::No };
            CallEnd::not_yes(answer, &said.unwrap_or_else(|| format!("exit status {code}")))
        }
        None => {
            // A signal was not the handler's choice, so its last line alone would not explain the end.
            let signal = status.signal().map_or_else(|| status.to_string(), |signal| signal.to_string());
            CallEnd::not_yes(Answer::No, &with_last_words(format!("killed by signal {signal}")))
        }
    }
}

fn command(program: &Program, call: &Call) -> Command {
    let mut command = Command::new(&program.path);
    command.args(&program.args).arg(call.phase.as_str());
    command.env_clear().env("PATH", PATH).env("LANG", "C.UTF-8").envs(&program.env);
    command.envs(call.vars.iter().map(|(name, value)| (format!("LOCKSTEP_{name}"), value)));
    command.current_dir("/").process_group(0);
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    if let Some(user) = &program.user {
        // As root, the standard library also empties the supplementary groups.
        command.gid(user.gid).uid(user.uid);
    }
    command
}

fn cannot_start(program: &Program, error: &std::io::Error) -> String {
    let path = program.path.display();
    match (&program.user, error.kind()) {
        (Some(user), ErrorKind::PermissionDenied) => {
            format!("cannot start {path} as {}: {error}; may the agent switch users?", user.name)
        }
        _ => format!("cannot start {path}: {error}"),
    }
}

/// The handler's process group. Killed on drop, unless it was spared: nothing outlives a call that was given up.
struct Group(Option<Pid>);

impl Group {
    fn of(child: &Child) -> Group {
        // Started with process_group(0): the group has the child's id, before its first instruction runs.
        Group(child.id().and_then(|id| i32::try_from(id).ok()).and_then(Pid::from_raw))
    }

    /// To be called as soon as its leader is reaped and nothing else is to be killed: its id may then be
    /// another's.
    fn spare(&mut self) {
        self.0 = None;
    }

    fn kill(&self) {
        if let Some(group) = self.0 {
            // The one error possible is that there is nothing left to kill.
            let _ = kill_process_group(group, Signal::KILL);
        }
    }

    /// Waits until no process of a killed group runs any more; false after [`GROUP_GONE_WAIT`].
    ///
    /// What is ordered next (an undo, a stop) must not meet a half-dead child of this call.
    async fn gone(&self) -> bool {
        let Some(group) = self.0 else { return true };
        let until = Instant::now() + GROUP_GONE_WAIT;
        while group_lives(group) {
            if Instant::now() >= until {
                return false;
            }
            sleep(GROUP_GONE_POLL).await;
        }
        true
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        self.kill();
    }
}

/// Writes the context to stdin, as far as the handler takes it.
struct Feed<'a> {
    pipe: Option<ChildStdin>,
    rest: &'a [u8],
}

impl Feed<'_> {
    /// Writes some of what is left; for ever pending once nothing is. Cancel-safe.
    async fn feed(&mut self) {
        let Some(pipe) = &mut self.pipe else { return pending().await };
        if self.rest.is_empty() {
            self.pipe = None;
            return;
        }
        match pipe.write(self.rest).await {
            Ok(written) if written > 0 => self.rest = &self.rest[written..],
            // The handler closed its stdin: it need not read.
            Ok(_) | Err(_) => self.pipe = None,
        }
    }
}

/// Reads a pipe to its end and keeps the last `max` bytes.
struct Capture<P> {
    pipe: Option<P>,
    chunk: Box<[u8]>,
    kept: Vec<u8>,
    max: usize,
    /// Whether there were more than `max`.
    lost: bool,
}

impl<P> Capture<P> {
    fn new(pipe: Option<P>, max: usize) -> Capture<P> {
        Capture { pipe, chunk: vec![0; READ_BYTES].into_boxed_slice(), kept: Vec::new(), max, lost: false }
    }

    fn keep(&mut self, len: usize) {
        self.kept.extend_from_slice(&self.chunk[..len]);
        if let Some(excess) = self.kept.len().checked_sub(self.max).filter(|excess| *excess > 0) {
            self.kept.drain(..excess);
            self.lost = true;
        }
    }
}

impl<P: AsyncRead + Unpin + AsFd> Capture<P> {
    /// Reads once; for ever pending after the end. Cancel-safe.
    async fn fill(&mut self) {
        let Some(pipe) = &mut self.pipe else { return pending().await };
        match pipe.read(&mut self.chunk).await {
            Ok(len) if len > 0 => self.keep(len),
            Ok(_) | Err(_) => self.pipe = None,
        }
    }

    /// Takes what is in the pipe and no more: after the handler's exit a child of its may keep the pipe open,
    /// or go on writing. Asks the pipe itself, since Tokio may not have heard of the last bytes yet.
    fn drain(&mut self) {
        let Some(pipe) = self.pipe.take() else { return };
        let mut drained = 0;
        while drained < DRAIN_BYTES_MAX {
            match rustix::io::read(pipe.as_fd(), &mut *self.chunk) {
                Ok(len) if len > 0 => {
                    drained += len;
                    self.keep(len);
                }
                Err(rustix::io::Errno::INTR) => {}
                // Empty (EAGAIN: Tokio's pipes do not block) or at its end.
                Ok(_) | Err(_) => return,
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::future::poll_fn;
    use std::path::Path;
    use std::task::Poll;

    use rustix::event::{PollFd, PollFlags, Timespec, poll};
    use rustix::process::{PidfdFlags, pidfd_open};
    use tempfile::TempDir;
    use tokio::net::unix::pipe;

    use super::*;

    /// Ends a test that would otherwise hang; nothing is expected to take near as long.
    const STUCK: Duration = Duration::from_secs(60);

    /// A time-out that a call under test never reaches.
    const AMPLE_MS: u64 = 60_000;

    /// A handler that is a shell script in a directory of its own, which the script knows as `$DIR`.
    struct Script {
        dir: TempDir,
        program: Program,
    }

    impl Script {
        fn new(body: &str) -> Script {
            let dir = tempfile::tempdir().unwrap();
            let path = dir.path().join("handler");
            // Run by name: a script that is executed while another test forks may be "busy".
            fs::write(&path, body).unwrap();
            let env = BTreeMap::from([("DIR".to_owned(), dir.path().to_str().unwrap().to_owned())]);
            let args = vec![path.to_str().unwrap().to_owned()];
            Script { dir, program: Program { path: "/bin/sh".into(), args, user: None, env } }
        }

        async fn run(&self, call: Call) -> CallEnd {
            tokio::time::timeout(STUCK, run(&self.program, call, |_| {}, pending()))
                .await
                .expect("the call ends")
        }

        fn file(&self, name: &str) -> String {
            fs::read_to_string(self.dir.path().join(name)).unwrap()
        }

        /// The process whose id the script wrote into a file.
        fn pid(&self, name: &str) -> Pid {
            Pid::from_raw(self.file(name).trim().parse().unwrap()).unwrap()
        }
    }

    fn call(timeout_ms: u64) -> Call {
        Call { phase: Phase::Check, vars: BTreeMap::new(), context: b"{}".to_vec(), timeout_ms }
    }

    async fn end_of(body: &str) -> CallEnd {
        Script::new(body).run(call(AMPLE_MS)).await
    }

    fn no(reason: &str) -> CallEnd {
        CallEnd::not_yes(Answer::No, reason)
    }

    fn yes() -> CallEnd {
        CallEnd { answer: Answer::Yes, reason: None, findings: Findings::default() }
    }

    /// A FIFO `$DIR/NAME`, by which a script says how far it is.
    fn fifo(script: &Script, name: &str) -> std::path::PathBuf {
        let path = script.dir.path().join(name);
        let made = std::process::Command::new("mkfifo").arg(&path).status().unwrap();
        assert!(made.success());
        path
    }

    /// Waits until the script writes to a FIFO.
    async fn hear(path: &Path) {
        // Open for both: then opening waits for nobody, and a test that fails does not hang.
        let mut pipe = pipe::OpenOptions::new().read_write(true).open_receiver(path).unwrap();
        tokio::time::timeout(STUCK, pipe.read_u8()).await.expect("the script writes").unwrap();
    }

    /// Writes a line to a FIFO, which is there for as long as what this returns.
    fn tell(path: &Path, line: &str) -> pipe::Sender {
        let pipe = pipe::OpenOptions::new().read_write(true).open_sender(path).unwrap();
        rustix::io::write(pipe.as_fd(), line.as_bytes()).unwrap();
        pipe
    }

    /// Waits for a process to end, without asking again and again. Zombies have ended.
    async fn ended(pid: Pid) {
        let Ok(fd) = pidfd_open(pid, PidfdFlags::empty()) else { return };
        let wait = move || {
            let stuck = Timespec { tv_sec: 60, tv_nsec: 0 };
            poll(&mut [PollFd::new(&fd, PollFlags::IN)], Some(&stuck)).unwrap()
        };
        assert_eq!(tokio::task::spawn_blocking(wait).await.unwrap(), 1, "the process ends");
    }

    fn runs(pid: Pid) -> bool {
        let stat = fs::read_to_string(format!("/proc/{}/stat", pid.as_raw_nonzero())).unwrap_or_default();
        stat.rsplit_once(") ").is_some_and(|(_, rest)| !rest.starts_with('Z'))
    }

    #[tokio::test]
    async fn the_environment_is_what_was_given_and_nothing_else() {
        let mut script = Script::new(
            "tr '\\0' '\\n' < /proc/$$/environ > $DIR/env; pwd > $DIR/pwd; echo $$ > $DIR/pid\n\
            cut -d' ' -f5 /proc/self/stat > $DIR/group",
        );
        script.program.env.insert("PGDATA".to_owned(), "a b\n;$(x)".to_owned());
        let mut call = call(AMPLE_MS);
        call.vars.insert("TOKEN".to_owned(), "118".to_owned());
        call.vars.insert("PATH".to_owned(), "/evil".to_owned());
        assert_eq!(script.run(call).await, yes());

        let env = script.file("env");
        let mut lines: Vec<&str> = env.lines().collect();
        lines.sort_unstable();
        let dir = format!("DIR={}", script.dir.path().display());
        let path = format!("PATH={PATH}");
        let mut expected = vec![
            ";$(x)",
            &dir,
            "LANG=C.UTF-8",
            "LOCKSTEP_PATH=/evil",
            "LOCKSTEP_TOKEN=118",
            &path,
            "PGDATA=a b",
        ];
        expected.sort_unstable();
        assert_eq!(lines, expected);
        assert_eq!(script.file("pwd"), "/\n");
        assert_eq!(script.file("group"), script.file("pid"), "it leads its own group");
    }

    #[tokio::test]
    async fn arguments_arrive_as_they_are_and_the_phase_is_the_last() {
        let mut script = Script::new("for arg; do echo \"[$arg]\"; done > $DIR/args");
        script.program.args.extend([";$(x)", "", "a b", "*", "\n"].map(str::to_owned));
        assert_eq!(script.run(call(AMPLE_MS)).await, yes());
        assert_eq!(script.file("args"), "[;$(x)]\n[]\n[a b]\n[*]\n[\n]\n[check]\n");
    }

    #[tokio::test]
    async fn stdin_is_the_context_to_its_end() {
        let script = Script::new("cat > $DIR/in");
        let context = format!("{{\"me\":\"{}\"}}", "x".repeat(1_000_000));
        let call = Call { context: context.clone().into_bytes(), ..call(AMPLE_MS) };
        assert_eq!(script.run(call).await, yes());
        assert_eq!(script.file("in"), context);
    }

    #[tokio::test]
    async fn a_handler_need_not_read_its_stdin() {
        for body in ["exit 0", "exec <&-; echo '{}'", "head -c 1 > /dev/null", "echo '{}'; echo said >&2"] {
            let call = Call { context: vec![b'x'; 10_000_000], ..call(AMPLE_MS) };
            assert_eq!(Script::new(body).run(call).await, yes(), "{body}");
        }
    }

    #[tokio::test]
    async fn reading_and_writing_at_once_does_not_deadlock() {
        // Each direction holds more than a pipe does.
        let context = format!("{{\"out\":{{}}}}{}", " ".repeat(STDOUT_BYTES_MAX - 10));
        let call = Call { context: context.into_bytes(), ..call(AMPLE_MS) };
        assert_eq!(Script::new("tee /dev/stderr").run(call).await, yes());
    }

    #[tokio::test]
    async fn exit_statuses() {
        let again = |reason| CallEnd::not_yes(Answer::Again, reason);
        let table = [
            ("exit 0", yes()),
            ("echo careful >&2; exit 0", yes()),
            ("exit 75", again("exit status 75")),
            ("echo later >&2; exit 75", again("later")),
            ("exit 3", no("exit status 3")),
            ("exit 255", no("exit status 255")),
            ("echo first >&2; echo the replica lags >&2; echo >&2; exit 1", no("the replica lags")),
            ("printf 'a\\033[2Jb\\nlast\\342\\200\\256\\377' >&2; exit 1", no("last\\u{202e}\u{fffd}")),
            ("kill -9 $$", no("killed by signal 9")),
            ("echo starting >&2; kill -15 $$", no("killed by signal 15; last said: starting")),
            // What a call that is not a yes prints is not looked at.
            ("echo '{\"state\":\"online\"}'; exit 1", no("exit status 1")),
            ("echo nonsense; exit 75", again("exit status 75")),
        ];
        for (body, expected) in table {
            assert_eq!(end_of(body).await, expected, "{body}");
        }
    }

    #[tokio::test]
    async fn a_good_answer_is_read() {
        let end = end_of("echo '{\"state\":\"standby\",\"score\":12}'").await;
        assert_eq!(end.answer, Answer::Yes);
        let state = end.findings.state.as_ref().map(|state| state.as_str());
        assert_eq!((state, end.findings.score), (Some("standby"), Some(12)));
    }

    #[tokio::test]
    async fn a_bad_answer_fails_the_call_with_its_reason() {
        let deep = "head -c 10000 /dev/zero | tr '\\0' '['";
        let table = [
            ("echo '{\"stat\":\"online\"}'", "unknown key \"stat\" on stdout"),
            ("echo '{}'; echo '{}'", "stdout holds more than one JSON value"),
            ("echo '{\"score\":NaN}'", "stdout is not a JSON object"),
            ("printf '\\377\\376'", "stdout is not UTF-8"),
            (deep, "stdout is not a JSON object: recursion limit exceeded"),
        ];
        for (body, reason) in table {
            let end = end_of(body).await;
            assert_eq!((end.answer, end.findings), (Answer::No, Findings::default()), "{body}");
            let said = end.reason.unwrap();
            assert!(said.starts_with(reason), "{body}: {said}");
        }
    }

    #[tokio::test]
    async fn a_program_that_cannot_be_started() {
        let mut program = Script::new("").program;
        program.path = "/no/such/handler".into();
        let end = run(&program, call(AMPLE_MS), |_| {}, pending()).await;
        assert_eq!(end, no("cannot start /no/such/handler: No such file or directory (os error 2)"));
        program.path = "/etc/passwd".into();
        let end = run(&program, call(AMPLE_MS), |_| {}, pending()).await;
        assert_eq!(end, no("cannot start /etc/passwd: Permission denied (os error 13)"));
        program.path = "/bin/sh".into();
        let vars = BTreeMap::from([("WHY".to_owned(), "a\0b".to_owned())]);
        let end = run(&program, Call { vars, ..call(AMPLE_MS) }, |_| {}, pending()).await;
        assert_eq!(end.answer, Answer::No);
    }

    #[tokio::test]
    async fn a_hang_is_killed_with_its_children_and_reaped() {
        let body = "sleep 1000 & echo $! > $DIR/child; echo $$ > $DIR/pid\n\
            echo waiting for a replica >&2; wait";
        let script = Script::new(body);
        let end = script.run(call(2_000)).await;
        assert_eq!(end, no("no answer within 2000 ms; last said: waiting for a replica"));
        assert!(!runs(script.pid("child")));
        let pid = script.pid("pid").as_raw_nonzero();
        assert!(!Path::new(&format!("/proc/{pid}")).exists(), "reaped, not a zombie");
    }

    #[tokio::test]
    async fn ignoring_sigterm_does_not_help() {
        let script = Script::new("trap '' TERM INT HUP; echo $$ > $DIR/pid; while :; do sleep 1000; done");
        assert_eq!(script.run(call(2_000)).await, no("no answer within 2000 ms"));
        assert!(!runs(script.pid("pid")));
    }

    #[tokio::test]
    async fn a_flood_is_drained_until_the_time_is_up() {
        for body in ["exec yes", "exec yes >&2"] {
            let end = Script::new(body).run(call(300)).await;
            let flood =
                if body.ends_with("2") { "; last said: " } else { "; it printed more than 65536 bytes" };
            let reason = end.reason.unwrap();
            assert_eq!(end.answer, Answer::No);
            assert!(reason.starts_with(&format!("no answer within 300 ms{flood}")), "{reason}");
        }
    }

    #[tokio::test]
    async fn more_output_than_is_kept() {
        let end = end_of("printf '{}'; head -c 65535 /dev/zero | tr '\\0' ' '").await;
        assert_eq!(end, no("stdout holds more than 65536 bytes"));
        assert_eq!(end_of("printf '{}'; head -c 65534 /dev/zero | tr '\\0' ' '").await, yes());
        // The end of stderr is what says why, so a long one costs nothing.
        assert_eq!(end_of("yes | head -c 10000000 >&2; exit 0").await, yes());
        assert_eq!(end_of("yes | head -c 10000000 >&2; echo because >&2; exit 1").await, no("because"));
    }

    #[tokio::test]
    async fn a_child_that_keeps_the_output_open_does_not_hold_up_the_call() {
        let script = Script::new(
            "{ read line < $DIR/go; echo $line > $DIR/went; } & echo $! > $DIR/child; echo '{\"score\":1}'; exit 0",
        );
        let go = fifo(&script, "go");
        let end = script.run(call(AMPLE_MS)).await;
        assert_eq!((end.answer, end.findings.score), (Answer::Yes, Some(1)));
        // And it is left alone: it may be what ends a hold.
        let _told = tell(&go, "on\n");
        ended(script.pid("child")).await;
        assert_eq!(script.file("went"), "on\n");
    }

    #[tokio::test]
    async fn a_child_that_floods_after_the_exit_does_not_hold_up_the_call() {
        let script = Script::new("yes >&2 & echo $! > $DIR/child; exit 4");
        let end = script.run(call(AMPLE_MS)).await;
        assert_eq!(end.answer, Answer::No);
        ended(script.pid("child")).await; // by SIGPIPE
    }

    #[tokio::test]
    async fn a_detached_child_survives_the_time_out() {
        let script = Script::new("");
        let ready = fifo(&script, "ready");
        let go = fifo(&script, "go");
        let body = "setsid sh -c 'echo $$ > $DIR/child; echo > $DIR/ready; read line < $DIR/go; echo $line > $DIR/went' \
            > /dev/null 2>&1 & wait";
        fs::write(script.dir.path().join("handler"), body).unwrap();
        assert_eq!(
            run(&script.program, call(AMPLE_MS), |_| {}, hear(&ready)).await,
            no("killed by the agent")
        );
        let _told = tell(&go, "on\n");
        ended(script.pid("child")).await;
        assert_eq!(script.file("went"), "on\n");
    }

    #[tokio::test]
    async fn killed_on_order_with_its_children() {
        let script =
            Script::new("sleep 1000 & echo $! > $DIR/child; echo $$ > $DIR/pid; echo > $DIR/ready; wait");
        let ready = fifo(&script, "ready");
        assert_eq!(
            run(&script.program, call(AMPLE_MS), |_| {}, hear(&ready)).await,
            no("killed by the agent")
        );
        assert!(!runs(script.pid("child")));
        assert!(!runs(script.pid("pid")));
    }

    #[tokio::test]
    async fn a_call_that_is_dropped_is_killed_and_reaped() {
        let script =
            Script::new("sleep 1000 & echo $! > $DIR/child; echo $$ > $DIR/pid; echo > $DIR/ready; wait");
        let ready = fifo(&script, "ready");
        tokio::select! {
            end = script.run(call(AMPLE_MS)) => panic!("it waits: {end:?}"),
            () = hear(&ready) => {}
        }
        ended(script.pid("child")).await;
        let pid = script.pid("pid");
        ended(pid).await;
        // The runtime reaps it as it goes round.
        let proc = format!("/proc/{}", pid.as_raw_nonzero());
        let reaped = poll_fn(|context| {
            if Path::new(&proc).exists() {
                context.waker().wake_by_ref();
                return Poll::Pending;
            }
            Poll::Ready(())
        });
        tokio::time::timeout(STUCK, reaped).await.expect("reaped, not a zombie");
    }

    #[tokio::test]
    async fn no_descriptor_of_the_agent_is_passed_on() {
        let script = Script::new("ls -l /proc/$$/fd > $DIR/fds");
        let _open = fs::File::create(script.dir.path().join("secret")).unwrap();
        assert_eq!(script.run(call(AMPLE_MS)).await, yes());
        let fds = script.file("fds");
        assert!(fds.contains("handler") && !fds.contains("secret"), "{fds}");
    }

    #[tokio::test]
    async fn another_user() {
        let script = Script::new("id -u; id -g; id -G").program;
        let user = User { name: "somebody".to_owned(), uid: 54_321, gid: 54_322 };
        let args = vec!["-c".to_owned(), "echo $(id -u) $(id -g) $(id -G) >&2; exit 1".to_owned()];
        let program = Program { args, user: Some(user), ..script };
        let end = run(&program, call(AMPLE_MS), |_| {}, pending()).await;
        if rustix::process::geteuid().is_root() {
            assert_eq!(end, no("54321 54322 54322"), "its own group and no other");
        } else {
            eprintln!("not root: only the refusal was tested");
            let reason = end.reason.unwrap();
            assert!(reason.contains("may the agent switch users?"), "{reason}");
        }
    }
}
