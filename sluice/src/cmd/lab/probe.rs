//! One connection of the table: dialled for real, its record read, the two compared with what is expected.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use anyhow::Context as _;
use lab::{Cluster, Family, Netns, Sluice, Transport, ask, greeting_peer, wait_for};
use serde_json::Value;

use super::scenario::{Case, Expect, Rule, Target};

const CONNECT_LIMIT: Duration = Duration::from_secs(10);
const RECORD_LIMIT: Duration = Duration::from_secs(10);

/// What a client got.
#[derive(Debug)]
pub(super) enum Answer {
    /// Connected, and the server said which address it sees.
    Peer(SocketAddr),
    /// connect(2) gave ECONNREFUSED.
    Refused,
    /// Anything else: a timeout, another error, a connection that broke.
    Failed(io::Error),
}

/// One row of the table after the connection.
#[derive(Debug)]
pub(super) struct Seen {
    /// The word for the `seen` column.
    pub(super) word: String,
    /// The rule that decided, as the record has it.
    pub(super) rule: String,
    /// Everything that is not as expected.
    pub(super) differences: Vec<String>,
}

/// Dials `case` without Sluice in the way: whatever is served must answer.
pub(super) fn without_sluice(cluster: &Cluster, family: Family, case: &Case) -> anyhow::Result<bool> {
    let (_, answer) = dial(cluster, family, case)?;
    Ok(match case.expect {
        Expect::Closed => matches!(answer, Answer::Refused),
        Expect::Allowed | Expect::Denied => matches!(answer, Answer::Peer(_)),
    })
}

/// Dials `case` and reads the record of the decision.
pub(super) fn through_sluice(
    cluster: &Cluster,
    family: Family,
    sluices: &[Sluice],
    case: &Case,
) -> anyhow::Result<Seen> {
    let (client, answer) = dial(cluster, family, case)?;
    let record = match case.rule {
        Rule::OwnNode => Ok(None),
        _ => {
            let last = last_node(cluster, case)?;
            let found = wait_for(RECORD_LIMIT, || deciding_record(sluices, last, client, case));
            found.map(Some).ok_or_else(|| format!("no record of {client}"))
        }
    };
    Ok(judge(cluster, case, client, &answer, record))
}

fn judge(
    cluster: &Cluster,
    case: &Case,
    client: SocketAddr,
    answer: &Answer,
    record: Result<Option<Value>, String>,
) -> Seen {
    let mut differences = Vec::new();
    let record = record.unwrap_or_else(|missing| {
        differences.push(missing);
        None
    });
    let action = record.as_ref().and_then(|record| record["event"]["action"].as_str()).unwrap_or_default();
    let word = match (answer, action) {
        (Answer::Peer(_), "connection-ended" | "") => "allowed".to_owned(),
        // A flow ends when conntrack gives it up, half a minute later.
        (Answer::Peer(_), "connection-started") if case.transport != Transport::Tcp => "allowed".to_owned(),
        // Allowed as far as anybody here can tell: the server's kernel refuses.
        (Answer::Refused, "connection-started") if case.transport != Transport::Tcp => "closed".to_owned(),
        (Answer::Peer(_), other) => format!("connected, recorded as {other}"),
        (Answer::Refused, "connection-denied") => "denied".to_owned(),
        (Answer::Refused, "connection-failed") => "closed".to_owned(),
        (Answer::Refused, other) => format!("refused {other}").trim_end().to_owned(),
        (Answer::Failed(error), _) => error.to_string(),
    };
    if word != case.expect.as_str() {
        differences.push(format!("expected {}, seen {word}", case.expect.as_str()));
    }
    let by_kernel = record.as_ref().is_some_and(|record| is_carried_by_the_kernel(case, record));
    if let Answer::Peer(peer) = answer
        && let Some(difference) = foreign_address(cluster, case, client, *peer, by_kernel)
    {
        differences.push(difference);
    }
    let decided = record.as_ref().map(deciding_rules);
    if let (Some(decided), Some(expected)) = (&decided, expected_rules(case.rule))
        && *decided != expected
    {
        differences.push(format!("expected the decision of {}, seen {}", shown(&expected), shown(decided)));
    }
    if let (Some(record), Answer::Peer(peer), Transport::Tcp) = (&record, answer, case.transport) {
        differences.extend(wrong_bytes(record, *peer, by_kernel));
    }
    let rule = match (&decided, case.rule) {
        (Some(rules), _) => shown(rules),
        (None, Rule::OwnNode) => "own node, not intercepted".to_owned(),
        (None, _) => "no record".to_owned(),
    };
    Seen { word, rule, differences }
}

