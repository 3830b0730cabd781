//! The cases. Each begins with a session that stands, and ends the transitions that it began.

use super::stage::{Came, Session, Stage, cluster, shown, state};
use super::{Case, Judged, failed};
use lockstep_core::id::{Index, MemberId, Reign, Token, TransitionId};
use lockstep_core::message::{Call, Decision, Notice, Order, Outcome, Phase, Report};
use lockstep_core::vote::Answer;
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::time::{Duration, Instant};

pub(super) const ALL: &[Case] = &[
    Case { name: "greeting", about: "hello comes first, and nothing else before welcome", try_out: greeting },
    Case {
        name: "assignment",
        about: "a state for each member, also for one that is assigned later",
        try_out: assignment,
    },
    Case { name: "check", about: "a vote on a plan, answered as it was asked", try_out: check },
    Case { name: "commit", about: "check, prepare and a step", try_out: commit },
    Case { name: "undo", about: "a step taken back under a higher token", try_out: undo },
    Case {
        name: "cancel",
        about: "what was prepared is cancelled, by order and by the outcome alone",
        try_out: cancel,
    },
    Case { name: "hold", about: "a hold lasts until its release", try_out: hold },
    Case {
        name: "hold-end",
        about: "a hold that nobody releases ends by itself, in its time",
        try_out: hold_end,
    },
    Case { name: "lower-token", about: "an order under a lower token is refused", try_out: lower_token },
    Case {
        name: "same-call",
        about: "a call that comes again is answered the same and carried out once",
        try_out: same_call,
    },
    Case {
        name: "ended",
        about: "calls after the outcome are answered no, but for a release",
        try_out: ended,
    },
    Case { name: "notices", about: "notices are acknowledged in order, repeated ones too", try_out: notices },
    Case {
        name: "unknown-fields",
        about: "fields that it does not know are left aside",
        try_out: unknown_fields,
    },
    Case {
        name: "unknown-orders",
        about: "orders that it does not know are left aside",
        try_out: unknown_orders,
    },
    Case {
        name: "renewals",
        about: "the lease is renewed every third of it, also when it changes",
        try_out: renewals,
    },
    Case {
        name: "first-renewal",
        about: "the lease is renewed right after welcome, which is no renewal",
        try_out: first_renewal,
    },
    Case {
        name: "lease-end",
        about: "a member that needs the lease is stopped before it ends",
        try_out: lease_end,
    },
    Case {
        name: "lease-missing",
        about: "no step leads into a state that needs the lease while there is none",
        try_out: lease_missing,
    },
    Case {
        name: "silent-server",
        about: "a server that has gone silent is left before the lease ends",
        try_out: silent_server,
    },
    Case { name: "lower-reign", about: "a server of a lower reign is left", try_out: lower_reign },
    Case {
        name: "reconnect",
        about: "it comes back as the same agent in the same run, and knows what is open",
        try_out: reconnect,
    },
    Case {
        name: "restart",
        about: "killed between yes and decision it comes back as a new run, and knows its promises",
        try_out: restart,
    },
    Case {
        name: "restart-hold",
        about: "killed during a hold it comes back and ends it",
        try_out: restart_hold,
    },
];

/// What comes before its time comes within this: long enough for a message that is under way.
const QUIET: Duration = Duration::from_millis(300);
/// How long a hold lasts that is to end by itself, in milliseconds.
const HOLD_MS: u64 = 1000;
/// The same where the agent is killed and started meanwhile.
const HOLD_OVER_RESTART_MS: u64 = 3000;
/// What clocks and rounding may be off, in milliseconds.
const ROUNDING_MS: u64 = 20;
/// Leases of the cases about them, in milliseconds: the first, and the one that follows.
const LEASES_MS: (u64, u64) = (1500, 900);
/// A lease of which a third is a long time, and one of which a tenth is enough to stop something.
const LEASE_LONG_MS: u64 = 9000;
const LEASE_ENDS_MS: u64 = 3000;

fn greeting(stage: &mut Stage) -> Judged {
    stage.come_back()?;
    match stage.greeting().hear(Instant::now() + QUIET)? {
        Came::Nothing => {}
        Came::Report(report) => return failed("nothing between hello and welcome", shown(&report)),
        Came::Closed(how) => return failed("that it waits for welcome", how),
    }
    stage.session().map(drop)
}

