//! `lockstep-sim`: runs seeds, and tells what they found. One seed prints the same bytes each time on standard output;
//! what depends on the machine goes to standard error.

use clap::Parser;
use lockstep_core::mutant::Mutant;
use lockstep_sim::run::{self, Found, Plan};
use std::process::ExitCode;
use std::time::{Duration, Instant};

/// Runs Lockstep's engines under seeded faults and checks what is promised.
#[derive(Debug, Parser)]
#[command(about, max_term_width = 100)]
struct Args {
    /// How many seeds.
    #[arg(long, default_value_t = 100)]
    seeds: u64,
    /// The first of them; alone, only this one, with all that happened in it.
    #[arg(long)]
    seed: Option<u64>,
    /// Goes on for so long instead of counting seeds.
    #[arg(long)]
    minutes: Option<u64>,
    /// How many threads.
    #[arg(long, default_value_t = 2)]
    threads: usize,
    /// Puts a deliberate fault in force, in builds that have them (`--cfg lockstep_mutants`).
    #[arg(long)]
    mutant: Option<Mutant>,
    /// Looks for each deliberate fault in turn, until a seed catches it.
    #[arg(long, conflicts_with = "mutant")]
    mutants: bool,
}

fn main() -> ExitCode {
    if std::env::args().nth(1).as_deref() == Some("exhaust") {
        return exhaust();
    }
    let args = Args::parse();
    if (args.mutants || args.mutant.is_some()) && !run::force(args.mutant) {
        eprintln!(
            "this build has no mutants: RUSTFLAGS=\"--cfg lockstep_mutants\" cargo run -p lockstep-sim ..."
        );
        return ExitCode::from(2);
    }
    let first = args.seed.unwrap_or(0);
    let only = args.seed.is_some() && args.minutes.is_none() && !std::env::args().any(|arg| arg == "--seeds");
    let plan = Plan {
        first,
        count: if only { 1 } else { args.seeds },
        until: args.minutes.map(|minutes| Instant::now() + Duration::from_secs(60 * minutes)),
        threads: args.threads.max(1),
        ends_with_first: args.mutants,
    };
    if args.mutants {
        return hunt(&plan);
    }
    let began = Instant::now();
    let (tally, found) = run::run(&plan);
    print!("{tally}");
    for Found { seed, violation, lines } in &found {
        let shown = if only { lines.len() } else { lines.len().min(60) };
        lines[lines.len() - shown..].iter().for_each(|line| println!("{line}"));
        println!("VIOLATION of {violation}");
        println!("again: cargo run --release -p lockstep-sim -- --seed {seed}");
    }
    println!("violations {}", found.len());
    let seconds = began.elapsed().as_secs_f64();
    eprintln!("{:.1} s, {:.1} seeds a second", seconds, tally.seeds as f64 / seconds);
    if found.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// Lets seeds look for each deliberate fault. One that survives is a hole in the checks.
fn hunt(plan: &Plan) -> ExitCode {
    let mut all_caught = true;
    for &mutant in Mutant::ALL {
        run::force(Some(mutant));
        let (_, found) = run::run(plan);
        match found.first() {
            Some(found) => {
                let seeds = found.seed - plan.first + 1;
                println!("{mutant} caught by {} after {seeds} seeds", found.violation.invariant);
            }
            None => println!("{mutant} survived"),
        }
        all_caught &= !found.is_empty();
    }
    if all_caught { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn exhaust() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(2).collect();
    let value = |name: &str| args.iter().position(|arg| arg == name).and_then(|at| args.get(at + 1));
    let out = &mut std::io::stdout();
    let is_good = match value("--mutant").map(|name| name.parse()) {
        Some(Ok(mutant)) => lockstep_sim::exhaust::catches(mutant, out),
        Some(Err(error)) => {
            eprintln!("{error}");
            return ExitCode::from(2);
        }
        None => lockstep_sim::exhaust::run(value("--only").map(String::as_str), out),
    };
    if matches!(is_good, Ok(true)) { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
