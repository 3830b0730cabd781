//! The event stream: every acknowledged record as an event, in order, each once, and what is provisional in between.
//!
//! Old records come from the store, recent ones from memory that all streams share, so that a record is read and
//! written out once for all of them, and not at all while there is no stream. A stream shows nothing that the lists do
//! not show yet: it follows the same snapshots.

use super::event::Event;
use super::problem::{HttpCode, Problem};
use crate::server::handle::{Role, View};
use crate::store::{self, Entry, Store};
use axum::response::sse;
use futures_util::Stream;
use futures_util::future::BoxFuture;
use lockstep_core::id::{Index, TransitionId};
use lockstep_core::record::Record;
use lockstep_core::request::{Code, Rejection};
use std::collections::{BTreeMap, VecDeque};
use std::convert::Infallible;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;
use tokio::sync::{Mutex, MutexGuard, OwnedSemaphorePermit, Semaphore, mpsc, watch};
use tokio::time::timeout;
use tracing::{debug, warn};

/// The most streams at once; more are answered `busy`. Each keeps a connection, a task and a few events.
pub const STREAMS_MAX: usize = 256;
/// How much of what has happened is kept in memory for the streams, in bytes; one event is, however large. A stream
/// that has come up to the present and then falls so far behind is ended. Too low: bursts end streams that would keep
/// up. Too high: memory.
pub const RECENT_BYTES_MAX: usize = 8 << 20;
/// Events that are handed to a connection before it has taken them.
const UNTAKEN_MAX: usize = 64;
/// A connection that takes no event for so long is given up: it keeps a place from others.
const UNTAKEN_TIME_MAX: Duration = Duration::from_secs(30);
/// How often something is said on a stream on which nothing happens, so that both ends, and what is in between, know
/// that it stands. Proxies close what is silent for a minute.
pub const HEARTBEAT: Duration = Duration::from_secs(15);
/// What is said then, as a comment.
pub const KEEPALIVE: &str = "still here";
/// How long a stream that is to resume after the newest revision waits for this server to have read so far.
const BEHIND_MAX: Duration = Duration::from_secs(5);

/// How the journal is read: what [`Store::read`] answers.
pub type Page = BoxFuture<'static, Result<Vec<Entry>, store::Error>>;
type Said = Result<sse::Event, Infallible>;

/// What all streams share; cheap to clone.
#[derive(Clone)]
pub struct Feed {
    shared: Arc<Shared>,
}

struct Shared {
    read: Box<dyn Fn(Index) -> Page + Send + Sync>,
    view: watch::Receiver<View>,
    recent: Mutex<Recent>,
    streams: AtomicUsize,
    places: Arc<Semaphore>,
}

impl std::fmt::Debug for Feed {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Feed").field("streams", &self.shared.streams).finish_non_exhaustive()
    }
}

/// The newest events.
#[derive(Default)]
struct Recent {
    events: VecDeque<Arc<Ready>>,
    /// The place of the first of them, counted from the first that there ever was.
    first: u64,
    bytes: usize,
    /// The record that comes next.
    next: Index,
    /// What has been said of transitions that have not ended.
    phases: BTreeMap<TransitionId, &'static str>,
    votes: BTreeMap<TransitionId, usize>,
}

/// An event, written out.
struct Ready {
    revision: Option<Index>,
    text: String,
}

/// Why a stream ends.
enum End {
    /// With a last comment.
    Because(String),
    /// Nobody reads it any more.
    Gone,
}

impl Feed {
    /// What happens in `store`, as far as `view` has come.
    pub fn new(store: impl Store, view: watch::Receiver<View>) -> Self {
        let read = move |from| -> Page {
            let store = store.clone();
            Box::pin(async move { store.read(from).await })
        };
        Self::reading(read, view)
    }

