//! Requests to the members of etcd: to one member at a time, the next one when it does not answer, each with an end.
//! Nothing is asked twice here but what only reads.

use super::address::Address;
use super::history::{RESTORED, SET_BACK};
use super::key::damaged;
use super::silence::Answering;
use crate::cause::{chain, innermost};
use crate::cli::option::EtcdOptions;
use crate::store::Error;
use etcd_client::{
    Client, ConnectOptions, GetOptions, KeyValue, ResponseHeader, Txn, TxnOp, TxnOpResponse, WatchOptions,
    WatchStream,
};
use lockstep_core::log;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicI64, AtomicUsize, Ordering};
use std::time::Duration;
use tokio::sync::Mutex;
use tokio::time::{Instant, sleep, timeout};
use tonic::Code;
use tracing::debug;

/// How long one request may take. Longer than etcd needs for a new leader at its usual settings would make a server
/// that waits lose its reign; much shorter, and a slow disk looks like no answer.
pub(super) const ANSWER: Duration = Duration::from_secs(2);
/// How long the first tries may take of what may be asked for again before its end is known. A member whose leader has
/// just died loses what it is asked for, and answers never; a new leader is there half a second to two seconds later. Too
/// low: a slow disk is asked for everything twice. Too high: a new leader waits for work.
const TRIES: [Duration; 3] = [Duration::from_millis(500), Duration::from_millis(500), Duration::from_secs(1)];
/// The same for requests of which each carries up to a megabyte or deletes many keys.
pub(super) const BULK_ANSWER: Duration = Duration::from_secs(10);
/// How long a read is asked for again: an etcd with its usual settings has a new leader by then.
const PATIENCE: Duration = Duration::from_secs(3);
/// The pause after a stream has broken off or could not be opened.
pub(super) const BROKEN_PAUSE: Duration = Duration::from_millis(200);
/// The largest answer that is accepted, in bytes: a page of a read is at most 64 values of half a MiB each.
const ANSWER_BYTES_MAX: usize = 48 << 20;

/// What became of a request that was not done, or not for certain.
#[derive(Debug)]
pub(super) enum Trouble {
    /// No answer, or none that says what became of it.
    InDoubt(String),
    /// The quota is used up. A write that says so may have been done all the same: etcd looks twice, before it hands
    /// a request to its members and after they have carried it out.
    NoRoom,
    /// It will not be done however often it is asked for.
    Refused(String, &'static str),
    /// Known without etcd.
    Known(Error),
}

impl From<Error> for Trouble {
    fn from(error: Error) -> Self {
        Trouble::Known(error)
    }
}

/// The members of one etcd.
pub(super) struct Cluster {
    place: String,
    members: Vec<Member>,
    options: ConnectOptions,
    /// Which one is asked.
    current: AtomicUsize,
    /// What etcd calls itself; all members say the same.
    id: OnceLock<u64>,
    /// The highest revision that it has said.
    revision: AtomicI64,
    pub(super) answering: Answering,
}

struct Member {
    url: String,
    /// Made when it is needed first: with a user's name it takes an answer.
    client: Mutex<Option<Client>>,
}

impl std::fmt::Debug for Cluster {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        out.debug_struct("Cluster").field("place", &self.place).finish_non_exhaustive()
    }
}

/// What a transaction did.
pub(super) struct Answer {
    /// Whether its conditions held.
    pub(super) is_done: bool,
    /// The revision that it was done at.
    pub(super) revision: i64,
    ops: Vec<TxnOpResponse>,
}

impl Answer {
    /// The keys that its `at`th operation has found.
    pub(super) fn found(&self, at: usize) -> &[KeyValue] {
        match self.ops.get(at) {
            Some(TxnOpResponse::Get(answer)) => answer.kvs(),
            Some(TxnOpResponse::Put(_) | TxnOpResponse::Delete(_) | TxnOpResponse::Txn(_)) | None => &[],
        }
    }
}

impl Cluster {
    pub(super) fn new(text: &str, address: &Address, options: &EtcdOptions) -> Result<Self, Error> {
        let member = |url: &String| Member { url: url.clone(), client: Mutex::new(None) };
        Ok(Cluster {
            place: text.to_owned(),
            members: address.members.iter().map(member).collect(),
            options: address.options(text, options)?,
            current: AtomicUsize::new(0),
            id: OnceLock::new(),
            revision: AtomicI64::new(0),
            answering: Answering::new(),
        })
    }

    pub(super) fn urls(&self) -> impl Iterator<Item = &str> {
        self.members.iter().map(|member| member.url.as_str())
    }

