//! Records on their way to a real receiver that is there, away, slow, full of refusals, or something else.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::path::Path;

use opentelemetry_proto::tonic::common::v1::any_value::Value;
use tonic::Code;

use super::receiver::{Mood, Receiver, records};
use super::*;
use crate::line::tests::{denied, everything};
use crate::{Metrics, Recorder, RecorderConfig, Sink, SinkConfig, Writer};

const LIMIT: Duration = Duration::from_secs(20);

fn nowhere() -> SocketAddr {
    "127.0.0.1:0".parse().unwrap()
}

fn to(receiver: &Receiver, protocol: OtlpProtocol) -> OtlpSink {
    OtlpSink {
        endpoint: format!("http://{}", receiver.address),
        protocol,
        batch_delay_ms: 20,
        ..OtlpSink::default()
    }
}

fn spooled(sink: OtlpSink, folder: &Path) -> OtlpSink {
    let spool = SpoolConfig { folder: Some(folder.join("spool")), ..SpoolConfig::default() };
    OtlpSink { spool, ..sink }
}

struct Agent {
    recorder: Recorder,
    writer: Writer,
    metrics: Metrics,
}

impl Agent {
    fn start(otlp: OtlpSink) -> Self {
        Self::with(SinkConfig { otlp: Some(otlp), ..SinkConfig::default() })
    }

    fn with(sink: SinkConfig) -> Self {
        let sink = SinkConfig { name: "collector".to_owned(), ..sink };
        let config = RecorderConfig { sinks: vec![sink], gather_ms: 0, ..RecorderConfig::default() };
        let metrics = Metrics::default();
        let (recorder, writer) = Recorder::start(config, Sink::Discard, "node-a", metrics.clone()).unwrap();
        Self { recorder, writer, metrics }
    }

    fn submit(&self, count: usize) {
        (0..count).for_each(|_| self.recorder.submit(everything()));
    }

    fn counts(&self) -> Delivery {
        self.metrics.delivery("collector")
    }

    fn wait(&self, what: &str, condition: impl Fn(&Delivery) -> bool) {
        let started = Instant::now();
        while !condition(&self.counts()) {
            assert!(started.elapsed() < LIMIT, "{what}: {:?}", self.counts());
            std::thread::sleep(Duration::from_millis(2));
        }
    }

    /// Nothing of this process is left; what is on disk is as a killed process leaves it.
    fn kill(self, folder: &Path) -> tempfile::TempDir {
        let image = tempfile::tempdir().unwrap();
        std::fs::create_dir(image.path().join("spool")).unwrap();
        for file in std::fs::read_dir(folder.join("spool")).unwrap() {
            let file = file.unwrap();
            std::fs::copy(file.path(), image.path().join("spool").join(file.file_name())).unwrap();
        }
        // Only the copy is looked at from here on.
        drop(self);
        image
    }
}

