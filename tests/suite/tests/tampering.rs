//! What others do to a node while Sluice runs: rules and routes that lead the proxy's packets elsewhere, and settings that
//! are turned back. It is noticed, told, mended where it is Sluice's own, and a node that cannot carry is not ready.

#![expect(clippy::unwrap_used, reason = "a panic in a test is its failure report")]

use std::io::ErrorKind;
use std::time::Duration;

use lab::{Netns, ask, greeting_peer, sluice_binary, wait_until};
use serde_json::Value;
use suite::flows::ANSWER;
use suite::stage::{ALLOWED, DENIED, LIMIT, Stage, is_final, is_from};

const NO_ANSWER: Duration = Duration::from_millis(1_300);
const ACCOUNTING: &str = "net.netfilter.nf_conntrack_acct";

fn readiness(stage: &Stage) -> (u16, String) {
    stage.sluice().get("/readyz").unwrap()
}

fn assert_carries(stage: &Stage, client: &Netns) {
    let mut stream = client.connect(stage.pod("server").at(ALLOWED), LIMIT).unwrap();
    assert_eq!(greeting_peer(&mut stream, LIMIT).unwrap(), stream.local_addr().unwrap());
}

/// Does what somebody else might, waits until it is told with all of `words`, and undoes it.
fn routing_is_led_astray(deed: &str, undo: &str, words: &[&str]) {
    let stage = Stage::new("").unwrap();
    let (client, server) = (stage.pod("client"), stage.pod("server"));
    let _servers = [server.serve(ALLOWED).unwrap(), server.serve(DENIED).unwrap()];
    assert_carries(&stage, client);
    let node = stage.cluster.node("node1").unwrap();
    node.ip(deed).unwrap();
    let told = || {
        let (code, text) = readiness(&stage);
        code == 503 && words.iter().all(|word| text.contains(word))
    };
    assert!(wait_until(LIMIT, told), "{deed}: {:?}", readiness(&stage));
    assert_eq!(client.connect(server.at(DENIED), NO_ANSWER).unwrap_err().kind(), ErrorKind::TimedOut);
    // The rest is kept up all the same.
    node.nft("delete table inet sluice\n").unwrap();
    let is_back =
        || node.command("nft").args(["list", "table", "inet", "sluice"]).output().unwrap().status.success();
    assert!(wait_until(LIMIT, is_back), "{}", stage.sluice().stderr());
    node.ip(undo).unwrap();
    assert!(wait_until(LIMIT, || readiness(&stage).0 == 200), "{undo}: {:?}", readiness(&stage));
    assert_carries(&stage, client);
    assert_eq!(client.connect(server.at(DENIED), LIMIT).unwrap_err().kind(), ErrorKind::ConnectionRefused);
    let repairs = stage.sluice().metric("sluice_ruleset_repairs_total").unwrap();
    assert!(repairs < 10.0, "what is not mended is not counted again and again: {repairs}");
}

#[test]
fn a_rule_that_leads_the_proxy_s_packets_elsewhere_ends_readiness() {
    routing_is_led_astray(
        "rule add priority 10 lookup main\n",
        "rule del priority 10 lookup main\n",
        &["redirect.rule_priority", "ip rule"],
    );
}

#[test]
fn a_rule_that_refuses_the_proxy_s_packets_ends_readiness() {
    routing_is_led_astray(
        "rule add priority 90 fwmark 0x2/0x2 blackhole\n",
        "rule del priority 90\n",
        &["redirect.rule_priority"],
    );
}

#[test]
fn a_stranger_s_route_in_the_proxy_s_table_ends_readiness() {
    routing_is_led_astray(
        "route replace blackhole default table 1093\n",
        "route del blackhole default table 1093\n",
        &["redirect.route_table", "blackhole"],
    );
}

