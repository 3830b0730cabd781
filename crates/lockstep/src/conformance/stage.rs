//! The server that is played: a port, the agent's program if it is ours to start and kill, one session at a time, and
//! numbers that only grow, as a journal's do.

use super::{Judged, Stop, failed};
use crate::server::read_report;
use lockstep_core::id::{
    ClusterId, HandlerName, HostName, Index, MemberId, Reign, StateName, StepId, Token, TransitionId,
};
use lockstep_core::message::{
    Assignment, Call, Context, Done, Hello, Order, Outcome, PROTOCOL, Phase, Report, Role,
};
use lockstep_core::time::Time;
use lockstep_core::vote::Answer;
use rustix::event::{PollFd, PollFlags, poll};
use serde_json::Value;
use std::collections::BTreeSet;
use std::fs;
use std::io::{self, ErrorKind};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::fd::AsFd;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};
use tokio_tungstenite::tungstenite::handshake::server::{Request, Response};
use tokio_tungstenite::tungstenite::{self, Message, WebSocket};

/// The lease of sessions in which leases are of no interest, in milliseconds.
const LEASE_MS: u64 = 6000;

/// How an agent is tried out.
#[derive(Debug, Clone)]
pub struct Options {
    /// Where to listen.
    pub listen: SocketAddr,
    /// The handler that members are assigned.
    pub handler: HandlerName,
    /// A file to which the members' software adds a line for each call that it carries out.
    pub calls: Option<PathBuf>,
    /// How long the agent may take for anything.
    pub patience: Duration,
    /// The cases to try; none: all.
    pub only: Vec<String>,
    /// The agent's program and its arguments, in which `{url}` stands for this server; none: it is started by others.
    pub program: Vec<String>,
}

pub(super) struct Stage {
    options: Options,
    url: String,
    listener: TcpListener,
    child: Option<Child>,
    session: Option<Session>,
    /// Whether it is known what the agent has seen: at first, and after a case that failed, it is to be asked.
    is_known: bool,
    /// The last index given.
    head: u64,
    pub(super) reign: Reign,
    /// The highest token given in a call.
    pub(super) token: Token,
    /// The last notice acknowledged.
    pub(super) noticed: Index,
    /// Transitions that an agent is to keep open when it comes back; of others it is told the outcome.
    pub(super) kept: BTreeSet<TransitionId>,
    asked: Vec<Key>,
}

/// What a call is answered by: member, phase, transition, step.
type Key = (MemberId, Phase, Option<TransitionId>, Option<StepId>);

/// A session with the agent.
pub(super) struct Session {
    socket: WebSocket<TcpStream>,
    pub(super) hello: Hello,
    /// When each renewal came.
    pub(super) renewals: Vec<Instant>,
    /// Whether renewals are answered, and with which lease the next one, in milliseconds.
    pub(super) is_answering: bool,
    pub(super) new_lease_ms: Option<u64>,
    /// Holds that ended by themselves.
    pub(super) holds_ended: Vec<(TransitionId, MemberId)>,
    is_welcome: bool,
}

/// What comes within a time.
#[expect(clippy::large_enum_variant, reason = "there is one at a time")]
pub(super) enum Came {
    Report(Report),
    Nothing,
    /// The session is over.
    Closed(String),
}

impl Stage {
    pub(super) fn open(options: &Options) -> io::Result<Self> {
        let listener = TcpListener::bind(options.listen)?;
        let url = format!("http://{}", listener.local_addr()?);
        Ok(Self {
            options: options.clone(),
            url,
            listener,
            child: None,
            session: None,
            is_known: false,
            head: 0,
            reign: Reign(0),
            token: Token(0),
            noticed: Index(0),
            kept: BTreeSet::new(),
            asked: Vec::new(),
        })
    }

    pub(super) fn url(&self) -> &str {
        &self.url
    }

    pub(super) fn patience(&self) -> Duration {
        self.options.patience
    }

    // ---- the agent's program

    pub(super) fn start_agent(&mut self) -> io::Result<()> {
        let Some((program, args)) = self.options.program.split_first() else { return Ok(()) };
        // What it says is no data of ours.
        let said = io::stderr().as_fd().try_clone_to_owned()?;
        let mut command = Command::new(program.replace("{url}", &self.url));
        command.args(args.iter().map(|arg| arg.replace("{url}", &self.url)));
        self.child = Some(command.stdin(Stdio::null()).stdout(Stdio::from(said)).spawn()?);
        Ok(())
    }

