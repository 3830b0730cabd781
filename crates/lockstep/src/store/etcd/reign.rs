//! How a server comes to reign, and notices that it does not any more.

use super::client::{ANSWER, BROKEN_PAUSE, Trouble, get, only};
use super::key::{FORMAT, StoredLeader};
use super::{Etcd, Fence, Purpose, Reigning, Shared, State};
use crate::store::{Candidate, Error};
use etcd_client::{
    Compare, CompareOp, DeleteOptions, LeaseKeepAliveStream, LeaseKeeper, PutOptions, Txn, TxnOp,
};
use lockstep_core::id::{Index, Reign};
use std::sync::Arc;
use std::time::Duration;
use tokio::runtime::Handle;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::{sleep, timeout};
use tracing::{info, warn};

/// The pause before a campaign that could not be carried on is tried again.
const CAMPAIGN_PAUSE: Duration = Duration::from_millis(500);
/// A watch on the leader may hang without breaking: the key is looked at this often all the same.
const LEADER_POLL: Duration = Duration::from_secs(3);
/// How many requests to renew a lease fit into its time.
const RENEWALS: u32 = 3;
/// Into how many parts of a lease its first answer has to fit: a member that hangs leaves time to ask another one. The next
/// try has twice as long: else an etcd that only answers slowly would end the reign, while it keeps the lease.
const RENEWAL_ANSWERS: u32 = 6;

/// How long a reign is not given up for want of an answer, if its lease is shorter. An etcd that stands still, or chooses
/// a leader, ends no lease meanwhile, and the next leader lets all of them last anew: who gave up would only hand over
/// to itself.
const SILENCE: Duration = Duration::from_secs(2);

/// A reign that this process began.
#[derive(Debug)]
pub(super) struct Held {
    pub(super) reign: Reign,
    pub(super) fence: Fence,
    /// Whether it may be over.
    pub(super) over: watch::Receiver<bool>,
    keeper: JoinHandle<()>,
    /// Given back when the reign is given up: nothing else is to be done with it.
    #[cfg_attr(not(test), expect(dead_code, reason = "its end is what it is for"))]
    lease: Lease,
}

impl Held {
    /// What etcd calls the lease.
    #[cfg(test)]
    pub(super) fn lease(&self) -> i64 {
        self.lease.id
    }

    /// As a server that was stopped: it renews nothing and hears nothing.
    #[cfg(test)]
    pub(super) fn fall_silent(&self) {
        self.keeper.abort();
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.keeper.abort();
    }
}

/// A lease of ours. It is given back as soon as nobody needs it; a process that is killed leaves it to its end.
#[derive(Debug)]
struct Lease {
    id: i64,
    ttl: Duration,
    /// Since when it counts, by our clock: before etcd's.
    begun: Duration,
    shared: Arc<Shared>,
}

impl Drop for Lease {
    fn drop(&mut self) {
        let (id, shared) = (self.id, self.shared.clone());
        if let Ok(runtime) = Handle::try_current() {
            runtime.spawn(async move {
                // Whether or not it works: it ends by itself.
                let revoke =
                    |client: etcd_client::Client| async move { client.lease_client().revoke(id).await };
                let _ = shared.cluster.call(ANSWER, revoke).await;
            });
        }
    }
}

/// The time since boot, sleep included: a lease runs on while this machine sleeps.
fn now() -> Duration {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::Boottime);
    let seconds = u64::try_from(time.tv_sec).expect("time since boot is not negative");
    Duration::new(seconds, u32::try_from(time.tv_nsec).expect("less than a second"))
}

