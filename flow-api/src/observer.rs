//! `observer.Observer`: flows of the past and live, and what this agent is.

use std::collections::{HashSet, VecDeque};
use std::pin::Pin;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use tokio::sync::{OwnedSemaphorePermit, Semaphore, broadcast, mpsc};
use tokio_stream::Stream;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status};

use crate::filter::Wanted;
use crate::flow;
use crate::history::{History, Part, is_wanted};
use crate::hub::Hub;
use crate::mask::Mask;
use crate::proto::observer::get_flows_response::ResponseTypes;
use crate::proto::observer::observer_server::Observer;
use crate::proto::observer::{
    GetFlowsRequest, GetFlowsResponse, GetNamespacesRequest, GetNamespacesResponse, GetNodesRequest,
    GetNodesResponse, Namespace, Node, ServerStatusRequest, ServerStatusResponse, Tls,
};
use crate::proto::relay::NodeState;

/// Clients that may read flows at a time.
const STREAMS: usize = 64;
/// Flows that wait for a client.
const WAITING: usize = 64;
/// A client that takes nothing for so long has its history ended, because a file of the store stays open for it.
const PATIENCE: Duration = Duration::from_secs(30);
/// Flows of the past that the live ones are compared with.
const REMEMBERED: usize = 8_192;
/// Namespaces are those of the last hour.
const NAMESPACES_OF: Duration = Duration::from_secs(3_600);

/// How this agent is reached, for those that it tells of itself.
#[derive(Clone, Debug)]
pub(crate) struct Reached {
    pub(crate) address: String,
    /// `None` without TLS.
    pub(crate) server_name: Option<String>,
}

#[derive(Debug)]
pub(crate) struct Flows {
    hub: Hub,
    history: History,
    reached: Reached,
    streams: Arc<Semaphore>,
}

type Answers = mpsc::Sender<Result<GetFlowsResponse, Status>>;

impl Flows {
    pub(crate) fn new(hub: Hub, history: History, reached: Reached) -> Self {
        Self { hub, history, reached, streams: Arc::new(Semaphore::new(STREAMS)) }
    }

    fn uptime_ns(&self) -> u64 {
        u64::try_from(self.hub.started().elapsed().as_nanos()).unwrap_or(u64::MAX)
    }
}

#[tonic::async_trait]
impl Observer for Flows {
    type GetFlowsStream = Pin<Box<dyn Stream<Item = Result<GetFlowsResponse, Status>> + Send>>;

    async fn get_flows(
        &self,
        request: Request<GetFlowsRequest>,
    ) -> Result<Response<Self::GetFlowsStream>, Status> {
        let asked = Asked::new(request.get_ref()).map_err(Status::invalid_argument)?;
        let permit = Arc::clone(&self.streams)
            .try_acquire_owned()
            .map_err(|_| Status::resource_exhausted(format!("{STREAMS} clients read flows already")))?;
        let (answers, stream) = mpsc::channel(WAITING);
        // First, so that no flow falls between the past and the live ones. Some are in both.
        let live = asked.follow.then(|| self.hub.follow());
        let (history, node) = (self.history.clone(), self.hub.node().to_owned());
        let cluster = self.hub.cluster().to_owned();
        tokio::spawn(serve(asked, history, live, answers, permit, (node, cluster)));
        Ok(Response::new(Box::pin(ReceiverStream::new(stream))))
    }

    async fn get_nodes(&self, _: Request<GetNodesRequest>) -> Result<Response<GetNodesResponse>, Status> {
        let (num_flows, max_flows) = self.room().await?;
        let node = Node {
            name: flow::node_name(self.hub.node(), self.hub.cluster()),
            version: version(),
            address: self.reached.address.clone(),
            state: NodeState::NodeConnected.into(),
            tls: Some(Tls {
                enabled: self.reached.server_name.is_some(),
                server_name: self.reached.server_name.clone().unwrap_or_default(),
            }),
            uptime_ns: self.uptime_ns(),
            num_flows,
            max_flows,
            seen_flows: self.hub.seen(),
        };
        Ok(Response::new(GetNodesResponse { nodes: vec![node] }))
    }

