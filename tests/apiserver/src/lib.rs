//! A Kubernetes API server for tests: discovery, lists in pages, watches, bookmarks and streamed lists, over TLS
//! with a CA of its own, with the objects that a test puts into it. And everything that can go wrong, on command.
//!
//! It runs on a thread of its own until it is dropped. It is no API server otherwise: it validates nothing.

mod answer;
mod fault;
mod identity;
pub mod objects;
mod real;
mod request;
mod store;
mod tunnel;
mod watch;

use std::io;
use std::net::{SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use serde_json::Value;
use tokio::sync::oneshot;

pub use fault::{Answer, Fault, Verb, WatchEnd};
use identity::Identity;
pub use real::{ASSETS, Audited, RealServer, assets};
use store::Store;
pub use tunnel::Tunnel;

/// A request that was received.
#[derive(Clone, Debug)]
pub struct Received {
    /// When.
    pub at: Instant,
    /// The method.
    pub method: String,
    /// Path and query.
    pub path: String,
    /// The body, for requests that have one.
    pub body: Option<Value>,
}

/// How the server behaves. Changed at any time with [`ApiServer::set`].
#[derive(Clone, Debug)]
pub struct Behaviour {
    /// Whether it has streamed lists. One that has not refuses them.
    pub streams: bool,
    /// Whether it takes the question for a streamed list for an ordinary watch, as servers before 1.27 do.
    pub ignores_streams: bool,
    /// The time between bookmarks.
    pub bookmarks: Duration,
    /// The most objects of a page, whatever a client asks for.
    pub page: usize,
    /// The tokens that are known; empty: anybody may come in.
    pub tokens: Vec<String>,
    /// The API groups with their versions' collections that there are besides the built-in ones.
    pub tiers: bool,
    /// Whether these are served as v1beta1 only, as after an upgrade of their CRDs.
    pub newer_tiers: bool,
    /// The longest a watch is kept open.
    pub watch_limit: Duration,
    /// Bodies are sent in chunks of this many bytes; 0: as they come.
    pub chunk: usize,
}

impl Default for Behaviour {
    fn default() -> Self {
        Self {
            streams: true,
            ignores_streams: false,
            bookmarks: Duration::from_millis(500),
            page: usize::MAX,
            tokens: Vec::new(),
            tiers: true,
            newer_tiers: false,
            watch_limit: Duration::from_secs(600),
            chunk: 0,
        }
    }
}

/// Shared by every connection.
#[derive(Debug)]
pub(crate) struct Shared {
    pub(crate) store: Store,
    behaviour: Mutex<Behaviour>,
    faults: Mutex<Vec<Fault>>,
    received: Mutex<Vec<Received>>,
}

impl Shared {
    pub(crate) fn behaviour(&self) -> Behaviour {
        lock(&self.behaviour).clone()
    }

    pub(crate) fn note(&self, received: Received) {
        lock(&self.received).push(received);
    }

    /// The fault that a request runs into, when there is one for it.
    pub(crate) fn fault(&self, plural: &str, verb: Verb, path: &str) -> Option<Answer> {
        let mut faults = lock(&self.faults);
        let place = faults.iter().position(|fault| fault.concerns(plural, verb, path))?;
        let fault = faults.get_mut(place)?;
        let answer = fault.answer.clone();
        fault.times = fault.times.saturating_sub(1);
        if fault.times == 0 {
            faults.remove(place);
        }
        Some(answer)
    }
}

pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A running server.
#[derive(Debug)]
pub struct ApiServer {
    address: SocketAddr,
    identity: Identity,
    folder: tempfile::TempDir,
    shared: Arc<Shared>,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl ApiServer {
    /// A server on a free port of 127.0.0.1.
    ///
    /// # Errors
    ///
    /// When it cannot listen.
    pub fn start() -> io::Result<Self> {
        Self::on(TcpListener::bind(("127.0.0.1", 0))?)
    }

    /// A server on a socket that listens already, maybe in another network namespace.
    ///
    /// # Errors
    ///
    /// When the socket cannot be used or the thread not started.
    pub fn on(listener: TcpListener) -> io::Result<Self> {
        let identity = Identity::new(listener.local_addr()?.ip()).map_err(io::Error::other)?;
        Self::with(listener, identity)
    }

    /// A server whose certificate expired long ago.
    ///
    /// # Errors
    ///
    /// When it cannot listen.
    pub fn start_expired() -> io::Result<Self> {
        let listener = TcpListener::bind(("127.0.0.1", 0))?;
        let identity = Identity::expired(listener.local_addr()?.ip()).map_err(io::Error::other)?;
        Self::with(listener, identity)
    }

    fn with(listener: TcpListener, identity: Identity) -> io::Result<Self> {
        let address = listener.local_addr()?;
        listener.set_nonblocking(true)?;
        let shared = Arc::new(Shared {
            store: Store::default(),
            behaviour: Mutex::new(Behaviour::default()),
            faults: Mutex::new(Vec::new()),
            received: Mutex::new(Vec::new()),
        });
        let (stop, stopped) = oneshot::channel();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let acceptor = identity.acceptor().map_err(io::Error::other)?;
        let serving = Arc::clone(&shared);
        let thread = std::thread::Builder::new().name("apiserver".to_owned()).spawn(move || {
            runtime.block_on(async {
                tokio::select! {
                    () = answer::serve(listener, acceptor, serving) => {}
                    _ = stopped => {}
                }
            });
            runtime.shutdown_background();
        })?;
        let folder = tempfile::tempdir()?;
        Ok(Self { address, identity, folder, shared, stop: Some(stop), thread: Some(thread) })
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Where it keeps its kubeconfig and token.
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// Writes a kubeconfig that leads here, with the token in a file beside it, and returns its path.
    ///
    /// # Errors
    ///
    /// When a file cannot be written.
    pub fn kubeconfig(&self, token: &str) -> io::Result<PathBuf> {
        self.write_token(token)?;
        let path = self.folder.path().join("kubeconfig");
        let text = self.identity.kubeconfig(self.address, &self.folder.path().join("token"));
        std::fs::write(&path, text)?;
        Ok(path)
    }

    /// Writes another token into the file that the kubeconfig names.
    ///
    /// # Errors
    ///
    /// When the file cannot be written.
    pub fn write_token(&self, token: &str) -> io::Result<()> {
        std::fs::write(self.folder.path().join("token"), token)
    }

    /// Changes how it behaves from now on.
    pub fn set(&self, change: impl FnOnce(&mut Behaviour)) {
        change(&mut lock(&self.shared.behaviour));
        self.shared.store.wake();
    }

    /// Lets the next requests that it concerns run into a fault.
    pub fn fail(&self, fault: Fault) {
        lock(&self.shared.faults).push(fault);
    }

    /// Takes back every fault that was not run into yet.
    pub fn heal(&self) {
        lock(&self.shared.faults).clear();
    }

    /// Creates or changes an object, which says its `apiVersion`, `kind` and name. Returns its version.
    ///
    /// # Panics
    ///
    /// When it does not say so, or is of a kind that is not known here.
    pub fn put(&self, object: Value) -> u64 {
        self.shared.store.put(object)
    }

    /// Creates or changes every object of a YAML text with many documents.
    ///
    /// # Panics
    ///
    /// When the text is no YAML, or as [`ApiServer::put`].
    pub fn apply(&self, yaml: &str) {
        for document in yaml.split("\n---").filter(|document| !document.trim().is_empty()) {
            let text = document.trim_start_matches("---");
            let object: Value =
                serde_saphyr::from_str(text).unwrap_or_else(|error| panic!("no YAML: {error}\n{text}"));
            if !object.is_null() {
                self.put(object);
            }
        }
    }

    /// Puts bytes in the place of an object, whatever they are: lists and watches send them as they are.
    pub fn put_raw(&self, plural: &str, namespace: &str, name: &str, json: impl Into<Vec<u8>>) -> u64 {
        self.shared.store.put_raw(plural, namespace, name, json.into())
    }

    /// Removes an object. Nothing happens when there is none.
    pub fn delete(&self, plural: &str, namespace: &str, name: &str) {
        self.shared.store.delete(plural, namespace, name);
    }

    /// Removes an object without telling those who watch: they were not connected then.
    pub fn delete_silently(&self, plural: &str, namespace: &str, name: &str) {
        self.shared.store.delete_silently(plural, namespace, name);
    }

    /// Sends bytes to all who watch a collection.
    pub fn send_to_watches(&self, plural: &str, bytes: impl Into<Vec<u8>>) {
        self.shared.store.tell(plural, watch::Command::Send(bytes.into()));
    }

    /// Ends every open watch of a collection; `""` is every collection.
    pub fn end_watches(&self, plural: &str, how: WatchEnd) {
        self.shared.store.tell(plural, watch::Command::End(how));
    }

    /// Forgets what happened up to now: whoever asks for it is told 410 Gone. Pages expire too.
    pub fn compact(&self) {
        self.shared.store.compact();
    }

    /// Counts versions anew from a low number, as a server does whose store was restored from a backup.
    pub fn restore(&self) {
        self.shared.store.restore();
    }

    /// Every Event that was created.
    pub fn events(&self) -> Vec<Value> {
        self.shared.store.events()
    }

    /// An object of a cluster-scoped collection, as it is now.
    pub fn object(&self, plural: &str, name: &str) -> Option<Value> {
        serde_json::from_slice(&self.shared.store.get(plural, name)?).ok()
    }

    /// Every request so far.
    pub fn received(&self) -> Vec<Received> {
        lock(&self.shared.received).clone()
    }

    /// The requests so far whose path and query contain a text.
    pub fn received_like(&self, text: &str) -> Vec<Received> {
        self.received().into_iter().filter(|received| received.path.contains(text)).collect()
    }

    /// Watches of a collection that are open.
    pub fn open_watches(&self, plural: &str) -> usize {
        self.shared.store.open_watches(plural)
    }
}

impl Drop for ApiServer {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}
