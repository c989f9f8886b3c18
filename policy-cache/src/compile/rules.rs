//! Rules as `decide` reads them: flat, in the order of their evaluation, comparing numbers only.

use std::sync::Arc;

use flow::{PolicyRef, Protocol};

use super::ranges::AddressRanges;

/// One rule, or the end of a list of NetworkPolicies.
#[derive(Clone, Debug)]
pub(crate) struct Rule {
    /// The policy and this rule's index, or all policies that isolate: what its verdict is attributed to.
    pub(crate) attribution: Arc<[PolicyRef]>,
    /// Peers of the pod's own namespace: a bit for each of that namespace's selectors.
    pub(crate) local: u64,
    /// Peers by the numbers of selectors across namespaces, [`NO_SET`] where there are fewer.
    pub(crate) sets: [u32; 2],
    pub(crate) blocks: Option<Arc<AddressRanges>>,
    pub(crate) more: Option<Box<More>>,
    pub(crate) ports: Ports,
    pub(crate) effect: Effect,
    /// Whoever the peer is.
    pub(crate) any_peer: bool,
}

/// No selector has this number.
pub(crate) const NO_SET: u32 = u32::MAX;

/// What few rules have.
#[derive(Clone, Debug, Default)]
pub(crate) struct More {
    /// Selectors that have no place in the rule itself.
    pub(crate) sets: Box<[u32]>,
    /// Selectors of nodes.
    pub(crate) nodes: Box<[u32]>,
    /// Numbers of domain name patterns, ascending.
    pub(crate) domains: Box<[u32]>,
    /// The rules to go on with, for [`Effect::Continue`].
    pub(crate) rules: Option<Arc<[Rule]>>,
}

/// What a rule does with what it matches.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Effect {
    Accept,
    Deny,
    /// Leaves the whole tier.
    Pass,
    /// No rule of the NetworkPolicies that isolate the pod allows it. Matches everything.
    Refuse,
    /// Looks at the rules in [`More::rules`] before the next one.
    Continue,
}

#[derive(Clone, Debug)]
pub(crate) enum Ports {
    Any,
    One(PortMatch),
    Many(Box<[PortMatch]>),
}

#[derive(Clone, Copy, Debug)]
pub(crate) enum PortMatch {
    /// Inclusive.
    Range { protocol: Protocol, low: u16, high: u16 },
    /// Resolved on the destination pod; the number of a name. `None`: in any protocol.
    Named { protocol: Option<Protocol>, name: u32 },
}

impl FromIterator<PortMatch> for Ports {
    fn from_iter<I: IntoIterator<Item = PortMatch>>(ports: I) -> Self {
        let ports: Vec<PortMatch> = ports.into_iter().collect();
        match ports[..] {
            [one] => Self::One(one),
            _ => Self::Many(ports.into()),
        }
    }
}

impl Rule {
    /// A rule that matches every port of nobody.
    pub(crate) fn new(attribution: Arc<[PolicyRef]>, effect: Effect) -> Self {
        Self {
            attribution,
            local: 0,
            sets: [NO_SET; 2],
            blocks: None,
            more: None,
            ports: Ports::Any,
            effect,
            any_peer: false,
        }
    }

    /// Adds a selector across namespaces.
    pub(crate) fn add_set(&mut self, set: u32) {
        match self.sets.iter_mut().find(|place| **place == NO_SET) {
            Some(place) => *place = set,
            None => {
                let more = self.more.get_or_insert_default();
                more.sets = more.sets.iter().copied().chain([set]).collect();
            }
        }
    }
}

/// The NetworkPolicies that isolate an identity in one direction.
#[derive(Clone, Debug)]
pub(crate) struct Isolation {
    /// Ends with [`Effect::Refuse`].
    pub(crate) rules: Arc<[Rule]>,
    /// Equal for equal policies, in this snapshot and any other.
    pub(crate) content: u64,
}

/// The policies of the Admin and Baseline tier that an identity is a subject of.
#[derive(Debug)]
pub(crate) struct Subject {
    pub(crate) admin: Directions,
    pub(crate) baseline: Directions,
    /// Some rule of them denies.
    pub(crate) may_be_denied: bool,
    /// Equal for equal policies in the same order, in this snapshot and any other.
    pub(crate) content: u64,
}

/// The rules of each policy, in the order of evaluation.
#[derive(Debug, Default)]
pub(crate) struct Directions {
    pub(crate) ingress: Box<[Arc<[Rule]>]>,
    pub(crate) egress: Box<[Arc<[Rule]>]>,
}
