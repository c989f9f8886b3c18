//! Which records a person asked for.
//!
//! Values of one flag are alternatives, flags add up, and a value that begins with `!` is one that must not match.

use std::time::Duration;

use audit::{End, Glance, Hints, MOST_NAMED, StoreQuery};
use serde_json::Value;

mod not;
mod value;

pub(crate) use not::with_not;
pub(crate) use value::duration;
use value::{Block, Cause, Direction, Kind, Label, Named, Policy, Term, Text, Transport, VerdictIs, bytes};

/// Filters, as `sluice observe`, `sluice top` and `sluice graph` take them. A value that begins with ! must not
/// match; so does the value after --not.
#[derive(Clone, Debug, Default, clap::Args)]
#[command(next_help_heading = "Filters (repeated: any of the values; different flags: all of them)")]
pub(crate) struct Filters {
    /// Namespace of the pod at either end
    #[arg(long, short = 'n', value_name = "NAMESPACE")]
    pub(crate) namespace: Vec<Term<Text>>,
    /// Namespace of the client's pod
    #[arg(long, value_name = "NAMESPACE")]
    from_namespace: Vec<Term<Text>>,
    /// Namespace of the server's pod
    #[arg(long, value_name = "NAMESPACE")]
    to_namespace: Vec<Term<Text>>,
    /// Pod at either end: the beginning of its name, or NAMESPACE/ and that
    #[arg(long, value_name = "[NAMESPACE/]POD")]
    pod: Vec<Term<Named>>,
    /// Pod of the client
    #[arg(long, value_name = "[NAMESPACE/]POD")]
    from_pod: Vec<Term<Named>>,
    /// Pod of the server
    #[arg(long, value_name = "[NAMESPACE/]POD")]
    to_pod: Vec<Term<Named>>,
    /// Workload at either end, such as web or Deployment/web
    #[arg(long, value_name = "[KIND/]NAME")]
    workload: Vec<Term<Named>>,
    /// Label of the pod at either end
    #[arg(long, short = 'l', value_name = "KEY[=VALUE]")]
    label: Vec<Term<Label>>,
    /// Service that was dialled
    #[arg(long, value_name = "[NAMESPACE/]NAME")]
    service: Vec<Term<Named>>,
    /// Address at either end
    #[arg(long, value_name = "IP|CIDR")]
    ip: Vec<Term<Block>>,
    /// Address of the client
    #[arg(long, value_name = "IP|CIDR")]
    from_ip: Vec<Term<Block>>,
    /// Address of the server
    #[arg(long, value_name = "IP|CIDR")]
    to_ip: Vec<Term<Block>>,
    /// Port of the server
    #[arg(long, value_name = "PORT")]
    port: Vec<Term<u16>>,
    /// tcp, udp or sctp
    #[arg(long, value_name = "PROTOCOL")]
    protocol: Vec<Term<Transport>>,
    /// allow, or deny: refused or cut by policy
    #[arg(long, value_name = "VERDICT")]
    verdict: Vec<Term<VerdictIs>>,
    /// Policy that decided: its name, NAMESPACE/NAME or KIND/NAMESPACE/NAME, with #RULE one rule of it
    #[arg(long, value_name = "POLICY")]
    policy: Vec<Term<Policy>>,
    /// ingress, egress, internal or unknown, as the node sees it
    #[arg(long, value_name = "DIRECTION")]
    direction: Vec<Term<Direction>>,
    /// How it ended, such as refused or policy-revoked
    #[arg(long, value_name = "CAUSE")]
    cause: Vec<Term<Cause>>,
    /// started, updated, ended, denied, failed or lost
    #[arg(long = "type", short = 't', value_name = "TYPE")]
    pub(crate) kind: Vec<Term<Kind>>,
    /// Node that wrote the record
    #[arg(long, value_name = "NODE")]
    node: Vec<Term<Text>>,
    /// Connections that lived at least this long, such as 500ms, 10s, 5m or 1h
    #[arg(long, value_name = "DURATION", value_parser = duration)]
    min_duration: Option<Duration>,
    /// Connections that carried at least so many bytes both ways, such as 1000, 64K or 10M
    #[arg(long, value_name = "BYTES", value_parser = bytes)]
    min_bytes: Option<u64>,
    /// Turns the filter that follows around
    #[arg(long)]
    not: bool,
}

impl Filters {
    /// Fails when a `--not` has no filter after it that it can turn around.
    pub(crate) fn check(&self) -> anyhow::Result<()> {
        if self.not {
            anyhow::bail!(
                "--not: a filter by name or value must follow it, such as --not --namespace kube-system"
            );
        }
        Ok(())
    }

