//! Policies of the Admin and Baseline tier → rules that compare numbers only, and for each identity the
//! policies it is a subject of, in the order of their evaluation.
//!
//! A rule that fails closed is compiled so: an Accept matches nothing, a Deny or Pass denies everything.

use std::cmp::Ordering;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::IpAddr;
use std::sync::Arc;

use flow::{PolicyKind, PolicyRef, Tier};

use super::Cluster;
use super::isolation::DIRECTIONS;
use super::policies::numbered;
use super::selectors::Use;
use super::shared::fingerprint;
use super::slots::Slots;
use crate::compile::domains::Domains;
use crate::compile::rules::{Directions, Effect, Named, PortMatch, Ports, Rule, Subject};
use crate::objects::{Action, PodsIn, TierPeer, TierPolicy, TierPort, TierRule};

#[derive(Debug, Default)]
pub(super) struct Tiers {
    slots: Slots<TierSlot>,
    by_name: HashMap<(PolicyKind, Arc<str>), u32>,
    /// Lists of policies that some identity is a subject of; the first, 0, is the empty one.
    subjects: Slots<SubjectSlot>,
    by_policies: HashMap<Box<[u32]>, u32>,
    /// Domain name patterns that rules name, and how often.
    patterns: Slots<(Arc<str>, u32)>,
    /// The addresses behind DNS names.
    pub(super) names: BTreeMap<String, BTreeSet<IpAddr>>,
    pub(super) domains_changed: bool,
}

#[derive(Debug)]
struct TierSlot {
    kind: PolicyKind,
    name: Arc<str>,
    tier: Tier,
    priority: u16,
    fingerprint: u64,
    /// The set of its subjects.
    subject: u32,
    /// For ingress and egress.
    rules: [Named; 2],
    uses: Box<[Use]>,
}

impl Default for TierSlot {
    fn default() -> Self {
        Self {
            kind: PolicyKind::ClusterNetworkPolicy,
            name: Arc::default(),
            tier: Tier::Admin,
            priority: 0,
            fingerprint: 0,
            subject: 0,
            rules: [(), ()].map(|()| Named::new(Arc::new([]), std::iter::empty())),
            uses: Box::default(),
        }
    }
}

/// A list of policies, in the order of their evaluation.
#[derive(Debug, Default)]
struct SubjectSlot {
    policies: Box<[u32]>,
    /// Identities.
    users: u32,
}

impl Tiers {
    /// By tier, priority and name. Equal names can only be of two kinds.
    fn order(&self, a: u32, b: u32) -> Ordering {
        let place = |number: u32| {
            let slot = &self.slots[number];
            (slot.tier, slot.priority, &slot.name, slot.kind)
        };
        place(a).cmp(&place(b))
    }

    fn pattern(&mut self, pattern: &str) -> u32 {
        let known = self.patterns.iter().find(|(_, (own, users))| *users > 0 && **own == *pattern);
        match known.map(|(number, _)| number) {
            Some(number) => {
                self.patterns[number].1 += 1;
                number
            }
            None => {
                self.domains_changed = true;
                self.patterns.insert((pattern.into(), 1))
            }
        }
    }

    pub(super) fn release_pattern(&mut self, number: u32) {
        self.patterns[number].1 -= 1;
        if self.patterns[number].1 == 0 {
            self.patterns.remove(number);
            self.domains_changed = true;
        }
    }
}

