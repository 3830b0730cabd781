//! Journals of servers and agents, read from copies of their files through core's own log: what is damaged is found, and
//! the files stay as they are.

use lockstep_core::agent::AgentRecord;
use lockstep_core::cluster::Cluster;
use lockstep_core::id::Index;
use lockstep_core::log::{Disk, Entry, Log, MemDisk};
use lockstep_core::record::Record;
use lockstep_core::snapshot;
use std::fs;
use std::path::Path;

/// How much is read at a time.
const READ_BYTES: usize = 4 << 20;

fn open(dir: &Path) -> Result<Log<MemDisk>, String> {
    let mut disk = MemDisk::new();
    for entry in fs::read_dir(dir).map_err(|error| format!("{}: {error}", dir.display()))? {
        let path = entry.map_err(|error| error.to_string())?.path();
        if !path.is_file() {
            continue;
        }
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let bytes = fs::read(&path).map_err(|error| format!("{}: {error}", path.display()))?;
        disk.write_at(&name, 0, &bytes).map_err(|error| error.to_string())?;
        disk.sync(&name).map_err(|error| error.to_string())?;
    }
    disk.sync_dir().map_err(|error| error.to_string())?;
    Log::open(disk).map_err(|error| format!("{}: {error}", dir.display()))
}

fn entries(log: &Log<MemDisk>, mut from: Index) -> Result<Vec<Entry>, String> {
    let mut all = Vec::new();
    loop {
        let some = log.read(from, READ_BYTES).map_err(|error| error.to_string())?;
        let Some(last) = some.last() else { return Ok(all) };
        from = Index(last.index.0 + 1);
        all.extend(some);
    }
}

/// All of an agent's journal; what stands for its beginning, when that is gone, comes first.
pub(crate) fn agent(dir: &Path) -> Result<Vec<AgentRecord>, String> {
    let log = open(dir)?;
    let snapshot = log.load_snapshot().map_err(|error| error.to_string())?;
    let (mut records, from): (Vec<AgentRecord>, _) = match snapshot {
        Some(snapshot) => {
            let records = serde_json::from_slice(&snapshot.bytes).map_err(|error| error.to_string())?;
            (records, Index(snapshot.index.0 + 1))
        }
        None => (Vec::new(), Index(1)),
    };
    for entry in entries(&log, from)? {
        records.push(serde_json::from_slice(&entry.payload).map_err(|error| error.to_string())?);
    }
    Ok(records)
}

/// The cluster that a server's journal comes to.
pub(crate) fn server(dir: &Path) -> Result<Cluster, String> {
    let log = open(dir)?;
    let mut cluster = match log.load_snapshot().map_err(|error| error.to_string())? {
        Some(found) => snapshot::decode(&found.bytes).map_err(|error| error.to_string())?,
        None => Cluster::default(),
    };
    for entry in entries(&log, Index(cluster.revision.0 + 1))? {
        let record: Record = serde_json::from_slice(&entry.payload).map_err(|error| error.to_string())?;
        cluster.apply(entry.index, &record);
    }
    Ok(cluster)
}
