//! Request bodies: how they are read and what they may say. All of it strict: what is not known is refused, since
//! a misspelt `plan_hash` that is skipped in silence would run another plan than the one that was shown.

use super::problem::{HttpCode, Problem};
use crate::agent::random;
use crate::cause::causes;
use crate::json;
use crate::spec_file::{self, File, Format};
use axum::body::{Body, Bytes};
use axum::extract::Request as HttpRequest;
use axum::http::{HeaderMap, header};
use lockstep_core::engine::HostAsk;
use lockstep_core::freeze::{FREEZE_MAX_MS, FreezeEnd};
use lockstep_core::id::{GroupName, NAME_LEN_MAX, NameError, StateName};
use lockstep_core::request::{
    Code, REASON_LEN_MAX, REQUEST_ID_LEN_MAX, Rejection, Request, TARGETS_MAX, Target,
};
use lockstep_core::spec::{
    DURATION_MAX_MS, GROUPS_MAX, OnFailure, SpecFile, TEXT_LEN_MAX, characters_problem,
};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

/// The largest body, in bytes; a spec may have [`spec_file::FILE_BYTES_MAX`].
pub const BODY_BYTES_MAX: usize = 1024 * 1024;
/// How long a body may take to arrive. A client that sends a byte a minute holds a connection for no longer.
const BODY_TIME_MAX: Duration = Duration::from_secs(30);

/// The body of `POST /v1/transitions`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct RunBody {
    /// What is to be so.
    pub targets: Vec<String>,
    /// What makes it idempotent; a random one when it is not given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub request_id: Option<String>,
    /// Why.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// The plan that was shown.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub plan_hash: Option<String>,
    /// What happens when a step fails for good; each group's own policy by default.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<Policy>")]
    pub on_failure: Option<OnFailure>,
    /// Milliseconds within which the decision must be taken.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub deadline_ms: Option<u64>,
    /// Voters and holders whose no or silence does not count, as `group@host`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub overrides: Vec<String>,
    /// Members of lost hosts are left out rather than in the way.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub exclude_lost: bool,
    /// Freezes and closed windows are not in the way. It needs a reason, as `overrides` do.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub override_freeze: bool,
}

/// Core's [`OnFailure`], for the description of the API.
#[derive(JsonSchema)]
#[schemars(rename_all = "kebab-case", rename = "OnFailure")]
#[expect(dead_code, reason = "only its schema is used")]
enum Policy {
    /// Every step is taken back.
    Undo,
    /// The member is left out.
    Exclude,
}

/// The body of `POST /v1/plans`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct PlanBody {
    /// What is to be so.
    pub targets: Vec<String>,
    /// Members of lost hosts are left out rather than in the way.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub exclude_lost: bool,
    /// What is frozen is planned all the same.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub override_freeze: bool,
}

impl PlanBody {
    /// The request that it asks about.
    pub fn request(self) -> Result<Request, Problem> {
        let Self { targets: written, exclude_lost, override_freeze } = self;
        Ok(Request { targets: targets(&written)?, exclude_lost, override_freeze, ..Request::default() })
    }
}

/// The body of `POST /v1/freezes`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct FreezeBody {
    /// The groups that no planned transition may move; none: the whole cluster.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub groups: Vec<String>,
    /// Why.
    pub reason: String,
    /// Milliseconds after which it ends by itself.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub for_ms: Option<u64>,
    /// When it ends by itself, such as `2026-01-31T09:05:00Z`; without either, when it is thawed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub until: Option<String>,
}

impl FreezeBody {
    /// The groups, the end and the reason, once they are known to make sense.
    pub fn checked(self) -> Result<(BTreeSet<GroupName>, FreezeEnd, String), Problem> {
        let Self { groups: names, reason, for_ms, until } = self;
        check_reason(&reason)?;
        let end = match (for_ms, until) {
            (None, None) => FreezeEnd::Never,
            (Some(ms), None) if (1..=FREEZE_MAX_MS).contains(&ms) => FreezeEnd::After(ms),
            (Some(ms), None) => {
                let help = format!("between 1 and {FREEZE_MAX_MS} (a year); leave it out for no end");
                return Err(bad(format!("for_ms is {ms}"), help));
            }
            (None, Some(until)) => FreezeEnd::At(until.parse().map_err(|problem| {
                bad(format!("until: {problem}"), "such as 2026-01-31T09:05:00Z, or use for_ms")
            })?),
            (Some(_), Some(_)) => return Err(bad("both for_ms and until", "name one of them")),
        };
        Ok((groups(&names)?, end, reason))
    }
}

