//! Kubernetes objects → a compiled [`Snapshot`] → [`Snapshot::decide`].
//!
//! Manifests are read and validated as a whole ([`load`]), compiled once ([`compile()`]) and published through
//! a [`SnapshotStore`]. A decision reads one snapshot and nothing else. Only this crate knows Kubernetes
//! objects; nothing here touches a socket or the kernel's rules.

mod affected;
mod cluster;
mod compile;
mod decide;
mod dialled;
mod endpoints;
mod explain;
mod lint;
mod manifest;
mod objects;
mod options;
mod probe;
mod scope;
mod shared;
mod snapshot;
mod source;
mod store;
mod watch;

pub use affected::{Affected, Difference};
pub use cluster::Cluster;
pub use compile::compile;
pub use explain::{Change, ExplainError, Explanation, Operation, Question, explain};
pub use lint::{LintReport, lint, lint_texts};
pub use manifest::files::{ReadError, open_regular, read_text};
pub use manifest::{LoadError, Problem, Reading, load, parse, read_object};
pub use objects::{Counts, Event, Kind, Object, ObjectKey, Objects};
pub use options::{Options, OwnNodeEgress, PolicyConfig};
pub use probe::{Answer, Prober, Tally, answer_stream};
pub use scope::{Expression, Interception, NamespaceSelector, ScopeProblem};
pub use snapshot::{IdentifiedFlow, LocalPods, Snapshot};
pub use source::{ManifestSource, SourceStatus, WatchHandle};
pub use store::SnapshotStore;
pub use watch::{
    Access, ApiConfig, ApiConfigProblem, ApiError, ApiHandle, ApiSource, ApiStatus, KindStatus,
    KubeconfigProblem,
};
