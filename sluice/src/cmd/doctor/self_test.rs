//! The live test: three pods and a node in namespaces of their own, the rules and the datapath as configured, one
//! connection that a policy denies and one that none does, for TCP and UDP and each family the node has.
//!
//! It tries the kernel and the tools of this node, not its settings and not its firewall: a new namespace has
//! neither. Everything is removed when it ends, also by a signal.

use std::io;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use lab::{
    Cluster, LabError, PodSpec, Server, Sluice, SluiceOptions, UdpServer, ask, greeting_peer, patiently,
};
use proxy::DenyAction;
use serde_json::json;

use super::facts::Facts;
use super::finding::{Finding, fail, ok, warn};
use crate::cmd::lab::interrupt::Interrupt;
use crate::rights::SYS_ADMIN;

const NAME: &str = "self-test";
const PORT: u16 = 80;
/// Enough for a busy machine; a client that is dropped waits this long.
const LIMIT: Duration = Duration::from_secs(5);
const READY_LIMIT: Duration = Duration::from_secs(60);
const READY_STEP: Duration = Duration::from_millis(200);
/// Lines of the agent's log that are shown when it does not become ready.
const SHOWN_LINES: usize = 5;
const SHOWN_BYTES: usize = 2_000;

const POLICY: &str = "apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: closed, namespace: doctor}
spec: {podSelector: {matchLabels: {app: closed}}, policyTypes: [Ingress], ingress: []}
";

/// One protocol and family.
#[derive(Clone, Copy, Debug)]
struct Case {
    name: &'static str,
    udp: bool,
    ipv6: bool,
}

const CASES: [Case; 4] = [
    Case { name: "self-test.tcp4", udp: false, ipv6: false },
    Case { name: "self-test.udp4", udp: true, ipv6: false },
    Case { name: "self-test.tcp6", udp: false, ipv6: true },
    Case { name: "self-test.udp6", udp: true, ipv6: true },
];

/// Runs it. An error is a signal, or a fault of this program.
pub(super) fn run(facts: &Facts, interrupt: &Interrupt) -> anyhow::Result<Vec<Finding>> {
    if let Some(why) = cannot_run(facts) {
        return Ok(vec![not_run(&why)]);
    }
    let ipv6 = facts.survey.capabilities.ipv6;
    let cluster = match cluster(ipv6) {
        Ok(cluster) => cluster,
        Err(error) => {
            return Ok(vec![not_run(&format!("namespaces cannot be made: {}", first_line(&error)))]);
        }
    };
    interrupt.check()?;
    let cases: Vec<Case> = CASES.into_iter().filter(|case| ipv6 || !case.ipv6).collect();
    let _servers = Servers::start(&cluster, ipv6).context("serve in the self-test's pods")?;
    for case in &cases {
        for pod in ["doctor/open", "doctor/closed"] {
            if let Err(error) = connect(&cluster, *case, pod) {
                let found = format!("{}: without Sluice, {pod} does not answer: {error}", case.name);
                return Ok(vec![not_run(&found)]);
            }
            interrupt.check()?;
        }
    }
    let sluice = match start(&cluster, facts, interrupt)? {
        Ok(sluice) => sluice,
        Err(found) => return Ok(vec![found]),
    };
    let mut findings = Vec::new();
    for case in cases {
        findings.push(judge(&cluster, &sluice, case, facts.config.proxy.deny_action));
        interrupt.check()?;
    }
    Ok(findings)
}

fn cannot_run(facts: &Facts) -> Option<String> {
    if !facts.may(SYS_ADMIN) {
        return Some("network namespaces need CAP_SYS_ADMIN, which this process has not".to_owned());
    }
    if !facts.survey.tools.iter().any(|tool| tool.name == "ip" && tool.path.is_some()) {
        return Some("`ip` is not installed".to_owned());
    }
    facts.survey.capabilities.choose(facts.config.redirect.backend).err().map(|missing| missing.to_string())
}

fn not_run(why: &str) -> Finding {
    warn(
        NAME,
        format!("not run: {why}"),
        "that a denied connection is refused and an allowed one carried is not proven here",
        "run sluice doctor as root on the node, with iproute2 installed",
    )
}

fn cluster(ipv6: bool) -> Result<Cluster, LabError> {
    // nft may be what this node lacks.
    let mut builder = Cluster::builder().secluded();
    for name in ["client", "open", "closed"] {
        builder = builder.pod(PodSpec::new(&format!("doctor/{name}")).label("app", name));
    }
    if ipv6 {
        builder = builder.dual_stack();
    }
    let cluster = builder.build()?;
    cluster.write_policy("closed.yaml", POLICY)?;
    Ok(cluster)
}

/// The servers of the two pods that are dialled.
struct Servers {
    _tcp: Vec<Server>,
    _udp: Vec<UdpServer>,
}

impl Servers {
    fn start(cluster: &Cluster, ipv6: bool) -> anyhow::Result<Self> {
        let (mut tcp, mut udp) = (Vec::new(), Vec::new());
        for name in ["doctor/open", "doctor/closed"] {
            let pod = cluster.pod(name)?;
            let second = pod.address_6().filter(|_| ipv6).map(|address| SocketAddr::from((address, PORT)));
            for address in std::iter::once(pod.at(PORT)).chain(second) {
                tcp.push(Server::start(pod.listen_on(address)?)?);
                udp.push(pod.serve_udp_on(address)?);
            }
        }
        Ok(Self { _tcp: tcp, _udp: udp })
    }
}

