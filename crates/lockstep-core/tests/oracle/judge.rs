//! Whether a plan is valid, and no stricter than it needs to be.

use crate::model::{AFTER, BEFORE, Link, Model};
use crate::refusal::{cascades, deserted, is_filled, is_nearest, pulled, sets};
use crate::rule::{Move, Moves, Steps, Why, wrong_at_end};
use lockstep_core::cluster::Cluster;
use lockstep_core::id::{GroupName, MemberId, StateName, StepId};
use lockstep_core::message::Role;
use lockstep_core::plan::Plan;
use lockstep_core::request::{Request, Target};
use lockstep_core::spec::{Ask, Kind};
use std::collections::{BTreeMap, BTreeSet};

/// A rule that is broken, and how.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Fault {
    pub(crate) rule: &'static str,
    pub(crate) text: String,
}

fn fault(rule: &'static str, text: impl Into<String>) -> Fault {
    Fault { rule, text: text.into() }
}

/// The groups that a name stands for.
pub(crate) fn leaves(model: &Model, name: &GroupName) -> Vec<usize> {
    match model.composites.get(name) {
        Some(leaves) => leaves.iter().copied().collect(),
        None => model.group(name).into_iter().collect(),
    }
}

/// What a request says of members by itself: where each is to end, none where that is for the planner to choose.
pub(crate) struct Asked {
    pub(crate) named: BTreeMap<usize, Option<usize>>,
    /// A member is asked to be in two states.
    pub(crate) is_torn: bool,
    /// A member is named beside its group's `up`.
    pub(crate) is_named_twice: bool,
    /// The groups that are named whole.
    pub(crate) whole: BTreeSet<usize>,
    pub(crate) has_drain: bool,
    /// Members whose host is drained.
    pub(crate) drained: BTreeSet<usize>,
}

pub(crate) fn asked(model: &Model, request: &Request) -> Asked {
    let mut asked = Asked {
        named: BTreeMap::new(),
        is_torn: false,
        is_named_twice: false,
        whole: BTreeSet::new(),
        has_drain: false,
        drained: BTreeSet::new(),
    };
    let mut explicit: BTreeMap<usize, BTreeSet<usize>> = BTreeMap::new();
    let is_host = |target: &Target, member: usize| matches!(target, Target::Drain(host) if *host == model.members[member].id.host);
    let is_drained = |member: usize| {
        model.members[member].is_drained || request.targets.iter().any(|target| is_host(target, member))
    };
    let mut chosen = BTreeSet::new();
    for target in &request.targets {
        let place = |group: usize, state: &StateName| {
            model.groups[group].states.iter().position(|known| known == state)
        };
        // A group's name does not bring up a member that is on its way out, or whose host is drained.
        let members = |group: usize, state: usize, is_up: bool| {
            let all = model.groups[group].members.iter().copied();
            all.filter(move |&member| state == 0 || !(model.members[member].is_leaving || is_drained(member)))
                .filter(move |&member| {
                    state > 0 && is_up || !request.exclude_lost || model.members[member].is_reachable
                })
        };
        match target {
            Target::Group(name, state) => {
                for group in leaves(model, name) {
                    asked.whole.insert(group);
                    let Some(state) = place(group, state) else { continue };
                    members(group, state, false)
                        .for_each(|member| _ = explicit.entry(member).or_default().insert(state));
                }
            }
            Target::Down(name) => {
                for group in leaves(model, name) {
                    asked.whole.insert(group);
                    members(group, 0, false)
                        .for_each(|member| _ = explicit.entry(member).or_default().insert(0));
                }
            }
            Target::Repair(_) => unreachable!("none is asked for: the simulator judges repairs"),
            Target::Up(name) => {
                for group in leaves(model, name) {
                    asked.whole.insert(group);
                    chosen.extend(members(group, 1, true));
                }
            }
            Target::Member(id, state) => {
                if let Some(member) = model.member(id)
                    && let Some(state) = place(model.members[member].group, state)
                {
                    explicit.entry(member).or_default().insert(state);
                }
            }
            Target::Drain(host) => {
                asked.has_drain = true;
                for (number, member) in
                    model.members.iter().enumerate().filter(|(_, one)| one.id.host == *host)
                {
                    explicit.entry(number).or_default().insert(model.groups[member.group].drained);
                    asked.drained.insert(number);
                }
            }
            Target::Setting(_, _, _) => {}
        }
    }
    asked.is_torn = explicit.values().any(|states| states.len() > 1);
    let groups: BTreeSet<usize> = chosen.iter().map(|&member: &usize| model.members[member].group).collect();
    asked.is_named_twice = explicit.keys().any(|&member| groups.contains(&model.members[member].group));
    chosen.into_iter().for_each(|member| _ = asked.named.insert(member, None));
    for (member, states) in explicit {
        asked.named.insert(member, states.first().copied());
    }
    asked
}

