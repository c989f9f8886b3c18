//! Reads a networking.k8s.io/v1 NetworkPolicy, refuses what the API server refuses and applies its defaults.
//! Sources: k8s.io/api/networking/v1/types.go, pkg/apis/networking/validation.

use ipnet::{IpNet, Ipv4Net};
use std::net::IpAddr;

use super::envelope::Doubt;
use super::fields::{self, Name};
use super::reader::{Cursor, Findings};
use super::tree::Value;
use crate::objects::{NetworkPolicy, Numbers, Operator, Peer, Port, Requirement, Rule, Selector};

/// Reads the policy. With a problem in the findings what it returns never allows more than what was meant:
/// an unreadable selector selects every pod of the namespace and then no rule allows anything, unreadable
/// `policyTypes` isolate in both directions, and a rule with a problem anywhere in it allows nothing.
pub(crate) fn network_policy(
    object: &Cursor,
    name: Name,
    doubt: Doubt,
    findings: &mut Findings,
) -> NetworkPolicy {
    let mut policy = NetworkPolicy {
        namespace: name.namespace,
        name: name.name,
        pod_selector: Selector::default(),
        ingress: Some(Vec::new()),
        egress: doubt.spec.then(Vec::new),
    };
    let Some(spec) = object.get("spec") else { return policy };
    let before = findings.count();
    if !spec.only(&["podSelector", "ingress", "egress", "policyTypes"], findings) {
        policy.egress = Some(Vec::new());
        return policy;
    }
    // It may be the misspelt name of any of the known ones.
    let unknown_field = doubt.spec || findings.count() > before;
    let mut selected = !unknown_field;
    if let Some(field) = spec.get("podSelector") {
        let before = findings.count();
        let selector = selector(&field, findings);
        selected = findings.count() == before;
        if selected {
            policy.pod_selector = selector;
        }
    }
    let ingress = rules(&spec, "ingress", "from", findings);
    let egress = rules(&spec, "egress", "to", findings);
    let has_egress = spec.get("egress").is_some_and(|list| !list.is_list() || !egress.is_empty());
    let (in_ingress, in_egress) = policy_types(&spec, has_egress, unknown_field, findings);
    let kept = |rules: Vec<Rule>| if selected { rules } else { Vec::new() };
    policy.ingress = in_ingress.then_some(kept(ingress));
    policy.egress = in_egress.then_some(kept(egress));
    policy
}

/// Absent or empty means Ingress, and Egress when there are egress rules.
fn policy_types(
    spec: &Cursor,
    has_egress_rules: bool,
    unknown_field: bool,
    findings: &mut Findings,
) -> (bool, bool) {
    let by_rules = (true, has_egress_rules || unknown_field);
    let Some(list) = spec.get("policyTypes") else { return by_rules };
    let before = findings.count();
    let (mut ingress, mut egress, mut count) = (false, false, 0);
    for item in list.items(findings) {
        count += 1;
        match item.string(findings) {
            Some("Ingress") => ingress = true,
            Some("Egress") => egress = true,
            Some(_) => findings.report(&item, "must be Ingress or Egress"),
            None => {}
        }
    }
    if count > 2 {
        findings.report(&list, "may not list more than two policy types");
    }
    match count {
        _ if findings.count() > before => (true, true),
        0 => by_rules,
        _ => (ingress, egress),
    }
}

/// A rule with a problem keeps its place, so that the others keep their numbers, and matches nothing.
fn rules(spec: &Cursor, direction: &str, peers_key: &str, findings: &mut Findings) -> Vec<Rule> {
    let Some(list) = spec.get(direction) else { return Vec::new() };
    let mut rules = Vec::new();
    for item in list.items(findings) {
        let before = findings.count();
        // A null item is the empty rule, as it is in the API server.
        let mut rule = Rule { peers: None, ports: None };
        if matches!(item.node().value, Value::Null) || item.only(&["ports", peers_key], findings) {
            rule.peers = non_empty(&item, peers_key, peer, findings);
            rule.ports = non_empty(&item, "ports", port, findings);
        }
        if findings.count() > before {
            rule = Rule { peers: Some(Vec::new()), ports: Some(Vec::new()) };
        }
        rules.push(rule);
    }
    rules
}

/// The items of the list `key`; absent, null and empty are all `None`.
fn non_empty<T>(
    rule: &Cursor,
    key: &str,
    read: fn(&Cursor, &mut Findings) -> Option<T>,
    findings: &mut Findings,
) -> Option<Vec<T>> {
    let list = rule.get(key)?;
    let cursors: Vec<_> = list.items(findings).collect();
    if cursors.is_empty() {
        return None;
    }
    Some(cursors.iter().filter_map(|item| read(item, findings)).collect())
}

fn peer(item: &Cursor, findings: &mut Findings) -> Option<Peer> {
    if !item.only(&["ipBlock", "namespaceSelector", "podSelector"], findings) {
        return None;
    }
    let block = item.get("ipBlock");
    let namespaces = item.get("namespaceSelector").map(|field| selector(&field, findings));
    let pods = item.get("podSelector").map(|field| selector(&field, findings));
    match block {
        Some(field) if namespaces.is_some() || pods.is_some() => {
            findings.report(&field, "may not stand together with a selector");
            None
        }
        Some(field) => ip_block(&field, findings),
        None if namespaces.is_none() && pods.is_none() => {
            findings.report(item, "must have an ipBlock, a namespaceSelector or a podSelector");
            None
        }
        None => Some(Peer::Pods { namespaces, pods }),
    }
}

