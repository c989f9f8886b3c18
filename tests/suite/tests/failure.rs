//! What happens when Sluice dies, stops, cannot start, runs out of descriptors, or has its rules taken away.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking, in its helpers too")]

use std::fs;
use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Output;
use std::thread;
use std::time::{Duration, Instant};

use lab::{Netns, Server, greeting_peer, sluice_binary, wait_for, wait_until};
use nix::sys::signal::Signal;
use serde_json::Value;
use suite::ends::{Dialer, End, read_to_end};
use suite::stage::{ALLOWED, DENIED, LIMIT, Stage, action, bytes, cause, is_final};

/// Long enough for a SYN and its first copy, after a second.
const NO_ANSWER: Duration = Duration::from_millis(1_300);

/// Servers on the isolated pod, on an allowed and a denied port, and on a pod that no policy selects.
fn servers(stage: &Stage) -> [Server; 3] {
    let (server, plain) = (stage.pod("server"), stage.pod("plain"));
    [server.serve(ALLOWED).unwrap(), server.serve(DENIED).unwrap(), plain.serve(80).unwrap()]
}

/// Connects from `client` and asks who it is. The error is that of connect(2) or of the first read.
fn visit(client: &Netns, to: SocketAddr, limit: Duration) -> Result<(), ErrorKind> {
    let mut stream = client.connect(to, limit).map_err(|error| error.kind())?;
    let local = stream.local_addr().unwrap();
    let seen = greeting_peer(&mut stream, limit).map_err(|error| error.kind())?;
    assert_eq!(seen, local, "the server sees the client's own address");
    Ok(())
}

/// Everything that Sluice could leave in a namespace, without counters.
fn traces(netns: &Netns) -> String {
    let mut text = String::new();
    for command in [
        "nft -s list ruleset",
        "ip -4 rule",
        "ip -6 rule",
        "ip -4 route show table all",
        "ip -6 route show table all",
        "iptables-save",
        "ip6tables-save",
    ] {
        let mut words = command.split(' ');
        let output = netns.command(words.next().unwrap()).args(words).output().unwrap();
        assert!(output.status.success(), "{command}: {output:?}");
        let lines = String::from_utf8(output.stdout).unwrap();
        // iptables-save dates its lines, and counts; the kernel adds link-local addresses once it has made sure
        // that they are nobody else's.
        let lasting =
            |line: &&str| !(line.starts_with('#') || line.contains("fe80:") || line.contains("ff00::/8"));
        let lines = without_rates(&lines);
        let lines = lines.lines().filter(lasting).map(|line| line.split(" [").next().unwrap());
        text.push_str(&format!("== {command}\n{}\n", lines.collect::<Vec<_>>().join("\n")));
    }
    text
}

/// A listing without what clients do: the elements of the sets that hold their rates.
fn without_rates(listing: &str) -> String {
    let is_rate = |entry: &str| entry.contains("limit rate over") && !entry.contains("update @");
    listing.split_inclusive('\n').filter(|line| !is_rate(line)).collect()
}

/// How often the parts of an installation are there: table, IPv4 and IPv6 rule, route, gate's jump.
fn parts(netns: &Netns) -> [usize; 4] {
    let traces = traces(netns);
    let count = |what: &str| traces.matches(what).count();
    [
        count("table inet sluice {"),
        count("lookup 1093"),
        count("local default dev lo table 1093"),
        count("-j SLUICE-GATE"),
    ]
}

/// Runs `sluice` in a namespace. One that starts although it should not is ended after ten seconds.
fn run_sluice(netns: &Netns, arguments: &[&str]) -> Output {
    netns.command("timeout").arg("10").arg(sluice_binary().unwrap()).args(arguments).output().unwrap()
}

fn said(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr)
}

/// One byte each way.
fn exchange(near: &mut TcpStream, far: &mut TcpStream) {
    let mut byte = [0];
    near.write_all(b"?").unwrap();
    far.read_exact(&mut byte).unwrap();
    far.write_all(b"!").unwrap();
    near.read_exact(&mut byte).unwrap();
    assert_eq!(&byte, b"!");
}

