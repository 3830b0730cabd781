//! The store on real members of etcd.

pub(in crate::store) mod process;

use super::*;
use crate::store::conformance::{self, Bench, candidate};
use process::{Members, until};

const PREFIX: &str = "bench";

/// A journal on an etcd of one member.
struct EtcdBench {
    members: Members,
    open: Vec<Etcd>,
}

impl EtcdBench {
    async fn new() -> Self {
        EtcdBench { members: Members::start(1, &[]).await, open: Vec::new() }
    }
}

/// A client beside the store's.
async fn raw(members: &Members) -> etcd_client::Client {
    let url = format!("127.0.0.1:{}", members.ports[0].client);
    etcd_client::Client::connect([url], None).await.unwrap()
}

impl Bench for EtcdBench {
    type Store = Etcd;

    async fn server(&mut self) -> Etcd {
        let store = self.members.open(PREFIX).await.unwrap();
        self.open.push(store.clone());
        store
    }

    /// etcd restarts too.
    async fn restart(&mut self) -> Etcd {
        self.open.clear();
        self.members.members[0].restart();
        let store = until("etcd is back", async || self.members.open(PREFIX).await.ok()).await;
        self.open.push(store.clone());
        store
    }

    async fn depose(&mut self, store: &Etcd, reign: Reign) {
        let lease = store.held(reign).unwrap().lease();
        raw(&self.members).await.lease_client().revoke(lease).await.unwrap();
    }
}

mod one_member {
    use super::*;
    conformance::suite!(EtcdBench::new().await);
}

/// Longer than anything here is held up on purpose.
const LONG: Duration = Duration::from_secs(60);
const SHORT: Duration = Duration::from_secs(2);

async fn reigning(members: &Members, ttl: Duration) -> (Etcd, Reign) {
    let store = members.open(PREFIX).await.unwrap();
    let reign = store.campaign(&candidate("a"), ttl).await.unwrap();
    (store, reign)
}

fn payload(index: u64) -> Vec<u8> {
    format!("record {index}").into_bytes()
}

async fn append_one(store: &Etcd, reign: Reign, index: u64) -> Result<Appended, Error> {
    store.append(reign, Index(index - 1), vec![payload(index)]).await
}

/// Appends one entry as the server does: a write without an answer is tried again until its end is known.
async fn append_surely(store: &Etcd, reign: Reign, index: u64) {
    until("an append has an end", async || match append_one(store, reign, index).await {
        Ok(Appended::Done(head)) => {
            assert_eq!(head, Index(index));
            Some(())
        }
        Ok(Appended::Conflict(head)) => {
            assert_eq!(head, Index(index), "nobody else writes");
            // Where that cannot be said yet, the same append is tried again.
            let held = store.confirm(reign).await.ok()?;
            assert_eq!(held, Fenced::Held);
            Some(())
        }
        Ok(Appended::Unknown) => None,
        other => panic!("{other:?}"),
    })
    .await;
}

async fn assert_whole(store: &Etcd, last: u64) {
    let mut next = 1;
    while next <= last {
        for entry in store.read(Index(next)).await.unwrap() {
            assert_eq!((entry.index, entry.payload), (Index(next), payload(next)));
            next += 1;
        }
    }
    assert_eq!(store.head().await.unwrap(), Index(last));
}

/// All keys under the prefix, with their values.
async fn dump(client: &etcd_client::Client) -> Vec<(String, Vec<u8>)> {
    let options = GetOptions::new().with_prefix();
    let found = client
        .kv_client()
        .max_decoding_message_size(64 << 20)
        .get(format!("/{PREFIX}/"), Some(options))
        .await
        .unwrap();
    found.kvs().iter().map(|kv| (kv.key_str().unwrap().to_owned(), kv.value().to_vec())).collect()
}

#[tokio::test]
async fn an_append_to_a_stopped_etcd_is_unknown_and_lands_once() {
    let members = Members::start(1, &[]).await;
    let (store, reign) = reigning(&members, LONG).await;
    append_surely(&store, reign, 1).await;
    for round in 1..=3 {
        members.members[0].stop();
        assert_eq!(append_one(&store, reign, 1 + round).await.unwrap(), Appended::Unknown);
        members.members[0].go_on();
        append_surely(&store, reign, 1 + round).await;
        assert_whole(&store, 1 + round).await;
    }
}

/// Well before it is unknown: a member whose leader has died answers never what it was asked for meanwhile.
#[tokio::test]
async fn what_one_member_does_not_answer_the_next_one_does() {
    let members = Members::start(3, &[]).await;
    let (store, reign) = reigning(&members, LONG).await;
    let silent = (leader_of(&members).await + 1) % 3;
    members.members[silent].stop();
    for index in 1..=3 {
        store.inner.shared.cluster.ask_first(silent);
        assert_eq!(append_one(&store, reign, index).await.unwrap(), Appended::Done(Index(index)));
    }
    members.members[silent].go_on();
    assert_whole(&store, 3).await;
}

/// What renews it, and what tells of new entries, are streams to one member each: they are opened anew, at another one.
#[tokio::test]
async fn a_reign_outlives_the_member_that_renews_it() {
    for is_killed in [true, false] {
        let mut members = Members::start(3, &[]).await;
        let led_to = (leader_of(&members).await + 1) % 3;
        // Who opens it asks the first one, for as long as that answers.
        let address = members.address_of(&[led_to, (led_to + 1) % 3, (led_to + 2) % 3], PREFIX);
        let open = async || Etcd::open(&address, &members.options).await.unwrap();
        let (store, standby) = (open().await, open().await);
        let reign = store.campaign(&candidate("a"), SHORT).await.unwrap();
        let mut heads = standby.heads();
        append_surely(&store, reign, 1).await;
        heads.wait_for(|head| *head == Index(1)).await.unwrap();
        if is_killed {
            members.members[led_to].kill();
        } else {
            members.members[led_to].stop();
        }
        assert!(timeout(3 * SHORT, store.ended(reign)).await.is_err(), "it stands for longer than its lease");
        assert_eq!(store.confirm(reign).await.unwrap(), Fenced::Held);
        for index in 2..=4 {
            append_surely(&store, reign, index).await;
            let told = timeout(LONG, heads.wait_for(|head| *head == Index(index))).await;
            assert!(told.is_ok(), "entry {index}, killed: {is_killed}");
        }
        assert_eq!(store.held(reign).map(|held| *held.over.borrow()), Some(false));
        if !is_killed {
            members.members[led_to].go_on();
        }
    }
}

