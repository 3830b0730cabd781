//! The faults: each kind is a knob with what it does, how it is mended, and how it is seen to have bitten. One that was
//! made and had no effect counts for nothing.

use crate::clock::Stamp;
use crate::command::run_args;
use crate::etcd;
use crate::history::{Accepted, CutOff, Struck, TakeOver, text};
use crate::http::{self, Ask};
use crate::member::Defect;
use crate::network::{self, Layout, Place, Way, layout};
use crate::random::Random;
use crate::reader::{self, Shared};
use crate::workload::{self, GROUPS, LEASED};
use crate::world::{EXCUSED, HOSTS, PROXIED, World, is_stopped};
use rustix::process::{Pid, Signal, kill_process, kill_process_group};
use serde_json::{Value, json};
use std::fs;
use std::io::{self, Read, Write};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// Targets that are more than one process or host: every process, every network, every member of etcd.
const ALL: &str = "all";
const NET: &str = "net";
const ETCD: &str = "etcd";
/// How long a reign lasts that nobody renews, and more: what took the active server away has made room for another one.
const REIGN_OVER_MS: u64 = 3500;
/// How long somebody waits for a write to be acknowledged again.
const TAKE_OVER_MAX: Duration = Duration::from_secs(60);
/// How long a request of theirs may take.
const TRY_MAX: Duration = Duration::from_secs(1);
/// How long etcd may take to replace a member: it does not when it has not seen all others for some seconds.
const REPLACE_MAX: Duration = Duration::from_secs(30);

/// Writes down the kinds of faults in one place: each one's variant, its name, and the servers that it is made with.
macro_rules! kinds {
    ($($kind:ident = $name:literal, [$($layout:ident),+];)+) => {
        /// What may be done.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
        pub(crate) enum Kind {
            $($kind,)+
        }

        impl Kind {
            pub(crate) const ALL: [Self; [$(Self::$kind),+].len()] = [$(Self::$kind),+];

            pub(crate) fn name(self) -> &'static str {
                match self {
                    $(Self::$kind => $name,)+
                }
            }

            /// Whether it is made with these servers. What is done to the disk of one server's store has no place where
            /// etcd has the disks; and what is done to one of several servers depends on whether it is the active one.
            pub(crate) fn is_for(self, layout: Layout) -> bool {
                match self {
                    $(Self::$kind => [$(Layout::$layout),+].contains(&layout),)+
                }
            }
        }
    };
}

kinds! {
    // The slowest one to bite, which is made first.
    SlowSubscriber = "slow-subscriber", [One, Three];
    ServerKilled = "server-killed", [One];
    ServerStopped = "server-stopped", [One];
    ServerKilledInTransition = "server-killed-in-transition", [One];
    ServerDiskFull = "server-disk-full", [One];
    ServerSyncFails = "server-sync-fails", [One];
    ServerKilledInSync = "server-killed-in-sync", [One];
    ServerPowerCut = "server-power-cut", [One];
    ServerClockForward = "server-clock-forward", [One, Three];
    ServerClockBack = "server-clock-back", [One, Three];
    AllKilled = "all-killed", [One, Three];
    AgentKilled = "agent-killed", [One, Three];
    AgentStopped = "agent-stopped", [One, Three];
    AgentDiskFull = "agent-disk-full", [One, Three];
    AgentSyncFails = "agent-sync-fails", [One, Three];
    AgentKilledInSync = "agent-killed-in-sync", [One, Three];
    AgentClockForward = "agent-clock-forward", [One, Three];
    AgentClockBack = "agent-clock-back", [One, Three];
    AgentRestored = "agent-restored", [One, Three];
    AgentDoubled = "agent-doubled", [One, Three];
    HandlerKilled = "handler-killed", [One, Three];
    HandlerStopped = "handler-stopped", [One, Three];
    SoftwareKilled = "software-killed", [One, Three];
    GuardKilled = "guard-killed", [One, Three];
    CutFull = "cut-full", [One, Three];
    CutOut = "cut-out", [One, Three];
    CutIn = "cut-in", [One, Three];
    CutPartial = "cut-partial", [One, Three];
    LinkFlaps = "link-flaps", [One, Three];
    ConnectionReset = "connection-reset", [One, Three];
    Delay = "delay", [One, Three];
    Jitter = "jitter", [One, Three];
    Overtaken = "overtaken", [One, Three];
    ActiveKilled = "active-killed", [Three];
    ActiveStopped = "active-stopped", [Three];
    ActiveKilledInTransition = "active-killed-in-transition", [Three];
    StandbyKilled = "standby-killed", [Three];
    StandbyStopped = "standby-stopped", [Three];
    SteppedDown = "stepped-down", [Three];
    ServerLosesEtcd = "server-loses-etcd", [Three];
    CutServerMember = "cut-server-etcd", [Three];
    CutMemberMember = "cut-etcd-etcd", [Three];
    CutAgentServer = "cut-agent-server", [Three];
    MinorityCutOff = "minority-cut-off", [Three];
    EtcdLeaderKilled = "etcd-leader-killed", [Three];
    EtcdMemberStopped = "etcd-member-stopped", [Three];
    EtcdMemberReplaced = "etcd-member-replaced", [Three];
    EtcdNoMajority = "etcd-no-majority", [Three];
    EtcdCompacted = "etcd-compacted", [Three];
}

impl Kind {
    /// Whether it is made to the active server, or to another one.
    fn is_of_roles(self) -> bool {
        let of_roles = [
            Self::ActiveKilled,
            Self::ActiveStopped,
            Self::ActiveKilledInTransition,
            Self::StandbyKilled,
            Self::StandbyStopped,
            Self::SteppedDown,
            Self::ServerLosesEtcd,
            Self::MinorityCutOff,
        ];
        of_roles.contains(&self)
    }

