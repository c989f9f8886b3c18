//! A real kube-apiserver with its etcd, from the folder that `KUBEBUILDER_ASSETS` names, as envtest has it: `etcd`,
//! `kube-apiserver` and `kubectl`. On free ports of 127.0.0.1, with TLS, RBAC, service accounts' tokens and an audit
//! log, and with a way to it that can be cut. No controllers run, as in envtest.

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::identity::Identity;
use crate::tunnel::Tunnel;

/// Where the programs are, by envtest's convention.
pub const ASSETS: &str = "KUBEBUILDER_ASSETS";
/// For a server that starts on a busy machine.
const START: Duration = Duration::from_secs(120);
const STEP: Duration = Duration::from_millis(50);
/// Who may do everything.
const ADMIN: &str = "token-of-the-test";

/// The folder of the programs; `None`, and a line that says so, when the environment names none.
pub fn assets() -> Option<PathBuf> {
    let folder = std::env::var_os(ASSETS).filter(|folder| !folder.is_empty());
    if folder.is_none() {
        eprintln!("skipped: {ASSETS} names no folder with etcd, kube-apiserver and kubectl");
    }
    folder.map(PathBuf::from)
}

/// A request that the server has answered.
#[derive(Clone, Debug)]
pub struct Audited {
    /// Who asked.
    pub user: String,
    /// `get`, `list`, `watch`, `create`, `patch`.
    pub verb: String,
    /// Path and query.
    pub uri: String,
    /// The answer's status.
    pub code: u64,
}

/// A running etcd, kube-apiserver, and a way to the latter.
#[derive(Debug)]
pub struct RealServer {
    // The way first, then the server before its store.
    tunnel: Tunnel,
    server: Option<Process>,
    _etcd: Process,
    assets: PathBuf,
    address: SocketAddr,
    etcd_address: SocketAddr,
    identity: Identity,
    folder: tempfile::TempDir,
}

#[derive(Debug)]
struct Process(Child);

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn free_address() -> io::Result<SocketAddr> {
    TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()
}

impl RealServer {
    /// Starts both, and waits until the server is ready.
    ///
    /// # Errors
    ///
    /// When a program cannot be started or does not become ready; what it said is in the error.
    pub fn start(assets: &Path) -> io::Result<Self> {
        let folder = tempfile::tempdir()?;
        let (address, etcd_address) = (free_address()?, free_address()?);
        let identity = Identity::new(address.ip()).map_err(io::Error::other)?;
        for (name, text) in [
            ("tls.crt", identity.certificate_pem().to_owned()),
            ("tls.key", identity.key_pem().to_owned()),
            ("tokens.csv", format!("{ADMIN},admin,admin,system:masters\n")),
            (
                "audit.yaml",
                "apiVersion: audit.k8s.io/v1\nkind: Policy\nomitStages: [RequestReceived, ResponseStarted]\n\
                 rules: [{level: Metadata}]\n"
                    .to_owned(),
            ),
        ] {
            fs::write(folder.path().join(name), text)?;
        }
        let etcd_url = format!("http://{etcd_address}");
        let mut etcd = Command::new(assets.join("etcd"));
        etcd.arg("--data-dir").arg(folder.path().join("etcd")).args([
            "--listen-client-urls",
            &etcd_url,
            "--advertise-client-urls",
            &etcd_url,
            "--listen-peer-urls",
            "http://127.0.0.1:0",
            // As kubeadm sets it.
            "--experimental-watch-progress-notify-interval=5s",
        ]);
        let etcd = spawn(etcd, &folder.path().join("etcd.log"))?;
        let tunnel = Tunnel::to(address)?;
        let mut real = Self {
            tunnel,
            server: None,
            _etcd: etcd,
            assets: assets.to_owned(),
            address,
            etcd_address,
            identity,
            folder,
        };
        real.start_server()?;
        Ok(real)
    }

