//! An API server that tells which kinds it has and has no objects: what `kubectl apply --dry-run=client` asks for.
//! Listens on the loopback address until it is dropped.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use serde_json::{Value, json};

/// A kind, as discovery tells it.
#[derive(Clone, Copy, Debug)]
pub struct Kind {
    /// `group/version`, or the version alone.
    pub version: &'static str,
    /// Its name.
    pub kind: &'static str,
    /// Its name in paths.
    pub plural: &'static str,
    /// Whether its objects are in namespaces.
    pub namespaced: bool,
}

/// The kinds of a cluster in which everything that is shipped can be installed, and no others.
pub const KINDS: [Kind; 9] = [
    Kind { version: "v1", kind: "Namespace", plural: "namespaces", namespaced: false },
    Kind { version: "v1", kind: "ServiceAccount", plural: "serviceaccounts", namespaced: true },
    Kind { version: "v1", kind: "ConfigMap", plural: "configmaps", namespaced: true },
    Kind { version: "v1", kind: "Service", plural: "services", namespaced: true },
    Kind { version: "apps/v1", kind: "DaemonSet", plural: "daemonsets", namespaced: true },
    Kind {
        version: "rbac.authorization.k8s.io/v1",
        kind: "ClusterRole",
        plural: "clusterroles",
        namespaced: false,
    },
    Kind {
        version: "rbac.authorization.k8s.io/v1",
        kind: "ClusterRoleBinding",
        plural: "clusterrolebindings",
        namespaced: false,
    },
    Kind {
        version: "monitoring.coreos.com/v1",
        kind: "ServiceMonitor",
        plural: "servicemonitors",
        namespaced: true,
    },
    Kind {
        version: "monitoring.coreos.com/v1",
        kind: "PrometheusRule",
        plural: "prometheusrules",
        namespaced: true,
    },
];

/// The running server.
#[derive(Debug)]
pub struct Api {
    address: SocketAddr,
    _alive: Arc<()>,
}

impl Api {
    /// Starts one.
    ///
    /// # Panics
    /// When the loopback address cannot be listened on.
    pub fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let address = listener.local_addr().expect("an address");
        let alive = Arc::new(());
        let watched = Arc::downgrade(&alive);
        thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                if watched.upgrade().is_none() {
                    return;
                }
                thread::spawn(move || serve(&stream));
            }
        });
        Self { address, _alive: alive }
    }

    /// Its URL.
    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }
}

impl Drop for Api {
    fn drop(&mut self) {
        self._alive = Arc::new(());
        // Wakes the thread, which finds that nobody needs it.
        let _ = TcpStream::connect(self.address);
    }
}

fn serve(stream: &TcpStream) {
    let _ = stream.set_read_timeout(Some(Duration::from_secs(10)));
    let mut lines = BufReader::new(stream).lines().map_while(Result::ok);
    let request = lines.next().unwrap_or_default();
    lines.take_while(|line| !line.is_empty()).for_each(drop);
    let path = request.split(' ').nth(1).unwrap_or_default();
    let (code, body) = answer(path.split('?').next().unwrap_or_default());
    let body = body.to_string();
    let mut writer = stream;
    let _ = write!(
        writer,
        "HTTP/1.1 {code} -\r\nContent-Type: application/json\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{body}",
        body.len()
    );
}

fn answer(path: &str) -> (u16, Value) {
    let mut versions: BTreeMap<&str, Vec<&Kind>> = BTreeMap::new();
    KINDS.iter().for_each(|kind| versions.entry(kind.version).or_default().push(kind));
    let parts: Vec<&str> = path.trim_matches('/').split('/').collect();
    match parts.as_slice() {
        ["api"] => {
            (200, json!({"kind": "APIVersions", "versions": ["v1"], "serverAddressByClientCIDRs": []}))
        }
        ["apis"] => (200, groups(&versions)),
        ["api", "v1"] => (200, resources("v1", &versions["v1"])),
        ["apis", group, version] if versions.contains_key(format!("{group}/{version}").as_str()) => {
            let version = format!("{group}/{version}");
            (200, resources(&version, &versions[version.as_str()]))
        }
        ["openapi", "v3"] => {
            let path = |version: &str| {
                if version.contains('/') { format!("apis/{version}") } else { format!("api/{version}") }
            };
            let paths: Value = versions
                .keys()
                .map(|version| {
                    (
                        path(version),
                        json!({"serverRelativeURL": format!("/openapi/v3/{}?hash=1", path(version))}),
                    )
                })
                .collect();
            (200, json!({"paths": paths}))
        }
        ["openapi", "v3", "api" | "apis", version @ ..] => {
            let version = version.join("/");
            versions.get(version.as_str()).map_or_else(|| missing(path), |kinds| (200, operations(kinds)))
        }
        _ => missing(path),
    }
}

fn groups(versions: &BTreeMap<&str, Vec<&Kind>>) -> Value {
    let named =
        versions.keys().filter_map(|version| version.split_once('/').map(|(group, _)| (group, version)));
    let groups: Vec<Value> = named
        .map(|(group, version)| {
            let (_, short) = version.split_once('/').unwrap_or_default();
            let version = json!({"groupVersion": version, "version": short});
            json!({"name": group, "versions": [version], "preferredVersion": version})
        })
        .collect();
    json!({"kind": "APIGroupList", "apiVersion": "v1", "groups": groups})
}

fn resources(version: &str, kinds: &[&Kind]) -> Value {
    let resources: Vec<Value> = kinds
        .iter()
        .map(|kind| {
            json!({
                "name": kind.plural, "singularName": kind.kind.to_lowercase(), "namespaced": kind.namespaced,
                "kind": kind.kind, "verbs": ["create", "delete", "get", "list", "patch", "update", "watch"],
            })
        })
        .collect();
    json!({"kind": "APIResourceList", "apiVersion": "v1", "groupVersion": version, "resources": resources})
}

/// As every server since 1.25: fields are the server's to validate.
fn operations(kinds: &[&Kind]) -> Value {
    let paths: Value = kinds
        .iter()
        .map(|kind| {
            let (group, version) = kind.version.split_once('/').unwrap_or(("", kind.version));
            let operation = json!({
                "x-kubernetes-group-version-kind": {"group": group, "version": version, "kind": kind.kind},
                "parameters": [{"name": "fieldValidation", "in": "query"}],
            });
            (format!("/{}/{{name}}", kind.plural), json!({"patch": operation}))
        })
        .collect();
    json!({"openapi": "3.0.0", "info": {"title": "Kubernetes", "version": "1.36"}, "paths": paths})
}

fn missing(path: &str) -> (u16, Value) {
    let message = format!("{path} not found");
    (
        404,
        json!({"kind": "Status", "apiVersion": "v1", "status": "Failure", "reason": "NotFound", "message": message, "code": 404}),
    )
}
