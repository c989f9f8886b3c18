//! A container of a pod's specification → the same container, run by runc in a node's network namespace: its
//! arguments, user, capabilities, seccomp profile, read-only root and mounts, on the root file system that the
//! Dockerfile describes. What a kubelet adds beside that (cgroup limits, tokens) is left out.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use lab::Netns;
use serde_json::{Value, json};

use crate::tools;

/// Names the root file system of an image that was built from the Dockerfile, to be used as it is.
const IMAGE_ROOT: &str = "SLUICE_IMAGE_ROOT";

/// A host path, where it is mounted, and whether it may be written.
pub type Mount = (PathBuf, String, bool);

/// A running container. Removed on drop.
#[derive(Debug)]
pub struct Container {
    id: String,
    folder: tempfile::TempDir,
    child: Child,
}

impl Container {
    /// Starts `container` of a pod with the security context `pod`, with `arguments` in place of its own when they
    /// are given. `mounts` come beside the binary, which is the built one.
    ///
    /// # Panics
    /// When runc cannot be started.
    pub fn start(
        netns: &Netns,
        pod: &Value,
        container: &Value,
        arguments: Option<&[&str]>,
        mounts: &[Mount],
    ) -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let id = format!("sluice-test-{}-{}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
        let folder = tempfile::tempdir().expect("a folder");
        let specification = specification(netns, pod, container, arguments, mounts, folder.path());
        let text = serde_json::to_vec_pretty(&specification).expect("JSON");
        fs::write(folder.path().join("config.json"), text).expect("written");
        let file = |name: &str| File::create(folder.path().join(name)).expect("a file");
        let child = runc(folder.path())
            .args(["run", "--no-new-keyring", "--bundle"])
            .arg(folder.path())
            .arg(&id)
            .stdin(Stdio::null())
            .stdout(file("stdout"))
            .stderr(file("stderr"))
            .spawn()
            .expect("runc runs");
        Self { id, folder, child }
    }

    /// What it has written to standard output.
    pub fn stdout(&self) -> String {
        self.read("stdout")
    }

    /// What it, or runc, has written to standard error.
    pub fn stderr(&self) -> String {
        self.read("stderr")
    }

    /// Sends a signal by name, such as `TERM`.
    pub fn signal(&self, signal: &str) {
        let _ = runc(self.folder.path()).args(["kill", &self.id, signal]).output();
    }

    /// Waits for its end, and gives back its exit code; `None` when it goes on.
    pub fn wait_exit(&mut self, limit: Duration) -> Option<i32> {
        let status = lab::wait_for(limit, || self.child.try_wait().expect("a child"))?;
        Some(status.code().unwrap_or(-1))
    }

    fn read(&self, name: &str) -> String {
        String::from_utf8_lossy(&fs::read(self.folder.path().join(name)).unwrap_or_default()).into_owned()
    }
}

