//! Those who look: one asks for lists, one follows the events. They write down all that they see.

use crate::clock::Stamp;
use crate::history::{History, Read, listed, text};
use crate::http;
use crate::member::Defect;
use crate::network::{Layout, Place, layout};
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
/// How often each of several servers is looked at by itself.
const EACH_PAUSE: Duration = Duration::from_millis(400);

/// Starts them; they end with the process.
pub(crate) fn start(history: &Shared, defect: Option<Defect>) {
    for server in layout().servers() {
        let shared = history.clone();
        std::thread::spawn(move || follow(*server, &shared, defect));
        if layout() == Layout::Three {
            let shared = history.clone();
            std::thread::spawn(move || look_at_each(*server, &shared, defect));
        }
    }
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
        history.reads_made += 1;
        history.members(&list);
    }
}

/// Reads the list, and whole what has ended since.
pub(crate) fn look_at_transitions(history: &Shared) {
    let Some(list) = http::get("/v1/transitions") else { return };
    let items = list["items"].as_array().cloned().unwrap_or_default();
    let known: BTreeSet<String> = {
        let mut history = history.lock();
        history.reads_made += 1;
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

/// What one server shows, in turn as it knows it and as nobody knows more.
fn look_at_each(server: Place, history: &Shared, defect: Option<Defect>) {
    let lists = [
        ("/v1/members", false),
        ("/v1/members", true),
        ("/v1/transitions", false),
        ("/v1/transitions", true),
    ];
    for (path, is_consistent) in lists.into_iter().cycle() {
        // Asked as it should not be, it may show less.
        let is_asked = is_consistent && defect != Some(Defect::StaleRead);
        read_from(server, path, is_consistent, is_asked, history);
        std::thread::sleep(EACH_PAUSE);
    }
}

fn read_from(server: Place, path: &str, is_consistent: bool, is_asked: bool, history: &Shared) {
    let Some(answer) = http::get_from(server, path, is_asked) else { return };
    let Some(revision) = answer.body["revision"].as_u64() else { return };
    let mut read = Read {
        server: server.0.to_owned(),
        begun: answer.begun,
        at: Stamp::now(),
        is_consistent,
        revision,
        transitions: None,
    };
    let mut history = history.lock();
    history.reads_made += 1;
    history.see(revision);
    if path == "/v1/transitions" {
        read.transitions = Some(listed(&answer.body));
        let items = answer.body["items"].as_array().into_iter().flatten();
        items.for_each(|item| history.transition(item, server.0));
    } else {
        history.members(&answer.body);
    }
    history.reads.push(read);
}

/// All that there is, asked of one server.
pub(crate) fn read_consistently(server: Place, history: &Shared) {
    read_from(server, "/v1/transitions", true, true, history);
}

fn follow(server: Place, history: &Shared, defect: Option<Defect>) {
    let mut since = 0;
    loop {
        let status = http::events(server, since, true, |id, data| {
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
