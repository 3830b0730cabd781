//! What happens in a world, and the line that a story shows of it.

use super::{Name, ServerId, StoreEvent};
use crate::agent::{AgentRecord, CallId};
use crate::engine::{Accepted, ReplyId, SessionId};
use crate::id::{Capability, GroupName, Index, MemberId, StateName};
use crate::message::{Call, Order, Phase, Report};
use crate::record::{Acknowledged, Body, Evidence, HostChange, Record, StepResult};
use crate::request::{Rejection, Request};
use crate::vote::Answer;
use serde_json::Value;
use std::collections::BTreeSet;
use std::fmt::Write;

/// Something that has happened in a world.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Happened {
    /// A record is durable, and its server is told.
    Recorded {
        /// Its place.
        index: Index,
        /// The record.
        record: Record,
    },
    /// A record of an agent is durable, and the agent is told.
    AgentRecorded {
        /// Whose.
        agent: Name,
        /// The record.
        record: AgentRecord,
    },
    /// An operator has asked for a transition.
    Asked {
        /// Where the answer goes.
        reply: ReplyId,
        /// Which server.
        server: ServerId,
        /// What for.
        request: Request,
    },
    /// An operator was answered.
    Answered {
        /// Which request.
        reply: ReplyId,
        /// The answer.
        answer: Result<Accepted, Rejection>,
    },
    /// An order has reached its agent.
    Ordered {
        /// Which.
        agent: Name,
        /// By which server.
        server: ServerId,
        /// On which connection.
        session: SessionId,
        /// The order.
        order: Order,
    },
    /// A report has reached a server.
    Reported {
        /// Whose.
        agent: Name,
        /// Which server.
        server: ServerId,
        /// On which connection.
        session: SessionId,
        /// The report.
        report: Report,
    },
    /// A session stands.
    Joined(Name),
    /// An agent wants no more of its connection.
    TurnedAway {
        /// Which.
        agent: Name,
        /// Why.
        message: String,
    },
    /// A handler has started.
    Started {
        /// Whose.
        agent: Name,
        /// Which run.
        id: CallId,
        /// What for.
        call: Call,
    },
    /// A handler has ended.
    Ended {
        /// Whose.
        agent: Name,
        /// What it was called for.
        call: Call,
        /// What it answers.
        answer: Answer,
    },
    /// The server has something for its log.
    ServerWarned(String),
    /// A guard has stopped a member.
    Guarded {
        /// On which host.
        agent: Name,
        /// Which.
        member: MemberId,
    },
    /// Something has happened between servers and the journal service that they share.
    Store(StoreEvent),
    /// An agent has something for its log.
    AgentWarned {
        /// Which.
        agent: Name,
        /// What.
        message: String,
    },
}

impl Happened {
    /// The line that a story shows of it, if it shows one.
    pub fn line(&self) -> Option<String> {
        Some(match self {
            Self::Recorded { index, record } => describe(*index, record),
            Self::Answered { answer, .. } => match answer {
                Ok(Accepted::Transition(id)) => format!("accepted {id}"),
                Ok(Accepted::Nothing) => "nothing to do".to_owned(),
                Ok(Accepted::Spec(index)) => format!("spec in force from {index}"),
                Ok(Accepted::Freezes(index)) => format!("freezes as asked from {index}"),
                Ok(Accepted::Host(index)) => format!("host changed at {index}"),
                Ok(Accepted::Away { told, missing }) => format!("{told} hosts told, not {missing:?}"),
                Ok(Accepted::Aborted) => "aborted".to_owned(),
                Err(Rejection { code, message, .. }) => format!("rejected {code}: {message}"),
            },
            Self::Ordered { agent, order, .. } => return describe_order(agent, order),
            Self::Reported { agent, report, .. } => return describe_report(agent, report),
            Self::Joined(agent) => format!("{agent} joined"),
            Self::TurnedAway { agent, message } => format!("{agent} turns away: {message}"),
            Self::Started { call, .. } if call.phase == Phase::Status => return None,
            Self::Started { agent, call, .. } => format!("{agent} runs {}", describe_call(call)),
            Self::Guarded { agent, member } => format!("the guard of {agent} stops {member}"),
            Self::ServerWarned(message) => format!("server warns: {message}"),
            Self::AgentWarned { agent, message } => format!("{agent} warns: {message}"),
            Self::Store(event) => describe_event(*event),
            Self::Asked { .. } | Self::AgentRecorded { .. } | Self::Ended { .. } => return None,
        })
    }
}

