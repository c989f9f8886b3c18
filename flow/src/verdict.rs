//! What was decided, and which policy said so.

use std::fmt;
use std::ops::{Deref, Range};
use std::sync::Arc;

/// The number of a snapshot; grows by one with every published change of the policy cache.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Generation(pub u64);

/// May it pass?
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Verdict {
    /// It may.
    Allow,
    /// It may not.
    Deny,
}

impl Verdict {
    /// `allow` or `deny`.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Allow => "allow",
            Self::Deny => "deny",
        }
    }

    /// True for [`Verdict::Allow`].
    pub const fn is_allow(self) -> bool {
        matches!(self, Self::Allow)
    }
}

/// The tier whose rule or default ended the evaluation of one side.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Tier {
    /// ClusterNetworkPolicy tier Admin, AdminNetworkPolicy.
    Admin,
    /// networking.k8s.io/v1 NetworkPolicy.
    NetworkPolicy,
    /// ClusterNetworkPolicy tier Baseline, BaselineAdminNetworkPolicy.
    Baseline,
    /// No policy had a say: Kubernetes allows.
    Default,
}

impl Tier {
    /// The name used in records and by `sluice verdict`.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Admin => "Admin",
            Self::NetworkPolicy => "NetworkPolicy",
            Self::Baseline => "Baseline",
            Self::Default => "Default",
        }
    }
}

/// The kind of a policy object.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum PolicyKind {
    /// networking.k8s.io/v1.
    NetworkPolicy,
    /// policy.networking.k8s.io/v1alpha2.
    ClusterNetworkPolicy,
    /// policy.networking.k8s.io/v1alpha1.
    AdminNetworkPolicy,
    /// policy.networking.k8s.io/v1alpha1.
    BaselineAdminNetworkPolicy,
}

impl PolicyKind {
    /// The `kind` field of the object.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::NetworkPolicy => "NetworkPolicy",
            Self::ClusterNetworkPolicy => "ClusterNetworkPolicy",
            Self::AdminNetworkPolicy => "AdminNetworkPolicy",
            Self::BaselineAdminNetworkPolicy => "BaselineAdminNetworkPolicy",
        }
    }
}

/// A policy, and the rule of it that decided when one did.
/// Prints as `NetworkPolicy/namespace/name#rule`; cluster-scoped kinds have no namespace part.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PolicyRef {
    /// Kind of the object.
    pub kind: PolicyKind,
    /// Namespace, for namespaced kinds.
    pub namespace: Option<Arc<str>>,
    /// Name.
    pub name: Arc<str>,
    /// Index of the rule in `spec.ingress` or `spec.egress`, from 0. `None` when the policy decided by
    /// isolating the pod, no rule of it having matched.
    pub rule: Option<u32>,
}

impl fmt::Display for PolicyRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/", self.kind.as_str())?;
        if let Some(namespace) = &self.namespace {
            write!(f, "{namespace}/")?;
        }
        f.write_str(&self.name)?;
        match self.rule {
            Some(rule) => write!(f, "#{rule}"),
            None => Ok(()),
        }
    }
}

/// Policies that a verdict names: neighbours in one of its snapshot's lists. Cloning shares the lists and allocates
/// nothing. Many lists are counted as one, so that what is written when a decision names policies has most likely
/// been written lately.
#[derive(Clone)]
pub struct Policies {
    lists: Arc<[Arc<[PolicyRef]>]>,
    list: u32,
    first: u32,
    end: u32,
}

impl Policies {
    /// Those from `places` of one of some lists, up to its end; none where there are no such places.
    pub fn of(lists: Arc<[Arc<[PolicyRef]>]>, list: usize, places: Range<usize>) -> Self {
        let short = |number| u32::try_from(number).unwrap_or(u32::MAX);
        Self { lists, list: short(list), first: short(places.start), end: short(places.end) }
    }
}

impl Deref for Policies {
    type Target = [PolicyRef];

    fn deref(&self) -> &[PolicyRef] {
        let list = self.lists.get(self.list as usize).map(|list| &**list).unwrap_or_default();
        list.get(self.first as usize..list.len().min(self.end as usize)).unwrap_or_default()
    }
}

impl From<Arc<[PolicyRef]>> for Policies {
    fn from(list: Arc<[PolicyRef]>) -> Self {
        Self::of(Arc::new([list]), 0, 0..usize::MAX)
    }
}

impl PartialEq for Policies {
    fn eq(&self, other: &Self) -> bool {
        **self == **other
    }
}

impl Eq for Policies {}

impl fmt::Debug for Policies {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&**self, f)
    }
}

