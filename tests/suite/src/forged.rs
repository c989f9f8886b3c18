//! Packets that no honest stack sends, byte by byte, and an ear for what of them arrives. Whoever may open a raw socket in
//! a pod can send these.

use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::os::fd::{AsRawFd, OwnedFd};

use lab::Netns;
use nix::errno::Errno;
use nix::libc;
use nix::sys::socket::{AddressFamily, LinkAddr, SockFlag, SockProtocol, SockType, recvfrom, socket};
use socket2::{Domain, Protocol, Socket, Type};

use crate::sctp::crc32c;

/// RFC 768.
pub const UDP: u8 = 17;
/// RFC 9293.
pub const TCP: u8 = 6;
/// RFC 9260.
pub const SCTP: u8 = 132;
/// An extension header of IPv6: its number, and its bytes, of which the first, the next header, is filled in.
pub type Extension = (u8, Vec<u8>);

/// A fragment with others behind it, at offset 0 (RFC 791).
pub const MORE: u16 = 0x2000;

/// Sends whole packets from a namespace, of both families: raw(7), `IPPROTO_RAW`.
#[derive(Debug)]
pub struct Forger {
    four: Socket,
    six: Socket,
}

impl Forger {
    /// Opens the sockets inside `netns`.
    ///
    /// # Panics
    /// Without privilege.
    pub fn open(netns: &Netns) -> Self {
        let raw = |domain| {
            let protocol = Protocol::from(libc::IPPROTO_RAW);
            netns.socket(domain, Type::RAW, Some(protocol)).expect("a raw socket")
        };
        let forger = Self { four: raw(Domain::IPV4), six: raw(Domain::IPV6) };
        for socket in [&forger.four, &forger.six] {
            // What is meant for loopback, or for the pod itself, leaves it all the same.
            socket.bind_device(Some(b"eth0")).expect("the pod's interface");
        }
        forger.four.set_broadcast(true).expect("broadcasts");
        forger
    }

    /// Gives what it sends from now on this mark, as the pod's own kernel sees it.
    pub fn mark(&self, mark: u32) {
        for socket in [&self.four, &self.six] {
            socket.set_mark(mark).expect("a mark");
        }
    }

    /// Sends a packet. What the pod's own kernel does not send never was an attack.
    pub fn send(&self, packet: &[u8]) {
        let (socket, to) = match packet[0] >> 4 {
            4 => (&self.four, IpAddr::from(<[u8; 4]>::try_from(&packet[16..20]).expect("four bytes"))),
            _ => (&self.six, IpAddr::from(<[u8; 16]>::try_from(&packet[24..40]).expect("sixteen bytes"))),
        };
        let _ = socket.send_to(packet, &SocketAddr::new(to, 0).into());
    }
}

/// What comes in by a namespace's `eth0`, from anybody.
#[derive(Debug)]
pub struct Ear(OwnedFd);

impl Ear {
    /// Hears from now on: packet(7).
    ///
    /// # Panics
    /// Without privilege.
    pub fn open(netns: &Netns) -> Self {
        let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
        let open = || socket(AddressFamily::Packet, SockType::Datagram, flags, SockProtocol::EthAll);
        Self(netns.run(open).expect("a packet socket"))
    }

    /// The packets that have come in since it was last asked, from their IP header on, but for ICMP and IGMP: neighbours
    /// speak by them, and they are not what policies are about.
    pub fn packets(&self) -> Vec<Vec<u8>> {
        let mut packets = Vec::new();
        let mut buffer = vec![0; 65_536];
        loop {
            match recvfrom::<LinkAddr>(self.0.as_raw_fd(), &mut buffer) {
                Ok((length, Some(from))) => {
                    let packet = &buffer[..length];
                    if from.pkttype() != libc::PACKET_OUTGOING && is_of_interest(packet) {
                        packets.push(packet.to_vec());
                    }
                }
                Ok(_) | Err(Errno::EINTR) => {}
                Err(Errno::EAGAIN) => return packets,
                Err(error) => panic!("packet(7): {error}"),
            }
        }
    }

    /// Those of them that hold these bytes.
    pub fn packets_with(&self, marker: &[u8]) -> Vec<Vec<u8>> {
        let holds = |packet: &Vec<u8>| packet.windows(marker.len()).any(|part| part == marker);
        self.packets().into_iter().filter(holds).collect()
    }
}

fn is_of_interest(packet: &[u8]) -> bool {
    const HOP_BY_HOP: u8 = 0;
    match packet.first().map(|byte| byte >> 4) {
        // ICMP, and who listens to which group (RFC 3376).
        Some(4) => packet.len() >= 20 && !matches!(packet[9], 1 | 2),
        // Listeners' reports have a router alert before them (RFC 3810).
        Some(6) => {
            packet.len() >= 40 && packet[6] != 58 && !(packet[6] == HOP_BY_HOP && packet.get(40) == Some(&58))
        }
        _ => false,
    }
}

/// A packet of IPv4. `fragment` are flags and offset, `options` whole words.
///
/// # Panics
/// When the ends are not IPv4.
pub fn four(
    ends: [IpAddr; 2],
    protocol: u8,
    fragment: u16,
    identification: u16,
    options: &[u8],
    payload: &[u8],
) -> Vec<u8> {
    let words = u8::try_from(5 + options.len() / 4).expect("at most ten words of options");
    let length = u16::try_from(20 + options.len() + payload.len()).expect("a packet");
    let mut packet = vec![0x40 | words, 0];
    packet.extend(length.to_be_bytes());
    packet.extend(identification.to_be_bytes());
    packet.extend(fragment.to_be_bytes());
    packet.extend([64, protocol, 0, 0]);
    for end in ends {
        let IpAddr::V4(end) = end else { panic!("{end} is not IPv4") };
        packet.extend(end.octets());
    }
    packet.extend(options);
    let sum = folded(words_of(&packet));
    packet[10..12].copy_from_slice(&(!sum).to_be_bytes());
    packet.extend(payload);
    packet
}