#[test]
fn records_arrive_over_both_protocols_with_headers_resource_and_compression() {
    let folder = tempfile::tempdir().unwrap();
    let token = folder.path().join("token");
    std::fs::write(&token, "Bearer one\n").unwrap();
    for protocol in [OtlpProtocol::Grpc, OtlpProtocol::Http] {
        for gzip in [true, false] {
            let receiver = match protocol {
                OtlpProtocol::Grpc => Receiver::grpc(nowhere(), None),
                OtlpProtocol::Http => Receiver::http(nowhere()),
            };
            let header = |name: &str| OtlpHeader { name: name.to_owned(), ..OtlpHeader::default() };
            let agent = Agent::start(OtlpSink {
                gzip,
                headers: vec![
                    OtlpHeader { file: Some(token.clone()), ..header("authorization") },
                    OtlpHeader { value: Some("a".to_owned()), ..header("x-scope-orgid") },
                    OtlpHeader { env: Some("CARGO_PKG_NAME".to_owned()), ..header("x-from-env") },
                ],
                resource: [("k8s.cluster.name".to_owned(), "prod".to_owned())].into(),
                ..to(&receiver, protocol)
            });
            agent.submit(300);
            assert_eq!(receiver.wait(300), (1..=300).collect::<Vec<i64>>());
            agent.wait("all are written", |counts| counts.written.get() == 300);
            let got = receiver.got();
            let first = &got[0];
            assert_eq!(first.headers["authorization"], "Bearer one");
            assert_eq!(first.headers["x-scope-orgid"], "a");
            assert_eq!(first.headers["x-from-env"], "audit");
            match protocol {
                OtlpProtocol::Grpc => {
                    assert_eq!(
                        first.headers.get("grpc-encoding").map(|name| &**name),
                        gzip.then_some("gzip")
                    );
                }
                OtlpProtocol::Http => {
                    assert_eq!(
                        first.headers.get("content-encoding").map(|name| &**name),
                        gzip.then_some("gzip")
                    );
                    assert_eq!(first.headers[":path"], "/v1/logs");
                    assert_eq!(first.headers["content-type"], "application/x-protobuf");
                }
            }
            let logs = &first.request.resource_logs[0];
            let attributes = &logs.resource.as_ref().unwrap().attributes;
            let value = |key: &str| match &attributes.iter().find(|pair| pair.key == key).unwrap().value {
                Some(value) => value.value.clone().unwrap(),
                None => panic!("{key}"),
            };
            let text = |text: &str| Value::StringValue(text.to_owned());
            assert_eq!(value("k8s.node.name"), text("node-a"));
            assert_eq!(value("service.name"), text("sluice"));
            assert_eq!(value("k8s.cluster.name"), text("prod"));
            let scope = logs.scope_logs[0].scope.as_ref().unwrap();
            assert_eq!((&*scope.name, &*scope.version), ("sluice.records", "1"));
            assert_eq!(records(&first.request)[0].event_name, "connection-ended");
            assert!(agent.writer.close(LIMIT).finished);
        }
    }
}

#[test]
fn what_is_sent_together_is_bounded_and_waits_for_others() {
    let receiver = Receiver::grpc(nowhere(), None);
    let agent = Agent::start(OtlpSink {
        batch_records: 50,
        batch_delay_ms: 300,
        ..to(&receiver, OtlpProtocol::Grpc)
    });
    for _ in 0..40 {
        agent.submit(5);
        std::thread::sleep(Duration::from_millis(1));
    }
    assert_eq!(receiver.wait(200).len(), 200);
    let sizes: Vec<usize> = receiver.got().iter().map(|got| records(&got.request).len()).collect();
    assert!(sizes.len() <= 8 && sizes.iter().all(|size| *size <= 50 + 128), "{sizes:?}");
    assert!(agent.writer.close(LIMIT).finished);
}

#[test]
fn a_collector_that_is_away_gets_everything_when_it_is_back() {
    for protocol in [OtlpProtocol::Grpc, OtlpProtocol::Http] {
        let folder = tempfile::tempdir().unwrap();
        let start = |address| match protocol {
            OtlpProtocol::Grpc => Receiver::grpc(address, None),
            OtlpProtocol::Http => Receiver::http(address),
        };
        let receiver = start(nowhere());
        let address = receiver.address;
        let agent = Agent::start(spooled(to(&receiver, protocol), folder.path()));
        agent.submit(10);
        receiver.wait(10);
        agent.wait("the first are written", |counts| counts.written.get() == 10);
        drop(receiver);
        agent.submit(2_000);
        agent.wait("tries", |counts| counts.failed_requests.get() >= 1 && counts.waiting.get() == 2_000);
        assert!(agent.counts().spool_bytes.get() > 100_000);
        let receiver = start(address);
        let numbers = receiver.wait(2_000);
        assert_eq!(numbers, (11..=2_010).collect::<Vec<i64>>());
        agent.wait("all are written", |counts| counts.written.get() == 2_010 && counts.waiting.get() == 0);
        assert_eq!(agent.counts().lost.get(), 0);
        assert!(agent.writer.close(LIMIT).finished);
    }
}

