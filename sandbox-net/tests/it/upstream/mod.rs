//! The world through the proxy of this host.

mod hostile;
mod opened;
#[cfg(target_os = "linux")]
mod real;
mod socks;
mod support;

use std::sync::Arc;

use sandbox_net::{
    Proxy, UpstreamProxy, Way,
    credentials::Secret,
    event::{Decided, Kind},
    policy::RuleSet,
};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use self::support::{Company, PUBLIC, behind, names};
use crate::{
    inspect::support::Site,
    support::{Origin, allowing, ask, body, client, connect, fetch, next, read_head, within},
};

/// Sends a word through a tunnel and returns what comes back, or the answer that refused it.
async fn echo(proxy: &Proxy, target: &str) -> String {
    let mut client = client(proxy);
    let head = connect(&mut client, target).await;
    if !head.starts_with("HTTP/1.1 200") {
        let mut rest = String::new();
        within(client.read_to_string(&mut rest)).await.unwrap();
        return head + &rest;
    }
    client.write_all(b"hello").await.unwrap();
    // Squid takes the end of one half for the end of both.
    let mut echoed = [0; 5];
    within(client.read_exact(&mut echoed)).await.unwrap();
    String::from_utf8(echoed.to_vec()).unwrap()
}

#[tokio::test]
async fn e34_the_judged_address_is_asked_for_and_not_the_name() {
    let origin = Origin::echo().await;
    let company = Company::http(&origin).await;
    let proxy = behind(company.at(), allowing(&["www.example.com:7000"]));
    let mut events = proxy.subscribe();
    assert_eq!(echo(&proxy, "www.example.com:7000").await, "hello");
    let asked = company.asked().join("");
    assert!(
        asked.starts_with("CONNECT 8.8.8.8:7000 HTTP/1.1\r\n"),
        "{asked}"
    );
    assert!(!asked.contains("example.com"), "{asked}");
    let decision = next(&mut events, Kind::Decision).await;
    assert_eq!(decision.verdict, Some(Decided::Allow));
    assert_eq!(decision.address, Some("8.8.8.8:7000".parse().unwrap()));
    // Plain HTTP as well: in absolute form the origin would be told the address as its name.
    let mirror = Origin::mirror().await;
    let company = Company::http(&mirror).await;
    let proxy = behind(company.at(), allowing(&["www.example.com"]));
    let answer = fetch(&proxy, "http://www.example.com/a").await;
    assert!(answer.contains("GET /a HTTP/1.1\r\n"), "{answer}");
    assert!(answer.contains("host: www.example.com\r\n"), "{answer}");
    assert!(company.asked()[0].starts_with("CONNECT 8.8.8.8:80 "));
}

#[tokio::test]
async fn e34_a_name_with_a_private_address_is_never_asked_for() {
    let origin = Origin::echo().await;
    let company = Company::http(&origin).await;
    let rules = || allowing(&["*.example.com:7000"]);
    let all = [company.at(), company.at().names()];
    for upstream in all {
        let proxy = behind(upstream, rules());
        let answer = echo(&proxy, "inside.example.com:7000").await;
        assert_eq!(body(&answer)["reason"], "address-refused", "{answer}");
    }
    // The upstream proxy might take the other address, so that both have to be allowed.
    let proxy = behind(company.at().names(), rules());
    let answer = echo(&proxy, "mixed.example.com:7000").await;
    assert_eq!(body(&answer)["reason"], "address-refused", "{answer}");
    assert_eq!(company.asked(), [""; 0]);
    let proxy = behind(company.at(), rules());
    assert_eq!(echo(&proxy, "mixed.example.com:7000").await, "hello");
    assert!(company.asked()[0].starts_with("CONNECT 8.8.8.8:7000 "));
}

#[tokio::test]
async fn e34_with_names_the_name_is_sent_and_decides_where_nobody_here_knows_it() {
    let origin = Origin::echo().await;
    let company = Company::http(&origin).await;
    let proxy = behind(
        company.at().names(),
        allowing(&["*.example.com:7000", "proxied.example.com"]),
    );
    let mut events = proxy.subscribe();
    for name in ["www.example.com", "proxied.example.com"] {
        assert_eq!(echo(&proxy, &format!("{name}:7000")).await, "hello");
        let decision = next(&mut events, Kind::Decision).await;
        assert_eq!(
            (decision.verdict, decision.address),
            (Some(Decided::Allow), None)
        );
    }
    let asked = company.asked();
    assert!(
        asked[0].starts_with("CONNECT www.example.com:7000 "),
        "{asked:?}"
    );
    assert!(
        asked[1].starts_with("CONNECT proxied.example.com:7000 "),
        "{asked:?}"
    );
    // Without names, who has no address here is not reached.
    let proxy = behind(company.at(), allowing(&["*.example.com:7000"]));
    let answer = echo(&proxy, "proxied.example.com:7000").await;
    assert_eq!(body(&answer)["reason"], "unresolved", "{answer}");
    assert!(
        body(&answer)["remedy"].as_str().unwrap().contains("names"),
        "{answer}"
    );
    // A name that no rule allows is not sent, and neither is a literal address as a name.
    let proxy = behind(
        company.at().names(),
        allowing(&["www.example.com:7000", "8.8.8.8:7000"]),
    );
    let answer = echo(&proxy, "proxied.example.com:7000").await;
    assert_eq!(body(&answer)["reason"], "not-allowed", "{answer}");
    assert_eq!(echo(&proxy, "8.8.8.8:7000").await, "hello");
    assert_eq!(company.asked().len(), 3);
    assert!(company.asked()[2].starts_with("CONNECT 8.8.8.8:7000 "));
}

