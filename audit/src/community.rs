//! A tuple to its Community ID, version 1 with seed 0: the flow hash that Zeek, Suricata and others print, so
//! that their logs can be joined with ours. Specification: github.com/corelight/community-id-spec.

use std::net::{IpAddr, SocketAddr};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use flow::{Protocol, Tuple};
use sha1_smol::Sha1;

/// `1:` and the 28 characters of a base64 SHA-1.
const LENGTH: usize = 30;

/// A Community ID, kept in place: one is made for every record.
#[derive(Clone, Copy, Debug)]
pub(crate) struct CommunityId([u8; LENGTH]);

impl CommunityId {
    /// The same for both directions of a flow.
    pub(crate) fn of(tuple: &Tuple) -> Self {
        let (client, destination) = (tuple.client.0, tuple.destination.0);
        let (low, high) =
            if order(client) <= order(destination) { (client, destination) } else { (destination, client) };

        let mut hash = Sha1::new();
        hash.update(&[0, 0]); // The seed.
        update_ip(&mut hash, low.ip());
        update_ip(&mut hash, high.ip());
        hash.update(&[protocol_number(tuple.protocol), 0]);
        hash.update(&low.port().to_be_bytes());
        hash.update(&high.port().to_be_bytes());

        let mut text = *b"1:0000000000000000000000000000";
        let written = STANDARD.encode_slice(hash.digest().bytes(), &mut text[2..]);
        debug_assert_eq!(written, Ok(LENGTH - 2));
        Self(text)
    }

    pub(crate) fn as_str(&self) -> &str {
        std::str::from_utf8(&self.0).unwrap_or_default()
    }
}

/// Addresses compare as the bytes on the wire, then ports. `IpAddr` puts every IPv4 address before every
/// IPv6 address; the two never meet in one tuple.
fn order(address: SocketAddr) -> (IpAddr, u16) {
    (address.ip(), address.port())
}

fn update_ip(hash: &mut Sha1, ip: IpAddr) {
    match ip {
        IpAddr::V4(ip) => hash.update(&ip.octets()),
        IpAddr::V6(ip) => hash.update(&ip.octets()),
    }
}

/// IANA protocol numbers.
const fn protocol_number(protocol: Protocol) -> u8 {
    match protocol {
        Protocol::Tcp => 6,
        Protocol::Udp => 17,
        Protocol::Sctp => 132,
    }
}

#[cfg(test)]
mod tests {
    use flow::{ClientAddr, OrigDst};

    use super::*;

    /// The TCP, UDP and SCTP rows of the specification's baseline (`baseline/baseline_deflt.json`).
    #[test]
    fn ids_agree_with_the_published_baseline_in_both_directions() {
        let rows = [
            (
                Protocol::Tcp,
                "[2001:470:e5bf:dead:4957:2174:e82c:4887]:63943",
                "[2607:f8b0:400c:c03::1a]:25",
                "1:/qFaeAR+gFe1KYjMzVDsMv+wgU4=",
            ),
            (Protocol::Sctp, "192.168.170.8:7", "192.168.170.56:7", "1:MP2EtRCAUIZvTw6MxJHLV7N7JDs="),
            (Protocol::Tcp, "128.232.110.120:34855", "66.35.250.204:80", "1:LQU9qZlK+B5F3KDmev6m5PMibrg="),
            (Protocol::Udp, "192.168.1.52:54585", "8.8.8.8:53", "1:d/FP5EW3wiY1vCndhwleRRKHowQ="),
        ];
        for (protocol, one, other, expected) in rows {
            for (client, destination) in [(one, other), (other, one)] {
                let tuple = Tuple {
                    protocol,
                    client: ClientAddr(client.parse().unwrap()),
                    destination: OrigDst(destination.parse().unwrap()),
                };
                assert_eq!(CommunityId::of(&tuple).as_str(), expected, "{tuple}");
            }
        }
    }

    #[test]
    fn equal_addresses_are_ordered_by_port() {
        let one = Tuple::tcp("10.0.0.1:80".parse().unwrap(), "10.0.0.1:90".parse().unwrap());
        let other = Tuple::tcp("10.0.0.1:90".parse().unwrap(), "10.0.0.1:80".parse().unwrap());
        assert_eq!(CommunityId::of(&one).as_str(), CommunityId::of(&other).as_str());
    }
}
