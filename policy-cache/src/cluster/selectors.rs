//! Selectors of pods → the identities they match, kept up to date.
//!
//! A selector of one namespace's pods is a bit in each identity of that namespace. A selector across
//! namespaces, and one of a namespace that has no bit left, is a set of identities. Selectors with the same
//! part for namespaces form a group, and a namespace knows the groups that look at it.

use std::collections::HashMap;
use std::sync::Arc;

use flow::Labels;

use super::Cluster;
use super::shared::{Shared, fingerprint};
use super::slots::Slots;
use crate::objects::{Operator, Selector};
use crate::shared::Set;

/// As many as a word of an identity has bits.
const MAX_LOCAL: usize = 64;

#[derive(Debug, Default)]
pub(super) struct Selectors {
    all: Shared<Selector>,
    groups: Slots<Group>,
    group_of: HashMap<Scope, u32>,
    /// Groups by the labels of namespaces.
    group_index: Index,
    pub(super) sets: Slots<SetSlot>,
    set_of: HashMap<(u32, Arc<Selector>), u32>,
}

/// Whose pods a group of selectors looks at.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) enum Scope {
    Namespaces(Arc<Selector>),
    /// The number of a namespace.
    Only(u32),
}

/// Selectors that look at the same namespaces.
#[derive(Debug, Default)]
struct Group {
    scope: Option<Scope>,
    sets: usize,
    /// Sets by the labels of pods.
    index: Index,
}

/// A selector across namespaces. Its members are in the view.
#[derive(Debug, Default)]
pub(super) struct SetSlot {
    group: u32,
    selector: Arc<Selector>,
    users: u32,
    /// The policies of the Admin and Baseline tier whose subject this is.
    pub(super) subject_of: Vec<u32>,
}

/// A selector of the pods of one namespace.
#[derive(Debug, Default)]
pub(super) struct LocalSelector {
    selector: Option<Arc<Selector>>,
    users: u32,
}

/// What a policy's rules refer to, once for each time.
#[derive(Clone, Copy, Debug)]
pub(super) enum Use {
    /// The bit of a selector in the policy's own namespace.
    Local(u8),
    Set(u32),
    Nodes(u32),
    Pattern(u32),
}

/// Selectors by a label that they ask for, so that few are tried on any set of labels.
#[derive(Debug, Default)]
struct Index {
    by_label: HashMap<u64, Vec<u32>>,
    /// Those that ask for no value in particular.
    rest: Vec<u32>,
}

impl Index {
    fn insert(&mut self, number: u32, selector: &Selector) {
        match asked_for(selector) {
            None => self.rest.push(number),
            Some(labels) => labels.for_each(|label| self.by_label.entry(label).or_default().push(number)),
        }
    }

    fn remove(&mut self, number: u32, selector: &Selector) {
        match asked_for(selector) {
            None => self.rest.retain(|own| *own != number),
            Some(labels) => {
                for label in labels {
                    let list = self.by_label.entry(label).or_default();
                    list.retain(|own| *own != number);
                    if list.is_empty() {
                        self.by_label.remove(&label);
                    }
                }
            }
        }
    }

    /// A superset of the selectors that match.
    fn candidates<'i>(&'i self, labels: &'i Labels) -> impl Iterator<Item = u32> + 'i {
        // Most groups ask for nothing in particular, and then no label needs to be hashed.
        let labels = labels.iter().filter(|_| !self.by_label.is_empty());
        let asked = labels.filter_map(|label| self.by_label.get(&fingerprint(&label))).flatten();
        asked.chain(&self.rest).copied()
    }
}

/// The labels of the first requirement that asks for values.
fn asked_for(selector: &Selector) -> Option<impl Iterator<Item = u64> + '_> {
    selector.requirements.iter().find_map(|requirement| match &requirement.operator {
        Operator::In(values) => {
            Some(values.iter().map(|value| fingerprint(&(requirement.key.as_str(), value.as_str()))))
        }
        _ => None,
    })
}

