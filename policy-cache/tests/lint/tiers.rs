//! Policies of the Admin and Baseline tiers: each mistake once where it stands, and silence everywhere else.

use super::{CLUSTER, check};

/// A policy on lines of its own: its kind, its name, its spec.
fn object(kind: &str, name: &str, spec: &str) -> String {
    let (kind, version) = match kind {
        "ANP" => ("AdminNetworkPolicy", "v1alpha1"),
        "BANP" => ("BaselineAdminNetworkPolicy", "v1alpha1"),
        _ => ("ClusterNetworkPolicy", "v1alpha2"),
    };
    format!(
        "---\napiVersion: policy.networking.k8s.io/{version}\nkind: {kind}\nmetadata: {{name: {name}}}\nspec: {spec}\n"
    )
}

fn cnp(subject: &str, rules: &str) -> String {
    object("CNP", "p", &format!("{{tier: Admin, priority: 5, subject: {subject}, {rules}}}"))
}

const DNS: &str = "---\n{apiVersion: v1, kind: Pod, metadata: {name: dns, namespace: shop, labels: {k8s-app: kube-dns}}, status: {phase: Running, podIP: 10.1.0.77}}\n";

const ALL: &str = "{namespaces: {}}";

/// Every finding in the policies, with the cluster around them, as lines of text.
fn found(policies: &str) -> Vec<String> {
    let report = check(&[("c.yaml", CLUSTER), ("t.yaml", policies)]);
    report.to_string().lines().map(str::to_owned).collect()
}

