//! `lint`: each finding once where it is meant, and silence everywhere else.
#![expect(clippy::unwrap_used, reason = "a panic is the report of a failed test")]

mod tiers;

use std::path::{Path, PathBuf};

use policy_bench::{Cluster, Shape};
use policy_cache::{LintReport, lint, lint_texts};
use serde_json::Value;

const CLUSTER: &str = r#"
apiVersion: v1
kind: List
items:
- {apiVersion: v1, kind: Namespace, metadata: {name: shop, labels: {team: a}}}
- {apiVersion: v1, kind: Namespace, metadata: {name: ops, labels: {team: b}}}
- {apiVersion: v1, kind: Namespace, metadata: {name: void, labels: {team: c}}}
- apiVersion: v1
  kind: Node
  metadata: {name: n1}
  spec: {podCIDRs: [10.1.0.0/24]}
- apiVersion: v1
  kind: Pod
  metadata: {name: web, namespace: shop, labels: {app: web}}
  spec: {containers: [{name: c, ports: [{name: http, containerPort: 8080}, {name: dns, containerPort: 53, protocol: UDP}]}]}
  status: {phase: Running, podIP: 10.1.0.1}
- {apiVersion: v1, kind: Pod, metadata: {name: db, namespace: shop, labels: {app: db}}, status: {phase: Running, podIP: 10.1.0.2}}
- {apiVersion: v1, kind: Pod, metadata: {name: shell, namespace: ops, labels: {role: shell}}, status: {phase: Running, podIP: 10.1.1.3}}
- {apiVersion: v1, kind: Pod, metadata: {name: host, namespace: shop, labels: {app: host}}, spec: {hostNetwork: true}, status: {phase: Running, podIP: 192.168.0.1}}
- apiVersion: v1
  kind: Service
  metadata: {name: web, namespace: shop}
  spec: {clusterIP: 10.96.0.1, selector: {app: web}, ports: [{port: 80, targetPort: http}]}
"#;

fn policy(namespace: &str, spec: &str) -> String {
    format!(
        "apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {{name: p, namespace: {namespace}}}\nspec: {spec}\n"
    )
}

fn check(texts: &[(&str, &str)]) -> LintReport {
    lint_texts(texts.iter().map(|(path, text)| (Path::new(*path), *text))).unwrap()
}

/// Check and field of each finding in a policy of the cluster.
fn found(namespace: &str, spec: &str) -> Vec<(String, String, String)> {
    let report = check(&[("c.yaml", CLUSTER), ("p.yaml", &policy(namespace, spec))]);
    let json = serde_json::to_value(&report).unwrap();
    let text = |value: &Value| value.as_str().unwrap().to_owned();
    let findings = json["findings"].as_array().unwrap().iter();
    findings.map(|one| (text(&one["check"]), text(&one["field"]), text(&one["message"]))).collect()
}

