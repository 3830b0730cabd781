//! A cluster that is brought back from a backup: what was known then, without what can have changed since.
//!
//! Nobody knows what came after the backup, so nothing is presumed of it. Members are as unknown as in a new cluster,
//! and their first status is adopted. What was open is not carried on: its steps have been taken or taken back long
//! ago, or never. And indices go on above all that were ever given out, so that no token comes a second time.

use super::{Cluster, Mark, Notices};
use crate::id::Index;
use crate::message::{Decision, Outcome};
use crate::record::{Cause, Left};
use crate::time::WallTime;
use serde::{Deserialize, Serialize};
use std::sync::Arc;

/// That, and when, a cluster was restored.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Restored {
    /// When.
    pub at: WallTime,
    /// The revision of the backup.
    pub backup: Index,
    /// The revision that it goes on from.
    pub index: Index,
}

impl Cluster {
    /// This cluster, as a server goes on with it that knows no more than a backup of it.
    ///
    /// It goes on at the milliseconds since 1970, or after its own revision where that is higher: indices are given out
    /// slower than one a millisecond, so this is above all that came after the backup. A clock that is far behind makes
    /// it wrong; hosts that have seen more then say so, and are ordered nothing.
    #[must_use]
    pub fn restored(mut self, at: WallTime) -> Self {
        let index = Index((self.revision.0 + 1).max(at.0));
        self.restored = Some(Restored { at, backup: self.revision, index });
        self.revision = index;
        for member in self.members.values_mut().map(Arc::make_mut) {
            (member.goal, member.actual, member.transition) = (None, None, None);
            (member.guarded, member.returns_to, member.is_returning) = (Default::default(), None, false);
            // A status tells the state, and not which settings the software has taken since.
            member.settings = Some(Arc::default());
        }
        for id in std::mem::take(&mut self.open) {
            self.close_unfinished(id, at);
        }
        // Some were told since that are in no backup, and some were not.
        for host in self.hosts.keys() {
            let notices = self.notices.entry(host.clone()).or_default();
            *notices = Notices { dropped: index, ..Notices { kept: Default::default(), ..notices.clone() } };
        }
        self
    }

    fn close_unfinished(&mut self, id: crate::id::TransitionId, at: WallTime) {
        let transition = self.transition_mut(id);
        transition.ended_at = Some(at);
        let is_carried_out = transition.decision == Some(Decision::Commit);
        if transition.decision.is_none() {
            let message = "the server was restored from a backup that was taken before it was decided";
            transition.cause =
                Some(Cause { code: "restored".to_owned(), message: message.to_owned(), member: None });
            transition.decision = Some(Decision::Abort);
            transition.decided_at = Some(at);
        }
        transition.outcome = Some(if is_carried_out { Outcome::Degraded } else { Outcome::Aborted });
        let plan = transition.plan.clone().filter(|_| is_carried_out);
        for member in plan.iter().flat_map(|plan| plan.goals.keys()) {
            let left = Left {
                problem: "the server was restored from a backup that was taken while it moved".to_owned(),
                next: "what it reports is taken for what it should be: look whether it is".to_owned(),
                in_doubt: true,
            };
            self.transition_mut(id).left.insert(member.clone(), left);
            if let Some(known) = self.members.get_mut(member).map(Arc::make_mut) {
                let ends = plan.iter().flat_map(|plan| plan.steps_of(member));
                known.mark = Mark::InDoubt;
                known.may_be = ends.flat_map(|step| [step.from.clone(), step.to.clone()]).collect();
            }
        }
        self.retire(id, at);
    }
}
