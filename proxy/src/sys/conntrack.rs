//! The kernel's table of connections: read whole, and marked one by one, over ctnetlink.
//!
//! Blocking: for a thread that carries nothing. Source: include/uapi/linux/netfilter/nfnetlink_conntrack.h,
//! net/netfilter/nf_conntrack_netlink.c, nf_conntrack_proto_tcp.c.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::{Duration, SystemTime};

use netlink_sys::{Socket, SocketAddr as NetlinkAddress, protocols::NETLINK_NETFILTER};
use nix::sys::socket::{setsockopt, sockopt::ReceiveTimeout};
use nix::sys::time::{TimeVal, TimeValLike};

use super::nfqueue::{
    FLAG_ACK, FLAG_REQUEST, NLMSG_ERROR, attribute, attributes, field, push_attribute, push_message,
};

const SUBSYSTEM: u16 = 1 << 8;
const MSG_NEW: u16 = SUBSYSTEM;
const MSG_GET: u16 = SUBSYSTEM | 1;
const NLMSG_DONE: u16 = 3;
const FLAG_DUMP: u16 = 0x300;
const NESTED: u16 = 0x8000;

const TUPLE_ORIGINAL: u16 = 1;
const TUPLE_REPLY: u16 = 2;
const PROTOCOL_INFO: u16 = 4;
const MARK: u16 = 8;
const COUNTERS_ORIGINAL: u16 = 9;
const COUNTERS_REPLY: u16 = 10;
const ZONE: u16 = 18;
const TIMESTAMP: u16 = 20;
const MARK_MASK: u16 = 21;

const TCP: u8 = 6;
/// SYN_RECV, ESTABLISHED, FIN_WAIT and CLOSE_WAIT: bytes may still come, in one direction at least.
const LIVE_STATES: std::ops::RangeInclusive<u8> = 2..=5;
/// `IP_CT_TCP_FLAG_BE_LIBERAL`: the kernel came to the connection in its middle.
const PICKED_UP: u8 = 0x08;

/// How long the kernel may take for one answer.
const ANSWER_LIMIT_S: i64 = 10;

/// A TCP connection in the kernel's table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Entry {
    /// Who opened it, as far as the kernel saw that.
    pub(crate) client: SocketAddr,
    /// Where it was opened to, before translation.
    pub(crate) dialed: SocketAddr,
    /// Who answers: the destination after translation.
    pub(crate) destination: SocketAddr,
    /// False when the kernel came to it in its middle: the client may be the server.
    pub(crate) opening_seen: bool,
    /// When it was opened, where the kernel notes it (`nf_conntrack_timestamp`).
    pub(crate) since: Option<SystemTime>,
    /// Packets and bytes, headers included, from the client and to it, where the kernel counts them
    /// (`nf_conntrack_acct`).
    pub(crate) counted: Option<[Counted; 2]>,
    key: Key,
}

/// What one direction has carried.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Counted {
    pub(crate) packets: u64,
    pub(crate) bytes: u64,
}

/// What the kernel knows an entry by: the original tuple as it wrote it, and the zone.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Key {
    original: Vec<u8>,
    zone: Option<[u8; 2]>,
}

/// A socket to the table of this thread's network namespace.
#[derive(Debug)]
pub(crate) struct Conntrack(Socket);

impl Conntrack {
    pub(crate) fn open() -> io::Result<Self> {
        let mut socket = Socket::new(NETLINK_NETFILTER)?;
        socket.bind_auto()?;
        setsockopt(&socket, ReceiveTimeout, &TimeVal::seconds(ANSWER_LIMIT_S))?;
        Ok(Self(socket))
    }

    /// Hands the live TCP connections whose mark has none of `bits` to `each`, in no order.
    ///
    /// Errors: EPERM without CAP_NET_ADMIN, EINVAL or EOPNOTSUPP when the kernel lacks ctnetlink.
    pub(crate) fn unmarked(&self, bits: u32, mut each: impl FnMut(Entry)) -> io::Result<()> {
        let mut request = Vec::new();
        push_message(&mut request, MSG_GET, FLAG_REQUEST | FLAG_DUMP, 0, |body| {
            push_attribute(body, MARK, &0_u32.to_be_bytes());
            push_attribute(body, MARK_MASK, &bits.to_be_bytes());
        });
        self.0.send_to(&request, &NetlinkAddress::new(0, 0), 0)?;
        loop {
            let (answer, _) = self.0.recv_from_full()?;
            let mut rest = answer.as_slice();
            while let Some((kind, message, after)) = next_message(rest) {
                match kind {
                    NLMSG_DONE => return Ok(()),
                    NLMSG_ERROR => return outcome(message),
                    // Old kernels do not filter by mark.
                    MSG_NEW => parse(message)
                        .filter(|(_, mark)| mark & bits == 0)
                        .into_iter()
                        .for_each(|(entry, _)| each(entry)),
                    _ => {}
                }
                rest = after;
            }
        }
    }

