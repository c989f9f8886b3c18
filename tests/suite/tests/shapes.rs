//! What must be so on every shape of cluster: one more value of `Topology`, `Families` or `Backend` is one more cell.

#![expect(clippy::unwrap_used, reason = "a panic in a test is its failure report")]

use std::io::ErrorKind;
use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::{AtomicU16, Ordering};
use std::time::{Duration, Instant};

use lab::{
    Backend, Cluster, ClusterBuilder, Families, Family, KubeProxy, Netns, Pod, PodSpec, ServiceSpec,
    Topology, Transport, UdpServer, ask, patiently, wait_until,
};
use serde_json::Value;
use suite::carried::{Carried, accept};
use suite::cells::{self, Row, Shape};
use suite::enforced::{Enforced, LIMIT, is_from, told};
use suite::flows::ANSWER;
use suite::packets::{SynCount, echo};
use suite::sctp::{self, Beginner, Ear};

/// What takes longer was sent twice: the first retransmission of a SYN comes after a second.
const ONE_STALL: Duration = Duration::from_millis(900);

/// `near` and `far` are isolated: pods with `role: client` reach them by TCP, UDP and SCTP on ports 8000 to 8999.
const POLICY: &str = "\
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: server, namespace: shop}
spec:
  podSelector: {matchLabels: {app: server}}
  policyTypes: [Ingress]
  ingress:
  - from: [{podSelector: {matchLabels: {role: client}}}]
    ports: [{protocol: TCP, port: 8000, endPort: 8999}, {protocol: UDP, port: 8000, endPort: 8999}, {protocol: SCTP, port: 8000, endPort: 8999}]
";

fn builder(shape: Shape) -> ClusterBuilder {
    let service = |name: &str| ServiceSpec::new(&format!("shop/{name}")).selector("name", name);
    let served = |name: &str| {
        service(name).port("http", 80, 8000).port_of(Transport::Udp, "udp", 53, 8000).port_of(
            Transport::Sctp,
            "sctp",
            38412,
            8000,
        )
    };
    let pod = |name: &str, node: &str| PodSpec::new(&format!("shop/{name}")).on(node).label("name", name);
    // Beside rules of iptables' nf_tables variant, kube-proxy has its own there too, in the same tables.
    let kube_proxy = match shape.backend {
        Backend::IptablesNft => KubeProxy::Iptables,
        Backend::Auto | Backend::IptablesLegacy => KubeProxy::Nftables,
    };
    let local = |name: &str, port| {
        let spec = ServiceSpec::new(&format!("shop/{name}-local")).selector("name", name);
        spec.port("http", 80, 8000).node_port(port).local_traffic()
    };
    Cluster::builder()
        .nodes(2)
        .topology(shape.topology)
        .families(shape.families)
        .kube_proxy(kube_proxy)
        .pod(pod("client", "node1").label("role", "client"))
        .pod(pod("stranger", "node1"))
        .pod(pod("near", "node1").label("app", "server"))
        .pod(pod("far", "node2").label("app", "server").host_port(8082, 8000))
        .pod(pod("plain", "node1").host_port(8080, 8000))
        .service(served("near"))
        .service(served("far").port("denied", 82, 8000).node_port(30082))
        .service(
            service("plain")
                .port("http", 80, 8000)
                .node_port(30080)
                .port_of(Transport::Udp, "udp", 53, 8000)
                .node_port(30053),
        )
        .service(local("plain", 30081))
        .service(local("far", 30083))
}

/// A cluster of one shape, with Sluice on both nodes.
struct Scene {
    cluster: Enforced,
    shape: Shape,
}

impl Scene {
    fn new(shape: Shape) -> Self {
        // The one switch of the datapath that is off by default and adds rules of its own is on.
        let config = format!("redirect: {{backend: {}, icmp: isolate}}\n", shape.backend);
        Self { cluster: Enforced::start(builder(shape), &[("policy.yaml", POLICY)], &config), shape }
    }

    /// Does the same in every family of the cluster.
    fn in_each(&self, check: impl Fn(&Enforced, Family)) {
        self.shape.families.each().iter().for_each(|family| check(&self.cluster, *family));
    }
}

