//! Which flows a client asked for. Read once, with every fault told, and bounded: a request is somebody else's text.
//!
//! Values of one field are alternatives, fields of one filter add up, filters of a list are alternatives. A filter on
//! something that Sluice never sees matches nothing.

use std::net::IpAddr;

use audit::{IpBlock, MOST_NAMED, PodNamed, StoreQuery};
use ipnet::IpNet;

use crate::proto::flow::layer4::Protocol;
use crate::proto::flow::{Endpoint, EventTypeFilter, Flow, FlowFilter, TcpFlags, Verdict, Workload};
use crate::proto::observer::GetFlowsRequest;
use crate::selector::Selector;

/// Values of all filters of a request.
const MOST_VALUES: usize = 4_096;
/// Bytes of one of them.
const LONGEST_VALUE: usize = 1_024;

/// What a request wants.
#[derive(Debug, Default)]
pub(crate) struct Wanted {
    white: Vec<Filter>,
    black: Vec<Filter>,
}

impl Wanted {
    /// The error says what is wrong with the request.
    pub(crate) fn new(request: &GetFlowsRequest) -> Result<Self, String> {
        let all = request.whitelist.iter().chain(&request.blacklist);
        let mut values = 0;
        for filter in all {
            values += 1 + check(filter)?;
            if values > MOST_VALUES {
                return Err(format!("more than {MOST_VALUES} values to filter by"));
            }
        }
        let filters = |list: &[FlowFilter]| list.iter().map(Filter::new).collect::<Result<_, _>>();
        Ok(Self { white: filters(&request.whitelist)?, black: filters(&request.blacklist)? })
    }

    /// What the store can look up of it: never less than what is wanted.
    pub(crate) fn narrow(&self, query: &mut StoreQuery) {
        let pods = |filter: &Filter| {
            let ends = [&filter.source.pod, &filter.destination.pod];
            ends.into_iter()
                .find(|named| !named.is_empty())
                .map(|named| named.iter().map(Named::as_pod).collect())
        };
        let each: Option<Vec<Vec<PodNamed>>> = self.white.iter().map(pods).collect();
        let mut all = each.unwrap_or_default().concat();
        all.dedup();
        if all.len() <= MOST_NAMED {
            query.pods = all;
        }
        let ips = |filter: &Filter| {
            let ends = [&filter.source.ip, &filter.destination.ip];
            let named = ends.into_iter().find(|named| !named.is_empty())?;
            named.iter().map(|net| IpBlock::new(net.addr(), net.prefix_len())).collect()
        };
        let each: Option<Vec<Vec<IpBlock>>> = self.white.iter().map(ips).collect();
        let all = each.unwrap_or_default().concat();
        if all.len() <= MOST_NAMED {
            query.ips = all;
        }
        let is_dropped = |filter: &Filter| filter.verdict == [i32::from(Verdict::Dropped)];
        query.denied = !self.white.is_empty() && self.white.iter().all(is_dropped);
        query.losses = true;
    }

    pub(crate) fn wants(&self, flow: &Flow) -> bool {
        (self.white.is_empty() || self.white.iter().any(|filter| filter.matches(flow)))
            && !self.black.iter().any(|filter| filter.matches(flow))
    }
}

/// How many values it has; an error when one is too long.
fn check(filter: &FlowFilter) -> Result<usize, String> {
    let texts = texts(filter);
    if texts.clone().any(|text| text.len() > LONGEST_VALUE) {
        return Err(format!("a value to filter by has more than {LONGEST_VALUE} bytes"));
    }
    let numbers = [
        filter.traffic_direction.len(),
        filter.verdict.len(),
        filter.drop_reason_desc.len(),
        filter.interface.len(),
        filter.event_type.len(),
        filter.reply.len(),
        filter.source_identity.len(),
        filter.destination_identity.len(),
        filter.http_header.len(),
        filter.tcp_flags.len(),
        filter.ip_version.len(),
        filter.ip_trace_id.len(),
        filter.encrypted.len(),
    ];
    Ok(texts.count() + numbers.iter().sum::<usize>())
}

