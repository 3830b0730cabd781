//! `lockstep run` and `lockstep abort`: asking for a transition, watching it, and telling how it ended.
//!
//! The wait survives the loss of a connection and of a server: the request is sent again under the same request id,
//! which is carried out once.

use super::client::{Answer, Client, ClientError};
use super::option::{duration, shown};
use super::output::{Colour, Form, clean, note, painted};
use super::plan::note_where_nobody_is;
use super::progress::Progress;
use super::{Exit, Failure};
use crate::agent::random;
use crate::api::body::RunBody;
use crate::api::object::{Host, List, Transition};
use clap::{Args, ValueEnum};
use lockstep_core::id::{GroupName, HostName, MemberId, TransitionId};
use lockstep_core::request::Target;
use lockstep_core::spec::OnFailure;
use reqwest::StatusCode;
use std::io::{IsTerminal, Write};
use std::time::Duration;
use tokio::time::Instant;

/// How long the first answer is waited for: longer than a standby server needs to take over.
const FIRST_ANSWER_MAX: Duration = Duration::from_secs(10);
/// How long a transition is waited for that no server can tell of, when `--wait` does not say.
const SILENCE_MAX: Duration = Duration::from_secs(60);
/// How long one question waits at the server.
const POLL: Duration = Duration::from_secs(10);
/// The pause before asking again, when no server answers.
const PAUSE: Duration = Duration::from_millis(250);

/// `lockstep run`.
#[derive(Debug, Args)]
pub struct RunArgs {
    /// GROUP=STATE, GROUP@HOST=STATE, GROUP=up, GROUP=down, GROUP.KEY=VALUE or, quoted, "drain HOST" or "repair GROUP"
    #[arg(required = true, value_name = "TARGET")]
    targets: Vec<Target>,
    #[command(flatten)]
    how: RunOptions,
}

/// `lockstep drain`.
#[derive(Debug, Args)]
pub struct DrainArgs {
    /// The host whose members are to go to their drained state, after others have taken over
    #[arg(value_name = "HOST")]
    host: HostName,
    /// What else is to be so, in the same transition
    #[arg(value_name = "TARGET")]
    targets: Vec<Target>,
    #[command(flatten)]
    how: RunOptions,
}

impl From<DrainArgs> for RunArgs {
    fn from(DrainArgs { host, mut targets, how }: DrainArgs) -> Self {
        targets.insert(0, Target::Drain(host));
        Self { targets, how }
    }
}

/// `lockstep repair`.
#[derive(Debug, Args)]
pub struct RepairArgs {
    /// The group whose members are to go back to their goals, as far as the living ones can
    #[arg(value_name = "GROUP")]
    group: GroupName,
    #[command(flatten)]
    how: RunOptions,
}

impl From<RepairArgs> for RunArgs {
    fn from(RepairArgs { group, how }: RepairArgs) -> Self {
        Self { targets: vec![Target::Repair(group)], how }
    }
}

