//! Hosts: their agents and guards, which come, go, are stopped and start again.

use super::{Choice, Clock, End, Happened, Name, Process, Shared, World};
use crate::agent::{AgentEngine, AgentInput, AgentRecord, AgentState, HandlerRules, Identity, Remembered};
use crate::id::{AgentId, HandlerName, HostName, RunId};
use crate::message::Phase;
use crate::time::Time;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

impl World {
    /// A new agent, named by its host unless two are to share one host name, and its software.
    pub fn join(
        &mut self,
        name: &str,
        host: &HostName,
        labels: BTreeMap<String, String>,
        address: Option<String>,
    ) {
        self.join_over(name, host, labels, address, AgentState::default());
    }

    /// The same with a journal that begins after `base`.
    pub(crate) fn join_over(
        &mut self,
        name: &str,
        host: &HostName,
        labels: BTreeMap<String, String>,
        address: Option<String>,
        base: AgentState,
    ) {
        let known = base.agent.clone();
        let identity = known.unwrap_or_else(|| {
            AgentId::new(&format!("id-{name}")).expect("host names are fit for identities")
        });
        let process = Process {
            host: host.clone(),
            identity,
            labels,
            address,
            clock: Clock::default(),
            starts: 0,
            engine: None,
            base,
            journal: Vec::new(),
            in_flight: None,
            appends: 0,
            session: None,
            cut: BTreeSet::new(),
            is_paused: false,
            is_stopped_alone: false,
            unheard: Vec::new(),
            connect_at: self.time,
            guard: None,
            has_guard: true,
            has_fence: false,
            running: BTreeMap::new(),
        };
        self.processes.insert(name.into(), Shared::new(process));
        self.start_agent(name);
    }

    /// A second agent from a copy of a host's disk: the same host name, identity and journal.
    pub fn copy_agent(&mut self, name: &str, copy: &str, journal: Vec<AgentRecord>) {
        let process: Process = self.process(name).clone();
        let copied = Process {
            engine: None,
            in_flight: None,
            session: None,
            cut: BTreeSet::new(),
            is_paused: false,
            is_stopped_alone: false,
            unheard: Vec::new(),
            guard: None,
            running: BTreeMap::new(),
            // So that its runs have other names.
            starts: process.starts + 1_000_000,
            journal,
            ..process
        };
        self.processes.insert(copy.into(), Shared::new(copied));
        self.start_agent(copy);
    }

    /// Ends an agent for good.
    pub fn forget_agent(&mut self, name: &str) {
        self.kill_agent(name, false);
        self.links.retain(|_, link| *link.agent != *name || link.server_end != End::Gone);
        let is_on_its_way = self.links.values().any(|link| *link.agent == *name);
        // Its name stays while a server still hears from it.
        if !is_on_its_way {
            self.processes.remove(name);
        }
    }

    /// What agent.toml says of handlers, from each agent's next start on. At first there is one, called `sim`.
    pub(crate) fn set_rules(&mut self, rules: BTreeMap<HandlerName, HandlerRules>) {
        self.rules = Arc::new(rules);
    }

    /// Starts an agent over what is durable. Handlers that outlived its last run are killed.
    pub fn start_agent(&mut self, name: &str) {
        let (now, mut rules) = (self.time, (*self.rules).clone());
        let process = self.process(name);
        if process.has_fence
            && let Some(any) = rules.values().next().cloned()
        {
            rules.insert(HandlerName::new("fence").expect("a valid name"), any);
        }
        process.starts += 1;
        process.running.clear();
        let mut state = process.base.clone();
        process.journal.iter().for_each(|record| state.apply(record));
        let identity = Identity {
            host: process.host.clone(),
            agent: process.identity.clone(),
            run: RunId::new(&format!("run-{}", process.starts)).expect("a valid name"),
            address: process.address.clone(),
            labels: process.labels.clone(),
        };
        let clock = process.clock.read(now);
        let remembered = process
            .guard
            .as_ref()
            .map(|guard| Remembered { until: guard.until, pids: guard.members.clone() });
        let mut engine = AgentEngine::new(identity, rules, state, clock, remembered);
        engine.handle(clock, AgentInput::Tick);
        process.engine = Some(engine);
        process.is_paused = false;
        process.connect_at = now;
    }

    /// Changes an agent's labels, from its next start on.
    pub fn label(&mut self, name: &str, labels: BTreeMap<String, String>) {
        self.process(name).labels = labels;
    }

    /// Kills an agent, and its handlers with it before they have an effect.
    pub fn kill_agent(&mut self, name: &str, keeps_in_flight: bool) {
        self.process(name).running.clear();
        self.kill_agent_only(name, keeps_in_flight);
    }

    /// Kills an agent; its handlers go on until it starts again.
    pub fn kill_agent_only(&mut self, name: &str, keeps_in_flight: bool) {
        self.hang_up(name);
        let process = self.process(name);
        let in_flight = process.in_flight.take().filter(|_| keeps_in_flight);
        process.engine = None;
        (process.is_paused, process.is_stopped_alone) = (false, false);
        process.unheard.clear();
        self.record_agent(name, in_flight.into_iter().flatten());
    }

    /// Gives a host a handler that makes sure that other hosts have stopped: from its agent's next start on.
    pub fn set_fence(&mut self, name: &str) {
        self.process(name).has_fence = true;
    }

