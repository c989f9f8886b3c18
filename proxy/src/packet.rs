//! Turns the first bytes of a held packet into the connection attempt or the flow it belongs to. Every byte is
//! hostile. Source: RFC 791, RFC 8200, RFC 9293, RFC 768, RFC 9260.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use flow::{ClientAddr, OrigDst, Protocol, Tuple, canonical_ip};

const TCP: u8 = 6;
const UDP: u8 = 17;
const SCTP: u8 = 132;
const FLAG_SYN: u8 = 0x02;
const FLAGS_FIN_SYN_RST_ACK: u8 = 0x17;

/// A connection attempt, read from its SYN.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Syn {
    /// Client and backend.
    pub(crate) tuple: Tuple,
    /// The initial sequence number: tells a retransmission from a new attempt with the same ports.
    pub(crate) isn: u32,
}

/// Why a held packet is no connection attempt.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum PacketError {
    #[error("the packet ends within its headers")]
    Truncated,
    #[error("IP version {0}")]
    Version(u8),
    #[error("protocol {0} where another was expected")]
    Protocol(u8),
    #[error("a fragment without the transport header")]
    Fragment,
    #[error("flags {0:#04x} are no SYN")]
    NotSyn(u8),
    /// No host sends it (RFC 4291, section 2.5.5.2): whoever does would pass for the IPv4 address written in it.
    #[error("an IPv4 address written as an IPv6 one, on the wire")]
    Mapped,
}

/// Reads the SYN of a packet that starts at its IP header.
pub(crate) fn parse_syn(packet: &[u8]) -> Result<Syn, PacketError> {
    let found = locate(packet)?;
    match found.protocol {
        TCP => parse_tcp(found.transport, found.source, found.destination),
        other => Err(PacketError::Protocol(other)),
    }
}

/// Reads addresses and ports of the packet that begins a flow, from its IP header on: a datagram of UDP or SCTP, or
/// the SYN of a connection that the kernel is to carry. UDP and SCTP begin with the ports, and the shorter header
/// has eight bytes.
pub(crate) fn parse_flow(packet: &[u8]) -> Result<Tuple, PacketError> {
    let Located { protocol, source, destination, transport } = locate(packet)?;
    let protocol = match protocol {
        TCP => {
            let Tuple { protocol, client, destination } = parse_tcp(transport, source, destination)?.tuple;
            let canonical = |end: SocketAddr| SocketAddr::new(canonical_ip(end.ip()), end.port());
            let (client, destination) = (ClientAddr(canonical(client.0)), OrigDst(canonical(destination.0)));
            return Ok(Tuple { protocol, client, destination });
        }
        UDP => Protocol::Udp,
        SCTP => Protocol::Sctp,
        other => return Err(PacketError::Protocol(other)),
    };
    let _header: [u8; 8] = take(transport, 0)?;
    let end = |ip: IpAddr, port| SocketAddr::new(canonical_ip(ip), u16::from_be_bytes(port));
    Ok(Tuple {
        protocol,
        client: ClientAddr(end(source, take(transport, 0)?)),
        destination: OrigDst(end(destination, take(transport, 2)?)),
    })
}

/// The whole length of a packet whose IP header is there, in bytes, however few of them are; 0 without the header.
pub(crate) fn length(packet: &[u8]) -> u64 {
    let (at, beyond) = match packet.first().map(|first| first >> 4) {
        Some(4) => (2, 0),
        Some(6) => (4, 40),
        _ => return 0,
    };
    take(packet, at).map_or(0, |length| beyond + u64::from(u16::from_be_bytes(length)))
}

/// A packet's transport header and what the IP header says of it.
struct Located<'a> {
    protocol: u8,
    source: IpAddr,
    destination: IpAddr,
    transport: &'a [u8],
}

fn locate(packet: &[u8]) -> Result<Located<'_>, PacketError> {
    let first = *packet.first().ok_or(PacketError::Truncated)?;
    match first >> 4 {
        4 => parse_v4(packet),
        6 => parse_v6(packet),
        version => Err(PacketError::Version(version)),
    }
}

fn parse_v4(packet: &[u8]) -> Result<Located<'_>, PacketError> {
    let header = usize::from(packet[0] & 0x0f) * 4;
    if header < 20 {
        return Err(PacketError::Truncated);
    }
    if u16::from_be_bytes(take(packet, 6)?) & 0x1fff != 0 {
        return Err(PacketError::Fragment);
    }
    let [protocol] = take(packet, 9)?;
    let source = Ipv4Addr::from(take::<4>(packet, 12)?);
    let destination = Ipv4Addr::from(take::<4>(packet, 16)?);
    Ok(Located {
        protocol,
        source: source.into(),
        destination: destination.into(),
        transport: packet.get(header..).ok_or(PacketError::Truncated)?,
    })
}