    /// Starts the server after [`RealServer::stop_server`]. It knows then only what is in its store.
    ///
    /// # Errors
    ///
    /// As [`RealServer::start`].
    pub fn start_server(&mut self) -> io::Result<()> {
        let at = |name: &str| self.folder.path().join(name).display().to_string();
        let mut server = Command::new(self.assets.join("kube-apiserver"));
        for (flag, value) in [
            ("etcd-servers", format!("http://{}", self.etcd_address)),
            ("bind-address", self.address.ip().to_string()),
            ("secure-port", self.address.port().to_string()),
            ("advertise-address", self.address.ip().to_string()),
            ("endpoint-reconciler-type", "none".to_owned()),
            ("cert-dir", at("")),
            ("tls-cert-file", at("tls.crt")),
            ("tls-private-key-file", at("tls.key")),
            ("service-account-issuer", "https://kubernetes.default.svc".to_owned()),
            // Of a certificate its public key is taken.
            ("service-account-key-file", at("tls.crt")),
            ("service-account-signing-key-file", at("tls.key")),
            ("service-cluster-ip-range", "10.96.0.0/16".to_owned()),
            ("authorization-mode", "RBAC".to_owned()),
            ("token-auth-file", at("tokens.csv")),
            // Without controllers no namespace gets its service account.
            ("disable-admission-plugins", "ServiceAccount".to_owned()),
            ("audit-policy-file", at("audit.yaml")),
            ("audit-log-path", at("audit.log")),
        ] {
            server.arg(format!("--{flag}={value}"));
        }
        let log = self.folder.path().join("server.log");
        self.server = Some(spawn(server, &log)?);
        let ends = Instant::now() + START;
        while self.kubectl(&["get", "--raw", "/readyz"], None).is_err() {
            let ended =
                self.server.as_mut().is_none_or(|server| server.0.try_wait().is_ok_and(|end| end.is_some()));
            if ended || Instant::now() > ends {
                let text = fs::read_to_string(&log).unwrap_or_default();
                let lines: Vec<&str> = text.lines().rev().take(20).collect();
                return Err(io::Error::other(format!("kube-apiserver is not ready: {lines:#?}")));
            }
            std::thread::sleep(STEP);
        }
        Ok(())
    }

    /// Ends the server at once: its connections are reset. What is stored stays.
    pub fn stop_server(&mut self) {
        self.server = None;
    }

    /// The way that [`RealServer::kubeconfig`] leads through.
    pub fn tunnel(&self) -> &Tunnel {
        &self.tunnel
    }

    /// Writes a kubeconfig with the token in a file beside it, and returns its path.
    ///
    /// # Errors
    ///
    /// When a file cannot be written.
    pub fn kubeconfig(&self, token: &str) -> io::Result<PathBuf> {
        self.write_token(token)?;
        let path = self.folder.path().join("kubeconfig");
        let text = self.identity.kubeconfig(self.tunnel.address(), &self.folder.path().join("token"));
        fs::write(&path, text)?;
        Ok(path)
    }

    /// Writes another token into the file that the kubeconfig names.
    ///
    /// # Errors
    ///
    /// When the file cannot be written.
    pub fn write_token(&self, token: &str) -> io::Result<()> {
        fs::write(self.folder.path().join("token"), token)
    }

    /// Runs kubectl as the administrator, with `input` on its standard input; its standard output.
    ///
    /// # Errors
    ///
    /// With what it says, when it fails.
    pub fn kubectl(&self, arguments: &[&str], input: Option<&str>) -> io::Result<String> {
        let mut command = Command::new(self.assets.join("kubectl"));
        command.args(arguments);
        self.run(command, input)
    }

    /// Runs a shell script with kubectl as the administrator; its standard output.
    ///
    /// # Errors
    ///
    /// With what it says, when it fails.
    pub fn shell(&self, script: &str) -> io::Result<String> {
        let mut command = Command::new("sh");
        let path = std::env::var_os("PATH").unwrap_or_default();
        let paths = std::iter::once(self.assets.clone()).chain(std::env::split_paths(&path));
        command.args(["-euc", script]).env("PATH", std::env::join_paths(paths).map_err(io::Error::other)?);
        self.run(command, None)
    }

    fn run(&self, mut command: Command, input: Option<&str>) -> io::Result<String> {
        let admin = self.folder.path().join("admin");
        if !admin.exists() {
            let token = self.folder.path().join("admin-token");
            fs::write(&token, ADMIN)?;
            fs::write(&admin, self.identity.kubeconfig(self.address, &token))?;
        }
        let mut child = command
            .env("KUBECONFIG", &admin)
            .env("HOME", self.folder.path())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()?;
        if let Some(mut stdin) = child.stdin.take() {
            stdin.write_all(input.unwrap_or_default().as_bytes())?;
        }
        let output = child.wait_with_output()?;
        if output.status.success() {
            return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
        }
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        Err(io::Error::other(format!("{command:?}: {said}")))
    }

