//! The named configurations: a few hosts, one or two requests, and a few faults, small enough that every order of
//! events can be tried.

use lockstep_core::id::{HostName, MemberId};
use lockstep_core::message::Phase;
use lockstep_core::request::Request;
use lockstep_core::vote::Answer;
use lockstep_core::world::{Script, World};
use std::collections::BTreeMap;

/// How often each kind of fault may still come.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub(super) struct Faults {
    /// The server is killed, its write lost or kept.
    pub(super) server_kills: u8,
    /// The server is stopped, another one takes its place, and it goes on.
    pub(super) depositions: u8,
    /// An agent is killed, its write lost or kept, what it has sent last lost or not.
    pub(super) agent_kills: u8,
    /// A connection is lost: at both ends with all that is on its way, or at the agent's end.
    pub(super) breaks: u8,
    /// Nothing gets through to or from an agent for a while, and what is sent waits.
    pub(super) cuts: u8,
    /// A handler fails, before or after its effect, or hangs.
    pub(super) failures: u8,
    /// Time passes until something is due, although something may happen now.
    pub(super) waits: u8,
    /// Time passes until something is due, while somebody is away.
    pub(super) absences: u8,
}

/// One configuration.
#[derive(Debug)]
pub(super) struct Scope {
    /// Its name on the command line.
    pub(super) name: &'static str,
    /// The cluster, as an operator writes it; members of a group have its name as a label.
    pub(super) spec: &'static str,
    /// The members, and the states that their software is in.
    pub(super) software: &'static [(&'static str, &'static str)],
    /// What operators ask for, one request each. The first one is asked at once, the others at any time after it.
    pub(super) requests: &'static [&'static str],
    /// Handlers that fail.
    pub(super) fails: &'static [(&'static str, Phase)],
    /// The faults that may come on top of that.
    pub(super) faults: Faults,
    /// The phases in which a handler may fail by [`Faults::failures`].
    pub(super) failing: &'static [Phase],
    /// Whether agents connect, and learn that their writes are durable, as soon as they can.
    pub(super) hurries: bool,
    /// Small enough for tests, in builds that are not optimised.
    #[cfg_attr(not(test), expect(dead_code, reason = "tests choose by it"))]
    pub(super) is_quick: bool,
    /// Everything resolves within so many milliseconds.
    pub(super) within_ms: u64,
    /// How transitions may end, in the order of their requests; none: as they like.
    pub(super) outcomes: &'static [&'static str],
}

const NONE: Faults = Faults {
    server_kills: 0,
    depositions: 0,
    agent_kills: 0,
    breaks: 0,
    cuts: 0,
    failures: 0,
    waits: 0,
    absences: 0,
};

/// A service on two hosts. The lease is the longest there may be: renewals would multiply the orders of events.
const WEB: &str = r#"{"cluster":"exhaust","lease_ms":600000,
    "groups":{"web":{"select":{"web":"y"},"handler":"sim","retries":0}}}"#;

/// The same, where a member that fails is left out.
const WEB_EXCLUDE: &str = r#"{"cluster":"exhaust","lease_ms":600000,
    "groups":{"web":{"select":{"web":"y"},"handler":"sim","retries":0,"on_failure":"exclude"}}}"#;

/// A primary and its standby.
const DB: &str = r#"{"cluster":"exhaust","lease_ms":600000,"groups":{
    "db":{"select":{"db":"y"},"lifecycle":"primary-standby","handler":"sim","retries":0}}}"#;

/// The same, with a lease that may run out.
const SHORT: &str = r#"{"cluster":"exhaust","lease_ms":3000,"groups":{
    "db":{"select":{"db":"y"},"lifecycle":"primary-standby","handler":"sim","retries":0}}}"#;

/// The same, where the standby takes over when the lease of the primary's host has ended.
const LEASE: &str = r#"{"cluster":"exhaust","lease_ms":3000,"groups":{
    "db":{"select":{"db":"y"},"lifecycle":"primary-standby","handler":"sim","retries":0,"recover":"lease"}}}"#;

/// A primary, its standby and a pooler that holds.
const SHOP: &str = r#"{"cluster":"exhaust","lease_ms":600000,"groups":{
    "db":{"select":{"db":"y"},"lifecycle":"primary-standby","handler":"sim","retries":0},
    "pool":{"select":{"pool":"y"},"handler":"sim"}},
    "relations":[{"from":"pool","to":"db","kind":"requires","ask":"hold"}]}"#;

