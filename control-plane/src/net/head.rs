//! The first bytes of a request: which protocol it is, and whether its head is complete.
//!
//! A head is gathered here, in a buffer no larger than what has arrived, and goes to hyper when it is complete:
//! a client that sends a byte now and then costs little more than its socket.

use std::cell::RefCell;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::{Buf as _, BytesMut};
use tokio::io::{AsyncRead, ReadBuf};

use super::io::Stream;

const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
const SCRATCH_BYTES: usize = 16 * 1024;

thread_local! {
    /// Where a thread's connections read to before they know how much there is.
    static SCRATCH: RefCell<Box<[u8]>> = RefCell::new(vec![0; SCRATCH_BYTES].into_boxed_slice());
}

/// What the bytes gathered so far are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Head {
    /// Nothing yet.
    Empty,
    /// The beginning of something.
    Partial,
    /// A complete HTTP/1 head, or what can never become one: hyper says which.
    Http1,
    /// HTTP/2 with prior knowledge.
    Http2,
    /// More than a head may have.
    TooLarge,
}

/// A head being gathered.
#[derive(Debug, Default)]
pub(crate) struct Gather {
    pub(crate) bytes: BytesMut,
    /// Bytes in which no end of the head begins.
    searched: usize,
    first_line_seen: bool,
}

impl Gather {
    pub(crate) fn new(bytes: BytesMut) -> Self {
        Self { bytes, searched: 0, first_line_seen: false }
    }

    /// Looks at what is there.
    pub(crate) fn look(&mut self, max_bytes: usize) -> Head {
        while let Some(b'\r' | b'\n') = self.bytes.first() {
            self.bytes.advance(1);
            self.searched = 0;
        }
        let Some(first) = self.bytes.first() else { return Head::Empty };
        let shared = self.bytes.len().min(PREFACE.len());
        if self.bytes[..shared] == PREFACE[..shared] {
            return if shared == PREFACE.len() { Head::Http2 } else { Head::Partial };
        }
        if !first.is_ascii_graphic() || self.first_line_is_no_request() {
            return Head::Http1;
        }
        match self.end() {
            Some(end) if end <= max_bytes => Head::Http1,
            Some(_) => Head::TooLarge,
            None if self.bytes.len() >= max_bytes => Head::TooLarge,
            None => Head::Partial,
        }
    }

    fn first_line_is_no_request(&mut self) -> bool {
        if self.first_line_seen {
            return false;
        }
        let Some(end) = self.bytes.iter().position(|b| *b == b'\n') else { return false };
        self.first_line_seen = true;
        let line = self.bytes[..end].strip_suffix(b"\r").unwrap_or(&self.bytes[..end]);
        !(line.ends_with(b" HTTP/1.1") || line.ends_with(b" HTTP/1.0"))
    }

    /// Where the head ends: after an empty line, with or without carriage returns.
    fn end(&mut self) -> Option<usize> {
        let mut from = self.searched;
        while let Some(newline) = self.bytes[from..].iter().position(|b| *b == b'\n').map(|at| from + at) {
            match self.bytes.get(newline + 1..) {
                Some([b'\n', ..]) => return Some(newline + 2),
                Some([b'\r', b'\n', ..]) => return Some(newline + 3),
                Some([] | [b'\r']) => {
                    self.searched = newline;
                    return None;
                }
                _ => from = newline + 1,
            }
        }
        self.searched = self.bytes.len();
        None
    }

    /// Reads what has arrived; `Ok(0)` is the end of the stream.
    pub(crate) fn poll_read(&mut self, stream: &mut Stream, cx: &mut Context<'_>) -> Poll<io::Result<usize>> {
        read_with(stream, cx, |bytes| self.bytes.extend_from_slice(bytes))
    }
}

/// Reads and throws away; `Ok(0)` is the end of the stream.
pub(crate) fn poll_discard(stream: &mut Stream, cx: &mut Context<'_>) -> Poll<io::Result<usize>> {
    read_with(stream, cx, |_| ())
}

fn read_with(stream: &mut Stream, cx: &mut Context<'_>, take: impl FnOnce(&[u8])) -> Poll<io::Result<usize>> {
    SCRATCH.with_borrow_mut(|scratch| {
        let mut buf = ReadBuf::new(scratch);
        ready!(Pin::new(stream).poll_read(cx, &mut buf))?;
        take(buf.filled());
        Poll::Ready(Ok(buf.filled().len()))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn look(text: &[u8]) -> Head {
        Gather::new(BytesMut::from(text)).look(64)
    }

    #[test]
    fn a_head_is_complete_at_its_empty_line() {
        assert_eq!(look(b""), Head::Empty);
        assert_eq!(look(b"\r\n\r\n"), Head::Empty);
        assert_eq!(look(b"GET / HTTP/1.1"), Head::Partial);
        assert_eq!(look(b"GET / HTTP/1.1\r\nHost: a\r\n"), Head::Partial);
        assert_eq!(look(b"GET / HTTP/1.1\r\nHost: a\r\n\r"), Head::Partial);
        assert_eq!(look(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"), Head::Http1);
        assert_eq!(look(b"\r\nGET / HTTP/1.0\n\nbody"), Head::Http1);
    }

    #[test]
    fn what_cannot_be_a_request_goes_on_at_once() {
        assert_eq!(look(b"\x16\x03\x01\x02"), Head::Http1);
        assert_eq!(look(b"GET /\r\n"), Head::Http1);
        assert_eq!(look(b"SSH-2.0-OpenSSH\r\n"), Head::Http1);
    }

    #[test]
    fn the_preface_of_http2_is_told_from_methods_that_begin_like_it() {
        assert_eq!(look(b"P"), Head::Partial);
        assert_eq!(look(b"PRI * HTTP/2.0\r\n\r\n"), Head::Partial);
        assert_eq!(look(PREFACE), Head::Http2);
        assert_eq!(look(b"PRI * HTTP/2.0\r\n\r\nXX"), Head::Http1);
        assert_eq!(look(b"PUT / HTTP/1.1\r\n\r\n"), Head::Http1);
    }

    #[test]
    fn a_head_beyond_its_bound_is_too_large_complete_or_not() {
        let mut long = b"GET / HTTP/1.1\r\nx: ".to_vec();
        long.resize(63, b'a');
        assert_eq!(look(&long), Head::Partial);
        long.push(b'a');
        assert_eq!(look(&long), Head::TooLarge);
        long.extend_from_slice(b"\r\n\r\n");
        assert_eq!(look(&long), Head::TooLarge);
    }

    #[test]
    fn every_way_to_cut_a_head_in_two_finds_the_same_end() {
        let whole = b"\r\nPOST /a HTTP/1.1\r\nHost: a\r\nX: b\n\r\n";
        for cut in 0..whole.len() {
            let mut gather = Gather::new(BytesMut::from(&whole[..cut]));
            assert!(matches!(gather.look(64), Head::Empty | Head::Partial), "cut at {cut}");
            gather.bytes.extend_from_slice(&whole[cut..]);
            assert_eq!(gather.look(64), Head::Http1, "cut at {cut}");
        }
    }
}
