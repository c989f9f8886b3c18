//! The lab from beginning to end: build, control, enforce, compare, measure, show, take down.

use std::io::{self, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use lab::{
    Backend, Cluster, Families, Family, LabError, Netns, Sluice, SluiceOptions, Topology, ask, patiently,
    wait_until,
};
use serde_json::Value;

use super::bulk;
use super::interrupt::Interrupt;
use super::probe;
use super::scenario::{BULK_FROM, BULK_TO, CASES, EXAMPLES, EXTERNAL_PORT, SERVERS, UDP_SERVERS, cluster};
use super::state::{Claim, LabName};
use super::table::Table;

/// Where each `sluice run` has its admin API, inside its node.
const ADMIN: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 9093);
const SERVER_LIMIT: Duration = Duration::from_secs(15);
/// An emulated machine takes a while.
const READY_LIMIT: Duration = Duration::from_secs(60);
const READY_STEP: Duration = Duration::from_millis(200);
const STOP_LIMIT: Duration = Duration::from_secs(30);
const RECORD_LIMIT: Duration = Duration::from_secs(15);

/// Runs the lab. True when everything seen was expected. Everything is removed at the end, also after an
/// error, unless `keep` is set and no error came.
pub(super) fn run(name: &LabName, shape: (Topology, Families, Backend), keep: bool) -> anyhow::Result<bool> {
    let interrupt = Interrupt::install()?;
    let out = &mut io::stdout();
    let begin = Instant::now();
    let claim = Claim::take(name)?;

    let (topology, families, backend) = shape;
    let described = cluster().topology(topology).families(families);
    let mut cluster =
        described.prefix(&name.prefix()).folder(claim.folder()).build().context("build the cluster")?;
    let rows = CASES.len() * families.each().len();
    for (name, text) in EXAMPLES {
        cluster.write_policy(name, text)?;
    }
    claim.describe(&cluster)?;
    let mut servers = start_servers(&cluster)?;
    step(out, begin, &format!("{} nodes, {} pods, servers up", cluster.nodes().len(), cluster.pods().len()))?;
    interrupt.check()?;

    let open = control(&cluster, &interrupt)?;
    step(out, begin, &format!("without Sluice {open} of {rows} connections do what the server does"))?;
    let direct = stream(&cluster).context("direct stream")?;
    step(out, begin, "the direct stream is measured")?;
    interrupt.check()?;

    let mut sluices = start_sluices(&cluster, backend, &interrupt)?;
    step(
        out,
        begin,
        &format!("sluice run is ready on both nodes, with the {} example policies", EXAMPLES.len()),
    )?;

    let different = compare(out, &cluster, &sluices, &interrupt)?;
    let through = stream(&cluster).context("stream through Sluice")?;
    writeln!(out)?;
    step(out, begin, "the stream through Sluice is measured")?;
    interrupt.check()?;
    show_records(out, &cluster, &sluices)?;
    writeln!(out, "\nOne stream, {BULK_FROM} to {}, same node:", BULK_TO.0)?;
    writeln!(out, "  direct          {direct:6.2} Gb/s")?;
    let build = if cfg!(debug_assertions) { " (a debug build: not a measurement)" } else { "" };
    writeln!(out, "  through Sluice  {through:6.2} Gb/s, {:.2} of direct{build}", through / direct)?;

    let as_expected = open == rows && different == 0;
    if keep {
        for sluice in &mut sluices {
            sluice.keep();
        }
        servers.iter_mut().for_each(ServerProcess::keep);
        show_kept(out, &cluster, name)?;
        cluster.keep();
        claim.keep(&cluster)?;
    } else {
        stop(&mut sluices)?;
        drop((sluices, servers, cluster, claim));
        step(out, begin, "taken down")?;
    }
    match (as_expected, open == rows) {
        (true, _) => writeln!(out, "\nAll {rows} connections as expected.")?,
        (false, true) => writeln!(out, "\n{different} of {rows} connections NOT as expected.")?,
        (false, false) => {
            writeln!(out, "\nThe cluster itself is broken: see the connections without Sluice.")?
        }
    }
    Ok(as_expected)
}

