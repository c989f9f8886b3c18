//! Connections, requests and answers.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::{Duration, Instant};

use http_body_util::channel::Channel;
use http_body_util::{BodyExt, Full, combinators::BoxBody};
use hyper::body::{Bytes, Incoming};
use hyper::header::{AUTHORIZATION, CONTENT_TYPE, HeaderValue, RETRY_AFTER};
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use tokio_rustls::TlsAcceptor;

use crate::fault::{Answer, Verb};
use crate::request::{Target, query, target};
use crate::store::{COLLECTIONS, Key};
use crate::watch::{self, Wish};
use crate::{Received, Shared};

const TIER_GROUP: &str = "policy.networking.k8s.io";

type Body = BoxBody<Bytes, std::io::Error>;

/// Accepts for ever.
pub(crate) async fn serve(listener: std::net::TcpListener, acceptor: TlsAcceptor, shared: Arc<Shared>) {
    let Ok(listener) = tokio::net::TcpListener::from_std(listener) else { return };
    loop {
        let Ok((stream, _)) = listener.accept().await else {
            tokio::time::sleep(Duration::from_millis(10)).await;
            continue;
        };
        let _ = stream.set_nodelay(true);
        let (acceptor, shared) = (acceptor.clone(), Arc::clone(&shared));
        tokio::spawn(async move {
            let Ok(stream) = acceptor.accept(stream).await else { return };
            let service = service_fn(move |request| respond(request, Arc::clone(&shared)));
            let connection = hyper::server::conn::http1::Builder::new();
            let _ = connection.serve_connection(TokioIo::new(stream), service).await;
        });
    }
}

/// The connection is to be reset: an error of the service ends it.
#[derive(Debug)]
struct Reset;

impl std::fmt::Display for Reset {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("reset on command")
    }
}

impl std::error::Error for Reset {}

async fn respond(request: Request<Incoming>, shared: Arc<Shared>) -> Result<Response<Body>, Reset> {
    let (parts, body) = request.into_parts();
    let bytes = body.collect().await.map(http_body_util::Collected::to_bytes).unwrap_or_default();
    let path = parts.uri.path_and_query().map(ToString::to_string).unwrap_or_default();
    let written: Option<Value> = serde_json::from_slice(&bytes).ok();
    shared.note(Received {
        at: Instant::now(),
        method: parts.method.to_string(),
        path: path.clone(),
        body: written.clone(),
    });
    let behaviour = shared.behaviour();
    let token =
        parts.headers.get(AUTHORIZATION).and_then(|value| value.to_str().ok()?.strip_prefix("Bearer "));
    if !behaviour.tokens.is_empty()
        && !token.is_some_and(|token| behaviour.tokens.iter().any(|known| known == token))
    {
        return Ok(status(401, "Unauthorized", None));
    }
    let target = target(parts.uri.path());
    let wishes = query(parts.uri.query().unwrap_or_default());
    let verb = match (&target, &parts.method) {
        (_, method) if *method != Method::GET => Verb::Write,
        (Target::Collection(_), _) if wishes.get("watch").is_some_and(|watch| watch == "true") => Verb::Watch,
        (Target::Collection(_), _) => Verb::List,
        _ => Verb::Discover,
    };
    let plural = if let Target::Collection(plural) = target { plural } else { "" };
    let (mut break_after, mut drip) = (None, None);
    match shared.fault(plural, verb, &path) {
        None => {}
        Some(Answer::Status(code, retry_after)) => return Ok(status(code, "on command", retry_after)),
        Some(Answer::Reset) => return Err(Reset),
        Some(Answer::Silence) => std::future::pending().await,
        Some(Answer::Body(bytes)) => return Ok(whole(StatusCode::OK, bytes)),
        Some(Answer::BreakAfter(bytes)) => break_after = Some(bytes),
        Some(Answer::Late(pause)) => tokio::time::sleep(pause).await,
        Some(Answer::Foreign(code, headers, bytes)) => return Ok(foreign(code, &headers, bytes)),
        Some(Answer::Drip(pause)) => drip = Some(pause),
        Some(Answer::Endless(head, piece, time)) => return Ok(endless(head, piece, time)),
    }
    let response = match (target, verb) {
        (target, Verb::Write) => write_answer(&target, written.unwrap_or_default(), &shared),
        (Target::Object(plural, name), _) => match shared.store.get(plural, &name) {
            Some(json) => whole(StatusCode::OK, json.to_vec()),
            None => status(404, "not found", None),
        },
        (Target::Collection(plural), _) if !is_served(plural, &shared) => status(404, "not found", None),
        (Target::Collection(plural), Verb::Watch) => watch_answer(plural, &wishes, &shared),
        (Target::Collection(plural), _) => list_answer(plural, &wishes, &shared),
        (Target::Group(group), _) if group == TIER_GROUP && behaviour.tiers => {
            group_answer(behaviour.newer_tiers)
        }
        (Target::Version(version), _) if version.starts_with(TIER_GROUP) && behaviour.tiers => {
            version_answer(&version, behaviour.newer_tiers)
        }
        _ => status(404, "not found", None),
    };
    Ok(match (break_after, drip, behaviour.chunk) {
        (None, None, 0) => response,
        (Some(bytes), ..) => cut(response, bytes, true),
        (None, Some(pause), _) => slow(response, pause),
        (None, None, chunk) => cut(response, chunk, false),
    })
}