    /// What happens in a journal that is read like this.
    pub fn reading(
        read: impl Fn(Index) -> Page + Send + Sync + 'static,
        view: watch::Receiver<View>,
    ) -> Self {
        Self {
            shared: Arc::new(Shared {
                read: Box::new(read),
                view,
                recent: Mutex::default(),
                streams: AtomicUsize::new(0),
                places: Arc::new(Semaphore::new(STREAMS_MAX)),
            }),
        }
    }

    /// All that has happened since a revision, the newest when none is given. It ends where that was when it began,
    /// unless it is to `follow`.
    pub async fn subscribe(
        &self,
        since: Option<u64>,
        follow: bool,
    ) -> Result<impl Stream<Item = Said> + use<>, Problem> {
        let Ok(place) = self.shared.places.clone().try_acquire_owned() else {
            let message = format!("{STREAMS_MAX} streams of events are open, and no more can be");
            return Err(Rejection::new(Code::Busy, message, "close some, or try again later").into());
        };
        let mut view = self.shared.view.clone();
        let head = view.borrow().cluster.revision;
        let since = since.map_or(head, Index);
        let has_come = |view: &View| view.cluster.revision >= since;
        let Ok(Ok(_)) = timeout(BEHIND_MAX, view.wait_for(has_come)).await else {
            if matches!(self.shared.view.borrow().role, Role::Standby { .. }) {
                let message = format!("this server stands by, and has not read as far as revision {since}");
                let help = "ask another server, or this one again in a moment";
                return Err(Rejection::new(Code::NotActive, message, help).into());
            }
            let detail = format!("since is {since}, and nothing after revision {head} has happened");
            let help = "ask since a revision that this cluster has given out";
            return Err(Problem::http(HttpCode::BadRequest, detail, help));
        };
        let next = Index(since.0 + 1);
        match (self.shared.read)(next).await {
            Ok(_) => {}
            Err(store::Error::Compacted { floor }) => return Err(Problem::compacted(since, floor)),
            Err(error) => {
                let message = format!("the journal cannot be read: {error}");
                return Err(Rejection::new(Code::StoreUnavailable, message, "try again later").into());
            }
        }
        debug!(%since, follow, "a stream of events begins");
        let (said, mut heard) = mpsc::channel(UNTAKEN_MAX);
        let until = (!follow).then_some(head);
        let stream = Streaming { shared: self.shared.clone(), view, said, next, _place: place };
        tokio::spawn(stream.run(until));
        Ok(futures_util::stream::poll_fn(move |context| heard.poll_recv(context)))
    }
}

/// A stream. It is a task, so that nothing that is shared waits for its connection.
struct Streaming {
    shared: Arc<Shared>,
    view: watch::Receiver<View>,
    said: mpsc::Sender<Said>,
    /// The record that comes next.
    next: Index,
    _place: OwnedSemaphorePermit,
}

impl Streaming {
    async fn run(mut self, until: Option<Index>) {
        let end = self.tell_all(until).await;
        if let Err(End::Because(why)) = end {
            // It says where to go on.
            let last = Index(self.next.0 - 1);
            let why = format!("{why}; resume with Last-Event-ID: {last}");
            // Whoever reads no more does not need it.
            let _ = self.say(sse::Event::default().comment(why)).await;
        }
    }

    async fn tell_all(&mut self, until: Option<Index>) -> Result<(), End> {
        // An id without data is no event, and says where to resume even if nothing happens before the connection is lost.
        let since = Index(self.next.0 - 1);
        self.say(sse::Event::default().id(since.to_string())).await?;
        match until {
            Some(until) => self.tell_stored(until).await,
            None => self.follow().await,
        }
    }

