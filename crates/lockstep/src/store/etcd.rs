//! The store in etcd: the decider that survives the loss of servers, and of a minority of etcd's members.
//!
//! One server reigns: whose lease the key `leader` hangs on. The revision of that key's modification is the fence:
//! every write is one transaction that asks for it, so a server that was deposed without noticing writes nothing.
//! Leases only decide who may try; nothing is safe because of a lease or a clock. An append is one transaction, and
//! with it one round trip. What does not fit into one request is written in chunks first, fenced each, and counts
//! when the last transaction names it.
//!
//! Values carry checksums ([`key`]), and reads are linearizable but for [`Store::heads`], which only wakes readers.
//!
//! etcd keeps what keys were until somebody lets it forget, and refuses writes when its quota is full of that. So each
//! compaction of the journal also lets etcd forget what was before the compaction before it: what is kept is bounded
//! by two spans between snapshots, whether or not etcd compacts by itself, and a watch that lags by less than one goes
//! on without reading again.

mod address;
mod client;
mod history;
mod import;
mod key;
mod neighbour;
mod reign;
mod silence;
mod snapshot;
mod version;

use super::{Appended, Candidate, Entry, Error, Fenced, Leader, READ_BYTES_MAX, Silence, Snapshot, Store};
use crate::cli::option::EtcdOptions;
use address::Address;
use client::{ANSWER, Answer, BROKEN_PAUSE, BULK_ANSWER, Cluster, Trouble, get, only, range};
use etcd_client::{
    Compare, CompareOp, DeleteOptions, EventType, GetOptions, KeyValue, SortOrder, SortTarget, Txn, TxnOp,
};
use history::{Chain, Said};
pub(in crate::store) use import::Import;
use key::{Batch, CHUNK_BYTES, FORMAT, Keys, StoredLeader, damaged};
use lockstep_core::id::{Index, Reign};
use reign::Held;
use std::sync::atomic::{AtomicI64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::sync::{Notify, watch};
use tokio::task::JoinHandle;
use tokio::time::{sleep, timeout};
use tracing::{debug, warn};

/// How many batches one page of a read asks for at first, and at most. The size of those that came says how many the
/// next one asks for.
const PAGE_LEN: (i64, i64) = (16, 64);
/// How many keys one transaction deletes at most: etcd does nothing else meanwhile.
const DELETE_LEN: i64 = 256;
/// How often the head is read where no change of it is told: a watch may hang without breaking.
const HEAD_POLL: Duration = Duration::from_secs(5);
/// How often what is read in several requests is read again because it was compacted or replaced in between.
const TRIES_MAX: usize = 3;

/// The store in etcd. A handle is cheap to clone; the last one that goes gives its reign up.
#[derive(Debug, Clone)]
pub struct Etcd {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    shared: Arc<Shared>,
    /// The reign that this handle campaigned for last.
    held: Mutex<Option<Arc<Held>>>,
    /// One snapshot is saved, or one compaction done, at a time.
    saving: tokio::sync::Mutex<()>,
    follow: JoinHandle<()>,
}

impl Drop for Inner {
    fn drop(&mut self) {
        self.follow.abort();
    }
}

/// What background tasks need too.
#[derive(Debug)]
struct Shared {
    cluster: Cluster,
    keys: Keys,
    heads: watch::Sender<Index>,
    /// How many batches the next page of a read asks for.
    page_len: AtomicI64,
    /// What was seen of the journal's history, if that has a chain.
    seen: Mutex<Option<Chain>>,
}

/// What the prefix says of itself, at one revision.
struct State {
    revision: i64,
    leader: Option<Reigning>,
    /// The last reign that was given, and the revision of that.
    reign: (Reign, i64),
    /// `None` before the first campaign.
    head: Option<Index>,
    is_migrating: bool,
    /// Where a migration has taken it.
    migrated: Option<String>,
}

/// Who reigns, with the key's particulars.
struct Reigning {
    leader: Leader,
    fence: Fence,
}

/// What tells one reign from all others: the revision of its `leader`, and the lease of that. An etcd that was set back
/// gives out a revision again, but no lease.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Fence {
    revision: i64,
    lease: i64,
}

