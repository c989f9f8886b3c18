//! Others' rules, routes and settings, in a real kernel: told where they stand in the way, and mended where they are ours.

#![allow(clippy::unwrap_used, reason = "a panic is the failure report")]

mod netns;

use std::sync::Arc;
use std::time::Duration;

use netns::{Netns, until};
use redirect::{LocalPods, Redirect, RedirectConfig, RedirectHandle, RedirectSpec, probe};

const PATIENCE: Duration = Duration::from_secs(20);
const ACCOUNTING: &str = "net.netfilter.nf_conntrack_acct";

async fn start() -> RedirectHandle {
    let capabilities = probe().await;
    let pods = LocalPods { observed: ["10.9.0.2".parse().unwrap()].into(), ..LocalPods::default() };
    let gate = capabilities.gate_backend().unwrap();
    let spec = RedirectSpec::new(&RedirectConfig::default(), gate, capabilities.ipv6, pods).unwrap();
    Redirect::start(spec).await.unwrap()
}

/// With an interface behind which the pod's address is.
fn node() -> Arc<Netns> {
    let ns = Netns::new();
    ns.run("ip link add pods type veth peer name behind");
    ns.run("ip link set pods up");
    ns.run("ip link set behind up");
    ns.run("ip route add 10.9.0.2/32 dev pods");
    Arc::new(ns)
}

#[test]
fn what_leads_the_proxy_s_packets_elsewhere_is_told_and_keeps_nothing_else_from_being_repaired() {
    for (deed, undo, word) in [
        ("ip rule add priority 10 lookup main", "ip rule del priority 10", "redirect.rule_priority"),
        (
            "ip rule add priority 90 fwmark 0x2/0x2 blackhole",
            "ip rule del priority 90",
            "redirect.rule_priority",
        ),
        (
            "ip route replace blackhole default table 1093",
            "ip route del blackhole default table 1093",
            "redirect.route_table",
        ),
    ] {
        let ns = node();
        let inside = ns.clone();
        ns.block_on(move || async move {
            let handle = start().await;
            let health = handle.health();
            inside.run(deed);
            let told = || health.borrow().last_error.as_ref().is_some_and(|error| error.contains(word));
            until(deed, PATIENCE, told).await;
            assert!(!health.borrow().installed);
            inside.run("nft delete table inet sluice");
            until("the table", PATIENCE, || inside.try_run("nft list table inet sluice").status.success())
                .await;
            until("its count", PATIENCE, || health.borrow().repairs == 1).await;
            assert!(!health.borrow().installed);
            inside.run(undo);
            until(undo, PATIENCE, || health.borrow().installed).await;
            assert_eq!(health.borrow().last_error, None);
            assert!(inside.run("ip route show table 1093").contains("local default dev lo"));
            handle.stop().await;
        });
    }
}

#[test]
fn a_table_with_routes_of_others_is_left_alone_and_nothing_is_installed() {
    let ns = node();
    ns.run("ip route add default dev pods table 1093");
    let error = ns.block_on(|| async {
        let capabilities = probe().await;
        let gate = capabilities.gate_backend().unwrap();
        let pods = LocalPods::default();
        let spec = RedirectSpec::new(&RedirectConfig::default(), gate, capabilities.ipv6, pods).unwrap();
        Redirect::start(spec).await.map(drop).unwrap_err().to_string()
    });
    assert!(error.contains("redirect.route_table"), "{error}");
    let routes = ns.run("ip route show table 1093");
    assert!(routes.starts_with("default dev pods") && routes.lines().count() == 1, "{routes}");
    assert!(!ns.run("nft list ruleset").contains("sluice"));
}

#[test]
fn accounting_that_somebody_turns_off_is_turned_on_again_and_kept_in_mind() {
    let ns = node();
    ns.run(&format!("sysctl -qw {ACCOUNTING}=1"));
    let inside = ns.clone();
    ns.block_on(move || async move {
        let handle = start().await;
        assert!(!inside.run("nft list table inet sluice").contains("enabled_accounting"));
        inside.run(&format!("sysctl -qw {ACCOUNTING}=0"));
        until("counting", PATIENCE, || inside.run(&format!("sysctl -n {ACCOUNTING}")).trim() == "1").await;
        let kept = || inside.run("nft list table inet sluice").contains("enabled_accounting");
        until("what cleanup needs", PATIENCE, kept).await;
        until("its count", PATIENCE, || handle.health().borrow().repairs == 1).await;
        handle.stop().await;
    });
}

fn set(ns: &Netns, setting: &str, value: u8) {
    ns.run(&format!("sysctl -qw net.ipv6.conf.{setting}={value}"));
}

#[test]
fn ipv6_that_is_forwarded_past_rules_without_it_is_told() {
    let ns = node();
    set(&ns, "all.forwarding", 0);
    set(&ns, "pods.disable_ipv6", 0);
    set(&ns, "lo.disable_ipv6", 1);
    let inside = ns.clone();
    ns.block_on(move || async move {
        let handle = start().await;
        let health = handle.health();
        assert_eq!(health.borrow().unseen, [""; 0]);
        set(&inside, "all.forwarding", 1);
        let told = |word: &str| health.borrow().unseen.iter().any(|reason| reason.contains(word));
        until("told", PATIENCE, || told("net.ipv6.conf.lo.disable_ipv6")).await;
        set(&inside, "lo.disable_ipv6", 0);
        until("told anew", PATIENCE, || told("start Sluice again")).await;
        set(&inside, "all.forwarding", 0);
        until("nothing to tell", PATIENCE, || health.borrow().unseen.is_empty()).await;
        handle.stop().await;
    });
}
