//! A question of a person → why the connection is allowed or denied, and the smallest change that flips it.
//!
//! The reasons are found in the objects, not in what `decide` reads. Every answer is held against the
//! decision, and one that differs is never given.

mod change;
mod edit;
mod evaluate;
mod question;
mod text;
mod tiers;
mod why;
mod written;

use std::net::{IpAddr, SocketAddr};

use flow::{ClientAddr, Decision, Endpoint, OrigDst, Protocol, SideVerdict, Tuple};
use serde::Serialize;

use crate::objects::Objects;
use crate::options::OwnNodeEgress;
use crate::snapshot::{End, IdentifiedFlow, Snapshot};
pub use change::{Change, Operation};
use evaluate::{Connection, Party, World};
use question::Target;
pub use question::{ExplainError, Question};

/// Why a connection is allowed or denied. Prints as text for a person, serializes as JSON.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Explanation {
    verdict: &'static str,
    /// The Service that was asked for, `namespace/name`.
    #[serde(skip_serializing_if = "Option::is_none")]
    service: Option<String>,
    /// One, or one for each ready endpoint of the Service.
    connections: Vec<ExplainedConnection>,
    /// What else is worth knowing.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    notes: Vec<String>,
}

/// One connection after the Service is resolved.
#[derive(Clone, Debug, PartialEq, Serialize)]
struct ExplainedConnection {
    source: PartyView,
    destination: PartyView,
    port: u16,
    protocol: &'static str,
    verdict: &'static str,
    egress: Side,
    ingress: Side,
    /// The smallest change to labels or policies that flips the verdict; absent when none can.
    #[serde(skip_serializing_if = "Option::is_none")]
    change: Option<Change>,
}

/// One end as it is shown.
#[derive(Clone, Debug, PartialEq, Serialize)]
struct PartyView {
    ip: IpAddr,
    /// What the address is: `pod shop/web`, `node n1`.
    name: String,
}

/// Egress at the source, or ingress at the destination.
#[derive(Clone, Debug, PartialEq, Serialize)]
struct Side {
    verdict: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    tier: Option<&'static str>,
    policies: Vec<String>,
    reason: &'static str,
    /// The reason in a sentence.
    summary: String,
    /// The tiers that were asked, in their order; none where no policy has a say.
    tiers: Vec<TierStep>,
}

/// What one tier said.
#[derive(Clone, Debug, PartialEq, Serialize)]
struct TierStep {
    tier: &'static str,
    outcome: String,
    /// How many policies of the tier do not select the pod, or not in this direction. Of NetworkPolicies
    /// those of the pod's namespace.
    passed_over: usize,
    /// Those that select the pod in this direction, as far as they were asked.
    selecting: Vec<PolicyStep>,
}

/// A policy that selects the pod.
#[derive(Clone, Debug, PartialEq, Serialize)]
struct PolicyStep {
    policy: String,
    /// Why it selects the pod.
    selects: String,
    rules: Vec<RuleStep>,
}

/// A rule that was held against the connection.
#[derive(Clone, Debug, PartialEq, Serialize)]
struct RuleStep {
    /// For example `spec.ingress[0]`.
    field: String,
    /// Its name, where it has one.
    #[serde(skip_serializing_if = "Option::is_none")]
    name: Option<String>,
    /// What it does with what it matches, in its kind's own word; a NetworkPolicy's rule allows.
    action: &'static str,
    matched: bool,
    peers: Vec<Test>,
    ports: Vec<Test>,
}

/// One peer or port of a rule, and why it matched or did not.
#[derive(Clone, Debug, PartialEq, Serialize)]
struct Test {
    /// For example `from[1]`.
    field: String,
    matched: bool,
    why: String,
}

/// Which side of a connection a rule is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Direction {
    Egress,
    Ingress,
}

impl Direction {
    /// The field of the rules.
    const fn as_str(self) -> &'static str {
        match self {
            Self::Egress => "egress",
            Self::Ingress => "ingress",
        }
    }

    /// The field of a rule's peers.
    const fn peers(self) -> &'static str {
        match self {
            Self::Egress => "to",
            Self::Ingress => "from",
        }
    }

    /// As `policyTypes` spells it.
    const fn policy_type(self) -> &'static str {
        match self {
            Self::Egress => "Egress",
            Self::Ingress => "Ingress",
        }
    }
}

impl Explanation {
    /// Both sides of every connection allow it.
    pub fn is_allowed(&self) -> bool {
        self.verdict == "allow"
    }

    /// The change of each connection that has one.
    pub fn changes(&self) -> impl Iterator<Item = &Change> {
        self.connections.iter().filter_map(|connection| connection.change.as_ref())
    }
}

