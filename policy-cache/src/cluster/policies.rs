//! NetworkPolicies → rules that compare numbers only.

use std::sync::Arc;

use flow::{PolicyKind, PolicyRef};
use ipnet::IpNet;

use super::Cluster;
use super::selectors::{Scope, Use};
use super::shared::{Shared, fingerprint};
use super::slots::Slots;
use crate::compile::ranges::AddressRanges;
use crate::compile::rules::{Effect, Long, Named, PortMatch, Ports, Rule};
use crate::objects::{self, NetworkPolicy, Numbers, Peer, Port, Selector};

#[derive(Debug, Default)]
pub(super) struct Policies {
    pub(super) slots: Slots<PolicySlot>,
    /// Blocks of addresses: many policies have the same.
    blocks: Shared<AddressRanges>,
    /// Rules: policies of one form have the same, and so have those whom they isolate.
    rules: Shared<[Rule]>,
}

/// Rules of a policy up to which they are copied into the lists of the identities it isolates, where they are
/// read without a detour.
const MAX_COPIED: usize = 16;

#[derive(Debug)]
pub(super) struct PolicySlot {
    pub(super) name: Arc<str>,
    pub(super) fingerprint: u64,
    pub(super) selector: Arc<Selector>,
    /// For ingress and egress; `None` where it does not isolate.
    pub(super) rules: [Option<PolicyRules>; 2],
    /// How it is named in decisions, no rule of it meant.
    pub(super) reference: PolicyRef,
    uses: Box<[Use]>,
}

/// The rules of a policy in one direction.
#[derive(Debug)]
pub(super) enum PolicyRules {
    Few(Arc<[Rule]>),
    Many(Long),
}

impl Default for PolicySlot {
    fn default() -> Self {
        let name: Arc<str> = Arc::default();
        let kind = PolicyKind::NetworkPolicy;
        Self {
            name: Arc::clone(&name),
            fingerprint: 0,
            selector: Arc::default(),
            rules: [None, None],
            reference: PolicyRef { kind, namespace: None, name, rule: None },
            uses: Box::default(),
        }
    }
}

impl Policies {
    /// One pointer for equal blocks.
    pub(super) fn blocks<'b>(
        &mut self,
        blocks: impl IntoIterator<Item = (&'b IpNet, &'b [IpNet])>,
    ) -> Option<Arc<AddressRanges>> {
        let ranges = AddressRanges::new(blocks);
        (!ranges.is_empty()).then(|| self.blocks.get(&ranges, || Arc::new(ranges.clone())))
    }

    /// One pointer for equal rules.
    pub(super) fn share(&mut self, rules: Vec<Rule>) -> Arc<[Rule]> {
        self.rules.get(rules.as_slice(), || rules.clone().into())
    }

    pub(super) fn sweep(&mut self) {
        self.blocks.sweep();
        self.rules.sweep();
    }
}

impl Cluster {
    pub(super) fn put_policy(&mut self, new: &NetworkPolicy) -> bool {
        let namespace = self.acquire_namespace(&new.namespace);
        let print = fingerprint(new);
        let place = self.policy_place(namespace, &new.name);
        let known = place.ok().map(|place| self.namespaces.slots[namespace].policies[place]);
        if known.is_some_and(|number| self.policies.slots[number].fingerprint == print) {
            self.release_namespace(namespace);
            return false;
        }
        let slot = self.compile_policy(namespace, new, print);
        let number = match (known, place) {
            (Some(number), _) => {
                let old = std::mem::replace(&mut self.policies.slots[number], slot);
                self.release_uses(Some(namespace), &old.uses);
                self.release_namespace(namespace);
                number
            }
            (None, place) => {
                let number = self.policies.slots.insert(slot);
                let place = place.unwrap_or_else(|place| place);
                self.namespaces.slots[namespace].policies.insert(place, number);
                self.counts.network_policies += 1;
                number
            }
        };
        self.reselect(namespace, number, false);
        true
    }

    pub(super) fn delete_policy(&mut self, namespace: &str, name: &str) -> bool {
        let Some(namespace) = self.namespaces.number(namespace) else { return false };
        let Ok(place) = self.policy_place(namespace, name) else { return false };
        let number = self.namespaces.slots[namespace].policies.remove(place);
        self.reselect(namespace, number, true);
        let slot = self.policies.slots.remove(number);
        self.release_uses(Some(namespace), &slot.uses);
        self.release_namespace(namespace);
        self.counts.network_policies -= 1;
        true
    }