    /// Does a request at one member within `limit`, the connection's begin included.
    pub(super) async fn call<T, F>(
        &self,
        limit: Duration,
        request: impl FnOnce(Client) -> F,
    ) -> Result<T, Trouble>
    where
        F: Future<Output = Result<T, etcd_client::Error>>,
    {
        let at = self.current.load(Ordering::Relaxed) % self.members.len();
        let asked = timeout(limit, async {
            let client = self.client(at).await?;
            request(client).await
        });
        let trouble = match asked.await {
            Ok(Ok(done)) => {
                self.answering.answered();
                return Ok(done);
            }
            Ok(Err(error)) => self.judge(at, error).await,
            Err(_) => Trouble::InDoubt(format!("no answer within {} ms", limit.as_millis())),
        };
        match trouble {
            Trouble::InDoubt(why) => {
                self.pass_over(at);
                let why = format!("{}: {why}", self.members[at].url);
                self.answering.silent(&why);
                Err(Trouble::InDoubt(why))
            }
            trouble @ (Trouble::NoRoom | Trouble::Refused(..) | Trouble::Known(_)) => {
                self.answering.answered();
                Err(trouble)
            }
        }
    }

    /// Asks the next member from now on, unless somebody has seen to that.
    fn pass_over(&self, at: usize) {
        let next = (at + 1) % self.members.len();
        let _ = self.current.compare_exchange(at, next, Ordering::Relaxed, Ordering::Relaxed);
    }

    /// The same, for who has found out by itself that a member hangs.
    pub(super) fn pass_over_current(&self) {
        self.pass_over(self.current.load(Ordering::Relaxed) % self.members.len());
    }

    /// Asks this member from now on.
    #[cfg(test)]
    pub(super) fn ask_first(&self, at: usize) {
        self.current.store(at, Ordering::Relaxed);
    }

    async fn client(&self, at: usize) -> Result<Client, etcd_client::Error> {
        let member = &self.members[at];
        let mut client = member.client.lock().await;
        if let Some(client) = &*client {
            return Ok(client.clone());
        }
        let connected = Client::connect([&member.url], Some(self.options.clone())).await?;
        *client = Some(connected.clone());
        Ok(connected)
    }

    /// Each member's version, or nothing of one that does not say it.
    pub(super) async fn versions(&self) -> Vec<(String, String)> {
        let mut versions = Vec::new();
        for (at, member) in self.members.iter().enumerate() {
            let asked = timeout(ANSWER, async { self.client(at).await?.maintenance_client().status().await });
            if let Ok(Ok(status)) = asked.await {
                versions.push((member.url.clone(), status.version().to_owned()));
            }
        }
        versions
    }

    async fn judge(&self, at: usize, error: etcd_client::Error) -> Trouble {
        const REACH: &str = "see docs/etcd.md for the permissions and certificates that it needs";
        let status = match error {
            etcd_client::Error::GRpcStatus(status) => status,
            // What the certificates in hand cannot do, they cannot do later either.
            error @ (etcd_client::Error::InvalidArgs(_) | etcd_client::Error::InvalidUri(_)) => {
                return Trouble::Refused(error.to_string(), REACH);
            }
            // It is made without etcd, of the address and the certificates.
            etcd_client::Error::TransportError(error) => {
                let help = "see that --etcd-ca, --etcd-cert and --etcd-key are PEM, and that the key is that certificate's";
                return Trouble::Refused(chain(&error), help);
            }
            other => return Trouble::InDoubt(chain(&other)),
        };
        let said = status.message();
        match status.code() {
            Code::ResourceExhausted if said.contains("database space exceeded") => Trouble::NoRoom,
            // A little above its limit etcd says so, and far above what it is built with.
            Code::InvalidArgument | Code::ResourceExhausted
                if said.contains("request is too large") || said.contains("larger than max") =>
            {
                let help = "give etcd --max-request-bytes of 1572864, its default, or more";
                Trouble::Refused(said.to_owned(), help)
            }
            // Users or roles have changed since this client has said who it is: it says so again.
            Code::InvalidArgument if said.contains("auth store is old") => {
                *self.members[at].client.lock().await = None;
                Trouble::InDoubt(said.to_owned())
            }
            Code::PermissionDenied | Code::Unauthenticated => Trouble::Refused(said.to_owned(), REACH),
            Code::InvalidArgument | Code::FailedPrecondition
                if said.contains("auth") || said.contains("user") =>
            {
                Trouble::Refused(said.to_owned(), REACH)
            }
            _ => Trouble::InDoubt(self.explain(at, &status)),
        }
    }

