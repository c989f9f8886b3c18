//! Pods that share a bridge: nothing between two of them passes the node unseen, and a node where it could is not
//! ready.

#![expect(clippy::unwrap_used, reason = "a panic in a test is its failure report")]

use std::fs;
use std::io::ErrorKind;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV6, UdpSocket};
use std::os::fd::AsRawFd;
use std::time::Duration;

use lab::{
    Cluster, ClusterBuilder, Families, Family, Netns, Node, PodSpec, SluiceOptions, Topology, UdpServer, ask,
    wait_until,
};
use nix::sys::socket::{self, AddressFamily, LinkAddr, MsgFlags, SockFlag, SockType};
use socket2::SockRef;
use suite::carried::{Carried, accept};
use suite::enforced::{Enforced, LIMIT, told};

/// `server` is open to `client` on ports 8000 to 8999, and to nobody else.
const POLICY: &str = "\
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: server, namespace: default}
spec:
  podSelector: {matchLabels: {app: server}}
  policyTypes: [Ingress]
  ingress:
  - from: [{podSelector: {matchLabels: {app: client}}}]
    ports: [{protocol: TCP, port: 8000, endPort: 8999}]
";
const SILENCE: Duration = Duration::from_millis(400);
/// What makes a node tell pods of the shorter way across the bridge.
const REDIRECTS: [&str; 2] = ["net.ipv4.conf.all.send_redirects", "net.ipv4.conf.cni0.send_redirects"];
/// What shows bridged frames to iptables.
const SETTINGS: [&str; 2] = ["net.bridge.bridge-nf-call-iptables", "net.bridge.bridge-nf-call-ip6tables"];

fn bridged(families: Families) -> ClusterBuilder {
    Cluster::builder()
        .topology(Topology::Bridge)
        .families(families)
        .pod(PodSpec::new("client").label("app", "client"))
        .pod(PodSpec::new("stranger"))
        .pod(PodSpec::new("server").label("app", "server"))
}

fn enforced(families: Families) -> Enforced {
    Enforced::start(bridged(families), &[("policy.yaml", POLICY)], "")
}

/// The address that the kernel gave a pod's interface, as that pod's neighbours write it.
fn link_local(pod: &Netns, seen_from: &Netns) -> Option<SocketAddrV6> {
    let table = |netns: &Netns| netns.run(|| fs::read_to_string("/proc/thread-self/net/if_inet6").unwrap());
    let of_eth0 = |text: &str| {
        let line = text.lines().find(|line| line.ends_with("eth0") && line.starts_with("fe80"))?.to_owned();
        let fields: Vec<&str> = line.split_whitespace().collect();
        let number = |index: usize| u128::from_str_radix(fields.get(index)?, 16).ok();
        // Not yet while it is tentative: include/uapi/linux/if_addr.h, IFA_F_TENTATIVE.
        let (address, scope) = (number(0)?, u32::try_from(number(1)?).ok()?);
        (number(4)? & 0x40 == 0).then_some((Ipv6Addr::from(address), scope))
    };
    let (address, _) = of_eth0(&table(pod))?;
    let (_, scope) = of_eth0(&table(seen_from))?;
    Some(SocketAddrV6::new(address, 9000, 0, scope))
}

