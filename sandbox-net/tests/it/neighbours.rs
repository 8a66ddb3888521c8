//! Several sandboxes in one process: each has a proxy of its own, and what one does is not felt by another.
//!
//! All of a test runs on one thread, so that whoever kept it from others would keep the test from its end.

use std::{
    net::IpAddr,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::SeqCst},
    },
    time::Duration,
};

use async_trait::async_trait;
use sandbox_net::{
    Error, Limits, Proxy,
    credentials::{Credential, Credentials, Grant, Place, Secret, Source},
    event::Kind,
    policy::HostName,
    resolve::Resolver,
};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::{
    inspect::support::{Flaw, Sandbox, Site},
    support::{
        Origin, Rebinding, allowing, body, client, connect, fetch, next, proxy, proxy_with,
        read_head, within,
    },
};

/// How often the quiet sandbox asks.
const ROUNDS: usize = 200;

/// An origin that answers every request.
async fn answering() -> Origin {
    Origin::start(|mut stream| async move {
        while !read_head(&mut stream).await.is_empty() {
            let answer = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";
            if stream.write_all(answer).await.is_err() {
                return;
            }
        }
    })
    .await
}

/// Asks through the quiet sandbox while the noisy one goes on; returns how often that one was refused meanwhile.
async fn beside<F>(quiet: &Proxy, url: &str, noisy: impl Fn() -> F) -> usize
where
    F: Future<Output = bool>,
{
    let refused = AtomicUsize::new(0);
    let noise = async {
        loop {
            let counted = usize::from(noisy().await);
            refused.fetch_add(counted, SeqCst);
            tokio::task::yield_now().await;
        }
    };
    let asking = async {
        for _ in 0..ROUNDS {
            let answer = fetch(quiet, url).await;
            assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
        }
    };
    within(async {
        tokio::select! {
            () = noise => unreachable!("it has no end"),
            () = asking => {}
        }
    })
    .await;
    refused.load(SeqCst)
}

#[tokio::test]
async fn e60_a_sandbox_without_a_place_left_takes_none_of_another() {
    let origin = answering().await;
    let url = format!("http://{}/", origin.address);
    let limits = Limits::default().with_connections(4);
    let noisy = proxy_with(allowing(&[origin.rule()]), limits);
    let quiet = proxy(allowing(&[origin.rule()]));
    let mut held = Vec::new();
    for _ in 0..4 {
        let mut stream = client(&noisy);
        connect(&mut stream, &origin.address.to_string()).await;
        held.push(stream);
    }
    let refused = beside(&quiet, &url, async || {
        fetch(&noisy, &url).await.starts_with("HTTP/1.1 503")
    })
    .await;
    assert!(refused > 0);
    let answer = fetch(&noisy, &url).await;
    assert!(answer.starts_with("HTTP/1.1 503"), "still: {answer}");
    drop(held);
}

#[tokio::test]
async fn e60_a_sandbox_that_asks_too_often_is_refused_and_another_is_not() {
    let origin = answering().await;
    let url = format!("http://{}/", origin.address);
    let limits = Limits::default().with_requests_per_second(1);
    let noisy = proxy_with(allowing(&[origin.rule()]), limits);
    let quiet = proxy(allowing(&[origin.rule()]));
    let refused = beside(&quiet, &url, async || {
        fetch(&noisy, &url).await.starts_with("HTTP/1.1 429")
    })
    .await;
    assert!(refused > 0);
}

/// Never answers.
#[derive(Debug, Default)]
struct Silent(AtomicUsize);

#[async_trait]
impl Resolver for Silent {
    async fn resolve(&self, _: &HostName) -> Result<Vec<IpAddr>, Error> {
        self.0.fetch_add(1, SeqCst);
        std::future::pending().await
    }
}

#[tokio::test]
async fn e51_a_sandbox_that_looks_up_too_much_keeps_no_name_from_another() {
    let origin = answering().await;
    let names = [
        origin.rule(),
        format!("*.app.test:{}", origin.port()),
        "*.app.test".to_owned(),
    ];
    let silent = Arc::new(Silent::default());
    let noisy = Proxy::builder(Arc::new(allowing(&names)))
        .resolver(Arc::clone(&silent) as _)
        .limits(Limits::default().with_lookups_per_second(1))
        .build();
    let asked = Rebinding::new(&["127.0.0.1"]);
    let quiet = Proxy::builder(Arc::new(allowing(&names)))
        .resolver(Arc::clone(&asked) as _)
        .build();
    // Ten lookups under way that nobody answers, and five that wait for theirs.
    let mut held = Vec::new();
    for number in 0..15 {
        let mut stream = client(&noisy);
        let target = format!("held{number}.app.test:443");
        let request = format!("CONNECT {target} HTTP/1.1\r\nHost: {target}\r\n\r\n");
        stream.write_all(request.as_bytes()).await.unwrap();
        held.push(stream);
    }
    within(async {
        while silent.0.load(SeqCst) < 10 {
            tokio::task::yield_now().await;
        }
    })
    .await;
    let number = AtomicUsize::new(0);
    let url = format!("http://quiet.app.test:{}/", origin.port());
    let refused = beside(&quiet, &url, async || {
        let another = number.fetch_add(1, SeqCst);
        let url = format!("http://n{another}.app.test/");
        let asked = fetch(&noisy, &url);
        let answer = tokio::time::timeout(Duration::from_millis(100), asked).await;
        answer.is_ok_and(|answer| answer.starts_with("HTTP/1.1 429"))
    })
    .await;
    assert!(refused > 0);
    assert_eq!(asked.asked(), ROUNDS);
    drop(held);
}

