//! The command line's way to the servers: several addresses, the first that answers. One that stands by sends what
//! changes anything to the active one; while another takes over, all are asked again for a while.
//!
//! Every request may be sent again: reads change nothing, and writes are idempotent (a run by its request id).

use super::Failure;
use super::servers::{Said, idle};
use crate::api::problem::Problem;
use crate::cause::innermost;
use lockstep_core::request::Code;
use reqwest::{Method, StatusCode, header};
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::cell::Cell;
use std::time::Duration;
use tokio::time::{Instant, sleep};

/// How long a connection may take; the shorter time counts where another server may be asked instead. A server that is a
/// continent away needs less.
const CONNECT_MAX: Duration = Duration::from_secs(3);
const CONNECT_ONE_OF_MANY_MAX: Duration = Duration::from_secs(1);
/// A server whose host says nothing for so long is gone, also while it is waited for: one that has lost its power does not
/// close connections.
const HOST_SILENCE_MAX: Duration = Duration::from_secs(4);
/// How often its host is asked whether it is there.
const HOST_ASK_EVERY: Duration = Duration::from_secs(1);
/// How long an answer may take, over what a long poll asks to wait.
const ANSWER_MAX: Duration = Duration::from_secs(30);

/// How long servers are asked again while none of them is the active one. One takes over within a few seconds. Too low:
/// commands fail meanwhile. Too high: they hang when nobody is going to.
const TAKE_OVER_MAX: Duration = Duration::from_secs(10);
/// The pause before they are.
const TAKE_OVER_PAUSE: Duration = Duration::from_millis(100);

/// How long each server may take to say what it is. Those that do not answer are no reason to wait.
const SERVER_MAX: Duration = Duration::from_secs(1);

/// How much longer a whole cluster may take.
const DOWNLOAD_MAX: Duration = Duration::from_secs(300);

/// A way to the servers.
#[derive(Debug)]
pub struct Client {
    http: reqwest::Client,
    addresses: Vec<String>,
    /// The address that answered last: the others are probably standing by.
    last: Cell<usize>,
}

/// Why there is no answer.
#[derive(Debug)]
pub enum ClientError {
    /// No server could be reached, or none could say.
    Away(String),
    /// A server is there and is not the active one. For whoever has asked all of them for long enough: none of them is,
    /// and what they do instead.
    NotActive(String),
    /// A server refused.
    Refused(Box<Problem>),
}

impl ClientError {
    /// What no server does.
    pub fn lacks(&self) -> &'static str {
        match self {
            Self::NotActive(_) => "is active",
            Self::Away(_) | Self::Refused(_) => "answers",
        }
    }

    /// In words.
    pub fn why(&self) -> &str {
        match self {
            Self::Away(why) | Self::NotActive(why) => why,
            Self::Refused(problem) => &problem.detail,
        }
    }
}

/// An answer.
#[derive(Debug)]
pub struct Answer<T> {
    /// The status.
    pub status: StatusCode,
    /// Which version of the object it is.
    pub tag: Option<String>,
    /// The object.
    pub body: T,
}

impl Client {
    /// A way to the servers at these addresses.
    pub fn new(addresses: Vec<String>) -> Result<Self, Failure> {
        // A proxy of the environment is for the world outside, not for loopback and machine rooms.
        let connect_max = if addresses.len() > 1 { CONNECT_ONE_OF_MANY_MAX } else { CONNECT_MAX };
        let http = reqwest::Client::builder().no_proxy().connect_timeout(connect_max);
        let http = http.tcp_keepalive(HOST_ASK_EVERY).tcp_keepalive_interval(HOST_ASK_EVERY);
        let http = http.tcp_user_timeout(HOST_SILENCE_MAX).build();
        let http = http.map_err(|error| Failure::error(format!("cannot make an HTTP client: {error}")))?;
        Ok(Self { http, addresses, last: Cell::new(0) })
    }

    /// Reads.
    pub async fn get<T: DeserializeOwned>(&self, path: &str) -> Result<T, ClientError> {
        Ok(self.send(Method::GET, path, None::<&()>, None, Duration::ZERO).await?.body)
    }

