//! The store in etcd beside the embedded one, all in one run, on members that this starts: `cargo xtask bench etcd`.
//!
//! - One transition over 100 hosts, request to outcome, on the embedded store, on one member and on three; beside it the
//!   same two phases written by hand over keys and watches ([`by_hand`]). They take turns, so that what else the machine
//!   does meets all of them.
//! - One client that moves one member, again and again: request to decision, and to outcome. Then as many clients as
//!   there are hosts, each with a group of its own, as fast as they can.
//! - How long it takes from the end of an active server until the next one has acknowledged a write ([`succession`]).

mod bare;
mod by_hand;
mod cluster;
#[path = "../../tests/common/etcd.rs"]
mod member;
mod succession;

use crate::load::{self, Server, directory};
use bare::Bare;
use by_hand::ByHand;
use cluster::Populated;
use member::{Members, NEAR};
use serde::Serialize;
use std::path::{Path, PathBuf};
use std::time::Duration;
use succession::{End, Servers, wait_active, wait_for};
use tokio::runtime::Runtime;

/// How many hosts a transition moves, and how many clients there are at most.
const HOSTS: usize = 100;
const WARM_UP: usize = 6;
/// What an append of such a transition has on average: its records, in bytes.
const APPEND_BYTES: usize = 9 << 10;
const PUT_BYTES: usize = 120;
/// For how long clients do what they can.
const SATURATED: Duration = Duration::from_secs(5);
const KILLS: usize = 15;
const STEP_DOWNS: usize = 20;

/// One line of the table.
#[derive(Serialize)]
struct Line {
    what: String,
    unit: &'static str,
    median: f64,
    /// 99 of 100 are below.
    high: f64,
    /// What it is beside, and where the time goes.
    notes: Vec<String>,
    aim: Option<(String, bool)>,
}

/// One store, with a server on it and agents of that server's.
struct Case {
    name: &'static str,
    cluster: Populated,
    server: Server,
    /// Nothing of the embedded store.
    etcd: Option<OnEtcd>,
    times: Vec<Duration>,
    /// For how long the server has kept processors busy meanwhile, in all.
    busy_ms: f64,
}

struct OnEtcd {
    bare: Bare,
    by_hand: ByHand,
    puts: Vec<Duration>,
    appends: Vec<Duration>,
    by_hand_times: Vec<Duration>,
    /// How many writes of the server's there were in all of its transitions.
    writes: i64,
}

/// What is asked for on the command line.
pub(crate) struct Options {
    pub(crate) program: PathBuf,
    pub(crate) rounds: usize,
    pub(crate) only: Option<String>,
    pub(crate) json: Option<PathBuf>,
}

pub(crate) fn run(options: &Options) {
    let runtime = Runtime::new().expect("threads");
    let is_wanted = |name: &str| options.only.as_ref().is_none_or(|only| only == name);
    let load = std::fs::read_to_string("/proc/loadavg").expect("a file of Linux");
    let load = load.split(' ').next().expect("a number").to_owned();
    let mut lines = Vec::new();
    if is_wanted("transition") {
        lines.extend(transitions(&runtime, &options.program, options.rounds));
    }
    if is_wanted("succession") {
        lines.extend(successions(&options.program));
    }
    println!("{:<64} {:>9} {:>9}    the machine's load before: {load}", "", "median", "99 %");
    for Line { what, unit, median, high, notes, aim } in &lines {
        println!("{what:<64} {median:>9.2} {high:>9.2} {unit}");
        notes.iter().for_each(|note| println!("    {note}"));
        if let Some((aim, is_met)) = aim {
            println!("    aim: {aim}: {}", if *is_met { "met" } else { "MISSED" });
        }
    }
    if let Some(path) = &options.json {
        let text = serde_json::to_vec_pretty(&lines).expect("plain data");
        std::fs::write(path, text).expect("the file can be written");
    }
}

/// An etcd of so many members that serves, with their directories in `dir`.
fn start(dir: &Path, count: usize, more: &[&str]) -> Members {
    let dir = dir.join(format!("etcd-{count}"));
    std::fs::create_dir_all(&dir).expect("a directory to work in");
    let mut members = Members::start(&dir, count, more);
    wait_for("etcd", || members.serves());
    members
}

/// Where clients that are not servers reach one of them.
fn url(members: &Members, place: usize) -> String {
    format!("127.0.0.1:{}", members.ports[place].client)
}

fn ms(time: Duration) -> f64 {
    time.as_secs_f64() * 1000.0
}

/// The median, and what 99 of 100 are below.
fn spread(times: &[Duration]) -> (f64, f64) {
    let mut times = times.to_vec();
    times.sort();
    (ms(times[times.len() / 2]), ms(times[times.len() * 99 / 100]))
}

fn line(what: String, times: &[Duration]) -> Line {
    let (median, high) = spread(times);
    Line { what, unit: "ms", median, high, notes: Vec::new(), aim: None }
}

