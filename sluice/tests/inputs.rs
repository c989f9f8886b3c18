//! Files that are none, and files without an end: refused with exit code 2 and a message, whoever names them.
#![expect(clippy::unwrap_used, reason = "a panic is the report of a failed test")]

use std::fs::{self, File};
use std::io::Read;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

const LIMIT: Duration = Duration::from_secs(20);

/// Exit code and standard error. In a network namespace of its own, for what is not refused would begin to work.
fn sluice(arguments: &[&str]) -> (Option<i32>, String) {
    let mut child = Command::new("unshare")
        .args(["-n", env!("CARGO_BIN_EXE_sluice")])
        .args(arguments)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let begin = Instant::now();
    while child.try_wait().unwrap().is_none() && begin.elapsed() < LIMIT {
        std::thread::sleep(Duration::from_millis(10));
    }
    let _ = child.kill();
    let mut text = String::new();
    child.stderr.take().unwrap().read_to_string(&mut text).unwrap();
    (child.wait().unwrap().code(), text)
}

fn kubeconfig(folder: &Path, name: &str, cluster: &str, user: &str) -> String {
    let path = folder.join(name);
    let text = format!(
        "apiVersion: v1\nkind: Config\ncurrent-context: c\n\
         clusters: [{{name: c, cluster: {{server: 'https://127.0.0.1:1', {cluster}}}}}]\n\
         users: [{{name: u, user: {{{user}}}}}]\n\
         contexts: [{{name: c, context: {{cluster: c, user: u}}}}]\n"
    );
    fs::write(&path, text).unwrap();
    path.display().to_string()
}

#[test]
fn a_kubeconfig_that_cannot_be_used_is_one_line_with_its_file_field_and_value() {
    let folder = tempfile::tempdir().unwrap();
    let good = kubeconfig(folder.path(), "good", "", "token: t");
    let text = fs::read_to_string(&good).unwrap();
    let path = folder.path().join("bad");
    let named = path.display().to_string();
    for (content, expected) in [
        (
            text.replace("https://127.0.0.1:1", "10.0.0.1:6443"),
            "clusters[c].cluster.server is \"10.0.0.1:6443\": it has no scheme",
        ),
        (text.replace("user: u}", "user: nobody}"), "user is \"nobody\", and there is no such user"),
        (
            text.replace("{cluster: c,", "{cluster: none,"),
            "cluster is \"none\", and there is no such cluster",
        ),
        (text.replace("token: t", "exec: {command: /bin/true}"), "users[u].user.exec is not used"),
        (String::new(), "the file is empty"),
        ("{".to_owned(), "the file cannot be read"),
    ] {
        fs::write(&path, content).unwrap();
        let (code, said) = sluice(&["run", "--node", "n", "--kubeconfig", &named]);
        assert_eq!(code, Some(2), "{said}");
        let start = format!("sluice: kubeconfig {named}: ");
        let lines: Vec<&str> = said.lines().filter(|line| line.starts_with("sluice: ")).collect();
        assert!(lines.len() == 1 && lines[0].starts_with(&start) && lines[0].contains(expected), "{said}");
        assert!(!said.contains("panicked"), "{said}");
    }
}

#[test]
fn what_is_no_regular_file_or_too_large_is_refused_wherever_it_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name).display().to_string();
    let (fifo, large, manifests) = (at("fifo"), at("large"), at("manifests"));
    assert!(Command::new("mkfifo").arg(&fifo).status().unwrap().success());
    File::create(&large).unwrap().set_len(600 << 20).unwrap();
    fs::create_dir(&manifests).unwrap();
    fs::write(
        folder.path().join("manifests/n.yaml"),
        "apiVersion: v1\nkind: Namespace\nmetadata: { name: n }\n",
    )
    .unwrap();
    for (number, (bad, problem)) in
        [(fifo.as_str(), "is a FIFO"), ("/dev/zero", "is a device"), (large.as_str(), "larger than")]
            .into_iter()
            .enumerate()
    {
        let config = |cluster: &str, user: &str| {
            kubeconfig(folder.path(), &format!("kube{number}{}{}", cluster.len(), user.len()), cluster, user)
        };
        let kubeconfigs = [
            bad.to_owned(),
            config(&format!("certificate-authority: '{bad}'"), "token: t"),
            config("", &format!("tokenFile: '{bad}'")),
            config("", &format!("client-certificate: '{bad}', client-key: '{bad}'")),
        ];
        let mut calls: Vec<Vec<&str>> = kubeconfigs
            .iter()
            .map(|kubeconfig| vec!["run", "--node", "n", "--kubeconfig", kubeconfig.as_str()])
            .collect();
        calls.push(vec!["run", "--node", "n", "--manifests", &manifests, "--config", bad]);
        // Probes are answered as they come, however many there are.
        if bad != large {
            calls.push(vec!["verdict", "--manifests", &manifests, "--probes", bad]);
        }
        for call in calls {
            let (code, text) = sluice(&call);
            assert_eq!(code, Some(2), "{call:?}: {text}");
            assert!(text.contains(bad) && text.contains(problem), "{call:?}: {text}");
        }
    }
}
