//! Chaos: servers and agents as real processes, in networks and on disks of their own, under faults. What happens is
//! written down by those who cannot know better: the members' software, its handlers, whoever asks the API, and a proxy.
//! Then it is judged by the invariants of `docs/guarantee.md`. `lockstep-sim` finds more; what it pretends (processes,
//! disks, networks, clocks) is real here.

mod check;
mod clock;
mod command;
mod drive;
mod etcd;
mod fault;
mod history;
mod host;
mod http;
mod journal;
mod member;
mod network;
mod proxy;
mod random;
mod reader;
mod report;
mod sandbox;
mod workload;
mod world;

use clap::Parser;
use std::ffi::OsString;
use std::path::PathBuf;
use std::process::ExitCode;

/// An invariant is broken.
pub(crate) const BROKEN: u8 = 1;
/// Nothing is broken, and it proves nothing: there was too little traffic, or a kind of fault never bit.
pub(crate) const INVALID: u8 = 3;
/// It could not be run.
pub(crate) const CANNOT_RUN: u8 = 4;

/// Real processes under faults, judged from outside. As root. Exit status: 0 fine, 1 an invariant is broken, 3 not
/// valid (too little traffic, or a kind of fault that never bit), 4 it could not be run.
#[derive(Debug, Clone, Parser)]
#[command(name = "lockstep-chaos")]
pub(crate) struct Options {
    /// How long faults are made; it takes a minute or two more until all is resolved and judged
    #[arg(long, value_name = "M", default_value = "2")]
    minutes: f64,
    /// 1, with the embedded store, or 3, with their store in an etcd of three members
    #[arg(long, value_name = "N", default_value = "1")]
    servers: network::Layout,
    /// Leaves etcd its own times instead of short ones: it takes longer to choose a leader
    #[arg(long)]
    etcd_default_timing: bool,
    /// Picks the faults and requests; random by default
    #[arg(long, value_name = "N")]
    seed: Option<u64>,
    /// The program that is tried
    #[arg(long, value_name = "FILE", default_value = "target/debug/lockstep")]
    lockstep: PathBuf,
    /// Where everything is kept when something is broken
    #[arg(long, value_name = "DIR", default_value = "target/chaos")]
    keep: PathBuf,
    /// Does one thing wrong on purpose: the checks have to find it
    #[arg(long, value_name = "WHAT")]
    defect: Option<member::Defect>,
    /// Makes only these kinds of faults
    #[arg(long, value_name = "KIND", value_delimiter = ',')]
    only: Vec<String>,
}

fn main() -> ExitCode {
    let args: Vec<OsString> = std::env::args_os().skip(1).collect();
    let word = |place: usize| args.get(place).and_then(|arg| arg.to_str()).unwrap_or_default();
    // What this program is besides: handlers and software of members, started by agents in large numbers.
    match word(0) {
        "handler" => return member::handle(word(1)),
        "software" => {
            return match member::software(word(1), word(2)) {
                Ok(()) => ExitCode::SUCCESS,
                Err(_) => ExitCode::FAILURE,
            };
        }
        "init" => return sandbox::init(&args[1..]),
        "drive" => {
            let options =
                Options::parse_from(["lockstep-chaos".into()].into_iter().chain(args[1..].iter().cloned()));
            return drive::run(&options);
        }
        _ => {}
    }
    // Refuses what it does not know before anything is made.
    Options::parse();
    eprintln!("chaos: cannot make a sandbox: {}", sandbox::enter(&args));
    ExitCode::from(CANNOT_RUN)
}
