//! What a run came to, in figures; and whether they are enough for it to prove anything.

use crate::check;
use crate::etcd::Seen;
use crate::history::{Evidence, Struck, TakeOver};
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io;
use std::path::Path;
use std::time::Duration;

/// So many transitions have to end, and handlers to be called, in each minute.
const TRANSITIONS_PER_MINUTE: f64 = 20.0;
const CALLS_PER_MINUTE: f64 = 100.0;
/// From so many minutes on, each outcome has to occur.
const OUTCOMES: [(&str, f64); 4] = [("committed", 0.0), ("aborted", 0.0), ("undone", 1.5), ("degraded", 5.0)];
/// The most lines about one check.
const SHOWN_MAX: usize = 5;

/// What the evidence does not have.
#[derive(Debug)]
pub(crate) struct Totals {
    /// By kind, how often it was tried to make a fault, and how often it bit.
    pub(crate) bitten: BTreeMap<&'static str, (u64, u64)>,
    /// How often processes ended by themselves.
    pub(crate) ended: BTreeMap<String, usize>,
}

/// The figures; gives the number of violations, by check.
pub(crate) fn print(evidence: &Evidence, totals: &Totals, took: Duration) -> BTreeMap<&'static str, usize> {
    println!("transitions   {}", counts(&outcomes(evidence)));
    let causes = evidence.history.transitions.values().filter(|whole| whole["outcome"] == "aborted");
    let mut by_cause: BTreeMap<String, u64> = BTreeMap::new();
    for whole in causes {
        *by_cause.entry(whole["cause"].as_str().unwrap_or("?").to_owned()).or_default() += 1;
    }
    println!("  aborted by  {}", counts(&by_cause));
    let mut calls: BTreeMap<String, u64> = BTreeMap::new();
    for line in evidence.calls.iter().filter(|line| line.code.is_none()) {
        *calls.entry(line.phase.clone()).or_default() += 1;
    }
    println!("handler calls {}", counts(&calls));
    let history = &evidence.history;
    println!(
        "seen          {} events, {} answers, {} messages, {} runs of software, {} journals",
        history.events.len(),
        history.reads_made,
        history.wire.len(),
        evidence.runs.len(),
        evidence.journals.len() + usize::from(evidence.store.is_some())
    );
    let bites: BTreeMap<String, u64> =
        totals.bitten.iter().map(|(kind, (_, bites))| ((*kind).to_owned(), *bites)).collect();
    println!("faults        {}", counts(&bites));
    let ended = totals.ended.iter().map(|(name, count)| (name.clone(), *count as u64)).collect();
    println!("ended alone   {}", counts(&ended));
    let known_by = |by: &str| evidence.events("evidence").filter(|(_, event)| event.text("by") == by).count();
    let repairs =
        evidence.events("request").filter(|(_, event)| event.text("principal") == "lockstep").count();
    println!(
        "replaceable   {} members by their leases, {} by fencing, {} by somebody's word; {repairs} repairs",
        known_by("lease"),
        known_by("fence"),
        known_by("person")
    );
    if let Some(seen) = &evidence.etcd {
        print_take_overs(evidence, seen);
    }
    println!("spared {}, excused {}, stalls {}", evidence.spared, evidence.excused, history.stalls.len());
    let mut broken = BTreeMap::new();
    for (name, check) in check::all() {
        let verdict = check(evidence);
        if !verdict.broken.is_empty() {
            broken.insert(name, verdict.broken.len());
        }
        let word = if verdict.broken.is_empty() { "holds" } else { "BROKEN" };
        println!("{word:<7} {name:<30} {:>7}", verdict.looked);
        for why in verdict.broken.iter().take(SHOWN_MAX) {
            println!("VIOLATION of {name}: {why}");
        }
    }
    println!("took {:.0} s", took.as_secs_f64());
    broken
}

/// How long it took, from what took the active server away to the first write that was acknowledged again.
fn print_take_overs(evidence: &Evidence, seen: &Seen) {
    let history = &evidence.history;
    let begun: Vec<&str> = seen.batches.values().filter_map(|batch| batch.begins.as_deref()).collect();
    let servers: BTreeSet<&&str> = begun.iter().collect();
    println!(
        "reigns        {}, of {} servers, {} seen to begin; etcd had {} leaders; {} batches of {} records",
        begun.len(),
        servers.len(),
        seen.reigns.len(),
        seen.leaders.len(),
        seen.batches.len(),
        seen.cluster.revision
    );
    let kinds: BTreeSet<&str> = history.take_overs.iter().map(|over| over.kind).collect();
    for kind in kinds {
        let of_kind = || history.take_overs.iter().filter(|over| over.kind == kind);
        // With nothing else done to etcd or the network between it and its servers.
        let is_alone = |over: &&TakeOver| {
            let touches = |struck: &Struck| {
                let is_cut = struck.target.ends_with("/net") && struck.kind.contains("etcd");
                let is_etcd = ["all", "net", "etcd", "etcd/net"].contains(&struck.target.as_str());
                struck.kind != kind && (is_cut || is_etcd)
            };
            !evidence.is_struck(
                touches,
                over.from.minus_ms(5000),
                over.from.plus_ms(over.took_ms.unwrap_or(0)),
            )
        };
        let alone: Vec<u64> = of_kind().filter(is_alone).filter_map(|over| over.took_ms).collect();
        let all: Vec<u64> = of_kind().filter_map(|over| over.took_ms).collect();
        println!(
            "  {kind:<28} {} times, {} not in time; to the first write {}; with etcd left alone {}",
            of_kind().count(),
            of_kind().filter(|over| over.took_ms.is_none()).count(),
            median_and_max(all),
            median_and_max(alone)
        );
    }
}

