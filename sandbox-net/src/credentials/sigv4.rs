//! Requests signed anew, as AWS Signature Version 4 has it; pure.
//!
//! The guest holds a placeholder in place of both keys and signs with it, as any client does. That signature proves
//! nothing about the guest, but it tells how its client wrote the request down to sign it, of which there are several
//! ways: with the path as it is or escaped once more, tidied up or not. The way that reproduces it is the way in which
//! the request is signed with the real key, whose value never leaves this process. Region and service are those of
//! the guest's signature; the host is the one that the credential is granted to.
//!
//! What is not signed anew: signatures in the query (presigned addresses), chunks with signatures of their own
//! (`STREAMING-AWS4-…`), and SigV4a. Source: AWS, "Create a signed AWS API request".

use hmac::{Hmac, KeyInit, Mac};
use http::{HeaderMap, HeaderName, HeaderValue, Method, Uri, header, request::Parts};
use sha2::{Digest, Sha256};
use zeroize::Zeroizing;

use crate::{
    credentials::{Refusal, Secret, place::is_carried, query},
    policy::OVERRIDES,
};

const ALGORITHM: &str = "AWS4-HMAC-SHA256";
const DATE: &str = "x-amz-date";
const PAYLOAD: &str = "x-amz-content-sha256";
const TOKEN: HeaderName = HeaderName::from_static("x-amz-security-token");

/// The keys in a secret: `<access key id>:<secret access key>`, and `:<session token>` for temporary ones.
struct Keys<'a> {
    id: &'a str,
    secret: &'a str,
    token: Option<&'a str>,
}

impl<'a> Keys<'a> {
    fn read(secret: &'a Secret) -> Option<Self> {
        let mut parts = std::str::from_utf8(secret.expose()).ok()?.splitn(3, ':');
        let (id, secret, token) = (parts.next()?, parts.next()?, parts.next());
        let is_id = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_';
        let whole = !id.is_empty() && id.bytes().all(is_id) && !secret.is_empty();
        let token_fits = token.is_none_or(|token| !token.is_empty() && token.is_ascii());
        (whole && token_fits).then_some(Self { id, secret, token })
    }
}

/// Tells whether a value has the keys in it.
pub(super) fn is_keys(secret: &Secret) -> bool {
    Keys::read(secret).is_some()
}

/// Tells whether a request is signed with a placeholder.
pub(super) fn is_signed(headers: &HeaderMap, placeholder: &str) -> bool {
    Claim::read(headers, placeholder).is_some()
}

/// A signature as `Authorization` has it.
#[derive(Debug)]
struct Claim {
    /// `<date>/<region>/<service>/aws4_request`
    scope: String,
    signed: Vec<String>,
    signature: String,
}

impl Claim {
    /// Reads a signature by this key; `None` for any other.
    fn read(headers: &HeaderMap, id: &str) -> Option<Self> {
        let mut values = headers.get_all(header::AUTHORIZATION).iter();
        let text = values.next()?.to_str().ok()?;
        let fields = text.strip_prefix(ALGORITHM)?;
        let (mut credential, mut signed, mut signature) = (None, None, None);
        for field in fields.split(',') {
            let (name, value) = field.trim().split_once('=')?;
            let slot = match name {
                "Credential" => &mut credential,
                "SignedHeaders" => &mut signed,
                "Signature" => &mut signature,
                _ => return None,
            };
            if slot.replace(value).is_some() {
                return None;
            }
        }
        let scope = credential?.strip_prefix(id)?.strip_prefix('/')?;
        let parts: Vec<_> = scope.split('/').collect();
        let is_scope = matches!(parts.as_slice(), [_, _, _, "aws4_request"]);
        (is_scope && values.next().is_none()).then_some(())?;
        Some(Self {
            scope: scope.to_owned(),
            signed: signed?.split(';').map(str::to_owned).collect(),
            signature: signature?.to_owned(),
        })
    }
}

/// What a request says, of which some is signed.
#[derive(Debug)]
struct Request {
    method: Method,
    uri: Uri,
    headers: HeaderMap,
}

impl Request {
    fn host(&self) -> &str {
        let named = self.headers.get(header::HOST);
        let host = named.and_then(|host| host.to_str().ok());
        host.or(self.uri.authority().map(|authority| authority.as_str()))
            .unwrap_or_default()
    }
}

/// A request whose signature is to be made anew.
#[derive(Debug)]
pub(crate) struct Signing {
    name: String,
    placeholder: String,
    secret: Secret,
    claim: Claim,
    /// As the guest signed it.
    before: Request,
    /// The most of a body that is held to be signed.
    limit: usize,
    /// The body's digest, before and after secrets were put in, if it had to be looked at.
    digests: Option<(String, String)>,
}