impl Fence {
    fn of(leader: &KeyValue) -> Self {
        Fence { revision: leader.mod_revision(), lease: leader.lease() }
    }
}

/// What a campaign is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Purpose {
    Serve,
    /// Into a prefix that is marked for it.
    Migrate,
}

impl Etcd {
    /// Whether this build has the store.
    pub const IS_BUILT: bool = true;

    /// Opens the store at an address such as `etcd://a:2379,b:2379,c:2379/prefix`. It makes nothing: the first
    /// campaign does.
    ///
    /// Errors: [`Error::Unusable`], [`Error::Unavailable`], [`Error::Damaged`].
    pub async fn open(address: &str, options: &EtcdOptions) -> Result<Self, Error> {
        let store = Self::at(address, options)?;
        store.inner.shared.check_neighbours().await?;
        store.inner.shared.state().await?.check(address, Purpose::Serve)?;
        Ok(store)
    }

    /// The same, whether or not etcd answers, and whatever is there: who campaigns or reads finds that out.
    ///
    /// Errors: [`Error::Unusable`], by what is known without etcd.
    pub fn at(address: &str, options: &EtcdOptions) -> Result<Self, Error> {
        let parsed = Address::parse(address)?;
        let shared = Arc::new(Shared {
            cluster: Cluster::new(address, &parsed, options)?,
            keys: Keys::new(&parsed.prefix),
            heads: watch::Sender::new(Index(0)),
            page_len: AtomicI64::new(PAGE_LEN.0),
            seen: Mutex::default(),
        });
        let follow = tokio::spawn(follow(shared.clone()));
        let inner = Inner { shared, held: Mutex::default(), saving: tokio::sync::Mutex::default(), follow };
        Ok(Etcd { inner: Arc::new(inner) })
    }

    /// Where the journal is, the prefix included that it has unless one is given.
    #[must_use]
    pub fn place(&self) -> String {
        let Shared { cluster, keys, .. } = &*self.inner.shared;
        format!("{} under {}", cluster.urls().collect::<Vec<_>>().join(","), keys.all())
    }

    /// Ends a reign for good: the journal is at another place from now on, and no server begins here.
    pub(super) async fn retire(&self, reign: Reign, to: &str) -> Result<Fenced, Error> {
        let shared = &self.inner.shared;
        let key = shared.keys.migrated();
        let mark = TxnOp::put(key.as_str(), shared.keys.json(&key, &to), None);
        self.resign_with(reign, vec![mark]).await
    }

    async fn resign_with(&self, reign: Reign, mut ops: Vec<TxnOp>) -> Result<Fenced, Error> {
        let Some(held) = self.held(reign) else { return Ok(Fenced::Deposed) };
        let shared = &self.inner.shared;
        ops.push(TxnOp::delete(shared.keys.leader(), None));
        let (fenced, _) = shared
            .fenced(held.fence, ANSWER, ops)
            .await
            .map_err(|trouble| shared.cluster.error("end the reign", trouble))?;
        // Its lease goes with it, in the background.
        self.lock_held().take_if(|held| held.reign == reign);
        Ok(fenced)
    }

    /// What fences `reign`, if this handle holds it.
    fn fence(&self, reign: Reign) -> Option<Fence> {
        self.held(reign).map(|held| held.fence)
    }

    fn held(&self, reign: Reign) -> Option<Arc<Held>> {
        self.lock_held().clone().filter(|held| held.reign == reign)
    }

    fn lock_held(&self) -> std::sync::MutexGuard<'_, Option<Arc<Held>>> {
        // Nothing under this lock can panic half-way.
        self.inner.held.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    /// Refuses what a migration has taken elsewhere, and what one has not finished.
    fn check(&self, place: &str, purpose: Purpose) -> Result<(), Error> {
        if let Some(to) = &self.migrated {
            return Err(Error::migrated(place, to));
        }
        if !self.is_migrating || purpose == Purpose::Migrate {
            return Ok(());
        }
        Err(Error::Unusable {
            place: place.to_owned(),
            reason: "a migration into it has not finished".to_owned(),
            help: "wait for it; if it broke off, delete the keys under the prefix and migrate again",
        })
    }
}

