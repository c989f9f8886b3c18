//! Metrics as Prometheus sees them: every one moves under traffic and faults, and every question that the alerts and
//! dashboards of `deploy/` ask has an answer.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking, in its helpers too")]

use std::collections::{BTreeMap, BTreeSet};
use std::fs::OpenOptions;
use std::io::{Read, Write};
use std::net::{SocketAddr, SocketAddrV4, TcpListener, TcpStream};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use apiserver::{Answer, ApiServer, Fault, Verb, WatchEnd};
use lab::{Cluster, Node, Pod, Sluice, SluiceOptions, ask, wait_until};
use nix::libc::O_NONBLOCK;
use serde_json::{Value, json};
use socket2::{Domain, Protocol, Type};
use suite::carried::Carried;
use suite::packets::Hole;
use suite::prometheus::{Prometheus, promtool, repository};
use suite::scraped::Scraped;
use suite::stage::{self, ALLOWED, DENIED, LIMIT, POLICY};
use suite::syn::SynSender;

/// Families that stay as they are once an agent has started.
const CONSTANT: [(&str, &str); 7] = [
    ("sluice_build_info", "the agent's version"),
    ("sluice_descriptors_limit", "raised once"),
    ("sluice_records_limit", "a setting"),
    ("sluice_conntrack_limit", "a setting of the node"),
    ("sluice_pairs_limit", "a setting"),
    ("process_start_time_seconds", "the past"),
    ("sluice_sink_rejected_total", "a collector that refuses for good: audit/src/otlp_tests.rs"),
];

/// An agent that has little room for everything, fed from an API server, before it is ready.
struct Scene<'a> {
    sluice: Sluice,
    server: ApiServer,
    scraped: Scraped,
    cluster: &'a Cluster,
    folder: tempfile::TempDir,
}

impl<'a> Scene<'a> {
    /// Nothing is listed yet.
    fn start(cluster: &'a Cluster) -> Self {
        let node = cluster.node("node1").unwrap();
        let listener = node.netns().run(|| TcpListener::bind(("127.0.0.1", 0)).unwrap());
        let server = ApiServer::on(listener).unwrap();
        server.apply(&cluster.manifests());
        server.apply(POLICY);
        server.fail(Fault::new("", Verb::Any, usize::MAX, Answer::Status(503, None)));
        let folder = tempfile::tempdir().unwrap();
        for fifo in ["first", "slow"] {
            assert!(Command::new("mkfifo").arg(folder.path().join(fifo)).status().unwrap().success());
        }
        let config = format!(
            "api: {{start_jitter_ms: 0, silence_ms: 3000, answer_timeout_ms: 2000, discovery_ms: 300}}\n\
             proxy: {{unknown_pod_timeout_ms: 1500}}\nmetrics: {{max_pairs: 2}}\n\
             records:\n  queue_records: 64\n  sinks:\n  - {{name: slow, file: {{path: {0}/slow}}}}\n  \
             - {{name: collector, otlp: {{endpoint: 'http://127.0.0.1:1', spool: {{folder: {0}/spool}}}}}}\n",
            folder.path().display()
        );
        let options = SluiceOptions {
            kubeconfig: Some(server.kubeconfig("secret").unwrap()),
            records: Some(folder.path().join("first")),
            arguments: vec!["--data".into(), folder.path().into()],
            config,
            ..SluiceOptions::default()
        };
        let sluice = node.start_sluice(&options).unwrap();
        let mut scene = Self { sluice, server, scraped: Scraped::default(), cluster, folder };
        assert!(wait_until(LIMIT, || scene.sluice.metrics().is_ok()), "{}", scene.sluice.stderr());
        scene.scrape();
        scene
    }

    fn node(&self) -> &'a Node {
        self.cluster.node("node1").unwrap()
    }

    fn pod(&self, name: &str) -> &'a Pod {
        self.cluster.pod(name).unwrap()
    }

    fn scrape(&mut self) {
        let text = self.sluice.metrics().unwrap();
        self.scraped.add(&text);
    }

    fn metric(&self, series: &str) -> f64 {
        self.sluice.metric(series).unwrap_or(0.0)
    }

    /// Waits until a series has this value or more, and scrapes.
    fn reaches(&mut self, series: &str, value: f64) {
        assert!(wait_until(LIMIT, || self.metric(series) >= value), "{series}: {}", self.sluice.stderr());
        self.scrape();
    }

    /// Waits until a series has this value or less, and scrapes.
    fn falls(&mut self, series: &str, value: f64) {
        assert!(wait_until(LIMIT, || self.metric(series) <= value), "{series}: {}", self.sluice.stderr());
        self.scrape();
    }

    fn dial(&self, to: SocketAddr) -> std::io::Result<TcpStream> {
        self.pod("client").connect(to, Duration::from_secs(5))
    }
}

