//! What a request inside a tunnel must look like; pure.
//!
//! The tunnel leads to one target, which its TLS handshake named too. Every request has to name it as well, wherever it
//! names a host: an origin that serves many hosts would otherwise answer for one that nobody judged.

use http::{HeaderMap, Method, Uri, Version, header, request::Parts, uri::PathAndQuery};

use super::super::request::strip_hop_by_hop;
use crate::policy::{Host, Target};

/// The port that is left out where a host is named.
const DEFAULT_PORT: u16 = 443;

/// Why a request is not served.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Misfit {
    /// It is malformed or asks for what is not done here: 400, and the connection ends.
    Malformed(&'static str),
    /// It names another host than the tunnel leads to: 421 (RFC 9110, 15.5.20).
    Misdirected,
}

/// Checks a head. Returns whether it asks for a WebSocket.
pub(super) fn check(head: &Parts, target: &Target) -> Result<bool, Misfit> {
    match head.method {
        Method::CONNECT => return Err(Misfit::Malformed("CONNECT inside a tunnel is not served")),
        Method::TRACE => return Err(Misfit::Malformed("TRACE is not forwarded")),
        _ => {}
    }
    check_uri(head, target)?;
    check_host(head, target)?;
    check_upgrade(head)
}

fn check_uri(head: &Parts, target: &Target) -> Result<(), Misfit> {
    let uri = &head.uri;
    let path = uri.path_and_query().map_or("", PathAndQuery::as_str);
    if !(path.starts_with('/') || path == "*" && head.method == Method::OPTIONS) {
        return Err(Misfit::Malformed("the request has no path"));
    }
    match (uri.scheme_str(), uri.authority()) {
        (None, None) => Ok(()),
        (Some("https"), Some(authority)) => is_target(authority.as_str(), target),
        _ => Err(Misfit::Malformed("the request's scheme is not https")),
    }
}

/// One host at least, and each the target.
fn check_host(head: &Parts, target: &Target) -> Result<(), Misfit> {
    let mut hosts = head.headers.get_all(header::HOST).iter();
    match (hosts.next(), hosts.next()) {
        (None, _) if head.version == Version::HTTP_2 && head.uri.authority().is_some() => Ok(()),
        (None, _) => Err(Misfit::Malformed("the request names no host")),
        (Some(_), Some(_)) => Err(Misfit::Malformed("there is more than one Host header")),
        (Some(host), None) => is_target(host.to_str().unwrap_or_default(), target),
    }
}

fn is_target(text: &str, target: &Target) -> Result<(), Misfit> {
    match Target::parse_with_default_port(text, DEFAULT_PORT) {
        Ok(named) if named == *target => Ok(()),
        Ok(_) => Err(Misfit::Misdirected),
        Err(_) => Err(Misfit::Malformed(
            "the request names something that is no host",
        )),
    }
}

/// WebSocket (RFC 6455, 4.1) is the one upgrade that is served: what else follows could not be told from a tunnel.
fn check_upgrade(head: &Parts) -> Result<bool, Misfit> {
    let mut upgrades = head.headers.get_all(header::UPGRADE).iter();
    match (upgrades.next(), upgrades.next()) {
        (None, _) => Ok(false),
        (Some(one), None)
            if one.as_bytes().eq_ignore_ascii_case(b"websocket") && head.method == Method::GET =>
        {
            Ok(true)
        }
        _ => Err(Misfit::Malformed(
            "WebSocket is the only upgrade that is served",
        )),
    }
}

/// Makes a client's head one for the origin.
pub(super) fn rewrite(head: &mut Parts, target: &Target, version: Version) {
    let trailers = wants_trailers(&head.headers) && version == Version::HTTP_2;
    let upgrade = head.headers.get(header::UPGRADE).cloned();
    strip_hop_by_hop(&mut head.headers);
    if let Some(upgrade) = upgrade {
        head.headers.insert(
            header::CONNECTION,
            header::HeaderValue::from_static("upgrade"),
        );
        head.headers.insert(header::UPGRADE, upgrade);
    }
    if trailers {
        head.headers
            .insert(header::TE, header::HeaderValue::from_static("trailers"));
    }
    let path = head.uri.path_and_query().cloned();
    let path = path.unwrap_or_else(|| PathAndQuery::from_static("/"));
    let authority = authority(target);
    head.version = version;
    head.extensions.clear();
    if version == Version::HTTP_2 {
        head.headers.remove(header::HOST);
        head.uri = Uri::builder()
            .scheme("https")
            .authority(authority)
            .path_and_query(path)
            .build()
            .expect("a target in canonical form is an authority");
    } else {
        head.uri = Uri::from(path);
        let host = header::HeaderValue::try_from(authority)
            .expect("a target in canonical form is visible ASCII");
        head.headers.insert(header::HOST, host);
    }
}

fn authority(target: &Target) -> String {
    match (&target.host, target.port) {
        (Host::Address(std::net::IpAddr::V6(address)), DEFAULT_PORT) => format!("[{address}]"),
        (host, DEFAULT_PORT) => host.to_string(),
        _ => target.to_string(),
    }
}