impl Shared {
    fn tell(&self, head: Index) {
        self.heads.send_if_modified(|told| std::mem::replace(told, head.max(*told)) < head);
    }

    /// The head, 0 before the first campaign, and the revision that it was read at.
    async fn head(&self) -> Result<(Index, i64), Error> {
        let known = self.known();
        let gets = [self.keys.head(), self.keys.chain()].map(get).to_vec();
        let answer = self.cluster.read("read its head", gets).await?;
        let head = self.head_of(known, &answer, 0)?.unwrap_or(Index(0));
        Ok((head, answer.revision))
    }

    /// The highest head that is known.
    fn known(&self) -> Index {
        *self.heads.borrow()
    }

    /// The head, in an answer that has it and the chain at `at`, unless it is of another history than what was seen.
    fn head_of(&self, known: Index, answer: &Answer, at: usize) -> Result<Option<Index>, Error> {
        let head = only(answer.found(at)).map(|found| self.number(found)).transpose()?.map(Index);
        let stored = self.chain_of(answer, at + 1)?;
        self.check(Said { known, head: head.unwrap_or(Index(0)), floor: Index(0), stored }, &[])?;
        Ok(head)
    }

    fn number(&self, found: &KeyValue) -> Result<u64, Error> {
        self.keys.read_number(found.key(), found.value())
    }

    async fn state(&self) -> Result<State, Error> {
        let keys = &self.keys;
        let gets = [
            keys.leader(),
            keys.reign(),
            keys.format(),
            keys.migrating(),
            keys.migrated(),
            keys.head(),
            keys.chain(),
        ];
        let known = self.known();
        let answer = self.cluster.read("say who reigns", gets.map(get).to_vec()).await?;
        let leader = only(answer.found(0)).map(|found| self.reigning(found)).transpose()?;
        let reign = match only(answer.found(1)) {
            Some(found) => (Reign(self.number(found)?), found.mod_revision()),
            None => (Reign(0), 0),
        };
        let head = self.head_of(known, &answer, 5)?;
        if let Some(found) = only(answer.found(2)) {
            let format = self.number(found)?;
            if format > FORMAT {
                return Err(Error::Unusable {
                    place: String::from_utf8_lossy(found.key()).into_owned(),
                    reason: format!("it has format {format}, this program knows {FORMAT}"),
                    help: "run the version that wrote it, or a later one",
                });
            }
        }
        // Without it a journal would be begun over the one that is there.
        if head.is_none() && reign.0 > Reign(0) {
            return Err(damaged(keys.head().as_bytes(), "it is missing"));
        }
        let is_migrating = only(answer.found(3)).is_some();
        let migrated = only(answer.found(4)).map(|found| self.keys.read_json(found.key(), found.value()));
        let migrated = migrated.transpose()?;
        Ok(State { revision: answer.revision, leader, reign, head, is_migrating, migrated })
    }

    fn reigning(&self, found: &KeyValue) -> Result<Reigning, Error> {
        let stored: StoredLeader = self.keys.read_json(found.key(), found.value())?;
        Ok(Reigning { leader: stored.into(), fence: Fence::of(found) })
    }

    /// The conditions that a reign holds.
    fn holds(&self, fence: Fence) -> Vec<Compare> {
        let key = self.keys.leader();
        vec![
            Compare::mod_revision(key.clone(), CompareOp::Equal, fence.revision),
            Compare::lease(key, CompareOp::Equal, fence.lease),
        ]
    }

    /// Does `ops` if the reign holds.
    async fn fenced(
        &self,
        fence: Fence,
        limit: Duration,
        ops: Vec<TxnOp>,
    ) -> Result<(Fenced, Answer), Trouble> {
        let answer = self.cluster.txn(limit, Txn::new().when(self.holds(fence)).and_then(ops)).await?;
        Ok((if answer.is_done { Fenced::Held } else { Fenced::Deposed }, answer))
    }