#[test]
fn a_refusal_that_says_when_is_obeyed_and_others_are_tried_again_with_pauses() {
    for (receiver, protocol) in [
        (Receiver::grpc(nowhere(), None), OtlpProtocol::Grpc),
        (Receiver::http(nowhere()), OtlpProtocol::Http),
    ] {
        let long = Duration::from_secs(2);
        receiver.will([
            Mood::Refuse(429, Code::ResourceExhausted, Some(long)),
            Mood::Refuse(503, Code::Unavailable, None),
            Mood::Garbage,
            Mood::Refuse(401, Code::Unauthenticated, None),
        ]);
        let agent = Agent::start(to(&receiver, protocol));
        agent.submit(20);
        assert_eq!(receiver.wait(20), (1..=20).collect::<Vec<i64>>());
        let got = receiver.got();
        assert_eq!(got.len(), 5, "each refusal is one more request");
        assert!(got[1].at - got[0].at >= long, "{:?}", got[1].at - got[0].at);
        // Half of 1 s and of 2 s at least.
        assert!(got[2].at - got[1].at >= Duration::from_millis(400));
        assert!(got[3].at - got[2].at >= Duration::from_millis(900));
        agent.wait("written", |counts| counts.written.get() == 20);
        assert_eq!((agent.counts().lost.get(), agent.counts().failed_requests.get()), (0, 4));
        assert!(agent.writer.close(LIMIT).finished);
    }
}

#[test]
fn what_a_collector_refuses_for_good_is_counted_told_and_does_not_hold_up_the_rest() {
    for (receiver, protocol) in [
        (Receiver::grpc(nowhere(), None), OtlpProtocol::Grpc),
        (Receiver::http(nowhere()), OtlpProtocol::Http),
    ] {
        receiver.will([Mood::Refuse(400, Code::InvalidArgument, None), Mood::Partial(3)]);
        let agent = Agent::start(to(&receiver, protocol));
        agent.submit(10);
        agent.wait("the refusal", |counts| counts.rejected.get() == 10);
        agent.submit(10);
        agent.wait("the partial success", |counts| counts.written.get() == 7);
        agent.submit(10);
        agent.wait("the rest", |counts| counts.written.get() == 17);
        let counts = agent.counts();
        assert_eq!((counts.lost.get(), counts.rejected.get(), counts.waiting.get()), (13, 13, 0));
        let got = receiver.got();
        let told: Vec<_> = got
            .iter()
            .flat_map(|got| records(&got.request))
            .filter(|record| record.event_name == "records-lost")
            .collect();
        assert_eq!(told.len(), 1, "those whose numbers are known");
        let count = told[0].attributes.iter().find(|pair| pair.key == "sluice.lost.count").unwrap();
        assert_eq!(count.value.as_ref().unwrap().value, Some(Value::IntValue(10)));
        assert!(agent.writer.close(LIMIT).finished);
    }
}

#[test]
fn a_collector_that_does_not_answer_is_asked_again_after_the_timeout() {
    let receiver = Receiver::grpc(nowhere(), None);
    receiver.will([Mood::Slow(Duration::from_secs(60))]);
    let agent = Agent::start(OtlpSink { timeout_ms: 300, ..to(&receiver, OtlpProtocol::Grpc) });
    agent.submit(5);
    // It got them twice, because nobody can know whether a silent one took them.
    assert_eq!(receiver.wait(10), [1, 2, 3, 4, 5, 1, 2, 3, 4, 5]);
    agent.wait("written", |counts| counts.written.get() == 5 && counts.failed_requests.get() == 1);
    assert!(agent.writer.close(LIMIT).finished);
}

