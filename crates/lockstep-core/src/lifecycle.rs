//! Lifecycles: the states that a member may be in, which of them serve, and how many may be in each.

use crate::id::{LifecycleName, StateName};
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::fmt;

/// The most states a lifecycle may have: it is read by people, and paths through it are searched in full.
pub const STATES_MAX: usize = 32;

/// A state's place in its lifecycle, 0 the lowest.
pub type Rank = usize;

/// How many: of a group's members, for a state's `min` or `max`; of a relation's groups, for its `need`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Amount {
    /// So many.
    Count(u32),
    /// So many in a hundred of the group's members, 0 to 100.
    Percent(u8),
    /// More than half of the group's members.
    Majority,
    /// Every member.
    All,
}

impl Amount {
    /// The least count that fulfils this as a `min`, among `members`.
    pub fn as_min(self, members: usize) -> usize {
        match self {
            Self::Count(count) => count as usize,
            Self::Percent(percent) => (members * usize::from(percent)).div_ceil(100),
            Self::Majority => members / 2 + 1,
            Self::All => members,
        }
    }

    /// The greatest count that keeps this as a `max`, among `members`.
    pub fn as_max(self, members: usize) -> usize {
        match self {
            Self::Count(count) => count as usize,
            Self::Percent(percent) => members * usize::from(percent) / 100,
            Self::Majority => members / 2 + 1,
            Self::All => members,
        }
    }
}

impl fmt::Display for Amount {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Count(count) => write!(f, "{count}"),
            Self::Percent(percent) => write!(f, "{percent}%"),
            Self::Majority => f.write_str("majority"),
            Self::All => f.write_str("all"),
        }
    }
}

impl Serialize for Amount {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Count(count) => serializer.serialize_u32(*count),
            Self::Percent(_) | Self::Majority | Self::All => serializer.collect_str(self),
        }
    }
}

impl<'de> Deserialize<'de> for Amount {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Visitor;
        impl de::Visitor<'_> for Visitor {
            type Value = Amount;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(r#"a number from 0 on, a percentage such as "50%", "majority" or "all""#)
            }
            fn visit_u64<E: de::Error>(self, value: u64) -> Result<Amount, E> {
                let count = u32::try_from(value);
                count.map(Amount::Count).map_err(|_| E::invalid_value(de::Unexpected::Unsigned(value), &self))
            }
            fn visit_i64<E: de::Error>(self, value: i64) -> Result<Amount, E> {
                let count = u32::try_from(value);
                count.map(Amount::Count).map_err(|_| E::invalid_value(de::Unexpected::Signed(value), &self))
            }
            fn visit_str<E: de::Error>(self, value: &str) -> Result<Amount, E> {
                let percent = value.strip_suffix('%').and_then(|digits| digits.parse().ok());
                match (value, percent) {
                    ("majority", _) => Ok(Amount::Majority),
                    ("all", _) => Ok(Amount::All),
                    (_, Some(percent @ 0..=100)) => Ok(Amount::Percent(percent)),
                    _ => Err(E::invalid_value(de::Unexpected::Str(value), &self)),
                }
            }
        }
        deserializer.deserialize_any(Visitor)
    }
}

/// The limits of one state of a group.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Limit {
    /// At least so many members. Undeclared, a serving state's is 1, and only defines whether the group serves.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub min: Option<Amount>,
    /// At most so many members, ever. Undeclared: no bound.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max: Option<Amount>,
}

/// A lifecycle that cannot be wrong: at least one state, known edges, a path up and down from each state.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Lifecycle {
    /// The states, lowest first.
    pub states: Vec<StateName>,
    /// Which of them serve.
    pub serving: BTreeSet<StateName>,
    /// The edges a member may take.
    pub edges: BTreeSet<(StateName, StateName)>,
    /// Limits for every group of this lifecycle, unless the group has its own.
    pub limits: BTreeMap<StateName, Limit>,
    /// Where a member goes when its host is drained.
    pub drained: StateName,
}

impl Lifecycle {
    /// A state's rank, 0 the lowest.
    pub fn rank(&self, state: &StateName) -> Option<Rank> {
        self.states.iter().position(|known| known == state)
    }

    /// The state where everything is off.
    pub fn lowest(&self) -> &StateName {
        &self.states[0]
    }

