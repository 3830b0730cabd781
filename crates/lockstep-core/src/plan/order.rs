//! The order of a plan's steps: no stricter than the rules need.
//!
//! Hard rules hold at every point of every order in which the steps may run: one member's steps in path order,
//! no state above its `max`, `requires`, `after` and `excludes` across groups, no more members of a group on their way
//! than `parallel` says. Soft rules keep a group serving as long as it can be: enter a serving state before leaving
//! it, enter the highest state first. A soft rule that the hard ones do not allow is dropped.

use super::rule::Pair;
use super::{BARRIER_FIRST, Barrier, Plan, rule};
use crate::cluster::Cluster;
use crate::id::{GroupName, MemberId, StateName, StepId};
use crate::relation::Relation;
use crate::request::{Code, Rejection};
use crate::spec::Kind;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;

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

/// A relation that a plan has to do with, and whether it exists before the plan and after it: one with a `when` may
/// come or go with the settings.
pub(super) struct Bond {
    pub relation: Arc<Relation>,
    pub now: bool,
    pub at_end: bool,
}

/// Puts the plan's steps in order.
pub(super) fn order(cluster: &Cluster, plan: &mut Plan, bonds: &[Bond]) -> Result<Dips, Rejection> {
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
    for bond in bonds {
        across(cluster, plan, bond, &mut rules);
    }
    let narrow = |graph: &mut Graph| {
        let groups = bonds.iter().filter(|bond| bond.relation.moving);
        groups.into_iter().try_for_each(|bond| apart(cluster, plan, &bond.relation, graph))?;
        by_group.iter().try_for_each(|(name, places)| lanes(cluster, plan, name, places, graph))
    };
    let (graph, dips) = settle(plan.steps.len(), rules, dips, narrow)?;
    graph.write_to(plan);
    Ok(dips)
}

/// What a relation demands of the steps of the groups at its ends.
///
/// With a setting a relation may come, which asks of its groups to be there before the setting is taken; or go, and
/// then nobody leaves before.
fn across(cluster: &Cluster, plan: &Plan, bond: &Bond, rules: &mut Vec<Rule>) {
    let relation = &*bond.relation;
    let is_switched = bond.now != bond.at_end;
    let switches: Vec<usize> = if is_switched { switches(plan, relation) } else { Vec::new() };
    let serves = |place: usize, state: &StateName| {
        cluster.spec.groups[&plan.steps[place].member.group].lifecycle.serves(state)
    };
    let enters =
        |place: &usize| !serves(*place, &plan.steps[*place].from) && serves(*place, &plan.steps[*place].to);
    let leaves =
        |place: &usize| serves(*place, &plan.steps[*place].from) && !serves(*place, &plan.steps[*place].to);
    for Pair { from, to, .. } in rule::pairs(cluster, relation) {
        let from = steps_of(plan, &from);
        let to: Vec<usize> = to.iter().flat_map(|members| steps_of(plan, members)).collect();
        if relation.orders() {
            let moving = |places: &[usize], up: bool| -> Vec<usize> {
                places.iter().copied().filter(|place| moves(cluster, plan, *place, up)).collect()
            };
            let (needed_first, needed_last) = (moving(&to, true), moving(&to, false));
            if bond.at_end {
                rules.push(hard(needed_first.clone(), moving(&from, true)));
                rules.push(hard(needed_first, switches.clone()));
            }
            if bond.now {
                rules.push(hard(moving(&from, false), needed_last.clone()));
                rules.push(hard(switches.clone(), needed_last));
            }
        } else if relation.kind == Kind::Excludes && !relation.moving {
            let only = |places: &[usize], which: &dyn Fn(&usize) -> bool| -> Vec<usize> {
                places.iter().filter(|place| which(place)).copied().collect()
            };
            let leaving = [only(&from, &leaves), only(&to, &leaves)].concat();
            let entering = [only(&from, &enters), only(&to, &enters)].concat();
            if bond.at_end {
                rules.push(hard(only(&from, &leaves), only(&to, &enters)));
                rules.push(hard(only(&to, &leaves), only(&from, &enters)));
                rules.push(hard(leaving, switches.clone()));
            } else {
                rules.push(hard(switches.clone(), entering));
            }
        }
    }
}

/// The steps that take the settings on which a relation depends.
fn switches(plan: &Plan, relation: &Relation) -> Vec<usize> {
    let takes = |(_, step): &(usize, &super::Step)| {
        !step.moves()
            && relation.when.keys().any(|id| id.group == step.member.group && step.set.contains_key(&id.key))
    };
    plan.steps.iter().enumerate().filter(takes).map(|(place, _)| place).collect()
}

