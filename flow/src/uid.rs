//! The uid of an object, in 16 bytes when it is a UUID as API servers make them.

use std::fmt;
use std::sync::Arc;

/// `metadata.uid`. Prints as it was written.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct Uid(Form);

#[derive(Clone, PartialEq, Eq, Hash)]
enum Form {
    Uuid([u8; 16]),
    /// Whatever does not print the same from 16 bytes.
    Text(Arc<str>),
    None,
}

/// Where a UUID has dashes (RFC 9562, section 4).
const DASHES: [usize; 4] = [8, 13, 18, 23];

impl Uid {
    /// The uid of this text, empty when there is none.
    pub fn new(text: &str) -> Self {
        if text.is_empty() {
            return Self(Form::None);
        }
        Self(uuid(text.as_bytes()).map_or_else(|| Form::Text(text.into()), Form::Uuid))
    }

    /// True when there is none.
    pub fn is_empty(&self) -> bool {
        matches!(self.0, Form::None)
    }
}

fn uuid(text: &[u8]) -> Option<[u8; 16]> {
    if text.len() != 36 {
        return None;
    }
    let mut bytes = [0; 16];
    let mut digits = 0;
    for (place, character) in text.iter().enumerate() {
        if DASHES.contains(&place) {
            if *character != b'-' {
                return None;
            }
            continue;
        }
        let digit = match character {
            b'0'..=b'9' => character - b'0',
            b'a'..=b'f' => character - b'a' + 10,
            _ => return None,
        };
        bytes[digits / 2] |= if digits % 2 == 0 { digit << 4 } else { digit };
        digits += 1;
    }
    Some(bytes)
}

impl Default for Uid {
    fn default() -> Self {
        Self(Form::None)
    }
}

impl From<&str> for Uid {
    fn from(text: &str) -> Self {
        Self::new(text)
    }
}

impl fmt::Display for Uid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.0 {
            Form::None => Ok(()),
            Form::Text(text) => f.write_str(text),
            Form::Uuid(bytes) => {
                for (place, byte) in bytes.iter().enumerate() {
                    if [4, 6, 8, 10].contains(&place) {
                        f.write_str("-")?;
                    }
                    write!(f, "{byte:02x}")?;
                }
                Ok(())
            }
        }
    }
}

impl fmt::Debug for Uid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "\"{self}\"")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_text_prints_as_it_was_written() {
        for text in [
            "",
            "u",
            "0f8fad5b-d9cb-469f-a165-70867728950e",
            "0F8FAD5B-d9cb-469f-a165-70867728950e",
            "0f8fad5b-d9cb-469f-a165-70867728950",
            "0f8fad5bd-9cb-469f-a165-70867728950e",
            "0f8fad5b-d9cb-469f-a165-7086772895-e",
        ] {
            assert_eq!(Uid::new(text).to_string(), text);
        }
        let uuid = Uid::new("0f8fad5b-d9cb-469f-a165-70867728950e");
        assert!(matches!(uuid.0, Form::Uuid(_)));
        assert_ne!(uuid, Uid::new("0f8fad5b-d9cb-469f-a165-70867728950f"));
        assert!(!uuid.is_empty() && Uid::default().is_empty());
    }
}
