//! All that was seen from outside, put down as it came. Nothing is judged here but what cannot be kept: two answers
//! that contradict each other on the spot.

use crate::clock::Stamp;
use crate::etcd::Seen;
use crate::fault::Kind;
use crate::http::Answer;
use crate::member::{Line, Run};
use lockstep_core::agent::AgentRecord;
use lockstep_core::cluster::Cluster;
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};

/// How long a guard may take to act, on a machine with much to do, once a host that stood still goes on.
const WAKE_MS: u64 = 500;

/// An event of the stream, with when it came first.
#[derive(Debug, Clone)]
pub(crate) struct Event {
    pub(crate) at: Stamp,
    pub(crate) what: Value,
}

impl Event {
    pub(crate) fn text(&self, field: &str) -> &str {
        self.what[field].as_str().unwrap_or_default()
    }
}

/// Somebody's word on how a transition was decided or ended.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Told {
    pub(crate) transition: String,
    /// `decision` or `outcome`.
    pub(crate) what: &'static str,
    pub(crate) value: String,
    pub(crate) source: String,
}

/// The goals of all members, as one answer showed them.
#[derive(Debug, Clone, Default, PartialEq)]
pub(crate) struct Goals {
    pub(crate) at: Stamp,
    pub(crate) revision: u64,
    /// Members that a transition is about to move.
    pub(crate) driven: BTreeSet<String>,
    pub(crate) goals: BTreeMap<String, String>,
}

/// A member's state, as one answer showed it, being settled and different from what was shown before.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Shown {
    pub(crate) at: Stamp,
    pub(crate) member: String,
    pub(crate) actual: String,
}

/// A request that was acknowledged.
#[derive(Debug, Clone, Default, PartialEq)]
pub(crate) struct Accepted {
    pub(crate) transition: String,
    pub(crate) request_id: String,
    /// By which server, when the request was first sent to anybody, and when this was answered.
    pub(crate) server: String,
    pub(crate) begun: Stamp,
    pub(crate) at: Stamp,
}

/// A list that one server gave.
#[derive(Debug, Clone, Default, PartialEq)]
pub(crate) struct Read {
    pub(crate) server: String,
    pub(crate) begun: Stamp,
    pub(crate) at: Stamp,
    /// Whether it was to show all that anybody had been shown before.
    pub(crate) is_consistent: bool,
    pub(crate) revision: u64,
    /// Of a list of transitions, the newest one, and those without an outcome, with whether they had a decision.
    pub(crate) transitions: Option<(u64, BTreeMap<u64, bool>)>,
}

/// How long a server could not reach a majority of etcd's members, though its clients could reach it.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct CutOff {
    pub(crate) server: String,
    /// From when all of it was in force, and until when; none: it lasts.
    pub(crate) from: Stamp,
    pub(crate) to: Option<Stamp>,
    /// How often it was asked for something meanwhile.
    pub(crate) asked: u64,
}

/// What took the active server away, and when somebody had a write acknowledged again.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct TakeOver {
    pub(crate) kind: &'static str,
    pub(crate) from: Stamp,
    /// None: not in time.
    pub(crate) took_ms: Option<u64>,
}

/// A fault that was made.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Struck {
    pub(crate) kind: &'static str,
    /// What it was made to: `server`, a host, or a host and what of it, as in `h1/net`.
    pub(crate) target: String,
    pub(crate) from: Stamp,
    /// None while it lasts.
    pub(crate) to: Option<Stamp>,
    pub(crate) has_bitten: bool,
    /// How often the target went away and came back in it.
    pub(crate) turns: u64,
}

/// What went over an agent's connection, read by the proxy, as far as it is judged.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Wire {
    /// The agent said which transitions it has open, in a new session.
    Hello { open: Vec<u64> },
    /// The server told how one ended.
    Outcome { transition: u64 },
    /// The server ordered something in one.
    Call { transition: Option<u64>, phase: String },
    /// A notice, with its number and that of the one before it.
    Notice { index: u64, previous: u64 },
    /// Those up to a number are not told.
    Gap { index: u64 },
    /// What the agent sent then was answered: its lease goes on from then, for so long if that has changed.
    Renewed { sent_ms: u64, lease_ms: Option<u64> },
    /// The session stands, with a lease of so long; it begins with the next renewal.
    Welcome { lease_ms: u64 },
}

