//! What waits for the collector: on disk when there is a spool, in memory when there is none or it cannot be
//! written. Bounded in both places; what goes to make room is counted and told in a line of its own.

use std::collections::VecDeque;

use super::spool::{Dropped, Frame, Parcel, Place, Spool};
use crate::batch::{LossCause, Lost};

/// Frames that wait, and what was lost of them.
#[derive(Debug)]
pub(super) struct Backlog {
    spool: Option<Spool>,
    resource: Vec<u8>,
    memory: VecDeque<(u64, Frame)>,
    memory_bytes: usize,
    memory_limit: usize,
    /// Frames that memory has seen, which is what numbers them.
    seen: u64,
    /// Nothing is dropped to make room.
    keeps_all: bool,
    /// What was lost since the last line that told so, of this process.
    gap: Option<Lost>,
    /// Records lost and not counted yet.
    lost: u64,
}

/// Where a parcel was, so that it can be let go.
#[derive(Clone, Copy, Debug)]
pub(super) enum Origin {
    Spool(Place),
    /// Up to this number.
    Memory(u64),
}

/// Why a frame is not kept.
#[derive(Debug)]
pub(super) enum Refused {
    /// There is no room, and nothing may be dropped.
    Full,
    /// Memory is full as well.
    Disk(std::io::Error),
}

impl Backlog {
    pub(super) fn new(spool: Option<Spool>, resource: Vec<u8>, memory_limit: usize, keeps_all: bool) -> Self {
        Self {
            spool,
            resource,
            memory: VecDeque::new(),
            memory_bytes: 0,
            memory_limit,
            seen: 0,
            keeps_all,
            gap: None,
            lost: 0,
        }
    }

    /// Keeps a frame. `Ok` with an error: it is kept in memory, because the disk does not take it.
    pub(super) fn keep(&mut self, frame: &Frame) -> Result<Option<std::io::Error>, Refused> {
        let Some(spool) = &mut self.spool else { return self.remember(frame, None) };
        if self.keeps_all && spool.is_full_for(frame) {
            return Err(Refused::Full);
        }
        let mut dropped = Dropped::default();
        let appended = spool.append(frame, &mut dropped);
        self.lose(dropped, LossCause::SinkSlow);
        match appended {
            Ok(()) => Ok(None),
            Err(error) => self.remember(frame, Some(error)),
        }
    }

    fn remember(
        &mut self,
        frame: &Frame,
        error: Option<std::io::Error>,
    ) -> Result<Option<std::io::Error>, Refused> {
        while self.memory_bytes + frame.body.len() > self.memory_limit {
            if self.keeps_all {
                return Err(error.map_or(Refused::Full, Refused::Disk));
            }
            let Some((_, oldest)) = self.memory.pop_front() else { break };
            self.memory_bytes -= oldest.body.len();
            let mut dropped = Dropped::default();
            dropped.add(oldest.records, Some((oldest.first, oldest.last)));
            self.lose(dropped, LossCause::SinkSlow);
        }
        self.seen += 1;
        self.memory_bytes += frame.body.len();
        self.memory.push_back((self.seen, frame.clone()));
        Ok(error)
    }

    /// Records that wait.
    pub(super) fn records(&self) -> u64 {
        let memory: u64 = self.memory.iter().map(|(_, frame)| frame.records).sum();
        memory + self.spool.as_ref().map_or(0, Spool::records)
    }

    /// Records that would be gone with this process.
    pub(super) fn in_memory(&self) -> u64 {
        self.memory.iter().map(|(_, frame)| frame.records).sum()
    }

    /// Bytes on disk.
    pub(super) fn spooled_bytes(&self) -> u64 {
        self.spool.as_ref().map_or(0, Spool::bytes)
    }

    /// What to send next, up to so many records and bytes. What only memory has goes first.
    pub(super) fn next(&mut self, records: u64, bytes: usize) -> Option<(Parcel, Origin)> {
        if let Some((number, first)) = self.memory.front() {
            let (mut last, mut frame) = (*number, first.clone());
            for (number, next) in self.memory.iter().skip(1) {
                if frame.records + next.records > records || frame.body.len() + next.body.len() > bytes {
                    break;
                }
                frame.body.extend_from_slice(&next.body);
                frame.records += next.records;
                frame.last = next.last;
                last = *number;
            }
            let parcel = Parcel { resource: self.resource.clone(), frame, own: true };
            return Some((parcel, Origin::Memory(last)));
        }
        let mut dropped = Dropped::default();
        let found = self.spool.as_mut()?.read(records, bytes, &mut dropped);
        self.lose(dropped, LossCause::SinkFailed);
        found.map(|(parcel, place)| (parcel, Origin::Spool(place)))
    }

    /// False when it has gone meanwhile, to make room.
    pub(super) fn has(&self, origin: Origin) -> bool {
        match origin {
            Origin::Spool(place) => self.spool.as_ref().is_some_and(|spool| spool.has(place)),
            Origin::Memory(last) => self.memory.front().is_some_and(|(number, _)| *number <= last),
        }
    }

    /// A parcel need not be kept any more.
    pub(super) fn taken(&mut self, parcel: &Parcel, origin: Origin) {
        match origin {
            Origin::Spool(place) => {
                if let Some(spool) = &mut self.spool {
                    spool.taken(place, &parcel.frame);
                }
            }
            Origin::Memory(last) => {
                let gone = self.memory.iter().take_while(|(number, _)| *number <= last).count();
                self.memory_bytes -=
                    self.memory.drain(..gone).map(|(_, frame)| frame.body.len()).sum::<usize>();
            }
        }
    }

    /// A parcel that the collector will never take.
    pub(super) fn refused(&mut self, parcel: &Parcel, origin: Origin) {
        let mut dropped = Dropped::default();
        dropped.add(parcel.frame.records, parcel.own.then_some((parcel.frame.first, parcel.frame.last)));
        self.lose(dropped, LossCause::SinkFailed);
        self.taken(parcel, origin);
    }

    /// What to tell of, once.
    pub(super) fn take_gap(&mut self) -> Option<Lost> {
        self.gap.take()
    }

    /// Records lost since this was last asked.
    pub(super) fn take_lost(&mut self) -> u64 {
        std::mem::take(&mut self.lost)
    }

    /// Numbers of another process would mean nothing here: those are only counted.
    fn lose(&mut self, dropped: Dropped, cause: LossCause) {
        self.lost += dropped.records;
        let Some((first, last)) = dropped.own else { return };
        if dropped.records == 0 {
            return;
        }
        let earlier = self.gap.unwrap_or(Lost { first, last, count: 0, cause });
        self.gap = Some(Lost {
            first: earlier.first.min(first),
            last: earlier.last.max(last),
            count: earlier.count + dropped.records,
            cause,
        });
    }
}
