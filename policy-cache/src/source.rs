//! Manifest files, watched → snapshots, published.
//!
//! Change notifications only say when to look; what is read is always everything, and what differs from what is
//! known changes the cluster. The objects themselves are not kept. Without a good set to begin with nothing
//! begins; a later problem concerns the object that has it: a policy is quarantined, so that it never widens
//! access, any other object stays as it last was. Problems are told, each once.

use std::ffi::OsString;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant, SystemTime};

use notify::{RecursiveMode, Watcher};

use crate::cluster::Cluster;
use crate::manifest::{self, Fingerprint, LoadError, Partial, Problem};
use crate::options::Options;
use crate::store::SnapshotStore;

mod unfinished;

use unfinished::{Fewer, WRITER_LIMIT, Writers, Writing};

/// How long a change must have been quiet: an editor writes a file in several steps.
const DEBOUNCE: Duration = Duration::from_millis(50);
/// The longest a steady stream of changes may put a reload off.
const MAX_DEBOUNCE: Duration = Duration::from_millis(500);
/// How often the files are looked at without a notification: network file systems send none.
const POLL: Duration = Duration::from_secs(5);
/// A look that takes longer counts as one that does not come back.
const LOOK_LIMIT: Duration = Duration::from_secs(60);
/// How long the end of the thread is waited for: it may be at a look that does not come back.
const JOIN_LIMIT: Duration = Duration::from_secs(5);
const JOIN_STEP: Duration = Duration::from_millis(1);

/// Manifests that were read once and are ready to be watched.
#[derive(Debug)]
pub struct ManifestSource {
    paths: Vec<PathBuf>,
    options: Options,
    cluster: Cluster,
    store: SnapshotStore,
    /// When the manifests were about to be read.
    read: SystemTime,
}

/// How the watching goes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SourceStatus {
    /// When the manifests were last looked at without a problem: what is published is as they were then.
    pub last_success: SystemTime,
    /// False once nobody looks any more: the watch has ended, or one look has been going on for a minute,
    /// as on a file system that does not answer.
    pub alive: bool,
    /// Since when something in them is rejected; `None` while nothing is.
    pub failing_since: Option<SystemTime>,
    /// What is rejected in them now.
    pub problems: Vec<Problem>,
}

impl ManifestSource {
    /// Reads the manifests under `paths` and publishes the first snapshot.
    ///
    /// # Errors
    ///
    /// Every problem in them: without a good set to begin with there is nothing to fall back on.
    pub fn open(paths: &[PathBuf], options: Options) -> Result<(Self, SnapshotStore), LoadError> {
        let read = SystemTime::now();
        let objects = manifest::load_any(paths)?;
        let mut cluster = Cluster::new(options.clone());
        cluster.replace(&objects);
        let store = SnapshotStore::new();
        let mut source = Self { paths: paths.to_vec(), options, cluster, store: store.clone(), read };
        source.publish();
        Ok((source, store))
    }

    /// Watches the manifests from a thread of its own, until the handle is dropped.
    pub fn watch(self) -> WatchHandle {
        let (sender, receiver) = mpsc::channel();
        let state = Arc::new(Mutex::new(State::good(self.read)));
        let mut watch = Watch {
            source: self,
            state: Arc::clone(&state),
            sender: sender.clone(),
            watcher: None,
            seen: None,
            writers: Writers::default(),
            fewer: None,
        };
        let thread =
            std::thread::Builder::new().name("manifests".to_owned()).spawn(move || watch.run(&receiver));
        let thread =
            thread.inspect_err(|error| tracing::error!(%error, "manifests are not watched: no thread")).ok();
        WatchHandle { sender, state, thread }
    }

    fn publish(&mut self) {
        self.store.publish(self.cluster.snapshot());
    }
}

/// A running watch. Dropping it ends the thread.
#[derive(Debug)]
pub struct WatchHandle {
    sender: mpsc::Sender<Wake>,
    state: Arc<Mutex<State>>,
    thread: Option<JoinHandle<()>>,
}

impl WatchHandle {
    /// How the watching goes.
    pub fn status(&self) -> SourceStatus {
        let state = lock(&self.state);
        let runs = self.thread.as_ref().is_some_and(|thread| !thread.is_finished());
        let hangs = state.busy_since.is_some_and(|since| since.elapsed() >= LOOK_LIMIT);
        SourceStatus {
            last_success: state.last_success,
            alive: runs && !hangs,
            failing_since: state.failing_since,
            problems: state.problems.clone(),
        }
    }

