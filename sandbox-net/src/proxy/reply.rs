//! Answers that the proxy gives itself: short JSON that says what happened, why, and what would help.

use bytes::Bytes;
use http::{HeaderValue, Response, StatusCode, Version, header};
use http_body_util::{Either, Full};
use serde::Serialize;

use super::{exchange::Carried, request::Refusal};
use crate::{
    fault::Fault,
    policy::{Denial, Reason, Target},
};

/// A body of the proxy's own, or one that streams from an origin.
pub(crate) type Body = Either<Full<Bytes>, Carried>;

#[derive(Debug, Serialize)]
struct Answer<'a> {
    error: &'static str,
    reason: &'a str,
    message: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    host: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    port: Option<u16>,
    #[serde(skip_serializing_if = "Option::is_none")]
    rule: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    credential: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    remedy: Option<&'a str>,
}

/// Answers a denial: 403, or 502 if the name has no address, which is nobody's decision, or 400 if the request can
/// be read in more than one way, or 429 (RFC 6585, 4) if it is one too many for now.
pub(crate) fn denied(target: &Target, denial: &Denial) -> Response<Body> {
    let status = match denial.reason {
        Reason::Unresolved => StatusCode::BAD_GATEWAY,
        Reason::Ambiguous => StatusCode::BAD_REQUEST,
        Reason::Busy => StatusCode::TOO_MANY_REQUESTS,
        _ => StatusCode::FORBIDDEN,
    };
    let answer = Answer {
        error: match status {
            StatusCode::FORBIDDEN => "denied",
            StatusCode::BAD_REQUEST | StatusCode::TOO_MANY_REQUESTS => "refused",
            _ => "unreachable",
        },
        reason: denial.reason.as_str(),
        message: &denial.text,
        host: Some(target.host.to_string()),
        port: Some(target.port),
        rule: denial.rule.as_ref().map(|rule| rule.as_str()),
        credential: None,
        remedy: denial.remedy.as_deref(),
    };
    json(status, &answer)
}

/// Answers a request that cannot be served: 400, or 421 if it went astray (RFC 9110, 15.5.20). The connection is
/// closed, since its bytes are not trusted; in HTTP/2 only the stream ends, whose bytes are its own.
pub(crate) fn refused(refusal: &Refusal, version: Version) -> Response<Body> {
    let message = refusal.to_string();
    let answer = Answer {
        error: "refused",
        reason: refusal.reason(),
        message: &message,
        host: None,
        port: None,
        rule: None,
        credential: None,
        remedy: None,
    };
    let status = match refusal {
        Refusal::Misdirected => StatusCode::MISDIRECTED_REQUEST,
        Refusal::Malformed(_) | Refusal::Target(_) => StatusCode::BAD_REQUEST,
    };
    let mut response = json(status, &answer);
    if version != Version::HTTP_2 {
        let close = HeaderValue::from_static("close");
        response.headers_mut().insert(header::CONNECTION, close);
    }
    response
}

/// Why a request is refused that is one too many.
pub(crate) const TOO_MANY: &str = "this sandbox sends too many requests";

/// Answers a request that is one too many for now: 429, whoever it is for.
pub(crate) fn too_many() -> Response<Body> {
    let answer = Answer {
        error: "refused",
        reason: "busy",
        message: TOO_MANY,
        host: None,
        port: None,
        rule: None,
        credential: None,
        remedy: Some("ask again in a moment, and less often"),
    };
    let mut response = json(StatusCode::TOO_MANY_REQUESTS, &answer);
    let second = HeaderValue::from_static("1");
    response.headers_mut().insert(header::RETRY_AFTER, second);
    response
}

/// Answers that an allowed target did not serve: 504 if it took too long, else 502.
pub(crate) fn unreachable(target: &Target, status: StatusCode, message: &str) -> Response<Body> {
    let mut response = unreachable_for(target, "upstream", message);
    *response.status_mut() = status;
    response
}

fn unreachable_for(target: &Target, reason: &str, message: &str) -> Response<Body> {
    let answer = Answer {
        error: "unreachable",
        reason,
        message,
        host: Some(target.host.to_string()),
        port: Some(target.port),
        rule: None,
        credential: None,
        remedy: None,
    };
    json(StatusCode::BAD_GATEWAY, &answer)
}

/// Answers a request that is refused for the credentials in it, as denials are: 403, with what would help.
#[cfg(feature = "inspect")]
pub(crate) fn withheld(target: &Target, refusal: &crate::credentials::Refusal) -> Response<Body> {
    let message = refusal.to_string();
    let answer = Answer {
        error: "denied",
        reason: refusal.reason(),
        message: &message,
        host: Some(target.host.to_string()),
        port: Some(target.port),
        rule: None,
        credential: refusal.credential(),
        remedy: refusal.remedy(),
    };
    json(StatusCode::FORBIDDEN, &answer)
}

/// Answers that a target's own TLS, or the upstream proxy, is at fault: 502, with what is wrong with it.
pub(crate) fn at_fault(target: &Target, fault: &Fault) -> Response<Body> {
    let mut response = unreachable_for(target, fault.reason, &fault.text);
    *response.status_mut() = StatusCode::BAD_GATEWAY;
    response
}

/// Answers 200 to CONNECT.
pub(crate) fn established() -> Response<Body> {
    Response::new(Either::Left(Full::default()))
}

/// What is written to a connection that is one too many, before it is closed.
pub(crate) const BUSY: &[u8] = b"HTTP/1.1 503 Service Unavailable\r\nContent-Type: application/json\r\n\
    Content-Length: 91\r\nConnection: close\r\n\r\n\
    {\"error\":\"refused\",\"reason\":\"busy\",\"message\":\"this sandbox has too many connections open\"}\n";

fn json(status: StatusCode, answer: &Answer<'_>) -> Response<Body> {
    // A struct of strings always has a JSON form.
    let mut text = serde_json::to_string(answer).unwrap_or_default();
    text.push('\n');
    let mut response = Response::new(Either::Left(Full::from(text)));
    *response.status_mut() = status;
    let kind = HeaderValue::from_static("application/json");
    response.headers_mut().insert(header::CONTENT_TYPE, kind);
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_length_of_the_busy_answer_is_right() {
        let text = std::str::from_utf8(BUSY).unwrap();
        let (head, body) = text.split_once("\r\n\r\n").unwrap();
        assert!(
            head.contains(&format!("Content-Length: {}", body.len())),
            "{}",
            body.len()
        );
    }
}
