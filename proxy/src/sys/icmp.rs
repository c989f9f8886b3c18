//! ICMP errors about a SYN, sent as the router would that found no way to its destination.
//!
//! The kernel cannot send them itself from where the SYN is refused: it takes the SYN's destination for the
//! error's source, and that address is not the node's (net/ipv4/icmp.c, `__icmp_send`). IPv6 has no such
//! trouble. Source: RFC 792, RFC 1812 section 4.3.2.

use std::io;
use std::net::{Ipv4Addr, SocketAddrV4};

use socket2::{Domain, Protocol, Socket, Type};

const DESTINATION_UNREACHABLE: u8 = 3;
const HOST_UNREACHABLE: u8 = 1;

/// A raw socket for ICMP errors.
#[derive(Debug)]
pub(crate) struct IcmpSocket(Socket);

impl IcmpSocket {
    /// Opens it. Needs CAP_NET_RAW: raw(7).
    pub(crate) fn open() -> io::Result<Self> {
        let socket = Socket::new(Domain::IPV4, Type::RAW.nonblocking(), Some(Protocol::ICMPV4))?;
        // Errors of other connections are none of our business; a raw socket would be given copies of all.
        socket.set_recv_buffer_size(0)?;
        Ok(Self(socket))
    }

    /// Tells `client` that the host of `destination`, which its SYN with sequence number `isn` was for, cannot
    /// be reached: its `connect()` fails with EHOSTUNREACH.
    pub(crate) fn host_unreachable(
        &self,
        client: SocketAddrV4,
        destination: SocketAddrV4,
        isn: u32,
    ) -> io::Result<()> {
        let message = host_unreachable(client, destination, isn);
        self.0.send_to(&message, &SocketAddrV4::new(*client.ip(), 0).into()).map(drop)
    }
}

/// The error, quoting the IP header and the first eight bytes of the SYN.
fn host_unreachable(client: SocketAddrV4, destination: SocketAddrV4, isn: u32) -> [u8; 36] {
    let mut message = [0; 36];
    message[0] = DESTINATION_UNREACHABLE;
    message[1] = HOST_UNREACHABLE;
    message[8..28].copy_from_slice(&ip_header(*client.ip(), *destination.ip()));
    message[28..30].copy_from_slice(&client.port().to_be_bytes());
    message[30..32].copy_from_slice(&destination.port().to_be_bytes());
    message[32..36].copy_from_slice(&isn.to_be_bytes());
    let sum = checksum(&message);
    message[2..4].copy_from_slice(&sum.to_be_bytes());
    message
}

/// The header of a SYN without options, one hop on its way.
fn ip_header(source: Ipv4Addr, destination: Ipv4Addr) -> [u8; 20] {
    let mut header = [0x45, 0, 0, 40, 0, 0, 0x40, 0, 63, 6, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    header[12..16].copy_from_slice(&source.octets());
    header[16..20].copy_from_slice(&destination.octets());
    let sum = checksum(&header);
    header[10..12].copy_from_slice(&sum.to_be_bytes());
    header
}

/// The Internet checksum (RFC 1071).
fn checksum(bytes: &[u8]) -> u16 {
    let words = bytes.chunks(2).map(|word| u32::from(word[0]) << 8 | u32::from(*word.get(1).unwrap_or(&0)));
    let mut sum: u32 = words.sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    // Folded to 16 bits above.
    !u16::try_from(sum).unwrap_or(u16::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_with_its_checksum_sums_to_zero_and_quotes_the_syn() {
        let message = host_unreachable(
            "10.0.0.1:40000".parse().unwrap(),
            "10.96.0.1:443".parse().unwrap(),
            0x0102_0304,
        );
        assert_eq!(checksum(&message), 0);
        assert_eq!(checksum(&message[8..28]), 0);
        assert_eq!(message[..2], [3, 1]);
        assert_eq!(message[20..36], [10, 0, 0, 1, 10, 96, 0, 1, 0x9c, 0x40, 1, 187, 1, 2, 3, 4]);
    }

    #[test]
    fn the_checksum_is_that_of_the_example_in_rfc_1071() {
        assert_eq!(checksum(&[0x00, 0x01, 0xf2, 0x03, 0xf4, 0xf5, 0xf6, 0xf7]), !0xddf2);
    }
}
