//! What presets allow, and what configuration texts say.

use proptest::prelude::*;

use super::*;
use crate::{
    policy::{Carriage, EgressPolicy, Facts, Mode, Target},
    testing_cases::cases,
};

fn patterns(registries: &Registries) -> Vec<String> {
    registries.found().iter().map(Registry::pattern).collect()
}

fn passes(rules: &RuleSet, text: &str) -> bool {
    let target = Target::parse(text).unwrap();
    let verdict = rules.judge(&Facts::new(&target, Carriage::Tunnel));
    verdict.denial().is_none()
}

#[test]
fn presets_allow_what_they_say() {
    let mut registries = Registries::new();
    registries.npmrc("a", "registry=https://packages.example/npm/");
    let locked = Preset::Locked.rules(&registries);
    assert!(locked.allowed().is_empty() && locked.mode() == Mode::Deny);
    let balanced = Preset::Balanced.rules(&registries);
    assert_eq!(balanced.mode(), Mode::Deny);
    assert!(passes(&balanced, "api.anthropic.com:443"));
    assert!(passes(&balanced, "packages.example:443"));
    assert!(!passes(&balanced, "elsewhere.example:443"));
    assert!(!passes(&balanced, "github.com:22"));
    let open = Preset::Open.rules(&registries);
    assert!(passes(&open, "elsewhere.example:443") && !passes(&open, "elsewhere.example:22"));
    for preset in Preset::ALL {
        assert_eq!(preset.to_string().parse::<Preset>().unwrap(), preset);
    }
    assert!("Balanced".parse::<Preset>().is_err());
}

#[test]
fn e45_the_curated_list_is_of_single_hosts() {
    let mut seen = std::collections::HashSet::new();
    for (host, purpose) in CURATED {
        assert!(
            host.parse::<crate::policy::HostName>().unwrap().as_str() == *host,
            "{host}"
        );
        assert!(!purpose.is_empty() && seen.insert(host), "{host}");
    }
}

#[test]
fn npm_configuration_is_read() {
    let mut found = Registries::new();
    found.npmrc(
        ".npmrc",
        "# registry=https://no.example\n; registry=https://no.example\nregistry = https://user:s3cret@npm.example/x/\n\
         @corp:registry=https://corp.example:8443/\n//npm.example/:_authToken=s3cret\nproxy=https://no.example\n\
         other-registry=https://no.example\n",
    );
    assert_eq!(patterns(&found), ["npm.example", "corp.example:8443"]);
    assert!(found.notes().is_empty());
}

#[test]
fn pip_configuration_is_read() {
    let mut found = Registries::new();
    found.pip_conf(
        "pip.conf",
        "[global]\nindex-url = https://u:s3cret@pip.example/simple\n# https://no.example\n\
         extra_index_url =\n    https://a.example/simple\n    http://b.example:8080/x\ntrusted-host = c.example\n\
         [install]\nfind-links: https://d.example/links\ntimeout = 60\n",
    );
    let expected = ["pip.example", "a.example", "b.example:8080", "d.example"];
    assert_eq!(patterns(&found), expected);
    let help = "  -i, --index-url <url>       Base URL of the Python Package Index (default\n      \
                https://pip.example/simple). This should\n";
    assert_eq!(
        default_of_help(help).as_deref(),
        Some("https://pip.example/simple")
    );
    for other in [
        "",
        "--index-url",
        "--index-url (default",
        "--index-url (default none)",
    ] {
        assert_eq!(default_of_help(other), None, "{other}");
    }
}

#[test]
fn cargo_configuration_is_read() {
    let text = r#"
        [source.crates-io]
        replace-with = "mirror"
        [source.mirror]
        registry = "sparse+https://u:s3cret@crates.example/index/"
        [source.named]
        registry = "mirror"
        [source.vendored]
        directory = "vendor"
        [registries.corp]
        index = "https://git.example/index"
        token = "s3cret"
    "#;
    let mut found = Registries::new();
    found.cargo_config("config.toml", text);
    let mut hosts = patterns(&found);
    hosts.sort();
    assert_eq!(hosts, ["crates.example", "git.example"]);
    assert!(Registries::cargo_replaces_default(text));
    assert!(!Registries::cargo_replaces_default(
        "[source.mirror]\nregistry='x'"
    ));
    found.cargo_index(
        "config.json",
        r#"{"dl":"https://dl.example/{crate}/{version}","api":"https://api.example"}"#,
    );
    assert!(patterns(&found).ends_with(&["dl.example".into(), "api.example".into()]));
    found.cargo_config("config.toml", "[");
    assert_eq!(
        found.notes()[0].to_string(),
        "cargo: config.toml is not TOML"
    );
}

