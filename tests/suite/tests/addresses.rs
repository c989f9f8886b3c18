//! A node with several addresses, on its uplink and on a device of its own, is one node by each of them.

#![expect(clippy::unwrap_used, reason = "a panic in a test is its failure report")]

use std::io::ErrorKind;
use std::net::{IpAddr, SocketAddr};

use lab::{Backend, Cluster, Families, Family, PodSpec, ServiceSpec, Topology, Transport, ask, patiently};
use serde_json::Value;
use suite::carried::Carried;
use suite::enforced::{Enforced, LIMIT, is_from, told};
use suite::flows::ANSWER;

/// `near` is closed to everybody, and `client` may open nothing; the own node is what neither can refuse.
const POLICIES: &str = "\
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: near, namespace: shop}
spec: {podSelector: {matchLabels: {name: near}}, policyTypes: [Ingress]}
---
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: client, namespace: shop}
spec: {podSelector: {matchLabels: {name: client}}, policyTypes: [Egress]}
";

fn enforced(topology: Topology, policies: &str, config: &str) -> Enforced {
    let pod = |name: &str| PodSpec::new(&format!("shop/{name}")).on("node1").label("name", name);
    let plain = ServiceSpec::new("shop/plain").selector("name", "plain");
    let builder = Cluster::builder()
        .nodes(2)
        .topology(topology)
        .families(Families::Dual)
        .more_addresses()
        .pod(pod("client"))
        .pod(pod("near"))
        .pod(pod("plain"))
        .pod(PodSpec::new("shop/agent").on("node1").label("app", "agent").host_network())
        .pod(PodSpec::new("shop/distant").on("node2").label("app", "agent").host_network())
        .service(plain.port("http", 80, 8000).node_port(30080).port_of(Transport::Udp, "dns", 53, 8001));
    Enforced::start(builder, &[("policies.yaml", policies)], config)
}

/// Pods reach their own node at each of its addresses, whatever listens there, and no other node at any.
fn nodes_as_destinations(cluster: &Enforced, family: Family) {
    let client = cluster.pod("shop/client");
    for name in ["node1", "node2"] {
        let node = cluster.node(name).unwrap();
        let listener = node.listen_in(family, 9100).unwrap();
        let addresses = node.addresses_in(family);
        assert_eq!(addresses.len(), 3);
        for address in addresses.clone() {
            let to = SocketAddr::new(address, 9100);
            let socket = client.bound((client.address_in(family), 0)).unwrap();
            let local = socket.local_addr().unwrap().as_socket().unwrap();
            let outcome = socket.connect_timeout(&to.into(), patiently(LIMIT));
            let echo = node.serve_udp_on((address, 9101)).unwrap();
            let datagrams = client.udp_to((address, 9101)).unwrap();
            let answer = ask(&datagrams, b"HELLO\n", ANSWER);
            drop(echo);
            if name == "node1" {
                outcome.unwrap();
                let mut carried = Carried::accept(socket.into(), &listener);
                // The lab's masquerade spares the nodes' own range and no other: it takes hold of the leg to the last.
                let is_spared = address != *addresses.last().unwrap();
                let seen = if is_spared { vec![local.ip()] } else { addresses.clone() };
                assert!(seen.contains(&carried.peer.ip()), "{to}: {}", carried.peer);
                carried.exchange(1_000, 70_000).unwrap();
                carried.close();
                assert_eq!(answer.unwrap(), datagrams.local_addr().unwrap(), "{to}");
            } else {
                assert_eq!(outcome.unwrap_err().kind(), ErrorKind::ConnectionRefused, "{to}");
                assert_eq!(answer.unwrap_err().kind(), ErrorKind::ConnectionRefused, "{to}");
            }
            let record = cluster.last_record("node1", local);
            let expected = if name == "node1" { "connection-ended" } else { "connection-denied" };
            assert!(told(&record).starts_with(expected), "{to}: {record}");
            assert_eq!(record["destination"]["k8s"]["node"], name, "{to}: {record}");
        }
    }
}

