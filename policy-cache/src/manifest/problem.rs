//! What is wrong with a manifest, said so that its author can find and mend it.

use std::collections::HashSet;
use std::fmt;
use std::path::PathBuf;

/// How many problems are listed; nobody reads more, and a hostile file has millions.
const MAX_LISTED: usize = 1_000;
/// How much of a name or a path a line says, in characters. Names that Kubernetes takes are shorter.
const MAX_PART: usize = 600;

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

/// Problems as they are found. So many are kept in full; of all it is kept whose they are.
#[derive(Debug, Default)]
pub(crate) struct Problems {
    listed: Vec<Problem>,
    unlisted: usize,
    objects: HashSet<String>,
}

impl Problems {
    pub(crate) fn push(&mut self, problem: Problem) {
        if !self.objects.contains(&problem.object) {
            self.objects.insert(problem.object.clone());
        }
        if self.listed.len() < MAX_LISTED { self.listed.push(problem) } else { self.unlisted += 1 }
    }

    pub(crate) fn append(&mut self, other: Self) {
        self.objects.extend(other.objects);
        self.listed.extend(other.listed);
        self.unlisted += other.unlisted + self.listed.len().saturating_sub(MAX_LISTED);
        self.listed.truncate(MAX_LISTED);
    }

    pub(crate) fn count(&self) -> usize {
        self.listed.len() + self.unlisted
    }

    /// The objects that have one; "" where it cannot be told whose it is.
    pub(crate) fn objects(&self) -> &HashSet<String> {
        &self.objects
    }

    /// In the order of their lines.
    pub(crate) fn sort(&mut self) {
        self.listed.sort_by_key(|problem| problem.line);
    }

    /// The list, and at its end how many are not in it.
    pub(crate) fn into_list(mut self) -> Vec<Problem> {
        if self.unlisted > 0 {
            self.listed.push(Problem {
                file: PathBuf::new(),
                document: 0,
                line: None,
                object: String::new(),
                field: String::new(),
                value: String::new(),
                message: format!("and {} more problems", self.unlisted),
            });
        }
        self.listed
    }
}

impl Extend<Problem> for Problems {
    fn extend<I: IntoIterator<Item = Problem>>(&mut self, problems: I) {
        problems.into_iter().for_each(|problem| self.push(problem));
    }
}

/// Manifests that cannot be used. Every problem found is listed, not only the first, up to a thousand.
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

/// Control characters would let a manifest forge lines of output, and a name may be as long as its author likes.
fn one_line(text: &str) -> String {
    let mut line: String =
        text.chars().take(MAX_PART).map(|c| if c.is_control() { ' ' } else { c }).collect();
    if text.chars().nth(MAX_PART).is_some() {
        line.push('…');
    }
    line
}
