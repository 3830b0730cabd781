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

use std::collections::{BTreeMap, BTreeSet};
use std::io::Read;
use std::ops::{Range, RangeInclusive};
use std::path::{Path, PathBuf};

use miette::{Diagnostic, NamedSource, SourceSpan};
use toml::Spanned;
use toml::de::{DeArray, DeTable, DeValue};

use lockstep_core::agent::HandlerRules;
use lockstep_core::id::{HandlerName, HostName, NAME_LEN_MAX};
use lockstep_core::message::Phase;
use lockstep_core::spec::{HANDLER_NONE, TEXT_LEN_MAX};

use crate::guard::WatchdogConfig;
use crate::handler::{Program, User};

/// Largest agent.toml, in bytes. A thousand handlers fit; a log file given by mistake does not.
pub const CONFIG_BYTES_MAX: u64 = 1024 * 1024;

/// Time that a call of any phase may take, unless `timeout_ms` says otherwise, in ms. Too low: a busy host votes
/// no. Too high: clients wait for a handler that hangs.
pub const TIMEOUT_MS_DEFAULT: u64 = 5_000;

/// The same for `commit`, `undo` and `stop`, where software starts and stops.
pub const TIMEOUT_MS_COMMIT: u64 = 30_000;

/// What `timeout_ms` may be: 1 ms to 1 h.
pub const TIMEOUT_MS_RANGE: RangeInclusive<u64> = 1..=3_600_000;

/// How often `status` is asked, unless `status_ms` says otherwise, in ms. Too low: the handler's own load. Too
/// high: a failure is seen late.
pub const STATUS_MS_DEFAULT: u64 = 2_000;

/// What `status_ms` may be: 100 ms to 1 h.
pub const STATUS_MS_RANGE: RangeInclusive<u64> = 100..=3_600_000;

/// What `watchdog_timeout_ms` may be: 1 s, the least that devices know, to 10 min.
pub const WATCHDOG_TIMEOUT_MS_RANGE: RangeInclusive<u64> = 1_000..=600_000;

/// Kinds of handlers that are planned and do not exist yet, to say so rather than "unknown key".
const KINDS_TO_COME: [&str; 3] = ["systemd", "ocf", "http"];

/// Keys of a handler.
const HANDLER_KEYS: &str = "exec, user, env, phases, timeout_ms, status_ms and checks_tokens";

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

/// A handler: what to run, and when.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Handler {
    /// What to run.
    pub program: Program,
    /// When, and for how long.
    pub rules: HandlerRules,
}

/// The rules of a handler whose table says nothing of them: every phase, the built-in times.
pub fn default_rules() -> HandlerRules {
    HandlerRules {
        phases: BTreeSet::from(Phase::ALL),
        timeout_ms: Phase::ALL.map(|phase| (phase, built_in_timeout_ms(phase))).into(),
        status_ms: STATUS_MS_DEFAULT,
        checks_tokens: false,
    }
}