    /// Whether a member in `state` serves.
    pub fn serves(&self, state: &StateName) -> bool {
        self.serving.contains(state)
    }

    /// The states from `from` to `to` along the fewest edges, `from` left out; ties go to lower ranks first, so
    /// that the same question has one answer. `None`: no edges lead there.
    pub fn path(&self, from: &StateName, to: &StateName) -> Option<Vec<StateName>> {
        let mut came_from: BTreeMap<&StateName, &StateName> = BTreeMap::new();
        let mut queue = VecDeque::from([from]);
        while let Some(state) = queue.pop_front() {
            if state == to {
                let mut path = Vec::new();
                let mut at = to;
                while at != from {
                    path.push(at.clone());
                    at = came_from[at];
                }
                path.reverse();
                return Some(path);
            }
            for next in &self.states {
                let edge = (state.clone(), next.clone());
                if next != from && self.edges.contains(&edge) && !came_from.contains_key(next) {
                    came_from.insert(next, state);
                    queue.push_back(next);
                }
            }
        }
        None
    }

    /// The lifecycle of that name that needs no declaration: `service` or `primary-standby`.
    pub fn built_in(name: &LifecycleName) -> Option<Self> {
        let state = |name: &str| StateName::new(name).expect("a constant that is a valid name");
        let lifecycle = |states: &[&str], serving: &str, edges: &[(&str, &str)], max: Option<Amount>| Self {
            states: states.iter().map(|name| state(name)).collect(),
            serving: BTreeSet::from([state(serving)]),
            edges: edges.iter().map(|(from, to)| (state(from), state(to))).collect(),
            limits: max
                .map(|max| (state(serving), Limit { min: None, max: Some(max) }))
                .into_iter()
                .collect(),
            drained: state(states[0]),
        };
        match name.as_str() {
            "service" => Some(lifecycle(
                &["offline", "online"],
                "online",
                &[("offline", "online"), ("online", "offline")],
                None,
            )),
            "primary-standby" => Some(lifecycle(
                &["offline", "standby", "primary"],
                "primary",
                &[
                    ("offline", "standby"),
                    ("standby", "offline"),
                    ("standby", "primary"),
                    ("primary", "offline"),
                ],
                Some(Amount::Count(1)),
            )),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn state(name: &str) -> StateName {
        StateName::new(name).unwrap()
    }

    #[test]
    fn amounts_round_to_the_safe_side() {
        for (amount, members, min, max) in [
            (Amount::Count(2), 5, 2, 2),
            (Amount::Percent(50), 5, 3, 2),
            (Amount::Percent(100), 3, 3, 3),
            (Amount::Percent(0), 3, 0, 0),
            (Amount::Majority, 4, 3, 3),
            (Amount::Majority, 5, 3, 3),
            (Amount::All, 7, 7, 7),
        ] {
            assert_eq!((amount.as_min(members), amount.as_max(members)), (min, max), "{amount} of {members}");
        }
    }

    #[test]
    fn amounts_are_a_number_or_a_word() {
        for (text, amount) in [
            ("3", Amount::Count(3)),
            (r#""50%""#, Amount::Percent(50)),
            (r#""majority""#, Amount::Majority),
            (r#""all""#, Amount::All),
        ] {
            assert_eq!(serde_json::from_str::<Amount>(text).unwrap(), amount);
            assert_eq!(serde_json::to_string(&amount).unwrap(), text);
        }
        for bad in ["-1", "1.5", "4294967296", r#""101%""#, r#""%""#, r#""half""#, "null", "true"] {
            serde_json::from_str::<Amount>(bad).unwrap_err();
        }
    }

    #[test]
    fn paths_take_the_fewest_edges() {
        let lifecycle = Lifecycle::built_in(&LifecycleName::new("primary-standby").unwrap()).unwrap();
        let path = |from: &str, to: &str| {
            let path = lifecycle.path(&state(from), &state(to)).unwrap();
            path.iter().map(|state| state.as_str().to_owned()).collect::<Vec<_>>().join(" ")
        };
        assert_eq!(path("offline", "primary"), "standby primary");
        assert_eq!(path("primary", "standby"), "offline standby");
        assert_eq!(path("primary", "primary"), "");
        assert_eq!(lifecycle.path(&state("gone"), &state("primary")), None);
    }
}
