//! What manifests may look like, and what is said of those that are wrong.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::mpsc;
use std::time::Duration;

use flow::{Endpoint, Generation};
use policy_cache::{Counts, LoadError, Objects, Options, Problem, compile, load, parse};

fn yaml(text: &str) -> Result<Objects, LoadError> {
    parse([(Path::new("m.yaml"), text)])
}

fn problems(text: &str) -> Vec<Problem> {
    match yaml(text) {
        Ok(_) => panic!("accepted:\n{text}"),
        Err(error) => error.problems,
    }
}

fn counts(text: &str) -> Counts {
    yaml(text).unwrap_or_else(|error| panic!("{error}\n{text}")).counts()
}

fn policy(spec: &str) -> String {
    format!(
        "apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {{name: p, namespace: shop}}\nspec: {spec}\n"
    )
}

/// Each spec has one problem: at this field, saying this.
#[test]
fn a_policy_the_api_server_refuses_is_refused_by_field() {
    let from = |peer: &str| format!("{{ingress: [{{}}, {{from: [{{podSelector: {{}}}}, {peer}]}}]}}");
    let port = |port: &str| format!("{{egress: [{{ports: [{port}]}}]}}");
    let selector = |expression: &str| format!("{{podSelector: {{matchExpressions: [{expression}]}}}}");
    let peer = "spec.ingress[1].from[1]";
    let table = [
        // ipBlock
        (from("{ipBlock: {cidr: 10.0.0.0/33}}"), format!("{peer}.ipBlock.cidr"), "must be a CIDR"),
        (from("{ipBlock: {cidr: 10.0.0.256/8}}"), format!("{peer}.ipBlock.cidr"), "must be a CIDR"),
        (from("{ipBlock: {cidr: 10.0.0.1}}"), format!("{peer}.ipBlock.cidr"), "must be a CIDR"),
        (from("{ipBlock: {cidr: 10.0.0/8}}"), format!("{peer}.ipBlock.cidr"), "must be a CIDR"),
        (from("{ipBlock: {cidr: 'fd00::/129'}}"), format!("{peer}.ipBlock.cidr"), "must be a CIDR"),
        (from("{ipBlock: {cidr: ''}}"), format!("{peer}.ipBlock.cidr"), "must be a CIDR"),
        (from("{ipBlock: {cidr: 10}}"), format!("{peer}.ipBlock.cidr"), "must be a string"),
        (from("{ipBlock: {}}"), format!("{peer}.ipBlock.cidr"), "required"),
        (from("{ipBlock: {except: [10.0.0.0/8]}}"), format!("{peer}.ipBlock.cidr"), "required"),
        (from("{ipBlock: 10.0.0.0/8}"), format!("{peer}.ipBlock"), "must be a mapping"),
        (
            from("{ipBlock: {cidr: 10.0.0.0/8, except: [11.0.0.0/16]}}"),
            format!("{peer}.ipBlock.except[0]"),
            "inside",
        ),
        (
            from("{ipBlock: {cidr: 10.0.0.0/8, except: [10.0.0.0/8]}}"),
            format!("{peer}.ipBlock.except[0]"),
            "smaller",
        ),
        (
            from("{ipBlock: {cidr: 10.0.0.0/8, except: [0.0.0.0/0]}}"),
            format!("{peer}.ipBlock.except[0]"),
            "inside",
        ),
        (
            from("{ipBlock: {cidr: 10.0.0.0/8, except: ['fd00::/16']}}"),
            format!("{peer}.ipBlock.except[0]"),
            "inside",
        ),
        (
            from("{ipBlock: {cidr: 10.0.0.0/8, except: 10.1.0.0/16}}"),
            format!("{peer}.ipBlock.except"),
            "must be a list",
        ),
        (
            from("{ipBlock: {cidr: 10.0.0.0/8, except: [x]}}"),
            format!("{peer}.ipBlock.except[0]"),
            "must be a CIDR",
        ),
        (from("{ipBlock: {cidr: 10.0.0.0/8}, podSelector: {}}"), format!("{peer}.ipBlock"), "together"),
        (from("{ipBlock: {cidr: 10.0.0.0/8}, namespaceSelector: {}}"), format!("{peer}.ipBlock"), "together"),
        // peers
        (from("{}"), peer.to_owned(), "must have"),
        (from("{podSelector: null}"), peer.to_owned(), "must have"),
        (from("null"), peer.to_owned(), "must be a mapping"),
        (from("text"), peer.to_owned(), "must be a mapping"),
        (from("{podSelectors: {}, podSelector: {}}"), format!("{peer}.podSelectors"), "unknown field"),
        ("{ingress: [{form: []}]}".to_owned(), "spec.ingress[0].form".to_owned(), "unknown field"),
        ("{ingress: [{to: []}]}".to_owned(), "spec.ingress[0].to".to_owned(), "unknown field"),
        ("{ingress: {from: []}}".to_owned(), "spec.ingress".to_owned(), "must be a list"),
        (
            "{ingress: [{from: {podSelector: {}}}]}".to_owned(),
            "spec.ingress[0].from".to_owned(),
            "must be a list",
        ),
        ("{ingres: []}".to_owned(), "spec.ingres".to_owned(), "unknown field"),
        ("text".to_owned(), "spec".to_owned(), "must be a mapping"),
        // ports
        (port("{port: 0}"), "spec.egress[0].ports[0].port".to_owned(), "between 1 and 65535"),
        (port("{port: 65536}"), "spec.egress[0].ports[0].port".to_owned(), "between 1 and 65535"),
        (port("{port: -1}"), "spec.egress[0].ports[0].port".to_owned(), "between 1 and 65535"),
        (port("{port: 80.5}"), "spec.egress[0].ports[0].port".to_owned(), "port number or a port name"),
        (port("{port: true}"), "spec.egress[0].ports[0].port".to_owned(), "port number or a port name"),
        (port("{port: '80'}"), "spec.egress[0].ports[0].port".to_owned(), "must be a port name"),
        (port("{port: HTTP}"), "spec.egress[0].ports[0].port".to_owned(), "must be a port name"),
        (port("{port: ''}"), "spec.egress[0].ports[0].port".to_owned(), "must be a port name"),
        (port("{port: 80, endPort: 79}"), "spec.egress[0].ports[0].endPort".to_owned(), "lower than port 80"),
        (
            port("{port: 80, endPort: 65536}"),
            "spec.egress[0].ports[0].endPort".to_owned(),
            "between 1 and 65535",
        ),
        (port("{port: http, endPort: 90}"), "spec.egress[0].ports[0].endPort".to_owned(), "named port"),
        (port("{endPort: 90}"), "spec.egress[0].ports[0].endPort".to_owned(), "without a port"),
        (
            port("{port: 80, endPort: '90'}"),
            "spec.egress[0].ports[0].endPort".to_owned(),
            "must be an integer",
        ),
        (port("{protocol: tcp}"), "spec.egress[0].ports[0].protocol".to_owned(), "TCP, UDP or SCTP"),
        (port("{protocol: ICMP}"), "spec.egress[0].ports[0].protocol".to_owned(), "TCP, UDP or SCTP"),
        (port("{protocol: ''}"), "spec.egress[0].ports[0].protocol".to_owned(), "TCP, UDP or SCTP"),
        (port("{protocol: 6}"), "spec.egress[0].ports[0].protocol".to_owned(), "must be a string"),
        (port("80"), "spec.egress[0].ports[0]".to_owned(), "must be a mapping"),
        // policyTypes
        ("{policyTypes: [ingress]}".to_owned(), "spec.policyTypes[0]".to_owned(), "Ingress or Egress"),
        ("{policyTypes: [Ingress, Both]}".to_owned(), "spec.policyTypes[1]".to_owned(), "Ingress or Egress"),
        ("{policyTypes: Ingress}".to_owned(), "spec.policyTypes".to_owned(), "must be a list"),
        ("{policyTypes: [1]}".to_owned(), "spec.policyTypes[0]".to_owned(), "must be a string"),
        (
            "{policyTypes: [Ingress, Egress, Egress]}".to_owned(),
            "spec.policyTypes".to_owned(),
            "more than two",
        ),
        // selectors
        (
            selector("{key: a, operator: Is}"),
            "spec.podSelector.matchExpressions[0].operator".to_owned(),
            "must be In",
        ),
        (
            selector("{key: a, operator: in, values: [b]}"),
            "spec.podSelector.matchExpressions[0].operator".to_owned(),
            "must be In",
        ),
        (selector("{key: a}"), "spec.podSelector.matchExpressions[0].operator".to_owned(), "required"),
        (selector("{operator: Exists}"), "spec.podSelector.matchExpressions[0].key".to_owned(), "required"),
        (
            selector("{key: a, operator: In}"),
            "spec.podSelector.matchExpressions[0]".to_owned(),
            "need values",
        ),
        (
            selector("{key: a, operator: In, values: []}"),
            "spec.podSelector.matchExpressions[0].values".to_owned(),
            "need values",
        ),
        (
            selector("{key: a, operator: NotIn, values: null}"),
            "spec.podSelector.matchExpressions[0]".to_owned(),
            "need values",
        ),
        (
            selector("{key: a, operator: Exists, values: [b]}"),
            "spec.podSelector.matchExpressions[0].values".to_owned(),
            "no values",
        ),
        (
            selector("{key: a, operator: DoesNotExist, values: [b]}"),
            "spec.podSelector.matchExpressions[0].values".to_owned(),
            "no values",
        ),
        (
            selector("{key: a, operator: In, values: b}"),
            "spec.podSelector.matchExpressions[0].values".to_owned(),
            "must be a list",
        ),
        (
            selector("{key: -a, operator: Exists}"),
            "spec.podSelector.matchExpressions[0].key".to_owned(),
            "invalid label key",
        ),
        (
            selector("{key: a, operator: In, values: [b c]}"),
            "spec.podSelector.matchExpressions[0].values[0]".to_owned(),
            "invalid label value",
        ),
        (
            selector("{key: a, operator: In, values: [7]}"),
            "spec.podSelector.matchExpressions[0].values[0]".to_owned(),
            "must be a string",
        ),
        (
            "{podSelector: {matchLabels: {a/b/c: d}}}".to_owned(),
            "spec.podSelector.matchLabels[a/b/c]".to_owned(),
            "invalid label key",
        ),
        (
            "{podSelector: {matchLabels: {a: 'b!'}}}".to_owned(),
            "spec.podSelector.matchLabels.a".to_owned(),
            "invalid label value",
        ),
        (
            "{podSelector: {matchLabels: {a: 1}}}".to_owned(),
            "spec.podSelector.matchLabels.a".to_owned(),
            "must be a string",
        ),
        (
            "{podSelector: {matchLabels: {a: yes}}}".to_owned(),
            "spec.podSelector.matchLabels.a".to_owned(),
            "must be a string",
        ),
        (
            "{podSelector: {matchLabels: [a]}}".to_owned(),
            "spec.podSelector.matchLabels".to_owned(),
            "must be a mapping",
        ),
        (
            "{podSelector: {matchLabel: {a: b}}}".to_owned(),
            "spec.podSelector.matchLabel".to_owned(),
            "unknown field",
        ),
        ("{podSelector: []}".to_owned(), "spec.podSelector".to_owned(), "must be a mapping"),
    ];
    for (spec, field, message) in table {
        let found = problems(&policy(&spec));
        assert_eq!(found.len(), 1, "{spec}: {found:?}");
        assert_eq!(
            (found[0].field.as_str(), found[0].object.as_str()),
            (field.as_str(), "NetworkPolicy/shop/p"),
            "{spec}"
        );
        assert!(found[0].message.contains(message), "{spec}: {}", found[0]);
    }
}

