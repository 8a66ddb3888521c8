//! What a client asks for, read from a request's head; pure.
//!
//! Two kinds of request are understood: CONNECT with `host:port`, and the absolute form `http://host/path` with
//! any other method but TRACE. The URI alone says where
//! it goes; `Host` is checked for being one well-formed value and then replaced (RFC 9112, 3.2.2).
//!
//! On a connection that was captured on its way to a host, requests are as that host would read them: in origin
//! form with a `Host`, or in absolute form, and either has to name that very host and port.
//!
//! How long a request is, was settled by the gate before.

use std::fmt;

use http::{HeaderMap, HeaderName, Method, Uri, header, request::Parts};

use crate::{
    Error,
    policy::{Host, Target},
};

/// What is asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Ask {
    /// A tunnel to the target.
    Tunnel(Target),
    /// One plain HTTP exchange with the target.
    Http(Target),
}

/// Why a request cannot be served, whatever the policy.
#[derive(Debug)]
pub(crate) enum Refusal {
    /// It is malformed or ambiguous.
    Malformed(&'static str),
    /// Its target cannot be read.
    Target(Error),
    /// It is for another host than the tunnel or the connection that it came through.
    Misdirected,
}

impl Refusal {
    /// Returns the reason as a word for programs.
    pub(crate) fn reason(&self) -> &'static str {
        match self {
            Self::Malformed(_) => "malformed",
            Self::Target(_) => "target",
            Self::Misdirected => "misdirected",
        }
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Malformed(what) => f.write_str(what),
            Self::Target(error) => match std::error::Error::source(error) {
                Some(reason) => write!(f, "{error}: {reason}"),
                None => error.fmt(f),
            },
            Self::Misdirected => f.write_str("the request is for another host than its connection"),
        }
    }
}

/// Reads a request's head.
pub(crate) fn read(head: &Parts) -> Result<Ask, Refusal> {
    check_host(&head.headers)?;
    match head.method {
        Method::CONNECT => read_connect(head),
        Method::TRACE => Err(Refusal::Malformed("TRACE is not forwarded")),
        _ => read_absolute(&head.uri),
    }
}

fn read_connect(head: &Parts) -> Result<Ask, Refusal> {
    let framed = [header::CONTENT_LENGTH, header::TRANSFER_ENCODING];
    if framed.iter().any(|name| head.headers.contains_key(name)) {
        return Err(Refusal::Malformed("CONNECT has no body"));
    }
    let authority = head.uri.authority().filter(|_| head.uri.scheme().is_none());
    let authority = authority.ok_or(Refusal::Malformed("CONNECT takes host:port"))?;
    let target = Target::parse(authority.as_str()).map_err(Refusal::Target)?;
    Ok(Ask::Tunnel(target))
}

fn read_absolute(uri: &Uri) -> Result<Ask, Refusal> {
    match (uri.scheme_str(), uri.authority()) {
        (Some("http"), Some(authority)) => Target::parse_with_default_port(authority.as_str(), 80)
            .map(Ask::Http)
            .map_err(Refusal::Target),
        (Some("https"), _) => Err(Refusal::Malformed("https goes through CONNECT")),
        (Some(_), _) => Err(Refusal::Malformed("only http and https are forwarded")),
        (None, _) => Err(Refusal::Malformed(
            "this is a proxy: it takes CONNECT and absolute URIs",
        )),
    }
}

/// Reads the head of a request on a connection that was going to a host itself.
///
/// RFC 9112, 3.2: a server understands the absolute form, in which the URI counts, and the origin form, in which
/// `Host` does. `OPTIONS *` is about the server itself, which is not ours to ask.
pub(crate) fn read_captured(head: &Parts, captured: &Target) -> Result<Ask, Refusal> {
    check_host(&head.headers)?;
    match head.method {
        Method::CONNECT => return Err(Refusal::Malformed("this is no proxy")),
        Method::TRACE => return Err(Refusal::Malformed("TRACE is not forwarded")),
        _ => {}
    }
    let ask = match head.uri.authority() {
        Some(_) => read_absolute(&head.uri)?,
        None if head.uri.path().starts_with('/') => host_of(&head.headers)
            .map(Ask::Http)
            .ok_or(Refusal::Malformed("there is no Host header"))?,
        None => return Err(Refusal::Malformed("the request's target is no path")),
    };
    match ask == Ask::Http(captured.clone()) {
        true => Ok(ask),
        false => Err(Refusal::Misdirected),
    }
}

/// Reads a `Host` that was checked.
fn host_of(headers: &HeaderMap) -> Option<Target> {
    let text = headers.get(header::HOST)?.to_str().ok()?;
    Target::parse_with_default_port(text, 80).ok()
}

/// Refuses anything but at most one `Host` with one well-formed value.
fn check_host(headers: &HeaderMap) -> Result<(), Refusal> {
    let mut hosts = headers.get_all(header::HOST).iter();
    let Some(host) = hosts.next() else {
        return Ok(());
    };
    if hosts.next().is_some() {
        return Err(Refusal::Malformed("there is more than one Host header"));
    }
    host.to_str()
        .ok()
        .filter(|text| Target::parse_with_default_port(text, 80).is_ok())
        .map(|_| ())
        .ok_or(Refusal::Malformed("the Host header is not a host"))
}

