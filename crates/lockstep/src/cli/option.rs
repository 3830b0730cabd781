//! What the long-running commands take, and the small values that flags are made of.

use clap::Args;
use clap::builder::{PathBufValueParser, TypedValueParser};
use lockstep_core::id::HostName;
use lockstep_core::spec::{DURATION_MAX_MS, text_problem};
use std::net::{IpAddr, SocketAddr};
use std::ops::RangeInclusive;
use std::path::PathBuf;
use std::time::Duration;

/// Where a server listens unless it is told otherwise: on loopback, plain.
pub const LISTEN_DEFAULT: &str = "127.0.0.1:7420";

/// `lockstep server`.
#[derive(Debug, Clone, PartialEq, Eq, Args)]
pub struct ServerOptions {
    /// Directory of the journal; made when it is not there
    #[arg(long, value_name = "DIR", required_unless_present = "store", value_parser = directory())]
    pub data: Option<PathBuf>,
    /// Address to listen on; port 0 takes any free one
    #[arg(long, value_name = "ADDR:PORT", default_value = LISTEN_DEFAULT)]
    pub listen: SocketAddr,
    /// Where the journal is kept in etcd. Its help is no documentation: rustdoc would take the brackets for links.
    #[arg(
        long,
        value_name = "URL",
        requires = "name",
        help = "Keep the journal in etcd: etcd://HOST:PORT[,HOST:PORT...][/PREFIX]; without PREFIX under /lockstep/"
    )]
    pub store: Option<String>,
    /// How etcd is reached
    #[command(flatten)]
    pub etcd: EtcdOptions,
    /// This server's name among those that share a store
    #[arg(long, value_name = "NAME")]
    pub name: Option<HostName>,
    /// Where operators and agents reach this server, if not where it listens; the other servers send them there
    #[arg(long, value_name = "URL", requires = "store", value_parser = advertised_url)]
    pub advertise: Option<String>,
    /// Plain and without credentials, also where others can reach it
    #[arg(long)]
    pub insecure: bool,
}

/// How etcd is reached. Its password comes from a file, or from `LOCKSTEP_ETCD_PASSWORD`: arguments can be read by all
/// users of a machine.
#[derive(Debug, Clone, Default, PartialEq, Eq, Args)]
#[command(next_help_heading = "etcd")]
pub struct EtcdOptions {
    /// Certificate that those of etcd are signed with, as PEM; for etcds://
    #[arg(long, value_name = "FILE")]
    pub etcd_ca: Option<PathBuf>,
    /// Certificate that is shown to etcd, as PEM
    #[arg(long, value_name = "FILE", requires = "etcd_key")]
    pub etcd_cert: Option<PathBuf>,
    /// Its key, as PEM
    #[arg(long, value_name = "FILE", requires = "etcd_cert")]
    pub etcd_key: Option<PathBuf>,
    /// User of etcd
    #[arg(long, value_name = "NAME")]
    pub etcd_user: Option<String>,
    /// File with that user's password; without it the variable LOCKSTEP_ETCD_PASSWORD
    #[arg(long, value_name = "FILE", requires = "etcd_user")]
    pub etcd_password_file: Option<PathBuf>,
}

/// `lockstep agent`.
#[derive(Debug, Clone, PartialEq, Eq, Args)]
pub struct AgentOptions {
    /// Servers to dial, any of them active
    #[arg(long, value_name = "URL", required = true, num_args = 1.., value_delimiter = ',', value_parser = server_url)]
    pub server: Vec<String>,
    /// This host's name
    #[arg(long, value_name = "NAME")]
    pub name: HostName,
    /// Where other hosts reach this one
    #[arg(long, value_name = "ADDR", value_parser = plain_text)]
    pub address: Option<String>,
    /// A label of this host, over those of its configuration
    #[arg(long = "label", value_name = "K=V", value_parser = label)]
    pub labels: Vec<(String, String)>,
    /// Directory of the agent's identity and journal; made when it is not there
    #[arg(long, value_name = "DIR", value_parser = directory())]
    pub data: PathBuf,
    /// What this host lets its agent run
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// Plain and without credentials, also to servers on other machines
    #[arg(long)]
    pub insecure: bool,
}

/// `lockstep dev`.
#[derive(Debug, Clone, PartialEq, Eq, Args)]
pub struct DevOptions {
    /// Address to listen on; port 0 takes any free one
    #[arg(long, value_name = "ADDR:PORT", default_value = LISTEN_DEFAULT)]
    pub listen: SocketAddr,
    /// Directory to keep everything in; a temporary one when it is not given
    #[arg(long, value_name = "DIR", value_parser = directory())]
    pub data: Option<PathBuf>,
}

/// A directory to keep something in, or to make.
pub fn directory() -> impl TypedValueParser<Value = PathBuf> {
    PathBufValueParser::new().try_map(|path| match path.metadata() {
        Ok(found) if !found.is_dir() => Err("that is a file: name a directory, there or to be made"),
        // Whoever is going to use it finds out what else is wrong with it.
        Ok(_) | Err(_) => Ok(path),
    })
}

/// A server's address, with `http://` before it.
pub fn server_url(text: &str) -> Result<String, String> {
    if text.starts_with("https://") {
        return Err("TLS is not available in this version: use http://".to_owned());
    }
    let place = text.strip_prefix("http://").unwrap_or(text).trim_end_matches('/');
    let is_place = !place.is_empty()
        && place.is_ascii()
        && !place.contains(['/', '?', '#', '@', ' '])
        && !place.chars().any(char::is_control);
    if is_place { Ok(format!("http://{place}")) } else { Err("write http://HOST:PORT".to_owned()) }
}

