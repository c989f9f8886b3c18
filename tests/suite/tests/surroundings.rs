//! What stands around pods on a node: kube-proxy in its modes, ports of the node that lead to pods, a firewall of
//! the host, and pods that come and go while others speak.

#![expect(clippy::unwrap_used, reason = "a panic in a test is its failure report")]

use std::io::ErrorKind;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use lab::{
    Backend, Cluster, ClusterBuilder, Families, Family, KubeProxy, Netns, PodSpec, ServiceSpec, Topology,
    Transport, ask,
};
use serde_json::Value;
use suite::carried::{Carried, accept};
use suite::enforced::{Enforced, LIMIT, is_from, told};
use suite::flows::ANSWER;

/// Shorter than the second try of a SYN.
const SILENCE: Duration = Duration::from_millis(700);

/// `near` is open to the external host, by its own addresses, and to `client`.
const POLICY: &str = "\
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: near, namespace: default}
spec:
  podSelector: {matchLabels: {app: near}}
  policyTypes: [Ingress]
  ingress:
  - from:
    - ipBlock: {cidr: 203.0.113.10/32}
    - ipBlock: {cidr: \"2001:db8:113::10/128\"}
    - podSelector: {matchLabels: {app: client}}
";

fn builder(topology: Topology, kube_proxy: KubeProxy) -> ClusterBuilder {
    let service = |name: &str| ServiceSpec::new(name).selector("app", "near").port("http", 80, 8000);
    Cluster::builder()
        .nodes(2)
        .topology(topology)
        .families(Families::Dual)
        .kube_proxy(kube_proxy)
        .pod(PodSpec::new("near").on("node1").label("app", "near").host_port(8088, 8000))
        .pod(PodSpec::new("client").on("node1").label("app", "client"))
        .pod(PodSpec::new("stranger").on("node1"))
        .pod(PodSpec::new("far").on("node2").label("app", "client"))
        .service(service("cluster").node_port(30080).port_of(Transport::Udp, "udp", 53, 8001))
        .service(service("local").node_port(30081).local_traffic())
}

fn enforced(topology: Topology, kube_proxy: KubeProxy) -> Enforced {
    Enforced::start(builder(topology, kube_proxy), &[("policy.yaml", POLICY)], "")
}

/// Counts first packets on their way to the gate that carry kube-proxy's mark beside the proxy's.
fn count_marks(node: &Netns) {
    node.nft(
        "table inet marks {\n counter both { }\n chain arriving {\n type filter hook input priority -151\n \
         meta mark and 0x4002 == 0x4002 tcp flags & (syn | ack) == syn counter name both\n }\n}\n",
    )
    .unwrap();
}

fn counted_marks(node: &Netns) -> u64 {
    let output =
        node.command("nft").args(["-j", "list", "counter", "inet", "marks", "both"]).output().unwrap();
    let listing: Value = serde_json::from_slice(&output.stdout).unwrap();
    listing["nftables"]
        .as_array()
        .unwrap()
        .iter()
        .find_map(|object| object["counter"]["packets"].as_u64())
        .unwrap()
}

fn from_outside(topology: Topology, kube_proxy: KubeProxy) {
    let cluster = enforced(topology, kube_proxy);
    let (near, external) = (cluster.pod("near"), cluster.external());
    let (node1, node2) = (cluster.node("node1").unwrap(), cluster.node("node2").unwrap());
    count_marks(node1);
    for family in [Family::V4, Family::V6] {
        let listener = near.listen_in(family, 8000).unwrap();
        // The pod's own node: it is the external host that is judged and that the pod sees, in both modes.
        for port in [30080, 30081, 8088] {
            let mut carried = Carried::open(external, &listener, node1.at_in(family, port));
            assert_eq!(
                (carried.peer, carried.local.ip()),
                (carried.local, external.address_in(family)),
                "{port}"
            );
            carried.exchange(1_000, 70_000).unwrap();
            let local = carried.local;
            carried.close();
            let record = cluster.last_record("node1", local);
            assert_eq!(told(&record), "connection-ended client-closed");
            assert_eq!(
                record["sluice"]["ingress"]["policies"],
                serde_json::json!(["NetworkPolicy/default/near#0"])
            );
            let name = match port {
                30080 => Some("cluster"),
                30081 => Some("local"),
                // A port of the node that leads to a pod belongs to no Service.
                _ => None,
            };
            assert_eq!(
                dialed_service(&record),
                name.map(|name| (name, node1.at_in(family, port))),
                "{record}"
            );
        }
        // Through another node it comes from there, and no rule speaks of nodes.
        let socket = external.bound((external.address_in(family), 0)).unwrap();
        let error = socket.connect_timeout(&node2.at_in(family, 30080).into(), LIMIT).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::ConnectionRefused);
        let from_node2 = |record: &Value| {
            record["source"]["k8s"]["node"] == "node2"
                && record["destination"]["ip"] == near.address_in(family).to_string()
                && told(record) == "connection-denied policy-denied"
        };
        cluster.sluice("node1").wait_record(from_node2, LIMIT).unwrap();
        // Local traffic has no way through a node without a pod.
        let error = external.connect(node2.at_in(family, 30081), SILENCE).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::TimedOut);
        assert!(accept(&listener, Duration::ZERO).is_none());
        drop(listener);
        through_services(&cluster, family);
    }
    assert_eq!(counted_marks(node1), 2, "kube-proxy's mark is there beside the proxy's: once in each family");
    for family in [Family::V4, Family::V6] {
        node_ports_from_pods(&cluster, family);
    }
}

