//! What a server makes of what its store says to an append: the one decision in writing that has to be right when an
//! answer is missing. The driver and the simulator both go by it.

use crate::id::Index;
use crate::mutant::{self, Mutant};

/// What became of an append.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Appended {
    /// It is safe; this is the index of its last entry, the new head.
    Done(Index),
    /// The reign has ended; nothing was written.
    Deposed,
    /// The head is this one, not the expected one; nothing was written.
    Conflict(Index),
    /// It was sent and no answer came. Read the head: either the batch is there, under this reign, or the same
    /// append may be tried again. Nothing else may be appended before one of the two is known.
    Unknown,
}

/// What a server does about its append next.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Settled {
    /// The batch is durable.
    Durable,
    /// Another server reigns, or will. Whether the batch is there is for the next reign to see.
    Deposed,
    /// The batch is there if the store confirms the reign now, and this server is deposed if not.
    Confirm,
    /// The same batch is to be appended once more, after this index.
    AskAgain(Index),
}

/// Settles an append of a batch that would lead from `expected` to `last`.
///
/// A write that was not answered may land at any time, also after it was asked for again. So the same batch is asked
/// for at the same place until one try of it is there: the store takes one of them, and to the others it is a conflict.
pub fn settle(said: Appended, expected: Index, last: Index) -> Settled {
    match said {
        Appended::Done(_) => Settled::Durable,
        Appended::Deposed => Settled::Deposed,
        Appended::Conflict(head) if mutant::is(Mutant::UnknownMovesOn) => Settled::AskAgain(head),
        // Only this server writes under this reign: the head is there because an unanswered try of this batch got
        // through. Any other head is another reign's.
        Appended::Conflict(head) if head == last => Settled::Confirm,
        Appended::Conflict(_) => Settled::Deposed,
        Appended::Unknown if mutant::is(Mutant::UnknownIsDone) => Settled::Durable,
        Appended::Unknown => Settled::AskAgain(expected),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_batch_is_taken_for_durable_when_the_store_says_so_and_else_looked_for_in_its_place() {
        for (said, settled) in [
            (Appended::Done(Index(7)), Settled::Durable),
            (Appended::Deposed, Settled::Deposed),
            (Appended::Conflict(Index(7)), Settled::Confirm),
            (Appended::Conflict(Index(6)), Settled::Deposed),
            (Appended::Conflict(Index(8)), Settled::Deposed),
            (Appended::Conflict(Index(5)), Settled::Deposed),
            (Appended::Unknown, Settled::AskAgain(Index(5))),
        ] {
            assert_eq!(settle(said, Index(5), Index(7)), settled, "{said:?}");
        }
    }
}
