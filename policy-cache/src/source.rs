//! Manifest files, watched → snapshots, published.
//!
//! Change notifications only say when to look; what is read is always everything. A set with a problem in it
//! changes nothing: the last good snapshot stays in force and the problems are told, each once.

use std::ffi::OsString;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant, SystemTime};

use flow::Generation;
use notify::{RecursiveMode, Watcher};

use crate::compile::compile;
use crate::manifest::{self, Fingerprint, LoadError};
use crate::objects::Objects;
use crate::options::Options;
use crate::store::SnapshotStore;

/// How long a change must have been quiet: an editor writes a file in several steps.
const DEBOUNCE: Duration = Duration::from_millis(50);
/// The longest a steady stream of changes may put a reload off.
const MAX_DEBOUNCE: Duration = Duration::from_millis(500);
/// How often the files are looked at without a notification: network file systems send none.
const POLL: Duration = Duration::from_secs(5);

/// Manifests that were read once and are ready to be watched.
#[derive(Debug)]
pub struct ManifestSource {
    paths: Vec<PathBuf>,
    options: Options,
    objects: Objects,
    generation: Generation,
    store: SnapshotStore,
}

/// How the watching goes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SourceStatus {
    /// When the manifests were last read without a problem.
    pub last_success: SystemTime,
    /// Since when they cannot be used; `None` while they can.
    pub failing_since: Option<SystemTime>,
    /// Why they cannot be used now, a line each.
    pub problems: Vec<String>,
}

impl ManifestSource {
    /// Reads the manifests under `paths` and publishes the first snapshot.
    ///
    /// # Errors
    ///
    /// Every problem in them: without a good set to begin with there is nothing to fall back on.
    pub fn open(paths: &[PathBuf], options: Options) -> Result<(Self, SnapshotStore), LoadError> {
        let objects = manifest::load(paths)?;
        let generation = Generation(1);
        let store = SnapshotStore::new();
        store.publish(compile(&objects, &options, generation));
        let source = Self { paths: paths.to_vec(), options, objects, generation, store: store.clone() };
        Ok((source, store))
    }

    /// Watches the manifests from a thread of its own, until the handle is dropped.
    pub fn watch(self) -> WatchHandle {
        let (sender, receiver) = mpsc::channel();
        let status =
            SourceStatus { last_success: SystemTime::now(), failing_since: None, problems: Vec::new() };
        let status = Arc::new(Mutex::new(status));
        let mut watch = Watch {
            source: self,
            status: Arc::clone(&status),
            sender: sender.clone(),
            watcher: None,
            seen: None,
        };
        let thread =
            std::thread::Builder::new().name("manifests".to_owned()).spawn(move || watch.run(&receiver));
        let thread =
            thread.inspect_err(|error| tracing::error!(%error, "manifests are not watched: no thread")).ok();
        WatchHandle { sender, status, thread }
    }

    fn publish(&mut self) {
        self.generation.0 += 1;
        self.store.publish(compile(&self.objects, &self.options, self.generation));
    }
}

/// A running watch. Dropping it ends the thread.
#[derive(Debug)]
pub struct WatchHandle {
    sender: mpsc::Sender<Wake>,
    status: Arc<Mutex<SourceStatus>>,
    thread: Option<JoinHandle<()>>,
}

impl WatchHandle {
    /// How the watching goes.
    pub fn status(&self) -> SourceStatus {
        self.status.lock().unwrap_or_else(PoisonError::into_inner).clone()
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
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            tracing::error!("the manifest watch panicked");
        }
    }
}

/// Why the thread wakes.
#[derive(Debug)]
enum Wake {
    Changed,
    OwnAddresses(Vec<IpAddr>),
    Stop,
}

struct Watch {
    source: ManifestSource,
    status: Arc<Mutex<SourceStatus>>,
    sender: mpsc::Sender<Wake>,
    watcher: Option<notify::RecommendedWatcher>,
    /// How the files looked when they were last read; `None` when they must be read anyway.
    seen: Option<Fingerprint>,
}

