//! A file of rules is refused, or what it says survives being written in both forms.
#![no_main]

use libfuzzer_sys::fuzz_target;
use sandbox_net::policy::{Layers, RuleSet};

fuzz_target!(|text: &str| {
    for read in [RuleSet::from_toml(text), RuleSet::from_json(text)] {
        if let Ok(rules) = read {
            let again = RuleSet::from_toml(&rules.to_toml()).unwrap();
            assert_eq!(again.to_json(), rules.to_json());
        }
    }
    drop(Layers::from_toml(text));
});