#[test]
fn each_mistake_is_found_once_where_it_stands() {
    let web = "podSelector: {matchLabels: {app: web}}";
    let from = |peers: &str| format!("{{{web}, ingress: [{{from: [{peers}]}}]}}");
    let ports = |ports: &str| format!("{{{web}, ingress: [{{ports: [{ports}]}}]}}");
    let to = |rule: &str| {
        format!(
            "{{{web}, policyTypes: [Egress], egress: [{rule}, {{ports: [{{port: 53, protocol: UDP}}]}}]}}"
        )
    };
    let table = [
        (
            "{podSelector: {matchLabels: {app: wbe}}}".to_owned(),
            "selects-no-pod",
            "spec.podSelector",
            "no pod of namespace shop",
        ),
        (
            "{podSelector: {matchLabels: {app: host}}}".to_owned(),
            "selects-no-pod",
            "spec.podSelector",
            "hostNetwork pods only",
        ),
        (
            from("{namespaceSelector: {matchLabels: {team: z}}}"),
            "never-matches",
            "spec.ingress[0].from[0].namespaceSelector",
            "matches no namespace",
        ),
        (
            from("{namespaceSelector: {matchLabels: {team: a}}, podSelector: {matchLabels: {app: x}}}"),
            "never-matches",
            "spec.ingress[0].from[0].podSelector",
            "matches no pod of the namespaces",
        ),
        (
            from("{podSelector: {}}, {podSelector: {matchLabels: {role: shell}}}"),
            "never-matches",
            "spec.ingress[0].from[1].podSelector",
            "matches no pod of namespace shop",
        ),
        (
            from(
                "{podSelector: {matchExpressions: [{key: app, operator: Exists}, {key: app, operator: DoesNotExist}]}}",
            ),
            "never-matches",
            "spec.ingress[0].from[0].podSelector",
            "requirements on app exclude each other",
        ),
        (ports("{port: htpp}"), "unknown-port-name", "spec.ingress[0].ports[0]", "has a port named htpp"),
        (
            ports("{port: http, protocol: UDP}"),
            "unknown-port-name",
            "spec.ingress[0].ports[0]",
            "http is 8080/TCP there, not UDP",
        ),
        (
            to("{to: [{podSelector: {matchLabels: {app: db}}}], ports: [{port: http}]}"),
            "unknown-port-name",
            "spec.egress[0].ports[0]",
            "has a port named http",
        ),
        (
            ports("{port: 80}"),
            "service-port",
            "spec.ingress[0].ports[0]",
            "80 is a port of service shop/web; rules see the pods' port, 8080",
        ),
        (
            to("{to: [{podSelector: {matchLabels: {app: web}}}], ports: [{port: 80}]}"),
            "service-port",
            "spec.egress[0].ports[0]",
            "rules see the pods' port, 8080",
        ),
        (
            from("{ipBlock: {cidr: 10.1.0.1/32}}"),
            "block-over-pods",
            "spec.ingress[0].from[0].ipBlock",
            "contains pod shop/web",
        ),
        (
            from("{ipBlock: {cidr: 10.1.0.64/26}}"),
            "block-over-pods",
            "spec.ingress[0].from[0].ipBlock",
            "overlaps the pod range 10.1.0.0/24",
        ),
        (
            format!("{{{web}, policyTypes: [Egress], egress: [{{ports: [{{port: 443}}]}}]}}"),
            "cuts-dns",
            "spec.egress",
            "no policy allows shop/web to send to port 53/UDP",
        ),
        (
            from(
                "{namespaceSelector: {matchLabels: {team: b}}}, {podSelector: {matchLabels: {role: shell}}}",
            ),
            "and-as-or",
            "spec.ingress[0].from[1]",
            "put the two selectors into one item of `from`",
        ),
        (
            format!("{{{web}, policyTypes: [Ingress], egress: [{{}}]}}"),
            "dead-rules",
            "spec.egress",
            "policyTypes does not list Egress",
        ),
    ];
    for (spec, name, field, message) in table {
        let all = found("shop", &spec);
        let own: Vec<_> = all.iter().filter(|(check, ..)| check == name).collect();
        let [(_, at, text)] = own[..] else { panic!("{spec}: {all:?}") };
        assert!(field == at && text.contains(message), "{spec}: {at}: {text}");
        // The OR that was meant as an AND has an item that matches nobody: both are true.
        assert!(all.len() == 1 || name == "and-as-or", "{spec}: {all:?}");
    }
    let empty = found("void", "{podSelector: {matchLabels: {app: web}}}");
    assert_eq!(empty[0].2, "selects no pod: namespace void has none");
    for (namespace, field, message) in [
        ("void", "spec.podSelector", "selects no pod: namespace void has none"),
        (
            "shpo",
            "metadata.namespace",
            "selects no pod: the manifests declare namespaces, and shpo is none of them",
        ),
    ] {
        let all = found(namespace, "{podSelector: {}}");
        assert_eq!(all, [("selects-no-pod".to_owned(), field.to_owned(), message.to_owned())]);
    }
    assert!(found("kube-public", "{podSelector: {}}").len() == 1, "it has no pod");
}

