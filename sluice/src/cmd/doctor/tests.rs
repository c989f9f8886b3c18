//! Each finding by what leads to it. The real reading is tried in namespaces by `sluice/tests/doctor.rs`.

use redirect::survey::{
    Base, Chain, Detour, DetourKind, Link, LinkKind, MarkRule, MarkWrite, Place, QueueUse, Source, Table,
    Tool, Unread,
};
use redirect::{BackendChoice, IptablesVariant, MissingPart};

use super::facts::Facts;
use super::finding::{Finding, State};
use super::{Report, judge, text};
use crate::rights::{NET_ADMIN, NET_RAW, Rights};

/// A node on which nothing is wrong.
fn sound() -> Facts {
    let mut facts = Facts {
        rights: Rights(1 << NET_ADMIN | 1 << NET_RAW),
        descriptors: Some(1 << 20),
        settings_writable: true,
        ..Facts::default()
    };
    let found = &mut facts.survey.capabilities;
    found.nft_version = Some("1.0.6".to_owned());
    found.permitted = true;
    found.nft_tproxy = true;
    found.nft_socket = true;
    found.nft_queue = true;
    found.nft_fib = true;
    found.nft_reject = true;
    found.nft_ct = true;
    found.nft_route_chain = true;
    found.policy_routing = true;
    found.ctnetlink = true;
    found.ipv6 = true;
    facts.survey.bridge_rules = true;
    facts.survey.tools = vec![Tool { name: "nft", path: Some("/usr/sbin/nft".into()) }];
    for (name, value) in [
        ("net/ipv4/ip_forward", "1"),
        ("net/ipv6/conf/all/forwarding", "1"),
        ("net/ipv4/tcp_fwmark_accept", "0"),
        ("net/ipv4/tcp_syncookies", "1"),
        ("net/core/somaxconn", "4096"),
        ("net/netfilter/nf_conntrack_acct", "1"),
        ("net/netfilter/nf_conntrack_max", "262144"),
        ("net/netfilter/nf_conntrack_count", "12"),
        ("fs/pipe-user-pages-soft", "65536"),
    ] {
        set(&mut facts, name, value);
    }
    facts
}

fn set(facts: &mut Facts, name: &str, value: &str) {
    facts.settings.insert(name.to_owned(), value.to_owned());
}

fn place(table: &str, chain: &str) -> Place {
    Place { family: "inet".to_owned(), table: table.to_owned(), chain: chain.to_owned(), legacy: false }
}

fn chain(table: &str, name: &str, base: Option<(&str, &str, i32, bool)>) -> Chain {
    let base = base.map(|(kind, hook, priority, drops)| Base {
        kind: kind.to_owned(),
        hook: hook.to_owned(),
        priority,
        drops,
    });
    Chain { place: place(table, name), base, rules: 1 }
}

fn link(name: &str, kind: LinkKind, master: Option<&str>) -> Link {
    Link { name: name.to_owned(), kind, master: master.map(str::to_owned), addresses: Vec::new() }
}

fn wrong(facts: &Facts) -> Vec<(&'static str, State)> {
    judge(facts)
        .into_iter()
        .filter(|finding| finding.state != State::Ok)
        .map(|Finding { name, state, .. }| (name, state))
        .collect()
}

#[test]
fn a_node_without_nft_is_fit_when_iptables_has_all_parts_and_told_what_it_lacks_otherwise() {
    let without_nft = |missing: Vec<MissingPart>| {
        let mut facts = sound();
        let found = &mut facts.survey.capabilities;
        found.nft_tproxy = false;
        found.iptables.insert(IptablesVariant::Nft, missing.clone());
        found.iptables.insert(IptablesVariant::Legacy, missing);
        facts
    };
    let facts = without_nft(Vec::new());
    assert_eq!(wrong(&facts), []);
    let findings = judge(&facts);
    let parts = findings.iter().find(|finding| finding.name == "kernel.parts").unwrap();
    assert!(parts.found.contains("the rules are those of iptables-nft"), "{}", parts.found);
    let part = MissingPart {
        part: "iptables TPROXY",
        kernel_option: "CONFIG_NETFILTER_XT_TARGET_TPROXY",
        remedy: "modprobe xt_TPROXY",
    };
    let findings = judge(&without_nft(vec![part]));
    let lacks = findings.iter().filter(|finding| finding.name == "kernel.parts");
    let told: Vec<&str> = lacks.map(|finding| finding.found.as_str()).collect();
    assert!(told.iter().any(|found| found.contains("no nft tproxy")), "{told:?}");
    assert!(told.iter().any(|found| found.contains("no iptables TPROXY")), "{told:?}");
}

