//! What answers is no API server, or one that hardly answers. It is told, nothing that is known changes, and nobody is
//! kept busy.

use std::time::Duration;

use apiserver::{Answer, ApiServer, Fault, Verb, WatchEnd};
use policy_cache::{Access, ApiConfig, ApiSource, Options};

use crate::scene::{CLIENT, DB, Scene, WEB, config, deny, pod};

const MANY: usize = usize::MAX;
const PAGE: &[u8] = b"<!doctype html><html><body>Sign in</body></html>";

/// The first bytes of anything that gzip has packed (RFC 1952, 2.3).
const PACKED: &[u8] = &[0x1f, 0x8b, 8, 0, 0, 0, 0, 0, 0, 3];

#[test]
fn what_no_api_server_answers_is_told_and_the_last_state_stays() {
    let json = ("content-type", "application/json");
    let list = br#"{"kind":"List","metadata":{"resourceVersion":"9"},"items":[]}"#.to_vec();
    let answers = [
        (
            Answer::Foreign(200, vec![("content-type", "text/html; charset=utf-8")], PAGE.to_vec()),
            "text/html",
        ),
        (Answer::Foreign(200, vec![], PAGE.to_vec()), "cannot be read"),
        (Answer::Foreign(200, vec![json, ("content-encoding", "gzip")], PACKED.to_vec()), "gzip"),
        // It says nothing of what it is, and would take everything away.
        (Answer::Foreign(200, vec![("content-type", "text/plain")], list), "text/plain"),
        (Answer::Foreign(302, vec![("location", "https://sign.in/")], PAGE.to_vec()), "https://sign.in/"),
        (Answer::Foreign(502, vec![("content-type", "text/html")], PAGE.to_vec()), "502"),
    ];
    for (answer, told) in answers {
        for streaming_lists in [true, false] {
            let scene = Scene::with(ApiConfig { streaming_lists, ..config() }, |server| {
                server.put(deny("web", "web"));
            });
            scene.server.compact();
            scene.server.fail(Fault::new("", Verb::Any, MANY, answer.clone()));
            scene.server.end_watches("", WatchEnd::Expired);
            let asked = || scene.server.received_like("/networkpolicies").len();
            let before = asked();
            scene.wait(told, |scene| {
                scene.kind("NetworkPolicy").error.is_some_and(|error| error.contains(told))
            });
            scene.holds_for(Duration::from_secs(1), "the last state stays", |scene| {
                !scene.allows(CLIENT, WEB) && scene.allows(CLIENT, DB) && scene.knows("10.0.0.3")
            });
            assert!(asked() - before < 12, "{told}: {} requests", asked() - before);
            scene.server.heal();
            scene.server.put(deny("db", "db"));
            scene.wait("an API server again", |scene| !scene.allows(CLIENT, DB));
        }
    }
}

#[test]
fn a_server_with_an_expired_certificate_is_not_spoken_to_and_the_reason_is_told() {
    let server = ApiServer::start_expired().unwrap();
    let access = Access::Kubeconfig(server.kubeconfig("secret").unwrap());
    let (api, store) = ApiSource::start(access, &config(), Options::default()).unwrap();
    let scene = Scene { api, store, server };
    scene.wait("the reason is told", |scene| {
        scene.kind("Pod").error.is_some_and(|error| error.contains("certificate") && error.contains("xpired"))
    });
    assert!(scene.store.current().is_none() && scene.server.received().is_empty());
}

#[test]
fn a_list_that_drips_is_given_up_and_does_not_make_what_is_known_look_fresh() {
    let scene = Scene::with(ApiConfig { streaming_lists: false, ..config() }, |server| {
        server.put(deny("web", "web"));
    });
    // An object takes longer than an answer may.
    scene.server.fail(Fault::new("pods", Verb::List, MANY, Answer::Drip(Duration::from_millis(100))));
    scene.server.compact();
    scene.server.end_watches("pods", WatchEnd::Expired);
    scene.wait("it is told", |scene| {
        scene.kind("Pod").error.is_some_and(|error| error.contains("nothing whole came"))
    });
    assert!(scene.kind("Pod").age.unwrap() >= Duration::from_secs(2), "{:?}", scene.kind("Pod"));
    assert!(scene.knows("10.0.0.1") && !scene.allows(CLIENT, WEB));
    scene.server.heal();
    scene.settle();
    assert!(scene.kind("Pod").age.unwrap() < Duration::from_secs(2), "{:?}", scene.kind("Pod"));
}

#[test]
fn a_list_without_end_is_told_and_changes_nothing_and_an_object_without_end_is_given_up() {
    let time = Duration::from_secs(6);
    let head = br#"{"kind":"PodList","metadata":{"resourceVersion":"900"},"items":["#.to_vec();
    let ghost = br#"{"metadata":{"name":"ghost","namespace":"other"}},"#.to_vec();
    let bytes = b"xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx".repeat(64);
    let object =
        [&head[..], br#"{"metadata":{"name":"ghost","namespace":"other","annotations":{"a":""#].concat();
    for (answer, is_object) in
        [(Answer::Endless(head, ghost, time), false), (Answer::Endless(object, bytes, time), true)]
    {
        let scene = Scene::with(ApiConfig { streaming_lists: false, ..config() }, |_| {});
        scene.server.fail(Fault::new("pods", Verb::List, 1, answer));
        scene.server.compact();
        scene.server.end_watches("pods", WatchEnd::Expired);
        if is_object {
            scene.wait("it is told", |scene| {
                scene.kind("Pod").error.is_some_and(|error| error.contains("nothing whole came"))
            });
        } else {
            scene.wait("it is told", |scene| {
                scene.kind("Pod").listing.is_some_and(|lasting| lasting > Duration::from_secs(3))
            });
            assert!(scene.kind("Pod").age.unwrap() >= Duration::from_secs(3), "{:?}", scene.kind("Pod"));
        }
        assert!(scene.knows("10.0.0.1") && scene.knows("10.0.0.3"));
        scene.server.put(pod("other", "late", "10.0.0.9"));
        scene.wait("a list that ends", |scene| scene.knows("10.0.0.9"));
    }
}

#[test]
fn watch_bytes_without_a_line_are_no_sign_of_life() {
    let scene = Scene::with(config(), |server| {
        server.set(|set| set.bookmarks = Duration::from_secs(600));
    });
    scene.settle();
    let before = scene.kind("Pod").reconnects;
    let endless = Answer::Endless(b"{\"type\":".to_vec(), b" ".repeat(512), Duration::from_secs(60));
    scene.server.fail(Fault::new("pods", Verb::Watch, 1, endless));
    scene.server.end_watches("pods", WatchEnd::Clean);
    scene.wait("it is opened anew", |scene| scene.kind("Pod").reconnects >= before + 2);
    scene.settle();
    assert_eq!(scene.kind("Pod").relists, 0);
}
