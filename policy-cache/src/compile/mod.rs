//! Objects → [`Snapshot`]: addresses, identities and policies as numbers. Pure: no clock, no I/O, no lock.

pub(crate) mod addresses;
pub(crate) mod domains;
pub(crate) mod policies;
pub(crate) mod ranges;
pub(crate) mod selection;
pub(crate) mod services;
pub(crate) mod tiers;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::IpAddr;
use std::sync::Arc;

use flow::{Generation, Owner, PolicyRef, Protocol, Uid, Workload};

use crate::objects::{self, Labels, NamedPort, Objects};
use crate::options::Options;
use crate::snapshot::{Identity, Namespace, PodEntry, Snapshot};
use addresses::Addresses;
use domains::Domains;
use policies::{Compiler, Universe};
use selection::LabelIndex;

/// The label every namespace carries with its own name (KEP-2161).
const NAMESPACE_NAME_LABEL: &str = "kubernetes.io/metadata.name";
/// The label whose value a Deployment appends to its ReplicaSets' names.
const TEMPLATE_HASH_LABEL: &str = "pod-template-hash";

/// Compiles a set of objects for one node.
pub fn compile(objects: &Objects, options: &Options, generation: Generation) -> Snapshot {
    let mut addresses = Addresses::new(objects, options);
    let namespaces = namespaces(objects);
    let keys = identity_keys(objects, &addresses);
    let port_names = port_names(&keys);
    let node_labels = node_labels(objects, &addresses);
    let universe = universe(&namespaces, &keys, port_names, node_labels);
    let references: Vec<PolicyRef> =
        objects.policies.iter().map(|policy| policies::reference(policy)).collect();
    let mut compiler = Compiler::new(&universe);
    let compiled = objects
        .policies
        .iter()
        .zip(&references)
        .map(|(policy, reference)| compiler.policy(policy, reference));
    let compiled = compiled.collect();
    let domains = Domains::new(objects);
    let tiers: Vec<_> = objects.tiers.iter().map(|policy| compiler.tier_policy(policy, &domains)).collect();
    let subjects = compiler.subjects(&objects.tiers, &tiers);
    let isolations = |direction| policies::isolations(&universe, &objects.policies, &references, direction);
    let ingress = isolations(|policy| policy.ingress.is_some());
    let egress = isolations(|policy| policy.egress.is_some());
    let namespace_table: Vec<Arc<Namespace>> = namespaces
        .iter()
        .map(|(name, labels)| Arc::new(Namespace { name: (*name).into(), labels: Arc::clone(labels) }))
        .collect();
    let identities: Vec<Identity> = keys
        .iter()
        .zip(ingress.into_iter().zip(egress))
        .zip(subjects)
        .map(|((key, (ingress, egress)), subject)| Identity {
            namespace: Arc::clone(&namespace_table[universe.namespaces[key.namespace] as usize]),
            labels: Arc::new(key.labels.clone()),
            named_ports: key.ports.into(),
            ports: named_ports(key, &universe.port_names),
            ingress,
            egress,
            subject,
        })
        .collect();
    let pods = pod_entries(objects, options, &addresses, &keys, &identities);
    let services = services::Services::new(objects, &addresses);
    addresses.forget_pods();
    Snapshot {
        generation,
        own_node_egress: options.own_node_egress,
        addresses,
        pods,
        identities,
        policies: compiled,
        tiers,
        domains,
        services,
        counts: objects.counts(),
    }
}

/// What pods that policies cannot tell apart have in common.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
struct IdentityKey<'o> {
    namespace: &'o str,
    labels: &'o Labels,
    ports: &'o [NamedPort],
}

impl<'o> IdentityKey<'o> {
    fn of(pod: &'o objects::Pod) -> Self {
        Self { namespace: &pod.namespace, labels: &pod.labels, ports: &pod.named_ports }
    }
}

/// Every namespace declared or used, with the label that is always there.
fn namespaces(objects: &Objects) -> BTreeMap<&str, Arc<Labels>> {
    let none = Labels::new();
    let used = objects.pods.iter().map(|pod| (pod.namespace.as_str(), &none));
    let declared = objects.namespaces.iter().map(|namespace| (namespace.name.as_str(), &namespace.labels));
    let mut namespaces: BTreeMap<&str, &Labels> = used.collect();
    namespaces.extend(declared);
    namespaces
        .into_iter()
        .map(|(name, labels)| {
            let mut labels = labels.clone();
            labels.insert(NAMESPACE_NAME_LABEL.to_owned(), name.to_owned());
            (name, Arc::new(labels))
        })
        .collect()
}