/// How a transition is asked for and waited for.
#[derive(Debug, Args)]
struct RunOptions {
    /// Why, for the record
    #[arg(long, value_name = "TEXT")]
    reason: Option<String>,
    /// Name this request: the same name again asks for the same transition
    #[arg(long, value_name = "ID")]
    request_id: Option<String>,
    /// What happens when a step fails for good; each group's own policy by default
    #[arg(long, value_name = "POLICY")]
    on_failure: Option<Policy>,
    /// Abort if it is not decided within this time
    #[arg(long, value_name = "TIME", value_parser = duration)]
    deadline: Option<Duration>,
    /// Stop waiting after this time (exit 7); the transition goes on
    #[arg(long, value_name = "TIME", value_parser = duration)]
    wait: Option<Duration>,
    /// Run this plan or none; the first 8 characters are enough
    #[arg(long, value_name = "HASH")]
    plan: Option<String>,
    /// Go on although this voter or holder (GROUP@HOST) says no or nothing; never one that moves
    #[arg(long = "override", value_name = "MEMBER", requires = "reason")]
    overrides: Vec<MemberId>,
    /// Go on although it is frozen, or its windows are closed
    #[arg(long, requires = "reason")]
    override_freeze: bool,
    /// Leave out members of lost hosts, instead of refusing
    #[arg(long)]
    exclude_lost: bool,
    /// Return as soon as the request is recorded
    #[arg(long, conflicts_with = "wait")]
    no_wait: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Policy {
    /// Take every step back
    Undo,
    /// Leave the member out
    Exclude,
}

/// Runs and waits.
pub async fn run(client: &Client, args: RunArgs, form: Form) -> Result<Exit, Failure> {
    let start = Instant::now();
    let RunArgs { targets, how: args } = args;
    let body = RunBody {
        targets: targets.iter().map(ToString::to_string).collect(),
        request_id: Some(args.request_id.unwrap_or_else(random)),
        reason: args.reason,
        plan_hash: args.plan,
        on_failure: args.on_failure.map(|policy| match policy {
            Policy::Undo => OnFailure::Undo,
            Policy::Exclude => OnFailure::Exclude,
        }),
        deadline_ms: args.deadline.map(|deadline| deadline.as_millis() as u64),
        overrides: args.overrides.iter().map(ToString::to_string).collect(),
        exclude_lost: args.exclude_lost,
        override_freeze: args.override_freeze,
    };
    let first = ask(client, &body, start, args.wait).await?;
    let Some(id) = first.body.id.clone() else {
        let exit = end(&first.body, start.elapsed(), form)?;
        note_where_nobody_is(client, &targets, None).await;
        return Ok(exit);
    };
    if args.no_wait {
        form.print(&first.body, || id.clone())?;
        return Ok(Exit::Done);
    }
    let mut screen = Screen::new(start);
    let waited = tokio::select! {
        waited = watch(client, &id, first, start, args.wait, &mut screen) => waited,
        _ = tokio::signal::ctrl_c() => Err((None, "interrupted".to_owned())),
    };
    screen.clear();
    match waited {
        Ok(transition) => {
            let exit = end(&transition, start.elapsed(), form)?;
            if exit == Exit::Done {
                note_where_nobody_is(client, &targets, transition.plan.as_ref()).await;
            }
            Ok(exit)
        }
        Err((last, why)) => {
            note(&format!("{} {why}; {id} goes on", painted("not waiting:", Colour::Yellow)));
            if let Some(blocker) = last.as_ref().and_then(|last| last.blocked_by.as_ref()) {
                note(&format!("it is queued and waits for {}", clean(blocker)));
            }
            // What is decided is carried out.
            let is_decided = last.as_ref().is_some_and(|last| last.decision.is_some());
            let stop = if is_decided { String::new() } else { format!("; `lockstep abort {id}` stops it") };
            note(&format!("help: `lockstep transition show {id}` tells how it ends{stop}"));
            if form != Form::Table
                && let Some(last) = last
            {
                form.print(&last, String::new)?;
            }
            Ok(Exit::TimedOut)
        }
    }
}

/// Sends the request until a server has it.
async fn ask(
    client: &Client,
    body: &RunBody,
    start: Instant,
    wait: Option<Duration>,
) -> Result<Answer<Transition>, Failure> {
    let patience = wait.unwrap_or(FIRST_ANSWER_MAX).min(FIRST_ANSWER_MAX);
    let mut told = false;
    loop {
        match client.post_once("/v1/transitions", body).await {
            Ok(answer) => return Ok(answer),
            Err(error @ (ClientError::Away(_) | ClientError::NotActive(_)))
                if start.elapsed() + PAUSE < patience =>
            {
                if !told {
                    note(&format!("no server {} yet: {}", error.lacks(), clean(error.why())));
                    told = true;
                }
                tokio::time::sleep(PAUSE).await;
            }
            Err(error) => return Err(error.into()),
        }
    }
}

type Unfinished = (Option<Box<Transition>>, String);

/// Waits until the transition has ended, or says why it is not waited for any longer.
async fn watch(
    client: &Client,
    id: &str,
    first: Answer<Transition>,
    start: Instant,
    wait: Option<Duration>,
    screen: &mut Screen,
) -> Result<Box<Transition>, Unfinished> {
    let path = format!("/v1/transitions/{id}");
    let Answer { mut tag, body, .. } = first;
    let mut last = Box::new(body);
    let mut heard = Instant::now();
    loop {
        screen.show(&last);
        if last.outcome.is_some() {
            return Ok(last);
        }
        let left = match wait {
            Some(wait) => wait.saturating_sub(start.elapsed()),
            None => SILENCE_MAX.saturating_sub(heard.elapsed()),
        };
        if left.is_zero() {
            let why = match wait {
                Some(wait) => format!("{} are over", shown(wait)),
                None => format!("no server has answered for {}", shown(SILENCE_MAX)),
            };
            return Err((Some(last), why));
        }
        let answer = tokio::time::timeout(left, client.watch(&path, tag.as_deref(), POLL.min(left))).await;
        match answer {
            Ok(Ok(answer)) => {
                heard = Instant::now();
                tag = answer.tag;
                last = Box::new(answer.body);
            }
            // A standby server that has just taken over may not have read that far.
            Ok(Err(ClientError::Away(_) | ClientError::NotActive(_))) => {
                tokio::time::sleep(PAUSE.min(left)).await
            }
            Ok(Err(ClientError::Refused(problem))) if problem.status == StatusCode::NOT_FOUND.as_u16() => {
                tokio::time::sleep(PAUSE.min(left)).await;
            }
            Ok(Err(ClientError::Refused(problem))) => return Err((Some(last), clean(&problem.detail))),
            Err(_) => {}
        }
    }
}

/// Tells how a transition ended.
fn end(transition: &Transition, span: Duration, form: Form) -> Result<Exit, Failure> {
    let outcome = transition.outcome.as_deref().unwrap_or_default();
    let (exit, colour) = match outcome {
        "committed" => (Exit::Done, Colour::Green),
        "aborted" => (Exit::Aborted, Colour::Yellow),
        "undone" => (Exit::Undone, Colour::Yellow),
        "degraded" => (Exit::Degraded, Colour::Red),
        other => return Err(Failure::error(format!("this version knows no outcome {other:?}"))),
    };
    form.print(transition, || match &transition.id {
        Some(id) => format!("{outcome} {id}  {}", shown(span)),
        None => "nothing to do".to_owned(),
    })?;
    for line in why(transition) {
        note(&line);
    }
    if let (Some(cause), "aborted") = (&transition.cause, outcome) {
        note(&format!("{} {}", painted("aborted:", colour), clean(cause)));
        note(&format!("help: {}", remedy(cause)));
    }
    Ok(exit)
}

/// Who stood in the way and why; who was left where, and what to do.
pub fn why(transition: &Transition) -> Vec<String> {
    let mut lines = Vec::new();
    let mut named = false;
    for vote in transition.votes.iter().flatten().filter(|vote| vote.answer == "no") {
        named |= transition.member.as_ref() == Some(&vote.member);
        let reason = vote.reason.as_deref().unwrap_or("without a reason");
        let end = if transition.overrides.contains(&vote.member) { "; overridden" } else { "" };
        lines.push(format!(
            "{} said no in {}: {}{end}",
            clean(&vote.member),
            clean(&vote.round),
            clean(reason)
        ));
    }
    if let Some(message) = transition.message.as_ref().filter(|_| !named) {
        let member = transition.member.as_ref().filter(|member| !message.contains(member.as_str()));
        let member = member.map(|member| format!("{}: ", clean(member))).unwrap_or_default();
        lines.push(format!("{member}{}", clean(message)));
    }
    if let Some(undo) = &transition.undo {
        lines.push(format!("taken back because of {}: {}", clean(&undo.member), clean(&undo.reason)));
    }
    for excluded in &transition.excluded {
        lines.push(format!("left out: {}: {}", clean(&excluded.member), clean(&excluded.reason)));
    }
    for left in &transition.left {
        let what = if left.in_doubt { "in doubt" } else { "failed" };
        lines.push(format!("{what}: {}: {}", clean(&left.member), clean(&left.problem)));
        lines.push(format!("  next: {}", clean(&left.next)));
    }
    lines
}

/// What to do about an abort; `docs/errors/` has more.
fn remedy(cause: &str) -> &'static str {
    match cause {
        "vote-no" => "mend what the member names, then run it again",
        "vote-missing" => "see why the member did not answer in time (`lockstep status`), then run it again",
        "plan-stale" => "something that the plan rests on has changed: run it again to plan anew",
        "frozen" => {
            "`lockstep status` says until when, by whom and why; to go ahead all the same: --override-freeze"
        }
        "window-closed" => "run it again when the window opens, or with --override-freeze",
        "preempted" => "a repair went first: run it again when that has ended",
        "operator" => "somebody aborted it: `lockstep transition show` says what was asked for",
        "new-reign" => "the server changed before it was decided: run it again",
        "restored" => "the server was restored from a backup: look where members are, then run it again",
        "server-behind" => {
            "bring back the newest backup, or see that the host's agent dials the right cluster"
        }
        "hold-too-short" => {
            "see why those it waited for were slow to prepare, or raise hold_ms of the holder's group"
        }
        _ => {
            "it could not be planned when its turn came: `lockstep plan` with the same targets says what is in \
              the way now"
        }
    }
}

