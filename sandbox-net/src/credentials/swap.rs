//! What becomes of the placeholders in one request's head: head in, decision out; pure.
//!
//! ```text
//!  find every placeholder, in any encoding ── not bound to this host ──► refused, alert
//!        │
//!  take ours out of their declared places, duplicates with them
//!        │
//!  look again at what is left ── a placeholder ──► refused: not its place
//!        │                    └─ another credential, host is ours alone ──► refused
//!  put the values in
//! ```
//!
//! Values are put in last, so that no look at a request ever meets one. A request is judged by itself: what an
//! earlier one carried, or a redirect says, has no part in it.

use std::{fmt, sync::Arc};

use base64::{Engine, engine::general_purpose::STANDARD};
use http::{HeaderName, HeaderValue, header, request::Parts};
use zeroize::Zeroizing;

#[cfg(feature = "sigv4")]
use crate::credentials::sigv4::{self, Signing};
use crate::{
    credentials::{
        Place, Secret,
        broker::{Entry, Table},
        query::{self, Query},
        scan::{Found, Scanner},
    },
    policy::Target,
};

/// Why a request is refused for the credentials in it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Refusal {
    /// A placeholder goes to a host that its credential is not granted to.
    Unbound(String),
    /// Something looks like a placeholder and is none of this sandbox.
    Unknown,
    /// A credential was revoked.
    Revoked(String),
    /// A placeholder stands where it is not replaced.
    Misplaced(String),
    /// The host takes only the credentials granted to it, and this is another one.
    Foreign(String),
    /// A placeholder goes over a connection that is not TLS.
    Plain(String),
    /// A body is too long to put a secret into it.
    BodyTooLong(String),
    /// A body is compressed, so that nothing can be put into it.
    BodyEncoded(String),
    /// A signature cannot be made anew, for this reason.
    #[cfg(feature = "sigv4")]
    Signature(String, &'static str),
}

impl Refusal {
    /// Returns the reason as a word for programs.
    pub(crate) fn reason(&self) -> &'static str {
        match self {
            Self::Unbound(_) => "placeholder-not-bound",
            Self::Unknown => "placeholder-unknown",
            Self::Revoked(_) => "credential-revoked",
            Self::Misplaced(_) => "placeholder-misplaced",
            Self::Foreign(_) => "foreign-credential",
            Self::Plain(_) => "credential-needs-tls",
            Self::BodyTooLong(_) => "body-too-long",
            Self::BodyEncoded(_) => "body-encoded",
            #[cfg(feature = "sigv4")]
            Self::Signature(..) => "signature",
        }
    }

    /// Returns the credential that it is about.
    pub(crate) fn credential(&self) -> Option<&str> {
        match self {
            Self::Unknown | Self::Foreign(_) => None,
            Self::Unbound(name)
            | Self::Revoked(name)
            | Self::Misplaced(name)
            | Self::Plain(name)
            | Self::BodyTooLong(name)
            | Self::BodyEncoded(name) => Some(name),
            #[cfg(feature = "sigv4")]
            Self::Signature(name, _) => Some(name),
        }
    }

    /// Says what would help, if anything does.
    pub(crate) fn remedy(&self) -> Option<&'static str> {
        match self {
            Self::Unbound(_) => Some("grant the credential to this host, if it may have it"),
            Self::Misplaced(_) => Some("send it in a place that the grant names"),
            Self::Foreign(_) => Some("send the placeholder, or let the grant stand beside others"),
            Self::Plain(_) => Some("use https"),
            Self::BodyTooLong(_) | Self::BodyEncoded(_) => {
                Some("send the credential in a header, or a shorter body without compression")
            }
            #[cfg(feature = "sigv4")]
            Self::Signature(..) => Some(
                "sign in the header, with the placeholder as both keys and without a session token",
            ),
            Self::Unknown | Self::Revoked(_) => None,
        }
    }

    /// Whether somebody tries to carry a credential where it does not belong.
    pub(crate) fn is_alert(&self) -> bool {
        matches!(
            self,
            Self::Unbound(_) | Self::Unknown | Self::Foreign(_) | Self::Plain(_)
        )
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unbound(name) => write!(f, "the credential {name} is not granted to this host"),
            Self::Unknown => f.write_str("the request holds a placeholder of another sandbox"),
            Self::Revoked(name) => write!(f, "the credential {name} was revoked"),
            Self::Misplaced(name) => {
                write!(
                    f,
                    "the placeholder of {name} stands where it is not replaced"
                )
            }
            Self::Foreign(place) => {
                write!(
                    f,
                    "this host takes granted credentials only, and {place} holds another one"
                )
            }
            Self::Plain(name) => write!(f, "the credential {name} is sent over TLS only"),
            Self::BodyTooLong(name) => {
                write!(
                    f,
                    "the body is too long to put the credential {name} into it"
                )
            }
            Self::BodyEncoded(name) => {
                write!(
                    f,
                    "the body is compressed, so the credential {name} cannot be put into it"
                )
            }
            #[cfg(feature = "sigv4")]
            Self::Signature(name, what) => {
                write!(
                    f,
                    "the request cannot be signed by the credential {name}: {what}"
                )
            }
        }
    }
}

