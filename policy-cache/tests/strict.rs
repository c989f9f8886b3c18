//! What the API server refuses with strict field validation is told here too: a misspelt `spec` or `namespace` must not
//! open what it was meant to close.

use std::path::Path;

use policy_cache::{Counts, LoadError, Objects, parse};

fn yaml(text: &str) -> Result<Objects, LoadError> {
    parse([(Path::new("m.yaml"), text)])
}

/// `field: message` of every problem.
fn told(text: &str) -> Vec<String> {
    let problems = yaml(text).map(|_| Vec::new()).unwrap_or_else(|error| error.problems);
    problems.iter().map(|problem| format!("{}: {}", problem.field, problem.message)).collect()
}

/// A good object of every kind that is read, with nothing but what it must have.
const KINDS: [(&str, &str, &str); 9] = [
    ("v1", "Namespace", "metadata: {name: a}"),
    ("v1", "Node", "metadata: {name: a}\nspec: {podCIDR: 10.0.0.0/24}"),
    ("v1", "Pod", "metadata: {name: a, namespace: shop}\nspec: {nodeName: n}\nstatus: {phase: Running}"),
    ("v1", "Service", "metadata: {name: a, namespace: shop}\nspec: {clusterIP: 10.1.0.1}"),
    (
        "discovery.k8s.io/v1",
        "EndpointSlice",
        "metadata: {name: a, namespace: shop}\nendpoints: []\nports: []",
    ),
    (
        "networking.k8s.io/v1",
        "NetworkPolicy",
        "metadata: {name: a, namespace: shop}\nspec: {podSelector: {}}",
    ),
    (
        "policy.networking.k8s.io/v1alpha2",
        "ClusterNetworkPolicy",
        "metadata: {name: a}\nspec: {tier: Admin, priority: 1, subject: {namespaces: {}}}",
    ),
    (
        "policy.networking.k8s.io/v1alpha1",
        "AdminNetworkPolicy",
        "metadata: {name: a}\nspec: {priority: 1, subject: {namespaces: {}}}",
    ),
    (
        "policy.networking.k8s.io/v1alpha1",
        "BaselineAdminNetworkPolicy",
        "metadata: {name: default}\nspec: {subject: {namespaces: {}}}",
    ),
];

#[test]
fn a_field_that_is_not_known_is_told_at_the_top_and_in_the_metadata_of_every_kind() {
    for (version, kind, text) in KINDS {
        let object = format!("apiVersion: {version}\nkind: {kind}\n{text}\n");
        assert_eq!(told(&object), [""; 0], "{object}");
        assert_eq!(told(&format!("{object}colour: red\n")), ["colour: unknown field"], "{kind}");
        let labels = object.replacen("{name: ", "{lables: {a: b}, name: ", 1);
        assert_eq!(told(&labels), ["metadata.lables: unknown field, did you mean labels?"], "{kind}");
        // A value that is null is a field all the same.
        let colour = object.replacen("{name: ", "{colour: ~, name: ", 1);
        assert_eq!(told(&colour), ["metadata.colour: unknown field"], "{kind}");
    }
}

