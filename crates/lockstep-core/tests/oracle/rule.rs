//! The rules that an order of steps has to keep, each on its own: of every point on the way, of two steps, of the end.

use crate::model::{AFTER, BEFORE, Link, Model, States};
use lockstep_core::id::{GroupName, SettingId};
use lockstep_core::request::Code;
use lockstep_core::spec::{Kind, Settings};
use std::collections::{BTreeMap, BTreeSet};

/// A set of steps, one bit each.
pub(crate) type Steps = u64;

#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Move {
    pub(crate) member: usize,
    pub(crate) from: usize,
    pub(crate) to: usize,
}

impl Move {
    pub(crate) fn moves(&self) -> bool {
        self.from != self.to
    }
}

/// What is to be done, without an order.
pub(crate) struct Moves<'a> {
    pub(crate) model: &'a Model,
    pub(crate) steps: Vec<Move>,
    /// Each member's steps, in path order.
    pub(crate) of: Vec<Vec<usize>>,
    /// The settings that change.
    pub(crate) set: BTreeMap<GroupName, Settings>,
}

/// Why two steps have an order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Why {
    Path,
    Requires,
    After,
    /// Settings that bring or end a relation.
    Switch,
    /// Entering a serving state precedes leaving it.
    MakeBeforeBreak,
    /// The highest state is entered first.
    HighestFirst,
}

impl<'a> Moves<'a> {
    pub(crate) fn new(model: &'a Model, steps: Vec<Move>, set: BTreeMap<GroupName, Settings>) -> Self {
        let mut of = vec![Vec::new(); model.members.len()];
        for (number, step) in steps.iter().enumerate() {
            of[step.member].push(number);
        }
        Self { model, steps, of, set }
    }

    /// The steps that lead every member to its goal, along the fewest edges; and those that take settings.
    pub(crate) fn towards(
        model: &'a Model,
        goals: &BTreeMap<usize, usize>,
        set: &BTreeMap<GroupName, Settings>,
        sets: &BTreeSet<usize>,
    ) -> Option<Self> {
        let mut steps = Vec::new();
        for (member, known) in model.members.iter().enumerate() {
            let goal = goals.get(&member).filter(|goal| known.surely != Some(**goal));
            if let Some(&goal) = goal {
                let mut from = known.surely?;
                for to in model.path(known.group, from, goal)? {
                    steps.push(Move { member, from, to });
                    from = to;
                }
            } else if sets.contains(&known.group)
                && !model.missing(member).is_empty()
                && let Some(at) = known.surely.filter(|&at| model.serves_in(member, at))
            {
                steps.push(Move { member, from: at, to: at });
            }
        }
        Some(Self::new(model, steps, set.clone()))
    }

    pub(crate) fn group(&self, step: usize) -> usize {
        self.model.members[self.steps[step].member].group
    }

    pub(crate) fn goal(&self, member: usize) -> Option<usize> {
        self.of[member].last().map(|&step| self.steps[step].to)
    }

    pub(crate) fn start(&self, member: usize) -> Option<usize> {
        self.of[member].first().map(|&step| self.steps[step].from)
    }

    fn finished(&self, member: usize, done: Steps) -> usize {
        self.of[member].iter().filter(|&&step| done & (1 << step) != 0).count()
    }

    /// Where a member may be when `done` have ended and `flight` are under way; and of these, where a step of this plan
    /// has brought it.
    fn may_be(&self, member: usize, done: Steps, flight: Steps) -> (States, States) {
        let steps = &self.of[member];
        let Some(start) = self.start(member) else { return (self.model.members[member].places, 0) };
        let count = self.finished(member, done);
        let mut places: States = 1 << if count == 0 { start } else { self.steps[steps[count - 1]].to };
        let mut entered = if count == 0 { 0 } else { places };
        if let Some(&next) = steps.get(count)
            && flight & (1 << next) != 0
        {
            places |= 1 << self.steps[next].to;
            entered |= 1 << self.steps[next].to;
        }
        if steps.iter().all(|&step| !self.steps[step].moves()) {
            entered = 0;
        }
        (places, entered)
    }

    /// Where a member surely is.
    pub(crate) fn surely(&self, member: usize, done: Steps, flight: Steps) -> Option<usize> {
        let steps = &self.of[member];
        let Some(start) = self.start(member) else { return self.model.members[member].surely };
        let count = self.finished(member, done);
        match steps.get(count) {
            Some(&next) if flight & (1 << next) != 0 && self.steps[next].moves() => None,
            Some(_) | None if count == 0 => Some(start),
            Some(_) | None => Some(self.steps[steps[count - 1]].to),
        }
    }

