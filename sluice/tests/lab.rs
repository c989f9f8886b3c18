//! `sluice lab` as a user runs it.

#![expect(clippy::unwrap_used, reason = "a panic in a test is its failure report")]

use std::fs;
use std::io::{Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

const LIMIT: Duration = Duration::from_secs(60);

/// A lab of this test's own, beside whatever else is up on the machine.
struct Lab {
    name: String,
}

impl Lab {
    fn new(role: &str) -> Self {
        Self { name: format!("{role}{}", std::process::id()) }
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_sluice"));
        command.args(["lab", "--name", &self.name]).args(arguments);
        command
    }

    fn output(&self, arguments: &[&str]) -> Output {
        self.command(arguments).output().unwrap()
    }

    fn folder(&self) -> PathBuf {
        Path::new("/run/sluice-lab").join(&self.name)
    }

    fn namespaces(&self) -> Vec<String> {
        let Ok(entries) = fs::read_dir("/run/netns") else { return Vec::new() };
        let names = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap());
        names.filter(|name| name.starts_with(&format!("sluice-{}-", self.name))).collect()
    }

    fn assert_nothing_left(&self) {
        assert_eq!(self.namespaces(), Vec::<String>::new());
        assert!(!self.folder().exists());
    }

    /// Starts one and waits until it has come as far as starting `sluice run` on both nodes.
    fn started(&self) -> Child {
        let child = self.command(&[]).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        let log = self.folder().join("node2.log");
        assert!(lab::wait_until(LIMIT, || log.exists()), "the lab did not start");
        child
    }
}