    /// True when every flag matches `record`.
    pub(crate) fn matches(&self, record: &Glance<'_>) -> bool {
        let ends = [record.source, record.destination];
        let [source, destination] = [[ends[0]], [ends[1]]];
        any_end(&self.namespace, &ends, is_in_namespace)
            && any_end(&self.from_namespace, &source, is_in_namespace)
            && any_end(&self.to_namespace, &destination, is_in_namespace)
            && any_end(&self.pod, &ends, is_pod)
            && any_end(&self.from_pod, &source, is_pod)
            && any_end(&self.to_pod, &destination, is_pod)
            && any_end(&self.workload, &ends, is_workload)
            && any_end(&self.label, &ends, has_label)
            && wanted(&self.service, |service| is_service(service, record.service))
            && any_end(&self.ip, &ends, is_in_block)
            && any_end(&self.from_ip, &source, is_in_block)
            && any_end(&self.to_ip, &destination, is_in_block)
            && wanted(&self.port, |port| ends[1].port == Some(u64::from(*port)))
            && wanted(&self.protocol, |name| record.transport == name.0)
            && wanted(&self.verdict, |verdict| verdict.is_of(record))
            && wanted(&self.policy, |policy| policies(record).any(|named| policy.is(named)))
            && wanted(&self.direction, |name| record.direction == name.0)
            && wanted(&self.cause, |name| record.cause == Some(name.0))
            && wanted(&self.kind, |kind| record.action == kind.action())
            && wanted(&self.node, |name| record.node == name.0)
            && self.min_duration.is_none_or(|least| lived(record).is_some_and(|lived| lived >= least))
            && self.min_bytes.is_none_or(|least| carried(record) >= least)
    }

    /// True when every record matches.
    pub(crate) fn are_none(&self) -> bool {
        self.words().is_empty()
    }

    /// Them as arguments, for another process.
    pub(crate) fn words(&self) -> Vec<String> {
        fn add<T>(words: &mut Vec<String>, flag: &str, terms: &[Term<T>]) {
            words.extend(terms.iter().map(|term| format!("--{flag}={}", term.text)));
        }
        let mut words = Vec::new();
        for (flag, terms) in [
            ("namespace", &self.namespace),
            ("from-namespace", &self.from_namespace),
            ("to-namespace", &self.to_namespace),
            ("node", &self.node),
        ] {
            add(&mut words, flag, terms);
        }
        for (flag, terms) in [
            ("pod", &self.pod),
            ("from-pod", &self.from_pod),
            ("to-pod", &self.to_pod),
            ("workload", &self.workload),
            ("service", &self.service),
        ] {
            add(&mut words, flag, terms);
        }
        for (flag, terms) in [("ip", &self.ip), ("from-ip", &self.from_ip), ("to-ip", &self.to_ip)] {
            add(&mut words, flag, terms);
        }
        add(&mut words, "label", &self.label);
        add(&mut words, "port", &self.port);
        add(&mut words, "protocol", &self.protocol);
        add(&mut words, "verdict", &self.verdict);
        add(&mut words, "policy", &self.policy);
        add(&mut words, "direction", &self.direction);
        add(&mut words, "cause", &self.cause);
        add(&mut words, "type", &self.kind);
        words.extend(self.min_duration.map(|least| format!("--min-duration={}ms", least.as_millis())));
        words.extend(self.min_bytes.map(|least| format!("--min-bytes={least}")));
        words
    }

    /// From what [`Self::words`] gave.
    pub(crate) fn from_words(words: &[String]) -> Result<Self, String> {
        #[derive(clap::Parser)]
        struct Words {
            #[command(flatten)]
            filters: Filters,
        }
        let all = std::iter::once("filters").chain(words.iter().map(String::as_str));
        let parsed = <Words as clap::Parser>::try_parse_from(all);
        parsed.map(|parsed| parsed.filters).map_err(|error| error.kind().to_string())
    }

    /// What whoever keeps the records can look up: never less than what matches.
    pub(crate) fn narrow(&self, query: &mut StoreQuery) {
        let pods = [&self.pod, &self.from_pod, &self.to_pod].into_iter().find_map(|terms| asked(terms));
        query.pods = pods.map_or_else(Vec::new, |pods| pods.into_iter().map(Named::as_pod).collect());
        let namespaces = [&self.namespace, &self.from_namespace, &self.to_namespace];
        let namespaces = namespaces.into_iter().find_map(|terms| asked(terms));
        query.namespaces = namespaces
            .map_or_else(Vec::new, |names| names.into_iter().map(|Text(name)| name.clone()).collect());
        let ips = [&self.ip, &self.from_ip, &self.to_ip].into_iter().find_map(|terms| asked(terms));
        query.ips =
            ips.map_or_else(Vec::new, |blocks| blocks.into_iter().map(|Block(block)| *block).collect());
        let words = |names: Vec<&'static str>| names.into_iter().map(str::to_owned).collect();
        query.actions = asked(&self.kind)
            .map_or_else(Vec::new, |kinds| words(kinds.into_iter().map(|kind| kind.action()).collect()));
        query.causes = asked(&self.cause)
            .map_or_else(Vec::new, |causes| words(causes.into_iter().map(|Cause(name)| *name).collect()));
        query.denied = asked(&self.verdict)
            .is_some_and(|verdicts| verdicts.into_iter().all(|verdict| *verdict == VerdictIs::Deny));
        query.hints = self.hints();
    }