#[test]
fn killed_it_leaves_isolated_pods_closed_and_others_open_and_works_again_after_a_restart() {
    let mut stage = Stage::new("").unwrap();
    let _servers = servers(&stage);
    let dialer =
        |port| Dialer::new(stage.pod("client"), stage.pod("plain"), stage.pod("plain").at(port), LIMIT);
    let (near, far) = dialer(7_001).unwrap().pair().unwrap();
    let (near_busy, far_busy) = dialer(7_002).unwrap().pair().unwrap();
    stage.sluice_mut().kill9();

    // The kernel ends what the process carried, at both ends, idle or busy.
    thread::scope(|scope| {
        let busy = scope.spawn(|| {
            while (&near_busy).write(&[7; 4_096]).is_ok() {}
            read_to_end(&near_busy).1
        });
        for end in [&near, &far, &far_busy] {
            assert_ne!(read_to_end(end).1, End::Silence);
        }
        assert_ne!(busy.join().unwrap(), End::Silence);
    });
    let (other, server, plain) = (stage.pod("other"), stage.pod("server"), stage.pod("plain"));
    assert_eq!(visit(other, server.at(ALLOWED), NO_ANSWER), Err(ErrorKind::TimedOut));
    assert_eq!(visit(server, plain.at(80), NO_ANSWER), Err(ErrorKind::TimedOut), "from an isolated pod, too");
    assert_eq!(visit(other, plain.at(80), LIMIT), Ok(()));

    // Attempts made meanwhile succeed with their kernel's next try.
    let (name, to) = (other.netns().name().to_owned(), server.at(ALLOWED));
    let waiting = thread::spawn(move || {
        Netns::open(&name).unwrap().run(|| {
            let attempt = || {
                let begin = Instant::now();
                TcpStream::connect_timeout(&to, LIMIT).map(|_| begin.elapsed())
            };
            thread::scope(|scope| {
                let attempts: Vec<_> = (0..8).map(|_| scope.spawn(attempt)).collect();
                attempts.into_iter().map(|attempt| attempt.join().unwrap()).collect::<Result<Vec<_>, _>>()
            })
        })
    });
    stage.start_sluice().unwrap();
    let times = waiting.join().unwrap().unwrap();
    assert!(
        times.iter().all(|time| *time > Duration::from_millis(900)),
        "the first SYN was dropped: {times:?}"
    );
    let (other, server, plain) = (stage.pod("other"), stage.pod("server"), stage.pod("plain"));
    assert_eq!(visit(other, server.at(ALLOWED), LIMIT), Ok(()));
    assert_eq!(visit(other, server.at(DENIED), LIMIT), Err(ErrorKind::ConnectionRefused));
    assert_eq!(visit(server, plain.at(80), LIMIT), Ok(()));
    let ipv6 = fs::exists("/proc/net/if_inet6").unwrap();
    let families = if ipv6 { 2 } else { 1 };
    let parts = parts(stage.cluster.node("node1").unwrap());
    assert_eq!(parts[..3], [1, families, families], "table, rules, routes");
    // One jump from INPUT and one from FORWARD.
    assert!(parts[3] == 0 || parts[3] == 2 * families, "{parts:?}");
}

#[test]
fn the_fail_mode_can_close_every_pod_or_open_every_pod() {
    for (mode, isolated, observed) in
        [("closed", Err(ErrorKind::TimedOut), Err(ErrorKind::TimedOut)), ("open", Ok(()), Ok(()))]
    {
        let mut stage = Stage::new(&format!("redirect: {{fail_mode: {mode}}}\n")).unwrap();
        let _servers = servers(&stage);
        stage.sluice_mut().kill9();
        let (other, server, plain) = (stage.pod("other"), stage.pod("server"), stage.pod("plain"));
        assert_eq!(visit(other, server.at(ALLOWED), NO_ANSWER), isolated, "{mode}");
        assert_eq!(visit(other, plain.at(80), NO_ANSWER), observed, "{mode}");
    }
}