#[test]
fn a_misspelt_or_misplaced_field_is_told_with_the_one_that_was_likely_meant() {
    let object = |rest: &str| format!("apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\n{rest}\n");
    let table: [(&str, &[&str]); 9] = [
        (
            "metadata: {name: p, namespace: shop}\nsepc: {podSelector: {}}",
            &["sepc: unknown field, did you mean spec?"],
        ),
        (
            "metadata: {name: p, namespce: shop}\nspec: {}",
            &["metadata.namespce: unknown field, did you mean namespace?"],
        ),
        (
            "metadata: {name: p}\nnamespace: shop\nspec: {}",
            &["namespace: unknown field, did you mean metadata.namespace?"],
        ),
        (
            "metadata: {name: p}\nspec: {podSelector: {}}\npolicyTypes: [Egress]",
            &["policyTypes: unknown field, did you mean spec.policyTypes?"],
        ),
        (
            "metadata: {name: p}\nspec: {podSelector: {}}\npolicyTypess: [Egress]",
            &["policyTypess: unknown field, did you mean spec.policyTypes?"],
        ),
        (
            "metadata: {name: p, spec: {podSelector: {}}}",
            &["metadata.spec: unknown field, did you mean spec?"],
        ),
        (
            "metadata: {name: p, podSelector: {}}\nspec: {}",
            &["metadata.podSelector: unknown field, did you mean spec.podSelector?"],
        ),
        (
            "metdata: {name: p}\nspec: {}",
            &["metadata.name: required", "metdata: unknown field, did you mean metadata?"],
        ),
        (
            "metadata: {nmae: p, namespace: shop}\nspec: {}",
            &["metadata.name: required", "metadata.nmae: unknown field, did you mean name?"],
        ),
    ];
    for (rest, expected) in table {
        assert_eq!(told(&object(rest)), expected, "{rest}");
    }
    let error = yaml(&object("metadata:\n  name: p\n  namespce: shop\nspec: {}")).unwrap_err();
    assert_eq!(
        error.to_string(),
        "m.yaml:5: document 1: NetworkPolicy/p: metadata.namespce: unknown field, did you mean namespace?"
    );
}

#[test]
fn a_misspelt_field_below_the_top_is_told_and_one_that_looks_like_none_is_not() {
    let of = |kind: &str, rest: &str| {
        let version = if kind == "EndpointSlice" { "discovery.k8s.io/v1" } else { "v1" };
        let namespace = if kind == "Node" { "" } else { ", namespace: shop" };
        format!("apiVersion: {version}\nkind: {kind}\nmetadata: {{name: a{namespace}}}\n{rest}\n")
    };
    let table = [
        ("Pod", "spec: {hostNetwrok: true}", "spec.hostNetwrok", "hostNetwork"),
        ("Pod", "spec: {nodename: n}", "spec.nodename", "nodeName"),
        ("Pod", "spec: {container: []}", "spec.container", "containers"),
        ("Pod", "spec: {containers: [{port: []}]}", "spec.containers[0].port", "ports"),
        (
            "Pod",
            "spec: {initContainers: [{restartPolcy: Always}]}",
            "spec.initContainers[0].restartPolcy",
            "restartPolicy",
        ),
        (
            "Pod",
            "spec: {containers: [{ports: [{nam: http, containerPort: 80}]}]}",
            "spec.containers[0].ports[0].nam",
            "name",
        ),
        ("Pod", "status: {podIp: 10.0.0.1}", "status.podIp", "podIP"),
        ("Pod", "status: {phse: Succeeded}", "status.phse", "phase"),
        ("Node", "spec: {podCidr: 10.0.0.0/24}", "spec.podCidr", "podCIDR"),
        ("Node", "status: {adresses: []}", "status.adresses", "addresses"),
        ("Service", "spec: {selectors: {app: a}}", "spec.selectors", "selector"),
        ("Service", "spec: {port: []}", "spec.port", "ports"),
        (
            "Service",
            "spec: {ports: [{port: 80, targetport: 8080}]}",
            "spec.ports[0].targetport",
            "targetPort",
        ),
        ("EndpointSlice", "endpoints: [{address: [10.0.0.1]}]", "endpoints[0].address", "addresses"),
        (
            "EndpointSlice",
            "endpoints: [{addresses: [10.0.0.1], conditions: {raedy: false}}]",
            "endpoints[0].conditions.raedy",
            "ready",
        ),
        ("EndpointSlice", "ports: [{prot: 80}]", "ports[0].prot", "port"),
    ];
    for (kind, rest, field, meant) in table {
        let found = told(&of(kind, rest));
        assert_eq!(found, [format!("{field}: unknown field, did you mean {meant}?")], "{rest}");
    }
    let untold = [
        (
            "Pod",
            "spec: {hostname: a, hostPID: true, hostIPC: true, nodeSelector: {}, resources: {}, fromTheFuture: 1}",
        ),
        (
            "Pod",
            "spec: {containers: [{name: c, image: i, ports: [{containerPort: 80, hostPort: 80, hostIP: 10.0.0.1}]}]}",
        ),
        (
            "Pod",
            "status: {podIP: 10.0.0.1, podIPs: [{ip: 10.0.0.1}], reason: x, resize: y, fromTheFuture: 1}",
        ),
        (
            "Service",
            "spec: {internalTrafficPolicy: Local, externalName: a.example, type: NodePort, ports: [{port: 80, appProtocol: http}]}",
        ),
        ("Node", "spec: {providerID: x, taints: []}\nstatus: {capacity: {}, images: []}"),
        (
            "EndpointSlice",
            "endpoints: [{addresses: [10.0.0.1], nodeName: n, hints: {}, zone: z, conditions: {serving: true, terminating: false}}]",
        ),
    ];
    for (kind, rest) in untold {
        assert_eq!(told(&of(kind, rest)), [""; 0], "{rest}");
    }
}

