//! What passes from an origin is a prefix of what came, however it is cut.
#![no_main]

use libfuzzer_sys::fuzz_target;
use sandbox_net::fuzzing;

fuzz_target!(|input: &[u8]| {
    // The first two bytes say what was asked, and how the rest is cut.
    let [asked, piece, bytes @ ..] = input else {
        return;
    };
    let (asked, piece) = (*asked, *piece);
    let whole = fuzzing::answers(bytes, usize::MAX, asked);
    let pieces = fuzzing::answers(bytes, piece.into(), asked);
    assert_eq!(whole.1, pieces.1);
    if whole.1.is_ok() {
        assert_eq!(whole.0, pieces.0);
    }
    assert!(bytes.starts_with(&whole.0) && bytes.starts_with(&pieces.0));
});
