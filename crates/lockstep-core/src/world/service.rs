//! A journal service that several servers share: it says who reigns, by a lease, and takes a batch from nobody else.
//! Servers ask it over messages that take their time, are lost, or come when nobody waits for them any more.

use super::{Clock, ServerId};
use crate::append::Appended;
use crate::cluster::Cluster;
use crate::id::{Index, Reign};
use crate::mutant::{self, Mutant};
use crate::record::Record;
use crate::time::Time;
use std::collections::{BTreeMap, BTreeSet};

/// How many records one read answers with.
pub(super) const READ_MAX: usize = 64;

/// A question to the service.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct AskId(pub u64);

/// Where a server runs, whichever of its processes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Machine(pub u8);

/// A direction between servers and their journal service.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum StoreWay {
    /// What servers ask.
    Ask,
    /// What they are answered.
    Answer,
}

/// What a server wants of the service.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Ask {
    /// To reign, if nobody does.
    Campaign,
    /// Its reign to go on.
    Keep(Reign),
    /// Its reign to end.
    Resign(Reign),
    /// To know whether it still reigns.
    Confirm(Reign),
    /// Records to be written.
    Append {
        /// Under which reign.
        reign: Reign,
        /// The head that they are to follow.
        expected: Index,
        /// The records.
        records: Vec<Record>,
    },
    /// Records from there on.
    Read(Index),
}

/// What the service says.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) enum Said {
    Won(Reign),
    Taken,
    Held,
    Deposed,
    Appended(Appended),
    Records(Vec<Record>),
}

/// A question on its way, or its answer.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Asked {
    /// Whose.
    pub server: ServerId,
    /// What for.
    pub ask: Ask,
    /// Its server waits for the answer no longer. It may still come to the service, and be done.
    pub is_given_up: bool,
    pub(super) machine: Machine,
    /// When its server gives it up, by its own clock.
    pub(super) until: Time,
    pub(super) said: Option<Said>,
}

impl Asked {
    /// Where its server runs.
    pub fn machine(&self) -> Machine {
        self.machine
    }

    /// Whether the service has done what was asked.
    pub fn is_done(&self) -> bool {
        self.said.is_some()
    }
}

/// What happens between servers and their journal service.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum StoreEvent {
    /// The service lets a server reign.
    Won {
        /// Which.
        server: ServerId,
        /// Under which number.
        reign: Reign,
    },
    /// A server has read all there is, and is the active one from its own point of view.
    Began {
        /// Which.
        server: ServerId,
    },
    /// A batch is durable; its records follow.
    Wrote {
        /// Of which server.
        server: ServerId,
        /// By which question.
        ask: AskId,
    },
    /// A batch was not taken, because its server does not reign.
    Refused {
        /// Of which server.
        server: ServerId,
        /// Its server had given it up.
        is_late: bool,
    },
    /// A server does not know what has become of its batch.
    Unanswered {
        /// Which.
        server: ServerId,
        /// Of which question.
        ask: AskId,
    },
    /// A server has found its batch where it was to go, after it had not been answered.
    Found {
        /// Which.
        server: ServerId,
    },
    /// A server has learned that it does not reign any more. It stands by again, as another process.
    StoodDown {
        /// Which.
        server: ServerId,
    },
}

/// Who reigns.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Leader {
    pub(super) server: ServerId,
    pub(super) reign: Reign,
    /// By the service's clock.
    pub(super) until: Time,
}

/// The service.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct Service {
    pub(super) ttl_ms: u64,
    pub(super) clock: Clock,
    /// The last one that was given out.
    reign: Reign,
    pub(super) leader: Option<Leader>,
    pub(super) asks: BTreeMap<AskId, Asked>,
    count: u64,
    /// It has no majority: nothing is done and nothing is answered.
    pub(super) is_away: bool,
    pub(super) cut: BTreeSet<(Machine, StoreWay)>,
    /// Whether servers listen when their leases end. Nothing but how soon they stop rests on that.
    pub(super) is_heeded: bool,
    /// What the journal says.
    pub(super) durable: Cluster,
}

