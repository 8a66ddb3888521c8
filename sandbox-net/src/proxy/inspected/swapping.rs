//! Secrets into requests inside a tunnel that was opened, and out of their answers; without TLS no placeholder passes.

use std::sync::{Arc, OnceLock};

use bytes::Bytes;
use http::{Request, Response, header, request::Parts};
use http_body_util::{BodyExt, Either, Full, LengthLimitError, Limited};
use hyper::body::Body as _;

use super::body::{Scrubbing, Watched, scrub_headers};
#[cfg(feature = "sigv4")]
use crate::{credentials::Signing, proxy::inside::authority_value};
use crate::{
    credentials::{Refusal, Scrubber, Swap, Table},
    event::{Event, Kind},
    policy::Target,
    proxy::{
        client::Client,
        exchange::Told,
        inside::Inside,
        reply::{self, Body},
        request,
        upstream::Upload,
    },
};

/// What is left to do when the answer is there.
#[derive(Debug, Default)]
pub(in crate::proxy) struct After {
    scrub: Scrubber,
    /// Set when the request's body was stopped half-way.
    stopped: Arc<OnceLock<Refusal>>,
    target: Option<Target>,
}

impl After {
    /// Takes values out of the answer; replaces it if the request was stopped.
    pub(in crate::proxy) fn finish(self, response: Response<Body>) -> Response<Body> {
        if let (Some(refusal), Some(target)) = (self.stopped.get(), &self.target) {
            return reply::withheld(target, refusal);
        }
        if self.scrub.is_idle() {
            return response;
        }
        let (mut head, body) = response.into_parts();
        scrub_headers(&mut head.headers, &self.scrub);
        let body = match body {
            Either::Right(mut carried) => {
                carried.scrub(Scrubbing::new(self.scrub));
                Either::Right(carried)
            }
            own => own,
        };
        Response::from_parts(head, body)
    }
}

/// One request that is judged.
struct Judging<'a> {
    client: &'a Client,
    target: &'a Target,
    table: Arc<Table>,
    told: Told,
}

/// Puts secrets into a request, or answers why it is refused.
pub(in crate::proxy) async fn swap(
    client: &Client,
    inside: &Inside,
    request: Request<Upload>,
) -> Result<(Request<Upload>, After), Response<Body>> {
    let Some(credentials) = &inside.credentials else {
        return Ok((request, After::default()));
    };
    let judging = Judging {
        client,
        target: &inside.lease.target,
        table: credentials.table(),
        told: Told::of(&request),
    };
    let (mut head, body) = request.into_parts();
    let swapped = judging.table.swap(judging.target, &mut head);
    let mut swap = swapped.map_err(|refusal| judging.refuse(&refusal))?;
    let stopped = Arc::default();
    let body = judging.body((&mut head, body), &mut swap, &stopped).await?;
    #[cfg(feature = "sigv4")]
    if let Some(signing) = swap.signing.take() {
        let host = authority_value(judging.target);
        let signed = signing.finish(&mut head, &host);
        signed.map_err(|refusal| judging.refuse(&refusal))?;
    }
    for name in &swap.used {
        client.emit(Kind::Credential, |event| {
            judging.fill(event).with_credential(name).with_allow(None)
        });
    }
    let after = After {
        scrub: Scrubber::new(swap.scrub),
        stopped,
        target: Some(judging.target.clone()),
    };
    Ok((Request::from_parts(head, body), after))
}

/// Refuses a request that would carry a placeholder without TLS, in its head at once, in its body where it ends.
pub(in crate::proxy) fn watch_plain(
    client: &Client,
    target: &Target,
    request: Request<Upload>,
) -> Result<(Request<Upload>, After), Box<Response<Body>>> {
    let inspector = client.shared.inspector.as_ref();
    let table = inspector.and_then(|inspector| Some(inspector.credentials()?.table()));
    let Some(table) = table.filter(|table| !table.is_empty()) else {
        return Ok((request, After::default()));
    };
    let judging = Judging {
        client,
        target,
        table,
        told: Told::of(&request),
    };
    let (head, mut body) = request.into_parts();
    let passed = judging.table.check_plain(&head);
    passed.map_err(|refusal| Box::new(judging.refuse(&refusal)))?;
    let after = After {
        target: Some(target.clone()),
        ..After::default()
    };
    if !body.is_end_stream() {
        body = judging.watch(body, None, &after.stopped);
    }
    Ok((Request::from_parts(head, body), after))
}