fn texts(filter: &FlowFilter) -> impl Iterator<Item = &String> + Clone {
    let lists = [
        &filter.uuid,
        &filter.source_ip,
        &filter.source_ip_xlated,
        &filter.source_pod,
        &filter.source_fqdn,
        &filter.source_label,
        &filter.source_service,
        &filter.source_cluster_name,
        &filter.destination_ip,
        &filter.destination_pod,
        &filter.destination_fqdn,
        &filter.destination_label,
        &filter.destination_service,
        &filter.destination_cluster_name,
        &filter.http_status_code,
        &filter.protocol,
        &filter.source_port,
        &filter.destination_port,
        &filter.dns_query,
        &filter.http_method,
        &filter.http_path,
        &filter.http_url,
        &filter.node_name,
        &filter.node_labels,
        &filter.trace_id,
    ];
    let workloads = filter.source_workload.iter().chain(&filter.destination_workload);
    lists.into_iter().flatten().chain(workloads.flat_map(|workload| [&workload.name, &workload.kind]))
}

/// One filter; empty lists match everything.
#[derive(Debug, Default)]
struct Filter {
    uuid: Vec<String>,
    source: End,
    destination: End,
    source_xlated: Vec<IpNet>,
    direction: Vec<i32>,
    verdict: Vec<i32>,
    drop_reason: Vec<i32>,
    event_type: Vec<EventTypeFilter>,
    protocol: Vec<String>,
    reply: Vec<bool>,
    encrypted: Vec<bool>,
    tcp_flags: Vec<TcpFlags>,
    node_name: Vec<NodePattern>,
    node_labels: Vec<Selector>,
    ip_version: Vec<i32>,
    /// It asks for something that no flow of Sluice has.
    matches_nothing: bool,
}

/// What is asked of one end.
#[derive(Debug, Default)]
struct End {
    ip: Vec<IpNet>,
    pod: Vec<Named>,
    label: Vec<Selector>,
    service: Vec<Named>,
    workload: Vec<Workload>,
    cluster: Vec<String>,
    port: Vec<u32>,
    identity: Vec<u32>,
}

/// The beginning of a name, in a namespace or in any.
#[derive(Debug)]
struct Named {
    namespace: String,
    prefix: String,
}

/// `cluster/node`, each with `*` for any letters.
#[derive(Debug)]
struct NodePattern {
    cluster: String,
    node: String,
}

impl Filter {
    fn new(filter: &FlowFilter) -> Result<Self, String> {
        let FlowFilter { source_port, destination_port, .. } = filter;
        if filter.experimental.as_ref().is_some_and(|more| !more.cel_expression.is_empty()) {
            return Err("cel_expression is not supported".to_owned());
        }
        let unseen: [usize; 11] = [
            filter.source_fqdn.len(),
            filter.destination_fqdn.len(),
            filter.interface.len(),
            filter.http_status_code.len(),
            filter.dns_query.len(),
            filter.http_method.len(),
            filter.http_path.len(),
            filter.http_url.len(),
            filter.http_header.len(),
            filter.trace_id.len(),
            filter.ip_trace_id.len(),
        ];
        Ok(Self {
            uuid: filter.uuid.clone(),
            source: End {
                ip: each(&filter.source_ip, network)?,
                pod: each(&filter.source_pod, Named::parse)?,
                label: each(&filter.source_label, Selector::parse)?,
                service: each(&filter.source_service, Named::parse)?,
                workload: filter.source_workload.clone(),
                cluster: filter.source_cluster_name.clone(),
                port: each(source_port, port)?,
                identity: filter.source_identity.clone(),
            },
            destination: End {
                ip: each(&filter.destination_ip, network)?,
                pod: each(&filter.destination_pod, Named::parse)?,
                label: each(&filter.destination_label, Selector::parse)?,
                service: each(&filter.destination_service, Named::parse)?,
                workload: filter.destination_workload.clone(),
                cluster: filter.destination_cluster_name.clone(),
                port: each(destination_port, port)?,
                identity: filter.destination_identity.clone(),
            },
            source_xlated: each(&filter.source_ip_xlated, network)?,
            direction: filter.traffic_direction.clone(),
            verdict: filter.verdict.clone(),
            drop_reason: filter.drop_reason_desc.clone(),
            event_type: filter.event_type.clone(),
            protocol: each(&filter.protocol, protocol)?,
            reply: filter.reply.clone(),
            encrypted: filter.encrypted.clone(),
            tcp_flags: filter.tcp_flags.clone(),
            node_name: each(&filter.node_name, NodePattern::parse)?,
            node_labels: each(&filter.node_labels, Selector::parse)?,
            ip_version: filter.ip_version.clone(),
            matches_nothing: unseen.iter().any(|count| *count > 0),
        })
    }

