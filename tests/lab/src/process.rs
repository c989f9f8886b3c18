//! One `sluice run` in a node's namespace: started, watched, ended. Killed on drop, by its own pid.

use std::ffi::OsString;
use std::fs::{self, File};
use std::io;
use std::net::SocketAddr;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ExitStatus, Stdio};
use std::sync::Arc;
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

use crate::cluster::Node;
use crate::error::LabError;
use crate::http;
use crate::metrics;
use crate::netns::Netns;
use crate::wait::wait_for;

const HTTP_LIMIT: Duration = Duration::from_secs(2);

/// How to start `sluice run`. The default is right for most tests.
#[derive(Clone, Debug, Default)]
pub struct SluiceOptions {
    /// Folders and files for `--manifests`; empty means the cluster's own folder.
    pub manifests: Vec<PathBuf>,
    /// The file for `--kubeconfig`, in the place of manifests.
    pub kubeconfig: Option<PathBuf>,
    /// The text of the configuration file; empty means no `--config`.
    pub config: String,
    /// The file for `--records`; by default `NODE.records` in the cluster's folder.
    pub records: Option<PathBuf>,
    /// The port on 127.0.0.1 for `--admin`; 0 means 9093.
    pub admin_port: u16,
    /// The binary; by default `SLUICE_BIN`, or `sluice` in the folder this executable was built into.
    pub binary: Option<PathBuf>,
    /// More arguments, put at the end.
    pub arguments: Vec<OsString>,
    /// More environment variables.
    pub environment: Vec<(OsString, OsString)>,
}

/// A running `sluice run`.
#[derive(Debug)]
pub struct Sluice {
    node: String,
    netns: Arc<Netns>,
    child: Child,
    status: Option<ExitStatus>,
    admin: SocketAddr,
    records: PathBuf,
    log: PathBuf,
    killed_on_drop: bool,
}

impl Sluice {
    pub(crate) fn start(node: &Node, options: &SluiceOptions) -> Result<Self, LabError> {
        let binary = match &options.binary {
            Some(binary) => binary.clone(),
            None => sluice_binary()?,
        };
        let file = |extension: &str| node.folder().join(format!("{}.{extension}", node.name()));
        let records = options.records.clone().unwrap_or_else(|| file("records"));
        let log = file("log");
        let port = if options.admin_port == 0 { 9093 } else { options.admin_port };
        let admin = SocketAddr::from(([127, 0, 0, 1], port));

        let mut command = node.command(&binary);
        command.args(["run", "--node", node.name()]);
        let own_folder = [node.folder().join("manifests")];
        let manifests = if options.manifests.is_empty() { own_folder.as_slice() } else { &options.manifests };
        if let Some(kubeconfig) = &options.kubeconfig {
            command.arg("--kubeconfig").arg(kubeconfig);
        } else {
            for path in manifests {
                command.arg("--manifests").arg(path);
            }
        }
        if !options.config.is_empty() {
            let path = file("config.yaml");
            fs::write(&path, &options.config)
                .map_err(|cause| LabError::File { path: path.clone(), cause })?;
            command.arg("--config").arg(path);
        }
        command.arg("--records").arg(&records).args(["--admin", &admin.to_string()]);
        command.args(&options.arguments).envs(options.environment.iter().cloned());
        let output = File::options()
            .create(true)
            .append(true)
            .open(&log)
            .map_err(|cause| LabError::File { path: log.clone(), cause })?;
        let errors = output.try_clone().map_err(|cause| LabError::File { path: log.clone(), cause })?;
        let child = command
            .stdin(Stdio::null())
            .stdout(output)
            .stderr(errors)
            .spawn()
            .map_err(|cause| LabError::Spawn { program: "ip netns exec".to_owned(), cause })?;
        Ok(Self {
            node: node.name().to_owned(),
            netns: node.namespace(),
            child,
            status: None,
            admin,
            records,
            log,
            killed_on_drop: true,
        })
    }

    /// Waits until `/readyz` answers 200. Fails at once when the process ends.
    pub fn wait_ready(&mut self, limit: Duration) -> Result<(), LabError> {
        let mut last = String::new();
        let outcome = wait_for(limit, || {
            if let Some(status) = self.exit_status() {
                return Some(Err(status));
            }
            match http::get(&self.netns, self.admin, "/readyz", HTTP_LIMIT) {
                Ok((200, _)) => return Some(Ok(())),
                Ok((status, body)) => last = format!("{status} {body}"),
                Err(error) => last = error.to_string(),
            }
            None
        });
        match outcome {
            Some(Ok(())) => Ok(()),
            Some(Err(status)) => Err(self.exited(status)),
            None => Err(LabError::TimedOut {
                what: format!("readiness of sluice on {}", self.node),
                limit,
                context: format!("last answer: {last}\n{}", self.stderr()),
            }),
        }
    }

    /// GETs a path of the admin interface, from inside the node. Returns the status code and the body.
    pub fn get(&self, path: &str) -> Result<(u16, String), LabError> {
        http::get(&self.netns, self.admin, path, HTTP_LIMIT).map_err(|cause| LabError::Http {
            node: self.node.clone(),
            path: path.to_owned(),
            cause,
        })
    }

    /// The text of `/metrics`.
    pub fn metrics(&self) -> Result<String, LabError> {
        self.get("/metrics").map(|(_, body)| body)
    }