const ROWS: [Row<Scene>; 22] = [
    everywhere("allowed, on one node", |scene| scene.in_each(|c, f| allowed(c, f, "shop/near"))),
    everywhere("allowed, across nodes", |scene| scene.in_each(|c, f| allowed(c, f, "shop/far"))),
    everywhere("denied in connect(), on one node", |scene| scene.in_each(|c, f| denied(c, f, "shop/near"))),
    everywhere("denied in connect(), across nodes", |scene| scene.in_each(|c, f| denied(c, f, "shop/far"))),
    everywhere("closed ports refuse", |scene| scene.in_each(closed_port)),
    everywhere("Services, on one node", |scene| scene.in_each(|c, f| service(c, f, "shop/near"))),
    everywhere("Services, across nodes", |scene| scene.in_each(|c, f| service(c, f, "shop/far"))),
    everywhere("a pod through its own Service", |scene| scene.in_each(hairpin)),
    everywhere("processes of the own node", |scene| scene.in_each(own_node)),
    everywhere("node-local DNS that conntrack does not see", |scene| scene.in_each(node_local_dns)),
    everywhere("probes of the own node, not of others", |scene| scene.in_each(probes)),
    everywhere("out of the cluster", |scene| scene.in_each(outwards)),
    everywhere("NodePorts from outside", |scene| scene.in_each(|c, f| node_ports(c, f, scene.shape.backend))),
    everywhere("NodePorts with externalTrafficPolicy: Local", |scene| {
        scene.in_each(|c, f| {
            own_ports(c, f, scene.shape.backend, [("node1", 30081), ("node2", 30083)], Some("-local"))
        });
    }),
    everywhere("hostPorts", |scene| {
        scene.in_each(|c, f| own_ports(c, f, scene.shape.backend, [("node1", 8080), ("node2", 8082)], None));
    }),
    everywhere("UDP: allowed, denied, Services", |scene| scene.in_each(datagrams)),
    everywhere("SCTP: allowed, denied, Services", |scene| scene.in_each(associations)),
    everywhere("ICMP: isolated pods hear no echo requests", |scene| scene.in_each(echoes)),
    everywhere("bulk, on one node and across", |scene| scene.in_each(bulk)),
    everywhere("neighbour discovery and ARP", |scene| scene.in_each(neighbours)),
    Row {
        name: "IPv4 from IPv6 sockets is IPv4",
        concerns: |shape| shape.families != Families::V6,
        check: |scene| mapped(&scene.cluster),
    },
    everywhere("a policy's change ends connections", |scene| scene.in_each(revocation)),
];

const fn everywhere(name: &'static str, check: fn(&Scene)) -> Row<Scene> {
    Row { name, concerns: |_| true, check }
}

/// A pod's socket whose address is known, whatever becomes of it, and which no other of the cluster's has: records are
/// found by it. Beyond the ports that a kernel gives by chance.
fn dial(pod: &Netns, from: IpAddr, to: SocketAddr) -> (SocketAddr, Result<std::net::TcpStream, ErrorKind>) {
    static DIALED: AtomicU16 = AtomicU16::new(0);
    let port = 61_000 + DIALED.fetch_add(1, Ordering::Relaxed) % 4_500;
    let socket = pod.bound((from, port)).unwrap();
    let local = socket.local_addr().unwrap().as_socket().unwrap();
    let begin = Instant::now();
    let outcome = socket.connect_timeout(&to.into(), patiently(LIMIT));
    assert!(
        begin.elapsed() < patiently(ONE_STALL),
        "{local} to {to}: {outcome:?} after {:?}",
        begin.elapsed()
    );
    (local, outcome.map(|()| socket.into()).map_err(|error| error.kind()))
}

fn assert_pods(record: &Value, family: Family, client: &Pod, server: &Pod) {
    for (side, pod) in [("source", client), ("destination", server)] {
        assert_eq!(record[side]["ip"], pod.address_in(family).to_string(), "{record}");
        assert_eq!(record[side]["k8s"]["uid"], pod.uid(), "{record}");
    }
}

/// Carries some bytes over a new connection and gives its last record on the client's node.
fn carry(cluster: &Enforced, mut carried: Carried) -> Value {
    carried.exchange(1_000, 70_000).unwrap();
    let local = carried.local;
    carried.close();
    let record = cluster.last_record("node1", local);
    assert_eq!(told(&record), "connection-ended client-closed");
    assert_eq!(
        (&record["source"]["bytes"], &record["destination"]["bytes"]),
        (&1_000.into(), &70_000.into())
    );
    record
}

