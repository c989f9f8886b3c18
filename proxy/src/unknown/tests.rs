use std::net::SocketAddr;
use std::path::Path;

use audit::{Recorder, RecorderConfig, Sink};
use flow::{Endpoint, Generation, Reason, Tuple};
use policy_cache::{Options, compile, parse};

use super::*;
use crate::registry::{Registered, Registry};

const NODE: &str = "
apiVersion: v1
kind: Node
metadata: {name: node1}
spec: {podCIDRs: [10.244.1.0/24]}
";
/// Long enough that no test meets it by chance.
const LIMIT_MS: u64 = 20_000;
const OLD: u8 = 1;
const NEW: u8 = 9;

fn pod(last: u8, node: &str) -> String {
    format!(
        "---\napiVersion: v1\nkind: Pod\nmetadata: {{name: pod{last}, namespace: a}}\n\
         spec: {{nodeName: {node}}}\nstatus: {{phase: Running, podIP: 10.244.1.{last}}}\n"
    )
}

fn snapshot(generation: u64, manifests: &str) -> Snapshot {
    let objects = parse([(Path::new("cluster.yaml"), manifests)]).unwrap();
    let options = Options { node: Some("node1".to_owned()), ..Options::default() };
    compile(&objects, &options, Generation(generation))
}

/// A store, those who wait, and a registry that records nothing.
struct Scene {
    policy: SnapshotStore,
    waiting: Arc<Waiting>,
    registry: Arc<Registry>,
}

impl Scene {
    fn new(limit_ms: u64) -> Self {
        let metrics = Metrics::default();
        let (recorder, _writer) =
            Recorder::start(RecorderConfig::default(), Sink::Discard, "node1", metrics.clone()).unwrap();
        Self {
            policy: SnapshotStore::new(),
            waiting: Arc::new(waiting(2_048, 512, limit_ms)),
            registry: Arc::new(Registry::new(recorder, metrics)),
        }
    }

    /// An attempt between two addresses, decided by a task of its own.
    fn attempt(&self, from: u8, to: u8, port: u16, behind: BehindInterface) -> tokio::task::JoinHandle<Told> {
        let (policy, waiting) = (self.policy.clone(), Arc::clone(&self.waiting));
        let connection = self.register(from, to, port);
        tokio::spawn(async move {
            match decide(&policy, &waiting, connection.live(), behind).await {
                Ok(decided) => Told {
                    at: Instant::now(),
                    allowed: decided.permit.is_some(),
                    source: Some(decided.judged.source),
                    reason: Some(decided.judged.decision.ingress.reason),
                },
                Err(_) => Told { at: Instant::now(), allowed: false, source: None, reason: None },
            }
        })
    }

    fn register(&self, from: u8, to: u8, port: u16) -> Registered {
        let at = |last, port| SocketAddr::from(([10, 244, 1, last], port));
        self.registry.register(Tuple::tcp(at(from, port), at(to, 80))).unwrap()
    }

    fn publish(&self, generation: u64, manifests: &str) {
        self.policy.publish(snapshot(generation, manifests));
    }

    async fn held(&self, count: i64) {
        let reached = async {
            while self.waiting.metrics.gate_unknown_held.get() != count {
                tokio::task::yield_now().await;
            }
        };
        tokio::time::timeout(Duration::from_secs(10), reached).await.unwrap();
    }
}

struct Told {
    at: Instant,
    allowed: bool,
    source: Option<Endpoint>,
    reason: Option<Reason>,
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap()
}

#[test]
fn an_attempt_waits_for_the_first_snapshot_and_for_either_end() {
    runtime().block_on(async {
        let scene = Scene::new(LIMIT_MS);
        let none = BehindInterface::default();
        let known = scene.attempt(OLD, OLD + 1, 1, none);
        let (from, to) = (scene.attempt(NEW, OLD, 2, none), scene.attempt(OLD, NEW, 3, none));
        scene.held(3).await;
        let old = format!("{NODE}{}{}", pod(OLD, "node1"), pod(OLD + 1, "node1"));
        scene.publish(1, &old);
        assert!(known.await.unwrap().allowed);
        // A snapshot that does not know it either leaves it waiting.
        scene.publish(2, &format!("{old}{}", pod(5, "node1")));
        scene.held(2).await;
        assert!(!from.is_finished() && !to.is_finished());
        scene.publish(3, &format!("{old}{}", pod(NEW, "node1")));
        let from = from.await.unwrap();
        assert_eq!(&*from.source.unwrap().pod().unwrap().name, "pod9");
        assert!(from.allowed && to.await.unwrap().allowed);
        scene.held(0).await;
        assert_eq!(scene.waiting.metrics.gate_unknown_refused.get(), 0);
    });
}

#[test]
fn what_stays_unknown_is_refused_at_the_limit_and_counted() {
    runtime().block_on(async {
        for manifests in [None, Some(format!("{NODE}{}", pod(OLD, "node1")))] {
            let scene = Scene::new(50);
            if let Some(manifests) = &manifests {
                scene.publish(1, manifests);
            }
            let begin = Instant::now();
            let told = scene.attempt(NEW, OLD, 1, BehindInterface::default()).await.unwrap();
            assert!(!told.allowed && told.at - begin >= Duration::from_millis(50));
            let expected = if manifests.is_some() { Reason::UnknownLocalPod } else { Reason::NoSnapshot };
            assert_eq!(told.reason, Some(expected));
            assert_eq!(scene.waiting.metrics.gate_unknown_refused.get(), 1);
        }
    });
}

