//! `lockstep events`: what has happened, and what happens.

use super::client::{Client, ClientError};
use super::output::{Form, clean, note, stream, yaml};
use super::stream::Events;
use super::{Exit, Failure};
use crate::api::event::{Ended, Event, What};
use clap::Args;
use lockstep_core::id::{GroupName, HostName, MemberId, TransitionId};
use lockstep_core::request::Target;
use serde_json::Value;

/// What a plan's hash is shown with.
const HASH_SHOWN: usize = 8;
/// Steps and holds of one event that are named one by one; more are counted.
const NAMED_MAX: usize = 8;

/// `lockstep events`.
#[derive(Debug, Args)]
pub struct EventsArgs {
    /// Only what has happened since this revision; else all that is kept, or with --follow what is new
    #[arg(long, value_name = "REVISION")]
    since: Option<u64>,
    /// Go on with what happens, until interrupted
    #[arg(short, long)]
    follow: bool,
    /// Only what concerns this group: its members, and transitions in which it moves or holds
    #[arg(long, value_name = "GROUP")]
    group: Option<GroupName>,
    /// Only what concerns this host and the members on it
    #[arg(long, value_name = "HOST")]
    host: Option<HostName>,
    /// Only what concerns this transition
    #[arg(long, value_name = "ID")]
    transition: Option<TransitionId>,
}

/// Prints events as they come.
pub async fn events(client: &Client, args: EventsArgs, form: Form) -> Result<Exit, Failure> {
    // Without --follow all that is kept: from the first on, or from where the server says that it begins.
    let since = args.since.or((!args.follow).then_some(0));
    let mut events = Events::since(client, since, args.follow);
    loop {
        let data = match events.next().await {
            Ok(Some(data)) => data,
            Ok(None) => return Ok(Exit::Done),
            Err(ClientError::Refused(problem)) if args.since.is_none() && !args.follow => {
                match problem.kept_since.filter(|kept| Some(*kept) > since) {
                    Some(kept) => {
                        note(&format!("earlier events are not kept: these begin after revision {kept}"));
                        events = Events::since(client, Some(kept), false);
                        continue;
                    }
                    None => return Err(ClientError::Refused(problem).into()),
                }
            }
            Err(error) => return Err(error.into()),
        };
        let Ok(value) = serde_json::from_str::<Value>(&data) else {
            return Err(Failure::error("it sends something else than events: is it a lockstep server?"));
        };
        // A newer server may have kinds that this version does not know.
        let event: Option<Event> = serde_json::from_value(value.clone()).ok();
        if !args.wants(event.as_ref().map(|event| &event.what)) {
            continue;
        }
        let text = match form {
            Form::Table => line(event.as_ref(), &value),
            Form::Json => data,
            Form::Yaml => format!("---\n{}", yaml(&value)),
        };
        if !stream(&text)? {
            return Ok(Exit::Done);
        }
    }
}

impl EventsArgs {
    fn wants(&self, what: Option<&What>) -> bool {
        let Some(what) = what else {
            return self.group.is_none() && self.host.is_none() && self.transition.is_none();
        };
        let concerned = Concerned::of(what);
        let transition = self.transition.map(|id| id.to_string());
        self.group.as_ref().is_none_or(|group| concerned.is_group(group))
            && self.host.as_ref().is_none_or(|host| concerned.is_host(host))
            && transition.is_none_or(|id| concerned.transition == Some(id.as_str()))
    }
}

/// Whom an event concerns.
#[derive(Default)]
struct Concerned<'a> {
    transition: Option<&'a str>,
    groups: &'a [String],
    /// Whatever groups there are.
    is_of_all: bool,
    host: Option<&'a str>,
    members: Vec<&'a str>,
    targets: &'a [String],
}

