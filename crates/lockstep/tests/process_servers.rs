//! Several servers on one etcd: real processes, killed, stopped and asked to step down.

#![cfg(feature = "etcd")]
#![allow(clippy::unwrap_used, reason = "a test fails by it")]

mod common;

use common::etcd::{Members, NEAR};
use common::{Process, calls, host, http, listening, lockstep, wait_for};
use rustix::process::Signal;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, mpsc};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};
use tempfile::TempDir;

const SPEC: &str = "cluster = \"shop\"\n[groups.db]\nselect = { role = \"db\" }\nhandler = \"sh\"\n\
    deadlines_ms = { check = 40000, prepare = 40000, commit = 60000 }\n";

/// How long servers may take to take over from one that was killed, on a machine with work to do.
const TAKE_OVER: Duration = Duration::from_secs(15);

/// What is between a server and etcd, and may swallow all that is said, or take its time with it.
struct Relay {
    port: u16,
    link: Arc<Link>,
}

#[derive(Default)]
struct Link {
    is_cut: AtomicBool,
    /// How long anything takes, each way.
    delay_ms: AtomicU64,
}

impl Relay {
    fn start(to: u16) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let relay = Self { port, link: Arc::default() };
        let link = relay.link.clone();
        // They end with the test, or with either end.
        std::thread::spawn(move || {
            for stream in listener.incoming().map_while(Result::ok) {
                let Ok(other) = TcpStream::connect(("127.0.0.1", to)) else { continue };
                for (from, to) in [(&stream, &other), (&other, &stream)] {
                    let (from, to) = (from.try_clone().unwrap(), to.try_clone().unwrap());
                    let (link, (taken, due)) = (link.clone(), mpsc::channel());
                    std::thread::spawn(move || take(from, &link, &taken));
                    std::thread::spawn(move || pass(&due, to));
                }
            }
        });
        relay
    }

    fn cut(&self, is_cut: bool) {
        self.link.is_cut.store(is_cut, Ordering::SeqCst);
    }

    fn delay(&self, each_way: Duration) {
        self.link.delay_ms.store(u64::try_from(each_way.as_millis()).unwrap(), Ordering::SeqCst);
    }
}

/// Takes what one end says, and notes when the other one hears it.
fn take(mut from: TcpStream, link: &Link, taken: &mpsc::Sender<(Instant, Vec<u8>)>) {
    let mut bytes = [0; 1 << 14];
    loop {
        let count = from.read(&mut bytes).unwrap_or(0);
        let due = Instant::now() + Duration::from_millis(link.delay_ms.load(Ordering::SeqCst));
        let is_lost = count > 0 && link.is_cut.load(Ordering::SeqCst);
        // Nothing after the end of it; none where the other end has gone.
        if !is_lost && (taken.send((due, bytes[..count].to_vec())).is_err() || count == 0) {
            return;
        }
    }
}

fn pass(due: &mpsc::Receiver<(Instant, Vec<u8>)>, mut to: TcpStream) {
    while let Ok((due, bytes)) = due.recv() {
        std::thread::sleep(due.saturating_duration_since(Instant::now()));
        if bytes.is_empty() || to.write_all(&bytes).is_err() {
            break;
        }
    }
    // The other direction ends by it.
    let _ = to.shutdown(std::net::Shutdown::Both);
}

/// Servers `s1` to `s3` on one etcd, and agents that know all of them.
struct Servers {
    dir: PathBuf,
    servers: BTreeMap<String, (Process, SocketAddr)>,
    agents: BTreeMap<String, Process>,
    etcd: Members,
    relay: Relay,
    temporary: Option<TempDir>,
}

impl Drop for Servers {
    fn drop(&mut self) {
        // Handlers that outlive a killed agent end by this.
        let _ = fs::write(self.dir.join("ended"), "");
        if std::thread::panicking()
            && let Some(temporary) = self.temporary.take()
        {
            eprintln!("logs and data are kept in {}", temporary.keep().display());
        }
    }
}

impl Servers {
    fn start(etcd: &[&str]) -> Self {
        let temporary = host();
        let dir = temporary.path().to_owned();
        let mut etcd = Members::start(&dir, 1, etcd);
        wait_for("etcd", || etcd.serves());
        let relay = Relay::start(etcd.ports[0].client);
        let (servers, agents) = Default::default();
        let mut started = Self { dir, servers, agents, etcd, relay, temporary: Some(temporary) };
        // The first one is the active one, and reaches etcd through the relay.
        for name in ["s1", "s2", "s3"] {
            started.start_server(name, "127.0.0.1:0");
            assert_eq!(started.active(), "s1");
        }
        wait_for("every server to know who is active", || {
            let known = started.servers.values().map(|(_, address)| says(*address));
            known.into_iter().all(|says| says.is_some_and(|says| !says["active"].is_null()))
        });
        started
    }