    /// Sets `bit` in the mark of an entry. False when the entry is no longer there.
    pub(crate) fn mark(&self, entry: &Entry, bit: u32) -> io::Result<bool> {
        let mut request = Vec::new();
        push_message(&mut request, MSG_NEW, FLAG_REQUEST | FLAG_ACK, 0, |body| {
            push_attribute(body, TUPLE_ORIGINAL | NESTED, &entry.key.original);
            if let Some(zone) = entry.key.zone {
                push_attribute(body, ZONE, &zone);
            }
            push_attribute(body, MARK, &bit.to_be_bytes());
            push_attribute(body, MARK_MASK, &bit.to_be_bytes());
        });
        // nfgen_family, behind the header: tuples are read by it.
        request[16] = if entry.client.is_ipv4() { 2 } else { 10 };
        self.0.send_to(&request, &NetlinkAddress::new(0, 0), 0)?;
        let (answer, _) = self.0.recv_from_full()?;
        match outcome(&answer) {
            Ok(()) => Ok(true),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
            Err(error) => Err(error),
        }
    }
}

/// The first message of several: its kind, itself, and what follows.
fn next_message(bytes: &[u8]) -> Option<(u16, &[u8], &[u8])> {
    let length = usize::try_from(u32::from_ne_bytes(field(bytes, 0)?)).ok()?;
    let message = bytes.get(..length).filter(|message| message.len() >= 16)?;
    let kind = u16::from_ne_bytes(field(message, 4)?);
    Some((kind, message, bytes.get(length.next_multiple_of(4)..).unwrap_or_default()))
}

fn outcome(message: &[u8]) -> io::Result<()> {
    match field(message, 16).map(i32::from_ne_bytes) {
        Some(0) => Ok(()),
        Some(number) => Err(io::Error::from_raw_os_error(-number)),
        None => Err(io::ErrorKind::UnexpectedEof.into()),
    }
}

/// One message to the live TCP connection it tells of, and its mark.
fn parse(message: &[u8]) -> Option<(Entry, u32)> {
    let body = message.get(20..)?;
    let (mut original, mut reply, mut info, mut mark, mut zone) = (None, None, None, 0, None);
    let (mut counted, mut since) = ([None; 2], None);
    for (kind, value) in attributes(body) {
        match kind {
            TUPLE_ORIGINAL => original = Some(value),
            TUPLE_REPLY => reply = Some(value),
            PROTOCOL_INFO => info = attribute(value, 1),
            MARK => mark = u32::from_be_bytes(field(value, 0)?),
            ZONE => zone = Some(field(value, 0)?),
            COUNTERS_ORIGINAL => counted[0] = counters(value),
            COUNTERS_REPLY => counted[1] = counters(value),
            TIMESTAMP => since = attribute(value, 1).and_then(|start| field(start, 0)),
            _ => {}
        }
    }
    let (original, info) = (original?, info?);
    let ((client, dialed), (destination, _)) = (ends(original)?, ends(reply?)?);
    let [state] = field::<1>(attribute(info, 1)?, 0)?;
    let picked_up =
        |kind| attribute(info, kind).is_some_and(|flags| flags.first().is_some_and(|f| f & PICKED_UP != 0));
    let entry = Entry {
        client,
        dialed,
        destination,
        opening_seen: !(picked_up(4) && picked_up(5)),
        since: since.map(|start| SystemTime::UNIX_EPOCH + Duration::from_nanos(u64::from_be_bytes(start))),
        counted: counted[0].zip(counted[1]).map(|(from, to)| [from, to]),
        key: Key { original: original.to_vec(), zone },
    };
    LIVE_STATES.contains(&state).then_some((entry, mark))
}

/// Source and destination of a TCP tuple.
fn ends(tuple: &[u8]) -> Option<(SocketAddr, SocketAddr)> {
    let (addresses, protocol) = (attribute(tuple, 1)?, attribute(tuple, 2)?);
    if attribute(protocol, 1)? != [TCP] {
        return None;
    }
    let ip = |v4, v6| match (attribute(addresses, v4), attribute(addresses, v6)) {
        (Some(v4), _) => Some(IpAddr::V4(Ipv4Addr::from(field::<4>(v4, 0)?))),
        (None, Some(v6)) => Some(IpAddr::V6(Ipv6Addr::from(field::<16>(v6, 0)?))),
        (None, None) => None,
    };
    let port = |kind| Some(u16::from_be_bytes(field(attribute(protocol, kind)?, 0)?));
    Some((SocketAddr::new(ip(1, 3)?, port(2)?), SocketAddr::new(ip(2, 4)?, port(3)?)))
}

