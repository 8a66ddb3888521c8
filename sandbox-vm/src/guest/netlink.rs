//! The few messages of rtnetlink that a guest's network takes (`man 7 rtnetlink`).
//!
//! Written here because they are a dozen: the libraries that know them all are larger than the agent's own
//! code. Every message is acknowledged by the kernel, and its refusal is the error.

use std::io;
use std::net::Ipv4Addr;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};

use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType};

const INET: u8 = 2;
const INET6: u16 = 10;

// `linux/rtnetlink.h`
const RTM_NEWLINK: u16 = 16;
const RTM_NEWADDR: u16 = 20;
const RTM_NEWROUTE: u16 = 24;
const RTM_NEWRULE: u16 = 32;
const RTM_DELRULE: u16 = 33;
const RTPROT_STATIC: u8 = 4;
const RT_SCOPE_HOST: u8 = 254;
const RTN_UNICAST: u8 = 1;
const RTN_LOCAL: u8 = 2;
const RTA_OIF: u16 = 4;
const RTA_GATEWAY: u16 = 5;

// `linux/netlink.h`
const NLMSG_ERROR: u16 = 2;
const NLM_F_REQUEST: u16 = 1;
const NLM_F_ACK: u16 = 4;
const NLM_F_EXCL: u16 = 0x200;
const NLM_F_CREATE: u16 = 0x400;
const NLA_F_NESTED: u16 = 0x8000;

// `linux/if_link.h`, `linux/veth.h`, `linux/if_addr.h`
const IFF_UP: u32 = 1;
const IFLA_IFNAME: u16 = 3;
const IFLA_LINKINFO: u16 = 18;
const IFLA_AF_SPEC: u16 = 26;
const IFLA_NET_NS_FD: u16 = 28;
const IFLA_INFO_KIND: u16 = 1;
const IFLA_INFO_DATA: u16 = 2;
const IFLA_INET6_ADDR_GEN_MODE: u16 = 8;
const IN6_ADDR_GEN_MODE_NONE: u8 = 1;
const VETH_INFO_PEER: u16 = 1;
const IFA_ADDRESS: u16 = 1;
const IFA_LOCAL: u16 = 2;

// `linux/fib_rules.h`
const FRA_IIFNAME: u16 = 3;
const FRA_PRIORITY: u16 = 6;
const FRA_IP_PROTO: u16 = 22;
const FR_ACT_TO_TBL: u8 = 1;
const FR_ACT_UNREACHABLE: u8 = 7;

/// The kernel's own tables of routes.
pub(super) const TABLE_MAIN: u8 = 254;
/// Addresses that are this machine's.
pub(super) const TABLE_LOCAL: u8 = 255;

/// A connection to the kernel, in the network namespace where it was opened.
#[derive(Debug)]
pub(super) struct Netlink(OwnedFd);

impl Netlink {
    pub(super) fn open() -> io::Result<Self> {
        // Protocol 0 of this family is `NETLINK_ROUTE`.
        let flags = SocketFlags::CLOEXEC;
        let (family, kind) = (AddressFamily::NETLINK, SocketType::RAW);
        Ok(Self(rustix::net::socket_with(family, kind, flags, None)?))
    }

    /// Brings an interface up.
    pub(super) fn set_up(&self, index: u32) -> io::Result<()> {
        self.ask(Message::new(RTM_NEWLINK, 0, &link_header(index, IFF_UP)))
    }

    /// Keeps IPv6 off an interface that is not up yet: without it the kernel gives it an address.
    pub(super) fn without_ipv6(&self, index: u32) -> io::Result<()> {
        let message = Message::new(RTM_NEWLINK, 0, &link_header(index, 0));
        self.ask(message.nested(IFLA_AF_SPEC, |message| {
            message.nested(INET6, |message| {
                message.attribute(IFLA_INET6_ADDR_GEN_MODE, &[IN6_ADDR_GEN_MODE_NONE])
            })
        }))
    }

    /// Makes a pair of interfaces, `here` in this namespace and `there` in another one.
    pub(super) fn add_pair(
        &self,
        here: &str,
        there: &str,
        namespace: BorrowedFd<'_>,
    ) -> io::Result<()> {
        let message = Message::new(RTM_NEWLINK, NLM_F_CREATE | NLM_F_EXCL, &link_header(0, 0));
        let message = message.text(IFLA_IFNAME, here);
        self.ask(message.nested(IFLA_LINKINFO, |message| {
            let message = message.attribute(IFLA_INFO_KIND, b"veth");
            message.nested(IFLA_INFO_DATA, |message| {
                message.nested(VETH_INFO_PEER, |message| {
                    let message = message.raw(&link_header(0, 0)).text(IFLA_IFNAME, there);
                    message.attribute(IFLA_NET_NS_FD, &namespace.as_raw_fd().to_ne_bytes())
                })
            })
        }))
    }

