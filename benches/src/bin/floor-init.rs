//! The least that can be the first process of a guest: the floor under everything that is measured.
//!
//! As process 1 it loads the modules of the initial ramdisk, opens the virtio-serial port, writes one
//! line, and then does what it is told, a line each:
//!
//! | line | does |
//! |---|---|
//! | `out N` | a child writes `N` zeros through a pipe; a plain read and write loop carries them to the port |
//! | `in N` | the same loop carries `N` bytes from the port through a pipe to a child, then says `done` |
//!
//! Outside of process 1 it is the programs that both sides run: `true`, `zeros N`, `sink N`, and `loop N`,
//! which measures what a fork and an exec cost.
//!
//! It is compiled by `rustc` alone (see `floor.rs`), hence the standard library and nothing else.

#![allow(clippy::print_stdout, reason = "it is a program")]
// JUSTIFICATION: the two system calls that the standard library does not have, mount and finit_module.
#![allow(unsafe_code)]

#[cfg(target_os = "linux")]
fn main() {
    let arguments: Vec<String> = std::env::args().collect();
    let count = arguments.get(2).and_then(|text| text.parse().ok());
    let result = match arguments.get(1).map(String::as_str) {
        _ if std::process::id() == 1 => linux::first_process(),
        Some("true") => Ok(()),
        Some("zeros") => linux::zeros(count.unwrap_or(0)),
        Some("sink") => linux::sink(count.unwrap_or(u64::MAX)).map(|read| println!("{read}")),
        Some("loop") => linux::measure_fork_and_exec(count.unwrap_or(20)),
        _ => Err(std::io::Error::other(
            "usage: floor-init true|zeros N|sink N|loop N",
        )),
    };
    result.expect("a benchmark's program does what it is for");
}

#[cfg(not(target_os = "linux"))]
fn main() {}

#[cfg(target_os = "linux")]
mod linux {
    use std::ffi::{CString, c_char, c_int, c_long, c_ulong, c_void};
    use std::fs::{self, File, OpenOptions};
    use std::io::{self, BufRead, BufReader, Read, Write};
    use std::os::fd::AsRawFd;
    use std::os::unix::process::CommandExt;
    use std::process::{Command, Stdio};
    use std::time::{Duration, Instant};

    /// What `cat` of coreutils reads at once.
    const BLOCK: usize = 128 * 1024;

    unsafe extern "C" {
        fn mount(
            source: *const c_char,
            target: *const c_char,
            kind: *const c_char,
            flags: c_ulong,
            data: *const c_void,
        ) -> c_int;
        fn syscall(number: c_long, ...) -> c_long;
    }

    #[cfg(target_arch = "x86_64")]
    const FINIT_MODULE: c_long = 313;
    #[cfg(not(target_arch = "x86_64"))]
    const FINIT_MODULE: c_long = 273;

    pub(super) fn first_process() -> io::Result<()> {
        let dev = c"devtmpfs".as_ptr();
        // SAFETY: three strings that end with a NUL, and no data. A /dev that is mounted already is fine.
        unsafe { mount(dev, c"/dev".as_ptr(), dev, 0, std::ptr::null()) };
        for name in fs::read_to_string("/modules/order")?.lines() {
            load(&format!("/modules/{name}"))?;
        }
        let mut port = open_port();
        port.write_all(b"ready\n")?;
        let mut lines = BufReader::with_capacity(64, port.try_clone()?);
        loop {
            let mut line = String::new();
            if lines.read_line(&mut line)? == 0 {
                std::thread::sleep(Duration::from_millis(5));
                continue;
            }
            match line.trim().split_once(' ') {
                Some(("out", count)) => pipe_out(count, &mut port)?,
                Some(("in", count)) => pipe_in(count, &mut lines, &mut port)?,
                _ => port.write_all(b"what?\n")?,
            }
        }
    }

    fn load(path: &str) -> io::Result<()> {
        let file = File::open(path)?;
        let parameters = CString::default();
        // SAFETY: an open descriptor, a string that ends with a NUL, no flags.
        let failed =
            unsafe { syscall(FINIT_MODULE, file.as_raw_fd(), parameters.as_ptr(), 0) } != 0;
        // A device that this machine lacks is none of the floor's business.
        if failed {
            println!("{path}: {}", io::Error::last_os_error());
        }
        Ok(())
    }

    fn open_port() -> File {
        loop {
            let opened = OpenOptions::new()
                .read(true)
                .write(true)
                .open("/dev/vport0p1");
            match opened {
                Ok(port) => return port,
                Err(_) => std::thread::sleep(Duration::from_millis(1)),
            }
        }
    }

    fn pipe_out(count: &str, port: &mut File) -> io::Result<()> {
        let mut child = Command::new("/init")
            .args(["zeros", count])
            .stdout(Stdio::piped())
            .spawn()?;
        let mut pipe = child.stdout.take().ok_or(io::ErrorKind::BrokenPipe)?;
        carry(&mut pipe, port, u64::MAX)?;
        child.wait().map(drop)
    }

    fn pipe_in(count: &str, from: &mut impl Read, port: &mut File) -> io::Result<()> {
        let mut child = Command::new("/init")
            .args(["sink", count])
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .spawn()?;
        let mut pipe = child.stdin.take().ok_or(io::ErrorKind::BrokenPipe)?;
        carry(from, &mut pipe, count.parse().map_err(io::Error::other)?)?;
        drop(pipe);
        child.wait()?;
        port.write_all(b"done\n")
    }

    /// What `cat` does.
    fn carry(from: &mut impl Read, to: &mut impl Write, mut count: u64) -> io::Result<()> {
        let mut block = vec![0; BLOCK];
        while count > 0 {
            let wanted = usize::try_from(count).unwrap_or(BLOCK).min(BLOCK);
            match from.read(&mut block[..wanted])? {
                0 => break,
                read => {
                    to.write_all(&block[..read])?;
                    count -= read as u64;
                }
            }
        }
        Ok(())
    }

    pub(super) fn zeros(mut count: u64) -> io::Result<()> {
        let block = vec![0; BLOCK];
        let mut stdout = File::from(std::os::fd::AsFd::as_fd(&io::stdout()).try_clone_to_owned()?);
        while count > 0 {
            let wanted = usize::try_from(count).unwrap_or(BLOCK).min(BLOCK);
            stdout.write_all(&block[..wanted])?;
            count -= wanted as u64;
        }
        Ok(())
    }

    pub(super) fn sink(limit: u64) -> io::Result<u64> {
        let mut block = vec![0; BLOCK];
        let mut stdin = File::from(std::os::fd::AsFd::as_fd(&io::stdin()).try_clone_to_owned()?);
        let mut total = 0;
        while total < limit {
            match stdin.read(&mut block)? {
                0 => break,
                read => total += read as u64,
            }
        }
        Ok(total)
    }

    /// Prints nanoseconds, a line for each of `rounds`.
    pub(super) fn measure_fork_and_exec(rounds: u64) -> io::Result<()> {
        let own = std::env::current_exe()?;
        for _ in 0..rounds {
            let mut command = Command::new(&own);
            // Changing nothing, but it makes the standard library fork where it would else spawn.
            command.arg("true").uid(own_uid()?).stdin(Stdio::null());
            let start = Instant::now();
            command.status()?;
            println!("{}", start.elapsed().as_nanos());
        }
        Ok(())
    }

    fn own_uid() -> io::Result<u32> {
        use std::os::unix::fs::MetadataExt;
        Ok(fs::metadata("/proc/self")?.uid())
    }
}
