//! `GET /records`: the records of this node as lines of JSON, from its store and live.
//!
//! `since` and `until` are nanoseconds since 1970, `newest=1` begins with the newest, `follow=1` goes on with live
//! ones. `namespace`, `pod` (`namespace/prefix`, `/prefix`), `action`, `cause` and `denied=1` leave out others of the
//! store; live ones are not chosen. A client that reads too slowly misses live lines; the connection then ends, so
//! that nobody takes what came for all there is.

use std::path::Path;
use std::pin::Pin;
use std::task::{Context, Poll};

use audit::{MOST_NAMED, PodNamed, Recorder, StoreQuery};
use hyper::body::{Body, Bytes, Frame};
use tokio::sync::mpsc;

/// Pieces that wait for a client. A live piece has up to 256 KiB.
const PIECES: usize = 64;
/// Lines of the store are gathered into pieces of this size.
const PIECE_BYTES: usize = 32 << 10;

/// What a client asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Asked {
    pub(super) query: StoreQuery,
    pub(super) follow: bool,
}

impl Asked {
    /// From the query of a URI; the error names what is wrong with it.
    pub(super) fn parse(query: &str) -> Result<Self, String> {
        let mut asked = Self { query: StoreQuery::default(), follow: false };
        for (key, value) in query
            .split('&')
            .filter(|part| !part.is_empty())
            .map(|part| part.split_once('=').unwrap_or((part, "")))
        {
            let value = decoded(value).ok_or_else(|| format!("{key}: {value} is no text\n"))?;
            let number = || value.parse::<i64>().map_err(|_| format!("{key}: {value} is no number\n"));
            let query = &mut asked.query;
            match key {
                "since" => query.since = number()?,
                "until" => query.until = number()?,
                "newest" => query.newest_first = number()? != 0,
                "denied" => query.denied = number()? != 0,
                "follow" => asked.follow = number()? != 0,
                "namespace" => query.namespaces.push(value),
                "action" => query.actions.push(value),
                "cause" => query.causes.push(value),
                "pod" => query.pods.push(pod(&value)?),
                _ => return Err(format!("{key}: {KEYS}\n")),
            }
        }
        let StoreQuery { namespaces, actions, causes, pods, .. } = &asked.query;
        if [namespaces.len(), actions.len(), causes.len(), pods.len()].iter().any(|count| *count > MOST_NAMED)
        {
            return Err(format!("there are more than {MOST_NAMED} values of one kind\n"));
        }
        Ok(asked)
    }
}

const KEYS: &str = "there are since, until, newest, follow, namespace, pod, action, cause and denied";

fn pod(text: &str) -> Result<PodNamed, String> {
    let (namespace, prefix) =
        text.split_once('/').ok_or_else(|| format!("pod: {text} is no NAMESPACE/NAME or /NAME\n"))?;
    let namespace = Some(namespace.to_owned()).filter(|namespace| !namespace.is_empty());
    Ok(PodNamed { namespace, prefix: prefix.to_owned() })
}

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
            let (folder, query) = (folder.to_owned(), asked.query.clone());
            let read = std::thread::Builder::new().name("records-read".to_owned());
            if let Err(error) = read.spawn(move || read_store(&folder, &query, &sender)) {
                tracing::error!(%error, "the store is not read");
            }
        }
        Ok(Self(receiver))
    }
}

fn read_store(folder: &Path, query: &StoreQuery, to: &mpsc::Sender<Bytes>) {
    let mut piece = Vec::with_capacity(PIECE_BYTES + 4096);
    let done = audit::read_store(folder, query, |line| {
        piece.extend_from_slice(line.as_bytes());
        piece.push(b'\n');
        if piece.len() < PIECE_BYTES {
            return true;
        }
        // Waits for the client: this thread has nothing else to do.
        to.blocking_send(Bytes::from(std::mem::take(&mut piece))).is_ok()
    });
    if let Err(error) = done {
        tracing::warn!(%error, "the store was not read to its end");
    }
    if !piece.is_empty() {
        let _ = to.blocking_send(Bytes::from(piece));
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
    fn a_question_is_times_and_whether_to_go_on() {
        let asked = Asked::parse("since=-5&until=7&follow=1&newest=1&denied=1").unwrap();
        assert_eq!((asked.query.since, asked.query.until, asked.follow), (-5, 7, true));
        assert!(asked.query.newest_first && asked.query.denied);
        assert_eq!(Asked::parse("").unwrap(), Asked { query: StoreQuery::default(), follow: false });
        assert_eq!(Asked::parse("since=now").unwrap_err(), "since: now is no number\n");
        assert_eq!(Asked::parse("last=3").unwrap_err(), format!("last: {KEYS}\n"));
    }

    #[test]
    fn what_is_named_is_decoded_and_bounded() {
        let query =
            Asked::parse("namespace=a&namespace=b&pod=shop/web&pod=%2Fd%c3%A4&cause=refused&action=x")
                .unwrap()
                .query;
        assert_eq!(query.namespaces, ["a", "b"]);
        let pod = |namespace: Option<&str>, prefix: &str| PodNamed {
            namespace: namespace.map(Into::into),
            prefix: prefix.to_owned(),
        };
        assert_eq!(query.pods, [pod(Some("shop"), "web"), pod(None, "dä")]);
        assert_eq!((query.causes, query.actions), (vec!["refused".to_owned()], vec!["x".to_owned()]));
        for broken in ["namespace=%", "namespace=%zz", "namespace=%ff", "pod=web", &"action=x&".repeat(101)] {
            assert!(Asked::parse(broken).is_err(), "{broken}");
        }
    }
}
