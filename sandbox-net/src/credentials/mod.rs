//! Secrets that stay on the host: the guest holds placeholders, the proxy puts the values in.
//!
//! ```text
//!  inside                           │  on the host
//!                                   │
//!  ANTHROPIC_API_KEY=sk-ant-sbx…    │   Source ─► Secret
//!         │                         │               │ granted to api.anthropic.com:443, header x-api-key
//!         ▼                         │               ▼
//!  x-api-key: sk-ant-sbx… ══ TLS ══►│  inspected ─► swap ─► x-api-key: <value> ══ verified TLS ══► origin
//! ```
//!
//! A placeholder is replaced in the [`Place`]s of a [`Grant`], on the way to exactly its host and port, inside TLS that
//! was verified; anywhere else the request is refused with the reason, and over plain HTTP where one ends in its body.
//! On a granted host every other credential is refused as well ([`Grant::beside_others`] allows them). A grant opens no
//! egress: a rule has to, too.
//!
//! | file | holds |
//! |---|---|
//! | `secret`, `keyring` | a value, and where it comes from |
//! | `place` | where it goes: places, grants, credentials as they are written down |
//! | `placeholder`, `scan` | what the guest gets; finding it in any encoding |
//! | `swap`, `query` | a request's head in, decision out |
//! | `sigv4` | requests to AWS signed anew |
//! | `scrub` | a value taken out of an answer |
//! | `broker` | the credentials of a sandbox while it lives |
//! | `service` | known services as data |
//!
//! # Limits of protection
//!
//! - Who may use a credential may use up what it gives access to: a placeholder is as good as its secret *at the
//!   granted hosts*, from inside this sandbox, while it runs.
//! - A host that echoes what it gets tells the value to the guest: grant to hosts that do not, or
//!   [`Credential::scrub`] the answers, which only finds the value as it is.
//! - The value passes through memory of the HTTP and TLS libraries that is not overwritten.
//! - A client that signs (`Place::SigV4`) gets any request to a granted host signed, for any region and service.
//! - Credentials in bodies other than placeholders are not judged.

mod broker;
mod keyring;
mod place;
mod placeholder;
mod query;
mod scan;
mod scrub;
mod secret;
mod service;
#[cfg(feature = "sigv4")]
mod sigv4;
mod swap;

pub use broker::Credentials;
pub use place::{BODY_LIMIT, Credential, Grant, Place};
pub use placeholder::{MARKER, Placeholder};
pub use secret::{MAX_SECRET, Secret, Source};
pub use service::Service;

pub(crate) use broker::Table;
pub(crate) use scan::{Found, Scanner};
pub(crate) use scrub::Scrubber;
#[cfg(feature = "sigv4")]
pub(crate) use sigv4::Signing;
pub(crate) use swap::{Refusal, Swap};
