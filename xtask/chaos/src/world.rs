//! The processes and disks that faults are made to: a server on a disk of its own, or three with an etcd of three members;
//! and an agent on each host.

use crate::command::{run, run_args};
use crate::etcd;
use crate::http::{self, Ask};
use crate::member::Defect;
use crate::network::{self, Layout, Place, SERVER_PORT, layout};
use crate::proxy::{self, Knobs};
use crate::reader::Shared;
use crate::workload::GROUPS;
use rustix::process::{Pid, Signal};
use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::io;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// The hosts, and which of them dial the server through the proxy.
pub(crate) const HOSTS: [&str; 5] = ["h1", "h2", "h3", "h4", "h5"];
pub(crate) const PROXIED: [&str; 3] = ["h3", "h4", "h5"];
/// The host whose disk is set back, and that runs twice.
pub(crate) const EXCUSED: &str = "h5";

/// Preloaded, it moves the wall clock, and only that: the clocks that count go on.
const FAKETIME: &str = "/usr/lib/x86_64-linux-gnu/faketime/libfaketimeMT.so.1";
/// Whoever ended by itself is started again after so long, as by an init system.
const RESTART_PAUSE: Duration = Duration::from_millis(300);
/// Room for some snapshots, and soon filled up.
const SERVER_DISK_MB: u64 = 48;
const AGENT_DISK_MB: u64 = 6;
/// How long a server may take to say which role it has: one that is stopped says nothing.
const ROLE_PATIENCE: Duration = Duration::from_millis(300);
/// What makes etcd choose a new leader within a second; without it, it takes two or three.
const SOON: [&str; 2] = ["--heartbeat-interval=50", "--election-timeout=500"];

/// A process that should run.
#[derive(Debug)]
struct Process {
    child: Option<Child>,
    /// Whether it is to be started when it is down.
    is_wanted: bool,
    down_since: Instant,
    /// Times that it ended without having been killed.
    ended: Vec<ExitStatus>,
}

#[derive(Debug)]
pub(crate) struct World {
    pub(crate) dir: PathBuf,
    lockstep: PathBuf,
    processes: BTreeMap<String, Process>,
    pub(crate) proxies: BTreeMap<String, Arc<Knobs>>,
    defect: Option<Defect>,
    /// What is said of time to etcd.
    timing: &'static [&'static str],
    /// Members of etcd that were added to the others, and began with nothing.
    added: BTreeSet<&'static str>,
}

impl World {
    /// Makes network, disks and configurations; starts nothing yet.
    pub(crate) fn make(
        dir: &Path,
        lockstep: &Path,
        history: &Shared,
        defect: Option<Defect>,
        has_default_timing: bool,
    ) -> io::Result<Self> {
        let hosts = (10..).zip(HOSTS).map(|(last, host)| (host.to_owned(), format!("10.77.0.{last}")));
        let others = layout().servers().iter().chain(layout().members());
        let others = others.map(|(name, address)| ((*name).to_owned(), (*address).to_owned()));
        let places: Vec<_> = others.chain(hosts).collect();
        network::make(&places)?;
        for sub in ["log", "software"] {
            fs::create_dir_all(dir.join(sub))?;
        }
        crate::member::prepare(&dir.join("software"), defect)?;
        if layout() == Layout::One {
            fs::create_dir_all(dir.join("server-disk"))?;
            File::create(dir.join("server.img"))?.set_len(SERVER_DISK_MB << 20)?;
            run(&format!("mkfs.ext4 -q -m 0 {}", dir.join("server.img").display()))?;
        }
        let exe = std::env::current_exe()?;
        let config = format!(
            "[handlers.software]\nexec = [{exe:?}, \"handler\"]\nenv = {{ CHAOS = {0:?} }}\nstatus_ms = 1000\n\
             phases = [\"check\", \"prepare\", \"commit\", \"undo\", \"cancel\", \"hold\", \"release\", \"status\", \"notice\", \"stop\"]\n\
             timeout_ms = {{ default = 4000, commit = 6000 }}\n\
             [handlers.fence]\nexec = [{exe:?}, \"handler\"]\nenv = {{ CHAOS = {0:?} }}\nphases = [\"fence\"]\n",
            dir.join("software")
        );
        fs::write(dir.join("agent.toml"), config)?;
        let mut world = Self {
            dir: dir.to_owned(),
            lockstep: lockstep.to_owned(),
            processes: BTreeMap::new(),
            proxies: BTreeMap::new(),
            defect,
            timing: if has_default_timing { &[] } else { &SOON },
            added: BTreeSet::new(),
        };
        if layout() == Layout::One {
            world.mount_server_disk()?;
        }
        for name in Self::all() {
            world.set_clock(name, 0)?;
            let idle =
                Process { child: None, is_wanted: false, down_since: Instant::now(), ended: Vec::new() };
            world.processes.insert(name.to_owned(), idle);
        }
        for host in HOSTS {
            let disk = world.agent_disk(host);
            fs::create_dir_all(&disk)?;
            run(&format!("mount -t tmpfs -o size={AGENT_DISK_MB}m tmpfs {}", disk.display()))?;
        }
        for host in PROXIED {
            let ways: Vec<proxy::Way> = layout()
                .servers()
                .iter()
                .map(|server| proxy::Way {
                    server: http::address_of(*server),
                    seen: server_of(host, *server),
                })
                .collect();
            world.proxies.insert(host.to_owned(), proxy::start(host, &ways, history)?);
        }
        Ok(world)
    }

