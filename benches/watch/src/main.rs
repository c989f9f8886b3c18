//! What following the API of a large cluster costs: the first lists, memory, a stream of pod events, and the time
//! from an event to the snapshot that shows it.
//!
//! Two processes: this one is the API server, with every object in memory; the other follows it and does nothing
//! else, so that its memory and processor time are those of the watch and the policy cache.

mod follower;
mod process;
mod table;

use std::io::{BufRead, BufReader, Write};
use std::path::PathBuf;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::Context;
use apiserver::ApiServer;
use clap::Parser;
use policy_bench::{Cluster, Shape};
use serde_json::{Value, json};

use process::Usage;
use table::Row;

/// Bytes of a pod that nobody reads: managed fields, environment, volumes. A small pod has about as many.
const PADDING: usize = 3_500;

#[derive(Debug, Parser)]
#[command(about)]
struct Args {
    /// Pods of the cluster; everything else in proportion
    #[arg(long, default_value_t = 150_000)]
    pods: usize,
    /// Pod events a second
    #[arg(long, default_value_t = 500)]
    events: u32,
    /// How long events are sent, in seconds
    #[arg(long, default_value_t = 20)]
    seconds: u32,
    /// Single events whose way to the snapshot is timed
    #[arg(long, default_value_t = 1_000)]
    timed: usize,
    /// Exit with 1 when a target is missed
    #[arg(long)]
    check: bool,
    /// Ask for lists in pages
    #[arg(long)]
    pages: bool,
    /// Follow what this kubeconfig leads to, and answer on standard output: the other process
    #[arg(long, hide = true)]
    follow: Option<PathBuf>,
}

fn main() -> anyhow::Result<std::process::ExitCode> {
    let args = Args::parse();
    if let Some(kubeconfig) = &args.follow {
        follower::run(kubeconfig.clone(), args.pages)?;
        return Ok(std::process::ExitCode::SUCCESS);
    }
    let server = ApiServer::start()?;
    let cluster = Cluster::new(Shape::of(args.pods), 1);
    let pods = fill(&server, &cluster)?;
    eprintln!("the server has {} pods", pods.len());
    let mut follower = Follower::start(&server, args.pages)?;
    let mut rows = follower.sync(&cluster)?;
    rows.extend(stream(&server, &pods, &mut follower, args.events, args.seconds)?);
    rows.extend(single(&server, &mut follower, args.timed)?);
    table::print(&cluster.shape(), &rows);
    let missed = rows.iter().any(Row::is_missed);
    Ok(std::process::ExitCode::from(u8::from(args.check && missed)))
}

/// Puts the cluster into the server, and returns some of its pods.
fn fill(server: &ApiServer, cluster: &Cluster) -> anyhow::Result<Vec<Value>> {
    let mut pods = Vec::new();
    let padding = "x".repeat(PADDING);
    for (_, text) in cluster.texts() {
        for line in text.lines() {
            let mut object: Value = serde_json::from_str(line).context("an object of the generator")?;
            if object["kind"] == "Pod" {
                object["metadata"]["managedFields"] = json!([{ "manager": "kubelet", "fieldsV1": padding }]);
                if object["status"]["phase"] == "Running" && object["spec"]["hostNetwork"].is_null() {
                    pods.push(object.clone());
                }
            }
            server.put(object);
        }
    }
    // A few thousand are enough to send events of.
    pods.truncate(5_000);
    pods.shrink_to_fit();
    Ok(pods)
}

/// The process that follows.
struct Follower {
    child: Child,
    input: ChildStdin,
    output: BufReader<ChildStdout>,
    started: Instant,
}

impl Follower {
    fn start(server: &ApiServer, pages: bool) -> anyhow::Result<Self> {
        let kubeconfig = server.kubeconfig("secret")?;
        let mut command = Command::new(std::env::current_exe()?);
        command.arg("--follow").arg(kubeconfig).stdin(Stdio::piped()).stdout(Stdio::piped());
        if pages {
            command.arg("--pages");
        }
        let started = Instant::now();
        let mut child = command.spawn()?;
        let input = child.stdin.take().context("its input")?;
        let output = BufReader::new(child.stdout.take().context("its output")?);
        Ok(Self { child, input, output, started })
    }

