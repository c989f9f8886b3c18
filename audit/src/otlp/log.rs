//! A line of the records to a log record of OpenTelemetry.
//!
//! It is made from the line and not from what the line was made of, so that every field is there under the one name
//! that `FIELDS.md` gives it, and no field can be forgotten.

use opentelemetry_proto::tonic::common::v1::any_value::Value as Any;
use opentelemetry_proto::tonic::common::v1::{AnyValue, ArrayValue, InstrumentationScope, KeyValue};
use opentelemetry_proto::tonic::logs::v1::{LogRecord, SeverityNumber};
use opentelemetry_proto::tonic::resource::v1::Resource;
use serde_json::Value;

use crate::batch::Told;
use crate::line::SCHEMA;
use crate::record::Action;

/// Fields whose name is another one here. Everything else keeps its own.
const NAMES: [(&str, &str); 14] = [
    ("source.ip", "source.address"),
    ("source.k8s.namespace", "source.k8s.namespace.name"),
    ("source.k8s.pod", "source.k8s.pod.name"),
    ("source.k8s.uid", "source.k8s.pod.uid"),
    ("source.k8s.node", "source.k8s.node.name"),
    ("destination.ip", "destination.address"),
    ("destination.k8s.namespace", "destination.k8s.namespace.name"),
    ("destination.k8s.pod", "destination.k8s.pod.name"),
    ("destination.k8s.uid", "destination.k8s.pod.uid"),
    ("destination.k8s.node", "destination.k8s.node.name"),
    ("destination.service.namespace", "destination.k8s.service.namespace"),
    ("destination.service.name", "destination.k8s.service.name"),
    ("destination.service.ip", "destination.k8s.service.address"),
    ("destination.service.port", "destination.k8s.service.port"),
];

/// Labels: each is an attribute whose name ends in the label's key.
const LABELS: [(&str, &str); 2] = [
    ("source.k8s.labels", "source.k8s.pod.label."),
    ("destination.k8s.labels", "destination.k8s.pod.label."),
];

/// Fields that are told elsewhere in a log record, or not at all.
const ELSEWHERE: [&str; 6] =
    ["@timestamp", "ecs.version", "event.action", "observer.name", "observer.product", "sluice.schema"];

/// A log record, or `None` when `line` is no record. `observed` is in nanoseconds since 1970.
pub(crate) fn log_record(line: &[u8], told: &Told, observed: u64) -> Option<LogRecord> {
    let line: Value = serde_json::from_slice(line).ok()?;
    let time: jiff::Timestamp = line["@timestamp"].as_str()?.parse().ok()?;
    let mut attributes = Vec::with_capacity(48);
    flatten(&line, &mut String::new(), &mut attributes);
    let (severity, text) = severity(told);
    Some(LogRecord {
        time_unix_nano: u64::try_from(time.as_nanosecond()).unwrap_or(0),
        observed_time_unix_nano: observed,
        severity_number: severity.into(),
        severity_text: text.to_owned(),
        body: Some(string(summary(&line))),
        attributes,
        event_name: line["event"]["action"].as_str().unwrap_or_default().to_owned(),
        ..LogRecord::default()
    })
}

/// Where the records come from: this node, this agent, and what the configuration adds.
pub(crate) fn resource<'a>(
    node: &str,
    instance: &str,
    more: impl Iterator<Item = (&'a String, &'a String)>,
) -> Resource {
    let own = [
        ("service.name", "sluice"),
        ("service.version", env!("CARGO_PKG_VERSION")),
        ("service.instance.id", instance),
        ("k8s.node.name", node),
    ];
    let own = own.into_iter().map(|(key, value)| pair(key.to_owned(), string(value.to_owned())));
    let more = more.map(|(key, value)| pair(key.clone(), string(value.clone())));
    Resource { attributes: own.chain(more).collect(), ..Resource::default() }
}

