//! The requests of one inspected connection.

use std::{
    fmt,
    sync::{Arc, Mutex, OnceLock, PoisonError},
};

use bytes::Bytes;
use http::{HeaderValue, Request, Response, StatusCode, header};
use http_body_util::{BodyExt, Full, LengthLimitError, Limited};
use hyper::{body::Incoming, upgrade::OnUpgrade};
use serde::Serialize;

use super::{
    body::{Answer, Outgoing, Scrubbed, Watch, scrub_headers},
    head::{self, Misfit},
    origin::Origin,
};
use crate::{
    credentials::{Credentials, Refusal, Scrubber, Swap, Table},
    event::{Event, Kind},
    inspect::{Fault, Protocol},
    policy::Target,
    proxy::{connection::Connection, gate::Stopped},
};

/// What answers the requests of one inspected connection.
pub(super) struct Site {
    pub(super) connection: Arc<Connection>,
    pub(super) target: Target,
    pub(super) credentials: Option<Credentials>,
    /// Why there is no origin, or the origin.
    pub(super) origin: Result<Origin, Fault>,
    pub(super) stopped: Stopped,
    /// Set once an upgrade was answered: the client's side, the origin's side.
    pub(super) upgrade: Mutex<Option<(OnUpgrade, OnUpgrade)>>,
}

/// A request whose head passed.
struct Passed {
    request: Request<Outgoing>,
    scrub: Scrubber,
    stopped: Arc<OnceLock<Refusal>>,
    client: Option<OnUpgrade>,
}

/// An answer in place of the origin's.
type Instead = Box<Response<Answer>>;

impl Site {
    pub(super) async fn answer(
        self: Arc<Self>,
        mut request: Request<Incoming>,
    ) -> Response<Answer> {
        let version = request.version();
        let method = request.method().clone();
        let told = self
            .event(Kind::Decision)
            .with_request(method.as_str(), Some(request.uri().path()));
        let client = hyper::upgrade::on(&mut request);
        let answered = match self.prepare(request, client, &told).await {
            Ok(passed) => self.send(passed, &told).await,
            Err(instead) => Err(instead),
        };
        let mut response = answered.unwrap_or_else(|instead| *instead);
        *response.version_mut() = version;
        response
    }

    /// Judges a request and makes it one for the origin.
    async fn prepare(
        &self,
        request: Request<Incoming>,
        client: OnUpgrade,
        told: &Event,
    ) -> Result<Passed, Instead> {
        let (mut head, body) = request.into_parts();
        let upgrade = match self.stopped.get() {
            Some(what) => Err(Misfit::Malformed(what)),
            None => head::check(&head, &self.target),
        }
        .map_err(|misfit| self.misfit(misfit, told))?;
        let origin = self
            .origin
            .as_ref()
            .map_err(|fault| self.unreachable(fault, told))?;
        head::rewrite(&mut head, &self.target, version(origin.protocol));
        let mut scrub = Scrubber::default();
        let stopped = Arc::default();
        let body = match &self.credentials {
            None => Outgoing::Streamed(body, None),
            Some(credentials) => {
                let table = credentials.table();
                let swap = table.swap(&self.target, &mut head);
                let mut swap = swap.map_err(|refusal| self.refuse(&refusal, told))?;
                scrub = Scrubber::new(std::mem::take(&mut swap.scrub));
                let body = self.body(
                    Held {
                        table,
                        swap: &mut swap,
                        stopped: &stopped,
                    },
                    (&mut head, body),
                    told,
                );
                let body = body.await?;
                self.tell_used(&swap, told);
                body
            }
        };
        self.connection.emit(told.clone().with_allow(None));
        Ok(Passed {
            request: Request::from_parts(head, body),
            scrub,
            stopped,
            client: upgrade.then_some(client),
        })
    }

