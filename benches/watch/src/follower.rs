//! The other process: follows, says how many pods it knows, then when it knew each address it is asked for.

use std::io::{BufRead, Write};
use std::net::IpAddr;
use std::path::PathBuf;
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::Context;
use policy_cache::{Access, ApiConfig, ApiSource, Options, SnapshotStore};

/// Follows until its input ends.
pub(crate) fn run(kubeconfig: PathBuf, pages: bool) -> anyhow::Result<()> {
    let config = ApiConfig { start_jitter_ms: 0, streaming_lists: !pages, ..ApiConfig::default() };
    let options = Options { node: Some("node-1".to_owned()), ..Options::default() };
    let (_api, store) = ApiSource::start(Access::Kubeconfig(kubeconfig), &config, options)?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(published(&store, |_| true))?;
    let pods = store.current().context("a snapshot")?.counts().pods;
    let mut output = std::io::stdout().lock();
    writeln!(output, "{pods} pods")?;
    for line in std::io::stdin().lock().lines() {
        let ip: IpAddr = line?.trim().parse()?;
        let at = runtime.block_on(published(&store, |store| {
            store.current().is_some_and(|snapshot| snapshot.endpoint(ip).pod().is_some())
        }))?;
        writeln!(output, "{}", at.duration_since(UNIX_EPOCH)?.as_nanos())?;
    }
    Ok(())
}

/// Waits for the publication that makes something true.
async fn published(
    store: &SnapshotStore,
    is_true: impl Fn(&SnapshotStore) -> bool,
) -> anyhow::Result<SystemTime> {
    let mut publications = store.subscribe();
    loop {
        publications.borrow_and_update();
        if store.current().is_some() && is_true(store) {
            return Ok(SystemTime::now());
        }
        publications.changed().await.context("the store has ended")?;
    }
}
