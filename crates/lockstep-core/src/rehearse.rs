//! Rehearsals: a plan is run in memory, once clean and then once for every single fault at every point.
//!
//! The planner, the engine and the agents are production's own, in a [`World`] of their own: what is shown is what
//! they would do. The clean run is made step by step; wherever something may go wrong the world is copied, and the
//! copy goes on with the fault, so nothing is played twice. Handlers and messages take no time and do what they
//! report. A rehearsal changes nothing and asks nobody.

mod fault;
mod trial;

pub use fault::{Fault, FaultKind, Place};
pub use trial::SERVER_AWAY_MS;

use crate::agent::{AgentRecord, AgentState, HandlerRules};
use crate::cluster::{Cluster, Retention};
use crate::id::{GroupName, HandlerName, HostName, MemberId, StateName, TransitionId};
use crate::message::{Outcome, Phase};
use crate::plan::{self, Plan, Scores};
use crate::record::Cause;
use crate::request::{Code, Rejection, Request};
use crate::spec::{DURATION_MAX_MS, HANDLER_NONE, Recover};
use crate::vote::Answer;
use crate::world::{Script, World};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use trial::Trial;

/// The most members that may be asked in a plan which is rehearsed. With more of them there is more work than
/// [`WORK_MAX`] however little each can do wrong, and the clean run, which counts the cases, would take a while to say so.
pub const ASKED_MAX: usize = 500;
/// The most work, in cases times members that are asked in each: a minute or so of one processor. A plan that asks 100
/// members comes to a fifth of it.
pub const WORK_MAX: usize = 1_000_000;
/// What a run may take beside the deadlines of its plan, in milliseconds: retries, a server that is away.
const SLACK_MS: u64 = 600_000;

/// What would be left of a plan, case by case.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rehearsal {
    /// The plan.
    pub plan: Plan,
    /// The plan without a fault.
    pub clean: Case,
    /// The plan with each single fault, in the order in which they would strike.
    pub cases: Vec<Case>,
}

/// One run of the plan.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Case {
    /// What goes wrong; nothing in the clean run.
    pub fault: Option<Fault>,
    /// How the transition ends; none: it does not, within all the time that its deadlines give it.
    pub outcome: Option<Outcome>,
    /// Why it is aborted, taken back (`undo`) or goes on without a member (`exclude`).
    pub cause: Option<Cause>,
    /// The members that are left elsewhere than planned (where they were, when it is aborted or taken back), or of
    /// which it is not known.
    pub elsewhere: BTreeMap<MemberId, Elsewhere>,
    /// The limits that break.
    pub broken: Vec<Broken>,
    /// How long each holder's clients are held, in milliseconds beside the time that handlers take.
    pub held_ms: BTreeMap<MemberId, u64>,
    /// How long it takes from the request until everything is over, in milliseconds beside what handlers take.
    pub took_ms: u64,
}

impl Case {
    /// Whether somebody has to act: it breaks a limit, ends degraded, or does not end.
    pub fn is_bad(&self) -> bool {
        let is_open = match self.outcome {
            Some(Outcome::Aborted | Outcome::Committed | Outcome::Undone) => false,
            Some(Outcome::Degraded) | None => true,
        };
        is_open || !self.broken.is_empty()
    }
}

/// A member that is left elsewhere than planned.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Elsewhere {
    /// Where it should be.
    pub planned: StateName,
    /// Where its software really is.
    pub actual: StateName,
    /// Whether Lockstep cannot tell.
    pub in_doubt: bool,
}

/// Which limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Limit {
    /// At most so many: at any instant, counting software wherever it really is.
    Max,
    /// At least so many: at the end, when it held before and would hold after the plan.
    Min,
}

/// A limit that breaks.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Broken {
    /// Whose.
    pub group: GroupName,
    /// Of which state.
    pub state: StateName,
    /// Which.
    pub limit: Limit,
    /// How many members there are.
    pub count: usize,
    /// How many there may be, or must be.
    pub allowed: usize,
}

/// Plans what a request asks for and runs the plan in memory, without a fault and then with each.
///
/// Transitions of others are left out of the cluster that it is run in; members in doubt are taken to be where they
/// were last seen, and those on hosts that are not reachable stay where they are.
///
/// # Errors
/// If the plan is rejected, if an open transition claims a group that it claims too (`busy`), or if there would be too
/// many cases (`too-large`).
pub fn rehearse(cluster: &Cluster, request: &Request, scores: &Scores) -> Result<Rehearsal, Rejection> {
    let plan = plan::plan_request(cluster, request, scores)?;
    if plan.is_empty() {
        return Ok(Rehearsal { plan, clean: nothing(), cases: Vec::new() });
    }
    check_claims(cluster, &plan)?;
    let asked = plan.asked().count();
    if asked > ASKED_MAX {
        let message = format!("the plan asks {asked} members, at most {ASKED_MAX} are rehearsed");
        return Err(Rejection::new(Code::TooLarge, message, SMALLER));
    }
    let stage = Stage::new(cluster, plan, request, scores);
    let first = Trial::new(&stage);
    let mut count = 0;
    let clean = first.clone().end(None, &mut |trial, choice| count += fault::faults(trial, choice).len());
    if let Some(rejection) = first.rejection() {
        return Err(rejection);
    }
    if count * asked > WORK_MAX {
        let work = count * asked;
        let message = format!("{count} cases of {asked} members each come to {work}, at most {WORK_MAX}");
        return Err(Rejection::new(Code::TooLarge, message, SMALLER));
    }
    let mut cases = Vec::with_capacity(count);
    first.end(None, &mut |trial, choice| {
        trial.watch();
        cases.extend(fault::faults(trial, choice).into_iter().map(|fault| trial.with(choice, fault)));
    });
    Ok(Rehearsal { plan: stage.plan, clean, cases })
}

