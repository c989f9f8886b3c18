//! One open watch: what happened and happens is sent, with bookmarks in between, until it ends.

use std::sync::Arc;
use std::time::Duration;

use http_body_util::channel::Sender;
use hyper::body::Bytes;
use tokio::time::Instant;

use crate::Shared;
use crate::fault::WatchEnd;
use crate::store::COLLECTIONS;

/// What a test tells the watches of a collection to do.
#[derive(Clone, Debug)]
pub(crate) enum Command {
    Send(Vec<u8>),
    End(WatchEnd),
}

/// A body's sender, which counts nothing but may break off.
pub(crate) type Body = Sender<Bytes, std::io::Error>;

/// What a watch was asked for.
#[derive(Clone, Debug)]
pub(crate) struct Wish {
    pub(crate) plural: &'static str,
    /// Everything after this version; `None`: everything there is, then everything that happens.
    pub(crate) after: Option<u64>,
    /// The end of what there is shall be marked.
    pub(crate) mark: bool,
    pub(crate) bookmarks: bool,
    pub(crate) limit: Duration,
}

struct Open(Arc<Shared>, &'static str);

impl Drop for Open {
    fn drop(&mut self) {
        self.0.store.watch_closed(self.1);
    }
}

/// Sends until the watch ends.
pub(crate) async fn run(wish: Wish, mut body: Body, shared: Arc<Shared>) {
    shared.store.watch_opened(wish.plural);
    let open = Open(Arc::clone(&shared), wish.plural);
    if let Some(end) = send_all(&wish, &mut body, &shared).await {
        match end {
            WatchEnd::Reset => body.abort(std::io::Error::other("reset on command")),
            WatchEnd::Silence => {
                // It counts as closed here and looks open from there.
                drop(open);
                std::future::pending::<()>().await;
            }
            WatchEnd::Clean | WatchEnd::Expired => {}
        }
    }
}

/// `None` when the client has gone.
async fn send_all(wish: &Wish, body: &mut Body, shared: &Shared) -> Option<WatchEnd> {
    let mut woken = shared.store.subscribe();
    let mut serial = shared.store.serial();
    let ends = Instant::now() + wish.limit;
    let mut sent = match wish.after {
        Some(version) => version,
        None => initial(wish, body, shared).await?,
    };
    let mut bookmark = Instant::now() + shared.behaviour().bookmarks;
    loop {
        woken.mark_unchanged();
        for told in shared.store.commands(wish.plural, serial) {
            serial = told.serial;
            match told.command {
                Command::Send(bytes) => send(body, bytes).await?,
                Command::End(WatchEnd::Expired) => {
                    send(body, gone().into_bytes()).await?;
                    return Some(WatchEnd::Expired);
                }
                Command::End(end) => return Some(end),
            }
        }
        let Some(changes) = shared.store.changes(wish.plural, sent) else {
            send(body, gone().into_bytes()).await?;
            return Some(WatchEnd::Expired);
        };
        for change in changes {
            sent = change.version;
            send(body, event(change.event, &change.json)).await?;
        }
        tokio::select! {
            changed = woken.changed() => changed.ok()?,
            () = tokio::time::sleep_until(bookmark) => {
                bookmark = Instant::now() + shared.behaviour().bookmarks;
                let version = shared.store.version();
                // As a real server: one who asks for what is to come hears nothing until then.
                if wish.bookmarks
                    && version >= sent
                    && shared.store.changes(wish.plural, sent).is_some_and(|rest| rest.is_empty())
                {
                    sent = version;
                    send(body, mark(wish.plural, sent, false).into_bytes()).await?;
                }
            }
            () = tokio::time::sleep_until(ends) => return Some(WatchEnd::Clean),
        }
    }
}

/// Everything there is.
async fn initial(wish: &Wish, body: &mut Body, shared: &Shared) -> Option<u64> {
    let page = shared.store.page(wish.plural, None, usize::MAX)?;
    let mut buffer = Vec::new();
    for item in page.items {
        buffer.extend_from_slice(&event("ADDED", &item));
        if buffer.len() > 64 << 10 {
            send(body, std::mem::take(&mut buffer)).await?;
        }
    }
    if wish.mark {
        buffer.extend_from_slice(mark(wish.plural, page.version, true).as_bytes());
    }
    send(body, buffer).await?;
    Some(page.version)
}

fn event(kind: &str, json: &[u8]) -> Vec<u8> {
    [br#"{"type":""#, kind.as_bytes(), br#"","object":"#, json, b"}\n"].concat()
}

fn mark(plural: &str, version: u64, end: bool) -> String {
    let (_, api_version, kind) =
        COLLECTIONS.iter().find(|(known, ..)| *known == plural).unwrap_or(&COLLECTIONS[0]);
    let annotations = if end { r#","annotations":{"k8s.io/initial-events-end":"true"}"# } else { "" };
    format!(
        r#"{{"type":"BOOKMARK","object":{{"kind":"{kind}","apiVersion":"{api_version}","metadata":{{"resourceVersion":"{version}"{annotations}}}}}}}"#
    ) + "\n"
}

fn gone() -> String {
    r#"{"type":"ERROR","object":{"kind":"Status","apiVersion":"v1","metadata":{},"status":"Failure","message":"too old resource version","reason":"Expired","code":410}}"#
        .to_owned()
        + "\n"
}

async fn send(body: &mut Body, bytes: Vec<u8>) -> Option<()> {
    if bytes.is_empty() {
        return Some(());
    }
    body.send_data(Bytes::from(bytes)).await.ok()
}
