//! Log records that wait on disk for a collector: files of frames, bounded in bytes.
//!
//! A frame is written before anything is told of it, and what was taken is noted after it was: a process that is
//! killed loses nothing that was appended and may send its last frames twice. The files of an earlier process keep
//! its resource, and are sent first. Nothing here knows a network.
//!
//! A file begins with [`MAGIC`] and a frame without records that holds the resource. A frame is a head of
//! [`HEAD`] bytes (length of the body, checksum of what follows it, records, first and last number, all
//! little-endian) and the body.

use std::collections::VecDeque;
use std::fs::{self, File, OpenOptions, TryLockError};
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

const MAGIC: &[u8; 8] = b"sluice1\n";
const HEAD: usize = 28;
/// The same as [`HEAD`], as file offsets count.
const HEAD_BYTES: u64 = 28;
const SUFFIX: &str = ".spool";
/// How far the collector has taken it: number, offset, checksum.
const MARK: &str = "taken";
const LOCK: &str = "lock";
/// What is dropped at once when there is no room: one file, this part of all.
const PART: u64 = 16;
/// No file is smaller than this before the next is begun.
const SMALLEST: u64 = 64 << 10;
/// A frame of more than this was never written.
const LARGEST_BODY: usize = 8 << 20;

/// Log records that were encoded together.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Frame {
    /// The records, each as the field of a `ScopeLogs` that holds it.
    pub(crate) body: Vec<u8>,
    /// How many connection records it has.
    pub(crate) records: u64,
    /// The first of their numbers.
    pub(crate) first: u64,
    /// The last.
    pub(crate) last: u64,
}

/// Frames that can be sent together.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Parcel {
    /// The resource that the records came from, encoded.
    pub(crate) resource: Vec<u8>,
    pub(crate) frame: Frame,
    /// True when this process made them, so that its numbers mean something to it.
    pub(crate) own: bool,
}

/// Where the frames of a parcel end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Place {
    file: u64,
    offset: u64,
}

/// Records that were given up.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Dropped {
    pub(crate) records: u64,
    /// First and last number of those that this process made.
    pub(crate) own: Option<(u64, u64)>,
}

impl Dropped {
    pub(crate) fn add(&mut self, records: u64, own: Option<(u64, u64)>) {
        self.records += records;
        self.own = match (self.own, own) {
            (Some((first, last)), Some((other_first, other_last))) => {
                Some((first.min(other_first), last.max(other_last)))
            }
            (one, other) => one.or(other),
        };
    }
}

/// The files, the oldest first.
#[derive(Debug)]
pub(crate) struct Spool {
    folder: PathBuf,
    max_bytes: u64,
    resource: Vec<u8>,
    files: VecDeque<Segment>,
    /// Open for appending: the last of `files`, when this process began it.
    tail: Option<File>,
    /// Open for reading: the first of `files`.
    head: Option<(u64, File)>,
    mark: File,
    next: u64,
    /// Held as long as this process uses the folder.
    _lock: File,
}

/// One file.
#[derive(Debug)]
struct Segment {
    number: u64,
    /// Bytes of whole frames.
    bytes: u64,
    /// What was taken.
    taken: u64,
    /// Records after that.
    records: u64,
    /// First and last number of those.
    numbers: Option<(u64, u64)>,
    own: bool,
}

impl Spool {
    /// Opens the folder, which is made when it is missing, and finds what an earlier process left in it.
    pub(crate) fn open(folder: &Path, max_bytes: u64, resource: Vec<u8>) -> io::Result<Self> {
        fs::create_dir_all(folder)?;
        let lock = open(&folder.join(LOCK))?;
        lock.try_lock().map_err(|error| match error {
            TryLockError::WouldBlock => io::Error::other("another process uses this folder"),
            TryLockError::Error(error) => error,
        })?;
        let mark = open(&folder.join(MARK))?;
        let taken = read_mark(&mark);
        let mut files = VecDeque::new();
        for (number, path) in segments(folder)? {
            let taken = taken.filter(|taken| taken.file >= number);
            let segment = match taken {
                Some(taken) if taken.file > number => None,
                other => scan(&path, number, other.map_or(0, |taken| taken.offset))?,
            };
            match segment {
                Some(segment) if segment.taken < segment.bytes => files.push_back(segment),
                _ => remove(&path),
            }
        }
        let next =
            files.back().map_or(0, |last: &Segment| last.number).max(taken.map_or(0, |at| at.file)) + 1;
        Ok(Self {
            folder: folder.to_owned(),
            max_bytes,
            resource,
            files,
            tail: None,
            head: None,
            mark,
            next,
            _lock: lock,
        })
    }

