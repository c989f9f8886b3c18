//! What a command says beside its answer, and how strangers' texts are said at all.

use std::fmt::Display;
use std::io::{Write, stderr};

/// Writes a line to standard error. Where that is full or closed the line is lost, and the answer and the exit code
/// are what they would have been: `eprintln!` would panic.
pub(crate) fn complain(line: impl Display) {
    let _ = writeln!(stderr(), "{}", harmless(&line.to_string()));
}

/// A text as it may stand on a terminal. What it quotes (a file's name, a word of the command line) is a stranger's, and
/// its control characters could hide lines, forge them, or steer the terminal.
pub(crate) fn harmless(text: &str) -> String {
    let mut safe = String::with_capacity(text.len());
    for c in text.chars() {
        if c.is_control() && c != '\n' {
            safe.extend(c.escape_default());
        } else {
            safe.push(c);
        }
    }
    safe
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn control_characters_are_written_out_and_lines_stay_lines() {
        assert_eq!(harmless("a\u{1b}[2J\tb\r\u{9b}1m\nc ä…"), "a\\u{1b}[2J\\tb\\r\\u{9b}1m\nc ä…");
    }
}
