//! Names, numbers and keys, each its own type: two `u64` or two strings side by side are a bug waiting.

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};
use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

/// The most characters a name may have: a DNS label, so that a name fits wherever an operator wants to use it.
pub const NAME_LEN_MAX: usize = 63;

/// Bytes in hexadecimal.
pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// A name that was refused, and why.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{what} name {shown:?} {problem}")]
pub struct NameError {
    /// What the name was to be for: `group`, `host`, ...
    pub what: &'static str,
    /// The name, cut to a length fit for a message.
    pub shown: String,
    /// What is wrong with it.
    pub problem: &'static str,
}

fn check_name(what: &'static str, text: &str, inner: &[u8]) -> Result<(), NameError> {
    let problem = if text.is_empty() {
        "is empty"
    } else if text.len() > NAME_LEN_MAX {
        "is longer than 63 characters"
    } else if !text.as_bytes()[0].is_ascii_alphanumeric() {
        "must start with a letter or a digit"
    } else if !text.bytes().all(|b| b.is_ascii_alphanumeric() || inner.contains(&b)) {
        if inner.contains(&b'.') {
            "may contain letters, digits, '-', '_' and '.' only"
        } else {
            "may contain letters, digits, '-' and '_' only"
        }
    } else {
        return Ok(());
    };
    Err(NameError { what, shown: text.chars().take(40).collect(), problem })
}

macro_rules! name {
    ($(#[$doc:meta])* $type:ident, $what:literal, $inner:literal) => {
        $(#[$doc])*
        #[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $type(Arc<str>);

        impl $type {
            /// The name, when it is made of the allowed characters: letters, digits, `-`, `_` (hosts and
            /// identities also `.`), starting with a letter or a digit, at most [`NAME_LEN_MAX`] long.
            pub fn new(text: &str) -> Result<Self, NameError> {
                check_name($what, text, $inner)?;
                Ok(Self(text.into()))
            }

            /// The name as text.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl FromStr for $type {
            type Err = NameError;
            fn from_str(text: &str) -> Result<Self, NameError> {
                Self::new(text)
            }
        }

        impl fmt::Display for $type {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.pad(&self.0)
            }
        }

        impl fmt::Debug for $type {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl Serialize for $type {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.serialize_str(&self.0)
            }
        }

        impl<'de> Deserialize<'de> for $type {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                let text = std::borrow::Cow::<str>::deserialize(deserializer)?;
                Self::new(&text).map_err(de::Error::custom)
            }
        }
    };
}

name!(
    /// A group's name. Without dots, since `GROUP.KEY=VALUE` names a setting.
    GroupName, "group", b"-_"
);
name!(
    /// A host's name. Dots are allowed: many hosts are called by their domain name.
    HostName, "host", b"-_."
);
name!(
    /// A lifecycle's name.
    LifecycleName, "lifecycle", b"-_"
);
name!(
    /// A state of a lifecycle.
    StateName, "state", b"-_"
);
name!(
    /// The name of a handler; what it runs is in the host's own configuration.
    HandlerName, "handler", b"-_"
);
name!(
    /// The key of a setting of a group.
    SettingKey, "setting", b"_"
);
name!(
    /// A capability that a group provides or consumes.
    Capability, "capability", b"-_."
);
name!(
    /// What an agent keeps in its data directory to be known again: another one under the same host name is refused.
    AgentId, "agent", b"-_."
);
name!(
    /// What a cluster is known by to its hosts, random once: the name in a spec may be another cluster's too.
    ClusterId, "cluster", b"-_."
);
name!(
    /// One run of an agent's process, random per start. A vote counts only for the run that cast it.
    RunId, "run", b"-_."
);

macro_rules! number {
    ($(#[$doc:meta])* $type:ident, $inner:ty, $prefix:literal) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
        #[serde(transparent)]
        pub struct $type(pub $inner);

        impl fmt::Display for $type {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!($prefix, "{}"), self.0)
            }
        }

        impl fmt::Debug for $type {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Display::fmt(self, f)
            }
        }
    };
}

