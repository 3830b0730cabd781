//! The members' software, and the handler that moves it. The software is a process that does nothing but write down
//! that it runs, in which state and until when. So what really ran is known from files that neither Lockstep nor this
//! program's driver wrote.
//!
//! Of each member there are, in the directory that `CHAOS` names: `calls/MEMBER`, a line for each begin and end of a
//! handler; `runs/MEMBER.PID`, one for each process of its software; `MEMBER.lock`, which keeps handlers and
//! software that is just starting apart; `MEMBER.processes`, what was started; `MEMBER.settings`, what it has taken.

use crate::clock::Stamp;
use crate::history::host_of;
use crate::host;
use crate::network::Layout;
use crate::random::Random;
use rustix::fs::FlockOperation;
use rustix::process::{Pid, Signal};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};
use std::time::Duration;

/// The phase in which a handler makes sure that another host has stopped.
pub(crate) const FENCE: &str = "fence";
/// The state in which no software runs. Every lifecycle here begins with it.
pub(crate) const LOWEST: &str = "offline";
/// How often software writes down that it still runs. Its end is known as exactly.
pub(crate) const BEAT_MS: u64 = 20;
/// While this file is there, handlers do what they should, and at once.
const CALM: &str = "calm";
/// What a handler is told to do wrong, to see whether it is found.
const DEFECT: &str = "defect";
/// How long software may take to start or to end.
const SOFTWARE_MS: u64 = 3000;
const AGAIN: u8 = 75;

/// What a handler wrote down: that it began, or how it ended.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct Line {
    pub(crate) at: Stamp,
    /// None: it begins.
    pub(crate) code: Option<u8>,
    pub(crate) pid: u32,
    pub(crate) member: String,
    pub(crate) phase: String,
    pub(crate) role: String,
    pub(crate) transition: Option<String>,
    pub(crate) step: Option<u32>,
    pub(crate) token: Option<u64>,
    pub(crate) from: Option<String>,
    pub(crate) to: Option<String>,
    pub(crate) decision: Option<String>,
    pub(crate) hold_ms: Option<u64>,
    #[serde(default)]
    pub(crate) gap: bool,
}

/// A process of a member's software, as it wrote itself down.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Run {
    pub(crate) member: String,
    pub(crate) state: String,
    pub(crate) begin: Stamp,
    /// When it last wrote that it runs.
    pub(crate) last: Stamp,
}

/// What handlers may be told to do wrong. Each is a defect that a check has to find.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Defect {
    /// A step is confirmed that was not taken.
    ClaimsDone,
    /// Software that should leave the highest state runs on, beside what is started next.
    RunsOn,
    /// A holder never lets go, and says that it did.
    HoldsOn,
    /// The server's disk answers syncs without doing them, and then the power is cut.
    LostSyncs,
    /// The follower of events reads aborted where it says committed.
    MisreadOutcome,
    /// A reader who wants to be shown all that was shown before does not say so.
    StaleRead,
    /// A server that cannot reach etcd is taken to acknowledge what it refuses.
    MinorityAcks,
    /// Somebody writes to the journal in etcd without asking for the fence, under a reign that is over.
    UnfencedWrite,
    /// etcd loses what was acknowledged last.
    LostWrites,
    /// A handler names another process than the software, for the guard to end.
    Unguarded,
    /// Software that a host brings back runs on, and its handler says that it was stopped.
    KeepsOnReturn,
}

impl Defect {
    fn name(self) -> &'static str {
        match self {
            Self::ClaimsDone => "claims-done",
            Self::RunsOn => "runs-on",
            Self::HoldsOn => "holds-on",
            Self::LostSyncs => "lost-syncs",
            Self::MisreadOutcome => "misread-outcome",
            Self::StaleRead => "stale-read",
            Self::MinorityAcks => "minority-acks",
            Self::UnfencedWrite => "unfenced-write",
            Self::LostWrites => "lost-writes",
            Self::Unguarded => "unguarded",
            Self::KeepsOnReturn => "keeps-on-return",
        }
    }

    /// The check that has to find it.
    pub(crate) fn found_by(self) -> &'static str {
        match self {
            Self::ClaimsDone => "13 done-means-done",
            Self::RunsOn => "12 max-is-kept",
            Self::HoldsOn => "14 holds-end",
            Self::LostSyncs => "8 acknowledged-survives",
            Self::MisreadOutcome => "1 one-outcome",
            Self::StaleRead => "reads-are-linear",
            Self::MinorityAcks => "9 minority-never-acknowledges",
            Self::UnfencedWrite => "11 deposed-write-nothing",
            Self::LostWrites => "8 acknowledged-survives",
            Self::Unguarded => "10 leases-end",
            Self::KeepsOnReturn => "18 returns-are-judged",
        }
    }

    /// Whether it can be done with these servers.
    pub(crate) fn is_for(self, layout: Layout) -> bool {
        match self {
            Self::ClaimsDone
            | Self::RunsOn
            | Self::HoldsOn
            | Self::MisreadOutcome
            | Self::Unguarded
            | Self::KeepsOnReturn => true,
            Self::LostSyncs => layout == Layout::One,
            Self::StaleRead | Self::MinorityAcks | Self::UnfencedWrite | Self::LostWrites => {
                layout == Layout::Three
            }
        }
    }
}