/// An address that others are sent to: whole, and of one machine.
fn advertised_url(text: &str) -> Result<String, String> {
    if !text.contains("://") {
        return Err("write http://HOST:PORT: it is sent to others as it is".to_owned());
    }
    let url = server_url(text)?;
    let parsed = reqwest::Url::parse(&url).map_err(|error| format!("write http://HOST:PORT: {error}"))?;
    let host = parsed.host_str().unwrap_or_default();
    let ip = host.trim_matches(['[', ']']).parse::<IpAddr>();
    if ip.is_ok_and(|ip| ip.is_unspecified()) {
        return Err(format!(
            "{host} is no address to send others to: name one at which they reach this server"
        ));
    }
    match parsed.port_or_known_default() {
        Some(0) => Err("port 0 is none that others can reach".to_owned()),
        Some(_) | None => Ok(url),
    }
}

/// `K=V`.
fn label(text: &str) -> Result<(String, String), String> {
    let (key, value) = text.split_once('=').ok_or("write KEY=VALUE")?;
    if key.is_empty() {
        return Err("the label has no name: write KEY=VALUE".to_owned());
    }
    Ok((plain_text(key)?, plain_text(value)?))
}

/// Text that people will read in a terminal.
fn plain_text(text: &str) -> Result<String, String> {
    match text_problem(text) {
        Some(problem) => Err(problem.to_owned()),
        None => Ok(text.to_owned()),
    }
}

/// A time such as `30s`, `1500ms`, `2m` or `1h`, of at most a day.
pub fn duration(text: &str) -> Result<Duration, String> {
    span(text, 1..=DURATION_MAX_MS)
}

/// A time such as `30s`, `2h` or `3d`, of so many milliseconds.
pub fn span(text: &str, range_ms: RangeInclusive<u64>) -> Result<Duration, String> {
    const HELP: &str = "write a number and its unit: 500ms, 30s, 2m, 1h or 1d";
    const HOUR_MS: u64 = 3_600_000;
    let digits = text.bytes().take_while(|byte| byte.is_ascii_digit() || *byte == b'.').count();
    let (number, unit) = text.split_at(digits);
    let unit_ms = match unit {
        "ms" => 1.0,
        "s" => 1000.0,
        "m" => 60_000.0,
        "h" => HOUR_MS as f64,
        "d" => (24 * HOUR_MS) as f64,
        _ => return Err(HELP.to_owned()),
    };
    let ms = number.parse::<f64>().map_err(|_| HELP.to_owned())? * unit_ms;
    let (min_ms, max_ms) = range_ms.into_inner();
    if !(min_ms as f64..=max_ms as f64).contains(&ms) {
        return Err(format!("between {min_ms}ms and {}h", max_ms / HOUR_MS));
    }
    Ok(Duration::from_millis(ms as u64))
}

/// A span as people read it: `41 ms`, `1.2 s`, `3 min 5 s`.
pub fn shown(span: Duration) -> String {
    let ms = span.as_millis();
    match ms {
        0..1000 => format!("{ms} ms"),
        1000..100_000 => format!("{}.{} s", ms / 1000, ms % 1000 / 100),
        _ => format!("{} min {} s", ms / 60_000, ms % 60_000 / 1000),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use lockstep_core::engine::AWAY_MS;

    #[test]
    fn durations_have_units() {
        for (text, ms) in
            [("500ms", 500), ("30s", 30_000), ("1.5s", 1500), ("2m", 120_000), ("24h", DURATION_MAX_MS)]
        {
            assert_eq!(duration(text), Ok(Duration::from_millis(ms)), "{text}");
        }
        for bad in
            ["", "30", "s", "-1s", "0s", "0.1ms", "25h", "1e3s", "NaNs", "infs", "1..2s", "30 s", "2d", "1w"]
        {
            duration(bad).unwrap_err();
        }
        assert_eq!(duration("1d"), duration("24h"));
        assert_eq!(span("3d", 1..=u64::MAX), Ok(Duration::from_secs(3 * 86_400)));
        assert_eq!(duration("2d").unwrap_err(), "between 1ms and 24h");
        assert_eq!(span("2h", AWAY_MS).unwrap_err(), "between 1000ms and 1h");
    }

    #[test]
    fn addresses_are_plain_http() {
        for (text, url) in
            [("http://a:1/", "http://a:1"), ("a:1", "http://a:1"), ("http://[::1]:7", "http://[::1]:7")]
        {
            assert_eq!(server_url(text).as_deref(), Ok(url), "{text}");
        }
        for bad in ["", "http://", "https://a", "http://a/b", "http://u:p@a", "ftp://a", "a b", "a\n"] {
            server_url(bad).unwrap_err();
        }
    }

    #[test]
    fn others_are_sent_to_a_whole_address_of_one_machine() {
        for url in ["http://10.0.0.1:7420", "http://a.example", "http://[fd00::1]:7420"] {
            assert_eq!(advertised_url(url).as_deref(), Ok(url));
        }
        for bad in [
            "nonsense",
            "10.0.0.1:7420",
            "ftp://a:1",
            "http://",
            "http://0.0.0.0:7420",
            "http://0:7420",
            "http://[::]:7420",
            "http://a:0",
            "http://a:99999",
            "http://a:b",
            "http://a/b",
        ] {
            advertised_url(bad).unwrap_err();
        }
    }

    #[test]
    fn spans_are_short() {
        for (ms, text) in [(0, "0 ms"), (999, "999 ms"), (1234, "1.2 s"), (185_000, "3 min 5 s")] {
            assert_eq!(shown(Duration::from_millis(ms)), text);
        }
    }
}