/// gRPC asks for trailers so, and servers refuse it without (the one value that HTTP/2 allows: RFC 9113, 8.2.2).
fn wants_trailers(headers: &HeaderMap) -> bool {
    headers
        .get(header::TE)
        .is_some_and(|value| value == "trailers")
}

/// Makes an origin's head one for the client.
pub(super) fn rewrite_answer(head: &mut http::response::Parts, version: Version) {
    let upgrade = head.headers.get(header::UPGRADE).cloned();
    strip_hop_by_hop(&mut head.headers);
    // It would lead clients to other hosts, ports, and to QUIC, which goes nowhere.
    head.headers.remove(header::ALT_SVC);
    if let Some(upgrade) = upgrade.filter(|_| head.status == http::StatusCode::SWITCHING_PROTOCOLS)
    {
        head.headers.insert(
            header::CONNECTION,
            header::HeaderValue::from_static("upgrade"),
        );
        head.headers.insert(header::UPGRADE, upgrade);
    }
    head.version = version;
}

#[cfg(test)]
mod tests {
    use super::*;

    fn head(method: &str, uri: &str, headers: &[(&str, &str)]) -> Parts {
        let mut request = http::Request::builder().method(method).uri(uri);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        request.body(()).unwrap().into_parts().0
    }

    fn http2(uri: &str, headers: &[(&str, &str)]) -> Parts {
        let mut head = head("GET", uri, headers);
        head.version = Version::HTTP_2;
        head
    }

    fn target() -> Target {
        "a.test:443".parse().unwrap()
    }

    #[test]
    fn the_targets_own_name_is_served_in_every_form() {
        for head in [
            head("GET", "/x?y", &[("host", "A.test")]),
            head("GET", "/x", &[("host", "a.test:443")]),
            head("OPTIONS", "*", &[("host", "a.test")]),
            head("GET", "https://a.test/x", &[("host", "a.test")]),
            http2("https://a.test/x", &[]),
            http2("https://a.test:443/x", &[("host", "a.test")]),
        ] {
            assert_eq!(check(&head, &target()), Ok(false), "{head:?}");
        }
    }

    #[test]
    fn e03_e04_another_name_is_misdirected() {
        for head in [
            head("GET", "/", &[("host", "evil.test")]),
            head("GET", "/", &[("host", "a.test:8443")]),
            head("GET", "https://evil.test/", &[("host", "a.test")]),
            head("GET", "https://a.test/", &[("host", "evil.test")]),
            http2("https://evil.test/", &[]),
            http2("https://a.test/", &[("host", "evil.test")]),
        ] {
            assert_eq!(
                check(&head, &target()),
                Err(Misfit::Misdirected),
                "{head:?}"
            );
        }
    }

    #[test]
    fn e07_e16_e56_e71_what_is_ambiguous_or_not_served_is_malformed() {
        for head in [
            head("GET", "/", &[]),
            head("GET", "/", &[("host", "a.test"), ("host", "a.test")]),
            head("GET", "/", &[("host", "")]),
            head("GET", "/", &[("host", "a.test, evil.test")]),
            head("GET", "http://a.test/", &[("host", "a.test")]),
            head("GET", "a.test", &[("host", "a.test")]),
            head("CONNECT", "a.test:443", &[("host", "a.test")]),
            head("TRACE", "/", &[("host", "a.test")]),
            head("GET", "/", &[("host", "a.test"), ("upgrade", "h2c")]),
            head(
                "GET",
                "/",
                &[("host", "a.test"), ("upgrade", "websocket, h2c")],
            ),
            head("POST", "/", &[("host", "a.test"), ("upgrade", "websocket")]),
            http2("/", &[]),
            http2("http://a.test/", &[]),
        ] {
            let checked = check(&head, &target());
            assert!(matches!(checked, Err(Misfit::Malformed(_))), "{head:?}");
        }
    }

    #[test]
    fn e53_e77_heads_keep_what_belongs_to_the_message_only() {
        let mut asked = http2(
            "https://a.test/x?y",
            &[("te", "trailers"), ("host", "a.test")],
        );
        rewrite(&mut asked, &target(), Version::HTTP_2);
        assert_eq!(asked.uri, "https://a.test/x?y");
        assert_eq!(asked.headers.get("te").unwrap(), "trailers");
        assert!(!asked.headers.contains_key("host"));
        let mut asked = head(
            "GET",
            "https://a.test",
            &[("te", "gzip"), ("connection", "x-y"), ("x-y", "1")],
        );
        rewrite(
            &mut asked,
            &"a.test:8443".parse().unwrap(),
            Version::HTTP_11,
        );
        assert_eq!(
            (asked.uri.to_string().as_str(), asked.headers.len()),
            ("/", 1)
        );
        assert_eq!(asked.headers.get("host").unwrap(), "a.test:8443");
        let answer = http::Response::builder()
            .header("alt-svc", "h3=\":443\"")
            .header("upgrade", "h2c");
        let mut answer = answer.body(()).unwrap().into_parts().0;
        rewrite_answer(&mut answer, Version::HTTP_11);
        assert!(answer.headers.is_empty());
    }
}
