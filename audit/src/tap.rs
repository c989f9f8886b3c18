//! Live lines for whoever asks for them now: a sink without a memory.

use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};

use crate::batch::Batch;
use crate::lane::{Deliver, Undelivered};

/// Takes whole lines and must not wait; false when no more are wanted.
pub type Listener = Box<dyn FnMut(&[u8]) -> bool + Send>;

/// Who listens. Clones share them.
#[derive(Clone, Default)]
pub(crate) struct Tap {
    listeners: Arc<Mutex<Vec<Listener>>>,
}

impl Tap {
    pub(crate) fn listen(&self, listener: Listener) {
        self.listeners.lock().unwrap_or_else(PoisonError::into_inner).push(listener);
    }
}

impl Deliver for Tap {
    fn deliver(&mut self, batch: &Batch) -> Result<(), Undelivered> {
        let mut listeners = self.listeners.lock().unwrap_or_else(PoisonError::into_inner);
        listeners.retain_mut(|listener| listener(batch.lines()));
        Ok(())
    }
}

impl fmt::Debug for Tap {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tap").finish_non_exhaustive()
    }
}
