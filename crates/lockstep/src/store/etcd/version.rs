//! Versions of etcd that break what a store promises, after etcd's own change logs.

/// What to do about it.
pub(super) const ADVICE: &str = "run 3.5.14 or later, or 3.4.23 or later of 3.4";

/// What is wrong with a version, if anything.
pub(super) fn trouble(version: &str) -> Option<&'static str> {
    let mut numbers = version.split(['.', '-', '+']).map(|part| part.parse::<u32>().ok());
    let mut next = || numbers.next().flatten();
    let (Some(major), Some(minor), Some(patch)) = (next(), next(), next()) else {
        return Some("this version of etcd is not known");
    };
    match (major, minor, patch) {
        (..3, _, _) | (3, ..4, _) => Some("this version of etcd is no longer mended"),
        (3, 4, ..21) | (3, 5, 3..5) => {
            Some("this version of etcd may lose acknowledged writes of a single member")
        }
        (3, 4, 21..23) | (3, 5, 5) => Some(
            "members of this version of etcd may come to hold different data after a crash while defragmenting",
        ),
        (3, 5, ..3) => Some("members of this version of etcd may come to hold different data after a crash"),
        (3, 5, 6..8) => Some("watches of this version of etcd may go back in time"),
        (3, 5, 8..13) => {
            Some("an old leader of this version of etcd may end leases, and watches may miss changes")
        }
        (3, 5, 13) => Some("this version of etcd is older than what is recommended"),
        (3, 4, 23..) | (3, 5, 14..) | (3, 6.., _) | (4.., _, _) => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn known_troubles_are_told() {
        for good in ["3.4.23", "3.4.37", "3.5.14", "3.5.21", "3.6.0", "3.6.0-rc.1", "4.0.0"] {
            assert_eq!(trouble(good), None, "{good}");
        }
        for bad in [
            "", "x", "2.3.8", "3.3.27", "3.4.0", "3.4.22", "3.5.0", "3.5.2", "3.5.4", "3.5.5", "3.5.7",
            "3.5.13",
        ] {
            assert!(trouble(bad).is_some(), "{bad}");
        }
    }
}