    fn matches(&self, flow: &Flow) -> bool {
        let ip = flow.ip.as_ref();
        let (source_ip, destination_ip) = (ip.map(|ip| &*ip.source), ip.map(|ip| &*ip.destination));
        let (source_port, destination_port) = ports(flow);
        let flags = flags(flow);
        !self.matches_nothing
            && one_of(&self.uuid, |uuid| *uuid == flow.uuid)
            && self.source.matches(flow.source.as_ref(), source_ip, source_port, None)
            && self.destination.matches(
                flow.destination.as_ref(),
                destination_ip,
                destination_port,
                flow.destination_service.as_ref().map(|service| (&*service.namespace, &*service.name)),
            )
            && is_in(&self.source_xlated, ip.map(|ip| &*ip.source_xlated))
            && one_of(&self.direction, |direction| *direction == flow.traffic_direction)
            && one_of(&self.verdict, |verdict| *verdict == flow.verdict)
            && one_of(&self.drop_reason, |reason| {
                flow.verdict == i32::from(Verdict::Dropped) && *reason == flow.drop_reason_desc
            })
            && one_of(&self.event_type, |wanted| is_event(flow, wanted))
            && one_of(&self.protocol, |name| is_protocol(flow, name))
            && one_of(&self.reply, |reply| Some(*reply) == flow.is_reply)
            && one_of(&self.encrypted, |encrypted| !encrypted)
            && one_of(&self.tcp_flags, |wanted| flags.is_some_and(|flags| has_flags(flags, wanted)))
            && one_of(&self.node_name, |pattern| pattern.matches(&flow.node_name))
            && one_of(&self.node_labels, |selector| selector.matches(&flow.node_labels))
            && one_of(&self.ip_version, |version| ip.is_some_and(|ip| ip.ip_version == *version))
    }
}

impl End {
    fn matches(
        &self,
        end: Option<&Endpoint>,
        ip: Option<&str>,
        port: Option<u32>,
        service: Option<(&str, &str)>,
    ) -> bool {
        let pod = end.map(|end| (&*end.namespace, &*end.pod_name));
        let workloads = end.map_or(&[][..], |end| &end.workloads);
        is_in(&self.ip, ip)
            && one_of(&self.pod, |named| pod.is_some_and(|pod| named.matches(pod)))
            && one_of(&self.label, |selector| end.is_some_and(|end| selector.matches(&end.labels)))
            && one_of(&self.service, |named| service.is_some_and(|service| named.matches(service)))
            && one_of(&self.workload, |wanted| workloads.iter().any(|workload| is_workload(workload, wanted)))
            && one_of(&self.cluster, |name| end.is_some_and(|end| end.cluster_name == *name))
            && one_of(&self.port, |wanted| port == Some(*wanted))
            && one_of(&self.identity, |number| end.is_some_and(|end| end.identity == *number))
    }
}

/// An empty list asks for nothing.
fn one_of<T>(values: &[T], is: impl FnMut(&T) -> bool) -> bool {
    values.is_empty() || values.iter().any(is)
}

fn is_in(networks: &[IpNet], ip: Option<&str>) -> bool {
    if networks.is_empty() {
        return true;
    }
    let ip: Option<IpAddr> = ip.and_then(|ip| ip.parse().ok());
    ip.is_some_and(|ip| networks.iter().any(|network| network.contains(&ip)))
}

fn each<T>(values: &[String], read: impl Fn(&str) -> Result<T, String>) -> Result<Vec<T>, String> {
    values.iter().map(|value| read(value)).collect()
}

fn network(text: &str) -> Result<IpNet, String> {
    let address = || text.parse::<IpAddr>().map(IpNet::from).ok();
    text.parse().ok().or_else(address).ok_or_else(|| format!("{text:?} is no IP address and no CIDR"))
}

fn port(text: &str) -> Result<u32, String> {
    text.parse::<u16>().map(u32::from).map_err(|_| format!("{text:?} is no port"))
}

fn protocol(text: &str) -> Result<String, String> {
    const KNOWN: [&str; 11] =
        ["tcp", "udp", "sctp", "icmp", "icmpv4", "icmpv6", "vrrp", "igmp", "dns", "http", "kafka"];
    let name = text.to_ascii_lowercase();
    if KNOWN.contains(&&*name) { Ok(name) } else { Err(format!("{text:?} is no known protocol")) }
}

impl Named {
    /// `namespace/prefix`, `namespace/`, `/prefix`; a name alone is one of the namespace `default`.
    fn parse(text: &str) -> Result<Self, String> {
        let (namespace, prefix) = text.split_once('/').unwrap_or(("default", text));
        if text.is_empty() {
            return Err("a name to filter by is empty".to_owned());
        }
        Ok(Self { namespace: namespace.to_owned(), prefix: prefix.to_owned() })
    }

