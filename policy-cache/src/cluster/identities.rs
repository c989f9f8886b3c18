//! Identities: what pods share that policies cannot tell apart, and who still needs each.
//!
//! A new identity is known to selectors and policies when conclusions are drawn, and one that nobody has any
//! more leaves them then, so a pod that changes back and forth costs nothing.

use std::collections::HashMap;
use std::sync::Arc;

use flow::{Labels, Workload};
use hashbrown::HashTable;

use super::Cluster;
use super::shared::{Shared, fingerprint};
use super::slots::Slots;
use crate::objects::{self, NamedPort};
use crate::snapshot::{Identity, Kind, PortSet, Who};

#[derive(Debug, Default)]
pub(super) struct Identities {
    pub(super) slots: Slots<IdentitySlot>,
    by_content: HashTable<u32>,
    /// Those that came or went since conclusions were last drawn.
    pending: Vec<u32>,
    port_sets: HashMap<Box<[NamedPort]>, Arc<PortSet>>,
    /// How many of them there may be before those that nobody has any more are looked for.
    port_sets_limit: usize,
    port_names: HashMap<Arc<str>, u32>,
    pub(super) workloads: Shared<Workload>,
}

#[derive(Debug, Default)]
pub(super) struct IdentitySlot {
    pub(super) namespace: u32,
    pub(super) labels: Labels,
    ports: Arc<PortSet>,
    /// Pods.
    users: u32,
    in_use: bool,
    /// Selectors and policies know it.
    placed: bool,
}

/// Fewer sets of ports than these are not looked through.
const FEW_PORT_SETS: usize = 1024;

impl Identities {
    /// The number of a port's name, which stays.
    pub(super) fn port_name(&mut self, name: &Arc<str>) -> u32 {
        if let Some(number) = self.port_names.get(name) {
            return *number;
        }
        let number = u32::try_from(self.port_names.len()).unwrap_or(u32::MAX);
        self.port_names.insert(Arc::clone(name), number);
        number
    }

    pub(super) fn sweep(&mut self) {
        self.workloads.sweep();
        if self.port_sets.len() > self.port_sets_limit.max(FEW_PORT_SETS) {
            self.port_sets.retain(|_, ports| Arc::strong_count(ports) > 1);
            self.port_sets_limit = 2 * self.port_sets.len();
        }
    }
}

fn content(namespace: u32, labels: &Labels, ports: &Arc<PortSet>) -> u64 {
    fingerprint(&(namespace, labels, Arc::as_ptr(ports) as usize))
}

impl Cluster {
    /// The identity of a pod, with one user more.
    pub(super) fn acquire_identity(&mut self, pod: &objects::Pod) -> u32 {
        let namespace = self.acquire_namespace(&pod.namespace);
        let labels = self.texts.labels(pod.labels.iter());
        let ports = self.port_set(&pod.named_ports);
        let hash = content(namespace, &labels, &ports);
        let slots = &self.identities.slots;
        let same = |number: &u32| {
            let own = &slots[*number];
            own.namespace == namespace && Arc::ptr_eq(&own.ports, &ports) && own.labels == labels
        };
        if let Some(number) = self.identities.by_content.find(hash, same).copied() {
            self.release_namespace(namespace);
            self.identities.slots[number].users += 1;
            return number;
        }
        let slot =
            IdentitySlot { namespace, labels, ports, users: 1, in_use: true, ..IdentitySlot::default() };
        let number = self.identities.slots.insert(slot);
        let slots = &self.identities.slots;
        self.identities.by_content.insert_unique(hash, number, |number| {
            let own = &slots[*number];
            content(own.namespace, &own.labels, &own.ports)
        });
        self.identities.pending.push(number);
        number
    }

    pub(super) fn release_identity(&mut self, number: u32) {
        let slot = &mut self.identities.slots[number];
        slot.users -= 1;
        if slot.users == 0 {
            self.identities.pending.push(number);
        }
    }