    /// Bytes of all files.
    pub(crate) fn bytes(&self) -> u64 {
        self.files.iter().map(|file| file.bytes).sum()
    }

    /// Records that wait.
    pub(crate) fn records(&self) -> u64 {
        self.files.iter().map(|file| file.records).sum()
    }

    /// True when a frame of this size makes older ones go.
    pub(crate) fn is_full_for(&self, frame: &Frame) -> bool {
        self.bytes() + self.cost(frame) > self.max_bytes
    }

    /// Appends a frame. What had to go for it is added to `dropped`. After an error nothing was appended.
    pub(crate) fn append(&mut self, frame: &Frame, dropped: &mut Dropped) -> io::Result<()> {
        while self.is_full_for(frame) && self.drop_oldest(dropped) {}
        if self.tail.is_none() || self.files.back().is_none_or(|file| file.bytes >= self.part()) {
            self.begin()?;
        }
        let (Some(file), Some(segment)) = (&self.tail, self.files.back_mut()) else {
            return Err(io::ErrorKind::NotFound.into());
        };
        let bytes = encode(frame);
        if let Err(error) = file.write_all_at(&bytes, segment.bytes) {
            // What is torn is written over by the next, or found to be torn.
            let _ = file.set_len(segment.bytes);
            return Err(error);
        }
        segment.bytes += bytes.len() as u64;
        segment.records += frame.records;
        segment.numbers = spanned(segment.numbers, frame);
        Ok(())
    }

    /// The oldest frames of one file, up to so many records and bytes, but one frame at least; `None` when nothing
    /// waits. Frames that are damaged are dropped.
    pub(crate) fn read(
        &mut self,
        records: u64,
        bytes: usize,
        dropped: &mut Dropped,
    ) -> Option<(Parcel, Place)> {
        loop {
            let segment = self.files.front()?;
            if segment.taken >= segment.bytes {
                if self.files.len() == 1 && self.tail.is_some() {
                    return None;
                }
                self.drop_oldest(dropped);
                continue;
            }
            match self.read_front(records, bytes, dropped) {
                Ok(Some(parcel)) => return Some(parcel),
                // Damaged frames were passed over.
                Ok(None) => {}
                Err(error) => {
                    let file = self.path(self.files.front()?.number);
                    tracing::error!(%error, file = %file.display(), "a file of the spool cannot be read");
                    self.drop_oldest(dropped);
                }
            }
        }
    }

    /// False when what ends at `place` has gone.
    pub(crate) fn has(&self, place: Place) -> bool {
        self.files.front().is_some_and(|segment| segment.number <= place.file)
    }

    /// What ends at `place` was taken and need not be kept.
    pub(crate) fn taken(&mut self, place: Place, frame: &Frame) {
        // It may have gone meanwhile, to make room.
        let Some(segment) = self.files.front_mut().filter(|segment| segment.number == place.file) else {
            return;
        };
        segment.taken = place.offset;
        segment.records = segment.records.saturating_sub(frame.records);
        segment.numbers = segment.numbers.map(|(first, last)| (first.max(frame.last + 1).min(last), last));
        self.note(place);
        if place.offset >= self.files.front().map_or(0, |segment| segment.bytes)
            && (self.files.len() > 1 || self.tail.is_none())
        {
            self.drop_oldest(&mut Dropped::default());
        }
    }

    fn read_front(
        &mut self,
        records: u64,
        bytes: usize,
        dropped: &mut Dropped,
    ) -> io::Result<Option<(Parcel, Place)>> {
        let Some(segment) = self.files.front_mut() else { return Ok(None) };
        let number = segment.number;
        if self.head.as_ref().is_none_or(|(open, _)| *open != number) {
            self.head = Some((number, File::open(self.folder.join(name(number)))?));
        }
        let Some((_, file)) = &self.head else { return Ok(None) };
        let resource = read_frame(file, MAGIC.len() as u64, segment.bytes)?.map(|(frame, _)| frame.body);
        let mut whole = Frame::default();
        let mut offset = segment.taken;
        while offset < segment.bytes {
            let Some((frame, end)) = read_frame(file, offset, segment.bytes)? else {
                // Its length is believed: the whole file was walked by lengths when it was opened.
                let (head, end) = head_at(file, offset)?;
                if whole.records > 0 {
                    break;
                }
                let own = segment.own.then_some((head.first, head.last));
                tracing::error!(records = head.records, "a damaged part of the spool is dropped");
                dropped.add(head.records, own);
                segment.records = segment.records.saturating_sub(head.records);
                segment.taken = end;
                offset = end;
                continue;
            };
            let is_too_much =
                whole.records + frame.records > records || whole.body.len() + frame.body.len() > bytes;
            if !whole.body.is_empty() && is_too_much {
                break;
            }
            whole.first = if whole.body.is_empty() { frame.first } else { whole.first };
            whole.last = frame.last;
            whole.records += frame.records;
            whole.body.extend_from_slice(&frame.body);
            offset = end;
        }
        if whole.body.is_empty() {
            return Ok(None);
        }
        let parcel = Parcel { resource: resource.unwrap_or_default(), frame: whole, own: segment.own };
        Ok(Some((parcel, Place { file: number, offset })))
    }