#[test]
fn allowed_connections_older_than_sluice_live_on_through_start_restart_and_stop() {
    let mut stage = Stage::without_sluice("").unwrap();
    let mut old: Vec<(TcpStream, TcpStream)> = ["server", "plain"]
        .into_iter()
        .map(|name| {
            let to = stage.pod(name).at(ALLOWED);
            Dialer::new(stage.pod("client"), stage.pod(name), to, LIMIT).unwrap().pair().unwrap()
        })
        .collect();
    let mut both = |moment: &str| {
        for (near, far) in &mut old {
            println!("{moment}");
            exchange(near, far);
        }
    };
    both("before");
    stage.start_sluice().unwrap();
    both("started");
    stage.sluice_mut().kill9();
    both("killed");
    stage.start_sluice().unwrap();
    both("restarted");
    stage.sluice_mut().sigterm();
    assert_eq!(stage.sluice_mut().wait_exit(LIMIT).unwrap(), 0);
    both("stopped");
    // Policy holds for what comes now.
    stage.start_sluice().unwrap();
    let server = stage.pod("server");
    assert_eq!(visit(stage.pod("client"), server.at(DENIED), LIMIT), Err(ErrorKind::ConnectionRefused));
    both("at the end");
}

#[test]
fn told_to_stop_it_lets_connections_finish_and_resets_the_rest_at_the_limit() {
    const DRAIN: Duration = Duration::from_millis(3_000);
    let mut stage = Stage::new("shutdown: {drain_timeout_ms: 3000}\n").unwrap();
    let _servers = servers(&stage);
    let (client, server) = (stage.pod("client"), stage.pod("server"));
    let pairs: Vec<_> = (8_001..8_004)
        .map(|port| Dialer::new(client, server, server.at(port), LIMIT).unwrap().pair().unwrap())
        .collect();
    let from: Vec<SocketAddr> = pairs.iter().map(|(near, _)| near.local_addr().unwrap()).collect();
    let mut pairs = pairs.into_iter();
    let (mut finishing, left, also_left) =
        (pairs.next().unwrap(), pairs.next().unwrap(), pairs.next().unwrap());
    let begin = Instant::now();
    stage.sluice_mut().sigterm();
    let not_ready = || stage.sluice().get("/readyz").is_ok_and(|(status, _)| status == 503);
    assert!(wait_until(DRAIN, not_ready), "an ending process is not ready");

    // What is new is treated as if no process were there.
    let (other, server, plain) = (stage.pod("other"), stage.pod("server"), stage.pod("plain"));
    assert_eq!(visit(other, server.at(ALLOWED), NO_ANSWER), Err(ErrorKind::TimedOut), "isolated: closed");
    assert_eq!(visit(other, plain.at(80), NO_ANSWER), Ok(()), "observed: open");
    assert!(begin.elapsed() < DRAIN, "the questions above were asked during the drain");
    exchange(&mut finishing.0, &mut finishing.1);
    drop(finishing.0);
    assert_eq!(read_to_end(&finishing.1), (vec![], End::Closed));
    drop(finishing.1);
    for (near, far) in [&left, &also_left] {
        assert_eq!((read_to_end(near).1, read_to_end(far).1), (End::Reset, End::Reset));
    }
    let took = begin.elapsed();
    assert!(took >= DRAIN - Duration::from_millis(50), "reset after {took:?}");
    assert_eq!(stage.sluice_mut().wait_exit(LIMIT).unwrap(), 0);

    let records: Vec<Value> = stage.sluice().records().unwrap().into_iter().filter(is_final).collect();
    let causes: Vec<&str> = from
        .iter()
        .map(|from| {
            let mut of_it = records.iter().filter(|record| suite::stage::is_from(record, *from));
            let record = of_it.next().unwrap();
            assert!(of_it.next().is_none(), "one final record");
            assert_eq!(action(record), "connection-ended");
            cause(record)
        })
        .collect();
    assert_eq!(causes, ["client-closed", "shutdown", "shutdown"]);
}

