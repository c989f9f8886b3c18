//! The server and the way to it fail. What is known stays in force, and what happened meanwhile is taken up.

use std::time::{Duration, Instant};

use apiserver::{Answer, Fault, Received, Verb, WatchEnd};
use policy_cache::ApiConfig;
use serde_json::json;

use crate::scene::{CLIENT, DB, Scene, WEB, admin_deny, config, deny, pod};

const MANY: usize = usize::MAX;

/// Requests that are so close together that somebody is not waiting.
fn hurried(requests: &[Received], least: Duration) -> usize {
    requests.windows(2).filter(|pair| pair[1].at.duration_since(pair[0].at) < least).count()
}

#[test]
fn a_relist_after_410_never_makes_a_pod_unknown_or_a_policy_vanish() {
    for streaming_lists in [true, false] {
        let scene = Scene::with(ApiConfig { streaming_lists, page_size: 1, ..config() }, |server| {
            server.put(deny("web", "web"));
            server.put(admin_deny("c", "db"));
        });
        for round in 0..3 {
            let relists = scene.kind("Pod").relists + scene.kind("NetworkPolicy").relists;
            scene.server.compact();
            scene.server.end_watches("", WatchEnd::Expired);
            let known = |scene: &Scene| {
                scene.knows("10.0.0.1")
                    && scene.knows("10.0.0.2")
                    && scene.knows("10.0.0.3")
                    && !scene.allows(CLIENT, WEB)
                    && !scene.allows(CLIENT, DB)
            };
            let ends = Instant::now() + Duration::from_secs(15);
            while scene.kind("Pod").relists + scene.kind("NetworkPolicy").relists < relists + 2 {
                assert!(known(&scene), "round {round}: {:#?}", scene.status());
                assert!(Instant::now() < ends, "round {round}: {:#?}", scene.status());
            }
            scene.settle();
            assert!(known(&scene));
        }
    }
}

#[test]
fn what_was_deleted_and_made_while_nobody_listened_is_taken_up_in_one_step() {
    let scene = Scene::with(config(), |server| {
        server.put(deny("old", "web"));
    });
    scene.server.fail(Fault::new("networkpolicies", Verb::Any, 2, Answer::Status(503, None)));
    scene.server.delete_silently("networkpolicies", "shop", "old");
    scene.server.delete_silently("pods", "shop", "db");
    scene.server.put(deny("new", "web"));
    scene.server.compact();
    scene.server.end_watches("", WatchEnd::Expired);
    // The pod is isolated by the old policy, then by the new one, and never by none.
    let ends = Instant::now() + Duration::from_secs(15);
    while scene.kind("NetworkPolicy").relists == 0
        || scene.kind("Pod").relists == 0
        || scene.knows("10.0.0.2")
    {
        assert!(!scene.allows(CLIENT, WEB), "never open in between");
        assert!(Instant::now() < ends, "{:#?}", scene.status());
    }
    scene.wait("the list is taken up", |scene| scene.store.current().unwrap().counts().network_policies == 1);
    assert!(!scene.allows(CLIENT, WEB));
}

#[test]
fn pages_that_expire_under_way_are_listed_in_one_piece() {
    let scene = Scene::unready(ApiConfig { streaming_lists: false, page_size: 1, ..config() }, |server| {
        // Every page takes its time, so that the pages expire between two of them.
        server.fail(Fault::new("pods", Verb::List, 3, Answer::Late(Duration::from_millis(300))));
    });
    scene.wait("the first page is asked for", |scene| {
        !scene.server.received_like("/pods?limit=1&continue").is_empty()
    });
    scene.server.compact();
    scene.wait("everything is listed", |scene| scene.store.current().is_some());
    let lists = scene.server.received_like("/api/v1/pods");
    assert!(lists.iter().any(|list| list.path == "/api/v1/pods"), "{lists:#?}");
    assert!(scene.knows("10.0.0.1") && scene.knows("10.0.0.3"));
}

#[test]
fn a_half_open_watch_is_opened_anew_and_a_quiet_one_with_bookmarks_is_not() {
    let scene = Scene::with(ApiConfig { silence_ms: 1_500, ..config() }, |_| {});
    scene.settle();
    let before = scene.kind("Pod").reconnects;
    std::thread::sleep(Duration::from_secs(4));
    assert_eq!(scene.kind("Pod").reconnects, before, "bookmarks are signs of life");
    scene.server.end_watches("pods", WatchEnd::Silence);
    scene.server.put(pod("other", "late", "10.0.0.9"));
    scene.wait("the event behind the silence arrives", |scene| scene.knows("10.0.0.9"));
    assert!(scene.kind("Pod").reconnects > before);
    // The same without any bookmark: then silence is all there is, and no event is lost by it.
    scene.server.set(|set| set.bookmarks = Duration::from_secs(3600));
    scene.wait("a watch without bookmarks is opened anew", |scene| scene.kind("Pod").reconnects > before + 1);
    scene.settle();
    assert_eq!(scene.kind("Pod").relists, 0, "nothing was lost, so nothing is listed again");
}