fn ip_block(field: &Cursor, findings: &mut Findings) -> Option<Peer> {
    if !field.only(&["cidr", "except"], findings) {
        return None;
    }
    let Some(cidr_field) = field.get("cidr") else {
        findings.missing(field, "cidr");
        return None;
    };
    let cidr = cidr(&cidr_field, findings)?;
    let mut except = Vec::new();
    if let Some(list) = field.get("except") {
        for item in list.items(findings) {
            let Some(range) = self::cidr(&item, findings) else { continue };
            if range.prefix_len() <= cidr.prefix_len() || !cidr.contains(&range) {
                findings.report(&item, format!("must lie inside the cidr {cidr} and be smaller"));
                continue;
            }
            except.push(range);
        }
    }
    Some(Peer::Block { cidr, except })
}

/// A CIDR with its host bits masked; an IPv4-mapped one becomes IPv4, so that it compares as a number.
pub(crate) fn cidr(field: &Cursor, findings: &mut Findings) -> Option<IpNet> {
    let text = field.string(findings)?;
    let Ok(net) = text.parse::<IpNet>() else {
        findings.report(field, "must be a CIDR such as 10.0.0.0/8 or fd00::/64");
        return None;
    };
    let net = net.trunc();
    if let (IpNet::V6(v6), IpAddr::V4(v4)) = (net, net.addr().to_canonical())
        && let Some(prefix) = v6.prefix_len().checked_sub(96)
        && let Ok(mapped) = Ipv4Net::new(v4, prefix)
    {
        return Some(IpNet::V4(mapped));
    }
    Some(net)
}

fn port(item: &Cursor, findings: &mut Findings) -> Option<Port> {
    // A null item is the empty port: all of TCP.
    if !matches!(item.node().value, Value::Null) && !item.only(&["port", "protocol", "endPort"], findings) {
        return None;
    }
    let protocol = fields::protocol(item, findings);
    let end = item.get("endPort");
    let numbers = match item.get("port") {
        None => {
            if let Some(end) = &end {
                findings.report(end, "may not stand without a port");
            }
            Numbers::Any
        }
        Some(field) if matches!(field.node().value, Value::String(_)) => {
            if let Some(end) = &end {
                findings.report(end, "may not stand with a named port");
            }
            Numbers::Named(fields::port_name(&field, findings)?)
        }
        Some(field) => port_range(&field, end.as_ref(), findings)?,
    };
    Some(Port { protocol: protocol?, numbers })
}

fn port_range(first: &Cursor, end: Option<&Cursor>, findings: &mut Findings) -> Option<Numbers> {
    if !matches!(first.node().value, Value::Integer(_)) {
        findings.report(first, "must be a port number or a port name");
        return None;
    }
    let low = fields::port_number(first, findings);
    let Some(end) = end else { return Some(Numbers::Range(low?, low?)) };
    let (high, low) = (fields::port_number(end, findings)?, low?);
    if high < low {
        findings.report(end, format!("must not be lower than port {low}"));
        return None;
    }
    Some(Numbers::Range(low, high))
}

pub(crate) fn selector(field: &Cursor, findings: &mut Findings) -> Selector {
    let mut selector = Selector::default();
    if !field.only(&["matchLabels", "matchExpressions"], findings) {
        return selector;
    }
    if let Some(map) = field.get("matchLabels") {
        for (key, value) in fields::labels(&map, findings) {
            selector.requirements.push(Requirement { key, operator: Operator::In([value].into()) });
        }
    }
    if let Some(list) = field.get("matchExpressions") {
        for item in list.items(findings) {
            selector.requirements.extend(requirement(&item, findings));
        }
    }
    selector
}

fn requirement(item: &Cursor, findings: &mut Findings) -> Option<Requirement> {
    if !item.only(&["key", "operator", "values"], findings) {
        return None;
    }
    let key = match item.get("key") {
        None => {
            findings.missing(item, "key");
            None
        }
        Some(field) => field.string(findings).filter(|key| fields::label_key(key, &field, findings)),
    };
    let list = item.get("values");
    let mut values = std::collections::BTreeSet::new();
    let mut count = 0;
    if let Some(list) = &list {
        for value in list.items(findings) {
            count += 1;
            values.extend(fields::label_value(&value, findings));
        }
    }
    let Some(field) = item.get("operator") else {
        findings.missing(item, "operator");
        return None;
    };
    let operator = match field.string(findings)? {
        // What is no list has been reported.
        "In" | "NotIn" if count == 0 && list.as_ref().is_some_and(|list| !list.is_list()) => return None,
        "In" | "NotIn" if count == 0 => {
            findings.report(list.as_ref().unwrap_or(item), "In and NotIn need values");
            return None;
        }
        "In" => Operator::In(values),
        "NotIn" => Operator::NotIn(values),
        "Exists" | "DoesNotExist" if count > 0 => {
            findings.report(list.as_ref().unwrap_or(item), "Exists and DoesNotExist take no values");
            return None;
        }
        "Exists" => Operator::Exists,
        "DoesNotExist" => Operator::DoesNotExist,
        _ => {
            findings.report(&field, "must be In, NotIn, Exists or DoesNotExist");
            return None;
        }
    };
    Some(Requirement { key: key?.to_owned(), operator })
}
