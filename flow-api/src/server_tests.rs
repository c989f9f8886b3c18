//! The API over the wire, with clients that behave and clients that do not.

use std::collections::BTreeSet;
use std::io::{Read, Write};
use std::time::Instant;

use prost_types::Timestamp;
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use tonic::Code;
use tonic::transport::{Certificate, Channel, ClientTlsConfig, Endpoint, Identity};

use super::*;
use crate::HubbleTls;
use crate::flow::tests::{denied, record, started};
use crate::proto::flow::{FlowFilter, LostEventSource};
use crate::proto::observer::get_flows_response::ResponseTypes;
use crate::proto::observer::observer_client::ObserverClient;
use crate::proto::observer::{
    GetFlowsRequest, GetFlowsResponse, GetNamespacesRequest, GetNodesRequest, ServerStatusRequest,
};
use crate::proto::peer::NotifyRequest;
use crate::proto::peer::peer_client::PeerClient;

const LIMIT: Duration = Duration::from_secs(20);

struct Stage {
    api: FlowApi,
    hub: Hub,
    nodes: watch::Sender<Arc<Nodes>>,
}

impl Stage {
    fn new() -> Self {
        Self::with(&HubbleConfig::default())
    }

    fn with(config: &HubbleConfig) -> Self {
        let (nodes, told) = watch::channel(Arc::new(Nodes::new()));
        let hub = Hub::of_test("node-a");
        let shared = hub.clone();
        let history = move || (shared.clone(), History::new(shared, None));
        let address = "127.0.0.1:0".parse().unwrap();
        let api = FlowApi::serve(config, address, "node-a", told, history).unwrap();
        Self { api, hub, nodes }
    }

    fn endpoint(&self) -> Endpoint {
        Endpoint::from_shared(format!("http://{}", self.api.address())).unwrap()
    }

    async fn client(&self) -> ObserverClient<Channel> {
        ObserverClient::new(self.endpoint().connect().await.unwrap())
    }
}

fn sequence(answer: &GetFlowsResponse) -> u64 {
    match &answer.response_types {
        Some(ResponseTypes::Flow(flow)) => flow.uuid.rsplit('-').next().unwrap().parse().unwrap(),
        other => panic!("{other:?}"),
    }
}

async fn all(client: &mut ObserverClient<Channel>, request: GetFlowsRequest) -> Vec<u64> {
    let mut stream = client.get_flows(request).await.unwrap().into_inner();
    let mut found = Vec::new();
    while let Some(answer) = stream.message().await.unwrap() {
        found.push(sequence(&answer));
    }
    found
}

fn lines(numbers: std::ops::RangeInclusive<u64>) -> String {
    numbers.map(|number| started(number) + "\n").collect()
}

#[tokio::test]
async fn the_past_is_given_as_it_is_asked_for() {
    let stage = Stage::new();
    // Records of several threads are not quite in the order of their times.
    stage.hub.tell(&lines(6..=10));
    stage.hub.tell(&lines(1..=5));
    stage.hub.tell(&(denied(11) + "\n"));
    let mut client = stage.client().await;
    let request = GetFlowsRequest::default;
    let at = |number: i32| Some(Timestamp { seconds: 1_785_585_600, nanos: number + 1 });
    assert_eq!(all(&mut client, request()).await, (1..=11).collect::<Vec<u64>>());
    assert_eq!(all(&mut client, GetFlowsRequest { number: 3, ..request() }).await, [9, 10, 11]);
    assert_eq!(all(&mut client, GetFlowsRequest { number: u64::MAX, ..request() }).await.len(), 11);
    assert_eq!(all(&mut client, GetFlowsRequest { number: 3, first: true, ..request() }).await, [1, 2, 3]);
    assert_eq!(all(&mut client, GetFlowsRequest { since: at(9), ..request() }).await, [9, 10, 11]);
    assert_eq!(all(&mut client, GetFlowsRequest { since: at(3), until: at(4), ..request() }).await, [3, 4]);
    assert_eq!(all(&mut client, GetFlowsRequest { number: 2, until: at(4), ..request() }).await, [3, 4]);
    let dropped = FlowFilter { verdict: vec![2], ..FlowFilter::default() };
    let asked = GetFlowsRequest { whitelist: vec![dropped.clone()], number: 5, ..request() };
    assert_eq!(all(&mut client, asked).await, [11]);
    let asked = GetFlowsRequest { blacklist: vec![dropped], number: 2, ..request() };
    assert_eq!(all(&mut client, asked).await, [9, 10]);
}

