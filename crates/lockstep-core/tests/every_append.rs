//! The server and each agent are killed at every single write, with the write lost and with its acknowledgement
//! lost. Whatever the moment, everything settles, and nothing that was promised is broken on the way.

#![allow(clippy::unwrap_used, reason = "these are tests")]

use lockstep_core::agent::AgentRecord;
use lockstep_core::engine::Accepted;
use lockstep_core::id::{HostName, MemberId, TransitionId};
use lockstep_core::message::{Decision, Outcome, Phase};
use lockstep_core::record::Body;
use lockstep_core::request::Request;
use lockstep_core::vote::Answer;
use lockstep_core::world::{Script, World, unsettled};
use std::collections::{BTreeMap, BTreeSet};

const SPEC: &str = r#"{"cluster":"shop","groups":{
    "db":{"select":{"role":"db"},"lifecycle":"primary-standby","handler":"sim","retries":0},
    "pool":{"select":{"role":"pool"},"handler":"sim"}},
    "relations":[{"from":"pool","to":"db","kind":"requires","ask":"hold"}]}"#;

/// Who is killed at which of its writes.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Kill {
    who: &'static str,
    at: u64,
    keeps_in_flight: bool,
}

/// A world that is watched at every step, and the kills that are still to come.
struct Trial {
    world: World,
    kills: Vec<Kill>,
    /// What readers have seen of transitions.
    seen: BTreeMap<TransitionId, (Option<Decision>, Option<Outcome>)>,
    log: Vec<String>,
}

fn member(name: &str) -> MemberId {
    name.parse().unwrap()
}

fn no() -> Vec<Script> {
    let reason = Some("not today".to_owned());
    vec![Script { answer: Answer::No, reason, has_effect: false, ..Script::default() }]
}

fn request(target: &str, id: &str) -> Request {
    Request {
        request_id: id.to_owned(),
        principal: "operator".to_owned(),
        targets: vec![target.parse().unwrap()],
        ..Request::default()
    }
}

impl Trial {
    fn new(kills: Vec<Kill>) -> Self {
        let mut world = World::new();
        for (id, state) in [("db@a", "primary"), ("db@b", "standby"), ("pool@p", "online")] {
            world.set_software(&member(id), &state.parse().unwrap());
        }
        Self { world, kills, seen: BTreeMap::new(), log: Vec::new() }
    }

    /// Looks at what must hold at every instant.
    fn watch(&mut self) {
        self.log.extend(self.world.take_trace());
        let software = self.world.software();
        let primaries = software.values().filter(|state| state.as_str() == "primary").count();
        assert!(primaries <= 1, "{primaries} primaries");
        let Some(server) = self.world.server() else { return };
        let cluster = server.acknowledged();
        for (id, (decision, outcome)) in &self.seen {
            let known = cluster.transitions.get(id).unwrap_or_else(|| panic!("{id} was seen and is gone"));
            assert!(decision.is_none() || *decision == known.decision, "{id} had another decision");
            assert!(outcome.is_none() || *outcome == known.outcome, "{id} had another outcome");
        }
        for (id, known) in &cluster.transitions {
            self.seen.insert(*id, (known.decision, known.outcome));
        }
    }

    /// Kills whoever has come to its write. Tells whether somebody was killed.
    fn kill(&mut self) -> bool {
        let is_due = |kill: &Kill| match kill.who {
            "server" => self.world.server().is_some() && self.world.appends() == kill.at,
            name => self.world.agent(name).is_some() && self.world.agent_appends(name) == kill.at,
        };
        let Some(place) = self.kills.iter().position(is_due) else { return false };
        let Kill { who, keeps_in_flight, .. } = self.kills.remove(place);
        self.log.push(format!("KILL {who} {keeps_in_flight}"));
        match who {
            "server" => {
                self.world.kill_server(keeps_in_flight);
                // The agents learn of it, and go on by themselves for a while.
                self.run_for(10);
                self.world.start_server();
            }
            name => {
                self.world.kill_agent(name, keeps_in_flight);
                self.run_for(10);
                self.world.start_agent(name);
            }
        }
        true
    }

    fn settle_now(&mut self) {
        for _ in 0..100_000 {
            if self.kill() {
                continue;
            }
            let more = self.world.step();
            self.watch();
            if !more && !self.kill() {
                return;
            }
        }
        panic!("it never settles");
    }

    fn run_for(&mut self, ms: u64) {
        let end = self.world.now().plus(ms);
        self.settle_now();
        while self.world.now() < end {
            self.world.advance_to_next(end.since(self.world.now()));
            self.settle_now();
        }
    }

    /// Asks until there is an answer, as an operator's tool does.
    fn ask(&mut self, target: &str, id: &str) -> TransitionId {
        for _ in 0..5 {
            let reply = self.world.run(request(target, id));
            self.run_for(12_000);
            match self.world.answer(reply) {
                Some(Ok(Accepted::Transition(id))) => return *id,
                Some(other) => panic!("{id}: {other:?}"),
                None => {}
            }
        }
        panic!("no answer to {id}");
    }

