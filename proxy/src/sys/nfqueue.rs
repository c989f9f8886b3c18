//! The kernel's queue of held packets: nfnetlink_queue, spoken over a netlink socket.
//!
//! Turns queued packets into [`Packet`]s and verdicts into messages. Source: netlink(7),
//! include/uapi/linux/netfilter/nfnetlink_queue.h, net/netfilter/nfnetlink_queue.c.

use std::io::{self, IoSliceMut};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::{AsRawFd, RawFd};

use netlink_sys::{Socket, SocketAddr as NetlinkAddress, protocols::NETLINK_NETFILTER};
use nix::sys::socket::{MsgFlags, MultiHeaders, NetlinkAddr, recvmmsg, setsockopt, sockopt::RcvBufForce};

const SUBSYSTEM: u16 = 3 << 8;
const MSG_PACKET: u16 = SUBSYSTEM;
const MSG_VERDICT: u16 = SUBSYSTEM | 1;
const MSG_CONFIG: u16 = SUBSYSTEM | 2;
/// Of every netlink message: the type of an answer that is an error, and flags. Source: netlink(7).
pub(super) const NLMSG_ERROR: u16 = 2;
pub(super) const FLAG_REQUEST: u16 = 1;
pub(super) const FLAG_ACK: u16 = 4;

const CFG_CMD: u16 = 1;
const CFG_PARAMS: u16 = 2;
const CFG_QUEUE_MAXLEN: u16 = 3;
const CFG_MASK: u16 = 4;
const CFG_FLAGS: u16 = 5;
const CFG_F_CONNTRACK: u32 = 2;

const ATTR_PACKET_HDR: u16 = 1;
const ATTR_VERDICT_HDR: u16 = 2;
const ATTR_MARK: u16 = 3;
const ATTR_PAYLOAD: u16 = 10;
const ATTR_CT: u16 = 11;
const ATTR_TYPE_MASK: u16 = 0x3fff;

const NF_DROP: u32 = 0;
const NF_ACCEPT: u32 = 1;

/// Bytes of a packet that are copied: room for an IPv6 header with extensions and a full TCP header.
const COPY_RANGE: u32 = 256;
/// Packets read in one system call.
const BATCH: usize = 32;
/// Room for one message: headers, attributes, `COPY_RANGE` of packet and the conntrack tuples.
const MESSAGE: usize = 2_048;
/// Bytes asked for the socket's receive buffer; each queued message costs it about 1 KiB.
const RECEIVE_BUFFER: usize = 16 << 20;

/// One held packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Packet<'a> {
    /// The kernel's number of it, for the verdict.
    pub(crate) id: u32,
    /// Its mark.
    pub(crate) mark: u32,
    /// The packet from its IP header on, at most `COPY_RANGE` bytes.
    pub(crate) payload: &'a [u8],
    /// Destination before DNAT, when conntrack knows it.
    pub(crate) dialed: Option<SocketAddr>,
}

/// What becomes of a held packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum PacketVerdict {
    /// It goes on, its mark unchanged.
    Accept,
    /// It goes on with this mark, which a later rule acts upon.
    AcceptWithMark(u32),
    /// It vanishes.
    Drop,
}

/// What the kernel says of a queue.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct QueueState {
    /// Packets that wait for a verdict.
    pub(crate) waiting: u64,
    /// Packets that found no room, in the kernel's queue or in the socket, since the queue was bound.
    pub(crate) dropped: u64,
}

/// One bound queue.
#[derive(Debug)]
pub(crate) struct Queue {
    socket: Socket,
    number: u16,
}

/// Room for one batch of messages, reused from read to read.
#[derive(Debug)]
pub(crate) struct Batch {
    buffers: Box<[[u8; MESSAGE]; BATCH]>,
    lengths: [usize; BATCH],
    received: usize,
}

impl Batch {
    pub(crate) fn new() -> Self {
        Self { buffers: Box::new([[0; MESSAGE]; BATCH]), lengths: [0; BATCH], received: 0 }
    }

    /// The packets of the last read. Messages that are no packet or cannot be parsed are `None`.
    pub(crate) fn packets(&self) -> impl Iterator<Item = Option<Packet<'_>>> {
        self.buffers
            .iter()
            .zip(self.lengths)
            .take(self.received)
            .map(|(buffer, length)| parse(&buffer[..length]))
    }

    /// How many messages the last read brought.
    pub(crate) fn len(&self) -> usize {
        self.received
    }

    /// True when the last read may have left messages behind.
    pub(crate) fn is_full(&self) -> bool {
        self.received == BATCH
    }
}

