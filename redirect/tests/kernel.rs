//! The interception in real kernels' network namespaces: installed whole, kept, and removed without trace.

#![allow(clippy::unwrap_used, reason = "a panic is the failure report")]

mod netns;

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use ipnet::IpNet;
use netns::{Netns, until};
use redirect::{
    GateBackend, LocalPods, Redirect, RedirectConfig, RedirectHandle, RedirectSpec, cleanup, delta, probe,
    ruleset,
};

const SECOND: Duration = Duration::from_secs(1);
const PATIENCE: Duration = Duration::from_secs(20);

fn pods(isolated: &[&str], observed: &[&str]) -> LocalPods {
    let parse = |list: &[&str]| -> BTreeSet<IpAddr> { list.iter().map(|a| a.parse().unwrap()).collect() };
    LocalPods { isolated: parse(isolated), observed: parse(observed), ..LocalPods::default() }
}

fn some_pods() -> LocalPods {
    pods(&["10.244.0.5", "fd00::5"], &["10.244.0.6", "fd00::6"])
}

async fn spec(pods: LocalPods) -> RedirectSpec {
    let capabilities = probe().await;
    let gate = capabilities.gate_backend().unwrap();
    RedirectSpec::new(&RedirectConfig::default(), gate, capabilities.ipv6, pods).unwrap()
}

async fn start(pods: LocalPods) -> RedirectHandle {
    Redirect::start(spec(pods).await).await.unwrap()
}

/// Everything that an installation could touch.
fn snapshot(ns: &Netns) -> Vec<String> {
    let uncommented =
        |text: String| text.lines().filter(|l| !l.starts_with('#')).map(|l| format!("{l}\n")).collect();
    vec![
        ns.run("nft list ruleset"),
        ns.run("ip -4 rule"),
        ns.run("ip -6 rule"),
        ns.run("ip -4 route show table all"),
        ns.run("ip -6 route show table all"),
        uncommented(ns.run("iptables-nft-save")),
        uncommented(ns.run("ip6tables-nft-save")),
    ]
}

fn repairs(handle: &RedirectHandle) -> u64 {
    handle.health().borrow().repairs
}

fn table_handle(ns: &Netns) -> String {
    ns.run("nft -a list table inet sluice").lines().next().unwrap().to_owned()
}

#[test]
fn what_is_installed_is_what_the_ruleset_says() {
    let (ns, other) = (Arc::new(Netns::new()), Netns::new());
    let inside = ns.clone();
    let (spec, listed) = ns.block_on(move || async move {
        let spec = spec(some_pods()).await;
        let handle = Redirect::start(spec.clone()).await.unwrap();
        let listed = snapshot(&inside);
        handle.stop().await;
        (spec, listed)
    });
    assert_eq!(snapshot(&ns), listed, "stopping the guard changes nothing");

    other.load(&ruleset(&spec).nft);
    let table = other.run("nft list table inet sluice");
    let installed: String = ns
        .run("nft list table inet sluice")
        .replace("\tchain created_ip_mangle {\n\t}\n\n", "")
        .replace("\tchain created_ip_mangle_input {\n\t}\n\n", "")
        .replace("\tchain created_ip6_mangle {\n\t}\n\n", "")
        .replace("\tchain created_ip6_mangle_input {\n\t}\n\n", "")
        .replace("\tchain created_ip_mangle_forward {\n\t}\n\n", "")
        .replace("\tchain created_ip6_mangle_forward {\n\t}\n\n", "")
        .replace("\tchain enabled_accounting {\n\t}\n\n", "");
    assert_eq!(installed, table);

    for rules in [&listed[1], &listed[2]] {
        assert!(rules.contains("93:\tfrom all fwmark 0x2/0x2 lookup 1093"), "{rules}");
    }
    assert!(listed[3].contains("local default dev lo table 1093"), "{}", listed[3]);
    assert!(listed[4].contains("local default dev lo table 1093"), "{}", listed[4]);
    if spec.gate == GateBackend::IptablesNfqueue {
        for save in [&listed[5], &listed[6]] {
            assert!(
                ["INPUT", "FORWARD"].iter().all(|hook| save
                    .contains(&format!("-A {hook} -m comment --comment \"sluice: gate\" -j SLUICE-GATE\n"))),
                "{save}"
            );
            let rule = save.lines().find(|line| line.starts_with("-A SLUICE-GATE ")).unwrap();
            assert!(rule.contains("--tcp-flags FIN,SYN,RST,ACK SYN -m mark --mark 0x2/0x2"), "{rule}");
            assert!(rule.ends_with("-j NFQUEUE --queue-num 1093"), "{rule}");
        }
    }
}

