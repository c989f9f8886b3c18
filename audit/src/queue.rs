//! A bounded queue that numbers what enters it, in one step, so that the order of the numbers is the order
//! in the queue.
//!
//! The lock is held to push one pointer or to take one batch of them, never while anything is written; a full
//! queue refuses at once. Numbers start at 1 and are used up by refused records too.

use std::collections::VecDeque;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crate::batch::is_essential;
use crate::pressure::Pressure;
use crate::record::Record;
use crate::recorder::Overflow;

/// A record and its number.
pub(crate) type Numbered = (u64, Box<Record>);

/// A lingering reader is woken early when this many records wait.
const WAKE: usize = 256;

/// The queue's number among the places that may be full.
const PLACE: u32 = 0;

pub(crate) struct Queue {
    state: Mutex<State>,
    arrived: Condvar,
    capacity: usize,
    overflow: Overflow,
    pressure: Arc<Pressure>,
    wake: usize,
}

struct State {
    records: VecDeque<Numbered>,
    sequence: u64,
    reader: Reader,
    reopen: bool,
    closed: bool,
    is_full: bool,
}

/// What the reader sleeps for.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Reader {
    Awake,
    WaitsForOne,
    WaitsForMany,
}

/// What the reader has to do beside the records it took.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Orders {
    /// Open the sink again before writing these records.
    pub(crate) reopen: bool,
    /// Nothing will come after these records.
    pub(crate) last: bool,
    /// Every record that was kept is taken, and this is the last number that was given.
    pub(crate) drained_at: Option<u64>,
}

impl Queue {
    pub(crate) fn new(capacity: usize, overflow: Overflow, pressure: Arc<Pressure>) -> Self {
        Self {
            state: Mutex::new(State {
                records: VecDeque::with_capacity(capacity),
                sequence: 0,
                reader: Reader::Awake,
                reopen: false,
                closed: false,
                is_full: false,
            }),
            arrived: Condvar::new(),
            capacity,
            overflow,
            pressure,
            wake: WAKE.min(capacity.div_ceil(2)),
        }
    }

    /// Numbers `record` and keeps it; false when the queue is full or closed, and the number is then a gap.
    pub(crate) fn push(&self, record: Box<Record>) -> bool {
        let mut state = self.lock();
        state.sequence += 1;
        let sequence = state.sequence;
        if state.closed || self.is_too_many(&state, &record) {
            // The record is freed after the lock is: parameters outlive locals.
            return false;
        }
        state.records.push_back((sequence, record));
        self.note_pressure(&mut state);
        let wakes = match state.reader {
            Reader::Awake => false,
            Reader::WaitsForOne => true,
            Reader::WaitsForMany => state.records.len() >= self.wake,
        };
        if wakes {
            state.reader = Reader::Awake;
        }
        drop(state);
        if wakes {
            self.arrived.notify_one();
        }
        true
    }

    /// Waits for a record or an order, then up to `linger` for more records, and moves at most `max` of them
    /// to `taken`.
    pub(crate) fn take(&self, taken: &mut Vec<Numbered>, max: usize, linger: Duration) -> Orders {
        let mut state = self.lock();
        while state.records.is_empty() && !state.is_ordered() {
            state.reader = Reader::WaitsForOne;
            state = self.arrived.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        let until = Instant::now() + linger;
        while state.records.len() < self.wake && !state.is_ordered() {
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                break;
            }
            state.reader = Reader::WaitsForMany;
            state = self.arrived.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0;
        }
        state.reader = Reader::Awake;
        let count = state.records.len().min(max);
        taken.extend(state.records.drain(..count));
        self.note_pressure(&mut state);
        let is_drained = state.records.is_empty();
        Orders {
            reopen: std::mem::take(&mut state.reopen),
            last: state.closed && is_drained,
            drained_at: is_drained.then_some(state.sequence),
        }
    }

    /// What a carried connection must have written is kept beyond the capacity when new connections are then
    /// refused: there is no more of it than there are live connections.
    fn is_too_many(&self, state: &State, record: &Record) -> bool {
        let is_kept = self.overflow == Overflow::BlockNew && is_essential(record.action);
        state.records.len() >= self.capacity && !is_kept
    }

    /// Full from the capacity on, until half of it is free again.
    fn note_pressure(&self, state: &mut State) {
        if self.overflow == Overflow::Drop {
            return;
        }
        let waiting = state.records.len();
        let is_full = if state.is_full { waiting > self.capacity / 2 } else { waiting >= self.capacity };
        if is_full != state.is_full {
            state.is_full = is_full;
            self.pressure.set(PLACE, is_full);
        }
    }

    /// Asks the reader to open the sink again.
    pub(crate) fn order_reopen(&self) {
        self.lock().reopen = true;
        self.arrived.notify_one();
    }

    /// Refuses every record from now on; those already kept can still be taken.
    pub(crate) fn close(&self) {
        self.lock().closed = true;
        self.arrived.notify_one();
    }

    /// Throws away what is kept.
    pub(crate) fn abandon(&self) {
        let abandoned = std::mem::take(&mut self.lock().records);
        drop(abandoned);
    }

    /// How many records are kept.
    pub(crate) fn len(&self) -> usize {
        self.lock().records.len()
    }

    /// How many records it keeps at most.
    pub(crate) fn capacity(&self) -> usize {
        self.capacity
    }

    /// How many records were numbered.
    pub(crate) fn numbered(&self) -> u64 {
        self.lock().sequence
    }

    /// A panic elsewhere cannot leave the state half changed: no step in here panics.
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn is_ordered(&self) -> bool {
        self.closed || self.reopen
    }
}
