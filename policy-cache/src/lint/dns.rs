//! Pods that are let go somewhere and cannot ask for its address.
//!
//! Where the manifests show the cluster's DNS pods, a rule must lead to one of them. Else a rule for the port counts,
//! whoever its peers are, and one for all ports when its peers may well include DNS.

use std::collections::HashMap;
use std::net::IpAddr;

use flow::{Protocol, Tier};
use ipnet::IpNet;

use super::Findings;
use super::known::{Known, NAMESPACE_NAME_LABEL, includes, is_inside, name, tier_ways};
use crate::objects::{
    Action, NetworkPolicy, Numbers, Operator, Peer, Pod, Rule, Selector, Service, TierPeer, TierPort,
    TierRule,
};

/// The port of DNS, which every cluster serves over UDP.
const PORT: u16 = 53;
/// Where the DNS of a cluster runs, and the label of its pods, whichever program it is.
const NAMESPACE: &str = "kube-system";
const LABEL: (&str, &str) = ("k8s-app", "kube-dns");
/// The Service that pods ask.
const SERVICE: &str = "kube-dns";
/// A block this wide may be the whole of a cluster's pod addresses.
const WIDE: u8 = 16;

/// The cluster's DNS, as far as it is known.
#[derive(Debug)]
pub(super) struct Dns<'k> {
    known: &'k Known<'k>,
    /// Each with the port it serves. Empty: the manifests do not show them.
    servers: Vec<(&'k Pod, u16)>,
    /// What pods dial. A rule never sees it: it is translated to a server's own address before.
    cluster_ips: Vec<IpAddr>,
    /// They are the cluster's by label or Service, not just somebody who serves the port.
    are_the_clusters: bool,
}

impl<'k> Dns<'k> {
    pub(super) fn new(known: &'k Known<'k>) -> Self {
        let mut servers: Vec<(&Pod, u16)> = Vec::new();
        let services = known.services.dialled(Protocol::Udp, PORT).iter();
        for led in services.filter(|led| led.service.namespace == NAMESPACE && led.service.name == SERVICE) {
            servers.extend(led.to.iter().map(|(place, port)| (&known.pods[*place], *port)));
        }
        if servers.is_empty() {
            let labelled = |pod: &&Pod| pod.labels.get(LABEL.0).is_some_and(|value| value == LABEL.1);
            servers.extend(known.pods.iter().filter(labelled).map(|pod| (pod, PORT)));
        }
        let are_the_clusters = !servers.is_empty();
        if servers.is_empty() {
            // Whoever serves the port answers, whatever he is called.
            let serves = |pod: &&Pod| {
                let own =
                    |port: &crate::objects::NamedPort| port.protocol == Protocol::Udp && port.number == PORT;
                pod.named_ports.iter().any(own)
            };
            servers.extend(known.pods.iter().filter(serves).map(|pod| (pod, PORT)));
        }
        let own = |service: &&Service| service.namespace == NAMESPACE && service.name == SERVICE;
        let services = known.objects.services.iter().filter(own);
        let cluster_ips = services.flat_map(|service| service.cluster_ips.iter().copied()).collect();
        Self { known, servers, cluster_ips, are_the_clusters }
    }

    /// True for a block that was meant for the DNS Service's own address, and so matches nobody. A wide one may hold the
    /// servers too, where their addresses are not shown.
    fn is_of_the_service(&self, block: &IpNet) -> bool {
        let is_one = block.prefix_len() == block.max_prefix_len();
        let are_shown = !self.servers.is_empty() && self.servers.iter().all(|(pod, _)| !pod.ips.is_empty());
        (is_one || are_shown) && self.cluster_ips.iter().any(|ip| block.contains(ip))
    }

    fn names_the_service(&self, rule: &Rule) -> bool {
        let of_service =
            |peer: &Peer| matches!(peer, Peer::Block { cidr, .. } if self.is_of_the_service(cidr));
        rule.peers.iter().flatten().any(of_service)
    }

    fn is_allowed_by(&self, policy: &NetworkPolicy) -> bool {
        policy.egress.iter().flatten().any(|rule| self.rule_allows(policy, rule))
    }