#[test]
fn what_is_meant_raises_no_alarm() {
    let web = "podSelector: {matchLabels: {app: web}}";
    let table = [
        ("shop", "{podSelector: {}, policyTypes: [Ingress, Egress]}".to_owned()),
        ("shop", format!("{{{web}, ingress: [{{ports: [{{port: http}}, {{port: 8080}}]}}]}}")),
        ("shop", format!("{{{web}, ingress: [{{ports: [{{port: 80}}, {{port: 8080}}]}}]}}")),
        ("shop", format!("{{{web}, ingress: [{{ports: [{{port: 80, endPort: 9000}}]}}]}}")),
        ("shop", format!("{{{web}, ingress: [{{from: [{{ipBlock: {{cidr: 0.0.0.0/0}}}}, {{ipBlock: {{cidr: 192.0.2.0/24}}}}]}}]}}")),
        ("shop", format!("{{{web}, ingress: [{{from: [{{ipBlock: {{cidr: 10.0.0.0/8, except: [10.1.0.0/16]}}}}]}}]}}")),
        ("shop", format!("{{{web}, ingress: [{{from: [{{namespaceSelector: {{matchLabels: {{team: b}}}}}}, {{podSelector: {{matchLabels: {{app: db}}}}}}]}}]}}")),
        ("shop", format!("{{{web}, ingress: [{{from: [{{namespaceSelector: {{matchLabels: {{team: b}}}}}}, {{podSelector: {{}}}}]}}]}}")),
        ("shop", format!("{{{web}, ingress: [{{from: [{{namespaceSelector: {{matchLabels: {{team: b}}}}, podSelector: {{matchLabels: {{role: shell}}}}}}]}}]}}")),
        ("shop", format!("{{{web}, ingress: [{{from: [{{namespaceSelector: {{matchLabels: {{team: c}}}}, podSelector: {{matchLabels: {{app: any}}}}}}]}}]}}")),
        ("shop", format!("{{{web}, policyTypes: [Egress], egress: [{{ports: [{{port: 443}}]}}, {{ports: [{{port: 53, protocol: UDP}}]}}]}}")),
        ("shop", format!("{{{web}, policyTypes: [Egress], egress: [{{to: [{{podSelector: {{}}}}]}}]}}")),
        ("shop", format!("{{{web}, policyTypes: [Egress], egress: [{{ports: [{{protocol: UDP}}]}}]}}")),
        ("shop", "{podSelector: {matchExpressions: [{key: app, operator: NotIn, values: [x]}, {key: app, operator: Exists}]}}".to_owned()),
        // Ports of the world outside, where a web server's port is 80.
        ("shop", format!("{{{web}, policyTypes: [Egress], egress: [{{ports: [{{port: 80}}]}}, {{ports: [{{port: 53, protocol: UDP}}]}}]}}")),
        ("shop", format!("{{{web}, policyTypes: [Egress], egress: [{{to: [{{ipBlock: {{cidr: 0.0.0.0/0}}}}], ports: [{{port: 80}}]}}, {{ports: [{{port: 53, protocol: UDP}}]}}]}}")),
    ];
    for (namespace, spec) in table {
        let all = found(namespace, &spec);
        assert!(all.is_empty(), "{spec}: {all:?}");
    }
}

#[test]
fn another_policy_may_bring_the_dns_that_one_leaves_out() {
    let egress = |name: &str, selector: &str, port: &str| {
        format!(
            "---\napiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {{name: {name}, namespace: shop}}\nspec: {{podSelector: {selector}, policyTypes: [Egress], egress: [{{ports: [{port}]}}]}}\n"
        )
    };
    let web = egress("web", "{matchLabels: {app: web}}", "{port: 443}");
    let dns = |selector: &str| egress("dns", selector, "{port: 53, protocol: UDP}");
    for (selector, clean) in
        [("{}", true), ("{matchLabels: {app: web}}", true), ("{matchLabels: {app: db}}", false)]
    {
        let text = format!("{web}{}", dns(selector));
        assert_eq!(check(&[("c.yaml", CLUSTER), ("p.yaml", &text)]).is_clean(), clean, "{selector}");
        assert_eq!(check(&[("p.yaml", &text)]).is_clean(), clean, "{selector} without pods");
    }
}

#[test]
fn workloads_stand_for_the_pods_they_will_have() {
    let workload = |kind: &str, spec: &str| {
        format!("{{apiVersion: apps/v1, kind: {kind}, metadata: {{name: w, namespace: shop}}, spec: {spec}}}")
    };
    let template = "{metadata: {labels: {app: web}}, spec: {containers: [{name: c, ports: [{name: http, containerPort: 8080}]}]}}";
    for workload in [
        workload("Deployment", &format!("{{template: {template}}}")),
        workload("CronJob", &format!("{{jobTemplate: {{spec: {{template: {template}}}}}}}")),
    ] {
        let clean =
            |spec: &str| check(&[("w.yaml", &workload), ("p.yaml", &policy("shop", spec))]).is_clean();
        assert!(clean(
            "{podSelector: {matchLabels: {app: web}}, ingress: [{from: [{namespaceSelector: {matchLabels: {team: z}}}], ports: [{port: http}]}]}"
        ));
        assert!(!clean("{podSelector: {matchLabels: {app: wbe}}}"));
        assert!(!clean("{podSelector: {matchLabels: {app: web}}, ingress: [{ports: [{port: htpp}]}]}"));
    }
    // What another application's manifests describe is not missed here.
    let report = check(&[("p.yaml", &policy("shop", "{podSelector: {matchLabels: {app: web}}}"))]);
    assert!(report.is_clean() && report.notes()[0].contains("no pods or workloads"));
}

