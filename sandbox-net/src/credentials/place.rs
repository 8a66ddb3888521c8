//! Where in a request a credential stands, and which hosts may get it.

use http::HeaderName;
use serde::{Deserialize, Serialize};

use crate::{
    Error,
    credentials::Source,
    policy::{Host, Target},
};

/// The most of a body that is held to put a secret into it, unless said otherwise: 1 MiB.
pub const BODY_LIMIT: usize = 1 << 20;
/// The most that can be said otherwise.
const MOST: usize = 64 << 20;
const TOO_MUCH: &str = "a body is held up to 64 MiB at most";

/// A place in a request where a placeholder is replaced by its secret. Everywhere else it is refused.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum Place {
    /// The whole value of the header with this name, such as `x-api-key`.
    Header(String),
    /// `Authorization: Bearer <secret>` (RFC 6750, 2.1).
    Bearer,
    /// `Authorization: <scheme> <secret>` with a scheme of the host's own, such as `token`.
    Scheme(String),
    /// The user name or the password of `Authorization: Basic` (RFC 7617).
    Basic,
    /// The value of the query's parameter with this name.
    Query(String),
    /// Anywhere in a body, in plain text, as a JSON string or as a form's field. The body is held until it is
    /// complete; one with more bytes than this is refused.
    Body(usize),
    /// The signature of `Authorization: AWS4-HMAC-SHA256` (AWS Signature Version 4, feature `sigv4`), which is made
    /// anew. The value is `<access key id>:<secret access key>`, and `:<session token>` for temporary keys; clients
    /// inside take the placeholder for both keys and have no token, so the variables are `AWS_ACCESS_KEY_ID` and
    /// `AWS_SECRET_ACCESS_KEY`.
    ///
    /// A body is held to be signed where the request does not state its digest, as S3's do or `UNSIGNED-PAYLOAD`
    /// does; one with more bytes than this is refused. Refused are also presigned addresses and signed chunks.
    #[cfg(feature = "sigv4")]
    #[serde(rename = "sigv4")]
    SigV4(usize),
}

impl Place {
    /// Returns what is wrong with it.
    fn flaw(&self) -> Option<&'static str> {
        match self {
            Self::Header(name) => match name.parse::<HeaderName>() {
                Ok(name) if !is_carried(&name) => {
                    Some("this header does not reach the host as it is")
                }
                Ok(name) if name == http::header::AUTHORIZATION => {
                    Some("for `authorization` there are the places bearer, scheme and basic")
                }
                Ok(_) => None,
                Err(_) => Some("this is no header name"),
            },
            Self::Scheme(scheme) => scheme
                .parse::<HeaderName>()
                .err()
                .map(|_| "this is no scheme"),
            Self::Query(name) if name.is_empty() => Some("a parameter has a name"),
            Self::Body(limit) if *limit > MOST => Some(TOO_MUCH),
            #[cfg(feature = "sigv4")]
            Self::SigV4(limit) if *limit > MOST => Some(TOO_MUCH),
            _ => None,
        }
    }
}

/// Whether a header goes through the proxy as it is, and says nothing about the message itself.
pub(super) fn is_carried(name: &HeaderName) -> bool {
    use http::header::{
        CONNECTION, CONTENT_LENGTH, HOST, PROXY_AUTHORIZATION, TE, TRAILER, TRANSFER_ENCODING,
        UPGRADE,
    };
    let own = [
        CONNECTION,
        CONTENT_LENGTH,
        HOST,
        PROXY_AUTHORIZATION,
        TE,
        TRAILER,
        TRANSFER_ENCODING,
        UPGRADE,
    ];
    !own.contains(name) && name != "keep-alive" && name != "proxy-connection"
}

/// A host that may get a secret, and where.
///
/// A grant opens no egress: a rule has to allow the host, too.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "WrittenGrant", into = "WrittenGrant")]
pub struct Grant {
    pub(crate) target: Target,
    pub(crate) places: Vec<Place>,
    pub(crate) shared: bool,
}

