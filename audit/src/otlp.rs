//! Records as OpenTelemetry logs to a collector, with nothing lost while it is away, within a bound.
//!
//! The lane's thread turns lines into log records and puts them into a backlog, on disk where there is a spool; a
//! thread of its own sends from there and tries again. So a collector that is slow or gone costs disk and nothing
//! else. A record counts as written when the collector has taken it.

use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use opentelemetry_proto::tonic::logs::v1::{LogRecord, ScopeLogs};
use prost::Message;

mod backlog;
mod client;
mod config;
mod log;
mod sender;
mod spool;

pub use config::{OtlpHeader, OtlpProtocol, OtlpSink, OtlpTls, SpoolConfig};

use crate::batch::{Batch, Told};
use crate::complaint::Complaint;
use crate::lane::{Deliver, Undelivered};
use crate::line;
use crate::metrics::Delivery;
use crate::output::SinkError;
use crate::record::ConnectionId;
use crate::recorder::Overflow;
use backlog::{Backlog, Refused};
use sender::{Sender, Shared};
use spool::{Frame, Spool};

/// Records of one frame at most, which is what requests are put together from.
const FRAME_RECORDS: usize = 128;
/// How long the end of the process is held up for what waits. Within `shutdown.records_timeout_ms`.
const FAREWELL: Duration = Duration::from_secs(3);

/// The near end of a collector.
pub(crate) struct Otlp {
    shared: Arc<Shared>,
    node: String,
    sender: Option<std::thread::JoinHandle<()>>,
    disk: Complaint,
}

impl Otlp {
    /// Opens the spool and starts the thread that sends. A collector that is not there yet is no error.
    pub(crate) fn open(
        name: &str,
        config: &OtlpSink,
        overflow: Overflow,
        node: &str,
        counts: Delivery,
    ) -> Result<Self, SinkError> {
        let instance = ConnectionId::process();
        let resource = log::resource(node, &instance, config.resource.iter()).encode_to_vec();
        let spool = match &config.spool.folder {
            Some(folder) => Some(
                Spool::open(folder, config.spool.max_bytes, resource.clone())
                    .map_err(|cause| SinkError::Spool { folder: folder.clone(), cause })?,
            ),
            None => None,
        };
        let backlog = Backlog::new(spool, resource, config.memory_bytes, overflow == Overflow::BlockNew);
        let shared = Arc::new(Shared::new(name, backlog, counts));
        let left = shared.with(|backlog| backlog.records());
        if left > 0 {
            tracing::info!(sink = name, records = left, "records of an earlier process wait in the spool");
        }
        let sender = Sender::new(config.clone(), Arc::clone(&shared));
        let runtime =
            tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(SinkError::Thread)?;
        let sender = std::thread::Builder::new()
            .name(format!("otlp-{name}"))
            .spawn(move || runtime.block_on(sender.run()))
            .map_err(SinkError::Thread)?;
        Ok(Self { shared, node: node.to_owned(), sender: Some(sender), disk: Complaint::default() })
    }

    fn keep(&mut self, frame: &Frame) -> Result<(), SinkError> {
        match self.shared.with(|backlog| backlog.keep(frame)) {
            Ok(None) => {
                if self.disk.settled() {
                    tracing::info!(sink = self.shared.name, "the spool is written again");
                }
            }
            Ok(Some(error)) => {
                if let Some(frames) = self.disk.due(1) {
                    let sink = &self.shared.name;
                    tracing::error!(sink, %error, frames, "the spool is not written; records wait in memory");
                }
            }
            Err(Refused::Full) => return Err(SinkError::SpoolFull { sink: self.shared.name.clone() }),
            Err(Refused::Disk(cause)) => {
                return Err(SinkError::SpoolWrite { sink: self.shared.name.clone(), cause });
            }
        }
        self.shared.changed.notify_one();
        Ok(())
    }

    /// Tells what was lost on the way.
    fn tell_gap(&mut self) {
        let Some(gap) = self.shared.with(|backlog| backlog.take_gap()) else { return };
        let mut line = Vec::new();
        line::append_lost(&mut line, &self.node, &gap);
        let mut body = Vec::new();
        if let Some(record) = log::log_record(&line, &Told::Lost(gap), now()) {
            append(&mut body, record);
        }
        // When even this has no room, the counters have told it.
        let _ = self.keep(&Frame { body, records: 0, first: gap.last, last: gap.last });
    }
}

impl Deliver for Otlp {
    fn deliver(&mut self, batch: &Batch) -> Result<(), Undelivered> {
        self.tell_gap();
        let observed = now();
        let mut delivered = 0;
        for entries in batch.entries().chunks(FRAME_RECORDS) {
            let mut frame = Frame::default();
            for entry in entries {
                if let Some(record) = log::log_record(batch.line(entry), &entry.told, observed) {
                    append(&mut frame.body, record);
                }
                frame.records += u64::from(matches!(entry.told, Told::Record(_)));
            }
            frame.first = entries.first().map_or(0, |entry| entry.sequence);
            frame.last = entries.last().map_or(0, |entry| entry.sequence);
            self.keep(&frame).map_err(|cause| Undelivered { delivered, cause })?;
            delivered += entries.len();
        }
        Ok(())
    }

    fn finish(&mut self) {
        self.tell_gap();
        self.shared.close(Instant::now() + FAREWELL);
        if let Some(sender) = self.sender.take()
            && sender.join().is_err()
        {
            tracing::error!(sink = self.shared.name, "the thread that sends has panicked");
        }
        let (waiting, lost) = self.shared.with(|backlog| (backlog.records(), backlog.in_memory()));
        if waiting > lost {
            tracing::info!(sink = self.shared.name, records = waiting - lost, "records stay in the spool");
        }
        if lost > 0 {
            self.shared.counts.lost.inc_by(lost);
            tracing::error!(
                sink = self.shared.name,
                records = lost,
                "records lost, the collector did not take them"
            );
        }
    }
}

impl std::fmt::Debug for Otlp {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Otlp").field("name", &self.shared.name).finish_non_exhaustive()
    }
}

/// Appends the record as the field of a `ScopeLogs`: messages are put together by putting their bytes together.
fn append(body: &mut Vec<u8>, record: LogRecord) {
    let one = ScopeLogs { log_records: vec![record], ..ScopeLogs::default() };
    // A vector has room for everything.
    let _ = one.encode(body);
}

fn now() -> u64 {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_nanos()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod receiver;

#[cfg(test)]
#[path = "otlp_tests.rs"]
mod tests;
