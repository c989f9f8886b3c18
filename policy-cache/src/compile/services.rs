//! Services → the addresses clients dial, and the ready endpoints behind each.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use flow::Protocol;

use super::addresses::Addresses;
use crate::objects::{EndpointSlice, Objects, Phase, Pod, Service, ServicePort, TargetPort};

/// What can be dialled, and what answers.
#[derive(Debug, Default)]
pub(crate) struct Services {
    cluster_ips: HashMap<IpAddr, u32>,
    node_ports: HashMap<(u16, Protocol), (u32, u32)>,
    table: Vec<CompiledService>,
}

#[derive(Debug)]
pub(crate) struct CompiledService {
    pub(crate) namespace: Arc<str>,
    pub(crate) name: Arc<str>,
    pub(crate) ports: Vec<CompiledPort>,
}

#[derive(Debug)]
pub(crate) struct CompiledPort {
    pub(crate) protocol: Protocol,
    pub(crate) port: u16,
    /// Ready endpoints of both families, sorted.
    pub(crate) backends: Vec<SocketAddr>,
}

impl Services {
    pub(crate) fn new(objects: &Objects, addresses: &Addresses) -> Self {
        let mut slices: HashMap<(&str, &str), Vec<&EndpointSlice>> = HashMap::new();
        for slice in &objects.slices {
            if let Some(service) = &slice.service {
                slices.entry((&slice.namespace, service)).or_default().push(slice);
            }
        }
        let pods = PodsByNamespace::new(objects);
        let mut services = Self::default();
        for (number, service) in (0_u32..).zip(&objects.services) {
            let slices = slices.get(&(service.namespace.as_str(), service.name.as_str()));
            let ports = service.ports.iter().map(|port| {
                let backends = match slices {
                    Some(slices) => from_slices(slices, port),
                    None => from_pods(&pods, addresses, service, port),
                };
                let backends = backends.into_iter().collect();
                CompiledPort { protocol: port.protocol, port: port.port, backends }
            });
            services.table.push(CompiledService {
                namespace: service.namespace.as_str().into(),
                name: service.name.as_str().into(),
                ports: ports.collect(),
            });
            services.cluster_ips.extend(service.cluster_ips.iter().map(|ip| (*ip, number)));
            for (index, port) in (0_u32..).zip(&service.ports) {
                if let Some(node_port) = port.node_port {
                    services.node_ports.insert((node_port, port.protocol), (number, index));
                }
            }
        }
        services
    }

    /// The Service whose ClusterIP this is, whatever the port.
    pub(crate) fn at_cluster_ip(&self, ip: IpAddr) -> Option<&CompiledService> {
        self.cluster_ips.get(&ip).map(|number| &self.table[*number as usize])
    }

    /// The Service that owns a port of every node's addresses.
    pub(crate) fn at_node_port(&self, port: u16, protocol: Protocol) -> Option<&CompiledService> {
        self.node_ports.get(&(port, protocol)).map(|(number, _)| &self.table[*number as usize])
    }
}

impl CompiledService {
    pub(crate) fn port(&self, port: u16, protocol: Protocol) -> Option<&CompiledPort> {
        self.ports.iter().find(|candidate| candidate.port == port && candidate.protocol == protocol)
    }
}

/// A slice's ports have the Service port's name and already are target ports.
fn from_slices(slices: &[&EndpointSlice], port: &ServicePort) -> BTreeSet<SocketAddr> {
    let mut backends = BTreeSet::new();
    for slice in slices {
        let matching =
            slice.ports.iter().filter(|own| own.name == port.name && own.protocol == port.protocol);
        for own in matching {
            backends.extend(slice.ready.iter().map(|ip| SocketAddr::new(*ip, own.number)));
        }
    }
    backends
}

/// Manifests written by hand rarely contain EndpointSlices: do what the endpoint slice controller would.
fn from_pods(
    pods: &PodsByNamespace<'_>,
    addresses: &Addresses,
    service: &Service,
    port: &ServicePort,
) -> BTreeSet<SocketAddr> {
    let mut backends = BTreeSet::new();
    if service.selector.is_empty() {
        return backends;
    }
    for (number, pod) in pods.of(&service.namespace) {
        let selected = service.selector.iter().all(|(key, value)| pod.labels.get(key) == Some(value));
        if !selected || !is_ready(pod) {
            continue;
        }
        let target = match &port.target {
            TargetPort::Number(number) => Some(*number),
            TargetPort::Named(name) => pod
                .named_ports
                .iter()
                .find(|own| own.name == *name && own.protocol == port.protocol)
                .map(|own| own.number),
        };
        let holds = |ip: &&IpAddr| pod.host_network || addresses.pod_at(**ip) == Some(number);
        let ips = pod.ips.iter().filter(holds);
        backends.extend(
            target.into_iter().flat_map(|port| ips.clone().map(move |ip| SocketAddr::new(*ip, port))),
        );
    }
    backends
}

/// A pod that says nothing of its readiness is taken for ready.
fn is_ready(pod: &Pod) -> bool {
    pod.phase != Phase::Finished && !pod.deleting && pod.ready.unwrap_or(true)
}

struct PodsByNamespace<'o>(BTreeMap<&'o str, Vec<(u32, &'o Pod)>>);

impl<'o> PodsByNamespace<'o> {
    fn new(objects: &'o Objects) -> Self {
        let mut by_namespace: BTreeMap<_, Vec<_>> = BTreeMap::new();
        for (number, pod) in (0_u32..).zip(&objects.pods) {
            by_namespace.entry(pod.namespace.as_str()).or_default().push((number, pod));
        }
        Self(by_namespace)
    }

    fn of(&self, namespace: &str) -> impl Iterator<Item = (u32, &'o Pod)> {
        self.0.get(namespace).into_iter().flatten().copied()
    }
}