/// Each manifest has one problem: in this object, at this field, saying this.
#[test]
fn objects_the_api_server_refuses_are_refused_by_field() {
    let pod =
        |status: &str| format!("{{apiVersion: v1, kind: Pod, metadata: {{name: a}}, status: {status}}}");
    let spec = |spec: &str| format!("{{apiVersion: v1, kind: Pod, metadata: {{name: a}}, spec: {spec}}}");
    let node = |spec: &str| format!("{{apiVersion: v1, kind: Node, metadata: {{name: a}}, spec: {spec}}}");
    let container = |port: &str| spec(&format!("{{containers: [{{name: c, ports: [{port}]}}]}}"));
    let service =
        |spec: &str| format!("{{apiVersion: v1, kind: Service, metadata: {{name: a}}, spec: {spec}}}");
    let port = "spec.containers[0].ports[0]";
    let table = [
        (pod("{podIP: 10.0.0}"), "Pod/default/a", "status.podIP".to_owned(), "IP address"),
        (
            pod("{podIPs: [{ip: 10.0.0.1}, {ip: 'fd00::g'}]}"),
            "Pod/default/a",
            "status.podIPs[1].ip".to_owned(),
            "IP address",
        ),
        (pod("{podIPs: [10.0.0.1]}"), "Pod/default/a", "status.podIPs[0]".to_owned(), "must be a mapping"),
        (pod("{podIP: 10}"), "Pod/default/a", "status.podIP".to_owned(), "must be a string"),
        (pod("{hostIP: host}"), "Pod/default/a", "status.hostIP".to_owned(), "IP address"),
        (pod("[]"), "Pod/default/a", "status".to_owned(), "must be a mapping"),
        (spec("{hostNetwork: 'true'}"), "Pod/default/a", "spec.hostNetwork".to_owned(), "true or false"),
        (spec("{nodeName: 1}"), "Pod/default/a", "spec.nodeName".to_owned(), "must be a string"),
        (spec("{containers: {}}"), "Pod/default/a", "spec.containers".to_owned(), "must be a list"),
        (
            container("{containerPort: 0}"),
            "Pod/default/a",
            format!("{port}.containerPort"),
            "between 1 and 65535",
        ),
        (container("{name: http}"), "Pod/default/a", format!("{port}.containerPort"), "required"),
        (container("{containerPort: 80, name: Http}"), "Pod/default/a", format!("{port}.name"), "port name"),
        (
            container("{containerPort: 80, protocol: HTTP}"),
            "Pod/default/a",
            format!("{port}.protocol"),
            "TCP, UDP or SCTP",
        ),
        (node("{podCIDR: 10.0.0.0}"), "Node/a", "spec.podCIDR".to_owned(), "must be a CIDR"),
        (node("{podCIDRs: [10.0.0.0/8, x]}"), "Node/a", "spec.podCIDRs[1]".to_owned(), "must be a CIDR"),
        (service("{clusterIP: x}"), "Service/default/a", "spec.clusterIP".to_owned(), "IP address"),
        (
            service("{ports: [{port: 99999}]}"),
            "Service/default/a",
            "spec.ports[0].port".to_owned(),
            "between 1 and 65535",
        ),
        (
            "{apiVersion: v1, kind: Pod, metadata: {}}".to_owned(),
            "Pod/default/",
            "metadata.name".to_owned(),
            "required",
        ),
        ("{apiVersion: v1, kind: Pod}".to_owned(), "Pod", "metadata.name".to_owned(), "required"),
        (
            "{apiVersion: v1, kind: Pod, metadata: {name: A_b}}".to_owned(),
            "Pod/default/A_b",
            "metadata.name".to_owned(),
            "DNS name",
        ),
        (
            "{apiVersion: v1, kind: Pod, metadata: {name: 7}}".to_owned(),
            "Pod/default/",
            "metadata.name".to_owned(),
            "must be a string",
        ),
        (
            "{apiVersion: v1, kind: Pod, metadata: {name: a, namespace: a.b}}".to_owned(),
            "Pod",
            "metadata.namespace".to_owned(),
            "DNS label",
        ),
        (
            "{apiVersion: v1, kind: Pod, metadata: {name: a, labels: {a: [b]}}}".to_owned(),
            "Pod/default/a",
            "metadata.labels.a".to_owned(),
            "must be a string",
        ),
        (
            "{apiVersion: v1, kind: Pod, metadata: {name: a, labels: [b]}}".to_owned(),
            "Pod/default/a",
            "metadata.labels".to_owned(),
            "must be a mapping",
        ),
        (
            "{apiVersion: v1, kind: Namespace, metadata: {name: a, labels: {a: 'x y'}}}".to_owned(),
            "Namespace/a",
            "metadata.labels.a".to_owned(),
            "invalid label value",
        ),
        ("{kind: Pod, metadata: {name: a}}".to_owned(), "", "apiVersion".to_owned(), "required"),
        ("{apiVersion: v1, metadata: {name: a}}".to_owned(), "", "kind".to_owned(), "required"),
        (
            "{apiVersion: networking.k8s.io/v1beta1, kind: NetworkPolicy, metadata: {name: a}}".to_owned(),
            "NetworkPolicy",
            "apiVersion".to_owned(),
            "must be networking.k8s.io/v1",
        ),
        (
            "{apiVersion: extensions/v1beta1, kind: NetworkPolicy, metadata: {name: a}}".to_owned(),
            "NetworkPolicy",
            "apiVersion".to_owned(),
            "must be networking.k8s.io/v1",
        ),
        ("[1]".to_owned(), "", String::new(), "must be a Kubernetes object"),
        ("{apiVersion: v1, kind: List, items: {}}".to_owned(), "", "items".to_owned(), "must be a list"),
        (
            "{apiVersion: v1, kind: List, items: [7]}".to_owned(),
            "",
            "items[0]".to_owned(),
            "must be a Kubernetes object",
        ),
    ];
    for (text, object, field, message) in table {
        let found = problems(&text);
        assert_eq!(found.len(), 1, "{text}: {found:?}");
        assert_eq!((found[0].object.as_str(), found[0].field.as_str()), (object, field.as_str()), "{text}");
        assert!(found[0].message.contains(message), "{text}: {}", found[0]);
    }
}