/// What is to be done with a request whose head passed.
#[derive(Debug)]
pub(crate) struct Swap {
    /// The names of the credentials that were put in.
    pub(crate) used: Vec<String>,
    /// The body has to be held, up to so many bytes, and given to [`Table::swap_body`].
    pub(crate) hold: Option<usize>,
    /// What the answer must not repeat.
    pub(crate) scrub: Vec<Secret>,
    /// The request is to be signed at last.
    #[cfg(feature = "sigv4")]
    pub(crate) signing: Option<Signing>,
}

/// Headers that carry credentials, whatever the host.
const CREDENTIAL_HEADERS: [HeaderName; 9] = [
    header::AUTHORIZATION,
    HeaderName::from_static("x-api-key"),
    HeaderName::from_static("api-key"),
    HeaderName::from_static("x-goog-api-key"),
    HeaderName::from_static("x-auth-token"),
    HeaderName::from_static("x-access-token"),
    HeaderName::from_static("private-token"),
    HeaderName::from_static("job-token"),
    HeaderName::from_static("x-amz-security-token"),
];

/// Parameters that carry credentials, whatever the host.
const CREDENTIAL_PARAMETERS: [&str; 11] = [
    "key",
    "api_key",
    "api-key",
    "apikey",
    "access_token",
    "auth_token",
    "token",
    "private_token",
    "x-amz-signature",
    "x-goog-signature",
    "sig",
];

/// A value to be put in at the end.
struct Insertion {
    name: HeaderName,
    value: HeaderValue,
}

impl Table {
    /// Judges a request's head and puts in the secrets that belong there.
    ///
    /// # Errors
    ///
    /// Why the request must not be sent. The head is not to be used then.
    pub(crate) fn swap(&self, target: &Target, head: &mut Parts) -> Result<Swap, Refusal> {
        let mut query = Query::read(head.uri.query());
        let seen = self.look(head, &query);
        self.check_bound(&seen, target)?;
        let mut swap = Swap {
            used: Vec::new(),
            hold: None,
            scrub: Vec::new(),
            #[cfg(feature = "sigv4")]
            signing: None,
        };
        let mut insertions = Vec::new();
        for (entry, grant) in self.bound(target) {
            let Some(secret) = &entry.secret else {
                continue;
            };
            if entry.scrub {
                swap.scrub.push(secret.clone());
            }
            let found = grant.places.iter().find_map(|place| {
                insertion(place, entry, secret, head, &mut query).map(|value| (place, value))
            });
            #[cfg(feature = "sigv4")]
            if let Some((Place::SigV4(limit), _)) = found {
                let ours = (entry.name.as_str(), entry.placeholder.as_str(), secret);
                swap.signing = Signing::begin(ours, head, *limit);
            }
            if let Some((_, insertion)) = found {
                swap.used.push(entry.name.clone());
                insertions.extend(insertion);
                for place in &grant.places {
                    strip(place, head, &mut query);
                }
            }
            let limits = grant.places.iter().filter_map(|place| match place {
                Place::Body(limit) => Some(*limit),
                _ => None,
            });
            swap.hold = swap.hold.max(limits.max());
        }
        self.check_rest(target, head, &query)?;
        for Insertion { name, value } in insertions {
            head.headers.insert(name, value);
        }
        query.write(&mut head.uri);
        if !swap.scrub.is_empty() {
            head.headers.remove(header::ACCEPT_ENCODING);
        }
        Ok(swap)
    }

