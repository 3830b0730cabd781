//! Whether a rejection is justified: what stands in the way by itself, and, where there is a choice, whether any choice
//! could have been made.

use crate::judge::{Asked, Fault, asked, leaves};
use crate::model::{AFTER, Link, Member, Model, has_cycle};
use crate::rule::{Move, Moves, wrong_at_end};
use lockstep_core::cluster::Cluster;
use lockstep_core::id::GroupName;
use lockstep_core::request::{Code, Rejection, Request, Target};
use lockstep_core::spec::{Kind, Settings};
use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};

/// The settings that a request changes, and whether it asks for two values of one.
pub(crate) fn changes(cluster: &Cluster, request: &Request) -> (BTreeMap<GroupName, Settings>, bool) {
    let mut changes: BTreeMap<GroupName, Settings> = BTreeMap::new();
    let mut wanted: BTreeMap<_, BTreeSet<_>> = BTreeMap::new();
    for target in &request.targets {
        let Target::Setting(name, key, text) = target else { continue };
        let group = name.clone();
        let known = cluster.settings.get(&group).and_then(|settings| settings.get(key)).cloned();
        let Some(known) = known else { continue };
        let Ok(value) = known.parse_alike(text) else { continue };
        wanted.entry((group.clone(), key.clone())).or_default().insert(value.clone());
        if known != value {
            changes.entry(group).or_default().insert(key.clone(), value);
        }
    }
    (changes, wanted.values().any(|values| values.len() > 1))
}

/// What stands in the way whatever is chosen, each with the codes that fit.
struct Facts {
    in_the_way: Vec<(Vec<Code>, String)>,
    /// Each way to choose: where members that move are to end.
    choices: Vec<BTreeMap<usize, usize>>,
    /// There are more than are looked at.
    is_cut_short: bool,
}

/// Why a member cannot be ordered to move.
fn unsure(known: &Member, request: &Request) -> Vec<(Vec<Code>, String)> {
    // Whoever is named one by one is not left out.
    let is_named = request.targets.iter().any(|target| match target {
        Target::Member(id, _) => *id == known.id,
        Target::Drain(host) => *host == known.id.host,
        Target::Group(..) | Target::Up(_) | Target::Down(_) | Target::Setting(..) | Target::Repair(_) => {
            false
        }
    });
    let is_left_out = request.exclude_lost && !is_named;
    let codes = known.unsure().into_iter().filter(|code| *code != Code::HostLost || !is_left_out);
    codes.map(|code| (vec![code], known.id.to_string())).collect()
}

const CHOICES_MAX: usize = 3_000;

