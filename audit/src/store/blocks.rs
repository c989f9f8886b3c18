//! Who stands at the ends of a block's rows, as bytes: for each end its rows.
//!
//! `[end's number less the one before] [how many rows] [row less the one before]…`, each as a varint of seven bits a
//! byte, the lowest first. Rows are counted from the block's first.

/// The ends of the rows of one block, as they are gathered.
#[derive(Debug, Default)]
pub(super) struct Ends {
    /// An end and its row.
    seen: Vec<(u32, u16)>,
}

impl Ends {
    pub(super) fn add(&mut self, row: u16, source: u32, destination: u32) {
        self.seen.push((source, row));
        if destination != source {
            self.seen.push((destination, row));
        }
    }

    /// All rows as bytes; there are none then.
    pub(super) fn take(&mut self) -> Vec<u8> {
        self.seen.sort_unstable();
        let mut bytes = Vec::with_capacity(3 * self.seen.len());
        let mut before = 0;
        for rows in self.seen.chunk_by(|one, other| one.0 == other.0) {
            let end = rows[0].0;
            push(&mut bytes, end - before);
            before = end;
            push(&mut bytes, u32::try_from(rows.len()).unwrap_or(u32::MAX));
            let mut last = 0;
            for (_, row) in rows {
                push(&mut bytes, u32::from(row - last));
                last = *row;
            }
        }
        self.seen.clear();
        bytes
    }
}

/// Gives every row of the ends that are wanted to `each`; one row may come twice. False when the bytes are damaged.
pub(super) fn rows(bytes: &[u8], wanted: impl Fn(u32) -> bool, mut each: impl FnMut(u32)) -> bool {
    let mut rest = bytes;
    let mut end = 0_u32;
    while !rest.is_empty() {
        let Some((step, count)) = pull(&mut rest).zip(pull(&mut rest)) else { return false };
        end = end.saturating_add(step);
        let is_wanted = wanted(end);
        let mut row = 0_u32;
        for _ in 0..count {
            let Some(step) = pull(&mut rest) else { return false };
            row = row.saturating_add(step);
            if is_wanted {
                each(row);
            }
        }
    }
    true
}

fn push(bytes: &mut Vec<u8>, mut value: u32) {
    loop {
        let low = u8::try_from(value & 0x7f).unwrap_or_default();
        value >>= 7;
        if value == 0 {
            return bytes.push(low);
        }
        bytes.push(low | 0x80);
    }
}

fn pull(bytes: &mut &[u8]) -> Option<u32> {
    let mut value = 0;
    for place in 0..5 {
        let (byte, rest) = bytes.split_first()?;
        *bytes = rest;
        value |= u32::from(byte & 0x7f) << (7 * place);
        if byte & 0x80 == 0 {
            return Some(value);
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn the_rows_of_any_ends_are_found_again(
            ends in proptest::collection::vec((0_u32..50, prop_oneof![0_u32..50, any::<u32>()]), 0..300),
            wanted in 0_u32..60,
        ) {
            let mut block = Ends::default();
            for (row, (source, destination)) in ends.iter().enumerate() {
                block.add(u16::try_from(row).unwrap(), *source, *destination);
            }
            let bytes = block.take();
            let mut found = Vec::new();
            prop_assert!(rows(&bytes, |end| end == wanted, |row| found.push(row as usize)));
            let expected: Vec<usize> = (0..ends.len())
                .filter(|row| ends[*row].0 == wanted || ends[*row].1 == wanted)
                .collect();
            prop_assert_eq!(found, expected);
            prop_assert!(block.take().is_empty());
        }

        #[test]
        fn damaged_bytes_are_noticed_or_harmless(bytes in proptest::collection::vec(any::<u8>(), 0..40)) {
            let mut count = 0_u64;
            rows(&bytes, |_| true, |_| count += 1);
            prop_assert!(count <= 40);
        }
    }
}
