//! Lines to daemons: sockets that this test owns, and systemd-journald.

use std::process::{Child, Command, Stdio};

use super::*;
use crate::batch::{LossCause, Lost};
use crate::line::LineWriter;
use crate::line::tests::everything;
use crate::recorder::tests::wait_until;
use crate::{ConnectionId, Record};

fn batch() -> Batch {
    let mut batch = Batch::default();
    batch.add_lost("node-a", Lost { first: 1, last: 3, count: 3, cause: LossCause::QueueFull });
    batch
}

#[test]
fn a_line_is_a_datagram_with_priority_and_name_and_a_daemon_that_is_started_again_gets_the_next() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("log");
    let mut syslog = Syslog::new(SyslogSink { socket: path.clone(), ..SyslogSink::default() });
    assert_eq!(syslog.deliver(&batch()).unwrap_err().delivered, 0, "nobody there yet");
    for _ in 0..2 {
        let daemon = UnixDatagram::bind(&path).unwrap();
        daemon.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
        syslog.deliver(&batch()).unwrap();
        let mut datagram = [0; 4096];
        let length = daemon.recv(&mut datagram).unwrap();
        let text = std::str::from_utf8(&datagram[..length]).unwrap();
        let json = text.strip_prefix(&format!("<131>sluice[{}]: ", std::process::id())).unwrap();
        let line: serde_json::Value = serde_json::from_str(json).unwrap();
        assert_eq!(line["sluice"]["lost"]["count"], 3);
        drop(daemon);
        std::fs::remove_file(&path).unwrap();
    }
}

#[test]
fn a_daemon_that_takes_nothing_is_given_up_after_a_while() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("log");
    let _daemon = UnixDatagram::bind(&path).unwrap();
    let mut syslog = Syslog::new(SyslogSink { socket: path, ..SyslogSink::default() });
    let mut sent = 0;
    while syslog.deliver(&batch()).is_ok() {
        sent += 1;
        assert!(sent < 1_000_000, "a socket that holds everything");
    }
    assert!(sent > 0);
}

/// systemd-journald that keeps all it is given, in a /run of its own; gone with the value.
struct Journald(Child);

const JOURNALD: &str = "
mount -t tmpfs tmpfs /run
mkdir -p /run/systemd/journald.conf.d
printf '[Journal]\\nStorage=volatile\\nReadKMsg=no\\nAudit=no\\nRateLimitIntervalSec=0\\n' > /run/systemd/journald.conf.d/test.conf
exec /lib/systemd/systemd-journald
";

impl Journald {
    fn start() -> Self {
        let mut command = Command::new("unshare");
        command.args(["--mount", "--propagation", "private", "sh", "-ec", JOURNALD]).stderr(Stdio::null());
        let journald = Self(command.spawn().unwrap());
        wait_until("journald listens", || {
            UnixDatagram::unbound().unwrap().connect(journald.socket()).is_ok()
        });
        journald
    }

    /// What /dev/log leads to where it runs.
    fn socket(&self) -> PathBuf {
        format!("/proc/{}/root/run/systemd/journal/dev-log", self.0.id()).into()
    }

    /// What `journalctl` prints there.
    fn told(&self, arguments: &[&str]) -> String {
        let pid = self.0.id().to_string();
        let mut command = Command::new("nsenter");
        command.args(["--mount", "--target", &pid, "journalctl"]).args(arguments);
        let output = command.output().unwrap();
        assert!(output.status.success(), "{output:?}");
        String::from_utf8(output.stdout).unwrap()
    }
}

impl Drop for Journald {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn journald_keeps_every_record_whole_with_its_severity_under_the_name_sluice() {
    const RECORDS: u64 = 12_000;

    let journald = Journald::start();
    let mut syslog = Syslog::new(SyslogSink { socket: journald.socket(), ..SyslogSink::default() });
    let mut writer = LineWriter::new("node-a");
    let mut batch = batch();
    for number in 4..4 + RECORDS {
        let action = if number % 100 == 0 { Action::Denied } else { Action::Ended };
        let record = Record { id: ConnectionId::next(), action, ..everything() };
        batch.add_record(number, &mut writer, Box::new(record));
    }
    syslog.deliver(&batch).unwrap();
    journald.told(&["--sync"]);
    let lines = |more: &[&str]| {
        let all = ["--identifier=sluice", "--facility=local0", "--all", "--output=cat", "--no-pager"];
        journald.told(&[&all, more].concat())
    };
    assert_eq!(lines(&[]).as_bytes(), batch.lines());
    let denied = lines(&["--priority=5..5"]);
    assert_eq!(denied.lines().count() as u64, RECORDS / 100);
    assert!(denied.lines().all(|line| line.contains("connection-denied")));
    assert_eq!(lines(&["--priority=3..3"]).lines().count(), 1, "what tells of losses");
}