    async fn get_namespaces(
        &self,
        _: Request<GetNamespacesRequest>,
    ) -> Result<Response<GetNamespacesResponse>, Status> {
        let history = self.history.clone();
        let since = nanos(SystemTime::now()).saturating_sub(span(NAMESPACES_OF));
        let found = tokio::task::spawn_blocking(move || history.namespaces(since)).await;
        let names = found.map_err(panicked)?.map_err(unreadable)?;
        let cluster = self.hub.cluster();
        let namespace = |namespace| Namespace { cluster: cluster.to_owned(), namespace };
        Ok(Response::new(GetNamespacesResponse { namespaces: names.into_iter().map(namespace).collect() }))
    }

    async fn server_status(
        &self,
        _: Request<ServerStatusRequest>,
    ) -> Result<Response<ServerStatusResponse>, Status> {
        let (num_flows, max_flows) = self.room().await?;
        Ok(Response::new(ServerStatusResponse {
            num_flows,
            max_flows,
            seen_flows: self.hub.seen(),
            uptime_ns: self.uptime_ns(),
            num_connected_nodes: None,
            num_unavailable_nodes: None,
            unavailable_nodes: Vec::new(),
            version: version(),
            flows_rate: self.hub.rate(),
        }))
    }
}

impl Flows {
    async fn room(&self) -> Result<(u64, u64), Status> {
        let history = self.history.clone();
        tokio::task::spawn_blocking(move || history.room()).await.map_err(panicked)
    }
}

fn version() -> String {
    format!("sluice v{}", env!("CARGO_PKG_VERSION"))
}

/// A request that was understood.
#[derive(Debug)]
struct Asked {
    /// `None`: nothing of the past.
    part: Option<Part>,
    until: i64,
    follow: bool,
    wanted: Wanted,
    mask: Mask,
}

impl Asked {
    fn new(request: &GetFlowsRequest) -> Result<Self, String> {
        if request.first && request.follow {
            return Err("first and follow exclude each other".to_owned());
        }
        let time = |time: &Option<prost_types::Timestamp>, or: i64| match time {
            None => Ok(or),
            Some(time) => moment(time).ok_or_else(|| format!("{time} is no time")),
        };
        let (since, until) = (time(&request.since, i64::MIN)?, time(&request.until, i64::MAX)?);
        let is_live_only = request.follow && request.number == 0 && request.since.is_none();
        let part = Part { since, until, number: request.number, first: request.first };
        Ok(Self {
            part: (!is_live_only).then_some(part),
            until,
            follow: request.follow,
            wanted: Wanted::new(request)?,
            mask: Mask::new(request.field_mask.as_ref())?,
        })
    }
}

/// Nanoseconds since 1970.
fn moment(time: &prost_types::Timestamp) -> Option<i64> {
    time.seconds.checked_mul(1_000_000_000)?.checked_add(i64::from(time.nanos))
}

fn nanos(time: SystemTime) -> i64 {
    time.duration_since(SystemTime::UNIX_EPOCH).map_or(0, span)
}

fn span(duration: Duration) -> i64 {
    i64::try_from(duration.as_nanos()).unwrap_or(i64::MAX)
}

