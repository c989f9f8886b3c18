//! Whoever may open a raw socket in a pod sends what it likes: odd flags, fragments, options, extension headers, the addresses
//! of others, packets of an overlay. None of it reaches a pod that denies it.

#![expect(clippy::unwrap_used, reason = "a panic in a test is its failure report")]

use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr};

use lab::{
    Backend, Cluster, ClusterBuilder, Families, Family, PodSpec, Topology, ask, patiently, wait_until,
};
use suite::attempts::{MARKER, PORT, attempts, first_packets, fragments};
use suite::enforced::{Enforced, LIMIT};
use suite::flows::ANSWER;
use suite::forged::{Ear, Forger, UDP, plain, udp};

/// `near` and `far` are open to `client`, and to nobody else.
const POLICY: &str = "\
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: server, namespace: default}
spec:
  podSelector: {matchLabels: {app: server}}
  policyTypes: [Ingress]
  ingress: [{from: [{podSelector: {matchLabels: {app: client}}}]}]
";

fn builder(topology: Topology) -> ClusterBuilder {
    Cluster::builder()
        .nodes(2)
        .topology(topology)
        .families(Families::Dual)
        .pod(PodSpec::new("client").on("node1").label("app", "client"))
        .pod(PodSpec::new("stranger").on("node1"))
        .pod(PodSpec::new("near").on("node1").label("app", "server"))
        .pod(PodSpec::new("distant").on("node2").label("app", "client"))
        .pod(PodSpec::new("far").on("node2").label("app", "server"))
}

fn config(backend: Backend) -> String {
    format!("redirect: {{backend: {backend}}}\n")
}

/// What a server hears of one sender.
fn heard(ear: &Ear, from: IpAddr) -> usize {
    let source = |packet: &Vec<u8>| match from {
        IpAddr::V4(from) => packet[0] >> 4 == 4 && packet[12..16] == from.octets(),
        IpAddr::V6(from) => packet[0] >> 4 == 6 && packet[8..24] == from.octets(),
    };
    ear.packets().iter().filter(|packet| source(packet)).count()
}

/// Returns when everything that this pod has sent before was judged.
fn until_all_is_judged(cluster: &Enforced, family: Family) {
    for server in ["near", "far"] {
        let socket = cluster.pod("stranger").udp_to(cluster.pod(server).at_in(family, 9)).unwrap();
        assert!(ask(&socket, b"HELLO\n", ANSWER).is_err());
    }
    for node in ["node1", "node2"] {
        assert!(wait_until(LIMIT, || cluster.metric(node, "sluice_gate_pending") == 0.0));
    }
}

fn nothing_arrives(topology: Topology, backend: Backend) {
    let cluster = builder(topology).build().unwrap();
    cluster.write_policy("policy.yaml", POLICY).unwrap();
    let ears = ["near", "far"].map(|server| Ear::open(cluster.pod(server).unwrap()));
    for family in [Family::V4, Family::V6] {
        let stranger = cluster.pod("stranger").unwrap();
        let (forger, from) = (Forger::open(stranger), stranger.address_in(family));
        for (server, ear) in ["near", "far"].iter().zip(&ears) {
            let to = cluster.pod(server).unwrap().address_in(family);
            // For the first packet a neighbour has to be found.
            let _ = ask(&stranger.udp_to((to, 9)).unwrap(), b"HELLO\n", ANSWER);
            let attempts = attempts(from, to, 20_000);
            let mut arrived = 0;
            attempts.iter().flat_map(|(_, packets)| packets).for_each(|packet| forger.send(packet));
            let most = wait_until(LIMIT, || {
                arrived += heard(ear, from);
                arrived > attempts.len() * 3 / 4
            });
            assert!(most, "without Sluice {arrived} packets of {} attempts arrive", attempts.len());
        }
    }
    let cluster = Enforced::on(cluster, &["node1", "node2"], &config(backend));
    for family in [Family::V4, Family::V6] {
        let stranger = cluster.pod("stranger");
        let (forger, from) = (Forger::open(stranger), stranger.address_in(family));
        for (server, ear) in ["near", "far"].iter().zip(&ears) {
            until_all_is_judged(&cluster, family);
            ear.packets();
            let mut arrived = Vec::new();
            for (name, packets) in attempts(from, cluster.pod(server).address_in(family), 30_000) {
                packets.iter().for_each(|packet| forger.send(packet));
                if heard(ear, from) > 0 {
                    arrived.push(name);
                }
            }
            // The marks by which rules and gate speak to each other do not leave a pod.
            let to = cluster.pod(server).at_in(family, PORT);
            for (port, mark) in (50_000..).zip(0_u32..0x80) {
                forger.mark(mark);
                first_packets(SocketAddr::new(from, port), to).iter().for_each(|packet| forger.send(packet));
            }
            forger.mark(0);
            until_all_is_judged(&cluster, family);
            assert_eq!((heard(ear, from), arrived), (0, Vec::new()), "{family:?} {server}");
        }
    }
    for node in ["node1", "node2"] {
        assert!(!cluster.sluice(node).stderr().contains("panicked"));
    }
}