fn closed(pod: &str) -> Value {
    json!({
        "apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy",
        "metadata": { "name": pod, "namespace": "default" },
        "spec": { "podSelector": { "matchExpressions": [{ "key": "app", "operator": "DoesNotExist" }] }, "policyTypes": ["Ingress"] },
    })
}

/// Everything that an agent may meet, one after the other.
fn live_through_everything(scene: &mut Scene<'_>, older: Carried) {
    connections(scene);
    datagrams(scene);
    held_attempts(scene);
    policies(scene);
    drop(older);
    faults_of_the_api(scene);
    a_port_that_is_taken(scene);
    records(scene);
}

fn connections(scene: &mut Scene<'_>) {
    let (server, plain) = (scene.pod("server").at(ALLOWED), scene.pod("plain").at(ALLOWED));
    let _serving = scene.pod("server").serve(ALLOWED).unwrap();
    for _ in 0..3 {
        let mut stream = scene.dial(server).unwrap();
        lab::greeting_peer(&mut stream, LIMIT).unwrap();
    }
    assert!(scene.dial(scene.pod("server").at(DENIED)).is_err());
    assert!(scene.dial(plain).is_err(), "nobody listens");
    // One that is not read from, until the proxy holds bytes in a pipe.
    let listener = scene.pod("plain").listen(ALLOWED).unwrap();
    let mut carried = Carried::open(scene.pod("client"), &listener, plain);
    carried.client.set_nonblocking(true).unwrap();
    let full = wait_until(LIMIT, || {
        let _ = carried.client.write(&[0; 65_536]);
        scene.metric("sluice_pipes_in_use") >= 1.0
    });
    assert!(full);
    scene.reaches("sluice_connections_live", 1.0);
    // A pipe is kept once it is empty.
    carried.server.set_nonblocking(true).unwrap();
    let emptied = wait_until(LIMIT, || {
        while carried.server.read(&mut [0; 65_536]).is_ok_and(|read| read > 0) {}
        scene.metric("sluice_pipes_pooled") >= 1.0
    });
    assert!(emptied);
    scene.scrape();
    drop(carried);
    // A pair for which there is no room.
    assert!(scene.dial(scene.cluster.external().at(80)).is_err());
    assert!(scene.dial(scene.node().at(9_100)).is_err());
    scene.reaches("sluice_pairs_beyond_limit_total", 1.0);
    scene.falls("sluice_connections_live", 0.0);
}

fn datagrams(scene: &mut Scene<'_>) {
    let _serving = scene.pod("plain").serve_udp(8002).unwrap();
    let socket = scene.pod("client").udp_to(scene.pod("plain").at(8002)).unwrap();
    ask(&socket, b"HELLO\n", LIMIT).unwrap();
    scene.reaches("sluice_flows_live", 1.0);
}

fn held_attempts(scene: &mut Scene<'_>) {
    let client = scene.pod("client");
    let (v4, plain) = (client.address(), scene.pod("plain"));
    let sender = SynSender::open(client, v4).unwrap();
    let hole = Hole::dig(plain, 8_998);
    let to = SocketAddrV4::new(plain.address(), 8_998);
    for _ in 0..2 {
        sender.send(20_000, 1, to).unwrap();
    }
    let nobody = SocketAddrV4::new("10.244.1.200".parse().unwrap(), 80);
    sender.send(20_001, 1, nobody).unwrap();
    scene.reaches("sluice_gate_unknown_held", 1.0);
    scene.reaches("sluice_gate_dropped_total{reason=\"duplicate\"}", 1.0);
    scene.reaches("sluice_gate_pending", 1.0);
    scene.reaches("sluice_gate_queued", 1.0);
    drop(hole);
    scene.reaches("sluice_gate_unknown_refused_total", 1.0);
}

fn policies(scene: &mut Scene<'_>) {
    scene.reaches("sluice_strays_ended_total", 1.0);
    let listener = scene.pod("plain").listen(ALLOWED).unwrap();
    let mut carried = Carried::open(scene.pod("client"), &listener, scene.pod("plain").at(ALLOWED));
    carried.exchange(10, 10).unwrap();
    scene.server.put(closed("plain"));
    assert!(carried.is_reset());
    scene.reaches("sluice_policy_revocations_total", 1.0);
    let mut broken = closed("broken");
    broken["spec"]["ingress"] = json!([{ "ports": [{ "port": 99_999 }] }]);
    scene.server.put(broken);
    scene.reaches("sluice_objects_rejected{kind=\"NetworkPolicy\"}", 1.0);
    scene.server.delete("networkpolicies", "default", "broken");
    scene.server.delete("networkpolicies", "default", "plain");
    scene.falls("sluice_objects_rejected{kind=\"NetworkPolicy\"}", 0.0);
    scene.node().nft("delete table inet sluice\n").unwrap();
    scene.reaches("sluice_ruleset_repairs_total", 1.0);
}