/// The lines that describe durable records, for those who look back.
pub fn journal_lines(records: &[Record]) -> Vec<String> {
    (1..).map(Index).zip(records).map(|(index, record)| describe(index, record)).collect()
}

fn describe_call(call: &Call) -> String {
    let mut line = format!("{} {}", call.phase, call.member);
    let id = call.transition.map(|id| format!(" {id}")).unwrap_or_default();
    write!(line, "{id}").expect("a String takes all");
    if let (Phase::Commit | Phase::Undo | Phase::Stop, Some(from), Some(to)) =
        (call.phase, &call.from, &call.to)
    {
        write!(line, " {from} -> {to}").expect("a String takes all");
    }
    if let (Phase::Commit | Phase::Undo | Phase::Check | Phase::Hold, Some(context)) =
        (call.phase, &call.context)
    {
        for (key, value) in
            context.settings.iter().filter(|(key, value)| context.was.get(*key) != Some(value))
        {
            write!(line, " {key}={value}").expect("a String takes all");
        }
    }
    if let (Phase::Release, decision) = (call.phase, call.decision) {
        let decision = decision.map_or("unknown".to_owned(), |decision| decision.to_string());
        write!(line, " decision {decision}").expect("a String takes all");
    }
    if call.attempt > 1 {
        write!(line, " try {}", call.attempt).expect("a String takes all");
    }
    let seen = call.context.iter().flat_map(|context| &context.out);
    for (member, out) in seen.filter(|_| matches!(call.phase, Phase::Prepare | Phase::Commit)) {
        write!(line, " {member} says {}", Value::Object(out.clone())).expect("a String takes all");
    }
    line
}

fn describe_event(event: StoreEvent) -> String {
    match event {
        StoreEvent::Won { server, reign } => format!("server-{} may reign, as {reign}", server.0),
        StoreEvent::Began { server } => format!("server-{} takes over", server.0),
        StoreEvent::Wrote { server, .. } => format!("server-{} writes", server.0),
        StoreEvent::Refused { server, .. } => {
            format!("server-{} writes in vain: it does not reign", server.0)
        }
        StoreEvent::Unanswered { server, .. } => format!("server-{} has no answer to its write", server.0),
        StoreEvent::Found { server } => format!("server-{} finds its write", server.0),
        StoreEvent::StoodDown { server } => format!("server-{} stands down", server.0),
    }
}

fn describe_order(name: &str, order: &Order) -> Option<String> {
    match order {
        Order::Outcome { transition, outcome } => {
            let outcome = outcome.map_or("unknown".to_owned(), |outcome| outcome.to_string());
            Some(format!("{name} learns {transition} {outcome}"))
        }
        Order::Gap(gap) => Some(format!("{name} is not told what came up to {}", gap.index)),
        Order::Welcome { .. }
        | Order::Refused { .. }
        | Order::Assign { .. }
        | Order::Call(_)
        | Order::Notice(_)
        | Order::Renewed { .. } => None,
    }
}

fn describe_report(name: &str, report: &Report) -> Option<String> {
    let line = match report {
        Report::Done(done) => {
            let answer = match done.answer {
                Answer::Yes => "yes",
                Answer::No => "no",
                Answer::Again => "again",
            };
            let reason = done.reason.as_ref().map(|reason| format!(": {reason}")).unwrap_or_default();
            format!("{name} says {answer} to {} {}{reason}", done.phase, done.member)
        }
        Report::HoldEnded { transition, member } => {
            format!("{name} says hold of {member} ended {transition}")
        }
        Report::Goodbye => format!("{name} says goodbye"),
        Report::Hello(_)
        | Report::Renew { .. }
        | Report::State { .. }
        | Report::Guarded { .. }
        | Report::Noticed { .. } => {
            return None;
        }
    };
    Some(line)
}

