//! What is told in the cluster of policies that do not validate.

use std::time::Duration;

use apiserver::{Answer, Fault, Verb};
use policy_cache::{Access, ApiConfig, ApiSource, Options};
use serde_json::{Value, json};

use crate::scene::{CLIENT, Scene, WEB, admin_deny, config, policy};

fn node(name: &str) -> Value {
    json!({ "apiVersion": "v1", "kind": "Node", "metadata": { "name": name } })
}

fn condition(scene: &Scene, name: &str) -> Value {
    let policy = scene.server.object("clusternetworkpolicies", name).unwrap();
    let conditions = policy["status"]["conditions"].as_array().cloned().unwrap_or_default();
    conditions.into_iter().find(|condition| condition["type"] == "SluiceAccepted").unwrap_or_default()
}

fn broken() -> Value {
    policy("p", json!({ "podSelector": {}, "ingress": [{ "ports": [{ "port": 99_999 }] }] }))
}

#[test]
fn a_rejected_policy_is_one_event_however_often_and_by_whomever_it_is_told() {
    let scene = Scene::with(config(), |server| {
        server.put(node("node1"));
        server.put(broken());
    });
    scene.wait("the Event", |scene| scene.server.events().len() == 1);
    let event = scene.server.events().remove(0);
    assert_eq!((&event["type"], &event["reason"]), (&json!("Warning"), &json!("PolicyRejected")));
    assert_eq!(event["regarding"]["name"], "p");
    assert_eq!(event["metadata"]["namespace"], "shop");
    assert!(event["note"].as_str().unwrap().contains("spec.ingress[0].ports[0].port"), "{event}");
    // Another process, as after a restart, comes to the same verdict.
    let access = Access::Kubeconfig(scene.server.kubeconfig("secret").unwrap());
    let options = Options { node: Some("node1".to_owned()), ..Options::default() };
    let (_api, _store) = ApiSource::start(access, &config(), options).unwrap();
    scene.wait("it tells it too", |scene| scene.server.received_like("/events?").len() == 2);
    assert_eq!(scene.server.events().len(), 1);
    // The same problem again is no news; another one is.
    let mut touched = broken();
    touched["metadata"]["annotations"] = json!({ "a": "b" });
    scene.server.put(touched);
    scene.settle();
    assert_eq!(scene.server.received_like("/events?").len(), 2);
    scene.server.put(policy("p", json!({ "podSelector": 7 })));
    scene.wait("another problem", |scene| scene.server.events().len() == 2);
}

#[test]
fn cluster_network_policies_say_in_their_status_whether_they_are_enforced_as_written() {
    let scene = Scene::with(config(), |server| {
        server.put(node("node1"));
        server.put(admin_deny("c", "web"));
    });
    scene.wait("it is accepted", |scene| condition(scene, "c")["status"] == "True");
    assert_eq!(condition(&scene, "c")["observedGeneration"], 1);
    let mut bad = scene.server.object("clusternetworkpolicies", "c").unwrap();
    bad["spec"]["priority"] = json!(-1);
    bad["metadata"]["generation"] = json!(2);
    scene.server.put(bad);
    scene.wait("it is rejected", |scene| condition(scene, "c")["status"] == "False");
    let said = condition(&scene, "c");
    assert_eq!((&said["reason"], &said["observedGeneration"]), (&json!("Invalid"), &json!(2)));
    assert!(said["message"].as_str().unwrap().contains("spec.priority"), "{said}");
    assert!(!scene.allows(CLIENT, WEB));
    // Its own writing is no reason to write again.
    scene.settle();
    std::thread::sleep(Duration::from_millis(500));
    let patches = scene.server.received().iter().filter(|received| received.method == "PATCH").count();
    assert_eq!(patches, 2);
}

#[test]
fn who_does_not_speak_for_a_policy_writes_nothing() {
    for config in [config(), ApiConfig { report: false, ..config() }] {
        let reports = config.report;
        let scene = Scene::with(config, |server| {
            if reports {
                // This node is not among them.
                for name in ["a", "b", "c"] {
                    server.put(node(name));
                }
            } else {
                server.put(node("node1"));
            }
            server.put(broken());
            server.put(admin_deny("c", "web"));
        });
        scene.settle();
        std::thread::sleep(Duration::from_millis(600));
        assert!(scene.server.received().iter().all(|received| received.method == "GET"));
    }
}

#[test]
fn a_role_without_the_right_to_report_changes_nothing_else() {
    let scene = Scene::with(config(), |server| {
        server.fail(Fault::new("", Verb::Write, usize::MAX, Answer::Status(403, None)));
        server.put(node("node1"));
        server.put(broken());
    });
    scene.wait("it is tried", |scene| !scene.server.received_like("/events?").is_empty());
    scene.settle();
    assert!(!scene.allows(CLIENT, WEB) && scene.rejected() == ["NetworkPolicy/shop/p"]);
    assert!(scene.server.received_like("/events?").len() <= 2);
}