    fn begin(&mut self) -> io::Result<()> {
        let number = self.next;
        let path = self.path(number);
        let file = open(&path)?;
        let mut bytes = MAGIC.to_vec();
        bytes.extend(encode(&Frame { body: self.resource.clone(), ..Frame::default() }));
        if let Err(error) = file.set_len(0).and_then(|()| file.write_all_at(&bytes, 0)) {
            remove(&path);
            return Err(error);
        }
        self.next += 1;
        let bytes = bytes.len() as u64;
        self.files.push_back(Segment { number, bytes, taken: bytes, records: 0, numbers: None, own: true });
        self.tail = Some(file);
        Ok(())
    }

    /// False when there is nothing to drop.
    fn drop_oldest(&mut self, dropped: &mut Dropped) -> bool {
        let Some(segment) = self.files.pop_front() else { return false };
        if self.files.is_empty() {
            self.tail = None;
        }
        if segment.records > 0 {
            dropped.add(segment.records, segment.numbers.filter(|_| segment.own));
        }
        self.head = None;
        remove(&self.path(segment.number));
        true
    }

    fn note(&self, place: Place) {
        let mut bytes = [place.file.to_le_bytes(), place.offset.to_le_bytes()].concat();
        bytes.extend(crc32fast::hash(&bytes).to_le_bytes());
        if let Err(error) = self.mark.write_all_at(&bytes, 0) {
            // Then the next process sends again what this one has sent.
            tracing::warn!(%error, "what the collector took is not noted");
        }
    }

    fn cost(&self, frame: &Frame) -> u64 {
        let begins = self.tail.is_none() || self.files.back().is_none_or(|file| file.bytes >= self.part());
        let head = if begins { MAGIC.len() + HEAD + self.resource.len() } else { 0 };
        (head + HEAD + frame.body.len()) as u64
    }

    fn part(&self) -> u64 {
        (self.max_bytes / PART).max(SMALLEST)
    }

    fn path(&self, number: u64) -> PathBuf {
        self.folder.join(name(number))
    }
}

/// First and last number with those of `frame`.
fn spanned(numbers: Option<(u64, u64)>, frame: &Frame) -> Option<(u64, u64)> {
    if frame.records == 0 {
        return numbers;
    }
    Some((numbers.map_or(frame.first, |(first, _)| first), frame.last))
}

fn open(path: &Path) -> io::Result<File> {
    OpenOptions::new().read(true).write(true).create(true).truncate(false).mode(0o640).open(path)
}

fn name(number: u64) -> String {
    format!("{number:020}{SUFFIX}")
}

fn segments(folder: &Path) -> io::Result<Vec<(u64, PathBuf)>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        let name = entry.file_name();
        let number = name.to_str().and_then(|name| name.strip_suffix(SUFFIX)?.parse().ok());
        found.extend(number.map(|number| (number, entry.path())));
    }
    found.sort();
    Ok(found)
}