/// What `Moves` a plan makes, and which steps have ended when each may begin.
fn read<'a>(model: &'a Model, plan: &Plan) -> Result<(Moves<'a>, Vec<Steps>), Fault> {
    let mut steps = Vec::new();
    for (number, step) in plan.steps.iter().enumerate() {
        if step.id != StepId(number as u32) {
            return Err(fault("ids", format!("step {number} is called {}", step.id)));
        }
        let Some(member) = model.member(&step.member) else {
            return Err(fault("members", format!("{} is no member", step.member)));
        };
        let group = &model.groups[model.members[member].group];
        let place = |state| group.states.iter().position(|known| known == state);
        let (Some(from), Some(to)) = (place(&step.from), place(&step.to)) else {
            return Err(fault("states", format!("{} -> {}", step.from, step.to)));
        };
        steps.push(Move { member, from, to });
    }
    let count = steps.len();
    let barrier = |id: StepId| plan.barriers.iter().find(|barrier| barrier.id == id);
    // What comes before, through barriers and steps, until nothing is added.
    let mut before = vec![0 as Steps; count];
    for (step, before) in before.iter_mut().enumerate() {
        let mut open: Vec<StepId> = plan.steps[step].after.clone();
        let mut seen = BTreeSet::new();
        while let Some(id) = open.pop() {
            if !seen.insert(id) {
                continue;
            }
            if (id.0 as usize) < count {
                *before |= 1 << id.0;
                open.extend(&plan.steps[id.0 as usize].after);
            } else {
                let Some(barrier) = barrier(id) else {
                    return Err(fault("barriers", format!("no barrier {id}")));
                };
                open.extend(&barrier.after);
            }
        }
        if *before & (1 << step) != 0 {
            return Err(fault("acyclic", format!("step {step} waits for itself")));
        }
    }
    Ok((Moves::new(model, steps, plan.settings.clone()), before))
}

/// Every set of finished steps that can come about; none: too many to look at all of them.
fn cuts(before: &[Steps]) -> Option<Vec<Steps>> {
    let mut seen: BTreeSet<Steps> = BTreeSet::from([0]);
    let mut cuts = vec![0];
    let mut at = 0;
    while at < cuts.len() {
        let done = cuts[at];
        at += 1;
        for (step, needs) in before.iter().enumerate() {
            if done & (1 << step) == 0 && needs & !done == 0 && seen.insert(done | 1 << step) {
                cuts.push(done | 1 << step);
            }
        }
        if cuts.len() > 3_000 {
            return None;
        }
    }
    Some(cuts)
}

fn ready(before: &[Steps], done: Steps) -> Steps {
    let ready = |(step, needs): (usize, &Steps)| done & (1 << step) == 0 && needs & !done == 0;
    before.iter().enumerate().filter(|&(step, needs)| ready((step, needs))).map(|(step, _)| 1 << step).sum()
}

/// What has been looked at in full, to be counted.
#[derive(Debug, Default, Clone, Copy)]
pub(crate) struct Looked {
    pub(crate) points: usize,
    pub(crate) edges: usize,
    pub(crate) lanes: usize,
    pub(crate) is_capped: bool,
}

