//! A store in memory that several servers share, with what may go wrong between each of them and it.

use crate::store::{Appended, Candidate, Entry, Error, Fenced, Leader, Snapshot, Store};
use lockstep_core::id::{Index, Reign};
use lockstep_core::record::{Body, Record};
use lockstep_core::time::WallTime;
use std::time::Duration;
use tokio::sync::watch;

/// The store, as one server reaches it.
#[derive(Debug, Clone)]
pub(super) struct Shared {
    state: watch::Sender<State>,
    heads: watch::Sender<Index>,
    link: watch::Sender<Link>,
}

#[derive(Debug, Default)]
struct State {
    entries: Vec<Entry>,
    leader: Option<Leader>,
    last_reign: u64,
    snapshot: Option<Snapshot>,
    floor: Index,
}

impl State {
    fn head(&self) -> Index {
        self.entries.last().map_or(Index(0), |entry| entry.index)
    }

    fn holds(&self, reign: Reign) -> bool {
        self.leader.as_ref().is_some_and(|leader| leader.reign == reign)
    }

    fn fenced(&self, reign: Reign) -> Fenced {
        if self.holds(reign) { Fenced::Held } else { Fenced::Deposed }
    }
}

/// What is between a server and the store.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Link {
    /// Nothing is answered in time.
    pub(super) is_cut: bool,
    /// Appends are done, and not answered.
    pub(super) is_deaf: bool,
    /// Reads take for ever.
    pub(super) is_slow: bool,
    /// The server's own clock says that its reign may be over.
    pub(super) is_over: bool,
    /// It takes no append, though the reign holds.
    pub(super) is_vain: bool,
    /// What is stored is damaged.
    pub(super) is_damaged: bool,
}

impl Shared {
    pub(super) fn new() -> Self {
        let (state, heads, link) = Default::default();
        Self { state, heads, link }
    }

    /// The same store, reached by another server.
    pub(super) fn another(&self) -> Self {
        Self { link: watch::Sender::default(), ..self.clone() }
    }

    pub(super) fn set(&self, link: Link) {
        self.link.send_replace(link);
    }

    /// Nobody has heard of the active server for too long.
    pub(super) fn expire(&self) {
        self.state.send_modify(|state| state.leader = None);
    }

    /// All that is there is in a snapshot, and gone.
    pub(super) fn compact_all(&self, snapshot: Vec<u8>, index: Index) {
        self.state.send_modify(|state| {
            let reign = Reign(state.last_reign);
            state.snapshot = Some(Snapshot { index, reign, bytes: snapshot });
            state.floor = Index(index.0 + 1);
        });
    }

    /// What an earlier server has written.
    pub(super) fn write(&self, body: Body) {
        let record = Record { at: WallTime(0), body };
        let payload = serde_json::to_vec(&record).unwrap();
        self.state.send_modify(|state| {
            let (index, reign) = (Index(state.head().0 + 1), Reign(state.last_reign));
            state.entries.push(Entry { index, reign, payload });
        });
        self.heads.send_replace(self.state.borrow().head());
    }

    /// Waits until something that is written is so.
    pub(super) async fn heads_changed(&self, is_so: impl Fn(&Self) -> bool) {
        let mut heads = self.heads.subscribe();
        while !is_so(self) {
            heads.changed().await.unwrap();
        }
    }

    /// How many reigns have begun.
    pub(super) fn reigns(&self) -> u64 {
        self.state.borrow().last_reign
    }

    pub(super) fn last(&self) -> Index {
        self.state.borrow().head()
    }

    /// The records of a kind, by their indices.
    pub(super) fn written(&self, is_so: impl Fn(&Body) -> bool) -> Vec<Index> {
        let body = |entry: &Entry| serde_json::from_slice::<Record>(&entry.payload).unwrap().body;
        let state = self.state.borrow();
        state.entries.iter().filter(|entry| is_so(&body(entry))).map(|entry| entry.index).collect()
    }

    fn reached(&self, doing: &'static str) -> Result<Link, Error> {
        let link = *self.link.borrow();
        let reason = "it is cut off".to_owned();
        if link.is_cut { Err(Error::Unavailable { doing, reason }) } else { Ok(link) }
    }
}

