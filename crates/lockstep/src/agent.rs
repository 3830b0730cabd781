//! The agent: performs what core's [`AgentEngine`] decides. It dials out, keeps the journal, runs handlers, and
//! chooses nothing.

mod call;
pub mod guard;
pub(crate) mod leftover;
mod link;

use crate::cli::option::AgentOptions;
use crate::config::{AgentConfig, ConfigError, Handler};
use crate::guard::WatchdogConfig;
use crate::handler;
use crate::store::{self, Journal};
use guard::{Guard, NotGuarded, Taken};
use leftover::Leftovers;
use link::Servers;
use lockstep_core::agent::{
    AgentEngine, AgentInput, AgentOutput, AgentRecord, AgentState, CallId, Identity, Remembered,
};
use lockstep_core::id::{AgentId, HandlerName, Index, MemberId, RunId, hex};
use lockstep_core::log::Disk;
use lockstep_core::message::{Call, Findings, Order, Phase, Report};
use lockstep_core::time::Time;
use lockstep_core::vote::Answer;
use serde::Deserialize;
use std::collections::{BTreeMap, BTreeSet};
use std::future::pending;
use std::io::{self, Write};
use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{mpsc, oneshot};
use tokio::time::sleep;
use tracing::{debug, error, warn};

/// The most inputs that wait for the agent. A host has few members, each with one call at a time.
const INPUTS_MAX: usize = 1024;
/// A journal is begun anew after so many records: some megabytes, read in milliseconds at the next start.
const JOURNAL_RECORDS_MAX: usize = 20_000;

/// The pause before a write that found no room is tried again.
const NO_ROOM_PAUSE: Duration = Duration::from_secs(1);
/// How often. Then the agent ends and says why: one that hangs looks healthy, and whoever starts it again sees that it
/// does not.
const NO_ROOM_TRIES_MAX: u32 = 5;
/// How often it is said that a server refuses this agent for the same reason, in milliseconds.
const REFUSED_AGAIN_MS: u64 = 60_000;

/// Why an agent could not start, or had to stop.
#[derive(Debug, thiserror::Error)]
pub enum AgentError {
    /// agent.toml.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The journal.
    #[error(transparent)]
    Store(#[from] store::Error),
    /// A record in the journal that this version cannot read.
    #[error("record {index} of the agent's journal cannot be read; was it written by a newer version?")]
    Record {
        /// Which.
        index: Index,
        /// What is wrong with it.
        source: serde_json::Error,
    },
    /// Plain to another machine.
    #[error(
        "{server} is on another machine, and the session would be plain; add --insecure if that is meant"
    )]
    Plain {
        /// The server.
        server: String,
    },
}

/// What the agent's one task hears.
#[expect(clippy::large_enum_variant, reason = "what the engine hears is most of what comes, one at a time")]
enum Heard {
    Engine(AgentInput),
    /// A connection stands; what is sent through it.
    Connected(mpsc::Sender<Report>),
    /// The journal failed.
    Failed(store::Error),
}

/// Runs an agent until its journal fails or the process ends.
///
/// # Errors
/// If it cannot start, or cannot write its journal any more: an agent that cannot keep a promise makes none.
pub async fn run(options: AgentOptions) -> Result<(), AgentError> {
    let config = match &options.config {
        Some(path) => AgentConfig::load(path)?,
        None => AgentConfig::default(),
    };
    for server in &options.server {
        if !options.insecure && !is_loopback(server) {
            return Err(AgentError::Plain { server: server.clone() });
        }
    }
    let journal = Journal::open(&options.data).await?;
    let (state, records) = replay(&journal).await?;
    let leftovers = Leftovers::open(&options.data)?;
    leftovers.end().await;
    let mut labels = config.labels.clone();
    labels.extend(options.labels.iter().cloned());
    let identity = Identity {
        host: options.name.clone(),
        agent: state.agent.clone().unwrap_or_else(|| AgentId::new(&random()).expect("hexadecimal is a name")),
        run: RunId::new(&random()).expect("hexadecimal is a name"),
        address: options.address.clone(),
        labels,
    };
    let rules = config.handlers.iter().map(|(name, handler)| (name.clone(), handler.rules.clone())).collect();
    let is_leased = state.members.values().any(|assignment| !assignment.leased.is_empty());
    let guard = is_leased.then(|| Guard::start(&options.data, config.watchdog.clone()));
    let remembered = match &guard {
        Some(guard) => remembered(guard).await,
        None => None,
    };
    let engine = AgentEngine::new(identity, rules, state, now(), remembered);
    let (inputs, heard) = mpsc::channel(INPUTS_MAX);
    let servers = Servers { urls: options.server.clone(), is_local: !options.insecure };
    tokio::spawn(link::keep(servers, inputs.clone()));
    let handlers = Arc::new(config.handlers);
    Driver {
        engine,
        journal,
        records,
        handlers,
        leftovers,
        name: options.name.to_string(),
        inputs,
        link: None,
        kills: BTreeMap::new(),
        data: options.data,
        watchdog: config.watchdog,
        guard,
        refused: None,
    }
    .drive(heard)
    .await
}