fn assignment(stage: &mut Stage) -> Judged {
    stage.come_back()?;
    stage.session()?;
    let groups = ["conformance", "conformance-b", "conformance-c"];
    await_states(stage, &groups[..2])?;
    // The second time it is news again: the server has forgotten what it was told.
    for _ in 0..2 {
        let members = stage.assignments(&groups);
        stage.say(&Order::Assign { members })?;
        await_states(stage, &groups[2..])?;
        let members = stage.assignments(&groups[..2]);
        stage.say(&Order::Assign { members })?;
    }
    Ok(())
}

fn await_states(stage: &mut Stage, groups: &[&str]) -> Judged {
    let mut awaited = BTreeSet::new();
    for group in groups {
        awaited.insert(stage.member(group)?);
    }
    stage.wait(&format!("a state of each of {awaited:?}"), |report| match report {
        Report::State { member, .. } => {
            awaited.remove(member);
            awaited.is_empty().then_some(())
        }
        Report::Hello(_) | Report::Renew { .. } | Report::Done(_) => None,
        Report::HoldEnded { .. } | Report::Guarded { .. } | Report::Noticed { .. } | Report::Goodbye => None,
    })
}

fn check(stage: &mut Stage) -> Judged {
    let id = stage.transition();
    for plan in ["6f1c20aa", "77e1d0bb"] {
        // Another plan is another question.
        let call = stage.call(Phase::Check, id)?;
        stage.yes(&Call { plan: Some(plan.to_owned()), ..call })?;
    }
    stage.expect_carried_out(Phase::Check, id, 2)?;
    stage.end(id, Outcome::Aborted)
}

/// Takes one step from beginning to end; gives its transition and its token.
fn step(stage: &mut Stage) -> Judged<(TransitionId, Token)> {
    let id = stage.transition();
    let call = stage.call(Phase::Check, id)?;
    stage.yes(&call)?;
    let token = Token(stage.index().0);
    let call = stage.under(token, Phase::Prepare, id)?;
    stage.yes(&call)?;
    let call = stage.under(token, Phase::Commit, id)?;
    stage.yes(&Call { decision: Some(Decision::Commit), ..call })?;
    Ok((id, token))
}

fn commit(stage: &mut Stage) -> Judged {
    let (id, _) = step(stage)?;
    for phase in [Phase::Check, Phase::Prepare, Phase::Commit] {
        stage.expect_carried_out(phase, id, 1)?;
    }
    stage.end(id, Outcome::Committed)?;
    if stage.has_handler() {
        let (moved, to) = (stage.member("conformance")?, state("online"));
        stage.wait(&format!("{moved} reported in {to}"), |report| match report {
            Report::State { member, state: Some(now), .. } => (*member == moved && *now == to).then_some(()),
            Report::State { state: None, .. } | Report::Hello(_) | Report::Renew { .. } => None,
            Report::Done(_)
            | Report::HoldEnded { .. }
            | Report::Guarded { .. }
            | Report::Noticed { .. }
            | Report::Goodbye => None,
        })?;
    }
    Ok(())
}

fn undo(stage: &mut Stage) -> Judged {
    let (id, token) = step(stage)?;
    let higher = Token(stage.index().0);
    let call = stage.under(higher, Phase::Undo, id)?;
    stage.yes(&Call { decision: Some(Decision::Commit), ..call })?;
    stage.expect_carried_out(Phase::Undo, id, 1)?;
    let call = stage.under(token, Phase::Commit, id)?;
    let late = Call { attempt: 2, decision: Some(Decision::Commit), ..call };
    refused(stage, &late, higher)?;
    stage.end(id, Outcome::Undone)
}

/// An order under a lower token has to be refused, with the highest.
fn refused(stage: &mut Stage, call: &Call, highest: Token) -> Judged {
    let before = stage.carried_out(call.phase, call.transition.expect("it has one"))?;
    let done = stage.no(call, "its token is lower than the highest seen")?;
    if done.refused != Some(highest) {
        return failed(format!("refused: {highest}"), shown(&Report::Done(done)));
    }
    let id = call.transition.expect("it has one");
    before.map_or(Ok(()), |before| stage.expect_carried_out(call.phase, id, before))
}