#[test]
fn all_problems_of_all_documents_are_listed_with_their_lines() {
    let text = "# a comment\n---\napiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata:\n  name: one\nspec:\n  policyTypes:\n  - Wrong\n  ingress:\n  - from:\n    - ipBlock:\n        cidr: 300.0.0.0/8\n---\n---\na: [\n--- # third\napiVersion: v1\nkind: Pod\nmetadata: {name: two}\nstatus:\n  podIP: nine\n";
    let found = problems(text);
    let summary: Vec<_> =
        found.iter().map(|p| (p.document, p.line, p.field.as_str(), p.value.as_str())).collect();
    // In the order of the lines, whichever field is read first.
    assert_eq!(summary[0], (1, Some(9), "spec.policyTypes[0]", "\"Wrong\""));
    assert_eq!(summary[1], (1, Some(13), "spec.ingress[0].from[0].ipBlock.cidr", "\"300.0.0.0/8\""));
    assert_eq!((summary[2].0, summary[2].2), (3, ""));
    assert!(summary[2].1.is_some_and(|line| (15..=17).contains(&line)), "{:?}", found[2]);
    assert_eq!(summary[3], (4, Some(22), "status.podIP", "\"nine\""));
    assert_eq!(
        found[1].to_string(),
        "m.yaml:13: document 1: NetworkPolicy/default/one: spec.ingress[0].from[0].ipBlock.cidr: must be a CIDR such as 10.0.0.0/8 or fd00::/64 (got \"300.0.0.0/8\")"
    );
    let printed = LoadError { problems: found }.to_string();
    assert_eq!(printed.lines().count(), 4);
}

