//! One table `[handlers.NAME]`: what a handler runs, as whom, when and for how long.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::{Range, RangeInclusive};
use std::path::{Path, PathBuf};

use toml::Spanned;
use toml::de::DeValue;

use lockstep_core::agent::HandlerRules;
use lockstep_core::message::Phase;
use lockstep_core::spec::HANDLER_FENCE;

use super::value::{
    Checked, array, flag, millis, problem, refuse_nul, string, table, unknown_key, wrong_type,
};
use crate::handler::{Program, User};

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

/// Kinds of handlers that are planned and do not exist yet, to say so rather than "unknown key".
const KINDS_TO_COME: [&str; 3] = ["systemd", "ocf", "http"];

/// Keys of a handler.
const HANDLER_KEYS: &str = "exec, user, env, phases, timeout_ms, status_ms and checks_tokens";

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

/// The handler of this name.
pub(super) fn handler(
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
            "phases" => {
                rules.phases = phases(value)?;
                if name.get_ref().as_ref() == HANDLER_FENCE && !rules.phases.contains(&Phase::Fence) {
                    let help = "add \"fence\", or give this handler another name";
                    let message = "the handler `fence` is called for other hosts, with the phase fence alone";
                    return Err(problem(value.span(), message, "would never be called", help));
                }
            }
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