    /// Between its first step begun and its last step ended.
    fn is_on_its_way(&self, member: usize, done: Steps, flight: Steps) -> bool {
        let steps = &self.of[member];
        let begun = steps.iter().any(|&step| (done | flight) & (1 << step) != 0);
        begun && self.finished(member, done) < steps.len()
    }

    /// Whether a group, or its part, is in transition: from when the first begins until the last has ended.
    fn group_moves(&self, members: &[usize], done: Steps, flight: Steps) -> bool {
        let all: Steps = members.iter().flat_map(|&member| &self.of[member]).map(|&step| 1 << step).sum();
        (done | flight) & all != 0 && all & !done != 0
    }

    /// What is wrong at a point.
    pub(crate) fn wrong_at(&self, done: Steps, flight: Steps) -> Option<(&'static str, String)> {
        let model = self.model;
        let states: Vec<(States, States)> =
            (0..model.members.len()).map(|member| self.may_be(member, done, flight)).collect();
        let on_its_way: Vec<bool> =
            (0..model.members.len()).map(|member| self.is_on_its_way(member, done, flight)).collect();
        let named = |member: usize| &model.members[member].id;
        for group in &model.groups {
            for (state, max) in group.max.iter().enumerate() {
                let Some(max) = max else { continue };
                let here =
                    group.members.iter().filter(|&&member| states[member].0 & (1 << state) != 0).count();
                let entered = group.members.iter().any(|&member| states[member].1 & (1 << state) != 0);
                if here > *max && entered {
                    let problem =
                        format!("{here} of {} may be {}, at most {max}", group.name, group.states[state]);
                    return Some(("max", problem));
                }
            }
            let moving = group.members.iter().filter(|&&member| on_its_way[member]).count();
            if moving > group.parallel {
                return Some(("parallel", format!("{moving} of {} are on their way", group.name)));
            }
        }
        // One that ends with the settings is kept until all have taken them.
        for link in model.links.iter().flatten().filter(|link| link.kind == Kind::Excludes && link.moving) {
            for (&to, part) in
                link.to.iter().flat_map(|to| model.parts(link).into_iter().map(move |part| (to, part)))
            {
                let moves = |group: usize| self.group_moves(&model.members_in(group, &part), done, flight);
                if moves(link.from) && moves(to) {
                    let problem =
                        format!("{} and {} are in transition together", link.relation.from, link.relation.to);
                    return Some(("moving", problem));
                }
            }
        }
        for link in model.links[AFTER].iter().filter(|link| link.kind == Kind::Excludes) {
            for &to in &link.to {
                for &a in &model.groups[link.from].members {
                    for &b in &model.groups[to].members {
                        if !model.is_paired(link, a, b) {
                            continue;
                        }
                        if link.moving {
                            continue;
                        }
                        let serve = |member: usize| {
                            let serving = model.groups[model.members[member].group].serving;
                            (states[member].0 & serving != 0, states[member].1 & serving != 0)
                        };
                        let ((a_may, a_entered), (b_may, b_entered)) = (serve(a), serve(b));
                        if a_may && b_may && (self.starts(a, a_entered) || self.starts(b, b_entered)) {
                            return Some((
                                "excludes",
                                format!("{} and {} may serve together", named(a), named(b)),
                            ));
                        }
                    }
                }
            }
        }
        None
    }

    /// Whether a member that has entered a serving state began to serve by it.
    fn starts(&self, member: usize, has_entered: bool) -> bool {
        has_entered
            && self.of[member].iter().any(|&step| {
                let step = &self.steps[step];
                !self.model.serves_in(member, step.from) && self.model.serves_in(member, step.to)
            })
    }