/// Makes every connection of the table before Sluice runs. Returns how many answered as the server does.
fn control(cluster: &Cluster, interrupt: &Interrupt) -> anyhow::Result<usize> {
    let mut count = 0;
    for family in cluster.families().each() {
        for case in CASES {
            count += usize::from(probe::without_sluice(cluster, *family, case)?);
            interrupt.check()?;
        }
    }
    Ok(count)
}

/// Makes every connection of the table and prints it. Returns how many rows differ.
fn compare(
    out: &mut impl Write,
    cluster: &Cluster,
    sluices: &[Sluice],
    interrupt: &Interrupt,
) -> anyhow::Result<usize> {
    let mut different = 0;
    for family in cluster.families().each() {
        writeln!(out)?;
        if cluster.families() != Families::V4 {
            writeln!(out, "{}", if *family == Family::V4 { "IPv4" } else { "IPv6" })?;
        }
        let mut table = Table::begin(out)?;
        for case in CASES {
            let seen = probe::through_sluice(cluster, *family, sluices, case)?;
            table.row(out, case, &seen)?;
            different += usize::from(!seen.differences.is_empty());
            interrupt.check()?;
        }
    }
    Ok(different)
}

fn stream(cluster: &Cluster) -> anyhow::Result<f64> {
    let family = first_family(cluster);
    let (client, _) = probe::place(cluster, family, BULK_FROM)?;
    let to = cluster.pod(BULK_TO.0)?.at_in(family, BULK_TO.1);
    Ok(bulk::gigabits_per_second(client, to)?)
}

fn first_family(cluster: &Cluster) -> Family {
    if cluster.families() == Families::V6 { Family::V6 } else { Family::V4 }
}

fn start_sluices(cluster: &Cluster, backend: Backend, interrupt: &Interrupt) -> anyhow::Result<Vec<Sluice>> {
    let binary = std::env::current_exe().context("find this program's own file")?;
    let options = SluiceOptions {
        binary: Some(binary),
        admin_port: ADMIN.port(),
        config: backend.config(),
        ..SluiceOptions::default()
    };
    let mut sluices = Vec::new();
    for node in cluster.nodes() {
        sluices.push(node.start_sluice(&options)?);
    }
    let begin = Instant::now();
    for sluice in &mut sluices {
        loop {
            match sluice.wait_ready(READY_STEP) {
                Ok(()) => break,
                Err(LabError::TimedOut { what, context, .. }) => {
                    interrupt.check()?;
                    let limit = patiently(READY_LIMIT);
                    if begin.elapsed() >= limit {
                        return Err(LabError::TimedOut { what, limit, context }.into());
                    }
                }
                Err(error) => return Err(error.into()),
            }
        }
    }
    Ok(sluices)
}

fn stop(sluices: &mut [Sluice]) -> anyhow::Result<()> {
    sluices.iter_mut().for_each(Sluice::sigterm);
    for sluice in sluices {
        let code = sluice.wait_exit(STOP_LIMIT)?;
        if code != 0 {
            let log = sluice.stderr();
            bail!(
                "sluice run ended with {code} when told to stop: {}",
                log.lines().last().unwrap_or_default()
            );
        }
    }
    Ok(())
}

/// Shows a denial and the end record of the stream, as they stand in the file.
fn show_records(out: &mut impl Write, cluster: &Cluster, sluices: &[Sluice]) -> anyhow::Result<()> {
    let server = cluster.pod(BULK_TO.0)?;
    let client = cluster.pod(BULK_FROM)?.address_in(first_family(cluster)).to_string();
    let of_stream = |record: &Value| {
        record["event"]["action"] == "connection-ended"
            && record["source"]["ip"] == client
            && record["source"]["bytes"].as_u64().is_some_and(|bytes| bytes > 1_000_000)
    };
    let node = cluster.nodes().iter().position(|node| node.name() == server.node()).unwrap_or_default();
    let ended = sluices[node].wait_record(of_stream, RECORD_LIMIT)?;
    let denied =
        sluices[0].records()?.into_iter().find(|record| record["event"]["action"] == "connection-denied");
    writeln!(out, "\nTwo records, a denial and the stream:")?;
    for record in denied.iter().chain([&ended]) {
        writeln!(out, "  {record}")?;
    }
    Ok(())
}

