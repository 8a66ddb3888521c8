//! The proxy that this host itself has to go through, as an embedder describes it; pure, without sockets and
//! environment.
//!
//! ```text
//!   sandbox ══► Proxy ── judged ──► upstream proxy ──► the world
//!                  │                (CONNECT, absolute form, SOCKS5)
//!                  └── judged ──► what is excepted, and every address that is not public
//! ```
//!
//! An upstream proxy looks names up itself, and may get other addresses than those that were judged here. So by
//! default it is asked for the **judged address**, never for a name: `CONNECT 192.0.2.7:443`. Names are looked up by
//! this host's own resolver as if there were no upstream proxy, and rebinding there changes nothing.
//!
//! That fails where the upstream proxy filters by name, or where this host's resolver does not know the world's
//! names. For those there is [`UpstreamProxy::names`], which sends the name, and gives up what only an address can
//! tell:
//!
//! - The name is still looked up here first. If any of its addresses would be refused, so is the name: the upstream
//!   proxy might take that one. If it has no address here, **its name alone decides**: rules about networks say
//!   nothing, and a public name that leads to a private address *beyond the upstream proxy* is not noticed.
//! - A name below no public suffix (`wiki`, `db.corp`, `x.internal`, `printer.local`) is refused: what it means there
//!   is nobody's to say here. [Except](UpstreamProxy::except) it, and it is looked up and reached from here.
//! - Plain HTTP is sent in absolute form, as browsers do; without names it goes through CONNECT, too, since an origin
//!   would be told the address as its name. Proxies that allow CONNECT to port 443 alone need `names` for it.
//!
//! An address that is not public is never asked of the upstream proxy, in either mode: `127.0.0.1`, `169.254.169.254`
//! and `10.0.0.1` mean other machines there than the rule that opened them meant. They are dialled from here.
//!
//! The upstream proxy's own address is the embedder's choice and is not judged. A sandbox cannot ask for it, though:
//! whoever speaks to an upstream proxy directly has its word for everything.

mod endpoint;
mod exceptions;

use std::sync::Arc;

pub(crate) use endpoint::{Endpoint, Login, Scheme};
use exceptions::Exceptions;

use crate::{
    Error,
    policy::{Carriage, Host, Target},
};
#[cfg(feature = "inspect")]
use crate::{credentials::Secret, inspect::Roots};

/// Where the proxy of this host is, what does not go through it, and how it is asked. Cheap to clone.
///
/// `Debug` shows neither user nor password.
///
/// ```
/// use sandbox_net::UpstreamProxy;
///
/// let upstream = UpstreamProxy::at("http://proxy.example.com:3128")?.except(".corp.example.com, 10.0.0.0/8");
/// let variables = |name: &str| (name == "https_proxy").then(|| "socks5://127.0.0.1:1080".to_owned());
/// let upstream = UpstreamProxy::from_variables(variables)?.expect("a proxy is named");
/// # Ok::<(), sandbox_net::Error>(())
/// ```
#[derive(Debug, Clone)]
pub struct UpstreamProxy {
    /// For plain HTTP.
    http: Option<Arc<Endpoint>>,
    /// For everything else.
    tunnels: Option<Arc<Endpoint>>,
    except: Exceptions,
    names: bool,
    #[cfg(feature = "inspect")]
    pub(crate) roots: Roots,
}

impl UpstreamProxy {
    /// Goes through one proxy: `http://` (port 80 unless it names one), `https://` (443), `socks5://` or `socks5h://`
    /// (1080), `host:port` alone for the first; with `user:password@`, percent-encoded, where it asks for them.
    ///
    /// `socks5h` is taken as `socks5`: whether names are sent is for [`names`](Self::names) to say.
    ///
    /// # Errors
    ///
    /// `Invalid` if it is no such URL, with what is wrong but without the URL; `Unsupported` for `https` in a build
    /// without the feature `inspect`.
    pub fn at(url: &str) -> Result<Self, Error> {
        let endpoint = Arc::new(Endpoint::parse(url)?);
        Ok(Self::of(Some(Arc::clone(&endpoint)), Some(endpoint)))
    }

    fn of(http: Option<Arc<Endpoint>>, tunnels: Option<Arc<Endpoint>>) -> Self {
        Self {
            http,
            tunnels,
            except: Exceptions::default(),
            names: false,
            #[cfg(feature = "inspect")]
            roots: Roots::default(),
        }
    }

