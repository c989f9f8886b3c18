//! Rules of iptables in place of nft's: what the kernel carries, what a dead process leaves, and the change from one
//! backend to another. That every other row holds with them is in `shapes.rs`.

#![expect(clippy::unwrap_used, reason = "a panic in a test is its failure report")]

use std::io::{ErrorKind, Write};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use lab::{
    Backend, Cluster, Families, Netns, PodSpec, ServiceSpec, greeting_peer, sluice_binary, wait_until,
};
use serde_json::Value;
use suite::carried::{Carried, accept};
use suite::enforced::{Enforced, LIMIT, told};
use suite::stage::{ALLOWED, DENIED, Stage};

const BACKENDS: [Backend; 2] = [Backend::IptablesNft, Backend::IptablesLegacy];
/// Long enough for a SYN and its first copy, after a second.
const NO_ANSWER: Duration = Duration::from_millis(1_300);

/// `server` is isolated, and open to these ranges.
fn policy(ranges: &[String]) -> String {
    let peers: Vec<String> = ranges.iter().map(|range| format!("{{ipBlock: {{cidr: {range}}}}}")).collect();
    format!(
        "apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {{name: server, namespace: default}}\n\
         spec:\n  podSelector: {{matchLabels: {{app: server}}}}\n  policyTypes: [Ingress]\n  ingress: [{}]\n",
        if peers.is_empty() { String::new() } else { format!("{{from: [{}]}}", peers.join(", ")) }
    )
}

/// Writes until the kernel answers with a reset.
fn is_reset_when_it_sends(stream: &mut std::net::TcpStream) -> bool {
    wait_until(LIMIT, || matches!(stream.write(b"x"), Err(error) if error.kind() != ErrorKind::WouldBlock))
}

#[test]
fn node_ports_of_pods_are_judged_behind_translation_recorded_and_revoked() {
    for backend in BACKENDS {
        let builder = Cluster::builder()
            .families(Families::Dual)
            .pod(PodSpec::new("server").label("app", "server"))
            .service(
                ServiceSpec::new("server").selector("app", "server").port("http", 80, 8000).node_port(30080),
            );
        let cluster = Enforced::start(builder, &[("policy.yaml", &policy(&[]))], &backend.config());
        let (server, node, external) =
            (cluster.pod("server"), cluster.node("node1").unwrap(), cluster.external());
        for family in Families::Dual.each() {
            let (from, to) = (external.address_in(*family), node.at_in(*family, 30080));
            let length = if from.is_ipv4() { 32 } else { 128 };
            let listener = server.listen_in(*family, 8000).unwrap();
            let refused = external.bound((from, 0)).unwrap();
            let local = refused.local_addr().unwrap().as_socket().unwrap();
            let error = refused.connect_timeout(&to.into(), LIMIT).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::ConnectionRefused, "{backend} {to}");
            let record = cluster.last_record("node1", local);
            assert_eq!(told(&record), "connection-denied policy-denied");
            assert_eq!(record["network"]["transport"], "tcp");
            assert_eq!(record["destination"]["ip"], server.address_in(*family).to_string(), "{record}");
            assert!(accept(&listener, Duration::ZERO).is_none(), "the server hears nothing");

            cluster.apply("policy.yaml", &policy(&[format!("{from}/{length}")]));
            let mut carried = Carried::open(external, &listener, to);
            assert_eq!(carried.peer.ip(), node.address_in(*family), "masqueraded, as kube-proxy says");
            carried.exchange(1_000, 70_000).unwrap();
            let local = carried.local;
            carried.close();
            let record = cluster.last_record("node1", local);
            assert_eq!(told(&record), "connection-ended flow-timeout", "{record}");
            assert_eq!(record["destination"]["port"], 8000);
            for (side, sent) in [("source", 1_000), ("destination", 70_000)] {
                assert!(record[side]["bytes"].as_u64().unwrap() >= sent, "{record}");
            }

            let mut kept = Carried::open(external, &listener, to);
            assert!(kept.is_alive());
            cluster.apply("policy.yaml", &policy(&[]));
            assert!(is_reset_when_it_sends(&mut kept.client), "{backend} {to}");
            assert!(is_reset_when_it_sends(&mut kept.server), "{backend} {to}");
            let record = cluster.last_record("node1", kept.local);
            assert_eq!(told(&record), "connection-ended policy-revoked", "{record}");
        }
    }
}