    async fn follow(&mut self) -> Result<(), End> {
        let shared = self.shared.clone();
        let _following = Following::join(&shared).await;
        // Where it has come to in what is recent; none while it comes up to that.
        let mut place = None;
        loop {
            // Seen before it is looked at, so that what comes in between wakes us.
            let revision = self.view.borrow_and_update().cluster.revision;
            let recent = shared.advance().await?;
            let Some(at) = place.or_else(|| recent.place_of(self.next)) else {
                drop(recent);
                self.tell_page(revision).await?;
                continue;
            };
            let events = recent.from(at);
            drop(recent);
            let Some(events) = events else {
                let why = "too slow: more has happened since than is kept in memory";
                return Err(End::Because(why.to_owned()));
            };
            place = Some(at + events.len() as u64);
            for event in &events {
                self.tell(event).await?;
            }
            if events.is_empty() {
                tokio::select! {
                    changed = self.view.changed() => {
                        changed.map_err(|_| End::Because("the server stops".to_owned()))?;
                    }
                    () = self.said.closed() => return Err(End::Gone),
                }
            }
        }
    }

    /// The stored records up to one.
    async fn tell_stored(&mut self, until: Index) -> Result<(), End> {
        while self.next <= until {
            self.tell_page(until).await?;
        }
        Ok(())
    }

    /// The stored records that one read gives, as far as readers may see them.
    async fn tell_page(&mut self, until: Index) -> Result<(), End> {
        let entries = self.shared.page(self.next, until).await?;
        let view = self.shared.view.borrow().clone();
        for entry in entries {
            self.tell(&Ready::record(&view, &entry)?).await?;
        }
        Ok(())
    }

    async fn tell(&mut self, event: &Ready) -> Result<(), End> {
        let said = match event.revision {
            Some(revision) => sse::Event::default().id(revision.to_string()),
            None => sse::Event::default().event("provisional"),
        };
        self.say(said.data(&event.text)).await?;
        if let Some(revision) = event.revision {
            self.next = Index(revision.0 + 1);
        }
        Ok(())
    }

    async fn say(&self, said: sse::Event) -> Result<(), End> {
        match timeout(UNTAKEN_TIME_MAX, self.said.send(Ok(said))).await {
            Ok(Ok(())) => Ok(()),
            Ok(Err(_)) | Err(_) => Err(End::Gone),
        }
    }
}

/// A stream that keeps up; what is recent is kept for as long as there is one.
struct Following<'a>(&'a Shared);

impl<'a> Following<'a> {
    async fn join(shared: &'a Shared) -> Self {
        let mut recent = shared.recent.lock().await;
        if shared.streams.fetch_add(1, Ordering::SeqCst) == 0 {
            // Nobody has looked at what happened since the last one left: begin with the present.
            *recent = Recent::at(&shared.view.borrow());
        }
        Self(shared)
    }
}

impl Drop for Following<'_> {
    fn drop(&mut self) {
        self.0.streams.fetch_sub(1, Ordering::SeqCst);
    }
}

impl Shared {
    /// What is recent, up to the newest snapshot. One stream brings it there, for all.
    async fn advance(&self) -> Result<MutexGuard<'_, Recent>, End> {
        let mut recent = self.recent.lock().await;
        // Taken under the lock: an older one would say again what a newer one has said.
        let view = self.view.borrow().clone();
        while recent.next <= view.cluster.revision {
            for entry in self.page(recent.next, view.cluster.revision).await? {
                let event = Ready::record(&view, &entry)?;
                recent.next = Index(entry.index.0 + 1);
                recent.push(event);
            }
        }
        recent.look(&view);
        Ok(recent)
    }

    /// The stored records that one read gives, up to one that is there.
    async fn page(&self, from: Index, until: Index) -> Result<Vec<Entry>, End> {
        match (self.read)(from).await {
            Ok(mut entries) => {
                entries.retain(|entry| entry.index <= until);
                Ok(entries)
            }
            Err(store::Error::Compacted { .. }) => {
                Err(End::Because("too slow: what comes next is not kept any more".to_owned()))
            }
            Err(error) => {
                warn!(%error, "a stream of events cannot go on");
                Err(End::Because("the journal cannot be read".to_owned()))
            }
        }
    }
}