/// What reaches the server's wildcard sockets in ways that no policy names: at its link-local address by TCP and
/// UDP, and by a datagram to every pod of the link.
fn by_the_side_ways(cluster: &Cluster) -> Vec<&'static str> {
    let (stranger, server) = (cluster.pod("stranger").unwrap(), cluster.pod("server").unwrap());
    let listener = server.listen_on((Ipv6Addr::UNSPECIFIED, 9000)).unwrap();
    let datagrams = server.serve_udp_on((Ipv6Addr::UNSPECIFIED, 9000)).unwrap();
    let mut reached = Vec::new();
    let mut beside = None;
    assert!(wait_until(LIMIT, || {
        beside = link_local(server, stranger);
        beside.is_some()
    }));
    let to = SocketAddr::V6(beside.unwrap());
    let sender = |local: IpAddr| stranger.udp((local, 0)).unwrap();
    if stranger.connect(to, SILENCE).is_ok() && accept(&listener, SILENCE).is_some() {
        reached.push("link-local TCP");
    }
    let mut send = |name, server: &UdpServer, socket: UdpSocket, to: SocketAddr| {
        let before = server.received();
        socket.send_to(b"HELLO\n", to).unwrap();
        if wait_until(SILENCE, || server.received() > before) {
            reached.push(name);
        }
    };
    send("link-local UDP", &datagrams, sender(Ipv6Addr::UNSPECIFIED.into()), to);
    if cluster.families() != Families::V6 {
        // A socket of both families hears no group of IPv4.
        let of_ipv4 = server.serve_udp(9001).unwrap();
        let socket = sender(Ipv4Addr::UNSPECIFIED.into());
        socket.set_broadcast(true).unwrap();
        send("broadcast", &of_ipv4, socket, SocketAddr::from(([10, 244, 1, 255], 9001)));
        let socket = sender(stranger.address().into());
        send("IPv4 group", &of_ipv4, socket, SocketAddr::from(([224, 0, 0, 1], 9001)));
    }
    let socket = sender(Ipv6Addr::UNSPECIFIED.into());
    let scope = beside.unwrap().scope_id();
    SockRef::from(&socket).set_multicast_if_v6(scope).unwrap();
    let all_nodes = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1);
    send("IPv6 group", &datagrams, socket, SocketAddrV6::new(all_nodes, 9000, 0, scope).into());
    reached
}

fn no_side_way_is_open(families: Families, ways: &[&str]) {
    let cluster = bridged(families).build().unwrap();
    cluster.write_policy("policy.yaml", POLICY).unwrap();
    assert_eq!(by_the_side_ways(&cluster), ways, "without Sluice every way is open");
    let cluster = Enforced::on(cluster, &["node1"], "");
    assert_eq!(by_the_side_ways(&cluster), [""; 0]);
    let denied = |record: &serde_json::Value| {
        told(record) == "connection-denied policy-denied"
            && record["destination"]["ip"].as_str().is_some_and(|ip| ip.starts_with("fe80:"))
            && record["event"]["reason"].as_str().is_some_and(|reason| reason.contains("unknown-local-pod"))
    };
    // Without IPv6 of its own on the bridge, the node drops what it has no way back to, before it is recorded.
    if families != Families::V4 {
        cluster.sluice("node1").wait_record(denied, LIMIT).unwrap();
    }
}

#[test]
fn link_local_and_group_addresses_are_no_way_around_policies_in_a_cluster_of_ipv4() {
    let ways = ["link-local TCP", "link-local UDP", "broadcast", "IPv4 group", "IPv6 group"];
    no_side_way_is_open(Families::V4, &ways);
}

#[test]
fn link_local_and_group_addresses_are_no_way_around_policies_in_a_cluster_of_ipv6() {
    no_side_way_is_open(Families::V6, &["link-local TCP", "link-local UDP", "IPv6 group"]);
}

fn readiness(cluster: &Enforced) -> (u16, String) {
    cluster.sluice("node1").get("/readyz").unwrap()
}

fn assert_unready(cluster: &Enforced, words: &[&str]) {
    let told = || readiness(cluster).0 == 503 && words.iter().all(|word| readiness(cluster).1.contains(word));
    assert!(wait_until(LIMIT, told), "{words:?}: {:?}", readiness(cluster));
}

fn assert_ready(cluster: &Enforced) {
    assert!(wait_until(LIMIT, || readiness(cluster).0 == 200), "{:?}", readiness(cluster));
}

#[test]
fn a_bridge_of_pods_with_a_port_that_leads_to_none_makes_the_node_unready() {
    let cluster = enforced(Families::Dual);
    let node = cluster.node("node1").unwrap();
    node.ip("link add uplink type vxlan id 7 dstport 4790\nlink set uplink master cni0 up\n").unwrap();
    assert_unready(&cluster, &["rules", "cni0", "uplink"]);
    node.ip("link del uplink\n").unwrap();
    assert_ready(&cluster);
    // A bridge that has nothing to do with pods is nobody's business.
    node.ip("link add br9 type bridge\nlink add uplink type vxlan id 7 dstport 4790\nlink set uplink master br9 up\nlink set br9 up\n")
        .unwrap();
    assert_denied_and_allowed(&cluster);
    assert_eq!(readiness(&cluster).0, 200);
}

