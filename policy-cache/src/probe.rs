//! A question as one JSON line → its answer as one JSON line, decided by a snapshot.
//!
//! The ends of a probe are named by pod or by address, destinations also by Service. A destination that leads to a
//! Service is asked of every ready endpoint, because any of them may get the connection.

mod answer;
mod members;
mod plain;
mod read;
mod stream;

use std::borrow::Cow;
use std::collections::{BTreeSet, HashMap};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use answer::{Decided, EndpointAnswer, decided};
use flow::{ClientAddr, Decision, OrigDst, Tuple};
use read::{Probe, ProbeError};

use crate::dialled::{By, Door, Doors};
use crate::endpoints::Endpoints;
use crate::objects::{Objects, Phase, ServicePort};
use crate::snapshot::Snapshot;

pub use answer::Answer;
pub use stream::{Tally, answer_stream};

/// What every answer begins with.
const ID: &str = "{\"id\":";

/// Answers probes from one snapshot.
#[derive(Debug)]
pub struct Prober {
    snapshot: Arc<Snapshot>,
    /// `namespace/name` → its addresses.
    pods: HashMap<Box<str>, Addresses>,
    doors: Doors,
    /// By their places.
    services: Vec<ServicePorts>,
}

/// A Service, each port with the ready endpoints behind it, of both families, sorted.
#[derive(Debug)]
struct ServicePorts {
    /// `namespace/name`.
    name: String,
    ports: Vec<(ServicePort, Vec<SocketAddr>)>,
}

/// The addresses that one end may use, IPv4 first. One is kept in place: reading it is then no further step.
#[derive(Clone, Debug)]
enum Addresses {
    One([IpAddr; 1]),
    Others(Box<[IpAddr]>),
}

impl Addresses {
    fn list(&self) -> &[IpAddr] {
        match self {
            Self::One(address) => address,
            Self::Others(addresses) => addresses,
        }
    }
}

impl FromIterator<IpAddr> for Addresses {
    fn from_iter<I: IntoIterator<Item = IpAddr>>(addresses: I) -> Self {
        let addresses: Box<[IpAddr]> = addresses.into_iter().collect();
        match *addresses {
            [one] => Self::One([one]),
            _ => Self::Others(addresses),
        }
    }
}

impl Prober {
    /// `snapshot` must have been compiled from `objects`.
    pub fn new(objects: &Objects, snapshot: Arc<Snapshot>) -> Self {
        let mut pods = HashMap::with_capacity(objects.pods.len());
        for pod in objects.pods.iter().filter(|pod| pod.phase != Phase::Finished) {
            let holds = |ip: &IpAddr| snapshot.holds(*ip, &pod.namespace, &pod.name);
            let own = pod.ips.iter().copied().filter(|ip| pod.host_network || holds(ip));
            let mut addresses: BTreeSet<IpAddr> = own.collect();
            if pod.host_network && addresses.is_empty() {
                addresses.clone_from(&pod.host_ips);
            }
            pods.insert(format!("{}/{}", pod.namespace, pod.name).into(), addresses.into_iter().collect());
        }
        let endpoints = Endpoints::new(objects, &snapshot);
        let services = objects.services.iter().map(|service| ServicePorts {
            name: format!("{}/{}", service.namespace, service.name),
            ports: service.ports.iter().map(|port| (port.clone(), endpoints.of(service, port))).collect(),
        });
        let services = services.collect();
        Self { snapshot, pods, doors: Doors::new(objects), services }
    }

    /// Answers one line at the end of `out`, as [`Prober::answer`] does and [`Answer`] serializes, but that an `id` which
    /// is a number is written as it was: a value would lose digits. `number` is that of the line, from 1, where there are
    /// several. False when it could not be decided.
    pub fn answer_into(&self, line: &str, number: Option<u64>, out: &mut Vec<u8>) -> bool {
        let lines = [Cow::Borrowed(line)];
        let decided = plain::decide(self, &lines).pop().flatten();
        self.write(line, number, decided, out)
    }

