//! The Kubernetes objects that decide, each with only the fields that do. Everything here has been validated.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::Arc;

use flow::{PolicyKind, Protocol};
use ipnet::IpNet;

use crate::manifest::{files, kinds};

mod all;
mod event;
mod tiers;

pub(crate) use event::Entity;
pub use event::{Event, Kind, Object, ObjectKey};
pub(crate) use tiers::{Action, PodsIn, TierPeer, TierPolicy, TierPort, TierRule};

/// How many pods a note names.
const MAX_NAMED: usize = 5;

pub(crate) type Labels = BTreeMap<String, String>;

/// A parsed and validated set of objects.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Objects {
    pub(crate) pods: Vec<Pod>,
    pub(crate) namespaces: Vec<Namespace>,
    pub(crate) policies: Vec<Arc<NetworkPolicy>>,
    /// In the order of their evaluation.
    pub(crate) tiers: Vec<Arc<TierPolicy>>,
    pub(crate) nodes: Vec<Node>,
    pub(crate) services: Vec<Service>,
    pub(crate) slices: Vec<EndpointSlice>,
    /// The addresses behind DNS names, in lower case and without a final dot.
    pub(crate) domains: BTreeMap<String, BTreeSet<IpAddr>>,
    /// How many objects of each kind that decides nothing were passed over.
    pub(crate) skipped: BTreeMap<String, usize>,
    /// Files that were passed over for their extension and may have been meant.
    pub(crate) other_files: Vec<PathBuf>,
}

/// How many objects of each kind there are.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Pods, finished and hostNetwork ones included.
    pub pods: usize,
    /// Namespaces that were declared.
    pub namespaces: usize,
    /// NetworkPolicies.
    pub network_policies: usize,
    /// ClusterNetworkPolicies of both tiers.
    pub cluster_network_policies: usize,
    /// AdminNetworkPolicies.
    pub admin_network_policies: usize,
    /// BaselineAdminNetworkPolicies, of which there is one at most.
    pub baseline_admin_network_policies: usize,
    /// Nodes.
    pub nodes: usize,
    /// Services.
    pub services: usize,
    /// EndpointSlices.
    pub endpoint_slices: usize,
    /// Objects of kinds that decide nothing, by `apiVersion/kind`.
    pub skipped: BTreeMap<String, usize>,
}

impl Counts {
    /// What was passed over and looks like a policy, a line for each kind: a kind or group that is misspelt, or a
    /// policy of somebody else's.
    pub fn stray_policies(&self) -> Vec<String> {
        let told = |(kind, count): (&String, &usize)| {
            let (group, name) = kind.rsplit_once('/')?;
            let why = kinds::stray(group, name)?;
            Some(one_line(&format!("{count} {name} of {group}: {why}")))
        };
        self.skipped.iter().filter_map(told).collect()
    }
}

impl fmt::Display for Counts {
    /// The kinds there are, as `2 NetworkPolicy, 3 Pod`. What was passed over is not among them.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kinds = [
            ("NetworkPolicy", self.network_policies),
            ("ClusterNetworkPolicy", self.cluster_network_policies),
            ("AdminNetworkPolicy", self.admin_network_policies),
            ("BaselineAdminNetworkPolicy", self.baseline_admin_network_policies),
            ("Namespace", self.namespaces),
            ("Pod", self.pods),
            ("Node", self.nodes),
            ("Service", self.services),
            ("EndpointSlice", self.endpoint_slices),
        ];
        let there = kinds.iter().filter(|(_, count)| *count > 0);
        let words: Vec<String> = there.map(|(kind, count)| format!("{count} {kind}")).collect();
        f.write_str(&if words.is_empty() { "none".to_owned() } else { words.join(", ") })
    }
}

/// Control characters would let a manifest forge lines of output.
fn one_line(text: &str) -> String {
    text.replace(char::is_control, " ")
}

impl Objects {
    /// How many objects of each kind there are.
    pub fn counts(&self) -> Counts {
        let of_kind = |kind| self.tiers.iter().filter(|policy| policy.kind == kind).count();
        Counts {
            pods: self.pods.len(),
            namespaces: self.namespaces.len(),
            network_policies: self.policies.len(),
            cluster_network_policies: of_kind(PolicyKind::ClusterNetworkPolicy),
            admin_network_policies: of_kind(PolicyKind::AdminNetworkPolicy),
            baseline_admin_network_policies: of_kind(PolicyKind::BaselineAdminNetworkPolicy),
            nodes: self.nodes.len(),
            services: self.services.len(),
            endpoint_slices: self.slices.len(),
            skipped: self.skipped.clone(),
        }
    }