fn faults_of_the_api(scene: &mut Scene<'_>) {
    scene.server.end_watches("", WatchEnd::Reset);
    scene.reaches("sluice_api_reconnects_total{kind=\"Pod\"}", 1.0);
    scene.server.end_watches("", WatchEnd::Expired);
    scene.reaches("sluice_api_relists_total{kind=\"Pod\"}", 1.0);
}

/// Another socket of the node has the addresses and ports that the leg to the server would have.
fn a_port_that_is_taken(scene: &mut Scene<'_>) {
    let (client, server) = (scene.pod("client"), scene.pod("server"));
    let _serving = server.serve(ALLOWED).unwrap();
    let taken = SocketAddr::from((client.address(), 20_002));
    let holder = scene.node().netns().socket(Domain::IPV4, Type::STREAM, Some(Protocol::TCP)).unwrap();
    holder.set_reuse_address(true).unwrap();
    holder.set_ip_transparent_v4(true).unwrap();
    holder.bind(&taken.into()).unwrap();
    holder.set_nonblocking(true).unwrap();
    let _ = holder.connect(&server.at(ALLOWED).into());
    let mut stream = client.connect_from(taken, server.at(ALLOWED), LIMIT).unwrap();
    lab::greeting_peer(&mut stream, LIMIT).unwrap();
    scene.reaches("sluice_upstream_port_fallbacks_total", 1.0);
}

/// Nobody reads the pipes that two of the three sinks write to, until all is lost that has to be.
fn records(scene: &mut Scene<'_>) {
    let lost = ["sluice_records_lost_total", "sluice_sink_lost_total{sink=\"slow\"}"];
    let denied = scene.pod("server").at(DENIED);
    let overflows = wait_until(LIMIT, || {
        let _ = scene.dial(denied);
        lost.iter().all(|series| scene.metric(series) >= 1.0)
    });
    assert!(overflows, "{}", scene.sluice.stderr());
    scene.scrape();
    assert!(scene.metric("sluice_records_waiting") >= 1.0);
    let written = scene.metric("sluice_records_written_total");
    let path = scene.folder.path().join("first");
    let mut reader = OpenOptions::new().read(true).custom_flags(O_NONBLOCK).open(path).unwrap();
    let read_on = wait_until(LIMIT, || {
        let _ = reader.read(&mut [0; 65_536]);
        scene.metric("sluice_records_written_total") > written + 10.0
    });
    assert!(read_on);
    scene.scrape();
}

#[test]
fn every_metric_moves_and_prometheus_answers_every_question_about_it() {
    let cluster = stage::pods().build().unwrap();
    let server = cluster.pod("server").unwrap();
    let listener = server.listen(DENIED).unwrap();
    let mut older = Carried::open(cluster.pod("client").unwrap(), &listener, server.at(DENIED));
    older.exchange(10, 10).unwrap();

    let mut scene = Scene::start(&cluster);
    let rules = repository().join("deploy/prometheus/alerts.yaml");
    let prometheus = Prometheus::start(scene.node(), SocketAddr::from(([127, 0, 0, 1], 9093)), &rules);
    assert!(wait_until(LIMIT, || prometheus
        .query("sluice_ready == 0")
        .is_ok_and(|series| series.len() == 1)));
    scene.server.heal();
    scene.sluice.wait_ready(Duration::from_secs(40)).unwrap();
    scene.scrape();
    live_through_everything(&mut scene, older);

    let constant: BTreeSet<String> = CONSTANT.iter().map(|(name, _)| (*name).to_owned()).collect();
    let (families, moved) = (scene.scraped.families(), scene.scraped.moved());
    let still: Vec<_> = families.difference(&moved).filter(|name| !constant.contains(*name)).collect();
    assert!(still.is_empty(), "nothing moves {still:?}");
    assert!(constant.is_subset(&families), "{constant:?}");
    assert_eq!(families, listed(), "left: scraped, right: listed in deploy/docs/metrics.md");

    assert_eq!(promtool(&["check", "metrics"], &scene.sluice.metrics().unwrap()), Ok(String::new()));
    let target = prometheus.target().unwrap();
    assert_eq!((&target["health"], &target["lastError"]), (&"up".into(), &"".into()), "{target:#}");
    assert_questions_are_answered(&prometheus);
}