fn show_kept(out: &mut impl Write, cluster: &Cluster, name: &LabName) -> anyhow::Result<()> {
    let api = cluster.cluster_ip_in(first_family(cluster), "books/api", 80)?;
    writeln!(out, "\nThe lab stays up:")?;
    writeln!(out, "  {} -- curl -s http://{api}/", name.command("shell books/shop"))?;
    writeln!(out, "  {} -- nft list table inet sluice", name.command("shell node1"))?;
    for node in cluster.nodes() {
        let shell = name.command(&format!("shell {}", node.name()));
        writeln!(out, "  {shell} -- curl -s http://{ADMIN}/metrics")?;
    }
    writeln!(out, "  policies   {} (edit them: they are reloaded)", cluster.manifest_folder().display())?;
    for (title, ending) in [("records", "records"), ("log", "log")] {
        for node in cluster.nodes() {
            let file = cluster.folder().join(format!("{}.{ending}", node.name()));
            writeln!(out, "  {title:9}  {}", file.display())?;
        }
    }
    writeln!(out, "  {} removes it.", name.command("down"))?;
    Ok(())
}

fn step(out: &mut impl Write, begin: Instant, text: &str) -> io::Result<()> {
    writeln!(out, "{:5.1} s  {text}", begin.elapsed().as_secs_f64())?;
    out.flush()
}

/// The program in a pod, killed on drop unless kept.
#[derive(Debug)]
struct ServerProcess {
    child: Child,
    kept: bool,
}

impl ServerProcess {
    fn start(netns: &Netns, ports: &[u16], udp: &[u16]) -> anyhow::Result<Self> {
        let binary = std::env::current_exe().context("find this program's own file")?;
        let child = netns
            .command(binary)
            .args(["lab", "serve"])
            .args(ports.iter().map(u16::to_string))
            .args(udp.iter().map(|port| format!("--udp={port}")))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .context("start a server")?;
        Ok(Self { child, kept: false })
    }

    fn keep(&mut self) {
        self.kept = true;
    }
}

impl Drop for ServerProcess {
    fn drop(&mut self) {
        if !self.kept {
            let _ = self.child.kill();
            let _ = self.child.wait();
        }
    }
}

/// Starts the servers and waits until each accepts a connection from its own pod.
fn start_servers(cluster: &Cluster) -> anyhow::Result<Vec<ServerProcess>> {
    let mut places: Vec<(&Netns, &[u16], &[u16])> =
        vec![(cluster.external(), &[EXTERNAL_PORT], &[EXTERNAL_PORT])];
    for (pod, ports) in SERVERS {
        let udp = UDP_SERVERS.iter().find(|(of_pod, _)| of_pod == pod);
        places.push((cluster.pod(pod)?, ports, udp.map_or(&[], |(_, ports)| ports)));
    }
    let family = first_family(cluster);
    let mut servers = Vec::new();
    for (netns, ports, udp) in &places {
        servers.push(ServerProcess::start(netns, ports, udp)?);
    }
    for (netns, ports, udp) in &places {
        for port in *udp {
            let answers = || {
                let socket = netns.udp_to((family.loopback(), *port));
                socket.is_ok_and(|socket| ask(&socket, b"HELLO\n", READY_STEP).is_ok())
            };
            if !wait_until(SERVER_LIMIT, answers) {
                bail!("no UDP server on port {port} in {}", netns.name());
            }
        }
        for port in *ports {
            let accepts = || netns.connect((family.loopback(), *port), SERVER_LIMIT).is_ok();
            if !wait_until(SERVER_LIMIT, accepts) {
                bail!("no server on port {port} in {}", netns.name());
            }
        }
    }
    Ok(servers)
}
