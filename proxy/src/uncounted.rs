//! Datagrams that the kernel does not count: those that were held while another of their flow was accepted.
//!
//! Conntrack counts a packet when it comes, in an entry of the packet's own as long as its flow is not known. When the
//! packet goes on, older kernels put it under the flow's entry and forget what was counted (`nf_conntrack_update`, seen
//! with 5.10 and 6.1); newer ones add it (6.12 and 6.18). Which of them this one is shows in the counters around such a
//! packet: an entry that has not changed is the proof.

use std::sync::atomic::{AtomicU8, Ordering};

use flow::Tuple;

use crate::datagram::find;
use crate::sys::tracked::{Conntrack, Counted, Entry};

/// After so many counted ones in a row nobody asks any more. Another packet of the flow may pass between two questions.
const ENOUGH: u8 = 16;
const NEVER: u8 = u8::MAX;

/// What has been learned of this kernel.
#[derive(Debug, Default)]
pub(crate) struct Uncounted(AtomicU8);

impl Uncounted {
    /// Lets such a packet go on by `release`. True when conntrack has not counted it in the entry of its flow.
    pub(crate) fn around(&self, conntrack: &Conntrack, tuple: &Tuple, release: impl FnOnce()) -> bool {
        // Without an entry it begins the flow anew, and is counted as the first.
        let sent = || find(conntrack, tuple).ok().flatten().as_ref().and_then(sent);
        self.judge(sent, release)
    }

    fn judge(&self, sent: impl Fn() -> Option<Counted>, release: impl FnOnce()) -> bool {
        let seen = self.0.load(Ordering::Relaxed);
        if seen == ENOUGH {
            release();
            return false;
        }
        let before = sent();
        release();
        let Some(before) = before else { return false };
        if seen == NEVER {
            return true;
        }
        let is_counted = sent().is_none_or(|after| after != before);
        self.0.store(if is_counted { seen + 1 } else { NEVER }, Ordering::Relaxed);
        !is_counted
    }
}

fn sent(entry: &Entry) -> Option<Counted> {
    entry.counted.map(|(sent, _)| sent)
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use super::*;

    /// A kernel that counts such packets, or does not; `None` is one that has no entry for them.
    fn judged(uncounted: &Uncounted, counts: Option<bool>) -> (bool, u32) {
        let (packets, asked) = (Cell::new(1), Cell::new(0));
        let sent = || {
            asked.set(asked.get() + 1);
            counts.map(|_| Counted { packets: packets.get(), bytes: packets.get() * 40 })
        };
        let is_uncounted =
            uncounted.judge(sent, || packets.set(packets.get() + u64::from(counts == Some(true))));
        (is_uncounted, asked.get())
    }

    #[test]
    fn a_kernel_that_counts_them_is_believed_after_a_while() {
        let uncounted = Uncounted::default();
        assert_eq!(judged(&uncounted, None), (false, 1));
        for _ in 0..ENOUGH {
            assert_eq!(judged(&uncounted, Some(true)), (false, 2));
        }
        assert_eq!(judged(&uncounted, Some(true)), (false, 0));
    }

    #[test]
    fn one_packet_that_is_not_counted_is_the_proof() {
        let uncounted = Uncounted::default();
        // Another packet of the flow has passed meanwhile.
        assert_eq!(judged(&uncounted, Some(true)), (false, 2));
        assert_eq!(judged(&uncounted, Some(false)), (true, 2));
        for _ in 0..100 {
            assert_eq!(judged(&uncounted, Some(true)), (true, 1), "also while others pass");
            assert_eq!(judged(&uncounted, None), (false, 1), "what begins a flow is counted");
        }
    }
}
