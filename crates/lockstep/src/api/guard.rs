//! Keeps web pages away from a server that asks for no credentials: whoever has one open would act for it.
//!
//! A page may point a name of its own at the loopback address (DNS rebinding) and then is of the same origin as the
//! server, so on loopback the name that was asked counts. Elsewhere a plain server has names that it does not know,
//! and `--insecure` has said so.

use super::problem::{HttpCode, Problem};
use axum::Router;
use axum::extract::{Request, State};
use axum::http::uri::Authority;
use axum::http::{HeaderMap, Uri, header};
use axum::middleware::{self, Next};
use axum::response::Response;
use std::net::{IpAddr, SocketAddr};

/// The routes behind the guard of a server that listens there.
pub fn guarded(router: Router, listen: SocketAddr) -> Router {
    router.layer(middleware::from_fn_with_state(listen, check))
}

async fn check(State(listen): State<SocketAddr>, request: Request, next: Next) -> Result<Response, Problem> {
    let host = asked(request.uri(), request.headers())?;
    if let Some(host) = &host
        && listen.ip().is_loopback()
        && !is_here(host, listen.ip())
    {
        let detail = format!("this server is not called {}", brief(host.as_str()));
        let help = "ask it as localhost or by its address: without credentials it goes by no other name";
        return Err(Problem::http(HttpCode::WrongHost, detail, help));
    }
    if let Some(origin) = request.headers().get(header::ORIGIN) {
        let origin = origin.to_str().unwrap_or("(not ASCII)");
        let authority = origin.split_once("://").map(|(_, authority)| authority);
        let is_own = host.is_some_and(|host| authority.is_some_and(|origin| host == *origin));
        if !is_own {
            let detail = format!("a page of {} asks", brief(origin));
            let help = "only pages of this server itself may ask it; programs leave the Origin header out";
            return Err(Problem::http(HttpCode::WrongOrigin, detail, help));
        }
    }
    Ok(next.run(request).await)
}

/// The host that the request is meant for, with its port; none when it does not say, which no browser does.
fn asked(uri: &Uri, headers: &HeaderMap) -> Result<Option<Authority>, Problem> {
    let mut hosts = headers.get_all(header::HOST).iter();
    let (host, more) = (hosts.next(), hosts.next());
    let host = host.map(|host| Authority::try_from(host.as_bytes())).transpose();
    match (host, more) {
        // What a request line names goes before the header.
        (Ok(host), None) => Ok(uri.authority().cloned().or(host)),
        (Ok(_), Some(_)) | (Err(_), _) => {
            let help = "send one Host header, such as localhost:7420";
            Err(Problem::http(HttpCode::WrongHost, "the Host header cannot be read, or is there twice", help))
        }
    }
}

fn is_here(asked: &Authority, listen: IpAddr) -> bool {
    let host = asked.host().trim_start_matches('[').trim_end_matches(']');
    match host.parse::<IpAddr>() {
        Ok(address) => address.is_loopback() || address == listen,
        Err(_) => host.eq_ignore_ascii_case("localhost"),
    }
}

fn brief(text: &str) -> String {
    text.chars().take(80).collect()
}
