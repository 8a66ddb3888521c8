use std::collections::HashMap;

use super::*;

fn variables(pairs: &[(&str, &str)]) -> Result<Option<UpstreamProxy>, Error> {
    let table: HashMap<String, String> = pairs
        .iter()
        .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()))
        .collect();
    UpstreamProxy::from_variables(|name| table.get(name).cloned())
}

fn at(upstream: &UpstreamProxy, target: &str, carriage: Carriage) -> Option<String> {
    let target = target.parse().unwrap();
    let endpoint = upstream.for_target(&target, carriage);
    endpoint.map(ToString::to_string)
}

#[test]
fn urls_are_read_as_other_programs_do() {
    for (url, location) in [
        ("http://proxy.test", "http://proxy.test:80"),
        ("proxy.test:3128", "http://proxy.test:3128"),
        ("http://u:p@proxy.test:3128/", "http://proxy.test:3128"),
        ("socks5h://10.0.0.1", "socks5://10.0.0.1:1080"),
        ("http://[2001:db8::1]:8080", "http://[2001:db8::1]:8080"),
    ] {
        assert_eq!(UpstreamProxy::at(url).unwrap().locations(), [location]);
    }
    for junk in [
        "",
        "http://",
        "ftp://proxy.test",
        "http://proxy.test:0",
        "http://proxy.test:99999",
        "http://u%zz:p@proxy.test",
        "http://:p@proxy.test",
        "http://a b/",
        "socks4://proxy.test",
        "http://u:p%0d%0ax@proxy.test",
    ] {
        assert!(UpstreamProxy::at(junk).is_err(), "{junk}");
    }
}

#[test]
fn e34_a_login_is_decoded_and_shows_itself_nowhere() {
    let upstream = UpstreamProxy::at("http://me:s%40cret%3Apass@proxy.test").unwrap();
    assert!(upstream.has_login());
    let login = upstream.http.as_ref().unwrap().login.as_ref().unwrap();
    assert_eq!(
        (login.user.as_str(), login.password.as_str()),
        ("me", "s@cret:pass")
    );
    assert_eq!(login.basic(), "Basic bWU6c0BjcmV0OnBhc3M=");
    let error = UpstreamProxy::at("gopher://me:s%40cret@proxy.test").unwrap_err();
    let variable = [("https_proxy", "gopher://me:s@cret@proxy.test")];
    let named = variables(&variable).unwrap_err();
    assert!(named.to_string().contains("https_proxy"), "{named}");
    let shown = [
        format!(
            "{upstream:?} {:?} {login:?} {:?}",
            upstream.locations(),
            login.basic()
        ),
        format!("{error:?} {error} {named:?} {named}"),
    ];
    for shown in shown {
        for secret in ["cret", "bWU6", "me:"] {
            assert!(!shown.contains(secret), "{shown}");
        }
    }
}

#[test]
fn variables_name_a_proxy_for_each_way() {
    assert!(variables(&[("no_proxy", "*")]).unwrap().is_none());
    assert!(variables(&[("https_proxy", "")]).unwrap().is_none());
    let read = variables(&[
        ("HTTPS_PROXY", "http://upper.test:1"),
        ("https_proxy", "http://lower.test:2"),
        ("ALL_PROXY", "socks5://all.test"),
        ("NO_PROXY", "example.org"),
    ]);
    let read = read.unwrap().unwrap();
    let (http, tunnel) = (Carriage::Http, Carriage::Tunnel);
    assert_eq!(
        at(&read, "a.com:443", tunnel).unwrap(),
        "http://lower.test:2"
    );
    assert_eq!(
        at(&read, "a.com:80", http).unwrap(),
        "socks5://all.test:1080"
    );
    assert_eq!(at(&read, "www.example.org:443", tunnel), None);
    let read = variables(&[("http_proxy", "http://p.test")])
        .unwrap()
        .unwrap();
    assert_eq!(at(&read, "a.com:443", tunnel), None);
    assert!(
        !read
            .clone()
            .names()
            .sends_name(&"a.com:443".parse().unwrap(), tunnel)
    );
    assert!(read.names().sends_name(&"a.com:80".parse().unwrap(), http));
}
