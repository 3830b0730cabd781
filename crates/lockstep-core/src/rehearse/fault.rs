//! Single faults: what may go wrong, where, and how a world is made to suffer it.

use super::trial::Trial;
use crate::agent::CallId;
use crate::engine::SessionId;
use crate::id::{HostName, MemberId, StepId};
use crate::message::{Call, Done, Order, Phase, Report};
use crate::record::{Body, Record};
use crate::vote::Answer;
use crate::world::{Choice, Script, Way};
use std::fmt;

/// What goes wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum FaultKind {
    /// A member that is asked says no.
    VoteNo,
    /// A member that is asked does not answer: its handler hangs.
    VoteMissing,
    /// A step's handler fails, and so does each retry. It has had no effect.
    StepFails,
    /// A step's handler hangs until it is ended, and so does each retry. It has had no effect.
    StepHangs,
    /// A host is lost before it hears the question.
    HostLostBeforeVote,
    /// A host is lost after its answer was heard.
    HostLostAfterVote,
    /// A host is lost before it hears that it is to take a step.
    HostLostBeforeStep,
    /// A host is lost after its handler has taken a step, before that is heard of.
    HostLostInStep,
    /// A host is lost after its step was heard of.
    HostLostAfterStep,
    /// A holder's host is lost before it hears that it is to let its clients go.
    HostLostBeforeRelease,
    /// An order is lost, and the connection breaks.
    OrderLost,
    /// A report is lost, and the connection breaks.
    ReportLost,
    /// The server is lost, and its write with it.
    ServerLostBeforeWrite,
    /// The server is lost, its write is durable and nobody has been told.
    ServerLostAfterWrite,
}

impl FaultKind {
    /// Every kind.
    pub const ALL: [Self; 14] = [
        Self::VoteNo,
        Self::VoteMissing,
        Self::StepFails,
        Self::StepHangs,
        Self::HostLostBeforeVote,
        Self::HostLostAfterVote,
        Self::HostLostBeforeStep,
        Self::HostLostInStep,
        Self::HostLostAfterStep,
        Self::HostLostBeforeRelease,
        Self::OrderLost,
        Self::ReportLost,
        Self::ServerLostBeforeWrite,
        Self::ServerLostAfterWrite,
    ];

    /// Its name, which does not change.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::VoteNo => "vote-no",
            Self::VoteMissing => "vote-missing",
            Self::StepFails => "step-fails",
            Self::StepHangs => "step-hangs",
            Self::HostLostBeforeVote => "host-lost-before-vote",
            Self::HostLostAfterVote => "host-lost-after-vote",
            Self::HostLostBeforeStep => "host-lost-before-step",
            Self::HostLostInStep => "host-lost-in-step",
            Self::HostLostAfterStep => "host-lost-after-step",
            Self::HostLostBeforeRelease => "host-lost-before-release",
            Self::OrderLost => "order-lost",
            Self::ReportLost => "report-lost",
            Self::ServerLostBeforeWrite => "server-lost-before-write",
            Self::ServerLostAfterWrite => "server-lost-after-write",
        }
    }
}

impl fmt::Display for FaultKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

/// Where it goes wrong.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Place {
    /// At a call of a member's handler: its order, its run or its answer.
    Call {
        /// Whose.
        member: MemberId,
        /// What for.
        phase: Phase,
        /// Which step.
        step: Option<StepId>,
    },
    /// At something that a host is told, or says, beside calls.
    Host {
        /// Which.
        host: HostName,
        /// `outcome`, `notice`, `noticed` or `hold-ended`.
        what: &'static str,
    },
    /// At a write of the server.
    Write {
        /// Which, counted from the request's, 1.
        number: u64,
        /// The kinds of records in it, each once, in order.
        records: Vec<&'static str>,
    },
}

/// One thing that goes wrong once, and where.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Fault {
    /// What.
    pub kind: FaultKind,
    /// Where.
    pub place: Place,
}

fn call(call: &Call) -> Place {
    Place::Call { member: call.member.clone(), phase: call.phase, step: call.step }
}

fn done(done: &Done) -> Place {
    Place::Call { member: done.member.clone(), phase: done.phase, step: done.step }
}

