//! Lists that fail in their middle. What is known stays in force until a list is whole, and the whole one is right.

use std::time::Duration;

use apiserver::{Answer, Fault, Verb, WatchEnd};
use policy_cache::ApiConfig;

use crate::scene::{CLIENT, DB, Scene, WEB, config, deny, pod};

/// A later page, of another version than the first: it lacks what the list of the test's server has.
const OTHER: &[u8] = br#"{"kind":"NetworkPolicyList","metadata":{"resourceVersion":"7000"},"items":[]}"#;

fn halfway() -> Vec<(&'static str, Answer)> {
    vec![
        ("500", Answer::Status(500, None)),
        ("429", Answer::Status(429, Some(1))),
        ("410, the token has expired", Answer::Status(410, None)),
        ("reset", Answer::Reset),
        ("silence", Answer::Silence),
        ("broken off", Answer::BreakAfter(90)),
        ("garbage", Answer::Body(b"{\"items\":[{]}".to_vec())),
        ("another version", Answer::Body(OTHER.to_vec())),
    ]
}

#[test]
fn a_page_that_fails_takes_no_policy_away_and_the_next_whole_list_is_right() {
    for (name, answer) in halfway() {
        let scene = Scene::with(ApiConfig { streaming_lists: false, page_size: 1, ..config() }, |server| {
            for policy in [deny("a", "none"), deny("web", "web"), deny("z", "none")] {
                server.put(policy);
            }
        });
        scene.server.fail(Fault::new("networkpolicies", Verb::List, 2, answer).containing("continue="));
        scene.server.delete_silently("networkpolicies", "shop", "z");
        let relists = scene.kind("NetworkPolicy").relists;
        // What is made after it comes by a list only, and by no watch.
        scene.server.compact();
        scene.server.put(deny("zz", "db"));
        scene.server.end_watches("networkpolicies", WatchEnd::Expired);
        let ends = std::time::Instant::now() + Duration::from_secs(40);
        // Nothing of the new list is in force before all of it: neither the deletion nor the new policy alone.
        while scene.allows(CLIENT, DB) {
            assert!(!scene.allows(CLIENT, WEB), "{name}: open in between");
            assert_eq!(scene.store.current().unwrap().counts().network_policies, 3, "{name}");
            assert!(std::time::Instant::now() < ends, "{name}: {:#?}", scene.status());
        }
        assert!(!scene.allows(CLIENT, WEB), "{name}");
        assert_eq!(scene.store.current().unwrap().counts().network_policies, 3, "{name}: a, web and zz");
        assert!(scene.kind("NetworkPolicy").relists > relists, "{name}");
        // The watch goes on from where the whole list was true.
        scene.server.delete("networkpolicies", "shop", "zz");
        scene.wait("a deletion afterwards", |scene| scene.allows(CLIENT, DB));
    }
}

#[test]
fn pages_of_different_versions_are_listed_in_one_piece() {
    let scene = Scene::unready(ApiConfig { streaming_lists: false, page_size: 1, ..config() }, |server| {
        server.put(deny("a", "none"));
        server.put(deny("web", "web"));
        let other = Answer::Body(OTHER.to_vec());
        server.fail(Fault::new("networkpolicies", Verb::List, 1, other).containing("continue="));
    });
    scene.wait("everything is listed", |scene| scene.store.current().is_some());
    assert!(!scene.allows(CLIENT, WEB), "the policy of the page that was not believed");
    let lists = scene.server.received_like("/networkpolicies");
    assert!(lists.iter().any(|list| list.path.ends_with("/networkpolicies")), "{lists:#?}");
}

#[test]
fn lists_and_streams_without_a_version_are_not_believed() {
    for version in ["", "0"] {
        let body = format!(r#"{{"kind":"PodList","metadata":{{"resourceVersion":"{version}"}},"items":[]}}"#);
        let end = format!(
            "{{\"type\":\"BOOKMARK\",\"object\":{{\"kind\":\"Pod\",\"metadata\":{{\"resourceVersion\":\"{version}\",\
             \"annotations\":{{\"k8s.io/initial-events-end\":\"true\"}}}}}}}}\n"
        );
        for (streaming_lists, answer) in [(false, body), (true, end)] {
            let scene = Scene::with(ApiConfig { streaming_lists, ..config() }, |_| {});
            scene.server.compact();
            scene.server.fail(Fault::new("pods", Verb::Any, 1, Answer::Body(answer.into_bytes())));
            scene.server.end_watches("pods", WatchEnd::Expired);
            scene.holds_for(Duration::from_secs(1), "the pods stay", |scene| scene.knows("10.0.0.1"));
            scene.settle();
            assert!(scene.knows("10.0.0.1") && scene.kind("Pod").relists > 0);
        }
    }
}

#[test]
fn streams_that_break_in_their_middle_take_nothing_away() {
    let broken =
        [Answer::BreakAfter(700), Answer::Silence, Answer::Status(500, None), Answer::Status(504, Some(1))];
    for answer in broken {
        let scene = Scene::with(config(), |server| {
            server.put(deny("web", "web"));
        });
        scene.server.fail(Fault::new("", Verb::Watch, 12, answer.clone()).containing("sendInitialEvents"));
        scene.server.put(pod("other", "late", "10.0.0.9"));
        scene.server.compact();
        scene.server.end_watches("", WatchEnd::Expired);
        let ends = std::time::Instant::now() + Duration::from_secs(40);
        while !(scene.knows("10.0.0.9") && scene.kind("NetworkPolicy").relists > 0) {
            assert!(scene.knows("10.0.0.1") && !scene.allows(CLIENT, WEB), "{answer:?}");
            assert!(std::time::Instant::now() < ends, "{answer:?}: {:#?}", scene.status());
        }
        scene.settle();
        assert!(
            scene.knows("10.0.0.1") && !scene.allows(CLIENT, WEB) && scene.allows(CLIENT, DB),
            "{answer:?}"
        );
    }
}

#[test]
fn watches_and_pages_wait_for_as_long_as_a_busy_server_asks() {
    let scene = Scene::unready(ApiConfig { streaming_lists: false, page_size: 1, ..config() }, |server| {
        let busy = Answer::Status(429, Some(2));
        server.fail(Fault::new("pods", Verb::List, 1, busy.clone()).containing("continue="));
        server.fail(Fault::new("pods", Verb::Watch, 1, busy));
    });
    scene.wait("everything is listed", |scene| scene.store.current().is_some());
    scene.settle();
    for (what, text) in [("a page", "continue="), ("a watch", "watch=true")] {
        let asked: Vec<_> = scene.server.received_like("/api/v1/pods?");
        let asked: Vec<_> = asked.into_iter().filter(|one| one.path.contains(text)).collect();
        let pause = asked[1].at.duration_since(asked[0].at);
        assert!(pause >= Duration::from_secs(2), "{what}: {pause:?} {asked:#?}");
    }
}