fn cancel(stage: &mut Stage) -> Judged {
    for is_ordered in [true, false] {
        let (id, token) = (stage.transition(), Token(stage.index().0));
        let call = stage.under(token, Phase::Prepare, id)?;
        stage.yes(&call)?;
        if is_ordered {
            let call = stage.under(token, Phase::Cancel, id)?;
            stage.yes(&Call { decision: Some(Decision::Abort), ..call })?;
        }
        stage.end(id, Outcome::Aborted)?;
        // What is ordered next for the member waits for the end of that.
        let other = stage.transition();
        let call = stage.call(Phase::Check, other)?;
        stage.yes(&call)?;
        stage.expect_carried_out(Phase::Cancel, id, 1)?;
        stage.end(other, Outcome::Aborted)?;
    }
    Ok(())
}

/// Begins a hold.
fn begin_hold(stage: &mut Stage, hold_ms: u64) -> Judged<(TransitionId, Token)> {
    let (id, token) = (stage.transition(), Token(stage.index().0));
    let call = stage.under(token, Phase::Hold, id)?;
    stage.yes(&Call { hold_ms: Some(hold_ms), ..call })?;
    Ok((id, token))
}

fn release(stage: &mut Stage, id: TransitionId, token: Token) -> Judged {
    let call = stage.under(token, Phase::Release, id)?;
    stage.yes(&Call { decision: Some(Decision::Commit), ..call }).map(drop)
}

fn hold(stage: &mut Stage) -> Judged {
    let hold_ms = u64::try_from(stage.patience().as_millis()).unwrap_or(u64::MAX);
    let (id, token) = begin_hold(stage, hold_ms)?;
    release(stage, id, token)?;
    stage.expect_carried_out(Phase::Release, id, 1)?;
    stage.end(id, Outcome::Committed)?;
    let holder = stage.member("conformance")?;
    if stage.session()?.holds_ended.contains(&(id, holder)) {
        return failed("a hold that lasts until its release", "hold-ended");
    }
    Ok(())
}

fn hold_end(stage: &mut Stage) -> Judged {
    let begun = Instant::now();
    let (id, token) = begin_hold(stage, HOLD_MS)?;
    await_hold_end(stage, id)?;
    let lasted_ms = u64::try_from(begun.elapsed().as_millis()).unwrap_or(u64::MAX);
    if lasted_ms + ROUNDING_MS < HOLD_MS {
        return failed(format!("a hold of {HOLD_MS} ms"), format!("hold-ended after {lasted_ms} ms"));
    }
    stage.expect_carried_out(Phase::Release, id, 1)?;
    // It still has to learn the decision.
    release(stage, id, token)?;
    stage.end(id, Outcome::Committed)
}

fn await_hold_end(stage: &mut Stage, id: TransitionId) -> Judged {
    let key = (id, stage.member("conformance")?);
    if stage.session()?.holds_ended.contains(&key) {
        return Ok(());
    }
    stage.wait("hold-ended at the hold's end", |report| match report {
        Report::HoldEnded { transition, member } => (*transition == key.0 && *member == key.1).then_some(()),
        Report::Hello(_) | Report::Renew { .. } | Report::Done(_) => None,
        Report::State { .. } | Report::Guarded { .. } | Report::Noticed { .. } | Report::Goodbye => None,
    })
}

fn lower_token(stage: &mut Stage) -> Judged {
    let lower = Token(stage.index().0);
    let (id, token) = step(stage)?;
    let other = stage.transition();
    for phase in [Phase::Prepare, Phase::Hold, Phase::Commit] {
        let call = stage.under(lower, phase, other)?;
        refused(stage, &call, token)?;
    }
    // Tokens belong to a group: another one's may be lower.
    let member = stage.member("conformance-b")?;
    let call = stage.under(lower, Phase::Prepare, other)?;
    let done = stage.ask(&Call { member, ..call })?;
    if done.refused == Some(token) {
        return failed("tokens by group", shown(&Report::Done(done)));
    }
    stage.end(other, Outcome::Aborted)?;
    stage.end(id, Outcome::Committed)
}