impl Queue {
    /// Binds queue `number` of this network namespace, to hold at most `max_held` packets.
    ///
    /// Errors: EPERM without CAP_NET_ADMIN, EBUSY when another process holds the queue, ENOENT or
    /// EOPNOTSUPP when the kernel lacks nfnetlink_queue.
    pub(crate) fn bind(number: u16, max_held: u32) -> io::Result<Self> {
        let mut socket = Socket::new(NETLINK_NETFILTER)?;
        socket.bind_auto()?;
        // The root of the namespace may exceed net.core.rmem_max; others get what the limit allows.
        if setsockopt(&socket, RcvBufForce, &RECEIVE_BUFFER).is_err() {
            socket.set_rx_buf_sz(i32::try_from(RECEIVE_BUFFER).unwrap_or(i32::MAX))?;
        }
        // Overflow then drops the packet (its kernel sends it again) without poisoning the next read.
        socket.set_no_enobufs(true)?;
        let queue = Self { socket, number };
        queue.configure(CFG_CMD, &[1, 0, 0, 0]).map_err(|cause| match cause.raw_os_error() {
            // To a stranger the kernel refuses a queue that is taken before it would call it busy
            // (nfqnl_recv_config in nfnetlink_queue.c). Without privilege the table cannot be read either.
            Some(nix::libc::EPERM) if queue.state().is_some() => {
                io::Error::from_raw_os_error(nix::libc::EBUSY)
            }
            _ => cause,
        })?;
        let range = COPY_RANGE.to_be_bytes();
        queue.configure(CFG_PARAMS, &[range[0], range[1], range[2], range[3], 2])?;
        queue.configure(CFG_QUEUE_MAXLEN, &max_held.to_be_bytes())?;
        queue.request_conntrack();
        queue.socket.set_non_blocking(true)?;
        Ok(queue)
    }

    /// Reads the packets that wait, at most a batch. `WouldBlock` when there are none. Source: recvmmsg(2).
    pub(crate) fn read(&self, batch: &mut Batch) -> io::Result<()> {
        batch.received = 0;
        let mut slices = batch.buffers.each_mut().map(|buffer| [IoSliceMut::new(buffer)]);
        let mut headers = MultiHeaders::<NetlinkAddr>::preallocate(BATCH, None);
        let messages =
            recvmmsg(self.socket.as_raw_fd(), &mut headers, slices.iter_mut(), MsgFlags::MSG_DONTWAIT, None)?;
        for (slot, message) in batch.lengths.iter_mut().zip(messages) {
            *slot = message.bytes;
            batch.received += 1;
        }
        Ok(())
    }

    /// Gives verdicts, several in one system call. The kernel carries each packet on within this call.
    pub(crate) fn verdicts(&self, verdicts: &[(u32, PacketVerdict)]) -> io::Result<()> {
        let mut message = Vec::with_capacity(verdicts.len() * 44);
        for &(id, verdict) in verdicts {
            let (code, mark) = match verdict {
                PacketVerdict::Accept => (NF_ACCEPT, None),
                PacketVerdict::AcceptWithMark(mark) => (NF_ACCEPT, Some(mark)),
                PacketVerdict::Drop => (NF_DROP, None),
            };
            let mut header = [0; 8];
            header[..4].copy_from_slice(&code.to_be_bytes());
            header[4..].copy_from_slice(&id.to_be_bytes());
            push_message(&mut message, MSG_VERDICT, FLAG_REQUEST, self.number, |body| {
                push_attribute(body, ATTR_VERDICT_HDR, &header);
                if let Some(mark) = mark {
                    push_attribute(body, ATTR_MARK, &mark.to_be_bytes());
                }
            });
        }
        self.socket.send(&message, 0).map(drop)
    }

    /// What the kernel says of the queue while it is bound.
    /// Source: `/proc/net/netfilter/nfnetlink_queue`, columns 3, 6 and 7 (`seq_show` in nfnetlink_queue.c).
    pub(crate) fn state(&self) -> Option<QueueState> {
        let table = std::fs::read_to_string("/proc/thread-self/net/netfilter/nfnetlink_queue").ok()?;
        table.lines().find_map(|line| {
            let columns: Vec<u64> = line.split_whitespace().map_while(|column| column.parse().ok()).collect();
            match columns[..] {
                [number, _, waiting, _, _, queue, user, ..] if number == u64::from(self.number) => {
                    Some(QueueState { waiting, dropped: queue + user })
                }
                _ => None,
            }
        })
    }