    /// What it is made to, where `active` is the active server. Two faults of one target would undo each other; those of a host's network and of its
    /// processes lie on top of each other gladly.
    fn target(self, random: &mut Random, spared: &str, active: &str) -> String {
        let standbys = || -> Vec<&'static str> {
            Layout::Three.servers().iter().map(|(name, _)| *name).filter(|name| *name != active).collect()
        };
        let others: Vec<&str> = HOSTS.into_iter().filter(|host| *host != spared).collect();
        let proxied: Vec<&str> = PROXIED.into_iter().filter(|host| *host != spared).collect();
        match self {
            Self::ServerKilled
            | Self::ServerStopped
            | Self::ServerKilledInTransition
            | Self::ServerDiskFull
            | Self::ServerSyncFails
            | Self::ServerKilledInSync
            | Self::ServerPowerCut => "server".to_owned(),
            Self::AllKilled => ALL.to_owned(),
            // The active one has something to say, by which its clock is seen.
            Self::ServerClockForward | Self::ServerClockBack => format!("{active}/clock"),
            Self::ActiveKilled | Self::ActiveStopped | Self::ActiveKilledInTransition | Self::SteppedDown => {
                active.to_owned()
            }
            Self::StandbyKilled | Self::StandbyStopped => random.pick(&standbys()).to_owned(),
            Self::ServerLosesEtcd => format!("{active}/net"),
            Self::CutServerMember => format!("{}/net", some(random, Layout::Three.servers())),
            Self::CutMemberMember => "etcd/net".to_owned(),
            // What is cut off by address must not dial through the proxy.
            Self::CutAgentServer => {
                let direct: Vec<&str> = others.into_iter().filter(|host| !PROXIED.contains(host)).collect();
                format!("{}/net", random.pick(&direct))
            }
            Self::MinorityCutOff => NET.to_owned(),
            Self::EtcdLeaderKilled
            | Self::EtcdMemberStopped
            | Self::EtcdMemberReplaced
            | Self::EtcdNoMajority => ETCD.to_owned(),
            Self::EtcdCompacted => "etcd/history".to_owned(),
            Self::AgentKilled
            | Self::AgentStopped
            | Self::AgentDiskFull
            | Self::AgentSyncFails
            | Self::AgentKilledInSync => random.pick(&others).to_owned(),
            // While it is being replaced nothing else may happen to the agent: nobody guards if both are dead.
            Self::GuardKilled => {
                let leased = GROUPS.iter().filter(|group| group.name == LEASED).flat_map(|group| group.hosts);
                let hosts: Vec<&str> = leased.copied().filter(|host| *host != spared).collect();
                random.pick(&hosts).to_owned()
            }
            // Every host may have a clock that jumps, also the one that nothing else is done to.
            Self::AgentClockForward | Self::AgentClockBack => format!("{}/clock", random.pick(&HOSTS)),
            Self::AgentRestored | Self::AgentDoubled => EXCUSED.to_owned(),
            Self::HandlerKilled | Self::HandlerStopped | Self::SoftwareKilled => {
                format!("{}/handler", random.pick(&others))
            }
            Self::CutFull | Self::CutOut | Self::CutIn | Self::LinkFlaps | Self::ConnectionReset => {
                format!("{}/net", random.pick(&others))
            }
            Self::CutPartial => NET.to_owned(),
            Self::Delay | Self::Jitter | Self::Overtaken => format!("{}/proxy", random.pick(&proxied)),
            Self::SlowSubscriber => "subscriber".to_owned(),
        }
    }
}

/// How a fault is mended; says whether it has bitten, and how often its target went and came.
type Mend = Box<dyn FnOnce(&mut World) -> io::Result<(bool, u64)>>;

/// A fault that lasts.
pub(crate) struct Active {
    pub(crate) kind: Kind,
    pub(crate) target: String,
    pub(crate) from: Stamp,
    pub(crate) until: Instant,
    mend: Mend,
}

impl Active {
    pub(crate) fn mend(self, world: &mut World) -> io::Result<(bool, u64)> {
        (self.mend)(world)
    }
}

/// What faults are made with.
pub(crate) struct Striker {
    pub(crate) random: Random,
    pub(crate) spared: String,
    pub(crate) history: Shared,
    /// The longest that a fault lasts.
    pub(crate) longest_ms: u64,
    pub(crate) defect: Option<Defect>,
}

/// The process or host that a target is, or is of.
fn place_of(target: &str) -> &str {
    target.split('/').next().unwrap_or_default()
}

/// Whether a fault that lasts is in the way of another one: whoever is killed with all others is in nobody else's hands,
/// and a cut of many is no other's.
fn is_taken(kind: Kind, target: &str, other: &Active) -> bool {
    let are = |all: &str, is_one: &dyn Fn(&str) -> bool| {
        (target == all && is_one(&other.target)) || (other.target == all && is_one(target))
    };
    let is_process = |target: &str| {
        World::all().any(|name| name == target) || target.ends_with("/handler") || target == ETCD
    };
    // A member is replaced while the others are well and reach each other.
    let replaces = [kind, other.kind].contains(&Kind::EtcdMemberReplaced)
        && [target, &other.target].iter().any(|target| [NET, "etcd/net"].contains(target));
    other.target == target
        || are(NET, &|target| target.ends_with("/net"))
        || are(ALL, &is_process)
        || replaces
}

fn bitten(has_bitten: bool) -> (bool, u64) {
    (has_bitten, 1)
}