    /// Puts secrets into a body, or has it looked through as it streams.
    async fn body(
        &self,
        held: Held<'_>,
        (head, body): (&mut http::request::Parts, Incoming),
        told: &Event,
    ) -> Result<Outgoing, Instead> {
        let Held {
            table,
            swap,
            stopped,
        } = held;
        let Some(limit) = swap.hold else {
            return Ok(Outgoing::Streamed(
                body,
                Some(self.watch(table, stopped, told)),
            ));
        };
        let name = || {
            self.credentials
                .as_ref()
                .map(Credentials::names)
                .unwrap_or_default()
                .join(", ")
        };
        let encoded = head.headers.get(header::CONTENT_ENCODING);
        if encoded.is_some_and(|coding| coding != "identity") {
            return Err(self.refuse(&Refusal::BodyEncoded(name()), told));
        }
        let whole = match Limited::new(body, limit).collect().await {
            Ok(whole) => whole.to_bytes(),
            Err(error) if error.is::<LengthLimitError>() => {
                return Err(self.refuse(&Refusal::BodyTooLong(name()), told));
            }
            Err(_) => {
                return Err(self.misfit(Misfit::Malformed("the request's body broke off"), told));
            }
        };
        let kind = head.headers.get(header::CONTENT_TYPE);
        let swapped = table.swap_body(&self.target, kind, &whole);
        let (body, used) = swapped.map_err(|refusal| self.refuse(&refusal, told))?;
        swap.used.extend(used);
        if head.headers.contains_key(header::CONTENT_LENGTH) {
            head.headers
                .insert(header::CONTENT_LENGTH, body.len().into());
        }
        Ok(Outgoing::Whole(Full::new(body.into())))
    }

    fn watch(&self, table: Arc<Table>, stopped: &Arc<OnceLock<Refusal>>, told: &Event) -> Watch {
        let connection = Arc::clone(&self.connection);
        let told = told.clone();
        Watch {
            scanner: table.scanner(),
            table,
            target: self.target.clone(),
            report: Box::new(move |refusal| connection.emit(alert(&told, refusal))),
            stopped: Arc::clone(stopped),
            reported: false,
        }
    }

    async fn send(&self, passed: Passed, told: &Event) -> Result<Response<Answer>, Instead> {
        let origin = self
            .origin
            .as_ref()
            .map_err(|fault| self.unreachable(fault, told))?;
        let sent = origin.send(passed.request).await;
        let mut response = sent.map_err(|fault| match passed.stopped.get() {
            // Told already when it was found.
            Some(refusal) => refused(&self.target, refusal),
            None => self.unreachable(&fault, told),
        })?;
        if response.status() == StatusCode::SWITCHING_PROTOCOLS {
            let Some(client) = passed.client else {
                let fault = Fault::new(
                    "upstream",
                    "the host offered an upgrade that nobody asked for",
                );
                return Err(self.unreachable(&fault, told));
            };
            let upstream = hyper::upgrade::on(&mut response);
            *self.upgrade.lock().unwrap_or_else(PoisonError::into_inner) = Some((client, upstream));
        }
        let (mut head, body) = response.into_parts();
        let version = head.version;
        head::rewrite_answer(&mut head, version);
        let body = if passed.scrub.is_idle() {
            Answer::Streamed(body)
        } else {
            scrub_headers(&mut head.headers, &passed.scrub);
            Answer::Scrubbed(Scrubbed::new(body, passed.scrub))
        };
        Ok(Response::from_parts(head, body))
    }

    fn event(&self, kind: Kind) -> Event {
        self.connection.event(kind).with_target(&self.target)
    }

    fn tell_used(&self, swap: &Swap, told: &Event) {
        for name in &swap.used {
            let event = told
                .clone()
                .with_kind(Kind::Credential)
                .with_credential(name);
            self.connection.emit(event.with_allow(None));
        }
    }

    fn refuse(&self, refusal: &Refusal, told: &Event) -> Instead {
        if refusal.is_alert() {
            self.connection.emit(alert(told, refusal));
        } else {
            let told = told
                .clone()
                .with_refusal(refusal.reason(), &refusal.to_string());
            self.connection.emit(match refusal.credential() {
                Some(name) => told.with_credential(name),
                None => told,
            });
        }
        refused(&self.target, refusal)
    }

