//! Single stages of a record's way, for the micro benches. Not built without the feature `stages`.

use crate::line::LineWriter;
use crate::record::Record;

/// What makes the lines of a node.
#[derive(Debug)]
pub struct Lines(LineWriter);

impl Lines {
    /// Those of this node.
    pub fn of(node: &str) -> Self {
        Self(LineWriter::new(node))
    }

    /// Appends the line of a record, as its writer does.
    pub fn encode(&mut self, lines: &mut Vec<u8>, sequence: u64, record: &Record) {
        self.0.append(lines, sequence, record);
    }
}