#[test]
fn a_list_is_held_to_its_fields() {
    let namespace = "{apiVersion: v1, kind: Namespace, metadata: {name: a}}";
    let list = |kind: &str, rest: &str| format!("apiVersion: v1\nkind: {kind}\n{rest}\n");
    for (kind, item) in [("List", namespace), ("NamespaceList", "{metadata: {name: a}}")] {
        assert_eq!(
            told(&list(kind, &format!("metadata: {{resourceVersion: ''}}\nitems: [{item}]"))),
            [""; 0],
            "{kind}"
        );
        assert_eq!(
            told(&list(kind, &format!("itmes: [{item}]"))),
            ["itmes: unknown field, did you mean items?"],
            "{kind}"
        );
        assert_eq!(told(&list(kind, "metadata: {}")), [""; 0], "{kind} without items is empty");
        assert_eq!(told(&list(kind, "items: ~")), [""; 0], "{kind} of null is empty");
    }
    // What decides nothing is passed over, whatever it looks like.
    assert_eq!(told("apiVersion: example.com/v1\nkind: WishList\nwishes: [a]\n"), [""; 0]);
}

/// As clusters of several versions dump them.
#[test]
fn objects_of_real_clusters_have_nothing_that_is_told() {
    let metadata = |own: &str| {
        format!(
            "metadata:
  {own}
  generateName: a-
  selfLink: /api/v1/x
  uid: 0a4e7f5c-3d0e-4a43-8d1c-3a8b1b1e8e2f
  resourceVersion: '12'
  generation: 3
  creationTimestamp: '2026-01-01T00:00:00Z'
  deletionTimestamp: '2026-01-01T00:01:00Z'
  deletionGracePeriodSeconds: 30
  clusterName: ''
  labels: {{app: a}}
  annotations: {{kubectl.kubernetes.io/last-applied-configuration: '{{}}'}}
  finalizers: [example.com/hold]
  ownerReferences: [{{apiVersion: v1, kind: Node, name: n, uid: u, controller: true, blockOwnerDeletion: true}}]
  managedFields:
  - {{manager: kubectl, operation: Apply, apiVersion: v1, time: '2026-01-01T00:00:00Z', fieldsType: FieldsV1, fieldsV1: {{'f:spec': {{}}}}, subresource: status}}
"
        )
    };
    let mut documents = Vec::new();
    for (version, kind, text) in KINDS {
        let (own, rest) = text.split_once('\n').unwrap_or((text, ""));
        let own = own.trim_start_matches("metadata: {").trim_end_matches('}').replace(", ", "\n  ");
        let status = if kind == "EndpointSlice" || kind == "Pod" { "" } else { "status: {conditions: []}\n" };
        documents.push(format!("apiVersion: {version}\nkind: {kind}\n{}{rest}\n{status}", metadata(&own)));
    }
    let text = documents.join("---\n");
    let counts = yaml(&text).unwrap_or_else(|error| panic!("{error}\n{text}")).counts();
    let expected = Counts {
        namespaces: 1,
        pods: 1,
        nodes: 1,
        services: 1,
        endpoint_slices: 1,
        network_policies: 1,
        cluster_network_policies: 1,
        admin_network_policies: 1,
        baseline_admin_network_policies: 1,
        ..Counts::default()
    };
    assert_eq!(counts, expected);
}
