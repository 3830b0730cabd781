//! The order of a plan's steps: no stricter than the rules need.
//!
//! Hard rules hold at every point of every order in which the steps may run: one member's steps in path order,
//! no state above its `max`, `requires` and `after` across groups. Soft rules keep a group serving as long as it
//! can be: enter a serving state before leaving it, enter the highest state first. A soft rule that the hard
//! ones do not allow is dropped.

use super::{BARRIER_FIRST, Barrier, Plan};
use crate::cluster::Cluster;
use crate::id::{GroupName, MemberId, StateName, StepId};
use crate::relation::orders;
use crate::request::{Code, Rejection};
use std::collections::{BTreeMap, BTreeSet};

/// By how many members a state may fall below its count at the start, on the way.
pub(super) type Dips = BTreeMap<(GroupName, StateName), usize>;

/// A set of steps that comes before another. Steps are places in the plan.
struct Rule {
    is_soft: bool,
    before: Vec<usize>,
    after: Vec<usize>,
    /// The state that dips further when this soft rule is dropped.
    keeps: Option<(GroupName, StateName, usize)>,
}

/// Puts the plan's steps in order.
pub(super) fn order(cluster: &Cluster, plan: &mut Plan) -> Result<Dips, Rejection> {
    let mut rules = paths(plan);
    let mut dips = Dips::new();
    let mut by_group: BTreeMap<&GroupName, Vec<usize>> = BTreeMap::new();
    for (place, step) in plan.steps.iter().enumerate() {
        by_group.entry(&step.member.group).or_default().push(place);
    }
    for (name, places) in &by_group {
        states(cluster, plan, name, places, &mut rules, &mut dips);
        highest_first(cluster, plan, name, places, &mut rules);
    }
    for relation in cluster.spec.relations.iter().filter(|relation| orders(relation)) {
        let (Some(from), Some(to)) = (by_group.get(&relation.from), by_group.get(&relation.to)) else {
            continue;
        };
        let moving = |places: &[usize], up: bool| -> Vec<usize> {
            places.iter().copied().filter(|place| rises(cluster, plan, *place) == up).collect()
        };
        rules.push(hard(moving(to, true), moving(from, true)));
        rules.push(hard(moving(from, false), moving(to, false)));
    }
    let graph = settle(plan.steps.len(), rules, &mut dips)?;
    graph.write_to(plan);
    Ok(dips)
}

fn hard(before: Vec<usize>, after: Vec<usize>) -> Rule {
    Rule { is_soft: false, before, after, keeps: None }
}

fn rises(cluster: &Cluster, plan: &Plan, place: usize) -> bool {
    let step = &plan.steps[place];
    let lifecycle = &cluster.spec.groups[&step.member.group].lifecycle;
    lifecycle.rank(&step.to) > lifecycle.rank(&step.from)
}

/// One member's steps come in path order; they stand side by side in the plan.
fn paths(plan: &Plan) -> Vec<Rule> {
    let pairs = plan.steps.windows(2).enumerate();
    pairs
        .filter(|(_, pair)| pair[0].member == pair[1].member)
        .map(|(place, _)| hard(vec![place], vec![place + 1]))
        .collect()
}

/// `max` of every state, and entering serving states before leaving them.
///
/// With room for `room` more members in a state, the first `room` entries need nothing, and each further entry
/// takes the place of one that left. Of a serving state, each leave waits in turn for every entry that fits
/// before it: a rolling change rather than a gap.
fn states(
    cluster: &Cluster,
    plan: &Plan,
    name: &GroupName,
    places: &[usize],
    rules: &mut Vec<Rule>,
    dips: &mut Dips,
) {
    let group = &cluster.spec.groups[name];
    let count = cluster.members_of(name).count();
    for state in &group.lifecycle.states {
        let mut entries: Vec<usize> =
            places.iter().copied().filter(|&p| plan.steps[p].to == *state).collect();
        let mut leaves: Vec<usize> =
            places.iter().copied().filter(|&p| plan.steps[p].from == *state).collect();
        // Members that only pass through come first among those that enter and last among those that leave, in
        // the same order: each one's entry then waits for earlier leaves only, never for its own.
        let members = |places: &[usize]| -> BTreeSet<&MemberId> {
            places.iter().map(|&place| &plan.steps[place].member).collect()
        };
        if group.limits.contains_key(state) || group.lifecycle.serves(state) {
            let (enter, leave) = (members(&entries), members(&leaves));
            entries.sort_by_key(|&place| (!leave.contains(&plan.steps[place].member), place));
            leaves.sort_by_key(|&place| (enter.contains(&plan.steps[place].member), place));
        }
        let now = cluster.members_of(name).filter(|id| cluster.may_be_in(id, state)).count();
        let max = group.max(state, count).unwrap_or(usize::MAX);
        let (room, excess) = (max.saturating_sub(now), now.saturating_sub(max));
        // Running software that was adopted beyond the limit has to leave before anybody enters.
        rules.push(hard(leaves[..excess.min(leaves.len())].to_vec(), entries.clone()));
        for (turn, entry) in entries.iter().skip(room).enumerate() {
            // With nobody left to take the place of, no order is right: a step cannot come before itself.
            let leave = leaves.get(turn + excess).unwrap_or(entry);
            rules.push(hard(vec![*leave], vec![*entry]));
        }
        if !group.lifecycle.serves(state) || leaves.is_empty() {
            continue;
        }
        let fitting = room.min(entries.len());
        let (left, entered) = (leaves.len(), entries.len());
        dips.insert(
            (name.clone(), state.clone()),
            (left.saturating_sub(entered)).max(1_usize.saturating_sub(fitting)),
        );
        let keeps = Some((name.clone(), state.clone(), left));
        // The first leave waits for all that fit; with no bound, every leave does.
        let first = if room >= entered { &leaves[..] } else { &leaves[..1] };
        rules.push(Rule {
            is_soft: true,
            before: entries[..fitting].to_vec(),
            after: first.to_vec(),
            keeps: keeps.clone(),
        });
        for (turn, leave) in leaves.iter().enumerate().skip(first.len()) {
            let entry = entries[(room + turn - 1).min(entered - 1)];
            rules.push(Rule {
                is_soft: true,
                before: vec![entry],
                after: vec![*leave],
                keeps: keeps.clone(),
            });
        }
    }
}