/// Makes what members need; handlers misbehave as they please from now on.
pub(crate) fn prepare(dir: &Path, defect: Option<Defect>) -> io::Result<()> {
    fs::create_dir_all(dir.join("calls"))?;
    fs::create_dir_all(dir.join("runs"))?;
    fs::write(dir.join(DEFECT), defect.map_or("", Defect::name))
}

/// From now on handlers do what they should, or no longer.
pub(crate) fn set_calm(dir: &Path, is_calm: bool) -> io::Result<()> {
    match is_calm {
        true => fs::write(dir.join(CALM), ""),
        false => fs::remove_file(dir.join(CALM)),
    }
}

/// One call of a handler.
pub(crate) fn handle(phase: &str) -> ExitCode {
    let var = |name: &str| std::env::var(format!("LOCKSTEP_{name}")).ok();
    let number = |name: &str| var(name).and_then(|text| text.parse().ok());
    let member = var("MEMBER").unwrap_or_default();
    let line = Line {
        at: Stamp::now(),
        code: None,
        pid: std::process::id(),
        // That it is called for a member of the other host is no call to that member.
        member: if phase == FENCE { format!("{FENCE}@{}", host_of(&member)) } else { member },
        phase: phase.to_owned(),
        role: var("ROLE").unwrap_or_default(),
        transition: var("TRANSITION"),
        step: var("STEP").and_then(|step| step.parse().ok()),
        token: number("TOKEN"),
        from: var("FROM"),
        to: var("TO"),
        decision: var("DECISION"),
        hold_ms: number("HOLD_MS"),
        gap: var("GAP").is_some(),
    };
    let handler = Handler {
        dir: std::env::var("CHAOS").map(PathBuf::from).unwrap_or_default(),
        random: Random::new(Stamp::now().0 ^ (u64::from(line.pid) << 40)),
        line,
    };
    match handler.run() {
        Ok(code) => ExitCode::from(code),
        Err(error) => {
            eprintln!("{error}");
            ExitCode::FAILURE
        }
    }
}

struct Handler {
    dir: PathBuf,
    line: Line,
    random: Random,
}

impl Handler {
    fn run(mut self) -> io::Result<u8> {
        // What comes on standard input is whole, or the agent has died since.
        let mut context = String::new();
        io::stdin().read_to_string(&mut context)?;
        serde_json::from_str::<serde_json::Value>(&context)?;
        if self.line.phase == "status" {
            let _locked = self.lock()?;
            self.tell()?;
            return Ok(0);
        }
        self.note(None)?;
        let code = self.act()?;
        self.note(Some(code))?;
        Ok(code)
    }

    fn act(&mut self) -> io::Result<u8> {
        let is_calm = self.dir.join(CALM).exists();
        let defect = fs::read_to_string(self.dir.join(DEFECT)).unwrap_or_default();
        let phase = self.line.phase.clone();
        let moves = matches!(phase.as_str(), "commit" | "undo" | "stop");
        if !is_calm {
            self.linger();
            let asked = matches!(phase.as_str(), "check" | "prepare" | "hold");
            if moves && self.is_doomed() || asked && self.random.percent(1) {
                return Ok(1);
            }
            if (moves || asked) && self.random.percent(2) {
                return Ok(AGAIN);
            }
            if moves && self.random.percent(1) {
                // Longer than any time-out: the agent has to end it.
                std::thread::sleep(Duration::from_secs(60));
            }
        }
        if phase == FENCE {
            if !is_calm && self.random.percent(25) {
                eprintln!("the switch does not answer");
                return Ok(1);
            }
            host::end(host_of(&self.line.member))?;
        }
        if moves {
            let lies = defect == Defect::ClaimsDone.name() && self.line.from != self.line.to;
            let keeps = defect == Defect::KeepsOnReturn.name() && phase == "stop";
            if !keeps && (!lies || !self.random.percent(30)) {
                self.go(&defect)?;
            }
        }
        if phase == "release" && defect == Defect::HoldsOn.name() {
            // It says so, and is never seen to.
            std::process::exit(0);
        }
        if !is_calm {
            self.linger();
        }
        if moves && defect.is_empty() {
            let _locked = self.lock()?;
            self.tell()?;
        }
        Ok(0)
    }

