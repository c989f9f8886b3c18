//! Nothing goes wrong.

use apiserver::ApiServer;
use policy_cache::{Access, ApiConfig, ApiSource, Options};
use serde_json::json;

use crate::scene::{CLIENT, DB, Scene, WEB, admin_deny, config, deny, namespace, pod, policy};

#[test]
fn what_the_api_has_decides_and_every_change_follows() {
    let scene = Scene::with(config(), |server| {
        server.put(deny("web", "web"));
    });
    assert!(!scene.allows(CLIENT, WEB) && scene.allows(CLIENT, DB));
    scene.server.put(deny("db", "db"));
    scene.wait("a policy appears", |scene| !scene.allows(CLIENT, DB));
    let from_other = json!({ "podSelector": { "matchLabels": { "app": "db" } },
        "ingress": [{ "from": [{ "namespaceSelector": { "matchLabels": { "team": "other" } } }] }] });
    scene.server.put(policy("db", from_other));
    scene.wait("a policy changes", |scene| scene.allows(CLIENT, DB));
    let mut renamed = namespace("other");
    renamed["metadata"]["labels"]["team"] = json!("third");
    scene.server.put(renamed);
    scene.wait("a namespace changes", |scene| !scene.allows(CLIENT, DB));
    scene.server.delete("networkpolicies", "shop", "web");
    scene.wait("a policy goes", |scene| scene.allows(CLIENT, WEB));
    scene.server.put(pod("other", "late", "10.0.0.9"));
    scene.wait("a pod appears", |scene| scene.knows("10.0.0.9"));
    scene.server.delete("pods", "other", "late");
    scene.wait("a pod goes", |scene| !scene.knows("10.0.0.9"));
    scene.server.put(admin_deny("c", "web"));
    scene.wait("a tier policy appears", |scene| !scene.allows(CLIENT, WEB));
    scene.server.delete("clusternetworkpolicies", "", "c");
    scene.wait("a tier policy goes", |scene| scene.allows(CLIENT, WEB));
    let counts = scene.store.current().unwrap().counts().clone();
    assert_eq!((counts.pods, counts.namespaces, counts.network_policies), (3, 2, 1));
}

#[test]
fn lists_come_as_streams_or_in_pages() {
    type Change = fn(&ApiServer);
    let ways: [(&str, ApiConfig, Change); 4] = [
        ("streams", config(), |_| {}),
        ("not asked for", ApiConfig { streaming_lists: false, page_size: 2, ..config() }, |_| {}),
        ("refused", ApiConfig { page_size: 1, ..config() }, |server| server.set(|set| set.streams = false)),
        ("not understood", ApiConfig { page_size: 2, ..config() }, |server| {
            server.set(|set| {
                set.streams = false;
                set.ignores_streams = true;
            });
        }),
    ];
    for (way, config, change) in ways {
        let scene = Scene::with(config, |server| {
            change(server);
            server.put(deny("web", "web"));
        });
        assert!(!scene.allows(CLIENT, WEB) && scene.allows(CLIENT, DB), "{way}");
        scene.settle();
        let pages = scene.server.received_like("/api/v1/pods?").len()
            - scene.server.received_like("/api/v1/pods?watch=true").len();
        let expected = match way {
            "streams" => 0,
            "refused" => 3,
            _ => 2,
        };
        assert_eq!(pages, expected, "{way}: {:#?}", scene.server.received_like("/pods"));
    }
}

#[test]
fn nothing_is_published_before_everything_was_listed() {
    use apiserver::{Answer, Fault, Verb};
    let scene = Scene::unready(config(), |server| {
        server.fail(Fault::new("networkpolicies", Verb::Any, usize::MAX, Answer::Status(403, None)));
    });
    scene.wait("all but the policies are listed", |scene| {
        scene.status().kinds.iter().all(|kind| kind.listed || kind.kind == "NetworkPolicy")
    });
    scene.wait("the refusal is told", |scene| {
        scene.kind("NetworkPolicy").error.is_some_and(|error| error.contains("403"))
    });
    assert!(scene.store.current().is_none() && !scene.status().complete);
    scene.server.heal();
    scene.wait("the first snapshot", |scene| scene.store.current().is_some());
    assert!(scene.status().complete);
    assert_eq!(scene.kind("NetworkPolicy").error, None);
}

#[test]
fn an_event_that_changes_nothing_publishes_nothing() {
    let scene = Scene::new();
    scene.settle();
    let before = scene.generation();
    for beat in 0..20 {
        let mut object = pod("shop", "web", "10.0.0.1");
        object["metadata"]["annotations"] = json!({ "beat": beat.to_string() });
        scene.server.put(object);
    }
    let last = scene.server.put(namespace("other"));
    scene.wait("all of it has arrived", |scene| {
        scene.server.open_watches("pods") == 1 && scene.kind("Namespace").age.is_some() && last > 0
    });
    scene.settle();
    assert_eq!(scene.generation(), before + 2, "the two of settling");
}

#[test]
fn credentials_that_are_not_there_are_told_at_once() {
    let missing = std::path::PathBuf::from("/does/not/exist");
    let error = ApiSource::start(Access::Kubeconfig(missing), &config(), Options::default()).unwrap_err();
    assert!(error.to_string().contains("/does/not/exist"), "{error}");
    let error = ApiSource::start(Access::InCluster, &config(), Options::default()).unwrap_err();
    assert!(error.to_string().contains("--kubeconfig"), "{error}");
}
