//! From one active server to the next: killed, or asked to step down; until the next one has acknowledged a write.

use super::member::Members;
use crate::load::Server;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc;
use std::time::{Duration, Instant};

/// Whoever waits for the next server asks each of the others again after so long.
const ASK_AGAIN: Duration = Duration::from_millis(2);
/// No server is waited for longer, whatever for.
const WAIT_MAX: Duration = Duration::from_secs(30);
/// A server that has stepped down leaves the others alone for a while. All are to take part in each succession.
const BETWEEN: Duration = Duration::from_millis(2500);
/// How much longer it is until the next succession than until the one before, and after how many it is that short
/// again: a reign's lease is renewed every so often, and each is to strike another moment of that.
const LATER: Duration = Duration::from_millis(137);
const PHASES: usize = 5;
const SERVERS: usize = 3;

/// Servers on one etcd.
pub(super) struct Servers {
    program: PathBuf,
    store: String,
    running: Vec<Server>,
}

/// How one active server goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum End {
    Killed,
    SteppedDown,
}

impl Servers {
    pub(super) fn start(program: &Path, members: &Members) -> Self {
        let mut servers =
            Self { program: program.to_owned(), store: members.address("lockstep"), running: Vec::new() };
        for place in 0..SERVERS {
            let server = servers.start_one(place);
            servers.running.push(server);
        }
        servers
    }

    fn start_one(&self, place: usize) -> Server {
        let name = format!("s{place}");
        Server::start_on(&self.program, &["--store", &self.store, "--name", &name], PathBuf::new())
    }

    /// The times of so many successions.
    pub(super) fn succeed(&mut self, end: End, runs: usize) -> Vec<Duration> {
        (0..runs).map(|run| self.succeed_once(end, LATER * (run % PHASES) as u32)).collect()
    }

    fn succeed_once(&mut self, end: End, later: Duration) -> Duration {
        let mut active = None;
        wait_for("one active server and standbys", || {
            let roles: Vec<_> =
                self.running.iter().map(|server| ask(&server.address, &get("/readyz"))).collect();
            let is = |role: &str| {
                let said = format!("\"role\":\"{role}\"");
                roles.iter().map(|answer| answer.contains(&said)).collect::<Vec<_>>()
            };
            // One that has just stepped down stands by, and for a moment nobody is active.
            active = is("active").iter().position(|is| *is);
            active.is_some() && is("standby").iter().filter(|is| **is).count() == SERVERS - 1
        });
        let active = active.expect("it was waited for");
        std::thread::sleep(BETWEEN + later);
        let mut addresses: Vec<String> = self.running.iter().map(|server| server.address.clone()).collect();
        let address = addresses.remove(active);
        let is_done = AtomicBool::new(false);
        let (told, acknowledged) = mpsc::channel();
        let time = std::thread::scope(|scope| {
            let begun = Instant::now();
            match end {
                End::Killed => drop(self.running.remove(active)),
                End::SteppedDown => {
                    scope.spawn(|| {
                        let answer = ask(&address, &post("/v1/server/step-down", ""));
                        assert!(answer.contains("stepped-down"), "{answer}");
                    });
                }
            }
            for address in &addresses {
                let (told, is_done) = (told.clone(), &is_done);
                scope.spawn(move || {
                    while !is_done.load(Ordering::Relaxed) && begun.elapsed() < WAIT_MAX {
                        let freeze = post("/v1/freezes", r#"{"reason":"succession","for_ms":1000}"#);
                        if ask(address, &freeze).starts_with("HTTP/1.1 200") {
                            let _ = told.send(begun.elapsed());
                            return;
                        }
                        std::thread::sleep(ASK_AGAIN);
                    }
                });
            }
            drop(told);
            let time = acknowledged.recv().expect("another server takes over");
            is_done.store(true, Ordering::Relaxed);
            time
        });
        if end == End::Killed {
            let server = self.start_one(active);
            self.running.insert(active, server);
        }
        time
    }
}

/// Waits until a server may decide.
pub(super) fn wait_active(address: &str) {
    wait_for("an active server", || ask(address, &get("/readyz")).contains("\"role\":\"active\""));
}

pub(super) fn wait_for(what: &str, mut is_so: impl FnMut() -> bool) {
    let begun = Instant::now();
    while !is_so() {
        assert!(begun.elapsed() < WAIT_MAX, "waited for {what} in vain");
        std::thread::sleep(Duration::from_millis(20));
    }
}

fn get(path: &str) -> String {
    format!("GET {path} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n")
}

fn post(path: &str, body: &str) -> String {
    let len = body.len();
    format!(
        "POST {path} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\
         content-type: application/json\r\ncontent-length: {len}\r\n\r\n{body}"
    )
}

/// The whole answer; nothing from a server that is away.
fn ask(address: &str, request: &str) -> String {
    let mut answer = String::new();
    let address: SocketAddr = address.parse().expect("an address");
    let asked = TcpStream::connect_timeout(&address, WAIT_MAX).and_then(|mut stream| {
        stream.set_read_timeout(Some(WAIT_MAX))?;
        stream.write_all(request.as_bytes())?;
        stream.read_to_string(&mut answer)
    });
    asked.map_or_else(|_| String::new(), |_| answer)
}
