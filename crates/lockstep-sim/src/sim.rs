//! One seed: a random cluster, random requests and random faults, then quiet, in which everything has to resolve. The
//! same follows once more, after troubles that all come to one host.
//!
//! Seeds below [`SHARED_FROM`] have one server and its disk; those from there on have one to three servers that share a
//! journal service.

mod operator;

use crate::fault::{Fault, Faults};
use crate::invariant::{Invariants, Violation, i23_decay_is_refused};
use crate::journal::{Journal, Unopened};
use crate::shape::Shape;
use crate::tally::Tally;
use lockstep_core::agent::AgentRecord;
use lockstep_core::engine::HostAsk;
use lockstep_core::id::HostName;
use lockstep_core::log::{Crash, MemDisk};
use lockstep_core::message::Phase;
use lockstep_core::record::{Body, Record};
use lockstep_core::request::Request;
use lockstep_core::time::Time;
use lockstep_core::vote::Answer;
use lockstep_core::world::{
    Ask, AskId, Choice, Happened, Machine, Name, Script, ServerId, StoreEvent, Way, World,
};
use rand::seq::IndexedRandom;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::hash::{DefaultHasher, Hash, Hasher};

/// Everything resolves within so long once no fault is left, in milliseconds: queued transitions run one after the
/// other, and each may wait for the longest commit deadline twice, forward and back.
pub const RESOLVE_MS: u64 = 240_000;
/// The first seed whose servers share a journal service. A range of its own: seeds that have found something with one
/// server stay the runs that they were.
pub const SHARED_FROM: u64 = 1_000_000_000;
/// How long servers have to begin, in milliseconds.
const BEGIN_MS: u64 = 10_000;
/// In how many ways handlers misbehave.
pub(crate) const TROUBLES: usize = 6;
/// What a second agent's name ends with.
pub(crate) const COPY: &str = "-copy";
/// So many calls of so many that move software hang on a host that has all the trouble.
const STRUCK_HANGS: (u32, u32) = (3, 4);
/// So long a stop takes that hangs there, in milliseconds: longer than a lease, and no longer than a hold may wait for it to
/// be released. What is stopped as its agent starts has no other end than its handler's time.
const STRUCK_STOP_MS: u64 = 8000;
/// For how long it has, in milliseconds, and how often operators ask meanwhile.
const PILE_UP_MS: u64 = 15_000;
const PILE_UP_ASKS_MS: u64 = 400;
/// How long groups have before that to serve, in milliseconds.
const UP_AGAIN_MS: u64 = 4000;
/// After so many milliseconds without its agent a host is lost, whatever lease it was given.
const GIVE_UP_MS: u64 = 35_000;
/// The server, where a journal's owner is named.
const SERVER: &str = "server";
/// How many of the last lines are kept to be shown.
const LINES_MAX: usize = 4000;
/// How often a server tries again to write to a full disk before it stops, as the real one does.
const FULL_TRIES_MAX: u32 = 5;
/// The pause before that, in milliseconds.
const FULL_PAUSE_MS: u64 = 500;

/// What a run is asked to be, beside its seed.
#[derive(Debug, Clone, Copy, Default)]
pub struct Options {
    /// Wall clocks stay as they are. Everything else has to go the same way.
    pub keeps_wall_clock: bool,
}

/// Something that is slow for a while.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Slow {
    Server,
    ServerDisk,
    /// All between a machine's servers and the journal service.
    Store(Machine),
    /// One question to it, and its answer.
    Ask(AskId),
    Agent(Name),
    AgentDisk(Name),
    Network(Name, Way),
}

/// Something that is going to be done.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Later {
    StartServer,
    /// A server starts to stand by.
    StandBy(Machine),
    /// A machine reaches the journal service again.
    HealStore(Machine),
    /// The journal service has a majority again.
    StoreBack,
    ResumeServer(ServerId),
    /// One that was deposed finds out.
    EndDeposed(ServerId),
    StartAgent(Name),
    Resume(Name),
    /// The same; what waits in its connection comes first.
    ResumeToOrders(Name),
    /// A guard may stand again.
    LetGuard(Name),
    /// Nothing gets through to and from a host for a while.
    Cut(Name),
    Heal(Name),
    HangUp(Name),
    /// Cuts or heals, so many times more.
    Flap(Name, u32),
    GiveRoom(Name),
    GiveServerRoom,
    /// A second agent from a copied disk goes away.
    EndCopy(Name),
}

/// What has happened to writes to a journal service, as far as it says what the seed has tried.
#[derive(Debug, Default)]
struct Watched {
    wrote: BTreeSet<AskId>,
    unanswered: BTreeSet<AskId>,
    /// Of what is counted by seeds, what has been seen.
    seen: BTreeSet<&'static str>,
}

