//! The guest's network: a loopback interface, and one way out that ends at the agent.
//!
//! ```text
//!   programs, containers │ the agent's own namespace
//!                        │
//!   default route ─► egress0 ══ agent0 ─► every address is local ("AnyIP"): ordinary sockets
//!        of the machine  │                  on 0.0.0.0:80, 0.0.0.0:443, … take what comes
//! ```
//!
//! Why a namespace: the agent's listeners on `0.0.0.0:443` would take that port from the programs inside. Why no
//! packet filter: a redirect would need modules and rules beside those that programs inside make (Docker's, say),
//! and could be undone by them by accident. So it is routing alone: packets that leave by the pair of interfaces
//! arrive where every address is the machine's own, and the kernel gives the rest of the answers at once. TCP
//! ports that nobody listens on are reset, UDP ports are unreachable, and so is everything of ICMP: otherwise
//! each address in the world would answer a ping. Nothing is ever forwarded from there, since there is nowhere to
//! go. Addresses of containers come back by the same pair, masqueraded or not.
//!
//! All of it is made on a thread of its own, at the same time as the root's mounts, because a thread that has
//! changed its namespace is of no use for anything else. It forks nothing.
//!
//! What the module ignores: IPv6 has no route, and the interface no address of it. A guest's root can take all
//! of this apart, and reaches less then, not more.

// JUSTIFICATION: leaving a namespace is `unshare`, which is unsafe for the sake of its other flags.
#![allow(unsafe_code)]

use std::io;
use std::net::SocketAddrV4;
use std::os::fd::{AsFd, OwnedFd};

use rustix::fs::{Mode, OFlags, openat};
use rustix::net::{AddressFamily, SocketFlags, SocketType, sockopt};
use rustix::thread::{LinkNameSpaceType, UnshareFlags};
use tokio::net::{TcpListener, UdpSocket};
use tokio::sync::oneshot;

use super::netlink::{Netlink, TABLE_LOCAL, TABLE_MAIN};
use crate::channel::protocol::Link;

/// The end of the pair that programs see.
const OUTSIDE: &str = "egress0";
/// The end in the agent's namespace.
const INSIDE: &str = "agent0";
/// The first interface of every namespace.
const LOOPBACK: u32 = 1;
const ICMP: u8 = 1;
/// Connections that wait to be taken; more are tried again by the kernel on the other side.
const BACKLOG: i32 = 128;

/// Brings the loopback interface up.
pub(super) fn loopback_up() -> io::Result<()> {
    Netlink::open()?.set_up(LOOPBACK)
}

/// The agent's own network namespace, where every connection ends that leaves the machine.
#[derive(Debug)]
pub struct CaptureNet(OwnedFd);

/// A namespace that is being made.
#[derive(Debug)]
pub(super) struct Making(oneshot::Receiver<io::Result<CaptureNet>>);

impl Making {
    /// Begins to make the namespace and to join it to this one.
    pub(super) fn begin(wanted: &Link) -> io::Result<Self> {
        // Opened here and now: the root is about to change under the thread.
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let proc = rustix::fs::open("/proc", flags, Mode::empty())?;
        let wanted = wanted.clone();
        on_a_thread(move || make(&proc, &wanted)).map(Self)
    }

    /// Waits until it is made.
    pub(super) async fn made(self) -> io::Result<CaptureNet> {
        self.0.await.map_err(io::Error::other)?
    }
}

impl CaptureNet {
    /// Listens on an address in the namespace.
    ///
    /// # Errors
    ///
    /// What the system answers, `AddrInUse` for one.
    pub async fn listen(&self, address: SocketAddrV4) -> io::Result<TcpListener> {
        let socket = self.socket(SocketType::STREAM, address).await?;
        TcpListener::from_std(socket.into())
    }

    /// Takes datagrams that are sent to an address in the namespace.
    ///
    /// # Errors
    ///
    /// As [`Self::listen`].
    pub async fn bind(&self, address: SocketAddrV4) -> io::Result<UdpSocket> {
        let socket = self.socket(SocketType::DGRAM, address).await?;
        UdpSocket::from_std(socket.into())
    }

    async fn socket(&self, kind: SocketType, address: SocketAddrV4) -> io::Result<OwnedFd> {
        let namespace = self.0.try_clone()?;
        let made = on_a_thread(move || {
            let only = Some(LinkNameSpaceType::Network);
            rustix::thread::move_into_link_name_space(namespace.as_fd(), only)?;
            bound(kind, address)
        })?;
        made.await.map_err(io::Error::other)?
    }
}