impl Etcd {
    /// Waits until nobody reigns, and begins a reign.
    ///
    /// An etcd that does not answer, or has no room, is waited for: whoever stands by does so also through the
    /// failures of etcd.
    pub(super) async fn reign_for(
        &self,
        candidate: &Candidate,
        ttl: Duration,
        purpose: Purpose,
    ) -> Result<Reign, Error> {
        // Whoever campaigns again would wait for its own reign to end. Its lease goes, and with it the reign.
        drop(self.lock_held().take());
        let shared = &self.inner.shared;
        let mut lease = None;
        let mut is_told = false;
        loop {
            let trouble = match shared.campaign_while_sound(candidate, ttl, purpose, &mut lease).await {
                Ok((reign, fence, lease)) => {
                    let (over, is_over) = watch::channel(false);
                    let keeping = keep(shared.clone(), fence, lease.ttl, lease.begun);
                    let keeper = tokio::spawn(async move {
                        keeping.await;
                        over.send_replace(true);
                    });
                    let held = Held { reign, fence, over: is_over, keeper, lease };
                    *self.lock_held() = Some(Arc::new(held));
                    info!(%reign, "this server reigns");
                    return Ok(reign);
                }
                Err(trouble) => trouble,
            };
            match shared.cluster.error("begin a reign", trouble) {
                // That is said for all who ask etcd.
                Error::Unavailable { .. } => {}
                fault @ Error::NoRoom(_) => {
                    if !std::mem::replace(&mut is_told, true) {
                        warn!("{fault}; trying again");
                    }
                }
                fault => return Err(fault),
            }
            sleep(CAMPAIGN_PAUSE).await;
        }
    }
}

impl Shared {
    /// Waits until nobody reigns and begins a reign, unless something fails meanwhile. `kept` is a lease that an earlier
    /// try may have begun a reign with, without hearing of it.
    async fn campaign_while_sound(
        self: &Arc<Self>,
        candidate: &Candidate,
        ttl: Duration,
        purpose: Purpose,
        kept: &mut Option<Lease>,
    ) -> Result<(Reign, Fence, Lease), Trouble> {
        self.check_neighbours().await?;
        loop {
            let state = self.state().await?;
            state.check(self.keys.all(), purpose)?;
            if let Some(Reigning { leader, fence }) = &state.leader {
                if let Some(ours) = kept.take_if(|ours| ours.id == fence.lease) {
                    return Ok((leader.reign, *fence, ours));
                }
                *kept = None;
                self.cluster.changed(&self.keys.leader(), state.revision, LEADER_POLL).await;
                continue;
            }
            // One that has been there for a while may end before the reign is noticed.
            kept.take_if(|lease| lease.begun + lease.ttl / 2 < now());
            let lease = match kept {
                Some(lease) => lease,
                None => kept.insert(self.lease(ttl).await?),
            };
            let reign = state.next_reign();
            let answer = self.cluster.txn(ANSWER, self.begin(candidate, reign, &state, lease.id)).await?;
            // Else another server was faster.
            if answer.is_done
                && let Some(lease) = kept.take()
            {
                let fence = Fence { revision: answer.revision, lease: lease.id };
                if state.head.is_none() {
                    self.check_begun(fence).await?;
                }
                return Ok((reign, fence, lease));
            }
        }
    }

    /// Another cluster may have begun around this prefix, or within it, since that was looked for. What has just begun
    /// here is taken back then.
    async fn check_begun(&self, fence: Fence) -> Result<(), Error> {
        let refused = self.check_neighbours().await;
        if refused.is_err() {
            let keys = &self.keys;
            let begun = [keys.leader(), keys.reign(), keys.format(), keys.head()];
            let deletes: Vec<_> = begun.into_iter().map(|key| TxnOp::delete(key, None)).collect();
            // If that fails, too, an operator has to: the next server that begins there says so.
            let _ = self.cluster.txn(ANSWER, Txn::new().when(self.holds(fence)).and_then(deletes)).await;
        }
        refused
    }

    async fn lease(self: &Arc<Self>, ttl: Duration) -> Result<Lease, Trouble> {
        let seconds = i64::try_from(ttl.as_millis().div_ceil(1000)).unwrap_or(i64::MAX);
        let begun = now();
        let grant =
            |client: etcd_client::Client| async move { client.lease_client().grant(seconds, None).await };
        let granted = self.cluster.call(ANSWER, grant).await?;
        // etcd gives no less than its elections take.
        let ttl = Duration::from_secs(granted.ttl().unsigned_abs());
        Ok(Lease { id: granted.id(), ttl, begun, shared: self.clone() })
    }