/// A run in progress.
pub struct Sim {
    options: Options,
    pub(crate) rng: ChaCha8Rng,
    pub(crate) shape: Shape,
    pub(crate) world: World,
    pub(crate) server_disk: Journal,
    /// Where servers run that share a journal service; none: there is one server, with a disk.
    pub(crate) machines: Vec<Machine>,
    watched: Watched,
    /// Whether faults are made now.
    is_troubled: bool,
    pub(crate) disks: BTreeMap<Name, Journal>,
    /// What disks once were.
    pub(crate) images: BTreeMap<Name, (MemDisk, Vec<Vec<u8>>)>,
    /// What is slow, until when, and by which fault, as long as that has made no difference.
    pub(crate) slow: BTreeMap<Slow, (Time, Option<Fault>)>,
    /// Who is cut off, and by which fault.
    pub(crate) cut: BTreeMap<Name, Fault>,
    later: BTreeMap<(Time, u64), Later>,
    /// Names what is done later, in the order in which it was thought of.
    counted: u64,
    pub(crate) faults: Faults,
    invariants: Invariants,
    /// One handler call in so many does something other than what it should; none when 0.
    trouble: u32,
    /// The same of commits.
    commit_trouble: u32,
    /// A host whose handlers are ready for nothing.
    stubborn: Option<Name>,
    asks_every_ms: u64,
    next_ask: Time,
    next_fault: Time,
    full_tries: u32,
    /// How often operators have asked for something; they are not always told what came of it.
    asks: u64,
    asked: Vec<Request>,
    /// Hosts whose guard has ended, as long as the server counts on it, and whether another one can stand at once: then no
    /// stop of the agent's own has to be in its place.
    pub(crate) unguarded: BTreeMap<Name, bool>,
    /// Hosts that are excused.
    excused: BTreeSet<Name>,
    /// A host that no fault touches; it must not be evicted.
    pub(crate) spared: Option<Name>,
    /// A host that stays broken to the end.
    pub(crate) broken: Option<Name>,
    /// The host that has all the trouble there is, when one has.
    pub(crate) struck: Option<Name>,
    pub(crate) tally: Tally,
    lines: VecDeque<String>,
    digest: DefaultHasher,
}

impl Sim {
    /// The beginning of a seed: nothing has been started.
    pub fn new(seed: u64, options: Options) -> Self {
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        let is_shared = seed >= SHARED_FROM;
        let shape = Shape::random(&mut rng);
        let faults = Faults::random(is_shared, &mut rng);
        let mut world = World::new();
        let mut machines = Vec::new();
        let mut is_heeded = true;
        if is_shared {
            let count = *[1, 2, 2, 3, 3, 3].choose(&mut rng).expect("there are some");
            machines.extend((1..=count).map(Machine));
            world.share_journal(*[2000, 3000, 6000].choose(&mut rng).expect("there are some"));
            is_heeded = rng.random_ratio(3, 4);
            world.heed_ends(is_heeded);
        }
        // Of as many digits whatever the jumps are, so that they change no record's length.
        world.jump_wall_clock(1_700_000_000_000);
        let names: Vec<Name> = shape.hosts.iter().map(|host| host.as_str().into()).collect();
        // A server that reigns no more and does not know it keeps hosts from the one that does.
        let spared = rng.random_ratio(1, 2).then(|| names[0].clone()).filter(|_| is_heeded);
        let broken = rng.random_ratio(1, 4).then(|| names[names.len() - 1].clone());
        let stubborn = names.choose(&mut rng).filter(|_| rng.random_ratio(1, 6)).cloned();
        let mut invariants = Invariants::default();
        if let Some(name) = &spared {
            invariants.spare(name);
        }
        let trouble = *[0, 100, 30, 8].choose(&mut rng).expect("there are some");
        let commit_trouble = *[trouble, trouble, 4].choose(&mut rng).expect("there are some");
        let asks_every_ms = *[200, 1000, 4000, 20_000].choose(&mut rng).expect("there are some");
        let (next_ask, next_fault) = (world.now().plus(2000), world.now().plus(2000));
        Self {
            options,
            rng,
            shape,
            world,
            server_disk: Journal::default(),
            machines,
            watched: Watched::default(),
            is_troubled: false,
            disks: BTreeMap::new(),
            images: BTreeMap::new(),
            slow: BTreeMap::new(),
            cut: BTreeMap::new(),
            later: BTreeMap::new(),
            counted: 0,
            faults,
            invariants,
            trouble,
            commit_trouble,
            stubborn,
            asks_every_ms,
            next_ask,
            next_fault,
            full_tries: 0,
            asks: 0,
            asked: Vec::new(),
            unguarded: BTreeMap::new(),
            excused: BTreeSet::new(),
            spared,
            broken,
            struck: None,
            tally: Tally::default(),
            lines: VecDeque::new(),
            digest: DefaultHasher::new(),
        }
    }

    /// Runs it to its end.
    pub fn run(&mut self) -> Result<(), Violation> {
        let began = self.world.now();
        self.start_server()?;
        self.machines.iter().for_each(|machine| _ = self.world.stand_by(*machine));
        self.turn_until(began.plus(200), false)?;
        while self.world.active().is_none() && self.world.now() < began.plus(BEGIN_MS) {
            self.turn(began.plus(BEGIN_MS), false)?;
        }
        let spec = self.shape.spec();
        self.world.apply(spec);
        self.asks += 1;
        for at in 0..self.shape.hosts.len() {
            let host = self.shape.hosts[at].clone();
            let name: Name = host.as_str().into();
            let mut disk = Journal::default();
            self.opened::<AgentRecord>(&name, disk.open(&name))?;
            self.disks.insert(name.clone(), disk);
            self.world.join(&name, &host, self.shape.labels(at), Some(format!("10.0.0.{at}")));
            if self.rng.random_ratio(1, 4) {
                // From its next start on.
                self.world.set_fence(&name);
                self.end_agent(&name, Crash::Process, false);
            }
        }
        if self.rng.random_ratio(2, 3) {
            // Goals that somebody has to see to, and that nobody changes again soon.
            let now = self.world.now();
            self.turn_until(now.plus(1900), false)?;
            self.ask_for(self.shape.all_up("up"))?;
        }
        let trouble_ms = self.rng.random_range(20_000..=90_000);
        let end = self.world.now().plus(trouble_ms);
        self.is_troubled = true;
        self.turn_until(end, true)?;
        self.is_troubled = false;
        self.heal()?;
        let resolved = self.resolve().and_then(|()| self.go_on());
        self.count_writes();
        self.tally.simulated_ms += self.world.now().since(began);
        let answered: u64 = self.tally.answers.values().sum();
        self.tally.answers.insert("unknown".to_owned(), self.asks - answered);
        resolved
    }

