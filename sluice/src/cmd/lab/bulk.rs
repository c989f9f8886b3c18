//! One stream as fast as it goes, for a fixed time.

use std::io::{self, Read, Write};
use std::net::{Shutdown, SocketAddr};
use std::time::{Duration, Instant};

use lab::Netns;

const RUN_TIME: Duration = Duration::from_secs(2);
const ANSWER_LIMIT: Duration = Duration::from_secs(10);
const CHUNK: usize = 256 * 1024;

/// Gigabits per second from `client` to the server at `to`, by the server's count and until its answer.
pub(super) fn gigabits_per_second(client: &Netns, to: SocketAddr) -> io::Result<f64> {
    let mut stream = client.connect(to, ANSWER_LIMIT)?;
    stream.set_write_timeout(Some(ANSWER_LIMIT))?;
    stream.set_read_timeout(Some(ANSWER_LIMIT))?;
    stream.write_all(b"SINK\n")?;
    let chunk = vec![0x5a; CHUNK];
    let start = Instant::now();
    let mut sent = 0_u64;
    while start.elapsed() < RUN_TIME {
        stream.write_all(&chunk)?;
        sent += CHUNK as u64;
    }
    stream.shutdown(Shutdown::Write)?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    let elapsed = start.elapsed();
    if answer.trim_end() != sent.to_string() {
        return Err(io::Error::new(
            io::ErrorKind::InvalidData,
            format!("{sent} bytes sent, the server counted {answer:?}"),
        ));
    }
    #[expect(clippy::cast_precision_loss, reason = "a rate for people, far below 2^52 bits")]
    let bits = (sent * 8) as f64;
    Ok(bits / elapsed.as_secs_f64() / 1e9)
}
