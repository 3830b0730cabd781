//! The cluster as a snapshot: what stands in for all records up to its revision.
//!
//! It is JSON, as records are. Readers ignore fields that they do not know, and take those that are missing for their
//! defaults; what an older program would misread needs a new [`FORMAT`], which that program then refuses. What can be
//! reckoned from the rest is left out: the checked spec is made again from the file.

use crate::cluster::Cluster;
use serde::{Deserialize, Serialize};
use std::sync::Arc;

/// The form that snapshots are written in.
pub const FORMAT: u32 = 1;

/// Why a snapshot cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum Unreadable {
    /// A later program wrote it.
    #[error(
        "it has format {found}, this program knows {FORMAT}: run the version that wrote it, or a later one"
    )]
    Newer {
        /// Its format.
        found: u32,
    },
    /// It is no snapshot.
    #[error("it is no snapshot of a cluster")]
    Malformed(#[from] serde_json::Error),
    /// The spec in it is none that this program accepts.
    #[error("the cluster declared in it is refused: {0}")]
    Spec(String),
}

#[derive(Serialize, Deserialize)]
struct Stored<C> {
    format: u32,
    cluster: C,
}

/// Only the format, whatever else there is.
#[derive(Deserialize)]
struct Format {
    format: u32,
}

/// A cluster, written out.
pub fn encode(cluster: &Cluster) -> Vec<u8> {
    serde_json::to_vec(&Stored { format: FORMAT, cluster }).expect("a cluster is plain data")
}

/// A cluster, read back: equal to the one that was written.
///
/// # Errors
/// If it was written by a later program, or is something else.
pub fn decode(bytes: &[u8]) -> Result<Cluster, Unreadable> {
    let Format { format } = serde_json::from_slice(bytes)?;
    if format > FORMAT {
        return Err(Unreadable::Newer { found: format });
    }
    let Stored { mut cluster, .. } = serde_json::from_slice::<Stored<Cluster>>(bytes)?;
    if let Some(file) = &cluster.spec_file {
        let spec = file.check().map_err(|rejection| Unreadable::Spec(rejection.message))?;
        cluster.spec = Arc::new(spec);
    }
    Ok(cluster)
}

/// Maps whose keys are no text, as lists of pairs: JSON has no other keys.
pub(crate) mod pairs {
    use serde::{Deserialize, Deserializer, Serialize, Serializer};
    use std::collections::BTreeMap;

    pub(crate) fn serialize<K, V, S>(map: &BTreeMap<K, V>, serializer: S) -> Result<S::Ok, S::Error>
    where
        K: Serialize,
        V: Serialize,
        S: Serializer,
    {
        serializer.collect_seq(map)
    }

    pub(crate) fn deserialize<'de, K, V, D>(deserializer: D) -> Result<BTreeMap<K, V>, D::Error>
    where
        K: Deserialize<'de> + Ord,
        V: Deserialize<'de>,
        D: Deserializer<'de>,
    {
        Ok(Vec::<(K, V)>::deserialize(deserializer)?.into_iter().collect())
    }
}