/// What `change` to a sound node leads to.
#[track_caller]
fn check(expected: &[(&'static str, State)], change: impl FnOnce(&mut Facts)) {
    let mut facts = sound();
    change(&mut facts);
    let findings = judge(&facts);
    assert_eq!(wrong(&facts), expected, "{findings:#?}");
    for finding in findings.iter().filter(|finding| finding.state != State::Ok) {
        let told = |text: &Option<String>| text.as_ref().is_some_and(|text| !text.is_empty());
        assert!(told(&finding.consequence) && told(&finding.remedy), "{finding:#?}");
    }
}

#[test]
fn a_sound_node_has_nothing_but_good_findings() {
    check(&[], |_| {});
}

#[test]
fn rights_tools_and_parts_of_the_kernel_that_are_missing_are_failures() {
    check(&[("rights.net-admin", State::Fail)], |facts| facts.rights = Rights(1 << NET_RAW));
    check(&[("rights.net-raw", State::Warn)], |facts| facts.rights = Rights(1 << NET_ADMIN));
    check(&[("tools.nft", State::Fail), ("kernel.parts", State::Fail)], |facts| {
        facts.survey.tools.clear();
        facts.survey.capabilities.nft_version = None;
    });
    check(&[("kernel.parts", State::Fail)], |facts| facts.survey.capabilities.nft_tproxy = false);
    check(&[("kernel.parts", State::Fail)], |facts| facts.survey.capabilities.permitted = false);
    let mut refused = sound();
    refused.survey.capabilities.permitted = false;
    refused.survey.capabilities.refusal = Some("nft failed (exit status: 1): no /dev/stdin".to_owned());
    let told = judge(&refused).into_iter().find(|finding| finding.state == State::Fail).unwrap();
    assert!(told.found.ends_with("no /dev/stdin"), "what nft said: {told:?}");
    check(
        &[("tools.iptables", State::Fail), ("kernel.parts", State::Fail), ("kernel.parts", State::Fail)],
        |facts| facts.survey.capabilities.nft_queue = false,
    );
}

/// Good findings rest on what was read.
#[test]
fn what_could_not_be_read_is_never_as_it_should_be() {
    let unread = |what: Source| vec![Unread { what, why: "no answer".to_owned() }];
    for (source, unknown) in [
        (Source::Ruleset, &["enforcers", "firewalls", "hooks", "detours", "queue", "marks", "leftovers"][..]),
        (Source::Iptables, &["enforcers", "firewalls", "hooks", "detours", "queue", "marks", "leftovers"]),
        (Source::Ipsets, &["enforcers"]),
        (Source::Links, &["bridges", "enforcers", "marks", "leftovers"]),
        (Source::Queues, &["queue"]),
    ] {
        let expected: Vec<_> = ["survey"].iter().chain(unknown).map(|name| (*name, State::Warn)).collect();
        check(&expected, |facts| facts.survey.unread = unread(source));
    }
    // What was found all the same is told as ever.
    check(
        &[
            ("survey", State::Warn),
            ("enforcers", State::Fail),
            ("marks", State::Warn),
            ("leftovers", State::Warn),
        ],
        |facts| {
            facts.survey.unread = unread(Source::Links);
            facts.survey.filter.chains = vec![chain("filter", "CILIUM_FORWARD", None)];
            facts.survey.links =
                vec![link("br0", LinkKind::Bridge, None), link("veth1", LinkKind::Veth, Some("br0"))];
        },
    );
}

#[test]
fn names_of_pods_interfaces_that_fit_something_else_are_told() {
    let links = || {
        vec![
            link("cali1", LinkKind::Veth, None),
            link("cni0", LinkKind::Bridge, None),
            link("eth0", LinkKind::Other, None),
            link("cali.vxlan", LinkKind::Vxlan, None),
        ]
    };
    for (pattern, expected) in [
        ("cali1*", &[][..]),
        ("cni0", &[]),
        ("nothing*", &[]),
        ("eth0", &[("pod-interfaces", State::Warn)]),
        ("cali*", &[("pod-interfaces", State::Warn)]),
    ] {
        check(expected, |facts| {
            facts.survey.links = links();
            facts.config.redirect.pod_interfaces = vec![pattern.to_owned()];
        });
    }
}

#[test]
fn a_kernel_that_does_not_tell_of_conntrack_is_a_failure_with_either_kind_of_rules() {
    check(&[("kernel.parts", State::Fail)], |facts| facts.survey.capabilities.ctnetlink = false);
    check(&[("kernel.parts", State::Fail)], |facts| {
        facts.config.redirect.backend = BackendChoice::IptablesLegacy;
        facts.survey.capabilities.iptables.insert(IptablesVariant::Legacy, Vec::new());
        facts.survey.capabilities.ctnetlink = false;
    });
    let mut facts = sound();
    facts.survey.capabilities.ctnetlink = false;
    let told = judge(&facts).into_iter().find(|finding| finding.state == State::Fail).unwrap();
    assert_eq!(told.found, "no netlink of conntrack (CONFIG_NF_CT_NETLINK)");
    assert_eq!(told.remedy.as_deref(), Some("modprobe nf_conntrack_netlink"));
}

#[test]
fn where_conntrack_does_not_show_its_settings_that_is_what_is_told() {
    check(&[("settings.nf_conntrack_acct", State::Warn), ("conntrack.size", State::Warn)], |facts| {
        for name in ["nf_conntrack_acct", "nf_conntrack_max", "nf_conntrack_count"] {
            facts.settings.remove(&format!("net/netfilter/{name}"));
        }
    });
    // It is root's agent that turns it on, not who looks.
    check(&[("rights.net-admin", State::Fail)], |facts| {
        facts.rights = Rights(1 << NET_RAW);
        facts.settings_writable = false;
        set(facts, "net/netfilter/nf_conntrack_acct", "0");
    });
}

#[test]
fn settings_are_judged_by_what_they_do_to_connections() {
    for (name, value, finding, state) in [
        ("net/ipv4/ip_forward", "0", "settings.ip_forward", State::Warn),
        ("net/ipv6/conf/all/forwarding", "0", "settings.ipv6_forwarding", State::Warn),
        ("net/ipv4/tcp_fwmark_accept", "1", "settings.tcp_fwmark_accept", State::Fail),
        ("net/ipv4/tcp_syncookies", "2", "settings.tcp_syncookies", State::Fail),
        ("net/ipv4/conf/all/route_localnet", "1", "settings.route_localnet", State::Warn),
        ("net/core/somaxconn", "2048", "limits.somaxconn", State::Warn),
        ("net/netfilter/nf_conntrack_max", "4096", "conntrack.size", State::Warn),
        ("net/netfilter/nf_conntrack_count", "262000", "conntrack.fill", State::Warn),
        ("fs/pipe-user-pages-soft", "1024", "limits.pipes", State::Warn),
    ] {
        check(&[(finding, state)], |facts| set(facts, name, value));
    }
    for (name, value) in [
        ("net/ipv4/tcp_syncookies", "0"),
        ("net/ipv4/conf/all/rp_filter", "1"),
        ("fs/pipe-user-pages-soft", "0"),
    ] {
        check(&[], |facts| set(facts, name, value));
    }
    check(&[("settings.nf_conntrack_acct", State::Warn)], |facts| {
        set(facts, "net/netfilter/nf_conntrack_acct", "0");
        facts.settings_writable = false;
    });
    check(&[("settings.rp_filter", State::Warn)], |facts| {
        facts.survey.links = vec![link("vxlan.1", LinkKind::Vxlan, None)];
        set(facts, "net/ipv4/conf/vxlan.1/rp_filter", "1");
    });
    check(&[("limits.descriptors", State::Warn)], |facts| facts.descriptors = Some(1024));
    check(&[], |facts| {
        facts.settings.insert("net/ipv4/ip_forward".to_owned(), "x\u{1b}[0m".repeat(100));
    });
}

#[test]
fn a_bridge_with_ports_needs_its_rules_and_settings_unless_others_are_known_to_make_it() {
    let ports = |bridge: &str| {
        vec![link(bridge, LinkKind::Bridge, None), link("veth1", LinkKind::Veth, Some(bridge))]
    };
    let hiding = |facts: &mut Facts| {
        facts.survey.links = ports("cni0");
        set(facts, "net/bridge/bridge-nf-call-iptables", "1");
        set(facts, "net/ipv4/conf/cni0/send_redirects", "1");
    };
    let without = |bridge: &'static str| {
        move |facts: &mut Facts| {
            facts.survey.bridge_rules = false;
            facts.survey.links = ports(bridge);
        }
    };
    check(&[], |facts| facts.survey.links = ports("cni0"));
    check(&[("bridges", State::Fail)], without("cni0"));
    check(&[], without("docker0"));
    check(&[], hiding);
    let left = [("bridges.br_netfilter", State::Fail), ("bridges.send_redirects", State::Warn)];
    check(&left, |facts| {
        hiding(facts);
        facts.settings_writable = false;
    });
    check(&left, |facts| {
        hiding(facts);
        facts.config.redirect.bridge_settings = false;
    });
}

#[test]
fn other_enforcers_are_known_by_their_chains_sets_tables_and_interfaces() {
    for (name, state) in [
        ("KUBE-ROUTER-INPUT", State::Warn),
        ("KUBE-POD-FW-ABC", State::Warn),
        ("CILIUM_FORWARD", State::Fail),
        ("ANTREA-FORWARD", State::Fail),
        ("WEAVE-NPC", State::Warn),
        ("AZURE-NPM", State::Warn),
        ("cali-FORWARD", State::Warn),
    ] {
        check(&[("enforcers", state)], |facts| {
            facts.survey.filter.chains = vec![chain("filter", name, None)]
        });
    }
    check(&[("enforcers", State::Fail), ("enforcers", State::Warn)], |facts| {
        facts.survey.filter.chains = vec![chain("filter", "cali-pi-x", None)];
    });
    check(&[("enforcers", State::Warn)], |facts| facts.survey.ipsets = vec!["KUBE-DST-XYZ".to_owned()]);
    check(&[("enforcers", State::Fail)], |facts| {
        facts.survey.links = vec![link("cilium_host", LinkKind::Veth, None)];
    });
    check(&[("enforcers", State::Warn)], |facts| {
        let name = "kube-network-policies".to_owned();
        facts.survey.filter.tables = vec![Table { family: "inet".to_owned(), name }];
    });
    // kube-proxy and the plugins that only connect are no enforcers.
    check(&[], |facts| {
        facts.survey.filter.chains =
            ["KUBE-SERVICES", "KUBE-FORWARD", "CNI-FORWARD", "FLANNEL-FWD", "DOCKER-USER"]
                .map(|name| chain("filter", name, None))
                .into();
    });
}

#[test]
fn firewalls_are_known_by_name_and_by_chains_that_drop() {
    check(&[("firewalls", State::Warn)], |facts| {
        facts.survey.filter.chains = vec![chain("fw", "in", Some(("filter", "input", 0, true)))];
    });
    check(&[("firewalls", State::Warn)], |facts| {
        facts.survey.filter.chains = vec![chain("fw", "fwd", Some(("filter", "forward", 0, true)))];
    });
    check(&[("firewalls", State::Warn)], |facts| {
        facts.survey.filter.chains = vec![chain("filter", "ufw-before-input", None)];
    });
    check(&[("firewalls", State::Warn)], |facts| {
        facts.survey.filter.tables = vec![Table { family: "inet".to_owned(), name: "firewalld".to_owned() }];
    });
    check(&[], |facts| {
        facts.survey.filter.chains = vec![chain("fw", "out", Some(("filter", "output", 0, true)))];
    });
}

#[test]
fn chains_around_ours_are_judged_by_their_priority() {
    let base = |kind: &'static str, hook: &'static str, priority| {
        move |facts: &mut Facts| {
            facts.survey.filter.chains = vec![chain("t", "c", Some((kind, hook, priority, false)))];
        }
    };
    check(&[("hooks.late-translation", State::Fail)], base("nat", "prerouting", -80));
    check(&[], base("nat", "prerouting", -100));
    check(&[("hooks.same-priority", State::Warn)], base("filter", "prerouting", -90));
    check(&[("hooks.same-priority", State::Warn)], base("filter", "input", -149));
    check(&[], base("filter", "input", -150));
    check(&[], base("filter", "postrouting", -90));
}

#[test]
fn detours_and_queues_of_others_are_found_and_our_own_are_not() {
    for (kind, name, state) in [
        (DetourKind::Divert, "detours.tproxy", State::Fail),
        (DetourKind::Untrack, "detours.notrack", State::Warn),
        (DetourKind::Offload, "detours.offload", State::Warn),
    ] {
        let of = |table: &'static str| {
            move |facts: &mut Facts| {
                facts.survey.filter.detours = vec![Detour { place: place(table, "c"), kind }];
            }
        };
        check(&[(name, state)], of("theirs"));
        check(&[], of("sluice"));
    }
    for (first, last, expected) in
        [(1093, 1093, &[("queue", State::Fail)][..]), (0, 2000, &[("queue", State::Fail)]), (100, 103, &[])]
    {
        check(expected, |facts| {
            facts.survey.filter.queue_uses = vec![QueueUse { place: place("theirs", "c"), first, last }];
        });
    }
    check(&[("queue", State::Fail)], |facts| facts.survey.bound_queues = vec![1093]);
}