    fn configure(&self, attribute: u16, value: &[u8]) -> io::Result<()> {
        let mut message = Vec::new();
        push_message(&mut message, MSG_CONFIG, FLAG_REQUEST | FLAG_ACK, self.number, |body| {
            push_attribute(body, attribute, value);
        });
        self.exchange(&message)
    }

    /// Asks for the conntrack tuple of each packet. A kernel without the glue refuses; records then learn the
    /// dialled address of carried connections only, from the accepted socket.
    fn request_conntrack(&self) {
        let mut message = Vec::new();
        push_message(&mut message, MSG_CONFIG, FLAG_REQUEST | FLAG_ACK, self.number, |body| {
            push_attribute(body, CFG_FLAGS, &CFG_F_CONNTRACK.to_be_bytes());
            push_attribute(body, CFG_MASK, &CFG_F_CONNTRACK.to_be_bytes());
        });
        if let Err(error) = self.exchange(&message) {
            tracing::info!(%error, "the queue tells no conntrack tuples");
        }
    }

    fn exchange(&self, message: &[u8]) -> io::Result<()> {
        self.socket.send_to(message, &NetlinkAddress::new(0, 0), 0)?;
        // Once bound, packets may arrive before the acknowledgement: dropped, their kernels send them again.
        loop {
            let (reply, _) = self.socket.recv_from_full()?;
            match field::<2>(&reply, 4).map(u16::from_ne_bytes) {
                Some(NLMSG_ERROR) => {
                    let code = field::<4>(&reply, 16).map_or(0, i32::from_ne_bytes);
                    return if code == 0 { Ok(()) } else { Err(io::Error::from_raw_os_error(-code)) };
                }
                Some(_) => {
                    if let Some(packet) = parse(&reply) {
                        self.verdicts(&[(packet.id, PacketVerdict::Drop)])?;
                    }
                }
                None => return Err(io::ErrorKind::UnexpectedEof.into()),
            }
        }
    }
}

impl AsRawFd for Queue {
    fn as_raw_fd(&self) -> RawFd {
        self.socket.as_raw_fd()
    }
}

pub(super) fn push_message(
    out: &mut Vec<u8>,
    kind: u16,
    flags: u16,
    queue: u16,
    body: impl FnOnce(&mut Vec<u8>),
) {
    let start = out.len();
    out.extend_from_slice(&[0; 4]);
    out.extend_from_slice(&kind.to_ne_bytes());
    out.extend_from_slice(&flags.to_ne_bytes());
    out.extend_from_slice(&[0; 8]);
    out.extend_from_slice(&[0, 0]);
    out.extend_from_slice(&queue.to_be_bytes());
    body(out);
    let length = u32::try_from(out.len() - start).unwrap_or(u32::MAX);
    out[start..start + 4].copy_from_slice(&length.to_ne_bytes());
}

pub(super) fn push_attribute(out: &mut Vec<u8>, kind: u16, value: &[u8]) {
    let length = u16::try_from(value.len() + 4).unwrap_or(u16::MAX);
    out.extend_from_slice(&length.to_ne_bytes());
    out.extend_from_slice(&kind.to_ne_bytes());
    out.extend_from_slice(value);
    out.resize(out.len().next_multiple_of(4), 0);
}

pub(super) fn field<const N: usize>(bytes: &[u8], at: usize) -> Option<[u8; N]> {
    bytes.get(at..at + N)?.try_into().ok()
}

/// A message with this packet, as the kernel sends it.
#[cfg(feature = "stages")]
pub(crate) fn message_with(packet: &[u8]) -> Vec<u8> {
    let mut message = Vec::new();
    push_message(&mut message, MSG_PACKET, 0, 0, |body| {
        push_attribute(body, ATTR_PACKET_HDR, &[0, 0, 0, 9, 8, 0, 1]);
        push_attribute(body, ATTR_MARK, &2u32.to_be_bytes());
        push_attribute(body, ATTR_PAYLOAD, packet);
    });
    message
}

