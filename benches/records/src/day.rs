//! A store with the records of a day, an hour a file, and how long people wait for answers from it.

use std::net::SocketAddr;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use anyhow::Context;
use audit::{Metrics, Recorder, RecorderConfig, Sink, StoreConfig, store_size};
use flow_api::proto::flow::{FlowFilter, Verdict};
use flow_api::proto::observer::observer_client::ObserverClient;
use flow_api::proto::observer::{GetFlowsRequest, GetNamespacesRequest, ServerStatusRequest};
use flow_api::{FlowApi, HubbleConfig};
use tonic::transport::{Channel, Endpoint};

use crate::population::{Population, name};
use crate::usage::processor_seconds;

const HOURS: u32 = 24;
const HOUR: Duration = Duration::from_secs(3_600);
const LIMIT: Duration = Duration::from_secs(120);

/// Fills the store when it is not there, and asks it everything.
pub(crate) fn measure(folder: &Path, records: u64, sluice: &Path, times: usize) -> anyhow::Result<()> {
    if store_size(folder).is_err() {
        fill(folder, records)?;
    }
    println!("{} records\n", store_size(folder)?);
    println!("| question | lines | median, s |\n|---|---:|---:|");
    ask_sluice(folder, sluice, times)?;
    ask_flows(folder, times)
}

/// Each hour is kept by a recorder of its own, so that it has a file of its own.
fn fill(folder: &Path, records: u64) -> anyhow::Result<()> {
    let population = Population::new();
    let begin = SystemTime::now() - HOUR * HOURS;
    let (begun, before) = (Instant::now(), processor_seconds());
    for hour in 0..u64::from(HOURS) {
        let store =
            StoreConfig { folder: Some(folder.to_owned()), max_bytes: 1 << 40, ..StoreConfig::default() };
        let config = RecorderConfig { store, ..RecorderConfig::default() };
        let ahead = config.queue_records as u64 / 2;
        let metrics = Metrics::default();
        let (recorder, writer) = Recorder::start(config, Sink::Discard, "node-a", metrics.clone())?;
        let (first, last) = (hour * records / u64::from(HOURS), (hour + 1) * records / u64::from(HOURS));
        for number in first..last {
            // The store is the slower of the two sinks.
            while number.is_multiple_of(256) && number - first > ahead + metrics.written_to("store") {
                std::thread::sleep(Duration::from_micros(500));
            }
            let at = begin + (HOUR * HOURS).mul_f64(number as f64 / records as f64);
            recorder.submit(population.record(number, at));
        }
        let report = writer.close(LIMIT);
        anyhow::ensure!(report.finished && report.lost == 0, "records were lost: {report:?}");
    }
    let (took, used) = (begun.elapsed().as_secs_f64(), processor_seconds() - before);
    let bytes: u64 =
        std::fs::read_dir(folder)?.map(|entry| Ok(entry?.metadata()?.len())).sum::<std::io::Result<u64>>()?;
    println!(
        "filled with {records} records: {:.0} a second, {:.2} ms of processor time a thousand, {:.0} bytes each\n",
        records as f64 / took,
        used * 1e6 / records as f64,
        bytes as f64 / records as f64,
    );
    Ok(())
}