const SMALLER: &str =
    "rehearse the same change for fewer members: what goes wrong at one goes wrong at the others";

/// What comes of a plan without steps.
fn nothing() -> Case {
    Case {
        fault: None,
        outcome: Some(Outcome::Committed),
        cause: None,
        elsewhere: BTreeMap::new(),
        broken: Vec::new(),
        held_ms: BTreeMap::new(),
        took_ms: 0,
    }
}

/// A plan that would wait for another transition would be planned anew when its turn comes: to rehearse it now would
/// be to rehearse another one.
fn check_claims(cluster: &Cluster, plan: &Plan) -> Result<(), Rejection> {
    let claims = |group: &&GroupName| plan.exclusive.contains(*group) || plan.shared.contains(*group);
    for id in &cluster.open {
        let transition = &cluster.transitions[id];
        let asked = transition
            .request
            .targets
            .iter()
            .flat_map(|target| cluster.groups_of(target))
            .collect::<Vec<_>>();
        let planned = transition.plan.iter().flat_map(|theirs| {
            let shared = theirs.shared.iter().filter(|group| plan.exclusive.contains(*group));
            theirs.exclusive.iter().chain(shared)
        });
        if let Some(group) = asked.iter().chain(planned).find(claims) {
            let message = format!("{id} is at work on group {group}");
            return Err(Rejection::new(Code::Busy, message, format!("rehearse it when {id} has ended")));
        }
    }
    Ok(())
}

/// The groups that are asked for and that the plan rests on, and all that relations lead to or from.
fn related(cluster: &Cluster, plan: &Plan, request: &Request) -> BTreeSet<GroupName> {
    let asked = request.targets.iter().flat_map(|target| cluster.groups_of(target));
    let mut related: BTreeSet<GroupName> = asked.collect();
    related.extend(plan.exclusive.iter().chain(&plan.shared).cloned());
    let mut beside: BTreeMap<&GroupName, Vec<&GroupName>> = BTreeMap::new();
    for relation in cluster.relations.iter() {
        for to in &relation.to {
            beside.entry(&relation.from).or_default().push(to);
            beside.entry(to).or_default().push(&relation.from);
        }
    }
    let mut frontier: Vec<GroupName> = related.iter().cloned().collect();
    while let Some(group) = frontier.pop() {
        for other in beside.get(&group).into_iter().flatten() {
            if related.insert((*other).clone()) {
                frontier.push((*other).clone());
            }
        }
    }
    related
}

/// What all runs of a plan have in common.
struct Stage<'a> {
    cluster: Cluster,
    plan: Plan,
    request: &'a Request,
    scores: &'a Scores,
    /// Where the members of the groups that move are at first.
    states: BTreeMap<MemberId, StateName>,
    counts: BTreeMap<GroupName, usize>,
    /// The cluster's lease, in milliseconds.
    lease_ms: u64,
    /// Longer than any run of the plan takes, in milliseconds.
    bound_ms: u64,
}

