//! What a log has acknowledged is read back from its disk, whatever the disk did in between: writes torn or lost, syncs
//! that fail, room that runs out. Looked at whenever a journal is opened, a server's or an agent's.

use super::Violation;

/// Compares what is read back with what was acknowledged; more may be there, less or other may not.
pub(crate) fn check(who: &str, acknowledged: &[Vec<u8>], found: &[Vec<u8>]) -> Result<(), Violation> {
    if found.get(..acknowledged.len()) == Some(acknowledged) {
        return Ok(());
    }
    let (known, found) = (acknowledged.len(), found.len());
    let what = format!("{who}: {known} records were acknowledged, and not they but {found} are read back");
    Err(Violation { invariant: "22 disks-keep-their-word", what })
}
