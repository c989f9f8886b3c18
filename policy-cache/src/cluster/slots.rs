//! Things by number, numbers used again.

use std::ops::{Index, IndexMut};

/// A list in which a place that is left is given away again. It grows in parts: a list of one piece would have to
/// move, and leave holes in memory that are too large for anything else.
#[derive(Debug)]
pub(super) struct Slots<T> {
    parts: Vec<Vec<T>>,
    free: Vec<u32>,
}

/// Places in a part.
const PART: usize = 1024;
/// Small lists stay small.
const FIRST: usize = 4;

impl<T> Default for Slots<T> {
    fn default() -> Self {
        Self { parts: Vec::new(), free: Vec::new() }
    }
}

impl<T: Default> Slots<T> {
    pub(super) fn insert(&mut self, item: T) -> u32 {
        if let Some(number) = self.free.pop() {
            self[number] = item;
            return number;
        }
        let full = self.parts.last().is_none_or(|part| part.len() == PART);
        if full {
            let room = if self.parts.is_empty() { FIRST } else { PART };
            self.parts.push(Vec::with_capacity(room));
        }
        let before = (self.parts.len() - 1) * PART;
        let part = &mut self.parts[before / PART];
        part.push(item);
        // Memory ends long before the numbers do.
        u32::try_from(before + part.len() - 1).unwrap_or(u32::MAX)
    }

    pub(super) fn remove(&mut self, number: u32) -> T {
        self.free.push(number);
        std::mem::take(&mut self[number])
    }

    /// Every place, those that were left as defaults.
    pub(super) fn iter(&self) -> impl Iterator<Item = (u32, &T)> {
        (0..).zip(self.parts.iter().flatten())
    }

    pub(super) fn iter_mut(&mut self) -> impl Iterator<Item = &mut T> {
        self.parts.iter_mut().flatten()
    }
}

impl<T> Index<u32> for Slots<T> {
    type Output = T;

    fn index(&self, number: u32) -> &T {
        &self.parts[number as usize / PART][number as usize % PART]
    }
}

impl<T> IndexMut<u32> for Slots<T> {
    fn index_mut(&mut self, number: u32) -> &mut T {
        &mut self.parts[number as usize / PART][number as usize % PART]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_stay_and_those_that_are_left_are_given_again() {
        let mut slots = Slots::default();
        let numbers: Vec<u32> = (0..3 * 1024 + 7).map(|item: u32| slots.insert(item + 1)).collect();
        assert!((0..).zip(&numbers).all(|(place, number)| place == *number && slots[place] == place + 1));
        assert_eq!((slots.remove(1024), slots[1024]), (1025, 0));
        assert_eq!(slots.insert(9), 1024);
        slots[2047] = 5;
        assert_eq!(
            slots.iter().filter(|(number, item)| **item != *number + 1).collect::<Vec<_>>(),
            [(1024, &9), (2047, &5)]
        );
        assert_eq!((slots.iter().count(), slots.iter_mut().count()), (3 * 1024 + 7, 3 * 1024 + 7));
    }
}
