//! Reads ClusterNetworkPolicy (v1alpha2), AdminNetworkPolicy and BaselineAdminNetworkPolicy (v1alpha1), and
//! refuses what their CRDs refuse. Source: kubernetes-sigs/network-policy-api, the CRDs' schemas and rules.
//!
//! A peer without any field that is known here is accepted: it comes from a newer version of the CRD, and
//! the API says how the rule then fails closed.

use std::collections::HashSet;

use flow::{PolicyKind, Protocol, Tier};
use ipnet::IpNet;

use super::envelope::Doubt;
use super::fields::{self, Name};
use super::policy;
use super::reader::{Cursor, Findings};
use super::syntax;
use super::tree::Value;
use crate::objects::{Action, PodsIn, Selector, TierPeer, TierPolicy, TierPort, TierRule};

/// The API group of all three kinds, with its slash.
pub(crate) const GROUP: &str = "policy.networking.k8s.io/";

const MAX_PRIORITY: u16 = 1000;
const MAX_NAME: usize = 100;
/// `networks` and `domainNames` of one peer.
const MAX_ADDRESSES: usize = 25;
const MAX_CIDR: usize = 43;
/// The only name a BaselineAdminNetworkPolicy may have.
const SINGLETON: &str = "default";

/// The `apiVersion` in which a kind of this group is read.
pub(crate) fn version(kind: &str) -> Option<&'static str> {
    match kind {
        "ClusterNetworkPolicy" => Some("policy.networking.k8s.io/v1alpha2"),
        "AdminNetworkPolicy" | "BaselineAdminNetworkPolicy" => Some("policy.networking.k8s.io/v1alpha1"),
        _ => None,
    }
}

/// Reads the policy; with problems in the findings it never allows more than what was meant.
pub(crate) fn cluster_network_policy(
    object: &Cursor,
    name: Name,
    doubt: Doubt,
    findings: &mut Findings,
) -> TierPolicy {
    let dialect = Dialect {
        kind: PolicyKind::ClusterNetworkPolicy,
        actions: &[("Accept", Action::Accept), ("Deny", Action::Deny), ("Pass", Action::Pass)],
        max_items: 25,
        ports_key: "protocols",
        port: cluster_port,
        egress_peers: &["namespaces", "pods", "nodes", "networks", "domainNames"],
        pods_required: &["podSelector"],
    };
    dialect.read(object, name, Tier::Admin, &["tier", "priority"], doubt, findings)
}

/// Reads the policy; with problems in the findings it never allows more than what was meant.
pub(crate) fn admin_network_policy(
    object: &Cursor,
    name: Name,
    doubt: Doubt,
    findings: &mut Findings,
) -> TierPolicy {
    let dialect = Dialect {
        kind: PolicyKind::AdminNetworkPolicy,
        actions: &[("Allow", Action::Accept), ("Deny", Action::Deny), ("Pass", Action::Pass)],
        max_items: 100,
        ports_key: "ports",
        port: admin_port,
        egress_peers: &["namespaces", "pods", "nodes", "networks", "domainNames"],
        pods_required: &["namespaceSelector", "podSelector"],
    };
    dialect.read(object, name, Tier::Admin, &["priority"], doubt, findings)
}

/// Reads the policy; with problems in the findings it never allows more than what was meant.
pub(crate) fn baseline_admin_network_policy(
    object: &Cursor,
    name: Name,
    doubt: Doubt,
    findings: &mut Findings,
) -> TierPolicy {
    let misnamed = !name.name.is_empty() && name.name != SINGLETON;
    if misnamed
        && let Some(metadata) = object.get("metadata")
        && let Some(field) = metadata.get("name")
    {
        findings.report(&field, "must be \"default\": there is one BaselineAdminNetworkPolicy in a cluster");
    }
    let dialect = Dialect {
        kind: PolicyKind::BaselineAdminNetworkPolicy,
        actions: &[("Allow", Action::Accept), ("Deny", Action::Deny)],
        max_items: 100,
        ports_key: "ports",
        port: admin_port,
        egress_peers: &["namespaces", "pods", "nodes", "networks"],
        pods_required: &["namespaceSelector", "podSelector"],
    };
    let mut policy = dialect.read(object, name, Tier::Baseline, &[], doubt, findings);
    if misnamed {
        distrust(&mut policy);
    }
    policy
}