    /// What the pods of one owner have in common.
    pub(super) fn workload(&mut self, identity: u32, pod: &objects::Pod) -> Arc<Workload> {
        let slot = &self.identities.slots[identity];
        let namespace = Arc::clone(&self.namespaces.slots[slot.namespace].what.name);
        let labels = slot.labels.clone();
        let owner = owner(pod, &mut self.texts);
        let workload = Workload { namespace, labels, owner };
        self.identities.workloads.get(&workload, || Arc::new(workload.clone()))
    }

    fn port_set(&mut self, named: &[NamedPort]) -> Arc<PortSet> {
        if let Some(known) = self.identities.port_sets.get(named) {
            return Arc::clone(known);
        }
        let numbers = named.iter().map(|port| {
            let name = self.texts.text(&port.name);
            (self.identities.port_name(&name), port.protocol, port.number)
        });
        let ports = Arc::new(PortSet { numbers: numbers.collect(), named: named.into() });
        self.identities.port_sets.insert(named.into(), Arc::clone(&ports));
        ports
    }

    pub(super) fn settle_identities(&mut self) {
        for number in std::mem::take(&mut self.identities.pending) {
            let slot = &self.identities.slots[number];
            match (slot.in_use, slot.users, slot.placed) {
                (true, 0, placed) => self.remove_identity(number, placed),
                (true, _, false) => self.place_identity(number),
                _ => {}
            }
        }
    }

    fn place_identity(&mut self, number: u32) {
        let slot = &mut self.identities.slots[number];
        slot.placed = true;
        let (namespace, labels, ports) = (slot.namespace, slot.labels.clone(), Arc::clone(&slot.ports));
        let lists = self.isolating(namespace, &labels);
        let local = self.local_bits(namespace, &labels);
        let own = &mut self.namespaces.slots[namespace];
        own.identities.push(number);
        let (what, groups) = (Arc::clone(&own.what), own.groups.clone());
        let who = Arc::new(Who { namespace: what, labels });
        self.view.kinds.set(number, Kind { local, lists, ..Kind::of(namespace) });
        self.view.identities.set(number, Identity { ports, who });
        self.enter_sets(number, &groups);
        self.set_subject(number);
    }

    fn remove_identity(&mut self, number: u32, placed: bool) {
        let namespace = self.identities.slots[number].namespace;
        if placed {
            let own = &mut self.namespaces.slots[namespace];
            own.identities.retain(|other| *other != number);
            let groups = own.groups.clone();
            self.leave_sets(number, &groups);
            self.forget_subject(number);
            let lists = self.view.kinds.get(number).map_or([0, 0], |kind| kind.lists);
            lists.into_iter().for_each(|list| self.release_list(list));
            self.view.kinds.set(number, Kind::default());
            self.view.identities.set(number, Identity::default());
        }
        let slot = self.identities.slots.remove(number);
        let hash = content(slot.namespace, &slot.labels, &slot.ports);
        if let Ok(entry) = self.identities.by_content.find_entry(hash, |own| *own == number) {
            entry.remove();
        }
        self.release_namespace(namespace);
    }
}

/// The label whose value a Deployment appends to its ReplicaSets' names.
const TEMPLATE_HASH_LABEL: &str = "pod-template-hash";

/// The controlling owner; a ReplicaSet that a Deployment made becomes the Deployment.
fn owner(pod: &objects::Pod, texts: &mut Shared<str>) -> Option<flow::Owner> {
    let (kind, name) = pod.owner.as_ref()?;
    if kind == "ReplicaSet"
        && let Some(hash) = pod.labels.get(TEMPLATE_HASH_LABEL)
        && let Some(deployment) = name.strip_suffix(hash.as_str()).and_then(|name| name.strip_suffix('-'))
    {
        return Some(flow::Owner { kind: texts.text("Deployment"), name: texts.text(deployment) });
    }
    Some(flow::Owner { kind: texts.text(kind), name: texts.text(name) })
}