#[test]
fn each_mistake_is_found_once_where_it_stands() {
    let ingress = |peer: &str| cnp(ALL, &format!("ingress: [{{action: Accept, from: [{peer}]}}]"));
    let egress = |peer: &str| cnp(ALL, &format!("egress: [{{action: Deny, to: [{peer}]}}]"));
    let web = "{pods: {namespaceSelector: {}, podSelector: {matchLabels: {app: web}}}}";
    let port = |port: &str| {
        cnp(web, &format!("ingress: [{{action: Accept, from: [{{namespaces: {{}}}}], protocols: [{port}]}}]"))
    };
    let table = [
        (
            cnp(
                "{namespaces: {matchLabels: {team: z}}}",
                "ingress: [{action: Deny, from: [{namespaces: {}}]}]",
            ),
            "spec.subject: selects no pod [selects-no-pod]",
        ),
        (
            cnp(
                "{pods: {namespaceSelector: {}, podSelector: {matchLabels: {app: host}}}}",
                "ingress: [{action: Deny, from: [{namespaces: {}}]}]",
            ),
            "spec.subject: selects hostNetwork pods only",
        ),
        (
            cnp(
                "{namespaces: {matchExpressions: [{key: team, operator: Exists}, {key: team, operator: DoesNotExist}]}}",
                "ingress: [{action: Deny, from: [{namespaces: {}}]}]",
            ),
            "spec.subject: can never match: its requirements on team exclude each other [never-matches]",
        ),
        (cnp(ALL, "ingress: []"), "spec: has no rules, and so no effect"),
        (
            ingress("{namespaces: {matchLabels: {team: z}}}"),
            "spec.ingress[0].from[0].namespaces: matches no namespace [never-matches]",
        ),
        (
            ingress("{pods: {namespaceSelector: {matchLabels: {team: z}}, podSelector: {}}}"),
            "spec.ingress[0].from[0].pods.namespaceSelector: matches no namespace [never-matches]",
        ),
        (
            ingress(
                "{pods: {namespaceSelector: {matchLabels: {team: b}}, podSelector: {matchLabels: {app: x}}}}",
            ),
            "spec.ingress[0].from[0].pods.podSelector: matches no pod of the namespaces that are meant [never-matches]",
        ),
        (
            ingress(
                "{namespaces: {}}, {pods: {namespaceSelector: {}, podSelector: {matchExpressions: [{key: a, operator: In, values: [b]}, {key: a, operator: NotIn, values: [b]}]}}}",
            ),
            "spec.ingress[0].from[1].pods.podSelector: can never match: its requirements on a exclude each other",
        ),
        (
            egress("{nodes: {matchLabels: {zone: west}}}"),
            "spec.egress[0].to[0].nodes: matches no node [never-matches]",
        ),
        (
            egress("{networks: [192.0.2.0/24, 10.1.0.1/32]}"),
            "spec.egress[0].to[0].networks[1]: 10.1.0.1/32 contains pod shop/web: name pods by selectors, their addresses change [block-over-pods]",
        ),
        (
            egress("{networks: [10.1.0.128/25]}"),
            "spec.egress[0].to[0].networks[0]: 10.1.0.128/25 overlaps the pod range 10.1.0.0/24",
        ),
        (
            ingress("{widgets: {}}"),
            "spec.ingress[0].from[0]: is no kind of peer that is known here, so the rule accepts nothing [unknown-peer]",
        ),
        (
            port("{destinationNamedPort: htpp}"),
            "spec.ingress[0].protocols[0]: can never match: no pod it may lead to has a port named htpp [unknown-port-name]",
        ),
        (
            port("{udp: {destinationPort: {number: 7}}}, {tcp: {destinationPort: {number: 80}}}"),
            "spec.ingress[0].protocols[1]: 80 is a port of service shop/web; rules see the pods' port, 8080 [service-port]",
        ),
        (
            cnp(
                ALL,
                "egress: [{action: Accept, to: [{pods: {namespaceSelector: {}, podSelector: {matchLabels: {app: web}}}}], protocols: [{tcp: {destinationPort: {number: 80}}}]}]",
            ),
            "spec.egress[0].protocols[0]: 80 is a port of service shop/web",
        ),
        (
            object(
                "ANP",
                "p",
                "{priority: 5, subject: {pods: {namespaceSelector: {}, podSelector: {matchLabels: {app: web}}}}, ingress: [{action: Allow, from: [{namespaces: {}}], ports: [{portNumber: {protocol: TCP, port: 80}}]}]}",
            ),
            "spec.ingress[0].ports[0]: 80 is a port of service shop/web",
        ),
        (
            cnp(ALL, "egress: [{action: Accept, to: [{domainNames: [example.com]}]}]"),
            "spec.egress[0].to[0].domainNames: nobody says yet which addresses a name stands for, so this peer matches nothing [domain-names]",
        ),
        (
            cnp(ALL, "egress: [{action: Deny, to: [{domainNames: [example.com]}]}]"),
            "spec.egress[0].to[0].domainNames: names can only be accepted, so the rule denies everything [domain-names]",
        ),
        // The cluster's DNS is among these.
        (
            cnp(ALL, "egress: [{action: Deny, to: [{namespaces: {matchLabels: {team: a}}}]}]") + DNS,
            "spec.egress[0]: cuts DNS: no rule before it accepts port 53/UDP or passes it on [cuts-dns]",
        ),
        (
            cnp(ALL, "egress: [{action: Deny, to: [{namespaces: {}}]}]"),
            "spec.egress[0]: cuts DNS: no rule before it accepts port 53/UDP or passes it on [cuts-dns]",
        ),
        (
            object(
                "BANP",
                "default",
                "{subject: {namespaces: {}}, ingress: [{action: Deny, from: [{namespaces: {matchLabels: {team: b}}}]}, {action: Allow, from: [{namespaces: {matchLabels: {team: a}}}]}]}",
            ),
            "spec.ingress[1]: has no effect: no later rule of the Baseline tier denies, and what none denies is allowed [dead-rules]",
        ),
    ];
    for (policy, expected) in table {
        let all = found(&policy);
        assert!(all.len() == 1 && all[0].contains(expected), "{policy}: {all:#?}");
        assert!(all[0].starts_with("t.yaml:5: document 1: "), "{all:?}");
    }
}

