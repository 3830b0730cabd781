//! Errors as the API answers them: RFC 9457 problem objects with a stable code and what to do.

use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use lockstep_core::id::Index;
use lockstep_core::request::{Code, Obstacle, Rejection};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// A problem object. Its `type` is left out, which RFC 9457 reads as `about:blank`: `code` says what kind it is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Problem {
    /// The HTTP status.
    pub status: u16,
    /// What the status is called.
    pub title: String,
    /// What kind of problem: a rejection code, or one of those of [`HttpCode`].
    pub code: String,
    /// What is in the way.
    pub detail: String,
    /// What to do about it.
    pub help: String,
    /// With `compacted`: what to ask the events since, to get all that are kept.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kept_since: Option<u64>,
}

/// Problems of the HTTP request itself; each has a page in `docs/errors/`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum HttpCode {
    /// The request cannot be understood.
    BadRequest,
    /// There is nothing of that name.
    NotFound,
    /// There is something of that name, and that cannot be done to it.
    MethodNotAllowed,
    /// The body is not said to be JSON.
    WrongContentType,
    /// The body took too long to arrive.
    TooSlow,
    /// The events asked for are not kept any more.
    Compacted,
    /// It was sent to a name that is not this server's: a browser may have been misled.
    WrongHost,
    /// A page from elsewhere sent it.
    WrongOrigin,
}

impl HttpCode {
    /// Every code.
    pub const ALL: [Self; 8] = [
        Self::BadRequest,
        Self::NotFound,
        Self::MethodNotAllowed,
        Self::WrongContentType,
        Self::TooSlow,
        Self::Compacted,
        Self::WrongHost,
        Self::WrongOrigin,
    ];

    /// The code as users see it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::BadRequest => "bad-request",
            Self::NotFound => "not-found",
            Self::MethodNotAllowed => "method-not-allowed",
            Self::WrongContentType => "wrong-content-type",
            Self::TooSlow => "too-slow",
            Self::Compacted => "compacted",
            Self::WrongHost => "wrong-host",
            Self::WrongOrigin => "wrong-origin",
        }
    }

    pub(super) fn status(self) -> StatusCode {
        match self {
            Self::BadRequest => StatusCode::BAD_REQUEST,
            Self::NotFound => StatusCode::NOT_FOUND,
            Self::MethodNotAllowed => StatusCode::METHOD_NOT_ALLOWED,
            Self::WrongContentType => StatusCode::UNSUPPORTED_MEDIA_TYPE,
            Self::TooSlow => StatusCode::REQUEST_TIMEOUT,
            Self::Compacted => StatusCode::GONE,
            Self::WrongHost => StatusCode::MISDIRECTED_REQUEST,
            Self::WrongOrigin => StatusCode::FORBIDDEN,
        }
    }
}

impl Problem {
    /// A problem of the HTTP request itself.
    pub fn http(code: HttpCode, detail: impl Into<String>, help: impl Into<String>) -> Self {
        Self::new(code.status(), code.as_str(), detail, help)
    }

    /// A body of more bytes than are read.
    pub fn too_large(limit: usize) -> Self {
        let detail = format!("the body has more than {limit} bytes");
        Self::new(StatusCode::PAYLOAD_TOO_LARGE, Code::TooLarge.as_str(), detail, "split the request")
    }

    /// Events before the first index that is kept.
    pub fn compacted(since: Index, floor: Index) -> Self {
        let kept = floor.0.saturating_sub(1);
        let detail = format!("what followed revision {since} is not kept any more; what follows {kept} is");
        let help = format!("read the lists again and go on from their revision, or ask since={kept}");
        Self { kept_since: Some(kept), ..Self::http(HttpCode::Compacted, detail, help) }
    }

    fn new(
        status: StatusCode,
        code: &'static str,
        detail: impl Into<String>,
        help: impl Into<String>,
    ) -> Self {
        let title = status.canonical_reason().unwrap_or_default().to_owned();
        let (code, detail, help) = (code.to_owned(), detail.into(), help.into());
        Self { status: status.as_u16(), title, code, detail, help, kept_since: None }
    }
}

impl From<Rejection> for Problem {
    fn from(Rejection { code, message, help, .. }: Rejection) -> Self {
        Self::new(status(code), code.as_str(), message, help)
    }
}

/// The status that goes with a rejection: whether to ask again later, elsewhere, or for something else.
pub(super) fn status(code: Code) -> StatusCode {
    match code.obstacle() {
        Obstacle::SameId => StatusCode::CONFLICT,
        Obstacle::Load => StatusCode::TOO_MANY_REQUESTS,
        Obstacle::Server => StatusCode::SERVICE_UNAVAILABLE,
        Obstacle::Lasting | Obstacle::States => StatusCode::UNPROCESSABLE_ENTITY,
    }
}

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        let status = StatusCode::from_u16(self.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        let body = serde_json::to_vec(&self).expect("a problem is plain data");
        let mut response = (status, body).into_response();
        let headers = response.headers_mut();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/problem+json"));
        headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
        if matches!(status, StatusCode::TOO_MANY_REQUESTS | StatusCode::SERVICE_UNAVAILABLE) {
            headers.insert(header::RETRY_AFTER, HeaderValue::from_static("1"));
        }
        response
    }
}
