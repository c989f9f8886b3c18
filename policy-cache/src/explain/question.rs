//! What a person typed → one source address and the addresses that may answer.

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};
use std::str::FromStr;

use flow::Protocol;

use crate::dialled::{By, Door, Doors};
use crate::endpoints::Endpoints;
use crate::objects::{Objects, Phase, Pod};
use crate::snapshot::{self, Snapshot};

/// `SRC DST PORT[/PROTO]`, as typed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Question {
    source: End,
    destination: End,
    port: u16,
    protocol: Protocol,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum End {
    Ip(IpAddr),
    /// Namespace and name.
    Name(Kind, String, String),
}

/// What a name is the name of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    /// A pod, and where there is none of that name a Service.
    Any,
    Pod,
    Service,
}

/// Why a question has no answer.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ExplainError {
    /// An end is written in no known form.
    #[error("{field}: must be namespace/pod{also} or an IP address, got {value:?}")]
    End {
        /// `SRC` or `DST`.
        field: &'static str,
        /// What else the end may be.
        also: &'static str,
        /// What was typed.
        value: String,
    },
    /// The port is written in no known form.
    #[error("PORT: must be 1 to 65535, then /TCP, /UDP, /SCTP or nothing, got {value:?}")]
    Port {
        /// What was typed.
        value: String,
    },
    /// There is nothing of that name.
    #[error("{field}: no {kinds} {name} in the manifests")]
    Unknown {
        /// `SRC` or `DST`.
        field: &'static str,
        /// What was looked for.
        kinds: &'static str,
        /// `namespace/name`.
        name: String,
    },
    /// Connections come from pods.
    #[error("SRC: {name} is a Service; connections come from pods")]
    SourceIsService {
        /// `namespace/name`.
        name: String,
    },
    /// The pod is finished, not yet started, or its address belongs to another.
    #[error("{field}: pod {pod} has no address")]
    NoAddress {
        /// `SRC` or `DST`.
        field: &'static str,
        /// `namespace/name`.
        pod: String,
    },
    /// One end has only IPv4, the other only IPv6.
    #[error("SRC and DST have no address of the same family")]
    NoCommonFamily,
    /// The Service has other ports.
    #[error("DST: service {service} has no port {port}/{protocol}; it has {ports}")]
    NoServicePort {
        /// `namespace/name`.
        service: String,
        /// The port asked for.
        port: u16,
        /// Its protocol.
        protocol: Protocol,
        /// Those it has.
        ports: String,
    },
    /// Nobody would answer.
    #[error("DST: service {service} has no ready endpoint for port {port}/{protocol}{on}")]
    NoEndpoint {
        /// `namespace/name`.
        service: String,
        /// The port asked for.
        port: u16,
        /// Its protocol.
        protocol: Protocol,
        /// The node whose endpoints alone count; empty when all do.
        on: String,
    },
    /// The explanation and the decision differ. Never expected; refused rather than told.
    #[error("{direction}: explained as \"{explained}\" but decided as \"{decided}\": please report this")]
    Contradiction {
        /// `egress` or `ingress`.
        direction: &'static str,
        /// Verdict, reason and policies of the explanation.
        explained: String,
        /// Those of the decision.
        decided: String,
    },
}

/// A question with its ends resolved.
#[derive(Debug)]
pub(super) struct Target {
    pub(super) source: IpAddr,
    /// At least one.
    pub(super) backends: Vec<SocketAddr>,
    /// The Service and its port.
    pub(super) service: Option<(String, u16)>,
    pub(super) notes: Vec<String>,
}

impl Question {
    /// Reads the three words of the command line.
    ///
    /// # Errors
    ///
    /// A word in no known form.
    pub fn parse(source: &str, destination: &str, port: &str) -> Result<Self, ExplainError> {
        let (source, destination) =
            (end("SRC", "", source)?, end("DST", ", namespace/service", destination)?);
        let wrong = || ExplainError::Port { value: port.to_owned() };
        let (number, protocol) = port.split_once('/').unwrap_or((port, "TCP"));
        let digits = !number.is_empty() && number.bytes().all(|byte| byte.is_ascii_digit());
        let number = number.parse::<u16>().ok().filter(|number| digits && *number > 0).ok_or_else(wrong)?;
        let protocol = Protocol::from_str(&protocol.to_ascii_uppercase()).map_err(|()| wrong())?;
        Ok(Self { source, destination, port: number, protocol })
    }

