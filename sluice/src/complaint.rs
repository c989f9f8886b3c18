//! What a command says beside its answer.

use std::fmt::Display;
use std::io::{Write, stderr};

/// Writes a line to standard error. Where that is full or closed the line is lost, and the answer and the exit code
/// are what they would have been: `eprintln!` would panic.
pub(crate) fn complain(line: impl Display) {
    let _ = writeln!(stderr(), "{line}");
}