fn parse_v6(packet: &[u8]) -> Result<Located<'_>, PacketError> {
    let source = Ipv6Addr::from(take::<16>(packet, 8)?);
    let destination = Ipv6Addr::from(take::<16>(packet, 24)?);
    if source.to_ipv4_mapped().is_some() || destination.to_ipv4_mapped().is_some() {
        return Err(PacketError::Mapped);
    }
    let [mut next] = take(packet, 6)?;
    let mut at = 40;
    loop {
        match next {
            TCP | UDP | SCTP => break,
            // Hop-by-hop, routing and destination options share one shape (RFC 8200, section 4).
            0 | 43 | 60 => {
                let [following, units] = take(packet, at)?;
                next = following;
                at += 8 + usize::from(units) * 8;
            }
            44 => {
                let [following, _, high, low] = take(packet, at)?;
                if u16::from_be_bytes([high, low]) & 0xfff8 != 0 {
                    return Err(PacketError::Fragment);
                }
                next = following;
                at += 8;
            }
            other => return Err(PacketError::Protocol(other)),
        }
    }
    Ok(Located {
        protocol: next,
        source: source.into(),
        destination: destination.into(),
        transport: packet.get(at..).ok_or(PacketError::Truncated)?,
    })
}

fn parse_tcp(segment: &[u8], source: IpAddr, destination: IpAddr) -> Result<Syn, PacketError> {
    let client = SocketAddr::new(source, u16::from_be_bytes(take(segment, 0)?));
    let backend = SocketAddr::new(destination, u16::from_be_bytes(take(segment, 2)?));
    let isn = u32::from_be_bytes(take(segment, 4)?);
    let [flags] = take(segment, 13)?;
    if flags & FLAGS_FIN_SYN_RST_ACK != FLAG_SYN {
        return Err(PacketError::NotSyn(flags));
    }
    Ok(Syn { tuple: Tuple::tcp(client, backend), isn })
}

