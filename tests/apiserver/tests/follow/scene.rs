//! A server with a small cluster in it, somebody who follows it, and questions about what they know.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use apiserver::ApiServer;
pub(crate) use apiserver::objects::{admin_deny, deny, namespace, pod, policy};
use flow::Tuple;
use policy_cache::{Access, ApiConfig, ApiHandle, ApiSource, ApiStatus, KindStatus, Options, SnapshotStore};

/// For what takes milliseconds on a quiet machine, and half a minute when the server was away for long.
pub(crate) const LIMIT: Duration = Duration::from_secs(60);

pub(crate) const WEB: &str = "10.0.0.1:80";
pub(crate) const DB: &str = "10.0.0.2:80";
pub(crate) const CLIENT: &str = "10.0.0.3:40000";

pub(crate) struct Scene<S = ApiServer> {
    // Ends before the server.
    pub(crate) api: ApiHandle,
    pub(crate) store: SnapshotStore,
    pub(crate) server: S,
}

/// Quick enough for tests.
pub(crate) fn config() -> ApiConfig {
    ApiConfig {
        start_jitter_ms: 0,
        silence_ms: 3_000,
        answer_timeout_ms: 2_000,
        discovery_ms: 300,
        ..ApiConfig::default()
    }
}

/// Puts `shop` with `web` and `db`, and `other` with `client` into the server.
pub(crate) fn fill(server: &ApiServer) {
    for object in [
        namespace("shop"),
        namespace("other"),
        pod("shop", "web", "10.0.0.1"),
        pod("shop", "db", "10.0.0.2"),
        pod("other", "client", "10.0.0.3"),
    ] {
        server.put(object);
    }
}

impl Scene {
    /// The cluster of [`fill`], followed, everything listed.
    pub(crate) fn new() -> Self {
        Self::with(config(), |_| {})
    }

    /// The same, prepared and configured.
    pub(crate) fn with(config: ApiConfig, prepare: impl FnOnce(&ApiServer)) -> Self {
        let scene = Self::unready(config, prepare);
        scene.wait("everything is listed", |scene| scene.store.current().is_some());
        scene
    }

    /// The same, without waiting.
    pub(crate) fn unready(config: ApiConfig, prepare: impl FnOnce(&ApiServer)) -> Self {
        let server = ApiServer::start().unwrap();
        fill(&server);
        prepare(&server);
        let access = Access::Kubeconfig(server.kubeconfig("secret").unwrap());
        let options = Options { node: Some("node1".to_owned()), ..Options::default() };
        let (api, store) = ApiSource::start(access, &config, options).unwrap();
        Self { api, store, server }
    }

    /// Waits until every change in the server up to now has arrived: a pod made for it is known.
    pub(crate) fn settle(&self) {
        let ip = "10.9.9.9";
        self.server.put(pod("other", "settled", ip));
        self.wait("a new pod arrives", |scene| scene.knows(ip));
        self.server.delete("pods", "other", "settled");
        self.wait("a deletion arrives", |scene| !scene.knows(ip));
    }
}

impl<S> Scene<S> {
    /// Whether the newest snapshot allows a connection.
    pub(crate) fn allows(&self, from: &str, to: &str) -> bool {
        let snapshot = self.store.current().expect("a snapshot");
        let (from, to): (SocketAddr, SocketAddr) = (from.parse().unwrap(), to.parse().unwrap());
        snapshot.decide(&snapshot.identify(&Tuple::tcp(from, to))).verdict().is_allow()
    }

    /// Whether the newest snapshot knows a pod at an address.
    pub(crate) fn knows(&self, ip: &str) -> bool {
        self.store.current().is_some_and(|snapshot| snapshot.endpoint(ip.parse().unwrap()).pod().is_some())
    }

    pub(crate) fn generation(&self) -> u64 {
        self.store.current().map_or(0, |snapshot| snapshot.generation().0)
    }

    pub(crate) fn status(&self) -> ApiStatus {
        self.api.status()
    }

    pub(crate) fn kind(&self, kind: &str) -> KindStatus {
        self.status().kinds.into_iter().find(|row| row.kind == kind).unwrap()
    }

    /// The names of the rejected objects.
    pub(crate) fn rejected(&self) -> Vec<String> {
        self.status().rejected.iter().map(|(key, _)| key.to_string()).collect()
    }

    pub(crate) fn wait(&self, what: &str, condition: impl Fn(&Self) -> bool) {
        let ends = Instant::now() + LIMIT;
        while !condition(self) {
            assert!(Instant::now() < ends, "{what}: not within {LIMIT:?}\n{:#?}", self.status());
            std::thread::sleep(Duration::from_millis(2));
        }
    }

    /// Holds a condition for a while, during which something may break it.
    pub(crate) fn holds_for(&self, time: Duration, what: &str, condition: impl Fn(&Self) -> bool) {
        let ends = Instant::now() + time;
        while Instant::now() < ends {
            assert!(condition(self), "{what}\n{:#?}", self.status());
            std::thread::sleep(Duration::from_millis(1));
        }
    }
}
