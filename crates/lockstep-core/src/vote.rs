//! Votes: what a member answers when it is asked, and the counting of answers.

use crate::id::{MemberId, RunId};
use crate::message::Role;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use std::collections::{BTreeMap, BTreeSet};

/// What a member answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Answer {
    /// It agrees.
    Yes,
    /// It does not.
    No,
    /// It asks to be asked once more.
    Again,
}

/// The phase that a vote is cast in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Round {
    /// Nothing has a side effect yet.
    Check,
    /// Holders hold, actors get ready.
    Prepare,
}

/// One member's vote, as the decision records it.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Vote {
    /// Whose.
    pub member: MemberId,
    /// As what it was asked.
    pub role: Role,
    /// In which phase.
    pub round: Round,
    /// The answer.
    pub answer: Answer,
    /// Why, in the handler's words.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// The agent run that cast it.
    pub run: RunId,
    /// What it hands to later calls.
    #[serde(default, skip_serializing_if = "Map::is_empty")]
    pub out: Map<String, Value>,
}

/// Who was asked in a round, and what came back. A member counts once: its latest answer from its present run.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default)]
pub struct Ballot {
    asked: BTreeMap<MemberId, Option<Vote>>,
    /// How many have said yes, so that counting does not take longer the more are asked.
    yes: usize,
    /// Who said no first.
    no: Option<MemberId>,
    /// Those whose no, or silence, does not count.
    overridden: BTreeSet<MemberId>,
}

/// How a ballot stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Tally {
    /// All said yes.
    Carried,
    /// Somebody said no.
    Refused(MemberId),
    /// Neither yet.
    Open,
}

impl Ballot {
    /// Asks these members; each of them must say yes, but for those that are overridden.
    pub fn new(members: impl IntoIterator<Item = MemberId>, overridden: &BTreeSet<MemberId>) -> Self {
        let asked: BTreeMap<_, _> = members.into_iter().map(|member| (member, None)).collect();
        let overridden = overridden.iter().filter(|member| asked.contains_key(*member)).cloned().collect();
        Self { asked, yes: 0, no: None, overridden }
    }

    /// Counts a vote. One of a member that was not asked, or that has given its answer already, changes
    /// nothing: answers may arrive twice, and a yes that was counted must not turn into a no without a cause.
    /// Tells whether it was counted.
    pub fn cast(&mut self, vote: Vote) -> bool {
        match self.asked.get_mut(&vote.member) {
            Some(place) if place.as_ref().is_none_or(|earlier| earlier.answer == Answer::Again) => {
                let counts = !self.overridden.contains(&vote.member);
                match vote.answer {
                    Answer::Yes | Answer::No if !counts => {}
                    Answer::Yes => self.yes += 1,
                    Answer::No => self.no = self.no.take().or(Some(vote.member.clone())),
                    Answer::Again => {}
                }
                *place = Some(vote);
                true
            }
            Some(_) | None => false,
        }
    }

    /// How it stands.
    pub fn tally(&self) -> Tally {
        match &self.no {
            Some(member) => Tally::Refused(member.clone()),
            None if self.yes + self.overridden.len() == self.asked.len() => Tally::Carried,
            None => Tally::Open,
        }
    }

    /// Whether the member was asked and has given no final answer yet.
    pub fn awaits(&self, member: &MemberId) -> bool {
        matches!(self.asked.get(member), Some(None | Some(Vote { answer: Answer::Again, .. })))
    }

    /// The members that have given no final answer, and have to.
    pub fn missing(&self) -> impl Iterator<Item = &MemberId> {
        self.asked.keys().filter(|member| self.awaits(member) && !self.overridden.contains(*member))
    }

    /// The vote of a member, if it has cast one.
    pub fn vote(&self, member: &MemberId) -> Option<&Vote> {
        self.asked.get(member)?.as_ref()
    }

    /// The votes cast so far.
    pub fn votes(&self) -> impl Iterator<Item = &Vote> {
        self.asked.values().flatten()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn vote(member: &str, answer: Answer) -> Vote {
        Vote {
            member: member.parse().unwrap(),
            role: Role::Actor,
            round: Round::Check,
            answer,
            reason: None,
            run: RunId::new("r1").unwrap(),
            out: Map::new(),
        }
    }

    #[test]
    fn a_ballot_is_carried_by_all_and_refused_by_one() {
        use Answer::{Again, No, Yes};
        let a: MemberId = "db@a".parse().unwrap();
        let b: MemberId = "db@b".parse().unwrap();
        for (cast, tally) in [
            (vec![], Tally::Open),
            (vec![("db@a", Yes)], Tally::Open),
            (vec![("db@a", Yes), ("db@a", Yes)], Tally::Open),
            (vec![("db@a", Yes), ("db@b", Yes)], Tally::Carried),
            (vec![("db@a", Yes), ("db@b", Again)], Tally::Open),
            (vec![("db@a", Yes), ("db@b", Again), ("db@b", Yes)], Tally::Carried),
            (vec![("db@b", No)], Tally::Refused(b.clone())),
            (vec![("db@b", No), ("db@b", Yes), ("db@a", Yes)], Tally::Refused(b.clone())),
            (vec![("db@a", Yes), ("db@a", No), ("db@b", Yes)], Tally::Carried),
            (vec![("db@c", No)], Tally::Open),
        ] {
            let mut ballot = Ballot::new([a.clone(), b.clone()], &BTreeSet::new());
            for (member, answer) in &cast {
                ballot.cast(vote(member, *answer));
            }
            assert_eq!(ballot.tally(), tally, "{cast:?}");
        }
        assert_eq!(Ballot::new([], &BTreeSet::new()).tally(), Tally::Carried);
        let mut ballot = Ballot::new([a.clone(), b.clone()], &BTreeSet::from([b.clone()]));
        assert_eq!((ballot.tally(), ballot.missing().collect()), (Tally::Open, vec![&a]));
        ballot.cast(vote("db@b", No));
        assert_eq!(ballot.tally(), Tally::Open, "its no does not count");
        ballot.cast(vote("db@a", Yes));
        assert_eq!(ballot.tally(), Tally::Carried);
    }
}
