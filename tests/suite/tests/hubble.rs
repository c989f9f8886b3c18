//! Flows of real traffic over the API that Hubble's tools speak, from an agent in a cluster.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking, in its helpers too")]

use std::collections::BTreeSet;
use std::process::Command;
use std::time::Duration;

use flow_api::proto::flow::{Flow, FlowFilter, Verdict};
use flow_api::proto::observer::get_flows_response::ResponseTypes;
use flow_api::proto::observer::observer_client::ObserverClient;
use flow_api::proto::observer::{
    GetFlowsRequest, GetFlowsResponse, GetNamespacesRequest, GetNodesRequest, ServerStatusRequest,
};
use flow_api::proto::peer::NotifyRequest;
use flow_api::proto::peer::peer_client::PeerClient;
use lab::wait_until;
use serde_json::Value;
use suite::stage::{ALLOWED, DENIED, LIMIT, Stage, action};
use tonic::Streaming;
use tonic::transport::{Channel, Endpoint};

const CONFIG: &str = "hubble: {listen: '127.0.0.1:4245'}\n";

/// Runs on the node, as a client there would.
fn on_the_node<T: Send>(stage: &Stage, ask: impl AsyncFnOnce(Channel) -> T + Send) -> T {
    stage.cluster.node("node1").unwrap().netns().run(|| {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let endpoint = Endpoint::from_static("http://127.0.0.1:4245");
            ask(endpoint.connect().await.unwrap()).await
        })
    })
}

async fn next(stream: &mut Streaming<GetFlowsResponse>) -> Option<Flow> {
    let answer = tokio::time::timeout(LIMIT, stream.message()).await.expect("no flow in time").ok()??;
    match answer.response_types {
        Some(ResponseTypes::Flow(flow)) => Some(flow),
        other => panic!("{other:?}"),
    }
}

async fn flows(channel: &Channel, request: GetFlowsRequest) -> Vec<Flow> {
    let mut stream = ObserverClient::new(channel.clone()).get_flows(request).await.unwrap().into_inner();
    let mut found = Vec::new();
    while let Some(flow) = next(&mut stream).await {
        found.push(flow);
    }
    found
}

fn traffic(stage: &Stage, rounds: usize) {
    let (client, server) = (stage.pod("client"), stage.pod("server"));
    for _ in 0..rounds {
        lab::greeting_peer(&mut client.connect(server.at(ALLOWED), LIMIT).unwrap(), LIMIT).unwrap();
        assert!(client.connect(server.at(DENIED), LIMIT).is_err());
    }
    assert!(stage.settled());
}

/// What both the record and the flow say.
fn of_record(record: &Value) -> (String, i32, String, String, u64) {
    let text = |value: &Value| value.as_str().unwrap().to_owned();
    let verdict = if action(record) == "connection-denied" { Verdict::Dropped } else { Verdict::Forwarded };
    (
        format!("{}-{}", text(&record["event"]["id"]), record["event"]["sequence"]),
        verdict.into(),
        text(&record["source"]["k8s"]["pod"]),
        text(&record["destination"]["k8s"]["pod"]),
        record["destination"]["port"].as_u64().unwrap(),
    )
}

fn of_flow(flow: &Flow) -> (String, i32, String, String, u64) {
    use flow_api::proto::flow::layer4::Protocol;

    let pod = |end: &Option<flow_api::proto::flow::Endpoint>| end.as_ref().unwrap().pod_name.clone();
    let port = match flow.l4.as_ref().unwrap().protocol.as_ref().unwrap() {
        Protocol::Tcp(tcp) => tcp.destination_port,
        other => panic!("{other:?}"),
    };
    (flow.uuid.clone(), flow.verdict, pod(&flow.source), pod(&flow.destination), u64::from(port))
}

fn observed(stage: &Stage) -> BTreeSet<(String, i32, String, String, u64)> {
    let node = stage.cluster.node("node1").unwrap();
    let mut observe: Command = node.command(lab::sluice_binary().unwrap());
    let output = observe.args(["observe", "--last", "1000", "-o", "json"]).output().unwrap();
    assert!(output.status.success(), "{output:?}");
    let text = String::from_utf8(output.stdout).unwrap();
    text.lines().map(|line| of_record(&serde_json::from_str(line).unwrap())).collect()
}