    fn start_server(&mut self, name: &str, listen: &str) {
        let port = if name == "s1" { self.relay.port } else { self.etcd.ports[0].client };
        let store = format!("etcd://127.0.0.1:{port}/lockstep");
        let args = ["server", "--store", &store, "--name", name, "--listen", listen];
        let mut server = Process::start(&self.dir, name, &args);
        let times = server.said().matches("listening on http://").count();
        let address = listening(&mut server, times.max(1));
        self.servers.insert(name.to_owned(), (server, address));
    }

    /// As a supervisor would.
    fn restart_server(&mut self, name: &str) {
        let (mut server, address) = self.servers.remove(name).unwrap();
        server.kill();
        self.start_server(name, &address.to_string());
    }

    fn addresses(&self) -> Vec<String> {
        self.servers.values().map(|(_, address)| format!("http://{address}")).collect()
    }

    /// Two databases that are online, on hosts a and b.
    fn with_agents(self) -> Self {
        self.with_agents_of(SPEC)
    }

    fn with_agents_of(mut self, spec: &str) -> Self {
        fs::write(self.dir.join("cluster.toml"), spec).unwrap();
        let (exit, _, said) = self.lockstep(&["apply", "-f", "cluster.toml"]);
        assert_eq!(exit, 0, "{said}");
        let servers = self.addresses().join(",");
        for name in ["a", "b"] {
            fs::write(self.dir.join(format!("db@{name}.state")), "online\n").unwrap();
            let data = format!("data-{name}");
            let args = ["agent", "--server", &servers, "--name", name, "--label", "role=db", "--data", &data];
            let agent = Process::start(&self.dir, name, &[&args[..], &["--config", "agent.toml"]].concat());
            self.agents.insert(name.to_owned(), agent);
        }
        wait_for("both members to be online", || {
            self.items("/v1/members").iter().filter(|member| member["actual"] == "online").count() == 2
        });
        self
    }

    fn lockstep(&self, args: &[&str]) -> (i32, String, String) {
        lockstep(&self.dir, None, &[args, &["--addr", &self.addresses().join(",")]].concat())
    }

    /// Starts the command line, and goes on.
    fn lockstep_beside(&self, args: &[&str]) -> JoinHandle<(i32, String, String)> {
        let (dir, addresses) = (self.dir.clone(), self.addresses().join(","));
        let args: Vec<String> = args.iter().map(|arg| (*arg).to_owned()).collect();
        std::thread::spawn(move || {
            let args: Vec<&str> = args.iter().map(String::as_str).collect();
            lockstep(&dir, None, &[&args[..], &["--addr", &addresses]].concat())
        })
    }

    /// The name of the active server, as soon as there is one.
    #[track_caller]
    fn active(&self) -> String {
        let mut active = None;
        wait_for("an active server", || {
            active = self.servers.iter().find(|(_, (_, address))| is_ready(*address, "active"));
            active.is_some()
        });
        active.unwrap().0.clone()
    }

    fn address(&self, name: &str) -> SocketAddr {
        self.servers[name].1
    }

    /// One that stands by.
    fn standby(&self) -> String {
        let active = self.active();
        self.servers.keys().find(|name| **name != active).unwrap().clone()
    }

    /// What any of the servers answers to a `GET`.
    fn get(&self, path: &str) -> Option<Value> {
        let mut answers = self.servers.values().filter_map(|(_, address)| http(*address, "GET", path, None));
        answers.find(|(status, _)| *status == 200).map(|(_, body)| body)
    }

    fn items(&self, path: &str) -> Vec<Value> {
        let list = self.get(&format!("{path}?consistent=true")).unwrap_or_default();
        list["items"].as_array().cloned().unwrap_or_default()
    }

    /// The transition that a request asked for.
    #[track_caller]
    fn asked(&self, request_id: &str, is_so: impl Fn(&Value) -> bool) -> Value {
        let mut found = None;
        wait_for(&format!("the transition of {request_id}"), || {
            let all = self.items("/v1/transitions");
            found = all.into_iter().find(|one| one["request_id"] == request_id).filter(|one| is_so(one));
            found.is_some()
        });
        found.unwrap()
    }

    fn block(&self, member: &str, phase: &str) {
        fs::write(self.dir.join(format!("{member}.{phase}.wait")), "").unwrap();
    }

    #[track_caller]
    fn wait_blocked(&self, member: &str, phase: &str) {
        let waits = self.dir.join(format!("{member}.{phase}.waits"));
        wait_for(&format!("{member} to wait in {phase}"), || waits.exists());
    }

    fn unblock(&self, member: &str, phase: &str) {
        fs::remove_file(self.dir.join(format!("{member}.{phase}.wait"))).unwrap();
    }

    fn kill(&mut self, name: &str) {
        self.servers.get_mut(name).unwrap().0.kill();
    }
}

/// What a server says of itself.
fn says(address: SocketAddr) -> Option<Value> {
    http(address, "GET", "/v1/server", None).map(|(_, body)| body)
}

