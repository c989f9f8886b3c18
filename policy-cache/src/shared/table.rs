//! A hash table in parts, each an array that is searched from the place its hash names.

use std::hash::BuildHasher;
use std::net::{IpAddr, Ipv6Addr};
use std::sync::{Arc, LazyLock};

/// Values by 128-bit keys, as addresses are. Those of IPv4 take less room.
#[derive(Debug)]
pub(crate) struct Table<V> {
    v4: Half<u32, V>,
    others: Half<u128, V>,
}

/// The values whose keys are of one width.
#[derive(Debug)]
struct Half<K, V> {
    /// As many as a power of two.
    parts: Arc<[Part<K, V>]>,
    len: usize,
    seed: Seed,
}

/// Entries of a part, on average, beyond which there are twice as many parts.
const CROWDED: usize = 128;

/// Always with a free place, at which a search that finds nothing ends; or without any place at all.
type Part<K, V> = Arc<[Option<(K, V)>]>;

/// Unknown to whoever chooses addresses, so that nobody can crowd a part.
#[derive(Clone, Copy, Debug)]
struct Seed(u64, u64);

static SEED: LazyLock<Seed> = LazyLock::new(|| {
    let random = std::hash::RandomState::new();
    Seed(random.hash_one(1), random.hash_one(2))
});

/// An address as a key: IPv4 as its IPv4-mapped form, which is never an address of its own here.
pub(crate) fn key_of_ip(ip: IpAddr) -> u128 {
    match ip {
        IpAddr::V4(ip) => ip.to_ipv6_mapped().to_bits(),
        IpAddr::V6(ip) => ip.to_bits(),
    }
}

/// The address of a key.
fn ip_of_key(key: u128) -> IpAddr {
    IpAddr::V6(Ipv6Addr::from_bits(key)).to_canonical()
}

/// The IPv4 address of a key, as a number.
#[expect(clippy::cast_possible_truncation, reason = "the half of it that is the address")]
fn v4_of_key(key: u128) -> Option<u32> {
    (key >> 32 == 0xffff).then_some(key as u32)
}

fn key_of_v4(ip: u32) -> u128 {
    0xffff << 32 | u128::from(ip)
}

impl<V> Clone for Table<V> {
    fn clone(&self) -> Self {
        Self { v4: self.v4.clone(), others: self.others.clone() }
    }
}

impl<V> Default for Table<V> {
    fn default() -> Self {
        Self { v4: Half::default(), others: Half::default() }
    }
}

impl<V> Table<V> {
    pub(crate) fn get(&self, key: u128) -> Option<&V> {
        match v4_of_key(key) {
            Some(ip) => self.v4.get(ip),
            None => self.others.get(key),
        }
    }

    pub(crate) fn at(&self, ip: IpAddr) -> Option<&V> {
        match ip {
            IpAddr::V4(ip) => self.v4.get(ip.to_bits()),
            IpAddr::V6(ip) => self.get(ip.to_bits()),
        }
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = (IpAddr, &V)> {
        let v4 = self.v4.iter().map(|(ip, value)| (ip_of_key(key_of_v4(*ip)), value));
        v4.chain(self.others.iter().map(|(key, value)| (ip_of_key(*key), value)))
    }

    /// Every key that may have another value here than there, with both values.
    pub(crate) fn differing<'t>(
        &'t self,
        other: &'t Self,
    ) -> impl Iterator<Item = (IpAddr, Option<&'t V>, Option<&'t V>)> + 't {
        let v4 = self.v4.differing(&other.v4).map(|(ip, new, old)| (ip_of_key(key_of_v4(ip)), new, old));
        let others = self.others.differing(&other.others);
        v4.chain(others.map(|(key, new, old)| (ip_of_key(key), new, old)))
    }
}

impl<V: Clone> Table<V> {
    /// Sets or removes values. Of several changes of one key the last one counts.
    pub(crate) fn update(&mut self, changes: Vec<(u128, Option<V>)>) {
        let (mut v4, mut others) = (Vec::new(), Vec::new());
        for (key, value) in changes {
            match v4_of_key(key) {
                Some(ip) => v4.push((ip, value)),
                None => others.push((key, value)),
            }
        }
        self.v4.update(v4);
        self.others.update(others);
    }
}

