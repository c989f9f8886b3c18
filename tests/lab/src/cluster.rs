//! A cluster that exists: its nodes, pods, external host, and the folder with its manifests.

use std::collections::BTreeMap;
use std::fs::{self, DirBuilder};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::ops::Deref;
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use crate::error::LabError;
use crate::iproute::{bridge_batch, ip_batch, iptables_script, nft_script};
use crate::iptables_mode;
use crate::manifests;
use crate::netns::{self, Netns};
use crate::process::{Sluice, SluiceOptions};
use crate::services::{KubeProxy, ServicePlan, node_ruleset};
use crate::shape::{Families, Family, Topology};
use crate::spec::ClusterBuilder;
use crate::topology::{self, Names, Plan};
use crate::wait::wait_until;
use crate::wiring;

const LINK_LIMIT: Duration = Duration::from_secs(5);

/// Nodes and pods in network namespaces of their own. Everything goes on drop.
///
/// Addresses: node N is 172.18.0.1N and has pods in 10.244.N.0/24; ClusterIPs begin at 10.96.0.10; the
/// external host is 203.0.113.10.
#[derive(Debug)]
pub struct Cluster {
    plan: Plan,
    nodes: Vec<Node>,
    pods: Vec<Pod>,
    external: External,
    fabric: Arc<Netns>,
    folder: Folder,
    labels: Mutex<BTreeMap<String, BTreeMap<String, String>>>,
}

/// A node: its host network namespace. Sockets and commands through it are those of the node itself.
#[derive(Debug)]
pub struct Node {
    name: String,
    more: Vec<IpAddr>,
    address: Ipv4Addr,
    address_6: Option<Ipv6Addr>,
    has_v4: bool,
    pod_cidr: String,
    netns: Arc<Netns>,
    folder: PathBuf,
}

/// A pod. Sockets and commands through it are those of the pod.
#[derive(Debug)]
pub struct Pod {
    full_name: String,
    address: Ipv4Addr,
    address_6: Option<Ipv6Addr>,
    has_v4: bool,
    node: String,
    uid: String,
    veth: Option<String>,
    netns: Arc<Netns>,
}

/// A host outside the cluster. It reaches the nodes, not the pods.
#[derive(Debug)]
pub struct External {
    netns: Arc<Netns>,
    has_v4: bool,
    address_6: Option<Ipv6Addr>,
}

impl Cluster {
    /// Describes a cluster; see [`ClusterBuilder`].
    pub fn builder() -> ClusterBuilder {
        ClusterBuilder::new()
    }

    pub(crate) fn build(builder: ClusterBuilder) -> Result<Self, LabError> {
        let plan = topology::plan(&builder)?;
        let names = match &builder.prefix {
            Some(prefix) => Names::new(&plan, |role| format!("{prefix}-{role}")),
            None => Names::new(&plan, netns::unique_name),
        };
        let mut made: BTreeMap<String, Arc<Netns>> = Netns::create_named(names.all())?
            .into_iter()
            .map(|namespace| (namespace.name().to_owned(), Arc::new(namespace)))
            .collect();
        if plan.families.has(Family::V6) {
            for namespace in made.values() {
                namespace.sysctls(&wiring::duplicate_detection_off())?;
            }
        }
        configure(&plan, &names)?;
        for (index, name) in names.nodes.iter().enumerate() {
            if let Some(namespace) = made.get(name) {
                namespace.sysctls(&wiring::node_sysctls(&plan, index))?;
            }
        }
        if let Some(fabric) = made.get(&names.fabric) {
            fabric.sysctls(&wiring::fabric_sysctls(&plan))?;
        }
        if plan.families.has(Family::V6) {
            wait_for_links(&made, &wiring::interfaces(&plan, &names))?;
        }
        let folder = Folder::create(builder.folder)?;
        let mut take = |name: &str| {
            made.remove(name).ok_or(LabError::Unknown { kind: "namespace", name: name.to_owned() })
        };
        let mut nodes = Vec::new();
        for (node, name) in plan.nodes.iter().zip(&names.nodes) {
            nodes.push(Node {
                name: node.name.clone(),
                more: node.more.iter().map(|more| more.ip).collect(),
                address: node.address,
                address_6: node.address_6,
                has_v4: node.pod_cidr.is_some(),
                pod_cidr: plan
                    .families
                    .each()
                    .iter()
                    .find_map(|family| node.pods(*family))
                    .unwrap_or_default()
                    .to_owned(),
                netns: take(name)?,
                folder: folder.path.clone(),
            });
        }
        let mut pods = Vec::new();
        for (pod, name) in plan.pods.iter().zip(&names.pods) {
            let full_name = pod.spec.full_name();
            let netns = match name {
                Some(name) => take(name)?,
                None => Arc::clone(&nodes[pod.node].netns),
            };
            pods.push(Pod {
                uid: manifests::uid("Pod", &full_name),
                full_name,
                address: pod.address,
                address_6: pod.address_6,
                has_v4: pod.has_v4,
                node: plan.nodes[pod.node].name.clone(),
                veth: pod.veth.clone(),
                netns,
            });
        }
        let external = External {
            netns: take(&names.external)?,
            has_v4: plan.families.has(Family::V4),
            address_6: plan.families.has(Family::V6).then_some(topology::EXTERNAL_6),
        };
        let fabric = take(&names.fabric)?;
        let cluster =
            Self { plan, nodes, pods, external, fabric, folder, labels: Mutex::new(BTreeMap::new()) };
        cluster.write_manifests()?;
        Ok(cluster)
    }

