//! `lockstep migrate`: the journal of servers that do not run, from one store into another.

use super::option::EtcdOptions;
use super::output::{Form, note};
use super::{Exit, Failure};
use crate::server::ServerError;
use crate::store::{self, Copied};
use clap::Args;
use serde::Serialize;

/// `lockstep migrate`.
#[derive(Debug, Args)]
pub struct MigrateArgs {
    /// Where the journal is: a server's directory, or etcd://HOST:PORT[,HOST:PORT...][/PREFIX]
    #[arg(long, value_name = "STORE")]
    from: String,
    /// Where it goes: a directory or a prefix in which there is nothing
    #[arg(long, value_name = "STORE")]
    to: String,
    #[command(flatten)]
    etcd: EtcdOptions,
}

#[derive(Debug, Serialize)]
struct Report {
    from: String,
    to: String,
    /// The last revision.
    revision: u64,
    /// The last reign; the next one is higher.
    reign: u64,
    /// The revision of the snapshot that was copied, if there was one.
    snapshot: Option<u64>,
    /// How many records follow it.
    records: u64,
    /// Of all that was read from the source, and of all that was read back.
    sha256: Sums,
}

#[derive(Debug, Serialize)]
struct Sums {
    from: String,
    to: String,
}

/// Copies it, and compares the copy with what was read.
pub fn migrate(args: &MigrateArgs, form: Form) -> Result<Exit, Failure> {
    let MigrateArgs { from, to, etcd } = args;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.map_err(|error| Failure::error(format!("cannot start: {error}")))?;
    let copied = runtime.block_on(store::migrate(from, to, etcd)).map_err(ServerError::from)?;
    let Copied { head, reign, snapshot, entries, source_sha256, target_sha256 } = copied;
    let report = Report {
        from: from.clone(),
        to: to.clone(),
        revision: head.0,
        reign: reign.0,
        snapshot: snapshot.map(|index| index.0),
        records: entries,
        sha256: Sums { from: source_sha256, to: target_sha256 },
    };
    form.print(&report, || {
        let Report { from, to, revision, reign, records, sha256, .. } = &report;
        let after = match report.snapshot {
            Some(index) => format!(" after the snapshot of revision {index}"),
            None => String::new(),
        };
        format!(
            "{to} holds revision {revision}, reign {reign}: {records} records{after}\n\
             sha256 {} {from}\n\
             sha256 {} {to}",
            sha256.from, sha256.to
        )
    })?;
    note("start servers on the new store; on the old one none begins any more");
    Ok(Exit::Done)
}
