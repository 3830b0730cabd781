//! The load of the transition benchmark: a real server process, and agents that keep their journals in memory.
//!
//! What is measured is the server. So its clients cost as little as they can beside it, on the same processors: core's
//! own agents, all on one thread, each behind a bare socket.

use crate::floor::{Floor, Shape};
use lockstep_core::agent::{AgentEngine, AgentInput, AgentOutput, AgentState, Identity};
use lockstep_core::message::{Order, Phase, Report};
use lockstep_core::time::Time;
use rustix::event::epoll::{self, EventData, EventFlags};
use rustix::io::Errno;
use rustix::net::{self, AddressFamily, SocketFlags, SocketType};
use serde::Deserialize;
use serde::de::{DeserializeOwned, IgnoredAny};
use serde_json::json;
use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

/// How often agents look at their clocks: they renew their leases every second.
const CLOCKS_LOOKED_AT: Duration = Duration::from_millis(20);

/// How many writes a transition waits for, one after the other: the request, the begin, the decision, and the results
/// with the outcome.
const WRITES: usize = 4;

/// How many sockets are read from in one go.
const EVENTS_MAX: usize = 1024;

pub(crate) struct Measured {
    pub(crate) times: Vec<Duration>,
    pub(crate) floor_times: Vec<Duration>,
    pub(crate) shape: String,
}

/// What went over the wire, by phase: orders, their bytes, answers, their bytes.
pub(crate) type Traffic = Arc<Mutex<BTreeMap<Phase, [usize; 4]>>>;

/// A real server process over an empty journal. Ended with this.
pub(crate) struct Server {
    child: Child,
    pub(crate) address: String,
    pub(crate) data: PathBuf,
}

impl Server {
    /// Starts it in `dir`.
    pub(crate) fn start(program: &Path, dir: &Path) -> Self {
        let data = dir.join("server");
        let _ = std::fs::remove_dir_all(&data);
        let path = data.to_str().expect("a path in UTF-8").to_owned();
        Self::start_on(program, &["--data", &path], data)
    }

    /// The same on any store.
    pub(crate) fn start_on(program: &Path, store: &[&str], data: PathBuf) -> Self {
        let mut child = Command::new(program)
            .args(["server", "--listen", "127.0.0.1:0"])
            .args(store)
            .env("RUST_LOG", "warn")
            .stdout(Stdio::piped())
            .spawn()
            .expect("the server starts");
        let mut line = String::new();
        BufReader::new(child.stdout.take().expect("piped")).read_line(&mut line).expect("its address");
        let address = line.trim().trim_start_matches("listening on http://").to_owned();
        Self { child, address, data }
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.child.kill().expect("it runs");
        self.child.wait().expect("it ends");
    }
}

/// An empty directory to work in, on the disk that the project is on.
pub(crate) fn directory() -> PathBuf {
    let dir = std::env::current_dir().expect("a directory").join("target").join("bench");
    let dir = if dir.parent().is_some_and(Path::exists) {
        dir
    } else {
        std::env::temp_dir().join("lockstep-bench")
    };
    let _ = std::fs::remove_dir_all(&dir);
    std::fs::create_dir_all(&dir).expect("a directory to work in");
    dir
}

/// Lets the agents of a declared cluster join; counts the outcomes that they are told, and what goes over the wire.
pub(crate) fn populate(http: &mut Http, address: &str, hosts: usize) -> (Arc<AtomicUsize>, Traffic) {
    let traffic = Traffic::default();
    let mut agents = Agents::new(address, hosts, traffic.clone());
    let told = agents.told.clone();
    std::thread::spawn(move || while agents.turn() {});
    while adopted(http) < hosts {
        std::thread::sleep(Duration::from_millis(10));
    }
    (told, traffic)
}

