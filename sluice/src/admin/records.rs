//! `GET /records`: the records of this node as lines of JSON, from its store and live.
//!
//! `since` and `until` are nanoseconds since 1970, `newest=1` begins with the newest, `follow=1` goes on with live
//! ones. Each `filter` is an argument as `sluice observe` takes it, `--namespace=shop`, and leaves out others of the
//! store; live ones are not chosen. `sums=1` adds them up: a line for each pair of workloads and port. A client that
//! reads too slowly misses live lines; the connection then ends, so that nobody takes what came for all there is.

use std::path::Path;
use std::pin::Pin;
use std::task::{Context, Poll};

use audit::{Recorder, StoreQuery};
use hyper::body::{Body, Bytes, Frame};
use tokio::sync::mpsc;

use crate::cmd::observe::edges::{Edges, Told};
use crate::cmd::observe::filter::Filters;

/// Pieces that wait for a client. A live piece has up to 256 KiB.
const PIECES: usize = 64;
/// Lines of the store are gathered into pieces of this size.
const PIECE_BYTES: usize = 32 << 10;

/// What a client asked for.
#[derive(Clone, Debug)]
pub(super) struct Asked {
    query: StoreQuery,
    filters: Filters,
    follow: bool,
    sums: bool,
}

impl Asked {
    /// From the query of a URI; the error names what is wrong with it.
    pub(super) fn parse(query: &str) -> Result<Self, String> {
        let mut asked =
            Self { query: StoreQuery::default(), filters: Filters::default(), follow: false, sums: false };
        let mut words = Vec::new();
        for (key, value) in query
            .split('&')
            .filter(|part| !part.is_empty())
            .map(|part| part.split_once('=').unwrap_or((part, "")))
        {
            let value = decoded(value).ok_or_else(|| format!("{key}: {value} is no text\n"))?;
            let number = || value.parse::<i64>().map_err(|_| format!("{key}: {value} is no number\n"));
            match key {
                "since" => asked.query.since = number()?,
                "until" => asked.query.until = number()?,
                "newest" => asked.query.newest_first = number()? != 0,
                "follow" => asked.follow = number()? != 0,
                "sums" => asked.sums = number()? != 0,
                "filter" => words.push(value),
                _ => return Err(format!("{key}: {KEYS}\n")),
            }
        }
        if asked.follow && asked.sums {
            return Err("sums: they are of the past, and follow waits for what comes\n".to_owned());
        }
        if words.len() > MOST_FILTERS {
            return Err(format!("filter: there are more than {MOST_FILTERS}\n"));
        }
        asked.filters = Filters::from_words(&words)
            .map_err(|problem| format!("filter: {} is none: {problem}\n", words.join(" ")))?;
        asked.filters.narrow(&mut asked.query);
        Ok(asked)
    }
}

const KEYS: &str = "there are since, until, newest, follow, sums and filter";
/// Filters of a question.
const MOST_FILTERS: usize = 1_000;

/// Takes back the percent-encoding of RFC 3986; `None` when it is broken or no UTF-8.
fn decoded(text: &str) -> Option<String> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let [first, after @ ..] = rest {
        rest = after;
        if *first != b'%' {
            bytes.push(*first);
            continue;
        }
        let digits = std::str::from_utf8(after.get(..2)?).ok()?;
        bytes.push(u8::from_str_radix(digits, 16).ok()?);
        rest = &after[2..];
    }
    String::from_utf8(bytes).ok()
}

/// Lines as they come. Ends when nobody has more.
#[derive(Debug)]
pub(super) struct Lines(mpsc::Receiver<Bytes>);

impl Lines {
    /// Starts reading. The error says why there is nothing to read.
    pub(super) fn start(recorder: &Recorder, asked: &Asked) -> Result<Self, &'static str> {
        let folder = recorder.store_folder();
        if folder.is_none() && !asked.follow {
            return Err("this agent keeps no records: start it with --data DIR, or ask with --follow\n");
        }
        let (sender, receiver) = mpsc::channel(PIECES);
        if asked.follow {
            // First, so that no record falls between the store and the live ones. Some are in both.
            let live = sender.clone();
            recorder.listen(Box::new(move |lines| live.try_send(Bytes::copy_from_slice(lines)).is_ok()));
        }
        if let Some(folder) = folder {
            let (folder, asked) = (folder.to_owned(), asked.clone());
            let read = std::thread::Builder::new().name("records-read".to_owned());
            if let Err(error) = read.spawn(move || read_store(&folder, &asked, sender)) {
                tracing::error!(%error, "the store is not read");
            }
        }
        Ok(Self(receiver))
    }
}