#[tokio::test]
async fn e34_with_names_what_only_some_network_knows_is_refused_or_reached_from_here() {
    let origin = Origin::echo().await;
    let company = Company::http(&origin).await;
    let allowed = [
        "wiki.corp:7000",
        "metadata.google.internal:7000",
        "169.254.169.254:7000",
    ];
    let rules = || {
        allowed
            .iter()
            .fold(RuleSet::deny(), |rules, host| rules.allow(host).unwrap())
    };
    let proxy = behind(company.at().names(), rules());
    for name in ["wiki.corp", "metadata.google.internal"] {
        let answer = echo(&proxy, &format!("{name}:7000")).await;
        assert_eq!(body(&answer)["reason"], "internal-name", "{answer}");
    }
    let excepted = company.at().names().except(".corp");
    let port = origin.port();
    let rules = allowing(&[format!("here.corp:{port}"), origin.rule()]);
    let resolver = names().with("here.corp".parse().unwrap(), ["127.0.0.1".parse().unwrap()]);
    let proxy = Proxy::builder(Arc::new(rules)).upstream_proxy(excepted);
    let proxy = proxy.resolver(Arc::new(resolver)).build();
    assert_eq!(echo(&proxy, &format!("here.corp:{port}")).await, "hello");
    assert_eq!(company.asked(), [""; 0]);
}

#[tokio::test]
async fn e34_an_address_that_is_not_public_is_dialled_from_here() {
    let origin = Origin::echo().await;
    let company = Company::http(&Origin::mirror().await).await;
    for upstream in [company.at(), company.at().names()] {
        let proxy = behind(upstream, allowing(&[origin.rule()]));
        assert_eq!(echo(&proxy, &origin.address.to_string()).await, "hello");
    }
    assert_eq!(
        company.asked(),
        [""; 0],
        "127.0.0.1 is another machine there"
    );
}

#[tokio::test]
async fn e34_e71_the_upstream_proxy_itself_cannot_be_asked_for() {
    let origin = Origin::echo().await;
    let company = Company::http(&origin).await;
    let port = company.address.port();
    let rules = || {
        let here = format!("127.0.0.1/32:{port}");
        allowing(&[
            here,
            format!("localproxy.example.com:{port}"),
            format!("alias.example.com:{port}"),
        ])
    };
    let resolver = || {
        let here = ["127.0.0.1".parse().unwrap()];
        Arc::new(names().with("alias.example.com".parse().unwrap(), here))
    };
    for upstream in [company.at(), company.at().names(), company.at().except("*")] {
        let proxy = Proxy::builder(Arc::new(rules())).resolver(resolver());
        let proxy = proxy.upstream_proxy(upstream).build();
        for target in [
            format!("127.0.0.1:{port}"),
            format!("alias.example.com:{port}"),
        ] {
            let answer = echo(&proxy, &target).await;
            assert_eq!(
                body(&answer)["reason"],
                "upstream-proxy",
                "{target}: {answer}"
            );
            let answer = fetch(&proxy, &format!("http://{target}/")).await;
            assert_eq!(
                body(&answer)["reason"],
                "upstream-proxy",
                "{target}: {answer}"
            );
        }
    }
    let named = UpstreamProxy::at(&format!("http://LocalProxy.example.com:{port}")).unwrap();
    let answer = echo(
        &behind(named.names(), rules()),
        &format!("localproxy.example.com:{port}"),
    )
    .await;
    assert_eq!(body(&answer)["reason"], "upstream-proxy", "{answer}");
    assert_eq!(company.asked(), [""; 0]);
}

