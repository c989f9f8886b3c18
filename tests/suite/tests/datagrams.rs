//! UDP flows: what a client sees, what is recorded, and what a change of policy does to them.

#![expect(clippy::unwrap_used, reason = "a panic in a test is its failure report")]

use std::collections::BTreeSet;
use std::io::ErrorKind;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use lab::{SluiceOptions, UdpServer, ask, patiently, wait_until};
use serde_json::Value;
use suite::enforced::{Enforced, LIMIT, is_from, told};
use suite::flows::{ANSWER, END, POLICY, counted, ended, enforced, greeting, refused, socket};

const DENIED: &str = "sluice_connections_denied_total{side=\"ingress\"}";

#[test]
fn an_allowed_flow_is_answered_and_a_denied_one_refused_at_once() {
    let cluster = enforced("");
    let (client, server) = (cluster.pod("shop/client"), cluster.pod("shop/server"));
    let allowed = server.serve_udp(8000).unwrap();
    let closed = server.serve_udp(9000).unwrap();

    let (socket_, local) = socket(client, server.at(8000));
    assert_eq!(ask(&socket_, b"HELLO\n", ANSWER).unwrap(), local);
    assert_eq!(allowed.received(), 1);

    let (denied, from) = socket(client, server.at(9000));
    assert_eq!(refused(&denied), ErrorKind::ConnectionRefused);
    for _ in 0..20 {
        // An error that has arrived meanwhile is told in place of sending.
        let _ = denied.send(b"again");
    }
    let record = ended(&cluster, "node1", from);
    assert_eq!(told(&record), "connection-denied policy-denied");
    assert_eq!(record["network"]["transport"], "udp");
    assert_eq!(record["sluice"]["ingress"]["policies"], serde_json::json!(["NetworkPolicy/shop/server"]));
    assert_eq!(closed.received(), 0, "not one datagram of a denied flow arrives");
    cluster.wait_metric("node1", "sluice_gate_dropped_total{reason=\"duplicate\"}", 10.0);
    assert_eq!(cluster.records_of("node1", from).len(), 1, "a denied flow has one record");

    // An address of another namespace is denied on the port that is open to this one.
    let (stranger, _) = socket(cluster.pod("away/stranger"), server.at(8000));
    assert_eq!(refused(&stranger), ErrorKind::ConnectionRefused);
    assert_eq!(allowed.received(), 1);
}

#[test]
fn the_record_of_a_flow_counts_exactly_what_both_ends_sent() {
    let cluster = enforced("");
    let (client, server) = (cluster.pod("shop/client"), cluster.pod("shop/server"));
    let answering = server.serve_udp(8000).unwrap();
    let (socket, local) = socket(client, server.at(8000));
    let sizes = [1_usize, 512, 1_400, 9_000, 6];
    for size in sizes {
        assert_eq!(ask(&socket, &vec![b'.'; size], ANSWER).unwrap(), local);
    }
    let record = ended(&cluster, "node1", local);
    assert_eq!(told(&record), "connection-ended flow-timeout");
    let sent: usize = sizes.iter().sum();
    let expected = [5, sent as u64, 5, 5 * greeting(local)].map(Some);
    assert_eq!(counted(&record), expected, "{record:#}");
    let both = cluster.records_of("node1", local);
    assert_eq!(told(&both[0]), "connection-started -");
    assert_eq!(both[0]["event"]["id"], both[1]["event"]["id"]);
    assert_eq!(both.len(), 2);
    assert_eq!(answering.received(), 5);
    assert!(wait_until(LIMIT, || cluster.metric("node1", "sluice_connections_live") == 0.0));

    // A flow that nobody answers is one flow, too, and every datagram of it is counted.
    let silent = server.udp(([0, 0, 0, 0], 8001)).unwrap();
    let (one_way, from) = self::socket(client, server.at(8001));
    let before = cluster.metric("node1", "sluice_gate_packets_total");
    one_way.send(b"statistics").unwrap();
    cluster.wait_metric("node1", "sluice_connections_live", 1.0);
    for _ in 1..50 {
        one_way.send(b"statistics").unwrap();
    }
    let record = ended(&cluster, "node1", from);
    assert_eq!(counted(&record), [Some(50), Some(500), Some(0), Some(0)]);
    let judged = cluster.metric("node1", "sluice_gate_packets_total") - before;
    assert_eq!(judged, 1.0, "only the first of them came to the gate");
    drop(silent);

    // What is sent while the first is held is held with it, and arrives.
    let (burst, from) = self::socket(client, server.at(8000));
    for _ in 0..50 {
        burst.send(b"burst").unwrap();
    }
    assert_eq!(counted(&ended(&cluster, "node1", from))[..2], [Some(50), Some(250)]);
    assert_eq!(answering.received(), 55);
}