/// `lockstep abort`.
pub async fn abort(client: &Client, id: TransitionId, form: Form) -> Result<Exit, Failure> {
    let path = format!("/v1/transitions/{id}/abort");
    let aborted: Answer<Transition> = client.post(&path, &serde_json::json!({})).await?;
    form.print(&aborted.body, || format!("aborted {id}"))?;
    Ok(Exit::Done)
}

/// Lets a drained host take members again.
pub async fn undrain(client: &Client, host: &HostName, form: Form) -> Result<Exit, Failure> {
    let path = format!("/v1/hosts/{host}/undrain");
    let hosts: List<Host> = client.get("/v1/hosts").await?;
    let was_drained = hosts.items.iter().any(|known| known.name == host.as_str() && known.drained);
    let undrained: Answer<Host> = client.post(&path, &serde_json::json!({})).await?;
    form.print(&undrained.body, || {
        let nothing = format!("{host} was not drained: nothing changes");
        if was_drained { format!("{host} takes members again") } else { nothing }
    })?;
    Ok(Exit::Done)
}

/// Standard error, where the progress goes: on a terminal its last line is replaced, elsewhere lines are added.
struct Screen {
    start: Instant,
    progress: Progress,
    is_terminal: bool,
    has_live_line: bool,
}

impl Screen {
    fn new(start: Instant) -> Self {
        let is_terminal = std::io::stderr().is_terminal();
        Self { start, progress: Progress::default(), is_terminal, has_live_line: false }
    }

    fn show(&mut self, transition: &Transition) {
        let lines = self.progress.advance(transition, self.start.elapsed());
        if !lines.is_empty() {
            self.clear();
        }
        lines.iter().for_each(|line| note(line));
        if let Some(now) = self.progress.now(transition).filter(|_| self.is_terminal) {
            let columns = rustix::termios::tcgetwinsize(std::io::stderr()).map_or(80, |size| size.ws_col);
            let now: String = now.chars().take(usize::from(columns.max(20)) - 1).collect();
            let _ = write!(std::io::stderr().lock(), "\r\x1b[2K{now}");
            self.has_live_line = true;
        }
    }

    fn clear(&mut self) {
        if self.has_live_line {
            let _ = write!(std::io::stderr().lock(), "\r\x1b[2K");
            self.has_live_line = false;
        }
    }
}
