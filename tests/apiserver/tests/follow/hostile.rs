//! The server sends what no server should. It is told, it widens nothing, and nothing grows or ends.

use std::time::{Duration, Instant};

use apiserver::{Answer, Fault, Verb};
use policy_cache::ApiConfig;
use serde_json::json;

use crate::scene::{CLIENT, DB, Scene, WEB, admin_deny, config, deny, pod, policy};

fn resident_mib() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with("VmRSS:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap() / 1024
}

#[test]
fn a_policy_that_does_not_validate_never_widens_access_and_is_told_by_name() {
    let scene = Scene::new();
    assert!(scene.allows(CLIENT, WEB) && scene.allows(CLIENT, DB));
    let spec = json!({ "podSelector": { "matchLabels": { "app": "web" } },
        "ingress": [{ "ports": [{ "port": "80" }] }, { "ports": [{ "port": 80 }] }, { "ports": [{ "port": 81, "protocol": "QUIC" }] }] });
    scene.server.put(policy("p", spec));
    scene.wait("it is rejected", |scene| scene.rejected() == ["NetworkPolicy/shop/p"]);
    // "80" is no port name: the first and the third rule allow nothing, the second stays.
    assert!(scene.allows(CLIENT, WEB) && !scene.allows(CLIENT, "10.0.0.1:81") && scene.allows(CLIENT, DB));
    let lines = scene.status().rejected[0].1.clone();
    assert!(lines.iter().any(|line| line.contains("spec.ingress[2].ports[0].protocol")), "{lines:?}");
    scene.server.put(policy("p", json!({ "podSelector": { "matchLabels": 7 }, "ingress": [{}] })));
    scene.wait("its selector cannot be read", |scene| !scene.allows(CLIENT, DB));
    assert!(!scene.allows(CLIENT, WEB));
    scene.server.put(deny("p", "web"));
    scene.wait("it is mended", |scene| scene.rejected().is_empty() && scene.allows(CLIENT, DB));
    assert!(!scene.allows(CLIENT, WEB));
    let mut broken = admin_deny("c", "db");
    broken["spec"]["ingress"][0]["from"] = json!([{ "namespaces": { "matchLabels": { "a b": "c" } } }]);
    scene.server.put(broken);
    scene.wait("a broken Deny denies", |scene| !scene.allows(CLIENT, DB));
    assert_eq!(scene.rejected(), ["ClusterNetworkPolicy/c"]);
}

#[test]
fn a_pod_that_does_not_read_stays_as_it_last_was() {
    let scene = Scene::with(config(), |server| {
        server.put(deny("web", "web"));
    });
    let mut broken = pod("shop", "web", "10.0.0.1");
    broken["metadata"]["labels"] = json!({ "app": 5 });
    scene.server.put(broken);
    scene.wait("it is rejected", |scene| scene.rejected() == ["Pod/shop/web"]);
    assert!(scene.knows("10.0.0.1") && !scene.allows(CLIENT, WEB));
    assert_eq!(scene.kind("Pod").rejected, 1);
    // Also over a new list.
    scene.server.compact();
    scene.server.end_watches("pods", apiserver::WatchEnd::Expired);
    scene.wait("it is listed again", |scene| scene.kind("Pod").relists == 1);
    scene.settle();
    assert!(scene.knows("10.0.0.1") && !scene.allows(CLIENT, WEB));
    scene.server.delete("pods", "shop", "web");
    scene.wait("it goes", |scene| !scene.knows("10.0.0.1") && scene.rejected().is_empty());
}

#[test]
fn a_frame_that_cannot_be_read_closes_what_it_names_until_a_new_list_says_what_is_so() {
    let frames: [&[u8]; 6] = [
        b"garbage\n",
        b"{\"type\":\"ADDED\"}\n",
        b"{\"type\":\"SHOUTED\",\"object\":{\"metadata\":{\"name\":\"x\",\"namespace\":\"shop\"}}}\n",
        b"\xff\xfe\0\n",
        b"{\"type\":\"ADDED\",\"object\":{\"metadata\":{\"name\":\"x\",\"namespace\":\"shop\"},\"spec\":{\"podSelector\":}\n",
        b"[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[\n",
    ];
    for frame in frames {
        let scene = Scene::with(config(), |server| {
            server.put(deny("web", "web"));
        });
        scene.server.send_to_watches("networkpolicies", frame);
        scene.wait("everything is listed again", |scene| scene.kind("NetworkPolicy").relists >= 1);
        let what_is_so = format!("nothing is closed any more by {}", String::from_utf8_lossy(frame));
        scene.wait(&what_is_so, |scene| {
            scene.rejected().is_empty() && !scene.allows(CLIENT, WEB) && scene.allows(CLIENT, DB)
        });
        scene.server.put(deny("db", "db"));
        scene.wait("it goes on", |scene| !scene.allows(CLIENT, DB));
    }
}