#[test]
fn what_is_meant_raises_no_alarm() {
    let dns = "{action: Accept, to: [{namespaces: {}}], protocols: [{udp: {destinationPort: {number: 53}}}]}";
    let table = [
        cnp("{namespaces: {}}", "ingress: [{action: Deny, from: [{namespaces: {matchLabels: {team: b}}}]}]"),
        cnp(ALL, &format!("egress: [{dns}, {{action: Deny, to: [{{namespaces: {{}}}}]}}]")),
        cnp(
            ALL,
            "egress: [{action: Deny, to: [{namespaces: {}}], protocols: [{tcp: {destinationPort: {number: 443}}}]}]",
        ),
        cnp(ALL, "egress: [{action: Deny, to: [{networks: [192.0.2.0/24]}]}]"),
        cnp(ALL, &format!("egress: [{dns}, {{action: Deny, to: [{{networks: [0.0.0.0/0]}}]}}]")),
        cnp(ALL, "egress: [{action: Deny, to: [{nodes: {}}]}]"),
        cnp(
            ALL,
            "ingress: [{action: Accept, from: [{namespaces: {}}], protocols: [{destinationNamedPort: http}, {tcp: {destinationPort: {number: 8080}}}]}]",
        ),
        cnp(
            ALL,
            "ingress: [{action: Accept, from: [{namespaces: {}}], protocols: [{tcp: {destinationPort: {range: {start: 80, end: 90}}}}]}]",
        ),
        cnp(
            ALL,
            "ingress: [{action: Accept, from: [{namespaces: {}}], protocols: [{tcp: {destinationPort: {number: 80}}}, {destinationNamedPort: http}]}]",
        ),
        // The namespace is there, and waits for its pods.
        cnp(
            ALL,
            "ingress: [{action: Accept, from: [{pods: {namespaceSelector: {matchLabels: {team: c}}, podSelector: {matchLabels: {app: later}}}}]}]",
        ),
        object(
            "BANP",
            "default",
            "{subject: {namespaces: {}}, ingress: [{action: Allow, from: [{namespaces: {matchLabels: {team: a}}}]}, {action: Deny, from: [{namespaces: {}}]}]}",
        ),
    ];
    for policy in table {
        assert_eq!(found(&policy), Vec::<String>::new(), "{policy}");
    }
}

fn np(namespace: &str, spec: &str) -> String {
    format!(
        "---\napiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {{name: n, namespace: {namespace}}}\nspec: {spec}\n"
    )
}

fn baseline(spec: &str) -> String {
    object("CNP", "b", &format!("{{tier: Baseline, priority: 1, {spec}}}"))
}