/// What is wrong with a plan.
pub(crate) fn judge(
    model: &Model,
    cluster: &Cluster,
    request: &Request,
    plan: &Plan,
) -> (Vec<Fault>, Looked) {
    let mut faults = Vec::new();
    let mut looked = Looked::default();
    let (moves, before) = match read(model, plan) {
        Ok(read) => read,
        Err(fault) => return (vec![fault], looked),
    };
    let asked = asked(model, request);
    faults.extend(steps(&moves, plan, cluster, &asked, &sets(model, request)));
    faults.extend(goals(model, &moves, &asked, request, plan, cluster));
    faults.extend(goals_hold(model, plan, cluster, &asked));
    for (second, needs) in before.iter().enumerate() {
        for first in 0..before.len() {
            if needs & (1 << first) == 0
                && let Some(why) = moves.hard(first, second)
            {
                faults.push(fault("order", format!("{first} before {second}: {why:?}")));
            }
        }
    }
    match cuts(&before) {
        None => looked.is_capped = true,
        Some(cuts) => {
            looked.points = cuts.len();
            if let Some((rule, text)) =
                cuts.iter().find_map(|&done| moves.wrong_at(done, ready(&before, done)))
            {
                faults.push(fault(rule, text));
            }
            faults.extend(gaps(&moves, plan, &before, &cuts));
            if faults.is_empty() {
                faults.extend(needless(&moves, &before, &mut looked));
            }
        }
    }
    faults.extend(soft(&moves, &before, plan));
    faults.extend(participants(model, &moves, &asked, request, plan, cluster));
    faults.extend(footprint(model, plan));
    (faults, looked)
}

/// Where a member is meant to be at the end.
fn meant<'a>(plan: &'a Plan, cluster: &'a Cluster, id: &MemberId) -> Option<&'a StateName> {
    let planned = plan.returns_to.get(id).or_else(|| plan.goals.get(id));
    planned.or_else(|| cluster.members[id].should_be())
}

/// Whether a member's place is given to another: it is known to be elsewhere, cannot be asked or was not named, and with
/// those who are to be there more would be meant to be in that state than may be.
fn gives_up(model: &Model, plan: &Plan, cluster: &Cluster, asked: &Asked, member: usize) -> bool {
    let known = &model.members[member];
    let group = &model.groups[known.group];
    let before = cluster.members[&known.id].should_be();
    let Some(state) = group.states.iter().position(|state| Some(state) == before) else { return false };
    let others = || group.members.iter().copied().filter(|&other| other != member);
    let id = |other: usize| &model.members[other].id;
    let there = || others().filter(|&other| meant(plan, cluster, id(other)) == before);
    let comes = |other: usize| plan.goals.contains_key(id(other)) || asked.named.contains_key(&other);
    let is_away = known.places & (1 << state) == 0 && !known.is_in_doubt;
    let is_asked = asked.named.contains_key(&member) && known.is_reachable;
    let is_full = group.max[state].is_some_and(|max| there().count() >= max);
    is_away && !is_asked && is_full && there().any(comes)
}

/// No more are meant to be in a limited state that somebody moves to than may be, those in doubt left aside.
fn goals_hold(model: &Model, plan: &Plan, cluster: &Cluster, asked: &Asked) -> Vec<Fault> {
    let mut faults = Vec::new();
    for group in &model.groups {
        for (state, max) in group.states.iter().zip(&group.max) {
            let members = || group.members.iter().copied();
            let id = |member: usize| &model.members[member].id;
            let is_entered = plan.steps.iter().any(|step| {
                step.moves() && step.member.group == group.name && plan.goals[&step.member] == *state
            });
            let Some(max) = max.filter(|_| is_entered) else { continue };
            let count = members().filter(|&one| meant(plan, cluster, id(one)) == Some(state)).count();
            let mut kept = members().filter(|&one| !plan.goals.contains_key(id(one)));
            let kept = kept.find(|&one| {
                meant(plan, cluster, id(one)) == Some(state) && gives_up(model, plan, cluster, asked, one)
            });
            if let Some(kept) = kept.filter(|_| count > max) {
                faults.push(fault("goals", format!("{} keeps a place that another has", id(kept))));
            }
        }
    }
    faults
}