impl<K, V> Clone for Half<K, V> {
    fn clone(&self) -> Self {
        Self { parts: Arc::clone(&self.parts), ..*self }
    }
}

impl<K, V> Default for Half<K, V> {
    fn default() -> Self {
        Self { parts: Arc::new([Arc::new([])]), len: 0, seed: *SEED }
    }
}

impl<K: Key, V> Half<K, V> {
    fn get(&self, key: K) -> Option<&V> {
        let hash = key.hash(self.seed);
        let part = &self.parts[part(hash, self.parts.len())];
        let mut place = place(hash, part.len());
        loop {
            match part.get(place)? {
                Some((own, value)) if *own == key => return Some(value),
                Some(_) => place = if place + 1 == part.len() { 0 } else { place + 1 },
                None => return None,
            }
        }
    }

    fn iter(&self) -> impl Iterator<Item = &(K, V)> {
        self.parts.iter().flat_map(|part| entries(part))
    }

    fn differing<'t>(
        &'t self,
        other: &'t Self,
    ) -> impl Iterator<Item = (K, Option<&'t V>, Option<&'t V>)> + 't {
        let parts = |one: &'t Self, two: &'t Self| {
            let differs = |(place, own): &(usize, &Part<K, V>)| !two.has_part(*place, own, one.parts.len());
            one.parts.iter().enumerate().filter(differs).flat_map(|(_, part)| entries(part))
        };
        let here = parts(self, other).map(|(key, value)| (*key, Some(value), other.get(*key)));
        let gone = parts(other, self).filter(|(key, _)| self.get(*key).is_none());
        here.chain(gone.map(|(key, value)| (*key, None, Some(value))))
    }

    /// True when it has this part, of so many, in the same place.
    fn has_part(&self, place: usize, part: &Part<K, V>, parts: usize) -> bool {
        self.parts.len() == parts && Arc::ptr_eq(&self.parts[place], part)
    }
}

impl<K: Key, V: Clone> Half<K, V> {
    fn update(&mut self, changes: Vec<(K, Option<V>)>) {
        if changes.is_empty() {
            return;
        }
        self.make_room(changes.len());
        let (seed, count) = (self.seed, self.parts.len());
        let part_of = |key: K| part(key.hash(seed), count);
        let mut changes: Vec<(usize, K, Option<V>)> =
            changes.into_iter().map(|(key, value)| (part_of(key), key, value)).collect();
        changes.sort_by_key(|(part, key, _)| (*part, *key));
        let parts = Arc::make_mut(&mut self.parts);
        for group in changes.chunk_by(|a, b| a.0 == b.0) {
            let part = &mut parts[group[0].0];
            let changed = |key: K| group.binary_search_by_key(&key, |(_, own, _)| *own).is_ok();
            let kept = entries(part).filter(|(key, _)| !changed(*key)).cloned();
            let last = group.chunk_by(|a, b| a.1 == b.1).filter_map(|same| same.last());
            let new = last.filter_map(|(_, key, value)| Some((*key, value.clone()?)));
            let entries: Vec<(K, V)> = kept.chain(new).collect();
            self.len = self.len + entries.len() - entries_in(part);
            *part = filled(entries, seed);
        }
    }

    /// Divides everything among more parts when this many more entries would crowd them.
    fn make_room(&mut self, more: usize) {
        let before = self.parts.len();
        let mut count = before;
        while self.len + more > count * CROWDED {
            count *= 2;
        }
        if count == before {
            return;
        }
        let mut parts: Vec<Vec<(K, V)>> = std::iter::repeat_with(Vec::new).take(count).collect();
        for entry in self.iter() {
            parts[part(entry.0.hash(self.seed), count)].push(entry.clone());
        }
        self.parts = parts.into_iter().map(|entries| filled(entries, self.seed)).collect();
    }
}

fn entries_in<K, V>(part: &Part<K, V>) -> usize {
    entries(part).count()
}