/// Sends what is asked for. This thread has nothing else to do, and waits for the client.
fn read_store(folder: &Path, asked: &Asked, to: mpsc::Sender<Bytes>) {
    let Asked { query, filters, .. } = asked;
    let mut pieces = Pieces { piece: Vec::with_capacity(PIECE_BYTES + 4096), to };
    let done = match (asked.sums, filters.are_none()) {
        (true, _) => add_up(folder, asked, &mut pieces),
        (false, true) => audit::read_store(folder, query, |line| pieces.add(line)),
        (false, false) => {
            audit::read_store_where(folder, query, |record| filters.matches(record), |line| pieces.add(line))
        }
    };
    if let Err(error) = done {
        tracing::warn!(%error, "the store was not read to its end");
    }
    pieces.send();
}

fn add_up(folder: &Path, asked: &Asked, pieces: &mut Pieces) -> Result<(), audit::ReadStoreError> {
    let mut edges = Edges::default();
    let done = audit::scan_store(folder, &asked.query, |record| {
        if asked.filters.matches(record) {
            edges.add(record);
        }
        !pieces.to.is_closed()
    });
    for (pair, counts) in edges.all() {
        // Numbers and names: making a line of them cannot fail.
        let line = serde_json::to_string(&Told { pair, counts }).unwrap_or_default();
        if !pieces.add(&line) {
            break;
        }
    }
    done
}

/// Lines on their way to a client, many at a time.
struct Pieces {
    piece: Vec<u8>,
    to: mpsc::Sender<Bytes>,
}

impl Pieces {
    /// False when the client has gone.
    fn add(&mut self, line: &str) -> bool {
        self.piece.extend_from_slice(line.as_bytes());
        self.piece.push(b'\n');
        self.piece.len() < PIECE_BYTES || self.send()
    }

    fn send(&mut self) -> bool {
        self.piece.is_empty() || self.to.blocking_send(Bytes::from(std::mem::take(&mut self.piece))).is_ok()
    }
}

impl Body for Lines {
    type Data = Bytes;
    type Error = std::convert::Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        self.0.poll_recv(context).map(|piece| piece.map(|piece| Ok(Frame::data(piece))))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_question_is_times_filters_and_whether_to_go_on_or_to_add_up() {
        let asked = Asked::parse("since=-5&until=7&follow=1&newest=1&filter=--verdict%3Ddeny").unwrap();
        assert_eq!((asked.query.since, asked.query.until, asked.follow), (-5, 7, true));
        assert!(asked.query.newest_first && asked.query.denied && !asked.sums);
        let nothing = Asked::parse("").unwrap();
        assert_eq!(nothing.query, StoreQuery::default());
        assert!(nothing.filters.are_none() && !nothing.follow);
        assert!(Asked::parse("sums=1").unwrap().sums);
        assert_eq!(Asked::parse("since=now").unwrap_err(), "since: now is no number\n");
        assert_eq!(Asked::parse("last=3").unwrap_err(), format!("last: {KEYS}\n"));
    }

    #[test]
    fn filters_are_decoded_and_bounded_and_the_store_is_asked_for_what_it_can_look_up() {
        let words = "filter=--namespace=a&filter=--namespace=b&filter=--pod%3Dshop/web&filter=--ip=10.0.0.0/8&filter=--port=80";
        let asked = Asked::parse(words).unwrap();
        assert_eq!(asked.query.namespaces, ["a", "b"]);
        assert_eq!(asked.query.pods.len(), 1);
        assert_eq!(asked.query.ips, ["10.0.0.0/8".parse().unwrap()]);
        assert_eq!(asked.filters.words().len(), 5);
        for broken in [
            "filter=%",
            "filter=%zz",
            "filter=%ff",
            "filter=--port%3Dx",
            "filter=--store",
            "sums=1&follow=1",
            &"filter=--port=1&".repeat(1_001),
        ] {
            assert!(Asked::parse(broken).is_err(), "{broken}");
        }
    }
}
