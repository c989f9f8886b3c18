//! What a person writes behind a filter's flag, made a value that records are compared with. What no record can have is
//! refused here.

use std::str::FromStr;
use std::time::Duration;

use audit::{Action, Glance, IpBlock, PodNamed};

use super::is_denied;

/// A value, and whether it must not match.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Term<T> {
    pub(super) value: T,
    pub(super) is_not: bool,
    /// As it was written.
    pub(super) text: String,
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
pub(crate) struct Text(pub(super) String);

impl FromStr for Text {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        Ok(Self(text.to_owned()))
    }
}

/// A name, and what stands before its slash.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Named {
    pub(super) before: Option<String>,
    pub(super) name: String,
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
    pub(super) fn as_pod(&self) -> PodNamed {
        PodNamed { namespace: self.before.clone(), prefix: self.name.clone() }
    }
}

/// An address or a block of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Block(pub(super) IpBlock);

impl FromStr for Block {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        text.parse().map(Self).map_err(|()| format!("{text} is no IP address and no CIDR such as 10.0.0.0/8"))
    }
}

/// A label's key, and its value where one was asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Label {
    pub(super) key: String,
    pub(super) value: Option<String>,
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
pub(crate) struct Transport(pub(super) &'static str);

impl FromStr for Transport {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        one_of(text, &["tcp", "udp", "sctp"]).map(Self)
    }
}

/// `network.direction`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Direction(pub(super) &'static str);

impl FromStr for Direction {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        one_of(text, &["ingress", "egress", "internal", "unknown"]).map(Self)
    }
}

/// `sluice.end_cause`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Cause(pub(super) &'static str);

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
    /// What stands in the whole name of every policy that it names.
    pub(super) fn text(&self) -> &str {
        &self.0
    }

    /// `shop/web`, `web`, `web#0` and `NetworkPolicy/shop/web` all name `NetworkPolicy/shop/web#0`.
    pub(super) fn is(&self, named: &str) -> bool {
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
    pub(super) fn is_of(self, record: &Glance<'_>) -> bool {
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
    pub(super) const fn action(self) -> &'static str {
        match self {
            Self::Started => Action::Started.as_str(),
            Self::Updated => Action::Updated.as_str(),
            Self::Ended => Action::Ended.as_str(),
            Self::Denied => Action::Denied.as_str(),
            Self::Failed => Action::Failed.as_str(),
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