/// The body of `POST /v1/freezes/thaw`; it may be left out.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct ThawBody {
    /// The groups; none: all that is frozen.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub groups: Vec<String>,
}

/// Reads names of groups.
pub fn groups(names: &[String]) -> Result<BTreeSet<GroupName>, Problem> {
    if names.len() > GROUPS_MAX {
        return Err(bad(format!("{} groups", names.len()), format!("at most {GROUPS_MAX}")));
    }
    let name = |text: &String| {
        text.parse().map_err(|error: NameError| bad(format!("groups: {error}"), "name groups"))
    };
    names.iter().map(name).collect()
}

/// What somebody is to read later, who asks why, or how it was known.
fn check_reason(reason: &str) -> Result<(), Problem> {
    if reason.trim().is_empty() {
        return Err(bad("reason is empty", "say why, for those who ask later"));
    }
    check_text("reason", reason, REASON_LEN_MAX)
}

/// The body of `POST /v1/hosts/{name}/labels`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct LabelBody {
    /// The labels to be set over those of the host's configuration; null takes one away again.
    pub labels: BTreeMap<String, Option<String>>,
}

impl LabelBody {
    /// The labels, once they are known to be plain text.
    pub fn checked(self) -> Result<BTreeMap<String, Option<String>>, Problem> {
        if self.labels.is_empty() {
            return Err(bad("no labels", "name some, such as {\"labels\": {\"zone\": \"a\"}}"));
        }
        for (label, value) in &self.labels {
            if label.is_empty() {
                return Err(bad("a label without a name", "write \"NAME\": \"VALUE\""));
            }
            check_text("a label", label, TEXT_LEN_MAX)?;
            value.iter().try_for_each(|value| check_text("a label", value, TEXT_LEN_MAX))?;
        }
        Ok(self.labels)
    }
}

/// The body of `POST /v1/hosts/{name}/forget`; it may be left out.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct ForgetBody {
    /// Whether somebody has made sure that nothing of the host runs.
    pub stopped: bool,
}

/// The body of `POST /v1/hosts/{name}/fence`; it may be left out.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct FenceBody {
    /// Somebody has made sure that the host has stopped; otherwise a fence handler does, on another host.
    pub confirm: bool,
    /// With `confirm`, and then needed: how that is known, for the record.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
}

impl FenceBody {
    /// What it asks for, in the name of `principal`.
    pub fn ask(self, principal: &str) -> Result<HostAsk, Problem> {
        match (self.confirm, self.reason) {
            (false, None) => Ok(HostAsk::Fence),
            (true, Some(reason)) => {
                check_reason(&reason)?;
                Ok(HostAsk::Fenced { principal: principal.to_owned(), reason })
            }
            (true, None) => {
                Err(bad("confirm without a reason", "say how you know that the host has stopped"))
            }
            (false, Some(_)) => {
                Err(bad("a reason without confirm", "leave it out: a handler on another host makes sure"))
            }
        }
    }
}

/// The body of `POST /v1/members/{member}/resolve`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ResolveBody {
    /// The state that the member is in.
    pub state: String,
    /// How that is known, for the record.
    pub reason: String,
}

impl ResolveBody {
    /// The state and the reason, once they are known to be a name and plain text.
    pub fn checked(self) -> Result<(StateName, String), Problem> {
        let state = StateName::new(&self.state)
            .map_err(|error| bad(format!("state: {error}"), "name one of the group's states"))?;
        check_reason(&self.reason)?;
        Ok((state, self.reason))
    }
}

/// The body of `POST /v1/server/away`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct AwayBody {
    /// The lease that hosts are to go by, in milliseconds.
    pub lease_ms: u64,
}

/// The body of a request that says nothing; it may be left out.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct EmptyBody {}