/// Runs so many transitions over three hosts, and shows ten times what they have come to.
pub(crate) fn long(program: &Path, rounds: usize) {
    const HOSTS: usize = 3;
    let running = Server::start(program, &directory());
    let data = running.data.as_path();
    let mut http = Http::declare(&running.address);
    let (told, _) = populate(&mut http, &running.address, HOSTS);
    println!(
        "{:>11} {:>10} {:>12} {:>10} {:>9} {:>9}",
        "transitions", "journal KB", "directory KB", "memory KB", "median ms", "worst ms"
    );
    let mut times = Vec::new();
    for round in 1..=rounds {
        times.push(transition(&mut http, if round % 2 == 1 { "online" } else { "offline" }));
        while told.load(Ordering::Relaxed) < HOSTS * round {
            std::thread::sleep(Duration::from_micros(50));
        }
        if round % (rounds / 10).max(1) == 0 {
            times.sort();
            let ms = |time: &Duration| time.as_secs_f64() * 1000.0;
            let directory: u64 = std::fs::read_dir(data)
                .expect("the server's directory")
                .flatten()
                .filter_map(|file| Some(file.metadata().ok()?.len()))
                .sum();
            println!(
                "{round:>11} {:>10} {:>12} {:>10} {:>9.2} {:>9.2}",
                journal_bytes(data) / 1024,
                directory / 1024,
                memory_kb(running.pid()),
                ms(&times[times.len() / 2]),
                ms(&times[times.len() - 1]),
            );
            times.clear();
        }
    }
}

/// Runs one transition over each of so many groups of three hosts, all at once, so many times.
pub(crate) fn side_by_side(program: &Path, groups: usize, rounds: usize) -> Measured {
    const MEMBERS: usize = 3;
    let hosts = groups * MEMBERS;
    let dir = directory();
    let running = Server::start(program, &dir);
    let data = running.data.as_path();
    let mut http = Http::declare(&running.address);
    let (told, traffic) = populate(&mut http, &running.address, hosts);
    declare_sets(&mut http, groups, MEMBERS);
    let mut clients: Vec<Http> = (0..groups).map(|_| Http::connect(&running.address)).collect();
    let warm_up = 4;
    let (mut times, mut before) = (Vec::new(), 0);
    let told_before = told.load(Ordering::Relaxed);
    for round in 0..warm_up + rounds {
        if round == warm_up {
            traffic.lock().expect("no agent panics").clear();
            before = journal_bytes(data);
        }
        let state = if round % 2 == 0 { "online" } else { "offline" };
        let time = all_at_once(&mut clients, state);
        if round >= warm_up {
            times.push(time);
        }
        while told.load(Ordering::Relaxed) - told_before < hosts * (round + 1) {
            std::thread::sleep(Duration::from_micros(100));
        }
    }
    let written = journal_bytes(data).saturating_sub(before) / rounds;
    beside_floor(times, hosts, &traffic, written, &dir)
}

/// The times of as many rounds of what no server can do without: the same messages and writes.
fn beside_floor(
    times: Vec<Duration>,
    hosts: usize,
    traffic: &Traffic,
    written: usize,
    dir: &Path,
) -> Measured {
    let traffic = traffic.lock().expect("no agent panics").clone();
    let shape = Shape {
        connections: hosts,
        rounds: [Phase::Check, Phase::Prepare, Phase::Commit]
            .map(|phase| {
                let [orders, out, answers, back] = traffic[&phase];
                (out / orders, back / answers)
            })
            .into(),
        syncs: WRITES,
        sync_bytes: (written / WRITES).max(1),
    };
    let mut floor = Floor::start(&shape, dir);
    let floor_times = times.iter().map(|_| floor.exchange()).collect();
    let shape = format!(
        "{hosts} connections, rounds of {:?} bytes (order, answer), {} synced writes of {} bytes",
        shape.rounds, shape.syncs, shape.sync_bytes
    );
    Measured { times, floor_times, shape }
}