#[test]
fn findings_name_file_line_and_document_in_every_form_of_manifest() {
    let yaml = "# first\nkind: Namespace\napiVersion: v1\nmetadata: {name: third}\n---\napiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata:\n  name: p\n  namespace: shop\nspec:\n  podSelector: {}\n  ingress:\n  - from:\n    - ipBlock:\n        cidr: 10.1.0.0/16\n";
    let report = check(&[("c.yaml", CLUSTER), ("p.yaml", yaml)]).to_string();
    assert_eq!(
        report,
        "p.yaml:16: document 2: NetworkPolicy/shop/p: spec.ingress[0].from[0].ipBlock: 10.1.0.0/16 contains pod ops/shell: name pods by selectors, their addresses change [block-over-pods]\n"
    );
    let object = r#"{"apiVersion":"networking.k8s.io/v1","kind":"NetworkPolicy","metadata":{"name":"p"},
"spec":{"podSelector":{},
"policyTypes":["Ingress"],
"egress":[{}]}}"#;
    let list = format!(
        "{{\"apiVersion\":\"networking.k8s.io/v1\",\"kind\":\"NetworkPolicyList\",\"items\":[\n{object}]}}"
    );
    for (text, place) in [
        (object.to_owned(), "p.json:4: document 1: "),
        (list, "p.json:5: document 1: "),
        (format!("{{\"kind\":\"X\",\"apiVersion\":\"v1\"}}\n{object}"), "p.json: document 2: "),
    ] {
        let report = check(&[("p.json", &text)]).to_string();
        assert!(report.starts_with(place) && report.contains("[dead-rules]"), "{place}: {report}");
    }
}

#[test]
fn the_examples_raise_no_alarm_alone_or_together() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy/examples");
    let mut sets: Vec<Vec<PathBuf>> = vec![vec![folder.clone()]];
    for entry in std::fs::read_dir(&folder).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_some_and(|extension| extension == "yaml") {
            sets.push(vec![path]);
        }
    }
    assert!(sets.len() > 9);
    for set in sets {
        let report = lint(&set).unwrap();
        assert!(report.is_clean(), "{set:?}: {report}");
    }
}

#[test]
fn a_generated_cluster_of_every_tier_raises_no_alarm() {
    let cluster = Cluster::new(Shape { dual_stack: true, ..Shape::of(6_000) }, 7);
    let texts: Vec<_> = cluster.texts().collect();
    let report = lint_texts(texts.iter().map(|(path, text)| (path.as_path(), text.as_str()))).unwrap();
    assert!(report.is_clean(), "{report}");
}

#[test]
fn manifests_that_are_not_valid_are_told_with_all_problems() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("a.yaml"), "kind: [").unwrap();
    std::fs::write(folder.path().join("b.yaml"), policy("shop", "{ingress: 7}")).unwrap();
    std::fs::write(folder.path().join("c.yaml"), [0xff, 0xfe]).unwrap();
    let error = lint(&[folder.path().to_owned(), PathBuf::from("/nowhere/at/all")]).unwrap_err();
    let text = error.to_string();
    for part in ["a.yaml", "b.yaml", "c.yaml", "/nowhere/at/all"] {
        assert!(text.contains(part), "{part}: {text}");
    }
}

