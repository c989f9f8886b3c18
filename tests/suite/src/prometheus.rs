//! A real Prometheus in a node's namespace, asked over its HTTP API.

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use lab::{Node, wait_for};
use serde_json::Value;

const PATIENCE: Duration = Duration::from_secs(30);
const ADDRESS: ([u8; 4], u16) = ([127, 0, 0, 1], 9090);

/// The top of the repository.
pub fn repository() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).ancestors().nth(2).expect("two folders below the top").to_owned()
}

/// What `promtool` says; `Err` when it finds fault.
///
/// # Panics
/// When there is no promtool: a check that cannot be made has failed.
pub fn promtool(arguments: &[&str], input: &str) -> Result<String, String> {
    let mut child = Command::new("promtool")
        .args(arguments)
        .current_dir(repository())
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("promtool is missing: run `make setup-test`");
    child.stdin.take().expect("piped").write_all(input.as_bytes()).expect("promtool reads");
    let output = child.wait_with_output().expect("promtool ends");
    let said =
        [output.stdout, output.stderr].map(|text| String::from_utf8_lossy(&text).into_owned()).concat();
    // Lint warnings do not change its exit code when they are about names.
    if output.status.success() { Ok(said) } else { Err(said) }
}

/// A running Prometheus, ended by its own pid on drop.
#[derive(Debug)]
pub struct Prometheus<'a> {
    node: &'a Node,
    child: Child,
    log: PathBuf,
    _folder: tempfile::TempDir,
}

impl<'a> Prometheus<'a> {
    /// Starts it in `node`'s namespace, where it scrapes the agent every half second as the job `sluice`, with the
    /// node's name as the label `node`, and evaluates the rules in `rules`.
    ///
    /// # Panics
    /// When there is no Prometheus, or it does not become ready.
    pub fn start(node: &'a Node, agent: SocketAddr, rules: &Path) -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let path = |name: &str| folder.path().join(name);
        let config = format!(
            "global: {{scrape_interval: 500ms, scrape_timeout: 400ms, evaluation_interval: 1s}}\n\
             rule_files: ['{}']\nscrape_configs:\n- job_name: sluice\n  static_configs:\n  \
             - targets: ['{agent}']\n    labels: {{node: {}}}\n",
            rules.display(),
            node.name()
        );
        fs::write(path("prometheus.yaml"), config).expect("written");
        let log = path("log");
        let said = File::create(&log).expect("a log");
        let child = node
            .command("prometheus")
            .arg(format!("--config.file={}", path("prometheus.yaml").display()))
            .arg(format!("--storage.tsdb.path={}", path("data").display()))
            .arg(format!("--web.listen-address={}", SocketAddr::from(ADDRESS)))
            .stdin(Stdio::null())
            .stdout(said.try_clone().expect("a second handle"))
            .stderr(said)
            .spawn()
            .expect("ip is there");
        let mut prometheus = Self { node, child, log, _folder: folder };
        let ready = wait_for(PATIENCE, || {
            let ended = prometheus.child.try_wait().ok().flatten();
            assert!(ended.is_none(), "is prometheus missing? run `make setup-test`\n{}", prometheus.said());
            prometheus.get("/-/ready").ok().filter(|(status, _)| *status == 200)
        });
        assert!(ready.is_some(), "{}", prometheus.said());
        // It takes up its targets five seconds after its start.
        let scraped =
            wait_for(PATIENCE, || prometheus.target().ok().filter(|target| target["health"] == "up"));
        assert!(scraped.is_some(), "{:?}\n{}", prometheus.target(), prometheus.said());
        prometheus
    }

    /// The series that an instant query returns, or what is wrong with it.
    pub fn query(&self, expression: &str) -> Result<Vec<Value>, String> {
        let data = self.api(&format!("/api/v1/query?query={}", encoded(expression)))?;
        data["result"].as_array().cloned().ok_or_else(|| data.to_string())
    }

    /// The values that a label has in any series that `selector` selects.
    pub fn label_values(&self, label: &str, selector: &str) -> Result<Vec<String>, String> {
        let data = self.api(&format!("/api/v1/label/{label}/values?match[]={}", encoded(selector)))?;
        let values = data.as_array().cloned().unwrap_or_default();
        Ok(values.iter().filter_map(|value| value.as_str().map(str::to_owned)).collect())
    }

    /// Every alerting rule it has loaded.
    pub fn rules(&self) -> Result<Vec<Value>, String> {
        let data = self.api("/api/v1/rules")?;
        let groups = data["groups"].as_array().cloned().unwrap_or_default();
        Ok(groups.iter().flat_map(|group| group["rules"].as_array().cloned().unwrap_or_default()).collect())
    }

    /// Its only target.
    pub fn target(&self) -> Result<Value, String> {
        Ok(self.api("/api/v1/targets")?["activeTargets"][0].clone())
    }

    fn api(&self, path: &str) -> Result<Value, String> {
        let (_, body) = self.get(path).map_err(|error| format!("{error}\n{}", self.said()))?;
        let mut answer: Value = serde_json::from_str(&body).map_err(|error| format!("{error}: {body}"))?;
        if answer["status"] == "success" && answer["warnings"].is_null() {
            Ok(answer["data"].take())
        } else {
            Err(body)
        }
    }

    fn get(&self, path: &str) -> io::Result<(u16, String)> {
        let mut stream = self.node.netns().connect(SocketAddr::from(ADDRESS), PATIENCE)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        // HTTP/1.0, so that the answer ends with the connection and is not cut into chunks.
        write!(stream, "GET {path} HTTP/1.0\r\nHost: localhost\r\n\r\n")?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        let parsed = answer
            .split_once("\r\n\r\n")
            .and_then(|(head, body)| Some((head.split(' ').nth(1)?.parse().ok()?, body.to_owned())));
        parsed.ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, answer))
    }

    fn said(&self) -> String {
        fs::read_to_string(&self.log).unwrap_or_default()
    }
}

impl Drop for Prometheus<'_> {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// As the query part of a URL has it (RFC 3986).
fn encoded(text: &str) -> String {
    let mut encoded = String::new();
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) {
            encoded.push(char::from(byte));
        } else {
            encoded += &format!("%{byte:02X}");
        }
    }
    encoded
}