/// `sluice observe`, `top` and `graph`, as processes, from their start to their end.
fn ask_sluice(folder: &Path, sluice: &Path, times: usize) -> anyhow::Result<()> {
    let pod = name(1_234);
    let bare_pod = pod.split_once('/').map_or(&*pod, |(_, name)| name);
    let questions = [
        "observe --last 20".to_owned(),
        "observe --last 20 -n ns-7".to_owned(),
        format!("observe --last 20 --pod {pod}"),
        format!("observe --last 20 --to-pod {bare_pod}"),
        "observe --last 20 --verdict deny".to_owned(),
        format!("observe --last 20 --verdict deny --pod {pod}"),
        "observe --last 20 --cause refused".to_owned(),
        "observe --last 20 --type failed -n ns-7".to_owned(),
        "observe --last 20 --pod no-such-pod".to_owned(),
        "observe --last 20 --from-ip 10.244.4.210".to_owned(),
        "observe --last 20 --ip 203.0.113.7".to_owned(),
        "observe --last 20 --port 8080".to_owned(),
        "observe --last 20 --port 9999".to_owned(),
        "observe --last 20 --workload app-308".to_owned(),
        "observe --last 20 --label app=other".to_owned(),
        "observe --last 20 --policy shop/web".to_owned(),
        "observe --last 20 --policy shop/db".to_owned(),
        "observe --last 20 --protocol udp".to_owned(),
        "observe --last 20 --min-bytes 1G".to_owned(),
        "observe --since 10m".to_owned(),
        "observe --since 10m --verdict deny".to_owned(),
        "observe --since 1h -n ns-7".to_owned(),
        format!("observe --since 24h --pod {pod}"),
        "observe --since 24h --verdict deny".to_owned(),
        "top --since 10m".to_owned(),
        "top --since 1h".to_owned(),
        "top --since 24h".to_owned(),
        "top --since 24h -n ns-7".to_owned(),
        "graph --since 1h -o json".to_owned(),
    ];
    for question in questions {
        median(&format!("`{question}`"), times, || {
            let output = Command::new(sluice)
                .args(question.split(' '))
                .arg("--store")
                .arg(folder)
                .stderr(Stdio::inherit())
                .output()
                .with_context(|| format!("run {}", sluice.display()))?;
            anyhow::ensure!(output.status.success(), "{question}: {}", output.status);
            Ok(output.stdout.iter().filter(|byte| **byte == b'\n').count())
        })?;
    }
    Ok(())
}

/// The flow API over a connection that is there already, as Hubble Relay and UI have one.
fn ask_flows(folder: &Path, times: usize) -> anyhow::Result<()> {
    let store = StoreConfig { folder: Some(folder.to_owned()), max_bytes: 1 << 40, ..StoreConfig::default() };
    let config = RecorderConfig { store, ..RecorderConfig::default() };
    let (recorder, _writer) = Recorder::start(config, Sink::Discard, "node-a", Metrics::default())?;
    let listen = Some(SocketAddr::from(([127, 0, 0, 1], 0)));
    let hubble = HubbleConfig { listen, ..HubbleConfig::default() };
    let (_nodes, told) = tokio::sync::watch::channel(Arc::default());
    let api = FlowApi::start(&hubble, &recorder, "node-a", told)?.context("the flow API")?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let endpoint = Endpoint::from_shared(format!("http://{}", api.address()))?;
    let channel = runtime.block_on(endpoint.connect())?;
    let of_pod = FlowFilter { source_pod: vec![name(1_234)], ..FlowFilter::default() };
    let to_pod = FlowFilter { destination_pod: vec![name(1_234)], ..FlowFilter::default() };
    let dropped = FlowFilter { verdict: vec![Verdict::Dropped.into()], ..FlowFilter::default() };
    for (question, whitelist) in [
        ("GetFlows, the last 20", vec![]),
        ("GetFlows, the last 20 of a pod", vec![of_pod, to_pod]),
        ("GetFlows, the last 20 that were dropped", vec![dropped]),
    ] {
        let request = GetFlowsRequest { number: 20, whitelist, ..GetFlowsRequest::default() };
        median(question, times, || runtime.block_on(flows(&channel, request.clone())))?;
    }
    median("GetNamespaces", times, || {
        let asked =
            async { ObserverClient::new(channel.clone()).get_namespaces(GetNamespacesRequest {}).await };
        Ok(runtime.block_on(asked)?.into_inner().namespaces.len())
    })?;
    median("ServerStatus", times, || {
        let asked =
            async { ObserverClient::new(channel.clone()).server_status(ServerStatusRequest {}).await };
        runtime.block_on(asked)?;
        Ok(1)
    })
}

async fn flows(channel: &Channel, request: GetFlowsRequest) -> anyhow::Result<usize> {
    let mut stream = ObserverClient::new(channel.clone()).get_flows(request).await?.into_inner();
    let mut count = 0;
    while stream.message().await?.is_some() {
        count += 1;
    }
    Ok(count)
}

/// Asks so many times, and prints the median.
fn median(
    question: &str,
    times: usize,
    mut ask: impl FnMut() -> anyhow::Result<usize>,
) -> anyhow::Result<()> {
    let mut took = Vec::new();
    let mut lines = 0;
    for _ in 0..times.max(1) {
        let begun = Instant::now();
        lines = ask()?;
        took.push(begun.elapsed());
        // What takes that long is not asked again.
        if begun.elapsed() > Duration::from_secs(20) {
            break;
        }
    }
    took.sort_unstable();
    println!("| {question} | {lines} | {:.3} |", took[took.len() / 2].as_secs_f64());
    Ok(())
}