/// The phases in which handlers do something; a release that says no at its hold's end is not made again.
const MOVING: &[Phase] =
    &[Phase::Check, Phase::Prepare, Phase::Hold, Phase::Commit, Phase::Undo, Phase::Cancel, Phase::Stop];

/// Whatever happens once: a step that hangs and one back may take a minute each, holds and retries come on top.
const RESOLVE_MS: u64 = 300_000;

/// No faults: it happens in no time.
const PLAIN: Scope = Scope {
    name: "",
    spec: "",
    software: &[],
    requests: &[],
    fails: &[],
    faults: NONE,
    failing: &[],
    hurries: false,
    is_quick: false,
    within_ms: 0,
    outcomes: &[],
};

/// Every configuration.
pub(super) const ALL: &[Scope] = &[
    Scope {
        name: "two-hosts-commit",
        spec: WEB,
        software: &[("web@a", "offline"), ("web@b", "offline")],
        requests: &["web=up"],
        is_quick: true,
        outcomes: &["committed"],
        ..PLAIN
    },
    Scope {
        name: "three-hosts-commit",
        spec: WEB,
        software: &[("web@a", "offline"), ("web@b", "offline"), ("web@c", "offline")],
        requests: &["web=up"],
        is_quick: true,
        outcomes: &["committed"],
        ..PLAIN
    },
    Scope {
        name: "switchover",
        spec: DB,
        software: &[("db@a", "primary"), ("db@b", "standby")],
        requests: &["db@b=primary"],
        is_quick: true,
        outcomes: &["committed"],
        ..PLAIN
    },
    Scope {
        name: "switchover-with-holder",
        spec: SHOP,
        software: &[("db@a", "primary"), ("db@b", "standby"), ("pool@p", "online")],
        requests: &["db@b=primary"],
        is_quick: true,
        outcomes: &["committed"],
        ..PLAIN
    },
    Scope {
        name: "vote-no",
        spec: SHOP,
        software: &[("db@a", "primary"), ("db@b", "standby"), ("pool@p", "online")],
        requests: &["db@b=primary"],
        fails: &[("db@b", Phase::Prepare)],
        is_quick: true,
        outcomes: &["aborted"],
        ..PLAIN
    },
    Scope {
        name: "undo",
        spec: SHOP,
        software: &[("db@a", "primary"), ("db@b", "standby"), ("pool@p", "online")],
        requests: &["db@b=primary"],
        fails: &[("db@b", Phase::Commit)],
        is_quick: true,
        outcomes: &["undone"],
        ..PLAIN
    },
    Scope {
        name: "exclude",
        spec: WEB_EXCLUDE,
        software: &[("web@a", "offline"), ("web@b", "offline"), ("web@c", "offline")],
        requests: &["web=up"],
        fails: &[("web@c", Phase::Commit)],
        is_quick: true,
        outcomes: &["committed"],
        ..PLAIN
    },
    Scope {
        name: "release-fails",
        spec: SHOP,
        software: &[("db@a", "primary"), ("db@b", "standby"), ("pool@p", "online")],
        requests: &["db@b=primary"],
        faults: Faults { failures: 1, ..NONE },
        failing: &[Phase::Release],
        within_ms: RESOLVE_MS,
        outcomes: &["committed"],
        ..PLAIN
    },
    Scope {
        name: "time-out",
        spec: SHOP,
        software: &[("db@a", "primary"), ("db@b", "standby"), ("pool@p", "online")],
        requests: &["db@b=primary"],
        faults: Faults { waits: 1, ..NONE },
        within_ms: RESOLVE_MS,
        outcomes: &["aborted", "committed"],
        ..PLAIN
    },
    Scope {
        name: "two-overlapping-requests",
        spec: DB,
        software: &[("db@a", "primary"), ("db@b", "standby")],
        requests: &["db@b=primary", "db=down"],
        is_quick: true,
        outcomes: &["committed+committed"],
        ..PLAIN
    },
    Scope {
        name: "loss",
        spec: SHOP,
        software: &[("db@a", "primary"), ("db@b", "standby"), ("pool@p", "online")],
        requests: &["db@b=primary"],
        faults: Faults { breaks: 1, ..NONE },
        within_ms: RESOLVE_MS,
        outcomes: &["committed"],
        ..PLAIN
    },
    Scope {
        name: "two-losses",
        spec: DB,
        software: &[("db@a", "primary"), ("db@b", "standby")],
        requests: &["db@b=primary"],
        faults: Faults { breaks: 2, ..NONE },
        within_ms: RESOLVE_MS,
        outcomes: &["committed"],
        ..PLAIN
    },
    Scope {
        name: "agent-restart",
        spec: WEB,
        software: &[("web@a", "offline"), ("web@b", "offline")],
        requests: &["web=up"],
        faults: Faults { agent_kills: 1, ..NONE },
        within_ms: RESOLVE_MS,
        outcomes: &["aborted", "committed"],
        ..PLAIN
    },
    Scope {
        name: "agent-restart-switchover",
        spec: SHOP,
        software: &[("db@a", "primary"), ("db@b", "standby"), ("pool@p", "online")],
        requests: &["db@b=primary"],
        faults: Faults { agent_kills: 1, ..NONE },
        hurries: true,
        within_ms: RESOLVE_MS,
        outcomes: &["aborted", "committed"],
        ..PLAIN
    },
    Scope {
        name: "server-restart",
        spec: WEB,
        software: &[("web@a", "offline"), ("web@b", "offline")],
        requests: &["web=up"],
        faults: Faults { server_kills: 1, ..NONE },
        within_ms: RESOLVE_MS,
        outcomes: &["aborted", "committed"],
        ..PLAIN
    },
    Scope {
        name: "server-restart-switchover",
        spec: SHOP,
        software: &[("db@a", "primary"), ("db@b", "standby"), ("pool@p", "online")],
        requests: &["db@b=primary"],
        faults: Faults { server_kills: 1, ..NONE },
        hurries: true,
        within_ms: RESOLVE_MS,
        outcomes: &["aborted", "committed"],
        ..PLAIN
    },
    Scope {
        name: "server-restart-undo",
        spec: DB,
        software: &[("db@a", "primary"), ("db@b", "standby")],
        requests: &["db@b=primary"],
        fails: &[("db@b", Phase::Commit)],
        faults: Faults { server_kills: 1, ..NONE },
        within_ms: RESOLVE_MS,
        outcomes: &["aborted", "undone"],
        ..PLAIN
    },
    Scope {
        name: "server-restart-twice",
        spec: DB,
        software: &[("db@a", "primary"), ("db@b", "standby")],
        requests: &["db@b=primary"],
        faults: Faults { server_kills: 2, ..NONE },
        hurries: true,
        within_ms: RESOLVE_MS,
        outcomes: &["aborted", "committed"],
        ..PLAIN
    },
    Scope {
        name: "both-restart",
        spec: WEB,
        software: &[("web@a", "offline")],
        requests: &["web=up"],
        faults: Faults { server_kills: 1, agent_kills: 1, ..NONE },
        within_ms: RESOLVE_MS,
        outcomes: &["aborted", "committed"],
        ..PLAIN
    },
    Scope {
        name: "restart-and-loss",
        spec: WEB,
        software: &[("web@a", "offline")],
        requests: &["web=up"],
        faults: Faults { server_kills: 1, breaks: 1, ..NONE },
        within_ms: RESOLVE_MS,
        outcomes: &["aborted", "committed"],
        ..PLAIN
    },
    Scope {
        name: "restart-and-time-out",
        spec: DB,
        software: &[("db@a", "primary"), ("db@b", "standby")],
        requests: &["db@b=primary"],
        faults: Faults { server_kills: 1, waits: 1, ..NONE },
        hurries: true,
        within_ms: RESOLVE_MS,
        outcomes: &["aborted", "committed", "degraded"],
        ..PLAIN
    },
    Scope {
        name: "overlap-and-restart",
        spec: DB,
        software: &[("db@a", "primary"), ("db@b", "standby")],
        requests: &["db@b=primary", "db=down"],
        faults: Faults { server_kills: 1, ..NONE },
        hurries: true,
        within_ms: RESOLVE_MS,
        outcomes: &["committed+committed", "aborted+committed", "committed+aborted"],
        ..PLAIN
    },
    Scope {
        name: "deposed-server",
        spec: WEB,
        software: &[("web@a", "offline"), ("web@b", "offline")],
        requests: &["web=up"],
        faults: Faults { depositions: 1, ..NONE },
        within_ms: RESOLVE_MS,
        outcomes: &["aborted", "committed"],
        ..PLAIN
    },
    Scope {
        name: "deposed-server-switchover",
        spec: SHOP,
        software: &[("db@a", "primary"), ("db@b", "standby"), ("pool@p", "online")],
        requests: &["db@b=primary"],
        faults: Faults { depositions: 1, ..NONE },
        hurries: true,
        within_ms: RESOLVE_MS,
        outcomes: &["aborted", "committed"],
        ..PLAIN
    },
    Scope {
        name: "server-away",
        spec: SHOP,
        software: &[("db@a", "primary"), ("db@b", "standby"), ("pool@p", "online")],
        requests: &["db@b=primary"],
        faults: Faults { server_kills: 1, absences: 2, ..NONE },
        hurries: true,
        within_ms: RESOLVE_MS,
        outcomes: &["aborted", "committed"],
        ..PLAIN
    },
    Scope {
        name: "agent-away",
        spec: SHOP,
        software: &[("db@a", "primary"), ("db@b", "standby"), ("pool@p", "online")],
        requests: &["db@b=primary"],
        faults: Faults { agent_kills: 1, absences: 1, ..NONE },
        hurries: true,
        within_ms: RESOLVE_MS,
        outcomes: &["aborted", "committed"],
        ..PLAIN
    },
    Scope {
        name: "host-lost",
        spec: SHORT,
        software: &[("db@a", "primary"), ("db@b", "standby")],
        requests: &["db@b=primary"],
        faults: Faults { cuts: 1, absences: 6, ..NONE },
        hurries: true,
        within_ms: RESOLVE_MS,
        is_quick: true,
        outcomes: &["aborted", "committed"],
        ..PLAIN
    },
    Scope {
        name: "member-in-doubt",
        spec: DB,
        software: &[("db@a", "primary"), ("db@b", "standby")],
        requests: &["db@b=primary", "db@b=primary"],
        faults: Faults { agent_kills: 1, absences: 1, ..NONE },
        hurries: true,
        within_ms: RESOLVE_MS,
        ..PLAIN
    },
    Scope {
        name: "lease-ends",
        spec: LEASE,
        software: &[("db@a", "primary"), ("db@b", "standby")],
        requests: &["db@b=primary"],
        faults: Faults { agent_kills: 1, absences: 8, ..NONE },
        hurries: true,
        within_ms: RESOLVE_MS,
        ..PLAIN
    },
    Scope {
        name: "handler-fails",
        spec: SHOP,
        software: &[("db@a", "primary"), ("db@b", "standby"), ("pool@p", "online")],
        requests: &["db@b=primary"],
        faults: Faults { failures: 2, ..NONE },
        failing: MOVING,
        within_ms: RESOLVE_MS,
        outcomes: &["aborted", "committed", "degraded", "undone"],
        ..PLAIN
    },
];

