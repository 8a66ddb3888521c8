//! What passes the gate is a prefix of what came, has one length, and names one target.
#![no_main]

use libfuzzer_sys::fuzz_target;
use sandbox_net::{
    fuzzing::{self, Head},
    policy::Target,
};

fuzz_target!(|input: &[u8]| {
    // The first byte says how the rest is cut.
    let Some((&piece, bytes)) = input.split_first() else {
        return;
    };
    let whole = fuzzing::requests(bytes, usize::MAX);
    let pieces = fuzzing::requests(bytes, piece.into());
    assert_eq!(whole.1, pieces.1, "how the bytes are cut changes nothing");
    if whole.1.is_ok() {
        assert_eq!(whole.0, pieces.0);
    }
    let (passed, _) = whole;
    assert!(bytes.starts_with(&passed));
    let mut fields = [httparse::EMPTY_HEADER; 100];
    let mut head = httparse::Request::new(&mut fields);
    if passed.len() > 8192 || !matches!(head.parse(&passed), Ok(httparse::Status::Complete(_))) {
        return;
    }
    let count = |name: &str| {
        let fields = head.headers.iter();
        fields.filter(|field| field.name.eq_ignore_ascii_case(name)).count()
    };
    let (lengths, codings) = (count("content-length"), count("transfer-encoding"));
    assert!(lengths + codings <= 1);
    let headers: Vec<_> = head.headers.iter().map(|field| (field.name, field.value)).collect();
    let (Some(method), Some(uri)) = (head.method, head.path) else {
        return;
    };
    let Some(parts) = fuzzing::parts(method, uri, &headers) else {
        return;
    };
    if let Some(Head::Tunnel(target) | Head::Http(target)) = fuzzing::request(&parts) {
        assert_eq!(Target::parse(&target.to_string()).unwrap(), target);
        assert!(count("host") <= 1);
    }
});