    /// What all of it came to, in a number: equal for equal runs.
    pub fn digest(&self) -> u64 {
        self.digest.clone().finish()
    }

    /// What was counted.
    pub fn tally(&self) -> &Tally {
        &self.tally
    }

    /// The last things that happened.
    pub fn lines(&self) -> impl Iterator<Item = &String> {
        self.lines.iter()
    }

    // ---- time

    fn turn_until(&mut self, end: Time, is_troubled: bool) -> Result<(), Violation> {
        while self.world.now() < end {
            self.turn(end, is_troubled)?;
        }
        Ok(())
    }

    fn turn(&mut self, end: Time, is_troubled: bool) -> Result<(), Violation> {
        let now = self.world.now();
        if let Some(next) = self.later.first_entry().filter(|next| next.key().0 <= now) {
            let later = next.remove();
            return self.do_now(later);
        }
        if is_troubled && self.next_fault <= now {
            let pause = self.faults.pause_ms;
            self.next_fault = now.plus(self.rng.random_range(1..=2 * pause));
            return self.strike();
        }
        if is_troubled && self.next_ask <= now {
            self.next_ask = now.plus(self.rng.random_range(1..=2 * self.asks_every_ms));
            return self.ask();
        }
        self.slow.retain(|_, (until, _)| *until > now);
        let choices = self.choices();
        if choices.is_empty() || self.rng.random_ratio(1, 16) {
            let mut next = self.slow.values().map(|(until, _)| *until).chain([end]).min().unwrap_or(end);
            next = self.later.keys().map(|(at, _)| *at).chain([next]).min().unwrap_or(next);
            if is_troubled {
                next = next.min(self.next_fault).min(self.next_ask);
            }
            if !choices.is_empty() {
                next = next.min(now.plus(self.rng.random_range(1..=3)));
            }
            self.world.advance_to_next(next.since(now).max(1));
            return self.look();
        }
        let choice = choices.choose(&mut self.rng).expect("it is not empty").clone();
        self.perform(&choice)
    }

    /// What may happen now, without that which is slow.
    fn choices(&mut self) -> Vec<Choice> {
        if self.slow.is_empty() {
            return self.world.choices().collect();
        }
        let all: Vec<_> = self.world.choices().map(|choice| (self.slow_part(&choice), choice)).collect();
        let mut choices = Vec::new();
        for (part, choice) in all {
            match part.and_then(|part| self.slow.get_mut(&part)) {
                Some((_, fault)) => {
                    fault.take().into_iter().for_each(|fault| self.tally.bit(fault.as_str()));
                }
                None => choices.push(choice),
            }
        }
        choices
    }

    /// What has to be quick for something to happen.
    fn slow_part(&self, choice: &Choice) -> Option<Slow> {
        let network = |session, way| {
            let link = self.world.links().find(|(id, ..)| *id == session);
            link.map(|(_, agent, ..)| Slow::Network(agent.clone(), way))
        };
        match choice {
            Choice::Server(_) => Some(Slow::Server),
            Choice::Append(_) => Some(Slow::ServerDisk),
            Choice::Store(id) if self.slow.contains_key(&Slow::Ask(*id)) => Some(Slow::Ask(*id)),
            Choice::Store(id) => {
                let asked = self.world.asks().find(|(ask, _)| ask == id);
                asked.map(|(_, asked)| Slow::Store(asked.machine()))
            }
            Choice::Agent(name) | Choice::Connect(name) | Choice::Dial(name, _) => {
                Some(Slow::Agent(name.clone()))
            }
            Choice::AgentAppend(name) => Some(Slow::AgentDisk(name.clone())),
            Choice::ToAgent(session) => network(*session, Way::ToAgent),
            Choice::ToServer(session) => network(*session, Way::ToServer),
            Choice::End(..) => None,
        }
    }

    pub(crate) fn later(&mut self, ms: u64, what: Later) {
        self.counted += 1;
        self.later.insert((self.world.now().plus(ms), self.counted), what);
    }

