//! Request smuggling: of hundreds of requests that can be read in more than one way, none reaches an origin so.
//!
//! Each mutated request hides another one, which the proxy would never let pass by itself: it is in origin form,
//! or for another host. The origin writes down every byte that it gets, over all the connections that wait and are
//! used again. All of it has to be read alike by a strict reader and by lenient ones, and every request in it has
//! to be one that was asked for; a smuggled one shows by its id. After each mutated request another client asks for
//! something, and has to get its own answer: nothing is left over for it on a connection that was used before.
//!
//! A body is what its framing says, with any method: an origin that ignores the framed body of a GET cannot be
//! helped by anybody on the way, since RFC 9110 (9.3.1) lets such requests pass.
//!
//! A share of the mutations runs always, all of them with `SANDBOX_SLOW`.

mod mutate;
mod read;

use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use mutate::{Form, Random, mutant};
use read::{Reader, Seen, Tail};
use sandbox_net::credentials::{Credential, Credentials, Grant, Place, Secret, Source};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

use crate::{
    inspect::support::{Sandbox, Site},
    support::{Origin, allowing, client, proxy, read_head, within},
};

const SEED: u64 = 0x5eed;
const ALL: usize = 800;
/// How long a request that never comes whole is waited for.
const PATIENCE: Duration = Duration::from_millis(150);

/// How many mutations are tried: all, or a share.
fn mutations(share: usize) -> usize {
    match std::env::var_os("SANDBOX_SLOW") {
        Some(_) => ALL,
        None => share,
    }
}

/// What an origin got.
#[derive(Debug, Default)]
struct Record {
    /// The bytes of each connection.
    connections: Mutex<Vec<Vec<u8>>>,
    open: AtomicUsize,
}

impl Record {
    /// Answers each request with its id, and writes down what comes.
    async fn serve(self: Arc<Self>, mut stream: impl AsyncRead + AsyncWrite + Unpin) {
        self.open.fetch_add(1, Ordering::SeqCst);
        let number = {
            let mut connections = self.connections.lock().unwrap();
            connections.push(Vec::new());
            connections.len() - 1
        };
        let mut answered = 0;
        let mut piece = [0; 4096];
        while let Ok(count @ 1..) = stream.read(&mut piece).await {
            let (seen, tail) = {
                let bytes = &mut self.connections.lock().unwrap()[number];
                bytes.extend_from_slice(&piece[..count]);
                Reader::Strict.read(bytes)
            };
            for Seen { method, id, .. } in &seen[answered..] {
                let body = if method == "HEAD" { "" } else { "ok" };
                let answer =
                    format!("HTTP/1.1 200 OK\r\nContent-Length: 2\r\nX-Id: {id}\r\n\r\n{body}");
                drop(stream.write_all(answer.as_bytes()).await);
            }
            answered = seen.len();
            if let Tail::Wrong(_) = tail {
                break;
            }
        }
        self.open.fetch_sub(1, Ordering::SeqCst);
    }

