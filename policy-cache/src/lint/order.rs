//! The order of evaluation in the Admin and Baseline tiers: rules that others leave nothing to decide.

use flow::Tier;

use super::Findings;
use super::dns::Dns;
use super::known::{Known, TierWay, includes, tier_name, tier_ways};
use crate::objects::{Action, Pod, PodsIn, TierPeer, TierPolicy, TierPort, TierRule};

pub(super) fn check(known: &Known<'_>, dns: &Dns<'_>, findings: &mut Findings<'_>) {
    for (place, policy) in known.tiers().iter().enumerate() {
        let before = &known.tiers()[..place];
        let before: Vec<&TierPolicy> = before.iter().map(AsRef::as_ref).collect();
        equal_priority(known, &before, policy, findings);
        for (direction, way) in tier_ways(policy).into_iter().enumerate() {
            for index in 0..way.rules.len() {
                let field = format!("spec.{}[{index}]", way.key);
                let earlier = Earlier { before: &before, policy, way, direction, index };
                if let Some(above) = earlier.that_leaves_nothing() {
                    let message =
                        format!("never decides: {} comes first and matches all of it", above.name());
                    findings.report("shadowed", &tier_name(policy), &field, message);
                } else if cuts_dns(known, dns, &earlier) {
                    let message =
                        "cuts DNS: no rule before it accepts port 53/UDP or passes it on".to_owned();
                    findings.report("cuts-dns", &tier_name(policy), &field, message);
                } else if accepts_in_vain(known, place, &earlier) {
                    let message = "has no effect: no later rule of the Baseline tier denies, and what none denies is allowed";
                    findings.report("dead-rules", &tier_name(policy), &field, message.to_owned());
                }
            }
        }
    }
}

/// A rule and whatever is evaluated before it, in one direction.
struct Earlier<'o> {
    before: &'o [&'o TierPolicy],
    policy: &'o TierPolicy,
    way: TierWay<'o>,
    /// Of the two of [`tier_ways`].
    direction: usize,
    index: usize,
}

/// One of those that are evaluated before.
struct Above<'o> {
    policy: &'o TierPolicy,
    way: TierWay<'o>,
    index: usize,
    is_own: bool,
}

impl<'o> Earlier<'o> {
    fn rule(&self) -> &'o TierRule {
        &self.way.rules[self.index]
    }

    /// The first rule that decides all of this one. In another tier nothing may be passed on before it: what a Pass
    /// leaves to the next tier may be just what this rule is about.
    fn that_leaves_nothing(&self) -> Option<Above<'o>> {
        let passes_on = |above: &Above<'_>| {
            above.policy.tier != self.policy.tier && above.way.rules[above.index].action == Action::Pass
        };
        let mut passed_on = false;
        self.all().find(|above| {
            let is_other_tier = above.policy.tier != self.policy.tier;
            let decides = !(is_other_tier && passed_on) && above.leaves_nothing_to(self.policy, self.rule());
            passed_on |= passes_on(above);
            decides
        })
    }

    fn all(&self) -> impl Iterator<Item = Above<'o>> {
        let direction = self.direction;
        let others = self.before.iter().flat_map(move |policy| {
            let way = tier_ways(policy)[direction];
            (0..way.rules.len()).map(move |index| Above { policy, way, index, is_own: false })
        });
        let (policy, way) = (self.policy, self.way);
        let own = (0..self.index).map(move |index| Above { policy, way, index, is_own: true });
        others.chain(own)
    }
}

impl Above<'_> {
    fn name(&self) -> String {
        let field = format!("spec.{}[{}]", self.way.key, self.index);
        if self.is_own { field } else { format!("{field} of {}", tier_name(self.policy)) }
    }

    /// True when it ends the evaluation of everything that a later rule matches.
    fn leaves_nothing_to(&self, policy: &TierPolicy, rule: &TierRule) -> bool {
        let own = &self.way.rules[self.index];
        let ends = self.policy.tier == policy.tier || own.action != Action::Pass;
        ends && subject_covers(&self.policy.subject, &policy.subject) && rule_covers(own, rule)
    }
}

fn subject_covers(wide: &PodsIn, narrow: &PodsIn) -> bool {
    includes(&wide.namespaces, &narrow.namespaces) && includes(&wide.pods, &narrow.pods)
}