#[test]
fn what_waits_is_sent_by_the_next_process_with_its_own_resource() {
    let folder = tempfile::tempdir().unwrap();
    let receiver = Receiver::grpc(nowhere(), None);
    let address = receiver.address;
    let config = spooled(to(&receiver, OtlpProtocol::Grpc), folder.path());
    drop(receiver);
    let agent =
        Agent::start(OtlpSink { resource: [("run".to_owned(), "1".to_owned())].into(), ..config.clone() });
    agent.submit(700);
    agent.wait("the spool", |counts| counts.waiting.get() == 700);
    let started = Instant::now();
    assert!(agent.writer.close(LIMIT).finished);
    assert!(started.elapsed() < Duration::from_secs(2), "what is on disk is not waited for");
    assert_eq!(agent.metrics.delivery("collector").lost.get(), 0);

    let receiver = Receiver::grpc(address, None);
    let agent = Agent::start(OtlpSink { resource: [("run".to_owned(), "2".to_owned())].into(), ..config });
    agent.submit(10);
    let mut expected: Vec<i64> = (1..=700).collect();
    expected.extend(1..=10);
    assert_eq!(receiver.wait(710), expected);
    let runs: BTreeSet<(String, usize)> = receiver
        .got()
        .iter()
        .map(|got| {
            let resource = got.request.resource_logs[0].resource.clone().unwrap();
            let run =
                resource.attributes.iter().find(|pair| pair.key == "run").unwrap().value.clone().unwrap();
            (format!("{:?}", run.value.unwrap()), got.request.resource_logs.len())
        })
        .collect();
    assert_eq!(runs.len(), 2, "{runs:?}");
    assert!(agent.writer.close(LIMIT).finished);
}

#[test]
fn a_killed_process_leaves_everything_that_was_spooled() {
    let folder = tempfile::tempdir().unwrap();
    let receiver = Receiver::grpc(nowhere(), None);
    let config = to(&receiver, OtlpProtocol::Grpc);
    drop(receiver);
    let agent = Agent::start(spooled(config, folder.path()));
    agent.submit(500);
    agent.wait("the spool", |counts| counts.waiting.get() == 500);
    let image = agent.kill(folder.path());
    // At another address: the threads of the first agent outlive its end here, and would send as well.
    let receiver = Receiver::grpc(nowhere(), None);
    let agent = Agent::start(spooled(to(&receiver, OtlpProtocol::Grpc), image.path()));
    let numbers: BTreeSet<i64> = receiver.wait(500).into_iter().filter(|number| *number <= 500).collect();
    assert_eq!(numbers, (1..=500).collect::<BTreeSet<i64>>());
    assert!(agent.writer.close(LIMIT).finished);
}

#[test]
fn without_a_spool_the_end_waits_for_the_collector_and_tells_what_it_did_not_take() {
    let receiver = Receiver::grpc(nowhere(), None);
    let agent = Agent::start(OtlpSink { batch_delay_ms: 60_000, ..to(&receiver, OtlpProtocol::Grpc) });
    agent.submit(20);
    assert!(agent.writer.close(LIMIT).finished);
    assert_eq!(receiver.numbers(), (1..=20).collect::<Vec<i64>>(), "flushed at the end");

    let config = to(&receiver, OtlpProtocol::Grpc);
    drop(receiver);
    let agent = Agent::start(config);
    agent.submit(20);
    agent.wait("a try", |counts| counts.failed_requests.get() >= 1);
    let metrics = agent.metrics.clone();
    let started = Instant::now();
    assert!(agent.writer.close(LIMIT).finished);
    assert!(started.elapsed() >= FAREWELL && started.elapsed() < FAREWELL * 2, "{:?}", started.elapsed());
    assert_eq!(metrics.delivery("collector").lost.get(), 20);
}

#[test]
fn a_full_spool_drops_the_oldest_counts_them_and_tells_of_them() {
    let folder = tempfile::tempdir().unwrap();
    let receiver = Receiver::grpc(nowhere(), None);
    let address = receiver.address;
    let mut config = spooled(to(&receiver, OtlpProtocol::Grpc), folder.path());
    config.spool.max_bytes = 1 << 20;
    drop(receiver);
    let agent = Agent::start(config);
    for _ in 0..40 {
        agent.submit(100);
        std::thread::sleep(Duration::from_millis(1));
    }
    agent.wait("all of them", |counts| counts.waiting.get() as u64 + counts.lost.get() == 4_000);
    let lost = agent.counts().lost.get();
    assert!(lost > 500, "{lost}");
    assert!(agent.counts().spool_bytes.get() <= 1 << 20);
    let receiver = Receiver::grpc(address, None);
    agent.submit(1);
    let kept = 4_001 - usize::try_from(lost).unwrap();
    let numbers = receiver.wait(kept);
    let first = i64::try_from(lost).unwrap() + 1;
    assert_eq!(numbers, (first..=4_001).collect::<Vec<i64>>(), "the newest");
    agent.wait("all are told", |counts| counts.waiting.get() == 0);
    let got = receiver.got();
    let told =
        got.iter().flat_map(|got| records(&got.request)).filter(|record| record.event_name == "records-lost");
    let missing: i64 = told
        .filter_map(|record| {
            match &record.attributes.iter().find(|pair| pair.key == "sluice.lost.count")?.value {
                Some(value) => match value.value {
                    Some(Value::IntValue(count)) => Some(count),
                    _ => None,
                },
                None => None,
            }
        })
        .sum();
    // Those told before the last were dropped themselves.
    assert!(missing > 0 && missing <= i64::try_from(lost).unwrap());
    assert!(agent.writer.close(LIMIT).finished);
}