fn is_ready(address: SocketAddr, role: &str) -> bool {
    // One that is stopped takes connections and says nothing.
    let Ok(mut stream) = TcpStream::connect_timeout(&address, Duration::from_secs(1)) else { return false };
    stream.set_read_timeout(Some(Duration::from_millis(300))).unwrap();
    let asked = write!(stream, "GET /readyz HTTP/1.0\r\nhost: {address}\r\n\r\n");
    let answer = BufReader::new(stream).lines().map_while(Result::ok).last().unwrap_or_default();
    asked.is_ok() && answer.contains(&format!("\"role\":\"{role}\""))
}

fn body(targets: &[&str], request_id: &str) -> Value {
    json!({ "targets": targets, "request_id": request_id })
}

#[test]
fn a_decision_is_carried_out_by_the_next_server_and_run_waits_through_it() {
    let mut servers = Servers::start(&NEAR).with_agents();
    let first = servers.active();
    servers.block("db@a", "commit");
    let run = servers.lockstep_beside(&["run", "db=offline", "--request-id", "once", "-o", "json"]);
    servers.wait_blocked("db@a", "commit");
    let decided = servers.asked("once", |one| one["decision"] == "commit");
    servers.kill(&first);
    servers.unblock("db@a", "commit");
    let (exit, said, errors) = run.join().unwrap();
    assert_eq!(exit, 0, "{said} {errors}");
    let done: Value = serde_json::from_str(&said).unwrap();
    assert_eq!((&done["id"], &done["outcome"]), (&decided["id"], &json!("committed")));
    for member in ["db@a", "db@b"] {
        assert_eq!(calls(&servers.dir, member, "begin commit").len(), 1, "{member}: each step once");
        assert_eq!(calls(&servers.dir, member, "begin undo"), [""; 0]);
    }
    // The same request means the same transition, to every server.
    let second = servers.active();
    assert_ne!(first, second);
    let again = body(&["db=offline"], "once");
    let (status, answer) = http(servers.address(&second), "POST", "/v1/transitions", Some(&again)).unwrap();
    assert_eq!((status, &answer["id"]), (202, &decided["id"]));
    servers.restart_server(&first);
    let (exit, said, errors) = servers.lockstep(&["run", "db=offline", "--request-id", "once", "-o", "json"]);
    let again: Value = serde_json::from_str(&said).unwrap_or_default();
    assert_eq!((exit, &again["id"]), (0, &decided["id"]), "{said} {errors}");
}

#[test]
fn what_is_asked_for_while_nobody_is_active_is_done_by_who_takes_over() {
    let mut servers = Servers::start(&NEAR).with_agents();
    let first = servers.active();
    servers.kill(&first);
    let began = Instant::now();
    let (exit, said, errors) = servers.lockstep(&["run", "db=offline"]);
    assert_eq!(exit, 0, "{said} {errors}");
    assert!(began.elapsed() < TAKE_OVER, "{:?}", began.elapsed());
    // So is what is not asked for again by itself.
    servers.restart_server(&first);
    let second = servers.active();
    servers.kill(&second);
    let (exit, said, errors) = servers.lockstep(&["freeze", "--for", "1h", "--reason", "audit"]);
    assert_eq!(exit, 0, "{said} {errors}");
    let hosts = servers.items("/v1/hosts");
    assert!(hosts.iter().all(|host| host["liveness"] != "lost"), "{hosts:?}");
}

#[test]
fn a_server_says_that_it_waits_for_etcd_and_goes_on_when_it_is_there() {
    let dir = tempfile::tempdir().unwrap();
    let mut etcd = Members::start(dir.path(), 1, &NEAR);
    wait_for("etcd", || etcd.serves());
    etcd.members[0].kill();
    let port = etcd.ports[0].client;
    let store = format!("etcd://127.0.0.1:{port}");
    let args = ["server", "--store", &store, "--name", "s1", "--listen", "127.0.0.1:0"];
    let mut server = Process::start(dir.path(), "s1", &args);
    let address = listening(&mut server, 1);
    let ready = || http(address, "GET", "/readyz", None).unwrap();
    let why = format!("etcd does not answer: http://127.0.0.1:{port}: Connection refused");
    wait_for("it to say why it is not ready", || {
        let (status, body) = ready();
        assert_eq!(status, 503);
        body["detail"].as_str().is_some_and(|detail| detail.starts_with(&why))
    });
    let (status, body) = http(address, "POST", "/v1/transitions", Some(&body(&["db=up"], "early"))).unwrap();
    assert_eq!((status, &body["code"]), (503, &json!("not-active")), "{body}");
    let (exit, _, said) = lockstep(dir.path(), Some(address), &["status"]);
    assert!(exit == 1 && said.contains(&format!("no server is active: s1 starts; s1: {why}")), "{said}");
    wait_for("its log to say so", || {
        server.said().contains("WARN lockstep::store::etcd::silence: etcd has not")
    });
    etcd.members[0].restart();
    wait_for("it to be ready", || ready().0 == 200);
    let said = server.said();
    assert!(said.contains("etcd answers again, after "), "{said}");
    assert!(said.contains(&format!("127.0.0.1:{port} under /lockstep/")), "{said}");
    // It can be told to stop while it waits.
    etcd.members[0].kill();
    let mut waiting = Process::start(
        dir.path(),
        "s2",
        &["server", "--store", &store, "--name", "s2", "--listen", "127.0.0.1:0"],
    );
    listening(&mut waiting, 1);
    waiting.signal(Signal::TERM);
    assert_eq!(waiting.exit(), Some(0));
}