#[test]
fn problems_in_json_have_lines_too() {
    let text = "{\n \"apiVersion\": \"v1\",\n \"kind\": \"Pod\",\n \"metadata\": {\"name\": \"a\"},\n \"status\": {\"podIP\": 7}\n}\n";
    let error = parse([(Path::new("m.json"), text)]).unwrap_err();
    assert_eq!((error.problems[0].line, error.problems[0].field.as_str()), (Some(5), "status.podIP"));
}

#[test]
fn one_bad_object_refuses_the_whole_set() {
    let good = "{apiVersion: v1, kind: Namespace, metadata: {name: a}}\n---\n";
    assert!(yaml(good).is_ok());
    assert_eq!(problems(&format!("{good}{}", policy("{ingress: [{from: [{}]}]}"))).len(), 1);
}

#[test]
fn duplicate_objects_are_refused_and_both_places_named() {
    let text = "{apiVersion: v1, kind: Pod, metadata: {name: a}}\n---\n{apiVersion: v1, kind: Pod, metadata: {name: a, namespace: default}}";
    let found = problems(text);
    assert_eq!((found.len(), found[0].document, found[0].object.as_str()), (1, 2, "Pod/default/a"));
    assert!(found[0].message.contains("m.yaml, document 1"), "{}", found[0]);
    assert_eq!(found[0].line, Some(3));
    let apart = text.replace("namespace: default", "namespace: other");
    assert_eq!(counts(&apart).pods, 2);
}

