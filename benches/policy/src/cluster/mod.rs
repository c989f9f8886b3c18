//! A size → a cluster of that size, as the manifests its API server would hand out.
//!
//! Pods come in Deployments whose pods carry equal labels, and in a few StatefulSets whose pods do not; teams
//! own namespaces; each namespace has a handful of policies of the usual forms, and the cluster has some of the
//! Admin and Baseline tiers. Node agents use their node's network, and Jobs leave finished pods behind. Texts are
//! made on demand, one for each namespace, so that a large cluster is never in memory twice.

mod policies;
mod random;
mod tiers;
mod workloads;

use std::fmt::Write as _;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::PathBuf;

use random::Random;
use workloads::Workload;

/// Namespaces and nodes of the largest cluster that addresses are laid out for.
const MAX_NODES: usize = 60_000;
/// The teams that own namespaces.
const TEAMS: usize = 50;
const ENVIRONMENTS: [&str; 3] = ["production", "staging", "development"];

/// How many of everything.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shape {
    /// Pods. One in fifty is finished, and the node agents among them have no address of their own.
    pub pods: usize,
    /// Namespaces.
    pub namespaces: usize,
    /// NetworkPolicies.
    pub policies: usize,
    /// Policies of the Admin and Baseline tiers.
    pub tier_policies: usize,
    /// Nodes.
    pub nodes: usize,
    /// Every pod has an IPv6 address too.
    pub dual_stack: bool,
}

impl Shape {
    /// A cluster of `pods` pods in the proportions of one with 150,000 pods, 5,000 namespaces, 10,000
    /// NetworkPolicies, 40 policies of the other tiers and 5,000 nodes.
    pub fn of(pods: usize) -> Self {
        let share = |whole: usize| (pods * whole).div_ceil(150_000).max(1);
        Self {
            pods,
            namespaces: share(5_000),
            policies: share(10_000),
            tier_policies: share(40),
            nodes: share(5_000).min(MAX_NODES),
            dual_stack: false,
        }
    }
}

/// A cluster that can be written down piece by piece.
#[derive(Clone, Debug)]
pub struct Cluster {
    shape: Shape,
    seed: u64,
    /// All pods, by namespace.
    workloads: Vec<Vec<Workload>>,
}

/// A connection attempt between addresses of the cluster, or with the outside.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Flow {
    /// Where it comes from.
    pub source: IpAddr,
    /// Where it goes.
    pub destination: SocketAddr,
}

impl Cluster {
    /// The cluster of this shape and seed.
    pub fn new(shape: Shape, seed: u64) -> Self {
        Self { shape, seed, workloads: workloads::plan(shape, seed) }
    }

    /// How many of everything it has.
    pub fn shape(&self) -> Shape {
        self.shape
    }

    /// How many namespaces have a text of their own.
    pub fn namespaces(&self) -> usize {
        self.shape.namespaces
    }

