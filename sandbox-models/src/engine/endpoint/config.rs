//! Where the server is, and what is tolerated of it. Pure: nothing here connects.

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use http::{HeaderValue, Uri};

use crate::{Error, ErrorKind, ModelName, Result};

const OPERATION: &str = "set up the endpoint";

/// What an [`Endpoint`](super::Endpoint) needs to know.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct EndpointConfig {
    /// The base URL, as OpenAI's clients take it: `http://127.0.0.1:12434/engines/v1`.
    ///
    /// A URL without a path means `/v1`. It holds no user, password or query.
    pub base_url: String,
    /// What the server calls a model, where that is not the name as the caller spells it.
    pub models: BTreeMap<ModelName, String>,
    /// How long resolving the host and connecting may take. 10 seconds by default.
    pub connect_timeout: Duration,
    /// How long the server may take to give a whole answer, or of a streamed one the head, and then
    /// the first byte. 10 minutes by default, because a processor without help reads a long
    /// conversation for minutes.
    pub answer_timeout: Duration,
    /// How long a streamed answer may pause once it has begun; a comment in the stream counts as a sign of life. 2
    /// minutes by default.
    pub idle_timeout: Duration,
    /// The largest whole answer or list of models, in bytes. 16 MiB by default.
    pub max_body: usize,
    /// The largest event of a streamed answer, in bytes. 1 MiB by default.
    pub max_event: usize,
    api_key: Option<ApiKey>,
}

impl EndpointConfig {
    /// The server at `base_url`, with the defaults that the fields' documentation names.
    pub fn new(base_url: impl Into<String>) -> Self {
        Self {
            base_url: base_url.into(),
            models: BTreeMap::new(),
            connect_timeout: Duration::from_secs(10),
            answer_timeout: Duration::from_secs(600),
            idle_timeout: Duration::from_secs(120),
            max_body: 16 * 1024 * 1024,
            max_event: 1024 * 1024,
            api_key: None,
        }
    }

    /// Names the model that the server calls `id`: its file, or a name with capitals.
    #[must_use]
    pub fn with_model(mut self, name: ModelName, id: impl Into<String>) -> Self {
        self.models.insert(name, id.into());
        self
    }

    /// Sets the key that is sent as `Authorization: Bearer`. It goes to this server alone, never into
    /// `Debug`, and in the clear, since the way is HTTP.
    #[must_use]
    pub fn with_api_key(mut self, key: impl Into<String>) -> Self {
        self.api_key = Some(ApiKey(key.into()));
        self
    }

    /// Sets [`connect_timeout`](Self::connect_timeout).
    #[must_use]
    pub fn with_connect_timeout(mut self, timeout: Duration) -> Self {
        self.connect_timeout = timeout;
        self
    }

    /// Sets [`answer_timeout`](Self::answer_timeout).
    #[must_use]
    pub fn with_answer_timeout(mut self, timeout: Duration) -> Self {
        self.answer_timeout = timeout;
        self
    }

    /// Sets [`idle_timeout`](Self::idle_timeout).
    #[must_use]
    pub fn with_idle_timeout(mut self, timeout: Duration) -> Self {
        self.idle_timeout = timeout;
        self
    }

    /// Sets [`max_body`](Self::max_body).
    #[must_use]
    pub fn with_max_body(mut self, bytes: usize) -> Self {
        self.max_body = bytes;
        self
    }

    /// Sets [`max_event`](Self::max_event).
    #[must_use]
    pub fn with_max_event(mut self, bytes: usize) -> Self {
        self.max_event = bytes;
        self
    }

    /// Returns the key, for the header and for removing it from what a server says.
    pub(super) fn key(&self) -> Option<&str> {
        self.api_key.as_ref().map(|key| key.0.as_str())
    }
}

/// A key that does not show itself.
#[derive(Clone)]
struct ApiKey(String);

impl fmt::Debug for ApiKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("[redacted]")
    }
}

/// The base URL taken apart, and the key as a header: what a request is made of.
#[derive(Debug, Clone)]
pub(super) struct Target {
    pub(super) host: String,
    pub(super) port: u16,
    /// `host[:port]` as it stands in the URL, for the `Host` header.
    pub(super) authority: HeaderValue,
    pub(super) authorization: Option<HeaderValue>,
    path: String,
}