async fn serve(
    asked: Asked,
    history: History,
    live: Option<broadcast::Receiver<Arc<GetFlowsResponse>>>,
    answers: Answers,
    _permit: OwnedSemaphorePermit,
    (node, cluster): (String, String),
) {
    let (asked, told) = match asked.part {
        None => (asked, Told::default()),
        Some(part) => {
            let to = answers.clone();
            let read = tokio::task::spawn_blocking(move || past(asked, part, &history, &to)).await;
            match read {
                Ok(Some(read)) => read,
                Ok(None) => return,
                Err(error) => {
                    let _ = answers.send(Err(panicked(error))).await;
                    return;
                }
            }
        }
    };
    let Some(mut live) = live else { return };
    loop {
        let next = tokio::select! {
            next = live.recv() => next,
            () = answers.closed() => return,
        };
        let answer = match next {
            Ok(next) if is_over(&next, asked.until) => return,
            Ok(next) if told.has(&next) || !is_wanted(&next, &asked.wanted) => continue,
            Ok(next) => asked.mask.applied((*next).clone()),
            Err(broadcast::error::RecvError::Lagged(count)) => flow::missed(count, &node, &cluster),
            Err(broadcast::error::RecvError::Closed) => return,
        };
        if answers.send(Ok(answer)).await.is_err() {
            return;
        }
    }
}

/// Flows that were live before the client followed, and that the store had not written when it was read.
fn late(asked: &Asked, part: Part, history: &History, told: &Told) -> Vec<GetFlowsResponse> {
    let from = told.first.unwrap_or(part.since);
    let is_late = |answer: &GetFlowsResponse| {
        let time = answer.time.as_ref().and_then(moment);
        matches!(answer.response_types, Some(ResponseTypes::Flow(_)))
            && time.is_some_and(|time| (from..=part.until).contains(&time))
            && !told.has(answer)
            && is_wanted(answer, &asked.wanted)
    };
    history.recent().into_iter().filter(is_late).collect()
}

/// Sends the past, and returns what to go on with; `None` when the client has gone or the store is broken.
fn past(asked: Asked, part: Part, history: &History, to: &Answers) -> Option<(Asked, Told)> {
    let runtime = tokio::runtime::Handle::current();
    let mut told = Told::default();
    let mut is_gone = false;
    let mut send = |told: &mut Told, answer: GetFlowsResponse| {
        told.note(&answer);
        let sent = runtime.block_on(tokio::time::timeout(PATIENCE, to.send(Ok(asked.mask.applied(answer)))));
        is_gone = !matches!(sent, Ok(Ok(())));
        !is_gone
    };
    let read = history.read(part, &asked.wanted, || to.is_closed(), |answer| send(&mut told, answer));
    if asked.follow && read.is_ok() {
        let late = late(&asked, part, history, &told);
        let _ = late.into_iter().all(|answer| send(&mut told, answer));
    }
    if let Err(error) = read {
        tracing::warn!(%error, "flows cannot be read");
        let _ = runtime.block_on(tokio::time::timeout(PATIENCE, to.send(Err(unreadable(error)))));
        return None;
    }
    (!is_gone).then_some((asked, told))
}

fn is_over(next: &GetFlowsResponse, until: i64) -> bool {
    next.time.as_ref().and_then(moment).is_some_and(|time| time > until)
}

/// The last flows of the past, so that none is told twice.
#[derive(Debug, Default)]
struct Told {
    names: HashSet<String>,
    order: VecDeque<String>,
    /// When the first flow of the past was, in nanoseconds since 1970.
    first: Option<i64>,
}

impl Told {
    fn note(&mut self, answer: &GetFlowsResponse) {
        let Some(ResponseTypes::Flow(flow)) = &answer.response_types else { return };
        self.first = self.first.or_else(|| answer.time.as_ref().and_then(moment));
        if self.names.insert(flow.uuid.clone()) {
            self.order.push_back(flow.uuid.clone());
        }
        if self.order.len() > REMEMBERED
            && let Some(oldest) = self.order.pop_front()
        {
            self.names.remove(&oldest);
        }
    }

    fn has(&self, answer: &GetFlowsResponse) -> bool {
        match &answer.response_types {
            Some(ResponseTypes::Flow(flow)) => self.names.contains(&flow.uuid),
            _ => false,
        }
    }
}

fn panicked(_: tokio::task::JoinError) -> Status {
    Status::internal("reading flows ended unexpectedly")
}

fn unreadable(error: audit::ReadStoreError) -> Status {
    Status::unavailable(format!("flows cannot be read: {error}"))
}
