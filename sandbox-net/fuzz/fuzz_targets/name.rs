//! A name or target is refused, or equals its canonical form up to ASCII case and one trailing dot.
#![no_main]

use libfuzzer_sys::fuzz_target;
use sandbox_net::policy::{HostName, Target};

fuzz_target!(|text: &str| {
    if let Ok(name) = HostName::parse(text) {
        let expected = text.strip_suffix('.').unwrap_or(text).to_ascii_lowercase();
        assert_eq!(name.as_str(), expected);
        assert!(name.as_str().parse::<std::net::IpAddr>().is_err());
    }
    if let Ok(target) = Target::parse(text) {
        assert_eq!(Target::parse(&target.to_string()).unwrap(), target);
    }
});
