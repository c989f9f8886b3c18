//! Parts of a line that say the same for many records: who stands at an end, what a side decided, which Service was
//! dialled. The line's writer copies them, and the store keeps each of them once.

use flow::{Decision, EndCause, Endpoint, Service, SideVerdict};

use crate::json;
use crate::record::{Action, Record, Tls};

/// Appends `{"namespace":…}`; false when there is nothing to say of this end, and nothing was appended.
pub(crate) fn k8s(to: &mut Vec<u8>, endpoint: &Endpoint) -> bool {
    match endpoint {
        Endpoint::Pod(pod) => {
            to.extend_from_slice(b"{\"namespace\":");
            json::text(to, &pod.namespace);
            to.extend_from_slice(b",\"pod\":");
            json::text(to, &pod.name);
            if !pod.uid.is_empty() {
                to.extend_from_slice(b",\"uid\":");
                json::text(to, &pod.uid.to_string());
            }
            if let Some(node) = &pod.node {
                to.extend_from_slice(b",\"node\":");
                json::text(to, node);
            }
            if let Some(owner) = &pod.owner {
                to.extend_from_slice(b",\"owner\":{\"kind\":");
                json::text(to, &owner.kind);
                to.extend_from_slice(b",\"name\":");
                json::text(to, &owner.name);
                to.push(b'}');
            }
            for (place, (key, value)) in pod.labels.iter().enumerate() {
                to.extend_from_slice(if place == 0 { b",\"labels\":{" } else { b"," });
                json::text(to, key);
                to.push(b':');
                json::text(to, value);
            }
            if !pod.labels.is_empty() {
                to.push(b'}');
            }
            to.push(b'}');
            true
        }
        Endpoint::Node { name, .. } => {
            to.extend_from_slice(b"{\"node\":");
            json::text(to, name);
            to.push(b'}');
            true
        }
        Endpoint::UnknownLocal | Endpoint::External => false,
    }
}

/// Appends one side of a decision, in the words of `sluice verdict`.
pub(crate) fn side(to: &mut Vec<u8>, side: &SideVerdict) {
    to.extend_from_slice(b"{\"verdict\":");
    json::text(to, side.verdict.as_str());
    if let Some(tier) = side.tier {
        to.extend_from_slice(b",\"tier\":");
        json::text(to, tier.as_str());
    }
    to.extend_from_slice(b",\"policies\":[");
    for (place, policy) in side.policies().iter().enumerate() {
        // As a policy prints.
        to.extend_from_slice(if place == 0 { b"\"" } else { b",\"" });
        to.extend_from_slice(policy.kind.as_str().as_bytes());
        to.push(b'/');
        if let Some(namespace) = &policy.namespace {
            json::inside(to, namespace);
            to.push(b'/');
        }
        json::inside(to, &policy.name);
        if let Some(rule) = policy.rule {
            to.push(b'#');
            json::number(to, rule.into());
        }
        to.push(b'"');
    }
    to.extend_from_slice(b"],\"reason\":");
    json::text(to, side.reason.as_str());
    to.push(b'}');
}

/// Appends the Service that was dialled.
pub(crate) fn service(to: &mut Vec<u8>, service: &Service) {
    to.extend_from_slice(b"{\"namespace\":");
    json::text(to, &service.namespace);
    to.extend_from_slice(b",\"name\":");
    json::text(to, &service.name);
    address(to, b",\"ip\":", service.address);
    to.push(b'}');
}

/// Appends an address and its port, behind what `before` says.
pub(crate) fn address(to: &mut Vec<u8>, before: &[u8], address: std::net::SocketAddr) {
    to.extend_from_slice(before);
    json::ip(to, address.ip());
    to.extend_from_slice(b",\"port\":");
    json::number(to, address.port().into());
}

/// Appends what a ClientHello asked for.
pub(crate) fn tls(to: &mut Vec<u8>, hello: &Tls) {
    to.extend_from_slice(b"{\"client\":{");
    if let Some(name) = &hello.server_name {
        to.extend_from_slice(b"\"server_name\":");
        json::text(to, name);
    }
    for (place, protocol) in hello.protocols.iter().enumerate() {
        to.extend_from_slice(match (place, &hello.server_name) {
            (0, None) => b"\"alpn\":[",
            (0, Some(_)) => b",\"alpn\":[",
            _ => b",",
        });
        json::text(to, protocol);
    }
    if !hello.protocols.is_empty() {
        to.push(b']');
    }
    to.extend_from_slice(b"}}");
}

/// Appends `event.reason`: what went wrong in words, or which side refused and why. False when there is nothing to
/// say, and nothing was appended.
pub(crate) fn reason(to: &mut Vec<u8>, record: &Record) -> bool {
    if let Some(detail) = &record.detail {
        json::text(to, detail);
        return true;
    }
    match (record.action, record.cause, &record.revoked_by) {
        // A held attempt may have been allowed first.
        (Action::Denied, ..) => refusal(to, shown_decision(record)),
        (Action::Ended, _, Some(decision)) => refusal(to, decision),
        (Action::Failed, Some(cause), _) => json::text(to, EndCause::as_str(cause)),
        _ => return false,
    }
    true
}

fn refusal(to: &mut Vec<u8>, decision: &Decision) {
    to.push(b'"');
    let sides: [(&[u8], _); 2] = [(b"egress ", &decision.egress), (b"ingress ", &decision.ingress)];
    let refusing = sides.into_iter().filter(|(_, side)| !side.verdict.is_allow());
    for (place, (name, side)) in refusing.enumerate() {
        if place > 0 {
            to.extend_from_slice(b", ");
        }
        to.extend_from_slice(name);
        to.extend_from_slice(side.reason.as_str().as_bytes());
    }
    to.push(b'"');
}

/// The decision whose sides and generation a record shows.
pub(crate) fn shown_decision(record: &Record) -> &Decision {
    record.revoked_by.as_ref().unwrap_or(&record.decision)
}
