//! Rules of iptables in real kernels' network namespaces: installed whole with either variant, kept, exchanged for
//! those of nft and back without a moment between, and removed without trace.

#![allow(clippy::unwrap_used, reason = "a panic is the failure report")]

mod netns;

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use netns::{Netns, until};
use redirect::{
    BackendChoice, GateBackend, IptablesVariant, LocalPods, Redirect, RedirectConfig, RedirectHandle,
    RedirectSpec, cleanup, probe_for,
};

const VARIANTS: [IptablesVariant; 2] = [IptablesVariant::Nft, IptablesVariant::Legacy];
const TABLES: [&str; 3] = ["raw", "mangle", "filter"];
const PATIENCE: Duration = Duration::from_secs(20);
/// What tells of no change by itself is compared about once a second, and a repair takes a score of processes: on a
/// machine that others use too, some seconds.
const SOON: Duration = Duration::from_secs(10);

fn pods(isolated: &[&str], observed: &[&str]) -> LocalPods {
    let parse = |list: &[&str]| -> BTreeSet<IpAddr> { list.iter().map(|a| a.parse().unwrap()).collect() };
    LocalPods { isolated: parse(isolated), observed: parse(observed), ..LocalPods::default() }
}

fn some_pods() -> LocalPods {
    LocalPods {
        ranges: ["10.244.0.0/24", "fd00::/64"].map(|range| range.parse().unwrap()).into(),
        ..pods(&["10.244.0.5", "fd00::5"], &["10.244.0.6", "fd00::6"])
    }
}

async fn start(backend: BackendChoice, pods: LocalPods) -> RedirectHandle {
    let found = probe_for(backend).await;
    let gate = found.choose(backend).unwrap();
    let spec = RedirectSpec::new(&RedirectConfig::default(), gate, found.ipv6, pods).unwrap();
    Redirect::start(spec).await.unwrap()
}

fn choice(variant: IptablesVariant) -> BackendChoice {
    match variant {
        IptablesVariant::Nft => BackendChoice::IptablesNft,
        IptablesVariant::Legacy => BackendChoice::IptablesLegacy,
    }
}

/// Everything that an installation could touch. The older iptables' tables, once asked for, stay and are empty.
fn snapshot(ns: &Netns) -> Vec<String> {
    // nft 0.9.8 ends with an error at TPROXY's rules of iptables; iptables itself shows them.
    let listed = ns.try_run("nft list ruleset").stdout;
    let mut seen = vec![String::from_utf8(listed).unwrap(), ns.run("ipset save")];
    for command in ["iptables-nft-save", "ip6tables-nft-save"] {
        let saved = ns.run(command);
        // Without times and counters.
        let lines = saved.lines().filter(|line| !line.starts_with('#')).map(|line| line.split(" [").next());
        seen.push(lines.map(Option::unwrap_or_default).collect());
    }
    for line in ["ip -4 rule", "ip -6 rule", "ip -4 route show table all", "ip -6 route show table all"] {
        seen.push(ns.run(line));
    }
    for command in ["iptables-legacy", "ip6tables-legacy"] {
        for table in TABLES {
            seen.push(ns.run(&format!("{command} -w -t {table} -S")));
        }
    }
    seen
}

fn rules(ns: &Netns, variant: IptablesVariant) -> String {
    let mut text = String::new();
    for command in ["iptables", "ip6tables"] {
        for table in TABLES {
            text += &ns.run(&format!("{command}-{} -w -t {table} -S", variant.word()));
        }
    }
    text
}

/// The elements of all sets; sets themselves have a number of chance in their listing.
fn elements(ns: &Netns) -> BTreeSet<String> {
    let listed = ns.run("ipset save");
    listed.lines().filter(|line| line.starts_with("add ")).map(str::to_owned).collect()
}

#[test]
fn both_variants_take_the_rules_and_cleanup_leaves_the_node_as_it_was() {
    for variant in VARIANTS {
        let ns = Arc::new(Netns::new());
        let before = snapshot(&ns);
        let inside = ns.clone();
        ns.block_on(move || async move {
            let handle = start(choice(variant), some_pods()).await;
            let rules = rules(&inside, variant);
            for part in [
                "-A PREROUTING -m comment --comment sluice -j SLUICE-PREROUTING",
                "-j TPROXY --on-port 15093",
                "-j NFQUEUE --queue-num 1093",
                "-j CT --notrack",
                "-j REJECT --reject-with tcp-reset",
            ] {
                assert_eq!(rules.matches(part).count() % 2, 0, "{part}, in both families: {rules}");
                assert!(rules.contains(part), "{part}: {rules}");
            }
            let sets = inside.run("ipset save");
            assert!(sets.contains("add sluice-isolated4 10.244.0.5\n"), "{sets}");
            assert!(sets.contains("add sluice-ranges6 fd00::/64\n"), "{sets}");
            assert!(!inside.run("nft list tables").contains("inet sluice"));
            let during = snapshot(&inside);
            handle.stop().await;
            assert_eq!(snapshot(&inside), during, "stopping the guard changes nothing");
            let report = cleanup(&RedirectConfig::default()).await.unwrap();
            assert!(report.removed.iter().any(|line| line.contains("ipset sluice-isolated4")), "{report:?}");
            assert_eq!(snapshot(&inside), before);
            let again = cleanup(&RedirectConfig::default()).await.unwrap();
            assert!(again.removed.is_empty(), "{again:?}");
        });
    }
}

