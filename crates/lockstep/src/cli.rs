//! The command line: what an operator types, what is printed, and how it ends.

pub mod apply;
pub mod backup;
pub mod client;
pub mod conformance;
pub mod events;
pub mod explain;
pub mod finding;
pub mod freeze;
pub mod list;
pub mod migrate;
pub mod offline;
pub mod option;
pub mod output;
pub mod plan;
pub mod progress;
pub mod recover;
pub mod rehearse;
pub mod run;
pub mod servers;
pub mod status;
pub mod stream;
pub mod watch;

use crate::agent::{self, AgentError};
use crate::api::problem::Problem;
use crate::cause::chain;
use crate::config::ConfigError;
use crate::dev;
use crate::guard::{self, GuardOptions};
use crate::server::{self, ServerError};
use crate::spec_file::FileError;
use crate::store::Etcd;
use clap::error::ErrorKind;
use clap::{CommandFactory, Parser, Subcommand};
use client::{Client, ClientError};
use lockstep_core::id::HostName;
use lockstep_core::request::{Code, Rejection};
use miette::{GraphicalReportHandler, GraphicalTheme};
use option::{AgentOptions, DevOptions};
use output::{Colour, Form, clean, note, painted};
use std::env::{self, VarError};
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::process::ExitCode;
use tokio::signal::unix::{SignalKind, signal};
use tracing_subscriber::EnvFilter;

/// What `--version` says, also whether this build has the store in etcd: nothing else shows that before it is needed.
const VERSION: &str = if Etcd::IS_BUILT {
    concat!(env!("CARGO_PKG_VERSION"), " with etcd")
} else {
    concat!(env!("CARGO_PKG_VERSION"), " without etcd")
};

/// The variable that says whom to ask where no flag does.
const ADDRESSES: &str = "LOCKSTEP_ADDR";

/// How a command ends. Scripts rely on these numbers; they do not change.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Exit {
    /// Done; a transition committed, or there was nothing to do.
    Done = 0,
    /// It could not be done: a file, a server or a name that is not there.
    Error = 1,
    /// The command line is wrong.
    Usage = 2,
    /// Refused; nothing has changed. The code says why.
    Rejected = 3,
    /// The transition was decided no: no step was ordered.
    Aborted = 4,
    /// The transition was decided yes, a step failed for good, and every step was taken back.
    Undone = 5,
    /// The transition was decided yes, and named members could neither finish nor be taken back; a rehearsed fault
    /// would end so, or break a limit.
    Degraded = 6,
    /// The transition goes on; this command has stopped waiting for it.
    TimedOut = 7,
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        Self::from(exit as u8)
    }
}

/// Why a command did not do what it was asked to.
#[derive(Debug)]
pub enum Failure {
    /// Refused, with a code; nothing has changed.
    Rejected {
        /// The rejection code.
        code: String,
        /// What is in the way.
        message: String,
        /// What to do about it.
        help: String,
    },
    /// A file that could not be used.
    File(FileError),
    /// A host's configuration that could not be used.
    Config(Box<ConfigError>),
    /// Anything else.
    Error {
        /// What went wrong.
        message: String,
        /// What to do about it.
        help: Option<String>,
    },
}

impl Failure {
    /// Something went wrong.
    pub fn error(message: impl Into<String>) -> Self {
        Self::Error { message: message.into(), help: None }
    }

    /// Something went wrong, and this may help.
    pub fn helped(message: impl Into<String>, help: impl Into<String>) -> Self {
        Self::Error { message: message.into(), help: Some(help.into()) }
    }

    /// How the command ends.
    pub fn exit(&self) -> Exit {
        match self {
            Self::Rejected { .. } | Self::File(FileError::Refused(_)) => Exit::Rejected,
            Self::File(FileError::Read { .. }) | Self::Config(_) | Self::Error { .. } => Exit::Error,
        }
    }

