//! Where etcd is and how it is reached, as operators write it.

use crate::cli::option::EtcdOptions;
use crate::store::Error;
use etcd_client::{Certificate, ConnectOptions, Identity, TlsOptions};
use std::path::Path;
use std::time::Duration;

const PLAIN: &str = "etcd://";
const TLS: &str = "etcds://";
const PORT: u16 = 2379;
const PREFIX: &str = "lockstep";
/// The variable that holds the password where no file does.
const PASSWORD: &str = "LOCKSTEP_ETCD_PASSWORD";
/// What a certificate in PEM form begins with.
const CERTIFICATE: &[u8] = b"-----BEGIN CERTIFICATE-----";
/// How long a connection may take to stand.
const CONNECT: Duration = Duration::from_secs(2);
/// How often an open stream's connection is tried, and how long an answer may take. A server of etcd closes
/// connections that are tried more often than every five seconds, unless it was told otherwise.
const PING: (Duration, Duration) = (Duration::from_secs(6), Duration::from_secs(3));

/// An address, taken apart.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Address {
    /// Members' addresses, as URLs.
    pub(super) members: Vec<String>,
    /// What every key begins with; it ends in a slash.
    pub(super) prefix: String,
    is_tls: bool,
}

impl Address {
    /// Reads `etcd://HOST:PORT[,HOST:PORT...][/PREFIX]`, or `etcds://` for TLS.
    pub(super) fn parse(text: &str) -> Result<Self, Error> {
        let wrong = |reason: &str| unusable(text, reason, "write etcd://HOST:PORT[,HOST:PORT...][/PREFIX]");
        let (scheme, is_tls, rest) = match (text.strip_prefix(PLAIN), text.strip_prefix(TLS)) {
            (Some(rest), _) => ("http", false, rest),
            (None, Some(rest)) => ("https", true, rest),
            (None, None) => return Err(wrong("it is no address of etcd")),
        };
        let (members, path) = rest.split_once('/').unwrap_or((rest, PREFIX));
        let prefix = path.strip_suffix('/').unwrap_or(path);
        let is_segment = |segment: &str| !matches!(segment, "" | "." | "..");
        if !path.is_empty() && !prefix.split('/').all(is_segment) {
            return Err(wrong("a prefix has no empty part, and none that is . or .."));
        }
        if !prefix.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"/-_.".contains(&byte)) {
            return Err(wrong("a prefix has letters, digits, and / - _ ."));
        }
        let prefix = if prefix.is_empty() { PREFIX } else { prefix };
        let mut urls = Vec::new();
        for member in members.split(',') {
            let is_place = !member.is_empty()
                && !member.starts_with(':')
                && member.bytes().all(|byte| byte.is_ascii_alphanumeric() || b".-_:[]".contains(&byte));
            if !is_place {
                return Err(wrong("a member is written HOST:PORT"));
            }
            // An address of IPv6 has colons of its own, inside brackets.
            let has_port = member.rsplit(']').next().is_some_and(|rest| rest.contains(':'));
            let port = if has_port { String::new() } else { format!(":{PORT}") };
            let url = format!("{scheme}://{member}{port}");
            if !urls.contains(&url) {
                urls.push(url);
            }
        }
        Ok(Address { members: urls, prefix: format!("/{prefix}/"), is_tls })
    }

    /// How its members are connected to.
    pub(super) fn options(&self, text: &str, given: &EtcdOptions) -> Result<ConnectOptions, Error> {
        let EtcdOptions { etcd_ca, etcd_cert, etcd_key, etcd_user, etcd_password_file } = given;
        let mut options = ConnectOptions::new()
            .with_connect_timeout(CONNECT)
            .with_keep_alive(PING.0, PING.1)
            .with_keep_alive_while_idle(false)
            // A member that has lost the others says so at once, instead of keeping what it cannot answer.
            .with_require_leader(true)
            .with_auto_token_refresh(true);
        let pem = |file: &Path| {
            let help = "name a file in PEM form that this user may read";
            std::fs::read(file)
                .map_err(|error| unusable(&file.display().to_string(), &error.to_string(), help))
        };
        match (self.is_tls, etcd_ca) {
            (true, Some(ca)) => {
                let authority = pem(ca)?;
                if !authority.windows(CERTIFICATE.len()).any(|line| line == CERTIFICATE) {
                    let help = "name the file of the authority that etcd's certificates are signed with";
                    return Err(unusable(
                        &ca.display().to_string(),
                        "it has no certificate in PEM form",
                        help,
                    ));
                }
                let mut tls = TlsOptions::new().ca_certificate(Certificate::from_pem(authority));
                if let (Some(cert), Some(key)) = (etcd_cert, etcd_key) {
                    tls = tls.identity(Identity::from_pem(pem(cert)?, pem(key)?));
                }
                options = options.with_tls(tls);
            }
            (true, None) => {
                let help = "name it with --etcd-ca";
                return Err(unusable(text, "TLS needs the certificate that etcd's are signed with", help));
            }
            (false, ca) if ca.is_some() || etcd_cert.is_some() || etcd_key.is_some() => {
                return Err(unusable(text, "certificates are for TLS", "write etcds:// for TLS"));
            }
            (false, _) => {}
        }
        if let Some(user) = etcd_user {
            options = options.with_user(user, password(text, etcd_password_file.as_deref())?);
        }
        Ok(options)
    }
}