    /// Judges a request that goes out without TLS: no placeholder may be in it.
    pub(crate) fn check_plain(&self, head: &Parts) -> Result<(), Refusal> {
        let seen = self.look(head, &Query::read(head.uri.query()));
        match seen.entries.iter().position(|seen| *seen) {
            Some(index) => Err(Refusal::Plain(self.entries[index].name.clone())),
            None if seen.unknown => Err(Refusal::Unknown),
            None => Ok(()),
        }
    }

    /// Puts secrets into a body that was held.
    ///
    /// # Errors
    ///
    /// Why the body must not be sent.
    pub(crate) fn swap_body(
        &self,
        target: &Target,
        kind: Option<&HeaderValue>,
        body: &[u8],
    ) -> Result<(Vec<u8>, Vec<String>), Refusal> {
        let mut seen = Seen::new(self.entries.len());
        seen.add(&mut self.scanner(), body);
        seen.unknown = false;
        if !self.tolerant {
            self.check_bound(&seen, target)?;
        }
        let (mut body, mut used) = (body.to_vec(), Vec::new());
        for (entry, grant) in self.bound(target) {
            let takes_body = grant
                .places
                .iter()
                .any(|place| matches!(place, Place::Body(_)));
            if let Some(secret) = entry.secret.as_ref().filter(|_| takes_body) {
                let value = in_body(secret, kind);
                if let Some(swapped) = replaced(&body, entry.placeholder.as_str(), &value) {
                    body = swapped;
                    used.push(entry.name.clone());
                }
            }
        }
        Ok((body, used))
    }

    /// A scanner for one stream of bytes.
    pub(crate) fn scanner(&self) -> Scanner {
        Scanner::new(Arc::clone(&self.needles))
    }

    fn look(&self, head: &Parts, query: &Query) -> Seen {
        let mut seen = Seen::new(self.entries.len());
        seen.add(&mut self.scanner(), head.uri.path().as_bytes());
        query.each_text(|text| seen.add(&mut self.scanner(), text));
        for (name, value) in &head.headers {
            seen.add(&mut self.scanner(), name.as_str().as_bytes());
            seen.add(&mut self.scanner(), value.as_bytes());
        }
        seen
    }

    fn check_bound(&self, seen: &Seen, target: &Target) -> Result<(), Refusal> {
        for (entry, _) in self
            .entries
            .iter()
            .zip(&seen.entries)
            .filter(|(_, seen)| **seen)
        {
            if !entry.grants.iter().any(|grant| grant.target == *target) {
                return Err(Refusal::Unbound(entry.name.clone()));
            }
            if entry.secret.is_none() {
                return Err(Refusal::Revoked(entry.name.clone()));
            }
        }
        if seen.unknown {
            Err(Refusal::Unknown)
        } else {
            Ok(())
        }
    }