/// Each step an edge of the lifecycle, each member's steps a chain from where it is to its goal.
fn steps(
    moves: &Moves<'_>,
    plan: &Plan,
    cluster: &Cluster,
    asked: &Asked,
    sets: &BTreeSet<usize>,
) -> Vec<Fault> {
    let model = moves.model;
    let mut faults = Vec::new();
    for (member, known) in model.members.iter().enumerate() {
        let steps = &moves.of[member];
        let group = &model.groups[known.group];
        let missing = model.missing(member);
        let mut at = known.surely;
        for &number in steps {
            let (step, written) = (moves.steps[number], &plan.steps[number]);
            if at != Some(step.from) {
                faults.push(fault("chain", format!("step {number} does not follow for {}", known.id)));
            }
            if step.moves() && !group.edges.contains(&(step.from, step.to)) {
                faults.push(fault("edge", format!("step {number} of {} is no edge", known.id)));
            }
            if step.moves() && !written.set.is_empty() {
                faults.push(fault("set", format!("step {number} moves and sets")));
            }
            if !step.moves() && (steps.len() > 1 || missing != written.set) {
                faults.push(fault("set", format!("step {number} takes {:?}", written.set)));
            }
            at = Some(step.to);
        }
        let goal = plan.goals.get(&known.id);
        let ends = moves.goal(member).map(|goal| &group.states[goal]);
        let stays =
            known.actual.filter(|_| !known.is_in_doubt && steps.is_empty()).map(|at| &group.states[at]);
        let gives_up = gives_up(model, plan, cluster, asked, member);
        if goal.is_some() && goal != ends && stays != goal && !gives_up {
            faults.push(fault("goal", format!("{} ends {ends:?}, goal {goal:?}", known.id)));
        }
        let is_changed = cluster.members[&known.id].goal.as_ref() != goal;
        if goal.is_some() && steps.is_empty() && !is_changed {
            faults.push(fault("goal", format!("{} has its goal already", known.id)));
        }
        if goal.is_none() && !steps.is_empty() {
            faults.push(fault("goal", format!("{} moves and has no goal", known.id)));
        }
        let goal_before = plan.goals_before.get(&known.id);
        if goal.is_some() && goal_before != Some(&cluster.members[&known.id].goal) {
            faults.push(fault("goals-before", format!("{} had {goal_before:?}", known.id)));
        }
        // Members that serve take the new values, those that move take them with a step that they take anyway.
        let serves = known.surely.is_some_and(|at| model.serves_in(member, at));
        let takes = serves && sets.contains(&known.group) && !missing.is_empty();
        if takes && steps.is_empty() {
            faults.push(fault("set", format!("{} serves and does not take the settings", known.id)));
        }
        if !takes && steps.iter().any(|&step| !moves.steps[step].moves()) {
            faults.push(fault("set", format!("{} takes settings for nothing", known.id)));
        }
    }
    let changed = |side: usize, group: &GroupName| model.settings[side].get(group);
    for (group, set) in &plan.settings {
        let was = plan.settings_before.get(group);
        for (key, value) in set {
            let known = changed(BEFORE, group).and_then(|known| known.get(key));
            if known == Some(value) || known.is_none() || was.and_then(|was| was.get(key)) != known {
                faults.push(fault("settings", format!("{group}.{key} is {known:?}, was {was:?}")));
            }
        }
    }
    faults
}

