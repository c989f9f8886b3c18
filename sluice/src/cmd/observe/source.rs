//! Where records are read from: a running agent, a store, a file, or standard input. Turns each into a row of
//! lines, the oldest first, or the newest where that is wanted and can be.

use std::collections::{HashSet, VecDeque};
use std::fs::File;
use std::hash::{BuildHasher, RandomState};
use std::io::{self, BufRead, BufReader, Read, Seek, Write};
use std::net::{TcpStream, ToSocketAddrs};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, bail};
use audit::StoreQuery;

use super::edges::{Edges, Told};
use super::filter::Filters;
use super::time::Span;

/// How often a file or a store that is followed is looked at.
const LOOK: Duration = Duration::from_millis(200);
/// An agent on the same network takes a connection and answers in milliseconds.
const LIMIT: Duration = Duration::from_secs(5);
/// The agent's address when nothing else is said.
const ADDRESS: &str = "127.0.0.1:9093";
/// Lines of history that the live ones are compared with.
const REMEMBERED: usize = 8192;
/// Standard input.
const STDIN: &str = "-";

/// Where records come from. Without any of these: the agent of this node.
#[derive(Clone, Debug, clap::Args)]
#[command(next_help_heading = "Where records are read from")]
pub(crate) struct From {
    /// A running agent, as its --admin says; it keeps records when it was started with --data. Default
    /// 127.0.0.1:9093
    #[arg(long, value_name = "ADDR:PORT", conflicts_with_all = ["store", "file"])]
    admin: Option<String>,
    /// A store's folder (DIR/records of `sluice run --data DIR`)
    #[arg(long, value_name = "DIR", conflicts_with = "file")]
    store: Option<PathBuf>,
    /// A file of records, one a line; - is standard input, .zst is decompressed
    #[arg(long, value_name = "FILE|-")]
    file: Option<PathBuf>,
}

/// What is wanted of a source.
#[derive(Debug)]
pub(crate) struct Wanted<'a> {
    pub(crate) span: Span,
    pub(crate) follow: bool,
    /// From the newest to the oldest; a file is read as it lies.
    pub(crate) newest_first: bool,
    pub(crate) filters: &'a Filters,
}

/// Called with each line; false when no more is wanted.
pub(crate) type Each<'a> = dyn FnMut(&str) -> bool + 'a;

impl From {
    /// A file holds what somebody has chosen already; the others may hold days.
    pub(crate) fn is_file(&self) -> bool {
        self.file.is_some()
    }

    /// What comes from standard input comes once.
    pub(crate) fn is_stdin(&self) -> bool {
        self.file.as_deref() == Some(Path::new(STDIN))
    }

    /// Adds up what a store or an agent keeps, without making lines of it; false when this is neither.
    pub(crate) fn add_up(&self, wanted: &Wanted<'_>, edges: &mut Edges) -> anyhow::Result<bool> {
        if let Some(folder) = &self.store {
            audit::scan_store(folder, &query(wanted), |record| {
                if wanted.filters.matches(record) {
                    edges.add(record);
                }
                true
            })?;
            return Ok(true);
        }
        if self.file.is_some() {
            return Ok(false);
        }
        let mut garbage = None;
        let address = self.admin.as_deref().unwrap_or(ADDRESS);
        ask(address, wanted, true, &mut |line: &str| match serde_json::from_str(line) {
            Ok(Told { pair, counts }) => {
                edges.add_counts(pair, counts);
                true
            }
            Err(error) => {
                garbage = Some(error);
                false
            }
        })?;
        garbage.map_or(Ok(true), |error| Err(error).with_context(|| format!("{address} does not add up")))
    }

    /// Reads until the source ends, or, when it is followed, until `each` has had enough.
    pub(crate) fn read(&self, wanted: &Wanted<'_>, each: &mut Each<'_>) -> anyhow::Result<()> {
        match (&self.store, &self.file) {
            (Some(folder), _) => read_store(folder, wanted, each),
            (None, Some(_)) if self.is_stdin() => {
                each_line(io::stdin().lock(), each).context("read standard input")?;
                Ok(())
            }
            (None, Some(file)) => {
                read_file(file, wanted.follow, each).with_context(|| format!("read {}", file.display()))
            }
            (None, None) => ask(self.admin.as_deref().unwrap_or(ADDRESS), wanted, false, each),
        }
    }
}

fn query(wanted: &Wanted<'_>) -> StoreQuery {
    let mut query = StoreQuery {
        since: wanted.span.since,
        until: wanted.span.until,
        newest_first: wanted.newest_first,
        ..StoreQuery::default()
    };
    wanted.filters.narrow(&mut query);
    query
}

