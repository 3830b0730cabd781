//! Freezes: groups, or the whole cluster, that no planned transition may move until they are thawed; and maintenance
//! windows, outside of which none may either. Someone who may do so overrides both, and says why.
//!
//! What a freeze is in the way of is a function of the cluster alone, part of planning and of a plan's digest. That
//! its time is over is a record, which the engine appends when the wall clock says so; a window is looked at by the
//! engine, with the wall clock, whenever it decides something.

use crate::cluster::Cluster;
use crate::engine::{Accepted, Engine};
use crate::id::{GroupName, Index};
use crate::mutant::{self, Mutant};
use crate::plan::Plan;
use crate::record::Body;
use crate::request::{Code, Rejection, Request};
use crate::time::{Time, WallTime};
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;

/// The most freezes at once: they are counted in teams and changes. Each may name every group.
pub const FREEZES_MAX: usize = 200;
/// The longest freeze, in milliseconds: a leap year. Whoever wants it longer says no end.
pub const FREEZE_MAX_MS: u64 = 366 * 24 * 60 * 60 * 1000;

/// Somebody wants no planned change.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Freeze {
    /// Of these groups; empty: of the whole cluster.
    #[serde(default)]
    pub groups: BTreeSet<GroupName>,
    /// When it ends by itself.
    #[serde(default)]
    pub until: Option<WallTime>,
    /// Why, in the operator's words.
    pub reason: String,
    /// Who froze them.
    pub principal: String,
    /// When.
    #[serde(default)]
    pub at: WallTime,
}

impl Freeze {
    fn covers(&self, group: &GroupName) -> bool {
        self.groups.is_empty() || self.groups.contains(group)
    }

    /// Whether it is the same one, said again: perhaps with another end.
    fn is_again(&self, other: &Self) -> bool {
        (&self.groups, &self.reason, &self.principal) == (&other.groups, &other.reason, &other.principal)
    }

    /// What is frozen, by whom, until when and why, in a sentence.
    fn describe(&self, what: &str) -> String {
        let until = self.until.map(|until| format!(" until {until}")).unwrap_or_default();
        format!("{what} is frozen by {}{until}: {}", self.principal, self.reason)
    }
}

/// When a freeze ends by itself, as it is asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum FreezeEnd {
    /// Not before it is thawed.
    Never,
    /// So many milliseconds after it is recorded.
    After(u64),
    /// At that moment.
    At(WallTime),
}

impl Cluster {
    /// A freeze that keeps a group from being moved, if there is one: the one that lasts longest.
    pub fn freeze_of(&self, group: &GroupName) -> Option<&Freeze> {
        lasting(self.freezes.values().filter(|freeze| freeze.covers(group)))
    }

    /// A freeze of the whole cluster, if there is one: the one that lasts longest.
    pub fn freeze_of_all(&self) -> Option<&Freeze> {
        lasting(self.freezes.values().filter(|freeze| freeze.groups.is_empty()))
    }

    /// Puts a freeze in force. One that is said again takes the place of the one before.
    pub(crate) fn put_freeze(&mut self, index: Index, freeze: Freeze) {
        self.freezes.retain(|_, known| !known.is_again(&freeze));
        self.freezes.insert(index, freeze);
    }

    /// Ends freezes, of some groups or wholly.
    pub(crate) fn thaw(&mut self, freezes: &BTreeSet<Index>, groups: &BTreeSet<GroupName>) {
        for index in freezes {
            let is_over = self.freezes.get_mut(index).is_some_and(|freeze| {
                freeze.groups.retain(|group| !groups.contains(group));
                groups.is_empty() || freeze.groups.is_empty()
            });
            if is_over {
                self.freezes.remove(index);
            }
        }
    }
}

fn lasting<'a>(freezes: impl Iterator<Item = &'a Freeze>) -> Option<&'a Freeze> {
    freezes.max_by_key(|freeze| freeze.until.unwrap_or(WallTime(u64::MAX)))
}

/// Whether a freeze is in the way of a plan, which is only made: else the groups that it moves although they are
/// frozen, because the request says so.
pub(crate) fn check_frozen(
    cluster: &Cluster,
    request: &Request,
    plan: &Plan,
) -> Result<BTreeSet<GroupName>, Rejection> {
    let mut frozen = plan.moving().into_iter().filter_map(|group| Some((group, cluster.freeze_of(group)?)));
    if request.passes_freezes() || mutant::is(Mutant::FreezeIgnored) {
        return Ok(frozen.map(|(group, _)| group.clone()).collect());
    }
    // A host without members to move may be drained: that is a change of the cluster, and of no group.
    let whole = cluster.freeze_of_all().filter(|_| !plan.is_empty());
    // Without a name a thaw ends every freeze, also those that have nothing to do with this.
    let (message, thaw) = match (whole, frozen.next()) {
        (Some(freeze), _) => (freeze.describe("the whole cluster"), "lockstep thaw".to_owned()),
        (None, Some((group, freeze))) => (freeze.describe(group.as_str()), format!("lockstep thaw {group}")),
        (None, None) => return Ok(BTreeSet::new()),
    };
    let help = format!(
        "wait until it is over, or end it: {thaw}; to go ahead all the same: --override-freeze, with a --reason"
    );
    Err(Rejection::new(Code::Frozen, message, help))
}