impl<'a> Concerned<'a> {
    fn of(what: &'a What) -> Self {
        let of = |transition: &'a str, groups: &'a [String], members: Vec<&'a str>| Self {
            transition: Some(transition),
            groups,
            members,
            ..Self::default()
        };
        match what {
            What::Reign { .. }
            | What::Spec { .. }
            | What::Acknowledged { .. }
            | What::Away { .. }
            | What::Lease { .. } => Self::default(),
            What::Freeze { groups, .. } | What::Thaw { groups, .. } => {
                Self { groups, is_of_all: groups.is_empty(), ..Self::default() }
            }
            What::HostJoined { host, .. }
            | What::HostLiveness { host, .. }
            | What::HostLabelled { host, .. }
            | What::HostForgotten { host }
            | What::HostUndrained { host } => Self { host: Some(host), ..Self::default() },
            What::Request { transition, groups, targets, .. } => {
                Self { targets, ..of(transition, groups, Vec::new()) }
            }
            What::Begin { transition, groups, .. } | What::Phase { transition, groups, .. } => {
                of(transition, groups, Vec::new())
            }
            What::Decision { transition, groups, member, .. } => {
                of(transition, groups, member.iter().map(String::as_str).collect())
            }
            What::Step { transition, groups, results } => {
                of(transition, groups, results.iter().filter_map(|ended| ended.member.as_deref()).collect())
            }
            What::Turn { transition, groups, member, .. } => of(transition, groups, vec![member]),
            What::Outcome { transition, groups, left, .. } => {
                of(transition, groups, left.iter().map(|left| left.member.as_str()).collect())
            }
            What::Evidence { members, .. } => {
                Self { members: members.keys().map(String::as_str).collect(), ..Self::default() }
            }
            What::Report { member, .. }
            | What::MemberGuarded { member, .. }
            | What::MemberPublished { member, .. } => Self { members: vec![member], ..Self::default() },
            What::Vote { transition, groups, vote } => of(transition, groups, vec![&vote.member]),
        }
    }

    fn members(&self) -> impl Iterator<Item = MemberId> {
        self.members.iter().filter_map(|member| member.parse().ok())
    }

    fn is_group(&self, group: &GroupName) -> bool {
        self.is_of_all
            || self.groups.iter().any(|name| name == group.as_str())
            || self.members().any(|member| member.group == *group)
    }

    fn is_host(&self, host: &HostName) -> bool {
        let is_target = |target: &String| match target.parse() {
            Ok(Target::Member(member, _)) => member.host == *host,
            Ok(Target::Drain(drained)) => drained == *host,
            Ok(Target::Group(..) | Target::Up(_) | Target::Down(_) | Target::Setting(..)) => false,
            Ok(Target::Repair(_)) | Err(_) => false,
        };
        self.host == Some(host.as_str())
            || self.members().any(|member| member.host == *host)
            || self.targets.iter().any(is_target)
    }
}

/// An event in one line: its revision and time, or that it is provisional, and what has happened.
fn line(event: Option<&Event>, value: &Value) -> String {
    let Some(event) = event else {
        return clean(&value.to_string());
    };
    let revision = event.revision.map_or("-".to_owned(), |revision| revision.to_string());
    let at = event.at.as_deref().unwrap_or("provisional");
    format!("{revision:>8}  {:<24}  {}", clean(at), clean(&told(&event.what)))
}

