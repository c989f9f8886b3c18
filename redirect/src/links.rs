//! Finds the bridges of this node's pods among its network devices, and learns of changes to them.
//!
//! A bridge is one of pods when its own range lies inside the node's pod ranges, when a known pod's address lies
//! inside its range, or when the configuration names it or a port of it as leading to pods. Only devices that
//! end in another namespace (veth) can be pods' ports: any other port of such a bridge is told of, because what
//! comes in there would not be seen.

use std::collections::BTreeMap;
use std::io;
use std::net::IpAddr;
use std::time::Duration;

use futures_util::TryStreamExt;
use ipnet::IpNet;
use netlink_sys::protocols::NETLINK_ROUTE;
use netlink_sys::{Socket, SocketAddr};
use rtnetlink::Handle;
use rtnetlink::packet_route::address::AddressMessage;
use rtnetlink::packet_route::link::{
    InfoBridge, InfoData, InfoGeneve, InfoKind, InfoVxlan, LinkAttribute, LinkFlags, LinkInfo, LinkMessage,
};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use crate::bridges::{HardwareAddr, PodBridge};
use crate::kernel::InstallError;
use crate::other_ends::{self, Port, address_of};
use crate::overlays::Overlays;
use crate::owners::Owners;
use crate::pods::LocalPods;
use crate::routes::Routes;

/// A pod's interface comes with a handful of messages.
const GATHER: Duration = Duration::from_millis(5);

/// linux/rtnetlink.h: links, and addresses of both families.
const GROUPS: [u32; 3] = [1, 5, 9];

/// The bridges of these pods on this node, and who speaks there with which address, asked for in the network namespace of
/// the calling thread. `interfaces` are names of devices that lead to pods, with an optional `*` at the end.
pub async fn pod_bridges(
    pods: &LocalPods,
    interfaces: &[String],
) -> Result<(Vec<PodBridge>, Owners), InstallError> {
    let routes = Routes::open()?;
    let failed = |error| InstallError::Links(Box::new(error));
    let links = Links::read(routes.handle()).await.map_err(failed)?;
    let bridges = links.pod_bridges(pods, interfaces);
    let owners = other_ends::find(routes.handle(), links.ports_of(&bridges), &Owners::default())
        .await
        .map_err(failed)?;
    Ok((bridges, owners))
}

/// The devices of a network namespace and their addresses, as far as bridges are concerned.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Links {
    links: Vec<Link>,
    ranges: Vec<(u32, IpNet)>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Link {
    index: u32,
    name: String,
    bridge: Option<u32>,
    kind: Kind,
    address: Option<HardwareAddr>,
    /// The bridge itself asks for br_netfilter, whatever the node's settings say.
    calls_iptables: bool,
    /// What the device takes its packets out of, where it is a tunnel.
    tunnel: Option<Tunnel>,
    is_up: bool,
    /// The number of the other end of a pair.
    peer: Option<u32>,
    /// The number of the namespace that holds the other end.
    namespace: Option<i32>,
}

