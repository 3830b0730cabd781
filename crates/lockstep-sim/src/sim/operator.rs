//! What operators ask for, and what they know who stand beside a host.

use super::{COPY, Sim};
use crate::invariant::Violation;
use lockstep_core::engine::HostAsk;
use lockstep_core::freeze::FreezeEnd;
use lockstep_core::id::{HostName, MemberId, StateName, TransitionId};
use lockstep_core::log::Crash;
use lockstep_core::request::Request;
use lockstep_core::world::Name;
use rand::Rng;
use rand::seq::IndexedRandom;
use std::collections::{BTreeMap, BTreeSet};

/// How many of the newest requests come again at a server that is deposed.
const LAST: usize = 3;

impl Sim {
    /// Asks for one thing after the other.
    pub(super) fn ask_for(&mut self, requests: Vec<Request>) -> Result<(), Violation> {
        for request in requests {
            self.asked.push(request.clone());
            self.world.run(request);
            self.asks += 1;
        }
        self.look()
    }

    pub(super) fn ask(&mut self) -> Result<(), Violation> {
        let is_up = self.world.active().is_some() && !self.world.is_server_paused();
        if !self.machines.is_empty() {
            // Any that says that it is the active one.
            let servers: Vec<_> = self.world.servers().map(|(id, _)| id).collect();
            let running: Vec<_> = servers.into_iter().filter(|id| !self.world.is_one_paused(*id)).collect();
            let Some(server) = running.choose(&mut self.rng) else { return Ok(()) };
            self.world.turn_to(Some(*server));
            // One that does not know yet that it is deposed is asked for what another one may have accepted since.
            if self.world.active() != Some(*server) && self.rng.random_ratio(1, 2) {
                let last = &self.asked[self.asked.len().saturating_sub(LAST)..];
                if let Some(request) = last.choose(&mut self.rng).cloned() {
                    self.world.run(request);
                    self.asks += 1;
                }
                return self.look();
            }
        } else if !is_up {
            return Ok(());
        }
        match self.rng.random_range(0..29) {
            // Seldom: there are other things to find, with nothing in their way.
            24 if self.rng.random_ratio(1, 2) => {
                // Without an end: that comes by the wall clock, which is to decide nothing here.
                let groups = self.shape.some_groups(&mut self.rng);
                self.world.freeze(groups, FreezeEnd::Never, "frozen".to_owned());
                self.asks += 1;
            }
            22 | 23 => {
                let is_of_all = self.rng.random_ratio(1, 2);
                let groups = if is_of_all { BTreeSet::new() } else { self.shape.some_groups(&mut self.rng) };
                self.world.thaw(groups);
                self.asks += 1;
            }
            28 => {
                let host = self.shape.hosts.choose(&mut self.rng).expect("there are some").clone();
                // A fence switches it off, whatever it is doing.
                let is_free = self.spared.as_ref().is_none_or(|name| **name != *host.as_str());
                if is_free && self.rng.random_ratio(1, 4) {
                    self.world.ask_of_host(host, HostAsk::Fence);
                    self.asks += 1;
                }
            }
            27 => {
                if self.rng.random_ratio(1, 6) {
                    let lease_ms = *[6000, 12_000, 30_000].choose(&mut self.rng).expect("there are some");
                    self.world.go_away(lease_ms);
                    self.asks += 1;
                }
            }
            26 => {
                let host = self.shape.hosts.iter().find(|host| self.has_stopped(host)).cloned();
                if let Some(host) = host {
                    let (principal, reason) = ("operator".to_owned(), "it is off".to_owned());
                    self.world.ask_of_host(host, HostAsk::Fenced { principal, reason });
                    self.asks += 1;
                }
            }
            25 if self.rng.random_ratio(1, 4) => {
                let said = self.world.server().and_then(|server| {
                    let members = server.acknowledged().members.iter();
                    let mut unclear = members.filter(|(id, member)| {
                        let is_away = !server.acknowledged().hosts[&id.host].is_reachable();
                        (is_away || member.is_in_doubt()) && self.stays(id)
                    });
                    let (id, _) = unclear.next()?;
                    let lowest = server.acknowledged().spec.groups.get(&id.group)?.lifecycle.lowest();
                    Some((id.clone(), self.world.software().get(id).unwrap_or(lowest).clone()))
                });
                if let Some((id, state)) = said {
                    self.world.resolve(id, state);
                    self.asks += 1;
                }
            }
            21 => {
                if let Some((member, published)) = self.shape.published(&mut self.rng) {
                    self.world.publish(&member, published);
                }
            }
            20 => {
                let host = self.shape.hosts.choose(&mut self.rng).expect("there are some").clone();
                let label = BTreeMap::from([("set".to_owned(), Some(self.asks.to_string()))]);
                let ask = match self.rng.random_range(0..3) {
                    0 => HostAsk::Label { labels: label },
                    1 => HostAsk::Forget { is_stopped: false },
                    _ => HostAsk::Undrain,
                };
                self.world.ask_of_host(host, ask);
                self.asks += 1;
            }
            0 | 1 if !self.asked.is_empty() => {
                // The same once more, as a client does that got no answer; sometimes it is not quite the same.
                let mut request = self.asked.choose(&mut self.rng).expect("it is not empty").clone();
                if self.rng.random_ratio(1, 4) {
                    request.reason = Some("another body".to_owned());
                }
                self.world.run(request);
                self.asks += 1;
            }
            2 => {
                let known = self.world.server().map(|server| server.acknowledged().transitions.clone());
                let known: Vec<TransitionId> = known.into_iter().flatten().map(|(id, _)| id).collect();
                if let Some(id) = known.choose(&mut self.rng) {
                    self.world.abort(*id);
                    self.asks += 1;
                }
            }
            3 => {
                self.shape.change(&mut self.rng);
                let spec = self.shape.spec();
                self.world.apply(spec);
                self.asks += 1;
            }
            4 => {
                let host = self.rng.random_range(0..self.shape.hosts.len());
                let name: Name = self.shape.hosts[host].as_str().into();
                if self.spared.as_ref() != Some(&name) {
                    self.shape.relabel(host, &mut self.rng);
                    let labels = self.shape.labels(host);
                    self.world.label(&name, labels);
                    self.end_agent(&name, Crash::Process, false);
                }
            }
            _ => {
                let id = format!("request-{}", self.asked.len());
                let request = self.shape.request(id, &mut self.rng);
                self.asked.push(request.clone());
                self.world.run(request);
                self.asks += 1;
            }
        }
        self.look()
    }