/// Connects from a port that is known beforehand, so that the record of a refusal can be found too.
fn dial(cluster: &Cluster, family: Family, case: &Case) -> anyhow::Result<(SocketAddr, Answer)> {
    let (netns, address) = place(cluster, family, case.from)?;
    let to = address_of(cluster, family, case.to)?;
    if case.transport == Transport::Udp {
        return ask_by_udp(netns, address, to).with_context(|| format!("ask from {}", case.from));
    }
    let socket = netns.bound((address, 0)).with_context(|| format!("bind in {}", case.from))?;
    let client = socket.local_addr()?.as_socket().context("a socket without an address")?;
    let answer = match socket.connect_timeout(&to.into(), CONNECT_LIMIT) {
        Ok(()) => match greeting_peer(&mut socket.into(), CONNECT_LIMIT) {
            Ok(peer) => Answer::Peer(peer),
            Err(error) => Answer::Failed(error),
        },
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => Answer::Refused,
        Err(error) => Answer::Failed(error),
    };
    Ok((client, answer))
}

fn ask_by_udp(netns: &Netns, address: IpAddr, to: SocketAddr) -> io::Result<(SocketAddr, Answer)> {
    let socket = netns.udp((address, 0))?;
    socket.connect(to)?;
    let answer = match ask(&socket, b"HELLO\n", CONNECT_LIMIT) {
        Ok(peer) => Answer::Peer(peer),
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => Answer::Refused,
        Err(error) => Answer::Failed(error),
    };
    Ok((socket.local_addr()?, answer))
}

/// The namespace and address behind a name of the table.
pub(super) fn place<'a>(
    cluster: &'a Cluster,
    family: Family,
    name: &str,
) -> anyhow::Result<(&'a Netns, IpAddr)> {
    if name == "external" {
        let external = cluster.external();
        return Ok((external, external.address_in(family)));
    }
    if let Ok(node) = cluster.node(name) {
        return Ok((node, node.address_in(family)));
    }
    let pod = cluster.pod(name)?;
    Ok((pod, pod.address_in(family)))
}

fn address_of(cluster: &Cluster, family: Family, target: Target) -> anyhow::Result<SocketAddr> {
    Ok(match target {
        Target::Pod { pod, port } => cluster.pod(pod)?.at_in(family, port),
        Target::Service { service, port, .. } => cluster.cluster_ip_in(family, service, port)?,
        Target::NodePort { node, port, .. } => cluster.node(node)?.at_in(family, port),
        Target::External => cluster.external().at_in(family, target.port()),
    })
}

/// The last node on the way, by index: that of the server, or of the client when the server is outside.
fn last_node(cluster: &Cluster, case: &Case) -> anyhow::Result<usize> {
    let node = cluster.pod(case.to.backend().unwrap_or(case.from))?.node();
    let index = cluster.nodes().iter().position(|candidate| candidate.name() == node);
    index.with_context(|| format!("{node} is not in the cluster"))
}

/// The record of the node that refused, whichever on the way did; without a refusal that of the last node.
fn deciding_record(sluices: &[Sluice], last: usize, client: SocketAddr, case: &Case) -> Option<Value> {
    let records: Vec<Option<Value>> = sluices
        .iter()
        .map(|sluice| sluice.records().ok()?.into_iter().find(|record| is_about(record, client, case)))
        .collect();
    let refused = |record: &&Value| record["event"]["action"] == "connection-denied";
    records.iter().flatten().find(refused).or(records.get(last)?.as_ref()).cloned()
}

fn is_about(record: &Value, client: SocketAddr, case: &Case) -> bool {
    let ends: &[&str] = match case.transport {
        Transport::Tcp => &["connection-ended", "connection-denied", "connection-failed"],
        Transport::Udp | Transport::Sctp => &["connection-started", "connection-denied", "connection-failed"],
    };
    let same_pod = case.to.backend().is_none_or(|backend| {
        let k8s = &record["destination"]["k8s"];
        backend
            .split_once('/')
            .is_some_and(|(namespace, name)| k8s["namespace"] == namespace && k8s["pod"] == name)
    });
    record["network"]["transport"] == case.transport.nft()
        && record["source"]["ip"] == client.ip().to_string()
        && record["source"]["port"] == client.port()
        && same_pod
        && record["event"]["action"].as_str().is_some_and(|action| ends.contains(&action))
}

