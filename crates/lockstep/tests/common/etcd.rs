//! Real members of etcd on this machine, for tests and benchmarks: on free ports, each with a directory and a log, ended
//! with what holds them. The store's own tests and the benchmark include this file by its path. Nothing here waits:
//! whoever starts an etcd looks until it serves, as he waits for anything else.

#![allow(unreachable_pub, reason = "it is part of several crates")]
#![allow(dead_code, reason = "each of them uses its part")]
#![allow(clippy::unwrap_used, reason = "a test fails by it")]

use rustix::process::{Pid, Signal, WaitOptions, kill_process, waitpid};
use std::fs::{self, File};
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

/// How often a start is tried: another process may take a port between its choice and its use.
const STARTS_MAX: usize = 5;
/// How long a member may take to say whether it serves, until it is asked again.
const PATIENCE: Duration = Duration::from_secs(2);
/// What an election takes on hosts that are near each other, as docs/deploy.md has it. Leases cannot be shorter than
/// elections.
pub const NEAR: [&str; 2] = ["--heartbeat-interval=50", "--election-timeout=500"];

/// A process of etcd. Ended with this.
pub struct Member {
    args: Vec<String>,
    log: PathBuf,
    child: Option<Child>,
}

impl Drop for Member {
    fn drop(&mut self) {
        self.kill();
    }
}

impl Member {
    /// Starts it, with what it says at the end of `log`.
    pub fn start(log: PathBuf, args: Vec<String>) -> Self {
        let mut member = Self { args, log, child: None };
        member.restart();
        member
    }

    /// As a power cut would end it, but for what the system still has.
    pub fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            // It may have ended already.
            let _ = child.kill();
            child.wait().unwrap();
        }
    }

    pub fn restart(&mut self) {
        self.kill();
        let log = File::options().create(true).append(true).open(&self.log).unwrap();
        let mut command = Command::new("etcd");
        command.args(&self.args).stdin(Stdio::null()).stdout(log.try_clone().unwrap()).stderr(log);
        self.child = Some(command.spawn().expect("the Debian package etcd-server is needed"));
    }

    pub fn stop(&self) {
        self.signal(Signal::STOP);
        // A process of several threads goes on for a moment, and may yet answer.
        let stopped = waitpid(Some(self.pid()), WaitOptions::UNTRACED).unwrap();
        assert!(stopped.is_some_and(|(_, status)| status.stopped()), "{stopped:?}");
    }

    pub fn go_on(&self) {
        self.signal(Signal::CONT);
    }

    fn signal(&self, signal: Signal) {
        kill_process(self.pid(), signal).unwrap();
    }

    fn pid(&self) -> Pid {
        Pid::from_child(self.child.as_ref().unwrap())
    }

    fn has_ended(&mut self) -> bool {
        self.child.as_mut().is_none_or(|child| child.try_wait().unwrap().is_some())
    }
}

/// Where a member listens.
#[derive(Debug, Clone, Copy)]
pub struct Ports {
    pub client: u16,
    peer: u16,
    /// Over this one it says whether it serves, without certificates.
    health: u16,
}

/// An etcd of one or more members.
pub struct Members {
    pub members: Vec<Member>,
    pub ports: Vec<Ports>,
    dir: PathBuf,
    scheme: &'static str,
    more: Vec<String>,
    starts: usize,
}

impl Members {
    /// Starts so many members with their directories in `dir`. `more` are further arguments of each.
    pub fn start(dir: &Path, count: usize, more: &[&str]) -> Self {
        Self::start_with(dir, count, more, "http")
    }

    /// The same, for clients that come by `scheme`.
    pub fn start_with(dir: &Path, count: usize, more: &[&str], scheme: &'static str) -> Self {
        let more = more.iter().map(|arg| (*arg).to_owned()).collect();
        let mut started =
            Self { members: Vec::new(), ports: Vec::new(), dir: dir.to_owned(), scheme, more, starts: 0 };
        started.start_over(count);
        started
    }

    fn start_over(&mut self, count: usize) {
        self.starts += 1;
        self.members.clear();
        // All are bound before one is let go of, so that no two are the same.
        let bind = || TcpListener::bind("127.0.0.1:0").unwrap();
        let listeners: Vec<_> = (0..count).map(|_| [bind(), bind(), bind()]).collect();
        let ports = |listeners: &[TcpListener; 3]| {
            let [client, peer, health] =
                listeners.each_ref().map(|listener| listener.local_addr().unwrap().port());
            Ports { client, peer, health }
        };
        self.ports = listeners.iter().map(ports).collect();
        drop(listeners);
        self.members = (0..count).map(|at| self.start_member(at)).collect();
    }

    fn start_member(&self, at: usize) -> Member {
        let url = |scheme: &str, port: u16| format!("{scheme}://127.0.0.1:{port}");
        let Ports { client, peer, health } = self.ports[at];
        let (client, peer) = (url(self.scheme, client), url("http", peer));
        let all =
            self.ports.iter().enumerate().map(|(at, ports)| format!("m{at}={}", url("http", ports.peer)));
        let data = self.dir.join(format!("m{at}"));
        let _ = fs::remove_dir_all(&data);
        let own = [
            ("name", format!("m{at}")),
            ("data-dir", data.display().to_string()),
            ("listen-client-urls", client.clone()),
            ("advertise-client-urls", client),
            ("listen-peer-urls", peer.clone()),
            ("initial-advertise-peer-urls", peer),
            ("initial-cluster", all.collect::<Vec<_>>().join(",")),
            ("listen-metrics-urls", url("http", health)),
        ];
        let own = own.map(|(name, value)| format!("--{name}={value}"));
        Member::start(data.with_extension("log"), [&own[..], &self.more].concat())
    }

    /// Whether each of them serves. Where one has ended before that, they start over on other ports.
    pub fn serves(&mut self) -> bool {
        if self.members.iter_mut().any(Member::has_ended) {
            assert!(self.starts < STARTS_MAX, "etcd does not start: {}", self.logs());
            self.start_over(self.ports.len());
            return false;
        }
        self.ports.iter().all(|ports| is_healthy(ports.health))
    }

    fn logs(&self) -> String {
        self.members.iter().map(|member| fs::read_to_string(&member.log).unwrap_or_default()).collect()
    }

    /// The address of all members, with a prefix, as servers are told of it.
    pub fn address(&self, prefix: &str) -> String {
        self.address_of(&(0..self.ports.len()).collect::<Vec<_>>(), prefix)
    }

    /// The address of some.
    pub fn address_of(&self, members: &[usize], prefix: &str) -> String {
        let all: Vec<_> = members.iter().map(|at| format!("127.0.0.1:{}", self.ports[*at].client)).collect();
        let scheme = if self.scheme == "https" { "etcds" } else { "etcd" };
        format!("{scheme}://{}/{prefix}", all.join(","))
    }
}

/// Whether a member can read what a majority has.
fn is_healthy(port: u16) -> bool {
    let ask = || {
        let mut stream = TcpStream::connect(("127.0.0.1", port))?;
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.write_all(b"GET /health HTTP/1.0\r\n\r\n")?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        Ok::<_, std::io::Error>(answer)
    };
    ask().is_ok_and(|answer| answer.contains(r#""health":"true""#))
}
