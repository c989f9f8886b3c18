//! The published JSON Schema, held to every line that the tests' processes write.

use std::sync::OnceLock;

use lab::Sluice;
use serde_json::Value;

/// Checks a line of the records.
///
/// # Panics
/// When the line does not keep to the schema.
pub fn assert_valid(line: &Value) {
    static COMPILED: OnceLock<(boon::Schemas, boon::SchemaIndex)> = OnceLock::new();
    let (schemas, index) = COMPILED.get_or_init(|| {
        let schema = serde_json::from_str(audit::RECORD_SCHEMA).expect("the schema is JSON");
        let mut schemas = boon::Schemas::new();
        let mut compiler = boon::Compiler::new();
        compiler.enable_format_assertions();
        compiler.add_resource("record.schema.json", schema).expect("the schema");
        let index = compiler.compile("record.schema.json", &mut schemas).expect("the schema compiles");
        (schemas, index)
    });
    if let Err(fault) = schemas.validate(line, *index) {
        panic!("not by the schema: {fault:#}\n{line:#}");
    }
}

/// Checks all that a process has written, when a test that has not failed is done with it.
pub(crate) fn assert_all_valid(sluice: &Sluice) {
    // A FIFO has been read by the test itself.
    let is_file = sluice.records_path().metadata().is_ok_and(|file| file.is_file());
    if is_file && !std::thread::panicking() {
        // A process that was killed may have left a piece of a line, which is no matter of the schema.
        sluice.records().unwrap_or_default().iter().for_each(assert_valid);
    }
}