/// Probes of the own node pass from each of its addresses, and nobody records them; what comes from another node is denied
/// by the name of that node.
fn nodes_as_sources(cluster: &Enforced, family: Family) {
    let near = cluster.pod("shop/near");
    let to = near.at_in(family, 8000);
    let listener = near.listen_in(family, 8000).unwrap();
    let answering = near.serve_udp_on((family.unspecified(), 8000)).unwrap();
    for address in cluster.node("node1").unwrap().addresses_in(family) {
        let node = cluster.node("node1").unwrap();
        let stream = node.connect_from(SocketAddr::new(address, 0), to, LIMIT).unwrap();
        let mut carried = Carried::accept(stream, &listener);
        assert_eq!(carried.peer, carried.local, "{address}");
        carried.exchange(100, 100).unwrap();
        let datagrams = node.udp((address, 0)).unwrap();
        datagrams.connect(to).unwrap();
        assert_eq!(ask(&datagrams, b"HELLO\n", ANSWER).unwrap(), datagrams.local_addr().unwrap());
        for local in [carried.local, datagrams.local_addr().unwrap()] {
            assert_eq!(cluster.records_of("node1", local).len(), 0, "{local}");
        }
    }
    let heard = answering.received();
    for address in cluster.node("node2").unwrap().addresses_in(family) {
        let node = cluster.node("node2").unwrap();
        let socket = node.bound((address, 0)).unwrap();
        let local = socket.local_addr().unwrap().as_socket().unwrap();
        let outcome = socket.connect_timeout(&to.into(), patiently(LIMIT));
        assert_eq!(outcome.unwrap_err().kind(), ErrorKind::ConnectionRefused, "{address}");
        let record = cluster.last_record("node1", local);
        assert_eq!(told(&record), "connection-denied policy-denied");
        assert_eq!(record["source"]["k8s"]["node"], "node2", "{record}");
        let datagrams = node.udp((address, 0)).unwrap();
        datagrams.connect(to).unwrap();
        assert_eq!(ask(&datagrams, b"HELLO\n", ANSWER).unwrap_err().kind(), ErrorKind::ConnectionRefused);
    }
    assert_eq!(answering.received(), heard);
}

fn service_of(record: &Value) -> (&str, IpAddr) {
    let service = &record["destination"]["service"];
    (service["name"].as_str().unwrap(), service["ip"].as_str().unwrap().parse().unwrap())
}

/// A node port is open at each address, and the record names the Service and the address that was dialled.
fn node_ports(cluster: &Enforced, family: Family, backend: Backend) {
    let (plain, external) = (cluster.pod("shop/plain"), cluster.external());
    let listener = plain.listen_in(family, 8000).unwrap();
    for address in cluster.node("node1").unwrap().addresses_in(family) {
        let mut carried = Carried::open(external, &listener, SocketAddr::new(address, 30080));
        carried.exchange(1_000, 70_000).unwrap();
        let (local, peer) = (carried.local, carried.peer);
        carried.close();
        if backend == Backend::Auto {
            assert_eq!(peer, local, "{address}");
            assert_eq!(service_of(&cluster.last_record("node1", local)), ("plain", address));
        } else {
            // The kernel carries these, and does to them what kube-proxy says.
            let record = cluster.sluice("node1").wait_record(|record| is_from(record, local), LIMIT).unwrap();
            assert_eq!(record["destination"]["k8s"]["uid"], plain.uid(), "{record}");
        }
    }
}

fn a_node_is_one_node(topology: Topology, backend: Backend) {
    let cluster = enforced(topology, POLICIES, &backend.config());
    for family in [Family::V4, Family::V6] {
        nodes_as_destinations(&cluster, family);
        nodes_as_sources(&cluster, family);
        node_ports(&cluster, family, backend);
    }
}

