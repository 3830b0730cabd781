//! The command line's way to the servers: several addresses, the first that answers.
//!
//! Every request may be sent again: reads change nothing, and writes are idempotent (a run by its request id).

use super::Failure;
use crate::api::problem::Problem;
use reqwest::{Method, StatusCode, header};
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::cell::Cell;
use std::time::Duration;

/// How long a connection may take. A server that is a continent away needs less.
const CONNECT_MAX: Duration = Duration::from_secs(3);
/// How long an answer may take, over what a long poll asks to wait.
const ANSWER_MAX: Duration = Duration::from_secs(30);

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
    /// A server refused.
    Refused(Box<Problem>),
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
        let http = reqwest::Client::builder().no_proxy().connect_timeout(CONNECT_MAX).build();
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
        let mut away = String::new();
        for place in 0..self.addresses.len() {
            let place = (self.last.get() + place) % self.addresses.len();
            let address = &self.addresses[place];
            let request = self.http.get(format!("{address}{path}"));
            match tokio::time::timeout(ANSWER_MAX, open(request)).await {
                Ok(Ok(incoming)) => {
                    self.last.set(place);
                    return Ok(incoming);
                }
                Ok(Err(ClientError::Away(why))) => away = format!("{address}: {why}"),
                Ok(Err(refused @ ClientError::Refused(_))) => return Err(refused),
                Err(_) => away = format!("{address}: it does not answer"),
            }
        }
        Err(ClientError::Away(away))
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
        self.ask(method, path, body, tag, wait, answer).await
    }

    /// Reads what is no object.
    pub async fn download(&self, path: &str) -> Result<Vec<u8>, ClientError> {
        let read = async |request: reqwest::RequestBuilder| {
            let (status, _, bytes) = received(request).await?;
            if status.is_success() { Ok(bytes) } else { Err(refusal(status, &bytes)) }
        };
        self.ask(Method::GET, path, None, None, DOWNLOAD_MAX, read).await
    }

    /// Asks the servers one after the other until one answers.
    async fn ask<T>(
        &self,
        method: Method,
        path: &str,
        body: Option<Vec<u8>>,
        tag: Option<&str>,
        wait: Duration,
        answer: impl AsyncFn(reqwest::RequestBuilder) -> Result<T, ClientError>,
    ) -> Result<T, ClientError> {
        let mut away = String::new();
        for place in 0..self.addresses.len() {
            let place = (self.last.get() + place) % self.addresses.len();
            let address = &self.addresses[place];
            let mut request = self.http.request(method.clone(), format!("{address}{path}"));
            request = request.timeout(ANSWER_MAX + wait);
            if let Some(tag) = tag {
                request = request.header(header::IF_NONE_MATCH, tag);
            }
            if let Some(body) = &body {
                request = request.header(header::CONTENT_TYPE, "application/json").body(body.clone());
            }
            match answer(request).await {
                Ok(answer) => {
                    self.last.set(place);
                    return Ok(answer);
                }
                Err(ClientError::Away(why)) => away = format!("{address}: {why}"),
                Err(refused @ ClientError::Refused(_)) => return Err(refused),
            }
        }
        Err(ClientError::Away(away))
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
        // Another server may be the active one.
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

/// The last cause: "Connection refused" rather than "error sending request".
fn innermost(error: &dyn std::error::Error) -> String {
    let mut innermost = error;
    while let Some(source) = innermost.source() {
        innermost = source;
    }
    innermost.to_string()
}
