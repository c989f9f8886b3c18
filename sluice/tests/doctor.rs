//! `sluice doctor` as a user runs it, in namespaces with what it is to find.

#![expect(clippy::unwrap_used, reason = "a panic in a test is its failure report")]

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use lab::{Cluster, Netns, PodSpec, SluiceOptions, wait_for, wait_until};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

const SLUICE: &str = env!("CARGO_BIN_EXE_sluice");
const LIMIT: Duration = Duration::from_secs(60);

/// A node without pods: a namespace with its loopback device up.
fn node() -> Netns {
    let netns = Netns::create("doctor").unwrap();
    netns.ip("link set lo up\n").unwrap();
    netns
}

fn doctor(netns: &Netns, arguments: &[&str]) -> Output {
    netns.command(SLUICE).args(["doctor", "-o", "json"]).args(arguments).output().unwrap()
}

fn report(output: &Output) -> Value {
    serde_json::from_slice(&output.stdout).unwrap_or_else(|error| panic!("{error}: {output:?}"))
}

/// The state of the finding of this name whose text contains `part`.
#[track_caller]
fn assert_found(report: &Value, name: &str, state: &str, part: &str) {
    let found = report["findings"].as_array().unwrap().iter().any(|finding| {
        finding["name"] == name
            && finding["state"] == state
            && finding["found"].as_str().unwrap().contains(part)
    });
    assert!(found, "{name} {state} {part}: {report:#}");
}