#[test]
fn a_server_that_was_restored_from_a_backup_is_listed_anew_though_it_takes_the_old_watches() {
    for streaming_lists in [true, false] {
        let scene = Scene::with(ApiConfig { silence_ms: 700, streaming_lists, ..config() }, |_| {});
        scene.settle();
        scene.server.restore();
        scene.server.end_watches("", WatchEnd::Reset);
        scene.server.put(deny("web", "web"));
        scene.server.delete("pods", "shop", "db");
        scene.wait("the policy that was made since", |scene| !scene.allows(CLIENT, WEB));
        scene.wait("the pod that is gone since", |scene| !scene.knows("10.0.0.2"));
    }
}

#[test]
fn resets_and_ends_of_watches_lose_nothing_and_list_nothing_again() {
    let scene = Scene::new();
    for round in 0..4_u8 {
        let end = if round % 2 == 0 { WatchEnd::Reset } else { WatchEnd::Clean };
        scene.server.end_watches("", end);
        let ip = format!("10.0.1.{round}");
        scene.server.put(pod("other", &format!("p{round}"), &ip));
        scene.wait("the pod arrives", |scene| scene.knows(&ip));
    }
    let kind = scene.kind("Pod");
    assert!(kind.reconnects >= 4 && kind.relists == 0, "{kind:?}");
}

#[test]
fn a_server_that_is_busy_is_left_alone_for_as_long_as_it_asks() {
    let scene = Scene::unready(config(), |server| {
        server.fail(Fault::new("pods", Verb::Any, 1, Answer::Status(429, Some(2))));
    });
    scene.wait("everything is listed", |scene| scene.store.current().is_some());
    let asked = scene.server.received_like("/api/v1/pods");
    let pause = asked[1].at.duration_since(asked[0].at);
    assert!(pause >= Duration::from_secs(2), "{pause:?}");
}