    fn put(&self, key: String, body: Vec<u8>) -> TxnOp {
        let value = self.keys.seal(&key, body);
        TxnOp::put(key, value, None)
    }

    fn put_number(&self, key: String, number: u64) -> TxnOp {
        let value = self.keys.number(&key, number);
        TxnOp::put(key, value, None)
    }

    /// Deletes all keys of a range, so many at a time.
    async fn delete(&self, fence: Fence, from: String, to: String) -> Result<Fenced, Trouble> {
        let doing = "delete what is not needed any more";
        loop {
            let options = GetOptions::new().with_keys_only().with_limit(DELETE_LEN);
            let answer = self.cluster.read(doing, vec![range(from.clone(), to.clone(), options)]).await?;
            let Some(last) = answer.found(0).last() else { return Ok(Fenced::Held) };
            // The key that comes next to it.
            let end = [last.key(), b"\0"].concat();
            let delete = TxnOp::delete(from.clone(), Some(DeleteOptions::new().with_range(end)));
            if self.fenced(fence, BULK_ANSWER, vec![delete]).await?.0 == Fenced::Deposed {
                return Ok(Fenced::Deposed);
            }
        }
    }

    /// Appends entries of reign `stamp`, fenced by another one's.
    async fn append(
        &self,
        fence: Fence,
        stamp: Reign,
        expected: Index,
        payloads: &[Vec<u8>],
    ) -> Result<Appended, Trouble> {
        assert!(!payloads.is_empty(), "a batch has at least one payload");
        let keys = &self.keys;
        let refused = |error| Trouble::Known(Error::Refused(error));
        let first = Index(expected.0.saturating_add(1));
        let Some(last) = expected.0.checked_add(payloads.len() as u64).filter(|last| *last < u64::MAX) else {
            // No head is that high. What it is, and whether the reign holds, is to be said all the same.
            let known = self.known();
            let answer = self.cluster.read("append", self.refused_by()).await?;
            return self.refusal(fence, known, &answer);
        };
        let last = Index(last);
        let (batch, body) = Batch::new(stamp, first, payloads).map_err(refused)?;
        for (number, chunk) in body.chunks(CHUNK_BYTES).take(batch.chunks as usize).enumerate() {
            let put = self.put(keys.chunk(first, number), chunk.to_vec());
            if self.fenced(fence, BULK_ANSWER, vec![put]).await?.0 == Fenced::Deposed {
                return Ok(Appended::Deposed);
            }
        }
        let chain = self.chain(expected).await?.with(&batch);
        let (head, known) = (keys.head(), self.known());
        let is_expected = Compare::value(head.clone(), CompareOp::Equal, keys.number(&head, expected.0));
        let chained = keys.json(&keys.chain(), &chain);
        let puts = [
            self.put(keys.batch(first), batch.encode(&body)),
            self.put_number(head, last.0),
            TxnOp::put(keys.chain(), chained, None),
        ];
        let mut holds = self.holds(fence);
        holds.push(is_expected);
        let txn = Txn::new().when(holds).and_then(puts).or_else(self.refused_by());
        let appended = match self.cluster.txn_tried(txn).await {
            Ok((answer, _)) if answer.is_done => Appended::Done(last),
            Ok((answer, is_doubted)) => match self.refusal(fence, known, &answer)? {
                // A try that was not answered is there: the reign holds, and nobody else writes under it.
                Appended::Conflict(head) if is_doubted && head == last => Appended::Done(last),
                refused => refused,
            },
            Err(Trouble::NoRoom) => self.settle(fence, expected, last).await?,
            Err(trouble) => return Err(trouble),
        };
        if appended == Appended::Done(last) {
            self.wrote(chain);
            self.tell(last);
        }
        Ok(appended)
    }

