//! Ways of beginning something that a policy denies: every one that was thought of, each as the packets that it takes.

use std::net::{IpAddr, SocketAddr};

use crate::forged::{Extension, MORE, SCTP, TCP, UDP, four, fragment_header, plain, sctp, six, tcp, udp};
use crate::sctp::init;

/// The port that is tried.
pub const PORT: u16 = 8000;
/// What payloads consist of.
pub const MARKER: &[u8] = b"FORGED--";

/// First packets from `source`, which is not the sender's own address.
pub fn first_packets(source: SocketAddr, to: SocketAddr) -> Vec<Vec<u8>> {
    let ends = [source.ip(), to.ip()];
    vec![
        plain(ends, UDP, &udp(source, to, MARKER)),
        plain(ends, TCP, &tcp(source, to, 2, MARKER)),
        plain(ends, SCTP, &init(source.port(), to.port())),
    ]
}

/// Fragments of what follows the IP header, cut at these places, which are multiples of eight.
///
/// # Panics
/// When there is more of it than a packet holds.
pub fn fragments(
    ends: [IpAddr; 2],
    protocol: u8,
    payload: &[u8],
    cuts: &[usize],
    number: u8,
) -> Vec<Vec<u8>> {
    let begins = [&[0], cuts].concat();
    let all_ends = [cuts, &[payload.len()]].concat();
    let piece = |(begin, end): (&usize, &usize)| {
        let (offset, more) = (u16::try_from(begin / 8).expect("few"), *end < payload.len());
        let part = &payload[*begin..*end];
        match ends[0] {
            IpAddr::V4(_) => {
                let field = if more { offset | MORE } else { offset };
                four(ends, protocol, field, 0x4000 | u16::from(number), &[], part)
            }
            IpAddr::V6(_) => six(ends, &[fragment_header(offset, more, number)], protocol, part),
        }
    };
    begins.iter().zip(&all_ends).map(piece).collect()
}

/// Each by its name. No two begin from the same port.
///
/// # Panics
/// When there are more than ports.
pub fn attempts(from: IpAddr, to: IpAddr, first_port: u16) -> Vec<(String, Vec<Vec<u8>>)> {
    let ends = [from, to];
    let to = SocketAddr::new(to, PORT);
    let mut ports = first_port..;
    let mut next = || SocketAddr::new(from, ports.next().expect("few"));
    let mut all: Vec<(String, Vec<Vec<u8>>)> = Vec::new();
    // Every set of flags, ECN's with the opening one; a SYN with data, as TCP fast open has it (RFC 7413).
    for flags in (0..64).chain([0xc2, 0x42, 0x82]) {
        let segment = tcp(next(), to, flags, b"");
        all.push((format!("TCP with the flags {flags:#04x}"), vec![plain(ends, TCP, &segment)]));
    }
    all.push(("a SYN with data".into(), vec![plain(ends, TCP, &tcp(next(), to, 2, MARKER))]));
    let payload = MARKER.repeat(8);
    all.push(("a datagram".into(), vec![plain(ends, UDP, &udp(next(), to, &payload))]));
    let nowhere = SocketAddr::new(from, 0);
    all.push(("a datagram from port 0".into(), vec![plain(ends, UDP, &udp(nowhere, to, &payload))]));
    let to_zero = SocketAddr::new(to.ip(), 0);
    all.push(("a datagram to port 0".into(), vec![plain(ends, UDP, &udp(next(), to_zero, &payload))]));
    // A DATA chunk bundled with an INIT, and chunks that begin nothing (RFC 9260, section 3.3).
    let (data, cookie, heartbeat, abort) = (
        b"\0\x03\0\x14\0\0\0\x01\0\0\0\0\0\0\0\0FORG",
        b"\x0a\0\0\x08COOK",
        b"\x04\0\0\x0c\0\x01\0\x08BEAT",
        b"\x06\0\0\x04",
    );
    let begin = next();
    all.push(("an INIT".into(), vec![plain(ends, SCTP, &init(begin.port(), PORT))]));
    let beginning = init(next().port(), PORT)[12..].to_vec();
    let bundles: [(&str, u32, Vec<&[u8]>); 6] = [
        ("INIT and DATA", 0, vec![&beginning, data]),
        ("DATA", 7, vec![data]),
        ("COOKIE ECHO and DATA", 7, vec![cookie, data]),
        ("HEARTBEAT", 7, vec![heartbeat]),
        ("ABORT", 7, vec![abort]),
        ("nothing", 7, vec![]),
    ];
    for (name, tag, chunks) in bundles {
        all.push((format!("SCTP: {name}"), vec![plain(ends, SCTP, &sctp(next(), to, tag, &chunks))]));
    }
    for (number, cuts) in [&[8][..], &[16], &[8, 16, 24, 32, 40], &[64]].iter().enumerate() {
        let number = u8::try_from(number).expect("few") * 8 + 1;
        let datagram = udp(next(), to, &payload);
        let pieces = fragments(ends, UDP, &datagram, cuts, number);
        let backwards = fragments(ends, UDP, &udp(next(), to, &payload), cuts, number + 1);
        all.push((format!("a datagram cut at {cuts:?}"), pieces));
        all.push((
            format!("a datagram cut at {cuts:?}, last part first"),
            backwards.into_iter().rev().collect(),
        ));
        let syn = tcp(next(), to, 2, &payload);
        all.push((format!("a SYN cut at {cuts:?}"), fragments(ends, TCP, &syn, cuts, number + 2)));
        let bundle = sctp(next(), to, 0, &[&beginning, data]);
        if cuts.iter().all(|cut| *cut < bundle.len()) {
            all.push((format!("an INIT cut at {cuts:?}"), fragments(ends, SCTP, &bundle, cuts, number + 3)));
        }
    }
    // The ports of the first part written over by a second one.
    let mut overlapping = fragments(ends, UDP, &udp(next(), to, &payload), &[16], 90);
    let other = fragments(ends, UDP, &udp(next(), SocketAddr::new(to.ip(), 53), &payload), &[16], 90);
    overlapping.insert(0, other[0].clone());
    all.push(("a datagram in parts that overlap".into(), overlapping));
    all.push(("a last part alone".into(), vec![fragments(ends, UDP, &payload, &[8], 91).remove(1)]));
    match ends[0] {
        IpAddr::V4(_) => with_options(&mut all, ends, &mut next),
        IpAddr::V6(_) => with_extensions(&mut all, ends, &mut next),
    }
    all
}

