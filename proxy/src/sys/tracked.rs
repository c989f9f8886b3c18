//! Datagram flows in the kernel's table of tracked connections: ctnetlink, spoken over netlink sockets.
//!
//! Turns entries and the events of their end into [`Entry`]s. Knows no policy and changes nothing but what it
//! is told to delete. Source: netlink(7), include/uapi/linux/netfilter/nfnetlink_conntrack.h,
//! net/netfilter/nf_conntrack_netlink.c.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::{AsRawFd, RawFd};

use flow::{ClientAddr, OrigDst, Protocol, Tuple, canonical_ip};
use netlink_sys::{Socket, SocketAddr as NetlinkAddress, protocols::NETLINK_NETFILTER};
use nix::sys::socket::{setsockopt, sockopt::RcvBufForce};
use socket2::{SockFilter, SockRef};

use super::nfqueue::{FLAG_ACK, FLAG_REQUEST, NLMSG_ERROR, attribute, attributes, field, push_attribute};

const SUBSYSTEM: u16 = 1 << 8;
const MSG_NEW: u16 = SUBSYSTEM;
const MSG_GET: u16 = SUBSYSTEM | 1;
const MSG_DELETE: u16 = SUBSYSTEM | 2;
const NLMSG_DONE: u16 = 3;
const FLAG_DUMP: u16 = 0x300;
const NESTED: u16 = 0x8000;

const TUPLE_ORIG: u16 = 1;
const TUPLE_REPLY: u16 = 2;
const PROTOCOL_INFO: u16 = 4;
const MARK: u16 = 8;
const COUNTERS_ORIG: u16 = 9;
const COUNTERS_REPLY: u16 = 10;
const ID: u16 = 12;
const ZONE: u16 = 18;
const MARK_MASK: u16 = 21;

/// TIME_WAIT and CLOSE (include/uapi/linux/netfilter/nf_conntrack_tcp.h): the connection is over, its entry is not.
const TCP_OVER: std::ops::RangeInclusive<u8> = 7..=8;
/// `NFNLGRP_CONNTRACK_DESTROY`.
const GROUP_DESTROY: u32 = 3;
/// Length of nlmsghdr and nfgenmsg.
const HEADERS: usize = 20;
/// The kernel fills at most this much in one answer to a dump (`netlink_dump` in net/netlink/af_netlink.c).
const DUMP_BUFFER: usize = 64 << 10;
/// Bytes asked for the receive buffer of events: some ten thousand ends in one instant.
const RECEIVE_BUFFER: usize = 16 << 20;

/// Packets and bytes of one direction. Bytes count from the IP header on.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Counted {
    pub(crate) packets: u64,
    pub(crate) bytes: u64,
}

impl Counted {
    /// The sum of two.
    pub(crate) fn and(self, other: Self) -> Self {
        Self { packets: self.packets + other.packets, bytes: self.bytes + other.bytes }
    }
}

/// Which of the two tuples of an entry.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Direction {
    Original,
    Reply,
}

/// One tracked connection of a protocol with ports.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Entry {
    pub(crate) protocol: Protocol,
    /// Source and destination of what the client sends, before any translation.
    pub(crate) original: (SocketAddr, SocketAddr),
    /// Source and destination of what the server sends, before any translation.
    pub(crate) reply: (SocketAddr, SocketAddr),
    pub(crate) mark: u32,
    pub(crate) id: Option<u32>,
    pub(crate) zone: u16,
    /// What each side sent, original direction first; `None` where nothing is counted.
    pub(crate) counted: Option<(Counted, Counted)>,
    /// A TCP connection that both its ends, or a reset, have ended.
    pub(crate) is_over: bool,
}

impl Entry {
    /// The connection as it is between destination and source translation: client and backend.
    pub(crate) fn tuple(&self) -> Tuple {
        tuple(self.protocol, self.original.0, self.reply.0)
    }

    /// The address that the client dialled.
    pub(crate) fn dialed(&self) -> SocketAddr {
        canonical(self.original.1)
    }
}

fn tuple(protocol: Protocol, client: SocketAddr, destination: SocketAddr) -> Tuple {
    Tuple { protocol, client: ClientAddr(canonical(client)), destination: OrigDst(canonical(destination)) }
}

fn canonical(address: SocketAddr) -> SocketAddr {
    SocketAddr::new(canonical_ip(address.ip()), address.port())
}

