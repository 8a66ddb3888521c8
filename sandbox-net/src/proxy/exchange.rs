//! HTTP exchanges: one request read, judged, and written anew to an address that was judged.
//!
//! Bodies stream both ways under hyper's flow control: what one side does not take is not read from the other.
//! Nothing is inflated or looked into. Trailers of HTTP/1 requests are dropped (a `Host` there has fooled others):
//! hyper writes only those that `Trailer` names, and that field is not forwarded. HTTP/2 keeps them. A redirect is
//! returned as it is, and what the client asks next is judged like anything else. `Alt-Svc` is dropped: it leads
//! to QUIC, which nothing carries.
//!
//! A connection to an origin is used again ([`Pool`](super::upstream::Pool)) only after an exchange of which both
//! sides were read to their ends, and for the same host, address and policy.
//!
//! Of upgrades only WebSocket is offered, over HTTP/1; a request for another is served as if it had not asked.

use std::{
    io,
    net::SocketAddr,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Instant,
};

use bytes::Bytes;
use http::{
    HeaderValue, Method, Request, Response, StatusCode, Uri, Version, header,
    uri::{Authority, PathAndQuery, Scheme},
};
use http_body_util::Either;
use hyper::{
    body::{Body as _, Frame, Incoming, SizeHint},
    upgrade::OnUpgrade,
};

#[cfg(feature = "inspect")]
use super::inspected::{Scrubbing, swapping};
use super::{
    client::{Client, Passed},
    connection::{Successor, is_websocket},
    inside::authority_value,
    meter::Meter,
    raw::Raw,
    reply::{self, Body},
    request::{host_value, strip_hop_by_hop},
    slow::TOO_SLOW,
    tunnel::{end_of_cut, gateway},
    upstream::{Connector, Judged, Key, Origin, Protocol, UNAUTHORIZED, Upload, unauthorized},
};
use crate::{
    event::{Event, Kind},
    fault::Fault,
    policy::{Allowed, Carriage, Denial, HostName, OVERRIDES, RequestLine, Target},
};

/// Where a request goes, and by whose leave.
pub(super) struct Route {
    pub(super) target: Target,
    pub(super) carriage: Carriage,
    pub(super) passed: Passed,
    pub(super) connector: Arc<dyn Connector>,
    /// Whether the connector puts TLS on top.
    pub(super) tls: bool,
}

/// What events tell of a request.
#[derive(Debug, Clone)]
pub(super) struct Told {
    method: Method,
    uri: Uri,
}

impl Told {
    pub(super) fn of<B>(request: &Request<B>) -> Self {
        Self {
            method: request.method().clone(),
            uri: request.uri().clone(),
        }
    }

    pub(super) fn fill(&self, event: Event) -> Event {
        event.with_request(self.method.as_str(), Some(self.uri.path()))
    }
}

/// Judges a plain request and forwards it, or says why not.
pub(super) async fn plain(
    client: &Client,
    target: Target,
    request: Request<Upload>,
) -> Response<Body> {
    #[cfg(feature = "inspect")]
    let (request, after) = match swapping::watch_plain(client, &target, request) {
        Ok(watched) => watched,
        Err(refused) => return *refused,
    };
    let response = match client.judge(&target, Some(line_of(&request))).await {
        Ok(passed) => {
            let route = Route {
                target,
                carriage: Carriage::Http,
                passed,
                connector: Arc::clone(&client.shared.connector),
                tls: false,
            };
            forward(client, route, request).await
        }
        Err(denial) => deny(client, (&target, &Told::of(&request)), &denial),
    };
    #[cfg(feature = "inspect")]
    let response = after.finish(response);
    response
}

/// Returns what rules see of a request.
pub(super) fn line_of<B>(request: &Request<B>) -> RequestLine {
    let path = request.uri().path_and_query();
    let path = path.map_or("/", PathAndQuery::as_str);
    RequestLine::new(request.method().as_str(), path)
}

fn deny(client: &Client, (target, told): (&Target, &Told), denial: &Denial) -> Response<Body> {
    client.emit(Kind::Decision, |event| {
        told.fill(event.with_target(target)).with_denial(denial)
    });
    reply::denied(target, denial)
}

