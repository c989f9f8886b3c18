//! What a change of policies, labels or pods does to connections that are live already.

#![expect(clippy::unwrap_used, reason = "a panic in a test is its failure report")]

use std::collections::BTreeSet;
use std::io::{ErrorKind, Read};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use lab::{Cluster, ClusterBuilder, Pod, PodSpec, wait_until};
use serde_json::{Value, json};
use suite::carried::Carried;
use suite::enforced::{Enforced, LIMIT, told};
use suite::packets::Hole;

const NODE: &str = "node1";
const REVOKED: &str = "sluice_connections_closed_total{cause=\"policy-revoked\"}";
/// Revocation looks at its connections one by one; the log says at how many.
const CONFIG: &str = "log: { filter: 'info,proxy=debug' }\n";

/// Two clients, each with a label and a namespace of its own, and a server with two ports.
fn builder() -> ClusterBuilder {
    Cluster::builder()
        .namespace_declared_elsewhere("blue")
        .pod(PodSpec::new("red/client").label("role", "client"))
        .pod(PodSpec::new("blue/client").label("role", "client"))
        .pod(PodSpec::new("shop/server").label("app", "server"))
        .pod(PodSpec::new("shop/other").label("app", "other"))
}

fn blue(label: &str) -> String {
    format!("apiVersion: v1\nkind: Namespace\nmetadata: {{ name: blue, labels: {{ {label} }} }}\n")
}

fn policy(name: &str, app: &str, ingress: &str) -> String {
    format!(
        "apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {{ name: {name}, namespace: shop }}\n\
         spec: {{ podSelector: {{ matchLabels: {{ app: {app} }} }}, policyTypes: [Ingress], ingress: [{ingress}] }}\n"
    )
}

const FROM_RED: &str = "{ from: [{ namespaceSelector: { matchLabels: { kubernetes.io/metadata.name: red } }, \
                        podSelector: { matchLabels: { role: client } } }] }";
const FROM_TRUSTED: &str = "{ from: [{ namespaceSelector: { matchLabels: { trusted: 'yes' } } }] }";
const TO_8080: &str = "{ ports: [{ port: 8080 }] }";

/// A cluster with Sluice, servers that listen, and a live connection on every way between them.
struct Scene {
    cluster: Enforced,
    listeners: Vec<(String, u16, TcpListener)>,
}

impl Scene {
    fn start(policies: &[(&str, &str)]) -> Self {
        let namespace = blue("trusted: 'yes'");
        let mut files = vec![("blue.yaml", namespace.as_str())];
        files.extend(policies);
        let cluster = Enforced::start(builder(), &files, CONFIG);
        let listener = |pod: &str, port| (pod.to_owned(), port, cluster.pod(pod).listen(port).unwrap());
        let listeners =
            vec![listener("shop/server", 8080), listener("shop/server", 9090), listener("shop/other", 8080)];
        Self { cluster, listeners }
    }

    fn carry(&self, from: &str, to: &str, port: u16) -> Carried {
        let (.., listener) =
            self.listeners.iter().find(|(pod, number, _)| pod == to && *number == port).unwrap();
        let mut carried = Carried::open(self.cluster.pod(from), listener, self.cluster.pod(to).at(port));
        carried.exchange(10, 20).unwrap();
        carried
    }

    /// Checks that this connection was reset at both ends, recorded once, and by what.
    fn assert_revoked(&self, mut carried: Carried, side: &str, policies: &Value, reason: &str) {
        assert!(carried.is_reset(), "both ends see a reset");
        let record = self.cluster.last_record(NODE, carried.local);
        assert_eq!(told(&record), "connection-ended policy-revoked");
        assert_eq!(record["sluice"][side]["verdict"], "deny", "{record:#}");
        assert_eq!(&record["sluice"][side]["policies"], policies);
        assert_eq!(record["sluice"][side]["reason"], reason);
        assert_eq!(record["event"]["reason"].as_str().unwrap().split(' ').next_back().unwrap(), reason);
        assert_eq!((&record["source"]["bytes"], &record["destination"]["bytes"]), (&json!(10), &json!(20)));
        let all = self.cluster.records_of(NODE, carried.local);
        assert_eq!(all.len(), 2, "started and ended");
        assert_eq!(all[0]["event"]["id"], all[1]["event"]["id"]);
        assert!(all[0]["sluice"]["generation"].as_u64() < all[1]["sluice"]["generation"].as_u64());
    }