/// Questions to the table of the network namespace in which it was opened.
#[derive(Debug)]
pub(crate) struct Conntrack {
    socket: Socket,
}

impl Conntrack {
    /// Errors: EPROTONOSUPPORT where the kernel has no netlink for netfilter.
    pub(crate) fn open() -> io::Result<Self> {
        let mut socket = Socket::new(NETLINK_NETFILTER)?;
        socket.bind_auto()?;
        Ok(Self { socket })
    }

    /// Visits every entry that has all of these mark bits; 0 visits every entry. Entries whose time is over
    /// are not visited, and end now. Blocks, for some milliseconds in a large table.
    pub(crate) fn dump(&self, mark: u32, mut visit: impl FnMut(Entry)) -> io::Result<()> {
        let request = message(MSG_GET, FLAG_REQUEST | FLAG_DUMP, 0, |body| {
            if mark != 0 {
                push_attribute(body, MARK, &mark.to_be_bytes());
                push_attribute(body, MARK_MASK, &mark.to_be_bytes());
            }
        });
        self.send(&request)?;
        let mut buffer = vec![0; DUMP_BUFFER];
        loop {
            let received = receive(&self.socket, &mut buffer)?;
            for message in messages(&buffer[..received]) {
                match kind(message) {
                    NLMSG_DONE => return Ok(()),
                    NLMSG_ERROR => return acknowledged(message),
                    // An older kernel does not know the filter.
                    _ => parse(message)
                        .into_iter()
                        .filter(|entry| entry.mark & mark == mark)
                        .for_each(&mut visit),
                }
            }
        }
    }

    /// The entry whose `direction` has this source and destination.
    pub(crate) fn find(
        &self,
        protocol: Protocol,
        direction: Direction,
        source: SocketAddr,
        destination: SocketAddr,
    ) -> io::Result<Option<Entry>> {
        let request = message(MSG_GET, FLAG_REQUEST | FLAG_ACK, family(source), |body| {
            push_tuple(body, direction, protocol, source, destination);
        });
        self.send(&request)?;
        let mut buffer = vec![0; 4096];
        let mut found = None;
        loop {
            let received = receive(&self.socket, &mut buffer)?;
            for message in messages(&buffer[..received]) {
                match kind(message) {
                    NLMSG_ERROR => return not_found_is(acknowledged(message).map(|()| found), None),
                    _ => found = parse(message).or(found),
                }
            }
        }
    }

    /// Removes an entry, if it is still the same. True when it was there.
    pub(crate) fn delete(&self, entry: &Entry) -> io::Result<bool> {
        let (source, destination) = entry.original;
        let request = message(MSG_DELETE, FLAG_REQUEST | FLAG_ACK, family(source), |body| {
            push_tuple(body, Direction::Original, entry.protocol, source, destination);
            if let Some(id) = entry.id {
                push_attribute(body, ID, &id.to_be_bytes());
            }
            if entry.zone != 0 {
                push_attribute(body, ZONE, &entry.zone.to_be_bytes());
            }
        });
        self.change(&request)
    }

    /// Sets `bit` in the mark of an entry. True when it was there.
    pub(crate) fn mark(&self, entry: &Entry, bit: u32) -> io::Result<bool> {
        let (source, destination) = entry.original;
        let request = message(MSG_NEW, FLAG_REQUEST | FLAG_ACK, family(source), |body| {
            push_tuple(body, Direction::Original, entry.protocol, source, destination);
            if entry.zone != 0 {
                push_attribute(body, ZONE, &entry.zone.to_be_bytes());
            }
            push_attribute(body, MARK, &bit.to_be_bytes());
            push_attribute(body, MARK_MASK, &bit.to_be_bytes());
        });
        self.change(&request)
    }

    /// Sends a change of one entry and waits for its acknowledgement. True when the entry was there.
    fn change(&self, request: &[u8]) -> io::Result<bool> {
        self.send(request)?;
        let mut buffer = vec![0; 4096];
        loop {
            let received = receive(&self.socket, &mut buffer)?;
            for message in messages(&buffer[..received]) {
                if kind(message) == NLMSG_ERROR {
                    return not_found_is(acknowledged(message).map(|()| true), false);
                }
            }
        }
    }

    fn send(&self, request: &[u8]) -> io::Result<()> {
        self.socket.send_to(request, &NetlinkAddress::new(0, 0), 0).map(drop)
    }
}

