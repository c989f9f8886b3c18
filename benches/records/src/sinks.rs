//! Each kind of sink, in a process of its own that has one core: how many records a second it keeps, of how many
//! bytes, in how much processor time, and how long a submitter is held up.

use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant, SystemTime};

use anyhow::Context;
use audit::{Metrics, OtlpSink, Recorder, RecorderConfig, Rotation, Sink, SinkConfig, StoreConfig};
use nix::sched::{CpuSet, sched_setaffinity};
use nix::unistd::Pid;

use crate::population::Population;
use crate::receiver::Receiver;
use crate::usage::processor_seconds;

/// Records a second of the part that times submitting.
const PACE: u32 = 10_000;
const PACED: u32 = 30_000;
/// The longest that a sink may take for the rest.
const LIMIT: Duration = Duration::from_secs(120);

/// What records are given to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Subject {
    /// Nobody: records are made and dropped
    None,
    /// Lines are made and thrown away
    Lines,
    /// A file
    File,
    /// A file that is put aside every 64 MiB and compressed
    Zstd,
    /// The store
    Store,
    /// A collector over gRPC, with gzip and a spool on disk
    Otlp,
}

impl Subject {
    const ALL: [Self; 6] = [Self::None, Self::Lines, Self::File, Self::Zstd, Self::Store, Self::Otlp];

    const fn name(self) -> &'static str {
        match self {
            Self::None => "made only",
            Self::Lines => "lines only",
            Self::File => "file",
            Self::Zstd => "file, rotated, zstd",
            Self::Store => "store (SQLite)",
            Self::Otlp => "OTLP, gRPC, gzip, spool",
        }
    }

    const fn argument(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Lines => "lines",
            Self::File => "file",
            Self::Zstd => "zstd",
            Self::Store => "store",
            Self::Otlp => "otlp",
        }
    }

    /// The settings, the first sink, and the name under which what is slowest counts.
    fn config(self, folder: &Path, endpoint: &str) -> (RecorderConfig, Sink, Option<&'static str>) {
        let plain = RecorderConfig::default();
        let file = Sink::File(folder.join("records.json"));
        match self {
            Self::None | Self::Lines => (plain, Sink::Discard, None),
            Self::File => (plain, file, None),
            Self::Zstd => {
                let rotate = Rotation { max_bytes: 64 << 20, keep: 1_000, ..Rotation::default() };
                (RecorderConfig { rotate, ..plain }, file, None)
            }
            Self::Store => {
                let folder = Some(folder.join("store"));
                let store = StoreConfig { folder, max_bytes: 1 << 40, ..StoreConfig::default() };
                (RecorderConfig { store, ..plain }, Sink::Discard, Some("store"))
            }
            Self::Otlp => {
                let mut otlp = OtlpSink { endpoint: endpoint.to_owned(), ..OtlpSink::default() };
                otlp.spool.folder = Some(folder.join("spool"));
                let sink = SinkConfig { name: "otlp".to_owned(), otlp: Some(otlp), ..SinkConfig::default() };
                (RecorderConfig { sinks: vec![sink], ..plain }, Sink::Discard, Some("otlp"))
            }
        }
    }
}

/// Measures every subject, or those of `only`, and prints the table.
pub(crate) fn measure_all(records: u64, only: &[Subject]) -> anyhow::Result<()> {
    println!("{records} records to each, on one core\n");
    println!(
        "| sink | records/s | submit p50, ns | submit p99, ns | CPU, ms per 1000 | less making | bytes a record |"
    );
    println!("|---|---:|---:|---:|---:|---:|---:|");
    let mut making = None;
    for subject in Subject::ALL {
        if !only.is_empty() && !only.contains(&subject) && subject != Subject::None {
            continue;
        }
        let folder = tempfile::tempdir()?;
        let receiver = (subject == Subject::Otlp).then(Receiver::start).transpose()?;
        let endpoint = receiver.as_ref().map_or("", |(_, endpoint)| endpoint);
        let output = Command::new(std::env::current_exe()?)
            .args(["one", subject.argument(), &records.to_string()])
            .arg(folder.path())
            .arg(endpoint)
            .output()?;
        anyhow::ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let text = String::from_utf8(output.stdout)?;
        let figures: Vec<f64> = text.split_whitespace().map(str::parse).collect::<Result<_, _>>()?;
        let [rate, p50, p99, cpu, mut bytes] = figures[..] else { anyhow::bail!("no figures: {text}") };
        if let Some((receiver, _)) = receiver {
            let (taken, taken_bytes) = receiver.stop()?;
            anyhow::ensure!(taken >= records, "the collector has {taken} of {records} records");
            bytes = taken_bytes as f64 / taken as f64;
        }
        let less = cpu - *making.get_or_insert(cpu);
        println!(
            "| {} | {rate:.0} | {p50:.0} | {p99:.0} | {cpu:.2} | {less:.2} | {bytes:.0} |",
            subject.name()
        );
    }
    Ok(())
}