/// Answers a question. `snapshot` must have been compiled from `objects`.
///
/// # Errors
///
/// The question names what does not exist or has no address.
pub fn explain(
    objects: &Objects,
    snapshot: &Snapshot,
    question: &Question,
) -> Result<Explanation, ExplainError> {
    let target = question.resolve(objects, snapshot)?;
    let connections = target
        .backends
        .iter()
        .map(|backend| connection(objects, snapshot, &target, question.protocol(), *backend))
        .collect::<Result<Vec<_>, _>>()?;
    let denied = connections.iter().any(|connection| connection.verdict == "deny");
    Ok(Explanation {
        verdict: if denied { "deny" } else { "allow" },
        service: target.service.as_ref().map(|(name, _)| name.clone()),
        connections,
        notes: target.notes,
    })
}

fn connection(
    objects: &Objects,
    snapshot: &Snapshot,
    target: &Target,
    protocol: Protocol,
    backend: SocketAddr,
) -> Result<ExplainedConnection, ExplainError> {
    let tuple = Tuple {
        protocol,
        client: ClientAddr(SocketAddr::new(target.source, 0)),
        destination: OrigDst(backend),
    };
    let flow = snapshot.identify(&tuple);
    let flow = if target.service.is_some() { flow.through_service() } else { flow };
    let decision = snapshot.decide(&flow);
    let service_port = target.service.as_ref().map(|(_, port)| *port);
    let connection = describe(objects, snapshot, &flow, service_port);
    let world = World::new(objects, &connection);
    let (egress, ingress) = evaluate::both(&world, &connection);
    agree("egress", &egress, &decision.egress)?;
    agree("ingress", &ingress, &decision.ingress)?;
    let change = change::smallest(&world, &connection);
    Ok(ExplainedConnection {
        source: view(&connection.source),
        destination: view(&connection.destination),
        port: backend.port(),
        protocol: protocol.as_str(),
        verdict: verdict(&decision),
        egress,
        ingress,
        change,
    })
}

fn verdict(decision: &Decision) -> &'static str {
    decision.verdict().as_str()
}

fn view(party: &Party) -> PartyView {
    PartyView { ip: party.ip, name: party.name.clone() }
}

/// The ends of a flow with all that rules look at.
fn describe(
    objects: &Objects,
    snapshot: &Snapshot,
    flow: &IdentifiedFlow,
    service_port: Option<u16>,
) -> Connection {
    let party = |ip: IpAddr, endpoint: &Endpoint| {
        let (name, pod) = match endpoint {
            Endpoint::Pod(pod) => {
                (format!("pod {}/{}", pod.namespace, pod.name), evaluate::pod(objects, pod))
            }
            Endpoint::Node { name, .. } if name.is_empty() => ("a node's address".to_owned(), None),
            Endpoint::Node { name, .. } => (format!("an address of node {name}"), None),
            Endpoint::UnknownLocal => ("an address of this node's pod range, no known pod".to_owned(), None),
            Endpoint::External => ("no known pod or node".to_owned(), None),
        };
        let namespace_labels = pod.as_ref().map(|pod| evaluate::namespace_labels(objects, &pod.namespace));
        let node_labels = match endpoint {
            Endpoint::Node { name, .. } => Some(evaluate::node_labels(objects, name)),
            _ => None,
        };
        Party { ip, name, pod, namespace_labels: namespace_labels.unwrap_or_default(), node_labels }
    };
    let on_node = |end: End, pod: End| matches!((end, pod), (End::Node(number), End::Pod { node: Some(own), .. }) if number == own);
    let to_own_node = on_node(flow.ends.destination, flow.ends.source);
    Connection {
        source: party(flow.tuple.client.0.ip(), &flow.source),
        destination: party(flow.tuple.destination.0.ip(), &flow.destination),
        port: flow.tuple.destination.0.port(),
        protocol: flow.tuple.protocol,
        service_port,
        same_pod: flow.ends.same_pod,
        led_back: flow.ends.led_back,
        unknown_local: [&flow.source, &flow.destination].contains(&&Endpoint::UnknownLocal),
        to_own_node: to_own_node && snapshot.own_node_egress == OwnNodeEgress::Allow,
        from_own_node: on_node(flow.ends.source, flow.ends.destination),
    }
}

/// An explanation that says something else than the decision would mislead: it is refused.
fn agree(direction: &'static str, side: &Side, decided: &SideVerdict) -> Result<(), ExplainError> {
    let policies: Vec<String> = decided.policies().iter().map(ToString::to_string).collect();
    let tier = decided.tier.map(flow::Tier::as_str);
    let same = side.verdict == decided.verdict.as_str()
        && side.reason == decided.reason.as_str()
        && side.tier == tier
        && side.policies == policies;
    if same {
        return Ok(());
    }
    let list = |policies: &[String]| policies.join(" ");
    Err(ExplainError::Contradiction {
        direction,
        explained: format!("{} {} {}", side.verdict, side.reason, list(&side.policies)),
        decided: format!("{} {} {}", decided.verdict.as_str(), decided.reason.as_str(), list(&policies)),
    })
}