    fn play(&mut self) -> BTreeMap<&'static str, Outcome> {
        self.world.start_server();
        self.settle_now();
        for _ in 0..5 {
            let reply = self.world.apply(serde_json::from_str(SPEC).unwrap());
            self.settle_now();
            if self.world.answer(reply).is_some() {
                break;
            }
        }
        for (name, role) in [("a", "db"), ("b", "db"), ("p", "pool")] {
            let labels = BTreeMap::from([("role".to_owned(), role.to_owned())]);
            self.world.join(name, &HostName::new(name).unwrap(), labels, None);
        }
        self.run_for(12_000);
        let mut asked = BTreeMap::new();
        asked.insert("commits", self.ask("db@b=primary", "commits"));
        let other = self.standby();
        self.world.script(&member(other), Phase::Prepare, no());
        asked.insert("aborts", self.ask(&format!("{other}=primary"), "aborts"));
        self.world.script(&member(other), Phase::Prepare, vec![Script::default()]);
        self.world.script(&member(other), Phase::Commit, no());
        asked.insert("undone", self.ask(&format!("{other}=primary"), "undone"));
        self.world.script(&member(other), Phase::Commit, vec![Script::default()]);
        self.run_for(12_000);
        self.check_end(&asked)
    }

    fn standby(&self) -> &'static str {
        let is_primary = self.world.software()[&member("db@a")].as_str() == "primary";
        if is_primary { "db@b" } else { "db@a" }
    }

    fn check_end(&mut self, asked: &BTreeMap<&'static str, TransitionId>) -> BTreeMap<&'static str, Outcome> {
        let server = self.world.server().expect("it was started again");
        let cluster = server.acknowledged();
        assert!(cluster.open.is_empty(), "open: {:?}", cluster.open);
        let mut ends: BTreeMap<TransitionId, usize> = BTreeMap::new();
        for record in self.world.journal() {
            if let Body::Outcome { transition, .. } = &record.body {
                *ends.entry(*transition).or_default() += 1;
            }
        }
        for id in cluster.transitions.keys() {
            assert_eq!(ends.get(id), Some(&1), "{id} ends once");
        }
        assert_eq!(cluster.transitions.len(), 3, "one transition for each request id");
        assert_eq!(unsettled(&self.world), BTreeSet::new(), "agents wait for outcomes");
        assert_eq!(self.world.promises(), &BTreeSet::new(), "software is prepared or holds");
        for name in ["a", "b", "p"] {
            for record in self.world.agent_journal(name) {
                if let AgentRecord::Started { transition, .. } = record {
                    let outcome = cluster.transitions[transition].outcome;
                    assert_ne!(
                        outcome,
                        Some(Outcome::Aborted),
                        "{transition} was aborted, and {name} took a step"
                    );
                }
            }
        }
        for (id, known) in &cluster.members {
            assert_eq!(known.actual.as_ref(), self.world.software().get(id), "{id} is where readers see it");
            assert_eq!(known.mark, lockstep_core::cluster::Mark::None, "{id} is settled");
            assert_eq!(known.goal, known.actual, "{id} is where it should be");
        }
        asked.iter().map(|(name, id)| (*name, cluster.transitions[id].outcome.unwrap())).collect()
    }
}

fn trial(kills: &[Kill]) -> (Trial, BTreeMap<&'static str, Outcome>) {
    let result = std::panic::catch_unwind(|| {
        let mut trial = Trial::new(kills.to_vec());
        let played = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| trial.play()));
        (trial, played)
    });
    let (trial, played) = result.unwrap();
    match played {
        Ok(outcomes) => (trial, outcomes),
        Err(panic) => {
            let shown = &trial.log[trial.log.len().saturating_sub(120)..];
            eprintln!("{}\nwith {kills:?}", shown.join("\n"));
            std::panic::resume_unwind(panic)
        }
    }
}

#[test]
fn nothing_fails_without_kills() {
    let (_, outcomes) = trial(&[]);
    let expected = BTreeMap::from([
        ("commits", Outcome::Committed),
        ("aborts", Outcome::Aborted),
        ("undone", Outcome::Undone),
    ]);
    assert_eq!(outcomes, expected);
}

#[test]
fn the_server_is_killed_at_every_write() {
    let (plain, _) = trial(&[]);
    let writes = plain.world.appends();
    assert!(writes > 20, "{writes} writes");
    let mut outcomes: BTreeMap<(&str, String), usize> = BTreeMap::new();
    for at in 1..=writes {
        for keeps_in_flight in [false, true] {
            for (name, outcome) in trial(&[Kill { who: "server", at, keeps_in_flight }]).1 {
                *outcomes.entry((name, outcome.to_string())).or_default() += 1;
            }
        }
    }
    // The kills have bitten: before a decision they abort.
    assert!(outcomes.contains_key(&("commits", "aborted".to_owned())), "{outcomes:?}");
    assert!(outcomes.contains_key(&("commits", "committed".to_owned())), "{outcomes:?}");
    assert!(outcomes.contains_key(&("undone", "undone".to_owned())), "{outcomes:?}");
    assert!(!outcomes.keys().any(|(_, outcome)| outcome == "degraded"), "{outcomes:?}");
}

#[test]
fn each_agent_is_killed_at_every_write() {
    let (plain, _) = trial(&[]);
    for who in ["a", "b", "p"] {
        let writes = plain.world.agent_appends(who);
        assert!(writes > 5, "{writes} writes of {who}");
        for at in 1..=writes {
            for keeps_in_flight in [false, true] {
                trial(&[Kill { who, at, keeps_in_flight }]);
            }
        }
    }
}

#[test]
fn the_server_is_killed_again_during_recovery() {
    let (plain, _) = trial(&[]);
    for at in 1..=plain.world.appends() {
        for second in 1..=6 {
            for keeps_in_flight in [false, true] {
                let first = Kill { who: "server", at, keeps_in_flight };
                trial(&[first, Kill { who: "server", at: at + second, keeps_in_flight }]);
            }
        }
    }
}
