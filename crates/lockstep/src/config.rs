//! `agent.toml`: what a host is, and what it lets its agent run.
//!
//! The only place where a command line comes from. It is read whole and checked whole before the agent starts;
//! what comes out needs no further check. Every error points at the place in the file and says what to do.
//!
//! ```toml
//! [labels]
//! role = "db"
//!
//! [handlers.pg]
//! exec = ["/usr/lib/lockstep/handlers/postgresql"]
//! user = "postgres"
//! env = { PGDATA = "/srv/pg" }
//! phases = ["check", "prepare", "commit", "undo", "status"]
//! timeout_ms = { default = 5000, commit = 30000 }
//! status_ms = 2000
//! ```

mod handler;
mod value;

use std::collections::BTreeMap;
use std::io::Read;
use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};

use miette::{Diagnostic, NamedSource, SourceSpan};
use toml::Spanned;
use toml::de::{DeTable, DeValue};

use lockstep_core::id::{HandlerName, HostName, NAME_LEN_MAX};
use lockstep_core::spec::{HANDLER_NONE, TEXT_LEN_MAX};

use crate::guard::WatchdogConfig;
use handler::handler;
pub use handler::{
    Handler, STATUS_MS_DEFAULT, STATUS_MS_RANGE, TIMEOUT_MS_COMMIT, TIMEOUT_MS_DEFAULT, TIMEOUT_MS_RANGE,
    default_rules,
};
use value::{Checked, millis, problem, refuse_nul, string, table, unknown_key};

/// Largest agent.toml, in bytes. A thousand handlers fit; a log file given by mistake does not.
pub const CONFIG_BYTES_MAX: u64 = 1024 * 1024;

/// What `watchdog_timeout_ms` may be: 1 s, the least that devices know, to 10 min.
pub const WATCHDOG_TIMEOUT_MS_RANGE: RangeInclusive<u64> = 1_000..=600_000;

/// A host's own configuration.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct AgentConfig {
    /// Labels of the host, from `[labels]`.
    pub labels: BTreeMap<String, String>,
    /// Its handlers by name, from `[handlers.NAME]`. Without `none`.
    pub handlers: BTreeMap<HandlerName, Handler>,
    /// The watchdog of its guard, from `[guard]`.
    pub watchdog: Option<WatchdogConfig>,
}

/// Why agent.toml was refused. Show it with miette: it carries the place and what to do.
#[derive(Debug, thiserror::Error, Diagnostic)]
pub enum ConfigError {
    /// A file could not be read.
    #[error("cannot read {}", path.display())]
    #[diagnostic(help("{help}"))]
    Read {
        /// The file.
        path: PathBuf,
        /// What to do.
        help: &'static str,
        /// What the system said.
        #[source]
        source: std::io::Error,
    },
    /// The file's text is not a valid configuration.
    #[error(transparent)]
    #[diagnostic(transparent)]
    Invalid(Box<Invalid>),
}

/// What is wrong with the text, and where.
#[derive(Debug, thiserror::Error)]
#[error("{message}")]
pub struct Invalid {
    message: String,
    label: String,
    help: String,
    span: SourceSpan,
    source_code: NamedSource<String>,
}

impl Diagnostic for Invalid {
    fn help<'a>(&'a self) -> Option<Box<dyn std::fmt::Display + 'a>> {
        Some(Box::new(&self.help))
    }

    fn source_code(&self) -> Option<&dyn miette::SourceCode> {
        Some(&self.source_code)
    }

    fn labels(&self) -> Option<Box<dyn Iterator<Item = miette::LabeledSpan> + '_>> {
        let label = miette::LabeledSpan::new_primary_with_span(Some(self.label.clone()), self.span);
        Some(Box::new(std::iter::once(label)))
    }
}

impl AgentConfig {
    /// Reads and checks the file at `path`. Users are looked up in `/etc/passwd`, now.
    ///
    /// # Errors
    /// If it cannot be read, has more than [`CONFIG_BYTES_MAX`], or is not valid.
    pub fn load(path: &Path) -> Result<AgentConfig, ConfigError> {
        let text = read(path, "give the agent's configuration with --config; it is a UTF-8 text file")?;
        let passwd = Path::new("/etc/passwd");
        let users = match std::fs::read(passwd) {
            Ok(bytes) => String::from_utf8_lossy(&bytes).into_owned(),
            // No users but the agent's own; a `user` key is then refused with its place.
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => String::new(),
            Err(source) => {
                let help = "the agent looks up the users of its handlers there";
                return Err(ConfigError::Read { path: passwd.to_owned(), help, source });
            }
        };
        // Handlers run in another directory than the agent.
        let path = std::path::absolute(path).map_err(|source| ConfigError::Read {
            path: path.to_owned(),
            help: "give an absolute path",
            source,
        })?;
        AgentConfig::parse(&path, &text, &users)
    }