fn allowed(cluster: &Enforced, family: Family, server: &str) {
    let (client, server) = (cluster.pod("shop/client"), cluster.pod(server));
    let listener = server.listen_in(family, 8000).unwrap();
    let (_, stream) = dial(client, client.address_in(family), server.at_in(family, 8000));
    let carried = Carried::accept(stream.unwrap(), &listener);
    assert_eq!(carried.peer, carried.local, "the server sees the client's address and port");
    let local = carried.local;
    let record = carry(cluster, carried);
    assert_pods(&record, family, client, server);
    assert!(record["sluice"]["upstream"].is_null(), "{record}");
    assert_eq!(
        record["sluice"]["ingress"]["policies"].as_array().map(Vec::len),
        Some(usize::from(server.node() == "node1"))
    );
    if server.node() != "node1" {
        let other = cluster.last_record(server.node(), local);
        assert_eq!(other["network"]["community_id"], record["network"]["community_id"]);
        assert_pods(&other, family, client, server);
    }
}

fn denied(cluster: &Enforced, family: Family, server: &str) {
    let server = cluster.pod(server);
    let stranger = cluster.pod("shop/stranger");
    let listener = server.listen_in(family, 8000).unwrap();
    let (local, outcome) = dial(stranger, stranger.address_in(family), server.at_in(family, 8000));
    assert_eq!(outcome.unwrap_err(), ErrorKind::ConnectionRefused);
    let record = cluster.last_record(server.node(), local);
    assert_eq!(told(&record), "connection-denied policy-denied");
    assert_pods(&record, family, stranger, server);
    assert_eq!(record["sluice"]["ingress"]["policies"], serde_json::json!(["NetworkPolicy/shop/server"]));
    assert!(accept(&listener, Duration::ZERO).is_none(), "the server hears nothing");
    if server.node() != "node1" {
        let own = cluster.last_record("node1", local);
        assert_eq!(told(&own), "connection-failed refused");
        assert_eq!(own["network"]["community_id"], record["network"]["community_id"]);
        assert_eq!(own["sluice"]["ingress"]["reason"], "other-node", "{own}");
    }
}

fn closed_port(cluster: &Enforced, family: Family) {
    let client = cluster.pod("shop/client");
    for server in ["shop/near", "shop/far"] {
        let (local, outcome) =
            dial(client, client.address_in(family), cluster.pod(server).at_in(family, 8500));
        assert_eq!(outcome.unwrap_err(), ErrorKind::ConnectionRefused);
        assert_eq!(told(&cluster.last_record("node1", local)), "connection-failed refused");
    }
}

fn service(cluster: &Enforced, family: Family, server: &str) {
    let (client, stranger) = (cluster.pod("shop/client"), cluster.pod("shop/stranger"));
    let listener = cluster.pod(server).listen_in(family, 8000).unwrap();
    let to = cluster.cluster_ip_in(family, server, 80).unwrap();
    let (_, stream) = dial(client, client.address_in(family), to);
    let carried = Carried::accept(stream.unwrap(), &listener);
    assert_eq!(carried.peer, carried.local);
    let record = carry(cluster, carried);
    assert_pods(&record, family, client, cluster.pod(server));
    assert_eq!(record["destination"]["service"]["ip"], to.ip().to_string());
    assert_eq!(record["destination"]["port"], 8000);
    let (local, outcome) = dial(stranger, stranger.address_in(family), to);
    assert_eq!(outcome.unwrap_err(), ErrorKind::ConnectionRefused);
    assert!(accept(&listener, Duration::ZERO).is_none());
    let record = cluster.last_record(cluster.pod(server).node(), local);
    assert_eq!(told(&record), "connection-denied policy-denied");
    assert_pods(&record, family, stranger, cluster.pod(server));
}

fn hairpin(cluster: &Enforced, family: Family) {
    let near = cluster.pod("shop/near");
    let listener = near.listen_in(family, 8000).unwrap();
    let to = cluster.cluster_ip_in(family, "shop/near", 80).unwrap();
    let (_, stream) = dial(near, near.address_in(family), to);
    let carried = Carried::accept(stream.unwrap(), &listener);
    assert_ne!(carried.peer.ip(), near.address_in(family));
    assert_eq!(carry(cluster, carried)["sluice"]["hairpin"], true);
    let _answering = near.serve_udp_on((family.unspecified(), 8000)).unwrap();
    let datagrams = near.udp_to(cluster.cluster_ip_in(family, "shop/near", 53).unwrap()).unwrap();
    let local = datagrams.local_addr().unwrap();
    assert_ne!(ask(&datagrams, b"HELLO\n", ANSWER).unwrap().ip(), local.ip());
    let record = started(cluster, "node1", local);
    assert_eq!(record["sluice"]["hairpin"], true, "{record}");
}