#[test]
fn every_way_a_datagram_can_go_is_judged_by_pods_and_pod_ports() {
    let cluster = enforced("");
    let client = cluster.pod("shop/client");
    let (near, far) = (cluster.pod("shop/server"), cluster.pod("shop/far"));
    let servers: Vec<UdpServer> = [near, far]
        .iter()
        .flat_map(|pod| [pod.serve_udp(53).unwrap(), pod.serve_udp(9999).unwrap()])
        .collect();

    // DNS through a ClusterIP, with both backends; the closed port is closed through it as well.
    let dns = cluster.cluster_ip("shop/dns", 53).unwrap();
    for _ in 0..6 {
        let (socket, local) = socket(client, dns);
        assert_eq!(ask(&socket, b"HELLO\n", ANSWER).unwrap(), local, "the server sees the client itself");
        let record = cluster.sluice("node1").wait_record(|record| is_from(record, local), LIMIT).unwrap();
        assert_eq!(record["destination"]["service"]["name"], "dns", "{record:#}");
        assert_eq!(record["destination"]["port"], 53);
    }
    let (denied, from) = socket(client, cluster.cluster_ip("shop/dns", 9999).unwrap());
    assert_eq!(
        refused(&denied),
        ErrorKind::ConnectionRefused,
        "the error is about the address that was dialled"
    );
    // The refusal is sent before its record is written.
    let is_told = |node: &&str| {
        let told_by = cluster.records_of(node, from);
        told_by.iter().any(|record| told(record) == "connection-denied policy-denied")
    };
    assert!(wait_until(LIMIT, || ["node1", "node2"].iter().any(is_told)));
    assert_eq!(
        servers.iter().filter(|server| server.address().port() == 9999).map(UdpServer::received).sum::<u64>(),
        0
    );

    // Across nodes each node judges its own pod, and both have a record of one flow.
    let (across, local) = socket(client, far.at(53));
    assert_eq!(ask(&across, b"HELLO\n", ANSWER).unwrap(), local);
    let (one, other) = (ended(&cluster, "node1", local), ended(&cluster, "node2", local));
    assert_eq!(one["network"]["community_id"], other["network"]["community_id"]);
    for record in [&one, &other] {
        assert_eq!(counted(record), [Some(1), Some(6), Some(1), Some(greeting(local))]);
    }
    let (denied, from) = socket(client, far.at(9999));
    assert_eq!(refused(&denied), ErrorKind::ConnectionRefused, "the other node's refusal comes through");
    assert_eq!(told(&ended(&cluster, "node2", from)), "connection-denied policy-denied");

    // A pod that a Service leads back to itself.
    let own = client.serve_udp(8001).unwrap();
    let (hairpin, local) = socket(client, cluster.cluster_ip("shop/own", 8001).unwrap());
    let seen = ask(&hairpin, b"HELLO\n", ANSWER).unwrap();
    assert_ne!(seen.ip(), local.ip(), "its kernel would drop its own address");
    let record = ended(&cluster, "node1", local);
    assert_eq!(record["sluice"]["hairpin"], true);
    assert_eq!(record["destination"]["service"]["name"], "own", "{record:#}");
    drop(own);
}