fn same_call(stage: &mut Stage) -> Judged {
    let (id, token) = (stage.transition(), Token(stage.index().0));
    let call = stage.under(token, Phase::Commit, id)?;
    let call = Call { decision: Some(Decision::Commit), ..call };
    // It may be answered once or twice, while it is on its way or once it is done.
    stage.say(&Order::Call(call.clone()))?;
    let first = stage.yes(&call)?;
    for attempt in [1, 1, 2] {
        let again = stage.yes(&Call { attempt, ..call.clone() })?;
        if again.findings != first.findings || again.reason != first.reason {
            return failed(shown(&Report::Done(first)), shown(&Report::Done(again)));
        }
    }
    stage.expect_carried_out(Phase::Commit, id, 1)?;
    stage.end(id, Outcome::Committed)
}

fn ended(stage: &mut Stage) -> Judged {
    let (id, token) = step(stage)?;
    stage.end(id, Outcome::Committed)?;
    for phase in [Phase::Check, Phase::Prepare, Phase::Hold, Phase::Commit] {
        let before = stage.carried_out(phase, id)?;
        let call = stage.under(token, phase, id)?;
        stage.no(&Call { attempt: 2, ..call }, "its transition has ended")?;
        before.map_or(Ok(()), |before| stage.expect_carried_out(phase, id, before))?;
    }
    release(stage, id, token)
}

fn notices(stage: &mut Stage) -> Judged {
    let mut told = Vec::new();
    for _ in 0..3 {
        let transition = stage.transition();
        let index = stage.index();
        let call = stage.call(Phase::Notice, transition)?;
        let previous = told.last().map_or(stage.noticed, |notice: &Notice| notice.index);
        let notice = Notice { index, previous, transition, outcome: None, calls: vec![call] };
        stage.say(&Order::Notice(notice.clone()))?;
        told.push(notice);
    }
    let last = told[2].index;
    let mut taken = stage.noticed;
    while taken < last {
        let index = await_noticed(stage)?;
        if index < taken || !told.iter().any(|notice| notice.index == index) {
            return failed(format!("notices taken in order, after {taken}"), format!("noticed {index}"));
        }
        taken = index;
    }
    stage.noticed = last;
    stage.say(&Order::Notice(told[1].clone()))?;
    let again = await_noticed(stage)?;
    if again != last {
        return failed(format!("noticed {last}, the last one taken"), format!("noticed {again}"));
    }
    for notice in told {
        stage.expect_carried_out(Phase::Notice, notice.transition, 1)?;
    }
    Ok(())
}

fn await_noticed(stage: &mut Stage) -> Judged<Index> {
    stage.wait("noticed", |report| match report {
        Report::Noticed { index } => Some(*index),
        Report::Hello(_) | Report::Renew { .. } | Report::Done(_) => None,
        Report::HoldEnded { .. } | Report::State { .. } | Report::Guarded { .. } | Report::Goodbye => None,
    })
}

fn unknown_fields(stage: &mut Stage) -> Judged {
    stage.come_back()?;
    let members = stage.assignments(&["conformance", "conformance-b"]);
    let members: Vec<_> = members.iter().map(|member| newer(json!(member))).collect();
    let reign = stage.reign;
    // It stands by this welcome, and not by one of ours.
    let id = stage.transition();
    let welcome = newer(json!({ "order": "welcome", "reign": reign, "lease_ms": 6000, "members": members }));
    stage.welcome_as(welcome)?;
    let call = stage.call(Phase::Check, id)?;
    let call = Call { plan: Some("6f1c20aa".to_owned()), ..call };
    stage.say_newer(&call, newer(json!(Order::Call(call.clone()))))?;
    let done = stage.answer(&call)?;
    if done.answer != Answer::Yes {
        return failed("yes to a call with a field that nobody knows", shown(&Report::Done(done)));
    }
    stage.end(id, Outcome::Aborted)
}

/// As a later version might say it.
fn newer(mut order: Value) -> Value {
    order["a_new_field"] = json!({ "deep": [1] });
    order
}

fn unknown_orders(stage: &mut Stage) -> Judged {
    let order = json!({ "order": "a-new-order", "transition": 1, "with": [{ "deep": 1 }] });
    stage.session()?.say_text(order.to_string())?;
    let id = stage.transition();
    let call = stage.call(Phase::Check, id)?;
    stage.yes(&call)?;
    stage.end(id, Outcome::Aborted)
}

