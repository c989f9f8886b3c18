//! What a day of records costs to keep, and how long questions to it take.
//!
//!     cargo run --release -p audit --example day -- FOLDER [RECORDS]
//!
//! Makes the records of one day (10 million of them, if not told otherwise) between 2,000 pods in 40 namespaces and
//! keeps them in a store in FOLDER, as the writer of an agent does, as fast as it goes. Then asks the questions that
//! `sluice observe` asks. FOLDER is left for others to look at.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use audit::{
    Action, ConnectionId, Legs, Metrics, Record, Recorder, RecorderConfig, Sink, StoreConfig, StoreQuery,
    Timing, Traffic, read_store,
};
use flow::{
    ClientAddr, Decision, EndCause, Endpoint, Generation, OrigDst, Owner, Pod, Policies, PolicyKind,
    PolicyRef, Protocol, Reason, SideVerdict, Tier, Tuple, Verdict, Workload,
};

const DAY: Duration = Duration::from_secs(86_400);
const NAMESPACES: usize = 40;
const PODS: usize = 2_000;
/// Times that a question is asked; the median is told.
const TIMES: usize = 5;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut arguments = std::env::args().skip(1);
    let folder = PathBuf::from(arguments.next().ok_or("usage: day FOLDER [RECORDS]")?);
    let records: u64 = arguments.next().map_or(Ok(10_000_000), |text| text.parse())?;
    let begin = SystemTime::now() - DAY;
    keep(&folder, records, begin)?;
    ask_all(&folder, begin)?;
    Ok(())
}

/// Fills the store.
fn keep(folder: &Path, records: u64, begin: SystemTime) -> Result<(), Box<dyn std::error::Error>> {
    let store = StoreConfig { folder: Some(folder.to_owned()), max_bytes: 1 << 40, ..StoreConfig::default() };
    let config = RecorderConfig { store, ..RecorderConfig::default() };
    let ahead = config.queue_records as u64 / 2;
    let metrics = Metrics::default();
    let (recorder, writer) = Recorder::start(config, Sink::Discard, "node-a", metrics.clone())?;
    let pods = pods();
    let (started, before) = (Instant::now(), processor_seconds());
    for number in 0..records {
        // The store is the slower of the two sinks.
        while number % 1_024 == 0 && number > ahead + kept(&metrics) {
            std::thread::sleep(Duration::from_micros(200));
        }
        let at = begin + DAY.mul_f64(number as f64 / records as f64);
        recorder.submit(record(&pods, number, at));
    }
    let report = writer.close(Duration::from_secs(120));
    let (took, used) = (started.elapsed().as_secs_f64(), processor_seconds() - before);
    let bytes: u64 =
        std::fs::read_dir(folder)?.map(|entry| Ok(entry?.metadata()?.len())).sum::<std::io::Result<u64>>()?;
    println!(
        "{records} records, {} written to the first sink, {} kept by the store\n{:.0} records/s, {:.2} ms of \
         processor time a thousand records, making them included\n{:.0} bytes a record in the store",
        report.written,
        kept(&metrics),
        records as f64 / took,
        used * 1e6 / records as f64,
        bytes as f64 / records as f64,
    );
    Ok(())
}

/// Records that the store has.
fn kept(metrics: &Metrics) -> u64 {
    metrics.written_to("store")
}

/// Asks each question, and tells how long its answer takes and how many lines it has.
fn ask_all(folder: &Path, begin: SystemTime) -> Result<(), Box<dyn std::error::Error>> {
    let nanos = |at: SystemTime| -> Result<i64, Box<dyn std::error::Error>> {
        Ok(i64::try_from(at.duration_since(UNIX_EPOCH)?.as_nanos())?)
    };
    let hours = |hours: u64| nanos(begin + Duration::from_secs(hours * 3_600));
    let query = |from: i64, until: i64, namespaces: &[&str], actions: &[&str]| StoreQuery {
        since: from,
        until,
        namespaces: namespaces.iter().map(ToString::to_string).collect(),
        actions: actions.iter().map(ToString::to_string).collect(),
        newest_first: false,
    };
    let (noon, one, night, end) = (hours(12)?, hours(13)?, hours(0)?, hours(24)?);
    let (denied, shop) = (["connection-denied"], ["ns-7"]);
    let questions = [
        ("everything of a minute", query(noon, noon + 60_000_000_000, &[], &[])),
        ("everything of an hour", query(noon, one, &[], &[])),
        ("denials of an hour", query(noon, one, &[], &denied)),
        ("denials of the day", query(night, end, &[], &denied)),
        ("one namespace, an hour", query(noon, one, &shop, &[])),
        ("one namespace's denials, the day", query(night, end, &shop, &denied)),
    ];
    println!("| question | lines | ms |\n|---|---:|---:|");
    for (name, query) in questions {
        let mut took = Vec::new();
        let mut lines = 0_u64;
        for _ in 0..TIMES {
            lines = 0;
            let begun = Instant::now();
            read_store(folder, &query, |_| {
                lines += 1;
                true
            })?;
            took.push(begun.elapsed());
        }
        took.sort_unstable();
        println!("| {name} | {lines} | {:.1} |", took[TIMES / 2].as_secs_f64() * 1e3);
    }
    Ok(())
}

