//! How the HTTP side talks to the one task that owns the engine: commands in, a snapshot out.

use super::role::not_active;
use crate::store::{Candidate, Silence};
use lockstep_core::cluster::Cluster;
use lockstep_core::engine::HostAsk;
use lockstep_core::freeze::FreezeEnd;
use lockstep_core::id::{GroupName, HostName, Index, MemberId, StateName, TransitionId};
use lockstep_core::plan::Plan;
use lockstep_core::refusal::Refusal;
use lockstep_core::request::{Code, Rejection, Request};
use lockstep_core::spec::SpecFile;
use lockstep_core::vote::Vote;
use serde_json::{Map, Value};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::mpsc::error::TrySendError;
use tokio::sync::{mpsc, oneshot, watch};

/// The most commands that wait for the engine; more are answered `busy`.
pub const COMMANDS_MAX: usize = 10_000;

/// What a server is to the cluster at the moment.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum Role {
    /// Nobody can be answered: it has not read the journal yet.
    #[default]
    Starting,
    /// It follows the journal and answers readers.
    Standby {
        /// Who decides, as far as is known.
        active: Option<Candidate>,
    },
    /// It decides.
    Active,
}

/// What readers see: acknowledged records only, and beside them what is provisional. That is known to the active server
/// alone.
#[derive(Debug, Clone, Default)]
pub struct View {
    /// What this server is.
    pub role: Role,
    /// The cluster up to its revision.
    pub cluster: Arc<Cluster>,
    /// Votes cast in transitions that are not decided yet.
    pub votes: BTreeMap<TransitionId, Vec<Arc<Vote>>>,
    /// Which phase each open transition is in: `queued`, `check`, `prepare`, `commit` or `release`.
    pub phases: BTreeMap<TransitionId, &'static str>,
    /// What each transition in the queue waits for.
    pub blockers: BTreeMap<TransitionId, TransitionId>,
    /// What members last said of themselves; never a reason for anything.
    pub reported: Arc<BTreeMap<MemberId, Reported>>,
    /// What keeps groups from being repaired.
    pub waits: Arc<BTreeMap<GroupName, Rejection>>,
    /// The hosts that have had a session with this server since it became the active one.
    pub heard: Arc<BTreeSet<HostName>>,
    /// Agents that are refused, by the host that each says it is.
    pub refused: Arc<BTreeMap<HostName, Refusal>>,
}

/// What a member last said of itself.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Reported {
    /// How fit it is to be chosen; more is better.
    pub score: Option<i64>,
    /// Small values for people.
    pub facts: Map<String, Value>,
    /// Why its state could not be told.
    pub reason: Option<String>,
}

