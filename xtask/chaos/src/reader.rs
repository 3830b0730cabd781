//! Those who look: one asks for lists, one follows the events. They write down all that they see.

use crate::history::{History, text};
use crate::http;
use crate::member::Defect;
use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};

/// The history, written by several.
#[derive(Debug, Clone, Default)]
pub(crate) struct Shared(Arc<Mutex<History>>);

impl Shared {
    pub(crate) fn lock(&self) -> MutexGuard<'_, History> {
        self.0.lock().expect("nobody panics with the history in hand")
    }
}

/// How often members are looked at, and transitions.
const MEMBERS_PAUSE: Duration = Duration::from_millis(150);
const TRANSITIONS_PAUSE: Duration = Duration::from_secs(1);
/// The most transitions that are read whole in one look.
const WHOLE_MAX: usize = 40;

/// Starts them; they end with the process.
pub(crate) fn start(history: &Shared, defect: Option<Defect>) {
    let shared = history.clone();
    std::thread::spawn(move || follow(&shared, defect));
    let shared = history.clone();
    std::thread::spawn(move || {
        let mut transitions = Instant::now();
        loop {
            look_at_members(&shared);
            if transitions.elapsed() > TRANSITIONS_PAUSE {
                look_at_transitions(&shared);
                transitions = Instant::now();
            }
            std::thread::sleep(MEMBERS_PAUSE);
        }
    });
}

fn look_at_members(history: &Shared) {
    if let Some(list) = http::get("/v1/members") {
        let mut history = history.lock();
        history.reads += 1;
        history.members(&list);
    }
}

/// Reads the list, and whole what has ended since.
pub(crate) fn look_at_transitions(history: &Shared) {
    let Some(list) = http::get("/v1/transitions") else { return };
    let items = list["items"].as_array().cloned().unwrap_or_default();
    let known: BTreeSet<String> = {
        let mut history = history.lock();
        history.reads += 1;
        items.iter().for_each(|item| history.transition(item, "list"));
        history.transitions.keys().cloned().collect()
    };
    let ended = items.iter().filter(|item| item["outcome"].is_string());
    let new = ended.map(|item| text(item, "id")).filter(|id| !known.contains(*id));
    for id in new.take(WHOLE_MAX) {
        if let Some(whole) = http::get(&format!("/v1/transitions/{id}")) {
            history.lock().transition(&whole, "transition");
        }
    }
}

fn follow(history: &Shared, defect: Option<Defect>) {
    let mut since = 0;
    loop {
        let status = http::events(since, true, |id, data| {
            since = id;
            let misread =
                defect == Some(Defect::MisreadOutcome) && data.contains("\"outcome\":\"committed\"");
            let turned =
                misread.then(|| data.replace("\"outcome\":\"committed\"", "\"outcome\":\"aborted\""));
            history.lock().event(id, turned.as_deref().unwrap_or(data));
        });
        if let Ok(410) = status {
            let why = format!("events after {since} are not kept any more, though somebody follows them");
            history.lock().broken.push((16, why));
            return;
        }
        std::thread::sleep(Duration::from_millis(100));
    }
}
