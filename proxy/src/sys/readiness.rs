//! Registration of sockets with the runtime's epoll(7).

use std::io;
use std::net::{TcpListener, TcpStream};
use std::os::fd::{AsRawFd, RawFd};
use std::sync::Arc;

use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use super::nfqueue::Queue;
use super::tracked::Endings;

/// Watches a leg of a connection.
#[expect(
    deprecated,
    reason = "the replacement is unsafe for types that lie about their descriptor; TcpStream does not"
)]
pub(crate) fn watch_stream(stream: TcpStream) -> io::Result<AsyncFd<TcpStream>> {
    // Priority tells of urgent data.
    AsyncFd::with_interest(stream, Interest::READABLE | Interest::WRITABLE | Interest::PRIORITY)
}

/// Watches a listener.
#[expect(deprecated, reason = "as above; TcpListener owns its descriptor")]
pub(crate) fn watch_listener(listener: Arc<TcpListener>) -> io::Result<AsyncFd<Arc<TcpListener>>> {
    AsyncFd::new(listener)
}

/// Watches a queue for packets.
#[expect(deprecated, reason = "as above; Queue owns its descriptor and outlives the registration")]
pub(crate) fn watch_queue(queue: &Queue) -> io::Result<AsyncFd<QueueDescriptor<'_>>> {
    AsyncFd::with_interest(QueueDescriptor(queue), Interest::READABLE)
}

/// Watches for ends of tracked connections.
#[expect(deprecated, reason = "as above; Endings owns its descriptor")]
pub(crate) fn watch_endings(endings: Endings) -> io::Result<AsyncFd<Endings>> {
    AsyncFd::with_interest(endings, Interest::READABLE)
}

/// A borrowed queue, as something to watch.
#[derive(Debug)]
pub(crate) struct QueueDescriptor<'a>(&'a Queue);

impl AsRawFd for QueueDescriptor<'_> {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_raw_fd()
    }
}
