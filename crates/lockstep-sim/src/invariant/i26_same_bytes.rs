//! The same seed gives the same trace, byte for byte.

use super::Violation;

/// Compares two runs of one seed.
pub(crate) fn check(digest: u64, again: u64) -> Result<(), Violation> {
    let what = "the second run went another way".to_owned();
    if digest == again { Ok(()) } else { Err(Violation { invariant: "26 same-bytes", what }) }
}