impl Engine {
    /// Keeps groups, or the whole cluster, as they are.
    pub(crate) fn freeze(
        &mut self,
        names: &BTreeSet<GroupName>,
        end: FreezeEnd,
        reason: String,
        principal: String,
    ) -> Result<Accepted, Rejection> {
        let mut groups = BTreeSet::new();
        for name in names {
            let leaves = self.head.spec.leaves(name).ok_or_else(|| unknown(name))?;
            groups.extend(leaves.into_iter().cloned());
        }
        let until = match end {
            FreezeEnd::Never => None,
            FreezeEnd::After(ms) => Some(self.now.wall.plus(ms)),
            FreezeEnd::At(until) => Some(until),
        };
        if let Some(until) = until
            && !(1..=FREEZE_MAX_MS).contains(&until.since(self.now.wall))
        {
            let message = format!("a freeze until {until}, and it is {} now", self.now.wall);
            let help = "name a moment within a year from now, or no end";
            return Err(Rejection::new(Code::NotAllowed, message, help));
        }
        let freeze = Freeze { groups, until, reason, principal, at: self.now.wall };
        let again = self.head.freezes.iter().find(|(_, known)| known.is_again(&freeze));
        match again {
            Some((_, known)) if known.until == until => {
                return Ok(Accepted::Freezes(self.head.revision));
            }
            None if self.head.freezes.len() >= FREEZES_MAX => {
                let message = format!("{FREEZES_MAX} freezes are in force");
                return Err(Rejection::new(Code::TooLarge, message, "end some: lockstep thaw"));
            }
            Some(_) | None => {}
        }
        let Freeze { groups, until, reason, principal, .. } = freeze;
        Ok(Accepted::Freezes(self.propose(Body::Freeze { groups, until, reason, principal })))
    }

    /// Lets groups move again that were frozen by name; without names, everything. What is not frozen may be thawed, but
    /// not by name what the whole cluster's freeze holds.
    pub(crate) fn thaw(
        &mut self,
        names: &BTreeSet<GroupName>,
        principal: String,
    ) -> Result<Accepted, Rejection> {
        let mut groups = BTreeSet::new();
        for name in names {
            match self.head.spec.leaves(name) {
                Some(leaves) => groups.extend(leaves.into_iter().cloned()),
                // It may have been frozen when it was declared.
                None if self.head.freezes.values().any(|freeze| freeze.groups.contains(name)) => {
                    groups.insert(name.clone());
                }
                None => return Err(unknown(name)),
            }
        }
        let ends = |freeze: &Freeze| groups.is_empty() || !freeze.groups.is_disjoint(&groups);
        let ending = self.head.freezes.iter().filter(|(_, freeze)| ends(freeze));
        let freezes: BTreeSet<Index> = ending.map(|(index, _)| *index).collect();
        if !freezes.is_empty() {
            self.propose(Body::Thaw { freezes, groups, principal: Some(principal) });
        } else if let Some(freeze) = self.head.freeze_of_all() {
            // Whoever was told that all is well would wonder why nothing may move.
            let names: Vec<_> = names.iter().map(GroupName::as_str).collect();
            let message = format!(
                "nothing was frozen by the name of {}: {}",
                names.join(" or "),
                freeze.describe("the whole cluster")
            );
            let help = "`lockstep thaw` without a name ends all freezes; to go ahead in spite of them: \
                        --override-freeze, with a --reason";
            return Err(Rejection::new(Code::Frozen, message, help));
        }
        Ok(Accepted::Freezes(self.head.revision))
    }

    /// Ends the freezes whose time is over.
    pub(crate) fn end_freezes(&mut self) {
        let over = |freeze: &Freeze| freeze.until.is_some_and(|until| until <= self.now.wall);
        let over = self.head.freezes.iter().filter(|(_, freeze)| over(freeze));
        let freezes: BTreeSet<Index> = over.map(|(index, _)| *index).collect();
        if !freezes.is_empty() {
            self.propose(Body::Thaw { freezes, groups: BTreeSet::new(), principal: None });
        }
    }

    /// When the next freeze ends, if the wall clock goes on as it does. One that is set meanwhile is looked at as soon
    /// as anything happens.
    pub(crate) fn freeze_due(&self) -> Option<Time> {
        let until = self.head.freezes.values().filter_map(|freeze| freeze.until).min();
        until.map(|until| self.now.time.plus(until.since(self.now.wall)))
    }

    /// Whether the windows of all groups that a plan moves are open now.
    pub(crate) fn check_windows(&self, request: &Request, plan: &Plan) -> Result<(), Rejection> {
        if request.passes_freezes() {
            return Ok(());
        }
        for name in plan.moving() {
            let Some(group) = self.head.spec.groups.get(name) else { continue };
            if let Some(opens) = group.windows.closed_until(self.now.wall) {
                let windows = &group.windows;
                let message = format!(
                    "the windows of {name} are closed ({windows}, UTC); the next one opens at {opens}"
                );
                let help = "wait until then; to go ahead all the same: --override-freeze, with a --reason";
                return Err(Rejection::new(Code::WindowClosed, message, help));
            }
        }
        Ok(())
    }
}

fn unknown(name: &GroupName) -> Rejection {
    let help = "`lockstep group list` shows what there is";
    Rejection::new(Code::UnknownGroup, format!("there is no group {name}"), help)
}