#[test]
fn a_grpc_client_reads_the_flows_that_observe_shows() {
    let folder = tempfile::tempdir().unwrap();
    let mut stage = Stage::without_sluice(CONFIG).unwrap();
    stage.options.arguments = vec!["--data".into(), folder.path().into()];
    stage.start_sluice().unwrap();
    let _server = stage.pod("server").serve(ALLOWED).unwrap();
    traffic(&stage, 10);
    let stored = "sluice_sink_written_total{sink=\"store\"}";
    assert!(wait_until(LIMIT, || stage.sluice().metric(stored).is_ok_and(|sum| sum >= 30.0)));
    let expected = observed(&stage);
    assert_eq!(expected.len(), 30);

    on_the_node(&stage, async |channel| {
        let all = flows(&channel, GetFlowsRequest::default()).await;
        assert_eq!(all.iter().map(of_flow).collect::<BTreeSet<_>>(), expected);
        let times: Vec<(i64, i32)> =
            all.iter().map(|flow| flow.time.unwrap()).map(|time| (time.seconds, time.nanos)).collect();
        assert!(times.is_sorted());
        let last = flows(&channel, GetFlowsRequest { number: 7, ..GetFlowsRequest::default() }).await;
        assert_eq!(last, all[23..]);
        let first = GetFlowsRequest { number: 4, first: true, ..GetFlowsRequest::default() };
        assert_eq!(flows(&channel, first).await, all[..4]);

        let filter = FlowFilter {
            verdict: vec![Verdict::Dropped.into()],
            destination_pod: vec!["default/server".to_owned()],
            destination_label: vec!["app=server".to_owned()],
            ..FlowFilter::default()
        };
        let request = GetFlowsRequest { whitelist: vec![filter], number: 5, ..GetFlowsRequest::default() };
        let dropped = flows(&channel, request).await;
        assert_eq!(dropped.len(), 5);
        for flow in &dropped {
            assert_eq!((flow.drop_reason, &*flow.node_name), (133, "node1"));
            let policy = &flow.ingress_denied_by[0];
            assert_eq!(
                (&*policy.kind, &*policy.namespace, &*policy.name),
                ("NetworkPolicy", "default", "server")
            );
        }

        let mut client = ObserverClient::new(channel.clone());
        let status = client.server_status(ServerStatusRequest {}).await.unwrap().into_inner();
        assert_eq!((status.num_flows, status.seen_flows), (30, 30));
        let nodes = client.get_nodes(GetNodesRequest {}).await.unwrap().into_inner().nodes;
        assert_eq!(nodes[0].name, "node1");
        let found = client.get_namespaces(GetNamespacesRequest {}).await.unwrap().into_inner().namespaces;
        assert_eq!(found.iter().map(|found| &*found.namespace).collect::<Vec<_>>(), ["default"]);
        let mut peers = PeerClient::new(channel.clone()).notify(NotifyRequest {}).await.unwrap().into_inner();
        let peer = tokio::time::timeout(LIMIT, peers.message()).await.unwrap().unwrap().unwrap();
        assert_eq!((&*peer.name, peer.r#type), ("node1", 1));
        assert!(peer.address.ends_with(":4245"), "{}", peer.address);
    });
}

#[test]
fn a_follower_sees_each_connection_as_it_happens_and_ends_with_the_agent() {
    let mut stage = Stage::new(CONFIG).unwrap();
    let _server = stage.pod("server").serve(ALLOWED).unwrap();
    traffic(&stage, 3);
    let (told, heard) = std::sync::mpsc::channel();
    std::thread::scope(|scope| {
        let stage_of_follower = &stage;
        let follower = scope.spawn(move || {
            on_the_node(stage_of_follower, async |channel| {
                // Without a store the agent keeps the last flows in memory.
                let request = GetFlowsRequest { number: 9, follow: true, ..GetFlowsRequest::default() };
                let mut stream = ObserverClient::new(channel).get_flows(request).await.unwrap().into_inner();
                let mut seen = Vec::new();
                while let Some(flow) = next(&mut stream).await {
                    seen.push(of_flow(&flow));
                    told.send(seen.len()).unwrap();
                }
                seen
            })
        });
        while heard.recv_timeout(LIMIT).unwrap() < 9 {}
        traffic(&stage, 5);
        while heard.recv_timeout(LIMIT).unwrap() < 24 {}
        let pid = nix::unistd::Pid::from_raw(i32::try_from(stage.sluice().pid()).unwrap());
        nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGTERM).unwrap();
        let seen: BTreeSet<_> = follower.join().unwrap().into_iter().collect();
        let written: BTreeSet<_> = stage.sluice().records().unwrap().iter().map(of_record).collect();
        assert_eq!(seen, written);
    });
    assert_eq!(stage.sluice_mut().wait_exit(LIMIT + Duration::from_secs(5)).unwrap(), 0);
}