#[test]
fn that_nobody_is_active_is_said() {
    let mut servers = Servers::start(&NEAR);
    servers.etcd.members[0].kill();
    wait_for("all to stand by", || {
        servers.servers.values().all(|(_, address)| is_ready(*address, "standby"))
    });
    let (exit, said, _) = servers.lockstep(&["status", "-o", "json"]);
    let wrong = &serde_json::from_str::<Value>(&said).unwrap()["wrong"];
    let problem = wrong[0]["problem"].as_str().unwrap();
    assert!(
        exit == 0 && problem.starts_with("no server is active: what is shown was last read by s"),
        "{said}"
    );
    wait_for("each server to say what it waits for", || {
        let (_, said, _) = servers.lockstep(&["status"]);
        ["s1", "s2", "s3"].iter().all(|name| {
            said.contains(&format!("the server {name} waits for its store: etcd does not answer: http://"))
        })
    });
    let (_, said, _) = servers.lockstep(&["status"]);
    assert!(said.contains("s1 standby at revision") && said.contains("s2 standby at revision"), "{said}");
    let none = "error: no server is active: s1, s2, s3 stand by; s1: etcd does not answer: http://";
    let help = "help: see their logs and docs/etcd.md; lockstep status shows what was last read\n";
    let (exit, _, said) = servers.lockstep(&["run", "db=online", "--wait", "1s"]);
    assert!(exit == 1 && said.contains(none) && said.ends_with(help), "{said}");
    assert!(said.contains("no server is active yet: s1, s2, s3 stand by; s1: etcd"), "{said}");
    let (exit, _, said) = servers.lockstep(&["server", "step-down"]);
    assert!(exit == 1 && said.starts_with(none) && said.ends_with(help), "{said}");
    // What they have read last is kept all the same.
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("shop.backup").display().to_string();
    let (exit, _, said) = servers.lockstep(&["backup", &file]);
    assert!(exit == 0 && said.contains("note: it may lack what was acknowledged last: "), "{said}");
    // Whoever stands by would send it on to one that is gone.
    servers.kill("s1");
    let gone = format!("s2, s3 stand by; http://{} does not answer", servers.address("s1"));
    let (exit, _, said) = servers.lockstep(&["run", "db=online", "--wait", "1s"]);
    assert!(exit == 1 && said.contains(&format!("error: no server is active: {gone}; s2: etcd")), "{said}");
}

#[test]
fn stepping_down_under_load_loses_nothing_and_hands_over_at_once() {
    let servers = Servers::start(&NEAR).with_agents();
    let load: Vec<_> = (0..20)
        .map(|number| {
            let id = format!("load-{number}");
            let target = if number % 2 == 0 { "db=offline" } else { "db=online" };
            servers.lockstep_beside(&["run", target, "--request-id", &id, "--no-wait"])
        })
        .collect();
    let mut took = Vec::new();
    for _ in 0..3 {
        let before = servers.active();
        let began = Instant::now();
        let (exit, said, errors) = servers.lockstep(&["server", "step-down", "-o", "json"]);
        assert_eq!(exit, 0, "{said} {errors}");
        took.push(began.elapsed());
        let now: Value = serde_json::from_str(&said).unwrap();
        assert_ne!(now["name"], before, "{said} {errors}");
        assert!(servers.servers[&before].0.said().contains("stepped down"));
    }
    for run in load {
        let (exit, said, errors) = run.join().unwrap();
        assert_eq!(exit, 0, "{said} {errors}");
    }
    let asked = servers.items("/v1/transitions");
    let ids: Vec<_> = asked.iter().filter_map(|one| one["request_id"].as_str()).collect();
    let load = ids.iter().filter(|id| id.starts_with("load-")).count();
    assert!((1..=20).contains(&load), "each at most once: {ids:?}");
    assert!(took.iter().all(|took| *took < Duration::from_secs(10)), "{took:?}");
}

