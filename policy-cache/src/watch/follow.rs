//! Follows one collection: lists it, watches it, and tells the owner of the cluster what it sees. What to ask
//! next and when is the [`Course`]'s to say.

use std::hash::{BuildHasher, RandomState};
use std::sync::Arc;
use std::time::{Duration, Instant};

use http::StatusCode;
use kube::client::Body;
use tokio::sync::mpsc;

use super::chance;
use super::course::{Ask, Course, From, Outcome};
use super::discover::Presence;
use super::items::Items;
use super::ledger::{Note, Origin, Sighting};
use super::lines::{Lines, Piece};
use super::page::{UNVERSIONED, end_of_page, is_version};
use super::request::{self, Door, Failure, query, short};
use super::resource::Resource;
use super::status::Board;
use crate::manifest::prune;
use crate::manifest::single::{child, metadata, metadata_value, read_node, unreadable};
use crate::manifest::tree::{Node, Value};
use crate::objects::Kind;

/// An object larger than this is not read. The API server takes requests of at most 3 MiB.
const MAX_OBJECT: usize = 8 << 20;
/// How long a streamed list may pause before it counts as one that does not come: an API server without them
/// takes the question for an ordinary watch, which has no end of a list.
const STREAM_PAUSE: Duration = Duration::from_secs(10);
/// How long the server is asked to keep a watch open, at least; every watch adds a part of it by chance.
const WATCH_SECONDS: f64 = 290.0;

const NAMELESS: &str = "there is a policy without a usable name, so that it cannot be told whom it closes";
/// The log tells of what cannot be read no more often than this.
const GARBLED_PAUSE: Duration = Duration::from_secs(60);

/// What every follower has.
#[derive(Clone, Debug)]
pub(crate) struct Ground {
    pub(crate) door: Arc<Door>,
    pub(crate) notes: mpsc::Sender<Note>,
    pub(crate) board: Board,
    pub(crate) hasher: RandomState,
    pub(crate) page_size: u32,
    pub(crate) silence: Duration,
    pub(crate) streaming: bool,
}

/// Follows a collection for as long as somebody listens.
pub(crate) async fn follow(number: usize, resource: Resource, ground: Ground, presence: Option<Presence>) {
    let course = Course::new(ground.streaming);
    let mut follower =
        Follower { number, resource, ground, course, notes: Vec::new(), garbled: None, nameless: false };
    // It ends when the owner of the cluster is gone.
    let _ = follower.run(presence).await;
}

/// Nobody listens any more.
struct Deaf;

struct Follower {
    number: usize,
    resource: Resource,
    ground: Ground,
    course: Course,
    /// Read, and not told yet.
    notes: Vec<Note>,
    /// When the log last told of what could not be read.
    garbled: Option<Instant>,
    /// A policy without a usable name was among what was read: whom it closes cannot be told.
    nameless: bool,
}

impl Follower {
    async fn run(&mut self, mut presence: Option<Presence>) -> Result<(), Deaf> {
        while !self.ground.notes.is_closed() {
            if let Some(presence) = &mut presence
                && !presence.is_here(self.resource)
            {
                self.absent(presence).await?;
                continue;
            }
            let ask = self.course.ask();
            let started = Instant::now();
            let ended = self.attempt(&ask).await;
            self.tell().await?;
            let outcome = match ended {
                Ok(outcome) => {
                    self.ground.board.row(self.number, |row| row.error = None);
                    outcome
                }
                Err(failure) => self.failed(failure),
            };
            if outcome == Outcome::NotServed
                && let Some(presence) = &mut presence
            {
                presence.doubt();
            }
            let wait = self.course.after(outcome, started.elapsed(), chance());
            tokio::time::sleep(wait).await;
        }
        Err(Deaf)
    }

    /// Says that there is no such kind, and waits until there is.
    async fn absent(&mut self, presence: &mut Presence) -> Result<(), Deaf> {
        if presence.is_surely_absent(self.resource) {
            self.ground.board.row(self.number, |row| {
                row.absent = true;
                row.error = None;
                row.listing = None;
            });
            self.notes.push(Note::Absent(self.resource.kind));
            self.tell().await?;
            self.course.restart();
        } else if let Some(versions) = presence.elsewhere(self.resource) {
            let message = format!("served only as {versions}, and read only as {}", self.resource.version);
            self.ground.board.row(self.number, |row| row.error = Some(message));
        }
        presence.changed().await.map_err(|_| Deaf)
    }

