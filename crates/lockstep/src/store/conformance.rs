//! What every store keeps to. Each implementation runs all of it on a [`Bench`] of its own:
//! `conformance::suite!(MyBench::new())` in its tests.

use super::{Appended, Candidate, Entry, Error, Fenced, Leader, READ_BYTES_MAX, Store};
use lockstep_core::id::{Index, Reign};
use lockstep_core::log::PAYLOAD_BYTES_MAX;
use std::time::Duration;

/// One journal, empty at first, and the servers on it.
pub(crate) trait Bench {
    type Store: Store;

    /// One more server's handle on the journal.
    async fn server(&mut self) -> Self::Store;

    /// A first handle again, after all servers have stopped.
    async fn restart(&mut self) -> Self::Store;

    /// Ends what a reign rests on, as when its server has been silent for too long.
    async fn depose(&mut self, store: &Self::Store, reign: Reign);
}

const TTL: Duration = Duration::from_secs(3);

pub(crate) fn candidate(name: &str) -> Candidate {
    Candidate { name: name.to_owned(), url: format!("http://{name}.example:7340") }
}

async fn campaign<S: Store>(store: &S) -> Reign {
    store.campaign(&candidate("a"), TTL).await.unwrap()
}

fn batch<const N: usize>(payloads: [&str; N]) -> Vec<Vec<u8>> {
    payloads.map(|payload| payload.as_bytes().to_vec()).to_vec()
}

/// Appends one batch at the head, whatever that is.
async fn append<const N: usize>(store: &impl Store, reign: Reign, payloads: [&str; N]) -> Index {
    let head = store.head().await.unwrap();
    match store.append(reign, head, batch(payloads)).await.unwrap() {
        Appended::Done(index) => index,
        other => panic!("{other:?}"),
    }
}

pub(crate) async fn read_all(store: &impl Store, from: Index) -> Vec<Entry> {
    let mut all: Vec<Entry> = Vec::new();
    loop {
        let next = all.last().map_or(from, |entry| Index(entry.index.0 + 1));
        match store.read(next).await.unwrap() {
            page if page.is_empty() => return all,
            page => all.extend(page),
        }
    }
}

/// Begins something and gives it up unless it is done at once.
async fn poll_once<T>(future: impl Future<Output = T>) -> Option<T> {
    tokio::select! { biased; done = future => Some(done), () = std::future::ready(()) => None }
}

fn told(entries: &[Entry]) -> Vec<(u64, &str)> {
    entries.iter().map(|entry| (entry.index.0, std::str::from_utf8(&entry.payload).unwrap())).collect()
}

pub(crate) async fn an_append_takes_the_next_indices(bench: &mut impl Bench) {
    let store = bench.server().await;
    assert_eq!(store.head().await.unwrap(), Index(0));
    let reign = campaign(&store).await;
    assert_eq!(store.append(reign, Index(0), batch(["a"])).await.unwrap(), Appended::Done(Index(1)));
    assert_eq!(store.append(reign, Index(1), batch(["b", "c"])).await.unwrap(), Appended::Done(Index(3)));
    assert_eq!(store.head().await.unwrap(), Index(3));
    let entries = read_all(&store, Index(1)).await;
    assert_eq!(told(&entries), [(1, "a"), (2, "b"), (3, "c")]);
    assert!(entries.iter().all(|entry| entry.reign == reign));
    assert_eq!(told(&read_all(&store, Index(3)).await), [(3, "c")]);
}

pub(crate) async fn nobody_writes_without_a_reign(bench: &mut impl Bench) {
    let store = bench.server().await;
    for reign in [Reign(0), Reign(1), Reign(u64::MAX)] {
        assert_eq!(store.append(reign, Index(0), batch(["a"])).await.unwrap(), Appended::Deposed);
        assert_eq!(store.confirm(reign).await.unwrap(), Fenced::Deposed);
    }
    assert_eq!(store.head().await.unwrap(), Index(0));
}