#[test]
fn nothing_that_is_made_by_hand_reaches_a_routed_pod() {
    nothing_arrives(Topology::Routed, Backend::Auto);
}

#[test]
fn nothing_that_is_made_by_hand_reaches_a_bridged_pod() {
    nothing_arrives(Topology::Bridge, Backend::Auto);
}

#[test]
fn nothing_that_is_made_by_hand_passes_rules_of_iptables_nft() {
    nothing_arrives(Topology::Routed, Backend::IptablesNft);
}

#[test]
fn nothing_that_is_made_by_hand_passes_rules_of_iptables_legacy_and_a_bridge() {
    nothing_arrives(Topology::Bridge, Backend::IptablesLegacy);
}

/// Where packets to 127.0.0.0/8 may come from outside, as kube-proxy has it, a pod finds the proxy's own listener.
#[test]
fn the_listener_cannot_be_dialled_into_a_loop() {
    let cluster = enforced(Topology::Routed, Backend::Auto);
    let (node, stranger) = (cluster.node("node1").unwrap(), cluster.pod("stranger"));
    for netns in [node.netns(), stranger.netns()] {
        netns.sysctl("net.ipv4.conf.all.route_localnet", "1").unwrap();
    }
    stranger.ip("address del 127.0.0.1/8 dev lo\nroute add 127.0.0.0/8 via 169.254.1.1 dev eth0\n").unwrap();
    for _ in 0..3 {
        if let Ok(mut stream) = stranger.connect(SocketAddr::from(([127, 0, 0, 1], 15_093)), LIMIT) {
            let _ = stream.write_all(b"HELLO\n");
            stream.set_read_timeout(Some(patiently(LIMIT))).unwrap();
            let end = stream.read(&mut [0; 16]);
            assert!(!end.as_ref().is_ok_and(|read| *read > 0), "{end:?}");
        }
    }
    assert!(wait_until(LIMIT, || cluster.metric("node1", "sluice_connections_live") == 0.0));
    assert!(cluster.metric("node1", "sluice_gate_packets_total") <= 6.0);
    assert_eq!(cluster.sluice("node1").get("/readyz").unwrap().0, 200);
}

fn enforced(topology: Topology, backend: Backend) -> Enforced {
    Enforced::start(builder(topology), &[("policy.yaml", POLICY)], &config(backend))
}

fn strange_sources(cluster: &Enforced, family: Family, near: IpAddr) -> Vec<IpAddr> {
    let mut sources = vec![
        cluster.node("node1").unwrap().address_in(family),
        cluster.node("node2").unwrap().address_in(family),
        cluster.pod("distant").address_in(family),
        cluster.external().address_in(family),
    ];
    let odd: &[&str] = match family {
        Family::V4 => {
            &["0.0.0.0", "127.0.0.1", "224.0.0.1", "255.255.255.255", "169.254.1.1", "10.244.1.255"]
        }
        Family::V6 => &["::", "::1", "ff02::1", "fe80::1", "fe80::77", "::ffff:10.244.1.2"],
    };
    sources.extend(odd.iter().map(|source| source.parse::<IpAddr>().unwrap()));
    sources.extend([near, cluster.pod("client").address_in(family)]);
    sources
}