    pub(super) fn kill_agent(&mut self) -> Judged {
        let Some(mut child) = self.child.take() else {
            let reason = "the agent was not started by this command: put its command line behind --";
            return Err(Stop::Skipped(reason.to_owned()));
        };
        // It may have ended by itself, which is what is wanted.
        let _ = child.kill();
        let _ = child.wait();
        self.session = None;
        Ok(())
    }

    pub(super) fn start_agent_again(&mut self) -> Judged {
        let started = self.start_agent();
        started.or_else(|error| failed("that the agent's program starts again", error.to_string()))
    }

    /// How often the members' software carried a call out, as it says itself; none when nobody keeps count.
    pub(super) fn carried_out(&self, phase: Phase, id: TransitionId) -> Judged<Option<usize>> {
        let is_it = |line: &&str| {
            let mut words = line.split_ascii_whitespace();
            let (is_phase, named) = (words.next() == Some(phase.as_str()), words.next());
            is_phase && named.and_then(|id| id.parse().ok()) == Some(id)
        };
        Ok(self.calls()?.map(|text| text.lines().filter(is_it).count()))
    }

    /// What the members' software has noted; none when nobody keeps count.
    fn calls(&self) -> Judged<Option<String>> {
        let Some(path) = &self.options.calls else { return Ok(None) };
        match fs::read_to_string(path) {
            Ok(text) => Ok(Some(text)),
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(Some(String::new())),
            Err(error) => failed("a file of calls that can be read", error.to_string()),
        }
    }

    /// How often the software was stopped outside of any transition; none when nobody keeps count.
    pub(super) fn stops(&self) -> Judged<Option<usize>> {
        let is_stop = |line: &&str| line.split_ascii_whitespace().next() == Some(Phase::Stop.as_str());
        Ok(self.calls()?.map(|text| text.lines().filter(is_stop).count()))
    }

    /// That a call was carried out so often and no more.
    pub(super) fn expect_carried_out(&self, phase: Phase, id: TransitionId, times: usize) -> Judged {
        match self.carried_out(phase, id)? {
            Some(count) if count != times => {
                failed(format!("{phase} carried out {times} times"), format!("{count} times"))
            }
            Some(_) | None => Ok(()),
        }
    }

    // ---- sessions

    /// The next session, as far as its greeting.
    pub(super) fn greeted(&mut self) -> Judged<&mut Session> {
        self.session = None;
        let patience = self.options.patience;
        let stream = accept(&self.listener, patience)?;
        let session = Session::greeted(stream, patience)?;
        let hello = &session.hello;
        // Whatever it has seen was before this.
        let seen = hello.open.iter().map(|id| id.0).max().unwrap_or_default();
        self.head = self.head.max(hello.token.0).max(hello.reign.0).max(hello.noticed.0).max(seen);
        if !self.is_known {
            self.is_known = true;
            (self.token, self.noticed) = (hello.token, hello.noticed);
            // One below it has to be left for a server that is out of date.
            self.head += 2;
            self.reign = Reign(self.head);
        }
        Ok(self.session.insert(session))
    }

    /// Welcomes who has greeted.
    pub(super) fn welcome(&mut self, lease_ms: u64) -> Judged {
        let members = self.assignments(&["conformance", "conformance-b"]);
        self.welcome_with(lease_ms, members)
    }

    /// The same, where the first member may be online only by its host's lease.
    pub(super) fn welcome_leased(&mut self, lease_ms: u64) -> Judged {
        let mut members = self.assignments(&["conformance", "conformance-b"]);
        members[0].leased.insert(state("online"));
        self.welcome_with(lease_ms, members)
    }

    fn welcome_with(&mut self, lease_ms: u64, members: Vec<Assignment>) -> Judged {
        let reign = self.reign;
        let kept = self.kept.clone();
        let session = self.session.as_mut().expect("it has greeted");
        session.is_welcome = true;
        let cluster = Some(cluster());
        session.say(&Order::Welcome { reign, cluster, lease_ms, members })?;
        for transition in session.hello.open.clone() {
            if !kept.contains(&transition) {
                session.say(&Order::Outcome { transition, outcome: Some(Outcome::Aborted) })?;
            }
        }
        Ok(())
    }