fn facts(model: &Model, cluster: &Cluster, request: &Request) -> Facts {
    let asked = asked(model, request);
    let mut in_the_way = Vec::new();
    if asked.is_torn || changes(cluster, request).1 {
        in_the_way.push((vec![Code::LimitBroken], "asked for two things at once".to_owned()));
    }
    if asked.is_named_twice {
        in_the_way.push((vec![Code::LimitBroken], "a member is named beside its group's up".to_owned()));
    }
    // Nobody forgets a member that may serve when settings change.
    for group in request
        .targets
        .iter()
        .filter_map(|target| if let Target::Setting(name, _, _) = target { model.group(name) } else { None })
    {
        let serving = model.groups[group].serving;
        let members = model.groups[group].members.iter().map(|&member| &model.members[member]);
        for known in members.filter(|known| known.surely.is_none() && known.places & serving != 0) {
            in_the_way.extend(unsure(known, request));
        }
    }
    let mut forced = BTreeMap::new();
    let mut free: Vec<(usize, Vec<usize>)> = Vec::new();
    let touched: BTreeSet<usize> = asked.named.keys().map(|&member| model.members[member].group).collect();
    for (&member, wanted) in &asked.named {
        let known = &model.members[member];
        let states = 0..model.groups[known.group].states.len();
        let takes = sets(model, request).contains(&known.group)
            && known.actual.is_some_and(|at| model.serves_in(member, at));
        let is_there = wanted.is_some() && known.actual == *wanted && !known.is_in_doubt && !takes;
        if is_there {
            continue;
        }
        // Of those that `up` would fill, who cannot move is passed over, unless there is nobody else.
        let others = &model.groups[known.group].members;
        let can = |member: &usize| {
            let other = &model.members[*member];
            !asked.drained.contains(member)
                && other.surely.is_some()
                && !other.is_leaving
                && !other.is_drained
        };
        if wanted.is_some() {
            in_the_way.extend(unsure(known, request));
        } else if !others.iter().any(can) {
            // Even if the lost are left out: there would be nothing to do, which is not what was meant.
            in_the_way.extend(known.unsure().into_iter().map(|code| (vec![code], known.id.to_string())));
        }
        if known.surely.is_none() {
            continue;
        }
        match wanted {
            Some(wanted) => _ = forced.insert(member, *wanted),
            None => free.push((member, states.collect())),
        }
    }
    // Who has to make room, to be taken down or to take a role over may have to move as well.
    for (group, known) in model.groups.iter().enumerate() {
        let others = known.members.iter().filter(|member| !asked.named.contains_key(member));
        for &member in others {
            let Some(at) = model.members[member].surely else { continue };
            let mut states = vec![at];
            let makes_room = known.max[at].is_some()
                && known.members.iter().any(|member| match asked.named.get(member) {
                    Some(Some(wanted)) => *wanted == at && model.members[*member].surely != Some(at),
                    Some(None) | None => false,
                });
            let is_drained = known.members.iter().any(|member| asked.drained.contains(member));
            if touched.contains(&group) && (makes_room || is_drained) {
                states.extend((0..known.states.len()).filter(|&state| state != at));
            } else if cascades(model, group) && at != 0 {
                states.push(0);
            }
            if states.len() > 1 {
                free.push((member, states));
            }
        }
    }
    let mut choices = vec![forced];
    let mut is_cut_short = false;
    for (member, states) in free {
        let one = |state: usize| {
            choices.iter().cloned().map(move |mut choice| {
                if model.members[member].surely != Some(state) {
                    choice.insert(member, state);
                }
                choice
            })
        };
        let next: Vec<_> = states.into_iter().flat_map(one).collect();
        if next.len() > CHOICES_MAX {
            is_cut_short = true;
            break;
        }
        choices = next;
    }
    Facts { in_the_way, choices, is_cut_short }
}

/// Whether somebody of this group may be taken down because of another group.
pub(crate) fn cascades(model: &Model, group: usize) -> bool {
    let gives_way = |link: &Link| match link.kind {
        Kind::Requires => link.from == group,
        Kind::Excludes => link.ends().any(|end| end == group),
        Kind::After | Kind::Watches => false,
    };
    model.links.iter().flatten().any(|link| link.cascade && gives_way(link))
}

/// The groups whose settings a request names.
pub(crate) fn sets(model: &Model, request: &Request) -> BTreeSet<usize> {
    let named = request
        .targets
        .iter()
        .filter_map(|target| if let Target::Setting(name, _, _) = target { model.group(name) } else { None });
    named.collect()
}

/// Whether a group stops serving because a host of its is drained, though it was not named.
pub(crate) fn deserted(model: &Model, asked: &Asked, goals: &BTreeMap<usize, usize>) -> bool {
    let start = |member: usize| model.members[member].surely;
    let end = |member: usize| goals.get(&member).copied().or(model.members[member].surely);
    let drained = asked.drained.iter().map(|&member| model.members[member].group);
    let mut left = drained.filter(|group| !asked.whole.contains(group));
    left.any(|group| model.serves(group, &None, &start) && !model.serves(group, &None, &end))
}

/// The groups named whole, and those of whom a cascade takes members down, which may go below its limits.
pub(crate) fn pulled(model: &Model, asked: &Asked, goals: &BTreeMap<usize, usize>) -> BTreeSet<usize> {
    let unnamed = goals.iter().filter(|&(member, &goal)| goal == 0 && !asked.named.contains_key(member));
    let groups = unnamed.map(|(&member, _)| model.members[member].group);
    asked.whole.iter().copied().chain(groups.filter(|&group| cascades(model, group))).collect()
}

