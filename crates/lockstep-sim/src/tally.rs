//! What a run, or many, came to.

use crate::fault::Fault;
use crate::journal::Unopened;
use lockstep_core::engine::Accepted;
use lockstep_core::record::{Body, Evidence};
use lockstep_core::request::Rejection;
use std::collections::BTreeMap;
use std::fmt::{self, Display};

/// Counts.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Tally {
    /// How many seeds.
    pub seeds: u64,
    /// Virtual time that has passed, in milliseconds.
    pub simulated_ms: u64,
    /// Transitions by outcome.
    pub outcomes: BTreeMap<String, u64>,
    /// What operators were told.
    pub answers: BTreeMap<String, u64>,
    /// Faults by kind: how often they were made, and how often they bit.
    pub faults: BTreeMap<&'static str, (u64, u64)>,
    /// How often nothing was left that stops a host's members at its lease's end, and no promise of them.
    pub unstopped: u64,
    /// Repairs that servers asked for by themselves.
    pub repairs: u64,
    /// Seeds in which something happened between servers and the journal service that they share.
    pub seen: BTreeMap<&'static str, u64>,
    /// Evidence, by its kind.
    pub evidence: BTreeMap<&'static str, u64>,
    /// The longest that anything took to resolve once no fault was left, in milliseconds.
    pub resolved_ms_max: u64,
}

impl Tally {
    /// A fault was made.
    pub fn struck(&mut self, kind: &'static str) {
        self.faults.entry(kind).or_default().0 += 1;
    }

    /// A fault has made a difference.
    pub fn bit(&mut self, kind: &'static str) {
        self.faults.entry(kind).or_default().1 += 1;
    }

    /// A record is durable.
    pub(crate) fn recorded(&mut self, body: &Body) {
        if let Body::Outcome { outcome, .. } = body {
            *self.outcomes.entry(outcome.to_string()).or_default() += 1;
        }
        if let Body::Evidence { by, .. } = body {
            let kind = match by {
                Evidence::Lease => "lease",
                Evidence::Fence { .. } => "fence",
                Evidence::Person { .. } => "person",
            };
            *self.evidence.entry(kind).or_default() += 1;
        }
        if let Body::Request { request } = body {
            self.repairs += u64::from(request.is_automatic);
        }
    }

    /// An operator was told something.
    pub(crate) fn answered(&mut self, answer: &Result<Accepted, Rejection>) {
        let told = match answer {
            Ok(Accepted::Transition(_)) => "accepted".to_owned(),
            Ok(Accepted::Nothing) => "nothing-to-do".to_owned(),
            Ok(Accepted::Spec(_)) => "spec".to_owned(),
            Ok(Accepted::Host(_)) => "host".to_owned(),
            Ok(Accepted::Freezes(_)) => "freezes".to_owned(),
            Ok(Accepted::Aborted) => "abort".to_owned(),
            Ok(Accepted::Away { .. }) => "away".to_owned(),
            Err(rejection) => rejection.code.to_string(),
        };
        *self.answers.entry(told).or_default() += 1;
    }

    /// A disk was opened that has decayed.
    pub(crate) fn decayed(&mut self, opened: &Result<Vec<Vec<u8>>, Unopened>) {
        self.struck(Fault::Decay.as_str());
        if let Err(Unopened::Trouble(_)) = opened {
            self.bit(Fault::Decay.as_str());
        }
    }

    /// Takes another's counts in.
    pub fn add(&mut self, other: &Self) {
        self.seeds += other.seeds;
        self.simulated_ms += other.simulated_ms;
        self.unstopped += other.unstopped;
        self.repairs += other.repairs;
        other.evidence.iter().for_each(|(kind, count)| *self.evidence.entry(kind).or_default() += count);
        other.seen.iter().for_each(|(what, count)| *self.seen.entry(what).or_default() += count);
        self.resolved_ms_max = self.resolved_ms_max.max(other.resolved_ms_max);
        other
            .outcomes
            .iter()
            .for_each(|(name, count)| *self.outcomes.entry(name.clone()).or_default() += count);
        other
            .answers
            .iter()
            .for_each(|(name, count)| *self.answers.entry(name.clone()).or_default() += count);
        for (name, (struck, bit)) in &other.faults {
            let known = self.faults.entry(name).or_default();
            *known = (known.0 + struck, known.1 + bit);
        }
    }
}

impl Display for Tally {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let list = |counts: &BTreeMap<String, u64>| {
            counts.iter().map(|(name, count)| format!("{name} {count}")).collect::<Vec<_>>().join("  ")
        };
        writeln!(f, "seeds        {}", self.seeds)?;
        writeln!(f, "simulated    {:.1} hours", self.simulated_ms as f64 / 3_600_000.0)?;
        writeln!(f, "outcomes     {}", list(&self.outcomes))?;
        writeln!(f, "answers      {}", list(&self.answers))?;
        let evidence = self.evidence.iter().map(|(kind, count)| ((*kind).to_owned(), *count)).collect();
        writeln!(f, "evidence     {}", list(&evidence))?;
        writeln!(f, "repairs      {}, nothing to stop a member {}", self.repairs, self.unstopped)?;
        writeln!(f, "resolved in  {:.1} s at most", self.resolved_ms_max as f64 / 1000.0)?;
        for (what, count) in &self.seen {
            writeln!(f, "in {:>5.1} %   {what}", 100.0 * *count as f64 / self.seeds as f64)?;
        }
        writeln!(f, "{:<20} {:>10} {:>10}", "fault", "made", "bit")?;
        for (name, (struck, bit)) in &self.faults {
            writeln!(f, "{name:<20} {struck:>10} {bit:>10}")?;
        }
        Ok(())
    }
}