    /// Waits until all connections are closed, and so all that was sent has come.
    async fn closed(&self) {
        let closed = async {
            while self.open.load(Ordering::SeqCst) > 0 {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        within(closed).await;
    }

    /// Fails unless all was read in one way, and holds only what was asked for. Returns how often each id came.
    fn check(&self) -> HashMap<String, usize> {
        let mut ids = HashMap::new();
        for bytes in &*self.connections.lock().unwrap() {
            for id in check(bytes).unwrap_or_else(|what| panic!("{what}\n{}", bytes.escape_ascii()))
            {
                *ids.entry(id).or_default() += 1;
            }
        }
        ids
    }
}

/// Returns the ids of the requests in what came over one connection, or what is wrong with it.
fn check(bytes: &[u8]) -> Result<Vec<String>, String> {
    let (seen, tail) = Reader::Strict.read(bytes);
    if let Tail::Wrong(what) = tail {
        return Err(what.to_owned());
    }
    for reader in Reader::lenient() {
        let other = reader.read(bytes);
        if other.0 != seen {
            let alike = other.0.iter().zip(&seen).take_while(|(a, b)| a == b);
            let at = alike.count();
            let (other, seen) = (other.0.get(at), seen.get(at));
            return Err(format!("{reader:?} reads {other:?} in place of {seen:?}"));
        }
        if other.1 != tail {
            return Err(format!("{reader:?} is left with {:?}", other.1));
        }
    }
    let ids: Vec<_> = seen.into_iter().map(|seen| seen.id).collect();
    let is_ours = |id: &str| {
        let id = ["end-", "after-"]
            .iter()
            .find_map(|prefix| id.strip_prefix(prefix))
            .unwrap_or(id);
        id.parse().is_ok_and(|number: usize| number < ALL)
    };
    match ids.iter().find(|id| !is_ours(id)) {
        Some(id) => Err(format!("`{id}` was smuggled")),
        None => Ok(ids),
    }
}

/// Sends bytes in pieces and reads to the end of the connection, or until nothing more comes of it.
async fn send(mut stream: impl AsyncRead + AsyncWrite + Unpin, bytes: &[u8], random: &mut Random) {
    let cut = random.below(bytes.len());
    for piece in [&bytes[..cut], &bytes[cut..]] {
        // The proxy may have refused it before all of it was there.
        drop(within(stream.write_all(piece)).await);
        drop(within(stream.flush()).await);
        tokio::task::yield_now().await;
    }
    let mut answers = Vec::new();
    drop(tokio::time::timeout(PATIENCE, stream.read_to_end(&mut answers)).await);
}

/// Asks for something, as another client would, and has to get the answer to that.
async fn ask_after(mut stream: impl AsyncRead + AsyncWrite + Unpin, n: usize, form: &Form) {
    let Form { before_path, host } = form;
    let request = format!(
        "GET {before_path}/ HTTP/1.1\r\nHost: {host}\r\nX-Id: after-{n}\r\nConnection: close\r\n\r\n"
    );
    stream.write_all(request.as_bytes()).await.unwrap();
    let head = within(read_head(&mut stream)).await.to_ascii_lowercase();
    assert!(head.starts_with("http/1.1 200"), "after {n}: {head}");
    assert!(
        head.contains(&format!("\r\nx-id: after-{n}\r\n")),
        "after {n}: {head}"
    );
}

/// Fails unless each client after a mutation was served once, and mutations were refused as well as forwarded.
fn check_all(record: &Record, count: usize) {
    let ids = record.check();
    for (id, times) in &ids {
        assert_eq!(*times, 1, "{id} came more than once");
    }
    assert!((0..count).all(|n| ids.contains_key(&format!("after-{n}"))));
    let forwarded = (0..count)
        .filter(|n| ids.contains_key(&n.to_string()))
        .count();
    assert!(forwarded > count / 20, "only {forwarded} were forwarded");
    assert!(forwarded < count * 2 / 3, "{forwarded} were forwarded");
    let connections = record.connections.lock().unwrap();
    let requests = connections
        .iter()
        .map(|bytes| Reader::Strict.read(bytes).0.len());
    let most = requests.max().unwrap();
    assert!(most > 5, "at most {most} requests shared a connection");
}

#[tokio::test]
async fn e09_e10_e11_e12_e13_e14_e15_nothing_is_smuggled_to_an_origin() {
    let record = Arc::new(Record::default());
    let recording = Arc::clone(&record);
    let origin = Origin::start(move |stream| Arc::clone(&recording).serve(stream)).await;
    let form = Form {
        before_path: format!("http://{}", origin.address),
        host: origin.address.to_string(),
    };
    let proxy = proxy(allowing(&[origin.rule()]));
    let mut random = Random(SEED);
    let count = mutations(100);
    for n in 0..count {
        let bytes = mutant(n, &form, &mut random);
        send(client(&proxy), &bytes, &mut random).await;
        ask_after(client(&proxy), n, &form).await;
    }
    drop(proxy);
    record.closed().await;
    check_all(&record, count);
}

#[tokio::test]
async fn e09_e10_e11_e12_e13_e14_e15_nothing_is_smuggled_through_tls_that_is_opened() {
    let record = Arc::new(Record::default());
    let recording = Arc::clone(&record);
    let site = Site::raw(&["http/1.1"], move |stream| {
        Arc::clone(&recording).serve(stream)
    })
    .await;
    let grant = Grant::new(&site.host(), [Place::Bearer]).unwrap();
    let value = Source::Value(Secret::new("a-value-for-this").unwrap());
    let credentials = Credentials::load([Credential::new("ours", value).grant(grant)]);
    let sandbox = Sandbox::with(&site, credentials.await.unwrap());
    let form = Form {
        before_path: String::new(),
        host: site.host(),
    };
    let mut random = Random(SEED + 1);
    let count = mutations(50);
    for n in 0..count {
        let bytes = mutant(n, &form, &mut random);
        send(sandbox.http1().await, &bytes, &mut random).await;
        ask_after(sandbox.http1().await, n, &form).await;
    }
    drop(sandbox);
    record.closed().await;
    check_all(&record, count);
}

/// What the readers are for: bytes that a proxy which passes everything would have sent.
#[test]
fn the_readers_tell_what_is_smuggled() {
    let hidden = "GET /hidden HTTP/1.1\r\nHost: evil.test\r\nX-Id: hidden-1\r\n\r\n";
    let post = |fields: &str, body: &str| {
        format!("POST /1 HTTP/1.1\r\nHost: a\r\nX-Id: 1\r\n{fields}\r\n{body}").into_bytes()
    };
    let length = 5 + hidden.len();
    let framed = format!("Content-Length: {length}\r\n");
    assert_eq!(
        check(&post(&framed, &format!("0\r\n\r\n{hidden}"))).unwrap(),
        ["1"]
    );
    let chunked = "Transfer-Encoding: chunked\r\n";
    assert_eq!(
        check(&post(chunked, "5\r\nhello\r\n0\r\n\r\n")).unwrap(),
        ["1"]
    );
    for (fields, body) in [
        (format!("{framed}{chunked}"), "0\r\n\r\n"),
        (
            format!("{framed}Transfer_Encoding: chunked\r\n"),
            "0\r\n\r\n",
        ),
        (
            format!("{framed}X: a\r\n Transfer-Encoding: chunked\r\n"),
            "0\r\n\r\n",
        ),
        (
            format!("{framed}X: a\nTransfer-Encoding: chunked\r\n"),
            "0\r\n\r\n",
        ),
        (format!("{framed}Content-Length: 5\r\n"), "hello"),
        ("Content-Length: +5\r\n".to_owned(), "hello"),
        (format!("{framed}Content_Length: 5\r\n"), "hello"),
        ("Transfer-Encoding: xchunked\r\n".to_owned(), "0\r\n\r\n"),
        (chunked.to_owned(), "5;a=b\r\nhello\r\n0\r\n\r\n"),
        (chunked.to_owned(), "0\r\nHost: evil.test\r\n\r\n"),
        ("Content-Length: 5\r\n".to_owned(), "hello"),
        (String::new(), ""),
    ] {
        let bytes = post(&fields, &format!("{body}{hidden}"));
        assert!(check(&bytes).is_err(), "{}", bytes.escape_ascii());
    }
}