/// Undo does what commit does, the other way: it gets the same time.
fn built_in_timeout_ms(phase: Phase) -> u64 {
    match phase {
        // A power switch takes its time, too.
        Phase::Commit | Phase::Undo | Phase::Stop | Phase::Fence => TIMEOUT_MS_COMMIT,
        Phase::Check
        | Phase::Prepare
        | Phase::Cancel
        | Phase::Hold
        | Phase::Release
        | Phase::Status
        | Phase::Notice => TIMEOUT_MS_DEFAULT,
    }
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

/// An error before it knows its file.
struct Problem {
    span: Range<usize>,
    message: String,
    label: String,
    help: String,
}

type Checked<T> = Result<T, Problem>;

fn problem(
    span: Range<usize>,
    message: impl Into<String>,
    label: impl Into<String>,
    help: impl Into<String>,
) -> Problem {
    Problem { span, message: message.into(), label: label.into(), help: help.into() }
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

fn handler(
    name: &Spanned<impl AsRef<str>>,
    value: &Spanned<DeValue<'_>>,
    base: &Path,
    passwd: &str,
) -> Checked<Handler> {
    let mut rules = default_rules();
    let mut exec = None;
    let mut user = None;
    let mut env = BTreeMap::new();
    for (key, value) in table(value, "a handler")? {
        match key.get_ref().as_ref() {
            "exec" => exec = Some(argv(value, base)?),
            "user" => user = Some(find_user(value, passwd)?),
            "env" => env = environment(value)?,
            "phases" => rules.phases = phases(value)?,
            "timeout_ms" => rules.timeout_ms = timeouts(value)?,
            "checks_tokens" => rules.checks_tokens = flag(value, "checks_tokens")?,
            "status_ms" => rules.status_ms = millis(value, "status_ms", &STATUS_MS_RANGE)?,
            kind if KINDS_TO_COME.contains(&kind) => {
                let help = "this version knows `exec` handlers and the built-in `none`; write exec = \
                            [\"/path/to/program\"] with a program that does the same";
                let message = format!("`{kind}` handlers do not exist yet");
                return Err(problem(key.span(), message, "this kind of handler", help));
            }
            _ => return Err(unknown_key(key, format!("a handler has {HANDLER_KEYS}"))),
        }
    }
    let Some((path, args)) = exec else {
        let message = format!("handler `{}` has no `exec`", name.get_ref().as_ref());
        let help = "add exec = [\"/path/to/program\", \"argument\"]; the phase is added as the last argument";
        return Err(problem(name.span(), message, "this handler", help));
    };
    Ok(Handler { program: Program { path, args, user, env }, rules })
}

fn argv(value: &Spanned<DeValue<'_>>, base: &Path) -> Checked<(PathBuf, Vec<String>)> {
    const HELP: &str = "write exec = [\"/path/to/program\", \"argument\"]; no shell reads it";
    let items = array(value, "exec", HELP)?;
    let mut words = Vec::new();
    for item in items {
        let word = string(item, "an argument of `exec`")?;
        refuse_nul(item.span(), word)?;
        words.push(word.to_owned());
    }
    let Some(first) = items.first() else {
        return Err(problem(value.span(), "`exec` is empty", "no program", HELP));
    };
    let program = words.remove(0);
    if !program.contains('/') {
        let help = "no search path is used: write the absolute path, or one with a slash, which starts at the \
                    directory of this file";
        let message = "the program of `exec` must be a path";
        return Err(problem(first.span(), message, "a bare name, or nothing", help));
    }
    // An absolute path replaces the base.
    Ok((base.join(program), words))
}

fn find_user(value: &Spanned<DeValue<'_>>, passwd: &str) -> Checked<User> {
    let wanted = match value.get_ref() {
        DeValue::String(name) => name.to_string(),
        DeValue::Integer(uid) if uid.radix() == 10 => uid.as_str().to_owned(),
        DeValue::Integer(_)
        | DeValue::Float(_)
        | DeValue::Boolean(_)
        | DeValue::Datetime(_)
        | DeValue::Array(_)
        | DeValue::Table(_) => return Err(wrong_type(value, "user", "a user's name or number")),
    };
    let users = || passwd.lines().filter_map(passwd_user);
    let by_name = users().find(|user| user.name == wanted);
    by_name.or_else(|| users().find(|user| user.uid.to_string() == wanted)).ok_or_else(|| {
        let help = "name a user that /etc/passwd lists, or leave `user` out to run as the agent's own user; \
                    users of a directory service are not looked up";
        problem(value.span(), "no such user on this host", "not in /etc/passwd", help)
    })
}

/// One line of passwd(5): `name:password:uid:gid:...`. `None` for anything else.
fn passwd_user(line: &str) -> Option<User> {
    let mut fields = line.split(':');
    let name = fields.next().filter(|name| !name.is_empty())?;
    let uid = fields.nth(1)?.parse().ok()?;
    let gid = fields.next()?.parse().ok()?;
    Some(User { name: name.to_owned(), uid, gid })
}

fn environment(value: &Spanned<DeValue<'_>>) -> Checked<BTreeMap<String, String>> {
    let mut env = BTreeMap::new();
    for (key, value) in table(value, "`env`")? {
        let name = key.get_ref().as_ref();
        if name.is_empty() || name.contains(['=', '\0']) {
            let help = "a variable's name is not empty and has no `=` or NUL";
            return Err(problem(key.span(), "not a variable's name", "this name", help));
        }
        if name.starts_with("LOCKSTEP_") {
            let help = "these are set by each call; choose another name";
            return Err(problem(key.span(), "`LOCKSTEP_` variables are reserved", "this name", help));
        }
        let text = string(value, "a variable's value")?;
        refuse_nul(value.span(), text)?;
        env.insert(name.to_owned(), text.to_owned());
    }
    Ok(env)
}

fn phases(value: &Spanned<DeValue<'_>>) -> Checked<BTreeSet<Phase>> {
    let help = "write phases = [\"check\", \"commit\", \"status\"], or leave it out for all of them";
    let mut phases = BTreeSet::new();
    for item in array(value, "phases", help)? {
        let phase = parse_phase(item.span(), string(item, "a phase")?)?;
        if !phases.insert(phase) {
            return Err(problem(item.span(), format!("`{phase}` is there twice"), "again", "remove one"));
        }
    }
    Ok(phases)
}

fn timeouts(value: &Spanned<DeValue<'_>>) -> Checked<BTreeMap<Phase, u64>> {
    let mut named = BTreeMap::new();
    let mut default = None;
    for (key, value) in table(value, "`timeout_ms`")? {
        let ms = millis(value, "timeout_ms", &TIMEOUT_MS_RANGE)?;
        match key.get_ref().as_ref() {
            "default" => default = Some(ms),
            phase => {
                named.insert(parse_phase(key.span(), phase)?, ms);
            }
        }
    }
    // A default that was written down is for every phase that was not, commit too.
    let ms = |phase| named.get(&phase).copied().or(default).unwrap_or_else(|| built_in_timeout_ms(phase));
    Ok(Phase::ALL.into_iter().map(|phase| (phase, ms(phase))).collect())
}

fn parse_phase(span: Range<usize>, text: &str) -> Checked<Phase> {
    text.parse().map_err(|_| {
        let help = format!("phases are {}", Phase::ALL.map(Phase::as_str).join(", "));
        problem(span, "no such phase", "not a phase", help)
    })
}

fn millis(value: &Spanned<DeValue<'_>>, key: &str, range: &RangeInclusive<u64>) -> Checked<u64> {
    let DeValue::Integer(number) = value.get_ref() else {
        return Err(wrong_type(value, key, "a whole number of milliseconds"));
    };
    let ms = u64::from_str_radix(number.as_str(), number.radix()).ok();
    ms.filter(|ms| range.contains(ms)).ok_or_else(|| {
        let help = format!("{} to {}, in milliseconds", range.start(), range.end());
        problem(value.span(), format!("`{key}` is out of range"), "this number", help)
    })
}

fn flag(value: &Spanned<DeValue<'_>>, key: &str) -> Checked<bool> {
    match value.get_ref() {
        DeValue::Boolean(flag) => Ok(*flag),
        _ => Err(wrong_type(value, key, "true or false")),
    }
}

fn refuse_nul(span: Range<usize>, text: &str) -> Checked<()> {
    if text.contains('\0') {
        let help = "no program can be given one; remove it";
        return Err(problem(span, "a NUL character", "in this text", help));
    }
    Ok(())
}

fn unknown_key(key: &Spanned<impl AsRef<str>>, known: impl Into<String>) -> Problem {
    problem(key.span(), "unknown key", "not known here", known)
}

fn wrong_type(value: &Spanned<DeValue<'_>>, what: &str, wanted: &str) -> Problem {
    let kind = value.get_ref().type_str();
    problem(
        value.span(),
        format!("`{what}` has the wrong type"),
        format!("{kind} here"),
        format!("it takes {wanted}"),
    )
}

fn table<'a, 'i>(value: &'a Spanned<DeValue<'i>>, what: &str) -> Checked<&'a DeTable<'i>> {
    value.get_ref().as_table().ok_or_else(|| {
        let kind = value.get_ref().type_str();
        let help = "write a table: [name] on its own line, or { key = value }";
        problem(value.span(), format!("{what} must be a table"), format!("{kind} here"), help)
    })
}

fn array<'a, 'i>(value: &'a Spanned<DeValue<'i>>, what: &str, help: &str) -> Checked<&'a DeArray<'i>> {
    value.get_ref().as_array().ok_or_else(|| {
        let kind = value.get_ref().type_str();
        problem(value.span(), format!("`{what}` must be an array"), format!("{kind} here"), help)
    })
}

fn string<'a>(value: &'a Spanned<DeValue<'_>>, what: &str) -> Checked<&'a str> {
    value.get_ref().as_str().ok_or_else(|| {
        let kind = value.get_ref().type_str();
        let help = "put it in quotes";
        problem(value.span(), format!("{what} must be a string"), format!("{kind} here"), help)
    })
}

#[cfg(test)]
mod tests {
    use expect_test::{Expect, expect};
    use miette::{GraphicalReportHandler, GraphicalTheme};

    use super::*;

    const PASSWD: &str = "root:x:0:0:root:/root:/bin/sh\n# remark\nbroken:x\n\
                          postgres:x:113:118::/var/lib/postgresql:/bin/sh\n200:x:201:202::/:/bin/sh\n";

    fn parse(text: &str) -> Result<AgentConfig, ConfigError> {
        AgentConfig::parse(Path::new("/etc/lockstep/agent.toml"), text, PASSWD)
    }

    fn rendered(error: &ConfigError) -> String {
        // Expectations lose the indentation that all lines share; the first line has none.
        let mut shown = "refused:\n".to_owned();
        let handler = GraphicalReportHandler::new_themed(GraphicalTheme::unicode_nocolor()).with_width(100);
        handler.render_report(&mut shown, error).unwrap();
        // No blanks at line ends: editors and review tools take them away.
        shown.lines().map(|line| format!("{}\n", line.trim_end())).collect()
    }

    fn one(keys: &str) -> Handler {
        let text = format!("[handlers.h]\nexec = [\"/bin/true\"]\n{keys}\n");
        parse(&text).unwrap().handlers.remove(&name("h")).unwrap()
    }

    #[test]
    fn the_example_of_the_module() {
        let text = "[labels]\nrole = \"db\"\nzone = \"\"\n\n[handlers.pg]\n\
            exec = [\"/usr/lib/lockstep/handlers/postgresql\", \";$(x)\"]\nuser = \"postgres\"\n\
            env = { PGDATA = \"/srv/pg\" }\nphases = [\"status\", \"check\"]\n\
            timeout_ms = { default = 4_000, commit = 0xffff }\nstatus_ms = 1000\n";
        let config = parse(text).unwrap();
        assert_eq!(config.labels["role"], "db");
        let pg = &config.handlers[&name("pg")];
        assert_eq!(
            pg.program,
            Program {
                path: PathBuf::from("/usr/lib/lockstep/handlers/postgresql"),
                args: vec![";$(x)".to_owned()],
                user: Some(User { name: "postgres".to_owned(), uid: 113, gid: 118 }),
                env: BTreeMap::from([("PGDATA".to_owned(), "/srv/pg".to_owned())]),
            }
        );
        assert_eq!(pg.rules.phases, BTreeSet::from([Phase::Check, Phase::Status]));
        assert_eq!(pg.rules.timeout_ms[&Phase::Commit], 0xffff);
        assert_eq!(pg.rules.timeout_ms[&Phase::Undo], 4_000);
        assert_eq!(pg.rules.status_ms, 1_000);
    }

    fn name(name: &str) -> HandlerName {
        HandlerName::new(name).unwrap()
    }

    #[test]
    fn defaults() {
        assert_eq!(parse("").unwrap(), AgentConfig::default());
        let rules = one("").rules;
        assert_eq!(rules, default_rules());
        assert_eq!(rules.phases.len(), Phase::ALL.len());
        assert_eq!(rules.timeout_ms[&Phase::Check], 5_000);
        assert_eq!(rules.timeout_ms[&Phase::Commit], 30_000);
        assert_eq!(rules.timeout_ms[&Phase::Undo], 30_000);
        assert_eq!(rules.status_ms, 2_000);

        // Naming one phase changes that phase; naming the default changes all the others.
        assert_eq!(one("timeout_ms = { check = 1 }").rules.timeout_ms[&Phase::Commit], 30_000);
        assert_eq!(one("timeout_ms = { default = 3600000 }").rules.timeout_ms[&Phase::Commit], 3_600_000);
        assert_eq!(one("phases = []").rules.phases, BTreeSet::new());
    }

    #[test]
    fn the_watchdog_of_the_guard() {
        let read = |keys: &str| parse(&format!("[guard]\n{keys}\n")).unwrap().watchdog;
        assert_eq!(read(""), None);
        let device = PathBuf::from("/dev/watchdog1");
        let keys = "watchdog = \"/dev/watchdog1\"";
        assert_eq!(read(keys), Some(WatchdogConfig { device: device.clone(), timeout_ms: None }));
        let keys = format!("{keys}\nwatchdog_timeout_ms = 2000");
        assert_eq!(read(&keys), Some(WatchdogConfig { device, timeout_ms: Some(2_000) }));
    }

    #[test]
    fn a_relative_program_starts_at_the_file() {
        let config = parse("[handlers.h]\nexec = [\"./handlers/pg\"]\n").unwrap();
        assert_eq!(config.handlers[&name("h")].program.path, Path::new("/etc/lockstep/./handlers/pg"));
    }

    #[test]
    fn users_by_name_then_by_number() {
        for (user, uid, gid) in
            [("\"root\"", 0, 0), ("113", 113, 118), ("\"113\"", 113, 118), ("200", 201, 202)]
        {
            let found = one(&format!("user = {user}")).program.user.unwrap();
            assert_eq!((found.uid, found.gid), (uid, gid), "{user}");
        }
    }

    #[test]
    fn a_file_that_is_not_there_too_large_or_not_text() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("agent.toml");
        assert!(matches!(AgentConfig::load(&path), Err(ConfigError::Read { .. })));
        std::fs::write(&path, "#".repeat(CONFIG_BYTES_MAX as usize + 1)).unwrap();
        assert!(matches!(AgentConfig::load(&path), Err(ConfigError::Read { .. })));
        std::fs::write(&path, b"# \xff\n").unwrap();
        assert!(matches!(AgentConfig::load(&path), Err(ConfigError::Read { .. })));
        std::fs::write(&path, "[handlers.h]\nexec = [\"bin/h\"]\n").unwrap();
        let config = AgentConfig::load(&path).unwrap();
        assert_eq!(config.handlers[&name("h")].program.path, dir.path().join("bin/h"));
    }

    #[test]
    fn hostile_files_are_refused_without_harm() {
        let long = "n".repeat(100_000);
        for text in [
            format!("[handlers.{long}]\nexec = [\"/bin/true\"]"),
            format!("a = {}", "[".repeat(100_000)),
            format!("a{} = 1", ".b".repeat(100_000)),
            "\0".to_owned(),
            "[handlers.\"../a\"]\nexec = [\"/bin/true\"]".to_owned(),
            "[handlers.\"a\u{202e}b\"]\nexec = [\"/bin/true\"]".to_owned(),
            "[handlers.\";$(x)\"]\nexec = [\"/bin/true\"]".to_owned(),
            "[handlers.\"a\\nb\"]\nexec = [\"/bin/true\"]".to_owned(),
        ] {
            rendered(&parse(&text).expect_err("a hostile file"));
        }
    }

    #[test]
    fn bad_configurations() {
        // Whole files end in a newline; the others are keys of a handler that is otherwise good.
        let table: Vec<(&str, Expect)> = vec![
            (
                "[guard]\nwatchdog = \"watchdog\"\n",
                expect![[r#"
                refused:
                  × `watchdog` must be a device
                   ╭─[/etc/lockstep/agent.toml:2:12]
                 1 │ [guard]
                 2 │ watchdog = "watchdog"
                   ·            ─────┬────
                   ·                 ╰── this path
                   ╰────
                  help: write an absolute path, such as "/dev/watchdog"
            "#]],
            ),
            (
                "[guard]\nwatchdog_timeout_ms = 2000\n",
                expect![[r#"
                refused:
                  × a timeout without a `watchdog`
                   ╭─[/etc/lockstep/agent.toml:1:2]
                 1 │ [guard]
                   ·  ──┬──
                   ·    ╰── here
                 2 │ watchdog_timeout_ms = 2000
                   ╰────
                  help: add watchdog = "/dev/watchdog", or remove watchdog_timeout_ms
            "#]],
            ),
            (
                "[guard]\nwatchdog_timeout_ms = 999\n",
                expect![[r#"
                refused:
                  × `watchdog_timeout_ms` is out of range
                   ╭─[/etc/lockstep/agent.toml:2:23]
                 1 │ [guard]
                 2 │ watchdog_timeout_ms = 999
                   ·                       ─┬─
                   ·                        ╰── this number
                   ╰────
                  help: 1000 to 600000, in milliseconds
            "#]],
            ),
            (
                "[guard]\ndog = true\n",
                expect![[r#"
                refused:
                  × unknown key
                   ╭─[/etc/lockstep/agent.toml:2:1]
                 1 │ [guard]
                 2 │ dog = true
                   · ─┬─
                   ·  ╰── not known here
                   ╰────
                  help: [guard] has watchdog and watchdog_timeout_ms
            "#]],
            ),
            (
                "[handlers.pg\n",
                expect![[r#"
                    refused:
                      × not valid TOML
                       ╭─[/etc/lockstep/agent.toml:1:13]
                     1 │ [handlers.pg
                       ·             ▲
                       ·             ╰── unclosed table, expected `]`
                       ╰────
                      help: quote strings, and write each table and key once: [handlers.NAME], then exec = ["/path"]
                "#]],
            ),
            (
                "[labels]\na = \"1\"\na = \"2\"\n",
                expect![[r#"
                    refused:
                      × not valid TOML
                       ╭─[/etc/lockstep/agent.toml:3:1]
                     2 │ a = "1"
                     3 │ a = "2"
                       · ┬
                       · ╰── duplicate key
                       ╰────
                      help: quote strings, and write each table and key once: [handlers.NAME], then exec = ["/path"]
                "#]],
            ),
            (
                "[handler.pg]\nexec = [\"/bin/true\"]\n",
                expect![[r#"
                    refused:
                      × unknown key
                       ╭─[/etc/lockstep/agent.toml:1:2]
                     1 │ [handler.pg]
                       ·  ───┬───
                       ·     ╰── not known here
                     2 │ exec = ["/bin/true"]
                       ╰────
                      help: agent.toml has [labels], [handlers.NAME] and [guard]
                "#]],
            ),
            (
                "handlers = 3\n",
                expect![[r#"
                    refused:
                      × `handlers` must be a table
                       ╭─[/etc/lockstep/agent.toml:1:12]
                     1 │ handlers = 3
                       ·            ┬
                       ·            ╰── integer here
                       ╰────
                      help: write a table: [name] on its own line, or { key = value }
                "#]],
            ),
            (
                "[handlers]\npg = \"/bin/true\"\n",
                expect![[r#"
                    refused:
                      × a handler must be a table
                       ╭─[/etc/lockstep/agent.toml:2:6]
                     1 │ [handlers]
                     2 │ pg = "/bin/true"
                       ·      ─────┬─────
                       ·           ╰── string here
                       ╰────
                      help: write a table: [name] on its own line, or { key = value }
                "#]],
            ),
            (
                "[handlers.none]\nexec = [\"/bin/true\"]\n",
                expect![[r#"
                    refused:
                      × `none` is a reserved name
                       ╭─[/etc/lockstep/agent.toml:1:11]
                     1 │ [handlers.none]
                       ·           ──┬─
                       ·             ╰── a handler of this name
                     2 │ exec = ["/bin/true"]
                       ╰────
                      help: every agent has `none`: it runs nothing and says yes. Choose another name, here and in the
                            group's `handler`
                "#]],
            ),
            (
                "[handlers.\"\"]\nexec = [\"/bin/true\"]\n",
                expect![[r#"
                    refused:
                      × not a valid handler name
                       ╭─[/etc/lockstep/agent.toml:1:11]
                     1 │ [handlers.""]
                       ·           ─┬
                       ·            ╰── this name
                     2 │ exec = ["/bin/true"]
                       ╰────
                      help: 1 to 63 of A-Z a-z 0-9 _ -, a letter or digit first
                "#]],
            ),
            (
                "[handlers.pg]\nuser = \"root\"\n",
                expect![[r#"
                    refused:
                      × handler `pg` has no `exec`
                       ╭─[/etc/lockstep/agent.toml:1:11]
                     1 │ [handlers.pg]
                       ·           ─┬
                       ·            ╰── this handler
                     2 │ user = "root"
                       ╰────
                      help: add exec = ["/path/to/program", "argument"]; the phase is added as the last argument
                "#]],
            ),
            (
                "[handlers.pg]\nexec = []\n",
                expect![[r#"
                    refused:
                      × `exec` is empty
                       ╭─[/etc/lockstep/agent.toml:2:8]
                     1 │ [handlers.pg]
                     2 │ exec = []
                       ·        ─┬
                       ·         ╰── no program
                       ╰────
                      help: write exec = ["/path/to/program", "argument"]; no shell reads it
                "#]],
            ),
            (
                "[handlers.pg]\nexec = \"/bin/true\"\n",
                expect![[r#"
                    refused:
                      × `exec` must be an array
                       ╭─[/etc/lockstep/agent.toml:2:8]
                     1 │ [handlers.pg]
                     2 │ exec = "/bin/true"
                       ·        ─────┬─────
                       ·             ╰── string here
                       ╰────
                      help: write exec = ["/path/to/program", "argument"]; no shell reads it
                "#]],
            ),
            (
                "[handlers.pg]\nexec = [\"/bin/true\", 5]\n",
                expect![[r#"
                    refused:
                      × an argument of `exec` must be a string
                       ╭─[/etc/lockstep/agent.toml:2:22]
                     1 │ [handlers.pg]
                     2 │ exec = ["/bin/true", 5]
                       ·                      ┬
                       ·                      ╰── integer here
                       ╰────
                      help: put it in quotes
                "#]],
            ),
            (
                "[handlers.pg]\nexec = [\"true\"]\n",
                expect![[r#"
                    refused:
                      × the program of `exec` must be a path
                       ╭─[/etc/lockstep/agent.toml:2:9]
                     1 │ [handlers.pg]
                     2 │ exec = ["true"]
                       ·         ───┬──
                       ·            ╰── a bare name, or nothing
                       ╰────
                      help: no search path is used: write the absolute path, or one with a slash, which starts at the
                            directory of this file
                "#]],
            ),
            (
                "[handlers.pg]\nexec = [\"\"]\n",
                expect![[r#"
                    refused:
                      × the program of `exec` must be a path
                       ╭─[/etc/lockstep/agent.toml:2:9]
                     1 │ [handlers.pg]
                     2 │ exec = [""]
                       ·         ─┬
                       ·          ╰── a bare name, or nothing
                       ╰────
                      help: no search path is used: write the absolute path, or one with a slash, which starts at the
                            directory of this file
                "#]],
            ),
            (
                "[handlers.pg]\nexec = [\"/bin/true\", \"a\\u0000b\"]\n",
                expect![[r#"
                    refused:
                      × a NUL character
                       ╭─[/etc/lockstep/agent.toml:2:22]
                     1 │ [handlers.pg]
                     2 │ exec = ["/bin/true", "a\u0000b"]
                       ·                      ─────┬────
                       ·                           ╰── in this text
                       ╰────
                      help: no program can be given one; remove it
                "#]],
            ),
            (
                "[handlers.pg]\nsystemd = \"postgresql.service\"\n",
                expect![[r#"
                    refused:
                      × `systemd` handlers do not exist yet
                       ╭─[/etc/lockstep/agent.toml:2:1]
                     1 │ [handlers.pg]
                     2 │ systemd = "postgresql.service"
                       · ───┬───
                       ·    ╰── this kind of handler
                       ╰────
                      help: this version knows `exec` handlers and the built-in `none`; write exec = ["/path/to/
                            program"] with a program that does the same
                "#]],
            ),
            (
                "[labels]\n\"a b\" = \"c\"\n",
                expect![[r#"
                    refused:
                      × not a valid label name
                       ╭─[/etc/lockstep/agent.toml:2:1]
                     1 │ [labels]
                     2 │ "a b" = "c"
                       · ──┬──
                       ·   ╰── this name
                       ╰────
                      help: 1 to 63 of A-Z a-z 0-9 . _ -, a letter or digit first
                "#]],
            ),
            (
                "[labels]\nconnections = 100\n",
                expect![[r#"
                    refused:
                      × a label's value must be a string
                       ╭─[/etc/lockstep/agent.toml:2:15]
                     1 │ [labels]
                     2 │ connections = 100
                       ·               ─┬─
                       ·                ╰── integer here
                       ╰────
                      help: put it in quotes
                "#]],
            ),
            (
                "[labels]\nrole = \"d\\u0007b\"\n",
                expect![[r#"
                    refused:
                      × not a valid label value
                       ╭─[/etc/lockstep/agent.toml:2:8]
                     1 │ [labels]
                     2 │ role = "d\u0007b"
                       ·        ─────┬────
                       ·             ╰── this value
                       ╰────
                      help: at most 255 bytes, no control characters
                "#]],
            ),
            (
                "timeout = 5",
                expect![[r#"
                    refused:
                      × unknown key
                       ╭─[/etc/lockstep/agent.toml:3:1]
                     2 │ exec = ["/bin/true"]
                     3 │ timeout = 5
                       · ───┬───
                       ·    ╰── not known here
                       ╰────
                      help: a handler has exec, user, env, phases, timeout_ms, status_ms and checks_tokens
                "#]],
            ),
            (
                "user = \"nobody-here\"",
                expect![[r#"
                    refused:
                      × no such user on this host
                       ╭─[/etc/lockstep/agent.toml:3:8]
                     2 │ exec = ["/bin/true"]
                     3 │ user = "nobody-here"
                       ·        ──────┬──────
                       ·              ╰── not in /etc/passwd
                       ╰────
                      help: name a user that /etc/passwd lists, or leave `user` out to run as the agent's own user;
                            users of a directory service are not looked up
                "#]],
            ),
            (
                "user = -1",
                expect![[r#"
                    refused:
                      × no such user on this host
                       ╭─[/etc/lockstep/agent.toml:3:8]
                     2 │ exec = ["/bin/true"]
                     3 │ user = -1
                       ·        ─┬
                       ·         ╰── not in /etc/passwd
                       ╰────
                      help: name a user that /etc/passwd lists, or leave `user` out to run as the agent's own user;
                            users of a directory service are not looked up
                "#]],
            ),
            (
                "user = true",
                expect![[r#"
                    refused:
                      × `user` has the wrong type
                       ╭─[/etc/lockstep/agent.toml:3:8]
                     2 │ exec = ["/bin/true"]
                     3 │ user = true
                       ·        ──┬─
                       ·          ╰── boolean here
                       ╰────
                      help: it takes a user's name or number
                "#]],
            ),
            (
                "env = { PGPORT = 5432 }",
                expect![[r#"
                    refused:
                      × a variable's value must be a string
                       ╭─[/etc/lockstep/agent.toml:3:18]
                     2 │ exec = ["/bin/true"]
                     3 │ env = { PGPORT = 5432 }
                       ·                  ──┬─
                       ·                    ╰── integer here
                       ╰────
                      help: put it in quotes
                "#]],
            ),
            (
                "env = { LOCKSTEP_TOKEN = \"7\" }",
                expect![[r#"
                    refused:
                      × `LOCKSTEP_` variables are reserved
                       ╭─[/etc/lockstep/agent.toml:3:9]
                     2 │ exec = ["/bin/true"]
                     3 │ env = { LOCKSTEP_TOKEN = "7" }
                       ·         ───────┬──────
                       ·                ╰── this name
                       ╰────
                      help: these are set by each call; choose another name
                "#]],
            ),
            (
                "env = { \"A=B\" = \"7\" }",
                expect![[r#"
                    refused:
                      × not a variable's name
                       ╭─[/etc/lockstep/agent.toml:3:9]
                     2 │ exec = ["/bin/true"]
                     3 │ env = { "A=B" = "7" }
                       ·         ──┬──
                       ·           ╰── this name
                       ╰────
                      help: a variable's name is not empty and has no `=` or NUL
                "#]],
            ),
            (
                "phases = [\"check\", \"comit\"]",
                expect![[r#"
                    refused:
                      × no such phase
                       ╭─[/etc/lockstep/agent.toml:3:20]
                     2 │ exec = ["/bin/true"]
                     3 │ phases = ["check", "comit"]
                       ·                    ───┬───
                       ·                       ╰── not a phase
                       ╰────
                      help: phases are check, prepare, commit, undo, cancel, hold, release, status, notice, fence,
                            stop
                "#]],
            ),
            (
                "phases = [\"check\", \"check\"]",
                expect![[r#"
                    refused:
                      × `check` is there twice
                       ╭─[/etc/lockstep/agent.toml:3:20]
                     2 │ exec = ["/bin/true"]
                     3 │ phases = ["check", "check"]
                       ·                    ───┬───
                       ·                       ╰── again
                       ╰────
                      help: remove one
                "#]],
            ),
            (
                "phases = \"all\"",
                expect![[r#"
                    refused:
                      × `phases` must be an array
                       ╭─[/etc/lockstep/agent.toml:3:10]
                     2 │ exec = ["/bin/true"]
                     3 │ phases = "all"
                       ·          ──┬──
                       ·            ╰── string here
                       ╰────
                      help: write phases = ["check", "commit", "status"], or leave it out for all of them
                "#]],
            ),
            (
                "timeout_ms = 5000",
                expect![[r#"
                    refused:
                      × `timeout_ms` must be a table
                       ╭─[/etc/lockstep/agent.toml:3:14]
                     2 │ exec = ["/bin/true"]
                     3 │ timeout_ms = 5000
                       ·              ──┬─
                       ·                ╰── integer here
                       ╰────
                      help: write a table: [name] on its own line, or { key = value }
                "#]],
            ),
            (
                "timeout_ms = { check = 0 }",
                expect![[r#"
                    refused:
                      × `timeout_ms` is out of range
                       ╭─[/etc/lockstep/agent.toml:3:24]
                     2 │ exec = ["/bin/true"]
                     3 │ timeout_ms = { check = 0 }
                       ·                        ┬
                       ·                        ╰── this number
                       ╰────
                      help: 1 to 3600000, in milliseconds
                "#]],
            ),
            (
                "timeout_ms = { check = -5 }",
                expect![[r#"
                    refused:
                      × `timeout_ms` is out of range
                       ╭─[/etc/lockstep/agent.toml:3:24]
                     2 │ exec = ["/bin/true"]
                     3 │ timeout_ms = { check = -5 }
                       ·                        ─┬
                       ·                         ╰── this number
                       ╰────
                      help: 1 to 3600000, in milliseconds
                "#]],
            ),
            (
                "timeout_ms = { check = 3600001 }",
                expect![[r#"
                    refused:
                      × `timeout_ms` is out of range
                       ╭─[/etc/lockstep/agent.toml:3:24]
                     2 │ exec = ["/bin/true"]
                     3 │ timeout_ms = { check = 3600001 }
                       ·                        ───┬───
                       ·                           ╰── this number
                       ╰────
                      help: 1 to 3600000, in milliseconds
                "#]],
            ),
            (
                "timeout_ms = { check = 99999999999999999999999 }",
                expect![[r#"
                    refused:
                      × `timeout_ms` is out of range
                       ╭─[/etc/lockstep/agent.toml:3:24]
                     2 │ exec = ["/bin/true"]
                     3 │ timeout_ms = { check = 99999999999999999999999 }
                       ·                        ───────────┬───────────
                       ·                                   ╰── this number
                       ╰────
                      help: 1 to 3600000, in milliseconds
                "#]],
            ),
            (
                "timeout_ms = { check = 1.5 }",
                expect![[r#"
                    refused:
                      × `timeout_ms` has the wrong type
                       ╭─[/etc/lockstep/agent.toml:3:24]
                     2 │ exec = ["/bin/true"]
                     3 │ timeout_ms = { check = 1.5 }
                       ·                        ─┬─
                       ·                         ╰── float here
                       ╰────
                      help: it takes a whole number of milliseconds
                "#]],
            ),
            (
                "timeout_ms = { check = nan }",
                expect![[r#"
                    refused:
                      × `timeout_ms` has the wrong type
                       ╭─[/etc/lockstep/agent.toml:3:24]
                     2 │ exec = ["/bin/true"]
                     3 │ timeout_ms = { check = nan }
                       ·                        ─┬─
                       ·                         ╰── float here
                       ╰────
                      help: it takes a whole number of milliseconds
                "#]],
            ),
            (
                "timeout_ms = { chek = 5 }",
                expect![[r#"
                    refused:
                      × no such phase
                       ╭─[/etc/lockstep/agent.toml:3:16]
                     2 │ exec = ["/bin/true"]
                     3 │ timeout_ms = { chek = 5 }
                       ·                ──┬─
                       ·                  ╰── not a phase
                       ╰────
                      help: phases are check, prepare, commit, undo, cancel, hold, release, status, notice, fence,
                            stop
                "#]],
            ),
            (
                "status_ms = 99",
                expect![[r#"
                    refused:
                      × `status_ms` is out of range
                       ╭─[/etc/lockstep/agent.toml:3:13]
                     2 │ exec = ["/bin/true"]
                     3 │ status_ms = 99
                       ·             ─┬
                       ·              ╰── this number
                       ╰────
                      help: 100 to 3600000, in milliseconds
                "#]],
            ),
            (
                "status_ms = \"2s\"",
                expect![[r#"
                    refused:
                      × `status_ms` has the wrong type
                       ╭─[/etc/lockstep/agent.toml:3:13]
                     2 │ exec = ["/bin/true"]
                     3 │ status_ms = "2s"
                       ·             ──┬─
                       ·               ╰── string here
                       ╰────
                      help: it takes a whole number of milliseconds
                "#]],
            ),
        ];
        for (text, expected) in table {
            let text = if text.ends_with('\n') {
                text.to_owned()
            } else {
                format!("[handlers.pg]\nexec = [\"/bin/true\"]\n{text}\n")
            };
            expected.assert_eq(&rendered(&parse(&text).expect_err("a bad file")));
        }
    }
}