/// The metrics that the page lists.
fn listed() -> BTreeSet<String> {
    let page = std::fs::read_to_string(repository().join("deploy/docs/metrics.md")).unwrap();
    let rows = page.lines().filter_map(|line| line.strip_prefix("| `")?.split_once('`'));
    rows.map(|(name, _)| name.to_owned()).collect()
}

fn assert_questions_are_answered(prometheus: &Prometheus<'_>) {
    let mut unanswered = BTreeMap::new();
    let questions = dashboards().into_iter().flat_map(|path| questions(&path));
    let mut asked = 0;
    for (panel, question) in questions {
        asked += 1;
        let answer = match question.strip_prefix("label_values(").and_then(|rest| rest.strip_suffix(')')) {
            Some(arguments) => {
                let (selector, label) = arguments.rsplit_once(", ").unwrap();
                prometheus.label_values(label, selector).map(|values| values.len())
            }
            None => prometheus.query(&question).map(|series| series.len()),
        };
        if answer.as_ref().is_ok_and(|series| *series > 0) {
            continue;
        }
        unanswered.insert(format!("{panel}: {question}"), answer);
    }
    assert!(unanswered.is_empty(), "{unanswered:#?}");
    assert!(asked > 50, "{asked}");
    let rules = prometheus.rules().unwrap();
    assert!(rules.len() > 10);
    for rule in rules {
        assert_eq!(rule["health"], "ok", "{rule:#}");
        // A condition that does not hold has no series; what it is about must have some.
        for name in metric_names(rule["query"].as_str().unwrap()) {
            let found = prometheus.query(&name).unwrap();
            assert!(!found.is_empty(), "{name} of {}", rule["name"]);
        }
    }
}

/// The names in an expression that are those of our metrics.
fn metric_names(expression: &str) -> BTreeSet<String> {
    let words = expression.split(|letter: char| !letter.is_ascii_alphanumeric() && letter != '_');
    words
        .filter(|word| word.starts_with("sluice_") || word.starts_with("process_"))
        .map(str::to_owned)
        .collect()
}

fn dashboards() -> Vec<PathBuf> {
    let folder = std::fs::read_dir(repository().join("deploy/grafana")).unwrap();
    let found: Vec<PathBuf> = folder
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.extension().is_some_and(|extension| extension == "json"))
        .collect();
    assert!(found.len() >= 3, "{found:?}");
    found
}

/// What a dashboard asks: panel and expression, with its variables as they are when everything is selected.
fn questions(path: &Path) -> Vec<(String, String)> {
    let dashboard: Value = serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap();
    let title = dashboard["title"].as_str().unwrap();
    let filled = |text: &Value| {
        let text = text.as_str().unwrap();
        let text = text.replace("$__rate_interval", "30s").replace("$__range", "10m").replace("$node", ".*");
        assert!(!text.contains('$'), "{title}: {text}");
        text
    };
    let mut questions = Vec::new();
    for panel in dashboard["panels"].as_array().unwrap() {
        let name = format!("{title}/{}", panel["title"].as_str().unwrap());
        let targets = panel["targets"].as_array().cloned().unwrap_or_default();
        assert!(!targets.is_empty() || panel["type"] == "row", "{name}");
        questions.extend(targets.iter().map(|target| (name.clone(), filled(&target["expr"]))));
    }
    for variable in dashboard["templating"]["list"].as_array().unwrap() {
        if variable["type"] == "query" {
            questions.push((format!("{title}/{}", variable["name"]), filled(&variable["query"])));
        }
    }
    questions
}

#[test]
fn the_alerts_are_sound_and_fire_and_rest_when_they_should() {
    let found = promtool(&["check", "rules", "deploy/prometheus/alerts.yaml"], "").unwrap();
    assert!(found.contains("SUCCESS"), "{found}");
    let tests = "deploy/prometheus/tests/alerts.yaml";
    promtool(&["test", "rules", tests], "").unwrap();
    // Each alert is seen to fire.
    let read = |path: &str| std::fs::read_to_string(repository().join(path)).unwrap();
    let alerts: Vec<String> = read("deploy/prometheus/alerts.yaml")
        .lines()
        .filter_map(|line| line.trim().strip_prefix("- alert: ").map(str::to_owned))
        .collect();
    let tested = read(tests);
    assert!(alerts.len() > 10);
    for alert in alerts {
        let fires = format!("alertname: {alert}\n    exp_alerts:\n    - exp_labels:");
        assert!(tested.contains(&fires), "no test in which {alert} fires");
    }
}
