//! Threads for streams. A connection that moves much is carried there, so that those that move little never wait
//! behind it: neither for their turn on a thread nor, as threads that sleep most of the time, for a processor.
//!
//! Each thread has a runtime of its own, and a stream stays where it was put: no thread wakes up another.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::thread;

use tokio::runtime::Builder;
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};

type Stream = Pin<Box<dyn Future<Output = ()> + Send>>;

/// The threads. They end when this is dropped, and with them what they still carry.
#[derive(Debug)]
pub(crate) struct Streams {
    lanes: Vec<Lane>,
}

#[derive(Debug)]
struct Lane {
    streams: UnboundedSender<Stream>,
    /// Each stream on this thread holds a copy.
    carried: Arc<()>,
}

impl Streams {
    /// Starts so many threads, at least one.
    ///
    /// Errors: what thread creation, epoll_create(2) or eventfd(2) say.
    pub(crate) fn start(threads: usize) -> io::Result<Self> {
        Ok(Self { lanes: (0..threads.max(1)).map(|_| Lane::start()).collect::<io::Result<_>>()? })
    }

    /// Carries a stream on the thread that has the fewest.
    pub(crate) fn carry(&self, stream: impl Future<Output = ()> + Send + 'static) {
        let Some(lane) = self.lanes.iter().min_by_key(|lane| Arc::strong_count(&lane.carried)) else {
            return;
        };
        let carried = Arc::clone(&lane.carried);
        // A thread that has ended drops what it is sent: the stream then has its record, and ends.
        let _ = lane.streams.send(Box::pin(async move {
            stream.await;
            drop(carried);
        }));
    }
}

impl Lane {
    fn start() -> io::Result<Self> {
        let runtime = Builder::new_current_thread().enable_all().build()?;
        let (streams, sent) = unbounded_channel();
        thread::Builder::new().name("streams".into()).spawn(move || runtime.block_on(carry_all(sent)))?;
        Ok(Self { streams, carried: Arc::new(()) })
    }
}

async fn carry_all(mut sent: UnboundedReceiver<Stream>) {
    while let Some(stream) = sent.recv().await {
        // Each is a task of its own: a panic ends that one.
        tokio::spawn(stream);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;
    use std::time::Duration;

    use super::*;

    const LIMIT: Duration = Duration::from_secs(10);

    #[test]
    fn streams_are_spread_over_the_threads() {
        let streams = Streams::start(2).unwrap();
        let (tell, told) = mpsc::channel();
        let rest = Arc::new(tokio::sync::Notify::new());
        for _ in 0..4 {
            let (tell, rest) = (tell.clone(), Arc::clone(&rest));
            streams.carry(async move {
                tell.send(thread::current().id()).unwrap();
                rest.notified().await;
            });
        }
        let on: Vec<_> = (0..4).map(|_| told.recv_timeout(LIMIT).unwrap()).collect();
        let first = on.iter().filter(|thread| **thread == on[0]).count();
        assert_eq!(first, 2, "two threads, two streams each: {on:?}");
    }

    #[test]
    fn a_stream_that_panics_ends_no_other() {
        let streams = Streams::start(1).unwrap();
        let (tell, told) = mpsc::channel();
        let go = Arc::new(tokio::sync::Notify::new());
        let waiting = Arc::clone(&go);
        streams.carry(async move {
            waiting.notified().await;
            tell.send(()).unwrap();
        });
        streams.carry(async { panic!("on purpose") });
        streams.carry(async move { go.notify_one() });
        told.recv_timeout(LIMIT).unwrap();
    }

    #[test]
    fn what_is_carried_ends_with_the_threads() {
        struct Tells(mpsc::Sender<()>);
        impl Drop for Tells {
            fn drop(&mut self) {
                self.0.send(()).unwrap();
            }
        }
        let streams = Streams::start(1).unwrap();
        let (tell, told) = mpsc::channel();
        let held = Tells(tell);
        streams.carry(async move {
            let _held = held;
            std::future::pending::<()>().await;
        });
        drop(streams);
        told.recv_timeout(LIMIT).unwrap();
    }
}
