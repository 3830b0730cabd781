//! Servers that share a journal service: they stand by and follow the journal, take over when nobody reigns, and stand
//! down. What a server makes of an answer that did not come is [`crate::append::settle`], as in production.

use super::service::{Ask, AskId, Asked, Leader, Machine, READ_MAX, Said, Service, StoreEvent, StoreWay};
use super::{Choice, Clock, Happened, Server, ServerId, Shared, World};
use crate::append::{Appended, Settled, settle};
use crate::cluster::Cluster;
use crate::engine::{Engine, Input};
use crate::id::{Index, Reign};
use crate::mutant::{self, Mutant};
use crate::record::Record;
use crate::time::Time;
use std::sync::Arc;

/// How long a server waits for an answer, in milliseconds.
const ASK_MS: u64 = 1000;
/// The pause before it asks again what has become of a write, in milliseconds.
const UNKNOWN_PAUSE_MS: u64 = 100;
/// How often one that stands by looks at the journal, and whether somebody reigns, in milliseconds.
const FOLLOW_MS: u64 = 250;

/// A server that stands by.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct Standby {
    machine: Machine,
    clock: Clock,
    pub(super) paused_at: Option<Time>,
    cluster: Arc<Cluster>,
    /// What it waits for, and since when by its clock.
    asked: Option<(AskId, Time)>,
    /// When it asks next, if it waits for nothing.
    next_at: Time,
    /// Whether it wants to reign next, or to read.
    campaigns: bool,
    /// It has won a reign, which ends then by its clock, and reads what there is before it begins.
    won: Option<(Reign, Time)>,
}

/// A server's reign by the lease of a service.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct Tenure {
    machine: Machine,
    reign: Reign,
    /// When its lease ends by its own clock, as far as it knows.
    until: Time,
    keep: Option<(AskId, Time)>,
    keep_at: Time,
    confirm: Option<AskId>,
    /// The head that its batch in flight follows.
    expected: Index,
    batch: Batch,
}

/// What a server waits for about its batch in flight.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Batch {
    None,
    /// The store's answer.
    Append(AskId),
    /// It seems to be there.
    Confirm(AskId),
    /// It is asked for again then, behind this head.
    Pause(Time, Index),
}

impl World {
    /// Lets servers share a journal service from now on, which ends a reign so long after its last sign of life.
    pub fn share_journal(&mut self, ttl_ms: u64) {
        assert!(self.server_starts == 0, "servers share their journal from the beginning or not at all");
        self.service = Some(Shared::new(Service::new(ttl_ms, (*self.base).clone())));
    }

    /// Starts a server that stands by.
    pub fn stand_by(&mut self, machine: Machine) -> ServerId {
        self.stand_by_with(machine, Clock::default())
    }

    fn stand_by_with(&mut self, machine: Machine, clock: Clock) -> ServerId {
        self.server_starts += 1;
        let id = ServerId(self.server_starts);
        let (cluster, next_at) = (self.base.clone(), clock.read(self.time));
        let (paused_at, asked, campaigns, won) = (None, None, false, None);
        let standby = Standby { machine, clock, paused_at, cluster, asked, next_at, campaigns, won };
        self.standbys.insert(id, Shared::new(standby));
        id
    }

    /// The servers that share a journal service, each with where it runs: those that stand by, and those that reign or
    /// do not know yet that they no longer do.
    pub fn machines(&self) -> impl Iterator<Item = (ServerId, Machine)> {
        let tenures =
            self.servers.iter().filter_map(|(id, server)| Some((*id, server.tenure.as_ref()?.machine)));
        tenures.chain(self.standbys.iter().map(|(id, standby)| (*id, standby.machine)))
    }

    /// The servers that stand by, and what their readers see.
    pub fn standbys(&self) -> impl Iterator<Item = (ServerId, &Cluster)> {
        self.standbys.iter().map(|(id, standby)| (*id, &*standby.cluster))
    }

    /// What is on its way to and from the journal service.
    pub fn asks(&self) -> impl Iterator<Item = (AskId, &Asked)> {
        self.service.iter().flat_map(|service| &service.asks).map(|(id, asked)| (*id, asked))
    }

    /// Stops a server's process for a while.
    pub fn pause_one(&mut self, id: ServerId) {
        let now = self.time;
        if let Some(server) = self.servers.get_mut(&id) {
            server.paused_at.get_or_insert(now);
        }
        if let Some(standby) = self.standbys.get_mut(&id) {
            standby.paused_at.get_or_insert(now);
        }
    }