    /// What to read where an append's conditions do not hold.
    fn refused_by(&self) -> Vec<TxnOp> {
        [self.keys.leader(), self.keys.head(), self.keys.chain()].map(get).to_vec()
    }

    /// Why an append's conditions did not hold.
    fn refusal(&self, fence: Fence, known: Index, answer: &Answer) -> Result<Appended, Trouble> {
        if only(answer.found(0)).is_none_or(|found| Fence::of(found) != fence) {
            return Ok(Appended::Deposed);
        }
        let head = self.head_of(known, answer, 1)?;
        Ok(Appended::Conflict(head.ok_or_else(|| damaged(self.keys.head().as_bytes(), "it is missing"))?))
    }

    /// What became of an append that etcd had no room for. It is decided by now, since etcd says so before it hands a
    /// request to its members or after they have carried it out.
    async fn settle(&self, fence: Fence, expected: Index, last: Index) -> Result<Appended, Trouble> {
        let known = self.known();
        let answer = self.cluster.txn(ANSWER, Txn::new().and_then(self.refused_by())).await?;
        match self.refusal(fence, known, &answer)? {
            Appended::Conflict(head) if head == last => Ok(Appended::Done(last)),
            Appended::Conflict(head) if head == expected => Err(Trouble::NoRoom),
            other => Ok(other),
        }
    }

    /// One page of entries, or `None` when chunks went away between two requests.
    async fn page(&self, from: Index) -> Result<Option<Vec<Entry>>, Error> {
        const DOING: &str = "read its journal";
        let keys = &self.keys;
        let behind = keys.batch(Index(from.0.saturating_add(1)));
        let up_to = GetOptions::new().with_sort(SortTarget::Key, SortOrder::Descend).with_limit(1);
        let rest = GetOptions::new().with_limit(self.page_len.load(Ordering::Relaxed));
        let gets = vec![
            get(keys.head()),
            get(keys.floor()),
            range(keys.batch(Index(0)), behind.clone(), up_to),
            range(behind, keys.batches_end(), rest),
            get(keys.chain()),
        ];
        let known = self.known();
        let answer = self.cluster.read(DOING, gets).await?;
        let head = only(answer.found(0)).map(|found| self.number(found)).transpose()?.unwrap_or(0);
        let floor = only(answer.found(1)).map(|found| self.number(found)).transpose()?.unwrap_or(1);
        let stored = self.chain_of(&answer, 4)?;
        let said = Said { known, head: Index(head), floor: Index(floor), stored };
        if from.0 > head {
            self.check(said, &[])?;
            return Ok(Some(Vec::new()));
        }
        if from.0 < floor {
            return Err(Error::Compacted { floor: Index(floor) });
        }
        let found: Vec<&KeyValue> = answer.found(2).iter().chain(answer.found(3)).collect();
        self.adapt(&found);
        let mut entries: Vec<Entry> = Vec::new();
        let (mut batches, mut bytes) = (Vec::new(), 0);
        for found in found {
            let next = entries.last().map_or(from, |entry| Index(entry.index.0 + 1));
            let (batch, inline) = Batch::decode(found.key(), keys.open(found.key(), found.value())?)?;
            // A page begins in the middle of a batch where its reader wants that, and has no gap.
            let is_next = if entries.is_empty() { batch.first <= next } else { batch.first == next };
            if found.key() != keys.batch(batch.first).as_bytes() || !is_next || batch.last() < next {
                return Err(damaged(found.key(), "entries before it are missing"));
            }
            let read = if batch.chunks == 0 {
                batch.entries(found.key(), inline)?
            } else if entries.is_empty() {
                let Some(body) = self.chunks(&batch).await? else { return Ok(None) };
                batch.entries(found.key(), &body)?
            } else {
                break;
            };
            batches.push(batch);
            let read = read.into_iter().filter(|entry| entry.index >= from);
            entries.extend(read.inspect(|entry| bytes += entry.payload.len()));
            if bytes >= READ_BYTES_MAX {
                break;
            }
        }
        if entries.is_empty() {
            return Err(damaged(keys.batch(from).as_bytes(), "the entry is missing"));
        }
        self.check(said, &batches)?;
        Ok(Some(entries))
    }

