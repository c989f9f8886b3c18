//! Connections of pods that run before anyone has told of them: held at the gate, then decided like any
//! other, or refused.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking, in its helpers too")]

use std::collections::BTreeMap;
use std::io::ErrorKind;
use std::net::{SocketAddr, TcpStream};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use lab::{Cluster, ClusterBuilder, Netns, PodSpec, SluiceOptions, greeting_peer, wait_until};
use serde_json::Value;
use suite::enforced::{Enforced, LIMIT, is_from, told};
use suite::stage::is_final;

const NODE: &str = "node1";
const HELD: &str = "sluice_gate_unknown_held";
/// Longer than any test waits for a pod to be told of.
const PATIENT: &str = "proxy: { unknown_pod_timeout_ms: 30000 }\n";
/// `server` lets in nobody but on port 8000, and pods labelled `app: server` too.
const POLICY: &str = "\
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: { name: server, namespace: default }
spec:
  podSelector: { matchLabels: { app: server } }
  policyTypes: [Ingress]
  ingress:
  - ports: [{ protocol: TCP, port: 8000 }]
";

fn builder() -> ClusterBuilder {
    Cluster::builder()
        .pod(PodSpec::new("client"))
        .pod(PodSpec::new("plain"))
        .pod(PodSpec::new("server").label("app", "server"))
        .pod(PodSpec::new("late"))
        .pod(PodSpec::new("late-server").label("app", "server"))
}

/// The cluster's objects without these pods, and without ranges when `ranges` is false.
fn without(cluster: &Cluster, pods: &[&str], ranges: bool) -> String {
    let is_of = |document: &str, pod: &str| {
        document.lines().any(|line| line == "kind: Pod")
            && document.lines().any(|line| line == format!("  name: {pod}"))
    };
    let text = cluster.manifests();
    let documents: Vec<String> = text
        .split("---\n")
        .filter(|document| !pods.iter().any(|pod| is_of(document, pod)))
        .map(|document| {
            let mut kept = String::new();
            let mut in_ranges = false;
            for line in document.split_inclusive('\n') {
                in_ranges = line.contains("podCIDR") || (in_ranges && line.trim_start().starts_with("- "));
                if ranges || !in_ranges {
                    kept.push_str(line);
                }
            }
            kept
        })
        .collect();
    let kept = documents.join("---\n");
    assert_eq!(text.matches("kind: Pod\n").count(), kept.matches("kind: Pod\n").count() + pods.len());
    kept
}

/// The cluster and Sluice, which knows neither `late` nor `late-server`.
fn scene(config: &str) -> Enforced {
    scene_of(config, true)
}

fn scene_of(config: &str, ranges: bool) -> Enforced {
    let cluster = builder().build().unwrap();
    cluster.write_policy("policy.yaml", POLICY).unwrap();
    let objects = without(&cluster, &["late", "late-server"], ranges);
    cluster.write_policy("cluster.yaml", &objects).unwrap();
    Enforced::on(cluster, &[NODE], config)
}

/// Tells of every pod.
fn tell(cluster: &Cluster) {
    cluster.write_policy("cluster.yaml", &cluster.manifests()).unwrap();
}

/// A connection attempt in a thread of its own: from where, and how it went.
struct Attempt {
    from: SocketAddr,
    thread: JoinHandle<Result<(), ErrorKind>>,
}

impl Attempt {
    fn start(netns: &Netns, to: SocketAddr) -> Self {
        Self::start_for(netns, to, LIMIT)
    }

    fn start_for(netns: &Netns, to: SocketAddr, limit: Duration) -> Self {
        let socket = netns.bound(SocketAddr::from(([0, 0, 0, 0], 0))).unwrap();
        let port = socket.local_addr().unwrap().as_socket().unwrap().port();
        let name = netns.name().to_owned();
        let address = Netns::open(&name).unwrap().run(move || source_towards(to));
        let from = SocketAddr::new(address, port);
        let thread = thread::spawn(move || {
            socket.connect_timeout(&to.into(), limit).map_err(|error| error.kind())?;
            let mut stream = TcpStream::from(socket);
            greeting_peer(&mut stream, LIMIT).map(drop).map_err(|error| error.kind())
        });
        Self { from, thread }
    }

    fn is_waiting(&self) -> bool {
        !self.thread.is_finished()
    }

    fn outcome(self) -> (SocketAddr, Result<(), ErrorKind>) {
        (self.from, self.thread.join().unwrap())
    }
}

