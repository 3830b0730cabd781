//! What an agent remembers: its journal's records, and their fold.

use crate::id::{
    AgentId, ClusterId, GroupName, Index, MemberId, Reign, StateName, StepId, Token, TransitionId,
};
use crate::message::{Assignment, Done, Phase};
use crate::time::Time;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};

/// How many ended transitions are remembered, so that an order for one of them that comes late is refused.
const CLOSED_MAX: usize = 1000;

/// What an agent writes down before it speaks.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(tag = "record", rename_all = "kebab-case")]
pub enum AgentRecord {
    /// Who it is; the first record.
    Identity {
        /// The identity, random once.
        agent: AgentId,
    },
    /// The highest reign it has seen.
    Reign {
        /// The reign.
        reign: Reign,
    },
    /// The cluster it belongs to.
    Cluster {
        /// What that is known by.
        cluster: ClusterId,
    },
    /// The highest token it has seen for a group.
    Token {
        /// The group.
        group: GroupName,
        /// The token.
        token: Token,
    },
    /// The members on this host, as the server last assigned them. A hold may have to be let go, and software
    /// stopped, before the server is there to say whose handler that is.
    Assigned {
        /// All of them.
        members: Vec<Assignment>,
    },
    /// The handler is about to be called for `prepare`: whatever comes of it, it has to be cancelled unless a
    /// step follows.
    Preparing {
        /// In which transition.
        transition: TransitionId,
        /// Which member.
        member: MemberId,
    },
    /// What was prepared has been forgotten.
    Cancelled {
        /// In which transition.
        transition: TransitionId,
        /// By which member.
        member: MemberId,
    },
    /// It has said yes.
    Voted {
        /// In which transition.
        transition: TransitionId,
        /// For which member.
        member: MemberId,
        /// In which phase.
        phase: Phase,
    },
    /// A hold is about to begin.
    Held {
        /// For which transition.
        transition: TransitionId,
        /// By which member.
        member: MemberId,
        /// Its end, by the host's clock since boot.
        until: Time,
        /// Its length in milliseconds.
        hold_ms: u64,
    },
    /// A hold is over.
    HoldEnded {
        /// For which transition.
        transition: TransitionId,
        /// By which member.
        member: MemberId,
        /// Whether the server said so.
        is_final: bool,
    },
    /// A step's handler is about to start.
    Started {
        /// In which transition.
        transition: TransitionId,
        /// Which member's.
        member: MemberId,
        /// Which step.
        step: StepId,
        /// `commit` or `undo`.
        phase: Phase,
    },
    /// A step's handler has ended.
    Ended {
        /// In which transition.
        transition: TransitionId,
        /// Which step.
        step: StepId,
        /// What is answered.
        done: Box<Done>,
    },
    /// The state that a member was last confirmed in.
    State {
        /// The member.
        member: MemberId,
        /// The state.
        state: StateName,
    },
    /// Notices up to here have been taken.
    Noticed {
        /// The last one's index.
        index: Index,
    },
    /// A transition has ended.
    Closed {
        /// Which.
        transition: TransitionId,
    },
}

/// All that is in an agent's journal.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default)]
pub struct AgentState {
    /// Who it is.
    pub agent: Option<AgentId>,
    /// The highest reign it has seen.
    pub reign: Reign,
    /// The cluster it belongs to.
    pub cluster: Option<ClusterId>,
    /// The highest token it has seen, by group.
    pub tokens: BTreeMap<GroupName, Token>,
    /// The transitions it takes part in and has not been told the outcome of.
    pub open: BTreeMap<TransitionId, OpenTransition>,
    /// The states that members were last confirmed in.
    pub states: BTreeMap<MemberId, StateName>,
    /// The last notice taken.
    pub noticed: Index,
    /// The members on this host, as the server last assigned them.
    pub members: BTreeMap<MemberId, Assignment>,
    /// Members that are none any more, and take part in an open transition: they may have to forget what they
    /// prepared, or to let go whom they hold.
    pub former: BTreeMap<MemberId, Assignment>,
    pub(super) closed: BTreeSet<TransitionId>,
}