    /// Returns the index of an interface.
    pub(super) fn index(&self, name: &str) -> io::Result<u32> {
        Ok(rustix::net::netdevice::name_to_index(&self.0, name)?)
    }

    /// Gives an interface an address, and with it the network that it is in.
    pub(super) fn add_address(&self, index: u32, address: Ipv4Addr, prefix: u8) -> io::Result<()> {
        let mut header = vec![INET, prefix, 0, 0];
        header.extend(index.to_ne_bytes());
        let message = Message::new(RTM_NEWADDR, NLM_F_CREATE | NLM_F_EXCL, &header);
        let message = message.attribute(IFA_LOCAL, &address.octets());
        self.ask(message.attribute(IFA_ADDRESS, &address.octets()))
    }

    /// Sends everything that has no better way to a gateway.
    pub(super) fn add_default_route(&self, index: u32, gateway: Ipv4Addr) -> io::Result<()> {
        let header = route_header(TABLE_MAIN, 0, RTN_UNICAST);
        let message = Message::new(RTM_NEWROUTE, NLM_F_CREATE | NLM_F_EXCL, &header);
        let message = message.attribute(RTA_GATEWAY, &gateway.octets());
        self.ask(message.attribute(RTA_OIF, &index.to_ne_bytes()))
    }

    /// Makes every address this machine's own ("AnyIP"), by way of the loopback interface.
    pub(super) fn own_everything(&self, loopback: u32) -> io::Result<()> {
        let header = route_header(TABLE_LOCAL, RT_SCOPE_HOST, RTN_LOCAL);
        let message = Message::new(RTM_NEWROUTE, NLM_F_CREATE | NLM_F_EXCL, &header);
        self.ask(message.attribute(RTA_OIF, &loopback.to_ne_bytes()))
    }

    /// Looks addresses up in a table, for packets from one interface or for all.
    pub(super) fn add_rule(&self, priority: u32, table: u8, from: Option<&str>) -> io::Result<()> {
        let header = rule_header(table, FR_ACT_TO_TBL);
        let message = Message::new(RTM_NEWRULE, NLM_F_CREATE | NLM_F_EXCL, &header);
        let message = message.attribute(FRA_PRIORITY, &priority.to_ne_bytes());
        self.ask(match from {
            Some(interface) => message.text(FRA_IIFNAME, interface),
            None => message,
        })
    }

    /// Answers a protocol's packets from one interface with "unreachable".
    pub(super) fn refuse(&self, priority: u32, from: &str, protocol: u8) -> io::Result<()> {
        let header = rule_header(0, FR_ACT_UNREACHABLE);
        let message = Message::new(RTM_NEWRULE, NLM_F_CREATE | NLM_F_EXCL, &header);
        let message = message.attribute(FRA_PRIORITY, &priority.to_ne_bytes());
        let message = message.text(FRA_IIFNAME, from);
        self.ask(message.attribute(FRA_IP_PROTO, &[protocol]))
    }

    /// Removes the rule of a priority.
    pub(super) fn remove_rule(&self, priority: u32, table: u8) -> io::Result<()> {
        let message = Message::new(RTM_DELRULE, 0, &rule_header(table, FR_ACT_TO_TBL));
        self.ask(message.attribute(FRA_PRIORITY, &priority.to_ne_bytes()))
    }

    fn ask(&self, message: Message) -> io::Result<()> {
        rustix::net::send(&self.0, &message.finish(), SendFlags::empty())?;
        let mut answer = [0; 4096];
        let (count, _) = rustix::net::recv(&self.0, &mut answer[..], RecvFlags::empty())?;
        read_answer(&answer[..count])
    }
}

/// Reads an acknowledgement: a header, and the negated error number, 0 for none.
fn read_answer(answer: &[u8]) -> io::Result<()> {
    let kind = answer
        .get(4..6)
        .map(|kind| kind == NLMSG_ERROR.to_ne_bytes());
    let number = answer
        .get(HEADER..HEADER + 4)
        .filter(|_| kind == Some(true));
    let number = number.ok_or(io::ErrorKind::InvalidData)?;
    match i32::from_ne_bytes([number[0], number[1], number[2], number[3]]) {
        0 => Ok(()),
        negated => Err(io::Error::from_raw_os_error(negated.saturating_neg())),
    }
}

