//! SYNs without a connection behind them: what a flood consists of.

use std::io;
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4};

use lab::Netns;
use nix::libc;
use socket2::{Domain, Protocol, Socket, Type};

/// A raw socket that sends SYNs from the address of its namespace. Source: raw(7), RFC 9293 section 3.1.
#[derive(Debug)]
pub struct SynSender {
    socket: Socket,
    source: Ipv4Addr,
}

impl SynSender {
    /// Opens the socket inside `netns`, whose own address is `source`.
    pub fn open(netns: &Netns, source: Ipv4Addr) -> io::Result<Self> {
        let socket = netns.socket(Domain::IPV4, Type::RAW, Some(Protocol::from(libc::IPPROTO_TCP)))?;
        Ok(Self { socket, source })
    }

    /// Sends one SYN from `port`. The namespace's own kernel answers a SYN/ACK with a reset.
    pub fn send(&self, port: u16, sequence: u32, to: SocketAddrV4) -> io::Result<()> {
        let segment = segment(SocketAddrV4::new(self.source, port), to, sequence);
        self.socket.send_to(&segment, &to.into()).map(drop)
    }
}

fn segment(from: SocketAddrV4, to: SocketAddrV4, sequence: u32) -> [u8; 20] {
    let mut segment = [0; 20];
    segment[0..2].copy_from_slice(&from.port().to_be_bytes());
    segment[2..4].copy_from_slice(&to.port().to_be_bytes());
    segment[4..8].copy_from_slice(&sequence.to_be_bytes());
    segment[12] = 5 << 4;
    segment[13] = 0x02;
    segment[14..16].copy_from_slice(&64_240u16.to_be_bytes());
    let checksum = checksum(from, to, &segment);
    segment[16..18].copy_from_slice(&checksum.to_be_bytes());
    segment
}

/// Over the pseudo header and the segment: RFC 9293 section 3.1.
fn checksum(from: SocketAddrV4, to: SocketAddrV4, segment: &[u8; 20]) -> u16 {
    let pseudo = [from.ip().octets(), to.ip().octets(), [0, 6, 0, 20]].concat();
    let words = pseudo.chunks_exact(2).chain(segment.chunks_exact(2));
    let mut sum: u32 = words.map(|word| u32::from(u16::from_be_bytes([word[0], word[1]]))).sum();
    while sum >> 16 != 0 {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !u16::try_from(sum).unwrap_or_default()
}

/// A whole SYN packet, IP header included, for a raw socket that takes one: raw(7), `IPPROTO_RAW`. Both ends
/// are IPv4.
///
/// # Panics
/// When one of them is not.
pub fn packet(from: SocketAddr, to: SocketAddr) -> Vec<u8> {
    let (SocketAddr::V4(from), SocketAddr::V4(to)) = (from, to) else { panic!("{from} to {to}: not IPv4") };
    // The kernel fills in length, identification and checksum.
    let mut packet = vec![0x45, 0, 0, 0, 0, 0, 0x40, 0, 64, 6, 0, 0];
    packet.extend_from_slice(&from.ip().octets());
    packet.extend_from_slice(&to.ip().octets());
    packet.extend_from_slice(&segment(from, to, 1));
    packet
}