#[test]
fn flows_from_and_to_nodes_and_the_outside_are_judged_where_a_pod_is_concerned() {
    let cluster = enforced("");
    let (client, server, plain) =
        (cluster.pod("shop/client"), cluster.pod("shop/server"), cluster.pod("shop/plain"));
    let (node1, node2) = (cluster.node("node1").unwrap(), cluster.node("node2").unwrap());
    let _servers = [
        server.serve_udp(8000).unwrap(),
        plain.serve_udp(8002).unwrap(),
        cluster.external().serve_udp(53).unwrap(),
    ];

    // Out of the cluster, masqueraded.
    let (out, local) = socket(client, cluster.external().at(53));
    assert_eq!(ask(&out, b"HELLO\n", ANSWER).unwrap().ip(), IpAddr::from(node1.address()));
    assert_eq!(counted(&ended(&cluster, "node1", local))[..2], [Some(1), Some(6)]);

    // The pod's own node: its DNS listens on an address of its own.
    node1.ip("address add 169.254.20.10/32 dev lo scope host\n").unwrap();
    let _dns = node1.serve_udp_on(([169, 254, 20, 10], 53)).unwrap();
    let address = SocketAddr::from(([169, 254, 20, 10], 53));
    let is_known = || {
        let (local_dns, local) = socket(client, address);
        assert_eq!(ask(&local_dns, b"HELLO\n", ANSWER).unwrap(), local);
        let record = cluster.sluice("node1").wait_record(|record| is_from(record, local), LIMIT).unwrap();
        record["sluice"]["egress"]["verdict"] == "allow" && record["destination"]["k8s"]["node"] == "node1"
    };
    assert!(wait_until(LIMIT, is_known), "an address of the node's own is the node");

    // A probe of the own node always passes and is none of ours; another node is nobody special.
    let probe = node1.udp_to(server.at(8000)).unwrap();
    assert_eq!(ask(&probe, b"HELLO\n", ANSWER).unwrap(), probe.local_addr().unwrap());
    assert!(cluster.records_of("node1", probe.local_addr().unwrap()).is_empty());
    let other = node2.udp_to(server.at(8000)).unwrap();
    assert_eq!(refused(&other), ErrorKind::ConnectionRefused);

    // From the outside through a NodePort, to a pod that nobody isolates.
    let outside = cluster.external().udp_to(node1.at(30053)).unwrap();
    assert_eq!(ask(&outside, b"HELLO\n", ANSWER).unwrap().ip(), IpAddr::from(node1.address()));
    let record = ended(
        &cluster,
        "node1",
        SocketAddr::new(cluster.external().address().into(), outside.local_addr().unwrap().port()),
    );
    assert_eq!(record["destination"]["k8s"]["pod"], "plain");
    assert_eq!(record["destination"]["service"]["name"], "plain", "{record:#}");
}

#[test]
fn a_change_of_policy_ends_the_flows_it_no_longer_allows_and_no_others() {
    let cluster = enforced("");
    let (client, server, plain) =
        (cluster.pod("shop/client"), cluster.pod("shop/server"), cluster.pod("shop/plain"));
    let (to_server, to_plain) = (server.serve_udp(8000).unwrap(), plain.serve_udp(8002).unwrap());
    let (revoked, local) = socket(client, server.at(8000));
    let (kept, kept_local) = socket(client, plain.at(8002));
    for socket in [&revoked, &kept] {
        ask(socket, b"HELLO\n", ANSWER).unwrap();
        ask(socket, b"HELLO\n", ANSWER).unwrap();
    }
    cluster.apply("policy.yaml", &POLICY.replace("8000, endPort: 8999", "8500, endPort: 8999"));
    let record = ended(&cluster, "node1", local);
    assert_eq!(told(&record), "connection-ended policy-revoked");
    assert_eq!(counted(&record), [Some(2), Some(12), Some(2), Some(2 * greeting(local))]);
    assert_eq!(record["sluice"]["ingress"]["verdict"], "deny");
    assert_eq!(refused(&revoked), ErrorKind::ConnectionRefused);
    assert_eq!(to_server.received(), 2);
    ask(&kept, b"HELLO\n", ANSWER).unwrap();
    assert_eq!(to_plain.received(), 3);
    assert_eq!(cluster.records_of("node1", kept_local).len(), 1, "it goes on");
    cluster.wait_metric("node1", DENIED, 1.0);

    // Allowed again, the same socket begins a new flow.
    cluster.apply("policy.yaml", POLICY);
    assert!(wait_until(LIMIT, || ask(&revoked, b"HELLO\n", ANSWER).is_ok()));
}