/// One thing on the wire.
#[derive(Debug, Clone)]
pub(crate) struct Heard {
    pub(crate) host: String,
    pub(crate) connection: u64,
    pub(crate) at: Stamp,
    pub(crate) what: Wire,
}

/// All of it.
#[derive(Debug, Default, Clone)]
pub(crate) struct History {
    pub(crate) events: BTreeMap<u64, Event>,
    pub(crate) told: BTreeSet<Told>,
    /// Transitions that have ended, whole.
    pub(crate) transitions: BTreeMap<String, Value>,
    pub(crate) goals: Vec<Goals>,
    pub(crate) shown: Vec<Shown>,
    pub(crate) accepted: Vec<Accepted>,
    /// Requests that were sent again, as the same and as others.
    pub(crate) repeated: (u64, u64),
    pub(crate) struck: Vec<Struck>,
    pub(crate) wire: Vec<Heard>,
    /// Found on the spot, by the number of the invariant.
    pub(crate) broken: Vec<(u8, String)>,
    /// How long this program itself was kept from running, when it was.
    pub(crate) stalls: Vec<(Stamp, u64)>,
    /// How many answers readers got.
    pub(crate) reads_made: u64,
    /// When the last fault was mended.
    pub(crate) healed: Option<Stamp>,
    /// When all had resolved; none: it had not in time, for the reason given.
    pub(crate) resolved: Option<Result<Stamp, String>>,
    /// The highest revision that any answer showed.
    pub(crate) revision: u64,
    /// When it became higher.
    pub(crate) revisions: Vec<(Stamp, u64)>,
    /// When a decision or an outcome was told first.
    pub(crate) first_told: BTreeMap<(String, &'static str), Stamp>,
    pub(crate) reads: Vec<Read>,
    pub(crate) cut_off: Vec<CutOff>,
    pub(crate) take_overs: Vec<TakeOver>,
    /// By request, which transition it is.
    requests: BTreeMap<String, String>,
    last_actuals: BTreeMap<String, String>,
}

/// What is judged: the history, and what was found on disks.
#[derive(Debug, Default)]
pub(crate) struct Evidence {
    pub(crate) history: History,
    pub(crate) calls: Vec<Line>,
    pub(crate) runs: Vec<Run>,
    pub(crate) journals: BTreeMap<String, Vec<AgentRecord>>,
    pub(crate) store: Option<Cluster>,
    /// What an observer has seen of etcd, where that is the store.
    pub(crate) etcd: Option<Seen>,
    /// Members and hosts as the API showed them last.
    pub(crate) members: Vec<Value>,
    pub(crate) hosts: Vec<Value>,
    pub(crate) settings: BTreeMap<String, BTreeMap<String, String>>,
    /// By member, what its software has taken.
    pub(crate) taken: BTreeMap<String, BTreeMap<String, String>>,
    /// All has ended and resolved, or should have.
    pub(crate) is_final: bool,
    /// The host that no fault was made to.
    pub(crate) spared: String,
    /// The host whose disk is set back and that runs twice: of it nothing is expected that rests on its memory.
    pub(crate) excused: String,
    /// The states that are limited to one member.
    pub(crate) limited: Vec<(String, String)>,
    /// The group whose members run in a limited state by their leases only.
    pub(crate) leased: String,
}

/// What an event says that its record does. The rest is of its transition, and told only while that is kept whole.
fn recorded(event: &Value) -> Value {
    let mut event = event.clone();
    event["groups"] = Value::Null;
    for result in event["results"].as_array_mut().into_iter().flatten() {
        for field in ["member", "to", "set"] {
            result[field] = Value::Null;
        }
    }
    event
}

impl History {
    pub(crate) fn event(&mut self, revision: u64, data: &str) {
        let Ok(what) = serde_json::from_str::<Value>(data) else { return };
        if what["provisional"].as_bool() != Some(false) {
            return;
        }
        self.see(revision);
        if let Some(known) = self.events.get(&revision) {
            if recorded(&known.what) != recorded(&what) {
                self.broken.push((1, format!("event {revision} was {} and is {what} now", known.what)));
            }
            return;
        }
        let transition = what["transition"].as_str().unwrap_or_default().to_owned();
        for field in ["decision", "outcome"] {
            if what["kind"] == field
                && let Some(value) = what[field].as_str()
            {
                self.tell(&transition, field, value, "events");
            }
        }
        self.events.insert(revision, Event { at: Stamp::now(), what });
    }

