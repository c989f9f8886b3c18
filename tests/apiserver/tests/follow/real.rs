//! A real kube-apiserver, where `KUBEBUILDER_ASSETS` names one: with the rights of the DaemonSet's service account and
//! no others, and with the CRD of ClusterNetworkPolicy.

use std::time::Duration;

use apiserver::{Audited, RealServer, assets};
use policy_cache::{Access, ApiConfig, ApiSource, Options};
use serde_json::{Value, json};

use crate::scene::{self, CLIENT, DB, Scene, WEB, admin_deny, deny, namespace, pod, policy};

const CRD: &str = include_str!("clusternetworkpolicies.yaml");
const RIGHTS: &str = include_str!("../../../../deploy/kustomize/base/rbac.yaml");
const UNINSTALL: &str = include_str!("../../../../deploy/docs/uninstall.md");
const USER: &str = "system:serviceaccount:sluice-system:sluice";
const NAMESPACE: &str = "sluice-system";

/// Quick, but for what a real server does in its own time.
fn config() -> ApiConfig {
    ApiConfig { silence_ms: 90_000, answer_timeout_ms: 20_000, ..scene::config() }
}

/// The small cluster of the other tests in a real server, followed as the DaemonSet follows it; `None` without one.
fn scene(config: ApiConfig, prepare: impl FnOnce(&RealServer)) -> Option<Scene<RealServer>> {
    let server = RealServer::start(&assets()?).unwrap();
    server.put(&[
        namespace("shop"),
        namespace("other"),
        namespace(NAMESPACE),
        json!({ "apiVersion": "v1", "kind": "Node", "metadata": { "name": "node1" } }),
        pod("shop", "web", "10.0.0.1"),
        pod("shop", "db", "10.0.0.2"),
        pod("other", "client", "10.0.0.3"),
    ]);
    server.kubectl(&["apply", "-n", NAMESPACE, "-f", "-"], Some(RIGHTS)).unwrap();
    prepare(&server);
    let token = server.token(NAMESPACE, "sluice", &[]);
    // As an editor would leave it.
    let access = Access::Kubeconfig(server.kubeconfig(&format!("{token}\n")).unwrap());
    let options = Options { node: Some("node1".to_owned()), ..Options::default() };
    let (api, store) = ApiSource::start(access, &config, options).unwrap();
    let scene = Scene { api, store, server };
    scene.wait("everything is listed", |scene| scene.store.current().is_some());
    Some(scene)
}

impl Scene<RealServer> {
    fn put(&self, object: Value) {
        self.server.put(&[object]);
    }

    /// What the service account asked for so far.
    fn asked(&self) -> Vec<Audited> {
        self.server.audited().into_iter().filter(|audited| audited.user == USER).collect()
    }

    /// Waits until every change up to now has arrived.
    fn arrive(&self, ip: &str) {
        self.put(pod("other", &format!("p{}", ip.replace('.', "-")), ip));
        self.wait("a new pod arrives", |scene| scene.knows(ip));
    }
}

#[test]
fn what_it_has_decides_every_change_follows_and_the_daemon_sets_rights_are_enough() {
    let Some(scene) = scene(config(), |server| {
        server.define(CRD, "clusternetworkpolicies");
        server.put(&[deny("web", "web")]);
    }) else {
        return;
    };
    assert!(!scene.allows(CLIENT, WEB) && scene.allows(CLIENT, DB));
    scene.put(deny("db", "db"));
    scene.wait("a policy appears", |scene| !scene.allows(CLIENT, DB));
    let from_other = json!({ "podSelector": { "matchLabels": { "app": "db" } },
        "ingress": [{ "from": [{ "namespaceSelector": { "matchLabels": { "team": "other" } } }] }] });
    scene.put(policy("db", from_other));
    scene.wait("a policy changes", |scene| scene.allows(CLIENT, DB));
    let mut renamed = namespace("other");
    renamed["metadata"]["labels"]["team"] = json!("third");
    scene.put(renamed);
    scene.wait("a namespace changes", |scene| !scene.allows(CLIENT, DB));
    scene.server.delete("networkpolicies", "shop", "web");
    scene.wait("a policy goes", |scene| scene.allows(CLIENT, WEB));
    scene.arrive("10.0.0.9");
    scene.server.delete("pods", "other", "p10-0-0-9");
    scene.wait("a pod goes", |scene| !scene.knows("10.0.0.9"));
    scene.put(admin_deny("c", "web"));
    scene.wait("a tier policy appears", |scene| !scene.allows(CLIENT, WEB));
    scene.server.delete("clusternetworkpolicies", "", "c");
    scene.wait("a tier policy goes", |scene| scene.allows(CLIENT, WEB));

    let asked = scene.asked();
    let refused: Vec<_> = asked.iter().filter(|one| matches!(one.code, 401 | 403)).collect();
    assert!(refused.is_empty(), "{refused:#?}");
    for plural in [
        "pods",
        "namespaces",
        "nodes",
        "services",
        "endpointslices",
        "networkpolicies",
        "clusternetworkpolicies",
    ] {
        let of = |one: &&Audited| one.uri.contains(&format!("/{plural}?"));
        let lists: Vec<_> = asked.iter().filter(of).filter(|one| one.verb == "list").collect();
        assert!(lists.is_empty(), "all lists are streamed: {lists:#?}");
    }
    assert!(
        scene.status().kinds.iter().all(|kind| kind.relists == 0 && kind.error.is_none()),
        "{:#?}",
        scene.status()
    );
}