/// The server must see the client's own address and port. Beyond the cluster it is the node's address, as
/// ever: the network plugin masquerades.
fn foreign_address(
    cluster: &Cluster,
    case: &Case,
    client: SocketAddr,
    peer: SocketAddr,
    by_kernel: bool,
) -> Option<String> {
    let node = match case.to {
        Target::External => cluster.pod(case.from).ok()?.node(),
        // An address of the node's, by which interface it leaves.
        Target::NodePort { .. } if by_kernel => return None,
        _ => return (peer != client).then(|| format!("the server saw {peer}, the client is {client}")),
    };
    let family = if client.is_ipv4() { Family::V4 } else { Family::V6 };
    let address = cluster.node(node).ok()?.address_in(family);
    (peer.ip() != address).then(|| format!("the server saw {peer}, not its client's node {address}"))
}

/// With rules of iptables node ports' connections are not the proxy's: kube-proxy masquerades them, and conntrack
/// counts them.
fn is_carried_by_the_kernel(case: &Case, record: &Value) -> bool {
    matches!(case.to, Target::NodePort { .. }) && record["sluice"]["end_cause"] == "flow-timeout"
}

/// The policies of the sides that refuse; when none does, of the sides that allow by a rule.
fn deciding_rules(record: &Value) -> Vec<String> {
    let sides = [&record["sluice"]["egress"], &record["sluice"]["ingress"]];
    let denied = sides.iter().any(|side| side["verdict"] == "deny");
    let mut rules: Vec<String> = sides
        .iter()
        .filter(|side| !denied || side["verdict"] == "deny")
        .filter_map(|side| side["policies"].as_array())
        .flatten()
        .filter_map(|policy| policy.as_str())
        .map(|policy| policy.strip_prefix("NetworkPolicy/").unwrap_or(policy).to_owned())
        .collect();
    rules.sort();
    rules
}

fn expected_rules(rule: Rule) -> Option<Vec<String>> {
    match rule {
        Rule::Policies(policies) => Some(policies.iter().map(|policy| (*policy).to_owned()).collect()),
        Rule::NoPolicy => Some(Vec::new()),
        Rule::OwnNode => None,
    }
}

fn shown(rules: &[String]) -> String {
    if rules.is_empty() { "no policy".to_owned() } else { rules.join(" ") }
}

/// The record counts what the client sent, `HELLO` and a newline, and the greeting that came back. The kernel's count
/// has TCP's options in it.
fn wrong_bytes(record: &Value, peer: SocketAddr, by_kernel: bool) -> Option<String> {
    let greeting = format!("{}{peer}\n", lab::GREETING).len() as u64;
    let counted = (record["source"]["bytes"].as_u64(), record["destination"]["bytes"].as_u64());
    let is_right = match counted {
        (Some(sent), Some(received)) if by_kernel => sent >= 6 && received >= greeting,
        counted => counted == (Some(6), Some(greeting)),
    };
    (!is_right).then(|| format!("recorded bytes {counted:?}, sent were 6 and {greeting}"))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn record(action: &str, egress: Value, ingress: Value) -> Value {
        json!({ "event": { "action": action }, "sluice": { "egress": egress, "ingress": ingress } })
    }

    #[test]
    fn a_denial_is_put_down_to_the_sides_that_refuse_and_an_allow_to_the_rules_that_matched() {
        let allow = json!({ "verdict": "allow", "policies": ["NetworkPolicy/a/out#0"] });
        let deny = json!({ "verdict": "deny", "policies": ["NetworkPolicy/b/in", "NetworkPolicy/b/also"] });
        let open = json!({ "verdict": "allow", "reason": "not-isolated" });
        let denied = record("connection-denied", allow.clone(), deny);
        assert_eq!(deciding_rules(&denied), ["b/also", "b/in"]);
        assert_eq!(deciding_rules(&record("connection-ended", allow, open.clone())), ["a/out#0"]);
        assert_eq!(shown(&deciding_rules(&record("connection-ended", open.clone(), open))), "no policy");
    }

    #[test]
    fn bytes_are_wrong_unless_both_counts_are_exact() {
        let peer = "10.244.1.2:40000".parse().unwrap();
        let record = |sent: u64, received: u64| json!({ "source": { "bytes": sent }, "destination": { "bytes": received } });
        // "you are 10.244.1.2:40000\n"
        assert_eq!(wrong_bytes(&record(6, 25), peer, false), None);
        assert_eq!(wrong_bytes(&record(74, 93), peer, true), None);
        assert!(wrong_bytes(&record(5, 93), peer, true).is_some());
        for (sent, received) in [(0, 25), (6, 24), (6, 0)] {
            assert!(wrong_bytes(&record(sent, received), peer, false).is_some(), "{sent} {received}");
        }
        assert!(wrong_bytes(&json!({}), peer, false).is_some());
    }
}
