//! The shapes of clusters: address families, how pods hang on their node and nodes on each other, and what holds
//! Sluice's rules.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::str::FromStr;

/// An address family.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Family {
    /// IPv4.
    V4,
    /// IPv6.
    V6,
}

impl Family {
    /// As nft names it, and `ip daddr`.
    pub(crate) const fn keyword(self) -> &'static str {
        match self {
            Self::V4 => "ip",
            Self::V6 => "ip6",
        }
    }

    /// As an EndpointSlice names it.
    pub(crate) const fn address_type(self) -> &'static str {
        match self {
            Self::V4 => "IPv4",
            Self::V6 => "IPv6",
        }
    }

    /// The address that stands for every address of a host.
    pub const fn unspecified(self) -> IpAddr {
        match self {
            Self::V4 => IpAddr::V4(Ipv4Addr::UNSPECIFIED),
            Self::V6 => IpAddr::V6(Ipv6Addr::UNSPECIFIED),
        }
    }

    /// The loopback address.
    pub const fn loopback(self) -> IpAddr {
        match self {
            Self::V4 => IpAddr::V4(Ipv4Addr::LOCALHOST),
            Self::V6 => IpAddr::V6(Ipv6Addr::LOCALHOST),
        }
    }
}

/// The families that a cluster has addresses of. Parses from and prints as `4`, `6` and `dual`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Families {
    /// IPv4 alone.
    #[default]
    V4,
    /// IPv6 alone: no node and no pod has an IPv4 address.
    V6,
    /// Both.
    Dual,
}

impl Families {
    /// Every value.
    pub const ALL: [Self; 3] = [Self::V4, Self::V6, Self::Dual];

    /// The families it means, the primary one first.
    pub const fn each(self) -> &'static [Family] {
        match self {
            Self::V4 => &[Family::V4],
            Self::V6 => &[Family::V6],
            Self::Dual => &[Family::V4, Family::V6],
        }
    }

    pub(crate) fn has(self, family: Family) -> bool {
        self.each().contains(&family)
    }
}

impl fmt::Display for Families {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::V4 => "4",
            Self::V6 => "6",
            Self::Dual => "dual",
        })
    }
}

/// How pods hang on their node and nodes on each other. Parses from and prints as `routed`, `bridge`, `vxlan`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Topology {
    /// Routed veth pairs (the ptp plugin, Calico, AWS VPC CNI); nodes route to each other's pods.
    #[default]
    Routed,
    /// A Linux bridge `cni0` on every node (flannel's host-gw backend, kindnet with a bridge).
    Bridge,
    /// The bridge, and VXLAN between the nodes (flannel's and k3s' default).
    Vxlan,
}

impl Topology {
    /// Every value.
    pub const ALL: [Self; 3] = [Self::Routed, Self::Bridge, Self::Vxlan];

    /// Whether the pods of a node share a bridge.
    pub const fn is_bridged(self) -> bool {
        matches!(self, Self::Bridge | Self::Vxlan)
    }
}

impl fmt::Display for Topology {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Routed => "routed",
            Self::Bridge => "bridge",
            Self::Vxlan => "vxlan",
        })
    }
}

/// What holds Sluice's rules on the nodes. Parses from and prints as the configuration's `redirect.backend`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Backend {
    /// What the node offers: nft where its kernel has it.
    #[default]
    Auto,
    /// iptables' nf_tables variant and ipset.
    IptablesNft,
    /// iptables' older variant and ipset.
    IptablesLegacy,
}

impl Backend {
    /// Every value.
    pub const ALL: [Self; 3] = [Self::Auto, Self::IptablesNft, Self::IptablesLegacy];

    /// The lines of a configuration file that ask for it.
    pub fn config(self) -> String {
        format!("redirect: {{backend: {self}}}\n")
    }
}

impl fmt::Display for Backend {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Auto => "auto",
            Self::IptablesNft => "iptables-nft",
            Self::IptablesLegacy => "iptables-legacy",
        })
    }
}

impl FromStr for Backend {
    type Err = UnknownShape;

    fn from_str(text: &str) -> Result<Self, UnknownShape> {
        parse(text, &Self::ALL)
    }
}

/// A name that is none of the possible ones.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UnknownShape {
    given: String,
    possible: String,
}

impl fmt::Display for UnknownShape {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?} is none of {}", self.given, self.possible)
    }
}

impl std::error::Error for UnknownShape {}

fn parse<T: Copy + fmt::Display>(text: &str, all: &[T]) -> Result<T, UnknownShape> {
    let found = all.iter().find(|value| value.to_string() == text);
    found.copied().ok_or_else(|| UnknownShape {
        given: text.to_owned(),
        possible: all.iter().map(T::to_string).collect::<Vec<_>>().join(", "),
    })
}

impl FromStr for Families {
    type Err = UnknownShape;

    fn from_str(text: &str) -> Result<Self, UnknownShape> {
        parse(text, &Self::ALL)
    }
}

impl FromStr for Topology {
    type Err = UnknownShape;

    fn from_str(text: &str) -> Result<Self, UnknownShape> {
        parse(text, &Self::ALL)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shapes_parse_as_they_print_and_in_no_other_way() {
        assert_eq!(Families::ALL.map(|value| value.to_string().parse()), Families::ALL.map(Ok));
        assert_eq!(Topology::ALL.map(|value| value.to_string().parse()), Topology::ALL.map(Ok));
        assert_eq!(Backend::ALL.map(|value| value.to_string().parse()), Backend::ALL.map(Ok));
        let error = "ring".parse::<Topology>().unwrap_err();
        assert_eq!(error.to_string(), "\"ring\" is none of routed, bridge, vxlan");
    }
}