fn bound(kind: SocketType, address: SocketAddrV4) -> io::Result<OwnedFd> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = rustix::net::socket_with(AddressFamily::INET, kind, flags, None)?;
    sockopt::set_socket_reuseaddr(&socket, true)?;
    if kind == SocketType::STREAM {
        // A rule may name the port that the resolver has on its own address.
        sockopt::set_socket_reuseport(&socket, true)?;
    }
    rustix::net::bind(&socket, &address)?;
    if kind == SocketType::STREAM {
        rustix::net::listen(&socket, BACKLOG)?;
    }
    Ok(socket)
}

/// Does something on a thread that ends with it.
fn on_a_thread<T: Send + 'static>(
    work: impl FnOnce() -> io::Result<T> + Send + 'static,
) -> io::Result<oneshot::Receiver<io::Result<T>>> {
    let (sender, receiver) = oneshot::channel();
    let thread = std::thread::Builder::new().name("network".into());
    // Nobody may be waiting any more.
    thread.spawn(move || drop(sender.send(work())))?;
    Ok(receiver)
}

/// Makes the namespace on the calling thread, which stays in it.
fn make(proc: &OwnedFd, wanted: &Link) -> io::Result<CaptureNet> {
    let machine = Netlink::open()?;
    // Refusals at once, however many: the defaults are about one in a second. This value is there once only, for
    // all namespaces, and some kernels may keep it elsewhere.
    drop(write(proc, "sys/net/ipv4/route/error_cost", "0"));
    // SAFETY: only `FILES` can take descriptors from other threads; this is the network namespace alone.
    unsafe { rustix::thread::unshare_unsafe(UnshareFlags::NEWNET) }?;
    let flags = OFlags::RDONLY | OFlags::CLOEXEC;
    let namespace = openat(proc, "thread-self/ns/net", flags, Mode::empty())?;
    let inside = Netlink::open()?;
    write(proc, "sys/net/ipv4/icmp_ratelimit", "0")?;
    machine
        .add_pair(OUTSIDE, INSIDE, namespace.as_fd())
        .map_err(|error| about("make a pair of interfaces (kernel module veth)", error))?;
    furnish(&inside, wanted)?;
    // Only an interface that would forward tells that something is unreachable.
    write(proc, &format!("sys/net/ipv4/conf/{INSIDE}/forwarding"), "1")?;
    let outside = machine.index(OUTSIDE)?;
    // A kernel without IPv6 has none to keep off.
    drop(machine.without_ipv6(outside));
    machine.add_address(outside, wanted.address, wanted.prefix)?;
    machine.set_up(outside)?;
    machine
        .add_default_route(outside, wanted.gateway)
        .map_err(|error| about("set the default route", error))?;
    Ok(CaptureNet(namespace))
}

/// Makes every address the namespace's own for what comes in, and none for what goes out.
fn furnish(inside: &Netlink, wanted: &Link) -> io::Result<()> {
    let peer = inside.index(INSIDE)?;
    drop(inside.without_ipv6(peer));
    inside.add_address(peer, wanted.gateway, wanted.prefix)?;
    inside.set_up(LOOPBACK)?;
    inside.set_up(peer)?;
    // Answers go back by the pair, to whatever address: the rule for what the namespace sends itself, which
    // counts as coming from its loopback interface, stands before the table in which everything is local.
    inside.add_rule(5, TABLE_MAIN, Some("lo"))?;
    inside.add_rule(10, TABLE_LOCAL, None)?;
    inside.remove_rule(0, TABLE_LOCAL)?;
    inside.refuse(3, INSIDE, ICMP)?;
    inside.own_everything(LOOPBACK)?;
    inside.add_default_route(peer, wanted.address)
}

/// Sets a value of the kernel, in the namespace of the calling thread.
fn write(proc: &OwnedFd, path: &str, value: &str) -> io::Result<()> {
    let flags = OFlags::WRONLY | OFlags::CLOEXEC;
    let file = openat(proc, path, flags, Mode::empty()).map_err(|e| about(path, e.into()))?;
    rustix::io::write(file, value.as_bytes()).map_err(|error| about(path, error.into()))?;
    Ok(())
}

fn about(what: &str, error: io::Error) -> io::Error {
    io::Error::new(error.kind(), format!("{what}: {error}"))
}
