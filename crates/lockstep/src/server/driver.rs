//! The one task that owns the engine: a loop over one channel each for operators and agents, one write in flight,
//! and one alarm clock. It performs outputs and chooses nothing.

use super::follow::until_reached;
use super::handle::{Command, Reported, Role, View};
use super::role::not_active;
use super::saver::Saver;
use super::session::{Said, Sessions};
use super::{Clock, ServerError};
use crate::store::{Error, Fenced, Store};
use lockstep_core::append::{Settled, settle};
use lockstep_core::engine::{Accepted, Engine, Event, Input, Output, ReplyId};
use lockstep_core::id::{HostName, Index, Reign, TransitionId};
use lockstep_core::record::{Body, Record};
use lockstep_core::request::{Code, Rejection};
use lockstep_core::{plan, time::Time};
use std::collections::{BTreeSet, HashMap};
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::sleep;
use tracing::{error, info, warn};

pub(super) use super::handle::COMMANDS_MAX;

/// A snapshot is published at most this often while only steps and reports come in, in milliseconds.
const PUBLISH_MS: u64 = 50;
/// The most reports that are heard in one go: somebody waits for what the first ones lead to, and an agent that
/// never stops must not keep everybody else waiting.
const HEARD_MAX: usize = 1024;
/// The most bytes of records in one call of the store, unless one record alone has more. Far below what a store
/// takes, since records are as large as agents and operators make them.
const APPEND_BYTES_MAX: usize = 8 << 20;
/// The pause before a write that found no room is tried again.
const NO_ROOM_PAUSE: Duration = Duration::from_secs(1);
/// How often. Then the server stops and says why: one that hangs looks healthy, and keeps what it is asked in memory.
const NO_ROOM_TRIES_MAX: u32 = 5;
/// How often the other tasks get a turn before what was heard is written.
const TURNS_MAX: usize = 3;
/// A loop that comes so much later than its alarm clock was set, in milliseconds, was stopped: by a signal, or by a
/// host that had more to do than it could. Its alarm clock is never set to more, so that a stop is seen but for twice
/// this much. Too high: hosts with short leases are lost by it. Too low: an idle server works.
const STOPPED_MS: u64 = 500;
/// The pause before the store is asked what became of a write that it did not answer.
const UNKNOWN_PAUSE: Duration = Duration::from_millis(100);

type Append = Pin<Box<dyn Future<Output = Result<Fenced, ServerError>> + Send>>;
type Confirm = Pin<Box<dyn Future<Output = Result<Fenced, Error>> + Send>>;

/// Why a reign is over.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Ended {
    /// An operator wants the server to stop.
    Stopped,
    /// An operator wants another server to take over.
    SteppedDown,
    /// Another server has taken over, or may have.
    Deposed,
}

/// What the loop has waited for.
enum Heard {
    Appended(Result<Fenced, ServerError>),
    Confirmed(Result<Fenced, Error>),
    Said(Said),
    Command(Command),
    Tick,
    Ended,
}

/// Where an operator's answer goes.
enum Waiting {
    Run(oneshot::Sender<Result<Option<TransitionId>, Rejection>>),
    Abort(oneshot::Sender<Result<(), Rejection>>),
    Revision(oneshot::Sender<Result<Index, Rejection>>),
    Away(oneshot::Sender<Result<(usize, BTreeSet<HostName>), Rejection>>),
}