/// In what the kinds differ.
struct Dialect {
    kind: PolicyKind,
    actions: &'static [(&'static str, Action)],
    /// Of rules in a direction, of peers in a rule and of ports in a rule.
    max_items: usize,
    ports_key: &'static str,
    port: fn(&Cursor, &mut Findings) -> Option<TierPort>,
    egress_peers: &'static [&'static str],
    pods_required: &'static [&'static str],
}

/// The peers that may stand in `from`.
const INGRESS_PEERS: &[&str] = &["namespaces", "pods"];

impl Dialect {
    /// `own` are the fields of the spec that not every kind has. What cannot be read comes first in its tier,
    /// speaks about every pod, and denies.
    fn read(
        &self,
        object: &Cursor,
        name: Name,
        tier: Tier,
        own: &[&str],
        doubt: Doubt,
        findings: &mut Findings,
    ) -> TierPolicy {
        let mut policy = TierPolicy {
            kind: self.kind,
            name: name.name,
            tier,
            priority: own.contains(&"priority").then_some(0),
            subject: PodsIn { namespaces: Selector::default(), pods: Selector::default() },
            ingress: vec![closed()],
            egress: vec![closed()],
        };
        let Some(spec) = object.get("spec") else {
            findings.missing(object, "spec");
            return policy;
        };
        let before = findings.count();
        let known = [&["subject", "ingress", "egress"], own].concat();
        if !spec.only(&known, findings) {
            return policy;
        }
        let unknown_field = doubt.spec || findings.count() > before;
        let before = findings.count();
        if own.contains(&"tier") {
            policy.tier = self::tier(&spec, findings).unwrap_or(tier);
        }
        if own.contains(&"priority") {
            policy.priority = priority(&spec, findings).or(policy.priority);
        }
        match spec.get("subject") {
            None => findings.missing(&spec, "subject"),
            Some(field) => {
                let before = findings.count();
                let subject = self.subject(&field, findings);
                if let Some(subject) = subject.filter(|_| findings.count() == before) {
                    policy.subject = subject;
                }
            }
        }
        // Whom it speaks about or when it is asked is not known: nothing it accepts can be believed.
        let adrift = findings.count() > before;
        policy.ingress = self.rules(&spec, "ingress", "from", INGRESS_PEERS, unknown_field, findings);
        policy.egress = self.rules(&spec, "egress", "to", self.egress_peers, unknown_field, findings);
        if adrift {
            distrust(&mut policy);
        }
        policy
    }

    fn subject(&self, field: &Cursor, findings: &mut Findings) -> Option<PodsIn> {
        if !field.only(&["namespaces", "pods"], findings) {
            return None;
        }
        let (namespaces, pods) = (field.get("namespaces"), field.get("pods"));
        match (namespaces, pods) {
            (Some(namespaces), None) => Some(all_pods_in(&namespaces, findings)),
            (None, Some(pods)) => self.pods(&pods, findings),
            _ => {
                findings.report(field, "must have exactly one of namespaces and pods");
                None
            }
        }
    }

    fn rules(
        &self,
        spec: &Cursor,
        direction: &str,
        peers_key: &str,
        known_peers: &[&str],
        unknown_field: bool,
        findings: &mut Findings,
    ) -> Vec<TierRule> {
        let Some(list) = spec.get(direction) else {
            // The unknown field may be the misspelt name of this list, and what it denied would be gone.
            return if unknown_field { vec![closed()] } else { Vec::new() };
        };
        let items: Vec<_> = list.items(findings).collect();
        if items.len() > self.max_items {
            let message = format!("may not have more than {} rules", self.max_items);
            findings.report(&list, message);
        }
        if !list.is_list() {
            return vec![closed()];
        }
        items.iter().map(|item| self.rule(item, peers_key, known_peers, findings)).collect()
    }

