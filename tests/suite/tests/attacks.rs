//! Whoever may open a raw socket in a pod sends what it likes: odd flags, fragments, options, extension headers, the addresses
//! of others, packets of an overlay. None of it reaches a pod that denies it.

#![expect(clippy::unwrap_used, reason = "a panic in a test is its failure report")]

use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr};

use lab::{
    Backend, Cluster, ClusterBuilder, Families, Family, PodSpec, Topology, ask, patiently, wait_until,
};
use suite::enforced::{Enforced, LIMIT};
use suite::flows::ANSWER;
use suite::forged::{
    Ear, Extension, Forger, MORE, SCTP, TCP, UDP, four, fragment_header, plain, sctp, six, tcp, udp,
};
use suite::sctp::init;

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
const PORT: u16 = 8000;
const MARKER: &[u8] = b"FORGED--";

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

/// Fragments of what follows the IP header, cut at these places, which are multiples of eight.
fn fragments(ends: [IpAddr; 2], protocol: u8, payload: &[u8], cuts: &[usize], number: u8) -> Vec<Vec<u8>> {
    let begins = [&[0], cuts].concat();
    let all_ends = [cuts, &[payload.len()]].concat();
    let piece = |(begin, end): (&usize, &usize)| {
        let (offset, more) = (u16::try_from(begin / 8).unwrap(), *end < payload.len());
        let part = &payload[*begin..*end];
        match ends[0] {
            IpAddr::V4(_) => {
                let field = if more { offset | MORE } else { offset };
                four(ends, protocol, field, 0x4000 | u16::from(number), &[], part)
            }
            IpAddr::V6(_) => six(ends, &[fragment_header(offset, more, number)], protocol, part),
        }
    };
    begins.iter().zip(&all_ends).map(piece).collect()
}

/// Every way of beginning something that was thought of, each as the packets that it takes. No two begin from the same port.
fn attempts(from: IpAddr, to: IpAddr, first_port: u16) -> Vec<(String, Vec<Vec<u8>>)> {
    let ends = [from, to];
    let to = SocketAddr::new(to, PORT);
    let mut ports = first_port..;
    let mut next = || SocketAddr::new(from, ports.next().unwrap());
    let mut all: Vec<(String, Vec<Vec<u8>>)> = Vec::new();
    // Every set of flags, ECN's with the opening one; a SYN with data, as TCP fast open has it (RFC 7413).
    for flags in (0..64).chain([0xc2, 0x42, 0x82]) {
        let segment = tcp(next(), to, flags, b"");
        all.push((format!("TCP with the flags {flags:#04x}"), vec![plain(ends, TCP, &segment)]));
    }
    all.push(("a SYN with data".into(), vec![plain(ends, TCP, &tcp(next(), to, 2, MARKER))]));
    let payload = MARKER.repeat(8);
    all.push(("a datagram".into(), vec![plain(ends, UDP, &udp(next(), to, &payload))]));
    let nowhere = SocketAddr::new(from, 0);
    all.push(("a datagram from port 0".into(), vec![plain(ends, UDP, &udp(nowhere, to, &payload))]));
    let to_zero = SocketAddr::new(to.ip(), 0);
    all.push(("a datagram to port 0".into(), vec![plain(ends, UDP, &udp(next(), to_zero, &payload))]));
    // A DATA chunk bundled with an INIT, and chunks that begin nothing (RFC 9260, section 3.3).
    let (data, cookie, heartbeat, abort) = (
        b"\0\x03\0\x14\0\0\0\x01\0\0\0\0\0\0\0\0FORG",
        b"\x0a\0\0\x08COOK",
        b"\x04\0\0\x0c\0\x01\0\x08BEAT",
        b"\x06\0\0\x04",
    );
    let begin = next();
    all.push(("an INIT".into(), vec![plain(ends, SCTP, &init(begin.port(), PORT))]));
    let beginning = init(next().port(), PORT)[12..].to_vec();
    let bundles: [(&str, u32, Vec<&[u8]>); 6] = [
        ("INIT and DATA", 0, vec![&beginning, data]),
        ("DATA", 7, vec![data]),
        ("COOKIE ECHO and DATA", 7, vec![cookie, data]),
        ("HEARTBEAT", 7, vec![heartbeat]),
        ("ABORT", 7, vec![abort]),
        ("nothing", 7, vec![]),
    ];
    for (name, tag, chunks) in bundles {
        all.push((format!("SCTP: {name}"), vec![plain(ends, SCTP, &sctp(next(), to, tag, &chunks))]));
    }
    for (number, cuts) in [&[8][..], &[16], &[8, 16, 24, 32, 40], &[64]].iter().enumerate() {
        let number = u8::try_from(number).unwrap() * 8 + 1;
        let datagram = udp(next(), to, &payload);
        let pieces = fragments(ends, UDP, &datagram, cuts, number);
        let backwards = fragments(ends, UDP, &udp(next(), to, &payload), cuts, number + 1);
        all.push((format!("a datagram cut at {cuts:?}"), pieces));
        all.push((
            format!("a datagram cut at {cuts:?}, last part first"),
            backwards.into_iter().rev().collect(),
        ));
        let syn = tcp(next(), to, 2, &payload);
        all.push((format!("a SYN cut at {cuts:?}"), fragments(ends, TCP, &syn, cuts, number + 2)));
        let bundle = sctp(next(), to, 0, &[&beginning, data]);
        if cuts.iter().all(|cut| *cut < bundle.len()) {
            all.push((format!("an INIT cut at {cuts:?}"), fragments(ends, SCTP, &bundle, cuts, number + 3)));
        }
    }
    // The ports of the first part written over by a second one.
    let mut overlapping = fragments(ends, UDP, &udp(next(), to, &payload), &[16], 90);
    let other = fragments(ends, UDP, &udp(next(), SocketAddr::new(to.ip(), 53), &payload), &[16], 90);
    overlapping.insert(0, other[0].clone());
    all.push(("a datagram in parts that overlap".into(), overlapping));
    all.push(("a last part alone".into(), vec![fragments(ends, UDP, &payload, &[8], 91).remove(1)]));
    match ends[0] {
        IpAddr::V4(_) => with_options(&mut all, ends, &mut next),
        IpAddr::V6(_) => with_extensions(&mut all, ends, &mut next),
    }
    all
}

