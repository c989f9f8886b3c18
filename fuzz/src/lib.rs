//! What libFuzzer's targets and the tests have in common: what is tried with an input, and texts → the same
//! texts, damaged: what a fuzzer's mutator does, but repeatable and without instrumentation.

mod tried;

pub use tried::{read_and_decide, read_and_follow};

/// Numbers that look random and are the same for the same seed (splitmix64, Steele et al. 2014).
#[derive(Clone, Debug)]
pub struct Random(pub u64);

impl Random {
    /// From 0 to `limit`, not included; 0 when there is nothing below it.
    pub fn below(&mut self, limit: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        let product = u128::from(z ^ (z >> 31)) * limit as u128;
        usize::try_from(product >> 64).unwrap_or_default()
    }
}

/// What parsers and validators have stumbled over.
const TOKENS: [&str; 40] = [
    "{",
    "}",
    "[",
    "]",
    ":",
    ",",
    "\"",
    "'",
    "\n",
    "---\n",
    "- ",
    "  ",
    "\t",
    "&a ",
    "*a",
    "!!binary ",
    "<<: ",
    "|\n",
    "null",
    "true",
    "yes",
    "~",
    "0",
    "-1",
    "65536",
    "18446744073709551616",
    "1e999",
    ".nan",
    "\u{0}",
    "\u{feff}",
    "ä",
    "0.0.0.0/0",
    "::/0",
    "10.0.0.0/33",
    "::ffff:10.0.0.1",
    "\"endPort\":1,",
    "\"operator\":\"In\"",
    "\"kind\":\"List\"",
    "\"items\":[{}]",
    "\\u0000",
];

/// `text` with one to eight places damaged; pieces may come from `other`.
pub fn damaged(text: &str, other: &str, random: &mut Random) -> String {
    let mut bytes = text.as_bytes().to_vec();
    // Few most of the time: what is damaged everywhere is refused for the first reason there is.
    let most = 1 + random.below(8);
    for _ in 0..=random.below(most) {
        damage(&mut bytes, other.as_bytes(), random);
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

fn damage(bytes: &mut Vec<u8>, other: &[u8], random: &mut Random) {
    let at = random.below(bytes.len() + 1);
    let end = (at + random.below(40)).min(bytes.len());
    match random.below(6) {
        0 => {
            if let Some(byte) = bytes.get_mut(at) {
                *byte ^= 1 << random.below(8);
            }
        }
        1 => drop(bytes.drain(at..end)),
        2 => {
            let copy = bytes[at..end].to_vec();
            let to = random.below(bytes.len() + 1);
            bytes.splice(to..to, copy);
        }
        3 => {
            let from = random.below(other.len() + 1);
            let until = (from + random.below(200)).min(other.len());
            bytes.splice(at..end, other[from..until].iter().copied());
        }
        4 => bytes.truncate(at),
        _ => {
            let token = TOKENS[random.below(TOKENS.len())];
            bytes.splice(at..end.min(at + random.below(6)), token.bytes());
        }
    }
}
