//! Objects that no API server takes, and some that it takes and nobody expects. Each is told by name or understood,
//! none opens anything, and the others are followed on.

use std::time::Duration;

use apiserver::ApiServer;
use apiserver::objects::{admin_deny, deny, namespace, pod, policy};
use policy_cache::ApiConfig;
use serde_json::{Value, json};

use crate::scene::{CLIENT, DB, Scene, WEB, config};

fn with(mut object: Value, path: &str, value: Value) -> Value {
    *object.pointer_mut(path).unwrap_or_else(|| panic!("{path} in the object")) = value;
    object
}

fn labelled(name: &str, labels: Value) -> Value {
    with(pod("other", name, "10.0.8.1"), "/metadata/labels", labels)
}

/// Both ways of listing, and everything that is put in before and after the first list.
fn in_every_way(objects: &[Value], check: impl Fn(&Scene)) {
    let put = |server: &ApiServer| {
        for object in objects {
            server.put(object.clone());
        }
    };
    for streaming_lists in [true, false] {
        let config = ApiConfig { streaming_lists, ..config() };
        let listed = Scene::with(config.clone(), |server| {
            server.put(deny("web", "web"));
            put(server);
        });
        let watched = Scene::with(config, |server| {
            server.put(deny("web", "web"));
        });
        put(&watched.server);
        for scene in [listed, watched] {
            scene.settle();
            assert!(!scene.allows(CLIENT, WEB) && scene.knows("10.0.0.1") && scene.knows("10.0.0.3"));
            check(&scene);
        }
    }
}

#[test]
fn pods_with_absurd_labels_are_told_by_name_and_stay_unknown() {
    let long = "x".repeat(1 << 20);
    let objects = [
        labelled("value", json!({ "app": long })),
        labelled("key", json!({ long.as_str(): "v" })),
        labelled("space", json!({ "app": " " })),
        labelled("list", json!(["app"])),
    ];
    in_every_way(&objects, |scene| {
        let rejected = scene.rejected();
        for name in ["key", "list", "space", "value"] {
            assert!(rejected.contains(&format!("Pod/other/{name}")), "{name}: {rejected:?}");
        }
        assert!(!scene.knows("10.0.8.1"), "whose labels they are cannot be told");
        // A line of the log for a person, not the megabyte.
        for (key, lines) in scene.status().rejected {
            assert!(lines.iter().all(|line| line.len() < 2_000), "{key}: {} bytes", lines[0].len());
        }
    });
}

#[test]
fn names_that_are_none_are_told_and_their_policies_close_what_they_may_have_meant() {
    let long = "n".repeat(100_000);
    for name in ["A B", "../../etc", "\u{1b}[2J", "a/b", long.as_str()] {
        let scene = Scene::with(config(), |server| {
            server.put(deny("web", "web"));
        });
        scene.server.put(with(pod("other", "x", "10.0.8.1"), "/metadata/name", json!(name)));
        let open =
            with(policy("x", json!({ "podSelector": {}, "ingress": [{}] })), "/metadata/name", json!(name));
        scene.server.put(open);
        scene.wait("the policy is told", |scene| scene.kind("NetworkPolicy").rejected == 1);
        scene.wait("the pod is told", |scene| scene.kind("Pod").rejected == 1);
        scene.settle();
        assert!(
            !scene.allows(CLIENT, WEB) && !scene.allows(CLIENT, DB) && !scene.knows("10.0.8.1"),
            "{name}"
        );
        scene.server.delete("networkpolicies", "shop", name);
        scene.server.delete("pods", "other", name);
        scene.wait("both go by the same name", |scene| {
            scene.rejected().is_empty() && scene.allows(CLIENT, DB)
        });
    }
}

#[test]
fn a_policy_of_which_nobody_can_say_whose_it_is_holds_up_the_list_and_opens_nothing() {
    let nameless = [
        r#"{"metadata":{"namespace":"shop"},"spec":{"podSelector":{}}}"#,
        r#"{"metadata":{"name":7,"namespace":"shop"},"spec":{"podSelector":{}}}"#,
        r#"{"metadata":{"name":"a","namespace":"shop/web"},"spec":{"podSelector":{}}}"#,
        r#"{"metadata":[],"spec":{"podSelector":{}}}"#,
        "{}",
    ];
    for object in nameless {
        // From the start: what it isolates is not known, so nobody is decided for.
        let scene = Scene::unready(config(), |server| {
            server.put_raw("networkpolicies", "shop", "nameless", object);
        });
        let told =
            |scene: &Scene| scene.kind("NetworkPolicy").error.is_some_and(|error| error.contains("name"));
        scene.wait("it is told", told);
        assert!(scene.store.current().is_none(), "{object}");
        scene.server.delete("networkpolicies", "shop", "nameless");
        scene.wait("it is gone", |scene| scene.store.current().is_some());
        // Later: the last state stays.
        scene.server.put(deny("web", "web"));
        scene.wait("a policy", |scene| !scene.allows(CLIENT, WEB));
        scene.server.put_raw("networkpolicies", "shop", "nameless", object);
        scene.wait("it is told again", told);
        scene.holds_for(Duration::from_millis(500), "the last state", |scene| !scene.allows(CLIENT, WEB));
        scene.server.delete("networkpolicies", "shop", "nameless");
        scene.server.put(deny("db", "db"));
        scene.wait("it goes on", |scene| !scene.allows(CLIENT, DB) && !scene.allows(CLIENT, WEB));
    }
}