/// What may go wrong with the next thing that is to happen.
pub(super) fn faults(trial: &Trial<'_>, choice: &Choice) -> Vec<Fault> {
    let world = trial.world();
    let at = |place: Place, kinds: &[FaultKind]| {
        kinds.iter().map(|kind| Fault { kind: *kind, place: place.clone() }).collect()
    };
    match choice {
        Choice::Append(server) => {
            let records = world.in_flight(*server).unwrap_or_default();
            let place = Place::Write { number: trial.write_number(), records: kinds(records) };
            at(place, &[FaultKind::ServerLostBeforeWrite, FaultKind::ServerLostAfterWrite])
        }
        Choice::ToAgent(session) => match world.next_order(*session) {
            Some((_, Order::Call(order))) => at(call(order), order_faults(order.phase)),
            Some((host, Order::Outcome { .. })) => at(beside(host, "outcome"), &[FaultKind::OrderLost]),
            Some((host, Order::Notice(_))) => at(beside(host, "notice"), &[FaultKind::OrderLost]),
            Some((
                _,
                Order::Welcome { .. }
                | Order::Refused { .. }
                | Order::Assign { .. }
                | Order::Gap(_)
                | Order::Renewed { .. },
            ))
            | None => Vec::new(),
        },
        Choice::ToServer(session) => match world.next_report(*session) {
            Some((_, Report::Done(answer))) => at(done(answer), report_faults(answer.phase)),
            Some((host, Report::HoldEnded { .. })) => {
                at(beside(host, "hold-ended"), &[FaultKind::ReportLost])
            }
            Some((host, Report::Noticed { .. })) => at(beside(host, "noticed"), &[FaultKind::ReportLost]),
            Some((_, Report::Hello(_) | Report::Renew { .. } | Report::State { .. }))
            | Some((_, Report::Guarded { .. } | Report::Goodbye))
            | None => Vec::new(),
        },
        Choice::End(name, id) => match trial.running(name, *id) {
            Some(run) => at(call(run), handler_faults(run.phase)),
            None => Vec::new(),
        },
        Choice::Server(_) | Choice::Agent(_) | Choice::AgentAppend(_) | Choice::Connect(_) => Vec::new(),
        // A rehearsal has one server.
        Choice::Dial(..) | Choice::Store(_) => Vec::new(),
    }
}

fn beside(host: &str, what: &'static str) -> Place {
    Place::Host { host: HostName::new(host).expect("agents are called like their hosts"), what }
}

fn order_faults(phase: Phase) -> &'static [FaultKind] {
    match phase {
        Phase::Check | Phase::Prepare | Phase::Hold => &[FaultKind::OrderLost, FaultKind::HostLostBeforeVote],
        Phase::Commit => &[FaultKind::OrderLost, FaultKind::HostLostBeforeStep],
        Phase::Release => &[FaultKind::OrderLost, FaultKind::HostLostBeforeRelease],
        Phase::Undo | Phase::Cancel | Phase::Stop => &[FaultKind::OrderLost],
        Phase::Status | Phase::Notice | Phase::Fence => &[],
    }
}

fn report_faults(phase: Phase) -> &'static [FaultKind] {
    match phase {
        Phase::Check | Phase::Prepare | Phase::Hold => &[FaultKind::ReportLost, FaultKind::HostLostAfterVote],
        Phase::Commit => &[FaultKind::ReportLost, FaultKind::HostLostInStep, FaultKind::HostLostAfterStep],
        Phase::Release | Phase::Undo | Phase::Cancel | Phase::Stop => &[FaultKind::ReportLost],
        Phase::Status | Phase::Notice | Phase::Fence => &[],
    }
}

fn handler_faults(phase: Phase) -> &'static [FaultKind] {
    match phase {
        Phase::Check | Phase::Prepare | Phase::Hold => &[FaultKind::VoteNo, FaultKind::VoteMissing],
        Phase::Commit => &[FaultKind::StepFails, FaultKind::StepHangs],
        // A second fault, or one that nothing of the plan rests on.
        Phase::Undo
        | Phase::Cancel
        | Phase::Release
        | Phase::Stop
        | Phase::Status
        | Phase::Notice
        | Phase::Fence => &[],
    }
}