#[test]
fn a_replacement_is_at_no_moment_half_done() {
    let ns = Arc::new(Netns::new());
    let inside = ns.clone();
    ns.block_on(move || async move {
        start(some_pods()).await.stop().await;
        let done = Arc::new(AtomicBool::new(false));
        let (reader_ns, reader_done) = (inside.clone(), done.clone());
        let reader = thread::spawn(move || {
            let mut seen = 0;
            while !reader_done.load(Ordering::Relaxed) {
                let table = reader_ns.run("nft list table inet sluice");
                assert!(table.contains("10.244.0.5") && table.contains("chain refuse"), "{table}");
                seen += 1;
            }
            seen
        });
        for _ in 0..15 {
            start(some_pods()).await.stop().await;
        }
        done.store(true, Ordering::Relaxed);
        assert!(reader.join().unwrap() > 15);
    });
}

#[test]
fn what_others_delete_or_change_is_repaired_within_a_second_and_counted() {
    let sabotage = [
        "nft delete table inet sluice",
        "nft flush ruleset",
        "nft flush chain inet sluice intercept",
        "nft delete element inet sluice isolated4 { 10.244.0.5 }",
        "nft add element inet sluice observed6 { fd00::77 }",
        "nft add rule inet sluice refuse accept",
        "nft insert rule inet sluice intercept accept",
        "nft add table inet sluice { flags dormant; }",
        "nft add chain inet sluice intruder",
        "ip -4 rule del priority 93",
        "ip -6 rule del priority 93",
        "ip -4 route flush table 1093",
        "ip -6 route del local default dev lo table 1093",
        "iptables-nft -t mangle -F",
        "iptables-nft -t mangle -F SLUICE-GATE",
        "ip6tables-nft -t mangle -D INPUT 1",
        "iptables-nft -t mangle -D FORWARD 1",
        "iptables-nft -t mangle -A SLUICE-GATE -j ACCEPT",
    ];
    let ns = Arc::new(Netns::new());
    let inside = ns.clone();
    ns.block_on(move || async move {
        let spec = spec(some_pods()).await;
        let iptables = spec.gate == GateBackend::IptablesNfqueue;
        let handle = Redirect::start(spec).await.unwrap();
        let wanted = snapshot(&inside);
        for act in sabotage.iter().filter(|act| iptables || !act.contains("tables-nft")) {
            let before = repairs(&handle);
            inside.run(act);
            let took = until(act, PATIENCE, || repairs(&handle) > before).await;
            assert!(took < SECOND, "{act}: repaired after {took:?}");
            assert_eq!(snapshot(&inside), wanted, "{act}");
            let health = handle.health().borrow().clone();
            assert!(health.installed && health.last_error.is_none(), "{act}: {health:?}");
        }
    });
}

#[test]
fn unrelated_changes_are_left_alone_and_cause_no_repair() {
    let ns = Arc::new(Netns::new());
    let inside = ns.clone();
    ns.block_on(move || async move {
        let handle = start(some_pods()).await;
        let table = table_handle(&inside);
        for act in [
            "nft add table inet theirs",
            "nft add chain inet theirs input { type filter hook input priority 0; }",
            "nft add rule inet theirs input tcp dport 22 accept",
            "nft add table ip sluice",
            "iptables-nft -t mangle -A INPUT -p udp -j ACCEPT",
            "iptables-nft -t nat -N THEIRS",
            "ip rule add fwmark 0x100/0x100 lookup 100 priority 94",
            "ip route add local default dev lo table 100",
            "ip route add blackhole 192.0.2.0/24 table 1093",
        ] {
            inside.run(act);
        }
        // Both kinds of look are one turn of the guard: when this repair is counted, all of the above was seen.
        inside.run("ip -4 rule del priority 93");
        until("repair", PATIENCE, || repairs(&handle) > 0).await;
        assert_eq!(repairs(&handle), 1);
        assert_eq!(table_handle(&inside), table, "the table was not installed again");
        let rules = inside.run("nft list ruleset");
        assert!(rules.contains("tcp dport 22 accept") && rules.contains("chain THEIRS"), "{rules}");
        assert!(inside.run("ip rule").contains("fwmark 0x100/0x100"));
    });
}