/// The address that this thread's namespace would send from.
fn source_towards(to: SocketAddr) -> std::net::IpAddr {
    let socket = std::net::UdpSocket::bind("0.0.0.0:0").unwrap();
    socket.connect(to).unwrap();
    socket.local_addr().unwrap().ip()
}

/// Every record about a client's attempt, which has exactly one last one.
fn records_of(cluster: &Enforced, from: SocketAddr) -> Vec<Value> {
    cluster.last_record(NODE, from);
    let records = cluster.records(NODE);
    records.into_iter().filter(|record| is_from(record, from)).collect()
}

fn reason(record: &Value, side: &str) -> String {
    record["sluice"][side]["reason"].as_str().unwrap_or_default().to_owned()
}

fn pod_of(record: &Value, end: &str) -> String {
    record[end]["k8s"]["pod"].as_str().unwrap_or_default().to_owned()
}

#[test]
fn an_unknown_pod_s_connections_are_held_and_decided_once_it_is_known_in_both_directions() {
    let cluster = scene(PATIENT);
    let pod = |name: &str| cluster.pod(name);
    let _servers: Vec<_> = [("plain", 80), ("server", 8000), ("late", 80), ("late-server", 8000)]
        .map(|(name, port)| pod(name).serve(port).unwrap())
        .into();
    let table = [
        ("late", "plain", 80, Ok(())),
        ("late", "server", 8000, Ok(())),
        ("late", "server", 9999, Err(ErrorKind::ConnectionRefused)),
        ("client", "late", 80, Ok(())),
        ("server", "late", 80, Ok(())),
        ("client", "late-server", 8000, Ok(())),
        ("client", "late-server", 9999, Err(ErrorKind::ConnectionRefused)),
        ("late", "late-server", 8000, Ok(())),
        ("late", "late-server", 9999, Err(ErrorKind::ConnectionRefused)),
    ];
    let attempts = table
        .map(|(from, to, port, expected)| (from, to, expected, Attempt::start(pod(from), pod(to).at(port))));
    cluster.wait_metric(NODE, HELD, 9.0);
    assert!(attempts.iter().all(|(.., attempt)| attempt.is_waiting()));
    cluster.change(tell);
    for (from, to, expected, attempt) in attempts {
        let (address, outcome) = attempt.outcome();
        assert_eq!(outcome, expected, "{from} to {to}");
        let records = records_of(&cluster, address);
        let last = records.last().unwrap();
        assert_eq!((pod_of(last, "source"), pod_of(last, "destination")), (from.into(), to.into()));
        if expected.is_err() {
            assert_eq!(told(last), "connection-denied policy-denied");
            assert_eq!(reason(last, "ingress"), "no-rule-matched");
            assert_eq!(records.len(), 1);
        } else {
            assert_eq!(records.len(), 2, "{records:#?}");
        }
    }
    assert_eq!(cluster.metric(NODE, HELD), 0.0);
    assert_eq!(cluster.metric(NODE, "sluice_gate_unknown_refused_total"), 0.0);
    assert_eq!(cluster.metric(NODE, "sluice_gate_unknown_latency_seconds_count"), 9.0);
}

#[test]
fn what_nobody_ever_tells_of_is_refused_at_the_limit_and_recorded_once() {
    let cluster = scene("proxy: { unknown_pod_timeout_ms: 600 }\n");
    let limit = Duration::from_millis(600);
    let nowhere: SocketAddr = "10.244.1.200:80".parse().unwrap();
    let (late, client) = (cluster.pod("late"), cluster.pod("client"));
    for (from, to) in [
        (late, cluster.pod("plain").at(80)),
        (late, cluster.external().at(80)),
        (client, late.at(80)),
        (client, nowhere),
    ] {
        let begin = Instant::now();
        let (address, outcome) = Attempt::start(from, to).outcome();
        let took = begin.elapsed();
        assert_eq!(outcome, Err(ErrorKind::ConnectionRefused), "{to}");
        assert!(took >= limit && took < limit + LIMIT / 2, "{to}: {took:?}");
        let records = records_of(&cluster, address);
        assert_eq!(records.len(), 1);
        assert_eq!(told(&records[0]), "connection-denied policy-denied");
        assert_eq!(reason(&records[0], "egress"), "unknown-local-pod");
        assert_eq!(reason(&records[0], "ingress"), "unknown-local-pod");
    }
    assert_eq!(cluster.metric(NODE, "sluice_gate_unknown_refused_total"), 4.0);
}

