//! Agents that are refused, for people to see. Nothing rests on it, and it is not in the journal.

use crate::id::HostName;
use crate::time::{Now, Time, WallTime};
use std::collections::BTreeMap;

/// The most hosts whose agents' refusals are kept. Any agent may say any name; who is in none of these is in the log.
const REFUSED_MAX: usize = 100;
/// How long after its last try an agent is said to be refused, in milliseconds. One that runs tries every few seconds. Too
/// low: it is gone before anybody looks. Too high: what was mended long ago is still shown.
const KEPT_MS: u64 = 300_000;

/// Why an agent is refused.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Refusal {
    /// What is in the way.
    pub message: String,
    /// What to do about it.
    pub help: String,
    /// Since when agents are refused under that name.
    pub since: WallTime,
}

/// Those that are refused, by the host that each says it is.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default)]
pub(crate) struct Refusals {
    by_host: BTreeMap<HostName, Refusal>,
    /// When each is no longer said to be refused.
    until: BTreeMap<HostName, Time>,
}

impl Refusals {
    /// An agent is refused. Tells whether that is news.
    pub(crate) fn note(&mut self, host: &HostName, now: Now, message: &str, help: &str) -> bool {
        let known = self.by_host.get(host);
        if known.is_none() && self.by_host.len() >= REFUSED_MAX {
            return false;
        }
        let since = known.map_or(now.wall, |known| known.since);
        let refusal = Refusal { message: message.to_owned(), help: help.to_owned(), since };
        let is_news = known != Some(&refusal);
        self.by_host.insert(host.clone(), refusal);
        self.until.insert(host.clone(), now.time.plus(KEPT_MS));
        is_news
    }

    /// An agent of that host is welcome. Tells whether that is news.
    pub(crate) fn forget(&mut self, host: &HostName) -> bool {
        self.until.remove(host);
        self.by_host.remove(host).is_some()
    }

    /// Forgets those that have not tried for long. Tells whether there were any.
    pub(crate) fn expire(&mut self, now: Time) -> bool {
        let before = self.until.len();
        self.until.retain(|_, until| *until > now);
        self.by_host.retain(|host, _| self.until.contains_key(host));
        self.until.len() < before
    }

    /// When the first of them is forgotten.
    pub(crate) fn due(&self) -> Option<Time> {
        self.until.values().min().copied()
    }

    /// All of them.
    pub(crate) fn all(&self) -> &BTreeMap<HostName, Refusal> {
        &self.by_host
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(ms: u64) -> Now {
        Now { time: Time(ms), wall: WallTime(1_000_000 + ms) }
    }

    #[test]
    fn one_that_tries_on_is_kept_since_its_first_try_and_until_it_gives_up() {
        let host = HostName::new("a").expect("it is a name");
        let mut refusals = Refusals::default();
        assert!(refusals.note(&host, at(0), "one", "do"));
        assert!(!refusals.note(&host, at(2000), "one", "do"), "the same");
        assert!(refusals.note(&host, at(4000), "two", "do"), "for another reason");
        let (message, help) = ("two".to_owned(), "do".to_owned());
        assert_eq!(refusals.all()[&host], Refusal { message, help, since: at(0).wall });
        assert_eq!(refusals.due(), Some(Time(4000 + KEPT_MS)));
        assert!(!refusals.expire(Time(4000 + KEPT_MS - 1)));
        assert!(refusals.expire(Time(4000 + KEPT_MS)));
        assert_eq!((refusals.due(), refusals.forget(&host)), (None, false));
        refusals.note(&host, at(0), "one", "do");
        assert!(refusals.forget(&host));
        assert_eq!(refusals, Refusals::default());
    }

    #[test]
    fn there_are_so_many_and_no_more() {
        let host = |place: usize| HostName::new(&format!("h{place}")).expect("it is a name");
        let mut refusals = Refusals::default();
        for place in 0..REFUSED_MAX {
            assert!(refusals.note(&host(place), at(0), "one", "do"));
        }
        assert!(!refusals.note(&host(REFUSED_MAX), at(0), "one", "do"));
        assert_eq!(refusals.all().len(), REFUSED_MAX);
        assert!(refusals.note(&host(0), at(0), "two", "do"), "one that is known");
    }
}
