//! What an upstream proxy is asked, and what becomes of its answer.
//!
//! Its answers are as hostile as an origin's: heads are bounded, nothing of them is repeated to anybody but the status
//! as a number, and whatever is not a plain yes is a [`Fault`].

use std::{io, net::SocketAddr, pin::pin};

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode, Uri, header};
use http_body_util::Empty;
use hyper::{body::Incoming, client::conn::http1};
use hyper_util::rt::TokioIo;
use sandbox_base::BoxStream;
use tokio_socks::{TargetAddr, tcp::Socks5Stream};

use crate::{
    fault::Fault,
    policy::{Allowed, HostName},
    proxy::rewound::Rewound,
    upstream::Login,
};

/// The most bytes of an answer's head, and the least that hyper takes.
const MAX_HEAD: usize = 8192;
/// Squid sends a dozen.
const MAX_HEADERS: usize = 100;
/// Why an answer of 407 goes no further.
pub(in crate::proxy) const UNAUTHORIZED: &str =
    "the upstream proxy asks for a login, or refuses the one it has";

/// How requests are written that an upstream proxy forwards (RFC 9112, 3.2.2).
#[derive(Debug, Clone)]
pub(in crate::proxy) struct AbsoluteForm(pub(super) Option<HeaderValue>);

impl AbsoluteForm {
    /// Adds the login, if there is one.
    pub(in crate::proxy) fn authorize(&self, headers: &mut HeaderMap) {
        if let Some(value) = &self.0 {
            headers.insert(header::PROXY_AUTHORIZATION, value.clone());
        }
    }
}

/// Where an upstream proxy is to connect to.
#[derive(Debug, Clone, Copy)]
pub(super) enum Place<'a> {
    Address(Allowed<SocketAddr>),
    Name(&'a Allowed<HostName>, u16),
}

impl Place<'_> {
    /// As it stands in CONNECT (RFC 9110, 9.3.6).
    fn authority(self) -> String {
        match self {
            Self::Address(allowed) => allowed.address().to_string(),
            Self::Name(allowed, port) => format!("{}:{port}", allowed.name()),
        }
    }
}

pub(super) fn fault(reason: &'static str, text: impl Into<String>) -> io::Error {
    io::Error::other(Fault::new(reason, text.into()))
}

pub(in crate::proxy) fn unauthorized() -> Fault {
    Fault::new("upstream-proxy-login", UNAUTHORIZED)
}

fn broken() -> io::Error {
    fault(
        "upstream-proxy",
        "the upstream proxy ended the connection, or does not speak its protocol",
    )
}

/// Has an HTTP proxy open a tunnel.
pub(super) async fn connect(
    stream: BoxStream,
    place: Place<'_>,
    login: Option<HeaderValue>,
) -> io::Result<BoxStream> {
    let authority = place.authority();
    let host = HeaderValue::try_from(&authority);
    let host = host.expect("a judged name or address is visible ASCII");
    let uri = Uri::try_from(authority).expect("a judged name or address is an authority");
    let mut request = Request::new(Empty::<Bytes>::new());
    *request.method_mut() = Method::CONNECT;
    *request.uri_mut() = uri;
    request.headers_mut().insert(header::HOST, host);
    AbsoluteForm(login).authorize(request.headers_mut());

    let mut builder = http1::Builder::new();
    builder.max_buf_size(MAX_HEAD).max_headers(MAX_HEADERS);
    let (mut sender, connection) = builder
        .handshake(TokioIo::new(stream))
        .await
        .map_err(|_| broken())?;
    let mut connection = pin!(connection.without_shutdown());
    let mut answer = pin!(sender.send_request(request));
    let mut ended = None;
    let answer = loop {
        tokio::select! {
            biased;
            answer = &mut answer => break answer.map_err(|_| broken())?,
            parts = &mut connection, if ended.is_none() => ended = Some(parts),
        }
    };
    agreed(&answer)?;
    let parts = match ended {
        Some(parts) => parts,
        None => connection.await,
    };
    let parts = parts.map_err(|_| broken())?;
    Ok(rewound(parts.io.into_inner(), parts.read_buf))
}

fn agreed(answer: &Response<Incoming>) -> io::Result<()> {
    match answer.status() {
        status if status.is_success() => Ok(()),
        StatusCode::PROXY_AUTHENTICATION_REQUIRED => Err(io::Error::other(unauthorized())),
        status => {
            let status = status.as_u16();
            let text = format!("the upstream proxy refuses the connection ({status})");
            Err(fault("upstream-proxy-refused", text))
        }
    }
}

/// Puts bytes back that came right behind an answer.
fn rewound(stream: BoxStream, read: Bytes) -> BoxStream {
    if read.is_empty() {
        return stream;
    }
    Box::new(Rewound::new(read, stream))
}

/// Has a SOCKS5 proxy open a tunnel (RFC 1928), with a login if there is one (RFC 1929).
pub(super) async fn socks(
    stream: BoxStream,
    place: Place<'_>,
    login: Option<&Login>,
) -> io::Result<BoxStream> {
    let target = match place {
        Place::Address(allowed) => TargetAddr::Ip(allowed.address()),
        Place::Name(allowed, port) => TargetAddr::Domain(allowed.name().as_str().into(), port),
    };
    let opened = match login {
        None => Socks5Stream::connect_with_socket(stream, target).await,
        Some(Login { user, password }) => {
            Socks5Stream::connect_with_password_and_socket(stream, target, user, password).await
        }
    };
    opened
        .map(Socks5Stream::into_inner)
        .map_err(|error| refused(&error))
}

fn refused(error: &tokio_socks::Error) -> io::Error {
    use tokio_socks::Error::{
        AuthorizationRequired, CommandNotSupported, ConnectionNotAllowedByRuleset,
        ConnectionRefused, GeneralSocksServerFailure, HostUnreachable, NetworkUnreachable,
        NoAcceptableAuthMethods, PasswordAuthFailure, TtlExpired,
    };
    let code = match error {
        AuthorizationRequired | NoAcceptableAuthMethods | PasswordAuthFailure(_) => {
            return io::Error::other(unauthorized());
        }
        GeneralSocksServerFailure => 1,
        ConnectionNotAllowedByRuleset => 2,
        NetworkUnreachable => 3,
        HostUnreachable => 4,
        ConnectionRefused => 5,
        TtlExpired => 6,
        CommandNotSupported => 7,
        _ => return broken(),
    };
    let text = format!("the upstream proxy refuses the connection (reply {code})");
    fault("upstream-proxy-refused", text)
}
