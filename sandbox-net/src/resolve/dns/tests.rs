use std::sync::Mutex;

use proptest::prelude::*;
use sandbox_base::ErrorKind;
use tokio::net::TcpListener;

use super::*;
use crate::{
    check,
    policy::{Reason, RuleSet},
    testing_cases::cases,
};

/// Where a question came.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum By {
    Datagram,
    Stream,
}

/// What a server makes of a question: the messages that it sends back.
type Script = Arc<dyn Fn(&[u8], By) -> Vec<Vec<u8>> + Send + Sync>;

/// Where a question came, and its bytes.
type Asked = (By, Vec<u8>);

/// A name server that does as it is told, and remembers what it was asked.
struct Server {
    address: SocketAddr,
    asked: Arc<Mutex<Vec<Asked>>>,
}

impl Server {
    async fn start(script: impl Fn(&[u8], By) -> Vec<Vec<u8>> + Send + Sync + 'static) -> Self {
        let script: Script = Arc::new(script);
        let (datagrams, streams) = loop {
            let streams = TcpListener::bind("127.0.0.1:0").await.unwrap();
            // The same number is free for datagrams nearly always.
            if let Ok(datagrams) = UdpSocket::bind(streams.local_addr().unwrap()).await {
                break (datagrams, streams);
            }
        };
        let address = datagrams.local_addr().unwrap();
        let asked: Arc<Mutex<Vec<_>>> = Arc::default();
        let (log, also) = (Arc::clone(&asked), Arc::clone(&script));
        tokio::spawn(async move {
            let mut question = [0; 512];
            while let Ok((count, from)) = datagrams.recv_from(&mut question).await {
                let question = &question[..count];
                log.lock().unwrap().push((By::Datagram, question.to_vec()));
                for message in also(question, By::Datagram) {
                    datagrams.send_to(&message, from).await.unwrap();
                }
            }
        });
        let log = Arc::clone(&asked);
        tokio::spawn(async move {
            while let Ok((mut stream, _)) = streams.accept().await {
                let mut question = vec![0; stream.read_u16().await.unwrap().into()];
                stream.read_exact(&mut question).await.unwrap();
                log.lock().unwrap().push((By::Stream, question.clone()));
                for message in script(&question, By::Stream) {
                    let length = u16::try_from(message.len()).unwrap();
                    stream.write_u16(length).await.unwrap();
                    // It may have seen enough.
                    drop(stream.write_all(&message).await);
                }
            }
        });
        Self { address, asked }
    }

    /// A server that answers each question with these records, those of the other family left out.
    async fn with(records: impl Fn(u8) -> Vec<Vec<u8>> + Send + Sync + 'static) -> Self {
        Self::start(move |question, _| vec![answer(question, &records(family(question)))]).await
    }

    fn resolver(&self) -> DnsResolver {
        resolver(&[self])
    }

    fn asked(&self) -> Vec<Asked> {
        self.asked.lock().unwrap().clone()
    }
}

/// A resolver that waits longer than a busy machine takes.
fn resolver(servers: &[&Server]) -> DnsResolver {
    let servers = servers.iter().map(|server| server.address);
    DnsResolver::new(servers).with_timeout(Duration::from_secs(40))
}

const A: u8 = 1;
const CNAME: u8 = 5;
const AAAA: u8 = 28;
const DNAME: u8 = 39;
/// Where the question's name is.
const ASKED: &[u8] = &[0xc0, 12];

fn family(question: &[u8]) -> u8 {
    question[question.len() - 3]
}

fn wire(name: &str) -> Vec<u8> {
    let labels = name.split('.').flat_map(|label| {
        let length = u8::try_from(label.len()).unwrap();
        [&[length], label.as_bytes()].concat()
    });
    labels.chain([0]).collect()
}

/// A record with 0 as its time to live.
fn record(owner: &[u8], kind: u8, data: &[u8]) -> Vec<u8> {
    let length = u16::try_from(data.len()).unwrap().to_be_bytes();
    [owner, &[0, kind, 0, 1, 0, 0, 0, 0], &length, data].concat()
}

fn answer(question: &[u8], records: &[Vec<u8>]) -> Vec<u8> {
    let mut message = question.to_vec();
    message[2] |= 0x80;
    let count = u16::try_from(records.len()).unwrap();
    message[6..8].copy_from_slice(&count.to_be_bytes());
    message.extend(records.concat());
    message
}

fn with_code(question: &[u8], code: u8) -> Vec<u8> {
    let mut message = answer(question, &[]);
    message[3] |= code;
    message
}