/// A file of an earlier process: `None` when it is none of these files. What is torn at its end does not count.
fn scan(path: &Path, number: u64, taken: u64) -> io::Result<Option<Segment>> {
    let file = File::open(path)?;
    let length = file.metadata()?.len();
    let mut magic = [0; MAGIC.len()];
    if length < magic.len() as u64 || file.read_exact_at(&mut magic, 0).is_err() || magic != *MAGIC {
        tracing::error!(file = %path.display(), "no file of a spool, removed");
        return Ok(None);
    }
    let mut frames = Vec::new();
    let mut offset = MAGIC.len() as u64;
    while offset + HEAD_BYTES <= length {
        let (head, end) = head_at(&file, offset)?;
        if end > length {
            break;
        }
        frames.push((offset, head));
        offset = end;
    }
    let bytes = offset;
    if bytes < length {
        let torn = length - bytes;
        tracing::warn!(file = %path.display(), torn, "a file of the spool ends in a piece of a frame");
    }
    let Some(begin) = frames.get(1).map(|(offset, _)| *offset) else { return Ok(None) };
    // A mark that is no beginning of a frame is not believed.
    let is_known = taken == bytes || frames.iter().any(|(offset, _)| *offset == taken);
    let taken = if is_known { taken.max(begin) } else { begin };
    let left: Vec<&Head> =
        frames.iter().filter(|(offset, _)| *offset >= taken).map(|(_, head)| head).collect();
    let records = left.iter().map(|head| head.records).sum();
    Ok(Some(Segment { number, bytes, taken, records, numbers: None, own: false }))
}

#[derive(Debug)]
struct Head {
    length: usize,
    checksum: u32,
    records: u64,
    first: u64,
    last: u64,
    /// What the checksum is of, beside the body.
    rest: [u8; HEAD - 8],
}

/// The head at `offset`, and where its frame ends.
fn head_at(file: &File, offset: u64) -> io::Result<(Head, u64)> {
    let mut bytes = [0; HEAD];
    file.read_exact_at(&mut bytes, offset)?;
    let [length, checksum, records] = [0, 4, 8].map(|at| u32::from_le_bytes(piece(&bytes, at)));
    let [first, last] = [12, 20].map(|at| u64::from_le_bytes(piece(&bytes, at)));
    let mut rest = [0; HEAD - 8];
    rest.copy_from_slice(&bytes[8..]);
    let end = offset + HEAD_BYTES + u64::from(length);
    let length = usize::try_from(length).unwrap_or(usize::MAX);
    Ok((Head { length, checksum, records: u64::from(records), first, last, rest }, end))
}

fn piece<const N: usize>(bytes: &[u8; HEAD], at: usize) -> [u8; N] {
    let mut piece = [0; N];
    piece.copy_from_slice(&bytes[at..at + N]);
    piece
}

/// The frame at `offset` and where it ends; `None` when it is damaged.
fn read_frame(file: &File, offset: u64, limit: u64) -> io::Result<Option<(Frame, u64)>> {
    let (head, end) = head_at(file, offset)?;
    if end > limit || head.length > LARGEST_BODY {
        return Ok(None);
    }
    let mut body = vec![0; head.length];
    file.read_exact_at(&mut body, offset + HEAD_BYTES)?;
    if checksum(&head.rest, &body) != head.checksum {
        return Ok(None);
    }
    let Head { records, first, last, .. } = head;
    Ok(Some((Frame { body, records, first, last }, end)))
}

fn encode(frame: &Frame) -> Vec<u8> {
    let length = u32::try_from(frame.body.len()).unwrap_or(u32::MAX);
    let records = u32::try_from(frame.records).unwrap_or(u32::MAX);
    let mut rest = records.to_le_bytes().to_vec();
    rest.extend(frame.first.to_le_bytes());
    rest.extend(frame.last.to_le_bytes());
    let mut bytes = Vec::with_capacity(HEAD + frame.body.len());
    bytes.extend(length.to_le_bytes());
    bytes.extend(checksum(&rest, &frame.body).to_le_bytes());
    bytes.extend(rest);
    bytes.extend_from_slice(&frame.body);
    bytes
}

fn checksum(rest: &[u8], body: &[u8]) -> u32 {
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(rest);
    hasher.update(body);
    hasher.finalize()
}

fn read_mark(file: &File) -> Option<Place> {
    let mut bytes = [0; 20];
    file.read_exact_at(&mut bytes, 0).ok()?;
    let (numbers, sum) = bytes.split_at(16);
    if crc32fast::hash(numbers).to_le_bytes() != sum {
        return None;
    }
    let (number, offset) = numbers.split_at(8);
    let number = u64::from_le_bytes(number.try_into().ok()?);
    Some(Place { file: number, offset: u64::from_le_bytes(offset.try_into().ok()?) })
}

fn remove(path: &Path) {
    if let Err(error) = fs::remove_file(path)
        && error.kind() != io::ErrorKind::NotFound
    {
        tracing::error!(%error, file = %path.display(), "a file of the spool is not removed");
    }
}

#[cfg(test)]
#[path = "spool_tests.rs"]
pub(crate) mod tests;