    /// Checks that these connections still carry bytes, and that the last change looked at `looked_at` of the
    /// live ones and ended `revoked`, of all so far `total`.
    fn assert_the_rest(&self, alive: &mut [Carried], looked_at: usize, revoked: usize, total: f64) {
        for carried in alive {
            assert!(carried.is_alive(), "{} was ended", carried.local);
        }
        assert_eq!(self.cluster.metric(NODE, REVOKED), total);
        let log = self.cluster.sluice(NODE).stderr();
        let last = log.lines().rfind(|line| line.contains("judged live connections again")).unwrap();
        assert!(last.contains(&format!("looked_at={looked_at} ")), "{last}");
        assert!(last.ends_with(&format!("revoked={revoked}")), "{last}");
    }
}

#[test]
fn a_policy_that_is_added_ends_the_connections_it_does_not_allow_and_no_others() {
    let scene = Scene::start(&[]);
    let revoked = scene.carry("blue/client", "shop/server", 8080);
    let mut rest = [
        scene.carry("red/client", "shop/server", 8080),
        scene.carry("blue/client", "shop/other", 8080),
        scene.carry("shop/server", "shop/other", 8080),
    ];
    scene.cluster.apply("policy.yaml", &policy("red-only", "server", FROM_RED));
    scene.assert_revoked(revoked, "ingress", &json!(["NetworkPolicy/shop/red-only"]), "no-rule-matched");
    // The server's three, in either direction.
    scene.assert_the_rest(&mut rest, 3, 1, 1.0);
    assert_eq!(scene.cluster.metric(NODE, "sluice_policy_revocations_total"), 1.0);
    assert_eq!(scene.cluster.metric(NODE, "sluice_connections_live"), 3.0);
}

#[test]
fn a_rule_that_is_removed_ends_what_it_allowed_and_leaves_other_ports_alone() {
    let both = policy("rules", "server", &format!("{FROM_RED}, {TO_8080}"));
    let scene = Scene::start(&[("policy.yaml", &both)]);
    let mut rest = [
        scene.carry("red/client", "shop/server", 8080),
        scene.carry("blue/client", "shop/server", 8080),
        scene.carry("blue/client", "shop/other", 8080),
    ];
    let revoked = scene.carry("red/client", "shop/server", 9090);
    scene.cluster.apply("policy.yaml", &policy("rules", "server", TO_8080));
    scene.assert_revoked(revoked, "ingress", &json!(["NetworkPolicy/shop/rules"]), "no-rule-matched");
    scene.assert_the_rest(&mut rest, 3, 1, 1.0);
}

#[test]
fn a_pod_s_new_labels_end_what_its_old_ones_allowed() {
    let scene = Scene::start(&[("policy.yaml", &policy("red-only", "server", FROM_RED))]);
    let revoked = scene.carry("red/client", "shop/server", 8080);
    let mut rest =
        [scene.carry("red/client", "shop/other", 8080), scene.carry("blue/client", "shop/other", 8080)];
    scene.cluster.change(|cluster| cluster.set_pod_labels("red/client", &[("role", "retired")]).unwrap());
    scene.assert_revoked(revoked, "ingress", &json!(["NetworkPolicy/shop/red-only"]), "no-rule-matched");
    scene.assert_the_rest(&mut rest, 2, 1, 1.0);
}

#[test]
fn a_namespace_s_new_labels_end_what_its_old_ones_allowed() {
    let scene = Scene::start(&[(
        "policy.yaml",
        &policy("trusted", "server", &format!("{FROM_TRUSTED}, {FROM_RED}")),
    )]);
    let revoked = scene.carry("blue/client", "shop/server", 8080);
    let mut rest =
        [scene.carry("blue/client", "shop/other", 8080), scene.carry("red/client", "shop/server", 8080)];
    scene.cluster.apply("blue.yaml", &blue("trusted: 'no'"));
    scene.assert_revoked(revoked, "ingress", &json!(["NetworkPolicy/shop/trusted"]), "no-rule-matched");
    scene.assert_the_rest(&mut rest, 2, 1, 1.0);
}