impl<'a> Stage<'a> {
    fn new(cluster: &Cluster, plan: Plan, request: &'a Request, scores: &'a Scores) -> Self {
        let mut cluster = cluster.clone();
        let open: BTreeSet<TransitionId> = std::mem::take(&mut cluster.open);
        cluster.transitions.clear();
        cluster.requests.clear();
        cluster.notices.clear();
        cluster.retention = Retention::default();
        // They end by the wall clock, which is another one here.
        cluster.freezes.values_mut().for_each(|freeze| freeze.until = None);
        // What no relation leads to has no part in the plan, and would be copied for each case.
        let related = related(&cluster, &plan, request);
        cluster.members.retain(|member, _| related.contains(&member.group));
        let hosts: BTreeSet<HostName> = cluster.members.keys().map(|member| member.host.clone()).collect();
        cluster.hosts.retain(|host, _| hosts.contains(host));
        for member in cluster.members.values_mut() {
            if member.transition.is_some_and(|id| open.contains(&id)) {
                Arc::make_mut(member).transition = None;
            }
        }
        let lease_ms = cluster.lease_ms();
        let commit_ms = |group: &GroupName| cluster.spec.groups[group].deadlines.commit;
        let steps_ms: u64 = plan.steps.iter().map(|step| 2 * commit_ms(&step.member.group)).sum();
        let stops_ms: u64 = plan.goals.keys().map(|member| commit_ms(&member.group)).sum();
        let holds_ms = cluster.spec.groups.values().map(|group| group.hold_ms).max().unwrap_or_default();
        let bound_ms =
            plan.check_ms + plan.prepare_ms + steps_ms + stops_ms + 2 * holds_ms + lease_ms + SLACK_MS;
        // Nobody renews a lease: of a hundred hosts over a minute that would be most of the work. A host that is
        // lost is given up when the real lease would have run out.
        let spec = Arc::make_mut(&mut cluster.spec);
        spec.lease_ms = Some(bound_ms * 10);
        // What a fault leaves is shown, not what is repaired of it afterwards.
        spec.groups.values_mut().for_each(|group| group.recover = Recover::Off);
        let (mut states, mut counts) = (BTreeMap::new(), BTreeMap::new());
        for group in plan.moving() {
            counts.insert(group.clone(), cluster.members_of(group).count());
            let known = cluster.members_of(group).map(|id| (id, &cluster.members[id].actual));
            states.extend(known.filter_map(|(id, actual)| Some((id.clone(), actual.clone()?))));
        }
        Self { cluster, plan, request, scores, states, counts, lease_ms, bound_ms }
    }

    /// How many members a group that moves has.
    fn count(&self, group: &GroupName) -> usize {
        self.counts.get(group).copied().unwrap_or_default()
    }

    /// How many members of a group are in a state.
    fn count_in(
        &self,
        states: &BTreeMap<MemberId, StateName>,
        group: &GroupName,
        state: &StateName,
    ) -> usize {
        let members = self.cluster.members_of(group);
        members.filter(|member| states.get(*member) == Some(state)).count()
    }

    /// The limits that held before, would hold after the plan, and do not hold with these states.
    fn missed(&self, states: &BTreeMap<MemberId, StateName>) -> Vec<Broken> {
        let mut planned = self.states.clone();
        planned.extend(self.plan.goals.iter().map(|(member, goal)| (member.clone(), goal.clone())));
        let mut missed = Vec::new();
        for name in self.plan.moving() {
            let group = &self.cluster.spec.groups[name];
            for state in &group.lifecycle.states {
                let allowed = group.min(state, self.count(name));
                let holds = |states| self.count_in(states, name, state) >= allowed;
                if allowed > 0 && holds(&self.states) && holds(&planned) && !holds(states) {
                    let (group, state) = (name.clone(), state.clone());
                    let count = self.count_in(states, name, &state);
                    missed.push(Broken { group, state, limit: Limit::Min, count, allowed });
                }
            }
        }
        missed
    }

    /// A world with a server, and an agent on each host of the groups that the plan rests on. Other hosts are as they
    /// are seen: who is only told has no part in what comes of a plan.
    fn world(&self) -> World {
        let mut world = World::over(self.cluster.clone());
        world.set_rules(self.rules());
        world.start_server();
        let groups = self.plan.exclusive.iter().chain(&self.plan.shared);
        let rest = groups.flat_map(|group| self.cluster.members_of(group));
        let members = self.plan.asked().map(|who| &who.member).chain(rest);
        let hosts: BTreeSet<&HostName> = members.map(|member| &member.host).collect();
        for name in hosts {
            let host = &self.cluster.hosts[name];
            if !host.is_reachable() {
                continue;
            }
            let mut state = AgentState::default();
            state.apply(&AgentRecord::Identity { agent: host.agent.clone() });
            for assignment in self.cluster.assignments(name) {
                let member = assignment.member.clone();
                match &self.cluster.members[&member].actual {
                    Some(actual) => {
                        world.set_software(&member, actual);
                        state.states.insert(member.clone(), actual.clone());
                    }
                    None => world.script(&member, Phase::Status, vec![silent()]),
                }
                state.members.insert(member, assignment);
            }
            world.join_over(name.as_str(), name, host.labels.clone(), host.address.clone(), state);
        }
        world
    }

    /// Every handler that the spec names, with nothing that ends a call before its deadline does.
    fn rules(&self) -> BTreeMap<HandlerName, HandlerRules> {
        let rules = HandlerRules {
            phases: Phase::ALL.into(),
            timeout_ms: Phase::ALL.into_iter().map(|phase| (phase, DURATION_MAX_MS)).collect(),
            status_ms: self.bound_ms * 10,
            checks_tokens: false,
        };
        let handlers = self.cluster.spec.groups.values().map(|group| group.handler.clone());
        handlers.filter(|name| name.as_str() != HANDLER_NONE).map(|name| (name, rules.clone())).collect()
    }
}

/// A status that does not tell.
fn silent() -> Script {
    Script { answer: Answer::No, has_effect: false, ..Script::default() }
}