#[tokio::test]
async fn with_names_plain_requests_are_in_absolute_form_and_upgrades_in_tunnels() {
    let origin = Origin::mirror().await;
    let company = Company::http(&origin).await;
    let upstream = UpstreamProxy::at(&company.url("http", "me:secret@"))
        .unwrap()
        .names();
    let proxy = behind(upstream, allowing(&["www.example.com"]));
    let answer = fetch(&proxy, "http://www.example.com/a?b").await;
    let asked = company.asked().remove(0).to_ascii_lowercase();
    assert!(
        asked.starts_with("get http://www.example.com/a?b http/1.1\r\n"),
        "{answer}"
    );
    assert!(asked.contains("host: www.example.com\r\n"), "{asked}");
    assert!(
        asked.contains("proxy-authorization: basic bwu6c2vjcmv0\r\n"),
        "{asked}"
    );
    let request = "GET http://www.example.com/ws HTTP/1.1\r\nHost: x\r\nConnection: upgrade\r\n\
                   Upgrade: websocket\r\nSec-WebSocket-Key: x\r\n\r\n";
    let mut client = client(&proxy);
    client.write_all(request.as_bytes()).await.unwrap();
    within(read_head(&mut client)).await;
    let asked = company.asked();
    assert!(
        asked[1].starts_with("CONNECT www.example.com:80 "),
        "{asked:?}"
    );
}

#[tokio::test]
async fn e34_a_login_goes_to_the_upstream_proxy_and_nowhere_else() {
    let origin = Origin::mirror().await;
    let company = Company::http(&origin).await;
    let secret = Secret::new("s3cret-word").unwrap();
    let upstream = company.at().login("me", &secret).unwrap();
    let proxy = behind(upstream.clone(), allowing(&["www.example.com"]));
    let mut events = proxy.subscribe();
    let request = "GET http://www.example.com/ HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\
                   Proxy-Authorization: Basic Z3Vlc3Q6Z3Vlc3Q=\r\n\r\n";
    let seen_by_origin = ask(&proxy, request).await.to_ascii_lowercase();
    assert!(seen_by_origin.contains("200 ok"), "{seen_by_origin}");
    assert!(
        !seen_by_origin.contains("authorization"),
        "{seen_by_origin}"
    );
    let asked = company.asked().remove(0).to_ascii_lowercase();
    assert!(
        asked.contains("proxy-authorization: basic bwu6cznjcmv0lxdvcmq=\r\n"),
        "{asked}"
    );
    let event = next(&mut events, Kind::End).await.to_json_line();
    let shown = format!("{event} {upstream:?} {proxy:?}");
    for word in ["s3cret", "bWU6"] {
        assert!(!shown.contains(word), "{shown}");
    }
}

#[tokio::test]
async fn what_is_excepted_is_reached_from_here() {
    let origin = Origin::mirror().await;
    let company = Company::http(&origin).await;
    let upstream = company.at().except("www.example.com:81");
    let limits = sandbox_net::Limits::default();
    // Nothing answers there within this time, and nobody else is asked.
    let limits = limits.with_connect_timeout(std::time::Duration::from_millis(200));
    let proxy = Proxy::builder(Arc::new(allowing(&[
        "www.example.com",
        "www.example.com:81",
    ])));
    let proxy = proxy.resolver(Arc::new(names())).limits(limits);
    let proxy = proxy.upstream_proxy(upstream).build();
    assert!(
        fetch(&proxy, "http://www.example.com/")
            .await
            .contains("200 OK")
    );
    let elsewhere = fetch(&proxy, "http://www.example.com:81/").await;
    assert!(!elsewhere.contains("200 OK"), "{elsewhere}");
    assert_eq!(company.asked().len(), 1);
    assert!(company.asked()[0].contains(PUBLIC));
}

#[tokio::test]
async fn e49_a_new_policy_cuts_what_a_name_alone_allowed() {
    let origin = Origin::echo().await;
    let company = Company::http(&origin).await;
    let proxy = behind(
        company.at().names(),
        allowing(&["proxied.example.com:7000"]),
    );
    let mut client = client(&proxy);
    let head = connect(&mut client, "proxied.example.com:7000").await;
    assert!(head.starts_with("HTTP/1.1 200"), "{head}");
    client.write_all(b"a").await.unwrap();
    assert_eq!(within(client.read_u8()).await.unwrap(), b'a');
    proxy.set_policy(Arc::new(allowing(&["*.example.com:7000"])));
    client.write_all(b"b").await.unwrap();
    assert_eq!(within(client.read_u8()).await.unwrap(), b'b');
    proxy.set_policy(Arc::new(RuleSet::deny()));
    assert!(within(client.read_u8()).await.is_err(), "the tunnel ends");
}