fn name(text: &str) -> HostName {
    text.parse().unwrap()
}

fn address(text: &str) -> IpAddr {
    text.parse().unwrap()
}

/// One address of the family that is asked for.
fn public(family: u8) -> Vec<Vec<u8>> {
    match family {
        A => vec![record(ASKED, A, &[8, 8, 8, 8])],
        _ => vec![record(
            ASKED,
            AAAA,
            &address_six("2001:4860:4860::8888").octets(),
        )],
    }
}

fn address_six(text: &str) -> Ipv6Addr {
    text.parse().unwrap()
}

#[tokio::test]
async fn e31_a_name_is_asked_for_once_as_it_is_and_nothing_is_kept() {
    let server = Server::with(public).await;
    let resolver = server.resolver();
    let found = resolver.resolve(&name("intranet")).await.unwrap();
    assert_eq!(found, [address("8.8.8.8"), address("2001:4860:4860::8888")]);
    let asked = server.asked();
    let mut families: Vec<_> = asked.iter().map(|(_, question)| family(question)).collect();
    families.sort_unstable();
    assert_eq!(families, [A, AAAA]);
    for (by, question) in &asked {
        assert_eq!(*by, By::Datagram);
        let whole = [&wire("intranet")[..], &[0, family(question), 0, 1]].concat();
        assert_eq!(question[12..], whole, "no search domain, one question");
    }
    assert_ne!(asked[0].1[..2], asked[1].1[..2], "numbers of their own");
    resolver.resolve(&name("intranet")).await.unwrap();
    assert_eq!(server.asked().len(), 4);
}

#[tokio::test]
async fn e35_the_addresses_behind_aliases_are_what_is_judged() {
    // As a server answers that has a DNAME for example.com: with a CNAME that it makes of it.
    let server = Server::with(|family| {
        let inside = wire("db.internal.test");
        let mut records = vec![
            record(&wire("example.com"), DNAME, &wire("other.test")),
            record(ASKED, CNAME, &wire("www.other.test")),
            record(&wire("www.other.test"), CNAME, &inside),
        ];
        if family == A {
            records.push(record(&inside, A, &[10, 0, 0, 7]));
        }
        records
    })
    .await;
    let found = server.resolver().resolve(&name("www.example.com")).await;
    assert_eq!(found.unwrap(), [address("10.0.0.7")]);
    let rules = RuleSet::deny().allow("www.example.com").unwrap();
    let verdict = check(&rules, &server.resolver(), "https://www.example.com/").await;
    let denial = verdict.unwrap();
    let reason = denial.denial().unwrap().reason;
    assert!(matches!(reason, Reason::Address(_)), "{reason}");
}

#[tokio::test]
async fn e35_records_of_other_names_are_nobodys_answer() {
    let server = Server::with(|family| {
        let stranger = record(&wire("stranger.test"), A, &[8, 8, 4, 4]);
        let [ours] = &public(family)[..] else {
            panic!()
        };
        let chaos = [ASKED, &[0, A, 0, 3, 0, 0, 0, 0, 0, 4, 9, 9, 9, 9]].concat();
        vec![stranger, chaos, ours.clone()]
    })
    .await;
    let found = server.resolver().resolve(&name("www.example.com")).await;
    assert_eq!(
        found.unwrap(),
        [address("8.8.8.8"), address("2001:4860:4860::8888")]
    );
}

#[tokio::test]
async fn e35_aliases_without_end_are_a_failure() {
    let round = |_| {
        vec![
            record(ASKED, CNAME, &wire("b.test")),
            record(&wire("b.test"), CNAME, &wire("a.test")),
        ]
    };
    let server = Server::with(round).await;
    let error = server.resolver().resolve(&name("a.test")).await;
    assert!(source(error.unwrap_err()).contains("aliases"));
    // One more than may be.
    let aliases = |count: usize| {
        move |_| {
            let alias = |n: usize| wire(&format!("{n}.test"));
            let mut records: Vec<_> = (0..count)
                .map(|n| record(&alias(n), CNAME, &alias(n + 1)))
                .collect();
            records.push(record(&alias(count), A, &[8, 8, 8, 8]));
            records
        }
    };
    let server = Server::with(aliases(MAX_ALIASES)).await;
    let found = server.resolver().resolve(&name("0.test")).await.unwrap();
    assert_eq!(found, [address("8.8.8.8")]);
    let server = Server::with(aliases(MAX_ALIASES + 1)).await;
    assert!(server.resolver().resolve(&name("0.test")).await.is_err());
}