impl Target {
    /// Checks the configuration.
    pub(super) fn new(config: &EndpointConfig) -> Result<Self> {
        let invalid = |reason| Error::new(ErrorKind::Invalid, OPERATION, reason);
        let url: Uri = config.base_url.parse().map_err(|error| {
            invalid("the base URL is no URL").with_source(http::Error::from(error))
        })?;
        match url.scheme_str() {
            Some("http") => {}
            Some("https") => {
                let reason = "https is not supported yet; name a server that speaks http";
                return Err(Error::new(ErrorKind::Unsupported, OPERATION, reason));
            }
            _ => return Err(invalid("the base URL does not start with http://")),
        }
        let authority = url
            .authority()
            .ok_or_else(|| invalid("the base URL has no host"))?;
        if authority.as_str().contains('@') {
            return Err(invalid("the base URL holds a user; use an API key"));
        }
        if url.query().is_some() {
            return Err(invalid("the base URL holds a query"));
        }
        // Written in brackets in a URL, without them everywhere else.
        let host = authority
            .host()
            .trim_start_matches('[')
            .trim_end_matches(']');
        let after_host = &authority.as_str()[authority.host().len()..];
        let port = match after_host {
            "" => Some(80),
            _ => authority.port_u16().filter(|port| *port != 0),
        };
        let port = port.ok_or_else(|| invalid("the base URL's port is not from 1 to 65535"))?;
        let path = match url.path().trim_end_matches('/') {
            "" => "/v1",
            path => path,
        };
        let header = HeaderValue::from_str(authority.as_str());
        Ok(Self {
            host: host.to_owned(),
            port,
            authority: header.map_err(|_| invalid("the base URL's host is no header value"))?,
            authorization: config.key().map(authorization).transpose()?,
            path: path.to_owned(),
        })
    }

    /// Returns the path of a verb, such as `/models`, on this server.
    pub(super) fn path(&self, verb: &str) -> String {
        format!("{}{verb}", self.path)
    }
}

fn authorization(key: &str) -> Result<HeaderValue> {
    let graphic = !key.is_empty() && key.bytes().all(|byte| byte.is_ascii_graphic());
    // The parser's own error would tell where in the key the fault is; ours tells nothing of it.
    let header = HeaderValue::try_from(format!("Bearer {key}"))
        .ok()
        .filter(|_| graphic);
    let mut header = header.ok_or_else(|| {
        Error::new(
            ErrorKind::Invalid,
            OPERATION,
            "the API key is not made of visible ASCII",
        )
    })?;
    header.set_sensitive(true);
    Ok(header)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn target(url: &str) -> Result<Target> {
        Target::new(&EndpointConfig::new(url))
    }

    #[test]
    fn a_url_is_taken_apart() {
        for (url, host, port, models) in [
            ("http://127.0.0.1:8080", "127.0.0.1", 8080, "/v1/models"),
            ("http://localhost/", "localhost", 80, "/v1/models"),
            ("http://[::1]:1/engines/v1/", "::1", 1, "/engines/v1/models"),
            ("http://[::1]/x", "::1", 80, "/x/models"),
        ] {
            let target = target(url).expect(url);
            assert_eq!((target.host.as_str(), target.port), (host, port), "{url}");
            assert_eq!(target.path("/models"), models, "{url}");
        }
    }

    #[test]
    fn what_is_not_plain_http_to_a_host_is_refused() {
        for (url, kind) in [
            ("https://api.example", ErrorKind::Unsupported),
            ("", ErrorKind::Invalid),
            ("localhost:80", ErrorKind::Invalid),
            ("/v1", ErrorKind::Invalid),
            ("unix:///run/x", ErrorKind::Invalid),
            ("http://", ErrorKind::Invalid),
            ("http://u:p@h/", ErrorKind::Invalid),
            ("http://h:99999/", ErrorKind::Invalid),
            ("http://h:0/", ErrorKind::Invalid),
            ("http://h/v1?key=x", ErrorKind::Invalid),
            ("http://h\r\nx: y/", ErrorKind::Invalid),
        ] {
            assert_eq!(target(url).expect_err(url).kind(), kind, "{url}");
        }
    }

    #[test]
    fn a_key_is_nowhere_in_debug_nor_in_the_error_about_it() {
        let config = EndpointConfig::new("http://h").with_api_key("hunter2");
        let target = Target::new(&config).expect("valid");
        assert!(!format!("{config:?} {target:?}").contains("hunter2"));
        let bad = Target::new(&EndpointConfig::new("http://h").with_api_key("hunter2\r\nx: y"));
        let error = bad.expect_err("refused");
        assert!(!format!("{error:?} {error}").contains("hunter2"));
    }
}
