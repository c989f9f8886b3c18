//! Network namespaces for tests: made, entered, removed. Names are unique, so tests run side by side.

#![allow(dead_code, reason = "each test file uses its part")]

use std::fs::File;
use std::future::Future;
use std::io::Write;
use std::process::{self, Command, Output, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use nix::sched::{CloneFlags, setns};

/// A network namespace, removed when dropped by who made it.
#[derive(Debug)]
pub(crate) struct Netns {
    name: String,
    made: bool,
}

impl Netns {
    /// Makes one, with its loopback device up.
    pub(crate) fn new() -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let name = format!("redirect-{}-{}", process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
        let ns = Self { name, made: true };
        ip(&["netns", "add", &ns.name]);
        ns.run("ip link set lo up");
        ns
    }

    /// One that another process has made.
    pub(crate) fn existing(name: &str) -> Self {
        Self { name: name.to_owned(), made: false }
    }

    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    /// Runs a command line (words split at spaces) inside and gives back what it printed; it must succeed.
    pub(crate) fn run(&self, line: &str) -> String {
        let output = self.try_run(line);
        assert!(output.status.success(), "{line}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    }

    pub(crate) fn try_run(&self, line: &str) -> Output {
        Command::new("ip").args(["netns", "exec", &self.name]).args(line.split(' ')).output().unwrap()
    }

    /// Loads an nft script; it must be accepted.
    pub(crate) fn load(&self, script: &str) {
        assert!(self.try_load(script), "{script}");
    }

    /// Loads an nft script, and tells whether it was accepted.
    pub(crate) fn try_load(&self, script: &str) -> bool {
        let mut nft = Command::new("ip")
            .args(["netns", "exec", &self.name, "nft", "-f", "-"])
            .stdin(Stdio::piped())
            .spawn()
            .unwrap();
        nft.stdin.take().unwrap().write_all(script.as_bytes()).unwrap();
        nft.wait().unwrap().success()
    }

    /// Runs `work` on a thread of its own that is inside.
    pub(crate) fn enter<T: Send + 'static>(&self, work: impl FnOnce() -> T + Send + 'static) -> T {
        let file = File::open(format!("/var/run/netns/{}", self.name)).unwrap();
        let inside = move || {
            setns(file, CloneFlags::CLONE_NEWNET).unwrap();
            work()
        };
        match thread::spawn(inside).join() {
            Ok(value) => value,
            Err(panic) => std::panic::resume_unwind(panic),
        }
    }

    /// Runs the future that `work` makes, on a single-threaded runtime inside.
    pub(crate) fn block_on<T, F>(&self, work: impl FnOnce() -> F + Send + 'static) -> T
    where
        T: Send + 'static,
        F: Future<Output = T>,
    {
        self.enter(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(work())
        })
    }
}

impl Drop for Netns {
    fn drop(&mut self) {
        if self.made {
            let _ = Command::new("ip").args(["netns", "del", &self.name]).status();
        }
    }
}

/// Runs `ip` outside; it must succeed.
pub(crate) fn ip(arguments: &[&str]) {
    let output = Command::new("ip").args(arguments).output().unwrap();
    assert!(output.status.success(), "ip {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
}

/// Waits until `condition` holds, at most `limit`, and says how long it took.
pub(crate) async fn until(what: &str, limit: Duration, mut condition: impl FnMut() -> bool) -> Duration {
    let start = Instant::now();
    while !condition() {
        assert!(start.elapsed() < limit, "{what}: not within {limit:?}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    start.elapsed()
}