    /// What in the manifests was not used though it is valid, a line each.
    pub fn notes(&self) -> Vec<String> {
        self.notes_except(|_| false)
    }

    /// As [`Objects::notes`], without the kinds that somebody else has used.
    pub(crate) fn notes_except(&self, used: impl Fn(&str) -> bool) -> Vec<String> {
        let is_stray = |kind: &str| {
            kind.rsplit_once('/').is_some_and(|(group, kind)| kinds::stray(group, kind).is_some())
        };
        let skipped = self.skipped.iter().filter(|(kind, _)| !used(kind) && !is_stray(kind));
        let skipped: Vec<String> =
            skipped.map(|(kind, count)| format!("{count} {}", one_line(kind))).collect();
        let strange: Vec<&Pod> = self.pods.iter().filter(|pod| pod.phase == Phase::Strange).collect();
        let mut notes: Vec<String> = files::others_note(&self.other_files).into_iter().collect();
        notes.extend(self.counts().stray_policies().iter().map(|stray| format!("passed over: {stray}")));
        if !skipped.is_empty() {
            notes.push(format!("passed over, for they decide nothing: {}", skipped.join(", ")));
        }
        if !strange.is_empty() {
            let named = strange.iter().take(MAX_NAMED).map(|pod| format!("{}/{}", pod.namespace, pod.name));
            let mut names: Vec<String> = named.collect();
            if strange.len() > MAX_NAMED {
                names.push("…".to_owned());
            }
            notes.push(format!(
                "pods with a status.phase that does not exist, taken as not running, {} of them: {}",
                strange.len(),
                names.join(", ")
            ));
        }
        notes
    }

    /// Says which addresses a DNS name stands for, instead of what was said of it before. `domainNames` peers
    /// match these; of a name that nobody spoke of they match nothing.
    pub fn resolve(&mut self, name: &str, addresses: impl IntoIterator<Item = IpAddr>) {
        let name = name.trim_end_matches('.').to_ascii_lowercase();
        self.domains.insert(name, addresses.into_iter().map(flow::canonical_ip).collect());
    }
}

#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Namespace {
    pub(crate) name: String,
    pub(crate) labels: Labels,
}

#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Pod {
    pub(crate) namespace: String,
    pub(crate) name: String,
    pub(crate) uid: String,
    pub(crate) labels: Labels,
    pub(crate) node: Option<String>,
    /// Kind and name of the controlling owner, as written.
    pub(crate) owner: Option<(String, String)>,
    pub(crate) host_network: bool,
    pub(crate) phase: Phase,
    pub(crate) deleting: bool,
    /// `metadata.creationTimestamp`, RFC 3339, which sorts as text.
    pub(crate) created: String,
    /// The Ready condition, when there is one.
    pub(crate) ready: Option<bool>,
    pub(crate) ips: BTreeSet<IpAddr>,
    pub(crate) host_ips: BTreeSet<IpAddr>,
    /// Sorted and without duplicates.
    pub(crate) named_ports: Vec<NamedPort>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Phase {
    Running,
    /// Succeeded or Failed: an address in its status is no longer its own.
    Finished,
    /// Pending, Unknown, or not said.
    Other,
    /// A word that is no phase.
    Strange,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct NamedPort {
    pub(crate) name: String,
    pub(crate) protocol: Protocol,
    pub(crate) number: u16,
}

#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Node {
    pub(crate) name: String,
    pub(crate) labels: Labels,
    pub(crate) addresses: BTreeSet<IpAddr>,
    pub(crate) pod_cidrs: BTreeSet<IpNet>,
}

/// A NetworkPolicy with its defaults applied.
#[derive(Clone, Debug, PartialEq, Hash)]
pub(crate) struct NetworkPolicy {
    pub(crate) namespace: String,
    pub(crate) name: String,
    pub(crate) pod_selector: Selector,
    /// The rules of a direction in which it isolates; `None` where it does not, whatever rules it lists.
    pub(crate) ingress: Option<Vec<Rule>>,
    pub(crate) egress: Option<Vec<Rule>>,
}

