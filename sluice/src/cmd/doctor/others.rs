//! Other enforcers and firewalls, by what they leave in the kernel.

use std::collections::BTreeSet;

use redirect::survey::Source;

use super::facts::{Facts, ours, shown};
use super::finding::{Finding, State, fail, ok, shortened, warn};

/// What gives an enforcer away: beginnings of the names of its chains, ipsets and interfaces, and its tables.
struct Traces {
    name: &'static str,
    chains: &'static [&'static str],
    ipsets: &'static [&'static str],
    links: &'static [&'static str],
    tables: &'static [&'static str],
    state: State,
    consequence: &'static str,
    remedy: &'static str,
}

const TWICE: &str = "policies are enforced twice, by different rules: its own do not see pods' TCP connections in FORWARD any \
                     more, and may drop what Sluice keeps out of conntrack, so that connections hang";
const PAST: &str = "pods' packets do not take the way through netfilter that Sluice's rules stand on: connections may pass unseen";

const ENFORCERS: [Traces; 8] = [
    Traces {
        name: "kube-router",
        chains: &["KUBE-ROUTER-", "KUBE-POD-FW-", "KUBE-NWPLCY-"],
        ipsets: &["KUBE-SRC-", "KUBE-DST-", "kube-router-", "inet6:KUBE-"],
        links: &[],
        tables: &[],
        state: State::Warn,
        consequence: TWICE,
        remedy: "kube-router: --run-firewall=false; k3s: --disable-network-policy; then restart the node, or remove its chains",
    },
    Traces {
        name: "Calico (policies)",
        chains: &["cali-pi-", "cali-po-", "filter-cali-pi-", "filter-cali-po-"],
        ipsets: &[],
        links: &[],
        tables: &[],
        state: State::Fail,
        consequence: "Felix enforces policies: its ingress rules do not see connections that Sluice carries, and it drops \
                      untracked replies of pods that its egress rules isolate, so those hang",
        remedy: "let one of both enforce; deploy/docs/cni/calico.md says when they fit together",
    },
    Traces {
        name: "Calico",
        chains: &["cali-"],
        ipsets: &["cali40", "cali60"],
        links: &[],
        tables: &["calico"],
        state: State::Warn,
        consequence: "with policies in Felix's datastore, both would enforce and connections would hang; and Felix drops \
                      what pods send to their node unless told otherwise",
        remedy: "keep policies out of Felix's datastore, and set FELIX_DEFAULTENDPOINTTOHOSTACTION=ACCEPT",
    },
    Traces {
        name: "Cilium",
        chains: &["CILIUM_", "OLD_CILIUM_"],
        ipsets: &["cilium_"],
        links: &["cilium_", "lxc_health"],
        tables: &[],
        state: State::Fail,
        consequence: PAST,
        remedy: "let Cilium enforce, or remove it: eBPF host routing and its own TPROXY pass by netfilter",
    },
    Traces {
        name: "Antrea",
        chains: &["ANTREA-"],
        ipsets: &["ANTREA-"],
        links: &["antrea-gw", "antrea-tun"],
        tables: &["antrea"],
        state: State::Fail,
        consequence: PAST,
        remedy: "let Antrea enforce, or remove it: Open vSwitch connects pods of one node without the host's netfilter",
    },
    Traces {
        name: "OVN-Kubernetes",
        chains: &["OVN-KUBE-"],
        ipsets: &[],
        links: &["ovn-k8s-"],
        tables: &["ovn-kubernetes"],
        state: State::Fail,
        consequence: PAST,
        remedy: "let OVN-Kubernetes enforce, or remove it: Open vSwitch connects pods of one node without the host's netfilter",
    },
    Traces {
        name: "kube-network-policies",
        chains: &[],
        ipsets: &[],
        links: &[],
        tables: &["kube-network-policies", "kindnet-network-policies"],
        state: State::Warn,
        consequence: TWICE,
        remedy: "remove its DaemonSet, and then its table: nft delete table inet kube-network-policies",
    },
    Traces {
        name: "Weave or Azure policies",
        chains: &["WEAVE-NPC", "AZURE-NPM"],
        ipsets: &["weave-", "azure-npm-"],
        links: &[],
        tables: &[],
        state: State::Warn,
        consequence: TWICE,
        remedy: "turn its policy controller off, then restart the node, or remove its chains",
    },
];