#[test]
fn a_rule_is_shadowed_only_when_a_higher_tier_denies_all_of_it_first() {
    let policy = policy(
        "shop",
        "{podSelector: {matchLabels: {app: web}}, ingress: [{from: [{namespaceSelector: {matchLabels: {team: b}}}]}, {from: [{podSelector: {}}]}]}",
    );
    let admin = |subject: &str, rules: &str| {
        let spec = format!("{{tier: Admin, priority: 1, subject: {subject}, ingress: [{rules}]}}");
        format!(
            "{{apiVersion: policy.networking.k8s.io/v1alpha2, kind: ClusterNetworkPolicy, metadata: {{name: c}}, spec: {spec}}}"
        )
    };
    let deny = |peer: &str| format!("{{action: Deny, from: [{{namespaces: {peer}}}]}}");
    let team_b = "{matchLabels: {team: b}}";
    let table = [
        ("{namespaces: {}}", deny(team_b), 1),
        ("{namespaces: {}}", deny("{}"), 2),
        ("{namespaces: {}}", deny("{matchLabels: {team: c}}"), 0),
        ("{namespaces: {matchLabels: {team: b}}}", deny("{}"), 0),
        ("{namespaces: {}}", format!("{{action: Accept, from: [{{namespaces: {{}}}}]}}, {}", deny("{}")), 0),
        ("{namespaces: {}}", format!("{{action: Pass, from: [{{namespaces: {{}}}}]}}, {}", deny("{}")), 0),
        (
            "{namespaces: {}}",
            format!(
                "{{action: Deny, from: [{{namespaces: {team_b}}}], protocols: [{{tcp: {{destinationPort: {{number: 80}}}}}}]}}"
            ),
            0,
        ),
    ];
    for (subject, rules, count) in table {
        let report = check(&[("c.yaml", CLUSTER), ("p.yaml", &policy), ("a.yaml", &admin(subject, &rules))]);
        let text = report.to_string();
        // What the Accept and the Pass leave of the Deny behind them is told of the policy itself.
        let own = text.lines().filter(|line| line.contains(": NetworkPolicy/"));
        assert_eq!(
            own.filter(|line| line.ends_with("[shadowed]")).count(),
            count,
            "{subject} {rules}: {text}"
        );
        assert!(
            count == 0 || text.contains("spec.ingress[0] of ClusterNetworkPolicy/c comes first"),
            "{text}"
        );
    }
    let nobody = admin("{namespaces: {matchLabels: {team: z}}}", &deny("{}"));
    let text = check(&[("c.yaml", CLUSTER), ("a.yaml", &nobody)]).to_string();
    assert_eq!(
        text,
        "a.yaml:1: document 1: ClusterNetworkPolicy/c: spec.subject: selects no pod [selects-no-pod]\n"
    );
    assert!(check(&[("a.yaml", &nobody)]).is_clean());
}

/// Whether a policy for shop/web with these egress rules is told to cut DNS, beside more manifests.
fn cuts_dns(more: &str, rules: &str) -> bool {
    let policy = policy(
        "shop",
        &format!("{{podSelector: {{matchLabels: {{app: db}}}}, policyTypes: [Egress], egress: [{rules}]}}"),
    );
    // No pod of this cluster serves DNS but those that are added.
    let cluster =
        CLUSTER.replace("{name: dns, containerPort: 53, protocol: UDP}", "{name: dns, containerPort: 54}");
    let report = check(&[("c.yaml", &cluster), ("d.yaml", more), ("p.yaml", &policy)]).to_string();
    assert_eq!(report.lines().filter(|line| !line.ends_with("[cuts-dns]")).count(), 0, "{report}");
    !report.is_empty()
}

const DNS: &str = r#"
apiVersion: v1
kind: List
items:
- {apiVersion: v1, kind: Namespace, metadata: {name: kube-system}}
- {apiVersion: v1, kind: Pod, metadata: {name: coredns, namespace: kube-system, labels: {k8s-app: kube-dns}}, status: {phase: Running, podIP: 10.1.9.9}}
"#;

#[test]
fn dns_is_cut_unless_a_rule_leads_to_it() {
    let port = "ports: [{port: 53, protocol: UDP}]";
    let own = "to: [{podSelector: {}}]";
    let system = "to: [{namespaceSelector: {matchLabels: {kubernetes.io/metadata.name: kube-system}}}]";
    let team = "to: [{namespaceSelector: {matchLabels: {team: b}}}]";
    // Rules, whether they cut DNS when it is known where it is, and when it is not.
    let table = [
        (format!("{{{own}}}"), true, true),
        (format!("{{{team}}}"), true, true),
        (format!("{{{own}}}, {{{port}}}"), false, false),
        (format!("{{{own}}}, {{{system}, {port}}}"), false, false),
        (format!("{{{own}}}, {{{system}}}"), false, false),
        (format!("{{{own}}}, {{{team}, {port}}}"), true, false),
        ("{to: [{namespaceSelector: {}}]}".to_owned(), false, false),
        (
            "{to: [{namespaceSelector: {}, podSelector: {matchLabels: {k8s-app: kube-dns}}}]}".to_owned(),
            false,
            false,
        ),
        ("{to: [{ipBlock: {cidr: 0.0.0.0/0}}]}".to_owned(), false, false),
        ("{to: [{ipBlock: {cidr: 192.0.2.0/24}}]}".to_owned(), true, true),
        (format!("{{to: [{{ipBlock: {{cidr: 169.254.20.10/32}}}}], {port}}}"), false, false),
        ("{}".to_owned(), false, false),
        ("{ports: [{port: 53}]}".to_owned(), true, true),
    ];
    for (rules, known, unknown) in table {
        // A selector of kube-system matches nothing where nobody declares it, which is another finding.
        assert_eq!(cuts_dns(DNS, &rules), known, "known: {rules}");
        let declared = "{apiVersion: v1, kind: Namespace, metadata: {name: kube-system}}";
        if !rules.contains("kube-dns") {
            assert_eq!(cuts_dns(declared, &rules), unknown, "unknown: {rules}");
        }
    }
}