    /// What to tell of an answer that is none. A connection that fails says why in its innermost cause.
    fn explain(&self, at: usize, status: &tonic::Status) -> String {
        let Some(cause) = std::error::Error::source(status) else { return status.message().to_owned() };
        let why = innermost(cause);
        let is_tls = self.members[at].url.starts_with("https://");
        match advice(&why, is_tls, self.id.get().is_some()) {
            Some(advice) => format!("{advice} ({why})"),
            None => why,
        }
    }

    /// Every answer says which etcd it comes from. One of another would let two servers reign.
    fn check(&self, header: Option<&ResponseHeader>) -> Result<i64, Trouble> {
        let Some(header) = header else {
            return Err(Trouble::InDoubt("an answer has no header".to_owned()));
        };
        let id = *self.id.get_or_init(|| header.cluster_id());
        if id == header.cluster_id() {
            return Ok(header.revision());
        }
        let reason = format!("it is cluster {:x} now and was {id:x} before", header.cluster_id());
        Err(Trouble::Refused(reason, "name the members of one etcd; if it was restored, see docs/etcd.md"))
    }

    /// Does a transaction once.
    pub(super) async fn txn(&self, limit: Duration, txn: Txn) -> Result<Answer, Trouble> {
        let ask = |client: Client| async move {
            client.kv_client().max_decoding_message_size(ANSWER_BYTES_MAX).txn(txn).await
        };
        let known = self.revision.load(Ordering::SeqCst);
        let answer = self.call(limit, ask).await?;
        let revision = self.check(answer.header())?;
        // No answer is older than what was known before it was asked for.
        if revision < known {
            let reason = format!("its revision is {revision}, and was {known} before: {SET_BACK}");
            return Err(Trouble::Refused(reason, RESTORED));
        }
        self.revision.fetch_max(revision, Ordering::SeqCst);
        Ok(Answer { is_done: answer.succeeded(), revision, ops: answer.op_responses() })
    }

    /// Does a transaction of which at most one try can hold: tries that were not answered may still be done later, and
    /// then those after them are not. It asks the next member soon at first. Also says whether a try was not answered.
    pub(super) async fn txn_tried(&self, txn: Txn) -> Result<(Answer, bool), Trouble> {
        let mut doubt = None;
        for limit in TRIES.into_iter().chain([ANSWER]) {
            match self.txn(limit, txn.clone()).await {
                Err(Trouble::InDoubt(why)) => {
                    debug!(%why, "etcd has not answered a try");
                    doubt = Some(why);
                }
                Ok(answer) => return Ok((answer, doubt.is_some())),
                // That is said of this try; an earlier one may still be done.
                Err(trouble) => return Err(doubt.map_or(trouble, Trouble::InDoubt)),
            }
        }
        Err(Trouble::InDoubt(doubt.expect("there are tries, and none was answered")))
    }

    /// Reads several ranges at one revision that no completed write is later than. What only reads is asked for again,
    /// of each member at least once, for as long as etcd may need for a new leader.
    pub(super) async fn read(&self, doing: &'static str, gets: Vec<TxnOp>) -> Result<Answer, Error> {
        let begun = Instant::now();
        let mut asked = 0;
        // What was said last, each of it once: others ask as well, and pass members over.
        let mut doubts: Vec<String> = Vec::new();
        loop {
            let limit = TRIES.get(asked).copied().unwrap_or(ANSWER);
            match self.txn(limit, Txn::new().and_then(gets.clone())).await {
                Ok(answer) => return Ok(answer),
                Err(Trouble::InDoubt(why)) => {
                    asked += 1;
                    doubts.retain(|known| *known != why);
                    doubts.push(why);
                    doubts.drain(..doubts.len().saturating_sub(self.members.len()));
                    if asked > self.members.len() && begun.elapsed() >= PATIENCE {
                        return Err(self.error(doing, Trouble::InDoubt(doubts.join("; "))));
                    }
                    // Each member says at once that there is no leader.
                    if asked % self.members.len() == 0 {
                        sleep(BROKEN_PAUSE).await;
                    }
                }
                Err(trouble) => return Err(self.error(doing, trouble)),
            }
        }
    }

    /// Watches a key for what came after `revision`. The stream says what ends it.
    pub(super) async fn watch(&self, key: &str, revision: i64) -> Result<WatchStream, Trouble> {
        let options = WatchOptions::new().with_start_revision(revision + 1);
        let key = key.to_owned();
        self.call(ANSWER, |client| async move { client.watch_client().watch(key, Some(options)).await }).await
    }

