//! The ways in for fuzz targets.

use std::sync::Arc;

use http::request::Parts;

use super::{
    gate::{self, Asked},
    hello::HelloReader,
    request::{self, Ask},
};
use crate::policy::{Hello, Target};

/// What is read in a head.
#[derive(Debug)]
pub enum Head {
    /// A tunnel to a target.
    Tunnel(Target),
    /// A request to a target.
    Http(Target),
}

/// Reads a ClientHello in pieces of this size; returns what it says, with all bytes.
pub fn hello(bytes: &[u8], piece: usize) -> (Option<Hello>, Vec<u8>) {
    let mut reader = HelloReader::default();
    let mut pieces = bytes.chunks(piece.max(1));
    let found = pieces.find_map(|piece| reader.push(piece));
    (found, reader.into_bytes())
}

/// Passes a client's bytes in pieces of this size; returns those that may pass, and what is wrong with the next.
pub fn requests(bytes: &[u8], piece: usize) -> (Vec<u8>, Result<(), &'static str>) {
    gate::fuzzing::requests(bytes, piece)
}

/// The same of an origin's, where one request was sent: 0 to HEAD, 1 that upgrades, or any other.
pub fn answers(bytes: &[u8], piece: usize, asked: u8) -> (Vec<u8>, Result<(), &'static str>) {
    let exchange = Arc::new(gate::Answering::default());
    exchange.ask(match asked {
        0 => Asked::Head,
        1 => Asked::Upgrade,
        _ => Asked::Body,
    });
    gate::fuzzing::answers(bytes, piece, exchange)
}

/// Reads a request's head; `None` if it is refused.
pub fn request(head: &Parts) -> Option<Head> {
    Some(match request::read(head).ok()? {
        Ask::Tunnel(target) => Head::Tunnel(target),
        Ask::Http(target) => Head::Http(target),
    })
}