/// Every named member is where it was asked to be; nobody else moves for nothing; what has to hold at the end does.
fn goals(
    model: &Model,
    moves: &Moves<'_>,
    asked: &Asked,
    request: &Request,
    plan: &Plan,
    cluster: &Cluster,
) -> Vec<Fault> {
    let mut faults = Vec::new();
    let ends: BTreeMap<usize, usize> = (0..model.members.len())
        .filter_map(|member| Some((member, moves.goal(member)?)))
        .filter(|&(member, goal)| moves.start(member) != Some(goal))
        .collect();
    let name = |member: usize| &model.members[member].id;
    if asked.is_torn {
        faults.push(fault("torn", "a member is asked to be in two states"));
    }
    for (&member, wanted) in &asked.named {
        let known = &model.members[member];
        let Some(wanted) = *wanted else { continue };
        let is_excused = request.exclude_lost && !known.is_reachable;
        let end = ends.get(&member).copied().or(known.actual.filter(|_| !known.is_in_doubt));
        if !is_excused && end != Some(wanted) {
            faults.push(fault("named", format!("{} does not end where it was asked to be", name(member))));
        }
    }
    let whole = pulled(model, asked, &ends);
    let wrong = wrong_at_end(model, &ends, &whole, false);
    faults.extend(wrong.into_iter().map(|(_, text)| fault("end", text)));
    if !asked.is_named_twice && !is_filled(model, asked, request, &ends) {
        faults.push(fault("up", "states are not filled from the highest"));
    }
    if deserted(model, asked, &ends) && whole == asked.whole {
        faults.push(fault("deserted", "a drain stops a group"));
    }
    for &member in ends.keys() {
        if asked.named.contains_key(&member) {
            continue;
        }
        let mut without = ends.clone();
        without.remove(&member);
        // A cascade takes down all of a group.
        if cascades(model, model.members[member].group) && ends[&member] == 0 {
            without.retain(|other, goal| {
                model.members[*other].group != model.members[member].group
                    || *goal != 0
                    || asked.named.contains_key(other)
            });
        }
        let mut known: BTreeSet<String> =
            wrong_at_end(model, &ends, &BTreeSet::new(), true).into_iter().map(|(_, text)| text).collect();
        known.retain(|_| !asked.has_drain);
        let worse = wrong_at_end(model, &without, &BTreeSet::new(), true);
        let is_for_nothing = worse.iter().all(|(_, text)| known.contains(text));
        let at = |ends: &BTreeMap<usize, usize>, member: usize| {
            ends.get(&member).copied().or(model.members[member].surely)
        };
        let group = model.members[member].group;
        let is_a_role = asked.has_drain
            && model.serves(group, &None, &|member| at(&ends, member))
            && !model.serves(group, &None, &|member| at(&without, member));
        if !is_a_role && !is_for_nothing && !is_nearest(model, &ends, member) {
            faults.push(fault("nearest", format!("{} does not go to the nearest state", name(member))));
        }
        // A group that keeps a named member serves no more for that, and the others have gone with it.
        let group = model.members[member].group;
        let has_named = asked.named.keys().any(|&other| model.members[other].group == group);
        let is_for_nothing = is_for_nothing && !(has_named && ends[&member] == 0 && cascades(model, group));
        if is_for_nothing && !is_a_role {
            faults.push(fault("needless-move", format!("{} moves, and need not", name(member))));
        }
    }
    let drained: BTreeSet<_> = request
        .targets
        .iter()
        .filter_map(|target| if let Target::Drain(host) = target { Some(host.clone()) } else { None })
        .filter(|host| !cluster.hosts[host].is_drained)
        .collect();
    if plan.drains != drained {
        faults.push(fault("drains", format!("{:?}", plan.drains)));
    }
    faults
}

/// The groups that can stop serving inside their own move.
fn gaps(moves: &Moves<'_>, plan: &Plan, before: &[Steps], cuts: &[Steps]) -> Option<Fault> {
    let model = moves.model;
    let all = cuts.iter().copied().max().unwrap_or(0);
    let serves = |group: usize, done: Steps, flight: Steps| {
        model.serves(group, &None, &|member| moves.surely(member, done, flight))
    };
    let gaps: Vec<GroupName> = (0..model.groups.len())
        .filter(|&group| serves(group, 0, 0) && serves(group, all, 0))
        .filter(|&group| cuts.iter().any(|&done| !serves(group, done, ready(before, done))))
        .map(|group| model.groups[group].name.clone())
        .collect();
    (gaps != plan.gaps).then(|| fault("gaps", format!("{:?}, not {gaps:?}", plan.gaps)))
}