    /// Why `first` has to come before `second`, if it has to.
    pub(crate) fn hard(&self, first: usize, second: usize) -> Option<Why> {
        let (a, b) = (self.steps[first], self.steps[second]);
        let model = self.model;
        if a.member == b.member {
            let place = |step: usize| self.of[a.member].iter().position(|&known| known == step);
            return (place(first) < place(second)).then_some(Why::Path);
        }
        let group = |step: Move| model.members[step.member].group;
        let kind = |link: &Link| if link.kind == Kind::Requires { Why::Requires } else { Why::After };
        let is_paired = |link: &Link| link.orders() && model.is_paired(link, a.member, b.member);
        // Up: what is required first, by what is required at the end. Down: who requires first, by what was.
        let up = model.links[AFTER].iter().filter(|_| a.to > a.from && b.to > b.from);
        let up = up.filter(|link| link.from == group(b) && link.to.contains(&group(a)));
        let down = model.links[BEFORE].iter().filter(|_| a.to < a.from && b.to < b.from);
        let down = down.filter(|link| link.from == group(a) && link.to.contains(&group(b)));
        if let Some(link) = up.chain(down).find(|link| is_paired(link)) {
            return Some(kind(link));
        }
        self.is_switched(a, b).then_some(Why::Switch)
    }

    /// Whoever takes a setting that brings a relation waits until it is kept: what is required has come up, one of
    /// those that exclude each other has left. Where the setting ends a relation, it is kept until all have taken it.
    fn is_switched(&self, first: Move, second: Move) -> bool {
        let model = self.model;
        let known =
            |side: usize, link: &Link| model.links[side].iter().any(|other| other.relation == link.relation);
        let come = model.links[AFTER].iter().filter(|link| !known(BEFORE, link)).map(|link| (link, true));
        let gone = model.links[BEFORE].iter().filter(|link| !known(AFTER, link)).map(|link| (link, false));
        let group = |step: Move| model.members[step.member].group;
        come.chain(gone).any(|(link, comes)| {
            let (switch, other) = if comes { (second, first) } else { (first, second) };
            let of = &model.groups[group(switch)].name;
            let takes = |id: &SettingId| {
                id.group == *of && self.set.get(of).is_some_and(|set| set.contains_key(&id.key))
            };
            let begins =
                !model.serves_in(other.member, other.from) && model.serves_in(other.member, other.to);
            let ceases =
                model.serves_in(other.member, other.from) && !model.serves_in(other.member, other.to);
            let is_meant = match link.kind {
                Kind::Requires | Kind::After => {
                    link.to.contains(&group(other))
                        && if comes { other.to > other.from } else { other.to < other.from }
                }
                Kind::Excludes if !link.moving => {
                    link.ends().any(|end| end == group(other)) && if comes { ceases } else { begins }
                }
                Kind::Excludes | Kind::Watches => false,
            };
            // A label pairs members of both ends. Somebody else's setting concerns them all.
            let is_there = link.scope.is_none()
                || model.parts(link).iter().any(|part| {
                    let here = |member: usize| model.members_in(group(other), part).contains(&member);
                    here(other.member)
                });
            is_meant && is_there && !switch.moves() && link.relation.when.keys().any(takes)
        })
    }

    /// Why `first` should rather come before `second`, within their group.
    pub(crate) fn soft(&self, first: usize, second: usize) -> Option<Why> {
        let (a, b) = (self.steps[first], self.steps[second]);
        if a.member == b.member || self.group(first) != self.group(second) || !a.moves() || !b.moves() {
            return None;
        }
        if a.to == b.from && self.model.serves_in(a.member, a.to) {
            return Some(Why::MakeBeforeBreak);
        }
        let is_last = self.goal(a.member) == Some(a.to);
        let climbs = |step: Move| step.to > step.from;
        if is_last && self.goal(b.member) == Some(b.to) && climbs(a) && climbs(b) && a.to > b.to {
            return Some(Why::HighestFirst);
        }
        None
    }

    /// Whether the steps have an order, one at a time, that keeps all hard rules; and all that `also` says.
    pub(crate) fn has_order(
        &self,
        is_soft: bool,
        also: &dyn Fn(&Self, Steps, Steps) -> bool,
    ) -> Option<bool> {
        let count = self.steps.len();
        assert!(count <= 64);
        let all: Steps = if count == 64 { !0 } else { (1 << count) - 1 };
        let mut first: Vec<Steps> = vec![0; count];
        for (second, first) in first.iter_mut().enumerate() {
            for one in 0..count {
                if self.hard(one, second).is_some() || (is_soft && self.soft(one, second).is_some()) {
                    *first |= 1 << one;
                }
            }
        }
        let mut seen: BTreeSet<Steps> = BTreeSet::new();
        let mut open = vec![0];
        while let Some(done) = open.pop() {
            if done == all {
                return Some(true);
            }
            if !seen.insert(done) {
                continue;
            }
            if seen.len() > 20_000 {
                return None;
            }
            for (step, needs) in first.iter().enumerate() {
                let flight = 1 << step;
                let is_next = done & flight == 0 && needs & !done == 0;
                if is_next && self.wrong_at(done, flight).is_none() && also(self, done, flight) {
                    open.push(done | flight);
                }
            }
        }
        Some(false)
    }
}

