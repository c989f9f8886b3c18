//! A node fed from the Kubernetes API: objects are created and changed in the server while traffic runs.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking, in its helpers too")]

use std::net::{TcpListener, TcpStream};
use std::time::{Duration, Instant};

use apiserver::{Answer, ApiServer, Fault, Verb, WatchEnd};
use lab::{Cluster, Pod, Sluice, SluiceOptions, wait_until};
use serde_json::{Value, json};
use suite::carried::Carried;
use suite::stage::{self, ALLOWED, DENIED, LIMIT, POLICY};

const CONFIG: &str =
    "api: { start_jitter_ms: 0, silence_ms: 3000, answer_timeout_ms: 2000, discovery_ms: 300 }\n";

/// A node with Sluice that follows a server in the node's own namespace.
struct Fed {
    // Ends before the namespace it runs in.
    sluice: Sluice,
    server: ApiServer,
    cluster: Cluster,
    options: SluiceOptions,
}

impl Fed {
    fn start(prepare: impl FnOnce(&ApiServer)) -> Self {
        let mut fed = Self::unready(prepare);
        fed.sluice.wait_ready(LIMIT).unwrap();
        fed
    }

    fn unready(prepare: impl FnOnce(&ApiServer)) -> Self {
        Self::with(|manifests| manifests, prepare)
    }

    fn with(edit: impl FnOnce(String) -> String, prepare: impl FnOnce(&ApiServer)) -> Self {
        let cluster = stage::pods().build().unwrap();
        let node = cluster.node("node1").unwrap();
        let listener = node.netns().run(|| TcpListener::bind(("127.0.0.1", 0)).unwrap());
        let server = ApiServer::on(listener).unwrap();
        server.apply(&edit(cluster.manifests()));
        server.apply(POLICY);
        prepare(&server);
        let options = SluiceOptions {
            kubeconfig: Some(server.kubeconfig("secret").unwrap()),
            config: CONFIG.to_owned(),
            ..SluiceOptions::default()
        };
        let sluice = node.start_sluice(&options).unwrap();
        Self { sluice, server, cluster, options }
    }

    fn pod(&self, name: &str) -> &Pod {
        self.cluster.pod(name).unwrap()
    }

    fn connects(&self, to: &str, port: u16) -> bool {
        let (client, to) = (self.pod("client"), self.pod(to).at(port));
        client.netns().connect(to, Duration::from_secs(5)).is_ok()
    }

    fn wait(&self, what: &str, condition: impl FnMut() -> bool) {
        assert!(wait_until(LIMIT, condition), "{what}\n{}", self.sluice.stderr());
    }
}

/// A policy that lets nobody in to `plain`.
fn closed() -> Value {
    json!({
        "apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy",
        "metadata": { "name": "plain", "namespace": "default" },
        "spec": { "podSelector": { "matchExpressions": [{ "key": "app", "operator": "DoesNotExist" }] }, "policyTypes": ["Ingress"] },
    })
}

#[test]
fn policies_of_the_api_are_enforced_and_their_changes_follow_under_traffic() {
    let fed = Fed::start(|_| {});
    let allowed = fed.pod("server").listen(ALLOWED).unwrap();
    let _denied = fed.pod("server").listen(DENIED).unwrap();
    let plain = fed.pod("plain").listen(ALLOWED).unwrap();
    assert!(fed.connects("server", ALLOWED) && !fed.connects("server", DENIED));
    let _ = allowed;
    let mut live = Carried::open(fed.pod("client").netns(), &plain, fed.pod("plain").at(ALLOWED));
    live.exchange(100, 100).unwrap();

    fed.server.put(closed());
    assert!(live.is_reset(), "the live connection ends with the policy");
    fed.wait("new ones are refused", || !fed.connects("plain", ALLOWED));
    fed.server.delete("networkpolicies", "default", "plain");
    fed.wait("and allowed again without it", || fed.connects("plain", ALLOWED));
}

#[test]
fn a_policy_that_does_not_validate_isolates_and_is_told_by_name() {
    let fed = Fed::start(|_| {});
    let _plain = fed.pod("plain").listen(ALLOWED).unwrap();
    let mut broken = closed();
    broken["spec"]["ingress"] = json!([{ "ports": [{ "port": 99_999 }] }]);
    fed.server.put(broken);
    fed.wait("what it selects is isolated", || !fed.connects("plain", ALLOWED));
    let series = "sluice_objects_rejected{kind=\"NetworkPolicy\"}";
    fed.wait("it is counted", || fed.sluice.metric(series).is_ok_and(|count| count == 1.0));
    let (_, status) = fed.sluice.get("/status").unwrap();
    let status: Value = serde_json::from_str(&status).unwrap();
    assert_eq!(status["source"]["kind"], "api");
    assert_eq!(status["source"]["rejected"][0]["object"], "NetworkPolicy/default/plain", "{status:#}");
    assert!(fed.sluice.stderr().contains("NetworkPolicy/default/plain"));
    fed.server.delete("networkpolicies", "default", "plain");
    fed.wait("it is forgotten with the policy", || fed.sluice.metric(series).is_ok_and(|count| count == 0.0));
}

#[test]
fn before_everything_was_listed_the_node_is_not_ready_and_says_why() {
    let mut fed = Fed::unready(|server| {
        server.fail(Fault::new("pods", Verb::Any, usize::MAX, Answer::Status(403, None)));
    });
    let mut seen = String::new();
    fed.wait("the reason is told", || {
        let answer = fed.sluice.get("/readyz");
        answer.is_ok_and(|(code, body)| {
            let told = code == 503 && body.contains("Pod (403");
            seen = body;
            told
        })
    });
    fed.server.heal();
    fed.sluice.wait_ready(LIMIT).unwrap();
}