#[test]
fn duplicate_keys_are_refused() {
    assert_eq!(problems(&policy("{podSelector: {}, podSelector: {matchLabels: {a: b}}}")).len(), 1);
    let json = r#"{"apiVersion":"v1","kind":"Pod","kind":"Node","metadata":{"name":"a"}}"#;
    assert!(parse([(Path::new("a.json"), json)]).is_err());
}

#[test]
fn kinds_that_decide_nothing_are_counted_and_passed_over() {
    let text = "{apiVersion: v1, kind: ConfigMap, data: {a: [1]}}\n---\n{apiVersion: apps/v1, kind: Deployment}\n---\n{apiVersion: v1, kind: ConfigMap}\n---\n{apiVersion: crd.projectcalico.org/v1, kind: NetworkPolicy, spec: {order: 1}}";
    let skipped = counts(text).skipped;
    let expected =
        [("v1/ConfigMap", 2), ("apps/v1/Deployment", 1), ("crd.projectcalico.org/v1/NetworkPolicy", 1)];
    assert_eq!(skipped, expected.map(|(kind, count)| (kind.to_owned(), count)).into());
}

#[test]
fn lists_may_nest_and_typed_lists_imply_the_kind_of_their_items() {
    let text = r#"
apiVersion: v1
kind: List
items:
- {apiVersion: v1, kind: Namespace, metadata: {name: a}}
- apiVersion: v1
  kind: List
  items:
  - {apiVersion: v1, kind: Pod, metadata: {name: b}}
- {apiVersion: v1, kind: PodList, items: [{metadata: {name: c}}, {metadata: {name: d}}]}
- {apiVersion: networking.k8s.io/v1, kind: NetworkPolicyList, items: [{metadata: {name: e}}]}
- {apiVersion: v1, kind: List, items: []}
- {apiVersion: v1, kind: List, items: null}
"#;
    let counts = counts(text);
    assert_eq!((counts.namespaces, counts.pods, counts.network_policies), (1, 3, 1));
}

#[test]
fn documents_may_be_empty_and_markers_may_carry_comments() {
    let pod = |name: &str| format!("apiVersion: v1\nkind: Pod\nmetadata: {{name: {name}}}\n");
    let text = format!(
        "\u{feff}---\n# nothing\n---\n{}--- # here\n{}...\n---\n\n---\r\n{}",
        pod("a"),
        pod("b"),
        pod("c")
    );
    assert_eq!(counts(&text).pods, 3);
    assert_eq!(counts("").pods, 0);
    assert_eq!(counts("---\n").pods, 0);
}

#[test]
fn document_markers_inside_a_block_of_text_are_text() {
    let text = "apiVersion: v1\nkind: ConfigMap\ndata:\n  a: |\n    ---\n    b: c\n---\napiVersion: v1\nkind: Pod\nmetadata: {name: a}\n";
    assert_eq!((counts(text).pods, counts(text).skipped.len()), (1, 1));
}

#[test]
fn a_lone_y_is_a_name_and_yes_is_a_boolean() {
    let pod = |name: &str, value: &str| {
        format!("apiVersion: v1\nkind: Pod\nmetadata: {{name: {name}, labels: {{a: {value}}}}}\n")
    };
    assert_eq!(counts(&pod("y", "n")).pods, 1);
    assert_eq!(counts(&pod("y", "'yes'")).pods, 1);
    for value in ["yes", "true", "off", "1", "1.5", "0x1F"] {
        assert_eq!(problems(&pod("y", value)).len(), 1, "{value}");
    }
}