/// The first record of a connection or flow that came about.
fn started(cluster: &Enforced, node: &str, client: SocketAddr) -> Value {
    let is_first = |record: &Value| is_from(record, client) && told(record) == "connection-started -";
    cluster.sluice(node).wait_record(is_first, LIMIT).unwrap()
}

fn own_node(cluster: &Enforced, family: Family) {
    let client = cluster.pod("shop/client");
    for name in ["node1", "node2"] {
        let node = cluster.node(name).unwrap();
        let listener = node.listen_in(family, 9100).unwrap();
        let (_, stream) = dial(client, client.address_in(family), node.at_in(family, 9100));
        let carried = Carried::accept(stream.unwrap(), &listener);
        assert_eq!(carried.peer.ip(), client.address_in(family));
        assert_eq!(carry(cluster, carried)["destination"]["k8s"]["node"], name);
        let _answering = node.serve_udp_on(node.at_in(family, 9101)).unwrap();
        let datagrams = client.udp_to(node.at_in(family, 9101)).unwrap();
        let local = datagrams.local_addr().unwrap();
        assert_eq!(ask(&datagrams, b"HELLO\n", ANSWER).unwrap(), local);
        assert_eq!(started(cluster, "node1", local)["destination"]["k8s"]["node"], name);
    }
}

/// A cache of the node's own, on an address of its own, with the rules that such caches bring: nothing that is from or for
/// it is tracked.
fn node_local_dns(cluster: &Enforced, family: Family) {
    let (client, node) = (cluster.pod("shop/client"), cluster.node("node1").unwrap());
    let (ip, keyword, rest) = match family {
        Family::V4 => (IpAddr::from([169, 254, 20, 10]), "ip", "/32 dev lo scope host"),
        Family::V6 => ("fd00:169:254::10".parse().unwrap(), "ip6", "/128 dev lo nodad"),
    };
    node.ip(&format!("address add {ip}{rest}\n")).unwrap();
    let untracked = |rules: &[&str]| -> String {
        rules.iter().map(|rule| format!("{keyword} {rule} notrack\n")).collect()
    };
    let (to, from) = (
        format!("daddr {ip} meta l4proto {{ tcp, udp }} th dport 53"),
        format!("saddr {ip} meta l4proto {{ tcp, udp }} th sport 53"),
    );
    node.nft(&format!(
        "table inet nodelocaldns {{\n chain in {{\n type filter hook prerouting priority raw\n {} }}\n \
         chain out {{\n type filter hook output priority raw\n {} }}\n}}\n",
        untracked(&[&to]),
        untracked(&[&to, &from])
    ))
    .unwrap();
    let to = SocketAddr::new(ip, 53);
    let _answering = node.serve_udp_on(to).unwrap();
    let listener = node.listen_on(to).unwrap();
    // The node's addresses are read every second.
    let is_known = || {
        let datagrams = client.udp_to(to).unwrap();
        let local = datagrams.local_addr().unwrap();
        match ask(&datagrams, b"HELLO\n", ANSWER) {
            Ok(seen) => assert_eq!(seen, local),
            Err(_) => return false,
        }
        started(cluster, "node1", local)["destination"]["k8s"]["node"] == "node1"
    };
    assert!(wait_until(LIMIT, is_known), "an address of the node's own is the node");
    let (_, stream) = dial(client, client.address_in(family), to);
    let carried = Carried::accept(stream.unwrap(), &listener);
    assert_eq!(carried.peer.ip(), client.address_in(family));
    assert_eq!(carry(cluster, carried)["destination"]["k8s"]["node"], "node1");
    drop(listener);
    let (local, outcome) = dial(client, client.address_in(family), to);
    assert_eq!(outcome.unwrap_err(), ErrorKind::ConnectionRefused);
    assert_eq!(told(&cluster.last_record("node1", local)), "connection-failed refused");
    node.nft("delete table inet nodelocaldns\n").unwrap();
    node.ip(&format!("address del {ip}{rest}\n")).unwrap();
}

fn probes(cluster: &Enforced, family: Family) {
    let near = cluster.pod("shop/near");
    let listener = near.listen_in(family, 9000).unwrap();
    let to = near.at_in(family, 9000);
    let node = cluster.node("node1").unwrap();
    let mut carried = Carried::open(node, &listener, to);
    carried.exchange(100, 100).unwrap();
    assert_eq!(carried.peer, carried.local);
    let local = carried.local;
    carried.close();
    assert_eq!(cluster.records_of("node1", local).len(), 0, "not intercepted");
    // From the overlay's address, where there is one.
    let socket = cluster.node("node2").unwrap().bound((family.unspecified(), 0)).unwrap();
    let error = socket.connect_timeout(&to.into(), patiently(LIMIT)).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::ConnectionRefused);
    let port = socket.local_addr().unwrap().as_socket().unwrap().port();
    let denial = |record: &Value| {
        record["source"]["port"] == port && told(record) == "connection-denied policy-denied"
    };
    let record = cluster.sluice("node1").wait_record(denial, LIMIT).unwrap();
    assert_eq!(record["source"]["k8s"]["node"], "node2", "{record}");
}