/// The password, from its file or else from the environment.
fn password(text: &str, file: Option<&Path>) -> Result<String, Error> {
    let Some(file) = file else {
        let help = "name a file with --etcd-password-file, or set LOCKSTEP_ETCD_PASSWORD";
        return std::env::var(PASSWORD)
            .map_err(|_| unusable(text, "there is no password for the user", help));
    };
    let help = "name a file that holds the password and that this user may read";
    let read = std::fs::read_to_string(file);
    let password = read.map_err(|error| unusable(&file.display().to_string(), &error.to_string(), help))?;
    Ok(password.trim_end_matches(['\n', '\r']).to_owned())
}

fn unusable(place: &str, reason: &str, help: &'static str) -> Error {
    Error::Unusable { place: place.to_owned(), reason: reason.to_owned(), help }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_name_members_and_a_prefix() {
        for (text, members, prefix) in [
            ("etcd://a", &["http://a:2379"][..], "/lockstep/"),
            ("etcd://a:1,b:2", &["http://a:1", "http://b:2"], "/lockstep/"),
            ("etcd://a:1/", &["http://a:1"], "/lockstep/"),
            ("etcds://a:1,a:1/shop/", &["https://a:1"], "/shop/"),
            ("etcd://[::1],[::1]:7/a/b", &["http://[::1]:2379", "http://[::1]:7"], "/a/b/"),
        ] {
            let address = Address::parse(text).unwrap();
            assert_eq!(
                (&address.members[..], address.prefix.as_str()),
                (&members.map_owned()[..], prefix),
                "{text}"
            );
        }
        for bad in [
            "",
            "http://a",
            "etcd://",
            "etcd://a,,b",
            "etcd://u:p@a",
            "etcd://a/b?c",
            "etcd://a b",
            "etcd:/a",
            "etcd://:1/x",
            "etcd://a,:1/x",
            "etcd://a//",
            "etcd://a//x",
            "etcd://a/x//y",
            "etcd://a/x//",
            "etcd://a/../x",
            "etcd://a/x/.",
        ] {
            Address::parse(bad).unwrap_err();
        }
    }

    trait MapOwned {
        fn map_owned(&self) -> Vec<String>;
    }
    impl MapOwned for [&str] {
        fn map_owned(&self) -> Vec<String> {
            self.iter().map(|text| (*text).to_owned()).collect()
        }
    }

    #[test]
    fn what_does_not_fit_together_is_said() {
        let open = |text: &str, given: EtcdOptions| {
            Address::parse(text).unwrap().options(text, &given).map(drop).map_err(|error| error.to_string())
        };
        open("etcd://a", EtcdOptions::default()).unwrap();
        let error = open("etcds://a", EtcdOptions::default()).unwrap_err();
        assert!(error.contains("--etcd-ca"), "{error}");
        let ca = EtcdOptions { etcd_ca: Some("ca.pem".into()), ..EtcdOptions::default() };
        let error = open("etcd://a", ca.clone()).unwrap_err();
        assert!(error.contains("write etcds://"), "{error}");
        let error = open("etcds://a", ca).unwrap_err();
        assert!(error.starts_with("ca.pem cannot be used: "), "{error}");
        let empty = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(empty.path(), "no certificate\n").unwrap();
        let ca = EtcdOptions { etcd_ca: Some(empty.path().to_owned()), ..EtcdOptions::default() };
        let error = open("etcds://a", ca).unwrap_err();
        assert!(error.contains("it has no certificate"), "{error}");
        let user = EtcdOptions { etcd_user: Some("u".to_owned()), ..EtcdOptions::default() };
        let error = open("etcd://a", user.clone()).unwrap_err();
        assert!(error.contains("--etcd-password-file"), "{error}");
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), "secret\n").unwrap();
        open("etcd://a", EtcdOptions { etcd_password_file: Some(file.path().to_owned()), ..user }).unwrap();
        assert_eq!(password("etcd://a", Some(file.path())).unwrap(), "secret");
    }
}
