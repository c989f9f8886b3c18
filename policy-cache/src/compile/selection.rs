//! Label selectors → sets of identities, resolved once per snapshot so that a decision compares numbers.

use std::collections::HashMap;
use std::ops::Range;

use crate::objects::{Labels, Operator, Selector};

/// A set of identity numbers: ranges where they are few, a bit per identity where those would be larger.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) enum IdentitySet {
    /// Half-open, sorted, disjoint and not adjacent.
    Ranges(Box<[(u32, u32)]>),
    Bits(Box<[u64]>),
}

impl IdentitySet {
    /// `members` in any order, duplicates allowed, out of `total` identities.
    pub(crate) fn new(mut members: Vec<u32>, total: usize) -> Self {
        members.sort_unstable();
        members.dedup();
        let mut ranges: Vec<(u32, u32)> = Vec::new();
        for member in members.iter().copied() {
            match ranges.last_mut() {
                Some(last) if last.1 == member => last.1 += 1,
                _ => ranges.push((member, member + 1)),
            }
        }
        let words = total.div_ceil(64);
        if ranges.len() <= words {
            return Self::Ranges(ranges.into());
        }
        let mut bits = vec![0_u64; words];
        for member in members {
            bits[member as usize / 64] |= 1 << (member % 64);
        }
        Self::Bits(bits.into())
    }

    pub(crate) fn contains(&self, identity: u32) -> bool {
        match self {
            Self::Ranges(ranges) => {
                let after = ranges.partition_point(|(low, _)| *low <= identity);
                after > 0 && identity < ranges[after - 1].1
            }
            Self::Bits(bits) => {
                bits.get(identity as usize / 64).is_some_and(|word| word >> (identity % 64) & 1 == 1)
            }
        }
    }
}

/// Finds, among numbered sets of labels, those a selector matches.
#[derive(Debug)]
pub(crate) struct LabelIndex<'l> {
    labels: Vec<&'l Labels>,
    /// Numbers by key and value, ascending.
    by_pair: HashMap<(&'l str, &'l str), Vec<u32>>,
}

impl<'l> LabelIndex<'l> {
    pub(crate) fn new(labels: Vec<&'l Labels>) -> Self {
        let mut by_pair: HashMap<_, Vec<u32>> = HashMap::new();
        for (number, labels) in (0_u32..).zip(&labels) {
            for (key, value) in *labels {
                by_pair.entry((key.as_str(), value.as_str())).or_default().push(number);
            }
        }
        Self { labels, by_pair }
    }

    /// How many sets of labels there are.
    pub(crate) fn len(&self) -> usize {
        self.labels.len()
    }

    /// The numbers in `within` that the selector matches.
    pub(crate) fn select(&self, selector: &Selector, within: Range<u32>) -> Vec<u32> {
        let matches = |number: &u32| selector.matches(self.labels[*number as usize]);
        match self.candidates(selector, within.len()) {
            Some(candidates) => {
                candidates.into_iter().filter(|number| within.contains(number)).filter(matches).collect()
            }
            None => within.filter(matches).collect(),
        }
    }

    /// A superset of the matches when the selector asks for values that fewer than `fewer_than` carry.
    fn candidates(&self, selector: &Selector, fewer_than: usize) -> Option<Vec<u32>> {
        let mut best: Option<(usize, Vec<&Vec<u32>>)> = None;
        for requirement in &selector.requirements {
            let Operator::In(values) = &requirement.operator else { continue };
            let lists: Vec<_> = values
                .iter()
                .filter_map(|value| self.by_pair.get(&(requirement.key.as_str(), value.as_str())))
                .collect();
            let size = lists.iter().map(|list| list.len()).sum();
            if size < best.as_ref().map_or(fewer_than, |(size, _)| *size) {
                best = Some((size, lists));
            }
        }
        best.map(|(_, lists)| lists.into_iter().flatten().copied().collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_forms_of_a_set_hold_exactly_their_members() {
        let total = 1000;
        for step in [1_u32, 2, 3, 250] {
            let members: Vec<u32> = (0..1000).filter(|n| n % step == 0 && *n != 500).collect();
            let set = IdentitySet::new(members.clone(), total);
            for n in 0..1100 {
                assert_eq!(set.contains(n), members.contains(&n), "{n} in steps of {step}");
            }
        }
        assert!(matches!(IdentitySet::new((0..1000).step_by(2).collect(), total), IdentitySet::Bits(_)));
        assert!(!IdentitySet::new(Vec::new(), total).contains(0));
    }
}