/// A test that failed half-way leaves nothing either.
impl Drop for Lab {
    fn drop(&mut self) {
        let _ = self.command(&["down"]).output();
    }
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

fn exit_code(mut child: Child) -> Option<i32> {
    lab::wait_for(LIMIT, || child.try_wait().unwrap()).expect("the lab did not end").code()
}

fn signal(child: &Child, signal: Signal) {
    kill(Pid::from_raw(i32::try_from(child.id()).unwrap()), signal).unwrap();
}

#[test]
fn everything_seen_is_as_expected_and_nothing_is_left() {
    let lab = Lab::new("whole");
    let output = lab.output(&[]);
    let stdout = text(&output.stdout);
    assert_eq!(output.status.code(), Some(0), "{stdout}\n{}", text(&output.stderr));
    assert!(stdout.contains("connections as expected."), "{stdout}");
    assert!(stdout.contains("through Sluice"), "{stdout}");
    lab.assert_nothing_left();
}

#[test]
fn everything_seen_is_as_expected_on_a_bridge_and_across_an_overlay_with_each_family_and_backend() {
    let shapes = [
        ("bridge", "6", "auto", 38),
        ("vxlan", "dual", "auto", 76),
        ("routed", "dual", "iptables-nft", 76),
        ("bridge", "4", "iptables-legacy", 38),
    ];
    for (number, (topology, family, backend, rows)) in shapes.into_iter().enumerate() {
        let lab = Lab::new(&format!("shape{number}of"));
        let output = lab.output(&["--topology", topology, "--family", family, "--backend", backend]);
        let stdout = text(&output.stdout);
        assert_eq!(output.status.code(), Some(0), "{stdout}\n{}", text(&output.stderr));
        assert!(stdout.contains(&format!("All {rows} connections as expected.")), "{stdout}");
        lab.assert_nothing_left();
    }
}

#[test]
fn a_lab_told_to_stop_removes_itself() {
    let lab = Lab::new("stopped");
    for (number, code) in [(Signal::SIGINT, 130), (Signal::SIGTERM, 143)] {
        let child = lab.started();
        signal(&child, number);
        assert_eq!(exit_code(child), Some(code));
        lab.assert_nothing_left();
    }
}

#[test]
fn what_a_killed_lab_leaves_is_removed_by_down_with_the_processes_inside() {
    let lab = Lab::new("killed");
    let mut child = lab.started();
    child.kill().unwrap();
    child.wait().unwrap();
    let inside: Vec<i32> =
        lab.namespaces().iter().flat_map(|name| lab::Netns::open(name).unwrap().pids()).collect();
    assert!(inside.len() > 2, "{inside:?}");
    let down = lab.output(&["down"]);
    assert_eq!(down.status.code(), Some(0), "{}", text(&down.stderr));
    assert!(text(&down.stdout).contains("removed"), "{}", text(&down.stdout));
    lab.assert_nothing_left();
    let ended = |pid: &i32| {
        fs::read_to_string(format!("/proc/{pid}/stat")).map_or(true, |stat| stat.contains(") Z "))
    };
    assert!(lab::wait_until(LIMIT, || inside.iter().all(ended)), "{inside:?}");
    assert_eq!(text(&lab.output(&["down"]).stdout), "nothing to remove\n");
}

#[test]
fn a_kept_lab_is_there_for_a_shell_until_down() {
    let lab = Lab::new("kept");
    let kept = lab.output(&["--keep"]);
    assert_eq!(kept.status.code(), Some(0), "{}\n{}", text(&kept.stdout), text(&kept.stderr));

    let hints = text(&kept.stdout);
    for node in ["node1", "node2"] {
        for file in ["records", "log"] {
            let path = lab.folder().join(format!("{node}.{file}"));
            assert!(path.exists() && hints.contains(&format!("  {}\n", path.display())), "{hints}");
        }
        let hint = format!("shell {node} -- curl -s http://127.0.0.1:9093/metrics");
        assert!(hints.contains(&hint), "{hints}");
        let answers = ["shell", node, "--", "bash", "-c", "exec 3<>/dev/tcp/127.0.0.1/9093"];
        assert!(lab.output(&answers).status.success(), "{node}");
    }
    // A shell prompts only on a terminal, which script(1) gives it.
    let shell = format!("{} lab --name {} shell vault/db", env!("CARGO_BIN_EXE_sluice"), lab.name);
    let mut terminal = Command::new("timeout");
    terminal.args(["--foreground", "60", "script", "-qec", &shell, "/dev/null"]).env("SHELL", "/bin/bash");
    let mut terminal = terminal.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    // Told to leave when it has come: at the end of its input script(1) may go before a slow shell has prompted.
    let (mut output, mut said, mut piece) = (terminal.stdout.take().unwrap(), Vec::new(), [0; 256]);
    while !text(&said).contains("vault/db# ") {
        let read = output.read(&mut piece).unwrap();
        assert!(read > 0, "no prompt: {}", text(&said));
        said.extend_from_slice(&piece[..read]);
    }
    terminal.stdin.take().unwrap().write_all(b"exit\n").unwrap();
    assert!(terminal.wait().unwrap().success());

    let second = lab.output(&[]);
    assert_eq!(second.status.code(), Some(2));
    let own = env!("CARGO_BIN_EXE_sluice");
    let remedy = format!("{own} lab --name {} down", lab.name);
    assert!(text(&second.stderr).contains(&remedy), "{}", text(&second.stderr));

    let address =
        lab.output(&["shell", "vault/db", "--", "ip", "-4", "-o", "address", "show", "dev", "eth0"]);
    assert!(text(&address.stdout).contains("inet 10.244.1."), "{}", text(&address.stdout));
    let code = lab.output(&["shell", "node1", "--", "sh", "-c", "exit 7"]);
    assert_eq!(code.status.code(), Some(7));
    let rules = lab.output(&["shell", "node2", "--", "nft", "list", "table", "inet", "sluice"]);
    assert!(rules.status.success(), "{}", text(&rules.stderr));
    let nowhere = lab.output(&["shell", "vault/nobody"]);
    assert_eq!(nowhere.status.code(), Some(2));
    assert!(text(&nowhere.stderr).contains("vault/db"), "{}", text(&nowhere.stderr));

    assert_eq!(lab.output(&["down"]).status.code(), Some(0));
    lab.assert_nothing_left();
    let gone = lab.output(&["shell", "vault/db"]);
    assert_eq!(gone.status.code(), Some(2));
    assert!(text(&gone.stderr).contains("--keep"), "{}", text(&gone.stderr));
}

/// Runs the lab where some programs are hidden by a mount, and gives what it says: one line.
#[track_caller]
fn said_without(hidden: &[&str], arguments: &[&str]) -> String {
    let lab = Lab::new("lacking");
    let hide: String = hidden
        .iter()
        .map(|program| format!("mount --bind /dev/null \"$(readlink -f \"$(command -v {program})\")\" && "))
        .collect();
    let script = format!(
        "{hide}exec {} lab --name {} {}",
        env!("CARGO_BIN_EXE_sluice"),
        lab.name,
        arguments.join(" ")
    );
    let output = Command::new("unshare").args(["--mount", "sh", "-c", &script]).output().unwrap();
    lab.assert_nothing_left();
    one_line(&output)
}

#[track_caller]
fn one_line(output: &Output) -> String {
    let said = text(&output.stderr);
    assert_eq!(output.status.code(), Some(2), "{said}");
    assert!(said.starts_with("sluice: ") && said.lines().count() == 1 && said.len() < 600, "{said}");
    said
}

#[test]
fn a_program_that_the_lab_lacks_is_told_in_one_line_with_its_package() {
    for (hidden, arguments, expected) in [
        (&["ip"][..], &[][..], "`ip` is not installed: apt-get install iproute2"),
        (&["nft"], &[], "`nft` is not installed: apt-get install nftables"),
        (&["bridge"], &["--topology", "vxlan"], "`bridge` is not installed: apt-get install iproute2"),
        (&["ipset"], &["--backend", "iptables-nft"], "this node lacks ipset: apt-get install ipset"),
    ] {
        let said = said_without(hidden, arguments);
        assert!(said.contains(expected), "{hidden:?}: {said}");
    }
}

#[test]
fn a_path_without_the_system_s_folders_is_enough() {
    let lab = Lab::new("path");
    let output = lab.command(&[]).env("PATH", "/usr/bin:/bin").output().unwrap();
    assert_eq!(output.status.code(), Some(0), "{}", text(&output.stderr));
    lab.assert_nothing_left();
}

#[test]
fn a_root_that_may_less_is_told_what_the_lab_needs() {
    let lab = Lab::new("rights");
    for (right, name) in [("sys_admin", "CAP_SYS_ADMIN"), ("net_admin", "CAP_NET_ADMIN")] {
        let lack = [format!("--inh-caps=-{right}"), format!("--bounding-set=-{right}")];
        let mut command = Command::new("setpriv");
        let output =
            command.args(lack).arg(env!("CARGO_BIN_EXE_sluice")).args(["lab", "--name", &lab.name]).output();
        let said = one_line(&output.unwrap());
        assert!(
            said.contains(&format!("this root lacks {name} for it")) && said.contains("--privileged"),
            "{said}"
        );
        lab.assert_nothing_left();
    }
}

#[test]
fn of_labs_that_begin_at_once_one_gets_the_name_and_the_others_are_told() {
    let lab = Lab::new("once");
    let all: Vec<Child> = (0..4)
        .map(|_| lab.command(&[]).stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap())
        .collect();
    let outputs: Vec<Output> = all.into_iter().map(|child| child.wait_with_output().unwrap()).collect();
    let (done, refused): (Vec<_>, Vec<_>) = outputs.iter().partition(|output| output.status.success());
    assert_eq!(done.len(), 1, "{outputs:#?}");
    for output in refused {
        let said = one_line(output);
        assert!(said.contains("running already, as process") && said.contains("down`"), "{said}");
    }
    lab.assert_nothing_left();
}

#[test]
fn a_shape_that_there_is_not_is_told_with_those_that_there_are() {
    for (flag, value, possible) in [
        ("--topology", "ring", "routed, bridge, vxlan"),
        ("--family", "5", "4, 6, dual"),
        ("--backend", "ebtables", "auto, iptables-nft, iptables-legacy"),
        ("--name", "a-b", "letters and digits"),
    ] {
        let output = Command::new(env!("CARGO_BIN_EXE_sluice")).args(["lab", flag, value]).output().unwrap();
        assert_eq!(output.status.code(), Some(2));
        let said = text(&output.stderr);
        assert!(said.contains(possible) && said.contains(value), "{said}");
    }
}

#[test]
fn an_ordinary_user_is_told_that_the_lab_needs_root() {
    let folder = tempfile::tempdir().unwrap();
    fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o755)).unwrap();
    let binary = folder.path().join("sluice");
    fs::copy(env!("CARGO_BIN_EXE_sluice"), &binary).unwrap();
    let output = Command::new(&binary).arg("lab").uid(65534).output().unwrap();
    assert_eq!(output.status.code(), Some(2));
    assert!(text(&output.stderr).contains("root"), "{}", text(&output.stderr));
}