/// A server that sends to everyone who ever spoke to it, a thousand times a second, and counts what it gets.
struct Stream {
    received: Arc<AtomicU64>,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Stream {
    fn start(socket: UdpSocket) -> Self {
        let (received, stop) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicBool::new(false)));
        let (counter, stopped) = (Arc::clone(&received), Arc::clone(&stop));
        socket.set_nonblocking(true).unwrap();
        let thread = std::thread::spawn(move || {
            let (mut listeners, end) = (BTreeSet::new(), Instant::now() + Duration::from_secs(120));
            while !stopped.load(Ordering::Relaxed) && Instant::now() < end {
                while let Ok((_, from)) = socket.recv_from(&mut [0; 16]) {
                    counter.fetch_add(1, Ordering::Relaxed);
                    listeners.insert(from);
                }
                for listener in &listeners {
                    let _ = socket.send_to(b"stream", listener);
                }
                // A slow machine has no time left for anything else otherwise: it is slow to send, and slow to refuse.
                std::thread::sleep(patiently(patiently(Duration::from_millis(1))));
            }
        });
        Self { received, stop, thread: Some(thread) }
    }

    fn received(&self) -> u64 {
        self.received.load(Ordering::Relaxed)
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.take().unwrap().join().unwrap();
    }
}

/// Everyone sends; how many of them hear the stream.
fn speak_and_hear(clients: &[UdpSocket]) -> usize {
    for client in clients {
        // An error that has arrived meanwhile is told in place of sending.
        let _ = client.send(b"more").or_else(|_| client.send(b"more"));
    }
    std::thread::sleep(Duration::from_millis(5));
    let hears = |client: &&UdpSocket| {
        let mut heard = false;
        for _ in 0..1_000 {
            match client.recv(&mut [0; 16]) {
                Ok(_) => heard = true,
                Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                Err(_) => {}
            }
        }
        heard
    };
    clients.iter().filter(hears).count()
}

#[test]
fn a_revoked_flow_does_not_go_on_turned_round_while_its_server_streams() {
    let mut cluster = enforced("");
    let stream = Stream::start(cluster.pod("shop/server").udp(([0, 0, 0, 0], 8001)).unwrap());
    let clients: Vec<UdpSocket> = (0..20)
        .map(|_| {
            let (client, _) = socket(cluster.pod("shop/client"), cluster.pod("shop/server").at(8001));
            client.set_nonblocking(true).unwrap();
            client
        })
        .collect();
    let all_hear = || wait_until(LIMIT, || speak_and_hear(&clients) == clients.len());
    let none_goes_on = |cluster: &Enforced| {
        for client in &clients {
            let address = client.local_addr().unwrap();
            let revoked = |record: &Value| {
                is_from(record, address) && told(record) == "connection-ended policy-revoked"
            };
            let told = wait_until(LIMIT, || {
                speak_and_hear(&clients);
                cluster.sluice("node1").records().unwrap().iter().any(revoked)
            });
            assert!(told, "{address}");
        }
        speak_and_hear(&clients);
        let before = stream.received();
        let heard: usize = (0..200).map(|_| speak_and_hear(&clients)).sum();
        assert_eq!((stream.received() - before, heard), (0, 0), "nothing passes, whoever speaks first");
    };
    let denied = POLICY.replace("8000, endPort: 8999", "8500, endPort: 8999");

    assert!(all_hear());
    cluster.apply("policy.yaml", &denied);
    none_goes_on(&cluster);
    cluster.apply("policy.yaml", POLICY);
    assert!(all_hear(), "allowed again");

    // Written by then: a line that the kill cuts in half is another test's.
    cluster.records("node1");
    cluster.kill("node1");
    cluster.write_policy("policy.yaml", &denied).unwrap();
    cluster.start_again("node1", &SluiceOptions::default());
    none_goes_on(&cluster);
}

