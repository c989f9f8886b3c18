//! Connections that came about without Sluice: older than its start, opened while no process ran, or while the
//! rules were away. A policy holds for them as well.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking, in its helpers too")]

use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use lab::{Cluster, ClusterBuilder, PodSpec, ServiceSpec, Sluice, SluiceOptions, wait_for, wait_until};
use nix::sys::signal::Signal;
use serde_json::Value;
use suite::carried::{Carried, accept};
use suite::enforced::{LIMIT, is_from, told};

const NODE: &str = "node1";
const ALLOWED: u16 = 8000;
const DENIED: u16 = 9000;
const JUDGED: &str = "sluice_strays_judged_total";
const ENDED: &str = "sluice_strays_ended_total";

fn policy(port: u16) -> String {
    format!(
        "apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {{ name: server, namespace: default }}\n\
         spec: {{ podSelector: {{ matchLabels: {{ app: server }} }}, policyTypes: [Ingress], \
         ingress: [{{ ports: [{{ protocol: TCP, port: {port} }}] }}] }}\n"
    )
}

fn builder() -> ClusterBuilder {
    Cluster::builder()
        .pod(PodSpec::new("client"))
        .pod(PodSpec::new("plain"))
        .pod(PodSpec::new("server").label("app", "server"))
        .service(ServiceSpec::new("denied").selector("app", "server").port("web", 80, DENIED))
}

/// A cluster, and Sluice once it was started.
struct Scene {
    sluice: Option<Sluice>,
    cluster: Cluster,
    options: SluiceOptions,
}

impl Scene {
    fn new(config: &str) -> Self {
        let cluster = builder().build().unwrap();
        cluster.write_policy("policy.yaml", &policy(ALLOWED)).unwrap();
        let options = SluiceOptions { config: config.to_owned(), ..SluiceOptions::default() };
        Self { sluice: None, cluster, options }
    }

    /// Opens a connection to a pod's port, by whatever address.
    fn open(&self, pod: &str, port: u16, to: SocketAddr) -> Carried {
        let listener = self.cluster.pod(pod).unwrap().listen(port).unwrap();
        let mut carried = Carried::open(self.cluster.pod("client").unwrap(), &listener, to);
        carried.exchange(100, 200).unwrap();
        carried
    }

    fn open_to(&self, pod: &str, port: u16) -> Carried {
        self.open(pod, port, self.cluster.pod(pod).unwrap().at(port))
    }

    fn start(&mut self) -> &mut Sluice {
        self.sluice = None;
        let mut sluice = self.cluster.node(NODE).unwrap().start_sluice(&self.options).unwrap();
        sluice.wait_ready(LIMIT).unwrap();
        self.sluice.insert(sluice)
    }

    fn sluice(&self) -> &Sluice {
        self.sluice.as_ref().unwrap()
    }

    fn run(&self, line: &str) {
        let mut words = line.split(' ');
        let mut command = self.cluster.node(NODE).unwrap().command(words.next().unwrap());
        let output = command.args(words).output().unwrap();
        assert!(output.status.success(), "{line}: {output:?}");
    }

    fn wait(&self, series: &str, at_least: f64) {
        let reached = wait_until(LIMIT, || self.sluice().metric(series).unwrap() >= at_least);
        assert!(reached, "{series}: {}", self.sluice().stderr());
    }

    /// Checks that both ends are told, and that there is one record of it.
    fn assert_ended(&self, mut carried: Carried, expected: &str) -> Value {
        for stream in [&mut carried.client, &mut carried.server] {
            assert_eq!(end_of(stream), Some(ErrorKind::ConnectionReset));
        }
        let record = self.sluice().wait_record(|record| is_from(record, carried.local), LIMIT).unwrap();
        let all = self.sluice().records().unwrap();
        assert_eq!(all.iter().filter(|record| is_from(record, carried.local)).count(), 1);
        assert_eq!(told(&record), expected);
        assert_eq!(record["sluice"]["ingress"]["reason"], "no-rule-matched", "{record:#}");
        assert_eq!(record["sluice"]["ingress"]["policies"][0], "NetworkPolicy/default/server");
        assert_eq!(record["source"]["k8s"]["pod"], "client");
        assert_eq!(record["destination"]["k8s"]["pod"], "server");
        record
    }
}