impl RunBody {
    /// The request that it asks for, in the name of `principal`.
    pub fn request(self, principal: &str) -> Result<Request, Problem> {
        let targets = targets(&self.targets)?;
        let request_id = self.request_id.clone().unwrap_or_else(random);
        if request_id.is_empty() {
            return Err(bad("request_id is empty", "leave it out to get a random one"));
        }
        check_text("request_id", &request_id, REQUEST_ID_LEN_MAX)?;
        if let Some(reason) = &self.reason {
            check_text("reason", reason, REASON_LEN_MAX)?;
        }
        let overrides_something = self.override_freeze || !self.overrides.is_empty();
        if overrides_something && self.reason.as_ref().is_none_or(|reason| reason.trim().is_empty()) {
            let help = "say in `reason` why it is right to go ahead all the same";
            return Err(bad("overrides without a reason", help));
        }
        if let Some(hash) = &self.plan_hash {
            check_text("plan_hash", hash, NAME_LEN_MAX)?;
            if hash.is_empty() {
                return Err(bad("plan_hash is empty", "leave it out to run whatever the plan is now"));
            }
        }
        if let Some(ms) = self.deadline_ms
            && !(1..=DURATION_MAX_MS).contains(&ms)
        {
            let help = format!("between 1 and {DURATION_MAX_MS} (a day); leave it out for the groups' own");
            return Err(bad(format!("deadline_ms is {ms}"), help));
        }
        if self.overrides.len() > TARGETS_MAX {
            let detail = format!("{} overrides", self.overrides.len());
            return Err(bad(detail, format!("at most {TARGETS_MAX}")));
        }
        let member = |text: &String| {
            text.parse().map_err(|error| bad(format!("overrides: {error}"), "name members: GROUP@HOST"))
        };
        let overrides = self.overrides.iter().map(member).collect::<Result<_, Problem>>()?;
        let Self { reason, plan_hash, on_failure, deadline_ms, exclude_lost, override_freeze, .. } = self;
        let principal = principal.to_owned();
        Ok(Request {
            request_id,
            principal,
            targets,
            reason,
            on_failure,
            deadline_ms,
            plan_hash,
            overrides,
            exclude_lost,
            // Only the server itself asks for that.
            is_automatic: false,
            override_freeze,
        })
    }
}

/// Reads targets.
pub fn targets(texts: &[String]) -> Result<Vec<Target>, Problem> {
    if texts.is_empty() {
        return Err(bad("no targets", "name what is to be so, such as \"db=online\""));
    }
    let help = "GROUP=STATE, GROUP@HOST=STATE, GROUP=up, GROUP=down, GROUP.KEY=VALUE, \"drain HOST\" or \"repair GROUP\"";
    texts.iter().map(|text| text.parse().map_err(|error: String| bad(error, help))).collect()
}

/// Text that people will read in a terminal: short, and without characters that move the cursor.
fn check_text(what: &str, text: &str, len_max: usize) -> Result<(), Problem> {
    if text.len() > len_max {
        let detail = format!("{what} has {} bytes", text.len());
        return Err(bad(detail, format!("at most {len_max} bytes")));
    }
    match characters_problem(text) {
        Some(problem) => Err(bad(format!("{what}: {problem}"), "use plain text on one line")),
        None => Ok(()),
    }
}

fn bad(detail: impl Into<String>, help: impl Into<String>) -> Problem {
    Problem::http(HttpCode::BadRequest, detail, help)
}

/// Reads a JSON body.
pub async fn read<T: serde::de::DeserializeOwned>(request: HttpRequest) -> Result<T, Problem> {
    let (head, body) = request.into_parts();
    content_type(&head.headers, &["application/json"])?;
    let bytes = collect(body, BODY_BYTES_MAX).await?;
    parse(&bytes)
}

/// Reads a body that says nothing: empty, or an empty object.
pub async fn read_empty(request: HttpRequest) -> Result<(), Problem> {
    let EmptyBody {} = read_or_default(request).await?;
    Ok(())
}

/// Reads a body that may be left out.
pub async fn read_or_default<T: Default + serde::de::DeserializeOwned>(
    request: HttpRequest,
) -> Result<T, Problem> {
    let (head, body) = request.into_parts();
    let bytes = collect(body, BODY_BYTES_MAX).await?;
    if bytes.is_empty() {
        return Ok(T::default());
    }
    content_type(&head.headers, &["application/json"])?;
    parse(&bytes)
}