#[test]
fn a_full_disk_costs_no_record_that_memory_has_room_for() {
    let disk = crate::disk_tests::SmallDisk::of("256k");
    let receiver = Receiver::grpc(nowhere(), None);
    let address = receiver.address;
    let config = spooled(to(&receiver, OtlpProtocol::Grpc), disk.path());
    drop(receiver);
    let agent = Agent::start(config);
    agent.submit(100);
    agent.wait("some are on disk", |counts| counts.waiting.get() == 100);
    std::fs::write(disk.path().join("of-somebody-else"), vec![0; 1 << 20]).unwrap_err();
    agent.submit(400);
    agent.wait("the others wait too", |counts| counts.waiting.get() == 500);
    let receiver = Receiver::grpc(address, None);
    let numbers: BTreeSet<i64> = receiver.wait(500).into_iter().collect();
    assert_eq!(numbers, (1..=500).collect::<BTreeSet<i64>>());
    agent.wait("all are written", |counts| counts.written.get() == 500);
    assert_eq!(agent.counts().lost.get(), 0);
    assert!(agent.writer.close(LIMIT).finished);
}

#[test]
fn with_block_new_a_full_spool_refuses_connections_and_loses_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let receiver = Receiver::grpc(nowhere(), None);
    let address = receiver.address;
    let mut otlp = spooled(to(&receiver, OtlpProtocol::Grpc), folder.path());
    otlp.spool.max_bytes = 1 << 20;
    otlp.batch_records = 100;
    drop(receiver);
    let sink = SinkConfig {
        name: "collector".to_owned(),
        otlp: Some(otlp),
        overflow: Overflow::BlockNew,
        ..SinkConfig::default()
    };
    let config =
        RecorderConfig { sinks: vec![sink], gather_ms: 0, queue_records: 500, ..RecorderConfig::default() };
    let metrics = Metrics::default();
    let (recorder, writer) = Recorder::start(config, Sink::Discard, "node-a", metrics.clone()).unwrap();
    let (started, mut sent) = (Instant::now(), 0);
    while recorder.accepts_connections() {
        recorder.submit(everything());
        sent += 1;
        std::thread::sleep(Duration::from_micros(100));
        assert!(started.elapsed() < LIMIT, "{sent} and none refused");
    }
    assert_eq!(metrics.delivery("collector").lost.get(), 0);
    let receiver = Receiver::grpc(address, None);
    let numbers: BTreeSet<i64> = receiver.wait(sent).into_iter().collect();
    assert_eq!(numbers.len(), sent);
    while !recorder.accepts_connections() {
        assert!(started.elapsed() < LIMIT * 2, "still none accepted");
        std::thread::sleep(Duration::from_millis(5));
    }
    assert_eq!(metrics.delivery("collector").lost.get(), 0);
    assert!(writer.close(LIMIT).finished);
}