fn outwards(cluster: &Enforced, family: Family) {
    let client = cluster.pod("shop/client");
    let listener = cluster.external().listen_in(family, 80).unwrap();
    let (_, stream) = dial(client, client.address_in(family), cluster.external().at_in(family, 80));
    let carried = Carried::accept(stream.unwrap(), &listener);
    assert_eq!(carried.peer.ip(), cluster.node("node1").unwrap().address_in(family), "masqueraded");
    let record = carry(cluster, carried);
    assert_eq!(record["destination"]["ip"], cluster.external().address_in(family).to_string());
    assert_eq!(record["sluice"]["upstream"]["ip"], client.address_in(family).to_string());
}

fn node_ports(cluster: &Enforced, family: Family, backend: Backend) {
    let plain = cluster.pod("shop/plain");
    let listener = plain.listen_in(family, 8000).unwrap();
    let external = cluster.external();
    for name in ["node1", "node2"] {
        let node = cluster.node(name).unwrap();
        let (_, stream) = dial(external, external.address_in(family), node.at_in(family, 30080));
        let mut carried = Carried::accept(stream.unwrap(), &listener);
        carried.exchange(1_000, 70_000).unwrap();
        // With rules of iptables the kernel carries these, and does to them what kube-proxy says.
        if name == "node1" && backend == Backend::Auto {
            assert_eq!(carried.peer, carried.local, "no masquerade where the pod is");
        }
        let local = carried.local;
        carried.close();
        match backend {
            Backend::Auto if name == "node1" => {
                let dialled = Some(("plain", node.at_in(family, 30080)));
                assert_dialled(&cluster.last_record("node1", local), plain, dialled);
            }
            // Who was dialled is known at its end where kube-proxy masquerades.
            Backend::IptablesNft | Backend::IptablesLegacy if name == "node1" => {
                assert_dialled(&started(cluster, "node1", local), plain, None);
            }
            _ => {}
        }
    }
    let _answering = plain.serve_udp_on((family.unspecified(), 8000)).unwrap();
    for name in ["node1", "node2"] {
        let to = cluster.node(name).unwrap().at_in(family, 30053);
        let datagrams = external.udp_to(to).unwrap();
        ask(&datagrams, b"HELLO\n", ANSWER).unwrap();
        if name == "node1" {
            assert_dialled(&started(cluster, "node1", datagrams.local_addr().unwrap()), plain, None);
        }
    }
    let far = cluster.pod("shop/far");
    let tap = SynCount::start(far);
    for name in ["node1", "node2"] {
        let to = cluster.node(name).unwrap().at_in(family, 30082);
        let (local, outcome) = dial(external, external.address_in(family), to);
        assert_eq!(outcome.unwrap_err(), ErrorKind::ConnectionRefused, "{name}");
        if name == "node2" {
            let record = cluster.last_record("node2", local);
            assert_eq!(told(&record), "connection-denied policy-denied");
            assert_dialled(&record, far, None);
        }
    }
    assert_eq!(tap.count(), 0);
    far.nft("delete table inet tap\n").unwrap();
}

/// The record is about the pod behind a port of a node, and names the Service where there is one to name.
fn assert_dialled(record: &Value, pod: &Pod, service: Option<(&str, SocketAddr)>) {
    assert_eq!(record["destination"]["k8s"]["uid"], pod.uid(), "{record}");
    assert_eq!(record["destination"]["port"], 8000, "{record}");
    if let Some((name, dialled)) = service {
        let told = &record["destination"]["service"];
        assert_eq!(
            (&told["name"], &told["ip"]),
            (&name.into(), &dialled.ip().to_string().into()),
            "{record}"
        );
        assert_eq!(told["port"], dialled.port(), "{record}");
    }
}

