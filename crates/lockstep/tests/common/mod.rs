//! Real processes for tests: a server on a free port, agents with handlers that note every call, and the means to
//! kill, stop and restart them. Everything is in one temporary directory, which is kept, and named, when a test
//! fails. Nothing here waits for a time, only for a condition with a deadline.

#![allow(unreachable_pub, reason = "it is part of each test binary")]
#![allow(dead_code, reason = "each test binary uses its part")]
#![allow(clippy::unwrap_used, reason = "a test fails by it")]

pub mod etcd;

use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};
use tempfile::TempDir;

/// Ends a test that would otherwise hang; on a machine with work to do, things take their time.
pub const STUCK: Duration = Duration::from_secs(45);

/// A handler that does what the files beside it say, `ME` being the member: it notes each call in `ME.calls`, waits as
/// long as `ME.PHASE.wait` is there (`ME.PHASE.waits` says that it does), says no while `ME.PHASE.fail` is, and keeps
/// the member's state in `ME.state`; what is in `ME.also` is part of its status. A line `overlap` is written when an earlier run of its phase is still alive.
const HANDLER: &str = r#"#!/bin/sh
me="$DIR/$LOCKSTEP_MEMBER"
if [ "$1" = status ]; then
    read -r also 2> /dev/null < "$me.also"
    read -r state < "$me.state" && printf '{"state":"%s"%s}\n' "$state" "$also"
    exit
fi
touch "$me.calls"
for old in $(sed -n "s/^begin $1 .*pid=//p" "$me.calls"); do
    if read -r _ _ state _ < "/proc/$old/stat" && [ "$state" != Z ]; then
        echo "overlap $1 $old" >> "$me.calls"
    fi
done 2> /dev/null
echo "begin $1 transition=$LOCKSTEP_TRANSITION token=$LOCKSTEP_TOKEN decision=$LOCKSTEP_DECISION pid=$$" >> "$me.calls"
while [ -e "$me.$1.wait" ] && [ ! -e "$DIR/ended" ]; do
    [ -e "$me.$1.waits" ] || touch "$me.$1.waits"
    sleep 0.02
done
if [ -e "$me.$1.fail" ]; then
    echo "the file $1.fail is there" >&2
    exit 1
fi
case "$1" in
commit | undo | stop) echo "$LOCKSTEP_TO" > "$me.state" ;;
esac
echo "end $1 transition=$LOCKSTEP_TRANSITION" >> "$me.calls"
"#;

/// A process of the real binary. Ended with this.
pub struct Process {
    child: Child,
    /// All that it said, earlier runs under the same name included.
    pub log: PathBuf,
}

impl Process {
    /// Starts `lockstep` with its standard output and error in `DIR/NAME.log`.
    pub fn start(dir: &Path, name: &str, args: &[&str]) -> Self {
        let log = dir.join(format!("{name}.log"));
        let file = File::options().create(true).append(true).open(&log).unwrap();
        let child = Self::command(dir, args).stdout(file.try_clone().unwrap()).stderr(file).spawn().unwrap();
        Self { child, log }
    }

    /// Starts `lockstep` with nobody at the other end of its standard output and error.
    pub fn start_unheard(dir: &Path, args: &[&str]) -> Self {
        let spawned = Self::command(dir, args).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn();
        let mut child = spawned.unwrap();
        drop((child.stdout.take(), child.stderr.take()));
        Self { child, log: PathBuf::from("/dev/null") }
    }

    fn command(dir: &Path, args: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_lockstep"));
        command
            .args(args)
            .current_dir(dir)
            .env("NO_COLOR", "1")
            .env("RUST_LOG", "debug")
            .stdin(Stdio::null());
        command
    }

    /// All that it said so far.
    pub fn said(&self) -> String {
        fs::read_to_string(&self.log).unwrap()
    }

    pub fn is_running(&mut self) -> bool {
        self.child.try_wait().unwrap().is_none()
    }

    /// Waits until it ends by itself; tells its exit code.
    pub fn exit(&mut self) -> Option<i32> {
        let mut status = None;
        wait_for("the process to end", || {
            status = self.child.try_wait().unwrap();
            status.is_some()
        });
        status.unwrap().code()
    }

    pub fn signal(&self, signal: Signal) {
        let pid = Pid::from_raw(i32::try_from(self.child.id()).unwrap()).unwrap();
        kill_process(pid, signal).unwrap();
    }

    /// `kill -9`, and wait until it is gone.
    pub fn kill(&mut self) {
        // It may have ended already.
        let _ = self.child.kill();
        self.child.wait().unwrap();
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.kill();
    }
}

