//! The rulesets that specs give, word for word. `UPDATE_GOLDEN=1` rewrites the files.

#![allow(clippy::unwrap_used, reason = "a panic is the failure report")]

mod netns;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::net::IpAddr;
use std::path::Path;

use netns::Netns;
use redirect::{
    Bypass, CreatedBases, FailMode, GateBackend, HardwareAddr, Icmp, IptablesVariant, LocalPods, Overlays,
    Owners, PodBridge, RedirectConfig, RedirectSpec, probe, ruleset,
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
        owners: spec.owners,
        quieted: spec.quieted,
        passes: spec.passes,
        pod_links: spec.pod_links,
        overlays: spec.overlays,
        made_bases: spec.made_bases,
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

/// One port with an address of each family, and one behind which nothing but a link-local address was found yet.
fn owners() -> Owners {
    let bound = || BTreeSet::from(["veth1".to_owned()]);
    let of = |port: &str, list: &[&str]| (port.to_owned(), addresses(list));
    Owners {
        addresses: [of("veth1", &["10.244.0.5", "fd00::5", "fe80::5"]), of("veth2", &["fe80::6"])].into(),
        bound4: bound(),
        bound6: bound(),
        node: addresses(&["10.244.0.1", "fd00::1"]),
    }
}

/// The table of specs and the file each must give.
fn cases() -> Vec<(&'static str, RedirectSpec)> {
    vec![
        ("dual-stack", spec(|_, _| {})),
        ("v4-only", spec(|_, spec| spec.ipv6 = false)),
        ("pod-links", spec(|_, spec| spec.pod_links = ["cali1", "cni0"].map(str::to_owned).into())),
        (
            "overlays",
            spec(|config, spec| {
                config.pod_interfaces = interfaces();
                spec.pod_links = ["cali1".to_owned()].into();
                spec.overlays = Overlays { ports: [4789, 8472].into(), protocols: [4, 41].into() };
                passed(spec);
            }),
        ),
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
                spec.owners = owners();
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

/// The same specs for rules of iptables.
fn iptables_cases() -> Vec<(&'static str, RedirectSpec)> {
    let mut cases = cases();
    cases.retain(|(name, spec)| spec.gate == GateBackend::NftQueue && *name != "bridges-v4-only");
    for (_, spec) in &mut cases {
        spec.gate = GateBackend::Iptables(IptablesVariant::Nft);
        spec.made_bases = ["made/ip/raw".to_owned(), "made/ip/raw/OUTPUT".to_owned()].into();
    }
    cases
}

#[test]
fn each_spec_gives_its_golden_rules_of_iptables() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden");
    let mut differing = Vec::new();
    for (name, spec) in iptables_cases() {
        let rules = ruleset(&spec);
        let scripts = rules.iptables.unwrap();
        let mut text =
            format!("# ipset restore\n{}\n# iptables-restore --noflush\n{}", scripts.sets, scripts.v4);
        if let Some(v6) = scripts.v6 {
            text.push_str(&format!("\n# ip6tables-restore --noflush\n{v6}"));
        }
        if !rules.nft.is_empty() {
            text.push_str(&format!("\n# nft -f -\n{}", rules.nft));
        }
        let file = folder.join(format!("{name}.iptables"));
        if std::env::var_os("UPDATE_GOLDEN").is_some() {
            fs::write(&file, &text).unwrap();
        }
        if fs::read_to_string(&file).unwrap_or_default() != text {
            differing.push(format!("{}:\n{text}", file.display()));
        }
    }
    assert!(differing.is_empty(), "{}", differing.join("\n"));
}

/// Each table of a restore script: its chains, and the rules of each.
fn tables(script: &str) -> Vec<(String, BTreeMap<String, Vec<String>>)> {
    let mut tables: Vec<(String, BTreeMap<String, Vec<String>>)> = Vec::new();
    for line in script.lines() {
        if let Some(name) = line.strip_prefix('*') {
            tables.push((name.to_owned(), BTreeMap::new()));
        } else if let Some(chain) = line.strip_prefix(':') {
            let name = chain.split(' ').next().unwrap();
            tables.last_mut().unwrap().1.insert(name.to_owned(), Vec::new());
        } else if let Some(rule) = line.strip_prefix("-A ").or_else(|| line.strip_prefix("-I ")) {
            let (chain, rule) = rule.split_once(' ').unwrap();
            tables.last_mut().unwrap().1.entry(chain.to_owned()).or_default().push(rule.to_owned());
        }
    }
    tables
}

fn scripts(spec: &RedirectSpec) -> Vec<String> {
    let scripts = ruleset(spec).iptables.unwrap();
    std::iter::once(scripts.v4).chain(scripts.v6).collect()
}

#[test]
fn chains_of_iptables_have_names_that_fit_and_lead_to_chains_that_are_there() {
    for (name, spec) in iptables_cases() {
        for script in scripts(&spec) {
            for (table, chains) in tables(&script) {
                for (chain, rules) in &chains {
                    assert!(chain.len() <= 28, "{chain}");
                    for rule in rules {
                        let words: Vec<&str> = rule.split(' ').collect();
                        for target in words
                            .windows(2)
                            .filter(|pair| ["-j", "-g"].contains(&pair[0]))
                            .map(|pair| pair[1])
                        {
                            let is_own = target.starts_with("SLUICE-");
                            assert!(!is_own || chains.contains_key(target), "{name} {table}: {rule}");
                        }
                    }
                }
                let led_to =
                    |chain: &str| chains.values().flatten().any(|rule| rule.ends_with(&format!(" {chain}")));
                for chain in chains.keys().filter(|chain| chain.starts_with("SLUICE-")) {
                    assert!(
                        led_to(chain) || chain == "SLUICE-NOTES",
                        "{name} {table}: nothing leads to {chain}"
                    );
                }
            }
        }
    }
}

#[test]
fn no_rule_of_iptables_writes_or_compares_the_whole_mark() {
    for (name, spec) in iptables_cases() {
        for word in scripts(&spec).iter().flat_map(|script| script.lines()).flat_map(|line| {
            let words: Vec<&str> = line.split(' ').collect();
            let of = |pair: &&[&str]| ["--mark", "--set-xmark", "--tproxy-mark"].contains(&pair[0]);
            words.windows(2).filter(of).map(|pair| pair[1].to_owned()).collect::<Vec<_>>()
        }) {
            let (value, mask) = word.split_once('/').unwrap_or_else(|| panic!("{name}: {word}"));
            let number = |text: &str| u32::from_str_radix(text.trim_start_matches("0x"), 16).unwrap();
            assert_eq!(number(value) & !number(mask), 0, "{name}: {word}");
            assert_eq!(number(mask) & !spec.marks.used(), 0, "{name}: {word}");
        }
    }
}

#[test]
fn iptables_lets_nothing_pass_by_before_isolated_and_unknown_pods_were_asked_for() {
    let mut asked = 0;
    for (name, spec) in iptables_cases() {
        for (script, number) in scripts(&spec).iter().zip([4, 6]) {
            let (_, mangle) = tables(script).into_iter().find(|(table, _)| table == "mangle").unwrap();
            for prefix in ["SLUICE-SYN", "SLUICE-FLOW"] {
                let at = |rules: &[String], wanted: &str| rules.iter().position(|rule| rule.contains(wanted));
                let rules = &mangle[&format!("{prefix}-FROM-OBSERVED")];
                if let Some(pass) = rules.iter().position(|rule| rule.ends_with("-j RETURN")) {
                    for set in ["isolated", "ranges"] {
                        let question = at(rules, &format!("--match-set sluice-{set}{number} dst"));
                        assert!(question.is_some_and(|at| at < pass), "{name}: {rules:#?}");
                        asked += 1;
                    }
                }
                let rules = &mangle[prefix];
                if let Some(pass) = rules.iter().position(|rule| rule.ends_with("-j RETURN")) {
                    for question in [
                        format!("--match-set sluice-isolated{number} dst"),
                        format!("--match-set sluice-ranges{number} src"),
                    ] {
                        assert!(at(rules, &question).is_some_and(|at| at < pass), "{name}: {rules:#?}");
                        asked += 1;
                    }
                }
            }
        }
    }
    assert!(asked > 0);
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