    /// Judges what is left of a head when ours is taken out.
    fn check_rest(&self, target: &Target, head: &mut Parts, query: &Query) -> Result<(), Refusal> {
        let seen = self.look(head, query);
        if let Some(index) = seen.entries.iter().position(|seen| *seen) {
            return Err(Refusal::Misplaced(self.entries[index].name.clone()));
        }
        let exclusive = self.bound(target).any(|(_, grant)| !grant.shared);
        if !exclusive {
            return Ok(());
        }
        // A session is a credential, too; but clients keep cookies that balance load, and do well without.
        head.headers.remove(header::COOKIE);
        let places = || self.bound(target).flat_map(|(_, grant)| &grant.places);
        let own = places().filter_map(|place| match place {
            Place::Header(name) => name.parse().ok(),
            _ => None,
        });
        for name in CREDENTIAL_HEADERS.into_iter().chain(own) {
            if head
                .headers
                .get_all(&name)
                .iter()
                .any(|value| !value.is_empty())
            {
                return Err(Refusal::Foreign(format!("the header {name}")));
            }
        }
        let own = places().filter_map(|place| match place {
            Place::Query(name) => Some(name.as_str()),
            _ => None,
        });
        match CREDENTIAL_PARAMETERS
            .into_iter()
            .chain(own)
            .find(|name| query.holds(name))
        {
            Some(name) => Err(Refusal::Foreign(format!("the parameter {name}"))),
            None => Ok(()),
        }
    }
}

/// What was seen in a head.
struct Seen {
    entries: Vec<bool>,
    /// There were more markers than placeholders.
    unknown: bool,
}

impl Seen {
    fn new(count: usize) -> Self {
        Self {
            entries: vec![false; count],
            unknown: false,
        }
    }

    fn add(&mut self, scanner: &mut Scanner, text: &[u8]) {
        let (mut markers, mut plain) = (0, 0);
        scanner.push(text, |found| match found {
            Found::Marker => markers += 1,
            Found::Entry {
                index,
                plain: is_plain,
            } => {
                self.entries[index] = true;
                plain += usize::from(is_plain);
            }
        });
        self.unknown |= markers > plain;
    }
}

/// Finds the placeholder in a place. Returns what is to be put into the head; the query is changed at once, its
/// values being out of sight. `None` if it is not there.
fn insertion(
    place: &Place,
    entry: &Entry,
    secret: &Secret,
    head: &Parts,
    query: &mut Query,
) -> Option<Option<Insertion>> {
    let placeholder = entry.placeholder.as_str();
    let insertion = |name: HeaderName, text: &[u8]| {
        let mut value = HeaderValue::from_bytes(text).ok()?;
        // Kept out of HPACK's tables and of `Debug`.
        value.set_sensitive(true);
        Some(Some(Insertion { name, value }))
    };
    match place {
        Place::Header(name) => {
            let name: HeaderName = name.parse().ok()?;
            let mut values = head.headers.get_all(&name).iter();
            values.find(|value| value.as_bytes() == placeholder.as_bytes())?;
            insertion(name, secret.expose())
        }
        Place::Bearer => insertion(
            header::AUTHORIZATION,
            &scheme("bearer", placeholder, secret, head)?,
        ),
        Place::Scheme(name) => insertion(
            header::AUTHORIZATION,
            &scheme(name, placeholder, secret, head)?,
        ),
        Place::Basic => insertion(header::AUTHORIZATION, &basic(placeholder, secret, head)?),
        Place::Query(name) => query.swap(name, placeholder, secret).then_some(None),
        Place::Body(_) => None,
        #[cfg(feature = "sigv4")]
        Place::SigV4(_) => sigv4::is_signed(&head.headers, placeholder).then_some(None),
    }
}

/// `<scheme> <placeholder>`, as the client spells the scheme, with the value.
fn scheme(
    name: &str,
    placeholder: &str,
    secret: &Secret,
    head: &Parts,
) -> Option<Zeroizing<Vec<u8>>> {
    let mut values = authorizations(head);
    values.find_map(|(spelled, token)| {
        let ours = spelled.eq_ignore_ascii_case(name) && token == placeholder;
        ours.then(|| Zeroizing::new([spelled.as_bytes(), b" ", secret.expose()].concat()))
    })
}