fn pods() -> Vec<Endpoint> {
    (0..PODS)
        .map(|number| {
            let labels = ["app", "app.kubernetes.io/part-of", "pod-template-hash", "tier"];
            let workload = Workload {
                namespace: format!("ns-{}", number % NAMESPACES).into(),
                labels: labels.into_iter().map(|key| (key, "some-value")).collect(),
                owner: Some(Owner { kind: "Deployment".into(), name: format!("app-{}", number / 4).into() }),
            };
            Endpoint::Pod(Arc::new(Pod {
                workload: Arc::new(workload),
                name: format!("app-{}-5d9c7b6f4-{number:05}", number / 4).into(),
                uid: "0f0e6a2c-6c0e-4b69-8d2d-0d3f0d9c7b11".into(),
                node: Some("node-a".into()),
                local: number % 2 == 0,
            }))
        })
        .collect()
}

/// One in twenty is denied; the others come in pairs, started and ended.
fn record(pods: &[Endpoint], number: u64, at: SystemTime) -> Record {
    let spread =
        |salt: u64| usize::try_from((number ^ salt).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 40).unwrap_or(0);
    let (source, destination) = (spread(1) % PODS, spread(2) % PODS);
    let address = |pod: usize, port: u16| {
        let [high, low] = u16::try_from(pod).unwrap_or_default().to_be_bytes();
        std::net::SocketAddr::from(([10, 244, high, low], port))
    };
    let action = match number % 20 {
        0 => Action::Denied,
        even if even % 2 == 0 => Action::Started,
        _ => Action::Ended,
    };
    let is_over = action != Action::Started;
    let policy = PolicyRef {
        kind: PolicyKind::NetworkPolicy,
        namespace: Some("shop".into()),
        name: "web".into(),
        rule: Some(0),
    };
    let (verdict, reason) = match action {
        Action::Denied => (Verdict::Deny, Reason::NoRuleMatched),
        _ => (Verdict::Allow, Reason::RuleMatched),
    };
    let port = 32_768 + u16::try_from(number % 28_000).unwrap_or_default();
    Record {
        action,
        id: ConnectionId::next(),
        tuple: Tuple {
            protocol: Protocol::Tcp,
            client: ClientAddr(address(source, port)),
            destination: OrigDst(address(destination, 8_080)),
        },
        source: pods[source].clone(),
        destination: pods[destination].clone(),
        service: None,
        decision: Decision {
            generation: Generation(7),
            egress: SideVerdict {
                verdict: Verdict::Allow,
                tier: Some(Tier::Default),
                policies: None,
                reason: Reason::NotIsolated,
            },
            ingress: SideVerdict {
                verdict,
                tier: Some(Tier::NetworkPolicy),
                policies: Some(Policies::from(Arc::from([policy]))),
                reason,
            },
        },
        cause: is_over.then_some(if action == Action::Denied {
            EndCause::PolicyDenied
        } else {
            EndCause::ClientClosed
        }),
        revoked_by: None,
        start: at,
        end: is_over.then_some(at),
        duration: is_over.then_some(Duration::from_micros(812)),
        traffic: Traffic { client_bytes: 78, server_bytes: 4096, ..Traffic::default() },
        upstream_source: None,
        hairpin: false,
        timing: Timing { decide: Some(Duration::from_micros(40)), connect: Some(Duration::from_micros(300)) },
        legs: Legs::default(),
        tls: None,
        detail: None,
    }
}

/// User and system time of this process. Source: proc_pid_stat(5), in hundredths on every platform of Linux.
fn processor_seconds() -> f64 {
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap_or_default();
    let after_name = stat.rsplit(')').next().unwrap_or_default();
    let fields: Vec<f64> = after_name.split_whitespace().filter_map(|field| field.parse().ok()).collect();
    // The state, the third field, is no number: utime and stime are the 14th and 15th of all.
    fields.get(10..12).map_or(0.0, |times| times.iter().sum::<f64>() / 100.0)
}