/// Why one side came out as it did.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Reason {
    /// This end is no pod with identity, so the side has nothing to say.
    NotApplicable,
    /// The pod runs on another node, and that node decides for it.
    OtherNode,
    /// No policy isolates the pod in this direction.
    NotIsolated,
    /// A rule matched; `policies` names it.
    RuleMatched,
    /// The pod is isolated and no rule allows the flow; `policies` names those that isolate it.
    NoRuleMatched,
    /// The pod's own node: always allowed.
    OwnNode,
    /// The pod's own address: always allowed.
    OwnAddress,
    /// A local address without a known running pod: refused.
    UnknownLocalPod,
    /// The pod that this connection was decided for no longer exists: refused.
    PodGone,
    /// No snapshot has been published yet: refused.
    NoSnapshot,
}

impl Reason {
    /// The name used in records and by `sluice verdict`.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::NotApplicable => "not-applicable",
            Self::OtherNode => "other-node",
            Self::NotIsolated => "not-isolated",
            Self::RuleMatched => "rule-matched",
            Self::NoRuleMatched => "no-rule-matched",
            Self::OwnNode => "own-node",
            Self::OwnAddress => "own-address",
            Self::UnknownLocalPod => "unknown-local-pod",
            Self::PodGone => "pod-gone",
            Self::NoSnapshot => "no-snapshot",
        }
    }
}

/// The outcome of one side: egress at the source, or ingress at the destination.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SideVerdict {
    /// May it pass this side?
    pub verdict: Verdict,
    /// The tier that ended it; `None` when the side does not apply.
    pub tier: Option<Tier>,
    /// The rule that matched, or every policy that isolates the pod. Shared with the snapshot: cloning it
    /// allocates nothing.
    pub policies: Option<Policies>,
    /// Why.
    pub reason: Reason,
}

impl SideVerdict {
    /// A side that has nothing to say, because its end is no pod with identity.
    pub const fn not_applicable() -> Self {
        Self { verdict: Verdict::Allow, tier: None, policies: None, reason: Reason::NotApplicable }
    }

    /// A side that the node of its pod decides.
    pub const fn other_node() -> Self {
        Self { verdict: Verdict::Allow, tier: None, policies: None, reason: Reason::OtherNode }
    }

    /// A refusal that no policy asked for.
    pub const fn refused(reason: Reason) -> Self {
        Self { verdict: Verdict::Deny, tier: None, policies: None, reason }
    }

    /// The policies as a slice, empty when there are none.
    pub fn policies(&self) -> &[PolicyRef] {
        self.policies.as_deref().unwrap_or_default()
    }
}

/// Both sides of one decision, and the snapshot they were read from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Decision {
    /// The snapshot that was read.
    pub generation: Generation,
    /// Egress at the source.
    pub egress: SideVerdict,
    /// Ingress at the destination.
    pub ingress: SideVerdict,
}

impl Decision {
    /// Both sides must allow.
    pub fn verdict(&self) -> Verdict {
        if self.egress.verdict.is_allow() && self.ingress.verdict.is_allow() {
            Verdict::Allow
        } else {
            Verdict::Deny
        }
    }

    /// A refusal of both sides for a reason that is no policy's.
    pub const fn refused(generation: Generation, reason: Reason) -> Self {
        Self { generation, egress: SideVerdict::refused(reason), ingress: SideVerdict::refused(reason) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn policy_references_print_as_kind_namespace_name_rule() {
        let mut policy = PolicyRef {
            kind: PolicyKind::NetworkPolicy,
            namespace: Some("shop".into()),
            name: "web".into(),
            rule: Some(2),
        };
        assert_eq!(policy.to_string(), "NetworkPolicy/shop/web#2");
        policy.rule = None;
        policy.namespace = None;
        policy.kind = PolicyKind::ClusterNetworkPolicy;
        assert_eq!(policy.to_string(), "ClusterNetworkPolicy/web");
    }

    #[test]
    fn policies_are_those_of_their_places_and_none_beyond_the_end() {
        let named = |name: &str| PolicyRef {
            kind: PolicyKind::NetworkPolicy,
            namespace: None,
            name: name.into(),
            rule: None,
        };
        let list: Arc<[PolicyRef]> = [named("a"), named("b"), named("c")].into();
        let lists: Arc<[_]> = [Arc::from([]), list].into();
        let of = |list, places| Policies::of(Arc::clone(&lists), list, places);
        assert_eq!(*of(1, 1..2), [named("b")]);
        let last = Policies::from(Arc::<[PolicyRef]>::from([named("c")]));
        assert_eq!([of(1, 2..3), of(1, 2..9)], [last.clone(), last]);
        for (list, places) in [(1, 3..3), (1, 4..9), (0, 0..1), (2, 0..1)] {
            assert!(of(list, places).is_empty());
        }
    }

    #[test]
    fn one_denying_side_denies() {
        let mut decision = Decision {
            generation: Generation(1),
            egress: SideVerdict::not_applicable(),
            ingress: SideVerdict::not_applicable(),
        };
        assert_eq!(decision.verdict(), Verdict::Allow);
        decision.ingress = SideVerdict::refused(Reason::UnknownLocalPod);
        assert_eq!(decision.verdict(), Verdict::Deny);
    }
}