impl Cluster {
    pub(super) fn put_tier_policy(&mut self, new: &TierPolicy) -> bool {
        let print = fingerprint(new);
        let name = self.texts.text(&new.name);
        let key = (new.kind, Arc::clone(&name));
        let known = self.tiers.by_name.get(&key).copied();
        if known.is_some_and(|number| self.tiers.slots[number].fingerprint == print) {
            return false;
        }
        let slot = self.compile_tier_policy(name, new, print);
        let subject = slot.subject;
        let Some(number) = known else {
            let number = self.tiers.slots.insert(slot);
            self.tiers.by_name.insert(key, number);
            *self.count_of(new.kind) += 1;
            self.selectors.sets[subject].subject_of.push(number);
            self.exchange_subjects(number, None, Some(subject));
            return true;
        };
        let old = std::mem::replace(&mut self.tiers.slots[number], slot);
        if old.subject != subject {
            self.selectors.sets[old.subject].subject_of.retain(|own| *own != number);
            self.selectors.sets[subject].subject_of.push(number);
        }
        self.renew_lists_with(number);
        if old.subject != subject {
            self.exchange_subjects(number, Some(old.subject), Some(subject));
        }
        self.release_set(old.subject);
        self.release_uses(None, &old.uses);
        true
    }

    pub(super) fn delete_tier_policy(&mut self, kind: PolicyKind, name: &str) -> bool {
        let Some(number) = self.tiers.by_name.remove(&(kind, name.into())) else { return false };
        let subject = self.tiers.slots[number].subject;
        self.selectors.sets[subject].subject_of.retain(|own| *own != number);
        self.exchange_subjects(number, Some(subject), None);
        let slot = self.tiers.slots.remove(number);
        self.release_set(subject);
        self.release_uses(None, &slot.uses);
        *self.count_of(kind) -= 1;
        true
    }

    fn count_of(&mut self, kind: PolicyKind) -> &mut usize {
        match kind {
            PolicyKind::NetworkPolicy => &mut self.counts.network_policies,
            PolicyKind::ClusterNetworkPolicy => &mut self.counts.cluster_network_policies,
            PolicyKind::AdminNetworkPolicy => &mut self.counts.admin_network_policies,
            PolicyKind::BaselineAdminNetworkPolicy => &mut self.counts.baseline_admin_network_policies,
        }
    }

    /// Kinds and names of all policies of these tiers.
    pub(super) fn tier_policy_names(&self) -> impl Iterator<Item = &(PolicyKind, Arc<str>)> {
        self.tiers.by_name.keys()
    }

    fn compile_tier_policy(&mut self, name: Arc<str>, new: &TierPolicy, fingerprint: u64) -> TierSlot {
        let PodsIn { namespaces, pods } = &new.subject;
        let subject = self.pods_in(namespaces, pods);
        let reference = PolicyRef { kind: new.kind, namespace: None, name: Arc::clone(&name), rule: None };
        let mut uses = Vec::new();
        let rules = [&new.ingress, &new.egress].map(|rules| {
            let names = numbered(&reference, rules.len());
            Named::new(rules.iter().map(|rule| self.tier_rule(rule, &mut uses)).collect(), names)
        });
        TierSlot {
            kind: new.kind,
            name,
            tier: new.tier,
            priority: new.priority.unwrap_or(u16::MAX),
            fingerprint,
            subject,
            rules,
            uses: uses.into(),
        }
    }

    fn tier_rule(&mut self, rule: &TierRule, uses: &mut Vec<Use>) -> Rule {
        let effect = match (fails_closed(rule), rule.action) {
            (_, Action::Accept) => Effect::Accept,
            (true, _) | (false, Action::Deny) => Effect::Deny,
            (false, Action::Pass) => Effect::Pass,
        };
        let mut compiled = Rule::new(effect);
        if fails_closed(rule) {
            compiled.any_peer = effect == Effect::Deny;
            return compiled;
        }
        let mut networks = Vec::new();
        for peer in &rule.peers {
            match peer {
                TierPeer::Networks(more) => networks.extend(more.iter().map(|one| (one, [].as_slice()))),
                _ => self.tier_peer(peer, &mut compiled, uses),
            }
        }
        compiled.blocks = self.policies.blocks(networks);
        if let Some(ports) = &rule.ports {
            compiled.ports = ports.iter().map(|port| self.tier_port(port)).collect::<Ports>();
        }
        compiled
    }

