//! A lab by its name: its folder, who runs it, and how to get rid of it.
//!
//! The folder is the lock: whoever makes it has the lab. It carries the pid of the process that made it, so
//! that a lab killed without mercy is recognised and removed.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs::{self, DirBuilder, File};
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::str::FromStr;
use std::time::Duration;

use anyhow::{Context as _, bail};
use lab::{Cluster, remove_namespaces, wait_until};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde::{Deserialize, Serialize};

/// The name of a lab that was given none.
pub(super) const DEFAULT_NAME: &str = "lab";
const FOLDER: &str = "/run/sluice-lab";
/// Where it is. It is locked while a lab is taken, because the folder itself comes and goes with the labs.
const PARENT: &str = "/run";
const STOP_LIMIT: Duration = Duration::from_secs(15);

/// The name of a lab: letters and digits, so that no name is the beginning of another's namespaces.
#[derive(Clone, Debug)]
pub(super) struct LabName(String);

impl FromStr for LabName {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let plain = (1..=24).contains(&text.len()) && text.bytes().all(|byte| byte.is_ascii_alphanumeric());
        if plain { Ok(Self(text.to_owned())) } else { Err("1 to 24 letters and digits, please") }
    }
}

impl LabName {
    /// Every namespace of the lab is named `PREFIX-ROLE`.
    pub(super) fn prefix(&self) -> String {
        format!("sluice-{}", self.0)
    }

    /// How to give `sluice lab` these arguments for this lab.
    pub(super) fn command(&self, arguments: &str) -> String {
        let program = program();
        if self.0 == DEFAULT_NAME {
            format!("{program} lab {arguments}")
        } else {
            format!("{program} lab --name {} {arguments}", self.0)
        }
    }

    fn folder(&self) -> PathBuf {
        Path::new(FOLDER).join(&self.0)
    }

    fn load(&self) -> Option<State> {
        serde_json::from_slice(&fs::read(self.folder().join("state.json")).ok()?).ok()
    }

    /// Removes namespaces with the processes inside, then the folder. Returns how many things there were.
    fn remove_all(&self) -> anyhow::Result<usize> {
        let own = format!("{}-", self.prefix());
        let namespaces = remove_namespaces(|name| name.starts_with(&own))?;
        let folder = match fs::remove_dir_all(self.folder()) {
            Ok(()) => 1,
            Err(error) if error.kind() == io::ErrorKind::NotFound => 0,
            Err(error) => return Err(error).with_context(|| format!("remove {}", self.folder().display())),
        };
        remove_parent();
        Ok(namespaces.len().max(folder))
    }
}

/// This program as a shell finds it: the lab is mostly run from a build that is not on the path.
fn program() -> String {
    let own = std::env::current_exe().ok().and_then(|path| path.to_str().map(str::to_owned));
    match own {
        Some(path) if path.contains(|c: char| c.is_whitespace() || "'\"\\$`&;()<>|*?[]!#~".contains(c)) => {
            format!("'{}'", path.replace('\'', "'\\''"))
        }
        Some(path) => path,
        None => "sluice".to_owned(),
    }
}

/// What is known of a lab that is up.
#[derive(Debug, Serialize, Deserialize)]
struct State {
    pid: i32,
    /// The process's start time, which a later process of the same pid does not have (proc(5), stat, field 22).
    started: u64,
    kept: bool,
    /// Pods, nodes and the external host, each with its namespace.
    places: BTreeMap<String, String>,
}

/// The folder of the lab, removed on drop unless the lab is kept.
#[derive(Debug)]
pub(super) struct Claim {
    folder: PathBuf,
    kept: bool,
}

impl Claim {
    /// Takes the lab. One that was killed is removed first; one that runs, or was kept, is an error. Of several that begin
    /// at once, one gets it.
    pub(super) fn take(name: &LabName) -> anyhow::Result<Self> {
        let _alone = alone()?;
        let folder = name.folder();
        if folder.exists() {
            match name.load() {
                Some(state) if state.kept => {
                    bail!(
                        "the lab is up already; remove it with `{}`, or give this one a --name",
                        name.command("down")
                    )
                }
                Some(state) if state.is_running() => {
                    bail!(
                        "the lab is running already, as process {}; wait for it, end it with `{}`, or give this one a --name",
                        state.pid,
                        name.command("down")
                    )
                }
                _ => name.remove_all()?,
            };
        }
        // The last lab's end, or what was just removed, may have taken it along.
        make_parent()?;
        let made = DirBuilder::new().mode(0o755).create(&folder);
        made.with_context(|| format!("make {}", folder.display()))?;
        let claim = Self { folder, kept: false };
        claim.save(false, BTreeMap::new())?;
        Ok(claim)
    }