    /// Somebody has been shown so much.
    pub(crate) fn see(&mut self, revision: u64) {
        if revision > self.revision {
            self.revision = revision;
            self.revisions.push((Stamp::now(), revision));
        }
    }

    pub(crate) fn tell(&mut self, transition: &str, what: &'static str, value: &str, source: &str) {
        let (transition, value, source) = (transition.to_owned(), value.to_owned(), source.to_owned());
        self.first_told.entry((transition.clone(), what)).or_insert_with(Stamp::now);
        self.told.insert(Told { transition, what, value, source });
    }

    /// A transition, from a list or alone.
    pub(crate) fn transition(&mut self, shown: &Value, source: &str) {
        let Some(id) = shown["id"].as_str() else { return };
        for field in ["decision", "outcome"] {
            if let Some(value) = shown[field].as_str() {
                self.tell(id, field, value, source);
            }
        }
        if let Some(request) = shown["request_id"].as_str() {
            let known = self.requests.entry(request.to_owned()).or_insert_with(|| id.to_owned());
            if known != id {
                let why = format!("request {request} is {known}, and {source} says that it is {id}");
                self.broken.push((7, why));
            }
        }
        if shown["outcome"].is_string() && shown.get("plan").is_some() {
            self.transitions.insert(id.to_owned(), shown.clone());
        }
    }

    /// An answer to a request that was first sent at some time; says whether it was acknowledged. What was recorded then
    /// may be acknowledged again by a server that cannot write.
    pub(crate) fn accept(&mut self, request_id: &str, answer: &Answer, begun: Stamp) -> bool {
        if answer.status != 202 {
            return false;
        }
        self.transition(&answer.body, "request");
        self.accepted.push(Accepted {
            transition: text(&answer.body, "id").to_owned(),
            request_id: request_id.to_owned(),
            server: answer.server.to_owned(),
            begun,
            at: Stamp::now(),
        });
        true
    }

    /// A list of members.
    pub(crate) fn members(&mut self, list: &Value) {
        let Some(revision) = list["revision"].as_u64() else { return };
        self.see(revision);
        let at = Stamp::now();
        let (mut goals, mut driven) = (BTreeMap::new(), BTreeSet::new());
        for item in list["items"].as_array().into_iter().flatten() {
            let member = format!("{}@{}", text(item, "group"), text(item, "host"));
            if let Some(actual) = item["actual"].as_str()
                && item["mark"].is_null()
                && self.last_actuals.get(&member).map(String::as_str) != Some(actual)
            {
                self.last_actuals.insert(member.clone(), actual.to_owned());
                self.shown.push(Shown { at, member: member.clone(), actual: actual.to_owned() });
            }
            if item["transition"].is_string() {
                driven.insert(member.clone());
            }
            if let Some(goal) = item["goal"].as_str() {
                goals.insert(member, goal.to_owned());
            }
        }
        if let Some(same) = self.goals.iter().rev().take(50).find(|known| known.revision == revision) {
            if same.goals != goals {
                let why = format!("two reads at revision {revision} differ: {:?} and {goals:?}", same.goals);
                self.broken.push((6, why));
            }
            return;
        }
        self.goals.push(Goals { at, revision, driven, goals });
    }
}

/// What a list of transitions says of itself: see [`Read`].
pub(crate) fn listed(list: &Value) -> (u64, BTreeMap<u64, bool>) {
    let items = || list["items"].as_array().into_iter().flatten();
    let newest = items().filter_map(|item| number(text(item, "id"))).max().unwrap_or(0);
    let open = items().filter(|item| item["outcome"].is_null());
    let open =
        open.filter_map(|item| Some((number(text(item, "id"))?, item["decision"].is_string()))).collect();
    (newest, open)
}

/// The number of a transition, as in `t42`.
pub(crate) fn number(transition: &str) -> Option<u64> {
    transition.strip_prefix('t')?.parse().ok()
}

/// A field of text; empty when it has none.
pub(crate) fn text<'a>(object: &'a Value, field: &str) -> &'a str {
    object[field].as_str().unwrap_or_default()
}