/// As QUIC speaks: packets of one size in bursts, pauses that are shorter than conntrack's limit, and a path whose
/// size is found by errors.
#[test]
fn a_long_flow_stays_one_flow_through_pauses_policies_and_a_smaller_path() {
    const SIZE: usize = 1_200;
    let cluster = enforced("records: { update_every_s: 1 }\n");
    let (client, far) = (cluster.pod("shop/client"), cluster.pod("shop/far"));
    let server = far.serve_udp(8000).unwrap();
    let (socket, local) = socket(client, far.at(8000));
    for node in cluster.nodes() {
        node.sysctl("net.netfilter.nf_conntrack_udp_timeout_stream", "5").unwrap();
    }
    let judged = |node: &str| cluster.metric(node, "sluice_gate_packets_total");
    assert_eq!(ask(&socket, &[b'Q'; SIZE], ANSWER).unwrap(), local);
    let before = [judged("node1"), judged("node2")];
    let end = Instant::now() + Duration::from_secs(6);
    let mut packets = 1;
    while Instant::now() < end {
        for _ in 0..20 {
            assert_eq!(ask(&socket, &[b'Q'; SIZE], ANSWER).unwrap(), local);
            packets += 1;
        }
        // Shorter than the limit, and with a policy's change in it that concerns nobody here.
        let other = if packets % 40 == 1 { "9000" } else { "9001" };
        cluster.apply("policy.yaml", &POLICY.replace("port: 53}", &format!("port: {other}}}")));
        std::thread::sleep(Duration::from_millis(400));
    }
    assert_eq!([judged("node1"), judged("node2")], before, "only the first came to the gate");
    // The node tells of a path that has become too small, and the client's kernel believes it: udp(7), IP_MTU_DISCOVER.
    let to = cluster.node("node2").unwrap();
    let way = format!("route replace {} via {} mtu lock 1000\n", to.pod_cidr(), to.address());
    cluster.node("node1").unwrap().ip(&way).unwrap();
    let once = Duration::from_millis(200);
    assert!(wait_until(LIMIT, || ask(&socket, &[b'Q'; SIZE], once).is_ok_and(|seen| seen == local)));
    let is_last = |record: &Value| is_from(record, local) && told(record) == "connection-ended flow-timeout";
    cluster.sluice("node1").wait_record(is_last, END).unwrap();
    let mut records = cluster.sluice("node1").records().unwrap();
    records.retain(|record| is_from(record, local));
    let mut told_of: Vec<String> = records.iter().map(told).collect();
    told_of.dedup();
    let once = ["connection-started -", "connection-updated -", "connection-ended flow-timeout"];
    assert_eq!(told_of, once, "one flow");
    assert!(server.received() > packets);
}

#[test]
fn with_deny_action_drop_a_denied_flow_meets_silence() {
    let cluster = enforced("proxy: { deny_action: drop }\n");
    let (client, server) = (cluster.pod("shop/client"), cluster.pod("shop/server"));
    let closed = server.serve_udp(9000).unwrap();
    let (denied, from) = socket(client, server.at(9000));
    assert_eq!(
        ask(&denied, b"HELLO\n", Duration::from_millis(500)).unwrap_err().kind(),
        ErrorKind::WouldBlock
    );
    assert_eq!(told(&ended(&cluster, "node1", from)), "connection-denied policy-denied");
    assert_eq!(closed.received(), 0);
}