    /// The rejection as data, where it is one.
    fn rejection(&self) -> Option<Refusal<'_>> {
        let (code, message, help) = match self {
            Self::Rejected { code, message, help } => (code.as_str(), message, help),
            Self::File(FileError::Refused(refused)) => (refused.code, &refused.message, &refused.help),
            Self::File(FileError::Read { .. }) | Self::Config(_) | Self::Error { .. } => return None,
        };
        Some(Refusal { rejection: Inner { code, message, help } })
    }

    /// Tells the user: a rejection as data on standard output where data was asked for, else all of it on standard
    /// error.
    fn tell(&self, form: Form) {
        if form != Form::Table
            && let Some(rejection) = self.rejection()
        {
            // What cannot be written cannot be told either; the exit code still says it.
            let _ = form.print(&rejection, String::new);
            return;
        }
        match self {
            Self::Rejected { code, message, help } => {
                note(&format!("{} {}", painted("rejected:", Colour::Red), clean(code)));
                note(&clean(message));
                note(&format!("help: {}", clean(help)));
            }
            Self::File(error) => show(error),
            Self::Config(error) => show(error.as_ref()),
            Self::Error { message, help } => {
                note(&format!("{} {}", painted("error:", Colour::Red), clean(message)));
                if let Some(help) = help {
                    note(&format!("help: {}", clean(help)));
                }
            }
        }
    }
}

impl From<ServerError> for Failure {
    fn from(error: ServerError) -> Self {
        Self::error(chain(&error))
    }
}

impl From<AgentError> for Failure {
    fn from(error: AgentError) -> Self {
        match error {
            AgentError::Config(error) => Self::Config(Box::new(error)),
            error @ (AgentError::Store(_) | AgentError::Record { .. } | AgentError::Plain { .. }) => {
                Self::error(chain(&error))
            }
        }
    }
}

/// Shows a place in a file.
fn show(error: &dyn miette::Diagnostic) {
    let theme =
        if output::has_colour() { GraphicalTheme::unicode() } else { GraphicalTheme::unicode_nocolor() };
    let handler = GraphicalReportHandler::new_themed(theme).with_links(false).with_width(100);
    let mut text = String::new();
    match handler.render_report(&mut text, error) {
        Ok(()) => note(text.trim_end()),
        Err(_) => note(&format!("error: {error}")),
    }
}

/// A rejection as data.
#[derive(serde::Serialize)]
struct Refusal<'a> {
    rejection: Inner<'a>,
}

#[derive(serde::Serialize)]
struct Inner<'a> {
    code: &'a str,
    message: &'a str,
    help: &'a str,
}

impl From<Rejection> for Failure {
    fn from(Rejection { code, message, help, .. }: Rejection) -> Self {
        Self::Rejected { code: code.to_string(), message, help }
    }
}

impl From<FileError> for Failure {
    fn from(error: FileError) -> Self {
        Self::File(error)
    }
}

impl From<ClientError> for Failure {
    fn from(error: ClientError) -> Self {
        match error {
            ClientError::NotActive(why) => Self::helped(
                format!("no server is active: {why}"),
                "see their logs and docs/etcd.md; lockstep status shows what was last read",
            ),
            ClientError::Away(why) => Self::helped(
                format!("no server answers: {why}"),
                "name one with --addr or LOCKSTEP_ADDR, such as http://127.0.0.1:7420; several with commas",
            ),
            ClientError::Refused(problem) => {
                let Problem { code, detail, help, .. } = *problem;
                let is_rejection = serde_json::from_value::<Code>(code.as_str().into()).is_ok();
                if is_rejection {
                    Self::Rejected { code, message: detail, help }
                } else {
                    Self::helped(detail, help)
                }
            }
        }
    }
}

/// Moves groups of servers from one state to another together.
#[derive(Debug, Parser)]
#[command(name = "lockstep", version = VERSION, propagate_version = true, max_term_width = 100)]
#[command(after_help = "Exit codes: 0 done, 1 error, 2 usage, 3 rejected, 4 aborted, 5 undone, 6 degraded, \
                        7 timed out waiting")]
