//! Connections that the guest captured, and its name lookups: the guest's half in front of the host's.

use std::{
    io,
    net::{Ipv4Addr, SocketAddr, SocketAddrV4},
    sync::{Arc, Mutex},
    time::Duration,
};

use sandbox_base::BoxStream;
use sandbox_net::{
    Limits, Proxy,
    event::{Decided, Kind},
    guest::capture::{self, Network},
    policy::RuleSet,
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt, DuplexStream},
    net::{TcpListener, TcpStream, UdpSocket},
    task::JoinHandle,
};

use crate::support::{
    Moved, Origin, Rebinding, allowing, body, client_hello, next, proxy, proxy_with, read_head,
    within,
};

const A: u16 = 1;
const AAAA: u16 = 28;
const SVCB: u16 = 64;
const HTTPS: u16 = 65;

/// A network on loopback: the sockets that the guest asked for are on ports of their own.
#[derive(Debug, Clone, Default)]
pub(crate) struct Loopback(Arc<Mutex<Vec<(u16, SocketAddr)>>>);

impl Loopback {
    pub(crate) fn at(&self, port: u16) -> Option<SocketAddr> {
        let sockets = self.0.lock().unwrap();
        let found = sockets.iter().rev().find(|(wanted, _)| *wanted == port);
        found.map(|(_, at)| *at)
    }

    fn note(&self, wanted: SocketAddrV4, at: SocketAddr) {
        self.0.lock().unwrap().push((wanted.port(), at));
    }
}

impl Network for Loopback {
    async fn listen(&self, address: SocketAddrV4) -> io::Result<TcpListener> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
        // The resolver's own socket is found by its datagrams.
        if address.port() != 53 {
            self.note(address, listener.local_addr()?);
        }
        Ok(listener)
    }

    async fn bind(&self, address: SocketAddrV4) -> io::Result<UdpSocket> {
        let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).await?;
        self.note(address, socket.local_addr()?);
        Ok(socket)
    }
}

/// A guest whose connections are captured.
struct Guest {
    network: Loopback,
    running: JoinHandle<()>,
}

impl Guest {
    async fn of(proxy: &Proxy, ports: &[u16]) -> Self {
        let (network, proxy) = (Loopback::default(), proxy.clone());
        let open = move || {
            let (near, far) = tokio::io::duplex(64 * 1024);
            let proxy = proxy.clone();
            tokio::spawn(async move { proxy.serve_captured(far).await });
            async move { Ok(Box::new(near) as BoxStream) }
        };
        let capture = capture::start(network.clone(), ports, open).await.unwrap();
        let running = tokio::spawn(async move {
            capture.run().await;
        });
        Self { network, running }
    }

    /// Asks the resolver; returns the code and the data of the one record, if there is one.
    async fn look_up(&self, name: &str, kind: u16) -> (u8, Option<Vec<u8>>) {
        let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        socket.connect(self.network.at(53).unwrap()).await.unwrap();
        let query = query(name, kind);
        socket.send(&query).await.unwrap();
        let mut answer = [0; 512];
        let count = within(socket.recv(&mut answer)).await.unwrap();
        let answer = &answer[..count];
        assert_eq!(answer[..2], query[..2], "the same question");
        let records = answer[query.len()..].to_vec();
        (answer[3] & 15, records.get(12..).map(<[u8]>::to_vec))
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        self.running.abort();
    }
}

fn query(name: &str, kind: u16) -> Vec<u8> {
    let mut query = vec![7, 7, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0];
    for label in name.split('.') {
        query.push(u8::try_from(label.len()).unwrap());
        query.extend(label.as_bytes());
    }
    query.push(0);
    query.extend([kind.to_be_bytes(), [0, 1]].concat());
    query
}

/// A stream of the guest's capturing half to the host.
fn stream(proxy: &Proxy) -> DuplexStream {
    let (near, far) = tokio::io::duplex(64 * 1024);
    let proxy = proxy.clone();
    tokio::spawn(async move { proxy.serve_captured(far).await });
    near
}

/// A message as it is framed: its length, then its fields.
fn framed(fields: &[u8]) -> Vec<u8> {
    let length = u32::try_from(fields.len()).unwrap().to_le_bytes();
    [&length[..], fields].concat()
}