    fn do_now(&mut self, later: Later) -> Result<(), Violation> {
        match later {
            Later::StartServer => self.start_server()?,
            Later::StandBy(machine) => self.stand_by(machine),
            Later::HealStore(machine) => self.world.heal_store(machine),
            Later::StoreBack => self.world.set_store_away(false),
            Later::ResumeServer(id) => {
                self.world.resume_server(id);
                // Those that share a journal service find out from that.
                if self.machines.is_empty() && self.world.active() != Some(id) {
                    // Soon: what it tells agents until then keeps them from looking for another server.
                    let ms = self.rng.random_range(0..=500);
                    self.later(ms, Later::EndDeposed(id));
                }
            }
            Later::EndDeposed(id) => self.world.end_deposed(id),
            Later::StartAgent(name) => self.start_agent(&name)?,
            Later::Resume(name) => {
                if self.world.is_paused(&name) {
                    self.world.resume(&name);
                }
            }
            Later::ResumeToOrders(name) => {
                if self.world.is_paused(&name) {
                    self.world.resume_to_orders(&name);
                }
            }
            Later::LetGuard(name) => self.world.let_guard(&name),
            Later::Cut(name) => {
                self.tally.struck(Fault::Cut.as_str());
                self.say(format!("FAULT cut {name}"));
                self.cut(&name, Fault::Cut, &[Way::ToServer, Way::ToAgent]);
            }
            Later::Heal(name) => self.heal_link(&name),
            Later::HangUp(name) => self.world.hang_up(&name),
            Later::Flap(name, more) => {
                if self.world.cuts(&name).is_empty() {
                    self.world.cut(&name);
                } else {
                    self.heal_link(&name);
                }
                let ms = self.rng.random_range(50..=3000);
                let next = if more > 0 { Later::Flap(name, more - 1) } else { Later::Heal(name) };
                self.later(ms, next);
            }
            Later::GiveRoom(name) => {
                if let Some(disk) = self.disks.get_mut(&name) {
                    disk.set_room(None);
                }
            }
            Later::GiveServerRoom => self.server_disk.set_room(None),
            Later::EndCopy(name) => self.end_copy(&name),
        }
        self.look()
    }

    /// Lets everything through to and from a host. That it was cut off has bitten when something waits.
    fn heal_link(&mut self, name: &Name) {
        let waits = self.world.links().any(|(_, agent, up, down)| agent == name && up + down > 0);
        if let Some(fault) = self.cut.remove(name).filter(|_| waits) {
            self.tally.bit(fault.as_str());
        }
        self.world.heal(name);
    }

    // ---- what is done

    fn perform(&mut self, choice: &Choice) -> Result<(), Violation> {
        match choice {
            Choice::Append(id) => self.append(*id),
            Choice::Store(id) => self.carry_store(*id)?,
            Choice::AgentAppend(name) => self.append_agent(name),
            Choice::ToServer(_) if self.rng.random_ratio(1, 8) && self.slow.is_empty() => {
                self.world.carry_all_to_server();
            }
            Choice::Server(_)
            | Choice::Agent(_)
            | Choice::Connect(_)
            | Choice::Dial(..)
            | Choice::ToAgent(_)
            | Choice::ToServer(_)
            | Choice::End(..) => self.world.perform(choice),
        }
        self.look()
    }

    /// Looks at what has happened, and lets the invariants judge it.
    pub(crate) fn look(&mut self) -> Result<(), Violation> {
        let happened = self.world.take_happened();
        for what in &happened {
            self.note(what);
            match what {
                Happened::Started { agent, id, call } => {
                    let script = self.script(agent, call.phase);
                    self.world.rescript(agent, *id, script);
                }
                Happened::Answered { answer, .. } => self.tally.answered(answer),
                Happened::Recorded { record, .. } => {
                    self.tally.recorded(&record.body);
                }
                Happened::Ended { call, .. } if call.phase == Phase::Fence => {
                    self.was_fenced(&call.member.host)
                }
                Happened::Store(event) => self.watch_store(*event),
                Happened::Ordered { .. }
                | Happened::AgentRecorded { .. }
                | Happened::Asked { .. }
                | Happened::Reported { .. }
                | Happened::Joined(_)
                | Happened::TurnedAway { .. }
                | Happened::Ended { .. }
                | Happened::ServerWarned(_)
                | Happened::Guarded { .. }
                | Happened::AgentWarned { .. } => {}
            }
        }
        self.look_for_guards();
        self.invariants.look(&self.world, &happened)
    }

    /// A host is switched off by a handler, if that did what it is there for. Somebody switches it on again later.
    fn was_fenced(&mut self, host: &HostName) {
        let name: Name = host.as_str().into();
        let is_awaited = |later: &Later| matches!(later, Later::StartAgent(other) if *other == name);
        if self.world.agent(&name).is_some() || self.later.values().any(is_awaited) {
            return;
        }
        self.disks.get_mut(&name).expect("each agent has a disk").crash(Crash::PowerLost);
        let ms = self.rng.random_range(100..=20_000);
        self.later(ms, Later::StartAgent(name));
    }

    /// Where a guard has ended the agent starts another. When there can be none it stops its members by itself when the
    /// lease ends, and tells the server that it has to. When it cannot do that either, before the server has heard of it,
    /// two things that stop members have failed at once, and nothing is promised of them.
    fn look_for_guards(&mut self) {
        for name in self.unguarded.keys().cloned().collect::<Vec<_>>() {
            let is_known = self.world.cluster().is_some_and(|cluster| {
                let mut here = cluster.members.iter().filter(|(id, _)| id.host.as_str() == &*name);
                here.all(|(_, member)| member.guarded.is_empty())
            });
            let is_slow =
                |part: &Slow| *part == Slow::Agent(name.clone()) || *part == Slow::AgentDisk(name.clone());
            let cannot = self.world.agent(&name).is_none()
                || self.world.is_paused(&name)
                || self.excused.contains(&name)
                || self.slow.keys().any(is_slow);
            if is_known || self.world.is_guarded(&name) {
                self.unguarded.remove(&name);
            } else if cannot {
                self.unguarded.remove(&name);
                self.release(&name, "its agent cannot");
            }
        }
    }

