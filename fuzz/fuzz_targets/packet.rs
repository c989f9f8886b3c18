//! Bytes of the kernel's queue, and of the packet in one of its messages → an attempt, a flow, or nothing.
#![no_main]

use std::net::IpAddr;

use flow::{Protocol, Tuple};
use libfuzzer_sys::fuzz_target;
use proxy::stages::{message_with, read_held, read_packet};

fuzz_target!(|bytes: &[u8]| {
    let (attempt, flow) = read_packet(bytes);
    assert!(attempt.is_none_or(|tuple| tuple.protocol == Protocol::Tcp));
    // A SYN begins the same connection whether the proxy or the kernel is to carry it.
    assert!(flow.is_none_or(|tuple| (tuple.protocol == Protocol::Tcp) == attempt.is_some()));
    assert!(attempt.is_none() || flow == attempt, "a packet begins one thing");
    let whole = attempt.or(flow);
    if let Some(tuple) = whole {
        assert!(is_written_in(&tuple, bytes), "{tuple:?}");
    }
    // The kernel copies the first bytes of a packet: however few, they are read alike or not at all.
    for length in 0..bytes.len() {
        let (attempt, flow) = read_packet(&bytes[..length]);
        assert!(
            attempt.or(flow).is_none_or(|part| whole == Some(part)),
            "{length} bytes: {attempt:?} {flow:?}"
        );
    }
    assert_eq!(read_held(&message_with(bytes)), attempt);
    // The same bytes as a whole message.
    let _ = read_held(bytes);
});

/// The tuple has the family that the packet says it is of, and the addresses that stand in it.
fn is_written_in(tuple: &Tuple, packet: &[u8]) -> bool {
    let (family, places) = match tuple.client.0.ip() {
        IpAddr::V4(_) => (4, [12, 16]),
        IpAddr::V6(_) => (6, [8, 24]),
    };
    let ends = [tuple.client.0.ip(), tuple.destination.0.ip()];
    packet.first().is_some_and(|first| first >> 4 == family)
        && ends.into_iter().zip(places).all(|(ip, place)| {
            let written = packet.get(place..).unwrap_or_default();
            match ip {
                IpAddr::V4(ip) => written.starts_with(&ip.octets()),
                IpAddr::V6(ip) => written.starts_with(&ip.octets()),
            }
        })
}
