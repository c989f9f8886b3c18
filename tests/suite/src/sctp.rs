//! The begin of an SCTP association, made by hand: not every kernel has SCTP sockets (CONFIG_IP_SCTP), raw sockets all do.
//! Where the kernel has them, associations are made and used as well.

use std::io::{self, Read, Write};
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use lab::{Family, Netns, patiently};
use socket2::{Domain, Protocol, Socket, Type};

const SCTP: i32 = 132;

/// Whether this kernel makes SCTP sockets.
pub fn has_sockets(netns: &Netns) -> bool {
    netns.socket(Domain::IPV4, Type::STREAM, Some(Protocol::from(SCTP))).is_ok()
}

/// A pod that begins associations, and hears of errors about them.
#[derive(Debug)]
pub struct Beginner {
    packets: Socket,
    errors: Socket,
    local: SocketAddr,
}

impl Beginner {
    /// `local` is the address and port that it begins from.
    pub fn open(pod: &Netns, local: SocketAddr) -> io::Result<Self> {
        let domain = Domain::for_address(local);
        let icmp = if local.is_ipv4() { Protocol::ICMPV4 } else { Protocol::ICMPV6 };
        let packets = pod.socket(domain, Type::RAW, Some(Protocol::from(SCTP)))?;
        packets.bind(&SocketAddr::new(local.ip(), 0).into())?;
        Ok(Self { packets, errors: pod.socket(domain, Type::RAW, Some(icmp))?, local })
    }

    /// Sends the first packet of an association.
    pub fn begin(&self, to: SocketAddr) -> io::Result<()> {
        let packet = init(self.local.port(), to.port());
        self.packets.send_to(&packet, &SocketAddr::new(to.ip(), 0).into()).map(drop)
    }

    /// Waits for an ICMP error about one of its packets, and gives type and code. `None` when none comes in time.
    pub fn error(&self, limit: Duration) -> Option<(u8, u8)> {
        // Behind the error's own eight bytes, the packet it is about: its IP header, then the ports.
        let (own, quoted) = if self.local.is_ipv4() { (20, 20) } else { (0, 40) };
        let ports = own + 8 + quoted;
        heard(&self.errors, limit, |message, _| {
            let from = message.get(ports..ports + 2)?;
            (from == self.local.port().to_be_bytes()).then(|| (message[own], message[own + 1]))
        })
    }
}

/// What comes to a pod.
#[derive(Debug)]
pub struct Ear {
    packets: Socket,
    family: Family,
}

impl Ear {
    /// Hears all SCTP of a family.
    pub fn open(pod: &Netns, family: Family) -> io::Result<Self> {
        let domain = Domain::for_address(SocketAddr::new(family.unspecified(), 0));
        Ok(Self { packets: pod.socket(domain, Type::RAW, Some(Protocol::from(SCTP)))?, family })
    }

    /// Waits for a packet from this address and port to this port. False when none comes in time.
    pub fn hears(&self, from: SocketAddr, port: u16, limit: Duration) -> bool {
        let header = if self.family == Family::V4 { 20 } else { 0 };
        let ports = [from.port().to_be_bytes(), port.to_be_bytes()].concat();
        let is_it = |packet: &[u8], sender: SocketAddr| {
            let arrived = sender.ip() == from.ip() && packet.get(header..header + 4) == Some(&ports);
            arrived.then_some(())
        };
        heard(&self.packets, limit, is_it).is_some()
    }
}

/// A listening SCTP socket on every address of a family.
pub fn listen(pod: &Netns, family: Family, port: u16) -> io::Result<Socket> {
    let local = SocketAddr::new(family.unspecified(), port);
    let socket = pod.socket(Domain::for_address(local), Type::STREAM, Some(Protocol::from(SCTP)))?;
    socket.set_reuse_address(true)?;
    socket.bind(&local.into())?;
    socket.listen(16)?;
    Ok(socket)
}

/// An SCTP socket of a pod, connected; and the address that it has.
pub fn connect(
    pod: &Netns,
    from: SocketAddr,
    to: SocketAddr,
    limit: Duration,
) -> (Option<SocketAddr>, io::Result<Socket>) {
    let made =
        pod.socket(Domain::for_address(to), Type::STREAM, Some(Protocol::from(SCTP))).and_then(|socket| {
            socket.bind(&from.into())?;
            Ok((socket.local_addr()?.as_socket(), socket))
        });
    match made {
        Ok((local, socket)) => (local, socket.connect_timeout(&to.into(), patiently(limit)).map(|()| socket)),
        Err(error) => (None, Err(error)),
    }
}

/// Sends a message from one end of an association to the other.
pub fn carries(from: &Socket, to: &Socket, limit: Duration) -> io::Result<bool> {
    to.set_read_timeout(Some(patiently(limit)))?;
    (&*from).write_all(b"HELLO\n")?;
    let mut message = [0; 64];
    let length = (&*to).read(&mut message)?;
    Ok(message[..length] == *b"HELLO\n")
}

/// Reads packets until `what` finds something in one, or the time is over. The sender's port is 0.
fn heard<T>(socket: &Socket, limit: Duration, what: impl Fn(&[u8], SocketAddr) -> Option<T>) -> Option<T> {
    let end = Instant::now() + patiently(limit);
    let mut buffer = [0; 2048];
    loop {
        // Zero would be no limit at all.
        let left = end.checked_duration_since(Instant::now()).filter(|left| !left.is_zero())?;
        socket.set_read_timeout(Some(left)).ok()?;
        let (length, sender) = receive(socket, &mut buffer)?;
        if let Some(found) = what(&buffer[..length], sender) {
            return Some(found);
        }
    }
}

fn receive(socket: &Socket, buffer: &mut [u8]) -> Option<(usize, SocketAddr)> {
    let as_udp = std::net::UdpSocket::from(socket.try_clone().ok()?);
    as_udp.recv_from(buffer).ok()
}

/// A packet with an INIT chunk: RFC 9260, sections 3.1 and 3.3.2, with its CRC32c.
pub fn init(from: u16, to: u16) -> Vec<u8> {
    let mut packet = Vec::new();
    packet.extend_from_slice(&from.to_be_bytes());
    packet.extend_from_slice(&to.to_be_bytes());
    packet.extend_from_slice(&[0; 8]);
    packet.extend_from_slice(&[1, 0, 0, 20]);
    packet.extend_from_slice(&[0, 0, 0, 9, 0, 1, 0, 0, 0, 1, 0, 1, 0, 0, 0, 1]);
    let checksum = crc32c(&packet);
    packet[8..12].copy_from_slice(&checksum.to_le_bytes());
    packet
}

/// RFC 9260, appendix A.
pub fn crc32c(bytes: &[u8]) -> u32 {
    let of_byte = |crc: u32, byte: &u8| {
        (0..8).fold(
            crc ^ u32::from(*byte),
            |crc, _| if crc & 1 == 1 { (crc >> 1) ^ 0x82f6_3b78 } else { crc >> 1 },
        )
    };
    !bytes.iter().fold(u32::MAX, of_byte)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_checksum_is_that_of_the_examples_in_rfc_3720() {
        // RFC 3720, appendix B.4.
        assert_eq!(crc32c(&[0; 32]), 0x8a91_36aa);
        assert_eq!(crc32c(&[0xff; 32]), 0x62a8_ab43);
    }
}