#[test]
fn filters_and_sampling_hold_for_a_collector_as_for_any_sink() {
    let receiver = Receiver::grpc(nowhere(), None);
    let agent = Agent::with(SinkConfig {
        otlp: Some(to(&receiver, OtlpProtocol::Grpc)),
        sample_one_in: 1_000_000_000,
        ..SinkConfig::default()
    });
    let mut carried = everything();
    (carried.revoked_by, carried.cause) = (None, Some(flow::EndCause::ClientClosed));
    (0..50).for_each(|_| agent.recorder.submit(carried.clone()));
    (0..5).for_each(|_| agent.recorder.submit(denied()));
    assert_eq!(receiver.wait(5), [51, 52, 53, 54, 55]);
    assert!(agent.writer.close(LIMIT).finished);
}

#[test]
fn tls_checks_the_collector_and_shows_it_a_certificate() {
    use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};

    let folder = tempfile::tempdir().unwrap();
    let authority = |name: &str| {
        let mut params = CertificateParams::new(vec![name.to_owned()]).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap()
    };
    let (ours, stranger) = (authority("ours"), authority("stranger"));
    let leaf = |name: &str| {
        let key = KeyPair::generate().unwrap();
        let params = CertificateParams::new(vec![name.to_owned()]).unwrap();
        (params.signed_by(&key, &ours).unwrap().pem(), key.serialize_pem())
    };
    let (server_cert, server_key) = leaf("collector.example");
    let (client_cert, client_key) = leaf("node-a");
    let file = |name: &str, text: &str| {
        let path = folder.path().join(name);
        std::fs::write(&path, text).unwrap();
        path
    };
    let receiver = Receiver::grpc(nowhere(), Some((server_cert, server_key, ours.pem())));
    let ca_file = file("ca.pem", &stranger.pem());
    let tls = OtlpTls {
        ca_file: Some(ca_file.clone()),
        cert_file: Some(file("cert.pem", &client_cert)),
        key_file: Some(file("key.pem", &client_key)),
        server_name: Some("collector.example".to_owned()),
    };
    let agent = Agent::start(OtlpSink {
        endpoint: format!("https://{}", receiver.address),
        tls,
        ..to(&receiver, OtlpProtocol::Grpc)
    });
    agent.submit(5);
    agent.wait("a stranger's certificate is refused", |counts| counts.failed_requests.get() >= 1);
    assert_eq!(receiver.got().len(), 0);
    // The right authority appears under the same name, as a mounted secret's does.
    std::fs::write(&ca_file, ours.pem()).unwrap();
    assert_eq!(receiver.wait(5), [1, 2, 3, 4, 5]);
    assert!(agent.writer.close(LIMIT).finished);
}

#[test]
fn settings_that_cannot_be_used_are_told_by_their_place() {
    let problems = |otlp: OtlpSink| -> Vec<String> {
        let sink = SinkConfig { name: "collector".to_owned(), otlp: Some(otlp), ..SinkConfig::default() };
        sink.validate(3).iter().map(ToString::to_string).collect()
    };
    let good = OtlpSink { endpoint: "https://collector:4317".to_owned(), ..OtlpSink::default() };
    assert_eq!(problems(good.clone()), [""; 0]);
    for endpoint in ["", "collector:4317", "ftp://collector", "https://", "http://a b"] {
        let found = problems(OtlpSink { endpoint: endpoint.to_owned(), ..good.clone() });
        assert_eq!(found.len(), 1, "{endpoint}");
        assert!(found[0].starts_with("sinks[3].otlp.endpoint: "), "{found:?}");
    }
    let header = |name: &str, value: Option<&str>| OtlpHeader {
        name: name.to_owned(),
        value: value.map(str::to_owned),
        ..OtlpHeader::default()
    };
    let headers = vec![
        header("a b", Some("x")),
        header("a", None),
        header("a", Some("\n")),
        header("x-bin", Some("x")),
    ];
    assert_eq!(problems(OtlpSink { headers, ..good.clone() }).len(), 4);
    let tls = OtlpTls { cert_file: Some("cert.pem".into()), ..OtlpTls::default() };
    assert_eq!(problems(OtlpSink { tls, ..good.clone() }).len(), 1);
    let numbers =
        OtlpSink { batch_records: 0, batch_delay_ms: 60_001, timeout_ms: 0, memory_bytes: 0, ..good };
    assert_eq!(problems(numbers).len(), 4);
}
