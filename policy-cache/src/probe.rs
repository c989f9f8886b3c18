//! A question as one JSON line → its answer as one JSON line, decided by a snapshot.
//!
//! The ends of a probe are named by pod or by address, destinations also by Service. A destination that leads to a
//! Service is asked of every ready endpoint, because any of them may get the connection.

mod members;
mod plain;
mod stream;

use std::borrow::Cow;
use std::collections::{BTreeSet, HashMap};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use flow::{ClientAddr, Decision, Endpoint, OrigDst, Policies, PolicyRef, Protocol, SideVerdict, Tuple};
use serde::{Serialize, Serializer};
use serde_json::Value;

use crate::dialled::{By, Door, Doors};
use crate::endpoints::Endpoints;
use crate::objects::{Objects, Phase, ServicePort};
use crate::snapshot::Snapshot;

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

/// What is printed for one probe.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(untagged)]
pub enum Answer {
    /// It was decided.
    Decided(Box<Decided>),
    /// It could not be: the probe is malformed or names what does not exist.
    Failed {
        /// The probe's `id`, null when it has none.
        id: Value,
        /// The line of the input it stands on, from 1; absent where there is no input.
        #[serde(skip_serializing_if = "Option::is_none")]
        line: Option<u64>,
        /// Why.
        error: String,
    },
}

impl Answer {
    /// The probe's `id`.
    const fn id(&self) -> &Value {
        match self {
            Self::Decided(decided) => &decided.id,
            Self::Failed { id, .. } => id,
        }
    }

    /// True when the probe could not be decided.
    pub const fn is_failed(&self) -> bool {
        matches!(self, Self::Failed { .. })
    }
}

/// A decided probe.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Decided {
    id: Value,
    verdict: &'static str,
    egress: Side,
    ingress: Side,
    #[serde(skip_serializing_if = "Option::is_none")]
    service: Option<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    endpoints: Vec<EndpointAnswer>,
}

/// The answer for one endpoint of a Service.
#[derive(Clone, Debug, PartialEq, Serialize)]
struct EndpointAnswer {
    ip: IpAddr,
    port: u16,
    #[serde(skip_serializing_if = "Option::is_none")]
    pod: Option<String>,
    verdict: &'static str,
    egress: Side,
    ingress: Side,
}

/// One side of an answer. A side that does not apply has neither tier nor policies.
#[derive(Clone, Debug, PartialEq, Serialize)]
struct Side {
    verdict: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    tier: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    policies: Option<Names>,
    reason: &'static str,
}

/// Policies, written as their names.
#[derive(Clone, Debug, PartialEq)]
struct Names(Option<Policies>);

impl Serialize for Names {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_seq(self.0.iter().flat_map(|policies| policies.iter()).map(Name))
    }
}

struct Name<'p>(&'p PolicyRef);

impl Serialize for Name<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self.0)
    }
}

impl From<&SideVerdict> for Side {
    fn from(side: &SideVerdict) -> Self {
        let applies = side.reason != flow::Reason::NotApplicable;
        Self {
            verdict: side.verdict.as_str(),
            tier: side.tier.map(flow::Tier::as_str),
            policies: applies.then(|| Names(side.policies.clone())),
            reason: side.reason.as_str(),
        }
    }
}

