//! The steps of a decided plan on their way: which may run next, forwards or, taken back, in reverse.

use crate::id::StepId;
use crate::plan::Plan;
use crate::record::Direction;
use std::collections::{BTreeMap, BTreeSet};

/// A plan's graph in one direction, and how far it has come.
///
/// Backwards, a step waits for the inverses of all steps that came after it.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct Flow {
    waits: BTreeMap<StepId, usize>,
    follows: BTreeMap<StepId, Vec<StepId>>,
    ready: BTreeSet<StepId>,
    known: BTreeSet<StepId>,
    steps: u32,
}

impl Flow {
    /// The plan's graph, nothing finished yet.
    pub(crate) fn new(plan: &Plan, direction: Direction) -> Self {
        let nodes = plan.steps.iter().map(|step| (step.id, &step.after));
        let nodes = nodes.chain(plan.barriers.iter().map(|barrier| (barrier.id, &barrier.after)));
        let mut waits: BTreeMap<StepId, usize> = BTreeMap::new();
        let mut follows: BTreeMap<StepId, Vec<StepId>> = BTreeMap::new();
        for (node, after) in nodes {
            waits.entry(node).or_default();
            for &before in after {
                let (first, second) = match direction {
                    Direction::Forward => (before, node),
                    Direction::Back => (node, before),
                };
                *waits.entry(second).or_default() += 1;
                follows.entry(first).or_default().push(second);
            }
        }
        let steps = u32::try_from(plan.steps.len()).expect("STEPS_MAX fits");
        let mut flow = Self { waits, follows, ready: BTreeSet::new(), known: BTreeSet::new(), steps };
        let free: Vec<_> =
            flow.waits.iter().filter(|(_, waits)| **waits == 0).map(|(node, _)| *node).collect();
        flow.release(free);
        flow
    }

    /// The steps that may go now and have not been taken.
    pub(crate) fn ready(&self) -> &BTreeSet<StepId> {
        &self.ready
    }

    /// A step is under way.
    pub(crate) fn take(&mut self, step: StepId) {
        self.ready.remove(&step);
    }

    /// A step is over, whatever came of it: what waited for it may go on.
    pub(crate) fn finish(&mut self, step: StepId) {
        self.ready.remove(&step);
        if self.waits.get(&step) == Some(&0) {
            let free = self.finish_node(step);
            self.release(free);
        }
    }

    /// Notes a step that is known to have finished, before everything before it may have been noted.
    pub(crate) fn finish_when_ready(&mut self, step: StepId) {
        self.known.insert(step);
        while let Some(step) = self.ready.intersection(&self.known).next().copied() {
            self.finish(step);
        }
    }

    fn finish_node(&mut self, node: StepId) -> Vec<StepId> {
        self.waits.remove(&node);
        let mut free = Vec::new();
        for &next in self.follows.get(&node).into_iter().flatten() {
            let waits = self.waits.get_mut(&next).expect("a node that waits has not finished");
            *waits -= 1;
            if *waits == 0 {
                free.push(next);
            }
        }
        free
    }

    fn release(&mut self, mut free: Vec<StepId>) {
        while let Some(node) = free.pop() {
            if node.0 < self.steps {
                self.ready.insert(node);
            } else {
                free.extend(self.finish_node(node));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::id::StateName;
    use crate::plan::{BARRIER_FIRST, Barrier, Step};

    fn plan(steps: &[&[u32]], barriers: &[&[u32]]) -> Plan {
        let ids = |after: &[u32]| after.iter().map(|id| StepId(*id)).collect();
        let (from, to) = (StateName::new("offline").unwrap(), StateName::new("online").unwrap());
        let step = |(id, after): (usize, &&[u32])| Step {
            id: StepId(u32::try_from(id).unwrap()),
            member: format!("db@h{id}").parse().unwrap(),
            from: from.clone(),
            to: to.clone(),
            set: BTreeMap::new(),
            was: BTreeMap::new(),
            after: ids(after),
        };
        let barrier = |(place, after): (usize, &&[u32])| Barrier {
            id: StepId(BARRIER_FIRST + u32::try_from(place).unwrap()),
            after: ids(after),
        };
        Plan {
            steps: steps.iter().enumerate().map(step).collect(),
            barriers: barriers.iter().enumerate().map(barrier).collect(),
            ..Plan::default()
        }
    }

    fn ready(flow: &Flow) -> Vec<u32> {
        flow.ready().iter().map(|step| step.0).collect()
    }

    /// Finishes all that may go, round by round.
    fn rounds(mut flow: Flow) -> Vec<Vec<u32>> {
        let mut rounds = Vec::new();
        while !flow.ready().is_empty() {
            rounds.push(ready(&flow));
            for step in flow.ready().clone() {
                flow.take(step);
                flow.finish(step);
                flow.finish(step);
            }
        }
        rounds
    }

    #[test]
    fn steps_go_in_the_order_of_the_graph_and_back_in_the_reverse() {
        let b = BARRIER_FIRST;
        for (steps, barriers, forward, back) in [
            (&[][..], &[][..], vec![], vec![]),
            (&[&[][..], &[0], &[0]], &[], vec![vec![0], vec![1, 2]], vec![vec![1, 2], vec![0]]),
            (&[&[], &[0], &[1]], &[], vec![vec![0], vec![1], vec![2]], vec![vec![2], vec![1], vec![0]]),
            (
                &[&[b], &[b], &[], &[]],
                &[&[2, 3][..]],
                vec![vec![2, 3], vec![0, 1]],
                vec![vec![0, 1], vec![2, 3]],
            ),
            (&[&[b + 1], &[]], &[&[1], &[b]], vec![vec![1], vec![0]], vec![vec![0], vec![1]]),
        ] {
            let plan = plan(steps, barriers);
            assert_eq!(rounds(Flow::new(&plan, Direction::Forward)), forward, "{steps:?}");
            assert_eq!(rounds(Flow::new(&plan, Direction::Back)), back, "{steps:?}");
        }
    }

    #[test]
    fn what_is_known_may_be_told_in_any_order() {
        let plan = plan(&[&[], &[0], &[1], &[2]], &[]);
        let mut flow = Flow::new(&plan, Direction::Forward);
        for step in [2, 1, 0] {
            flow.finish_when_ready(StepId(step));
        }
        assert_eq!(ready(&flow), [3]);
    }
}
