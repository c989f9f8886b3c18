//! Events in an order that random ones rarely have, and sizes that small clusters never reach.
#![expect(clippy::unwrap_used, reason = "a panic is the report of a failed test")]

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::Path;

use flow::{Generation, Tuple};
use policy_cache::{Cluster, Event, Object, Options};
use serde_json::{Value, json};

fn object(manifest: &Value) -> Object {
    let text = manifest.to_string();
    policy_cache::parse([(Path::new("o.json"), text.as_str())]).unwrap().into_objects().next().unwrap()
}

fn put(cluster: &mut Cluster, manifest: &Value) -> bool {
    cluster.apply(Event::Put(object(manifest)))
}

/// Pod `n` of namespace `x` has the label `app: n` and the address 10.0.0.n.
fn pod(number: u8) -> Value {
    json!({"apiVersion": "v1", "kind": "Pod",
        "metadata": {"name": format!("p{number}"), "namespace": "x", "labels": {"app": number.to_string()}},
        "spec": {"nodeName": "n"}, "status": {"phase": "Running", "podIP": ip(number).to_string()}})
}

fn ip(number: u8) -> IpAddr {
    IpAddr::V4(Ipv4Addr::new(10, 0, 0, number))
}

/// Lets each of these pods reach every pod of the namespace, on port 1000 and its number.
fn policy(name: &str, peers: impl IntoIterator<Item = u8>) -> Value {
    let rule = |number: u8| {
        let labels = json!({"matchLabels": {"app": number.to_string()}});
        json!({"from": [{"podSelector": labels}], "ports": [{"port": 1000 + u16::from(number)}]})
    };
    let rules: Vec<Value> = peers.into_iter().map(rule).collect();
    json!({"apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy",
        "metadata": {"name": name, "namespace": "x"}, "spec": {"podSelector": {}, "ingress": rules}})
}

/// Which of the pods reach pod 250, each on its own port.
fn reaching(cluster: &mut Cluster, pods: impl IntoIterator<Item = u8>) -> Vec<u8> {
    let snapshot = cluster.snapshot();
    let reaches = |number: &u8| {
        let destination = SocketAddr::new(ip(250), 1000 + u16::from(*number));
        let tuple = Tuple::tcp(SocketAddr::new(ip(*number), 40_000), destination);
        snapshot.decide(&snapshot.identify(&tuple)).verdict().is_allow()
    };
    pods.into_iter().filter(reaches).collect()
}

fn cluster(pods: impl IntoIterator<Item = u8>) -> Cluster {
    let mut cluster = Cluster::new(Options::default());
    for number in pods.into_iter().chain([250]) {
        assert!(put(&mut cluster, &pod(number)));
    }
    cluster
}

#[test]
fn a_selector_in_the_place_of_another_selects_nobody_whom_that_one_selected() {
    let mut cluster = cluster(1..6);
    for peers in [[1, 2], [3, 4], [5, 1], [2, 3], [4, 5]] {
        // On any port: whoever is taken for another then gets in.
        let mut policy = policy("p", peers);
        for rule in policy["spec"]["ingress"].as_array_mut().unwrap() {
            rule["ports"] = json!([]);
        }
        put(&mut cluster, &policy);
        let mut expected = peers.to_vec();
        expected.sort_unstable();
        assert_eq!(reaching(&mut cluster, 1..6), expected);
    }
    assert!(cluster.apply(Event::Delete(object(&policy("p", [])).key())));
    assert_eq!(reaching(&mut cluster, 1..6), [1, 2, 3, 4, 5]);
    put(&mut cluster, &policy("p", []));
    assert_eq!(reaching(&mut cluster, 1..6), [0; 0]);
}

#[test]
fn a_namespace_may_have_more_selectors_than_an_identity_has_bits() {
    let mut cluster = cluster(1..201);
    for number in (1..200).step_by(2) {
        put(&mut cluster, &policy(&format!("p{number}"), [number]));
    }
    let odd: Vec<u8> = (1..200).step_by(2).collect();
    assert_eq!(reaching(&mut cluster, 1..201), odd);
    // A pod that comes later finds all of them; one that is relabelled leaves those it was in.
    put(&mut cluster, &pod(201));
    put(&mut cluster, &policy("p201", [201]));
    let mut relabelled = pod(199);
    relabelled["metadata"]["labels"]["app"] = json!("none");
    put(&mut cluster, &relabelled);
    let expected: Vec<u8> = (1..199).step_by(2).chain([201]).collect();
    assert_eq!(reaching(&mut cluster, 1..202), expected);
    for number in (1..150).step_by(2) {
        cluster.apply(Event::Delete(object(&policy(&format!("p{number}"), [])).key()));
    }
    let expected: Vec<u8> = (151..199).step_by(2).chain([201]).collect();
    assert_eq!(reaching(&mut cluster, 1..202), expected);
}

