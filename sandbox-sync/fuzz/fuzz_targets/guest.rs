//! Whatever a guest says, the host hears it out or ends the session, and believes no tree that cannot be.
#![no_main]

use libfuzzer_sys::fuzz_target;
use sandbox_sync::fuzzing;

fuzz_target!(|bytes: &[u8]| {
    fuzzing::guest(bytes);
});
