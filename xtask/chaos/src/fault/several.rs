//! What is done to several servers and to their etcd: somebody asks them meanwhile for what they may not give, or until
//! another one has taken over.

use super::kind::Kind;
use super::{Mend, Striker, bitten, kill, pause, stop};
use crate::clock::Stamp;
use crate::etcd;
use crate::history::{Accepted, CutOff, TakeOver};
use crate::http::{self, Ask};
use crate::member::Defect;
use crate::network::{self, Place, layout};
use crate::random::Random;
use crate::reader::{self, Shared};
use crate::world::World;
use serde_json::json;
use std::fs;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// How long somebody waits for a write to be acknowledged again.
const TAKE_OVER_MAX: Duration = Duration::from_secs(60);
/// How long a request of theirs may take.
const TRY_MAX: Duration = Duration::from_secs(1);
/// How long etcd may take to replace a member: it does not when it has not seen all others for some seconds.
const REPLACE_MAX: Duration = Duration::from_secs(30);

impl Striker {
    /// Somebody sends requests until one is acknowledged.
    pub(super) fn await_take_over(&mut self, kind: Kind, from: Stamp) {
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
    pub(super) fn cut_off(&mut self, server: &str, cuts: &[(&str, &[&str])]) -> io::Result<Mend> {
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
    pub(super) fn no_majority(
        &mut self,
        world: &mut World,
        members: [&'static str; 2],
        is_kill: bool,
    ) -> Mend {
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

pub(super) fn cut_between(place: &str, others: &[&str]) -> io::Result<Mend> {
    network::cut_between(place, others)?;
    let place = place.to_owned();
    Ok(Box::new(move |_| Ok(bitten(network::heal(&place)? > 0))))
}

/// An operator wants another server to be the active one.
pub(super) fn step_down(server: &str) -> Mend {
    let place = (layout().servers().iter().find(|(name, _)| *name == server)).copied();
    let asked = place.and_then(|place| {
        http::ask_one(place, Ask::post("/v1/server/step-down", &json!({}), Duration::from_secs(3)))
    });
    let has_stepped_down = asked.is_some_and(|answer| answer.status == 200);
    Box::new(move |_| Ok(bitten(has_stepped_down)))
}

/// A member of etcd dies for good, is removed, and one that has nothing takes its place.
pub(super) fn replace(world: &mut World, member: Place) -> Mend {
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