#[test]
fn told_to_stop_without_connections_it_ends_at_once() {
    let mut stage = Stage::new("").unwrap();
    for signal in [Signal::SIGTERM, Signal::SIGINT] {
        let begin = Instant::now();
        stage.sluice_mut().signal(signal);
        assert_eq!(stage.sluice_mut().wait_exit(LIMIT).unwrap(), 0);
        assert!(begin.elapsed() < Duration::from_secs(2), "{:?}", begin.elapsed());
        stage.start_sluice().unwrap();
    }
}

#[test]
fn a_renamed_records_file_keeps_the_earlier_records_and_a_hangup_begins_a_new_one() {
    let mut stage = Stage::new("").unwrap();
    let _servers = servers(&stage);
    let records = stage.sluice().records_path().to_owned();
    let renamed = records.with_extension("1");
    let visits = |stage: &Stage| {
        for _ in 0..20 {
            visit(stage.pod("client"), stage.pod("server").at(ALLOWED), LIMIT).unwrap();
        }
    };
    visits(&stage);
    fs::rename(&records, &renamed).unwrap();
    visits(&stage);
    stage.sluice_mut().signal(Signal::SIGHUP);
    assert!(wait_until(LIMIT, || records.exists()));
    visits(&stage);
    stage.sluice_mut().sigterm();
    assert_eq!(stage.sluice_mut().wait_exit(LIMIT).unwrap(), 0);
    let read = |path: &Path| -> Vec<Value> {
        fs::read_to_string(path).unwrap().lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    };
    let (before, after) = (read(&renamed), read(&records));
    assert!(before.len() >= 40 && after.len() >= 40, "{} and {}", before.len(), after.len());
    let sequence = |record: &Value| record["event"]["sequence"].as_u64().unwrap();
    let all: Vec<u64> = before.iter().chain(&after).map(sequence).collect();
    assert_eq!(all.len(), 120, "a start and an end of sixty connections");
    assert!(all.windows(2).all(|pair| pair[1] == pair[0] + 1), "{all:?}");
}

/// A program of this name and text, to be run in place of another.
fn script(folder: &Path, name: &str, text: &str) -> PathBuf {
    let path = folder.join(name);
    fs::write(&path, format!("#!/bin/sh\n{text}\n")).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
    path
}

#[test]
fn out_of_descriptors_it_refuses_the_surplus_keeps_the_rest_and_uses_freed_room_again() {
    let mut stage = Stage::without_sluice("").unwrap();
    let limited = format!("exec prlimit --nofile=400:400 {} \"$@\"", sluice_binary().unwrap().display());
    stage.options.binary = Some(script(stage.cluster.folder(), "few-files", &limited));
    stage.start_sluice().unwrap();
    assert_eq!(stage.sluice().metric("sluice_descriptors_limit").unwrap(), 400.0);
    let (client, server) = (stage.pod("client"), stage.pod("server"));
    let dialer = Dialer::new(client, server, server.at(ALLOWED), LIMIT).unwrap();
    let mut held = Vec::new();
    let surplus = loop {
        match dialer.pair() {
            Ok(pair) => held.push(pair),
            Err(error) => break error,
        }
        assert!(held.len() < 200, "the limit is met");
    };
    assert_eq!(surplus.kind(), ErrorKind::ConnectionRefused);
    let room = held.len();
    assert!(room >= 20, "{room} connections with 400 descriptors");
    for _ in 0..5 {
        assert_eq!(dialer.pair().unwrap_err().kind(), ErrorKind::ConnectionRefused);
    }
    let overload = |record: &&Value| cause(record) == "overload" && action(record) == "connection-failed";
    assert!(wait_until(LIMIT, || stage.sluice().records().unwrap().iter().filter(overload).count() == 6));
    assert_eq!(stage.sluice().metric("sluice_connections_failed_total{cause=\"overload\"}").unwrap(), 6.0);
    for (near, far) in &mut held {
        exchange(near, far);
    }
    held.drain(..10);
    assert!(wait_until(LIMIT, || {
        stage.sluice().metric("sluice_connections_live").unwrap() == (room - 10) as f64
    }));
    for _ in 0..10 {
        held.push(dialer.pair().unwrap());
    }
    for (near, far) in &mut held {
        exchange(near, far);
    }
    assert_eq!(dialer.pair().unwrap_err().kind(), ErrorKind::ConnectionRefused);
}

