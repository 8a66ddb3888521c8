//! Plain HTTP: one request read, judged, and written anew to the address that was judged.
//!
//! Bodies stream both ways under hyper's flow control: what one side does not take is not read from the other.
//! Each exchange has a connection of its own to the origin, which is never used again, so nothing that an origin
//! or a client leaves on it can be taken for part of another exchange. Trailers of requests are dropped (a `Host`
//! there has fooled others): hyper writes only those that `Trailer` names, and that field is not forwarded.
//! Upgrades are not offered.

use std::{sync::Arc, time::Instant};

use http::{HeaderValue, Request, Response, StatusCode, Uri, header, uri::PathAndQuery};
use http_body_util::Either;
use hyper::{body::Incoming, client::conn::http1};
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;

use super::{
    connection::Connection,
    dial::dial,
    lease::Lease,
    meter::{Meter, Metered},
    reply::{self, Body},
    request::{host_value, strip_hop_by_hop},
    tunnel::{end_of_cut, gateway},
};
use crate::{
    event::{Event, Kind},
    policy::{Carriage, Target},
};

/// Forwards one request, or says why not.
pub(super) async fn forward(
    connection: &Arc<Connection>,
    target: Target,
    request: Request<Incoming>,
) -> Response<Body> {
    let started = Instant::now();
    let decided = connection
        .event(Kind::Decision)
        .with_target(&target)
        .with_request(request.method().as_str(), Some(request.uri().path()));
    let passed = match connection.judge(&target, Carriage::Http).await {
        Ok(passed) => passed,
        Err(denial) => {
            connection.emit(decided.with_denial(&denial));
            return reply::denied(&target, &denial);
        }
    };
    let rule = passed.allow.as_ref().and_then(|allow| allow.rule.clone());
    let decided = decided.with_allow(rule.as_ref());
    let limit = connection.shared.limits.connect_timeout;
    let (upstream, address) = match dial(&passed.addresses, limit).await {
        Ok(dialled) => dialled,
        Err(error) => {
            connection.emit(decided.with_reason("connect", &error.to_string()));
            return reply::unreachable(&target, gateway(&error), "the host does not answer");
        }
    };
    connection.emit(decided.with_address(address));
    let exchange = Exchange {
        connection: Arc::clone(connection),
        lease: passed.lease(target.clone(), Carriage::Http, address),
        started,
    };
    match exchange.send(upstream, rewrite(request, &target)).await {
        Ok(response) => response,
        Err(message) => reply::unreachable(&target, StatusCode::BAD_GATEWAY, message),
    }
}

/// An exchange with an origin.
struct Exchange {
    connection: Arc<Connection>,
    lease: Lease,
    started: Instant,
}

impl Exchange {
    async fn send(
        self,
        upstream: TcpStream,
        request: Request<Incoming>,
    ) -> Result<Response<Body>, &'static str> {
        let meter = Arc::new(Meter::default());
        let metered = Metered::new(upstream, Arc::clone(&meter));
        let limits = &self.connection.shared.limits;
        let (mut sender, driver) = http1::Builder::new()
            .max_buf_size(limits.head_bytes.max(8192))
            .handshake(TokioIo::new(metered))
            .await
            .map_err(|_| "the connection to the host broke")?;
        // Ends with the exchange: hyper closes it when the answer was read or its reader is gone.
        drop(tokio::spawn(self.drive(driver, meter)));
        let response = sender
            .send_request(request)
            .await
            .map_err(|error| match error {
                error if error.is_parse() => "the host's answer is not HTTP",
                _ => "the host ended the connection without an answer",
            })?;
        if response.status().is_informational() {
            return Err("the host offered an upgrade that nobody asked for");
        }
        let (mut head, body) = response.into_parts();
        strip_hop_by_hop(&mut head.headers);
        head.version = http::Version::HTTP_11;
        Ok(Response::from_parts(head, Either::Right(body)))
    }

    /// Moves the bytes of the exchange until it ends or has to.
    async fn drive(
        mut self,
        driver: http1::Connection<TokioIo<Metered<TcpStream>>, Incoming>,
        meter: Arc<Meter>,
    ) {
        let idle = self.connection.shared.limits.idle_timeout;
        let ended = tokio::select! {
            driven = driver => driven.map(|()| None),
            cut = self.lease.ends(&meter, idle) => Ok(Some(cut)),
        };
        let event = self.connection.event(Kind::End);
        let event = event
            .with_target(&self.lease.target)
            .with_address(self.lease.address)
            .with_traffic(meter.up(), meter.down(), self.started.elapsed());
        self.connection.emit(match ended {
            Ok(None) => event,
            Ok(Some(cut)) => end_of_cut(event, &cut),
            Err(error) => broken(event, &error),
        });
    }
}

fn broken(event: Event, error: &hyper::Error) -> Event {
    if error.is_canceled() {
        return event; // the client went away
    }
    event.with_reason("broken", &error.to_string())
}

/// Turns a proxy request into one for the origin.
fn rewrite(request: Request<Incoming>, target: &Target) -> Request<Incoming> {
    let (mut head, body) = request.into_parts();
    strip_hop_by_hop(&mut head.headers);
    let path = head.uri.path_and_query().cloned();
    head.uri = Uri::from(path.unwrap_or_else(|| PathAndQuery::from_static("/")));
    head.version = http::Version::HTTP_11;
    head.extensions.clear();
    let host = HeaderValue::try_from(host_value(target))
        .expect("a target in canonical form is visible ASCII");
    head.headers.insert(header::HOST, host);
    Request::from_parts(head, body)
}
