//! A line → a probe with its ends resolved, or what is wrong with it.

use std::borrow::Cow;
use std::net::{IpAddr, SocketAddr};

use flow::Protocol;
use serde_json::Value;

use super::{Addresses, Prober, members, same_family};
use crate::dialled::By;

/// A probe with its ends resolved.
#[derive(Debug, PartialEq)]
pub(super) struct Probe {
    pub(super) source: IpAddr,
    pub(super) destination: SocketAddr,
    pub(super) protocol: Protocol,
    /// The place of the Service that is asked for by name; of the destination only family and port count then.
    pub(super) service: Option<usize>,
}

/// Why a probe cannot be decided.
#[derive(Debug, thiserror::Error)]
pub(super) enum ProbeError {
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

impl Prober {
    /// Reads a line as any JSON value.
    pub(super) fn read(&self, line: &str) -> (Value, Result<Probe, ProbeError>) {
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
