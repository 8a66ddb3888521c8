//! A pattern is refused, or has one canonical text, which reads back as itself.
#![no_main]

use libfuzzer_sys::fuzz_target;
use sandbox_net::policy::{Pattern, RuleSet};

fuzz_target!(|text: &str| {
    if let Ok(pattern) = Pattern::parse(text) {
        assert_eq!(Pattern::parse(&pattern.to_string()).unwrap(), pattern);
    }
    drop(RuleSet::deny().allow(text));
    drop(RuleSet::open().block(text));
});
