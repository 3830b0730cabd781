//! Rehearsals as the API shows them, the same online and offline: every case, nothing drawn together.

use super::object::Plan;
use lockstep_core::id::MemberId;
use lockstep_core::message::Outcome;
use lockstep_core::rehearse::{self, Limit, Place};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// What would be left of a plan, case by case.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Rehearsal {
    /// The plan.
    pub plan: Plan,
    /// How many cases end how.
    pub summary: Summary,
    /// The plan without a fault.
    pub clean: Case,
    /// The plan with each single fault, in the order in which they would strike.
    pub cases: Vec<Case>,
}

/// How many cases end how.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Summary {
    /// All of them.
    pub cases: usize,
    /// Those that end so.
    pub aborted: usize,
    /// Those that end so.
    pub committed: usize,
    /// Those that end so.
    pub undone: usize,
    /// Those that end so.
    pub degraded: usize,
    /// Those that do not end within all the time that the plan's deadlines give them.
    pub unfinished: usize,
    /// Those that break a limit, however they end.
    pub limit_broken: usize,
    /// The longest hold of all cases, the clean one included; null when nobody holds.
    pub worst_hold: Option<Held>,
}

/// One run of the plan.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Case {
    /// What goes wrong, such as `vote-no`; null in the clean run.
    pub fault: Option<String>,
    /// The group of the member at which it does.
    pub group: Option<String>,
    /// The host at which it does.
    pub host: Option<String>,
    /// The phase of the call at which it does.
    pub phase: Option<String>,
    /// The step of that call.
    pub step: Option<u32>,
    /// The message, where it is no call: `outcome`, `notice`, `noticed` or `hold-ended`.
    pub message: Option<String>,
    /// The server's write at which it does.
    pub write: Option<Write>,
    /// How the transition ends; null when it does not.
    pub outcome: Option<String>,
    /// Why it is aborted, or `undo` or `exclude`.
    pub cause: Option<String>,
    /// The same in words.
    pub reason: Option<String>,
    /// The members that are left elsewhere than planned, or in doubt.
    pub elsewhere: Vec<Elsewhere>,
    /// The limits that break.
    pub broken: Vec<Broken>,
    /// How long each holder's clients are held, beside the time that handlers take.
    pub held: Vec<Held>,
    /// Milliseconds until everything is over, beside the time that handlers take.
    pub took_ms: u64,
}

/// A write of the server.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Write {
    /// Counted from the request's, 1.
    pub number: u64,
    /// The kinds of records in it.
    pub records: Vec<String>,
}

/// A member that is left elsewhere than planned, or in doubt.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
pub struct Elsewhere {
    /// Its group.
    pub group: String,
    /// Its host.
    pub host: String,
    /// Where it should be: its goal, or where it was when the transition is aborted or taken back.
    pub planned: String,
    /// Where its software really is.
    pub actual: String,
    /// Whether Lockstep cannot tell where it is.
    pub in_doubt: bool,
}

/// A limit that breaks.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
pub struct Broken {
    /// Whose.
    pub group: String,
    /// Of which state.
    pub state: String,
    /// `max` or `min`.
    pub limit: String,
    /// How many members there are.
    pub count: usize,
    /// How many there may be, or must be.
    pub allowed: usize,
}

/// How long a holder's clients are held.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Held {
    /// The holder's group.
    pub group: String,
    /// The holder's host.
    pub host: String,
    /// For so many milliseconds.
    pub ms: u64,
}

impl Rehearsal {
    /// A rehearsal.
    pub fn of(rehearsal: &rehearse::Rehearsal) -> Self {
        let rehearse::Rehearsal { plan, clean, cases } = rehearsal;
        let mut summary = Summary { cases: cases.len(), ..Summary::default() };
        for case in cases {
            *match case.outcome {
                Some(Outcome::Aborted) => &mut summary.aborted,
                Some(Outcome::Committed) => &mut summary.committed,
                Some(Outcome::Undone) => &mut summary.undone,
                Some(Outcome::Degraded) => &mut summary.degraded,
                None => &mut summary.unfinished,
            } += 1;
            summary.limit_broken += usize::from(!case.broken.is_empty());
        }
        let clean = Case::of(clean);
        let cases: Vec<_> = cases.iter().map(Case::of).collect();
        // The first of the longest ones.
        let held = [&clean].into_iter().chain(&cases).flat_map(|case| &case.held);
        summary.worst_hold =
            held.reduce(|worst, held| if held.ms > worst.ms { held } else { worst }).cloned();
        Self { plan: Plan::of(plan), summary, clean, cases }
    }
}

impl Case {
    fn of(case: &rehearse::Case) -> Self {
        let member = |member: &MemberId| (member.group.to_string(), member.host.to_string());
        let elsewhere = case.elsewhere.iter().map(|(id, left)| {
            let (group, host) = member(id);
            let (planned, actual) = (left.planned.to_string(), left.actual.to_string());
            Elsewhere { group, host, planned, actual, in_doubt: left.in_doubt }
        });
        let broken = case.broken.iter().map(|broken| Broken {
            group: broken.group.to_string(),
            state: broken.state.to_string(),
            limit: match broken.limit {
                Limit::Max => "max".to_owned(),
                Limit::Min => "min".to_owned(),
            },
            count: broken.count,
            allowed: broken.allowed,
        });
        let held = case.held_ms.iter().map(|(id, ms)| {
            let (group, host) = member(id);
            Held { group, host, ms: *ms }
        });
        let shown = Self {
            fault: case.fault.as_ref().map(|fault| fault.kind.to_string()),
            group: None,
            host: None,
            phase: None,
            step: None,
            message: None,
            write: None,
            outcome: case.outcome.map(|outcome| outcome.to_string()),
            cause: case.cause.as_ref().map(|cause| cause.code.clone()),
            reason: case.cause.as_ref().map(|cause| cause.message.clone()),
            elsewhere: elsewhere.collect(),
            broken: broken.collect(),
            held: held.collect(),
            took_ms: case.took_ms,
        };
        match case.fault.as_ref().map(|fault| &fault.place) {
            None => shown,
            Some(Place::Call { member: id, phase, step }) => {
                let (group, host) = member(id);
                let (phase, step) = (Some(phase.to_string()), step.map(|step| step.0));
                Self { group: Some(group), host: Some(host), phase, step, ..shown }
            }
            Some(Place::Host { host, what }) => {
                Self { host: Some(host.to_string()), message: Some((*what).to_owned()), ..shown }
            }
            Some(Place::Write { number, records }) => {
                let records = records.iter().map(|&record| record.to_owned()).collect();
                Self { write: Some(Write { number: *number, records }), ..shown }
            }
        }
    }

    /// Whether somebody has to act: it breaks a limit, ends degraded, or does not end.
    pub fn is_bad(&self) -> bool {
        !self.broken.is_empty() || self.outcome.as_deref().is_none_or(|outcome| outcome == "degraded")
    }
}