fn read_store(folder: &Path, wanted: &Wanted<'_>, told: &mut Each<'_>) -> anyhow::Result<()> {
    let mut query = query(wanted);
    let mut seen = Seen::default();
    loop {
        let mut goes_on = true;
        let mut each = |line: &str| {
            if wanted.follow {
                // A record is kept after its time: what comes late lies before the newest that was seen.
                query_from(line).inspect(|time| seen.newest = seen.newest.max(*time));
            }
            goes_on = (wanted.follow && !seen.is_new(line)) || told(line);
            goes_on
        };
        match wanted.filters.are_none() {
            true => audit::read_store(folder, &query, &mut each)?,
            false => {
                audit::read_store_where(folder, &query, |record| wanted.filters.matches(record), &mut each)?
            }
        }
        if !wanted.follow || !goes_on {
            return Ok(());
        }
        query.since = query.since.max(seen.newest.saturating_sub(LATENESS));
        std::thread::sleep(LOOK);
    }
}

/// How much later than the time in it a record may be kept, in nanoseconds.
pub(super) const LATENESS: i64 = 2_000_000_000;

fn query_from(line: &str) -> Option<i64> {
    super::time::of_line(line)
}

/// Lines that were told a moment ago, so that none is told twice.
#[derive(Default)]
struct Seen {
    newest: i64,
    hasher: RandomState,
    hashes: HashSet<u64>,
    order: VecDeque<u64>,
}

impl Seen {
    fn is_new(&mut self, line: &str) -> bool {
        let hash = self.hasher.hash_one(line);
        if !self.hashes.insert(hash) {
            return false;
        }
        self.order.push_back(hash);
        if self.order.len() > REMEMBERED
            && let Some(oldest) = self.order.pop_front()
        {
            self.hashes.remove(&oldest);
        }
        true
    }
}

/// A file, and when it is followed what is appended to it, also after it was put aside and begun anew.
fn read_file(path: &Path, follow: bool, each: &mut Each<'_>) -> io::Result<()> {
    if path.extension().is_some_and(|extension| extension == "zst") {
        return each_line(BufReader::new(zstd::Decoder::new(File::open(path)?)?), each).map(drop);
    }
    let mut file = BufReader::new(File::open(path)?);
    if !follow {
        return each_line(file, each).map(drop);
    }
    let mut line = Vec::new();
    let mut is_aside = false;
    loop {
        if file.read_until(b'\n', &mut line)? > 0 {
            if line.ends_with(b"\n") {
                let text = String::from_utf8_lossy(&line);
                if !text.trim().is_empty() && !each(text.trim()) {
                    return Ok(());
                }
                line.clear();
            }
            continue;
        }
        if is_aside {
            // A line that was not ended then never will be.
            line.clear();
            (file, is_aside) = (BufReader::new(File::open(path)?), false);
            continue;
        }
        let open = file.get_ref().metadata()?;
        if open.len() < file.stream_position()? {
            // Emptied where it stands.
            line.clear();
            file.rewind()?;
        } else if std::fs::metadata(path).is_ok_and(|named| named.ino() != open.ino()) {
            // What was written to it before it was put aside may have come since it was read.
            is_aside = true;
        } else {
            std::thread::sleep(LOOK);
        }
    }
}

/// False when `each` has had enough.
fn each_line(mut from: impl BufRead, each: &mut Each<'_>) -> io::Result<bool> {
    let mut line = Vec::new();
    loop {
        line.clear();
        if from.read_until(b'\n', &mut line)? == 0 {
            return Ok(true);
        }
        let text = String::from_utf8_lossy(&line);
        let text = text.trim();
        if !text.is_empty() && !each(text) {
            return Ok(false);
        }
    }
}

/// Asks an agent for `/records`, or for their sums, with HTTP/1.0, whose answers end with the connection.
fn ask(address: &str, wanted: &Wanted<'_>, sums: bool, each: &mut Each<'_>) -> anyhow::Result<()> {
    let hint = "ask another with --admin ADDR:PORT, or read a --store DIR or a --file FILE";
    let place = address
        .to_socket_addrs()
        .ok()
        .and_then(|mut places| places.next())
        .with_context(|| format!("--admin {address}: must be ADDR:PORT, such as {ADDRESS}"))?;
    let mut stream = TcpStream::connect_timeout(&place, LIMIT)
        .with_context(|| format!("no agent answers at {address}; {hint}"))?;
    stream.set_read_timeout(Some(LIMIT))?;
    let asked = in_a_uri(wanted, sums);
    write!(stream, "GET /records?{asked} HTTP/1.0\r\nHost: {address}\r\n\r\n")?;
    let mut answer = BufReader::new(stream);
    let (status, head) =
        read_head(&mut answer).with_context(|| format!("{address} does not answer as HTTP does"))?;
    if status != 200 {
        let mut text = String::new();
        // What it says is for people, and short.
        let _ = answer.take(4096).read_to_string(&mut text);
        bail!("{address}: {} (HTTP {status})", text.trim());
    }
    if !head.contains("ndjson") {
        bail!("{address} answers /records with something else than records: another program listens there");
    }
    answer.get_ref().set_read_timeout(None)?;
    let mut seen = Seen::default();
    // Only what is followed may come twice: from the store and live.
    let ended = each_line(answer, &mut |line: &str| (wanted.follow && !seen.is_new(line)) || each(line))
        .context("the agent's answer broke off")?;
    if ended && wanted.follow {
        bail!(
            "{address} has ended its answer: the agent stops, or records were not read as fast as they came"
        );
    }
    Ok(())
}

