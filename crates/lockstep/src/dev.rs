//! `lockstep dev`: a server, agents and a small example in one process, for a first look.
//!
//! The example is pretend software: each member is a file that holds its state, moved by a real handler in a
//! process of its own. Everything else is what a real cluster has.

use crate::agent;
use crate::cli::Failure;
use crate::cli::option::{AgentOptions, DevOptions, EtcdOptions, ServerOptions};
use crate::server::Server;
use lockstep_core::cluster::Cluster;
use lockstep_core::id::HostName;
use std::fs;
use std::io::{self, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

const SPEC: &str = include_str!("dev/cluster.toml");
const HANDLER: &str = include_str!("dev/handler.sh");

/// The hosts of the example: name, role, and the state its software is in at first.
const HOSTS: [(&str, &str, &str); 5] = [
    ("pg-a", "db", "primary"),
    ("pg-b", "db", "standby"),
    ("pg-c", "db", "standby"),
    ("app-1", "app", "online"),
    ("app-2", "app", "online"),
];

/// Where everything of the example is kept: the directory that was named, or one for this time only.
#[derive(Debug)]
pub struct Place {
    dir: PathBuf,
    is_temporary: bool,
}

impl Place {
    /// The one that `options` ask for. Nothing is made yet.
    #[must_use]
    pub fn of(options: &DevOptions) -> Self {
        let temporary = || std::env::temp_dir().join(format!("lockstep-dev-{}", &agent::random()[..8]));
        let dir = options.data.clone();
        Self { is_temporary: dir.is_none(), dir: dir.unwrap_or_else(temporary) }
    }

    /// Its directory.
    #[must_use]
    pub fn dir(&self) -> &Path {
        &self.dir
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        if !self.is_temporary {
            return;
        }
        if let Err(error) = fs::remove_dir_all(&self.dir)
            && error.kind() != io::ErrorKind::NotFound
        {
            eprintln!("could not remove {}: {error}", self.dir.display());
        }
    }
}

/// Runs the example in a directory until the process ends.
///
/// # Errors
/// If its directory or its address cannot be used.
pub async fn run(options: DevOptions, dir: &Path) -> Result<(), Failure> {
    let files =
        lay_out(dir).map_err(|error| Failure::error(format!("cannot use {}: {error}", dir.display())))?;
    let server = Server::start(&ServerOptions {
        data: Some(dir.join("server")),
        listen: options.listen,
        store: None,
        etcd: EtcdOptions::default(),
        name: None,
        advertise: None,
        insecure: false,
    })
    .await
    .map_err(|error| match error {
        crate::server::ServerError::Listen { listen, source } => Failure::Error {
            message: format!("cannot listen on {listen}: {source}"),
            help: Some(
                "something else has the port; choose another: lockstep dev --listen 127.0.0.1:0".to_owned(),
            ),
        },
        other => other.into(),
    })?;
    let url = format!("http://{}", server.address);
    let spec = toml::from_str(SPEC).expect("the example is a valid spec");
    let handle = server.handle.clone();
    let serving = tokio::spawn(server.serve());
    handle.apply(spec, "dev".to_owned()).await.map_err(|rejection| Failure::error(rejection.message))?;
    for (name, role, _) in HOSTS {
        let options = AgentOptions {
            server: vec![url.clone()],
            name: HostName::new(name).expect("a constant that is a valid name"),
            address: Some("127.0.0.1".to_owned()),
            labels: vec![("role".to_owned(), role.to_owned())],
            data: dir.join("agents").join(name),
            config: Some(dir.join("agent.toml")),
            insecure: false,
        };
        tokio::spawn(async move {
            if let Err(error) = agent::run(options).await {
                eprintln!("agent {name} stopped: {error}");
            }
        });
    }
    let mut view = handle.watch();
    let mut shown = String::new();
    loop {
        let board = board(&view.borrow_and_update().cluster);
        if let Some(board) = board.filter(|board| *board != shown) {
            if shown.is_empty() {
                welcome(&url, &files, &options);
            }
            // Whoever started it may read no more of it; it goes on all the same.
            let _ = writeln!(io::stdout(), "{board}");
            shown = board;
        }
        if view.changed().await.is_err() {
            break;
        }
    }
    serving.await.expect("a bug in the server ends the process")?;
    Ok(())
}

/// Writes the example's files; tells where the pretend software keeps its states.
fn lay_out(dir: &Path) -> io::Result<PathBuf> {
    let state = dir.join("state");
    fs::create_dir_all(&state)?;
    let handler = dir.join("handler.sh");
    fs::write(&handler, HANDLER)?;
    fs::set_permissions(&handler, fs::Permissions::from_mode(0o755))?;
    let quoted = |path: &Path| toml::Value::String(path.display().to_string()).to_string();
    let config = format!(
        "[handlers.demo]\nexec = [{}]\nenv = {{ STATE = {} }}\nstatus_ms = 1000\n",
        quoted(&handler),
        quoted(&state)
    );
    fs::write(dir.join("agent.toml"), config)?;
    for (name, role, first) in HOSTS {
        let file = state.join(format!("{role}@{name}"));
        if !file.exists() {
            fs::write(file, format!("{first}\n"))?;
        }
    }
    Ok(state)
}

/// Every member and its state in one line; none while a state is not known.
fn board(cluster: &Cluster) -> Option<String> {
    if cluster.members.len() < HOSTS.len() {
        return None;
    }
    let mut board = String::new();
    let mut group = None;
    for (id, member) in &cluster.members {
        if group.replace(&id.group) != Some(&id.group) {
            let gap = if board.is_empty() { "" } else { "   |   " };
            board.push_str(&format!("{gap}{}:", id.group));
        }
        board.push_str(&format!("  {} {}", id.host, member.actual.as_ref()?));
    }
    Some(board)
}

fn welcome(url: &str, files: &Path, options: &DevOptions) {
    // The command as the reader has it: on the path, or built by cargo.
    let program = std::env::args().next().unwrap_or_else(|| "lockstep".to_owned());
    let addr = if options.listen.to_string() == crate::cli::option::LISTEN_DEFAULT {
        String::new()
    } else {
        format!(" --addr {url}")
    };
    let _ = writeln!(
        io::stdout(),
        "\
listening on {url}

Five hosts: a database with one primary (pg-a, pg-b, pg-c), and an application (app-1, app-2) that requires it
and is held while it moves. Their software is pretend: the files in {files}.

In another terminal, from here:
  {program}{addr} status                                  what there is
  {program}{addr} plan db@pg-b=primary                    what a switchover would do
  {program}{addr} run db@pg-b=primary --reason \"a test\"   do it, everyone together
  touch {files}/app-2.refuses          then ask for pg-a again: app-2 says no, and nothing moves
",
        files = files.display()
    );
}
