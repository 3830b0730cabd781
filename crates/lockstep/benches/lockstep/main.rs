//! Benchmarks, each beside its floor in the same run. A command (`cargo xtask bench`), never a timed test.
//!
//! - One transition over 100 hosts with `none` handlers, from the request to the outcome, against a server process on
//!   a real disk. The agents are core's own, in this process, with journals in memory. Each transition begins when all
//!   agents have been told the outcome of the one before. Its floor is a bare TCP exchange between two processes with
//!   the same connections, rounds, bytes each way, and synced writes.
//! - 100 transitions of three hosts each, all at once, until all have ended. Its floor is the same exchange over all
//!   their connections at once, with the writes of one.
//! - 5,000 agents that have nothing to do: what a server's memory grows by for each, and how long it takes until all
//!   are welcome again when all dial at once. Its floor is as many bare connections with a task and a small buffer
//!   each, over which a greeting and an answer of the same sizes go.
//! - Planning 10,000 members. Its floor is naming and hashing the same steps.
//! - Relations of 10,000 hosts, 1,000 groups and 20,000 derived edges, brought up to date after one change. Beside it:
//!   the same derived anew.
//!
//! With `etcd`, in a build with that feature, it puts the store in etcd beside the embedded one instead ([`etcd`]).
//!
//! With `--long N` it runs N small transitions instead and shows what becomes of the server's directory and memory.

#[cfg(feature = "etcd")]
mod etcd;
mod floor;
mod idle;
mod load;
mod relation;

use lockstep_core::cluster::Cluster;
use lockstep_core::id::{HostName, Index};
use lockstep_core::plan::{self, Plan, Scores};
use lockstep_core::record::{Body, HostChange, Record};
use lockstep_core::spec::SpecFile;
use lockstep_core::time::WallTime;
use serde::Serialize;
use sha2::{Digest, Sha256};
use std::hint::black_box;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// One line of the table.
#[derive(Serialize)]
struct Line {
    what: String,
    unit: &'static str,
    value: f64,
    floor: String,
    floor_value: f64,
    ratio: f64,
    aim: String,
    is_met: bool,
}

fn main() {
    let args: Vec<String> = std::env::args().collect();
    if let Some(at) = args.iter().position(|arg| arg == "--floor-server") {
        return floor::serve(&args[at + 1]);
    }
    if args.iter().any(|arg| arg == "--idle-floor-server") {
        return idle::serve_floor();
    }
    let json = args.iter().position(|arg| arg == "--json").map(|at| PathBuf::from(&args[at + 1]));
    let rounds = args
        .iter()
        .position(|arg| arg == "--rounds")
        .map_or(60, |at| args[at + 1].parse().expect("a number"));
    // Another build of the server, to be measured by the same benchmark.
    let program = args
        .iter()
        .position(|arg| arg == "--server")
        .map_or(PathBuf::from(env!("CARGO_BIN_EXE_lockstep")), |at| PathBuf::from(&args[at + 1]));
    if let Some(at) = args.iter().position(|arg| arg == "--long") {
        return load::long(&program, args[at + 1].parse().expect("a number"));
    }
    let only = args.iter().position(|arg| arg == "--only").map(|at| args[at + 1].clone());
    #[cfg(feature = "etcd")]
    if args.iter().any(|arg| arg == "etcd") {
        return etcd::run(&etcd::Options { program, rounds, only, json });
    }
    let is_wanted = |name: &str| only.as_ref().is_none_or(|only| only == name);
    let mut lines = Vec::new();
    lines.extend(is_wanted("transition").then(|| transition(&program, 100, rounds)));
    lines.extend(is_wanted("side-by-side").then(|| side_by_side(&program, 100, rounds)));
    lines.extend(is_wanted("planning").then(|| planning(10_000)));
    if is_wanted("relations") {
        lines.extend(relation::run());
    }
    if is_wanted("idle") {
        lines.extend(idle(&program, 5000));
    }
    println!("{:<58} {:>14} {:>10} {:>7}  aim", "", "", "floor", "ratio");
    for line in &lines {
        let verdict = if line.is_met { "met" } else { "MISSED" };
        let Line { what, unit, value, floor_value, ratio, aim, .. } = line;
        println!("{what:<58} {value:>10.3} {unit:<3} {floor_value:>10.3} {ratio:>7.2}  {aim}: {verdict}");
        println!("    floor: {}", line.floor);
    }
    if let Some(path) = json {
        std::fs::write(&path, serde_json::to_vec_pretty(&lines).expect("plain data"))
            .expect("the file can be written");
    }
}

fn median(mut times: Vec<Duration>) -> f64 {
    times.sort();
    times[times.len() / 2].as_secs_f64() * 1000.0
}

