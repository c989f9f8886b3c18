//! The rulesets that specs give, word for word. `UPDATE_GOLDEN=1` rewrites the files.

#![allow(clippy::unwrap_used, reason = "a panic is the failure report")]

mod netns;

use std::collections::BTreeSet;
use std::fs;
use std::net::IpAddr;
use std::path::Path;

use netns::Netns;
use redirect::{
    Bypass, CreatedBases, FailMode, GateBackend, HardwareAddr, Icmp, LocalPods, PodBridge, RedirectConfig,
    RedirectSpec, probe, ruleset,
};

fn addresses(list: &[&str]) -> BTreeSet<IpAddr> {
    list.iter().map(|address| address.parse().unwrap()).collect()
}

fn spec(change: impl FnOnce(&mut RedirectConfig, &mut RedirectSpec)) -> RedirectSpec {
    let mut config = RedirectConfig::default();
    let pods = LocalPods {
        isolated: addresses(&["10.244.0.5", "fd00::5"]),
        observed: addresses(&["10.244.0.6", "10.244.0.7", "fd00::6"]),
        passed: BTreeSet::new(),
        ranges: ["10.244.0.0/24", "fd00::/64"].map(|range| range.parse().unwrap()).into(),
    };
    let mut spec = RedirectSpec::new(&config, GateBackend::NftQueue, true, pods.clone()).unwrap();
    change(&mut config, &mut spec);
    let changed = RedirectSpec::new(&config, spec.gate, spec.ipv6, spec.pods.clone()).unwrap();
    RedirectSpec {
        created: spec.created,
        bridges: spec.bridges,
        quieted: spec.quieted,
        passes: spec.passes,
        pod_links: spec.pod_links,
        ..changed
    }
}

fn passed(spec: &mut RedirectSpec) {
    spec.passes = true;
    spec.pods.passed = addresses(&["10.244.0.8", "fd00::8"]);
}

fn bypass() -> Bypass {
    let cidrs = ["192.0.2.0/24", "198.51.100.7/32", "2001:db8::/32"].map(str::to_owned);
    Bypass { ports: vec![9100, 53], cidrs: cidrs.into() }
}

fn interfaces() -> Vec<String> {
    vec!["cali*".to_owned(), "cni0".to_owned()]
}

fn bridge(name: &str, ports: &[&str]) -> PodBridge {
    let address = |last| HardwareAddr([2, 0, 0, 0, 0, last]);
    let ports = ports.iter().zip(1..).map(|(port, last)| ((*port).to_owned(), address(last)));
    PodBridge { name: name.to_owned(), ports: ports.collect() }
}

/// The table of specs and the file each must give.
fn cases() -> Vec<(&'static str, RedirectSpec)> {
    vec![
        ("dual-stack", spec(|_, _| {})),
        ("v4-only", spec(|_, spec| spec.ipv6 = false)),
        ("pod-links", spec(|_, spec| spec.pod_links = ["cali1", "cni0"].map(str::to_owned).into())),
        ("no-pods", spec(|_, spec| spec.pods = LocalPods::default())),
        ("fail-closed", spec(|config, _| config.fail_mode = FailMode::Closed)),
        ("fail-open", spec(|config, _| config.fail_mode = FailMode::Open)),
        ("pod-interfaces", spec(|config, _| config.pod_interfaces = interfaces())),
        (
            "pod-interfaces-fail-open",
            spec(|config, _| {
                config.pod_interfaces = interfaces();
                config.fail_mode = FailMode::Open;
            }),
        ),
        ("iptables", spec(|_, spec| spec.gate = GateBackend::IptablesNfqueue)),
        (
            "iptables-v4-created",
            spec(|_, spec| {
                spec.gate = GateBackend::IptablesNfqueue;
                spec.ipv6 = false;
                spec.created = CreatedBases { table4: true, input4: true, ..CreatedBases::default() };
            }),
        ),
        (
            "bridges",
            spec(|_, spec| {
                spec.bridges = vec![bridge("cni0", &["veth1", "veth2"]), bridge("cni1", &[])];
                spec.quieted = ["cni0".to_owned()].into();
                spec.created = CreatedBases { call_iptables: true, send_redirects: true, ..spec.created };
            }),
        ),
        (
            "bridges-v4-only",
            spec(|_, spec| {
                spec.bridges = vec![bridge("cni0", &["veth1"])];
                spec.ipv6 = false;
            }),
        ),
        ("scope", spec(|_, spec| passed(spec))),
        (
            "scope-fail-closed-interfaces",
            spec(|config, spec| {
                config.fail_mode = FailMode::Closed;
                config.pod_interfaces = interfaces();
                passed(spec);
            }),
        ),
        ("bypass", spec(|config, _| config.bypass = bypass())),
        (
            "scope-bypass-interfaces",
            spec(|config, spec| {
                config.bypass = bypass();
                config.pod_interfaces = interfaces();
                passed(spec);
            }),
        ),
        ("icmp-isolated", spec(|config, _| config.icmp = Icmp::Isolate)),
        (
            "other-mask-four-queues",
            spec(|config, _| {
                config.mark_mask = 0x3f00_0000;
                config.queue = 200;
                config.queues = 4;
                config.listener_port = 9000;
                config.route_table = 200;
                config.rule_priority = 50;
                config.syn_rate_per_client = 0;
            }),
        ),
        (
            "iptables-four-queues",
            spec(|config, spec| {
                config.queues = 4;
                spec.gate = GateBackend::IptablesNfqueue;
                spec.ipv6 = false;
            }),
        ),
    ]
}

