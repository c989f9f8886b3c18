//! What the CRDs of the Admin and Baseline tier's kinds refuse, by field, and what they take.
#![expect(clippy::unwrap_used, reason = "a panic is the report of a failed test")]

use std::path::Path;

use policy_cache::{LoadError, Objects, parse};

fn yaml(text: &str) -> Result<Objects, LoadError> {
    parse([(Path::new("test.yaml"), text)])
}

fn cnp(spec: &str) -> String {
    format!(
        "apiVersion: policy.networking.k8s.io/v1alpha2\nkind: ClusterNetworkPolicy\nmetadata: {{name: p}}\nspec: {spec}\n"
    )
}

fn anp(spec: &str) -> String {
    format!(
        "apiVersion: policy.networking.k8s.io/v1alpha1\nkind: AdminNetworkPolicy\nmetadata: {{name: p}}\nspec: {spec}\n"
    )
}

fn banp(spec: &str) -> String {
    format!(
        "apiVersion: policy.networking.k8s.io/v1alpha1\nkind: BaselineAdminNetworkPolicy\nmetadata: {{name: default}}\nspec: {spec}\n"
    )
}

/// `cases` are the text that is refused, and each problem as `field: part of the message`.
#[track_caller]
fn refused(text: &str, expected: &[&str]) {
    let problems = yaml(text).expect_err(text).problems;
    let found: Vec<String> = problems.iter().map(|p| format!("{}: {}", p.field, p.message)).collect();
    assert_eq!(found.len(), expected.len(), "{found:#?}\n{text}");
    for (found, expected) in found.iter().zip(expected) {
        let (field, message) = expected.split_once(": ").unwrap();
        let (found_field, found_message) = found.split_once(": ").unwrap();
        assert_eq!(found_field, field, "{found}\n{text}");
        assert!(found_message.contains(message), "{found}, expected {message}\n{text}");
    }
    assert!(problems.iter().all(|p| p.line.is_some() && p.object.contains("NetworkPolicy/")), "{problems:?}");
}

#[track_caller]
fn taken(text: &str) -> Objects {
    yaml(text).unwrap_or_else(|error| panic!("{error}\n{text}"))
}

/// A ClusterNetworkPolicy with one ingress and one egress rule.
fn rules(ingress: &str, egress: &str) -> String {
    cnp(&format!(
        "{{tier: Admin, priority: 1, subject: {{namespaces: {{}}}}, ingress: {ingress}, egress: {egress}}}"
    ))
}

fn egress(rule: &str) -> String {
    rules("[]", &format!("[{rule}]"))
}

#[test]
fn a_cluster_network_policy_needs_tier_priority_and_subject() {
    refused(
        "apiVersion: policy.networking.k8s.io/v1alpha2\nkind: ClusterNetworkPolicy\nmetadata: {name: p}\n",
        &["spec: required"],
    );
    refused(&cnp("{}"), &["spec.tier: required", "spec.priority: required", "spec.subject: required"]);
    for (priority, message) in
        [("-1", "between 0 and 1000"), ("1001", "between 0 and 1000"), ("'1'", "integer")]
    {
        refused(
            &cnp(&format!("{{tier: Admin, priority: {priority}, subject: {{namespaces: {{}}}}}}")),
            &[&format!("spec.priority: {message}")],
        );
    }
    for priority in [0, 1000] {
        taken(&cnp(&format!("{{tier: Baseline, priority: {priority}, subject: {{namespaces: {{}}}}}}")));
    }
    refused(
        &cnp("{tier: NetworkPolicy, priority: 1, subject: {namespaces: {}}}"),
        &["spec.tier: Admin or Baseline"],
    );
    refused(
        &cnp("{tier: Admin, priority: 1, subject: {namespaces: {}}, egres: []}"),
        &["spec.egres: unknown field"],
    );
}

#[test]
fn a_subject_is_exactly_one_of_namespaces_and_pods() {
    for subject in ["{}", "{namespaces: {}, pods: {podSelector: {}}}", "{namespaces: null}"] {
        refused(
            &cnp(&format!("{{tier: Admin, priority: 1, subject: {subject}}}")),
            &["spec.subject: exactly one"],
        );
    }
    refused(
        &cnp("{tier: Admin, priority: 1, subject: {pods: {namespaceSelector: {}}}}"),
        &["spec.subject.pods.podSelector: required"],
    );
    // An absent namespaceSelector is an empty one.
    taken(&cnp("{tier: Admin, priority: 1, subject: {pods: {podSelector: {}}}}"));
    refused(
        &anp("{priority: 1, subject: {pods: {podSelector: {}}}}"),
        &["spec.subject.pods.namespaceSelector: required"],
    );
    refused(
        &cnp(
            "{tier: Admin, priority: 1, subject: {namespaces: {matchExpressions: [{key: a, operator: In}]}}}",
        ),
        &["spec.subject.namespaces.matchExpressions[0]: need values"],
    );
}