#[test]
fn a_stopped_server_wakes_up_deposed_writes_nothing_and_sends_on() {
    let mut servers = Servers::start(&NEAR).with_agents();
    let first = servers.active();
    let address = servers.address(&first);
    servers.servers[&first].0.signal(Signal::STOP);
    // Something waits for it when it wakes up.
    let late = std::thread::spawn(move || {
        http(address, "POST", "/v1/transitions", Some(&body(&["db=offline"], "late"))).unwrap()
    });
    let second = servers.active();
    assert_ne!(first, second);
    let (exit, _, said) = servers.lockstep_by(&second, &["run", "db=offline", "--request-id", "other"]);
    assert_eq!(exit, 0, "{said}");
    let reigns = |servers: &Servers| events(servers.address(&second), 0, false, |_| false);
    let before = reigns(&servers);
    servers.servers[&first].0.signal(Signal::CONT);
    let (status, answer) = late.join().unwrap();
    assert!(status == 503 || status == 307, "{status} {answer}");
    wait_for("it to stand by", || is_ready(address, "standby"));
    wait_for("it to know who is active", || {
        says(address).is_some_and(|says| says["active"]["name"] == second.as_str())
    });
    let (status, _) = http(address, "POST", "/v1/transitions", Some(&body(&["db=online"], "sent"))).unwrap();
    assert_eq!(status, 307);
    let after = reigns(&servers);
    let is_foreign = |event: &Value| event["kind"] == "request" && event["request_id"] == "late";
    assert!(!after.iter().any(is_foreign), "{after:?}");
    let reign = |event: &&Value| event["kind"] == "reign";
    assert_eq!(after.iter().filter(reign).count(), before.iter().filter(reign).count());
    let (_, spec) = http(address, "GET", "/v1/members?consistent=true", None).unwrap();
    assert!(spec["items"].as_array().unwrap().iter().all(|member| member["actual"] == "offline"), "{spec}");
    assert!(servers.servers.get_mut(&first).unwrap().0.is_running());
}

impl Servers {
    fn lockstep_by(&self, name: &str, args: &[&str]) -> (i32, String, String) {
        lockstep(&self.dir, Some(self.address(name)), args)
    }
}

/// Reads events until one is what is waited for, or the stream ends.
fn events(
    address: SocketAddr,
    since: u64,
    follow: bool,
    mut is_last: impl FnMut(&Value) -> bool,
) -> Vec<Value> {
    let mut stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(common::STUCK)).unwrap();
    let path = format!("/v1/events?since={since}&follow={follow}");
    write!(stream, "GET {path} HTTP/1.0\r\nhost: {address}\r\n\r\n").unwrap();
    let mut events = Vec::new();
    for line in BufReader::new(stream).lines().map_while(Result::ok) {
        let Some(data) = line.strip_prefix("data: ") else { continue };
        let event: Value = serde_json::from_str(data).unwrap();
        if event["provisional"] == true {
            continue;
        }
        let is_over = is_last(&event);
        events.push(event);
        if is_over {
            break;
        }
    }
    events
}

fn revisions(events: &[Value]) -> Vec<u64> {
    events.iter().map(|event| event["revision"].as_u64().unwrap()).collect()
}

#[test]
fn hosts_of_a_server_that_loses_its_store_go_to_the_next_one_and_nothing_of_theirs_stops() {
    let spec =
        SPEC.replace("[groups.db]", "[groups.db]\nrecover = \"lease\"\nlimits = { online = { max = 2 } }");
    let mut servers = Servers::start(&NEAR).with_agents_of(&spec);
    let first = servers.address("s1");
    let joined = |servers: &Servers, name: &str| servers.agents[name].said().matches("joined as").count();
    let before = ["a", "b"].map(|name| joined(&servers, name));
    servers.relay.cut(true);
    wait_for("the hosts to come to another server", || {
        ["a", "b"].iter().zip(before).all(|(name, before)| joined(&servers, name) > before)
    });
    let second = servers.active();
    assert_ne!(second, "s1");
    wait_for("the first one to stand by", || is_ready(first, "standby"));
    let (status, answer) = http(first, "GET", "/v1/members?consistent=true", None).unwrap();
    assert_eq!((status, &answer["code"]), (503, &json!("store-unavailable")), "{answer}");
    assert_eq!(http(first, "GET", "/v1/members", None).unwrap().0, 200);
    let (exit, _, said) = servers.lockstep_by(&second, &["run", "db=offline", "--request-id", "next"]);
    assert_eq!(exit, 0, "{said}");
    for member in ["db@a", "db@b"] {
        assert_eq!(calls(&servers.dir, member, "begin stop"), [""; 0], "{member}");
    }
    let lost = events(servers.address(&second), 0, false, |_| false);
    assert!(!lost.iter().any(|event| event["liveness"] == "lost"), "{lost:?}");
    // It has not ended, and follows again.
    servers.relay.cut(false);
    wait_for("the first one to have read what it missed", || {
        let (status, list) = http(first, "GET", "/v1/transitions?consistent=true", None).unwrap();
        status == 200 && list["items"].as_array().unwrap().iter().any(|one| one["request_id"] == "next")
    });
    assert!(servers.servers.get_mut("s1").unwrap().0.is_running());
}