    /// Returns when a key may have changed since `revision`: it has, the watch broke off, or so much time has passed.
    pub(super) async fn changed(&self, key: &str, revision: i64, at_most: Duration) {
        let watched = async {
            let Ok(mut stream) = self.watch(key, revision).await else {
                return sleep(BROKEN_PAUSE).await;
            };
            loop {
                match stream.message().await {
                    Ok(Some(said)) if said.events().is_empty() && !said.canceled() => {}
                    Ok(Some(said)) if !said.canceled() => return,
                    Ok(_) | Err(_) => return sleep(BROKEN_PAUSE).await,
                }
            }
        };
        // A stream may hang without breaking; then this costs time and nothing else.
        let _ = timeout(at_most, watched).await;
    }

    /// Lets etcd forget what keys were before `revision`.
    pub(super) async fn forget(&self, revision: i64) -> Result<(), Trouble> {
        let done =
            self.call(ANSWER, |client| async move { client.kv_client().compact(revision, None).await }).await;
        match done {
            Ok(_) => Ok(()),
            Err(Trouble::InDoubt(why)) if why.contains("has been compacted") => Ok(()),
            Err(trouble) => Err(trouble),
        }
    }

    /// What to tell of trouble with something that was not done.
    pub(super) fn error(&self, doing: &'static str, trouble: Trouble) -> Error {
        match trouble {
            Trouble::InDoubt(reason) => Error::Unavailable { doing, reason },
            Trouble::NoRoom => Error::NoRoom(log::Error::Full { file: self.place.clone(), doing: QUOTA }),
            Trouble::Refused(reason, help) => self.unusable(format!("it could not {doing}: {reason}"), help),
            Trouble::Known(error) => error,
        }
    }

    pub(super) fn unusable(&self, reason: String, help: &'static str) -> Error {
        Error::Unusable { place: self.place.clone(), reason, help }
    }
}

/// What somebody can do about a full quota, in the place of what was tried.
const QUOTA: &str = "write: the quota of etcd is used up (raise --quota-backend-bytes, or etcdctl compact and defrag; \
                     then etcdctl alarm disarm)";

/// What a connection's end most likely means, of which TLS and HTTP say it in their own words only. `has_answered`: etcd
/// has been reached at this address before, so that the address is right.
fn advice(why: &str, is_tls: bool, has_answered: bool) -> Option<&'static str> {
    let is_of = |texts: &[&str]| texts.iter().any(|text| why.contains(text));
    let is_closed = is_of(&["broken pipe", "connection reset", "Connection reset", "connection closed"]);
    match is_tls {
        false if is_closed && !has_answered => {
            Some("etcd closed the connection: does it want TLS? then --store etcds://... and --etcd-ca FILE")
        }
        true if is_of(&["handshake eof", "InvalidContentType"]) => {
            Some("there is no TLS at this address: does etcd want none? then --store etcd://...")
        }
        true if is_of(&["UnknownIssuer", "BadSignature"]) => Some(
            "etcd's certificate is not signed with the one in --etcd-ca: name the one that it is signed with",
        ),
        true if is_of(&["invalid peer certificate"]) => {
            Some("etcd's certificate is not good for this address")
        }
        true if is_of(&["alert: BadCertificate", "alert: CertificateRequired", "alert: UnknownCA"]) => {
            Some("etcd wants a certificate that it knows: name one with --etcd-cert and --etcd-key")
        }
        // It may close before its alert has been read.
        true if is_closed && !has_answered => Some(
            "etcd closed the connection: does it want a certificate that it knows? then name one with --etcd-cert and \
             --etcd-key",
        ),
        true | false => None,
    }
}

/// Reads one key.
pub(super) fn get(key: String) -> TxnOp {
    TxnOp::get(key, None)
}

/// Reads a range with these options.
pub(super) fn range(from: String, to: String, options: GetOptions) -> TxnOp {
    TxnOp::get(from, Some(options.with_range(to)))
}

/// The only key of an answer.
pub(super) fn only(found: &[KeyValue]) -> Option<&KeyValue> {
    found.first()
}

/// The only key of an answer, which cannot be missing.
pub(super) fn present<'a>(found: &'a [KeyValue], key: &str) -> Result<&'a KeyValue, Error> {
    found.first().ok_or_else(|| damaged(key.as_bytes(), "it is missing"))
}
