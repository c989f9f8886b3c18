//! Where a collector is, how it is reached, and what is kept while it is away.

use std::collections::BTreeMap;
use std::path::PathBuf;

use http::{HeaderName, HeaderValue, Uri};
use serde::{Deserialize, Serialize};

/// Records as OTLP logs to a collector.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct OtlpSink {
    /// Where the collector listens, such as `https://collector.observability:4317`. Over HTTP an endpoint without
    /// a path gets `/v1/logs`.
    pub endpoint: String,
    /// `grpc` or `http`, which is protobuf over HTTP. Default `grpc`.
    pub protocol: OtlpProtocol,
    /// Compress what is sent. Default true.
    pub gzip: bool,
    /// Headers of every request.
    pub headers: Vec<OtlpHeader>,
    /// How an `https` endpoint is checked, and what it is shown.
    pub tls: OtlpTls,
    /// More attributes of the resource, such as `k8s.cluster.name`.
    pub resource: BTreeMap<String, String>,
    /// Records of one request at most. Default 512.
    pub batch_records: u64,
    /// How long records wait for others to be sent with, in milliseconds. Default 1000.
    pub batch_delay_ms: u64,
    /// How long the collector may take to answer, in milliseconds. Default 10000.
    pub timeout_ms: u64,
    /// Bytes that wait in memory, where there is no spool or its disk is full. Default 16 MiB.
    pub memory_bytes: usize,
    /// What is kept on disk until the collector has taken it.
    pub spool: SpoolConfig,
}

impl Default for OtlpSink {
    fn default() -> Self {
        Self {
            endpoint: String::new(),
            protocol: OtlpProtocol::default(),
            gzip: true,
            headers: Vec::new(),
            tls: OtlpTls::default(),
            resource: BTreeMap::new(),
            batch_records: 512,
            batch_delay_ms: 1_000,
            timeout_ms: 10_000,
            memory_bytes: 16 << 20,
            spool: SpoolConfig::default(),
        }
    }
}

/// How OTLP is spoken.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum OtlpProtocol {
    /// gRPC.
    #[default]
    Grpc,
    /// Protobuf in HTTP/1.1 POST requests.
    Http,
}

/// A header of every request. Exactly one of `value`, `file` and `env` has its value.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct OtlpHeader {
    /// Its name.
    pub name: String,
    /// Its value.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub value: Option<String>,
    /// A file that holds its value, read again for every request; white space at its ends is cut off.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub file: Option<PathBuf>,
    /// The environment variable that holds its value.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub env: Option<String>,
}

/// TLS towards a collector. The files are read again after every failure, so certificates may be renewed.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct OtlpTls {
    /// PEM of the authorities that may have signed its certificate. Default: those of this machine.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ca_file: Option<PathBuf>,
    /// PEM of the certificate that is shown to it. Default: none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cert_file: Option<PathBuf>,
    /// PEM of that certificate's key.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub key_file: Option<PathBuf>,
    /// The name in its certificate. Default: the endpoint's host.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub server_name: Option<String>,
}

/// What is kept on disk while a collector is away.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct SpoolConfig {
    /// The folder, of this sink alone; made when it is missing. Default: none, unless `--data` names one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub folder: Option<PathBuf>,
    /// Bytes of all its files; beyond, the oldest sixteenth is dropped. Default 256 MiB.
    pub max_bytes: u64,
}

impl Default for SpoolConfig {
    fn default() -> Self {
        Self { folder: None, max_bytes: 256 << 20 }
    }
}

impl OtlpSink {
    /// Every setting that cannot be used: its field, its value, what is wrong.
    pub(crate) fn problems(&self) -> Vec<(&'static str, String, &'static str)> {
        let (cert, key) = (&self.tls.cert_file, &self.tls.key_file);
        let checks = [
            (
                self.uri().is_none(),
                "otlp.endpoint",
                self.endpoint.clone(),
                "must be a URL such as https://collector.observability:4317",
            ),
            (
                !(1..=16_384).contains(&self.batch_records),
                "otlp.batch_records",
                self.batch_records.to_string(),
                "must be from 1 to 16384",
            ),
            (
                self.batch_delay_ms > 60_000,
                "otlp.batch_delay_ms",
                self.batch_delay_ms.to_string(),
                "must be at most 60000",
            ),
            (
                !(1..=300_000).contains(&self.timeout_ms),
                "otlp.timeout_ms",
                self.timeout_ms.to_string(),
                "must be from 1 to 300000",
            ),
            (
                self.memory_bytes < 1 << 20,
                "otlp.memory_bytes",
                self.memory_bytes.to_string(),
                "must be at least 1048576",
            ),
            (
                self.spool.max_bytes < 1 << 20,
                "otlp.spool.max_bytes",
                self.spool.max_bytes.to_string(),
                "must be at least 1048576",
            ),
            (
                cert.is_some() != key.is_some(),
                "otlp.tls",
                String::new(),
                "must have both of cert_file and key_file, or neither",
            ),
        ];
        let own = checks
            .into_iter()
            .filter(|(wrong, ..)| *wrong)
            .map(|(_, field, value, text)| (field, value, text));
        let headers = self
            .headers
            .iter()
            .filter_map(|header| Some(("otlp.headers", header.name.clone(), header.problem()?)));
        own.chain(headers).collect()
    }

    /// The endpoint, when it is one.
    pub(super) fn uri(&self) -> Option<Uri> {
        let uri: Uri = self.endpoint.parse().ok()?;
        let is_known = matches!(uri.scheme_str(), Some("http" | "https"));
        (is_known && uri.host().is_some_and(|host| !host.is_empty())).then_some(uri)
    }
}

impl OtlpHeader {
    fn problem(&self) -> Option<&'static str> {
        let sources = [self.value.is_some(), self.file.is_some(), self.env.is_some()];
        if HeaderName::try_from(&self.name).is_err() || self.name.ends_with("-bin") {
            return Some("must be the name of an HTTP header that does not end in -bin");
        }
        if sources.iter().filter(|is_there| **is_there).count() != 1 {
            return Some("must have exactly one of value, file and env");
        }
        let is_text = |value: &String| HeaderValue::try_from(value).is_ok_and(|value| value.to_str().is_ok());
        if self.value.as_ref().is_some_and(|value| !is_text(value)) {
            return Some("must have a value of visible ASCII characters");
        }
        None
    }
}
