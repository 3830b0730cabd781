//! What names a plan, and what shows that it has gone stale. Nothing here decides what a plan does.

use super::Plan;
use crate::cluster::Cluster;
use crate::id::{StateName, hex};
use sha2::{Digest, Sha256};
use std::collections::BTreeSet;

/// A digest of what a plan rests on: the members, limits and relations of its footprint, and that what it moves is not
/// frozen. Facts, scores and the journal's index are left out, so that it changes only with what matters.
pub fn digest(cluster: &Cluster, plan: &Plan) -> String {
    let mut digest = Sha256::new();
    let mut line = Vec::new();
    for name in plan.exclusive.iter().chain(&plan.shared) {
        let Some(group) = cluster.spec.groups.get(name) else {
            digest.update(format!("{name} gone\n"));
            continue;
        };
        // The derived Debug form covers every field, so a new one cannot be forgotten here.
        digest.update(format!(
            "{name} {:?} {:?} {} {} {} {:?}\n",
            group.lifecycle,
            group.limits,
            group.handler,
            group.hold_ms,
            group.parallel,
            cluster.settings(name)
        ));
        let settings = cluster.settings.get(name);
        for id in cluster.members_of(name) {
            let member = &cluster.members[id];
            let host = &cluster.hosts[&id.host];
            let has_taken = member.settings.as_deref() == settings.map(|settings| &**settings);
            // Written out by hand: formatting took most of the time of a small plan. No name has a space in it.
            let state = |state: &Option<StateName>| state.as_ref().map_or("?", StateName::as_str).to_owned();
            let (goal, actual) = (state(&member.goal), state(&member.actual));
            let flag = |flag: bool| b'0' + u8::from(flag);
            let flags = [
                b'0' + member.mark as u8,
                flag(host.is_reachable()),
                flag(member.leaving),
                flag(host.is_drained),
                flag(has_taken),
            ];
            line.clear();
            for word in [id.host.as_str(), &goal, &actual] {
                line.extend_from_slice(word.as_bytes());
                line.push(b' ');
            }
            line.extend_from_slice(&flags);
            line.push(b'\n');
            digest.update(&line);
        }
    }
    let footprint = plan.exclusive.iter().chain(&plan.shared);
    let relations: BTreeSet<_> = footprint.flat_map(|name| cluster.relations.of(name)).collect();
    for relation in relations {
        digest.update(format!("{relation:?}\n"));
        let Some(label) = &relation.scope else { continue };
        for id in relation.groups().flat_map(|group| cluster.members_of(group)) {
            let place = cluster.place(id, label).map_or("", |place| place.value);
            digest.update(format!("{id} {place:?}\n"));
        }
    }
    // A freeze that the request overrides may end before the decision, or another one come.
    for name in plan.moving() {
        if !plan.frozen.contains(name) && cluster.freeze_of(name).is_some() {
            digest.update(format!("{name} frozen\n"));
        }
    }
    short(&digest.finalize())
}

/// The hash of a plan as it is written out.
pub(super) fn hash(written: &[u8]) -> String {
    short(&Sha256::digest(written))
}

/// The first 16 bytes: far beyond chance and guessing, and still one line in a terminal.
fn short(digest: &[u8]) -> String {
    hex(&digest[..16])
}

/// The fewest characters of a hash that name a plan.
const HASH_PREFIX_MIN: usize = 8;

/// Whether what an operator typed names the plan of that hash: all of it, or its first characters.
pub fn names(typed: &str, hash: &str) -> bool {
    typed.len() >= HASH_PREFIX_MIN && hash.starts_with(typed)
}