#[tokio::test]
async fn nothing_acknowledged_is_lost_with_the_leader_of_three() {
    let mut members = Members::start(3, &[]).await;
    let (store, reign) = reigning(&members, LONG).await;
    let mut heads = store.heads();
    let mut last = 0;
    for _ in 0..3 {
        let leader = leader_of(&members).await;
        let follow = async {
            for _ in 0..40 {
                last += 1;
                append_surely(&store, reign, last).await;
            }
        };
        // In the midst of the appends.
        let kill = async {
            heads.changed().await.unwrap();
            members.members[leader].kill();
        };
        tokio::join!(follow, kill);
        members.members[leader].restart();
        assert_whole(&store, last).await;
    }
    // Another server sees the same, whichever member it asks.
    for at in 0..3 {
        let address = members.address_of(&[at], PREFIX);
        let other =
            until("a member serves", async || Etcd::open(&address, &EtcdOptions::default()).await.ok()).await;
        assert_whole(&other, last).await;
    }
    // And its signal comes through all that.
    append_surely(&store, reign, last + 1).await;
    heads.wait_for(|head| *head == Index(last + 1)).await.unwrap();
}

/// Which member leads.
async fn leader_of(members: &Members) -> usize {
    until("there is a leader", async || {
        for (at, ports) in members.ports.iter().enumerate() {
            let url = format!("127.0.0.1:{}", ports.client);
            let Ok(client) = etcd_client::Client::connect([url], None).await else { continue };
            let asked = timeout(SHORT, async { client.maintenance_client().status().await });
            let Ok(Ok(status)) = asked.await else { continue };
            let own = status.header().unwrap().member_id();
            if status.leader() == own {
                return Some(at);
            }
        }
        None
    })
    .await
}

#[tokio::test]
async fn a_minority_acknowledges_nothing() {
    let members = Members::start(3, &[]).await;
    let leader = leader_of(&members).await;
    let address = members.address_of(&[leader], PREFIX);
    let store = Etcd::open(&address, &members.options).await.unwrap();
    let reign = store.campaign(&candidate("a"), SHORT).await.unwrap();
    append_surely(&store, reign, 1).await;
    let others: Vec<usize> = (0..3).filter(|at| *at != leader).collect();
    for at in &others {
        members.members[*at].stop();
    }
    for _ in 0..2 {
        assert_eq!(append_one(&store, reign, 2).await.unwrap(), Appended::Unknown);
        assert!(matches!(store.confirm(reign).await, Err(Error::Unavailable { .. })));
        assert!(matches!(store.head().await, Err(Error::Unavailable { .. })));
    }
    // Its reign is over for all that it can know.
    store.ended(reign).await;
    for at in &others {
        members.members[*at].go_on();
    }
    // A server that asks the majority goes on, and the one that was cut off writes nothing more.
    let next = until("the members have a leader", async || members.open(PREFIX).await.ok()).await;
    let second = next.campaign(&candidate("b"), SHORT).await.unwrap();
    assert!(second > reign);
    let head = next.head().await.unwrap();
    assert!(head <= Index(2), "{head}");
    let late = until("the member is back", async || match append_one(&store, reign, 2).await.unwrap() {
        Appended::Unknown => None,
        known => Some(known),
    });
    assert_eq!(late.await, Appended::Deposed);
    assert_eq!(
        next.append(second, head, vec![payload(head.0 + 1)]).await.unwrap(),
        Appended::Done(Index(head.0 + 1))
    );
    assert_whole(&next, head.0 + 1).await;
}

#[tokio::test]
async fn a_full_quota_is_told_and_left_behind() {
    let members = Members::start(1, &["--quota-backend-bytes=4194304"]).await;
    let (store, reign) = reigning(&members, LONG).await;
    append_surely(&store, reign, 1).await;
    // Somebody else fills it.
    let mut client = raw(&members).await;
    while client.put("/other", vec![7; 900_000], None).await.is_ok() {}
    let mut last = 1;
    let error = loop {
        match append_one(&store, reign, last + 1).await {
            Ok(Appended::Done(_)) => last += 1,
            Ok(other) => panic!("{other:?}"),
            Err(error) => break error,
        }
    };
    assert!(matches!(error, Error::NoRoom(_)), "{error:?}");
    let text = error.to_string();
    assert!(text.contains("--quota-backend-bytes") && text.contains("etcdctl alarm disarm"), "{text}");
    let large = store.append(reign, Index(last), vec![vec![7; 1 << 20]]).await.unwrap_err();
    assert!(matches!(large, Error::NoRoom(_)), "{large:?}");
    let snapshot = store.save_snapshot(reign, Index(1), vec![7; 100]).await.unwrap_err();
    assert!(matches!(snapshot, Error::NoRoom(_)), "{snapshot:?}");
    assert_whole(&store, last).await;
    assert_eq!(store.confirm(reign).await.unwrap(), Fenced::Held, "who reigns goes on reigning");

    let revision = client.delete("/other", None).await.unwrap().header().unwrap().revision();
    client.compact(revision, Some(etcd_client::CompactionOptions::new().with_physical())).await.unwrap();
    client.defragment().await.unwrap();
    let member = client.status().await.unwrap().header().unwrap().member_id();
    let mut options = etcd_client::AlarmOptions::new();
    options.with_member(member);
    let (off, nospace) = (etcd_client::AlarmAction::Deactivate, etcd_client::AlarmType::Nospace);
    client.alarm(off, nospace, Some(options)).await.unwrap();
    append_surely(&store, reign, last + 1).await;
    assert_whole(&store, last + 1).await;
}

