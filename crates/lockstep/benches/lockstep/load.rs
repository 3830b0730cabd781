//! The load of the transition benchmark: a real server process, and agents that keep their journals in memory.

use crate::floor::{Floor, Shape};
use futures_util::{SinkExt, StreamExt};
use lockstep_core::agent::{AgentEngine, AgentInput, AgentOutput, AgentState, Identity};
use lockstep_core::message::{Order, Phase};
use lockstep_core::time::Time;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::protocol::WebSocketConfig;

pub(crate) struct Measured {
    pub(crate) times: Vec<Duration>,
    pub(crate) floor_times: Vec<Duration>,
    pub(crate) shape: String,
}

/// What went over the wire, by phase: orders, their bytes, answers, their bytes.
type Traffic = Arc<Mutex<BTreeMap<Phase, [usize; 4]>>>;

struct Server(Child);

impl Drop for Server {
    fn drop(&mut self) {
        self.0.kill().expect("it runs");
        self.0.wait().expect("it ends");
    }
}

pub(crate) fn run(hosts: usize, rounds: usize) -> Measured {
    let dir = std::env::current_dir().expect("a directory").join("target").join("bench");
    let dir = if dir.parent().is_some_and(Path::exists) {
        dir
    } else {
        std::env::temp_dir().join("lockstep-bench")
    };
    let _ = std::fs::remove_dir_all(&dir);
    std::fs::create_dir_all(&dir).expect("a directory to work in");
    let data = dir.join("server");
    let mut child = Command::new(env!("CARGO_BIN_EXE_lockstep"))
        .args(["server", "--listen", "127.0.0.1:0", "--data"])
        .arg(&data)
        .env("RUST_LOG", "warn")
        .stdout(Stdio::piped())
        .spawn()
        .expect("the server starts");
    let mut line = String::new();
    BufReader::new(child.stdout.take().expect("piped")).read_line(&mut line).expect("its address");
    let url = line.trim().trim_start_matches("listening on ").to_owned();
    let server = Server(child);
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().expect("a runtime");
    runtime.block_on(measure(&url, hosts, rounds, server.0.id(), &data, &dir))
}

