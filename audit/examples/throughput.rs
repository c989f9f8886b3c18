//! How many records a second one writer keeps, and how long a submitter is held up by it.
//!
//!     cargo run --release -p audit --example throughput -- [RECORDS] [FILE]
//!
//! Without a file the lines are made and thrown away. The submitter stays half a queue ahead of the writer,
//! so that none is lost while the sink works.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use audit::{Action, ConnectionId, Metrics, Record, Recorder, RecorderConfig, Sink, Timing, Traffic};
use flow::{
    Decision, EndCause, Endpoint, Generation, Owner, Pod, Policies, PolicyKind, PolicyRef, Reason,
    SideVerdict, Tier, Tuple, Verdict, Workload,
};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut arguments = std::env::args().skip(1);
    let records: u64 = arguments.next().map_or(Ok(500_000), |text| text.parse())?;
    let sink = arguments.next().map_or(Sink::Discard, |path| Sink::File(PathBuf::from(path)));

    let config = RecorderConfig::default();
    let ahead = config.queue_records as u64 / 2;
    let metrics = Metrics::default();
    let (recorder, writer) = Recorder::start(config, sink, "node-a", metrics.clone())?;
    let sample = sample()?;

    let started = Instant::now();
    let mut submitting = Duration::ZERO;
    let mut slowest = Duration::ZERO;
    for number in 0..records {
        while number - (metrics.records_written.get() + metrics.records_lost.get()) > ahead {
            std::thread::yield_now();
        }
        let record = Record { id: ConnectionId::next(), ..sample.clone() };
        let before = Instant::now();
        recorder.submit(record);
        let took = before.elapsed();
        submitting += took;
        slowest = slowest.max(took);
    }
    let report = writer.close(Duration::from_secs(60));
    let seconds = started.elapsed().as_secs_f64();
    println!(
        "{} written, {} lost, {:.0} records/s, submit {:.0} ns mean, {:?} at most",
        report.written,
        report.lost,
        (report.written + report.lost) as f64 / seconds,
        submitting.as_nanos() as f64 / records as f64,
        slowest,
    );
    Ok(())
}

/// A connection between two pods with four labels each, allowed by one policy.
fn sample() -> Result<Record, std::net::AddrParseError> {
    let labels = ["app", "app.kubernetes.io/part-of", "pod-template-hash", "tier"];
    let workload = Arc::new(Workload {
        namespace: "shop".into(),
        labels: labels.into_iter().map(|key| (key, "some-value")).collect(),
        owner: Some(Owner { kind: "Deployment".into(), name: "web".into() }),
    });
    let pod = |name: &str, local| {
        Endpoint::Pod(Arc::new(Pod {
            workload: Arc::clone(&workload),
            name: name.into(),
            uid: "0f0e6a2c-6c0e-4b69-8d2d-0d3f0d9c7b11".into(),
            node: Some("node-a".into()),
            local,
        }))
    };
    let policy = PolicyRef {
        kind: PolicyKind::NetworkPolicy,
        namespace: Some("shop".into()),
        name: "web".into(),
        rule: Some(0),
    };
    let allow =
        |reason, tier, policies| SideVerdict { verdict: Verdict::Allow, tier: Some(tier), policies, reason };
    Ok(Record {
        action: Action::Ended,
        id: ConnectionId::next(),
        tuple: Tuple::tcp("10.244.1.2:40000".parse()?, "10.244.2.3:8080".parse()?),
        source: pod("client-5d9c7b6f4-x2x7k", true),
        destination: pod("web-7b9f6c6d5-9kq2m", false),
        service: None,
        decision: Decision {
            generation: Generation(7),
            egress: allow(Reason::NotIsolated, Tier::Default, None),
            ingress: allow(
                Reason::RuleMatched,
                Tier::NetworkPolicy,
                Some(Policies::from(Arc::from([policy]))),
            ),
        },
        cause: Some(EndCause::ClientClosed),
        revoked_by: None,
        start: SystemTime::now(),
        end: Some(SystemTime::now()),
        duration: Some(Duration::from_micros(812)),
        traffic: Traffic { client_bytes: 78, server_bytes: 4096, ..Traffic::default() },
        upstream_source: None,
        hairpin: false,
        timing: Timing { decide: Some(Duration::from_micros(40)), connect: Some(Duration::from_micros(300)) },
        legs: audit::Legs::default(),
        tls: None,
        detail: None,
    })
}