#[test]
fn alias_bombs_and_deep_nesting_are_refused() {
    let mut bomb = String::from("a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n");
    for level in 1..12 {
        let before = format!("*a{}", level - 1);
        bomb.push_str(&format!("a{level}: &a{level} [{}]\n", vec![before; 10].join(", ")));
    }
    assert!(!problems(&bomb).is_empty());
    let deep = format!("a: {}{}", "[".repeat(5000), "]".repeat(5000));
    assert!(!problems(&deep).is_empty());
    let deep = format!("{{\"a\":{}{}}}", "[".repeat(5000), "]".repeat(5000));
    assert!(parse([(Path::new("a.json"), deep.as_str())]).is_err());
    let mut lists = "{apiVersion: v1, kind: Pod, metadata: {name: a}}".to_owned();
    for _ in 0..20 {
        lists = format!("{{apiVersion: v1, kind: List, items: [{lists}]}}");
    }
    assert!(!problems(&lists).is_empty());
}

#[test]
fn anchors_work_as_in_any_yaml() {
    let text = "apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {name: a}\nspec:\n  podSelector: &web {matchLabels: {app: web}}\n  ingress: [{from: [{podSelector: *web}]}]\n";
    assert_eq!(counts(text).network_policies, 1);
}

#[test]
fn an_absent_pod_address_is_no_problem() {
    for status in ["{}", "{podIP: ''}", "{podIP: null, podIPs: []}", "{podIPs: null}"] {
        let text = format!("{{apiVersion: v1, kind: Pod, metadata: {{name: a}}, status: {status}}}");
        assert_eq!(counts(&text).pods, 1, "{status}");
    }
}

#[test]
fn folders_are_read_with_their_subfolders_and_each_file_once() {
    let folder = tempfile::tempdir().unwrap();
    let root = folder.path();
    let pod = |name: &str| {
        format!("apiVersion: v1\nkind: Pod\nmetadata: {{name: {name}}}\nstatus: {{podIP: 10.0.0.1}}\n")
    };
    fs::create_dir_all(root.join("sub/deep")).unwrap();
    fs::write(root.join("a.yaml"), pod("a")).unwrap();
    fs::write(root.join("sub/b.yml"), pod("b")).unwrap();
    let json = r#"{"apiVersion":"v1","kind":"Pod","metadata":{"name":"c"}}"#;
    fs::write(root.join("sub/deep/c.json"), format!("{json}\n{}", json.replace("\"c\"", "\"d\""))).unwrap();
    fs::write(root.join("README.md"), "not a manifest: [").unwrap();
    fs::write(root.join(".hidden.yaml"), "not a manifest: [").unwrap();
    symlink(root, root.join("sub/loop")).unwrap();
    symlink(root.join("a.yaml"), root.join("again.yaml")).unwrap();
    let paths = [root.to_owned(), root.join("a.yaml"), root.join("sub")];
    assert_eq!(load(&paths).unwrap().counts().pods, 4);

    let named = root.join("policies.txt");
    fs::write(&named, pod("e")).unwrap();
    assert_eq!(load(&[named]).unwrap().counts().pods, 1);
}

#[test]
fn the_order_of_files_decides_nothing() {
    let pod = |name: &str| format!("{{apiVersion: v1, kind: Pod, metadata: {{name: {name}}}}}");
    let (a, b) = (pod("a"), pod("b"));
    let forth = parse([(Path::new("1.yaml"), a.as_str()), (Path::new("2.yaml"), b.as_str())]).unwrap();
    let back = parse([(Path::new("1.yaml"), b.as_str()), (Path::new("2.yaml"), a.as_str())]).unwrap();
    assert_eq!(forth, back);
}

#[test]
fn unreadable_paths_are_problems_beside_the_others() {
    let folder = tempfile::tempdir().unwrap();
    let bad = folder.path().join("bad.yaml");
    fs::write(&bad, policy("{policyTypes: [Wrong]}")).unwrap();
    let binary = folder.path().join("binary.yaml");
    fs::write(&binary, [0xff, 0xfe, 0x00]).unwrap();
    let missing = PathBuf::from("/nonexistent/manifests");
    let error = load(&[missing.clone(), folder.path().to_owned()]).unwrap_err();
    let files: Vec<&Path> = error.problems.iter().map(|problem| problem.file.as_path()).collect();
    assert_eq!(files, [missing.as_path(), &bad, &binary]);
}

