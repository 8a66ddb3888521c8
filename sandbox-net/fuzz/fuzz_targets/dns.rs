//! Whatever a name server says, reading it ends well.
#![no_main]

use libfuzzer_sys::fuzz_target;
use sandbox_net::{fuzzing, policy::HostName};

fuzz_target!(|message: &[u8]| {
    let name: HostName = "www.example.com".parse().unwrap();
    fuzzing::answer(&name, &mut message.to_vec());
});