/// Writes until it is told that this leads nowhere.
fn end_of(stream: &mut TcpStream) -> Option<ErrorKind> {
    stream.set_nonblocking(true).unwrap();
    let ended = wait_for(Duration::from_secs(3), || {
        let failed = |error: &std::io::Error| error.kind() != ErrorKind::WouldBlock;
        let written = stream.write(b"?").err().filter(failed);
        let read = stream.read(&mut [0; 64]).err().filter(failed);
        read.or(written).map(|error| error.kind())
    });
    stream.set_nonblocking(false).unwrap();
    // The reset is told once, as what came first: of the read or of the write.
    ended.map(|kind| if kind == ErrorKind::BrokenPipe { ErrorKind::ConnectionReset } else { kind })
}

const ENDED_RECORD: &str = "connection-ended policy-revoked";

#[test]
fn what_is_older_than_the_first_start_is_ended_when_denied_and_goes_on_when_not() {
    let mut scene = Scene::new("");
    let service = scene.cluster.cluster_ip("denied", 80).unwrap();
    let direct = scene.open_to("server", DENIED);
    let mut alive = [scene.open_to("server", ALLOWED), scene.open_to("plain", 80)];
    let dialed = scene.open("server", DENIED, service);
    scene.start();
    scene.wait(ENDED, 2.0);
    let record = scene.assert_ended(direct, ENDED_RECORD);
    assert!(record["source"]["bytes"].is_null(), "nobody counted them: {record:#}");
    assert!(record["event"]["reason"].as_str().unwrap().contains("without this process"));
    let record = scene.assert_ended(dialed, ENDED_RECORD);
    assert_eq!(record["destination"]["service"]["name"], "denied");
    assert!(alive.iter_mut().all(Carried::is_alive));
    let judged = scene.sluice().metric(JUDGED).unwrap();
    assert!(judged >= 4.0, "{judged}");
    assert_eq!(scene.sluice().metric(ENDED).unwrap(), 2.0);

    // A later change of policy holds for the rest of them, too.
    let [of_server, mut of_plain] = alive;
    scene.cluster.write_policy("policy.yaml", &policy(7)).unwrap();
    scene.wait(ENDED, 3.0);
    assert!(of_plain.is_alive());
    scene.assert_ended(of_server, ENDED_RECORD);
}

#[test]
fn where_the_kernel_counts_the_record_has_its_counts_and_its_start() {
    let mut scene = Scene::new("");
    scene.run("sysctl -qw net.netfilter.nf_conntrack_acct=1 net.netfilter.nf_conntrack_timestamp=1");
    let old = scene.open_to("server", DENIED);
    scene.start();
    scene.wait(ENDED, 1.0);
    let record = scene.assert_ended(old, ENDED_RECORD);
    // Headers of at least 40 bytes a packet come on top of the 100 and 200 bytes.
    let number = |end: &str, what: &str| record[end][what].as_u64().unwrap();
    for (end, payload) in [("source", 100), ("destination", 200)] {
        let (bytes, packets) = (number(end, "bytes"), number(end, "packets"));
        assert!(packets >= 2 && bytes >= payload + 40 * packets && bytes < 2_000, "{record:#}");
    }
    assert!(record["event"]["duration"].as_u64().unwrap() > 0);
}

#[test]
fn what_was_opened_while_no_process_ran_is_ended_by_the_next() {
    let mut scene = Scene::new("redirect: { fail_mode: open }\n");
    scene.start();
    scene.sluice.as_mut().unwrap().kill9();
    let (denied, mut allowed) = (scene.open_to("server", DENIED), scene.open_to("plain", 80));
    scene.start();
    scene.wait(ENDED, 1.0);
    scene.assert_ended(denied, ENDED_RECORD);
    assert!(allowed.is_alive());
}