    /// Tells of the own node's interface addresses; a snapshot with them follows soon.
    pub fn set_own_addresses(&self, addresses: Vec<IpAddr>) {
        // Fails only when the thread is gone, which has been reported.
        let _ = self.sender.send(Wake::OwnAddresses(addresses));
    }
}

impl Drop for WatchHandle {
    fn drop(&mut self) {
        let _ = self.sender.send(Wake::Stop);
        let Some(thread) = self.thread.take() else { return };
        let deadline = Instant::now() + JOIN_LIMIT;
        while !thread.is_finished() {
            if Instant::now() >= deadline {
                tracing::warn!("the manifest watch is still busy and is left behind");
                return;
            }
            std::thread::sleep(JOIN_STEP);
        }
        if thread.join().is_err() {
            tracing::error!("the manifest watch panicked");
        }
    }
}

/// What the thread tells.
#[derive(Debug)]
struct State {
    last_success: SystemTime,
    failing_since: Option<SystemTime>,
    problems: Vec<Problem>,
    /// Since when the thread has been at work; `None` while it waits.
    busy_since: Option<Instant>,
}

impl State {
    fn good(last_success: SystemTime) -> Self {
        Self { last_success, failing_since: None, problems: Vec::new(), busy_since: None }
    }
}

fn lock(state: &Mutex<State>) -> MutexGuard<'_, State> {
    state.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Why the thread wakes.
#[derive(Debug)]
enum Wake {
    /// Something differs; perhaps it is known what that says of a manifest's writer.
    Changed(Option<Writing>),
    /// A manifest's writer has closed it. What it wrote has been told of.
    Closed(Writing),
    OwnAddresses(Vec<IpAddr>),
    Stop,
}

struct Watch {
    source: ManifestSource,
    state: Arc<Mutex<State>>,
    sender: mpsc::Sender<Wake>,
    watcher: Option<notify::RecommendedWatcher>,
    /// How the files looked when they were last read; `None` when they must be read anyway.
    seen: Option<Fingerprint>,
    writers: Writers,
    /// Objects were not read that are known, and it is not believed yet.
    fewer: Option<Fewer>,
}

impl Watch {
    fn run(&mut self, receiver: &mpsc::Receiver<Wake>) {
        self.busy(true);
        self.observe();
        // What changed between the first reading and the watch.
        self.reload();
        loop {
            self.busy(false);
            let wake = receiver.recv_timeout(if self.fewer.is_some() { DEBOUNCE } else { POLL });
            self.busy(true);
            match wake {
                Ok(Wake::Stop) | Err(RecvTimeoutError::Disconnected) => return,
                Ok(Wake::OwnAddresses(addresses)) => self.set_own_addresses(addresses),
                Ok(Wake::Closed(writing)) => self.writers.note(writing, Instant::now()),
                Ok(Wake::Changed(writing)) => {
                    self.note(writing);
                    if !self.settle(receiver) {
                        return;
                    }
                    // Folders and links may be others now. Watched first, read second: nothing falls between.
                    self.observe();
                    self.reload();
                }
                Err(RecvTimeoutError::Timeout) => self.poll(),
            }
        }
    }

    fn busy(&self, busy: bool) {
        lock(&self.state).busy_since = busy.then(Instant::now);
    }

    fn note(&mut self, writing: Option<Writing>) {
        if let Some(writing) = writing {
            self.writers.note(writing, Instant::now());
        }
    }

    /// Waits until nothing changes any more and nobody writes. False: stop.
    fn settle(&mut self, receiver: &mpsc::Receiver<Wake>) -> bool {
        let started = Instant::now();
        loop {
            let writes = self.writers.are_waited_for(Instant::now());
            if started.elapsed() >= if writes { WRITER_LIMIT } else { MAX_DEBOUNCE } {
                return true;
            }
            match receiver.recv_timeout(DEBOUNCE) {
                Ok(Wake::Changed(writing)) => self.note(writing),
                Ok(Wake::Closed(writing)) => self.writers.note(writing, Instant::now()),
                Ok(Wake::OwnAddresses(addresses)) => self.set_own_addresses(addresses),
                Ok(Wake::Stop) | Err(RecvTimeoutError::Disconnected) => return false,
                Err(RecvTimeoutError::Timeout) if writes => {}
                Err(RecvTimeoutError::Timeout) => return true,
            }
        }
    }

