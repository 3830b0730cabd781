//! What a transition is beside: the same two phases as one writes them by hand over keys and watches of etcd.
//!
//! A coordinator writes a key for each participant, in one transaction; each participant watches its key and writes its
//! vote; the coordinator watches the votes and writes the decision; each participant watches that and acknowledges it;
//! the coordinator watches until all have. Participants are on hosts of their own: each has its own connection, spread
//! over the members. Nobody plans, records, notices who is gone, or fences anybody.

use super::member::Members;
use super::url;
use etcd_client::{Client, Txn, TxnOp, WatchOptions, WatchStream};
use std::time::{Duration, Instant};
use tokio::task::JoinSet;

/// What a vote of ours takes, about.
const VALUE: [u8; 120] = [b'x'; 120];

pub(super) struct ByHand {
    client: Client,
    votes: WatchStream,
    acks: WatchStream,
    count: usize,
    /// They end with this.
    _participants: JoinSet<()>,
}

impl ByHand {
    /// So many participants that watch.
    pub(super) async fn start(members: &Members, count: usize) -> Self {
        let connect = async |place: usize| {
            let url = url(members, place % members.ports.len());
            Client::connect([url], None).await.expect("etcd")
        };
        let mut participants = JoinSet::new();
        for place in 0..count {
            let mut client = connect(place).await;
            let mut prepare = watch(&mut client, &prepare(place), WatchOptions::new()).await;
            let mut decision = watch(&mut client, "hand/decision", WatchOptions::new()).await;
            participants.spawn(async move {
                loop {
                    events(&mut prepare).await;
                    client.put(format!("hand/vote/{place:03}"), VALUE, None).await.expect("etcd");
                    events(&mut decision).await;
                    client.put(format!("hand/ack/{place:03}"), VALUE, None).await.expect("etcd");
                }
            });
        }
        let mut client = connect(0).await;
        let votes = watch(&mut client, "hand/vote/", WatchOptions::new().with_prefix()).await;
        let acks = watch(&mut client, "hand/ack/", WatchOptions::new().with_prefix()).await;
        Self { client, votes, acks, count, _participants: participants }
    }

    /// Both phases once, until all have acknowledged.
    pub(super) async fn exchange(&mut self) -> Duration {
        let begun = Instant::now();
        let puts: Vec<_> = (0..self.count).map(|place| TxnOp::put(prepare(place), VALUE, None)).collect();
        self.client.txn(Txn::new().and_then(puts)).await.expect("etcd");
        let mut votes = 0;
        while votes < self.count {
            votes += events(&mut self.votes).await;
        }
        self.client.put("hand/decision", VALUE, None).await.expect("etcd");
        let mut acks = 0;
        while acks < self.count {
            acks += events(&mut self.acks).await;
        }
        begun.elapsed()
    }
}

fn prepare(place: usize) -> String {
    format!("hand/prepare/{place:03}")
}

async fn watch(client: &mut Client, key: &str, options: WatchOptions) -> WatchStream {
    client.watch(key, Some(options)).await.expect("etcd")
}

/// How many came next.
async fn events(stream: &mut WatchStream) -> usize {
    loop {
        let said = stream.message().await.expect("etcd").expect("the watch goes on");
        if !said.events().is_empty() {
            return said.events().len();
        }
    }
}