/// Removes what concerns one connection only (RFC 9110, 7.6.1), what is meant for a proxy, everything that
/// `Connection` names, and what some origins read as the framing: to many `_` is `-`.
pub(crate) fn strip_hop_by_hop(headers: &mut HeaderMap) {
    let named: Vec<HeaderName> = headers
        .get_all(header::CONNECTION)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .filter_map(|name| name.trim().parse().ok())
        // Not the framing of the message, nor where it goes: a client could unmake them so.
        .filter(|name| *name != header::CONTENT_LENGTH && *name != header::HOST)
        .collect();
    for name in named.iter().chain(&HOP_BY_HOP).chain(&LOOK_ALIKES) {
        headers.remove(name);
    }
}

const LOOK_ALIKES: [HeaderName; 2] = [
    HeaderName::from_static("content_length"),
    HeaderName::from_static("transfer_encoding"),
];

const HOP_BY_HOP: [HeaderName; 10] = [
    header::CONNECTION,
    header::PROXY_AUTHENTICATE,
    header::PROXY_AUTHORIZATION,
    header::TE,
    header::TRAILER,
    header::TRANSFER_ENCODING,
    header::UPGRADE,
    HeaderName::from_static("keep-alive"),
    HeaderName::from_static("proxy-connection"),
    HeaderName::from_static("http2-settings"),
];

/// Returns the value of `Host` for a target: no port where it is the default one.
pub(crate) fn host_value(target: &Target) -> String {
    match (&target.host, target.port) {
        (host, 80) => host.to_string(),
        (Host::Name(_) | Host::Address(_), _) => target.to_string(),
    }
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

    fn target(text: &str) -> Target {
        Target::parse(text).unwrap()
    }

    #[test]
    fn connect_and_absolute_form_are_read() {
        let ask = read(&head("CONNECT", "example.com:443", &[])).unwrap();
        assert_eq!(ask, Ask::Tunnel(target("example.com:443")));
        let ask = read(&head(
            "GET",
            "http://Example.com/x",
            &[("host", "example.com")],
        ))
        .unwrap();
        assert_eq!(ask, Ask::Http(target("example.com:80")));
    }

    #[test]
    fn e06_the_uri_decides_and_not_the_host_header() {
        let ask = read(&head("GET", "http://example.com/", &[("host", "evil.com")])).unwrap();
        assert_eq!(ask, Ask::Http(target("example.com:80")));
    }

    #[test]
    fn e07_e08_e71_ambiguous_requests_are_refused() {
        for (method, uri, headers) in [
            (
                "GET",
                "http://a.com/",
                &[("host", "a.com"), ("host", "a.com")][..],
            ),
            ("GET", "http://a.com/", &[("host", "")]),
            ("GET", "http://a.com/", &[("host", "a.com, b.com")]),
            ("GET", "/", &[("host", "a.com")]),
            ("OPTIONS", "*", &[]),
            ("GET", "https://a.com/", &[]),
            ("GET", "ftp://a.com/", &[]),
            ("TRACE", "http://a.com/", &[]),
            ("CONNECT", "a.com", &[]),
            ("CONNECT", "http://a.com:443/", &[]),
            ("CONNECT", "a.com:443", &[("content-length", "5")]),
            ("CONNECT", "a.com:443", &[("transfer-encoding", "chunked")]),
        ] {
            assert!(
                read(&head(method, uri, headers)).is_err(),
                "{method} {uri} {headers:?}"
            );
        }
    }

    /// What `http::Uri` lets through and our own reading does not.
    #[test]
    fn e19_e26_e39_e40_targets_are_canonical_or_refused() {
        for uri in [
            "http://user@a.com/",
            "http://127.1/",
            "http://0x7f000001/",
            "http://2130706433/",
            "http://[fe80::1%25eth0]/",
            "http://a%2eb/",
            "http://a.com:+80/",
            "http://a.com:99999/",
        ] {
            if let Ok(uri) = uri.parse::<Uri>() {
                assert!(read_absolute(&uri).is_err(), "{uri}");
            }
        }
    }

    #[test]
    fn e14_what_some_read_as_framing_is_removed() {
        let fields = [
            ("Transfer_Encoding", "chunked"),
            ("content_length", "3"),
            ("content_type", "x"),
        ];
        let mut headers = head("GET", "http://a.com/", &fields).headers;
        strip_hop_by_hop(&mut headers);
        let left: Vec<_> = headers.keys().map(HeaderName::as_str).collect();
        assert_eq!(left, ["content_type"]);
    }

    #[test]
    fn hop_by_hop_headers_and_those_that_connection_names_are_removed() {
        let mut headers = head(
            "GET",
            "http://a.com/",
            &[
                ("connection", "close, X-Private , content-length"),
                ("connection", "keep-alive"),
                ("keep-alive", "timeout=5"),
                ("proxy-authorization", "Basic eDp5"),
                ("te", "trailers"),
                ("upgrade", "h2c"),
                ("x-private", "1"),
                ("x-kept", "1"),
                ("content-length", "3"),
            ],
        )
        .headers;
        strip_hop_by_hop(&mut headers);
        let mut left: Vec<_> = headers.keys().map(HeaderName::as_str).collect();
        left.sort_unstable();
        assert_eq!(left, ["content-length", "x-kept"]);
    }
}