fn renewals(stage: &mut Stage) -> Judged {
    stage.come_back()?;
    let begun = Instant::now();
    stage.welcome(LEASES_MS.0)?;
    let second = renewals_in_time(stage, begun, LEASES_MS.0)?;
    stage.session()?.new_lease_ms = Some(LEASES_MS.1);
    let third = renewals_in_time(stage, second, LEASES_MS.0)?;
    renewals_in_time(stage, third, LEASES_MS.1)?;
    stage.hang_up();
    Ok(())
}

/// Waits for three renewals, none of them later than half of the lease's thirds after its turn.
fn renewals_in_time(stage: &mut Stage, begun: Instant, lease_ms: u64) -> Judged<Instant> {
    let mut last = begun;
    let late = Duration::from_millis(lease_ms / 2);
    let known = stage.session()?.renewals.len();
    while stage.session()?.renewals.len() < known + 3 {
        let count = stage.session()?.renewals.len();
        stage.wait("renewals", |report| match report {
            Report::Renew { .. } => Some(()),
            Report::Hello(_) | Report::Done(_) | Report::HoldEnded { .. } => None,
            Report::State { .. } | Report::Guarded { .. } | Report::Noticed { .. } | Report::Goodbye => None,
        })?;
        let at = stage.session()?.renewals[count];
        if at - last > late {
            let expected = format!("a renewal every {} ms, of a lease of {lease_ms} ms", lease_ms / 3);
            return failed(expected, format!("one after {:?}", at - last));
        }
        last = at;
    }
    Ok(last)
}

fn first_renewal(stage: &mut Stage) -> Judged {
    stage.come_back()?;
    stage.welcome(LEASE_LONG_MS)?;
    let end = Instant::now() + Duration::from_millis(LEASE_LONG_MS / 6);
    let session = stage.session()?;
    loop {
        match session.hear(end)? {
            Came::Report(Report::Renew { .. }) => return Ok(()),
            Came::Report(_) => {}
            Came::Nothing => {
                let came = format!("none within {} ms", LEASE_LONG_MS / 6);
                return failed("a renewal right after welcome", came);
            }
            Came::Closed(how) => return failed("a renewal right after welcome", how),
        }
    }
}

/// Gives the agent a lease, under which its first member may be online, and answers no renewal after that. Gives when
/// the lease ends at the latest.
fn last_lease(stage: &mut Stage, lease_ms: u64, meanwhile: fn(&mut Stage) -> Judged) -> Judged<Instant> {
    stage.come_back()?;
    stage.welcome_leased(lease_ms)?;
    // The answer to the second shows that the first has been heard.
    while stage.session()?.renewals.len() < 2 {
        stage.wait("renewals", |report| matches!(report, Report::Renew { .. }).then_some(()))?;
    }
    meanwhile(stage)?;
    let session = stage.session()?;
    session.is_answering = false;
    let answered = *session.renewals.last().expect("two have been answered");
    Ok(answered + Duration::from_millis(lease_ms))
}

/// The agent leaves a server that is silent, and may dial several times before its lease has ended. Gives the greeting
/// that stands then.
fn after_lease(stage: &mut Stage, end: Instant, lease_ms: u64) -> Judged {
    let within = Duration::from_millis(lease_ms);
    expect_closed(stage.session()?, within, "that a server is left which has been silent for a lease")?;
    stage.greeted()?;
    while Instant::now() < end {
        match stage.greeting().hear(end)? {
            Came::Nothing => {}
            Came::Report(report) => return failed("nothing between hello and welcome", shown(&report)),
            Came::Closed(_) => stage.greeted().map(drop)?,
        }
    }
    Ok(())
}

