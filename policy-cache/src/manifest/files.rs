//! Paths → manifest files, and files → text.

use std::collections::HashSet;
use std::fs;
use std::io::Read;
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use nix::fcntl::OFlag;

use super::problem::Problem;

/// A file larger than this is refused, not read into memory.
const MAX_FILE_BYTES: u64 = 512 << 20;
/// What the names of manifests in folders end in.
const EXTENSIONS: [&str; 3] = ["yaml", "yml", "json"];
/// How many files a note names.
const MAX_NAMED: usize = 5;
/// The coarsest clock that file systems in use stamp their files with.
const CLOCK_GRAIN: Duration = Duration::from_secs(3);

/// The files under `paths`, each once, in a stable order. Folders are read with their subfolders; hidden
/// entries are left out, which also passes over the `..data` folders behind a mounted ConfigMap's links.
pub(crate) fn find(paths: &[PathBuf], problems: &mut Vec<Problem>) -> Found {
    let mut search = Search { files: Vec::new(), others: Vec::new(), seen: HashSet::new(), problems };
    for path in paths {
        search.path(path, true);
    }
    let Search { files, others, seen, .. } = search;
    let others = others.into_iter().filter(|(_, real)| !seen.contains(real));
    Found { files, others: others.map(|(path, _)| path).collect() }
}

/// What is under some paths.
#[derive(Debug, Default)]
pub(crate) struct Found {
    /// Manifest files.
    pub(crate) files: Vec<PathBuf>,
    /// Files of folders that are passed over because of their extension.
    pub(crate) others: Vec<PathBuf>,
}

impl Found {
    /// Those of the others that may have been meant as manifests: `a.yaml.txt`, `a.YAML`.
    pub(crate) fn nearly(self) -> Vec<PathBuf> {
        let looks_like_one = |path: &PathBuf| {
            let name = path.file_name().unwrap_or_default().to_string_lossy().to_lowercase();
            EXTENSIONS.iter().any(|extension| name.split('.').skip(1).any(|part| part == *extension))
        };
        self.others.into_iter().filter(looks_like_one).collect()
    }

    /// What to say when there is no manifest under the paths.
    pub(crate) fn nothing(self, paths: &[PathBuf]) -> Problem {
        let places: Vec<String> = paths.iter().map(|path| path.display().to_string()).collect();
        let others = match others_note(&self.others) {
            Some(note) => format!("; {note}"),
            None => String::new(),
        };
        whole_file(Path::new(""), format!("no manifests in {}{others}", places.join(", ")))
    }
}

/// Says which files were passed over for their extension; nothing when none were.
pub(crate) fn others_note(others: &[PathBuf]) -> Option<String> {
    if others.is_empty() {
        return None;
    }
    let mut names: Vec<String> =
        others.iter().take(MAX_NAMED).map(|path| path.display().to_string()).collect();
    if others.len() > MAX_NAMED {
        names.push(format!("and {} more", others.len() - MAX_NAMED));
    }
    Some(format!("passed over, for they end in neither .yaml, .yml nor .json: {}", names.join(", ")))
}

/// The text of a regular file. Anything else is refused: a FIFO or a device may keep its reader for ever.
pub(crate) fn read(path: &Path) -> Result<String, Box<Problem>> {
    read_text(path, MAX_FILE_BYTES).map_err(|error| Box::new(whole_file(path, error.to_string())))
}

/// Why a file is not read.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// It cannot be opened or read.
    #[error(transparent)]
    Io(#[from] std::io::Error),
    /// It is something else.
    #[error("must be a regular file, is {0}")]
    NotRegular(&'static str),
    /// It is no text.
    #[error("must be text in UTF-8")]
    NotUtf8,
    /// It is larger than it may be.
    #[error("larger than {limit} bytes")]
    TooLarge {
        /// How large it may be.
        limit: u64,
    },
}

/// Opens a regular file, and nothing else: a FIFO or a device may keep its reader for ever.
pub fn open_regular(path: &Path) -> Result<fs::File, ReadError> {
    // Looked at before it is opened, for opening a device may do something; and again once it is open, for
    // another may stand in its place by then. O_NONBLOCK: opening a FIFO waits for its other end, open(2).
    regular(&fs::metadata(path)?)?;
    let flags = OFlag::O_NONBLOCK | OFlag::O_NOCTTY;
    let file = fs::OpenOptions::new().read(true).custom_flags(flags.bits()).open(path)?;
    regular(&file.metadata()?)?;
    Ok(file)
}

/// The text of a regular file of at most `limit` bytes.
pub fn read_text(path: &Path, limit: u64) -> Result<String, ReadError> {
    let mut bytes = Vec::new();
    open_regular(path)?.take(limit.saturating_add(1)).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > limit {
        return Err(ReadError::TooLarge { limit });
    }
    String::from_utf8(bytes).map_err(|_| ReadError::NotUtf8)
}

fn regular(metadata: &fs::Metadata) -> Result<(), ReadError> {
    let kind = metadata.file_type();
    if kind.is_file() {
        return Ok(());
    }
    Err(ReadError::NotRegular(match () {
        () if kind.is_fifo() => "a FIFO",
        () if kind.is_socket() => "a socket",
        () if kind.is_dir() => "a folder",
        () => "a device",
    }))
}

/// How the files under some paths looked: cheap to take, and equal while none of them has changed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Fingerprint {
    files: Vec<(PathBuf, Option<Stamp>)>,
    problems: Vec<Problem>,
}

