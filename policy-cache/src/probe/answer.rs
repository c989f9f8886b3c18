//! A decision → what is printed for it.

use std::net::{IpAddr, SocketAddr};

use flow::{Decision, Endpoint, Policies, PolicyRef, SideVerdict};
use serde::{Serialize, Serializer};
use serde_json::Value;

use crate::snapshot::Snapshot;

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
    pub(super) const fn id(&self) -> &Value {
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
    pub(super) id: Value,
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
pub(super) struct EndpointAnswer {
    ip: IpAddr,
    port: u16,
    #[serde(skip_serializing_if = "Option::is_none")]
    pod: Option<String>,
    verdict: &'static str,
    egress: Side,
    ingress: Side,
}

impl EndpointAnswer {
    pub(super) fn of(snapshot: &Snapshot, backend: SocketAddr, decision: &Decision) -> Self {
        let pod = match snapshot.endpoint(backend.ip()) {
            Endpoint::Pod(pod) => Some(format!("{}/{}", pod.namespace, pod.name)),
            _ => None,
        };
        Self {
            ip: backend.ip(),
            port: backend.port(),
            pod,
            verdict: decision.verdict().as_str(),
            egress: (&decision.egress).into(),
            ingress: (&decision.ingress).into(),
        }
    }
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

/// Its `id` is left to the caller.
pub(super) fn decided(
    decision: &Decision,
    service: Option<String>,
    endpoints: Vec<EndpointAnswer>,
) -> Decided {
    Decided {
        id: Value::Null,
        verdict: decision.verdict().as_str(),
        egress: (&decision.egress).into(),
        ingress: (&decision.ingress).into(),
        service,
        endpoints,
    }
}