pub(super) struct Driver<S> {
    engine: Engine,
    store: S,
    reign: Reign,
    clock: Clock,
    sessions: Sessions,
    replies: HashMap<ReplyId, Waiting>,
    next_reply: u64,
    append: Option<Append>,
    confirm: Option<Confirm>,
    /// Who has asked for the end, and what comes then.
    leave: Option<(oneshot::Sender<Result<(), Rejection>>, Ended)>,
    /// Whether others may take over.
    is_shared: bool,
    /// How many bytes the batch in flight has.
    append_bytes: u64,
    saver: Saver<S>,
    /// What there is to publish once the batch in flight is durable.
    appended: News,
    publish: watch::Sender<View>,
    view: View,
    published: Time,
    /// What is there to publish: nothing, something, something that somebody waits for.
    news: News,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum News {
    None,
    Small,
    Awaited,
}

impl<S: Store> Driver<S> {
    /// One that writes where its saver does, in the same reign.
    pub(super) fn new(
        engine: Engine,
        saver: Saver<S>,
        clock: Clock,
        sessions: Sessions,
        publish: watch::Sender<View>,
        is_shared: bool,
    ) -> Self {
        Self {
            engine,
            store: saver.store.clone(),
            reign: saver.reign,
            saver,
            append_bytes: 0,
            clock,
            sessions,
            replies: HashMap::new(),
            next_reply: 0,
            append: None,
            confirm: None,
            leave: None,
            is_shared,
            appended: News::None,
            publish,
            view: View { role: Role::Active, ..View::default() },
            published: Time::default(),
            news: News::Awaited,
        }
    }

    pub(super) async fn drive(
        mut self,
        asked: &mut mpsc::Receiver<Command>,
        said: &mut mpsc::Receiver<Said>,
    ) -> Result<Ended, ServerError> {
        let store = self.store.clone();
        let mut ended = std::pin::pin!(store.ended(self.reign));
        let end = loop {
            self.perform();
            self.publish();
            if let Some((asker, how)) = self.leave.take() {
                // Not for longer than the reign: a store that does not answer must not keep it from ending.
                let left = tokio::select! {
                    left = self.leave(how) => left?,
                    () = &mut ended => Ok(()),
                };
                let has_left = left.is_ok();
                // Whoever asked may have gone.
                let _ = asker.send(left);
                if has_left {
                    break how;
                }
                continue;
            }
            let now = self.clock.now().time;
            let tick = self.engine.next_deadline().map(|at| at.since(now));
            let publish = (self.news != News::None).then(|| self.published.plus(PUBLISH_MS).since(now));
            let pause = pause_ms(tick.into_iter().chain(publish));
            let heard = tokio::select! {
                // A server that was stopped hears first that it is deposed, and then nothing any more.
                biased;
                () = &mut ended => Heard::Ended,
                heard = self.next(asked, said, pause) => heard,
            };
            let late_ms = self.clock.now().time.since(now.plus(pause));
            if late_ms > STOPPED_MS {
                warn!(late_ms, "this server was stopped, or had no processor");
                self.engine.handle(self.clock.now(), Input::Woke { after_ms: late_ms });
            }
            match heard {
                Heard::Appended(done) => {
                    self.append = None;
                    match done? {
                        Fenced::Held => {}
                        Fenced::Deposed => break Ended::Deposed,
                    }
                    self.engine.handle(self.clock.now(), Input::Appended);
                    self.saver.grown(self.append_bytes, self.engine.acknowledged());
                    self.news = self.news.max(self.appended);
                    // Before anybody is told of it: who then asks is shown it. And who waits to see it may go on
                    // before a thousand agents are told.
                    self.publish();
                    tokio::task::yield_now().await;
                }
                Heard::Confirmed(done) => {
                    self.confirm = None;
                    match done? {
                        Fenced::Held => self.engine.handle(self.clock.now(), Input::Confirmed),
                        Fenced::Deposed => break Ended::Deposed,
                    }
                }
                Heard::Said(first) => self.hear_all(first, said).await,
                Heard::Command(command) => self.command(command),
                Heard::Tick => self.engine.handle(self.clock.now(), Input::Tick),
                Heard::Ended => break Ended::Deposed,
            }
        };
        // Another server may carry out what they asked for: it is recorded, or not.
        self.replies.into_values().for_each(|waiting| waiting.refuse(not_active()));
        Ok(end)
    }

