//! What members and hosts say of themselves at any time, kept from filling the journal.

use crate::time::Time;
use std::collections::BTreeMap;

/// What one member or host says outside of transitions is recorded at most this often, in milliseconds; the newest is, at the
/// latest then. Too low: software that flaps fills the journal. Too high: readers are shown what was before. Plans and
/// decisions wait for none of it: what is known of members is recorded before they look.
const REPORT_MS: u64 = 1000;

/// One kind of thing that members, or hosts, say: the newest of each, until it is recorded.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct HeldBack<K, T> {
    /// When that of each was recorded, as long as it holds back the next one.
    recorded: BTreeMap<K, Time>,
    /// What they have said since, and when it is recorded.
    late: BTreeMap<K, (Time, T)>,
    /// When the first of them is due.
    due: Option<Time>,
}

impl<K, T> Default for HeldBack<K, T> {
    fn default() -> Self {
        Self { recorded: BTreeMap::new(), late: BTreeMap::new(), due: None }
    }
}

impl<K: Ord + Clone, T> HeldBack<K, T> {
    /// Until when one is held back; none: what it says is recorded at once.
    pub(crate) fn until(&self, id: &K, now: Time) -> Option<Time> {
        self.recorded.get(id).map(|at| at.plus(REPORT_MS)).filter(|due| *due > now)
    }

    /// Keeps what one says until it is due.
    pub(crate) fn keep(&mut self, id: &K, due: Time, said: T) {
        self.late.insert(id.clone(), (due, said));
        self.due = Some(self.due.map_or(due, |at| at.min(due)));
    }

    /// One has said something newer.
    pub(crate) fn forget(&mut self, id: &K) {
        self.late.remove(id);
    }

    /// These are none any more.
    pub(crate) fn forget_all(&mut self, is_gone: impl Fn(&K) -> bool) {
        self.late.retain(|id, _| !is_gone(id));
        self.recorded.retain(|id, _| !is_gone(id));
    }

    /// Something of one is recorded.
    pub(crate) fn note(&mut self, id: &K, now: Time) {
        self.recorded.insert(id.clone(), now);
    }

    /// When something is to be taken; none when nothing is kept.
    pub(crate) fn due(&self) -> Option<Time> {
        self.due
    }

    /// What is due by then.
    pub(crate) fn take(&mut self, by: Time, now: Time) -> BTreeMap<K, T> {
        if self.late.is_empty() {
            self.due = None;
            return BTreeMap::new();
        }
        let (due, late) = std::mem::take(&mut self.late).into_iter().partition(|(_, (due, _))| *due <= by);
        self.late = late;
        let due: BTreeMap<K, (Time, T)> = due;
        self.recorded.retain(|_, at| at.plus(REPORT_MS) > now);
        self.due = self.late.values().map(|(due, _)| *due).min();
        due.into_iter().map(|(id, (_, said))| (id, said)).collect()
    }
}