    fn rule_allows(&self, policy: &NetworkPolicy, rule: &Rule) -> bool {
        let to_port =
            |port: u16| rule.ports.as_ref().is_none_or(|ports| ports.iter().any(|own| takes(own, port)));
        let Some(peers) = &rule.peers else { return self.ports().any(to_port) };
        if self.servers.is_empty() {
            let by_name = rule.ports.is_some();
            let other =
                |peer: &&Peer| !matches!(peer, Peer::Block { cidr, .. } if self.is_of_the_service(cidr));
            return to_port(PORT)
                && peers.iter().filter(other).any(|peer| by_name || may_be_dns(self.known, policy, peer));
        }
        let leads = |peer: &Peer| {
            let to = |(pod, port): &(&Pod, u16)| {
                to_port(*port) && self.known.matches(peer, &policy.namespace, pod)
            };
            // A resolver of the node's, or outside: whoever names the port means it.
            let elsewhere = matches!(peer, Peer::Block { cidr, .. } if !self.is_of_the_service(cidr))
                && rule.ports.is_some()
                && to_port(PORT);
            elsewhere || self.servers.iter().any(to)
        };
        peers.iter().any(leads)
    }

    fn ports(&self) -> impl Iterator<Item = u16> {
        let of_servers = self.servers.iter().map(|(_, port)| *port);
        of_servers.chain(self.servers.is_empty().then_some(PORT))
    }

    /// True for a rule that denies asking: the servers that are known, or everybody.
    pub(super) fn is_denied_by(&self, rule: &TierRule) -> bool {
        if rule.action != Action::Deny {
            return false;
        }
        let everybody = |peer: &TierPeer| match peer {
            TierPeer::Pods(selectors) => {
                selectors.namespaces.is_everything() && selectors.pods.is_everything()
            }
            TierPeer::Networks(networks) => networks.iter().any(|network| network.prefix_len() == 0),
            _ => false,
        };
        let covers =
            |port: u16| rule.ports.as_ref().is_none_or(|ports| ports.iter().any(|own| covers(own, port)));
        if rule.peers.iter().any(everybody) && self.ports().all(covers) {
            return true;
        }
        let denied = |(pod, port): &(&Pod, u16)| covers(*port) && self.is_peer(rule, pod);
        self.are_the_clusters && self.servers.iter().all(denied)
    }

    /// True for a rule that accepts asking, or passes it on.
    pub(super) fn is_let_through_by(&self, rule: &TierRule) -> bool {
        // A named port may be that of DNS.
        let takes = |port: u16| {
            let one = |own: &TierPort| matches!(own, TierPort::Named(_)) || covers(own, port);
            rule.ports.as_ref().is_none_or(|ports| ports.iter().any(one))
        };
        let is_elsewhere = |peer: &TierPeer| match peer {
            TierPeer::Networks(networks) => networks.iter().any(|network| !self.is_of_the_service(network)),
            TierPeer::Nodes(_) => true,
            _ => false,
        };
        let elsewhere = || rule.ports.is_some() && takes(PORT) && rule.peers.iter().any(is_elsewhere);
        rule.action != Action::Deny
            && if self.servers.is_empty() {
                takes(PORT)
            } else {
                elsewhere() || self.servers.iter().any(|(pod, port)| takes(*port) && self.is_peer(rule, pod))
            }
    }

    fn is_peer(&self, rule: &TierRule, pod: &Pod) -> bool {
        rule.peers.iter().any(|peer| match peer {
            TierPeer::Pods(selectors) => self.known.speaks_about(selectors, pod),
            TierPeer::Networks(networks) => networks.iter().any(|network| is_inside(pod, network, &[])),
            TierPeer::Nodes(_) | TierPeer::Domains(_) | TierPeer::Unknown => false,
        })
    }
}

/// Who is closed on purpose has no egress rule at all. Who may go somewhere will ask for its address.
pub(super) fn check(known: &Known<'_>, dns: &Dns<'_>, findings: &mut Findings<'_>) {
    let mut allowing: HashMap<&str, Vec<&NetworkPolicy>> = HashMap::new();
    let mut cutting: Vec<&NetworkPolicy> = Vec::new();
    for policy in known.policies() {
        if dns.is_allowed_by(policy) {
            allowing.entry(&policy.namespace).or_default().push(policy);
        } else if policy.egress.as_ref().is_some_and(|rules| !rules.is_empty()) {
            cutting.push(policy);
        }
    }
    for policy in cutting {
        let others = allowing.get(policy.namespace.as_str()).map(Vec::as_slice).unwrap_or_default();
        if let Some(victims) = victims(known, dns, policy, others) {
            let whom = if dns.servers.is_empty() { "" } else { " of the cluster's DNS pods" };
            let dialled = policy.egress.iter().flatten().any(|rule| dns.names_the_service(rule));
            let dialled = if dialled {
                "; a block with the address of the Service kube-system/kube-dns matches nobody, for rules see the pods' own \
                 addresses"
            } else {
                ""
            };
            let message =
                format!("cuts DNS: no policy allows {victims} to send to port 53/UDP{whom}{dialled}");
            findings.report("cuts-dns", &name(policy), "spec.egress", message);
        }
    }
}