#[test]
fn an_egress_policy_ends_connections_of_the_client_s_side() {
    let scene = Scene::start(&[]);
    let revoked = scene.carry("shop/server", "shop/other", 8080);
    let mut rest = [scene.carry("red/client", "shop/server", 8080)];
    let egress = policy("jail", "server", "").replace("[Ingress], ingress", "[Egress], egress");
    scene.cluster.apply("policy.yaml", &egress);
    scene.assert_revoked(revoked, "egress", &json!(["NetworkPolicy/shop/jail"]), "no-rule-matched");
    scene.assert_the_rest(&mut rest, 2, 1, 1.0);
}

#[test]
fn a_pod_that_is_gone_takes_its_connections_with_it() {
    let scene = Scene::start(&[]);
    let outgoing = scene.carry("red/client", "shop/server", 8080);
    let mut rest = [scene.carry("blue/client", "shop/server", 8080)];
    scene.cluster.change(|cluster| {
        cluster.write_policy("cluster.yaml", &without_pod(cluster, "red", "client")).unwrap()
    });
    scene.assert_revoked(outgoing, "egress", &json!([]), "pod-gone");
    scene.assert_the_rest(&mut rest, 1, 1, 1.0);
    // Its address is nobody's now.
    let error = scene
        .cluster
        .pod("red/client")
        .connect(scene.cluster.pod("shop/server").at(8080), LIMIT)
        .unwrap_err();
    assert_eq!(error.kind(), ErrorKind::ConnectionRefused);
}

/// The cluster's own manifests, one pod left out.
fn without_pod(cluster: &Cluster, namespace: &str, name: &str) -> String {
    let manifests = cluster.manifests();
    let is_it = |document: &str| {
        document.contains("kind: Pod\n")
            && document.contains(&format!("name: {name}\n"))
            && document.contains(&format!("namespace: {namespace}\n"))
    };
    let documents: Vec<&str> = manifests.split("---\n").collect();
    assert_eq!(documents.iter().copied().filter(|document| is_it(document)).count(), 1);
    documents.into_iter().filter(|document| !is_it(document)).collect::<Vec<_>>().join("---\n")
}

#[test]
fn a_change_that_affects_nobody_looks_at_no_connection() {
    let scene = Scene::start(&[("policy.yaml", &policy("red-only", "server", FROM_RED))]);
    let mut alive =
        [scene.carry("red/client", "shop/server", 8080), scene.carry("blue/client", "shop/other", 8080)];
    scene.cluster.apply("elsewhere.yaml", &policy("elsewhere", "nobody", FROM_RED));
    scene.assert_the_rest(&mut alive, 0, 0, 0.0);
    // Another policy that selects the pod, and allows the same and more, is looked at and ends nothing.
    scene.cluster.apply("wider.yaml", &policy("wider", "server", "{}"));
    scene.assert_the_rest(&mut alive, 1, 0, 0.0);
}

#[test]
fn an_attempt_that_is_held_is_refused_when_a_change_denies_it() {
    let scene = Scene::start(&[]);
    let server = scene.cluster.pod("shop/server");
    let client = scene.cluster.pod("blue/client");
    let _hole = Hole::dig(server, 8080);
    let socket = client.bound(client.at(0)).unwrap();
    let local: SocketAddr = socket.local_addr().unwrap().as_socket().unwrap();
    std::thread::scope(|scope| {
        let dialling = scope.spawn(|| socket.connect_timeout(&server.at(8080).into(), LIMIT));
        assert!(wait_until(LIMIT, || scene.cluster.metric(NODE, "sluice_gate_packets_total") >= 1.0));
        let start = Instant::now();
        scene.cluster.apply("policy.yaml", &policy("red-only", "server", FROM_RED));
        let error = dialling.join().unwrap().unwrap_err();
        assert_eq!(error.kind(), ErrorKind::ConnectionRefused);
        assert!(start.elapsed() < Duration::from_secs(5));
    });
    let record = scene.cluster.last_record(NODE, local);
    assert_eq!(told(&record), "connection-denied policy-revoked");
    assert_eq!(record["sluice"]["ingress"]["policies"], json!(["NetworkPolicy/shop/red-only"]));
    assert_eq!(record["event"]["reason"], "ingress no-rule-matched");
    assert_eq!(scene.cluster.metric(NODE, "sluice_connections_denied_total{side=\"ingress\"}"), 1.0);
}