#[test]
fn readers_are_answered_by_a_standby_and_events_go_on_at_another_server() {
    let mut servers = Servers::start(&NEAR).with_agents();
    let (first, reader) = (servers.active(), servers.standby());
    // What the active server has acknowledged, a consistent read at a standby shows.
    for round in 0..20 {
        let target = if round % 2 == 0 { "db=offline" } else { "db=online" };
        let asked = body(&[target], &format!("r{round}"));
        let (status, answer) =
            http(servers.address(&first), "POST", "/v1/transitions", Some(&asked)).unwrap();
        assert_eq!(status, 202, "{answer}");
        let path = format!("/v1/transitions/{}?consistent=true", answer["id"].as_str().unwrap());
        let (status, shown) = http(servers.address(&reader), "GET", &path, None).unwrap();
        assert_eq!((status, &shown["request_id"]), (200, &asked["request_id"]), "{shown}");
        servers.asked(&format!("r{round}"), |one| !one["outcome"].is_null());
    }
    let (exit, said, errors) = servers.lockstep_by(&reader, &["status"]);
    assert!(
        exit == 0 && said.contains(&format!("{reader} standby of {first} at revision")),
        "{said} {errors}"
    );
    // A stream is followed at a standby, and then, from where it was, at another server, through a take-over.
    let at_reader = events(servers.address(&reader), 0, true, |event| event["kind"] == "outcome");
    let last = revisions(&at_reader).last().copied().unwrap();
    let addresses = servers.addresses().join(",");
    let args = ["events", "--since", "0", "--follow", "-o", "json", "--addr", &addresses];
    let follower = Process::start(&servers.dir, "follower", &args);
    let followed = || {
        let said = follower.said();
        let events = said.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
        events.filter(|event| event["provisional"] == false).collect::<Vec<_>>()
    };
    wait_for("the follower to follow", || revisions(&followed()).last() >= Some(&last));
    servers.kill(&first);
    let second = servers.active();
    let (exit, _, said) = servers.lockstep(&["run", "db=offline", "--request-id", "after"]);
    assert_eq!(exit, 0, "{said}");
    let after = servers.asked("after", |one| !one["outcome"].is_null())["id"].clone();
    let is_end = |event: &Value| event["kind"] == "outcome" && event["transition"] == after;
    let rest = events(servers.address(&second), last, true, is_end);
    let all: Vec<u64> = revisions(&at_reader).into_iter().chain(revisions(&rest)).collect();
    assert_eq!(all, (1..=all.len() as u64).collect::<Vec<_>>(), "without gap or repeat");
    wait_for("the follower to come to the end", || followed().iter().any(&is_end));
    let followed: Vec<u64> = revisions(&followed());
    assert_eq!(followed[..all.len()], all, "the command line moves by itself");
}

/// The reign of a server that only vanished would last longer than the command line waits.
#[test]
fn a_server_that_a_signal_stops_gives_its_reign_up_and_the_next_one_writes_at_once() {
    let mut servers = Servers::start(&["--election-timeout=10000", "--heartbeat-interval=1000"]);
    for signal in [Signal::TERM, Signal::INT] {
        let first = servers.active();
        servers.servers[&first].0.signal(signal);
        let (exit, said, errors) = servers.lockstep(&["freeze", "--for", "1h", "--reason", "audit"]);
        assert_eq!(exit, 0, "{said} {errors}");
        let (stopped, _) = servers.servers.get_mut(&first).unwrap();
        assert_eq!(stopped.exit(), Some(0));
        let said = stopped.said();
        assert!(said.contains("the reign has been given up") && !said.contains("farewell"), "{said}");
    }
}