#[test]
fn a_deletion_that_does_not_say_of_what_makes_a_new_list() {
    let scene = Scene::new();
    let nameless = json!({ "type": "DELETED", "object": { "metadata": { "namespace": "shop" } } });
    scene.server.delete_silently("pods", "shop", "web");
    scene.server.send_to_watches("pods", format!("{nameless}\n"));
    scene.wait("all is listed anew", |scene| scene.kind("Pod").relists >= 1 && !scene.knows("10.0.0.1"));
}

#[test]
fn what_is_told_is_never_as_long_as_what_it_is_about() {
    let long = "x".repeat(1 << 20);
    let told = |scene: &Scene| {
        let status = scene.status();
        let errors = status.kinds.into_iter().filter_map(|kind| kind.error);
        errors.chain(status.rejected.into_iter().flat_map(|(_, lines)| lines)).map(|line| line.len()).max()
    };
    let bodies = [
        format!("{long:?}"),
        format!(r#"{{"metadata":{long:?},"items":[]}}"#),
        format!(r#"{{"kind":{long:?},"metadata":{{"resourceVersion":"7"}},"items":[]}}"#),
        format!(r#"{{"metadata":{{"resourceVersion":"7"}},"items":{long:?}}}"#),
    ];
    for body in bodies {
        let scene = Scene::with(ApiConfig { streaming_lists: false, ..config() }, |_| {});
        scene.server.compact();
        scene.server.fail(Fault::new("", Verb::Any, usize::MAX, Answer::Body(body.into_bytes())));
        scene.server.end_watches("pods", apiserver::WatchEnd::Expired);
        scene.wait("it is told", |scene| scene.kind("Pod").error.is_some());
        scene.holds_for(Duration::from_millis(700), "in a line", |scene| {
            told(scene).is_none_or(|most| most < 2_000)
        });
        assert!(scene.knows("10.0.0.1"));
    }
    let scene = Scene::new();
    scene.server.put(policy("p", json!({ long.as_str(): { long.as_str(): long } })));
    scene.wait("it is rejected", |scene| scene.rejected() == ["NetworkPolicy/shop/p"]);
    assert!(told(&scene).is_some_and(|most| most < 2_000), "{:?}", told(&scene));
}

#[test]
fn a_frame_that_breaks_off_is_never_half_believed() {
    let scene = Scene::new();
    // A deletion without its line's end: it may have been the beginning of anything.
    let half = json!({ "type": "DELETED", "object": pod("shop", "web", "10.0.0.1") }).to_string();
    scene.server.send_to_watches("pods", half);
    scene.server.end_watches("pods", apiserver::WatchEnd::Reset);
    scene.settle();
    assert!(scene.knows("10.0.0.1"));
}

#[test]
fn load_an_object_of_50_mb_costs_no_memory_and_closes_what_it_names() {
    for streaming_lists in [true, false] {
        let scene = Scene::with(ApiConfig { streaming_lists, ..config() }, |_| {});
        let before = resident_mib();
        let large = |name: &str, spec: &str| {
            let padding = "x".repeat(50 << 20);
            format!(
                r#"{{"metadata":{{"name":"{name}","namespace":"shop","resourceVersion":"1","annotations":{{"a":"{padding}"}}}},{spec}}}"#
            )
        };
        scene.server.put_raw("pods", "shop", "large", large("large", r#""status":{"podIP":"10.0.0.8"}"#));
        scene.wait("the pod is rejected", |scene| scene.rejected() == ["Pod/shop/large"]);
        let spec = r#""spec":{"podSelector":{"matchLabels":{"app":"none"}}}"#;
        scene.server.put_raw("networkpolicies", "shop", "large", large("large", spec));
        scene.wait("the policy isolates its namespace", |scene| {
            !scene.allows(CLIENT, WEB) && !scene.allows(CLIENT, DB)
        });
        scene.wait("it is listed again", |scene| scene.kind("NetworkPolicy").relists >= 1);
        // The server is in this process, and has both objects and what it sends of them.
        let grown = resident_mib().saturating_sub(before);
        assert!(grown < 450, "{grown} MiB");
        scene.server.delete("networkpolicies", "shop", "large");
        scene.server.delete("pods", "shop", "large");
        scene.wait("both are gone", |scene| scene.allows(CLIENT, WEB) && scene.rejected().is_empty());
    }
}

#[test]
fn lists_that_are_none_or_break_off_are_asked_for_again() {
    let whole =
        br#"{"metadata":{"resourceVersion":"1"},"items":[{"metadata":{"name":"x","namespace":"shop"}}]}"#;
    let mut answers: Vec<Answer> = [
        &b"[]"[..],
        b"{}",
        b"nothing",
        br#"{"items":[1,2]}"#,
        br#"{"items":[{"metadata":{"name":"x"}}"#,
        br#"{"metadata":{"resourceVersion":7},"items":[]}"#,
        br#"{"metadata":{"resourceVersion":"7"}}"#,
        br#"{"metadata":{"resourceVersion":"7"},"items":{}}"#,
        br#"{"kind":"Status","metadata":{"resourceVersion":"7"},"items":[]}"#,
        br#"{"kind":"PodList","metadata":{"resourceVersion":"7"},"items":[]}"#,
    ]
    .into_iter()
    .map(|body| Answer::Body(body.to_vec()))
    .collect();
    answers.extend([1, 30, 60].map(|bytes| Answer::BreakAfter(whole.len().min(bytes))));
    for answer in answers {
        let scene = Scene::unready(ApiConfig { streaming_lists: false, ..config() }, |server| {
            server.put(deny("web", "web"));
            server.fail(Fault::new("networkpolicies", Verb::List, 2, answer.clone()));
        });
        scene.wait("everything is listed", |scene| scene.store.current().is_some());
        assert!(!scene.allows(CLIENT, WEB) && scene.allows(CLIENT, DB), "{answer:?}");
    }
}

#[test]
fn a_list_without_any_items_may_say_null() {
    let scene = Scene::unready(ApiConfig { streaming_lists: false, ..config() }, |server| {
        let body = br#"{"kind":"ServiceList","metadata":{"resourceVersion":"1"},"items":null}"#;
        server.fail(Fault::new("services", Verb::List, 1, Answer::Body(body.to_vec())));
    });
    scene.wait("everything is listed", |scene| scene.store.current().is_some());
    assert_eq!(scene.kind("Service").relists, 0);
}

#[test]
fn pages_that_lead_nowhere_are_asked_for_ever_more_rarely_and_the_last_state_stays() {
    let page = |items: &str| {
        let metadata = r#"{"resourceVersion":"9","continue":"same"}"#;
        format!(r#"{{"kind":"NetworkPolicyList","metadata":{metadata},"items":[{items}]}}"#).into_bytes()
    };
    for items in ["", r#"{"metadata":{"name":"x","namespace":"none"},"spec":{"podSelector":{}}}"#] {
        let scene = Scene::with(ApiConfig { streaming_lists: false, ..config() }, |server| {
            server.put(deny("web", "web"));
        });
        let answer = Answer::Body(page(items));
        scene.server.fail(Fault::new("networkpolicies", Verb::List, 1_000_000, answer));
        scene.server.compact();
        scene.server.end_watches("networkpolicies", apiserver::WatchEnd::Expired);
        let asked =
            || scene.server.received().iter().filter(|one| one.path.contains("networkpolicies")).count();
        let before = asked();
        scene.holds_for(Duration::from_secs(4), "the last state stays", |scene| !scene.allows(CLIENT, WEB));
        assert!(asked() - before < 25, "{} requests", asked() - before);
        let kind = scene.kind("NetworkPolicy");
        assert!(kind.listing.unwrap() > Duration::from_secs(2), "{kind:?}");
        scene.server.heal();
        scene.wait("a list that ends", |scene| scene.kind("NetworkPolicy").listing.is_none());
        assert!(!scene.allows(CLIENT, WEB) && scene.allows(CLIENT, DB));
    }
}

#[test]
fn a_watch_of_blank_lines_is_silent() {
    let scene = Scene::with(config(), |server| {
        server.set(|set| set.bookmarks = Duration::from_secs(600));
    });
    let before = scene.kind("NetworkPolicy").reconnects;
    scene.wait("it is opened anew", |scene| {
        scene.server.send_to_watches("networkpolicies", "\n");
        scene.kind("NetworkPolicy").reconnects > before
    });
}

#[test]
fn load_thousands_of_rejected_policies_are_told_of_in_seconds() {
    const MANY: usize = 5_000;
    let spec = json!({ "podSelector": {}, "ingresss": [{}], "ingress": [{ "ports": [{ "port": -1 }] }] });
    let start = Instant::now();
    let scene = Scene::with(config(), |server| {
        for number in 0..MANY {
            server.put(policy(&format!("p{number}"), spec.clone()));
        }
    });
    assert!(start.elapsed() < Duration::from_secs(10), "{:?}", start.elapsed());
    assert_eq!(scene.rejected().len(), MANY);
}

#[test]
fn any_chunking_of_the_bytes_is_the_same() {
    for streaming_lists in [true, false] {
        let scene = Scene::with(ApiConfig { streaming_lists, ..config() }, |server| {
            server.set(|set| set.chunk = 7);
            server.put(deny("web", "web"));
        });
        assert!(!scene.allows(CLIENT, WEB) && scene.allows(CLIENT, DB));
        scene.server.put(deny("db", "db"));
        scene.wait("an event in pieces", |scene| !scene.allows(CLIENT, DB));
    }
}

#[test]
fn a_server_that_says_nothing_at_all_is_asked_again() {
    let scene = Scene::unready(ApiConfig { answer_timeout_ms: 500, ..config() }, |server| {
        server.fail(Fault::new("pods", Verb::Any, 2, Answer::Silence));
    });
    scene.wait("everything is listed", |scene| scene.store.current().is_some());
    std::thread::sleep(Duration::from_millis(10));
    assert!(scene.knows("10.0.0.1"));
}