    /// Whether a server's process is stopped.
    pub fn is_one_paused(&self, id: ServerId) -> bool {
        let server = self.servers.get(&id).and_then(|server| server.paused_at);
        server.or_else(|| self.standbys.get(&id)?.paused_at).is_some()
    }

    /// Kills a server. What it has asked of the service may still come there.
    pub fn kill_one(&mut self, id: ServerId) {
        if self.standbys.remove(&id).is_some() {
            self.service().abandon(id);
        } else {
            self.end_server(id);
        }
    }

    /// Lets a server end its reign and stand by.
    pub fn step_down(&mut self, id: ServerId) {
        let Some(reign) = self.servers.get(&id).and_then(|server| Some(server.tenure.as_ref()?.reign)) else {
            return;
        };
        self.ask_store(id, Ask::Resign(reign));
        self.stand_down(id);
    }

    /// Loses a question to the service, or its answer.
    pub fn lose_ask(&mut self, id: AskId) {
        let Some(asked) = self.service().asks.get(&id).cloned() else { return };
        self.service().asks.remove(&id);
        if !asked.is_given_up {
            // Its server waits for it all the same.
            self.lost.insert(id, asked);
        }
    }

    /// From now on nothing passes between a machine and the service in one direction.
    pub fn cut_store(&mut self, machine: Machine, way: StoreWay) {
        self.service().cut.insert((machine, way));
    }

    /// Everything passes again.
    pub fn heal_store(&mut self, machine: Machine) {
        self.service().cut.retain(|(cut, _)| *cut != machine);
    }

    /// The service has no majority, or has one again.
    pub fn set_store_away(&mut self, is_away: bool) {
        self.service().is_away = is_away;
    }

    /// Makes the clock by which the service reckons leases run at another rate, in millionths more or less.
    pub fn drift_store(&mut self, rate_ppm: i32) {
        let now = self.time;
        self.service().clock.drift(now, rate_ppm);
    }

    /// Makes a server's clock run at another rate, in millionths more or less.
    pub fn drift_one(&mut self, id: ServerId, rate_ppm: i32) {
        let now = self.time;
        if let Some(server) = self.servers.get_mut(&id) {
            server.clock.drift(now, rate_ppm);
        }
        if let Some(standby) = self.standbys.get_mut(&id) {
            standby.clock.drift(now, rate_ppm);
        }
    }

    /// Whether servers listen when their leases end; they do at first. Nothing but how soon they stop rests on that.
    pub fn heed_ends(&mut self, is_heeded: bool) {
        self.service().is_heeded = is_heeded;
    }

    /// Operators ask this server from now on, whatever it is by now; none: the active one.
    pub fn turn_to(&mut self, server: Option<ServerId>) {
        self.asked = server;
    }

    fn service(&mut self) -> &mut Service {
        self.service.as_mut().expect("whoever calls has let servers share a journal service")
    }

    // ---- what a server asks

    fn clock_of(&self, id: ServerId) -> Option<Clock> {
        let server = self.servers.get(&id).map(|server| server.clock);
        server.or_else(|| Some(self.standbys.get(&id)?.clock))
    }

    fn ask_store(&mut self, id: ServerId, ask: Ask) -> AskId {
        let machine = self.machines().find(|(server, _)| *server == id).expect("who asks runs").1;
        let until = self.clock_of(id).expect("who asks runs").read(self.time).plus(ASK_MS);
        self.service().ask(id, machine, ask, until)
    }

    fn tenure(&mut self, id: ServerId) -> &mut Tenure {
        let server = self.servers.get_mut(&id).expect("it runs");
        server.tenure.as_mut().expect("servers that share a journal have one")
    }

    /// A server's batch is in flight, behind `expected`.
    pub(super) fn write_shared(&mut self, id: ServerId, expected: Index) {
        self.tenure(id).expected = expected;
        self.write_after(id, expected);
    }

    fn write_after(&mut self, id: ServerId, expected: Index) {
        let records = self.servers[&id].in_flight.clone().expect("what is asked for again is in flight");
        let reign = self.tenure(id).reign;
        let ask = self.ask_store(id, Ask::Append { reign, expected, records });
        self.tenure(id).batch = Batch::Append(ask);
    }