    /// Begins a reign if nobody reigns and none has begun since `state` was read. Chunks behind the head go: they are
    /// of batches that nobody finished, and their writers are fenced from now on.
    fn begin(&self, candidate: &Candidate, reign: Reign, state: &State, lease: i64) -> Txn {
        let keys = &self.keys;
        let leader = keys.json(&keys.leader(), &StoredLeader::new(candidate, reign));
        let head = state.head.unwrap_or(Index(0));
        let behind = Index(head.0.saturating_add(1));
        let unfinished = DeleteOptions::new().with_range(keys.chunks_end());
        let mut ops = vec![
            TxnOp::put(keys.leader(), leader, Some(PutOptions::new().with_lease(lease))),
            self.put_number(keys.reign(), reign.0),
            self.put_number(keys.format(), FORMAT),
            TxnOp::delete(keys.chunks_from(behind), Some(unfinished)),
        ];
        if state.head.is_none() {
            ops.push(self.put_number(keys.head(), head.0));
        }
        Txn::new()
            .when([
                Compare::create_revision(keys.leader(), CompareOp::Equal, 0),
                Compare::mod_revision(keys.reign(), CompareOp::Equal, state.reign.1),
            ])
            .and_then(ops)
    }

    /// Renews a lease until etcd does not know it any more, or has said nothing for as long as it lasts and for
    /// [`SILENCE`].
    async fn renew(&self, lease: i64, ttl: Duration, begun: Duration) {
        let mut heard = begun;
        let mut stream = None;
        let soon = ttl / RENEWAL_ANSWERS;
        let mut patience = soon;
        loop {
            let left = (heard + ttl.max(SILENCE)).saturating_sub(now());
            if left.is_zero() {
                return warn!("etcd has not renewed this server's lease in time");
            }
            let sent = now();
            match timeout(left.min(patience), self.renew_once(&mut stream, lease)).await {
                Ok(Ok(true)) => {
                    heard = sent;
                    patience = soon.max(2 * now().saturating_sub(sent));
                    sleep(ttl / RENEWALS).await;
                }
                Ok(Ok(false)) => return warn!("etcd has ended this server's lease"),
                Ok(Err(_)) => {
                    stream = None;
                    sleep(left.min(BROKEN_PAUSE)).await;
                }
                Err(_) => {
                    stream = None;
                    patience *= 2;
                    self.cluster.pass_over_current();
                }
            }
        }
    }

    /// Renews it once; says whether etcd knows it.
    async fn renew_once(
        &self,
        stream: &mut Option<(LeaseKeeper, LeaseKeepAliveStream)>,
        lease: i64,
    ) -> Result<bool, Trouble> {
        let broken = |error: etcd_client::Error| Trouble::InDoubt(error.to_string());
        let Some((keeper, answers)) = stream else {
            // The first request of a stream is sent as it opens.
            let open =
                |client: etcd_client::Client| async move { client.lease_client().keep_alive(lease).await };
            return match self.cluster.call(ANSWER, open).await {
                Ok(opened) => {
                    *stream = Some(opened);
                    Ok(true)
                }
                Err(Trouble::InDoubt(why)) if why.contains("lease not found") => Ok(false),
                Err(trouble) => Err(trouble),
            };
        };
        keeper.keep_alive().await.map_err(broken)?;
        match answers.message().await.map_err(broken)? {
            Some(answer) => Ok(answer.ttl() > 0),
            None => Err(Trouble::InDoubt("the stream has ended".to_owned())),
        }
    }

    /// Returns when the leader key is not the one of this fence any more.
    async fn gone(&self, fence: Fence) {
        loop {
            let key = self.keys.leader();
            match self.cluster.read("say who reigns", vec![get(key.clone())]).await {
                Ok(answer) if only(answer.found(0)).is_none_or(|found| Fence::of(found) != fence) => {
                    return;
                }
                Ok(answer) => self.cluster.changed(&key, answer.revision, LEADER_POLL).await,
                // As long as it cannot be reached, the lease says how it is.
                Err(Error::Unavailable { .. }) => sleep(BROKEN_PAUSE).await,
                Err(fault) => return warn!(%fault, "this server cannot see any more whether it reigns"),
            }
        }
    }
}

impl State {
    /// Above all that were given, and above the head: agents know reigns by the index of their first record, and a
    /// prefix may have come here by a migration.
    fn next_reign(&self) -> Reign {
        let head = self.head.unwrap_or(Index(0));
        Reign(self.reign.0.0.max(head.0) + 1)
    }
}

/// Keeps a reign until it is over, or may be.
async fn keep(shared: Arc<Shared>, fence: Fence, ttl: Duration, begun: Duration) {
    tokio::select! {
        () = shared.renew(fence.lease, ttl, begun) => {}
        () = shared.gone(fence) => {}
    }
}