fn lease_end(stage: &mut Stage) -> Judged {
    let before = stage.stops()?;
    let end = last_lease(stage, LEASE_ENDS_MS, |stage| {
        let (id, _) = step(stage)?;
        stage.kept.insert(id);
        Ok(())
    })?;
    after_lease(stage, end, LEASE_ENDS_MS)?;
    if let Some((before, now)) = before.zip(stage.stops()?).filter(|(before, now)| *now != before + 1) {
        let came = format!("stop carried out {} times by then", now - before);
        return failed("a member that is stopped once before the lease ends", came);
    }
    stage.welcome_leased(LEASE_ENDS_MS)?;
    // Until then what it says of itself is of no interest.
    for id in std::mem::take(&mut stage.kept) {
        stage.end(id, Outcome::Degraded)?;
    }
    let (stopped, lowest) = (stage.member("conformance")?, state("offline"));
    stage.wait(&format!("{stopped} reported in {lowest}"), |report| match report {
        Report::State { member, state: Some(now), .. } => {
            (*member == stopped && *now == lowest).then_some(())
        }
        Report::State { state: None, .. } | Report::Hello(_) | Report::Renew { .. } => None,
        Report::Done(_)
        | Report::HoldEnded { .. }
        | Report::Guarded { .. }
        | Report::Noticed { .. }
        | Report::Goodbye => None,
    })?;
    stage.hang_up();
    Ok(())
}

fn lease_missing(stage: &mut Stage) -> Judged {
    let end = last_lease(stage, LEASES_MS.1, |_| Ok(()))?;
    after_lease(stage, end, LEASES_MS.1)?;
    stage.welcome_leased(LEASES_MS.1)?;
    stage.session()?.is_answering = false;
    let (id, token) = (stage.transition(), Token(stage.index().0));
    let call = stage.under(token, Phase::Commit, id)?;
    let call = Call { decision: Some(Decision::Commit), ..call };
    let done = stage.ask(&call)?;
    if done.answer == Answer::Yes {
        return failed("again, or no: the host has no lease", shown(&Report::Done(done)));
    }
    stage.expect_carried_out(Phase::Commit, id, 0)?;
    // With one it is a step as any other.
    let session = stage.session()?;
    session.is_answering = true;
    let known = session.renewals.len();
    while stage.session()?.renewals.len() < known + 2 {
        stage.wait("renewals", |report| matches!(report, Report::Renew { .. }).then_some(()))?;
    }
    stage.yes(&Call { attempt: 2, ..call })?;
    stage.expect_carried_out(Phase::Commit, id, 1)?;
    stage.end(id, Outcome::Committed)?;
    stage.hang_up();
    Ok(())
}

fn silent_server(stage: &mut Stage) -> Judged {
    stage.come_back()?;
    let lease = Duration::from_millis(LEASES_MS.0);
    stage.welcome(LEASES_MS.0)?;
    let session = stage.session()?;
    session.is_answering = false;
    expect_closed(session, lease, "that a server is left which has been silent for a lease")?;
    stage.greeted().map(drop)
}

/// The agent has to end the session within this.
fn expect_closed(session: &mut Session, within: Duration, what: &str) -> Judged {
    let end = Instant::now() + within;
    loop {
        match session.hear(end)? {
            Came::Closed(_) => return Ok(()),
            Came::Report(_) => {}
            Came::Nothing => return failed(what, format!("the session stands after {within:?}")),
        }
    }
}

fn lower_reign(stage: &mut Stage) -> Judged {
    let (reign, patience) = (stage.reign, stage.patience());
    let hello = stage.come_back()?;
    if hello.reign != reign {
        return failed(format!("reign {reign} in hello"), format!("reign {}", hello.reign));
    }
    let before = Reign(reign.0 - 1);
    let welcome = json!({ "order": "welcome", "reign": before, "lease_ms": 6000, "members": [] });
    let session = stage.welcome_as(welcome)?;
    expect_closed(session, patience, "that a server of a lower reign is left")?;
    stage.greeted().map(drop)
}

fn reconnect(stage: &mut Stage) -> Judged {
    let before = stage.come_back()?;
    let id = stage.transition();
    let token = Token(stage.index().0);
    let call = stage.under(token, Phase::Prepare, id)?;
    stage.yes(&call)?;
    stage.kept.insert(id);
    let after = stage.come_back()?;
    let (agent, run) = (&before.agent, &before.run);
    if (&after.agent, &after.run) != (agent, run) {
        let came = format!("agent {} in run {}", after.agent, after.run);
        return failed(format!("agent {agent} in run {run}"), came);
    }
    knows(stage, &[id])?;
    stage.session()?;
    stage.kept.clear();
    let call = stage.under(token, Phase::Cancel, id)?;
    stage.yes(&Call { decision: Some(Decision::Abort), ..call })?;
    stage.end(id, Outcome::Aborted)?;
    forgets(stage, &[id])
}