    /// Nothing is promised of a host's members any more: its guard has ended, and its agent cannot do it either.
    pub(crate) fn release(&mut self, name: &Name, why: &str) {
        self.tally.unstopped += 1;
        self.say(format!("nothing stops {name}: {why}, and its guard has ended"));
        self.invariants.release(name);
    }

    fn note(&mut self, what: &Happened) {
        if let Some(line) = what.line() {
            self.say(line);
        }
    }

    pub(crate) fn say(&mut self, line: impl AsRef<str>) {
        let line = format!("{:>9} {}", self.world.now().0 - 1_000_000, line.as_ref());
        line.hash(&mut self.digest);
        if self.lines.len() == LINES_MAX {
            self.lines.pop_front();
        }
        self.lines.push_back(line);
    }

    /// What a handler does when it is called.
    fn script(&mut self, agent: &Name, phase: Phase) -> Script {
        let takes_ms = self.rng.random_range(0..=40);
        let well = Script { takes_ms, ..Script::default() };
        let is_stubborn = self.stubborn.as_ref() == Some(agent) && phase == Phase::Check;
        if is_stubborn && self.trouble > 0 {
            self.tally.struck("handler-stubborn");
            self.tally.bit("handler-stubborn");
            let reason = Some("never".to_owned());
            return Script { answer: Answer::No, reason, has_effect: false, ..well };
        }
        if phase == Phase::Stop && self.unguarded.get(agent) == Some(&false) {
            return well;
        }
        let is_move = matches!(phase, Phase::Commit | Phase::Undo | Phase::Stop);
        if is_move && self.struck.as_ref() == Some(agent) && self.hangs() {
            self.tally.struck("handler-hangs");
            self.tally.bit("handler-hangs");
            let has_effect = self.rng.random_ratio(1, 2);
            // A stop ends, and one that says yes has stopped it.
            let stop = Script { takes_ms: STRUCK_STOP_MS, ..well.clone() };
            return if phase == Phase::Stop {
                stop
            } else {
                Script { takes_ms: u64::MAX, has_effect, ..well }
            };
        }
        if phase == Phase::Fence && self.faults.strikes(Fault::FenceFails, &mut self.rng) {
            self.tally.struck(Fault::FenceFails.as_str());
            self.tally.bit(Fault::FenceFails.as_str());
            let (reason, has_effect) = (Some("it does not".to_owned()), self.rng.random_ratio(1, 2));
            return match self.rng.random_range(0..3) {
                0 => Script { answer: Answer::No, reason, has_effect, ..well },
                1 => Script { takes_ms: u64::MAX, has_effect, ..well },
                _ => Script { takes_ms: self.rng.random_range(1000..30_000), ..well },
            };
        }
        let trouble = if phase == Phase::Commit { self.commit_trouble } else { self.trouble };
        if trouble == 0 || !self.rng.random_ratio(1, trouble) {
            return well;
        }
        let reason = Some("it does not".to_owned());
        let has_effect = self.rng.random_ratio(1, 2);
        let (name, script) = match self.rng.random_range(0..5) {
            0 => ("handler-no", Script { answer: Answer::No, reason, has_effect: false, ..well }),
            // It has its effect and does not say so.
            1 => ("handler-liar", Script { answer: Answer::No, reason, has_effect: true, ..well }),
            2 => ("handler-again", Script { answer: Answer::Again, reason, has_effect, ..well }),
            3 => ("handler-hangs", Script { takes_ms: u64::MAX, has_effect, ..well }),
            4 => ("handler-slow", Script { takes_ms: self.rng.random_range(100..6000), ..well }),
            _ => unreachable!("there are five troubles"),
        };
        // Holders let go and software forgets what it prepared, however often they have to be told.
        let is_last_word = matches!(phase, Phase::Release | Phase::Cancel) && self.rng.random_ratio(1, 2);
        if is_last_word {
            return Script { takes_ms, ..Script::default() };
        }
        self.tally.struck(name);
        self.tally.bit(name);
        script
    }

    /// Whether a call hangs on a host that has all the trouble.
    fn hangs(&mut self) -> bool {
        let (some, of) = STRUCK_HANGS;
        self.rng.random_ratio(some, of)
    }

    fn append(&mut self, id: ServerId) {
        let Some(payloads) = self.server_payloads().filter(|_| self.world.active() == Some(id)) else {
            // The store refuses one that was deposed; a write that has landed is only answered.
            self.tally.bit(Fault::ServerDeposed.as_str());
            return self.world.perform(&Choice::Append(id));
        };
        match self.server_disk.append(payloads) {
            Ok(()) => {
                self.full_tries = 0;
                self.world.perform(&Choice::Append(id));
            }
            Err(lockstep_core::log::Error::Full { .. }) if self.full_tries < FULL_TRIES_MAX => {
                self.tally.bit(Fault::ServerDiskFull.as_str());
                self.full_tries += 1;
                self.slow.insert(Slow::ServerDisk, (self.world.now().plus(FULL_PAUSE_MS), None));
            }
            Err(error) => {
                self.tally.bit(Fault::ServerDiskFails.as_str());
                self.say(format!("server stops: {error}"));
                self.end_server(Crash::Process);
            }
        }
    }