    fn as_pod(&self) -> PodNamed {
        let namespace = Some(self.namespace.clone()).filter(|namespace| !namespace.is_empty());
        PodNamed { namespace, prefix: self.prefix.clone() }
    }

    fn matches(&self, (namespace, name): (&str, &str)) -> bool {
        (!namespace.is_empty() || !name.is_empty())
            && (self.namespace.is_empty() || self.namespace == namespace)
            && name.starts_with(&self.prefix)
    }
}

impl NodePattern {
    fn parse(text: &str) -> Result<Self, String> {
        let (cluster, node) = text.split_once('/').unwrap_or(("", text));
        let is_name = |letter: char| letter.is_ascii_alphanumeric() || "-_.*".contains(letter);
        if text.is_empty() || !cluster.chars().chain(node.chars()).all(is_name) {
            return Err(format!("{text:?} is no pattern of a node's name"));
        }
        let [cluster, node] = [cluster, node]
            .map(|part| if part.is_empty() { "*".to_owned() } else { part.to_ascii_lowercase() });
        Ok(Self { cluster, node })
    }

    fn matches(&self, name: &str) -> bool {
        let (cluster, node) = name.split_once('/').unwrap_or(("default", name));
        is_like(&self.cluster, cluster) && is_like(&self.node, node)
    }
}

/// `*` stands for any letters. Steps are at most those of both lengths multiplied.
fn is_like(pattern: &str, name: &str) -> bool {
    let (pattern, name) = (pattern.as_bytes(), name.as_bytes());
    let (mut at, mut in_name) = (0, 0);
    let mut star: Option<(usize, usize)> = None;
    while in_name < name.len() {
        match pattern.get(at) {
            Some(b'*') => {
                star = Some((at, in_name));
                at += 1;
            }
            Some(letter) if *letter == name[in_name] => {
                at += 1;
                in_name += 1;
            }
            _ => match star {
                Some((place, begin)) => {
                    star = Some((place, begin + 1));
                    at = place + 1;
                    in_name = begin + 1;
                }
                None => return false,
            },
        }
    }
    pattern[at..].iter().all(|letter| *letter == b'*')
}

fn is_workload(workload: &Workload, wanted: &Workload) -> bool {
    (wanted.name.is_empty() || wanted.name == workload.name)
        && (wanted.kind.is_empty() || wanted.kind == workload.kind)
}

fn is_event(flow: &Flow, wanted: &EventTypeFilter) -> bool {
    flow.event_type.is_some_and(|event| {
        (wanted.r#type == 0 || wanted.r#type == event.r#type)
            && (!wanted.match_sub_type || wanted.sub_type == event.sub_type)
    })
}

fn protocol_of(flow: &Flow) -> Option<&Protocol> {
    flow.l4.as_ref()?.protocol.as_ref()
}

fn is_protocol(flow: &Flow, name: &str) -> bool {
    matches!(
        (protocol_of(flow), name),
        (Some(Protocol::Tcp(_)), "tcp") | (Some(Protocol::Udp(_)), "udp") | (Some(Protocol::Sctp(_)), "sctp")
    )
}

fn ports(flow: &Flow) -> (Option<u32>, Option<u32>) {
    match protocol_of(flow) {
        Some(Protocol::Tcp(tcp)) => (Some(tcp.source_port), Some(tcp.destination_port)),
        Some(Protocol::Udp(udp)) => (Some(udp.source_port), Some(udp.destination_port)),
        Some(Protocol::Sctp(sctp)) => (Some(sctp.source_port), Some(sctp.destination_port)),
        None => (None, None),
    }
}

fn flags(flow: &Flow) -> Option<&TcpFlags> {
    match protocol_of(flow)? {
        Protocol::Tcp(tcp) => tcp.flags.as_ref(),
        _ => None,
    }
}

fn has_flags(flags: &TcpFlags, wanted: &TcpFlags) -> bool {
    let pairs = [
        (wanted.fin, flags.fin),
        (wanted.syn, flags.syn),
        (wanted.rst, flags.rst),
        (wanted.psh, flags.psh),
        (wanted.ack, flags.ack),
        (wanted.urg, flags.urg),
        (wanted.ece, flags.ece),
        (wanted.cwr, flags.cwr),
        (wanted.ns, flags.ns),
    ];
    pairs.iter().all(|(wanted, is_set)| !wanted || *is_set)
}

#[cfg(test)]
#[path = "filter_tests.rs"]
mod tests;
