//! Upstream's cases in which policies, labels, pods or namespaces change while the test runs. Each change is an
//! event to a cluster that goes on, and after each the whole truth table is that of a cluster compiled anew.

use std::path::Path;
use std::sync::Arc;

use flow::{Generation, PolicyKind};
use policy_cache::{Cluster, Event, Kind, ObjectKey, Objects, Options, Prober, compile, parse};
use serde_json::Value;

use crate::cluster::{base, policy, probe_line};

enum Change<'c> {
    /// Kind, name and spec.
    Policy(&'c str, &'c str, &'c str),
    /// Kind and name.
    NoPolicy(&'c str, &'c str),
    /// Name and labels.
    Namespace(&'c str, &'c str),
    NoNamespace(&'c str),
    /// Namespace and name, labels, and the end of its address.
    Pod(&'c str, &'c str, &'c str),
    NoPod(&'c str),
}

use Change::{Namespace, NoNamespace, NoPod, NoPolicy, Pod, Policy};

struct Step<'c> {
    changes: &'c [Change<'c>],
    allowed: &'c [&'c str],
    denied: &'c [&'c str],
}

/// A cluster that follows events, and its objects beside it.
struct Live {
    upstream: String,
    cluster: Cluster,
    objects: Objects,
}

impl Live {
    fn new(upstream: &str) -> Self {
        let mut live =
            Self { upstream: upstream.to_owned(), cluster: Cluster::default(), objects: Objects::default() };
        live.put(&base());
        live
    }

    fn put(&mut self, text: &str) {
        let read = parse([(Path::new("change.yaml"), text)]).unwrap_or_else(|error| panic!("{error}"));
        for object in read.objects() {
            self.event(Event::Put(object));
        }
    }

    fn delete(&mut self, kind: Kind, name: &str) {
        let (namespace, name) = name.split_once('/').unwrap_or(("", name));
        self.event(Event::Delete(ObjectKey { kind, namespace: namespace.to_owned(), name: name.to_owned() }));
    }

    fn event(&mut self, event: Event) {
        self.objects.apply(event.clone());
        assert!(self.cluster.apply(event.clone()), "{}: nothing changed by {event:?}", self.upstream);
    }

    fn change(&mut self, change: &Change<'_>) {
        match change {
            Policy(kind, name, spec) => self.put(&policy(kind, name, spec)),
            NoPolicy("CNP", name) => self.delete(Kind::Policy(PolicyKind::ClusterNetworkPolicy), name),
            NoPolicy(_, name) => self.delete(Kind::Policy(PolicyKind::NetworkPolicy), name),
            Namespace(name, labels) => self.put(&format!(
                "{{apiVersion: v1, kind: Namespace, metadata: {{name: {name}, labels: {labels}}}}}"
            )),
            NoNamespace(name) => self.delete(Kind::Namespace, name),
            Pod(name, labels, ip) => {
                let (namespace, name) = name.split_once('/').unwrap();
                let ports =
                    "[{name: serve-80-tcp, containerPort: 80}, {name: serve-81-tcp, containerPort: 81}]";
                self.put(&format!(
                    "{{apiVersion: v1, kind: Pod, metadata: {{name: {name}, namespace: {namespace}, labels: {labels}}}, \
                     spec: {{nodeName: n1, containers: [{{name: c, ports: {ports}}}]}}, \
                     status: {{phase: Running, podIP: 10.0.{ip}}}}}"
                ));
            }
            NoPod(name) => self.delete(Kind::Pod, name),
        }
    }

    fn check(&mut self, step: &Step<'_>, number: usize) {
        step.changes.iter().for_each(|change| self.change(change));
        let snapshot = Arc::new(self.cluster.snapshot());
        let live = Prober::new(&self.objects, snapshot);
        let anew = Arc::new(compile(&self.objects, &Options::default(), Generation(1)));
        let anew = Prober::new(&self.objects, anew);
        for (verdict, probes) in [("allow", step.allowed), ("deny", step.denied)] {
            for probe in probes {
                let answer: Value = serde_json::to_value(live.answer(&probe_line(probe))).unwrap();
                assert_eq!(answer["verdict"], verdict, "{}, step {number}: {probe}: {answer}", self.upstream);
            }
        }
        for probe in truth_table() {
            let line = probe_line(&probe);
            assert_eq!(live.answer(&line), anew.answer(&line), "{}, step {number}: {probe}", self.upstream);
        }
    }
}

