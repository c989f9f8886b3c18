//! The thread that turns queued records into lines and appends them, many at a time.
//!
//! A failure costs records, which are counted, and nothing else: the sink is tried again with the next batch.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::sync::mpsc::{self, RecvTimeoutError};
use std::time::{Duration, Instant};

use crate::line;
use crate::output::{Output, SinkError};
use crate::queue::Numbered;
use crate::recorder::Shared;

/// Lines are written when they fill this much, or when no record waits.
const BATCH_BYTES: usize = 256 * 1024;

/// Records taken from the queue at a time. Bounds what the writer holds in addition to the queue.
const TAKE: usize = 1024;

/// Complaints of one kind are at least this far apart.
const COMPLAIN_EVERY: Duration = Duration::from_secs(10);

/// Owns the thread that writes. Dropping it lets the thread write what is queued, without waiting for it.
pub struct Writer {
    shared: Arc<Shared>,
    finished: mpsc::Receiver<()>,
}

/// What became of all records since the start.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CloseReport {
    /// Records that reached the sink.
    pub written: u64,
    /// Records that were numbered and did not.
    pub lost: u64,
    /// False when the limit passed before everything was written; what was left is counted as lost.
    pub finished: bool,
}

impl Writer {
    pub(crate) fn spawn(
        shared: Arc<Shared>,
        output: Output,
        node: &str,
        gather_ms: u64,
    ) -> Result<Self, SinkError> {
        let (done, finished) = mpsc::channel();
        let work = Work {
            shared: Arc::clone(&shared),
            output,
            node: node.to_owned(),
            gather: Duration::from_millis(gather_ms),
            lines: Vec::with_capacity(BATCH_BYTES + 16 * 1024),
            lines_count: 0,
            sink_complaint: Complaint::default(),
            queue_complaint: Complaint::default(),
            refused_seen: 0,
            _done: done,
        };
        std::thread::Builder::new()
            .name("records".to_owned())
            .spawn(move || work.run())
            .map_err(SinkError::Thread)?;
        Ok(Self { shared, finished })
    }

    /// Opens the file again by its name, for rotation by rename. Records submitted after this call go to the
    /// new file; when it cannot be opened, all go on to the old one.
    pub fn reopen(&self) {
        self.shared.queue.order_reopen();
    }

    /// Refuses new records, waits up to `limit` for the queued ones to be written, and reports.
    pub fn close(self, limit: Duration) -> CloseReport {
        self.shared.queue.close();
        let finished = match self.finished.recv_timeout(limit) {
            Ok(()) | Err(RecvTimeoutError::Disconnected) => true,
            Err(RecvTimeoutError::Timeout) => {
                // The thread hangs in a write. What it holds beside the queue is lost too, if it never returns.
                self.shared.count_lost(self.shared.queue.abandon());
                false
            }
        };
        let written = self.shared.written.load(Ordering::Relaxed);
        let lost = self.shared.queue.numbered().saturating_sub(written);
        CloseReport { written, lost, finished }
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        self.shared.queue.close();
    }
}

impl fmt::Debug for Writer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Writer").finish_non_exhaustive()
    }
}

struct Work {
    shared: Arc<Shared>,
    output: Output,
    node: String,
    gather: Duration,
    lines: Vec<u8>,
    lines_count: u64,
    sink_complaint: Complaint,
    queue_complaint: Complaint,
    refused_seen: u64,
    /// Closes with the thread, which is how [`Writer::close`] learns of its end, a panic included.
    _done: mpsc::Sender<()>,
}

impl Work {
    fn run(mut self) {
        let mut taken: Vec<Numbered> = Vec::with_capacity(TAKE);
        loop {
            let orders = self.shared.queue.take(&mut taken, TAKE, self.gather);
            if orders.reopen {
                self.reopen();
            }
            for (sequence, record) in taken.drain(..) {
                match line::append(&mut self.lines, sequence, &self.node, &record) {
                    Ok(()) => self.lines_count += 1,
                    Err(_) => self.shared.count_lost(1),
                }
                if self.lines.len() >= BATCH_BYTES {
                    self.write();
                }
            }
            self.write();
            self.report_refused();
            if orders.last {
                return;
            }
        }
    }

    fn reopen(&mut self) {
        match self.output.reopen() {
            Ok(()) => tracing::info!("records file opened again"),
            Err(error) => tracing::error!(%error, "records file not opened again, the old one stays in use"),
        }
    }

    fn write(&mut self) {
        if self.lines.is_empty() {
            return;
        }
        match self.output.append(&self.lines) {
            Ok(()) => {
                self.shared.count_written(self.lines_count);
                if self.sink_complaint.settled() {
                    tracing::info!("records are written again");
                }
            }
            Err(failure) => {
                let written =
                    self.lines[..failure.written].iter().filter(|&&byte| byte == b'\n').count() as u64;
                let lost = self.lines_count - written;
                self.shared.count_written(written);
                self.shared.count_lost(lost);
                if let Some(lost) = self.sink_complaint.due(lost) {
                    tracing::error!(error = %failure.cause, lost, "records lost, the sink failed");
                }
            }
        }
        self.lines.clear();
        self.lines_count = 0;
    }

    fn report_refused(&mut self) {
        let refused = self.shared.refused.load(Ordering::Relaxed);
        let new = refused - self.refused_seen;
        self.refused_seen = refused;
        if new == 0 {
            self.queue_complaint.settled();
        } else if let Some(lost) = self.queue_complaint.due(new) {
            tracing::error!(lost, "records lost, the queue was full");
        }
    }
}

/// Says when a repeated failure is worth another line in the log.
#[derive(Default)]
struct Complaint {
    last: Option<Instant>,
    unreported: u64,
    open: bool,
}

impl Complaint {
    /// Adds `count` failures; the number to report when it is time to.
    fn due(&mut self, count: u64) -> Option<u64> {
        self.open = true;
        self.unreported += count;
        if self.last.is_some_and(|last| last.elapsed() < COMPLAIN_EVERY) {
            return None;
        }
        self.last = Some(Instant::now());
        Some(std::mem::take(&mut self.unreported))
    }

    /// The failure is over; true when there was one.
    fn settled(&mut self) -> bool {
        std::mem::take(&mut self.open)
    }
}