#[test]
fn load_rules_that_others_take_away_are_back_within_a_second_and_reported() {
    let stage = Stage::new("").unwrap();
    let _servers = servers(&stage);
    let node = stage.cluster.node("node1").unwrap();
    let (other, server) = (stage.pod("other"), stage.pod("server"));
    let by_iptables = parts(node)[3] > 0;
    let whole = traces(node);
    let mut deeds = vec![
        ("the table deleted", "nft delete table inet sluice"),
        ("the chain flushed", "nft flush chain inet sluice intercept"),
        ("an element deleted", "nft delete element inet sluice isolated4 { SERVER }"),
        ("the routing rule deleted", "ip rule delete priority 93"),
        ("the route deleted", "ip route delete local default dev lo table 1093"),
    ];
    if by_iptables {
        deeds.push(("the gate flushed", "iptables -t mangle -F SLUICE-GATE"));
        deeds.push(("the gate's jump deleted", "iptables -t mangle -F INPUT"));
    }
    for (what, command) in deeds {
        let repairs = stage.sluice().metric("sluice_ruleset_repairs_total").unwrap();
        let command = command.replace("SERVER", &server.address().to_string());
        let mut words = command.split(' ');
        let output = node.command(words.next().unwrap()).args(words).output().unwrap();
        assert!(output.status.success(), "{what}: {output:?}");
        let begin = Instant::now();
        let counted = || stage.sluice().metric("sluice_ruleset_repairs_total").unwrap() > repairs;
        assert!(wait_until(LIMIT, counted), "{what}:\n{}", stage.sluice().stderr());
        assert_eq!(visit(other, server.at(DENIED), LIMIT), Err(ErrorKind::ConnectionRefused), "{what}");
        let took = begin.elapsed();
        println!("{what}: enforced again after {took:?}");
        assert!(took < Duration::from_secs(1), "{what}: {took:?}");
        let mut now = String::new();
        let back = wait_until(LIMIT, || {
            now = traces(node);
            now == whole
        });
        assert!(back, "{what}:\n{now}\nnot\n{whole}\n{}", stage.sluice().stderr());
        assert_eq!(visit(other, server.at(ALLOWED), LIMIT), Ok(()), "{what}");
        assert_eq!(stage.sluice().get("/readyz").unwrap().0, 200, "{what}");
    }
    let log = stage.sluice().stderr();
    for named in
        ["table inet sluice missing", "table inet sluice changed", "set elements changed", "routing rule"]
    {
        assert!(log.contains(named), "{named}:\n{log}");
    }
}