    /// Asks for as many batches next time as fill a page by the size of these.
    fn adapt(&self, found: &[&KeyValue]) {
        let bytes: usize = found.iter().map(|found| found.value().len()).sum();
        let mean = bytes.checked_div(found.len()).unwrap_or(READ_BYTES_MAX).max(1);
        let len = i64::try_from(READ_BYTES_MAX / mean).unwrap_or(i64::MAX);
        self.page_len.store(len.clamp(PAGE_LEN.0, PAGE_LEN.1), Ordering::Relaxed);
    }

    /// The payloads of a batch that has them in chunks, or `None` when one is not there.
    async fn chunks(&self, batch: &Batch) -> Result<Option<Vec<u8>>, Error> {
        let mut body = Vec::new();
        for number in 0..batch.chunks as usize {
            let key = self.keys.chunk(batch.first, number);
            let answer = self.cluster.read("read its journal", vec![get(key)]).await?;
            let Some(found) = only(answer.found(0)) else { return Ok(None) };
            body.extend(self.keys.open(found.key(), found.value())?);
        }
        Ok(Some(body))
    }

    /// Follows the head from `revision` on until the watch on it ends, or hangs.
    async fn follow_head(&self, revision: i64) -> Result<(), Trouble> {
        let mut stream = self.cluster.watch(&self.keys.head(), revision).await?;
        loop {
            let said = match timeout(HEAD_POLL, stream.message()).await {
                Ok(Ok(Some(said))) if !said.canceled() => said,
                // It may have been compacted away, or the user may read it no more.
                Ok(Ok(_)) => return Ok(()),
                Ok(Err(error)) => return Err(Trouble::InDoubt(error.to_string())),
                Err(_) => {
                    let (head, _) = self.head().await?;
                    if head > *self.heads.borrow() {
                        return Err(Trouble::InDoubt("its watch tells nothing".to_owned()));
                    }
                    continue;
                }
            };
            for event in said.events() {
                match (event.event_type(), event.kv()) {
                    (EventType::Put, Some(found)) => self.tell(Index(self.number(found)?)),
                    (EventType::Put | EventType::Delete, _) => return Ok(()),
                }
            }
        }
    }
}

/// Follows the head for [`Store::heads`], and warns of versions.
async fn follow(shared: Arc<Shared>) {
    let begun = Notify::new();
    tokio::join!(follow_heads(&shared, &begun), warn_of_versions(&shared, &begun));
}

/// Follows the head, and begins again whenever that breaks off.
async fn follow_heads(shared: &Shared, begun: &Notify) {
    loop {
        // While it cannot be read, readers are not woken; who reads is told why.
        if let Ok((head, revision)) = shared.head().await {
            shared.tell(head);
            begun.notify_one();
            if let Err(trouble) = shared.follow_head(revision).await {
                debug!(?trouble, "the watch on etcd broke off; beginning it again");
            }
        }
        sleep(BROKEN_PAUSE).await;
    }
}

/// Warns of versions with a known error, at first and after each watch that broke off: a member that was started again may
/// have another one.
async fn warn_of_versions(shared: &Shared, begun: &Notify) {
    let mut told = version::Told::default();
    loop {
        begun.notified().await;
        for version::Warning { member, version, why } in told.warnings(shared.cluster.versions().await) {
            warn!(member, version, "{why}; {}", version::ADVICE);
        }
    }
}

impl Store for Etcd {
    async fn campaign(&self, candidate: &Candidate, ttl: Duration) -> Result<Reign, Error> {
        self.reign_for(candidate, ttl, Purpose::Serve).await
    }

    async fn resign(&self, reign: Reign) -> Result<Fenced, Error> {
        self.resign_with(reign, Vec::new()).await
    }

    async fn ended(&self, reign: Reign) {
        if let Some(held) = self.held(reign) {
            let mut over = held.over.clone();
            drop(held);
            // An error says that the reign was given up.
            let _ = over.wait_for(|is_over| *is_over).await;
        }
    }

