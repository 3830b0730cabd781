//! Wall clocks may jump by an hour, forward and back: a run without the jumps goes the same way, record by record but
//! for the times that people are shown. (Clocks that run too fast or too slowly are a fault of every run.)

use super::Violation;

/// Compares what a run came to with what it comes to when wall clocks stay as they are.
pub(crate) fn check(digest: u64, without_jumps: u64) -> Result<(), Violation> {
    let what = "without wall-clock jumps it goes another way".to_owned();
    if digest == without_jumps {
        Ok(())
    } else {
        Err(Violation { invariant: "21 wall-clocks-decide-nothing", what })
    }
}