    pub(super) fn protocol(&self) -> Protocol {
        self.protocol
    }

    pub(super) fn resolve(&self, objects: &Objects, snapshot: &Snapshot) -> Result<Target, ExplainError> {
        let sources = self.sources(objects, snapshot)?;
        match &self.destination {
            End::Ip(ip) => {
                let dialled = SocketAddr::new(*ip, self.port);
                // Whoever has several addresses dials with one of the same family.
                let source = sources.iter().find(|source| source.is_ipv4() == ip.is_ipv4());
                let doors = Doors::new(objects);
                match source.and_then(|source| doors.at(snapshot, *source, dialled, self.protocol)) {
                    Some(door) => self.service(objects, snapshot, &sources, door, Some(*ip)),
                    None => self.direct(&sources, &[*ip].into(), Vec::new()),
                }
            }
            End::Name(kind, namespace, name) => {
                let pod = find_pod(objects, namespace, name).filter(|_| *kind != Kind::Service);
                let service = find_service(objects, namespace, name).filter(|_| *kind != Kind::Pod);
                match (pod, service) {
                    (Some(pod), service) => {
                        let note = service.map(|_| {
                            format!("{namespace}/{name} is also a Service: service/{namespace}/{name} has it explained")
                        });
                        let addresses = addresses("DST", pod, snapshot)?;
                        self.direct(&sources, &addresses, note.into_iter().collect())
                    }
                    (None, Some(service)) => {
                        let door = Door { service, by: By::Service, only_node: None };
                        self.service(objects, snapshot, &sources, door, None)
                    }
                    (None, None) => Err(ExplainError::Unknown {
                        field: "DST",
                        kinds: match kind {
                            Kind::Any => "pod or Service",
                            Kind::Pod => "pod",
                            Kind::Service => "Service",
                        },
                        name: format!("{namespace}/{name}"),
                    }),
                }
            }
        }
    }

    fn sources(&self, objects: &Objects, snapshot: &Snapshot) -> Result<BTreeSet<IpAddr>, ExplainError> {
        match &self.source {
            End::Ip(ip) => Ok([*ip].into()),
            End::Name(Kind::Service, namespace, name) => {
                Err(ExplainError::SourceIsService { name: format!("{namespace}/{name}") })
            }
            End::Name(kind, namespace, name) => match find_pod(objects, namespace, name) {
                Some(pod) => addresses("SRC", pod, snapshot),
                None if *kind == Kind::Any && find_service(objects, namespace, name).is_some() => {
                    Err(ExplainError::SourceIsService { name: format!("{namespace}/{name}") })
                }
                None => Err(ExplainError::Unknown {
                    field: "SRC",
                    kinds: "pod",
                    name: format!("{namespace}/{name}"),
                }),
            },
        }
    }

    /// The first pair of one family, IPv4 before IPv6, as `sluice verdict` does.
    fn direct(
        &self,
        sources: &BTreeSet<IpAddr>,
        destinations: &BTreeSet<IpAddr>,
        mut notes: Vec<String>,
    ) -> Result<Target, ExplainError> {
        let mut pairs = sources
            .iter()
            .flat_map(|from| destinations.iter().map(move |to| (*from, *to)))
            .filter(|(from, to)| from.is_ipv4() == to.is_ipv4());
        let (source, to) = pairs.next().ok_or(ExplainError::NoCommonFamily)?;
        if pairs.any(|(from, _)| from.is_ipv4() != source.is_ipv4()) {
            notes.push("both ends also have IPv6: an ipBlock may decide differently there".to_owned());
        }
        Ok(Target { source, backends: vec![SocketAddr::new(to, self.port)], service: None, notes })
    }