/// Whether `up` has filled states from the highest: with those that are there or nearest, then the best score, then the
/// name.
pub(crate) fn is_filled(
    model: &Model,
    asked: &Asked,
    request: &Request,
    goals: &BTreeMap<usize, usize>,
) -> bool {
    let named = request
        .targets
        .iter()
        .filter_map(|target| if let Target::Up(name) = target { Some(leaves(model, name)) } else { None });
    named.flatten().all(|group| {
        let known = &model.groups[group];
        let end = |member: usize| goals.get(&member).copied().or(model.members[member].surely);
        let can = |number: &usize| {
            let member = &model.members[*number];
            let stays = asked.drained.contains(number) || member.is_leaving || member.is_drained;
            member.surely.is_some() && !stays
        };
        let mut rising: Vec<usize> = known.members.iter().copied().filter(|member| can(member)).collect();
        rising.sort_by_key(|&number| {
            let member = &model.members[number];
            (Reverse(member.surely), Reverse(member.score), number)
        });
        let mut rising = rising.into_iter();
        (0..known.states.len()).rev().all(|state| {
            let others = known.members.iter().filter(|member| !can(member));
            let taken = others
                .filter(|&&member| match goals.get(&member) {
                    Some(&goal) => goal == state,
                    None => model.members[member].places & (1 << state) != 0,
                })
                .count();
            let room = known.max[state].map_or(usize::MAX, |max| max.saturating_sub(taken));
            let mut chosen = rising.by_ref().take(room);
            chosen.all(|member| end(member) == Some(state))
        })
    })
}

/// Whether a member that had to make room, or was taken down, went to the nearest state with room, ties to the higher
/// rank; down, if it is on its way out.
pub(crate) fn is_nearest(model: &Model, goals: &BTreeMap<usize, usize>, member: usize) -> bool {
    let known = &model.members[member];
    let group = &model.groups[known.group];
    let (Some(at), goal) = (known.surely, goals[&member]) else { return false };
    if goal == 0 && (cascades(model, known.group) || known.is_leaving || known.is_drained) {
        return true;
    }
    let is_full = |state: usize| {
        let here = group.members.iter().filter(|&&other| match goals.get(&other) {
            Some(&goal) => goal == state,
            None => model.members[other].places & (1 << state) != 0,
        });
        group.max[state].is_some_and(|max| here.count() >= max)
    };
    let far = |state: usize| (state.abs_diff(at), Reverse(state));
    let nearer = (0..group.states.len()).filter(|&state| state != at && far(state) < far(goal));
    !known.is_leaving && !known.is_drained && nearer.into_iter().all(is_full)
}

/// Whether somebody comes to where a member is, and too many would be there if it stayed.
fn is_crowded(model: &Model, without: &BTreeMap<usize, usize>, member: usize) -> bool {
    let known = &model.members[member];
    let group = &model.groups[known.group];
    known.surely.is_some_and(|at| {
        let here = group.members.iter().filter(|&&other| match without.get(&other) {
            Some(&goal) => goal == at,
            None => model.members[other].places & (1 << at) != 0,
        });
        // What was adopted so may stay.
        let is_entered = group
            .members
            .iter()
            .any(|other| without.get(other) == Some(&at) && model.members[*other].surely != Some(at));
        is_entered && group.max[at].is_some_and(|max| here.count() > max)
    })
}

/// Whether a choice is one that the request allows: nobody moves for nothing, up fills from the highest.
fn is_allowed(model: &Model, request: &Request, choice: &BTreeMap<usize, usize>) -> bool {
    let asked = asked(model, request);
    if !is_filled(model, &asked, request, choice) {
        return false;
    }
    let whole = pulled(model, &asked, choice);
    let is_wrong = |goals: &BTreeMap<usize, usize>| !wrong_at_end(model, goals, &whole, true).is_empty();
    choice.keys().filter(|member| !asked.named.contains_key(member)).all(|member| {
        let mut without = choice.clone();
        without.remove(member);
        let group = model.members[*member].group;
        // A role is moved where a group would stop serving.
        let start = |member: usize| model.members[member].surely;
        let is_named = |member: &usize| asked.named.contains_key(member);
        let end = |member: usize| {
            let goal = without.get(&member).filter(|_| is_named(&member));
            goal.copied().or(model.members[member].surely)
        };
        let is_missed = model.serves(group, &None, &start) && !model.serves(group, &None, &end);
        let is_left = asked.drained.iter().any(|&other| model.members[other].group == group);
        let gives_way = choice[member] == 0 && cascades(model, group);
        let makes_room = is_wrong(&without)
            && is_nearest(model, choice, *member)
            && (gives_way || is_crowded(model, &without, *member));
        let known = &model.members[*member];
        let may_take_over = !known.is_leaving && !known.is_drained;
        makes_room || (is_left && is_missed && may_take_over)
    })
}