    fn rule(
        &self,
        item: &Cursor,
        peers_key: &str,
        known_peers: &[&str],
        findings: &mut Findings,
    ) -> TierRule {
        let before = findings.count();
        if !item.only(&["name", "action", peers_key, self.ports_key], findings) {
            return closed();
        }
        let unknown_field = findings.count() > before;
        let name = item.get("name").and_then(|field| {
            let name = field.string(findings)?;
            if name.chars().count() > MAX_NAME {
                findings.report(&field, format!("may not have more than {MAX_NAME} characters"));
            }
            Some(name.to_owned())
        });
        let action = self.action(item, findings);
        let before = findings.count();
        let peers = match item.get(peers_key) {
            Some(list) => self.some(&list, |peer, findings| self.peer(peer, known_peers, findings), findings),
            None => {
                findings.missing(item, peers_key);
                Vec::new()
            }
        };
        let peers_read = !unknown_field && findings.count() == before;
        let before = findings.count();
        let ports = item.get(self.ports_key).map(|list| {
            let ports = self.some(&list, self.port, findings);
            let named = ports.iter().any(|port| matches!(port, TierPort::Named(_)));
            if named && peers.iter().any(|peer| !matches!(peer, TierPeer::Pods(_) | TierPeer::Unknown)) {
                findings.report(
                    &list,
                    "a named port may not stand together with nodes, networks or domainNames, which have none",
                );
            }
            ports
        });
        let ports_read = findings.count() == before;
        match action {
            Some(action) if peers_read && ports_read => TierRule { name, action, peers, ports },
            // An Accept whose peer is unknown matches nothing.
            Some(Action::Accept) => {
                TierRule { name, action: Action::Accept, peers: vec![TierPeer::Unknown], ports: None }
            }
            _ if peers_read => TierRule { name, action: Action::Deny, peers, ports: None },
            _ => TierRule { name, ..closed() },
        }
    }

    fn action(&self, item: &Cursor, findings: &mut Findings) -> Option<Action> {
        let Some(field) = item.get("action") else {
            findings.missing(item, "action");
            return None;
        };
        let text = field.string(findings)?;
        let action = self.actions.iter().find(|(name, _)| *name == text).map(|(_, action)| *action);
        if action.is_none() {
            let names: Vec<_> = self.actions.iter().map(|(name, _)| *name).collect();
            findings.report(&field, format!("must be one of {}", names.join(", ")));
        }
        action
    }

    /// The items of a list that may be neither empty nor too long.
    fn some<T>(
        &self,
        list: &Cursor,
        read: impl Fn(&Cursor, &mut Findings) -> Option<T>,
        findings: &mut Findings,
    ) -> Vec<T> {
        bounded(list, self.max_items, findings).iter().filter_map(|item| read(item, findings)).collect()
    }

    fn peer(&self, item: &Cursor, known: &[&str], findings: &mut Findings) -> Option<TierPeer> {
        if !item.is_map() {
            findings.report(item, "must be a mapping");
            return None;
        }
        let set: Vec<_> =
            item.entries().filter(|(_, field)| !matches!(field.node().value, Value::Null)).collect();
        match set.as_slice() {
            [] => Some(TierPeer::Unknown),
            [(key, field)] if known.contains(key) => match *key {
                "namespaces" => Some(TierPeer::Pods(all_pods_in(field, findings))),
                "pods" => self.pods(field, findings).map(TierPeer::Pods),
                "nodes" => Some(TierPeer::Nodes(policy::selector(field, findings))),
                "networks" => Some(TierPeer::Networks(distinct(field, network, findings))),
                _ => Some(TierPeer::Domains(distinct(field, domain, findings))),
            },
            [_] => Some(TierPeer::Unknown),
            _ => {
                findings.report(item, format!("must have exactly one of {}", known.join(", ")));
                None
            }
        }
    }