impl Selectors {
    pub(super) fn share(&mut self, selector: &Selector) -> Arc<Selector> {
        self.all.get(selector, || Arc::new(selector.clone()))
    }

    /// The groups that look at a namespace with these labels, ascending.
    pub(super) fn groups_of(&self, namespace: u32, labels: &Labels) -> Vec<u32> {
        let matches = |number: &u32| match &self.groups[*number].scope {
            Some(Scope::Namespaces(selector)) => selector.selects(labels),
            _ => false,
        };
        let mut groups: Vec<u32> = self.group_index.candidates(labels).filter(matches).collect();
        groups.extend(self.group_of.get(&Scope::Only(namespace)));
        groups.sort_unstable();
        groups.dedup();
        groups
    }

    /// The sets of these groups that pods with these labels are in.
    pub(super) fn matching<'s>(
        &'s self,
        groups: &'s [u32],
        labels: &'s Labels,
    ) -> impl Iterator<Item = u32> + 's {
        let candidates = groups.iter().flat_map(|group| self.groups[*group].index.candidates(labels));
        candidates.filter(|set| self.sets[*set].selector.selects(labels))
    }

    pub(super) fn sweep(&mut self) {
        self.all.sweep();
    }
}

impl Cluster {
    /// A selector of the pods of one namespace: its bit, or else a set.
    pub(super) fn acquire_local(&mut self, namespace: u32, selector: &Selector) -> Use {
        let selector = self.selectors.share(selector);
        let local = &mut self.namespaces.slots[namespace].local;
        let known = local.iter().position(|own| own.selector.as_ref() == Some(&selector));
        let free = || local.iter().position(|own| own.selector.is_none());
        let bit = known.or_else(free).unwrap_or(local.len());
        let Some(short) = u8::try_from(bit).ok().filter(|_| bit < MAX_LOCAL) else {
            return Use::Set(self.acquire_set(Scope::Only(namespace), &selector));
        };
        if bit == local.len() {
            local.push(LocalSelector::default());
        }
        local[bit].users += 1;
        if known.is_none() {
            local[bit].selector = Some(Arc::clone(&selector));
            for identity in &self.namespaces.slots[namespace].identities {
                if selector.selects(&self.identities.slots[*identity].labels) {
                    self.view.kinds.get_mut(*identity).local |= 1 << bit;
                }
            }
        }
        Use::Local(short)
    }

    /// The bits of an identity of this namespace.
    pub(super) fn local_bits(&self, namespace: u32, labels: &Labels) -> u64 {
        let local = self.namespaces.slots[namespace].local.iter().enumerate();
        let matches = |own: &LocalSelector| own.selector.as_ref().is_some_and(|one| one.selects(labels));
        local.filter(|(_, own)| matches(own)).fold(0, |bits, (bit, _)| bits | 1 << bit)
    }

    /// A selector across namespaces.
    pub(super) fn acquire_set(&mut self, scope: Scope, selector: &Arc<Selector>) -> u32 {
        let group = self.group(scope);
        let key = (group, Arc::clone(selector));
        if let Some(number) = self.selectors.set_of.get(&key) {
            self.selectors.sets[*number].users += 1;
            return *number;
        }
        let slot = SetSlot { group, selector: Arc::clone(selector), users: 1, subject_of: Vec::new() };
        let number = self.selectors.sets.insert(slot);
        self.selectors.set_of.insert(key, number);
        let own = &mut self.selectors.groups[group];
        own.sets += 1;
        own.index.insert(number, selector);
        let mut members = Set::default();
        for (_, namespace) in self.namespaces.slots.iter() {
            if namespace.groups.binary_search(&group).is_ok() {
                let matches = |one: &&u32| selector.selects(&self.identities.slots[**one].labels);
                namespace.identities.iter().filter(matches).for_each(|one| members.insert(*one));
            }
        }
        self.view.set_members(number, members);
        number
    }

