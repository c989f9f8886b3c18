//! Values that several kinds share: metadata, addresses, ports.

use std::net::IpAddr;

use flow::Protocol;

use super::misspelt;
use super::reader::{Cursor, Findings};
use super::syntax;
use crate::objects::{Labels, NamedPort};

/// The namespace of an object that names none.
const DEFAULT_NAMESPACE: &str = "default";

/// Whether objects of a kind live in a namespace.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Scope {
    Namespaced,
    Cluster,
}

/// Who an object is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Name {
    /// Empty for cluster-scoped kinds.
    pub(crate) namespace: String,
    pub(crate) name: String,
}

/// Reads `metadata.name` and `metadata.namespace`, and puts `Kind/namespace/name` into the findings first,
/// so that every later problem carries it. `namespace_in_doubt`: that there is none says nothing.
pub(crate) fn name(
    object: &Cursor,
    kind: &str,
    scope: Scope,
    namespace_in_doubt: bool,
    findings: &mut Findings,
) -> Option<Name> {
    findings.object = kind.to_owned();
    let Some(metadata) = object.get_map("metadata", findings) else {
        findings.missing(object, "metadata.name");
        return None;
    };
    let namespace = match scope {
        Scope::Cluster => Some(String::new()),
        Scope::Namespaced if namespace_in_doubt => None,
        Scope::Namespaced => namespace(&metadata, findings),
    };
    let prefix = match namespace.as_deref() {
        None | Some("") => String::new(),
        Some(namespace) => format!("{namespace}/"),
    };
    findings.object = format!("{kind}/{prefix}");
    let Some(field) = metadata.get("name") else {
        findings.missing(&metadata, "name");
        return None;
    };
    let name = field.string(findings)?;
    findings.object = format!("{kind}/{prefix}{name}");
    let valid = if kind == "Namespace" { syntax::is_dns_label(name) } else { syntax::is_subdomain(name) };
    if !valid {
        findings.report(&field, "must be a DNS name: lower case letters, digits, '-' and '.'");
        return None;
    }
    Some(Name { namespace: namespace?, name: name.to_owned() })
}

fn namespace(metadata: &Cursor, findings: &mut Findings) -> Option<String> {
    let Some(field) = metadata.get("namespace") else { return Some(DEFAULT_NAMESPACE.to_owned()) };
    match field.string(findings)? {
        "" => Some(DEFAULT_NAMESPACE.to_owned()),
        text if syntax::is_dns_label(text) => Some(text.to_owned()),
        _ => {
            findings.report(&field, "must be a DNS label: lower case letters, digits and '-'");
            None
        }
    }
}

/// A mapping of label keys to label values, for example `metadata.labels`.
pub(crate) fn labels(map: &Cursor, findings: &mut Findings) -> Labels {
    if !map.is_map() {
        findings.report(map, "must be a mapping of label keys to values");
    }
    let mut labels = Labels::new();
    for (key, field) in map.entries() {
        let key_valid = label_key(key, &field, findings);
        // A null value reads as the empty string, as it does in the API server.
        let value = match field.node().value {
            super::tree::Value::Null => Some(String::new()),
            _ => label_value(&field, findings),
        };
        if let (true, Some(value)) = (key_valid, value) {
            labels.insert(key.to_owned(), value);
        }
    }
    labels
}

pub(crate) fn label_key(key: &str, at: &Cursor, findings: &mut Findings) -> bool {
    let valid = syntax::is_label_key(key);
    if !valid {
        findings.report(at, format!("invalid label key {key:?}"));
    }
    valid
}

pub(crate) fn label_value(field: &Cursor, findings: &mut Findings) -> Option<String> {
    let value = field.string(findings)?;
    if !syntax::is_label_value(value) {
        findings.report(field, "invalid label value");
        return None;
    }
    Some(value.to_owned())
}

/// `metadata.labels` of an object.
pub(crate) fn metadata_labels(object: &Cursor, findings: &mut Findings) -> Labels {
    object
        .get("metadata")
        .and_then(|metadata| metadata.get("labels").map(|map| labels(&map, findings)))
        .unwrap_or_default()
}

/// An IP address, IPv4-mapped IPv6 as IPv4.
pub(crate) fn address(field: &Cursor, findings: &mut Findings) -> Option<IpAddr> {
    match field.string(findings)?.parse::<IpAddr>() {
        Ok(ip) => Some(flow::canonical_ip(ip)),
        Err(_) => {
            findings.report(field, "must be an IP address");
            None
        }
    }
}

/// The child `key` as an IP address; absent, null and "" are no address.
pub(crate) fn optional_address(parent: &Cursor, key: &str, findings: &mut Findings) -> Option<IpAddr> {
    let field = parent.get(key)?;
    if field.string(findings)?.is_empty() {
        return None;
    }
    address(&field, findings)
}

/// A port number from 1 to 65535.
pub(crate) fn port_number(field: &Cursor, findings: &mut Findings) -> Option<u16> {
    let number = field.integer(findings)?;
    match u16::try_from(number) {
        Ok(port) if port > 0 => Some(port),
        _ => {
            findings.report(field, "must be between 1 and 65535");
            None
        }
    }
}

/// The child `protocol`; absent is TCP.
pub(crate) fn protocol(parent: &Cursor, findings: &mut Findings) -> Option<Protocol> {
    let Some(field) = parent.get("protocol") else { return Some(Protocol::Tcp) };
    let protocol = field.string(findings)?.parse().ok();
    if protocol.is_none() {
        findings.report(&field, "must be TCP, UDP or SCTP");
    }
    protocol
}

/// A port name.
pub(crate) fn port_name(field: &Cursor, findings: &mut Findings) -> Option<String> {
    let name = field.string(findings)?;
    if !syntax::is_port_name(name) {
        findings.report(field, "must be a port name: at most 15 lower case letters, digits and '-'");
        return None;
    }
    Some(name.to_owned())
}

/// The named ones among a list of container ports.
pub(crate) fn container_ports(list: &Cursor, findings: &mut Findings) -> Vec<NamedPort> {
    let mut ports = Vec::new();
    for item in list.items(findings) {
        misspelt::report(&item, &misspelt::CONTAINER_PORT, findings);
        let protocol = protocol(&item, findings);
        let Some(number) = item.get("containerPort") else {
            findings.missing(&item, "containerPort");
            continue;
        };
        let number = port_number(&number, findings);
        let name = match item.get("name") {
            Some(field) if field.string(findings).is_some_and(|name| !name.is_empty()) => {
                port_name(&field, findings)
            }
            _ => None,
        };
        if let (Some(name), Some(protocol), Some(number)) = (name, protocol, number) {
            ports.push(NamedPort { name, protocol, number });
        }
    }
    ports
}