#[test]
fn it_is_ready_only_while_everything_is_in_place() {
    let mut stage = Stage::without_sluice("").unwrap();
    let _servers = servers(&stage);
    let folder = stage.cluster.folder().to_owned();
    let (held, broken) = (folder.join("held"), folder.join("broken"));
    // In place of nft: one that can be held up, and made to fail.
    let text = format!(
        "while [ -e {} ]; do sleep 0.02; done\n[ -e {} ] && {{ echo no more >&2; exit 1; }}\nexec /usr/sbin/nft \"$@\"",
        held.display(),
        broken.display()
    );
    let programs = folder.join("programs");
    fs::create_dir(&programs).unwrap();
    script(&programs, "nft", &text);
    let path = format!("{}:{}", programs.display(), std::env::var("PATH").unwrap());
    stage.options.environment = vec![("PATH".into(), path.into())];
    fs::write(&held, "").unwrap();
    let node = stage.cluster.node("node1").unwrap();
    let mut sluice = node.start_sluice(&stage.options).unwrap();
    let ready = |sluice: &lab::Sluice| sluice.get("/readyz").ok();
    let first = wait_for(LIMIT, || ready(&sluice)).unwrap();
    assert!(first.0 == 503 && first.1.contains("rules"), "{first:?}");
    assert_eq!(sluice.get("/healthz").unwrap().0, 200);
    assert_eq!(sluice.get("/nothing").unwrap().0, 404);
    fs::remove_file(&held).unwrap();
    sluice.wait_ready(LIMIT).unwrap();

    fs::write(&broken, "").unwrap();
    let taken = node.command("nft").args(["delete", "table", "inet", "sluice"]).output().unwrap();
    assert!(taken.status.success(), "{taken:?}");
    let seen = wait_for(LIMIT, || ready(&sluice).filter(|(status, _)| *status == 503)).unwrap();
    assert!(seen.1.contains("rules") && seen.1.contains("no more"), "{seen:?}");
    assert_eq!(sluice.get("/healthz").unwrap().0, 200);
    fs::remove_file(&broken).unwrap();
    assert!(wait_until(LIMIT, || ready(&sluice).is_some_and(|(status, _)| status == 200)));
    let (other, server) = (stage.pod("other"), stage.pod("server"));
    assert_eq!(visit(other, server.at(DENIED), LIMIT), Err(ErrorKind::ConnectionRefused));

    // Every line of the metrics is a comment or a sample with a number.
    let metrics = sluice.metrics().unwrap();
    assert!(metrics.ends_with('\n'));
    for line in metrics.lines().filter(|line| !line.starts_with("# ")) {
        let (name, value) = line.rsplit_once(' ').unwrap_or_else(|| panic!("{line}"));
        let is_ours = name.starts_with("sluice_") || name.starts_with("process_");
        assert!(is_ours && value.parse::<f64>().is_ok(), "{line}");
    }
}

#[test]
fn cleanup_after_a_kill_leaves_the_node_as_it_was_before_the_start() {
    let mut stage = Stage::without_sluice("").unwrap();
    let _servers = servers(&stage);
    let before = traces(stage.cluster.node("node1").unwrap());
    stage.start_sluice().unwrap();
    let node = stage.cluster.node("node1").unwrap();
    assert_ne!(traces(node), before);
    stage.sluice_mut().kill9();
    let node = stage.cluster.node("node1").unwrap();
    let output = run_sluice(node, &["cleanup"]);
    assert_eq!(output.status.code(), Some(0), "{}", said(&output));
    assert!(said(&output).contains("table inet sluice"), "{}", said(&output));
    assert_eq!(traces(node), before);
    let (other, server) = (stage.pod("other"), stage.pod("server"));
    assert_eq!(visit(other, server.at(DENIED), LIMIT), Ok(()), "nothing is enforced any more");
    let again = run_sluice(node, &["cleanup"]);
    assert_eq!((again.status.code(), said(&again).trim()), (Some(0), "nothing to remove"));
}

#[test]
fn cleanup_beside_a_live_agent_is_refused_and_removes_nothing() {
    let stage = Stage::new("").unwrap();
    let node = stage.cluster.node("node1").unwrap();
    let before = traces(node);
    let output = run_sluice(node, &["cleanup"]);
    assert_eq!(output.status.code(), Some(2), "{}", said(&output));
    assert!(said(&output).contains("stop it first"), "{}", said(&output));
    assert!(output.stdout.is_empty(), "{}", said(&output));
    assert_eq!(traces(node), before);
    assert_eq!(stage.sluice().metric("sluice_ruleset_repairs_total").unwrap(), 0.0);
    // Told to, it does; and says that it was in vain.
    let output = run_sluice(node, &["cleanup", "--force"]);
    assert_eq!(output.status.code(), Some(2), "{}", said(&output));
    let said = said(&output);
    assert!(said.contains("removed nft table inet sluice") && said.contains("came back"), "{said}");
}

