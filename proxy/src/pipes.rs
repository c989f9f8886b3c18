//! The pool of pipes. A stream borrows one only while bytes are in flight, so idle connections hold none and
//! memory under backpressure is bounded by the number of pipes.

use std::ops::{Deref, DerefMut};
use std::sync::{Mutex, PoisonError};

use audit::Metrics;

use crate::sys::pipe::Pipe;

/// Idle pipes kept open for the next stream.
const MAX_IDLE: usize = 64;

/// All pipes of the process.
#[derive(Debug)]
pub(crate) struct PipePool {
    pipe_bytes: usize,
    max_pipes: usize,
    state: Mutex<State>,
    metrics: Metrics,
}

#[derive(Debug, Default)]
struct State {
    idle: Vec<Pipe>,
    in_use: usize,
}

/// A borrowed pipe. It goes back to the pool when dropped empty, and is closed when bytes are left in it.
#[derive(Debug)]
pub(crate) struct BorrowedPipe<'a> {
    pool: &'a PipePool,
    pipe: Option<Pipe>,
}

impl PipePool {
    pub(crate) fn new(pipe_bytes: usize, max_pipes: usize, metrics: Metrics) -> Self {
        Self { pipe_bytes, max_pipes, state: Mutex::default(), metrics }
    }

    /// An empty pipe; `None` when all are in use or none can be opened. The stream is copied then.
    pub(crate) fn borrow(&self) -> Option<BorrowedPipe<'_>> {
        let idle = {
            let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
            if state.in_use >= self.max_pipes {
                return None;
            }
            state.in_use += 1;
            let idle = state.idle.pop();
            self.export(&state);
            idle
        };
        match idle.map_or_else(|| Pipe::open(self.pipe_bytes), Ok) {
            Ok(pipe) => Some(BorrowedPipe { pool: self, pipe: Some(pipe) }),
            Err(error) => {
                tracing::debug!(%error, "no pipe to be had, copying instead");
                let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
                state.in_use -= 1;
                self.export(&state);
                None
            }
        }
    }

    fn give_back(&self, pipe: Pipe) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        state.in_use -= 1;
        if pipe.len() == 0 && state.idle.len() < MAX_IDLE {
            state.idle.push(pipe);
        }
        self.export(&state);
    }

    fn export(&self, state: &State) {
        self.metrics.pipes_in_use.set(i64::try_from(state.in_use).unwrap_or(i64::MAX));
        self.metrics.pipes_pooled.set(i64::try_from(state.idle.len()).unwrap_or(i64::MAX));
    }
}

impl Deref for BorrowedPipe<'_> {
    type Target = Pipe;

    #[expect(clippy::expect_used, reason = "the pipe leaves only in drop")]
    fn deref(&self) -> &Pipe {
        self.pipe.as_ref().expect("present until dropped")
    }
}

impl DerefMut for BorrowedPipe<'_> {
    #[expect(clippy::expect_used, reason = "the pipe leaves only in drop")]
    fn deref_mut(&mut self) -> &mut Pipe {
        self.pipe.as_mut().expect("present until dropped")
    }
}

impl Drop for BorrowedPipe<'_> {
    fn drop(&mut self) {
        if let Some(pipe) = self.pipe.take() {
            self.pool.give_back(pipe);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::net::{TcpListener, TcpStream};

    use super::*;

    #[test]
    fn pipes_are_bounded_and_used_again() {
        let metrics = Metrics::default();
        let pool = PipePool::new(1 << 16, 2, metrics.clone());
        let (one, two) = (pool.borrow().unwrap(), pool.borrow().unwrap());
        assert!(pool.borrow().is_none());
        drop(one);
        assert_eq!((metrics.pipes_in_use.get(), metrics.pipes_pooled.get()), (1, 1));
        let again = pool.borrow().unwrap();
        assert_eq!((metrics.pipes_in_use.get(), metrics.pipes_pooled.get()), (2, 0));
        drop((two, again));
        assert_eq!((metrics.pipes_in_use.get(), metrics.pipes_pooled.get()), (0, 2));
    }

    #[test]
    fn a_pipe_that_holds_bytes_is_never_lent_again() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let mut source = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let from = listener.accept().unwrap().0;
        source.write_all(b"left over").unwrap();
        let metrics = Metrics::default();
        let pool = PipePool::new(1 << 16, 2, metrics.clone());
        let mut pipe = pool.borrow().unwrap();
        pipe.fill(&from).unwrap();
        drop(pipe);
        assert_eq!((metrics.pipes_in_use.get(), metrics.pipes_pooled.get()), (0, 0));
    }
}
