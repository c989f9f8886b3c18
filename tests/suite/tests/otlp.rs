//! Records of real traffic to a collector that is away: what a killed or stopped agent leaves in its spool arrives.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking, in its helpers too")]

use std::collections::BTreeSet;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use lab::wait_until;
use opentelemetry_proto::tonic::collector::logs::v1::ExportLogsServiceRequest;
use opentelemetry_proto::tonic::common::v1::any_value::Value as Any;
use opentelemetry_proto::tonic::logs::v1::LogRecord;
use prost::Message;
use serde_json::Value;
use suite::stage::{ALLOWED, DENIED, LIMIT, Stage};

const COLLECTOR: &str = "127.0.0.1:4318";

const CONFIG: &str = "
records:
  sinks:
  - name: collector
    otlp: {endpoint: 'http://127.0.0.1:4318', protocol: http, gzip: false, batch_delay_ms: 50}
";

/// Takes every request that comes to the node's loopback address, and keeps its records.
fn collector(stage: &Stage) -> Arc<Mutex<Vec<LogRecord>>> {
    let address: SocketAddr = COLLECTOR.parse().unwrap();
    let node = stage.cluster.node("node1").unwrap();
    let listener = node.netns().run(|| TcpListener::bind(address)).unwrap();
    let taken = Arc::<Mutex<Vec<LogRecord>>>::default();
    let records = Arc::clone(&taken);
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let (stream, records) = (stream.unwrap(), Arc::clone(&records));
            std::thread::spawn(move || while answer(&stream, &records).is_some() {});
        }
    });
    taken
}

/// One request; `None` when the client has gone.
fn answer(stream: &TcpStream, taken: &Mutex<Vec<LogRecord>>) -> Option<()> {
    let mut reader = BufReader::new(stream);
    let mut length = 0;
    loop {
        let mut line = String::new();
        if reader.read_line(&mut line).ok()? == 0 {
            return None;
        }
        if let Some(value) = line.to_ascii_lowercase().strip_prefix("content-length:") {
            length = value.trim().parse().ok()?;
        }
        if line == "\r\n" {
            break;
        }
    }
    let mut body = vec![0; length];
    reader.read_exact(&mut body).ok()?;
    let request = ExportLogsServiceRequest::decode(&*body).unwrap();
    let logs = request.resource_logs.into_iter().flat_map(|logs| logs.scope_logs);
    taken.lock().unwrap().extend(logs.flat_map(|logs| logs.log_records));
    let answer = b"HTTP/1.1 200 OK\r\ncontent-type: application/x-protobuf\r\ncontent-length: 0\r\n\r\n";
    (&*stream).write_all(answer).ok()
}

/// `event.id` and `event_name`, which no two records share.
fn of_log(record: &LogRecord) -> (String, String) {
    let id = record.attributes.iter().find(|pair| pair.key == "event.id").unwrap();
    match id.value.as_ref().unwrap().value.as_ref().unwrap() {
        Any::StringValue(id) => (id.clone(), record.event_name.clone()),
        other => panic!("{other:?}"),
    }
}

fn of_line(record: &Value) -> (String, String) {
    let text = |field: &str| record["event"][field].as_str().unwrap().to_owned();
    (text("id"), text("action"))
}

fn traffic(stage: &Stage, rounds: usize) {
    let (client, server) = (stage.pod("client"), stage.pod("server"));
    for _ in 0..rounds {
        lab::greeting_peer(&mut client.connect(server.at(ALLOWED), LIMIT).unwrap(), LIMIT).unwrap();
        assert!(client.connect(server.at(DENIED), LIMIT).is_err());
    }
    assert!(stage.settled());
}

#[test]
fn a_collector_that_is_back_gets_what_agents_that_were_killed_and_stopped_have_left() {
    let folder = tempfile::tempdir().unwrap();
    let mut stage = Stage::without_sluice(CONFIG).unwrap();
    stage.options.arguments = vec!["--data".into(), folder.path().into()];
    let _server = stage.pod("server").serve(ALLOWED).unwrap();
    let waiting = "sluice_sink_waiting{sink=\"collector\"}";
    let mut written: BTreeSet<(String, String)> = BTreeSet::new();
    for (round, signal) in
        [nix::sys::signal::Signal::SIGKILL, nix::sys::signal::Signal::SIGTERM].into_iter().enumerate()
    {
        stage.start_sluice().unwrap();
        traffic(&stage, 20);
        let expected = 60.0 * (round + 1) as f64;
        assert!(wait_until(LIMIT, || stage
            .sluice()
            .metric(waiting)
            .is_ok_and(|waiting| waiting >= expected)));
        let pid = nix::unistd::Pid::from_raw(i32::try_from(stage.sluice().pid()).unwrap());
        nix::sys::signal::kill(pid, signal).unwrap();
        stage.sluice_mut().wait_exit(LIMIT).unwrap();
        written.extend(stage.sluice().records().unwrap().iter().map(of_line));
    }
    assert_eq!(written.len(), 120);

    let taken = collector(&stage);
    stage.start_sluice().unwrap();
    traffic(&stage, 5);
    assert!(wait_until(LIMIT, || stage.sluice().records().unwrap().len() == 135));
    written.extend(stage.sluice().records().unwrap().iter().map(of_line));
    assert!(wait_until(Duration::from_secs(20), || taken.lock().unwrap().len() >= written.len()));
    let logs = taken.lock().unwrap();
    assert_eq!(logs.iter().map(of_log).collect::<BTreeSet<_>>(), written);
    assert!(wait_until(LIMIT, || stage.sluice().metric(waiting).is_ok_and(|waiting| waiting == 0.0)));
    assert_eq!(stage.sluice().metric("sluice_sink_lost_total{sink=\"collector\"}").unwrap(), 0.0);
}