/// Whether an `http://HOST:PORT` is on this machine.
fn is_loopback(server: &str) -> bool {
    let place = server.trim_start_matches("http://");
    let host = place.rsplit_once(':').map_or(place, |(host, _)| host).trim_matches(['[', ']']);
    host == "localhost" || host.parse::<IpAddr>().is_ok_and(|address| address.is_loopback())
}

/// 128 random bits in hexadecimal.
pub(crate) fn random() -> String {
    let mut bytes = [0_u8; 16];
    let filled = rustix::rand::getrandom(&mut bytes, rustix::rand::GetRandomFlags::empty());
    assert_eq!(filled, Ok(bytes.len()), "the kernel's random source answers small requests whole");
    hex(&bytes)
}

/// Milliseconds since the host's boot, sleep included: the clock that goes on while the agent does not.
pub(crate) fn now() -> Time {
    let clock = rustix::time::clock_gettime(rustix::time::ClockId::Boottime);
    let ms = clock.tv_sec * 1000 + clock.tv_nsec / 1_000_000;
    Time(u64::try_from(ms).expect("the time since boot is not negative"))
}

/// Reads the journal; tells how many records it has.
async fn replay(journal: &Journal) -> Result<(AgentState, usize), AgentError> {
    let mut state = AgentState::default();
    let mut from = Index(1);
    if let Some(snapshot) = journal.load_snapshot().await? {
        let index = snapshot.index;
        let records: Vec<AgentRecord> =
            serde_json::from_slice(&snapshot.bytes).map_err(|source| AgentError::Record { index, source })?;
        records.iter().for_each(|record| state.apply(record));
        from = Index(index.0 + 1);
    }
    let mut count = 0;
    loop {
        let entries = journal.read(from).await?;
        let Some(last) = entries.last() else { return Ok((state, count)) };
        from = Index(last.index.0 + 1);
        count += entries.len();
        for entry in entries {
            let index = entry.index;
            let record = serde_json::from_slice(&entry.payload)
                .map_err(|source| AgentError::Record { index, source })?;
            state.apply(&record);
        }
    }
}

/// When the lease of an earlier run ends, and whom the guard that outlived it stops then.
async fn remembered(guard: &Guard) -> Option<Remembered> {
    match guard.ask().await {
        Ok(watching) if watching.over => None,
        Ok(watching) => watching.until.map(|until| Remembered { until, pids: watching.members }),
        Err(error) => {
            warn!(%error, "nobody knows when the lease ends: it counts as over");
            None
        }
    }
}

/// When the guard is gone, if there is one.
async fn lost(guard: Option<&Guard>) {
    match guard {
        Some(guard) => guard.lost().await,
        None => pending().await,
    }
}

/// The members that a guard makes sure of: those whose processes it has found, or all, where a watchdog resets the host.
fn guarded(pids: &BTreeMap<MemberId, BTreeSet<u32>>, taken: &Taken) -> BTreeSet<MemberId> {
    let is_guarded = |(member, pids): &(&MemberId, &BTreeSet<u32>)| {
        taken.early_ms > 0 || (!pids.is_empty() && !taken.unknown.contains_key(*member))
    };
    pids.iter().filter(is_guarded).map(|(member, _)| member.clone()).collect()
}

