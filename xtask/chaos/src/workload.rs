//! The operators: random requests, some of them sent again, as they were and otherwise; aborts, drains.

use crate::clock::Stamp;
use crate::history::{Accepted, text};
use crate::http;
use crate::network::{Layout, layout};
use crate::random::Random;
use crate::reader::Shared;
use serde_json::{Value, json};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

/// Which hosts have members of a group.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Group {
    pub(crate) name: &'static str,
    pub(crate) hosts: &'static [&'static str],
    pub(crate) states: &'static [&'static str],
    /// The state that only one member may be in.
    pub(crate) limited: Option<&'static str>,
}

/// The groups whose members are moved.
pub(crate) const GROUPS: [Group; 8] = [
    Group {
        name: "db",
        hosts: &["h1", "h2", "h3"],
        states: &["offline", "standby", "primary"],
        limited: Some("primary"),
    },
    Group { name: "pool", hosts: &["h2", "h4", "h5"], states: &["offline", "online"], limited: None },
    Group { name: "web", hosts: &["h3", "h4", "h5"], states: &["offline", "online"], limited: None },
    Group { name: "arbiter", hosts: &["h1", "h4"], states: &["offline", "online"], limited: None },
    Group { name: "audit", hosts: &["h2", "h5"], states: &["offline", "online"], limited: None },
    // On hosts that dial through the proxy, which knows when their leases end, and on one that does not.
    Group {
        name: "lead",
        hosts: &["h1", "h3", "h4"],
        states: &["offline", "standby", "primary"],
        limited: Some("primary"),
    },
    Group {
        name: "batch",
        hosts: &["h1", "h2", "h4"],
        states: &["offline", "online"],
        limited: Some("online"),
    },
    Group {
        name: "vault",
        hosts: &["h1", "h3"],
        states: &["offline", "standby", "primary"],
        limited: Some("primary"),
    },
];

/// The group whose members run by their leases, and that is repaired.
pub(crate) const LEASED: &str = "lead";
/// The group that is repaired once somebody has made sure that a lost member has stopped.
pub(crate) const FENCED: &str = "vault";

pub(crate) fn group(name: &str) -> &'static Group {
    GROUPS.iter().find(|group| group.name == name).expect("it is one of them")
}

/// What operators declare: groups limited by `max`, of them one repaired by leases and one by fencing; holders, a service that requires,
/// voters, observers, settings.
const SPEC: &str = r#"{
    "cluster": "chaos",
    "groups": {
        "db": { "select": { "db": "yes" }, "lifecycle": "primary-standby", "handler": "software",
                "deadlines_ms": { "check": 4000, "prepare": 4000, "commit": 12000 } },
        "pool": { "select": { "pool": "yes" }, "handler": "software", "hold_ms": 8000,
                  "deadlines_ms": { "check": 4000, "prepare": 4000, "commit": 12000 } },
        "web": { "select": { "web": "yes" }, "handler": "software", "settings": { "epoch": 1 },
                 "deadlines_ms": { "check": 4000, "prepare": 4000, "commit": 12000 } },
        "arbiter": { "select": { "arbiter": "yes" }, "handler": "software",
                  "deadlines_ms": { "check": 4000, "prepare": 4000, "commit": 12000 } },
        "audit": { "select": { "audit": "yes" }, "handler": "software",
                  "deadlines_ms": { "check": 4000, "prepare": 4000, "commit": 12000 } },
        "lead": { "select": { "lead": "yes" }, "lifecycle": "primary-standby", "handler": "software", "recover": "lease",
                  "deadlines_ms": { "check": 4000, "prepare": 4000, "commit": 12000 } },
        "vault": { "select": { "vault": "yes" }, "lifecycle": "primary-standby", "handler": "software", "recover": "fence",
                  "deadlines_ms": { "check": 4000, "prepare": 4000, "commit": 12000 } },
        "batch": { "select": { "batch": "yes" }, "handler": "software", "limits": { "online": { "max": 1 } },
                   "on_failure": "exclude", "deadlines_ms": { "check": 4000, "prepare": 4000, "commit": 12000 } }
    },
    "relations": [
        { "from": "pool", "to": "db", "ask": "hold" },
        { "from": "web", "to": "db", "kind": "requires" },
        { "from": "arbiter", "to": "db", "ask": "vote" },
        { "from": "arbiter", "to": "web", "ask": "vote", "on": ["epoch"] },
        { "from": "audit", "to": "db" },
        { "from": "audit", "to": "web" },
        { "from": "audit", "to": "batch" }
    ]
}"#;

/// The spec. Where servers take over from each other, leases are as long as that asks for, by default.
pub(crate) fn spec() -> Value {
    let mut spec: Value = serde_json::from_str(SPEC).expect("it is JSON");
    if layout() == Layout::One {
        spec["lease_ms"] = lease_ms().into();
    }
    spec
}

/// How long leases are.
pub(crate) fn lease_ms() -> u64 {
    match layout() {
        Layout::One => 3000,
        Layout::Three => 6000,
    }
}

/// The most requests that are under way at once: more would only queue.
const UNDER_WAY_MAX: usize = 8;

