//! Services and the pods behind them → who serves which port, found by the port's number.

use std::collections::HashMap;

use flow::Protocol;

use crate::objects::{NamedPort, Pod, Service, TargetPort};

/// The ports of Services by number. A large cluster has too many of both to look at all for each rule.
#[derive(Debug, Default)]
pub(super) struct ServicePorts<'o> {
    /// By the number that clients dial.
    dialled: HashMap<(Protocol, u16), Vec<Led<'o>>>,
    /// The pods that some Service leads to at this number of theirs.
    served: HashMap<(Protocol, u16), Vec<usize>>,
}

/// Where one port of a Service leads.
#[derive(Debug)]
pub(super) struct Led<'o> {
    pub(super) service: &'o Service,
    /// Pods, by their place in the list of all, and the port of each.
    pub(super) to: Vec<(usize, u16)>,
}

impl<'o> ServicePorts<'o> {
    /// `pods_in` names the places of a namespace's pods.
    pub(super) fn new(
        services: &'o [Service],
        pods: &[Pod],
        pods_in: impl Fn(&str) -> std::ops::Range<usize>,
    ) -> Self {
        let mut ports = Self::default();
        for service in services.iter().filter(|service| !service.selector.is_empty()) {
            let behind = pods_in(&service.namespace).filter(|place| is_behind(service, &pods[*place]));
            let behind: Vec<usize> = behind.collect();
            for port in &service.ports {
                let led = |place: &usize| Some((*place, target(port.protocol, &port.target, &pods[*place])?));
                let to: Vec<(usize, u16)> = behind.iter().filter_map(led).collect();
                for (place, number) in &to {
                    ports.served.entry((port.protocol, *number)).or_default().push(*place);
                }
                ports.dialled.entry((port.protocol, port.port)).or_default().push(Led { service, to });
            }
        }
        ports
    }

    /// Services that are dialled at this port.
    pub(super) fn dialled(&self, protocol: Protocol, number: u16) -> &[Led<'o>] {
        self.dialled.get(&(protocol, number)).map(Vec::as_slice).unwrap_or_default()
    }

    /// The places of pods that a Service leads to at this port of theirs.
    pub(super) fn served(&self, protocol: Protocol, number: u16) -> &[usize] {
        self.served.get(&(protocol, number)).map(Vec::as_slice).unwrap_or_default()
    }
}

fn is_behind(service: &Service, pod: &Pod) -> bool {
    service.selector.iter().all(|(key, value)| pod.labels.get(key) == Some(value))
}

fn target(protocol: Protocol, target: &TargetPort, pod: &Pod) -> Option<u16> {
    match target {
        TargetPort::Number(number) => Some(*number),
        TargetPort::Named(name) => {
            let own = |port: &&NamedPort| port.name == *name && port.protocol == protocol;
            pod.named_ports.iter().find(own).map(|port| port.number)
        }
    }
}