fn cleanup_restores(ns: Netns) {
    let before = snapshot(&ns);
    let ns = Arc::new(ns);
    let inside = ns.clone();
    let (during, first, second) = ns.block_on(move || async move {
        let handle = start(some_pods()).await;
        let during = snapshot(&inside);
        handle.stop().await;
        let first = cleanup(&RedirectConfig::default()).await.unwrap();
        assert_eq!(snapshot(&inside), before);
        let second = cleanup(&RedirectConfig::default()).await.unwrap();
        assert_eq!(snapshot(&inside), before);
        (during, first, second)
    });
    assert!(during[0].contains("table inet sluice"));
    assert!(first.removed.contains(&"nft table inet sluice".to_owned()), "{first:?}");
    assert!(first.removed.iter().any(|line| line.contains("ip -6 rule")), "{first:?}");
    assert!(second.removed.is_empty(), "{second:?}");
}

#[test]
fn cleanup_leaves_an_untouched_node_as_it_was() {
    cleanup_restores(Netns::new());
}

#[test]
fn cleanup_leaves_the_rules_of_others_as_they_were() {
    let ns = Netns::new();
    for act in [
        "nft add table inet theirs",
        "nft add chain inet theirs input { type filter hook input priority 0; }",
        "iptables-nft -t mangle -A INPUT -p udp -j ACCEPT",
        "iptables-nft -t mangle -N SLUICE-GATEWAY",
        "ip6tables-nft -t mangle -N THEIRS",
        "ip rule add fwmark 0x100/0x100 lookup 100 priority 94",
        "ip -6 rule add fwmark 0x100/0x100 lookup 100 priority 94",
        "ip rule add fwmark 0x2/0x2 lookup 101 priority 95",
        "ip route add local default dev lo table 100",
        "ip route add blackhole 192.0.2.0/24 table 1093",
    ] {
        ns.run(act);
    }
    cleanup_restores(ns);
}

#[test]
fn cleanup_removes_what_another_configuration_left() {
    let ns = Arc::new(Netns::new());
    let before = snapshot(&ns);
    let inside = ns.clone();
    ns.block_on(move || async move {
        let config = RedirectConfig {
            mark_mask: 0x3f0000,
            route_table: 77,
            rule_priority: 7,
            ..RedirectConfig::default()
        };
        let capabilities = probe().await;
        let spec =
            RedirectSpec::new(&config, capabilities.gate_backend().unwrap(), true, some_pods()).unwrap();
        Redirect::start(spec).await.unwrap().stop().await;
        assert!(inside.run("ip rule").contains("fwmark 0x10000/0x10000 lookup 77"));
        cleanup(&RedirectConfig::default()).await.unwrap();
        assert_eq!(snapshot(&inside), before);
    });
}

/// Not a rule by itself: the process that the next test kills. Without its variable it has nothing to hold.
#[test]
fn process_that_is_killed() {
    let Ok(name) = std::env::var("REDIRECT_TEST_HOLD") else { return };
    Netns::existing(&name).block_on(|| async {
        let _handle = start(pods(&["10.244.0.9"], &[])).await;
        println!("installed");
        std::future::pending::<()>().await;
    });
}

fn killed_process(ns: &Netns) {
    let mut child: Child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "process_that_is_killed", "--nocapture"])
        .env("REDIRECT_TEST_HOLD", ns.name())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let output = child.stdout.take().unwrap();
    let installed = std::io::BufRead::lines(std::io::BufReader::new(output))
        .any(|line| line.unwrap().contains("installed"));
    assert!(installed, "the process must install before it is killed");
    child.kill().unwrap();
    child.wait().unwrap();
}

#[test]
fn the_rules_outlive_a_killed_process_and_cleanup_removes_them() {
    let ns = Arc::new(Netns::new());
    let before = snapshot(&ns);
    killed_process(&ns);
    assert!(ns.run("nft list set inet sluice isolated4").contains("10.244.0.9"));
    let inside = ns.clone();
    ns.block_on(move || async move {
        cleanup(&RedirectConfig::default()).await.unwrap();
        assert_eq!(snapshot(&inside), before);
    });
}

#[test]
fn an_installation_replaces_the_leftovers_of_a_killed_process() {
    let (ns, fresh) = (Arc::new(Netns::new()), Netns::new());
    let before = snapshot(&ns);
    killed_process(&ns);
    let inside = ns.clone();
    ns.block_on(move || async move {
        start(some_pods()).await.stop().await;
        assert!(!inside.run("nft list ruleset").contains("10.244.0.9"));
    });
    fresh.block_on(|| async { start(some_pods()).await.stop().await });
    assert_eq!(snapshot(&ns), snapshot(&fresh));
    let inside = ns.clone();
    ns.block_on(move || async move {
        cleanup(&RedirectConfig::default()).await.unwrap();
        assert_eq!(snapshot(&inside), before, "what the killed process had created is still known");
    });
}