    async fn attempt(&mut self, ask: &Ask) -> Result<Outcome, Failure> {
        self.nameless = false;
        match ask {
            Ask::Stream => {
                let pairs = [("sendInitialEvents", "true"), ("resourceVersionMatch", "NotOlderThan")];
                self.watch(&pairs, true).await
            }
            Ask::Watch { version } => self.watch(&[("resourceVersion", version)], false).await,
            Ask::Probe { version } => self.probe(version).await,
            Ask::List { from, token, whole } => self.list(from, token.as_deref(), *whole).await,
        }
    }

    /// Notes a failure, and says what it means. The log tells of those that last (`voice.rs`).
    fn failed(&mut self, failure: Failure) -> Outcome {
        let kind = self.resource.kind.as_str();
        let Failure { outcome, message, .. } = failure;
        tracing::debug!(kind, error = message, "a request to the API server failed");
        // Mended by the list that follows at once, so that it never lasts; and yet somebody must know.
        if outcome == Outcome::Garbled && self.garbled.is_none_or(|at| at.elapsed() >= GARBLED_PAUSE) {
            self.garbled = Some(Instant::now());
            tracing::warn!(
                kind,
                error = message,
                "the API server said what cannot be read; all is listed anew"
            );
        }
        self.ground.board.row(self.number, |row| row.error = Some(message));
        outcome
    }

    async fn watch(&mut self, pairs: &[(&str, &str)], streamed: bool) -> Result<Outcome, Failure> {
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a few hundred seconds")]
        let seconds = (WATCH_SECONDS * (1.0 + chance())) as u64;
        let seconds = seconds.to_string();
        let mut all = vec![("watch", "true"), ("allowWatchBookmarks", "true"), ("timeoutSeconds", &seconds)];
        all.extend_from_slice(pairs);
        let path = format!("{}{}", self.resource.path(), query(&all));
        let mut body = self.ground.door.get(&path).await?;
        self.ground.board.row(self.number, |row| row.watches += 1);
        let mut initial = streamed;
        if streamed {
            self.begin();
        }
        let mut lines = Lines::new(MAX_OBJECT);
        let mut ended = None;
        // Bytes alone are no sign of life: a blank line now and then tells nothing.
        let mut heard = Instant::now();
        while ended.is_none() {
            let silence = if initial { STREAM_PAUSE.min(self.ground.silence) } else { self.ground.silence };
            let left = silence.saturating_sub(heard.elapsed());
            if left.is_zero() {
                return Err(Failure::silent(silence));
            }
            let mut moved = false;
            let more = request::next(&mut body, left, |bytes| {
                lines.feed(bytes, |piece| {
                    moved = true;
                    if ended.is_none() {
                        ended = self.frame(piece, &mut initial);
                    }
                });
            });
            let more = match more.await {
                Err(failure) if failure.outcome == Outcome::Silent => return Err(Failure::silent(silence)),
                more => more?,
            };
            if self.tell().await.is_err() || !more {
                break;
            }
            // After telling: that nobody took it for a while is not the server's silence.
            if moved {
                heard = Instant::now();
            }
        }
        ended.unwrap_or(Ok(Outcome::Ended))
    }

    /// Takes a frame in. `Some` when it is the last that can be used.
    fn frame(&mut self, piece: Piece<'_>, initial: &mut bool) -> Option<Result<Outcome, Failure>> {
        let kind = self.resource.kind;
        let (json, problem) = match piece {
            Piece::TooLarge(head) => (head, format!("larger than {MAX_OBJECT} bytes")),
            Piece::Whole(json) => match prune::frame(json, kind) {
                Ok(frame) => return self.event(frame, initial),
                // What a parser says may quote all of it.
                Err(error) => (json, short(&error.to_string())),
            },
        };
        // Until the list that follows has said what there really is, the object counts as unreadable.
        let reading = unreadable(Some(kind), prune::identity(json, true), &problem);
        if reading.key.is_some() {
            let content = self.ground.hasher.hash_one(&problem);
            self.notes.push(Note::Object(Box::new(Sighting {
                kind,
                reading,
                content,
                origin: Origin::default(),
            })));
        }
        let message = format!("a watch event cannot be read: {problem}");
        Some(Err(Failure { outcome: Outcome::Garbled, message, status: None }))
    }