/// RFC 791, section 3.1: no operation, record route, both kinds of source route, and a length that is none.
fn with_options(
    all: &mut Vec<(String, Vec<Vec<u8>>)>,
    ends: [IpAddr; 2],
    next: &mut impl FnMut() -> SocketAddr,
) {
    let to = SocketAddr::new(ends[1], PORT);
    let options: [(&str, Vec<u8>); 4] = [
        ("40 bytes of nothing", vec![1; 40]),
        ("a recorded route", [&[7, 39, 4][..], &[0; 37]].concat()),
        ("a router alert", vec![148, 4, 0, 0]),
        ("a timestamp", [&[68, 36, 5, 0][..], &[0; 32]].concat()),
    ];
    for (name, option) in options {
        all.push((
            format!("UDP behind {name}"),
            vec![four(ends, UDP, 0, 0, &option, &udp(next(), to, MARKER))],
        ));
        all.push((
            format!("a SYN behind {name}"),
            vec![four(ends, TCP, 0, 0, &option, &tcp(next(), to, 2, b""))],
        ));
    }
    let mut unsummed = udp(next(), to, MARKER);
    unsummed[6..8].fill(0);
    all.push(("a datagram without a checksum".into(), vec![plain(ends, UDP, &unsummed)]));
}

/// RFC 8200, section 4: each extension once, many of one kind, some in an order that no host sends, and fragments within
/// what looks like the only fragment of its packet (RFC 6946).
fn with_extensions(
    all: &mut Vec<(String, Vec<Vec<u8>>)>,
    ends: [IpAddr; 2],
    next: &mut impl FnMut() -> SocketAddr,
) {
    let to = SocketAddr::new(ends[1], PORT);
    let padding = || vec![0, 0, 1, 4, 0, 0, 0, 0];
    let mut long = vec![0, 31, 1, 250];
    long.extend(vec![0; 252]);
    let route = |kind: u8| [&[0, 2, kind, 0, 0, 0, 0, 0][..], &[0; 16]].concat();
    let only = |number| fragment_header(0, false, number);
    let chains: Vec<(&str, Vec<Extension>)> = vec![
        ("options for every hop", vec![(0, padding())]),
        ("options for the destination", vec![(60, padding())]),
        ("248 bytes of options", vec![(60, long)]),
        ("eight extensions", vec![(60, padding()); 8]),
        ("a route of kind 0 at its end", vec![(43, route(0))]),
        ("a route of kind 2 at its end", vec![(43, route(2))]),
        ("a fragment header of an only part", vec![only(101)]),
        ("two of them", vec![only(102), only(103)]),
        ("one between options", vec![(60, padding()), only(104), (60, padding())]),
        ("options for every hop in the wrong place", vec![(60, padding()), (0, padding())]),
    ];
    for (name, chain) in chains {
        all.push((format!("UDP behind {name}"), vec![six(ends, &chain, UDP, &udp(next(), to, MARKER))]));
        all.push((format!("a SYN behind {name}"), vec![six(ends, &chain, TCP, &tcp(next(), to, 2, b""))]));
    }
    let datagram = udp(next(), to, &MARKER.repeat(8));
    let within = |offset: u16, more, number, part: &[u8]| {
        six(ends, &[only(number), fragment_header(offset, more, 105)], UDP, part)
    };
    let hidden = vec![within(0, true, 106, &datagram[..16]), within(2, false, 107, &datagram[16..])];
    all.push(("a datagram in parts, each within an only part".into(), hidden));
    let mut unsummed = udp(next(), to, MARKER);
    unsummed[6..8].fill(0);
    all.push(("a datagram without a checksum".into(), vec![plain(ends, UDP, &unsummed)]));
}
