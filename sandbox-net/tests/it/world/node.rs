//! One network namespace: threads that are in it, programs that are started from them.

// JUSTIFICATION: leaving a namespace is `unshare`, which is unsafe for the sake of its other flags.
#![allow(unsafe_code)]

use std::{
    ffi::OsStr,
    fs::File,
    io::{self, Write as _},
    net::IpAddr,
    os::fd::{AsFd, AsRawFd, OwnedFd},
    path::Path,
    process::{self, Stdio},
    sync::Arc,
    thread,
    time::{Duration, Instant},
};

use rustix::{
    mount::{MountPropagationFlags, mount_bind, mount_change},
    thread::{LinkNameSpaceType, UnshareFlags, move_into_link_name_space, unshare_unsafe},
};
use tempfile::TempDir;
use tokio::{
    process::Command,
    runtime::{Handle, Runtime},
    task::JoinHandle,
    time::timeout,
};

/// The bound on every program and every wait.
const HANG: Duration = Duration::from_secs(60);

/// A network namespace and a runtime whose threads are in it.
#[derive(Debug)]
pub(crate) struct Node {
    namespace: Arc<OwnedFd>,
    /// `None` only while it is dropped.
    runtime: Option<Runtime>,
    /// What its programs have in `/etc` to look names up by.
    resolver: Option<Arc<TempDir>>,
}

impl Node {
    /// Makes a namespace with a loopback interface. It lives as long as this and what was started in it.
    pub(crate) fn new() -> Self {
        Self::make(None)
    }

    /// As [`Self::new`]; its programs ask this name server.
    pub(crate) fn resolving_at(server: impl Into<IpAddr>) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let servers = format!("nameserver {}\n", server.into());
        std::fs::write(folder.path().join("resolv.conf"), servers).unwrap();
        // Other sources would ask a daemon, which is elsewhere.
        std::fs::write(folder.path().join("nsswitch.conf"), "hosts: files dns\n").unwrap();
        Self::make(Some(folder))
    }

    fn make(resolver: Option<TempDir>) -> Self {
        let making = thread::spawn(|| {
            // SAFETY: only `FILES` can take descriptors from other threads; this is the network namespace alone.
            unsafe { unshare_unsafe(UnshareFlags::NEWNET) }.expect(
                "a network namespace can be made: root needs CAP_SYS_ADMIN, which some containers take away",
            );
            // A host that forwards passes that on to new namespaces.
            for path in ["ipv4/ip_forward", "ipv6/conf/all/forwarding"] {
                let path = format!("/proc/sys/net/{path}");
                if std::fs::read_to_string(&path).unwrap().trim() != "0" {
                    std::fs::write(&path, "0").unwrap();
                }
            }
            File::open("/proc/thread-self/ns/net").unwrap()
        });
        let namespace: Arc<OwnedFd> = Arc::new(making.join().unwrap().into());
        let resolver = resolver.map(Arc::new);
        let (here, folder) = (Arc::clone(&namespace), resolver.clone());
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .on_thread_start(move || enter(&here, folder.as_deref()))
            .enable_all()
            .build()
            .unwrap();
        let node = Self {
            namespace,
            runtime: Some(runtime),
            resolver,
        };
        node.ip("link set lo up");
        node
    }

    /// Where the namespace is found by other programs, for as long as this process lives.
    pub(crate) fn path(&self) -> String {
        format!("/proc/{}/fd/{}", process::id(), self.namespace.as_raw_fd())
    }

    /// Runs commands of `ip` in it, one a line.
    #[track_caller]
    pub(crate) fn ip(&self, commands: &str) {
        let mut ip = process::Command::new("ip");
        ip.args(["-batch", "-"]).stdin(Stdio::piped());
        ip.stdout(Stdio::piped()).stderr(Stdio::piped());
        let output = self.within(move || {
            let mut ip = ip
                .spawn()
                .expect("`ip` is there: scripts/setup test installs it");
            let mut input = ip.stdin.take().unwrap();
            input.write_all(commands.as_bytes()).unwrap();
            drop(input);
            ip.wait_with_output().unwrap()
        });
        assert!(output.status.success(), "{commands}: {output:?}");
    }

    /// Sets a value of its kernel.
    #[track_caller]
    pub(crate) fn set(&self, path: &str, value: &str) {
        self.within(|| std::fs::write(format!("/proc/sys/net/{path}"), value))
            .unwrap();
    }

    /// Gives it an address, which others reach through their routes.
    pub(crate) fn own(&self, address: IpAddr) {
        let command = match address {
            IpAddr::V4(four) => format!("address add {four}/32 dev lo"),
            IpAddr::V6(six) => format!("address add {six}/128 dev lo nodad"),
        };
        self.ip(&command);
    }

    /// Does something on a thread that is in it.
    pub(crate) fn within<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        thread::scope(|scope| {
            let (namespace, resolver) = (&self.namespace, self.resolver.as_deref());
            let thread = scope.spawn(move || {
                enter(namespace, resolver);
                work()
            });
            thread.join().unwrap()
        })
    }

    /// Begins something in it.
    pub(crate) fn spawn<T: Send + 'static>(
        &self,
        future: impl Future<Output = T> + Send + 'static,
    ) -> JoinHandle<T> {
        self.runtime().spawn(future)
    }

    /// Does something in it, to its end.
    #[track_caller]
    pub(crate) fn run<T: Send + 'static>(
        &self,
        future: impl Future<Output = T> + Send + 'static,
    ) -> T {
        let handle = self.spawn(async { timeout(HANG, future).await });
        let done = self.runtime().block_on(handle).unwrap();
        done.expect("it ends in time")
    }

    /// Runs a program in it, with no environment but these variables, to its end.
    #[track_caller]
    pub(crate) fn program(
        &self,
        line: &[impl AsRef<OsStr>],
        variables: &[(String, String)],
    ) -> Ran {
        let mut command = Command::new(&line[0]);
        command.args(&line[1..]).env_clear();
        command.env("PATH", std::env::var_os("PATH").unwrap_or_default());
        command.envs(variables.iter().cloned());
        command.stdin(Stdio::null()).kill_on_drop(true);
        let begun = Instant::now();
        let name = format!("{:?}", line[0].as_ref());
        let output = self.run(async move { command.output().await });
        let output = output.unwrap_or_else(|error| {
            panic!("{name}: {error}; scripts/setup test installs what is missing")
        });
        Ran {
            succeeded: output.status.success(),
            stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
            stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
            took: begun.elapsed(),
        }
    }

    /// Where things are begun that shall be in it.
    pub(crate) fn handle(&self) -> Handle {
        self.runtime().handle().clone()
    }

    fn runtime(&self) -> &Runtime {
        self.runtime
            .as_ref()
            .expect("there is one until it is dropped")
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            // Programs that still run are killed when their futures are dropped.
            runtime.shutdown_timeout(Duration::from_secs(2));
        }
    }
}