fn told(what: &What) -> String {
    let because = |reason: Option<&str>| reason.map(|reason| format!(": {reason}")).unwrap_or_default();
    match what {
        What::Reign { server } => format!("{server} is the active server"),
        What::Spec { cluster, principal } => format!("{principal} declares {cluster}"),
        What::HostJoined { host, .. } => format!("{host} joined"),
        What::HostLiveness { host, liveness } => format!("{host} {liveness}"),
        What::HostLabelled { host, labels } => {
            let labels = labels.iter().map(|(label, value)| match value {
                Some(value) => format!("{label}={value}"),
                None => format!("{label}-"),
            });
            format!("{host} labelled {}", labels.collect::<Vec<_>>().join(" "))
        }
        What::HostForgotten { host } => format!("{host} forgotten"),
        What::HostUndrained { host } => format!("{host} takes members again"),
        What::MemberPublished { member, provides, consumes } => {
            let some =
                |names: &[String]| if names.is_empty() { "nothing".to_owned() } else { names.join(" ") };
            format!("{member} provides {}, consumes {}", some(provides), some(consumes))
        }
        What::Request { transition, principal, targets, reason, overrides, override_freeze, .. } => {
            let because = because(reason.as_deref());
            let freezes = override_freeze.then(|| "freezes".to_owned());
            let over: Vec<_> = overrides.iter().cloned().chain(freezes).collect();
            let over =
                if over.is_empty() { String::new() } else { format!(", overriding {}", over.join(" ")) };
            format!("{transition} requested by {principal}: {}{over}{because}", targets.join(" "))
        }
        What::Begin { transition, token, plan, steps, gaps, .. } => {
            let plan: String = plan.chars().take(HASH_SHOWN).collect();
            let gap = if gaps.is_empty() { String::new() } else { format!(", gap: {}", gaps.join(" ")) };
            format!("{transition} begun: plan {plan}, {steps} steps, token {token}{gap}")
        }
        What::Decision { transition, decision, cause, message, .. } => {
            let cause = cause.as_ref().map(|cause| format!(", {cause}")).unwrap_or_default();
            format!("{transition} decided: {decision}{cause}{}", because(message.as_deref()))
        }
        What::Step { transition, results, .. } => {
            let named: Vec<_> = results.iter().take(NAMED_MAX).map(ended).collect();
            let more = results.len().checked_sub(NAMED_MAX).filter(|more| *more > 0);
            let more = more.map(|more| format!(", and {more} more")).unwrap_or_default();
            format!("{transition} {}{more}", named.join(", "))
        }
        What::Turn { transition, turn, member, reason, .. } => {
            format!("{transition} turns to {turn}: {member}: {reason}")
        }
        What::Outcome { transition, outcome, left, .. } => {
            let left = left.iter().map(|left| {
                let doubt = if left.in_doubt { "in doubt" } else { "failed" };
                format!("; {} {doubt}: {}", left.member, left.problem)
            });
            format!("{transition} {outcome}{}", left.collect::<String>())
        }
        What::Evidence { members, by, on, principal, reason } => {
            let members: Vec<_> = members.iter().map(|(member, state)| format!("{member} {state}")).collect();
            let by = match (on, principal) {
                (Some(on), _) => format!("fenced from {on}"),
                (None, Some(principal)) => format!("{principal} says so{}", because(reason.as_deref())),
                (None, None) => format!("the {by} has ended"),
            };
            format!("{} surely: {by}", members.join(", "))
        }
        What::Away { lease_ms, principal } => {
            format!("{principal} takes the server away: a lease of {lease_ms} ms until it is back")
        }
        What::Lease { lease_ms } => format!("no host goes by a longer lease than {lease_ms} ms any more"),
        What::MemberGuarded { member, states } if states.is_empty() => format!("{member} is not guarded"),
        What::MemberGuarded { member, states } => format!("{member} is guarded while {}", states.join(", ")),
        What::Freeze { groups, until, reason, principal } => {
            let until = until.as_ref().map(|until| format!(" until {until}")).unwrap_or_default();
            format!("{principal} freezes {}{until}: {reason}", named(groups))
        }
        What::Thaw { freezes, groups, principal } => {
            let freezes: Vec<_> = freezes.iter().map(u64::to_string).collect();
            let what = if groups.is_empty() { "all" } else { &groups.join(" ") };
            let of = format!("{what} of what was frozen at {}", freezes.join(" "));
            match principal {
                Some(principal) => format!("{principal} thaws {of}"),
                None => format!("the time is over of {of}"),
            }
        }
        What::Acknowledged { hosts } => format!("{} hosts have taken what they were told", hosts.len()),
        What::Report { member, actual } => format!("{member} is {}", actual.as_deref().unwrap_or("unknown")),
        What::Phase { transition, phase, .. } => format!("{transition} in {phase}"),
        What::Vote { transition, vote, .. } => {
            let because = because(vote.reason.as_deref());
            format!("{transition} {} says {} to {}{because}", vote.member, vote.answer, vote.round)
        }
    }
}

fn named(groups: &[String]) -> String {
    if groups.is_empty() { "everything".to_owned() } else { groups.join(" ") }
}

