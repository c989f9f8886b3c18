//! Who the server takes the client for, on every way a connection can go, with each reverse path filter.

#![expect(clippy::unwrap_used, reason = "a panic in a test is its failure report")]

use std::net::{IpAddr, SocketAddr};

use lab::{Cluster, ClusterBuilder, Pod, PodSpec, ServiceSpec};
use serde_json::Value;
use suite::carried::{Carried, accept};
use suite::enforced::{Enforced, LIMIT, told};
use suite::packets::SynCount;

fn two_nodes(rp_filter: u8) -> ClusterBuilder {
    Cluster::builder()
        .nodes(2)
        .rp_filter(rp_filter)
        .pod(PodSpec::new("shop/client").on("node1").label("app", "client"))
        .pod(PodSpec::new("shop/near").on("node1").label("app", "near"))
        .pod(PodSpec::new("shop/far").on("node2").label("app", "far"))
        .service(
            ServiceSpec::new("shop/near").selector("app", "near").port("http", 80, 8080).node_port(30080),
        )
        .service(ServiceSpec::new("shop/far").selector("app", "far").port("http", 80, 8080).node_port(30081))
}

/// Isolates a pod in one direction and lets nobody through.
fn isolate(app: &str, direction: &str) -> String {
    format!(
        "apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\n\
         metadata: {{ name: {app}, namespace: shop }}\n\
         spec: {{ podSelector: {{ matchLabels: {{ app: {app} }} }}, policyTypes: [{direction}] }}\n"
    )
}

/// Carries some bytes, closes, and gives the last record of `node`.
fn carry(cluster: &Enforced, node: &str, mut carried: Carried, seen_as: SocketAddr) -> Value {
    carried.exchange(1_000, 70_000).unwrap();
    carried.close();
    let record = cluster.last_record(node, seen_as);
    assert_eq!(told(&record), "connection-ended client-closed");
    assert_eq!(record["source"]["bytes"], 1_000, "{record}");
    assert_eq!(record["destination"]["bytes"], 70_000, "{record}");
    let both = cluster.records_of(node, seen_as);
    assert_eq!(
        both.iter().map(|record| &record["event"]["action"]).collect::<Vec<_>>(),
        ["connection-started", "connection-ended"]
    );
    assert_eq!(both[0]["event"]["id"], both[1]["event"]["id"]);
    record
}

fn upstream(record: &Value) -> Option<SocketAddr> {
    let upstream = record["sluice"]["upstream"].as_object()?;
    let ip: IpAddr = upstream["ip"].as_str()?.parse().ok()?;
    Some(SocketAddr::new(ip, u16::try_from(upstream["port"].as_u64()?).ok()?))
}

fn assert_is_pod(side: &Value, pod: &Pod) {
    let (namespace, name) = pod.full_name().split_once('/').unwrap();
    assert_eq!(side["ip"], pod.address().to_string());
    assert_eq!(side["k8s"]["namespace"], namespace);
    assert_eq!(side["k8s"]["pod"], name);
    assert_eq!(side["k8s"]["uid"], pod.uid());
    assert_eq!(side["k8s"]["node"], pod.node());
}

fn each_way_shows_the_client_s_own_address(rp_filter: u8) {
    let cluster = Enforced::start(two_nodes(rp_filter), &[], "");
    let client = cluster.pod("shop/client");
    for server in ["shop/near", "shop/far"] {
        let pod = cluster.pod(server);
        let listener = pod.listen(8080).unwrap();
        for to in [pod.at(8080), cluster.cluster_ip(server, 80).unwrap()] {
            let carried = Carried::open(client, &listener, to);
            assert_eq!(carried.peer, carried.local, "{to}: address and port");
            assert_eq!(carried.local.ip(), IpAddr::from(client.address()));
            assert_eq!(carried.client.peer_addr().unwrap(), to, "the dialled address");
            let local = carried.local;
            let record = carry(&cluster, "node1", carried, local);
            assert_is_pod(&record["source"], client);
            assert_is_pod(&record["destination"], pod);
            assert_eq!(record["destination"]["port"], 8080);
            assert_eq!(upstream(&record), None);
            let service = &record["destination"]["service"];
            if to == pod.at(8080) {
                assert!(service.is_null(), "{service}");
            } else {
                assert_eq!(
                    format!(
                        "{}/{}",
                        service["namespace"].as_str().unwrap(),
                        service["name"].as_str().unwrap()
                    ),
                    server
                );
                assert_eq!((&service["ip"], &service["port"]), (&to.ip().to_string().into(), &80.into()));
            }
            if server == "shop/far" {
                let other = cluster.last_record("node2", local);
                assert_eq!(other["network"]["community_id"], record["network"]["community_id"]);
                assert_eq!(
                    (&record["network"]["direction"], &other["network"]["direction"]),
                    (&"egress".into(), &"ingress".into())
                );
                assert_eq!(
                    (&other["source"]["bytes"], &other["destination"]["bytes"]),
                    (&1_000.into(), &70_000.into())
                );
            }
        }
    }
    assert_eq!(cluster.metric("node1", "sluice_upstream_port_fallbacks_total"), 0.0);
    for node in ["node1", "node2"] {
        assert_eq!(cluster.metric(node, "sluice_connections_live"), 0.0);
    }
}

