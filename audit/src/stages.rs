//! Single stages of a record's way, for the micro benches. Not built without the feature `stages`.

use crate::line;
use crate::record::Record;

/// Appends the line of a record, as its writer does. False when it cannot be written as JSON.
pub fn encode(lines: &mut Vec<u8>, sequence: u64, node: &str, record: &Record) -> bool {
    line::append(lines, sequence, node, record).is_ok()
}
