//! A set of small numbers: sorted where they are few, a bit each where that is smaller.

/// The numbers of identities or nodes that a selector matches.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Set {
    /// Ascending.
    Few(Vec<u32>),
    Bits {
        words: Vec<u64>,
        count: usize,
    },
}

impl Default for Set {
    fn default() -> Self {
        Self::Few(Vec::new())
    }
}

impl Set {
    pub(crate) fn contains(&self, number: u32) -> bool {
        match self {
            Self::Few(numbers) => numbers.binary_search(&number).is_ok(),
            Self::Bits { words, .. } => {
                words.get(number as usize / 64).is_some_and(|word| word >> (number % 64) & 1 == 1)
            }
        }
    }

    pub(crate) fn insert(&mut self, number: u32) {
        match self {
            Self::Few(numbers) => {
                if let Err(place) = numbers.binary_search(&number) {
                    numbers.insert(place, number);
                    let highest = numbers.last().copied().unwrap_or_default();
                    let words = highest as usize / 64 + 1;
                    if numbers.len() > 2 * words {
                        let count = numbers.len();
                        let mut bits = vec![0_u64; words];
                        for number in numbers {
                            bits[*number as usize / 64] |= 1 << (*number % 64);
                        }
                        *self = Self::Bits { words: bits, count };
                    }
                }
            }
            Self::Bits { words, count } => {
                let place = number as usize / 64;
                if place >= words.len() {
                    words.resize(place + 1, 0);
                }
                *count += usize::from(words[place] >> (number % 64) & 1 == 0);
                words[place] |= 1 << (number % 64);
            }
        }
    }

    pub(crate) fn remove(&mut self, number: u32) {
        match self {
            Self::Few(numbers) => {
                if let Ok(place) = numbers.binary_search(&number) {
                    numbers.remove(place);
                }
            }
            Self::Bits { words, count } => {
                if let Some(word) = words.get_mut(number as usize / 64) {
                    *count -= usize::from(*word >> (number % 64) & 1 == 1);
                    *word &= !(1 << (number % 64));
                }
                if *count < words.len() {
                    *self = Self::Few(self.iter().collect());
                }
            }
        }
    }

    /// Ascending.
    pub(crate) fn iter(&self) -> impl Iterator<Item = u32> + '_ {
        let (numbers, words): (&[u32], &[u64]) = match self {
            Self::Few(numbers) => (numbers, &[]),
            Self::Bits { words, .. } => (&[], words),
        };
        let bits = (0_u32..).zip(words).flat_map(|(place, word)| {
            let mut left = *word;
            std::iter::from_fn(move || {
                let bit = (left != 0).then(|| left.trailing_zeros())?;
                left &= left - 1;
                Some(place * 64 + bit)
            })
        });
        numbers.iter().copied().chain(bits)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    proptest! {
        #[test]
        fn a_set_is_what_was_put_into_it(
            changes in prop::collection::vec((any::<bool>(), 0_u32..300), 0..600),
        ) {
            let (mut set, mut naive) = (Set::default(), BTreeSet::new());
            for (insert, number) in changes {
                if insert {
                    set.insert(number);
                    naive.insert(number);
                } else {
                    set.remove(number);
                    naive.remove(&number);
                }
                prop_assert_eq!(set.contains(number), insert);
                prop_assert!(set.iter().eq(naive.iter().copied()));
            }
        }
    }
}