/// Connects from `client` and asks who it is.
fn visit(client: &Netns, to: std::net::SocketAddr) -> Result<(), ErrorKind> {
    let mut stream = client.connect(to, NO_ANSWER).map_err(|error| error.kind())?;
    let local = stream.local_addr().unwrap();
    let seen = greeting_peer(&mut stream, NO_ANSWER).map_err(|error| error.kind())?;
    assert_eq!(seen, local, "the server sees the client's own address");
    Ok(())
}

#[test]
fn a_killed_process_leaves_isolated_pods_closed_and_others_open() {
    for backend in BACKENDS {
        let mut stage = Stage::new(&backend.config()).unwrap();
        let (server, plain) = (stage.pod("server").at(ALLOWED), stage.pod("plain").at(80));
        let _servers = [stage.pod("server").serve(ALLOWED).unwrap(), stage.pod("plain").serve(80).unwrap()];
        for to in [server, plain] {
            visit(stage.pod("client"), to).unwrap();
        }
        stage.sluice_mut().kill9();
        assert_eq!(visit(stage.pod("client"), server), Err(ErrorKind::TimedOut), "{backend}");
        assert_eq!(visit(stage.pod("client"), plain), Ok(()), "{backend}");
        stage.start_sluice().unwrap();
        for to in [server, plain] {
            assert_eq!(visit(stage.pod("client"), to), Ok(()), "{backend}");
        }
        let is_plain = |record: &Value| record["destination"]["port"] == 80 && told(record).contains("ended");
        stage.sluice().wait_record(is_plain, LIMIT).unwrap();
    }
}

#[test]
fn another_backend_at_a_restart_leaves_no_moment_in_which_an_isolated_pod_is_open() {
    let mut stage = Stage::new(&Backend::Auto.config()).unwrap();
    let (allowed, denied) = (stage.pod("server").at(ALLOWED), stage.pod("server").at(DENIED));
    let _servers = [ALLOWED, DENIED].map(|port| stage.pod("server").serve(port).unwrap());
    let client = Netns::open(stage.pod("other").netns().name()).unwrap();
    let done = AtomicBool::new(false);
    thread::scope(|scope| {
        let trying = scope.spawn(|| {
            let (mut tries, mut reached) = (0, 0);
            while !done.load(Ordering::Relaxed) {
                tries += 1;
                reached += usize::from(client.connect(denied, Duration::from_millis(50)).is_ok());
            }
            (tries, reached)
        });
        use Backend::{Auto, IptablesLegacy, IptablesNft};
        for backend in [IptablesNft, Auto, IptablesLegacy, IptablesNft, IptablesLegacy, Auto, IptablesNft] {
            stage.sluice_mut().kill9();
            stage.options.config = backend.config();
            stage.start_sluice().unwrap();
            assert_eq!(visit(stage.pod("client"), allowed), Ok(()), "{backend}");
        }
        done.store(true, Ordering::Relaxed);
        let (tries, reached) = trying.join().unwrap();
        assert!(tries > 20 && reached == 0, "{reached} of {tries}");
    });
    stage.sluice_mut().kill9();
    let node = stage.cluster.node("node1").unwrap();
    let cleanup = node.command(sluice_binary().unwrap()).arg("cleanup").output().unwrap();
    assert!(cleanup.status.success(), "{cleanup:?}");
    for command in
        ["iptables-nft-save", "iptables-legacy-save", "ip6tables-nft-save", "ip6tables-legacy-save"]
    {
        let text = String::from_utf8(node.command(command).output().unwrap().stdout).unwrap();
        assert!(!text.contains("SLUICE"), "{text}");
    }
    let sets = node.command("ipset").arg("save").output().unwrap();
    assert!(sets.stdout.is_empty(), "{sets:?}");
}
