//! A record that is torn or decayed is never served. (That nothing which was acknowledged is missing instead,
//! [`super::i22_disks_keep_their_word`] sees.)

use super::Violation;
use serde::de::DeserializeOwned;

/// Reads what a log has served.
pub(crate) fn check<T: DeserializeOwned>(who: &str, served: &[Vec<u8>]) -> Result<Vec<T>, Violation> {
    let read = |payload: &Vec<u8>| serde_json::from_slice(payload);
    served.iter().map(read).collect::<Result<_, _>>().map_err(|error| {
        let what = format!("{who} is served what was never written: {error}");
        Violation { invariant: "23 decay-is-refused", what }
    })
}
