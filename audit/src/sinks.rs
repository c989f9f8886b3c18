//! Sinks beside the one of `--records`: where each goes, what it wants, and what happens when it is slow.

use std::path::PathBuf;
use std::time::Duration;

use flow::EndCause;
use serde::{Deserialize, Serialize};

use crate::ConfigProblem;
use crate::batch::{Entry, Told};
use crate::lane::{Deliver, Wanted};
use crate::otlp::OtlpSink;
use crate::output::{Output, Sink, SinkError};
use crate::record::{Action, Record};
use crate::recorder::Overflow;
use crate::rotation::{RotatingFile, Rotation};
use crate::summary::Summary;
use crate::syslog::{Syslog, SyslogSink};

/// One more place for records. Exactly one of `file`, `stdout`, `syslog` and `otlp` says what it is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct SinkConfig {
    /// Its name in metrics and logs: lower case letters, digits and dashes. No two sinks share one.
    pub name: String,
    /// A file.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub file: Option<FileSink>,
    /// Standard output.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub stdout: Option<StdoutSink>,
    /// The host's log.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub syslog: Option<SyslogSink>,
    /// A collector of OpenTelemetry logs.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub otlp: Option<OtlpSink>,
    /// The records it gets. Default: all.
    pub only: Only,
    /// One in so many connections, by its id, so that all records of a connection are there or none. Denials,
    /// failures, revocations and lost records are never left out. Default 1, which is every connection.
    pub sample_one_in: u64,
    /// Seconds of which records are added up, to one line for each pair of workloads and port; 0 writes the
    /// records themselves. Default 0.
    pub aggregate_s: u64,
    /// What happens when it is too slow. Default `drop`.
    pub overflow: Overflow,
}

impl Default for SinkConfig {
    fn default() -> Self {
        Self {
            name: String::new(),
            file: None,
            stdout: None,
            syslog: None,
            otlp: None,
            only: Only::default(),
            sample_one_in: 1,
            aggregate_s: 0,
            overflow: Overflow::Drop,
        }
    }
}

/// Records to a file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FileSink {
    /// The file; its folder must exist, and this process must be its only writer.
    pub path: PathBuf,
    /// When it is put aside.
    #[serde(default)]
    pub rotate: Rotation,
}

/// Records to standard output.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct StdoutSink {}

/// What a sink wants. Every list that is not empty must match.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Only {
    /// What happened: `started`, `updated`, `ended`, `denied`, `failed`.
    pub actions: Vec<Action>,
    /// Namespaces of the pod at either end.
    pub namespaces: Vec<String>,
    /// Ports of the server.
    pub ports: Vec<u16>,
}

impl Only {
    fn wants(&self, record: &Record) -> bool {
        let of_pod = |endpoint: &flow::Endpoint| {
            endpoint.pod().is_some_and(|pod| self.namespaces.iter().any(|name| **name == *pod.namespace))
        };
        (self.actions.is_empty() || self.actions.contains(&record.action))
            && (self.namespaces.is_empty() || of_pod(&record.source) || of_pod(&record.destination))
            && (self.ports.is_empty() || self.ports.contains(&record.tuple.destination.0.port()))
    }
}

impl SinkConfig {
    /// Every setting that cannot be used, told with the place of the sink in the list.
    pub(crate) fn validate(&self, index: usize) -> Vec<ConfigProblem> {
        let is_name = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
        let kinds = [self.file.is_some(), self.stdout.is_some(), self.syslog.is_some(), self.otlp.is_some()];
        let facility = self.syslog.as_ref().map_or(0, |syslog| syslog.facility);
        let checks = [
            (
                self.name.is_empty() || self.name.len() > 32 || !self.name.bytes().all(is_name),
                "name",
                self.name.clone(),
                "must be 1 to 32 lower case letters, digits and dashes",
            ),
            (
                kinds.iter().filter(|is_there| **is_there).count() != 1,
                "name",
                self.name.clone(),
                "must have exactly one of file, stdout, syslog and otlp",
            ),
            (
                self.aggregate_s > 86_400
                    || (self.aggregate_s > 0 && (self.sample_one_in > 1 || self.otlp.is_some())),
                "aggregate_s",
                self.aggregate_s.to_string(),
                "must be at most 86400, and 0 for otlp and where sample_one_in leaves records out",
            ),
            (self.sample_one_in == 0, "sample_one_in", self.sample_one_in.to_string(), "must be above 0"),
            (facility > 23, "syslog.facility", facility.to_string(), "must be from 0 to 23"),
        ];
        let problem = |(field, value, problem): (&str, String, &'static str)| ConfigProblem {
            field: format!("sinks[{index}].{field}").into(),
            value,
            problem,
        };
        let otlp = self.otlp.iter().flat_map(OtlpSink::problems).collect::<Vec<_>>();
        let own = checks.into_iter().filter(|(wrong, ..)| *wrong);
        own.map(|(_, field, value, text)| (field, value, text)).chain(otlp).map(problem).collect()
    }

    /// Opens what writes to this machine. `node` is this node's name, for lines that are made on the way.
    pub(crate) fn open(&self, node: &str) -> Result<Box<dyn Deliver>, SinkError> {
        let place = self.open_place()?;
        if self.aggregate_s == 0 {
            return Ok(place);
        }
        let every = Duration::from_secs(self.aggregate_s);
        Ok(Box::new(Summary::new(place, &self.name, node, every)))
    }

    fn open_place(&self) -> Result<Box<dyn Deliver>, SinkError> {
        if let Some(FileSink { path, rotate }) = &self.file {
            return open_file(path.clone(), rotate);
        }
        if let Some(syslog) = &self.syslog {
            return Ok(Box::new(Syslog::new(syslog.clone())));
        }
        Ok(Box::new(Output::open(Sink::Stdout)?))
    }

    /// `None` when it wants everything.
    pub(crate) fn wanted(&self) -> Option<Wanted> {
        if self.only == Only::default() && self.sample_one_in == 1 {
            return None;
        }
        let (only, one_in) = (self.only.clone(), self.sample_one_in);
        Some(Box::new(move |entry: &Entry| match &entry.told {
            Told::Lost(_) | Told::Summary => true,
            Told::Record(record) => {
                only.wants(record) && (record.id.is_in_sample(one_in) || is_never_left_out(record))
            }
        }))
    }
}

/// What sampling must not hide.
fn is_never_left_out(record: &Record) -> bool {
    matches!(record.action, Action::Denied | Action::Failed) || record.cause == Some(EndCause::PolicyRevoked)
}

/// A file that is put aside now and then, or never.
pub(crate) fn open_file(path: PathBuf, rotation: &Rotation) -> Result<Box<dyn Deliver>, SinkError> {
    if rotation.max_bytes == 0 && rotation.every_s == 0 {
        return Ok(Box::new(Output::open(Sink::File(path))?));
    }
    Ok(Box::new(RotatingFile::open(path, rotation.clone())?))
}