#[tokio::test]
async fn a_proxy_may_want_tls_and_is_verified() {
    let origin = Origin::echo().await;
    let to = origin.address;
    let company = Site::raw(&["http/1.1"], move |mut stream| async move {
        read_head(&mut stream).await;
        let mut up = tokio::net::TcpStream::connect(to).await.unwrap();
        let agreed = b"HTTP/1.1 200 OK\r\n\r\n";
        stream.write_all(agreed).await.unwrap();
        drop(tokio::io::copy_bidirectional(&mut stream, &mut up).await);
    })
    .await;
    let upstream = UpstreamProxy::at(&format!("https://{}", company.address)).unwrap();
    let trusting = upstream.clone().root_certificates(company.root.as_bytes());
    let rules = || allowing(&["www.example.com:7000"]);
    let proxy = behind(trusting.unwrap(), rules());
    assert_eq!(echo(&proxy, "www.example.com:7000").await, "hello");
    let answer = echo(&behind(upstream, rules()), "www.example.com:7000").await;
    let answer = body(&answer);
    assert_eq!(answer["reason"], "upstream-proxy", "{answer}");
    assert!(
        answer["message"].as_str().unwrap().contains("vouches"),
        "{answer}"
    );
}

/// What a proxy behind the company's would do: whether it is allowed, and which way.
async fn checked(
    upstream: Option<UpstreamProxy>,
    rules: &[&str],
    text: &str,
) -> (bool, Option<Way>) {
    let upstream = upstream.unwrap_or_else(|| UpstreamProxy::at("http://127.0.0.1:9").unwrap());
    let found = behind(upstream, allowing(rules)).check(text).await.unwrap();
    (found.verdict.is_allowed(), found.way)
}

#[tokio::test]
async fn e34_check_knows_the_way_and_asks_nobody_but_this_hosts_names() {
    let company = Company::saying(Vec::new()).await;
    let proxy = format!("http://{}", company.address);
    let by_address = || Way::ByAddress {
        proxy: proxy.clone(),
    };
    let by_name = |judged| Way::ByName {
        proxy: proxy.clone(),
        judged,
    };
    let all = ["*.example.com", "wiki.corp", "10.0.0.0/8:80", "8.8.0.0/16"];
    let with_login = UpstreamProxy::at(&company.url("http", "me:s3cret@")).unwrap();
    let excepting = company.at().except("www.example.com");
    let names = company.at().names();
    for (upstream, text, expected) in [
        (with_login, "https://www.example.com/", Some(by_address())),
        (company.at(), "http://www.example.com/", Some(by_address())),
        (company.at(), "8.8.8.8:443", Some(by_address())),
        (company.at(), "http://inside.example.com/", Some(Way::Near)),
        (company.at(), "https://inside.example.com/", None),
        (company.at(), "proxied.example.com", None),
        (excepting, "www.example.com", Some(Way::Excepted)),
        (names.clone(), "www.example.com", Some(by_name(true))),
        (
            names.clone(),
            "http://proxied.example.com/",
            Some(by_name(false)),
        ),
        (names.clone(), "mixed.example.com", None),
        (names.clone(), "wiki.corp", None),
        (names.clone(), "8.8.8.8:443", Some(by_address())),
    ] {
        let found = checked(Some(upstream), &all, text).await;
        assert_eq!(found, (expected.is_some(), expected), "{text}");
    }
    // Itself is no target, whatever a rule says.
    let own = company.address.to_string();
    let rule = format!("127.0.0.1/32:{}", company.address.port());
    assert_eq!(
        checked(Some(company.at()), &[&rule], &own).await,
        (false, None)
    );
    assert_eq!(company.asked(), [""; 0], "nobody connected to it");
    let without = crate::support::proxy(allowing(&["127.0.0.1/32:80"]));
    let found = without.check("http://127.0.0.1/").await.unwrap();
    assert_eq!(found.way, Some(Way::Direct));
}

#[tokio::test]
async fn e34_check_says_what_a_connection_then_does() {
    let origin = Origin::echo().await;
    let rules = ["*.example.com:7000", "10.0.0.0/8:7000"];
    for upstream_names in [false, true] {
        let company = Company::http(&origin).await;
        let upstream = match upstream_names {
            true => company.at().names(),
            false => company.at(),
        };
        let proxy = behind(upstream, allowing(&rules));
        for host in ["www", "proxied", "mixed"] {
            let target = format!("{host}.example.com:7000");
            let found = proxy.check(&target).await.unwrap();
            let through = matches!(found.way, Some(Way::ByAddress { .. } | Way::ByName { .. }));
            let before = company.asked().len();
            let answer = match found.way {
                // Dialled from here, where nobody listens.
                Some(Way::Near) => continue,
                _ => echo(&proxy, &target).await,
            };
            assert_eq!(found.verdict.is_allowed(), answer == "hello", "{target}");
            assert_eq!(through, company.asked().len() > before, "{target}");
        }
    }
}