pub struct Cli {
    /// Servers to ask, separated by commas [env: LOCKSTEP_ADDR] [default: http://127.0.0.1:7420]
    // The variable is read below: clap shows what comes from one as if it had to be given.
    #[arg(long, global = true, value_name = "URL", value_delimiter = ',', value_parser = option::server_url)]
    addr: Vec<String>,
    /// In which form to print data
    #[arg(short, long, global = true, value_name = "FORM", default_value = "table")]
    output: Form,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run a server, or stop one
    Server(recover::ServerArgs),
    /// Run this host's agent
    Agent(AgentOptions),
    /// The agent's own: what it starts to be outlived by
    #[command(hide = true)]
    Guard(GuardOptions),
    /// Run a server, agents and a small example on this machine
    Dev(DevOptions),
    /// Try out an agent of your own, as docs/protocol.md has it
    AgentConformance(conformance::ConformanceArgs),
    /// Declare the cluster; moves nothing
    Apply(apply::ApplyArgs),
    /// Show what a run would do, without doing it
    Plan(plan::PlanArgs),
    /// Show what a run would leave behind, for every single fault
    #[command(
        after_help = "Exit codes: 0 nothing breaks a limit or ends degraded, 3 the plan is refused, 4 it \
                            would abort even without a fault, 6 a case breaks a limit, ends degraded or does not end"
    )]
    Rehearse(rehearse::RehearseArgs),
    /// Move members to states, together
    Run(run::RunArgs),
    /// Move all members off a host, roles first, and plan nobody onto it
    Drain(run::DrainArgs),
    /// Bring a group back to its goals with its living members; groups with `recover` ask for it themselves
    Repair(run::RepairArgs),
    /// Let a drained host take members again; moves nothing
    Undrain {
        /// The host
        #[arg(value_name = "HOST")]
        host: HostName,
    },
    /// Keep planned transitions from moving groups, or anything
    Freeze(freeze::FreezeArgs),
    /// Let planned transitions move groups again that were frozen
    Thaw(freeze::ThawArgs),
    /// Make sure that a host has stopped, so that others may take the places of its members
    Fence(recover::FenceArgs),
    /// Say where a member is that cannot tell
    Resolve(recover::ResolveArgs),
    /// Abort a transition that is not decided yet
    Abort {
        /// The transition, such as t42
        #[arg(value_name = "ID")]
        id: lockstep_core::id::TransitionId,
    },
    /// Show groups, open transitions, what is wrong and what to do next
    Status {
        /// Show it again whenever something has changed
        #[arg(short, long)]
        watch: bool,
        /// Print the state as JSON for `plan --state`, `rehearse --state` and `explain --state`
        #[arg(long, conflicts_with = "watch")]
        export: bool,
    },
    /// Show what has happened, one line each
    Events(events::EventsArgs),
    /// Say why two groups are related, or why a transition went as it did
    Explain(explain::ExplainArgs),
    /// Hosts
    Host {
        #[command(subcommand)]
        verb: list::HostVerb,
    },
    /// Groups
    Group {
        #[command(subcommand)]
        verb: list::GroupVerb,
    },
    /// Members: groups' places on hosts
    Member {
        #[command(subcommand)]
        verb: list::MemberVerb,
    },
    /// Transitions
    Transition {
        #[command(subcommand)]
        verb: list::TransitionVerb,
    },
    /// Relations between groups
    Relation {
        #[command(subcommand)]
        verb: list::RelationVerb,
    },
    /// Write the whole cluster to one file
    Backup(backup::BackupArgs),
    /// Make a server's directory from a backup; the server is started on it afterwards
    Restore(backup::RestoreArgs),
    /// Copy the journal of servers that do not run into another store: a directory, or etcd
    Migrate(migrate::MigrateArgs),
    /// Print a script that completes this command's arguments
    Completions {
        /// Which shell
        shell: clap_complete::Shell,
    },
    /// Print this command's manual page, or write those of all commands
    Man {
        /// Where to write them; made when it is not there
        #[arg(value_name = "DIR")]
        dir: Option<PathBuf>,
    },
}

