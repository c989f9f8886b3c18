//! Ctrl-C, SIGTERM and SIGHUP as a flag that the lab looks at between its steps, so that an interrupted lab
//! takes itself down like any other.

use std::sync::Arc;
use std::sync::atomic::{AtomicI32, Ordering};
use std::thread;

use anyhow::Context as _;
use tokio::signal::unix::{SignalKind, signal};

/// The lab was told to stop by this signal.
#[derive(Clone, Copy, Debug, thiserror::Error)]
#[error("stopped by signal {0}")]
pub(crate) struct Interrupted(i32);

impl Interrupted {
    /// What a shell reports for a process that a signal ended.
    pub(crate) fn exit_code(self) -> u8 {
        u8::try_from(128 + self.0).unwrap_or(u8::MAX)
    }
}

/// Whether a signal has come.
#[derive(Clone, Debug)]
pub(crate) struct Interrupt(Arc<AtomicI32>);

impl Interrupt {
    /// Takes over the three signals for the rest of the process's life.
    pub(crate) fn install() -> anyhow::Result<Self> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_io().build()?;
        let mut signals = {
            // Handlers stay when the stream is moved to the waiting thread.
            let _context = runtime.enter();
            let kinds = [SignalKind::interrupt(), SignalKind::terminate(), SignalKind::hangup()];
            kinds
                .into_iter()
                .map(|kind| Ok((kind.as_raw_value(), signal(kind)?)))
                .collect::<std::io::Result<Vec<_>>>()
                .context("handle signals")?
        };
        let seen = Arc::new(AtomicI32::new(0));
        let flag = Arc::clone(&seen);
        thread::Builder::new().name("lab-signals".into()).spawn(move || {
            runtime.block_on(async {
                let first = std::future::poll_fn(|context| {
                    for (number, stream) in &mut signals {
                        if stream.poll_recv(context).is_ready() {
                            return std::task::Poll::Ready(*number);
                        }
                    }
                    std::task::Poll::Pending
                });
                flag.store(first.await, Ordering::Relaxed);
            });
        })?;
        Ok(Self(seen))
    }

    /// An error once a signal has come.
    pub(crate) fn check(&self) -> Result<(), Interrupted> {
        match self.0.load(Ordering::Relaxed) {
            0 => Ok(()),
            number => Err(Interrupted(number)),
        }
    }
}