/// Measures one subject in this process, and prints its figures.
pub(crate) fn measure_here(
    subject: Subject,
    records: u64,
    folder: &Path,
    endpoint: &str,
) -> anyhow::Result<()> {
    let population = Population::new();
    if subject == Subject::None {
        run_on_one_core()?;
        let (begun, before) = (Instant::now(), processor_seconds());
        for number in 0..records {
            std::hint::black_box(population.record(number, SystemTime::now()));
        }
        let (took, used) = (begun.elapsed().as_secs_f64(), processor_seconds() - before);
        println!("{} 0 0 {} 0", records as f64 / took, used * 1e6 / records as f64);
        return Ok(());
    }
    let (config, sink, slowest) = subject.config(folder, endpoint);
    let ahead = config.queue_records as u64 / 2;
    // One part on all cores, at a pace that is no trouble.
    let mut held = paced(&population, subject, folder, endpoint)?;
    run_on_one_core()?;
    let metrics = Metrics::default();
    let (recorder, writer) = Recorder::start(config, sink, "node-a", metrics.clone())?;
    let kept = || {
        let first = metrics.records_written.get();
        slowest.map_or(first, |name| first.min(metrics.written_to(name)))
    };
    let (begun, before) = (Instant::now(), processor_seconds());
    for number in 0..records {
        while number.is_multiple_of(256) && number > ahead + kept() {
            std::thread::sleep(Duration::from_micros(500));
        }
        recorder.submit(population.record(number, SystemTime::now()));
    }
    let report = writer.close(LIMIT);
    anyhow::ensure!(report.finished && report.lost == 0, "records were lost: {report:?}");
    // A collector is given what is left of the last batch in its own time.
    let until = Instant::now() + LIMIT;
    while kept() < records && Instant::now() < until {
        std::thread::sleep(Duration::from_millis(1));
    }
    let (took, used) = (begun.elapsed().as_secs_f64(), processor_seconds() - before);
    anyhow::ensure!(kept() >= records, "only {} of {records} were kept", kept());
    held.sort_unstable();
    let at = |percent: usize| held[(held.len() - 1) * percent / 100].as_nanos();
    println!(
        "{} {} {} {} {}",
        records as f64 / took,
        at(50),
        at(99),
        used * 1e6 / records as f64,
        bytes_in(folder)? as f64 / (records + u64::from(PACED)) as f64,
    );
    Ok(())
}

/// How long each of some submits took, of records that come at a steady pace.
fn paced(
    population: &Population,
    subject: Subject,
    folder: &Path,
    endpoint: &str,
) -> anyhow::Result<Vec<Duration>> {
    let (config, sink, _) = subject.config(folder, endpoint);
    let (recorder, writer) = Recorder::start(config, sink, "node-a", Metrics::default())?;
    let begun = Instant::now();
    let mut held = Vec::with_capacity(PACED as usize);
    for number in 0..PACED {
        while begun.elapsed() < Duration::from_secs(1) * number / PACE {
            std::hint::spin_loop();
        }
        let record = population.record(number.into(), SystemTime::now());
        let before = Instant::now();
        recorder.submit(record);
        held.push(before.elapsed());
    }
    writer.close(LIMIT);
    Ok(held)
}

/// Holds for every thread that is started later.
fn run_on_one_core() -> anyhow::Result<()> {
    let mut one = CpuSet::new();
    one.set(0)?;
    sched_setaffinity(Pid::from_raw(0), &one).context("keep to one core")
}

fn bytes_in(folder: &Path) -> std::io::Result<u64> {
    let mut bytes = 0;
    for entry in std::fs::read_dir(folder)? {
        let entry = entry?;
        let metadata = entry.metadata()?;
        bytes += if metadata.is_dir() { bytes_in(&entry.path())? } else { metadata.len() };
    }
    Ok(bytes)
}
