//! The connection record and where it goes.
//!
//! The datapath describes what happened to a connection as a [`Record`] and hands it to a [`Recorder`],
//! which never waits. A [`Writer`] on a thread of its own turns records into lines of JSON with the names of
//! the Elastic Common Schema, and appends them to a file. Every record has a number; a record that could not
//! be kept leaves a gap in the numbers and is counted in [`Metrics`].
//!
//! This crate decides nothing and knows no policy: it writes what it is told.

mod batch;
mod community;
mod complaint;
mod glance;
mod json;
mod lane;
mod line;
mod metric_labels;
mod metrics;
mod otlp;
mod output;
mod pairs;
mod parts;
mod pressure;
mod queue;
mod record;
mod recorder;
mod rotation;
mod sinks;
#[cfg(feature = "stages")]
pub mod stages;
mod store;
mod summary;
mod summary_line;
mod syslog;
mod tap;
mod writer;

pub use glance::{End, Glance};
pub use line::{ECS_VERSION, LOST_ACTION, SCHEMA};
pub use metric_labels::{ByteDirection, DeniedSide, GateDrop, Label, PerLabel};
pub use metrics::{Age, Metrics};
pub use otlp::{OtlpHeader, OtlpProtocol, OtlpSink, OtlpTls, SpoolConfig};
pub use output::{Sink, SinkError};
pub use pairs::{MetricsConfig, Named};
pub use record::{Action, ConnectionId, LegInfo, Legs, Record, Timing, Tls, Traffic};
pub use recorder::{ConfigProblem, Overflow, Recorder, RecorderConfig, ServedTo};
pub use rotation::Rotation;
pub use sinks::{FileSink, Only, SinkConfig, StdoutSink};
pub use store::{
    Hints, IpBlock, MOST_NAMED, PodNamed, ReadStoreError, StoreConfig, StoreQuery, read_namespaces,
    read_store, read_store_where, scan_store, store_size,
};
pub use syslog::SyslogSink;
pub use tap::Listener;
pub use writer::{CloseReport, Writer};

/// The JSON Schema that every line of the records keeps to.
pub const RECORD_SCHEMA: &str = include_str!("../schema/record.schema.json");

#[cfg(test)]
mod any_record;
#[cfg(test)]
mod disk_tests;
#[cfg(test)]
mod line_oracle;
#[cfg(test)]
mod schema_tests;