#[tokio::test]
async fn what_etcd_says_after_it_has_written_is_looked_into() {
    let members = Members::start(1, &[]).await;
    let (store, reign) = reigning(&members, LONG).await;
    append_surely(&store, reign, 1).await;
    let shared = &store.inner.shared;
    let fence = store.fence(reign).unwrap();
    // It had no room, and wrote all the same: or it did not.
    assert_eq!(shared.settle(fence, Index(0), Index(1)).await.unwrap(), Appended::Done(Index(1)));
    assert!(matches!(shared.settle(fence, Index(1), Index(2)).await, Err(Trouble::NoRoom)));
    assert_eq!(
        shared.settle(Fence { lease: 0, ..fence }, Index(0), Index(1)).await.unwrap(),
        Appended::Deposed
    );
}

#[tokio::test]
async fn a_store_that_is_compacted_under_us_goes_on() {
    let members = Members::start(1, &[]).await;
    let (store, reign) = reigning(&members, LONG).await;
    let (standby, mut client) = (members.open(PREFIX).await.unwrap(), raw(&members).await);
    let (_, begun) = standby.inner.shared.head().await.unwrap();
    let mut watch = standby.watch(Index(1));
    for index in 1..=20 {
        append_surely(&store, reign, index).await;
        let revision = client.get("x", None).await.unwrap().header().unwrap().revision();
        client.compact(revision, None).await.unwrap();
        let entries = watch.next().await.unwrap();
        assert_eq!(entries.last().unwrap().index, Index(index));
    }
    // A watch that would go on from before is told, and begun again from what is there.
    timeout(LONG, standby.inner.shared.follow_head(begun)).await.unwrap().unwrap();
    timeout(LONG, standby.inner.shared.cluster.changed(&standby.inner.shared.keys.leader(), begun, LONG))
        .await
        .unwrap();
    assert_whole(&standby, 20).await;
}

#[tokio::test]
async fn our_own_use_does_not_fill_the_quota() {
    // Forty times what is kept goes through it, and nobody compacts but us.
    let members = Members::start(1, &["--quota-backend-bytes=16777216"]).await;
    let (store, reign) = reigning(&members, LONG).await;
    for round in 0..80 {
        let head = Index(round);
        let batch = vec![vec![b'x'; 400_000]];
        assert_eq!(store.append(reign, head, batch).await.unwrap(), Appended::Done(Index(round + 1)));
        store.save_snapshot(reign, Index(round + 1), vec![b's'; 400_000]).await.unwrap();
        assert_eq!(store.compact(reign, Index(round + 2)).await.unwrap(), Fenced::Held);
    }
    let keys = dump(&raw(&members).await).await;
    assert!(keys.iter().all(|(key, _)| !key.contains("/j/")), "{}", keys.len());
    assert_eq!(store.load_snapshot().await.unwrap().unwrap().index, Index(80));
}

#[tokio::test]
async fn who_was_deposed_without_noticing_changes_nothing() {
    let members = Members::start(1, &[]).await;
    let (old, first) = reigning(&members, LONG).await;
    append_surely(&old, first, 1).await;
    let client = raw(&members).await;
    client.lease_client().revoke(old.held(first).unwrap().lease()).await.unwrap();
    // Nobody reigns yet: it is over all the same.
    let before = dump(&client).await;
    assert_eq!(append_one(&old, first, 2).await.unwrap(), Appended::Deposed);
    let (new, second) = reigning(&members, LONG).await;
    assert!(second > first);
    append_surely(&new, second, 2).await;
    let before_late = dump(&client).await;
    let large = vec![vec![7; 3 << 20]];
    assert_eq!(old.append(first, Index(2), large).await.unwrap(), Appended::Deposed);
    assert_eq!(old.save_snapshot(first, Index(1), vec![7; 3 << 20]).await.unwrap(), Fenced::Deposed);
    assert_eq!(old.compact(first, Index(2)).await.unwrap(), Fenced::Deposed);
    assert_eq!(old.resign(first).await.unwrap(), Fenced::Deposed);
    assert_eq!(dump(&client).await, before_late);
    assert_ne!(before, before_late, "and a dump shows what has changed");
    old.ended(first).await;
}

/// Also where the reign ended after they had found it to hold: what they write then asks for it once more.
#[tokio::test]
async fn deletes_and_snapshots_of_a_fence_that_is_over_change_nothing() {
    let members = Members::start(1, &[]).await;
    let (old, first) = reigning(&members, LONG).await;
    for index in 1..=4 {
        append_surely(&old, first, index).await;
    }
    old.save_snapshot(first, Index(1), b"state".to_vec()).await.unwrap();
    let fence = old.fence(first).unwrap();
    let client = raw(&members).await;
    client.lease_client().revoke(old.held(first).unwrap().lease()).await.unwrap();
    let (new, second) = reigning(&members, LONG).await;
    append_surely(&new, second, 5).await;
    new.save_snapshot(second, Index(4), b"newer state".to_vec()).await.unwrap();
    let (shared, keys) = (&old.inner.shared, &old.inner.shared.keys);
    let now = new.fence(second).unwrap();
    let found = async || shared.snapshots(now).await.unwrap().unwrap();
    let before = dump(&client).await;
    let check = async |done: Result<Fenced, Trouble>, what: &str| {
        assert_eq!(done.unwrap(), Fenced::Deposed, "{what}");
        assert_eq!(dump(&client).await, before, "{what}");
    };
    check(shared.delete(fence, keys.batch(Index(0)), keys.batches_end()).await, "a delete").await;
    // Of several chunks, so that there is one to write before what makes them count; of none, so that there is not.
    let large = vec![7; 2 << 20];
    check(shared.save_after(found().await, fence, first, Index(5), &large).await, "a chunk").await;
    check(shared.save_after(found().await, fence, first, Index(5), &[]).await, "the snapshot that counts")
        .await;
    check(shared.compact_after(found().await, fence, Index(3)).await, "the floor").await;
    // The floor is where it belongs already, and what is below it was left there.
    let floor = [shared.put_number(keys.floor(), 3)].to_vec();
    assert_eq!(shared.fenced(now, ANSWER, floor).await.unwrap().0, Fenced::Held);
    let before = dump(&client).await;
    let done = shared.compact_after(found().await, fence, Index(3)).await.unwrap();
    assert_eq!((done, dump(&client).await), (Fenced::Deposed, before.clone()), "what is below the floor");
    // The same by who reigns is done.
    assert_eq!(shared.compact_after(found().await, now, Index(3)).await.unwrap(), Fenced::Held);
    assert_eq!(shared.save_after(found().await, now, second, Index(5), &large).await.unwrap(), Fenced::Held);
    assert_ne!(dump(&client).await, before);
}