fn ended(ended: &Ended) -> String {
    let member = ended.member.as_deref().unwrap_or("a member");
    let reason = ended.reason.as_ref().map(|reason| format!(": {reason}")).unwrap_or_default();
    if !ended.set.is_empty() {
        let set: Vec<_> = ended.set.iter().map(|(key, value)| format!("{key}={value}")).collect();
        return format!("{member} takes {} {}{reason}", set.join(" "), ended.result);
    }
    match (&ended.to, ended.step) {
        (Some(to), _) => format!("{member} to {to} {}{reason}", ended.result),
        (None, Some(step)) => format!("step {step} {}{reason}", ended.result),
        (None, None) => format!("{member} {}{reason}", ended.result),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use expect_test::expect;
    use serde_json::json;

    fn all() -> Vec<Value> {
        let of = |kind: &str, fields: Value| {
            let mut event = json!({
                "revision": 7, "at": "2026-01-01T00:00:00.000Z", "provisional": false, "kind": kind,
                "transition": "t7", "groups": ["db"],
            });
            event.as_object_mut().unwrap().extend(fields.as_object().unwrap().clone());
            event
        };
        let ended = |fields: Value| {
            let mut ended = json!({
                "member": null, "step": null, "direction": null, "to": null, "set": {}, "result": "confirmed", "reason": null,
            });
            ended.as_object_mut().unwrap().extend(fields.as_object().unwrap().clone());
            ended
        };
        vec![
            of("reign", json!({ "server": "s1" })),
            of("spec", json!({ "cluster": "shop", "principal": "ann" })),
            of("host-joined", json!({ "host": "a", "address": null, "labels": {} })),
            of("host-liveness", json!({ "host": "b", "liveness": "lost" })),
            of("host-undrained", json!({ "host": "b" })),
            of("host-labelled", json!({ "host": "b", "labels": { "zone": "a", "rack": null } })),
            of("host-forgotten", json!({ "host": "c" })),
            of("member-published", json!({ "member": "db@a", "provides": ["sql"], "consumes": [] })),
            of(
                "evidence",
                json!({ "members": { "db@a": "offline" }, "by": "lease", "on": null, "principal": null, "reason": null }),
            ),
            of(
                "evidence",
                json!({ "members": { "db@a": "offline" }, "by": "fence", "on": "b", "principal": null, "reason": null }),
            ),
            of(
                "evidence",
                json!({ "members": { "app@c": "offline" }, "by": "person", "on": null, "principal": "ann", "reason": "unplugged" }),
            ),
            of("away", json!({ "lease_ms": 60_000, "principal": "ann" })),
            of("member-guarded", json!({ "member": "db@a", "states": ["primary"] })),
            of("member-guarded", json!({ "member": "db@a", "states": [] })),
            of(
                "request",
                json!({ "request_id": "r", "principal": "ann", "targets": ["db@a=primary"], "reason": "kernel\u{1b}[2J" }),
            ),
            of(
                "begin",
                json!({ "token": 7, "plan": "0123456789", "steps": 3, "participants": 4, "gaps": ["db"] }),
            ),
            of("decision", json!({ "decision": "commit", "cause": null, "message": null, "member": null })),
            of(
                "decision",
                json!({ "decision": "abort", "cause": "vote-no", "message": "db@b said no", "member": "db@b" }),
            ),
            of(
                "step",
                json!({ "results": [
                    ended(json!({ "member": "db@a", "step": 0, "direction": "forward", "to": "offline" })),
                    ended(json!({ "step": 1, "direction": "back", "result": "failed", "reason": "disk" })),
                    ended(json!({ "member": "app@c", "result": "released" })),
                    ended(json!({ "member": "db@a", "step": 2, "direction": "forward", "to": "offline", "set": { "live": "blue" } })),
                ] }),
            ),
            of("turn", json!({ "turn": "undo", "member": "db@b", "reason": "disk" })),
            of(
                "outcome",
                json!({ "outcome": "degraded", "left": [
                    { "member": "db@b", "problem": "nobody knows", "next": "look", "in_doubt": true },
                ], "untold": ["app@c"] }),
            ),
            of(
                "request",
                json!({ "request_id": "r", "principal": "ann", "targets": ["db@a=primary"], "reason": "fire",
                    "overrides": ["app@c"], "override_freeze": true }),
            ),
            of("freeze", json!({ "until": null, "reason": "audit", "principal": "ann" })),
            of(
                "freeze",
                json!({ "groups": [], "until": "2026-01-01T00:00:00.000Z", "reason": "audit", "principal": "ann" }),
            ),
            of("thaw", json!({ "freezes": [7, 9], "principal": "ann" })),
            of("thaw", json!({ "freezes": [7], "groups": [], "principal": null })),
            of("acknowledged", json!({ "hosts": ["a", "b"] })),
            of("report", json!({ "member": "app@c", "actual": null })),
            of("phase", json!({ "revision": null, "at": null, "provisional": true, "phase": "check" })),
            of(
                "vote",
                json!({ "revision": null, "at": null, "provisional": true, "vote": {
                    "member": "db@b", "role": "actor", "round": "check", "answer": "no", "reason": "lag", "out": {},
                    "provisional": true,
                } }),
            ),
            of("gossip", json!({ "about": "everybody" })),
        ]
    }

    #[test]
    fn each_event_is_a_line() {
        let lines = all().into_iter().map(|value| {
            let event = serde_json::from_value(value.clone()).ok();
            line(event.as_ref(), &value) + "\n"
        });
        expect![[r#"
                   7  2026-01-01T00:00:00.000Z  s1 is the active server
                   7  2026-01-01T00:00:00.000Z  ann declares shop
                   7  2026-01-01T00:00:00.000Z  a joined
                   7  2026-01-01T00:00:00.000Z  b lost
                   7  2026-01-01T00:00:00.000Z  b takes members again
                   7  2026-01-01T00:00:00.000Z  b labelled rack- zone=a
                   7  2026-01-01T00:00:00.000Z  c forgotten
                   7  2026-01-01T00:00:00.000Z  db@a provides sql, consumes nothing
                   7  2026-01-01T00:00:00.000Z  db@a offline surely: the lease has ended
                   7  2026-01-01T00:00:00.000Z  db@a offline surely: fenced from b
                   7  2026-01-01T00:00:00.000Z  app@c offline surely: ann says so: unplugged
                   7  2026-01-01T00:00:00.000Z  ann takes the server away: a lease of 60000 ms until it is back
                   7  2026-01-01T00:00:00.000Z  db@a is guarded while primary
                   7  2026-01-01T00:00:00.000Z  db@a is not guarded
                   7  2026-01-01T00:00:00.000Z  t7 requested by ann: db@a=primary: kernel\u{1b}[2J
                   7  2026-01-01T00:00:00.000Z  t7 begun: plan 01234567, 3 steps, token 7, gap: db
                   7  2026-01-01T00:00:00.000Z  t7 decided: commit
                   7  2026-01-01T00:00:00.000Z  t7 decided: abort, vote-no: db@b said no
                   7  2026-01-01T00:00:00.000Z  t7 db@a to offline confirmed, step 1 failed: disk, app@c released, db@a takes live="blue" confirmed
                   7  2026-01-01T00:00:00.000Z  t7 turns to undo: db@b: disk
                   7  2026-01-01T00:00:00.000Z  t7 degraded; db@b in doubt: nobody knows
                   7  2026-01-01T00:00:00.000Z  t7 requested by ann: db@a=primary, overriding app@c freezes: fire
                   7  2026-01-01T00:00:00.000Z  ann freezes db: audit
                   7  2026-01-01T00:00:00.000Z  ann freezes everything until 2026-01-01T00:00:00.000Z: audit
                   7  2026-01-01T00:00:00.000Z  ann thaws db of what was frozen at 7 9
                   7  2026-01-01T00:00:00.000Z  the time is over of all of what was frozen at 7
                   7  2026-01-01T00:00:00.000Z  2 hosts have taken what they were told
                   7  2026-01-01T00:00:00.000Z  app@c is unknown
                   -  provisional               t7 in check
                   -  provisional               t7 db@b says no to check: lag
            {"about":"everybody","at":"2026-01-01T00:00:00.000Z","groups":["db"],"kind":"gossip","provisional":false,"revision":7,"transition":"t7"}
        "#]].assert_eq(&lines.collect::<String>());
    }

    #[test]
    fn events_are_chosen_by_whom_they_concern() {
        let chosen = |group: Option<&str>, host: Option<&str>, transition: Option<&str>| {
            let args = EventsArgs {
                since: None,
                follow: false,
                group: group.map(|group| group.parse().unwrap()),
                host: host.map(|host| host.parse().unwrap()),
                transition: transition.map(|id| id.parse().unwrap()),
            };
            let wanted = all().into_iter().filter(|value| {
                args.wants(
                    serde_json::from_value::<Event>(value.clone()).ok().as_ref().map(|event| &event.what),
                )
            });
            let kinds = wanted.map(|value| value["kind"].as_str().unwrap().to_owned());
            kinds.collect::<Vec<_>>().join(" ")
        };
        let table = [
            (None, None, None),
            (Some("db"), None, None),
            (Some("app"), None, None),
            (Some("nothing"), None, None),
            (None, Some("a"), None),
            (None, Some("b"), None),
            (None, Some("c"), None),
            (None, None, Some("t7")),
            (None, None, Some("t8")),
            (Some("db"), Some("b"), Some("t7")),
        ];
        let told = table.map(|(group, host, transition)| {
            let named: Vec<_> = [group, host, transition].into_iter().flatten().collect();
            format!("{}: {}\n", named.join(" "), chosen(group, host, transition))
        });
        expect![[r#"
            : reign spec host-joined host-liveness host-undrained host-labelled host-forgotten member-published evidence evidence evidence away member-guarded member-guarded request begin decision decision step turn outcome request freeze freeze thaw thaw acknowledged report phase vote gossip
            db: member-published evidence evidence member-guarded member-guarded request begin decision decision step turn outcome request freeze freeze thaw thaw phase vote
            app: evidence step freeze thaw report
            nothing: freeze thaw
            a: host-joined member-published evidence evidence member-guarded member-guarded request step request
            b: host-liveness host-undrained host-labelled decision turn outcome vote
            c: host-forgotten evidence step report
            t7: request begin decision decision step turn outcome request phase vote
            t8: 
            db b t7: decision turn outcome vote
        "#]].assert_eq(&told.concat());
    }
}