/// What an agent's `/records` is asked for.
fn in_a_uri(wanted: &Wanted<'_>, sums: bool) -> String {
    let Span { since, until } = wanted.span;
    let [follow, newest, sums] = [wanted.follow, wanted.newest_first, sums].map(u8::from);
    let mut uri = format!("since={since}&until={until}&follow={follow}&newest={newest}&sums={sums}");
    for word in wanted.filters.words() {
        uri.push_str("&filter=");
        for byte in word.bytes() {
            match byte {
                b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'.' | b'/' => uri.push(char::from(byte)),
                _ => uri.push_str(&format!("%{byte:02X}")),
            }
        }
    }
    uri
}

/// The status, and the whole head.
fn read_head(answer: &mut impl BufRead) -> io::Result<(u16, String)> {
    let mut head = String::new();
    while !head.ends_with("\r\n\r\n") {
        if head.len() > 16 << 10 || answer.read_line(&mut head)? == 0 {
            return Err(io::ErrorKind::InvalidData.into());
        }
    }
    let status = head.split(' ').nth(1).and_then(|status| status.parse().ok());
    Ok((status.ok_or(io::ErrorKind::InvalidData)?, head.to_ascii_lowercase()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_followed_file_is_read_on_after_it_was_put_aside_and_begun_anew() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("records");
        std::fs::write(&path, "one\n").unwrap();
        let mut lines = Vec::new();
        read_file(&path, true, &mut |line: &str| {
            lines.push(line.to_owned());
            match lines.len() {
                1 => {
                    let mut file = File::options().append(true).open(&path).unwrap();
                    file.write_all(b"tw").unwrap();
                    file.write_all(b"o\n").unwrap();
                }
                2 => {
                    std::fs::rename(&path, folder.path().join("aside")).unwrap();
                    std::fs::write(&path, "three\n").unwrap();
                }
                _ => {}
            }
            lines.len() < 3
        })
        .unwrap();
        assert_eq!(lines, ["one", "two", "three"]);
    }

    #[test]
    fn a_followed_file_loses_nothing_when_it_is_emptied_put_aside_or_has_bytes_that_are_no_text() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("records");
        std::fs::write(&path, "one is long\n").unwrap();
        let mut writer = File::options().append(true).open(&path).unwrap();
        let mut lines = Vec::new();
        read_file(&path, true, &mut |line: &str| {
            lines.push(line.to_owned());
            match lines.len() {
                1 => {
                    writer.set_len(0).unwrap();
                    writer.write_all(b"two\n").unwrap();
                }
                2 => writer.write_all(b"\xff\n\nfour\n").unwrap(),
                4 => {
                    // The last line comes to a file that has another name by now, and half of one more.
                    std::fs::rename(&path, folder.path().join("aside")).unwrap();
                    std::fs::write(&path, "six\n").unwrap();
                    writer.write_all(b"five\nhal").unwrap();
                }
                _ => {}
            }
            lines.len() < 6
        })
        .unwrap();
        assert_eq!(lines, ["one is long", "two", "\u{fffd}", "four", "five", "six"]);
    }

    #[test]
    fn a_compressed_file_is_read_and_bytes_that_are_no_text_end_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("records.zst");
        std::fs::write(&path, zstd::encode_all(&b"one\n\n\xff\xfe\nthree"[..], 1).unwrap()).unwrap();
        let mut lines = Vec::new();
        read_file(&path, false, &mut |line: &str| {
            lines.push(line.to_owned());
            true
        })
        .unwrap();
        assert_eq!(lines, ["one", "\u{fffd}\u{fffd}", "three"]);
    }

    #[test]
    fn a_line_told_a_moment_ago_is_not_told_again() {
        let mut seen = Seen::default();
        assert!(seen.is_new("a") && seen.is_new("b") && !seen.is_new("a"));
        (0..REMEMBERED).for_each(|number| assert!(seen.is_new(&number.to_string())));
        assert!(seen.is_new("a"), "only a bounded number is remembered");
    }
}