#[test]
fn each_spec_gives_its_golden_ruleset() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden");
    let mut differing = Vec::new();
    for (name, spec) in cases() {
        let rules = ruleset(&spec);
        let mut text = rules.nft;
        if let Some(gate) = rules.gate {
            text.push_str(&format!("\n# iptables-nft-restore --noflush\n{}", gate.v4));
            if let Some(v6) = gate.v6 {
                text.push_str(&format!("\n# ip6tables-nft-restore --noflush\n{v6}"));
            }
        }
        text.push_str("\n# routes\n");
        rules.routes.iter().for_each(|line| text.push_str(&format!("{line}\n")));
        let file = folder.join(format!("{name}.nft"));
        if std::env::var_os("UPDATE_GOLDEN").is_some() {
            fs::write(&file, &text).unwrap();
        }
        if fs::read_to_string(&file).unwrap_or_default() != text {
            differing.push(format!("{}:\n{text}", file.display()));
        }
    }
    assert!(differing.is_empty(), "{}", differing.join("\n"));
}

/// Old releases of nft have fewer words, and take some that we might use as names for their own.
#[test]
fn this_node_s_nft_and_kernel_take_every_ruleset() {
    let has_queue = Netns::new().block_on(probe).nft_queue;
    for (name, spec) in cases() {
        let rules = ruleset(&spec).nft;
        let taken: String = rules
            .lines()
            .map(|line| match line.split_once(" queue num ") {
                // The gate is iptables' where the kernel has no such expression.
                Some((matches, _)) if !has_queue => format!("{matches} accept\n"),
                _ => format!("{line}\n"),
            })
            .collect();
        let ns = Netns::new();
        ns.load(&taken);
        assert!(ns.run("nft list tables").contains("table inet sluice"), "{name}");
    }
}

/// What lets a packet pass asks before that whether an end is a pod that is isolated or unknown.
#[test]
fn nothing_passes_by_before_isolated_and_unknown_pods_were_asked_for() {
    for (name, spec) in cases() {
        let nft = ruleset(&spec).nft;
        for chain in ["bypassed", "from_passed"] {
            let Some((_, body)) = nft.split_once(&format!("\tchain {chain} {{\n")) else { continue };
            let body = body.split("\t}\n").next().unwrap();
            let first = body.find("accept comment").unwrap();
            for question in
                ["ip daddr @isolated4", "ip6 daddr @isolated6", "daddr @pod_ranges4", "daddr @pod_ranges6"]
            {
                assert!(
                    body.find(question).is_some_and(|at| at < first),
                    "{name} {chain} {question}: {body}"
                );
            }
        }
        if let Some((_, body)) = nft.split_once("\tchain first_packet {\n") {
            let body = body.split("\t}\n").next().unwrap();
            if let Some(accept) = body.find("accept comment") {
                assert!(body.find("daddr @isolated6 goto").is_some_and(|at| at < accept), "{name}: {body}");
                assert!(body.find("saddr @pod_ranges6 goto").is_some_and(|at| at < accept), "{name}: {body}");
            }
        }
    }
}

#[test]
fn a_ruleset_depends_on_nothing_but_its_spec() {
    for (_, spec) in cases() {
        assert_eq!(ruleset(&spec), ruleset(&spec.clone()));
    }
}

#[test]
fn no_rule_writes_or_compares_the_whole_mark() {
    for (name, spec) in cases() {
        for line in ruleset(&spec).nft.lines() {
            let setting = line.matches("mark set ").count();
            let bitwise = line.matches("mark set meta mark or ").count()
                + line.matches("mark set meta mark and ").count()
                + line.matches("mark set ct mark or ").count();
            assert_eq!(setting, bitwise, "{name}: {line}");
            assert!(!line.contains("mark =="), "{name}: {line}");
        }
    }
}

#[test]
fn every_rule_says_what_it_is_for() {
    for (name, spec) in cases() {
        for line in
            ruleset(&spec).nft.lines().filter(|line| line.starts_with("\t\t") && !line.contains(" hook "))
        {
            assert!(line.contains(" comment \""), "{name}: {line}");
        }
    }
}

#[test]
fn the_rule_for_new_connections_stands_before_the_one_for_the_proxys_sockets() {
    for (name, spec) in cases() {
        let nft = ruleset(&spec).nft;
        let opening = nft.find("goto first_packet").unwrap();
        let owned = nft.find("\t\tsocket transparent").unwrap();
        assert!(opening < owned, "{name}");
    }
}