/// A directory with an agent.toml, whose one handler is `sh`.
pub fn host() -> TempDir {
    let temporary = tempfile::tempdir().unwrap();
    let dir = temporary.path();
    let handler = dir.join("handler");
    fs::write(&handler, HANDLER).unwrap();
    fs::set_permissions(&handler, fs::Permissions::from_mode(0o755)).unwrap();
    let config = format!(
        "[handlers.sh]\nexec = [{handler:?}]\nenv = {{ DIR = {dir:?} }}\nstatus_ms = 200\n\
         timeout_ms = {{ default = 40000, commit = 40000 }}\n"
    );
    fs::write(dir.join("agent.toml"), config).unwrap();
    temporary
}

/// The lines that a member's handler noted and that begin so.
pub fn calls(dir: &Path, member: &str, beginning: &str) -> Vec<String> {
    let calls = fs::read_to_string(dir.join(format!("{member}.calls"))).unwrap_or_default();
    calls.lines().filter(|line| line.starts_with(beginning)).map(str::to_owned).collect()
}

/// A server and its agents.
pub struct Cluster {
    pub dir: PathBuf,
    pub address: SocketAddr,
    pub server: Process,
    pub agents: BTreeMap<String, Process>,
    labels: BTreeMap<String, String>,
    /// The last one to go.
    temporary: Option<TempDir>,
}

impl Cluster {
    /// A server over an empty journal.
    pub fn start() -> Self {
        let temporary = host();
        let dir = temporary.path().to_owned();
        let server =
            Process::start(&dir, "server", &["server", "--data", "server", "--listen", "127.0.0.1:0"]);
        let mut cluster = Self {
            dir,
            address: SocketAddr::from(([127, 0, 0, 1], 0)),
            server,
            agents: BTreeMap::new(),
            labels: BTreeMap::new(),
            temporary: Some(temporary),
        };
        cluster.address = listening(&mut cluster.server, 1);
        cluster
    }

    /// Starts the server again, on the same data and port.
    pub fn restart_server(&mut self) {
        self.server.kill();
        let times = self.server.said().matches("listening on http://").count();
        let address = self.address.to_string();
        self.server =
            Process::start(&self.dir, "server", &["server", "--data", "server", "--listen", &address]);
        assert_eq!(listening(&mut self.server, times + 1), self.address);
    }

    /// Starts an agent, or starts it again, and waits for nothing.
    pub fn start_agent(&mut self, name: &str, label: &str) {
        self.labels.insert(name.to_owned(), label.to_owned());
        let (server, data) = (format!("http://{}", self.address), format!("data-{name}"));
        let args = [
            "agent",
            "--server",
            &server,
            "--name",
            name,
            "--label",
            label,
            "--data",
            &data,
            "--config",
            "agent.toml",
        ];
        let agent = Process::start(&self.dir, name, &args);
        // The old one ends here, if it is there.
        self.agents.insert(name.to_owned(), agent);
    }

    pub fn restart_agent(&mut self, name: &str) {
        self.agents.get_mut(name).unwrap().kill();
        let label = self.labels[name].clone();
        self.start_agent(name, &label);
    }

    /// How many sessions an agent says it has had.
    pub fn joined(&self, name: &str) -> usize {
        let line = format!("joined as {name}");
        self.agents[name].said().lines().filter(|said| **said == line).count()
    }

    pub fn lockstep(&self, args: &[&str]) -> (i32, String, String) {
        lockstep(&self.dir, Some(self.address), args)
    }

    /// What the API answers to a `GET`.
    pub fn get(&self, path: &str) -> Value {
        let (status, body) = http(self.address, "GET", path, None).unwrap();
        assert_eq!(status, 200, "{path}: {body}");
        body
    }

    pub fn items(&self, path: &str) -> Vec<Value> {
        self.get(path)["items"].as_array().unwrap().clone()
    }

    pub fn member(&self, group: &str, host: &str) -> Value {
        let found = self.items("/v1/members").into_iter();
        found.into_iter().find(|item| item["group"] == group && item["host"] == host).unwrap_or_default()
    }

    pub fn liveness(&self, host: &str) -> String {
        let hosts = self.items("/v1/hosts");
        let host = hosts.iter().find(|item| item["name"] == host);
        host.and_then(|host| host["liveness"].as_str()).unwrap_or("unknown").to_owned()
    }

    /// Asks for a transition; gives its id.
    pub fn run(&self, targets: &[&str], request_id: &str) -> String {
        let body = json!({ "targets": targets, "request_id": request_id });
        let (status, body) = http(self.address, "POST", "/v1/transitions", Some(&body)).unwrap();
        assert_eq!(status, 202, "{body}");
        body["id"].as_str().unwrap().to_owned()
    }

    pub fn transition(&self, id: &str) -> Value {
        self.get(&format!("/v1/transitions/{id}"))
    }