/// `hubble status` asks for it first, and for this name.
#[tokio::test]
async fn whoever_asks_for_its_health_is_told_that_it_serves() {
    use tonic_health::pb::HealthCheckRequest;
    use tonic_health::pb::health_check_response::ServingStatus;
    use tonic_health::pb::health_client::HealthClient;

    let stage = Stage::new();
    let mut client = HealthClient::new(stage.endpoint().connect().await.unwrap());
    for service in ["", "hubble.server.Observer"] {
        let answer = client.check(HealthCheckRequest { service: service.to_owned() }).await.unwrap();
        assert_eq!(answer.into_inner().status(), ServingStatus::Serving, "{service:?}");
    }
    let unknown = client.check(HealthCheckRequest { service: "no.such.Service".to_owned() }).await;
    assert_eq!(unknown.unwrap_err().code(), Code::NotFound);
}

#[tokio::test]
async fn following_gives_the_past_and_then_each_new_flow_once() {
    let stage = Stage::new();
    stage.hub.tell(&lines(1..=5));
    let mut client = stage.client().await;
    let request = GetFlowsRequest { number: 2, follow: true, ..GetFlowsRequest::default() };
    let mut stream = client.get_flows(request).await.unwrap().into_inner();
    for expected in [4, 5] {
        assert_eq!(sequence(&stream.message().await.unwrap().unwrap()), expected);
    }
    // One that was in the past already, and a loss.
    stage.hub.tell(&lines(5..=7));
    stage.hub.tell(
        &(record("records-lost", 9, |record| record["sluice"]["lost"] = serde_json::json!({"count": 2}))
            + "\n"),
    );
    for expected in [6, 7] {
        assert_eq!(sequence(&stream.message().await.unwrap().unwrap()), expected);
    }
    match stream.message().await.unwrap().unwrap().response_types {
        Some(ResponseTypes::LostEvents(lost)) => assert_eq!(lost.num_events_lost, 2),
        other => panic!("{other:?}"),
    }
    // Without a number only what comes.
    let request = GetFlowsRequest { follow: true, ..GetFlowsRequest::default() };
    let mut stream = client.get_flows(request).await.unwrap().into_inner();
    stage.hub.tell(&lines(10..=10));
    assert_eq!(sequence(&stream.message().await.unwrap().unwrap()), 10);
}

#[tokio::test]
async fn a_client_that_does_not_read_is_told_what_it_missed_and_costs_others_nothing() {
    const FLOWS: u64 = 40_000;

    let stage = Stage::new();
    let mut slow = stage.client().await;
    let mut quick = stage.client().await;
    let request = GetFlowsRequest { follow: true, ..GetFlowsRequest::default() };
    let mut slow = slow.get_flows(request.clone()).await.unwrap().into_inner();
    let mut quick = quick.get_flows(request).await.unwrap().into_inner();
    let (mut told, mut missed) = (0, 0);
    for first in (1..=FLOWS).step_by(1_000) {
        stage.hub.tell(&lines(first..=first + 999));
        for _ in 0..1_000 {
            sequence(&quick.message().await.unwrap().unwrap());
        }
    }
    loop {
        let next = slow.message().await.unwrap().unwrap();
        match next.response_types {
            Some(ResponseTypes::LostEvents(lost)) => {
                assert_eq!(lost.source(), LostEventSource::HubbleRingBuffer);
                missed += lost.num_events_lost;
            }
            _ => told += 1,
        }
        if told + missed == FLOWS {
            break;
        }
    }
    assert!(missed > FLOWS / 2, "{missed} missed, {told} told");
}

#[tokio::test]
async fn requests_that_cannot_be_served_are_refused_with_a_reason() {
    let stage = Stage::new();
    let mut client = stage.client().await;
    let bad = FlowFilter { source_ip: vec!["nonsense".to_owned()], ..FlowFilter::default() };
    let time = Some(Timestamp { seconds: i64::MAX, nanos: 0 });
    for request in [
        GetFlowsRequest { whitelist: vec![bad.clone()], ..GetFlowsRequest::default() },
        GetFlowsRequest { blacklist: vec![bad], ..GetFlowsRequest::default() },
        GetFlowsRequest { first: true, follow: true, ..GetFlowsRequest::default() },
        GetFlowsRequest { since: time, ..GetFlowsRequest::default() },
        GetFlowsRequest {
            field_mask: Some(prost_types::FieldMask { paths: vec!["secrets".to_owned()] }),
            ..GetFlowsRequest::default()
        },
    ] {
        let error = client.get_flows(request).await.unwrap_err();
        assert_eq!(error.code(), Code::InvalidArgument, "{error}");
    }
    let huge = FlowFilter { uuid: vec!["x".repeat(2 << 20)], ..FlowFilter::default() };
    let request = GetFlowsRequest { whitelist: vec![huge], ..GetFlowsRequest::default() };
    assert_eq!(client.get_flows(request).await.unwrap_err().code(), Code::OutOfRange);
    // And it goes on.
    assert_eq!(all(&mut client, GetFlowsRequest::default()).await, [0; 0]);
}