    /// One series, written `name` or `name{label="value"}`; labels in any order. A series of a known metric
    /// that has not appeared yet is 0, an unknown metric is an error.
    pub fn metric(&self, series: &str) -> Result<f64, LabError> {
        metrics::value(&self.metrics()?, series)
            .ok_or_else(|| LabError::NoMetric { node: self.node.clone(), series: series.to_owned() })
    }

    /// Every complete record written so far, in the file's order. A line that is not JSON is an error.
    pub fn records(&self) -> Result<Vec<Value>, LabError> {
        read_records(&self.records)
    }

    /// Waits for a record that `matches`; the first such one is returned.
    pub fn wait_record(
        &self,
        mut matches: impl FnMut(&Value) -> bool,
        limit: Duration,
    ) -> Result<Value, LabError> {
        let mut failure = None;
        let found = wait_for(limit, || match self.records() {
            Ok(records) => records.into_iter().find(&mut matches),
            Err(error) => {
                failure = Some(error);
                None
            }
        });
        found.ok_or_else(|| {
            failure.unwrap_or_else(|| LabError::TimedOut {
                what: format!("a matching record on {}", self.node),
                limit,
                context: fs::read_to_string(&self.records).unwrap_or_default() + &self.stderr(),
            })
        })
    }

    /// The records file.
    pub fn records_path(&self) -> &Path {
        &self.records
    }

    /// What it printed so far, on both outputs. Earlier processes of the same node come first.
    pub fn stderr(&self) -> String {
        fs::read(&self.log).map(|text| String::from_utf8_lossy(&text).into_owned()).unwrap_or_default()
    }

    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Sends a signal. Does nothing once it has ended.
    pub fn signal(&mut self, signal: Signal) {
        if self.exit_status().is_none()
            && let Ok(pid) = i32::try_from(self.child.id())
        {
            // It is our child and has not been waited for, so the pid is still its own.
            let _ = kill(Pid::from_raw(pid), signal);
        }
    }

    /// Asks it to stop.
    pub fn sigterm(&mut self) {
        self.signal(Signal::SIGTERM);
    }

    /// Kills it and waits for its end.
    pub fn kill9(&mut self) {
        self.signal(Signal::SIGKILL);
        if self.status.is_none() {
            self.status = self.child.wait().ok();
        }
    }

    /// Waits for its end. `Ok` carries the exit code, or 128 and the number of the signal that ended it.
    pub fn wait_exit(&mut self, limit: Duration) -> Result<i32, LabError> {
        let status = wait_for(limit, || self.exit_status());
        match status {
            Some(status) => Ok(status.code().unwrap_or_else(|| 128 + status.signal().unwrap_or_default())),
            None => Err(LabError::TimedOut {
                what: format!("the end of sluice on {}", self.node),
                limit,
                context: self.stderr(),
            }),
        }
    }

    /// True while it has not ended.
    pub fn is_running(&mut self) -> bool {
        self.exit_status().is_none()
    }

    /// Lets it run on when this value is dropped.
    pub fn keep(&mut self) {
        self.killed_on_drop = false;
    }

    fn exit_status(&mut self) -> Option<ExitStatus> {
        if self.status.is_none() {
            self.status = self.child.try_wait().ok().flatten();
        }
        self.status
    }

    fn exited(&self, status: ExitStatus) -> LabError {
        LabError::Exited { node: self.node.clone(), status: status.to_string(), stderr: self.stderr() }
    }
}

impl Drop for Sluice {
    fn drop(&mut self) {
        if self.killed_on_drop {
            self.kill9();
        }
    }
}

/// Reads complete lines of JSON; a last line without its newline is still being written.
fn read_records(path: &Path) -> Result<Vec<Value>, LabError> {
    let file_error = |cause| LabError::File { path: path.to_owned(), cause };
    let text = match fs::read_to_string(path) {
        Ok(text) => text,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(file_error(error)),
    };
    let complete = text.rfind('\n').map_or("", |end| &text[..end]);
    complete
        .lines()
        .map(|line| {
            serde_json::from_str(line)
                .map_err(|error| file_error(io::Error::other(format!("{error}: {line}"))))
        })
        .collect()
}

/// The binary under test: `SLUICE_BIN`, or `sluice` in the folder this executable was built into.
pub fn sluice_binary() -> Result<PathBuf, LabError> {
    if let Some(path) = std::env::var_os("SLUICE_BIN") {
        let path = PathBuf::from(path);
        return if path.is_file() { Ok(path) } else { Err(LabError::NoBinary { path }) };
    }
    // Test executables lie in target/PROFILE/deps, binaries in target/PROFILE.
    let own = std::env::current_exe().unwrap_or_default();
    let candidates = own.ancestors().skip(1).take(2).map(|folder| folder.join("sluice"));
    candidates
        .clone()
        .find(|path| path.is_file())
        .ok_or_else(|| LabError::NoBinary { path: candidates.last().unwrap_or_default() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_still_being_written_is_left_out_and_a_broken_one_is_an_error() {
        let folder = std::env::temp_dir().join(crate::netns::unique_name("records"));
        fs::create_dir(&folder).unwrap();
        let path = folder.join("records");
        assert!(read_records(&path).unwrap().is_empty());
        fs::write(&path, "{\"a\":1}\n{\"a\":2}\n{\"a\"").unwrap();
        assert_eq!(read_records(&path).unwrap(), [serde_json::json!({"a":1}), serde_json::json!({"a":2})]);
        fs::write(&path, "{\"a\":1}{\"b\":2}\n").unwrap();
        assert!(read_records(&path).is_err());
        fs::remove_dir_all(&folder).unwrap();
    }
}
