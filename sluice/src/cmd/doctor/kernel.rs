//! Rights, tools and parts of the kernel.

use redirect::GateBackend;

use super::facts::Facts;
use super::finding::{Finding, fail, ok, warn};
use crate::rights::{NET_ADMIN, NET_RAW};

pub(super) fn check(facts: &Facts) -> Vec<Finding> {
    let mut findings = rights(facts);
    findings.extend(tools(facts));
    findings.extend(parts(facts));
    findings.extend(facts.survey.unread.iter().map(|unread| {
        warn(
            "survey",
            format!("{} cannot be read: {}", unread.what, unread.why),
            "what is there is not known, and clashes with it are not found",
            "run as root on the node, with the tools installed",
        )
    }));
    findings
}

fn rights(facts: &Facts) -> Vec<Finding> {
    let mut findings = Vec::new();
    if !facts.may(NET_ADMIN) {
        findings.push(fail(
            "rights.net-admin",
            "this process has no CAP_NET_ADMIN",
            "no rule can be installed, so nothing is enforced",
            "run as root, or give the container NET_ADMIN",
        ));
    }
    if !facts.may(NET_RAW) {
        findings.push(warn(
            "rights.net-raw",
            "this process has no CAP_NET_RAW",
            "destinations that cannot be reached look refused to clients",
            "run as root, or give the container NET_RAW",
        ));
    }
    if findings.is_empty() {
        findings.push(ok("rights", "CAP_NET_ADMIN and CAP_NET_RAW"));
    }
    findings
}

fn tools(facts: &Facts) -> Vec<Finding> {
    let path = |name: &str| facts.survey.tools.iter().find(|tool| tool.name == name)?.path.clone();
    let mut findings = Vec::new();
    if let Some(variant) = facts.backend().and_then(GateBackend::iptables) {
        let word = variant.word();
        return vec![
            ok(
                "tools.iptables",
                format!("iptables-{word}, which holds the rules; nft is not needed for them"),
            ),
            ok("tools.ipset", path("ipset").map_or_else(String::new, |path| path.display().to_string())),
        ];
    }
    match (path("nft"), &facts.survey.capabilities.nft_version) {
        (Some(path), Some(version)) => {
            findings.push(ok("tools.nft", format!("{}, version {version}", path.display())));
        }
        (Some(path), None) => findings.push(fail(
            "tools.nft",
            format!("{} does not say its version", path.display()),
            "no rule can be installed, so nothing is enforced",
            "apt-get install --reinstall nftables",
        )),
        (None, _) => findings.push(fail(
            "tools.nft",
            "nft is not installed",
            "no rule can be installed, so nothing is enforced",
            "apt-get install nftables",
        )),
    }
    match path("iptables-nft-restore") {
        Some(path) => findings.push(ok("tools.iptables", path.display().to_string())),
        None if facts.survey.capabilities.nft_queue => {
            findings.push(ok("tools.iptables", "iptables-nft is not installed; this kernel needs none"));
        }
        None => findings.push(fail(
            "tools.iptables",
            "iptables-nft is not installed, and this kernel has no nft queue",
            "there is no gate, so nothing is enforced",
            "apt-get install iptables (1.8 or later, nf_tables variant)",
        )),
    }
    findings
}

fn words(gate: GateBackend) -> String {
    match gate {
        GateBackend::NftQueue => "the rules are nft's, the gate is NftQueue".to_owned(),
        GateBackend::IptablesNfqueue => "the rules are nft's, the gate is IptablesNfqueue".to_owned(),
        GateBackend::Iptables(variant) => format!("the rules are those of iptables-{}", variant.word()),
    }
}

/// What `sluice run` would choose on this node, or why it could not start.
fn parts(facts: &Facts) -> Vec<Finding> {
    let found = &facts.survey.capabilities;
    let families = if found.ipv6 { "IPv4 and IPv6" } else { "IPv4; this node has no IPv6" };
    match found.choose(facts.config.redirect.backend) {
        Ok(gate) => vec![ok("kernel.parts", format!("all there; {}, for {families}", words(gate)))],
        // A kernel without nf_tables refuses everything as if it were not allowed.
        Err(_) if !found.permitted && found.nft_version.is_some() && facts.may(NET_ADMIN) => vec![fail(
            "kernel.parts",
            match &found.refusal {
                Some(said) => format!("not even the plainest rule can be built: {said}"),
                None => "not even the plainest rule can be built".to_owned(),
            },
            "sluice run does not start, so nothing is enforced",
            "modprobe nf_tables, for a kernel that lacks it (CONFIG_NF_TABLES, CONFIG_NF_TABLES_INET)",
        )],
        Err(missing) => missing
            .0
            .iter()
            // One way to hold a packet is enough.
            .filter(|part| !(part.part.contains("NFQUEUE") && found.nft_queue))
            .map(|part| {
                let option = match part.kernel_option {
                    "" => String::new(),
                    option => format!(" ({option})"),
                };
                fail(
                    "kernel.parts",
                    format!("no {}{option}", part.part),
                    "sluice run does not start, so nothing is enforced",
                    part.remedy,
                )
            })
            .collect(),
    }
}