/// Forwards a request that was judged, or says why that failed.
pub(super) async fn forward(
    client: &Client,
    route: Route,
    mut request: Request<Upload>,
) -> Response<Body> {
    let started = Instant::now();
    let told = Told::of(&request);
    let rule = route
        .passed
        .allow
        .as_ref()
        .and_then(|allow| allow.rule.clone());
    let by_request = route.passed.allow.as_ref();
    if by_request.is_some_and(|allow| allow.by_request) {
        for name in OVERRIDES {
            request.headers_mut().remove(name);
        }
    }
    let upgrade = wants_websocket(&request).then(|| hyper::upgrade::on(&mut request));
    let found = match find(client, &route, upgrade.is_some()).await {
        Ok(found) => found,
        Err(error) => {
            client.emit(Kind::Decision, |event| {
                let event = told.fill(event.with_target(&route.target));
                event
                    .with_allow(rule.as_ref())
                    .with_reason(why(&error), &error.to_string())
            });
            return unreachable(&route.target, &error);
        }
    };
    let Route {
        target,
        carriage,
        passed,
        connector,
        tls,
    } = route;
    let fresh = Fresh {
        connector,
        addresses: passed.addresses.clone(),
        name: passed.decision.name.clone(),
        carriage,
    };
    let key = Key {
        target,
        address: found.address,
        generation: passed.generation,
        tls,
    };
    let lease = passed.lease(key.target.clone(), carriage, key.address);
    let lease = match client.hold(lease) {
        Ok(lease) => lease,
        Err(denial) => return deny(client, (&key.target, &told), &denial),
    };
    client.emit(Kind::Decision, |event| {
        let event = told.fill(event.with_target(&key.target));
        event.with_address(key.address).with_allow(rule.as_ref())
    });
    let exchange = Exchange::new(client, (lease, started), (key, found.origin));
    exchange
        .run((request, upgrade), found.reused.then_some(fresh))
        .await
}

/// Says in a word why a connection could not be made.
pub(super) fn why(error: &io::Error) -> &'static str {
    Fault::within(error).map_or("connect", |fault| fault.reason)
}

/// Answers that a connection could not be made.
pub(super) fn unreachable(target: &Target, error: &io::Error) -> Response<Body> {
    if let Some(fault) = Fault::within(error) {
        return reply::at_fault(target, fault);
    }
    reply::unreachable(target, gateway(error), "the host does not answer")
}

/// Whether a request asks to become a WebSocket (RFC 6455, 4.1) in the one way that is carried.
fn wants_websocket(request: &Request<Upload>) -> bool {
    request.method() == Method::GET
        && request.version() == Version::HTTP_11
        && request.body().is_end_stream()
        && is_websocket(request.headers().get(header::UPGRADE))
        && request.headers().get_all(header::UPGRADE).iter().count() == 1
}

/// A connection to an origin.
struct Found {
    origin: Origin,
    address: Option<SocketAddr>,
    reused: bool,
}

/// Finds a connection that waits, or makes one.
async fn find(client: &Client, route: &Route, upgrade: bool) -> io::Result<Found> {
    let name = route.passed.decision.name.as_ref();
    let judged = route.passed.addresses.iter();
    let judged = judged.map(|allowed| Some(allowed.address()));
    for address in judged.chain(name.map(|_| None)) {
        let key = Key {
            target: route.target.clone(),
            address,
            generation: route.passed.generation,
            tls: route.tls,
        };
        let waiting = client.shared.pool.take(&key);
        // An upstream proxy forwards messages, and no upgrades.
        let waiting = waiting.filter(|origin| !upgrade || origin.absolute().is_none());
        if let Some(origin) = waiting {
            return Ok(Found {
                origin,
                address,
                reused: true,
            });
        }
    }
    let to = Judged {
        target: &route.target,
        addresses: &route.passed.addresses,
        name,
        carriage: route.carriage,
        upgrade,
    };
    let limit = client.shared.limits.connect_timeout;
    let link = route.connector.connect(to, limit).await?;
    let address = link.address;
    let origin = Origin::begin(link, &client.shared.settings).await;
    let origin = origin.map_err(io::Error::other)?;
    if let Some(shared) = origin.share() {
        let (target, generation) = (route.target.clone(), route.passed.generation);
        let key = Key {
            target,
            address,
            generation,
            tls: route.tls,
        };
        client.shared.pool.put(key, shared);
    }
    Ok(Found {
        origin,
        address,
        reused: false,
    })
}