/// Whom the policy selects and none of those that allow it does.
fn victims(
    known: &Known<'_>,
    dns: &Dns<'_>,
    policy: &NetworkPolicy,
    allowing: &[&NetworkPolicy],
) -> Option<String> {
    let mut pods = known.selected(policy).peekable();
    if pods.peek().is_none() {
        let covered = allowing.iter().any(|other| includes(&other.pod_selector, &policy.pod_selector));
        return (!covered).then(|| "the pods it selects".to_owned());
    }
    let alone = |pod: &&Pod| {
        !allowing.iter().any(|other| other.pod_selector.matches(&pod.labels))
            && !is_accepted_above(known, dns, pod)
    };
    pods.find(alone).map(|pod| format!("{}/{}", pod.namespace, pod.name))
}

/// True when a rule of the Admin tier may accept asking for this pod, so that no NetworkPolicy is asked.
fn is_accepted_above(known: &Known<'_>, dns: &Dns<'_>, pod: &Pod) -> bool {
    let accepts = |rule: &TierRule| rule.action == Action::Accept && dns.is_let_through_by(rule);
    known.tiers().iter().any(|policy| {
        policy.tier == Tier::Admin
            && known.speaks_about(&policy.subject, pod)
            && tier_ways(policy).iter().any(|way| way.key == "egress" && way.rules.iter().any(accepts))
    })
}

/// True when a port of a rule may be this one. A named one may.
fn takes(own: &crate::objects::Port, port: u16) -> bool {
    own.protocol == Protocol::Udp
        && match &own.numbers {
            Numbers::Any | Numbers::Named(_) => true,
            Numbers::Range(low, high) => *low <= port && port <= *high,
        }
}

fn covers(own: &TierPort, port: u16) -> bool {
    matches!(own, TierPort::Range { protocol: Protocol::Udp, low, high } if *low <= port && port <= *high)
}

/// True when DNS pods that the manifests do not show may be among the peer's.
fn may_be_dns(known: &Known<'_>, policy: &NetworkPolicy, peer: &Peer) -> bool {
    match peer {
        Peer::Block { cidr, .. } => cidr.prefix_len() <= WIDE,
        Peer::Pods { namespaces, pods } => {
            let declared = known.objects.namespaces.iter().find(|one| one.name == NAMESPACE);
            let in_namespace = match namespaces {
                None => policy.namespace == NAMESPACE,
                Some(selector) => selector.requirements.iter().all(|one| {
                    let labels = declared.and_then(|namespace| namespace.labels.get(&one.key));
                    let own = (one.key == NAMESPACE_NAME_LABEL).then_some(NAMESPACE);
                    holds(&one.operator, own.or(labels.map(String::as_str)), declared.is_none())
                }),
            };
            let everything = Selector::default();
            let pods = pods.as_ref().unwrap_or(&everything);
            in_namespace
                && pods
                    .requirements
                    .iter()
                    .all(|one| holds(&one.operator, (one.key == LABEL.0).then_some(LABEL.1), true))
        }
    }
}

/// A requirement on a label. Where its value is not known, one that asks for something of DNS holds.
fn holds(operator: &Operator, value: Option<&str>, is_unknown: bool) -> bool {
    match (operator, value) {
        (Operator::In(values), Some(value)) => values.contains(value),
        (Operator::In(values), None) => {
            is_unknown && values.iter().any(|value| value == NAMESPACE || value.contains("dns"))
        }
        (Operator::NotIn(values), value) => value.is_none_or(|value| !values.contains(value)),
        (Operator::Exists, value) => value.is_some() || is_unknown,
        (Operator::DoesNotExist, value) => value.is_none(),
    }
}