impl Signing {
    /// Begins with a request that is signed with a placeholder; `None` if it is not.
    pub(super) fn begin(
        (name, placeholder, secret): (&str, &str, &Secret),
        head: &Parts,
        limit: usize,
    ) -> Option<Self> {
        Some(Self {
            claim: Claim::read(&head.headers, placeholder)?,
            name: name.to_owned(),
            placeholder: placeholder.to_owned(),
            secret: secret.clone(),
            before: Request {
                method: head.method.clone(),
                uri: head.uri.clone(),
                headers: head.headers.clone(),
            },
            limit,
            digests: None,
        })
    }

    /// Returns how much of a body has to be held, unless the request says what it signs of it.
    pub(crate) fn hold(&self) -> Option<usize> {
        (!self.before.headers.contains_key(PAYLOAD)).then_some(self.limit)
    }

    /// Takes a body as it came and as it is sent.
    pub(crate) fn take_body(&mut self, came: &[u8], sent: &[u8]) {
        self.digests = Some((digest(came), digest(sent)));
    }

    /// Signs a head that is otherwise ready to be sent to a host.
    ///
    /// # Errors
    ///
    /// Why that cannot be done.
    pub(crate) fn finish(self, head: &mut Parts, host: &str) -> Result<(), Refusal> {
        let name = self.name.clone();
        self.sign(head, host)
            .map_err(|what| Refusal::Signature(name, what))
    }

    fn sign(self, head: &mut Parts, host: &str) -> Result<(), &'static str> {
        let (came, sent) = self.payloads()?;
        let date = text(&self.before.headers, DATE).ok_or("it has no x-amz-date")?;
        let lines = lines(&self.before.headers, self.before.host(), &self.claim.signed);
        let lines = lines.ok_or("it signs a header that it does not have")?;
        let scope = self.claim.scope.as_str();
        let way = ways(&self.before.uri).find(|way| {
            let canonical = canonical(&self.before.method, way, (&lines, &came));
            signature(&self.placeholder, (&date, scope), &canonical) == self.claim.signature
        });
        let way = way.ok_or("it is not signed with the placeholder as its secret key")?;
        let keys = Keys::read(&self.secret).ok_or("its value holds no keys")?;
        if let Some(token) = keys.token {
            let mut token = HeaderValue::from_str(token).map_err(|_| "its token is no header")?;
            token.set_sensitive(true);
            head.headers.insert(TOKEN, token);
        }
        let signed = self.signed(&head.headers);
        let lines = self::lines(&head.headers, host, &signed).ok_or("a header is not text")?;
        let canonical = canonical(&head.method, &way, (&lines, &sent));
        let signature = signature(keys.secret, (&date, scope), &canonical);
        let value = format!(
            "{ALGORITHM} Credential={}/{scope}, SignedHeaders={}, Signature={signature}",
            keys.id,
            signed.join(";"),
        );
        let mut value = HeaderValue::from_str(&value).map_err(|_| "its scope is no header")?;
        value.set_sensitive(true);
        head.headers.insert(header::AUTHORIZATION, value);
        Ok(())
    }

    /// What is signed of the body, as it came and as it is sent.
    fn payloads(&self) -> Result<(String, String), &'static str> {
        match text(&self.before.headers, PAYLOAD) {
            Some(said) if said.starts_with("STREAMING-AWS4-") => {
                Err("its chunks are signed one by one, which is not done anew")
            }
            Some(said) => Ok((said.clone(), said)),
            None => self.digests.clone().ok_or("its body was not looked at"),
        }
    }

    /// The headers to sign: those that the guest signed and that are sent as they are.
    fn signed(&self, headers: &HeaderMap) -> Vec<String> {
        let is_sent = |name: &String| {
            let name = HeaderName::try_from(name).ok();
            name.is_some_and(|name| {
                (is_carried(&name) || name == header::CONTENT_LENGTH)
                    && headers.contains_key(&name)
                    && !OVERRIDES.contains(&name.as_str())
            })
        };
        let kept = self.claim.signed.iter().filter(|name| is_sent(name));
        let mut signed: Vec<_> = kept.cloned().chain(["host".to_owned()]).collect();
        if headers.contains_key(TOKEN) {
            signed.push(TOKEN.to_string());
        }
        signed.sort_unstable();
        signed.dedup();
        signed
    }
}

fn text(headers: &HeaderMap, name: &str) -> Option<String> {
    let value = headers.get(name)?.to_str().ok()?;
    Some(value.to_owned())
}