fn transitions(runtime: &Runtime, program: &Path, rounds: usize) -> Vec<Line> {
    let dir = directory();
    let one = start(&dir, 1, &NEAR);
    let three = start(&dir, 3, &NEAR);
    let stores = [("embedded", None), ("1 member", Some(&one)), ("3 members", Some(&three))];
    let mut cases = stores.map(|(name, members)| Case::start(runtime, program, &dir, name, members));
    for round in 0..WARM_UP + rounds {
        let state = if round % 2 == 0 { "online" } else { "offline" };
        for case in &mut cases {
            case.round(runtime, state, round >= WARM_UP);
        }
    }
    let mut lines: Vec<_> = cases.iter().flat_map(|case| case.lines(rounds)).collect();
    // From here on a group for each host.
    for case in &mut cases {
        case.cluster.declare_sets();
    }
    let mut alone = cases.each_ref().map(|_| Vec::new());
    for round in 0..WARM_UP + rounds * 3 {
        let state = if round % 2 == 0 { "online" } else { "offline" };
        for (case, times) in cases.iter_mut().zip(&mut alone) {
            times.extend((round >= WARM_UP).then(|| case.cluster.decide_once(state)));
        }
    }
    for (case, times) in cases.iter().zip(&alone) {
        let (decided, ended): (Vec<_>, Vec<_>) = times.iter().copied().unzip();
        let name = case.name;
        lines.push(line(format!("{name}: one member, request to decision"), &decided));
        lines.push(line(format!("{name}: one member, request to outcome"), &ended));
    }
    for case in &mut cases {
        let times = case.cluster.saturate(SATURATED);
        let rate = times.len() as f64 / SATURATED.as_secs_f64();
        let what = format!("{}: {HOSTS} clients side by side, request to outcome", case.name);
        let notes = vec![format!("{rate:.0} in a second")];
        lines.push(Line { notes, ..line(what, &times) });
    }
    lines
}

impl Case {
    fn start(
        runtime: &Runtime,
        program: &Path,
        dir: &Path,
        name: &'static str,
        members: Option<&Members>,
    ) -> Self {
        let server = match members {
            None => Server::start(program, dir),
            Some(members) => {
                let store = ["--store", &members.address("lockstep"), "--name", "bench"];
                Server::start_on(program, &store, PathBuf::new())
            }
        };
        wait_active(&server.address);
        let cluster = Populated::start(&server.address, HOSTS);
        let etcd = members.map(|members| {
            runtime.block_on(async {
                OnEtcd {
                    bare: Bare::connect(members).await,
                    by_hand: ByHand::start(members, HOSTS).await,
                    puts: Vec::new(),
                    appends: Vec::new(),
                    by_hand_times: Vec::new(),
                    writes: 0,
                }
            })
        });
        Self { name, cluster, server, etcd, times: Vec::new(), busy_ms: 0.0 }
    }

    /// A transition, and what it is compared with.
    fn round(&mut self, runtime: &Runtime, state: &str, counts: bool) {
        let revision = |etcd: &mut Option<OnEtcd>| {
            etcd.as_mut().map_or(0, |etcd| runtime.block_on(etcd.bare.revision()))
        };
        let before = revision(&mut self.etcd);
        let busy_before = load::cpu_ms(self.server.pid());
        let time = self.cluster.transition(state);
        let after = revision(&mut self.etcd);
        if counts {
            self.times.push(time);
            self.busy_ms += load::cpu_ms(self.server.pid()) - busy_before;
        }
        let Some(etcd) = &mut self.etcd else { return };
        let (by_hand, put, append) = runtime.block_on(async {
            let by_hand = etcd.by_hand.exchange().await;
            (by_hand, etcd.bare.put(PUT_BYTES).await, etcd.bare.append(APPEND_BYTES).await)
        });
        if counts {
            etcd.writes += after - before;
            etcd.by_hand_times.push(by_hand);
            etcd.puts.push(put);
            etcd.appends.push(append);
        }
    }

    fn lines(&self, rounds: usize) -> Vec<Line> {
        let name = self.name;
        let mut transition =
            line(format!("{name}: transition over {HOSTS} hosts, request to outcome"), &self.times);
        transition.notes.push(format!("the server is busy for {:.1} ms of it", self.busy_ms / rounds as f64));
        let Some(etcd) = &self.etcd else { return vec![transition] };
        let by_hand =
            line(format!("{name}: the same two phases by hand, {HOSTS} participants"), &etcd.by_hand_times);
        let ratio = by_hand.median / transition.median;
        transition.aim = Some(("3 times as fast as by hand".to_owned(), ratio >= 3.0));
        let put = line(format!("{name}: a bare put of {PUT_BYTES} bytes"), &etcd.puts);
        let append = line(format!("{name}: a bare transaction of {APPEND_BYTES} bytes"), &etcd.appends);
        let writes = etcd.writes as f64 / rounds as f64;
        let in_writes = writes * append.median;
        transition.notes.extend([
            format!("by hand {ratio:.2} times as long"),
            format!("{writes:.1} writes, one after the other: {in_writes:.2} ms if each takes what a bare one does"),
        ]);
        vec![transition, by_hand, put, append]
    }
}

fn successions(program: &Path) -> Vec<Line> {
    let dir = directory();
    let mut lines = Vec::new();
    for (elections, more, kill_aim_ms) in
        [("elections in 500 ms", &NEAR[..], 1500.0), ("elections as etcd has them", &[], 2600.0)]
    {
        let members = start(&dir, 3, more);
        let mut servers = Servers::start(program, &members);
        for (end, what, runs, aim_ms) in
            [(End::Killed, "kill -9", KILLS, kill_aim_ms), (End::SteppedDown, "step-down", STEP_DOWNS, 100.0)]
        {
            let times = servers.succeed(end, runs);
            let mut line = line(format!("{what} to the next server's first write, {elections}"), &times);
            line.aim = Some((format!("median of {runs} under {aim_ms} ms"), line.median < aim_ms));
            lines.push(line);
        }
    }
    lines
}