/// What is wrong with a rejection.
pub(crate) fn refusal(
    model: &Model,
    cluster: &Cluster,
    request: &Request,
    rejection: &Rejection,
) -> Option<Fault> {
    let fault =
        |rule: &'static str, text: String| Some(Fault { rule, text: format!("{}: {text}", rejection.code) });
    let spec = &cluster.spec;
    let knows = |name: &GroupName| spec.groups.contains_key(name) || spec.composites.contains_key(name);
    let any = |wrong: &dyn Fn(&Target) -> bool| request.targets.iter().any(wrong);
    let is_so = match rejection.code {
        Code::UnknownGroup => any(&|target| target.group().is_some_and(|name| !knows(name))),
        Code::UnknownHost => any(&|target| match target {
            Target::Member(id, _) => !cluster.hosts.contains_key(&id.host),
            Target::Drain(host) => !cluster.hosts.contains_key(host),
            Target::Group(..) | Target::Up(_) | Target::Down(_) | Target::Setting(..) | Target::Repair(_) => {
                false
            }
        }),
        Code::UnknownMember => any(&|target| {
            if let Target::Member(id, _) = target {
                !cluster.members.contains_key(id) || cluster.members[id].leaving
            } else {
                false
            }
        }),
        Code::UnknownState => any(&|target| {
            let has = |group: usize, state| model.groups[group].states.contains(state);
            match target {
                Target::Group(name, state) => leaves(model, name).iter().any(|&group| !has(group, state)),
                Target::Member(id, state) => model.group(&id.group).is_none_or(|group| !has(group, state)),
                Target::Up(_)
                | Target::Down(_)
                | Target::Setting(..)
                | Target::Drain(_)
                | Target::Repair(_) => false,
            }
        }),
        Code::UnknownSetting => any(&|target| match target {
            Target::Setting(name, key, text) => {
                // A composite has none of its own.
                let known = cluster.settings.get(name).and_then(|settings| settings.get(key));
                known.is_none_or(|known| known.parse_alike(text).is_err())
            }
            Target::Group(..)
            | Target::Member(..)
            | Target::Up(_)
            | Target::Down(_)
            | Target::Drain(_)
            | Target::Repair(_) => false,
        }),
        Code::Cycle => has_cycle(&model.links[AFTER], model.groups.len()),
        Code::LimitBroken
        | Code::WouldBreakRequires
        | Code::RequirementDown
        | Code::Excluded
        | Code::NoCandidate
        | Code::ActualUnknown
        | Code::MemberInDoubt
        | Code::HostLost => return refused(model, cluster, request, rejection),
        // The oracle's own search takes the same paths.
        Code::NoPath
        | Code::SpecInvalid
        | Code::Busy
        | Code::Frozen
        | Code::WindowClosed
        | Code::PlanChanged
        | Code::RequestConflict
        | Code::NotAllowed
        | Code::TooLarge
        | Code::NotActive
        | Code::StoreUnavailable
        | Code::ServerBehind => false,
    };
    if is_so { None } else { fault("code", rejection.message.clone()) }
}

/// How many choices are searched for an order that nothing will come of.
const SEARCHES_MAX: usize = 200;

/// Whether a choice has nobody taken down by a cascade. Whom it takes down depends on who makes room first and on what
/// other relations say of them, which is more than a rejection can be held to; plans are judged all the same.
fn pulls_nobody(model: &Model, asked: &Asked, choice: &BTreeMap<usize, usize>) -> bool {
    let mut unnamed = choice.iter().filter(|(member, _)| !asked.named.contains_key(member));
    !unnamed.any(|(&member, &goal)| goal == 0 && cascades(model, model.members[member].group))
}

/// Whether members at both ends of an `excludes` pass through a serving state on their way. The planner has one of two
/// groups leave before the other enters, and does not look for an order of groups that do both.
fn both_pass(model: &Model, moves: &Moves<'_>) -> bool {
    let passes = |group: usize| {
        model.groups[group].members.iter().any(|&member| {
            let steps = moves.of[member].iter().map(|&step| moves.steps[step]);
            let begins =
                |step: &Move| !model.serves_in(member, step.from) && model.serves_in(member, step.to);
            let ceases =
                |step: &Move| model.serves_in(member, step.from) && !model.serves_in(member, step.to);
            steps.clone().any(|step| begins(&step)) && steps.clone().any(|step| ceases(&step))
        })
    };
    let excludes = model.links[AFTER].iter().filter(|link| link.kind == Kind::Excludes && !link.moving);
    excludes.into_iter().any(|link| passes(link.from) && link.to.iter().any(|&to| passes(to)))
}