    /// Creates or changes objects, their status too where they have one.
    ///
    /// # Panics
    ///
    /// When the server refuses one.
    pub fn put(&self, objects: &[Value]) {
        const APPLY: [&str; 6] =
            ["apply", "--server-side", "--force-conflicts", "--validate=ignore", "-f", "-"];
        let list =
            |items: Vec<Value>| json!({ "apiVersion": "v1", "kind": "List", "items": items }).to_string();
        let without = |object: &Value, field: &str| {
            let mut object = object.clone();
            object.as_object_mut().map(|fields| fields.remove(field));
            // The server's to write.
            object["metadata"].as_object_mut().map(|fields| fields.remove("managedFields"));
            object
        };
        self.must(&APPLY, &list(objects.iter().map(|object| without(object, "status")).collect()));
        let with_status: Vec<Value> = objects
            .iter()
            .filter(|object| object.get("status").is_some())
            .map(|object| without(object, "spec"))
            .collect();
        if !with_status.is_empty() {
            self.must(&[&APPLY[..], &["--subresource=status"]].concat(), &list(with_status));
        }
    }

    /// Creates the definition of a kind, and waits until objects of it can be made.
    ///
    /// # Panics
    ///
    /// When the server refuses it, or does not serve it soon.
    pub fn define(&self, yaml: &str, plural: &str) {
        self.apply(yaml);
        let ends = Instant::now() + START;
        while self.kubectl(&["get", plural], None).is_err() {
            assert!(Instant::now() < ends, "{plural} is not served");
            std::thread::sleep(STEP);
        }
    }

    /// Creates what a file describes.
    ///
    /// # Panics
    ///
    /// When the server refuses it.
    pub fn apply(&self, yaml: &str) {
        self.must(&["apply", "--server-side", "--force-conflicts", "-f", "-"], yaml);
    }

    /// Deletes an object, and does not wait for whoever has to finish it.
    ///
    /// # Panics
    ///
    /// When there is none.
    pub fn delete(&self, plural: &str, namespace: &str, name: &str) {
        let mut arguments = vec!["delete", plural, name, "--wait=false", "--grace-period=0", "--force"];
        if !namespace.is_empty() {
            arguments.extend(["-n", namespace]);
        }
        self.must(&arguments, "");
    }

    /// An object as it is now.
    ///
    /// # Panics
    ///
    /// When there is none.
    pub fn get(&self, arguments: &[&str]) -> Value {
        let json = self.must(&[&["get", "-o", "json"], arguments].concat(), "");
        serde_json::from_str(&json).unwrap_or_default()
    }

    /// A token of a service account.
    ///
    /// # Panics
    ///
    /// When there is no such account.
    pub fn token(&self, namespace: &str, account: &str, more: &[&str]) -> String {
        self.must(&[&["create", "token", account, "-n", namespace], more].concat(), "").trim().to_owned()
    }

    fn must(&self, arguments: &[&str], input: &str) -> String {
        self.kubectl(arguments, Some(input)).unwrap_or_else(|error| panic!("{error}\n{input}"))
    }

    /// Every request that was answered so far.
    pub fn audited(&self) -> Vec<Audited> {
        let text = fs::read_to_string(self.folder.path().join("audit.log")).unwrap_or_default();
        let of = |line: &str| {
            let event: Value = serde_json::from_str(line).ok()?;
            Some(Audited {
                user: event["user"]["username"].as_str()?.to_owned(),
                verb: event["verb"].as_str()?.to_owned(),
                uri: event["requestURI"].as_str()?.to_owned(),
                code: event["responseStatus"]["code"].as_u64().unwrap_or_default(),
            })
        };
        text.lines().filter_map(of).collect()
    }

    /// Lets etcd forget all that is older than its newest revision.
    ///
    /// # Errors
    ///
    /// When etcd does not answer as it should.
    pub fn compact(&self) -> io::Result<()> {
        let newest = self.etcd("/v3/kv/range", &json!({ "key": "AA==" }))?;
        let revision = newest["header"]["revision"].clone();
        self.etcd("/v3/kv/compaction", &json!({ "revision": revision, "physical": true })).map(drop)
    }

    /// etcd's JSON gateway, over plain HTTP.
    fn etcd(&self, path: &str, body: &Value) -> io::Result<Value> {
        let body = body.to_string();
        let mut stream = TcpStream::connect(self.etcd_address)?;
        stream.set_read_timeout(Some(START))?;
        write!(
            stream,
            "POST {path} HTTP/1.0\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}",
            body.len()
        )?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        let (head, json) = answer.split_once("\r\n\r\n").unwrap_or((&answer, ""));
        if !head.contains(" 200 ") {
            return Err(io::Error::other(answer));
        }
        serde_json::from_str(json).map_err(io::Error::other)
    }
}

/// Starts a program whose output goes into a file, after what is there.
fn spawn(mut command: Command, log: &Path) -> io::Result<Process> {
    let log = File::options().create(true).append(true).open(log)?;
    let child = command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log).spawn();
    child.map(Process).map_err(|error| io::Error::new(error.kind(), format!("{command:?}: {error}")))
}