    pub(super) fn release_set(&mut self, number: u32) {
        let slot = &mut self.selectors.sets[number];
        slot.users -= 1;
        if slot.users > 0 {
            return;
        }
        let SetSlot { group, selector, .. } = self.selectors.sets.remove(number);
        self.view.set_members(number, Set::default());
        let own = &mut self.selectors.groups[group];
        own.sets -= 1;
        own.index.remove(number, &selector);
        self.selectors.set_of.remove(&(group, selector));
        if self.selectors.groups[group].sets == 0 {
            self.remove_group(group);
        }
    }

    pub(super) fn release_uses(&mut self, namespace: Option<u32>, uses: &[Use]) {
        for one in uses {
            match (*one, namespace) {
                (Use::Local(bit), Some(namespace)) => self.release_local(namespace, bit),
                (Use::Local(_), None) => {}
                (Use::Set(number), _) => self.release_set(number),
                (Use::Nodes(number), _) => self.release_node_set(number),
                (Use::Pattern(number), _) => self.tiers.release_pattern(number),
            }
        }
    }

    fn release_local(&mut self, namespace: u32, bit: u8) {
        let slot = &mut self.namespaces.slots[namespace];
        let own = &mut slot.local[usize::from(bit)];
        own.users -= 1;
        if own.users == 0 {
            own.selector = None;
            for identity in &slot.identities {
                let kind = self.view.kinds.get_mut(*identity);
                kind.local &= !(1 << bit);
            }
        }
    }

    /// The group of a scope; a new one is made known to the namespaces it looks at.
    fn group(&mut self, scope: Scope) -> u32 {
        if let Some(number) = self.selectors.group_of.get(&scope) {
            return *number;
        }
        let group = Group { scope: Some(scope.clone()), ..Group::default() };
        let number = self.selectors.groups.insert(group);
        if let Scope::Namespaces(selector) = &scope {
            self.selectors.group_index.insert(number, selector);
        }
        let looked_at: Vec<u32> = match &scope {
            Scope::Only(namespace) => vec![*namespace],
            Scope::Namespaces(selector) => {
                let all = self.namespaces.slots.iter();
                all.filter(|(_, slot)| selector.selects(&slot.what.labels))
                    .map(|(number, _)| number)
                    .collect()
            }
        };
        for namespace in looked_at {
            let groups = &mut self.namespaces.slots[namespace].groups;
            if let Err(place) = groups.binary_search(&number) {
                groups.insert(place, number);
            }
        }
        self.selectors.group_of.insert(scope, number);
        number
    }

    fn remove_group(&mut self, number: u32) {
        let Some(scope) = self.selectors.groups.remove(number).scope else { return };
        self.selectors.group_of.remove(&scope);
        if let Scope::Namespaces(selector) = &scope {
            self.selectors.group_index.remove(number, selector);
        }
        for namespace in self.namespaces.slots.iter_mut() {
            if let Ok(place) = namespace.groups.binary_search(&number) {
                namespace.groups.remove(place);
            }
        }
    }

    /// Puts a new identity into the sets of its namespace's groups.
    pub(super) fn enter_sets(&mut self, identity: u32, groups: &[u32]) {
        let labels = &self.identities.slots[identity].labels;
        for set in self.selectors.matching(groups, labels) {
            self.view.enter_set(set, identity);
        }
    }

    /// Takes an identity out of the sets of these groups.
    pub(super) fn leave_sets(&mut self, identity: u32, groups: &[u32]) {
        let labels = &self.identities.slots[identity].labels;
        for set in self.selectors.matching(groups, labels) {
            self.view.leave_set(set, identity);
        }
    }

    /// Brings an identity's sets up to date after its namespace came to be in other groups.
    pub(super) fn regroup_identity(&mut self, identity: u32, before: &[u32]) {
        let namespace = self.identities.slots[identity].namespace;
        let now = self.namespaces.slots[namespace].groups.clone();
        let without = |some: &[u32], others: &[u32]| -> Vec<u32> {
            some.iter().copied().filter(|group| others.binary_search(group).is_err()).collect()
        };
        self.leave_sets(identity, &without(before, &now));
        self.enter_sets(identity, &without(&now, before));
        self.set_subject(identity);
    }
}
