//! Which records a person asked for.
//!
//! Values of one flag are alternatives, flags add up, and a value that begins with `!` is one that must not match.

use std::ffi::{OsStr, OsString};
use std::str::FromStr;
use std::time::Duration;

use audit::{End, Glance, IpBlock, MOST_NAMED, PodNamed, StoreQuery};
use serde_json::Value;

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
    }
}

/// A value, and whether it must not match.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Term<T> {
    value: T,
    is_not: bool,
    /// As it was written.
    text: String,
}

impl<T: FromStr<Err = String>> Term<T> {
    fn parse(text: &str) -> Result<Self, String> {
        let (value, is_not) = text.strip_prefix('!').map_or((text, false), |rest| (rest, true));
        if value.is_empty() {
            return Err("must not be empty".to_owned());
        }
        Ok(Self { value: value.parse()?, is_not, text: text.to_owned() })
    }
}

macro_rules! term {
    ($($t:ty),*) => {$(
        impl FromStr for Term<$t> {
            type Err = String;
            fn from_str(text: &str) -> Result<Self, String> {
                Self::parse(text)
            }
        }
    )*};
}
term!(Text, Named, Label, Block, Transport, Policy, VerdictIs, Direction, Cause, Kind);

impl FromStr for Term<u16> {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        let (value, is_not) = text.strip_prefix('!').map_or((text, false), |rest| (rest, true));
        let value = value.parse().map_err(|_| "must be a port from 0 to 65535".to_owned())?;
        Ok(Self { value, is_not, text: text.to_owned() })
    }
}

/// Any text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Text(String);

impl FromStr for Text {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        Ok(Self(text.to_owned()))
    }
}

/// A name, and what stands before its slash.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Named {
    before: Option<String>,
    name: String,
}

impl FromStr for Named {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        Ok(match text.split_once('/') {
            Some((before, name)) => Self { before: Some(before.to_owned()), name: name.to_owned() },
            None => Self { before: None, name: text.to_owned() },
        })
    }
}

impl Named {
    fn as_pod(&self) -> PodNamed {
        PodNamed { namespace: self.before.clone(), prefix: self.name.clone() }
    }
}

/// An address or a block of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Block(IpBlock);

impl FromStr for Block {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        text.parse().map(Self).map_err(|()| format!("{text} is no IP address and no CIDR such as 10.0.0.0/8"))
    }
}

/// A label's key, and its value where one was asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Label {
    key: String,
    value: Option<String>,
}

impl FromStr for Label {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        let (key, value) = text.split_once('=').map_or((text, None), |(key, value)| (key, Some(value)));
        if key.is_empty() {
            return Err("must be KEY or KEY=VALUE".to_owned());
        }
        Ok(Self { key: key.to_owned(), value: value.map(str::to_owned) })
    }
}

/// The word of `all` that is `text`, in whatever case.
fn one_of(text: &str, all: &[&'static str]) -> Result<&'static str, String> {
    let found = all.iter().find(|word| word.eq_ignore_ascii_case(text));
    found.copied().ok_or_else(|| match all {
        [before @ .., last] => format!("must be {} or {last}", before.join(", ")),
        [] => String::new(),
    })
}

/// `network.transport`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Transport(&'static str);

impl FromStr for Transport {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        one_of(text, &["tcp", "udp", "sctp"]).map(Self)
    }
}

/// `network.direction`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Direction(&'static str);

impl FromStr for Direction {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        one_of(text, &["ingress", "egress", "internal", "unknown"]).map(Self)
    }
}

/// `sluice.end_cause`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Cause(&'static str);

impl FromStr for Cause {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        one_of(text, &flow::EndCause::ALL.map(flow::EndCause::as_str)).map(Self)
    }
}

/// A policy as records name it, or the end of such a name after a slash.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Policy(String);

impl FromStr for Policy {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        let (whole, rule) = text.split_once('#').map_or((text, None), |(whole, rule)| (whole, Some(rule)));
        let parts: Vec<&str> = whole.split('/').collect();
        let is_rule = rule.is_none_or(|rule| rule.parse::<u32>().is_ok());
        if parts.len() > 3 || parts.contains(&"") || !is_rule {
            return Err("must be NAME, NAMESPACE/NAME or KIND/NAMESPACE/NAME, and #RULE at most".to_owned());
        }
        match (&*parts, rule) {
            ([kind, namespace, name], rule) => {
                let kind = one_of(kind, &KINDS).map_err(|must| format!("its kind {must}"))?;
                let rule = rule.map_or_else(String::new, |rule| format!("#{rule}"));
                Ok(Self(format!("{kind}/{namespace}/{name}{rule}")))
            }
            _ => Ok(Self(text.to_owned())),
        }
    }
}

impl Policy {
    /// `shop/web`, `web`, `web#0` and `NetworkPolicy/shop/web` all name `NetworkPolicy/shop/web#0`.
    fn is(&self, named: &str) -> bool {
        let named = if self.0.contains('#') { named } else { named.split('#').next().unwrap_or_default() };
        named == self.0 || named.strip_suffix(&*self.0).is_some_and(|before| before.ends_with('/'))
    }
}

