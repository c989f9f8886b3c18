//! Bridges: what goes from one port of a bridge to another does not pass the node's rules.

use redirect::survey::{Link, LinkKind};

use super::facts::Facts;
use super::finding::{Finding, fail, ok, shortened, warn};

/// Bridges that other programs make, by the beginning of their names; no CNI gives pods these.
const NOT_FOR_PODS: [&str; 6] = ["docker", "br-", "virbr", "lxdbr", "lxcbr", "podman"];

pub(super) fn check(facts: &Facts) -> Vec<Finding> {
    let links = &facts.survey.links;
    let ports =
        |bridge: &Link| links.iter().filter(|link| link.master.as_ref() == Some(&bridge.name)).count();
    let bridges: Vec<(&Link, usize)> = links
        .iter()
        .filter(|link| link.kind == LinkKind::Bridge)
        .map(|bridge| (bridge, ports(bridge)))
        .collect();
    let (others, for_pods): (Vec<_>, Vec<_>) = bridges.into_iter().partition(|(bridge, ports)| {
        *ports == 0 || NOT_FOR_PODS.iter().any(|name| bridge.name.starts_with(name))
    });
    if for_pods.is_empty() {
        let named: Vec<String> = others.iter().map(|(bridge, _)| bridge.name.clone()).collect();
        let found = match named.as_slice() {
            [] => "no bridge".to_owned(),
            named => format!("{}: empty, or not pods' by the name", shortened(named)),
        };
        return vec![ok("bridges", found)];
    }
    for_pods.into_iter().flat_map(|(bridge, ports)| of_pods(facts, bridge, ports)).collect()
}

fn of_pods(facts: &Facts, bridge: &Link, ports: usize) -> Vec<Finding> {
    let name = &bridge.name;
    let mut findings = vec![fail(
        "bridges",
        format!("bridge {name} with {ports} ports"),
        "if its ports are pods, connections between two of them do not pass the node's rules: nothing is decided and \
         nothing recorded",
        "a CNI with routed pods (ptp, Calico, AWS VPC CNI); if the bridge has no pods, nothing",
    )];
    let filtered: Vec<String> = ["bridge-nf-call-iptables", "bridge-nf-call-ip6tables"]
        .iter()
        .filter(|setting| facts.number(&format!("net/bridge/{setting}")) == Some(1))
        .map(|setting| format!("net.bridge.{setting}=1"))
        .collect();
    if !filtered.is_empty() {
        let remedy = filtered.iter().map(|setting| format!("sysctl -w {}", setting.replace("=1", "=0")));
        findings.push(fail(
            "bridges.br_netfilter",
            format!("{}, with bridge {name}", filtered.join(" and ")),
            "bridged packets pass the rules, lose the listener's socket on their way up, and connect without it",
            remedy.collect::<Vec<_>>().join("; "),
        ));
    }
    let redirects = |link: &str| facts.number(&format!("net/ipv4/conf/{link}/send_redirects")) == Some(1);
    if redirects("all") || redirects(name) {
        findings.push(warn(
            "bridges.send_redirects",
            format!("send_redirects=1 for {name}"),
            "pods of the bridge are told to speak to each other directly, past the node's rules",
            format!(
                "sysctl -w net.ipv4.conf.all.send_redirects=0 net.ipv4.conf.{}.send_redirects=0",
                name.replace('.', "/")
            ),
        ));
    }
    findings
}