/// A packet of IPv6.
///
/// # Panics
/// When the ends are not IPv6.
pub fn six(ends: [IpAddr; 2], extensions: &[Extension], protocol: u8, payload: &[u8]) -> Vec<u8> {
    let extra: usize = extensions.iter().map(|(_, bytes)| bytes.len()).sum();
    let length = u16::try_from(extra + payload.len()).expect("a packet");
    let mut packet = vec![0x60, 0, 0, 0];
    packet.extend(length.to_be_bytes());
    packet.extend([extensions.first().map_or(protocol, |(number, _)| *number), 64]);
    for end in ends {
        let IpAddr::V6(end) = end else { panic!("{end} is not IPv6") };
        packet.extend(end.octets());
    }
    for (index, (_, bytes)) in extensions.iter().enumerate() {
        packet.push(extensions.get(index + 1).map_or(protocol, |(number, _)| *number));
        packet.extend(&bytes[1..]);
    }
    packet.extend(payload);
    packet
}

/// A packet of the ends' family, without options, extensions or fragments.
pub fn plain(ends: [IpAddr; 2], protocol: u8, payload: &[u8]) -> Vec<u8> {
    match ends[0] {
        IpAddr::V4(_) => four(ends, protocol, 0, 0, &[], payload),
        IpAddr::V6(_) => six(ends, &[], protocol, payload),
    }
}

/// A fragment header of IPv6 (RFC 8200, section 4.5): offset in units of eight bytes, and whether more follow.
pub fn fragment_header(offset: u16, more: bool, identification: u8) -> Extension {
    let [high, low] = (offset << 3 | u16::from(more)).to_be_bytes();
    (44, vec![0, 0, high, low, 0, 0, 0, identification])
}

/// A segment with its checksum.
pub fn tcp(from: SocketAddr, to: SocketAddr, flags: u8, payload: &[u8]) -> Vec<u8> {
    let mut segment = [from.port().to_be_bytes(), to.port().to_be_bytes()].concat();
    segment.extend([0, 0, 0, 1, 0, 0, 0, 0, 5 << 4, flags, 0xfa, 0xf0, 0, 0, 0, 0]);
    segment.extend(payload);
    with_checksum(segment, 16, TCP, [from.ip(), to.ip()])
}

/// A datagram with its checksum.
pub fn udp(from: SocketAddr, to: SocketAddr, payload: &[u8]) -> Vec<u8> {
    let length = u16::try_from(8 + payload.len()).expect("a datagram");
    let mut datagram = [from.port(), to.port(), length, 0].map(u16::to_be_bytes).concat();
    datagram.extend(payload);
    with_checksum(datagram, 6, UDP, [from.ip(), to.ip()])
}

/// A packet of SCTP with these chunks and its checksum (RFC 9260, section 3).
pub fn sctp(from: SocketAddr, to: SocketAddr, tag: u32, chunks: &[&[u8]]) -> Vec<u8> {
    let mut packet = [from.port().to_be_bytes(), to.port().to_be_bytes()].concat();
    packet.extend(tag.to_be_bytes());
    packet.extend([0; 4]);
    chunks.iter().for_each(|chunk| packet.extend(*chunk));
    let checksum = crc32c(&packet);
    packet[8..12].copy_from_slice(&checksum.to_le_bytes());
    packet
}

/// A neighbour advertisement, unasked for and overriding: `target` is said to be at `hardware` (RFC 4861, section 4.4).
pub fn advertisement(from: Ipv6Addr, to: Ipv6Addr, target: Ipv6Addr, hardware: [u8; 6]) -> Vec<u8> {
    const ICMPV6: u8 = 58;
    const OVERRIDE: u8 = 0x20;
    let message = [&[136, 0, 0, 0, OVERRIDE, 0, 0, 0][..], &target.octets(), &[2, 1], &hardware].concat();
    let ends = [from, to].map(IpAddr::from);
    let mut packet = six(ends, &[], ICMPV6, &with_checksum(message, 2, ICMPV6, ends));
    // Nobody believes one that has passed a router.
    packet[7] = 255;
    packet
}

fn with_checksum(mut bytes: Vec<u8>, at: usize, protocol: u8, ends: [IpAddr; 2]) -> Vec<u8> {
    let mut pseudo = Vec::new();
    for end in ends {
        match end {
            IpAddr::V4(end) => pseudo.extend(end.octets()),
            IpAddr::V6(end) => pseudo.extend(end.octets()),
        }
    }
    pseudo.extend([0, protocol]);
    pseudo.extend(u16::try_from(bytes.len()).expect("a packet").to_be_bytes());
    let sum = folded(words_of(&pseudo) + words_of(&bytes));
    bytes[at..at + 2].copy_from_slice(&(!sum).to_be_bytes());
    bytes
}

/// RFC 1071.
fn words_of(bytes: &[u8]) -> u32 {
    let word = |pair: &[u8]| u32::from(pair[0]) << 8 | u32::from(*pair.get(1).unwrap_or(&0));
    bytes.chunks(2).map(word).sum()
}

fn folded(mut sum: u32) -> u16 {
    while sum >> 16 != 0 {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    u16::try_from(sum).expect("folded")
}