    /// Reads what programs commonly go by: `http_proxy` for plain HTTP, `https_proxy` for everything else,
    /// `all_proxy` for either, `no_proxy` as [`except`](Self::except) reads it; in lower case, else in upper case.
    /// `None` if no proxy is named. The environment is not asked but through `variable`.
    ///
    /// # Errors
    ///
    /// As [`at`](Self::at), naming the variable.
    pub fn from_variables(
        variable: impl Fn(&str) -> Option<String>,
    ) -> Result<Option<Self>, Error> {
        let find = |name: &str| {
            let found = variable(name).filter(|value| !value.is_empty());
            found.or_else(|| variable(&name.to_uppercase()).filter(|value| !value.is_empty()))
        };
        let endpoint = |name: &'static str| {
            let named = |name| find(name).map(|url| (name, url));
            let found = named(name).or_else(|| named("all_proxy"));
            let read = found.map(|(name, url)| {
                let read = Endpoint::parse(&url);
                read.map(Arc::new).map_err(|error| {
                    Error::new(error.kind(), format!("use the variable {name}"), error)
                })
            });
            read.transpose()
        };
        let (http, tunnels) = (endpoint("http_proxy")?, endpoint("https_proxy")?);
        if http.is_none() && tunnels.is_none() {
            return Ok(None);
        }
        let excepted = find("no_proxy").unwrap_or_default();
        Ok(Some(Self::of(http, tunnels).except(&excepted)))
    }

    /// Adds what does not go through it, as `NO_PROXY` has it: names with all below them (a leading `.` or `*.`
    /// changes nothing), addresses, networks, each with `:port` or without, separated by commas or white space; `*`
    /// for everything. Networks fit addresses that are asked for literally, as with other programs. An entry that is
    /// none of these fits nothing.
    #[must_use]
    pub fn except(mut self, list: &str) -> Self {
        self.except.add(list);
        self
    }

    /// Sends names to it, with the limits that are told above. Without, it is asked for judged addresses.
    #[must_use]
    pub fn names(mut self) -> Self {
        self.names = true;
        self
    }

    /// Sets user and password, in place of those of the URL: Basic for HTTP (RFC 7617), RFC 1929 for SOCKS.
    ///
    /// # Errors
    ///
    /// `Invalid` for a user with `:` or a control character, and for either longer than 255 bytes or not UTF-8.
    #[cfg(feature = "inspect")]
    pub fn login(mut self, user: &str, password: &Secret) -> Result<Self, Error> {
        let password = std::str::from_utf8(password.expose())
            .map_err(|_| Error::invalid("use a proxy's password", "it is not UTF-8"))?;
        let login = Login::new(user, password)?;
        for endpoint in [&mut self.http, &mut self.tunnels].into_iter().flatten() {
            *endpoint = Arc::new(endpoint.with_login(login.clone()));
        }
        Ok(self)
    }

    /// Trusts the certificates of a PEM text to vouch for a proxy that is spoken to over TLS, beside the system's.
    ///
    /// # Errors
    ///
    /// `Invalid` if there is none in it, or one that cannot be read.
    #[cfg(feature = "inspect")]
    pub fn root_certificates(mut self, pem: &[u8]) -> Result<Self, Error> {
        self.roots.add_pem(pem)?;
        Ok(self)
    }

    /// Tells whether it holds a password, so that it must not be written down.
    pub fn has_login(&self) -> bool {
        self.endpoints().any(|endpoint| endpoint.login.is_some())
    }

    /// Returns what it says without its secrets: where the proxies are, as URLs.
    pub fn locations(&self) -> Vec<String> {
        let mut found: Vec<_> = self.endpoints().map(|at| at.to_string()).collect();
        found.dedup();
        found
    }

    pub(crate) fn endpoints(&self) -> impl Iterator<Item = &Arc<Endpoint>> {
        [&self.http, &self.tunnels].into_iter().flatten()
    }

    /// Returns the proxy for a target that is reached in this way; `None` if it is reached from here.
    pub(crate) fn for_target(&self, target: &Target, carriage: Carriage) -> Option<&Arc<Endpoint>> {
        let endpoint = match carriage {
            Carriage::Http => self.http.as_ref(),
            Carriage::Tunnel => self.tunnels.as_ref(),
        };
        endpoint.filter(|_| !self.except.hold(target))
    }

    /// Whether a target's name is sent, so that others look it up.
    pub(crate) fn sends_name(&self, target: &Target, carriage: Carriage) -> bool {
        self.names
            && matches!(target.host, Host::Name(_))
            && self.for_target(target, carriage).is_some()
    }
}

#[cfg(test)]
mod tests;