/// Whose fields they are, and in which version.
pub(crate) fn scope() -> InstrumentationScope {
    InstrumentationScope {
        name: "sluice.records".to_owned(),
        version: SCHEMA.to_string(),
        ..InstrumentationScope::default()
    }
}

/// As the log data model numbers them; syslog's notice is its INFO2.
fn severity(told: &Told) -> (SeverityNumber, &'static str) {
    match told {
        Told::Lost(_) => (SeverityNumber::Error, "ERROR"),
        Told::Summary => (SeverityNumber::Info, "INFO"),
        Told::Record(record) => match record.action {
            Action::Failed => (SeverityNumber::Warn, "WARN"),
            Action::Denied => (SeverityNumber::Info2, "INFO2"),
            Action::Started | Action::Updated | Action::Ended => (SeverityNumber::Info, "INFO"),
        },
    }
}

fn flatten(value: &Value, path: &mut String, into: &mut Vec<KeyValue>) {
    if ELSEWHERE.contains(&path.as_str()) {
        return;
    }
    if let Some((_, prefix)) = LABELS.iter().find(|(labels, _)| labels == path) {
        let labels = value.as_object().into_iter().flatten();
        into.extend(labels.filter_map(|(key, value)| Some(pair(format!("{prefix}{key}"), any(value)?))));
        return;
    }
    let Value::Object(fields) = value else {
        let name = NAMES.iter().find(|(field, _)| field == path).map_or(path.as_str(), |(_, name)| name);
        into.extend(any(value).map(|value| pair(name.to_owned(), value)));
        return;
    };
    for (key, value) in fields {
        let before = path.len();
        if before > 0 {
            path.push('.');
        }
        path.push_str(key);
        flatten(value, path, into);
        path.truncate(before);
    }
}

fn any(value: &Value) -> Option<AnyValue> {
    let value = match value {
        Value::Null => return None,
        Value::Bool(value) => Any::BoolValue(*value),
        // There are no unsigned numbers; what is beyond is the largest.
        Value::Number(number) => match (number.as_i64(), number.as_f64()) {
            (Some(number), _) => Any::IntValue(number),
            (None, _) if number.is_u64() => Any::IntValue(i64::MAX),
            (None, number) => Any::DoubleValue(number?),
        },
        Value::String(text) => Any::StringValue(text.clone()),
        Value::Array(values) => {
            Any::ArrayValue(ArrayValue { values: values.iter().filter_map(any).collect() })
        }
        // No list of the records holds objects.
        Value::Object(_) => return None,
    };
    Some(AnyValue { value: Some(value) })
}

fn string(text: String) -> AnyValue {
    AnyValue { value: Some(Any::StringValue(text)) }
}

fn pair(key: String, value: AnyValue) -> KeyValue {
    KeyValue { key, value: Some(value), ..KeyValue::default() }
}

/// One sentence for people.
fn summary(line: &Value) -> String {
    let action = line["event"]["action"].as_str().unwrap_or_default();
    if let Some(count) = line["sluice"]["lost"]["count"].as_u64() {
        return format!("{action}: {count}");
    }
    let (from, to) = (end(&line["source"]), end(&line["destination"]));
    let transport = line["network"]["transport"].as_str().unwrap_or("-");
    let mut text = format!("{action} {from} -> {to} {}/{transport}", line["destination"]["port"]);
    let why = line["event"]["reason"].as_str().or_else(|| line["sluice"]["end_cause"].as_str());
    if let Some(why) = why {
        text.push_str(": ");
        text.push_str(why);
    }
    text
}

fn end(side: &Value) -> String {
    let k8s = &side["k8s"];
    match (k8s["namespace"].as_str(), k8s["pod"].as_str(), k8s["node"].as_str()) {
        (Some(namespace), Some(pod), _) => format!("{namespace}/{pod}"),
        (_, _, Some(node)) => format!("node {node}"),
        _ => side["ip"].as_str().unwrap_or("-").to_owned(),
    }
}

#[cfg(test)]
#[path = "log_tests.rs"]
mod tests;