#[test]
fn what_one_tier_leaves_to_another_is_not_taken_for_settled() {
    let everybody = "subject: {namespaces: {}}";
    let deny_b = baseline(&format!(
        "{everybody}, ingress: [{{action: Deny, from: [{{namespaces: {{matchLabels: {{team: b}}}}}}]}}]"
    ));
    let admin = |rules: &str| cnp(ALL, &format!("ingress: [{rules}]"));
    let pass_b = "{action: Pass, from: [{namespaces: {matchLabels: {team: b}}}]}";
    let pass_a = "{action: Pass, from: [{namespaces: {matchLabels: {team: a}}}]}";
    let deny = "{action: Deny, from: [{namespaces: {}}]}";
    let shadowed = |policies: String| found(&policies).iter().any(|line| line.contains("[shadowed]"));
    assert!(!shadowed(admin(&format!("{pass_b}, {deny}")) + &deny_b), "what is passed on is decided there");
    assert!(!shadowed(admin(&format!("{pass_a}, {deny}")) + &deny_b), "it might be");
    assert!(shadowed(admin(deny) + &deny_b), "nothing is passed on");
    assert!(shadowed(admin(&format!("{deny}, {pass_b}")) + &deny_b), "nothing comes so far");

    let web_only = np("shop", "{podSelector: {matchLabels: {app: web}}, egress: [{ports: [{port: 443}]}]}");
    let dns = "{action: Accept, to: [{namespaces: {}}], protocols: [{udp: {destinationPort: {number: 53}}}]}";
    let cut = |policies: String| found(&policies).iter().any(|line| line.contains("[cuts-dns]"));
    assert!(cut(web_only.clone()));
    assert!(!cut(web_only.clone() + &cnp(ALL, &format!("egress: [{dns}]"))), "the Admin tier accepts it");
    let of_others = "{namespaces: {matchLabels: {team: b}}}";
    assert!(cut(web_only + &cnp(of_others, &format!("egress: [{dns}]"))), "for others only");

    let deny_all =
        baseline(&format!("{everybody}, egress: [{{action: Deny, to: [{{networks: [0.0.0.0/0]}}]}}]"));
    let open = "{podSelector: {}, policyTypes: [Egress], egress: [{to: [{namespaceSelector: {}}]}]}";
    assert!(cut(deny_all.clone() + &np("shop", open)), "the pods of ops have no other policy");
    assert!(!cut(deny_all + &np("shop", open) + &np("ops", open)), "NetworkPolicies hide the Baseline tier");
}

#[test]
fn a_rule_that_an_earlier_one_covers_never_decides() {
    let from = |team: &str| format!("from: [{{namespaces: {{matchLabels: {{team: {team}}}}}}}]");
    let all = "from: [{namespaces: {}}]";
    let port = |number: u16| format!("protocols: [{{tcp: {{destinationPort: {{number: {number}}}}}}}]");
    let range = "protocols: [{tcp: {destinationPort: {range: {start: 1, end: 100}}}}]";
    let a = from("a");
    // The first rule, the second, and whether the second is left nothing.
    let table = [
        (format!("action: Accept, {all}"), format!("action: Deny, {a}"), true),
        (format!("action: Pass, {all}"), format!("action: Deny, {a}"), true),
        (format!("action: Deny, {a}"), format!("action: Deny, {a}"), true),
        (format!("action: Deny, {a}"), format!("action: Accept, {all}"), false),
        (format!("action: Deny, {a}"), format!("action: Deny, {}", from("b")), false),
        (format!("action: Deny, {all}, {range}"), format!("action: Accept, {a}, {}", port(9)), true),
        (format!("action: Deny, {all}, {range}"), format!("action: Accept, {a}, {}", port(8080)), false),
        (format!("action: Deny, {all}, {range}"), format!("action: Accept, {a}"), false),
        (format!("action: Deny, {all}"), format!("action: Accept, {a}, {}", port(9)), true),
    ];
    for (first, second, covered) in table {
        let policy = cnp(ALL, &format!("\n  ingress: [\n  {{{first}}},\n  {{{second}}}]"));
        let expected: &[&str] = if covered {
            &[
                "t.yaml:8: document 1: ClusterNetworkPolicy/p: spec.ingress[1]: never decides: spec.ingress[0] comes first and matches all of it [shadowed]",
            ]
        } else {
            &[]
        };
        assert_eq!(found(&policy), expected, "{policy}");
    }
}

