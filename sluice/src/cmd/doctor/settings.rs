//! The kernel's settings. Source: Documentation/networking/ip-sysctl.rst and nf_conntrack-sysctl.rst.

use redirect::survey::LinkKind;

use super::facts::Facts;
use super::finding::{Finding, fail, ok, shortened, warn};
use crate::rights::NET_ADMIN;

pub(super) fn check(facts: &Facts) -> Vec<Finding> {
    let mut findings = vec![forwarding(facts), accepted_marks(facts), cookies(facts)];
    findings.extend(forwarding_6(facts));
    findings.extend(routes_in_packets(facts));
    findings.extend([reverse_path(facts), loopback(facts), accounting(facts)]);
    findings
}

fn forwarding(facts: &Facts) -> Finding {
    const NAME: &str = "settings.ip_forward";
    match facts.number("net/ipv4/ip_forward") {
        Some(0) => warn(
            NAME,
            "net.ipv4.ip_forward=0",
            "UDP, SCTP and ICMP of pods do not leave the node, and connections that are not intercepted do not either",
            "sysctl -w net.ipv4.ip_forward=1",
        ),
        value => ok(NAME, format!("net.ipv4.ip_forward={}", shown(value))),
    }
}

fn forwarding_6(facts: &Facts) -> Option<Finding> {
    const NAME: &str = "settings.ipv6_forwarding";
    if !facts.survey.capabilities.ipv6 {
        return None;
    }
    Some(match facts.number("net/ipv6/conf/all/forwarding") {
        Some(0) => warn(
            NAME,
            "net.ipv6.conf.all.forwarding=0",
            "where pods have IPv6, their UDP and SCTP do not leave the node",
            "sysctl -w net.ipv6.conf.all.forwarding=1, if pods have IPv6 addresses",
        ),
        value => ok(NAME, format!("net.ipv6.conf.all.forwarding={}", shown(value))),
    })
}

fn accepted_marks(facts: &Facts) -> Finding {
    const NAME: &str = "settings.tcp_fwmark_accept";
    match facts.number("net/ipv4/tcp_fwmark_accept") {
        Some(1) => fail(
            NAME,
            "net.ipv4.tcp_fwmark_accept=1",
            "accepted connections take the mark of their SYN, and their answers are routed to this node: pods' \
             connections hang, and the agent is not ready",
            "sysctl -w net.ipv4.tcp_fwmark_accept=0",
        ),
        value => ok(NAME, format!("net.ipv4.tcp_fwmark_accept={}", shown(value))),
    }
}

fn cookies(facts: &Facts) -> Finding {
    const NAME: &str = "settings.tcp_syncookies";
    match facts.number("net/ipv4/tcp_syncookies") {
        Some(2) => fail(
            NAME,
            "net.ipv4.tcp_syncookies=2",
            "every SYN is answered with a cookie, and such connections never reach the proxy; the agent is not ready",
            "sysctl -w net.ipv4.tcp_syncookies=1",
        ),
        value => ok(NAME, format!("net.ipv4.tcp_syncookies={}", shown(value))),
    }
}

/// The setting for all interfaces and an interface's own must both be on (ip-sysctl.rst).
fn routes_in_packets(facts: &Facts) -> Vec<Finding> {
    const NAME: &str = "settings.routes_in_packets";
    const SETTINGS: [(&str, &str); 3] = [
        ("net/ipv4/conf/all/accept_source_route", "net.ipv4.conf.all.accept_source_route"),
        ("net/ipv6/conf/all/seg6_enabled", "net.ipv6.conf.all.seg6_enabled"),
        ("net/ipv6/conf/all/rpl_seg_enabled", "net.ipv6.conf.all.rpl_seg_enabled"),
    ];
    let on: Vec<_> = SETTINGS.into_iter().filter(|(path, _)| facts.number(path) == Some(1)).collect();
    if on.is_empty() {
        return vec![ok(NAME, "the node does not send packets on by ways that are written in them")];
    }
    let finding = |(_, name): (&str, &str)| {
        fail(
            NAME,
            format!("{name}=1"),
            "a pod writes the way of its packets into them: the rules see where they go first, and not whom they reach; \
             the agent is not ready",
            format!("sysctl -w {name}=0"),
        )
    };
    on.into_iter().map(finding).collect()
}