/// The headers with these names as they are signed: white space within them is one space each.
fn lines(headers: &HeaderMap, host: &str, names: &[String]) -> Option<Vec<(String, String)>> {
    let line = |name: &String| {
        if name == "host" {
            return Some((name.clone(), host.to_owned()));
        }
        let values = headers.get_all(name).iter();
        let values = values.map(|value| {
            let text = std::str::from_utf8(value.as_bytes()).ok()?;
            Some(text.split_whitespace().collect::<Vec<_>>().join(" "))
        });
        let values = values.collect::<Option<Vec<_>>>()?;
        (!values.is_empty()).then(|| (name.clone(), values.join(",")))
    };
    names.iter().map(line).collect()
}

/// The path and the query as they may have been signed.
type Way = (String, String);

/// The ways in which clients write an address down. Which it is depends on the service, and on the client.
fn ways(uri: &Uri) -> impl Iterator<Item = Way> {
    let path = uri.path();
    let path = if path.is_empty() { "/" } else { path };
    let query = uri.query().unwrap_or_default();
    let mut paths = Vec::new();
    for path in [path.to_owned(), tidy(path)] {
        paths.push(by_segment(&path, |segment| {
            query::encode(segment.as_bytes())
        }));
        paths.push(by_segment(&path, |segment| recode(segment, false)));
        paths.push(path);
    }
    let queries = [
        sorted(query, |text| recode(text, false)),
        sorted(query, |text| recode(text, true)),
        sorted(query, str::to_owned),
    ];
    paths.into_iter().flat_map(move |path| {
        let queries = queries.clone().into_iter();
        queries.map(move |query| (path.clone(), query))
    })
}

fn by_segment(path: &str, change: impl Fn(&str) -> String) -> String {
    path.split('/').map(change).collect::<Vec<_>>().join("/")
}

/// Escapes what has to be, and nothing twice. A plus is a plus, or a space as forms write it.
fn recode(text: &str, spaces: bool) -> String {
    match spaces {
        true => query::encode(&query::decode(text)),
        false => query::encode(&query::decode(&text.replace('+', "%2B"))),
    }
}

/// Takes out empty segments, `.` and `..` (RFC 3986, 5.2.4).
fn tidy(path: &str) -> String {
    let mut kept = Vec::new();
    for segment in path.split('/') {
        match segment {
            "" | "." => {}
            ".." => drop(kept.pop()),
            segment => kept.push(segment),
        }
    }
    let is_folder = matches!(path.rsplit('/').next(), Some("" | "." | ".."));
    match (kept.is_empty(), is_folder) {
        (true, _) => "/".to_owned(),
        (false, true) => format!("/{}/", kept.join("/")),
        (false, false) => format!("/{}", kept.join("/")),
    }
}

fn sorted(query: &str, change: impl Fn(&str) -> String) -> String {
    let pairs = query.split('&').filter(|pair| !pair.is_empty());
    let mut pairs: Vec<_> = pairs
        .map(|pair| {
            let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
            (change(name), change(value))
        })
        .collect();
    pairs.sort_unstable();
    let pairs = pairs.iter().map(|(name, value)| format!("{name}={value}"));
    pairs.collect::<Vec<_>>().join("&")
}

/// The request in its canonical form, of which the digest is signed.
fn canonical(
    method: &Method,
    (path, query): &Way,
    (lines, payload): (&[(String, String)], &str),
) -> String {
    let each = lines
        .iter()
        .map(|(name, value)| format!("{name}:{value}\n"));
    let names: Vec<_> = lines.iter().map(|(name, _)| name.as_str()).collect();
    let (headers, names) = (each.collect::<String>(), names.join(";"));
    format!("{method}\n{path}\n{query}\n{headers}\n{names}\n{payload}")
}

fn signature(secret: &str, (date, scope): (&str, &str), canonical: &str) -> String {
    let first = Zeroizing::new(format!("AWS4{secret}").into_bytes());
    let key = scope
        .split('/')
        .fold(first, |key, part| authenticate(&key, part));
    let text = format!(
        "{ALGORITHM}\n{date}\n{scope}\n{}",
        digest(canonical.as_bytes())
    );
    hex(&authenticate(&key, &text))
}

fn authenticate(key: &[u8], text: &str) -> Zeroizing<Vec<u8>> {
    let mut mac = Hmac::<Sha256>::new_from_slice(key).expect("HMAC takes keys of any length");
    mac.update(text.as_bytes());
    Zeroizing::new(mac.finalize().into_bytes().to_vec())
}

fn digest(bytes: &[u8]) -> String {
    hex(&Sha256::digest(bytes))
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests;