#[test]
fn a_rule_needs_an_action_and_peers() {
    refused(&egress("{}"), &["spec.egress[0].action: required", "spec.egress[0].to: required"]);
    refused(
        &egress("{action: Allow, to: [{pods: {podSelector: {}}}]}"),
        &["spec.egress[0].action: Accept, Deny, Pass"],
    );
    refused(&egress("{action: Deny, to: []}"), &["spec.egress[0].to: empty"]);
    refused(&egress("{action: Deny, to: null}"), &["spec.egress[0].to: required"]);
    refused(
        &egress("{action: Deny, from: [{namespaces: {}}]}"),
        &["spec.egress[0].from: unknown field", "spec.egress[0].to: required"],
    );
    let long = "n".repeat(101);
    refused(
        &egress(&format!("{{name: {long}, action: Deny, to: [{{namespaces: {{}}}}]}}")),
        &["spec.egress[0].name: 100 characters"],
    );
    taken(&egress(&format!("{{name: {}, action: Deny, to: [{{namespaces: {{}}}}]}}", "ü".repeat(100))));
}

#[test]
fn lists_have_the_length_their_schema_says() {
    let many = |item: &str, count: usize| format!("[{}]", vec![item; count].join(", "));
    let rule = "{action: Deny, to: [{namespaces: {}}]}";
    refused(&rules("[]", &many(rule, 26)), &["spec.egress: more than 25 rules"]);
    taken(&rules("[]", &many(rule, 25)));
    let peers = |count| egress(&format!("{{action: Deny, to: {}}}", many("{namespaces: {}}", count)));
    refused(&peers(26), &["spec.egress[0].to: more than 25 items"]);
    taken(&peers(25));
    let ports = |count| {
        let list = many("{tcp: {destinationPort: {number: 1}}}", count);
        egress(&format!("{{action: Deny, to: [{{namespaces: {{}}}}], protocols: {list}}}"))
    };
    refused(&ports(26), &["spec.egress[0].protocols: more than 25 items"]);
    refused(&ports(0), &["spec.egress[0].protocols: empty"]);
    taken(&ports(25));
    let networks = |count: usize| {
        let list: Vec<String> = (0..count).map(|n| format!("10.0.{n}.0/24")).collect();
        egress(&format!("{{action: Deny, to: [{{networks: [{}]}}]}}", list.join(", ")))
    };
    refused(&networks(26), &["spec.egress[0].to[0].networks: more than 25 items"]);
    refused(&networks(0), &["spec.egress[0].to[0].networks: empty"]);
    taken(&networks(25));
    let admin = |count| {
        let rules = many("{action: Deny, from: [{namespaces: {}}]}", count);
        anp(&format!("{{priority: 1, subject: {{namespaces: {{}}}}, ingress: {rules}}}"))
    };
    refused(&admin(101), &["spec.ingress: more than 100 rules"]);
    taken(&admin(100));
}

#[test]
fn a_peer_has_exactly_one_field_and_an_unknown_one_is_taken_to_fail_closed() {
    refused(
        &egress("{action: Deny, to: [{namespaces: {}, networks: [10.0.0.0/8]}]}"),
        &["spec.egress[0].to[0]: exactly one"],
    );
    refused(
        &egress("{action: Deny, to: [null, x]}"),
        &["spec.egress[0].to[0]: a mapping", "spec.egress[0].to[1]: a mapping"],
    );
    taken(&egress("{action: Deny, to: [{}, {widgets: {}}, {namespaces: null}]}"));
    // Networks are no peers of ingress.
    taken(&rules("[{action: Deny, from: [{networks: [10.0.0.0/8]}]}]", "[]"));
}