    fn hints(&self) -> Hints {
        /// What is the same text in a line of JSON.
        fn names<T>(terms: &[Term<T>], name: impl Fn(&T) -> &str) -> Vec<String> {
            let is_plain = |name: &&str| {
                name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-._/#".contains(&byte))
            };
            let all = asked(terms).unwrap_or_default();
            let plain: Vec<String> =
                all.iter().map(|value| name(value)).filter(is_plain).map(str::to_owned).collect();
            if plain.len() == all.len() { plain } else { Vec::new() }
        }
        fn each<T, V>(terms: &[Term<T>], value: impl Fn(&T) -> V) -> Vec<V> {
            asked(terms).unwrap_or_default().into_iter().map(value).collect()
        }
        Hints {
            nodes: each(&self.node, |node| node.0.clone()),
            ports: each(&self.port, |port| *port),
            protocols: each(&self.protocol, |protocol| protocol.0.to_owned()),
            directions: each(&self.direction, |direction| direction.0.to_owned()),
            labels: each(&self.label, |label| (label.key.clone(), label.value.clone())),
            workloads: each(&self.workload, |workload| workload.name.clone()),
            policies: names(&self.policy, Policy::text),
            services: names(&self.service, |service| &service.name),
            least_ns: self
                .min_duration
                .map_or(0, |least| u64::try_from(least.as_nanos()).unwrap_or(u64::MAX)),
            least_bytes: self.min_bytes.unwrap_or(0),
        }
    }
}

/// One of the values that should match does, if there are any, and none of those that must not.
fn wanted<T>(terms: &[Term<T>], matches: impl Fn(&T) -> bool) -> bool {
    let mut should = terms.iter().filter(|term| !term.is_not).peekable();
    (should.peek().is_none() || should.any(|term| matches(&term.value)))
        && !terms.iter().any(|term| term.is_not && matches(&term.value))
}

fn any_end<T>(terms: &[Term<T>], ends: &[End<'_>], matches: impl Fn(&T, &End<'_>) -> bool) -> bool {
    wanted(terms, |value| ends.iter().any(|end| matches(value, end)))
}

/// The values of which one should match; `None` when any may, or when there are too many to look up.
fn asked<T>(terms: &[Term<T>]) -> Option<Vec<&T>> {
    let values: Vec<&T> = terms.iter().filter(|term| !term.is_not).map(|term| &term.value).collect();
    (1..=MOST_NAMED).contains(&values.len()).then_some(values)
}

fn equals(value: &Value, text: &str) -> bool {
    value.as_str() == Some(text)
}

fn is_in_namespace(namespace: &Text, end: &End<'_>) -> bool {
    equals(&end.k8s["namespace"], &namespace.0)
}

fn is_pod(pod: &Named, end: &End<'_>) -> bool {
    end.k8s["pod"].as_str().is_some_and(|name| name.starts_with(&pod.name))
        && pod.before.as_ref().is_none_or(|namespace| equals(&end.k8s["namespace"], namespace))
}

fn is_workload(workload: &Named, end: &End<'_>) -> bool {
    let owner = &end.k8s["owner"];
    equals(&owner["name"], &workload.name)
        && workload
            .before
            .as_ref()
            .is_none_or(|kind| owner["kind"].as_str().is_some_and(|known| known.eq_ignore_ascii_case(kind)))
}

fn has_label(label: &Label, end: &End<'_>) -> bool {
    let known = end.k8s["labels"].get(&label.key);
    known.is_some_and(|known| label.value.as_ref().is_none_or(|value| equals(known, value)))
}

fn is_service(named: &Named, service: &Value) -> bool {
    equals(&service["name"], &named.name)
        && named.before.as_ref().is_none_or(|namespace| equals(&service["namespace"], namespace))
}

fn is_in_block(block: &Block, end: &End<'_>) -> bool {
    end.ip.and_then(|ip| ip.parse().ok()).is_some_and(|ip| block.0.contains(ip))
}

/// Refused by policy, or cut by it.
pub(crate) fn is_denied(record: &Glance<'_>) -> bool {
    record.action == Kind::Denied.action() || record.cause == Some("policy-revoked")
}

/// Every policy that had a say: `Kind/namespace/name#rule`.
pub(crate) fn policies<'a>(record: &Glance<'a>) -> impl Iterator<Item = &'a str> {
    [record.egress, record.ingress]
        .into_iter()
        .filter_map(|side| side["policies"].as_array())
        .flatten()
        .filter_map(Value::as_str)
}

/// How long it lived, so far or in all.
pub(crate) fn lived(record: &Glance<'_>) -> Option<Duration> {
    record.duration.map(Duration::from_nanos)
}

/// Bytes both ways.
pub(crate) fn carried(record: &Glance<'_>) -> u64 {
    record.source.bytes.unwrap_or(0).saturating_add(record.destination.bytes.unwrap_or(0))
}

#[cfg(test)]
#[path = "filter_tests.rs"]
mod tests;
