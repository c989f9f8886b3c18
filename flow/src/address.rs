//! Addresses by the role they play in one connection, so that a client can never be passed as a server.

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::str::FromStr;

/// The client's own address and port, before any translation: what the pod sees as its local address.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ClientAddr(pub SocketAddr);

/// The address the client's packets are for after DNAT: the backend pod, not the ClusterIP.
/// Under TPROXY: the accepted socket's local address.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct OrigDst(pub SocketAddr);

/// The address the client dialled, before DNAT: the ClusterIP or NodePort when a Service was used.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct DialedAddr(pub SocketAddr);

/// The source address of the leg towards the server. Equal to the client's address, save where the kernel
/// or a port collision forbids it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct UpstreamSource(pub SocketAddr);

macro_rules! display_inner {
    ($($t:ty),*) => {$(
        impl fmt::Display for $t {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }
    )*};
}
display_inner!(ClientAddr, OrigDst, DialedAddr, UpstreamSource);

/// A transport protocol that NetworkPolicy knows. Parses from and prints as Kubernetes writes it: `TCP`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Protocol {
    /// TCP, the default of every NetworkPolicy port.
    Tcp,
    /// UDP.
    Udp,
    /// SCTP.
    Sctp,
}

impl Protocol {
    /// As Kubernetes writes it: `TCP`, `UDP`, `SCTP`.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Tcp => "TCP",
            Self::Udp => "UDP",
            Self::Sctp => "SCTP",
        }
    }

    /// As the Elastic Common Schema's `network.transport` writes it: `tcp`.
    pub const fn as_lower_str(self) -> &'static str {
        match self {
            Self::Tcp => "tcp",
            Self::Udp => "udp",
            Self::Sctp => "sctp",
        }
    }
}

impl fmt::Display for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl FromStr for Protocol {
    type Err = ();

    /// Kubernetes' spelling only; anything else is `Err(())`, the caller names the field.
    fn from_str(text: &str) -> Result<Self, ()> {
        match text {
            "TCP" => Ok(Self::Tcp),
            "UDP" => Ok(Self::Udp),
            "SCTP" => Ok(Self::Sctp),
            _ => Err(()),
        }
    }
}

/// One connection as the kernel names it after DNAT: protocol, client and backend.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Tuple {
    /// Transport protocol.
    pub protocol: Protocol,
    /// Who opened it.
    pub client: ClientAddr,
    /// Where it goes after DNAT.
    pub destination: OrigDst,
}

impl Tuple {
    /// A TCP tuple with IPv4-mapped IPv6 addresses turned into IPv4.
    pub fn tcp(client: SocketAddr, destination: SocketAddr) -> Self {
        Self {
            protocol: Protocol::Tcp,
            client: ClientAddr(canonical(client)),
            destination: OrigDst(canonical(destination)),
        }
    }

    /// True when the client and the backend are the same address: a pod that reached itself through a Service.
    pub fn is_hairpin(&self) -> bool {
        self.client.0.ip() == self.destination.0.ip()
    }
}

impl fmt::Display for Tuple {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {} -> {}", self.protocol, self.client, self.destination)
    }
}

fn canonical(address: SocketAddr) -> SocketAddr {
    SocketAddr::new(canonical_ip(address.ip()), address.port())
}

/// An IPv4-mapped IPv6 address as IPv4, every other address unchanged (RFC 4291, section 2.5.5.2).
pub fn canonical_ip(ip: IpAddr) -> IpAddr {
    ip.to_canonical()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mapped_addresses_become_ipv4() {
        let tuple = Tuple::tcp("[::ffff:10.0.0.1]:80".parse().unwrap(), "10.0.0.1:90".parse().unwrap());
        assert_eq!(tuple.client.0, "10.0.0.1:80".parse().unwrap());
        assert!(tuple.is_hairpin());
    }

    #[test]
    fn protocols_parse_as_kubernetes_writes_them_and_in_no_other_way() {
        for protocol in [Protocol::Tcp, Protocol::Udp, Protocol::Sctp] {
            assert_eq!(protocol.as_str().parse(), Ok(protocol));
        }
        assert_eq!("tcp".parse::<Protocol>(), Err(()));
    }
}