#[test]
fn where_the_node_has_no_ranges_unknown_pods_are_found_by_their_interface() {
    let servers = |cluster: &Enforced| {
        [("plain", 80), ("late", 80)].map(|(name, port)| cluster.pod(name).serve(port).unwrap())
    };
    let attempts = |cluster: &Enforced| {
        [("late", "plain"), ("client", "late")]
            .map(|(from, to)| Attempt::start(cluster.pod(from), cluster.pod(to).at(80)))
    };
    let pattern = format!("{PATIENT}redirect: {{ pod_interfaces: ['veth*'] }}\n");
    let cluster = scene_of(&pattern, false);
    let _servers = servers(&cluster);
    let waiting = attempts(&cluster);
    let outside = Attempt::start(cluster.pod("late"), cluster.external().at(80));
    let _external = cluster.external().serve(80).unwrap();
    cluster.wait_metric(NODE, HELD, 3.0);
    cluster.change(|cluster| cluster.write_policy("cluster.yaml", &without(cluster, &[], false)).unwrap());
    for attempt in waiting {
        let (address, outcome) = attempt.outcome();
        assert_eq!(outcome, Ok(()));
        let last = cluster.last_record(NODE, address);
        assert!(pod_of(&last, "source") == "late" || pod_of(&last, "destination") == "late");
    }
    assert_eq!(outside.outcome().1, Ok(()));
    // The node itself is behind none of them.
    let node = cluster.node(NODE).unwrap();
    let _on_node = node.serve(8080).unwrap();
    let mut stream = cluster.external().connect(node.at(8080), LIMIT).unwrap();
    greeting_peer(&mut stream, LIMIT).unwrap();

    // Without either, nobody takes it for a pod: known pods are taken to speak with the outside.
    let cluster = scene_of(PATIENT, false);
    let _servers = servers(&cluster);
    for attempt in attempts(&cluster) {
        assert_eq!(attempt.outcome().1, Ok(()));
    }
    assert_eq!(cluster.metric(NODE, HELD), 0.0);
}

#[test]
fn one_client_s_attempts_to_unknown_pods_leave_room_for_others_and_for_itself() {
    let limits = "proxy: { unknown_pod_timeout_ms: 30000, max_pending: 64, max_pending_per_client: 16 }\n";
    let cluster = scene(limits);
    let (client, late, plain) = (cluster.pod("client"), cluster.pod("late"), cluster.pod("plain"));
    let _servers = [plain.serve(80).unwrap(), late.serve(80).unwrap()];
    let scan: Vec<Attempt> = (100..120_u8)
        .map(|last| Attempt::start(client, SocketAddr::from(([10, 244, 1, last], 80))))
        .collect();
    // A quarter waits, the rest is refused at once.
    cluster.wait_metric(NODE, HELD, 4.0);
    cluster.wait_metric(NODE, "sluice_gate_unknown_refused_total", 16.0);
    assert_eq!(cluster.metric(NODE, HELD), 4.0);
    assert_eq!(scan.iter().filter(|attempt| attempt.is_waiting()).count(), 4);
    assert_eq!(Attempt::start(client, plain.at(80)).outcome().1, Ok(()));
    let other = Attempt::start(late, plain.at(80));
    cluster.wait_metric(NODE, HELD, 5.0);
    cluster.change(tell);
    assert_eq!(other.outcome().1, Ok(()));
}

#[test]
fn a_client_that_gives_up_while_it_is_held_is_recorded_once() {
    let cluster = scene(PATIENT);
    let attempt =
        Attempt::start_for(cluster.pod("late"), cluster.pod("plain").at(80), Duration::from_millis(200));
    let (address, outcome) = attempt.outcome();
    assert_eq!(outcome, Err(ErrorKind::TimedOut));
    let records = records_of(&cluster, address);
    assert_eq!(records.len(), 1);
    assert_eq!(told(&records[0]), "connection-failed client-gone");
    assert_eq!(cluster.metric(NODE, HELD), 0.0);
}

#[test]
fn a_pod_that_vanishes_again_while_its_attempt_is_connected_is_refused_and_recorded_once() {
    let cluster = scene(PATIENT);
    let plain = cluster.pod("plain");
    let attempt = {
        let _silent = suite::packets::Hole::dig(plain, 80);
        let attempt = Attempt::start(cluster.pod("late"), plain.at(80));
        cluster.wait_metric(NODE, HELD, 1.0);
        cluster.change(tell);
        assert!(wait_until(LIMIT, || cluster.metric(NODE, HELD) == 0.0));
        assert!(attempt.is_waiting(), "its server is silent");
        cluster.change(|cluster| {
            cluster.write_policy("cluster.yaml", &without(cluster, &["late"], true)).unwrap()
        });
        attempt
    };
    let (address, outcome) = attempt.outcome();
    assert_eq!(outcome, Err(ErrorKind::ConnectionRefused));
    let records = records_of(&cluster, address);
    assert_eq!(records.len(), 1);
    assert_eq!(told(&records[0]), "connection-denied policy-revoked");
    assert_eq!(reason(&records[0], "egress"), "pod-gone");
}