/// Declares so many groups of so many members each, in the place of the one that all hosts were in.
pub(crate) fn declare_sets(http: &mut Http, groups: usize, members: usize) {
    let hosts = groups * members;
    for host in 0..hosts {
        let labels = json!({"labels": {"set": format!("s{:03}", host / members)}});
        let _: IgnoredAny = http.ask(
            "POST",
            &format!("/v1/hosts/{}/labels", format_args!("h{host:03}")),
            &labels.to_string(),
        );
    }
    let declared: serde_json::Map<_, _> = (0..groups)
        .map(|group| (format!("s{group:03}"), json!({"select": {"set": format!("s{group:03}")}})))
        .collect();
    let _: IgnoredAny =
        http.ask("PUT", "/v1/spec", &json!({"cluster": "bench", "groups": declared}).to_string());
    // Members of the group of before are on their way out, and gone as soon as that is acknowledged.
    while adopted(http) != hosts {
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// Asks for a transition of each group on a connection of its own, and tells how long it took until all have ended.
fn all_at_once(clients: &mut [Http], state: &str) -> Duration {
    let start = Instant::now();
    for (group, client) in clients.iter_mut().enumerate() {
        let body = json!({"targets": [format!("s{group:03}={state}")]});
        client.send("POST", "/v1/transitions", &body.to_string());
    }
    let read =
        |client: &mut Http| -> Asked { serde_json::from_slice(&client.receive()).expect("a transition") };
    let asked: Vec<Asked> = clients.iter_mut().map(read).collect();
    for (client, asked) in clients.iter_mut().zip(&asked) {
        client.send("GET", &format!("/v1/transitions/{}?until=outcome&wait_ms=10000", asked.id), "");
    }
    let ended: Vec<Asked> = clients.iter_mut().map(read).collect();
    let time = start.elapsed();
    assert!(ended.iter().all(|ended| ended.outcome.as_deref() == Some("committed")), "{ended:?}");
    time
}

/// A transition, as far as it matters here.
#[derive(Debug, Deserialize)]
pub(crate) struct Asked {
    pub(crate) id: String,
    pub(crate) outcome: Option<String>,
}

/// What a process has of the machine's memory.
fn memory_kb(pid: u32) -> usize {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).expect("it runs");
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).expect("a line of Linux");
    line.trim().trim_end_matches(" kB").parse().expect("a number")
}

pub(crate) fn run(program: &Path, hosts: usize, rounds: usize) -> Measured {
    let dir = directory();
    let running = Server::start(program, &dir);
    let (server, data) = (running.pid(), running.data.as_path());
    let mut http = Http::declare(&running.address);
    let (told, traffic) = populate(&mut http, &running.address, hosts);
    let warm_up = 6;
    let (mut times, mut before, mut busy_before) = (Vec::new(), 0, [0.0; 2]);
    let clients = std::process::id();
    for round in 0..warm_up + rounds {
        if round == warm_up {
            traffic.lock().expect("no agent panics").clear();
            before = journal_bytes(data);
            busy_before = [server, clients].map(cpu_ms);
        }
        let state = if round % 2 == 0 { "online" } else { "offline" };
        let time = transition(&mut http, state);
        if round >= warm_up {
            times.push(time);
        }
        // Agents are told the outcome after whoever asked. That is no part of the next transition.
        while told.load(Ordering::Relaxed) < hosts * (round + 1) {
            std::thread::sleep(Duration::from_micros(100));
        }
    }
    let [busy, clients_busy] =
        [0, 1].map(|at| (cpu_ms([server, clients][at]) - busy_before[at]) / rounds as f64);
    let written = journal_bytes(data).saturating_sub(before) / rounds;
    let mut measured = beside_floor(times, hosts, &traffic, written, &dir);
    measured.shape += &format!(
        "; a transition keeps the server busy for {busy:.1} ms, its clients for {clients_busy:.1} ms"
    );
    measured
}

/// The time that a process has kept processors busy, in milliseconds.
pub(crate) fn cpu_ms(pid: u32) -> f64 {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).expect("it runs");
    let (_, after_name) = stat.rsplit_once(')').expect("a name in brackets");
    let ticks: Vec<f64> =
        after_name.split_ascii_whitespace().filter_map(|field| field.parse().ok()).collect();
    // State is no number: utime and stime are the 11th and 12th field after it. A tick is 10 ms on Linux.
    (ticks[10] + ticks[11]) * 10.0
}

/// The bytes that the journal holds, its preallocated room left aside.
fn journal_bytes(data: &Path) -> usize {
    let files = std::fs::read_dir(data).expect("the server's directory");
    let sizes =
        files.flatten().filter(|file| file.file_name().to_string_lossy().starts_with("log")).map(|file| {
            let bytes = std::fs::read(file.path()).unwrap_or_default();
            bytes.iter().rposition(|byte| *byte != 0).map_or(0, |last| last + 1)
        });
    sizes.sum()
}

/// How many members have a known state.
pub(crate) fn adopted(http: &mut Http) -> usize {
    #[derive(Deserialize)]
    struct Member {
        actual: Option<String>,
    }
    #[derive(Deserialize)]
    struct List {
        items: Vec<Member>,
    }
    let list: List = http.ask("GET", "/v1/members", "");
    list.items.iter().filter(|member| member.actual.is_some()).count()
}