    /// All manifests: a file name and concatenated JSON objects each.
    pub fn texts(&self) -> impl Iterator<Item = (PathBuf, String)> + '_ {
        let namespaces = (0..self.shape.namespaces)
            .map(|number| (format!("{}.json", namespace_name(number)).into(), self.namespace_text(number)));
        let of_cluster = [("nodes.json", self.nodes_text()), ("tiers.json", self.tiers_text())];
        of_cluster.into_iter().map(|(name, text)| (name.into(), text)).chain(namespaces)
    }

    /// The nodes.
    pub fn nodes_text(&self) -> String {
        let mut text = String::new();
        for node in 0..self.shape.nodes {
            let v6 =
                if self.shape.dual_stack { format!(r#","fd00:10:{node:x}::/64""#) } else { String::new() };
            let _ = writeln!(
                text,
                r#"{{"apiVersion":"v1","kind":"Node","metadata":{{"name":"{}","labels":{{"topology.kubernetes.io/zone":"zone-{}"}}}},"spec":{{"podCIDRs":["{}/24"{v6}]}},"status":{{"addresses":[{{"type":"InternalIP","address":"{}"}}]}}}}"#,
                node_name(node),
                node % 3,
                pod_ip(node, 0),
                node_ip(node),
            );
        }
        text
    }

    /// The policies of the Admin and Baseline tiers.
    pub fn tiers_text(&self) -> String {
        (0..self.shape.tier_policies).map(|index| tiers::policy(index, self.seed)).collect()
    }

    /// Everything in one namespace, itself included.
    pub fn namespace_text(&self, number: usize) -> String {
        let mut text = self.namespace_object(number);
        for workload in &self.workloads[number] {
            for replica in 0..workload.pods.len() {
                text.push_str(&workload.pod(number, replica, self.shape.dual_stack));
            }
        }
        if let Some(workload) = self.workloads[number].first() {
            text.push_str(&workload.service(number, self.shape.dual_stack));
        }
        for index in self.policies_of(number) {
            text.push_str(&policies::policy(number, index, &self.workloads[number], self.seed));
        }
        text
    }

    fn namespace_object(&self, number: usize) -> String {
        let (team, environment) = (team(number), environment(number));
        format!(
            r#"{{"apiVersion":"v1","kind":"Namespace","metadata":{{"name":"{}","labels":{{"team":"{team}","environment":"{environment}"}}}}}}"#,
            namespace_name(number),
        ) + "\n"
    }

    /// The numbers of a namespace's policies: all policies are spread evenly.
    fn policies_of(&self, number: usize) -> std::ops::Range<usize> {
        let Shape { policies, namespaces, .. } = self.shape;
        number * policies / namespaces..(number + 1) * policies / namespaces
    }

    /// `namespace/name` of every pod that has an address to itself.
    pub fn pod_names(&self) -> impl Iterator<Item = String> + '_ {
        self.workloads.iter().enumerate().flat_map(|(number, workloads)| {
            workloads.iter().filter(|workload| workload.has_identity()).flat_map(move |workload| {
                (0..workload.pods.len())
                    .map(move |replica| format!("{}/{}", namespace_name(number), workload.pod_name(replica)))
            })
        })
    }

    /// Random flows: half of them inside a namespace, two in five across, the rest from or to the outside.
    pub fn flows(&self, count: usize, seed: u64) -> Vec<Flow> {
        let mut random = Random::new(seed);
        (0..count).map(|_| self.flow(&mut random)).collect()
    }

    /// Random flows as the process on one node sees them: one end is a pod of that node.
    pub fn flows_of_node(&self, node: usize, count: usize, seed: u64) -> Vec<Flow> {
        let workloads = self.workloads.iter().flatten().filter(|workload| workload.has_identity());
        let pods = workloads.flat_map(|workload| &workload.pods);
        let local: Vec<(usize, usize)> = pods.filter(|(on, _)| *on == node).copied().collect();
        let mut random = Random::new(seed);
        let mut pick = Random::new(!seed);
        std::iter::repeat_with(|| self.flow(&mut random))
            .take(count)
            .map(|mut flow| {
                let (node, place) = local[pick.below(local.len())];
                let v4 = flow.source.is_ipv4();
                let own = if v4 { pod_ip(node, place).into() } else { pod_ip6(node, place).into() };
                // The other end stays what it was, another pod or the outside.
                if pick.below(2) == 0 {
                    flow.source = own;
                } else {
                    flow.destination.set_ip(own);
                }
                flow
            })
            .collect()
    }

    fn flow(&self, random: &mut Random) -> Flow {
        let from = random.below(self.workloads.len());
        let kind = random.below(10);
        let to = if kind < 5 { from } else { random.below(self.workloads.len()) };
        let v6 = self.shape.dual_stack && random.below(2) == 1;
        let mut pod = |namespace: usize| -> IpAddr {
            let workloads = &self.workloads[namespace];
            let drawn = &workloads[random.below(workloads.len())];
            // The first one of a namespace always has identity.
            let workload = if drawn.has_identity() { drawn } else { &workloads[0] };
            let (node, place) = workload.pods[random.below(workload.pods.len())];
            if v6 { pod_ip6(node, place).into() } else { pod_ip(node, place).into() }
        };
        let outside = || -> IpAddr {
            if v6 {
                Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 7).into()
            } else {
                Ipv4Addr::new(203, 0, 113, 7).into()
            }
        };
        let (source, destination) = match kind {
            8 => (pod(from), outside()),
            9 => (outside(), pod(to)),
            _ => (pod(from), pod(to)),
        };
        let port = *random.pick(&[&80, &443, &8080, &9090, &5432, &53]);
        Flow { source, destination: SocketAddr::new(destination, port) }
    }
}

fn namespace_name(number: usize) -> String {
    match number {
        0 => "kube-system".to_owned(),
        1 => "monitoring".to_owned(),
        2 => "ingress".to_owned(),
        _ => format!("{}-{}-{number}", team(number), environment(number)),
    }
}

fn team(namespace: usize) -> String {
    format!("team-{}", namespace % TEAMS)
}

fn environment(namespace: usize) -> &'static str {
    ENVIRONMENTS[namespace % ENVIRONMENTS.len()]
}

fn node_name(number: usize) -> String {
    format!("node-{number:05}")
}

/// Nodes stand in 172.16.0.0/12.
fn node_ip(node: usize) -> Ipv4Addr {
    Ipv4Addr::from_bits((172 << 24 | 16 << 16) + low_bits(node) + 1)
}

/// Each node has a /24 of 10.0.0.0/8.
fn pod_ip(node: usize, place: usize) -> Ipv4Addr {
    Ipv4Addr::from_bits((10 << 24) + (low_bits(node) << 8) + low_bits(place))
}

fn pod_ip6(node: usize, place: usize) -> Ipv6Addr {
    Ipv6Addr::from_bits((0xfd00_0010 << 96) + ((node as u128) << 80) + place as u128)
}

fn low_bits(number: usize) -> u32 {
    u32::try_from(number).unwrap_or(u32::MAX)
}
