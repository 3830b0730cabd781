//! Real members of etcd, for the tests: on free ports, in a directory of their own, ended by their own handles.

use crate::cli::option::EtcdOptions;
use crate::store::{Error, Etcd};
use rustix::process::{Pid, Signal, kill_process};
use std::collections::BTreeSet;
use std::fs::{self, File};
use std::net::TcpListener;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// How long anything may take that a test waits for.
const WAIT: Duration = Duration::from_secs(30);
/// How often a condition is looked at.
const LOOK: Duration = Duration::from_millis(20);
/// How often a start is tried: another process may take a port between its choice and its use.
const STARTS_MAX: usize = 5;

/// Looks until `condition` holds.
pub(in crate::store) async fn until<T>(what: &str, mut condition: impl AsyncFnMut() -> Option<T>) -> T {
    let begun = Instant::now();
    loop {
        if let Some(done) = condition().await {
            return done;
        }
        assert!(begun.elapsed() < WAIT, "waited in vain: {what}");
        tokio::time::sleep(LOOK).await;
    }
}

/// An etcd of one or more members.
pub(in crate::store) struct Members {
    pub(in crate::store) dir: tempfile::TempDir,
    pub(in crate::store) members: Vec<Member>,
    pub(in crate::store) options: EtcdOptions,
    scheme: &'static str,
}

pub(in crate::store) struct Member {
    args: Vec<String>,
    log: std::path::PathBuf,
    pub(in crate::store) client: u16,
    child: Option<Child>,
}

impl Drop for Member {
    fn drop(&mut self) {
        self.kill();
    }
}

impl Member {
    fn start(&mut self) {
        assert!(self.child.is_none());
        let log = File::options().create(true).append(true).open(&self.log).unwrap();
        let mut command = Command::new("etcd");
        command.args(&self.args).stdin(Stdio::null()).stdout(log.try_clone().unwrap()).stderr(log);
        self.child = Some(command.spawn().expect("the tests need the Debian package etcd-server"));
    }

    /// As a power cut would end it, but for what the system still has.
    pub(in crate::store) fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }

    pub(in crate::store) fn restart(&mut self) {
        self.kill();
        self.start();
    }

    fn has_ended(&mut self) -> bool {
        self.child.as_mut().is_none_or(|child| child.try_wait().unwrap().is_some())
    }

    fn signal(&self, signal: Signal) {
        let child = self.child.as_ref().unwrap();
        kill_process(Pid::from_child(child), signal).unwrap();
    }

    pub(in crate::store) fn stop(&self) {
        self.signal(Signal::STOP);
    }

    pub(in crate::store) fn go_on(&self) {
        self.signal(Signal::CONT);
    }
}

fn free_ports(count: usize) -> Vec<u16> {
    let listeners: Vec<_> = (0..count).map(|_| TcpListener::bind("127.0.0.1:0").unwrap()).collect();
    listeners.iter().map(|listener| listener.local_addr().unwrap().port()).collect()
}

fn copy(from: &Path, to: &Path) {
    fs::create_dir(to).unwrap();
    for entry in fs::read_dir(from).unwrap().map(Result::unwrap) {
        let to = to.join(entry.file_name());
        if entry.path().is_dir() { copy(&entry.path(), &to) } else { _ = fs::copy(entry.path(), to).unwrap() }
    }
}

impl Members {
    /// Starts so many members, and waits until they serve. `more` are further arguments of each.
    pub(in crate::store) async fn start(count: usize, more: &[&str]) -> Self {
        Self::start_with(tempfile::tempdir().unwrap(), count, more, "http", EtcdOptions::default()).await
    }

    /// The same, with clients' certificates.
    pub(in crate::store) async fn start_with(
        dir: tempfile::TempDir,
        count: usize,
        more: &[&str],
        scheme: &'static str,
        options: EtcdOptions,
    ) -> Self {
        let mut started = Members { dir, members: Vec::new(), options, scheme };
        for _ in 0..STARTS_MAX {
            started.lay_out(count, more);
            started.members.iter_mut().for_each(Member::start);
            let serves = until("etcd starts", async || {
                if started.members.iter_mut().any(Member::has_ended) {
                    return Some(false);
                }
                started.open("first").await.is_ok().then_some(true)
            });
            if serves.await {
                return started;
            }
        }
        panic!("etcd does not start: {}", started.logs());
    }

    fn lay_out(&mut self, count: usize, more: &[&str]) {
        self.members.clear();
        let ports = free_ports(2 * count);
        let (clients, peers) = ports.split_at(count);
        let all: Vec<String> = (0..count).map(|at| format!("m{at}=http://127.0.0.1:{}", peers[at])).collect();
        for at in 0..count {
            let (data, log) =
                (self.dir.path().join(format!("m{at}")), self.dir.path().join(format!("m{at}.log")));
            let _ = fs::remove_dir_all(&data);
            let client = format!("{}://127.0.0.1:{}", self.scheme, clients[at]);
            let peer = format!("http://127.0.0.1:{}", peers[at]);
            let mut args: Vec<String> = [
                ("name", format!("m{at}")),
                ("data-dir", data.display().to_string()),
                ("listen-client-urls", client.clone()),
                ("advertise-client-urls", client),
                ("listen-peer-urls", peer.clone()),
                ("initial-advertise-peer-urls", peer),
                ("initial-cluster", all.join(",")),
                // Elections on one machine need no more, and leases cannot be shorter than elections.
                ("heartbeat-interval", "50".to_owned()),
                ("election-timeout", "500".to_owned()),
            ]
            .map(|(name, value)| format!("--{name}={value}"))
            .into();
            args.extend(more.iter().map(|arg| (*arg).to_owned()));
            self.members.push(Member { args, log, client: clients[at], child: None });
        }
    }

    /// Keeps a copy of what its only member has stored.
    pub(in crate::store) fn keep_copy(&mut self) {
        self.members[0].kill();
        copy(&self.dir.path().join("m0"), &self.dir.path().join("copy"));
        self.members[0].start();
    }

    /// Sets it back to that copy.
    pub(in crate::store) fn set_back(&mut self) {
        self.members[0].kill();
        let data = self.dir.path().join("m0");
        fs::remove_dir_all(&data).unwrap();
        copy(&self.dir.path().join("copy"), &data);
        self.members[0].start();
    }

    /// The address of all members, with a prefix.
    pub(in crate::store) fn address(&self, prefix: &str) -> String {
        self.address_of(&(0..self.members.len()).collect::<Vec<_>>(), prefix)
    }

    /// The address of some.
    pub(in crate::store) fn address_of(&self, members: &[usize], prefix: &str) -> String {
        let all: Vec<String> =
            members.iter().map(|at| format!("127.0.0.1:{}", self.members[*at].client)).collect();
        let scheme = if self.scheme == "https" { "etcds" } else { "etcd" };
        format!("{scheme}://{}/{prefix}", all.join(","))
    }

    pub(in crate::store) async fn open(&self, prefix: &str) -> Result<Etcd, Error> {
        Etcd::open(&self.address(prefix), &self.options).await
    }

    fn logs(&self) -> String {
        let files: BTreeSet<_> = self.members.iter().map(|member| member.log.as_path()).collect();
        files.into_iter().map(|path: &Path| fs::read_to_string(path).unwrap_or_default()).collect()
    }
}
