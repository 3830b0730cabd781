//! Whether etcd answers, as it is told to people: when it has not for a while, each minute from then on, and when it
//! does again. Whoever asks it in vain says so here; a server that stands by or reigns asks it all the time.

use crate::store::Silence;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};
use tokio::sync::watch;
use tracing::{info, warn};

/// How often it is said again. Too low: a night of it fills a log. Too high: its last lines do not show it.
const AGAIN: Duration = Duration::from_secs(60);

/// What is known of it.
#[derive(Debug)]
pub(super) struct Answering {
    silence: watch::Sender<Option<Silence>>,
    /// When its silence was last said.
    told: Mutex<Option<Instant>>,
}

impl Answering {
    pub(super) fn new() -> Self {
        Self { silence: watch::Sender::new(None), told: Mutex::default() }
    }

    pub(super) fn subscribe(&self) -> watch::Receiver<Option<Silence>> {
        self.silence.subscribe()
    }

    /// It has answered, whatever it was.
    pub(super) fn answered(&self) {
        if let Some(line) = self.answered_at(Instant::now()) {
            info!("{line}");
        }
    }

    /// It has not, or as one that cannot.
    pub(super) fn silent(&self, why: &str) {
        if let Some(line) = self.silent_at(Instant::now(), why) {
            warn!("{line}");
        }
    }

    fn answered_at(&self, now: Instant) -> Option<String> {
        // Nearly always.
        if self.silence.borrow().is_none() {
            return None;
        }
        let silence = self.silence.send_replace(None)?;
        self.lock_told().take()?;
        Some(format!("etcd answers again, after {}", seconds(now.duration_since(silence.since))))
    }

    fn silent_at(&self, now: Instant, why: &str) -> Option<String> {
        let mut since = now;
        self.silence.send_modify(|silence| {
            since = silence.as_ref().map_or(now, |silence| silence.since);
            *silence = Some(Silence { since, why: why.to_owned() });
        });
        let time = now.duration_since(since);
        let mut told = self.lock_told();
        let is_due = told.map_or(time >= Silence::UNREMARKABLE, |told| now.duration_since(told) >= AGAIN);
        if !is_due {
            return None;
        }
        *told = Some(now);
        Some(format!("etcd has not answered for {}: {why}; trying on", seconds(time)))
    }

    fn lock_told(&self) -> std::sync::MutexGuard<'_, Option<Instant>> {
        // Nothing under this lock can panic half-way.
        self.told.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A time that nobody needs to the millisecond.
fn seconds(time: Duration) -> String {
    match time.as_secs() {
        seconds @ 0..60 => format!("{seconds} s"),
        seconds => format!("{} min {} s", seconds / 60, seconds % 60),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn silence_is_said_after_a_moment_and_each_minute_and_its_end_once() {
        let (answering, begun) = (Answering::new(), Instant::now());
        let at = |seconds| begun + Duration::from_secs(seconds);
        let silent = |seconds| answering.silent_at(at(seconds), "refused");
        assert_eq!(silent(0), None);
        assert_eq!(silent(1), None);
        assert_eq!(silent(2).unwrap(), "etcd has not answered for 2 s: refused; trying on");
        assert_eq!((silent(3), silent(61)), (None, None));
        assert_eq!(silent(62).unwrap(), "etcd has not answered for 1 min 2 s: refused; trying on");
        let silence = Silence { since: begun, why: "refused".to_owned() };
        assert_eq!(*answering.subscribe().borrow(), Some(silence));
        assert_eq!(answering.answered_at(at(65)).unwrap(), "etcd answers again, after 1 min 5 s");
        assert_eq!((answering.answered_at(at(66)), answering.subscribe().borrow().clone()), (None, None));
        // One that nobody was told of ends without a word.
        assert_eq!((silent(70), answering.answered_at(at(71)), silent(72)), (None, None, None));
    }
}
