//! Whole lines to a file, so that a failed write leaves no half line in front of a later one.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::fd::AsFd;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use crate::batch::Batch;
use crate::lane::{Deliver, Undelivered};

/// Where records go.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Sink {
    /// A file, appended to; created with mode 0640 in an existing folder. This process must be its only writer.
    File(PathBuf),
    /// Standard output.
    Stdout,
    /// Nowhere: records are numbered, formatted and counted as written.
    Discard,
}

/// Records cannot be kept here.
#[derive(Debug, thiserror::Error)]
pub enum SinkError {
    /// The folder of the file does not exist.
    #[error("records file {}: folder {} does not exist", path.display(), folder.display())]
    NoFolder {
        /// The records file.
        path: PathBuf,
        /// Its folder.
        folder: PathBuf,
    },
    /// The file cannot be opened or written.
    #[error("records file {}: {cause}", path.display())]
    File {
        /// The records file.
        path: PathBuf,
        /// Why.
        #[source]
        cause: io::Error,
    },
    /// Standard output cannot be used.
    #[error("records to standard output: {0}")]
    Stdout(#[source] io::Error),
    /// The host's log does not take a line.
    #[error("records to the log at {}: {cause}", socket.display())]
    Syslog {
        /// The daemon's socket.
        socket: PathBuf,
        /// Why.
        #[source]
        cause: io::Error,
    },
    /// The store's folder cannot be used.
    #[error("records store {}: {cause}", folder.display())]
    StoreFolder {
        /// The folder.
        folder: PathBuf,
        /// Why.
        #[source]
        cause: io::Error,
    },
    /// A file of the store cannot be written.
    #[error("records store, file {}: {cause}", path.display())]
    Store {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        cause: rusqlite::Error,
    },
    /// The folder of a spool cannot be used.
    #[error("records spool {}: {cause}", folder.display())]
    Spool {
        /// The folder.
        folder: PathBuf,
        /// Why.
        #[source]
        cause: io::Error,
    },
    /// A spool has no room, and nothing in it may be dropped.
    #[error("the spool of the sink {sink} is full: its collector does not take records")]
    SpoolFull {
        /// The sink's name.
        sink: String,
    },
    /// A spool cannot be written, and memory is full as well.
    #[error("the spool of the sink {sink}: {cause}")]
    SpoolWrite {
        /// The sink's name.
        sink: String,
        /// Why.
        #[source]
        cause: io::Error,
    },
    /// The thread that writes cannot be started.
    #[error("start the thread that writes records: {0}")]
    Thread(#[source] io::Error),
    /// The settings cannot be used.
    #[error("records.{0}")]
    Config(crate::ConfigProblem),
}

/// Some lines were not written.
#[derive(Debug)]
struct AppendError {
    /// Bytes of whole lines that were written before the failure.
    written: usize,
    /// Why the rest was not.
    cause: SinkError,
}

impl Deliver for Output {
    fn deliver(&mut self, batch: &Batch) -> Result<(), Undelivered> {
        self.append(batch.lines()).map_err(|failure| {
            let written = &batch.lines()[..failure.written];
            let delivered = written.iter().filter(|&&byte| byte == b'\n').count();
            Undelivered { delivered, cause: failure.cause }
        })
    }

    fn reopen(&mut self) -> Result<(), SinkError> {
        if let Sink::File(_) = self.sink {
            *self = Self::open(self.sink.clone())?;
        }
        Ok(())
    }
}

/// An open sink.
#[derive(Debug)]
pub(crate) struct Output {
    sink: Sink,
    /// `None` for [`Sink::Discard`].
    file: Option<File>,
    /// The file ends in a piece of a line that could not be removed.
    mid_line: bool,
}

impl Output {
    pub(crate) fn open(sink: Sink) -> Result<Self, SinkError> {
        let (file, mid_line) = match &sink {
            Sink::File(path) => {
                let file = open_file(path)?;
                let mid_line = ends_mid_line(&file);
                (Some(file), mid_line)
            }
            Sink::Stdout => {
                let stdout = io::stdout().as_fd().try_clone_to_owned().map_err(SinkError::Stdout)?;
                (Some(File::from(stdout)), false)
            }
            Sink::Discard => (None, false),
        };
        Ok(Self { sink, file, mid_line })
    }

    /// Appends whole lines; after a failure the file is opened again by its name and the rest is tried once
    /// more.
    fn append(&mut self, lines: &[u8]) -> Result<(), AppendError> {
        let Err((first, cause)) = self.append_once(lines) else { return Ok(()) };
        if !matches!(self.sink, Sink::File(_)) {
            return Err(AppendError { written: first, cause: SinkError::Stdout(cause) });
        }
        self.reopen().map_err(|cause| AppendError { written: first, cause })?;
        self.append_once(&lines[first..]).map_err(|(second, cause)| AppendError {
            written: first + second,
            cause: self.write_error(cause),
        })
    }

    fn append_once(&mut self, lines: &[u8]) -> Result<(), (usize, io::Error)> {
        match &mut self.file {
            Some(file) => append_lines(file, &mut self.mid_line, lines),
            None => Ok(()),
        }
    }

    fn write_error(&self, cause: io::Error) -> SinkError {
        match &self.sink {
            Sink::File(path) => SinkError::File { path: path.clone(), cause },
            Sink::Stdout | Sink::Discard => SinkError::Stdout(cause),
        }
    }
}

fn open_file(path: &Path) -> Result<File, SinkError> {
    let folder = match path.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder,
        _ => Path::new("."),
    };
    if !folder.is_dir() {
        return Err(SinkError::NoFolder { path: path.to_owned(), folder: folder.to_owned() });
    }
    OpenOptions::new()
        .read(true) // To see how the file ends.
        .append(true)
        .create(true)
        .mode(0o640)
        .open(path)
        .map_err(|cause| SinkError::File { path: path.to_owned(), cause })
}

/// True when an earlier process died in the middle of a line.
fn ends_mid_line(file: &File) -> bool {
    let Some(last) = regular_length(file).and_then(|length| length.checked_sub(1)) else { return false };
    let mut byte = [0];
    file.read_exact_at(&mut byte, last).is_ok() && byte != *b"\n"
}

fn regular_length(file: &File) -> Option<u64> {
    file.metadata().ok().filter(|metadata| metadata.is_file()).map(|metadata| metadata.len())
}

/// What lines are appended to.
trait Appendable: Write {
    /// Removes the last `torn` bytes; false when that is impossible.
    fn shorten(&mut self, torn: u64) -> bool;
}

impl Appendable for File {
    fn shorten(&mut self, torn: u64) -> bool {
        // Never lengthens: someone may have truncated the file since.
        regular_length(self)
            .and_then(|length| length.checked_sub(torn))
            .is_some_and(|length| self.set_len(length).is_ok())
    }
}

/// Appends whole lines. On an error, says how many bytes of whole lines were written; a piece of a line is
/// removed again, or ended before the next line when it cannot be.
fn append_lines(
    file: &mut impl Appendable,
    mid_line: &mut bool,
    lines: &[u8],
) -> Result<(), (usize, io::Error)> {
    if *mid_line {
        write_counted(file, b"\n").map_err(|(_, cause)| (0, cause))?;
        *mid_line = false;
    }
    write_counted(file, lines).map_err(|(written, cause)| {
        let whole = lines[..written].iter().rposition(|&byte| byte == b'\n').map_or(0, |last| last + 1);
        let torn = written - whole;
        *mid_line = torn > 0 && !file.shorten(torn as u64);
        (whole, cause)
    })
}

/// `Write::write_all` that says how far it came.
fn write_counted(file: &mut impl Write, bytes: &[u8]) -> Result<(), (usize, io::Error)> {
    let mut written = 0;
    while written < bytes.len() {
        match file.write(&bytes[written..]) {
            Ok(0) => return Err((written, io::ErrorKind::WriteZero.into())),
            Ok(count) => written += count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err((written, error)),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Takes `room` bytes, then fails as a full disk does: a short write first.
    struct Disk {
        content: Vec<u8>,
        room: usize,
        can_shorten: bool,
    }

    impl Write for Disk {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            let count = bytes.len().min(self.room);
            if count == 0 {
                return Err(io::ErrorKind::StorageFull.into());
            }
            self.room -= count;
            self.content.extend_from_slice(&bytes[..count]);
            Ok(count)
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    impl Appendable for Disk {
        fn shorten(&mut self, torn: u64) -> bool {
            if self.can_shorten {
                self.content.truncate(self.content.len() - usize::try_from(torn).unwrap());
                self.room += usize::try_from(torn).unwrap();
            }
            self.can_shorten
        }
    }

    #[test]
    fn a_torn_line_is_removed_from_a_full_disk() {
        for room in 0..9 {
            let mut disk = Disk { content: Vec::new(), room, can_shorten: true };
            let mut mid_line = false;
            let (whole, cause) = append_lines(&mut disk, &mut mid_line, b"one\ntwo\n")
                .map_or_else(|error| error, |()| (8, io::ErrorKind::Other.into()));
            assert_eq!(whole, room / 4 * 4, "room {room}: {cause}");
            assert_eq!(disk.content, b"one\ntwo\n"[..whole]);

            disk.room = 100;
            append_lines(&mut disk, &mut mid_line, b"new\n").unwrap();
            assert_eq!(disk.content, [&b"one\ntwo\n"[..whole], b"new\n"].concat());
        }
    }

    #[test]
    fn a_torn_line_in_a_pipe_is_ended_before_the_next_line() {
        let mut disk = Disk { content: Vec::new(), room: 6, can_shorten: false };
        let mut mid_line = false;
        assert_eq!(append_lines(&mut disk, &mut mid_line, b"one\ntwo\n").unwrap_err().0, 4);
        // Still full: the newline itself does not fit, and is not forgotten.
        assert_eq!(append_lines(&mut disk, &mut mid_line, b"new\n").unwrap_err().0, 0);

        disk.room = 100;
        append_lines(&mut disk, &mut mid_line, b"new\n").unwrap();
        assert_eq!(disk.content, b"one\ntw\nnew\n");
    }

    #[test]
    fn a_line_that_a_dead_process_left_unfinished_is_ended_first() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("records");
        std::fs::write(&path, "{\"half").unwrap();
        Output::open(Sink::File(path.clone())).unwrap().append(b"{}\n").unwrap();
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "{\"half\n{}\n");
        Output::open(Sink::File(path.clone())).unwrap().append(b"{}\n").unwrap();
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "{\"half\n{}\n{}\n");
    }

    #[test]
    fn a_new_file_is_not_readable_by_everyone_and_its_folder_must_exist() {
        use std::os::unix::fs::PermissionsExt;

        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("records");
        Output::open(Sink::File(path.clone())).unwrap();
        assert_eq!(path.metadata().unwrap().permissions().mode() & 0o137, 0);

        let missing = folder.path().join("no/records");
        let error = Output::open(Sink::File(missing.clone())).unwrap_err().to_string();
        let expected = format!(
            "records file {}: folder {} does not exist",
            missing.display(),
            folder.path().join("no").display()
        );
        assert_eq!(error, expected);
    }
}