pub(crate) async fn a_deposed_server_writes_nothing(bench: &mut impl Bench) {
    let (old, new) = (bench.server().await, bench.server().await);
    let first = campaign(&old).await;
    append(&old, first, ["a"]).await;
    assert_eq!(old.confirm(first).await.unwrap(), Fenced::Held);
    bench.depose(&old, first).await;
    let second = campaign(&new).await;
    assert!(second > first);
    assert_eq!(old.confirm(first).await.unwrap(), Fenced::Deposed);
    assert_eq!(old.append(first, Index(1), batch(["late"])).await.unwrap(), Appended::Deposed);
    assert_eq!(old.append(first, Index(7), batch(["late"])).await.unwrap(), Appended::Deposed);
    assert_eq!(old.save_snapshot(first, Index(1), b"late".to_vec()).await.unwrap(), Fenced::Deposed);
    assert_eq!(old.compact(first, Index(2)).await.unwrap(), Fenced::Deposed);
    assert_eq!(new.head().await.unwrap(), Index(1));
    assert_eq!(new.load_snapshot().await.unwrap(), None);
    assert_eq!(new.append(second, Index(1), batch(["b"])).await.unwrap(), Appended::Done(Index(2)));
    assert_eq!(told(&read_all(&old, Index(1)).await), [(1, "a"), (2, "b")]);
}

pub(crate) async fn a_wrong_expectation_conflicts(bench: &mut impl Bench) {
    let store = bench.server().await;
    let reign = campaign(&store).await;
    append(&store, reign, ["a", "b"]).await;
    for expected in [0, 1, 3, u64::MAX] {
        let answer = store.append(reign, Index(expected), batch(["x"])).await.unwrap();
        assert_eq!(answer, Appended::Conflict(Index(2)));
    }
    assert_eq!(told(&read_all(&store, Index(1)).await), [(1, "a"), (2, "b")]);
}

pub(crate) async fn an_append_whose_answer_was_lost_can_be_settled(bench: &mut impl Bench) {
    let store = bench.server().await;
    let reign = campaign(&store).await;
    append(&store, reign, ["a"]).await;
    // Whether this one ran is not known to who dropped it.
    let _ = poll_once(store.append(reign, Index(1), batch(["b"]))).await;
    let head = match store.append(reign, Index(1), batch(["b"])).await.unwrap() {
        Appended::Done(index) | Appended::Conflict(index) => index,
        other => panic!("{other:?}"),
    };
    assert_eq!(head, Index(2));
    // The answer of this one was lost: the same again finds it, and the entry says whose it is.
    assert_eq!(store.append(reign, Index(2), batch(["c"])).await.unwrap(), Appended::Done(Index(3)));
    assert_eq!(store.append(reign, Index(2), batch(["c"])).await.unwrap(), Appended::Conflict(Index(3)));
    let entries = read_all(&store, Index(2)).await;
    assert_eq!(told(&entries), [(2, "b"), (3, "c")]);
    assert_eq!(entries[1].reign, reign);
}

pub(crate) async fn reading_past_the_head_finds_nothing(bench: &mut impl Bench) {
    let store = bench.server().await;
    assert_eq!(store.read(Index(1)).await.unwrap(), []);
    let reign = campaign(&store).await;
    assert_eq!(store.read(Index(1)).await.unwrap(), [], "a campaign is no entry");
    append(&store, reign, ["a"]).await;
    for from in [2, 3, 1000, u64::MAX] {
        assert_eq!(store.read(Index(from)).await.unwrap(), []);
    }
}

pub(crate) async fn a_long_journal_is_read_in_order(bench: &mut impl Bench) {
    let store = bench.server().await;
    let reign = campaign(&store).await;
    let large = "x".repeat(READ_BYTES_MAX / 3);
    for _ in 0..10 {
        append(&store, reign, ["small", &large, ""]).await;
    }
    let huge = "y".repeat(READ_BYTES_MAX + 1);
    append(&store, reign, [&huge]).await;
    let entries = read_all(&store, Index(1)).await;
    let indices: Vec<u64> = entries.iter().map(|entry| entry.index.0).collect();
    assert_eq!(indices, (1..=31).collect::<Vec<_>>());
    for entry in &entries[..30] {
        let expected = ["small", &large, ""][(entry.index.0 as usize - 1) % 3];
        assert!(entry.payload == expected.as_bytes(), "entry {}", entry.index);
    }
    assert_eq!(entries[30].payload.len(), huge.len());
}

