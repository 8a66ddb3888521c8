//! The proxy that the host goes through, as it is written down: where it is said, never a login.
//!
//! A detached sandbox is started by other processes later. Each reads the reference anew, so that what the
//! environment or the file says then is what counts.

use std::path::PathBuf;

use sandbox_base::{Error, ErrorKind};
use serde::{Deserialize, Serialize};

/// The longest file that names a proxy, in bytes.
const MAX_FILE: u64 = 16 << 10;

/// The proxy that the host of a sandbox has to go through ([`sandbox_net::upstream`] says how it is asked).
///
/// `Debug` shows no login.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct UpstreamProxy {
    source: Source,
    #[serde(default)]
    except: Vec<String>,
    #[serde(default)]
    names: bool,
    /// Certificates in PEM.
    #[serde(default)]
    roots: Vec<String>,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum Source {
    Environment,
    File(PathBuf),
    /// Without a login.
    Location(String),
    /// With one.
    #[serde(skip)]
    Value(sandbox_net::UpstreamProxy),
}

impl UpstreamProxy {
    fn from(source: Source) -> Self {
        Self {
            source,
            except: Vec::new(),
            names: false,
            roots: Vec::new(),
        }
    }

    /// What `http_proxy`, `https_proxy`, `all_proxy` and `no_proxy` say in the environment of the process that
    /// runs the sandbox; nothing, if they name no proxy. A detached sandbox's supervisor has the environment of
    /// whoever starts it.
    pub fn from_environment() -> Self {
        Self::from(Source::Environment)
    }

    /// What a file says: a URL as for [`at`](Self::at), at every start.
    pub fn from_file(path: impl Into<PathBuf>) -> Self {
        let path = path.into();
        Self::from(Source::File(std::path::absolute(&path).unwrap_or(path)))
    }

    /// A URL, as [`sandbox_net::UpstreamProxy::at`] reads it. One with a login cannot be written down: detached
    /// sandboxes need it in a file or in the environment.
    ///
    /// # Errors
    ///
    /// `Invalid` if it is no such URL, `Unsupported` as there; neither holds the URL.
    pub fn at(url: &str) -> Result<Self, Error> {
        let read = sandbox_net::UpstreamProxy::at(url).map_err(unusable)?;
        Ok(Self::from(match read.has_login() {
            true => Source::Value(read),
            false => Source::Location(url.to_owned()),
        }))
    }

    /// Adds what does not go through it, in the form of `NO_PROXY`.
    #[must_use]
    pub fn except(mut self, list: impl Into<String>) -> Self {
        self.except.push(list.into());
        self
    }

    /// Sends names to it, not the addresses that were judged, with the limits that
    /// [`sandbox_net::upstream`] tells.
    #[must_use]
    pub fn names(mut self) -> Self {
        self.names = true;
        self
    }

    /// Trusts certificates in PEM to vouch for a proxy that is spoken to over TLS, beside those of this system.
    #[must_use]
    pub fn root_certificates(mut self, pem: impl Into<String>) -> Self {
        self.roots.push(pem.into());
        self
    }

    /// Reads what it refers to now; `None` where the environment names no proxy.
    ///
    /// # Errors
    ///
    /// `Invalid` for what is no URL of a proxy, and what reading the file answers. None holds the URL.
    pub fn load(&self) -> Result<Option<sandbox_net::UpstreamProxy>, Error> {
        let read = match &self.source {
            Source::Environment => {
                let read = |name: &str| std::env::var(name).ok();
                sandbox_net::UpstreamProxy::from_variables(read).map_err(unusable)?
            }
            Source::File(path) => {
                let url = read_file(path)?;
                Some(sandbox_net::UpstreamProxy::at(url.trim()).map_err(unusable)?)
            }
            Source::Location(url) => Some(sandbox_net::UpstreamProxy::at(url).map_err(unusable)?),
            Source::Value(read) => Some(read.clone()),
        };
        let Some(mut upstream) = read else {
            return Ok(None);
        };
        for list in &self.except {
            upstream = upstream.except(list);
        }
        for pem in &self.roots {
            upstream = upstream
                .root_certificates(pem.as_bytes())
                .map_err(unusable)?;
        }
        Ok(Some(match self.names {
            true => upstream.names(),
            false => upstream,
        }))
    }

    /// Tells whether it can be written down.
    pub(crate) fn is_reference(&self) -> bool {
        !matches!(self.source, Source::Value(_))
    }
}

fn read_file(path: &std::path::Path) -> Result<String, Error> {
    use std::io::Read;
    let failed = |error| Error::io(format!("read a proxy's URL from {}", path.display()), error);
    let mut text = String::new();
    let file = std::fs::File::open(path).map_err(failed)?;
    file.take(MAX_FILE)
        .read_to_string(&mut text)
        .map_err(failed)?;
    Ok(text)
}

fn unusable(error: sandbox_net::Error) -> Error {
    Error::new(error.kind(), "use the proxy of this host").with_source(error)
}

/// Says why it cannot be written down.
pub(crate) fn unwritable() -> Error {
    Error::new(ErrorKind::Unsupported, "create a detached sandbox").with_detail(
        "the upstream proxy's login cannot be written down; name the proxy in a file or in the environment",
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn e34_a_login_is_never_written_down() {
        let with_login = UpstreamProxy::at("http://me:s3cret@proxy.test").unwrap();
        assert!(!with_login.is_reference());
        assert!(serde_json::to_string(&with_login).is_err());
        assert!(!format!("{with_login:?}").contains("s3cret"));
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("proxy");
        std::fs::write(&path, "http://me:s3cret@proxy.test:3128\n").unwrap();
        let by_file = UpstreamProxy::from_file(&path).names().except("*.test");
        let written = serde_json::to_string(&by_file).unwrap();
        assert!(!written.contains("s3cret"), "{written}");
        let read: UpstreamProxy = serde_json::from_str(&written).unwrap();
        let loaded = read.load().unwrap().unwrap();
        assert!(loaded.has_login());
        assert_eq!(loaded.locations(), ["http://proxy.test:3128"]);
        std::fs::write(&path, "gopher://me:s3cret@proxy.test").unwrap();
        let error = read.load().unwrap_err();
        assert!(!format!("{error:?}").contains("s3cret"), "{error:?}");
        assert!(
            UpstreamProxy::from_file(folder.path().join("none"))
                .load()
                .is_err()
        );
    }
}
