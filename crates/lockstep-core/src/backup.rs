//! A backup: one file with a snapshot in it, and a checksum over all of that.
//!
//! The first line is JSON: the form's version, and the length and SHA-256 of what follows. The rest is the snapshot.

use crate::cluster::Cluster;
use crate::id::hex;
use crate::snapshot::{self, Unreadable};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

/// The form that backups are written in.
const VERSION: u32 = 1;

/// Why a file is no backup to restore from.
#[derive(Debug, thiserror::Error)]
pub enum Unsound {
    /// It does not begin as one does.
    #[error("it is no backup of lockstep")]
    Foreign,
    /// Another program wrote it, probably a later one.
    #[error(
        "it has version {found}, this program knows {VERSION}: run the version that wrote it, or a later one"
    )]
    Version {
        /// Its version.
        found: u32,
    },
    /// It is shorter or longer than it says.
    #[error("it holds {found} bytes after its first line, which says {bytes}: it was cut, or has grown")]
    Length {
        /// What it says.
        bytes: u64,
        /// What it holds.
        found: u64,
    },
    /// It has changed.
    #[error("its checksum is another one than its first line says: it is damaged")]
    Checksum,
    /// It is whole, and this version cannot read what is in it.
    #[error("what is in it cannot be read")]
    Snapshot(#[from] Unreadable),
}

#[derive(Serialize, Deserialize)]
struct Head {
    lockstep_backup: u32,
    bytes: u64,
    sha256: String,
}

fn sha256(bytes: &[u8]) -> String {
    hex(&Sha256::digest(bytes))
}

/// The backup of a cluster.
pub fn seal(cluster: &Cluster) -> Vec<u8> {
    let snapshot = snapshot::encode(cluster);
    let head = Head { lockstep_backup: VERSION, bytes: snapshot.len() as u64, sha256: sha256(&snapshot) };
    let mut file = serde_json::to_vec(&head).expect("plain data");
    file.push(b'\n');
    file.extend(snapshot);
    file
}

/// The cluster in a backup, after every byte of it has been checked.
///
/// # Errors
/// Unless it is what was sealed.
pub fn open(file: &[u8]) -> Result<Cluster, Unsound> {
    let end = file.iter().position(|byte| *byte == b'\n').ok_or(Unsound::Foreign)?;
    let (line, rest) = (&file[..end], &file[end + 1..]);
    let head: Head = serde_json::from_slice(line).map_err(|_| Unsound::Foreign)?;
    if head.lockstep_backup != VERSION {
        return Err(Unsound::Version { found: head.lockstep_backup });
    }
    if head.bytes != rest.len() as u64 {
        return Err(Unsound::Length { bytes: head.bytes, found: rest.len() as u64 });
    }
    if head.sha256 != sha256(rest) {
        return Err(Unsound::Checksum);
    }
    Ok(snapshot::decode(rest)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_byte_of_a_backup_counts() {
        let file = seal(&Cluster::default());
        assert_eq!(open(&file).unwrap(), Cluster::default());
        for at in 0..file.len() {
            for bit in 0..8 {
                let mut changed = file.clone();
                changed[at] ^= 1 << bit;
                open(&changed).unwrap_err();
            }
            open(&file[..at]).unwrap_err();
        }
        open(&[&file[..], b" "].concat()).unwrap_err();
        let later = String::from_utf8(file).unwrap().replacen(r#"backup":1"#, r#"backup":2"#, 1);
        assert!(matches!(open(later.as_bytes()), Err(Unsound::Version { found: 2 })));
    }
}