impl Recent {
    fn at(view: &View) -> Self {
        let mut recent = Self { next: Index(view.cluster.revision.0 + 1), ..Self::default() };
        recent.look(view);
        // How it stands is in the lists; what changes is news.
        recent.events.clear();
        recent.bytes = 0;
        recent
    }

    /// Takes in what is provisional in a snapshot, after its records.
    fn look(&mut self, view: &View) {
        for (id, phase) in &view.phases {
            if self.phases.get(id) != Some(phase) {
                self.push(Ready::new(&Event::phase(view, *id, phase)));
            }
        }
        for (id, votes) in &view.votes {
            let is_open = view.cluster.transitions.get(id).is_some_and(|known| known.decision.is_none());
            let told = self.votes.get(id).copied().unwrap_or_default();
            for vote in votes.iter().skip(told).filter(|_| is_open) {
                self.push(Ready::new(&Event::vote(view, *id, vote)));
            }
        }
        self.phases.clone_from(&view.phases);
        self.votes = view.votes.iter().map(|(id, votes)| (*id, votes.len())).collect();
    }

    fn push(&mut self, event: Ready) {
        self.bytes += event.text.len();
        self.events.push_back(Arc::new(event));
        while self.bytes > RECENT_BYTES_MAX && self.events.len() > 1 {
            let old = self.events.pop_front().expect("there are two");
            self.bytes -= old.text.len();
            self.first += 1;
        }
    }

    /// Where a record is, or will be, if it is not only in the store.
    fn place_of(&self, record: Index) -> Option<u64> {
        let at = if record == self.next {
            self.events.len()
        } else {
            self.events.iter().position(|event| event.revision == Some(record))?
        };
        Some(self.first + at as u64)
    }

    /// The next events from a place on, none when some of them are gone. Few: what a slow stream has in hand is kept
    /// for it when it is recent no more.
    fn from(&self, place: u64) -> Option<Vec<Arc<Ready>>> {
        let at = usize::try_from(place.checked_sub(self.first)?).ok()?;
        Some(self.events.range(at..).take(UNTAKEN_MAX).cloned().collect())
    }
}

impl Ready {
    fn new(event: &Event) -> Self {
        let text = serde_json::to_string(event).expect("the API's objects are plain data");
        Self { revision: event.revision.map(Index), text }
    }