struct Driver {
    engine: AgentEngine,
    journal: Journal,
    records: usize,
    handlers: Arc<BTreeMap<HandlerName, Handler>>,
    leftovers: Leftovers,
    name: String,
    inputs: mpsc::Sender<Heard>,
    link: Option<mpsc::Sender<Report>>,
    /// How each handler that runs is ended before its time.
    kills: BTreeMap<CallId, oneshot::Sender<()>>,
    data: PathBuf,
    watchdog: Option<WatchdogConfig>,
    /// The guard, from when there is somebody to guard.
    guard: Option<Guard>,
    /// Why a server last refused the session, and when that was said.
    refused: Option<(String, Time)>,
}

impl Driver {
    async fn drive(mut self, mut heard: mpsc::Receiver<Heard>) -> Result<(), AgentError> {
        self.perform().await;
        loop {
            let tick = self.engine.next_deadline().map(|at| Duration::from_millis(at.since(now())));
            let input = tokio::select! {
                input = heard.recv() => input.expect("the driver holds a sender itself"),
                () = wait(tick) => Heard::Engine(AgentInput::Tick),
                () = lost(self.guard.as_ref()) => Heard::Engine(AgentInput::GuardLost),
            };
            self.take(input)?;
            for _ in 1..INPUTS_MAX {
                let Ok(input) = heard.try_recv() else { break };
                self.take(input)?;
            }
            self.perform().await;
        }
    }

    fn take(&mut self, heard: Heard) -> Result<(), AgentError> {
        let input = match heard {
            Heard::Engine(input) => input,
            Heard::Connected(link) => {
                self.link = Some(link);
                AgentInput::Connected
            }
            Heard::Failed(error) => return Err(error.into()),
        };
        match &input {
            AgentInput::Disconnected => self.link = None,
            AgentInput::Ended { call, .. } => _ = self.kills.remove(call),
            AgentInput::Appended | AgentInput::Connected | AgentInput::Order(_) => {}
            AgentInput::Guarded { .. } | AgentInput::GuardLost | AgentInput::Tick => {}
        }
        self.engine.handle(now(), input);
        Ok(())
    }

    async fn perform(&mut self) {
        while let Some(output) = self.engine.poll_output() {
            match output {
                AgentOutput::Append(records) => self.append(&records).await,
                AgentOutput::Send(report) => self.send(report),
                AgentOutput::Run { call, handler, order, timeout_ms } => {
                    self.run(call, &handler, *order, timeout_ms);
                }
                AgentOutput::Kill(call) => {
                    // It may have ended by itself meanwhile.
                    let kill = self.kills.remove(&call);
                    kill.into_iter().for_each(|kill| _ = kill.send(()));
                }
                AgentOutput::Guard { at, until, pids } => self.guard(at, until, pids),
                AgentOutput::Joined => {
                    self.refused = None;
                    // Whoever started it may read no more of it; the session stands all the same.
                    let _ = writeln!(io::stdout(), "joined as {}", self.name);
                }
                AgentOutput::Disconnect(reason) => {
                    self.link = None;
                    // It is tried again every few seconds.
                    let is_due =
                        |(told, at): &(String, Time)| *told != reason || now() >= at.plus(REFUSED_AGAIN_MS);
                    if self.refused.as_ref().is_none_or(is_due) {
                        warn!(%reason, "the server refused the session; trying on");
                        self.refused = Some((reason, now()));
                    }
                }
                AgentOutput::Warning(message) => warn!("{message}"),
            }
        }
    }

    fn guard(&mut self, at: Time, until: Time, pids: BTreeMap<MemberId, BTreeSet<u32>>) {
        if pids.is_empty() {
            if let Some(guard) = self.guard.take() {
                let goodbye = guard.goodbye();
                tokio::spawn(async move {
                    if let Err(error) = goodbye.await {
                        warn!(%error, "the guard, which nobody needs any more, was not told so");
                    }
                });
            }
            return;
        }
        let guard = self.guard.get_or_insert_with(|| Guard::start(&self.data, self.watchdog.clone()));
        let (taken, inputs) = (guard.watch(at, until, pids.clone(), true), self.inputs.clone());
        tokio::spawn(async move {
            let taken = taken.await;
            if let Err(error) = &taken {
                warn!(%error, "nothing is guarded");
            }
            let input = match taken {
                Ok(taken) => {
                    AgentInput::Guarded { members: guarded(&pids, &taken), early_ms: taken.early_ms }
                }
                // It would refuse the same once more.
                Err(NotGuarded::Refused(_)) => AgentInput::Guarded { members: BTreeSet::new(), early_ms: 0 },
                Err(NotGuarded::Silent | NotGuarded::Absent(_)) => AgentInput::GuardLost,
            };
            let _ = inputs.send(Heard::Engine(input)).await;
        });
    }

