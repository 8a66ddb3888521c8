//! Requests inside a tunnel that was decrypted: all of them are for the tunnel's own target.
//!
//! The tunnel was judged before; every request is judged again by the same facts, so that a new policy holds for
//! the next request, and goes to the address that the tunnel was judged for.

use std::{net::SocketAddr, sync::Arc};

use http::{Request, Response, Uri, Version, header, request::Parts};

#[cfg(feature = "inspect")]
use super::inspected::swapping;
use super::{
    client::{Client, Passed},
    exchange::{self, Route, Told},
    lease::Lease,
    reply::{self, Body},
    request::{Ask, Refusal},
    upstream::{Connector, Upload},
};
use crate::{
    decide::Decision,
    event::Kind,
    policy::{Allowed, Denial, Host, RequestLine, Target},
};

/// What is settled for all requests of a decrypted tunnel.
#[derive(Debug)]
pub(super) struct Inside {
    /// What the tunnel was allowed for.
    pub(super) lease: Lease,
    /// Makes connections to the target, TLS included.
    pub(super) connector: Arc<dyn Connector>,
    /// Who puts secrets into requests.
    #[cfg(feature = "inspect")]
    pub(super) credentials: Option<crate::credentials::Credentials>,
}

impl Inside {
    /// Reads a request's head: it has to name the tunnel's target and no other.
    pub(super) fn read(&self, head: &Parts) -> Result<Ask, Refusal> {
        if head.method == http::Method::CONNECT {
            return Err(Refusal::Malformed("CONNECT inside a tunnel is not served"));
        }
        if head.method == http::Method::TRACE {
            return Err(Refusal::Malformed("TRACE is not forwarded"));
        }
        let target = &self.lease.target;
        let mut named = head.headers.get_all(header::HOST).iter();
        let host = named.next();
        if named.next().is_some() {
            return Err(Refusal::Malformed("there is more than one Host header"));
        }
        let authority = authority(&head.uri, head.version)?;
        if host.is_none() && authority.is_none() {
            return Err(Refusal::Malformed("the request names no host"));
        }
        let host = match host.map(|host| host.to_str()).transpose() {
            Ok(host) => host,
            Err(_) => return Err(Refusal::Malformed("the Host header is not a host")),
        };
        let is_target = |text: &str| {
            Target::parse_with_default_port(text, 443).is_ok_and(|named| named == *target)
        };
        match [host, authority].into_iter().flatten().all(is_target) {
            true => Ok(Ask::Http(target.clone())),
            false => Err(Refusal::Misdirected),
        }
    }

    /// Forwards a request, or says why not.
    pub(super) async fn forward(
        &self,
        client: &Client,
        request: Request<Upload>,
    ) -> Response<Body> {
        let target = self.lease.target.clone();
        let passed = match self.pass(exchange::line_of(&request)) {
            Ok(passed) => passed,
            Err(denial) => {
                let told = Told::of(&request);
                client.emit(Kind::Decision, |event| {
                    told.fill(event.with_target(&target)).with_denial(&denial)
                });
                return reply::denied(&target, &denial);
            }
        };
        #[cfg(feature = "inspect")]
        let (request, after) = match swapping::swap(client, self, request).await {
            Ok(swapped) => swapped,
            Err(refused) => return refused,
        };
        let route = Route {
            target,
            carriage: self.lease.carriage,
            passed,
            connector: Arc::clone(&self.connector),
            tls: true,
        };
        let response = exchange::forward(client, route, request).await;
        #[cfg(feature = "inspect")]
        let response = after.finish(response);
        response
    }

    /// Judges by the policy in force, with all that the tunnel was judged by, and the request.
    fn pass(&self, request: RequestLine) -> Result<Passed, Denial> {
        let mut lease = self.lease.clone();
        lease.request = Some(request);
        let allow = lease.judge()?;
        let addresses = allow.addresses.iter().copied();
        let is_dialled = |allowed: &Allowed<SocketAddr>| {
            lease
                .address
                .is_none_or(|address| allowed.address() == address)
        };
        let addresses = addresses.filter(is_dialled).collect();
        Ok(Passed {
            policy: lease.policy,
            generation: lease.generation,
            decision: Decision {
                verdict: crate::policy::Verdict::Allow(allow.clone()),
                candidates: lease.candidates,
                name: lease.name,
                approved: lease.approved,
            },
            addresses,
            allow: Some(allow),
            hello: lease.hello,
            request: lease.request,
        })
    }
}

/// Returns what the request line or `:authority` names.
fn authority(uri: &Uri, version: Version) -> Result<Option<&str>, Refusal> {
    match (uri.scheme_str(), uri.authority()) {
        (None, None) => Ok(None),
        (Some("https"), Some(authority)) => Ok(Some(authority.as_str())),
        // A client that speaks HTTP/2 without TLS below us cannot be told apart from a confused one.
        (_, Some(_)) if version == Version::HTTP_2 => {
            Err(Refusal::Malformed("the request is not for https"))
        }
        _ => Err(Refusal::Malformed(
            "the request's target is not for this host",
        )),
    }
}

/// Returns the value of `Host` or `:authority` for a target behind TLS: no port where it is the default one.
pub(super) fn authority_value(target: &Target) -> String {
    match (&target.host, target.port) {
        (host, 443) => host.to_string(),
        (Host::Name(_) | Host::Address(_), _) => target.to_string(),
    }
}

#[cfg(test)]
mod tests;
