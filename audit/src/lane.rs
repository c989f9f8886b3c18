//! The way of records to one sink: a bounded row of batches, and the thread that delivers them.
//!
//! Each sink has its own, so that one that is slow or broken costs only its own records, and those are counted
//! and told in a line that takes their place.

use std::collections::VecDeque;
use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crate::batch::{Batch, Entry, LossCause, Lost, Told};
use crate::complaint::Complaint;
use crate::output::SinkError;
use crate::pressure::Pressure;
use crate::recorder::Overflow;

/// The first pause before a sink that keeps everything is tried again; each further one is twice as long.
const FIRST_PAUSE: Duration = Duration::from_millis(20);
/// The longest.
const LONGEST_PAUSE: Duration = Duration::from_secs(2);

/// What delivers lines to where they are kept.
pub(crate) trait Deliver: Send {
    /// Delivers every line of `batch`, in order.
    fn deliver(&mut self, batch: &Batch) -> Result<(), Undelivered>;

    /// Opens what it writes to again by its name.
    fn reopen(&mut self) -> Result<(), SinkError> {
        Ok(())
    }

    /// When it wants to be woken though nothing is to be delivered.
    fn wakes_at(&self) -> Option<Instant> {
        None
    }

    /// Does what is due with time.
    fn wake(&mut self) {}

    /// Nothing will come any more: makes safe what was delivered and is not safe yet.
    fn finish(&mut self) {}
}

/// A delivery that failed.
#[derive(Debug)]
pub(crate) struct Undelivered {
    /// Entries at the head of the batch that were delivered all the same.
    pub(crate) delivered: usize,
    /// Why the others were not.
    pub(crate) cause: SinkError,
}

/// What happened to the records of one sink.
#[derive(Debug, Default)]
struct Tally {
    written: AtomicU64,
    /// Records that found no room.
    slow: AtomicU64,
}

/// Tells what of a batch a sink wants.
pub(crate) type Wanted = Box<dyn FnMut(&Entry) -> bool + Send>;

/// How a lane is set up.
pub(crate) struct LaneOptions {
    /// The sink's name, for logs.
    pub(crate) name: String,
    /// This node's name, for lines that tell of losses.
    pub(crate) node: String,
    /// Records that may wait.
    pub(crate) capacity: usize,
    /// What happens beyond.
    pub(crate) overflow: Overflow,
    /// The lane's number in `pressure`.
    pub(crate) place: u32,
    pub(crate) pressure: Arc<Pressure>,
    /// `None` wants everything.
    pub(crate) wanted: Option<Wanted>,
    /// Called with records that were written and lost.
    pub(crate) count: Box<dyn Fn(Counted) + Send + Sync>,
}

/// A change of a sink's counts.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Counted {
    Written(u64),
    Lost(u64),
    /// How many wait now.
    Waiting(u64),
}

/// The near end of a lane.
pub(crate) struct Lane {
    row: Mutex<Row>,
    arrived: Condvar,
    name: String,
    node: String,
    capacity: usize,
    overflow: Overflow,
    place: u32,
    pressure: Arc<Pressure>,
    count: Box<dyn Fn(Counted) + Send + Sync>,
    tally: Tally,
}

#[derive(Default)]
struct Row {
    parcels: VecDeque<Parcel>,
    /// Records in `parcels`.
    waiting: usize,
    /// What was lost since the last line that told so.
    gap: Option<Lost>,
    is_full: bool,
    closed: bool,
    /// After the close, what was lost is told once more.
    farewell_said: bool,
    /// Nobody waits for what is left.
    abandoned: bool,
}

enum Parcel {
    Batch(Arc<Batch>),
    Reopen,
}

/// What the far end does next.
enum Work {
    Deliver(Arc<Batch>, Option<Lost>),
    Reopen,
    Wake,
    Finish,
}

impl Lane {
    /// Starts the thread that delivers. `done` is dropped when it ends.
    pub(crate) fn start(
        options: LaneOptions,
        sink: Box<dyn Deliver>,
        done: std::sync::mpsc::Sender<()>,
    ) -> Result<Arc<Self>, SinkError> {
        let LaneOptions { name, node, capacity, overflow, place, pressure, wanted, count } = options;
        let lane = Arc::new(Self {
            row: Mutex::default(),
            arrived: Condvar::new(),
            name,
            node,
            capacity,
            overflow,
            place,
            pressure,
            count,
            tally: Tally::default(),
        });
        let far_end = FarEnd {
            lane: Arc::clone(&lane),
            sink,
            wanted,
            complaint: Complaint::default(),
            slow_complaint: Complaint::default(),
            slow_seen: 0,
        };
        std::thread::Builder::new()
            .name(format!("to-{}", lane.name))
            .spawn(move || {
                let _done = done;
                far_end.run();
            })
            .map_err(SinkError::Thread)?;
        Ok(lane)
    }