fn refused(model: &Model, cluster: &Cluster, request: &Request, rejection: &Rejection) -> Option<Fault> {
    let fault =
        |rule: &'static str, text: String| Some(Fault { rule, text: format!("{}: {text}", rejection.code) });
    let asked = asked(model, request);
    let facts = facts(model, cluster, request);
    if facts.in_the_way.iter().any(|(codes, _)| codes.contains(&rejection.code)) {
        return None;
    }
    let mut fits: BTreeSet<Code> = facts.in_the_way.iter().flat_map(|(codes, _)| codes).copied().collect();
    let set = changes(cluster, request).0;
    // Groups that may neither serve together nor one without the other: whatever is said of them fits.
    let same = |a: &Link, b: &Link| a.ends().filter(|end| b.ends().any(|other| other == *end)).count() > 1;
    let links = || model.links.iter().flatten();
    let is_torn =
        |a: &Link| a.kind == Kind::Excludes && links().any(|b| b.kind == Kind::Requires && same(a, b));
    if links().any(is_torn) {
        return None;
    }
    let start = |member: usize| model.members[member].surely;
    let is_broken =
        |link: &Link| model.parts(link).iter().any(|part| model.is_broken(link, part, &start, true));
    if model.links[AFTER].iter().any(|link| link.kind == Kind::Requires && is_broken(link)) {
        fits.extend([Code::WouldBreakRequires, Code::RequirementDown]);
    }
    let (mut is_feasible, mut searched) = (None, 0);
    for choice in facts.choices.iter().filter(|choice| is_allowed(model, request, choice)) {
        let whole = pulled(model, &asked, choice);
        let wrong = wrong_at_end(model, choice, &whole, true);
        let is_deserted = deserted(model, &asked, choice);
        let is_met = wrong.is_empty() && !is_deserted;
        fits.extend(wrong.into_iter().flat_map(|(codes, _)| codes));
        fits.extend(is_deserted.then_some(Code::NoCandidate));
        // That no order is to be found has to be seen for some that would do otherwise, not for each of thousands.
        let is_asked = rejection.code == Code::LimitBroken || rejection.code == Code::Excluded;
        if !(is_met || is_asked && searched < SEARCHES_MAX) {
            continue;
        }
        searched += 1;
        let Some(moves) = Moves::towards(model, choice, &set, &sets(model, request)) else { continue };
        if both_pass(model, &moves) {
            return None;
        }
        match moves.has_order(false, &|_, _, _| true) {
            Some(true) if is_met && pulls_nobody(model, &asked, choice) => {
                is_feasible = is_feasible.or(Some(choice.clone()))
            }
            Some(true) => {}
            Some(false) => {
                fits.insert(Code::LimitBroken);
                if model.links[AFTER].iter().any(|link| link.kind == Kind::Excludes) {
                    fits.insert(Code::Excluded);
                }
            }
            None => return None,
        }
    }
    // With a choice, nobody may be left to choose: they are lost, in doubt or not known.
    let unsure: Vec<Code> = model.members.iter().flat_map(Member::unsure).collect();
    let has_choice = facts.choices.len() > 1;
    if has_choice || (0..model.groups.len()).any(|group| cascades(model, group)) {
        fits.extend(unsure);
        if asked.has_drain {
            fits.insert(Code::NoCandidate);
        }
    }
    if facts.in_the_way.is_empty()
        && !facts.is_cut_short
        && let Some(choice) = is_feasible
    {
        let moves: Vec<String> = choice
            .iter()
            .map(|(&member, &goal)| {
                let known = &model.members[member];
                format!("{}={}", known.id, model.groups[known.group].states[goal])
            })
            .collect();
        let rule = if has_choice { "refused-a-choice" } else { "refused" };
        return fault(rule, format!("{} But {} could be", rejection.message, moves.join(" ")));
    }
    // What a cascade does may be refused in its turn, by any relation of those that it takes down.
    let of_relations = [Code::Excluded, Code::WouldBreakRequires, Code::RequirementDown];
    if (0..model.groups.len()).any(|group| cascades(model, group)) {
        fits.extend(of_relations);
    }
    if !fits.contains(&rejection.code) && !facts.is_cut_short {
        return fault("code", format!("{} Fitting: {fits:?}", rejection.message));
    }
    None
}