#[test]
fn values_that_are_not_known_are_told_and_never_widen() {
    let rule =
        |extra: Value| json!({ "podSelector": { "matchLabels": { "app": "db" } }, "ingress": [extra] });
    let expression =
        json!({ "matchExpressions": [{ "key": "team", "operator": "Like", "values": ["other"] }] });
    let policies = [
        policy("p", rule(json!({ "ports": [{ "port": 80, "protocol": "QUIC" }] }))),
        policy("p", rule(json!({ "from": [{ "namespaceSelector": expression }] }))),
        policy("p", rule(json!({ "from": [{ "serviceAccounts": {} }] }))),
        with(admin_deny("c", "db"), "/spec/tier", json!("Middle")),
        with(admin_deny("c", "db"), "/spec/ingress/0/action", json!("Maybe")),
        with(admin_deny("c", "db"), "/spec/subject", json!({ "everything": {} })),
    ];
    for object in policies {
        let scene = Scene::new();
        assert!(scene.allows(CLIENT, DB));
        scene.server.put(object.clone());
        scene.wait("it is told", |scene| scene.rejected().len() == 1);
        // It is told before it is in force.
        scene.settle();
        assert!(!scene.allows(CLIENT, DB), "{object:#}");
    }
}

#[test]
fn a_peer_that_is_not_known_makes_an_accept_match_nobody_and_a_deny_everybody() {
    let unknown = |name: &str, priority: u32, action: &str| {
        let mut policy = with(admin_deny(name, "db"), "/spec/ingress/0/from/0", json!({ "galaxies": {} }));
        policy["spec"]["priority"] = json!(priority);
        policy["spec"]["ingress"][0]["action"] = json!(action);
        policy
    };
    let scene = Scene::with(config(), |server| {
        server.put(unknown("accept", 1, "Accept"));
        server.put(deny("db", "db"));
    });
    assert!(!scene.allows(CLIENT, DB), "the NetworkPolicy below still decides");
    scene.server.delete("networkpolicies", "shop", "db");
    scene.wait("nothing is denied", |scene| scene.allows(CLIENT, DB));
    scene.server.put(unknown("deny", 2, "Deny"));
    scene.wait("everything is denied", |scene| !scene.allows(CLIENT, DB));
    // A newer API may have such peers: they are no mistake of the policy's author.
    assert_eq!(scene.rejected(), Vec::<String>::new());
}

#[test]
fn a_direction_that_is_not_known_may_be_any_and_closes_what_no_rule_opens() {
    let open = json!({ "podSelector": { "matchLabels": { "app": "db" } }, "policyTypes": ["Sideways"], "ingress": [{}] });
    let scene = Scene::new();
    scene.server.put(policy("p", open));
    scene.wait("it is told", |scene| scene.rejected() == ["NetworkPolicy/shop/p"]);
    scene.settle();
    assert!(scene.allows(CLIENT, DB), "the rule that can be read stays");
    assert!(!scene.allows("10.0.0.2:40000", "10.0.0.3:80"), "and egress has none");
}

#[test]
fn values_of_other_kinds_that_are_newer_than_this_program_do_no_harm() {
    let objects = [
        with(pod("other", "strange", "10.0.8.2"), "/status/phase", json!("Hibernating")),
        json!({ "apiVersion": "v1", "kind": "Service", "metadata": { "name": "s", "namespace": "other" },
            "spec": { "type": "Teleport", "clusterIP": "10.96.0.9", "ports": [{ "port": 80 }],
                "externalTrafficPolicy": "Nearby", "sessionAffinity": "Sometimes" } }),
        json!({ "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice",
            "metadata": { "name": "s-1", "namespace": "other", "labels": { "kubernetes.io/service-name": "s" } },
            "addressType": "Carrier", "endpoints": [{ "addresses": ["pigeon"] }], "ports": [] }),
        json!({ "apiVersion": "v1", "kind": "Node", "metadata": { "name": "n9" },
            "status": { "addresses": [{ "type": "Telepathy", "address": "somewhere" }] } }),
    ];
    in_every_way(&objects, |scene| {
        let rejected = scene.rejected();
        assert!(
            !rejected.iter().any(|name| name.starts_with("Pod") || name.starts_with("Service")),
            "{rejected:?}"
        );
        assert!(scene.allows(CLIENT, DB));
    });
}

