//! What upstream's suites check, asked of the decision: a line per case, with cases, policies and tables of
//! our own. tests/README.md lists them by their upstream names.

use crate::cluster::Cluster;

struct Case {
    upstream: &'static str,
    policies: &'static [(&'static str, &'static str, &'static str)],
    allowed: &'static [&'static str],
    denied: &'static [&'static str],
}

#[track_caller]
fn check(cases: &[Case]) {
    for case in cases {
        let cluster = Cluster::new(case.policies);
        for (verdict, probes) in [("allow", case.allowed), ("deny", case.denied)] {
            for probe in probes {
                let answer = cluster.ask(probe);
                assert_eq!(answer["verdict"], verdict, "{}: {probe}: {answer}", case.upstream);
            }
        }
    }
}

#[rustfmt::skip]
const NETPOL: &[Case] = &[
    Case { upstream: "should support a 'default-deny-ingress' policy",
        policies: &[("NP", "x/p", "{podSelector: {}}")],
        allowed: &["x/a y/a 80", "y/a z/b 81"], denied: &["x/a x/b 80", "y/a x/a 80"] },
    Case { upstream: "should support a 'default-deny-all' policy",
        policies: &[("NP", "x/p", "{podSelector: {}, policyTypes: [Ingress, Egress]}")],
        allowed: &["y/a z/a 80"], denied: &["y/a x/a 80", "x/a y/a 80", "x/a 8.8.8.8 53/UDP"] },
    Case { upstream: "should enforce policy to allow traffic from pods within server namespace based on PodSelector",
        policies: &[("NP", "x/p", "{podSelector: {matchLabels: {pod: a}}, ingress: [{from: [{podSelector: {matchLabels: {pod: b}}}]}]}")],
        allowed: &["x/b x/a 80", "y/a x/b 80"], denied: &["x/c x/a 80", "y/b x/a 80"] },
    Case { upstream: "should enforce policy to allow ingress traffic for a target",
        policies: &[("NP", "x/deny", "{podSelector: {}}"), ("NP", "x/p", "{podSelector: {matchLabels: {pod: a}}, ingress: [{}]}")],
        allowed: &["y/b x/a 80"], denied: &["y/b x/b 80"] },
    Case { upstream: "should enforce policy to allow ingress traffic from pods in all namespaces",
        policies: &[("NP", "x/p", "{podSelector: {}, ingress: [{from: [{namespaceSelector: {}}]}]}")],
        allowed: &["y/b x/a 80"], denied: &["8.8.8.8 x/a 80"] },
    Case { upstream: "should enforce policy to allow traffic only from a different namespace, based on NamespaceSelector",
        policies: &[("NP", "x/p", "{podSelector: {}, ingress: [{from: [{namespaceSelector: {matchLabels: {ns: y}}}]}]}")],
        allowed: &["y/b x/a 80"], denied: &["x/b x/a 80", "z/a x/a 80"] },
    Case { upstream: "should enforce policy based on PodSelector with MatchExpressions",
        policies: &[("NP", "x/p", "{podSelector: {matchLabels: {pod: a}}, ingress: [{from: [{podSelector: {matchExpressions: [{key: pod, operator: In, values: [b]}]}}]}]}")],
        allowed: &["x/b x/a 80"], denied: &["x/c x/a 80"] },
    Case { upstream: "should enforce policy based on NamespaceSelector with MatchExpressions",
        policies: &[("NP", "x/p", "{podSelector: {}, ingress: [{from: [{namespaceSelector: {matchExpressions: [{key: ns, operator: NotIn, values: [x, z]}]}}]}]}")],
        allowed: &["y/b x/a 80"], denied: &["z/b x/a 80"] },
    Case { upstream: "should enforce policy based on PodSelector or NamespaceSelector",
        policies: &[("NP", "x/p", "{podSelector: {}, ingress: [{from: [{namespaceSelector: {matchLabels: {ns: y}}}, {podSelector: {matchLabels: {pod: b}}}]}]}")],
        allowed: &["y/c x/a 80", "x/b x/a 80"], denied: &["x/c x/a 80", "z/b x/a 80"] },
    Case { upstream: "should enforce policy based on PodSelector and NamespaceSelector",
        policies: &[("NP", "x/p", "{podSelector: {}, ingress: [{from: [{namespaceSelector: {matchLabels: {ns: y}}, podSelector: {matchLabels: {pod: b}}}]}]}")],
        allowed: &["y/b x/a 80"], denied: &["y/a x/a 80", "x/b x/a 80"] },
    Case { upstream: "should enforce policy based on Multiple PodSelectors and NamespaceSelectors",
        policies: &[("NP", "x/p", "{podSelector: {matchLabels: {pod: a}}, ingress: [{from: [{namespaceSelector: {matchExpressions: [{key: ns, operator: NotIn, values: [x]}]}, podSelector: {matchExpressions: [{key: pod, operator: In, values: [b, c]}]}}]}]}")],
        allowed: &["y/b x/a 80", "z/c x/a 80"], denied: &["x/b x/a 80", "y/a x/a 80"] },
    Case { upstream: "should enforce policy based on any PodSelectors",
        policies: &[("NP", "x/p", "{podSelector: {matchLabels: {pod: a}}, ingress: [{from: [{podSelector: {matchLabels: {pod: b}}}, {podSelector: {matchLabels: {pod: c}}}]}]}")],
        allowed: &["x/b x/a 80", "x/c x/a 80"], denied: &["y/b x/a 80"] },
    Case { upstream: "should enforce policy to allow traffic only from a pod in a different namespace based on PodSelector and NamespaceSelector",
        policies: &[("NP", "x/p", "{podSelector: {}, ingress: [{from: [{namespaceSelector: {matchLabels: {kubernetes.io/metadata.name: y}}, podSelector: {matchLabels: {pod: a}}}]}]}")],
        allowed: &["y/a x/a 80"], denied: &["y/b x/a 80", "z/a x/a 80"] },
    Case { upstream: "should support allow-all policy",
        policies: &[("NP", "x/p", "{podSelector: {}, ingress: [{}]}")],
        allowed: &["y/a x/a 80", "x/b x/a 81", "8.8.8.8 x/a 80/UDP"], denied: &[] },
    Case { upstream: "should allow ingress access from namespace on one named port",
        policies: &[("NP", "x/p", "{podSelector: {}, ingress: [{from: [{namespaceSelector: {matchLabels: {ns: y}}}], ports: [{port: serve-80-tcp, protocol: TCP}]}]}")],
        allowed: &["y/a x/a 80"], denied: &["y/a x/a 81", "z/a x/a 80"] },
    Case { upstream: "should deny ingress from pods on other namespaces",
        policies: &[("NP", "x/p", "{podSelector: {}, ingress: [{from: [{podSelector: {}}]}]}")],
        allowed: &["x/b x/a 80"], denied: &["y/a x/a 80", "8.8.8.8 x/a 80"] },
    Case { upstream: "should deny egress from pods based on PodSelector",
        policies: &[("NP", "x/p", "{podSelector: {matchLabels: {pod: a}}, policyTypes: [Egress]}")],
        allowed: &["x/b y/a 80"], denied: &["x/a y/a 80"] },
    Case { upstream: "should deny egress from all pods in a namespace",
        policies: &[("NP", "x/p", "{podSelector: {}, policyTypes: [Egress]}")],
        allowed: &["y/a x/a 80"], denied: &["x/a y/a 80", "x/b x/a 80"] },
    Case { upstream: "should work with Ingress, Egress specified together",
        policies: &[("NP", "x/p", "{podSelector: {matchLabels: {pod: a}}, ingress: [{from: [{podSelector: {matchLabels: {pod: b}}}]}], egress: [{ports: [{port: 80}]}], policyTypes: [Ingress, Egress]}")],
        allowed: &["x/b x/a 80", "x/a y/a 80"], denied: &["x/c x/a 80", "x/a y/a 81"] },
    Case { upstream: "should enforce ingress policy allowing any port traffic to a server on a specific protocol",
        policies: &[("NP", "x/p", "{podSelector: {}, ingress: [{ports: [{protocol: TCP}]}]}")],
        allowed: &["y/a x/a 80", "y/a x/a 81"], denied: &["y/a x/a 80/UDP"] },
    Case { upstream: "should enforce multiple ingress policies with ingress allow-all policy taking precedence",
        policies: &[("NP", "x/p", "{podSelector: {}, ingress: [{ports: [{port: 80}]}]}"), ("NP", "x/q", "{podSelector: {}, ingress: [{}]}")],
        allowed: &["y/a x/a 80", "y/a x/a 81"], denied: &[] },
    Case { upstream: "should enforce multiple egress policies with egress allow-all policy taking precedence",
        policies: &[("NP", "x/p", "{podSelector: {}, policyTypes: [Egress], egress: [{ports: [{port: 80}]}]}"), ("NP", "x/q", "{podSelector: {}, policyTypes: [Egress], egress: [{}]}")],
        allowed: &["x/a y/a 80", "x/a y/a 81"], denied: &[] },
    Case { upstream: "should allow egress access to server in CIDR block",
        policies: &[("NP", "x/p", "{podSelector: {}, policyTypes: [Egress], egress: [{to: [{ipBlock: {cidr: 10.0.2.1/32}}]}]}")],
        allowed: &["x/a y/a 80"], denied: &["x/a y/b 80"] },
    Case { upstream: "should ensure an IP overlapping both IPBlock.CIDR and IPBlock.Except is allowed",
        policies: &[("NP", "x/p", "{podSelector: {}, policyTypes: [Egress], egress: [{to: [{ipBlock: {cidr: 10.0.2.0/24, except: [10.0.2.1/32]}}]}]}"), ("NP", "x/q", "{podSelector: {}, policyTypes: [Egress], egress: [{to: [{ipBlock: {cidr: 10.0.2.1/32}}]}]}")],
        allowed: &["x/a y/a 80", "x/a y/b 80"], denied: &["x/a z/a 80"] },
    Case { upstream: "should enforce policy based on Ports",
        policies: &[("NP", "x/p", "{podSelector: {}, ingress: [{from: [{namespaceSelector: {matchLabels: {ns: y}}}], ports: [{port: 81}]}]}")],
        allowed: &["y/a x/a 81"], denied: &["y/a x/a 80", "z/a x/a 81", "y/a x/a 81/UDP"] },
    Case { upstream: "should enforce multiple, stacked policies with overlapping podSelectors",
        policies: &[("NP", "x/p", "{podSelector: {}, ingress: [{ports: [{port: 80}]}]}"), ("NP", "x/q", "{podSelector: {matchLabels: {pod: a}}, ingress: [{ports: [{port: 81}]}]}")],
        allowed: &["y/a x/a 80", "y/a x/a 81", "y/a x/b 80"], denied: &["y/a x/b 81"] },
    Case { upstream: "should allow ingress access on one named port",
        policies: &[("NP", "x/p", "{podSelector: {}, ingress: [{ports: [{port: serve-81-tcp}]}]}")],
        allowed: &["y/a x/a 81"], denied: &["y/a x/a 80"] },
    Case { upstream: "should allow egress access on one named port",
        policies: &[("NP", "x/p", "{podSelector: {}, policyTypes: [Egress], egress: [{ports: [{port: serve-80-tcp}]}]}")],
        allowed: &["x/a y/a 80"], denied: &["x/a y/a 81", "x/a 8.8.8.8 80"] },
    Case { upstream: "should enforce except clause while egress access to server in CIDR block",
        policies: &[("NP", "x/p", "{podSelector: {}, policyTypes: [Egress], egress: [{to: [{ipBlock: {cidr: 10.0.0.0/16, except: [10.0.2.1/32]}}]}]}")],
        allowed: &["x/a y/b 80"], denied: &["x/a y/a 80", "x/a 8.8.8.8 80"] },
    Case { upstream: "should not allow access by TCP when a policy specifies only UDP",
        policies: &[("NP", "x/p", "{podSelector: {}, ingress: [{ports: [{port: 81, protocol: UDP}]}]}")],
        allowed: &["y/a x/a 81/UDP"], denied: &["y/a x/a 81"] },
    Case { upstream: "should properly isolate pods that are selected by a policy allowing SCTP, even if the plugin doesn't support SCTP",
        policies: &[("NP", "x/p", "{podSelector: {}, ingress: [{ports: [{port: 80, protocol: SCTP}]}]}")],
        allowed: &["y/a x/a 80/SCTP"], denied: &["y/a x/a 80"] },
];