#[test]
fn a_stop_leaves_a_held_attempt_to_the_next_process_and_unknown_pods_closed_meanwhile() {
    let cluster = builder().build().unwrap();
    cluster.write_policy("policy.yaml", POLICY).unwrap();
    cluster.write_policy("cluster.yaml", &without(&cluster, &["late", "late-server"], true)).unwrap();
    let node = cluster.node(NODE).unwrap();
    let options = SluiceOptions { config: PATIENT.to_owned(), ..SluiceOptions::default() };
    let (late, plain) = (cluster.pod("late").unwrap(), cluster.pod("plain").unwrap());
    let client = cluster.pod("client").unwrap();
    let _servers = [plain.serve(80).unwrap(), late.serve(80).unwrap()];
    let mut sluice = node.start_sluice(&options).unwrap();
    sluice.wait_ready(LIMIT).unwrap();
    let held = Attempt::start_for(late, plain.at(80), 3 * LIMIT);
    let from = held.from;
    assert!(wait_until(LIMIT, || sluice.metric(HELD).unwrap() == 1.0));
    sluice.sigterm();
    assert_eq!(sluice.wait_exit(LIMIT).unwrap(), 0);
    let records = sluice.records().unwrap();
    let of_it: Vec<String> = records.iter().filter(|record| is_from(record, from)).map(told).collect();
    assert_eq!(of_it, ["connection-failed shutdown"]);

    // Closed whichever end is unknown; known pods that no policy isolates are open.
    let no_answer = Duration::from_millis(700);
    for (from, to) in [(late, plain.at(80)), (client, late.at(80)), (late, cluster.external().at(80))] {
        assert_eq!(Attempt::start_for(from, to, no_answer).outcome().1, Err(ErrorKind::TimedOut), "{to}");
    }
    assert_eq!(Attempt::start_for(client, plain.at(80), no_answer).outcome().1, Ok(()));
    assert!(held.is_waiting());

    let mut sluice = node.start_sluice(&options).unwrap();
    sluice.wait_ready(LIMIT).unwrap();
    tell(&cluster);
    assert_eq!(held.outcome().1, Ok(()), "its kernel has tried again");
    assert!(
        sluice.wait_record(|record| is_from(record, from) && told(record).contains("closed"), LIMIT).is_ok()
    );
}

#[test]
fn pods_that_come_and_go_under_traffic_are_never_let_through_unjudged() {
    let cluster = scene(PATIENT);
    let (late, server) = (cluster.pod("late"), cluster.pod("late-server"));
    let _servers = [server.serve(8000).unwrap(), server.serve(9999).unwrap()];
    let mut outcomes = Vec::new();
    for round in 0..6 {
        let attempts: Vec<(u16, Attempt)> =
            [8000, 9999, 8000, 9999].map(|port| (port, Attempt::start(late, server.at(port)))).into();
        cluster.wait_metric(NODE, HELD, 4.0);
        cluster.change(tell);
        for (port, attempt) in attempts {
            let (address, outcome) = attempt.outcome();
            assert_eq!(outcome.is_ok(), port == 8000, "round {round}, {outcome:?}");
            outcomes.push(((address, port), outcome));
        }
        cluster.change(|cluster| {
            let objects = without(cluster, &["late", "late-server"], true);
            cluster.write_policy("cluster.yaml", &objects).unwrap();
        });
    }
    // The kernel may give one client port to several attempts: they are compared per client port and server port.
    let mut seen: BTreeMap<(SocketAddr, u16), Vec<bool>> = BTreeMap::new();
    for (attempt, outcome) in &outcomes {
        seen.entry(*attempt).or_default().push(outcome.is_err());
    }
    for ((client, port), mut denied) in seen {
        let is_last = |record: &Value| {
            is_from(record, client) && record["destination"]["port"] == port && is_final(record)
        };
        let last = || -> Vec<Value> { cluster.records(NODE).into_iter().filter(is_last).collect() };
        assert!(wait_until(LIMIT, || last().len() == denied.len()), "{:#?}", last());
        let mut recorded: Vec<bool> =
            last().iter().map(|record| told(record) == "connection-denied policy-denied").collect();
        denied.sort_unstable();
        recorded.sort_unstable();
        assert_eq!(denied, recorded, "{:#?}", last());
    }
}