    /// Welcomes who has greeted in other words.
    pub(super) fn welcome_as(&mut self, welcome: Value) -> Judged<&mut Session> {
        let session = self.greeting();
        session.is_welcome = true;
        session.say_text(welcome.to_string())?;
        Ok(session)
    }

    /// The session of whoever has greeted last.
    pub(super) fn greeting(&mut self) -> &mut Session {
        self.session.as_mut().expect("it has greeted")
    }

    /// A session that stands.
    pub(super) fn session(&mut self) -> Judged<&mut Session> {
        if self.session.as_ref().is_none_or(|session| !session.is_welcome) {
            self.greeted()?;
            self.welcome(LEASE_MS)?;
        }
        Ok(self.session.as_mut().expect("it was just made"))
    }

    /// Ends the session, and waits for the one that follows.
    pub(super) fn come_back(&mut self) -> Judged<Hello> {
        self.session()?;
        self.hang_up();
        Ok(self.greeted()?.hello.clone())
    }

    pub(super) fn hang_up(&mut self) {
        if let Some(mut session) = self.session.take() {
            // It may be closed already.
            let _ = session.socket.close(None);
            let _ = session.socket.flush();
        }
    }

    /// After a case. What one has left behind that failed is no matter of the next.
    pub(super) fn clear(&mut self, has_passed: bool) {
        self.kept.clear();
        if !has_passed {
            self.is_known = false;
            self.hang_up();
            if self.child.is_none() {
                // If it cannot be started the next case says so: nobody dials.
                let _ = self.start_agent();
            }
        }
    }

    // ---- what is said

    /// The next place in the journal.
    pub(super) fn index(&mut self) -> Index {
        self.head += 1;
        Index(self.head)
    }

    pub(super) fn transition(&mut self) -> TransitionId {
        TransitionId(self.index().0)
    }

    fn host(&self) -> HostName {
        self.session.as_ref().expect("a session stands").hello.host.clone()
    }

    pub(super) fn member(&mut self, group: &str) -> Judged<MemberId> {
        self.session()?;
        Ok(MemberId { group: group.parse().expect("a valid name"), host: self.host() })
    }

    pub(super) fn assignments(&self, groups: &[&str]) -> Vec<Assignment> {
        let assignment = |group: &&str| Assignment {
            member: MemberId { group: group.parse().expect("a valid name"), host: self.host() },
            handler: self.options.handler.clone(),
            lowest: state("offline"),
            leased: Default::default(),
        };
        groups.iter().map(assignment).collect()
    }

    /// Whether members have software behind them.
    pub(super) fn has_handler(&self) -> bool {
        self.options.handler.as_str() != lockstep_core::spec::HANDLER_NONE
    }

    /// A call for the first member, without a token.
    pub(super) fn call(&mut self, phase: Phase, transition: TransitionId) -> Judged<Call> {
        let member = self.member("conformance")?;
        let role = match phase {
            Phase::Hold | Phase::Release => Role::Holder,
            Phase::Notice => Role::Observer,
            Phase::Check | Phase::Prepare | Phase::Commit | Phase::Undo | Phase::Cancel => Role::Actor,
            Phase::Status | Phase::Fence | Phase::Stop => Role::Actor,
        };
        let (from, to) = match phase {
            Phase::Undo => (Some(state("online")), Some(state("offline"))),
            Phase::Check | Phase::Prepare | Phase::Commit => (Some(state("offline")), Some(state("online"))),
            Phase::Cancel | Phase::Hold | Phase::Release | Phase::Status => (None, None),
            Phase::Notice | Phase::Fence | Phase::Stop => (None, None),
        };
        let step = matches!(phase, Phase::Commit | Phase::Undo).then_some(StepId(0));
        Ok(Call {
            subject: vec![member.group.clone()],
            member,
            phase,
            role,
            transition: Some(transition),
            step,
            attempt: 1,
            token: None,
            plan: None,
            from,
            to,
            decision: None,
            within_ms: u64::try_from(self.options.patience.as_millis()).unwrap_or(u64::MAX),
            hold_ms: None,
            context: Some(Context::default()),
        })
    }

    /// The same under a token.
    pub(super) fn under(&mut self, token: Token, phase: Phase, transition: TransitionId) -> Judged<Call> {
        Ok(Call { token: Some(token), ..self.call(phase, transition)? })
    }

    pub(super) fn say(&mut self, order: &Order) -> Judged {
        if let Order::Call(call) = order {
            self.token = self.token.max(call.token.unwrap_or_default());
            self.asked.push(key(call));
        }
        self.session()?.say(order)
    }