    /// Where the software is, and which processes it is.
    fn tell(&self) -> io::Result<()> {
        let living = self.processes()?;
        let state = living.last().map_or(LOWEST, |(_, state)| state);
        let mut pids: Vec<i32> = living.iter().map(|(pid, _)| pid.as_raw_nonzero().get()).collect();
        if is_unguarded(&self.dir) {
            pids = pids.into_iter().flat_map(children).collect();
        }
        println!("{}", serde_json::json!({ "state": state, "pids": pids }));
        Ok(())
    }

    /// Some steps fail however often they are tried, and so do some of those that would take them back.
    fn is_doomed(&self) -> bool {
        let seed = format!("{:?} {} {}", self.line.transition, self.line.member, self.line.phase);
        let seed = seed.bytes().fold(0_u64, |sum, byte| sum.wrapping_mul(31).wrapping_add(u64::from(byte)));
        Random::new(seed).percent(9)
    }

    /// Mostly short, sometimes long: long enough to be killed in.
    fn linger(&mut self) {
        let most = match self.random.within(0, 99) {
            0..70 => 20,
            70..95 => 200,
            _ => 1500,
        };
        std::thread::sleep(Duration::from_millis(self.random.within(0, most)));
    }

    /// Brings the software to where it should be.
    fn go(&mut self, defect: &str) -> io::Result<()> {
        let locked = self.lock()?;
        let (from, to) = (self.state()?, self.line.to.clone().unwrap_or_default());
        let settings: BTreeMap<String, String> =
            std::env::vars().filter(|(name, _)| name.starts_with("LOCKSTEP_SET_")).collect();
        let text = serde_json::to_vec(&settings)?;
        let path = self.dir.join(format!("{}.settings", self.line.member));
        let aside = path.with_extension("new");
        fs::write(&aside, text)?;
        fs::rename(&aside, &path)?;
        if from == to {
            return Ok(());
        }
        if defect == Defect::RunsOn.name() && from == "primary" {
            // And nobody knows of it any more.
            fs::write(self.dir.join(format!("{}.processes", self.line.member)), "")?;
        }
        for (pid, _) in self.processes()? {
            end(pid)?;
        }
        if to == LOWEST {
            return Ok(());
        }
        let exe = std::env::current_exe()?;
        let child = Command::new(exe)
            .args(["software", &self.line.member, &to])
            .env_clear()
            // As software does that a handler starts: the guard finds by these what is not named yet.
            .envs(
                std::env::vars_os()
                    .filter(|(key, _)| ["LOCKSTEP_CALL", "LOCKSTEP_MEMBER"].iter().any(|kept| key == kept)),
            )
            .env("CHAOS", &self.dir)
            // The lock stays taken until the software has written itself down, also when this handler is killed
            // before that: whoever comes next then finds it, and ends it.
            .stdin(Stdio::from(locked.try_clone()?))
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()?;
        let run = run_path(&self.dir, &self.line.member, child.id());
        for _ in 0..SOFTWARE_MS / 2 {
            if run.exists() {
                return Ok(());
            }
            std::thread::sleep(Duration::from_millis(2));
        }
        Err(io::Error::other("the software does not start"))
    }

    fn lock(&self) -> io::Result<File> {
        let path = self.dir.join(format!("{}.lock", self.line.member));
        let file = OpenOptions::new().create(true).truncate(false).write(true).open(path)?;
        rustix::fs::flock(&file, FlockOperation::LockExclusive)?;
        Ok(file)
    }

    /// What runs of the member's software, each with its state; the newest one last.
    fn processes(&self) -> io::Result<Vec<(Pid, String)>> {
        let path = self.dir.join(format!("{}.processes", self.line.member));
        let text = fs::read_to_string(&path).unwrap_or_default();
        let processes = text.lines().filter_map(|line| line.split_once(' '));
        let processes = processes
            .filter_map(|(pid, state)| Some((Pid::from_raw(pid.parse().ok()?)?, state.to_owned())))
            .filter(|(pid, _)| is_software(*pid, &self.line.member));
        let living: Vec<_> = processes.collect();
        let text: String =
            living.iter().map(|(pid, state)| format!("{} {state}\n", pid.as_raw_nonzero())).collect();
        fs::write(path, text)?;
        Ok(living)
    }

    fn state(&self) -> io::Result<String> {
        Ok(self.processes()?.pop().map_or_else(|| LOWEST.to_owned(), |(_, state)| state))
    }

    fn note(&mut self, code: Option<u8>) -> io::Result<()> {
        let line = Line { at: Stamp::now(), code, ..self.line.clone() };
        let path = self.dir.join("calls").join(&self.line.member);
        let mut file = OpenOptions::new().create(true).append(true).open(path)?;
        file.write_all(format!("{}\n", serde_json::to_string(&line)?).as_bytes())
    }
}

