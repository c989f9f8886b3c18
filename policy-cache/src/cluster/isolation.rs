//! Which NetworkPolicies isolate each identity, and their rules as one list that equal identities share.

use std::collections::HashMap;
use std::sync::Arc;

use flow::{Labels, PolicyRef};

use super::Cluster;
use super::shared::fingerprint;
use crate::compile::rules::{Effect, Isolation, More, Rule};

/// Rules of a policy up to which they are copied into the lists of the identities it isolates, where they are
/// read without a detour.
const MAX_COPIED: usize = 16;

/// Ingress and egress, as places in arrays.
pub(super) const DIRECTIONS: [usize; 2] = [0, 1];

/// A direction and the policies that isolate in it.
type List = (usize, Box<[u32]>);

impl Cluster {
    /// The policies of a namespace that isolate pods with these labels, for ingress and egress.
    pub(super) fn isolating(&self, namespace: u32, labels: &Labels) -> [Box<[u32]>; 2] {
        let policies = &self.namespaces.slots[namespace].policies;
        let selecting = |number: &&u32| self.policies.slots[**number].selector.selects(labels);
        let selecting: Vec<u32> = policies.iter().filter(selecting).copied().collect();
        DIRECTIONS.map(|direction| {
            let isolates = |number: &&u32| self.policies.slots[**number].rules[direction].is_some();
            selecting.iter().filter(isolates).copied().collect()
        })
    }

    /// Follows a change of one policy: whom it isolated or isolates now gets its rules anew.
    pub(super) fn reselect(&mut self, namespace: u32, policy: u32, is_gone: bool) {
        for identity in &self.namespaces.slots[namespace].identities {
            let own = &mut self.identities.slots[*identity];
            let slot = &self.policies.slots[policy];
            let selects = !is_gone && slot.selector.selects(&own.labels);
            let mut concerned = false;
            for direction in DIRECTIONS {
                let list = &mut own.selected[direction];
                let before = list.contains(&policy);
                let now = selects && slot.rules[direction].is_some();
                concerned |= before || now;
                if now && !before {
                    let mut longer: Vec<u32> = list.iter().copied().chain([policy]).collect();
                    longer.sort_by(|a, b| self.policies.slots[*a].name.cmp(&self.policies.slots[*b].name));
                    *list = longer.into();
                } else if before && !now {
                    *list = list.iter().copied().filter(|other| *other != policy).collect();
                }
            }
            if concerned {
                self.identities.stale.push(*identity);
            }
        }
    }

    pub(super) fn settle_isolation(&mut self) {
        let mut stale = std::mem::take(&mut self.identities.stale);
        stale.retain(|identity| self.is_placed(*identity));
        stale.sort_unstable_by_key(|identity| (self.identities.slots[*identity].namespace, *identity));
        stale.dedup();
        let namespace = |identity: &u32| self.identities.slots[*identity].namespace;
        let groups: Vec<Vec<u32>> =
            stale.chunk_by(|a, b| namespace(a) == namespace(b)).map(<[u32]>::to_vec).collect();
        for identities in groups {
            self.isolate(&identities);
        }
    }

    /// Makes the lists of some identities of one namespace, or takes those of others that have the same.
    fn isolate(&mut self, identities: &[u32]) {
        let Some(first) = identities.first() else { return };
        let namespace = self.identities.slots[*first].namespace;
        let mut lists: HashMap<List, Option<Isolation>> = HashMap::new();
        for (direction, identity) in DIRECTIONS.iter().flat_map(|one| identities.iter().map(|id| (*one, *id)))
        {
            let selected = &self.identities.slots[identity].selected[direction];
            if !selected.is_empty() {
                lists.insert((direction, selected.clone()), None);
            }
        }
        if lists.is_empty() {
            return identities.iter().for_each(|identity| self.set_isolation(*identity, [None, None]));
        }
        for other in &self.namespaces.slots[namespace].identities {
            if identities.binary_search(other).is_ok() {
                continue;
            }
            for direction in DIRECTIONS {
                let selected = &self.identities.slots[*other].selected[direction];
                if selected.is_empty() {
                    continue;
                }
                if let Some(place @ None) = lists.get_mut(&(direction, selected.clone())) {
                    let own = self.view.identities.get(*other);
                    *place = own.and_then(|own| [&own.ingress, &own.egress][direction].clone());
                }
            }
        }
        for ((direction, policies), list) in &mut lists {
            list.get_or_insert_with(|| self.list(*direction, policies));
        }
        for identity in identities {
            let selected = &self.identities.slots[*identity].selected;
            let new = DIRECTIONS
                .map(|direction| lists.get(&(direction, selected[direction].clone())).cloned().flatten());
            self.set_isolation(*identity, new);
        }
    }

    fn set_isolation(&mut self, identity: u32, [ingress, egress]: [Option<Isolation>; 2]) {
        let own = self.view.identities.get_mut(identity);
        (own.ingress, own.egress) = (ingress, egress);
    }

    /// The rules of some policies, one after the other, and the refusal that they end with.
    fn list(&self, direction: usize, policies: &[u32]) -> Isolation {
        let slots = || policies.iter().map(|number| &self.policies.slots[*number]);
        let mut list: Vec<Rule> = Vec::new();
        for rules in slots().filter_map(|slot| slot.rules[direction].as_ref()) {
            if rules.len() <= MAX_COPIED {
                list.extend(rules.iter().cloned());
            } else {
                let mut rule = Rule::new(Arc::new([]), Effect::Continue);
                rule.more = Some(Box::new(More { rules: Some(Arc::clone(rules)), ..More::default() }));
                list.push(rule);
            }
        }
        let attribution: Arc<[PolicyRef]> = slots().map(|slot| slot.reference.clone()).collect();
        list.push(Rule { any_peer: true, ..Rule::new(attribution, Effect::Refuse) });
        let content: Vec<u64> = slots().map(|slot| slot.fingerprint).collect();
        Isolation { rules: list.into(), content: fingerprint(&content) }
    }
}