impl Service {
    pub(super) fn new(ttl_ms: u64, durable: Cluster) -> Self {
        Self {
            ttl_ms,
            clock: Clock::default(),
            reign: Reign(0),
            leader: None,
            asks: BTreeMap::new(),
            count: 0,
            is_away: false,
            cut: BTreeSet::new(),
            is_heeded: true,
            durable,
        }
    }

    pub(super) fn ask(&mut self, server: ServerId, machine: Machine, ask: Ask, until: Time) -> AskId {
        self.count += 1;
        let id = AskId(self.count);
        self.asks.insert(id, Asked { server, ask, is_given_up: false, machine, until, said: None });
        id
    }

    /// Nobody waits for a server's questions any more. Those that have not come yet may still come.
    pub(super) fn abandon(&mut self, server: ServerId) {
        self.asks.retain(|_, asked| asked.server != server || !asked.is_done());
        for asked in self.asks.values_mut().filter(|asked| asked.server == server) {
            asked.is_given_up = true;
        }
    }

    /// Whether a message may arrive now.
    pub(super) fn carries(&self, asked: &Asked) -> bool {
        let way = if asked.is_done() { StoreWay::Answer } else { StoreWay::Ask };
        !self.is_away && !self.cut.contains(&(asked.machine, way))
    }

    fn reigns(&self, reign: Reign) -> bool {
        self.leader.is_some_and(|leader| leader.reign == reign)
    }

    /// Does what is asked, but for the writing itself: for that, `Done` is the answer.
    pub(super) fn serve(&mut self, asked: &Asked, now: Time, head: Index, journal: &[Record]) -> Said {
        let now = self.clock.read(now);
        let until = now.plus(self.ttl_ms);
        let held = |is_held| if is_held { Said::Held } else { Said::Deposed };
        match &asked.ask {
            Ask::Campaign if self.leader.is_some() => Said::Taken,
            Ask::Campaign => {
                if !mutant::is(Mutant::GrantReused) || self.reign == Reign(0) {
                    self.reign = Reign(self.reign.0 + 1);
                }
                self.leader = Some(Leader { server: asked.server, reign: self.reign, until });
                Said::Won(self.reign)
            }
            Ask::Keep(reign) => {
                let is_held = self.reigns(*reign);
                self.leader.iter_mut().filter(|_| is_held).for_each(|leader| leader.until = until);
                held(is_held)
            }
            Ask::Resign(reign) => {
                let is_held = self.reigns(*reign);
                self.leader = self.leader.filter(|_| !is_held);
                held(is_held)
            }
            Ask::Confirm(reign) => held(self.reigns(*reign) || mutant::is(Mutant::ConfirmUnfenced)),
            Ask::Append { reign, expected, records } => {
                Said::Appended(if !self.reigns(*reign) && !mutant::is(Mutant::AppendUnfenced) {
                    Appended::Deposed
                } else if head != *expected {
                    Appended::Conflict(head)
                } else {
                    Appended::Done(Index(head.0 + records.len() as u64))
                })
            }
            Ask::Read(from) => {
                let first = journal.len()
                    - usize::try_from((head.0 + 1).saturating_sub(from.0)).unwrap_or(0).min(journal.len());
                let mut records: Vec<_> = journal[first..].iter().take(READ_MAX).cloned().collect();
                if mutant::is(Mutant::StandbyShowsUnwritten) {
                    records.extend(self.unwritten(head));
                }
                Said::Records(records)
            }
        }
    }

    /// What is on its way to follow the head.
    fn unwritten(&self, head: Index) -> impl Iterator<Item = Record> {
        let next = self.asks.values().find_map(|asked| match &asked.ask {
            Ask::Append { reign, expected, records } if *expected == head && self.reigns(*reign) => {
                Some(records)
            }
            Ask::Append { .. }
            | Ask::Campaign
            | Ask::Keep(_)
            | Ask::Resign(_)
            | Ask::Confirm(_)
            | Ask::Read(_) => None,
        });
        next.into_iter().flatten().cloned()
    }
}