    fn usage(&self) -> anyhow::Result<Usage> {
        Usage::of(self.child.id())
    }

    /// Waits for its next line.
    fn line(&mut self) -> anyhow::Result<String> {
        let mut line = String::new();
        self.output.read_line(&mut line)?;
        anyhow::ensure!(!line.is_empty(), "the follower has ended");
        Ok(line.trim().to_owned())
    }

    /// Waits until it knows everything.
    fn sync(&mut self, cluster: &Cluster) -> anyhow::Result<Vec<Row>> {
        let counts = self.line()?;
        let took = self.started.elapsed();
        let expected = format!("{} pods", cluster.shape().pods);
        anyhow::ensure!(counts == expected, "the follower knows {counts}, there are {expected}");
        // What the allocator gives back, it has given back by then.
        std::thread::sleep(Duration::from_secs(2));
        let usage = self.usage()?;
        Ok(vec![
            Row::new("initial sync", "s", took.as_secs_f64(), Some(15.0)),
            Row::new("initial sync, processor time", "s", usage.cpu.as_secs_f64(), None),
            Row::new("resident after it", "MiB", usage.resident_mib, Some(128.0)),
            Row::new("resident at its peak", "MiB", usage.peak_mib, Some(256.0)),
        ])
    }

    /// Has it say when it knows a pod at an address.
    fn when_known(&mut self, ip: &str) -> anyhow::Result<Duration> {
        writeln!(self.input, "{ip}")?;
        Ok(Duration::from_nanos(self.line()?.parse()?))
    }
}

impl Drop for Follower {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Sends events at an even rate: every second pod is relabelled, the others change what nobody reads.
fn stream(
    server: &ApiServer,
    pods: &[Value],
    follower: &mut Follower,
    rate: u32,
    seconds: u32,
) -> anyhow::Result<Vec<Row>> {
    let before = follower.usage()?;
    let started = Instant::now();
    for number in 0..rate * seconds {
        let mut pod = pods[number as usize % pods.len()].clone();
        if number % 2 == 0 {
            pod["metadata"]["labels"]["round"] = json!((number / 5_000).to_string());
        } else {
            pod["metadata"]["annotations"] = json!({ "round": number.to_string() });
        }
        server.put(pod);
        let due = started + Duration::from_secs(1) * (number + 1) / rate;
        std::thread::sleep(due.saturating_duration_since(Instant::now()));
    }
    let took = started.elapsed();
    let after = follower.usage()?;
    let share = (after.cpu - before.cpu).as_secs_f64() / took.as_secs_f64();
    let sent = f64::from(rate * seconds) / took.as_secs_f64();
    Ok(vec![
        Row::new("pod events sent", "1/s", sent, None),
        Row::new("processor while they came", "% of a core", share * 100.0, Some(10.0)),
        Row::new("resident after them", "MiB", after.resident_mib, None),
    ])
}

/// Makes pods one after another and has the follower say when it knew each.
fn single(server: &ApiServer, follower: &mut Follower, count: usize) -> anyhow::Result<Vec<Row>> {
    let mut took = Vec::with_capacity(count);
    for number in 0..count {
        let ip = format!("172.31.{}.{}", number / 250, number % 250 + 1);
        let pod = json!({
            "apiVersion": "v1", "kind": "Pod",
            "metadata": { "name": format!("timed-{number}"), "namespace": "default", "labels": { "app": "timed" } },
            "spec": { "nodeName": "node-1" }, "status": { "phase": "Running", "podIP": ip },
        });
        let put = SystemTime::now().duration_since(UNIX_EPOCH)?;
        server.put(pod);
        took.push(follower.when_known(&ip)?.saturating_sub(put));
    }
    took.sort_unstable();
    let at = |share: f64| {
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "an index")]
        let index = ((took.len() - 1) as f64 * share) as usize;
        took.get(index).map_or(0.0, |took| took.as_secs_f64() * 1_000.0)
    };
    Ok(vec![
        Row::new("event to snapshot, p50", "ms", at(0.5), None),
        Row::new("event to snapshot, p99", "ms", at(0.99), Some(5.0)),
        Row::new("event to snapshot, slowest", "ms", at(1.0), None),
    ])
}