#[test]
fn where_settings_may_not_be_changed_the_node_is_unready_until_its_owner_does() {
    let cluster = bridged(Families::Dual).build().unwrap();
    cluster.write_policy("policy.yaml", POLICY).unwrap();
    let node = cluster.node("node1").unwrap();
    let config = "redirect: { bridge_settings: false }\n";
    let options = SluiceOptions { config: config.to_owned(), ..SluiceOptions::default() };
    let sluice = node.start_sluice(&options).unwrap();
    for setting in SETTINGS {
        let told = || {
            sluice.get("/readyz").is_ok_and(|(code, text)| {
                code == 503 && text.contains("cni0") && text.contains(&format!("{setting}=1"))
            })
        };
        assert!(wait_until(LIMIT, told), "{setting}: {:?}", sluice.get("/readyz"));
        assert_eq!(node.sysctl_value(setting).unwrap(), "1");
        node.sysctl(setting, "0").unwrap();
    }
    assert!(wait_until(LIMIT, || sluice.get("/readyz").is_ok_and(|(code, _)| code == 200)));
}

#[test]
fn settings_that_hide_bridged_traffic_are_turned_off_kept_off_and_put_back_by_cleanup() {
    let mut cluster = enforced(Families::Dual);
    let read = |node: &Node, settings: [&str; 2]| settings.map(|setting| node.sysctl_value(setting).unwrap());
    let values = |node: &Node| read(node, SETTINGS);
    let node = cluster.node("node1").unwrap();
    assert_eq!(
        (values(node), read(node, REDIRECTS)),
        (["0", "0"].map(str::to_owned), ["0", "0"].map(str::to_owned))
    );
    node.sysctl(SETTINGS[0], "1").unwrap();
    assert!(wait_until(LIMIT, || values(node) == ["0", "0"]));
    cluster.wait_metric("node1", "sluice_ruleset_repairs_total", 1.0);
    for setting in REDIRECTS {
        node.sysctl(setting, "1").unwrap();
        assert!(wait_until(LIMIT, || read(node, REDIRECTS) == ["0", "0"]), "{setting}");
    }
    assert_denied_and_allowed(&cluster);
    cluster.kill("node1");
    let node = cluster.node("node1").unwrap();
    assert_eq!(values(node), ["0", "0"], "the rules stay, and so does what they need");
    let binary = lab::sluice_binary().unwrap();
    let output = node.command(binary).arg("cleanup").output().unwrap();
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(
        output.status.success() && said.contains(SETTINGS[1]) && said.contains("table bridge sluice"),
        "{said}"
    );
    assert_eq!(values(node), ["1", "1"]);
    assert_eq!(read(node, REDIRECTS), ["1", "1"]);
    let tables = node.command("nft").args(["list", "tables"]).output().unwrap();
    assert!(!String::from_utf8_lossy(&tables.stdout).contains("sluice"));
}

#[test]
fn rules_of_a_bridge_that_others_take_away_are_put_back() {
    let cluster = enforced(Families::Dual);
    let node = cluster.node("node1").unwrap();
    for (count, act) in [
        "delete table bridge sluice",
        "flush chain bridge sluice to_the_node",
        "flush map bridge sluice own_address",
        "insert rule bridge sluice between_ports accept",
    ]
    .iter()
    .enumerate()
    {
        node.nft(&format!("{act}\n")).unwrap();
        #[expect(clippy::cast_precision_loss, reason = "a handful")]
        cluster.wait_metric("node1", "sluice_ruleset_repairs_total", (count + 1) as f64);
        assert_denied_and_allowed(&cluster);
    }
}

fn assert_denied_and_allowed(cluster: &Enforced) {
    let (client, stranger, server) = (cluster.pod("client"), cluster.pod("stranger"), cluster.pod("server"));
    for family in cluster.families().each() {
        let listener = server.listen_in(*family, 8000).unwrap();
        let to = server.at_in(*family, 8000);
        let mut carried = Carried::open(client, &listener, to);
        carried.exchange(10, 10).unwrap();
        assert_eq!(carried.peer, carried.local);
        assert_eq!(stranger.connect(to, LIMIT).unwrap_err().kind(), ErrorKind::ConnectionRefused);
        assert!(accept(&listener, Duration::ZERO).is_none());
    }
}