#[test]
fn a_policy_with_a_lower_priority_number_leaves_those_after_it_nothing() {
    let spec = |priority: u16, tier: &str, subject: &str, action: &str| {
        format!(
            "{{tier: {tier}, priority: {priority}, subject: {subject}, ingress: [{{action: {action}, from: [{{namespaces: {{}}}}]}}]}}"
        )
    };
    let team = "{namespaces: {matchLabels: {team: a}}}";
    let first = |action| object("CNP", "first", &spec(1, "Admin", ALL, action));
    let shadowed = [
        "ClusterNetworkPolicy/p: spec.ingress[0]: never decides: spec.ingress[0] of ClusterNetworkPolicy/first comes first and matches all of it [shadowed]",
    ];
    for (policies, expected) in [
        (first("Pass") + &object("CNP", "p", &spec(2, "Admin", team, "Deny")), &shadowed[..]),
        (first("Accept") + &object("CNP", "p", &spec(2, "Baseline", team, "Deny")), &shadowed),
        // What is passed on, the Baseline still decides.
        (first("Pass") + &object("CNP", "p", &spec(2, "Baseline", team, "Deny")), &[]),
        (
            object("CNP", "first", &spec(1, "Admin", team, "Accept"))
                + &object("CNP", "p", &spec(2, "Admin", ALL, "Deny")),
            &[],
        ),
        (first("Accept") + &object("CNP", "p", &spec(0, "Admin", team, "Deny")), &[]),
    ] {
        let all = found(&policies);
        assert_eq!(all.len(), expected.len(), "{policies}: {all:#?}");
        assert!(all.iter().zip(expected).all(|(line, text)| line.ends_with(text)), "{all:#?}");
    }
}

#[test]
fn equal_priorities_are_told_where_both_policies_speak_about_one_pod() {
    let spec = |subject: &str, action: &str, team: &str| {
        format!(
            "{{tier: Admin, priority: 7, subject: {subject}, ingress: [{{action: {action}, from: [{{namespaces: {{matchLabels: {{team: {team}}}}}}}]}}]}}"
        )
    };
    let web = "{pods: {namespaceSelector: {}, podSelector: {matchLabels: {app: web}}}}";
    let shell = "{pods: {namespaceSelector: {}, podSelector: {matchLabels: {role: shell}}}}";
    let both = |one: &str, other: &str| {
        found(
            &(object("CNP", "a", &spec(one, "Deny", "a")) + &object("CNP", "b", &spec(other, "Accept", "b"))),
        )
    };
    let all = both(ALL, web);
    assert!(
        all.len() == 1
            && all[0]
                .contains("ClusterNetworkPolicy/b: spec.priority: is that of ClusterNetworkPolicy/a too"),
        "{all:?}"
    );
    assert!(both(shell, web).is_empty());
}

#[test]
fn a_port_that_a_container_declares_without_a_name_is_no_services_port() {
    let policy = "---\napiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {name: p, namespace: shop}\nspec: {podSelector: {matchLabels: {app: web}}, ingress: [{ports: [{port: 80}]}]}\n";
    let unnamed = |port: &str| CLUSTER.replace("{name: dns, containerPort: 53, protocol: UDP}", port);
    for (port, count) in
        [("{containerPort: 80}", 0), ("{containerPort: 80, protocol: UDP}", 1), ("{containerPort: 81}", 1)]
    {
        let report = check(&[("c.yaml", &unnamed(port)), ("p.yaml", policy)]);
        assert_eq!(report.to_string().matches("[service-port]").count(), count, "{port}: {report}");
    }
    let template =
        "{metadata: {labels: {app: front}}, spec: {containers: [{name: c, ports: [{containerPort: PORT}]}]}}";
    let workload = |port: &str| {
        format!(
            "---\n{{apiVersion: apps/v1, kind: Deployment, metadata: {{name: front, namespace: shop}}, spec: {{template: {}}}}}\n---\n{{apiVersion: v1, kind: Service, metadata: {{name: front, namespace: shop}}, spec: {{selector: {{app: front}}, ports: [{{port: 80, targetPort: 8080}}]}}}}\n",
            template.replace("PORT", port)
        )
    };
    let policy = policy.replace("app: web", "app: front");
    for (port, count) in [("80", 0), ("8080", 1)] {
        let report = check(&[("c.yaml", CLUSTER), ("w.yaml", &workload(port)), ("p.yaml", &policy)]);
        assert_eq!(report.to_string().matches("[service-port]").count(), count, "{port}: {report}");
    }
}
