//! What a person typed → one source address and the addresses that may answer.

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};
use std::str::FromStr;

use flow::Protocol;

use crate::endpoints::Endpoints;
use crate::objects::{Objects, Phase, Pod, Service};
use crate::snapshot::Snapshot;

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
    /// Namespace and name of a pod, or of a Service.
    Name(String, String),
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
    #[error("DST: service {service} has no ready endpoint for port {port}/{protocol}")]
    NoEndpoint {
        /// `namespace/name`.
        service: String,
        /// The port asked for.
        port: u16,
        /// Its protocol.
        protocol: Protocol,
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
            End::Ip(ip) => match objects.services.iter().find(|service| service.cluster_ips.contains(ip)) {
                Some(service) => self.service(objects, snapshot, &sources, service, Some(*ip)),
                None => self.direct(&sources, &[*ip].into(), Vec::new()),
            },
            End::Name(namespace, name) => {
                let pod = find_pod(objects, namespace, name);
                let service = find_service(objects, namespace, name);
                match (pod, service) {
                    (Some(pod), service) => {
                        let note = service.map(|_| {
                            format!("{namespace}/{name} is also a Service: ask for its ClusterIP to have it explained")
                        });
                        let addresses = addresses("DST", pod, snapshot)?;
                        self.direct(&sources, &addresses, note.into_iter().collect())
                    }
                    (None, Some(service)) => self.service(objects, snapshot, &sources, service, None),
                    (None, None) => Err(ExplainError::Unknown {
                        field: "DST",
                        kinds: "pod or Service",
                        name: format!("{namespace}/{name}"),
                    }),
                }
            }
        }
    }

    fn sources(&self, objects: &Objects, snapshot: &Snapshot) -> Result<BTreeSet<IpAddr>, ExplainError> {
        match &self.source {
            End::Ip(ip) => Ok([*ip].into()),
            End::Name(namespace, name) => match find_pod(objects, namespace, name) {
                Some(pod) => addresses("SRC", pod, snapshot),
                None if find_service(objects, namespace, name).is_some() => {
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
        service: &Service,
        dialled: Option<IpAddr>,
    ) -> Result<Target, ExplainError> {
        let name = format!("{}/{}", service.namespace, service.name);
        let (port, protocol) = (self.port, self.protocol);
        if !service.ports.iter().any(|own| own.port == port && own.protocol == protocol) {
            let ports: Vec<String> =
                service.ports.iter().map(|own| format!("{}/{}", own.port, own.protocol)).collect();
            let ports = if ports.is_empty() { "none".to_owned() } else { ports.join(" ") };
            return Err(ExplainError::NoServicePort { service: name, port, protocol, ports });
        }
        let all = backends(objects, snapshot, service, port, protocol);
        let usable = |from: &IpAddr| {
            dialled.is_none_or(|ip| ip.is_ipv4() == from.is_ipv4())
                && all.iter().any(|backend| backend.is_ipv4() == from.is_ipv4())
        };
        let Some(source) = sources.iter().copied().find(usable) else {
            return Err(if all.is_empty() {
                ExplainError::NoEndpoint { service: name, port, protocol }
            } else {
                ExplainError::NoCommonFamily
            });
        };
        let backends = all.into_iter().filter(|backend| backend.is_ipv4() == source.is_ipv4()).collect();
        Ok(Target { source, backends, service: Some((name, port)), notes: Vec::new() })
    }
}

fn end(field: &'static str, also: &'static str, text: &str) -> Result<End, ExplainError> {
    if let Ok(ip) = text.parse() {
        return Ok(End::Ip(flow::canonical_ip(ip)));
    }
    match text.split_once('/') {
        Some((namespace, name)) if !namespace.is_empty() && !name.is_empty() && !name.contains('/') => {
            Ok(End::Name(namespace.to_owned(), name.to_owned()))
        }
        _ => Err(ExplainError::End { field, also, value: text.to_owned() }),
    }
}

fn find_pod<'o>(objects: &'o Objects, namespace: &str, name: &str) -> Option<&'o Pod> {
    objects.pods.iter().find(|pod| pod.namespace == namespace && pod.name == name)
}

fn find_service<'o>(objects: &'o Objects, namespace: &str, name: &str) -> Option<&'o Service> {
    objects.services.iter().find(|service| service.namespace == namespace && service.name == name)
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

/// The ready endpoints of a Service.
fn backends(
    objects: &Objects,
    snapshot: &Snapshot,
    service: &Service,
    port: u16,
    protocol: Protocol,
) -> Vec<SocketAddr> {
    let own = service.ports.iter().find(|own| own.port == port && own.protocol == protocol);
    own.map(|own| Endpoints::new(objects, snapshot).of(service, own)).unwrap_or_default()
}