/// Between the moment a connection is decided and the moment it is carried, no change may fall unnoticed.
#[test]
fn no_connection_slips_through_a_change_that_falls_into_its_opening() {
    let cluster = Enforced::start(builder(), &[("blue.yaml", &blue("trusted: 'no'"))], "");
    let (client, server) = (cluster.pod("blue/client"), cluster.pod("shop/server"));
    let _answering = server.serve(8080).unwrap();
    for round in 0..4 {
        let opened = AtomicUsize::new(0);
        let (open, refusals) = std::thread::scope(|scope| {
            let dialling: Vec<_> = (0..3)
                .map(|_| scope.spawn(|| dial_until_refused(client, server.at(8080), &opened)))
                .collect();
            assert!(wait_until(LIMIT, || opened.load(Ordering::Relaxed) >= 30));
            cluster.apply("policy.yaml", &policy("red-only", "server", FROM_RED));
            let outcomes = dialling.into_iter().map(|thread| thread.join().unwrap());
            outcomes.fold((Vec::new(), Vec::new()), |(mut open, mut refusals), (streams, refusal)| {
                open.extend(streams);
                refusals.push(refusal);
                (open, refusals)
            })
        });
        // Reset instead: the change fell between the handshake and the return of connect(2).
        let expected = [ErrorKind::ConnectionRefused, ErrorKind::ConnectionReset];
        assert!(refusals.iter().all(|kind| expected.contains(kind)), "round {round}: {refusals:?}");
        for mut stream in open {
            let seen = stream.read(&mut [0]).map_err(|error| error.kind());
            assert_eq!(seen, Err(ErrorKind::ConnectionReset), "round {round}");
        }
        assert!(wait_until(LIMIT, || cluster.metric(NODE, "sluice_connections_live") == 0.0));
        cluster.change(|cluster| cluster.remove_policy("policy.yaml").unwrap());
    }
    // Carried ones were revoked; those that met the change on their way were denied, and never carried.
    let records = cluster.records(NODE);
    let ended = |record: &&Value| record["event"]["action"] != "connection-started";
    let causes: BTreeSet<String> = records.iter().filter(ended).map(told).collect();
    let allowed = [
        "connection-denied policy-denied",
        "connection-denied policy-revoked",
        "connection-ended policy-revoked",
    ];
    assert!(causes.iter().all(|cause| allowed.contains(&cause.as_str())), "{causes:?}");
}

/// Connects again and again. Gives the connections that came to be, and the error that ended the row.
fn dial_until_refused(client: &Pod, to: SocketAddr, opened: &AtomicUsize) -> (Vec<TcpStream>, ErrorKind) {
    let mut streams = Vec::new();
    loop {
        match client.connect(to, LIMIT) {
            Ok(stream) => {
                stream.set_read_timeout(Some(LIMIT)).unwrap();
                streams.push(stream);
                opened.fetch_add(1, Ordering::Relaxed);
            }
            Err(error) => return (streams, error.kind()),
        }
    }
}