/// Starts an operator, who stops when told to.
pub(crate) fn start(history: &Shared, seed: u64, stop: Arc<AtomicBool>) -> JoinHandle<()> {
    let history = history.clone();
    std::thread::spawn(move || {
        let mut operator = Operator { history, random: Random::new(seed), prefix: seed, count: 0, epoch: 1 };
        while !stop.load(Ordering::Relaxed) {
            operator.act();
            std::thread::sleep(Duration::from_millis(operator.random.within(30, 250)));
        }
    })
}

struct Operator {
    history: Shared,
    random: Random,
    prefix: u64,
    count: u64,
    epoch: u64,
}

impl Operator {
    fn act(&mut self) {
        match self.random.within(0, 99) {
            0..84 => self.request(),
            84..86 => self.abort(),
            86..90 => self.undrain(),
            90..92 => {
                let host = format!("h{}", self.random.within(1, 5));
                self.run(vec![format!("drain {host}")]);
            }
            _ => self.switch(),
        }
    }

    /// Switchovers are what this is made for: from wherever it is to somebody else.
    fn switch(&mut self) {
        let name = self.random.pick(&["db", "db", LEASED, FENCED]);
        let host = self.random.pick(group(name).hosts);
        self.run(vec![format!("{name}@{host}=primary")]);
    }

    fn target(&mut self) -> String {
        if self.random.percent(15) {
            self.epoch += 1;
            return format!("web.epoch={}", self.epoch);
        }
        let group = GROUPS[usize::try_from(self.random.within(0, GROUPS.len() as u64 - 1)).expect("a place")];
        // Software that is up makes for more to do.
        let last = group.states.len() - 1;
        let state = if self.random.percent(55) { group.states[last] } else { self.random.pick(group.states) };
        if self.random.percent(70) {
            return format!("{}@{}={state}", group.name, self.random.pick(group.hosts));
        }
        match self.random.percent(70) {
            true => format!("{}=up", group.name),
            false => format!("{}=down", group.name),
        }
    }

    fn request(&mut self) {
        let count = if self.random.percent(20) { 2 } else { 1 };
        let targets = (0..count).map(|_| self.target()).collect();
        self.run(targets);
    }

    fn run(&mut self, targets: Vec<String>) {
        if self.under_way().len() >= UNDER_WAY_MAX {
            return;
        }
        self.count += 1;
        let request_id = format!("r-{}-{}", self.prefix, self.count);
        let mut body = json!({ "targets": targets, "request_id": request_id });
        if self.random.percent(15) {
            body["on_failure"] = json!(self.random.pick(&["undo", "exclude"]));
        }
        if self.random.percent(10) {
            body["deadline_ms"] = json!(self.random.within(500, 4000));
        }
        if self.random.percent(10) {
            body["exclude_lost"] = json!(true);
        }
        if self.random.percent(5) {
            body["overrides"] = json!(["arbiter@h1"]);
        }
        let begun = Stamp::now();
        let first = self.post(&body, begun);
        if self.random.percent(20) || first.is_none() {
            // The answer may have been lost, and the server may be away: later, too.
            std::thread::sleep(Duration::from_millis(self.random.within(0, 400)));
            self.again(&body, first.as_deref(), begun);
        }
        if let Some(id) = first
            && self.random.percent(10)
        {
            self.otherwise(&body, &id);
        }
    }

    /// Sends a request; gives the transition's name if it was accepted.
    fn post(&mut self, body: &Value, begun: Stamp) -> Option<String> {
        let answer = http::ask_any("POST", "/v1/transitions", Some(body))?;
        let is_accepted = self.history.lock().accept(text(body, "request_id"), &answer, begun);
        is_accepted.then(|| text(&answer.body, "id").to_owned())
    }

    /// The same request once more has the same result.
    fn again(&mut self, body: &Value, first: Option<&str>, begun: Stamp) {
        let Some(second) = self.post(body, begun) else { return };
        let mut history = self.history.lock();
        history.repeated.0 += 1;
        if let Some(first) = first
            && first != second
        {
            history.broken.push((7, format!("the same request was {first} and then {second}: {body}")));
        }
    }

    /// Another request under the same id is refused.
    fn otherwise(&mut self, body: &Value, id: &str) {
        let mut other = body.clone();
        other["targets"] = json!(["audit=up", "arbiter=up", "pool=up"]);
        let Some((status, answer)) = http::ask("POST", "/v1/transitions", Some(&other)) else { return };
        let mut history = self.history.lock();
        match status {
            409 => history.repeated.1 += 1,
            429 | 503 => {}
            _ => history
                .broken
                .push((7, format!("another request under the id of {id} got {status}: {answer}"))),
        }
    }

    fn under_way(&self) -> Vec<String> {
        let history = self.history.lock();
        let newest = history.accepted.iter().rev().take(60);
        let is_open = |id: &&Accepted| {
            !history.told.iter().any(|told| told.transition == id.transition && told.what == "outcome")
        };
        newest.filter(is_open).map(|accepted| accepted.transition.clone()).collect()
    }

    fn abort(&mut self) {
        let open = self.under_way();
        let Some(id) = open.first() else { return };
        if let Some((200, answer)) =
            http::ask("POST", &format!("/v1/transitions/{id}/abort"), Some(&json!({})))
        {
            self.history.lock().transition(&answer, "abort");
        }
    }

    fn undrain(&mut self) {
        for host in ["h1", "h2", "h3", "h4", "h5"] {
            // What is not drained stays as it is.
            http::ask("POST", &format!("/v1/hosts/{host}/undrain"), Some(&json!({})));
        }
    }
}
