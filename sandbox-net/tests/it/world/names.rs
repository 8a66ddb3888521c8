//! A name server that knows a few names, and remembers what it was asked.

use std::{
    collections::HashMap,
    net::{IpAddr, SocketAddr},
    sync::{Arc, Mutex},
};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, UdpSocket},
};

use super::Node;

/// What a name has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Record {
    Address(&'static str),
    Alias(&'static str),
}

const A: u8 = 1;
const CNAME: u8 = 5;
const AAAA: u8 = 28;
/// The longest datagram without EDNS.
const MAX_DATAGRAM: usize = 512;

type Zone = HashMap<String, Vec<Record>>;

/// A running name server.
#[derive(Debug, Clone)]
pub(crate) struct NameServer {
    asked: Arc<Mutex<Vec<(String, u8)>>>,
}

impl NameServer {
    pub(crate) fn start(node: &Node, address: SocketAddr, zone: &[(&str, &[Record])]) -> Self {
        let asked: Arc<Mutex<Vec<_>>> = Arc::default();
        let zone = zone
            .iter()
            .map(|(name, records)| (name.to_string(), records.to_vec()));
        let zone: Arc<Zone> = Arc::new(zone.collect());
        let (datagrams, streams) = node.run(async move {
            let datagrams = UdpSocket::bind(address).await.unwrap();
            (datagrams, TcpListener::bind(address).await.unwrap())
        });
        let (log, names) = (Arc::clone(&asked), Arc::clone(&zone));
        node.spawn(async move {
            let mut question = [0; MAX_DATAGRAM];
            while let Ok((count, from)) = datagrams.recv_from(&mut question).await {
                let mut answer = answer(&question[..count], (&names, &log));
                if answer.len() > MAX_DATAGRAM {
                    answer.truncate(count);
                    answer[2] |= 2;
                    answer[6..12].fill(0);
                }
                drop(datagrams.send_to(&answer, from).await);
            }
        });
        let log = Arc::clone(&asked);
        node.spawn(async move {
            while let Ok((mut stream, _)) = streams.accept().await {
                let mut question = vec![0; stream.read_u16().await.unwrap().into()];
                stream.read_exact(&mut question).await.unwrap();
                let answer = answer(&question, (&zone, &log));
                stream
                    .write_u16(answer.len().try_into().unwrap())
                    .await
                    .unwrap();
                stream.write_all(&answer).await.unwrap();
            }
        });
        Self { asked }
    }

    /// The names that were asked for since the last time, with their families, in order.
    pub(crate) fn asked(&self) -> Vec<(String, u8)> {
        let mut asked = std::mem::take(&mut *self.asked.lock().unwrap());
        asked.sort();
        asked
    }

    /// Asserts that each of these was asked for once in each family since the last time, and nothing else.
    #[track_caller]
    pub(crate) fn assert_asked_once(&self, names: &[&str]) {
        let mut expected: Vec<_> = names
            .iter()
            .flat_map(|name| [A, AAAA].map(|family| (name.to_string(), family)))
            .collect();
        expected.sort();
        assert_eq!(self.asked(), expected);
    }
}

fn answer(question: &[u8], (zone, log): (&Zone, &Mutex<Vec<(String, u8)>>)) -> Vec<u8> {
    const NO_SUCH_NAME: u8 = 3;
    let mut labels = Vec::new();
    let mut at = 12;
    while question[at] != 0 {
        let end = at + 1 + usize::from(question[at]);
        labels.push(String::from_utf8_lossy(&question[at + 1..end]).to_ascii_lowercase());
        at = end;
    }
    let (end, family) = (at + 5, question[at + 2]);
    let name = labels.join(".");
    log.lock().unwrap().push((name.clone(), family));
    let mut message = question[..end].to_vec();
    message[2] |= 0x80;
    message[3] = 0x80;
    message[6..12].fill(0);
    if !zone.contains_key(&name) {
        message[3] |= NO_SUCH_NAME;
        return message;
    }
    let (mut owner, mut count) = (name, 0);
    'aliases: loop {
        for record in zone.get(&owner).into_iter().flatten() {
            let (kind, data, next) = match record {
                Record::Alias(alias) => (CNAME, wire(alias), Some(alias)),
                Record::Address(text) => match text.parse().unwrap() {
                    IpAddr::V4(four) => (A, four.octets().to_vec(), None),
                    IpAddr::V6(six) => (AAAA, six.octets().to_vec(), None),
                },
            };
            if kind == family || next.is_some() {
                let length = u16::try_from(data.len()).unwrap().to_be_bytes();
                let head = [0, kind, 0, 1, 0, 0, 0, 0];
                message.extend([&wire(&owner)[..], &head, &length, &data].concat());
                count += 1;
            }
            if let Some(alias) = next {
                owner = (*alias).to_owned();
                continue 'aliases;
            }
        }
        break;
    }
    message[7] = count;
    message
}

fn wire(name: &str) -> Vec<u8> {
    let labels = name.split('.').flat_map(|label| {
        let length = u8::try_from(label.len()).unwrap();
        [&[length], label.as_bytes()].concat()
    });
    labels.chain([0]).collect()
}