#[test]
fn an_object_without_a_usable_name_has_its_other_problems_told_too() {
    let places = |metadata: &str| -> Vec<(String, String)> {
        let text = format!(
            "apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {metadata}\n\
             spec: {{policyTypes: [Both], ingress: [{{form: []}}]}}\n"
        );
        problems(&text).into_iter().map(|problem| (problem.object, problem.field)).collect()
    };
    let table: [(&str, &str, &[&str]); 5] = [
        ("{namespace: shop}", "NetworkPolicy/shop/", &["metadata.name"]),
        ("{name: A_b, namespace: shop}", "NetworkPolicy/shop/A_b", &["metadata.name"]),
        ("{name: a, namespace: A_b}", "NetworkPolicy/a", &["metadata.namespace"]),
        ("{name: A_b, namespace: A_b}", "NetworkPolicy/A_b", &["metadata.namespace", "metadata.name"]),
        ("null", "NetworkPolicy", &["metadata.name"]),
    ];
    for (metadata, object, fields) in table {
        let found = places(metadata);
        let seen: Vec<&str> = found.iter().map(|(_, field)| field.as_str()).collect();
        let rest = ["spec.policyTypes[0]", "spec.ingress[0].form"];
        let mut expected = [fields, &rest].concat();
        let mut sorted = seen.clone();
        expected.sort_unstable();
        sorted.sort_unstable();
        assert_eq!(sorted, expected, "{metadata}");
        assert_eq!(found.last().map(|(of, _)| of.as_str()), Some(object), "{metadata}");
    }
    // Two of them are not one object declared twice.
    let nameless = "{apiVersion: v1, kind: Pod}";
    assert_eq!(problems(&format!("{nameless}\n---\n{nameless}\n")).len(), 2);
}

#[test]
fn what_was_passed_over_and_phases_nobody_knows_are_noted() {
    let pod = |name: &str, phase: &str| {
        format!(
            "{{apiVersion: v1, kind: Pod, metadata: {{name: {name}}}, status: {{phase: {phase}}}}}\n---\n"
        )
    };
    let known: String = ["Pending", "Running", "Succeeded", "Failed", "Unknown", "null"]
        .iter()
        .zip(["a", "b", "c", "d", "e", "f"])
        .map(|(phase, name)| pod(name, phase))
        .collect();
    assert_eq!(yaml(&known).unwrap().notes(), [""; 0]);
    let other = "{apiVersion: v1, kind: ConfigMap}\n---\n{apiVersion: apps/v1, kind: Deployment}\n---\n";
    let objects = yaml(&format!("{known}{}{}{other}{other}", pod("g", "running"), pod("h", "Done"))).unwrap();
    assert_eq!(
        objects.notes(),
        [
            "passed over, for they decide nothing: 2 apps/v1/Deployment, 2 v1/ConfigMap",
            "pods with a status.phase that does not exist, taken as not running, 2 of them: default/g, default/h",
        ]
    );
}

fn mkfifo(path: &Path) {
    assert!(Command::new("mkfifo").arg(path).status().is_ok_and(|status| status.success()));
}

/// [`load`], given up after a while: reading what nobody writes to would take for ever.
fn load_in_time(paths: &[PathBuf]) -> Result<Objects, LoadError> {
    let (sender, receiver) = mpsc::channel();
    let paths = paths.to_vec();
    std::thread::spawn(move || {
        let _ = sender.send(load(&paths));
    });
    receiver.recv_timeout(Duration::from_secs(5)).expect("still reading")
}

#[test]
fn what_is_no_regular_file_is_refused_by_name_and_not_waited_for() {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("a.yaml"), policy("{}")).unwrap();
    let fifo = folder.path().join("pipe.yaml");
    mkfifo(&fifo);
    let link = folder.path().join("z.yaml");
    symlink("/dev/zero", &link).unwrap();
    let _socket = std::os::unix::net::UnixListener::bind(folder.path().join("socket.yaml")).unwrap();
    fs::write(folder.path().join("README.md"), "no manifest").unwrap();
    mkfifo(&folder.path().join("control"));

    let found = |paths: &[PathBuf]| -> Vec<(PathBuf, String)> {
        let problems = load_in_time(paths).unwrap_err().problems;
        problems.into_iter().map(|problem| (problem.file, problem.message)).collect()
    };
    let refused = |path: &Path, kind: &str| (path.to_owned(), format!("must be a regular file, is {kind}"));
    let socket = refused(&folder.path().join("socket.yaml"), "a socket");
    assert_eq!(found(std::slice::from_ref(&fifo)), [refused(&fifo, "a FIFO")]);
    assert_eq!(found(&["/dev/zero".into()]), [refused(Path::new("/dev/zero"), "a device")]);
    assert_eq!(
        found(&[folder.path().to_owned()]),
        [refused(&fifo, "a FIFO"), socket, refused(&link, "a device")]
    );
}

#[test]
fn long_values_and_line_breaks_do_not_spoil_the_report() {
    let found = problems(&policy(&format!("{{policyTypes: [\"a\\nb{}\"]}}", "x".repeat(10_000))));
    let line = found[0].to_string();
    assert!(line.len() < 400 && !line.contains('\n'), "{line}");
}

#[test]
fn a_pod_without_a_namespace_is_in_default() {
    let text = "{apiVersion: v1, kind: Pod, metadata: {name: a}, status: {podIP: 10.0.0.1}}";
    let snapshot = compile(&yaml(text).unwrap(), &Options::default(), Generation(1));
    let Endpoint::Pod(pod) = snapshot.endpoint("10.0.0.1".parse().unwrap()) else { panic!() };
    assert_eq!(&*pod.namespace, "default");
}