/// Who decided is stopped in the midst of it, and has the last vote when it wakes up.
#[test]
fn a_vote_that_a_stopped_server_finds_when_it_wakes_up_decides_nothing() {
    let mut servers = Servers::start(&NEAR).with_agents();
    let first = servers.active();
    servers.block("db@a", "prepare");
    let asked = body(&["db=offline"], "torn");
    let (status, answer) = http(servers.address(&first), "POST", "/v1/transitions", Some(&asked)).unwrap();
    assert_eq!(status, 202, "{answer}");
    servers.wait_blocked("db@a", "prepare");
    wait_for("the other vote", || calls(&servers.dir, "db@b", "end prepare").len() == 1);
    servers.servers[&first].0.signal(Signal::STOP);
    servers.unblock("db@a", "prepare");
    wait_for("the last vote", || calls(&servers.dir, "db@a", "end prepare").len() == 1);
    let second = servers.active();
    assert_ne!(first, second);
    let id = answer["id"].as_str().unwrap();
    let is_end = |event: &Value| event["kind"] == "outcome" && event["transition"] == id;
    events(servers.address(&second), 0, true, is_end);
    let address = servers.address(&first);
    servers.servers[&first].0.signal(Signal::CONT);
    wait_for("it to stand by", || is_ready(address, "standby"));
    for (name, (_, address)) in &servers.servers {
        let path = format!("/v1/transitions/{id}?consistent=true");
        let (status, shown) = http(*address, "GET", &path, None).unwrap();
        let told = (status, &shown["decision"], &shown["cause"], &shown["outcome"]);
        assert_eq!(told, (200, &json!("abort"), &json!("new-reign"), &json!("aborted")), "{name}: {shown}");
    }
    // The one that was stopped has read all of it, and what it says of it is what the others say.
    let all = events(address, 0, false, |_| false);
    let is_decision = |event: &&Value| event["kind"] == "decision" && event["transition"] == id;
    assert_eq!(all.iter().filter(is_decision).count(), 1, "{all:?}");
    assert_eq!(all, events(servers.address(&second), 0, false, |_| false));
    for member in ["db@a", "db@b"] {
        assert_eq!(calls(&servers.dir, member, "begin commit"), [""; 0], "{member}");
    }
    assert!(servers.servers.get_mut(&first).unwrap().0.is_running());
}

/// How many requests under this id the journal has.
fn requests(address: SocketAddr, request_id: &str) -> usize {
    let all = events(address, 0, false, |_| false);
    all.iter().filter(|event| event["kind"] == "request" && event["request_id"] == request_id).count()
}

fn reigns(address: SocketAddr) -> usize {
    events(address, 0, false, |_| false).iter().filter(|event| event["kind"] == "reign").count()
}

/// Far slower than any link between hosts that is meant for it: each answer takes longer than a renewal may at first.
#[test]
fn an_etcd_that_is_slow_to_answer_keeps_its_server_and_has_each_write_once() {
    // Leases of 2 s.
    let servers = Servers::start(&[]).with_agents();
    let (first, standby) = (servers.address("s1"), servers.address("s2"));
    let before = reigns(standby);
    let renewed = Instant::now();
    servers.relay.delay(Duration::from_millis(200));
    let mut round = 0;
    // For several times as long as a reign that nothing renews.
    while renewed.elapsed() < Duration::from_secs(8) {
        round += 1;
        let (target, id) = (["db=online", "db=offline"][round % 2], format!("slow-{round}"));
        let (status, answer) = http(first, "POST", "/v1/transitions", Some(&body(&[target], &id))).unwrap();
        assert_eq!(status, 202, "{answer}");
        servers.asked(&id, |one| one["outcome"] == "committed");
        assert_eq!(requests(standby, &id), 1);
    }
    assert_eq!((reigns(standby), servers.active().as_str()), (before, "s1"));
}

#[test]
fn a_write_that_etcd_answers_too_late_is_there_once_and_acknowledged() {
    // Leases of 15 s: the reign outlasts the write.
    let servers = Servers::start(&["--election-timeout=10000", "--heartbeat-interval=1000"]).with_agents();
    let (first, standby) = (servers.address("s1"), servers.address("s2"));
    let before = reigns(standby);
    servers.relay.delay(Duration::from_millis(2500));
    let late = std::thread::spawn(move || {
        http(first, "POST", "/v1/transitions", Some(&body(&["db=offline"], "late"))).unwrap()
    });
    let said = || servers.servers["s1"].0.said();
    wait_for("it to be unknown", || said().contains("the store did not answer a write; asking what became"));
    assert!(!late.is_finished(), "nobody is told before it is known");
    servers.relay.delay(Duration::ZERO);
    let (status, answer) = late.join().unwrap();
    assert_eq!(status, 202, "{answer}");
    servers.asked("late", |one| one["outcome"] == "committed");
    assert_eq!((requests(standby, "late"), reigns(standby)), (1, before));
    assert_eq!(servers.active(), "s1");
}

/// Another program on this etcd, which also looks at the servers' keys.
struct Other {
    client: etcd_client::Client,
    runtime: tokio::runtime::Runtime,
}

impl Other {
    fn of(etcd: &Members) -> Self {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let url = format!("127.0.0.1:{}", etcd.ports[0].client);
        let client = runtime.block_on(etcd_client::Client::connect([url], None)).unwrap();
        Self { client, runtime }
    }

    /// What the servers have under a key.
    fn get(&mut self, key: &str) -> Option<Vec<u8>> {
        let found = self.runtime.block_on(self.client.get(format!("/lockstep/{key}"), None)).unwrap();
        found.kvs().first().map(|kv| kv.value().to_vec())
    }

    /// Writes until there is no room.
    fn fill(&mut self) {
        for bytes in [900_000, 10] {
            while self.runtime.block_on(self.client.put("/other", vec![7; bytes], None)).is_ok() {}
        }
    }

