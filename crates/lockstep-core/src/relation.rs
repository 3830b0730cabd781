//! Relations: directed, typed edges between groups, as a pure function of what is declared.

use crate::id::GroupName;
use crate::spec::{Ask, Group, Kind, RELATIONS_MAX, RelationFile, SpecError, list};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};

/// Which rule made a relation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Origin {
    /// The spec says so.
    Declared,
    /// `from` consumes what `to` provides.
    Capability,
}

/// A directed edge between two groups.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Relation {
    /// The group that depends, or is told.
    pub from: GroupName,
    /// The group it depends on, or is told of.
    pub to: GroupName,
    /// What it demands.
    pub kind: Kind,
    /// Whether members of `from` are asked before members of `to` stop serving.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ask: Option<Ask>,
    /// Which rule made it.
    pub origin: Origin,
}

/// Every relation that follows from the declared ones and from capabilities, in order.
///
/// A group that consumes what two groups provide would need only one of them; until `need` exists such a spec
/// is refused rather than read as needing both.
pub(crate) fn derive(
    declared: &[RelationFile],
    groups: &BTreeMap<GroupName, Group>,
) -> Result<Vec<Relation>, SpecError> {
    let mut relations = BTreeSet::new();
    for (place, file) in declared.iter().enumerate() {
        let at = |key: &str| vec!["relations".to_owned(), place.to_string(), key.to_owned()];
        for (key, group) in [("from", &file.from), ("to", &file.to)] {
            if !groups.contains_key(group) {
                let message = format!("there is no group {group}");
                let help = format!("the groups are {}", list(groups.keys()));
                return Err(SpecError { path: at(key), message, help, is_cycle: false });
            }
        }
        if file.from == file.to {
            let message = format!("{} is related to itself", file.from);
            let help = "members of one group learn of each other's moves without a relation".to_owned();
            return Err(SpecError { path: at("to"), message, help, is_cycle: false });
        }
        let (from, to) = (file.from.clone(), file.to.clone());
        relations.insert(Relation { from, to, kind: file.kind, ask: file.ask, origin: Origin::Declared });
        check_count(relations.len())?;
    }
    let mut providers: BTreeMap<_, Vec<&GroupName>> = BTreeMap::new();
    for (name, group) in groups {
        for capability in &group.provides {
            providers.entry(capability).or_default().push(name);
        }
    }
    for (from, group) in groups {
        for capability in &group.consumes {
            let path = || vec!["groups".to_owned(), from.to_string(), "consumes".to_owned()];
            match providers.get(capability).map_or(&[][..], Vec::as_slice) {
                [] => {}
                [to] if *to == from => {
                    let message = format!("{from} consumes {capability}, which it provides itself");
                    let help = "take it out of one of the two lists".to_owned();
                    return Err(SpecError { path: path(), message, help, is_cycle: false });
                }
                [to] => {
                    let (from, to) = (from.clone(), (*to).clone());
                    let origin = Origin::Capability;
                    relations.insert(Relation { from, to, kind: Kind::Requires, ask: None, origin });
                    check_count(relations.len())?;
                }
                several => {
                    let message = format!("{capability} is provided by {}", list(several));
                    let help = "several providers are not available in this version: rename one".to_owned();
                    return Err(SpecError { path: path(), message, help, is_cycle: false });
                }
            }
        }
    }
    let relations: Vec<_> = relations.into_iter().collect();
    match cycle(&relations) {
        Some(cycle) => Err(SpecError {
            path: vec!["relations".to_owned()],
            message: format!(
                "{} go in a circle",
                cycle.iter().map(GroupName::as_str).collect::<Vec<_>>().join(" -> ")
            ),
            help: "requires and after must not lead back to where they start: remove one of these".to_owned(),
            is_cycle: true,
        }),
        None => Ok(relations),
    }
}

fn check_count(relations: usize) -> Result<(), SpecError> {
    if relations <= RELATIONS_MAX {
        return Ok(());
    }
    Err(SpecError {
        path: vec!["relations".to_owned()],
        message: format!("more than {RELATIONS_MAX} relations, declared and derived"),
        help: "relate fewer groups: one group in the middle replaces many edges".to_owned(),
        is_cycle: false,
    })
}

/// The relations that order groups: `requires` and `after`.
pub(crate) fn orders(relation: &Relation) -> bool {
    match relation.kind {
        Kind::Requires | Kind::After => true,
        Kind::Watches => false,
    }
}

/// A cycle among the ordering relations, closed (its first group comes last again), if there is one.
fn cycle(relations: &[Relation]) -> Option<Vec<GroupName>> {
    let mut next: BTreeMap<&GroupName, Vec<&GroupName>> = BTreeMap::new();
    for relation in relations.iter().filter(|relation| orders(relation)) {
        next.entry(&relation.from).or_default().push(&relation.to);
    }
    let mut done: BTreeSet<&GroupName> = BTreeSet::new();
    for &start in next.keys() {
        // An explicit stack: ten thousand groups in a row must not end the process.
        let mut path: Vec<(&GroupName, usize)> = vec![(start, 0)];
        let mut on_path = BTreeSet::from([start]);
        while let Some((group, tried)) = path.last_mut() {
            let group = *group;
            let Some(&to) = next.get(group).and_then(|targets| targets.get(*tried)) else {
                path.pop();
                on_path.remove(group);
                done.insert(group);
                continue;
            };
            *tried += 1;
            if on_path.contains(to) {
                let from = path.iter().position(|(group, _)| *group == to).expect("it is on the path");
                let mut cycle: Vec<_> = path[from..].iter().map(|(group, _)| (*group).clone()).collect();
                cycle.push(to.clone());
                return Some(cycle);
            }
            if !done.contains(to) {
                path.push((to, 0));
                on_path.insert(to);
            }
        }
    }
    None
}