/// RFC 791, section 3.1: no operation, record route, both kinds of source route, and a length that is none.
fn with_options(
    all: &mut Vec<(String, Vec<Vec<u8>>)>,
    ends: [IpAddr; 2],
    next: &mut impl FnMut() -> SocketAddr,
) {
    let to = SocketAddr::new(ends[1], PORT);
    let options: [(&str, Vec<u8>); 4] = [
        ("40 bytes of nothing", vec![1; 40]),
        ("a recorded route", [&[7, 39, 4][..], &[0; 37]].concat()),
        ("a router alert", vec![148, 4, 0, 0]),
        ("a timestamp", [&[68, 36, 5, 0][..], &[0; 32]].concat()),
    ];
    for (name, option) in options {
        all.push((
            format!("UDP behind {name}"),
            vec![four(ends, UDP, 0, 0, &option, &udp(next(), to, MARKER))],
        ));
        all.push((
            format!("a SYN behind {name}"),
            vec![four(ends, TCP, 0, 0, &option, &tcp(next(), to, 2, b""))],
        ));
    }
    let mut unsummed = udp(next(), to, MARKER);
    unsummed[6..8].fill(0);
    all.push(("a datagram without a checksum".into(), vec![plain(ends, UDP, &unsummed)]));
}

/// RFC 8200, section 4: each extension once, many of one kind, some in an order that no host sends, and fragments within
/// what looks like the only fragment of its packet (RFC 6946).
fn with_extensions(
    all: &mut Vec<(String, Vec<Vec<u8>>)>,
    ends: [IpAddr; 2],
    next: &mut impl FnMut() -> SocketAddr,
) {
    let to = SocketAddr::new(ends[1], PORT);
    let padding = || vec![0, 0, 1, 4, 0, 0, 0, 0];
    let mut long = vec![0, 31, 1, 250];
    long.extend(vec![0; 252]);
    let route = |kind: u8| [&[0, 2, kind, 0, 0, 0, 0, 0][..], &[0; 16]].concat();
    let only = |number| fragment_header(0, false, number);
    let chains: Vec<(&str, Vec<Extension>)> = vec![
        ("options for every hop", vec![(0, padding())]),
        ("options for the destination", vec![(60, padding())]),
        ("248 bytes of options", vec![(60, long)]),
        ("eight extensions", vec![(60, padding()); 8]),
        ("a route of kind 0 at its end", vec![(43, route(0))]),
        ("a route of kind 2 at its end", vec![(43, route(2))]),
        ("a fragment header of an only part", vec![only(101)]),
        ("two of them", vec![only(102), only(103)]),
        ("one between options", vec![(60, padding()), only(104), (60, padding())]),
        ("options for every hop in the wrong place", vec![(60, padding()), (0, padding())]),
    ];
    for (name, chain) in chains {
        all.push((format!("UDP behind {name}"), vec![six(ends, &chain, UDP, &udp(next(), to, MARKER))]));
        all.push((format!("a SYN behind {name}"), vec![six(ends, &chain, TCP, &tcp(next(), to, 2, b""))]));
    }
    let datagram = udp(next(), to, &MARKER.repeat(8));
    let within = |offset: u16, more, number, part: &[u8]| {
        six(ends, &[only(number), fragment_header(offset, more, 105)], UDP, part)
    };
    let hidden = vec![within(0, true, 106, &datagram[..16]), within(2, false, 107, &datagram[16..])];
    all.push(("a datagram in parts, each within an only part".into(), hidden));
    let mut unsummed = udp(next(), to, MARKER);
    unsummed[6..8].fill(0);
    all.push(("a datagram without a checksum".into(), vec![plain(ends, UDP, &unsummed)]));
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

/// First packets from `source`, which is not the sender's own address.
fn first_packets(source: SocketAddr, to: SocketAddr) -> Vec<Vec<u8>> {
    let ends = [source.ip(), to.ip()];
    vec![
        plain(ends, UDP, &udp(source, to, MARKER)),
        plain(ends, TCP, &tcp(source, to, 2, MARKER)),
        plain(ends, SCTP, &init(source.port(), to.port())),
    ]
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
    // Pods of one bridge are not told apart by where they send from.
    if !cluster.topology().is_bridged() {
        sources.extend([near, cluster.pod("client").address_in(family)]);
    }
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