    /// Every process: servers, members of etcd, agents.
    pub(crate) fn all() -> impl Iterator<Item = &'static str> {
        let places = layout().servers().iter().chain(layout().members());
        places.map(|(name, _)| *name).chain(HOSTS)
    }

    /// Those that have a wall clock which can be moved.
    pub(crate) fn clocked() -> impl Iterator<Item = &'static str> {
        layout().servers().iter().map(|(name, _)| *name).chain(HOSTS)
    }

    /// The server that says it is the active one.
    pub(crate) fn active() -> Option<&'static str> {
        let says = |server: &&Place| {
            let answer = http::ask_one(**server, Ask::get("/readyz", ROLE_PATIENCE));
            answer.is_some_and(|answer| answer.status == 200 && answer.body["role"] == "active")
        };
        layout().servers().iter().find(says).map(|(name, _)| *name)
    }

    pub(crate) fn mount_server_disk(&self) -> io::Result<()> {
        let (image, disk) = (self.dir.join("server.img"), self.dir.join("server-disk"));
        run(&format!("mount -o loop {} {}", image.display(), disk.display())).map(drop)
    }

    pub(crate) fn agent_disk(&self, host: &str) -> PathBuf {
        self.dir.join(format!("{host}-disk"))
    }

    pub(crate) fn software(&self) -> PathBuf {
        self.dir.join("software")
    }

    pub(crate) fn server_data(&self) -> PathBuf {
        self.dir.join("server-disk/data")
    }

    pub(crate) fn agent_data(&self, host: &str) -> PathBuf {
        self.agent_disk(host).join("data")
    }

    fn clock_file(&self, name: &str) -> PathBuf {
        self.dir.join(format!("{name}.clock"))
    }

    /// Moves the wall clock of a process, by seconds from the real one.
    pub(crate) fn set_clock(&self, name: &str, seconds: i64) -> io::Result<()> {
        fs::write(self.clock_file(name), format!("{seconds:+}\n"))
    }

    pub(crate) fn log(&self, name: &str) -> PathBuf {
        self.dir.join(format!("log/{name}.log"))
    }

    /// All that a process has said since its log was so long.
    pub(crate) fn said_since(&self, name: &str, len: u64) -> String {
        let bytes = fs::read(self.log(name)).unwrap_or_default();
        let from = usize::try_from(len).unwrap_or(usize::MAX).min(bytes.len());
        String::from_utf8_lossy(&bytes[from..]).into_owned()
    }

    pub(crate) fn log_len(&self, name: &str) -> u64 {
        fs::metadata(self.log(name)).map_or(0, |data| data.len())
    }

    /// A process of the binary in a place's network, under its own wall clock.
    fn command(&self, place: &str, log: &str) -> io::Result<Command> {
        let log = File::options().create(true).append(true).open(self.log(log))?;
        let mut command = Command::new("nsenter");
        command.arg(format!("--net=/run/netns/{place}")).args(["env", &format!("LD_PRELOAD={FAKETIME}")]);
        if place == "server" && self.defect == Some(Defect::LostSyncs) {
            command.args(["strace", "-f", "-qq", "-o", "/dev/null", "-e", "trace=fsync,fdatasync"]);
            command.args(["-e", "inject=fsync,fdatasync:retval=0"]);
        }
        command
            .arg(&self.lockstep)
            .env("FAKETIME_TIMESTAMP_FILE", self.clock_file(place))
            .env("FAKETIME_CACHE_DURATION", "1")
            .env("FAKETIME_DONT_FAKE_MONOTONIC", "1")
            .env("NO_COLOR", "1")
            .env("RUST_LOG", "info,lockstep::agent=debug")
            .env("RUST_BACKTRACE", "1")
            .process_group(0)
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log);
        Ok(command)
    }

    fn spawn(&self, name: &str) -> io::Result<Child> {
        if layout().is_server(name) {
            let mut command = self.command(name, name)?;
            let listen = format!("{}:{SERVER_PORT}", layout().address(name));
            command.args(["server", "--insecure", "--listen", &listen]);
            match layout() {
                Layout::One => command.arg("--data").arg(self.server_data()),
                Layout::Three => command.args(["--store", &etcd::store_url(), "--name", name]),
            };
            return command.spawn();
        }
        if let Some(member) = layout().members().iter().find(|(known, _)| *known == name) {
            return self.spawn_member(*member);
        }
        self.spawn_agent(name, &self.agent_data(name), name)
    }

    fn spawn_member(&self, member: Place) -> io::Result<Child> {
        let log = File::options().create(true).append(true).open(self.log(member.0))?;
        let (client, peer) = (etcd::client_url(member), etcd::peer_url(member));
        let cluster: Vec<String> = layout()
            .members()
            .iter()
            .map(|place| format!("{}={}", place.0, etcd::peer_url(*place)))
            .collect();
        let state = if self.added.contains(member.0) { "existing" } else { "new" };
        Command::new("nsenter")
            .arg(format!("--net=/run/netns/{}", member.0))
            .args(["etcd", "--name", member.0, "--data-dir"])
            .arg(self.member_data(member.0))
            .args(["--listen-client-urls", &client, "--advertise-client-urls", &client])
            .args(["--listen-peer-urls", &peer, "--initial-advertise-peer-urls", &peer])
            .args(["--initial-cluster", &cluster.join(","), "--initial-cluster-state", state])
            .args(self.timing)
            .process_group(0)
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn()
    }

    pub(crate) fn member_data(&self, member: &str) -> PathBuf {
        self.dir.join(format!("{member}-data"))
    }

    /// From now on a member of etcd starts as one that was added to the others.
    pub(crate) fn is_added(&mut self, member: &'static str) {
        self.added.insert(member);
    }

    /// An agent of a host, on some directory.
    pub(crate) fn spawn_agent(&self, host: &str, data: &Path, log: &str) -> io::Result<Child> {
        let servers: Vec<String> =
            layout().servers().iter().map(|server| format!("http://{}", server_of(host, *server))).collect();
        let mut command = self.command(host, log)?;
        command.args(["agent", "--insecure", "--server", &servers.join(","), "--name", host]);
        for group in GROUPS.iter().filter(|group| group.hosts.contains(&host)) {
            command.args(["--label", &format!("{}=yes", group.name)]);
        }
        command.arg("--data").arg(data).arg("--config").arg(self.dir.join("agent.toml"));
        command.spawn()
    }

    pub(crate) fn start(&mut self, name: &str) -> io::Result<()> {
        let child = self.spawn(name)?;
        let process = self.processes.get_mut(name).expect("it is one of ours");
        process.child = Some(child);
        process.is_wanted = true;
        Ok(())
    }

    /// The process id; none: it is down.
    pub(crate) fn pid(&self, name: &str) -> Option<Pid> {
        self.processes[name].child.as_ref().map(Pid::from_child)
    }

    /// Whether it runs, as far as is known without asking.
    pub(crate) fn is_up(&mut self, name: &str) -> bool {
        let process = self.processes.get_mut(name).expect("it is one of ours");
        match process.child.as_mut().map(Child::try_wait) {
            Some(Ok(None)) => true,
            Some(Ok(Some(status))) => {
                process.ended.push(status);
                process.child = None;
                process.down_since = Instant::now();
                false
            }
            Some(Err(_)) | None => false,
        }
    }

    pub(crate) fn signal(&self, name: &str, signal: Signal) -> bool {
        self.pid(name).is_some_and(|pid| rustix::process::kill_process(pid, signal).is_ok())
    }

    /// `kill -9`, and nobody starts it again. Tells whether it was running.
    pub(crate) fn kill(&mut self, name: &str) -> bool {
        let process = self.processes.get_mut(name).expect("it is one of ours");
        process.is_wanted = false;
        let Some(mut child) = process.child.take() else { return false };
        let was_running = matches!(child.try_wait(), Ok(None));
        // With what it was started under. Both fail only when it is gone.
        let _ = rustix::process::kill_process_group(Pid::from_child(&child), Signal::KILL);
        let _ = child.wait();
        process.down_since = Instant::now();
        was_running
    }

    /// From now on it is started when it is down.
    pub(crate) fn want(&mut self, name: &str, is_wanted: bool) {
        self.processes.get_mut(name).expect("it is one of ours").is_wanted = is_wanted;
    }

    /// Starts who has ended and should run.
    pub(crate) fn tend(&mut self) -> io::Result<()> {
        let names: Vec<String> = self.processes.keys().cloned().collect();
        for name in names {
            let is_up = self.is_up(&name);
            let process = &self.processes[&name];
            if !is_up && process.is_wanted && process.down_since.elapsed() > RESTART_PAUSE {
                self.start(&name)?;
            }
        }
        Ok(())
    }

    /// How often a process ended by itself.
    pub(crate) fn ended(&self) -> BTreeMap<String, usize> {
        let counts = self.processes.iter().map(|(name, process)| (name.clone(), process.ended.len()));
        counts.filter(|(_, count)| *count > 0).collect()
    }

    /// The guard of a host's agent, by the note in its lock file.
    pub(crate) fn guard(&self, host: &str) -> Option<Pid> {
        let note = fs::read_to_string(self.agent_data(host).join("guard.lock")).ok()?;
        let pid = Pid::from_raw(note.trim().parse().ok()?)?;
        let line = fs::read_to_string(format!("/proc/{}/cmdline", pid.as_raw_nonzero())).ok()?;
        line.split('\0').any(|word| word == "guard").then_some(pid)
    }

    /// The handlers that an agent is running: their ids, the ones that move or ask somebody first.
    pub(crate) fn handlers(&self, host: &str) -> Vec<Pid> {
        let Some(agent) = self.pid(host) else { return Vec::new() };
        let tasks = fs::read_dir(format!("/proc/{}/task", agent.as_raw_nonzero()));
        let tasks = tasks.into_iter().flatten().flatten();
        let children: BTreeSet<i32> = tasks
            .filter_map(|task| fs::read_to_string(task.path().join("children")).ok())
            .flat_map(|list| {
                list.split_ascii_whitespace().filter_map(|pid| pid.parse().ok()).collect::<Vec<_>>()
            })
            .collect();
        let phase = |pid: i32| {
            let line = fs::read_to_string(format!("/proc/{pid}/cmdline")).unwrap_or_default();
            let mut words = line.split('\0');
            words.find(|word| *word == "handler").and_then(|_| words.next()).map(str::to_owned)
        };
        let handlers =
            children.into_iter().filter_map(|pid| phase(pid).map(|phase| (phase == "status", pid)));
        let mut handlers: Vec<_> = handlers.collect();
        handlers.sort_unstable();
        handlers
            .into_iter()
            .filter(|(is_status, _)| !is_status)
            .filter_map(|(_, pid)| Pid::from_raw(pid))
            .collect()
    }

    /// Copies a directory, as a backup would.
    pub(crate) fn copy(from: &Path, to: &Path) -> io::Result<()> {
        // What was there is gone, or was never there.
        let _ = fs::remove_dir_all(to);
        let (from, to) = (from.to_string_lossy(), to.to_string_lossy());
        run_args(&["cp", "-a", &from, &to]).map(drop)
    }
}

/// Where a host's agent finds a server: through the proxy, if it is one of those.
fn server_of(host: &str, server: Place) -> String {
    let Some(port) = (7430_u16..).zip(PROXIED).find(|(_, proxied)| *proxied == host).map(|(port, _)| port)
    else {
        return http::address_of(server).to_string();
    };
    let tens = (0..).zip(layout().servers()).find(|(_, known)| **known == server).map_or(0, |(tens, _)| tens);
    format!("{}:{}", network::DRIVER, port + 10 * tens)
}

/// Whether a process is stopped.
pub(crate) fn is_stopped(pid: Pid) -> bool {
    let stat = fs::read_to_string(format!("/proc/{}/stat", pid.as_raw_nonzero())).unwrap_or_default();
    stat.rsplit_once(") ").is_some_and(|(_, rest)| rest.starts_with('T'))
}