/// Edges without which every rule would be kept.
fn needless(moves: &Moves<'_>, before: &[Steps], looked: &mut Looked) -> Option<Fault> {
    let model = moves.model;
    for second in 0..before.len() {
        for first in 0..before.len() {
            let is_between = |between: &usize| {
                before[second] & (1 << between) != 0 && before[*between] & (1 << first) != 0
            };
            if before[second] & (1 << first) == 0 || (0..before.len()).any(|between| is_between(&between)) {
                continue;
            }
            looked.edges += 1;
            // Lanes are drawn without regard to what else keeps members apart.
            let group = &model.groups[moves.group(second)];
            if moves.group(first) == moves.group(second) && group.parallel < group.members.len() {
                looked.lanes += 1;
                continue;
            }
            if moves.hard(first, second).is_some() || moves.soft(first, second).is_some() {
                continue;
            }
            let mut without = before.to_vec();
            without[second] &= !(1 << first);
            let Some(cuts) = cuts(&without) else { continue };
            let is_needed = cuts.iter().any(|&done| moves.wrong_at(done, ready(&without, done)).is_some());
            if !is_needed {
                return Some(fault("stricter", format!("{second} need not wait for {first}")));
            }
        }
    }
    None
}

/// What the planner would rather do, where it can.
fn soft(moves: &Moves<'_>, before: &[Steps], plan: &Plan) -> Option<Fault> {
    let count = before.len();
    let broken: Vec<(usize, usize, Why)> = (0..count)
        .flat_map(|first| (0..count).map(move |second| (first, second)))
        .filter(|&(first, second)| before[second] & (1 << first) == 0)
        .filter_map(|(first, second)| Some((first, second, moves.soft(first, second)?)))
        .collect();
    if let Some((first, second, why)) = broken.first()
        && moves.has_order(true, &|_, _, _| true) == Some(true)
    {
        return Some(fault("soft", format!("{first} before {second}: {why:?}, and all such could be kept")));
    }
    // Lanes come before the order that would keep a group serving.
    let model = moves.model;
    let has_lanes = |name: &GroupName| {
        model.groups.iter().any(|group| group.name == *name && group.parallel < group.members.len())
    };
    if !plan.gaps.is_empty() && !plan.gaps.iter().any(has_lanes) {
        let kept: Vec<usize> = (0..model.groups.len())
            .filter(|&group| model.serves(group, &None, &|member| moves.surely(member, 0, 0)))
            .filter(|&group| plan.gaps.contains(&model.groups[group].name))
            .collect();
        let also = |moves: &Moves<'_>, done: Steps, flight: Steps| {
            kept.iter().all(|&group| model.serves(group, &None, &|member| moves.surely(member, done, flight)))
        };
        if moves.has_order(false, &also) == Some(true) {
            return Some(fault("needless-gap", format!("{:?} need not stop serving", plan.gaps)));
        }
    }
    None
}

fn links(model: &Model) -> impl Iterator<Item = &Link> {
    let known = |link: &Link| model.links[AFTER].iter().any(|other| other.relation == link.relation);
    model.links[AFTER].iter().chain(model.links[BEFORE].iter().filter(move |link| !known(link)))
}