#[tokio::test]
async fn e35_what_was_cut_is_asked_for_on_a_stream() {
    let server = Server::start(|question, by| match by {
        By::Datagram => {
            let mut cut = answer(question, &public(family(question)));
            cut[2] |= 2;
            vec![cut]
        }
        By::Stream => vec![answer(question, &[record(ASKED, A, &[9, 9, 9, 9])])],
    })
    .await;
    let found = server.resolver().resolve(&name("a.test")).await.unwrap();
    assert_eq!(found, [address("9.9.9.9")], "nothing of what was cut");
    let streams = server.asked();
    let streams = streams.iter().filter(|(by, _)| *by == By::Stream);
    assert_eq!(streams.count(), 2);
}

/// Sends a cut answer by datagram, and another one on the stream.
async fn on_a_stream(message: impl Fn(&[u8]) -> Vec<u8> + Send + Sync + 'static) -> Server {
    Server::start(move |question, by| match by {
        By::Datagram => {
            let mut cut = answer(question, &[]);
            cut[2] |= 2;
            vec![cut]
        }
        By::Stream => vec![message(question)],
    })
    .await
}

#[tokio::test]
async fn e35_of_thousands_of_addresses_few_are_taken_and_longer_answers_none() {
    let addresses = |count: u16| {
        move |question: &[u8]| {
            let records = (0..count).map(|n| {
                let [high, low] = n.to_be_bytes();
                record(ASKED, A, &[8, 8, high, low])
            });
            answer(question, &records.collect::<Vec<_>>())
        }
    };
    let server = on_a_stream(addresses(1000)).await;
    let found = server.resolver().resolve(&name("a.test")).await.unwrap();
    assert_eq!(found.len(), MAX_ADDRESSES);
    let server = on_a_stream(addresses(4000)).await;
    let error = server
        .resolver()
        .resolve(&name("a.test"))
        .await
        .unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Protocol, "{error:?}");
}

#[tokio::test]
async fn e35_a_stream_that_ends_early_or_cuts_again_is_a_failure() {
    let again = on_a_stream(|question| {
        let mut cut = answer(question, &public(A));
        cut[2] |= 2;
        cut
    });
    let error = again.await.resolver().resolve(&name("a.test")).await;
    assert!(source(error.unwrap_err()).contains("cut its answer"));
    let server = on_a_stream(|_| Vec::new()).await;
    assert!(server.resolver().resolve(&name("a.test")).await.is_err());
}

#[tokio::test]
async fn e35_answers_to_something_else_are_passed_over() {
    let server = Server::start(|question, _| {
        let good = answer(question, &public(family(question)));
        let forged = [record(ASKED, A, &[6, 6, 6, 6])];
        let mut number = answer(question, &forged);
        number[1] ^= 1;
        let mut other = question.to_vec();
        other[13] ^= 1;
        let mut kind = question.to_vec();
        let at = kind.len() - 3;
        kind[at] = 15;
        let mut no_answer = answer(question, &forged);
        no_answer[2] &= 0x7f;
        let mut none = answer(&question[..12], &forged);
        none[5] = 0;
        let mut two = answer(&[question, &question[12..]].concat(), &forged);
        two[5] = 2;
        let (other, kind) = (answer(&other, &forged), answer(&kind, &forged));
        vec![number, other, kind, no_answer, none, two, good]
    })
    .await;
    let found = server.resolver().resolve(&name("a.test")).await.unwrap();
    assert_eq!(found, [address("8.8.8.8"), address("2001:4860:4860::8888")]);
    assert_eq!(server.asked().len(), 2, "and nothing is asked again");
}

#[tokio::test]
async fn e35_answers_of_strangers_never_arrive() {
    let server = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    let stranger = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    let resolver = DnsResolver::new([server.local_addr().unwrap()]);
    let name = name("a.test");
    let serve = async {
        for _ in 0..2 {
            let mut question = [0; 512];
            let (count, from) = server.recv_from(&mut question).await.unwrap();
            let question = &question[..count];
            let forged = answer(question, &[record(ASKED, A, &[6, 6, 6, 6])]);
            stranger.send_to(&forged, from).await.ok();
            let good = answer(question, &public(family(question)));
            server.send_to(&good, from).await.unwrap();
        }
    };
    let (found, ()) = tokio::join!(resolver.resolve(&name), serve);
    assert_eq!(found.unwrap()[0], address("8.8.8.8"));
}