#[test]
fn servers_see_the_client_s_address_and_port_without_reverse_path_filter() {
    each_way_shows_the_client_s_own_address(0);
}

#[test]
fn servers_see_the_client_s_address_and_port_with_a_strict_reverse_path_filter() {
    each_way_shows_the_client_s_own_address(1);
}

#[test]
fn servers_see_the_client_s_address_and_port_with_a_loose_reverse_path_filter() {
    each_way_shows_the_client_s_own_address(2);
}

fn what_leaves_conntrack_s_cluster_shows_what_it_must(rp_filter: u8) {
    let cluster = Enforced::start(two_nodes(rp_filter), &[], "");
    let (client, near) = (cluster.pod("shop/client"), cluster.pod("shop/near"));
    let (node1, node2) = (cluster.node("node1").unwrap(), cluster.node("node2").unwrap());

    // Masqueraded: the outside sees the node; the port is another than the client's.
    let outside = cluster.external().listen(80).unwrap();
    let carried = Carried::open(client, &outside, cluster.external().at(80));
    let (local, peer) = (carried.local, carried.peer);
    assert_eq!(peer.ip(), IpAddr::from(node1.address()));
    let record = carry(&cluster, "node1", carried, local);
    let source = upstream(&record).unwrap();
    assert_eq!(source.ip(), local.ip());
    assert_ne!(source.port(), local.port());
    assert!(record["destination"]["k8s"].is_null());

    // A process on the client's own node, and one on the other: the pod's address, another port.
    for node in [node1, node2] {
        let listener = node.listen(9100).unwrap();
        let carried = Carried::open(client, &listener, node.at(9100));
        let (local, peer) = (carried.local, carried.peer);
        assert_eq!(peer.ip(), local.ip(), "{}", node.name());
        let record = carry(&cluster, "node1", carried, local);
        assert_eq!(upstream(&record), Some(peer), "{}", node.name());
        assert_eq!(record["destination"]["k8s"]["node"], node.name());
    }

    // Through a NodePort of the server's own node: the proxy needs no masquerade.
    let listener = near.listen(8080).unwrap();
    let carried = Carried::open(cluster.external(), &listener, node1.at(30080));
    assert_eq!(carried.peer, carried.local);
    assert_eq!(carried.client.peer_addr().unwrap(), node1.at(30080));
    let local = carried.local;
    let record = carry(&cluster, "node1", carried, local);
    assert_is_pod(&record["destination"], near);
    assert_eq!(record["destination"]["service"]["name"], "near");
    assert_eq!(upstream(&record), None);

    // Through a NodePort of the other node: masqueraded there before it comes here.
    let carried = Carried::open(cluster.external(), &listener, node2.at(30080));
    let peer = carried.peer;
    assert_eq!(peer.ip(), IpAddr::from(node2.address()));
    let record = carry(&cluster, "node1", carried, peer);
    assert_eq!(record["source"]["k8s"]["node"], "node2");

    // A pod that reaches itself through its Service: its kernel would refuse its own address.
    let carried = Carried::open(near, &listener, cluster.cluster_ip("shop/near", 80).unwrap());
    let (local, peer) = (carried.local, carried.peer);
    assert_eq!(peer.ip(), IpAddr::from(node1.address()));
    let record = carry(&cluster, "node1", carried, local);
    assert_eq!(record["sluice"]["hairpin"], true);
    assert_eq!(upstream(&record), Some(peer));
}

#[test]
fn legs_out_of_the_cluster_to_nodes_and_back_to_the_pod_itself_without_reverse_path_filter() {
    what_leaves_conntrack_s_cluster_shows_what_it_must(0);
}

#[test]
fn legs_out_of_the_cluster_to_nodes_and_back_to_the_pod_itself_with_a_strict_reverse_path_filter() {
    what_leaves_conntrack_s_cluster_shows_what_it_must(1);
}