/// What an agent has promised and done in a transition.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default)]
pub struct OpenTransition {
    /// What it has said yes to.
    pub votes: BTreeSet<(MemberId, Phase)>,
    /// The members whose handlers may be prepared, and have not begun a step.
    pub prepared: BTreeSet<MemberId>,
    /// Its holds.
    pub holds: BTreeMap<MemberId, HeldUntil>,
    /// Its steps.
    pub steps: BTreeMap<(StepId, Phase), TakenStep>,
}

/// A step that was started.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct TakenStep {
    /// Whose.
    pub member: MemberId,
    /// What was answered; none: it is not known to have ended.
    pub done: Option<Box<Done>>,
}

/// A hold, as its holder knows it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct HeldUntil {
    /// Its end, by the host's clock since boot.
    pub until: Time,
    /// Its length in milliseconds.
    pub hold_ms: u64,
    /// Whether it has been let go.
    pub is_over: bool,
}

impl OpenTransition {
    /// Whether a member takes part, and may have something to take back or to be told.
    fn owes(&self, member: &MemberId) -> bool {
        let has_voted = || self.votes.iter().any(|(voter, _)| voter == member);
        self.prepared.contains(member) || self.holds.contains_key(member) || has_voted()
    }
}

impl AgentState {
    /// How a member's handler is called, also of one that is none any more and has something to take back.
    pub(super) fn assignment(&self, member: &MemberId) -> Option<&Assignment> {
        self.members.get(member).or_else(|| self.former.get(member))
    }

    /// Takes one record in.
    pub fn apply(&mut self, record: &AgentRecord) {
        match record {
            AgentRecord::Identity { agent } => self.agent = Some(agent.clone()),
            AgentRecord::Reign { reign } => self.reign = *reign,
            AgentRecord::Cluster { cluster } => self.cluster = Some(cluster.clone()),
            AgentRecord::Token { group, token } => {
                self.tokens.insert(group.clone(), *token);
            }
            AgentRecord::Assigned { members } => {
                let members = members.iter().map(|known| (known.member.clone(), known.clone())).collect();
                self.former.append(&mut std::mem::replace(&mut self.members, members));
            }
            AgentRecord::Preparing { transition, member } => {
                self.open.entry(*transition).or_default().prepared.insert(member.clone());
            }
            AgentRecord::Cancelled { transition, member } => {
                if let Some(open) = self.open.get_mut(transition) {
                    open.prepared.remove(member);
                }
            }
            AgentRecord::Voted { transition, member, phase } => {
                self.open.entry(*transition).or_default().votes.insert((member.clone(), *phase));
            }
            AgentRecord::Held { transition, member, until, hold_ms } => {
                let hold = HeldUntil { until: *until, hold_ms: *hold_ms, is_over: false };
                self.open.entry(*transition).or_default().holds.insert(member.clone(), hold);
            }
            AgentRecord::HoldEnded { transition, member, is_final } => {
                let open = self.open.entry(*transition).or_default();
                match open.holds.get_mut(member) {
                    Some(_) if *is_final => drop(open.holds.remove(member)),
                    Some(hold) => hold.is_over = true,
                    None => {}
                }
            }
            AgentRecord::Started { transition, member, step, phase } => {
                let open = self.open.entry(*transition).or_default();
                open.prepared.remove(member);
                let taken = TakenStep { member: member.clone(), done: None };
                open.steps.insert((*step, *phase), taken);
            }
            AgentRecord::Ended { transition, step, done } => {
                let open = self.open.entry(*transition).or_default();
                let taken = TakenStep { member: done.member.clone(), done: Some(done.clone()) };
                open.steps.insert((*step, done.phase), taken);
            }
            AgentRecord::State { member, state } => {
                self.states.insert(member.clone(), state.clone());
            }
            AgentRecord::Noticed { index } => self.noticed = *index,
            AgentRecord::Closed { transition } => {
                self.open.remove(transition);
                self.closed.insert(*transition);
                while self.closed.len() > CLOSED_MAX {
                    self.closed.pop_first();
                }
            }
        }
        let (members, open) = (&self.members, &self.open);
        let owes = |member: &MemberId| open.values().any(|open| open.owes(member));
        self.former.retain(|member, _| !members.contains_key(member) && owes(member));
    }

