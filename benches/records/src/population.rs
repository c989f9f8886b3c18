//! Records as a node of a busy cluster writes them: 2,000 pods in 40 namespaces, four labels each.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use audit::{Action, ConnectionId, Legs, Record, Timing, Traffic};
use flow::{
    ClientAddr, Decision, EndCause, Endpoint, Generation, OrigDst, Owner, Pod, Policies, PolicyKind,
    PolicyRef, Protocol, Reason, SideVerdict, Tier, Tuple, Verdict, Workload,
};

const NAMESPACES: usize = 40;
const PODS: usize = 2_000;
/// One record in so many tells of a connection that the server refused.
pub(crate) const RARE: u64 = 100_000;

/// Everybody who talks, and the one policy that decides.
pub(crate) struct Population {
    pods: Vec<Endpoint>,
    policies: Policies,
}

impl Population {
    pub(crate) fn new() -> Self {
        let policy = PolicyRef {
            kind: PolicyKind::NetworkPolicy,
            namespace: Some("shop".into()),
            name: "web".into(),
            rule: Some(0),
        };
        Self { pods: (0..PODS).map(pod).collect(), policies: Policies::from(Arc::from([policy])) }
    }

    /// The record of this number, of something that happened then. One in twenty is a denial; the others come in
    /// pairs, started and ended; one in [`RARE`] failed.
    pub(crate) fn record(&self, number: u64, at: SystemTime) -> Record {
        let action = match number {
            rare if rare % RARE == RARE / 2 + 1 => Action::Failed,
            denied if denied.is_multiple_of(20) => Action::Denied,
            even if even.is_multiple_of(2) => Action::Started,
            _ => Action::Ended,
        };
        let cause = match action {
            Action::Denied => Some(EndCause::PolicyDenied),
            Action::Failed => Some(EndCause::Refused),
            Action::Ended => Some(EndCause::ClientClosed),
            Action::Started | Action::Updated => None,
        };
        let (source, destination) = (spread(number ^ 1), spread(number ^ 2));
        let port = 32_768 + u16::try_from(number % 28_000).unwrap_or_default();
        Record {
            action,
            id: ConnectionId::next(),
            tuple: Tuple {
                protocol: Protocol::Tcp,
                client: ClientAddr(address(source, port)),
                destination: OrigDst(address(destination, 8_080)),
            },
            source: self.pods[source].clone(),
            destination: self.pods[destination].clone(),
            service: None,
            decision: self.decision(action == Action::Denied),
            cause,
            revoked_by: None,
            start: at,
            end: cause.map(|_| at),
            duration: cause.map(|_| Duration::from_micros(812)),
            traffic: Traffic { client_bytes: 78, server_bytes: 4_096, ..Traffic::default() },
            upstream_source: None,
            hairpin: false,
            timing: Timing {
                decide: Some(Duration::from_micros(40)),
                connect: Some(Duration::from_micros(300)),
            },
            legs: Legs::default(),
            tls: None,
            detail: None,
        }
    }

    fn decision(&self, is_denied: bool) -> Decision {
        let (verdict, reason) = match is_denied {
            true => (Verdict::Deny, Reason::NoRuleMatched),
            false => (Verdict::Allow, Reason::RuleMatched),
        };
        Decision {
            generation: Generation(7),
            egress: SideVerdict {
                verdict: Verdict::Allow,
                tier: Some(Tier::Default),
                policies: None,
                reason: Reason::NotIsolated,
            },
            ingress: SideVerdict {
                verdict,
                tier: Some(Tier::NetworkPolicy),
                policies: Some(self.policies.clone()),
                reason,
            },
        }
    }
}

/// The name of a pod, with its namespace.
pub(crate) fn name(pod: usize) -> String {
    format!("ns-{}/app-{}-5d9c7b6f4-{pod:05}", pod % NAMESPACES, pod / 4)
}

fn pod(number: usize) -> Endpoint {
    let labels = ["app", "app.kubernetes.io/part-of", "pod-template-hash", "tier"];
    let name = name(number);
    let (namespace, name) = name.split_once('/').unwrap_or_default();
    let workload = Workload {
        namespace: namespace.into(),
        labels: labels.into_iter().map(|key| (key, "some-value")).collect(),
        owner: Some(Owner { kind: "Deployment".into(), name: format!("app-{}", number / 4).into() }),
    };
    Endpoint::Pod(Arc::new(Pod {
        workload: Arc::new(workload),
        name: name.into(),
        uid: "0f0e6a2c-6c0e-4b69-8d2d-0d3f0d9c7b11".into(),
        node: Some("node-a".into()),
        local: number.is_multiple_of(2),
    }))
}

fn spread(number: u64) -> usize {
    usize::try_from(number.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 40).unwrap_or(0) % PODS
}

fn address(pod: usize, port: u16) -> SocketAddr {
    let [high, low] = u16::try_from(pod).unwrap_or_default().to_be_bytes();
    SocketAddr::from(([10, 244, high, low], port))
}