#[tokio::test]
async fn large_payloads_come_back_whole() {
    let members = Members::start(1, &[]).await;
    let (store, reign) = reigning(&members, LONG).await;
    let sizes = [
        8 << 20,
        key::INLINE_BYTES_MAX - 4,
        key::INLINE_BYTES_MAX - 3,
        key::CHUNK_BYTES - 4,
        key::CHUNK_BYTES - 3,
    ];
    let payload = |size: usize| (0..size).map(|at| (at % 251) as u8).collect::<Vec<_>>();
    for (size, index) in sizes.into_iter().zip(0..) {
        let batch = vec![payload(size)];
        assert_eq!(store.append(reign, Index(index), batch).await.unwrap(), Appended::Done(Index(index + 1)));
    }
    let largest = lockstep_core::log::PAYLOAD_BYTES_MAX;
    let batch = vec![payload(10), payload(largest), payload(20)];
    assert_eq!(store.append(reign, Index(5), batch).await.unwrap(), Appended::Done(Index(8)));
    let mut next = Index(1);
    for size in sizes.into_iter().chain([10, largest, 20]) {
        let entries = store.read(next).await.unwrap();
        assert_eq!(entries[0].index, next);
        assert!(entries[0].payload == payload(size), "{size}");
        next = Index(next.0 + 1);
    }
    let state = payload(5 << 20);
    store.save_snapshot(reign, Index(7), state.clone()).await.unwrap();
    // etcd takes a request of 1.5 MiB, unless it is told otherwise.
    let stored = dump(&raw(&members).await).await;
    let too_large = stored.iter().find(|(_, value)| value.len() > 1 << 20);
    assert_eq!(too_large.map(|(key, value)| (key, value.len())), None);
    assert!(store.load_snapshot().await.unwrap().unwrap().bytes == state);
    store.compact(reign, Index(8)).await.unwrap();
    // The batch that has the eighth stays whole, with its chunks; all others are gone.
    let batches: Vec<_> =
        dump(&raw(&members).await).await.into_iter().filter(|(key, _)| key.contains("/j/")).collect();
    assert_eq!(batches.len(), 1);
    assert_eq!(store.read(Index(8)).await.unwrap()[0].payload.len(), 20);
    assert!(matches!(store.read(Index(5)).await, Err(Error::Compacted { floor: Index(6) })));
}

#[tokio::test]
async fn what_a_broken_off_write_leaves_is_cleared_away() {
    let members = Members::start(1, &[]).await;
    let (store, reign) = reigning(&members, LONG).await;
    append_surely(&store, reign, 1).await;
    store.save_snapshot(reign, Index(1), b"state".to_vec()).await.unwrap();
    let (shared, fence) = (&store.inner.shared, store.fence(reign).unwrap());
    // As far as a server came that was killed in an append, and in a snapshot.
    let left =
        [shared.keys.chunk(Index(2), 0), shared.keys.chunk(Index(2), 1), shared.keys.snapshot_chunk(2, 0)];
    for key in &left {
        shared.fenced(fence, ANSWER, vec![shared.put(key.clone(), vec![1; 100])]).await.unwrap();
    }
    store.resign(reign).await.unwrap();
    let client = raw(&members).await;
    let there = async || {
        let keys = dump(&client).await;
        left.iter().filter(|left| keys.iter().any(|(key, _)| key == *left)).count()
    };
    assert_eq!(there().await, 3);
    let reign = store.campaign(&candidate("b"), LONG).await.unwrap();
    assert_eq!(there().await, 1, "chunks behind the head go with the next campaign");
    assert_eq!(store.load_snapshot().await.unwrap().unwrap().bytes, b"state");
    store.save_snapshot(reign, Index(1), b"again".to_vec()).await.unwrap();
    assert_eq!(there().await, 1, "its name is in use again");
    assert_eq!(store.load_snapshot().await.unwrap().unwrap().bytes, b"again");
    let chunks = dump(&client).await.iter().filter(|(key, _)| key.contains("/snap/0")).count();
    assert_eq!(chunks, 1);
}

#[tokio::test]
async fn who_falls_silent_is_followed_and_leaves_no_lease() {
    let members = Members::start(1, &[]).await;
    let (old, first) = reigning(&members, SHORT).await;
    old.held(first).unwrap().fall_silent();
    let new = members.open(PREFIX).await.unwrap();
    let second = new.campaign(&candidate("b"), SHORT).await.unwrap();
    assert!(second > first);
    assert_eq!(old.confirm(first).await.unwrap(), Fenced::Deposed);
    // A campaign that is given up leaves nothing either, and a handle that goes gives its reign back.
    let waiting = timeout(Duration::from_millis(300), old.campaign(&candidate("a"), SHORT)).await;
    assert!(waiting.is_err());
    drop(new);
    drop(old);
    let client = raw(&members).await;
    let none = async || client.lease_client().leases().await.unwrap().leases().is_empty().then_some(());
    until("all leases are given back", none).await;
    assert_eq!(members.open(PREFIX).await.unwrap().leader().await.unwrap(), None);
}

