//! One YAML file to the settings of every part, checked as a whole before anything starts.
//!
//! Every key has a default, an unknown key is an error, and an empty file is the default configuration. Each
//! section belongs to the crate that uses it; only the file itself is read here.
//!
//! Values that cannot be used are told all at once. A fault of form (no YAML, a key that does not exist, a value
//! of another type) ends the reading, so it is told alone.

use std::borrow::Cow;
use std::fmt;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use serde_saphyr::{MessageFormatter, RenderOptions, SnippetMode, UserMessageFormatter};
use tracing_subscriber::EnvFilter;

/// A larger file is no configuration.
const MAX_FILE_BYTES: u64 = 1 << 20;

/// The whole configuration file.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct Config {
    /// How traffic is intercepted.
    pub(crate) redirect: redirect::RedirectConfig,
    /// How connections are held, connected and carried.
    pub(crate) proxy: proxy::ProxyConfig,
    /// How connection records are kept.
    pub(crate) records: audit::RecorderConfig,
    /// Whose connections are intercepted besides those of isolated pods.
    pub(crate) interception: policy_cache::Interception,
    /// What is counted beside the node's sums.
    pub(crate) metrics: audit::MetricsConfig,
    /// The API that Hubble's tools speak.
    pub(crate) hubble: flow_api::HubbleConfig,
    /// How policies are read where the API leaves a choice.
    pub(crate) policy: policy_cache::PolicyConfig,
    /// How the Kubernetes API is followed.
    pub(crate) api: policy_cache::ApiConfig,
    /// How the process ends.
    pub(crate) shutdown: ShutdownConfig,
    /// What the process says on standard error.
    pub(crate) log: LogConfig,
}

/// How the process ends after SIGTERM. Together the limits stay under Kubernetes' default grace period of 30
/// seconds.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct ShutdownConfig {
    /// How long live connections may go on, in milliseconds; those left are then reset. Default 20000.
    pub(crate) drain_timeout_ms: u64,
    /// How long queued records may take to be written after that, in milliseconds. Default 5000.
    pub(crate) records_timeout_ms: u64,
}

impl Default for ShutdownConfig {
    fn default() -> Self {
        Self { drain_timeout_ms: 20_000, records_timeout_ms: 5_000 }
    }
}

/// What the process says on standard error. Connection records are not part of it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct LogConfig {
    /// Directives of tracing-subscriber's `EnvFilter`, such as `info` or `info,proxy=debug`. Default `info`.
    pub(crate) filter: String,
    /// `text` or `json`. Default `text`.
    pub(crate) format: LogFormat,
}

impl Default for LogConfig {
    fn default() -> Self {
        Self { filter: "info".to_owned(), format: LogFormat::default() }
    }
}

/// The form of a log line.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum LogFormat {
    /// For people.
    #[default]
    Text,
    /// One JSON object a line.
    Json,
}

/// The configuration cannot be used.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ConfigError {
    /// The file cannot be read.
    #[error("read configuration {}: {cause}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        cause: policy_cache::ReadError,
    },
    /// The file is no YAML, or has keys or values that do not belong there.
    #[error("{}:{line}:{column}: {message}, in `{text}`", path.display())]
    Parse {
        /// The file.
        path: PathBuf,
        /// The line, from 1; 0 when the error belongs to no place.
        line: u64,
        /// The column, from 1.
        column: u64,
        /// What the parser did not like.
        message: String,
        /// The line itself.
        text: String,
    },
    /// Values that cannot be used, all of them.
    #[error("{}", lines(path, problems))]
    Invalid {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        problems: Vec<Problem>,
    },
}

/// One value that cannot be used.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Problem {
    /// Its path, such as `redirect.mark_mask`.
    pub(crate) field: String,
    /// The value, as written.
    pub(crate) value: String,
    /// What is wrong with it.
    pub(crate) problem: String,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}: {}", self.field, self.value, self.problem)
    }
}

fn lines(path: &Path, problems: &[Problem]) -> String {
    let lines: Vec<String> =
        problems.iter().map(|problem| format!("{}: {problem}", path.display())).collect();
    lines.join("\n")
}

impl Config {
    /// Reads and checks the file at `path`.
    pub(crate) fn load(path: &Path) -> Result<Self, ConfigError> {
        let text = policy_cache::read_text(path, MAX_FILE_BYTES)
            .map_err(|cause| ConfigError::Read { path: path.to_owned(), cause })?;
        Self::checked(path, &text)
    }

    /// Reads and checks a text; `path` names it.
    pub(crate) fn checked(path: &Path, text: &str) -> Result<Self, ConfigError> {
        let sections: Option<Sections> =
            serde_saphyr::from_str(text).map_err(|error| parse_error(path, text, &error))?;
        let config = Self::from(sections.unwrap_or_default());
        let problems = config.validate();
        if problems.is_empty() {
            Ok(config)
        } else {
            Err(ConfigError::Invalid { path: path.to_owned(), problems })
        }
    }