fn entries<K, V>(part: &Part<K, V>) -> impl Iterator<Item = &(K, V)> {
    part.iter().flatten()
}

/// Places for a quarter more entries than there are: a search then looks at three places next to each other.
fn filled<K: Key, V>(entries: Vec<(K, V)>, seed: Seed) -> Part<K, V> {
    if entries.is_empty() {
        return Arc::new([]);
    }
    let length = entries.len() * 5 / 4 + 1;
    let mut places: Vec<Option<(K, V)>> = std::iter::repeat_with(|| None).take(length).collect();
    for entry in entries {
        let mut free = place(entry.0.hash(seed), length);
        while places[free].is_some() {
            free = if free + 1 == length { 0 } else { free + 1 };
        }
        places[free] = Some(entry);
    }
    places.into()
}

/// The upper bits name the part, the lower ones the place in it.
fn part(hash: u64, parts: usize) -> usize {
    (hash >> 32) as usize & (parts - 1)
}

fn place(hash: u64, length: usize) -> usize {
    (((hash & u64::from(u32::MAX)) * length as u64) >> 32) as usize
}

trait Key: Copy + Ord {
    fn hash(self, seed: Seed) -> u64;
}

impl Key for u32 {
    fn hash(self, Seed(one, two): Seed) -> u64 {
        fold(u64::from(self) ^ one, two)
    }
}

impl Key for u128 {
    #[expect(clippy::cast_possible_truncation, reason = "halves of a wider number")]
    fn hash(self, Seed(one, two): Seed) -> u64 {
        fold(self as u64 ^ one, (self >> 64) as u64 ^ two)
    }
}

/// Both halves of a product, folded.
#[expect(clippy::cast_possible_truncation, reason = "halves of a wider number")]
fn fold(a: u64, b: u64) -> u64 {
    let product = u128::from(a) * u128::from(b);
    (product >> 64) as u64 ^ product as u64
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeMap;

    fn contents(table: &Table<u8>) -> BTreeMap<IpAddr, u8> {
        table.iter().map(|(ip, value)| (ip, *value)).collect()
    }

    /// The first IPv4 address.
    const MAPPED: u128 = 0xffff_0000_0000;

    fn keys() -> impl Strategy<Value = u128> {
        prop_oneof![0_u128..300, MAPPED..MAPPED + 300]
    }

    proptest! {
        #[test]
        fn a_table_is_a_map_of_which_older_copies_stay_as_they_were(
            batches in prop::collection::vec(
                prop::collection::vec((keys(), prop::option::of(any::<u8>())), 0..200), 0..12),
        ) {
            let mut table = Table::default();
            let mut naive = BTreeMap::new();
            for batch in batches {
                let (before, old) = (table.clone(), contents(&table));
                for (key, value) in &batch {
                    match value {
                        Some(value) => naive.insert(ip_of_key(*key), *value),
                        None => naive.remove(&ip_of_key(*key)),
                    };
                }
                table.update(batch);
                prop_assert_eq!(&contents(&table), &naive);
                prop_assert_eq!(&contents(&before), &old);
                for key in (0..300).chain(MAPPED..MAPPED + 300) {
                    prop_assert_eq!(table.get(key), naive.get(&ip_of_key(key)));
                }
                let told: BTreeMap<_, _> =
                    table.differing(&before).map(|(ip, new, old)| (ip, (new.copied(), old.copied()))).collect();
                for ip in (0..300).chain(MAPPED..MAPPED + 300).map(ip_of_key) {
                    let both = (naive.get(&ip).copied(), old.get(&ip).copied());
                    prop_assert!(both.0 == both.1 || told.get(&ip) == Some(&both), "{} {:?}", ip, both);
                }
            }
        }
    }

    #[test]
    fn addresses_keep_their_family() {
        for text in ["10.0.0.1", "::1", "fd00::1", "::", "0.0.0.0"] {
            let ip: IpAddr = text.parse().unwrap();
            assert_eq!(ip_of_key(key_of_ip(ip)), ip);
        }
    }
}