#[test]
fn what_was_opened_while_the_rules_were_away_is_ended_after_their_repair() {
    let mut scene = Scene::new("");
    scene.start();
    // Stopped, so that the gap is as long as it takes.
    scene.sluice.as_mut().unwrap().signal(Signal::SIGSTOP);
    scene.run("nft delete table inet sluice");
    let (denied, mut allowed) = (scene.open_to("server", DENIED), scene.open_to("plain", 80));
    scene.sluice.as_mut().unwrap().signal(Signal::SIGCONT);
    scene.wait(ENDED, 1.0);
    scene.assert_ended(denied, ENDED_RECORD);
    assert!(allowed.is_alive());
}

#[test]
fn a_connection_that_the_kernel_met_in_its_middle_is_ended_only_when_denied_from_either_end() {
    let mut scene = Scene::new("");
    let mut alive = [scene.open_to("server", ALLOWED), scene.open_to("server", DENIED)];
    scene.run("conntrack -F");
    for carried in &mut alive {
        // The server speaks first: in the kernel's eyes it has opened the connection.
        carried.server.write_all(b"!").unwrap();
        carried.client.read_exact(&mut [0]).unwrap();
        carried.exchange(1, 1).unwrap();
    }
    scene.start();
    scene.wait(JUDGED, 2.0);
    assert!(alive.iter_mut().all(Carried::is_alive), "the pods may open them from the other end");
    let deny_all = "apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\n\
                    metadata: { name: all, namespace: default }\nspec: { podSelector: {}, policyTypes: [Ingress] }\n";
    scene.cluster.write_policy("all.yaml", deny_all).unwrap();
    scene.wait(ENDED, 1.0);
    let [mut allowed, mut denied] = alive;
    assert_eq!(end_of(&mut denied.client), Some(ErrorKind::ConnectionReset));
    assert!(allowed.is_alive());
}

#[test]
fn what_sluice_carries_is_no_stray_whatever_way_it_goes() {
    let mut scene = Scene::new("log: { filter: 'info,proxy=debug' }\n");
    let external = scene.cluster.external();
    let outside = external.listen(80).unwrap();
    let client = scene.cluster.pod("client").unwrap();
    let node = scene.cluster.node(NODE).unwrap();
    let on_node = node.listen(8080).unwrap();
    let (to_outside, to_node) = (external.at(80), node.at(8080));
    let service = scene.cluster.cluster_ip("denied", 80).unwrap();
    drop(scene.sluice.take());
    let mut sluice = node.start_sluice(&scene.options).unwrap();
    sluice.wait_ready(LIMIT).unwrap();
    scene.sluice = Some(sluice);
    let streams = [(to_outside, &outside), (to_node, &on_node)].map(|(to, listener)| {
        let stream = client.connect(to, LIMIT).unwrap();
        (stream, accept(listener, LIMIT).unwrap())
    });
    assert_eq!(client.connect(service, LIMIT).unwrap_err().kind(), ErrorKind::ConnectionRefused);
    let mut to_pod = scene.open_to("plain", 80);
    // A repair is a reason to look.
    scene.run("nft delete table inet sluice");
    let log = || scene.sluice().stderr();
    assert!(
        wait_until(LIMIT, || scene.sluice().metric("sluice_ruleset_repairs_total").unwrap() >= 1.0),
        "{}",
        log()
    );
    let looks = || log().matches("judged connections older than this process").count();
    assert!(wait_until(LIMIT, || looks() >= 2), "{}", log());
    assert!(to_pod.is_alive());
    assert_eq!(scene.sluice().metric(JUDGED).unwrap(), 0.0, "{}", log());
    drop(streams);
}