/// What can be asked of the engine.
#[derive(Debug)]
pub enum Command {
    /// Plan only.
    Plan {
        /// What for.
        request: Request,
        /// The answer.
        reply: oneshot::Sender<Result<Plan, Rejection>>,
    },
    /// Plan and run. Answered once the request's record is acknowledged; `None` when there is nothing to do.
    Run {
        /// What for.
        request: Request,
        /// The answer.
        reply: oneshot::Sender<Result<Option<TransitionId>, Rejection>>,
    },
    /// Abort a transition that is not decided yet.
    Abort {
        /// Which.
        transition: TransitionId,
        /// The answer; `Ok` once the abort is recorded, or when it was aborted before.
        reply: oneshot::Sender<Result<(), Rejection>>,
    },
    /// An operator wants something of a host.
    Host {
        /// Which.
        host: HostName,
        /// What.
        ask: HostAsk,
        /// The answer: the revision from which on it is so.
        reply: oneshot::Sender<Result<Index, Rejection>>,
    },
    /// A person says where a member is that cannot tell.
    Resolve {
        /// Which.
        member: MemberId,
        /// Where it is.
        state: StateName,
        /// Who.
        principal: String,
        /// In that person's words.
        reason: String,
        /// The answer: the revision from which on it is so.
        reply: oneshot::Sender<Result<Index, Rejection>>,
    },
    /// The server is going to be away: hosts are told of a longer lease.
    Away {
        /// That lease, in milliseconds.
        lease_ms: u64,
        /// Who.
        principal: String,
        /// The answer, once the hosts go by it: how many do, and which may not.
        reply: oneshot::Sender<Result<(usize, BTreeSet<HostName>), Rejection>>,
    },
    /// No planned change of some groups, or of the whole cluster.
    Freeze {
        /// Which; none: the whole cluster.
        groups: BTreeSet<GroupName>,
        /// Until when.
        end: FreezeEnd,
        /// Why.
        reason: String,
        /// Who.
        principal: String,
        /// The answer: the revision from which on it is so.
        reply: oneshot::Sender<Result<Index, Rejection>>,
    },
    /// That is over.
    Thaw {
        /// Of which groups; none: of all that is frozen.
        groups: BTreeSet<GroupName>,
        /// Who.
        principal: String,
        /// The answer: the revision from which on it is so.
        reply: oneshot::Sender<Result<Index, Rejection>>,
    },
    /// Let another server take over. What is being written is finished.
    StepDown {
        /// Answered when nothing more is done.
        reply: oneshot::Sender<Result<(), Rejection>>,
    },
    /// Stop. What is being written is finished.
    Stop {
        /// Answered when nothing more is done.
        reply: oneshot::Sender<Result<(), Rejection>>,
    },
    /// Declare the cluster.
    Apply {
        /// As it was written.
        spec: SpecFile,
        /// Who.
        principal: String,
        /// The answer: the revision at which it is in force.
        reply: oneshot::Sender<Result<Index, Rejection>>,
    },
}

impl Command {
    /// Answers that it is not done.
    pub fn refuse(self, why: Rejection) {
        // Whoever asked may have gone.
        match self {
            Self::Plan { reply, .. } => _ = reply.send(Err(why)),
            Self::Run { reply, .. } => _ = reply.send(Err(why)),
            Self::Abort { reply, .. } | Self::StepDown { reply } | Self::Stop { reply } => {
                _ = reply.send(Err(why));
            }
            Self::Away { reply, .. } => _ = reply.send(Err(why)),
            Self::Host { reply, .. }
            | Self::Resolve { reply, .. }
            | Self::Freeze { reply, .. }
            | Self::Thaw { reply, .. }
            | Self::Apply { reply, .. } => _ = reply.send(Err(why)),
        }
    }
}

/// A way to the engine; cheap to clone.
#[derive(Debug, Clone)]
pub struct Handle {
    commands: mpsc::Sender<Command>,
    view: watch::Receiver<View>,
    silence: watch::Receiver<Option<Silence>>,
}

impl Handle {
    /// A handle whose commands arrive at the other end of `commands`, of a server on a store that says by `silence`
    /// whether it answers.
    pub fn new(
        commands: mpsc::Sender<Command>,
        view: watch::Receiver<View>,
        silence: watch::Receiver<Option<Silence>>,
    ) -> Self {
        Self { commands, view, silence }
    }

    /// Why this server has not read the journal yet.
    pub fn starting(&self) -> Rejection {
        let message = self.waits_for_since(Duration::ZERO);
        let message = message.unwrap_or("this server has not read the journal yet".to_owned());
        Rejection::new(Code::NotActive, message, "ask again in a moment")
    }

    /// What the store says instead of answering, if that is more than a moment's matter.
    pub fn waits_for(&self) -> Option<String> {
        self.waits_for_since(Silence::UNREMARKABLE)
    }

    fn waits_for_since(&self, least: Duration) -> Option<String> {
        let silence = self.silence.borrow();
        let Silence { since, why } = silence.as_ref().filter(|silence| silence.since.elapsed() >= least)?;
        Some(format!("etcd does not answer: {why}; asked for {} s by now", since.elapsed().as_secs()))
    }

