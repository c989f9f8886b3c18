//! Where the tools and the repository are.

use std::path::{Path, PathBuf};
use std::process::Command;

/// The top of the repository.
pub fn repository() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).ancestors().nth(2).expect("two folders below the top").to_owned()
}

/// A file of the tools' folder, which `make setup-test` fills.
///
/// # Panics
/// When it is not there: a check that cannot be made has failed.
pub fn tool(name: &str) -> PathBuf {
    let folder = std::env::var_os("DEPLOY_TOOLS").map(PathBuf::from).unwrap_or_else(|| {
        let binary = lab::sluice_binary().expect("a built sluice");
        binary.ancestors().nth(2).expect("target/debug/sluice").join("deploy-tools")
    });
    let path = folder.join(name);
    assert!(path.exists(), "{} is missing: run `make setup-test`", path.display());
    path
}

/// kubectl with a configuration, cache and home of its own.
pub fn kubectl(home: &Path) -> Command {
    isolated(tool("kubectl"), home)
}

/// helm with a configuration, cache and home of its own.
pub fn helm(home: &Path) -> Command {
    isolated(tool("helm"), home)
}

fn isolated(program: PathBuf, home: &Path) -> Command {
    let mut command = Command::new(program);
    command.env_clear().env("HOME", home).env("PATH", "/usr/bin:/bin");
    command
}