/// `Basic <Base64 of user:password>` with the value in place of one of them.
fn basic(placeholder: &str, secret: &Secret, head: &Parts) -> Option<Zeroizing<Vec<u8>>> {
    let placeholder = placeholder.as_bytes();
    authorizations(head).find_map(|(spelled, token)| {
        let pair = STANDARD
            .decode(token)
            .ok()
            .filter(|_| spelled.eq_ignore_ascii_case("basic"))?;
        let colon = pair.iter().position(|byte| *byte == b':')?;
        let (user, password) = (&pair[..colon], &pair[colon + 1..]);
        let swapped = |text| {
            if text == placeholder {
                secret.expose()
            } else {
                text
            }
        };
        if user != placeholder && password != placeholder {
            return None;
        }
        let pair = Zeroizing::new([swapped(user), b":", swapped(password)].concat());
        let token = Zeroizing::new(STANDARD.encode(&*pair));
        Some(Zeroizing::new(
            [spelled.as_bytes(), b" ", token.as_bytes()].concat(),
        ))
    })
}

/// The schemes and tokens of `Authorization`.
fn authorizations(head: &Parts) -> impl Iterator<Item = (&str, &str)> {
    let values = head.headers.get_all(header::AUTHORIZATION).iter();
    values.filter_map(|value| {
        let (scheme, token) = value.to_str().ok()?.split_once(' ')?;
        Some((scheme, token.trim()))
    })
}

/// Empties a place: what else stands there would compete with ours.
fn strip(place: &Place, head: &mut Parts, query: &mut Query) {
    match place {
        Place::Header(name) => drop(head.headers.remove(name.as_str())),
        #[cfg(feature = "sigv4")]
        Place::SigV4(_) => drop(head.headers.remove(header::AUTHORIZATION)),
        Place::Bearer | Place::Scheme(_) | Place::Basic => {
            drop(head.headers.remove(header::AUTHORIZATION));
        }
        Place::Query(name) => query.strip(name),
        Place::Body(_) => {}
    }
}

/// A value as it has to be written in a body of this kind.
fn in_body(secret: &Secret, kind: Option<&HeaderValue>) -> Zeroizing<Vec<u8>> {
    let kind = kind.and_then(|kind| kind.to_str().ok()).unwrap_or_default();
    let kind = kind
        .split(';')
        .next()
        .unwrap_or_default()
        .trim()
        .to_ascii_lowercase();
    let value = secret.expose();
    Zeroizing::new(match kind.as_str() {
        "application/x-www-form-urlencoded" => query::encode(value).into_bytes(),
        kind if kind == "application/json" || kind.ends_with("+json") => {
            // No control character is in a secret: these two are all that JSON escapes.
            let escaped = value.iter().flat_map(|byte| match byte {
                b'"' | b'\\' => [Some(b'\\'), Some(*byte)],
                byte => [Some(*byte), None],
            });
            escaped.flatten().collect()
        }
        _ => value.to_vec(),
    })
}

/// Replaces every occurrence; `None` if there is none.
fn replaced(body: &[u8], placeholder: &str, value: &[u8]) -> Option<Vec<u8>> {
    let placeholder = placeholder.as_bytes();
    let mut out = Vec::new();
    let (mut from, mut at) = (0, 0);
    while at + placeholder.len() <= body.len() {
        if body[at..].starts_with(placeholder) {
            out.extend_from_slice(&body[from..at]);
            out.extend_from_slice(value);
            at += placeholder.len();
            from = at;
        } else {
            at += 1;
        }
    }
    (from > 0).then(|| {
        out.extend_from_slice(&body[from..]);
        out
    })
}

#[cfg(test)]
mod tests;