fn counters(value: &[u8]) -> Option<Counted> {
    let number = |kind| Some(u64::from_be_bytes(field(attribute(value, kind)?, 0)?));
    Some(Counted { packets: number(1)?, bytes: number(2)? })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn nested(out: &mut Vec<u8>, kind: u16, body: impl FnOnce(&mut Vec<u8>)) {
        let mut value = Vec::new();
        body(&mut value);
        push_attribute(out, kind | NESTED, &value);
    }

    fn tuple(out: &mut Vec<u8>, kind: u16, from: (&[u8; 4], u16), to: (&[u8; 4], u16), protocol: u8) {
        nested(out, kind, |tuple| {
            nested(tuple, 1, |addresses| {
                push_attribute(addresses, 1, from.0);
                push_attribute(addresses, 2, to.0);
            });
            nested(tuple, 2, |ports| {
                push_attribute(ports, 1, &[protocol]);
                push_attribute(ports, 2, &from.1.to_be_bytes());
                push_attribute(ports, 3, &to.1.to_be_bytes());
            });
        });
    }

    /// A pod that dialled a ClusterIP, as the kernel tells of it.
    fn message(protocol: u8, state: u8, flags: u8) -> Vec<u8> {
        let (pod, service, backend) = ([10, 244, 1, 2], [10, 96, 0, 1], [10, 244, 1, 3]);
        let mut message = Vec::new();
        push_message(&mut message, MSG_NEW, 0, 0, |body| {
            tuple(body, TUPLE_ORIGINAL, (&pod, 40_000), (&service, 80), protocol);
            tuple(body, TUPLE_REPLY, (&backend, 8080), (&pod, 40_000), protocol);
            nested(body, PROTOCOL_INFO, |info| {
                nested(info, 1, |tcp| {
                    push_attribute(tcp, 1, &[state]);
                    push_attribute(tcp, 4, &[flags, 0xff]);
                    push_attribute(tcp, 5, &[flags, 0xff]);
                });
            });
            push_attribute(body, MARK, &0x44_u32.to_be_bytes());
            for (kind, bytes) in [(COUNTERS_ORIGINAL, 600_u64), (COUNTERS_REPLY, 900)] {
                nested(body, kind, |counters| {
                    push_attribute(counters, 1, &7_u64.to_be_bytes());
                    push_attribute(counters, 2, &bytes.to_be_bytes());
                });
            }
        });
        message
    }

    #[test]
    fn an_entry_tells_who_opened_it_to_whom_and_who_answers() {
        let message = message(TCP, 3, 0);
        let (kind, message, rest) = next_message(&message).unwrap();
        assert_eq!((kind, rest.len()), (MSG_NEW, 0));
        let (entry, mark) = parse(message).unwrap();
        assert_eq!(entry.client, "10.244.1.2:40000".parse().unwrap());
        assert_eq!(entry.dialed, "10.96.0.1:80".parse().unwrap());
        assert_eq!(entry.destination, "10.244.1.3:8080".parse().unwrap());
        assert_eq!(entry.counted.unwrap().map(|counted| counted.bytes), [600, 900]);
        assert!(entry.opening_seen && entry.since.is_none() && mark == 0x44);
    }

    #[test]
    fn only_live_tcp_connections_are_told_and_those_met_in_their_middle_as_such() {
        for (protocol, state, told) in [
            (TCP, 1, false),
            (TCP, 2, true),
            (TCP, 5, true),
            (TCP, 6, false),
            (TCP, 7, false),
            (17, 3, false),
        ] {
            assert_eq!(parse(&message(protocol, state, 0)).is_some(), told, "{protocol} {state}");
        }
        assert!(!parse(&message(TCP, 3, 0x0a)).unwrap().0.opening_seen);
    }

    proptest! {
        #[test]
        fn no_damage_to_a_message_makes_the_parser_panic(at in 0_usize..300, value: u8, keep in 0_usize..320) {
            let mut message = message(TCP, 3, 0);
            if let Some(byte) = message.get_mut(at) {
                *byte = value;
            }
            message.truncate(keep);
            if let Some((_, message, _)) = next_message(&message) {
                let _ = parse(message);
            }
            let _ = parse(&message);
        }
    }
}