    fn pods(&self, field: &Cursor, findings: &mut Findings) -> Option<PodsIn> {
        if !field.only(&["namespaceSelector", "podSelector"], findings) {
            return None;
        }
        for key in self.pods_required {
            if field.get(key).is_none() {
                findings.missing(field, key);
            }
        }
        let mut read = |key: &str| field.get(key).map(|field| policy::selector(&field, findings));
        let (namespaces, pods) = (read("namespaceSelector"), read("podSelector"));
        Some(PodsIn { namespaces: namespaces.unwrap_or_default(), pods: pods.unwrap_or_default() })
    }
}

/// A rule that denies everything: whatever a Deny or Pass that cannot be read was meant to match.
fn closed() -> TierRule {
    TierRule { name: None, action: Action::Deny, peers: vec![TierPeer::Unknown], ports: None }
}

/// Lets no rule of the policy open anything: an Accept matches nothing, a Pass denies.
fn distrust(policy: &mut TierPolicy) {
    for rule in policy.ingress.iter_mut().chain(&mut policy.egress) {
        match rule.action {
            Action::Accept => rule.peers = vec![TierPeer::Unknown],
            Action::Pass => rule.action = Action::Deny,
            Action::Deny => {}
        }
    }
}

fn all_pods_in(namespaces: &Cursor, findings: &mut Findings) -> PodsIn {
    PodsIn { namespaces: policy::selector(namespaces, findings), pods: Selector::default() }
}

fn tier(spec: &Cursor, findings: &mut Findings) -> Option<Tier> {
    let Some(field) = spec.get("tier") else {
        findings.missing(spec, "tier");
        return None;
    };
    match field.string(findings)? {
        "Admin" => Some(Tier::Admin),
        "Baseline" => Some(Tier::Baseline),
        _ => {
            findings.report(&field, "must be Admin or Baseline");
            None
        }
    }
}

fn priority(spec: &Cursor, findings: &mut Findings) -> Option<u16> {
    let Some(field) = spec.get("priority") else {
        findings.missing(spec, "priority");
        return None;
    };
    match u16::try_from(field.integer(findings)?) {
        Ok(priority) if priority <= MAX_PRIORITY => Some(priority),
        _ => {
            findings.report(&field, format!("must be between 0 and {MAX_PRIORITY}"));
            None
        }
    }
}

fn bounded<'n, 'c, 'p: 'c>(
    list: &'c Cursor<'n, 'p>,
    most: usize,
    findings: &mut Findings,
) -> Vec<Cursor<'n, 'c>> {
    let items: Vec<_> = list.items(findings).collect();
    if items.is_empty() && list.is_list() {
        findings.report(list, "may not be empty");
    }
    if items.len() > most {
        findings.report(list, format!("may not have more than {most} items"));
    }
    items
}

/// The items of a set of texts (`x-kubernetes-list-type: set`).
fn distinct<T>(
    list: &Cursor,
    read: fn(&str, &Cursor, &mut Findings) -> Option<T>,
    findings: &mut Findings,
) -> Vec<T> {
    let mut seen = HashSet::new();
    let mut values = Vec::new();
    for item in bounded(list, MAX_ADDRESSES, findings) {
        let Some(text) = item.string(findings) else { continue };
        if !seen.insert(text) {
            findings.report(&item, "is listed twice");
        }
        values.extend(read(text, &item, findings));
    }
    values
}

fn network(text: &str, item: &Cursor, findings: &mut Findings) -> Option<IpNet> {
    if text.len() > MAX_CIDR {
        findings.report(item, format!("may not have more than {MAX_CIDR} characters"));
        return None;
    }
    // The API server's isCIDR() refuses what a NetworkPolicy may still say.
    if matches!(text.parse::<IpNet>(), Ok(IpNet::V6(net)) if net.addr().to_ipv4_mapped().is_some()) {
        findings.report(item, "may not be an IPv4-mapped IPv6 network: write it as IPv4");
        return None;
    }
    policy::cidr(item, findings)
}