/// The head of a connection: the second kind of first message, a text, a number of variable length.
fn head(host: &str, port: u16) -> Vec<u8> {
    let mut fields = vec![1, u8::try_from(host.len()).unwrap()];
    fields.extend(host.as_bytes());
    let mut left = port;
    while left > 0x7f {
        fields.push(0x80 | (left & 0x7f) as u8);
        left >>= 7;
    }
    fields.push(left as u8);
    framed(&fields)
}

const OPEN: [u8; 5] = [1, 0, 0, 0, 0];
const REFUSED: [u8; 5] = [1, 0, 0, 0, 1];

/// Captures a connection; returns its stream and whether it was let in.
async fn connect(proxy: &Proxy, host: &str, port: u16) -> (DuplexStream, [u8; 5]) {
    let mut stream = stream(proxy);
    stream.write_all(&head(host, port)).await.unwrap();
    let mut admission = [0; 5];
    drop(within(stream.read_exact(&mut admission)).await);
    (stream, admission)
}

#[tokio::test]
async fn e79_a_connection_to_a_named_port_reaches_its_host_by_the_name_that_was_looked_up() {
    let origin = Origin::echo().await;
    let resolver = Rebinding::new(&["127.0.0.1"]);
    let rules = allowing(&[origin.rule(), format!("db.test:{}", origin.port())]);
    let proxy = Proxy::builder(Arc::new(rules))
        .resolver(resolver.clone())
        .build();
    let mut events = proxy.subscribe();
    let guest = Guest::of(&proxy, &[80, 443]).await;
    let (code, address) = guest.look_up("DB.test", A).await;
    assert_eq!((code, &address.unwrap()[..2]), (0, &[198, 19][..]));
    assert_eq!(guest.look_up("db.test", AAAA).await, (0, None), "no IPv6");
    assert_eq!(
        guest.look_up("db.test", HTTPS).await,
        (0, None),
        "no ECH, no h3"
    );
    assert_eq!(resolver.asked(), 0, "nothing was looked up so far");
    let lookup = next(&mut events, Kind::Lookup).await;
    assert_eq!(lookup.host.as_deref(), Some("db.test"));
    assert_eq!(lookup.verdict, Some(Decided::Allow));

    let (mut client, admission) = connect(&proxy, "db.test", origin.port()).await;
    assert_eq!(admission, OPEN);
    client.write_all(b"hello").await.unwrap();
    client.shutdown().await.unwrap();
    let mut echoed = String::new();
    within(client.read_to_string(&mut echoed)).await.unwrap();
    assert_eq!(echoed, "hello");
    assert_eq!(resolver.asked(), 1);
    let decision = next(&mut events, Kind::Decision).await;
    assert_eq!(decision.host.as_deref(), Some("db.test"));
    assert_eq!(decision.address, Some(origin.address));
    assert_eq!(decision.method, None, "there was no request");
    let end = next(&mut events, Kind::End).await;
    assert_eq!((end.bytes_up, end.bytes_down), (Some(5), Some(5)));
}

/// A client learns the key to hide a name by from a record of type HTTPS, or of the type of one's own (RFC 9848).
#[tokio::test]
async fn e05_nothing_inside_tells_how_to_hide_a_name() {
    let proxy = proxy(allowing(&["db.test"]));
    let guest = Guest::of(&proxy, &[443]).await;
    for kind in [HTTPS, SVCB] {
        assert_eq!(guest.look_up("db.test", kind).await, (0, None), "{kind}");
    }
    assert!(guest.look_up("db.test", A).await.1.is_some());
}

#[tokio::test]
async fn e50_a_denied_name_is_no_name_and_is_never_looked_up() {
    let resolver = Rebinding::new(&["127.0.0.1"]);
    let rules = allowing(&["app.test"]).block("evil.app.test").unwrap();
    let proxy = Proxy::builder(Arc::new(rules))
        .resolver(resolver.clone())
        .build();
    let mut events = proxy.subscribe();
    let guest = Guest::of(&proxy, &[80, 443]).await;
    for (name, reason) in [
        ("secrets.evil.test", "not-allowed"),
        ("evil.app.test", "blocked"),
        ("x-.test", "target"),
    ] {
        for kind in [A, AAAA, HTTPS] {
            assert_eq!(guest.look_up(name, kind).await, (3, None), "{name}");
            let event = next(&mut events, Kind::Lookup).await;
            assert_ne!(event.verdict, Some(Decided::Allow));
            assert_eq!(event.reason.as_deref(), Some(reason));
        }
    }
    let (mut client, admission) = connect(&proxy, "secrets.evil.test", 443).await;
    assert_eq!(admission, REFUSED);
    assert_eq!(
        within(client.read(&mut [0])).await.unwrap(),
        0,
        "and closed"
    );
    let event = next(&mut events, Kind::Decision).await;
    assert_eq!(event.reason.as_deref(), Some("not-allowed"));
    assert_eq!(resolver.asked(), 0);
}