    fn misfit(&self, misfit: Misfit, told: &Event) -> Instead {
        let (status, reason, text) = match misfit {
            Misfit::Malformed(what) => (StatusCode::BAD_REQUEST, "malformed", what),
            Misfit::Misdirected => (
                StatusCode::MISDIRECTED_REQUEST,
                "misdirected",
                "the request names another host than the connection was made for",
            ),
        };
        let event = told.clone().with_kind(Kind::Refused);
        self.connection.emit(event.with_reason(reason, text));
        let mut response = json(status, &Said::new("refused", reason, text));
        if status == StatusCode::BAD_REQUEST {
            let close = HeaderValue::from_static("close");
            response.headers_mut().insert(header::CONNECTION, close);
        }
        response
    }

    fn unreachable(&self, fault: &Fault, told: &Event) -> Instead {
        let told = told.clone().with_allow(None);
        self.connection
            .emit(told.with_reason(fault.reason, &fault.text));
        let mut said = Said::new("unreachable", fault.reason, &fault.text);
        said.name(&self.target);
        json(StatusCode::BAD_GATEWAY, &said)
    }
}

/// What a body is judged with.
struct Held<'a> {
    table: Arc<Table>,
    swap: &'a mut Swap,
    stopped: &'a Arc<OnceLock<Refusal>>,
}

fn version(protocol: Protocol) -> http::Version {
    match protocol {
        Protocol::Http1 => http::Version::HTTP_11,
        Protocol::Http2 => http::Version::HTTP_2,
    }
}

/// The event of a credential where it does not belong.
pub(super) fn alert(told: &Event, refusal: &Refusal) -> Event {
    let event = told.clone().with_kind(Kind::Alert);
    let event = event.with_refusal(refusal.reason(), &refusal.to_string());
    match refusal.credential() {
        Some(name) => event.with_credential(name),
        None => event,
    }
}

/// Answers a refusal as denials are: 403, with what would help.
pub(super) fn refused(target: &Target, refusal: &Refusal) -> Instead {
    let text = refusal.to_string();
    let mut said = Said::new("denied", refusal.reason(), &text);
    said.name(target);
    said.credential = refusal.credential();
    said.remedy = remedy(refusal);
    json(StatusCode::FORBIDDEN, &said)
}

fn remedy(refusal: &Refusal) -> Option<&'static str> {
    match refusal {
        Refusal::Unbound(_) => Some("grant the credential to this host, if it may have it"),
        Refusal::Misplaced(_) => Some("send it in a place that the grant names"),
        Refusal::Foreign(_) => Some("send the placeholder, or let the grant stand beside others"),
        Refusal::Plain(_) => Some("use https"),
        Refusal::BodyTooLong(_) | Refusal::BodyEncoded(_) => {
            Some("send the credential in a header, or a shorter body without compression")
        }
        Refusal::Unknown | Refusal::Revoked(_) => None,
    }
}

/// An answer of the proxy's own.
#[derive(Debug, Serialize)]
struct Said<'a> {
    error: &'static str,
    reason: &'a str,
    message: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    host: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    port: Option<u16>,
    #[serde(skip_serializing_if = "Option::is_none")]
    credential: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    remedy: Option<&'a str>,
}

impl<'a> Said<'a> {
    fn new(error: &'static str, reason: &'a str, message: &'a str) -> Self {
        Self {
            error,
            reason,
            message,
            host: None,
            port: None,
            credential: None,
            remedy: None,
        }
    }

    fn name(&mut self, target: &Target) {
        self.host = Some(target.host.to_string());
        self.port = Some(target.port);
    }
}

fn json(status: StatusCode, said: &Said<'_>) -> Instead {
    // A struct of strings and numbers always has a JSON form.
    let mut text = serde_json::to_string(said).unwrap_or_default();
    text.push('\n');
    let mut response = Response::new(Answer::Own(Full::new(Bytes::from(text))));
    *response.status_mut() = status;
    let kind = HeaderValue::from_static("application/json");
    response.headers_mut().insert(header::CONTENT_TYPE, kind);
    Box::new(response)
}

impl fmt::Debug for Site {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Site")
            .field("target", &self.target)
            .finish_non_exhaustive()
    }
}