/// How the packets of a tunnel come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Tunnel {
    /// By UDP, to this port.
    Port(u16),
    /// As protocols of IP.
    Protocols(&'static [u8]),
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Kind {
    Bridge,
    Veth,
    #[default]
    Other,
}

impl Links {
    /// Asks the kernel.
    pub(crate) async fn read(handle: &Handle) -> Result<Self, rtnetlink::Error> {
        let links: Vec<LinkMessage> = handle.link().get().execute().try_collect().await?;
        let addresses: Vec<AddressMessage> = handle.address().get().execute().try_collect().await?;
        Ok(Self {
            links: links.iter().map(Link::of).collect(),
            ranges: addresses.iter().filter_map(range_of).collect(),
        })
    }

    /// The bridges of pods, by name. `patterns` are names of devices that lead to pods, with an optional `*`.
    pub(crate) fn pod_bridges(&self, pods: &LocalPods, patterns: &[String]) -> Vec<PodBridge> {
        let mut found: Vec<PodBridge> = self
            .bridges(pods, patterns)
            .map(|bridge| PodBridge { name: bridge.name.clone(), ports: self.pod_ports(bridge) })
            .collect();
        found.sort();
        found
    }

    /// The ports of these bridges that lead to other namespaces.
    pub(crate) fn ports_of(&self, bridges: &[PodBridge]) -> Vec<Port> {
        let is_port = |link: &&Link| bridges.iter().any(|bridge| bridge.ports.contains_key(&link.name));
        let port = |link: &Link| {
            Some(Port {
                index: link.index,
                name: link.name.clone(),
                peer: link.peer?,
                namespace: link.namespace?,
            })
        };
        self.links.iter().filter(is_port).filter_map(port).collect()
    }

    /// What the tunnels that are up are reached by. The kernel makes some of itself, which are down and take nothing.
    pub(crate) fn overlays(&self) -> Overlays {
        let mut overlays = Overlays::default();
        for link in self.links.iter().filter(|link| link.is_up) {
            match link.tunnel {
                Some(Tunnel::Port(port)) => drop(overlays.ports.insert(port)),
                Some(Tunnel::Protocols(protocols)) => overlays.protocols.extend(protocols),
                None => {}
            }
        }
        overlays
    }

    /// What keeps traffic of these bridges from being seen.
    pub(crate) fn obstacles(&self, pods: &LocalPods, patterns: &[String]) -> Vec<String> {
        let mut obstacles = Vec::new();
        for bridge in self.bridges(pods, patterns) {
            let name = &bridge.name;
            for port in self.ports(bridge).filter(|port| port.kind != Kind::Veth) {
                obstacles.push(format!(
                    "bridge {name} of pods has the port {}, which leads to no pod: what comes in there could pass unseen",
                    port.name
                ));
            }
            if bridge.calls_iptables {
                obstacles.push(format!(
                    "bridge {name} of pods has nf_call_iptables or nf_call_ip6tables set, with which connections \
                     between its pods pass unseen; `ip link set {name} type bridge nf_call_iptables 0 nf_call_ip6tables 0`"
                ));
            }
        }
        obstacles
    }

    fn bridges<'a>(&'a self, pods: &'a LocalPods, patterns: &'a [String]) -> impl Iterator<Item = &'a Link> {
        let is_of_pods = |bridge: &&Link| {
            let mut ranges = self.ranges.iter().filter(|(index, _)| *index == bridge.index);
            let is_named = |link: &Link| patterns.iter().any(|pattern| fits(pattern, &link.name));
            ranges.any(|(_, range)| holds_pods(range, pods))
                || is_named(bridge)
                || self.ports(bridge).any(is_named)
        };
        self.links.iter().filter(|link| link.kind == Kind::Bridge).filter(is_of_pods)
    }

    fn ports<'a>(&'a self, bridge: &'a Link) -> impl Iterator<Item = &'a Link> {
        self.links.iter().filter(|link| link.bridge == Some(bridge.index))
    }

    fn pod_ports(&self, bridge: &Link) -> BTreeMap<String, HardwareAddr> {
        let ports = self.ports(bridge).filter(|port| port.kind == Kind::Veth);
        ports.filter_map(|port| Some((port.name.clone(), port.address?))).collect()
    }
}

impl Link {
    fn of(message: &LinkMessage) -> Self {
        let is_up = message.header.flags.contains(LinkFlags::Up);
        let mut link = Self { index: message.header.index, is_up, ..Self::default() };
        for attribute in &message.attributes {
            match attribute {
                LinkAttribute::IfName(name) => link.name.clone_from(name),
                LinkAttribute::Controller(index) => link.bridge = Some(*index),
                LinkAttribute::Link(index) => link.peer = Some(*index),
                LinkAttribute::LinkNetNsId(number) => link.namespace = Some(*number),
                LinkAttribute::Address(bytes) => {
                    link.address = <[u8; 6]>::try_from(bytes.as_slice()).ok().map(HardwareAddr);
                }
                LinkAttribute::LinkInfo(infos) => infos.iter().for_each(|info| link.learn(info)),
                _ => {}
            }
        }
        link
    }

