//! Pairs accepted connections with the upstream sockets that wait for them.
//!
//! A connection is expected before its SYN is released, so an accepted connection that nobody expects was
//! never permitted and is refused.

use std::sync::atomic::{AtomicU64, Ordering};

use dashmap::DashMap;
use dashmap::mapref::entry::Entry;
use flow::Tuple;
use foldhash::fast::RandomState;
use tokio::sync::oneshot;

/// Accepted connections of type `T`, by tuple.
#[derive(Debug)]
pub(crate) struct Pairing<T> {
    expected: DashMap<Tuple, (u64, oneshot::Sender<T>), RandomState>,
    places: AtomicU64,
}

/// The place of one expected connection; it is expected no longer once this is dropped.
#[derive(Debug)]
pub(crate) struct Expected<'a, T> {
    pairing: &'a Pairing<T>,
    tuple: Tuple,
    place: u64,
    accepted: oneshot::Receiver<T>,
}

impl<T> Pairing<T> {
    pub(crate) fn new() -> Self {
        Self { expected: DashMap::default(), places: AtomicU64::new(0) }
    }

    /// Announces a connection. `None` when the same tuple is expected already.
    pub(crate) fn expect(&self, tuple: Tuple) -> Option<Expected<'_, T>> {
        match self.expected.entry(tuple) {
            Entry::Occupied(_) => None,
            Entry::Vacant(vacant) => {
                let (sender, accepted) = oneshot::channel();
                let place = self.places.fetch_add(1, Ordering::Relaxed);
                vacant.insert((place, sender));
                Some(Expected { pairing: self, tuple, place, accepted })
            }
        }
    }

    /// Hands an accepted connection to whoever expects it; gives it back when nobody does.
    pub(crate) fn deliver(&self, tuple: &Tuple, connection: T) -> Result<(), T> {
        match self.expected.remove(tuple) {
            Some((_, (_, sender))) => sender.send(connection),
            None => Err(connection),
        }
    }

    /// Connections expected now.
    #[cfg(test)]
    fn len(&self) -> usize {
        self.expected.len()
    }
}

impl<T> Expected<'_, T> {
    /// Waits for the connection. Cancel safe.
    pub(crate) async fn accepted(&mut self) -> T {
        match (&mut self.accepted).await {
            Ok(connection) => connection,
            // The sender lives in the table until it is used, and the table outlives this place.
            Err(_) => std::future::pending().await,
        }
    }

    /// The connection, if it was delivered by now.
    pub(crate) fn take(&mut self) -> Option<T> {
        self.accepted.try_recv().ok()
    }

    /// Expects it no longer. The connection that was delivered and not yet taken is given back: one that is
    /// delivered from now on goes back to who delivers it.
    pub(crate) fn give_up(mut self) -> Option<T> {
        self.accepted.close();
        self.accepted.try_recv().ok()
    }
}

impl<T> Drop for Expected<'_, T> {
    fn drop(&mut self) {
        // Another attempt with the same tuple may be expected by now: its place has another number.
        self.pairing.expected.remove_if(&self.tuple, |_, (place, _)| *place == self.place);
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use futures_util::FutureExt;
    use proptest::prelude::*;

    use super::*;

    fn tuple(port: u16) -> Tuple {
        Tuple::tcp(std::net::SocketAddr::from(([10, 0, 0, 1], port)), "10.0.0.2:80".parse().unwrap())
    }

    #[test]
    fn an_unexpected_connection_is_given_back() {
        let pairing = Pairing::new();
        assert_eq!(pairing.deliver(&tuple(1), "stream"), Err("stream"));
        let expected = pairing.expect(tuple(1)).unwrap();
        assert!(pairing.expect(tuple(1)).is_none(), "one tuple is expected once");
        drop(expected);
        assert_eq!(pairing.deliver(&tuple(1), "stream"), Err("stream"));
    }

    #[test]
    fn a_connection_is_never_lost_between_delivery_and_giving_up() {
        let pairing = Pairing::new();
        let expected = pairing.expect(tuple(1)).unwrap();
        assert_eq!(pairing.deliver(&tuple(1), "stream"), Ok(()));
        assert_eq!(expected.give_up(), Some("stream"));
        let expected = pairing.expect(tuple(1)).unwrap();
        assert_eq!(expected.give_up(), None);
        assert_eq!(pairing.deliver(&tuple(1), "stream"), Err("stream"));
        for _ in 0..2_000 {
            let expected = pairing.expect(tuple(1)).unwrap();
            let (back, given) = std::thread::scope(|scope| {
                let delivering = scope.spawn(|| pairing.deliver(&tuple(1), "stream").err());
                (expected.give_up(), delivering.join().unwrap())
            });
            assert!(back.is_some() != given.is_some(), "kept or handed back: {back:?}, {given:?}");
        }
    }

    proptest! {
        #[test]
        fn the_table_agrees_with_a_set(steps in proptest::collection::vec((0u8..3, 0u16..4), 0..60)) {
            let pairing = Pairing::new();
            let mut places: Vec<(u16, Expected<'_, u16>)> = Vec::new();
            let mut model = BTreeSet::new();
            for (action, port) in steps {
                match action {
                    0 => {
                        let place = pairing.expect(tuple(port));
                        prop_assert_eq!(place.is_some(), model.insert(port));
                        places.extend(place.map(|place| (port, place)));
                    }
                    1 => {
                        let delivered = pairing.deliver(&tuple(port), port).is_ok();
                        prop_assert_eq!(delivered, model.remove(&port));
                        if delivered {
                            let at = places.iter().position(|(waiting, _)| *waiting == port).unwrap();
                            let (_, mut place) = places.remove(at);
                            prop_assert_eq!(place.accepted().now_or_never(), Some(port));
                        }
                    }
                    _ => if let Some(at) = places.iter().position(|(waiting, _)| *waiting == port) {
                        places.remove(at);
                        model.remove(&port);
                    }
                }
                prop_assert_eq!(pairing.len(), model.len());
            }
        }
    }
}