/// The Service that a record names, and where it was dialled.
fn dialed_service(record: &Value) -> Option<(&str, SocketAddr)> {
    let service = record["destination"].get("service")?;
    let ip: IpAddr = service["ip"].as_str().unwrap().parse().unwrap();
    let port = service["port"].as_u64().unwrap().try_into().unwrap();
    Some((service["name"].as_str().unwrap(), SocketAddr::new(ip, port)))
}

/// Pods dial ports of nodes too: their own node translates its own, by whichever of its addresses, and another's
/// there.
fn node_ports_from_pods(cluster: &Enforced, family: Family) {
    let (near, client) = (cluster.pod("near"), cluster.pod("client"));
    let listener = near.listen_in(family, 8000).unwrap();
    for node in ["node1", "node2"] {
        let to = cluster.node(node).unwrap().at_in(family, 30080);
        let socket = client.bound((client.address_in(family), 0)).unwrap();
        let local = socket.local_addr().unwrap().as_socket().unwrap();
        let outcome = socket.connect_timeout(&to.into(), LIMIT);
        // Through the other node it comes from there, and no rule speaks of nodes.
        assert_eq!(outcome.is_ok(), node == "node1", "{outcome:?}");
        // The server's side of the handshake may end a moment after the client's.
        let accepted = outcome.is_ok().then(|| accept(&listener, LIMIT).expect("the server's end"));
        drop((socket, accepted));
        let record = cluster.last_record("node1", local);
        assert_eq!(dialed_service(&record), Some(("cluster", to)), "{record}");
    }
}

fn through_services(cluster: &Enforced, family: Family) {
    let near = cluster.pod("near");
    let service = cluster.cluster_ip_in(family, "cluster", 80).unwrap();
    for client in ["client", "far"] {
        let listener = near.listen_in(family, 8000).unwrap();
        let carried = Carried::open(cluster.pod(client), &listener, service);
        assert_eq!(carried.peer, carried.local, "{client}");
        carried.close();
    }
    let stranger = cluster.pod("stranger");
    assert_eq!(stranger.connect(service, LIMIT).unwrap_err().kind(), ErrorKind::ConnectionRefused);
    let _answers = near.serve_udp_on((family.unspecified(), 8001)).unwrap();
    let to = cluster.cluster_ip_in(family, "cluster", 53).unwrap();
    for client in ["client", "far"] {
        let socket = cluster.pod(client).udp_to(to).unwrap();
        assert_eq!(ask(&socket, b"HELLO\n", ANSWER).unwrap(), socket.local_addr().unwrap());
    }
    let socket = stranger.udp_to(to).unwrap();
    assert_eq!(ask(&socket, b"HELLO\n", ANSWER).unwrap_err().kind(), ErrorKind::ConnectionRefused);
}

#[test]
fn ports_of_nodes_and_services_lead_to_routed_pods_by_kube_proxys_nftables_rules() {
    from_outside(Topology::Routed, KubeProxy::Nftables);
}

#[test]
fn ports_of_nodes_and_services_lead_to_routed_pods_by_kube_proxys_iptables_rules() {
    from_outside(Topology::Routed, KubeProxy::Iptables);
}

#[test]
fn ports_of_nodes_and_services_lead_to_bridged_pods_by_kube_proxys_nftables_rules() {
    from_outside(Topology::Bridge, KubeProxy::Nftables);
}