/// Ports of nodes that lead to the node's own pods and keep their clients' addresses: to `plain`, whom nobody isolates, and
/// to `far`, who is closed to the outside. `service` is what their Services' names end in.
fn own_ports(
    cluster: &Enforced,
    family: Family,
    backend: Backend,
    [open, closed]: [(&str, u16); 2],
    service: Option<&str>,
) {
    let external = cluster.external();
    let (plain, far) = (cluster.pod("shop/plain"), cluster.pod("shop/far"));
    let listener = plain.listen_in(family, 8000).unwrap();
    let to = cluster.node(open.0).unwrap().at_in(family, open.1);
    let (_, stream) = dial(external, external.address_in(family), to);
    let mut carried = Carried::accept(stream.unwrap(), &listener);
    assert_eq!(carried.peer, carried.local, "the pod sees its client");
    carried.exchange(1_000, 70_000).unwrap();
    let local = carried.local;
    carried.close();
    let name = service.map(|end| format!("plain{end}"));
    let record = match backend {
        Backend::Auto => cluster.last_record(open.0, local),
        Backend::IptablesNft | Backend::IptablesLegacy => started(cluster, open.0, local),
    };
    assert_dialled(&record, plain, name.as_deref().map(|name| (name, to)));
    let tap = SynCount::start(far);
    let to = cluster.node(closed.0).unwrap().at_in(family, closed.1);
    let (local, outcome) = dial(external, external.address_in(family), to);
    assert_eq!(outcome.unwrap_err(), ErrorKind::ConnectionRefused);
    let record = cluster.last_record(closed.0, local);
    assert_eq!(told(&record), "connection-denied policy-denied");
    assert_dialled(&record, far, None);
    assert_eq!(record["sluice"]["ingress"]["policies"], serde_json::json!(["NetworkPolicy/shop/server"]));
    assert_eq!(tap.count(), 0);
    far.nft("delete table inet tap\n").unwrap();
}

fn datagrams(cluster: &Enforced, family: Family) {
    let (client, stranger) = (cluster.pod("shop/client"), cluster.pod("shop/stranger"));
    for name in ["shop/near", "shop/far"] {
        let server = cluster.pod(name);
        let answering: UdpServer = server.serve_udp_on((family.unspecified(), 8000)).unwrap();
        for to in [server.at_in(family, 8000), cluster.cluster_ip_in(family, name, 53).unwrap()] {
            let socket = client.udp((client.address_in(family), 0)).unwrap();
            socket.connect(to).unwrap();
            let local = socket.local_addr().unwrap();
            assert_eq!(ask(&socket, b"HELLO\n", ANSWER).unwrap(), local, "{name} {to}");
            assert_eq!(ask(&socket, b"AGAIN\n", ANSWER).unwrap(), local, "{name} {to}");
            let started = |record: &Value| is_from(record, local);
            let record = cluster.sluice("node1").wait_record(started, LIMIT).unwrap();
            assert_eq!(told(&record), "connection-started -");
            assert_pods(&record, family, client, server);
        }
        let received = answering.received();
        let socket = stranger.udp_to(server.at_in(family, 8000)).unwrap();
        let local = socket.local_addr().unwrap();
        assert_eq!(ask(&socket, b"HELLO\n", ANSWER).unwrap_err().kind(), ErrorKind::ConnectionRefused);
        let denied = |record: &Value| is_from(record, local) && told(record).starts_with("connection-denied");
        cluster.sluice(server.node()).wait_record(denied, LIMIT).unwrap();
        assert_eq!(answering.received(), received);
    }
}

/// Their first packets on every kernel; whole associations where it has SCTP sockets.
fn associations(cluster: &Enforced, family: Family) {
    let (client, stranger) = (cluster.pod("shop/client"), cluster.pod("shop/stranger"));
    // Below the ports that the kernel gives to other sockets.
    let mut port = 21_000;
    for name in ["shop/near", "shop/far"] {
        let server = cluster.pod(name);
        let ear = Ear::open(server, family).unwrap();
        for to in [server.at_in(family, 8000), cluster.cluster_ip_in(family, name, 38412).unwrap()] {
            port += 1;
            let local = client.at_in(family, port);
            Beginner::open(client, local).unwrap().begin(to).unwrap();
            let started = |record: &Value| is_from(record, local);
            let record = cluster.sluice("node1").wait_record(started, LIMIT).unwrap();
            assert_eq!(told(&record), "connection-started -");
            assert_eq!(record["network"]["transport"], "sctp");
            assert_pods(&record, family, client, server);
            assert!(ear.hears(local, 8000, ANSWER), "{name} {to}");
        }
        port += 1;
        let local = stranger.at_in(family, port);
        let refused = Beginner::open(stranger, local).unwrap();
        refused.begin(server.at_in(family, 8000)).unwrap();
        let denied = |record: &Value| is_from(record, local) && told(record).starts_with("connection-denied");
        cluster.sluice(server.node()).wait_record(denied, LIMIT).unwrap();
        // Protocol unreachable, which ends an association; ICMPv6 has no such message.
        let expected = if family == Family::V4 { (3, 2) } else { (1, 4) };
        assert_eq!(refused.error(ANSWER), Some(expected), "{name}");
        assert!(!ear.hears(local, 8000, Duration::from_millis(1)), "{name}");
        if sctp::has_sockets(client) {
            whole_associations(cluster, family, name);
        }
    }
}