    /// Waits for what comes first, and not for longer than the pause.
    async fn next(
        &mut self,
        asked: &mut mpsc::Receiver<Command>,
        said: &mut mpsc::Receiver<Said>,
        pause_ms: u64,
    ) -> Heard {
        tokio::select! {
            done = async { self.append.as_mut().expect("guarded").await }, if self.append.is_some() => {
                Heard::Appended(done)
            }
            done = async { self.confirm.as_mut().expect("guarded").await }, if self.confirm.is_some() => {
                Heard::Confirmed(done)
            }
            Some(first) = said.recv() => Heard::Said(first),
            Some(command) = asked.recv() => Heard::Command(command),
            () = sleep(Duration::from_millis(pause_ms)) => Heard::Tick,
        }
    }

    /// Ends in order: who waits for what is being written is told that it is. Nobody else was promised anything. Or says
    /// why that cannot be.
    async fn leave(&mut self, how: Ended) -> Result<Result<(), Rejection>, ServerError> {
        info!(?how, "the reign is wanted to end");
        if let Some(append) = &mut self.append {
            let appended = append.await;
            self.append = None;
            if appended? == Fenced::Deposed {
                return Ok(Ok(()));
            }
            self.engine.handle(self.clock.now(), Input::Appended);
            self.perform();
            self.news = News::Awaited;
            self.publish();
        }
        if !self.is_shared {
            return Ok(Ok(()));
        }
        match self.store.resign(self.reign).await {
            // Whether or not somebody else has ended it before.
            Ok(Fenced::Held | Fenced::Deposed) => {
                info!(reign = %self.reign, "the reign has been given up");
                Ok(Ok(()))
            }
            // It ends by itself.
            Err(error) if how == Ended::Stopped => {
                warn!(%error, "the reign ends only when its time is over");
                Ok(Ok(()))
            }
            Err(error @ Error::Unavailable { .. }) => {
                let help = "try again when the store answers";
                Ok(Err(Rejection::new(Code::StoreUnavailable, error.to_string(), help)))
            }
            Err(error) => Err(error.into()),
        }
    }

    /// Everything that has arrived goes into one write, and so does what other connections are about to hand over:
    /// answers to one question come in a burst, and each write costs a sync.
    async fn hear_all(&mut self, first: Said, said: &mut mpsc::Receiver<Said>) {
        let mut heard = vec![self.hear(first)];
        let mut turns = 0;
        while heard.len() < HEARD_MAX && turns < TURNS_MAX {
            match said.try_recv() {
                Ok(next) => heard.push(self.hear(next)),
                Err(_) => {
                    tokio::task::yield_now().await;
                    turns += 1;
                }
            }
        }
        self.engine.handle_all(self.clock.now(), heard);
    }

    fn hear(&mut self, said: Said) -> Input {
        match said {
            Said::Report(session, report) => Input::Report { session, report: *report },
            Said::Closed(session) => {
                self.sessions.close(session);
                Input::Closed { session }
            }
        }
    }