#[test]
fn dns_is_found_by_its_service_too_with_the_port_that_it_serves() {
    let service = r#"
apiVersion: v1
kind: List
items:
- {apiVersion: v1, kind: Pod, metadata: {name: dns-0, namespace: kube-system, labels: {app: resolver}}, status: {phase: Running, podIP: 10.1.9.9}}
- {apiVersion: v1, kind: Service, metadata: {name: kube-dns, namespace: kube-system}, spec: {clusterIP: 10.96.0.10, selector: {app: resolver}, ports: [{port: 53, targetPort: 5353, protocol: UDP}]}}
"#;
    let to = "to: [{namespaceSelector: {matchLabels: {kubernetes.io/metadata.name: kube-system}}}]";
    assert!(!cuts_dns(service, &format!("{{{to}, ports: [{{port: 5353, protocol: UDP}}]}}")));
    assert!(!cuts_dns(service, &format!("{{{to}}}")));
    assert!(cuts_dns(service, "{to: [{podSelector: {}}]}"));
    // What is dialled is translated before any rule sees it.
    let block =
        |cidr: &str| format!("{{to: [{{ipBlock: {{cidr: {cidr}}}}}], ports: [{{port: 53, protocol: UDP}}]}}");
    assert!(cuts_dns(service, &block("10.96.0.10/32")) && cuts_dns(service, &block("10.96.0.0/12")));
    assert!(!cuts_dns(service, &block("169.254.20.10/32")), "a resolver of the node's");
    let unshown = service.replace(", podIP: 10.1.9.9", "");
    assert!(cuts_dns(&unshown, &block("10.96.0.10/32")));
    assert!(!cuts_dns(&unshown, &block("0.0.0.0/0")), "the servers may be in it");
    let alone = r#"{apiVersion: v1, kind: Service, metadata: {name: kube-dns, namespace: kube-system}, spec: {clusterIP: 10.96.0.10, ports: [{port: 53, protocol: UDP}]}}"#;
    assert!(cuts_dns(alone, &block("10.96.0.10/32")) && !cuts_dns(alone, &block("10.1.9.9/32")));
}

#[test]
fn what_looks_like_a_policy_and_is_none_is_found_where_it_stands() {
    let text = "# one\n---\napiVersion: example.com/v1\nkind: NetworkPolcy\nmetadata: {name: p, namespace: shop}\n---\napiVersion: cilium.io/v2\nkind: CiliumNetworkPolicy\nmetadata: {name: q}\n---\napiVersion: network.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {name: r, namespace: shop}\n";
    let report = check(&[("c.yaml", CLUSTER), ("p.yaml", text)]);
    assert_eq!(
        report.to_string(),
        "p.yaml:4: document 1: NetworkPolcy/shop/p: kind: no such kind is enforced, did you mean NetworkPolicy of networking.k8s.io/v1? [unknown-policy]\n\
         p.yaml:8: document 2: CiliumNetworkPolicy/q: kind: Cilium's own policies are not enforced [unknown-policy]\n\
         p.yaml:12: document 3: NetworkPolicy/shop/r: kind: no such kind is enforced, did you mean NetworkPolicy of networking.k8s.io/v1? [unknown-policy]\n"
    );
    let json = r#"{"kind":"List","apiVersion":"v1","items":[
{"apiVersion":"crd.projectcalico.org/v1","kind":"GlobalNetworkPolicy","metadata":{"name":"g"}}]}"#;
    let report = check(&[("c.yaml", CLUSTER), ("p.json", json)]).to_string();
    assert!(report.starts_with("p.json:2: document 1: GlobalNetworkPolicy/g: kind: Calico's"), "{report}");
}
