//! What a write to etcd takes that waits for nothing else.

use super::member::Members;
use super::url;
use etcd_client::{Client, Txn, TxnOp};
use std::time::{Duration, Instant};

/// A client that writes to one member and waits for nothing else.
pub(super) struct Bare(Client);

impl Bare {
    /// Asks the member that servers ask too.
    pub(super) async fn connect(members: &Members) -> Self {
        Self(Client::connect([url(members, 0)], None).await.expect("etcd"))
    }

    /// The time of one put of so many bytes.
    pub(super) async fn put(&mut self, bytes: usize) -> Duration {
        let begun = Instant::now();
        self.0.put("bare", vec![b'x'; bytes], None).await.expect("etcd");
        begun.elapsed()
    }

    /// The time of one transaction as an append has it: two conditions, so many bytes, and a number.
    pub(super) async fn append(&mut self, bytes: usize) -> Duration {
        use etcd_client::{Compare, CompareOp};
        let absent = |key: &str| Compare::create_revision(key, CompareOp::Equal, 0);
        let puts = [TxnOp::put("bare", vec![b'x'; bytes], None), TxnOp::put("bare-head", "1", None)];
        let txn = Txn::new().when([absent("absent"), absent("absent-too")]).and_then(puts);
        let begun = Instant::now();
        self.0.txn(txn).await.expect("etcd");
        begun.elapsed()
    }

    /// The revision of all that was written.
    pub(super) async fn revision(&mut self) -> i64 {
        let answer = self.0.get("bare", None).await.expect("etcd");
        answer.header().expect("every answer has one").revision()
    }
}
