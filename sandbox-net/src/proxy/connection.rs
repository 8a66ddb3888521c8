//! One connection from the sandbox: its requests, and the tunnel that it may become.

use std::{
    convert::Infallible,
    net::SocketAddr,
    sync::{Arc, Mutex, PoisonError},
};

use http::{Request, Response};
use hyper::{body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use sandbox_base::ByteStream;

use super::{
    Shared, exchange,
    gate::{Gated, Stopped},
    lease::{Lease, PolicyWatch, silence},
    meter::{Meter, Metered},
    reply::{self, Body},
    request::{self, Ask, Refusal},
    tunnel::{self, Tunnel},
};
#[cfg(feature = "inspect")]
use crate::inspect::Inspector;
use crate::{
    decide::{Decision, decide},
    event::{Event, Kind},
    policy::{Allow, Allowed, Carriage, Denial, Need, Target, Verdict},
};

/// Serves one connection to its end, tunnel included. Dropping the future closes everything it opened.
pub(super) async fn serve(shared: Arc<Shared>, id: u64, stream: impl ByteStream + 'static) {
    let stopped = Stopped::default();
    let connection = Arc::new(Connection {
        shared,
        id,
        stopped: Arc::clone(&stopped),
        tunnel: Mutex::new(None),
    });
    let meter = Arc::new(Meter::default());
    let metered = Metered::new(stream, Arc::clone(&meter));
    let gated = Gated::new(metered, connection.head_bytes(), stopped);
    let answering = Arc::clone(&connection);
    let service = service_fn(move |request| {
        let connection = Arc::clone(&answering);
        async move { Ok::<_, Infallible>(connection.answer(request).await) }
    });
    let serving = connection
        .http()
        .serve_connection(TokioIo::new(gated), service)
        .with_upgrades();
    let idle = connection.shared.limits.idle_timeout;
    tokio::select! {
        served = serving => served.unwrap_or_else(|error| connection.report_broken(&error)),
        // A client that reads nothing would keep its place for ever.
        () = silence(&meter, idle) => return,
    }
    if let Some(tunnel) = connection.take_tunnel() {
        tunnel.run(&connection).await;
    }
}

/// A connection from the sandbox.
pub(super) struct Connection {
    pub(super) shared: Arc<Shared>,
    id: u64,
    stopped: Stopped,
    /// Set once CONNECT was answered; run when hyper has let go of the stream.
    tunnel: Mutex<Option<Tunnel>>,
}

/// A target that may be dialled, with what was decided.
pub(super) struct Passed {
    pub(super) policy: PolicyWatch,
    pub(super) decision: Decision,
    pub(super) addresses: Vec<Allowed<SocketAddr>>,
    /// `None` if the client's first bytes have to be seen before anything may be sent.
    pub(super) allow: Option<Allow>,
}

impl Passed {
    /// Turns into the lease of the connection to one of the addresses.
    pub(super) fn lease(self, target: Target, carriage: Carriage, address: SocketAddr) -> Lease {
        Lease {
            policy: self.policy,
            target,
            carriage,
            candidates: self.decision.candidates,
            address,
            hello: None,
        }
    }
}

impl Connection {
    /// Asks the policy whether a target may be dialled.
    pub(super) async fn judge(
        &self,
        target: &Target,
        carriage: Carriage,
    ) -> Result<Passed, Denial> {
        let mut watch = self.shared.policy.subscribe();
        let policy = Arc::clone(&*watch.borrow_and_update());
        let resolver = &*self.shared.resolver;
        let decision = decide(&*policy, resolver, target, carriage).await;
        let (addresses, allow) = match &decision.verdict {
            Verdict::Allow(allow) => (allow.addresses.clone(), Some(allow.clone())),
            Verdict::Need(Need::Hello { addresses }) if carriage == Carriage::Tunnel => {
                (addresses.clone(), None)
            }
            Verdict::Need(_) => return Err(crate::decide::undecided()),
            Verdict::Deny(denial) => return Err(denial.clone()),
        };
        Ok(Passed {
            policy: watch,
            decision,
            addresses,
            allow,
        })
    }

    /// Returns who opens TLS to a target, if it is to be opened.
    #[cfg(feature = "inspect")]
    pub(super) fn inspector(&self, target: &Target) -> Option<Inspector> {
        let inspector = self.shared.inspector.as_ref()?;
        inspector.wants(target).then(|| inspector.clone())
    }

    /// Begins an event of this connection.
    pub(super) fn event(&self, kind: Kind) -> Event {
        Event::new(kind, self.id)
    }

    pub(super) fn emit(&self, event: Event) {
        self.shared.events.emit(event);
    }

    pub(super) fn set_tunnel(&self, tunnel: Tunnel) {
        *self.tunnel.lock().unwrap_or_else(PoisonError::into_inner) = Some(tunnel);
    }

    fn take_tunnel(&self) -> Option<Tunnel> {
        let mut tunnel = self.tunnel.lock().unwrap_or_else(PoisonError::into_inner);
        tunnel.take()
    }

    async fn answer(self: Arc<Self>, request: Request<Incoming>) -> Response<Body> {
        let (head, body) = request.into_parts();
        let asked = match self.stopped.get() {
            Some(what) => Err(Refusal::Malformed(what)),
            None => request::read(&head),
        };
        match asked {
            Ok(Ask::Tunnel(target)) => {
                tunnel::open(&self, target, Request::from_parts(head, body)).await
            }
            Ok(Ask::Http(target)) => {
                #[cfg(feature = "inspect")]
                if let Some(response) = super::inspected::refuse_plain(&self, &target, &head) {
                    return response;
                }
                exchange::forward(&self, target, Request::from_parts(head, body)).await
            }
            Err(refusal) => {
                self.report_refusal(head.method.as_str(), &refusal);
                reply::refused(&refusal)
            }
        }
    }

    fn report_refusal(&self, method: &str, refusal: &Refusal) {
        let event = self.event(Kind::Refused).with_request(method, None);
        self.emit(event.with_reason(refusal.reason(), &refusal.to_string()));
    }

    pub(super) fn report_broken(&self, error: &hyper::Error) {
        let reason = match error {
            error if error.is_timeout() => "head-timeout",
            error if error.is_parse() => "malformed",
            // The client went away, which is its right.
            _ => return,
        };
        let event = self.event(Kind::Refused);
        self.emit(event.with_reason(reason, &error.to_string()));
    }

    /// The bound on a head. hyper panics below 8,192, and cannot read a head at all in much less.
    pub(super) fn head_bytes(&self) -> usize {
        self.shared.limits.head_bytes.max(8192)
    }

    pub(super) fn http(&self) -> http1::Builder {
        let limits = &self.shared.limits;
        let mut http = http1::Builder::new();
        http.timer(TokioTimer::new())
            .header_read_timeout(limits.head_timeout)
            .max_buf_size(self.head_bytes())
            .max_header_size(self.head_bytes())
            .max_headers(limits.headers);
        http
    }
}
