//! The Kubernetes API, followed → snapshots, published.
//!
//! One follower for each collection lists and watches it ([`follow`]); what to ask and how long to wait is pure
//! ([`course`]). One owner holds the cluster and applies what they tell ([`owner`], [`ledger`]). Decisions go on from
//! the last state however long the API is gone. Nothing is published before every collection was listed once.

mod certificate;
mod config;
mod connect;
mod course;
mod discover;
mod follow;
mod items;
mod kubeconfig;
mod ledger;
mod lines;
mod owner;
mod page;
mod report;
mod request;
mod resource;
mod status;
mod token;
mod voice;

use std::hash::{BuildHasher, RandomState};
use std::net::IpAddr;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use tokio::sync::{mpsc, oneshot};

pub use config::{ApiConfig, ApiConfigProblem};
pub use connect::{Access, ApiError};
pub use kubeconfig::KubeconfigProblem;
pub use status::{ApiStatus, KindStatus};

use crate::options::Options;
use crate::store::SnapshotStore;
use discover::Discovery;
use follow::Ground;
use owner::{Inbox, Order, Owner};
use request::Door;
use resource::RESOURCES;
use status::Board;

/// How long the end of a thread is waited for.
const JOIN_LIMIT: Duration = Duration::from_secs(5);
const JOIN_STEP: Duration = Duration::from_millis(1);

/// The Kubernetes API as a source of snapshots.
#[derive(Debug)]
pub struct ApiSource;

impl ApiSource {
    /// Begins to follow the API, from threads of its own, until the handle is dropped. The store has a
    /// snapshot once every collection was listed.
    ///
    /// # Errors
    ///
    /// Credentials that cannot be read. A server that does not answer is waited for.
    pub fn start(
        access: Access,
        config: &ApiConfig,
        options: Options,
    ) -> Result<(ApiHandle, SnapshotStore), ApiError> {
        let thread = |name| move |cause| ApiError::Thread { name, cause };
        let runtime = || tokio::runtime::Builder::new_current_thread().enable_all().build();
        let network = runtime().map_err(thread("api-watch"))?;
        let work = runtime().map_err(thread("policy-cache"))?;
        // The client spawns its own tasks, so it is made where they will run.
        let way = network.block_on(access.way())?;
        if way.anonymous {
            let place = access.place();
            tracing::warn!(place, "no credentials are named: to the API server this process is anybody");
        }
        let door = Door::new(access, way, Duration::from_millis(config.answer_timeout_ms));

        let store = SnapshotStore::new();
        let board = Board::new();
        let (notes, noted) = mpsc::channel(owner::QUEUE);
        let (orders, ordered) = mpsc::unbounded_channel();
        let (stop, stopped) = oneshot::channel::<()>();
        // Not bounded: what one is written for is looked at by its key, and none may be left out for want of room.
        let (reports, reported) = mpsc::unbounded_channel();
        let node = options.node.clone().filter(|_| config.report);
        let owner = Owner::new(options, store.clone(), board.clone(), node.is_some().then_some(reports));
        let inbox = Inbox { notes: noted, orders: ordered };
        let ground = Ground {
            door: Arc::new(door),
            notes,
            board: board.clone(),
            hasher: RandomState::new(),
            page_size: config.page_size,
            silence: Duration::from_millis(config.silence_ms),
            streaming: config.streaming_lists,
        };
        let (config, ended) = (config.clone(), Arc::new(()));
        let (followers, owning) = (Arc::clone(&ended), Arc::clone(&ended));
        let watch = std::thread::Builder::new()
            .name("api-watch".to_owned())
            .spawn(move || {
                let _alive = followers;
                network.block_on(async {
                    tokio::select! {
                        () = follow_all(ground, &config, node.map(|node| (node, reported))) => {}
                        _ = stopped => {}
                    }
                });
                network.shutdown_background();
            })
            .map_err(thread("api-watch"))?;
        let cache = std::thread::Builder::new()
            .name("policy-cache".to_owned())
            .spawn(move || {
                let _alive = owning;
                work.block_on(owner.run(inbox));
            })
            .map_err(thread("policy-cache"))?;
        let handle = ApiHandle { stop: Some(stop), orders: Some(orders), board, threads: vec![watch, cache] };
        Ok((handle, store))
    }
}

/// What this node, by its name, is to report.
type Reports = (String, mpsc::UnboundedReceiver<report::Report>);

async fn follow_all(ground: Ground, config: &ApiConfig, reports: Option<Reports>) {
    tokio::time::sleep(Duration::from_millis(config.start_jitter_ms).mul_f64(chance())).await;
    let discovery = Discovery::new();
    let mut tasks = tokio::task::JoinSet::new();
    for (number, resource) in RESOURCES.into_iter().enumerate() {
        let presence = resource.is_optional().then(|| discovery.presence());
        tasks.spawn(follow::follow(number, resource, ground.clone(), presence));
    }
    let interval = Duration::from_millis(config.discovery_ms);
    tasks.spawn(discovery.run(Arc::clone(&ground.door), interval, ground.board.clone()));
    tasks.spawn(voice::run(ground.board.clone()));
    if let Some((node, reports)) = reports {
        tasks.spawn(report::run(Arc::clone(&ground.door), node, reports));
    }
    drop(ground);
    // None of them ends while somebody listens: one that has ended has failed, and takes the rest with it.
    if let Some(Err(error)) = tasks.join_next().await {
        tracing::error!(%error, "the following of the API has failed");
    }
}

/// The API being followed. Dropping it ends the threads.
#[derive(Debug)]
pub struct ApiHandle {
    stop: Option<oneshot::Sender<()>>,
    orders: Option<mpsc::UnboundedSender<Order>>,
    board: Board,
    threads: Vec<JoinHandle<()>>,
}

impl ApiHandle {
    /// How it goes.
    pub fn status(&self) -> ApiStatus {
        self.board.read(self.threads.iter().all(|thread| !thread.is_finished()))
    }

    /// Tells of the own node's interface addresses; a snapshot with them follows soon.
    pub fn set_own_addresses(&self, addresses: Vec<IpAddr>) {
        if let Some(orders) = &self.orders {
            // Fails only when the thread is gone, which the status tells.
            let _ = orders.send(Order::OwnAddresses(addresses));
        }
    }
}

impl Drop for ApiHandle {
    fn drop(&mut self) {
        drop(self.stop.take());
        drop(self.orders.take());
        let deadline = Instant::now() + JOIN_LIMIT;
        for thread in self.threads.drain(..) {
            while !thread.is_finished() {
                if Instant::now() >= deadline {
                    tracing::warn!("the following of the API is still busy and is left behind");
                    return;
                }
                std::thread::sleep(JOIN_STEP);
            }
            if thread.join().is_err() {
                tracing::error!("a thread that followed the API panicked");
            }
        }
    }
}

/// A number from 0 to 1 by chance.
fn chance() -> f64 {
    // The standard library's only source of chance; 53 bits are what a double holds.
    (RandomState::new().hash_one(0_u8) >> 11) as f64 / (1_u64 << 53) as f64
}