    fn event(&mut self, frame: prune::Frame, initial: &mut bool) -> Option<Result<Outcome, Failure>> {
        let prune::Frame { event, object } = frame;
        let version = metadata(&object, "resourceVersion").to_owned();
        match event.as_str() {
            "ADDED" | "MODIFIED" => {
                self.object(object);
                if std::mem::take(&mut self.nameless) {
                    let message = NAMELESS.to_owned();
                    return Some(Err(Failure { outcome: Outcome::Garbled, message, status: None }));
                }
            }
            "DELETED" => {
                let Some(key) = read_node(&object, Some(self.resource.kind)).key else {
                    let message = "a watch event does not say what is gone".to_owned();
                    return Some(Err(Failure { outcome: Outcome::Garbled, message, status: None }));
                };
                self.notes.push(Note::Deleted(key));
            }
            "BOOKMARK" if *initial => {
                if ends_list(&object) {
                    if !is_version(&version) {
                        return Some(Err(Failure::broken(UNVERSIONED)));
                    }
                    *initial = false;
                    self.end(version);
                    return None;
                }
                // An API server that does not know streamed lists, and has taken this for a watch.
                return Some(Err(Failure {
                    outcome: Outcome::Invalid,
                    message: "the API server has no streamed lists".to_owned(),
                    status: None,
                }));
            }
            "BOOKMARK" => {}
            "ERROR" => return Some(Err(error(&object))),
            _ => {
                let message = format!("a watch event of the unknown type {:?}", short(&event));
                return Some(Err(Failure { outcome: Outcome::Garbled, message, status: None }));
            }
        }
        // What a list tells is not in force before its end.
        if !*initial {
            self.course.heard(&version);
            self.heard();
        }
        None
    }

    /// Asks for one object, whose list says which version the server is at. It is no sign of life of the collection.
    async fn probe(&self, version: &str) -> Result<Outcome, Failure> {
        let path = format!("{}{}", self.resource.path(), query(&[("limit", "1")]));
        let mut body = self.ground.door.get(&path).await?;
        let mut items = Items::new(MAX_OBJECT);
        let mut broken = None;
        let (limit, started) = (self.ground.door.answer_timeout(), Instant::now());
        loop {
            let left = limit.saturating_sub(started.elapsed());
            let more = request::next(&mut body, left, |bytes| broken = items.feed(bytes, |_| {}).err());
            let more = more.await.map_err(|failure| failure.over(limit))?;
            if let Some(error) = broken {
                return Err(Failure::broken(error.to_string()));
            }
            if !more {
                break;
            }
        }
        let (found, _) = end_of_page(items, self.resource.kind)?;
        // Versions are numbers that grow (KEP-5504). Where they are not, a list is no mistake.
        let number = |version: &str| version.parse::<u128>().ok();
        let reached = matches!((number(&found), number(version)), (Some(found), Some(own)) if found >= own);
        Ok(Outcome::Probed { reached })
    }

    async fn list(&mut self, from: &From, token: Option<&str>, whole: bool) -> Result<Outcome, Failure> {
        let limit = self.ground.page_size.to_string();
        let mut pairs = Vec::new();
        if !whole {
            pairs.push(("limit", limit.as_str()));
        }
        match (token, from) {
            (Some(token), _) => pairs.push(("continue", token)),
            (None, From::Memory) => pairs.push(("resourceVersion", "0")),
            (None, From::NotOlder(version)) => {
                pairs.extend([
                    ("resourceVersion", version.as_str()),
                    ("resourceVersionMatch", "NotOlderThan"),
                ]);
            }
            (None, From::Newest) => {}
        }
        let path = format!("{}{}", self.resource.path(), query(&pairs));
        let mut body = self.ground.door.get(&path).await?;
        if token.is_none() {
            self.begin();
        }
        let mut items = Items::new(MAX_OBJECT);
        let found = self.items(&mut body, &mut items).await?;
        if self.tell().await.is_err() {
            return Ok(Outcome::Ended);
        }
        let (version, token) = end_of_page(items, self.resource.kind)?;
        let muddled = |message: &str| {
            Err(Failure { outcome: Outcome::Muddled, message: message.to_owned(), status: None })
        };
        if self.course.is_of_another_list(&version) {
            return muddled("the pages of the list are of different versions");
        }
        match &token {
            None => self.end(version.clone()),
            Some(token) if self.course.goes_in_circles(token) => {
                return muddled("the pages of the list lead back to one another");
            }
            Some(_) => {}
        }
        Ok(Outcome::Page { token, version, empty: found == 0 })
    }