/// Moves everybody, and tells how long it took until the answer with the outcome was there.
pub(crate) fn transition(http: &mut Http, state: &str) -> Duration {
    transition_of(http, "g", state)
}

/// The same of one group.
pub(crate) fn transition_of(http: &mut Http, group: &str, state: &str) -> Duration {
    let body = json!({"targets": [format!("{group}={state}")]});
    let start = Instant::now();
    let mut object: Asked = http.ask("POST", "/v1/transitions", &body.to_string());
    let mut time = start.elapsed();
    let path = format!("/v1/transitions/{}?until=outcome&wait_ms=10000", object.id);
    while object.outcome.is_none() {
        let answer = http.answer("GET", &path, "");
        time = start.elapsed();
        object = serde_json::from_slice(&answer).expect("a transition");
    }
    assert_eq!(object.outcome.as_deref(), Some("committed"), "{object:?}");
    time
}

/// An operator's connection.
pub(crate) struct Http(BufReader<TcpStream>);

impl Http {
    pub(crate) fn connect(address: &str) -> Self {
        let stream = TcpStream::connect(address).expect("the server");
        stream.set_nodelay(true).expect("a TCP socket");
        Self(BufReader::new(stream))
    }

    /// Declares the cluster of these benchmarks: one group, of whose members every host has one.
    pub(crate) fn declare(address: &str) -> Self {
        let mut http = Self::connect(address);
        let spec = json!({"cluster": "bench", "groups": {"g": {"select": {"role": "g"}}}});
        let _: IgnoredAny = http.ask("PUT", "/v1/spec", &spec.to_string());
        http
    }

    /// Reads the head of an answer: its status, and how long its body is.
    fn head(&mut self) -> (u16, usize) {
        let (mut status, mut len, mut line) = (0, 0, String::new());
        loop {
            line.clear();
            self.0.read_line(&mut line).expect("the server");
            let (name, value) = line.trim_end().split_once(' ').unwrap_or_default();
            match name {
                "" => return (status, len),
                "HTTP/1.1" => status = value[..3].parse().expect("a status"),
                "content-length:" => len = value.parse().expect("a number"),
                _ => {}
            }
        }
    }

    pub(crate) fn ask<T: DeserializeOwned>(&mut self, method: &str, path: &str, body: &str) -> T {
        serde_json::from_slice(&self.answer(method, path, body)).expect("what was asked for")
    }

    fn answer(&mut self, method: &str, path: &str, body: &str) -> Vec<u8> {
        self.send(method, path, body);
        self.receive()
    }

    fn send(&mut self, method: &str, path: &str, body: &str) {
        let len = body.len();
        let request = format!(
            "{method} {path} HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\ncontent-length: {len}\r\n\r\n{body}"
        );
        self.0.get_mut().write_all(request.as_bytes()).expect("the server");
    }

    fn receive(&mut self) -> Vec<u8> {
        let (status, len) = self.head();
        let mut body = vec![0; len];
        self.0.read_exact(&mut body).expect("the server");
        assert!((200..300).contains(&status), "{status}: {}", String::from_utf8_lossy(&body));
        body
    }
}

/// One agent: core's engine, a socket, a journal that acknowledges at once.
struct Agent {
    engine: AgentEngine,
    stream: TcpStream,
    received: Vec<u8>,
    link: Link,
}

pub(crate) struct Agents {
    address: String,
    all: Vec<Agent>,
    readable: OwnedFd,
    traffic: Traffic,
    /// How many outcomes they have been told.
    told: Arc<AtomicUsize>,
    /// How many sessions there have been, and how many connections were given up for a server that was silent.
    pub(crate) joined: usize,
    pub(crate) gave_up: usize,
    start: Instant,
    look: Time,
}

impl Agents {
    /// Agents that have dialled.
    pub(crate) fn new(address: &str, hosts: usize, traffic: Traffic) -> Self {
        let readable = epoll::create(epoll::CreateFlags::empty()).expect("a file");
        let all = (0..hosts).map(|host| Agent::dial(&readable, address, host)).collect();
        Self {
            address: address.to_owned(),
            all,
            readable,
            traffic,
            told: Arc::default(),
            joined: 0,
            gave_up: 0,
            start: Instant::now(),
            look: Time(0),
        }
    }