/// The distinct identities of pods that have an address, by namespace.
fn identity_keys<'o>(objects: &'o Objects, addresses: &Addresses) -> Vec<IdentityKey<'o>> {
    let holders: std::collections::HashSet<IdentityKey<'o>> =
        addresses.holders().map(|number| IdentityKey::of(&objects.pods[number as usize])).collect();
    let mut keys: Vec<_> = holders.into_iter().collect();
    keys.sort_unstable();
    keys
}

fn port_names<'o>(keys: &[IdentityKey<'o>]) -> HashMap<&'o str, u32> {
    let names: BTreeSet<&str> =
        keys.iter().flat_map(|key| key.ports).map(|port| port.name.as_str()).collect();
    names.into_iter().zip(0..).collect()
}

fn universe<'o>(
    namespaces: &'o BTreeMap<&'o str, Arc<Labels>>,
    keys: &[IdentityKey<'o>],
    port_names: HashMap<&'o str, u32>,
    node_labels: Vec<&'o Labels>,
) -> Universe<'o> {
    let mut start = 0;
    let number = |index: usize| u32::try_from(index).unwrap_or(u32::MAX);
    let identities_of = namespaces
        .keys()
        .map(|name| {
            let count = keys[start..].iter().take_while(|key| key.namespace == *name).count();
            let range = number(start)..number(start + count);
            start += count;
            range
        })
        .collect();
    Universe {
        namespaces: namespaces.keys().copied().zip(0..).collect(),
        namespace_labels: LabelIndex::new(namespaces.values().map(|labels| &**labels).collect()),
        identities_of,
        identity_labels: LabelIndex::new(keys.iter().map(|key| key.labels).collect()),
        port_names,
        node_labels: LabelIndex::new(node_labels),
    }
}

/// The labels of every node that has a number; one that only pods name has none.
fn node_labels<'o>(objects: &'o Objects, addresses: &Addresses) -> Vec<&'o Labels> {
    static NONE: Labels = Labels::new();
    let mut labels = vec![&NONE; addresses.node_names.len()];
    for node in &objects.nodes {
        if let Some(number) = addresses.node_number(&node.name) {
            labels[number as usize] = &node.labels;
        }
    }
    labels
}

fn named_ports(key: &IdentityKey<'_>, names: &HashMap<&str, u32>) -> Box<[(u32, Protocol, u16)]> {
    key.ports.iter().map(|port| (names[port.name.as_str()], port.protocol, port.number)).collect()
}

fn pod_entries(
    objects: &Objects,
    options: &Options,
    addresses: &Addresses,
    keys: &[IdentityKey<'_>],
    identities: &[Identity],
) -> HashMap<IpAddr, Arc<PodEntry>> {
    let identity_of: HashMap<&IdentityKey<'_>, u32> = keys.iter().zip(0..).collect();
    let mut built: HashMap<u32, Arc<PodEntry>> = HashMap::new();
    let mut workloads: HashMap<_, Arc<Workload>> = HashMap::new();
    let mut build = |number: u32| {
        let pod = &objects.pods[number as usize];
        let identity = identity_of[&IdentityKey::of(pod)];
        let node = addresses.node_of(pod);
        let name = node.map(|node| Arc::clone(addresses.node_name(node)));
        Arc::new(PodEntry {
            pod: Arc::new(flow::Pod {
                workload: Arc::clone(workloads.entry((identity, &pod.owner)).or_insert_with(|| {
                    Arc::new(Workload {
                        namespace: Arc::clone(&identities[identity as usize].namespace.name),
                        labels: pod.labels.iter().map(|(key, value)| (&**key, &**value)).collect(),
                        owner: owner(pod),
                    })
                })),
                name: pod.name.as_str().into(),
                uid: Uid::new(&pod.uid),
                local: name.is_some() && name.as_deref() == options.node.as_deref(),
                node: name,
            }),
            identity,
            node,
        })
    };
    addresses
        .pods()
        .map(|(ip, number)| (ip, Arc::clone(built.entry(number).or_insert_with(|| build(number)))))
        .collect()
}

/// The controlling owner; a ReplicaSet that a Deployment made becomes the Deployment.
fn owner(pod: &objects::Pod) -> Option<Owner> {
    let (kind, name) = pod.owner.as_ref()?;
    if kind == "ReplicaSet"
        && let Some(hash) = pod.labels.get(TEMPLATE_HASH_LABEL)
        && let Some(deployment) = name.strip_suffix(hash.as_str()).and_then(|name| name.strip_suffix('-'))
    {
        return Some(Owner { kind: "Deployment".into(), name: deployment.into() });
    }
    Some(Owner { kind: kind.as_str().into(), name: name.as_str().into() })
}