fn parse<T: serde::de::DeserializeOwned>(bytes: &[u8]) -> Result<T, Problem> {
    let value = json::text(bytes).and_then(json::parse_object);
    value.map_err(|error| {
        let help = if error.is_syntax {
            "send one JSON object in UTF-8, each key once"
        } else {
            "the message names the field that does not fit"
        };
        bad(format!("the body: {error}"), help)
    })
}

/// Reads and checks a spec, as JSON or as TOML.
pub async fn read_spec(request: HttpRequest) -> Result<SpecFile, Problem> {
    let (head, body) = request.into_parts();
    let kind = content_type(&head.headers, &["application/json", "application/toml"])?;
    let format = if kind == "application/toml" { Format::Toml } else { Format::Json };
    let limit = usize::try_from(spec_file::FILE_BYTES_MAX).expect("16 MiB fit");
    let bytes = collect(body, limit).await?;
    // A large spec takes seconds to check; heartbeats on this thread must not wait for it.
    let checked = tokio::task::spawn_blocking(move || check_spec(format, &bytes)).await;
    checked.unwrap_or_else(|error| {
        let help = "report this with the spec that shows it";
        Err(Problem::from(Rejection::new(Code::SpecInvalid, format!("the check failed: {error}"), help)))
    })
}

fn check_spec(format: Format, bytes: &[u8]) -> Result<SpecFile, Problem> {
    let code = Code::SpecInvalid;
    let file = File::from_bytes("body", format, bytes, code.as_str());
    let file = file.map_err(|refused| bad(format!("the body: {refused}"), refused.help.clone()))?;
    let written: Result<SpecFile, String> = match format {
        Format::Json => match json::parse_object(&file.text) {
            Err(error) if error.is_syntax => {
                return Err(bad(
                    format!("the body: {error}"),
                    "send one JSON object in UTF-8, each key once",
                ));
            }
            parsed => parsed.map_err(|error| error.message),
        },
        Format::Toml => toml::from_str(&file.text).map_err(|error| {
            let place = error.span().map_or(0, |span| span.start.min(file.text.len()));
            let line = file.text.as_bytes()[..place].iter().filter(|byte| **byte == b'\n').count() + 1;
            json::brief(&format!("{} at line {line}", error.message().replace('\n', "; ")))
        }),
    };
    let written = written.map_err(|message| {
        let help =
            "`cluster`, `groups`, `relations` and `lifecycles` make a spec; see docs/errors/spec-invalid.md";
        Rejection::new(code, spec_file::plain(message.trim_end()), help)
    })?;
    match written.check() {
        Ok(_) => Ok(written),
        Err(error) => Err(spec_file::rejection(error).into()),
    }
}

/// The media type, when it is one of these.
fn content_type<'a>(headers: &HeaderMap, allowed: &[&'a str]) -> Result<&'a str, Problem> {
    let given = headers.get(header::CONTENT_TYPE).map(|value| value.to_str().unwrap_or("(not ASCII)"));
    let kind = given.map(|value| value.split(';').next().unwrap_or_default().trim().to_ascii_lowercase());
    if let Some(allowed) = allowed.iter().find(|allowed| kind.as_deref() == Some(allowed)) {
        return Ok(allowed);
    }
    let given: String = given.map_or("none".to_owned(), |given| given.chars().take(80).collect());
    let detail = format!("the content type is {given}");
    Err(Problem::http(HttpCode::WrongContentType, detail, format!("send {}", allowed.join(" or "))))
}

async fn collect(body: Body, limit: usize) -> Result<Bytes, Problem> {
    let read = axum::body::to_bytes(body, limit);
    let Ok(read) = tokio::time::timeout(BODY_TIME_MAX, read).await else {
        let detail = format!("the body did not arrive within {} s", BODY_TIME_MAX.as_secs());
        return Err(Problem::http(HttpCode::TooSlow, detail, "send it at once"));
    };
    read.map_err(|error| {
        if causes(&error).any(|cause| cause.is::<http_body_util::LengthLimitError>()) {
            return Problem::too_large(limit);
        }
        bad(
            format!("the body cannot be read: {error}"),
            "send all of it, in the framing that its headers say",
        )
    })
}
