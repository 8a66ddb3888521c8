//! Whatever the record of an apply holds, reading it ends well.
#![no_main]

use libfuzzer_sys::fuzz_target;
use sandbox_sync::fuzzing;

fuzz_target!(|bytes: &[u8]| {
    fuzzing::undo(bytes);
});