/// Of the members that rise, those with the highest goal arrive first.
fn highest_first(cluster: &Cluster, plan: &Plan, name: &GroupName, places: &[usize], rules: &mut Vec<Rule>) {
    let lifecycle = &cluster.spec.groups[name].lifecycle;
    let mut arrivals: BTreeMap<usize, Vec<usize>> = BTreeMap::new();
    for &place in places {
        let step = &plan.steps[place];
        let is_last = plan.steps.get(place + 1).is_none_or(|next| next.member != step.member);
        if is_last && rises(cluster, plan, place) {
            arrivals
                .entry(lifecycle.rank(&step.to).expect("plans use known states"))
                .or_default()
                .push(place);
        }
    }
    let arrivals: Vec<_> = arrivals.into_values().collect();
    for pair in arrivals.windows(2) {
        rules.push(Rule { is_soft: true, before: pair[1].clone(), after: pair[0].clone(), keeps: None });
    }
}

/// A graph of all the rules, or of as many soft ones as can be kept.
fn settle(steps: usize, rules: Vec<Rule>, dips: &mut Dips) -> Result<Graph, Rejection> {
    let mut graph = Graph::new(steps);
    rules.iter().for_each(|rule| graph.add(rule));
    if graph.is_acyclic() {
        return Ok(graph);
    }
    let mut graph = Graph::new(steps);
    let (soft, hard): (Vec<_>, Vec<_>) = rules.into_iter().partition(|rule| rule.is_soft);
    hard.iter().for_each(|rule| graph.add(rule));
    if !graph.is_acyclic() {
        let message = "no order of these steps keeps every max and every relation";
        let help = "ask for it in two requests, the first of which makes room";
        return Err(Rejection::new(Code::LimitBroken, message, help));
    }
    let mut tries = TRIES_MAX;
    keep(&mut graph, &soft, &mut tries, dips);
    Ok(graph)
}

/// How many times the graph is searched for the soft rules that cannot be kept. Halving finds one among thousands
/// in a dozen searches; what is still together then is dropped together.
const TRIES_MAX: usize = 64;

/// Adds as many of these rules as leave the graph without a cycle.
fn keep(graph: &mut Graph, rules: &[Rule], tries: &mut usize, dips: &mut Dips) {
    if rules.is_empty() {
        return;
    }
    let before = graph.clone();
    rules.iter().for_each(|rule| graph.add(rule));
    if *tries > 0 && graph.is_acyclic() {
        return;
    }
    *graph = before;
    if rules.len() == 1 || *tries == 0 {
        let dropped = rules.iter().filter_map(|rule| rule.keeps.clone());
        return dropped.for_each(|(group, state, dip)| _ = dips.insert((group, state), dip));
    }
    *tries -= 1;
    let (first, second) = rules.split_at(rules.len() / 2);
    keep(graph, first, tries, dips);
    keep(graph, second, tries, dips);
}

/// What comes directly before each node: steps first, then barriers.
#[derive(Clone)]
struct Graph {
    steps: usize,
    before: Vec<Vec<usize>>,
}

impl Graph {
    fn new(steps: usize) -> Self {
        Self { steps, before: vec![Vec::new(); steps] }
    }

    fn add(&mut self, rule: &Rule) {
        if rule.before.is_empty() || rule.after.is_empty() {
            return;
        }
        if rule.before.len() > 1 && rule.after.len() > 1 {
            let barrier = self.before.len();
            self.before.push(rule.before.clone());
            for &after in &rule.after {
                self.before[after].push(barrier);
            }
            return;
        }
        for &after in &rule.after {
            self.before[after].extend(&rule.before);
        }
    }

    fn is_acyclic(&self) -> bool {
        let mut waits: Vec<usize> = self.before.iter().map(Vec::len).collect();
        let mut follows: Vec<Vec<usize>> = vec![Vec::new(); self.before.len()];
        for (node, before) in self.before.iter().enumerate() {
            before.iter().for_each(|&other| follows[other].push(node));
        }
        let mut ready: Vec<usize> = (0..waits.len()).filter(|&node| waits[node] == 0).collect();
        let mut reached = 0;
        while let Some(node) = ready.pop() {
            reached += 1;
            for &next in &follows[node] {
                waits[next] -= 1;
                if waits[next] == 0 {
                    ready.push(next);
                }
            }
        }
        reached == waits.len()
    }

    fn write_to(self, plan: &mut Plan) {
        let first = u32::try_from(self.steps.max(1)).expect("STEPS_MAX fits").next_multiple_of(BARRIER_FIRST);
        let id = |node: usize| {
            let node_u32 = u32::try_from(node).expect("nodes are few times STEPS_MAX");
            if node < self.steps { StepId(node_u32) } else { StepId(first + node_u32 - self.steps as u32) }
        };
        for (node, before) in self.before.iter().enumerate() {
            let mut after: Vec<_> = before.iter().map(|&other| id(other)).collect();
            after.sort();
            after.dedup();
            if node < self.steps {
                plan.steps[node].after = after;
            } else {
                plan.barriers.push(Barrier { id: id(node), after });
            }
        }
    }
}