#[tokio::test]
async fn e51_lookups_beyond_the_pace_fail_and_are_told_of_once() {
    let proxy = proxy(RuleSet::open());
    let mut events = proxy.subscribe();
    let mut names = stream(&proxy);
    names.write_all(&framed(&[0])).await.unwrap();
    let (mut reader, mut writer) = tokio::io::split(names);
    let asking = tokio::spawn(async move {
        for n in 0..700u16 {
            let name = format!("n{n:03}.test");
            let fields = [&[u8::try_from(name.len()).unwrap()], name.as_bytes()].concat();
            writer.write_all(&framed(&fields)).await.unwrap();
        }
        writer
    });
    let mut message = [0; 64];
    let mut answers = [0; 3];
    // The ports, then the answers.
    for n in 0..=700 {
        let length = within(reader.read_u32_le()).await.unwrap() as usize;
        within(reader.read_exact(&mut message[..length]))
            .await
            .unwrap();
        if n > 0 {
            answers[usize::from(message[length - 1])] += 1;
        }
    }
    drop(asking.await.unwrap());
    let [allowed, denied, busy] = answers;
    assert!((500..600).contains(&allowed), "{answers:?}");
    assert_eq!((denied, allowed + busy), (0, 700));
    let mut told = 0;
    for _ in 0..allowed + 1 {
        let event = next(&mut events, Kind::Lookup).await;
        told += usize::from(event.reason.as_deref() == Some("busy"));
    }
    assert_eq!(told, 1, "one word for all of them");
}

#[tokio::test]
async fn e08_a_request_in_origin_form_goes_to_the_name_that_was_looked_up_and_to_no_other() {
    let origin = Origin::mirror().await;
    let proxy = proxy(RuleSet::deny());
    proxy.set_policy(Arc::new(Moved::to(&origin, &["app.test"])));
    let mut events = proxy.subscribe();
    for (request, status) in [
        ("GET /x HTTP/1.1\r\nHost: App.test\r\n", "200"),
        ("GET /x HTTP/1.1\r\nHost: app.test:80\r\n", "200"),
        ("GET http://app.test/x HTTP/1.1\r\nHost: y.test\r\n", "200"),
        ("GET /x HTTP/1.1\r\nHost: evil.test\r\n", "421"),
        ("GET /x HTTP/1.1\r\nHost: app.test:81\r\n", "421"),
        (
            "GET http://evil.test/x HTTP/1.1\r\nHost: app.test\r\n",
            "421",
        ),
        ("GET /x HTTP/1.1\r\n", "400"),
        (
            "GET /x HTTP/1.1\r\nHost: app.test\r\nHost: app.test\r\n",
            "400",
        ),
        ("OPTIONS * HTTP/1.1\r\nHost: app.test\r\n", "400"),
        ("TRACE / HTTP/1.1\r\nHost: app.test\r\n", "400"),
        (
            "CONNECT app.test:443 HTTP/1.1\r\nHost: app.test:443\r\n",
            "400",
        ),
        (
            "GET /x HTTP/1.1\r\nHost: app.test\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n",
            "400",
        ),
    ] {
        let (mut client, admission) = connect(&proxy, "app.test", 80).await;
        assert_eq!(admission, OPEN);
        let whole = format!("{request}Connection: close\r\n\r\n");
        client.write_all(whole.as_bytes()).await.unwrap();
        let mut answer = String::new();
        within(client.read_to_string(&mut answer)).await.unwrap();
        assert_eq!(answer.split(' ').nth(1), Some(status), "{request}");
        if status == "200" {
            let event = next(&mut events, Kind::Decision).await;
            assert_eq!(event.host.as_deref(), Some("app.test"));
            assert_eq!(event.path.as_deref(), Some("/x"));
            assert!(answer.contains("GET /x HTTP/1.1\r\n"), "{answer}");
        } else {
            next(&mut events, Kind::Refused).await;
        }
    }
    assert_eq!(origin.connections(), 3, "none of the others came through");
}