#[tokio::test]
async fn a_reign_that_cannot_be_renewed_is_over_in_time() {
    let members = Members::start(1, &[]).await;
    let (store, reign) = reigning(&members, SHORT).await;
    // It outlasts its lease as long as that is renewed.
    assert!(timeout(2 * SHORT, store.ended(reign)).await.is_err());
    assert_eq!(store.confirm(reign).await.unwrap(), Fenced::Held);
    members.members[0].stop();
    let begun = std::time::Instant::now();
    store.ended(reign).await;
    assert!(begun.elapsed() < 2 * SHORT, "{:?}", begun.elapsed());
    members.members[0].go_on();
}

#[tokio::test]
async fn what_was_damaged_is_refused() {
    let members = Members::start(1, &[]).await;
    let (store, reign) = reigning(&members, LONG).await;
    append_surely(&store, reign, 1).await;
    store.append(reign, Index(1), vec![vec![7; 2 << 20]]).await.unwrap();
    store.save_snapshot(reign, Index(2), vec![7; 2 << 20]).await.unwrap();
    let client = raw(&members).await;
    let whole = dump(&client).await;
    let mut seen = 0;
    for (key, value) in &whole {
        let mut changed = value.clone();
        let middle = changed.len() / 2;
        changed[middle] ^= 1;
        for damaged in [Some(changed), None] {
            if key.ends_with("/leader") {
                continue;
            }
            match &damaged {
                Some(value) => drop(client.kv_client().put(key.as_str(), value.clone(), None).await.unwrap()),
                None => drop(client.kv_client().delete(key.as_str(), None).await.unwrap()),
            }
            let faults = [
                store.read(Index(1)).await.err(),
                store.read(Index(2)).await.err(),
                store.load_snapshot().await.err(),
                append_one(&store, reign, 3).await.err(),
                members.open(PREFIX).await.err(),
            ];
            // A missing floor, format or snapshot is as before the first; a missing reign is what the head says.
            let may_be_missing =
                ["/chain", "/format", "/reign", "/snap/current"].iter().any(|end| key.ends_with(end));
            if damaged.is_some() || !may_be_missing {
                let told = faults.iter().flatten().any(|error| matches!(error, Error::Damaged { .. }));
                assert!(told, "{key}: {faults:?}");
                seen += 1;
            }
            client.kv_client().put(key.as_str(), value.clone(), None).await.unwrap();
        }
    }
    assert!(seen >= 12, "{seen} of {} keys", whole.len());
    store.read(Index(2)).await.unwrap();
}

#[tokio::test]
async fn two_clusters_are_not_taken_for_one() {
    let (one, other) =
        (Members::start(1, &[]).await, Members::start(1, &["--initial-cluster-token=other"]).await);
    let both =
        format!("{},127.0.0.1:{}/{PREFIX}", one.address("").trim_end_matches('/'), other.ports[0].client);
    let store = Etcd::open(&both, &one.options).await.unwrap();
    let reign = store.campaign(&candidate("a"), LONG).await.unwrap();
    append_surely(&store, reign, 1).await;
    store.inner.shared.cluster.pass_over_current();
    let error = store.head().await.unwrap_err();
    assert!(matches!(error, Error::Unusable { .. }) && error.to_string().contains("cluster"), "{error}");
}

/// Both servers have read six entries when etcd is set back to three; a third server may then write other ones.
async fn set_back() -> (Members, [Etcd; 2], Reign) {
    let mut members = Members::start(1, &[]).await;
    let (store, reign) = reigning(&members, SHORT).await;
    let standby = members.open(PREFIX).await.unwrap();
    for index in 1..=3 {
        append_surely(&store, reign, index).await;
    }
    members.keep_copy();
    until("etcd is back", async || store.head().await.ok()).await;
    // By a reign that the copy does not know.
    let reign = store.campaign(&candidate("a"), SHORT).await.unwrap();
    for index in 4..=6 {
        append_surely(&store, reign, index).await;
    }
    assert_whole(&standby, 6).await;
    members.set_back();
    (members, [store, standby], reign)
}

fn assert_set_back(error: &Error) {
    let is_told =
        matches!(error, Error::Unusable { reason, .. } if reason.contains("etcd was set back to older data"));
    assert!(is_told, "{error}");
}

#[tokio::test]
async fn an_etcd_that_was_set_back_under_servers_is_not_followed() {
    let (_members, [store, standby], reign) = set_back().await;
    let refused = until("etcd is back", async || match standby.read(Index(7)).await {
        Err(Error::Unavailable { .. }) => None,
        other => Some(other.unwrap_err()),
    });
    assert_set_back(&refused.await);
    assert_set_back(&standby.campaign(&candidate("b"), SHORT).await.unwrap_err());
    assert_set_back(&append_one(&store, reign, 7).await.unwrap_err());
    assert_set_back(&store.confirm(reign).await.unwrap_err());
}