/// Kinds of policies that have a namespace before their name, or stand alone before it.
const KINDS: [&str; 4] = [
    flow::PolicyKind::NetworkPolicy.as_str(),
    flow::PolicyKind::ClusterNetworkPolicy.as_str(),
    flow::PolicyKind::AdminNetworkPolicy.as_str(),
    flow::PolicyKind::BaselineAdminNetworkPolicy.as_str(),
];

/// What policy said.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum VerdictIs {
    Allow,
    Deny,
}

impl FromStr for VerdictIs {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        match text.to_lowercase().as_str() {
            "allow" | "allowed" => Ok(Self::Allow),
            "deny" | "denied" => Ok(Self::Deny),
            _ => Err("must be allow or deny".to_owned()),
        }
    }
}

impl VerdictIs {
    /// A record of losses tells of no verdict.
    fn is_of(self, record: &Glance<'_>) -> bool {
        record.action != Kind::Lost.action() && is_denied(record) == (self == Self::Deny)
    }
}

/// What a record tells.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Started,
    Updated,
    Ended,
    Denied,
    Failed,
    Lost,
}

impl Kind {
    const fn action(self) -> &'static str {
        match self {
            Self::Started => "connection-started",
            Self::Updated => "connection-updated",
            Self::Ended => "connection-ended",
            Self::Denied => "connection-denied",
            Self::Failed => "connection-failed",
            Self::Lost => "records-lost",
        }
    }
}

impl FromStr for Kind {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        let all = [Self::Started, Self::Updated, Self::Ended, Self::Denied, Self::Failed, Self::Lost];
        let is_it = |kind: &Self| kind.action() == text || kind.action().rsplit('-').next() == Some(text);
        all.into_iter()
            .find(is_it)
            .ok_or_else(|| "must be started, updated, ended, denied, failed or lost".to_owned())
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

/// `500ms`, `10s`, `5m`, `1h`, `2d`.
pub(crate) fn duration(text: &str) -> Result<Duration, String> {
    let fault = || format!("{text} is no duration such as 500ms, 10s, 5m or 1h");
    let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let number: u64 = text[..digits].parse().map_err(|_| fault())?;
    let millis = match &text[digits..] {
        "ms" => Some(number),
        "s" | "" => number.checked_mul(1_000),
        "m" => number.checked_mul(60_000),
        "h" => number.checked_mul(3_600_000),
        "d" => number.checked_mul(86_400_000),
        _ => None,
    };
    millis.map(Duration::from_millis).ok_or_else(fault)
}

/// `1000`, `64K`, `10M`, `2G`; a K is 1024.
pub(crate) fn bytes(text: &str) -> Result<u64, String> {
    let fault = || format!("{text} is no number of bytes such as 1000, 64K or 10M");
    let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let number: u64 = text[..digits].parse().map_err(|_| fault())?;
    let unit = match &text[digits..] {
        "" => 1,
        "K" | "k" => 1 << 10,
        "M" => 1 << 20,
        "G" => 1 << 30,
        _ => return Err(fault()),
    };
    number.checked_mul(unit).ok_or_else(fault)
}

/// Turns `--not --port 80` into `--port !80`, and `--not --port=80` into `--port=!80`, in the arguments of a command
/// that takes filters. What follows `--` is somebody else's.
pub(crate) fn with_not(arguments: impl IntoIterator<Item = OsString>) -> Vec<OsString> {
    let mut arguments = arguments.into_iter();
    let mut turned: Vec<OsString> = arguments.by_ref().take(2).collect();
    if !turned.get(1).is_some_and(|command| ["observe", "top", "graph"].iter().any(|one| command == one)) {
        return turned.into_iter().chain(arguments).collect();
    }
    while let Some(argument) = arguments.next() {
        if argument == "--" {
            turned.push(argument);
            turned.extend(arguments);
            return turned;
        }
        if argument != "--not" {
            turned.push(argument);
            continue;
        }
        match arguments.next() {
            Some(flag) if flag.to_str().is_some_and(can_be_turned_around) => {
                turned.extend(turned_around(&flag, &mut arguments));
            }
            // Said to be missing once the arguments are read.
            other => turned.extend(std::iter::once(argument).chain(other)),
        }
    }
    turned
}

/// True for the flags of filters that have a value which may be one that must not match.
fn can_be_turned_around(flag: &str) -> bool {
    const OTHERS: [&str; 3] = ["not", "min-duration", "min-bytes"];

    let flag = flag.split('=').next().unwrap_or_default();
    let filters = <Filters as clap::Args>::augment_args(clap::Command::new("filters"));
    filters.get_arguments().any(|argument| {
        let long = argument.get_long().filter(|long| !OTHERS.contains(long));
        let is_short = argument.get_short().is_some_and(|short| flag == format!("-{short}"));
        long.is_some_and(|long| is_short || flag.strip_prefix("--") == Some(long))
    })
}

fn turned_around(flag: &OsStr, arguments: &mut impl Iterator<Item = OsString>) -> Vec<OsString> {
    if let Some((flag, value)) = flag.to_str().and_then(|flag| flag.split_once('=')) {
        return vec![format!("{flag}=!{value}").into()];
    }
    let value = arguments.next().map(|value| {
        let mut not = OsString::from("!");
        not.push(value);
        not
    });
    std::iter::once(flag.to_owned()).chain(value).collect()
}

#[cfg(test)]
#[path = "filter_tests.rs"]
mod tests;