    pub(super) fn confirm_shared(&mut self, id: ServerId) {
        let ask = self.ask_confirm(id);
        self.tenure(id).confirm = Some(ask);
    }

    fn confirm_batch(&mut self, id: ServerId) {
        let ask = self.ask_confirm(id);
        self.tenure(id).batch = Batch::Confirm(ask);
    }

    fn ask_confirm(&mut self, id: ServerId) -> AskId {
        let reign = self.tenure(id).reign;
        self.ask_store(id, Ask::Confirm(reign))
    }

    // ---- what happens by itself

    /// What may pass between servers and the service now.
    pub(super) fn store_choices(&self) -> impl Iterator<Item = Choice> {
        let service = self.service.as_deref();
        let asks = service.into_iter().flat_map(|service| service.asks.iter().map(move |ask| (service, ask)));
        asks.filter(|(service, (_, asked))| {
            service.carries(asked) && !(asked.is_done() && self.is_one_paused(asked.server))
        })
        .map(|(_, (id, _))| Choice::Store(*id))
    }

    /// When something is due next between servers and the service.
    pub(super) fn store_due(&self) -> impl Iterator<Item = Time> {
        let service = self.service.as_deref();
        let leases = service.and_then(|service| Some(service.clock.when(service.leader?.until)));
        let is_heeded = service.is_some_and(|service| service.is_heeded);
        let asks = service.into_iter().flat_map(|service| &service.asks).chain(&self.lost);
        let asks = asks.filter(|(_, asked)| !asked.is_given_up && !self.is_one_paused(asked.server));
        let asks = asks.filter_map(|(_, asked)| Some(self.clock_of(asked.server)?.when(asked.until)));
        let standbys = self.standbys.values().filter(|standby| standby.paused_at.is_none());
        let standbys = standbys.filter(|standby| standby.asked.is_none());
        let standbys = standbys.map(|standby| standby.clock.when(standby.next_at));
        let servers = self.servers.values().filter(|server| server.paused_at.is_none());
        let tenures = servers.filter_map(|server| Some((server.clock, server.tenure.as_ref()?)));
        let tenures = tenures.flat_map(move |(clock, tenure)| {
            let keep = tenure.keep.is_none().then_some(tenure.keep_at);
            let end = is_heeded.then_some(tenure.until);
            let again = match tenure.batch {
                Batch::Pause(until, _) => Some(until),
                Batch::None | Batch::Append(_) | Batch::Confirm(_) => None,
            };
            keep.into_iter().chain(end).chain(again).map(move |due| clock.when(due))
        });
        leases.into_iter().chain(asks).chain(standbys).chain(tenures)
    }

    /// Lets everything happen that is due between servers and the service.
    pub(super) fn tick_store(&mut self) {
        let Some(service) = &self.service else { return };
        let (now, ttl_ms, is_heeded) = (self.time, service.ttl_ms, service.is_heeded);
        let is_over = |leader: Leader| leader.until <= service.clock.read(now);
        if service.leader.is_some_and(is_over) && !mutant::is(Mutant::LeaseUnending) {
            self.service().leader = None;
            self.active = None;
        }
        let service = self.service.as_ref().expect("it was just there");
        let is_due = |asked: &Asked| {
            let clock = self.clock_of(asked.server).filter(|_| !self.is_one_paused(asked.server));
            !asked.is_given_up && clock.is_some_and(|clock| asked.until <= clock.read(now))
        };
        let due = service.asks.iter().chain(&self.lost).filter(|(_, asked)| is_due(asked));
        for id in due.map(|(id, _)| *id).collect::<Vec<_>>() {
            self.give_up(id);
        }
        let running = self.servers.iter().filter(|(_, server)| server.paused_at.is_none());
        for id in running.map(|(id, _)| *id).collect::<Vec<_>>() {
            let clock = self.servers[&id].clock.read(now);
            let tenure = self.tenure(id);
            if tenure.until <= clock && is_heeded {
                self.stand_down(id);
                continue;
            }
            if let Batch::Pause(until, after) = tenure.batch
                && until <= clock
            {
                self.write_after(id, after);
            }
            let tenure = self.tenure(id);
            if tenure.keep.is_none() && tenure.keep_at <= clock {
                let reign = tenure.reign;
                let ask = self.ask_store(id, Ask::Keep(reign));
                let tenure = self.tenure(id);
                (tenure.keep, tenure.keep_at) = (Some((ask, clock)), clock.plus(ttl_ms / 3));
            }
        }
        let running = self.standbys.iter().filter(|(_, standby)| standby.paused_at.is_none());
        for id in running.map(|(id, _)| *id).collect::<Vec<_>>() {
            let standby = self.standbys.get_mut(&id).expect("it was just listed");
            let clock = standby.clock.read(now);
            if standby.asked.is_some() || standby.next_at > clock {
                continue;
            }
            // Another one may reign by now: what was won is asked for anew.
            standby.won = standby.won.filter(|(_, until)| *until > clock);
            let reads = !standby.campaigns || standby.won.is_some();
            let ask = if reads { Ask::Read(Index(standby.cluster.revision.0 + 1)) } else { Ask::Campaign };
            let ask = self.ask_store(id, ask);
            self.standbys.get_mut(&id).expect("it was just listed").asked = Some((ask, clock));
        }
    }