    fn learn(&mut self, info: &LinkInfo) {
        match info {
            LinkInfo::Kind(InfoKind::Bridge) => self.kind = Kind::Bridge,
            LinkInfo::Kind(InfoKind::Veth) => self.kind = Kind::Veth,
            LinkInfo::Kind(InfoKind::IpIp | InfoKind::SitTun | InfoKind::Ip6Tnl) => {
                self.tunnel = Some(Tunnel::Protocols(&[4, 41]));
            }
            LinkInfo::Kind(InfoKind::GreTun | InfoKind::GreTun6 | InfoKind::GreTap | InfoKind::GreTap6) => {
                self.tunnel = Some(Tunnel::Protocols(&[47]));
            }
            LinkInfo::Data(InfoData::Vxlan(settings)) => {
                let port = settings.iter().find_map(|setting| match setting {
                    InfoVxlan::Port(port) => Some(*port),
                    _ => None,
                });
                self.tunnel = port.map(Tunnel::Port);
            }
            LinkInfo::Data(InfoData::Geneve(settings)) => {
                let port = settings.iter().find_map(|setting| match setting {
                    InfoGeneve::Port(port) => Some(*port),
                    _ => None,
                });
                self.tunnel = port.map(Tunnel::Port);
            }
            LinkInfo::Data(InfoData::Bridge(settings)) => {
                self.calls_iptables = settings.iter().any(|setting| {
                    matches!(setting, InfoBridge::NfCallIpTables(true) | InfoBridge::NfCallIp6Tables(true))
                });
            }
            _ => {}
        }
    }
}

/// An interface's own address with the length of its link's range. Link-local ranges tell nothing.
fn range_of(message: &AddressMessage) -> Option<(u32, IpNet)> {
    let address = address_of(message)?;
    let is_link_local = matches!(address, IpAddr::V6(v6) if v6.is_unicast_link_local());
    let range = IpNet::new(address, message.header.prefix_len).ok()?.trunc();
    (!is_link_local).then_some((message.header.index, range))
}

fn holds_pods(range: &IpNet, pods: &LocalPods) -> bool {
    let mut known = pods.isolated.iter().chain(&pods.observed).chain(&pods.passed);
    pods.ranges.iter().any(|of_pods| of_pods.contains(range))
        || known.any(|pod| range.contains(&pod.to_canonical()))
}

/// Whether one of these names, each with an optional `*` at its end, is this interface's.
pub fn fits_any(patterns: &[String], name: &str) -> bool {
    patterns.iter().any(|pattern| fits(pattern, name))
}

fn fits(pattern: &str, name: &str) -> bool {
    match pattern.strip_suffix('*') {
        Some(beginning) => name.starts_with(beginning),
        None => name == pattern,
    }
}

/// Word of changes to devices and addresses of the network namespace of the thread that opened it.
pub(crate) struct LinkWatch(AsyncFd<Socket>);

