//! The store on real members of etcd.

pub(in crate::store) mod process;

use super::*;
use crate::store::conformance::{self, Bench};
use process::{Members, until};

const PREFIX: &str = "bench";

/// A journal on an etcd of one member.
struct EtcdBench {
    members: Members,
    open: Vec<Etcd>,
}

impl EtcdBench {
    async fn new() -> Self {
        EtcdBench { members: Members::start(1, &[]).await, open: Vec::new() }
    }
}

/// A client beside the store's.
async fn raw(members: &Members) -> etcd_client::Client {
    let url = format!("127.0.0.1:{}", members.members[0].client);
    etcd_client::Client::connect([url], None).await.unwrap()
}

impl Bench for EtcdBench {
    type Store = Etcd;

    async fn server(&mut self) -> Etcd {
        let store = self.members.open(PREFIX).await.unwrap();
        self.open.push(store.clone());
        store
    }

    /// etcd restarts too.
    async fn restart(&mut self) -> Etcd {
        self.open.clear();
        self.members.members[0].restart();
        let store = until("etcd is back", async || self.members.open(PREFIX).await.ok()).await;
        self.open.push(store.clone());
        store
    }

    async fn depose(&mut self, store: &Etcd, reign: Reign) {
        let lease = store.held(reign).unwrap().lease();
        raw(&self.members).await.lease_client().revoke(lease).await.unwrap();
    }
}

mod one_member {
    use super::*;
    conformance::suite!(EtcdBench::new().await);
}
