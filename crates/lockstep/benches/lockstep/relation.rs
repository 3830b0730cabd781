//! Relations at scale: one change of a capability, a label or a setting, and what it takes to follow it.

use crate::{Line, median};
use lockstep_core::cluster::Cluster;
use lockstep_core::id::{HostName, Index, MemberId};
use lockstep_core::record::{Body, HostChange, Record};
use lockstep_core::relation::Published;
use lockstep_core::spec::SpecFile;
use lockstep_core::time::WallTime;
use std::hint::black_box;
use std::sync::Arc;
use std::time::{Duration, Instant};

const HOSTS: usize = 10_000;
const GROUPS: usize = 1_000;
/// Each of so many capabilities is provided by four groups and consumed by a hundred others of the thousand: 20,000
/// edges.
const CAPABILITIES: usize = 50;
const PROVIDERS: usize = 4;
const CONSUMERS: usize = 100;
const ROUNDS: usize = 41;

fn label(name: &str, value: String) -> std::collections::BTreeMap<String, String> {
    [(name.to_owned(), value)].into()
}

/// Groups 0 to 199 provide, the others consume, so that nothing goes in a circle.
fn spec() -> SpecFile {
    let mut provides = vec![Vec::new(); GROUPS];
    let mut consumes = vec![Vec::new(); GROUPS];
    let providing = CAPABILITIES * PROVIDERS;
    for capability in 0..CAPABILITIES {
        (0..PROVIDERS).for_each(|one| provides[capability * PROVIDERS + one].push(format!("c{capability}")));
        let consuming = GROUPS - providing;
        (0..CONSUMERS).for_each(|one| {
            consumes[providing + (capability * CONSUMERS + one) % consuming].push(format!("c{capability}"));
        });
    }
    let group = |place: usize| {
        let select = label("group", format!("g{place:04}"));
        let settings = if place == 0 { serde_json::json!({ "live": "blue" }) } else { serde_json::json!({}) };
        let group = serde_json::json!({
            "select": select, "provides": provides[place], "consumes": consumes[place], "settings": settings,
        });
        (format!("g{place:04}"), group)
    };
    let groups: serde_json::Map<_, _> = (0..GROUPS).map(group).collect();
    let relations = serde_json::json!([
        { "from": "g0999", "to": "g0000", "kind": "requires", "when": { "g0000.live": "green" } },
    ]);
    let spec = serde_json::json!({ "cluster": "bench", "groups": groups, "relations": relations });
    serde_json::from_value(spec).expect("a valid spec")
}

struct Fold(Cluster);

impl Fold {
    fn add(&mut self, body: Body) {
        let index = Index(self.0.revision.0 + 1);
        self.0.apply(index, &Record { at: WallTime(0), body });
    }

    /// Applies each of these in turn and takes the time of each.
    fn timed(&mut self, bodies: impl IntoIterator<Item = Body>) -> Vec<Duration> {
        let timed = bodies.into_iter().map(|body| {
            let start = Instant::now();
            self.add(body);
            start.elapsed()
        });
        timed.collect()
    }
}

fn joined(host: usize, group: usize) -> Body {
    let change = HostChange::Joined {
        agent: "bench".parse().expect("a valid name"),
        address: None,
        labels: label("group", format!("g{group:04}")),
    };
    Body::Host { host: name(host), change }
}

fn name(host: usize) -> HostName {
    HostName::new(&format!("h{host:05}")).expect("a valid name")
}

fn published(host: usize, provides: &[&str]) -> Body {
    let group = format!("g{:04}", host % GROUPS).parse().expect("a valid name");
    let provides = provides.iter().map(|name| name.parse().expect("a valid name")).collect();
    let published = Arc::new(Published { provides, ..Published::default() });
    Body::Host { host: name(host), change: HostChange::Published { group, published } }
}

pub(crate) fn run() -> Vec<Line> {
    let mut fold = Fold(Cluster::default());
    fold.add(Body::Spec { spec: Arc::new(spec()), principal: "bench".to_owned() });
    for host in 0..HOSTS {
        fold.add(joined(host, host % GROUPS));
        let member =
            MemberId::new(&format!("g{:04}", host % GROUPS).parse().expect("a valid name"), &name(host));
        fold.add(Body::Report { member, actual: Some("offline".parse().expect("a valid name")) });
    }
    let pairs = fold.0.relations.pairs();
    assert_eq!(pairs, CAPABILITIES * PROVIDERS * CONSUMERS);
    let anew = |cluster: &Cluster| {
        let start = Instant::now();
        black_box(cluster.relations_under(&cluster.spec, &cluster.settings, Default::default()));
        start.elapsed()
    };
    let full: Vec<_> = (0..ROUNDS).map(|_| anew(&fold.0)).collect();
    // A reader keeps the state of before, so that each change pays for its own copy as it does in a server.
    let mut line = |what: &str, bodies: Vec<Body>| {
        let mut times = Vec::new();
        for body in bodies {
            let reader = fold.0.clone();
            times.extend(fold.timed([body]));
            drop(reader);
        }
        let (ms, floor_ms) = (median(times), median(full.clone()));
        Line {
            what: format!("{what}: {HOSTS} hosts, {GROUPS} groups, {pairs} derived edges"),
            unit: "ms",
            value: ms,
            floor: "not a floor: all relations derived anew".to_owned(),
            floor_value: floor_ms,
            ratio: ms / floor_ms,
            aim: "under 10 ms".to_owned(),
            is_met: ms < 10.0,
        }
    };
    // The first provider of a capability that a hundred groups consume comes and goes.
    let capability =
        (0..ROUNDS).map(|round| published(205, if round % 2 == 0 { &["c7"] } else { &[] })).collect();
    let labels = (0..ROUNDS).map(|round| joined(round, (round + 1) % GROUPS)).collect();
    vec![line("a capability changes", capability), line("a label changes", labels)]
}