#[test]
fn what_is_no_yaml_is_told_once_with_its_place_and_in_plain_words() {
    let bomb = {
        let mut text = "a: &a [x,x,x,x,x,x,x,x,x,x]\n".to_owned();
        for (name, before) in ["b", "c", "d", "e", "f"].into_iter().zip(["a", "b", "c", "d", "e"]) {
            text += &format!("{name}: &{name} [{}]\n", vec![format!("*{before}"); 10].join(","));
        }
        text
    };
    let table = [
        ("kind: Pod\nmetadata: {name: a, name: b}\n", 2, "the key name stands twice in one mapping"),
        (bomb.as_str(), 5, "aliases (*name) repeat more than 100000 values, too many to be meant"),
        ("a: *none\n", 1, "an alias (*name) names no anchor (&name) before it"),
        ("a: 1\nb: {{ .Values.x }}\n", 2, "a key must be a word (a template has to be rendered first)"),
        ("a:\n- [1\n", 2, "unclosed bracket '['"),
    ];
    for (text, line, message) in table {
        let found = problems(text);
        assert_eq!(
            (found.len(), found[0].line, found[0].message.as_str()),
            (1, Some(line), message),
            "{text}"
        );
    }
    let error = parse([(Path::new("m.json"), "{\n\"a\": 1,\n}")]).unwrap_err();
    assert_eq!(error.to_string(), "m.json:3: document 1: trailing comma");
}

#[test]
fn an_unknown_field_is_told_with_the_one_that_was_likely_meant() {
    let found = problems(&policy("{ingres: [], podselector: {}, description: none}"));
    let told: Vec<String> = found.iter().map(ToString::to_string).collect();
    for (line, end) in told.iter().zip([
        "spec.ingres: unknown field, did you mean ingress?",
        "spec.podselector: unknown field, did you mean podSelector?",
        "spec.description: unknown field",
    ]) {
        assert!(line.ends_with(end), "{line}");
    }
    // One that stands there already was not meant again.
    let found = problems(&policy("{ingress: [], ingres: []}"));
    assert_eq!(found[0].message, "unknown field");
}

#[test]
fn problems_are_listed_up_to_a_thousand_and_counted_beyond() {
    let rules = "{ports: [{port: 80.0}]}, ".repeat(1_500);
    let found = problems(&policy(&format!("{{ingress: [{rules}]}}")));
    assert_eq!(found.len(), 1_001);
    assert!(
        found[999].to_string().ends_with("must be a port number or a port name (got 80.0)"),
        "{}",
        found[999]
    );
    assert_eq!(found[1_000].to_string(), "and 500 more problems");
}

#[test]
fn a_kind_that_no_api_server_has_is_refused_when_a_known_one_was_meant() {
    let text = "apiVersion: networking.k8s.io/v1\nkind: NetworkPolcy\nmetadata: {name: p}\n---\n\
                apiVersion: v1\nkind: NetworkPolicy\nmetadata: {name: p}\n---\n\
                apiVersion: v1\nkind: PodList\nitems: [{kind: pod, metadata: {name: p}}]\n";
    let told: Vec<String> = problems(text).iter().map(ToString::to_string).collect();
    let meant = "kind: no such kind, did you mean";
    assert_eq!(
        told,
        [
            format!(
                "m.yaml:2: document 1: {meant} NetworkPolicy of networking.k8s.io/v1? (got \"NetworkPolcy\")"
            ),
            format!(
                "m.yaml:6: document 2: {meant} NetworkPolicy of networking.k8s.io/v1? (got \"NetworkPolicy\")"
            ),
            format!("m.yaml:11: document 3: items[0].{meant} Pod of v1? (got \"pod\")"),
        ]
    );
}

#[test]
fn a_folder_without_manifests_is_told_and_so_is_what_was_passed_over() {
    let folder = tempfile::tempdir().unwrap();
    let place = folder.path().display();
    let told = || load(&[folder.path().to_owned()]).map(|_| ()).unwrap_err().to_string();
    assert_eq!(told(), format!("no manifests in {place}"));
    fs::write(folder.path().join("empty.yaml"), "# nothing\n").unwrap();
    assert_eq!(told(), format!("no manifests in {place}"));
    fs::write(folder.path().join("web.yaml.txt"), "kind: [").unwrap();
    let others = format!("passed over, for they end in neither .yaml, .yml nor .json: {place}/web.yaml.txt");
    assert_eq!(told(), format!("no manifests in {place}; {others}"));
    fs::write(folder.path().join("a.yaml"), "{apiVersion: v1, kind: Namespace, metadata: {name: a}}")
        .unwrap();
    fs::write(folder.path().join("README.md"), "").unwrap();
    assert_eq!(load(&[folder.path().to_owned()]).unwrap().notes(), [others]);
    let both = [folder.path().to_owned(), folder.path().join("web.yaml.txt")];
    assert!(load(&both).unwrap_err().to_string().contains("web.yaml.txt:1"), "a file given by name is read");
}
