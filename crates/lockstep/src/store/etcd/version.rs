//! Versions of etcd that break what a store promises, after etcd's own change logs.

use std::collections::BTreeMap;

/// What to do about it.
pub(super) const ADVICE: &str = "run 3.5.14 or later, or 3.4.23 or later of 3.4";

/// The versions that members have said, by their addresses.
#[derive(Debug, Default)]
pub(super) struct Told(BTreeMap<String, String>);

/// A member whose version has a known error.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Warning {
    pub(super) member: String,
    pub(super) version: String,
    pub(super) why: &'static str,
}

impl Told {
    /// What to say of members and their versions: of each once, until it has another one.
    pub(super) fn warnings(&mut self, found: Vec<(String, String)>) -> Vec<Warning> {
        let news = found.into_iter().filter(|(member, version)| {
            self.0.insert(member.clone(), version.clone()).as_ref() != Some(version)
        });
        news.filter_map(|(member, version)| trouble(&version).map(|why| Warning { member, version, why }))
            .collect()
    }
}

/// What is wrong with a version, if anything.
fn trouble(version: &str) -> Option<&'static str> {
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
    fn each_member_with_a_known_error_is_told_once_until_its_version_is_another_one() {
        let mut told = Told::default();
        let mut warned = |found: &[(&str, &str)]| -> Vec<String> {
            let found =
                found.iter().map(|(member, version)| ((*member).to_owned(), (*version).to_owned())).collect();
            let warnings = told.warnings(found).into_iter();
            warnings.map(|Warning { member, version, why }| format!("{member} {version}: {why}")).collect()
        };
        let lost = "this version of etcd may lose acknowledged writes of a single member";
        let back = "watches of this version of etcd may go back in time";
        let all = [("m1", "3.5.21"), ("m2", "3.5.4"), ("m3", "3.5.7")];
        assert_eq!(warned(&all), [format!("m2 3.5.4: {lost}"), format!("m3 3.5.7: {back}")]);
        assert_eq!(warned(&all), [""; 0]);
        // One that is silent for a while is the same when it is back, and one that was set back is another one.
        assert_eq!(warned(&all[..2]), [""; 0]);
        let later = [("m1", "3.5.4"), ("m2", "3.5.21"), ("m3", "3.5.7")];
        assert_eq!(warned(&later), [format!("m1 3.5.4: {lost}")]);
        assert_eq!(warned(&all), [format!("m2 3.5.4: {lost}")]);
    }

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