pub(super) fn check(facts: &Facts) -> Vec<Finding> {
    let mut findings: Vec<Finding> = ENFORCERS.iter().filter_map(|known| enforcer(facts, known)).collect();
    if findings.is_empty() {
        let sources = [Source::Ruleset, Source::Iptables, Source::Ipsets, Source::Links];
        let unknown =
            facts.unknown("enforcers", &sources, "another enforcer may be here, and both would decide");
        findings.push(unknown.unwrap_or_else(|| ok("enforcers", "no other enforcer has left a trace")));
    }
    findings.extend(firewalls(facts));
    findings
}

fn enforcer(facts: &Facts, known: &Traces) -> Option<Finding> {
    let begins = |name: &str, list: &[&str]| list.iter().any(|beginning| name.starts_with(beginning));
    let survey = &facts.survey;
    let chains = survey.filter.chains.iter().filter(|chain| begins(&chain.place.chain, known.chains));
    let tables = survey.filter.tables.iter().filter(|table| known.tables.contains(&table.name.as_str()));
    let traces: BTreeSet<String> = chains
        .map(|chain| format!("chain {}", shown(&chain.place)))
        .chain(tables.map(|table| format!("table {} {}", table.family, table.name)))
        .chain(survey.ipsets.iter().filter(|set| begins(set, known.ipsets)).map(|set| format!("ipset {set}")))
        .chain(
            survey
                .links
                .iter()
                .filter(|link| begins(&link.name, known.links))
                .map(|link| format!("interface {}", link.name)),
        )
        .collect();
    if traces.is_empty() {
        return None;
    }
    let found = format!("{}: {}", known.name, shortened(&traces.into_iter().collect::<Vec<_>>()));
    Some(match known.state {
        State::Fail => fail("enforcers", found, known.consequence, known.remedy),
        _ => warn("enforcers", found, known.consequence, known.remedy),
    })
}

fn firewalls(facts: &Facts) -> Vec<Finding> {
    let mut findings = Vec::new();
    let filter = &facts.survey.filter;
    let named = [
        ("firewalld", filter.tables.iter().any(|table| table.name == "firewalld")),
        (
            "ufw",
            filter
                .chains
                .iter()
                .any(|chain| chain.place.chain.starts_with("ufw-") || chain.place.chain.starts_with("ufw6-")),
        ),
    ];
    for (name, _) in named.into_iter().filter(|(_, there)| *there) {
        findings.push(warn(
            "firewalls",
            format!("{name} has rules here"),
            "pods' TCP connections end on the node: what it refuses in INPUT, pods cannot open; and a reload takes \
             Sluice's rules with it if it flushes everything, for up to a second",
            format!("let {name} accept packets with Sluice's mark: {}", accept(facts)),
        ));
    }
    for (hook, concerned) in [("input", "TCP connections"), ("forward", "UDP and SCTP flows")] {
        let dropping: Vec<String> = filter
            .chains
            .iter()
            .filter(|chain| !ours(&chain.place))
            .filter(|chain| chain.base.as_ref().is_some_and(|base| base.hook == hook && base.drops))
            .map(|chain| shown(&chain.place))
            .collect();
        if dropping.is_empty() {
            continue;
        }
        let remedy = match hook {
            "input" => format!("accept packets with Sluice's mark there: {}", accept(facts)),
            _ => "accept packets from and to the pods' addresses there, as for any pod network".to_owned(),
        };
        findings.push(warn(
            "firewalls",
            format!("{} drops what it does not accept", shortened(&dropping)),
            format!(
                "pods' {concerned} pass {}: what is not accepted there does not come about",
                hook.to_uppercase()
            ),
            remedy,
        ));
    }
    if findings.is_empty() {
        let sources = [Source::Ruleset, Source::Iptables];
        let unknown = facts.unknown("firewalls", &sources, "a firewall may drop what policies allow");
        findings.push(
            unknown.unwrap_or_else(|| ok("firewalls", "no chain of INPUT or FORWARD drops by default")),
        );
    }
    findings
}

fn accept(facts: &Facts) -> String {
    let mask = facts.config.redirect.mark_mask;
    // The lowest bit is the proxy's; see Marks::from_mask.
    let proxy = mask & mask.wrapping_neg();
    format!("meta mark & {proxy:#x} == {proxy:#x} accept")
}
