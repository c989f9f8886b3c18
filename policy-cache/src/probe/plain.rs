//! The short way of a probe: read without a copy, answered without a serializer.
//!
//! Nearly all probes are written in one form. Whatever is not is left to the long way, which says what is wrong
//! with it, so nothing here may accept what [`Prober::resolve`] refuses, and nothing may be written otherwise
//! than [`Answer`](super::Answer) serializes.

use std::borrow::Cow;
use std::fmt;
use std::io::Write as _;
use std::net::SocketAddr;

use flow::{Decision, PolicyRef, Protocol, Reason, SideVerdict};
use serde::de::{Deserialize, Deserializer, Visitor};

use super::{Addresses, Probe, Prober, same_family};

/// A probe in its usual form.
#[derive(serde::Deserialize)]
#[serde(deny_unknown_fields)]
struct PlainProbe<'l> {
    #[serde(borrow, default)]
    id: PlainId<'l>,
    #[serde(borrow)]
    src: PlainEnd<'l>,
    #[serde(borrow)]
    dst: PlainEnd<'l>,
    port: std::num::NonZeroU16,
    #[serde(default)]
    protocol: Option<&'l str>,
}

#[derive(Clone, Copy, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
enum PlainEnd<'l> {
    Pod(&'l str),
    Ip(&'l str),
}

/// The forms of an `id` that are written back as they were read.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(super) enum PlainId<'l> {
    #[default]
    Null,
    Number(u64),
    Text(&'l str),
}

impl<'de: 'l, 'l> Deserialize<'de> for PlainId<'l> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(IdVisitor)
    }
}

struct IdVisitor;

impl<'l> Visitor<'l> for IdVisitor {
    type Value = PlainId<'l>;

    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("a whole number, or text without escapes")
    }

    fn visit_unit<E>(self) -> Result<Self::Value, E> {
        Ok(PlainId::Null)
    }

    fn visit_u64<E>(self, number: u64) -> Result<Self::Value, E> {
        Ok(PlainId::Number(number))
    }

    fn visit_borrowed_str<E>(self, text: &'l str) -> Result<Self::Value, E> {
        Ok(PlainId::Text(text))
    }
}

/// A line → its probe, if it has the usual form and names what exists.
pub(super) fn read<'l>(prober: &Prober, line: &'l str) -> Option<(PlainId<'l>, Probe)> {
    // A list of the values would read as the mapping.
    let plain: PlainProbe<'_> = serde_json::from_str(line.strip_prefix('{').map(|_| line)?).ok()?;
    let protocol = plain.protocol.map_or(Some(Protocol::Tcp), |text| text.parse().ok())?;
    let ends = |end| match end {
        PlainEnd::Pod(pod) => Some(Cow::Borrowed(prober.pods.get(pod)?)),
        PlainEnd::Ip(text) => Some(Cow::Owned(Addresses::One([flow::canonical_ip(text.parse().ok()?)]))),
    };
    let (source, destination) = same_family(ends(plain.src)?.list(), ends(plain.dst)?.list())?;
    let destination = SocketAddr::new(destination, plain.port.get());
    Some((plain.id, Probe { source, destination, protocol }))
}

/// Writes the answer to a probe whose destination is no Service.
pub(super) fn write(out: &mut Vec<u8>, id: PlainId<'_>, decision: &Decision) {
    out.extend_from_slice(b"{\"id\":");
    match id {
        PlainId::Null => out.extend_from_slice(b"null"),
        PlainId::Number(number) => {
            // Writing to memory cannot fail.
            let _ = write!(out, "{number}");
        }
        PlainId::Text(text) => {
            out.push(b'"');
            escaped(out, text);
            out.push(b'"');
        }
    }
    pair(out, ",\"verdict\":\"", decision.verdict().as_str());
    out.extend_from_slice(b",\"egress\":");
    side(out, &decision.egress);
    out.extend_from_slice(b",\"ingress\":");
    side(out, &decision.ingress);
    out.push(b'}');
}

fn side(out: &mut Vec<u8>, side: &SideVerdict) {
    pair(out, "{\"verdict\":\"", side.verdict.as_str());
    if let Some(tier) = side.tier {
        pair(out, ",\"tier\":\"", tier.as_str());
    }
    if side.reason != Reason::NotApplicable {
        out.extend_from_slice(b",\"policies\":[");
        for (index, policy) in side.policies().iter().enumerate() {
            if index > 0 {
                out.push(b',');
            }
            name(out, policy);
        }
        out.push(b']');
    }
    pair(out, ",\"reason\":\"", side.reason.as_str());
    out.push(b'}');
}

/// A key and one of our own words, which need no escapes.
fn pair(out: &mut Vec<u8>, key: &str, word: &str) {
    out.extend_from_slice(key.as_bytes());
    out.extend_from_slice(word.as_bytes());
    out.push(b'"');
}

/// As [`PolicyRef`] prints itself.
fn name(out: &mut Vec<u8>, policy: &PolicyRef) {
    out.push(b'"');
    out.extend_from_slice(policy.kind.as_str().as_bytes());
    for part in policy.namespace.iter().chain([&policy.name]) {
        out.push(b'/');
        escaped(out, part);
    }
    if let Some(rule) = policy.rule {
        let _ = write!(out, "#{rule}");
    }
    out.push(b'"');
}

/// Text as it stands between the quotes of JSON.
fn escaped(out: &mut Vec<u8>, text: &str) {
    if text.bytes().any(|byte| byte < b' ' || byte == b'"' || byte == b'\\') {
        let mut quoted = Vec::new();
        // Text is always JSON, and writing to memory cannot fail.
        if serde_json::to_writer(&mut quoted, text).is_ok() {
            out.extend_from_slice(&quoted[1..quoted.len() - 1]);
        }
    } else {
        out.extend_from_slice(text.as_bytes());
    }
}
