//! What a cluster is to consist of, as its user writes it down.

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;

use crate::cluster::Cluster;
use crate::error::LabError;
use crate::services::KubeProxy;
use crate::shape::{Families, Topology};

/// What a port speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Transport {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
    /// SCTP.
    Sctp,
}

impl Transport {
    /// As Kubernetes writes it.
    pub const fn kubernetes(self) -> &'static str {
        match self {
            Self::Tcp => "TCP",
            Self::Udp => "UDP",
            Self::Sctp => "SCTP",
        }
    }

    /// As nft writes it.
    pub const fn nft(self) -> &'static str {
        match self {
            Self::Tcp => "tcp",
            Self::Udp => "udp",
            Self::Sctp => "sctp",
        }
    }
}

/// A port that a pod declares.
#[derive(Clone, Debug)]
pub(crate) struct ContainerPort {
    pub(crate) name: String,
    pub(crate) number: u16,
    pub(crate) transport: Transport,
}

/// A pod to be: its own network namespace on a node, or a process of the node's with `host_network`.
#[derive(Clone, Debug)]
pub struct PodSpec {
    pub(crate) namespace: String,
    pub(crate) name: String,
    pub(crate) node: Option<String>,
    pub(crate) labels: BTreeMap<String, String>,
    pub(crate) ports: Vec<ContainerPort>,
    pub(crate) deployment: Option<String>,
    pub(crate) host_network: bool,
    pub(crate) host_ports: Vec<(u16, u16)>,
}

impl PodSpec {
    /// A pod named `namespace/name`; without a slash it is in `default`. Where it runs is the builder's
    /// choice until [`PodSpec::on`] says so.
    pub fn new(full_name: &str) -> Self {
        let (namespace, name) = split_name(full_name);
        Self {
            namespace,
            name,
            node: None,
            labels: BTreeMap::new(),
            ports: Vec::new(),
            deployment: None,
            host_network: false,
            host_ports: Vec::new(),
        }
    }

    /// Runs on this node.
    pub fn on(mut self, node: &str) -> Self {
        self.node = Some(node.to_owned());
        self
    }

    /// Carries this label.
    pub fn label(mut self, key: &str, value: &str) -> Self {
        self.labels.insert(key.to_owned(), value.to_owned());
        self
    }

    /// Declares a named TCP container port. Nothing listens there by itself.
    pub fn port(self, name: &str, port: u16) -> Self {
        self.port_of(Transport::Tcp, name, port)
    }

    /// Declares a named container port of any transport. Nothing listens there by itself.
    pub fn port_of(mut self, transport: Transport, name: &str, number: u16) -> Self {
        self.ports.push(ContainerPort { name: name.to_owned(), number, transport });
        self
    }

    /// Belongs to this Deployment, through a ReplicaSet as Kubernetes does it.
    pub fn deployment(mut self, name: &str) -> Self {
        self.deployment = Some(name.to_owned());
        self
    }

    /// Is reached at TCP `host_port` of its node, too.
    pub fn host_port(mut self, host_port: u16, port: u16) -> Self {
        self.host_ports.push((host_port, port));
        self
    }

    /// Shares the node's network namespace and address.
    pub fn host_network(mut self) -> Self {
        self.host_network = true;
        self
    }

    /// `namespace/name`.
    pub fn full_name(&self) -> String {
        format!("{}/{}", self.namespace, self.name)
    }
}

/// The port of a pod that a Service leads to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TargetPort {
    /// This port of every pod.
    Number(u16),
    /// The container port of this name, pod by pod.
    Name(String),
}

impl From<u16> for TargetPort {
    fn from(port: u16) -> Self {
        Self::Number(port)
    }
}

impl From<&str> for TargetPort {
    fn from(name: &str) -> Self {
        Self::Name(name.to_owned())
    }
}

/// One port of a Service.
#[derive(Clone, Debug)]
pub(crate) struct ServicePort {
    pub(crate) name: String,
    pub(crate) port: u16,
    pub(crate) target: TargetPort,
    pub(crate) transport: Transport,
    pub(crate) node_port: Option<u16>,
}

/// A Service to be: a ClusterIP, and NodePorts where asked for.
#[derive(Clone, Debug)]
pub struct ServiceSpec {
    pub(crate) namespace: String,
    pub(crate) name: String,
    pub(crate) selector: BTreeMap<String, String>,
    pub(crate) ports: Vec<ServicePort>,
    pub(crate) cluster_ip: Option<Ipv4Addr>,
    pub(crate) keeps_clients: bool,
}

impl ServiceSpec {
    /// A Service named `namespace/name`; without a slash it is in `default`.
    pub fn new(full_name: &str) -> Self {
        let (namespace, name) = split_name(full_name);
        Self {
            namespace,
            name,
            selector: BTreeMap::new(),
            ports: Vec::new(),
            cluster_ip: None,
            keeps_clients: false,
        }
    }

    /// Leads to the namespace's pods that carry this label, and all others asked for.
    pub fn selector(mut self, key: &str, value: &str) -> Self {
        self.selector.insert(key.to_owned(), value.to_owned());
        self
    }

    /// Listens on TCP `port` and leads to `target`.
    pub fn port(self, name: &str, port: u16, target: impl Into<TargetPort>) -> Self {
        self.port_of(Transport::Tcp, name, port, target)
    }

    /// Listens on `port` of any transport and leads to `target`.
    pub fn port_of(
        mut self,
        transport: Transport,
        name: &str,
        port: u16,
        target: impl Into<TargetPort>,
    ) -> Self {
        let (name, target) = (name.to_owned(), target.into());
        self.ports.push(ServicePort { name, port, target, transport, node_port: None });
        self
    }