fn describe(index: Index, record: &Record) -> String {
    let text = match &record.body {
        Body::Reign { server, .. } => format!("reign {server}"),
        Body::Spec { .. } => "spec".to_owned(),
        Body::Host { host, change: HostChange::Joined { .. } } => format!("host {host} joined"),
        Body::Host { host, change: HostChange::Liveness { liveness } } => format!("host {host} {liveness}"),
        Body::Host { host, change: HostChange::Undrained } => format!("host {host} undrained"),
        Body::Host { host, change: HostChange::Forgotten } => format!("host {host} forgotten"),
        Body::Host { host, change: HostChange::Labelled { labels } } => {
            let labels = labels.iter().map(|(label, value)| match value {
                Some(value) => format!("{label}={value}"),
                None => format!("{label}-"),
            });
            format!("host {host} labelled {}", labels.collect::<Vec<_>>().join(" "))
        }
        Body::Host { host, change: HostChange::Guarded { group, states } } => {
            format!("{group}@{host} guarded in [{}]", crate::spec::list(states))
        }
        Body::Host { host, change: HostChange::Published { group, published } } => {
            let words = |capabilities: &BTreeSet<Capability>| {
                capabilities.iter().map(Capability::as_str).collect::<Vec<_>>().join(" ")
            };
            let (provides, consumes) = (words(&published.provides), words(&published.consumes));
            format!("{group}@{host} provides [{provides}] consumes [{consumes}]")
        }
        Body::Request { request } => {
            let targets: Vec<_> = request.targets.iter().map(ToString::to_string).collect();
            format!("request t{index} {}", targets.join(" "))
        }
        Body::Begin { transition, .. } => format!("begin {transition}"),
        Body::Decision { transition, decision, cause, .. } => {
            let cause = cause.as_ref().map(|cause| format!(" {}: {}", cause.code, cause.message));
            format!("decision {transition} {decision}{}", cause.unwrap_or_default())
        }
        Body::Step { transition, results } => {
            let results: Vec<_> = results.iter().map(describe_result).collect();
            format!("step {transition} {}", results.join(", "))
        }
        Body::Turn { transition, turn, member, reason } => {
            format!("turn {transition} {turn:?} {member}: {reason}")
                .replace("Undo", "undo")
                .replace("Exclude", "exclude")
        }
        Body::Outcome { transition, outcome, left, untold: _ } => {
            let mut line = format!("outcome {transition} {outcome}");
            for (member, left) in left {
                let doubt = if left.in_doubt { "in doubt" } else { "failed" };
                write!(line, "; {member} {doubt}: {}", left.problem).expect("a String takes all");
            }
            line
        }
        Body::Report { member, actual } => {
            format!("report {member} {}", actual.as_ref().map_or("unknown", StateName::as_str))
        }
        Body::Evidence { members, by } => {
            let members: Vec<_> = members.iter().map(|(id, state)| format!("{id} {state}")).collect();
            let by = match by {
                Evidence::Lease => "lease".to_owned(),
                Evidence::Fence { on } => format!("fence on {on}"),
                Evidence::Person { principal, reason } => format!("{principal}: {reason}"),
            };
            format!("evidence {} ({by})", members.join(", "))
        }
        Body::Away { lease_ms, .. } => format!("away, lease {lease_ms} ms"),
        Body::Freeze { groups, until, reason, principal } => {
            let until = until.map(|until| format!(" until {until}")).unwrap_or_default();
            format!("freeze [{}] by {principal}{until}: {reason}", names(groups))
        }
        Body::Thaw { freezes, groups, principal } => {
            let freezes: Vec<_> = freezes.iter().map(ToString::to_string).collect();
            let principal = principal.as_deref().unwrap_or("time");
            format!("thaw [{}] of {} by {principal}", names(groups), freezes.join(" "))
        }
        Body::Lease { lease_ms } => format!("lease {lease_ms} ms"),
        Body::Acknowledged { hosts } => {
            let hosts = hosts.iter().map(|(host, Acknowledged { noticed, outcomes })| {
                let outcomes = outcomes.iter().map(ToString::to_string);
                let notices = (noticed.0 > 0).then(|| format!("notices to {noticed}"));
                let known: Vec<_> = notices.into_iter().chain(outcomes).collect();
                format!("{host} {}", known.join(" "))
            });
            format!("acknowledged {}", hosts.collect::<Vec<_>>().join(", "))
        }
    };
    format!("{index} {text}")
}

fn names(groups: &BTreeSet<GroupName>) -> String {
    groups.iter().map(GroupName::as_str).collect::<Vec<_>>().join(" ")
}

fn describe_result(result: &StepResult) -> String {
    match result {
        StepResult::Confirmed { step, direction } => format!("{step} {direction:?} confirmed").to_lowercase(),
        StepResult::Failed { step, direction, reason } => {
            format!("{step} {} failed: {reason}", format!("{direction:?}").to_lowercase())
        }
        StepResult::Unknown { step, direction } => format!("{step} {direction:?} unknown").to_lowercase(),
        StepResult::Stopped { member } => format!("{member} stopped"),
        StepResult::HoldEnded { member, end } => {
            format!("hold of {member} {}", format!("{end:?}").to_lowercase())
        }
    }
}