/// Why a probe cannot be decided.
#[derive(Debug, thiserror::Error)]
enum ProbeError {
    #[error("not a JSON object: {}", in_its_line(.0))]
    Syntax(serde_json::Error),
    #[error("not a JSON object")]
    NotAnObject,
    #[error("longer than {limit} bytes")]
    TooLong { limit: usize },
    #[error("{key}: unknown key, there are {}", known.join(", "))]
    UnknownKey { key: String, known: &'static [&'static str] },
    #[error("{key}: stands twice")]
    Twice { key: String },
    #[error("{field}: required")]
    Missing { field: &'static str },
    #[error("{field}: must be {expected}, got {value}")]
    Invalid { field: &'static str, expected: &'static str, value: String },
    #[error("{field}: unknown pod {pod}")]
    UnknownPod { field: &'static str, pod: String },
    #[error("{field}: unknown service {service}")]
    UnknownService { field: &'static str, service: String },
    #[error("{field}: is a service; connections come from pods")]
    ServiceAsSource { field: &'static str },
    #[error("{field}: pod {pod} has no address")]
    NoAddress { field: &'static str, pod: String },
    #[error("src and dst have no address of the same family")]
    NoCommonFamily,
    #[error("service {service} has no port {port}/{protocol}")]
    NoServicePort { service: String, port: u16, protocol: Protocol },
    #[error("service {service} has no ready endpoint for port {port}/{protocol}{}", on(node))]
    NoEndpoint { service: String, port: u16, protocol: Protocol, node: Option<String> },
}

/// The node whose endpoints alone count.
fn on(node: &Option<String>) -> String {
    node.as_ref().map(|node| format!(" on {node} (externalTrafficPolicy: Local)")).unwrap_or_default()
}

/// The line of a stream is told beside it; the parser knows no other than the first.
fn in_its_line(error: &serde_json::Error) -> String {
    let place = format!(" at line {} column {}", error.line(), error.column());
    error.to_string().replace(&place, &format!(" at column {}", error.column()))
}

/// A probe with its ends resolved.
#[derive(Debug, PartialEq)]
struct Probe {
    source: IpAddr,
    destination: SocketAddr,
    protocol: Protocol,
    /// The place of the Service that is asked for by name; of the destination only family and port count then.
    service: Option<usize>,
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
            Ok(decided) => Answer::Decided(Box::new(Decided { id, ..decided })),
            Err(error) => Answer::Failed { id, line: number, error: error.to_string() },
        }
    }

    /// Reads a line as any JSON value.
    fn read(&self, line: &str) -> (Value, Result<Probe, ProbeError>) {
        match serde_json::from_str::<Value>(line) {
            Ok(probe @ Value::Object(_)) => {
                let id = probe.get("id").cloned().unwrap_or_default();
                (id, unequivocal(line).and_then(|()| self.resolve(&probe)))
            }
            Ok(_) => (Value::Null, Err(ProbeError::NotAnObject)),
            Err(error) => (Value::Null, Err(ProbeError::Syntax(error))),
        }
    }

    fn resolve(&self, probe: &Value) -> Result<Probe, ProbeError> {
        only(probe, "", &["id", "src", "dst", "port", "protocol"])?;
        let protocol = match probe.get("protocol") {
            None | Some(Value::Null) => Protocol::Tcp,
            Some(value) => value
                .as_str()
                .and_then(|text| text.parse().ok())
                .ok_or_else(|| invalid("protocol", "TCP, UDP or SCTP", value))?,
        };
        let port = probe.get("port").ok_or(ProbeError::Missing { field: "port" })?;
        let port = port
            .as_u64()
            .and_then(|number| u16::try_from(number).ok())
            .filter(|number| *number > 0)
            .ok_or_else(|| invalid("port", "a number from 1 to 65535", port))?;
        let sources = self.end(probe, "src")?;
        if let Some(service) = self.service(probe, "dst")? {
            return self.resolve_service(sources.list(), service, port, protocol);
        }
        let destinations = self.end(probe, "dst")?;
        let (source, destination) =
            same_family(sources.list(), destinations.list()).ok_or(ProbeError::NoCommonFamily)?;
        Ok(Probe { source, destination: SocketAddr::new(destination, port), protocol, service: None })
    }

    /// The place of a Service that an end names.
    fn service(&self, probe: &Value, field: &'static str) -> Result<Option<usize>, ProbeError> {
        let Some(named) = probe.get(field).and_then(|end| end.get("service")) else { return Ok(None) };
        let end = &probe[field];
        only(end, &format!("{field}."), &["service"])?;
        let whole = named.as_str().ok_or_else(|| invalid(field, "{\"service\":\"namespace/name\"}", end))?;
        let place = whole.split_once('/').and_then(|(namespace, name)| self.doors.named(namespace, name));
        let unknown = || ProbeError::UnknownService { field, service: whole.to_owned() };
        place.map(Some).ok_or_else(unknown)
    }

    /// The first address of the source whose family the Service's endpoints have too.
    fn resolve_service(
        &self,
        sources: &[IpAddr],
        place: usize,
        port: u16,
        protocol: Protocol,
    ) -> Result<Probe, ProbeError> {
        let ports = self.services[place].ports.iter();
        let mut behind =
            ports.filter(|(own, _)| By::Service.is(own, port, protocol)).flat_map(|(_, all)| all);
        let endpoints: Vec<IpAddr> = behind.by_ref().map(SocketAddr::ip).collect();
        let (source, family) = match same_family(sources, &endpoints) {
            Some(pair) => pair,
            None if !endpoints.is_empty() => return Err(ProbeError::NoCommonFamily),
            // That there is no port or no endpoint is said when it is decided.
            None => sources.first().map(|first| (*first, *first)).ok_or(ProbeError::NoCommonFamily)?,
        };
        Ok(Probe { source, destination: SocketAddr::new(family, port), protocol, service: Some(place) })
    }

    /// The addresses one end may use.
    fn end(&self, probe: &Value, field: &'static str) -> Result<Cow<'_, Addresses>, ProbeError> {
        let expected = "{\"pod\":\"namespace/name\"} or {\"ip\":\"address\"}";
        let end = probe.get(field).ok_or(ProbeError::Missing { field })?;
        if field == "src" && end.get("service").is_some() {
            return Err(ProbeError::ServiceAsSource { field });
        }
        only(end, &format!("{field}."), &["pod", "ip"])?;
        match (end.get("pod"), end.get("ip")) {
            (Some(Value::String(pod)), None) => match self.pods.get(pod.as_str()) {
                None => Err(ProbeError::UnknownPod { field, pod: pod.clone() }),
                Some(addresses) if addresses.list().is_empty() => {
                    Err(ProbeError::NoAddress { field, pod: pod.clone() })
                }
                Some(addresses) => Ok(Cow::Borrowed(addresses)),
            },
            (None, Some(Value::String(text))) => match text.parse() {
                Ok(ip) => Ok(Cow::Owned(Addresses::One([flow::canonical_ip(ip)]))),
                Err(_) => Err(invalid(field, "an IP address", &end["ip"])),
            },
            _ => Err(invalid(field, expected, end)),
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
        let endpoints = decisions.iter().map(|(backend, decision)| self.endpoint_answer(*backend, decision));
        Ok(decided(decision, Some(name.clone()), endpoints.collect()))
    }

    fn endpoint_answer(&self, backend: SocketAddr, decision: &Decision) -> EndpointAnswer {
        let pod = match self.snapshot.endpoint(backend.ip()) {
            Endpoint::Pod(pod) => Some(format!("{}/{}", pod.namespace, pod.name)),
            _ => None,
        };
        EndpointAnswer {
            ip: backend.ip(),
            port: backend.port(),
            pod,
            verdict: decision.verdict().as_str(),
            egress: (&decision.egress).into(),
            ingress: (&decision.ingress).into(),
        }
    }
}

fn tuple(probe: &Probe, destination: SocketAddr) -> Tuple {
    Tuple {
        protocol: probe.protocol,
        client: ClientAddr(SocketAddr::new(probe.source, 0)),
        destination: OrigDst(destination),
    }
}

/// Its `id` is left to the caller.
fn decided(decision: &Decision, service: Option<String>, endpoints: Vec<EndpointAnswer>) -> Decided {
    Decided {
        id: Value::Null,
        verdict: decision.verdict().as_str(),
        egress: (&decision.egress).into(),
        ingress: (&decision.ingress).into(),
        service,
        endpoints,
    }
}

/// The first pair of addresses of one family.
fn same_family(sources: &[IpAddr], destinations: &[IpAddr]) -> Option<(IpAddr, IpAddr)> {
    sources.iter().find_map(|source| {
        let destination = destinations.iter().find(|other| other.is_ipv4() == source.is_ipv4())?;
        Some((*source, *destination))
    })
}

/// Refuses a probe in which a key stands twice: it would be two questions, and a parser takes the last. The `id` may be
/// anything.
fn unequivocal(line: &str) -> Result<(), ProbeError> {
    let own = members::twice(line);
    let of_end = |(key, end): (String, &str)| members::twice(end).map(|inner| format!("{key}.{inner}"));
    let is_end = |member: &(String, &str)| matches!(member.0.as_str(), "src" | "dst");
    match own.or_else(|| members::members(line).into_iter().filter(is_end).find_map(of_end)) {
        Some(key) => Err(ProbeError::Twice { key }),
        None => Ok(()),
    }
}

/// Refuses a mapping with a key that is not known: a misspelt one would otherwise be another question.
fn only(mapping: &Value, prefix: &str, known: &'static [&'static str]) -> Result<(), ProbeError> {
    let mut keys = mapping.as_object().into_iter().flat_map(|entries| entries.keys());
    match keys.find(|key| !known.contains(&key.as_str())) {
        Some(key) => Err(ProbeError::UnknownKey { key: format!("{prefix}{key}"), known }),
        None => Ok(()),
    }
}

fn invalid(field: &'static str, expected: &'static str, value: &Value) -> ProbeError {
    ProbeError::Invalid { field, expected, value: value.to_string() }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use flow::Generation;

    use super::*;
    use crate::{Options, compile, parse};

    fn prober() -> Prober {
        let pods = r#"{"apiVersion":"v1","kind":"List","items":[
            {"apiVersion":"v1","kind":"Pod","metadata":{"name":"a"},"status":{"podIPs":[{"ip":"10.0.0.1"},{"ip":"fd00::1"}]}},
            {"apiVersion":"v1","kind":"Pod","metadata":{"name":"b"},"status":{"podIP":"10.0.0.2"}},
            {"apiVersion":"v1","kind":"Pod","metadata":{"name":"nowhere"}}]}"#;
        let objects = parse([(Path::new("pods.json"), pods)]).unwrap();
        Prober::new(&objects, Arc::new(compile(&objects, &Options::default(), Generation(1))))
    }

    #[test]
    fn a_probe_reads_the_same_on_the_short_way_or_is_left_to_the_long_one() {
        let prober = prober();
        let a = r#"{"pod":"default/a"}"#;
        let ends = [
            a,
            r#"{"pod":"default/b"}"#,
            r#"{"pod":"default/nowhere"}"#,
            r#"{"pod":"default/c"}"#,
            r#"{"pod":"default\u002fa"}"#,
            r#"{"pod":null,"ip":"10.0.0.1"}"#,
            r#"{"ip":"10.0.0.1","pod":"default/b"}"#,
            r#"{"ip":"10.0.0.1","pod":null}"#,
            r#"{"ip":"fd00::1"}"#,
            r#"{"ip":"::ffff:10.0.0.1"}"#,
            r#"{"ip":"10.0.0.256"}"#,
            r#"{"ip":"10.0.0.9","note":1}"#,
            r#"{"Ip":"10.0.0.9"}"#,
            r#""pod""#,
            "{}",
            "null",
            "7",
        ];
        let rests = [
            r#""port":80"#,
            r#""port":80,"id":{"deep":[1]}"#,
            r#""port":80,"id":null,"more":{}"#,
            r#""port":80,"id":18446744073709551615"#,
            r#""port":80,"id":18446744073709551616"#,
            r#""port":80,"id":-7"#,
            r#""port":80,"id":1.50"#,
            r#""port":80,"id":true"#,
            r#""port":80,"id":"ä/\ud83d\ude00\"\\\u0001""#,
            r#""port":80,"id":"ä/~""#,
            r#""port":80,"protocol":"UDP","id":"x""#,
            r#""port":80,"protocol":null"#,
            r#""port":80,"protocol":"udp""#,
            r#""port":80,"protocol":6"#,
            r#""port":80,"port":81"#,
            r#""port":0"#,
            r#""port":65536"#,
            r#""port":-1"#,
            r#""port":80.0"#,
            r#""port":"80""#,
            r#""port":null"#,
            r#""id":1"#,
            r#""port":80}"#,
        ];
        let mut short = 0;
        let mut check = |line: String| {
            if let Some((_, probe)) = read_short(&prober, &line) {
                assert_eq!(Some(probe), prober.read(&line).1.ok(), "{line}");
                short += 1;
            }
            let mut written = Vec::new();
            let decided = prober.answer_into(&line, None, &mut written);
            let answer = prober.answer(&line);
            let written: Value = serde_json::from_slice(&written).unwrap();
            assert_eq!(written, serde_json::to_value(&answer).unwrap(), "{line}");
            assert_eq!(decided, !answer.is_failed(), "{line}");
        };
        for end in ends {
            for rest in rests {
                check(format!(r#"{{"src":{end},"dst":{a},{rest}}}"#));
                check(format!(r#"{{{rest},"dst":{end},"src":{a}}}"#));
            }
        }
        check(format!(r#"[null,{a},{a},80,"TCP"]"#));
        assert_eq!(short, 40, "lines that took the short way");
    }

    fn read_short<'l>(prober: &Prober, line: &'l str) -> Option<(plain::PlainId<'l>, Probe)> {
        plain::resolve(prober, plain::parse(line)?)
    }

    #[test]
    fn a_key_that_a_probe_does_not_have_is_refused_and_the_id_kept() {
        let a = r#"{"pod":"default/a"}"#;
        let table = [
            (format!(r#""src":{a},"dst":{a},"port":80,"protcol":"UDP""#), "protcol"),
            (format!(r#""src":{a},"dst":{a},"port":80,"Protocol":"UDP""#), "Protocol"),
            (format!(r#""src":{a},"dst":{a},"port":80,"more":null"#), "more"),
            (format!(r#""src":{{"pod":"default/a","port":1}},"dst":{a},"port":80"#), "src.port"),
            (format!(r#""src":{a},"dst":{{"ip":"10.0.0.2","ipv6":"fd00::1"}},"port":80"#), "dst.ipv6"),
            (format!(r#""src":{a},"dst":{{"Ip":"10.0.0.2"}},"port":80"#), "dst.Ip"),
        ];
        for (keys, key) in table {
            let line = format!(r#"{{"id":7,{keys}}}"#);
            assert!(read_short(&prober(), &line).is_none(), "{line}");
            let Answer::Failed { id, error, .. } = prober().answer(&line) else { panic!("decided: {line}") };
            assert_eq!(id, 7, "{line}");
            assert!(error.starts_with(&format!("{key}: unknown key, ")), "{line}: {error}");
        }
    }

    #[test]
    fn an_id_that_is_a_number_is_written_as_it_was_read() {
        let prober = prober();
        let ids = [
            "0",
            "7",
            "-7",
            "1.50",
            "1e3",
            "18446744073709551615",
            "18446744073709551616",
            "123456789012345678901234567890",
            "-0.10",
        ];
        let ends = r#""src":{"pod":"default/a"},"dst":{"pod":"default/b"}"#;
        for id in ids {
            for (rest, decided) in [(r#","port":80"#, true), ("", false)] {
                for line in
                    [format!(r#"{{"id":{id},{ends}{rest}}}"#), format!(r#"{{{ends}{rest} , "id" : {id} }}"#)]
                {
                    let mut out = b"before ".to_vec();
                    assert_eq!(prober.answer_into(&line, None, &mut out), decided, "{line}");
                    let text = String::from_utf8(out).unwrap();
                    assert!(text.starts_with(&format!("before {{\"id\":{id},\"")), "{line}: {text}");
                }
            }
        }
    }

    #[test]
    fn a_key_that_stands_twice_is_refused() {
        let a = r#"{"pod":"default/a"}"#;
        for (line, key) in [
            (format!(r#"{{"src":{a},"dst":{a},"port":80,"port":81}}"#), "port"),
            (format!(r#"{{"id":1,"src":{a},"dst":{a},"port":80,"id":1}}"#), "id"),
            (format!(r#"{{"src":{a},"dst":{a},"src":{a},"port":80}}"#), "src"),
            (format!(r#"{{"src":{a},"dst":{a},"port":80,"p\u006frt":80}}"#), "port"),
            (format!(r#"{{"src":{{"pod":"default/b","pod":"default/a"}},"dst":{a},"port":80}}"#), "src.pod"),
            (format!(r#"{{"src":{a},"dst":{{"ip":"10.0.0.2","ip":"10.0.0.2"}},"port":80}}"#), "dst.ip"),
            (format!(r#"{{"src":{a},"dst":{{"service":"a/b","service":"a/b"}},"port":80}}"#), "dst.service"),
        ] {
            assert!(read_short(&prober(), &line).is_none(), "{line}");
            let Answer::Failed { error, .. } = prober().answer(&line) else { panic!("decided: {line}") };
            assert_eq!(error, format!("{key}: stands twice"), "{line}");
        }
        let deep = format!(r#"{{"id":{{"a":1,"a":2}},"src":{a},"dst":{a},"port":80}}"#);
        assert!(!prober().answer(&deep).is_failed(), "an id is nobody's question");
    }

    #[test]
    fn a_list_is_no_probe() {
        let end = r#"{"pod":"default/a"}"#;
        assert!(prober().answer(&format!(r#"[1,{end},{end},80,"TCP"]"#)).is_failed());
    }
}
