//! The admin API: liveness, readiness and metrics over plain HTTP/1.
//!
//! It runs on a thread and a runtime of its own, so that a stuck datapath cannot hide behind a stuck
//! health check, and no client can slow the datapath: one request a connection, every wait bounded, and a
//! full house gives up its oldest guest.
//!
//! `GET /healthz`  200 while every thread that must run does, else 503 and a line for each that ended.
//! `GET /readyz`   200 when also every condition holds, with a line for each remark; else 503 and a line for each that
//!                 does not.
//! `GET /metrics`  OpenMetrics for those who accept it, else Prometheus' older text format.
//! `GET /records`  records of this node as lines of JSON, from its store and live (`records.rs`).
//! `GET /status`   what `sluice status` shows, as JSON; the fields are those of [`Status`](crate::status::Status).

use std::collections::{BTreeMap, VecDeque};
use std::convert::Infallible;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::pin::pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use http_body_util::{Either, Full};
use hyper::body::{Bytes, Incoming};
use hyper::header::{ALLOW, CACHE_CONTROL, CONTENT_TYPE, HeaderValue};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use prometheus_client::encoding::text::encode;
use prometheus_client::registry::Registry;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::oneshot;
use tokio::task::AbortHandle;

use crate::exposition;
use crate::status::{Board, Condition};

mod records;

use records::{Asked, Lines};

/// For those who ask for it, as Prometheus does.
const OPENMETRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";
/// For everybody else.
const TEXT_FORMAT: &str = "text/plain; version=0.0.4; charset=utf-8";
const PLAIN: &str = "text/plain; charset=utf-8";
const JSON: &str = "application/json";
const LINES: &str = "application/x-ndjson";

/// Why the admin API is not available.
#[derive(Debug, thiserror::Error)]
pub(crate) enum AdminError {
    /// Another socket has the address.
    #[error(
        "admin address {address} is already in use: choose another with --admin, or stop what listens there"
    )]
    InUse {
        /// The address asked for.
        address: SocketAddr,
    },
    /// The address cannot be listened on for another reason.
    #[error("listen on admin address {address}: {cause}")]
    Listen {
        /// The address asked for.
        address: SocketAddr,
        /// Why not.
        #[source]
        cause: io::Error,
    },
    /// The thread or its runtime cannot be made.
    #[error("start the admin thread: {0}")]
    Start(#[source] io::Error),
}

/// What must hold for this node to count as enforced. Clones share the state.
#[derive(Clone, Debug)]
pub(crate) struct Conditions {
    state: Arc<Mutex<State>>,
}

#[derive(Debug)]
struct State {
    conditions: BTreeMap<&'static str, Result<(), String>>,
    /// Threads that must run: true while they do.
    threads: BTreeMap<&'static str, bool>,
    /// What a person should know although the condition holds.
    remarks: BTreeMap<&'static str, String>,
}