    /// Opens the last port added on every node, too.
    pub fn node_port(mut self, node_port: u16) -> Self {
        if let Some(port) = self.ports.last_mut() {
            port.node_port = Some(node_port);
        }
        self
    }

    /// Shows pods the clients outside, and is reached from there only at nodes that have such a pod
    /// (`externalTrafficPolicy: Local`).
    pub fn local_traffic(mut self) -> Self {
        self.keeps_clients = true;
        self
    }

    /// Has this ClusterIP instead of the next free one.
    pub fn cluster_ip(mut self, address: Ipv4Addr) -> Self {
        self.cluster_ip = Some(address);
        self
    }

    /// `namespace/name`.
    pub fn full_name(&self) -> String {
        format!("{}/{}", self.namespace, self.name)
    }
}

/// A cluster to be. Begin with [`Cluster::builder`].
#[derive(Clone, Debug)]
pub struct ClusterBuilder {
    pub(crate) nodes: u8,
    pub(crate) pods: Vec<PodSpec>,
    pub(crate) services: Vec<ServiceSpec>,
    pub(crate) namespaces: BTreeMap<String, BTreeMap<String, String>>,
    pub(crate) declared_elsewhere: BTreeSet<String>,
    pub(crate) rp_filter: u8,
    pub(crate) more_addresses: bool,
    pub(crate) families: Families,
    pub(crate) topology: Topology,
    pub(crate) kube_proxy: KubeProxy,
    pub(crate) secluded: bool,
    pub(crate) prefix: Option<String>,
    pub(crate) folder: Option<std::path::PathBuf>,
}

impl ClusterBuilder {
    pub(crate) fn new() -> Self {
        Self {
            nodes: 1,
            pods: Vec::new(),
            services: Vec::new(),
            namespaces: BTreeMap::new(),
            declared_elsewhere: BTreeSet::new(),
            rp_filter: 0,
            more_addresses: false,
            families: Families::default(),
            topology: Topology::default(),
            kube_proxy: KubeProxy::default(),
            secluded: false,
            prefix: None,
            folder: None,
        }
    }

    /// How many nodes, 1 to 9; they are named `node1`, `node2`… The default is one.
    pub fn nodes(mut self, count: u8) -> Self {
        self.nodes = count;
        self
    }

    /// Adds a pod.
    pub fn pod(mut self, pod: PodSpec) -> Self {
        self.pods.push(pod);
        self
    }

    /// Adds a Service.
    pub fn service(mut self, service: ServiceSpec) -> Self {
        self.services.push(service);
        self
    }

    /// Declares a namespace with labels. Those that pods and Services use are declared without labels of
    /// their own if not here.
    pub fn namespace(mut self, name: &str, labels: &[(&str, &str)]) -> Self {
        let labels = labels.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
        self.namespaces.insert(name.to_owned(), labels);
        self
    }

    /// Leaves a namespace out of the cluster's manifests, because a policy file declares it.
    pub fn namespace_declared_elsewhere(mut self, name: &str) -> Self {
        self.declared_elsewhere.insert(name.to_owned());
        self
    }

    /// Reverse path filtering on every interface of the nodes: 0 off (the default), 1 strict, 2 loose.
    pub fn rp_filter(mut self, mode: u8) -> Self {
        self.rp_filter = mode;
        self
    }

    /// Gives every node two more addresses of each family, which its Node object names: a second InternalIP on its
    /// uplink, 172.18.0.11N or fd00:172:18::11N, and an ExternalIP on a device of its own, 198.51.100.N or
    /// 2001:db8:100::N.
    pub fn more_addresses(mut self) -> Self {
        self.more_addresses = true;
        self
    }

    /// Gives everything an IPv6 address as well.
    pub fn dual_stack(self) -> Self {
        self.families(Families::Dual)
    }

    /// Which addresses everything has; IPv4 alone by default. IPv6: nodes fd00:172:18::1N, pods in
    /// fd00:10:244:N::/64, ClusterIPs from fd00:10:96::a on, the external host 2001:db8:113::10; needs a kernel
    /// with IPv6 switched on.
    pub fn families(mut self, families: Families) -> Self {
        self.families = families;
        self
    }

    /// The shape of the rules that lead to Services; nftables by default.
    pub fn kube_proxy(mut self, kube_proxy: KubeProxy) -> Self {
        self.kube_proxy = kube_proxy;
        self
    }

    /// Without rules for Services, host ports and ways out of the cluster: its nodes need no nft then.
    pub fn secluded(mut self) -> Self {
        self.secluded = true;
        self
    }

    /// How pods hang on their node; routed by default.
    pub fn topology(mut self, topology: Topology) -> Self {
        self.topology = topology;
        self
    }

    /// Names the namespaces `PREFIX-ROLE` instead of uniquely. They are not swept when this process dies.
    pub fn prefix(mut self, prefix: &str) -> Self {
        self.prefix = Some(prefix.to_owned());
        self
    }

    /// Keeps manifests, records and logs in this folder, which exists already and is not removed.
    pub fn folder(mut self, folder: impl Into<std::path::PathBuf>) -> Self {
        self.folder = Some(folder.into());
        self
    }

    /// Makes it. On an error nothing of it is left.
    pub fn build(self) -> Result<Cluster, LabError> {
        Cluster::build(self)
    }
}

fn split_name(full_name: &str) -> (String, String) {
    match full_name.split_once('/') {
        Some((namespace, name)) => (namespace.to_owned(), name.to_owned()),
        None => ("default".to_owned(), full_name.to_owned()),
    }
}