    /// The fewest records that say the same, so that a journal can be begun anew.
    pub fn records(&self) -> Vec<AgentRecord> {
        let mut records = Vec::new();
        records.extend(self.agent.clone().map(|agent| AgentRecord::Identity { agent }));
        records.push(AgentRecord::Reign { reign: self.reign });
        records.extend(self.cluster.clone().map(|cluster| AgentRecord::Cluster { cluster }));
        let tokens = self.tokens.iter();
        records
            .extend(tokens.map(|(group, token)| AgentRecord::Token { group: group.clone(), token: *token }));
        let states = self.states.iter();
        records.extend(
            states.map(|(member, state)| AgentRecord::State { member: member.clone(), state: state.clone() }),
        );
        records.push(AgentRecord::Noticed { index: self.noticed });
        records.extend(self.closed.iter().map(|transition| AgentRecord::Closed { transition: *transition }));
        for (&transition, open) in &self.open {
            for (member, phase) in &open.votes {
                records.push(AgentRecord::Voted { transition, member: member.clone(), phase: *phase });
            }
            for member in &open.prepared {
                records.push(AgentRecord::Preparing { transition, member: member.clone() });
            }
            for (member, hold) in &open.holds {
                let HeldUntil { until, hold_ms, is_over } = *hold;
                records.push(AgentRecord::Held { transition, member: member.clone(), until, hold_ms });
                if is_over {
                    records.push(AgentRecord::HoldEnded {
                        transition,
                        member: member.clone(),
                        is_final: false,
                    });
                }
            }
            for ((step, phase), TakenStep { member, done }) in &open.steps {
                records.push(match done {
                    Some(done) => AgentRecord::Ended { transition, step: *step, done: done.clone() },
                    None => {
                        let (member, step, phase) = (member.clone(), *step, *phase);
                        AgentRecord::Started { transition, member, step, phase }
                    }
                });
            }
        }
        if !self.former.is_empty() {
            records.push(AgentRecord::Assigned { members: self.former.values().cloned().collect() });
        }
        records.push(AgentRecord::Assigned { members: self.members.values().cloned().collect() });
        records
    }
}

#[cfg(test)]
mod tests {
    use super::super::answer;
    use super::super::tests::{assignment, folded};
    use super::*;
    use crate::message::Call;
    use crate::vote::Answer;

    #[test]
    fn a_journal_that_is_begun_anew_says_the_same() {
        let (db, pool): (MemberId, MemberId) = ("db@p".parse().unwrap(), "pool@p".parse().unwrap());
        let web: MemberId = "web@p".parse().unwrap();
        let (prepared, moved) = (TransitionId(7), TransitionId(8));
        let done = |step| {
            let call = Call { step: Some(step), ..Call::bare(web.clone(), Phase::Commit) };
            Box::new(answer(&call, Answer::Yes, None))
        };
        let held =
            |transition| AgentRecord::Held { transition, member: pool.clone(), until: Time(9), hold_ms: 5 };
        let started = |step| AgentRecord::Started {
            transition: moved,
            member: web.clone(),
            step,
            phase: Phase::Commit,
        };
        let state = folded(&[
            AgentRecord::Identity { agent: AgentId::new("id").unwrap() },
            AgentRecord::Reign { reign: Reign(3) },
            AgentRecord::Token { group: db.group.clone(), token: Token(5) },
            AgentRecord::Noticed { index: Index(6) },
            AgentRecord::Closed { transition: TransitionId(4) },
            AgentRecord::Assigned { members: vec![assignment(&db), assignment(&pool), assignment(&web)] },
            AgentRecord::State { member: web.clone(), state: StateName::new("online").unwrap() },
            AgentRecord::Voted { transition: prepared, member: db.clone(), phase: Phase::Check },
            AgentRecord::Preparing { transition: prepared, member: db.clone() },
            held(prepared),
            held(moved),
            AgentRecord::HoldEnded { transition: moved, member: pool.clone(), is_final: false },
            started(StepId(0)),
            AgentRecord::Ended { transition: moved, step: StepId(0), done: done(StepId(0)) },
            started(StepId(1)),
            // From now on they are members no more, and still owe what they promised.
            AgentRecord::Assigned { members: vec![assignment(&web)] },
        ]);
        assert_eq!(state.former.keys().collect::<Vec<_>>(), [&db, &pool]);
        assert_eq!(folded(&state.records()), state);
    }
}