#[test]
fn while_no_process_runs_isolated_pods_of_a_bridge_are_closed_and_others_open() {
    let mut cluster = enforced(Families::Dual);
    cluster.kill("node1");
    let (client, stranger, server) = (cluster.pod("client"), cluster.pod("stranger"), cluster.pod("server"));
    for family in [Family::V4, Family::V6] {
        let _listeners = [server, stranger].map(|pod| pod.listen_in(family, 8000).unwrap());
        let error = client.connect(server.at_in(family, 8000), SILENCE).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::TimedOut);
        client.connect(stranger.at_in(family, 8000), LIMIT).unwrap();
        let _echo = stranger.serve_udp_on((family.unspecified(), 8001)).unwrap();
        let socket = client.udp_to(stranger.at_in(family, 8001)).unwrap();
        ask(&socket, b"HELLO\n", LIMIT).unwrap();
    }
    assert_eq!(by_the_side_ways(&cluster), [""; 0]);
}

/// A UDP packet from one pod to another in a frame of the bridge, with these bytes between its hardware addresses
/// and its type: tags of VLANs (IEEE 802.1Q, 802.1ad).
fn send_tagged(from: &Netns, to: &Netns, [source, destination]: [Ipv4Addr; 2], tags: &[u8]) {
    let address = |netns: &Netns| -> LinkAddr {
        let interfaces = netns.run(|| nix::ifaddrs::getifaddrs().unwrap().collect::<Vec<_>>());
        let of_eth0 = interfaces.into_iter().filter(|interface| interface.interface_name == "eth0");
        of_eth0.filter_map(|interface| interface.address?.as_link_addr().copied()).next().unwrap()
    };
    let (own, peer) = (address(from), address(to));
    let datagram =
        [&5000_u16.to_be_bytes()[..], &9000_u16.to_be_bytes(), &12_u16.to_be_bytes(), &[0, 0], b"TAGS"]
            .concat();
    let mut header = vec![0x45, 0, 0, 32, 0, 1, 0, 0, 64, 17, 0, 0];
    header.extend(source.octets());
    header.extend(destination.octets());
    let words = header.chunks_exact(2).map(|word| u32::from(u16::from_be_bytes([word[0], word[1]])));
    let sum: u32 = words.sum();
    let folded = u16::try_from((sum & 0xffff) + (sum >> 16)).unwrap();
    header[10..12].copy_from_slice(&(!folded).to_be_bytes());
    let frame =
        [&peer.addr().unwrap()[..], &own.addr().unwrap(), tags, &[0x08, 0x00], &header, &datagram].concat();
    let socket = from
        .run(|| socket::socket(AddressFamily::Packet, SockType::Raw, SockFlag::SOCK_CLOEXEC, None).unwrap());
    socket::bind(socket.as_raw_fd(), &own).unwrap();
    assert_eq!(socket::send(socket.as_raw_fd(), &frame, MsgFlags::empty()).unwrap(), frame.len());
}

#[test]
fn a_tag_does_not_hide_a_packet() {
    const VLAN_0: &[u8] = &[0x81, 0, 0, 0];
    const PROVIDER_0: &[u8] = &[0x88, 0xa8, 0, 0];
    let tags = [vec![], VLAN_0.to_vec(), VLAN_0.repeat(2), [PROVIDER_0, VLAN_0].concat()];
    let cluster = bridged(Families::V4).build().unwrap();
    cluster.write_policy("policy.yaml", POLICY).unwrap();
    let arrive = |cluster: &Cluster| -> Vec<bool> {
        let (stranger, server) = (cluster.pod("stranger").unwrap(), cluster.pod("server").unwrap());
        let datagrams = server.serve_udp(9000).unwrap();
        let ends = [stranger.address(), server.address()];
        tags.iter()
            .map(|tags| {
                let before = datagrams.received();
                send_tagged(stranger, server, ends, tags);
                wait_until(SILENCE, || datagrams.received() > before)
            })
            .collect()
    };
    assert_eq!(arrive(&cluster), [true; 4], "without Sluice each is delivered");
    let cluster = Enforced::on(cluster, &["node1"], "");
    assert_eq!(arrive(&cluster), [false; 4]);
}
