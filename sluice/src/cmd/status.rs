//! `sluice status`: asks a running agent what it is doing, for a person or a script. Changes nothing, and needs no
//! privilege.

use std::io;
use std::process::ExitCode;
use std::time::Duration;

use http_body_util::{BodyExt, Empty, Limited};
use hyper::body::Bytes;
use hyper::client::conn::http1;
use hyper::header::{CONNECTION, HOST};
use hyper::{Request, StatusCode};
use hyper_util::rt::TokioIo;
use serde_json::Value;
use tokio::net::TcpStream;

use crate::cmd::explain::{Output, print};
use crate::status::Status;

mod text;

/// Where `sluice run` is told to listen in every example and in the DaemonSet.
const ADDRESS: &str = "127.0.0.1:9093";
/// An agent on the same network answers in milliseconds.
const LIMIT: Duration = Duration::from_secs(5);
/// Far more than a node with a thousand refused objects says.
const MAX_BODY: usize = 16 << 20;

/// Arguments of `sluice status`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Where the agent listens, as its --admin says
    #[arg(long, value_name = "ADDR:PORT", default_value = ADDRESS)]
    admin: String,
    /// How to print the answer
    #[arg(short, long, value_enum, default_value_t = Output::Text)]
    output: Output,
}

/// Why an agent cannot be asked.
#[derive(Debug, thiserror::Error)]
enum AskError {
    #[error("--admin {address}: must be ADDR:PORT, such as {ADDRESS} or [::1]:9093")]
    Address { address: String },
    #[error(
        "no agent answers at {address}: {cause}. `sluice run --admin {address}` makes one listen there; \
         `sluice status --admin ADDR:PORT` asks another"
    )]
    Unreachable { address: String, cause: io::Error },
    #[error(
        "{address} took the connection and gave no answer within {LIMIT:?}: the agent hangs, or it is no agent"
    )]
    Silent { address: String },
    #[error("{address} does not answer as HTTP does: {cause}; ask the port of the agent's --admin")]
    Broken { address: String, cause: Box<dyn std::error::Error + Send + Sync> },
    #[error("{address} knows no /status (HTTP {code}): another program, or an agent older than this command")]
    Unknown { address: String, code: u16 },
    #[error("{address} answers /status with something else than a status: another program listens there")]
    Foreign { address: String },
}

/// Runs the command. Exits with 0 when the agent is ready, 1 when it is not, 2 when it cannot be asked.
pub(crate) fn execute(args: Args) -> anyhow::Result<ExitCode> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let body = runtime.block_on(async {
        match tokio::time::timeout(LIMIT, ask(&args.admin)).await {
            Ok(answer) => answer,
            Err(_) => Err(AskError::Silent { address: args.admin.clone() }),
        }
    })?;
    let (status, json) = read(&args.admin, &body)?;
    match args.output {
        Output::Text => print(&text::for_a_person(&status))?,
        Output::Json => print(&(serde_json::to_string_pretty(&json)? + "\n"))?,
    }
    Ok(ExitCode::from(u8::from(!status.ready)))
}

/// The status, and all that the agent said, which may be more than this version knows.
fn read(address: &str, body: &[u8]) -> Result<(Status, Value), AskError> {
    let foreign = |_| AskError::Foreign { address: address.to_owned() };
    let json: Value = serde_json::from_slice(body).map_err(foreign)?;
    // Every field has a default, so that any object would do; an agent always says these.
    let is_status = json.get("node").is_some_and(Value::is_string) && json.get("ready").is_some();
    if !is_status {
        return Err(AskError::Foreign { address: address.to_owned() });
    }
    let status = serde_json::from_value(json.clone()).map_err(foreign)?;
    Ok((status, json))
}

async fn ask(address: &str) -> Result<Bytes, AskError> {
    let port = address.rsplit_once(':').and_then(|(_, port)| port.parse::<u16>().ok());
    if port.is_none_or(|port| port == 0) {
        return Err(AskError::Address { address: address.to_owned() });
    }
    let unreachable = |cause| AskError::Unreachable { address: address.to_owned(), cause };
    let stream = TcpStream::connect(address).await.map_err(unreachable)?;
    let broken = |cause: Box<dyn std::error::Error + Send + Sync>| AskError::Broken {
        address: address.to_owned(),
        cause,
    };
    let (mut sender, connection) =
        http1::handshake(TokioIo::new(stream)).await.map_err(|error| broken(error.into()))?;
    let connection = tokio::spawn(connection);
    let request = Request::get("/status")
        .header(HOST, address)
        .header(CONNECTION, "close")
        .body(Empty::<Bytes>::new())
        .map_err(|_| AskError::Address { address: address.to_owned() })?;
    let answer = sender.send_request(request).await.map_err(|error| broken(error.into()))?;
    if answer.status() != StatusCode::OK {
        return Err(AskError::Unknown { address: address.to_owned(), code: answer.status().as_u16() });
    }
    let body = Limited::new(answer.into_body(), MAX_BODY).collect().await.map_err(broken)?;
    connection.abort();
    Ok(body.to_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_of_another_version_is_read_and_shown_whole() {
        let (status, json) = read("a:1", br#"{"node":"n","ready":true,"tomorrow":{"x":1}}"#).unwrap();
        assert!(status.ready && status.snapshot.is_none());
        assert_eq!(json["tomorrow"]["x"], 1);
    }

    #[test]
    fn what_is_no_status_is_not_taken_for_one() {
        for body in
            ["", "<html>", "[]", "{}", "null", r#"{"node":1,"ready":true}"#, r#"{"node":"n","ready":7}"#]
        {
            assert!(matches!(read("a:1", body.as_bytes()), Err(AskError::Foreign { .. })), "{body}");
        }
    }
}
