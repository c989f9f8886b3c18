//! The messages and services of `proto/`, as prost and tonic make them; a test holds `generated/` to the schema.

macro_rules! generated {
    ($($name:ident),*) => {$(
        #[allow(
            missing_docs,
            missing_debug_implementations,
            unreachable_pub,
            clippy::all,
            reason = "made by prost and tonic"
        )]
        pub mod $name {
            include!(concat!("generated/", stringify!($name), ".rs"));
        }
    )*};
}

generated!(flow, observer, peer, relay);

#[cfg(test)]
mod tests {
    use std::path::Path;

    const NAMES: [&str; 4] = ["flow", "observer", "peer", "relay"];

    /// `UPDATE_GOLDEN=1` makes the files anew.
    #[test]
    fn what_is_generated_is_what_the_schema_says() {
        let root = Path::new(env!("CARGO_MANIFEST_DIR"));
        let made = tempfile::tempdir().unwrap();
        let schema = root.join("proto");
        let files = protox::compile(["observer/observer.proto", "peer/peer.proto"], [&schema]).unwrap();
        tonic_prost_build::configure().out_dir(made.path()).compile_fds(files).unwrap();
        for name in NAMES {
            let file = root.join(format!("src/generated/{name}.rs"));
            let text = std::fs::read_to_string(made.path().join(format!("{name}.rs"))).unwrap();
            if std::env::var_os("UPDATE_GOLDEN").is_some() {
                std::fs::write(&file, &text).unwrap();
            }
            assert!(
                std::fs::read_to_string(&file).unwrap() == text,
                "{} is not of this schema",
                file.display()
            );
        }
    }
}
