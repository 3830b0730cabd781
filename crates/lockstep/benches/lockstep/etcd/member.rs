//! Members of a real etcd, on ports and in directories of their own.

use etcd_client::{Client, Txn, TxnOp};
use std::fs::File;
use std::net::TcpListener;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};
use tokio::runtime::Runtime;

/// Within how long members find each other, or the benchmark gives up.
const START_MAX: Duration = Duration::from_secs(30);
/// What an election takes on hosts that are near each other, as docs/deploy.md has it.
pub(super) const NEAR: [&str; 2] = ["--heartbeat-interval=50", "--election-timeout=500"];

/// An etcd, ended with this.
pub(super) struct Members {
    children: Vec<Child>,
    pub(super) urls: Vec<String>,
}

impl Members {
    /// Starts so many members over empty directories in `dir`.
    pub(super) fn start(runtime: &Runtime, dir: &Path, count: usize, more: &[&str]) -> Self {
        // All are bound before one is let go of, so that no two are the same.
        let listeners: Vec<_> =
            (0..count * 2).map(|_| TcpListener::bind("127.0.0.1:0").expect("a free port")).collect();
        let urls: Vec<String> = listeners
            .iter()
            .map(|listener| format!("http://{}", listener.local_addr().expect("an address")))
            .collect();
        drop(listeners);
        let (clients, peers) = urls.split_at(count);
        let cluster: Vec<_> =
            peers.iter().enumerate().map(|(place, url)| format!("m{place}={url}")).collect();
        let cluster = cluster.join(",");
        let start = |(place, (client, peer)): (usize, (&String, &String))| {
            let name = format!("m{place}");
            let place = dir.join(format!("etcd-{count}-{name}"));
            let _ = std::fs::remove_dir_all(&place);
            let log = File::create(place.with_extension("log")).expect("a file");
            Command::new("etcd")
                .args(["--name", &name, "--data-dir"])
                .arg(place)
                .args(["--listen-client-urls", client, "--advertise-client-urls", client])
                .args(["--listen-peer-urls", peer, "--initial-advertise-peer-urls", peer])
                .args(["--initial-cluster", &cluster])
                .args(more)
                .stdin(Stdio::null())
                .stdout(log.try_clone().expect("a file"))
                .stderr(log)
                .spawn()
                .expect("etcd is installed: Debian's etcd-server")
        };
        let children = clients.iter().zip(peers).enumerate().map(start).collect();
        let started = Self { children, urls: clients.to_vec() };
        runtime.block_on(started.answer());
        started
    }

    /// Waits until each of them carries out a write.
    async fn answer(&self) {
        let begun = Instant::now();
        for url in &self.urls {
            loop {
                let asked = async { Client::connect([url], None).await?.put("ready", "", None).await };
                match asked.await {
                    Ok(_) => break,
                    Err(error) => {
                        assert!(begun.elapsed() < START_MAX, "etcd does not answer: {error}");
                        tokio::time::sleep(Duration::from_millis(50)).await;
                    }
                }
            }
        }
    }

    /// As servers are told of it.
    pub(super) fn store(&self) -> String {
        let hosts: Vec<_> = self.urls.iter().map(|url| url.trim_start_matches("http://")).collect();
        format!("etcd://{}/lockstep", hosts.join(","))
    }
}

impl Drop for Members {
    fn drop(&mut self) {
        for child in &mut self.children {
            // It may have ended already.
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// A client that writes to one member and waits for nothing else.
pub(super) struct Bare(Client);

impl Bare {
    /// Asks the member that servers ask too.
    pub(super) async fn connect(members: &Members) -> Self {
        Self(Client::connect([&members.urls[0]], None).await.expect("etcd"))
    }

    /// The time of one put of so many bytes.
    pub(super) async fn put(&mut self, bytes: usize) -> Duration {
        let begun = Instant::now();
        self.0.put("bare", vec![b'x'; bytes], None).await.expect("etcd");
        begun.elapsed()
    }

    /// The time of one transaction as an append has it: two conditions, so many bytes, and a number.
    pub(super) async fn append(&mut self, bytes: usize) -> Duration {
        use etcd_client::{Compare, CompareOp};
        let absent = |key: &str| Compare::create_revision(key, CompareOp::Equal, 0);
        let puts = [TxnOp::put("bare", vec![b'x'; bytes], None), TxnOp::put("bare-head", "1", None)];
        let txn = Txn::new().when([absent("absent"), absent("absent-too")]).and_then(puts);
        let begun = Instant::now();
        self.0.txn(txn).await.expect("etcd");
        begun.elapsed()
    }

    /// The revision of all that was written.
    pub(super) async fn revision(&mut self) -> i64 {
        let answer = self.0.get("bare", None).await.expect("etcd");
        answer.header().expect("every answer has one").revision()
    }
}