#[tokio::test]
async fn e60_a_sandbox_that_used_up_its_bandwidth_slows_no_other() {
    let origin = Origin::start(|mut stream| async move {
        if read_head(&mut stream).await.contains("/endless") {
            let head = b"HTTP/1.1 200 OK\r\nContent-Length: 99999999999\r\n\r\n";
            stream.write_all(head).await.unwrap();
            let piece = vec![0; 1 << 16];
            while stream.write_all(&piece).await.is_ok() {}
        } else {
            let answer = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";
            drop(stream.write_all(answer).await);
        }
    })
    .await;
    let limits = Limits::default().with_bytes_per_second(64 << 10);
    let noisy = proxy_with(allowing(&[origin.rule()]), limits);
    let quiet = proxy(allowing(&[origin.rule()]));
    let mut streams = Vec::new();
    for _ in 0..4 {
        let mut stream = client(&noisy);
        let asked = format!(
            "GET http://{}/endless HTTP/1.1\r\nHost: a\r\n\r\n",
            origin.address
        );
        stream.write_all(asked.as_bytes()).await.unwrap();
        streams.push(tokio::spawn(async move {
            let mut piece = vec![0; 1 << 16];
            while stream.read(&mut piece).await.is_ok_and(|count| count > 0) {}
        }));
    }
    let url = format!("http://{}/", origin.address);
    beside(&quiet, &url, async || false).await;
    assert!(streams.iter().all(|stream| !stream.is_finished()));
    streams.iter().for_each(tokio::task::JoinHandle::abort);
}

/// A sandbox with a key of its own for the origin.
async fn with_key(site: &Site, value: &str) -> Sandbox {
    let places = [Place::Header("x-key".into()), Place::Bearer];
    let grant = Grant::new(&site.host(), places).unwrap();
    let secret = Source::Value(Secret::new(value).unwrap());
    let credential = Credential::new("ours", secret).grant(grant);
    Sandbox::with(site, Credentials::load([credential]).await.unwrap())
}

async fn send(sandbox: &Sandbox, field: &str, value: &str) -> String {
    let mut stream = sandbox.http1().await;
    let request = format!(
        "GET / HTTP/1.1\r\nHost: {}\r\n{field}: {value}\r\nConnection: close\r\n\r\n",
        sandbox.target
    );
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = Vec::new();
    drop(within(stream.read_to_end(&mut answer)).await);
    String::from_utf8(answer).unwrap()
}

#[tokio::test]
async fn e84_a_placeholder_is_worth_nothing_in_another_sandbox() {
    let site = Site::mirror(&["http/1.1"], Flaw::None).await;
    let one = with_key(&site, "value-of-one").await;
    let two = with_key(&site, "value-of-two").await;
    assert_ne!(one.placeholder, two.placeholder);
    assert_ne!(
        one.inspector.authority().pem(),
        two.inspector.authority().pem()
    );
    for field in ["X-Key", "X-Note"] {
        let answer = send(&two, field, &one.placeholder).await;
        assert!(answer.starts_with("HTTP/1.1 403"), "{field}: {answer}");
        assert_eq!(body(&answer)["reason"], "placeholder-unknown", "{answer}");
    }
    assert!(site.heads().is_empty());
    let answer = send(&two, "X-Key", &two.placeholder).await;
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    let heads = site.heads().join("");
    assert!(heads.contains("value-of-two") && !heads.contains("value-of-one"));
}

#[tokio::test]
async fn e84_rules_and_events_are_those_of_the_sandbox_that_asked() {
    let origin = answering().await;
    let url = format!("http://{}/", origin.address);
    let sandbox = |label: &str, rules: &[String]| {
        Proxy::builder(Arc::new(allowing(rules)))
            .label(label)
            .build()
    };
    let (one, two) = (sandbox("one", &[origin.rule()]), sandbox("two", &[]));
    let mut events = [one.subscribe(), two.subscribe()];
    assert!(fetch(&one, &url).await.starts_with("HTTP/1.1 200"));
    assert!(fetch(&two, &url).await.starts_with("HTTP/1.1 403"));
    for (events, label) in events.iter_mut().zip(["one", "two"]) {
        let event = next(events, Kind::Decision).await;
        assert_eq!(event.sandbox.as_deref(), Some(label));
        while let Some(event) = events.try_next() {
            assert_eq!(event.sandbox.as_deref(), Some(label));
        }
    }
    // What the other is now allowed changes nothing here.
    two.set_policy(Arc::new(allowing(&[origin.rule()])));
    one.set_policy(Arc::new(allowing::<&str>(&[])));
    assert!(fetch(&one, &url).await.starts_with("HTTP/1.1 403"));
    assert!(fetch(&two, &url).await.starts_with("HTTP/1.1 200"));
}
