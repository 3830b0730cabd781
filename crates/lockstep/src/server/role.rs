//! What a server is to the cluster: it stands by, following the journal, until it may reign; it reigns until it is
//! deposed or steps down; then it stands by again. On a store of its own it reigns from the start to the end.

use super::driver::{Driver, Ended};
use super::follow::{Replayed, follow, until_reached};
use super::handle::{Command, Role, View};
use super::saver::Saver;
use super::session::{Said, Sessions};
use super::{Clock, ServerError};
use crate::store::{Candidate, Error, Store};
use lockstep_core::engine::Engine;
use lockstep_core::id::Reign;
use lockstep_core::request::{Code, Rejection};
use std::time::Duration;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::timeout;
use tracing::{debug, info, warn};

/// How long a reign lasts without a sign of life, on a store that asks for one. Too low: a store that chooses a new
/// leader, or a server that is slow for a moment, costs a take-over, which aborts what is not decided. Too high: nothing
/// is decided for as long after a server has died. etcd gives one and a half of its election time-out at least, in whole
/// seconds, so that it is more where members are far apart.
pub(super) const REIGN_TTL: Duration = Duration::from_secs(1);
/// How long a server that has stepped down leaves the others alone with it, unless one of them has taken over.
const HEAD_START: Duration = REIGN_TTL;
/// The lease of hosts on a shared store, unless the spec says otherwise, in milliseconds: they outlast a take-over.
const SHARED_LEASE_MS: u64 = 6000;
/// How often a server that stands by looks who is the active one. It also looks as soon as a reign is recorded.
const LOOK: Duration = Duration::from_millis(500);

/// A server in one role after the other.
pub(super) struct Roles<S> {
    pub(super) store: S,
    pub(super) candidate: Candidate,
    /// Whether other servers may use the store.
    pub(super) is_shared: bool,
    pub(super) clock: Clock,
    pub(super) sessions: Sessions,
    pub(super) publish: watch::Sender<View>,
    pub(super) asked: mpsc::Receiver<Command>,
    pub(super) said: mpsc::Receiver<Said>,
    pub(super) replayed: Replayed,
}

impl<S: Store> Roles<S> {
    /// Reads the journal and begins a reign, on a store that nobody else may use.
    pub(super) async fn begin(&mut self) -> Result<Reign, ServerError> {
        let reign = self.store.campaign(&self.candidate, REIGN_TTL).await?;
        self.replayed.catch_up(&self.store).await?;
        info!(revision = %self.replayed.cluster.revision, %reign, "journal replayed");
        self.show(Role::Active);
        Ok(reign)
    }

    /// Goes on until it is told to stop, or cannot. It has begun a reign, or stands by at first.
    pub(super) async fn run(mut self, mut begun: Option<Reign>) -> Result<(), ServerError> {
        let mut head_start = Duration::ZERO;
        loop {
            let reign = match begun.take() {
                Some(reign) => reign,
                None => match self.stand_by(head_start).await? {
                    Some(reign) => reign,
                    None => return Ok(()),
                },
            };
            head_start = match self.reign(reign).await? {
                Ended::Stopped => return Ok(()),
                Ended::Deposed if !self.is_shared => return Err(ServerError::Deposed),
                Ended::Deposed => {
                    warn!(%reign, "deposed");
                    Duration::ZERO
                }
                Ended::SteppedDown => {
                    info!(%reign, "stepped down");
                    HEAD_START
                }
            };
        }
    }

    /// What readers see of it from now on: nothing provisional, and no older records than before.
    fn show(&mut self, role: Role) {
        self.publish.send_modify(|view| {
            if view.cluster.revision > self.replayed.cluster.revision {
                self.replayed.cluster = view.cluster.clone();
            }
            *view = View { role, cluster: self.replayed.cluster.clone(), ..View::default() };
        });
    }

