//! A growing list in parts of `N`.

use std::sync::Arc;

/// Items by their numbers. Items that nobody has set are defaults.
#[derive(Debug)]
pub(crate) struct Chunks<T, const N: usize> {
    chunks: Arc<[Arc<[T; N]>]>,
}

impl<T, const N: usize> Clone for Chunks<T, N> {
    fn clone(&self) -> Self {
        Self { chunks: Arc::clone(&self.chunks) }
    }
}

impl<T, const N: usize> Default for Chunks<T, N> {
    fn default() -> Self {
        Self { chunks: Arc::new([]) }
    }
}

impl<T, const N: usize> Chunks<T, N> {
    /// The part that an item is in, and its place there.
    pub(crate) fn part(&self, number: u32) -> Option<(&Arc<[T; N]>, usize)> {
        let number = number as usize;
        Some((self.chunks.get(number / N)?, number % N))
    }

    pub(crate) fn get(&self, number: u32) -> Option<&T> {
        let number = number as usize;
        self.chunks.get(number / N).map(|chunk| &chunk[number % N])
    }

    /// The numbers of every part that is not the same in memory in both.
    pub(crate) fn differing<'c>(&'c self, other: &'c Self) -> impl Iterator<Item = u32> + 'c {
        let parts = self.chunks.len().max(other.chunks.len());
        let parts = if Arc::ptr_eq(&self.chunks, &other.chunks) { 0 } else { parts };
        (0..parts)
            .filter(|part| match (self.chunks.get(*part), other.chunks.get(*part)) {
                (Some(own), Some(theirs)) => !Arc::ptr_eq(own, theirs),
                _ => true,
            })
            .flat_map(|part| part * N..(part + 1) * N)
            .filter_map(|number| u32::try_from(number).ok())
    }

    /// True when both are one and the same in memory.
    pub(crate) fn is_same(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.chunks, &other.chunks)
    }
}

impl<T: Clone + Default, const N: usize> Chunks<T, N> {
    /// The item, to be changed.
    pub(crate) fn get_mut(&mut self, number: u32) -> &mut T {
        let number = number as usize;
        if number / N >= self.chunks.len() {
            let missing = number / N + 1 - self.chunks.len();
            let new = || Arc::new(std::array::from_fn(|_| T::default()));
            self.chunks = self.chunks.iter().cloned().chain((0..missing).map(|_| new())).collect();
        }
        let chunks = Arc::make_mut(&mut self.chunks);
        &mut Arc::make_mut(&mut chunks[number / N])[number % N]
    }

    pub(crate) fn set(&mut self, number: u32, item: T) {
        *self.get_mut(number) = item;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_change_copies_its_part_and_shares_the_rest() {
        let mut list: Chunks<u32, 4> = Chunks::default();
        for number in 0..20 {
            list.set(number, number * 2);
        }
        let before = list.clone();
        list.set(9, 7);
        assert_eq!((before.get(9), list.get(9), list.get(8)), (Some(&18), Some(&7), Some(&16)));
        assert_eq!(list.differing(&before).collect::<Vec<_>>(), [8, 9, 10, 11]);
        assert_eq!(list.get(20), None);
        list.set(21, 1);
        assert_eq!((list.get(20), list.differing(&before).last()), (Some(&0), Some(23)));
        assert!(before.clone().is_same(&before) && before.differing(&before).next().is_none());
    }
}
