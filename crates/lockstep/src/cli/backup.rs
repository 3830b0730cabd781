//! `lockstep backup` and `lockstep restore`: a cluster as one file, and back.

use super::client::{Client, ClientError};
use super::option::directory;
use super::output::{Form, clean, note};
use super::{Exit, Failure};
use crate::cause::chain;
use crate::server::{Replayed, ServerError};
use crate::store::{Embedded, Journal};
use clap::Args;
use lockstep_core::backup;
use lockstep_core::cluster::Cluster;
use lockstep_core::snapshot;
use lockstep_core::time::WallTime;
use serde::Serialize;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

/// A backup holds what the journal does: nobody else reads it.
const FILE_MODE: u32 = 0o600;

/// `lockstep backup`.
#[derive(Debug, Args)]
pub struct BackupArgs {
    /// Where to write it; a file that is there is replaced once the new one is whole
    #[arg(value_name = "FILE")]
    file: PathBuf,
    /// Read the directory of a server that does not run, instead of asking one that does
    #[arg(long, value_name = "DIR", value_parser = directory())]
    data: Option<PathBuf>,
}

/// `lockstep restore`.
#[derive(Debug, Args)]
pub struct RestoreArgs {
    /// Directory of the journal to make; nothing of a server may be in it
    #[arg(long, value_name = "DIR", value_parser = directory())]
    data: PathBuf,
    /// The backup
    #[arg(value_name = "FILE")]
    file: PathBuf,
}

impl BackupArgs {
    /// Whether no server is asked.
    pub fn is_offline(&self) -> bool {
        self.data.is_some()
    }
}

#[derive(Debug, Serialize)]
struct Report {
    file: PathBuf,
    /// The revision that is in the backup.
    revision: u64,
    /// The revision that the restored server goes on from; null for a backup.
    goes_on_from: Option<u64>,
    transitions: usize,
    hosts: usize,
}

/// Asks a running server, checks what it says, and writes it down.
pub async fn online(client: &Client, args: &BackupArgs, form: Form) -> Result<Exit, Failure> {
    // One that stands by may not have read what was acknowledged last.
    let bytes = match client.download("/v1/backup?consistent=true").await {
        Ok(bytes) => bytes,
        Err(error @ ClientError::Away(_)) => return Err(error.into()),
        Err(error @ (ClientError::NotActive(_) | ClientError::Refused(_))) => {
            let bytes = client.download("/v1/backup").await?;
            note(&format!("note: it may lack what was acknowledged last: {}", clean(error.why())));
            bytes
        }
    };
    let cluster = open(&bytes, "what the server answers")?;
    write(&args.file, &bytes).map_err(|error| unwritten(&args.file, &error))?;
    report(form, args.file.clone(), &cluster, None)
}

/// Reads the directory of a server that does not run.
pub fn offline(args: &BackupArgs, form: Form) -> Result<Exit, Failure> {
    let data = args.data.clone().expect("the caller has looked");
    // Opening a directory makes what is missing: an empty backup of a misspelt name would look like a good one.
    if !data.join("log").exists() {
        let help = "name the --data directory of a server; one that runs is asked without --data";
        return Err(Failure::helped(format!("there is no journal in {}", data.display()), help));
    }
    let cluster = blocking(async {
        let store = Embedded::open(&data).await.map_err(ServerError::from)?;
        let mut replayed = Replayed::default();
        replayed.catch_up(&store).await?;
        let cluster = replayed.cluster;
        store.close().await;
        Ok(cluster)
    })?;
    write(&args.file, &backup::seal(&cluster)).map_err(|error| unwritten(&args.file, &error))?;
    report(form, args.file.clone(), &cluster, None)
}

/// Makes a server's directory from a backup.
pub fn restore(args: &RestoreArgs, form: Form) -> Result<Exit, Failure> {
    let shown = args.file.display();
    let bytes =
        fs::read(&args.file).map_err(|error| Failure::error(format!("cannot read {shown}: {error}")))?;
    let backup = open(&bytes, &shown.to_string())?;
    let revision = backup.revision.0;
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_millis();
    let cluster = backup.restored(WallTime(u64::try_from(now).unwrap_or(u64::MAX)));
    let (index, reign, bytes) = (cluster.revision, cluster.reign, snapshot::encode(&cluster));
    blocking(async {
        let journal = Journal::restore(&args.data, index, reign, bytes).await.map_err(ServerError::from)?;
        journal.close().await;
        Ok(())
    })?;
    note("members are shown where they are as soon as their hosts have said it; what they report is adopted");
    report(form, args.data.clone(), &cluster, Some(revision))
}

/// Reports a backup, or what was restored from one of `backup`'s revision.
fn report(form: Form, file: PathBuf, cluster: &Cluster, backup: Option<u64>) -> Result<Exit, Failure> {
    let goes_on_from = backup.map(|_| cluster.revision.0);
    let report = Report {
        file,
        revision: backup.unwrap_or(cluster.revision.0),
        goes_on_from,
        transitions: cluster.transitions.len(),
        hosts: cluster.hosts.len(),
    };
    form.print(&report, || {
        let Report { file, revision, transitions, hosts, .. } = &report;
        let (file, what) = (file.display(), if backup.is_some() { "restored from" } else { "holds" });
        let on = goes_on_from.map(|index| format!("; it goes on from {index}")).unwrap_or_default();
        format!("{file} {what} revision {revision}: {hosts} hosts, {transitions} transitions{on}")
    })?;
    Ok(Exit::Done)
}

fn open(bytes: &[u8], what: &str) -> Result<Cluster, Failure> {
    backup::open(bytes).map_err(|error| Failure::error(format!("{what} cannot be used: {}", chain(&error))))
}

fn blocking<T>(work: impl Future<Output = Result<T, ServerError>>) -> Result<T, Failure> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.map_err(|error| Failure::error(format!("cannot start: {error}")))?;
    Ok(runtime.block_on(work)?)
}

/// Writes a file beside its place, and moves it there when it is on the disk: whoever is killed meanwhile leaves the
/// older one.
fn write(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(".new");
    let aside = path.with_file_name(name);
    let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(FILE_MODE).open(&aside)?;
    file.write_all(bytes)?;
    file.sync_all()?;
    fs::rename(&aside, path)?;
    let dir = path.parent().filter(|dir| *dir != Path::new("")).unwrap_or(Path::new("."));
    File::open(dir)?.sync_all()
}

fn unwritten(path: &Path, error: &io::Error) -> Failure {
    Failure::error(format!("cannot write {}: {error}", path.display()))
}