#[test]
fn cleanup_leaves_the_rules_and_sets_of_others() {
    for variant in VARIANTS {
        let ns = Arc::new(Netns::new());
        let word = variant.word();
        for act in [
            &format!("iptables-{word} -t mangle -A PREROUTING -p udp -j ACCEPT")[..],
            &format!("iptables-{word} -t filter -N SLUICE-GATEWAY"),
            &format!("ip6tables-{word} -t raw -N THEIRS"),
            "ipset create sluice-like hash:ip",
            "ipset create isolated4 hash:ip",
        ] {
            ns.run(act);
        }
        let before = snapshot(&ns);
        let inside = ns.clone();
        ns.block_on(move || async move {
            start(choice(variant), some_pods()).await.stop().await;
            cleanup(&RedirectConfig::default()).await.unwrap();
            assert_eq!(snapshot(&inside), before);
        });
    }
}

#[test]
fn what_others_delete_or_change_is_repaired_and_counted() {
    for variant in VARIANTS {
        let word = variant.word();
        let sabotage = [
            format!("iptables-{word} -t mangle -F"),
            format!("iptables-{word} -t mangle -F SLUICE-SYN"),
            format!("ip6tables-{word} -t mangle -D PREROUTING 1"),
            format!("iptables-{word} -t raw -F"),
            format!("iptables-{word} -t filter -D INPUT 1"),
            format!("ip6tables-{word} -t filter -I SLUICE-REFUSE 1 -j RETURN"),
            format!("iptables-{word} -t mangle -A SLUICE-LINKS -j ACCEPT"),
            "ipset del sluice-isolated4 10.244.0.5".to_owned(),
            "ipset add sluice-observed6 fd00::77".to_owned(),
            "ipset flush sluice-ranges4".to_owned(),
            "ip -4 rule del priority 93".to_owned(),
        ];
        let ns = Arc::new(Netns::new());
        let inside = ns.clone();
        ns.block_on(move || async move {
            let handle = start(choice(variant), some_pods()).await;
            let wanted = (rules(&inside, variant), elements(&inside));
            for act in &sabotage {
                let before = handle.health().borrow().repairs;
                inside.run(act);
                let took = until(act, PATIENCE, || handle.health().borrow().repairs > before).await;
                assert!(took < SOON, "{act}: repaired after {took:?}");
                assert_eq!((rules(&inside, variant), elements(&inside)), wanted, "{act}");
                let health = handle.health().borrow().clone();
                assert!(health.installed && health.last_error.is_none(), "{act}: {health:?}");
            }
        });
    }
}

#[test]
fn local_pods_reach_the_sets_without_another_installation() {
    for variant in VARIANTS {
        let ns = Arc::new(Netns::new());
        let inside = ns.clone();
        ns.block_on(move || async move {
            let handle = start(choice(variant), LocalPods::default()).await;
            let ranges = ["10.244.0.0/16", "10.9.9.9/32", "fd00::/48"].map(|range| range.parse().unwrap());
            for wanted in [
                some_pods(),
                pods(&["10.244.0.6", "fd00::6"], &["10.244.0.5", "fd00::5"]),
                pods(&["10.244.0.6"], &["10.244.0.6", "::ffff:10.244.0.9"]),
                LocalPods { ranges: ranges.into(), ..some_pods() },
                LocalPods::default(),
            ] {
                let version = handle.set_local_pods(wanted.clone());
                handle.applied(version).await.unwrap();
                let listed = |set: &str| -> BTreeSet<String> {
                    let text = inside.run(&format!("ipset save {set}"));
                    let added = text.lines().filter_map(|line| line.strip_prefix(&format!("add {set} ")));
                    added.map(str::to_owned).collect()
                };
                let isolated: BTreeSet<IpAddr> = wanted.isolated.iter().map(IpAddr::to_canonical).collect();
                let observed =
                    wanted.observed.iter().map(IpAddr::to_canonical).filter(|ip| !isolated.contains(ip));
                let of = |four: bool, all: &mut dyn Iterator<Item = IpAddr>| -> BTreeSet<String> {
                    all.filter(|ip| ip.is_ipv4() == four).map(|ip| ip.to_string()).collect()
                };
                let observed: BTreeSet<IpAddr> = observed.collect();
                for four in [true, false] {
                    let number = if four { 4 } else { 6 };
                    let (is, wanted) = (
                        listed(&format!("sluice-isolated{number}")),
                        of(four, &mut isolated.iter().copied()),
                    );
                    assert_eq!(is, wanted);
                    let (is, wanted) = (
                        listed(&format!("sluice-observed{number}")),
                        of(four, &mut observed.iter().copied()),
                    );
                    assert_eq!(is, wanted);
                }
                assert_eq!(
                    listed("sluice-ranges4").len() + listed("sluice-ranges6").len(),
                    wanted.ranges.len()
                );
            }
            assert_eq!(handle.health().borrow().repairs, 0);
        });
    }
}