    fn command(&mut self, command: Command) {
        let reply = ReplyId(self.next_reply);
        self.next_reply += 1;
        let input = match command {
            Command::Plan { request, reply } => {
                // From a snapshot, beside the engine: a large plan holds nobody up.
                let (cluster, scores) = (self.engine.acknowledged().clone(), self.engine.scores().clone());
                tokio::task::spawn_blocking(move || {
                    // Whoever asked may have gone.
                    let _ = reply.send(plan::plan_request(&cluster, &request, &scores));
                });
                return;
            }
            Command::Run { request, reply: waiting } => {
                self.replies.insert(reply, Waiting::Run(waiting));
                Input::Run { reply, request }
            }
            Command::Abort { transition, reply: waiting } => {
                self.replies.insert(reply, Waiting::Abort(waiting));
                Input::Abort { reply, transition }
            }
            Command::Host { host, ask, reply: waiting } => {
                self.replies.insert(reply, Waiting::Revision(waiting));
                Input::Host { reply, host, ask }
            }
            Command::Resolve { member, state, principal, reason, reply: waiting } => {
                self.replies.insert(reply, Waiting::Revision(waiting));
                Input::Resolve { reply, member, state, principal, reason }
            }
            Command::Away { lease_ms, principal, reply: waiting } => {
                self.replies.insert(reply, Waiting::Away(waiting));
                Input::Away { reply, lease_ms, principal }
            }
            Command::Freeze { groups, end, reason, principal, reply: waiting } => {
                self.replies.insert(reply, Waiting::Revision(waiting));
                Input::Freeze { reply, groups, end, reason, principal }
            }
            Command::Thaw { groups, principal, reply: waiting } => {
                self.replies.insert(reply, Waiting::Revision(waiting));
                Input::Thaw { reply, groups, principal }
            }
            Command::StepDown { reply } if !self.is_shared => {
                let message = "the journal is on the server's own disk: there is nobody to step down to";
                let help = "stop it, and start it again in time: lockstep server stop --away 60s";
                // Whoever asked may have gone.
                let _ = reply.send(Err(Rejection::new(Code::NotAllowed, message, help)));
                return;
            }
            Command::StepDown { reply } => {
                self.leave = Some((reply, Ended::SteppedDown));
                return;
            }
            Command::Stop { reply } => {
                self.leave = Some((reply, Ended::Stopped));
                return;
            }
            Command::Apply { spec, principal, reply: waiting } => {
                self.replies.insert(reply, Waiting::Revision(waiting));
                Input::Apply { reply, spec, principal }
            }
        };
        self.engine.handle(self.clock.now(), input);
    }

    fn perform(&mut self) {
        while let Some(output) = self.engine.poll_output() {
            match output {
                Output::Append { first, records } => self.append(first, &records),
                Output::Confirm => {
                    let (store, reign) = (self.store.clone(), self.reign);
                    self.confirm = Some(Box::pin(async move { confirm(&store, reign).await }));
                }
                Output::Order { session, order } => self.sessions.send(session, &order),
                Output::Close { session } => self.sessions.close(session),
                Output::Reply { reply, answer } => self.reply(reply, answer),
                Output::Event(event) => self.event(event),
            }
        }
    }

    fn append(&mut self, first: Index, records: &[Record]) {
        self.appended = records.iter().map(|record| awaited(&record.body)).fold(News::Small, News::max);
        let batch: Vec<_> = records
            .iter()
            .map(|record| serde_json::to_vec(record).expect("records are plain data"))
            .collect();
        self.append_bytes = batch.iter().map(|record| record.len() as u64).sum();
        let (store, reign) = (self.store.clone(), self.reign);
        self.append = Some(Box::pin(async move {
            let mut first = first;
            for batch in portions(batch) {
                let count = batch.len() as u64;
                if append(&store, reign, first, batch).await? == Fenced::Deposed {
                    return Ok(Fenced::Deposed);
                }
                first = Index(first.0 + count);
            }
            Ok(Fenced::Held)
        }));
    }

    fn reply(&mut self, reply: ReplyId, answer: Result<Accepted, Rejection>) {
        let Some(waiting) = self.replies.remove(&reply) else { return };
        // Whoever asked may have gone; what was done stays done.
        match waiting {
            Waiting::Run(sender) => {
                let _ = sender.send(answer.map(|accepted| match accepted {
                    Accepted::Transition(id) => Some(id),
                    Accepted::Nothing | Accepted::Spec(_) | Accepted::Host(_) | Accepted::Freezes(_) => None,
                    Accepted::Aborted | Accepted::Away { .. } => None,
                }));
            }
            Waiting::Abort(sender) => {
                let _ = sender.send(answer.map(|_| ()));
            }
            Waiting::Revision(sender) => {
                let _ = sender.send(answer.and_then(|accepted| match accepted {
                    Accepted::Spec(index) | Accepted::Host(index) | Accepted::Freezes(index) => Ok(index),
                    Accepted::Transition(_)
                    | Accepted::Nothing
                    | Accepted::Aborted
                    | Accepted::Away { .. } => Err(Rejection::new(
                        Code::StoreUnavailable,
                        "the server gave no revision",
                        "ask again",
                    )),
                }));
            }
            Waiting::Away(sender) => {
                let _ = sender.send(answer.map(|accepted| match accepted {
                    Accepted::Away { told, missing } => (told, missing),
                    Accepted::Transition(_)
                    | Accepted::Nothing
                    | Accepted::Aborted
                    | Accepted::Spec(_)
                    | Accepted::Host(_)
                    | Accepted::Freezes(_) => (0, BTreeSet::new()),
                }));
            }
        }
    }

