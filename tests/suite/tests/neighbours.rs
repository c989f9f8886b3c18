//! What a pod of a bridge says of addresses that are not its own: neither the node nor its neighbours believe it.

#![expect(clippy::unwrap_used, reason = "a panic in a test is its failure report")]

use std::io::ErrorKind;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::fd::AsRawFd;
use std::time::Duration;

use lab::{Cluster, ClusterBuilder, Families, Family, Netns, PodSpec, Topology, ask, wait_until};
use nix::sys::socket::{self, AddressFamily, LinkAddr, MsgFlags, SockFlag, SockType};
use suite::carried::Carried;
use suite::enforced::{Enforced, LIMIT};
use suite::flows::ANSWER;
use suite::forged::{Forger, advertisement};

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
/// Longer than the second in which the kernel believes no second claim (neigh/locktime in ip-sysctl.rst).
const CLAIMED_FOR: Duration = Duration::from_millis(2_500);

fn bridged() -> ClusterBuilder {
    Cluster::builder()
        .topology(Topology::Bridge)
        .families(Families::Dual)
        .pod(PodSpec::new("client").label("app", "client"))
        .pod(PodSpec::new("stranger"))
        .pod(PodSpec::new("server").label("app", "server"))
}

fn interface(netns: &Netns, name: &str) -> LinkAddr {
    let all = netns.run(|| nix::ifaddrs::getifaddrs().unwrap().collect::<Vec<_>>());
    let named = all.into_iter().filter(|interface| interface.interface_name == name);
    named.filter_map(|interface| interface.address?.as_link_addr().copied()).next().unwrap()
}

fn hardware(netns: &Netns, name: &str) -> [u8; 6] {
    interface(netns, name).addr().unwrap()
}

/// Says by ARP, to one neighbour, that this pod has `claimed` (RFC 826: an answer that nobody asked for). `kind` is the kind
/// of hardware, 1 for Ethernet.
fn say_by_arp(pod: &Netns, claimed: Ipv4Addr, to: ([u8; 6], Ipv4Addr), kind: u8) {
    let own = interface(pod, "eth0");
    let mac = own.addr().unwrap();
    let claim = [&[0, kind, 8, 0, 6, 4, 0, 2][..], &mac, &claimed.octets(), &to.0, &to.1.octets()].concat();
    let frame = [&to.0[..], &mac, &[0x08, 0x06], &claim].concat();
    let open = || socket::socket(AddressFamily::Packet, SockType::Raw, SockFlag::SOCK_CLOEXEC, None).unwrap();
    let packets = pod.run(open);
    socket::bind(packets.as_raw_fd(), &own).unwrap();
    assert_eq!(socket::send(packets.as_raw_fd(), &frame, MsgFlags::empty()).unwrap(), frame.len());
}

/// The hardware address that `netns` knows for its neighbour.
fn known(netns: &Netns, neighbour: IpAddr) -> String {
    let output = netns.command("ip").args(["neigh", "show", &neighbour.to_string()]).output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    text.split_once("lladdr ").map(|(_, rest)| rest.split(' ').next().unwrap().to_owned()).unwrap_or_default()
}