    /// Hangs up, all of them; then all dial at once.
    pub(crate) fn reconnect(&mut self) {
        let now = self.now();
        for agent in &mut self.all {
            // The server may have closed it.
            let _ = agent.stream.shutdown(Shutdown::Both);
            agent.engine.handle(now, AgentInput::Disconnected);
        }
        for (place, agent) in self.all.iter_mut().enumerate() {
            agent.dial_again(&self.readable, &self.address, place);
        }
    }

    fn now(&self) -> Time {
        Time(self.start.elapsed().as_millis() as u64)
    }

    /// Waits until something happens, and answers it; false when the server has ended.
    pub(crate) fn turn(&mut self) -> bool {
        let pause = CLOCKS_LOOKED_AT.try_into().expect("a short time");
        let mut events = Vec::with_capacity(EVENTS_MAX);
        epoll::wait(&self.readable, rustix::buffer::spare_capacity(&mut events), Some(&pause))
            .expect("a file");
        let now = self.now();
        let traffic = &mut *self.traffic.lock().expect("no agent panics");
        let mut give_up = Vec::new();
        for event in events.drain(..) {
            let place = event.data.u64() as usize;
            let agent = &mut self.all[place];
            if agent.link == Link::Dialled {
                agent.ask(&self.readable, place);
                continue;
            }
            if !agent.receive(now, traffic, &self.told) {
                return false;
            }
            self.joined += agent.perform(now, traffic, || give_up.push(place));
        }
        if self.look <= now {
            self.look = now.plus(CLOCKS_LOOKED_AT.as_millis() as u64);
            for (place, agent) in self.all.iter_mut().enumerate() {
                if agent.engine.next_deadline().is_some_and(|due| due <= now) {
                    agent.engine.handle(now, AgentInput::Tick);
                    self.joined += agent.perform(now, traffic, || give_up.push(place));
                }
            }
        }
        self.gave_up += give_up.len();
        for place in give_up {
            let agent = &mut self.all[place];
            agent.engine.handle(now, AgentInput::Disconnected);
            agent.dial_again(&self.readable, &self.address, place);
        }
        true
    }
}

/// How far a connection has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Link {
    /// The server has not accepted it yet.
    Dialled,
    /// A session has been asked for.
    Asked,
    /// It is a session's.
    Upgraded,
}

/// A connection that is on its way, watched: whoever dials waits for nobody, as hosts do.
fn dial(readable: &OwnedFd, address: &str, place: usize) -> TcpStream {
    let address: SocketAddr = address.parse().expect("an address");
    let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
    let socket = net::socket_with(AddressFamily::INET, SocketType::STREAM, flags, None).expect("a socket");
    match net::connect(&socket, &address) {
        Ok(()) | Err(Errno::INPROGRESS) => {}
        Err(error) => panic!("{error}"),
    }
    let key = EventData::new_u64(place as u64);
    epoll::add(readable, &socket, key, EventFlags::OUT).expect("a socket");
    TcpStream::from(socket)
}

impl Agent {
    fn dial(readable: &OwnedFd, address: &str, host: usize) -> Self {
        let identity = Identity {
            host: format!("h{host:03}").parse().expect("a name"),
            agent: format!("agent-{host}").parse().expect("a name"),
            run: format!("run-{host}").parse().expect("a name"),
            address: None,
            labels: [("role".to_owned(), "g".to_owned())].into(),
        };
        let engine = AgentEngine::new(identity, BTreeMap::new(), AgentState::default(), Time(0), None);
        let stream = dial(readable, address, host);
        Self { engine, stream, received: Vec::new(), link: Link::Dialled }
    }

    fn dial_again(&mut self, readable: &OwnedFd, address: &str, place: usize) {
        self.stream = dial(readable, address, place);
        self.received.clear();
        self.link = Link::Dialled;
    }

    /// The server has accepted the connection. From here on its socket is an ordinary one.
    fn ask(&mut self, readable: &OwnedFd, place: usize) {
        self.stream.set_nonblocking(false).expect("a TCP socket");
        self.stream.set_nodelay(true).expect("a TCP socket");
        let request = "GET /v1/agent HTTP/1.1\r\nhost: localhost\r\nconnection: upgrade\r\nupgrade: websocket\r\n\
            sec-websocket-version: 13\r\nsec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n";
        self.stream.write_all(request.as_bytes()).expect("the server");
        self.link = Link::Asked;
        let key = EventData::new_u64(place as u64);
        epoll::modify(readable, &self.stream, key, EventFlags::IN).expect("a socket");
    }