/// The events by which the kernel tells of UDP and SCTP entries that have ended.
#[derive(Debug)]
pub(crate) struct Endings {
    socket: Socket,
}

impl Endings {
    /// Joins the group. Entries that are older than this tell nothing where `nf_conntrack_events` is 2.
    pub(crate) fn open() -> io::Result<Self> {
        let mut socket = Socket::new(NETLINK_NETFILTER)?;
        socket.bind_auto()?;
        // Beyond net.core.rmem_max only with CAP_NET_ADMIN; without, events are lost sooner.
        if setsockopt(&socket, RcvBufForce, &RECEIVE_BUFFER).is_err() {
            socket.set_rx_buf_sz(RECEIVE_BUFFER)?;
        }
        // What a kernel refuses to filter is filtered here.
        let _ = SockRef::from(&socket).attach_filter(&only_datagrams());
        socket.add_membership(GROUP_DESTROY)?;
        socket.set_non_blocking(true)?;
        Ok(Self { socket })
    }

    /// The next entry that has ended; `None` for a message that tells of none. Errors: `WouldBlock` when there
    /// is none yet, ENOBUFS when some were lost.
    pub(crate) fn next(&self, buffer: &mut [u8]) -> io::Result<Option<Entry>> {
        let received = receive(&self.socket, buffer)?;
        let message = buffer.get(..received).unwrap_or_default();
        Ok(messages(message).next().filter(|message| kind(message) == MSG_DELETE).and_then(parse))
    }
}

impl AsRawFd for Endings {
    fn as_raw_fd(&self) -> RawFd {
        self.socket.as_raw_fd()
    }
}

/// Keeps back the ends of TCP connections, of which a node may have thousands a second. The kernel writes
/// the original tuple first, so that the protocol's number has a fixed place for each family
/// (`ctnetlink_conntrack_event`, `ctnetlink_dump_tuples`). What looks different passes.
fn only_datagrams() -> [SockFilter; 8] {
    const LOAD_BYTE: u16 = 0x30;
    const JUMP_EQUAL: u16 = 0x15;
    const RETURN: u16 = 0x06;
    const FAMILY: u32 = 16;
    // Headers, then the attribute headers of tuple, addresses (two of four or sixteen bytes), ports, number.
    const V4_PROTOCOL: u32 = 20 + 4 + (4 + 8 + 8) + 4 + 4;
    const V6_PROTOCOL: u32 = 20 + 4 + (4 + 20 + 20) + 4 + 4;
    [
        SockFilter::new(LOAD_BYTE, 0, 0, FAMILY),
        SockFilter::new(JUMP_EQUAL, 0, 2, u32::from(AF_INET)),
        SockFilter::new(LOAD_BYTE, 0, 0, V4_PROTOCOL),
        SockFilter::new(JUMP_EQUAL, 2, 1, TCP),
        SockFilter::new(LOAD_BYTE, 0, 0, V6_PROTOCOL),
        SockFilter::new(JUMP_EQUAL, 0, 1, TCP),
        SockFilter::new(RETURN, 0, 0, 0),
        SockFilter::new(RETURN, 0, 0, u32::MAX),
    ]
}

const AF_INET: u8 = 2;
const AF_INET6: u8 = 10;
const TCP: u32 = 6;

fn family(address: SocketAddr) -> u8 {
    if address.is_ipv4() { AF_INET } else { AF_INET6 }
}

fn number(protocol: Protocol) -> u8 {
    match protocol {
        Protocol::Tcp => 6,
        Protocol::Udp => 17,
        Protocol::Sctp => 132,
    }
}

