//! The bytes of a list → its items, one at a time as they come, none larger than a limit. A list may weigh a
//! gigabyte; it is never in memory.

use super::lines::Piece;

/// How much there may be around the items: the list's own metadata.
const MAX_AROUND: usize = 256 << 10;
/// How much of an item that is too large is kept, to tell whose it is.
const HEAD: usize = 64 << 10;

/// What came is no list.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the answer is no list of objects")]
pub(crate) struct NoList;

/// Splits a list at its items.
#[derive(Debug)]
pub(crate) struct Items {
    limit: usize,
    place: Place,
    /// Everything but the items: afterwards it is the list, empty.
    around: Vec<u8>,
    /// The text that stands, or stood last, in the outermost mapping: the key when a list begins there.
    last_text: Vec<u8>,
    in_text: bool,
    escaped: bool,
    depth: usize,
    item: Vec<u8>,
    too_large: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Place {
    Around,
    Between,
    /// Inside an item, this deep.
    Item(usize),
}

impl Items {
    pub(crate) fn new(limit: usize) -> Self {
        Self {
            limit,
            place: Place::Around,
            around: Vec::new(),
            last_text: Vec::new(),
            in_text: false,
            escaped: false,
            depth: 0,
            item: Vec::new(),
            too_large: false,
        }
    }