pub(crate) async fn what_is_too_large_is_refused_and_harmless(bench: &mut impl Bench) {
    let store = bench.server().await;
    let reign = campaign(&store).await;
    let answer = store.append(reign, Index(0), vec![vec![0; PAYLOAD_BYTES_MAX + 1]]).await;
    assert!(matches!(answer, Err(Error::Refused(_))));
    assert_eq!(store.append(reign, Index(0), batch(["a"])).await.unwrap(), Appended::Done(Index(1)));
}

pub(crate) async fn a_watch_tells_all_in_order_and_once(bench: &mut impl Bench) {
    const LAST: u64 = 300;
    let store = bench.server().await;
    let reign = campaign(&store).await;
    append(&store, reign, ["entry 1", "entry 2"]).await;
    let mut watches: Vec<_> = [1, 2, 3, 50, LAST].map(|from| (from, store.watch(Index(from)))).into();
    let follow = async {
        for (from, watch) in &mut watches {
            let mut next = *from;
            while next <= LAST {
                for (index, payload) in told(&watch.next().await.unwrap()) {
                    assert_eq!((index, payload), (next, format!("entry {next}").as_str()));
                    next += 1;
                }
            }
        }
    };
    let write = async {
        for index in (3..=LAST).step_by(2) {
            let pair = [format!("entry {index}"), format!("entry {}", index + 1)];
            append(&store, reign, [pair[0].as_str(), pair[1].as_str()]).await;
        }
    };
    tokio::join!(follow, write);
}

pub(crate) async fn a_watch_loses_nothing_when_given_up(bench: &mut impl Bench) {
    let store = bench.server().await;
    let reign = campaign(&store).await;
    let mut watch = store.watch(Index(1));
    // Given up before there is something to tell, and after.
    assert!(poll_once(watch.next()).await.is_none());
    append(&store, reign, ["a"]).await;
    let early = poll_once(watch.next()).await;
    let entries = match early {
        Some(entries) => entries.unwrap(),
        None => watch.next().await.unwrap(),
    };
    assert_eq!(told(&entries), [(1, "a")]);
}

pub(crate) async fn a_snapshot_and_what_follows_it_are_all(bench: &mut impl Bench) {
    let store = bench.server().await;
    assert_eq!(store.load_snapshot().await.unwrap(), None);
    let reign = campaign(&store).await;
    append(&store, reign, ["a", "b", "c"]).await;
    append(&store, reign, ["d"]).await;
    for (index, state) in [(2, "ab"), (3, "abc")] {
        let saved = store.save_snapshot(reign, Index(index), state.into()).await.unwrap();
        assert_eq!(saved, Fenced::Held);
        let snapshot = store.load_snapshot().await.unwrap().unwrap();
        assert_eq!((snapshot.index, snapshot.bytes.as_slice()), (Index(index), state.as_bytes()));
    }
    let past_head = store.save_snapshot(reign, Index(5), b"?".to_vec()).await;
    assert!(matches!(past_head, Err(Error::Refused(_))));
    let backwards = store.save_snapshot(reign, Index(2), b"?".to_vec()).await;
    assert!(matches!(backwards, Err(Error::Refused(_))));
    assert_eq!(store.load_snapshot().await.unwrap().unwrap().index, Index(3));
    assert_eq!(told(&store.read(Index(4)).await.unwrap()), [(4, "d")]);
}

pub(crate) async fn compaction_keeps_what_no_snapshot_covers(bench: &mut impl Bench) {
    let store = bench.server().await;
    let reign = campaign(&store).await;
    append(&store, reign, ["a"]).await;
    append(&store, reign, ["b"]).await;
    append(&store, reign, ["c"]).await;
    assert_eq!(store.compact(reign, Index(4)).await.unwrap(), Fenced::Held);
    assert_eq!(told(&read_all(&store, Index(1)).await), [(1, "a"), (2, "b"), (3, "c")]);
    for index in [1, 2] {
        store.save_snapshot(reign, Index(index), b"state".to_vec()).await.unwrap();
    }
    assert_eq!(store.compact(reign, Index(4)).await.unwrap(), Fenced::Held);
    assert_eq!(told(&read_all(&store, Index(3)).await), [(3, "c")]);
    // What is left below is right, and what is gone is said to be gone.
    match store.read(Index(1)).await {
        Ok(entries) => assert_eq!(told(&entries)[0], (1, "a")),
        Err(Error::Compacted { floor }) => assert!(floor > Index(1) && floor <= Index(3)),
        Err(other) => panic!("{other}"),
    }
    append(&store, reign, ["d"]).await;
    let store = bench.restart().await;
    assert_eq!(store.head().await.unwrap(), Index(4));
    assert_eq!(told(&read_all(&store, Index(3)).await), [(3, "c"), (4, "d")]);
}

