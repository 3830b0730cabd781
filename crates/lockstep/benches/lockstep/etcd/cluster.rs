//! A cluster of light agents with one server, and the requests that are measured on it.

use crate::load::{Asked, Http, declare_sets, populate, transition, transition_of};
use serde::Deserialize;
use serde_json::json;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

pub(super) struct Populated {
    address: String,
    http: Http,
    hosts: usize,
    /// How many outcomes the agents have been told.
    told: Arc<AtomicUsize>,
}

impl Populated {
    /// Lets so many hosts join, each with one member of the group `g`.
    pub(super) fn start(address: &str, hosts: usize) -> Self {
        let mut http = Http::declare(address);
        let (told, _) = populate(&mut http, address, hosts);
        Self { address: address.to_owned(), http, hosts, told }
    }

    /// A group for each host, in its place.
    pub(super) fn declare_sets(&mut self) {
        declare_sets(&mut self.http, self.hosts, 1);
    }

    /// Moves everybody. It returns when all agents have been told, which is no part of the time.
    pub(super) fn transition(&mut self, state: &str) -> Duration {
        let before = self.told.load(Ordering::Relaxed);
        let time = transition(&mut self.http, state);
        self.wait_told(before + self.hosts);
        time
    }

    fn wait_told(&self, count: usize) {
        while self.told.load(Ordering::Relaxed) < count {
            std::thread::sleep(Duration::from_micros(100));
        }
    }

    /// Moves one member, and tells how long it took until the decision was shown, and until the outcome was.
    pub(super) fn decide_once(&mut self, state: &str) -> (Duration, Duration) {
        #[derive(Deserialize)]
        struct Shown {
            revision: u64,
            decision: Option<String>,
            outcome: Option<String>,
        }
        let before = self.told.load(Ordering::Relaxed);
        let body = json!({"targets": [format!("s000={state}")]}).to_string();
        let begun = Instant::now();
        let Asked { id, .. } = self.http.ask("POST", "/v1/transitions", &body);
        let (mut decided, mut after) = (None, 0);
        let ended = loop {
            let path = format!("/v1/transitions/{id}?wait_ms=10000&after={after}");
            let shown: Shown = self.http.ask("GET", &path, "");
            after = shown.revision;
            if shown.decision.is_some() {
                decided.get_or_insert_with(|| begun.elapsed());
            }
            if shown.outcome.is_some() {
                assert_eq!(shown.outcome.as_deref(), Some("committed"));
                break begun.elapsed();
            }
        };
        self.wait_told(before + 1);
        (decided.expect("it was decided before it ended"), ended)
    }

    /// Lets a client for each host move its member to and fro for so long, and tells the time of each transition that
    /// ended within it.
    pub(super) fn saturate(&self, time: Duration) -> Vec<Duration> {
        let begun = Instant::now();
        let client = |place: usize| {
            let (group, mut http) = (format!("s{place:03}"), Http::connect(&self.address));
            let mut times = Vec::new();
            // `s000` has been moved before, an even number of times.
            for state in ["online", "offline"].into_iter().cycle() {
                let took = transition_of(&mut http, &group, state);
                if begun.elapsed() > time {
                    break;
                }
                times.push(took);
            }
            times
        };
        std::thread::scope(|scope| {
            let clients: Vec<_> = (0..self.hosts).map(|place| scope.spawn(move || client(place))).collect();
            clients.into_iter().flat_map(|client| client.join().expect("no client panics")).collect()
        })
    }
}