    /// Follows the journal and answers readers until it may reign; none: it is told to stop.
    async fn stand_by(&mut self, head_start: Duration) -> Result<Option<Reign>, ServerError> {
        let has_read = self.publish.borrow().role != Role::Starting;
        self.show(if has_read { Role::Standby { active: None } } else { Role::Starting });
        // Whoever is closed after that is sent elsewhere.
        self.sessions.close_all();
        info!("standing by");
        let Self { store, candidate, publish, .. } = self;
        let (store, candidate, publish) = (&*store, &*candidate, &*publish);
        let campaigning = async {
            // Once another one has reigned, this one is as good as any.
            let (mut view, before) = (publish.subscribe(), publish.borrow().cluster.reign);
            let _ = timeout(head_start, view.wait_for(|view| view.cluster.reign != before)).await;
            until_reached("campaign", || store.campaign(candidate, REIGN_TTL)).await
        };
        tokio::select! {
            reign = campaigning => Ok(Some(reign?)),
            fault = follow(store, &mut self.replayed, publish) => Err(fault),
            asker = refuse(&mut self.asked, &mut self.said, &self.sessions) => {
                info!("stopping, as an operator wants");
                // Whoever asked may have gone.
                let _ = asker.send(Ok(()));
                Ok(None)
            }
            never = look(store, candidate, publish) => match never {},
        }
    }

    /// Decides until the reign is over. Whoever is connected then is closed as soon as it stands by.
    async fn reign(&mut self, reign: Reign) -> Result<Ended, ServerError> {
        info!(%reign, "taking over");
        tokio::select! {
            read = read_all(&self.store, &mut self.replayed) => read?,
            () = self.store.ended(reign) => return Ok(Ended::Deposed),
        }
        let Replayed { cluster, journal_bytes, snapshot_bytes } = &self.replayed;
        let saver = Saver::new(self.store.clone(), reign, *journal_bytes, *snapshot_bytes);
        let lease_ms = self.is_shared.then_some(SHARED_LEASE_MS);
        let engine =
            Engine::with_lease((**cluster).clone(), &self.candidate.name, lease_ms, self.clock.now());
        info!(%reign, revision = %cluster.revision, "active");
        let (sessions, publish) = (self.sessions.clone(), self.publish.clone());
        let driver = Driver::new(engine, saver, self.clock, sessions, publish, self.is_shared);
        driver.drive(&mut self.asked, &mut self.said).await
    }
}

/// Reads all that is there. Nobody writes under an earlier reign any more.
async fn read_all<S: Store>(store: &S, replayed: &mut Replayed) -> Result<(), ServerError> {
    let head = until_reached("head", || store.head()).await?;
    while replayed.cluster.revision < head {
        replayed.catch_up(store).await?;
    }
    Ok(())
}

/// Tells everybody who wants something of the active server that this is none; ends with whoever wants it to stop.
async fn refuse(
    asked: &mut mpsc::Receiver<Command>,
    said: &mut mpsc::Receiver<Said>,
    sessions: &Sessions,
) -> oneshot::Sender<Result<(), Rejection>> {
    loop {
        tokio::select! {
            Some(command) = asked.recv() => match command {
                Command::Stop { reply } => return reply,
                other => other.refuse(not_active()),
            },
            Some(said) = said.recv() => match said {
                Said::Report(session, _) | Said::Closed(session) => sessions.close(session),
            },
        }
    }
}

/// The answer to whoever asks a server that is not the active one, or not any more.
pub(crate) fn not_active() -> Rejection {
    let message = "this server is not the active one, or not any more";
    let help = "ask again in a moment, with the same request id: what was recorded is carried out once";
    Rejection::new(Code::NotActive, message, help)
}

enum Never {}

/// Looks who is the active server, and says so to whoever asks this one.
async fn look<S: Store>(store: &S, own: &Candidate, publish: &watch::Sender<View>) -> Never {
    let mut view = publish.subscribe();
    loop {
        let reign = view.borrow_and_update().cluster.reign;
        match store.leader().await {
            Ok(leader) => {
                let active = leader.map(|leader| leader.candidate);
                // A reign of its own that is not over yet, from before it was started again: nobody is to be sent there.
                let active = active.filter(|active| active.name != own.name && active.url != own.url);
                publish.send_if_modified(|view| match &mut view.role {
                    Role::Standby { active: known } if *known != active => {
                        let name = active.as_ref().map_or("nobody", |active| active.name.as_str());
                        info!(active = name, "the active server");
                        *known = active;
                        true
                    }
                    Role::Standby { .. } | Role::Starting | Role::Active => false,
                });
            }
            // Who was it before may still be.
            Err(Error::Unavailable { .. }) => {}
            Err(error) => debug!(%error, "nobody knows who the active server is"),
        }
        // Also with the first that is read.
        let _ = timeout(LOOK, view.wait_for(|view| view.cluster.reign != reign)).await;
    }
}

#[cfg(test)]
mod double;
#[cfg(test)]
mod tests;