fn no_borrowed_address_opens_anything(topology: Topology, backend: Backend) {
    let cluster = enforced(topology, backend);
    let forger = Forger::open(cluster.pod("stranger"));
    let ears = ["near", "far"].map(|server| (server, Ear::open(cluster.pod(server))));
    for family in [Family::V4, Family::V6] {
        for (server, ear) in &ears {
            let to = cluster.pod(server).at_in(family, PORT);
            until_all_is_judged(&cluster, family);
            ear.packets();
            for (port, source) in (20_000..).zip(strange_sources(&cluster, family, to.ip())) {
                let packets = first_packets(SocketAddr::new(source, port), to);
                packets.iter().for_each(|packet| forger.send(packet));
                until_all_is_judged(&cluster, family);
                assert_eq!(ear.packets(), Vec::<Vec<u8>>::new(), "{source} to {server}");
            }
        }
    }
}

#[test]
fn no_borrowed_address_opens_anything_between_routed_pods() {
    no_borrowed_address_opens_anything(Topology::Routed, Backend::Auto);
}

#[test]
fn no_borrowed_address_opens_anything_on_a_bridge() {
    no_borrowed_address_opens_anything(Topology::Bridge, Backend::Auto);
}

#[test]
fn no_borrowed_address_opens_anything_with_rules_of_iptables() {
    no_borrowed_address_opens_anything(Topology::Routed, Backend::IptablesNft);
    no_borrowed_address_opens_anything(Topology::Routed, Backend::IptablesLegacy);
}

/// A flow that was accepted is its two ends' own: nobody else sends in it, whatever addresses it writes.
fn a_live_flow_takes_nothing_from_others(backend: Backend) {
    let cluster = enforced(Topology::Routed, backend);
    let (client, near) = (cluster.pod("client"), cluster.pod("near"));
    let forger = Forger::open(cluster.pod("stranger"));
    let ears = [("client", Ear::open(client)), ("near", Ear::open(near))];
    for family in [Family::V4, Family::V6] {
        let server = near.serve_udp_on((family.unspecified(), PORT)).unwrap();
        let to = near.at_in(family, PORT);
        let socket = client.udp_to(to).unwrap();
        let from = socket.local_addr().unwrap();
        assert_eq!(ask(&socket, b"HELLO\n", ANSWER).unwrap(), from);
        // As the client, and as the server that answers; in one piece and in two.
        for (source, destination) in [(from, to), (to, from)] {
            let (ends, datagram) =
                ([source.ip(), destination.ip()], udp(source, destination, &MARKER.repeat(8)));
            forger.send(&plain(ends, UDP, &datagram));
            fragments(ends, UDP, &datagram, &[16], 120).iter().for_each(|part| forger.send(part));
        }
        until_all_is_judged(&cluster, family);
        for (name, ear) in &ears {
            assert_eq!(ear.packets_with(MARKER), Vec::<Vec<u8>>::new(), "{family:?} {name}");
        }
        assert_eq!(ask(&socket, b"HELLO\n", ANSWER).unwrap(), from, "the flow itself goes on");
        drop(server);
    }
}

#[test]
fn nobody_else_sends_in_a_live_flow() {
    a_live_flow_takes_nothing_from_others(Backend::Auto);
}

#[test]
fn nobody_else_sends_in_a_live_flow_with_rules_of_iptables() {
    a_live_flow_takes_nothing_from_others(Backend::IptablesNft);
    a_live_flow_takes_nothing_from_others(Backend::IptablesLegacy);
}