    /// The folder for manifests, records and logs.
    pub(super) fn folder(&self) -> &Path {
        &self.folder
    }

    /// Writes down what is in the lab, for `shell`.
    pub(super) fn describe(&self, cluster: &Cluster) -> anyhow::Result<()> {
        self.save(self.kept, places(cluster))
    }

    /// Leaves the folder in place: the lab stays up without this process.
    pub(super) fn keep(mut self, cluster: &Cluster) -> anyhow::Result<()> {
        self.save(true, places(cluster))?;
        self.kept = true;
        Ok(())
    }

    fn save(&self, kept: bool, places: BTreeMap<String, String>) -> anyhow::Result<()> {
        let pid = Pid::this().as_raw();
        let state = State { pid, started: start_time(pid).context("read /proc/self/stat")?, kept, places };
        let path = self.folder.join("state.json");
        let new = self.folder.join("state.json.new");
        fs::write(&new, serde_json::to_vec_pretty(&state)?)
            .with_context(|| format!("write {}", new.display()))?;
        fs::rename(&new, &path).with_context(|| format!("write {}", path.display()))
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        if !self.kept {
            let _ = fs::remove_dir_all(&self.folder);
            remove_parent();
        }
    }
}

/// `sluice lab down`.
pub(super) fn down(name: &LabName) -> anyhow::Result<ExitCode> {
    if let Some(state) = name.load()
        && !state.kept
        && state.is_running()
    {
        println!("stopping the lab that runs as process {}", state.pid);
        kill(Pid::from_raw(state.pid), Signal::SIGTERM).context("stop the lab")?;
        if !wait_until(STOP_LIMIT, || !state.is_running()) {
            bail!("the lab, process {}, did not stop within {STOP_LIMIT:?}", state.pid);
        }
    }
    match name.remove_all()? {
        0 => println!("nothing to remove"),
        count => {
            println!("removed {count} network namespaces, their processes and {}", name.folder().display())
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// `sluice lab shell`: becomes the command. Returns only when that fails.
pub(super) fn shell(name: &LabName, place: &str, command: &[OsString]) -> anyhow::Result<ExitCode> {
    let state =
        name.load().with_context(|| format!("no lab is up; start one with `{}`", name.command("--keep")))?;
    let Some(netns) = state.places.get(place) else {
        let places: Vec<&str> = state.places.keys().map(String::as_str).collect();
        bail!("no {place} in the lab; there are: {}", places.join(", "));
    };
    let mut enter = Command::new("ip");
    enter.args(["netns", "exec", netns]);
    match command {
        [] => enter.args(own_shell()).env("PS1", format!("{place}# ")),
        command => enter.args(command),
    };
    let error = enter.exec();
    Err(error).context("run `ip netns exec`")
}

/// The user's shell. Bash without its start-up file, which would replace the prompt that names the place.
fn own_shell() -> Vec<OsString> {
    let shell = std::env::var_os("SHELL").unwrap_or_else(|| "/bin/sh".into());
    let is_bash = Path::new(&shell).file_name().is_some_and(|name| name == "bash");
    if is_bash { vec![shell, "--norc".into()] } else { vec![shell] }
}

impl State {
    fn is_running(&self) -> bool {
        start_time(self.pid) == Some(self.started)
    }
}

fn make_parent() -> anyhow::Result<()> {
    let made = DirBuilder::new().mode(0o755).recursive(true).create(FOLDER);
    made.with_context(|| format!("make {FOLDER}"))
}

/// Nobody else takes a lab while this is held. It goes with its process, whatever ends that.
fn alone() -> anyhow::Result<File> {
    let parent = File::open(PARENT).with_context(|| format!("open {PARENT}"))?;
    parent.lock().with_context(|| format!("lock {PARENT}"))?;
    Ok(parent)
}

/// Removes the folder of all labs when the last one is gone.
fn remove_parent() {
    let _ = fs::remove_dir(FOLDER);
}

fn places(cluster: &Cluster) -> BTreeMap<String, String> {
    let pods = cluster.pods().iter().map(|pod| (pod.full_name(), pod.netns().name()));
    let nodes = cluster.nodes().iter().map(|node| (node.name(), node.netns().name()));
    let external = ("external", cluster.external().netns().name());
    pods.chain(nodes).chain([external]).map(|(place, netns)| (place.to_owned(), netns.to_owned())).collect()
}

fn start_time(pid: i32) -> Option<u64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The second field, the command in parentheses, may hold spaces; a zombie has ended.
    let mut fields = stat.rsplit_once(')')?.1.split_whitespace();
    if fields.next()? == "Z" {
        return None;
    }
    fields.nth(18)?.parse().ok()
}