/// Who takes part, and as what.
fn participants(
    model: &Model,
    moves: &Moves<'_>,
    asked: &Asked,
    request: &Request,
    plan: &Plan,
    cluster: &Cluster,
) -> Vec<Fault> {
    let mut faults = Vec::new();
    let role =
        |role: Role| -> BTreeSet<usize> { plan.with_role(role).filter_map(|id| model.member(id)).collect() };
    let is_moved = |member: &usize| !moves.of[*member].is_empty();
    // One that is where it should be, and whose goal was another, has nothing to do and is asked all the same; one whose
    // place another has got is not.
    let has_goal = |member: &usize| plan.goals.contains_key(&model.members[*member].id);
    let is_asked = |member: &usize| {
        has_goal(member)
            && model.members[*member].is_reachable
            && !gives_up(model, plan, cluster, asked, *member)
    };
    let is_actor = |member: &usize| is_moved(member) || is_asked(member);
    let all = 0..model.members.len();
    let names = |of: &BTreeSet<usize>| {
        of.iter().map(|&member| model.members[member].id.to_string()).collect::<Vec<_>>().join(" ")
    };
    let mut compare = |what: &'static str, found: BTreeSet<usize>, wanted: BTreeSet<usize>| {
        if found != wanted {
            let (more, less): (BTreeSet<_>, BTreeSet<_>) =
                (found.difference(&wanted).copied().collect(), wanted.difference(&found).copied().collect());
            faults.push(fault(what, format!("too many: {}; too few: {}", names(&more), names(&less))));
        }
    };
    let count: usize =
        [Role::Actor, Role::Voter, Role::Holder, Role::Observer].map(|of| role(of).len()).iter().sum();
    compare("actors", role(Role::Actor), all.clone().filter(is_actor).collect());
    let stops = |member: usize| {
        moves.of[member].iter().any(|&step| {
            let step = moves.steps[step];
            model.serves_in(member, step.from) && !model.serves_in(member, step.to)
        })
    };
    let mut asked: [BTreeSet<usize>; 2] = Default::default();
    for link in links(model) {
        let Some(ask) = link.ask else { continue };
        for &to in &link.to {
            let sets = plan.settings.get(&model.groups[to].name);
            let is_set = sets.is_some_and(|set| set.keys().any(|key| link.relation.on.contains(key)));
            for &a in &model.groups[link.from].members {
                let concerns = |b: &usize| model.is_paired(link, a, *b) && (stops(*b) || is_set);
                let is_left_out = request.exclude_lost && !model.members[a].is_reachable;
                let is_whole = is_set && link.scope.is_none();
                if (is_whole || model.groups[to].members.iter().any(concerns))
                    && !is_actor(&a)
                    && !is_left_out
                {
                    asked[usize::from(ask == Ask::Hold)].insert(a);
                }
            }
        }
    }
    let [voters, holders] = asked;
    compare("voters", role(Role::Voter), voters.difference(&holders).copied().collect());
    compare("holders", role(Role::Holder), holders);
    let mut moving: BTreeSet<usize> =
        all.clone().filter(has_goal).map(|member| model.members[member].group).collect();
    moving.extend(plan.settings.keys().filter_map(|group| model.group(group)));
    let beside: BTreeSet<usize> =
        all.filter(|member| !is_actor(member) && moving.contains(&model.members[*member].group)).collect();
    let found = role(Role::Observer);
    // At least those that a chain of pairs leads to, at most those that a chain of groups does.
    let least: BTreeSet<usize> = told(model, plan, &moving, true).union(&beside).copied().collect();
    let most: BTreeSet<usize> = told(model, plan, &moving, false).union(&beside).copied().collect();
    compare("observers", &found - &(&most - &least), least);
    if count != plan.participants.len() {
        faults.push(fault("participants", "somebody is listed twice in a role, or is no member"));
    }
    let limited = |step: usize| {
        let moved = moves.steps[step];
        let group = &model.groups[moves.group(step)];
        moved.moves() && model.serves_in(moved.member, moved.to) && group.max[moved.to].is_some()
    };
    let holders = role(Role::Holder);
    let is_held = |step: usize| {
        links(model).any(|link| {
            link.ask == Some(Ask::Hold)
                && link.to.contains(&moves.group(step))
                && model.groups[link.from].members.iter().any(|holder| holders.contains(holder))
        })
    };
    let no_return: BTreeSet<StepId> = (0..moves.steps.len())
        .filter(|&step| limited(step) && !is_held(step))
        .map(|step| StepId(step as u32))
        .collect();
    if no_return != plan.no_return {
        faults.push(fault("no-return", format!("{:?}, not {no_return:?}", plan.no_return)));
    }
    faults
}