/// Whether something takes packets of pods: nft's table, or the rules of a variant.
fn stands(ns: &Netns) -> bool {
    let hooked = |command: &str| {
        let output = ns.try_run(&format!("{command} -w -t mangle -S PREROUTING"));
        String::from_utf8_lossy(&output.stdout).contains("-j SLUICE-PREROUTING")
    };
    let table = ns.try_run("nft list chain inet sluice intercept");
    (table.status.success() && String::from_utf8_lossy(&table.stdout).contains("hook prerouting"))
        || hooked("iptables-nft")
        || hooked("iptables-legacy")
}

#[test]
fn from_one_backend_to_another_there_is_no_moment_without_rules_and_none_of_the_first_is_left() {
    let ns = Arc::new(Netns::new());
    let before = snapshot(&ns);
    let inside = ns.clone();
    ns.block_on(move || async move {
        use BackendChoice::{Auto, IptablesLegacy, IptablesNft};
        start(Auto, some_pods()).await.stop().await;
        let done = Arc::new(AtomicBool::new(false));
        let (reader_ns, reader_done) = (inside.clone(), done.clone());
        let reader = thread::spawn(move || {
            let mut seen = 0;
            while !reader_done.load(Ordering::Relaxed) {
                // Two looks: between the parts of one the rules may have changed their place.
                assert!(stands(&reader_ns) || stands(&reader_ns));
                seen += 1;
            }
            seen
        });
        for backend in [IptablesNft, Auto, IptablesLegacy, IptablesNft, IptablesLegacy, Auto, IptablesNft] {
            start(backend, some_pods()).await.stop().await;
            let is = (
                inside.run("nft list tables").contains("inet sluice"),
                rules(&inside, IptablesVariant::Nft).contains("SLUICE-PREROUTING"),
                rules(&inside, IptablesVariant::Legacy).contains("SLUICE-PREROUTING"),
            );
            let wanted = (backend == Auto, backend == IptablesNft, backend == IptablesLegacy);
            assert_eq!(is, wanted, "{backend:?}");
            assert_eq!(inside.run("ipset save").contains("sluice-"), backend != Auto, "{backend:?}");
        }
        done.store(true, Ordering::Relaxed);
        assert!(reader.join().unwrap() > 3);
        cleanup(&RedirectConfig::default()).await.unwrap();
        assert_eq!(snapshot(&inside), before);
    });
}

#[test]
fn the_probe_finds_both_variants_and_leaves_nothing() {
    let ns = Arc::new(Netns::new());
    let before = snapshot(&ns);
    let inside = ns.clone();
    ns.block_on(move || async move {
        for variant in VARIANTS {
            let found = probe_for(choice(variant)).await;
            assert_eq!(found.choose(choice(variant)), Ok(GateBackend::Iptables(variant)), "{found:?}");
        }
        assert_eq!(probe_for(BackendChoice::Auto).await.iptables.len(), 0, "nft will do here");
        assert_eq!(snapshot(&inside), before);
    });
}

#[test]
fn what_iptables_lacks_is_named() {
    let ns = Netns::new();
    ns.block_on(|| async {
        // The tools are found along PATH and in the system's folders; a set of our probe's name cannot be refused.
        let mut found = probe_for(BackendChoice::IptablesNft).await;
        let part = redirect::MissingPart {
            part: "iptables TPROXY",
            kernel_option: "CONFIG_NETFILTER_XT_TARGET_TPROXY",
            remedy: "modprobe xt_TPROXY",
        };
        found.iptables.insert(IptablesVariant::Nft, vec![part]);
        assert_eq!(
            found.choose(BackendChoice::IptablesNft).unwrap_err().to_string(),
            "this node lacks iptables TPROXY (CONFIG_NETFILTER_XT_TARGET_TPROXY): modprobe xt_TPROXY"
        );
    });
}
