//! Declared relations, from what a spec's file says to relations between groups of members: each is checked alone, all
//! are counted, and composites are taken apart. Circles are found elsewhere, among all relations that exist.

use super::{GroupList, Origin, Relation, check_count};
use crate::id::GroupName;
use crate::lifecycle::Amount;
use crate::spec::{self, Kind, RelationFile, SettingValue, Spec, SpecError, list};
use std::collections::BTreeSet;
use std::sync::Arc;

/// Checks the declared relations, and takes composites apart.
pub(crate) fn declared(files: &[RelationFile], spec: &Spec) -> Result<Vec<Arc<Relation>>, SpecError> {
    let mut relations = BTreeSet::new();
    let mut pairs = 0;
    for (place, file) in files.iter().enumerate() {
        for relation in check_one(place, file, spec)? {
            let count = relation.to.count();
            if relations.insert(Arc::new(relation)) {
                pairs += count;
            }
            check_count(pairs)?;
        }
    }
    Ok(relations.into_iter().collect())
}

fn check_one(place: usize, file: &RelationFile, spec: &Spec) -> Result<Vec<Relation>, SpecError> {
    let place = place.to_string();
    let at = |key: &'static str| ["relations", place.as_str(), key];
    let leaves = |key: &'static str, name: &GroupName| {
        let known = || list(spec.groups.keys().chain(spec.composites.keys()).take(20));
        let leaves = spec.leaves(name).ok_or_else(|| {
            spec::invalid(
                &at(key),
                format!("there is no group {name}"),
                format!("the groups are {}", known()),
            )
        })?;
        Ok::<_, SpecError>(leaves)
    };
    let froms = leaves("from", &file.from)?;
    let mut to: Vec<GroupName> = Vec::new();
    for name in &file.to {
        let parts = leaves("to", name)?;
        if file.need != Amount::All && !spec.groups.contains_key(name) {
            let message = format!("need = {} counts groups, and {name} is made of several", file.need);
            return Err(spec::invalid(&at("need"), message, "list groups that have members"));
        }
        to.extend(parts.into_iter().cloned());
    }
    to.sort();
    if to.windows(2).any(|pair| pair[0] == pair[1]) {
        return Err(spec::invalid(&at("to"), "a group is listed twice", "list each once"));
    }
    if let Some(from) = froms.iter().find(|from| to.contains(from)) {
        let help = "members of one group learn of each other's moves without a relation";
        return Err(spec::invalid(&at("to"), format!("{from} is related to itself"), help));
    }
    let (kind, need) = (file.kind, file.need);
    let wants = |key, is_wrong: bool, kinds: &str| {
        let message = format!("{key} goes with {kinds}, not with {kind}");
        if is_wrong {
            Err(spec::invalid(&at(key), message, "take it out, or choose another kind"))
        } else {
            Ok(())
        }
    };
    wants("need", need != Amount::All && !matches!(kind, Kind::Requires), "requires")?;
    wants(
        "cascade",
        file.cascade && !matches!(kind, Kind::Requires | Kind::Excludes),
        "requires and excludes",
    )?;
    wants("moving", file.moving && !matches!(kind, Kind::Excludes), "excludes")?;
    if file.cascade && file.moving {
        let help = "with moving both may serve, so there is nobody to take down";
        return Err(spec::invalid(&at("cascade"), "cascade and moving exclude each other", help));
    }
    if let Amount::Count(count) = need
        && !(1..=to.len()).contains(&(count as usize))
    {
        let message = format!("need = {count} of {} groups", to.len());
        return Err(spec::invalid(&at("need"), message, format!("a number from 1 to {}", to.len())));
    }
    if let Some(scope) = &file.scope {
        spec::check_text(&at("scope"), scope)?;
    }
    if !file.on.is_empty() && file.ask.is_none() {
        let help = "add ask = \"vote\" or ask = \"hold\"";
        return Err(spec::invalid(&at("on"), "on says when to ask, and nothing is asked", help));
    }
    for key in &file.on {
        if !to.iter().any(|name| spec.groups[name].settings.contains_key(key)) {
            let message = format!("{} has no setting {key}", list(&to));
            let help = format!("declare it: [groups.{}.settings] {key} = ...", to[0]);
            return Err(spec::invalid(&at("on"), message, help));
        }
    }
    for (id, wanted) in &file.when {
        let Some(declared) = spec.groups.get(&id.group).and_then(|group| group.settings.get(&id.key)) else {
            let help = format!("declare it: [groups.{}.settings] {} = ...", id.group, id.key);
            return Err(spec::invalid(&at("when"), format!("there is no setting {id}"), help));
        };
        if let SettingValue::Text(text) = wanted {
            spec::check_text(&at("when"), text)?;
        }
        if !declared.is_alike(wanted) {
            let message = format!("{id} is {declared} when declared, and can never be {wanted}");
            return Err(spec::invalid(&at("when"), message, "compare with a value of the same kind"));
        }
    }
    let to = GroupList::new(to).expect("a list has a group, and a composite too");
    let relation = |from: &GroupName, to: &GroupList| Relation {
        from: from.clone(),
        to: to.clone(),
        kind,
        ask: file.ask,
        on: file.on.clone(),
        need,
        scope: file.scope.clone(),
        when: file.when.clone(),
        cascade: file.cascade,
        moving: file.moving,
        origin: Origin::Declared,
        capability: None,
    };
    // Of several that are all needed each makes a relation of its own: what concerns one does not concern the others.
    let targets: Vec<GroupList> = match need {
        Amount::All => to.iter().cloned().map(GroupList::from).collect(),
        Amount::Count(_) | Amount::Percent(_) | Amount::Majority => vec![to],
    };
    Ok(froms.iter().flat_map(|from| targets.iter().map(|to| relation(from, to))).collect())
}
