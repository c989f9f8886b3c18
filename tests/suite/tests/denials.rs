//! `deny_action: drop`: whoever is denied meets silence, by every protocol, in both families, with every backend, and is
//! recorded all the same.

#![expect(clippy::unwrap_used, reason = "a panic in a test is its failure report")]

use std::io::ErrorKind;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use lab::{Backend, Cluster, Families, Family, Netns, PodSpec, ServiceSpec, ask};
use serde_json::Value;
use suite::enforced::{Enforced, LIMIT, is_from, told};
use suite::packets::SynCount;
use suite::sctp::{Beginner, Ear};

/// Shorter than the second try of a SYN.
const SILENCE: Duration = Duration::from_millis(700);

const POLICY: &str = "\
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: closed, namespace: default}
spec: {podSelector: {matchLabels: {app: closed}}, policyTypes: [Ingress]}
";

fn enforced(backend: Backend) -> Enforced {
    let builder = Cluster::builder()
        .families(Families::Dual)
        .pod(PodSpec::new("client"))
        .pod(PodSpec::new("closed").label("app", "closed"))
        .service(
            ServiceSpec::new("closed").selector("app", "closed").port("http", 80, 8000).node_port(30080),
        );
    let config = format!("proxy: {{deny_action: drop}}\n{}", backend.config());
    Enforced::start(builder, &[("policy.yaml", POLICY)], &config)
}

/// Connects until it is silence, and gives the address that it was from.
fn meets_silence(from: &Netns, own: IpAddr, to: SocketAddr) -> SocketAddr {
    let socket = from.bound((own, 0)).unwrap();
    let local = socket.local_addr().unwrap().as_socket().unwrap();
    let error = socket.connect_timeout(&to.into(), SILENCE).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::TimedOut, "{local} to {to}");
    local
}

fn assert_denied(cluster: &Enforced, client: SocketAddr, transport: &str) {
    let denied = |record: &Value| {
        is_from(record, client)
            && told(record) == "connection-denied policy-denied"
            && record["network"]["transport"] == transport
    };
    let record = cluster.sluice("node1").wait_record(denied, LIMIT).unwrap();
    assert_eq!(record["sluice"]["ingress"]["policies"], serde_json::json!(["NetworkPolicy/default/closed"]));
}

fn tcp(cluster: &Enforced, family: Family) {
    let (client, closed, external) = (cluster.pod("client"), cluster.pod("closed"), cluster.external());
    let _listener = closed.listen_in(family, 8000).unwrap();
    let tap = SynCount::start(closed);
    let own = client.address_in(family);
    for to in [closed.at_in(family, 8000), cluster.cluster_ip_in(family, "closed", 80).unwrap()] {
        assert_denied(cluster, meets_silence(client, own, to), "tcp");
    }
    let node_port = cluster.node("node1").unwrap().at_in(family, 30080);
    let outside = meets_silence(external, external.address_in(family), node_port);
    assert_denied(cluster, outside, "tcp");
    assert_eq!(tap.count(), 0);
    closed.nft("delete table inet tap\n").unwrap();
}

fn udp(cluster: &Enforced, family: Family) {
    let (client, closed) = (cluster.pod("client"), cluster.pod("closed"));
    let answering = closed.serve_udp_on((family.unspecified(), 8000)).unwrap();
    let socket = client.udp_to(closed.at_in(family, 8000)).unwrap();
    assert_eq!(ask(&socket, b"HELLO\n", SILENCE).unwrap_err().kind(), ErrorKind::WouldBlock);
    assert_denied(cluster, socket.local_addr().unwrap(), "udp");
    assert_eq!(answering.received(), 0);
}

fn sctp(cluster: &Enforced, family: Family) {
    let (client, closed) = (cluster.pod("client"), cluster.pod("closed"));
    let ear = Ear::open(closed, family).unwrap();
    // Below the ports that the kernel gives to other sockets.
    let local = client.at_in(family, 21_000);
    let beginner = Beginner::open(client, local).unwrap();
    beginner.begin(closed.at_in(family, 8000)).unwrap();
    assert_denied(cluster, local, "sctp");
    assert_eq!(beginner.error(SILENCE), None);
    assert!(!ear.hears(local, 8000, Duration::from_millis(1)));
}

fn the_denied_meet_silence(backend: Backend) {
    let cluster = enforced(backend);
    for family in Families::Dual.each() {
        tcp(&cluster, *family);
        udp(&cluster, *family);
        sctp(&cluster, *family);
    }
}

#[test]
fn with_deny_action_drop_the_denied_meet_silence_by_every_protocol() {
    the_denied_meet_silence(Backend::Auto);
}

#[test]
fn with_deny_action_drop_and_iptables_nft_the_denied_meet_silence_by_every_protocol() {
    the_denied_meet_silence(Backend::IptablesNft);
}

#[test]
fn with_deny_action_drop_and_iptables_legacy_the_denied_meet_silence_by_every_protocol() {
    the_denied_meet_silence(Backend::IptablesLegacy);
}