    /// A node by name.
    pub fn node(&self, name: &str) -> Result<&Node, LabError> {
        let unknown = || LabError::Unknown { kind: "node", name: name.to_owned() };
        self.nodes.iter().find(|node| node.name == name).ok_or_else(unknown)
    }

    /// Every node, `node1` first.
    pub fn nodes(&self) -> &[Node] {
        &self.nodes
    }

    /// A pod by `namespace/name`; without a slash it is in `default`.
    pub fn pod(&self, full_name: &str) -> Result<&Pod, LabError> {
        let wanted =
            if full_name.contains('/') { full_name.to_owned() } else { format!("default/{full_name}") };
        let found = self.pods.iter().find(|pod| pod.full_name == wanted);
        found.ok_or(LabError::Unknown { kind: "pod", name: wanted })
    }

    /// Every pod, in the order of the description.
    pub fn pods(&self) -> &[Pod] {
        &self.pods
    }

    /// The host outside the cluster.
    pub fn external(&self) -> &External {
        &self.external
    }

    /// The bridge and router between the nodes: a place to capture or to break traffic.
    pub fn fabric(&self) -> &Netns {
        &self.fabric
    }

    /// The ClusterIP of a Service by `namespace/name`, with one of its ports.
    pub fn cluster_ip(&self, service: &str, port: u16) -> Result<SocketAddr, LabError> {
        self.cluster_ip_in(Family::V4, service, port)
    }

    /// The ClusterIP of a Service in one of the cluster's families, with one of its ports.
    pub fn cluster_ip_in(&self, family: Family, service: &str, port: u16) -> Result<SocketAddr, LabError> {
        let address = self.service(service)?.ip(family);
        let unknown = LabError::Unknown { kind: "ClusterIP", name: format!("{service} {family:?}") };
        address.map(|address| SocketAddr::from((address, port))).ok_or(unknown)
    }

    /// The families of the cluster's addresses.
    pub fn families(&self) -> Families {
        self.plan.families
    }

    /// How pods hang on their nodes.
    pub fn topology(&self) -> Topology {
        self.plan.topology
    }

    /// The folder for manifests, records and logs, removed with the cluster unless the builder named it.
    pub fn folder(&self) -> &Path {
        &self.folder.path
    }

    /// The folder that `sluice run` reads: the cluster's own objects in `cluster.yaml`, policies beside it.
    pub fn manifest_folder(&self) -> PathBuf {
        self.folder.path.join("manifests")
    }