#[test]
fn what_keeps_it_from_starting_is_said_with_its_remedy_and_nothing_is_left_behind() {
    let stage = Stage::without_sluice("").unwrap();
    let node = stage.cluster.node("node1").unwrap();
    let before = traces(node);
    let folder = stage.cluster.folder();
    let manifests = stage.cluster.manifest_folder();
    let manifests = manifests.to_str().unwrap();
    let file = |name: &str, text: &str| {
        let path = folder.join(name);
        fs::write(&path, text).unwrap();
        path.to_str().unwrap().to_owned()
    };
    let broken = folder.join("broken");
    fs::create_dir(&broken).unwrap();
    let policy = "apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {name: p, namespace: n}\n";
    for (name, spec) in [
        ("one.yaml", "spec: {podSelector: {}, ingress: [{from: [{ipBlock: {cidr: 10.0.0.0/99}}]}]}\n"),
        ("two.yaml", "spec: {podSelector: {}, policyTypes: [Sideways]}\n"),
    ] {
        fs::write(broken.join(name), policy.to_owned() + spec).unwrap();
    }
    let unknown = file("unknown.yaml", "proxy: {max_pendign: 3}\n");
    let unusable = file("unusable.yaml", "proxy: {max_pending: 0, pipe_bytes: 1}\n");
    let base = ["run", "--node", "node1", "--manifests", manifests, "--records"];
    let run = |more: &[&str]| {
        let output = run_sluice(node, &[&base[..], more].concat());
        (output.status.code(), said(&output))
    };
    let check = |what: &str, (code, text): (Option<i32>, String), expected: &[&str]| {
        assert_eq!(code, Some(2), "{what}: {text}");
        for expected in expected {
            assert!(text.contains(expected), "{what}: no {expected:?} in:\n{text}");
        }
        assert_eq!(traces(node), before, "{what} left something behind");
    };

    let listener = node.listen_on(([127, 0, 0, 1], 15_093)).unwrap();
    check("listener port taken", run(&["-"]), &["127.0.0.1:15093", "in use", "redirect.listener_port"]);
    drop(listener);
    let admin = node.listen_on(([127, 0, 0, 1], 9_093)).unwrap();
    check(
        "admin port taken",
        run(&["-", "--admin", "127.0.0.1:9093"]),
        &["127.0.0.1:9093", "in use", "--admin"],
    );
    drop(admin);
    check(
        "records folder missing",
        run(&["/nowhere/at/all/records"]),
        &["/nowhere/at/all", "does not exist"],
    );
    check("unknown key", run(&["-", "--config", &unknown]), &["unknown.yaml:1", "max_pendign"]);
    check(
        "unusable values",
        run(&["-", "--config", &unusable]),
        &["proxy.max_pending: 0", "proxy.pipe_bytes: 1", "must be"],
    );
    check(
        "no configuration file",
        run(&["-", "--config", "/nowhere.yaml"]),
        &["/nowhere.yaml", "No such file"],
    );
    let only = |manifests: &str| {
        let output =
            run_sluice(node, &["run", "--node", "node1", "--records", "-", "--manifests", manifests]);
        (output.status.code(), said(&output))
    };
    check("manifests missing", only("/nowhere/manifests"), &["/nowhere/manifests", "No such file"]);
    check(
        "manifests broken",
        only(broken.to_str().unwrap()),
        &["one.yaml", "10.0.0.0/99", "spec.ingress[0].from[0].ipBlock.cidr", "two.yaml", "Sideways"],
    );
}

