//! Datagrams that follow the first of their flow while it is held: as QUIC's hello in two parts and a resolver's two
//! questions from one socket do. All of them are one flow, with one record.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking, in its helpers too")]

use std::net::{IpAddr, SocketAddr, UdpSocket};

use lab::{Cluster, Family, PodSpec, ServiceSpec, Transport, UdpServer, hear, wait_until};
use suite::enforced::{Enforced, LIMIT, told};
use suite::flows::{ANSWER, counted, ended, forget_after, greeting};

const NODE: &str = "node1";
/// Longer than the test waits for the pods to be told of.
const PATIENT: &str = "proxy: { unknown_pod_timeout_ms: 30000 }\n";
/// How many datagrams each client sends before anybody knows of it.
const HELD: usize = 5;

/// Whom the server may take the client for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Seen {
    /// For itself, by address and port.
    Itself,
    /// For its address, behind whichever ports.
    ItsAddress,
    /// For its node.
    ItsNode,
}

struct Way {
    client: &'static str,
    to: SocketAddr,
    server: UdpServer,
    seen: Seen,
}

fn cluster() -> Cluster {
    let clients = ["to-pod", "to-pod-6", "to-service", "to-node", "to-outside"];
    let builder = Cluster::builder()
        .dual_stack()
        .pod(PodSpec::new("default/server").on(NODE).label("app", "server"))
        .pod(PodSpec::new("default/behind").on(NODE).label("app", "behind"))
        .service(ServiceSpec::new("default/behind").selector("app", "behind").port_of(
            Transport::Udp,
            "echo",
            53,
            8000,
        ));
    let builder = clients
        .iter()
        .fold(builder, |builder, name| builder.pod(PodSpec::new(&format!("default/{name}")).on(NODE)));
    let cluster = builder.build().unwrap();
    let known: Vec<String> = cluster
        .manifests()
        .split("---\n")
        .filter(|document| !clients.iter().any(|name| document.contains(&format!("  name: {name}\n"))))
        .map(str::to_owned)
        .collect();
    cluster.write_policy("cluster.yaml", &known.join("---\n")).unwrap();
    forget_after(cluster.node(NODE).unwrap(), [2, 3]);
    cluster
}

fn what_is_held_together_is_one_flow(config: &str, by_pods: Seen) {
    let cluster = cluster();
    let server = cluster.pod("default/server").unwrap();
    let node = cluster.node(NODE).unwrap();
    let outside = cluster.external();
    let any = |port| SocketAddr::from(([0, 0, 0, 0], port));
    let ways = [
        Way {
            client: "default/to-pod",
            to: server.at(8000),
            server: server.serve_udp_on(any(8000)).unwrap(),
            seen: by_pods,
        },
        Way {
            client: "default/to-pod-6",
            to: server.at_in(Family::V6, 8006),
            server: server.serve_udp_on(([0_u16; 8], 8006)).unwrap(),
            seen: by_pods,
        },
        Way {
            client: "default/to-service",
            to: cluster.cluster_ip("default/behind", 53).unwrap(),
            server: cluster.pod("default/behind").unwrap().serve_udp_on(any(8000)).unwrap(),
            seen: by_pods,
        },
        Way {
            client: "default/to-node",
            to: node.at(8000),
            server: node.serve_udp_on(any(8000)).unwrap(),
            seen: by_pods,
        },
        Way {
            client: "default/to-outside",
            to: outside.at(8000),
            server: outside.serve_udp_on(any(8000)).unwrap(),
            seen: Seen::ItsNode,
        },
    ];
    let node_address = IpAddr::from(node.address());
    let cluster = Enforced::on(cluster, &[NODE], &format!("{PATIENT}{config}"));
    let sockets: Vec<UdpSocket> =
        ways.iter().map(|way| cluster.pod(way.client).udp_to(way.to).unwrap()).collect();
    for socket in &sockets {
        for length in 1..=HELD {
            socket.send(&vec![b'.'; length]).unwrap();
        }
    }
    cluster.wait_metric(NODE, "sluice_gate_unknown_held", (HELD * ways.len()) as f64);
    assert!(ways.iter().all(|way| way.server.received() == 0), "nobody knows of the clients");
    cluster.apply("cluster.yaml", &cluster.manifests());

    for (way, socket) in ways.iter().zip(&sockets) {
        let name = way.client;
        let arrived = wait_until(LIMIT, || way.server.received() == HELD as u64);
        assert!(arrived, "{name}: {} arrived", way.server.received());
        let local = socket.local_addr().unwrap();
        let is_meant = |peer: &SocketAddr| match way.seen {
            Seen::Itself => *peer == local,
            Seen::ItsAddress => peer.ip() == local.ip(),
            Seen::ItsNode => peer.ip() == node_address,
        };
        let peers = way.server.peers();
        assert!(peers.iter().all(is_meant), "{name}: {local} was taken for {peers:?}");
        let mut answered: Vec<SocketAddr> = (0..HELD).map_while(|_| hear(socket, ANSWER).ok()).collect();
        answered.sort();
        let mut peers_answered = peers.clone();
        peers_answered.sort();
        assert_eq!(answered, peers_answered, "{name}: every answer arrives");

        let record = ended(&cluster, NODE, local);
        assert_eq!(told(&record), "connection-ended flow-timeout", "{name}");
        let sent = (1..=HELD as u64).sum();
        let back = peers.iter().map(|peer| greeting(*peer)).sum();
        assert_eq!(counted(&record), [HELD as u64, sent, HELD as u64, back].map(Some), "{name}: {record:#}");
        let all = cluster.records_of(NODE, local);
        assert_eq!(
            all.iter().map(told).collect::<Vec<_>>(),
            ["connection-started -", "connection-ended flow-timeout"],
            "{name}"
        );
    }
}

#[test]
fn what_is_held_together_is_one_flow_and_keeps_its_port() {
    what_is_held_together_is_one_flow("", Seen::Itself);
}

#[test]
fn what_is_held_together_is_one_flow_with_rules_of_iptables() {
    what_is_held_together_is_one_flow("redirect: { backend: iptables-nft }\n", Seen::ItsAddress);
}