#[rustfmt::skip]
const CLUSTER: &[Case] = &[
    Case { upstream: "CNPAdminTierIngressTCP",
        policies: &[("CNP", "p", "{tier: Admin, priority: 10, subject: {namespaces: {matchLabels: {ns: x}}}, ingress: [{action: Accept, from: [{namespaces: {matchLabels: {ns: y}}}], protocols: [{tcp: {destinationPort: {number: 80}}}]}, {action: Deny, from: [{namespaces: {}}]}]}")],
        allowed: &["y/a x/a 80"], denied: &["y/a x/a 81", "z/a x/a 80"] },
    Case { upstream: "CNPAdminTierIngressUDP",
        policies: &[("CNP", "p", "{tier: Admin, priority: 10, subject: {namespaces: {matchLabels: {ns: x}}}, ingress: [{action: Deny, from: [{namespaces: {matchLabels: {ns: y}}}], protocols: [{udp: {destinationPort: {range: {start: 80, end: 90}}}}]}]}")],
        allowed: &["y/a x/a 80", "y/a x/a 91/UDP"], denied: &["y/a x/a 80/UDP", "y/a x/a 90/UDP"] },
    Case { upstream: "CNPAdminTierEgressSCTP",
        policies: &[("CNP", "p", "{tier: Admin, priority: 10, subject: {namespaces: {matchLabels: {ns: x}}}, egress: [{action: Pass, to: [{namespaces: {matchLabels: {ns: y}}}]}, {action: Deny, to: [{namespaces: {}}], protocols: [{sctp: {destinationPort: {number: 80}}}]}]}")],
        allowed: &["x/a y/a 80/SCTP", "x/a z/a 80"], denied: &["x/a z/a 80/SCTP"] },
    Case { upstream: "CNPAdminTierEgressInlineCIDRPeers",
        policies: &[("CNP", "p", "{tier: Admin, priority: 10, subject: {namespaces: {}}, egress: [{action: Accept, to: [{networks: [10.0.2.1/32, 'fd00::2:1/128']}]}, {action: Deny, to: [{networks: [0.0.0.0/0, '::/0']}]}]}")],
        allowed: &["x/a y/a 80", "fd00::1:1 fd00::2:1 80"], denied: &["x/a y/b 80", "fd00::1:1 fd00::2:2 80", "x/a 8.8.8.8 80"] },
    Case { upstream: "CNPAdminTierEgressNodePeers",
        policies: &[("CNP", "p", "{tier: Admin, priority: 10, subject: {namespaces: {}}, egress: [{action: Deny, to: [{nodes: {matchExpressions: [{key: zone, operator: Exists}]}}], protocols: [{tcp: {destinationPort: {number: 36363}}}]}]}")],
        allowed: &["x/a 192.168.0.2 80", "x/a y/a 36363"], denied: &["x/a 192.168.0.2 36363", "x/a 192.168.0.1 36363"] },
    Case { upstream: "CNPAdminTierIngressNamedPort",
        policies: &[("CNP", "p", "{tier: Admin, priority: 10, subject: {namespaces: {matchLabels: {ns: x}}}, ingress: [{action: Accept, from: [{namespaces: {}}], protocols: [{destinationNamedPort: serve-80-tcp}]}, {action: Deny, from: [{namespaces: {}}]}]}")],
        allowed: &["y/a x/a 80"], denied: &["y/a x/a 81", "y/a x/a 80/UDP"] },
    Case { upstream: "CNPAdminTierEgressNamedPort",
        policies: &[("CNP", "p", "{tier: Admin, priority: 10, subject: {namespaces: {matchLabels: {ns: x}}}, egress: [{action: Accept, to: [{namespaces: {}}], protocols: [{destinationNamedPort: serve-80-udp}]}, {action: Deny, to: [{namespaces: {}}]}]}")],
        allowed: &["x/a y/a 80/UDP"], denied: &["x/a y/a 80"] },
    Case { upstream: "CNPAdminTierPriorityField",
        policies: &[
            ("CNP", "old", "{tier: Admin, priority: 50, subject: {namespaces: {matchLabels: {ns: x}}}, ingress: [{action: Deny, from: [{namespaces: {}}]}]}"),
            ("CNP", "new", "{tier: Admin, priority: 40, subject: {namespaces: {matchLabels: {ns: x}}}, ingress: [{action: Pass, from: [{namespaces: {matchLabels: {ns: y}}}]}]}")],
        allowed: &["y/a x/a 80"], denied: &["z/a x/a 80"] },
    Case { upstream: "CNPAdminTierIntegration",
        policies: &[
            ("CNP", "p", "{tier: Admin, priority: 50, subject: {namespaces: {matchLabels: {ns: x}}}, ingress: [{action: Pass, from: [{namespaces: {matchLabels: {ns: y}}}]}, {action: Deny, from: [{namespaces: {matchLabels: {ns: z}}}]}]}"),
            ("NP", "x/p", "{podSelector: {matchLabels: {pod: a}}, ingress: [{from: [{namespaceSelector: {}}]}]}"),
            ("CNP", "b", "{tier: Baseline, priority: 0, subject: {namespaces: {}}, ingress: [{action: Deny, from: [{namespaces: {matchLabels: {ns: y}}}]}]}")],
        allowed: &["y/a x/a 80"], denied: &["z/a x/a 80", "y/a x/b 80"] },
    Case { upstream: "CNPBaselineTierEgressInlineCIDRPeers",
        policies: &[("CNP", "p", "{tier: Baseline, priority: 10, subject: {namespaces: {matchLabels: {ns: x}}}, egress: [{action: Deny, to: [{networks: [10.0.2.0/24]}]}]}")],
        allowed: &["x/a z/a 80"], denied: &["x/a y/a 80"] },
    Case { upstream: "CNPBaselineTierEgressNodePeers",
        policies: &[("CNP", "p", "{tier: Baseline, priority: 10, subject: {namespaces: {}}, egress: [{action: Deny, to: [{nodes: {}}]}]}")],
        allowed: &["x/a y/a 80"], denied: &["x/a 192.168.0.2 80"] },
];

#[test]
fn network_policy_cases_hold() {
    check(NETPOL);
}

#[test]
fn cluster_network_policy_cases_hold() {
    check(CLUSTER);
}
