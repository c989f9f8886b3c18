//! Which pod or node each address belongs to.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::Arc;

use super::ranges::AddressRanges;
use crate::objects::{Objects, Phase, Pod};
use crate::options::Options;

/// Addresses → pods and nodes, both as numbers.
#[derive(Debug)]
pub(crate) struct Addresses {
    /// The number of a pod is its place in the objects.
    pods: HashMap<IpAddr, u32>,
    pub(crate) nodes: HashMap<IpAddr, u32>,
    pub(crate) node_names: Vec<Arc<str>>,
    node_numbers: HashMap<Arc<str>, u32>,
    pub(crate) own_node: Option<u32>,
    /// The interfaces of the own node.
    pub(crate) own: Vec<IpAddr>,
    /// The pod ranges of the own node.
    pub(crate) own_ranges: AddressRanges,
    /// The pod ranges of all nodes.
    pub(crate) cluster_ranges: AddressRanges,
}

impl Addresses {
    pub(crate) fn new(objects: &Objects, options: &Options) -> Self {
        let mut names = Names::default();
        let own_node = match (&options.node, options.own_addresses.is_empty()) {
            (Some(node), _) => Some(names.number(node)),
            (None, false) => Some(names.number("")),
            (None, true) => None,
        };
        let mut own: Vec<IpAddr> = options.own_addresses.iter().map(|ip| flow::canonical_ip(*ip)).collect();
        own.sort_unstable();
        own.dedup();
        let mut nodes = HashMap::new();
        if let Some(number) = own_node {
            nodes.extend(own.iter().map(|ip| (*ip, number)));
        }
        node_addresses(objects, options, &mut names, &mut nodes);
        let ranges = |wanted: &dyn Fn(&str) -> bool| {
            let chosen = objects.nodes.iter().filter(|node| wanted(&node.name));
            AddressRanges::new(chosen.flat_map(|node| &node.pod_cidrs).map(|cidr| (cidr, [].as_slice())))
        };
        let own_ranges = ranges(&|name| Some(name) == options.node.as_deref());
        let cluster_ranges = ranges(&|_| true);
        for pod in &objects.pods {
            if let Some(node) = &pod.node {
                names.number(node);
            }
        }
        let pods = pod_addresses(objects, &own);
        Self {
            pods,
            nodes,
            node_names: names.list,
            node_numbers: names.numbers,
            own_node,
            own,
            own_ranges,
            cluster_ranges,
        }
    }

    /// Each address a pod has, and the pod.
    pub(crate) fn pods(&self) -> impl Iterator<Item = (IpAddr, u32)> {
        self.pods.iter().map(|(ip, number)| (*ip, *number))
    }

    /// The pods that have an address, once for each of them.
    pub(crate) fn holders(&self) -> impl Iterator<Item = u32> {
        self.pods.values().copied()
    }

    pub(crate) fn pod_at(&self, ip: IpAddr) -> Option<u32> {
        self.pods.get(&ip).copied()
    }

    /// Drops what only compiling asks for: a snapshot finds its pods by itself.
    pub(crate) fn forget_pods(&mut self) {
        self.pods = HashMap::new();
    }

    /// The node a pod runs on: as scheduled, or else the one whose address its status names.
    pub(crate) fn node_of(&self, pod: &Pod) -> Option<u32> {
        match &pod.node {
            Some(name) => self.node_numbers.get(name.as_str()).copied(),
            None => pod.host_ips.iter().find_map(|ip| self.nodes.get(ip)).copied(),
        }
    }

    pub(crate) fn node_number(&self, name: &str) -> Option<u32> {
        self.node_numbers.get(name).copied()
    }

    pub(crate) fn node_name(&self, number: u32) -> &Arc<str> {
        &self.node_names[number as usize]
    }
}

/// Node names and their numbers.
#[derive(Default)]
struct Names {
    list: Vec<Arc<str>>,
    numbers: HashMap<Arc<str>, u32>,
}

impl Names {
    fn number(&mut self, name: &str) -> u32 {
        if let Some(number) = self.numbers.get(name) {
            return *number;
        }
        let number = u32::try_from(self.list.len()).unwrap_or(u32::MAX);
        let name: Arc<str> = name.into();
        self.list.push(Arc::clone(&name));
        self.numbers.insert(name, number);
        number
    }
}

/// What names an address first, keeps it: the own interfaces, Node objects, pods' hosts, pod ranges.
fn node_addresses(objects: &Objects, options: &Options, names: &mut Names, nodes: &mut HashMap<IpAddr, u32>) {
    for node in &objects.nodes {
        let number = names.number(&node.name);
        for ip in &node.addresses {
            nodes.entry(*ip).or_insert(number);
        }
    }
    for pod in objects.pods.iter().filter(|pod| pod.phase != Phase::Finished) {
        // Without a node name, the address of a host-network pod is still some node's, never a pod's.
        let number = names.number(pod.node.as_deref().unwrap_or_default());
        if pod.node.is_some() {
            for ip in &pod.host_ips {
                nodes.entry(*ip).or_insert(number);
            }
        }
        if pod.host_network {
            for ip in &pod.ips {
                nodes.entry(*ip).or_insert(number);
            }
        }
    }
    // An overlay device carries the base address of its node's range (flannel), and is what a connection
    // from that node to a pod on this one comes from.
    for node in objects.nodes.iter().filter(|node| Some(&node.name) != options.node.as_ref()) {
        let number = names.number(&node.name);
        for cidr in &node.pod_cidrs {
            nodes.entry(cidr.network()).or_insert(number);
        }
    }
}

/// The pod that holds each address. Of several that claim one, the one that is not being deleted, then the
/// running one, then the youngest.
fn pod_addresses(objects: &Objects, own: &[IpAddr]) -> HashMap<IpAddr, u32> {
    let rank = |number: u32| {
        let pod = &objects.pods[number as usize];
        (!pod.deleting, pod.phase == Phase::Running, pod.created.as_str(), number)
    };
    let mut holders: HashMap<IpAddr, u32> = HashMap::new();
    for (number, pod) in (0_u32..).zip(&objects.pods) {
        if pod.phase == Phase::Finished || pod.host_network {
            continue;
        }
        for ip in pod.ips.iter().filter(|ip| own.binary_search(ip).is_err()) {
            let holder = holders.entry(*ip).or_insert(number);
            if rank(*holder) < rank(number) {
                *holder = number;
            }
        }
    }
    holders
}