    /// The newest snapshot.
    pub fn view(&self) -> View {
        self.view.borrow().clone()
    }

    /// What this server is.
    pub fn role(&self) -> Role {
        self.view.borrow().role.clone()
    }

    /// A receiver that is woken with every new snapshot.
    pub fn watch(&self) -> watch::Receiver<View> {
        self.view.clone()
    }

    /// Plans only.
    pub async fn plan(&self, request: Request) -> Result<Plan, Rejection> {
        self.ask(|reply| Command::Plan { request, reply }).await
    }

    /// Plans and runs; answers once the request's record is acknowledged.
    pub async fn run(&self, request: Request) -> Result<Option<TransitionId>, Rejection> {
        self.ask(|reply| Command::Run { request, reply }).await
    }

    /// Aborts a transition that is not decided yet.
    pub async fn abort(&self, transition: TransitionId) -> Result<(), Rejection> {
        self.ask(|reply| Command::Abort { transition, reply }).await
    }

    /// Wants something of a host; answers with the revision from which on it is so.
    pub async fn ask_of_host(&self, host: HostName, ask: HostAsk) -> Result<Index, Rejection> {
        self.ask(|reply| Command::Host { host, ask, reply }).await
    }

    /// Wants no planned change; answers with the revision from which on it is so.
    pub async fn freeze(
        &self,
        groups: BTreeSet<GroupName>,
        end: FreezeEnd,
        reason: String,
        principal: String,
    ) -> Result<Index, Rejection> {
        self.ask(|reply| Command::Freeze { groups, end, reason, principal, reply }).await
    }

    /// Wants that to be over; answers with the revision from which on it is so.
    pub async fn thaw(&self, groups: BTreeSet<GroupName>, principal: String) -> Result<Index, Rejection> {
        self.ask(|reply| Command::Thaw { groups, principal, reply }).await
    }

    /// Says where a member is that cannot tell; answers with the revision from which on it is so.
    pub async fn resolve(
        &self,
        member: MemberId,
        state: StateName,
        principal: String,
        reason: String,
    ) -> Result<Index, Rejection> {
        self.ask(|reply| Command::Resolve { member, state, principal, reason, reply }).await
    }

    /// Tells the hosts of a longer lease; answers how many go by it, and which may not.
    pub async fn away(
        &self,
        lease_ms: u64,
        principal: String,
    ) -> Result<(usize, BTreeSet<HostName>), Rejection> {
        self.ask(|reply| Command::Away { lease_ms, principal, reply }).await
    }

    /// Lets another server take over; answers when nothing more is done here.
    pub async fn step_down(&self) -> Result<(), Rejection> {
        self.ask(|reply| Command::StepDown { reply }).await
    }

    /// Stops the server; answers when nothing more is done.
    pub async fn stop(&self) -> Result<(), Rejection> {
        self.ask(|reply| Command::Stop { reply }).await
    }

    /// Declares the cluster; answers with the revision at which it is in force.
    pub async fn apply(&self, spec: SpecFile, principal: String) -> Result<Index, Rejection> {
        self.ask(|reply| Command::Apply { spec, principal, reply }).await
    }

    async fn ask<T>(
        &self,
        command: impl FnOnce(oneshot::Sender<Result<T, Rejection>>) -> Command,
    ) -> Result<T, Rejection> {
        let (reply, answer) = oneshot::channel();
        match self.commands.try_send(command(reply)) {
            Ok(()) => {}
            Err(TrySendError::Full(_)) => {
                let message = "the server has more to do than it can queue";
                return Err(Rejection::new(Code::Busy, message, "try again later"));
            }
            // It has stopped, and only finishes its last answers: another one is, or will be, the active server.
            Err(TrySendError::Closed(_)) => return Err(not_active()),
        }
        answer.await.unwrap_or_else(|_| {
            let help = "ask again with the same request id: it is carried out once";
            Err(Rejection::new(Code::StoreUnavailable, "the server stopped before it could answer", help))
        })
    }
}