    /// Takes in what has arrived; false when the connection is over.
    fn receive(&mut self, now: Time, traffic: &mut BTreeMap<Phase, [usize; 4]>, told: &AtomicUsize) -> bool {
        let mut bytes = [0; 4096];
        match self.stream.read(&mut bytes) {
            Ok(0) | Err(_) => return false,
            Ok(count) => self.received.extend_from_slice(&bytes[..count]),
        }
        if self.link == Link::Asked {
            let Some(end) = self.received.windows(4).position(|bytes| bytes == b"\r\n\r\n") else {
                return true;
            };
            let head: Vec<u8> = self.received.drain(..end + 4).collect();
            assert!(head.starts_with(b"HTTP/1.1 101"), "{}", String::from_utf8_lossy(&head));
            self.link = Link::Upgraded;
            self.engine.handle(now, AgentInput::Connected);
        }
        while let Some(message) = take_message(&mut self.received) {
            let order: Order = serde_json::from_slice(&message).expect("an order");
            match &order {
                Order::Call(call) => {
                    let counts = traffic.entry(call.phase).or_default();
                    counts[0] += 1;
                    counts[1] += message.len();
                }
                Order::Outcome { .. } => _ = told.fetch_add(1, Ordering::Relaxed),
                Order::Welcome { .. }
                | Order::Refused { .. }
                | Order::Assign { .. }
                | Order::Notice(_)
                | Order::Gap(_)
                | Order::Renewed { .. } => {}
            }
            self.engine.handle(now, AgentInput::Order(order));
        }
        true
    }

    /// Tells how many sessions have begun by it: one or none.
    fn perform(
        &mut self,
        now: Time,
        traffic: &mut BTreeMap<Phase, [usize; 4]>,
        mut give_up: impl FnMut(),
    ) -> usize {
        let (mut out, mut joined) = (Vec::new(), 0);
        while let Some(output) = self.engine.poll_output() {
            match output {
                AgentOutput::Append(_) => self.engine.handle(now, AgentInput::Appended),
                AgentOutput::Send(report) => {
                    let text = serde_json::to_vec(&report).expect("plain data");
                    if let Report::Done(done) = &report {
                        let counts = traffic.entry(done.phase).or_default();
                        counts[2] += 1;
                        counts[3] += text.len();
                    }
                    put_message(&mut out, &text);
                }
                AgentOutput::Joined => joined += 1,
                AgentOutput::Run { .. } | AgentOutput::Kill(_) => unreachable!("`none` runs nothing"),
                AgentOutput::Guard { .. } => unreachable!("nobody runs by a lease"),
                AgentOutput::Disconnect(_) => give_up(),
                AgentOutput::Warning(message) => eprintln!("{message}"),
            }
        }
        if !out.is_empty() {
            // The server reads what it is sent; one that has ended is noticed by reading.
            let _ = self.stream.write_all(&out);
        }
        joined
    }
}

/// Takes a whole message off the front: a WebSocket frame from a server has one or two lengths and no mask.
fn take_message(bytes: &mut Vec<u8>) -> Option<Vec<u8>> {
    let (&[kind, short], rest) = bytes.split_first_chunk()?;
    assert_eq!(kind, 0x81, "a whole text");
    let (len, head) = match short {
        126 => (u16::from_be_bytes(*rest.first_chunk()?).into(), 4),
        127 => panic!("orders here are short"),
        len => (usize::from(len), 2),
    };
    let message = bytes.get(head..head + len)?.to_vec();
    bytes.drain(..head + len);
    Some(message)
}

/// A WebSocket frame to a server has a mask; this one's is zero, which changes nothing.
fn put_message(bytes: &mut Vec<u8>, text: &[u8]) {
    let len = u16::try_from(text.len()).expect("reports here are short");
    match u8::try_from(len) {
        Ok(len @ ..126) => bytes.extend([0x81, 0x80 | len]),
        Ok(_) | Err(_) => {
            bytes.extend([0x81, 0x80 | 126]);
            bytes.extend(len.to_be_bytes());
        }
    }
    bytes.extend([0; 4]);
    bytes.extend(text);
}