/// Where a sender was found is remembered for a moment, and not for as long as it sends.
#[test]
fn a_sender_whose_address_is_routed_elsewhere_is_believed_no_longer() {
    let cluster = enforced(Topology::Routed, Backend::Auto);
    let (client, near, node) = (cluster.pod("client"), cluster.pod("near"), cluster.node("node1").unwrap());
    let ear = Ear::open(near);
    for family in [Family::V4, Family::V6] {
        let server = near.serve_udp_on((family.unspecified(), PORT)).unwrap();
        let socket = client.udp_to(near.at_in(family, PORT)).unwrap();
        assert_eq!(ask(&socket, b"HELLO\n", ANSWER).unwrap(), socket.local_addr().unwrap());
        let elsewhere = near.veth().unwrap();
        node.ip(&format!("route replace {} dev {elsewhere}\n", client.address_in(family))).unwrap();
        let refused = wait_until(LIMIT, || {
            ear.packets();
            socket.send(MARKER).unwrap();
            until_all_is_judged(&cluster, family);
            ear.packets_with(MARKER).is_empty()
        });
        assert!(refused, "{family:?}");
        drop(server);
    }
}

/// A packet in a packet of the overlay, as another node would send it: RFC 7348, section 5.
fn in_overlay(from: SocketAddr, to: IpAddr, node: u8, inner: &[u8]) -> Vec<u8> {
    let frame_type: [u8; 2] = if inner[0] >> 4 == 4 { [0x08, 0] } else { [0x86, 0xdd] };
    let header = [8, 0, 0, 0, 0, 0, 1, 0];
    let hardware = |last| [0x0e, 0, 0, 0, 0, last];
    let frame = [&header[..], &hardware(node), &hardware(3 - node), &frame_type, inner].concat();
    plain([from.ip(), to], UDP, &udp(from, SocketAddr::new(to, 8472), &frame))
}

/// `near` from a pod of node2 by way of node1's own overlay device, and `far` from one of node1 by way of node2's.
fn smuggled(cluster: &Cluster, family: Family, port: u16) -> [Vec<u8>; 2] {
    let stranger = cluster.pod("stranger").unwrap();
    [("near", "distant", 1), ("far", "client", 2)].map(|(server, claimed, number)| {
        let to = cluster.pod(server).unwrap().at_in(family, PORT);
        let claimed = cluster.pod(claimed).unwrap().at_in(family, port);
        let inner = plain([claimed.ip(), to.ip()], UDP, &udp(claimed, to, MARKER));
        let node = cluster.node(&format!("node{number}")).unwrap().address_in(family);
        in_overlay(stranger.at_in(family, port), node, number, &inner)
    })
}

fn no_pod_speaks_for_an_overlay(backend: Backend) {
    let cluster = builder(Topology::Vxlan).build().unwrap();
    cluster.write_policy("policy.yaml", POLICY).unwrap();
    let ears = ["near", "far"].map(|server| Ear::open(cluster.pod(server).unwrap()));
    let forger = Forger::open(cluster.pod("stranger").unwrap());
    for family in [Family::V4, Family::V6] {
        for (packet, ear) in smuggled(&cluster, family, 20_000).iter().zip(&ears) {
            let arrives = wait_until(LIMIT, || {
                forger.send(packet);
                !ear.packets_with(MARKER).is_empty()
            });
            assert!(arrives, "{family:?}: without Sluice it arrives");
        }
    }
    let cluster = Enforced::on(cluster, &["node1", "node2"], &config(backend));
    for family in [Family::V4, Family::V6] {
        for (packet, ear) in smuggled(&cluster, family, 30_000).iter().zip(&ears) {
            (0..3).for_each(|_| forger.send(packet));
            until_all_is_judged(&cluster, family);
            assert_eq!(ear.packets_with(MARKER), Vec::<Vec<u8>>::new(), "{family:?}");
        }
        // The overlay itself works.
        let server = cluster.pod("far").serve_udp_on((family.unspecified(), PORT)).unwrap();
        let socket = cluster.pod("client").udp_to(cluster.pod("far").at_in(family, PORT)).unwrap();
        assert_eq!(ask(&socket, b"HELLO\n", ANSWER).unwrap(), socket.local_addr().unwrap());
        drop(server);
    }
}

#[test]
fn no_pod_speaks_for_an_overlay_of_its_node() {
    no_pod_speaks_for_an_overlay(Backend::Auto);
}

#[test]
fn no_pod_speaks_for_an_overlay_with_rules_of_iptables() {
    no_pod_speaks_for_an_overlay(Backend::IptablesNft);
}