    /// What the active server wants to be written, as bytes; none when nothing is, or when it is already.
    pub(crate) fn server_payloads(&self) -> Option<Vec<Vec<u8>>> {
        let records = self.world.in_flight(self.world.active()?)?;
        (!self.world.has_landed()).then(|| encode(records))
    }

    fn append_agent(&mut self, name: &Name) {
        let payloads = encode(self.world.agent_in_flight(name).expect("it was named as one with a write"));
        let disk = self.disks.get_mut(name).expect("each agent has a disk");
        match disk.append(payloads) {
            Ok(()) => self.world.perform(&Choice::AgentAppend(name.clone())),
            Err(error) => {
                let is_full = matches!(error, lockstep_core::log::Error::Full { .. });
                let fault = if is_full { Fault::AgentDiskFull } else { Fault::AgentDiskFails };
                self.tally.bit(fault.as_str());
                self.say(format!("{name} stops: {error}"));
                self.end_agent(name, Crash::Process, false);
            }
        }
    }

    /// Ends the active server's process, and has it started again.
    pub(crate) fn end_server(&mut self, crash: Crash) {
        self.full_tries = 0;
        self.server_disk.crash(crash);
        self.world.kill_server(false);
        let ms = self.rng.random_range(0..=6000);
        self.later(ms, Later::StartServer);
    }

    fn start_server(&mut self) -> Result<(), Violation> {
        if self.world.active().is_some() || !self.machines.is_empty() {
            return Ok(());
        }
        let opened = if self.faults.strikes(Fault::Decay, &mut self.rng) {
            let (at, bit) = (self.rng.random(), self.rng.random());
            let opened = self.server_disk.open_decayed(SERVER, at, bit);
            self.tally.decayed(&opened);
            opened
        } else {
            self.server_disk.open(SERVER)
        };
        match self.opened(SERVER, opened)? {
            Some(records) => {
                self.world.set_journal(records);
                self.world.start_server();
                self.say("server starts");
            }
            None => self.later(500, Later::StartServer),
        }
        self.look()
    }

    /// Another server takes over while the active one is stopped, and has perhaps a write on its way.
    pub(crate) fn depose_server(&mut self) -> Result<(), Violation> {
        let Some(id) = self.world.active() else { return Ok(()) };
        self.world.pause_server();
        if let Some(payloads) = self.server_payloads().filter(|_| self.rng.random_ratio(1, 2)) {
            // Whether it arrived shows below: one whose sync has failed may be there as well.
            let _ = self.server_disk.append(payloads);
        }
        self.server_disk.crash(Crash::Process);
        let opened = self.server_disk.open(SERVER);
        if let Some(records) = self.opened::<Record>(SERVER, opened)? {
            if records.len() > self.world.journal().len() {
                self.world.land();
            }
            self.world.start_server();
            self.say("another server takes over");
            let ms = self.rng.random_range(100..=20_000);
            self.later(ms, Later::ResumeServer(id));
        } else {
            self.end_server(Crash::Process);
        }
        Ok(())
    }

    // ---- servers that share a journal service

    /// A server starts, if none runs on its machine.
    fn stand_by(&mut self, machine: Machine) {
        if self.world.machines().all(|(_, other)| other != machine) {
            let id = self.world.stand_by(machine);
            self.say(format!("server-{} stands by", id.0));
        }
    }

    /// A question comes to the journal service, or an answer to its server, unless something goes wrong just then.
    fn carry_store(&mut self, id: AskId) -> Result<(), Violation> {
        let asked = self.world.asks().find(|(ask, _)| *ask == id).map(|(_, asked)| asked.clone());
        let asked = asked.expect("it was named as one that is on its way");
        let is_write = matches!(asked.ask, Ask::Append { .. }) && !asked.is_given_up && self.is_troubled;
        let fault = is_write.then(|| self.faults.of_writes(&mut self.rng)).flatten();
        match fault {
            Some(fault) => self.disturb_write(id, &asked, fault),
            None => self.world.perform(&Choice::Store(id)),
        }
        Ok(())
    }

    fn watch_store(&mut self, event: StoreEvent) {
        match event {
            StoreEvent::Began { server } => {
                let engine = self.world.servers().find(|(id, _)| *id == server).map(|(_, engine)| engine);
                let is_under_way = engine.is_some_and(|engine| {
                    let cluster = engine.acknowledged();
                    cluster.open.iter().any(|id| cluster.transitions[id].token.is_some())
                });
                // The first one of all finds nothing to take over.
                if self.world.journal().iter().any(|record| matches!(record.body, Body::Reign { .. })) {
                    self.watched.seen.insert("take-over");
                }
                if is_under_way {
                    self.watched.seen.insert("take-over in mid-transition");
                }
            }
            StoreEvent::Wrote { ask, .. } => _ = self.watched.wrote.insert(ask),
            StoreEvent::Unanswered { ask, .. } => _ = self.watched.unanswered.insert(ask),
            StoreEvent::Refused { is_late: true, .. } => {
                self.watched.seen.insert("write comes after another server has begun");
            }
            StoreEvent::Refused { is_late: false, .. } => {
                self.watched.seen.insert("deposed server writes");
            }
            StoreEvent::Found { .. } => _ = self.watched.seen.insert("unanswered write is found"),
            StoreEvent::Won { .. } | StoreEvent::StoodDown { .. } => {}
        }
    }

