//! The table of kernels in `tests/README.md`, made of what emulated machines gave (`tests/kernels/run.sh`) and of nothing else.

#![expect(clippy::unwrap_used, reason = "a panic in a test is its failure report")]

use std::fmt::Write as _;
use std::fs;
use std::path::Path;

use suite::cells;

/// Debian's releases, oldest kernel first: what each gave, and what its kernel is called.
const RELEASES: [(&str, &str); 3] =
    [("bullseye", "(bullseye)"), ("bookworm", "(bookworm)"), ("trixie", "(trixie)")];
/// Kernels without some of their modules, each with jobs of its own.
const LESSER: [(&str, &str); 4] = [
    ("bullseye-iptables", "(bullseye) without nft's tproxy and queue"),
    ("bullseye-legacy", "(bullseye) without nf_tables"),
    ("bullseye-conntrack", "(bullseye) without conntrack's netlink"),
    ("bullseye-bare", "(bullseye) without any tproxy and queue"),
];

/// Rows and what they say.
type Results = Vec<(String, String)>;

/// Rows and what they say, in the order in which they were seen.
fn results(kept: &str) -> Results {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("../kernels/results").join(kept);
    let text = fs::read_to_string(&file).unwrap_or_else(|error| panic!("{}: {error}", file.display()));
    let row = |line: &str| {
        let (name, result) = line.split_once('\t').unwrap();
        (name.to_owned(), result.to_owned())
    };
    text.lines().map(row).collect()
}

/// A row of one kernel that another has not is shown as not seen there.
fn table(columns: &[(&str, Results)]) -> String {
    let cell = |results: &Results, name: &str| {
        let found = results.iter().find(|(row, _)| row == name);
        found.map_or_else(|| "not seen yet".to_owned(), |(_, result)| result.clone())
    };
    let mut names: Vec<&str> = Vec::new();
    for (name, _) in columns.iter().flat_map(|(_, results)| results) {
        if !names.contains(&name.as_str()) {
            names.push(name);
        }
    }
    let mut table = String::from("| |");
    for (words, results) in columns {
        let _ = write!(table, " {} {words} |", cell(results, "kernel"));
    }
    let _ = write!(table, "\n|---|{}\n", "---|".repeat(columns.len()));
    for name in names.into_iter().filter(|name| *name != "kernel") {
        let cells = columns.iter().map(|(_, results)| format!(" {} |", cell(results, name)));
        let _ = writeln!(table, "| {name} |{}", cells.collect::<String>());
    }
    table
}

#[test]
fn the_table_of_kernels_in_the_readme_is_what_they_gave() {
    let columns = |kernels: &[(&str, &'static str)]| -> Vec<(&str, Results)> {
        kernels.iter().map(|(kept, words)| (*words, results(kept))).collect()
    };
    let tables = [columns(&RELEASES)].into_iter().chain(LESSER.map(|lesser| columns(&[lesser])));
    let tables: Vec<String> = tables
        .map(|columns| {
            for (words, results) in &columns {
                assert!(results.iter().all(|(_, result)| result != "FAILED"), "{words}: {results:?}");
            }
            table(&columns)
        })
        .collect();
    cells::hold_between("kernels", "UPDATE_MATRIX=1 make test-kernels", &tables.join("\n"));
}