impl Store for Shared {
    async fn campaign(&self, candidate: &Candidate, _: Duration) -> Result<Reign, Error> {
        let mut state = self.state.subscribe();
        // Whoever campaigns again has given its reign up.
        if state.borrow().leader.as_ref().is_some_and(|leader| leader.candidate == *candidate) {
            self.expire();
        }
        loop {
            state.wait_for(|state| state.leader.is_none()).await.unwrap();
            self.reached("campaign")?;
            let mut reign = None;
            self.state.send_if_modified(|state| {
                if state.leader.is_none() {
                    state.last_reign += 1;
                    reign = Some(Reign(state.last_reign));
                    let (candidate, reign) = (candidate.clone(), Reign(state.last_reign));
                    state.leader = Some(Leader { candidate, reign });
                }
                reign.is_some()
            });
            if let Some(reign) = reign {
                return Ok(reign);
            }
        }
    }

    async fn resign(&self, reign: Reign) -> Result<Fenced, Error> {
        self.reached("resign")?;
        let fenced = self.state.borrow().fenced(reign);
        if fenced == Fenced::Held {
            self.expire();
        }
        Ok(fenced)
    }

    async fn ended(&self, reign: Reign) {
        let (mut link, mut state) = (self.link.subscribe(), self.state.subscribe());
        loop {
            let (link_now, holds) = (*link.borrow_and_update(), state.borrow_and_update().holds(reign));
            if link_now.is_over || (!holds && !link_now.is_cut) {
                return;
            }
            tokio::select! {
                _ = link.changed() => {}
                _ = state.changed() => {}
            }
        }
    }

    async fn leader(&self) -> Result<Option<Leader>, Error> {
        self.reached("tell who reigns")?;
        Ok(self.state.borrow().leader.clone())
    }

    async fn append(&self, reign: Reign, expected: Index, batch: Vec<Vec<u8>>) -> Result<Appended, Error> {
        let link = self.reached("append")?;
        let mut appended = Appended::Deposed;
        self.state.send_modify(|state| {
            let head = state.head();
            if !state.holds(reign) {
                return;
            }
            if head != expected || link.is_vain {
                appended = Appended::Conflict(if link.is_vain { Index(0) } else { head });
                return;
            }
            for payload in batch {
                let index = Index(state.head().0 + 1);
                state.entries.push(Entry { index, reign, payload });
            }
            appended = Appended::Done(state.head());
        });
        self.heads.send_replace(self.last());
        match appended {
            Appended::Done(_) if link.is_deaf => Ok(Appended::Unknown),
            appended => Ok(appended),
        }
    }

    async fn head(&self) -> Result<Index, Error> {
        self.reached("read")?;
        Ok(self.last())
    }

    async fn read(&self, from: Index) -> Result<Vec<Entry>, Error> {
        let link = self.reached("read")?;
        if link.is_damaged {
            return Err(Error::Closed);
        }
        self.link.subscribe().wait_for(|link| !link.is_slow).await.unwrap();
        let state = self.state.borrow();
        if from < state.floor {
            return Err(Error::Compacted { floor: state.floor });
        }
        Ok(state.entries.iter().filter(|entry| entry.index >= from).cloned().collect())
    }

    fn heads(&self) -> watch::Receiver<Index> {
        self.heads.subscribe()
    }

    async fn save_snapshot(&self, _: Reign, _: Index, _: Vec<u8>) -> Result<Fenced, Error> {
        unreachable!("no journal here is large enough")
    }

    async fn load_snapshot(&self) -> Result<Option<Snapshot>, Error> {
        self.reached("read")?;
        Ok(self.state.borrow().snapshot.clone())
    }

    async fn compact(&self, _: Reign, _: Index) -> Result<Fenced, Error> {
        unreachable!("no journal here is large enough")
    }

    async fn confirm(&self, reign: Reign) -> Result<Fenced, Error> {
        self.reached("confirm")?;
        Ok(self.state.borrow().fenced(reign))
    }
}