    /// What seeds have seen of writes to a journal service.
    fn count_writes(&mut self) {
        let Watched { wrote, unanswered, seen } = std::mem::take(&mut self.watched);
        let landed = unanswered.intersection(&wrote).next().is_some();
        let has_not = unanswered.difference(&wrote).next().is_some();
        let seen = seen.into_iter();
        let seen = seen.chain(landed.then_some("unanswered write lands"));
        for what in seen.chain(has_not.then_some("unanswered write does not land")) {
            *self.tally.seen.entry(what).or_default() += 1;
        }
    }

    /// Ends an agent's process, and has it started again.
    pub(crate) fn end_agent(&mut self, name: &Name, crash: Crash, handlers_go_on: bool) {
        let ms = *[0, 300, 2000, 10_000].choose(&mut self.rng).expect("there are some");
        self.end_agent_for(name, crash, handlers_go_on, ms);
    }

    pub(crate) fn end_agent_for(&mut self, name: &Name, crash: Crash, handlers_go_on: bool, away_ms: u64) {
        if self.world.agent(name).is_none() {
            return;
        }
        self.disks.get_mut(name).expect("each agent has a disk").crash(crash);
        if handlers_go_on {
            self.world.kill_agent_only(name, false);
        } else {
            self.world.kill_agent(name, false);
        }
        self.later(away_ms, Later::StartAgent(name.clone()));
    }

    fn start_agent(&mut self, name: &Name) -> Result<(), Violation> {
        if self.world.agent(name).is_some() || !self.disks.contains_key(name) {
            return Ok(());
        }
        let decays = self.faults.strikes(Fault::Decay, &mut self.rng);
        let (at, bit) = (self.rng.random(), self.rng.random());
        let disk = self.disks.get_mut(name).expect("each agent has a disk");
        let opened = if decays { disk.open_decayed(name, at, bit) } else { disk.open(name) };
        if decays {
            self.say(format!("a bit decays at {name}"));
            self.tally.decayed(&opened);
        }
        match self.opened::<AgentRecord>(name, opened)? {
            Some(records) => {
                self.world.set_agent_journal(name, records);
                self.world.start_agent(name);
                self.say(format!("{name} starts"));
            }
            None => self.later(500, Later::StartAgent(name.clone())),
        }
        Ok(())
    }

    /// A second agent under the identity of another, from a copy of its disk.
    pub(crate) fn copy_agent(&mut self, name: &Name) -> Result<bool, Violation> {
        let copy: Name = format!("{name}{COPY}").into();
        if self.world.agent(name).is_none() || self.disks.contains_key(&copy) {
            return Ok(false);
        }
        let mut disk = Journal::default();
        disk.restore(self.disks[name].image());
        // What the copy begins with is what is safe on the disk; the original may have a write under way.
        let opened = disk.open(&copy);
        let records = self.opened(&copy, opened)?;
        let is_new = records.is_some();
        if let Some(records) = records {
            self.disks.insert(copy.clone(), disk);
            self.excuse(name);
            self.excuse(&copy);
            self.invariants.double(name);
            self.world.copy_agent(name, &copy, records);
            self.say(format!("{copy} starts"));
            let ms = self.rng.random_range(100..=5000);
            self.later(ms, Later::EndCopy(copy));
        }
        Ok(is_new)
    }

    pub(crate) fn end_copy(&mut self, copy: &Name) {
        if self.disks.remove(copy).is_some() {
            self.world.forget_agent(copy);
            self.say(format!("{copy} ends"));
        }
    }

    /// An agent that comes back from an old image of its disk has forgotten promises; nobody can ask it to keep them.
    pub(crate) fn excuse(&mut self, name: &Name) {
        self.excused.insert(name.clone());
        self.invariants.excuse(name);
    }

    /// What was read back; none when the disk was in trouble.
    fn opened<T: DeserializeOwned>(
        &mut self,
        who: &str,
        opened: Result<Vec<Vec<u8>>, Unopened>,
    ) -> Result<Option<Vec<T>>, Violation> {
        match opened {
            Ok(payloads) => i23_decay_is_refused::check(who, &payloads).map(Some),
            Err(Unopened::Trouble(error)) => {
                if let lockstep_core::log::Error::Full { .. } = error {
                    let fault = if who == SERVER { Fault::ServerDiskFull } else { Fault::AgentDiskFull };
                    self.tally.bit(fault.as_str());
                }
                self.say(format!("{who} cannot start: {error}"));
                Ok(None)
            }
            Err(Unopened::Broken(violation)) => Err(violation),
        }
    }

    pub(crate) fn jump_wall_clock(&mut self, ms: i64) {
        if !self.options.keeps_wall_clock {
            self.world.jump_wall_clock(ms);
        }
    }

    // ---- the end