    /// Reads as soon as the object differs from the one with that tag, or the time is up.
    pub async fn watch<T: DeserializeOwned>(
        &self,
        path: &str,
        tag: Option<&str>,
        wait: Duration,
    ) -> Result<Answer<T>, ClientError> {
        let path = format!("{path}?wait_ms={}", wait.as_millis());
        self.send(Method::GET, &path, None::<&()>, tag, wait).await
    }

    /// Writes.
    pub async fn post<T: DeserializeOwned>(
        &self,
        path: &str,
        body: &impl Serialize,
    ) -> Result<Answer<T>, ClientError> {
        self.send(Method::POST, path, Some(body), None, Duration::ZERO).await
    }

    /// Writes, and asks each server once only.
    pub async fn post_once<T: DeserializeOwned>(
        &self,
        path: &str,
        body: &impl Serialize,
    ) -> Result<Answer<T>, ClientError> {
        let body = Some(serde_json::to_vec(body).expect("what we send is plain data"));
        self.ask(Method::POST, path, body, None, Duration::ZERO, Duration::ZERO, answer).await
    }

    /// Writes what takes so much longer to answer.
    pub async fn post_patiently<T: DeserializeOwned>(
        &self,
        path: &str,
        body: &impl Serialize,
        patience: Duration,
    ) -> Result<Answer<T>, ClientError> {
        self.send(Method::POST, path, Some(body), None, patience).await
    }

    /// Replaces.
    pub async fn put<T: DeserializeOwned>(
        &self,
        path: &str,
        body: &impl Serialize,
    ) -> Result<T, ClientError> {
        Ok(self.send(Method::PUT, path, Some(body), None, Duration::ZERO).await?.body)
    }

    /// Opens a stream.
    pub async fn stream(&self, path: &str) -> Result<Incoming, ClientError> {
        let open = async |address: &str| {
            let opening = open(self.http.get(format!("{address}{path}")));
            let is_silent = |_| ClientError::Away("it does not answer".to_owned());
            tokio::time::timeout(ANSWER_MAX, opening).await.map_err(is_silent)?
        };
        self.try_all(TAKE_OVER_MAX, open).await
    }

    /// The address that answered last.
    pub fn answered_last(&self) -> &str {
        &self.addresses[self.last.get()]
    }

    /// What each server says of itself, by the addresses that were given.
    pub async fn each_server(&self) -> Vec<Said<'_>> {
        let each = self.addresses.iter().map(async |address| {
            let request = self.http.get(format!("{address}/v1/server")).timeout(SERVER_MAX);
            (address.as_str(), answer(request).await.map(|answer| answer.body))
        });
        futures_util::future::join_all(each).await
    }

    async fn send<T: DeserializeOwned>(
        &self,
        method: Method,
        path: &str,
        body: Option<&impl Serialize>,
        tag: Option<&str>,
        wait: Duration,
    ) -> Result<Answer<T>, ClientError> {
        let body = body.map(|body| serde_json::to_vec(body).expect("what we send is plain data"));
        self.ask(method, path, body, tag, wait, TAKE_OVER_MAX, answer).await
    }

    /// Reads what is no object.
    pub async fn download(&self, path: &str) -> Result<Vec<u8>, ClientError> {
        let read = async |request: reqwest::RequestBuilder| {
            let (status, _, bytes) = received(request).await?;
            if status.is_success() { Ok(bytes) } else { Err(refusal(status, &bytes)) }
        };
        self.ask(Method::GET, path, None, None, DOWNLOAD_MAX, TAKE_OVER_MAX, read).await
    }

    #[expect(clippy::too_many_arguments, reason = "all that makes up a request")]
    async fn ask<T>(
        &self,
        method: Method,
        path: &str,
        body: Option<Vec<u8>>,
        tag: Option<&str>,
        wait: Duration,
        patience: Duration,
        answer: impl AsyncFn(reqwest::RequestBuilder) -> Result<T, ClientError>,
    ) -> Result<T, ClientError> {
        let ask = async |address: &str| {
            let mut request = self.http.request(method.clone(), format!("{address}{path}"));
            request = request.timeout(ANSWER_MAX + wait);
            if let Some(tag) = tag {
                request = request.header(header::IF_NONE_MATCH, tag);
            }
            if let Some(body) = &body {
                request = request.header(header::CONTENT_TYPE, "application/json").body(body.clone());
            }
            answer(request).await
        };
        self.try_all(patience, ask).await
    }

    /// Asks the servers one after the other until one answers, and for so long again while another may take over: one is
    /// there that is not the active one, or there are several.
    async fn try_all<T>(
        &self,
        patience: Duration,
        ask: impl AsyncFn(&str) -> Result<T, ClientError>,
    ) -> Result<T, ClientError> {
        let end = Instant::now() + patience;
        loop {
            let mut away = String::new();
            let mut may_take_over = self.addresses.len() > 1;
            for place in 0..self.addresses.len() {
                let place = (self.last.get() + place) % self.addresses.len();
                let address = &self.addresses[place];
                match ask(address).await {
                    Ok(answer) => {
                        self.last.set(place);
                        return Ok(answer);
                    }
                    Err(ClientError::Away(why)) => away = format!("{address}: {why}"),
                    Err(ClientError::NotActive(why)) => {
                        may_take_over = true;
                        away = format!("{address}: {why}");
                    }
                    Err(refused @ ClientError::Refused(_)) => return Err(refused),
                }
            }
            if !may_take_over || Instant::now() + TAKE_OVER_PAUSE >= end {
                // One that stands by sends on to an active server that may be gone: then it seems to be away itself.
                let idle = if may_take_over { idle(&self.each_server().await) } else { None };
                return Err(idle.map_or(ClientError::Away(away), ClientError::NotActive));
            }
            sleep(TAKE_OVER_PAUSE).await;
        }
    }
}

