//! The same request gets the same answer, whoever has been restarted meanwhile; another under its id is refused. So no
//! server answers a request that came to it when another had taken over already: that one may have accepted it.

use super::{Invariant, Verdict};
use lockstep_core::engine::{Accepted, ReplyId};
use lockstep_core::id::TransitionId;
use lockstep_core::request::{Code, Request};
use lockstep_core::world::{Happened, World};
use std::collections::{BTreeMap, BTreeSet};

#[derive(Debug, Clone, PartialEq, Eq, Hash, Default)]
pub(crate) struct SameRequestSameAnswer {
    /// What was asked, and whether it had been accepted by then.
    asked: BTreeMap<ReplyId, (Request, bool)>,
    accepted: BTreeMap<String, (Request, TransitionId)>,
    /// What came to a server that was deposed.
    late: BTreeSet<ReplyId>,
}

impl Invariant for SameRequestSameAnswer {
    const NAME: &'static str = "7 same-request-same-answer";

    fn happened(&mut self, world: &World, what: &Happened) -> Verdict {
        if let Happened::Asked { reply, server, request } = what {
            if world.active() != Some(*server) {
                self.late.insert(*reply);
            }
            let is_known = self.accepted.contains_key(&request.request_id);
            self.asked.insert(*reply, (request.clone(), is_known));
        }
        let Happened::Answered { reply, answer } = what else { return Ok(()) };
        let Some((request, was_known)) = self.asked.remove(reply) else { return Ok(()) };
        let key = request.request_id.clone();
        if self.late.contains(reply) {
            return Err(format!("{key} is answered by a server that was deposed before it came: {answer:?}"));
        }
        match (answer, self.accepted.get(&key)) {
            (Ok(Accepted::Transition(id)), None) => {
                self.accepted.insert(key, (request, *id));
                Ok(())
            }
            (Ok(Accepted::Transition(id)), Some((known, first))) if *known == request && first == id => Ok(()),
            (Err(rejection), Some((known, _))) if *known != request && rejection.code == Code::RequestConflict => Ok(()),
            // Refused before somebody accepted it, by a server whose answer came late.
            (Ok(Accepted::Nothing) | Err(_), Some(_)) if !was_known => Ok(()),
            (_, Some((known, first))) => {
                let is_same = *known == request;
                Err(format!("{key} was {first}; asked again, the same: {is_same}, the answer is {answer:?}"))
            }
            (Ok(Accepted::Nothing | Accepted::Spec(_) | Accepted::Host(_)) | Err(_), None) => Ok(()),
            (Ok(Accepted::Aborted | Accepted::Away { .. } | Accepted::Freezes(_)), None) => Ok(()),
        }
    }
}