#[test]
fn legs_out_of_the_cluster_to_nodes_and_back_to_the_pod_itself_with_a_loose_reverse_path_filter() {
    what_leaves_conntrack_s_cluster_shows_what_it_must(2);
}

#[test]
fn a_client_isolated_for_egress_is_denied_by_its_own_node_and_the_other_sees_nothing() {
    let policy = isolate("client", "Egress");
    let cluster = Enforced::start(two_nodes(0), &[("policy.yaml", &policy)], "");
    let (client, far) = (cluster.pod("shop/client"), cluster.pod("shop/far"));
    let listener = far.listen(8080).unwrap();
    let tap = SynCount::start(cluster.node("node2").unwrap());
    let socket = client.bound(client.at(0)).unwrap();
    let local = socket.local_addr().unwrap().as_socket().unwrap();
    let error = socket.connect_timeout(&far.at(8080).into(), LIMIT).unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::ConnectionRefused);
    let record = cluster.last_record("node1", local);
    assert_eq!(told(&record), "connection-denied policy-denied");
    assert_eq!(record["sluice"]["egress"]["policies"], serde_json::json!(["NetworkPolicy/shop/client"]));
    assert_eq!(cluster.records("node2").len(), 0);
    assert_eq!(tap.count(), 0);
    assert!(accept(&listener, std::time::Duration::ZERO).is_none());
}

#[test]
fn a_server_isolated_for_ingress_is_denied_by_its_own_node_and_refused_at_the_client_s() {
    let policy = isolate("far", "Ingress");
    let cluster = Enforced::start(two_nodes(0), &[("policy.yaml", &policy)], "");
    let (client, far) = (cluster.pod("shop/client"), cluster.pod("shop/far"));
    let listener = far.listen(8080).unwrap();
    let tap = SynCount::start(far);
    let socket = client.bound(client.at(0)).unwrap();
    let local = socket.local_addr().unwrap().as_socket().unwrap();
    let error = socket.connect_timeout(&far.at(8080).into(), LIMIT).unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::ConnectionRefused);
    assert_eq!(told(&cluster.last_record("node1", local)), "connection-failed refused");
    let record = cluster.last_record("node2", local);
    assert_eq!(told(&record), "connection-denied policy-denied");
    assert_eq!(record["sluice"]["ingress"]["policies"], serde_json::json!(["NetworkPolicy/shop/far"]));
    assert!(accept(&listener, std::time::Duration::ZERO).is_none());
    assert_eq!(tap.count(), 0);
}

#[test]
fn a_probe_from_the_node_to_an_isolated_pod_passes_without_the_proxy() {
    let policy = isolate("near", "Ingress");
    let cluster = Enforced::start(two_nodes(0), &[("policy.yaml", &policy)], "");
    let (near, node) = (cluster.pod("shop/near"), cluster.node("node1").unwrap());
    let listener = near.listen(8080).unwrap();
    let mut carried = Carried::open(node, &listener, near.at(8080));
    assert_eq!(carried.peer, carried.local);
    carried.exchange(100, 100).unwrap();
    carried.close();
    assert_eq!(cluster.metric("node1", "sluice_gate_packets_total"), 0.0);
    assert_eq!(cluster.records("node1").len(), 0);
    // The same from anyone else is denied.
    let error = cluster.pod("shop/client").connect(near.at(8080), LIMIT).unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::ConnectionRefused);
}

#[test]
fn a_pod_that_borrows_another_s_address_does_not_reach_the_gate() {
    let cluster = Enforced::start(two_nodes(0), &[("policy.yaml", &isolate("near", "Ingress"))], "");
    let (client, near) = (cluster.pod("shop/client"), cluster.pod("shop/near"));
    // The isolated pod's own address towards itself is the one flow that every policy allows.
    let raw =
        client.socket(socket2::Domain::IPV4, socket2::Type::RAW, Some(socket2::Protocol::from(255))).unwrap();
    for (destination, last) in [(near.address(), 1), (cluster.pod("shop/far").address(), 2)] {
        let syn = suite::syn::packet(near.at(40_000 + last), SocketAddr::from((destination, 8080)));
        raw.send_to(&syn, &SocketAddr::from((destination, 0)).into()).unwrap();
    }
    // What was sent before this has been decided when this is.
    assert!(client.connect(near.at(8080), LIMIT).is_err());
    let seen = cluster.metric("node1", "sluice_gate_packets_total");
    assert_eq!(seen, 1.0, "only the honest attempt");
    let records = cluster.records("node1");
    assert!(records.iter().all(|record| record["source"]["ip"] != near.address().to_string()), "{records:?}");
}