/// The agent, ready; or what stands against it.
fn start(cluster: &Cluster, facts: &Facts, interrupt: &Interrupt) -> anyhow::Result<Result<Sluice, Finding>> {
    // As configured, but for what is this node's alone.
    let config = json!({ "redirect": facts.config.redirect, "proxy": facts.config.proxy }).to_string();
    let binary = std::env::current_exe().context("find this program's own file")?;
    let options = SluiceOptions { binary: Some(binary), config, ..SluiceOptions::default() };
    let mut sluice = match cluster.node("node1")?.start_sluice(&options) {
        Ok(sluice) => sluice,
        Err(error) => return Ok(Err(ended(&first_line(&error)))),
    };
    let begin = Instant::now();
    loop {
        match sluice.wait_ready(READY_STEP) {
            Ok(()) => return Ok(Ok(sluice)),
            Err(LabError::TimedOut { .. }) if begin.elapsed() < patiently(READY_LIMIT) => {
                interrupt.check()?
            }
            Err(LabError::TimedOut { .. }) => {
                return Ok(Err(late(begin.elapsed(), &last_lines(&sluice.stderr()))));
            }
            Err(_) => return Ok(Err(ended(&last_lines(&sluice.stderr())))),
        }
    }
}

fn ended(said: &str) -> Finding {
    fail(
        NAME,
        format!("sluice run ends without having been ready: {said}"),
        "sluice run does not enforce on this kernel with these tools",
        "the log above says what is missing; deploy/docs/troubleshooting.md says what to do",
    )
}

/// A busy node is not told from one that lacks something: both are no guarantee.
fn late(waited: Duration, said: &str) -> Finding {
    fail(
        NAME,
        format!("sluice run is not ready after {} s: {said}", waited.as_secs()),
        "whether sluice run enforces here was not seen",
        "run doctor again when this node is less busy; after the same once more, the log above says what it waits for",
    )
}

/// Makes both connections and looks at their records.
fn judge(cluster: &Cluster, sluice: &Sluice, case: Case, deny: DenyAction) -> Finding {
    let outcome = allowed(cluster, case).and_then(|()| {
        let begin = Instant::now();
        denied(cluster, sluice, case, deny).map(|()| begin.elapsed())
    });
    match outcome {
        Ok(took) => {
            let how = match deny {
                DenyAction::Reset => format!("one refused in {} ms", took.as_millis()),
                DenyAction::Drop => "one without an answer".to_owned(),
            };
            ok(case.name, format!("one carried with the client's own address; {how}, and recorded"))
        }
        Err(found) => fail(
            case.name,
            found,
            "what policies deny or allow is not what connections do on this node",
            "look at the other findings first; then report this with the output of `sluice rules` and `uname -r`",
        ),
    }
}

fn allowed(cluster: &Cluster, case: Case) -> Result<(), String> {
    match connect(cluster, case, "doctor/open") {
        Ok((client, seen)) if client == seen => Ok(()),
        Ok((client, seen)) => Err(format!("the server took {client} for {seen}")),
        Err(error) => Err(format!("a connection that no policy denies failed: {error}")),
    }
}

fn denied(cluster: &Cluster, sluice: &Sluice, case: Case, deny: DenyAction) -> Result<(), String> {
    match (connect(cluster, case, "doctor/closed"), deny) {
        (Ok(_), _) => return Err("a connection that a policy denies came about".to_owned()),
        (Err(error), DenyAction::Reset) if error.kind() == io::ErrorKind::ConnectionRefused => {}
        (Err(error), DenyAction::Drop) if error.kind() != io::ErrorKind::ConnectionRefused => {}
        (Err(error), _) => {
            return Err(format!("a denied connection ended otherwise than it should: {error}"));
        }
    }
    let Ok(to) = address(cluster, case, "doctor/closed") else { return Err("no address".to_owned()) };
    let transport = if case.udp { "udp" } else { "tcp" };
    let record = sluice.wait_record(
        |record| {
            record["event"]["action"] == "connection-denied"
                && record["network"]["transport"] == transport
                && record["destination"]["ip"] == to.ip().to_string()
        },
        LIMIT,
    );
    match record {
        Ok(record) if record["sluice"]["ingress"]["policies"][0] == "NetworkPolicy/doctor/closed" => Ok(()),
        Ok(record) => Err(format!("the denial's record names {}", record["sluice"]["ingress"]["policies"])),
        Err(_) => Err("the denial was not recorded".to_owned()),
    }
}

/// The client's own address, and the one the server saw.
fn connect(cluster: &Cluster, case: Case, to: &str) -> io::Result<(SocketAddr, SocketAddr)> {
    let to = address(cluster, case, to).map_err(io::Error::other)?;
    let client = cluster.pod("doctor/client").map_err(io::Error::other)?;
    if case.udp {
        let socket = client.udp_to(to)?;
        let seen = ask(&socket, b"HELLO\n", LIMIT)?;
        return Ok((socket.local_addr()?, seen));
    }
    let mut stream = client.connect(to, LIMIT)?;
    let own = stream.local_addr()?;
    Ok((own, greeting_peer(&mut stream, LIMIT)?))
}

fn address(cluster: &Cluster, case: Case, pod: &str) -> Result<SocketAddr, LabError> {
    let pod = cluster.pod(pod)?;
    let second = pod.address_6().filter(|_| case.ipv6).map(|address| SocketAddr::from((address, PORT)));
    Ok(second.unwrap_or_else(|| pod.at(PORT)))
}

fn first_line(error: &dyn std::error::Error) -> String {
    let text = error.to_string();
    text.lines().next().unwrap_or_default().chars().take(SHOWN_BYTES).collect()
}

/// The end of a log, in one line.
fn last_lines(log: &str) -> String {
    let lines: Vec<&str> = log.lines().collect();
    let last = lines[lines.len().saturating_sub(SHOWN_LINES)..].join(" | ");
    last.chars().filter(|c| !c.is_control()).take(SHOWN_BYTES).collect()
}