#[test]
fn lists_in_pages_are_whole() {
    let Some(scene) = scene(ApiConfig { streaming_lists: false, page_size: 2, ..config() }, |server| {
        let many: Vec<Value> =
            (0..25).map(|number| pod("other", &format!("m{number}"), &format!("10.0.2.{number}"))).collect();
        server.put(&many);
        server.put(&[deny("web", "web")]);
    }) else {
        return;
    };
    assert!(
        !scene.allows(CLIENT, WEB)
            && scene.allows(CLIENT, DB)
            && scene.knows("10.0.2.0")
            && scene.knows("10.0.2.24")
    );
    assert_eq!(scene.store.current().unwrap().counts().pods, 28);
    // The server answers what it has in memory in one piece, and what is newest in pages.
    scene.arrive("10.0.0.9");
    scene.server.compact().unwrap();
    scene.server.tunnel().cut();
    scene.server.delete("pods", "shop", "db");
    let mut scene = scene;
    scene.server.stop_server();
    scene.server.start_server().unwrap();
    scene.put(deny("db", "client"));
    scene.server.tunnel().open();
    scene.wait("what happened meanwhile", |scene| !scene.knows("10.0.0.2"));
    let lists: Vec<_> =
        scene.asked().into_iter().filter(|one| one.verb == "list" && one.uri.contains("/pods?")).collect();
    assert!(lists.iter().any(|one| one.uri.contains("limit=2")), "{lists:#?}");
    assert!(scene.knows("10.0.2.24") && scene.knows("10.0.0.9") && !scene.allows(CLIENT, WEB));
}

#[test]
fn a_server_that_is_killed_changes_nothing_and_what_it_no_longer_remembers_is_listed_anew() {
    let Some(mut scene) = scene(config(), |server| server.put(&[deny("web", "web"), deny("gone", "db")]))
    else {
        return;
    };
    scene.arrive("10.0.0.9");
    let generation = scene.generation();
    scene.server.stop_server();
    scene.holds_for(Duration::from_secs(3), "the last state stays", |scene| {
        !scene.allows(CLIENT, WEB) && !scene.allows(CLIENT, DB) && scene.knows("10.0.0.3")
    });
    assert_eq!(scene.generation(), generation);
    assert!(scene.kind("Pod").error.is_some(), "{:?}", scene.kind("Pod"));
    // What happens while nobody can hear of it, and a store that has forgotten how it came about.
    scene.server.tunnel().cut();
    scene.server.start_server().unwrap();
    scene.server.delete("networkpolicies", "shop", "gone");
    scene.server.delete("pods", "other", "client");
    scene.put(deny("late", "late"));
    scene.server.compact().unwrap();
    scene.server.stop_server();
    scene.server.start_server().unwrap();
    scene.server.tunnel().open();
    scene.wait("a pod that is gone since", |scene| !scene.knows("10.0.0.3"));
    scene.wait("a policy that is gone since", |scene| scene.allows(CLIENT, DB));
    assert!(!scene.allows(CLIENT, WEB));
    scene.arrive("10.0.0.10");
    scene.wait("nothing is wrong any more", |scene| {
        scene.status().kinds.iter().all(|kind| kind.error.is_none())
    });
    let codes: Vec<u64> =
        scene.asked().iter().filter(|one| one.verb == "watch").map(|one| one.code).collect();
    assert!(codes.contains(&410) || scene.kind("Pod").relists > 0, "{codes:?} {:?}", scene.kind("Pod"));
}

#[test]
fn definitions_of_policies_come_and_go() {
    let Some(scene) = scene(config(), |_| {}) else { return };
    assert!(!scene.kind("ClusterNetworkPolicy").served && scene.allows(CLIENT, WEB));
    for round in 0..2 {
        scene.server.define(CRD, "clusternetworkpolicies");
        scene.put(admin_deny("c", "web"));
        scene.wait("its policies decide", |scene| !scene.allows(CLIENT, WEB));
        assert!(scene.kind("ClusterNetworkPolicy").served, "round {round}");
        scene.server.delete("crd", "", "clusternetworkpolicies.policy.networking.k8s.io");
        scene.wait("its policies are gone", |scene| scene.allows(CLIENT, WEB));
        scene.wait("it is not served", |scene| !scene.kind("ClusterNetworkPolicy").served);
    }
    assert!(scene.kind("AdminNetworkPolicy").listed && !scene.kind("AdminNetworkPolicy").served);
}