    fn event(&mut self, event: Event) {
        match event {
            Event::Phase { transition, phase: Some(phase) } => {
                info!(%transition, phase, "phase");
                self.view.phases.insert(transition, phase);
                self.view.blockers.remove(&transition);
                self.news = News::Awaited;
            }
            Event::Phase { transition, phase: None } => {
                self.view.phases.remove(&transition);
                self.view.blockers.remove(&transition);
                self.view.votes.remove(&transition);
                self.news = News::Awaited;
            }
            Event::Blocked { transition, blocker } => {
                self.view.blockers.insert(transition, blocker);
                self.news = News::Awaited;
            }
            Event::Voted { transition, vote } => {
                self.view.votes.entry(transition).or_default().push(Arc::new(vote));
                self.news = self.news.max(News::Small);
            }
            Event::Reported { member, score, facts, reason } => {
                let reported = Reported { score, facts, reason };
                Arc::make_mut(&mut self.view.reported).insert(member, reported);
                self.news = self.news.max(News::Small);
            }
            Event::Waits(waits) => {
                self.view.waits = Arc::new(waits);
                self.news = self.news.max(News::Small);
            }
            Event::Refused(refused) => {
                self.view.refused = Arc::new(refused);
                self.news = self.news.max(News::Small);
            }
            Event::Warning(message) => warn!("{message}"),
        }
    }