#[tokio::test]
async fn each_request_of_a_connection_is_held_to_its_name() {
    let origin = Origin::mirror().await;
    let proxy = proxy(RuleSet::deny());
    proxy.set_policy(Arc::new(Moved::to(&origin, &["app.test", "other.test"])));
    let (mut client, _) = connect(&proxy, "app.test", 80).await;
    let request = |host: &str| format!("GET / HTTP/1.1\r\nHost: {host}\r\n\r\n");
    client
        .write_all(request("app.test").as_bytes())
        .await
        .unwrap();
    let first = within(read_head(&mut client)).await;
    assert!(first.starts_with("HTTP/1.1 200"), "{first}");
    let (_, length) = first.split_once("content-length: ").unwrap();
    let length: usize = length.split("\r\n").next().unwrap().parse().unwrap();
    within(client.read_exact(&mut vec![0; length]))
        .await
        .unwrap();
    // Allowed by itself, but not on a connection that goes to another host.
    client
        .write_all(request("other.test").as_bytes())
        .await
        .unwrap();
    let mut second = String::new();
    within(client.read_to_string(&mut second)).await.unwrap();
    assert!(second.starts_with("HTTP/1.1 421"), "{second}");
    assert_eq!(body(&second)["reason"], "misdirected");
}

#[tokio::test]
async fn e81_a_denied_request_on_port_80_is_told_why() {
    let proxy = proxy(RuleSet::deny());
    let (mut client, _) = connect(&proxy, "192.0.2.1", 80).await;
    let request = b"GET / HTTP/1.1\r\nHost: 192.0.2.1\r\nConnection: close\r\n\r\n";
    client.write_all(request).await.unwrap();
    let mut answer = String::new();
    within(client.read_to_string(&mut answer)).await.unwrap();
    assert!(answer.starts_with("HTTP/1.1 403"), "{answer}");
    assert_eq!(body(&answer)["reason"], "not-allowed");
}

#[tokio::test]
async fn e01_e02_a_connection_to_443_sends_nothing_before_its_handshake_names_its_host() {
    for (host, first, passes) in [
        ("app.test", client_hello(Some("app.test")), true),
        ("app.test", client_hello(Some("evil.test")), false),
        ("app.test", client_hello(None), false),
        ("app.test", b"SSH-2.0-x\r\n".to_vec(), false),
        ("127.0.0.1", client_hello(None), true),
        ("127.0.0.1", client_hello(Some("evil.test")), false),
    ] {
        let origin = Origin::echo().await;
        let proxy = proxy(RuleSet::deny());
        proxy.set_policy(Arc::new(Moved::to(
            &origin,
            &["app.test", "127.0.0.1/32:443"],
        )));
        let mut events = proxy.subscribe();
        let (mut client, admission) = connect(&proxy, host, 443).await;
        assert_eq!(admission, OPEN);
        client.write_all(&first).await.unwrap();
        client.shutdown().await.unwrap();
        let mut read = Vec::new();
        drop(within(client.read_to_end(&mut read)).await);
        assert_eq!(read == first, passes, "{host} {first:?}: {read:?}");
        let event = next(&mut events, Kind::Decision).await;
        assert_eq!(event.verdict == Some(Decided::Allow), passes);
    }
}

#[tokio::test]
async fn e18_e52_addresses_that_were_not_looked_up_are_judged_as_addresses() {
    let proxy = proxy(RuleSet::open());
    let mut events = proxy.subscribe();
    for (host, port, reason) in [
        ("10.1.2.3", 443, "address-refused"),
        ("169.254.169.254", 443, "address-refused"),
        ("198.19.0.1", 443, "address-refused"),
        ("8.8.8.8", 53, "port-not-allowed"),
        ("8.8.8.8", 853, "port-not-allowed"),
    ] {
        let (_, admission) = connect(&proxy, host, port).await;
        assert_eq!(admission, REFUSED);
        let event = next(&mut events, Kind::Decision).await;
        assert_eq!(event.host.as_deref(), Some(host));
        assert_eq!(event.reason.as_deref(), Some(reason));
    }
}