fn rule_covers(above: &TierRule, rule: &TierRule) -> bool {
    if rule.peers.contains(&TierPeer::Unknown) {
        return false;
    }
    if above.peers.contains(&TierPeer::Unknown) {
        // Fails closed: a Deny or Pass of everything, an Accept of nothing.
        return above.action != Action::Accept;
    }
    ports_cover(above.ports.as_deref(), rule.ports.as_deref())
        && rule.peers.iter().all(|peer| above.peers.iter().any(|one| peer_covers(one, peer)))
}

fn peer_covers(wide: &TierPeer, narrow: &TierPeer) -> bool {
    match (wide, narrow) {
        (TierPeer::Pods(wide), TierPeer::Pods(narrow)) => subject_covers(wide, narrow),
        (TierPeer::Nodes(wide), TierPeer::Nodes(narrow)) => includes(wide, narrow),
        (TierPeer::Networks(wide), TierPeer::Networks(narrow)) => {
            narrow.iter().all(|network| wide.iter().any(|one| one.contains(network)))
        }
        (TierPeer::Domains(wide), TierPeer::Domains(narrow)) => narrow.iter().all(|name| wide.contains(name)),
        _ => false,
    }
}

/// None is every port.
fn ports_cover(wide: Option<&[TierPort]>, narrow: Option<&[TierPort]>) -> bool {
    match (wide, narrow) {
        (None, _) => true,
        (Some(_), None) => false,
        (Some(wide), Some(narrow)) => narrow.iter().all(|port| wide.iter().any(|one| port_covers(one, port))),
    }
}

fn port_covers(wide: &TierPort, narrow: &TierPort) -> bool {
    match (wide, narrow) {
        (
            TierPort::Range { protocol, low, high },
            TierPort::Range { protocol: own, low: own_low, high: own_high },
        ) => protocol == own && low <= own_low && own_high <= high,
        _ => wide == narrow,
    }
}

/// Two policies of one tier and priority that speak about one pod: the API leaves open which comes first.
fn equal_priority(
    known: &Known<'_>,
    before: &[&TierPolicy],
    policy: &TierPolicy,
    findings: &mut Findings<'_>,
) {
    let equal = |other: &&&TierPolicy| {
        policy.priority.is_some() && other.priority == policy.priority && other.tier == policy.tier
    };
    let both = |other: &TierPolicy| {
        let shares_direction = tier_ways(other)
            .iter()
            .zip(tier_ways(policy))
            .any(|(a, b)| !a.rules.is_empty() && !b.rules.is_empty());
        shares_direction && known.pods_of(&policy.subject).any(|pod| known.speaks_about(&other.subject, pod))
    };
    if let Some(other) = before.iter().filter(equal).find(|other| both(other)) {
        let message = format!(
            "is that of {} too, and both speak about the same pods: which comes first is not defined (here it is the name)",
            tier_name(other)
        );
        findings.report("equal-priorities", &tier_name(policy), "spec.priority", message);
    }
}

/// A Deny that the cluster's DNS pods are behind, with nothing before it that lets a name be asked for.
fn cuts_dns(known: &Known<'_>, dns: &Dns<'_>, earlier: &Earlier<'_>) -> bool {
    earlier.way.key == "egress"
        && dns.is_denied_by(earlier.rule())
        && !(earlier.policy.tier == Tier::Baseline && is_hidden(known, earlier.policy))
        && !earlier.all().any(|above| dns.is_let_through_by(&above.way.rules[above.index]))
}

/// True when NetworkPolicies isolate the egress of every pod that a policy of the Baseline tier speaks about, which
/// then never asks it. Pods that are not shown may not be isolated.
fn is_hidden(known: &Known<'_>, policy: &TierPolicy) -> bool {
    let isolating = |pod: &Pod| {
        known.policies().any(|other| {
            other.egress.is_some()
                && other.namespace == pod.namespace
                && other.pod_selector.matches(&pod.labels)
        })
    };
    let mut pods = known.pods_of(&policy.subject).peekable();
    pods.peek().is_some() && pods.all(isolating)
}

/// An Accept of the Baseline tier after which nothing denies: without it all would be the same.
fn accepts_in_vain(known: &Known<'_>, place: usize, earlier: &Earlier<'_>) -> bool {
    if earlier.policy.tier != Tier::Baseline || earlier.rule().action == Action::Deny {
        return false;
    }
    let denies = |rule: &TierRule| {
        rule.action == Action::Deny
            || (rule.action == Action::Pass && rule.peers.contains(&TierPeer::Unknown))
    };
    let own = &earlier.way.rules[earlier.index..];
    let later =
        known.tiers()[place + 1..].iter().flat_map(|policy| tier_ways(policy)[earlier.direction].rules);
    !own.iter().chain(later).any(denies)
}