impl Evidence {
    /// Whether a fault lay on one of these targets at any time in a span.
    pub(crate) fn is_struck(&self, is_target: impl Fn(&Struck) -> bool, from: Stamp, to: Stamp) -> bool {
        self.history
            .struck
            .iter()
            .filter(|struck| is_target(struck))
            .any(|struck| struck.from <= to && struck.to.is_none_or(|end| end >= from))
    }

    /// Until when software ran, where a host that stood still as a whole is taken to have been gone from then on: when it
    /// goes on, what its guard has to end runs until the guard does. None: it ran at no other time.
    pub(crate) fn ran_until(&self, run: &Run) -> Option<Stamp> {
        let stops = self.history.struck.iter().filter(|struck| {
            struck.kind == Kind::HostStopped.name() && struck.target == host_of(&run.member)
        });
        let mut stops = stops.filter_map(|struck| Some((struck.from, struck.to?)));
        let ended_at_wake = stops.find(|(from, to)| run.last > *from && run.last <= to.plus_ms(WAKE_MS));
        match ended_at_wake {
            Some((from, _)) => (run.begin < from).then_some(from),
            None => Some(run.last),
        }
    }

    /// The events of a kind, with their revisions.
    pub(crate) fn events(&self, kind: &'static str) -> impl Iterator<Item = (u64, &Event)> {
        let all = self.history.events.iter();
        all.filter(move |(_, event)| event.text("kind") == kind).map(|(revision, event)| (*revision, event))
    }

    /// Calls that ended, with the line that says so; those that never did have none.
    pub(crate) fn ended_calls(&self) -> Vec<(&Line, Option<&Line>)> {
        let mut ends = BTreeMap::new();
        for line in self.calls.iter().filter(|line| line.code.is_some()) {
            ends.insert((&line.member, line.pid, &line.phase, &line.transition), line);
        }
        let begins = self.calls.iter().filter(|line| line.code.is_none());
        begins
            .map(|line| {
                let end = ends.get(&(&line.member, line.pid, &line.phase, &line.transition)).copied();
                (line, end.filter(|end| end.at >= line.at))
            })
            .collect()
    }
}

/// The host of `group@host`.
pub(crate) fn host_of(member: &str) -> &str {
    member.rsplit_once('@').map_or(member, |(_, host)| host)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_request_that_is_another_transition_elsewhere_is_found() {
        let mut history = History::default();
        let shown = |id: &str| json!({ "id": id, "request_id": "r-1", "outcome": null });
        history.transition(&shown("t7"), "s1");
        history.transition(&shown("t7"), "s2");
        assert_eq!(history.broken, []);
        history.transition(&shown("t9"), "s2");
        assert_eq!(history.broken, [(7, "request r-1 is t7, and s2 says that it is t9".to_owned())]);
    }

    #[test]
    fn a_list_says_which_transitions_are_open() {
        let item = |id: &str, decision: Value, outcome: Value| json!({ "id": id, "decision": decision, "outcome": outcome });
        let list = json!({ "items": [
            item("t2", "commit".into(), "committed".into()),
            item("t5", "commit".into(), Value::Null),
            item("t11", Value::Null, Value::Null),
        ] });
        assert_eq!(listed(&list), (11, BTreeMap::from([(5, true), (11, false)])));
    }
}