#[test]
fn no_answer_whatever_makes_a_busy_loop() {
    let answers = [
        ("503", Answer::Status(503, None)),
        ("429 now", Answer::Status(429, Some(0))),
        ("404", Answer::Status(404, None)),
        ("410", Answer::Status(410, None)),
        ("400", Answer::Status(400, None)),
        ("401", Answer::Status(401, None)),
        ("reset", Answer::Reset),
        ("empty", Answer::Body(Vec::new())),
        ("garbage", Answer::Body(b"\0\xff{[}\n\n{\"type\":\"ADDED\"}\n".to_vec())),
        ("an empty list", Answer::Body(br#"{"metadata":{"resourceVersion":"1"},"items":[]}"#.to_vec())),
        ("cut", Answer::BreakAfter(40)),
    ];
    let scenes: Vec<(&str, Scene)> = answers
        .into_iter()
        .map(|(name, answer)| {
            let scene = Scene::new();
            scene.server.fail(Fault::new("", Verb::Any, MANY, answer));
            scene.server.end_watches("", WatchEnd::Reset);
            (name, scene)
        })
        .collect();
    std::thread::sleep(Duration::from_secs(6));
    for (name, scene) in scenes {
        let asked = scene.server.received_like("/api/v1/pods");
        // Waits begin at 125 ms and double: about six requests, and a list before each watch.
        assert!(asked.len() < 24, "{name}: {}", asked.len());
        assert!(hurried(&asked[2..], Duration::from_millis(50)) <= 4, "{name}: {asked:#?}");
        if name != "an empty list" {
            assert!(scene.knows("10.0.0.1"), "{name}");
        }
        assert!(scene.status().alive, "{name}");
    }
}

#[test]
fn an_api_that_is_gone_changes_nothing_and_comes_back() {
    let scene = Scene::with(config(), |server| {
        server.put(deny("web", "web"));
    });
    scene.settle();
    let generation = scene.generation();
    scene.server.fail(Fault::new("", Verb::Any, MANY, Answer::Reset));
    scene.server.end_watches("", WatchEnd::Reset);
    scene.holds_for(Duration::from_secs(3), "the last state stays", |scene| {
        !scene.allows(CLIENT, WEB) && scene.allows(CLIENT, DB) && scene.knows("10.0.0.3")
    });
    assert_eq!(scene.generation(), generation);
    let pods = scene.kind("Pod");
    assert!(pods.age.unwrap() >= Duration::from_secs(2) && pods.error.is_some(), "{pods:?}");
    scene.server.put(deny("db", "db"));
    scene.server.heal();
    scene.wait("what happened meanwhile", |scene| !scene.allows(CLIENT, DB));
    scene.wait("everything is heard again", |scene| {
        scene
            .status()
            .kinds
            .iter()
            .all(|kind| kind.error.is_none() && kind.age.is_none_or(|age| age.as_secs() < 2))
    });
}

#[test]
fn duplicates_and_events_in_any_order_across_kinds_end_in_the_same_state() {
    let scene = Scene::new();
    // A policy before its namespace, a pod before its node and namespace, deletions of what is not there.
    scene.server.put(json!({
        "apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy",
        "metadata": { "name": "early", "namespace": "later" }, "spec": { "podSelector": {} },
    }));
    scene.server.put(pod("later", "p", "10.0.7.1"));
    scene.server.put(crate::scene::namespace("later"));
    scene
        .wait("the pod is isolated", |scene| scene.knows("10.0.7.1") && !scene.allows(CLIENT, "10.0.7.1:80"));
    let frame =
        |event: &str, object: &serde_json::Value| format!("{}\n", json!({ "type": event, "object": object }));
    let mut late = pod("later", "p", "10.0.7.1");
    late["metadata"]["resourceVersion"] = json!("1");
    let ghost = pod("later", "ghost", "10.0.7.9");
    let bytes =
        [frame("MODIFIED", &late), frame("ADDED", &late), frame("DELETED", &ghost), frame("DELETED", &ghost)];
    let generation = scene.generation();
    scene.server.send_to_watches("pods", bytes.concat());
    scene.settle();
    assert!(scene.knows("10.0.7.1") && !scene.allows(CLIENT, "10.0.7.1:80"));
    assert!(scene.generation() <= generation + 3, "duplicates publish nothing");
}

#[test]
fn kinds_appear_and_vanish_while_they_are_followed() {
    let scene = Scene::with(config(), |server| {
        server.set(|set| set.tiers = false);
        server.put(admin_deny("c", "web"));
    });
    assert!(scene.allows(CLIENT, WEB), "without its CRD there is no such policy");
    assert!(!scene.kind("ClusterNetworkPolicy").served && scene.kind("ClusterNetworkPolicy").listed);
    scene.server.set(|set| set.tiers = true);
    scene.wait("the CRD appears", |scene| !scene.allows(CLIENT, WEB));
    assert!(scene.kind("ClusterNetworkPolicy").served);
    // One moment in which it looks as if it were gone is not believed.
    scene.server.fail(Fault::new("", Verb::Discover, 1, Answer::Status(404, None)));
    scene.server.end_watches("clusternetworkpolicies", WatchEnd::Clean);
    scene.server.fail(Fault::new("clusternetworkpolicies", Verb::Any, 1, Answer::Status(404, None)));
    scene.holds_for(Duration::from_secs(3), "one 404 is not believed", |scene| !scene.allows(CLIENT, WEB));
    scene.server.set(|set| set.tiers = false);
    scene.server.end_watches("clusternetworkpolicies", WatchEnd::Clean);
    scene.wait("the CRD vanishes", |scene| scene.allows(CLIENT, WEB));
    scene.server.set(|set| set.tiers = true);
    scene.wait("and comes back", |scene| !scene.allows(CLIENT, WEB));
}

#[test]
fn a_kind_that_is_served_in_another_version_only_is_not_gone() {
    let scene = Scene::with(config(), |server| {
        server.put(admin_deny("c", "web"));
    });
    assert!(!scene.allows(CLIENT, WEB));
    scene.server.set(|set| set.newer_tiers = true);
    scene.server.end_watches("clusternetworkpolicies", WatchEnd::Clean);
    scene.wait("it is told", |scene| {
        scene.kind("ClusterNetworkPolicy").error.is_some_and(|error| error.contains("v1beta1"))
    });
    scene.holds_for(Duration::from_secs(8), "its denies stay", |scene| !scene.allows(CLIENT, WEB));
    let kind = scene.kind("ClusterNetworkPolicy");
    assert!(kind.served && kind.age.unwrap() > Duration::from_secs(5), "{kind:?}");
    scene.server.set(|set| set.newer_tiers = false);
    scene.server.put(admin_deny("d", "db"));
    scene.wait("it is read again", |scene| !scene.allows(CLIENT, DB));

    // At the start nobody knows what there is in it.
    let scene = Scene::unready(config(), |server| server.set(|set| set.newer_tiers = true));
    scene.wait("it is told", |scene| {
        scene.kind("ClusterNetworkPolicy").error.is_some_and(|error| error.contains("v1beta1"))
    });
    scene.holds_for(Duration::from_secs(2), "nothing is decided", |scene| scene.store.current().is_none());
}

#[test]
fn a_rotated_token_is_read_again_when_the_old_one_is_refused() {
    let scene = Scene::with(config(), |server| server.set(|set| set.tokens = vec!["secret".to_owned()]));
    scene.server.set(|set| set.tokens = vec!["fresh".to_owned()]);
    scene.server.end_watches("", WatchEnd::Clean);
    scene.wait("the old token is refused", |scene| {
        scene.kind("Pod").error.is_some_and(|error| error.contains("401"))
    });
    scene.server.write_token("fresh").unwrap();
    scene.server.put(pod("other", "late", "10.0.0.9"));
    scene.wait("the new token is used", |scene| scene.knows("10.0.0.9"));
}

#[test]
fn the_start_is_put_off_by_a_part_of_the_jitter() {
    let scene = Scene::unready(ApiConfig { start_jitter_ms: 600_000, ..config() }, |_| {});
    std::thread::sleep(Duration::from_millis(300));
    assert!(scene.server.received().len() < 2, "{:#?}", scene.server.received());
}