#[derive(Clone, Debug, PartialEq, Hash)]
pub(crate) struct Rule {
    /// `None`: any peer.
    pub(crate) peers: Option<Vec<Peer>>,
    /// `None`: any port of any protocol.
    pub(crate) ports: Option<Vec<Port>>,
}

#[derive(Clone, Debug, PartialEq, Hash)]
pub(crate) enum Peer {
    Block {
        cidr: IpNet,
        except: Vec<IpNet>,
    },
    Pods {
        /// `None`: the policy's own namespace.
        namespaces: Option<Selector>,
        /// `None`: every pod of them.
        pods: Option<Selector>,
    },
}

#[derive(Clone, Debug, PartialEq, Hash)]
pub(crate) struct Port {
    pub(crate) protocol: Protocol,
    pub(crate) numbers: Numbers,
}

#[derive(Clone, Debug, PartialEq, Hash)]
pub(crate) enum Numbers {
    Any,
    /// Inclusive.
    Range(u16, u16),
    Named(String),
}

/// A label selector: every requirement must hold; without any it selects everything.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub(crate) struct Selector {
    pub(crate) requirements: Vec<Requirement>,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Requirement {
    pub(crate) key: String,
    pub(crate) operator: Operator,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Operator {
    In(BTreeSet<String>),
    NotIn(BTreeSet<String>),
    Exists,
    DoesNotExist,
}

impl Selector {
    pub(crate) fn is_everything(&self) -> bool {
        self.requirements.is_empty()
    }

    /// As [`Selector::matches`], for labels as snapshots have them.
    pub(crate) fn selects(&self, labels: &flow::Labels) -> bool {
        self.holds(|key| labels.get(key))
    }

    pub(crate) fn matches(&self, labels: &Labels) -> bool {
        self.holds(|key| labels.get(key).map(String::as_str))
    }

    /// Source: apimachinery's labels.Requirement.Matches; NotIn and DoesNotExist hold for an absent key.
    fn holds<'l>(&self, value_of: impl Fn(&str) -> Option<&'l str>) -> bool {
        self.requirements.iter().all(|requirement| {
            let value = value_of(&requirement.key);
            match &requirement.operator {
                Operator::In(values) => value.is_some_and(|value| values.contains(value)),
                Operator::NotIn(values) => value.is_none_or(|value| !values.contains(value)),
                Operator::Exists => value.is_some(),
                Operator::DoesNotExist => value.is_none(),
            }
        })
    }
}

#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Service {
    pub(crate) namespace: String,
    pub(crate) name: String,
    pub(crate) cluster_ips: BTreeSet<IpAddr>,
    /// `externalIPs`, and those of its load balancer. Only manifests are asked for them.
    pub(crate) outside_ips: BTreeSet<IpAddr>,
    /// `clusterIP: None`: nothing translates, and clients send to the endpoints' own addresses.
    pub(crate) is_headless: bool,
    /// `externalTrafficPolicy: Local`: whom a node gets from outside it gives to its own endpoints only.
    pub(crate) keeps_to_node: bool,
    /// Empty: its EndpointSlices are written by hand.
    pub(crate) selector: Labels,
    pub(crate) ports: Vec<ServicePort>,
}

#[derive(Clone, Debug, PartialEq)]
pub(crate) struct ServicePort {
    pub(crate) name: String,
    pub(crate) protocol: Protocol,
    pub(crate) port: u16,
    pub(crate) target: TargetPort,
    pub(crate) node_port: Option<u16>,
}

#[derive(Clone, Debug, PartialEq)]
pub(crate) enum TargetPort {
    Number(u16),
    Named(String),
}

#[derive(Clone, Debug, PartialEq)]
pub(crate) struct EndpointSlice {
    pub(crate) namespace: String,
    pub(crate) name: String,
    /// The `kubernetes.io/service-name` label.
    pub(crate) service: Option<String>,
    /// Addresses of ready endpoints.
    pub(crate) ready: Vec<IpAddr>,
    /// Name, protocol and number; ports without a number mean every port and cannot be resolved.
    pub(crate) ports: Vec<NamedPort>,
}