    fn record(view: &View, entry: &Entry) -> Result<Self, End> {
        let index = entry.index;
        match serde_json::from_slice::<Record>(&entry.payload) {
            Ok(record) => Ok(Self::new(&Event::of(view, index, &record))),
            Err(error) => {
                warn!(%index, %error, "a record in the journal cannot be read");
                Err(End::Because(format!("record {index} cannot be read")))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures_util::StreamExt;
    use lockstep_core::cluster::Cluster;
    use lockstep_core::id::{HostName, StateName};
    use lockstep_core::record::{Body, HostChange, Liveness};
    use lockstep_core::time::WallTime;
    use std::sync::Mutex as StdMutex;

    /// A journal in memory, whose entries below a floor are gone, and the snapshot that readers see.
    struct Journal {
        entries: Arc<StdMutex<(Index, Vec<Entry>)>>,
        cluster: Cluster,
        view: watch::Sender<View>,
        feed: Feed,
    }

    /// How many entries one read gives.
    const PAGE: usize = 3;

    impl Journal {
        fn new() -> Self {
            let entries: Arc<StdMutex<(Index, Vec<Entry>)>> = Arc::new(StdMutex::new((Index(1), Vec::new())));
            let (view, seen) = watch::channel(View::default());
            let journal = entries.clone();
            let read = move |from: Index| -> Page {
                let (floor, entries) = &*journal.lock().unwrap();
                let page = if from < *floor {
                    Err(store::Error::Compacted { floor: *floor })
                } else {
                    let page = entries.iter().skip_while(|entry| entry.index < from).take(PAGE);
                    Ok(page.cloned().collect())
                };
                Box::pin(std::future::ready(page))
            };
            let feed = Feed::reading(read, seen);
            Self { entries, cluster: Cluster::default(), view, feed }
        }

        /// Writes, and shows nothing of it yet.
        fn write(&mut self, body: Body) {
            let record = Record { at: WallTime(0), body };
            let index = Index(self.cluster.revision.0 + 1);
            self.cluster.apply(index, &record);
            let payload = serde_json::to_vec(&record).unwrap();
            let entry = Entry { index, reign: lockstep_core::id::Reign(1), payload };
            self.entries.lock().unwrap().1.push(entry);
        }

        fn reign(&mut self, server: &str) {
            self.write(Body::Reign { server: server.to_owned(), lease_ms: None, cluster: None });
        }

        fn show(&self) {
            let cluster = Arc::new(self.cluster.clone());
            self.view.send_modify(|view| view.cluster = cluster);
        }

        fn reigns(&mut self, count: usize) {
            (0..count).for_each(|_| self.reign("s"));
            self.show();
        }

        fn compact(&self, floor: u64) {
            self.entries.lock().unwrap().0 = Index(floor);
        }

        async fn stream(&self, since: u64) -> std::pin::Pin<Box<dyn Stream<Item = Said>>> {
            opened(self.feed.subscribe(Some(since), true).await.unwrap(), since).await
        }
    }

    /// Every stream begins with where it does.
    async fn opened(
        stream: impl Stream<Item = Said> + 'static,
        since: u64,
    ) -> std::pin::Pin<Box<dyn Stream<Item = Said>>> {
        let mut stream = Box::pin(stream);
        assert_eq!(written(&mut stream).await.unwrap(), format!("id: {since}"));
        stream
    }

    /// As it goes over the line.
    async fn written(stream: &mut (impl Stream<Item = Said> + Unpin)) -> Option<String> {
        let event = stream.next().await?;
        let one = sse_body(futures_util::stream::iter(event)).await;
        Some(one.trim_end().to_owned())
    }

    async fn sse_body(events: impl Stream<Item = sse::Event> + Send + 'static) -> String {
        use axum::response::IntoResponse;
        let response = sse::Sse::new(events.map(Ok::<_, Infallible>)).into_response();
        let bytes = axum::body::to_bytes(response.into_body(), usize::MAX).await.unwrap();
        String::from_utf8(bytes.to_vec()).unwrap()
    }

    async fn id(stream: &mut (impl Stream<Item = Said> + Unpin)) -> u64 {
        let written = written(stream).await.unwrap();
        let line = written.lines().find_map(|line| line.strip_prefix("id: "));
        line.unwrap_or_else(|| panic!("{written}")).parse().unwrap()
    }

    #[tokio::test]
    async fn stored_and_recent_records_follow_each_other_without_a_seam() {
        let mut journal = Journal::new();
        journal.reigns(10);
        let mut early = journal.stream(0).await;
        let mut late = journal.stream(9).await;
        for expected in 1..=10 {
            assert_eq!(id(&mut early).await, expected);
        }
        assert_eq!(id(&mut late).await, 10);
        journal.reigns(5);
        let mut between = journal.stream(7).await;
        for expected in 8..=15 {
            assert_eq!(id(&mut between).await, expected);
        }
        for expected in 11..=15 {
            assert_eq!((id(&mut early).await, id(&mut late).await), (expected, expected));
        }
        journal.reigns(1);
        assert_eq!((id(&mut early).await, id(&mut late).await, id(&mut between).await), (16, 16, 16));
    }

    #[tokio::test]
    async fn what_readers_may_not_see_yet_is_not_told() {
        let mut journal = Journal::new();
        journal.reigns(1);
        let mut stream = journal.stream(0).await;
        assert_eq!(id(&mut stream).await, 1);
        journal.reign("durable, not acknowledged");
        let mut other = journal.stream(0).await;
        assert_eq!(id(&mut other).await, 1);
        tokio::select! {
            biased;
            told = stream.next() => panic!("{told:?}"),
            told = other.next() => panic!("{told:?}"),
            () = async { for _ in 0..100 { tokio::task::yield_now().await } } => {}
        }
        journal.show();
        assert_eq!((id(&mut stream).await, id(&mut other).await), (2, 2));
    }

    #[tokio::test]
    async fn a_stream_that_does_not_follow_ends_with_what_has_happened() {
        let mut journal = Journal::new();
        journal.reigns(7);
        let mut stream = opened(journal.feed.subscribe(Some(2), false).await.unwrap(), 2).await;
        journal.reigns(1);
        for expected in 3..=7 {
            assert_eq!(id(&mut stream).await, expected);
        }
        assert!(stream.next().await.is_none());
        let mut none = opened(journal.feed.subscribe(None, false).await.unwrap(), 8).await;
        assert!(none.next().await.is_none());
    }

    #[tokio::test]
    async fn what_is_gone_is_said_to_be_gone() {
        let mut journal = Journal::new();
        journal.reigns(10);
        journal.compact(6);
        let Err(problem) = journal.feed.subscribe(Some(4), true).await else { panic!("it is gone") };
        assert_eq!((problem.status, problem.code.as_str(), problem.kept_since), (410, "compacted", Some(5)));
        assert_eq!(id(&mut journal.stream(5).await).await, 6);
        // All of it is in a snapshot: what follows is still to come.
        journal.compact(11);
        let mut stream = journal.stream(10).await;
        journal.reigns(1);
        assert_eq!(id(&mut stream).await, 11);
    }

    #[tokio::test(start_paused = true)]
    async fn nothing_follows_what_has_not_happened() {
        let mut journal = Journal::new();
        journal.reigns(1);
        for since in [2, u64::MAX] {
            let Err(problem) = journal.feed.subscribe(Some(since), true).await else { panic!("{since}") };
            assert_eq!(problem.code, "bad-request");
        }
        // A server that has only just taken over has not read so far yet.
        let (feed, asked) = (journal.feed.clone(), tokio::time::Instant::now());
        let waiting = tokio::spawn(async move { feed.subscribe(Some(3), true).await.is_ok() });
        tokio::task::yield_now().await;
        journal.reigns(2);
        assert!(waiting.await.unwrap());
        assert!(asked.elapsed() < BEHIND_MAX);
    }

    #[tokio::test]
    async fn who_reads_too_slowly_is_told_where_to_resume() {
        let mut journal = Journal::new();
        journal.reigns(1);
        let mut stream = journal.stream(0).await;
        assert_eq!(id(&mut stream).await, 1);
        // More than is kept, than is handed over, and than one event.
        let name = "x".repeat(RECENT_BYTES_MAX / 64);
        for _ in 0..4 * UNTAKEN_MAX {
            journal.reign(&name);
        }
        journal.show();
        let mut last = 1;
        let end = loop {
            let written = written(&mut stream).await.expect("a last word");
            match written.lines().find_map(|line| line.strip_prefix("id: ")) {
                Some(id) => {
                    assert_eq!(id.parse(), Ok(last + 1));
                    last += 1;
                }
                None => break written,
            }
        };
        assert_eq!(
            end,
            format!(
                ": too slow: more has happened since than is kept in memory; resume with Last-Event-ID: {last}"
            )
        );
        assert!(stream.next().await.is_none());
        assert_eq!(id(&mut journal.stream(last).await).await, last + 1);
    }

    #[tokio::test(start_paused = true)]
    async fn who_takes_nothing_loses_its_place() {
        let mut journal = Journal::new();
        journal.reigns(UNTAKEN_MAX + 2);
        let mut streams = Vec::new();
        for _ in 0..STREAMS_MAX {
            streams.push(journal.stream(0).await);
        }
        let Err(problem) = journal.feed.subscribe(None, true).await else { panic!("there are too many") };
        assert_eq!((problem.status, problem.code.as_str()), (429, "busy"));
        let places = journal.feed.shared.places.clone();
        let all = places.acquire_many(STREAMS_MAX as u32).await.unwrap();
        drop(all);
        assert_eq!(journal.feed.shared.streams.load(Ordering::SeqCst), 0);
        assert_eq!(id(&mut journal.stream(0).await).await, 1);
    }

    #[tokio::test]
    async fn a_stream_that_is_closed_gives_its_place_back() {
        let mut journal = Journal::new();
        journal.reigns(1);
        let mut stream = journal.stream(0).await;
        assert_eq!(id(&mut stream).await, 1);
        drop(stream);
        // Nothing more happens, and it is noticed all the same.
        let _all = journal.feed.shared.places.acquire_many(STREAMS_MAX as u32).await.unwrap();
    }

    #[tokio::test]
    async fn what_is_provisional_comes_after_the_records_that_it_rests_on_and_once() {
        let mut journal = Journal::new();
        let spec =
            serde_json::from_str(r#"{"cluster":"c","groups":{"db":{"select":{"role":"db"}}}}"#).unwrap();
        journal.write(Body::Spec { spec: Arc::new(spec), principal: "ann".to_owned() });
        let labels = BTreeMap::from([("role".to_owned(), "db".to_owned())]);
        let joined = HostChange::Joined { agent: "a".parse().unwrap(), address: None, labels };
        journal.write(Body::Host { host: HostName::new("h1").unwrap(), change: joined });
        let actual = Some(StateName::new("offline").unwrap());
        journal.write(Body::Report { member: "db@h1".parse().unwrap(), actual });
        journal.show();
        let mut stream = journal.stream(2).await;
        assert_eq!(id(&mut stream).await, 3);
        let request = serde_json::from_str(r#"{"request_id":"r","principal":"ann","targets":["db=online"]}"#);
        journal.write(Body::Request { request: Arc::new(request.unwrap()) });
        let id = TransitionId(4);
        let vote: lockstep_core::vote::Vote = serde_json::from_str(
            r#"{"member":"db@h1","role":"actor","round":"check","answer":"yes","run":"r"}"#,
        )
        .unwrap();
        let cluster = Arc::new(journal.cluster.clone());
        journal.view.send_modify(|view| {
            view.cluster = cluster;
            view.phases.insert(id, "check");
            view.votes.insert(id, vec![Arc::new(vote)]);
        });
        let mut told = Vec::new();
        for _ in 0..3 {
            told.push(written(&mut stream).await.unwrap());
        }
        journal.write(Body::Host {
            host: HostName::new("h1").unwrap(),
            change: HostChange::Liveness { liveness: Liveness::Suspect },
        });
        journal.show();
        told.push(written(&mut stream).await.unwrap());
        expect_test::expect![[r#"
            id: 4
            data: {"revision":4,"at":"1970-01-01T00:00:00.000Z","provisional":false,"kind":"request","transition":"t4","groups":["db"],"request_id":"r","principal":"ann","targets":["db=online"],"reason":null}

            event: provisional
            data: {"revision":null,"at":null,"provisional":true,"kind":"phase","transition":"t4","groups":["db"],"phase":"check"}

            event: provisional
            data: {"revision":null,"at":null,"provisional":true,"kind":"vote","transition":"t4","groups":["db"],"vote":{"member":"db@h1","role":"actor","round":"check","answer":"yes","reason":null,"out":{},"provisional":true}}

            id: 5
            data: {"revision":5,"at":"1970-01-01T00:00:00.000Z","provisional":false,"kind":"host-liveness","host":"h1","liveness":"suspect"}"#]].assert_eq(&told.join("\n\n"));
        // Whoever comes later sees what is recorded: how it stands is in the lists.
        let mut late = journal.stream(4).await;
        assert!(written(&mut late).await.unwrap().starts_with("id: 5"));
    }
}