fn run(netns: &Netns, line: &str) -> String {
    let mut words = line.split(' ');
    let output = netns.command(words.next().unwrap()).args(words).output().unwrap();
    assert!(output.status.success(), "{line}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

/// Everything of the network that the command could have changed.
fn snapshot(netns: &Netns) -> Vec<String> {
    ["nft list ruleset", "ip rule", "ip -6 rule", "ip route show table all", "ip -o link"]
        .map(|line| run(netns, line))
        .into()
}

/// The namespaces that a process has made.
fn made_by(pid: u32) -> Vec<String> {
    let Ok(entries) = fs::read_dir("/run/netns") else { return Vec::new() };
    let names = entries.filter_map(|entry| entry.ok()?.file_name().into_string().ok());
    names.filter(|name| name.starts_with(&format!("slu-{pid}-"))).collect()
}

fn end_of(mut child: Child) -> Option<i32> {
    wait_for(LIMIT, || child.try_wait().unwrap()).expect("the doctor did not end").code()
}

#[test]
fn on_a_node_without_faults_the_self_test_passes_and_nothing_is_left() {
    let netns = node();
    let before = snapshot(&netns);
    let child = netns
        .command(SLUICE)
        .args(["doctor", "-o", "json"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let pid = child.id();
    let output = child.wait_with_output().unwrap();
    let report = report(&output);
    assert_eq!(output.status.code(), Some(0), "{report:#}");
    assert_eq!(report["guaranteed"], true);
    for name in ["self-test.tcp4", "self-test.udp4"] {
        assert_found(&report, name, "ok", "one refused in");
    }
    if Path::new("/proc/sys/net/ipv6").exists() {
        for name in ["self-test.tcp6", "self-test.udp6"] {
            assert_found(&report, name, "ok", "one refused in");
        }
    }
    assert_found(&report, "kernel.parts", "ok", "all there");
    assert_found(&report, "enforcers", "ok", "no other");
    assert_eq!(made_by(pid), Vec::<String>::new());
    assert_eq!(snapshot(&netns), before);
}

/// Whatever the configuration asks for is what is tried; what the kernel lacks for it is named, and nothing else is tried.
#[test]
fn each_backend_that_may_be_asked_for_is_tried_or_what_it_lacks_is_named() {
    let netns = node();
    let before = snapshot(&netns);
    let folder = tempfile::tempdir().unwrap();
    let config = folder.path().join("config.yaml");
    for (backend, words) in [
        ("auto", "the rules are nft's"),
        ("nft", "the gate is NftQueue"),
        ("nft-nfqueue", "the gate is IptablesNfqueue"),
        ("iptables", "the rules are those of iptables-nft"),
        ("iptables-nft", "the rules are those of iptables-nft"),
        ("iptables-legacy", "the rules are those of iptables-legacy"),
    ] {
        fs::write(&config, format!("redirect: {{backend: {backend}}}\n")).unwrap();
        let output = doctor(&netns, &["--config", config.to_str().unwrap()]);
        let report = report(&output);
        let lacks_queue = report["findings"].as_array().unwrap().iter().any(|finding| {
            finding["name"] == "kernel.parts" && finding["found"].as_str().unwrap().contains("no nft queue")
        });
        if backend == "nft" && lacks_queue {
            assert_eq!(output.status.code(), Some(1), "{report:#}");
            assert_found(&report, "self-test", "warn", "not run");
            continue;
        }
        assert_eq!(output.status.code(), Some(0), "{backend}: {report:#}");
        assert_found(&report, "kernel.parts", "ok", words);
        for case in ["self-test.tcp4", "self-test.udp4", "self-test.tcp6", "self-test.udp6"] {
            if case.ends_with('4') || Path::new("/proc/sys/net/ipv6").exists() {
                assert_found(&report, case, "ok", "one refused in");
            }
        }
    }
    assert_eq!(snapshot(&netns), before);
}

#[test]
fn settings_that_break_connections_are_found() {
    let netns = node();
    for (key, value) in [
        ("net.ipv4.tcp_syncookies", "2"),
        ("net.ipv4.tcp_fwmark_accept", "1"),
        ("net.ipv4.ip_forward", "0"),
        ("net.ipv4.conf.all.accept_source_route", "1"),
        ("net.ipv6.conf.all.seg6_enabled", "1"),
        ("net.ipv6.conf.all.rpl_seg_enabled", "1"),
        ("net.ipv4.conf.lo.route_localnet", "1"),
        ("net.core.somaxconn", "128"),
        ("net.netfilter.nf_conntrack_acct", "0"),
    ] {
        netns.sysctl(key, value).unwrap();
    }
    let output = doctor(&netns, &["--no-self-test"]);
    let report = report(&output);
    assert_eq!(output.status.code(), Some(1), "{report:#}");
    assert_eq!(report["guaranteed"], false);
    assert_found(&report, "settings.tcp_syncookies", "fail", "=2");
    assert_found(&report, "settings.tcp_fwmark_accept", "fail", "=1");
    assert_found(&report, "settings.ip_forward", "warn", "=0");
    assert_found(&report, "settings.routes_in_packets", "fail", "accept_source_route=1");
    assert_found(&report, "settings.routes_in_packets", "fail", "seg6_enabled=1");
    assert_found(&report, "settings.routes_in_packets", "fail", "rpl_seg_enabled=1");
    assert_found(&report, "settings.route_localnet", "warn", "on lo");
    assert_found(&report, "settings.nf_conntrack_acct", "ok", "sluice run turns it on");
    assert_found(&report, "limits.somaxconn", "warn", "somaxconn=128");
    assert_eq!(netns.sysctl_value("net.netfilter.nf_conntrack_acct").unwrap(), "0", "only looked at");
}

#[test]
fn rules_of_others_that_clash_are_found_and_left_as_they_are() {
    let netns = node();
    netns
        .nft(
            "add table inet kube-network-policies
             add table inet firewalld
             add table inet sluice
             add table ip site
             add chain ip site inward { type filter hook input priority 0; policy drop; }
             add rule ip site inward accept
             add chain ip site late { type nat hook prerouting priority -80; }
             add rule ip site late tcp dport 1 accept
             add chain ip site mine { type filter hook prerouting priority -90; }
             add rule ip site mine accept
             add chain ip site marks
             add rule ip site marks meta mark set 0x2
             add chain ip site diverts
             add rule ip site diverts meta l4proto tcp tproxy to 127.0.0.1:9\n",
        )
        .unwrap();
    for line in [
        "iptables-nft -N KUBE-ROUTER-FORWARD",
        "iptables-nft -N cali-po-x",
        "iptables-nft -t mangle -A PREROUTING -j CONNMARK --save-mark",
        "iptables-nft -t raw -A PREROUTING -p udp -j CT --notrack",
        "ip rule add fwmark 0x4/0x4 lookup 100",
        "ip link add cni0 type bridge",
        "ip link add veth0 type veth peer name veth1",
        "ip link set veth0 master cni0",
    ] {
        run(&netns, line);
    }
    let before = snapshot(&netns);
    let output = doctor(&netns, &["--no-self-test"]);
    let report = report(&output);
    assert_eq!(output.status.code(), Some(1));
    for (name, state, part) in [
        ("enforcers", "warn", "kube-network-policies: table inet kube-network-policies"),
        ("enforcers", "warn", "kube-router: chain ip filter KUBE-ROUTER-FORWARD"),
        ("enforcers", "fail", "Calico (policies): chain ip filter cali-po-x"),
        ("firewalls", "warn", "firewalld"),
        ("firewalls", "warn", "ip site inward drops"),
        ("hooks.late-translation", "fail", "ip site late at prerouting -80"),
        ("hooks.same-priority", "warn", "ip site mine at prerouting -90"),
        ("detours.tproxy", "fail", "ip site diverts"),
        ("detours.notrack", "warn", "ip raw PREROUTING"),
        ("marks.set", "fail", "connection mark in ip mangle PREROUTING, mark in ip site marks"),
        ("marks.routing", "fail", "fwmark 0x4/0x4 lookup 100"),
        ("leftovers", "warn", "nobody reads their queue"),
        ("bridges", "ok", "bridge cni0 with 1 ports"),
    ] {
        assert_found(&report, name, state, part);
    }
    assert_eq!(snapshot(&netns), before);
}

#[test]
fn beside_an_agent_nothing_is_disturbed() {
    let cluster = Cluster::builder().pod(PodSpec::new("a")).build().unwrap();
    let node = cluster.node("node1").unwrap();
    let options = SluiceOptions { binary: Some(SLUICE.into()), ..SluiceOptions::default() };
    let mut agent = node.start_sluice(&options).unwrap();
    agent.wait_ready(LIMIT).unwrap();
    let table = run(node, "nft -a list table inet sluice");
    let output = doctor(node, &[]);
    let report = report(&output);
    assert_eq!(output.status.code(), Some(0), "{report:#}");
    assert_found(&report, "leftovers", "ok", "an agent works here");
    assert_found(&report, "queue", "ok", "read by the agent");
    assert_found(&report, "self-test.tcp4", "ok", "one refused in");
    assert_eq!(run(node, "nft -a list table inet sluice"), table, "not installed anew");
    assert_eq!(agent.metric("sluice_ruleset_repairs_total").unwrap(), 0.0);
    assert_eq!(agent.get("/readyz").unwrap().0, 200);
}

#[test]
fn without_privilege_it_says_so_and_makes_nothing() {
    let netns = node();
    let output = netns
        .command("setpriv")
        .args(["--inh-caps=-all", "--bounding-set=-all", SLUICE, "doctor", "-o", "json"])
        .output()
        .unwrap();
    let report = report(&output);
    assert_eq!(output.status.code(), Some(1), "{report:#}");
    assert_found(&report, "rights.net-admin", "fail", "no CAP_NET_ADMIN");
    assert_found(&report, "kernel.parts", "fail", "permission to change the ruleset");
    let parts: Vec<&Value> = report["findings"]
        .as_array()
        .unwrap()
        .iter()
        .filter(|finding| finding["name"] == "kernel.parts")
        .collect();
    assert_eq!(parts.len(), 1, "what is there may not be called missing: {parts:#?}");
    for name in ["enforcers", "firewalls", "hooks", "detours", "queue", "marks", "leftovers"] {
        assert_found(&report, name, "warn", "not known: the nft ruleset");
    }
    assert_found(&report, "self-test", "warn", "not run");
}

/// A mount of its own hides nft from everything that doctor starts.
#[test]
fn without_nft_the_self_test_is_that_of_iptables() {
    let netns = node();
    let script = format!("mount --bind /dev/null \"$(command -v nft)\" && exec {SLUICE} doctor -o json");
    let output = netns.command("unshare").args(["--mount", "sh", "-c", &script]).output().unwrap();
    let report = report(&output);
    assert_eq!(output.status.code(), Some(0), "{report:#}");
    assert_found(&report, "kernel.parts", "ok", "the rules are those of iptables-");
    assert_found(&report, "survey", "warn", "nft: not found");
    assert_found(&report, "enforcers", "warn", "not known: the nft ruleset");
    for case in ["self-test.tcp4", "self-test.udp4"] {
        assert_found(&report, case, "ok", "one refused in");
    }
}

#[test]
fn a_signal_in_the_middle_of_the_self_test_leaves_nothing() {
    let netns = node();
    for signal in [Signal::SIGINT, Signal::SIGTERM] {
        let mut command = netns.command(SLUICE);
        let child = command.arg("doctor").stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        let pid = child.id();
        // The agent of the self-test has its log in a folder of the same scheme.
        let log = || {
            let entries = fs::read_dir(std::env::temp_dir()).unwrap().flatten();
            let folder = entries
                .map(|entry| entry.path())
                .find(|path| path.file_name().unwrap().to_string_lossy().starts_with(&format!("slu-{pid}-")));
            folder.filter(|folder| folder.join("node1.log").exists())
        };
        assert!(wait_until(LIMIT, || log().is_some()), "the self-test did not start");
        kill(Pid::from_raw(i32::try_from(pid).unwrap()), signal).unwrap();
        assert_eq!(end_of(child), Some(128 + signal as i32));
        assert_eq!(made_by(pid), Vec::<String>::new());
        assert_eq!(log(), None);
    }
}

#[test]
fn tools_that_print_without_end_or_nonsense_are_survived() {
    let netns = node();
    let folder = tempfile::tempdir().unwrap();
    let fake = |script: &str| {
        let path = folder.path().join("nft");
        fs::write(&path, format!("#!/bin/sh\n{script}\n")).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
    };
    let path = format!("{}:{}", folder.path().display(), std::env::var("PATH").unwrap());
    // Left to itself a node without a working nft has its rules from iptables.
    let config = folder.path().join("config.yaml");
    fs::write(&config, "redirect: {backend: nft-nfqueue}\n").unwrap();
    let with_fake = || {
        let begin = Instant::now();
        let output = Command::new("ip")
            .args(["netns", "exec", netns.name(), SLUICE, "doctor", "-o", "json", "--no-self-test"])
            .arg("--config")
            .arg(&config)
            .env("PATH", &path)
            .output()
            .unwrap();
        assert!(begin.elapsed() < LIMIT, "{:?}", begin.elapsed());
        output
    };
    fake("exec yes 'table inet x {'");
    let endless = with_fake();
    assert_eq!(endless.status.code(), Some(1));
    assert_found(&report(&endless), "tools.nft", "fail", "does not say its version");

    // It answers the probe, and lies about the ruleset.
    fake(
        "case \"$*\" in *--version*) echo 'nftables v1.0.6 (x)';; *ruleset*) head -c 3000000 /dev/urandom;; *) cat >/dev/null;; esac",
    );
    let nonsense = with_fake();
    assert!(matches!(nonsense.status.code(), Some(0 | 1)), "{nonsense:?}");
    let text = String::from_utf8(nonsense.stdout).unwrap();
    assert!(text.len() < 100_000 && !text.contains('\u{1b}'), "{} bytes", text.len());
}

#[test]
fn a_configuration_that_cannot_be_used_is_bad_usage() {
    let folder = tempfile::tempdir().unwrap();
    let config = folder.path().join("config.yaml");
    fs::write(&config, "redirect: {queues: 0}\n").unwrap();
    let output = Command::new(SLUICE).args(["doctor", "--config"]).arg(&config).output().unwrap();
    assert_eq!(output.status.code(), Some(2));
    assert!(String::from_utf8_lossy(&output.stderr).contains("redirect.queues"), "{output:?}");
}