/// Strict filtering asks whether the answer would leave by the interface a packet came from. The larger of `all` and
/// the interface's own value counts.
fn reverse_path(facts: &Facts) -> Finding {
    const NAME: &str = "settings.rp_filter";
    let of = |link: &str| facts.number(&format!("net/ipv4/conf/{link}/rp_filter")).unwrap_or(0);
    let strict: Vec<String> = facts
        .survey
        .links
        .iter()
        .filter(|link| link.kind == LinkKind::Vxlan && of(&link.name).max(of("all")) == 1)
        .map(|link| link.name.clone())
        .collect();
    if strict.is_empty() {
        return ok(NAME, format!("net.ipv4.conf.all.rp_filter={}; Sluice works with 0, 1 and 2", of("all")));
    }
    warn(
        NAME,
        format!("rp_filter=1 on the overlay device {}", shortened(&strict)),
        "what comes through the overlay and would be answered another way is dropped before any rule sees it",
        format!("sysctl -w net.ipv4.conf.{}.rp_filter=2", strict[0].replace('.', "/")),
    )
}

fn loopback(facts: &Facts) -> Finding {
    const NAME: &str = "settings.route_localnet";
    let on = |link: &str| facts.number(&format!("net/ipv4/conf/{link}/route_localnet")) == Some(1);
    let links = facts.survey.links.iter().map(|link| link.name.as_str());
    let found: Vec<String> =
        ["all", "default"].into_iter().chain(links).filter(|link| on(link)).map(str::to_owned).collect();
    if found.is_empty() {
        return ok(NAME, "net.ipv4.conf.*.route_localnet=0");
    }
    warn(
        NAME,
        format!("route_localnet=1 on {}", shortened(&found)),
        "packets to 127.0.0.0/8 may come from outside: pods reach what listens on the node's loopback, unless a rule \
         keeps them from it",
        "sysctl -w net.ipv4.conf.all.route_localnet=0; where kube-proxy sets it: --iptables-localhost-nodeports=false",
    )
}

fn accounting(facts: &Facts) -> Finding {
    const NAME: &str = "settings.nf_conntrack_acct";
    match facts.number("net/netfilter/nf_conntrack_acct") {
        Some(0) if !facts.config.redirect.conntrack_accounting => {
            ok(NAME, "net.netfilter.nf_conntrack_acct=0, as the configuration leaves it")
        }
        Some(0) if facts.settings_writable => {
            ok(NAME, "net.netfilter.nf_conntrack_acct=0; sluice run turns it on")
        }
        // Whoever has no right to the network is not who runs the agent.
        Some(0) if !facts.may(NET_ADMIN) => {
            ok(NAME, "net.netfilter.nf_conntrack_acct=0; sluice run turns it on where it may write settings")
        }
        Some(0) => warn(
            NAME,
            "net.netfilter.nf_conntrack_acct=0, and it cannot be written from here",
            "records of UDP and SCTP flows have no packets and bytes",
            "sysctl -w net.netfilter.nf_conntrack_acct=1 on the node",
        ),
        None => warn(
            NAME,
            "there is no net.netfilter.nf_conntrack_acct: conntrack is not loaded, or does not show its settings here",
            "records of UDP and SCTP flows may have no packets and bytes",
            "modprobe nf_conntrack, and run sluice doctor in the node's own network namespace",
        ),
        value => ok(NAME, format!("net.netfilter.nf_conntrack_acct={}", shown(value))),
    }
}

fn shown(value: Option<i64>) -> String {
    value.map_or_else(|| "(not there)".to_owned(), |value| value.to_string())
}
