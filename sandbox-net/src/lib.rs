//! Egress for sandboxes: rules judged by name and by address, and a filtering proxy.
#[cfg(feature = "proxy")]
mod decide;
#[cfg(feature = "proxy")]
mod error;
#[cfg(feature = "proxy")]
pub mod event;
pub mod guest;
#[cfg(feature = "proxy")]
pub mod policy;
#[cfg(feature = "proxy")]
mod proxy;
#[cfg(feature = "proxy")]
pub mod resolve;

#[cfg(feature = "proxy")]
pub use decide::check;
#[cfg(feature = "proxy")]
pub use error::Error;
#[cfg(feature = "proxy")]
pub use policy::EgressPolicy;
#[cfg(feature = "proxy")]
pub use proxy::{Limits, Proxy, ProxyBuilder};

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