async fn measure(url: &str, hosts: usize, rounds: usize, server: u32, data: &Path, dir: &Path) -> Measured {
    let http = reqwest::Client::new();
    let spec = json!({"cluster": "bench", "groups": {"g": {"select": {"role": "g"}}}});
    let applied = http.put(format!("{url}/v1/spec")).json(&spec).send().await.expect("the server");
    assert!(applied.status().is_success(), "{}", applied.text().await.unwrap_or_default());
    let traffic = Traffic::default();
    let joined = Arc::new(AtomicUsize::new(0));
    for host in 0..hosts {
        tokio::spawn(agent(url.to_owned(), host, traffic.clone(), joined.clone()));
    }
    while adopted(&http, url).await < hosts {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    let warm_up = 6;
    let (mut times, mut before, mut busy_before) = (Vec::new(), 0, 0.0);
    for round in 0..warm_up + rounds {
        if round == warm_up {
            traffic.lock().expect("no agent panics").clear();
            before = journal_bytes(data);
            busy_before = cpu_ms(server);
        }
        let state = if round % 2 == 0 { "online" } else { "offline" };
        let start = Instant::now();
        transition(&http, url, state).await;
        if round >= warm_up {
            times.push(start.elapsed());
        }
    }
    let busy = (cpu_ms(server) - busy_before) / rounds as f64;
    let written = journal_bytes(data).saturating_sub(before) / rounds;
    let traffic = traffic.lock().expect("no agent panics").clone();
    let phases = [Phase::Check, Phase::Prepare, Phase::Commit];
    let shape = Shape {
        connections: hosts,
        rounds: phases
            .map(|phase| {
                let [orders, out, answers, back] = traffic[&phase];
                (out / orders, back / answers)
            })
            .into(),
        syncs: 5,
        sync_bytes: (written / 5).max(1),
    };
    let mut floor = Floor::start(&shape, dir);
    let floor_times = (0..rounds).map(|_| floor.exchange()).collect();
    let shape = format!(
        "{hosts} connections, rounds of {:?} bytes (order, answer), {} synced writes of {} bytes; \
         the server is busy for {busy:.1} ms a transition",
        shape.rounds, shape.syncs, shape.sync_bytes
    );
    Measured { times, floor_times, shape }
}

/// The time that a process has kept processors busy, in milliseconds.
fn cpu_ms(pid: u32) -> f64 {
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

async fn adopted(http: &reqwest::Client, url: &str) -> usize {
    let list = http.get(format!("{url}/v1/members")).send().await.expect("the server");
    let list: Value = list.json().await.expect("a list");
    list["items"].as_array().expect("a list").iter().filter(|member| member["actual"].is_string()).count()
}

async fn transition(http: &reqwest::Client, url: &str, state: &str) {
    let body = json!({"targets": [format!("g={state}")]});
    let answer = http.post(format!("{url}/v1/transitions")).json(&body).send().await.expect("the server");
    let mut object: Value = answer.json().await.expect("a transition");
    let id = object["id"].as_str().unwrap_or_else(|| panic!("no transition: {object}")).to_owned();
    while object["outcome"].is_null() {
        let wait = format!("{url}/v1/transitions/{id}?until=outcome&wait_ms=10000");
        object = http.get(wait).send().await.expect("the server").json().await.expect("a transition");
    }
    assert_eq!(object["outcome"], "committed", "{object}");
}

/// One agent: core's engine, a socket, a journal that acknowledges at once.
async fn agent(url: String, host: usize, traffic: Traffic, joined: Arc<AtomicUsize>) {
    let identity = Identity {
        host: format!("h{host:03}").parse().expect("a name"),
        agent: format!("agent-{host}").parse().expect("a name"),
        run: format!("run-{host}").parse().expect("a name"),
        address: None,
        labels: [("role".to_owned(), "g".to_owned())].into(),
    };
    let address = url.replacen("http", "ws", 1) + "/v1/agent";
    // The buffers of the real agent: the library's own are sized for a few large streams.
    let config = WebSocketConfig::default().read_buffer_size(4096).write_buffer_size(4096);
    let (mut socket, _) =
        tokio_tungstenite::connect_async_with_config(address, Some(config), true).await.expect("the server");
    let start = Instant::now();
    let now = || Time(start.elapsed().as_millis() as u64);
    let mut engine = AgentEngine::new(identity, BTreeMap::new(), AgentState::default(), now());
    engine.handle(now(), AgentInput::Connected);
    loop {
        while let Some(output) = engine.poll_output() {
            match output {
                AgentOutput::Append(_) => engine.handle(now(), AgentInput::Appended),
                AgentOutput::Send(report) => {
                    let text = serde_json::to_string(&report).expect("plain data");
                    if let lockstep_core::message::Report::Done(done) = &report {
                        let mut traffic = traffic.lock().expect("no agent panics");
                        let counts = traffic.entry(done.phase).or_default();
                        counts[2] += 1;
                        counts[3] += text.len();
                    }
                    if socket.feed(Message::text(text)).await.is_err() {
                        return;
                    }
                }
                AgentOutput::Joined => {
                    joined.fetch_add(1, Ordering::Relaxed);
                }
                AgentOutput::Run { .. } => unreachable!("`none` runs nothing"),
                AgentOutput::Disconnect(reason) => panic!("{reason}"),
                AgentOutput::Warning(message) => eprintln!("{message}"),
            }
        }
        if socket.flush().await.is_err() {
            return;
        }
        let tick = engine
            .next_deadline()
            .map_or(Duration::from_secs(60), |at| Duration::from_millis(at.since(now())));
        tokio::select! {
            received = socket.next() => {
                let Some(Ok(Message::Text(text))) = received else { return };
                let order: Order = serde_json::from_str(&text).expect("an order");
                if let Order::Call(call) = &order {
                    let mut traffic = traffic.lock().expect("no agent panics");
                    let counts = traffic.entry(call.phase).or_default();
                    counts[0] += 1;
                    counts[1] += text.len();
                }
                engine.handle(now(), AgentInput::Order(order));
            }
            () = tokio::time::sleep(tick) => engine.handle(now(), AgentInput::Tick),
        }
    }
}