    /// Orders a call in other words.
    pub(super) fn say_newer(&mut self, call: &Call, order: Value) -> Judged {
        self.asked.push(key(call));
        self.session()?.say_text(order.to_string())
    }

    pub(super) fn end(&mut self, transition: TransitionId, outcome: Outcome) -> Judged {
        self.say(&Order::Outcome { transition, outcome: Some(outcome) })
    }

    // ---- what is heard

    /// Waits for a report that `pick` picks, in the session that stands. Answers to what was not asked are not passed by.
    pub(super) fn wait<T>(&mut self, what: &str, mut pick: impl FnMut(&Report) -> Option<T>) -> Judged<T> {
        let end = Instant::now() + self.options.patience;
        loop {
            let came = self.session()?.hear(end)?;
            let report = match came {
                Came::Report(report) => report,
                Came::Nothing => {
                    return failed(what, format!("nothing within {:?}", self.options.patience));
                }
                Came::Closed(how) => {
                    self.session = None;
                    return failed(what, how);
                }
            };
            if let Report::Done(done) = &report {
                let Done { member, phase, transition, step, .. } = done;
                if !self.asked.contains(&(member.clone(), *phase, *transition, *step)) {
                    return failed("answers to what was asked", shown(&report));
                }
            }
            if let Some(picked) = pick(&report) {
                return Ok(picked);
            }
        }
    }

    /// Orders a call and gives its answer.
    pub(super) fn ask(&mut self, call: &Call) -> Judged<Done> {
        self.say(&Order::Call(call.clone()))?;
        self.answer(call)
    }

    pub(super) fn answer(&mut self, call: &Call) -> Judged<Done> {
        let what = format!("the answer to {} of attempt {}", call.phase, call.attempt);
        let done = self.wait(&what, |report| match report {
            Report::Done(done) if answers(done) == key(call) && done.attempt == call.attempt => {
                Some(done.clone())
            }
            Report::Done(_) | Report::Hello(_) | Report::Renew { .. } | Report::HoldEnded { .. } => None,
            Report::State { .. } | Report::Guarded { .. } | Report::Noticed { .. } | Report::Goodbye => None,
        })?;
        if done.plan != call.plan {
            return failed(format!("{what} with its plan {:?}", call.plan), format!("plan {:?}", done.plan));
        }
        Ok(done)
    }

    pub(super) fn yes(&mut self, call: &Call) -> Judged<Done> {
        let done = self.ask(call)?;
        match done.answer {
            Answer::Yes => Ok(done),
            Answer::No | Answer::Again => {
                failed(format!("yes to {}", call.phase), shown(&Report::Done(done)))
            }
        }
    }

    pub(super) fn no(&mut self, call: &Call, why: &str) -> Judged<Done> {
        let done = self.ask(call)?;
        match done.answer {
            Answer::No => Ok(done),
            Answer::Yes | Answer::Again => {
                failed(format!("no to {}: {why}", call.phase), shown(&Report::Done(done)))
            }
        }
    }
}

impl Drop for Stage {
    fn drop(&mut self) {
        // Whether it was ours to start or not, it is to go no further. There is nobody to tell.
        let _ = self.kill_agent();
    }
}

impl Session {
    fn greeted(stream: TcpStream, patience: Duration) -> Judged<Self> {
        let broken = |error: io::Error| failed("a connection", error.to_string());
        stream.set_read_timeout(Some(patience)).or_else(broken)?;
        stream.set_nodelay(true).or_else(broken)?;
        let mut path = String::new();
        #[expect(clippy::result_large_err, reason = "the library says so")]
        let look = |request: &Request, response: Response| {
            path = request.uri().path().to_owned();
            Ok(response)
        };
        let socket = match tungstenite::accept_hdr(stream, look) {
            Ok(socket) => socket,
            Err(error) => return failed("a WebSocket's handshake", error.to_string()),
        };
        if path != "/v1/agent" {
            return failed("a request for /v1/agent", path);
        }
        let hello = Hello {
            protocol: 0,
            host: "nobody".parse().expect("a valid name"),
            agent: "nobody".parse().expect("a valid name"),
            run: "none".parse().expect("a valid name"),
            address: None,
            labels: Default::default(),
            reign: Reign(0),
            cluster: None,
            token: Token(0),
            open: Vec::new(),
            noticed: Index(0),
            fences: false,
        };
        let mut session = Self {
            socket,
            hello,
            renewals: Vec::new(),
            is_answering: true,
            new_lease_ms: None,
            holds_ended: Vec::new(),
            is_welcome: false,
        };
        match session.hear(Instant::now() + patience)? {
            Came::Report(Report::Hello(hello)) if hello.protocol == PROTOCOL => session.hello = hello,
            Came::Report(report) => {
                return failed(format!("a hello of protocol {PROTOCOL} first"), shown(&report));
            }
            Came::Nothing => return failed("a hello first", format!("nothing within {patience:?}")),
            Came::Closed(how) => return failed("a hello first", how),
        }
        Ok(session)
    }

