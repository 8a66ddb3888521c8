//! Egress for sandboxes: rules judged by name and by address, and a filtering proxy.
//!
//! A sandbox has no network card. It reaches the world through streams that its agent opens to the host, and this
//! crate is what stands at the host's end: what it does not let through does not exist.
//!
//! ```text
//!   inside                          │  on the host
//!                                   │
//!   program ─► 127.0.0.1:3128       │      ┌────────── Proxy ──────────┐
//!              guest::serve ════ stream ══►│ gate ► request ► policy   │
//!   program ─► any address          │      │          names ► Resolver │──► the world,
//!              guest::capture ══ stream ══►│      addresses ► policy   │    judged addresses only
//!                                   │      │       TLS name ► policy   │
//!                                   │      │  method, path  ► policy   │
//!                                   │      └───────── events ──────────┘
//! ```
//!
//! | module | holds |
//! |---|---|
//! | [`policy`] | what may be reached: [`EgressPolicy`] (the seam), rules, layers, presets, the address floor; pure |
//! | [`approval`] | asking somebody about what no rule allows |
//! | [`registries`] | where this host's package managers get their packages from |
//! | [`resolve`] | names to addresses, once per connection |
//! | [`upstream`] | the proxy that this host itself goes through, if it has to |
//! | [`Proxy`] | HTTP requests and CONNECT tunnels from any stream; asks the policy, never decides |
//! | [`event`] | everything decided, as a stream and as JSON lines |
//! | [`check`], [`Proxy::check`] | what the proxy would decide, and which way it would go, without connecting |
//! | [`inspect`] | TLS opened for chosen hosts: an authority per sandbox, what makes clients inside trust it |
//! | [`credentials`] | secrets that stay on the host, put in where a placeholder stands |
//! | [`guest`] | the half that runs inside: the proxy's port, and capture of what programs send past it |
//!
//! # Example
//!
//! ```
//! use sandbox_net::{check, policy::RuleSet, resolve::FixedResolver};
//!
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let rules = RuleSet::deny().allow("*.example.com")?.allow("10.1.2.0/24:5432")?;
//! let names = FixedResolver::new()
//!     .with("www.example.com".parse()?, ["8.8.8.8".parse()?])
//!     .with("inside.example.com".parse()?, ["10.1.2.3".parse()?]);
//!
//! assert!(check(&rules, &names, "https://www.example.com/path").await?.is_allowed());
//! // An allowed name with a private address is refused all the same: the rule opens port 5432 there.
//! let denied = check(&rules, &names, "https://inside.example.com/").await?;
//! assert!(denied.denial().is_some());
//! # Ok(())
//! # }
//! ```
//!
//! # Features
//!
//! - `proxy` (default): the host's half. Without it only [`guest`] is left, and hyper and the rules are not built.
//! - `inspect` (default): credentials and the inspection of TLS, with rustls on ring.
//! - `dns`: [`resolve::DnsResolver`](resolve) asks name servers that are named to it.
//! - `keyring`: secrets from the system's keyring, with a D-Bus client in Rust on Linux.
//! - `sigv4`: requests to AWS signed anew with keys that stay on the host.
//! - `testing`: a scripted policy for embedders' tests.
//!
//! # What it does not do
//!
//! - It is no reverse proxy and no cache, and looks inside TLS only where an [`Inspector`](inspect::Inspector) says so:
//!   elsewhere what an allowed host is asked, by which `Host` inside, is not seen. A tunnel is held to its host by the
//!   name in the ClientHello, and one to a host of which a rule names methods or paths is denied unless it is opened.
//! - A rule about methods does not hold an origin that takes the method from a form or a query.
//! - An allowed host can be sent anything, and can answer with anything. Allow hosts that nobody else can write to.
//! - Lookups of allowed names carry what the sandbox puts in them, below an allowed wildcard for one. They are made
//!   when a connection is, never for a lookup inside alone; [`Limits`] paces them.
//! - An upgrade to WebSocket on plain HTTP passes to allowed hosts, and what it carries is not looked at.
//! - Other protocols than HTTP and TLS pass only where a rule names their port, and unseen.

#[cfg(feature = "proxy")]
pub mod approval;
#[cfg(feature = "inspect")]
pub mod credentials;
#[cfg(feature = "proxy")]
mod decide;
#[cfg(feature = "proxy")]
mod error;
#[cfg(feature = "proxy")]
pub mod event;
#[cfg(feature = "proxy")]
mod fault;
#[cfg(fuzzing)]
pub mod fuzzing;
pub mod guest;
#[cfg(feature = "inspect")]
pub mod inspect;
#[cfg(feature = "proxy")]
mod pace;
#[cfg(feature = "proxy")]
pub mod policy;
#[cfg(feature = "proxy")]
mod proxy;
#[cfg(feature = "proxy")]
pub mod registries;
#[cfg(feature = "proxy")]
pub mod resolve;
#[cfg(feature = "proxy")]
pub mod upstream;
mod wire;

#[cfg(feature = "proxy")]
pub use decide::check;
#[cfg(feature = "proxy")]
pub use error::Error;
#[cfg(feature = "proxy")]
pub use policy::EgressPolicy;
#[cfg(feature = "proxy")]
pub use proxy::{Checked, Limits, Proxy, ProxyBuilder, Way, captured_ports};
#[cfg(feature = "proxy")]
pub use upstream::UpstreamProxy;

#[cfg(test)]
mod testing_cases {
    //! How many cases the property tests try.

    use proptest::test_runner::Config;

    /// `SANDBOX_CASES` raises the number for a longer run.
    pub(crate) fn cases() -> Config {
        let cases = std::env::var("SANDBOX_CASES").ok();
        let cases = cases.and_then(|text| text.parse().ok()).unwrap_or(256);
        Config {
            cases,
            failure_persistence: None,
            ..Config::default()
        }
    }
}