    /// Passes a batch on. Never waits: what finds no room is lost and counted, or kept all the same and new
    /// connections refused, as configured.
    pub(crate) fn pass(&self, batch: &Arc<Batch>) {
        let mut row = self.row();
        let has_room = row.waiting + batch.len() <= self.capacity || row.parcels.is_empty();
        if has_room {
            row.waiting += batch.len();
            row.parcels.push_back(Parcel::Batch(Arc::clone(batch)));
        } else {
            let kept = match self.overflow {
                Overflow::Drop => Batch::default(),
                Overflow::BlockNew => batch.only(|entry| entry.told.is_essential()),
            };
            self.lose_others(&mut row, batch, &kept);
            if !kept.is_empty() {
                row.waiting += kept.len();
                row.parcels.push_back(Parcel::Batch(Arc::new(kept)));
            }
        }
        self.note_pressure(&mut row);
        (self.count)(Counted::Waiting(row.waiting as u64));
        drop(row);
        self.arrived.notify_one();
    }

    /// Notes those of `batch` that are not in `kept`.
    fn lose_others(&self, row: &mut Row, batch: &Batch, kept: &Batch) {
        let is_kept = |entry: &Entry| kept.entries().iter().any(|other| other.sequence == entry.sequence);
        let others = batch.only(|entry| !is_kept(entry));
        if let Some(lost) = others.lost_from(0, LossCause::SinkSlow) {
            row.gap = Some(lost.after(row.gap));
            // What a line of losses stands for was counted when it was lost.
            let records = records(others.entries());
            self.tally.slow.fetch_add(records, Ordering::Relaxed);
            (self.count)(Counted::Lost(records));
        }
    }

    /// Asks the sink to be opened again by its name, after what was passed before.
    pub(crate) fn order_reopen(&self) {
        self.row().parcels.push_back(Parcel::Reopen);
        self.arrived.notify_one();
    }

    /// Nothing will be passed any more.
    pub(crate) fn close(&self) {
        self.row().closed = true;
        self.arrived.notify_one();
    }

    /// Gives up what is left, and says how many records that is.
    pub(crate) fn abandon(&self) {
        let mut row = self.row();
        row.abandoned = true;
        row.parcels.clear();
        row.waiting = 0;
        drop(row);
        self.arrived.notify_one();
    }

    /// Records delivered so far.
    pub(crate) fn written(&self) -> u64 {
        self.tally.written.load(Ordering::Relaxed)
    }

    fn take(&self, wakes_at: Option<Instant>) -> Work {
        let mut row = self.row();
        loop {
            if row.abandoned {
                return Work::Finish;
            }
            match row.parcels.pop_front() {
                Some(Parcel::Reopen) => return Work::Reopen,
                Some(Parcel::Batch(batch)) => {
                    row.waiting = row.waiting.saturating_sub(batch.len());
                    let gap = row.gap_before(&batch);
                    self.note_pressure(&mut row);
                    (self.count)(Counted::Waiting(row.waiting as u64));
                    return Work::Deliver(batch, gap);
                }
                None if row.closed && row.farewell_said => return Work::Finish,
                None if row.closed => {
                    row.farewell_said = true;
                    let gap = row.gap.take();
                    return Work::Deliver(Arc::default(), gap);
                }
                None => {}
            }
            row = match wakes_at.map(|at| at.saturating_duration_since(Instant::now())) {
                None => self.arrived.wait(row).unwrap_or_else(PoisonError::into_inner),
                Some(Duration::ZERO) => return Work::Wake,
                Some(left) => self.arrived.wait_timeout(row, left).unwrap_or_else(PoisonError::into_inner).0,
            };
        }
    }