fn whole_associations(cluster: &Enforced, family: Family, name: &str) {
    let (client, stranger) = (cluster.pod("shop/client"), cluster.pod("shop/stranger"));
    let server = cluster.pod(name);
    let listener = sctp::listen(server, family, 8000).unwrap();
    for to in [server.at_in(family, 8000), cluster.cluster_ip_in(family, name, 38412).unwrap()] {
        let (local, made) = sctp::connect(client, client.at_in(family, 0), to, LIMIT);
        let near = made.unwrap_or_else(|error| panic!("{name} {to}: {error}"));
        let (far, peer) = listener.accept().unwrap();
        assert_eq!(peer.as_socket(), local);
        assert!(sctp::carries(&near, &far, LIMIT).unwrap() && sctp::carries(&far, &near, LIMIT).unwrap());
    }
    // ICMPv6 has no error that ends an association: its client goes on trying.
    let to = server.at_in(family, 8000);
    let (_, refused) = sctp::connect(stranger, stranger.at_in(family, 0), to, Duration::from_millis(500));
    assert!(refused.is_err(), "{name}");
}

/// `near` and `far` are isolated, `plain` is not.
fn echoes(cluster: &Enforced, family: Family) {
    let client = cluster.pod("shop/client");
    let node = cluster.node("node1").unwrap();
    let [near, far, plain] =
        ["shop/near", "shop/far", "shop/plain"].map(|name| cluster.pod(name).address_in(family));
    assert!(echo(client, plain), "nobody is isolated");
    assert!(echo(client, cluster.external().address_in(family)), "nor is anybody outside");
    assert!(!echo(client, near) && !echo(client, far), "isolated");
    assert!(echo(node, near), "a probe of the own node");
}

fn bulk(cluster: &Enforced, family: Family) {
    let client = cluster.pod("shop/client");
    for server in ["shop/near", "shop/far"] {
        let listener = cluster.pod(server).listen_in(family, 8000).unwrap();
        let (_, stream) = dial(client, client.address_in(family), cluster.pod(server).at_in(family, 8000));
        let mut carried = Carried::accept(stream.unwrap(), &listener);
        carried.exchange(3_000_000, 3_000_000).unwrap();
        let local = carried.local;
        carried.close();
        let record = cluster.last_record("node1", local);
        assert_eq!(record["source"]["bytes"], 3_000_000);
        assert_eq!(record["destination"]["bytes"], 3_000_000);
    }
}

/// With forgotten neighbours, and with those that were found afterwards.
fn neighbours(cluster: &Enforced, family: Family) {
    for round in 0..2 {
        if round == 0 {
            for pod in ["shop/client", "shop/near", "shop/stranger"] {
                cluster.pod(pod).ip("neighbour flush all\n").unwrap();
            }
            cluster.node("node1").unwrap().ip("neighbour flush all nud reachable\n").unwrap();
        }
        let (client, near) = (cluster.pod("shop/client"), cluster.pod("shop/near"));
        let listener = near.listen_in(family, 8000).unwrap();
        let (_, stream) = dial(client, client.address_in(family), near.at_in(family, 8000));
        carry(cluster, Carried::accept(stream.unwrap(), &listener));
        drop(listener);
        denied(cluster, family, "shop/near");
    }
}

/// A socket of both families towards an IPv4 address writes it as ::ffff:a.b.c.d.
fn mapped(cluster: &Enforced) {
    let (client, near) = (cluster.pod("shop/client"), cluster.pod("shop/near"));
    let listener = near.listen_in(Family::V6, 8000).unwrap();
    let to = SocketAddr::from((near.address().to_ipv6_mapped(), 8000));
    let mut carried = Carried::open(client, &listener, to);
    assert_eq!(carried.local.ip(), IpAddr::from(client.address().to_ipv6_mapped()));
    assert_eq!(carried.peer, carried.local);
    carried.exchange(1_000, 70_000).unwrap();
    let local = SocketAddr::from((client.address(), carried.local.port()));
    carried.close();
    let record = cluster.last_record("node1", local);
    assert_pods(&record, Family::V4, client, near);
    let stranger = cluster.pod("shop/stranger");
    assert_eq!(stranger.connect(to, LIMIT).unwrap_err().kind(), ErrorKind::ConnectionRefused);
}