#[tokio::test]
async fn followers_are_bounded_and_one_that_goes_makes_room() {
    let stage = Stage::new();
    let request = GetFlowsRequest { follow: true, ..GetFlowsRequest::default() };
    let mut streams = Vec::new();
    let mut clients = Vec::new();
    for _ in 0..4 {
        clients.push(stage.client().await);
    }
    for number in 0..64 {
        streams.push(clients[number % 4].get_flows(request.clone()).await.unwrap().into_inner());
    }
    let mut another = stage.client().await;
    let refused = another.get_flows(request.clone()).await.unwrap_err();
    assert_eq!(refused.code(), Code::ResourceExhausted, "{refused}");
    streams.pop();
    let begun = Instant::now();
    while another.get_flows(request.clone()).await.is_err() {
        assert!(begun.elapsed() < LIMIT, "its place stays taken");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    stage.hub.tell(&lines(1..=1));
    for stream in &mut streams {
        assert_eq!(sequence(&stream.message().await.unwrap().unwrap()), 1);
    }
}

/// Bytes of this process in memory.
fn resident() -> u64 {
    let pages = std::fs::read_to_string("/proc/self/statm").unwrap();
    pages.split(' ').nth(1).unwrap().parse::<u64>().unwrap() * 4096
}

/// Clients and server are one process here: the bound is of both.
#[tokio::test]
async fn load_thousands_who_want_to_follow_and_never_read_cost_bounded_memory_and_leave_room_when_they_go() {
    const CLIENTS: usize = 100;
    const FLOWS: u64 = 20_000;

    let stage = Stage::new();
    let request = GetFlowsRequest { follow: true, ..GetFlowsRequest::default() };
    let mut clients = Vec::new();
    for _ in 0..CLIENTS {
        clients.push(stage.client().await);
    }
    let before = resident();
    let (mut followers, mut refused) = (Vec::new(), 0);
    for _ in 0..30 {
        for client in &mut clients {
            match client.get_flows(request.clone()).await {
                Ok(stream) => followers.push(stream.into_inner()),
                Err(error) => {
                    assert_eq!(error.code(), Code::ResourceExhausted, "{error}");
                    refused += 1;
                }
            }
        }
    }
    assert_eq!((followers.len(), followers.len() + refused), (64, 30 * CLIENTS));
    let mut most = 0;
    for first in (1..=FLOWS).step_by(1_000) {
        stage.hub.tell(&lines(first..=first + 999));
        // Somebody else is answered all the same.
        clients[0].server_status(ServerStatusRequest {}).await.unwrap();
        most = most.max(resident() - before);
    }
    eprintln!("{} MiB", most >> 20);
    assert!(most < 256 << 20, "{} MiB", most >> 20);
    // Without a word.
    drop((followers, clients));
    let mut another = stage.client().await;
    let begun = Instant::now();
    while another.get_flows(request.clone()).await.is_err() {
        assert!(begun.elapsed() < LIMIT, "their places stay taken");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

#[tokio::test]
async fn the_agent_tells_of_itself_and_of_namespaces_with_flows() {
    let stage = Stage::new();
    stage.hub.tell(&lines(1..=3));
    let mut client = stage.client().await;
    let status = client.server_status(ServerStatusRequest {}).await.unwrap().into_inner();
    assert_eq!((status.num_flows, status.max_flows, status.seen_flows), (3, 4_095, 3));
    assert!(status.version.starts_with("sluice v") && status.flows_rate > 0.0 && status.uptime_ns > 0);
    let nodes = client.get_nodes(GetNodesRequest {}).await.unwrap().into_inner().nodes;
    assert_eq!((nodes.len(), &*nodes[0].name), (1, "node-a"));
    assert_eq!(nodes[0].address, stage.api.address().to_string());
    assert!(!nodes[0].tls.as_ref().unwrap().enabled);
    // Those of the example are of another day.
    let now = jiff::Timestamp::now();
    let line = record("connection-started", 9, |record| {
        record["@timestamp"] = now.to_string().into();
        record["source"]["k8s"]["namespace"] = "today".into();
    });
    stage.hub.tell(&(line + "\n"));
    let found = client.get_namespaces(GetNamespacesRequest {}).await.unwrap().into_inner().namespaces;
    let names: Vec<&str> = found.iter().map(|found| &*found.namespace).collect();
    assert_eq!(names, ["shop", "today"]);
}

#[tokio::test]
async fn peers_are_told_and_then_their_changes() {
    let stage = Stage::new();
    let nodes = |names: &[(&str, &str)]| -> Arc<Nodes> {
        Arc::new(names.iter().map(|(name, ip)| (Arc::from(*name), vec![ip.parse().unwrap()])).collect())
    };
    stage.nodes.send(nodes(&[("node-a", "10.0.0.1"), ("node-b", "10.0.0.2")])).unwrap();
    let mut client = PeerClient::new(stage.endpoint().connect().await.unwrap());
    let mut stream = client.notify(NotifyRequest {}).await.unwrap().into_inner();
    let mut told = Vec::new();
    for _ in 0..2 {
        let change = stream.message().await.unwrap().unwrap();
        assert_eq!(change.tls, None);
        told.push((change.name, change.address, change.r#type));
    }
    let port = stage.api.address().port();
    let text = |name: &str, ip: &str, kind: i32| (name.to_owned(), format!("{ip}:{port}"), kind);
    assert_eq!(told, [text("node-a", "10.0.0.1", 1), text("node-b", "10.0.0.2", 1)]);
    stage.nodes.send(nodes(&[("node-a", "10.0.0.1"), ("node-c", "10.0.0.3")])).unwrap();
    let mut told = BTreeSet::new();
    for _ in 0..2 {
        let change = stream.message().await.unwrap().unwrap();
        told.insert((change.name, change.address, change.r#type));
    }
    assert_eq!(told, BTreeSet::from([text("node-b", "10.0.0.2", 2), text("node-c", "10.0.0.3", 1)]));
}

/// Certificates of one authority in a folder.
struct Authority {
    folder: tempfile::TempDir,
    issuer: CertifiedIssuer<'static, KeyPair>,
}

impl Authority {
    fn new() -> Self {
        let mut params = CertificateParams::new(vec!["authority".to_owned()]).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let issuer = CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap();
        Self { folder: tempfile::tempdir().unwrap(), issuer }
    }

    fn leaf(&self, name: &str) -> (String, String) {
        let key = KeyPair::generate().unwrap();
        let params = CertificateParams::new(vec![name.to_owned()]).unwrap();
        (params.signed_by(&key, &self.issuer).unwrap().pem(), key.serialize_pem())
    }

    fn file(&self, name: &str, text: &str) -> std::path::PathBuf {
        let path = self.folder.path().join(name);
        std::fs::write(&path, text).unwrap();
        path
    }

    fn server(&self, asks_clients: bool) -> HubbleConfig {
        let (cert, key) = self.leaf("node-a.default.hubble-grpc.cilium.io");
        let tls = HubbleTls {
            cert_file: self.file("cert.pem", &cert),
            key_file: self.file("key.pem", &key),
            client_ca_file: asks_clients.then(|| self.file("ca.pem", &self.issuer.pem())),
            server_name: None,
        };
        HubbleConfig { tls: Some(tls), ..HubbleConfig::default() }
    }
}

#[tokio::test]
async fn with_tls_only_those_who_are_let_in_read_flows() {
    let (ours, stranger) = (Authority::new(), Authority::new());
    for asks_clients in [false, true] {
        let stage = Stage::with(&ours.server(asks_clients));
        stage.hub.tell(&lines(1..=1));
        let trusting = |authority: &Authority| {
            ClientTlsConfig::new()
                .ca_certificate(Certificate::from_pem(authority.issuer.pem()))
                .domain_name("node-a.default.hubble-grpc.cilium.io")
        };
        let read = async |tls: ClientTlsConfig| -> Option<Vec<u64>> {
            let endpoint = Endpoint::from_shared(format!("https://{}", stage.api.address())).unwrap();
            let channel = endpoint.tls_config(tls).unwrap().connect().await.ok()?;
            let mut client = ObserverClient::new(channel);
            // With TLS 1.3 a client learns with its first request that its certificate is not liked.
            client.server_status(ServerStatusRequest {}).await.ok()?;
            Some(all(&mut client, GetFlowsRequest::default()).await)
        };
        let shown = |authority: &Authority| {
            let (cert, key) = authority.leaf("relay");
            trusting(&ours).identity(Identity::from_pem(cert, key))
        };
        assert_eq!(read(trusting(&ours)).await.is_some(), !asks_clients);
        assert_eq!(read(shown(&ours)).await, Some(vec![1]));
        assert_eq!(read(shown(&stranger)).await.is_some(), !asks_clients);
        assert_eq!(read(trusting(&stranger)).await, None);
        assert!(
            stage.endpoint().connect().await.is_err() || {
                let mut plain = stage.client().await;
                plain.server_status(ServerStatusRequest {}).await.is_err()
            }
        );
        let nodes = PeerClient::new(
            Endpoint::from_shared(format!("https://{}", stage.api.address()))
                .unwrap()
                .tls_config(shown(&ours))
                .unwrap()
                .connect()
                .await
                .unwrap(),
        );
        let told = Arc::new(Nodes::from([(Arc::from("node.b"), vec!["10.0.0.2".parse().unwrap()])]));
        stage.nodes.send(told).unwrap();
        let mut nodes = nodes;
        let change =
            nodes.notify(NotifyRequest {}).await.unwrap().into_inner().message().await.unwrap().unwrap();
        assert_eq!(change.tls.unwrap().server_name, "node-b.default.hubble-grpc.cilium.io");
    }
}

#[tokio::test]
async fn garbage_and_silence_do_not_keep_others_out() {
    let ours = Authority::new();
    for config in [HubbleConfig::default(), ours.server(false)] {
        let stage = Stage::with(&config);
        let address = stage.api.address();
        // Silent ones hold their places for as long as a handshake may take.
        let silent: Vec<_> = (0..50).map(|_| std::net::TcpStream::connect(address).unwrap()).collect();
        let garbage = tokio::task::spawn_blocking(move || {
            for bytes in [
                &b"GET / HTTP/1.1\r\n\r\n"[..],
                &[0xff; 70_000],
                &[0x16, 3, 1, 0xff, 0xff],
                b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04",
            ] {
                let mut stream = std::net::TcpStream::connect(address).unwrap();
                stream.set_read_timeout(Some(Duration::from_millis(200))).unwrap();
                let _ = stream.write_all(bytes);
                let _ = stream.read(&mut [0; 1024]);
            }
        });
        garbage.await.unwrap();
        let begun = Instant::now();
        let channel = match &config.tls {
            None => stage.endpoint().connect().await.unwrap(),
            Some(_) => {
                let tls = ClientTlsConfig::new()
                    .ca_certificate(Certificate::from_pem(ours.issuer.pem()))
                    .domain_name("node-a.default.hubble-grpc.cilium.io");
                let endpoint = Endpoint::from_shared(format!("https://{address}")).unwrap();
                endpoint.tls_config(tls).unwrap().connect().await.unwrap()
            }
        };
        ObserverClient::new(channel).server_status(ServerStatusRequest {}).await.unwrap();
        assert!(begun.elapsed() < Duration::from_secs(5), "{:?}", begun.elapsed());
        drop(silent);
    }
}

#[test]
fn certificates_and_addresses_that_cannot_be_used_are_told() {
    let ours = Authority::new();
    let mut config = ours.server(false);
    let serve = |config: &HubbleConfig, address: &str| {
        let hub = Hub::of_test("node-a");
        let history = move || (hub.clone(), History::new(hub, None));
        let nodes = watch::channel(Arc::new(Nodes::new())).1;
        FlowApi::serve(config, address.parse().unwrap(), "node-a", nodes, history).map(drop)
    };
    serve(&config, "127.0.0.1:0").unwrap();
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    let error = serve(&config, &address).unwrap_err().to_string();
    assert!(error.starts_with(&format!("listen on hubble.listen {address}: ")), "{error}");
    config.tls.as_mut().unwrap().cert_file = ours.file("empty.pem", "");
    let error = serve(&config, "127.0.0.1:0").unwrap_err().to_string();
    assert!(error.starts_with("hubble.tls: ") && error.contains("empty.pem"), "{error}");
}