/// Its lease tells it from the reign that it was: etcd gives its revision to another one.
#[tokio::test]
async fn a_reign_of_a_lost_history_writes_nothing_into_the_one_that_took_its_place() {
    let mut members = Members::start(1, &[]).await;
    let (store, reign) = reigning(&members, SHORT).await;
    append_surely(&store, reign, 1).await;
    store.resign(reign).await.unwrap();
    members.keep_copy();
    let lost = until("etcd is back", async || members.open(PREFIX).await.ok()).await;
    let lost_reign = lost.campaign(&candidate("a"), LONG).await.unwrap();
    let fence = lost.fence(lost_reign).unwrap();
    members.set_back();
    let next = until("etcd is back", async || members.open(PREFIX).await.ok()).await;
    let reign = next.campaign(&candidate("b"), LONG).await.unwrap();
    assert_eq!((reign, next.fence(reign).unwrap().revision), (lost_reign, fence.revision));
    assert_eq!(append_one(&lost, lost_reign, 2).await.unwrap(), Appended::Deposed);
    assert_eq!(lost.confirm(lost_reign).await.unwrap(), Fenced::Deposed);
    append_surely(&next, reign, 2).await;
}

/// A server that has nothing to write hears of it all the same, long before its lease is over.
#[tokio::test]
async fn a_reign_whose_key_is_gone_is_over_at_once() {
    let members = Members::start(1, &[]).await;
    let (store, reign) = reigning(&members, LONG).await;
    raw(&members).await.kv_client().delete(format!("/{PREFIX}/leader"), None).await.unwrap();
    timeout(SHORT, store.ended(reign)).await.unwrap();
    assert_eq!(store.confirm(reign).await.unwrap(), Fenced::Deposed);
}

#[tokio::test]
async fn a_history_that_was_set_back_and_has_grown_past_what_was_read_is_recognised() {
    for grown in [5, 6, 9] {
        let (members, [store, standby], reign) = set_back().await;
        let third = until("etcd is back", async || members.open(PREFIX).await.ok()).await;
        let third_reign = third.campaign(&candidate("c"), SHORT).await.unwrap();
        // Others use it too: its revision says nothing any more.
        let client = raw(&members).await;
        for round in 0..40 {
            client.kv_client().put("/other", format!("{round}"), None).await.unwrap();
        }
        for index in 4..=grown {
            let other = vec![format!("other {index}").into_bytes()];
            third.append(third_reign, Index(index - 1), other).await.unwrap();
        }
        for ask in 0..2 {
            assert_set_back(&standby.read(Index(7)).await.expect_err(&format!("{grown}, {ask}")));
        }
        // So does who stands by without reading, unless the head is beyond what was read.
        if grown <= 6 {
            assert_set_back(&standby.campaign(&candidate("b"), SHORT).await.unwrap_err());
        }
        assert_eq!(append_one(&store, reign, 7).await.unwrap(), Appended::Deposed);
        assert_set_back(&store.read(Index(7)).await.unwrap_err());
        // Who comes new takes it as it is.
        let fourth = members.open(PREFIX).await.unwrap();
        assert_eq!(fourth.read(Index(4)).await.unwrap()[0].payload, b"other 4");
    }
}

/// A version that does not know the chain writes batches and leaves it where it is.
#[tokio::test]
async fn what_an_older_version_has_written_is_no_other_history() {
    let members = Members::start(1, &[]).await;
    let (store, reign) = reigning(&members, LONG).await;
    let client = raw(&members).await;
    let readers = [members.open(PREFIX).await.unwrap(), members.open(PREFIX).await.unwrap()];
    for index in 1..=2 {
        append_surely(&store, reign, index).await;
    }
    assert_whole(&readers[0], 2).await;
    let key = format!("/{PREFIX}/chain");
    let chain = client.kv_client().get(key.as_str(), None).await.unwrap().kvs()[0].value().to_vec();
    for index in 3..=4 {
        append_surely(&store, reign, index).await;
    }
    client.kv_client().put(key.as_str(), chain, None).await.unwrap();
    drop(store);
    // One that has read the entries between writes on, or one that has not.
    let (store, reign) = reigning(&members, LONG).await;
    for index in 5..=6 {
        append_surely(&store, reign, index).await;
    }
    for reader in readers {
        assert_whole(&reader, 6).await;
        assert_eq!(reader.head().await.unwrap(), Index(6));
    }
    assert_whole(&members.open(PREFIX).await.unwrap(), 6).await;
}

#[tokio::test]
async fn where_no_member_answers_each_ones_error_is_told() {
    let mut members = Members::start(1, &[]).await;
    members.members[0].kill();
    let port = members.ports[0].client;
    let address = format!("etcd://127.0.0.1:{port},no-such-host.invalid:1,127.0.0.1:1/{PREFIX}");
    let error = Etcd::open(&address, &EtcdOptions::default()).await.unwrap_err();
    assert!(matches!(error, Error::Unavailable { .. }), "{error:?}");
    let text = error.to_string();
    for member in [
        format!("http://127.0.0.1:{port}: "),
        "http://no-such-host.invalid:1: ".to_owned(),
        "http://127.0.0.1:1: ".to_owned(),
    ] {
        assert_eq!(text.matches(&member).count(), 1, "{member} in {text}");
    }
}

#[tokio::test]
async fn no_prefix_lies_within_another_ones() {
    let members = Members::start(1, &[]).await;
    let refused = async |prefix: &str, other: &str| {
        let error = members.open(prefix).await.unwrap_err();
        assert!(matches!(error, Error::Unusable { .. }), "{error:?}");
        let text = error.to_string();
        assert!(text.contains(&format!("/{prefix}/")) && text.contains(&format!("/{other}/")), "{text}");
    };
    let begin = async |prefix: &str| {
        let store = members.open(prefix).await.unwrap();
        let reign = store.campaign(&candidate("a"), LONG).await.unwrap();
        append_surely(&store, reign, 1).await;
    };
    for (outer, inner) in [("a", "a/b"), ("b", "b/j"), ("c", "c/c/x"), ("d", "d/snap/x/y"), ("e", "e/format")]
    {
        begin(outer).await;
        refused(inner, outer).await;
    }
    for (outer, inner) in
        [("f", "f/a"), ("g", "g/j"), ("h", "h/x/c"), ("i", "i/snap/x"), ("k", "k/x/y/z"), ("l", "l/j/7")]
    {
        begin(inner).await;
        refused(outer, inner).await;
        // One beside it is no other one's.
        begin(&format!("{outer}-2")).await;
    }
    begin("b-j").await;
    begin("f/b").await;
}

