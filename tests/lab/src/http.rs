//! The least HTTP client that can read an admin interface: one GET, HTTP/1.0, one answer.

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use crate::netns::Netns;
use crate::wait::patiently;

/// Sends `GET path` from inside `netns`. Returns the status code and the body. `limit` bounds the connection
/// attempt and every read.
pub(crate) fn get(
    netns: &Netns,
    address: SocketAddr,
    path: &str,
    limit: Duration,
) -> io::Result<(u16, String)> {
    let mut stream: TcpStream = netns.connect(address, limit)?;
    stream.set_read_timeout(Some(patiently(limit)))?;
    stream.set_write_timeout(Some(patiently(limit)))?;
    write!(stream, "GET {path} HTTP/1.0\r\nHost: {address}\r\nConnection: close\r\n\r\n")?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    parse(&answer).ok_or_else(|| {
        let start: String = answer.chars().take(80).collect();
        io::Error::new(io::ErrorKind::InvalidData, format!("not an HTTP answer: {start:?}"))
    })
}

fn parse(answer: &str) -> Option<(u16, String)> {
    let (head, body) = answer.split_once("\r\n\r\n")?;
    let status = head.strip_prefix("HTTP/1.")?.split(' ').nth(1)?.get(..3)?.parse().ok()?;
    Some((status, body.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_is_its_status_and_body_and_nothing_else_is_one() {
        let answer = "HTTP/1.1 503 Service Unavailable\r\nContent-Length: 5\r\n\r\nrules";
        assert_eq!(parse(answer), Some((503, "rules".to_owned())));
        assert_eq!(parse("HTTP/1.0 200\r\n\r\n"), Some((200, String::new())));
        for garbage in ["", "HTTP/1.1 200 OK\r\n", "SSH-2.0\r\n\r\n", "HTTP/1.1 x OK\r\n\r\n"] {
            assert_eq!(parse(garbage), None, "{garbage:?}");
        }
    }
}
