//! The faults that a seed may make: which, how often, and what each does.

use crate::invariant::Violation;
use crate::sim::{COPY, Later, Sim, Slow};
use lockstep_core::agent::AgentEngine;
use lockstep_core::engine::SessionId;
use lockstep_core::log::{Crash, Op};
use lockstep_core::world::{AskId, Asked, Choice, Machine, Name, ServerId, StoreWay, Way, World};

use rand::Rng;
use rand::seq::IndexedRandom;
use rand_chacha::ChaCha8Rng;

macro_rules! faults {
    ($($(#[$doc:meta])* $variant:ident = $name:literal,)*) => {
        /// A kind of fault.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
        pub(crate) enum Fault {
            $($(#[$doc])* $variant,)*
        }

        impl Fault {
            const ALL: &[Self] = &[$(Self::$variant,)*];

            pub(crate) fn as_str(self) -> &'static str {
                match self {
                    $(Self::$variant => $name,)*
                }
            }
        }
    };
}

faults! {
    /// The server's process ends; what it was writing is lost, torn, or there.
    ServerKill = "server-kill",
    /// The server's process is stopped for a while.
    ServerPause = "server-pause",
    /// The server is stopped, another takes over, and then it wakes up.
    ServerDeposed = "server-deposed",
    /// The server's disk fails a write or a sync.
    ServerDiskFails = "server-disk-fails",
    /// The server's disk is full.
    ServerDiskFull = "server-disk-full",
    /// The server is slow, or its disk.
    ServerSlow = "server-slow",
    /// An agent's process ends, and its handlers with it or not.
    AgentKill = "agent-kill",
    /// The same for longer than a lease; software and guard run on.
    AgentAway = "agent-away",
    /// An agent's process is stopped for a while, and wakes up to what it was ordered before; handlers and guard run on.
    AgentPause = "agent-pause",
    /// A host's guard ends, and no other one stands for a while.
    GuardEnds = "guard-ends",
    /// A handler that is to make sure that a host has stopped fails, hangs, or takes its time.
    FenceFails = "fence-fails",
    /// A host loses power and starts again.
    HostPowerCut = "host-power-cut",
    /// A host is switched off, its software with it, and on again later.
    PowerOff = "power-off",
    /// A host is stopped for a while.
    HostPause = "host-pause",
    /// An agent's disk fails a write or a sync.
    AgentDiskFails = "agent-disk-fails",
    /// An agent's disk is full.
    AgentDiskFull = "agent-disk-full",
    /// An agent is slow, or its disk.
    AgentSlow = "agent-slow",
    /// A host comes back from an old image of its disk.
    OldImage = "old-image",
    /// A host appears twice.
    Copy = "copy",
    /// Nothing gets through to and from a host for a while.
    Cut = "cut",
    /// The same in one direction.
    CutOneWay = "cut-one-way",
    /// Some hosts are cut off together.
    Partition = "partition",
    /// A host's link comes and goes.
    Flap = "flap",
    /// A connection breaks, and what was on its way is lost.
    Break = "break",
    /// An agent drops its connection; the server learns of it late.
    HangUp = "hang-up",
    /// Messages are late.
    Delay = "delay",
    /// A message is lost on a connection that stands.
    Lose = "lose",
    /// A message arrives twice.
    Duplicate = "duplicate",
    /// A message is overtaken.
    Reorder = "reorder",
    /// A clock runs too fast or too slowly.
    Drift = "drift",
    /// The wall clock jumps.
    WallClock = "wall-clock",
    /// A bit decays in what is read back.
    Decay = "decay",
    /// Members are fitter to be chosen than before, or less.
    Scores = "scores",
    /// A question to the journal service, or its answer, is lost.
    StoreLoses = "store-loses",
    /// One is late: longer than its server waits for it, perhaps longer than its reign.
    StoreLate = "store-late",
    /// All that passes between one machine and the journal service is slow.
    StoreSlow = "store-slow",
    /// One machine does not reach the journal service, or is not reached by it; its hosts reach it.
    StoreCut = "store-cut",
    /// The journal service has no majority.
    StoreAway = "store-away",
    /// The clock by which the journal service reckons leases runs too fast or too slowly.
    StoreDrift = "store-drift",
    /// The active server ends its reign.
    StepDown = "step-down",
}

impl Fault {
    /// Whether there is such a fault: of servers that share a journal service, or of one that has a disk.
    fn is_of(self, is_shared: bool) -> bool {
        match self {
            Self::ServerDeposed | Self::ServerDiskFails | Self::ServerDiskFull => !is_shared,
            Self::StoreLoses | Self::StoreLate | Self::StoreSlow | Self::StoreCut => is_shared,
            Self::StoreAway | Self::StoreDrift | Self::StepDown => is_shared,
            Self::ServerKill | Self::ServerPause | Self::ServerSlow | Self::AgentKill | Self::AgentAway => {
                true
            }
            Self::AgentPause | Self::GuardEnds | Self::FenceFails | Self::HostPowerCut | Self::PowerOff => {
                true
            }
            Self::HostPause | Self::AgentDiskFails | Self::AgentDiskFull | Self::AgentSlow => true,
            Self::OldImage | Self::Copy | Self::Cut | Self::CutOneWay | Self::Partition | Self::Flap => true,
            Self::Break | Self::HangUp | Self::Delay | Self::Lose | Self::Duplicate | Self::Reorder => true,
            Self::Drift | Self::WallClock | Self::Decay | Self::Scores => true,
        }
    }

    /// Whether it strikes one host and nobody else, and nothing has to be excused.
    fn is_of_one_host(self) -> bool {
        match self {
            Self::AgentKill | Self::AgentAway | Self::AgentPause | Self::GuardEnds | Self::HostPowerCut => {
                true
            }
            Self::PowerOff | Self::HostPause | Self::AgentDiskFails | Self::AgentDiskFull => true,
            Self::AgentSlow | Self::Cut | Self::CutOneWay | Self::Flap | Self::Break | Self::HangUp => true,
            Self::ServerKill | Self::ServerPause | Self::ServerDeposed | Self::ServerDiskFails => false,
            Self::ServerDiskFull | Self::ServerSlow | Self::FenceFails | Self::OldImage | Self::Copy => false,
            Self::Partition | Self::Delay | Self::Lose | Self::Duplicate | Self::Reorder | Self::Drift => {
                false
            }
            Self::WallClock | Self::Decay | Self::Scores | Self::StoreLoses | Self::StoreLate => false,
            Self::StoreSlow | Self::StoreCut | Self::StoreAway | Self::StoreDrift | Self::StepDown => false,
        }
    }
}

/// How many kinds of faults there are, the troubles of handlers left aside.
pub(crate) fn kinds(is_shared: bool) -> usize {
    Fault::ALL.iter().filter(|fault| fault.is_of(is_shared)).count()
}

/// What a seed may do, and how often.
#[derive(Debug, Clone)]
pub(crate) struct Faults {
    kinds: Vec<Fault>,
    /// The mean pause between two, in milliseconds.
    pub(crate) pause_ms: u64,
}

impl Faults {
    /// Some kinds and not others: what hides behind a frequent fault shows when that one is absent.
    pub(crate) fn random(is_shared: bool, rng: &mut ChaCha8Rng) -> Self {
        let share = *[2, 4, 8].choose(rng).expect("there are some");
        let all = Fault::ALL.iter().copied().filter(|fault| fault.is_of(is_shared));
        let mut kinds: Vec<_> = all.filter(|_| rng.random_ratio(share, 10)).collect();
        // Connections do not do that by themselves, so most seeds go without.
        if !rng.random_ratio(1, 8) {
            kinds.retain(|kind| !matches!(kind, Fault::Lose | Fault::Duplicate | Fault::Reorder));
        }
        if !rng.random_ratio(1, 4) {
            kinds.retain(|kind| !matches!(kind, Fault::OldImage | Fault::Copy));
        }
        Self { kinds, pause_ms: *[300, 1500, 6000, 15_000].choose(rng).expect("there are some") }
    }

    /// Some of the faults that strike one host, one soon after the other.
    pub(crate) fn of_one_host(rng: &mut ChaCha8Rng) -> Self {
        let all = Fault::ALL.iter().copied().filter(|fault| fault.is_of_one_host());
        let kinds = all.filter(|_| rng.random_ratio(2, 5)).collect();
        Self { kinds, pause_ms: *[700, 2000].choose(rng).expect("there are some") }
    }

    /// No more faults.
    pub(crate) fn end(&mut self) {
        self.kinds.clear();
    }

    /// What goes wrong with a write to the journal service, if anything does.
    pub(crate) fn of_writes(&self, rng: &mut ChaCha8Rng) -> Option<OfWrites> {
        let (fault, does) = *OF_WRITES.choose(rng)?;
        (self.kinds.contains(&fault) && rng.random_ratio(1, OF_WRITES_RATIO)).then_some((fault, does))
    }

    /// Whether a fault that comes with an occasion strikes on this one.
    pub(crate) fn strikes(&self, fault: Fault, rng: &mut ChaCha8Rng) -> bool {
        self.kinds.contains(&fault) && rng.random_ratio(1, 3)
    }
}

/// What a fault does to a write just as it comes to the journal service, or as its answer comes back.
type OfWrites = (Fault, fn(&mut Sim, AskId, ServerId));
/// What may go wrong with one.
const OF_WRITES: [OfWrites; 4] = [
    (Fault::StoreLoses, |sim, ask, _| sim.world.lose_ask(ask)),
    (Fault::StoreLate, |sim, ask, _| sim.delay_ask(ask)),
    (Fault::ServerPause, |sim, _, server| sim.pause_one(server)),
    (Fault::ServerKill, |sim, _, server| sim.kill_one(server)),
];
/// It does so with one in so many.
const OF_WRITES_RATIO: u32 = 30;

/// Until an agent has started another guard, in milliseconds: it does so as soon as it hears of it.
const GUARD_STARTS_MS: u64 = 50;

/// What a stop leaves of a disk.
fn crash(rng: &mut ChaCha8Rng) -> Crash {
    match rng.random_range(0..4) {
        0 => Crash::Process,
        1 => Crash::PowerLost,
        2 => Crash::Torn(rng.random_range(0..=2000)),
        _ => Crash::Blocks(rng.random()),
    }
}

impl Sim {
    /// Makes one fault.
    pub(crate) fn strike(&mut self) -> Result<(), Violation> {
        let Some(&fault) = self.faults.kinds.choose(&mut self.rng) else { return Ok(()) };
        let hosts: Vec<Name> = self
            .disks
            .keys()
            .filter(|name| !name.ends_with(COPY))
            .filter(|name| self.spared.as_ref() != Some(*name))
            .filter(|name| self.struck.as_ref().is_none_or(|struck| struck == *name))
            .cloned()
            .collect();
        let Some(name) = hosts.choose(&mut self.rng).cloned() else { return Ok(()) };
        self.tally.struck(fault.as_str());
        self.say(format!("FAULT {} {name}", fault.as_str()));
        let has_bitten = match fault {
            Fault::ServerKill if !self.machines.is_empty() => {
                let id = self.any_server();
                id.into_iter().for_each(|id| self.kill_one(id));
                id.is_some()
            }
            Fault::ServerPause if !self.machines.is_empty() => {
                let id = self.any_server().filter(|id| !self.world.is_one_paused(*id));
                id.into_iter().for_each(|id| self.pause_one(id));
                id.is_some()
            }
            Fault::ServerKill => self.kill_server(),
            Fault::ServerPause => self.pause_server(),
            Fault::ServerDeposed => {
                // It bites when the one that was deposed finds out.
                self.depose_server()?;
                false
            }
            Fault::ServerDiskFails => {
                let op = *[Op::Sync, Op::Write, Op::SyncDir, Op::Rename, Op::SetLen]
                    .choose(&mut self.rng)
                    .expect("there are some");
                self.server_disk.fail(op);
                false
            }
            Fault::ServerDiskFull => {
                self.server_disk.set_room(Some(0));
                let ms = self.rng.random_range(100..=6000);
                self.later(ms, Later::GiveServerRoom);
                false
            }
            Fault::ServerSlow => {
                // Longer than that is a pause: a server that does not run does not blame others for silence.
                let ms = self.rng.random_range(1..=400);
                let is_all = self.rng.random_ratio(1, 2) || !self.machines.is_empty();
                let what = if is_all { Slow::Server } else { Slow::ServerDisk };
                self.slow.insert(what, (self.world.now().plus(ms), Some(fault)));
                false
            }
            Fault::AgentKill => {
                let ms = *[0, 300, 2000, 10_000].choose(&mut self.rng).expect("there are some");
                self.kill_agent(&name, ms)
            }
            Fault::AgentAway => {
                let ms = self.rng.random_range(4000..=25_000);
                self.kill_agent(&name, ms)
            }
            Fault::AgentPause => {
                let is_new = self.pause(&name, World::pause_agent);
                if is_new {
                    let ms = self.rng.random_range(100..=30_000);
                    self.later(ms, Later::ResumeToOrders(name));
                }
                is_new
            }
            Fault::GuardEnds => {
                let is_needed = self.world.is_guarded(&name);
                let ms = self.rng.random_range(100..=20_000);
                // Half of them are killed, and another may be started at once.
                let is_alone = ms % 2 == 0;
                let stands_in = is_alone && self.another_guards(&name);
                if is_alone {
                    self.world.kill_guard(&name);
                } else {
                    self.world.end_guard(&name);
                    self.later(ms, Later::LetGuard(name.clone()));
                }
                // A handler that has begun to stop a member already may hang.
                let stops = self.world.agent(&name).is_some_and(AgentEngine::has_lapsed);
                if is_needed && stops && !stands_in {
                    self.release(&name, "its agent's stop may hang");
                } else if is_needed {
                    self.unguarded.insert(name, stands_in);
                }
                is_needed
            }
            // They come with calls and with the next start.
            Fault::FenceFails | Fault::Decay => false,
            Fault::HostPowerCut => self.cut_power(&name),
            Fault::PowerOff => self.switch_off(&name),
            Fault::HostPause => {
                let is_new = self.pause(&name, World::pause);
                if is_new {
                    let ms = self.rng.random_range(100..=30_000);
                    self.later(ms, Later::Resume(name));
                }
                is_new
            }
            Fault::AgentDiskFails => {
                let op = *[Op::Sync, Op::Write, Op::SetLen].choose(&mut self.rng).expect("there are some");
                self.disks.get_mut(&name).expect("it was just listed").fail(op);
                false
            }
            Fault::AgentDiskFull => {
                self.disks.get_mut(&name).expect("it was just listed").set_room(Some(0));
                let ms = self.rng.random_range(100..=20_000);
                self.later(ms, Later::GiveRoom(name));
                false
            }
            Fault::AgentSlow => {
                let ms = self.rng.random_range(1..=5000);
                let what =
                    if self.rng.random_ratio(1, 2) { Slow::Agent(name) } else { Slow::AgentDisk(name) };
                self.slow.insert(what, (self.world.now().plus(ms), Some(fault)));
                false
            }
            Fault::OldImage => self.restore_image(&name),
            Fault::Copy => self.copy_agent(&name)?,
            Fault::Cut => {
                self.cut(&name, fault, &[Way::ToServer, Way::ToAgent]);
                false
            }
            Fault::CutOneWay => {
                let way = if self.rng.random_ratio(1, 2) { Way::ToServer } else { Way::ToAgent };
                self.cut(&name, fault, &[way]);
                false
            }
            Fault::Partition => {
                let some: Vec<_> = hosts.iter().filter(|_| self.rng.random_ratio(1, 2)).cloned().collect();
                some.iter().for_each(|name| self.cut(name, fault, &[Way::ToServer, Way::ToAgent]));
                false
            }
            Fault::Flap => {
                let times = self.rng.random_range(2..=8);
                self.cut.insert(name.clone(), fault);
                self.later(0, Later::Flap(name, times));
                false
            }
            Fault::Break => {
                let is_linked = self.is_linked(&name);
                self.world.break_link(&name);
                is_linked
            }
            Fault::HangUp => {
                let is_linked = self.is_linked(&name);
                self.world.hang_up(&name);
                is_linked
            }
            Fault::Delay => {
                let ms = self.rng.random_range(1..=4000);
                let way = if self.rng.random_ratio(1, 2) { Way::ToServer } else { Way::ToAgent };
                self.slow.insert(Slow::Network(name, way), (self.world.now().plus(ms), Some(fault)));
                false
            }
            Fault::Lose => self.disturb(World::lose).is_some(),
            Fault::Duplicate => self.disturb(World::duplicate).is_some(),
            Fault::Reorder => self.disturb(World::reorder).is_some_and(|waiting| waiting > 1),
            Fault::Drift => {
                // No two clocks differ by more than 5 %.
                let rate_ppm = self.rng.random_range(-24_000..=24_000);
                if self.rng.random_ratio(1, 4) {
                    match self.any_server() {
                        Some(id) => self.world.drift_one(id, rate_ppm),
                        None => self.world.drift_server(rate_ppm),
                    }
                } else {
                    self.world.drift(&name, rate_ppm);
                }
                true
            }
            Fault::WallClock => {
                let ms =
                    *[-3_600_000, -1000, 60_000, 3_600_000].choose(&mut self.rng).expect("there are some");
                self.jump_wall_clock(ms);
                true
            }
            Fault::Scores => {
                let score = self.rng.random_range(-3..=3);
                let member = self.shape.member(&mut self.rng);
                member.iter().for_each(|member| self.world.set_score(member, score));
                member.is_some()
            }
            Fault::StoreLoses => {
                let asks: Vec<AskId> = self.world.asks().map(|(id, _)| id).collect();
                let ask = asks.choose(&mut self.rng);
                ask.into_iter().for_each(|id| self.world.lose_ask(*id));
                ask.is_some()
            }
            Fault::StoreLate => {
                let asks: Vec<AskId> = self.world.asks().map(|(id, _)| id).collect();
                if let Some(id) = asks.choose(&mut self.rng) {
                    self.delay_ask(*id);
                }
                false
            }
            Fault::StoreSlow => {
                let ms = self.rng.random_range(1..=3000);
                if let Some(machine) = self.machines.choose(&mut self.rng) {
                    self.slow.insert(Slow::Store(*machine), (self.world.now().plus(ms), Some(fault)));
                }
                false
            }
            Fault::StoreCut => self.cut_store(),
            Fault::StoreAway => {
                self.world.set_store_away(true);
                let ms = *[300, 2000, 8000, 20_000].choose(&mut self.rng).expect("there are some");
                self.later(ms, Later::StoreBack);
                true
            }
            Fault::StoreDrift => {
                let rate_ppm = self.rng.random_range(-24_000..=24_000);
                self.world.drift_store(rate_ppm);
                true
            }
            Fault::StepDown => {
                let active = self.world.active();
                active.into_iter().for_each(|id| self.world.step_down(id));
                active.is_some()
            }
        };
        if has_bitten {
            self.tally.bit(fault.as_str());
        }
        self.look()
    }

    /// Whether another guard stands before the lease of a host can end, if its guard is killed now and its agent runs on.
    fn another_guards(&self, name: &Name) -> bool {
        let may = self.world.agent(name).is_some_and(AgentEngine::may_replace_guard);
        may && self.world.guard_acts_in(name).is_some_and(|ms| ms > GUARD_STARTS_MS)
    }

    fn kill_server(&mut self) -> bool {
        if self.world.active().is_none() {
            return false;
        }
        let crash = crash(&mut self.rng);
        match (self.server_payloads(), self.rng.random_range(0..3)) {
            (Some(payloads), 0) => {
                // It is written, and nobody is told. A disk in trouble is one that lost it.
                let _ = self.server_disk.append(payloads);
            }
            (Some(payloads), 1) => self.server_disk.tear(&payloads, crash),
            (Some(_) | None, _) => {}
        }
        self.end_server(crash);
        true
    }

    fn pause_server(&mut self) -> bool {
        let Some(id) = self.world.active().filter(|_| !self.world.is_server_paused()) else { return false };
        self.world.pause_server();
        let ms = *[500, 4000, 15_000].choose(&mut self.rng).expect("there are some");
        self.later(ms, Later::ResumeServer(id));
        true
    }

    // ---- servers that share a journal service

    /// The active server, or any; none where there is only one, with a disk.
    fn any_server(&mut self) -> Option<ServerId> {
        let all: Vec<ServerId> = self.world.machines().map(|(id, _)| id).collect();
        let any = all.choose(&mut self.rng).copied();
        any.map(|any| self.world.active().filter(|_| self.rng.random_ratio(1, 2)).unwrap_or(any))
    }

    fn machine_of(&self, id: ServerId) -> Option<Machine> {
        self.world.machines().find(|(server, _)| *server == id).map(|(_, machine)| machine)
    }

    fn kill_one(&mut self, id: ServerId) {
        let Some(machine) = self.machine_of(id) else { return };
        self.world.kill_one(id);
        let ms = self.rng.random_range(0..=6000);
        self.later(ms, Later::StandBy(machine));
    }

    fn pause_one(&mut self, id: ServerId) {
        self.world.pause_one(id);
        let ms = *[500, 4000, 15_000].choose(&mut self.rng).expect("there are some");
        self.later(ms, Later::ResumeServer(id));
    }

    /// A question or its answer takes long, while others pass it.
    fn delay_ask(&mut self, id: AskId) {
        let ms = *[600, 1500, 4000, 12_000, 20_000].choose(&mut self.rng).expect("there are some");
        self.slow.insert(Slow::Ask(id), (self.world.now().plus(ms), Some(Fault::StoreLate)));
    }

    fn cut_store(&mut self) -> bool {
        let Some(machine) = self.machines.choose(&mut self.rng).copied() else { return false };
        let ways: &[StoreWay] = match self.rng.random_range(0..4) {
            0 => &[StoreWay::Ask],
            1 => &[StoreWay::Answer],
            _ => &[StoreWay::Ask, StoreWay::Answer],
        };
        ways.iter().for_each(|way| self.world.cut_store(machine, *way));
        let ms = *[300, 2000, 8000, 20_000].choose(&mut self.rng).expect("there are some");
        self.later(ms, Later::HealStore(machine));
        true
    }

    /// Something goes wrong with a write, before the service has done it, after that, or in between for its server.
    pub(crate) fn disturb_write(&mut self, id: AskId, asked: &Asked, (fault, does): OfWrites) {
        self.tally.struck(fault.as_str());
        let is_done = asked.is_done() || self.rng.random_ratio(1, 2);
        let when = if is_done { "done" } else { "not done yet" };
        self.say(format!("FAULT {} at a write of server-{}, {when}", fault.as_str(), asked.server.0));
        if is_done && !asked.is_done() {
            self.world.perform(&Choice::Store(id));
        }
        if self.rng.random_ratio(1, 3) {
            // Its server does not live to see it, or asks again meanwhile.
            self.delay_ask(id);
        }
        does(self, id, asked.server);
        // One that is late bites when somebody looks for it.
        if fault != Fault::StoreLate {
            self.tally.bit(fault.as_str());
        }
    }

    /// Stops what is not stopped yet. Tells whether it was not.
    fn pause(&mut self, name: &Name, pause: fn(&mut World, &str)) -> bool {
        let is_new = self.world.agent(name).is_some() && !self.world.is_paused(name);
        if is_new {
            pause(&mut self.world, name);
        }
        is_new
    }

    fn kill_agent(&mut self, name: &Name, away_ms: u64) -> bool {
        let Some(payloads) = self.world.agent(name).map(|_| self.agent_payloads(name)) else { return false };
        let crash = crash(&mut self.rng);
        let disk = self.disks.get_mut(name).expect("each agent has a disk");
        match (payloads, self.rng.random_range(0..3)) {
            (Some(payloads), 0) => _ = disk.append(payloads),
            (Some(payloads), 1) => disk.tear(&payloads, crash),
            (Some(_) | None, _) => {}
        }
        let handlers_go_on = self.rng.random_ratio(1, 2);
        self.end_agent_for(name, crash, handlers_go_on, away_ms);
        true
    }

    fn agent_payloads(&self, name: &Name) -> Option<Vec<Vec<u8>>> {
        let records = self.world.agent_in_flight(name)?;
        let encoded =
            records.iter().map(|record| serde_json::to_vec(record).expect("records are plain data"));
        Some(encoded.collect())
    }

    fn cut_power(&mut self, name: &Name) -> bool {
        if self.world.agent(name).is_none() {
            return false;
        }
        let crash = *[Crash::PowerLost, Crash::Torn(500)].choose(&mut self.rng).expect("there are some");
        self.end_agent(name, crash, false);
        self.world.reboot(name);
        true
    }

    /// Nothing of a host runs any more, until its agent is started again.
    fn switch_off(&mut self, name: &Name) -> bool {
        if self.world.agent(name).is_none() {
            return false;
        }
        self.end_copy(&format!("{name}{COPY}").into());
        self.disks.get_mut(name).expect("each agent has a disk").crash(Crash::PowerLost);
        self.world.power_off(&name.parse().expect("agents are named by their hosts"));
        let ms = self.rng.random_range(500..=20_000);
        self.later(ms, Later::StartAgent(name.clone()));
        true
    }

    fn restore_image(&mut self, name: &Name) -> bool {
        if self.world.agent(name).is_none() {
            return false;
        }
        // Of the disk as it is: the agent forgets what it learns until then.
        let image = self.disks[name].image();
        self.images.entry(name.clone()).or_insert(image);
        let Some(old) = self.images.remove(name).filter(|_| self.rng.random_ratio(1, 2)) else {
            return false;
        };
        self.excuse(name);
        self.end_agent(name, Crash::PowerLost, false);
        self.world.reboot(name);
        self.disks.get_mut(name).expect("each agent has a disk").restore(old);
        true
    }

    fn is_linked(&self, name: &Name) -> bool {
        self.world.links().any(|(_, agent, ..)| agent == name)
    }

    pub(crate) fn cut(&mut self, name: &Name, fault: Fault, ways: &[Way]) {
        self.cut.insert(name.clone(), fault);
        ways.iter().for_each(|way| self.world.cut_way(name, *way));
        let ms = *[300, 2000, 8000, 20_000].choose(&mut self.rng).expect("there are some");
        self.later(ms, Later::Heal(name.clone()));
        if ms > 5000 && self.rng.random_ratio(1, 2) {
            // Its agent gives the connection up before it heals.
            self.later(ms / 2, Later::HangUp(name.clone()));
        }
    }

    /// Does something to a message that is on its way, and tells how many are on that way.
    fn disturb(&mut self, what: fn(&mut World, SessionId, Way)) -> Option<usize> {
        let busy: Vec<_> = self
            .world
            .links()
            .filter(|(_, agent, ..)| self.spared.as_ref() != Some(*agent))
            .flat_map(|(id, agent, up, down)| {
                let up = (up > 0).then(|| (id, agent.clone(), Way::ToServer, up));
                up.into_iter().chain((down > 0).then(|| (id, agent.clone(), Way::ToAgent, down)))
            })
            .collect();
        let (session, agent, way, count) = busy.choose(&mut self.rng).cloned()?;
        self.excuse(&agent);
        what(&mut self.world, session, way);
        Some(count)
    }
}