    async fn append(&mut self, records: &[AgentRecord]) {
        self.records += records.len();
        let state = (self.records > JOURNAL_RECORDS_MAX).then(|| {
            self.records = 0;
            serde_json::to_vec(&self.engine.state().records()).expect("records are plain data")
        });
        let batch = records
            .iter()
            .map(|record| serde_json::to_vec(record).expect("records are plain data"))
            .collect();
        let (journal, inputs) = (self.journal.clone(), self.inputs.clone());
        tokio::spawn(async move {
            let heard = match write(&journal, batch, state).await {
                Ok(()) => Heard::Engine(AgentInput::Appended),
                Err(error) => Heard::Failed(error),
            };
            // The driver is gone only when the process ends.
            let _ = inputs.send(heard).await;
        });
    }

    fn send(&mut self, report: Report) {
        // A full or closed connection loses the report; the session that follows asks again.
        if self.link.as_ref().is_some_and(|link| link.try_send(report).is_err()) {
            self.link = None;
        }
    }

    fn run(&mut self, id: CallId, handler: &HandlerName, order: Call, timeout_ms: u64) {
        let (handlers, handler) = (self.handlers.clone(), handler.clone());
        let (inputs, leftovers) = (self.inputs.clone(), self.leftovers.clone());
        let (kill, killed) = oneshot::channel();
        self.kills.insert(id, kill);
        tokio::spawn(async move {
            let program = &handlers[&handler].program;
            let end = match leftovers.note() {
                Err(error) if !runs_unnoted(order.phase) => handler::CallEnd {
                    answer: Answer::No,
                    reason: Some(format!("the agent cannot note that its handler runs: {error}")),
                    findings: Findings::default(),
                },
                noted => {
                    let name = noted.as_ref().map_or_else(|_| random(), |note| note.name.clone());
                    let mut call = call::of(&order, timeout_ms);
                    call.vars.insert(leftover::CALL.to_owned(), name);
                    let started = |pid| noted.iter().for_each(|note| note.started(pid));
                    let killed = async {
                        // Dropped without a word it is no order.
                        if killed.await.is_err() {
                            pending::<()>().await;
                        }
                    };
                    handler::run(program, call, started, killed).await
                }
            };
            debug!(member = %order.member, phase = %order.phase, answer = ?end.answer, reason = end.reason, "handler ended");
            let (answer, reason, findings) = (end.answer, end.reason, end.findings);
            let ended = AgentInput::Ended { call: id, answer, reason, findings };
            let _ = inputs.send(Heard::Engine(ended)).await;
        });
    }
}

/// Whether a handler is run that the next run of the agent would not find and end: it does no harm late or twice, and
/// clients wait for it, or people.
fn runs_unnoted(phase: Phase) -> bool {
    match phase {
        Phase::Release | Phase::Check | Phase::Status => true,
        Phase::Prepare | Phase::Hold | Phase::Commit | Phase::Undo | Phase::Cancel => false,
        Phase::Notice | Phase::Fence | Phase::Stop => false,
    }
}

/// Makes records durable; with `state`, which says the same as all of them, the journal is begun anew.
async fn write<D: Disk + 'static>(
    journal: &Journal<D>,
    batch: Vec<Vec<u8>>,
    state: Option<Vec<u8>>,
) -> Result<(), store::Error> {
    let mut tries = 0;
    let index = loop {
        match journal.append(batch.clone()).await {
            Ok(index) => break index,
            Err(fault @ store::Error::NoRoom(_)) if tries < NO_ROOM_TRIES_MAX => {
                error!(%fault, "no room for the agent's journal: nothing is promised until there is");
                tries += 1;
                sleep(NO_ROOM_PAUSE).await;
            }
            Err(fault) => return Err(fault),
        }
    };
    let Some(state) = state else { return Ok(()) };
    let begun = async {
        journal.save_snapshot(index, state).await?;
        journal.compact(index).await
    };
    match begun.await {
        Ok(_) => Ok(()),
        // The old one holds all of it, and is begun anew after as many records again.
        Err(fault @ store::Error::NoRoom(_)) => {
            warn!(%fault, "no room to begin the agent's journal anew: it grows on");
            Ok(())
        }
        Err(fault) => Err(fault),
    }
}

