//! Bridges: what goes from one port of a bridge to another passes the node's rules only with rules of the bridge.

use redirect::survey::{Link, LinkKind, Source};

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
        let unknown = facts.unknown(
            "bridges",
            &[Source::Links],
            "pods may share a bridge that hides their connections",
        );
        return vec![unknown.unwrap_or_else(|| ok("bridges", found))];
    }
    for_pods.into_iter().flat_map(|(bridge, ports)| of_pods(facts, bridge, ports)).collect()
}

fn of_pods(facts: &Facts, bridge: &Link, ports: usize) -> Vec<Finding> {
    let name = &bridge.name;
    let found = format!("bridge {name} with {ports} ports");
    if !facts.survey.bridge_rules {
        return vec![fail(
            "bridges",
            format!("{found}, and this kernel has no nftables for bridges (CONFIG_NF_TABLES_BRIDGE)"),
            "if its ports are pods, connections between two of them do not pass the node's rules: nothing is decided \
             and nothing recorded, and the agent is not ready",
            "modprobe nf_tables_bridge, or a CNI with routed pods (ptp, Calico, AWS VPC CNI)",
        )];
    }
    let mut findings =
        vec![ok("bridges", format!("{found}: if they are pods, sluice run brings their frames up"))];
    // The agent turns these off by itself where it may.
    let own = facts.config.redirect.bridge_settings && facts.settings_writable;
    let filtered: Vec<String> = ["bridge-nf-call-iptables", "bridge-nf-call-ip6tables"]
        .iter()
        .filter(|setting| !own && facts.number(&format!("net/bridge/{setting}")) == Some(1))
        .map(|setting| format!("net.bridge.{setting}=1"))
        .collect();
    if !filtered.is_empty() {
        let remedy = filtered.iter().map(|setting| format!("sysctl -w {}", setting.replace("=1", "=0")));
        findings.push(fail(
            "bridges.br_netfilter",
            format!("{}, with bridge {name}", filtered.join(" and ")),
            "connections between two pods of it pass unseen, so that the agent is not ready",
            remedy.collect::<Vec<_>>().join("; "),
        ));
    }
    let redirects = |link: &str| facts.number(&format!("net/ipv4/conf/{link}/send_redirects")) == Some(1);
    if !own && (redirects("all") || redirects(name)) {
        findings.push(warn(
            "bridges.send_redirects",
            format!("send_redirects=1 for {name}"),
            "clients of the bridge get no ICMP error with a refusal",
            format!(
                "sysctl -w net.ipv4.conf.all.send_redirects=0 net.ipv4.conf.{}.send_redirects=0",
                name.replace('.', "/")
            ),
        ));
    }
    findings
}