impl Drop for Container {
    fn drop(&mut self) {
        let _ = runc(self.folder.path()).args(["delete", "--force", &self.id]).output();
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn runc(folder: &Path) -> Command {
    let mut command = Command::new("runc");
    command.arg("--root").arg(folder.join("state"));
    command
}

fn specification(
    netns: &Netns,
    pod: &Value,
    container: &Value,
    arguments: Option<&[&str]>,
    mounts: &[Mount],
    folder: &Path,
) -> Value {
    let made = Command::new("runc").arg("spec").current_dir(folder).output().expect("runc is installed");
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    let text = fs::read(folder.join("config.json")).expect("runc's default");
    let mut specification: Value = serde_json::from_slice(&text).expect("JSON");
    let security = &container["securityContext"];
    let capabilities = capabilities(security);

    let process = &mut specification["process"];
    process["terminal"] = json!(false);
    process["args"] = command_line(container, arguments);
    process["user"] = json!({"uid": security["runAsUser"], "gid": security["runAsGroup"]});
    process["noNewPrivileges"] = json!(security["allowPrivilegeEscalation"] == false);
    process["capabilities"] =
        json!({"bounding": capabilities, "effective": capabilities, "permitted": capabilities});
    // An image that was built has the binary in it; on the root that was made for it the built one is mounted.
    let image = std::env::var_os(IMAGE_ROOT).map(PathBuf::from);
    let root = image.clone().unwrap_or_else(|| tools::tool("rootfs"));
    specification["root"] = json!({"path": root.canonicalize().expect("a folder"), "readonly": security["readOnlyRootFilesystem"] == true});
    specification["hostname"] = json!("node");

    let own = image.is_none().then(|| (lab::sluice_binary().expect("a built sluice"), entry_point(), false));
    for (from, to, writable) in own.iter().chain(mounts) {
        let access = if *writable { "rw" } else { "ro" };
        let mount = json!({"source": from, "destination": to, "type": "bind", "options": ["rbind", access]});
        specification["mounts"].as_array_mut().expect("a list").push(mount);
    }
    let linux = &mut specification["linux"];
    for namespace in linux["namespaces"].as_array_mut().expect("a list") {
        if namespace["type"] == "network" {
            namespace["path"] = json!(format!("/run/netns/{}", netns.name()));
        }
    }
    assert_eq!(pod["securityContext"]["seccompProfile"]["type"], "RuntimeDefault");
    linux["seccomp"] = seccomp(&capabilities);
    specification
}

/// The program that the Dockerfile starts.
///
/// # Panics
/// When the Dockerfile names none.
pub fn entry_point() -> String {
    let text = fs::read_to_string(tools::repository().join("deploy/Dockerfile")).expect("a Dockerfile");
    let line = text.lines().find_map(|line| line.strip_prefix("ENTRYPOINT ")).expect("an entry point");
    let words: Vec<String> = serde_json::from_str(line).expect("the form of a list");
    words.into_iter().next().expect("a program")
}

fn command_line(container: &Value, arguments: Option<&[&str]>) -> Value {
    if container["command"].is_array() {
        return container["command"].clone();
    }
    let program = json!(entry_point());
    let own = || container["args"].as_array().cloned().unwrap_or_default();
    let arguments = arguments.map_or_else(own, |words| words.iter().map(|word| json!(word)).collect());
    Value::Array(std::iter::once(program).chain(arguments).collect())
}

fn capabilities(security: &Value) -> Vec<String> {
    assert_eq!(security["capabilities"]["drop"], json!(["ALL"]));
    let added = security["capabilities"]["add"].as_array().cloned().unwrap_or_default();
    added.iter().filter_map(Value::as_str).map(|name| format!("CAP_{name}")).collect()
}

/// The default profile for a container with these capabilities, in the runtime's form: its conditions are resolved.
fn seccomp(capabilities: &[String]) -> Value {
    let text = fs::read(tools::tool("seccomp.json")).expect("the profile");
    let profile: Value = serde_json::from_slice(&text).expect("JSON");
    let holds = |list: &Value| -> Vec<bool> {
        let names = list.as_array().cloned().unwrap_or_default();
        names.iter().map(|name| capabilities.iter().any(|held| name == held)).collect()
    };
    let applies = |rule: &Value| {
        let machine = if cfg!(target_arch = "aarch64") { "arm64" } else { "amd64" };
        let arches = rule["includes"]["arches"].as_array().cloned().unwrap_or_default();
        let here = arches.is_empty() || arches.iter().any(|arch| arch == machine);
        let excluded =
            rule["excludes"]["arches"].as_array().is_some_and(|list| list.iter().any(|arch| arch == machine));
        here && !excluded
            && holds(&rule["includes"]["caps"]).into_iter().all(|held| held)
            && !holds(&rule["excludes"]["caps"]).into_iter().any(|held| held)
    };
    let rules = profile["syscalls"].as_array().cloned().unwrap_or_default();
    let rules: Vec<Value> = rules.into_iter().filter(applies).map(|rule| in_runtimes_form(&rule)).collect();
    let native = if cfg!(target_arch = "aarch64") { "SCMP_ARCH_AARCH64" } else { "SCMP_ARCH_X86_64" };
    json!({
        "defaultAction": profile["defaultAction"], "defaultErrnoRet": profile["defaultErrnoRet"],
        "architectures": [native], "syscalls": rules,
    })
}

fn in_runtimes_form(rule: &Value) -> Value {
    let kept = ["names", "action", "args", "errnoRet"];
    let some = kept.into_iter().filter(|key| !rule[*key].is_null() && rule[*key] != json!([]));
    some.map(|key| (key.to_owned(), rule[key].clone())).collect()
}
