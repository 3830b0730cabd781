//! `lockstep rehearse`: what would be left of a plan, for every single fault. With a server, or from files without one.

use super::client::Client;
use super::option::shown;
use super::output::{Form, table};
use super::plan::{PlanArgs, summary};
use super::{Exit, Failure};
use crate::api::rehearsal::{Broken, Case, Elsewhere, Held, Rehearsal, Summary, Write};
use clap::Args;
use lockstep_core::rehearse;
use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

/// How long a server may take, over what any answer may. The largest rehearsal that it accepts takes less than a
/// minute of a processor that has nothing else to do.
const REHEARSAL_MAX: Duration = Duration::from_secs(300);
/// Members at one place that are named one by one; more are counted.
const NAMED_MAX: usize = 2;
/// Places that are named in a row; more are counted.
const PLACES_MAX: usize = 3;
/// Members left elsewhere that are told apart in a row; more are counted.
const LEFT_MAX: usize = 3;

/// `lockstep rehearse`.
#[derive(Debug, Args)]
pub struct RehearseArgs {
    #[command(flatten)]
    plan: PlanArgs,
    /// Show a line for every case, also for those that go alike
    #[arg(long)]
    all: bool,
}

impl RehearseArgs {
    /// Whether it is to be answered from files.
    pub fn is_offline(&self) -> bool {
        self.plan.is_offline()
    }
}

/// Rehearses from files.
pub fn offline(args: &RehearseArgs, form: Form) -> Result<Exit, Failure> {
    let (cluster, scores) = args.plan.load()?;
    let rehearsal = rehearse::rehearse(&cluster, &args.plan.request(), &scores)?;
    show(&Rehearsal::of(&rehearsal), args.all, form)
}

/// Rehearses with a server.
pub async fn online(client: &Client, args: &RehearseArgs, form: Form) -> Result<Exit, Failure> {
    let answer = client.post_patiently("/v1/rehearsals", &args.plan.body(), REHEARSAL_MAX).await?;
    show(&answer.body, args.all, form)
}

fn show(rehearsal: &Rehearsal, all: bool, form: Form) -> Result<Exit, Failure> {
    form.print(rehearsal, || drawn(rehearsal, all))?;
    Ok(exit(rehearsal))
}

fn exit(rehearsal: &Rehearsal) -> Exit {
    let Rehearsal { clean, cases, .. } = rehearsal;
    if cases.iter().chain([clean]).any(Case::is_bad) {
        return Exit::Degraded;
    }
    // Nothing goes wrong and it does not happen: a holder's host is away, say.
    if clean.outcome.as_deref() == Some("aborted") { Exit::Aborted } else { Exit::Done }
}

/// The plan, how it goes by itself, a line for cases that go alike, the worst first, and a summary.
fn drawn(rehearsal: &Rehearsal, all: bool) -> String {
    let mut text = summary(&rehearsal.plan);
    if rehearsal.plan.steps.is_empty() && rehearsal.cases.is_empty() {
        return text;
    }
    let clean = End::of(&rehearsal.clean);
    let rest = [clean.left, clean.held].into_iter().filter(|cell| !cell.is_empty());
    let clean: Vec<_> = [clean.outcome].into_iter().chain(rest).collect();
    text.push_str(&format!("without a fault: {}\n\n", clean.join(", ")));
    let mut rows: BTreeMap<(End, &str, usize), Row> = BTreeMap::new();
    for (number, case) in rehearsal.cases.iter().enumerate() {
        let fault = case.fault.as_deref().unwrap_or_default();
        let key = (End::of(case), fault, if all { number } else { 0 });
        let row = rows.entry(key).or_insert_with(|| Row { first: number, places: BTreeMap::new() });
        let (what, group, host) = place(rehearsal, case);
        row.places.entry((what, group)).or_default().extend(host);
    }
    let mut rows: Vec<_> = rows.into_iter().collect();
    // Cases that end alike stand in the order in which their faults would strike.
    rows.sort_by(|((a, ..), first), ((b, ..), second)| {
        (a.badness, a.held_ms, first.first).cmp(&(b.badness, b.held_ms, second.first))
    });
    let rows = rows.into_iter().map(|((end, fault, _), row)| {
        let mark = if end.badness <= Badness::Degraded { "!" } else { " " };
        let End { outcome, left, held, took, .. } = end;
        vec![format!("{mark} {fault}"), row.places(), outcome, left, held, took]
    });
    let head = ["  FAULT", "AT", "OUTCOME", "LEFT ELSEWHERE", "HELD", "TAKES"];
    text.push_str(&table(&head, &rows.collect::<Vec<_>>()));
    text.push_str(&format!("\n{}\n", counted(rehearsal)));
    text
}

/// Which cases come first: those that somebody has to look at.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Badness {
    Unfinished,
    LimitBroken,
    Degraded,
    Elsewhere,
    Undone,
    Aborted,
    Committed,
}

/// How a case ends, as a row shows it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
struct End {
    badness: Badness,
    held_ms: Reverse<u64>,
    outcome: String,
    left: String,
    held: String,
    took: String,
}

