//! Tries out an agent: plays the server on a port, against any program that speaks the agent protocol, and judges what
//! it does by `docs/protocol.md`. It has no journal, no plans and no rules of its own.

mod case;
mod stage;

pub use stage::Options;

use serde::Serialize;
use stage::Stage;
use std::io;

/// A case: its name, what the page says that it tries, and how.
struct Case {
    name: &'static str,
    about: &'static str,
    try_out: fn(&mut Stage) -> Judged,
}

/// Why a case has not passed.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Stop {
    Failed { expected: String, came: String },
    Skipped(String),
}

type Judged<T = ()> = Result<T, Stop>;

fn failed<T>(expected: impl Into<String>, came: impl Into<String>) -> Judged<T> {
    Err(Stop::Failed { expected: expected.into(), came: came.into() })
}

/// How one case ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Verdict {
    /// Its name.
    pub case: &'static str,
    /// What it tries.
    pub about: &'static str,
    /// How it ended.
    #[serde(flatten)]
    pub ended: Ended,
}

/// How a case ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(tag = "result", rename_all = "kebab-case")]
pub enum Ended {
    /// The agent did what the page says.
    Passed,
    /// It did something else.
    Failed {
        /// What the page says.
        expected: String,
        /// What it did.
        came: String,
    },
    /// It could not be tried.
    Skipped {
        /// Why.
        reason: String,
    },
}

/// The names of all cases, in the order in which they are tried.
pub fn names() -> impl Iterator<Item = &'static str> {
    case::ALL.iter().map(|case| case.name)
}

/// Tries out an agent. `listening` is told where, as soon as an agent may dial; `verdict` how each case ended.
///
/// # Errors
/// If the port cannot be had, or the agent's program not be started.
pub fn run(
    options: &Options,
    listening: impl FnOnce(&str),
    mut verdict: impl FnMut(Verdict),
) -> io::Result<()> {
    let mut stage = Stage::open(options)?;
    listening(stage.url());
    stage.start_agent()?;
    for Case { name, about, try_out } in case::ALL {
        if !options.only.is_empty() && !options.only.iter().any(|only| only == name) {
            continue;
        }
        // What an agent has seen has to be known before it is given numbers.
        let judged = stage.session().map(drop).and_then(|()| try_out(&mut stage));
        let ended = match judged {
            Ok(()) => Ended::Passed,
            Err(Stop::Failed { expected, came }) => Ended::Failed { expected, came },
            Err(Stop::Skipped(reason)) => Ended::Skipped { reason },
        };
        stage.clear(ended == Ended::Passed);
        verdict(Verdict { case: name, about, ended });
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn the_protocol_s_page_names_every_case() {
        let page = include_str!("../../../docs/protocol.md");
        for Case { name, about, .. } in case::ALL {
            let line = format!("| `{name}` | {about} |");
            assert!(page.contains(&line), "docs/protocol.md should have the line\n{line}");
        }
        assert_eq!(names().collect::<BTreeSet<_>>().len(), case::ALL.len(), "names are unique");
    }
}