/// What is wrong at the end, by these goals, each with the codes that fit. `is_strict` takes "A serves" for any member
/// of A that serves.
pub(crate) fn wrong_at_end(
    model: &Model,
    goals: &BTreeMap<usize, usize>,
    whole: &BTreeSet<usize>,
    is_strict: bool,
) -> Vec<(Vec<Code>, String)> {
    let mut wrong = Vec::new();
    let start = |member: usize| model.members[member].surely;
    let end = |member: usize| goals.get(&member).copied().or(model.members[member].surely);
    let may = |member: usize| -> States {
        goals.get(&member).map_or(model.members[member].places, |&goal| 1 << goal)
    };
    for (number, group) in model.groups.iter().enumerate() {
        for state in 0..group.states.len() {
            if let Some(max) = group.max[state] {
                let here = group.members.iter().filter(|&&member| may(member) & (1 << state) != 0).count();
                let enters = group
                    .members
                    .iter()
                    .any(|member| goals.get(member) == Some(&state) && start(*member) != Some(state));
                if here > max && enters {
                    let unsure = group
                        .members
                        .iter()
                        .filter(|&&member| !goals.contains_key(&member) && may(member) & (1 << state) != 0);
                    let mut codes = vec![Code::LimitBroken];
                    codes.extend(unsure.flat_map(|&member| model.members[member].unsure()));
                    wrong.push((
                        codes,
                        format!("{here} of {} in {}, at most {max}", group.name, group.states[state]),
                    ));
                }
            }
            if let Some(min) = group.min[state].filter(|_| !whole.contains(&number)) {
                let count = |at: &dyn Fn(usize) -> Option<usize>| {
                    group.members.iter().filter(|&&member| at(member) == Some(state)).count()
                };
                if count(&start) >= min && count(&end) < min {
                    wrong.push((
                        vec![Code::LimitBroken],
                        format!(
                            "{} of {} in {}, at least {min}",
                            count(&end),
                            group.name,
                            group.states[state]
                        ),
                    ));
                }
            }
        }
    }
    let is_known = |link: &Link| model.links[BEFORE].iter().any(|other| other.relation == link.relation);
    for link in &model.links[AFTER] {
        match link.kind {
            Kind::Excludes if !link.moving => {
                let pairs = link.to.iter().flat_map(|&to| {
                    let others = &model.groups[to].members;
                    model.groups[link.from].members.iter().flat_map(|&a| others.iter().map(move |&b| (a, b)))
                });
                for (a, b) in pairs.filter(|&(a, b)| model.is_paired(link, a, b)) {
                    let serves =
                        |member: usize| may(member) & model.groups[model.members[member].group].serving != 0;
                    let starts = |member: usize| {
                        goals.get(&member).is_some_and(|&goal| model.serves_in(member, goal))
                            && !start(member).is_some_and(|at| model.serves_in(member, at))
                    };
                    if serves(a) && serves(b) && (starts(a) || starts(b) || !is_known(link)) {
                        let message = format!("{} and {} serve", model.members[a].id, model.members[b].id);
                        let in_the_way = [a, b].into_iter().filter(|member| !goals.contains_key(member));
                        let mut codes = vec![Code::Excluded];
                        codes.extend(in_the_way.flat_map(|member| model.members[member].unsure()));
                        wrong.push((codes, message));
                    }
                }
            }
            Kind::Requires => {
                for part in model.parts(link) {
                    let was_broken = is_known(link) && model.is_broken(link, &part, &start, is_strict);
                    if model.is_broken(link, &part, &end, is_strict) && (!was_broken || is_strict) {
                        let message =
                            format!("{} without enough of {} {part:?}", link.relation.from, link.relation.to);
                        wrong.push((vec![Code::WouldBreakRequires, Code::RequirementDown], message));
                    }
                }
            }
            Kind::Excludes | Kind::After | Kind::Watches => {}
        }
    }
    wrong
}