impl LinkWatch {
    #[expect(
        deprecated,
        reason = "the replacement is unsafe for types that lie about their descriptor; Socket owns its own"
    )]
    pub(crate) fn open() -> io::Result<Self> {
        let mut socket = Socket::new(NETLINK_ROUTE)?;
        socket.bind(&SocketAddr::new(0, 0))?;
        for group in GROUPS {
            socket.add_membership(group)?;
        }
        socket.set_non_blocking(true)?;
        AsyncFd::with_interest(socket, Interest::READABLE).map(Self)
    }

    /// Waits for a change, and a little for those that come with it. Cancel safe; [`has_changed`](Self::has_changed)
    /// has to be asked before the next wait.
    pub(crate) async fn changed(&self) {
        match self.0.readable().await {
            Ok(mut ready) => {
                tokio::time::sleep(GATHER).await;
                ready.clear_ready();
            }
            // What cannot be waited for is looked at by the guard's own interval.
            Err(_) => std::future::pending().await,
        }
    }

    /// Whether something has changed since it was last asked.
    pub(crate) fn has_changed(&self) -> bool {
        let mut changed = false;
        loop {
            match self.0.get_ref().recv_from_full() {
                Ok(_) => changed = true,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return changed,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                // Changes came faster than they were read: netlink(7), ENOBUFS.
                Err(_) => return true,
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn link(index: u32, name: &str, kind: Kind, bridge: Option<u32>) -> Link {
        let last = u8::try_from(index).unwrap();
        let address = Some(HardwareAddr([2, 0, 0, 0, 0, last]));
        Link { index, name: name.to_owned(), kind, bridge, address, ..Link::default() }
    }

    fn node(ranges: &[(u32, &str)]) -> Links {
        Links {
            links: vec![
                link(1, "lo", Kind::Other, None),
                link(2, "eth0", Kind::Other, None),
                link(3, "cni0", Kind::Bridge, None),
                link(4, "veth1", Kind::Veth, Some(3)),
                link(5, "veth2", Kind::Veth, Some(3)),
                link(6, "docker0", Kind::Bridge, None),
                link(7, "vethd", Kind::Veth, Some(6)),
            ],
            ranges: ranges.iter().map(|(index, range)| (*index, range.parse().unwrap())).collect(),
        }
    }

    fn pods(observed: &[&str], ranges: &[&str]) -> LocalPods {
        LocalPods {
            observed: observed.iter().map(|ip| ip.parse().unwrap()).collect(),
            ranges: ranges.iter().map(|range| range.parse().unwrap()).collect(),
            ..LocalPods::default()
        }
    }

    fn names(links: &Links, pods: &LocalPods, patterns: &[&str]) -> Vec<String> {
        let patterns: Vec<String> = patterns.iter().map(|pattern| (*pattern).to_owned()).collect();
        links.pod_bridges(pods, &patterns).into_iter().map(|bridge| bridge.name).collect()
    }

    #[test]
    fn a_bridge_is_one_of_pods_by_its_range_by_a_pod_or_by_name() {
        let links = node(&[(3, "10.244.1.0/24"), (6, "172.17.0.0/16"), (2, "172.18.0.0/24")]);
        let none = LocalPods::default();
        assert_eq!(names(&links, &none, &[]), [""; 0]);
        for ranges in [["10.244.1.0/24"], ["10.244.0.0/16"]] {
            assert_eq!(names(&links, &pods(&[], &ranges), &[]), ["cni0"]);
        }
        // A link's range that holds the pods' and more is not theirs by that.
        assert_eq!(names(&links, &pods(&[], &["10.244.1.0/25"]), &[]), [""; 0]);
        assert_eq!(names(&links, &pods(&["10.244.1.7"], &[]), &[]), ["cni0"]);
        assert_eq!(names(&links, &pods(&["::ffff:172.17.0.9"], &[]), &[]), ["docker0"]);
        let out_of_scope = LocalPods { passed: ["10.244.1.7".parse().unwrap()].into(), ..none.clone() };
        assert_eq!(names(&links, &out_of_scope, &[]), ["cni0"]);
        assert_eq!(names(&links, &none, &["cni*"]), ["cni0"]);
        assert_eq!(names(&links, &none, &["veth1"]), ["cni0"]);
        assert_eq!(names(&links, &none, &["veth*"]), ["cni0", "docker0"]);
        assert_eq!(names(&links, &none, &["eth0", "lo"]), [""; 0]);
    }

    #[test]
    fn tunnels_that_are_up_are_reached_by_their_ports_and_protocols() {
        let mut links = node(&[]);
        let tunnels =
            [Tunnel::Port(8472), Tunnel::Protocols(&[4, 41]), Tunnel::Port(4789), Tunnel::Protocols(&[47])];
        for (link, tunnel) in links.links.iter_mut().zip(tunnels) {
            (link.tunnel, link.is_up) = (Some(tunnel), true);
        }
        links.links[2].is_up = false;
        let expected = Overlays { ports: [8472].into(), protocols: [4, 41, 47].into() };
        assert_eq!(links.overlays(), expected);
        assert_eq!(node(&[]).overlays(), Overlays::default());
    }

    #[test]
    fn the_ports_of_a_bridge_are_those_of_pods_and_any_other_is_an_obstacle() {
        let mut links = node(&[(3, "10.244.1.0/24")]);
        let pods = pods(&[], &["10.244.1.0/24"]);
        let found = links.pod_bridges(&pods, &[]);
        let ports: Vec<String> =
            found[0].ports.iter().map(|(name, address)| format!("{name} {address}")).collect();
        assert_eq!(ports, ["veth1 02:00:00:00:00:04", "veth2 02:00:00:00:00:05"]);
        assert_eq!(links.obstacles(&pods, &[]), [""; 0]);
        links.links[1].bridge = Some(3);
        links.links[2].calls_iptables = true;
        assert_eq!(links.pod_bridges(&pods, &[]), found);
        let obstacles = links.obstacles(&pods, &[]);
        assert_eq!(obstacles.len(), 2, "{obstacles:?}");
        assert!(obstacles[0].contains("cni0") && obstacles[0].contains("eth0"), "{obstacles:?}");
        assert!(obstacles[1].contains("nf_call_iptables"), "{obstacles:?}");
    }
}