#[test]
fn an_order_to_end_ends_the_waiting() {
    runtime().block_on(async {
        let scene = Scene::new(LIMIT_MS);
        let attempt = scene.attempt(NEW, OLD, 1, BehindInterface::default());
        scene.held(1).await;
        scene.registry.all().iter().for_each(|live| live.stop(Stop::Shutdown));
        assert!(attempt.await.unwrap().source.is_none());
        scene.held(0).await;
        assert_eq!(scene.waiting.metrics.gate_unknown_refused.get(), 0);
    });
}

#[test]
fn an_end_behind_an_interface_of_pods_waits_until_it_is_a_pod_of_this_node() {
    runtime().block_on(async {
        let scene = Scene::new(LIMIT_MS);
        // No ranges: by its address it is external, or another node's.
        for (round, before) in [String::new(), pod(NEW, "node2")].into_iter().enumerate() {
            let generation = round as u64 * 2 + 1;
            scene.publish(generation, &format!("{}{before}", pod(OLD, "node1")));
            let none = BehindInterface::default();
            assert!(scene.attempt(OLD, NEW, 1, none).await.unwrap().allowed);
            let to = scene.attempt(OLD, NEW, 2, BehindInterface { destination: true, ..none });
            let from = scene.attempt(NEW, OLD, 3, BehindInterface { client: true, ..none });
            scene.held(2).await;
            scene.publish(generation + 1, &format!("{}{}", pod(OLD, "node1"), pod(NEW, "node1")));
            assert!(to.await.unwrap().allowed && from.await.unwrap().allowed);
        }
    });
}

#[test]
fn a_pod_that_appears_and_vanishes_before_anyone_looks_leaves_its_attempt_waiting() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let scene = Scene::new(100);
        let attempt = scene.attempt(NEW, OLD, 1, BehindInterface::default());
        scene.held(1).await;
        let old = format!("{NODE}{}", pod(OLD, "node1"));
        // One thread: the attempt looks again only after the second.
        scene.publish(1, &format!("{old}{}", pod(NEW, "node1")));
        scene.publish(2, &old);
        let told = attempt.await.unwrap();
        assert_eq!((told.allowed, told.reason), (false, Some(Reason::UnknownLocalPod)));
    });
}

/// From the change of an object, compiling included, to the decision on the attempt that waits for it. The
/// bound is ten times what a quiet machine needs, for one that is not.
#[test]
fn load_from_a_pod_s_event_to_the_decision_on_its_held_attempt_takes_milliseconds() {
    runtime().block_on(async {
        let scene = Scene::new(LIMIT_MS);
        let cluster: String =
            (10..110).map(|last| pod(last, "node1")).collect::<Vec<_>>().concat() + &pod(OLD, "node1");
        let objects = |manifests: &str| parse([(Path::new("cluster.yaml"), manifests)]).unwrap();
        let (without, with) =
            (objects(&format!("{NODE}{cluster}")), objects(&format!("{NODE}{cluster}{}", pod(NEW, "node1"))));
        let options = Options { node: Some("node1".to_owned()), ..Options::default() };
        let mut times = Vec::new();
        for round in 0..200_u64 {
            scene.policy.publish(compile(&without, &options, Generation(2 * round + 1)));
            let attempt = scene.attempt(NEW, OLD, 1, BehindInterface::default());
            scene.held(1).await;
            let event = Instant::now();
            scene.policy.publish(compile(&with, &options, Generation(2 * round + 2)));
            let told = attempt.await.unwrap();
            assert!(told.allowed);
            times.push(told.at - event);
        }
        times.sort_unstable();
        let (p50, p99) = (times[times.len() / 2], times[times.len() * 99 / 100]);
        println!("event to decision, 101 pods: p50 {p50:?}, p99 {p99:?}");
        assert!(p99 < Duration::from_millis(50), "p50 {p50:?}, p99 {p99:?}");
    });
}

fn waiting(max_pending: usize, max_pending_per_client: usize, limit_ms: u64) -> Waiting {
    let config = ProxyConfig {
        max_pending,
        max_pending_per_client,
        unknown_pod_timeout_ms: limit_ms,
        ..ProxyConfig::default()
    };
    Waiting::new(&config, Metrics::default())
}

fn client(last: u8) -> IpAddr {
    IpAddr::from([10, 0, 0, last])
}

#[test]
fn a_client_fills_a_quarter_of_its_places_and_all_together_half() {
    let waiting = waiting(16, 8, 5_000);
    let first: Vec<_> = (0..3).map_while(|_| waiting.enter(client(1))).collect();
    assert_eq!(first.len(), 2);
    let others: Vec<_> = (2..12).filter_map(|last| waiting.enter(client(last))).collect();
    assert_eq!(others.len(), 6);
    assert_eq!(waiting.metrics.gate_unknown_held.get(), 8);
    drop(first);
    assert!(waiting.enter(client(1)).is_some());
    drop(others);
    assert_eq!(waiting.metrics.gate_unknown_held.get(), 0);
    assert!(waiting.per_client.lock().unwrap().clients.is_empty());
}

#[test]
fn small_limits_leave_one_place_and_a_limit_of_zero_none() {
    assert!(waiting(1, 1, 1).enter(client(1)).is_some());
    assert!(waiting(2_048, 512, 0).enter(client(1)).is_none());
}
