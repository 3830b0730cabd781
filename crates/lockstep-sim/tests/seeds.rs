//! A few hundred seeds, as a test: nothing is broken, everything that can happen does happen, and the same seed gives
//! the same bytes. `cargo run --release -p lockstep-sim -- --seeds N` runs as many as there is time for.

#![allow(clippy::unwrap_used, reason = "these are tests")]
#![cfg(not(lockstep_mutants))]

use lockstep_core::cluster::Cluster;
use lockstep_core::id::Index;
use lockstep_core::snapshot;
use lockstep_sim::run::{self, Plan};
use lockstep_sim::sim::SHARED_FROM;
use lockstep_sim::tally::Tally;
use std::process::Command;

const SEEDS: u64 = 300;
/// The same of those whose servers share a journal service.
const SHARED_SEEDS: u64 = 200;
/// How many of them have a snapshot taken after every record.
const SNAPSHOT_SEEDS: u64 = 5;

/// Seeds that have found something, before it was mended.
const FOUND: [u64; 58] = [
    9,
    17,
    67,
    76,
    97,
    112,
    142,
    143,
    147,
    157,
    178,
    191,
    230,
    241,
    299,
    325,
    412,
    481,
    531,
    549,
    558,
    559,
    755,
    759,
    978,
    1088,
    2235,
    4754,
    5223,
    20_052,
    21_229,
    109_131,
    110_207,
    340_792,
    400_061,
    400_071,
    400_758,
    400_968,
    401_065,
    401_373,
    403_796,
    404_155,
    404_667,
    404_901,
    405_596,
    410_280,
    410_396,
    433_670,
    443_313,
    446_600,
    450_988,
    2_000_406,
    2_000_599,
    5_002_128,
    6_005_249,
    1_000_014_612,
    1_000_027_006,
    1_000_602_200,
];

#[test]
fn seeds_find_nothing_and_every_fault_bites() {
    let tally = find_nothing(0, SEEDS);
    assert_eq!(tally.faults.len(), run::fault_kinds(false), "kinds of faults");
}

#[test]
fn seeds_of_servers_that_share_a_journal_find_nothing_and_every_fault_bites() {
    let tally = find_nothing(SHARED_FROM, SHARED_SEEDS);
    assert_eq!(tally.faults.len(), run::fault_kinds(true), "kinds of faults");
    // What they are there for has to have been tried.
    for what in [
        "take-over in mid-transition",
        "unanswered write lands",
        "unanswered write does not land",
        "unanswered write is found",
        "deposed server writes",
        "write comes after another server has begun",
    ] {
        assert!(tally.seen.contains_key(what), "no seed in which: {what}");
    }
}

fn find_nothing(first: u64, count: u64) -> Tally {
    let plan = Plan { first, count, until: None, threads: 2, ends_with_first: false };
    let (tally, found) = run::run(&plan);
    for found in &found {
        found.lines.iter().rev().take(60).rev().for_each(|line| eprintln!("{line}"));
        eprintln!("seed {}: {}", found.seed, found.violation);
    }
    assert!(found.is_empty(), "{} of {count} seeds broke something", found.len());
    let outcomes: Vec<_> = tally.outcomes.keys().map(String::as_str).collect();
    assert_eq!(outcomes, ["aborted", "committed", "degraded", "undone"]);
    for (fault, (made, bit)) in &tally.faults {
        assert!(*bit > 0, "{fault} was made {made} times and made no difference");
    }
    // Who has said that a member had stopped, and what came of that.
    let evidence: Vec<_> = tally.evidence.keys().copied().collect();
    assert_eq!(evidence, ["fence", "lease", "person"]);
    assert!(tally.repairs > 0);
    tally
}

#[test]
fn seeds_that_once_found_something_find_nothing() {
    for seed in FOUND {
        let (_, found) = run::run_seed(seed);
        assert!(found.is_none(), "seed {seed}: {}", found.unwrap().violation);
    }
}

/// Whoever loads a snapshot, taken after whichever record, goes on as those do that have read every record.
#[test]
fn snapshots_stand_in_for_the_records_before_them() {
    let mut count = 0;
    for seed in 0..SNAPSHOT_SEEDS {
        let (mut told, mut loaded) = (Cluster::default(), Cluster::default());
        for (record, index) in run::journal(seed).iter().zip((1..).map(Index)) {
            told.apply(index, record);
            loaded.apply(index, record);
            assert_eq!(loaded, told, "seed {seed}, after {index}");
            loaded = snapshot::decode(&snapshot::encode(&told)).unwrap();
            assert_eq!(loaded, told, "seed {seed}, a snapshot at {index}");
            count += 1;
        }
    }
    assert!(count > 500, "{count} records are too few to say anything");
}

#[test]
fn one_seed_prints_the_same_bytes() {
    for seed in [7, SHARED_FROM + 7] {
        let seed = seed.to_string();
        let mut print = Command::new(env!("CARGO_BIN_EXE_lockstep-sim"));
        print.args(["--seed", &seed]);
        let first = print.output().unwrap().stdout;
        assert!(first.len() > 500, "{}", String::from_utf8_lossy(&first));
        assert_eq!(first, print.output().unwrap().stdout);
    }
}
