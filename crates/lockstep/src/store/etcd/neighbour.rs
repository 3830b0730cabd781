//! Other clusters' prefixes: none may lie within another's, whose reads and whose deletions would meet its keys.

use super::Shared;
use super::client::{get, only, range};
use crate::store::Error;
use etcd_client::GetOptions;
use tracing::debug;

/// How many keys that are none of ours are looked at in each gap between ours. A cluster has few of its own before its
/// `format`.
const FOREIGN_MAX: i64 = 1000;
const HELP: &str = "give each cluster a prefix that lies in no other's, such as /lockstep-a and /lockstep-b";

impl Shared {
    /// Refuses a prefix within that of another cluster, or with one within it.
    pub(super) async fn check_neighbours(&self) -> Result<(), Error> {
        let own = self.keys.all();
        for outer in self.keys.outer() {
            // This user may have no right to look there; others than this one then have none to see this prefix.
            match self.cluster.read("look for other clusters", vec![get(outer.format())]).await {
                Ok(answer) if only(answer.found(0)).is_some() => {
                    let reason =
                        format!("its prefix {own} lies within {}, that of another cluster", outer.all());
                    return Err(self.cluster.unusable(reason, HELP));
                }
                Ok(_) => {}
                Err(error @ Error::Unusable { .. }) => {
                    debug!(%error, "nobody can say whose prefix is around")
                }
                Err(error) => return Err(error),
            }
        }
        let begun = self.cluster.read("look for other clusters", vec![get(self.keys.format())]).await?;
        let keys_only = GetOptions::new().with_keys_only().with_limit(FOREIGN_MAX);
        let gaps = self.keys.gaps(only(begun.found(0)).is_some());
        let reads = gaps.iter().map(|(from, to)| range(from.clone(), to.clone(), keys_only.clone()));
        let answer = self.cluster.read("look for other clusters", reads.collect()).await?;
        let found = (0..gaps.len()).flat_map(|at| answer.found(at));
        for key in found.map(|found| String::from_utf8_lossy(found.key())) {
            if let Some(inner) =
                key.strip_suffix("format").filter(|inner| inner.ends_with('/') && *inner != own)
            {
                let reason = format!("the prefix {inner} of another cluster lies within its prefix {own}");
                return Err(self.cluster.unusable(reason, HELP));
            }
        }
        Ok(())
    }
}