fn transition(program: &Path, hosts: usize, rounds: usize) -> Line {
    let measured = load::run(program, hosts, rounds);
    let ms = median(measured.times);
    let ratio = ms / median(measured.floor_times.clone());
    Line {
        what: format!("transition over {hosts} hosts, request to outcome"),
        unit: "ms",
        value: ms,
        floor: measured.shape,
        floor_value: median(measured.floor_times),
        ratio,
        aim: "at most 2 times".to_owned(),
        is_met: ratio <= 2.0,
    }
}

fn idle(program: &Path, hosts: usize) -> [Line; 2] {
    let idle::Measured { kib, floor_kib, storm, floor_storm, gave_up, floor } = idle::run(program, hosts);
    let (ms, floor_ms) = (median(storm), median(floor_storm));
    [
        Line {
            what: format!("server's memory for one of {hosts} idle hosts"),
            unit: "KiB",
            value: kib,
            floor: floor.clone(),
            floor_value: floor_kib,
            ratio: kib / floor_kib,
            aim: "under 20 KiB".to_owned(),
            is_met: kib < 20.0,
        },
        Line {
            what: format!("{hosts} agents that dial at once are all welcome"),
            unit: "ms",
            value: ms,
            floor: format!("{floor}; {gave_up} dialled more than once"),
            floor_value: floor_ms,
            ratio: ms / floor_ms,
            // Half of the shortest lease: nobody is given up by it.
            aim: "under 1500 ms".to_owned(),
            is_met: ms < 1500.0,
        },
    ]
}

fn side_by_side(program: &Path, groups: usize, rounds: usize) -> Line {
    let measured = load::side_by_side(program, groups, rounds);
    let value = median(measured.times);
    let floor_value = median(measured.floor_times);
    Line {
        what: format!("{groups} transitions of 3 hosts side by side, until all have ended"),
        unit: "ms",
        value,
        floor: measured.shape,
        floor_value,
        ratio: value / floor_value,
        aim: "shown beside its floor".to_owned(),
        is_met: true,
    }
}

fn planning(members: usize) -> Line {
    let groups = 100;
    let mut spec = String::from("{\"cluster\":\"bench\",\"groups\":{");
    for group in 0..groups {
        let comma = if group == 0 { "" } else { "," };
        spec.push_str(&format!("{comma}\"g{group:03}\":{{\"select\":{{\"group\":\"g{group:03}\"}}}}"));
    }
    spec.push_str("},\"relations\":[");
    for group in 0..groups - 3 {
        for (place, to) in (1..=3).enumerate() {
            let comma = if group == 0 && place == 0 { "" } else { "," };
            let to = group + to;
            spec.push_str(&format!(
                "{comma}{{\"from\":\"g{group:03}\",\"to\":\"g{to:03}\",\"kind\":\"requires\"}}"
            ));
        }
    }
    spec.push_str("]}");
    let spec: SpecFile = serde_json::from_str(&spec).expect("a valid spec");
    let mut cluster = Cluster::default();
    let mut apply = |body| {
        let index = Index(cluster.revision.0 + 1);
        cluster.apply(index, &Record { at: WallTime(0), body });
    };
    apply(Body::Spec { spec: Arc::new(spec), principal: "bench".to_owned() });
    for host in 0..members {
        let name = HostName::new(&format!("h{host:05}")).expect("a valid name");
        let group = format!("g{:03}", host % groups);
        let change = HostChange::Joined {
            agent: "bench".parse().expect("a valid name"),
            address: None,
            labels: [("group".to_owned(), group.clone())].into(),
        };
        apply(Body::Host { host: name.clone(), change });
        let member = format!("{group}@{name}").parse().expect("a valid member");
        apply(Body::Report { member, actual: Some("offline".parse().expect("a valid name")) });
    }
    let targets: Vec<_> =
        (0..groups).map(|group| format!("g{group:03}=online").parse().expect("a target")).collect();
    let scores = Scores::new();
    let (mut times, mut floor_times) = (Vec::new(), Vec::new());
    let mut steps = 0;
    for _ in 0..15 {
        let start = Instant::now();
        let plan = plan::plan(&cluster, &targets, &scores).expect("it can be planned");
        times.push(start.elapsed());
        steps = plan.steps.len();
        let start = Instant::now();
        black_box(name_and_hash(&plan));
        floor_times.push(start.elapsed());
    }
    assert_eq!(steps, members);
    let (ms, floor_ms) = (median(times), median(floor_times));
    Line {
        what: format!("plan {members} members, {groups} groups, 291 relations"),
        unit: "ms",
        value: ms,
        floor: "cloning, writing as JSON and hashing the same steps".to_owned(),
        floor_value: floor_ms,
        ratio: ms / floor_ms,
        aim: "under 250 ms".to_owned(),
        is_met: ms < 250.0,
    }
}

fn name_and_hash(plan: &Plan) -> impl Sized {
    let steps = plan.steps.clone();
    Sha256::digest(serde_json::to_vec(&steps).expect("plain data"))
}