    /// Waits until a transition has ended; gives its outcome.
    #[track_caller]
    pub fn outcome(&self, id: &str) -> String {
        let mut outcome = None;
        wait_for(&format!("the outcome of {id}"), || {
            outcome = self.transition(id)["outcome"].as_str().map(str::to_owned);
            outcome.is_some()
        });
        outcome.unwrap()
    }

    /// Declares a cluster, in TOML.
    pub fn apply(&self, spec: &str) {
        fs::write(self.dir.join("cluster.toml"), spec).unwrap();
        let (exit, _, said) = self.lockstep(&["apply", "-f", "cluster.toml"]);
        assert_eq!(exit, 0, "{said}");
    }

    /// What a member's software says of it: the witness, who knows nothing of Lockstep.
    pub fn state(&self, member: &str) -> String {
        fs::read_to_string(self.dir.join(format!("{member}.state"))).unwrap().trim().to_owned()
    }

    /// The lines of a member's handler that begin so.
    pub fn calls(&self, member: &str, beginning: &str) -> Vec<String> {
        calls(&self.dir, member, beginning)
    }

    pub fn touch(&self, name: &str) {
        fs::write(self.dir.join(name), "").unwrap();
    }

    pub fn remove(&self, name: &str) {
        fs::remove_file(self.dir.join(name)).unwrap();
    }

    /// Lets a member's handler wait in a phase.
    pub fn block(&self, member: &str, phase: &str) {
        self.touch(&format!("{member}.{phase}.wait"));
    }

    /// Waits until it does.
    #[track_caller]
    pub fn wait_blocked(&self, member: &str, phase: &str) {
        let waits = self.dir.join(format!("{member}.{phase}.waits"));
        wait_for(&format!("{member} to wait in {phase}"), || waits.exists());
    }

    pub fn unblock(&self, member: &str, phase: &str) {
        self.remove(&format!("{member}.{phase}.wait"));
        let _ = fs::remove_file(self.dir.join(format!("{member}.{phase}.waits")));
    }
}

impl Drop for Cluster {
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

/// Waits for a server's line; gives its address.
pub fn listening(server: &mut Process, times: usize) -> SocketAddr {
    let mut address = None;
    wait_for("the server to listen", || {
        assert!(server.is_running(), "it ended: {}", server.said());
        let said = server.said();
        let line = said.lines().filter_map(|line| line.strip_prefix("listening on http://")).nth(times - 1);
        address = line.map(|address| address.parse().unwrap());
        address.is_some()
    });
    address.unwrap()
}

/// The command line's exit code, standard output and standard error.
pub fn lockstep(dir: &Path, address: Option<SocketAddr>, args: &[&str]) -> (i32, String, String) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_lockstep"));
    command.args(args).current_dir(dir).env("NO_COLOR", "1");
    if let Some(address) = address {
        command.env("LOCKSTEP_ADDR", address.to_string());
    }
    let output = command.output().unwrap();
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
    (output.status.code().unwrap(), text(output.stdout), text(output.stderr))
}

/// Waits until `is_so`, and fails with what was waited for when it does not become so.
#[track_caller]
pub fn wait_for(what: &str, mut is_so: impl FnMut() -> bool) {
    let began = Instant::now();
    while !is_so() {
        assert!(began.elapsed() < STUCK, "waited for {what} in vain");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// One request over a connection of its own; none when the server does not answer.
pub fn http(address: SocketAddr, method: &str, path: &str, body: Option<&Value>) -> Option<(u16, Value)> {
    let body = body.map(|body| body.to_string()).unwrap_or_default();
    let request = format!(
        "{method} {path} HTTP/1.1\r\nhost: {address}\r\nconnection: close\r\ncontent-type: application/json\r\n\
         content-length: {}\r\n\r\n{body}",
        body.len()
    );
    let mut stream = TcpStream::connect(address).ok()?;
    stream.write_all(request.as_bytes()).ok()?;
    let answer = read_all(&mut stream);
    let (head, body) = answer.split_once("\r\n\r\n")?;
    let status = head.split(' ').nth(1)?.parse().ok()?;
    Some((status, serde_json::from_str(body).unwrap_or(Value::Null)))
}

/// All that comes until the other side closes, or resets.
#[track_caller]
pub fn read_all(stream: &mut TcpStream) -> String {
    stream.set_read_timeout(Some(STUCK)).unwrap();
    let mut bytes = Vec::new();
    let read = stream.read_to_end(&mut bytes);
    let timed_out = read.as_ref().is_err_and(|error| error.kind() == std::io::ErrorKind::WouldBlock);
    assert!(!timed_out, "it is not closed");
    String::from_utf8_lossy(&bytes).into_owned()
}