impl Striker {
    /// Makes a fault, if its target is free of others.
    pub(crate) fn strike(
        &mut self,
        world: &mut World,
        kind: Kind,
        active_server: Option<&'static str>,
        active: &[Active],
    ) -> io::Result<Option<Active>> {
        let active_server = match active_server {
            Some(active) => active,
            // While nobody is, everything else may happen.
            None if !kind.is_of_roles() => layout().servers()[0].0,
            None => return Ok(None),
        };
        let target = kind.target(&mut self.random, &self.spared, active_server);
        if active.iter().any(|other| is_taken(kind, &target, other)) {
            return Ok(None);
        }
        let from = Stamp::now();
        // Written down before it is made: what is seen meanwhile comes of it.
        self.history.lock().struck.push(Struck {
            kind: kind.name(),
            target: target.clone(),
            from,
            to: None,
            has_bitten: false,
            turns: 1,
        });
        let Some((lasts, mend)) = self.make(world, kind, &target, active_server, from)? else {
            // What was written down as made was not.
            self.history.lock().struck.pop();
            return Ok(None);
        };
        Ok(Some(Active { kind, target, from, until: Instant::now() + lasts, mend }))
    }

    /// Makes a fault; tells how long it lasts and how it is mended, or nothing where it cannot be made now.
    fn make(
        &mut self,
        world: &mut World,
        kind: Kind,
        target: &str,
        active_server: &'static str,
        from: Stamp,
    ) -> io::Result<Option<(Duration, Mend)>> {
        let host = place_of(target).to_owned();
        let long = Duration::from_millis(self.random.within(1000, self.longest_ms));
        let short = Duration::from_millis(self.random.within(200, 2000));
        let made: (Duration, Mend) = match kind {
            Kind::ServerKilled | Kind::AgentKilled | Kind::StandbyKilled => {
                (if self.random.percent(50) { short } else { long }, kill(world, &host))
            }
            Kind::ServerStopped | Kind::AgentStopped | Kind::StandbyStopped => (long, stop(world, &host)),
            Kind::ServerKilledInTransition => (short, self.kill_in_transition(world, "server")),
            Kind::ServerDiskFull => (Duration::from_secs(9), fill_server(world)?),
            Kind::AgentDiskFull => (Duration::from_secs(5), fill_agent(world, &host)?),
            Kind::ServerSyncFails | Kind::AgentSyncFails => {
                (Duration::from_secs(9), self.sync_fails(world, &host)?)
            }
            Kind::ServerKilledInSync | Kind::AgentKilledInSync => {
                let nth = self.random.within(1, 12);
                (Duration::from_secs(6), kill_in_sync(world, &host, nth)?)
            }
            Kind::ServerPowerCut => (short, power_cut(world)?),
            Kind::ServerClockForward | Kind::AgentClockForward => {
                (long.max(Duration::from_secs(5)), clock(world, &host, 3600)?)
            }
            Kind::ServerClockBack | Kind::AgentClockBack => {
                (long.max(Duration::from_secs(5)), clock(world, &host, -3600)?)
            }
            Kind::AllKilled => (short, kill_all(world)),
            Kind::AgentRestored => (short, self.restore(world, &host)?),
            Kind::AgentDoubled => (long, double(world, &host)?),
            Kind::HandlerKilled => (Duration::ZERO, kill_handler(world, &host)),
            Kind::HandlerStopped => (long.min(Duration::from_secs(8)), stop_handler(world, &host)),
            Kind::SoftwareKilled => (Duration::ZERO, self.kill_software(world, &host)),
            Kind::GuardKilled => (Duration::from_secs(4), kill_guard(world, &host)),
            Kind::CutFull => (long, cut(vec![host], Way::Both)?),
            Kind::CutOut => (long, cut(vec![host], Way::Out)?),
            Kind::CutIn => (long, cut(vec![host], Way::In)?),
            Kind::CutPartial => {
                let mut hosts: Vec<&str> = HOSTS.into_iter().filter(|host| *host != self.spared).collect();
                self.random.shuffle(&mut hosts);
                (long, cut(hosts.into_iter().take(2).map(str::to_owned).collect(), Way::Both)?)
            }
            Kind::LinkFlaps => (long.max(Duration::from_secs(4)), self.flap(&host)),
            Kind::ConnectionReset => (short.min(Duration::from_millis(700)), reset(&host)?),
            Kind::Delay => (long, self.delay(world, &host, true)),
            Kind::Jitter => (long, self.delay(world, &host, false)),
            Kind::Overtaken => (Duration::from_secs(7), overtake(world, &host)),
            Kind::SlowSubscriber => (Duration::from_secs(40), self.subscribe()?),
            Kind::ActiveKilled => {
                let mend = kill(world, &host);
                self.await_take_over(kind, from);
                (if self.random.percent(50) { short } else { long }, mend)
            }
            Kind::ActiveKilledInTransition => {
                let mend = self.kill_in_transition(world, &host);
                self.await_take_over(kind, Stamp::now());
                (short, mend)
            }
            Kind::ActiveStopped => {
                let mend = stop(world, &host);
                self.await_take_over(kind, from);
                // Some wake before anybody could take over, most find somebody else in their place.
                let is_long = self.random.percent(70);
                (if is_long { long.max(Duration::from_millis(REIGN_OVER_MS)) } else { short }, mend)
            }
            Kind::SteppedDown => {
                let mend = step_down(&host);
                self.await_take_over(kind, from);
                (Duration::ZERO, mend)
            }
            Kind::ServerLosesEtcd => {
                let all: Vec<&str> = layout().members().iter().map(|(name, _)| *name).collect();
                let mend = self.cut_off(&host, &[(&host, &all)])?;
                self.await_take_over(kind, from);
                (long.max(Duration::from_millis(REIGN_OVER_MS)), mend)
            }
            Kind::CutServerMember => {
                let member = some(&mut self.random, layout().members());
                (long, cut_between(&host, &[member])?)
            }
            Kind::CutMemberMember => {
                let mut members: Vec<&str> = layout().members().iter().map(|(name, _)| *name).collect();
                self.random.shuffle(&mut members);
                (long, cut_between(members[0], &[members[1]])?)
            }
            Kind::CutAgentServer => {
                let server = match self.random.percent(70) {
                    true => active_server,
                    false => some(&mut self.random, layout().servers()),
                };
                (long, cut_between(&host, &[server])?)
            }
            Kind::MinorityCutOff => {
                let member = some(&mut self.random, layout().members());
                let rest = |of: &[Place], but: &str| -> Vec<&'static str> {
                    of.iter().map(|(name, _)| *name).filter(|name| *name != but).collect()
                };
                let members = rest(layout().members(), member);
                let servers = rest(layout().servers(), active_server);
                let majority = [members, servers].concat();
                let mend = self.cut_off(active_server, &[(active_server, &majority), (member, &majority)])?;
                self.await_take_over(kind, from);
                (long.max(Duration::from_millis(REIGN_OVER_MS)), mend)
            }
            Kind::EtcdLeaderKilled => {
                let Some((leader, _)) = etcd::leader() else { return Ok(None) };
                (long, kill(world, leader))
            }
            Kind::EtcdMemberStopped => {
                let member = some(&mut self.random, layout().members());
                (long, stop(world, member))
            }
            Kind::EtcdMemberReplaced => {
                if !etcd::is_whole() {
                    return Ok(None);
                }
                let places = layout().members();
                let member = places[usize::try_from(self.random.within(0, 2)).expect("it is small")];
                (Duration::from_secs(4), replace(world, member))
            }
            Kind::EtcdNoMajority => {
                let mut members: Vec<&'static str> =
                    layout().members().iter().map(|(name, _)| *name).collect();
                self.random.shuffle(&mut members);
                let is_kill = self.random.percent(50);
                (long, self.no_majority(world, [members[0], members[1]], is_kill))
            }
            Kind::EtcdCompacted => {
                let was_done = etcd::compact();
                (Duration::ZERO, Box::new(move |_| Ok(bitten(was_done))))
            }
        };
        Ok(Some(made))
    }

    /// Somebody sends requests until one is acknowledged.
    fn await_take_over(&mut self, kind: Kind, from: Stamp) {
        let (history, mut random) = (self.history.clone(), Random::new(self.random.next()));
        std::thread::spawn(move || {
            let began = Instant::now();
            let mut took_ms = None;
            let mut number = 0;
            while took_ms.is_none() && began.elapsed() < TAKE_OVER_MAX {
                for server in layout().servers() {
                    number += 1;
                    // Where one of them asks for nothing new the other does.
                    let target = if number % 2 == 0 { "audit=up" } else { "audit=down" };
                    let id = format!("over-{}-{number}", from.0);
                    if try_write(&history, *server, &id, target) {
                        took_ms = Some(Stamp::now().ms_since(from));
                        break;
                    }
                }
                std::thread::sleep(Duration::from_millis(random.within(10, 40)));
            }
            history.lock().take_overs.push(TakeOver { kind: kind.name(), from, took_ms });
        });
    }

    /// Cuts places off from others, so that a server cannot reach a majority of etcd; somebody asks it for things meanwhile.
    fn cut_off(&mut self, server: &str, cuts: &[(&str, &[&str])]) -> io::Result<Mend> {
        for (place, others) in cuts {
            network::cut_between(place, others)?;
        }
        let asked = Asked::start(&self.history, &[server], self.defect);
        let places: Vec<String> = cuts.iter().map(|(place, _)| (*place).to_owned()).collect();
        Ok(Box::new(move |_| {
            let count = asked.end()?;
            let hits = places.iter().map(|place| network::heal(place)).collect::<io::Result<Vec<_>>>()?;
            Ok((count > 0 && hits.iter().all(|packets| *packets > 0), hits.len() as u64))
        }))
    }

    /// Two of etcd's three members are killed or stopped.
    fn no_majority(&mut self, world: &mut World, members: [&'static str; 2], is_kill: bool) -> Mend {
        let mends = members.map(|member| if is_kill { kill(world, member) } else { stop(world, member) });
        let servers: Vec<&str> = layout().servers().iter().map(|(name, _)| *name).collect();
        let asked = Asked::start(&self.history, &servers, self.defect);
        Box::new(move |world| {
            let mut has_bitten = asked.end()? > 0;
            for mend in mends {
                has_bitten &= mend(world)?.0;
            }
            Ok(bitten(has_bitten))
        })
    }

    fn kill_in_transition(&mut self, world: &mut World, server: &str) -> Mend {
        let is_under_way = || {
            let list = http::get("/v1/transitions").unwrap_or_default();
            let items = list["items"].as_array().cloned().unwrap_or_default();
            items.iter().any(|item| ["prepare", "commit", "release"].contains(&text(item, "phase")))
        };
        let began = Instant::now();
        let mut was_under_way = false;
        while !was_under_way && began.elapsed() < Duration::from_secs(4) {
            was_under_way = is_under_way();
        }
        let (was_running, server) = (world.kill(server), server.to_owned());
        Box::new(move |world| {
            world.start(&server)?;
            Ok(bitten(was_running && was_under_way))
        })
    }

    /// A sync fails, once. Whoever is told so may never say again that anything is safe: it has to end.
    fn sync_fails(&mut self, world: &mut World, name: &str) -> io::Result<Mend> {
        let tracer = Tracer::attach(world, name, "error=EIO:when=1")?;
        let was = world.pid(name);
        let (history, name) = (self.history.clone(), name.to_owned());
        Ok(Box::new(move |world| {
            let Some(injected) = tracer.injected() else {
                tracer.detach();
                return Ok(bitten(false));
            };
            if was.is_some()
                && world.is_up(&name)
                && world.pid(&name) == was
                && injected.elapsed() > Duration::from_secs(3)
            {
                history.lock().broken.push((22, format!("{name} runs on after a sync that failed")));
            }
            tracer.detach();
            Ok(bitten(true))
        }))
    }

    /// The image of the agent's disk that was made at first comes back.
    fn restore(&mut self, world: &mut World, host: &str) -> io::Result<Mend> {
        let (data, image) = (world.agent_data(host), world.dir.join(format!("{host}.image")));
        let log = |dir: &std::path::Path| fs::read(dir.join("log")).unwrap_or_default();
        world.kill(host);
        let differs = log(&data) != log(&image);
        World::copy(&image, &data)?;
        let host = host.to_owned();
        Ok(Box::new(move |world| {
            world.start(&host)?;
            Ok(bitten(differs))
        }))
    }

    fn kill_software(&mut self, world: &World, host: &str) -> Mend {
        let suffix = format!("@{host}.processes");
        let entries = fs::read_dir(world.software()).into_iter().flatten().flatten();
        let lists = entries.filter(|entry| entry.file_name().to_string_lossy().ends_with(&suffix));
        let texts = lists.filter_map(|entry| fs::read_to_string(entry.path()).ok());
        let pids: Vec<i32> = texts
            .flat_map(|text| {
                text.lines().filter_map(|line| line.split(' ').next()?.parse().ok()).collect::<Vec<_>>()
            })
            .collect();
        let killed = pids
            .first()
            .and_then(|pid| Pid::from_raw(*pid))
            .is_some_and(|pid| kill_process(pid, Signal::KILL).is_ok());
        Box::new(move |_| Ok(bitten(killed)))
    }

    fn flap(&mut self, host: &str) -> Mend {
        let stop = Arc::new(AtomicBool::new(false));
        let (flag, host, mut random, longest) =
            (stop.clone(), host.to_owned(), Random::new(self.random.next()), self.longest_ms);
        let flapping = std::thread::spawn(move || {
            let (mut packets, mut turns) = (0, 0);
            while !flag.load(Ordering::Relaxed) {
                if network::cut(&host, Way::Both).is_err() {
                    break;
                }
                let most = if random.percent(70) { 1500 } else { longest.min(20_000) };
                pause(&flag, random.within(300, most));
                packets += network::heal(&host).unwrap_or(0);
                turns += 1;
                pause(&flag, random.within(300, most));
            }
            (packets, turns)
        });
        Box::new(move |_| {
            stop.store(true, Ordering::Relaxed);
            let (packets, turns) =
                flapping.join().map_err(|_| io::Error::other("the flapping link panicked"))?;
            Ok((packets > 0 && turns > 1, turns))
        })
    }

    fn delay(&mut self, world: &World, host: &str, is_steady: bool) -> Mend {
        let knobs = world.proxies[host].clone();
        let before = knobs.delayed.load(Ordering::Relaxed);
        let ms = self.random.within(20, 600);
        let knob = if is_steady { &knobs.delay_ms } else { &knobs.jitter_ms };
        knob.store(ms, Ordering::Relaxed);
        Box::new(move |_| {
            knobs.delay_ms.store(0, Ordering::Relaxed);
            knobs.jitter_ms.store(0, Ordering::Relaxed);
            Ok(bitten(knobs.delayed.load(Ordering::Relaxed) > before))
        })
    }

    /// Somebody follows the events from the beginning and reads nothing of them.
    fn subscribe(&mut self) -> io::Result<Mend> {
        let Ok(mut stream) = slow_stream() else { return Ok(Box::new(|_| Ok(bitten(false)))) };
        let history = self.history.clone();
        let newest = history.lock().revision;
        Ok(Box::new(move |_| {
            let waiting = rustix::io::ioctl_fionread(&stream).unwrap_or(0);
            let went_on = history.lock().revision > newest;
            // What it finds when it reads at last is the beginning, and then an end that the server made.
            stream.set_read_timeout(Some(Duration::from_secs(3)))?;
            let mut bytes = Vec::new();
            let ended = stream.read_to_end(&mut bytes);
            let was_cut_off =
                ended.is_ok() || ended.is_err_and(|error| error.kind() == io::ErrorKind::ConnectionReset);
            Ok(bitten(waiting > 0 && went_on && was_cut_off))
        }))
    }
}