    fn give_up(&mut self, id: AskId) {
        let lost = self.lost.remove(&id);
        let asked = match lost {
            Some(asked) => asked,
            None => {
                let Some(asked) = self.service().asks.get_mut(&id) else { return };
                asked.is_given_up = true;
                let asked = asked.clone();
                if asked.is_done() {
                    self.service().asks.remove(&id);
                }
                asked
            }
        };
        self.hear(asked.server, id, None);
    }

    /// A question comes to the service, or its answer to the server.
    pub(super) fn carry_store(&mut self, id: AskId) {
        let asked = self.service().asks.get(&id).expect("it was named as one that is there").clone();
        if asked.is_done() {
            self.service().asks.remove(&id);
            return self.hear(asked.server, id, asked.said);
        }
        let head = Index(self.base.revision.0 + self.journal.len() as u64);
        let now = self.time;
        let service: &mut Service = self.service.as_mut().expect("it was just there");
        let said = service.serve(&asked, now, head, &self.journal);
        if asked.is_given_up {
            service.asks.remove(&id);
        } else if let Some(asked) = service.asks.get_mut(&id) {
            asked.said = Some(said.clone());
        }
        let reigns = service.leader.map(|leader| leader.server);
        self.active = self.active.filter(|active| reigns == Some(*active));
        let server = asked.server;
        match said {
            Said::Won(reign) => self.note(Happened::Store(StoreEvent::Won { server, reign })),
            Said::Appended(Appended::Done(_)) => {
                self.note(Happened::Store(StoreEvent::Wrote { server, ask: id }));
                if let Ask::Append { records, .. } = asked.ask {
                    self.record(records);
                }
            }
            Said::Appended(Appended::Deposed) => {
                self.note(Happened::Store(StoreEvent::Refused { server, is_late: asked.is_given_up }));
            }
            Said::Appended(Appended::Conflict(_) | Appended::Unknown) => {}
            Said::Taken | Said::Held | Said::Deposed | Said::Records(_) => {}
        }
    }

    /// A server hears an answer, or gives it up.
    fn hear(&mut self, id: ServerId, ask: AskId, said: Option<Said>) {
        if self.standbys.contains_key(&id) {
            return self.hear_standby(id, ask, said);
        }
        let Some(clock) = self.servers.get(&id).map(|server| server.clock) else { return };
        let (now, ttl_ms) = (clock.read(self.time), self.service().ttl_ms);
        let tenure = self.tenure(id);
        if tenure.batch == Batch::Append(ask) {
            let said = match said {
                Some(Said::Appended(said)) => said,
                None => Appended::Unknown,
                Some(_) => unreachable!("writes are answered as such"),
            };
            return self.settle_write(id, ask, said);
        }
        if tenure.batch == Batch::Confirm(ask) {
            match said {
                Some(Said::Held) => {
                    self.note(Happened::Store(StoreEvent::Found { server: id }));
                    self.written(id);
                }
                Some(_) => self.stand_down(id),
                None => self.confirm_batch(id),
            }
        } else if tenure.confirm == Some(ask) {
            tenure.confirm = None;
            match said {
                Some(Said::Held) => self.tell_server(id, Input::Confirmed),
                Some(_) => self.stand_down(id),
                None => self.confirm_shared(id),
            }
        } else if let Some((_, sent)) = tenure.keep.filter(|(keep, _)| *keep == ask) {
            tenure.keep = None;
            match said {
                Some(Said::Held) => tenure.until = sent.plus(ttl_ms),
                None => tenure.keep_at = now,
                Some(_) if self.service().is_heeded => self.stand_down(id),
                Some(_) => {}
            }
        }
    }