    /// Takes every fault back, but that one host stays broken.
    fn heal(&mut self) -> Result<(), Violation> {
        self.say("everything heals");
        (self.trouble, self.commit_trouble, self.struck) = (0, 0, None);
        self.faults.end();
        self.slow.clear();
        let waiting = std::mem::take(&mut self.later);
        for later in waiting.into_values() {
            if let Later::EndCopy(copy) = later {
                self.end_copy(&copy);
            }
        }
        self.server_disk.set_room(None);
        for name in self.disks.keys().cloned().collect::<Vec<_>>() {
            self.disks.get_mut(&name).expect("it was just listed").set_room(None);
            self.heal_link(&name);
            self.world.let_guard(&name);
            if self.world.is_paused(&name) {
                self.world.resume(&name);
            }
            if self.broken.as_ref() == Some(&name) {
                self.world.kill_agent(&name, false);
                self.disks.get_mut(&name).expect("it was just listed").crash(Crash::Process);
            } else {
                self.start_agent(&name)?;
            }
        }
        if !self.machines.is_empty() {
            self.heal_store();
            return self.look();
        }
        let servers: Vec<_> = self.world.servers().map(|(id, _)| id).collect();
        for id in servers {
            self.world.resume_server(id);
            self.world.end_deposed(id);
        }
        self.start_server()
    }

    /// Servers run and reach the journal service, and listen to it.
    fn heal_store(&mut self) {
        self.world.set_store_away(false);
        self.world.heed_ends(true);
        for (id, _) in self.world.machines().collect::<Vec<_>>() {
            self.world.resume_server(id);
        }
        for machine in self.machines.clone() {
            self.world.heal_store(machine);
            self.stand_by(machine);
        }
    }

    /// What seldom comes together by chance is made to: every group serves, then one host has all the trouble, or is gone for
    /// good. From there on everything has to resolve once more. All of it comes after all else, so that a seed is the run
    /// that it would be without, as far as that goes.
    fn go_on(&mut self) -> Result<(), Violation> {
        self.world.turn_to(None);
        if self.world.active().is_some() {
            self.world.thaw(BTreeSet::new());
            self.asks += 1;
            self.ask_for(self.shape.all_up("up-again"))?;
        }
        self.turn_until(self.world.now().plus(UP_AGAIN_MS), false)?;
        match self.broken.clone() {
            Some(name) => self.give_up(&name)?,
            None => self.pile_up()?,
        }
        self.resolve()
    }

    /// The host that has stayed broken is switched off for good, and an operator has it forgotten once it is lost.
    fn give_up(&mut self, name: &Name) -> Result<(), Violation> {
        let host: HostName = name.parse().expect("agents are named by their hosts");
        self.say(format!("{name} is given up"));
        self.world.power_off(&host);
        self.turn_until(self.world.now().plus(GIVE_UP_MS), false)?;
        if self.world.active().is_some() {
            self.world.ask_of_host(host, HostAsk::Forget { is_stopped: true });
            self.asks += 1;
        }
        self.look()
    }

    /// One host has many of the troubles that a host can have, one soon after the other, while operators go on asking:
    /// preferably one that somebody counts on to stop what it runs.
    fn pile_up(&mut self) -> Result<(), Violation> {
        let has_agent = |name: &&Name| self.world.agent(name).is_some();
        let is_free = |name: &&Name| self.spared.as_ref() != Some(*name) && !self.excused.contains(*name);
        let free: Vec<Name> = self.disks.keys().filter(has_agent).filter(is_free).cloned().collect();
        let guarded: Vec<Name> = free.iter().filter(|name| self.world.is_guarded(name)).cloned().collect();
        let is_of_guarded = !guarded.is_empty() && self.rng.random_ratio(2, 3);
        let some = if is_of_guarded { guarded } else { free };
        let Some(name) = some.choose(&mut self.rng).cloned() else { return Ok(()) };
        self.say(format!("trouble piles up at {name}"));
        self.faults = Faults::of_one_host(&mut self.rng);
        self.asks_every_ms = PILE_UP_ASKS_MS;
        let now = self.world.now();
        (self.next_ask, self.next_fault) = (now.plus(1), now.plus(1));
        if self.rng.random_ratio(1, 2) {
            // What it is at then goes on, with nobody to tell of it.
            let ms = self.rng.random_range(1..=3000);
            self.later(ms, Later::Cut(name.clone()));
        }
        self.struck = Some(name);
        if self.world.active().is_some() {
            self.ask_for(self.shape.all_set("set-last"))?;
        }
        self.is_troubled = true;
        self.turn_until(now.plus(PILE_UP_MS), true)?;
        self.is_troubled = false;
        self.heal()
    }

    fn resolve(&mut self) -> Result<(), Violation> {
        let began = self.world.now();
        loop {
            let next = self.world.now().plus(2000);
            self.turn_until(next, false)?;
            let found = self.invariants.end(&self.world);
            let after_ms = self.world.now().since(began);
            if found.is_ok() || after_ms > RESOLVE_MS {
                self.tally.resolved_ms_max = self.tally.resolved_ms_max.max(after_ms);
                return found;
            }
        }
    }
}

fn encode<T: Serialize>(records: &[T]) -> Vec<Vec<u8>> {
    records.iter().map(|record| serde_json::to_vec(record).expect("records are plain data")).collect()
}