impl Conditions {
    /// Conditions that all have yet to be established.
    pub(crate) fn new(names: &[&'static str]) -> Self {
        let unknown = |name: &&'static str| (*name, Err("not established yet".to_owned()));
        let conditions = names.iter().map(unknown).collect();
        let state = State { conditions, threads: BTreeMap::new(), remarks: BTreeMap::new() };
        Self { state: Arc::new(Mutex::new(state)) }
    }

    /// Says whether the condition `name` holds, and if not, why. A new name adds a condition.
    pub(crate) fn set(&self, name: &'static str, holds: Result<(), String>) {
        self.lock().conditions.insert(name, holds);
    }

    /// Marks the thread `name` as running until the returned value is dropped, by a return or a panic.
    pub(crate) fn alive(&self, name: &'static str) -> Alive {
        self.lock().threads.insert(name, true);
        Alive { conditions: self.clone(), name }
    }

    /// A line for each thread that ended.
    pub(crate) fn unhealthy(&self) -> Vec<String> {
        self.lock().ended_threads().collect()
    }

    /// Says what a person should know of the condition `name` although it holds; nothing takes it back.
    pub(crate) fn remark(&self, name: &'static str, remark: Option<String>) {
        let mut state = self.lock();
        match remark {
            Some(remark) => state.remarks.insert(name, remark),
            None => state.remarks.remove(name),
        };
    }

    /// A line for each remark.
    pub(crate) fn remarks(&self) -> Vec<String> {
        self.lock().remarks.iter().map(|(name, remark)| format!("{name}: {}", one_line(remark))).collect()
    }

    /// A line for each condition that does not hold and each thread that ended.
    pub(crate) fn unready(&self) -> Vec<String> {
        let state = self.lock();
        let failing = state.conditions.iter().filter_map(|(name, holds)| {
            holds.as_ref().err().map(|reason| format!("{name}: {}", one_line(reason)))
        });
        failing.chain(state.ended_threads()).collect()
    }

    /// Every condition, and each thread that ended as one that does not hold.
    pub(crate) fn list(&self) -> Vec<Condition> {
        let state = self.lock();
        let condition = |name: &str, reason: Option<String>| Condition {
            name: name.to_owned(),
            holds: reason.is_none(),
            reason,
        };
        let conditions =
            state.conditions.iter().map(|(name, holds)| condition(name, holds.as_ref().err().map(one_line)));
        let ended = state.threads.iter().filter(|(_, runs)| !**runs);
        conditions.chain(ended.map(|(name, _)| condition(name, Some(THREAD_ENDED.to_owned())))).collect()
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn ended_threads(&self) -> impl Iterator<Item = String> {
        self.threads.iter().filter(|(_, runs)| !**runs).map(|(name, _)| format!("{name}: {THREAD_ENDED}"))
    }
}

const THREAD_ENDED: &str = "thread ended";

/// A reason is one line, whatever it was made of.
fn one_line(reason: impl AsRef<str>) -> String {
    reason.as_ref().replace(['\n', '\r'], " ")
}

/// A thread that must run; dropping it says that the thread ended.
#[derive(Debug)]
pub(crate) struct Alive {
    conditions: Conditions,
    name: &'static str,
}

impl Drop for Alive {
    fn drop(&mut self) {
        self.conditions.lock().threads.insert(self.name, false);
    }
}

/// What a client may cost.
#[derive(Clone, Copy, Debug)]
struct Limits {
    /// Until the request's head is complete.
    head: Duration,
    /// Until the response is taken.
    connection: Duration,
    /// Connections at a time; one more ends the oldest.
    connections: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self { head: Duration::from_secs(5), connection: Duration::from_secs(15), connections: 64 }
    }
}

/// The running admin API; dropping it ends the API.
#[derive(Debug)]
pub(crate) struct AdminHandle {
    address: SocketAddr,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl AdminHandle {
    /// The address listened on, with the port that was chosen for port 0.
    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }
}

impl Drop for AdminHandle {
    fn drop(&mut self) {
        drop(self.stop.take());
        // The thread waits for no client: its runtime drops what is open.
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            tracing::error!("the admin thread panicked");
        }
    }
}

/// Listens on `address` and answers from `conditions`, `board` and `registry` until the handle is dropped.
pub(crate) fn start(
    address: SocketAddr,
    conditions: Conditions,
    board: Board,
    registry: Arc<Registry>,
) -> Result<AdminHandle, AdminError> {
    start_limited(address, Api { conditions, board, registry, limits: Limits::default() })
}

fn start_limited(address: SocketAddr, api: Api) -> Result<AdminHandle, AdminError> {
    let listener = std::net::TcpListener::bind(address).map_err(|cause| match cause.kind() {
        io::ErrorKind::AddrInUse => AdminError::InUse { address },
        _ => AdminError::Listen { address, cause },
    })?;
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(AdminError::Start)?;
    let listener = {
        let _entered = runtime.enter();
        listener.set_nonblocking(true).and_then(|()| TcpListener::from_std(listener))
    };
    let listener = listener.map_err(|cause| AdminError::Listen { address, cause })?;
    let address = listener.local_addr().map_err(|cause| AdminError::Listen { address, cause })?;

    let (stop, stopped) = oneshot::channel();
    let api = Arc::new(api);
    let thread = std::thread::Builder::new()
        .name("admin".to_owned())
        .spawn(move || {
            runtime.block_on(async {
                tokio::select! {
                    () = accept(&listener, api) => {}
                    _ = stopped => {}
                }
            });
        })
        .map_err(AdminError::Start)?;
    Ok(AdminHandle { address, stop: Some(stop), thread: Some(thread) })
}

struct Api {
    conditions: Conditions,
    board: Board,
    registry: Arc<Registry>,
    limits: Limits,
}

async fn accept(listener: &TcpListener, api: Arc<Api>) {
    let mut open: VecDeque<AbortHandle> = VecDeque::new();
    loop {
        match listener.accept().await {
            Ok((stream, client)) => {
                open.retain(|connection| !connection.is_finished());
                if open.len() >= api.limits.connections
                    && let Some(oldest) = open.pop_front()
                {
                    oldest.abort();
                }
                open.push_back(tokio::spawn(serve(stream, client.ip(), Arc::clone(&api))).abort_handle());
            }
            Err(error) => {
                // Out of descriptors, as a rule: trying again at once would spin (accept(2)).
                tracing::warn!(%error, "admin connection not accepted");
                tokio::time::sleep(Duration::from_millis(500)).await;
            }
        }
    }
}