/// The steps of these members, which stand side by side in the plan.
fn steps_of(plan: &Plan, members: &[&MemberId]) -> Vec<usize> {
    let steps = members.iter().flat_map(|member| plan.steps_of(member));
    steps.map(|step| step.id.0 as usize).collect()
}

/// Groups that never move at once: all of one before all of the other, whichever way the rest of the order allows.
fn apart(cluster: &Cluster, plan: &Plan, relation: &Relation, graph: &mut Graph) -> Result<(), Rejection> {
    let mut turns = graph.turns_of_nodes();
    for Pair { from, to, .. } in rule::pairs(cluster, relation) {
        let from = steps_of(plan, &from);
        let to: Vec<usize> = to.iter().flat_map(|members| steps_of(plan, members)).collect();
        if from.is_empty() || to.is_empty() {
            continue;
        }
        let ends = |places: &[usize]| {
            let turns = || places.iter().map(|&place| turns[place]);
            turns().min().zip(turns().max()).expect("there is one")
        };
        let ((from_first, from_last), (to_first, to_last)) = (ends(&from), ends(&to));
        let (first, second) = (hard(from.clone(), to.clone()), hard(to, from));
        // What is so already in an order that the graph allows makes no circle. There may be ten thousand pairs, and
        // searching the graph for each would take seconds.
        if from_last < to_first {
            graph.add(&first);
        } else if to_last < from_first {
            graph.add(&second);
        } else if graph.keeps(&first) || graph.keeps(&second) {
            turns = graph.turns_of_nodes();
        } else {
            let message = format!(
                "{} and {} exclude moving at once, and each waits for the other",
                relation.from, relation.to
            );
            return Err(Rejection::new(
                Code::Excluded,
                message,
                "ask for one of them first, then for the other",
            ));
        }
    }
    Ok(())
}

/// No more members of a group are on their way at once than `parallel` says: members go in lanes, one behind the other,
/// in the order in which the graph lets them begin.
fn lanes(
    cluster: &Cluster,
    plan: &Plan,
    name: &GroupName,
    places: &[usize],
    graph: &mut Graph,
) -> Result<(), Rejection> {
    let group = &cluster.spec.groups[name];
    let count = cluster.members_of(name).count();
    let lanes = group.parallel.as_max(count).max(1);
    let mut members: BTreeMap<&MemberId, (usize, usize)> = BTreeMap::new();
    for &place in places {
        members.entry(&plan.steps[place].member).or_insert((place, place)).1 = place;
    }
    if members.len() <= lanes {
        return Ok(());
    }
    let mut turns = vec![0; graph.before.len()];
    graph.turns().into_iter().enumerate().for_each(|(turn, node)| turns[node] = turn);
    let mut members: Vec<(usize, usize)> = members.into_values().collect();
    // Who can end early goes first; where that cannot be, who can begin early.
    for ends_early in [true, false] {
        members.sort_by_key(|(first, last)| (turns[if ends_early { *last } else { *first }], *first));
        let before = graph.clone();
        for ((_, last), (first, _)) in members.iter().zip(&members[lanes..]) {
            graph.add(&hard(vec![*last], vec![*first]));
        }
        if graph.is_acyclic() {
            return Ok(());
        }
        *graph = before;
    }
    let message =
        format!("parallel = {} of {name} leaves no order in which limits and relations hold", group.parallel);
    Err(Rejection::new(Code::LimitBroken, message, "raise parallel, or ask for fewer members at a time"))
}

fn hard(before: Vec<usize>, after: Vec<usize>) -> Rule {
    Rule { is_soft: false, before, after, keeps: None }
}