/// Whether a process is the software of a member, and lives.
fn is_software(pid: Pid, member: &str) -> bool {
    let read =
        |what: &str| fs::read_to_string(format!("/proc/{}/{what}", pid.as_raw_nonzero())).unwrap_or_default();
    let is_dead = read("stat").rsplit_once(") ").is_none_or(|(_, rest)| rest.starts_with(['Z', 'X']));
    !is_dead && read("cmdline").split('\0').skip(1).take(2).eq(["software", member])
}

/// Ends a process of software, and waits until it has.
fn end(pid: Pid) -> io::Result<()> {
    // It may have ended by itself.
    let _ = rustix::process::kill_process(pid, Signal::KILL);
    for _ in 0..SOFTWARE_MS / 2 {
        let stat = fs::read_to_string(format!("/proc/{}/stat", pid.as_raw_nonzero())).unwrap_or_default();
        if stat.rsplit_once(") ").is_none_or(|(_, rest)| rest.starts_with(['Z', 'X'])) {
            return Ok(());
        }
        std::thread::sleep(Duration::from_millis(2));
    }
    Err(io::Error::other("the software does not end"))
}

fn run_path(dir: &Path, member: &str, pid: u32) -> PathBuf {
    dir.join("runs").join(format!("{member}.{pid}"))
}

/// Whether software is to be named by what it has started: the guard ends that, and spares the software.
fn is_unguarded(dir: &Path) -> bool {
    fs::read_to_string(dir.join(DEFECT)).is_ok_and(|defect| defect == Defect::Unguarded.name())
}

/// What a process of one thread has started.
fn children(pid: i32) -> Vec<i32> {
    let list = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap_or_default();
    list.split_ascii_whitespace().filter_map(|child| child.parse().ok()).collect()
}

/// Starts a member's software by nobody's order, as machines do that boot.
pub(crate) fn boot(dir: &Path, member: &str, state: &str) -> io::Result<()> {
    let exe = std::env::current_exe()?;
    let mut software = Command::new(exe);
    software.args(["software", member, state]).env_clear().env("CHAOS", dir);
    software.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn().map(drop)
}

/// The software: it runs until it is ended.
pub(crate) fn software(member: &str, state: &str) -> io::Result<()> {
    // It has to outlive the handler's process group.
    rustix::process::setsid()?;
    let dir = PathBuf::from(std::env::var("CHAOS").map_err(io::Error::other)?);
    if is_unguarded(&dir) {
        Command::new("sleep").arg("3600").stdin(Stdio::null()).spawn()?;
    }
    let pid = std::process::id();
    let processes = dir.join(format!("{member}.processes"));
    let begin = Stamp::now();
    let aside = dir.join(format!("{member}.{pid}.new"));
    let file = File::create(&aside)?;
    let beat = || file.write_all_at(format!("{state} {} {}\n", begin.0, Stamp::now().0).as_bytes(), 0);
    beat()?;
    let mut list = OpenOptions::new().create(true).append(true).open(processes)?;
    list.write_all(format!("{pid} {state}\n").as_bytes())?;
    fs::rename(&aside, run_path(&dir, member, pid))?;
    // Lets the lock go.
    rustix::stdio::dup2_stdin(&File::open("/dev/null")?)?;
    loop {
        beat()?;
        std::thread::sleep(Duration::from_millis(BEAT_MS));
    }
}

/// All that handlers and software have written down.
pub(crate) fn read(dir: &Path) -> io::Result<(Vec<Line>, Vec<Run>)> {
    let (mut lines, mut runs) = (Vec::new(), Vec::new());
    for entry in fs::read_dir(dir.join("calls"))? {
        let text = fs::read_to_string(entry?.path())?;
        // The last one may be half written.
        lines.extend(text.lines().filter_map(|line| serde_json::from_str::<Line>(line).ok()));
    }
    lines.sort_by_key(|line| line.at);
    for entry in fs::read_dir(dir.join("runs"))? {
        let entry = entry?;
        let name = entry.file_name().to_string_lossy().into_owned();
        let text = fs::read_to_string(entry.path())?;
        let mut words = text.split_ascii_whitespace();
        let stamp = |word: Option<&str>| word.and_then(|word| word.parse().ok()).map(Stamp);
        let state = words.next().unwrap_or_default().to_owned();
        if let (Some((member, _)), Some(begin), Some(last)) =
            (name.rsplit_once('.'), stamp(words.next()), stamp(words.next()))
        {
            runs.push(Run { member: member.to_owned(), state, begin, last });
        }
    }
    runs.sort_by_key(|run| run.begin);
    Ok((lines, runs))
}