    /// Waits a while, or until there is no sense in waiting: false when nothing may be tried any more.
    fn pause(&self, length: Duration) -> bool {
        let until = Instant::now() + length;
        let mut row = self.row();
        loop {
            let left = until.saturating_duration_since(Instant::now());
            if row.abandoned || left.is_zero() {
                return !row.abandoned;
            }
            row = self.arrived.wait_timeout(row, left).unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// Full from the capacity on, until half of it is free again.
    fn note_pressure(&self, row: &mut Row) {
        if self.overflow == Overflow::Drop {
            return;
        }
        let is_full =
            if row.is_full { row.waiting > self.capacity / 2 } else { row.waiting >= self.capacity };
        if is_full != row.is_full {
            row.is_full = is_full;
            self.pressure.set(self.place, is_full);
        }
    }

    fn delivered(&self, entries: &[Entry]) {
        let records = records(entries);
        self.tally.written.fetch_add(records, Ordering::Relaxed);
        (self.count)(Counted::Written(records));
    }

    fn row(&self) -> MutexGuard<'_, Row> {
        self.row.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Row {
    /// The gap, when it lies before `batch`: numbers rise from line to line.
    fn gap_before(&mut self, batch: &Batch) -> Option<Lost> {
        let next = batch.entries().first()?.sequence;
        self.gap.take_if(|gap| gap.last < next)
    }
}

impl fmt::Debug for Lane {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Lane").field("name", &self.name).finish_non_exhaustive()
    }
}

/// What the lane's thread owns.
struct FarEnd {
    lane: Arc<Lane>,
    sink: Box<dyn Deliver>,
    wanted: Option<Wanted>,
    complaint: Complaint,
    slow_complaint: Complaint,
    slow_seen: u64,
}

impl FarEnd {
    fn run(mut self) {
        loop {
            match self.lane.take(self.sink.wakes_at()) {
                Work::Deliver(batch, gap) => self.deliver(batch, gap),
                Work::Reopen => self.reopen(),
                Work::Wake => self.sink.wake(),
                Work::Finish => return self.sink.finish(),
            }
        }
    }

    fn deliver(&mut self, batch: Arc<Batch>, gap: Option<Lost>) {
        let mut batch = self.selected(batch, gap);
        let mut pause = FIRST_PAUSE;
        while !batch.is_empty() {
            match self.sink.deliver(&batch) {
                Ok(()) => {
                    self.lane.delivered(batch.entries());
                    if self.complaint.settled() {
                        tracing::info!(sink = self.lane.name, "records are written again");
                    }
                    break;
                }
                Err(failure) => {
                    let (done, left) = batch.entries().split_at(failure.delivered.min(batch.len()));
                    self.lane.delivered(done);
                    let left: u64 = left.iter().map(|entry| entry.told.records()).sum();
                    let again = self.lane.overflow == Overflow::BlockNew && self.lane.pause(pause);
                    if let Some(records) = self.complaint.due(left) {
                        let sink = &self.lane.name;
                        tracing::error!(sink, error = %failure.cause, records, again, "records not written");
                    }
                    if !again {
                        self.lose(&batch, failure.delivered);
                        break;
                    }
                    pause = LONGEST_PAUSE.min(pause * 2);
                    batch = Arc::new(rest(&batch, failure.delivered));
                }
            }
        }
        self.report_slow();
    }

    /// The lines this sink wants, and before them the line that tells what it has missed.
    fn selected(&mut self, batch: Arc<Batch>, gap: Option<Lost>) -> Arc<Batch> {
        if gap.is_none() && self.wanted.is_none() {
            return batch;
        }
        let mut selected = Batch::default();
        if let Some(gap) = gap {
            selected.add_lost(&self.lane.node, gap);
        }
        for entry in batch.entries() {
            if self.wanted.as_mut().is_none_or(|wanted| wanted(entry)) {
                selected.add_copy(&batch, entry);
            }
        }
        Arc::new(selected)
    }

    fn lose(&self, batch: &Batch, delivered: usize) {
        let Some(lost) = batch.lost_from(delivered, LossCause::SinkFailed) else { return };
        let mut row = self.lane.row();
        // A gap noted meanwhile is a later one.
        row.gap = Some(match row.gap {
            Some(later) => later.after(Some(lost)),
            None => lost,
        });
        drop(row);
        // What a line of losses stands for was counted when it was lost.
        (self.lane.count)(Counted::Lost(records(&batch.entries()[delivered..])));
    }

    fn reopen(&mut self) {
        let sink = &self.lane.name;
        match self.sink.reopen() {
            Ok(()) => tracing::debug!(sink, "opened again"),
            Err(error) => tracing::error!(sink, %error, "not opened again, the old one stays in use"),
        }
    }

    fn report_slow(&mut self) {
        let slow = self.lane.tally.slow.load(Ordering::Relaxed);
        let new = slow - self.slow_seen;
        self.slow_seen = slow;
        if new == 0 {
            self.slow_complaint.settled();
        } else if let Some(records) = self.slow_complaint.due(new) {
            tracing::error!(sink = self.lane.name, records, "records lost, the sink is too slow");
        }
    }
}

/// A line that tells of lost records is none itself.
fn records(entries: &[Entry]) -> u64 {
    entries.iter().filter(|entry| matches!(entry.told, Told::Record(_))).count() as u64
}

fn rest(batch: &Batch, delivered: usize) -> Batch {
    let mut index = 0;
    batch.only(|_| {
        index += 1;
        index > delivered
    })
}