/// How to make another connection for the same exchange.
struct Fresh {
    connector: Arc<dyn Connector>,
    addresses: Vec<Allowed<SocketAddr>>,
    name: Option<Allowed<HostName>>,
    carriage: Carriage,
}

/// An exchange with an origin; dropping it tells of its end.
pub(super) struct Exchange {
    client: Client,
    lease: u64,
    started: Instant,
    key: Key,
    /// Gone once it was given back.
    origin: Option<Origin>,
    meter: Arc<Meter>,
    before: (u64, u64),
    fault: Option<&'static str>,
}

impl Exchange {
    fn new(
        client: &Client,
        (lease, started): (u64, Instant),
        (key, origin): (Key, Origin),
    ) -> Self {
        let meter = Arc::clone(origin.meter());
        Self {
            client: client.clone(),
            lease,
            started,
            key,
            before: (meter.up(), meter.down()),
            meter,
            origin: Some(origin),
            fault: None,
        }
    }

    /// Returns what counts the bytes of its connection.
    pub(super) fn meter(&self) -> &Meter {
        &self.meter
    }

    /// Sends the request and returns the answer, whose body goes on with the exchange.
    async fn run(
        mut self,
        (request, upgrade): (Request<Upload>, Option<OnUpgrade>),
        fresh: Option<Fresh>,
    ) -> Response<Body> {
        let request = self.rewrite(request, upgrade.is_some());
        let response = match self.send(request, fresh).await {
            Ok(response) => response,
            Err(what) => {
                self.fault = Some(what);
                let status = match what {
                    TOO_SLOW => StatusCode::REQUEST_TIMEOUT,
                    _ => StatusCode::BAD_GATEWAY,
                };
                return reply::unreachable(&self.key.target, status, what);
            }
        };
        let is_absolute = self
            .origin
            .as_ref()
            .is_some_and(|at| at.absolute().is_some());
        match (response.status(), upgrade) {
            // For this host to answer, not for who is inside.
            (StatusCode::PROXY_AUTHENTICATION_REQUIRED, _) if is_absolute => {
                self.fault = Some(UNAUTHORIZED);
                reply::at_fault(&self.key.target, &unauthorized())
            }
            (StatusCode::SWITCHING_PROTOCOLS, Some(upgrade)) => self.switch(response, upgrade),
            (status, _) if status.is_informational() => {
                let what = "the host offered an upgrade that nobody asked for";
                self.fault = Some(what);
                reply::unreachable(&self.key.target, StatusCode::BAD_GATEWAY, what)
            }
            _ => self.answer(response),
        }
    }

