//! The name of a pod: short ones, as nearly all are, without memory of their own.

use std::cmp::Ordering;
use std::fmt;
use std::hash::{Hash, Hasher};
use std::ops::Deref;

/// As many bytes as there is room for beside the pointer of a longer name.
const SHORT: usize = 30;

/// `metadata.name` of a pod. Read as the text it is.
#[derive(Clone)]
pub struct PodName(Form);

#[derive(Clone)]
enum Form {
    Short { length: u8, bytes: [u8; SHORT] },
    Long(Box<str>),
}

impl Deref for PodName {
    type Target = str;

    fn deref(&self) -> &str {
        match &self.0 {
            Form::Short { length, bytes } => {
                let bytes = bytes.get(..usize::from(*length)).unwrap_or_default();
                std::str::from_utf8(bytes).unwrap_or_default()
            }
            Form::Long(text) => text,
        }
    }
}

impl From<&str> for PodName {
    fn from(text: &str) -> Self {
        let mut bytes = [0; SHORT];
        match (u8::try_from(text.len()), bytes.get_mut(..text.len())) {
            (Ok(length), Some(start)) => {
                start.copy_from_slice(text.as_bytes());
                Self(Form::Short { length, bytes })
            }
            _ => Self(Form::Long(text.into())),
        }
    }
}

impl From<String> for PodName {
    fn from(text: String) -> Self {
        text.as_str().into()
    }
}

impl PartialEq for PodName {
    fn eq(&self, other: &Self) -> bool {
        **self == **other
    }
}

impl Eq for PodName {}

impl PartialOrd for PodName {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for PodName {
    fn cmp(&self, other: &Self) -> Ordering {
        (**self).cmp(&**other)
    }
}

impl Hash for PodName {
    fn hash<H: Hasher>(&self, state: &mut H) {
        (**self).hash(state);
    }
}

impl fmt::Display for PodName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self)
    }
}

impl fmt::Debug for PodName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&**self, f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_of_any_length_reads_as_it_was_written() {
        for length in [0, 1, SHORT - 1, SHORT, SHORT + 1, 253, 300] {
            let text = "ä".repeat(length / 2) + &"x".repeat(length % 2);
            let name = PodName::from(text.as_str());
            assert_eq!((&*name, name.to_string()), (text.as_str(), text.clone()));
            assert_eq!(name, PodName::from(text));
        }
        assert_ne!(PodName::from("a"), PodName::from("a\0"));
        assert!(size_of::<PodName>() <= 32);
    }
}