fn take<const N: usize>(bytes: &[u8], at: usize) -> Result<[u8; N], PacketError> {
    bytes.get(at..at + N).and_then(|slice| slice.try_into().ok()).ok_or(PacketError::Truncated)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn tcp(flags: u8) -> Vec<u8> {
        let mut segment = vec![0; 20];
        segment[0..2].copy_from_slice(&40_000u16.to_be_bytes());
        segment[2..4].copy_from_slice(&80u16.to_be_bytes());
        segment[4..8].copy_from_slice(&7u32.to_be_bytes());
        segment[12] = 0x50;
        segment[13] = flags;
        segment
    }

    fn v4(options: usize, fragment: u16, protocol: u8, segment: &[u8]) -> Vec<u8> {
        let mut packet = vec![0; 20 + options];
        packet[0] = 0x40 | u8::try_from((20 + options) / 4).unwrap();
        packet[6..8].copy_from_slice(&fragment.to_be_bytes());
        packet[9] = protocol;
        packet[12..16].copy_from_slice(&[10, 0, 0, 1]);
        packet[16..20].copy_from_slice(&[10, 0, 0, 2]);
        packet.extend_from_slice(segment);
        let length = u16::try_from(packet.len()).unwrap();
        packet[2..4].copy_from_slice(&length.to_be_bytes());
        packet
    }

    fn v6(extensions: &[(u8, usize)], segment: &[u8]) -> Vec<u8> {
        let mut packet = vec![0; 40];
        packet[0] = 0x60;
        packet[23] = 1;
        packet[39] = 2;
        packet[6] = extensions.first().map_or(TCP, |(kind, _)| *kind);
        for (index, (_, length)) in extensions.iter().enumerate() {
            let mut extension = vec![0; *length];
            extension[0] = extensions.get(index + 1).map_or(TCP, |(kind, _)| *kind);
            extension[1] = u8::try_from((length - 8) / 8).unwrap();
            packet.extend_from_slice(&extension);
        }
        packet.extend_from_slice(segment);
        let length = u16::try_from(packet.len() - 40).unwrap();
        packet[4..6].copy_from_slice(&length.to_be_bytes());
        packet
    }

    #[test]
    fn a_packet_tells_its_length_though_its_end_was_not_copied() {
        for packet in [v4(8, 0, UDP, &[7; 100]), v6(&[(0, 8)], &[7; 100])] {
            assert_eq!(length(&packet), packet.len() as u64);
            assert_eq!(length(&packet[..20]), packet.len() as u64);
        }
        assert_eq!([&[][..], &[0x45], &[0x60, 0, 0], &[0x10; 40]].map(length), [0; 4]);
    }

    #[test]
    fn a_syn_is_read_in_both_families_with_options_and_extensions() {
        let four = Syn {
            tuple: Tuple::tcp("10.0.0.1:40000".parse().unwrap(), "10.0.0.2:80".parse().unwrap()),
            isn: 7,
        };
        let six =
            Syn { tuple: Tuple::tcp("[::1]:40000".parse().unwrap(), "[::2]:80".parse().unwrap()), isn: 7 };
        for options in [0, 4, 40] {
            assert_eq!(parse_syn(&v4(options, 0, TCP, &tcp(FLAG_SYN))), Ok(four));
        }
        for extensions in [&[][..], &[(0, 8)], &[(60, 16), (43, 24)], &[(44, 8)]] {
            assert_eq!(parse_syn(&v6(extensions, &tcp(FLAG_SYN))), Ok(six));
        }
        // ECN setup sets ECE and CWR beside SYN (RFC 3168).
        assert_eq!(parse_syn(&v4(0, 0, TCP, &tcp(FLAG_SYN | 0xc0))), Ok(four));
    }

    #[test]
    fn what_is_no_syn_is_named() {
        assert_eq!(parse_syn(&[]), Err(PacketError::Truncated));
        assert_eq!(parse_syn(&[0x50; 40]), Err(PacketError::Version(5)));
        assert_eq!(parse_syn(&v4(0, 0, 17, &tcp(FLAG_SYN))), Err(PacketError::Protocol(17)));
        assert_eq!(parse_syn(&v4(0, 3, TCP, &tcp(FLAG_SYN))), Err(PacketError::Fragment));
        assert_eq!(parse_syn(&v4(0, 0, TCP, &tcp(0x12))), Err(PacketError::NotSyn(0x12)));
        assert_eq!(parse_syn(&v4(0, 0, TCP, &tcp(FLAG_SYN)[..13])), Err(PacketError::Truncated));
        assert_eq!(parse_syn(&v6(&[(59, 8)], &tcp(FLAG_SYN))), Err(PacketError::Protocol(59)));
    }

    #[test]
    fn a_packet_of_ipv6_never_passes_for_one_of_ipv4() {
        let mapped = |end: usize| {
            let mut packet = v6(&[], &tcp(FLAG_SYN));
            packet[end..end + 16].copy_from_slice(&Ipv4Addr::new(10, 0, 0, 1).to_ipv6_mapped().octets());
            packet
        };
        for end in [8, 24] {
            let mut packet = mapped(end);
            assert_eq!(parse_syn(&packet), Err(PacketError::Mapped));
            packet[6] = UDP;
            assert_eq!(parse_flow(&packet), Err(PacketError::Mapped));
        }
    }

    #[test]
    fn what_begins_a_flow_gives_protocol_addresses_and_ports() {
        let of = |protocol| Tuple {
            protocol,
            ..Tuple::tcp("10.0.0.1:40000".parse().unwrap(), "10.0.0.2:80".parse().unwrap())
        };
        assert_eq!(parse_flow(&v4(0, 0, UDP, &tcp(0)[..8])), Ok(of(Protocol::Udp)));
        assert_eq!(parse_flow(&v4(40, 0, SCTP, &tcp(0)[..12])), Ok(of(Protocol::Sctp)));
        // The first fragment has the ports.
        assert_eq!(parse_flow(&v4(0, 0x2000, UDP, &tcp(0)[..8])), Ok(of(Protocol::Udp)));
        assert_eq!(parse_flow(&v4(0, 1, UDP, &tcp(0)[..8])), Err(PacketError::Fragment));
        assert_eq!(parse_flow(&v4(0, 0, UDP, &tcp(0)[..7])), Err(PacketError::Truncated));
        assert_eq!(parse_flow(&v4(0, 0, TCP, &tcp(FLAG_SYN))), Ok(of(Protocol::Tcp)));
        assert_eq!(parse_flow(&v4(0, 0, TCP, &tcp(0x10))), Err(PacketError::NotSyn(0x10)));
        assert_eq!(parse_flow(&v4(0, 0, 47, &tcp(0))), Err(PacketError::Protocol(47)));
        assert_eq!(parse_flow(&[]), Err(PacketError::Truncated));
    }

    proptest! {
        #[test]
        fn what_is_built_is_read_back_and_no_prefix_of_it_panics(
            options in 0usize..=10, sctp: bool, ports: [u16; 2], payload in 0usize..64, keep in 0usize..140,
        ) {
            let protocol = if sctp { SCTP } else { UDP };
            let mut transport = vec![0; 8 + payload];
            transport[..2].copy_from_slice(&ports[0].to_be_bytes());
            transport[2..4].copy_from_slice(&ports[1].to_be_bytes());
            let mut packet = v4(options * 4, 0, protocol, &transport);
            let read = parse_flow(&packet).unwrap();
            prop_assert_eq!([read.client.0.port(), read.destination.0.port()], ports);
            prop_assert_eq!(read.protocol, if sctp { Protocol::Sctp } else { Protocol::Udp });
            packet.truncate(keep);
            prop_assert_eq!(parse_flow(&packet).is_ok(), packet.len() >= 28 + options * 4);
        }

        #[test]
        fn no_bytes_make_the_parser_panic(bytes in proptest::collection::vec(any::<u8>(), 0..120), version in 3u8..8) {
            let mut bytes = bytes;
            if let Some(first) = bytes.first_mut() {
                *first = version << 4 | *first & 0x0f;
            }
            let _ = parse_syn(&bytes);
            let _ = parse_flow(&bytes);
        }
    }
}
