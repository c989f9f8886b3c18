//! Which node each address belongs to that is no pod's, and the nodes' pod ranges.
//!
//! What names an address first, keeps it: the own interfaces, Node objects, pods' hosts, pod ranges; among
//! equals the node that is first by name.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::Arc;

use super::Cluster;
use crate::compile::ranges::AddressRanges;
use crate::shared::key_of_ip;

/// Who says that an address is a node's, the strongest first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Says {
    OwnInterface,
    NodeObject,
    Pod,
    /// An overlay device carries the base address of its node's range (flannel), and is what a connection
    /// from that node to a pod on this one comes from.
    PodRange,
}

/// What is said of nodes' addresses.
#[derive(Debug, Default)]
pub(super) struct Claims {
    all: HashMap<u128, Vec<Claim>>,
    /// Addresses of which something else is said than when conclusions were last drawn.
    changed: Vec<u128>,
}

#[derive(Debug)]
struct Claim {
    says: Says,
    node: u32,
    /// How many say so.
    count: u32,
}

impl Claims {
    pub(super) fn add(&mut self, ip: IpAddr, says: Says, node: u32) {
        let key = key_of_ip(ip);
        let claims = self.all.entry(key).or_default();
        match claims.iter_mut().find(|claim| (claim.says, claim.node) == (says, node)) {
            Some(claim) => claim.count += 1,
            None => {
                claims.push(Claim { says, node, count: 1 });
                self.changed.push(key);
            }
        }
    }

    pub(super) fn remove(&mut self, ip: IpAddr, says: Says, node: u32) {
        let key = key_of_ip(ip);
        let Some(claims) = self.all.get_mut(&key) else { return };
        let Some(place) = claims.iter().position(|claim| (claim.says, claim.node) == (says, node)) else {
            return;
        };
        claims[place].count -= 1;
        if claims[place].count == 0 {
            claims.swap_remove(place);
            if claims.is_empty() {
                self.all.remove(&key);
            }
            self.changed.push(key);
        }
    }
}

impl Cluster {
    /// Says what a node's object says.
    pub(super) fn take_addresses(&mut self, node: u32) {
        let slot = &self.nodes.slots[node];
        let Some(object) = &slot.object else { return };
        for ip in &object.addresses {
            self.nodes.claims.add(*ip, Says::NodeObject, node);
        }
        if self.options.node.as_deref() != Some(&*slot.name) {
            for cidr in &object.pod_cidrs {
                self.nodes.claims.add(cidr.network(), Says::PodRange, node);
            }
        }
        self.nodes.ranges_changed |= !object.pod_cidrs.is_empty();
    }

    pub(super) fn leave_addresses(&mut self, node: u32) {
        let slot = &self.nodes.slots[node];
        let Some(object) = &slot.object else { return };
        for ip in &object.addresses {
            self.nodes.claims.remove(*ip, Says::NodeObject, node);
        }
        if self.options.node.as_deref() != Some(&*slot.name) {
            for cidr in &object.pod_cidrs {
                self.nodes.claims.remove(cidr.network(), Says::PodRange, node);
            }
        }
        self.nodes.ranges_changed |= !object.pod_cidrs.is_empty();
    }

    /// Follows other options. The nodes that were or are the own one say what they say anew.
    pub(super) fn replace_options(&mut self, options: crate::Options) {
        let names = [self.options.node.clone(), options.node.clone()];
        let mut nodes: Vec<u32> = names.iter().flatten().filter_map(|name| self.nodes.number(name)).collect();
        nodes.dedup();
        nodes.iter().for_each(|node| self.leave_addresses(*node));
        self.leave_place();
        let before = std::mem::replace(&mut self.options, options);
        self.take_place();
        nodes.iter().for_each(|node| self.take_addresses(*node));
        self.nodes.ranges_changed = true;
        if before.node != self.options.node {
            self.relocate_pods(before.node.as_deref());
        }
    }

    /// Takes the own node's place in the cluster, as the options say.
    pub(super) fn take_place(&mut self) {
        let own = self.own_addresses();
        let node = match (self.options.node.clone(), own.is_empty()) {
            (Some(node), _) => Some(self.acquire_node(&node)),
            (None, false) => Some(self.acquire_node("")),
            (None, true) => None,
        };
        self.view.own_node = node;
        self.view.own = own.iter().copied().collect();
        for ip in own {
            if let Some(node) = node {
                self.nodes.claims.add(ip, Says::OwnInterface, node);
            }
            // No pod has it any more.
            self.pods.changed.push(ip);
        }
    }

    fn leave_place(&mut self) {
        let Some(node) = self.view.own_node.take() else { return };
        for ip in self.view.own.iter() {
            self.nodes.claims.remove(*ip, Says::OwnInterface, node);
            self.pods.changed.push(*ip);
        }
        self.release_node(node);
    }

    /// Draws the conclusions for nodes' addresses and ranges.
    pub(super) fn settle_nodes(&mut self) {
        let mut changed = std::mem::take(&mut self.nodes.claims.changed);
        changed.sort_unstable();
        changed.dedup();
        let winner = |key: u128| {
            let claims = self.nodes.claims.all.get(&key)?.iter();
            let best = claims.min_by_key(|claim| (claim.says, &self.nodes.slots[claim.node].name))?;
            Some(best.node)
        };
        let winners = changed.into_iter().map(|key| (key, winner(key)));
        let changes: Vec<(u128, Option<u32>)> =
            winners.filter(|(key, node)| self.view.node_addresses.get(*key) != node.as_ref()).collect();
        self.pods.nodes_changed |= !changes.is_empty();
        self.view.node_addresses.update(changes);
        if std::mem::take(&mut self.nodes.ranges_changed) {
            self.collect_ranges();
        }
    }

    fn collect_ranges(&mut self) {
        let ranges = |wanted: &dyn Fn(&str) -> bool| {
            let nodes = self.nodes.slots.iter().map(|(_, slot)| slot).filter(|slot| wanted(&slot.name));
            let cidrs = nodes.filter_map(|slot| slot.object.as_ref()).flat_map(|object| &object.pod_cidrs);
            Arc::new(AddressRanges::new(cidrs.map(|cidr| (cidr, [].as_slice()))))
        };
        let own = ranges(&|name| Some(name) == self.options.node.as_deref());
        let all = ranges(&|_| true);
        (self.view.own_ranges, self.view.cluster_ranges) = (own, all);
    }
}