fn slow_stream() -> io::Result<std::net::TcpStream> {
    use rustix::net::{AddressFamily, SocketType, sockopt};
    let socket = rustix::net::socket(AddressFamily::INET, SocketType::STREAM, None)?;
    // As little room as there can be, before the connection says how much there is.
    sockopt::set_socket_recv_buffer_size(&socket, 2048)?;
    let host = http::address_of(http::some_server());
    rustix::net::connect(&socket, &host)?;
    let mut stream = std::net::TcpStream::from(socket);
    stream.write_all(format!("GET /v1/events?since=0 HTTP/1.1\r\nhost: {host}\r\n\r\n").as_bytes())?;
    Ok(stream)
}

/// Waits so long, or until told to stop.
fn pause(stop: &AtomicBool, ms: u64) {
    let until = Instant::now() + Duration::from_millis(ms);
    while Instant::now() < until && !stop.load(Ordering::Relaxed) {
        std::thread::sleep(Duration::from_millis(20));
    }
}

fn kill(world: &mut World, name: &str) -> Mend {
    let (was_running, name) = (world.kill(name), name.to_owned());
    Box::new(move |world| {
        world.start(&name)?;
        Ok(bitten(was_running))
    })
}

fn kill_all(world: &mut World) -> Mend {
    let handlers: Vec<Pid> = HOSTS.iter().flat_map(|host| world.handlers(host)).collect();
    let killed: Vec<&str> = World::all().filter(|name| world.kill(name)).collect();
    for handler in handlers {
        // Some have ended meanwhile.
        let _ = kill_process_group(handler, Signal::KILL);
    }
    Box::new(move |world| {
        for name in World::all() {
            world.start(name)?;
        }
        let was_server = killed.iter().any(|name| layout().is_server(name));
        Ok(bitten(killed.len() > HOSTS.len() / 2 && was_server))
    })
}