fn revocation(cluster: &Enforced, family: Family) {
    let client = cluster.pod("shop/client");
    let mut kept: Vec<(Carried, &str)> = ["shop/near", "shop/far"]
        .map(|server| {
            let listener = cluster.pod(server).listen_in(family, 8000).unwrap();
            (Carried::open(client, &listener, cluster.pod(server).at_in(family, 8000)), server)
        })
        .into();
    let servers = ["shop/near", "shop/far"].map(|server| cluster.pod(server));
    let _answering = servers.map(|server| server.serve_udp_on((family.unspecified(), 8000)).unwrap());
    let flows = servers.map(|server| client.udp_to(server.at_in(family, 8000)).unwrap());
    for flow in &flows {
        ask(flow, b"HELLO\n", ANSWER).unwrap();
    }
    cluster.apply("policy.yaml", &POLICY.replace("role: client", "role: nobody"));
    for (carried, server) in &mut kept {
        assert!(carried.is_reset(), "{server}");
    }
    let is_refused = |error: std::io::Error| error.kind() == ErrorKind::ConnectionRefused;
    for flow in &flows {
        assert!(wait_until(LIMIT, || ask(flow, b"HELLO\n", ANSWER).is_err_and(is_refused)));
    }
    cluster.apply("policy.yaml", POLICY);
}

fn cell(topology: Topology, families: Families, backend: Backend) {
    let shape = Shape { topology, families, backend };
    assert!(Shape::all().contains(&shape), "{shape:?} has no column");
    let scene = Scene::new(shape);
    let results = cells::run(shape, &ROWS, &scene);
    cells::hold(shape, &results);
}

macro_rules! cells {
    ($($name:ident: $topology:ident, $families:ident, $backend:ident;)*) => {
        $(
            #[test]
            fn $name() {
                cell(Topology::$topology, Families::$families, Backend::$backend);
            }
        )*

        #[test]
        fn every_column_has_its_cell() {
            let tried = [$((Topology::$topology, Families::$families, Backend::$backend)),*];
            let columns = Shape::all();
            assert_eq!(tried.len(), columns.len());
            for Shape { topology, families, backend } in columns {
                assert!(tried.contains(&(topology, families, backend)));
            }
        }
    };
}
cells! {
    every_row_holds_for_routed_pods_of_ipv4: Routed, V4, Auto;
    every_row_holds_for_routed_pods_of_ipv6: Routed, V6, Auto;
    every_row_holds_for_routed_pods_of_both_families: Routed, Dual, Auto;
    every_row_holds_for_bridged_pods_of_ipv4: Bridge, V4, Auto;
    every_row_holds_for_bridged_pods_of_ipv6: Bridge, V6, Auto;
    every_row_holds_for_bridged_pods_of_both_families: Bridge, Dual, Auto;
    every_row_holds_across_an_overlay_of_ipv4: Vxlan, V4, Auto;
    every_row_holds_across_an_overlay_of_ipv6: Vxlan, V6, Auto;
    every_row_holds_across_an_overlay_of_both_families: Vxlan, Dual, Auto;
    every_row_holds_with_iptables_nft_and_ipv4: Routed, V4, IptablesNft;
    every_row_holds_with_iptables_nft_and_ipv6: Routed, V6, IptablesNft;
    every_row_holds_with_iptables_nft_and_both_families: Routed, Dual, IptablesNft;
    every_row_holds_with_iptables_legacy_and_ipv4: Routed, V4, IptablesLegacy;
    every_row_holds_with_iptables_legacy_and_ipv6: Routed, V6, IptablesLegacy;
    every_row_holds_with_iptables_legacy_and_both_families: Routed, Dual, IptablesLegacy;
    every_row_holds_with_iptables_legacy_and_bridged_pods: Bridge, Dual, IptablesLegacy;
    every_row_holds_with_iptables_nft_across_an_overlay: Vxlan, Dual, IptablesNft;
    every_row_holds_with_iptables_nft_and_bridged_pods: Bridge, Dual, IptablesNft;
    every_row_holds_with_iptables_legacy_across_an_overlay: Vxlan, Dual, IptablesLegacy;
}

#[test]
fn the_matrix_in_the_readme_is_what_the_cells_gave() {
    cells::hold_readme(&cells::table(ROWS.iter().map(|row| row.name)));
}
