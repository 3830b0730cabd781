//! Runs many seeds on a few threads. What comes out does not depend on which thread ran what.

use crate::fault;
use crate::invariant::{Violation, i21_wall_clocks_decide_nothing, i26_same_bytes};
use crate::sim::{self, Options, Sim};
use crate::tally::Tally;
use lockstep_core::mutant::Mutant;
use lockstep_core::record::Record;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::Instant;

/// One seed in so many is run a second time, and has to give the same bytes.
const AGAIN_EVERY: u64 = 10;
/// One seed in so many is run a second time with wall clocks that do not jump, and has to go the same way.
const CLOCKS_EVERY: u64 = 20;

/// What is to be run.
#[derive(Debug, Clone, Copy)]
pub struct Plan {
    /// The first seed.
    pub first: u64,
    /// How many.
    pub count: u64,
    /// No more are begun then; the count does not matter.
    pub until: Option<Instant>,
    /// On how many threads.
    pub threads: usize,
    /// Whether the first violation ends it.
    pub ends_with_first: bool,
}

/// A seed that found something.
#[derive(Debug)]
pub struct Found {
    /// Which.
    pub seed: u64,
    /// What.
    pub violation: Violation,
    /// How it came to that, or the end of it.
    pub lines: Vec<String>,
}

/// Puts a deliberate fault in force, or none; `false` in builds that have no such faults.
#[cfg(not(lockstep_mutants))]
pub fn force(_: Option<Mutant>) -> bool {
    false
}

/// Puts a deliberate fault in force, or none.
#[cfg(lockstep_mutants)]
pub fn force(mutant: Option<Mutant>) -> bool {
    lockstep_core::mutant::force(mutant);
    true
}

/// Runs seeds, and tells what all of them came to.
pub fn run(plan: &Plan) -> (Tally, Vec<Found>) {
    // What a seed finds is told with its lines; the panic's own message comes in between.
    std::panic::set_hook(Box::new(|_| {}));
    let next = AtomicU64::new(0);
    let is_over = AtomicBool::new(false);
    let all = Mutex::new((Tally::default(), Vec::new()));
    thread::scope(|scope| {
        for _ in 0..plan.threads {
            scope.spawn(|| {
                loop {
                    let count = next.fetch_add(1, Ordering::Relaxed);
                    let is_enough = plan.until.map_or(count >= plan.count, |until| Instant::now() >= until);
                    if is_enough || is_over.load(Ordering::Relaxed) {
                        return;
                    }
                    let (tally, found) = run_seed(plan.first + count);
                    if found.is_some() && plan.ends_with_first {
                        is_over.store(true, Ordering::Relaxed);
                    }
                    let mut all = all.lock().expect("nobody panics with it");
                    all.0.add(&tally);
                    all.1.extend(found);
                }
            });
        }
    });
    let _ = std::panic::take_hook();
    let (tally, mut found) = all.into_inner().expect("nobody panics with it");
    found.sort_by_key(|found| found.seed);
    (tally, found)
}

/// How many kinds of faults are made in enough seeds, those whose servers share a journal service or the others.
pub fn fault_kinds(is_shared: bool) -> usize {
    fault::kinds(is_shared) + sim::TROUBLES
}

/// All that happened in a seed, or the end of it.
pub fn lines(seed: u64) -> Vec<String> {
    play(seed, Options::default()).0.lines().cloned().collect()
}

/// What a seed leaves in the servers' journal.
pub fn journal(seed: u64) -> Vec<Record> {
    play(seed, Options::default()).0.world.journal().to_vec()
}

/// Runs one seed.
pub fn run_seed(seed: u64) -> (Tally, Option<Found>) {
    let (sim, violation) = play(seed, Options::default());
    let mut tally = sim.tally().clone();
    tally.seeds = 1;
    let compare = || {
        let other = |options| play(seed, options).0.digest();
        if seed.is_multiple_of(AGAIN_EVERY) {
            i26_same_bytes::check(sim.digest(), other(Options::default()))?;
        }
        if seed % CLOCKS_EVERY == 1 {
            i21_wall_clocks_decide_nothing::check(sim.digest(), other(Options { keeps_wall_clock: true }))?;
        }
        Ok(())
    };
    let violation = violation.or_else(|| compare().err());
    let found = violation.map(|violation| Found { seed, violation, lines: sim.lines().cloned().collect() });
    (tally, found)
}

fn play(seed: u64, options: Options) -> (Sim, Option<Violation>) {
    let mut sim = Sim::new(seed, options);
    let played = catch_unwind(AssertUnwindSafe(|| sim.run()));
    let violation = match played {
        Ok(result) => result.err(),
        Err(panic) => {
            let text = panic.downcast_ref::<String>().cloned();
            let text = text.or_else(|| panic.downcast_ref::<&str>().map(|text| (*text).to_owned()));
            let what = text.unwrap_or_else(|| "it panicked".to_owned());
            Some(Violation { invariant: "assertions hold", what })
        }
    };
    (sim, violation)
}