async fn wait(tick: Option<Duration>) {
    match tick {
        Some(pause) => sleep(pause).await,
        None => pending().await,
    }
}

/// Reads an order; none: it is of a kind that only a later server has, and asks nothing of this agent.
///
/// Errors: it cannot be read. The server is the one that this agent dialled; what it says that cannot be read closes
/// the session.
fn read_order(text: &str) -> Result<Option<Order>, serde_json::Error> {
    #[derive(Deserialize)]
    struct Kind {
        order: String,
    }
    let read = serde_json::from_str(text).map(Some);
    read.or_else(|error| match serde_json::from_str::<Kind>(text) {
        Ok(Kind { order }) if !Order::KINDS.contains(&order.as_str()) => Ok(None),
        Ok(_) | Err(_) => Err(error),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use lockstep_core::log::{DiskError, Log, MemDisk, Op};
    use tokio::time::Instant;

    #[test]
    fn loopback_is_told_from_other_machines() {
        for here in ["http://127.0.0.1:7420", "http://localhost:1", "http://[::1]:7420"] {
            assert!(is_loopback(here), "{here}");
        }
        for there in
            ["http://10.0.0.1:7420", "http://db.example:1", "http://127.0.0.1.example:1", "http://[::2]:1"]
        {
            assert!(!is_loopback(there), "{there}");
        }
    }

    #[test]
    fn only_kinds_that_nobody_knows_are_left_aside() {
        assert!(matches!(read_order(r#"{"order":"a-new-order","message":1}"#), Ok(None)));
        assert!(matches!(read_order(r#"{"order":"refused","message":"no","new":1}"#), Ok(Some(_))));
        for bad in [r#"{"order":"refused","message":1}"#, r#"{"order":7}"#, "{}", "hello", "[]"] {
            read_order(bad).unwrap_err();
        }
    }

    /// A journal on a disk.
    async fn journal(disk: MemDisk) -> Journal<MemDisk> {
        Journal::start(move || Ok(Log::open(disk)?)).await.unwrap()
    }

    /// Room for an empty journal and little more.
    fn small() -> MemDisk {
        let mut disk = MemDisk::new();
        disk.set_capacity(Some(1_500_000));
        disk
    }

    const LARGE: usize = 2_000_000;

    #[tokio::test(start_paused = true)]
    async fn an_agent_whose_disk_stays_full_ends_after_a_while() {
        let (journal, begun) = (journal(small()).await, Instant::now());
        let failed = write(&journal, vec![vec![b'x'; LARGE]], None).await.unwrap_err();
        assert!(matches!(failed, store::Error::NoRoom(_)), "{failed}");
        assert_eq!(begun.elapsed().as_secs(), (NO_ROOM_PAUSE * NO_ROOM_TRIES_MAX).as_secs());
    }

    #[tokio::test(start_paused = true)]
    async fn an_agent_whose_disk_has_room_again_in_time_goes_on() {
        let mut disk = MemDisk::new();
        // The first is that of the empty journal.
        disk.fail(Op::SetLen, 1, DiskError::Full);
        let (journal, begun) = (journal(disk).await, Instant::now());
        write(&journal, vec![vec![b'x'; LARGE]], None).await.unwrap();
        assert_eq!(begun.elapsed().as_secs(), NO_ROOM_PAUSE.as_secs());
        assert_eq!(journal.head().await.unwrap(), Index(1));
    }

    #[tokio::test]
    async fn a_journal_that_finds_no_room_to_be_begun_anew_grows_on() {
        let journal = journal(small()).await;
        for head in 1..=3 {
            write(&journal, vec![b"x".to_vec()], Some(vec![b'x'; LARGE])).await.unwrap();
            assert_eq!(journal.head().await.unwrap(), Index(head));
        }
        assert_eq!(journal.load_snapshot().await.unwrap(), None);
        write(&journal, vec![b"x".to_vec()], Some(b"state".to_vec())).await.unwrap();
        assert_eq!(journal.load_snapshot().await.unwrap().unwrap().index, Index(4));
    }

    #[test]
    fn random_names_differ() {
        assert_ne!(random(), random());
        assert_eq!(random().len(), 32);
    }
}