    fn set_own_addresses(&mut self, addresses: Vec<IpAddr>) {
        let sorted =
            |addresses: &[IpAddr]| addresses.iter().copied().collect::<std::collections::BTreeSet<_>>();
        if sorted(&addresses) != sorted(&self.source.options.own_addresses) {
            self.source.options.own_addresses = addresses;
            self.source.cluster.set_options(self.source.options.clone());
            self.source.publish();
        }
    }

    /// Reads again only what looks different, for parsing a large cluster takes a while.
    fn poll(&mut self) {
        let now = SystemTime::now();
        let mut files = Fingerprint::take(&self.source.paths);
        if let Some(fewer) = &self.fewer
            && fewer.is_as_found(&files)
        {
            if fewer.is_believed(Instant::now()) {
                self.reload();
            }
            return;
        }
        if self.seen.as_ref() != Some(&files) {
            // No notification told of it, so none will tell when its writer is done.
            let deadline = Instant::now() + MAX_DEBOUNCE;
            while !files.is_settled() && Instant::now() < deadline {
                std::thread::sleep(DEBOUNCE);
                let before = std::mem::replace(&mut files, Fingerprint::take(&self.source.paths));
                if before == files {
                    break;
                }
            }
            return self.reload();
        }
        let mut state = lock(&self.state);
        if state.failing_since.is_none() {
            state.last_success = now;
        }
    }

    fn reload(&mut self) {
        let now = SystemTime::now();
        let files = Fingerprint::take(&self.source.paths);
        let read = manifest::load_what_reads(&self.source.paths);
        let gone = read.gone(self.source.cluster.vanished(&read.objects));
        let before = self.fewer.take();
        if !gone.is_empty() {
            // Nothing of it is applied meanwhile: what is gone and what is new belong together.
            let fewer = Fewer::found(before, files.clone(), read.has_empty_file, Instant::now());
            if !fewer.is_believed(Instant::now()) {
                self.fewer = Some(fewer);
                return;
            }
        }
        self.seen = Some(files).filter(Fingerprint::is_settled);
        if self.source.cluster.exchange(&read.objects, &gone) {
            self.source.publish();
        }
        // After the publication: whoever sees the success finds the snapshot.
        if read.problems.is_empty() { self.succeeded(now) } else { self.failed(&read) }
    }

    fn succeeded(&self, at: SystemTime) {
        let mut state = lock(&self.state);
        if state.failing_since.is_some() {
            tracing::info!("manifests are usable again");
        }
        state.last_success = at;
        state.failing_since = None;
        state.problems.clear();
    }

    fn failed(&self, read: &Partial) {
        let mut state = lock(&self.state);
        for problem in read.problems.iter().filter(|problem| !state.problems.contains(problem)) {
            tracing::error!(
                %problem,
                "manifest rejected: a policy allows no more than can be read, anything else stays as it was"
            );
        }
        state.failing_since.get_or_insert_with(SystemTime::now);
        state.problems.clone_from(&read.problems);
    }

    /// Watches the folders anew. A watch that fails is no failure: the poll goes on.
    fn observe(&mut self) {
        let sender = self.sender.clone();
        let places: Vec<Place> = self.source.paths.iter().flat_map(|path| places(path)).collect();
        let interesting = places.clone();
        let watcher = notify::recommended_watcher(move |event: notify::Result<notify::Event>| {
            if let Some(wake) = event.map_or(Some(Wake::Changed(None)), |event| wake(&event, &interesting)) {
                let _ = sender.send(wake);
            }
        });
        let mut watcher = watcher
            .inspect_err(|error| tracing::warn!(%error, "manifests are polled: no change notifications"))
            .ok();
        for place in &places {
            let Some(watcher) = &mut watcher else { break };
            let mode = match place.entry {
                Some(_) => RecursiveMode::NonRecursive,
                None => RecursiveMode::Recursive,
            };
            if let Err(error) = watcher.watch(&place.folder, mode) {
                tracing::warn!(%error, path = %place.folder.display(), "polled: no change notifications");
            }
        }
        // Only now the one before is dropped, so that no writer's end is missed.
        self.watcher = watcher;
    }
}

/// A folder to watch.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Place {
    folder: PathBuf,
    /// The one entry of it that matters; `None`: everything in it and below.
    entry: Option<OsString>,
}