    /// Every value that cannot be used; empty when all can.
    pub(crate) fn validate(&self) -> Vec<Problem> {
        let redirect = self.redirect.validate().into_iter();
        let proxy = self.proxy.validate().into_iter();
        let records = self.records.validate().into_iter();
        let interception = self.interception.validate().into_iter();
        let metrics = self.metrics.validate().into_iter();
        let hubble = self.hubble.validate().into_iter();
        let api = self.api.validate().into_iter();
        redirect
            .map(|found| problem("redirect", found.field, found.value, found.problem))
            .chain(proxy.map(|found| problem("proxy", found.field, found.value, found.problem)))
            .chain(records.map(|found| problem("records", &found.field, found.value, found.problem)))
            .chain(
                interception.map(|found| problem("interception", &found.field, found.value, found.problem)),
            )
            .chain(metrics.map(|found| problem("metrics", &found.field, found.value, found.problem)))
            .chain(hubble.map(|found| problem("hubble", found.field, found.value, found.problem)))
            .chain(api.map(|found| problem("api", found.field, found.value, found.problem)))
            .chain(self.shutdown.validate())
            .chain(self.log.validate())
            .collect()
    }
}

/// The file as it may be written: a section without any key under it is the default section.
#[derive(Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct Sections {
    redirect: Option<redirect::RedirectConfig>,
    proxy: Option<proxy::ProxyConfig>,
    records: Option<audit::RecorderConfig>,
    interception: Option<policy_cache::Interception>,
    metrics: Option<audit::MetricsConfig>,
    hubble: Option<flow_api::HubbleConfig>,
    policy: Option<policy_cache::PolicyConfig>,
    api: Option<policy_cache::ApiConfig>,
    shutdown: Option<ShutdownConfig>,
    log: Option<LogConfig>,
}

impl From<Sections> for Config {
    fn from(sections: Sections) -> Self {
        Self {
            redirect: sections.redirect.unwrap_or_default(),
            proxy: sections.proxy.unwrap_or_default(),
            records: sections.records.unwrap_or_default(),
            interception: sections.interception.unwrap_or_default(),
            metrics: sections.metrics.unwrap_or_default(),
            hubble: sections.hubble.unwrap_or_default(),
            policy: sections.policy.unwrap_or_default(),
            api: sections.api.unwrap_or_default(),
            shutdown: sections.shutdown.unwrap_or_default(),
            log: sections.log.unwrap_or_default(),
        }
    }
}

impl ShutdownConfig {
    fn validate(&self) -> Vec<Problem> {
        const DAY_MS: u64 = 24 * 60 * 60 * 1_000;

        [
            ("drain_timeout_ms", self.drain_timeout_ms, 0..=DAY_MS, "must be at most 86400000"),
            ("records_timeout_ms", self.records_timeout_ms, 1..=DAY_MS, "must be from 1 to 86400000"),
        ]
        .into_iter()
        .filter(|(_, value, allowed, _)| !allowed.contains(value))
        .map(|(field, value, _, text)| problem("shutdown", field, value, text))
        .collect()
    }
}

impl LogConfig {
    fn validate(&self) -> Option<Problem> {
        let error = EnvFilter::try_new(&self.filter).err()?;
        Some(problem("log", "filter", &self.filter, error))
    }
}

fn problem(section: &str, field: &str, value: impl ToString, problem: impl ToString) -> Problem {
    Problem { field: format!("{section}.{field}"), value: value.to_string(), problem: problem.to_string() }
}

/// The parser's messages, without Rust's names for types.
struct PlainWords;

impl MessageFormatter for PlainWords {
    fn format_message<'e>(&self, error: &'e serde_saphyr::Error) -> Cow<'e, str> {
        match error {
            serde_saphyr::Error::InvalidScalar { ty, .. } => must_be(ty),
            serde_saphyr::Error::Unexpected { expected: "mapping start", .. } => {
                "must be a mapping of keys to values".into()
            }
            _ => UserMessageFormatter.format_message(error),
        }
    }
}

fn must_be(type_name: &str) -> Cow<'static, str> {
    let largest = match type_name {
        "u8" => u64::from(u8::MAX),
        "u16" => u64::from(u16::MAX),
        "u32" => u64::from(u32::MAX),
        "u64" => u64::MAX,
        "boolean" => return "must be true or false".into(),
        _ => return format!("must be of the type {type_name}").into(),
    };
    format!("must be a whole number from 0 to {largest}").into()
}

/// Drops the place from the parser's own words: it stands in front, as compilers write it.
fn parse_error(path: &Path, file: &str, error: &serde_saphyr::Error) -> ConfigError {
    let (line, column) = error.location().map_or((0, 0), |place| (place.line(), place.column()));
    let mut options = RenderOptions::new(&PlainWords);
    options.snippets = SnippetMode::Off;
    let message = error.render_with_options(options);
    let place = format!(" at line {line}, column {column}");
    let text = line.checked_sub(1).and_then(|before| file.lines().nth(usize::try_from(before).ok()?));
    ConfigError::Parse {
        path: path.to_owned(),
        line,
        column,
        message: message.replace(&place, ""),
        text: text.unwrap_or_default().trim().to_owned(),
    }
}

#[cfg(test)]
#[path = "config_tests.rs"]
mod tests;