/// The name of one of them.
fn some(random: &mut Random, of: &[Place]) -> &'static str {
    let names: Vec<&'static str> = of.iter().map(|(name, _)| *name).collect();
    let place = random.within(0, names.len() as u64 - 1);
    names[usize::try_from(place).expect("it is small")]
}

/// Asks one server, or whom it sends us on to, for a transition; says whether that was acknowledged.
fn try_write(history: &Shared, server: Place, request_id: &str, target: &str) -> bool {
    let body = json!({ "targets": [target], "request_id": request_id });
    let begun = Stamp::now();
    let Some(answer) = http::ask_through(server, Ask::post("/v1/transitions", &body, TRY_MAX)) else {
        return false;
    };
    history.lock().accept(request_id, &answer, begun)
}

/// Asks servers that cannot reach etcd for what they may not give.
struct Asked {
    stop: Arc<AtomicBool>,
    asking: JoinHandle<u64>,
    history: Shared,
    from: Stamp,
}

impl Asked {
    fn start(history: &Shared, servers: &[&str], defect: Option<Defect>) -> Self {
        let from = Stamp::now();
        let is_one = |place: &&Place| servers.contains(&place.0);
        let places: Vec<Place> = layout().servers().iter().filter(is_one).copied().collect();
        for (server, _) in &places {
            let server = (*server).to_owned();
            history.lock().cut_off.push(CutOff { server, from, to: None, asked: 0 });
        }
        let stop = Arc::new(AtomicBool::new(false));
        let (flag, shared) = (stop.clone(), history.clone());
        let asking = std::thread::spawn(move || {
            let mut asked = 0;
            while !flag.load(Ordering::Relaxed) {
                for place in &places {
                    asked += 1;
                    let id = format!("cut-{}-{asked}", from.0);
                    let begun = Stamp::now();
                    let target = if asked % 2 == 0 { "audit=up" } else { "audit=down" };
                    let body = json!({ "targets": [target], "request_id": id });
                    // It alone: whom it sends us on to may well answer.
                    let answer = http::ask_one(*place, Ask::post("/v1/transitions", &body, TRY_MAX));
                    let mut history = shared.lock();
                    if let Some(answer) = answer {
                        history.accept(&id, &answer, begun);
                    }
                    if defect == Some(Defect::MinorityAcks) {
                        let (transition, server) = ("t0".to_owned(), place.0.to_owned());
                        let at = Stamp::now();
                        history.accepted.push(Accepted { transition, request_id: id, server, begun, at });
                    }
                    drop(history);
                    reader::read_consistently(*place, &shared);
                }
                pause(&flag, 100);
            }
            asked
        });
        Self { stop, asking, history: history.clone(), from }
    }