/// What to watch for changes of `path`: everything below a folder; for a file the folder it is in, because
/// editors replace files; and the same for what a link leads to, and for the link.
///
/// Not what is beside a folder: records are often written there, and each line would be an event. A folder
/// that is itself replaced tells of its own removal, and the poll finds the new one.
fn places(path: &Path) -> Vec<Place> {
    let in_parent = |path: &Path| {
        let folder = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
        Some(Place { folder: folder.to_owned(), entry: Some(path.file_name()?.to_owned()) })
    };
    let mut places = Vec::new();
    let real = path.canonicalize().unwrap_or_else(|_| path.to_owned());
    if real.is_dir() {
        places.push(Place { folder: real, entry: None });
    } else {
        places.extend(in_parent(&real));
    }
    // A folder watched as a whole first: a second watch of the same folder would replace the first.
    if !path.is_dir() || path.is_symlink() {
        places.extend(in_parent(path));
    }
    places
}

/// What an event wakes the thread for. Reading is no change. An event without a path says that events were lost.
fn wake(event: &notify::Event, places: &[Place]) -> Option<Wake> {
    let touches = |path: &Path| {
        places.iter().any(|place| match (&place.entry, path.file_name()) {
            (None, _) => path.starts_with(&place.folder),
            // A mounted ConfigMap changes by replacing the link `..data` beside its files.
            (Some(entry), Some(name)) => name == entry || name.as_encoded_bytes().starts_with(b".."),
            (Some(_), None) => true,
        })
    };
    let is_manifest = |path: &Path| {
        let is_named = |place: &Place| place.entry.is_some() && path.file_name() == place.entry.as_deref();
        manifest::is_manifest(path) && touches(path) || places.iter().any(is_named)
    };
    let writing = Writing::of(event, is_manifest);
    if event.kind.is_access() {
        return writing.map(Wake::Closed);
    }
    let touched = event.paths.is_empty() || event.paths.iter().any(|path| touches(path));
    touched.then_some(Wake::Changed(writing))
}

#[cfg(test)]
mod tests {
    use super::*;
    use flow::Generation;

    #[test]
    fn a_poll_sees_a_change_that_no_notification_told_of() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("a.yaml");
        let namespace =
            |name: &str| format!("{{apiVersion: v1, kind: Namespace, metadata: {{name: {name}}}}}");
        std::fs::write(&file, namespace("one")).unwrap();
        let (source, store) = ManifestSource::open(std::slice::from_ref(&file), Options::default()).unwrap();
        let (sender, _receiver) = mpsc::channel();
        let state = Arc::new(Mutex::new(State::good(source.read)));
        let mut watch = Watch {
            source,
            state,
            sender,
            watcher: None,
            seen: None,
            writers: Writers::default(),
            fewer: None,
        };
        let generation = || store.current().map(|snapshot| snapshot.generation());
        watch.poll();
        assert_eq!(generation(), Some(Generation(1)));
        // One is gone, which is believed after a while.
        std::fs::write(&file, namespace("two")).unwrap();
        let deadline = Instant::now() + JOIN_LIMIT;
        while generation() != Some(Generation(2)) {
            assert!(Instant::now() < deadline);
            watch.poll();
        }
        std::fs::write(&file, "kind: [").unwrap();
        watch.poll();
        watch.poll();
        assert_eq!(generation(), Some(Generation(2)));
        assert!(lock(&watch.state).failing_since.is_some());
    }

    fn handle(thread: impl FnOnce() + Send + 'static) -> (WatchHandle, mpsc::Receiver<Wake>) {
        let (sender, receiver) = mpsc::channel();
        let state = Arc::new(Mutex::new(State::good(SystemTime::now())));
        (WatchHandle { sender, state, thread: Some(std::thread::spawn(thread)) }, receiver)
    }

    #[test]
    fn a_look_that_does_not_come_back_is_told_and_does_not_hold_up_the_end() {
        let (release, blocked) = mpsc::channel::<()>();
        let (watch, _wakes) = handle(move || {
            let _ = blocked.recv();
        });
        assert!(watch.status().alive);
        lock(&watch.state).busy_since = Instant::now().checked_sub(LOOK_LIMIT);
        assert!(!watch.status().alive);
        let started = Instant::now();
        drop(watch);
        assert!((JOIN_LIMIT..JOIN_LIMIT * 2).contains(&started.elapsed()));
        drop(release);
    }

    #[test]
    fn a_watch_whose_thread_has_ended_is_not_alive() {
        let (watch, _wakes) = handle(|| {});
        let deadline = Instant::now() + JOIN_LIMIT;
        while watch.status().alive {
            assert!(Instant::now() < deadline);
            std::thread::yield_now();
        }
    }
}