fn domain(text: &str, item: &Cursor, findings: &mut Findings) -> Option<String> {
    if !syntax::is_domain_pattern(text) {
        findings.report(item, "must be a domain name such as example.com or *.example.com");
        return None;
    }
    Some(text.strip_suffix('.').unwrap_or(text).to_ascii_lowercase())
}

/// An item of a ClusterNetworkPolicy's `protocols`.
fn cluster_port(item: &Cursor, findings: &mut Findings) -> Option<TierPort> {
    const KINDS: [(&str, Option<Protocol>); 4] = [
        ("tcp", Some(Protocol::Tcp)),
        ("udp", Some(Protocol::Udp)),
        ("sctp", Some(Protocol::Sctp)),
        ("destinationNamedPort", None),
    ];
    let (field, protocol) = only_one(item, &KINDS, findings)?;
    let Some(protocol) = protocol else { return named_port(&field, findings) };
    if !field.only(&["destinationPort"], findings) {
        return None;
    }
    let Some(port) = field.get("destinationPort") else {
        findings.missing(&field, "destinationPort");
        return None;
    };
    let (field, is_range) = only_one(&port, &[("number", false), ("range", true)], findings)?;
    if is_range {
        return range(&field, protocol, &["start", "end"], findings);
    }
    let number = fields::port_number(&field, findings)?;
    Some(TierPort::Range { protocol, low: number, high: number })
}

/// An item of an AdminNetworkPolicy's `ports`.
fn admin_port(item: &Cursor, findings: &mut Findings) -> Option<TierPort> {
    let kinds = [("portNumber", 0), ("portRange", 1), ("namedPort", 2)];
    let (field, kind) = only_one(item, &kinds, findings)?;
    if kind == 2 {
        return named_port(&field, findings);
    }
    if !field.is_map() {
        findings.report(&field, "must be a mapping");
        return None;
    }
    let protocol = fields::protocol(&field, findings);
    if kind == 1 {
        return range(&field, protocol?, &["protocol", "start", "end"], findings);
    }
    field.only(&["protocol", "port"], findings);
    let Some(port) = field.get("port") else {
        findings.missing(&field, "port");
        return None;
    };
    let number = fields::port_number(&port, findings)?;
    Some(TierPort::Range { protocol: protocol?, low: number, high: number })
}

/// The one field of a mapping that must have exactly one.
fn only_one<'n, 'c, 'p: 'c, T: Copy>(
    item: &'c Cursor<'n, 'p>,
    kinds: &[(&str, T)],
    findings: &mut Findings,
) -> Option<(Cursor<'n, 'c>, T)> {
    let names: Vec<_> = kinds.iter().map(|(name, _)| *name).collect();
    if !item.only(&names, findings) {
        return None;
    }
    let mut set = kinds.iter().filter_map(|(name, kind)| Some((item.get(name)?, *kind)));
    let (first, second) = (set.next(), set.next());
    if first.is_none() || second.is_some() {
        findings.report(item, format!("must have exactly one of {}", names.join(", ")));
        return None;
    }
    first
}

/// The CRDs ask nothing of the name; one that no container can have matches nothing.
fn named_port(field: &Cursor, findings: &mut Findings) -> Option<TierPort> {
    let name = field.string(findings)?;
    if name.is_empty() {
        findings.report(field, "may not be empty");
        return None;
    }
    Some(TierPort::Named(name.to_owned()))
}

fn range(field: &Cursor, protocol: Protocol, known: &[&str], findings: &mut Findings) -> Option<TierPort> {
    if !field.only(known, findings) {
        return None;
    }
    let mut number = |key: &str| match field.get(key) {
        Some(field) => fields::port_number(&field, findings),
        None => {
            findings.missing(field, key);
            None
        }
    };
    let (low, high) = (number("start"), number("end"));
    let (low, high) = (low?, high?);
    if low >= high {
        findings.report(field, "start must be less than end");
        return None;
    }
    Some(TierPort::Range { protocol, low, high })
}