#[test]
fn where_the_table_is_somebody_else_s_it_does_not_start_and_leaves_theirs_alone() {
    let stage = Stage::without_sluice("").unwrap();
    let node = stage.cluster.node("node1").unwrap();
    node.ip("route add default dev lo table 1093\n").unwrap();
    let mut sluice = node.start_sluice(&stage.options).unwrap();
    assert_eq!(sluice.wait_exit(LIMIT).unwrap(), 2, "{}", sluice.stderr());
    assert!(sluice.stderr().contains("redirect.route_table"), "{}", sluice.stderr());
    let routes = node.command("ip").args(["route", "show", "table", "1093"]).output().unwrap();
    let routes = String::from_utf8_lossy(&routes.stdout).into_owned();
    assert!(routes.starts_with("default dev lo") && routes.lines().count() == 1, "{routes}");
    let tables = node.command("nft").args(["list", "tables"]).output().unwrap();
    assert!(!String::from_utf8_lossy(&tables.stdout).contains("sluice"));
}

/// Rules without IPv6 see none of it.
#[test]
fn a_node_whose_ipv6_the_rules_do_not_see_is_not_ready() {
    let mut stage = Stage::without_sluice("").unwrap();
    let node = stage.cluster.node("node1").unwrap();
    for (setting, value) in [("all.forwarding", "0"), ("eth0.disable_ipv6", "0"), ("lo.disable_ipv6", "1")] {
        node.sysctl(&format!("net.ipv6.conf.{setting}"), value).unwrap();
    }
    stage.start_sluice().unwrap();
    let node = stage.cluster.node("node1").unwrap();
    for (setting, value, ready, word) in [
        ("all.forwarding", "1", false, "net.ipv6.conf.lo.disable_ipv6"),
        ("all.forwarding", "0", true, "ready"),
        ("lo.disable_ipv6", "0", true, "ready"),
        ("all.forwarding", "1", false, "start Sluice again"),
    ] {
        node.sysctl(&format!("net.ipv6.conf.{setting}"), value).unwrap();
        let told = || {
            let (code, text) = readiness(&stage);
            (code == 200) == ready && text.contains(word)
        };
        assert!(wait_until(LIMIT, told), "{setting}={value}: {:?}", readiness(&stage));
    }
    stage.start_sluice().unwrap();
    assert_eq!(readiness(&stage).0, 200);
}

#[test]
fn counting_that_somebody_turns_off_is_turned_on_again_and_put_back_by_cleanup() {
    let mut stage = Stage::without_sluice("").unwrap();
    stage.cluster.node("node1").unwrap().sysctl(ACCOUNTING, "1").unwrap();
    stage.start_sluice().unwrap();
    let (client, plain) = (stage.pod("client"), stage.pod("plain"));
    let _server = plain.serve_udp(9000).unwrap();
    let node = stage.cluster.node("node1").unwrap();
    node.sysctl(ACCOUNTING, "0").unwrap();
    assert!(wait_until(LIMIT, || node.sysctl_value(ACCOUNTING).unwrap() == "1"));
    assert!(wait_until(LIMIT, || stage
        .sluice()
        .stderr()
        .contains("what=\"net.netfilter.nf_conntrack_acct\"")));
    let repaired = || stage.sluice().metric("sluice_ruleset_repairs_total").unwrap() == 1.0;
    assert!(wait_until(LIMIT, repaired));
    let socket = client.udp_to(plain.at(9000)).unwrap();
    let from = socket.local_addr().unwrap();
    assert_eq!(ask(&socket, b"HELLO\n", ANSWER).unwrap(), from);
    let is_counted =
        |record: &Value| is_final(record) && is_from(record, from) && record["source"]["bytes"] == 6;
    stage.sluice_mut().sigterm();
    assert_eq!(stage.sluice_mut().wait_exit(LIMIT).unwrap(), 0);
    assert!(stage.sluice().records().unwrap().iter().any(is_counted));
    // It was off when this process turned it on.
    let node = stage.cluster.node("node1").unwrap();
    let output = node.command(sluice_binary().unwrap()).arg("cleanup").output().unwrap();
    assert!(output.status.success(), "{output:?}");
    assert_eq!(node.sysctl_value(ACCOUNTING).unwrap(), "0");
}