impl Watch {
    fn run(&mut self, receiver: &mpsc::Receiver<Wake>) {
        self.observe();
        // What changed between the first reading and the watch.
        self.reload();
        loop {
            match receiver.recv_timeout(POLL) {
                Ok(Wake::Stop) | Err(RecvTimeoutError::Disconnected) => return,
                Ok(Wake::OwnAddresses(addresses)) => self.set_own_addresses(addresses),
                Ok(Wake::Changed) => {
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

    /// Waits until nothing changes any more. False: stop.
    fn settle(&mut self, receiver: &mpsc::Receiver<Wake>) -> bool {
        let started = Instant::now();
        while started.elapsed() < MAX_DEBOUNCE {
            match receiver.recv_timeout(DEBOUNCE) {
                Ok(Wake::Changed) => {}
                Ok(Wake::OwnAddresses(addresses)) => self.set_own_addresses(addresses),
                Ok(Wake::Stop) | Err(RecvTimeoutError::Disconnected) => return false,
                Err(RecvTimeoutError::Timeout) => break,
            }
        }
        true
    }

    fn set_own_addresses(&mut self, addresses: Vec<IpAddr>) {
        let sorted =
            |addresses: &[IpAddr]| addresses.iter().copied().collect::<std::collections::BTreeSet<_>>();
        if sorted(&addresses) != sorted(&self.source.options.own_addresses) {
            self.source.options.own_addresses = addresses;
            self.source.publish();
        }
    }

    /// Reads again only what looks different, for parsing a large cluster takes a while.
    fn poll(&mut self) {
        if self.seen.as_ref() == Some(&Fingerprint::take(&self.source.paths)) {
            let mut status = self.status.lock().unwrap_or_else(PoisonError::into_inner);
            if status.failing_since.is_none() {
                status.last_success = SystemTime::now();
            }
            return;
        }
        self.reload();
    }

    fn reload(&mut self) {
        self.seen = Some(Fingerprint::take(&self.source.paths)).filter(Fingerprint::is_settled);
        match manifest::load(&self.source.paths) {
            Ok(objects) => {
                if objects != self.source.objects {
                    self.source.objects = objects;
                    self.source.publish();
                }
                // After the publication: whoever sees the success finds the snapshot.
                self.succeeded();
            }
            Err(error) => self.failed(&error),
        }
    }

    fn succeeded(&self) {
        let mut status = self.status.lock().unwrap_or_else(PoisonError::into_inner);
        if status.failing_since.is_some() {
            tracing::info!("manifests are usable again");
        }
        *status = SourceStatus { last_success: SystemTime::now(), failing_since: None, problems: Vec::new() };
    }

    fn failed(&self, error: &LoadError) {
        let problems: Vec<String> = error.problems.iter().map(ToString::to_string).collect();
        let mut status = self.status.lock().unwrap_or_else(PoisonError::into_inner);
        for problem in problems.iter().filter(|problem| !status.problems.contains(problem)) {
            tracing::error!(%problem, "manifest rejected, the last good state stays in force");
        }
        status.failing_since.get_or_insert_with(SystemTime::now);
        status.problems = problems;
    }

    /// Watches the folders anew. A watch that fails is no failure: the poll goes on.
    fn observe(&mut self) {
        let sender = self.sender.clone();
        let places: Vec<Place> = self.source.paths.iter().flat_map(|path| places(path)).collect();
        let interesting = places.clone();
        let watcher = notify::recommended_watcher(move |event: notify::Result<notify::Event>| {
            if event.is_err() || event.is_ok_and(|event| concerns(&event, &interesting)) {
                let _ = sender.send(Wake::Changed);
            }
        });
        self.watcher = watcher
            .inspect_err(|error| tracing::warn!(%error, "manifests are polled: no change notifications"))
            .ok();
        let Some(watcher) = &mut self.watcher else { return };
        for place in &places {
            let mode = match place.entry {
                Some(_) => RecursiveMode::NonRecursive,
                None => RecursiveMode::Recursive,
            };
            if let Err(error) = watcher.watch(&place.folder, mode) {
                tracing::warn!(%error, path = %place.folder.display(), "polled: no change notifications");
            }
        }
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

/// Reading is no change. An event without a path says that events were lost.
fn concerns(event: &notify::Event, places: &[Place]) -> bool {
    let touches = |path: &PathBuf| {
        places.iter().any(|place| match (&place.entry, path.file_name()) {
            (None, _) => path.starts_with(&place.folder),
            // A mounted ConfigMap changes by replacing the link `..data` beside its files.
            (Some(entry), Some(name)) => name == entry || name.as_encoded_bytes().starts_with(b".."),
            (Some(_), None) => true,
        })
    };
    !event.kind.is_access() && (event.paths.is_empty() || event.paths.iter().any(touches))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_poll_sees_a_change_that_no_notification_told_of() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("a.yaml");
        let namespace =
            |name: &str| format!("{{apiVersion: v1, kind: Namespace, metadata: {{name: {name}}}}}");
        std::fs::write(&file, namespace("one")).unwrap();
        let (source, store) = ManifestSource::open(std::slice::from_ref(&file), Options::default()).unwrap();
        let status =
            SourceStatus { last_success: SystemTime::now(), failing_since: None, problems: Vec::new() };
        let (sender, _receiver) = mpsc::channel();
        let status = Arc::new(Mutex::new(status));
        let mut watch = Watch { source, status, sender, watcher: None, seen: None };
        let generation = || store.current().map(|snapshot| snapshot.generation());
        watch.poll();
        assert_eq!(generation(), Some(Generation(1)));
        std::fs::write(&file, namespace("two")).unwrap();
        watch.poll();
        assert_eq!(generation(), Some(Generation(2)));
        std::fs::write(&file, "kind: [").unwrap();
        watch.poll();
        watch.poll();
        assert_eq!(generation(), Some(Generation(2)));
        assert!(watch.status.lock().unwrap().failing_since.is_some());
    }
}