    /// Sends the request; once more over a new connection, if one that had waited turned out to be closed.
    async fn send(
        &mut self,
        request: Request<Upload>,
        fresh: Option<Fresh>,
    ) -> Result<Response<Incoming>, &'static str> {
        let spare = fresh.as_ref().and_then(|_| repeatable(&request));
        let Some(origin) = &mut self.origin else {
            return Err("the connection to the host broke");
        };
        let failed = match origin.send(request).await {
            Ok(response) => return Ok(response),
            Err(failed) => failed,
        };
        if let Some(what) = origin.wrong() {
            return Err(what);
        }
        let again = failed.request.map(|request| *request).or(spare);
        let (Some(fresh), Some(request)) = (fresh, again) else {
            return Err(failed.what);
        };
        self.reconnect(fresh).await?;
        let Some(origin) = &mut self.origin else {
            return Err(failed.what);
        };
        let sent = origin.send(request).await;
        sent.map_err(|failed| origin.wrong().unwrap_or(failed.what))
    }

    async fn reconnect(&mut self, fresh: Fresh) -> Result<(), &'static str> {
        // To the address that the lease is for.
        let addresses: Vec<_> = fresh
            .addresses
            .into_iter()
            .filter(|allowed| self.key.address.is_none_or(|at| allowed.address() == at))
            .collect();
        let to = Judged {
            target: &self.key.target,
            addresses: &addresses,
            name: fresh.name.as_ref(),
            carriage: fresh.carriage,
            // What is sent twice asks for none.
            upgrade: false,
        };
        let limit = self.client.shared.limits.connect_timeout;
        let link = fresh.connector.connect(to, limit).await;
        let link = link.map_err(|_| "the host does not answer")?;
        let origin = Origin::begin(link, &self.client.shared.settings).await;
        let origin = origin.map_err(|_| "the connection to the host broke")?;
        self.meter = Arc::clone(origin.meter());
        self.before = (0, 0);
        self.origin = Some(origin);
        Ok(())
    }

    /// Turns a request into one for the origin.
    fn rewrite(&self, request: Request<Upload>, websocket: bool) -> Request<Upload> {
        let (mut head, body) = request.into_parts();
        let trailers = accepts_trailers(&head.headers);
        let upgrade = websocket.then(|| HeaderValue::from_static("websocket"));
        strip_hop_by_hop(&mut head.headers);
        if let Some(upgrade) = upgrade {
            let value = HeaderValue::from_static("upgrade");
            head.headers.insert(header::CONNECTION, value);
            head.headers.insert(header::UPGRADE, upgrade);
        }
        let path = head.uri.path_and_query().cloned();
        let path = path.unwrap_or_else(|| PathAndQuery::from_static("/"));
        head.extensions.clear();
        let target = &self.key.target;
        let host = if self.key.tls {
            authority_value(target)
        } else {
            host_value(target)
        };
        match self.origin.as_ref().map(Origin::protocol) {
            Some(Protocol::Http2) => {
                head.version = Version::HTTP_2;
                head.headers.remove(header::HOST);
                if trailers {
                    let value = HeaderValue::from_static("trailers");
                    head.headers.insert(header::TE, value);
                }
                head.uri = absolute(&host, path, self.key.tls);
            }
            _ => {
                head.version = Version::HTTP_11;
                head.uri = match self.origin.as_ref().and_then(Origin::absolute) {
                    Some(absolute_form) => {
                        absolute_form.authorize(&mut head.headers);
                        absolute(&host, path, false)
                    }
                    None => Uri::from(path),
                };
                let host = HeaderValue::try_from(host)
                    .expect("a target in canonical form is visible ASCII");
                head.headers.insert(header::HOST, host);
            }
        }
        Request::from_parts(head, body)
    }

    /// Passes on an answer.
    fn answer(mut self, response: Response<Incoming>) -> Response<Body> {
        let (mut head, body) = response.into_parts();
        strip_hop_by_hop(&mut head.headers);
        head.headers.remove(header::ALT_SVC);
        // The client's own connection has its own version.
        head.version = Version::HTTP_11;
        head.extensions.clear();
        if body.is_end_stream() {
            self.finish();
            let body = Either::Left(http_body_util::Full::default());
            return Response::from_parts(head, body);
        }
        let exchange = Some(self);
        let carried = Carried {
            body: FromOrigin { body, exchange },
            #[cfg(feature = "inspect")]
            scrubbing: None,
        };
        Response::from_parts(head, Either::Right(carried))
    }

    /// Agrees to an upgrade.
    fn switch(self, mut response: Response<Incoming>, client: OnUpgrade) -> Response<Body> {
        if !is_websocket(response.headers().get(header::UPGRADE)) {
            let what = "the host upgrades to something else";
            return reply::unreachable(&self.key.target, StatusCode::BAD_GATEWAY, what);
        }
        let upstream = hyper::upgrade::on(&mut response);
        let (mut head, _) = response.into_parts();
        strip_hop_by_hop(&mut head.headers);
        let value = HeaderValue::from_static("upgrade");
        head.headers.insert(header::CONNECTION, value);
        let value = HeaderValue::from_static("websocket");
        head.headers.insert(header::UPGRADE, value);
        head.extensions.clear();
        let owner = self.client.clone();
        let raw = Box::new(Raw {
            upstream,
            exchange: self,
        });
        owner.set_successor((client, Successor::Raw(raw)));
        Response::from_parts(head, Either::Left(http_body_util::Full::default()))
    }

    /// Gives the connection back, after everything was read.
    fn finish(&mut self) {
        let Some(origin) = self.origin.take_if(|origin| !origin.is_shared()) else {
            return;
        };
        self.client.shared.pool.put(self.key.clone(), origin);
    }
}