fn receive(socket: &Socket, mut buffer: &mut [u8]) -> io::Result<usize> {
    let room = buffer.len();
    loop {
        match socket.recv(&mut buffer, 0) {
            Ok(received) => return Ok(received.min(room)),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
}

fn message(kind: u16, flags: u16, family: u8, body: impl FnOnce(&mut Vec<u8>)) -> Vec<u8> {
    let mut out = vec![0; HEADERS];
    out[4..6].copy_from_slice(&kind.to_ne_bytes());
    out[6..8].copy_from_slice(&flags.to_ne_bytes());
    out[16] = family;
    body(&mut out);
    let length = u32::try_from(out.len()).unwrap_or(u32::MAX);
    out[..4].copy_from_slice(&length.to_ne_bytes());
    out
}

fn push_tuple(
    out: &mut Vec<u8>,
    direction: Direction,
    protocol: Protocol,
    source: SocketAddr,
    destination: SocketAddr,
) {
    let (mut tuple, mut addresses, mut ports) = (Vec::new(), Vec::new(), Vec::new());
    for (index, address) in [source, destination].into_iter().enumerate() {
        let of_family = if index == 0 { [1, 3] } else { [2, 4] };
        match address.ip() {
            IpAddr::V4(ip) => push_attribute(&mut addresses, of_family[0], &ip.octets()),
            IpAddr::V6(ip) => push_attribute(&mut addresses, of_family[1], &ip.octets()),
        }
    }
    push_attribute(&mut ports, 1, &[number(protocol)]);
    push_attribute(&mut ports, 2, &source.port().to_be_bytes());
    push_attribute(&mut ports, 3, &destination.port().to_be_bytes());
    push_attribute(&mut tuple, 1 | NESTED, &addresses);
    push_attribute(&mut tuple, 2 | NESTED, &ports);
    let kind = match direction {
        Direction::Original => TUPLE_ORIG,
        Direction::Reply => TUPLE_REPLY,
    };
    push_attribute(out, kind | NESTED, &tuple);
}

/// Splits what was received into messages; stops at the first that does not fit.
fn messages(mut bytes: &[u8]) -> impl Iterator<Item = &[u8]> {
    std::iter::from_fn(move || {
        let length = usize::try_from(u32::from_ne_bytes(field(bytes, 0)?)).ok()?;
        let message = bytes.get(..length).filter(|_| length >= 16)?;
        bytes = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some(message)
    })
}

fn kind(message: &[u8]) -> u16 {
    field(message, 4).map_or(0, u16::from_ne_bytes)
}

fn acknowledged(message: &[u8]) -> io::Result<()> {
    match field(message, 16).map(i32::from_ne_bytes) {
        Some(0) => Ok(()),
        Some(code) => Err(io::Error::from_raw_os_error(code.saturating_neg())),
        None => Err(io::ErrorKind::UnexpectedEof.into()),
    }
}

fn not_found_is<T>(result: io::Result<T>, absent: T) -> io::Result<T> {
    match result {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(absent),
        result => result,
    }
}

/// One message to the entry it tells of; `None` for anything else, protocols without ports included.
fn parse(message: &[u8]) -> Option<Entry> {
    let (mut original, mut reply) = (None, None);
    let (mut mark, mut id, mut zone) = (0, None, 0);
    let (mut sent, mut received, mut is_over) = (None, None, false);
    for (kind, value) in attributes(message.get(HEADERS..)?) {
        match kind {
            TUPLE_ORIG => original = Some(parse_tuple(value)?),
            TUPLE_REPLY => reply = Some(parse_tuple(value)?),
            // CTA_PROTOINFO_TCP, CTA_PROTOINFO_TCP_STATE.
            PROTOCOL_INFO => {
                let state = attribute(value, 1).and_then(|tcp| attribute(tcp, 1)).and_then(|v| v.first());
                is_over = state.is_some_and(|state| TCP_OVER.contains(state));
            }
            MARK => mark = u32::from_be_bytes(field(value, 0)?),
            ID => id = Some(u32::from_be_bytes(field(value, 0)?)),
            ZONE => zone = u16::from_be_bytes(field(value, 0)?),
            COUNTERS_ORIG => sent = Some(parse_counters(value)?),
            COUNTERS_REPLY => received = Some(parse_counters(value)?),
            _ => {}
        }
    }
    let ((protocol, original), (_, reply)) = (original?, reply?);
    Some(Entry { protocol, original, reply, mark, id, zone, counted: sent.zip(received), is_over })
}

fn parse_tuple(tuple: &[u8]) -> Option<(Protocol, (SocketAddr, SocketAddr))> {
    let (addresses, ports) = (attribute(tuple, 1)?, attribute(tuple, 2)?);
    let protocol = match attribute(ports, 1)? {
        [6, ..] => Protocol::Tcp,
        [17, ..] => Protocol::Udp,
        [132, ..] => Protocol::Sctp,
        _ => return None,
    };
    let end = |v4: u16, v6: u16, port: u16| {
        let ip = match (attribute(addresses, v4), attribute(addresses, v6)) {
            (Some(ip), _) => IpAddr::V4(Ipv4Addr::from(field::<4>(ip, 0)?)),
            (None, Some(ip)) => IpAddr::V6(Ipv6Addr::from(field::<16>(ip, 0)?)),
            (None, None) => return None,
        };
        Some(SocketAddr::new(ip, u16::from_be_bytes(field(attribute(ports, port)?, 0)?)))
    };
    Some((protocol, (end(1, 3, 2)?, end(2, 4, 3)?)))
}

fn parse_counters(counters: &[u8]) -> Option<Counted> {
    let number = |kind| attribute(counters, kind).and_then(|value| field(value, 0)).map(u64::from_be_bytes);
    Some(Counted { packets: number(1)?, bytes: number(2)? })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn entry() -> Entry {
        let address = |text: &str| text.parse().unwrap();
        Entry {
            protocol: Protocol::Udp,
            original: (address("10.0.0.1:40000"), address("10.96.0.10:53")),
            reply: (address("10.0.0.2:5353"), address("10.0.0.1:40000")),
            mark: 0x40,
            id: Some(7),
            zone: 0,
            counted: Some((Counted { packets: 1, bytes: 60 }, Counted { packets: 2, bytes: 200 })),
            is_over: false,
        }
    }

    fn told(entry: &Entry) -> Vec<u8> {
        message(MSG_DELETE, 0, family(entry.original.0), |body| {
            for (direction, (source, destination)) in
                [(Direction::Original, entry.original), (Direction::Reply, entry.reply)]
            {
                push_tuple(body, direction, entry.protocol, source, destination);
            }
            push_attribute(body, MARK, &entry.mark.to_be_bytes());
            if let Some((sent, received)) = entry.counted {
                for (kind, counted) in [(COUNTERS_ORIG, sent), (COUNTERS_REPLY, received)] {
                    let mut value = Vec::new();
                    push_attribute(&mut value, 1, &counted.packets.to_be_bytes());
                    push_attribute(&mut value, 2, &counted.bytes.to_be_bytes());
                    push_attribute(body, kind | NESTED, &value);
                }
            }
            if let Some(id) = entry.id {
                push_attribute(body, ID, &id.to_be_bytes());
            }
            if entry.protocol == Protocol::Tcp {
                let (mut tcp, mut info) = (Vec::new(), Vec::new());
                push_attribute(&mut tcp, 1, &[if entry.is_over { 7 } else { 3 }]);
                push_attribute(&mut info, 1 | NESTED, &tcp);
                push_attribute(body, PROTOCOL_INFO | NESTED, &info);
            }
        })
    }

    #[test]
    fn a_tcp_connection_tells_whether_it_is_over() {
        for is_over in [false, true] {
            let entry = Entry { protocol: Protocol::Tcp, is_over, ..entry() };
            assert_eq!(parse(&told(&entry)), Some(entry));
        }
    }

    #[test]
    fn an_entry_is_read_as_it_was_told_and_names_client_backend_and_dialled_address() {
        let entry = entry();
        assert_eq!(parse(&told(&entry)), Some(entry));
        assert_eq!(entry.tuple().client.0, entry.original.0);
        assert_eq!(entry.tuple().destination.0, entry.reply.0);
        assert_eq!(entry.dialed(), entry.original.1);
        let uncounted = Entry { counted: None, ..entry };
        assert_eq!(parse(&told(&uncounted)), Some(uncounted));
    }

    #[test]
    fn the_protocol_stands_where_the_filter_looks_for_it() {
        let four = told(&entry());
        assert_eq!((four[16], four[52]), (AF_INET, 17));
        let address = |text: &str| text.parse().unwrap();
        let six = told(&Entry {
            original: (address("[fd00::1]:1"), address("[fd00::2]:2")),
            reply: (address("[fd00::2]:2"), address("[fd00::1]:1")),
            ..entry()
        });
        assert_eq!((six[16], six[76]), (AF_INET6, 17));
    }

    proptest! {
        #[test]
        fn no_bytes_make_the_parser_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            messages(&bytes).for_each(|message| {
                let _ = parse(message);
            });
            let _ = parse(&bytes);
        }

        #[test]
        fn no_damage_to_a_message_makes_the_parser_panic(at in 0usize..260, value: u8, keep in 0usize..300) {
            let mut message = told(&entry());
            if let Some(byte) = message.get_mut(at) {
                *byte = value;
            }
            message.truncate(keep);
            messages(&message).for_each(|message| {
                let _ = parse(message);
            });
            let _ = parse(&message);
        }
    }
}