    /// As an operator would, with etcdctl.
    fn free(&mut self) {
        let client = &mut self.client;
        self.runtime.block_on(async {
            let revision = client.delete("/other", None).await.unwrap().header().unwrap().revision();
            let physical = etcd_client::CompactionOptions::new().with_physical();
            client.compact(revision, Some(physical)).await.unwrap();
            client.defragment().await.unwrap();
            let member = client.status().await.unwrap().header().unwrap().member_id();
            let mut options = etcd_client::AlarmOptions::new();
            options.with_member(member);
            let (off, nospace) = (etcd_client::AlarmAction::Deactivate, etcd_client::AlarmType::Nospace);
            client.alarm(off, nospace, Some(options)).await.unwrap();
        });
    }
}

#[test]
fn a_server_that_etcd_has_no_room_for_says_so_and_ends_and_the_next_one_writes_when_there_is() {
    let quota = [&NEAR[..], &["--quota-backend-bytes=4194304"]].concat();
    let mut servers = Servers::start(&quota).with_agents();
    let (first, standby) = (servers.address("s1"), servers.address("s2"));
    let mut other = Other::of(&servers.etcd);
    other.fill();
    let full = std::thread::spawn(move || {
        http(first, "POST", "/v1/transitions", Some(&body(&["db=offline"], "full"))).unwrap()
    });
    let told = "no room for the journal: nothing is acknowledged until there is";
    wait_for("it to say so", || servers.servers["s1"].0.said().contains(told));
    // It reigns and answers meanwhile.
    for address in [first, standby] {
        let (status, list) = http(address, "GET", "/v1/members", None).unwrap();
        assert!(status == 200 && list["items"].as_array().unwrap().len() == 2, "{status} {list}");
    }
    let (status, list) = http(first, "GET", "/v1/transitions?consistent=true", None).unwrap();
    assert!(status == 200 && list["items"] == json!([]), "{status} {list}");
    let (status, answer) = full.join().unwrap();
    assert_eq!((status, &answer["code"]), (503, &json!("store-unavailable")), "{answer}");
    let (server, _) = servers.servers.get_mut("s1").unwrap();
    assert_eq!(server.exit(), Some(1));
    let said = server.said();
    assert!(said.contains("--quota-backend-bytes") && said.contains("etcdctl alarm disarm"), "{said}");
    // The others wait for room, and so does this one when it is started again.
    wait_for("another one to say so", || {
        ["s2", "s3"].iter().any(|name| servers.servers[*name].0.said().contains("is used up"))
    });
    servers.restart_server("s1");
    let stand_by = || servers.servers.values().all(|(_, address)| is_ready(*address, "standby"));
    wait_for("all to stand by", stand_by);
    let begun = Instant::now();
    wait_for("several tries to reign", || {
        assert!(stand_by(), "they wait, however often they are refused");
        begun.elapsed() > Duration::from_secs(3)
    });
    assert_eq!(http(standby, "GET", "/v1/members", None).unwrap().0, 200);
    assert_eq!(requests(standby, "full"), 0);

    other.free();
    let (exit, said, errors) = servers.lockstep(&["run", "db=offline", "--request-id", "full"]);
    assert_eq!(exit, 0, "{said} {errors}");
    assert_eq!(requests(standby, "full"), 1);
}

#[test]
fn a_server_on_etcd_saves_snapshots_and_a_standby_that_was_away_goes_on_from_one() {
    let mut servers = Servers::start(&NEAR);
    let mut other = Other::of(&servers.etcd);
    servers.kill("s3");
    let mut rounds = 0;
    while other.get("snap/current").is_none() || other.get("floor").is_none() {
        assert!(rounds < 20, "each is about a megabyte, and a snapshot is due after four");
        rounds += 1;
        let role = format!("{rounds}-{}", "x".repeat(50));
        let group = |number| format!("[groups.g{number}]\nselect = {{ role = \"{role}\" }}\n");
        let spec: String = (0..4000).map(group).collect();
        fs::write(servers.dir.join("cluster.toml"), format!("cluster = \"shop\"\n{spec}")).unwrap();
        let (exit, _, said) = servers.lockstep_by("s1", &["apply", "-f", "cluster.toml"]);
        assert_eq!(exit, 0, "{said}");
    }
    let first = format!("j/{:020}", 1);
    wait_for("what the snapshot covers to be deleted", || other.get(&first).is_none());
    servers.restart_server("s3");
    let (active, back) = (servers.address("s1"), servers.address("s3"));
    wait_for("it to be ready", || is_ready(back, "standby"));
    let spec = |address| http(address, "GET", "/v1/spec?consistent=true", None).unwrap();
    let (status, shown) = spec(back);
    assert!(status == 200 && shown == spec(active).1, "{status}");
    // It can take over from there.
    for name in ["s1", "s2"] {
        servers.kill(name);
    }
    assert_eq!(servers.active(), "s3");
    assert_eq!(spec(back).1["groups"], shown["groups"]);
}