/// Elements of one set, read with nft's own JSON.
fn elements(ns: &Netns, set: &str) -> BTreeSet<IpAddr> {
    let text = ns.run(&format!("nft -j list set inet sluice {set}"));
    let document: serde_json::Value = serde_json::from_str(&text).unwrap();
    let set =
        document["nftables"].as_array().unwrap().iter().find(|object| object["set"].is_object()).unwrap();
    let members = set["set"]["elem"].as_array().cloned().unwrap_or_default();
    members.iter().map(|member| member.as_str().unwrap().parse().unwrap()).collect()
}

fn series() -> Vec<LocalPods> {
    vec![
        LocalPods::default(),
        some_pods(),
        pods(&["10.244.0.6", "fd00::6"], &["10.244.0.5", "fd00::5"]),
        pods(&["10.244.0.6", "10.244.0.7"], &["10.244.0.6", "fd00::8"]),
        pods(&[], &["10.244.0.7", "::ffff:10.244.0.9"]),
        LocalPods { ranges: ranges(&["10.244.0.0/16", "fd00::/48", "10.9.9.9/32"]), ..some_pods() },
        LocalPods { ranges: ranges(&["10.244.0.0/24", "10.244.1.0/24", "fd00::/64"]), ..some_pods() },
        LocalPods { ranges: ranges(&["10.244.0.0/23"]), ..LocalPods::default() },
        LocalPods::default(),
    ]
}

fn ranges(list: &[&str]) -> BTreeSet<IpNet> {
    list.iter().map(|range| range.parse().unwrap()).collect()
}

/// The ranges that nft lists, one of a single address without its length.
fn listed_ranges(ns: &Netns) -> BTreeSet<IpNet> {
    let mut found = BTreeSet::new();
    for set in ["pod_ranges4", "pod_ranges6"] {
        let text = ns.run(&format!("nft list set inet sluice {set}"));
        let Some((_, list)) = text.split_once("elements = {") else { continue };
        let list = list.split('}').next().unwrap().split(',').map(str::trim);
        let parse =
            |range: &str| range.parse().ok().or_else(|| range.parse::<IpAddr>().ok().map(IpNet::from));
        found.extend(list.map(|range| parse(range).unwrap()));
    }
    found
}

fn assert_sets(ns: &Netns, wanted: &LocalPods) {
    assert_eq!(listed_ranges(ns), wanted.ranges);
    let isolated: BTreeSet<IpAddr> = wanted.isolated.iter().map(IpAddr::to_canonical).collect();
    let observed: BTreeSet<IpAddr> =
        wanted.observed.iter().map(IpAddr::to_canonical).filter(|a| !isolated.contains(a)).collect();
    for (name, all) in [("isolated", isolated), ("observed", observed)] {
        let (v4, v6) = all.into_iter().partition(IpAddr::is_ipv4);
        assert_eq!(elements(ns, &format!("{name}4")), v4, "{wanted:?}");
        assert_eq!(elements(ns, &format!("{name}6")), v6, "{wanted:?}");
    }
}

/// Whether a range may take the place of one that it lies in, in one transaction. nft 0.9.8 and Linux 5.10 refuse it.
fn replaces_ranges(ns: &Netns) -> bool {
    ns.load(
        "table inet ranges { set some { type ipv4_addr; flags interval; elements = { 10.0.0.0/16 }; }; }",
    );
    let taken = ns.try_load(
        "delete element inet ranges some { 10.0.0.0/16 }\nadd element inet ranges some { 10.0.0.0/24 }\n",
    );
    ns.run("nft delete table inet ranges");
    taken
}

#[test]
fn nft_takes_each_delta_from_the_old_sets_to_the_new() {
    let ns = Netns::new();
    let replaces_ranges = replaces_ranges(&ns);
    let spec = RedirectSpec::new(
        &RedirectConfig::default(),
        GateBackend::IptablesNfqueue,
        true,
        LocalPods::default(),
    );
    ns.load(&ruleset(&spec.unwrap()).nft);
    let mut old = LocalPods::default();
    for new in series().into_iter().filter(|pods| replaces_ranges || pods.ranges.is_empty()) {
        if let Some(script) = delta(&old, &new) {
            ns.load(&script);
        }
        assert_sets(&ns, &new);
        old = new;
    }
}