/// `struct nlmsghdr`.
const HEADER: usize = 16;

/// A message in the making. All of it is the agent's own, so its lengths fit.
struct Message(Vec<u8>);

impl Message {
    fn new(kind: u16, flags: u16, header: &[u8]) -> Self {
        let mut bytes = vec![0; HEADER];
        bytes[4..6].copy_from_slice(&kind.to_ne_bytes());
        bytes[6..8].copy_from_slice(&(flags | NLM_F_REQUEST | NLM_F_ACK).to_ne_bytes());
        bytes.extend_from_slice(header);
        Self(bytes)
    }

    fn raw(mut self, bytes: &[u8]) -> Self {
        self.0.extend_from_slice(bytes);
        self
    }

    fn attribute(self, kind: u16, value: &[u8]) -> Self {
        self.enclose(kind, |message| message.raw(value))
    }

    fn text(self, kind: u16, value: &str) -> Self {
        self.enclose(kind, |message| message.raw(value.as_bytes()).raw(&[0]))
    }

    fn nested(self, kind: u16, content: impl FnOnce(Self) -> Self) -> Self {
        self.enclose(kind | NLA_F_NESTED, content)
    }

    fn enclose(mut self, kind: u16, content: impl FnOnce(Self) -> Self) -> Self {
        let start = self.0.len();
        self.0.extend([0; 2]);
        self.0.extend(kind.to_ne_bytes());
        let mut whole = content(self);
        let length = (whole.0.len() - start) as u16;
        whole.0[start..start + 2].copy_from_slice(&length.to_ne_bytes());
        whole.0.resize(whole.0.len().next_multiple_of(4), 0);
        whole
    }

    fn finish(mut self) -> Vec<u8> {
        let length = self.0.len() as u32;
        self.0[..4].copy_from_slice(&length.to_ne_bytes());
        self.0
    }
}

/// `struct ifinfomsg`: family, padding, type, index, flags, which of the flags change.
fn link_header(index: u32, flags: u32) -> [u8; 16] {
    let mut header = [0; 16];
    header[4..8].copy_from_slice(&index.to_ne_bytes());
    header[8..12].copy_from_slice(&flags.to_ne_bytes());
    header[12..].copy_from_slice(&flags.to_ne_bytes());
    header
}

/// `struct rtmsg`, for every destination.
fn route_header(table: u8, scope: u8, kind: u8) -> [u8; 12] {
    let mut header = [0; 12];
    (header[0], header[4], header[5]) = (INET, table, RTPROT_STATIC);
    (header[6], header[7]) = (scope, kind);
    header
}

/// `struct fib_rule_hdr`.
fn rule_header(table: u8, action: u8) -> [u8; 12] {
    let mut header = [0; 12];
    (header[0], header[4], header[7]) = (INET, table, action);
    header
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attributes_are_nested_and_aligned() {
        let message = Message::new(RTM_NEWLINK, NLM_F_EXCL, &[9; 4]);
        let message = message.nested(1, |message| message.attribute(2, &[7]).text(3, "x"));
        let bytes = message.finish();
        assert_eq!(bytes.len(), 16 + 4 + 4 + 8 + 8);
        assert_eq!(bytes[..4], 40u32.to_ne_bytes());
        let nested = [20u16.to_ne_bytes(), (1 | NLA_F_NESTED).to_ne_bytes()].concat();
        assert_eq!(bytes[20..24], nested[..]);
        let plain = [5u16.to_ne_bytes(), 2u16.to_ne_bytes(), [7, 0], [0, 0]].concat();
        assert_eq!(bytes[24..32], plain[..]);
        let text = [6u16.to_ne_bytes(), 3u16.to_ne_bytes(), [b'x', 0], [0, 0]].concat();
        assert_eq!(bytes[32..], text[..]);
    }

    #[test]
    fn refusals_are_errors_and_anything_else_is_no_answer() {
        let answer = |number: i32| {
            let mut bytes = vec![0; HEADER];
            bytes[4..6].copy_from_slice(&NLMSG_ERROR.to_ne_bytes());
            bytes.extend(number.to_ne_bytes());
            bytes
        };
        assert!(read_answer(&answer(0)).is_ok());
        let refused = read_answer(&answer(-95)).unwrap_err();
        assert_eq!(refused.raw_os_error(), Some(95));
        assert!(read_answer(&answer(i32::MIN)).is_err());
        assert!(read_answer(&answer(0)[..18]).is_err());
        assert!(read_answer(&[]).is_err());
        assert!(read_answer(&[0; 20]).is_err(), "no acknowledgement");
    }
}