    fn tier_peer(&mut self, peer: &TierPeer, rule: &mut Rule, uses: &mut Vec<Use>) {
        let with = |list: &[u32], number| -> Box<[u32]> {
            let all: BTreeSet<u32> = list.iter().copied().chain([number]).collect();
            all.into_iter().collect()
        };
        match peer {
            TierPeer::Pods(PodsIn { namespaces, pods }) => {
                let set = self.pods_in(namespaces, pods);
                rule.add_set(set);
                uses.push(Use::Set(set));
            }
            TierPeer::Nodes(selector) => {
                let set = self.acquire_node_set(selector);
                let more = rule.more.get_or_insert_default();
                more.nodes = with(&more.nodes, set);
                uses.push(Use::Nodes(set));
            }
            TierPeer::Domains(patterns) => {
                for pattern in patterns {
                    let number = self.tiers.pattern(pattern);
                    let more = rule.more.get_or_insert_default();
                    more.domains = with(&more.domains, number);
                    uses.push(Use::Pattern(number));
                }
            }
            TierPeer::Networks(_) | TierPeer::Unknown => {}
        }
    }

    fn tier_port(&mut self, port: &TierPort) -> PortMatch {
        match port {
            TierPort::Range { protocol, low, high } => {
                PortMatch::Range { protocol: *protocol, low: *low, high: *high }
            }
            TierPort::Named(name) => PortMatch::Named { protocol: None, name: self.port_name(name) },
        }
    }

    /// Follows a policy whose subject is another now: those who are in one of the sets and not in the other
    /// get another list.
    fn exchange_subjects(&mut self, policy: u32, before: Option<u32>, now: Option<u32>) {
        let members =
            |set: Option<u32>| set.and_then(|set| self.view.sets.get(set)).cloned().unwrap_or_default();
        let (before, now) = (members(before), members(now));
        let mut lists: HashMap<u32, u32> = HashMap::new();
        for identity in before.iter().filter(|identity| !now.contains(*identity)) {
            self.move_subject(identity, &mut lists, |list| list.retain(|own| *own != policy));
        }
        lists.clear();
        for identity in now.iter().filter(|identity| !before.contains(*identity)) {
            self.move_subject(identity, &mut lists, |list| list.push(policy));
        }
    }

    fn move_subject(
        &mut self,
        identity: u32,
        lists: &mut HashMap<u32, u32>,
        change: impl FnOnce(&mut Vec<u32>),
    ) {
        let before = self.view.kinds.get(identity).map_or(0, |kind| kind.subject);
        let known = lists.get(&before).copied();
        let now = known.unwrap_or_else(|| {
            let mut policies = self.tiers.subjects_of(before).to_vec();
            change(&mut policies);
            let now = self.subject(policies);
            lists.insert(before, now);
            now
        });
        self.exchange_subject(identity, before, now);
    }

    fn exchange_subject(&mut self, identity: u32, before: u32, now: u32) {
        if before == now {
            return;
        }
        if now != 0 {
            self.tiers.subjects[now].users += 1;
        }
        self.view.kinds.get_mut(identity).subject = now;
        self.release_subject(before);
    }

    /// Finds out which policies speak about an identity.
    pub(super) fn set_subject(&mut self, identity: u32) {
        let slot = &self.identities.slots[identity];
        let groups = &self.namespaces.slots[slot.namespace].groups;
        let sets = self.selectors.matching(groups, &slot.labels);
        let policies: Vec<u32> = sets.flat_map(|set| &self.selectors.sets[set].subject_of).copied().collect();
        let before = self.view.kinds.get(identity).map_or(0, |kind| kind.subject);
        let now = self.subject(policies);
        self.exchange_subject(identity, before, now);
    }

    pub(super) fn forget_subject(&mut self, identity: u32) {
        let before = self.view.kinds.get(identity).map_or(0, |kind| kind.subject);
        self.exchange_subject(identity, before, 0);
    }