pub(crate) async fn a_restart_forgets_nothing(bench: &mut impl Bench) {
    let store = bench.server().await;
    let reign = campaign(&store).await;
    append(&store, reign, ["a", "b"]).await;
    append(&store, reign, ["c"]).await;
    store.save_snapshot(reign, Index(2), b"ab".to_vec()).await.unwrap();
    let (entries, snapshot) = (read_all(&store, Index(1)).await, store.load_snapshot().await.unwrap());
    drop(store);
    for _ in 0..3 {
        let store = bench.restart().await;
        assert_eq!(store.head().await.unwrap(), Index(3));
        assert_eq!(read_all(&store, Index(1)).await, entries);
        assert_eq!(store.load_snapshot().await.unwrap(), snapshot);
    }
}

pub(crate) async fn a_reign_only_grows(bench: &mut impl Bench) {
    let mut store = bench.server().await;
    let mut last = Reign(0);
    for round in 0..4 {
        let reign = campaign(&store).await;
        assert!(reign > last);
        assert_eq!(store.confirm(last).await.unwrap(), Fenced::Deposed);
        assert_eq!(store.append(last, Index(round), batch(["late"])).await.unwrap(), Appended::Deposed);
        append(&store, reign, ["a"]).await;
        last = reign;
        if round % 2 == 1 {
            store = bench.restart().await;
        } else {
            bench.depose(&store, reign).await;
        }
    }
    assert_eq!(store.head().await.unwrap(), Index(4));
}

pub(crate) async fn who_resigns_makes_room_for_the_next(bench: &mut impl Bench) {
    let (old, new) = (bench.server().await, bench.server().await);
    assert_eq!(old.leader().await.unwrap(), None);
    let first = campaign(&old).await;
    assert_eq!(new.leader().await.unwrap(), Some(Leader { candidate: candidate("a"), reign: first }));
    assert_eq!(old.resign(first).await.unwrap(), Fenced::Held);
    assert_eq!(old.confirm(first).await.unwrap(), Fenced::Deposed);
    assert_eq!(old.append(first, Index(0), batch(["late"])).await.unwrap(), Appended::Deposed);
    assert_eq!(old.leader().await.unwrap(), None);
    let second = new.campaign(&candidate("b"), TTL).await.unwrap();
    assert!(second > first);
    assert_eq!(old.resign(first).await.unwrap(), Fenced::Deposed);
    assert_eq!(new.confirm(second).await.unwrap(), Fenced::Held);
    assert_eq!(old.leader().await.unwrap(), Some(Leader { candidate: candidate("b"), reign: second }));
}

/// One test for each promise, on a new bench.
macro_rules! suite {
    ($bench:expr) => {
        $crate::store::conformance::suite! { $bench =>
            an_append_takes_the_next_indices
            nobody_writes_without_a_reign
            a_deposed_server_writes_nothing
            a_wrong_expectation_conflicts
            an_append_whose_answer_was_lost_can_be_settled
            reading_past_the_head_finds_nothing
            a_long_journal_is_read_in_order
            what_is_too_large_is_refused_and_harmless
            a_watch_tells_all_in_order_and_once
            a_watch_loses_nothing_when_given_up
            a_snapshot_and_what_follows_it_are_all
            compaction_keeps_what_no_snapshot_covers
            a_restart_forgets_nothing
            a_reign_only_grows
            who_resigns_makes_room_for_the_next
        }
    };
    ($bench:expr => $($promise:ident)+) => {
        $(
            #[tokio::test]
            async fn $promise() {
                $crate::store::conformance::$promise(&mut $bench).await;
            }
        )+
    };
}
pub(crate) use suite;