/// A handler that fails before it has any effect.
pub(super) fn no() -> Script {
    let reason = Some("not today".to_owned());
    Script { answer: Answer::No, reason, has_effect: false, ..Script::default() }
}

impl Scope {
    /// The cluster, up and known, before anything is asked. What happens on the way is left in the world.
    pub(super) fn world(&self) -> World {
        let mut world = World::new();
        world.start_server();
        world.apply(serde_json::from_str(self.spec).expect("specs of configurations are well-formed"));
        let mut hosts: BTreeMap<HostName, BTreeMap<String, String>> = BTreeMap::new();
        for (member, state) in self.software {
            let id = member_id(member);
            world.set_software(&id, &state.parse().expect("states of configurations are well-formed"));
            hosts.entry(id.host).or_default().insert(id.group.to_string(), "y".to_owned());
        }
        for (host, labels) in hosts {
            world.join(host.as_str(), &host, labels, None);
            world.deliver();
        }
        for (member, phase) in self.fails {
            world.script(&member_id(member), *phase, vec![no()]);
        }
        world
    }

    /// One of the requests.
    pub(super) fn request(&self, place: usize) -> Request {
        let target = self.requests[place].parse().expect("targets of configurations are well-formed");
        Request {
            request_id: format!("request-{place}"),
            principal: "operator".to_owned(),
            targets: vec![target],
            reason: None,
            on_failure: None,
            deadline_ms: None,
            plan_hash: None,
            ..Request::default()
        }
    }
}

fn member_id(text: &str) -> MemberId {
    text.parse().expect("members of configurations are well-formed")
}