    /// From now on they may be able to again; tells how often they were asked.
    fn end(self) -> io::Result<u64> {
        let to = Stamp::now();
        self.stop.store(true, Ordering::Relaxed);
        let mut history = self.history.lock();
        for cut_off in history.cut_off.iter_mut().filter(|cut_off| cut_off.from == self.from) {
            cut_off.to = Some(to);
        }
        drop(history);
        let asked = self.asking.join().map_err(|_| io::Error::other("asking panicked"))?;
        let mut history = self.history.lock();
        for cut_off in history.cut_off.iter_mut().filter(|cut_off| cut_off.from == self.from) {
            cut_off.asked = asked;
        }
        Ok(asked)
    }
}

fn cut_between(place: &str, others: &[&str]) -> io::Result<Mend> {
    network::cut_between(place, others)?;
    let place = place.to_owned();
    Ok(Box::new(move |_| Ok(bitten(network::heal(&place)? > 0))))
}

/// An operator wants another server to be the active one.
fn step_down(server: &str) -> Mend {
    let place = (layout().servers().iter().find(|(name, _)| *name == server)).copied();
    let asked = place.and_then(|place| {
        http::ask_one(place, Ask::post("/v1/server/step-down", &json!({}), Duration::from_secs(3)))
    });
    let has_stepped_down = asked.is_some_and(|answer| answer.status == 200);
    Box::new(move |_| Ok(bitten(has_stepped_down)))
}

/// A member of etcd dies for good, is removed, and one that has nothing takes its place.
fn replace(world: &mut World, member: Place) -> Mend {
    let was_running = world.kill(member.0);
    let data = world.member_data(member.0);
    let replacing = std::thread::spawn(move || {
        let began = Instant::now();
        let (mut is_removed, mut is_added) = (false, false);
        while !is_added && began.elapsed() < REPLACE_MAX {
            is_removed = is_removed || etcd::remove(member);
            is_added = is_removed && etcd::add(member);
            std::thread::sleep(Duration::from_millis(100));
        }
        (is_removed, is_added)
    });
    Box::new(move |world| {
        let (is_removed, is_added) = replacing.join().map_err(|_| io::Error::other("replacing panicked"))?;
        if is_removed != is_added {
            return Err(io::Error::other(format!("{} was removed from etcd and cannot be added", member.0)));
        }
        if is_added {
            fs::remove_dir_all(&data)?;
            world.is_added(member.0);
        }
        world.start(member.0)?;
        Ok(bitten(was_running && is_added))
    })
}