fn is_served(plural: &str, shared: &Shared) -> bool {
    let tier = COLLECTIONS.iter().any(|(known, group, _)| *known == plural && group.starts_with(TIER_GROUP));
    !tier || (shared.behaviour().tiers && !shared.behaviour().newer_tiers)
}

fn watch_answer(
    plural: &'static str,
    wishes: &std::collections::HashMap<String, String>,
    shared: &Arc<Shared>,
) -> Response<Body> {
    let behaviour = shared.behaviour();
    let streamed = wishes.contains_key("sendInitialEvents");
    if streamed && !behaviour.streams && !behaviour.ignores_streams {
        return status(
            422,
            "sendInitialEvents is forbidden for watch unless the WatchList feature gate is enabled",
            None,
        );
    }
    let after = match wishes.get("resourceVersion").map(String::as_str) {
        _ if streamed => None,
        None | Some("" | "0") => None,
        Some(version) => match version.parse::<u64>() {
            Ok(version) => Some(version),
            Err(_) => return status(400, "invalid resource version", None),
        },
    };
    let asked =
        wishes.get("timeoutSeconds").and_then(|seconds| seconds.parse().ok()).map(Duration::from_secs);
    let wish = Wish {
        plural,
        after,
        mark: streamed && !behaviour.ignores_streams,
        bookmarks: wishes.contains_key("allowWatchBookmarks"),
        limit: asked.unwrap_or(behaviour.watch_limit).min(behaviour.watch_limit),
    };
    let (sender, channel) = Channel::new(8);
    tokio::spawn(watch::run(wish, sender, Arc::clone(shared)));
    with_body(StatusCode::OK, channel.boxed())
}