    /// Takes the next bytes, and gives each item that they complete to `each`.
    pub(crate) fn feed(&mut self, bytes: &[u8], mut each: impl FnMut(Piece<'_>)) -> Result<(), NoList> {
        let mut at = 0;
        while at < bytes.len() {
            at += match self.place {
                Place::Around => {
                    self.around(bytes[at])?;
                    1
                }
                Place::Between => {
                    self.between(bytes[at])?;
                    1
                }
                Place::Item(depth) => self.item(depth, &bytes[at..], &mut each),
            };
        }
        Ok(())
    }

    /// The list without its items, once all of it has come.
    pub(crate) fn finish(self) -> Result<Vec<u8>, NoList> {
        if self.place == Place::Around && self.depth == 0 && !self.around.is_empty() {
            Ok(self.around)
        } else {
            Err(NoList)
        }
    }

    fn around(&mut self, byte: u8) -> Result<(), NoList> {
        if self.around.len() >= MAX_AROUND {
            return Err(NoList);
        }
        self.around.push(byte);
        if self.in_text {
            match byte {
                _ if self.escaped => self.escaped = false,
                b'\\' => self.escaped = true,
                b'"' => self.in_text = false,
                _ => {}
            }
            if self.in_text && self.depth == 1 {
                self.last_text.push(byte);
            }
            return Ok(());
        }
        match byte {
            b'"' => {
                self.in_text = true;
                if self.depth == 1 {
                    self.last_text.clear();
                }
            }
            b'[' if self.depth == 1 && self.last_text == b"items" => {
                self.depth += 1;
                self.place = Place::Between;
            }
            b'{' | b'[' => self.depth += 1,
            b'}' | b']' => self.depth = self.depth.checked_sub(1).ok_or(NoList)?,
            _ => {}
        }
        Ok(())
    }

    fn between(&mut self, byte: u8) -> Result<(), NoList> {
        match byte {
            b'{' => {
                self.item.clear();
                self.item.push(byte);
                self.place = Place::Item(1);
            }
            b']' => {
                self.around.push(byte);
                self.depth -= 1;
                self.place = Place::Around;
            }
            b',' | b' ' | b'\t' | b'\r' | b'\n' => {}
            _ => return Err(NoList),
        }
        Ok(())
    }

    /// Takes bytes of an item up to its end; returns how many.
    fn item(&mut self, mut depth: usize, bytes: &[u8], each: &mut impl FnMut(Piece<'_>)) -> usize {
        let mut taken = bytes.len();
        for (index, byte) in bytes.iter().enumerate() {
            if self.in_text {
                match byte {
                    _ if self.escaped => self.escaped = false,
                    b'\\' => self.escaped = true,
                    b'"' => self.in_text = false,
                    _ => {}
                }
                continue;
            }
            match byte {
                b'"' => self.in_text = true,
                b'{' | b'[' => depth += 1,
                b'}' | b']' => depth -= 1,
                _ => {}
            }
            if depth == 0 {
                taken = index + 1;
                break;
            }
        }
        self.gather(&bytes[..taken]);
        self.place = Place::Item(depth);
        if depth == 0 {
            self.place = Place::Between;
            each(if self.too_large { Piece::TooLarge(&self.item) } else { Piece::Whole(&self.item) });
            self.too_large = false;
            self.item.clear();
            self.item.shrink_to(HEAD);
        }
        taken
    }

    fn gather(&mut self, bytes: &[u8]) {
        if self.too_large {
            return;
        }
        if self.item.len() + bytes.len() > self.limit {
            self.too_large = true;
            let room = HEAD.saturating_sub(self.item.len());
            self.item.extend_from_slice(&bytes[..bytes.len().min(room)]);
            self.item.truncate(HEAD);
            self.item.shrink_to_fit();
            return;
        }
        self.item.extend_from_slice(bytes);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn split(chunks: &[&[u8]], limit: usize) -> Result<(Vec<String>, String), NoList> {
        let mut items = Items::new(limit);
        let mut found = Vec::new();
        for chunk in chunks {
            items.feed(chunk, |piece| {
                found.push(match piece {
                    Piece::Whole(item) => String::from_utf8_lossy(item).into_owned(),
                    Piece::TooLarge(head) => format!("!{}", head.len()),
                });
            })?;
        }
        Ok((found, String::from_utf8_lossy(&items.finish()?).into_owned()))
    }

    const LIST: &str = r#"{"kind":"PodList","metadata":{"items":["x"],"continue":"[{\"items\":["},
        "items":[ {"a":"}]\\\"{"},{"b":[{"items":[1]}]} , {}],"more":"items"}"#;

    #[test]
    fn items_are_found_whatever_stands_around_and_inside_them() {
        let (items, around) = split(&[LIST.as_bytes()], 100).unwrap();
        assert_eq!(items, [r#"{"a":"}]\\\"{"}"#, r#"{"b":[{"items":[1]}]}"#, "{}"]);
        let around: serde_json::Value = serde_json::from_str(&around).unwrap();
        assert_eq!(around["items"], serde_json::json!([]));
        assert_eq!(around["metadata"]["continue"], "[{\"items\":[");
    }

    #[test]
    fn what_is_no_list_or_breaks_off_is_refused() {
        for text in [
            "",
            "[",
            "{",
            r#"{"items":["#,
            r#"{"items":[1]}"#,
            r#"{"items":[{}"#,
            "}",
            r#"{"items":[{"a":"}]}"#,
        ] {
            assert_eq!(split(&[text.as_bytes()], 100), Err(NoList), "{text}");
        }
        assert_eq!(split(&[&b" ".repeat(MAX_AROUND + 1)], 100), Err(NoList));
    }

    #[test]
    fn an_item_beyond_the_limit_is_told_by_its_beginning_and_the_next_one_is_read() {
        let text = br#"{"items":[{"a":"0123456789"},{"b":1}]}"#;
        let (items, _) = split(&[text], 10).unwrap();
        assert_eq!(items, ["!18", r#"{"b":1}"#]);
        let mut items = Items::new(2 * HEAD);
        items.feed(br#"{"items":[{"a":""#, |_| unreachable!()).unwrap();
        for _ in 0..50 {
            items.feed(&vec![b'x'; HEAD], |_| unreachable!()).unwrap();
            assert!(items.item.capacity() <= 4 * HEAD);
        }
        let mut heads = Vec::new();
        items
            .feed(br#""}]}"#, |piece| {
                heads.push(matches!(piece, Piece::TooLarge(head) if head.len() == HEAD))
            })
            .unwrap();
        assert_eq!(heads, [true]);
    }

    proptest! {
        #[test]
        fn chunking_changes_nothing(cuts in proptest::collection::vec(0_usize..LIST.len(), 0..8)) {
            let mut cuts = cuts;
            cuts.extend([0, LIST.len()]);
            cuts.sort_unstable();
            let chunks: Vec<&[u8]> = cuts.windows(2).map(|cut| &LIST.as_bytes()[cut[0]..cut[1]]).collect();
            prop_assert_eq!(split(&chunks, 100), split(&[LIST.as_bytes()], 100));
        }

        #[test]
        fn no_bytes_make_it_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200), text in r#"[\{\}\[\]",:items\\ 1]{0,80}"#) {
            let _ = split(&[&bytes], 20);
            let _ = split(&[text.as_bytes()], 20);
        }
    }
}
