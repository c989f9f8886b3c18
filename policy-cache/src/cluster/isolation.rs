//! Which NetworkPolicies isolate each identity, and their rules as lists by number: identities that the same
//! policies isolate have the same number.
//!
//! A number stays while some identity has it. What a list says is made anew, when conclusions are drawn, after one
//! of its policies has changed.

use std::collections::HashMap;
use std::sync::Arc;

use flow::{Labels, PolicyRef};

use super::Cluster;
use super::policies::{PolicyRules, numbered};
use super::shared::fingerprint;
use super::slots::Slots;
use crate::compile::rules::{EGRESS, Effect, INGRESS, Isolation, More, Rule};

pub(super) const DIRECTIONS: [usize; 2] = [INGRESS, EGRESS];

/// Lists of rules, and for whom they are.
#[derive(Debug, Default)]
pub(super) struct Lists {
    /// The first, 0, is nobody's: nothing isolates those who have it.
    slots: Slots<ListSlot>,
    by_policies: HashMap<Key, u32>,
    /// Those that must be made anew.
    stale: Vec<u32>,
}

/// A direction, and the policies that isolate in it in the order of their names.
type Key = (usize, Arc<[u32]>);

#[derive(Debug, Default)]
struct ListSlot {
    direction: usize,
    policies: Arc<[u32]>,
    /// Identities.
    users: u32,
}

impl Lists {
    fn policies(&self, list: u32) -> &[u32] {
        if list == 0 { &[] } else { &self.slots[list].policies }
    }

    /// The number of a list, with one user more.
    fn acquire(&mut self, direction: usize, policies: Vec<u32>) -> u32 {
        if policies.is_empty() {
            return 0;
        }
        if self.slots.iter().next().is_none() {
            self.slots.insert(ListSlot::default());
        }
        let policies: Arc<[u32]> = policies.into();
        let key = (direction, Arc::clone(&policies));
        if let Some(number) = self.by_policies.get(&key) {
            self.slots[*number].users += 1;
            return *number;
        }
        let number = self.slots.insert(ListSlot { direction, policies, users: 1 });
        self.by_policies.insert(key, number);
        self.stale.push(number);
        number
    }
}

impl Cluster {
    /// The policies of a namespace that isolate pods with these labels: the numbers of their lists for ingress and
    /// egress, each with one user more.
    pub(super) fn isolating(&mut self, namespace: u32, labels: &Labels) -> [u32; 2] {
        let policies = &self.namespaces.slots[namespace].policies;
        let selecting = |number: &&u32| self.policies.slots[**number].selector.selects(labels);
        let selecting: Vec<u32> = policies.iter().filter(selecting).copied().collect();
        DIRECTIONS.map(|direction| {
            let isolates = |number: &&u32| self.policies.slots[**number].rules[direction].is_some();
            let isolating = selecting.iter().filter(isolates).copied().collect();
            self.lists.acquire(direction, isolating)
        })
    }

    /// Follows a change of one policy: those whom it isolated or isolates now get another list, or the same one with
    /// other rules.
    pub(super) fn reselect(&mut self, namespace: u32, policy: u32, is_gone: bool) {
        for place in 0..self.namespaces.slots[namespace].identities.len() {
            let identity = self.namespaces.slots[namespace].identities[place];
            let labels = &self.identities.slots[identity].labels;
            let selects = !is_gone && self.policies.slots[policy].selector.selects(labels);
            for direction in DIRECTIONS {
                let now = selects && self.policies.slots[policy].rules[direction].is_some();
                self.reselect_identity(identity, direction, policy, now);
            }
        }
    }

    fn reselect_identity(&mut self, identity: u32, direction: usize, policy: u32, now: bool) {
        let list = self.view.kinds.get(identity).map_or(0, |kind| kind.lists[direction]);
        let policies = self.lists.policies(list);
        match (policies.contains(&policy), now) {
            (false, false) => {}
            (true, true) => {
                if self.lists.stale.last() != Some(&list) {
                    self.lists.stale.push(list);
                }
            }
            (before, _) => {
                let mut others: Vec<u32> =
                    policies.iter().copied().filter(|other| *other != policy).collect();
                if !before {
                    others.push(policy);
                    others.sort_by(|a, b| self.policies.slots[*a].name.cmp(&self.policies.slots[*b].name));
                }
                self.view.kinds.get_mut(identity).lists[direction] = self.lists.acquire(direction, others);
                self.release_list(list);
            }
        }
    }

    pub(super) fn release_list(&mut self, list: u32) {
        if list == 0 {
            return;
        }
        let slot = &mut self.lists.slots[list];
        slot.users -= 1;
        if slot.users == 0 {
            let slot = self.lists.slots.remove(list);
            self.lists.by_policies.remove(&(slot.direction, slot.policies));
            self.view.lists.set(list, Isolation::default());
            self.view.names.set(list, Arc::default());
        }
    }

    pub(super) fn settle_isolation(&mut self) {
        let mut stale = std::mem::take(&mut self.lists.stale);
        stale.sort_unstable();
        stale.dedup();
        stale.retain(|list| self.lists.slots[*list].users > 0);
        for number in stale {
            let slot = &self.lists.slots[number];
            let (isolation, names) = self.list(slot.direction, &Arc::clone(&slot.policies));
            self.view.lists.set(number, isolation);
            self.view.names.set(number, names);
        }
    }

    /// The rules of some policies, one after the other, and their names.
    fn list(&mut self, direction: usize, policies: &[u32]) -> (Isolation, Arc<[PolicyRef]>) {
        let slots = || policies.iter().map(|number| &self.policies.slots[*number]);
        let (mut list, mut names): (Vec<Rule>, Vec<PolicyRef>) = (Vec::new(), Vec::new());
        for slot in slots() {
            match &slot.rules[direction] {
                Some(PolicyRules::Few(rules)) => {
                    list.extend(rules.iter().cloned());
                    names.extend(numbered(&slot.reference, rules.len()));
                }
                Some(PolicyRules::Many(long)) => {
                    let more = More { rules: Some(long.clone()), ..More::default() };
                    list.push(Rule { more: Some(Box::new(more)), ..Rule::new(Effect::Continue) });
                    names.push(slot.reference.clone());
                }
                None => {}
            }
        }
        names.extend(slots().map(|slot| slot.reference.clone()));
        let content: Vec<u64> = slots().map(|slot| slot.fingerprint).collect();
        (Isolation { rules: self.policies.share(list), content: fingerprint(&content) }, names.into())
    }
}
