//! Ports of rules that no destination has: names nobody declares, and Services' ports.

use std::fmt;

use super::Findings;
use super::known::{Known, Way, name, ways};
use crate::objects::{NetworkPolicy, Numbers, Peer, Pod, Port, Rule};

/// The check that takes a Service's port for a mistake.
const SERVICE_PORT: &str = "service-port";

pub(super) fn check(known: &Known<'_>, findings: &mut Findings<'_>) {
    for policy in known.policies() {
        for way in ways(policy) {
            for (index, rule) in way.rules.iter().enumerate() {
                let Some(targets) = targets(known, policy, way, rule) else { continue };
                let ports = rule.ports.as_deref().unwrap_or_default();
                let leads_out = way.key == "egress" && leads_out_of_the_cluster(rule);
                for (number, port) in ports.iter().enumerate() {
                    let field = format!("spec.{}[{index}].ports[{number}]", way.key);
                    if let Some((check, message)) = unserved(known, &targets, ports, port)
                        && !(leads_out && check == SERVICE_PORT)
                    {
                        findings.report(check, &name(policy), &field, message);
                    }
                }
            }
        }
    }
}

/// True for a rule to everybody: its ports may well be those of servers outside, where port 80 is port 80.
fn leads_out_of_the_cluster(rule: &Rule) -> bool {
    let everybody = |peer: &Peer| matches!(peer, Peer::Block { cidr, .. } if cidr.prefix_len() == 0);
    rule.peers.as_ref().is_none_or(|peers| peers.iter().any(everybody))
}

/// The pods that a rule leads to. They may be most of a cluster, so they are listed only when somebody asks.
pub(super) struct Targets<'k> {
    /// True when the rule leads to this pod.
    pub(super) includes: Box<dyn Fn(&Pod) -> bool + 'k>,
    pub(super) list: Box<dyn Fn() -> Vec<&'k Pod> + 'k>,
}

impl fmt::Debug for Targets<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries((self.list)().iter().map(|pod| &pod.name)).finish()
    }
}

/// None when they cannot be known.
fn targets<'k>(
    known: &'k Known<'_>,
    policy: &'k NetworkPolicy,
    way: Way<'_>,
    rule: &'k Rule,
) -> Option<Targets<'k>> {
    if way.key == "ingress" {
        return Some(Targets {
            includes: Box::new(|pod| {
                pod.namespace == policy.namespace && policy.pod_selector.matches(&pod.labels)
            }),
            list: Box::new(|| known.selected(policy).collect()),
        });
    }
    if !known.is_cluster {
        return None;
    }
    let namespace = &policy.namespace;
    Some(match &rule.peers {
        None => Targets { includes: Box::new(|_| true), list: Box::new(|| known.pods.iter().collect()) },
        Some(peers) => Targets {
            includes: Box::new(move |pod| peers.iter().any(|peer| known.matches(peer, namespace, pod))),
            list: Box::new(move || peers.iter().flat_map(|peer| known.matched_by(peer, namespace)).collect()),
        },
    })
}

fn unserved(
    known: &Known<'_>,
    targets: &Targets<'_>,
    ports: &[Port],
    port: &Port,
) -> Option<(&'static str, String)> {
    match &port.numbers {
        Numbers::Named(named) => {
            let targets = (targets.list)();
            if targets.is_empty() {
                return None;
            }
            let declared =
                || targets.iter().flat_map(|pod| &pod.named_ports).filter(|own| own.name == *named);
            if declared().any(|own| own.protocol == port.protocol) {
                return None;
            }
            let message = match declared().next() {
                Some(own) => format!(
                    "can never match: {named} is {}/{} there, not {}",
                    own.number, own.protocol, port.protocol
                ),
                None => format!("can never match: no pod it may lead to has a port named {named}"),
            };
            Some(("unknown-port-name", message))
        }
        Numbers::Range(low, high) if low == high => {
            Some((SERVICE_PORT, mistaken(known, targets, ports, port, *low)?))
        }
        _ => None,
    }
}

/// What to say of a port that is that of a Service in front of these pods, while none of them is seen to serve
/// it. A rule that also names the pods' own port is no mistake.
pub(super) fn mistaken(
    known: &Known<'_>,
    targets: &Targets<'_>,
    ports: &[Port],
    port: &Port,
    number: u16,
) -> Option<String> {
    let pod = |place: &usize| &known.pods[*place];
    let (service, target) = known.services.dialled(port.protocol, number).iter().find_map(|led| {
        let wrong = |(place, target): &&(usize, u16)| {
            *target != number
                && !ports.iter().any(|own| covers(own, port, *target))
                && (targets.includes)(pod(place))
        };
        led.to.iter().find(wrong).map(|(_, target)| (led.service, *target))
    })?;
    if known.services.served(port.protocol, number).iter().any(|place| (targets.includes)(pod(place))) {
        return None;
    }
    let declares = |pod: &&Pod| {
        pod.named_ports.iter().any(|own| own.number == number && own.protocol == port.protocol)
            // Asked last: who declares ports without a name is not known without another reading.
            || known.places.declares(pod, port.protocol, number)
    };
    if (targets.list)().iter().any(declares) {
        return None;
    }
    let whole = format!("{}/{}", service.namespace, service.name);
    Some(format!("{number} is a port of service {whole}; rules see the pods' port, {target}"))
}

/// A port of the rule that lets the target through. A name may.
fn covers(own: &Port, port: &Port, target: u16) -> bool {
    own.protocol == port.protocol
        && match &own.numbers {
            Numbers::Any | Numbers::Named(_) => true,
            Numbers::Range(low, high) => *low <= target && target <= *high,
        }
}
