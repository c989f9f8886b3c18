//! Namespaces, declared or in use, and who is in them.

use std::collections::HashMap;
use std::sync::Arc;

use super::Cluster;
use super::selectors::LocalSelector;
use super::slots::Slots;
use crate::objects;
use crate::snapshot::{Namespace, Who};

/// The label every namespace carries with its own name (KEP-2161).
pub(crate) const NAME_LABEL: &str = "kubernetes.io/metadata.name";

#[derive(Debug, Default)]
pub(super) struct Namespaces {
    pub(super) slots: Slots<NamespaceSlot>,
    by_name: HashMap<Arc<str>, u32>,
}

#[derive(Debug, Default)]
pub(super) struct NamespaceSlot {
    pub(super) what: Arc<Namespace>,
    /// There is an object of it.
    declared: bool,
    /// Its object, identities and policies: without any of them it is forgotten.
    users: u32,
    /// Those that selectors have seen.
    pub(super) identities: Vec<u32>,
    /// Its NetworkPolicies in the order of their names.
    pub(super) policies: Vec<u32>,
    /// Selectors of its pods, by the bit they have in each identity of it.
    pub(super) local: Vec<LocalSelector>,
    /// The groups of selectors that look at its pods, ascending.
    pub(super) groups: Vec<u32>,
}

impl Namespaces {
    pub(super) fn number(&self, name: &str) -> Option<u32> {
        self.by_name.get(name).copied()
    }

    /// The names of those that are declared.
    pub(super) fn declared(&self) -> impl Iterator<Item = &Arc<str>> {
        self.slots.iter().filter(|(_, slot)| slot.declared).map(|(_, slot)| &slot.what.name)
    }
}

impl Cluster {
    pub(super) fn put_namespace(&mut self, new: &objects::Namespace) -> bool {
        let number = self.acquire_namespace(&new.name);
        let slot = &mut self.namespaces.slots[number];
        let declared = std::mem::replace(&mut slot.declared, true);
        if declared {
            slot.users -= 1;
        } else {
            self.counts.namespaces += 1;
        }
        let relabelled = self.relabel_namespace(number, &new.labels);
        relabelled || !declared
    }

    pub(super) fn delete_namespace(&mut self, name: &str) -> bool {
        let Some(number) = self.namespaces.number(name) else { return false };
        if !std::mem::replace(&mut self.namespaces.slots[number].declared, false) {
            return false;
        }
        self.counts.namespaces -= 1;
        self.relabel_namespace(number, &objects::Labels::new());
        self.release_namespace(number);
        true
    }

    /// The number of a namespace, with one user more.
    pub(super) fn acquire_namespace(&mut self, name: &str) -> u32 {
        if let Some(number) = self.namespaces.number(name) {
            self.namespaces.slots[number].users += 1;
            return number;
        }
        let name = self.texts.text(name);
        let slot = NamespaceSlot { users: 1, ..NamespaceSlot::default() };
        let number = self.namespaces.slots.insert(slot);
        self.namespaces.by_name.insert(Arc::clone(&name), number);
        self.namespaces.slots[number].what = Arc::new(Namespace { name, labels: flow::Labels::default() });
        self.relabel_namespace(number, &objects::Labels::new());
        number
    }

    pub(super) fn release_namespace(&mut self, number: u32) {
        let slot = &mut self.namespaces.slots[number];
        slot.users -= 1;
        if slot.users == 0 {
            let slot = self.namespaces.slots.remove(number);
            self.namespaces.by_name.remove(&slot.what.name);
        }
    }

    /// Gives a namespace labels, the one with its name added. False when it has them.
    fn relabel_namespace(&mut self, number: u32, labels: &objects::Labels) -> bool {
        let before = Arc::clone(&self.namespaces.slots[number].what);
        let name = (NAME_LABEL.to_owned(), before.name.to_string());
        let labels = labels.iter().chain(std::iter::once((&name.0, &name.1)));
        let labels = self.texts.labels(labels);
        if labels == before.labels {
            return false;
        }
        let what = Arc::new(Namespace { name: Arc::clone(&before.name), labels });
        let groups = self.selectors.groups_of(number, &what.labels);
        let slot = &mut self.namespaces.slots[number];
        slot.what = Arc::clone(&what);
        let before = std::mem::replace(&mut slot.groups, groups);
        for identity in self.namespaces.slots[number].identities.clone() {
            let labels = self.identities.slots[identity].labels.clone();
            let who = Who { namespace: Arc::clone(&what), labels };
            self.view.identities.get_mut(identity).who = Arc::new(who);
            self.regroup_identity(identity, &before);
        }
        true
    }
}
