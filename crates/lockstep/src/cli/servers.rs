//! What servers say of themselves, taken together.

use super::client::ClientError;
use crate::api::object::{Server, ServerName};

/// What a server says of itself, by the address that was given, or why it says nothing.
pub type Said<'a> = (&'a str, Result<Server, ClientError>);

/// Whether none of them is the active server, nor knows of one. The active one may be one that was not asked.
pub fn nobody_is_active(each: &[Said]) -> bool {
    let says: Vec<&Server> = each.iter().filter_map(|(_, says)| says.as_ref().ok()).collect();
    let is_silent = |url: &str| each.iter().any(|(address, says)| *address == url && says.is_err());
    let may_be_active = |active: &ServerName| !is_denied(active, &says) && !is_silent(&active.url);
    !says.iter().any(|server| server.active.as_ref().is_some_and(may_be_active))
}

/// Whether the server that another one takes for the active one says itself that it is not.
pub fn is_denied(active: &ServerName, says: &[&Server]) -> bool {
    says.iter().any(|server| server.name == active.name && server.role != "active")
}

/// What they do instead, where none of them is the active server: `s1, s2 stand by`. None if one may be, or if none of
/// them answers.
pub fn idle(each: &[Said]) -> Option<String> {
    if !nobody_is_active(each) {
        return None;
    }
    let of_role = |is_starting: bool| {
        let says = each.iter().filter_map(|(_, says)| says.as_ref().ok());
        let names = says.filter(move |server| (server.role == "starting") == is_starting);
        names.map(|server| server.name.as_str()).collect::<Vec<_>>()
    };
    let silent = each.iter().filter(|(_, says)| says.is_err()).map(|(address, _)| *address).collect();
    let named = [
        (of_role(false), "stands by", "stand by"),
        (of_role(true), "starts", "start"),
        (silent, "does not answer", "do not answer"),
    ];
    if named[..2].iter().all(|(names, ..)| names.is_empty()) {
        return None;
    }
    let named = named.iter().filter(|(names, ..)| !names.is_empty());
    let named = named.map(|(names, one, several)| {
        format!("{} {}", names.join(", "), if names.len() == 1 { one } else { several })
    });
    // What one of them waits for is probably what all do.
    let mut says = each.iter().filter_map(|(_, says)| says.as_ref().ok());
    let waits = says.find_map(|server| Some(format!("{}: {}", server.name, server.waits_for.as_ref()?)));
    Some(named.chain(waits).collect::<Vec<_>>().join("; "))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn told(each: &[(&str, Option<&str>)]) -> Option<String> {
        let urls = ["http://h1", "http://h2", "http://h3"];
        let said = |(place, (role, active)): (usize, &(&str, Option<&str>))| {
            let name = |name: &str| ServerName { name: name.to_owned(), url: name.replace('s', "http://h") };
            let ServerName { name: itself, url } = name(&format!("s{}", place + 1));
            let server = Server {
                name: itself,
                url,
                role: (*role).to_owned(),
                revision: 7,
                shared: true,
                active: active.map(name),
                waits_for: (*role == "starting").then(|| "etcd does not answer".to_owned()),
                cluster: None,
                refused: Vec::new(),
            };
            let is_there = !role.is_empty();
            (
                urls[place],
                is_there.then_some(server).ok_or(ClientError::Away("Connection refused".to_owned())),
            )
        };
        idle(&each.iter().enumerate().map(said).collect::<Vec<_>>())
    }

    #[test]
    fn what_servers_do_while_none_of_them_is_active() {
        let (by, of_first, silent) = (("standby", None), ("standby", Some("s1")), ("", None));
        assert_eq!(told(&[by, of_first, by]).as_deref(), Some("s1, s2, s3 stand by"));
        assert_eq!(told(&[by]).as_deref(), Some("s1 stands by"));
        let mixed = Some("s2 stands by; s3 starts; http://h1 does not answer; s3: etcd does not answer");
        assert_eq!(told(&[silent, of_first, ("starting", None)]).as_deref(), mixed);
        assert_eq!(told(&[silent, silent]), None, "nobody can say");
        assert_eq!(told(&[("active", Some("s1")), of_first]), None);
        assert_eq!(told(&[("standby", Some("s3")), ("standby", Some("s3"))]), None, "that one was not asked");
    }
}