fn stop(world: &mut World, name: &str) -> Mend {
    world.signal(name, Signal::STOP);
    let pid = world.pid(name);
    std::thread::sleep(Duration::from_millis(50));
    let has_stopped = pid.is_some_and(is_stopped);
    let name = name.to_owned();
    Box::new(move |world| {
        world.signal(&name, Signal::CONT);
        Ok(bitten(has_stopped))
    })
}

/// Fills a disk up to the last byte.
fn fill(path: &std::path::Path) -> io::Result<()> {
    let mut file = fs::File::create(path)?;
    let mut block = vec![7; 1 << 20];
    loop {
        match file.write(&block) {
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::StorageFull && block.len() > 1 => {
                let half = block.len() / 2;
                block.truncate(half);
            }
            Err(error) if error.kind() == io::ErrorKind::StorageFull => return Ok(()),
            Err(error) => return Err(error),
        }
    }
}

fn fill_server(world: &mut World) -> io::Result<Mend> {
    let disk = world.dir.join("server-disk");
    let filler = disk.join("filler");
    fill(&filler)?;
    let before = world.log_len("server");
    // The log has room in store: what operators declare over and over uses it up.
    let stop = Arc::new(AtomicBool::new(false));
    let flag = stop.clone();
    let writing = std::thread::spawn(move || {
        let mut spec = workload::spec();
        let (mut refused, mut number) = (0, 0);
        while !flag.load(Ordering::Relaxed) {
            // Another one each time, or nothing would be written.
            number += 1;
            spec["groups"]["pool"]["hold_ms"] = Value::from(8000 + number % 100);
            match http::ask("PUT", "/v1/spec", Some(&spec)) {
                Some((503, _)) => refused += 1,
                Some(_) => {}
                None => std::thread::sleep(Duration::from_millis(50)),
            }
        }
        refused
    });
    Ok(Box::new(move |world| {
        stop.store(true, Ordering::Relaxed);
        fs::remove_file(&filler)?;
        // Or a power cut that follows brings it back, and the disk stays full.
        fs::File::open(&disk)?.sync_all()?;
        let refused = writing.join().map_err(|_| io::Error::other("a writer panicked"))?;
        let said = world.said_since("server", before);
        Ok(bitten(refused > 0 || said.contains("no space is left") || said.contains("no room")))
    }))
}

fn fill_agent(world: &mut World, host: &str) -> io::Result<Mend> {
    let filler = world.agent_disk(host).join("filler");
    fill(&filler)?;
    let before = world.log_len(host);
    // Its log has room in store; a new start has to write a new one.
    world.kill(host);
    world.want(host, true);
    let host = host.to_owned();
    Ok(Box::new(move |world| {
        fs::remove_file(&filler)?;
        let said = world.said_since(&host, before);
        Ok(bitten(said.to_lowercase().contains("no space") || said.contains("no room")))
    }))
}

/// A tracer at a process, which spoils one of its syncs.
struct Tracer {
    child: Child,
    output: std::path::PathBuf,
}

impl Tracer {
    fn attach(world: &World, name: &str, what: &str) -> io::Result<Self> {
        let output = world.dir.join(format!("{name}.strace"));
        fs::write(&output, "")?;
        let pid = world.pid(name).map_or(0, |pid| pid.as_raw_nonzero().get());
        let inject = format!("inject=fsync,fdatasync:{what}");
        let child = Command::new("strace")
            .args(["-f", "-qq", "-e", "trace=fsync,fdatasync", "-e", &inject, "-p", &pid.to_string(), "-o"])
            .arg(&output)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()?;
        Ok(Self { child, output })
    }

    /// When it spoiled one.
    fn injected(&self) -> Option<Instant> {
        let said = fs::read_to_string(&self.output).unwrap_or_default();
        let written = fs::metadata(&self.output).and_then(|data| data.modified()).ok()?;
        let ago = written.elapsed().unwrap_or_default();
        (said.contains("INJECTED") || said.contains("killed by"))
            .then(|| Instant::now().checked_sub(ago))
            .flatten()
    }

    fn detach(mut self) {
        // Ended by a signal that it can take, it lets its process go on.
        let _ = kill_process(Pid::from_child(&self.child), Signal::TERM);
        let _ = self.child.wait();
    }
}

fn kill_in_sync(world: &mut World, name: &str, nth: u64) -> io::Result<Mend> {
    let tracer = Tracer::attach(world, name, &format!("signal=KILL:when={nth}"))?;
    let (was, name) = (world.pid(name), name.to_owned());
    Ok(Box::new(move |world| {
        let is_dead = was.is_some() && (!world.is_up(&name) || world.pid(&name) != was);
        let was_killed = tracer.injected().is_some() && is_dead;
        tracer.detach();
        Ok(bitten(was_killed))
    }))
}

/// The file system is shut down under the running server: what it has not synced is gone.
fn power_cut(world: &mut World) -> io::Result<Mend> {
    // EXT4_IOC_SHUTDOWN, without flushing its journal.
    const CUT: &str =
        "import fcntl,os,struct,sys; fcntl.ioctl(os.open(sys.argv[1], 0), 0x8004587D, struct.pack('I', 2))";
    let disk = world.dir.join("server-disk");
    run_args(&["python3", "-c", CUT, &disk.to_string_lossy()])?;
    let is_gone = fs::write(disk.join("probe"), "").is_err();
    world.want("server", false);
    Ok(Box::new(move |world| {
        world.kill("server");
        unmount(&disk)?;
        world.mount_server_disk()?;
        world.start("server")?;
        Ok(bitten(is_gone))
    }))
}