/// Each node judges its own pods: the server's node ends the connection, and the client's carries that on.
#[test]
fn a_connection_between_nodes_is_ended_by_the_node_of_the_pod_that_is_isolated() {
    let two_nodes = Cluster::builder()
        .nodes(2)
        .pod(PodSpec::new("shop/client").on("node1").label("app", "client"))
        .pod(PodSpec::new("shop/server").on("node2").label("app", "server"));
    for (policy, ending, other, cause) in [
        (policy("shut", "server", ""), "node2", "node1", "server-reset"),
        (
            policy("jail", "client", "").replace("[Ingress], ingress", "[Egress], egress"),
            "node1",
            "node2",
            "client-reset",
        ),
    ] {
        let cluster = Enforced::start(two_nodes.clone(), &[], CONFIG);
        let server = cluster.pod("shop/server");
        let listener = server.listen(8080).unwrap();
        let mut carried = Carried::open(cluster.pod("shop/client"), &listener, server.at(8080));
        carried.exchange(10, 20).unwrap();
        cluster.apply("policy.yaml", &policy);
        assert!(carried.is_reset(), "both ends see a reset");
        let record = cluster.last_record(ending, carried.local);
        assert_eq!(told(&record), "connection-ended policy-revoked");
        assert_eq!(cluster.metric(ending, REVOKED), 1.0);
        let elsewhere = cluster.last_record(other, carried.local);
        assert_eq!(told(&elsewhere), format!("connection-ended {cause}"));
        assert_eq!(elsewhere["network"]["community_id"], record["network"]["community_id"]);
    }
}

#[test]
fn a_policy_that_breaks_isolates_what_it_selects_until_it_is_repaired() {
    let scene = Scene::start(&[("policy.yaml", &policy("red-only", "server", FROM_RED))]);
    let mut red = scene.carry("red/client", "shop/server", 8080);
    let mut blue_other = scene.carry("blue/client", "shop/other", 8080);

    // One file breaks; a good one beside it is in force all the same.
    let broken = policy("red-only", "server", "{ from: [{ ipBlock: { cidr: 10.0.0.0/99 } }] }");
    scene.cluster.write_policy("policy.yaml", &broken).unwrap();
    scene.cluster.write_policy("shut.yaml", &policy("shut", "other", "")).unwrap();
    let sluice = scene.cluster.sluice(NODE);
    let told_of = |line: &str| {
        line.contains("ERROR")
            && line.contains("policy.yaml")
            && line.contains("spec.ingress[0].from[0].ipBlock.cidr")
    };
    assert!(wait_until(LIMIT, || sluice.stderr().lines().any(told_of)), "{}", sluice.stderr());
    assert!(red.is_reset(), "the broken rule allows nothing");
    assert!(blue_other.is_reset(), "the good file is in force");
    assert_eq!(refused(&scene, "red/client"), ErrorKind::ConnectionRefused);
    assert_eq!(refused(&scene, "blue/client"), ErrorKind::ConnectionRefused);
    assert_eq!(sluice.get("/readyz").unwrap().0, 200);
    assert_eq!(sluice.stderr().lines().filter(|line| told_of(line)).count(), 1, "each problem once");

    scene.cluster.apply("policy.yaml", &policy("red-only", "server", FROM_TRUSTED));
    scene.cluster.pod("blue/client").connect(scene.cluster.pod("shop/server").at(8080), LIMIT).unwrap();
}

#[test]
fn a_file_that_cannot_be_read_at_all_takes_nothing_away_until_it_is_repaired() {
    let scene = Scene::start(&[("policy.yaml", &policy("red-only", "server", FROM_RED))]);
    let mut red = scene.carry("red/client", "shop/server", 8080);
    let sluice = scene.cluster.sluice(NODE);

    scene.cluster.write_policy("policy.yaml", "kind: [").unwrap();
    let told_of = |line: &str| line.contains("ERROR") && line.contains("policy.yaml");
    assert!(wait_until(LIMIT, || sluice.stderr().lines().any(told_of)), "{}", sluice.stderr());
    assert!(red.is_alive(), "its policy is the one that was read last");
    assert_eq!(refused(&scene, "blue/client"), ErrorKind::ConnectionRefused, "and isolates");
    assert_eq!(sluice.get("/readyz").unwrap().0, 200);

    scene.cluster.apply("policy.yaml", &policy("red-only", "server", FROM_TRUSTED));
    assert!(red.is_reset(), "the repaired file is in force");
    scene.cluster.pod("blue/client").connect(scene.cluster.pod("shop/server").at(8080), LIMIT).unwrap();
}

fn refused(scene: &Scene, client: &str) -> ErrorKind {
    let server = scene.cluster.pod("shop/server").at(8080);
    scene.cluster.pod(client).connect(server, LIMIT).unwrap_err().kind()
}
