//! Pipes as the buffer of splice(2): socket → pipe → socket without a copy through user space.

use std::io;
use std::os::fd::{AsFd, OwnedFd};

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, SpliceFFlags, fcntl, splice};
use nix::unistd::pipe2;

/// A pipe that is empty, or known to hold `len` bytes.
#[derive(Debug)]
pub(crate) struct Pipe {
    read: OwnedFd,
    write: OwnedFd,
    // Four bytes each: a pipe is a part of every connection's memory, also while there is none.
    capacity: u32,
    len: u32,
}

impl Pipe {
    /// Opens a pipe and grows it towards `wanted` bytes. Over the user's soft limit the kernel answers EPERM
    /// (`fs.pipe-user-pages-soft`, pipe(7)): half is asked for then, down to what it was born with.
    pub(crate) fn open(wanted: usize) -> io::Result<Self> {
        let (read, write) = pipe2(OFlag::O_CLOEXEC | OFlag::O_NONBLOCK)?;
        let mut capacity = u32::try_from(fcntl(&write, FcntlArg::F_GETPIPE_SZ)?).unwrap_or(4_096);
        let mut size = u32::try_from(wanted).unwrap_or(u32::MAX);
        while size > capacity {
            match fcntl(&write, FcntlArg::F_SETPIPE_SZ(i32::try_from(size).unwrap_or(i32::MAX))) {
                Ok(granted) => {
                    capacity = u32::try_from(granted).unwrap_or(capacity);
                    break;
                }
                Err(_) => size /= 2,
            }
        }
        Ok(Self { read, write, capacity, len: 0 })
    }

    /// Bytes waiting in the pipe.
    pub(crate) fn len(&self) -> usize {
        self.len as usize
    }

    /// Moves what `socket` holds, at most a pipe full, into the empty pipe.
    ///
    /// Returns the bytes moved; 0 is the peer's FIN. `WouldBlock` means the socket is drained: the pipe was
    /// empty, so it cannot be the pipe that was full. Source: splice(2).
    pub(crate) fn fill(&mut self, socket: impl AsFd) -> io::Result<usize> {
        assert_eq!(self.len, 0, "splice fills only an empty pipe");
        let flags = SpliceFFlags::SPLICE_F_MOVE | SpliceFFlags::SPLICE_F_NONBLOCK;
        let room = self.capacity as usize;
        let moved = retry(|| splice(socket.as_fd(), None, self.write.as_fd(), None, room, flags))?;
        self.len = u32::try_from(moved).unwrap_or(self.capacity);
        Ok(moved)
    }

    /// Moves what the pipe holds into `socket`, as much as it takes. Returns the bytes moved.
    /// `WouldBlock` means the socket's buffer is full. Source: splice(2).
    pub(crate) fn drain(&mut self, socket: impl AsFd) -> io::Result<usize> {
        let flags = SpliceFFlags::SPLICE_F_MOVE | SpliceFFlags::SPLICE_F_NONBLOCK;
        let held = self.len();
        let moved = retry(|| splice(self.read.as_fd(), None, socket.as_fd(), None, held, flags))?;
        self.len -= u32::try_from(moved).unwrap_or(self.len);
        Ok(moved)
    }
}

fn retry(mut call: impl FnMut() -> nix::Result<usize>) -> io::Result<usize> {
    loop {
        match call() {
            Err(Errno::EINTR) => {}
            other => return Ok(other?),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::net::{TcpListener, TcpStream};

    use super::*;

    fn pair() -> (TcpStream, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let one = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        (one, listener.accept().unwrap().0)
    }

    #[test]
    fn bytes_pass_through_unchanged_and_fin_is_zero() {
        let ((mut source, from), (to, mut sink)) = (pair(), pair());
        let mut pipe = Pipe::open(1 << 16).unwrap();
        source.write_all(b"through the pipe").unwrap();
        assert_eq!(pipe.fill(&from).unwrap(), 16);
        assert_eq!(pipe.drain(&to).unwrap(), 16);
        assert_eq!(pipe.len(), 0);
        let mut seen = [0; 16];
        sink.read_exact(&mut seen).unwrap();
        assert_eq!(&seen, b"through the pipe");
        drop(source);
        assert_eq!(pipe.fill(&from).unwrap(), 0);
    }

    #[test]
    #[should_panic(expected = "splice fills only an empty pipe")]
    fn a_pipe_that_holds_bytes_is_never_filled() {
        let (mut source, from) = pair();
        let mut pipe = Pipe::open(1 << 16).unwrap();
        source.write_all(b"x").unwrap();
        pipe.fill(&from).unwrap();
        let _ = pipe.fill(&from);
    }
}
