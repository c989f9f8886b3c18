//! The thread that sends what waits: gathers, sends, and tries again, later each time.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use opentelemetry_proto::tonic::collector::logs::v1::ExportLogsServiceRequest;
use opentelemetry_proto::tonic::logs::v1::{ResourceLogs, ScopeLogs};
use opentelemetry_proto::tonic::resource::v1::Resource;
use prost::Message;
use tokio::sync::Notify;

use super::backlog::{Backlog, Origin};
use super::client::{Answer, Client, ClientError};
use super::config::OtlpSink;
use super::log;
use super::spool::Parcel;
use crate::complaint::Complaint;
use crate::metrics::Delivery;

/// Bytes of one request at most, before compression: collectors take 4 MiB of a message unless told otherwise.
const REQUEST_BYTES: usize = 1 << 20;
/// The first pause after a failure; each further one is twice as long, and a random part of it is left out.
const FIRST_PAUSE: Duration = Duration::from_millis(500);
/// The longest.
const LONGEST_PAUSE: Duration = Duration::from_secs(30);
/// A collector may ask for a longer one, up to this.
const LONGEST_ASKED: Duration = Duration::from_secs(300);

/// What the lane's thread and the sender share.
#[derive(Debug)]
pub(super) struct Shared {
    pub(super) name: String,
    backlog: Mutex<Backlog>,
    /// Something was kept, or nothing will be any more.
    pub(super) changed: Notify,
    pub(super) counts: Delivery,
    state: Mutex<Closing>,
}

/// Whether there is time left.
#[derive(Clone, Copy, Debug, Default)]
struct Closing {
    is_closing: bool,
    until: Option<Instant>,
}

impl Shared {
    pub(super) fn new(name: &str, backlog: Backlog, counts: Delivery) -> Self {
        Self {
            name: name.to_owned(),
            backlog: Mutex::new(backlog),
            changed: Notify::new(),
            counts,
            state: Mutex::default(),
        }
    }

    /// Changes what waits, and counts what that lost.
    pub(super) fn with<T>(&self, change: impl FnOnce(&mut Backlog) -> T) -> T {
        let mut backlog = lock(&self.backlog);
        let result = change(&mut backlog);
        self.counts.lost.inc_by(backlog.take_lost());
        self.counts.waiting.set(i64::try_from(backlog.records()).unwrap_or(i64::MAX));
        self.counts.spool_bytes.set(i64::try_from(backlog.spooled_bytes()).unwrap_or(i64::MAX));
        result
    }

    /// Nothing will be kept any more; what waits may be tried until then.
    pub(super) fn close(&self, until: Instant) {
        *lock(&self.state) = Closing { is_closing: true, until: Some(until) };
        self.changed.notify_one();
    }

    /// Returns when what waits may be tried no longer.
    async fn out_of_time(&self) {
        loop {
            let changed = self.changed.notified();
            match self.closing().until.map(|until| until.saturating_duration_since(Instant::now())) {
                None => changed.await,
                Some(left) => return tokio::time::sleep(left).await,
            }
        }
    }

    fn closing(&self) -> Closing {
        *lock(&self.state)
    }
}

/// A panic elsewhere leaves nothing half changed that matters more than going on.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Owns the way to the collector.
pub(super) struct Sender {
    config: OtlpSink,
    shared: Arc<Shared>,
    client: Option<Client>,
    pause: Duration,
    complaint: Complaint,
    refusals: Complaint,
    partial: Complaint,
}

impl Sender {
    pub(super) fn new(config: OtlpSink, shared: Arc<Shared>) -> Self {
        Self {
            config,
            shared,
            client: None,
            pause: FIRST_PAUSE,
            complaint: Complaint::default(),
            refusals: Complaint::default(),
            partial: Complaint::default(),
        }
    }

    /// Until nothing waits and nothing will come, or there is no time left.
    pub(super) async fn run(mut self) {
        while self.gather().await {
            let next = self.shared.with(|backlog| backlog.next(self.config.batch_records, REQUEST_BYTES));
            let Some((parcel, origin)) = next else { continue };
            if !self.deliver(&parcel, origin).await {
                return;
            }
        }
    }

    /// Waits until there is enough to send or it waited for long enough; false when nothing will come.
    async fn gather(&self) -> bool {
        let delay = Duration::from_millis(self.config.batch_delay_ms);
        let mut since = None;
        loop {
            let changed = self.shared.changed.notified();
            let waiting = self.shared.with(|backlog| backlog.records());
            let has_any = waiting > 0 || self.shared.with(|backlog| backlog.next(1, 1).is_some());
            if self.shared.closing().is_closing {
                return has_any;
            }
            if waiting >= self.config.batch_records {
                return true;
            }
            if !has_any {
                since = None;
                changed.await;
                continue;
            }
            let until = *since.get_or_insert_with(Instant::now) + delay;
            let left = until.saturating_duration_since(Instant::now());
            if tokio::time::timeout(left, changed).await.is_err() {
                return true;
            }
        }
    }

