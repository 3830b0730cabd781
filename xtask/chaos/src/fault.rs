//! The faults: each kind is a knob with what it does, how it is mended, and how it is seen to have bitten. One that was
//! made and had no effect counts for nothing.

mod disk;
mod kind;
mod several;

use self::disk::{fill_agent, fill_server, kill_in_sync, power_cut};
pub(crate) use self::kind::Kind;
use self::kind::{ALL, ETCD, NET, some};
use self::several::{cut_between, replace, step_down};
use crate::clock::Stamp;
use crate::etcd;
use crate::history::{Struck, text};
use crate::host::{self, Part};
use crate::http;
use crate::member::Defect;
use crate::network::{self, Place, Way, layout};
use crate::random::Random;
use crate::reader::Shared;
use crate::workload;
use crate::world::{HOSTS, World, is_stopped};
use rustix::process::{Pid, Signal, kill_process, kill_process_group};
use serde_json::json;
use std::fs;
use std::io::{self, Read, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// How long a reign lasts that nobody renews, and more: what took the active server away has made room for another one.
const REIGN_OVER_MS: u64 = 3500;
/// How much longer than a lease a host has to stand still to be lost for sure.
const LOST_MS: u64 = 1500;
/// How long a fence handler is asked for again that has said no.
const FENCE_WAIT: Duration = Duration::from_secs(6);

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
    // While all of a host stands still nobody may wake one of its handlers.
    let is_handler_of =
        |all: Kind, host: &str, target: &str| all.is_of_host() && target == format!("{host}/handler");
    other.target == target
        || is_handler_of(kind, target, &other.target)
        || is_handler_of(other.kind, &other.target, target)
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
            Kind::HostKilled => {
                (if self.random.percent(50) { short } else { long }, kill_host(world, &host)?)
            }
            Kind::HostStopped => {
                (Duration::from_millis(workload::lease_ms() + LOST_MS), self.stop_host(&host, from))
            }
            Kind::HostFenced => (FENCE_WAIT, fence_host(&host)),
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

    /// All of a host stands still for longer than its lease, and goes on as if nothing had been.
    fn stop_host(&mut self, host: &str, from: Stamp) -> Mend {
        let stopped = host::pause(host);
        let (history, host) = (self.history.clone(), host.to_owned());
        Box::new(move |_| {
            host::wake(&host);
            let history = history.lock();
            let was_lost = history.events.values().any(|event| {
                event.at >= from && event.text("host") == host && event.text("liveness") == "lost"
            });
            let all = [Part::Agent, Part::Guard, Part::Software].into();
            Ok(bitten(stopped.is_superset(&all) && was_lost))
        })
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

/// All of a host dies at once. Its agent comes back, as after a boot.
fn kill_host(world: &mut World, host: &str) -> io::Result<Mend> {
    let was_running = world.kill(host);
    let ended = host::end(host)?;
    let host = host.to_owned();
    Ok(Box::new(move |world| {
        world.start(&host)?;
        Ok(bitten(was_running && ended.is_superset(&[Part::Guard, Part::Software].into())))
    }))
}

/// An operator has a host fenced by a handler, whatever it is at.
fn fence_host(host: &str) -> Mend {
    let path = format!("/v1/hosts/{host}/fence");
    let asking = std::thread::spawn(move || {
        let began = Instant::now();
        while began.elapsed() < FENCE_WAIT {
            // It is no when nobody could, and when the host was back before anybody looked.
            if let Some((200, fenced)) = http::ask("POST", &path, Some(&json!({})))
                && fenced["liveness"] == "fenced"
            {
                return true;
            }
            std::thread::sleep(Duration::from_millis(100));
        }
        false
    });
    Box::new(move |_| Ok(bitten(asking.join().map_err(|_| io::Error::other("asking panicked"))?)))
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
}