    async fn leader(&self) -> Result<Option<Leader>, Error> {
        let shared = &self.inner.shared;
        let answer = shared.cluster.read("say who reigns", vec![get(shared.keys.leader())]).await?;
        let found = only(answer.found(0)).map(|found| shared.reigning(found)).transpose()?;
        Ok(found.map(|reigning| reigning.leader))
    }

    async fn append(&self, reign: Reign, expected: Index, batch: Vec<Vec<u8>>) -> Result<Appended, Error> {
        let Some(fence) = self.fence(reign) else { return Ok(Appended::Deposed) };
        let shared = &self.inner.shared;
        match shared.append(fence, reign, expected, &batch).await {
            Ok(appended) => Ok(appended),
            Err(Trouble::InDoubt(why)) => {
                warn!(%why, "etcd did not say what became of a write");
                Ok(Appended::Unknown)
            }
            // Reads inside it say so; the write itself had no answer then.
            Err(Trouble::Known(Error::Unavailable { .. })) => Ok(Appended::Unknown),
            Err(Trouble::Refused(said, help)) => {
                let keys = &shared.keys;
                let batch = keys.batch(Index(expected.0.saturating_add(1)));
                let what =
                    format!("it took no write of {batch}, {} and {}: {said}", keys.head(), keys.chain());
                Err(shared.cluster.unusable(what, help))
            }
            Err(trouble) => Err(shared.cluster.error("append", trouble)),
        }
    }

    async fn head(&self) -> Result<Index, Error> {
        Ok(self.inner.shared.head().await?.0)
    }

    async fn read(&self, from: Index) -> Result<Vec<Entry>, Error> {
        // Index 0 is before the first entry, as in the log.
        let from = from.max(Index(1));
        for _ in 0..TRIES_MAX {
            if let Some(entries) = self.inner.shared.page(from).await? {
                return Ok(entries);
            }
        }
        Err(damaged(self.inner.shared.keys.batch(from).as_bytes(), "a chunk of it is missing"))
    }

    fn heads(&self) -> watch::Receiver<Index> {
        self.inner.shared.heads.subscribe()
    }

    fn silence(&self) -> watch::Receiver<Option<Silence>> {
        self.inner.shared.cluster.answering.subscribe()
    }

    async fn save_snapshot(&self, reign: Reign, index: Index, bytes: Vec<u8>) -> Result<Fenced, Error> {
        let Some(fence) = self.fence(reign) else { return Ok(Fenced::Deposed) };
        let shared = &self.inner.shared;
        let _saving = self.inner.saving.lock().await;
        let saved = shared.save_snapshot(fence, reign, index, &bytes).await;
        saved.map_err(|trouble| shared.cluster.error("save a snapshot", trouble))
    }

    async fn load_snapshot(&self) -> Result<Option<Snapshot>, Error> {
        self.inner.shared.load_snapshot().await
    }

    async fn compact(&self, reign: Reign, before: Index) -> Result<Fenced, Error> {
        let Some(fence) = self.fence(reign) else { return Ok(Fenced::Deposed) };
        let shared = &self.inner.shared;
        let _saving = self.inner.saving.lock().await;
        let compacted = shared.compact(fence, before).await;
        compacted.map_err(|trouble| shared.cluster.error("compact its journal", trouble))
    }

    async fn confirm(&self, reign: Reign) -> Result<Fenced, Error> {
        let Some(fence) = self.fence(reign) else { return Ok(Fenced::Deposed) };
        let shared = &self.inner.shared;
        let found = TxnOp::get(shared.keys.leader(), Some(GetOptions::new().with_keys_only()));
        let answer = shared.cluster.read("confirm the reign", vec![found]).await?;
        let holds = only(answer.found(0)).is_some_and(|found| Fence::of(found) == fence);
        Ok(if holds { Fenced::Held } else { Fenced::Deposed })
    }
}

#[cfg(test)]
pub(in crate::store) mod tests;
