//! A cluster for datagrams: UDP Services, policies by UDP port, and conntrack that gives up soon.

use std::io::ErrorKind;
use std::net::{SocketAddr, UdpSocket};
use std::time::Duration;

use lab::{Cluster, ClusterBuilder, Netns, Pod, PodSpec, ServiceSpec, Transport, ask, patiently};
use serde_json::Value;

use crate::enforced::{Enforced, is_from};

/// For an end that conntrack's limit and the next look at its table bring about.
pub const END: Duration = Duration::from_secs(20);
/// For the answer of a server, and for silence.
pub const ANSWER: Duration = Duration::from_secs(2);

/// `server` is isolated: pods of its namespace reach UDP ports 8000 to 8999 and 53, nobody anything else.
pub const POLICY: &str = "\
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: server, namespace: shop}
spec:
  podSelector: {matchLabels: {app: server}}
  policyTypes: [Ingress]
  ingress:
  - from: [{podSelector: {}}]
    ports: [{protocol: UDP, port: 8000, endPort: 8999}, {protocol: UDP, port: 53}]
";

/// Two nodes; `server` and `far` are isolated, `client` and `plain` are not, `stranger` is of another namespace.
pub fn builder() -> ClusterBuilder {
    Cluster::builder()
        .nodes(2)
        .pod(PodSpec::new("shop/client").on("node1").label("app", "client"))
        .pod(PodSpec::new("shop/server").on("node1").label("app", "server"))
        .pod(PodSpec::new("shop/far").on("node2").label("app", "server"))
        .pod(PodSpec::new("shop/plain").on("node1").label("app", "plain"))
        .pod(PodSpec::new("away/stranger").on("node1"))
        .service(
            ServiceSpec::new("shop/dns")
                .selector("app", "server")
                .port_of(Transport::Udp, "dns", 53, 53)
                .port_of(Transport::Udp, "closed", 9999, 9999),
        )
        .service(ServiceSpec::new("shop/own").selector("app", "client").port_of(
            Transport::Udp,
            "echo",
            8001,
            8001,
        ))
        .service(
            ServiceSpec::new("shop/plain")
                .selector("app", "plain")
                .port_of(Transport::Udp, "echo", 8002, 8002)
                .node_port(30053),
        )
}

/// The cluster with Sluice on both nodes; conntrack gives flows up after a second or two.
pub fn enforced(config: &str) -> Enforced {
    let cluster = builder().build().expect("a working lab");
    cluster.write_policy("policy.yaml", POLICY).expect("a working lab");
    for node in cluster.nodes() {
        forget_after(node, [1, 2]);
    }
    Enforced::on(cluster, &["node1", "node2"], config)
}

/// Makes conntrack give up a flow that nobody has answered, and one that somebody has, after so many seconds; later where
/// the machine is slow.
pub fn forget_after(node: &Netns, seconds: [u64; 2]) {
    for (timeout, limit) in ["udp_timeout", "udp_timeout_stream"].iter().zip(seconds) {
        let limit = patiently(Duration::from_secs(limit)).as_secs();
        node.sysctl(&format!("net.netfilter.nf_conntrack_{timeout}"), &limit.to_string())
            .expect("a working lab");
    }
}

/// A socket of the pod's that is connected to `to`, and its own address.
pub fn socket(pod: &Pod, to: SocketAddr) -> (UdpSocket, SocketAddr) {
    let socket = pod.udp_to(to).expect("a working lab");
    let local = socket.local_addr().expect("a working lab");
    (socket, local)
}

/// What a connected socket says of a refused datagram.
pub fn refused(socket: &UdpSocket) -> ErrorKind {
    ask(socket, b"HELLO\n", ANSWER).expect_err("no answer").kind()
}

/// Waits for the record of this client's flow that says how it ended; there is only one.
pub fn ended(cluster: &Enforced, node: &str, client: SocketAddr) -> Value {
    let is_last = |record: &Value| {
        is_from(record, client)
            && !["connection-started", "connection-updated"]
                .contains(&record["event"]["action"].as_str().unwrap_or_default())
    };
    cluster.sluice(node).wait_record(is_last, END).expect("a working lab");
    let mut last = cluster.records_of(node, client);
    last.retain(is_last);
    assert_eq!(last.len(), 1, "{last:#?}");
    last.remove(0)
}

/// Packets and bytes of the source, then of the destination.
pub fn counted(record: &Value) -> [Option<u64>; 4] {
    let of = |side: &str, what: &str| record[side][what].as_u64();
    [of("source", "packets"), of("source", "bytes"), of("destination", "packets"), of("destination", "bytes")]
}

/// How long a server's answer to this client is.
pub fn greeting(peer: SocketAddr) -> u64 {
    format!("{}{peer}\n", lab::GREETING).len() as u64
}