/// Who is told: by any relation to one that moves, or to a group whose settings change; further on, by who requires whom.
fn told(model: &Model, plan: &Plan, moving: &BTreeSet<usize>, is_precise: bool) -> BTreeSet<usize> {
    let mut told = BTreeSet::new();
    let goal = |member: &usize| plan.goals.contains_key(&model.members[*member].id);
    let set = |group: usize| plan.settings.contains_key(&model.groups[group].name);
    let mut sources: BTreeSet<usize> =
        (0..model.members.len()).filter(|member| goal(member) || set(model.members[*member].group)).collect();
    let mut groups = moving.clone();
    let mut is_direct = true;
    loop {
        let known = (sources.clone(), groups.clone());
        for link in links(model).filter(|link| is_direct || link.kind == Kind::Requires) {
            if !link.to.iter().any(|to| known.1.contains(to)) {
                continue;
            }
            for &a in &model.groups[link.from].members {
                let counts = |b: &usize| !is_precise || known.0.contains(b);
                let is_met = |to: &usize| {
                    model.groups[*to].members.iter().any(|b| counts(b) && model.is_paired(link, a, *b))
                };
                if link.scope.is_none() || link.to.iter().any(is_met) {
                    told.insert(a);
                    if link.kind == Kind::Requires {
                        sources.insert(a);
                    }
                }
            }
            if link.kind == Kind::Requires {
                groups.insert(link.from);
            }
        }
        is_direct = false;
        if (&sources, &groups) == (&known.0, &known.1) {
            return told;
        }
    }
}

/// Which groups nobody else may touch, and which nobody else may move.
fn footprint(model: &Model, plan: &Plan) -> Vec<Fault> {
    let mut faults = Vec::new();
    let groups = |role: Role| plan.with_role(role).map(|id| id.group.clone());
    let mut exclusive: BTreeSet<GroupName> = groups(Role::Actor).chain(groups(Role::Holder)).collect();
    exclusive.extend(plan.settings.keys().cloned());
    exclusive.extend(plan.goals.keys().map(|id| id.group.clone()));
    let missing: Vec<_> = exclusive.difference(&plan.exclusive).collect();
    if !missing.is_empty() {
        faults.push(fault("exclusive", format!("without {missing:?}")));
    }
    let extra: BTreeSet<GroupName> = plan.exclusive.difference(&exclusive).cloned().collect();
    if !extra.is_empty() {
        faults.push(fault("exclusive", format!("with {extra:?}")));
    }
    let mut shared: BTreeSet<GroupName> = groups(Role::Voter).collect();
    let moving: BTreeSet<usize> = plan.moving().into_iter().filter_map(|group| model.group(group)).collect();
    let binds = |link: &&Link| link.kind != Kind::Watches;
    let is_switched = |link: &Link| {
        model.links.iter().any(|side| !side.iter().any(|other| other.relation == link.relation))
    };
    let rests = |link: &&Link| is_switched(link) || link.ends().any(|end| moving.contains(&end));
    for link in links(model).filter(binds).filter(rests) {
        shared.extend(link.ends().map(|end| model.groups[end].name.clone()));
    }
    let missing: Vec<_> = shared.iter().filter(|group| !plan.exclusive.contains(*group)).collect();
    let missing: Vec<_> = missing.into_iter().filter(|group| !plan.shared.contains(*group)).collect();
    if !missing.is_empty() {
        faults.push(fault("shared", format!("without {missing:?}")));
    }
    if plan.shared.intersection(&plan.exclusive).count() > 0 {
        faults.push(fault("shared", "some are exclusive too"));
    }
    faults
}