#[test]
fn conditions_and_events_are_written_with_the_daemon_sets_rights_and_stay_each_ones_own() {
    let Some(scene) = scene(config(), |server| {
        server.define(CRD, "clusternetworkpolicies");
        server.put(&[admin_deny("good", "web")]);
        let mut bad = admin_deny("bad", "db");
        // The schema takes it, and no selector can be made of it.
        bad["spec"]["ingress"][0]["from"] =
            json!([{ "namespaces": { "matchExpressions": [{ "key": "a", "operator": "In" }] } }]);
        server.put(&[bad]);
    }) else {
        return;
    };
    let condition = |scene: &Scene<RealServer>, name: &str| {
        let policy = scene.server.get(&["clusternetworkpolicies", name]);
        let conditions = policy["status"]["conditions"].as_array().cloned().unwrap_or_default();
        conditions.into_iter().find(|one| one["type"] == "SluiceAccepted").unwrap_or_default()
    };
    scene.wait("the good one is accepted", |scene| condition(scene, "good")["status"] == "True");
    scene.wait("the bad one is not", |scene| condition(scene, "bad")["status"] == "False");
    assert!(!scene.allows(CLIENT, DB), "a broken Deny denies");
    assert_eq!(condition(&scene, "bad")["observedGeneration"], 1);
    let owners = scene.server.get(&["clusternetworkpolicies", "good", "--show-managed-fields"]);
    let owners = owners["metadata"]["managedFields"].as_array().cloned().unwrap_or_default();
    let own: Vec<_> = owners.iter().filter(|owner| owner["manager"] == "sluice").collect();
    assert!(
        own.len() == 1 && own[0]["operation"] == "Apply" && own[0]["subresource"] == "status",
        "{owners:#?}"
    );
    scene.wait("the Event", |scene| {
        let events = scene.server.get(&["events.events.k8s.io", "-n", "default"]);
        events["items"].as_array().is_some_and(|events| {
            events.iter().any(|event| {
                event["reason"] == "PolicyRejected"
                    && event["regarding"]["name"] == "bad"
                    && event["note"].as_str().is_some_and(|note| note.contains("matchExpressions"))
            })
        })
    });
    let refused: Vec<_> =
        scene.asked().into_iter().filter(|one| matches!(one.code, 400..=403 | 422)).collect();
    assert!(refused.is_empty(), "{refused:#?}");
    // What the page on uninstalling says takes them back. Nobody may be there who writes them again.
    let Scene { api, server, .. } = scene;
    drop(api);
    let script = UNINSTALL.split("```sh\n").find(|block| block.contains("--subresource=status")).unwrap();
    server.shell(script.split("```").next().unwrap()).unwrap();
    for name in ["good", "bad"] {
        let policy = server.get(&["clusternetworkpolicies", name, "--show-managed-fields"]);
        assert!(!policy.to_string().contains("SluiceAccepted"), "{policy:#}");
    }
}

#[test]
fn a_token_that_is_no_longer_good_is_taken_from_its_file_again() {
    let Some(scene) = scene(config(), |_| {}) else { return };
    scene.server.kubectl(&["create", "secret", "generic", "bound", "-n", NAMESPACE], None).unwrap();
    let bound = scene.server.token(
        NAMESPACE,
        "sluice",
        &["--bound-object-kind=Secret", "--bound-object-name=bound", "--duration=10m"],
    );
    scene.server.write_token(&bound).unwrap();
    // The next connections are made with it: what was the token before is no longer there.
    scene.server.tunnel().cut();
    scene.wait("the way is cut", |scene| scene.kind("Pod").error.is_some());
    scene.server.tunnel().open();
    scene.arrive("10.0.0.9");
    scene.server.delete("secrets", NAMESPACE, "bound");
    scene.wait("the server knows that it is void", |scene| {
        scene.server.tunnel().cut();
        scene.server.tunnel().open();
        std::thread::sleep(Duration::from_millis(500));
        scene.kind("Pod").error.is_some_and(|error| error.contains("401"))
    });
    assert!(scene.knows("10.0.0.9"), "the last state stays");
    scene.server.write_token(&format!("{}\n", scene.server.token(NAMESPACE, "sluice", &[]))).unwrap();
    scene.arrive("10.0.0.10");
}

#[test]
fn quiet_collections_are_heard_of_by_bookmarks_about_every_minute() {
    let Some(scene) = scene(config(), |server| server.define(CRD, "clusternetworkpolicies")) else {
        return;
    };
    std::thread::sleep(Duration::from_secs(75));
    for kind in scene.status().kinds.into_iter().filter(|kind| kind.served) {
        assert!(kind.age.unwrap() < Duration::from_secs(70) && kind.reconnects == 0, "{kind:?}");
    }
}
