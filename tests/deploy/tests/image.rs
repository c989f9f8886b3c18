//! The Dockerfile: that its context holds what its build reads, and that its packages are all the agent calls.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking, in its helpers too")]

use std::fs;
use std::process::Command;

use deploy_tests::tools;

/// What `.dockerignore` lets in: it shuts everything out and names the exceptions.
fn context() -> Vec<String> {
    let text = fs::read_to_string(tools::repository().join(".dockerignore")).unwrap();
    let mut lines = text.lines().filter(|line| !line.is_empty() && !line.starts_with('#'));
    assert_eq!(lines.next(), Some("*"));
    lines.filter_map(|line| line.strip_prefix('!')).map(str::to_owned).collect()
}

fn is_in(context: &[String], path: &str) -> bool {
    context.iter().any(|entry| path == entry || path.starts_with(&format!("{entry}/")))
}

#[test]
fn the_context_holds_every_crate_and_every_file_that_is_compiled_in() {
    let (repository, context) = (tools::repository(), context());
    let manifest = fs::read_to_string(repository.join("Cargo.toml")).unwrap();
    let members = manifest.lines().find_map(|line| line.strip_prefix("members = ")).unwrap();
    let members: Vec<String> = serde_json::from_str(members).unwrap();
    for file in ["Cargo.toml", "Cargo.lock"].map(str::to_owned).iter().chain(&members) {
        assert!(is_in(&context, file), "{file}");
    }
    let listed = Command::new("git").args(["ls-files", "*.rs"]).current_dir(&repository).output().unwrap();
    let mut found = 0;
    for source in
        String::from_utf8(listed.stdout).unwrap().lines().filter(|source| !source.contains("/tests"))
    {
        // A file that was removed and not yet committed is still listed.
        let text = fs::read_to_string(repository.join(source)).unwrap_or_default();
        for part in text.split("include_str!(").chain(text.split("include_bytes!(")).skip(1) {
            // A literal, or one that begins a concatenation: its folder is what matters.
            let Some(named) = part.split('"').nth(1).filter(|named| named.starts_with("..")) else {
                continue;
            };
            let path = repository.join(source).parent().unwrap().join(named);
            let path = if path.exists() { path } else { path.parent().unwrap().to_owned() };
            let path = path.canonicalize().unwrap();
            let inside = path.strip_prefix(&repository).unwrap().to_str().unwrap().to_owned();
            let for_tests = source.ends_with("_tests.rs");
            assert!(for_tests || is_in(&context, &inside), "{source} reads {inside}");
            found += 1;
        }
    }
    assert!(found > 0, "the examples are compiled in");
}

#[test]
fn the_image_has_every_tool_that_the_agent_calls() {
    let root = tools::tool("rootfs");
    for program in [
        "usr/sbin/nft",
        "usr/sbin/iptables-nft-restore",
        "usr/sbin/ip6tables-nft-restore",
        "usr/sbin/iptables-legacy-restore",
        "usr/sbin/ip6tables-legacy-restore",
        "usr/sbin/ipset",
        "usr/sbin/conntrack",
    ] {
        assert!(root.join(program).symlink_metadata().is_ok(), "{program}");
    }
    // What a stopped cleanup pod waits with.
    assert!(root.join("bin/sleep").exists() || root.join("usr/bin/sleep").exists());
}
