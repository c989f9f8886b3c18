//! Rules as `decide` reads them: flat, in the order of their evaluation, comparing numbers only.
//!
//! Rules say nothing of the policies they come from: their names stand beside them, in the same order. So policies
//! of one form share their rules, however many namespaces they are in, and deciding reads what is in the
//! processor's caches.

use std::hash::{Hash, Hasher};
use std::sync::Arc;

use flow::{PolicyRef, Protocol};

use super::ranges::AddressRanges;

/// One rule.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Rule {
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
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub(crate) struct More {
    /// Selectors that have no place in the rule itself.
    pub(crate) sets: Box<[u32]>,
    /// Selectors of nodes.
    pub(crate) nodes: Box<[u32]>,
    /// Numbers of domain name patterns, ascending.
    pub(crate) domains: Box<[u32]>,
    /// The rules to look at, for [`Effect::Continue`].
    pub(crate) rules: Option<Long>,
}

/// What a rule does with what it matches.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Effect {
    Accept,
    Deny,
    /// Leaves the whole tier.
    Pass,
    /// Looks at the rules in [`More::rules`] before the next one.
    Continue,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Ports {
    Any,
    One(PortMatch),
    Many(Box<[PortMatch]>),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
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
    pub(crate) fn new(effect: Effect) -> Self {
        Self {
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

/// Rules, and beside each the policy and the index that it has there.
#[derive(Clone, Debug)]
pub(crate) struct Named {
    pub(crate) rules: Arc<[Rule]>,
    /// One list.
    pub(crate) names: Arc<[Arc<[PolicyRef]>]>,
}

impl Named {
    pub(crate) fn new(rules: Arc<[Rule]>, names: impl Iterator<Item = PolicyRef>) -> Self {
        Self { rules, names: Arc::new([names.collect()]) }
    }
}

/// Rules of a policy that are too many to be copied. The same only as themselves, so that comparing them costs
/// nothing.
#[derive(Clone, Debug)]
pub(crate) struct Long(pub(crate) Named);

impl PartialEq for Long {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0.names, &other.0.names)
    }
}

impl Eq for Long {}

impl Hash for Long {
    fn hash<H: Hasher>(&self, state: &mut H) {
        Arc::as_ptr(&self.0.names).cast::<u8>().hash(state);
    }
}

/// The NetworkPolicies that isolate identities in one direction. What none of their rules accepts is refused.
#[derive(Clone, Debug)]
pub(crate) struct Isolation {
    pub(crate) rules: Arc<[Rule]>,
    /// Equal for equal policies, in this snapshot and any other.
    pub(crate) content: u64,
}

impl Default for Isolation {
    fn default() -> Self {
        Self { rules: Arc::new([]), content: 0 }
    }
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

/// The rules of each policy for ingress and egress, in the order of evaluation.
pub(crate) type Directions = [Box<[Named]>; 2];

/// Ingress and egress, as places in arrays.
pub(crate) const INGRESS: usize = 0;
/// See [`INGRESS`].
pub(crate) const EGRESS: usize = 1;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rule_is_a_cache_line() {
        assert_eq!(size_of::<Rule>(), 64);
    }
}