#[test]
fn networks_are_distinct_cidrs() {
    let to = |list: &str| egress(&format!("{{action: Deny, to: [{{networks: {list}}}]}}"));
    for bad in ["10.0.0.0", "10.0.0.0/33", "10.0.0/8", "example.com", "'::ffff:10.0.0.0/104'"] {
        refused(&to(&format!("[{bad}]")), &["spec.egress[0].to[0].networks[0]: "]);
    }
    refused(&to("[10.0.0.0/8, 10.0.0.0/8]"), &["spec.egress[0].to[0].networks[1]: twice"]);
    refused(&to("[1]"), &["spec.egress[0].to[0].networks[0]: a string"]);
    refused(&to(&format!("['{}/64']", "0".repeat(41))), &["spec.egress[0].to[0].networks[0]: 43 characters"]);
    taken(&to("[10.0.0.1/8, 'fd00::/8']"));
}

#[test]
fn domain_names_follow_their_pattern() {
    let to = |list: &str| egress(&format!("{{action: Accept, to: [{{domainNames: {list}}}]}}"));
    for bad in ["com", "'*.com'", "'a.*.com'", "a..b", "''"] {
        refused(&to(&format!("[{bad}]")), &["spec.egress[0].to[0].domainNames[0]: a domain name"]);
    }
    refused(&to("[]"), &["spec.egress[0].to[0].domainNames: empty"]);
    refused(&to("[a.b, a.b]"), &["spec.egress[0].to[0].domainNames[1]: twice"]);
    taken(&to("['*.example.com', example.com., _dmarc.example.com]"));
}

#[test]
fn a_protocol_has_exactly_one_port_in_range() {
    let port = |protocol: &str| {
        egress(&format!("{{action: Deny, to: [{{namespaces: {{}}}}], protocols: [{protocol}]}}"))
    };
    let at = "spec.egress[0].protocols[0]";
    for (protocol, expected) in [
        ("{}", format!("{at}: exactly one")),
        ("{tcp: {destinationPort: {number: 1}}, destinationNamedPort: a}", format!("{at}: exactly one")),
        ("{tcp: {}}", format!("{at}.tcp.destinationPort: required")),
        ("{udp: {destinationPort: {}}}", format!("{at}.udp.destinationPort: exactly one")),
        (
            "{sctp: {destinationPort: {number: 1, range: {start: 1, end: 2}}}}",
            format!("{at}.sctp.destinationPort: exactly one"),
        ),
        ("{tcp: {destinationPort: {number: 0}}}", format!("{at}.tcp.destinationPort.number: between 1")),
        ("{tcp: {destinationPort: {number: 65536}}}", format!("{at}.tcp.destinationPort.number: 65535")),
        ("{tcp: {destinationPort: {number: http}}}", format!("{at}.tcp.destinationPort.number: integer")),
        (
            "{tcp: {destinationPort: {range: {start: 2, end: 2}}}}",
            format!("{at}.tcp.destinationPort.range: less"),
        ),
        (
            "{tcp: {destinationPort: {range: {start: 3, end: 2}}}}",
            format!("{at}.tcp.destinationPort.range: less"),
        ),
        ("{destinationNamedPort: ''}", format!("{at}.destinationNamedPort: empty")),
    ] {
        refused(&port(protocol), &[&expected]);
    }
    refused(
        &port("{tcp: {destinationPort: {range: {}}}}"),
        &[
            &format!("{at}.tcp.destinationPort.range.start: required"),
            &format!("{at}.tcp.destinationPort.range.end: required"),
        ],
    );
    refused(&port("{icmp: {}}"), &[&format!("{at}.icmp: unknown field"), &format!("{at}: exactly one")]);
    taken(&port("{tcp: {destinationPort: {range: {start: 1, end: 65535}}}}"));
}

#[test]
fn a_named_port_may_not_stand_with_peers_that_have_none() {
    for peer in ["networks: [10.0.0.0/8]", "nodes: {}", "domainNames: [a.b]"] {
        refused(
            &egress(&format!(
                "{{action: Accept, to: [{{{peer}}}], protocols: [{{destinationNamedPort: http}}]}}"
            )),
            &["spec.egress[0].protocols: a named port"],
        );
        refused(
            &anp(&format!(
                "{{priority: 1, subject: {{namespaces: {{}}}}, egress: [{{action: Allow, to: [{{{peer}}}], ports: [{{namedPort: http}}]}}]}}"
            )),
            &["spec.egress[0].ports: a named port"],
        );
    }
    taken(&egress("{action: Accept, to: [{namespaces: {}}], protocols: [{destinationNamedPort: http}]}"));
}

