//! Finds the system's programs that the lab runs, and says which package has one that is missing.

use std::env;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use crate::error::LabError;

/// A program's file: along PATH, and in the system's folders that an ordinary user's PATH leaves out, as it stays after `su`.
pub(crate) fn find(program: &'static str) -> Result<PathBuf, LabError> {
    let path = env::var_os("PATH").unwrap_or_default();
    let system = ["/usr/sbin", "/sbin", "/usr/local/sbin"].map(PathBuf::from);
    let mut files = env::split_paths(&path).chain(system).map(|folder| folder.join(program));
    files
        .find(|file| is_executable(file))
        .ok_or(LabError::NotInstalled { program, package: package_of(program) })
}

fn is_executable(file: &Path) -> bool {
    file.metadata().is_ok_and(|meta| meta.is_file() && meta.permissions().mode() & 0o111 != 0)
}

/// Debian's package of a program.
fn package_of(program: &str) -> &'static str {
    match program {
        "ip" | "bridge" => "iproute2",
        "nft" => "nftables",
        _ => "iptables",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_program_that_is_missing_is_told_with_its_package() {
        assert!(find("ip").unwrap().is_absolute());
        let error = find("iptables-of-tomorrow").unwrap_err();
        assert_eq!(error.to_string(), "`iptables-of-tomorrow` is not installed: apt-get install iptables");
    }
}