    fn service(
        &self,
        objects: &Objects,
        snapshot: &Snapshot,
        sources: &BTreeSet<IpAddr>,
        door: Door,
        dialled: Option<IpAddr>,
    ) -> Result<Target, ExplainError> {
        let service = &objects.services[door.service];
        let name = format!("{}/{}", service.namespace, service.name);
        let (port, protocol) = (self.port, self.protocol);
        let Some(own) = service.ports.iter().find(|own| door.by.is(own, port, protocol)) else {
            let ports: Vec<String> =
                service.ports.iter().map(|own| format!("{}/{}", own.port, own.protocol)).collect();
            let ports = if ports.is_empty() { "none".to_owned() } else { ports.join(" ") };
            return Err(ExplainError::NoServicePort { service: name, port, protocol, ports });
        };
        let mut all = Endpoints::new(objects, snapshot).of(service, own);
        all.retain(|backend| door.leads_to(snapshot, backend.ip()));
        let usable = |from: &IpAddr| {
            dialled.is_none_or(|ip| ip.is_ipv4() == from.is_ipv4())
                && all.iter().any(|backend| backend.is_ipv4() == from.is_ipv4())
        };
        let Some(source) = sources.iter().copied().find(usable) else {
            let node = door.only_node.and_then(|node| snapshot.node_name(node));
            let on = node.map(|node| format!(" on {node} (externalTrafficPolicy: Local)"));
            return Err(if all.is_empty() {
                ExplainError::NoEndpoint { service: name, port, protocol, on: on.unwrap_or_default() }
            } else {
                ExplainError::NoCommonFamily
            });
        };
        let backends: Vec<SocketAddr> =
            all.into_iter().filter(|backend| backend.is_ipv4() == source.is_ipv4()).collect();
        let notes = masquerade_note(snapshot, door, &backends);
        Ok(Target { source, backends, service: Some((name, own.port)), notes: notes.into_iter().collect() })
    }
}

/// What cannot be told of a node port whose endpoints are elsewhere.
fn masquerade_note(snapshot: &Snapshot, door: Door, backends: &[SocketAddr]) -> Option<String> {
    let By::Node(dialled) = door.by else { return None };
    let is_elsewhere = |backend: &SocketAddr| match snapshot.end(backend.ip()) {
        snapshot::End::Pod { node: Some(node), .. } | snapshot::End::Node(node) => node != dialled,
        _ => false,
    };
    let node = snapshot.node_name(dialled)?;
    backends.iter().any(is_elsewhere).then(|| {
        format!("to an endpoint on another node, kube-proxy may send with the address of {node} in place of the client's: an ipBlock may decide differently there")
    })
}

fn end(field: &'static str, also: &'static str, text: &str) -> Result<End, ExplainError> {
    if let Ok(ip) = text.parse() {
        return Ok(End::Ip(flow::canonical_ip(ip)));
    }
    let words: Vec<&str> = text.split('/').collect();
    let (kind, rest) = match words[..] {
        ["pod", ref rest @ ..] if rest.len() == 2 => (Kind::Pod, rest),
        ["service" | "svc", ref rest @ ..] if rest.len() == 2 => (Kind::Service, rest),
        ref rest => (Kind::Any, rest),
    };
    match rest {
        [namespace, name] if !namespace.is_empty() && !name.is_empty() => {
            Ok(End::Name(kind, (*namespace).to_owned(), (*name).to_owned()))
        }
        _ => Err(ExplainError::End { field, also, value: text.to_owned() }),
    }
}

fn find_pod<'o>(objects: &'o Objects, namespace: &str, name: &str) -> Option<&'o Pod> {
    objects.pods.iter().find(|pod| pod.namespace == namespace && pod.name == name)
}

/// The place of a Service.
fn find_service(objects: &Objects, namespace: &str, name: &str) -> Option<usize> {
    objects.services.iter().position(|service| service.namespace == namespace && service.name == name)
}

/// The addresses that are the pod's own now; those of its node when it shares them.
fn addresses(field: &'static str, pod: &Pod, snapshot: &Snapshot) -> Result<BTreeSet<IpAddr>, ExplainError> {
    let holds = |ip: &IpAddr| snapshot.holds(*ip, &pod.namespace, &pod.name);
    let mut addresses = BTreeSet::new();
    if pod.phase != Phase::Finished {
        addresses.extend(pod.ips.iter().copied().filter(|ip| pod.host_network || holds(ip)));
        if pod.host_network && addresses.is_empty() {
            addresses.clone_from(&pod.host_ips);
        }
    }
    if addresses.is_empty() {
        return Err(ExplainError::NoAddress { field, pod: format!("{}/{}", pod.namespace, pod.name) });
    }
    Ok(addresses)
}