/// Device, inode, size, and when the inode last changed, in seconds and nanoseconds.
type Stamp = (u64, u64, u64, i64, i64);

impl Fingerprint {
    pub(crate) fn take(paths: &[PathBuf]) -> Self {
        let mut problems = Vec::new();
        let files = find(paths, &mut problems).files;
        let stamp = |path: &Path| {
            let metadata = fs::metadata(path).ok()?;
            Some((metadata.dev(), metadata.ino(), metadata.size(), metadata.ctime(), metadata.ctime_nsec()))
        };
        Self {
            files: files
                .into_iter()
                .map(|file| {
                    let stamp = stamp(&file);
                    (file, stamp)
                })
                .collect(),
            problems,
        }
    }

    /// False when a file changed so lately that its next change may bear the same time.
    pub(crate) fn is_settled(&self) -> bool {
        let limit =
            SystemTime::now().checked_sub(CLOCK_GRAIN).and_then(|at| at.duration_since(UNIX_EPOCH).ok());
        let limit = limit.and_then(|age| i64::try_from(age.as_secs()).ok()).unwrap_or_default();
        self.files.iter().all(|(_, stamp)| stamp.is_none_or(|(.., changed, _)| changed < limit))
    }
}

struct Search<'p> {
    files: Vec<PathBuf>,
    /// With their canonical paths: one may be given by name as well.
    others: Vec<(PathBuf, PathBuf)>,
    /// Canonical paths: links may lead to the same place twice, or round in a circle.
    seen: HashSet<PathBuf>,
    problems: &'p mut Vec<Problem>,
}

impl Search<'_> {
    /// A path given by name is read whatever it is called; one found in a folder only as a manifest.
    fn path(&mut self, path: &Path, by_name: bool) {
        let found = fs::canonicalize(path).and_then(|real| Ok((fs::metadata(&real)?.is_dir(), real)));
        let (is_dir, real) = match found {
            Ok(found) => found,
            Err(error) => return self.problems.push(whole_file(path, error.to_string())),
        };
        if !(is_dir || by_name || is_manifest(path)) {
            self.others.push((path.to_owned(), real));
            return;
        }
        if !self.seen.insert(real) {
            return;
        }
        if is_dir {
            self.folder(path);
        } else {
            self.files.push(path.to_owned());
        }
    }

    fn folder(&mut self, folder: &Path) {
        let entries = fs::read_dir(folder)
            .and_then(|entries| entries.map(|entry| entry.map(|entry| entry.file_name())).collect());
        let mut names: Vec<_> = match entries {
            Ok(names) => names,
            Err(error) => return self.problems.push(whole_file(folder, error.to_string())),
        };
        names.sort();
        for name in names {
            if !name.as_encoded_bytes().starts_with(b".") {
                self.path(&folder.join(name), false);
            }
        }
    }
}

/// True when a file that is found in a folder is read. Hidden ones are left out before.
pub(crate) fn is_manifest(path: &Path) -> bool {
    path.extension()
        .and_then(|extension| extension.to_str())
        .is_some_and(|extension| EXTENSIONS.contains(&extension))
}

fn whole_file(path: &Path, message: String) -> Problem {
    Problem {
        file: path.to_owned(),
        document: 0,
        line: None,
        object: String::new(),
        field: String::new(),
        value: String::new(),
        message,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fingerprint_changes_with_a_file_and_with_nothing_else() {
        let folder = tempfile::tempdir().unwrap();
        let paths = [folder.path().to_owned()];
        let file = folder.path().join("a.yaml");
        fs::write(&file, "a").unwrap();
        let before = Fingerprint::take(&paths);
        assert_eq!(before, Fingerprint::take(&paths));
        fs::write(folder.path().join("README.md"), "no manifest").unwrap();
        assert_eq!(before, Fingerprint::take(&paths));
        fs::write(folder.path().join("b"), "b").unwrap();
        fs::rename(folder.path().join("b"), &file).unwrap();
        assert_ne!(before, Fingerprint::take(&paths));
        fs::remove_file(&file).unwrap();
        assert_ne!(before, Fingerprint::take(&paths));
    }

    #[test]
    fn a_fresh_file_is_not_settled() {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("a.yaml"), "a").unwrap();
        let paths = [folder.path().to_owned()];
        let mut fingerprint = Fingerprint::take(&paths);
        assert!(!fingerprint.is_settled());
        for (_, stamp) in &mut fingerprint.files {
            if let Some(stamp) = stamp {
                stamp.3 -= 60;
            }
        }
        assert!(fingerprint.is_settled());
    }
}
