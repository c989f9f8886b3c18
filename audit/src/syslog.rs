//! Lines to the host's log: datagrams as syslog(3) sends them, which syslog daemons and journald both take.

use std::io;
use std::os::unix::net::UnixDatagram;
use std::path::PathBuf;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::batch::{Batch, Told};
use crate::lane::{Deliver, Undelivered};
use crate::output::SinkError;
use crate::record::Action;

/// A daemon that takes nothing for so long has the rest of the batch refused.
const PATIENCE: Duration = Duration::from_secs(1);

/// Records to the host's log.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct SyslogSink {
    /// The datagram socket of the daemon. Default `/dev/log`.
    pub socket: PathBuf,
    /// The facility's number, 0 to 23. Default 16, which is `local0`.
    pub facility: u8,
}

impl Default for SyslogSink {
    fn default() -> Self {
        Self { socket: PathBuf::from("/dev/log"), facility: 16 }
    }
}

#[derive(Debug)]
pub(crate) struct Syslog {
    options: SyslogSink,
    /// `None` until the daemon can be reached.
    socket: Option<UnixDatagram>,
    message: Vec<u8>,
}

impl Syslog {
    /// A daemon that does not run yet is tried again with every batch.
    pub(crate) fn new(options: SyslogSink) -> Self {
        Self { options, socket: None, message: Vec::new() }
    }

    fn send(&mut self, severity: u8, line: &[u8]) -> io::Result<()> {
        use std::io::Write;

        self.message.clear();
        let priority = self.options.facility * 8 + severity;
        write!(self.message, "<{priority}>sluice[{}]: ", std::process::id())?;
        self.message.extend_from_slice(line.strip_suffix(b"\n").unwrap_or(line));
        if let Some(socket) = &self.socket
            && socket.send(&self.message).is_ok()
        {
            return Ok(());
        }
        // The daemon may have been started again, with a new socket.
        self.socket = None;
        let socket = UnixDatagram::unbound()?;
        socket.connect(&self.options.socket)?;
        socket.set_write_timeout(Some(PATIENCE))?;
        socket.send(&self.message)?;
        self.socket = Some(socket);
        Ok(())
    }
}

impl Deliver for Syslog {
    fn deliver(&mut self, batch: &Batch) -> Result<(), Undelivered> {
        for (delivered, entry) in batch.entries().iter().enumerate() {
            self.send(severity(&entry.told), batch.line(entry)).map_err(|cause| Undelivered {
                delivered,
                cause: SinkError::Syslog { socket: self.options.socket.clone(), cause },
            })?;
        }
        Ok(())
    }
}

/// As syslog(3) numbers them.
fn severity(told: &Told) -> u8 {
    const ERROR: u8 = 3;
    const WARNING: u8 = 4;
    const NOTICE: u8 = 5;
    const INFO: u8 = 6;

    match told {
        Told::Lost(_) => ERROR,
        Told::Summary => INFO,
        Told::Record(record) => match record.action {
            Action::Failed => WARNING,
            Action::Denied => NOTICE,
            Action::Started | Action::Updated | Action::Ended => INFO,
        },
    }
}

#[cfg(test)]
#[path = "syslog_tests.rs"]
mod tests;