impl Judging<'_> {
    /// Puts secrets into a body, or has it looked through as it streams.
    async fn body(
        &self,
        (head, body): (&mut Parts, Upload),
        swap: &mut Swap,
        stopped: &Arc<OnceLock<Refusal>>,
    ) -> Result<Upload, Response<Body>> {
        if body.is_end_stream() {
            #[cfg(feature = "sigv4")]
            if let Some(signing) = &mut swap.signing {
                signing.take_body(b"", b"");
            }
            return Ok(body);
        }
        let hold = swap.hold;
        #[cfg(feature = "sigv4")]
        let hold = hold.max(swap.signing.as_ref().and_then(Signing::hold));
        let Some(limit) = hold else {
            let target = Some(self.target.clone());
            return Ok(self.watch(body, target, stopped));
        };
        let name = || self.table.names_for(self.target).join(", ");
        let encoded = head.headers.get(header::CONTENT_ENCODING);
        if swap.hold.is_some() && encoded.is_some_and(|coding| coding != "identity") {
            return Err(self.refuse(&Refusal::BodyEncoded(name())));
        }
        let whole = match Limited::new(body, limit).collect().await {
            Ok(whole) => whole.to_bytes(),
            Err(error) if error.is::<LengthLimitError>() => {
                return Err(self.refuse(&Refusal::BodyTooLong(name())));
            }
            Err(_) => {
                let broken = request::Refusal::Malformed("the request's body broke off");
                return Err(reply::refused(&broken, head.version));
            }
        };
        let kind = head.headers.get(header::CONTENT_TYPE);
        let swapped = self.table.swap_body(self.target, kind, &whole);
        let (body, used) = swapped.map_err(|refusal| self.refuse(&refusal))?;
        swap.used.extend(used);
        #[cfg(feature = "sigv4")]
        if let Some(signing) = &mut swap.signing {
            signing.take_body(&whole, &body);
        }
        if head.headers.contains_key(header::CONTENT_LENGTH) {
            head.headers
                .insert(header::CONTENT_LENGTH, body.len().into());
        }
        let body = Full::new(Bytes::from(body)).map_err(|never| match never {});
        Ok(Upload::Made(body.boxed_unsync()))
    }

    /// Has a body looked through as it streams to a target, or to none that may have a placeholder.
    fn watch(
        &self,
        body: Upload,
        bound: Option<Target>,
        stopped: &Arc<OnceLock<Refusal>>,
    ) -> Upload {
        let (client, target, told) = (self.client.clone(), self.target.clone(), self.told.clone());
        let verdict = self.table.tolerant;
        let watched = Watched {
            body,
            scanner: self.table.scanner(),
            table: Arc::clone(&self.table),
            target: bound,
            report: Box::new(move |refusal| {
                client.emit(Kind::Alert, |event| {
                    let event = told.fill(event.with_target(&target)).with_refusal(refusal);
                    if verdict {
                        event.with_allow(None)
                    } else {
                        event
                    }
                });
            }),
            stopped: Arc::clone(stopped),
            reported: false,
        };
        Upload::Made(watched.boxed_unsync())
    }

    fn fill(&self, event: Event) -> Event {
        self.told.fill(event.with_target(self.target))
    }

    /// Tells of a refusal and answers it.
    fn refuse(&self, refusal: &Refusal) -> Response<Body> {
        let kind = if refusal.is_alert() {
            Kind::Alert
        } else {
            Kind::Decision
        };
        self.client
            .emit(kind, |event| self.fill(event).with_refusal(refusal));
        reply::withheld(self.target, refusal)
    }
}
