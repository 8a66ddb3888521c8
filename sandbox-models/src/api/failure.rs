//! How servers say that something went wrong, and what kind of failure it is.
//!
//! OpenAI's shape is `{"error": {"message", "type", "code"}}`. Servers that speak "the OpenAI API"
//! also send `{"error": "text"}` (Ollama), the inner object bare (vLLM), or a page of something else
//! (a proxy in front). All of it is untrusted text for people, so it is cut and cleaned here.

use serde_json::Value;

use crate::{Error, ErrorKind, ServerError};

/// Longer texts are cut; OpenAI's own messages stay well below.
const MAX_TEXT: usize = 1024;

/// Turns a status that is no success, and the body that came with it, into an error.
pub(crate) fn from_status(status: u16, body: &[u8], operation: &'static str) -> Error {
    let said = serde_json::from_slice(body)
        .ok()
        .and_then(|value| in_value(&value));
    let mut said = said.unwrap_or_else(|| ServerError {
        status: None,
        code: None,
        class: None,
        message: String::new(),
    });
    said.status = Some(status);
    let reason = format!("the server answered with status {status}");
    Error::new(kind_of(status), operation, reason).with_source(said)
}

/// Turns an event in the middle of a stream into an error, if it is one.
pub(crate) fn from_event(event: &Value, operation: &'static str) -> Option<Error> {
    event.get("error").filter(|error| !error.is_null())?;
    let said = in_value(event)?;
    let status = said.code.as_deref().and_then(|code| code.parse().ok());
    let kind = status.map_or(ErrorKind::Io, kind_of);
    Some(Error::new(kind, operation, "the server gave up in the middle").with_source(said))
}

/// Says what a caller can do about a status.
fn kind_of(status: u16) -> ErrorKind {
    match status {
        401 | 403 => ErrorKind::PermissionDenied,
        404 => ErrorKind::NotFound,
        405 | 501 => ErrorKind::Unsupported,
        408 | 504 => ErrorKind::TimedOut,
        409 => ErrorKind::Conflict,
        // 503 is also what llama.cpp's server says while it loads a model: try again later.
        429 | 503 => ErrorKind::Exhausted,
        502 => ErrorKind::Disconnected,
        400..=499 => ErrorKind::Invalid,
        500..=599 => ErrorKind::Io,
        _ => ErrorKind::Protocol,
    }
}

fn in_value(value: &Value) -> Option<ServerError> {
    let inner = value.get("error").unwrap_or(value);
    let text = |key| inner.get(key).and_then(Value::as_str).map(clean);
    let code = match inner.get("code") {
        Some(Value::Number(number)) => Some(number.to_string()),
        _ => text("code"),
    };
    let message = inner.as_str().map(clean).or_else(|| text("message"));
    if message.is_none() && code.is_none() {
        return None;
    }
    let message = message.unwrap_or_default();
    Some(ServerError {
        status: None,
        code,
        class: text("type"),
        message,
    })
}

/// Cuts a text, and replaces what a terminal or a log would obey.
fn clean(text: &str) -> String {
    let obeyed =
        |c: char| c.is_control() || matches!(c, '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}');
    text.chars()
        .take(MAX_TEXT)
        .map(|c| if obeyed(c) { ' ' } else { c })
        .collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn said(body: &str) -> ServerError {
        let error = from_status(400, body.as_bytes(), "chat");
        error.server().expect("the server's words are kept").clone()
    }

    #[test]
    fn every_shape_in_use_is_read() {
        let full = said(r#"{"error":{"message":"m","type":"t","code":"c","param":null}}"#);
        assert_eq!(
            (full.message.as_str(), full.class.as_deref()),
            ("m", Some("t"))
        );
        assert_eq!((full.code.as_deref(), full.status), (Some("c"), Some(400)));
        assert_eq!(
            said(r#"{"error":{"message":"m","code":400}}"#)
                .code
                .as_deref(),
            Some("400")
        );
        assert_eq!(said(r#"{"error":"m"}"#).message, "m");
        assert_eq!(
            said(r#"{"object":"error","message":"m","code":400}"#).message,
            "m"
        );
        for nothing in [
            "",
            "<html>",
            "[]",
            "{}",
            "null",
            r#"{"error":{}}"#,
            r#"{"error":[1]}"#,
        ] {
            assert_eq!(said(nothing).message, "", "{nothing}");
        }
    }

    #[test]
    fn a_status_tells_what_a_caller_can_do() {
        for (status, kind) in [
            (400, ErrorKind::Invalid),
            (401, ErrorKind::PermissionDenied),
            (404, ErrorKind::NotFound),
            (422, ErrorKind::Invalid),
            (429, ErrorKind::Exhausted),
            (500, ErrorKind::Io),
            (503, ErrorKind::Exhausted),
            (302, ErrorKind::Protocol),
        ] {
            assert_eq!(from_status(status, b"", "chat").kind(), kind, "{status}");
        }
    }

    #[test]
    fn a_servers_words_cannot_steer_a_terminal_or_fill_a_log() {
        let long = format!("\u{1b}[2J\n\u{202e}{}", "a".repeat(5000));
        let said = said(&json!({ "error": { "message": long } }).to_string());
        assert_eq!(said.message.chars().count(), MAX_TEXT);
        assert!(said.message.starts_with(" [2J  a"));
    }

    #[test]
    fn an_event_is_an_error_only_if_it_says_so() {
        assert!(from_event(&json!({"choices": []}), "chat").is_none());
        assert!(from_event(&json!({"choices": [], "error": null}), "chat").is_none());
        let error = from_event(&json!({"error": {"message": "m", "code": 503}}), "chat");
        assert_eq!(error.expect("an error").kind(), ErrorKind::Exhausted);
    }
}