/// One netlink message to the packet it carries; `None` for anything else.
pub(crate) fn parse(message: &[u8]) -> Option<Packet<'_>> {
    let length = usize::try_from(u32::from_ne_bytes(field(message, 0)?)).ok()?;
    let message = message.get(..length)?;
    if u16::from_ne_bytes(field(message, 4)?) != MSG_PACKET {
        return None;
    }
    let (mut id, mut mark, mut payload, mut dialed) = (None, 0, None, None);
    for (kind, value) in attributes(message.get(20..)?) {
        match kind {
            ATTR_PACKET_HDR => id = Some(u32::from_be_bytes(field(value, 0)?)),
            ATTR_MARK => mark = u32::from_be_bytes(field(value, 0)?),
            ATTR_PAYLOAD => payload = Some(value),
            ATTR_CT => dialed = original_destination(value),
            _ => {}
        }
    }
    Some(Packet { id: id?, mark, payload: payload?, dialed })
}

/// The destination of CTA_TUPLE_ORIG. Source: include/uapi/linux/netfilter/nfnetlink_conntrack.h.
fn original_destination(conntrack: &[u8]) -> Option<SocketAddr> {
    let tuple = attribute(conntrack, 1)?;
    let addresses = attribute(tuple, 1)?;
    let ip = match (attribute(addresses, 2), attribute(addresses, 4)) {
        (Some(v4), _) => IpAddr::V4(Ipv4Addr::from(field::<4>(v4, 0)?)),
        (None, Some(v6)) => IpAddr::V6(Ipv6Addr::from(field::<16>(v6, 0)?)),
        (None, None) => return None,
    };
    let port = attribute(attribute(tuple, 2)?, 3)?;
    Some(SocketAddr::new(ip, u16::from_be_bytes(field(port, 0)?)))
}

pub(super) fn attribute(bytes: &[u8], wanted: u16) -> Option<&[u8]> {
    attributes(bytes).find(|(kind, _)| *kind == wanted).map(|(_, value)| value)
}

/// Walks attributes; stops at the first that does not fit.
pub(super) fn attributes(mut bytes: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    std::iter::from_fn(move || {
        let length = usize::from(u16::from_ne_bytes(field(bytes, 0)?));
        let kind = u16::from_ne_bytes(field(bytes, 2)?) & ATTR_TYPE_MASK;
        let value = bytes.get(4..length)?;
        bytes = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some((kind, value))
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn packet_message() -> Vec<u8> {
        let mut tuple = Vec::new();
        let mut addresses = Vec::new();
        push_attribute(&mut addresses, 1, &[10, 0, 0, 1]);
        push_attribute(&mut addresses, 2, &[10, 96, 0, 1]);
        push_attribute(&mut tuple, 1 | 0x8000, &addresses);
        let mut ports = Vec::new();
        push_attribute(&mut ports, 1, &[6]);
        push_attribute(&mut ports, 3, &443u16.to_be_bytes());
        push_attribute(&mut tuple, 2 | 0x8000, &ports);
        let mut conntrack = Vec::new();
        push_attribute(&mut conntrack, 1 | 0x8000, &tuple);
        let mut message = Vec::new();
        push_message(&mut message, MSG_PACKET, 0, 7, |body| {
            push_attribute(body, ATTR_PACKET_HDR, &[0, 0, 0, 9, 8, 0, 1]);
            push_attribute(body, ATTR_MARK, &2u32.to_be_bytes());
            push_attribute(body, ATTR_PAYLOAD, b"packet");
            push_attribute(body, ATTR_CT | 0x8000, &conntrack);
        });
        message
    }

    #[test]
    fn a_packet_message_gives_id_mark_payload_and_the_dialled_address() {
        let message = packet_message();
        let expected =
            Packet { id: 9, mark: 2, payload: b"packet", dialed: Some("10.96.0.1:443".parse().unwrap()) };
        assert_eq!(parse(&message), Some(expected));
    }

    proptest! {
        #[test]
        fn no_bytes_make_the_parser_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = parse(&bytes);
        }

        #[test]
        fn no_damage_to_a_message_makes_the_parser_panic(at in 0usize..120, value: u8, keep in 0usize..160) {
            let mut message = packet_message();
            if let Some(byte) = message.get_mut(at) {
                *byte = value;
            }
            message.truncate(keep);
            let _ = parse(&message);
        }
    }
}
