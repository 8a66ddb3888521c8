//! Whatever a configuration says, what is found in it makes a preset that loads.
#![no_main]

use libfuzzer_sys::fuzz_target;
use sandbox_net::policy::{Manager, Preset, Registries};

fuzz_target!(|text: &str| {
    let mut found = Registries::new();
    found.npmrc("x", text);
    found.pip_conf("x", text);
    found.cargo_config("x", text);
    found.cargo_index("x", text);
    found.apt_list("x", text);
    found.apt_sources("x", text);
    found.go_proxy("x", text);
    found.go_sumdb("x", text);
    found.maven_settings("x", text);
    found.addresses(Manager::Npm, "x", text);
    drop(Preset::Balanced.rules(&found));
});