fn kinds(records: &[Record]) -> Vec<&'static str> {
    let mut kinds = Vec::new();
    for record in records {
        let kind = match &record.body {
            Body::Reign { .. } => "reign",
            Body::Spec { .. } => "spec",
            Body::Host { .. } => "host",
            Body::Request { .. } => "request",
            Body::Begin { .. } => "begin",
            Body::Decision { .. } => "decision",
            Body::Step { .. } => "step",
            Body::Turn { .. } => "turn",
            Body::Outcome { .. } => "outcome",
            Body::Report { .. } => "report",
            Body::Evidence { .. } => "evidence",
            Body::Away { .. } => "away",
            Body::Freeze { .. } => "freeze",
            Body::Thaw { .. } => "thaw",
            Body::Lease { .. } => "lease",
            Body::Acknowledged { .. } => "acknowledged",
        };
        if !kinds.contains(&kind) {
            kinds.push(kind);
        }
    }
    kinds
}

/// Lets the next thing that is to happen go wrong.
pub(super) fn strike(trial: &mut Trial<'_>, choice: &Choice, fault: &Fault) {
    let no = || Script {
        answer: Answer::No,
        reason: Some("rehearsed".to_owned()),
        has_effect: false,
        ..Script::default()
    };
    let hang = || Script { takes_ms: u64::MAX, ..no() };
    match fault.kind {
        FaultKind::VoteNo => instead(trial, choice, no()),
        FaultKind::VoteMissing => instead(trial, choice, hang()),
        FaultKind::StepFails => always_instead(trial, choice, no()),
        FaultKind::StepHangs => always_instead(trial, choice, hang()),
        FaultKind::HostLostBeforeVote | FaultKind::HostLostBeforeStep | FaultKind::HostLostBeforeRelease => {
            trial.lose_host(&at_host(trial, choice));
        }
        FaultKind::HostLostInStep => {
            let host = at_host(trial, choice);
            trial.world_mut().lose(session(choice), Way::ToServer);
            trial.lose_host(&host);
        }
        FaultKind::HostLostAfterVote | FaultKind::HostLostAfterStep => {
            let host = at_host(trial, choice);
            trial.world_mut().perform(choice);
            trial.lose_host(&host);
        }
        FaultKind::OrderLost | FaultKind::ReportLost => {
            let host = at_host(trial, choice);
            trial.world_mut().break_link(host.as_str());
        }
        FaultKind::ServerLostBeforeWrite => trial.lose_server(false),
        FaultKind::ServerLostAfterWrite => trial.lose_server(true),
    }
}

/// One run of a handler does that; it is asked once.
fn instead(trial: &mut Trial<'_>, choice: &Choice, script: Script) {
    let (name, id) = handler(choice);
    trial.world_mut().rescript(name, id, script);
}

/// One run of a handler does that, and so does each that tries the same again.
fn always_instead(trial: &mut Trial<'_>, choice: &Choice, script: Script) {
    let (name, id) = handler(choice);
    if let Some(Call { member, phase, .. }) = trial.running(name, id).cloned() {
        trial.world_mut().script(&member, phase, vec![script.clone()]);
    }
    trial.world_mut().rescript(name, id, script);
}

fn handler(choice: &Choice) -> (&str, CallId) {
    match choice {
        Choice::End(name, id) => (name, *id),
        Choice::Server(_)
        | Choice::Agent(_)
        | Choice::Append(_)
        | Choice::AgentAppend(_)
        | Choice::Connect(_)
        | Choice::Dial(..)
        | Choice::Store(_)
        | Choice::ToAgent(_)
        | Choice::ToServer(_) => unreachable!("handlers go wrong as they end"),
    }
}

fn session(choice: &Choice) -> SessionId {
    match choice {
        Choice::ToAgent(session) | Choice::ToServer(session) => *session,
        Choice::Server(_)
        | Choice::Agent(_)
        | Choice::Append(_)
        | Choice::AgentAppend(_)
        | Choice::Connect(_)
        | Choice::Dial(..)
        | Choice::Store(_)
        | Choice::End(..) => unreachable!("messages go wrong on their way"),
    }
}

fn at_host(trial: &Trial<'_>, choice: &Choice) -> HostName {
    let (session, world) = (session(choice), trial.world());
    let order = world.next_order(session).map(|(name, _)| name);
    let name = order.or_else(|| world.next_report(session).map(|(name, _)| name));
    let name = name.expect("there is a message on its way: it was just seen");
    HostName::new(name).expect("agents are called like their hosts")
}
