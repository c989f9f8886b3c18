//! Policies of the Admin and the Baseline tier. The three kinds differ in spelling only, so they become one.

use flow::{PolicyKind, Protocol, Tier};
use ipnet::IpNet;

use super::Selector;

/// A ClusterNetworkPolicy, an AdminNetworkPolicy or a BaselineAdminNetworkPolicy.
#[derive(Clone, Debug, PartialEq, Hash)]
pub(crate) struct TierPolicy {
    pub(crate) kind: PolicyKind,
    pub(crate) name: String,
    /// Admin or Baseline.
    pub(crate) tier: Tier,
    /// 0 to 1000, the lowest first; `None` for a BaselineAdminNetworkPolicy, which has none and comes last.
    pub(crate) priority: Option<u16>,
    /// The pods it speaks about.
    pub(crate) subject: PodsIn,
    pub(crate) ingress: Vec<TierRule>,
    pub(crate) egress: Vec<TierRule>,
}

impl TierPolicy {
    /// The order of evaluation: by tier, priority and name. Equal names can only be of two kinds.
    pub(crate) fn order(&self) -> (Tier, u16, &str, PolicyKind) {
        (self.tier, self.priority.unwrap_or(u16::MAX), &self.name, self.kind)
    }

    /// True when a rule names a peer that this version does not know, and so fails closed.
    pub(crate) fn has_unknown_peer(&self) -> bool {
        self.ingress.iter().chain(&self.egress).any(|rule| rule.peers.contains(&TierPeer::Unknown))
    }
}

/// Pods by their own labels and their namespace's, both of which must match.
#[derive(Clone, Debug, PartialEq, Hash)]
pub(crate) struct PodsIn {
    pub(crate) namespaces: Selector,
    pub(crate) pods: Selector,
}

#[derive(Clone, Debug, PartialEq, Hash)]
pub(crate) struct TierRule {
    pub(crate) name: Option<String>,
    pub(crate) action: Action,
    /// Any of them; never empty.
    pub(crate) peers: Vec<TierPeer>,
    /// `None`: any port of any protocol.
    pub(crate) ports: Option<Vec<TierPort>>,
}

/// What a rule does with what it matches.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Action {
    /// `Accept`, or `Allow` in an AdminNetworkPolicy.
    Accept,
    Deny,
    /// Leaves the whole tier.
    Pass,
}

#[derive(Clone, Debug, PartialEq, Hash)]
pub(crate) enum TierPeer {
    Pods(PodsIn),
    /// Addresses of the nodes that the selector matches.
    Nodes(Selector),
    /// Pods' addresses included.
    Networks(Vec<IpNet>),
    /// `example.com`, or `*.example.com` for every name below it. Lower case, without a final dot.
    Domains(Vec<String>),
    /// No field that this version knows: the rule fails closed.
    Unknown,
}

#[derive(Clone, Debug, PartialEq, Hash)]
pub(crate) enum TierPort {
    /// Inclusive.
    Range { protocol: Protocol, low: u16, high: u16 },
    /// A container port's name, whatever its protocol.
    Named(String),
}