    /// Writes what was decided on the short way, or else answers on the long one.
    fn write(
        &self,
        line: &str,
        number: Option<u64>,
        plain: Option<(plain::PlainId<'_>, Decision)>,
        out: &mut Vec<u8>,
    ) -> bool {
        if let Some((id, decision)) = plain {
            plain::write(out, id, &decision);
            return true;
        }
        let answer = self.answer_at(line, number);
        let start = out.len() + ID.len();
        // Texts are always JSON, and writing to memory cannot fail.
        let _ = serde_json::to_writer(&mut *out, &answer);
        let id = answer.id().to_string();
        if answer.id().is_number()
            && let Some((_, written)) = members::members(line).into_iter().rfind(|(key, _)| key == "id")
            && out.get(start..start + id.len()) == Some(id.as_bytes())
        {
            out.splice(start..start + id.len(), written.bytes());
        }
        !answer.is_failed()
    }

    /// Answers one line.
    pub fn answer(&self, line: &str) -> Answer {
        self.answer_at(line, None)
    }

    fn answer_at(&self, line: &str, number: Option<u64>) -> Answer {
        let (id, probe) = self.read(line);
        match probe.and_then(|probe| self.decide(&probe)) {
            Ok(mut decided) => {
                decided.id = id;
                Answer::Decided(Box::new(decided))
            }
            Err(error) => Answer::Failed { id, line: number, error: error.to_string() },
        }
    }

    fn decide(&self, probe: &Probe) -> Result<Decided, ProbeError> {
        match self.door(probe) {
            Some(door) => self.decide_service(probe, door),
            None => Ok(decided(&self.decide_pod(probe), None, Vec::new())),
        }
    }

    /// The Service behind the destination, if there is one.
    fn door(&self, probe: &Probe) -> Option<Door> {
        match probe.service {
            Some(service) => Some(Door { service, by: By::Service, only_node: None }),
            None => self.doors.at(&self.snapshot, probe.source, probe.destination, probe.protocol),
        }
    }

    fn decide_pod(&self, probe: &Probe) -> Decision {
        let tuple = tuple(probe, probe.destination);
        self.snapshot.decide_ends(&tuple, &self.snapshot.ends(&tuple))
    }

    fn decide_service(&self, probe: &Probe, door: Door) -> Result<Decided, ProbeError> {
        let (port, protocol) = (probe.destination.port(), probe.protocol);
        let ServicePorts { name, ports } = &self.services[door.service];
        let Some((_, endpoints)) = ports.iter().find(|(own, _)| door.by.is(own, port, protocol)) else {
            return Err(ProbeError::NoServicePort { service: name.clone(), port, protocol });
        };
        let reached = |backend: &&SocketAddr| {
            backend.is_ipv4() == probe.destination.is_ipv4() && door.leads_to(&self.snapshot, backend.ip())
        };
        let decisions: Vec<(SocketAddr, Decision)> = endpoints
            .iter()
            .filter(reached)
            .map(|backend| {
                let tuple = tuple(probe, *backend);
                (*backend, self.snapshot.decide_ends(&tuple, &self.snapshot.ends(&tuple).through_service()))
            })
            .collect();
        // The answer as a whole is that of the first endpoint that is denied.
        let denied = decisions.iter().find(|(_, decision)| !decision.verdict().is_allow());
        let Some((_, decision)) = denied.or(decisions.first()) else {
            let node = door.only_node.and_then(|node| self.snapshot.node_name(node)).map(ToString::to_string);
            return Err(ProbeError::NoEndpoint { service: name.clone(), port, protocol, node });
        };
        let endpoints = decisions
            .iter()
            .map(|(backend, decision)| EndpointAnswer::of(&self.snapshot, *backend, decision));
        Ok(decided(decision, Some(name.clone()), endpoints.collect()))
    }
}

fn tuple(probe: &Probe, destination: SocketAddr) -> Tuple {
    Tuple {
        protocol: probe.protocol,
        client: ClientAddr(SocketAddr::new(probe.source, 0)),
        destination: OrigDst(destination),
    }
}

/// The first pair of addresses of one family.
fn same_family(sources: &[IpAddr], destinations: &[IpAddr]) -> Option<(IpAddr, IpAddr)> {
    sources.iter().find_map(|source| {
        let destination = destinations.iter().find(|other| other.is_ipv4() == source.is_ipv4())?;
        Some((*source, *destination))
    })
}

#[cfg(test)]
#[path = "probe_tests.rs"]
mod tests;