/// Also where both begin in the same instant.
#[tokio::test]
async fn of_a_prefix_and_one_within_it_that_begin_at_once_one_is_refused() {
    let members = Members::start(1, &[]).await;
    let begin = async |prefix: String| {
        let store = members.open(&prefix).await?;
        store.campaign(&candidate("a"), LONG).await.map(|reign| (store, reign))
    };
    for round in 0..8 {
        let (outer, inner) = (format!("r{round}"), format!("r{round}/in"));
        let both = tokio::join!(begin(outer.clone()), begin(inner.clone()));
        for refused in [&both.0, &both.1].into_iter().filter_map(|begun| begun.as_ref().err()) {
            assert!(refused.to_string().contains("of another cluster"), "{refused}");
        }
        assert!(both.0.is_err() || both.1.is_err(), "round {round}");
        // What was refused has left nothing that would be in the other one's way.
        drop(both);
        let client = raw(&members).await;
        let options = GetOptions::new().with_prefix().with_keys_only();
        let found = client.kv_client().get(format!("/{outer}/"), Some(options)).await.unwrap();
        let formats = found.kvs().iter().filter(|kv| kv.key().ends_with(b"/format")).count();
        assert!(formats <= 1, "{formats}");
    }
}

fn openssl(dir: &std::path::Path, command: &str) {
    let ended =
        std::process::Command::new("openssl").args(command.split(' ')).current_dir(dir).output().unwrap();
    assert!(ended.status.success(), "{}", String::from_utf8_lossy(&ended.stderr));
}

/// A certificate authority with a certificate for etcd and one for us.
fn certificates(dir: &std::path::Path) -> EtcdOptions {
    let request = "req -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2";
    openssl(dir, &format!("{request} -x509 -subj /CN=authority -keyout ca.key -out ca.pem"));
    for (name, usage) in [("etcd", "serverAuth,clientAuth"), ("us", "clientAuth")] {
        std::fs::write(
            dir.join(format!("{name}.ext")),
            format!("subjectAltName=IP:127.0.0.1,DNS:localhost\nextendedKeyUsage={usage}\nbasicConstraints=CA:FALSE\n"),
        )
        .unwrap();
        openssl(
            dir,
            &format!(
                "{} -subj /CN={name} -keyout {name}.key -out {name}.csr",
                request.replace(" -days 2", "")
            ),
        );
        let sign = "x509 -req -days 2 -CA ca.pem -CAkey ca.key -CAcreateserial";
        openssl(dir, &format!("{sign} -in {name}.csr -extfile {name}.ext -out {name}.pem"));
    }
    EtcdOptions {
        etcd_ca: Some(dir.join("ca.pem")),
        etcd_cert: Some(dir.join("us.pem")),
        etcd_key: Some(dir.join("us.key")),
        ..EtcdOptions::default()
    }
}

#[tokio::test]
async fn certificates_are_shown_and_checked() {
    let dir = tempfile::tempdir().unwrap();
    let options = certificates(dir.path());
    let flag = |name: &str, file: &str| format!("--{name}={}", dir.path().join(file).display());
    let flags = [
        flag("cert-file", "etcd.pem"),
        flag("key-file", "etcd.key"),
        flag("trusted-ca-file", "ca.pem"),
        "--client-cert-auth".to_owned(),
    ];
    let flags: Vec<&str> = flags.iter().map(String::as_str).collect();
    let members = Members::start_with(1, &flags, "https", options.clone()).await;
    let (store, reign) = reigning(&members, LONG).await;
    append_surely(&store, reign, 1).await;
    let mut heads = store.heads();
    heads.wait_for(|head| *head == Index(1)).await.unwrap();

    // Without a certificate, with an authority that is another one, and plain.
    let address = members.address(PREFIX);
    let none = EtcdOptions { etcd_cert: None, etcd_key: None, ..options.clone() };
    let other = tempfile::tempdir().unwrap();
    let stranger = EtcdOptions { etcd_ca: certificates(other.path()).etcd_ca, ..options.clone() };
    // What is to be done is said.
    let plain = Members::start(1, &[]).await;
    let not_plain = plain.address(PREFIX).replace("etcd:", "etcds:");
    for (address, options, advice) in [
        (address.clone(), none.clone(), "name one with --etcd-cert and --etcd-key"),
        (address.clone(), stranger, "is not signed with the one in --etcd-ca"),
        (
            address.replace("etcds:", "etcd:"),
            EtcdOptions::default(),
            "does it want TLS? then --store etcds://",
        ),
        (not_plain, none, "does etcd want none? then --store etcd://"),
    ] {
        let error = Etcd::open(&address, &options).await.unwrap_err();
        assert!(matches!(error, Error::Unavailable { .. }), "{error}");
        assert!(error.to_string().contains(advice), "{error}");
    }
    // That stays so.
    let torn = EtcdOptions { etcd_key: Some(other.path().join("us.key")), ..options };
    let error = Etcd::open(&address, &torn).await.unwrap_err();
    assert!(matches!(error, Error::Unusable { .. }), "{error}");
    assert!(error.to_string().contains("the key is that certificate's"), "{error}");
}

