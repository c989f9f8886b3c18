//! Datagrams under adversity: a killed process, floods, damaged and fragmented packets, pods nobody knows; and
//! the protocols that have no sockets here.

#![expect(clippy::unwrap_used, reason = "a panic in a test is its failure report")]

use std::io::ErrorKind;
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4};
use std::time::{Duration, Instant};

use lab::{Family, Netns, SluiceOptions, ask, wait_for, wait_until};
use nix::libc;
use socket2::{Domain, Protocol, Socket, Type};
use suite::enforced::{Enforced, LIMIT, is_from, told};
use suite::flows::{ANSWER, END, POLICY, builder, counted, ended, enforced, refused, socket};
use suite::packets::echo;
use suite::sctp::{Beginner, Ear};

const QUEUE_FULL: &str = "sluice_gate_dropped_total{reason=\"queue-full\"}";
const MALFORMED: &str = "sluice_gate_dropped_total{reason=\"malformed\"}";

/// An IPv4 packet of this protocol with this transport part; the kernel fills in what a raw socket leaves out
/// (raw(7), `IPPROTO_RAW`).
fn packet(protocol: u8, from: Ipv4Addr, to: Ipv4Addr, fragment: u16, transport: &[u8]) -> Vec<u8> {
    let mut packet = vec![0x45, 0, 0, 0, 0, 7, 0, 0, 64, protocol, 0, 0];
    packet[6..8].copy_from_slice(&fragment.to_be_bytes());
    packet.extend_from_slice(&from.octets());
    packet.extend_from_slice(&to.octets());
    packet.extend_from_slice(transport);
    packet
}

/// A UDP header without a checksum, which IPv4 allows (RFC 768), and a payload.
fn udp(from: u16, to: u16, length: Option<u16>, payload: &[u8]) -> Vec<u8> {
    let whole = u16::try_from(8 + payload.len()).unwrap();
    let fields = [from, to, length.unwrap_or(whole), 0];
    let mut header: Vec<u8> = fields.iter().flat_map(|field| field.to_be_bytes()).collect();
    header.extend_from_slice(payload);
    header
}

struct Raw(Socket);

impl Raw {
    fn open(netns: &Netns) -> Self {
        Self(netns.socket(Domain::IPV4, Type::RAW, Some(Protocol::from(libc::IPPROTO_RAW))).unwrap())
    }

    fn send(&self, packet: &[u8], to: Ipv4Addr) {
        self.0.send_to(packet, &SocketAddrV4::new(to, 0).into()).unwrap();
    }
}

#[test]
fn damaged_datagrams_reach_no_isolated_pod_and_harm_nobody() {
    let cluster = enforced("");
    let (client, server) = (cluster.pod("shop/client"), cluster.pod("shop/server"));
    let (from, to) = (client.address(), server.address());
    let answering = server.serve_udp(8000).unwrap();
    let raw = Raw::open(client);
    let damaged: Vec<Vec<u8>> = vec![
        packet(17, from, to, 0, &[]),
        packet(17, from, to, 0, &[0x40, 0, 0x1f]),
        packet(17, from, to, 0, &udp(40_000, 8000, None, b"")[..7]),
        // Longer than the packet, and shorter than its own header.
        packet(17, from, to, 0, &udp(40_001, 8000, Some(500), b"short")),
        packet(17, from, to, 0, &udp(40_002, 8000, Some(3), b"long")),
        packet(132, from, to, 0, &[0x9c, 0x40, 0x1f]),
        packet(132, from, to, 0, &[0; 12]),
    ];
    for packet in &damaged {
        raw.send(packet, to);
    }
    // The last part of a datagram whose first never comes.
    raw.send(&packet(17, from, to, 40, b"a fragment that belongs to nothing"), to);
    // A flow among them is judged as ever, and one in fragments is one datagram.
    let (whole, local) = socket(client, server.at(8000));
    assert_eq!(ask(&whole, &[7; 20_000], ANSWER).unwrap(), local, "fourteen fragments");
    let record = ended(&cluster, "node1", local);
    assert_eq!(counted(&record)[..2], [Some(1), Some(20_000)]);
    assert_eq!(answering.received(), 1);
    assert!(cluster.metric("node1", MALFORMED) <= 8.0);
    assert!(cluster.sluice("node1").stderr().lines().all(|line| !line.contains("panicked")));
}