    fn publish(&mut self) {
        let now = self.clock.now().time;
        if !Arc::ptr_eq(&self.view.heard, self.engine.heard()) {
            self.news = self.news.max(News::Small);
        }
        let is_due = self.news == News::Awaited || self.published.plus(PUBLISH_MS) <= now;
        if self.news == News::None || !is_due {
            return;
        }
        self.news = News::None;
        self.published = now;
        self.view.cluster = self.engine.acknowledged().clone();
        self.view.heard = self.engine.heard().clone();
        self.publish.send_replace(self.view.clone());
    }
}

impl Waiting {
    /// Answers that nobody knows what becomes of it here.
    fn refuse(self, why: Rejection) {
        // Whoever asked may have gone.
        match self {
            Self::Run(sender) => _ = sender.send(Err(why)),
            Self::Abort(sender) => _ = sender.send(Err(why)),
            Self::Revision(sender) => _ = sender.send(Err(why)),
            Self::Away(sender) => _ = sender.send(Err(why)),
        }
    }
}

/// Whether somebody is likely to wait for a record to be shown.
fn awaited(body: &Body) -> News {
    match body {
        Body::Step { .. }
        | Body::Report { .. }
        | Body::Turn { .. }
        | Body::Lease { .. }
        | Body::Acknowledged { .. } => News::Small,
        Body::Reign { .. }
        | Body::Evidence { .. }
        | Body::Away { .. }
        | Body::Spec { .. }
        | Body::Host { .. }
        | Body::Request { .. }
        | Body::Begin { .. }
        | Body::Decision { .. }
        | Body::Freeze { .. }
        | Body::Thaw { .. }
        | Body::Outcome { .. } => News::Awaited,
    }
}

/// How long to wait for what is due first: never so long that a stop could hide before the alarm. Of one that begins
/// three seconds before it only the rest would be seen, and hosts be lost for what was said meanwhile and not read.
fn pause_ms(due: impl IntoIterator<Item = u64>) -> u64 {
    due.into_iter().fold(STOPPED_MS, u64::min)
}

/// Cuts a batch into what the store takes at once. A crash in between keeps the first records and not the last:
/// none of them has been acknowledged yet.
fn portions(records: Vec<Vec<u8>>) -> Vec<Vec<Vec<u8>>> {
    let mut portions = vec![Vec::new()];
    let mut bytes = 0;
    for record in records {
        if bytes > 0 && bytes + record.len() > APPEND_BYTES_MAX {
            portions.push(Vec::new());
            bytes = 0;
        }
        bytes += record.len();
        portions.last_mut().expect("it begins with one").push(record);
    }
    portions
}

/// Whether the reign holds, as soon as the store can be reached.
async fn confirm<S: Store>(store: &S, reign: Reign) -> Result<Fenced, Error> {
    until_reached("confirm", || store.confirm(reign)).await
}

/// Appends one batch, until it is safe or the reign has ended. A write that was not answered is looked for before
/// it is tried again: nothing else may take its place.
async fn append<S: Store>(
    store: &S,
    reign: Reign,
    first: Index,
    batch: Vec<Vec<u8>>,
) -> Result<Fenced, ServerError> {
    let expected = Index(first.0 - 1);
    let last = Index(expected.0 + batch.len() as u64);
    let mut after = expected;
    let mut tries = 0;
    loop {
        let said = match until_reached("append", || store.append(reign, after, batch.clone())).await {
            Ok(said) => said,
            Err(fault @ Error::NoRoom(_)) if tries < NO_ROOM_TRIES_MAX => {
                error!(%fault, "no room for the journal: nothing is acknowledged until there is");
                tries += 1;
                sleep(NO_ROOM_PAUSE).await;
                continue;
            }
            Err(fault) => return Err(fault.into()),
        };
        match settle(said, expected, last) {
            Settled::Durable => return Ok(Fenced::Held),
            Settled::Deposed => return Ok(Fenced::Deposed),
            Settled::Confirm => return Ok(confirm(store, reign).await?),
            Settled::AskAgain(next) => {
                warn!("the store did not answer a write; asking what became of it");
                after = next;
                sleep(UNKNOWN_PAUSE).await;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::handle::Handle;
    use super::*;
    use crate::store::{Appended, Candidate, Entry, Leader, Snapshot};
    use lockstep_core::cluster::Cluster;
    use lockstep_core::log;
    use std::sync::atomic::{AtomicU32, Ordering};
    use tokio::task::JoinHandle;
    use tokio::time::Instant;

    /// A store on a disk that is full at the first appends.
    #[derive(Clone)]
    struct Full {
        appends: u32,
        tried: Arc<AtomicU32>,
    }

    impl Store for Full {
        async fn append(&self, _: Reign, expected: Index, batch: Vec<Vec<u8>>) -> Result<Appended, Error> {
            if self.tried.fetch_add(1, Ordering::Relaxed) < self.appends {
                let file = "log".to_owned();
                return Err(Error::NoRoom(log::Error::Full { file, doing: "append" }));
            }
            Ok(Appended::Done(Index(expected.0 + batch.len() as u64)))
        }
        async fn campaign(&self, _: &Candidate, _: Duration) -> Result<Reign, Error> {
            unreachable!("whoever starts the driver does that before")
        }
        async fn resign(&self, _: Reign) -> Result<Fenced, Error> {
            unreachable!("nobody asks for it here")
        }
        async fn ended(&self, _: Reign) {
            std::future::pending().await
        }
        async fn leader(&self) -> Result<Option<Leader>, Error> {
            unreachable!("the driver reigns itself")
        }
        async fn head(&self) -> Result<Index, Error> {
            unreachable!("the driver does not ask")
        }
        async fn read(&self, _: Index) -> Result<Vec<Entry>, Error> {
            unreachable!("whoever starts the driver does that before")
        }
        fn heads(&self) -> watch::Receiver<Index> {
            unreachable!("the driver does not follow its own journal")
        }
        async fn save_snapshot(&self, _: Reign, _: Index, _: Vec<u8>) -> Result<Fenced, Error> {
            unreachable!("the driver does not")
        }
        async fn load_snapshot(&self) -> Result<Option<Snapshot>, Error> {
            unreachable!("whoever starts the driver does that before")
        }
        async fn compact(&self, _: Reign, _: Index) -> Result<Fenced, Error> {
            unreachable!("the driver does not")
        }
        async fn confirm(&self, _: Reign) -> Result<Fenced, Error> {
            unreachable!("only a conflict is a reason to ask")
        }
    }

    fn driven(store: Full) -> (Handle, JoinHandle<Result<Ended, ServerError>>) {
        let clock = Clock::start();
        let engine = Engine::new(Cluster::default(), "server", clock.now());
        let (commands, mut asked) = mpsc::channel(COMMANDS_MAX);
        let (publish, view) = watch::channel(View::default());
        let (sessions, mut said) = Sessions::new(1);
        let silence = store.silence();
        let saver = Saver::new(store, Reign(1), 0, 0);
        let driver = Driver::new(engine, saver, clock, sessions, publish, false);
        let drive = async move { driver.drive(&mut asked, &mut said).await };
        (Handle::new(commands, view, silence), tokio::spawn(drive))
    }

    fn spec() -> lockstep_core::spec::SpecFile {
        serde_json::from_str(r#"{"cluster":"c","groups":{}}"#).unwrap()
    }

    #[tokio::test(start_paused = true)]
    async fn a_server_whose_disk_stays_full_stops_and_says_why() {
        let tried = Arc::new(AtomicU32::new(0));
        let begun = Instant::now();
        let (handle, driver) = driven(Full { appends: u32::MAX, tried: tried.clone() });
        let asked = tokio::spawn(async move { handle.apply(spec(), "operator".to_owned()).await });
        let stopped = driver.await.unwrap();
        assert!(matches!(stopped, Err(ServerError::Store(Error::NoRoom(_)))), "{stopped:?}");
        assert_eq!(tried.load(Ordering::Relaxed), 1 + NO_ROOM_TRIES_MAX);
        assert_eq!(begun.elapsed().as_secs(), (NO_ROOM_PAUSE * NO_ROOM_TRIES_MAX).as_secs());
        // Whoever has asked is not left waiting.
        assert_eq!(asked.await.unwrap().unwrap_err().code, Code::StoreUnavailable);
    }

    #[tokio::test(start_paused = true)]
    async fn a_server_whose_disk_has_room_again_in_time_goes_on() {
        let tried = Arc::new(AtomicU32::new(0));
        let (handle, _driver) = driven(Full { appends: NO_ROOM_TRIES_MAX, tried });
        assert_eq!(handle.apply(spec(), "operator".to_owned()).await.unwrap(), Index(2));
    }

    #[test]
    fn a_batch_is_cut_where_it_grows_too_large() {
        let cut = |lens: &[usize]| {
            let records = lens.iter().map(|len| vec![0; *len]).collect();
            portions(records).iter().map(Vec::len).collect::<Vec<_>>()
        };
        let all = APPEND_BYTES_MAX;
        assert_eq!(cut(&[1, 1, 1]), [3]);
        assert_eq!(cut(&[all, 1, all - 1, 1]), [1, 2, 1]);
        assert_eq!(cut(&[all + 1, all + 1]), [1, 1]);
    }

    #[test]
    fn the_alarm_clock_is_looked_at_also_when_nothing_is_due_soon() {
        assert_eq!(pause_ms([]), STOPPED_MS);
        assert_eq!(pause_ms([3150, 60_000]), STOPPED_MS);
        assert_eq!(pause_ms([3150, 20]), 20);
        assert_eq!(pause_ms([0, 20]), 0);
    }
}
