//! Nodes: their names as numbers, their labels, and the selectors of nodes.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::Arc;

use flow::Labels;
use ipnet::IpNet;

use super::Cluster;
use super::addresses::Claims;
use super::slots::Slots;
use crate::objects::{self, Selector};
use crate::shared::Set;
use crate::snapshot::Node;

#[derive(Debug, Default)]
pub(super) struct Nodes {
    pub(super) slots: Slots<NodeSlot>,
    by_name: HashMap<Arc<str>, u32>,
    pub(super) claims: Claims,
    sets: Slots<NodeSet>,
    /// Some pod range came or went since conclusions were last drawn.
    pub(super) ranges_changed: bool,
}

#[derive(Debug, Default)]
pub(super) struct NodeSlot {
    pub(super) name: Arc<str>,
    /// Its object, pods, and this process when it runs there.
    users: u32,
    pub(super) object: Option<NodeObject>,
}

#[derive(Debug, PartialEq)]
pub(super) struct NodeObject {
    pub(super) addresses: Box<[IpAddr]>,
    pub(super) pod_cidrs: Box<[IpNet]>,
}

/// A selector of nodes. Its members are in the view.
#[derive(Debug, Default)]
struct NodeSet {
    selector: Option<Arc<Selector>>,
    users: u32,
}

impl Nodes {
    pub(super) fn number(&self, name: &str) -> Option<u32> {
        self.by_name.get(name).copied()
    }

    /// Whether an object or a pod names a node, which may be this process's.
    pub(super) fn is_named(&self, number: u32, own: Option<u32>) -> bool {
        let slot = &self.slots[number];
        slot.object.is_some() || slot.users > u32::from(own == Some(number))
    }

    /// The names of those with an object.
    pub(super) fn declared(&self) -> impl Iterator<Item = &Arc<str>> {
        self.slots.iter().filter(|(_, slot)| slot.object.is_some()).map(|(_, slot)| &slot.name)
    }
}

impl Cluster {
    pub(super) fn put_node(&mut self, new: &objects::Node) -> bool {
        let number = self.acquire_node(&new.name);
        let object = NodeObject {
            addresses: new.addresses.iter().copied().collect(),
            pod_cidrs: new.pod_cidrs.iter().copied().collect(),
        };
        let labels = self.texts.labels(new.labels.iter());
        let relabelled = self.relabel_node(number, labels);
        match &self.nodes.slots[number].object {
            Some(old) => {
                let same = *old == object;
                self.release_node(number);
                if same {
                    return relabelled;
                }
                self.leave_addresses(number);
            }
            None => self.counts.nodes += 1,
        }
        self.nodes.slots[number].object = Some(object);
        self.take_addresses(number);
        true
    }

    pub(super) fn delete_node(&mut self, name: &str) -> bool {
        let Some(number) = self.nodes.number(name) else { return false };
        if self.nodes.slots[number].object.is_none() {
            return false;
        }
        self.leave_addresses(number);
        self.nodes.slots[number].object = None;
        self.relabel_node(number, Labels::default());
        self.release_node(number);
        self.counts.nodes -= 1;
        true
    }

    /// The number of a node, with one user more.
    pub(super) fn acquire_node(&mut self, name: &str) -> u32 {
        if let Some(number) = self.nodes.number(name) {
            self.nodes.slots[number].users += 1;
            return number;
        }
        let name = self.texts.text(name);
        let slot = NodeSlot { name: Arc::clone(&name), users: 1, object: None };
        let number = self.nodes.slots.insert(slot);
        self.nodes.by_name.insert(name, number);
        self.relabel_node(number, Labels::default());
        number
    }

    pub(super) fn release_node(&mut self, number: u32) {
        let slot = &mut self.nodes.slots[number];
        slot.users -= 1;
        if slot.users > 0 {
            return;
        }
        let slot = self.nodes.slots.remove(number);
        self.nodes.by_name.remove(&slot.name);
        self.view.nodes.set(number, None);
        for (set, _) in self.nodes.sets.iter().filter(|(_, set)| set.selector.is_some()) {
            Arc::make_mut(self.view.node_sets.get_mut(set)).remove(number);
        }
    }

    /// Gives a node labels. False when it has them.
    fn relabel_node(&mut self, number: u32, labels: Labels) -> bool {
        let before = self.view.nodes.get(number).and_then(Option::as_ref);
        if before.is_some_and(|before| before.labels == labels) {
            return false;
        }
        for (set, NodeSet { selector, .. }) in self.nodes.sets.iter() {
            let Some(selector) = selector else { continue };
            let members = self.view.node_sets.get(set);
            let is_in = members.is_some_and(|members| members.contains(number));
            let members = |view: &mut crate::snapshot::View, change: fn(&mut Set, u32)| {
                change(Arc::make_mut(view.node_sets.get_mut(set)), number);
            };
            match (is_in, selector.selects(&labels)) {
                (false, true) => members(&mut self.view, Set::insert),
                (true, false) => members(&mut self.view, Set::remove),
                _ => {}
            }
        }
        let name = Arc::clone(&self.nodes.slots[number].name);
        self.view.nodes.set(number, Some(Arc::new(Node { name, labels })));
        true
    }

    pub(super) fn acquire_node_set(&mut self, selector: &Selector) -> u32 {
        let selector = self.selectors.share(selector);
        let known = self.nodes.sets.iter().find(|(_, set)| set.selector.as_ref() == Some(&selector));
        if let Some((number, _)) = known {
            self.nodes.sets[number].users += 1;
            return number;
        }
        let mut members = Set::default();
        for (number, _) in self.nodes.slots.iter().filter(|(_, slot)| slot.users > 0) {
            let node = self.view.nodes.get(number).and_then(Option::as_ref);
            if node.is_some_and(|node| selector.selects(&node.labels)) {
                members.insert(number);
            }
        }
        let number = self.nodes.sets.insert(NodeSet { selector: Some(selector), users: 1 });
        self.view.node_sets.set(number, Arc::new(members));
        number
    }

    pub(super) fn release_node_set(&mut self, number: u32) {
        let set = &mut self.nodes.sets[number];
        set.users -= 1;
        if set.users == 0 {
            self.nodes.sets.remove(number);
            self.view.node_sets.set(number, Arc::default());
        }
    }
}