number!(
    /// A record's place in the journal. It only grows, also across a restore from backup.
    Index, u64, ""
);
number!(
    /// One server's time as the active one.
    Reign, u64, ""
);
number!(
    /// The fencing number on an order: the journal index of the `begin` or `turn` it carries out.
    Token, u64, ""
);
number!(
    /// A transition: the journal index of its `request`.
    TransitionId, u64, "t"
);
number!(
    /// A step's place in its plan, or a barrier's number: above all steps, see [`crate::plan::BARRIER_FIRST`].
    StepId, u32, ""
);

impl FromStr for TransitionId {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        let digits = text.strip_prefix('t').unwrap_or(text);
        let number = digits.parse().map_err(|_| {
            let shown: String = text.chars().take(40).collect();
            format!("{shown:?} is no transition; they are called t1, t42, ...")
        })?;
        Ok(Self(number))
    }
}

/// One group's place on one host, written `group@host`.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct MemberId {
    /// The group.
    pub group: GroupName,
    /// The host.
    pub host: HostName,
}

impl MemberId {
    /// The member of `group` on `host`.
    pub fn new(group: &GroupName, host: &HostName) -> Self {
        Self { group: group.clone(), host: host.clone() }
    }
}

impl FromStr for MemberId {
    type Err = NameError;
    fn from_str(text: &str) -> Result<Self, NameError> {
        let Some((group, host)) = text.split_once('@') else {
            let shown = text.chars().take(40).collect();
            return Err(NameError { what: "member", shown, problem: "is not of the form GROUP@HOST" });
        };
        Ok(Self { group: group.parse()?, host: host.parse()? })
    }
}

impl fmt::Display for MemberId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}@{}", self.group, self.host)
    }
}

impl fmt::Debug for MemberId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl Serialize for MemberId {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for MemberId {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        std::borrow::Cow::<str>::deserialize(deserializer)?.parse().map_err(de::Error::custom)
    }
}

/// One setting of a group, written `group.key`.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SettingId {
    /// The group.
    pub group: GroupName,
    /// The key.
    pub key: SettingKey,
}

impl FromStr for SettingId {
    type Err = NameError;
    fn from_str(text: &str) -> Result<Self, NameError> {
        let Some((group, key)) = text.split_once('.') else {
            let shown = text.chars().take(40).collect();
            return Err(NameError { what: "setting", shown, problem: "is not of the form GROUP.KEY" });
        };
        Ok(Self { group: group.parse()?, key: key.parse()? })
    }
}

impl fmt::Display for SettingId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.group, self.key)
    }
}

impl fmt::Debug for SettingId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl Serialize for SettingId {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for SettingId {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        std::borrow::Cow::<str>::deserialize(deserializer)?.parse().map_err(de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_made_of_plain_characters() {
        let long = "x".repeat(NAME_LEN_MAX);
        let too_long = "x".repeat(100_000);
        for good in ["a", "pg-a", "A_1", "9", long.as_str()] {
            assert_eq!(GroupName::new(good).unwrap().as_str(), good);
        }
        for bad in [
            "",
            "-a",
            "_",
            ".",
            "..",
            "../x",
            "a b",
            "a@b",
            "a.b",
            "a=b",
            "a;$(x)",
            "a\n",
            "a\0",
            "\u{202e}a",
            "é",
            "<script>",
            &too_long,
        ] {
            GroupName::new(bad).unwrap_err();
        }
        assert_eq!(HostName::new("pg-a.example.org").unwrap().as_str(), "pg-a.example.org");
        HostName::new("pg-a/..").unwrap_err();
        let message = GroupName::new(&too_long).unwrap_err().to_string();
        assert!(message.len() < 120, "{message}");
    }

    #[test]
    fn a_member_reads_back_as_it_is_written() {
        let member: MemberId = "db@pg-a.example".parse().unwrap();
        assert_eq!(member.to_string(), "db@pg-a.example");
        assert_eq!(serde_json::to_string(&member).unwrap(), r#""db@pg-a.example""#);
        for bad in ["db", "@", "db@", "@pg-a", "db@pg@a", "db.x@pg-a"] {
            bad.parse::<MemberId>().unwrap_err();
        }
    }

    #[test]
    fn a_transition_may_be_named_with_or_without_its_letter() {
        assert_eq!("t42".parse(), Ok(TransitionId(42)));
        assert_eq!("42".parse(), Ok(TransitionId(42)));
        for bad in ["", "t", "-1", "t-1", "18446744073709551616", "x42"] {
            bad.parse::<TransitionId>().unwrap_err();
        }
    }
}