/// Who had files open there may still be in the middle of its end.
fn unmount(disk: &std::path::Path) -> io::Result<()> {
    let began = Instant::now();
    loop {
        match run_args(&["umount", &disk.to_string_lossy()]) {
            Err(_) if began.elapsed() < Duration::from_secs(3) => {
                std::thread::sleep(Duration::from_millis(50))
            }
            unmounted => return unmounted.map(drop),
        }
    }
}

fn clock(world: &mut World, name: &str, seconds: i64) -> io::Result<Mend> {
    world.set_clock(name, seconds)?;
    let (before, name) = (world.log_len(name), name.to_owned());
    Ok(Box::new(move |world| {
        world.set_clock(&name, 0)?;
        // Its log says the time with each line.
        let said = world.said_since(&name, before);
        let has_bitten = said.lines().any(|line| is_off(line.split('T').nth(1).unwrap_or_default()));
        Ok(bitten(has_bitten))
    }))
}

/// Whether a time of day is half an hour or more from the real one.
fn is_off(time: &str) -> bool {
    let mut parts = time.split(':').map(|part| part.get(..2).and_then(|digits| digits.parse::<u64>().ok()));
    let (Some(Some(hours)), Some(Some(minutes))) = (parts.next(), parts.next()) else { return false };
    let now = std::time::SystemTime::now()
        .duration_since(std::time::UNIX_EPOCH)
        .map_or(0, |since| since.as_secs() / 60);
    let apart = (hours * 60 + minutes).abs_diff(now % 1440);
    apart.min(1440 - apart) > 30
}

/// A second agent with the identity of the first.
fn double(world: &mut World, host: &str) -> io::Result<Mend> {
    let (data, copy) = (world.agent_data(host), world.dir.join(format!("{host}.double")));
    world.kill(host);
    World::copy(&data, &copy)?;
    world.start(host)?;
    let log = format!("{host}-double");
    let before = world.log_len(&log);
    let mut second = world.spawn_agent(host, &copy, &log)?;
    Ok(Box::new(move |world| {
        let _ = second.kill();
        let _ = second.wait();
        Ok(bitten(world.said_since(&log, before).contains("joined as")))
    }))
}

/// Waits for a handler to run.
fn find_handler(world: &World, host: &str) -> Option<Pid> {
    let began = Instant::now();
    while began.elapsed() < Duration::from_secs(3) {
        if let Some(handler) = world.handlers(host).first() {
            return Some(*handler);
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    None
}

fn kill_handler(world: &World, host: &str) -> Mend {
    let killed = find_handler(world, host).is_some_and(|pid| kill_process(pid, Signal::KILL).is_ok());
    Box::new(move |_| Ok(bitten(killed)))
}

/// The guard dies alone. Its agent, which is well, replaces it at the next renewal.
fn kill_guard(world: &World, host: &str) -> Mend {
    let was = world.guard(host);
    let was_killed = was.is_some_and(|pid| kill_process(pid, Signal::KILL).is_ok());
    Box::new(move |_| Ok(bitten(was_killed)))
}

fn stop_handler(world: &World, host: &str) -> Mend {
    let handler = find_handler(world, host).filter(|pid| kill_process(*pid, Signal::STOP).is_ok());
    std::thread::sleep(Duration::from_millis(20));
    let has_stopped = handler.is_some_and(is_stopped);
    Box::new(move |_| {
        if let Some(pid) = handler.filter(|pid| is_stopped(*pid)) {
            // It may be gone by now.
            let _ = kill_process(pid, Signal::CONT);
        }
        Ok(bitten(has_stopped))
    })
}

fn cut(hosts: Vec<String>, way: Way) -> io::Result<Mend> {
    hosts.iter().try_for_each(|host| network::cut(host, way))?;
    Ok(Box::new(move |_| {
        let hits = hosts.iter().map(|host| network::heal(host)).collect::<io::Result<Vec<_>>>()?;
        Ok((hits.iter().all(|packets| *packets > 0), hits.len() as u64))
    }))
}

fn reset(host: &str) -> io::Result<Mend> {
    network::reset(host)?;
    let host = host.to_owned();
    Ok(Box::new(move |_| Ok(bitten(network::heal(&host)? > 0))))
}

/// What an old connection said arrives after a new one's first words.
fn overtake(world: &World, host: &str) -> Mend {
    let knobs = world.proxies[host].clone();
    let before = knobs.overtaken.load(Ordering::Relaxed);
    knobs.delay_ms.store(2500, Ordering::Relaxed);
    let (late, stop) = (knobs.clone(), Arc::new(AtomicBool::new(false)));
    let flag = stop.clone();
    let closing = std::thread::spawn(move || {
        pause(&flag, 1500);
        late.delay_ms.store(0, Ordering::Relaxed);
        late.close_agents();
    });
    Box::new(move |_| {
        stop.store(true, Ordering::Relaxed);
        closing.join().map_err(|_| io::Error::other("closing panicked"))?;
        Ok(bitten(knobs.overtaken.load(Ordering::Relaxed) > before))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_of_day_are_told_apart_across_midnight() {
        let now =
            std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs() / 60 % 1440;
        let text = |minutes: u64| format!("{:02}:{:02}:00", minutes / 60, minutes % 60);
        assert!(!is_off(&text(now)));
        assert!(is_off(&text((now + 60) % 1440)) && is_off(&text((now + 1380) % 1440)));
        assert!(!is_off("") && !is_off("half past"));
    }

    #[test]
    fn every_kind_has_its_own_name_and_a_target() {
        let names: std::collections::BTreeSet<_> = Kind::ALL.iter().map(|kind| kind.name()).collect();
        assert_eq!(names.len(), Kind::ALL.len());
        for kind in Kind::ALL {
            let target = kind.target(&mut Random::new(1), "h1", "s1");
            assert!(!target.starts_with("h1") || target.ends_with("/clock"), "{kind:?} {target}");
        }
    }
}