/// Who believes within a while that `stranger` has the address of another: by family, who, and whose.
fn believers(cluster: &Cluster) -> Vec<String> {
    let pod = |name: &str| cluster.pod(name).unwrap();
    let (client, stranger, server, node) =
        (pod("client"), pod("stranger"), pod("server"), cluster.node("node1").unwrap());
    let forger = Forger::open(stranger);
    let liar = hardware(stranger, "eth0").map(|byte| format!("{byte:02x}")).join(":");
    let mut believers = Vec::new();
    for family in [Family::V4, Family::V6] {
        let gateway: IpAddr = match family {
            Family::V4 => "10.244.1.1".parse().unwrap(),
            Family::V6 => "fd00:10:244:1::1".parse().unwrap(),
        };
        let listeners: [(&str, &Netns, &str, IpAddr, IpAddr); 2] = [
            ("the node", node.netns(), "cni0", gateway, client.address_in(family)),
            ("a pod", server.netns(), "eth0", server.address_in(family), gateway),
        ];
        for (who, netns, interface, own, claimed) in listeners {
            // Whom nobody asks for, nobody knows.
            netns.udp_to((claimed, 9)).unwrap().send(b"WHERE").unwrap();
            assert!(wait_until(LIMIT, || !known(netns, claimed).is_empty()), "{who} {claimed}");
            let to = hardware(netns, interface);
            let believes = wait_until(CLAIMED_FOR, || {
                match (claimed, own) {
                    (IpAddr::V4(claimed), IpAddr::V4(own)) => {
                        [1, 6].into_iter().for_each(|kind| say_by_arp(stranger, claimed, (to, own), kind));
                    }
                    (IpAddr::V6(claimed), IpAddr::V6(own)) => {
                        let IpAddr::V6(from) = stranger.address_in(family) else { unreachable!() };
                        for source in [from, claimed] {
                            let mac = hardware(stranger, "eth0");
                            forger.send(&advertisement(source, own, claimed, mac));
                        }
                    }
                    _ => unreachable!(),
                }
                known(netns, claimed) == liar
            });
            if believes {
                believers.push(format!("{family:?}: {who}"));
            }
        }
    }
    believers
}

#[test]
fn nobody_believes_a_pod_that_claims_the_address_of_another_or_of_the_node() {
    let cluster = bridged().build().unwrap();
    cluster.write_policy("policy.yaml", POLICY).unwrap();
    let all = ["V4: the node", "V4: a pod", "V6: the node", "V6: a pod"];
    assert_eq!(believers(&cluster), all, "without Sluice everybody does");
    let node = cluster.node("node1").unwrap();
    for netns in [node.netns(), cluster.pod("server").unwrap().netns()] {
        netns.ip("neigh flush all\n").unwrap();
    }
    let cluster = Enforced::on(cluster, &["node1"], "");
    assert_eq!(believers(&cluster), [""; 0]);
    for family in [Family::V4, Family::V6] {
        let (client, server) = (cluster.pod("client"), cluster.pod("server"));
        let listener = server.listen_in(family, PORT).unwrap();
        let mut carried = Carried::open(client, &listener, server.at_in(family, PORT));
        carried.exchange(10, 10).unwrap();
        let refused = cluster.pod("stranger").connect(server.at_in(family, PORT), LIMIT);
        assert_eq!(refused.unwrap_err().kind(), ErrorKind::ConnectionRefused);
    }
}

/// What a pod may speak with goes with the addresses that it has.
#[test]
fn an_address_that_a_pod_comes_to_have_is_its_own_after_a_moment() {
    let cluster = Enforced::start(bridged(), &[("policy.yaml", POLICY)], "");
    let (stranger, node) = (cluster.pod("stranger"), cluster.node("node1").unwrap());
    let new: [IpAddr; 2] =
        [Ipv4Addr::new(10, 244, 1, 77).into(), Ipv6Addr::new(0xfd00, 0x10, 0x244, 1, 0, 0, 0, 0x77).into()];
    stranger
        .ip("address add 10.244.1.77/24 dev eth0\naddress add fd00:10:244:1::77/64 dev eth0 nodad\n")
        .unwrap();
    let mac = hardware(stranger, "eth0").map(|byte| format!("{byte:02x}")).join(":");
    for address in new {
        let found = wait_until(LIMIT, || {
            node.udp_to((address, 9)).unwrap().send(b"WHERE").unwrap();
            known(node, address) == mac
        });
        assert!(found, "{address}: {:?}", known(node, address));
    }
    // What it has had it keeps.
    let _server = stranger.serve_udp(9000).unwrap();
    let socket = cluster.pod("client").udp_to(stranger.at(9000)).unwrap();
    assert_eq!(ask(&socket, b"HELLO\n", ANSWER).unwrap(), socket.local_addr().unwrap());
}