impl Drop for Exchange {
    fn drop(&mut self) {
        self.client.release(self.lease);
        let fault = self
            .fault
            .or_else(|| self.origin.as_ref().and_then(Origin::wrong));
        self.client.emit(Kind::End, |event| {
            let up = self.meter.up().saturating_sub(self.before.0);
            let down = self.meter.down().saturating_sub(self.before.1);
            let event = event
                .with_target(&self.key.target)
                .with_address(self.key.address)
                .with_traffic(up, down, self.started.elapsed());
            match (self.client.why_cut(), fault) {
                (Some(cut), _) => end_of_cut(event, cut),
                (None, Some(what)) => event.with_reason("broken", what),
                (None, None) => event,
            }
        });
    }
}

/// The body of an answer on its way to the client.
pub(crate) struct Carried {
    body: FromOrigin,
    /// Takes out what the client must not see.
    #[cfg(feature = "inspect")]
    scrubbing: Option<Box<Scrubbing>>,
}

#[cfg(feature = "inspect")]
impl Carried {
    /// Has the rest of the body scrubbed.
    pub(super) fn scrub(&mut self, scrubbing: Scrubbing) {
        self.scrubbing = Some(Box::new(scrubbing));
    }
}

impl hyper::body::Body for Carried {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        let this = self.get_mut();
        #[cfg(feature = "inspect")]
        if let Some(scrubbing) = &mut this.scrubbing {
            return scrubbing.poll_frame(&mut this.body, cx);
        }
        Pin::new(&mut this.body).poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        #[cfg(feature = "inspect")]
        if self
            .scrubbing
            .as_ref()
            .is_some_and(|scrubbing| !scrubbing.is_empty())
        {
            return false;
        }
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        #[cfg(feature = "inspect")]
        if self
            .scrubbing
            .as_ref()
            .is_some_and(|scrubbing| !scrubbing.is_empty())
        {
            // What is held back has left the origin's count already.
            return SizeHint::default();
        }
        self.body.size_hint()
    }
}

/// A body as it comes from the origin.
struct FromOrigin {
    body: Incoming,
    /// Given up at the end of the body.
    exchange: Option<Exchange>,
}

impl hyper::body::Body for FromOrigin {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        let polled = Pin::new(&mut self.body).poll_frame(cx);
        let ended = match &polled {
            Poll::Ready(None) => true,
            // Nobody asks again behind the last byte of a declared length.
            Poll::Ready(Some(Ok(_))) => self.body.is_end_stream(),
            Poll::Ready(Some(Err(_))) | Poll::Pending => false,
        };
        if ended && let Some(mut exchange) = self.exchange.take() {
            exchange.finish();
        }
        polled
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// Returns a copy of a request that may be sent twice: one that is safe (RFC 9110, 9.2.1) and has no body.
fn repeatable(request: &Request<Upload>) -> Option<Request<Upload>> {
    if !request.method().is_safe() || !request.body().is_end_stream() {
        return None;
    }
    let mut copy = Request::new(Upload::empty());
    *copy.method_mut() = request.method().clone();
    *copy.uri_mut() = request.uri().clone();
    *copy.version_mut() = request.version();
    *copy.headers_mut() = request.headers().clone();
    Some(copy)
}

/// Whether a client takes trailers (RFC 9110, 10.1.4), which gRPC insists on.
fn accepts_trailers(headers: &http::HeaderMap) -> bool {
    headers
        .get(header::TE)
        .is_some_and(|value| value.as_bytes().eq_ignore_ascii_case(b"trailers"))
}

fn absolute(host: &str, path: PathAndQuery, tls: bool) -> Uri {
    let mut parts = http::uri::Parts::default();
    parts.scheme = Some(if tls { Scheme::HTTPS } else { Scheme::HTTP });
    parts.authority = Authority::try_from(host).ok();
    parts.path_and_query = Some(path);
    Uri::from_parts(parts).unwrap_or_default()
}