/// An answer's status, its tag and its bytes.
async fn received(
    request: reqwest::RequestBuilder,
) -> Result<(StatusCode, Option<String>, Vec<u8>), ClientError> {
    let away = |error: reqwest::Error| ClientError::Away(innermost(&error));
    let response = request.send().await.map_err(away)?;
    let status = response.status();
    let tag = response.headers().get(header::ETAG).and_then(|tag| tag.to_str().ok()).map(str::to_owned);
    Ok((status, tag, response.bytes().await.map_err(away)?.into()))
}

async fn answer<T: DeserializeOwned>(request: reqwest::RequestBuilder) -> Result<Answer<T>, ClientError> {
    let (status, tag, bytes) = received(request).await?;
    if status.is_success() {
        let body = serde_json::from_slice(&bytes);
        return body.map(|body| Answer { status, tag, body }).map_err(|error| {
            ClientError::Away(format!("it answers with something else ({error}): is it a lockstep server?"))
        });
    }
    Err(refusal(status, &bytes))
}

fn refusal(status: StatusCode, bytes: &[u8]) -> ClientError {
    match serde_json::from_slice::<Problem>(bytes) {
        // Another server may be the active one, or become it.
        Ok(problem) if problem.code == Code::NotActive.as_str() => ClientError::NotActive(problem.detail),
        Ok(problem) if problem.status == 503 => ClientError::Away(problem.detail),
        Ok(problem) => ClientError::Refused(Box::new(problem)),
        Err(_) => ClientError::Away(format!("it answers {status}: is it a lockstep server?")),
    }
}

async fn open(request: reqwest::RequestBuilder) -> Result<Incoming, ClientError> {
    let away = |error: reqwest::Error| ClientError::Away(innermost(&error));
    let response = request.send().await.map_err(away)?;
    let status = response.status();
    if status.is_success() {
        return Ok(Incoming { response });
    }
    Err(refusal(status, &response.bytes().await.map_err(away)?))
}

/// An answer that comes piece by piece.
#[derive(Debug)]
pub struct Incoming {
    response: reqwest::Response,
}

impl Incoming {
    /// The next piece; none when all of it has come. Or what went wrong.
    pub async fn chunk(&mut self) -> Result<Option<impl AsRef<[u8]> + use<>>, String> {
        self.response.chunk().await.map_err(|error| innermost(&error))
    }
}