async fn serve(stream: TcpStream, client: IpAddr, api: Arc<Api>) {
    let limits = api.limits;
    let streams = AtomicBool::new(false);
    let service = service_fn(|request: Request<Incoming>| {
        let response = if request.uri().path() == "/records" && *request.method() == Method::GET {
            let response = api.records(&request, client);
            streams.store(response.status() == StatusCode::OK, Ordering::Relaxed);
            response
        } else {
            api.answer(&request).map(Either::Left)
        };
        async move { Ok::<_, Infallible>(response) }
    });
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(limits.head)
        .keep_alive(false)
        .serve_connection(TokioIo::new(stream), service);
    let mut connection = pin!(connection);
    let served = match tokio::time::timeout(limits.connection, &mut connection).await {
        // Records are read for as long as somebody reads them, and there is room for the next.
        Err(_) if streams.load(Ordering::Relaxed) => Ok(connection.await),
        other => other,
    };
    match served {
        Ok(Ok(())) => {}
        Ok(Err(error)) => tracing::debug!(%error, "admin connection failed"),
        Err(_) => tracing::debug!("admin connection took too long"),
    }
}

impl Api {
    fn answer(&self, request: &Request<Incoming>) -> Response<Full<Bytes>> {
        let respond = match request.uri().path() {
            "/healthz" => Self::health,
            "/readyz" => Self::readiness,
            "/metrics" if exposition::wants_openmetrics(request.headers()) => Self::openmetrics,
            "/metrics" => Self::text_format,
            "/status" => Self::status,
            _ => {
                return plain(
                    StatusCode::NOT_FOUND,
                    "there are /healthz, /readyz, /metrics, /records and /status\n",
                );
            }
        };
        if matches!(*request.method(), Method::GET | Method::HEAD) {
            return respond(self);
        }
        let mut refusal = plain(StatusCode::METHOD_NOT_ALLOWED, "only GET and HEAD\n");
        refusal.headers_mut().insert(ALLOW, HeaderValue::from_static("GET, HEAD"));
        refusal
    }

    fn health(&self) -> Response<Full<Bytes>> {
        answer("ok", &self.conditions.unhealthy())
    }

    fn readiness(&self) -> Response<Full<Bytes>> {
        let failing = self.conditions.unready();
        let ready = [vec!["ready".to_owned()], self.conditions.remarks()].concat().join("\n");
        answer(&ready, &failing)
    }

    fn openmetrics(&self) -> Response<Full<Bytes>> {
        self.metrics(OPENMETRICS, |text| text)
    }

    fn text_format(&self) -> Response<Full<Bytes>> {
        self.metrics(TEXT_FORMAT, |text| exposition::text_format(&text))
    }

    fn metrics(&self, kind: &'static str, form: impl FnOnce(String) -> String) -> Response<Full<Bytes>> {
        let mut text = String::with_capacity(16 * 1024);
        match encode(&mut text, &self.registry) {
            Ok(()) => response(StatusCode::OK, kind, form(text)),
            Err(_) => plain(StatusCode::INTERNAL_SERVER_ERROR, "metrics cannot be encoded\n"),
        }
    }

    fn records(&self, request: &Request<Incoming>, client: IpAddr) -> Response<Either<Full<Bytes>, Lines>> {
        let refuse = |status, text: String| plain(status, text).map(Either::Left);
        let asked = match Asked::parse(request.uri().query().unwrap_or_default()) {
            Ok(asked) => asked,
            Err(problem) => return refuse(StatusCode::BAD_REQUEST, problem),
        };
        let Some(recorder) = self.board.recorder() else {
            return refuse(StatusCode::SERVICE_UNAVAILABLE, "this agent has not started yet\n".to_owned());
        };
        if !recorder.serves(client) {
            let text = "records are served to this node only: records.served_to\n".to_owned();
            return refuse(StatusCode::FORBIDDEN, text);
        }
        match Lines::start(&recorder, &asked) {
            Ok(lines) => response(StatusCode::OK, LINES, Bytes::new()).map(|_| Either::Right(lines)),
            Err(problem) => refuse(StatusCode::NOT_FOUND, problem.to_owned()),
        }
    }

    fn status(&self) -> Response<Full<Bytes>> {
        match serde_json::to_vec(&self.board.status()) {
            Ok(json) => response(StatusCode::OK, JSON, json),
            Err(_) => plain(StatusCode::INTERNAL_SERVER_ERROR, "the status cannot be encoded\n"),
        }
    }
}

/// 200 and `good` when nothing fails, else 503 and what does.
fn answer(good: &str, failing: &[String]) -> Response<Full<Bytes>> {
    if failing.is_empty() {
        plain(StatusCode::OK, format!("{good}\n"))
    } else {
        plain(StatusCode::SERVICE_UNAVAILABLE, failing.join("\n") + "\n")
    }
}

fn plain(status: StatusCode, text: impl Into<Bytes>) -> Response<Full<Bytes>> {
    response(status, PLAIN, text)
}

fn response(status: StatusCode, kind: &'static str, body: impl Into<Bytes>) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(body.into()));
    *response.status_mut() = status;
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static(kind));
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    response
}

#[cfg(test)]
#[path = "admin_tests.rs"]
mod tests;