#[tokio::test]
async fn e35_what_cannot_be_read_is_passed_over() {
    let server = Server::start(|question, _| {
        let at = u8::try_from(question.len()).unwrap();
        // A name that points to itself, and two that point to each other.
        let itself = record(&[0xc0, at], A, &[6, 6, 6, 6]);
        let round = record(&[0xc0, at + 2, 0xc0, at], A, &[6, 6, 6, 6]);
        let mut many = answer(question, &[record(ASKED, A, &[6, 6, 6, 6])]);
        many[6..12].fill(0xff);
        let short = answer(question, &[record(ASKED, A, &[6, 6, 6])]);
        let mut messages = vec![answer(question, &[itself]), answer(question, &[round])];
        messages.extend([many, short, Vec::new(), question[..11].to_vec()]);
        messages
    })
    .await;
    let impatient = server.resolver().with_timeout(Duration::from_millis(500));
    let error = impatient.resolve(&name("a.test")).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::TimedOut);
}

#[tokio::test]
async fn the_next_server_is_asked_where_one_is_silent_or_cannot_answer() {
    const SERVER_FAILURE: u8 = 2;
    const REFUSED: u8 = 5;
    let silent = Server::start(|_, _| Vec::new()).await;
    let good = Server::with(public).await;
    let impatient = resolver(&[&silent, &good]).with_timeout(Duration::from_secs(2));
    let found = impatient.resolve(&name("a.test")).await;
    assert_eq!(found.unwrap().len(), 2);
    for code in [SERVER_FAILURE, REFUSED] {
        let bad = Server::start(move |question, _| vec![with_code(question, code)]).await;
        let found = resolver(&[&bad, &good]).resolve(&name("a.test")).await;
        assert_eq!(found.unwrap().len(), 2);
        let error = bad.resolver().resolve(&name("a.test")).await.unwrap_err();
        assert!(source(error).contains("cannot answer"));
    }
    let nobody = DnsResolver::new([]).resolve(&name("a.test")).await;
    assert_eq!(nobody.unwrap_err().kind(), ErrorKind::NotFound);
}

#[tokio::test]
async fn a_name_that_does_not_exist_has_no_addresses_and_is_not_asked_for_again() {
    const NO_SUCH_NAME: u8 = 3;
    let server = Server::start(|question, _| vec![with_code(question, NO_SUCH_NAME)]).await;
    let other = Server::with(public).await;
    let found = resolver(&[&server, &other]).resolve(&name("a.test")).await;
    assert_eq!(found.unwrap(), Vec::<IpAddr>::new());
    assert_eq!((server.asked().len(), other.asked().len()), (2, 0));
}

#[tokio::test]
async fn one_family_suffices() {
    let server = Server::start(|question, _| match family(question) {
        A => vec![answer(question, &public(A))],
        _ => vec![with_code(question, 4)],
    })
    .await;
    let found = server.resolver().resolve(&name("a.test")).await;
    assert_eq!(found.unwrap(), [address("8.8.8.8")]);
}

#[tokio::test(start_paused = true)]
async fn e51_lookups_beyond_the_bound_wait_and_time_out() {
    let resolver = DnsResolver::new([]);
    let _all = resolver.places.acquire_many(LOOKUPS as u32).await.unwrap();
    let error = resolver.resolve(&name("a.test")).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::TimedOut);
}

/// The text of what caused an error.
fn source(error: Error) -> String {
    std::error::Error::source(&error).unwrap().to_string()
}

proptest! {
    #![proptest_config(cases())]

    /// Twin of the fuzz target `dns`.
    #[test]
    fn e35_no_bytes_make_it_panic(
        bytes in proptest::collection::vec(any::<u8>(), 0..600),
        changes in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..6),
    ) {
        let query = Query::new(&name("www.example.com"), TYPE::A).unwrap();
        // Of arbitrary bytes few look like an answer: most of these do.
        query.read(&[&query.bytes[..2], &bytes].concat());
        let records = [
            record(ASKED, CNAME, &wire("a.test")),
            record(&wire("a.test"), A, &[8, 8, 8, 8]),
            record(ASKED, A, &bytes[..bytes.len().min(9)]),
        ];
        let mut message = answer(&query.bytes, &records);
        for (at, byte) in changes {
            let at = at.index(message.len());
            message[at] = byte;
        }
        if let Some(Answer::Found(found)) = query.read(&message) {
            prop_assert!(found.len() <= MAX_ADDRESSES);
        }
    }
}
