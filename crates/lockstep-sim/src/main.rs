//! `lockstep-sim`: runs seeds, and tells what they found. One seed prints the same bytes each time on standard output;
//! what depends on the machine goes to standard error.

use clap::{Parser, Subcommand};
use lockstep_core::mutant::Mutant;
use lockstep_sim::exhaust;
use lockstep_sim::run::{self, Found, Plan};
use lockstep_sim::sim::SHARED_FROM;
use std::io::{self, stdout};
use std::process::ExitCode;
use std::time::{Duration, Instant};

/// How many of a failing seed's last lines are shown when there are several.
const SHOWN: usize = 40;

/// So many seeds of each kind look for a deliberate fault before more of the other one do.
const HUNT_SEEDS: u64 = 250;

/// Runs Lockstep's engines under seeded faults and checks what is promised.
#[derive(Debug, Parser)]
#[command(about, max_term_width = 100, args_conflicts_with_subcommands = true)]
struct Args {
    #[command(subcommand)]
    command: Option<Command>,
    /// How many seeds; 100, unless only one is named.
    #[arg(long)]
    seeds: Option<u64>,
    /// The first of them; alone, only this one, with all that happened in it.
    #[arg(long)]
    seed: Option<u64>,
    /// Begins with the seeds whose servers share a journal service.
    #[arg(long, conflicts_with = "seed")]
    shared: bool,
    /// Goes on for so long instead of counting seeds.
    #[arg(long)]
    minutes: Option<u64>,
    /// How many threads.
    #[arg(long, default_value_t = 2)]
    threads: usize,
    /// Puts a deliberate fault in force, in builds that have them (`--cfg lockstep_mutants`).
    #[arg(long)]
    mutant: Option<Mutant>,
}

/// What to do instead of running seeds.
#[derive(Debug, Subcommand)]
enum Command {
    /// Explores small configurations until no state is left.
    Exhaust {
        /// Only this one.
        #[arg(long)]
        only: Option<String>,
        /// Looks for a deliberate fault with them.
        #[arg(long)]
        mutant: Option<Mutant>,
    },
    /// Looks for each deliberate fault in turn, until a seed catches it.
    Mutants {
        /// After so many seeds a fault has survived them.
        #[arg(long, default_value_t = 3000)]
        seeds: u64,
    },
}

fn main() -> ExitCode {
    let args = Args::parse();
    let hunts = match &args.command {
        Some(Command::Mutants { .. }) => true,
        Some(Command::Exhaust { mutant, .. }) => mutant.is_some(),
        None => args.mutant.is_some(),
    };
    if hunts && !run::force(args.mutant) {
        eprintln!(
            "this build has no mutants: RUSTFLAGS=\"--cfg lockstep_mutants\" cargo run -p lockstep-sim ..."
        );
        return ExitCode::from(2);
    }
    let done = match &args.command {
        Some(Command::Exhaust { only: _, mutant: Some(mutant) }) => exhaust::catches(*mutant, &mut stdout()),
        Some(Command::Exhaust { only, mutant: None }) => exhaust::run(only.as_deref(), &mut stdout()),
        Some(Command::Mutants { seeds }) => hunt(*seeds),
        None => Ok(seeds(&args)),
    };
    match done {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("cannot write: {error}");
            ExitCode::FAILURE
        }
    }
}

/// Runs seeds, and tells what they found. Whether nothing was broken.
fn seeds(args: &Args) -> bool {
    let first = args.seed.unwrap_or(if args.shared { SHARED_FROM } else { 0 });
    let only = args.seed.is_some() && args.seeds.is_none() && args.minutes.is_none();
    let plan = Plan {
        first,
        count: args.seeds.unwrap_or(if only { 1 } else { 100 }),
        until: args.minutes.map(|minutes| Instant::now() + Duration::from_secs(60 * minutes)),
        threads: args.threads.max(1),
        ends_with_first: false,
    };
    let began = Instant::now();
    let (tally, found) = run::run(&plan);
    if only {
        run::lines(first).iter().for_each(|line| println!("{line}"));
    }
    print!("{tally}");
    for Found { seed, violation, lines } in &found {
        let shown = if only { 0 } else { lines.len().min(SHOWN) };
        lines[lines.len() - shown..].iter().for_each(|line| println!("{line}"));
        println!("VIOLATION of {violation}");
        println!("again: cargo run --release -p lockstep-sim -- --seed {seed}");
    }
    println!("violations {}", found.len());
    let seconds = began.elapsed().as_secs_f64();
    eprintln!("{:.1} s, {:.1} seeds a second", seconds, tally.seeds as f64 / seconds);
    found.is_empty()
}

/// Lets seeds look for each deliberate fault. One that survives is a hole in the checks. Whether none does.
fn hunt(seeds: u64) -> io::Result<bool> {
    let mut all_caught = true;
    for &mutant in Mutant::ALL {
        let own = catcher(mutant, seeds);
        match &own {
            Some(Found { seed, violation, .. }) => {
                println!("{mutant} caught by {} with seed {seed}", violation.invariant)
            }
            None => println!("{mutant} survived"),
        }
        all_caught &= own.is_some();
    }
    Ok(all_caught)
}

/// The seed that catches a deliberate fault, of those with one server and those whose servers share a journal.
fn catcher(mutant: Mutant, seeds: u64) -> Option<Found> {
    for at in (0..seeds).step_by(HUNT_SEEDS as usize) {
        for first in [at, SHARED_FROM + at] {
            let count = HUNT_SEEDS.min(seeds - at);
            run::force(Some(mutant));
            let (_, found) = run::run(&Plan { first, count, until: None, threads: 2, ends_with_first: true });
            // What is found without the fault too is not the fault's.
            run::force(None);
            let own = found.into_iter().find(|found| run::run_seed(found.seed).1.is_none());
            if own.is_some() {
                return own;
            }
        }
    }
    None
}
