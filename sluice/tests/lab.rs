//! `sluice lab` as a user runs it. There is one lab on a machine, so these tests take turns.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

const LIMIT: Duration = Duration::from_secs(60);
const FOLDER: &str = "/run/sluice-lab";

static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());

fn turn() -> MutexGuard<'static, ()> {
    ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner)
}

fn sluice(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_sluice"));
    command.args(arguments);
    command
}

fn output(arguments: &[&str]) -> Output {
    sluice(arguments).output().unwrap()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

fn namespaces() -> Vec<String> {
    let Ok(entries) = fs::read_dir("/run/netns") else { return Vec::new() };
    let names = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap());
    names.filter(|name| name.starts_with("sluice-lab-")).collect()
}

fn assert_nothing_left() {
    assert_eq!(namespaces(), Vec::<String>::new());
    assert!(!Path::new(FOLDER).exists());
}

/// A lab that has come as far as starting `sluice run` on both nodes.
fn started() -> Child {
    let child = sluice(&["lab"]).stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
    let log = Path::new(FOLDER).join("node2.log");
    assert!(lab::wait_until(LIMIT, || log.exists()), "the lab did not start");
    child
}

fn exit_code(mut child: Child) -> Option<i32> {
    lab::wait_for(LIMIT, || child.try_wait().unwrap()).expect("the lab did not end").code()
}

fn signal(child: &Child, signal: Signal) {
    kill(Pid::from_raw(i32::try_from(child.id()).unwrap()), signal).unwrap();
}

#[test]
fn everything_seen_is_as_expected_and_nothing_is_left() {
    let _turn = turn();
    let output = output(&["lab"]);
    let stdout = text(&output.stdout);
    assert_eq!(output.status.code(), Some(0), "{stdout}\n{}", text(&output.stderr));
    assert!(stdout.contains("connections as expected."), "{stdout}");
    assert!(stdout.contains("through Sluice"), "{stdout}");
    assert_nothing_left();
}

#[test]
fn a_lab_told_to_stop_removes_itself() {
    let _turn = turn();
    for (number, code) in [(Signal::SIGINT, 130), (Signal::SIGTERM, 143)] {
        let child = started();
        signal(&child, number);
        assert_eq!(exit_code(child), Some(code));
        assert_nothing_left();
    }
}

#[test]
fn what_a_killed_lab_leaves_is_removed_by_down_with_the_processes_inside() {
    let _turn = turn();
    let mut child = started();
    child.kill().unwrap();
    child.wait().unwrap();
    let inside: Vec<i32> =
        namespaces().iter().flat_map(|name| lab::Netns::open(name).unwrap().pids()).collect();
    assert!(inside.len() > 2, "{inside:?}");
    let down = output(&["lab", "down"]);
    assert_eq!(down.status.code(), Some(0), "{}", text(&down.stderr));
    assert!(text(&down.stdout).contains("removed"), "{}", text(&down.stdout));
    assert_nothing_left();
    let ended = |pid: &i32| {
        fs::read_to_string(format!("/proc/{pid}/stat")).map_or(true, |stat| stat.contains(") Z "))
    };
    assert!(lab::wait_until(LIMIT, || inside.iter().all(ended)), "{inside:?}");
    assert_eq!(text(&output(&["lab", "down"]).stdout), "nothing to remove\n");
}

#[test]
fn a_kept_lab_is_there_for_a_shell_until_down() {
    let _turn = turn();
    let kept = output(&["lab", "--keep"]);
    assert_eq!(kept.status.code(), Some(0), "{}\n{}", text(&kept.stdout), text(&kept.stderr));

    let second = output(&["lab"]);
    assert_eq!(second.status.code(), Some(2));
    assert!(text(&second.stderr).contains("sluice lab down"), "{}", text(&second.stderr));

    let address = output(&["lab", "shell", "vault/db", "--", "ip", "-4", "-o", "address", "show", "dev", "eth0"]);
    assert!(text(&address.stdout).contains("inet 10.244.1."), "{}", text(&address.stdout));
    let code = output(&["lab", "shell", "node1", "--", "sh", "-c", "exit 7"]);
    assert_eq!(code.status.code(), Some(7));
    let rules = output(&["lab", "shell", "node2", "--", "nft", "list", "table", "inet", "sluice"]);
    assert!(rules.status.success(), "{}", text(&rules.stderr));
    let nowhere = output(&["lab", "shell", "vault/nobody"]);
    assert_eq!(nowhere.status.code(), Some(2));
    assert!(text(&nowhere.stderr).contains("vault/db"), "{}", text(&nowhere.stderr));

    assert_eq!(output(&["lab", "down"]).status.code(), Some(0));
    assert_nothing_left();
    let gone = output(&["lab", "shell", "vault/db"]);
    assert_eq!(gone.status.code(), Some(2));
    assert!(text(&gone.stderr).contains("sluice lab --keep"), "{}", text(&gone.stderr));
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