#[tokio::test]
async fn users_need_their_password_and_rights_to_the_prefix() {
    let members = Members::start(1, &[]).await;
    let client = raw(&members).await;
    let mut auth = client.auth_client();
    for (user, password) in [("root", "top"), ("lockstep", "secret")] {
        auth.user_add(user, password, None).await.unwrap();
        auth.role_add(user).await.unwrap();
        auth.user_grant_role(user, user).await.unwrap();
    }
    let rights = etcd_client::Permission::read_write(format!("/{PREFIX}/")).with_prefix();
    auth.role_grant_permission("lockstep", rights).await.unwrap();
    auth.auth_enable().await.unwrap();

    let files = tempfile::tempdir().unwrap();
    let options = |user: &str, password: &str| {
        let file = files.path().join(user);
        std::fs::write(&file, password).unwrap();
        EtcdOptions {
            etcd_user: Some(user.to_owned()),
            etcd_password_file: Some(file),
            ..EtcdOptions::default()
        }
    };
    let (address, ours) = (members.address(PREFIX), options("lockstep", "secret\n"));
    let store = Etcd::open(&address, &ours).await.unwrap();
    let reign = store.campaign(&candidate("a"), SHORT).await.unwrap();
    append_surely(&store, reign, 1).await;
    store.append(reign, Index(1), vec![vec![7; 2 << 20]]).await.unwrap();
    for _ in 0..2 {
        store.save_snapshot(reign, Index(2), b"state".to_vec()).await.unwrap();
        assert_eq!(store.compact(reign, Index(3)).await.unwrap(), Fenced::Held);
    }
    store.heads().wait_for(|head| *head == Index(2)).await.unwrap();
    // Its lease is renewed under its token.
    assert!(timeout(2 * SHORT, store.ended(reign)).await.is_err());

    let denied = async |address: &str, options: &EtcdOptions| {
        let error = Etcd::open(address, options).await.unwrap_err();
        assert!(matches!(error, Error::Unusable { .. }), "{error:?}");
        error.to_string()
    };
    assert!(denied(&address, &EtcdOptions::default()).await.contains("user name is empty"));
    assert!(denied(&address, &options("stranger", "x")).await.contains("authentication failed"));
    assert!(denied(&members.address("other"), &ours).await.contains("permission denied"));

    // Rights change under a server that runs: a token of before is given up for a new one.
    let root = etcd_client::ConnectOptions::new().with_user("root", "top");
    let url = format!("127.0.0.1:{}", members.ports[0].client);
    let root = etcd_client::Client::connect([url], Some(root)).await.unwrap();
    root.auth_client().role_add("more").await.unwrap();
    append_surely(&store, reign, 3).await;
    assert_eq!(store.confirm(reign).await.unwrap(), Fenced::Held);
    root.auth_client()
        .role_revoke_permission(
            "lockstep",
            format!("/{PREFIX}/"),
            Some(etcd_client::RoleRevokePermissionOptions::new().with_prefix()),
        )
        .await
        .unwrap();
    let error = until("the right is gone", async || append_one(&store, reign, 4).await.err()).await;
    assert!(matches!(error, Error::Unusable { .. }), "{error:?}");
    let told =
        format!("it took no write of /{PREFIX}/j/00000000000000000004, /{PREFIX}/head and /{PREFIX}/chain: ");
    assert!(error.to_string().contains(&format!("{told}etcdserver: permission denied")), "{error}");
}

#[tokio::test]
async fn a_request_that_is_too_large_for_etcd_is_refused_for_good() {
    let members = Members::start(1, &["--max-request-bytes=2000"]).await;
    let (store, reign) = reigning(&members, LONG).await;
    append_surely(&store, reign, 1).await;
    // Also what is too large for etcd to be read at all.
    for size in [3000, 500_000, 900_000] {
        let error = store.append(reign, Index(1), vec![vec![7; size]]).await.unwrap_err();
        assert!(matches!(error, Error::Unusable { .. }), "{size}: {error:?}");
        let text = error.to_string();
        assert!(text.contains("--max-request-bytes") && text.contains("/j/"), "{text}");
    }
    append_surely(&store, reign, 2).await;
}

/// Not a check: an append beside a bare put, in the same run. `cargo nextest run --release --run-ignored only`.
#[tokio::test]
#[ignore = "it measures"]
async fn measure_an_append_beside_a_put() {
    const COUNT: u64 = 1000;
    let members = Members::start(1, &[]).await;
    let (store, reign) = reigning(&members, LONG).await;
    let client = raw(&members).await;
    let (mut puts, mut appends) = (Vec::new(), Vec::new());
    for index in 0..COUNT {
        let value = vec![b'x'; 300];
        let begun = std::time::Instant::now();
        client.kv_client().put("/bare", value.clone(), None).await.unwrap();
        puts.push(begun.elapsed());
        let begun = std::time::Instant::now();
        assert_eq!(
            store.append(reign, Index(index), vec![value]).await.unwrap(),
            Appended::Done(Index(index + 1))
        );
        appends.push(begun.elapsed());
    }
    for (what, times) in [("put", &mut puts), ("append", &mut appends)] {
        times.sort();
        let at = |part: f64| times[(times.len() as f64 * part) as usize];
        println!("{what}: median {:?}, 99 % {:?}", at(0.5), at(0.99));
    }
}

/// Not a check: how long a write takes that is sent right after etcd's leader was killed.
#[tokio::test]
#[ignore = "it measures"]
async fn measure_a_write_through_the_loss_of_the_leader() {
    let mut members = Members::start(3, &[]).await;
    let (store, reign) = reigning(&members, LONG).await;
    let mut times = Vec::new();
    for index in 1..=10 {
        let leader = leader_of(&members).await;
        // A follower is asked first: it does not know yet that its leader is gone.
        store.inner.shared.cluster.ask_first((leader + 1) % 3);
        append_surely(&store, reign, 2 * index - 1).await;
        members.members[leader].kill();
        let begun = std::time::Instant::now();
        append_surely(&store, reign, 2 * index).await;
        times.push(begun.elapsed());
        members.members[leader].restart();
        until("all are back", async || {
            let at = members.address_of(&[leader], PREFIX);
            Etcd::open(&at, &EtcdOptions::default()).await.ok()
        })
        .await;
    }
    times.sort();
    println!("from {:?} to {:?}, median {:?}", times[0], times[9], times[5]);
}