impl End {
    fn of(case: &Case) -> Self {
        let mut outcome = case.outcome.clone().unwrap_or_else(|| "does not end".to_owned());
        let badness = match case.outcome.as_deref() {
            None => Badness::Unfinished,
            Some(_) if !case.broken.is_empty() => Badness::LimitBroken,
            Some("degraded") => Badness::Degraded,
            Some(_) if !case.elsewhere.is_empty() => Badness::Elsewhere,
            Some("undone") => Badness::Undone,
            Some("aborted") => Badness::Aborted,
            Some(_) => Badness::Committed,
        };
        if let Some(cause) = case.cause.as_deref().filter(|_| case.outcome.as_deref() != Some("undone")) {
            outcome.push_str(&format!(" ({cause})"));
        }
        for Broken { group, state, limit, count, allowed } in &case.broken {
            outcome.push_str(&format!(", breaks {limit} {allowed} of {group} {state}: {count}"));
        }
        let worst_ms = case.held.iter().map(|held| held.ms).max().unwrap_or_default();
        let held = match worst_ms {
            0 => String::new(),
            ms => {
                let worst = case.held.iter().filter(|held| held.ms == ms);
                let holders: Vec<_> = worst.map(|held| (held.group.as_str(), held.host.as_str())).collect();
                format!("{} {}", shown(Duration::from_millis(ms)), who(case, &holders))
            }
        };
        let took = match case.took_ms {
            0 => String::new(),
            ms => shown(Duration::from_millis(ms)),
        };
        Self { badness, held_ms: Reverse(worst_ms), outcome, left: left(case), held, took }
    }
}

/// Who is left where.
fn left(case: &Case) -> String {
    let mut alike: BTreeMap<(bool, String), Vec<(&str, &str)>> = BTreeMap::new();
    for Elsewhere { group, host, planned, actual, in_doubt } in &case.elsewhere {
        let what = match (in_doubt, planned == actual) {
            (true, true) => "in doubt".to_owned(),
            (true, false) => format!("in doubt: {actual}, not {planned}"),
            (false, _) => format!("{actual}, not {planned}"),
        };
        alike.entry((!is_itself(case, group, host), what)).or_default().push((group, host));
    }
    let mut parts: Vec<_> = alike
        .iter()
        .take(LEFT_MAX)
        .map(|((_, what), members)| format!("{} {what}", who(case, members)))
        .collect();
    if alike.len() > LEFT_MAX {
        parts.push(format!("and {} more", alike.len() - LEFT_MAX));
    }
    parts.join("; ")
}

/// Whether the fault strikes at this very member: rows of many cases cannot name each.
fn is_itself(case: &Case, group: &str, host: &str) -> bool {
    case.group.as_deref() == Some(group) && case.host.as_deref() == Some(host)
}

/// `itself`, `db@pg-a`, or `db (2) pool (1)`.
fn who(case: &Case, members: &[(&str, &str)]) -> String {
    match members {
        [(group, host)] if is_itself(case, group, host) => "itself".to_owned(),
        [(group, host)] => format!("{group}@{host}"),
        members => {
            let mut counts: BTreeMap<&str, usize> = BTreeMap::new();
            members.iter().for_each(|(group, _)| *counts.entry(group).or_default() += 1);
            let counts: Vec<_> = counts.iter().map(|(group, count)| format!("{group} ({count})")).collect();
            counts.join(" ")
        }
    }
}

/// Cases that end alike.
struct Row {
    /// The place of the first one among all.
    first: usize,
    /// Where their fault strikes: at what, the group's members or the hosts.
    places: BTreeMap<(String, Option<String>), BTreeSet<String>>,
}

impl Row {
    fn places(&self) -> String {
        let shown = |((what, group), hosts): (&(String, Option<String>), &BTreeSet<String>)| {
            let named =
                |host: &String| group.as_ref().map_or(host.clone(), |group| format!("{group}@{host}"));
            match (hosts.len(), group) {
                (0, _) => what.clone(),
                (1..=NAMED_MAX, _) => {
                    let hosts: Vec<_> = hosts.iter().map(named).collect();
                    format!("{what} {}", hosts.join(" "))
                }
                (count, Some(group)) => format!("{what} {group} ({count})"),
                (count, None) => format!("{what} ({count} hosts)"),
            }
        };
        let mut places: Vec<_> = self.places.iter().take(PLACES_MAX).map(shown).collect();
        if self.places.len() > PLACES_MAX {
            places.push(format!("and {} more", self.places.len() - PLACES_MAX));
        }
        places.join(", ")
    }
}

/// Where a fault strikes: at what, and at whom.
fn place(rehearsal: &Rehearsal, case: &Case) -> (String, Option<String>, Option<String>) {
    let step = case.step.and_then(|id| rehearsal.plan.steps.get(id as usize));
    let what = match (&case.write, &case.message, &case.phase, step) {
        (Some(Write { number, records }), ..) => format!("write {number} {}", records.join("+")),
        (None, Some(message), ..) => message.clone(),
        (None, None, Some(phase), Some(step)) => format!("{phase} {} -> {}", step.from, step.to),
        (None, None, Some(phase), None) => phase.clone(),
        (None, None, None, _) => String::new(),
    };
    (what, case.group.clone(), case.host.clone())
}

/// `N cases: a aborted, c committed, ...; worst hold 2.1 s at pool@p1`.
fn counted(rehearsal: &Rehearsal) -> String {
    let Summary { cases, aborted, committed, undone, degraded, unfinished, limit_broken, worst_hold } =
        &rehearsal.summary;
    let mut text = format!(
        "{cases} cases: {aborted} aborted, {committed} committed, {undone} undone, {degraded} degraded"
    );
    if *unfinished > 0 {
        text.push_str(&format!(", {unfinished} without an end"));
    }
    if *limit_broken > 0 {
        text.push_str(&format!("; {limit_broken} break a limit"));
    }
    match worst_hold {
        Some(Held { group, host, ms }) => {
            text.push_str(&format!("; worst hold {} at {group}@{host}", shown(Duration::from_millis(*ms))));
        }
        None => text.push_str("; nobody holds"),
    }
    text
}