    fn settle_write(&mut self, id: ServerId, ask: AskId, said: Appended) {
        let server = &self.servers[&id];
        let clock = server.clock.read(self.time);
        let count = server.in_flight.as_ref().map_or(0, Vec::len) as u64;
        let tenure = self.tenure(id);
        let expected = tenure.expected;
        if said == Appended::Unknown {
            self.note(Happened::Store(StoreEvent::Unanswered { server: id, ask }));
        }
        match settle(said, expected, Index(expected.0 + count)) {
            Settled::Durable => self.written(id),
            Settled::Deposed => self.stand_down(id),
            Settled::Confirm => self.confirm_batch(id),
            Settled::AskAgain(after) => {
                self.tenure(id).batch = Batch::Pause(clock.plus(UNKNOWN_PAUSE_MS), after);
            }
        }
    }

    fn written(&mut self, id: ServerId) {
        self.tenure(id).batch = Batch::None;
        self.servers.get_mut(&id).expect("it runs").in_flight = None;
        self.tell_server(id, Input::Appended);
    }

    /// A server drops what it knows and stands by, as another one.
    fn stand_down(&mut self, id: ServerId) {
        let (clock, machine) = (self.servers[&id].clock, self.tenure(id).machine);
        self.note(Happened::Store(StoreEvent::StoodDown { server: id }));
        self.end_server(id);
        self.stand_by_with(machine, clock);
    }

    pub(super) fn abandon_asks(&mut self, id: ServerId) {
        self.lost.retain(|_, asked| asked.server != id);
        if let Some(service) = &mut self.service {
            service.abandon(id);
        }
    }

    fn hear_standby(&mut self, id: ServerId, ask: AskId, said: Option<Said>) {
        let (time, ttl_ms) = (self.time, self.service().ttl_ms);
        let base = self.base.clone();
        let standby = self.standbys.get_mut(&id).expect("it was just there");
        let Some((_, sent)) = standby.asked.filter(|(asked, _)| *asked == ask) else { return };
        let now = standby.clock.read(time);
        standby.asked = None;
        standby.next_at = now.plus(FOLLOW_MS);
        match said {
            Some(Said::Won(reign)) => {
                standby.won = Some((reign, sent.plus(ttl_ms)));
                standby.next_at = now;
            }
            Some(Said::Taken) => standby.campaigns = false,
            Some(Said::Records(records)) => {
                let is_all = records.is_empty();
                follow(Arc::make_mut(&mut standby.cluster), &records);
                if standby.won.is_some() {
                    standby.next_at = now;
                    if is_all {
                        self.take_over(id);
                    }
                    return;
                }
                standby.campaigns = records.len() < READ_MAX;
            }
            None if mutant::is(Mutant::StandbyGoesBack) => standby.cluster = base,
            None => {}
            Some(Said::Held | Said::Deposed | Said::Appended(_)) => {
                unreachable!("it asks for nothing of the kind")
            }
        }
    }

    /// A server that has won a reign and read all there is becomes the active one.
    fn take_over(&mut self, id: ServerId) {
        let standby: Standby =
            self.standbys.remove(&id).map(|standby| (*standby).clone()).expect("it stands by");
        let Standby { machine, clock, cluster, won, .. } = standby;
        let (reign, until) = won.expect("whoever takes over has won");
        let engine = Engine::new((*cluster).clone(), &format!("server-{}", id.0), self.now_of(clock));
        let expected = cluster.revision;
        let tenure = Tenure {
            machine,
            reign,
            until,
            keep: None,
            keep_at: clock.read(self.time),
            confirm: None,
            expected,
            batch: Batch::None,
        };
        let (in_flight, has_landed, paused_at, tenure) = (None, false, None, Some(tenure));
        let server = Server { engine, in_flight, has_landed, clock, paused_at, tenure };
        self.servers.insert(id, Shared::new(server));
        if self.service().leader.is_some_and(|leader| leader.server == id && leader.reign == reign) {
            self.active = Some(id);
        }
        self.note(Happened::Store(StoreEvent::Began { server: id }));
    }
}

fn follow(cluster: &mut Cluster, records: &[Record]) {
    for record in records {
        cluster.apply(Index(cluster.revision.0 + 1), record);
    }
}