    /// The cluster's own objects as YAML: Namespaces, Nodes, Pods, Services, EndpointSlices.
    pub fn manifests(&self) -> String {
        manifests::render(&self.plan, &self.labels.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Puts a file beside the cluster's own manifests, or replaces it, in one step as a reader sees it.
    pub fn write_policy(&self, file_name: &str, yaml: &str) -> Result<PathBuf, LabError> {
        let path = self.manifest_folder().join(file_name);
        // Not an extension that a reader of manifests takes up.
        let new = self.manifest_folder().join(format!(".{file_name}.new"));
        fs::write(&new, yaml).map_err(|cause| LabError::File { path: new.clone(), cause })?;
        fs::rename(&new, &path).map_err(|cause| LabError::File { path: path.clone(), cause })?;
        Ok(path)
    }

    /// Takes a file away again.
    pub fn remove_policy(&self, file_name: &str) -> Result<(), LabError> {
        let path = self.manifest_folder().join(file_name);
        fs::remove_file(&path).map_err(|cause| LabError::File { path, cause })
    }

    /// Gives a pod other labels, as a change of its manifest. Service endpoints stay as they are.
    pub fn set_pod_labels(&self, full_name: &str, labels: &[(&str, &str)]) -> Result<(), LabError> {
        let pod = self.pod(full_name)?;
        let labels = labels.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
        self.labels.lock().unwrap_or_else(PoisonError::into_inner).insert(pod.full_name.clone(), labels);
        self.write_manifests()
    }

    /// Leaves everything in place when this value is dropped.
    pub fn keep(&mut self) {
        self.namespaces().iter().for_each(|namespace| namespace.keep());
        self.folder.removed_on_drop = false;
    }

    fn service(&self, name: &str) -> Result<&ServicePlan, LabError> {
        let wanted = if name.contains('/') { name.to_owned() } else { format!("default/{name}") };
        let found = self.plan.services.iter().find(|service| service.spec.full_name() == wanted);
        found.ok_or(LabError::Unknown { kind: "service", name: wanted })
    }

    fn write_manifests(&self) -> Result<(), LabError> {
        self.write_policy("cluster.yaml", &self.manifests()).map(drop)
    }

    fn namespaces(&self) -> Vec<&Netns> {
        let nodes = self.nodes.iter().map(|node| &*node.netns);
        let pods = self.pods.iter().filter(|pod| pod.veth.is_some()).map(|pod| &*pod.netns);
        nodes.chain(pods).chain([&*self.external.netns, &*self.fabric]).collect()
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        netns::drop_all(&self.namespaces());
    }
}

fn configure(plan: &Plan, names: &Names) -> Result<(), LabError> {
    ip_batch(None, &wiring::links(plan, names))?;
    ip_batch(Some(&names.fabric), &wiring::fabric_script(plan))?;
    ip_batch(Some(&names.external), &wiring::external_script(plan))?;
    for (index, name) in names.nodes.iter().enumerate() {
        ip_batch(Some(name), &wiring::node_script(plan, index))?;
        let entries = wiring::overlay_entries(plan, index);
        if !entries.is_empty() {
            bridge_batch(name, &entries)?;
        }
        if !plan.secluded {
            nft_script(name, &node_ruleset(plan, &plan.nodes[index]))?;
        }
        if plan.kube_proxy == KubeProxy::Iptables {
            for family in plan.families.each() {
                let script = iptables_mode::restore_script(plan, &plan.nodes[index], *family);
                iptables_script(name, *family, &script)?;
            }
        }
    }
    for (pod, name) in plan.pods.iter().zip(&names.pods) {
        if let Some(name) = name {
            ip_batch(Some(name), &wiring::pod_script(plan, pod))?;
        }
    }
    Ok(())
}

/// Neighbour discovery lost on a link that is not ready yet is repeated only after a second.
fn wait_for_links(
    made: &BTreeMap<String, Arc<Netns>>,
    interfaces: &[(String, Vec<String>)],
) -> Result<(), LabError> {
    for (name, interfaces) in interfaces {
        let ready = || made.get(name).is_some_and(|namespace| namespace.links_are_ready(interfaces));
        if !wait_until(LINK_LIMIT, ready) {
            return Err(LabError::TimedOut {
                what: format!("readiness of {} in {name}", interfaces.join(", ")),
                limit: LINK_LIMIT,
                context: String::new(),
            });
        }
    }
    Ok(())
}

impl Node {
    /// `node1`, `node2`…
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its address on the fabric.
    pub fn address(&self) -> Ipv4Addr {
        self.address
    }

    /// All its addresses of one family that its Node object names; the first is that of [`address_in`](Self::address_in).
    pub fn addresses_in(&self, family: Family) -> Vec<IpAddr> {
        let more = self.more.iter().copied().filter(|ip| ip.is_ipv4() == (family == Family::V4));
        [self.address_in(family)].into_iter().chain(more).collect()
    }

    /// Its address with a port, for a NodePort.
    pub fn at(&self, port: u16) -> SocketAddr {
        SocketAddr::from((self.address, port))
    }

    /// The range of its pods' addresses, in the cluster's first family.
    pub fn pod_cidr(&self) -> &str {
        &self.pod_cidr
    }

    /// Starts `sluice run` on it. Several may be started one after the other, for restarts.
    pub fn start_sluice(&self, options: &SluiceOptions) -> Result<Sluice, LabError> {
        Sluice::start(self, options)
    }

    pub(crate) fn namespace(&self) -> Arc<Netns> {
        Arc::clone(&self.netns)
    }

    pub(crate) fn folder(&self) -> &Path {
        &self.folder
    }
}

impl Pod {
    /// `namespace/name`.
    pub fn full_name(&self) -> &str {
        &self.full_name
    }

    /// Its address.
    pub fn address(&self) -> Ipv4Addr {
        self.address
    }

    /// Its address with a port.
    pub fn at(&self, port: u16) -> SocketAddr {
        SocketAddr::from((self.address, port))
    }

    /// The name of its node.
    pub fn node(&self) -> &str {
        &self.node
    }

    /// Its uid in the manifests.
    pub fn uid(&self) -> &str {
        &self.uid
    }

    /// Its interface on the node; none when it shares the node's network.
    pub fn veth(&self) -> Option<&str> {
        self.veth.as_deref()
    }
}

impl External {
    /// Its address.
    pub fn address(&self) -> Ipv4Addr {
        topology::EXTERNAL
    }

    /// Its address with a port.
    pub fn at(&self, port: u16) -> SocketAddr {
        SocketAddr::from((topology::EXTERNAL, port))
    }
}

macro_rules! is_a_namespace {
    ($($t:ty),*) => {$(
        impl $t {
            /// Its network namespace.
            pub fn netns(&self) -> &Netns {
                &self.netns
            }

            /// Its IPv6 address, when the cluster has the family.
            pub fn address_6(&self) -> Option<Ipv6Addr> {
                self.address_6
            }

            /// Its address in one of the cluster's families.
            ///
            /// # Panics
            /// When the cluster has no such family.
            pub fn address_in(&self, family: Family) -> IpAddr {
                let address = match family {
                    Family::V4 => self.has_v4.then(|| self.address().into()),
                    Family::V6 => self.address_6.map(IpAddr::from),
                };
                address.unwrap_or_else(|| panic!("the cluster has no {family:?}"))
            }

            /// Its address in one of the cluster's families, with a port.
            ///
            /// # Panics
            /// When the cluster has no such family.
            pub fn at_in(&self, family: Family, port: u16) -> SocketAddr {
                SocketAddr::new(self.address_in(family), port)
            }
        }

        impl Deref for $t {
            type Target = Netns;
            fn deref(&self) -> &Netns {
                &self.netns
            }
        }
    )*};
}
is_a_namespace!(Node, Pod, External);

/// The folder of a cluster, removed on drop when it was made here.
#[derive(Debug)]
struct Folder {
    path: PathBuf,
    removed_on_drop: bool,
}

impl Folder {
    fn create(given: Option<PathBuf>) -> Result<Self, LabError> {
        let removed_on_drop = given.is_none();
        let path = given.unwrap_or_else(|| std::env::temp_dir().join(netns::unique_name("folder")));
        let make = |path: &Path| {
            let made = DirBuilder::new().mode(0o700).create(path);
            made.map_err(|cause| LabError::File { path: path.to_owned(), cause })
        };
        if removed_on_drop {
            make(&path)?;
        }
        let folder = Self { path, removed_on_drop };
        make(&folder.path.join("manifests"))?;
        Ok(folder)
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        if self.removed_on_drop {
            let _ = fs::remove_dir_all(&self.path);
        }
    }
}

/// Removes the folders of clusters whose process is gone: only names of our scheme, only our own user's.
pub(crate) fn sweep_folders() {
    let Ok(entries) = fs::read_dir(std::env::temp_dir()) else { return };
    for entry in entries.flatten() {
        let ours =
            entry.metadata().is_ok_and(|meta| meta.is_dir() && meta.uid() == nix::unistd::geteuid().as_raw());
        if ours && entry.file_name().to_str().is_some_and(netns::is_stale) {
            let _ = fs::remove_dir_all(entry.path());
        }
    }
}