    pub(super) fn say(&mut self, order: &Order) -> Judged {
        self.say_text(serde_json::to_string(order).expect("orders are plain data"))
    }

    pub(super) fn say_text(&mut self, text: String) -> Judged {
        let said = self.socket.send(Message::text(text));
        said.or_else(|error| failed("a session that takes an order", error.to_string()))
    }

    /// What comes next, by then. Renewals are answered on the way.
    pub(super) fn hear(&mut self, end: Instant) -> Judged<Came> {
        loop {
            let left = end.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Ok(Came::Nothing);
            }
            // A connection that is broken says so when it is read.
            let _ = self.socket.get_ref().set_read_timeout(Some(left));
            let text = match self.socket.read() {
                Ok(Message::Text(text)) => text,
                Ok(Message::Ping(_) | Message::Pong(_)) => continue,
                Ok(Message::Close(_)) => return Ok(Came::Closed("the agent closed the session".to_owned())),
                Ok(message @ (Message::Binary(_) | Message::Frame(_))) => {
                    return failed("messages of text", format!("{message:?}"));
                }
                Err(tungstenite::Error::Io(error))
                    if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) =>
                {
                    continue;
                }
                Err(error) => return Ok(Came::Closed(format!("the session ended: {error}"))),
            };
            let report = match read_report(&text) {
                Ok(report) => report,
                Err(problem) => return failed("a report that can be read", format!("{problem}: {text}")),
            };
            match &report {
                Report::Renew { sent, .. } if self.is_welcome => self.renew(*sent)?,
                Report::HoldEnded { transition, member } => {
                    self.holds_ended.push((*transition, member.clone()));
                }
                Report::Renew { .. } | Report::Hello(_) | Report::Done(_) => {}
                Report::State { .. } | Report::Guarded { .. } | Report::Noticed { .. } | Report::Goodbye => {}
            }
            return Ok(Came::Report(report));
        }
    }

    fn renew(&mut self, sent: Time) -> Judged {
        self.renewals.push(Instant::now());
        if self.is_answering {
            let lease_ms = self.new_lease_ms.take();
            self.say(&Order::Renewed { sent, lease_ms })?;
        }
        Ok(())
    }
}

/// The next connection.
fn accept(listener: &TcpListener, patience: Duration) -> Judged<TcpStream> {
    let end = Instant::now() + patience;
    loop {
        let left = end.saturating_duration_since(Instant::now());
        let pause = left.try_into().expect("a patience is a short time");
        let mut dialled = [PollFd::new(listener, PollFlags::IN)];
        match poll(&mut dialled, Some(&pause)) {
            Ok(0) if left.is_zero() => {
                return failed("that the agent dials", format!("nothing within {patience:?}"));
            }
            Ok(0) | Err(rustix::io::Errno::INTR) => {}
            Ok(_) => {
                let accepted = listener.accept().map(|(stream, _)| stream);
                return accepted.or_else(|error| failed("that the agent dials", error.to_string()));
            }
            Err(error) => return failed("that the agent dials", error.to_string()),
        }
    }
}

/// What the cluster is known by.
pub(super) fn cluster() -> ClusterId {
    ClusterId::new("conformance").expect("a valid name")
}

pub(super) fn state(name: &str) -> StateName {
    StateName::new(name).expect("a valid name")
}

pub(super) fn shown(report: &Report) -> String {
    serde_json::to_string(report).expect("reports are plain data")
}

fn key(call: &Call) -> Key {
    (call.member.clone(), call.phase, call.transition, call.step)
}

fn answers(done: &Done) -> Key {
    (done.member.clone(), done.phase, done.transition, done.step)
}
