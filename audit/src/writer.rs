//! The thread that turns queued records into lines, many at a time, and passes them on to every sink.
//!
//! It never waits for a sink. A number that is missing in the queue has lost its record there: a line takes
//! its place.

use std::fmt;
use std::sync::Arc;
use std::sync::mpsc::{self, RecvTimeoutError};
use std::time::Duration;

use crate::batch::{Batch, LossCause, Lost};
use crate::complaint::Complaint;
use crate::lane::Lane;
use crate::line::LineWriter;
use crate::output::SinkError;
use crate::queue::{Numbered, Orders};
use crate::recorder::Shared;

/// A batch is passed on when it fills this much, or when no record waits.
const BATCH_BYTES: usize = 256 * 1024;

/// Records taken from the queue at a time. Bounds what the writer holds in addition to the queue.
const TAKE: usize = 1024;

/// Owns the threads that write. Dropping it lets them write what is queued, without waiting for it.
pub struct Writer {
    shared: Arc<Shared>,
    lanes: Vec<Arc<Lane>>,
    finished: mpsc::Receiver<()>,
}

/// What became of all records since the start, seen from the first sink.
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
    /// Starts the thread. Every lane's thread holds a clone of `done`.
    pub(crate) fn spawn(
        shared: Arc<Shared>,
        lanes: Vec<Arc<Lane>>,
        node: &str,
        gather_ms: u64,
        (done, finished): (mpsc::Sender<()>, mpsc::Receiver<()>),
    ) -> Result<Self, SinkError> {
        let work = Work {
            shared: Arc::clone(&shared),
            lanes: lanes.clone(),
            node: node.to_owned(),
            writer: LineWriter::new(node),
            gather: Duration::from_millis(gather_ms),
            next: 1,
            complaint: Complaint::default(),
            _done: done,
        };
        std::thread::Builder::new()
            .name("records".to_owned())
            .spawn(move || work.run())
            .map_err(SinkError::Thread)?;
        Ok(Self { shared, lanes, finished })
    }

    /// Opens files again by their names, for rotation by rename. Records submitted after this call go to the
    /// new file; when it cannot be opened, all go on to the old one.
    pub fn reopen(&self) {
        self.shared.queue.order_reopen();
    }

    /// Refuses new records, waits up to `limit` for the queued ones to be written, and reports.
    pub fn close(self, limit: Duration) -> CloseReport {
        self.shared.queue.close();
        let finished = match self.finished.recv_timeout(limit) {
            Ok(()) | Err(RecvTimeoutError::Disconnected) => true,
            Err(RecvTimeoutError::Timeout) => false,
        };
        self.shared.queue.abandon();
        self.lanes.iter().for_each(|lane| lane.abandon());
        let written = self.lanes.first().map_or(0, |lane| lane.written());
        let lost = self.shared.queue.numbered().saturating_sub(written);
        // What a sink that hangs holds, and what waited for it, was not counted yet.
        let uncounted = lost.saturating_sub(self.shared.metrics.records_lost.get());
        self.shared.metrics.records_lost.inc_by(uncounted);
        self.shared.metrics.records_waiting.set(0);
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
    lanes: Vec<Arc<Lane>>,
    node: String,
    writer: LineWriter,
    gather: Duration,
    /// The number of the next record, if none is missing.
    next: u64,
    complaint: Complaint,
    /// Closes with the thread, which is how [`Writer::close`] learns of its end, a panic included.
    _done: mpsc::Sender<()>,
}

impl Drop for Work {
    fn drop(&mut self) {
        self.lanes.iter().for_each(|lane| lane.close());
    }
}

impl Work {
    fn run(mut self) {
        let mut taken: Vec<Numbered> = Vec::with_capacity(TAKE);
        loop {
            let orders = self.shared.queue.take(&mut taken, TAKE, self.gather);
            if orders.reopen {
                self.lanes.iter().for_each(|lane| lane.order_reopen());
            }
            self.pass(&mut taken, orders);
            if orders.last {
                return;
            }
        }
    }

    fn pass(&mut self, taken: &mut Vec<Numbered>, orders: Orders) {
        let mut batch = Batch::with_capacity(BATCH_BYTES.min(taken.len() * 2048), taken.len() + 1);
        let mut refused = 0;
        for (sequence, record) in taken.drain(..) {
            refused += self.tell_missing(&mut batch, sequence);
            batch.add_record(sequence, &mut self.writer, record);
            self.next = sequence + 1;
            if batch.lines().len() >= BATCH_BYTES {
                self.pass_on(std::mem::take(&mut batch));
            }
        }
        if let Some(numbered) = orders.drained_at {
            refused += self.tell_missing(&mut batch, numbered + 1);
            self.next = numbered + 1;
        }
        self.pass_on(batch);
        if refused == 0 {
            self.complaint.settled();
        } else if let Some(lost) = self.complaint.due(refused) {
            tracing::error!(lost, "records lost, the queue was full");
        }
    }

    /// Tells that the numbers before `sequence` are missing, when they are, and says how many.
    fn tell_missing(&self, batch: &mut Batch, sequence: u64) -> u64 {
        let missing = sequence - self.next;
        if missing > 0 {
            let (first, last) = (self.next, sequence - 1);
            batch.add_lost(&self.node, Lost { first, last, count: missing, cause: LossCause::QueueFull });
        }
        missing
    }

    fn pass_on(&self, batch: Batch) {
        if batch.is_empty() {
            return;
        }
        let batch = Arc::new(batch);
        self.lanes.iter().for_each(|lane| lane.pass(&batch));
    }
}