#[test]
fn a_node_of_routed_pods_is_one_node_by_each_of_its_addresses() {
    a_node_is_one_node(Topology::Routed, Backend::Auto);
}

#[test]
fn a_node_of_bridged_pods_across_an_overlay_is_one_node_by_each_of_its_addresses() {
    a_node_is_one_node(Topology::Vxlan, Backend::Auto);
}

#[test]
fn a_node_is_one_node_by_each_of_its_addresses_with_rules_of_iptables() {
    a_node_is_one_node(Topology::Routed, Backend::IptablesNft);
}

/// `near` is open to agents, who are closed themselves, were they pods with an address of their own.
const AGENTS: &str = "\
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: near, namespace: shop}
spec:
  podSelector: {matchLabels: {name: near}}
  policyTypes: [Ingress]
  ingress: [{from: [{podSelector: {matchLabels: {app: agent}}}]}]
---
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: agents, namespace: shop}
spec: {podSelector: {matchLabels: {app: agent}}, policyTypes: [Ingress, Egress]}
";

#[test]
fn pods_of_the_host_network_are_their_node_and_no_selector_means_them() {
    let cluster = enforced(Topology::Routed, AGENTS, "");
    let (agent, distant) = (cluster.pod("shop/agent"), cluster.pod("shop/distant"));
    for family in [Family::V4, Family::V6] {
        let [near, plain] = ["shop/near", "shop/plain"].map(|name| cluster.pod(name));
        let _listeners = [near, plain].map(|pod| pod.listen_in(family, 8000).unwrap());
        for address in cluster.node("node2").unwrap().addresses_in(family) {
            let socket = distant.bound((address, 0)).unwrap();
            let local = socket.local_addr().unwrap().as_socket().unwrap();
            let outcome = socket.connect_timeout(&near.at_in(family, 8000).into(), patiently(LIMIT));
            assert_eq!(outcome.unwrap_err().kind(), ErrorKind::ConnectionRefused, "{address}");
            let record = cluster.last_record("node1", local);
            assert_eq!(record["source"]["k8s"]["node"], "node2", "{record}");
            distant.connect_from(SocketAddr::new(address, 0), plain.at_in(family, 8000), LIMIT).unwrap();
        }
        let listener = agent.listen_in(family, 9100).unwrap();
        for address in cluster.node("node1").unwrap().addresses_in(family) {
            let carried =
                Carried::open(cluster.pod("shop/client"), &listener, SocketAddr::new(address, 9100));
            let local = carried.local;
            carried.close();
            assert_eq!(cluster.last_record("node1", local)["destination"]["k8s"]["node"], "node1");
        }
    }
}

#[test]
fn where_policies_hold_for_the_own_node_too_they_do_at_each_of_its_addresses() {
    let cluster = enforced(Topology::Routed, POLICIES, "policy: {own_node_egress: policy}\n");
    let (client, node) = (cluster.pod("shop/client"), cluster.node("node1").unwrap());
    for family in [Family::V4, Family::V6] {
        let _listener = node.listen_in(family, 9100).unwrap();
        for address in node.addresses_in(family) {
            let _echo = node.serve_udp_on((address, 9101)).unwrap();
            let outcome = client.connect(SocketAddr::new(address, 9100), LIMIT);
            assert_eq!(outcome.unwrap_err().kind(), ErrorKind::ConnectionRefused, "{address}");
            let datagrams = client.udp_to((address, 9101)).unwrap();
            assert_eq!(ask(&datagrams, b"HELLO\n", ANSWER).unwrap_err().kind(), ErrorKind::ConnectionRefused);
            cluster.pod("shop/plain").connect(SocketAddr::new(address, 9100), LIMIT).unwrap();
        }
        // What the node begins itself is another matter.
        let to = cluster.pod("shop/near").at_in(family, 8000);
        let listener = cluster.pod("shop/near").listen_in(family, 8000).unwrap();
        Carried::open(node, &listener, to).close();
    }
}
