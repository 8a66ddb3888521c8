//! One proxy: what is spoken to it, where it is, and by which login.

use std::fmt;

use base64::{Engine as _, prelude::BASE64_STANDARD};
use http::{HeaderValue, uri::Authority};
use zeroize::Zeroizing;

use crate::Error;

/// What RFC 1929 has room for; nobody's Basic is longer.
const MAX_LOGIN: usize = 255;

/// What is spoken to a proxy.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Scheme {
    Http,
    /// HTTP over TLS.
    Https,
    /// RFC 1928.
    Socks5,
}

/// Where a proxy is. Shown without its login.
#[derive(Clone)]
pub(crate) struct Endpoint {
    pub(crate) scheme: Scheme,
    /// A name or an address, without brackets.
    pub(crate) host: String,
    pub(crate) port: u16,
    pub(crate) login: Option<Login>,
}

/// A user and a password, overwritten when they are dropped.
#[derive(Clone)]
pub(crate) struct Login {
    pub(crate) user: Zeroizing<String>,
    pub(crate) password: Zeroizing<String>,
}

impl Login {
    pub(crate) fn new(user: &str, password: &str) -> Result<Self, Error> {
        let wrong = |what| Err(Error::invalid("use a proxy's login", what));
        if user.is_empty() || user.contains(':') {
            return wrong("its user is empty or has a colon in it");
        }
        for text in [user, password] {
            if text.len() > MAX_LOGIN || text.chars().any(char::is_control) {
                return wrong("it is longer than 255 bytes or holds a control character");
            }
        }
        Ok(Self {
            user: Zeroizing::new(user.to_owned()),
            password: Zeroizing::new(password.to_owned()),
        })
    }

    /// Returns the value of `Proxy-Authorization` (RFC 7617), which shows itself nowhere.
    pub(crate) fn basic(&self) -> HeaderValue {
        let pair = Zeroizing::new(format!("{}:{}", *self.user, *self.password));
        let text = Zeroizing::new(format!("Basic {}", BASE64_STANDARD.encode(pair.as_bytes())));
        let mut value = HeaderValue::from_str(&text).expect("base64 is visible ASCII");
        value.set_sensitive(true);
        value
    }
}

impl Endpoint {
    /// Reads a URL. What is wrong is said without it: it may hold a password.
    pub(crate) fn parse(url: &str) -> Result<Self, Error> {
        let wrong = |what: &'static str| Error::invalid("read the URL of a proxy", what);
        let (scheme, rest) = url.trim().split_once("://").unwrap_or(("http", url.trim()));
        let (scheme, default) = match scheme.to_ascii_lowercase().as_str() {
            "http" => (Scheme::Http, 80),
            "https" => (Scheme::Https, 443),
            "socks5" | "socks5h" => (Scheme::Socks5, 1080),
            _ => {
                return Err(wrong(
                    "its scheme is none of http, https, socks5 and socks5h",
                ));
            }
        };
        if scheme == Scheme::Https && cfg!(not(feature = "inspect")) {
            let what = "this build has no TLS, which the feature `inspect` brings";
            let kind = sandbox_base::ErrorKind::Unsupported;
            return Err(Error::new(kind, "read the URL of a proxy", what));
        }
        let authority = rest.split(['/', '?', '#']).next().unwrap_or_default();
        // A password may have been left as it is: the last one ends it.
        let (login, place) = match authority.rsplit_once('@') {
            Some((login, place)) => (Some(read_login(login)?), place),
            None => (None, authority),
        };
        let place: Authority = place.parse().map_err(|_| wrong("it names no host"))?;
        let port = match (place.port_u16(), &place.as_str()[place.host().len()..]) {
            (Some(port), _) if port != 0 => port,
            (None, "") => default,
            _ => return Err(wrong("its port is not a number from 1 to 65535")),
        };
        let host = place.host().trim_start_matches('[').trim_end_matches(']');
        if host.is_empty() {
            return Err(wrong("it names no host"));
        }
        let host = host.to_owned();
        Ok(Self {
            scheme,
            host,
            port,
            login,
        })
    }

    #[cfg(feature = "inspect")]
    pub(crate) fn with_login(&self, login: Login) -> Self {
        let login = Some(login);
        Self {
            login,
            ..self.clone()
        }
    }
}

fn read_login(text: &str) -> Result<Login, Error> {
    let (user, password) = text.split_once(':').unwrap_or((text, ""));
    let (user, password) = (decode(user), decode(password));
    match (user, password) {
        (Some(user), Some(password)) => Login::new(&user, &password),
        _ => Err(Error::invalid(
            "read the URL of a proxy",
            "its login is not percent-encoded UTF-8",
        )),
    }
}

/// RFC 3986, 2.1.
fn decode(text: &str) -> Option<Zeroizing<String>> {
    let mut bytes = Zeroizing::new(Vec::with_capacity(text.len()));
    let mut rest = text.bytes();
    while let Some(byte) = rest.next() {
        let byte = match byte {
            b'%' => {
                let mut digit = || char::from(rest.next()?).to_digit(16);
                u8::try_from(digit()? * 16 + digit()?).ok()?
            }
            byte => byte,
        };
        bytes.push(byte);
    }
    let text = std::str::from_utf8(&bytes).ok()?;
    Some(Zeroizing::new(text.to_owned()))
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let scheme = match self.scheme {
            Scheme::Http => "http",
            Scheme::Https => "https",
            Scheme::Socks5 => "socks5",
        };
        match self.host.contains(':') {
            true => write!(f, "{scheme}://[{}]:{}", self.host, self.port),
            false => write!(f, "{scheme}://{}:{}", self.host, self.port),
        }
    }
}

impl fmt::Debug for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Endpoint")
            .field("at", &format_args!("{self}"))
            .field("login", &self.login)
            .finish()
    }
}

impl fmt::Debug for Login {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Login(..)")
    }
}
