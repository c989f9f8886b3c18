//! Services → the ready endpoints behind each port, for questions about a whole cluster. A node's process is
//! never asked: what it sees has been sent to one of them already.

use std::collections::{BTreeSet, HashMap};
use std::net::{IpAddr, SocketAddr};

use crate::objects::{EndpointSlice, Objects, Phase, Pod, Service, ServicePort, TargetPort};
use crate::snapshot::Snapshot;

/// Finds endpoints in a set of objects.
#[derive(Debug)]
pub(crate) struct Endpoints<'o> {
    snapshot: &'o Snapshot,
    /// By namespace and name of the Service.
    slices: HashMap<(&'o str, &'o str), Vec<&'o EndpointSlice>>,
    /// By namespace.
    pods: HashMap<&'o str, Vec<&'o Pod>>,
}

impl<'o> Endpoints<'o> {
    /// `snapshot` must have been compiled from `objects`.
    pub(crate) fn new(objects: &'o Objects, snapshot: &'o Snapshot) -> Self {
        let mut slices: HashMap<_, Vec<_>> = HashMap::new();
        for slice in &objects.slices {
            if let Some(service) = &slice.service {
                slices.entry((slice.namespace.as_str(), service.as_str())).or_default().push(slice);
            }
        }
        let mut pods: HashMap<_, Vec<_>> = HashMap::new();
        for pod in &objects.pods {
            pods.entry(pod.namespace.as_str()).or_default().push(pod);
        }
        Self { snapshot, slices, pods }
    }

    /// The ready endpoints of a port, of both families, sorted.
    pub(crate) fn of(&self, service: &Service, port: &ServicePort) -> Vec<SocketAddr> {
        let slices = self.slices.get(&(service.namespace.as_str(), service.name.as_str()));
        let endpoints = match slices {
            Some(slices) => from_slices(slices, port),
            None => self.of_pods(service, port),
        };
        if !service.is_headless {
            return endpoints.into_iter().collect();
        }
        // Who dials it sends to the port that he dialled: nothing makes a target port of it.
        endpoints.into_iter().map(|endpoint| SocketAddr::new(endpoint.ip(), port.port)).collect()
    }

    /// Manifests written by hand rarely contain EndpointSlices: do what the endpoint slice controller would.
    fn of_pods(&self, service: &Service, port: &ServicePort) -> BTreeSet<SocketAddr> {
        let mut endpoints = BTreeSet::new();
        if service.selector.is_empty() {
            return endpoints;
        }
        for pod in self.pods.get(service.namespace.as_str()).into_iter().flatten() {
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
            let holds =
                |ip: &&IpAddr| pod.host_network || self.snapshot.holds(**ip, &pod.namespace, &pod.name);
            let ips = pod.ips.iter().filter(holds);
            endpoints.extend(
                target.into_iter().flat_map(|port| ips.clone().map(move |ip| SocketAddr::new(*ip, port))),
            );
        }
        endpoints
    }
}

/// A slice's ports have the Service port's name and already are target ports.
fn from_slices(slices: &[&EndpointSlice], port: &ServicePort) -> BTreeSet<SocketAddr> {
    let mut endpoints = BTreeSet::new();
    for slice in slices {
        let matching =
            slice.ports.iter().filter(|own| own.name == port.name && own.protocol == port.protocol);
        for own in matching {
            endpoints.extend(slice.ready.iter().map(|ip| SocketAddr::new(*ip, own.number)));
        }
    }
    endpoints
}

/// A pod that says nothing of its readiness is taken for ready.
fn is_ready(pod: &Pod) -> bool {
    pod.phase != Phase::Finished && !pod.deleting && pod.ready.unwrap_or(true)
}