#[test]
fn rules_that_an_earlier_process_left_stay_until_the_first_lists_are_complete() {
    let mut fed = Fed::start(|_| {});
    let _denied = fed.pod("server").listen(DENIED).unwrap();
    fed.sluice.kill9();
    assert!(!fed.connects("server", DENIED), "the rules alone keep it closed");
    fed.server.fail(Fault::new("", Verb::Any, usize::MAX, Answer::Status(503, None)));
    fed.sluice = fed.cluster.node("node1").unwrap().start_sluice(&fed.options).unwrap();
    fed.wait("it waits", || {
        fed.sluice.get("/readyz").is_ok_and(|(code, body)| code == 503 && body.contains("503"))
    });
    assert!(!fed.connects("server", DENIED));
    fed.server.heal();
    fed.sluice.wait_ready(Duration::from_secs(40)).unwrap();
    assert!(!fed.connects("server", DENIED));
}

#[test]
fn when_the_api_is_gone_decisions_go_on_and_readiness_tells_the_age() {
    let fed = Fed::start(|_| {});
    let _allowed = fed.pod("server").listen(ALLOWED).unwrap();
    let _denied = fed.pod("server").listen(DENIED).unwrap();
    fed.server.fail(Fault::new("", Verb::Any, usize::MAX, Answer::Reset));
    fed.server.end_watches("", WatchEnd::Reset);
    let mut seen = String::new();
    fed.wait("the age is told", || {
        let (code, body) = fed.sluice.get("/readyz").unwrap();
        assert_eq!(code, 200, "{body}");
        let told = body.contains("Pod") && body.contains(" last heard of ");
        seen = body;
        told
    });
    assert!(fed.connects("server", ALLOWED) && !fed.connects("server", DENIED), "{seen}");
    let age = "sluice_api_age_seconds{kind=\"Pod\"}";
    fed.wait("so do the metrics", || fed.sluice.metric(age).is_ok_and(|age| age > 1.0));
    fed.wait("so does the log", || fed.sluice.stderr().contains("does not answer as it should"));
    fed.server.put(closed());
    fed.server.heal();
    let _plain = fed.pod("plain").listen(ALLOWED).unwrap();
    let begun = Instant::now();
    let followed = wait_until(Duration::from_secs(40), || !fed.connects("plain", ALLOWED));
    assert!(
        followed,
        "what happened meanwhile is taken up, after {:?}\n{}",
        begun.elapsed(),
        fed.sluice.stderr()
    );
    fed.wait("the log tells the end", || fed.sluice.stderr().contains("answers again"));
    let log = fed.sluice.stderr();
    let lines: Vec<&str> =
        log.lines().filter(|line| line.contains(" WARN ") || line.contains(" ERROR ")).collect();
    assert_eq!(lines.len(), 1, "nine kinds in trouble are one line: {lines:#?}");
}

#[test]
fn a_node_that_nothing_names_enforces_nothing_and_is_not_ready_until_something_does() {
    let mut fed = Fed::with(|manifests| manifests.replace("node1", "elsewhere"), |_| {});
    let mut seen = String::new();
    fed.wait("the reason is told", || {
        fed.sluice.get("/readyz").is_ok_and(|(code, body)| {
            let told =
                code == 503 && body.contains("no Node is called \"node1\"") && body.contains("elsewhere");
            seen = body;
            told
        })
    });
    assert_eq!(seen.lines().count(), 1, "nothing else is wrong: {seen}");
    let (_, status) = fed.sluice.get("/status").unwrap();
    let status: Value = serde_json::from_str(&status).unwrap();
    assert_eq!(status["ready"], false, "{status:#}");
    fed.server.put(json!({ "apiVersion": "v1", "kind": "Node", "metadata": { "name": "node1" } }));
    fed.sluice.wait_ready(LIMIT).unwrap();
}

#[test]
fn load_a_change_in_the_api_is_enforced_within_milliseconds() {
    const CHANGES: usize = 100;
    let fed = Fed::start(|_| {});
    // It accepts: a full backlog would be silent.
    let _plain = fed.pod("plain").serve(ALLOWED).unwrap();
    let (client, to) = (fed.pod("client").netns(), fed.pod("plain").at(ALLOWED));
    let took: Vec<Duration> = client.run(|| {
        let flips = |open: bool| {
            let changed = Instant::now();
            if open {
                fed.server.delete("networkpolicies", "default", "plain")
            } else {
                let _ = fed.server.put(closed());
            }
            loop {
                let attempt = Instant::now();
                let connected = TcpStream::connect_timeout(&to, Duration::from_secs(2)).is_ok();
                if connected == open {
                    // By the time this attempt began it was in force.
                    return attempt.duration_since(changed);
                }
                assert!(changed.elapsed() < LIMIT, "{}", fed.sluice.stderr());
            }
        };
        (0..CHANGES).map(|number| flips(number % 2 == 1)).collect()
    });
    let mut sorted = took;
    sorted.sort_unstable();
    let (p50, p99) = (sorted[CHANGES / 2], sorted[CHANGES - 1 - CHANGES / 100]);
    println!("from the write in the API server to a connection decided by it: p50 {p50:?}, p99 {p99:?}");
    assert!(p50 < Duration::from_millis(10), "{sorted:?}");
}