#[test]
fn ports_of_nodes_and_services_lead_to_pods_across_an_overlay_by_kube_proxys_iptables_rules() {
    from_outside(Topology::Vxlan, KubeProxy::Iptables);
}

/// A host's firewall whose INPUT drops what is not established, with an exception that tells of the proxy's mark.
fn firewall(exception: &str) -> String {
    format!(
        "table inet hostfw {{\n chain arriving {{\n type filter hook input priority filter; policy drop\n \
         iifname lo accept\n {exception}\n ct state established,related accept\n \
         meta l4proto {{ icmp, icmpv6 }} accept\n udp dport 8472 accept\n }}\n}}\n"
    )
}

fn behind_a_firewall(topology: Topology, backend: Backend) {
    let builder = builder(topology, KubeProxy::Nftables);
    let cluster = Enforced::start(builder, &[("policy.yaml", POLICY)], &backend.config());
    for node in cluster.nodes() {
        node.nft(&firewall("meta mark and 0x2 == 0x2 accept")).unwrap();
    }
    let (near, far) = (cluster.pod("near"), cluster.pod("far"));
    for family in [Family::V4, Family::V6] {
        through_services(&cluster, family);
        for (client, server) in [("client", near), ("far", near), ("near", far)] {
            let listener = server.listen_in(family, 8000).unwrap();
            let mut carried = Carried::open(cluster.pod(client), &listener, server.at_in(family, 8000));
            carried.exchange(1_000, 70_000).unwrap();
            carried.close();
        }
        let listener = cluster.external().listen_in(family, 80).unwrap();
        let mut carried = Carried::open(near, &listener, cluster.external().at_in(family, 80));
        carried.exchange(1_000, 70_000).unwrap();
        carried.close();
    }
}

#[test]
fn a_firewall_that_lets_the_proxys_mark_in_is_no_obstacle_for_routed_pods() {
    behind_a_firewall(Topology::Routed, Backend::Auto);
}

#[test]
fn a_firewall_that_lets_the_proxys_mark_in_is_no_obstacle_with_rules_of_iptables() {
    behind_a_firewall(Topology::Routed, Backend::IptablesNft);
}

#[test]
fn a_firewall_that_lets_the_proxys_mark_in_is_no_obstacle_for_bridged_pods_across_an_overlay() {
    behind_a_firewall(Topology::Vxlan, Backend::Auto);
}

#[test]
fn a_firewall_that_does_not_keeps_connections_closed_and_the_server_hears_of_none_that_is_denied() {
    let cluster = enforced(Topology::Routed, KubeProxy::Nftables);
    cluster.node("node1").unwrap().nft(&firewall("")).unwrap();
    let near = cluster.pod("near");
    for family in [Family::V4, Family::V6] {
        let listener = near.listen_in(family, 8000).unwrap();
        let to = near.at_in(family, 8000);
        assert_eq!(cluster.pod("client").connect(to, SILENCE).unwrap_err().kind(), ErrorKind::TimedOut);
        assert!(cluster.pod("stranger").connect(to, SILENCE).is_err());
        assert!(accept(&listener, Duration::ZERO).is_none());
    }
}

/// Wires one more pod to node1 the way the others are.
fn attach(cluster: &Enforced, round: u8, own: IpAddr) -> Netns {
    let late = Netns::create("late").unwrap();
    let node = cluster.node("node1").unwrap();
    let veth = format!("late{round}");
    node.ip(&format!("link add {veth} type veth peer name eth0 netns {}\n", late.name())).unwrap();
    if cluster.topology().is_bridged() {
        node.ip(&format!("link set {veth} master cni0 up\n")).unwrap();
        // The bridge plugin announces an address, so that nobody sends to the hardware address it had before.
        late.sysctl("net.ipv4.conf.eth0.arp_notify", "1").unwrap();
        // Here within the second in which the kernel believes no announcement (arp(7), locktime).
        node.sysctl("net.ipv4.neigh.cni0.locktime", "0").unwrap();
        late.ip(&format!(
            "address add {own}/24 dev eth0\nlink set eth0 up\nroute add default via 10.244.1.1\n"
        ))
        .unwrap();
    } else {
        node.ip(&format!("link set {veth} up\nroute add {own}/32 dev {veth}\n")).unwrap();
        node.sysctl(&format!("net.ipv4.conf.{veth}.proxy_arp"), "1").unwrap();
        node.sysctl(&format!("net.ipv4.neigh.{veth}.proxy_delay"), "0").unwrap();
        late.ip(&format!(
            "link set eth0 up\naddress add {own}/32 dev eth0\nroute add 169.254.1.1 dev eth0 scope link\n\
             route add default via 169.254.1.1 dev eth0\n"
        ))
        .unwrap();
    }
    late
}

