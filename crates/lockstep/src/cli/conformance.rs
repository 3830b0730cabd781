//! `lockstep agent-conformance`: one line for each case that an agent is tried with.

use super::option::duration;
use super::output::{Form, clean, data, note};
use super::{Exit, Failure};
use crate::conformance::{self, Ended, Options, Verdict};
use clap::Args;
use clap::builder::PossibleValuesParser;
use lockstep_core::id::HandlerName;
use serde::Serialize;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

/// `lockstep agent-conformance`.
#[derive(Debug, Args)]
#[command(
    after_help = "The agent is tried as a server would: one member in each of two groups, then calls, restarts and \
                  whatever docs/protocol.md has. Start it with data and a host name of its own.\n\n\
                  Exit codes: 0 every case passed, 1 one failed or could not be tried"
)]
pub struct ConformanceArgs {
    /// Address to listen on; port 0 takes any free one
    #[arg(long, value_name = "ADDR:PORT", default_value = "127.0.0.1:0")]
    listen: SocketAddr,
    /// The handler that members are assigned, as the agent knows it
    #[arg(long, value_name = "NAME", default_value = "none")]
    handler: HandlerName,
    /// File to which that handler adds a line `PHASE TRANSITION` for each call; what is carried out is counted there
    #[arg(long, value_name = "FILE")]
    calls: Option<PathBuf>,
    /// How long the agent may take for anything
    #[arg(long, value_name = "TIME", default_value = "10s", value_parser = duration)]
    patience: Duration,
    /// Try these cases only, separated by commas
    #[arg(long, value_name = "CASE", value_delimiter = ',', value_parser = PossibleValuesParser::new(conformance::names()))]
    #[arg(hide_possible_values = true)]
    only: Vec<String>,
    /// The agent and its arguments, {url} being this server's address; it is killed and started again. The agent
    /// itself, not a script that starts it. Without it start one yourself
    #[arg(last = true, value_name = "AGENT")]
    program: Vec<String>,
}

/// All verdicts.
#[derive(Debug, Default, Serialize)]
struct Report {
    passed: usize,
    failed: usize,
    skipped: usize,
    cases: Vec<Verdict>,
}

/// Tries the agent out, and prints how each case ended as soon as it has.
pub fn conformance(args: ConformanceArgs, form: Form) -> Result<Exit, Failure> {
    let ConformanceArgs { listen, handler, calls, patience, only, program } = args;
    let options = Options { listen, handler, calls, patience, only, program };
    let mut report = Report::default();
    // As a server prints it; where data is one object, it is no part of it.
    let listening = |url: &str| match form {
        Form::Table => _ = data(&format!("listening on {url}")),
        Form::Json | Form::Yaml => note(&format!("listening on {url}")),
    };
    let done = conformance::run(&options, listening, |verdict| {
        let (count, line) = match &verdict.ended {
            Ended::Passed => (&mut report.passed, format!("passed   {}", verdict.case)),
            Ended::Failed { expected, came } => {
                let (expected, came) = (clean(expected), clean(came));
                (&mut report.failed, format!("FAILED   {}: expected {expected}; came {came}", verdict.case))
            }
            Ended::Skipped { reason } => {
                (&mut report.skipped, format!("skipped  {}: {}", verdict.case, clean(reason)))
            }
        };
        *count += 1;
        if form == Form::Table {
            // Whoever reads no more still gets the exit code.
            let _ = data(&line);
        }
        report.cases.push(verdict);
    });
    done.map_err(|error| Failure::error(format!("cannot try the agent out: {error}")))?;
    let Report { passed, failed, skipped, .. } = report;
    form.print(&report, || format!("{passed} passed, {failed} failed, {skipped} skipped"))?;
    Ok(if passed == report.cases.len() { Exit::Done } else { Exit::Error })
}