#[test]
fn local_pods_reach_the_kernel_without_replacing_the_table() {
    let ns = Arc::new(Netns::new());
    let inside = ns.clone();
    ns.block_on(move || async move {
        let handle = start(LocalPods::default()).await;
        let table = table_handle(&inside);
        let replaces_ranges = replaces_ranges(&inside);
        for pods in series().into_iter().filter(|pods| replaces_ranges || pods.ranges.is_empty()) {
            let version = handle.set_local_pods(pods.clone());
            handle.applied(version).await.unwrap();
            assert_sets(&inside, &pods);
        }
        assert_eq!(table_handle(&inside), table);
        // Where it has to be replaced, the sets are right all the same.
        for pods in series() {
            let version = handle.set_local_pods(pods.clone());
            handle.applied(version).await.unwrap();
            assert_sets(&inside, &pods);
        }
        assert_eq!(repairs(&handle), 0);
    });
}

#[test]
fn a_change_that_no_longer_fits_is_followed_by_a_replacement() {
    let ns = Arc::new(Netns::new());
    let inside = ns.clone();
    ns.block_on(move || async move {
        let handle = start(some_pods()).await;
        // No await between: the guard shares this thread and cannot look meanwhile.
        inside.run("nft delete element inet sluice isolated4 { 10.244.0.5 }");
        let wanted = pods(&[], &["10.244.0.6"]);
        let version = handle.set_local_pods(wanted.clone());
        handle.applied(version).await.unwrap();
        assert_sets(&inside, &wanted);
        assert_eq!(handle.health().borrow().last_error, None);
    });
}

#[test]
fn of_several_requests_the_last_wins() {
    let ns = Arc::new(Netns::new());
    let inside = ns.clone();
    ns.block_on(move || async move {
        let handle = start(LocalPods::default()).await;
        let versions: Vec<u64> = series().into_iter().map(|pods| handle.set_local_pods(pods)).collect();
        assert_eq!(versions, (1..).take(series().len()).collect::<Vec<u64>>());
        let last = handle.set_local_pods(some_pods());
        handle.applied(last).await.unwrap();
        assert_sets(&inside, &some_pods());
        assert_eq!(handle.health().borrow().applied_version, last);
    });
}

#[test]
fn the_probe_tells_what_the_kernel_takes_and_leaves_nothing() {
    let ns = Arc::new(Netns::new());
    let before = snapshot(&ns);
    let capabilities = ns.block_on(|| async { probe().await });
    assert_eq!(snapshot(&ns), before);
    ns.run("nft add table inet t");
    ns.run("nft add chain inet t c");
    for (rule, told) in [
        ("queue num 1", capabilities.nft_queue),
        ("socket transparent 1 accept", capabilities.nft_socket),
        ("meta l4proto tcp tproxy to :1", capabilities.nft_tproxy),
    ] {
        assert_eq!(ns.try_run(&format!("nft add rule inet t c {rule}")).status.success(), told, "{rule}");
    }
    let iptables = ns.try_run("iptables-nft -t mangle -A INPUT -j NFQUEUE --queue-num 1").status.success();
    assert_eq!(iptables, capabilities.iptables_nfqueue);
    assert!(capabilities.permitted && capabilities.policy_routing && capabilities.ipv6, "{capabilities:?}");
}

#[test]
fn a_node_without_ipv6_goes_on_with_ipv4() {
    let ns = Arc::new(Netns::new());
    ns.run("sysctl -qw net.ipv6.conf.all.disable_ipv6=1");
    let before = snapshot(&ns);
    let inside = ns.clone();
    ns.block_on(move || async move {
        let spec = spec(some_pods()).await;
        assert!(!spec.ipv6);
        let handle = Redirect::start(spec).await.unwrap();
        let rules = inside.run("nft list ruleset");
        assert!(rules.contains("10.244.0.5") && !rules.contains("fd00::5"), "{rules}");
        assert!(!inside.run("ip -6 rule").contains("1093"));
        let version = handle.set_local_pods(pods(&["10.244.0.8", "fd00::8"], &[]));
        handle.applied(version).await.unwrap();
        assert!(inside.run("nft list ruleset").contains("10.244.0.8"));
        handle.stop().await;
        cleanup(&RedirectConfig::default()).await.unwrap();
        assert_eq!(snapshot(&inside), before);
    });
}

#[test]
fn a_backend_the_kernel_lacks_is_named_with_its_option_and_remedy() {
    let ns = Netns::new();
    let (capabilities, outcome) = ns.block_on(|| async {
        let capabilities = probe().await;
        let spec =
            RedirectSpec::new(&RedirectConfig::default(), GateBackend::NftQueue, true, some_pods()).unwrap();
        (capabilities, Redirect::start(spec).await.map(drop).map_err(|error| error.to_string()))
    });
    match outcome {
        Ok(()) => assert!(capabilities.nft_queue),
        Err(error) => {
            assert!(!capabilities.nft_queue);
            assert_eq!(error, "this node lacks nft queue (CONFIG_NFT_QUEUE): modprobe nft_queue");
        }
    }
}