    /// Stops a host at once, and all that runs on it: agent, guard and software. [`World::start_agent`] is its boot.
    pub fn power_off(&mut self, host: &HostName) {
        let on_it = self.processes.iter().filter(|(_, process)| process.host == *host);
        for name in on_it.map(|(name, _)| name.clone()).collect::<Vec<_>>() {
            self.kill_agent(&name, false);
            self.reboot(&name);
        }
        let running = self.software.keys().filter(|member| member.host == *host).cloned();
        for member in running.collect::<Vec<_>>() {
            self.stop_software(&member);
        }
    }

    /// Gives a host's clock since boot a new beginning, as its restart does. Its agent has been killed before.
    pub fn reboot(&mut self, name: &str) {
        let now = self.time;
        let process = self.process(name);
        assert!(process.engine.is_none(), "agents do not live through their host's restart");
        process.running.clear();
        process.clock = Clock::booted(now);
        // What runs by a lease is started by its agent and by nobody else.
        let guard = process.guard.take();
        for member in guard.into_iter().flat_map(|guard| guard.members.into_keys()) {
            self.stop_software(&member);
        }
    }

    /// Kills a host's guard. Its agent finds out.
    pub fn kill_guard(&mut self, name: &str) {
        self.process(name).guard = None;
        self.tell_agent(name, AgentInput::GuardLost);
    }

    /// The same, and every one that the agent starts from now on ends too.
    pub fn end_guard(&mut self, name: &str) {
        self.process(name).has_guard = false;
        self.kill_guard(name);
    }

    /// A guard that its host's agent starts stands again.
    pub fn let_guard(&mut self, name: &str) {
        self.process(name).has_guard = true;
    }

    /// Whether a host's guard has somebody to stop.
    pub fn is_guarded(&self, name: &str) -> bool {
        self.processes.get(name).is_some_and(|process| process.guard.is_some())
    }

    /// How long it is, in milliseconds, until a host's guard stops those that it was told of; none when it has nobody to.
    pub fn guard_acts_in(&self, name: &str) -> Option<u64> {
        let guard = self.processes.get(name)?.guard.as_ref()?;
        Some(guard.until.since(self.clock(name)))
    }

    /// What a host's clock reads.
    pub fn clock(&self, name: &str) -> Time {
        self.processes[name].clock.read(self.time)
    }

    /// Makes a host's clock run at another rate, in millionths more or less.
    pub fn drift(&mut self, name: &str, rate_ppm: i32) {
        let now = self.time;
        self.process(name).clock.drift(now, rate_ppm);
    }

    /// Stops a host for a while, its handlers with it.
    pub fn pause(&mut self, name: &str) {
        self.process(name).is_paused = true;
    }

    /// Stops an agent's process for a while; its handlers and its guard go on.
    pub fn pause_agent(&mut self, name: &str) {
        let process = self.process(name);
        (process.is_paused, process.is_stopped_alone) = (true, true);
    }

    /// Lets a host, or an agent, go on.
    pub fn resume(&mut self, name: &str) {
        self.go_on(name);
        self.tell_agent(name, AgentInput::Tick);
    }

    /// The same, and the first that its agent hears is what waits in its connection, if anything does.
    pub fn resume_to_orders(&mut self, name: &str) {
        self.go_on(name);
        let next = self.processes[name].session.filter(|session| {
            let link = &self.links[session];
            !link.to_agent.is_empty()
                && self.carried(*session, link).any(|next| next == Choice::ToAgent(*session))
        });
        match next {
            Some(session) => self.carry_to_agent(session),
            None => self.tell_agent(name, AgentInput::Tick),
        }
    }

    pub(super) fn go_on(&mut self, name: &str) {
        let process = self.process(name);
        (process.is_paused, process.is_stopped_alone) = (false, false);
        for input in std::mem::take(&mut process.unheard) {
            self.tell_agent(name, input);
        }
    }

    /// What an agent reads from its disk when it starts next.
    pub fn set_agent_journal(&mut self, name: &str, records: Vec<AgentRecord>) {
        let process = self.process(name);
        assert!(process.engine.is_none(), "a journal is read by agents that start");
        let known = process.journal.len().min(records.len());
        let mut records = records.into_iter();
        process.journal = records.by_ref().take(known).collect();
        self.record_agent(name, records);
    }

    pub(super) fn record_agent(&mut self, name: &str, records: impl IntoIterator<Item = AgentRecord>) {
        let agent: Name = name.into();
        for record in records {
            // From then on nobody can tell whether what was prepared was used, and nobody cancels it.
            if let AgentRecord::Started { member, .. } = &record {
                self.promises.remove(&(member.clone(), Phase::Prepare));
            }
            self.happened.push(Happened::AgentRecorded { agent: agent.clone(), record: record.clone() });
            self.process(name).journal.push(record);
        }
    }

    pub(super) fn tell_agent(&mut self, name: &str, input: AgentInput) {
        let now = self.time;
        let process = self.process(name);
        let clock = process.clock.read(now);
        if let Some(engine) = &mut process.engine {
            if process.is_paused {
                process.unheard.push(input);
            } else {
                engine.handle(clock, input);
            }
        }
    }
}