#[test]
fn large_slices_services_without_selectors_and_pods_with_many_addresses_are_taken_as_they_are() {
    let endpoints: Vec<Value> = (0..1_000)
        .map(|number| json!({ "addresses": [format!("10.1.{}.{}", number / 250, number % 250)] }))
        .collect();
    let addresses: Vec<Value> = (1..=100).map(|number| json!({ "ip": format!("10.2.0.{number}") })).collect();
    let objects = [
        json!({ "apiVersion": "v1", "kind": "Service", "metadata": { "name": "wide", "namespace": "other" },
            "spec": { "clusterIP": "10.96.0.7", "ports": [{ "port": 80 }] } }),
        json!({ "apiVersion": "v1", "kind": "Service", "metadata": { "name": "elsewhere", "namespace": "other" },
            "spec": { "type": "ExternalName", "externalName": "example.invalid" } }),
        json!({ "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice",
            "metadata": { "name": "wide-1", "namespace": "other", "labels": { "kubernetes.io/service-name": "wide" } },
            "addressType": "IPv4", "endpoints": endpoints, "ports": [{ "port": 8080 }] }),
        // A slice that belongs to no Service, and one of a Service that there is not.
        json!({ "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice",
            "metadata": { "name": "loose", "namespace": "other" }, "addressType": "IPv6", "endpoints": [], "ports": [] }),
        json!({ "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice",
            "metadata": { "name": "ghost", "namespace": "gone", "labels": { "kubernetes.io/service-name": "gone" } },
            "addressType": "IPv4", "endpoints": [{ "addresses": ["10.3.0.1"] }], "ports": [{ "port": 1 }] }),
        with(pod("other", "wide", "10.2.0.1"), "/status/podIPs", Value::Array(addresses)),
    ];
    in_every_way(&objects, |scene| {
        assert_eq!(scene.rejected(), Vec::<String>::new());
        let counts = scene.store.current().unwrap().counts().clone();
        assert_eq!((counts.services, counts.endpoint_slices), (2, 3));
        assert!(scene.knows("10.2.0.1") && scene.knows("10.2.0.100"));
    });
}

#[test]
fn pods_of_a_namespace_that_is_missing_are_isolated_by_its_policies_and_selected_by_no_selector_of_labels() {
    let lonely = json!({ "apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy",
        "metadata": { "name": "p", "namespace": "nowhere" }, "spec": { "podSelector": {} } });
    let from_nowhere = policy(
        "db",
        json!({ "podSelector": { "matchLabels": { "app": "db" } },
            "ingress": [{ "from": [{ "namespaceSelector": { "matchLabels": { "team": "nowhere" } } }] }] }),
    );
    let objects = [pod("nowhere", "p", "10.0.8.3"), lonely, from_nowhere];
    in_every_way(&objects, |scene| {
        assert!(!scene.allows(CLIENT, "10.0.8.3:80"), "its policy holds without the namespace");
        assert!(!scene.allows("10.0.8.3:40000", DB), "its labels are not known, so they match nothing");
        scene.server.put(namespace("nowhere"));
        scene.wait("the namespace comes", |scene| scene.allows("10.0.8.3:40000", DB));
    });
}

#[test]
fn the_same_name_in_several_kinds_is_several_objects_and_goes_one_by_one() {
    let named = |kind: &str, api: &str, spec: Value| json!({ "apiVersion": api, "kind": kind, "metadata": { "name": "web", "namespace": "shop" }, "spec": spec });
    let scene = Scene::with(config(), |server| {
        server.put(deny("web", "web"));
        server.put(admin_deny("web", "web"));
        server.put(named("Service", "v1", json!({ "clusterIP": "10.96.0.8", "ports": [{ "port": 80 }] })));
        server.put(namespace("web"));
    });
    assert!(!scene.allows(CLIENT, WEB));
    scene.server.delete("services", "shop", "web");
    scene.server.delete("namespaces", "", "web");
    scene.server.delete("networkpolicies", "shop", "web");
    scene.settle();
    assert!(!scene.allows(CLIENT, WEB), "the policy of the Admin tier is still there");
    assert!(scene.knows("10.0.0.1"), "and so is the pod");
    scene.server.delete("clusternetworkpolicies", "", "web");
    scene.wait("the last one goes", |scene| scene.allows(CLIENT, WEB));
}

#[test]
fn an_address_that_two_pods_claim_belongs_to_one_of_them_and_to_nobody_more_open() {
    // The younger one has it, as when an address is used again before the old pod's end is known here.
    let born = |object: Value, time: &str| {
        let mut object = object;
        object["metadata"]["creationTimestamp"] = json!(time);
        object
    };
    let scene = Scene::with(config(), |server| {
        server.put(deny("web", "web"));
        server.put(born(pod("shop", "web", "10.0.8.4"), "2026-01-02T00:00:00Z"));
        server.put(born(pod("other", "old", "10.0.8.4"), "2026-01-01T00:00:00Z"));
    });
    assert!(!scene.allows(CLIENT, "10.0.8.4:80"));
    scene.server.delete("pods", "shop", "web");
    scene.wait("the older one has it again", |scene| scene.allows(CLIENT, "10.0.8.4:80"));
}