    /// Whether nothing of a host runs, as a person sees who stands beside it: who says so, says the truth.
    fn has_stopped(&self, host: &HostName) -> bool {
        let Some(cluster) = self.world.cluster() else { return false };
        let groups = &cluster.spec.groups;
        let is_down = |(id, state): (&MemberId, &StateName)| {
            groups.get(&id.group).is_some_and(|group| group.lifecycle.lowest() == state)
        };
        let is_known = cluster.hosts.contains_key(host);
        is_known
            && self.is_still(host)
            && self.world.software().iter().filter(|(id, _)| id.host == *host).all(is_down)
    }

    /// Whether nothing on a host is going to change where its software is: no agent, and no handler.
    fn is_still(&self, host: &HostName) -> bool {
        let is_on_it = |name: &&Name| name.strip_suffix(COPY).unwrap_or(name) == host.as_str();
        let mut on_it = self.world.agents().filter(is_on_it);
        on_it.all(|name| self.world.agent(name).is_none() && self.world.running(name).next().is_none())
    }

    /// Whether a member is where it is until somebody says otherwise.
    fn stays(&self, member: &MemberId) -> bool {
        let name: Name = member.host.as_str().into();
        let is_idle = || {
            let agent = self.world.agent(&name).filter(|agent| !agent.has_output());
            let mut links = self.world.links().filter(|(_, agent, ..)| **agent == name);
            agent.is_some()
                && !self.world.is_paused(&name)
                && self.world.agent_in_flight(&name).is_none()
                && self.world.running(&name).next().is_none()
                && !self.disks.contains_key(format!("{name}{COPY}").as_str())
                && links.all(|(_, _, up, down)| up + down == 0)
        };
        self.is_still(&member.host) || is_idle()
    }
}