#[test]
fn admin_network_policies_spell_actions_and_ports_their_own_way() {
    let ingress =
        |rule: &str| anp(&format!("{{priority: 1, subject: {{namespaces: {{}}}}, ingress: [{rule}]}}"));
    refused(
        &ingress("{action: Accept, from: [{namespaces: {}}]}"),
        &["spec.ingress[0].action: Allow, Deny, Pass"],
    );
    let port =
        |port: &str| ingress(&format!("{{action: Allow, from: [{{namespaces: {{}}}}], ports: [{port}]}}"));
    let at = "spec.ingress[0].ports[0]";
    for (bad, expected) in [
        ("{}", format!("{at}: exactly one")),
        ("{portNumber: {port: 1}, namedPort: a}", format!("{at}: exactly one")),
        ("{portNumber: {}}", format!("{at}.portNumber.port: required")),
        ("{portNumber: 80}", format!("{at}.portNumber: a mapping")),
        ("{portNumber: {port: 0}}", format!("{at}.portNumber.port: between 1")),
        ("{portNumber: {port: 1, protocol: tcp}}", format!("{at}.portNumber.protocol: TCP, UDP or SCTP")),
        ("{portRange: {start: 2, end: 1}}", format!("{at}.portRange: less")),
        ("{portRange: {start: 1}}", format!("{at}.portRange.end: required")),
    ] {
        refused(&port(bad), &[&expected]);
    }
    for good in [
        "{portNumber: {port: 1}}",
        "{portNumber: {port: 65535, protocol: SCTP}}",
        "{portRange: {start: 1, end: 2, protocol: UDP}}",
        "{namedPort: http}",
    ] {
        taken(&port(good));
    }
    refused(
        &ingress("{action: Allow, from: [{namespaces: {}}], protocols: []}"),
        &["spec.ingress[0].protocols: unknown field"],
    );
    refused(&anp("{tier: Admin, priority: 1, subject: {namespaces: {}}}"), &["spec.tier: unknown field"]);
}

#[test]
fn there_is_one_baseline_admin_network_policy_and_it_is_called_default() {
    taken(&banp("{subject: {namespaces: {}}}"));
    refused(
        &banp("{subject: {namespaces: {}}}").replace("name: default", "name: other"),
        &["metadata.name: must be \"default\""],
    );
    refused(&banp("{subject: {namespaces: {}}, priority: 1}"), &["spec.priority: unknown field"]);
    refused(
        &banp("{subject: {namespaces: {}}, ingress: [{action: Pass, from: [{namespaces: {}}]}]}"),
        &["spec.ingress[0].action: Allow, Deny"],
    );
}

#[test]
fn a_kind_in_another_version_is_refused_rather_than_passed_over() {
    for (text, version, expected) in [
        (anp("{}"), "v1alpha1", "v1alpha1"),
        (banp("{}"), "v1alpha1", "v1alpha1"),
        (cnp("{}"), "v1alpha2", "v1alpha2"),
    ] {
        let other = text.replace(version, "v1beta7");
        let problems = yaml(&other).unwrap_err().problems;
        assert_eq!(problems.len(), 1, "{problems:?}");
        assert!(problems[0].message.ends_with(expected), "{problems:?}");
        assert_eq!(problems[0].field, "apiVersion");
    }
}

#[test]
fn all_problems_of_a_policy_are_listed_at_once() {
    refused(
        &cnp(
            "{tier: X, priority: 9999, subject: {}, ingress: [{action: A, from: [{pods: {}}], protocols: [{tcp: {}}]}], egress: 1}",
        ),
        &[
            "spec.tier: Admin",
            "spec.priority: between",
            "spec.subject: exactly one",
            "spec.ingress[0].action: one of",
            "spec.ingress[0].from[0].pods.podSelector: required",
            "spec.ingress[0].protocols[0].tcp.destinationPort: required",
            "spec.egress: a list",
        ],
    );
}

#[test]
fn policies_are_counted_by_kind() {
    let text = [
        cnp("{tier: Admin, priority: 1, subject: {namespaces: {}}}"),
        anp("{priority: 1, subject: {namespaces: {}}}"),
        banp("{subject: {namespaces: {}}}"),
    ]
    .join("---\n");
    let counts = taken(&text).counts();
    let found = (
        counts.cluster_network_policies,
        counts.admin_network_policies,
        counts.baseline_admin_network_policies,
        counts.network_policies,
    );
    assert_eq!(found, (1, 1, 1, 0));
    assert!(counts.skipped.is_empty(), "{counts:?}");
}