/// Whether a step leads up, or down; one that takes settings leads neither way.
fn moves(cluster: &Cluster, plan: &Plan, place: usize, up: bool) -> bool {
    let step = &plan.steps[place];
    let lifecycle = &cluster.spec.groups[&step.member.group].lifecycle;
    step.moves() && (lifecycle.rank(&step.to) > lifecycle.rank(&step.from)) == up
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
    // Where not all soft rules can be kept, those of the highest states are tried first.
    for state in group.lifecycle.states.iter().rev() {
        let moves = || places.iter().copied().filter(|&place| plan.steps[place].moves());
        let mut entries: Vec<usize> = moves().filter(|&place| plan.steps[place].to == *state).collect();
        let mut leaves: Vec<usize> = moves().filter(|&place| plan.steps[place].from == *state).collect();
        // Members that only pass through come first among those that enter and last among those that leave, in
        // the same order: each one's entry then waits for earlier leaves only, never for its own.
        let members = |places: &[usize]| -> BTreeSet<&MemberId> {
            places.iter().map(|&place| &plan.steps[place].member).collect()
        };
        if group.limits.contains_key(state) || group.lifecycle.serves(state) {
            let (enter, leave) = (members(&entries), members(&leaves));
            // Of those that pass through, who goes on to the highest state is first; then who has the fewest steps before:
            // who is far behind may have to wait for the others.
            let order = |place: usize, others: &BTreeSet<&MemberId>| {
                let member = &plan.steps[place].member;
                let passes = others.contains(member);
                let goal = plan.goals.get(member).filter(|_| passes);
                let goal = std::cmp::Reverse(goal.and_then(|goal| group.lifecycle.rank(goal)));
                let behind = plan.steps_of(member).take_while(|step| (step.id.0 as usize) < place).count();
                (passes, goal, behind, place)
            };
            entries.sort_by_key(|&place| {
                let (passes, goal, behind, place) = order(place, &leave);
                (!passes, goal, behind, place)
            });
            leaves.sort_by_key(|&place| order(place, &enter));
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
        // Whoever passes through leaves after it has entered, and is not missed.
        let entering = members(&entries);
        let standing = leaves.iter().filter(|&&place| !entering.contains(&plan.steps[place].member)).count();
        let keeps = Some((name.clone(), state.clone(), standing));
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
        if is_last && moves(cluster, plan, place, true) {
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

/// A graph of all the rules, or of as many soft ones as can be kept; `narrow` adds the hard rules that take their order
/// from those that are there.
fn settle(
    steps: usize,
    rules: Vec<Rule>,
    dips: Dips,
    narrow: impl Fn(&mut Graph) -> Result<(), Rejection>,
) -> Result<(Graph, Dips), Rejection> {
    let mut graph = Graph::new(steps);
    rules.iter().for_each(|rule| graph.add(rule));
    if graph.is_acyclic() && narrow(&mut graph).is_ok() {
        return Ok((graph, dips));
    }
    let mut graph = Graph::new(steps);
    let (soft, hard): (Vec<_>, Vec<_>) = rules.into_iter().partition(|rule| rule.is_soft);
    hard.iter().for_each(|rule| graph.add(rule));
    if !graph.is_acyclic() {
        let message = "no order of these steps keeps every max and every relation";
        let help = "ask for it in two requests, the first of which makes room";
        return Err(Rejection::new(Code::LimitBroken, message, help));
    }
    // As many soft rules as can be kept may leave no lane; then the lanes come first.
    let (mut tries, mut kept, mut dipped) = (TRIES_MAX, graph.clone(), dips.clone());
    keep(&mut kept, &soft, &mut tries, &mut dipped);
    if narrow(&mut kept).is_ok() {
        return Ok((kept, dipped));
    }
    narrow(&mut graph)?;
    let (mut tries, mut dips) = (TRIES_MAX, dips);
    keep(&mut graph, &soft, &mut tries, &mut dips);
    Ok((graph, dips))
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

    /// Adds a rule unless that would make a circle; tells whether it stands.
    fn keeps(&mut self, rule: &Rule) -> bool {
        let before = self.clone();
        self.add(rule);
        if self.is_acyclic() {
            return true;
        }
        *self = before;
        false
    }

    fn is_acyclic(&self) -> bool {
        self.turns().len() == self.before.len()
    }

    /// The turn of each node, in an order that the graph allows in which one member goes all its way before the next
    /// one begins, where it can.
    fn turns_of_nodes(&self) -> Vec<usize> {
        let mut turns = vec![0; self.before.len()];
        let order = self.in_order(VecDeque::push_front);
        order.into_iter().enumerate().for_each(|(turn, node)| turns[node] = turn);
        turns
    }

    /// The nodes in one order that the graph allows, whoever may go longest first; those in a circle are left out.
    fn turns(&self) -> Vec<usize> {
        self.in_order(VecDeque::push_back)
    }

    fn in_order(&self, line_up: impl Fn(&mut VecDeque<usize>, usize)) -> Vec<usize> {
        let mut waits: Vec<usize> = self.before.iter().map(Vec::len).collect();
        let mut follows: Vec<Vec<usize>> = vec![Vec::new(); self.before.len()];
        for (node, before) in self.before.iter().enumerate() {
            before.iter().for_each(|&other| follows[other].push(node));
        }
        let mut ready: VecDeque<usize> = (0..waits.len()).filter(|&node| waits[node] == 0).collect();
        let mut turns = Vec::new();
        while let Some(node) = ready.pop_front() {
            turns.push(node);
            for &after in &follows[node] {
                waits[after] -= 1;
                if waits[after] == 0 {
                    line_up(&mut ready, after);
                }
            }
        }
        turns
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