/// Reads the command line, does it, and tells how it went.
pub fn main() -> ExitCode {
    let cli = Cli::try_parse().and_then(|cli| Ok(Cli { addr: addresses(cli.addr)?, ..cli }));
    let cli = match cli {
        Ok(cli) => cli,
        Err(error) => {
            // Help and version are data; clap knows which it is and where it goes.
            let _ = error.print();
            return if error.use_stderr() { Exit::Usage } else { Exit::Done }.into();
        }
    };
    let form = cli.output;
    match dispatch(cli) {
        Ok(exit) => exit.into(),
        Err(failure) => {
            failure.tell(form);
            failure.exit().into()
        }
    }
}

/// Whom to ask: what is given, else what the environment says, else a server on this machine.
fn addresses(given: Vec<String>) -> Result<Vec<String>, clap::Error> {
    if !given.is_empty() {
        return Ok(given);
    }
    let text = match env::var(ADDRESSES) {
        Ok(text) => text,
        Err(VarError::NotPresent) => format!("http://{}", option::LISTEN_DEFAULT),
        Err(VarError::NotUnicode(text)) => text.to_string_lossy().into_owned(),
    };
    text.split(',').map(option::server_url).collect::<Result<_, _>>().map_err(|why| {
        let text = text.escape_debug();
        Cli::command()
            .error(ErrorKind::ValueValidation, format!("invalid value '{text}' of {ADDRESSES}: {why}"))
    })
}

fn dispatch(cli: Cli) -> Result<Exit, Failure> {
    let Cli { addr, output: form, command } = cli;
    match command {
        Command::Server(recover::ServerArgs { options, verb: None }) => {
            staying("info", async |told| server::run(options, told).await.map_err(Failure::from))
        }
        Command::Server(recover::ServerArgs { verb: Some(verb), .. }) => {
            asking(addr, async |client| recover::server(client, verb, form).await)
        }
        Command::Agent(options) => staying("info", async |told| {
            until(told, async { agent::run(options).await.map_err(Failure::from) }).await
        }),
        Command::Guard(options) => {
            guard::run(&options).map(|()| Exit::Done).map_err(|error| Failure::error(chain(&error)))
        }
        Command::AgentConformance(args) => conformance::conformance(args, form),
        Command::Dev(options) => {
            // It goes when nothing that writes to it runs any more.
            let place = dev::Place::of(&options);
            staying("warn", async |told| until(told, dev::run(options, place.dir())).await)
        }
        Command::Plan(args) if args.is_offline() => plan::offline(&args, form),
        Command::Rehearse(args) if args.is_offline() => rehearse::offline(&args, form),
        Command::Backup(args) if args.is_offline() => backup::offline(&args, form),
        Command::Restore(args) => backup::restore(&args, form),
        Command::Migrate(args) => migrate::migrate(&args, form),
        Command::Completions { shell } => {
            let mut script = Vec::new();
            clap_complete::generate(shell, &mut Cli::command(), "lockstep", &mut script);
            output::data(&String::from_utf8_lossy(&script)).map(|()| Exit::Done)
        }
        Command::Man { dir } => man(dir.as_deref()),
        Command::Backup(args) => asking(addr, async |client| backup::online(client, &args, form).await),
        Command::Apply(args) => asking(addr, async |client| apply::apply(client, &args, form).await),
        Command::Plan(args) => asking(addr, async |client| plan::online(client, &args, form).await),
        Command::Rehearse(args) => asking(addr, async |client| rehearse::online(client, &args, form).await),
        Command::Run(args) => asking(addr, async |client| run::run(client, args, form).await),
        Command::Drain(args) => asking(addr, async |client| run::run(client, args.into(), form).await),
        Command::Repair(args) => asking(addr, async |client| run::run(client, args.into(), form).await),
        Command::Undrain { host } => asking(addr, async |client| run::undrain(client, &host, form).await),
        Command::Freeze(args) => asking(addr, async |client| freeze::freeze(client, args, form).await),
        Command::Thaw(args) => asking(addr, async |client| freeze::thaw(client, args, form).await),
        Command::Fence(args) => asking(addr, async |client| recover::fence(client, args, form).await),
        Command::Resolve(args) => asking(addr, async |client| recover::resolve(client, args, form).await),
        Command::Abort { id } => asking(addr, async |client| run::abort(client, id, form).await),
        Command::Status { export: true, .. } => asking(addr, async |client| status::export(client).await),
        Command::Status { watch, export: false } => {
            asking(addr, async |client| status::status(client, watch, form).await)
        }
        Command::Events(args) => asking(addr, async |client| events::events(client, args, form).await),
        Command::Explain(args) if args.is_offline() => explain::offline(&args, form),
        Command::Explain(args) => asking(addr, async |client| explain::explain(client, args, form).await),
        Command::Host { verb } => asking(addr, async |client| list::hosts(client, verb, form).await),
        Command::Group { verb } => asking(addr, async |client| list::groups(client, verb, form).await),
        Command::Member { verb } => asking(addr, async |client| list::members(client, verb, form).await),
        Command::Transition { verb } => {
            asking(addr, async |client| list::transitions(client, verb, form).await)
        }
        Command::Relation { verb } => asking(addr, async |client| list::relations(client, verb, form).await),
    }
}

