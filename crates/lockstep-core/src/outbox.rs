//! Keeps outputs back until the records that they depend on are durable.
//!
//! A machine proposes records and emits outputs; an output leaves only when every record proposed before it has
//! been acknowledged. So no driver can send too early: not an order before its decision, not an answer before
//! what it tells of. One batch of records is in flight at a time, and all that is proposed meanwhile goes into
//! the next one (group commit). A record that nothing waits for may wait itself, for those that come right after it:
//! a write of its own would keep them waiting for longer than it takes.

use crate::mutant::{self, Mutant};
use std::collections::VecDeque;

/// The most records in one batch: bounds a batch's size, and with it the time that its write takes.
pub(crate) const BATCH_MAX: usize = 4096;

/// What may leave now.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) enum Out<R, O> {
    /// These records are to be made durable; nothing else is in flight.
    Append(Vec<R>),
    /// An output whose records are durable.
    Ready(O),
}

/// Records on their way to the journal, and outputs that wait for them.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct Outbox<R, O> {
    proposed: u64,
    /// So many of them are to be written as soon as nothing else is being written.
    wanted: u64,
    in_flight: u64,
    acknowledged: u64,
    records: VecDeque<R>,
    outputs: VecDeque<(u64, O)>,
}

impl<R, O> Default for Outbox<R, O> {
    fn default() -> Self {
        Self {
            proposed: 0,
            wanted: 0,
            in_flight: 0,
            acknowledged: 0,
            records: VecDeque::new(),
            outputs: VecDeque::new(),
        }
    }
}

impl<R, O> Outbox<R, O> {
    /// Proposes a record.
    pub(crate) fn propose(&mut self, record: R) {
        self.propose_late(record);
        self.hurry();
    }

    /// Proposes a record that may wait until another one is proposed, something waits for it, or somebody hurries.
    pub(crate) fn propose_late(&mut self, record: R) {
        self.proposed += 1;
        self.records.push_back(record);
    }

    /// Nothing that has been proposed waits for more.
    pub(crate) fn hurry(&mut self) {
        self.wanted = self.proposed;
    }

    /// Whether there are records that wait for more.
    pub(crate) fn is_late(&self) -> bool {
        self.wanted < self.proposed
    }

    /// The record proposed last, while it is not on its way: it may still say more.
    pub(crate) fn last_mut(&mut self) -> Option<&mut R> {
        self.records.back_mut()
    }

    /// Whether a record has been proposed that is not on its way: its write begins later.
    pub(crate) fn has_queued(&self) -> bool {
        !self.records.is_empty()
    }

    /// Emits an output, which waits for all records proposed so far.
    pub(crate) fn emit(&mut self, output: O) {
        let after = if mutant::is(Mutant::SentBeforeAppend) { self.acknowledged } else { self.proposed };
        self.outputs.push_back((after, output));
        self.hurry();
    }

    /// The batch in flight is durable. Tells how many records it had.
    pub(crate) fn acknowledge(&mut self) -> usize {
        assert!(self.in_flight > 0, "an acknowledgement without a batch in flight");
        self.acknowledged += self.in_flight;
        let count = self.in_flight;
        self.in_flight = 0;
        usize::try_from(count).expect("at most BATCH_MAX")
    }

    /// Whether the next batch is to be written now.
    fn is_due(&self) -> bool {
        self.in_flight == 0 && self.acknowledged < self.wanted
    }

    /// Whether anything may leave.
    pub(crate) fn is_ready(&self) -> bool {
        self.is_due() || self.outputs.front().is_some_and(|(after, _)| *after <= self.acknowledged)
    }

    /// What may leave next, if anything may.
    pub(crate) fn poll(&mut self) -> Option<Out<R, O>> {
        if self.is_due() {
            let count = self.records.len().min(BATCH_MAX);
            self.in_flight = count as u64;
            self.wanted = self.wanted.max(self.acknowledged + self.in_flight);
            return Some(Out::Append(self.records.drain(..count).collect()));
        }
        if self.outputs.front().is_some_and(|(after, _)| *after <= self.acknowledged) {
            return self.outputs.pop_front().map(|(_, output)| Out::Ready(output));
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn outputs_wait_for_the_records_before_them() {
        let mut outbox = Outbox::default();
        outbox.emit('a');
        outbox.propose(1);
        outbox.emit('b');
        assert_eq!(outbox.poll(), Some(Out::Append(vec![1])));
        assert_eq!(outbox.poll(), Some(Out::Ready('a')));
        assert_eq!(outbox.poll(), None);
        outbox.propose(2);
        outbox.propose(3);
        outbox.emit('c');
        assert_eq!(outbox.poll(), None, "one batch in flight at a time");
        assert_eq!(outbox.acknowledge(), 1);
        assert_eq!(outbox.poll(), Some(Out::Append(vec![2, 3])));
        assert_eq!(outbox.poll(), Some(Out::Ready('b')));
        assert_eq!(outbox.poll(), None);
        assert_eq!(outbox.acknowledge(), 2);
        assert_eq!(outbox.poll(), Some(Out::Ready('c')));
        assert_eq!(outbox.poll(), None);
    }

    #[test]
    fn a_record_that_nothing_waits_for_goes_with_what_comes_next() {
        let waiting = || {
            let mut outbox = Outbox::<_, char>::default();
            outbox.propose_late(1);
            assert!(outbox.is_late() && !outbox.is_ready());
            assert_eq!(outbox.poll(), None);
            outbox
        };
        // With another record, when an output waits for it, or when somebody hurries.
        let mut outbox = waiting();
        outbox.propose(2);
        assert_eq!(outbox.poll(), Some(Out::Append(vec![1, 2])));
        let mut outbox = waiting();
        outbox.emit('a');
        assert_eq!(outbox.poll(), Some(Out::Append(vec![1])));
        assert_eq!(outbox.poll(), None);
        let mut outbox = waiting();
        outbox.hurry();
        assert_eq!(outbox.poll(), Some(Out::Append(vec![1])));
        // What comes while that is on its way waits anew.
        outbox.propose_late(2);
        outbox.acknowledge();
        assert!(outbox.is_late() && !outbox.is_ready());
        // Not so what is proposed before the batch is taken: it goes with it, and is late no more.
        outbox.propose(3);
        outbox.propose_late(4);
        assert_eq!(outbox.poll(), Some(Out::Append(vec![2, 3, 4])));
        assert!(!outbox.is_late());
        outbox.acknowledge();
        assert_eq!(outbox.poll(), None);
    }
}