#[test]
fn apt_sources_are_read_in_both_forms() {
    let mut found = Registries::new();
    found.apt_list(
        "sources.list",
        "deb http://a.example/debian stable main # http://no.example\n# deb http://no.example x y\n\
         deb-src [arch=amd64 signed-by=/x] https://b.example/ stable main\ndeb cdrom:[Debian]/ x main\n\
         deb file:///srv x main\n",
    );
    found.apt_sources(
        "x.sources",
        "Types: deb\nURIs: https://c.example/debian\n mirror+https://d.example/list\nSuites: stable\n\n\
         Types: deb\nEnabled: no\nURIs: http://no.example\n\n# URIs: http://no.example\nURIs: http://e.example:8000",
    );
    let expected = [
        "a.example",
        "b.example",
        "c.example",
        "d.example",
        "e.example:8000",
    ];
    assert_eq!(patterns(&found), expected);
}

#[test]
fn go_and_maven_configuration_is_read() {
    let mut found = Registries::new();
    found.go_proxy(
        "GOPROXY",
        "https://u:s3cret@go.example|https://b.example/x,direct",
    );
    found.go_sumdb("GOSUMDB", "sum.example+033de0ae+Ac4zctda0e5eza");
    found.go_sumdb("GOSUMDB", "off");
    found.maven_settings(
        "settings.xml",
        "<settings><mirrors><mirror><mirrorOf>*</mirrorOf><url>\n https://maven.example/all </url></mirror></mirrors>\
         <!-- <url>https://no.example</url> --><!-- open <url>https://no.example</url>",
    );
    assert_eq!(
        patterns(&found),
        ["go.example", "b.example", "sum.example", "maven.example"]
    );
}

#[test]
fn e28_registries_on_this_machine_or_in_private_networks_are_noted_and_not_opened() {
    let mut found = Registries::new();
    found.npmrc("a", "registry=http://127.0.0.1:4873/");
    found.npmrc("b", "registry=http://localhost:4873/");
    found.npmrc("c", "registry=https://u:s3cret@10.1.2.3/");
    found.npmrc("d", "registry=http://[::1]:80/");
    found.npmrc("e", "registry=http://169.254.169.254/");
    assert!(found.found().is_empty());
    assert_eq!(found.notes().len(), 5);
    assert!(found.notes()[0].text.contains("127.0.0.1:4873"));
    assert!(Preset::Balanced.rules(&found).allowed().len() == CURATED.len());
}

#[test]
fn e82_no_secret_is_kept_or_shown() {
    let mut found = Registries::new();
    for url in [
        "https://user:s3cret@a.example/x?token=s3cret#s3cret",
        "https://s3cret@b.example",
        "https://user:s3cret/x@c.example",
        "https://user:1/s3cret@c.example",
        "https://u@s3cret@d.example/",
        "s3cret",
        "${S3CRET}s3cret",
        "ftp://s3cret/",
        "https://s3cret_/",
        "https://*.s3cret.example",
    ] {
        found.npmrc(".npmrc", &format!("registry={url}"));
        found.go_proxy("GOPROXY", &format!("{url},direct"));
    }
    let shown = format!("{found:?}");
    // What stands where a host stands is taken for one, unless it cannot be.
    assert!(
        !shown.replace("https://s3cret", "").contains("s3cret\""),
        "{shown}"
    );
    assert!(!shown.contains("user"), "{shown}");
    assert!(!patterns(&found).iter().any(|host| host.contains('*')));
}

proptest! {
    #![proptest_config(cases())]

    /// Twin of the fuzz target `registries`: nothing panics, and the preset loads whatever was found.
    #[test]
    fn arbitrary_configuration_never_panics(
        text in "(\\PC|[\n=:,|@/<>\\[\\]\"#-]|https?://|registry|index-url|URIs: |deb |<url>|[a-z0-9.]{1,8})*",
    ) {
        let mut found = Registries::new();
        found.npmrc("x", &text);
        found.pip_conf("x", &text);
        found.cargo_config("x", &text);
        found.cargo_index("x", &text);
        found.apt_list("x", &text);
        found.apt_sources("x", &text);
        found.go_proxy("x", &text);
        found.go_sumdb("x", &text);
        found.maven_settings("x", &text);
        found.addresses(Manager::Npm, "x", &text);
        drop(default_of_help(&text));
        let rules = Preset::Balanced.rules(&found);
        prop_assert_eq!(rules.allowed().len(), CURATED.len() + found.found().len());
    }

    #[test]
    fn near_addresses_never_panic(host in "[a-z0-9.:@\\[\\]*-]{0,20}", port in "(:[0-9]{0,5})?") {
        let mut found = Registries::new();
        found.npmrc("x", &format!("registry=https://{host}{port}/"));
        let rules = Preset::Balanced.rules(&found);
        prop_assert!(rules.allowed().len() >= CURATED.len());
    }
}