fn pod_object(name: &str, app: &str, address: IpAddr) -> String {
    format!(
        "apiVersion: v1\nkind: Pod\nmetadata: {{name: {name}, namespace: default, uid: {name}, labels: {{app: {app}}}}}\n\
         spec: {{nodeName: node1, containers: [{{name: c, image: i}}]}}\n\
         status: {{phase: Running, podIP: {address}, podIPs: [{{ip: {address}}}]}}\n"
    )
}

/// Asks from an address and port.
fn ask_from(netns: &Netns, from: SocketAddr, to: SocketAddr) -> std::io::Result<SocketAddr> {
    let socket = netns.udp(from)?;
    socket.connect(to)?;
    ask(&socket, b"HELLO\n", ANSWER)
}

/// One address goes from pod to pod: the first may reach the server, the second may not, and so on.
fn pods_come_and_go(topology: Topology, backend: Backend) {
    let builder = builder(topology, KubeProxy::Nftables).families(Families::V4);
    let cluster = Enforced::start(builder, &[("policy.yaml", POLICY)], &backend.config());
    let near = cluster.pod("near");
    let listener = near.listen(8000).unwrap();
    let mut kept = Carried::open(cluster.pod("client"), &listener, near.at(8000));
    let _answers = near.serve_udp(8001).unwrap();
    let own = IpAddr::from([10, 244, 1, 200]);
    for round in 0..6_u8 {
        let (name, app) = (format!("late{round}"), if round % 2 == 0 { "client" } else { "other" });
        let late = attach(&cluster, round, own);
        assert!(kept.is_alive());
        let from = SocketAddr::new(own, 40_000 + u16::from(round));
        // Nobody knows the pod yet: held, and decided by the first snapshot that does.
        let outcome = std::thread::scope(|scope| {
            let attempt = scope.spawn(|| late.connect_from(from, near.at(8000), LIMIT));
            cluster.wait_metric("node1", "sluice_gate_pending", 1.0);
            cluster
                .change(|cluster| cluster.write_policy("late.yaml", &pod_object(&name, app, own)).unwrap());
            attempt.join().unwrap()
        });
        let expected = if app == "client" {
            let mut carried = Carried::accept(outcome.unwrap(), &listener);
            assert!(carried.is_alive());
            let answer = ask_from(&late, SocketAddr::new(own, 41_000), near.at(8001));
            assert_eq!(answer.unwrap(), SocketAddr::new(own, 41_000));
            // Its pod goes, and the connection with it.
            cluster.change(|cluster| cluster.remove_policy("late.yaml").unwrap());
            assert!(carried.is_reset());
            "connection-ended policy-revoked"
        } else {
            assert_eq!(outcome.unwrap_err().kind(), ErrorKind::ConnectionRefused);
            // The flow of the pod that had the address before is no excuse for the one that has it now.
            let answer = ask_from(&late, SocketAddr::new(own, 41_000), near.at(8001));
            assert_eq!(answer.unwrap_err().kind(), ErrorKind::ConnectionRefused);
            cluster.change(|cluster| cluster.remove_policy("late.yaml").unwrap());
            "connection-denied policy-denied"
        };
        let last = |record: &Value| is_from(record, from) && told(record) == expected;
        let record = cluster.sluice("node1").wait_record(last, LIMIT).unwrap();
        assert_eq!(record["source"]["k8s"]["pod"], name, "{record}");
        cluster.node("node1").unwrap().ip(&format!("link del {name}\n")).unwrap();
        drop(late);
        assert!(kept.is_alive());
    }
}

#[test]
fn routed_pods_come_and_go_under_traffic() {
    pods_come_and_go(Topology::Routed, Backend::Auto);
}

#[test]
fn bridged_pods_come_and_go_under_traffic() {
    pods_come_and_go(Topology::Bridge, Backend::Auto);
}

#[test]
fn routed_pods_come_and_go_under_traffic_with_rules_of_iptables() {
    pods_come_and_go(Topology::Routed, Backend::IptablesLegacy);
}
