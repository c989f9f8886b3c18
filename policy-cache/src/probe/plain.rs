//! The short way of probes: read without a copy, answered without a serializer, a handful at a time.
//!
//! In a large cluster, nearly all that a probe's answer is read from is in none of the processor's caches. So each step
//! is done for a handful of probes before the next one is: what the processor waits for, it then fetches for several
//! of them at once.
//!
//! Nearly all probes are written in one form. Whatever is not is left to the long way, which says what is wrong
//! with it, so nothing here may accept what [`Prober::resolve`] refuses, and nothing may be written otherwise
//! than [`Answer`](super::Answer) serializes.

use std::borrow::Cow;
use std::fmt;
use std::hint::black_box;
use std::io::Write as _;
use std::net::SocketAddr;

use flow::{Decision, PolicyRef, Protocol, Reason, SideVerdict, Tuple};
use serde::de::{Deserialize, Deserializer, Visitor};

use super::{Addresses, Probe, Prober, same_family, tuple};
use crate::snapshot::Ends;

/// A probe in its usual form.
#[derive(serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct PlainProbe<'l> {
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

/// How many probes are answered in step.
pub(super) const HANDFUL: usize = 32;

/// Lines → the decisions about those probes that have the usual form, name what exists and ask for no Service.
pub(super) fn decide<'l>(prober: &Prober, lines: &'l [Cow<'_, str>]) -> Vec<Option<(PlainId<'l>, Decision)>> {
    let snapshot = &*prober.snapshot;
    let plain: Vec<Option<PlainProbe<'l>>> = lines.iter().map(|line| parse(line)).collect();
    let probes = plain.into_iter().map(|plain| {
        let (id, probe) = resolve(prober, plain?)?;
        let to_service = prober.door(&probe).is_some();
        (!to_service).then(|| (id, tuple(&probe, probe.destination)))
    });
    let probes: Vec<Option<(PlainId<'l>, Tuple)>> = probes.collect();
    let found = probes.into_iter().map(|probe| {
        let (id, tuple) = probe?;
        Some((id, tuple, snapshot.ends(&tuple)))
    });
    let found: Vec<Option<(PlainId<'l>, Tuple, Ends)>> = found.collect();
    let decided = found.into_iter().map(|found| {
        let (id, tuple, ends) = found?;
        Some((id, snapshot.decide_ends(&tuple, &ends)))
    });
    let decided: Vec<Option<(PlainId<'l>, Decision)>> = decided.collect();
    look_at_names(&decided);
    decided
}

/// Reads of each name as much as makes the processor fetch the rest.
fn look_at_names(decided: &[Option<(PlainId<'_>, Decision)>]) {
    let sides = || decided.iter().flatten().flat_map(|(_, decision)| [&decision.egress, &decision.ingress]);
    let first = || sides().filter_map(|side| side.policies().first());
    black_box(first().map(|policy| policy.rule.unwrap_or_default()).fold(0, u32::wrapping_add));
    let texts = first().flat_map(|policy| [Some(&policy.name), policy.namespace.as_ref()]).flatten();
    black_box(
        texts.filter_map(|text| text.as_bytes().first()).fold(0, |sum: u8, byte| sum.wrapping_add(*byte)),
    );
}

/// A line, if it has the usual form.
pub(super) fn parse(line: &str) -> Option<PlainProbe<'_>> {
    // A list of the values would read as the mapping.
    serde_json::from_str(line.strip_prefix('{').map(|_| line)?).ok()
}

/// Its ends by their addresses, if it names what exists.
pub(super) fn resolve<'l>(prober: &Prober, plain: PlainProbe<'l>) -> Option<(PlainId<'l>, Probe)> {
    let protocol = plain.protocol.map_or(Some(Protocol::Tcp), |text| text.parse().ok())?;
    let ends = |end| match end {
        PlainEnd::Pod(pod) => Some(Cow::Borrowed(prober.pods.get(pod)?)),
        PlainEnd::Ip(text) => Some(Cow::Owned(Addresses::One([flow::canonical_ip(text.parse().ok()?)]))),
    };
    let (source, destination) = same_family(ends(plain.src)?.list(), ends(plain.dst)?.list())?;
    let destination = SocketAddr::new(destination, plain.port.get());
    Some((plain.id, Probe { source, destination, protocol, service: None }))
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