    /// Checks `text`, the content of the file at `path`, with `passwd`, the content of `/etc/passwd`.
    ///
    /// `path` names the file in errors, and a program's relative path starts at its directory.
    ///
    /// # Errors
    /// If it is not valid; the first error found.
    pub fn parse(path: &Path, text: &str, passwd: &str) -> Result<AgentConfig, ConfigError> {
        let base = path.parent().unwrap_or(Path::new("/"));
        parse(text, base, passwd).map_err(|problem| {
            let end = text.len();
            let (start, stop) = (problem.span.start.min(end), problem.span.end.min(end));
            ConfigError::Invalid(Box::new(Invalid {
                message: problem.message,
                label: problem.label,
                help: problem.help,
                span: SourceSpan::from((start, stop.saturating_sub(start))),
                source_code: NamedSource::new(path.display().to_string(), text.to_owned())
                    .with_language("toml"),
            }))
        })
    }
}

fn read(path: &Path, help: &'static str) -> Result<String, ConfigError> {
    let mut text = String::new();
    let read = std::fs::File::open(path)
        .and_then(|file| file.take(CONFIG_BYTES_MAX + 1).read_to_string(&mut text))
        .and_then(|len| {
            if len as u64 > CONFIG_BYTES_MAX {
                return Err(std::io::Error::other(format!("it has more than {CONFIG_BYTES_MAX} bytes")));
            }
            Ok(())
        });
    match read {
        Ok(()) => Ok(text),
        Err(source) => Err(ConfigError::Read { path: path.to_owned(), help, source }),
    }
}

fn parse(text: &str, base: &Path, passwd: &str) -> Checked<AgentConfig> {
    let document = DeTable::parse(text).map_err(|error| {
        let help =
            "quote strings, and write each table and key once: [handlers.NAME], then exec = [\"/path\"]";
        let message = error.message().split('\n').collect::<Vec<_>>().join("; ");
        problem(error.span().unwrap_or(0..0), "not valid TOML", message, help)
    })?;
    let mut config = AgentConfig::default();
    for (key, value) in document.get_ref() {
        match key.get_ref().as_ref() {
            "labels" => config.labels = labels(value)?,
            "handlers" => config.handlers = handlers(value, base, passwd)?,
            "guard" => config.watchdog = watchdog(key, value)?,
            _ => return Err(unknown_key(key, "agent.toml has [labels], [handlers.NAME] and [guard]")),
        }
    }
    Ok(config)
}

fn labels(value: &Spanned<DeValue<'_>>) -> Checked<BTreeMap<String, String>> {
    let mut labels = BTreeMap::new();
    for (key, value) in table(value, "`labels`")? {
        if HostName::new(key.get_ref().as_ref()).is_err() {
            let help = format!("1 to {NAME_LEN_MAX} of A-Z a-z 0-9 . _ -, a letter or digit first");
            return Err(problem(key.span(), "not a valid label name", "this name", help));
        }
        let text = string(value, "a label's value")?;
        if text.len() > TEXT_LEN_MAX || text.chars().any(char::is_control) {
            let help = format!("at most {TEXT_LEN_MAX} bytes, no control characters");
            return Err(problem(value.span(), "not a valid label value", "this value", help));
        }
        labels.insert(key.get_ref().to_string(), text.to_owned());
    }
    Ok(labels)
}

fn watchdog(
    name: &Spanned<impl AsRef<str>>,
    value: &Spanned<DeValue<'_>>,
) -> Checked<Option<WatchdogConfig>> {
    let (mut device, mut timeout_ms) = (None, None);
    for (key, value) in table(value, "`guard`")? {
        match key.get_ref().as_ref() {
            "watchdog" => {
                let path = string(value, "watchdog")?;
                refuse_nul(value.span(), path)?;
                if !path.starts_with('/') {
                    let help = "write an absolute path, such as \"/dev/watchdog\"";
                    return Err(problem(value.span(), "`watchdog` must be a device", "this path", help));
                }
                device = Some(PathBuf::from(path));
            }
            "watchdog_timeout_ms" => {
                timeout_ms = Some(millis(value, "watchdog_timeout_ms", &WATCHDOG_TIMEOUT_MS_RANGE)?);
            }
            _ => return Err(unknown_key(key, "[guard] has watchdog and watchdog_timeout_ms")),
        }
    }
    if device.is_none() && timeout_ms.is_some() {
        let help = "add watchdog = \"/dev/watchdog\", or remove watchdog_timeout_ms";
        return Err(problem(name.span(), "a timeout without a `watchdog`", "here", help));
    }
    Ok(device.map(|device| WatchdogConfig { device, timeout_ms }))
}

fn handlers(
    value: &Spanned<DeValue<'_>>,
    base: &Path,
    passwd: &str,
) -> Checked<BTreeMap<HandlerName, Handler>> {
    let mut handlers = BTreeMap::new();
    for (key, value) in table(value, "`handlers`")? {
        let Ok(name) = HandlerName::new(key.get_ref().as_ref()) else {
            let help = format!("1 to {NAME_LEN_MAX} of A-Z a-z 0-9 _ -, a letter or digit first");
            return Err(problem(key.span(), "not a valid handler name", "this name", help));
        };
        if name.as_str() == HANDLER_NONE {
            let help = "every agent has `none`: it runs nothing and says yes. Choose another name, here and in \
                        the group's `handler`";
            return Err(problem(key.span(), "`none` is a reserved name", "a handler of this name", help));
        }
        handlers.insert(name, handler(key, value, base, passwd)?);
    }
    Ok(handlers)
}

#[cfg(test)]
mod tests;