    /// Reads the items of a page, and how many there were. Bytes alone are no progress: an object must come to its end
    /// within the time that an answer may take.
    async fn items(&mut self, body: &mut Body, items: &mut Items) -> Result<usize, Failure> {
        let limit = self.ground.door.answer_timeout();
        let (mut found, mut moved) = (0_usize, Instant::now());
        loop {
            let (before, mut broken) = (found, None);
            let left = limit.saturating_sub(moved.elapsed());
            let more = request::next(body, left, |bytes| {
                let fed = items.feed(bytes, |piece| {
                    found += 1;
                    self.item(piece);
                });
                broken = fed.err();
            });
            let more = more.await.map_err(|failure| failure.over(limit))?;
            if let Some(error) = broken {
                return Err(Failure::broken(error.to_string()));
            }
            if std::mem::take(&mut self.nameless) {
                return Err(Failure::broken(NAMELESS));
            }
            if !more || self.tell().await.is_err() {
                return Ok(found);
            }
            // After telling: that nobody took it for a while is not the server's silence.
            if found > before {
                moved = Instant::now();
            }
        }
    }

    fn item(&mut self, piece: Piece<'_>) {
        let kind = self.resource.kind;
        let (json, problem) = match piece {
            Piece::TooLarge(head) => (head, format!("larger than {MAX_OBJECT} bytes")),
            Piece::Whole(json) => match prune::object(json, Some(kind)) {
                Ok(node) => return self.object(node),
                Err(error) => (json, short(&error.to_string())),
            },
        };
        let reading = unreadable(Some(kind), prune::identity(json, false), &problem);
        self.nameless |= reading.key.is_none() && matches!(kind, Kind::Policy(_));
        let content = self.ground.hasher.hash_one(&problem);
        self.notes.push(Note::Object(Box::new(Sighting {
            kind,
            reading,
            content,
            origin: Origin::default(),
        })));
    }

    fn object(&mut self, mut node: Node) {
        let origin = Origin {
            uid: metadata(&node, "uid").to_owned(),
            generation: match metadata_value(&node, "generation") {
                Some(Value::Integer(generation)) => *generation,
                _ => 0,
            },
        };
        // It changes with every write, whatever was written.
        prune::drop_metadata(&mut node, "resourceVersion");
        let content = self.ground.hasher.hash_one(&node.value);
        let reading = read_node(&node, Some(self.resource.kind));
        self.nameless |= reading.key.is_none() && matches!(self.resource.kind, Kind::Policy(_));
        let sighting = Sighting { kind: self.resource.kind, reading, content, origin };
        self.notes.push(Note::Object(Box::new(sighting)));
    }

    fn begin(&mut self) {
        self.ground.board.row(self.number, |row| {
            row.lists += 1;
            row.absent = false;
            row.listing.get_or_insert_with(Instant::now);
        });
        self.notes.push(Note::Begin(self.resource.kind));
    }

    fn end(&mut self, version: String) {
        self.course.listed(version);
        self.ground.board.row(self.number, |row| row.listing = None);
        self.notes.push(Note::End(self.resource.kind));
        self.heard();
    }

    fn heard(&self) {
        self.ground.board.row(self.number, |row| {
            row.heard = Some(Instant::now());
            row.error = None;
        });
    }

    /// Tells what was read. Waits while the owner of the cluster is busy, and the server with it.
    async fn tell(&mut self) -> Result<(), Deaf> {
        for note in self.notes.drain(..) {
            self.ground.notes.send(note).await.map_err(|_| Deaf)?;
        }
        Ok(())
    }
}

fn ends_list(bookmark: &Node) -> bool {
    metadata_value(bookmark, "annotations")
        .and_then(|annotations| child(annotations, prune::INITIAL_EVENTS_END))
        .is_some_and(|value| matches!(value, Value::String(text) if text == "true"))
}

/// The Status that ends a watch.
fn error(status: &Node) -> Failure {
    let text = |field| match child(&status.value, field) {
        Some(Value::String(text)) => text.as_str(),
        _ => "",
    };
    let code = match child(&status.value, "code") {
        Some(Value::Integer(code)) => {
            u16::try_from(*code).ok().and_then(|code| StatusCode::from_u16(code).ok())
        }
        _ => None,
    };
    let message = format!("the watch ended: {} {}", text("reason"), short(text("message")));
    let outcome = match code {
        Some(code) => request::outcome(code, None),
        None if matches!(text("reason"), "Expired" | "Gone") => Outcome::Expired,
        None => Outcome::Refused { retry_after: None },
    };
    Failure { outcome, message, status: code }
}