fn median_and_max(mut ms: Vec<u64>) -> String {
    ms.sort_unstable();
    match ms.last() {
        Some(max) => format!("median {} ms, max {max} ms ({})", ms[ms.len() / 2], ms.len()),
        None => "never".to_owned(),
    }
}

/// What is missing for the run to count.
pub(crate) fn lacking(evidence: &Evidence, totals: &Totals, minutes: f64) -> Vec<String> {
    let mut lacking = Vec::new();
    let never: Vec<&str> =
        totals.bitten.iter().filter(|(_, (_, bites))| *bites == 0).map(|(kind, _)| *kind).collect();
    if !never.is_empty() {
        lacking.push(format!("never bitten: {}", never.join(", ")));
    }
    let outcomes = outcomes(evidence);
    let ended = outcomes.values().sum::<u64>() as f64;
    if ended < TRANSITIONS_PER_MINUTE * minutes {
        lacking.push(format!("only {ended} transitions"));
    }
    let calls = evidence.calls.len() as f64 / 2.0;
    if calls < CALLS_PER_MINUTE * minutes {
        lacking.push(format!("only {calls} handler calls"));
    }
    let expected = OUTCOMES.into_iter().filter(|(_, from)| minutes >= *from).map(|(outcome, _)| outcome);
    let missing = expected.filter(|outcome| !outcomes.contains_key(*outcome));
    lacking.extend(missing.map(|outcome| format!("no transition {outcome}")));
    if !evidence.events("evidence").any(|(_, event)| event.text("by") == "lease") {
        lacking.push("no lease ended with a member that others could replace".to_owned());
    }
    if let Some(seen) = &evidence.etcd {
        if evidence.history.take_overs.iter().all(|over| over.took_ms.is_none()) {
            lacking.push("no server took over".to_owned());
        }
        if seen.leaders.len() < 2 {
            lacking.push("etcd never chose another leader".to_owned());
        }
    }
    for (name, check) in check::all() {
        if check(evidence).looked == 0 {
            lacking.push(format!("{name} looked at nothing"));
        }
    }
    lacking
}

fn outcomes(evidence: &Evidence) -> BTreeMap<String, u64> {
    let mut outcomes = BTreeMap::new();
    for told in evidence.history.told.iter().filter(|told| told.what == "outcome" && told.source == "events")
    {
        *outcomes.entry(told.value.clone()).or_default() += 1;
    }
    outcomes
}

fn counts(of: &BTreeMap<String, u64>) -> String {
    let words: Vec<String> = of.iter().map(|(name, count)| format!("{name} {count}")).collect();
    words.join(", ")
}

/// All that was seen, for whoever looks into it.
pub(crate) fn write(evidence: &Evidence, to: &Path) -> io::Result<()> {
    let history = &evidence.history;
    let events =
        history.events.iter().map(|(revision, event)| format!("{revision} {} {}\n", event.at, event.what));
    fs::write(to.join("events.txt"), events.collect::<String>())?;
    let struck = history.struck.iter().map(|struck| {
        let to = struck.to.map(|to| to.to_string()).unwrap_or_default();
        format!("{} {to} {} {} bitten={}\n", struck.from, struck.kind, struck.target, struck.has_bitten)
    });
    fs::write(to.join("faults.txt"), struck.collect::<String>())?;
    let wire = history
        .wire
        .iter()
        .map(|heard| format!("{} {} {} {:?}\n", heard.at, heard.host, heard.connection, heard.what));
    fs::write(to.join("wire.txt"), wire.collect::<String>())?;
    let journals = evidence.journals.iter();
    let lines =
        journals.flat_map(|(host, records)| records.iter().map(move |record| format!("{host} {record:?}\n")));
    fs::write(to.join("journals.txt"), lines.collect::<String>())?;
    if let Some(seen) = &evidence.etcd {
        let reigns =
            seen.reigns.iter().map(|(reign, (since, name))| format!("reign {reign} since {since} {name}\n"));
        let leaders = seen.leaders.iter().map(|(term, name)| format!("term {term} {name}\n"));
        let batches = seen.batches.values().map(|batch| format!("{batch:?}\n"));
        fs::write(to.join("etcd.txt"), reigns.chain(leaders).chain(batches).collect::<String>())?;
        let reads = history.reads.iter().map(|read| format!("{read:?}\n"));
        fs::write(to.join("reads.txt"), reads.collect::<String>())?;
        let accepted = history.accepted.iter().map(|accepted| format!("{accepted:?}\n"));
        let cuts = history.cut_off.iter().map(|cut| format!("{cut:?}\n"));
        let overs = history.take_overs.iter().map(|over| format!("{over:?}\n"));
        fs::write(to.join("writes.txt"), accepted.chain(cuts).chain(overs).collect::<String>())?;
    }
    let wholes = history.transitions.values().map(|whole| format!("{whole}\n"));
    fs::write(to.join("transitions.txt"), wholes.collect::<String>())
}