#[tokio::test]
async fn e19_e39_heads_that_name_no_target_are_dropped() {
    let proxy = proxy(RuleSet::open());
    let mut events = proxy.subscribe();
    for (bytes, reason) in [
        (head("a.test", 0), "target"),
        (head("127.1", 443), "target"),
        (head("0x7f000001", 443), "target"),
        (head("a\0.test", 443), "target"),
        (head("a.test/x", 443), "target"),
        (head("", 443), "target"),
        (framed(&[9]), "malformed"),
        (framed(&[1, 200]), "malformed"),
        (framed(&[0, 0]), "malformed"),
        (301u32.to_le_bytes().to_vec(), "malformed"),
        (u32::MAX.to_le_bytes().to_vec(), "malformed"),
        (vec![1, 2], "malformed"),
    ] {
        let mut stream = stream(&proxy);
        stream.write_all(&bytes).await.unwrap();
        stream.shutdown().await.unwrap();
        let mut rest = Vec::new();
        within(stream.read_to_end(&mut rest)).await.unwrap();
        assert!(rest.is_empty(), "{bytes:?}");
        let event = next(&mut events, Kind::Refused).await;
        assert_eq!(event.reason.as_deref(), Some(reason), "{bytes:?}");
    }
}

#[tokio::test]
async fn e60_a_head_that_does_not_arrive_and_a_connection_too_many_are_dropped() {
    let limits = Limits::default()
        .with_connections(1)
        .with_head_timeout(Duration::from_millis(200));
    let proxy = proxy_with(RuleSet::open(), limits);
    let mut events = proxy.subscribe();
    let mut first = stream(&proxy);
    first.write_all(&head("a.test", 443)[..3]).await.unwrap();
    let mut second = stream(&proxy);
    // Either may be first to take the one place, so both are watched.
    for stream in [&mut second, &mut first] {
        assert_eq!(within(stream.read(&mut [0])).await.unwrap(), 0);
    }
    let mut reasons = Vec::new();
    for _ in 0..2 {
        reasons.extend(next(&mut events, Kind::Refused).await.reason);
    }
    reasons.sort_unstable();
    assert_eq!(reasons, ["busy", "head-timeout"]);
}

#[tokio::test]
async fn e49_a_policy_change_moves_the_ports_and_cuts_what_is_open() {
    let origin = Origin::echo().await;
    let rules = allowing(&[origin.rule(), format!("db.test:{}", origin.port())]);
    let proxy = proxy(rules);
    let guest = Guest::of(&proxy, &[80, 443]).await;
    // The host tells the ports before it answers anything.
    guest.look_up("db.test", A).await;
    assert!(guest.network.at(origin.port()).is_some());
    let (mut client, _) = connect(&proxy, "db.test", origin.port()).await;
    client.write_all(b"x").await.unwrap();
    within(client.read_u8()).await.unwrap();
    proxy.set_policy(Arc::new(allowing(&["db.test:7777"])));
    assert!(within(client.read_u8()).await.is_err(), "cut");
    within(async {
        while guest.network.at(7777).is_none() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await;
    let gone = guest.network.at(origin.port()).unwrap();
    within(async {
        while TcpStream::connect(gone).await.is_ok() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await;
}

#[tokio::test]
async fn a_refused_connection_is_reset_inside() {
    let proxy = proxy(RuleSet::deny());
    let guest = Guest::of(&proxy, &[80, 443]).await;
    // On loopback its address is 127.0.0.1, which nobody has looked up.
    let mut client = TcpStream::connect(guest.network.at(443).unwrap())
        .await
        .unwrap();
    let error = within(client.read_u8()).await.unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::ConnectionReset);
}

#[tokio::test]
async fn without_a_host_lookups_fail_and_do_not_hang() {
    let network = Loopback::default();
    let open = || async { Err::<BoxStream, _>(io::ErrorKind::NotConnected.into()) };
    let capture = capture::start(network.clone(), &[80], open).await.unwrap();
    let running = tokio::spawn(async move {
        capture.run().await;
    });
    let guest = Guest { network, running };
    assert_eq!(guest.look_up("a.test", A).await, (2, None));
    assert_eq!(guest.look_up("localhost", A).await.0, 0, "known here");
}