    fn policy_place(&self, namespace: u32, name: &str) -> Result<usize, usize> {
        let policies = &self.namespaces.slots[namespace].policies;
        policies.binary_search_by(|number| (*self.policies.slots[*number].name).cmp(name))
    }

    fn compile_policy(&mut self, namespace: u32, new: &NetworkPolicy, fingerprint: u64) -> PolicySlot {
        let name = self.texts.text(&new.name);
        let reference = PolicyRef {
            kind: PolicyKind::NetworkPolicy,
            namespace: Some(Arc::clone(&self.namespaces.slots[namespace].what.name)),
            name: Arc::clone(&name),
            rule: None,
        };
        let mut uses = Vec::new();
        let rules = [&new.ingress, &new.egress].map(|rules| {
            let rules = rules.as_ref()?.iter().map(|rule| self.rule(namespace, rule, &mut uses));
            let rules: Vec<Rule> = rules.collect();
            if rules.len() <= MAX_COPIED {
                return Some(PolicyRules::Few(self.policies.share(rules)));
            }
            let names = numbered(&reference, rules.len());
            Some(PolicyRules::Many(Long(Named::new(rules.into(), names))))
        });
        let selector = self.selectors.share(&new.pod_selector);
        PolicySlot { name, fingerprint, selector, rules, reference, uses: uses.into() }
    }

    fn rule(&mut self, namespace: u32, rule: &objects::Rule, uses: &mut Vec<Use>) -> Rule {
        let mut compiled = Rule::new(Effect::Accept);
        compiled.any_peer = rule.peers.is_none();
        let mut blocks = Vec::new();
        for peer in rule.peers.iter().flatten() {
            match peer {
                Peer::Block { cidr, except } => blocks.push((cidr, except.as_slice())),
                Peer::Pods { namespaces, pods } => {
                    let used = self.peer(namespace, namespaces.as_ref(), pods.as_ref());
                    compiled.add(used);
                    uses.push(used);
                }
            }
        }
        compiled.blocks = self.policies.blocks(blocks);
        if let Some(ports) = &rule.ports {
            compiled.ports = ports.iter().map(|port| self.port(port)).collect::<Ports>();
        }
        compiled
    }

    fn peer(&mut self, namespace: u32, namespaces: Option<&Selector>, pods: Option<&Selector>) -> Use {
        let everything = Selector::default();
        let pods = pods.unwrap_or(&everything);
        match namespaces {
            None => self.acquire_local(namespace, pods),
            Some(namespaces) => Use::Set(self.pods_in(namespaces, pods)),
        }
    }

    /// The set of the pods that both selectors match.
    pub(super) fn pods_in(&mut self, namespaces: &Selector, pods: &Selector) -> u32 {
        let (namespaces, pods) = (self.selectors.share(namespaces), self.selectors.share(pods));
        self.acquire_set(Scope::Namespaces(namespaces), &pods)
    }

    fn port(&mut self, port: &Port) -> PortMatch {
        let protocol = port.protocol;
        match &port.numbers {
            Numbers::Any => PortMatch::Range { protocol, low: 0, high: u16::MAX },
            Numbers::Range(low, high) => PortMatch::Range { protocol, low: *low, high: *high },
            Numbers::Named(name) => PortMatch::Named { protocol: Some(protocol), name: self.port_name(name) },
        }
    }

    pub(super) fn port_name(&mut self, name: &str) -> u32 {
        let name = self.texts.text(name);
        self.identities.port_name(&name)
    }

    /// Namespaces and names of all NetworkPolicies.
    pub(super) fn policy_names(&self) -> impl Iterator<Item = (&str, &str)> {
        let references = self.policies.slots.iter().map(|(_, slot)| &slot.reference);
        references.filter_map(|own| Some((own.namespace.as_deref()?, &*own.name)))
    }
}

/// The names of a policy's rules, by their index.
pub(super) fn numbered(policy: &PolicyRef, rules: usize) -> impl Iterator<Item = PolicyRef> + '_ {
    (0..).take(rules).map(|index| PolicyRef { rule: Some(index), ..policy.clone() })
}

impl Rule {
    fn add(&mut self, used: Use) {
        match used {
            Use::Local(bit) => self.local |= 1 << bit,
            Use::Set(number) => self.add_set(number),
            Use::Nodes(_) | Use::Pattern(_) => {}
        }
    }
}
