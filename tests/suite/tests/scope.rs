//! Whose connections are intercepted: scope and bypass. Who is passed by connects as without Sluice and leaves no
//! record; an isolated pod is never passed by.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking, in its helpers too")]

use std::io::ErrorKind;
use std::net::SocketAddr;
use std::time::Duration;

use lab::{
    Backend, Cluster, ClusterBuilder, Families, Family, PodSpec, Server, UdpServer, ask, greeting_peer,
    wait_until,
};
use serde_json::Value;
use suite::carried::Carried;
use suite::enforced::{Enforced, LIMIT, is_from, told};

const NODE: &str = "node1";
const PORT: u16 = 80;
const OTHER_PORT: u16 = 81;
const PODS: [&str; 4] = ["default/client", "default/plain", "default/closed", "shop/cart"];

fn isolating(name: &str) -> String {
    format!(
        "apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {{name: {name}, namespace: default}}\n\
         spec: {{podSelector: {{matchLabels: {{app: {name}}}}}, policyTypes: [Ingress], ingress: []}}\n"
    )
}

fn builder() -> ClusterBuilder {
    PODS.iter().fold(Cluster::builder().namespace("shop", &[("team", "shop")]), |builder, name| {
        builder.pod(PodSpec::new(name).label("app", name.split_once('/').unwrap().1))
    })
}

/// The cluster with servers on both ports of every pod, and Sluice with this configuration.
struct Scene {
    enforced: Enforced,
    _tcp: Vec<Server>,
    _udp: Vec<UdpServer>,
}

impl Scene {
    /// `redirect` is what the configuration's mapping of that name has beside the backend.
    fn new(backend: Backend, rest: &str, redirect: &str) -> Self {
        let config = format!("{rest}redirect: {{backend: {backend}{redirect}}}\n");
        let builder = builder().families(Families::Dual);
        let enforced = Enforced::start(builder, &[("closed.yaml", &isolating("closed"))], &config);
        let (mut tcp, mut udp) = (Vec::new(), Vec::new());
        for family in Families::Dual.each() {
            for pod in PODS.map(|name| enforced.pod(name)) {
                for port in [PORT, OTHER_PORT] {
                    tcp.push(Server::start(pod.listen_on(pod.at_in(*family, port)).unwrap()).unwrap());
                    udp.push(pod.serve_udp_on(pod.at_in(*family, port)).unwrap());
                }
            }
            let external = enforced.external();
            tcp.push(Server::start(external.listen_on(external.at_in(*family, PORT)).unwrap()).unwrap());
        }
        Self { enforced, _tcp: tcp, _udp: udp }
    }

    fn at(&self, family: Family, to: &str, port: u16) -> SocketAddr {
        match to {
            "external" => self.enforced.external().at_in(family, port),
            pod => self.enforced.pod(pod).at_in(family, port),
        }
    }