#[test]
fn after_a_kill_flows_go_on_are_taken_over_and_still_counted() {
    let mut cluster = enforced("");
    let (to_server, to_closed) = (cluster.pod("shop/server").at(8000), cluster.pod("shop/server").at(8001));
    let to_plain = cluster.pod("shop/plain").at(8002);
    for node in cluster.nodes() {
        node.sysctl("net.netfilter.nf_conntrack_udp_timeout", "60").unwrap();
        node.sysctl("net.netfilter.nf_conntrack_udp_timeout_stream", "60").unwrap();
    }
    let _servers = [
        cluster.pod("shop/server").serve_udp(8000).unwrap(),
        cluster.pod("shop/plain").serve_udp(8002).unwrap(),
    ];
    let (live, local) = socket(cluster.pod("shop/client"), to_server);
    assert_eq!(ask(&live, b"HELLO\n", ANSWER).unwrap(), local);
    cluster.kill("node1");
    assert_eq!(ask(&live, b"HELLO\n", ANSWER).unwrap(), local, "the kernel carries it without anybody");
    let (closed, _) = socket(cluster.pod("shop/client"), to_closed);
    assert_eq!(
        ask(&closed, b"HELLO\n", Duration::from_millis(300)).unwrap_err().kind(),
        ErrorKind::WouldBlock
    );
    let (open, unjudged) = socket(cluster.pod("shop/client"), to_plain);
    assert_eq!(ask(&open, b"HELLO\n", ANSWER).unwrap(), unjudged, "a pod that nobody isolates is open");

    // What the policy has come to forbid meanwhile is cut by the start.
    let (cut, cut_local) = socket(cluster.pod("shop/plain"), to_server);
    // The killed process' last records may have reached its file, or not.
    let records = Some(cluster.folder().join("again.records"));
    cluster.start_again("node1", &SluiceOptions { records, ..SluiceOptions::default() });
    assert_eq!(ask(&cut, b"HELLO\n", ANSWER).unwrap(), cut_local);
    for _ in 0..3 {
        assert_eq!(ask(&live, b"HELLO\n", ANSWER).unwrap(), local);
        assert_eq!(ask(&open, b"HELLO\n", ANSWER).unwrap(), unjudged);
    }
    for client in [local, unjudged] {
        cluster.sluice("node1").wait_record(|record| is_from(record, client), LIMIT).unwrap();
    }
    cluster.apply(
        "policy.yaml",
        &POLICY.replace("{podSelector: {}}", "{podSelector: {matchLabels: {app: plain}}}"),
    );
    let record = ended(&cluster, "node1", local);
    assert_eq!(told(&record), "connection-ended policy-revoked");
    assert_eq!(counted(&record)[0], Some(3), "what came before belongs to the process before");
    assert_eq!(refused(&live), ErrorKind::ConnectionRefused);
    assert_eq!(ask(&cut, b"HELLO\n", ANSWER).unwrap(), cut_local);

    // A stop records every flow, and leaves it.
    let records = cluster.stop("node1");
    let last = records.iter().rfind(|record| is_from(record, cut_local)).unwrap();
    assert_eq!(told(last), "connection-ended shutdown");
    assert_eq!(counted(last)[0], Some(2));
    assert_eq!(ask(&cut, b"HELLO\n", ANSWER).unwrap(), cut_local);
}

#[test]
fn a_flow_that_a_start_does_not_allow_has_one_record_that_says_so() {
    let mut cluster = enforced("");
    let (to_server, to_plain) = (cluster.pod("shop/server").at(8000), cluster.pod("shop/plain").at(8002));
    for node in cluster.nodes() {
        node.sysctl("net.netfilter.nf_conntrack_udp_timeout", "60").unwrap();
        node.sysctl("net.netfilter.nf_conntrack_udp_timeout_stream", "60").unwrap();
    }
    let _servers = [
        cluster.pod("shop/server").serve_udp(8000).unwrap(),
        cluster.pod("shop/plain").serve_udp(8002).unwrap(),
    ];
    let (kept, kept_local) = socket(cluster.pod("shop/plain"), to_server);
    let (cut, cut_local) = socket(cluster.pod("shop/client"), to_server);
    for (socket, local) in [(&kept, kept_local), (&cut, cut_local)] {
        assert_eq!(ask(socket, b"HELLO\n", ANSWER).unwrap(), local);
    }
    cluster.kill("node1");
    let (never, never_local) = socket(cluster.pod("shop/client"), to_plain);
    assert_eq!(ask(&never, b"HELLO\n", ANSWER).unwrap(), never_local, "a pod that nobody isolates is open");
    let policy = POLICY.replace("{podSelector: {}}", "{podSelector: {matchLabels: {app: plain}}}");
    cluster.write_policy("policy.yaml", &policy).unwrap();
    let nobody = "{apiVersion: networking.k8s.io/v1, kind: NetworkPolicy, metadata: {name: plain, namespace: shop}, \
                  spec: {podSelector: {matchLabels: {app: plain}}, policyTypes: [Ingress]}}";
    cluster.write_policy("plain.yaml", nobody).unwrap();
    // The killed process' last records may have reached its file, or not.
    let records = Some(cluster.folder().join("again.records"));
    cluster.start_again("node1", &SluiceOptions { records, ..SluiceOptions::default() });

    for (local, packets, reason) in
        [(cut_local, 0, "older than this process"), (never_local, 1, "came about without this process")]
    {
        let record = ended(&cluster, "node1", local);
        assert_eq!(cluster.records_of("node1", local).len(), 1, "it was never started here");
        assert_eq!(told(&record), "connection-ended policy-revoked");
        assert_eq!(counted(&record)[0], Some(packets), "{record:#}");
        assert!(record["event"]["reason"].as_str().unwrap().contains(reason), "{record:#}");
        assert_eq!(record["sluice"]["ingress"]["verdict"], "deny");
    }
    assert_eq!(refused(&cut), ErrorKind::ConnectionRefused);
    let [started] = &cluster.records_of("node1", kept_local)[..] else { panic!("it goes on") };
    assert_eq!(started["event"]["action"], "connection-started");
    assert!(started["event"]["reason"].as_str().unwrap().contains("older than this process"), "{started:#}");
    assert_eq!(ask(&kept, b"HELLO\n", ANSWER).unwrap(), kept_local);
}