impl Grant {
    /// Grants to one host, written `host` (port 443) or `host:port`. Wildcards are refused: who can name a host
    /// below one could collect the secret.
    ///
    /// # Errors
    ///
    /// `Invalid` if it is no host.
    pub fn new(host: &str, places: impl IntoIterator<Item = Place>) -> Result<Self, Error> {
        let operation = || format!("grant a secret to `{}`", host.escape_debug());
        let target = Target::parse_with_default_port(host, 443)
            .map_err(|error| Error::invalid(operation(), error))?;
        let places: Vec<_> = places.into_iter().collect();
        if places.is_empty() {
            return Err(Error::invalid(operation(), "no place is named"));
        }
        match places.iter().find_map(Place::flaw) {
            Some(what) => Err(Error::invalid(operation(), what)),
            None => Ok(Self {
                target,
                places,
                shared: false,
            }),
        }
    }

    /// Lets the guest use credentials of its own on this host, too. Otherwise a request with any other is refused,
    /// so that nothing can be sent to somebody else's account there.
    #[must_use]
    pub fn beside_others(mut self) -> Self {
        self.shared = true;
        self
    }

    /// Returns the host's name or address.
    pub fn host(&self) -> &Host {
        &self.target.host
    }

    /// Returns the port.
    pub fn port(&self) -> u16 {
        self.target.port
    }
}

#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct WrittenGrant {
    host: String,
    places: Vec<Place>,
    #[serde(default)]
    beside_others: bool,
}

impl TryFrom<WrittenGrant> for Grant {
    type Error = Error;

    fn try_from(written: WrittenGrant) -> Result<Self, Error> {
        let grant = Self::new(&written.host, written.places)?;
        Ok(Self {
            shared: written.beside_others,
            ..grant
        })
    }
}

impl From<Grant> for WrittenGrant {
    fn from(grant: Grant) -> Self {
        Self {
            host: grant.target.to_string(),
            places: grant.places,
            beside_others: grant.shared,
        }
    }
}

/// A secret by name, where its value comes from, and who may get it.
///
/// It can be written down if its [`Source`] can.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Credential {
    pub(crate) name: String,
    pub(crate) source: Source,
    pub(crate) grants: Vec<Grant>,
    #[serde(default)]
    pub(crate) variables: Vec<String>,
    #[serde(default)]
    pub(crate) prefix: String,
    #[serde(default)]
    pub(crate) scrub: bool,
}

impl Credential {
    /// Names a secret. The name appears in events and messages.
    pub fn new(name: impl Into<String>, source: Source) -> Self {
        Self {
            name: name.into(),
            source,
            grants: Vec::new(),
            variables: Vec::new(),
            prefix: String::new(),
            scrub: false,
        }
    }

    /// Grants it to a host.
    #[must_use]
    pub fn grant(mut self, grant: Grant) -> Self {
        self.grants.push(grant);
        self
    }

    /// Gives commands inside the placeholder in this variable.
    #[must_use]
    pub fn variable(mut self, name: impl Into<String>) -> Self {
        self.variables.push(name.into());
        self
    }

    /// Lets the placeholder begin with these characters, for clients that look at them: at most 32 letters, digits,
    /// `-` and `_`.
    #[must_use]
    pub fn prefix(mut self, prefix: impl Into<String>) -> Self {
        self.prefix = prefix.into();
        self
    }

    /// Replaces the value by as many `*` wherever an answer repeats it, byte for byte. Answers are asked for without
    /// compression then. For hosts that echo what they are sent; a host that wants to tell can encode it.
    #[must_use]
    pub fn scrub(mut self) -> Self {
        self.scrub = true;
        self
    }

    /// Returns its name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Returns where its value comes from.
    pub fn source(&self) -> &Source {
        &self.source
    }

    /// Lists its grants.
    pub fn grants(&self) -> &[Grant] {
        &self.grants
    }
}
