//! What crosses a namespace's doorstep, seen and disturbed through small nftables tables of the tests' own.

use std::io::Read;
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use lab::{Netns, patiently};
use socket2::{Domain, Protocol, Type};

/// Counts the connection attempts that reach a namespace.
#[derive(Debug)]
pub struct SynCount<'a>(&'a Netns);

impl<'a> SynCount<'a> {
    /// Counts from now on. Once per namespace.
    pub fn start(netns: &'a Netns) -> Self {
        let table = "table inet tap {\n counter syns { }\n chain arriving {\n type filter hook prerouting priority -400\n \
                     iifname != lo tcp flags & (syn | ack) == syn counter name syns\n }\n}\n";
        netns.nft(table).expect("count packets");
        Self(netns)
    }

    /// How many there were.
    pub fn count(&self) -> u64 {
        let output = self.0.command("nft").args(["-j", "list", "counter", "inet", "tap", "syns"]).output();
        let listing: serde_json::Value =
            serde_json::from_slice(&output.expect("nft").stdout).expect("nft's JSON");
        let objects = listing["nftables"].as_array().expect("a list");
        objects.iter().find_map(|object| object["counter"]["packets"].as_u64()).expect("the counter")
    }
}

/// Swallows what belongs to handshakes of a namespace, as a firewall without manners does, until dropped.
#[derive(Debug)]
pub struct Hole<'a>(&'a Netns);

impl<'a> Hole<'a> {
    /// Swallows connection attempts to a port. One hole at a time per namespace.
    pub fn dig(netns: &'a Netns, port: u16) -> Self {
        Self::swallow(netns, &format!("tcp dport {port} tcp flags & (syn | ack) == syn"))
    }

    /// Swallows the answers to connection attempts that come from a port elsewhere.
    pub fn dig_for_answers(netns: &'a Netns, port: u16) -> Self {
        Self::swallow(netns, &format!("tcp sport {port} tcp flags & (syn | ack) == (syn | ack)"))
    }

    fn swallow(netns: &'a Netns, what: &str) -> Self {
        let table = format!(
            "table inet hole {{\n chain arriving {{\n type filter hook prerouting priority -350\n {what} drop\n }}\n}}\n"
        );
        netns.nft(&table).expect("swallow packets");
        Self(netns)
    }
}

impl Drop for Hole<'_> {
    fn drop(&mut self) {
        // Together with the namespace it may be gone already.
        let _ = self.0.nft("delete table inet hole\n");
    }
}

/// Whether an echo request is answered in time. Source: icmp(7), RFC 792, RFC 4443.
pub fn echo(from: &Netns, to: IpAddr) -> bool {
    const NUMBERS: [u8; 4] = [0xe5, 0xca, 0, 1];
    // The type of request and answer, and where the message begins in what is received.
    let (domain, protocol, request, answer, header) = match to {
        IpAddr::V4(_) => (Domain::IPV4, Protocol::ICMPV4, 8, 0, 20),
        IpAddr::V6(_) => (Domain::IPV6, Protocol::ICMPV6, 128, 129, 0),
    };
    let socket = from.socket(domain, Type::RAW, Some(protocol)).expect("a raw socket");
    socket.set_read_timeout(Some(Duration::from_millis(100))).expect("a read limit");
    let mut message = [request, 0, 0, 0, NUMBERS[0], NUMBERS[1], NUMBERS[2], NUMBERS[3]];
    // The kernel writes that of ICMPv6 itself.
    let sum = [u32::from(request) << 8, 0xe5ca, 0x0001].iter().sum::<u32>();
    let checksum = !u16::try_from((sum & 0xffff) + (sum >> 16)).expect("folded");
    message[2..4].copy_from_slice(&checksum.to_be_bytes());
    socket.send_to(&message, &SocketAddr::new(to, 0).into()).expect("send");
    let end = Instant::now() + patiently(Duration::from_millis(500));
    while Instant::now() < end {
        let mut buffer = [0; 256];
        // A raw socket gets copies of everything.
        if let Ok(length) = (&socket).read(&mut buffer)
            && let Some(message) = buffer[..length].get(header..header + 8)
            && message[0] == answer
            && message[4..] == NUMBERS
        {
            return true;
        }
    }
    false
}
