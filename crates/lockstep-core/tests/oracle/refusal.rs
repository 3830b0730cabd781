//! Whether a rejection is justified: what stands in the way by itself, and, where there is a choice, whether any choice
//! could have been made.

use crate::judge::{Fault, asked, leaves};
use crate::model::{AFTER, Model, has_cycle};
use crate::rule::{Moves, wrong_at_end};
use lockstep_core::cluster::Cluster;
use lockstep_core::id::GroupName;
use lockstep_core::request::{Code, Rejection, Request, Target};
use lockstep_core::spec::{Kind, Settings};
use std::collections::{BTreeMap, BTreeSet};

/// The settings that a request changes, and whether it asks for two values of one.
pub(crate) fn changes(cluster: &Cluster, request: &Request) -> (BTreeMap<GroupName, Settings>, bool) {
    let mut changes: BTreeMap<GroupName, Settings> = BTreeMap::new();
    let mut wanted: BTreeMap<_, BTreeSet<_>> = BTreeMap::new();
    for target in &request.targets {
        let Target::Setting(name, key, text) = target else { continue };
        let groups: Vec<GroupName> = match cluster.spec.composites.get(name) {
            Some(leaves) => leaves.iter().cloned().collect(),
            None => vec![name.clone()],
        };
        for group in groups {
            let known = cluster.settings.get(&group).and_then(|settings| settings.get(key)).cloned();
            let Some(known) = known else { continue };
            let Ok(value) = known.parse_alike(text) else { continue };
            wanted.entry((group.clone(), key.clone())).or_default().insert(value.clone());
            if known != value {
                changes.entry(group).or_default().insert(key.clone(), value);
            }
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

const CHOICES_MAX: usize = 3_000;

fn facts(model: &Model, cluster: &Cluster, request: &Request) -> Facts {
    let asked = asked(model, request);
    let mut in_the_way = Vec::new();
    if asked.is_torn || changes(cluster, request).1 {
        in_the_way.push((vec![Code::LimitBroken], "asked for two things at once".to_owned()));
    }
    let mut forced = BTreeMap::new();
    let mut free: Vec<(usize, Vec<usize>)> = Vec::new();
    let touched: BTreeSet<usize> = asked.named.keys().map(|&member| model.members[member].group).collect();
    for (&member, wanted) in &asked.named {
        let known = &model.members[member];
        let states = 0..model.groups[known.group].states.len();
        let is_there = wanted.is_some() && known.actual == *wanted && !known.is_in_doubt;
        if is_there {
            continue;
        }
        if known.is_in_doubt {
            in_the_way.push((vec![Code::MemberInDoubt], format!("{} is in doubt", known.id)));
        }
        if !known.is_reachable && !request.exclude_lost {
            in_the_way.push((vec![Code::HostLost], format!("{} is lost", known.id)));
        }
        if known.actual.is_none() {
            in_the_way.push((vec![Code::ActualUnknown], format!("{} is not known", known.id)));
        }
        let Some(at) = known.surely else { continue };
        match wanted {
            Some(wanted) if known.is_leaving && *wanted != 0 => {
                // It is on its way out: whether that stands in the way is the planner's to say.
                in_the_way.push((vec![Code::UnknownMember, Code::NoCandidate], format!("{} leaves", known.id)));
                free.push((member, vec![at, *wanted, 0]));
            }
            Some(wanted) => drop(forced.insert(member, *wanted)),
            None => free.push((member, states.collect())),
        }
    }
    // Who has to make room, to be taken down or to take a role over may have to move as well.
    let cascades = |group: usize| {
        model.links.iter().flatten().any(|link| link.cascade && link.ends().any(|end| end == group))
    };
    for (group, known) in model.groups.iter().enumerate() {
        let others = known.members.iter().filter(|member| !asked.named.contains_key(member));
        for &member in others {
            let Some(at) = model.members[member].surely else { continue };
            let mut states = vec![at];
            if touched.contains(&group) {
                states.extend((0..known.states.len()).filter(|&state| state != at));
            } else if cascades(group) && at != 0 {
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

/// Whether a choice is one that the request allows: nobody moves for nothing, up fills from the highest.
fn is_allowed(model: &Model, request: &Request, choice: &BTreeMap<usize, usize>) -> bool {
    let asked = asked(model, request);
    for target in &request.targets {
        let Target::Up(name) = target else { continue };
        for group in leaves(model, name) {
            let known = &model.groups[group];
            let end = |member: usize| choice.get(&member).copied().or(model.members[member].surely);
            let can = |member: &&usize| {
                let known = &model.members[**member];
                known.surely.is_some() && !known.is_leaving && !known.is_drained
                    && asked.named.get(*member) == Some(&None)
            };
            let mut left = known.members.iter().filter(can).count();
            for state in (0..known.states.len()).rev() {
                let others = known.members.iter().filter(|member| !can(member));
                let taken = others
                    .filter(|&&member| match choice.get(&member) {
                        Some(&goal) => goal == state,
                        None => model.members[member].places & (1 << state) != 0,
                    })
                    .count();
                let here = known.members.iter().filter(can).filter(|&&member| end(member) == Some(state)).count();
                let room = known.max[state].map_or(left, |max| max.saturating_sub(taken)).min(left);
                if here != room {
                    return false;
                }
                left -= here;
            }
        }
    }
    let whole = &asked.whole;
    let is_wrong = |goals: &BTreeMap<usize, usize>| !wrong_at_end(model, goals, whole, true).is_empty();
    choice.keys().filter(|member| !asked.named.contains_key(member)).all(|member| {
        let mut without = choice.clone();
        without.remove(member);
        is_wrong(&without) || asked.has_drain
    })
}

/// What is wrong with a rejection.
pub(crate) fn refusal(model: &Model, cluster: &Cluster, request: &Request, rejection: &Rejection) -> Option<Fault> {
    let fault = |rule: &'static str, text: String| Some(Fault { rule, text: format!("{}: {text}", rejection.code) });
    let spec = &cluster.spec;
    let knows = |name: &GroupName| spec.groups.contains_key(name) || spec.composites.contains_key(name);
    let any = |wrong: &dyn Fn(&Target) -> bool| request.targets.iter().any(wrong);
    let is_so = match rejection.code {
        Code::UnknownGroup => any(&|target| target.group().is_some_and(|name| !knows(name))),
        Code::UnknownHost => any(&|target| match target {
            Target::Member(id, _) => !cluster.hosts.contains_key(&id.host),
            Target::Drain(host) => !cluster.hosts.contains_key(host),
            _ => false,
        }),
        Code::UnknownMember => any(&|target| match target {
            Target::Member(id, _) => {
                !cluster.members.contains_key(id) || cluster.members[id].leaving
            }
            _ => false,
        }),
        Code::UnknownState => any(&|target| {
            let has = |group: usize, state| model.groups[group].states.contains(state);
            match target {
                Target::Group(name, state) => leaves(model, name).iter().any(|&group| !has(group, state)),
                Target::Member(id, state) => model.group(&id.group).is_none_or(|group| !has(group, state)),
                _ => false,
            }
        }),
        Code::UnknownSetting => any(&|target| match target {
            Target::Setting(name, key, text) => {
                let known = |group: usize| {
                    let settings = cluster.settings.get(&model.groups[group].name);
                    settings.and_then(|settings| settings.get(key))
                };
                leaves(model, name)
                    .iter()
                    .any(|&group| known(group).is_none_or(|known| known.parse_alike(text).is_err()))
            }
            _ => false,
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
        | Code::StoreUnavailable => false,
    };
    if is_so { None } else { fault("code", rejection.message.clone()) }
}

fn refused(model: &Model, cluster: &Cluster, request: &Request, rejection: &Rejection) -> Option<Fault> {
    let fault = |rule: &'static str, text: String| Some(Fault { rule, text: format!("{}: {text}", rejection.code) });
    let asked = asked(model, request);
    let facts = facts(model, cluster, request);
    if facts.in_the_way.iter().any(|(codes, _)| codes.contains(&rejection.code)) {
        return None;
    }
    let mut fits: BTreeSet<Code> = facts.in_the_way.iter().flat_map(|(codes, _)| codes).copied().collect();
    let set = changes(cluster, request).0;
    let has_cascade = model.links.iter().flatten().any(|link| link.cascade && link.kind != Kind::Watches);
    let mut whole = asked.whole.clone();
    if has_cascade {
        whole.extend(0..model.groups.len());
    }
    let mut is_feasible = None;
    for choice in facts.choices.iter().filter(|choice| is_allowed(model, request, choice)) {
        let wrong = wrong_at_end(model, choice, &whole, true);
        if !wrong.is_empty() {
            fits.extend(wrong.into_iter().flat_map(|(codes, _)| codes));
            continue;
        }
        let Some(moves) = Moves::towards(model, choice, &set) else { continue };
        match moves.has_order(false, &|_, _, _| true, &[]) {
            Some(true) => is_feasible = is_feasible.or(Some(choice.clone())),
            Some(false) => drop(fits.insert(Code::LimitBroken)),
            None => return None,
        }
    }
    // With a choice, nobody may be left to choose: they are lost, in doubt or not known.
    let unsure: Vec<Code> = model
        .members
        .iter()
        .filter(|member| member.surely.is_none())
        .flat_map(|member| {
            let mut codes = Vec::new();
            codes.extend(member.is_in_doubt.then_some(Code::MemberInDoubt));
            codes.extend((!member.is_reachable).then_some(Code::HostLost));
            codes.extend(member.actual.is_none().then_some(Code::ActualUnknown));
            codes
        })
        .collect();
    let has_choice = facts.choices.len() > 1;
    if has_choice {
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
    if !fits.contains(&rejection.code) && !facts.is_cut_short {
        return fault("code", format!("{} Fitting: {fits:?}", rejection.message));
    }
    None
}