/// Moves the calling thread, and what it starts from now on.
fn enter(namespace: &OwnedFd, resolver: Option<&TempDir>) {
    move_into_link_name_space(namespace.as_fd(), Some(LinkNameSpaceType::Network))
        .expect("who made a namespace may enter it");
    if let Some(folder) = resolver {
        resolve_by(folder.path());
    }
}

/// Gives the calling thread, and what it starts from now on, these files in `/etc`.
fn resolve_by(folder: &Path) {
    // SAFETY: only `FILES` can take descriptors from other threads; this is the mount namespace alone.
    unsafe { unshare_unsafe(UnshareFlags::NEWNS | UnshareFlags::FS) }.unwrap();
    let private = MountPropagationFlags::PRIVATE | MountPropagationFlags::REC;
    mount_change("/", private).unwrap();
    let bind = |name: &str| {
        // In some systems it is a link.
        let there = Path::new("/etc").join(name).canonicalize()?;
        mount_bind(folder.join(name), &there).map_err(io::Error::from)
    };
    bind("resolv.conf").unwrap();
    match bind("nsswitch.conf") {
        // Then it is DNS and files anyway.
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        bound => bound.unwrap(),
    }
}

/// What a program left.
#[derive(Debug)]
pub(crate) struct Ran {
    pub(crate) succeeded: bool,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
    pub(crate) took: Duration,
}

impl Ran {
    /// Asserts that it went well; returns what it printed.
    #[track_caller]
    pub(crate) fn well(&self) -> &str {
        assert!(self.succeeded, "{self:#?}");
        &self.stdout
    }

    /// Asserts that it failed without a wait, and that it says so by this.
    #[track_caller]
    pub(crate) fn refused(&self, word: &str) {
        assert!(!self.succeeded, "{self:#?}");
        let said = format!("{}{}", self.stdout, self.stderr);
        assert!(said.contains(word), "no {word:?} in {self:#?}");
        // Two processors may be busy with something else; every time-out of a client is longer.
        assert!(self.took < Duration::from_secs(8), "{self:#?}");
    }
}