#[test]
fn selectors_across_namespaces_match_the_same_whether_they_are_noted_in_identities_or_not() {
    let across = |name: &str, peers: std::ops::Range<u8>| {
        let mut policy = policy(name, peers);
        for rule in policy["spec"]["ingress"].as_array_mut().unwrap() {
            rule["from"][0]["namespaceSelector"] = json!({});
        }
        policy
    };
    // More selectors than are noted; none of them matches anybody.
    let mut filler = policy("filler", []);
    let nobody = |number: usize| json!({"namespaceSelector": {}, "podSelector": {"matchLabels": {"app": format!("nobody-{number}")}}});
    filler["spec"]["ingress"] = json!([{"from": (0..315).map(nobody).collect::<Vec<_>>()}]);
    let mut cluster = cluster(1..20);
    put(&mut cluster, &filler);
    put(&mut cluster, &across("a", 1..10));
    assert_eq!(reaching(&mut cluster, 1..30), (1..10).collect::<Vec<u8>>());
    // Whoever comes or changes later, and numbers that are given again.
    for number in 20..30 {
        put(&mut cluster, &pod(number));
    }
    let mut relabelled = pod(9);
    relabelled["metadata"]["labels"]["app"] = json!("nobody-0");
    put(&mut cluster, &relabelled);
    cluster.apply(Event::Delete(object(&filler).key()));
    put(&mut cluster, &across("b", 15..25));
    let expected: Vec<u8> = (1..9).chain(15..25).collect();
    assert_eq!(reaching(&mut cluster, 1..30), expected);
    cluster.apply(Event::Delete(object(&across("a", 1..2)).key()));
    put(&mut cluster, &across("c", 26..28));
    let expected: Vec<u8> = (15..25).chain(26..28).collect();
    assert_eq!(reaching(&mut cluster, 1..30), expected);
}

#[test]
fn a_policy_of_many_rules_is_read_to_its_end_and_so_is_the_one_after_it() {
    let mut cluster = cluster(1..100);
    put(&mut cluster, &policy("a", 1..60));
    put(&mut cluster, &policy("b", 70..75));
    let expected: Vec<u8> = (1..60).chain(70..75).collect();
    assert_eq!(reaching(&mut cluster, 1..100), expected);
    let snapshot = cluster.snapshot();
    let tuple = Tuple::tcp(SocketAddr::new(ip(99), 1), SocketAddr::new(ip(250), 1099));
    let denied = snapshot.decide(&snapshot.identify(&tuple));
    let policies: Vec<String> = denied.ingress.policies().iter().map(ToString::to_string).collect();
    assert_eq!(policies, ["NetworkPolicy/x/a", "NetworkPolicy/x/b"]);
    let tuple = Tuple::tcp(SocketAddr::new(ip(59), 1), SocketAddr::new(ip(250), 1059));
    let allowed = snapshot.decide(&snapshot.identify(&tuple));
    assert_eq!(allowed.ingress.policies()[0].to_string(), "NetworkPolicy/x/a#58");
}

#[test]
fn what_decides_nothing_is_no_change() {
    let mut cluster = cluster([1]);
    let mut ready = pod(1);
    ready["status"]["conditions"] = json!([{"type": "Ready", "status": "True"}]);
    assert!(!put(&mut cluster, &ready) && !put(&mut cluster, &pod(1)));
    let mut node = json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": "n", "labels": {"a": "b"}},
        "status": {"addresses": [{"type": "InternalIP", "address": "192.168.0.1"}]}});
    assert!(put(&mut cluster, &node));
    node["status"]["conditions"] = json!([{"type": "Ready", "status": "False"}]);
    assert!(!put(&mut cluster, &node));
    let done = |label: &str| {
        let mut pod = pod(2);
        pod["status"]["phase"] = json!("Succeeded");
        pod["metadata"]["labels"]["app"] = json!(label);
        pod
    };
    assert!(put(&mut cluster, &done("a")) && !put(&mut cluster, &done("b")));
    assert!(!cluster.apply(Event::Delete(object(&pod(9)).key())));
    assert!(!cluster.set_options(Options::default()));
    assert_eq!(cluster.snapshot().generation(), Generation(1));
    assert_eq!(cluster.snapshot().generation(), Generation(2));
}
