//! What is wrong with a manifest, said so that its author can find and mend it.

use std::fmt;
use std::path::PathBuf;

/// One thing wrong with one field of one object, or with a whole file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// The file.
    pub file: PathBuf,
    /// The document inside the file, from 1; 0 when the file as a whole is meant.
    pub document: usize,
    /// The line inside the file, from 1, where it is known.
    pub line: Option<usize>,
    /// The object as `Kind/namespace/name`; empty when it could not be told.
    pub object: String,
    /// The path of the field, for example `spec.ingress[0].from[1].ipBlock.cidr`; empty for the whole object.
    pub field: String,
    /// The offending value, shortened; empty when there is none.
    pub value: String,
    /// What is wrong with it.
    pub message: String,
}

impl fmt::Display for Problem {
    /// One line: `file:line: document 2: NetworkPolicy/shop/web: spec.podSelector: message (got "value")`,
    /// what comes from no file without the file.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut place = self.file.display().to_string();
        if let Some(line) = self.line {
            place = format!("{place}:{line}");
        }
        let document = if self.document > 0 { format!("document {}", self.document) } else { String::new() };
        let mut separator = "";
        for part in [&place, &document, &self.object, &self.field, &self.message] {
            if !part.is_empty() {
                write!(f, "{separator}{}", one_line(part))?;
                separator = ": ";
            }
        }
        if self.value.is_empty() { Ok(()) } else { write!(f, " (got {})", one_line(&self.value)) }
    }
}

/// Manifests that cannot be used. Every problem found is listed, not only the first.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LoadError {
    /// All of them, in the order of the files.
    pub problems: Vec<Problem>,
}

impl fmt::Display for LoadError {
    /// One line per problem.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, problem) in self.problems.iter().enumerate() {
            if index > 0 {
                f.write_str("\n")?;
            }
            problem.fmt(f)?;
        }
        Ok(())
    }
}

impl std::error::Error for LoadError {}

/// Control characters would let a manifest forge lines of output.
fn one_line(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect()
}