fn list_answer(
    plural: &'static str,
    wishes: &std::collections::HashMap<String, String>,
    shared: &Shared,
) -> Response<Body> {
    let asked = wishes.get("limit").and_then(|limit| limit.parse().ok()).filter(|limit| *limit > 0);
    let limit =
        asked.unwrap_or(usize::MAX).min(if asked.is_some() { shared.behaviour().page } else { usize::MAX });
    let from: Option<(u64, Key)> = match wishes.get("continue") {
        None => None,
        Some(token) => {
            let mut parts = token.splitn(3, '/');
            let mut part = || parts.next().unwrap_or_default().to_owned();
            let (version, namespace, name) = (part(), part(), part());
            Some((version.parse().unwrap_or_default(), (namespace, name)))
        }
    };
    let least = wishes.get("resourceVersion").and_then(|version| version.parse::<u64>().ok());
    if from.is_none() && least.is_some_and(|least| least > shared.store.version()) {
        return status(504, "Timeout: Too large resource version", Some(1));
    }
    let Some(page) = shared.store.page(plural, from, limit) else {
        return status(410, "the continue token has expired", None);
    };
    let (_, api_version, kind) =
        COLLECTIONS.iter().find(|(known, ..)| *known == plural).unwrap_or(&COLLECTIONS[0]);
    let token = page.next.map(|(namespace, name)| format!("{}/{namespace}/{name}", page.version));
    let metadata =
        json!({ "resourceVersion": page.version.to_string(), "continue": token.unwrap_or_default() });
    let mut body =
        format!(r#"{{"kind":"{kind}List","apiVersion":"{api_version}","metadata":{metadata},"items":["#)
            .into_bytes();
    for (index, item) in page.items.iter().enumerate() {
        if index > 0 {
            body.push(b',');
        }
        body.extend_from_slice(item);
    }
    body.extend_from_slice(b"]}\n");
    whole(StatusCode::OK, body)
}

fn write_answer(target: &Target, written: Value, shared: &Shared) -> Response<Body> {
    let done = match target {
        Target::Events(namespace) if shared.store.create_event(namespace, &written) => 201,
        Target::Events(_) => 409,
        Target::Status(plural, name) if shared.store.apply_conditions(plural, name, &written) => 200,
        _ => 404,
    };
    status(done, "on command", None)
}

fn group_answer(newer: bool) -> Response<Body> {
    let version =
        |version: &str| json!({ "groupVersion": format!("{TIER_GROUP}/{version}"), "version": version });
    let versions = if newer { vec!["v1beta1"] } else { vec!["v1alpha2", "v1alpha1"] };
    let group = json!({
        "kind": "APIGroup", "apiVersion": "v1", "name": TIER_GROUP,
        "preferredVersion": version(versions[0]),
        "versions": versions.into_iter().map(version).collect::<Vec<_>>(),
    });
    whole(StatusCode::OK, group.to_string())
}

fn version_answer(version: &str, newer: bool) -> Response<Body> {
    let is_in = |group: &str| if newer { group.starts_with(TIER_GROUP) } else { group == version };
    if newer && !version.ends_with("/v1beta1") {
        return status(404, "not found", None);
    }
    let resources: Vec<Value> = COLLECTIONS
        .iter()
        .filter(|(_, group, _)| is_in(group))
        .map(|(plural, _, kind)| json!({ "name": plural, "kind": kind, "namespaced": false, "verbs": ["get", "list", "watch"] }))
        .collect();
    let list = json!({ "kind": "APIResourceList", "apiVersion": "v1", "groupVersion": version, "resources": resources });
    whole(StatusCode::OK, list.to_string())
}

fn status(code: u16, message: &str, retry_after: Option<u64>) -> Response<Body> {
    let body = json!({ "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure", "message": message, "code": code });
    let code = StatusCode::from_u16(code).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    let mut response = whole(code, body.to_string());
    if let Some(seconds) = retry_after {
        response.headers_mut().insert(RETRY_AFTER, HeaderValue::from(seconds));
    }
    response
}

fn whole(status: StatusCode, bytes: impl Into<Bytes>) -> Response<Body> {
    let never = |never: Infallible| match never {};
    with_body(status, Full::new(bytes.into()).map_err(never).boxed())
}

fn with_body(status: StatusCode, body: Body) -> Response<Body> {
    let mut response = Response::new(body);
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response
}

fn foreign(code: u16, headers: &[(&'static str, &'static str)], bytes: Vec<u8>) -> Response<Body> {
    let mut response = whole(StatusCode::from_u16(code).unwrap_or(StatusCode::OK), bytes);
    response.headers_mut().clear();
    for (name, value) in headers {
        response.headers_mut().insert(*name, HeaderValue::from_static(value));
    }
    response
}

/// The same body, eight bytes at a time.
fn slow(response: Response<Body>, pause: Duration) -> Response<Body> {
    let (parts, mut body) = response.into_parts();
    let (mut sender, channel) = Channel::new(1);
    tokio::spawn(async move {
        while let Some(Ok(frame)) = body.frame().await {
            let Ok(data) = frame.into_data() else { continue };
            for piece in data.chunks(8) {
                tokio::time::sleep(pause).await;
                if sender.send_data(Bytes::copy_from_slice(piece)).await.is_err() {
                    return;
                }
            }
        }
    });
    Response::from_parts(parts, channel.boxed())
}

/// Paced, for who reads it is in the same process.
fn endless(head: Vec<u8>, piece: Vec<u8>, time: Duration) -> Response<Body> {
    const PAUSE: Duration = Duration::from_millis(1);
    let (mut sender, channel) = Channel::new(1);
    tokio::spawn(async move {
        let ends = Instant::now() + time;
        let mut next = Bytes::from(head);
        let piece = Bytes::from(piece);
        while sender.send_data(next).await.is_ok() {
            if Instant::now() >= ends {
                sender.abort(std::io::Error::other("broken off on command"));
                return;
            }
            next = piece.clone();
            tokio::time::sleep(PAUSE).await;
        }
    });
    with_body(StatusCode::OK, channel.boxed())
}

/// The same body in pieces of so many bytes; or only one piece, and then a reset.
fn cut(response: Response<Body>, size: usize, breaks: bool) -> Response<Body> {
    let (parts, mut body) = response.into_parts();
    let (mut sender, channel) = Channel::new(8);
    tokio::spawn(async move {
        let mut left = size;
        while let Some(Ok(frame)) = body.frame().await {
            let Ok(data) = frame.into_data() else { continue };
            for piece in data.chunks(size.max(1)) {
                let piece = if breaks { &piece[..piece.len().min(left)] } else { piece };
                left -= if breaks { piece.len() } else { 0 };
                if sender.send_data(Bytes::copy_from_slice(piece)).await.is_err() {
                    return;
                }
                if breaks && left == 0 {
                    sender.abort(std::io::Error::other("broken off on command"));
                    return;
                }
            }
        }
    });
    Response::from_parts(parts, channel.boxed())
}
