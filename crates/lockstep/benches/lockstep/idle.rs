//! Agents that have nothing to do: what each costs the server in memory, and how long it takes until all are welcome
//! again when all have lost their connections at once.

use crate::load::{Agents, Http, Server, Traffic, adopted, directory};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

/// What a greeting and a welcome have, in bytes, in the sessions measured.
const GREETING: [usize; 2] = [190, 130];
/// A bare connection's buffer: room for one short message.
const FLOOR_BUFFER: usize = 1024;
/// How often all dial at once.
const STORMS: usize = 5;
/// So long nothing happens but renewals, five of each agent, before memory is looked at.
const SETTLED: Duration = Duration::from_secs(5);

pub(crate) struct Measured {
    pub(crate) kib: f64,
    pub(crate) floor_kib: f64,
    pub(crate) storm: Vec<Duration>,
    pub(crate) floor_storm: Vec<Duration>,
    /// How many connections agents gave up in storms.
    pub(crate) gave_up: usize,
    pub(crate) floor: String,
}

pub(crate) fn run(program: &Path, hosts: usize) -> Measured {
    // A socket each, here and in the server, which does the same for itself.
    let Rlimit { maximum, .. } = getrlimit(Resource::Nofile);
    setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum }).expect("the hard limit may be taken");
    let server = Server::start(program, &directory());
    let mut http = Http::declare(&server.address);
    let before = rss_kib(server.pid());
    let mut agents = Agents::new(&server.address, hosts, Traffic::default());
    while agents.joined < hosts || adopted(&mut http) < hosts {
        assert!(agents.turn(), "the server has ended");
    }
    let settle = |agents: &mut Agents| {
        let begun = Instant::now();
        while begun.elapsed() < SETTLED {
            assert!(agents.turn(), "the server has ended");
        }
    };
    settle(&mut agents);
    let kib = (rss_kib(server.pid()) - before) / hosts as f64;
    let gave_up = agents.gave_up;
    let mut storm = Vec::new();
    for _ in 0..STORMS {
        let joined = agents.joined;
        let begun = Instant::now();
        agents.reconnect();
        while agents.joined < joined + hosts {
            assert!(agents.turn(), "the server has ended");
        }
        storm.push(begun.elapsed());
        settle(&mut agents);
    }
    let after_kib = (rss_kib(server.pid()) - before) / hosts as f64;
    let gave_up = agents.gave_up - gave_up;
    drop((agents, http, server));
    let (floor_kib, floor_storm) = floor(hosts);
    let floor = format!(
        "{hosts} connections with a task and {FLOOR_BUFFER} bytes each, {GREETING:?} bytes each way; \
         after {STORMS} storms the server holds {after_kib:.1} KiB for each"
    );
    Measured { kib, floor_kib, storm, floor_storm, gave_up, floor }
}

/// What a process has in memory.
fn rss_kib(pid: u32) -> f64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).expect("it runs");
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).expect("it has memory");
    line.trim().trim_end_matches(" kB").parse().expect("a number")
}

/// The floor's server, in its own process, on as many threads as ours.
pub(crate) fn serve_floor() {
    let processors = std::thread::available_parallelism().map_or(1, usize::from);
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads((processors / 2).max(1))
        .enable_all()
        .build()
        .expect("threads");
    runtime.block_on(async {
        let socket = tokio::net::TcpSocket::new_v4().expect("a socket");
        socket.bind(SocketAddr::from(([127, 0, 0, 1], 0))).expect("a port");
        let listener = socket.listen(4096).expect("a port");
        println!("{}", listener.local_addr().expect("an address"));
        loop {
            let (mut stream, _) = listener.accept().await.expect("a connection");
            stream.set_nodelay(true).expect("a TCP socket");
            tokio::spawn(async move {
                let mut buffer = vec![1; FLOOR_BUFFER];
                while stream.read_exact(&mut buffer[..GREETING[0]]).await.is_ok() {
                    stream.write_all(&buffer[..GREETING[1]]).await.expect("a client");
                }
            });
        }
    });
}

struct FloorServer(Child);

impl Drop for FloorServer {
    fn drop(&mut self) {
        self.0.kill().expect("it runs");
        self.0.wait().expect("it ends");
    }
}

fn floor(hosts: usize) -> (f64, Vec<Duration>) {
    let child = Command::new(std::env::current_exe().expect("this program"))
        .arg("--idle-floor-server")
        .stdout(Stdio::piped())
        .spawn();
    let mut server = FloorServer(child.expect("this program starts"));
    let mut address = String::new();
    BufReader::new(server.0.stdout.take().expect("piped")).read_line(&mut address).expect("an address");
    let before = rss_kib(server.0.id());
    let storm = || {
        let begun = Instant::now();
        let streams: Vec<_> = (0..hosts)
            .map(|_| {
                let mut stream = TcpStream::connect(address.trim()).expect("the server");
                stream.set_nodelay(true).expect("a TCP socket");
                stream.write_all(&[1; GREETING[0]]).expect("the server");
                stream
            })
            .collect();
        streams.iter().for_each(|mut stream| stream.read_exact(&mut [0; GREETING[1]]).expect("the server"));
        (begun.elapsed(), streams)
    };
    let (_, streams) = storm();
    let kib = (rss_kib(server.0.id()) - before) / hosts as f64;
    drop(streams);
    (kib, (0..STORMS).map(|_| storm().0).collect())
}