#[test]
fn marks_of_others_matter_where_they_touch_ours() {
    for (sets, clears, expected) in [
        (0x4000, 0, &[][..]),
        (0x2, 0, &[("marks.set", State::Fail)]),
        (u32::MAX, u32::MAX, &[("marks.set", State::Fail)]),
        (0x80, !0x80, &[("marks.cleared", State::Warn)]),
        (0x80, 0x80, &[]),
    ] {
        check(expected, |facts| {
            facts.survey.filter.mark_writes =
                vec![MarkWrite { place: place("theirs", "c"), connection: false, sets, clears }];
        });
    }
    for (mark, mask, expected) in [
        (0x4000, 0x4000, &[][..]),
        (0x2, 0x2, &[("marks.routing", State::Fail)]),
        (0x100, u32::MAX, &[("marks.routing", State::Fail)]),
    ] {
        check(expected, |facts| {
            facts.survey.mark_rules =
                vec![MarkRule { family: 4, priority: 100, mark, mask, table: 7, ours: false }];
        });
    }
}

#[test]
fn an_agent_that_works_here_is_told_from_what_one_has_left() {
    let table = || vec![Table { family: "inet".to_owned(), name: "sluice".to_owned() }];
    check(&[("leftovers", State::Warn)], |facts| facts.survey.filter.tables = table());
    check(&[], |facts| {
        facts.survey.filter.tables = table();
        facts.survey.bound_queues = vec![1093];
        facts.survey.listening = vec![15093];
    });
    check(&[("leftovers", State::Warn)], |facts| {
        facts.survey.filter.chains = vec![chain("mangle", "SLUICE-GATE", None)];
    });
    check(&[("listener", State::Fail)], |facts| facts.survey.listening = vec![15093]);
}

#[test]
fn what_is_wrong_has_a_consequence_and_a_remedy_and_the_text_shows_both() {
    let mut facts = sound();
    facts.rights = Rights(0);
    facts.survey.links = vec![link("cilium_host", LinkKind::Veth, None)];
    facts.descriptors = Some(1024);
    let findings = judge(&facts);
    for finding in findings.iter().filter(|finding| finding.state != State::Ok) {
        assert!(finding.consequence.is_some() && finding.remedy.is_some(), "{finding:?}");
    }
    let report = Report { guaranteed: false, version: "0", kernel: String::new(), findings };
    let text = text::render(&report);
    assert!(text.contains("FAIL  rights.net-admin") && text.contains("do: run as root"), "{text}");
    assert!(text.ends_with("CANNOT be guaranteed here: 2 failures, 2 warnings.\n"), "{text}");
    let json = serde_json::to_value(&report).unwrap();
    assert_eq!(json["findings"][0]["state"], "fail");
    assert!(json["findings"].as_array().unwrap().iter().any(|finding| finding["remedy"].is_null()));
}