/// Without a directory the page of the whole, for `man -l -`.
fn man(dir: Option<&Path>) -> Result<Exit, Failure> {
    let Some(dir) = dir else {
        let mut page = Vec::new();
        let rendered = clap_mangen::Man::new(Cli::command()).render(&mut page);
        rendered.expect("a Vec takes all");
        return output::data(&String::from_utf8_lossy(&page)).map(|()| Exit::Done);
    };
    let written = std::fs::create_dir_all(dir).and_then(|()| clap_mangen::generate_to(Cli::command(), dir));
    written.map_err(|error| Failure::error(format!("cannot write to {}: {error}", dir.display())))?;
    Ok(Exit::Done)
}

/// Comes when a signal tells the process to end.
type Told = Pin<Box<dyn Future<Output = ()>>>;

/// Runs until it fails or is told to stop. Stopping needs no farewell: what was acknowledged is durable, and
/// nothing else was said.
async fn until(told: Told, command: impl Future<Output = Result<(), Failure>>) -> Result<(), Failure> {
    tokio::select! {
        done = command => done,
        () = told => Ok(()),
    }
}

/// Runs what stays until it ends, which it is told by signals. `log` is what it logs unless `RUST_LOG` says otherwise.
fn staying(log: &str, command: impl AsyncFnOnce(Told) -> Result<(), Failure>) -> Result<Exit, Failure> {
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new(log));
    // Whoever reads the log may go, as journald does when it is restarted: that must not end us.
    let log = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    let log = log.with_ansi(output::has_colour());
    log.log_internal_errors(false).init();
    let failed = |error: std::io::Error| Failure::error(format!("cannot start: {error}"));
    // Half the processors: the journal has a thread of its own, and what passes from one worker to another costs more
    // than it gains while there are few. `TOKIO_WORKER_THREADS` says otherwise.
    let processors = std::thread::available_parallelism().map_or(1, usize::from);
    let mut runtime = tokio::runtime::Builder::new_multi_thread();
    if std::env::var_os("TOKIO_WORKER_THREADS").is_none() {
        runtime.worker_threads((processors / 2).max(1));
    }
    let runtime = runtime.enable_all().build().map_err(failed)?;
    runtime.block_on(async {
        let mut terminate = signal(SignalKind::terminate()).map_err(failed)?;
        let mut interrupt = signal(SignalKind::interrupt()).map_err(failed)?;
        let told = async move {
            tokio::select! {
                _ = terminate.recv() => {}
                _ = interrupt.recv() => {}
            }
        };
        command(Box::pin(told)).await.map(|()| Exit::Done)
    })
}

/// Does what asks a server.
fn asking(
    addresses: Vec<String>,
    command: impl AsyncFnOnce(&Client) -> Result<Exit, Failure>,
) -> Result<Exit, Failure> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.map_err(|error| Failure::error(format!("cannot start: {error}")))?;
    let client = Client::new(addresses)?;
    runtime.block_on(command(&client))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }
}