#[test]
fn one_pod_cannot_take_the_flows_of_others() {
    let cluster = enforced("proxy: { max_flows: 100, max_flows_per_client: 20 }\n");
    let server = cluster.pod("shop/server");
    let _answering = server.serve_udp(8000).unwrap();
    for node in cluster.nodes() {
        node.sysctl("net.netfilter.nf_conntrack_udp_timeout", "60").unwrap();
    }
    let flows: Vec<_> = (0..40).map(|_| socket(cluster.pod("shop/client"), server.at(8000))).collect();
    // The kernel limits the errors that it sends to one address: most refusals are silent here.
    let patience = Duration::from_millis(300);
    let answered = |flow: &&(std::net::UdpSocket, SocketAddr)| {
        ask(&flow.0, b"HELLO\n", patience).is_ok_and(|seen| seen == flow.1)
    };
    assert_eq!(flows.iter().filter(answered).count(), 20);
    let record = ended(&cluster, "node1", flows[30].1);
    assert_eq!(told(&record), "connection-failed client-limit", "{record:#}");
    cluster.wait_metric("node1", "sluice_connections_failed_total{cause=\"client-limit\"}", 20.0);
    let (other, local) = socket(cluster.pod("shop/plain"), server.at(8000));
    assert_eq!(ask(&other, b"HELLO\n", ANSWER).unwrap(), local, "the others have theirs");
}

#[test]
fn load_a_flood_of_denied_flows_does_not_keep_another_pod_waiting() {
    let cluster = enforced("redirect: { syn_rate_per_client: 1000 }\n");
    let (client, server) = (cluster.pod("shop/client"), cluster.pod("shop/server"));
    let _answering = server.serve_udp(8000).unwrap();
    let stranger = cluster.pod("away/stranger");
    let flood = stranger.udp(([0, 0, 0, 0], 0)).unwrap();
    let end = Instant::now() + Duration::from_secs(8);
    let to = server.address();
    let sent = std::thread::spawn(move || {
        let mut sent = 0_u64;
        while Instant::now() < end {
            // Every datagram another flow.
            let port = 1 + u16::try_from(sent % 7_000).unwrap();
            sent += u64::from(flood.send_to(b"flood", (to, port)).is_ok());
        }
        sent
    });
    let (mut slowest, mut asked, mut lost) = (Duration::ZERO, 0, 0);
    while Instant::now() + ANSWER < end {
        let (socket, local) = socket(client, server.at(8000));
        let begin = Instant::now();
        match ask(&socket, b"HELLO\n", ANSWER) {
            Ok(seen) => assert_eq!(seen, local),
            // The kernel's own backlog loses datagrams in a flood, with and without anybody who judges them.
            Err(error) if error.kind() == ErrorKind::WouldBlock => {
                lost += 1;
                continue;
            }
            Err(error) => panic!("{error}"),
        }
        slowest = slowest.max(begin.elapsed());
        asked += 1;
    }
    let sent = sent.join().unwrap();
    eprintln!(
        "{sent} flows of a flood; {asked} questions answered, {lost} not; the slowest took {slowest:?}"
    );
    assert!(sent > 1_000 && asked > 20 * lost, "{sent} {asked} {lost}");
    assert!(slowest < Duration::from_secs(1), "{slowest:?}");
    assert_eq!(cluster.metric("node1", QUEUE_FULL), 0.0, "the queue has room for everybody");
}