    /// Tries until the parcel was taken or refused for good; false when there is no time left.
    async fn deliver(&mut self, parcel: &Parcel, origin: Origin) -> bool {
        let Some(request) = request(parcel) else {
            tracing::error!(
                sink = self.shared.name,
                records = parcel.frame.records,
                "a damaged part of the spool is dropped"
            );
            self.shared.with(|backlog| backlog.refused(parcel, origin));
            return true;
        };
        loop {
            let shared = Arc::clone(&self.shared);
            let answer = tokio::select! {
                answer = self.send(request.clone()) => answer,
                () = shared.out_of_time() => return false,
            };
            match answer {
                Answer::Taken { rejected, message } => {
                    self.taken(parcel, origin, rejected, &message);
                    return true;
                }
                Answer::Never { cause } => {
                    let records = parcel.frame.records;
                    self.shared.counts.rejected.inc_by(records);
                    self.shared.with(|backlog| backlog.refused(parcel, origin));
                    if let Some(records) = self.refusals.due(records) {
                        tracing::error!(sink = self.shared.name, error = %cause, records, "records refused by the collector");
                    }
                    return true;
                }
                Answer::Later { after, cause } => {
                    self.shared.counts.failed_requests.inc();
                    // Certificates and names may have changed.
                    self.client = None;
                    if !self.wait(after, &cause).await {
                        return false;
                    }
                }
            }
            // What has gone to make room need not be sent.
            if !self.shared.with(|backlog| backlog.has(origin)) {
                return true;
            }
        }
    }

    async fn send(&mut self, request: ExportLogsServiceRequest) -> Answer {
        let client = match self.client.take() {
            Some(client) => client,
            None => match Client::new(&self.config) {
                Ok(client) => client,
                Err(cause) => return Answer::Later { after: None, cause },
            },
        };
        self.client.insert(client).send(&self.config, request).await
    }

    fn taken(&mut self, parcel: &Parcel, origin: Origin, rejected: u64, message: &str) {
        let rejected = rejected.min(parcel.frame.records);
        let counts = &self.shared.counts;
        counts.written.inc_by(parcel.frame.records - rejected);
        counts.rejected.inc_by(rejected);
        counts.lost.inc_by(rejected);
        self.shared.with(|backlog| backlog.taken(parcel, origin));
        self.pause = FIRST_PAUSE;
        if self.complaint.settled() {
            tracing::info!(sink = self.shared.name, "the collector takes records again");
        }
        if rejected > 0
            && let Some(records) = self.partial.due(rejected)
        {
            tracing::error!(sink = self.shared.name, records, message, "records refused by the collector");
        }
    }

    /// False when there is no time for another try.
    async fn wait(&mut self, after: Option<Duration>, cause: &ClientError) -> bool {
        if let Some(failures) = self.complaint.due(1) {
            let waiting = self.shared.with(|backlog| backlog.records());
            tracing::warn!(sink = self.shared.name, error = %cause, failures, waiting, "the collector does not take records");
        }
        let pause = shortened(self.pause).max(after.unwrap_or_default().min(LONGEST_ASKED));
        self.pause = LONGEST_PAUSE.min(self.pause * 2);
        let until = Instant::now() + pause;
        loop {
            let changed = self.shared.changed.notified();
            let closing = self.shared.closing();
            // What is on disk is sent by the next process; what memory has is tried until the end.
            if closing.is_closing && self.shared.with(|backlog| backlog.in_memory()) == 0 {
                return false;
            }
            let now = Instant::now();
            if closing.until.is_some_and(|end| end <= now) {
                return false;
            }
            if until <= now {
                return true;
            }
            let wake = closing.until.map_or(until, |end| end.min(until));
            // More records are no reason to try earlier.
            let _ = tokio::time::timeout(wake - now, changed).await;
        }
    }
}

/// Between half of a pause and all of it, so that nodes do not come back together.
fn shortened(pause: Duration) -> Duration {
    use std::hash::{BuildHasher, RandomState};

    let half = pause / 2;
    let random = RandomState::new().hash_one(pause) % 1024;
    half + half * u32::try_from(random).unwrap_or(0) / 1024
}

/// The parcel as a request; `None` when it is damaged.
fn request(parcel: &Parcel) -> Option<ExportLogsServiceRequest> {
    let mut scope_logs = ScopeLogs::decode(&*parcel.frame.body).ok()?;
    scope_logs.scope = Some(log::scope());
    let resource = Resource::decode(&*parcel.resource).ok()?;
    let logs =
        ResourceLogs { resource: Some(resource), scope_logs: vec![scope_logs], ..ResourceLogs::default() };
    Some(ExportLogsServiceRequest { resource_logs: vec![logs] })
}