/// The agent that has just greeted knows what it has to know.
fn knows(stage: &mut Stage, open: &[TransitionId]) -> Judged {
    let (reign, token, noticed) = (stage.reign, stage.token, stage.noticed);
    let hello = &stage.greeting().hello;
    if let Some(id) = open.iter().find(|id| !hello.open.contains(id)) {
        return failed(format!("{} among the open transitions", id.0), format!("{:?}", hello.open));
    }
    if (hello.reign, hello.token, hello.noticed) != (reign, token, noticed) {
        let Index(taken) = hello.noticed;
        let came = format!("reign {}, token {}, noticed {taken}", hello.reign, hello.token);
        return failed(format!("reign {reign}, token {token}, noticed {noticed}"), came);
    }
    if hello.cluster != Some(cluster()) {
        return failed(format!("cluster {} in hello", cluster()), format!("{:?}", hello.cluster));
    }
    Ok(())
}

/// A transition that has ended is not open when the agent comes back.
fn forgets(stage: &mut Stage, ids: &[TransitionId]) -> Judged {
    let other = stage.transition();
    for group in ["conformance", "conformance-b"] {
        // Answered after whatever the outcome has led to.
        let (member, call) = (stage.member(group)?, stage.call(Phase::Check, other)?);
        stage.yes(&Call { member, ..call })?;
    }
    let hello = stage.come_back()?;
    match ids.iter().find(|id| hello.open.contains(id)) {
        Some(id) => failed(format!("that {} has ended", id.0), format!("open: {:?}", hello.open)),
        None => Ok(()),
    }
}

fn restart(stage: &mut Stage) -> Judged {
    let before = stage.come_back()?;
    // One that has done a step, one that is prepared; each in a group of its own.
    let (moved, lower) = (stage.transition(), Token(stage.index().0));
    let member = stage.member("conformance-b")?;
    let call = stage.under(lower, Phase::Commit, moved)?;
    let step = Call { member: member.clone(), decision: Some(Decision::Commit), ..call };
    let done = stage.yes(&step)?;
    let (prepared, token) = (stage.transition(), Token(stage.index().0));
    let call = stage.under(token, Phase::Prepare, prepared)?;
    stage.yes(&call)?;
    stage.kept.extend([moved, prepared]);
    stage.kill_agent()?;
    stage.start_agent_again()?;
    let after = stage.greeted()?.hello.clone();
    if after.agent != before.agent {
        return failed(format!("agent {}", before.agent), format!("agent {}", after.agent));
    }
    if after.run == before.run {
        return failed("a new run", format!("run {} again", after.run));
    }
    knows(stage, &[moved, prepared])?;
    stage.session()?;
    let again = stage.yes(&step)?;
    if again != done {
        return failed(shown(&Report::Done(done)), shown(&Report::Done(again)));
    }
    stage.expect_carried_out(Phase::Commit, moved, 1)?;
    let other = stage.transition();
    let call = stage.under(lower, Phase::Prepare, other)?;
    refused(stage, &call, token)?;
    let call = stage.under(token, Phase::Commit, prepared)?;
    stage.yes(&Call { decision: Some(Decision::Commit), ..call })?;
    stage.end(moved, Outcome::Committed)?;
    stage.end(prepared, Outcome::Committed)?;
    stage.kept.clear();
    forgets(stage, &[moved, prepared])
}

fn restart_hold(stage: &mut Stage) -> Judged {
    let begun = Instant::now();
    let (id, token) = begin_hold(stage, HOLD_OVER_RESTART_MS)?;
    let holder: MemberId = stage.member("conformance")?;
    stage.kept.insert(id);
    stage.kill_agent()?;
    stage.start_agent_again()?;
    stage.greeted()?;
    knows(stage, &[id])?;
    stage.session()?;
    // One that ended before the session stood may have been told to nobody.
    let was_back = begun.elapsed() + QUIET < Duration::from_millis(HOLD_OVER_RESTART_MS);
    if was_back && !stage.session()?.holds_ended.contains(&(id, holder)) {
        await_hold_end(stage, id)?;
        stage.expect_carried_out(Phase::Release, id, 1)?;
    }
    release(stage, id, token)?;
    stage.end(id, Outcome::Aborted)?;
    stage.kept.clear();
    forgets(stage, &[id])
}