#[test]
fn without_root_it_says_so_and_leaves_nothing_behind() {
    let stage = Stage::without_sluice("").unwrap();
    let node = stage.cluster.node("node1").unwrap();
    let before = traces(node);
    // Readable by everybody, unlike the cluster's own folder.
    let folder = tempfile::tempdir().unwrap();
    fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o755)).unwrap();
    fs::write(folder.path().join("cluster.yaml"), stage.cluster.manifests()).unwrap();
    let binary = folder.path().join("sluice");
    fs::copy(sluice_binary().unwrap(), &binary).unwrap();
    for (command, code) in [("run", 2), ("cleanup", 2)] {
        let mut as_nobody = node.command("timeout");
        as_nobody.args(["10", "setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"]);
        as_nobody.arg(&binary).arg(command);
        if command == "run" {
            as_nobody.args(["--node", "node1", "--records", "-", "--manifests"]).arg(folder.path());
        }
        let output = as_nobody.output().unwrap();
        assert_eq!(output.status.code(), Some(code), "{command}: {}", said(&output));
        assert!(said(&output).contains("as root"), "{command}: {}", said(&output));
        assert_eq!(traces(node), before, "{command}");
    }
}

#[test]
fn a_second_sluice_is_refused_and_the_first_goes_on() {
    let stage = Stage::new("").unwrap();
    let _servers = servers(&stage);
    let node = stage.cluster.node("node1").unwrap();
    let before = traces(node);
    let manifests = stage.cluster.manifest_folder();
    let config = stage.cluster.folder().join("second.yaml");
    fs::write(&config, "redirect: {listener_port: 15094}\n").unwrap();
    let common = ["run", "--node", "node1", "--records", "-", "--manifests", manifests.to_str().unwrap()];
    for (what, more, expected) in [
        ("the same listener", vec![], vec!["another sluice"]),
        (
            "another listener",
            vec!["--config", config.to_str().unwrap()],
            vec!["NFQUEUE 1093", "another sluice"],
        ),
    ] {
        let output = run_sluice(node, &[&common[..], &more].concat());
        assert_eq!(output.status.code(), Some(2), "{what}: {}", said(&output));
        for expected in expected {
            assert!(said(&output).contains(expected), "{what}: {}", said(&output));
        }
        assert_eq!(traces(node), before, "{what}");
        let (other, server) = (stage.pod("other"), stage.pod("server"));
        assert_eq!(visit(other, server.at(ALLOWED), LIMIT), Ok(()), "{what}");
        assert_eq!(visit(other, server.at(DENIED), LIMIT), Err(ErrorKind::ConnectionRefused), "{what}");
    }
    assert_eq!(stage.sluice().get("/readyz").unwrap().0, 200);
    assert!(stage.settled());
    let asked = 2 * "HELLO\n".len() as u64;
    assert!(wait_until(LIMIT, || {
        let records = stage.sluice().records().unwrap();
        records.iter().filter(|record| is_final(record)).map(|record| bytes(record).0).sum::<u64>() == asked
    }));
}

#[test]
fn settings_of_the_node_under_which_nothing_can_be_carried_or_seen_are_told_and_end_readiness() {
    let stage = Stage::new("").unwrap();
    let node = stage.cluster.node("node1").unwrap();
    for (key, bad, good) in [
        ("net.ipv4.tcp_fwmark_accept", "1", "0"),
        ("net.ipv4.tcp_syncookies", "2", "1"),
        ("net.ipv4.conf.all.accept_source_route", "1", "0"),
        ("net.ipv6.conf.all.seg6_enabled", "1", "0"),
        ("net.ipv6.conf.all.rpl_seg_enabled", "1", "0"),
    ] {
        node.sysctl(key, bad).unwrap();
        let told =
            || stage.sluice().get("/readyz").is_ok_and(|(code, text)| code == 503 && text.contains(key));
        assert!(wait_until(LIMIT, told), "{key}: {:?}", stage.sluice().get("/readyz"));
        assert!(wait_until(LIMIT, || stage.sluice().stderr().contains(key)));
        node.sysctl(key, good).unwrap();
        assert!(
            wait_until(LIMIT, || stage.sluice().get("/readyz").is_ok_and(|(code, _)| code == 200)),
            "{key}"
        );
    }
}