    /// Connects by TCP and by UDP. What each led to, and whether each was recorded.
    fn seen(&self, family: Family, from: &str, to: &str, port: u16) -> [(&'static str, bool); 2] {
        let pod = self.enforced.pod(from);
        let to = self.at(family, to, port);
        let socket = pod.bound((pod.address_in(family), 0)).unwrap();
        let client = socket.local_addr().unwrap().as_socket().unwrap();
        let tcp = match socket.connect_timeout(&to.into(), LIMIT) {
            Ok(()) => {
                greeting_peer(&mut socket.into(), LIMIT).unwrap();
                "connected"
            }
            Err(error) if error.kind() == ErrorKind::ConnectionRefused => "refused",
            Err(error) => panic!("{from} to {to}: {error}"),
        };
        let socket = pod.udp((pod.address_in(family), 0)).unwrap();
        socket.connect(to).unwrap();
        let datagrams = socket.local_addr().unwrap();
        let udp = match ask(&socket, b"HELLO\n", LIMIT) {
            Ok(_) => "connected",
            Err(error) if error.kind() == ErrorKind::ConnectionRefused => "refused",
            Err(error) => panic!("{from} to {to}: {error}"),
        };
        [(tcp, self.recorded(client, "tcp")), (udp, self.recorded(datagrams, "udp"))]
    }

    /// A record comes within milliseconds. That none comes is seen when that of a later connection is there.
    fn recorded(&self, client: SocketAddr, transport: &str) -> bool {
        let about = |record: &Value| is_from(record, client) && record["network"]["transport"] == transport;
        let sluice = self.enforced.sluice(NODE);
        let marker = self.enforced.pod("default/client");
        let socket = marker.bound((marker.address(), 0)).unwrap();
        let own = socket.local_addr().unwrap().as_socket().unwrap();
        socket.connect_timeout(&self.at(Family::V4, "default/closed", PORT).into(), LIMIT).unwrap_err();
        let mut found = false;
        let ended = wait_until(LIMIT, || {
            let records = sluice.records().unwrap();
            // Records are in the order of what they tell, and a start is told before the greeting comes through.
            found = records.iter().any(about);
            records.iter().any(|record| is_from(record, own))
        });
        assert!(ended, "{}", sluice.stderr());
        found
    }

    #[track_caller]
    fn check(&self, cases: &[(&str, &str, u16, &'static str, bool)]) {
        for family in Families::Dual.each() {
            for (from, to, port, outcome, recorded) in cases {
                let wanted = [(*outcome, *recorded); 2];
                assert_eq!(self.seen(*family, from, to, *port), wanted, "{family:?} {from} to {to}:{port}");
            }
        }
    }
}

fn only_isolated_pods_are_in_scope(backend: Backend) {
    let scene = Scene::new(backend, "interception: isolated\n", "");
    scene.check(&[
        ("default/client", "default/plain", PORT, "connected", false),
        ("default/client", "shop/cart", PORT, "connected", false),
        ("default/client", "default/closed", PORT, "refused", true),
        ("default/closed", "default/plain", PORT, "connected", true),
    ]);
}

fn pods_of_some_namespaces_are_in_scope(backend: Backend) {
    let scene = Scene::new(backend, "interception: {namespaceSelector: {matchLabels: {team: shop}}}\n", "");
    scene.check(&[
        ("default/client", "default/plain", PORT, "connected", false),
        ("default/client", "shop/cart", PORT, "connected", true),
        ("shop/cart", "default/plain", PORT, "connected", true),
        ("default/client", "default/closed", PORT, "refused", true),
    ]);
}

fn some_ports_and_ranges_are_passed_by(backend: Backend) {
    let scene = Scene::new(backend, "", &format!(", bypass: {{ports: [{OTHER_PORT}]}}"));
    scene.check(&[
        ("default/client", "default/plain", PORT, "connected", true),
        ("default/client", "default/plain", OTHER_PORT, "connected", false),
        ("default/client", "default/closed", OTHER_PORT, "refused", true),
        ("default/closed", "default/plain", OTHER_PORT, "connected", true),
    ]);
    drop(scene);
    let ranges = "203.0.113.0/24, 10.244.1.0/24, \"2001:db8:113::/64\", \"fd00:10:244:1::/64\"";
    let scene = Scene::new(backend, "", &format!(", bypass: {{cidrs: [{ranges}]}}"));
    for family in Families::Dual.each() {
        let pod = scene.enforced.pod("default/client");
        let mut outside = pod.connect(scene.at(*family, "external", PORT), LIMIT).unwrap();
        let client = outside.local_addr().unwrap();
        greeting_peer(&mut outside, LIMIT).unwrap();
        assert!(!scene.recorded(client, "tcp"));
    }
    scene.check(&[
        ("default/client", "default/plain", PORT, "connected", false),
        ("default/client", "default/closed", PORT, "refused", true),
        ("default/closed", "default/plain", PORT, "connected", true),
    ]);
}

macro_rules! with_each_backend {
    ($($check:ident: $nft:ident, $iptables_nft:ident, $iptables_legacy:ident;)*) => {$(
        #[test]
        fn $nft() {
            $check(Backend::Auto);
        }

        #[test]
        fn $iptables_nft() {
            $check(Backend::IptablesNft);
        }

        #[test]
        fn $iptables_legacy() {
            $check(Backend::IptablesLegacy);
        }
    )*};
}
with_each_backend! {
    only_isolated_pods_are_in_scope:
        with_interception_isolated_only_connections_of_isolated_pods_are_held_and_recorded,
        with_interception_isolated_and_iptables_nft_only_connections_of_isolated_pods_are_held,
        with_interception_isolated_and_iptables_legacy_only_connections_of_isolated_pods_are_held;
    pods_of_some_namespaces_are_in_scope:
        with_a_selector_pods_of_its_namespaces_are_in_scope_and_of_others_only_isolated_ones,
        with_a_selector_and_iptables_nft_pods_of_its_namespaces_are_in_scope,
        with_a_selector_and_iptables_legacy_pods_of_its_namespaces_are_in_scope;
    some_ports_and_ranges_are_passed_by:
        ports_and_ranges_are_passed_by_unless_an_end_is_isolated,
        ports_and_ranges_are_passed_by_with_iptables_nft_too,
        ports_and_ranges_are_passed_by_with_iptables_legacy_too;
}

#[test]
fn a_connection_that_was_passed_by_is_ended_when_a_policy_isolates_its_pod() {
    for config in ["interception: isolated\n", "redirect: {bypass: {ports: [8080]}}\n"] {
        let enforced = Enforced::start(builder(), &[("closed.yaml", &isolating("closed"))], config);
        let listener = enforced.pod("default/plain").listen(8080).unwrap();
        let to = enforced.pod("default/plain").at(8080);
        let mut carried = Carried::open(enforced.pod("default/client"), &listener, to);
        carried.exchange(100, 200).unwrap();
        assert_eq!(enforced.metric(NODE, "sluice_connections_live"), 0.0, "{config}");
        enforced.apply("plain.yaml", &isolating("plain"));
        let client = carried.local;
        let is_it = |record: &Value| is_from(record, client);
        let mut last = None;
        let ended = wait_until(LIMIT, || {
            last = carried.exchange(1, 1).err();
            last.is_some()
        });
        assert!(ended, "{config}");
        let record = enforced.sluice(NODE).wait_record(is_it, LIMIT).unwrap();
        assert_eq!(record["sluice"]["end_cause"], "policy-revoked", "{config}: {}", told(&record));
        // The next one is refused like any other.
        let error = enforced.pod("default/client").connect(to, Duration::from_secs(5)).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::ConnectionRefused, "{config}");
    }
}

#[test]
fn a_pod_that_leaves_the_scope_is_let_go_and_none_of_its_connections_breaks() {
    let enforced = Enforced::start(
        builder(),
        &[("closed.yaml", &isolating("closed"))],
        "interception: {namespaceSelector: {matchLabels: {team: shop}}}\n",
    );
    let listener = enforced.pod("shop/cart").listen(8080).unwrap();
    let mut carried =
        Carried::open(enforced.pod("default/client"), &listener, enforced.pod("shop/cart").at(8080));
    carried.exchange(100, 200).unwrap();
    enforced.change(|cluster| {
        let text = cluster.manifests().replace("team: shop", "team: other");
        cluster.write_policy("cluster.yaml", &text).unwrap();
    });
    carried.exchange(100, 200).unwrap();
    drop(carried);
    // The rules follow the snapshot in a moment; a connection of that moment is carried as before.
    assert!(wait_until(LIMIT, || {
        let mut later =
            Carried::open(enforced.pod("default/client"), &listener, enforced.pod("shop/cart").at(8080));
        later.exchange(100, 200).unwrap();
        let passes_by = enforced.metric(NODE, "sluice_connections_live") == 0.0;
        later.exchange(100, 200).unwrap();
        passes_by
    }));
}
