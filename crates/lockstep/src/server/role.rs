//! What a server is to the cluster: it stands by, following the journal, until it may reign; it reigns until it is
//! deposed or steps down; then it stands by again. On a store of its own it reigns from the start to the end.

use super::driver::{Driver, Ended};
use super::follow::{Replayed, follow, until_reached};
use super::handle::{Command, Role, View};
use super::saver::Saver;
use super::session::{Said, Sessions};
use super::{Clock, ServerError};
use crate::agent::random;
use crate::store::{Candidate, Error, Leader, Store};
use lockstep_core::engine::{Defaults, Engine};
use lockstep_core::id::{ClusterId, Reign};
use lockstep_core::request::{Code, Rejection};
use std::time::Duration;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::{Instant, timeout};
use tracing::{debug, info, warn};

/// How long a reign lasts without a sign of life, on a store that asks for one. Too low: a store that chooses a new
/// leader, or a server that is slow for a moment, costs a take-over, which aborts what is not decided. Too high: nothing
/// is decided for as long after a server has died. etcd gives one and a half of its election time-out at least, in whole
/// seconds, so that it is more where members are far apart.
pub(super) const REIGN_TTL: Duration = Duration::from_secs(1);
/// How long a server that has stepped down leaves the others alone with it, unless one of them has taken over.
const HEAD_START: Duration = REIGN_TTL;
/// How long at most a server leaves the others alone whose reigns come to nothing, each twice as long as after the one
/// before. Too low: servers that cannot write take reigns from each other and keep the store busy. Too high: nobody is
/// active for as long after the store takes writes again.
const IN_VAIN_MAX: Duration = Duration::from_secs(15);
/// The lease of hosts on a shared store, unless the spec says otherwise, in milliseconds: they outlast a take-over.
const SHARED_LEASE_MS: u64 = 6000;
/// How often a server that stands by looks who is the active one. It also looks as soon as a reign is recorded.
const LOOK: Duration = Duration::from_millis(500);

/// How long a reign of this server's own may last that it knows nothing of, from before it was started again. Too low:
/// it is taken for another server's of the same name. Too high: such a one is told of late.
const OWN_REIGN_MAX: Duration = Duration::from_secs(10);

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
        let (mut head_start, mut in_vain) = (Duration::ZERO, 0);
        loop {
            let reign = match begun.take() {
                Some(reign) => reign,
                None => match self.stand_by(head_start).await? {
                    Some(reign) => reign,
                    None => return Ok(()),
                },
            };
            let ended = self.reign(reign).await;
            let has_written = self.publish.borrow().cluster.revision > self.replayed.cluster.revision;
            in_vain = if has_written { 0 } else { in_vain + 1 };
            if self.is_shared && (ended.is_err() || !has_written) {
                // What this one cannot write another one may. It ends by itself where that cannot be said.
                let _ = self.store.resign(reign).await;
            }
            head_start = match ended? {
                Ended::Stopped => return Ok(()),
                Ended::Deposed if !self.is_shared => return Err(ServerError::Deposed),
                Ended::Deposed if has_written => {
                    warn!(%reign, "deposed");
                    Duration::ZERO
                }
                Ended::Deposed => {
                    let pause = pause_in_vain(in_vain);
                    warn!(%reign, ?pause, "deposed before anything was written; leaving the others alone with it");
                    pause
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
        info!("{}", if has_read { "standing by" } else { "reading the journal" });
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
        let id = ClusterId::new(&random()).expect("hexadecimal is a name");
        let defaults = Defaults { lease_ms, id: Some(id) };
        let engine =
            Engine::with_defaults((**cluster).clone(), &self.candidate.name, defaults, self.clock.now());
        info!(%reign, revision = %cluster.revision, "active");
        let (sessions, publish) = (self.sessions.clone(), self.publish.clone());
        let driver = Driver::new(engine, saver, self.clock, sessions, publish, self.is_shared);
        driver.drive(&mut self.asked, &mut self.said).await
    }
}

/// How long a server leaves the others alone with it after so many reigns in a row that came to nothing.
fn pause_in_vain(reigns: u32) -> Duration {
    HEAD_START.saturating_mul(1 << reigns.saturating_sub(1).min(8)).min(IN_VAIN_MAX)
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

/// A leader with this server's own name or address, as long as it reigns.
#[derive(Default)]
struct Namesake {
    /// Which reign, and since when it has been seen.
    seen: Option<(Reign, Instant)>,
    told: Option<Reign>,
}

impl Namesake {
    /// Whether a leader is another server than this one, before it was started again; one with the same name is so if
    /// its reign lasts, and that is told. Nobody is sent to this one's own address.
    fn is_another(&mut self, leader: &Leader, own: &Candidate) -> bool {
        let Candidate { name, url } = &leader.candidate;
        if *name != own.name && *url != own.url {
            return true;
        }
        let seen = self.seen.filter(|(reign, _)| *reign == leader.reign);
        let (_, since) = *self.seen.insert(seen.unwrap_or((leader.reign, Instant::now())));
        let lasts = since.elapsed() >= OWN_REIGN_MAX;
        if lasts && self.told.replace(leader.reign) != Some(leader.reign) {
            warn!(
                name,
                url,
                "the active server is another one with this one's name or address; give each its own --name"
            );
        }
        lasts && *url != own.url
    }
}

/// Looks who is the active server, and says so to whoever asks this one.
async fn look<S: Store>(store: &S, own: &Candidate, publish: &watch::Sender<View>) -> Never {
    let mut view = publish.subscribe();
    let mut namesake = Namesake::default();
    loop {
        let reign = view.borrow_and_update().cluster.reign;
        match store.leader().await {
            Ok(leader) => {
                let active = leader.filter(|leader| namesake.is_another(leader, own));
                let active = active.map(|leader| leader.candidate);
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
