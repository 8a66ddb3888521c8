//! Whatever bytes come in the place of the host's, the guest reads them to their end.
#![no_main]

use libfuzzer_sys::fuzz_target;
use sandbox_sync::fuzzing;

fuzz_target!(|bytes: &[u8]| {
    fuzzing::host(bytes);
});