#[test]
fn packets_of_an_accepted_flow_never_come_to_the_process() {
    let cluster = enforced("");
    let (client, server) = (cluster.pod("shop/client"), cluster.pod("shop/server"));
    let _answering = server.serve_udp(8000).unwrap();
    let (socket, local) = socket(client, server.at(8000));
    assert_eq!(ask(&socket, b"HELLO\n", ANSWER).unwrap(), local);
    let before = cluster.metric("node1", "sluice_gate_packets_total");
    for _ in 0..10_000 {
        let _ = socket.send(&[0; 100]);
    }
    assert_eq!(cluster.metric("node1", "sluice_gate_packets_total"), before);
    let record = ended(&cluster, "node1", local);
    assert_eq!(counted(&record)[..2], [Some(10_001), Some(1_000_006)]);
}

#[test]
fn sctp_is_judged_by_its_ports_and_refused_as_an_unreachable_protocol() {
    let policy = POLICY.replace("protocol: UDP, port: 53", "protocol: SCTP, port: 7000");
    let cluster = builder().build().unwrap();
    cluster.write_policy("policy.yaml", &policy).unwrap();
    let cluster = Enforced::on(cluster, &["node1"], "");
    let (client, server) = (cluster.pod("shop/client"), cluster.pod("shop/server"));
    let arrives = Ear::open(server, Family::V4).unwrap();
    let allowed = Beginner::open(client, client.at(40_000)).unwrap();
    allowed.begin(server.at(7_000)).unwrap();
    let record = cluster
        .sluice("node1")
        .wait_record(|record| record["network"]["transport"] == "sctp", LIMIT)
        .unwrap();
    assert_eq!(told(&record), "connection-started -");
    assert_eq!((&record["source"]["port"], &record["destination"]["port"]), (&40_000.into(), &7_000.into()));
    assert!(arrives.hears(client.at(40_000), 7_000, ANSWER), "the INIT arrives");

    let refused = Beginner::open(client, client.at(40_001)).unwrap();
    refused.begin(server.at(7_001)).unwrap();
    let denied = |record: &serde_json::Value| record["destination"]["port"] == 7_001;
    let record = cluster.sluice("node1").wait_record(denied, LIMIT).unwrap();
    assert_eq!(told(&record), "connection-denied policy-denied");
    assert_eq!(refused.error(ANSWER), Some((3, 2)), "protocol unreachable");
}

#[test]
fn echo_requests_pass_unless_the_switch_isolates_them() {
    for (config, to_isolated) in [("", true), ("redirect: { icmp: isolate }\n", false)] {
        let cluster = enforced(config);
        let (client, server) = (cluster.pod("shop/client"), cluster.pod("shop/server"));
        let node = cluster.node("node1").unwrap();
        assert!(echo(client, cluster.pod("shop/plain").address().into()), "{config}: nobody is isolated");
        assert_eq!(echo(client, server.address().into()), to_isolated, "{config}");
        assert_eq!(echo(server, client.address().into()), to_isolated, "{config}");
        assert!(echo(node, server.address().into()), "{config}: a probe of the own node");
        assert!(echo(server, node.address().into()), "{config}: the own node");
    }
}

#[test]
fn a_flow_to_a_pod_that_nobody_has_told_of_waits_until_somebody_does() {
    let cluster = enforced("");
    let (client, late) = (cluster.pod("shop/client"), cluster.pod("shop/plain"));
    let answering = late.serve_udp(8002).unwrap();
    let whole = cluster.manifests();
    let without: Vec<&str> = whole
        .split("---\n")
        .filter(|document| !(document.contains("kind: Pod\n") && document.contains("  name: plain\n")))
        .collect();
    cluster.apply("cluster.yaml", &without.join("---\n"));
    let (held, local) = socket(client, late.at(8002));
    held.send(b"HELLO\n").unwrap();
    held.send(b"HELLO\n").unwrap();
    cluster.wait_metric("node1", "sluice_gate_unknown_held", 1.0);
    assert_eq!(answering.received(), 0);
    cluster.apply("cluster.yaml", &whole);
    assert!(wait_until(LIMIT, || answering.received() == 2), "both, in one flow");
    let record = ended(&cluster, "node1", local);
    assert_eq!(counted(&record)[0], Some(2));

    // Never told of: refused at the limit, and recorded once.
    let unknown = SocketAddr::from(([10, 244, 1, 200], 8002));
    let (refused_, local) = socket(client, unknown);
    let begin = Instant::now();
    assert_eq!(ask(&refused_, b"HELLO\n", END).unwrap_err().kind(), ErrorKind::ConnectionRefused);
    assert!(begin.elapsed() > Duration::from_secs(4), "{:?}", begin.elapsed());
    let record = ended(&cluster, "node1", local);
    assert_eq!(record["sluice"]["egress"]["reason"], "unknown-local-pod", "{record:#}");
    let held_now = || (cluster.metric("node1", "sluice_gate_unknown_held") == 0.0).then_some(());
    wait_for(LIMIT, held_now).expect("nobody waits any more");
}
