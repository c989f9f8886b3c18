//! Bytes that tell where they belong: what is lost, repeated or out of order is found at its first byte.

use std::io::{self, Read, Write};
use std::net::TcpStream;

/// A prime, so that no buffer size of anybody divides it.
const PERIOD: usize = 1_048_573;
const CHUNK: usize = 256 << 10;

/// An endless repetition of a long block of noise.
#[derive(Debug)]
pub struct Pattern {
    /// The block, and its beginning once more, so that a chunk can begin anywhere.
    bytes: Vec<u8>,
}

impl Pattern {
    /// Different seeds give different noise.
    pub fn new(seed: u64) -> Self {
        let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
        let mut bytes = Vec::with_capacity(PERIOD + CHUNK + 8);
        while bytes.len() < PERIOD {
            // Marsaglia's xorshift64.
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            bytes.extend_from_slice(&state.to_le_bytes());
        }
        bytes.truncate(PERIOD);
        bytes.extend_from_within(..CHUNK);
        Self { bytes }
    }

    /// What comes after the first `at` bytes; 256 KiB of it.
    pub fn chunk_at(&self, at: u64) -> &[u8] {
        let start = usize::try_from(at % PERIOD as u64).unwrap_or_default();
        &self.bytes[start..start + CHUNK]
    }

    /// Writes `total` bytes, from `from` on.
    pub fn send(&self, mut stream: &TcpStream, from: u64, total: u64) -> io::Result<()> {
        let mut sent = 0;
        while sent < total {
            let chunk = self.chunk_at(from + sent);
            let wanted = usize::try_from(total - sent).unwrap_or(usize::MAX).min(CHUNK);
            sent += stream.write(&chunk[..wanted])? as u64;
        }
        Ok(())
    }

    /// Reads `total` bytes and compares them with the pattern from `from` on. A byte that differs is an error
    /// that says where; so is an end that comes too early.
    pub fn receive(&self, mut stream: &TcpStream, from: u64, total: u64) -> io::Result<()> {
        let (mut read, mut buffer) = (0, vec![0; CHUNK]);
        while read < total {
            let wanted = usize::try_from(total - read).unwrap_or(usize::MAX).min(CHUNK);
            let count = stream.read(&mut buffer[..wanted])?;
            if count == 0 {
                return Err(io::Error::new(io::ErrorKind::UnexpectedEof, format!("FIN after {read} bytes")));
            }
            let expected = &self.chunk_at(from + read)[..count];
            if buffer[..count] != *expected {
                let wrong = expected.iter().zip(&buffer).position(|(expected, seen)| expected != seen);
                let at = read + wrong.unwrap_or_default() as u64;
                return Err(io::Error::new(
                    io::ErrorKind::InvalidData,
                    format!("byte {at} is not what was sent"),
                ));
            }
            read += count as u64;
        }
        Ok(())
    }
}
