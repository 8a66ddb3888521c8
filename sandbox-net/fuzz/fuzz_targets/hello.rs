//! A ClientHello says one name, the one that rustls reads in it, or nothing; however it is cut.
#![no_main]

use std::io::Cursor;

use libfuzzer_sys::fuzz_target;
use rustls::server::Acceptor;
use sandbox_net::{fuzzing, policy::Hello};

/// What rustls reads: the name, or `None` if it takes no such message.
fn by_rustls(mut bytes: &[u8]) -> Option<Option<String>> {
    let mut acceptor = Acceptor::default();
    while !bytes.is_empty() {
        let mut cursor = Cursor::new(bytes);
        if acceptor.read_tls(&mut cursor).ok()? == 0 {
            return None;
        }
        bytes = &bytes[cursor.position() as usize..];
        match acceptor.accept() {
            Ok(Some(accepted)) => {
                return Some(accepted.client_hello().server_name().map(str::to_owned));
            }
            Ok(None) => {}
            Err(_) => return None,
        }
    }
    None
}

fuzz_target!(|input: &[u8]| {
    // The first byte says how the rest is cut.
    let Some((&piece, bytes)) = input.split_first() else {
        return;
    };
    let (found, taken) = fuzzing::hello(bytes, usize::MAX);
    assert_eq!(taken, bytes);
    let (again, taken) = fuzzing::hello(bytes, piece.into());
    assert!(bytes.starts_with(&taken));
    match (&found, &again) {
        // Which bytes are wrong first depends on how many came at once; that some are does not.
        (Some(Hello::Unreadable(_)), _) | (_, Some(Hello::Unreadable(_))) => {}
        _ => assert_eq!(found, again),
    }
    match (found, by_rustls(bytes)) {
        (Some(Hello::Named(name)), Some(Some(theirs))) => {
            assert!(theirs.trim_end_matches('.').eq_ignore_ascii_case(name.as_str()));
        }
        (Some(Hello::Unnamed), Some(theirs)) => assert_eq!(theirs, None),
        _ => {}
    }
});
