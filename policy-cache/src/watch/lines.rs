//! The bytes of a watch → its lines, none larger than a limit.

/// How much of a line that is too large is kept, to tell whose it is.
const HEAD: usize = 64 << 10;

/// A piece of what the server sends.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Piece<'b> {
    Whole(&'b [u8]),
    /// Larger than the limit; only its beginning was kept.
    TooLarge(&'b [u8]),
}

/// Gathers lines. What stands after the last line break is never given out: it may have broken off.
#[derive(Debug)]
pub(crate) struct Lines {
    limit: usize,
    gathered: Vec<u8>,
    too_large: bool,
}

impl Lines {
    pub(crate) fn new(limit: usize) -> Self {
        Self { limit, gathered: Vec::new(), too_large: false }
    }

    /// Takes the next bytes, and gives each line that they complete to `each`; blank ones are left out.
    pub(crate) fn feed(&mut self, mut bytes: &[u8], mut each: impl FnMut(Piece<'_>)) {
        while let Some(end) = memchr::memchr(b'\n', bytes) {
            let (line, rest) = bytes.split_at(end);
            bytes = &rest[1..];
            if self.gathered.is_empty() && !self.too_large && line.len() <= self.limit {
                // The usual case: nothing to copy.
                if !line.trim_ascii().is_empty() {
                    each(Piece::Whole(line));
                }
                continue;
            }
            self.gather(line);
            if self.too_large {
                each(Piece::TooLarge(&self.gathered));
            } else if !self.gathered.trim_ascii().is_empty() {
                each(Piece::Whole(&self.gathered));
            }
            self.forget();
        }
        self.gather(bytes);
    }

    fn gather(&mut self, bytes: &[u8]) {
        if self.too_large {
            return;
        }
        if self.gathered.len() + bytes.len() > self.limit {
            self.too_large = true;
            let room = HEAD.saturating_sub(self.gathered.len());
            self.gathered.extend_from_slice(&bytes[..bytes.len().min(room)]);
            self.gathered.truncate(HEAD);
            self.gathered.shrink_to_fit();
            return;
        }
        self.gathered.extend_from_slice(bytes);
    }

    fn forget(&mut self) {
        self.too_large = false;
        self.gathered.clear();
        // One large object must not be paid for ever after.
        self.gathered.shrink_to(HEAD);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn read(chunks: &[&[u8]], limit: usize) -> Vec<String> {
        let mut lines = Lines::new(limit);
        let mut found = Vec::new();
        for chunk in chunks {
            lines.feed(chunk, |piece| {
                found.push(match piece {
                    Piece::Whole(line) => String::from_utf8_lossy(line).into_owned(),
                    Piece::TooLarge(head) => format!("!{}", head.len()),
                });
            });
        }
        found
    }

    #[test]
    fn lines_come_whole_whatever_the_chunks_are_and_the_last_one_waits_for_its_end() {
        assert_eq!(read(&[b"ab\ncd\n\n\r\nef"], 100), ["ab", "cd"]);
        assert_eq!(read(&[b"a", b"b\nc", b"d", b"\n"], 100), ["ab", "cd"]);
        assert_eq!(read(&[], 100), Vec::<String>::new());
    }

    #[test]
    fn a_line_beyond_the_limit_is_told_by_its_beginning_and_the_next_one_is_read() {
        assert_eq!(read(&[b"abcdef\nab\n"], 5), ["!6", "ab"]);
        assert_eq!(read(&[b"abc", b"def", b"ghi\nab\n"], 5), ["!6", "ab"]);
        let large = vec![b'x'; 3 * HEAD];
        let mut lines = Lines::new(2 * HEAD);
        let mut heads = Vec::new();
        for _ in 0..20 {
            lines.feed(&large, |_| unreachable!());
            assert!(lines.gathered.capacity() <= 3 * HEAD);
        }
        lines.feed(b"\n", |piece| heads.push(matches!(piece, Piece::TooLarge(head) if head.len() == HEAD)));
        assert_eq!(heads, [true]);
    }

    proptest! {
        #[test]
        fn chunking_changes_nothing(text in "[ab\n]{0,60}", cuts in proptest::collection::vec(0_usize..60, 0..6)) {
            let mut cuts: Vec<usize> = cuts.into_iter().map(|cut| cut.min(text.len())).collect();
            cuts.extend([0, text.len()]);
            cuts.sort_unstable();
            let chunks: Vec<&[u8]> = cuts.windows(2).map(|cut| &text.as_bytes()[cut[0]..cut[1]]).collect();
            let whole: Vec<String> = text
                .split_inclusive('\n')
                .filter(|line| line.ends_with('\n'))
                .map(|line| line.trim_end_matches('\n').to_owned())
                .filter(|line| !line.is_empty())
                .map(|line| if line.len() > 7 { "!".to_owned() } else { line })
                .collect();
            let read: Vec<String> = read(&chunks, 7)
                .into_iter()
                .map(|line| if line.starts_with('!') { "!".to_owned() } else { line })
                .collect();
            prop_assert_eq!(read, whole);
        }
    }
}
