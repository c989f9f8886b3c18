//! Manifests → what is valid in them and yet surely not meant, each with its file and line.
//!
//! A check that needs to know the pods stays silent where the manifests show none: no false alarm is worth
//! more than one more finding.

mod dns;
mod known;
mod order;
mod peers;
mod places;
mod ports;
mod selection;
mod services;
mod tier_rules;
mod tiers;

use std::fmt;
use std::path::{Path, PathBuf};

use serde::Serialize;

use crate::manifest::{self, LoadError, files};
use crate::objects::Objects;
use dns::Dns;
use known::Known;
use places::{Place, Places, Stray};

/// What was found. Prints a line each, serializes as JSON.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct LintReport {
    findings: Vec<Finding>,
    /// What could not be checked, and why.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    notes: Vec<String>,
}

/// One thing that is valid and surely not meant.
#[derive(Clone, Debug, PartialEq, Serialize)]
struct Finding {
    /// The name of the check.
    check: &'static str,
    file: PathBuf,
    /// From 1.
    document: usize,
    /// From 1; absent where several JSON documents share a file.
    #[serde(skip_serializing_if = "Option::is_none")]
    line: Option<usize>,
    /// `Kind/namespace/name`.
    object: String,
    /// The path of the field.
    field: String,
    message: String,
}

impl LintReport {
    /// True when nothing was found.
    pub fn is_clean(&self) -> bool {
        self.findings.is_empty()
    }

    /// What could not be checked, a line each.
    pub fn notes(&self) -> &[String] {
        &self.notes
    }
}

impl fmt::Display for LintReport {
    /// One line per finding: `file:line: document 2: NetworkPolicy/shop/web: field: message [check]`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for finding in &self.findings {
            write!(f, "{}", finding.file.display())?;
            if let Some(line) = finding.line {
                write!(f, ":{line}")?;
            }
            let Finding { check, document, object, field, message, .. } = finding;
            writeln!(f, ": document {document}: {object}: {field}: {message} [{check}]")?;
        }
        Ok(())
    }
}

/// Checks every manifest under `paths`, which are found as [`crate::load`] finds them.
///
/// # Errors
///
/// All problems of manifests that are not valid: those come first; and that there is no manifest at all.
pub fn lint(paths: &[PathBuf]) -> Result<LintReport, LoadError> {
    let mut problems = Vec::new();
    let mut texts: Vec<(PathBuf, String)> = Vec::new();
    let found = files::find(paths, &mut problems);
    for file in &found.files {
        match files::read(file) {
            Ok(text) => texts.push((file.clone(), text)),
            Err(problem) => problems.push(*problem),
        }
    }
    let texts: Vec<(&Path, &str)> =
        texts.iter().map(|(path, text)| (path.as_path(), text.as_str())).collect();
    match manifest::parse(texts.iter().copied()) {
        Ok(objects) if problems.is_empty() => Ok(report(&objects.with_files(paths, found)?, &texts)),
        Ok(_) => Err(LoadError { problems }),
        Err(mut error) => {
            problems.append(&mut error.problems);
            Err(LoadError { problems })
        }
    }
}

/// Checks manifests that are in memory already; the paths name them, and `.json` means JSON.
///
/// # Errors
///
/// As [`lint`].
pub fn lint_texts<'t>(texts: impl IntoIterator<Item = (&'t Path, &'t str)>) -> Result<LintReport, LoadError> {
    let texts: Vec<(&Path, &str)> = texts.into_iter().collect();
    let objects = manifest::parse(texts.iter().copied())?;
    Ok(report(&objects, &texts))
}

fn report(objects: &Objects, texts: &[(&Path, &str)]) -> LintReport {
    let places = Places::read(texts, objects);
    let known = Known::new(objects, &places);
    let mut findings = Findings { places: &places, list: Vec::new() };
    findings.strays();
    let dns = Dns::new(&known);
    selection::check(&known, &mut findings);
    dns::check(&known, &dns, &mut findings);
    peers::check(&known, &mut findings);
    ports::check(&known, &mut findings);
    tiers::check(&known, &mut findings);
    tier_rules::check(&known, &mut findings);
    order::check(&known, &dns, &mut findings);
    let mut list = findings.list;
    list.sort_by(|a, b| {
        (&a.file, a.document, a.line, &a.field).cmp(&(&b.file, b.document, b.line, &b.field))
    });
    LintReport { findings: list, notes: known.notes() }
}

/// Findings as checks report them, each put in its place.
struct Findings<'p> {
    places: &'p Places<'p>,
    list: Vec<Finding>,
}

impl Findings<'_> {
    /// What looks like a policy and is passed over.
    fn strays(&mut self) {
        for Stray { object, why, place } in &self.places.strays {
            let field = if place.has("kind") { "kind" } else { "" };
            self.put("unknown-policy", object, field, why.clone(), Some(place));
        }
    }

    fn report(&mut self, check: &'static str, object: &str, field: &str, message: String) {
        self.put(check, object, field, message, self.places.of(object));
    }

    fn put(
        &mut self,
        check: &'static str,
        object: &str,
        field: &str,
        message: String,
        place: Option<&Place>,
    ) {
        self.list.push(Finding {
            check,
            file: place.map(|place| place.file.clone()).unwrap_or_default(),
            document: place.map_or(1, |place| place.document),
            line: place.and_then(|place| place.line(field)),
            object: object.to_owned(),
            field: field.to_owned(),
            message,
        });
    }
}
