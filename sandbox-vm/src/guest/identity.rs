//! What a machine is called, and how it tells itself from others.
//!
//! A copy of a running machine is another one: it gets another name, another machine identity (`man 5 machine-id`) and
//! another identity of its boot (`man 4 random`) before anything is asked of it. What programs have read of them
//! before, they go on believing; that is theirs.

use std::fs;
use std::io;

use rustix::mount::mount_bind;
use rustix::rand::{GetRandomFlags, getrandom};
use rustix::system::sethostname;

const HOSTNAME: &str = "/etc/hostname";
const HOSTS: &str = "/etc/hosts";
const MACHINE_ID: &str = "/etc/machine-id";

/// The kernel draws it once and lets nobody change it.
const BOOT_ID: &str = "/proc/sys/kernel/random/boot_id";

/// What is laid over it in a copy.
const OTHER_BOOT_ID: &str = "/run/sandbox/boot_id";

/// Gives a machine its name, and an identity of its own.
///
/// # Errors
///
/// When the kernel refuses the name. A root that cannot be written keeps what its image says.
pub(super) fn name(name: &str) -> io::Result<()> {
    sethostname(name.as_bytes())?;
    let hosts = format!(
        "127.0.0.1\tlocalhost\n{}\n::1\tlocalhost ip6-localhost ip6-loopback\n",
        line(name)
    );
    drop(fs::write(HOSTNAME, format!("{name}\n")));
    drop(fs::write(HOSTS, hosts));
    write_machine_id();
    Ok(())
}

/// Makes a copy of the machine `from` the machine `to`: what was changed inside of the files that name it stays.
///
/// # Errors
///
/// When the kernel refuses the name, or that the identity of the boot is another one.
pub(super) fn rename(from: &str, to: &str) -> io::Result<()> {
    sethostname(to.as_bytes())?;
    drop(fs::write(HOSTNAME, format!("{to}\n")));
    if let Ok(hosts) = fs::read_to_string(HOSTS) {
        drop(fs::write(HOSTS, renamed(&hosts, from, to)));
    }
    write_machine_id();
    fs::create_dir_all("/run/sandbox")?;
    fs::write(OTHER_BOOT_ID, format!("{}\n", uuid(random()?)))?;
    Ok(mount_bind(OTHER_BOOT_ID, BOOT_ID)?)
}

fn line(name: &str) -> String {
    format!("127.0.1.1\t{name}")
}

fn renamed(hosts: &str, from: &str, to: &str) -> String {
    let (from, to) = (line(from), line(to));
    let lines = hosts.lines().map(|line| match line == from {
        true => format!("{to}\n"),
        false => format!("{line}\n"),
    });
    lines.collect()
}

fn write_machine_id() {
    if let Ok(random) = random() {
        let id = format!("{:032x}\n", u128::from_ne_bytes(random));
        drop(fs::write(MACHINE_ID, id));
    }
}

fn random() -> io::Result<[u8; 16]> {
    let mut random = [0; 16];
    // Up to 256 bytes come whole.
    getrandom(&mut random, GetRandomFlags::empty())?;
    Ok(random)
}

/// Writes random bytes as a UUID of version 4 (RFC 9562, section 5.4).
fn uuid(mut random: [u8; 16]) -> String {
    random[6] = random[6] & 0x0f | 0x40;
    random[8] = random[8] & 0x3f | 0x80;
    let digits = format!("{:032x}", u128::from_be_bytes(random));
    let parts = [
        &digits[..8],
        &digits[8..12],
        &digits[12..16],
        &digits[16..20],
        &digits[20..],
    ];
    parts.join("-")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_uuid_says_what_it_is() {
        assert_eq!(uuid([0xff; 16]), "ffffffff-ffff-4fff-bfff-ffffffffffff");
        assert_eq!(uuid([0; 16]), "00000000-0000-4000-8000-000000000000");
    }

    #[test]
    fn only_the_line_of_the_old_name_is_another_one() {
        let hosts = "127.0.0.1\tlocalhost\n127.0.1.1\tone\n10.0.0.1 one.example # one";
        let expected = "127.0.0.1\tlocalhost\n127.0.1.1\ttwo\n10.0.0.1 one.example # one\n";
        assert_eq!(renamed(hosts, "one", "two"), expected);
    }
}