/// Every pair of the pods that are always there, on every port and protocol that any case speaks of.
fn truth_table() -> impl Iterator<Item = String> {
    let pods = || {
        ["x", "y", "z"]
            .into_iter()
            .flat_map(|namespace| ["a", "b", "c"].map(|pod| format!("{namespace}/{pod}")))
    };
    let ports = ["80", "81", "80/UDP", "81/UDP", "80/SCTP"];
    pods().flat_map(move |source| {
        pods().flat_map(move |destination| {
            let source = source.clone();
            ports.map(move |port| format!("{source} {destination} {port}"))
        })
    })
}

#[track_caller]
fn case(upstream: &str, steps: &[Step<'_>]) {
    let mut live = Live::new(upstream);
    for (number, step) in steps.iter().enumerate() {
        live.check(step, number);
    }
}

#[rustfmt::skip]
#[test]
fn network_policy_cases_hold_while_things_change() {
    case("should enforce updated policy", &[
        Step { changes: &[Policy("NP", "x/p", "{podSelector: {}, ingress: [{}]}")], allowed: &["y/a x/a 80", "x/b x/a 81"], denied: &[] },
        Step { changes: &[Policy("NP", "x/p", "{podSelector: {}}")], allowed: &["x/a y/a 80"], denied: &["y/a x/a 80", "x/b x/a 81"] },
    ]);
    case("should allow ingress access from updated namespace", &[
        Step { changes: &[Policy("NP", "x/p", "{podSelector: {matchLabels: {pod: a}}, ingress: [{from: [{namespaceSelector: {matchLabels: {ns2: updated}}}]}]}")],
            allowed: &["y/a x/b 80"], denied: &["y/a x/a 80", "z/a x/a 80"] },
        Step { changes: &[Namespace("y", "{ns: y, ns2: updated}")], allowed: &["y/a x/a 80", "y/c x/a 80"], denied: &["z/a x/a 80", "x/b x/a 80"] },
    ]);
    case("should allow ingress access from updated pod", &[
        Step { changes: &[Policy("NP", "x/p", "{podSelector: {matchLabels: {pod: a}}, ingress: [{from: [{podSelector: {matchLabels: {pod: b, pod2: updated}}}]}]}")],
            allowed: &[], denied: &["x/b x/a 80"] },
        Step { changes: &[Pod("x/b", "{pod: b, pod2: updated}", "1.2")], allowed: &["x/b x/a 80"], denied: &["x/c x/a 80", "y/b x/a 80"] },
    ]);
    case("should deny ingress access to updated pod", &[
        Step { changes: &[Policy("NP", "x/p", "{podSelector: {matchLabels: {target: isolated}}}")], allowed: &["x/b x/a 80", "y/b x/a 80"], denied: &[] },
        Step { changes: &[Pod("x/a", "{pod: a, target: isolated}", "1.1")], allowed: &["x/a y/b 80", "y/b x/b 80"], denied: &["x/b x/a 80", "y/b x/a 80"] },
    ]);
    case("should stop enforcing policies after they are deleted", &[
        Step { changes: &[Policy("NP", "x/p", "{podSelector: {}, policyTypes: [Ingress, Egress]}")], allowed: &["y/a z/a 80"], denied: &["y/a x/a 80", "x/a y/a 80"] },
        Step { changes: &[NoPolicy("NP", "x/p")], allowed: &["y/a x/a 80", "x/a y/a 80"], denied: &[] },
    ]);
    case("should ensure an IP overlapping both IPBlock.CIDR and IPBlock.Except is allowed", &[
        Step { changes: &[Policy("NP", "x/p", "{podSelector: {matchLabels: {pod: a}}, policyTypes: [Egress], egress: [{to: [{ipBlock: {cidr: 10.0.0.0/8, except: [10.0.1.2/32]}}]}]}")],
            allowed: &["x/a y/a 80"], denied: &["x/a x/b 80"] },
        Step { changes: &[Policy("NP", "x/p", "{podSelector: {matchLabels: {pod: a}}, policyTypes: [Egress], egress: [{to: [{ipBlock: {cidr: 10.0.1.2/32}}]}]}")],
            allowed: &["x/a x/b 80"], denied: &["x/a y/a 80"] },
    ]);
    case("should enforce multiple, stacked policies with overlapping podSelectors", &[
        Step { changes: &[Policy("NP", "x/p", "{podSelector: {matchLabels: {pod: a}}, ingress: [{from: [{namespaceSelector: {matchLabels: {ns: y}}}], ports: [{port: 81}]}]}")],
            allowed: &["y/a x/a 81"], denied: &["y/a x/a 80", "z/a x/a 81"] },
        Step { changes: &[Policy("NP", "x/q", "{podSelector: {matchLabels: {pod: a}}, ingress: [{from: [{namespaceSelector: {matchLabels: {ns: y}}}], ports: [{port: 80}]}]}")],
            allowed: &["y/a x/a 81", "y/a x/a 80"], denied: &["z/a x/a 81", "z/a x/a 80"] },
    ]);
    for (direction, all, own) in [("ingress", "ingress", "Ingress"), ("egress", "egress", "Egress")] {
        let spec = |rule: &str| format!("{{podSelector: {{}}, policyTypes: [{own}], {direction}: [{rule}]}}");
        let (probe, other) = if direction == "ingress" { ("y/a x/a 81", "x/a y/a 81") } else { ("x/a y/a 81", "y/a x/a 81") };
        case(&format!("should enforce multiple {direction} policies with {all} allow-all policy taking precedence"), &[
            Step { changes: &[Policy("NP", "x/p", &spec("{ports: [{port: 80}]}"))], allowed: &[other], denied: &[probe] },
            Step { changes: &[Policy("NP", "x/q", &spec("{}"))], allowed: &[other, probe], denied: &[] },
        ]);
    }
    case("should enforce policies to check ingress and egress policies can be controlled independently based on PodSelector", &[
        Step { changes: &[Policy("NP", "x/out", "{podSelector: {matchLabels: {pod: a}}, policyTypes: [Egress], egress: [{}]}")], allowed: &["x/a x/b 80", "x/b x/a 80"], denied: &[] },
        Step { changes: &[Policy("NP", "x/in", "{podSelector: {matchLabels: {pod: a}}}")], allowed: &["x/a x/b 80"], denied: &["x/b x/a 80", "y/b x/a 80"] },
    ]);
}

/// Cyclonus' base policy in short: both directions of x/a, with the other namespaces' pods a and b on port 80.
const BASE: &str = "{podSelector: {matchLabels: {pod: a}}, policyTypes: [Ingress, Egress], \
    ingress: [{from: [{namespaceSelector: {matchExpressions: [{key: ns, operator: In, values: [y, z]}]}, podSelector: {matchExpressions: [{key: pod, operator: In, values: [a, b]}]}}], ports: [{port: 80}]}], \
    egress: [{to: [{namespaceSelector: {matchExpressions: [{key: ns, operator: In, values: [y, z]}]}, podSelector: {matchExpressions: [{key: pod, operator: In, values: [a, b]}]}}], ports: [{port: 80}]}, {ports: [{port: 53, protocol: UDP}]}]}";

#[rustfmt::skip]
#[test]
fn cyclonus_actions_hold() {
    case("Create/delete policy", &[
        Step { changes: &[Policy("NP", "x/base", BASE)], allowed: &["y/a x/a 80", "x/a z/b 80"], denied: &["y/c x/a 80", "y/a x/a 81", "x/a y/c 80"] },
        Step { changes: &[NoPolicy("NP", "x/base")], allowed: &["y/c x/a 80", "y/a x/a 81", "x/a y/c 80"], denied: &[] },
    ]);
    case("Create/update policy", &[
        Step { changes: &[Policy("NP", "x/base", BASE)], allowed: &["y/a x/a 80"], denied: &["y/a x/a 81/UDP"] },
        Step { changes: &[Policy("NP", "x/base", &BASE.replacen("ports: [{port: 80}]", "ports: [{port: 81, protocol: UDP}]", 1))],
            allowed: &["y/a x/a 81/UDP", "x/a y/a 80"], denied: &["y/a x/a 80", "y/a x/a 81"] },
    ]);
    case("Create/delete namespace", &[
        Step { changes: &[Policy("NP", "x/base", BASE)], allowed: &["y/a x/a 80"], denied: &[] },
        Step { changes: &[Namespace("y-2", "{ns: y}"), Pod("y-2/a", "{pod: a}", "9.1"), Pod("y-2/c", "{pod: c}", "9.2")],
            allowed: &["y-2/a x/a 80", "x/a y-2/a 80"], denied: &["y-2/c x/a 80", "y-2/a x/a 81", "x/a y-2/c 80"] },
        Step { changes: &[NoPod("y-2/a"), NoPod("y-2/c"), NoNamespace("y-2")], allowed: &["y/a x/a 80"], denied: &["10.0.9.1 x/a 80", "x/a 10.0.9.1 80"] },
    ]);
    case("Update namespace so that policy applies, then again so it no longer applies", &[
        Step { changes: &[Policy("NP", "x/p", "{podSelector: {matchLabels: {pod: a}}, ingress: [{from: [{namespaceSelector: {matchLabels: {new-ns: qrs}}}], ports: [{port: 80}]}]}")],
            allowed: &[], denied: &["y/a x/a 80", "z/a x/a 80"] },
        Step { changes: &[Namespace("y", "{ns: y, new-ns: qrs}")], allowed: &["y/a x/a 80", "y/c x/a 80"], denied: &["y/a x/a 81", "z/a x/a 80"] },
        Step { changes: &[Namespace("y", "{ns: y}")], allowed: &[], denied: &["y/a x/a 80", "z/a x/a 80"] },
    ]);
    case("Create/delete pod", &[
        Step { changes: &[Policy("NP", "x/base", &BASE.replacen("podSelector: {matchLabels: {pod: a}}", "podSelector: {}", 1))], allowed: &["y/a x/a 80"], denied: &["y/a x/a 81"] },
        Step { changes: &[Pod("x/d", "{pod: d}", "1.9")], allowed: &["y/a x/d 80", "x/d y/a 80"], denied: &["y/a x/d 81", "x/a x/d 80"] },
        // Whoever gets the address next has nothing of the pod that had it.
        Step { changes: &[NoPod("x/d"), Pod("z/d", "{pod: d}", "1.9")], allowed: &["y/a z/d 81", "x/b y/a 80"], denied: &["y/a x/a 81"] },
        Step { changes: &[NoPod("z/d")], allowed: &["y/a x/a 80"], denied: &["10.0.1.9 x/a 80"] },
    ]);
    case("Update pod so that policy applies, then again so it no longer applies", &[
        Step { changes: &[Policy("NP", "x/p", "{podSelector: {matchLabels: {pod: a}}, ingress: [{from: [{namespaceSelector: {matchExpressions: [{key: ns, operator: In, values: [y, z]}]}, podSelector: {matchLabels: {new-label: abc}}}]}]}")],
            allowed: &[], denied: &["y/b x/a 80"] },
        Step { changes: &[Pod("y/b", "{pod: b, new-label: abc}", "2.2")], allowed: &["y/b x/a 80"], denied: &["y/a x/a 80", "z/b x/a 80"] },
        Step { changes: &[Pod("y/b", "{pod: b}", "2.2")], allowed: &[], denied: &["y/b x/a 80"] },
    ]);
}

/// The rules of a ClusterNetworkPolicy about the pods of x, with those of y: actions in order, each with or
/// without a port.
fn tier_spec(tier: &str, directions: &[&str], rules: &[(&str, Option<&str>)]) -> String {
    let peer = |direction: &str| if direction == "ingress" { "from" } else { "to" };
    let list = |direction: &str| -> String {
        let rules = rules.iter().map(|(action, port)| {
            let port = port.map_or(String::new(), |port| format!(", protocols: [{port}]"));
            format!(
                "{{action: {action}, {}: [{{namespaces: {{matchLabels: {{ns: y}}}}}}]{port}}}",
                peer(direction)
            )
        });
        format!("{direction}: [{}]", rules.collect::<Vec<_>>().join(", "))
    };
    let directions: Vec<String> = directions.iter().map(|direction| list(direction)).collect();
    format!(
        "{{tier: {tier}, priority: 10, subject: {{namespaces: {{matchLabels: {{ns: x}}}}}}, {}}}",
        directions.join(", ")
    )
}

/// "allow, deny and pass, ensure rule ordering is respected" and "at the specified port", by updates of one policy.
fn ordering(upstream: &str, tier: &str, directions: &[&str], protocols: &[&str]) {
    let mut live = Live::new(upstream);
    let probes = |port: u16| -> Vec<String> {
        let ways =
            directions.iter().map(|direction| if *direction == "ingress" { "y/a x/a" } else { "x/a y/a" });
        ways.flat_map(|way| protocols.iter().map(move |protocol| format!("{way} {port}/{protocol}")))
            .collect()
    };
    let at_80: Vec<String> = protocols
        .iter()
        .map(|protocol| format!("{{{}: {{destinationPort: {{number: 80}}}}}}", protocol.to_lowercase()))
        .collect();
    let at_80 = Some(at_80.join(", "));
    let at_80 = at_80.as_deref();
    // The rules, and whether ports 80 and 81 are open.
    let mut table = vec![
        (vec![("Accept", None), ("Deny", None)], true, true),
        (vec![("Deny", None), ("Accept", None)], false, false),
        (vec![("Accept", at_80), ("Deny", None)], true, false),
        (vec![("Deny", at_80), ("Accept", None)], false, true),
    ];
    if tier == "Admin" {
        table.push((vec![("Pass", None), ("Deny", None)], true, true));
        table.push((vec![("Pass", at_80), ("Deny", None)], true, false));
    }
    for (number, (rules, is_80_open, is_81_open)) in table.iter().enumerate() {
        let spec = tier_spec(tier, directions, rules);
        let (low, high) = (probes(80), probes(81));
        let open = low.iter().filter(|_| *is_80_open).chain(high.iter().filter(|_| *is_81_open));
        let shut = low.iter().filter(|_| !*is_80_open).chain(high.iter().filter(|_| !*is_81_open));
        let (allowed, denied): (Vec<&str>, Vec<&str>) =
            (open.map(String::as_str).collect(), shut.map(String::as_str).collect());
        live.check(
            &Step { changes: &[Policy("CNP", "p", &spec)], allowed: &allowed, denied: &denied },
            number,
        );
    }
    let probes = [probes(80), probes(81)].concat();
    let all: Vec<&str> = probes.iter().map(String::as_str).collect();
    live.check(&Step { changes: &[NoPolicy("CNP", "p")], allowed: &all, denied: &[] }, table.len());
}

#[test]
fn cluster_network_policies_respect_the_order_of_rules_through_updates() {
    for tier in ["Admin", "Baseline"] {
        for (direction, way) in [("ingress", "Ingress"), ("egress", "Egress")] {
            for protocol in ["TCP", "UDP", "SCTP"] {
                ordering(&format!("CNP{tier}Tier{way}{protocol}"), tier, &[direction], &[protocol]);
            }
        }
        ordering(&format!("CNP{tier}TierGress"), tier, &["ingress", "egress"], &["TCP", "UDP", "SCTP"]);
    }
}

#[test]
fn named_ports_hold_in_both_tiers_through_updates() {
    let named = Some("{destinationNamedPort: serve-80-tcp}");
    for tier in ["Admin", "Baseline"] {
        for (direction, way, probes) in [
            ("ingress", "Ingress", ["y/a x/a 80", "y/a x/a 81"]),
            ("egress", "Egress", ["x/a y/a 80", "x/a y/a 81"]),
        ] {
            let spec = |rules: &[(&str, Option<&str>)]| tier_spec(tier, &[direction], rules);
            case(
                &format!("CNP{tier}Tier{way}NamedPort"),
                &[
                    Step {
                        changes: &[Policy("CNP", "p", &spec(&[("Accept", named), ("Deny", None)]))],
                        allowed: &probes[..1],
                        denied: &probes[1..],
                    },
                    Step {
                        changes: &[Policy("CNP", "p", &spec(&[("Deny", named)]))],
                        allowed: &probes[1..],
                        denied: &probes[..1],
                    },
                ],
            );
        }
    }
}

#[rustfmt::skip]
#[test]
fn the_tiers_hold_together_through_updates() {
    let admin = |action: &str, priority: u16| format!("{{tier: Admin, priority: {priority}, subject: {{namespaces: {{matchLabels: {{ns: x}}}}}}, ingress: [{{action: {action}, from: [{{namespaces: {{matchLabels: {{ns: y}}}}}}]}}], egress: [{{action: {action}, to: [{{namespaces: {{matchLabels: {{ns: y}}}}}}]}}]}}");
    let baseline = "{tier: Baseline, priority: 1, subject: {namespaces: {matchLabels: {ns: x}}}, ingress: [{action: Deny, from: [{namespaces: {}}]}], egress: [{action: Deny, to: [{namespaces: {}}]}]}";
    let both: &[&str] = &["y/a x/a 80", "x/a y/a 80/UDP"];
    case("CNPAdminTierPriorityField", &[
        Step { changes: &[Policy("CNP", "old", &admin("Deny", 50)), Policy("CNP", "new", &admin("Pass", 60))], allowed: &[], denied: both },
        Step { changes: &[Policy("CNP", "new", &admin("Pass", 40))], allowed: both, denied: &[] },
        Step { changes: &[Policy("CNP", "base", baseline)], allowed: &[], denied: both },
        Step { changes: &[Policy("CNP", "new", &admin("Accept", 40))], allowed: both, denied: &["z/a x/a 80"] },
    ]);
    case("CNPAdminTierIntegration", &[
        Step { changes: &[Policy("CNP", "admin", &admin("Deny", 10)), Policy("NP", "x/np", "{podSelector: {}, policyTypes: [Ingress, Egress], ingress: [{}], egress: [{}]}"), Policy("CNP", "base", baseline)],
            allowed: &["z/a x/a 80"], denied: both },
        Step { changes: &[Policy("CNP", "admin", &admin("Pass", 10))], allowed: both, denied: &[] },
        Step { changes: &[NoPolicy("NP", "x/np")], allowed: &[], denied: both },
        Step { changes: &[NoPolicy("CNP", "base")], allowed: both, denied: &[] },
    ]);
    case("CNPAdminTierEgressNodePeers", &[
        Step { changes: &[Policy("CNP", "p", "{tier: Admin, priority: 1, subject: {namespaces: {matchLabels: {ns: x}}}, egress: [{action: Accept, to: [{nodes: {}}], protocols: [{tcp: {destinationPort: {number: 36363}}}]}, {action: Deny, to: [{nodes: {}}]}]}")],
            allowed: &["x/a 192.168.0.2 36363", "x/a y/a 80"], denied: &["x/a 192.168.0.2 36364"] },
        Step { changes: &[Policy("CNP", "p", "{tier: Admin, priority: 1, subject: {namespaces: {matchLabels: {ns: x}}}, egress: [{action: Pass, to: [{nodes: {}}]}, {action: Deny, to: [{nodes: {}}]}]}"), Policy("CNP", "base", "{tier: Baseline, priority: 1, subject: {namespaces: {}}, egress: [{action: Deny, to: [{nodes: {matchLabels: {zone: west}}}]}]}")],
            allowed: &["x/a y/a 80"], denied: &["x/a 192.168.0.2 36363", "y/a 192.168.0.2 80"] },
    ]);
    case("CNPAdminTierEgressInlineCIDRPeers", &[
        Step { changes: &[Policy("CNP", "p", "{tier: Admin, priority: 1, subject: {namespaces: {matchLabels: {ns: x}}}, egress: [{action: Deny, to: [{networks: [10.0.2.0/24]}]}, {action: Accept, to: [{networks: [10.0.0.0/8]}]}]}")],
            allowed: &["x/a z/a 80"], denied: &["x/a y/a 80", "x/a y/c 81/SCTP"] },
        Step { changes: &[Policy("CNP", "p", "{tier: Admin, priority: 1, subject: {namespaces: {matchLabels: {ns: x}}}, egress: [{action: Accept, to: [{networks: [10.0.2.1/32]}]}, {action: Deny, to: [{networks: [10.0.2.0/24]}]}]}")],
            allowed: &["x/a y/a 80", "x/a z/a 80"], denied: &["x/a y/b 80"] },
    ]);
}