    /// The number of a list of policies, which need not be in order.
    fn subject(&mut self, mut policies: Vec<u32>) -> u32 {
        if policies.is_empty() {
            return 0;
        }
        policies.sort_by(|a, b| self.tiers.order(*a, *b));
        policies.dedup();
        let policies: Box<[u32]> = policies.into();
        if let Some(number) = self.tiers.by_policies.get(&policies) {
            return *number;
        }
        if self.tiers.subjects.iter().next().is_none() {
            // Number 0 stays the empty list's.
            self.tiers.subjects.insert(SubjectSlot::default());
        }
        let number = self.tiers.subjects.insert(SubjectSlot { policies: policies.clone(), users: 0 });
        self.view.subjects.set(number, Some(Arc::new(self.tiers.compiled(&policies))));
        self.tiers.by_policies.insert(policies, number);
        number
    }

    fn release_subject(&mut self, number: u32) {
        if number == 0 {
            return;
        }
        let slot = &mut self.tiers.subjects[number];
        slot.users -= 1;
        if slot.users == 0 {
            let slot = self.tiers.subjects.remove(number);
            self.tiers.by_policies.remove(&slot.policies);
            self.view.subjects.set(number, None);
        }
    }

    /// Follows a change of what a policy says, or of its place in the order.
    fn renew_lists_with(&mut self, policy: u32) {
        let all = self.tiers.subjects.iter();
        let with: Vec<u32> =
            all.filter(|(_, slot)| slot.policies.contains(&policy)).map(|(number, _)| number).collect();
        for number in with {
            let before = std::mem::take(&mut self.tiers.subjects[number].policies);
            let mut policies = before.to_vec();
            policies.sort_by(|a, b| self.tiers.order(*a, *b));
            let policies: Box<[u32]> = policies.into();
            self.view.subjects.set(number, Some(Arc::new(self.tiers.compiled(&policies))));
            self.tiers.by_policies.remove(&before);
            self.tiers.by_policies.insert(policies.clone(), number);
            self.tiers.subjects[number].policies = policies;
        }
    }

    /// Says which addresses DNS names stand for. False when it changed nothing.
    pub(super) fn set_names(&mut self, names: &BTreeMap<String, BTreeSet<IpAddr>>) -> bool {
        let changed = self.tiers.names != *names;
        if changed {
            self.tiers.names = names.clone();
            self.tiers.domains_changed = true;
        }
        changed
    }

    pub(super) fn settle_domains(&mut self) {
        if std::mem::take(&mut self.tiers.domains_changed) {
            let patterns = self.tiers.patterns.iter().map(|(_, (pattern, _))| Arc::clone(pattern)).collect();
            self.view.domains = Arc::new(Domains::new(patterns, &self.tiers.names));
        }
    }
}

impl Tiers {
    fn subjects_of(&self, number: u32) -> &[u32] {
        if number == 0 { &[] } else { &self.subjects[number].policies }
    }

    fn compiled(&self, policies: &[u32]) -> Subject {
        let slots = || policies.iter().map(|number| &self.slots[*number]);
        let directions = |tier| -> Directions {
            DIRECTIONS.map(|direction| {
                let own = slots().filter(|slot| slot.tier == tier).map(|slot| &slot.rules[direction]);
                own.filter(|own| !own.rules.is_empty()).cloned().collect()
            })
        };
        let mut rules = slots().flat_map(|slot| slot.rules.iter().flat_map(|own| own.rules.iter()));
        let content: Vec<u64> = slots().map(|slot| slot.fingerprint).collect();
        Subject {
            admin: directions(Tier::Admin),
            baseline: directions(Tier::Baseline),
            may_be_denied: rules.any(|rule| rule.effect == Effect::Deny),
            content: fingerprint(&content),
        }
    }
}

/// A peer of an unknown kind, or domain names in a rule that is no Accept, which the API does not support.
pub(crate) fn fails_closed(rule: &TierRule) -> bool {
    rule.peers.iter().any(|peer| match peer {
        TierPeer::Unknown => true,
        TierPeer::Domains(_) => rule.action != Action::Accept,
        _ => false,
    })
}
