//! The socket as hyper sees it, and what is known about the connection from watching it.
//!
//! hyper does not tell when a connection is idle, or why it writes. [`Track`] gathers it from three sides: the
//! service (requests begun and answered), the bodies (read to their end or not) and the socket (flushed, blocked).

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU32, Ordering};
use std::task::{Context, Poll, ready};

use bytes::{Buf as _, Bytes};
use parking_lot::Mutex;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio_rustls::server::TlsStream;

use super::{Peer, reply};

/// All written bytes have reached the kernel.
const FLUSHED: u8 = 1;
/// The last read found nothing.
const READ_BLOCKED: u8 = 2;
/// The last write found no room.
const WRITE_BLOCKED: u8 = 4;
/// The server has said its last word.
const SHUT: u8 = 8;
/// The client has said its last word.
const EOF: u8 = 16;
/// An answer of hyper's own was sent instead of a handler's.
const REFUSED: u8 = 32;

/// What is going on in one connection. The flags are written by the connection's own task only.
#[derive(Debug)]
pub(crate) struct Track {
    pub(crate) peer: Peer,
    begun: AtomicU32,
    running: AtomicU32,
    body_open: AtomicBool,
    flags: AtomicU8,
    written: AtomicU32,
    unread: Mutex<Option<hyper::body::Incoming>>,
}

impl Track {
    pub(crate) fn new(peer: Peer) -> Self {
        Self {
            peer,
            begun: AtomicU32::new(0),
            running: AtomicU32::new(0),
            body_open: AtomicBool::new(false),
            flags: AtomicU8::new(FLUSHED),
            written: AtomicU32::new(0),
            unread: Mutex::new(None),
        }
    }

    /// A request has arrived; `body` tells whether it has one.
    pub(crate) fn begin(&self, body: bool) {
        self.body_open.store(body, Ordering::Release);
        self.begun.fetch_add(1, Ordering::Relaxed);
        self.running.fetch_add(1, Ordering::Relaxed);
    }

    /// An answer has been given to hyper to its end, or given up.
    pub(crate) fn end(&self) {
        if self.body_open.load(Ordering::Acquire) {
            self.unread();
        }
        self.running.fetch_sub(1, Ordering::Release);
    }

    /// The request's body has been read to its end.
    pub(crate) fn body_read(&self) {
        self.body_open.store(false, Ordering::Release);
    }

    /// A handler has no use for the rest of the request's body.
    pub(crate) fn leave_unread(&self, body: hyper::body::Incoming) {
        if self.running() > 0 {
            *self.unread.lock() = Some(body);
        }
    }

    /// The body that the handler left, or the rest of it.
    pub(crate) fn unread(&self) -> Option<hyper::body::Incoming> {
        self.unread.lock().take()
    }

    /// Requests since the connection began (it may wrap).
    pub(crate) fn begun(&self) -> u32 {
        self.begun.load(Ordering::Relaxed)
    }

    /// Requests without a complete answer.
    pub(crate) fn running(&self) -> u32 {
        self.running.load(Ordering::Acquire)
    }

    /// Whether everything asked is answered and sent and nothing is left to read, so that hyper's state of an
    /// HTTP/1 connection can be thrown away without losing anything.
    pub(crate) fn at_rest(&self) -> bool {
        let flags = self.flags.load(Ordering::Relaxed);
        flags & (FLUSHED | READ_BLOCKED) == FLUSHED | READ_BLOCKED
            && flags & (SHUT | EOF | REFUSED) == 0
            && self.running() == 0
            && !self.body_open.load(Ordering::Acquire)
    }

    pub(crate) fn write_blocked(&self) -> bool {
        self.has(WRITE_BLOCKED)
    }

    /// Changes whenever the client took bytes.
    pub(crate) fn written(&self) -> u32 {
        self.written.load(Ordering::Relaxed)
    }

    pub(crate) fn eof(&self) -> bool {
        self.has(EOF)
    }

    /// Whether hyper answered by itself, because of a malformed head.
    pub(crate) fn refused(&self) -> bool {
        self.has(REFUSED)
    }

    fn has(&self, flag: u8) -> bool {
        self.flags.load(Ordering::Relaxed) & flag != 0
    }

    fn change(&self, set: u8, clear: u8) {
        let flags = self.flags.load(Ordering::Relaxed);
        self.flags.store((flags & !clear) | set, Ordering::Relaxed);
    }
}

/// A client's connection, plain or encrypted.
pub(crate) enum Stream {
    Plain(TcpStream),
    Tls(Box<TlsStream<TcpStream>>),
}

macro_rules! either {
    ($stream:expr, |$inner:ident| $do:expr) => {
        match $stream {
            Stream::Plain(stream) => {
                let $inner = Pin::new(stream);
                $do
            }
            Stream::Tls(stream) => {
                let $inner = Pin::new(&mut **stream);
                $do
            }
        }
    };
}

impl AsyncRead for Stream {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        either!(self.get_mut(), |s| s.poll_read(cx, buf))
    }
}

impl AsyncWrite for Stream {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        either!(self.get_mut(), |s| s.poll_write(cx, buf))
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        either!(self.get_mut(), |s| s.poll_write_vectored(cx, bufs))
    }

    fn is_write_vectored(&self) -> bool {
        match self {
            Self::Plain(stream) => stream.is_write_vectored(),
            Self::Tls(stream) => stream.is_write_vectored(),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        either!(self.get_mut(), |s| s.poll_flush(cx))
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        either!(self.get_mut(), |s| s.poll_shutdown(cx))
    }
}

/// A [`Stream`] that begins with bytes already read and reports to a [`Track`].
pub(crate) struct Watched<'t> {
    stream: Stream,
    prefix: Bytes,
    track: &'t Track,
    /// Requests begun when the connection was last seen at rest.
    settled: u32,
    instead: Option<Instead>,
}

/// An answer in the contract's form, sent in place of hyper's bare one.
struct Instead {
    bytes: Bytes,
    replaces: usize,
}

impl<'t> Watched<'t> {
    pub(crate) fn new(stream: Stream, prefix: Bytes, track: &'t Track) -> Self {
        track.change(FLUSHED, READ_BLOCKED | WRITE_BLOCKED);
        Self { stream, prefix, track, settled: track.begun(), instead: None }
    }

    pub(crate) fn into_inner(self) -> (Stream, Bytes) {
        (self.stream, self.prefix)
    }

    /// hyper writes while no request is there to be answered: it refuses a head.
    fn refuses(&self, bytes: &[u8]) -> bool {
        self.track.has(FLUSHED)
            && self.track.running() == 0
            && self.track.begun() == self.settled
            && bytes.starts_with(b"HTTP/1.")
    }

    fn poll_instead(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<usize>> {
        while let Some(instead) = &mut self.instead {
            if instead.bytes.is_empty() {
                let done = instead.replaces;
                self.instead = None;
                return Poll::Ready(Ok(done));
            }
            let n = ready!(Pin::new(&mut self.stream).poll_write(cx, &instead.bytes))?;
            if n == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            instead.bytes.advance(n);
        }
        Poll::Ready(Ok(0))
    }

    fn write_with(
        &mut self,
        cx: &mut Context<'_>,
        first: &[u8],
        len: usize,
        write: impl FnOnce(Pin<&mut Stream>, &mut Context<'_>) -> Poll<io::Result<usize>>,
    ) -> Poll<io::Result<usize>> {
        if self.instead.is_none() && self.refuses(first) {
            self.track.change(REFUSED, 0);
            self.instead = Some(Instead { bytes: reply::refusal(first), replaces: len });
        }
        self.track.change(0, FLUSHED | READ_BLOCKED);
        let written = if self.instead.is_some() {
            self.poll_instead(cx)
        } else {
            write(Pin::new(&mut self.stream), cx)
        };
        match &written {
            Poll::Ready(_) => {
                self.track.written.fetch_add(1, Ordering::Relaxed);
                self.track.change(0, WRITE_BLOCKED);
            }
            Poll::Pending => self.track.change(WRITE_BLOCKED, 0),
        }
        written
    }
}

impl AsyncRead for Watched<'_> {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let me = self.get_mut();
        if !me.prefix.is_empty() {
            let n = me.prefix.len().min(buf.remaining());
            buf.put_slice(&me.prefix.split_to(n));
            if me.prefix.is_empty() {
                me.prefix = Bytes::new();
            }
            me.track.change(0, READ_BLOCKED);
            return Poll::Ready(Ok(()));
        }
        let before = buf.filled().len();
        let read = Pin::new(&mut me.stream).poll_read(cx, buf);
        match &read {
            Poll::Pending => me.track.change(READ_BLOCKED, 0),
            Poll::Ready(Ok(())) if buf.filled().len() > before => me.track.change(0, READ_BLOCKED),
            Poll::Ready(_) => me.track.change(EOF, READ_BLOCKED),
        }
        read
    }
}

impl AsyncWrite for Watched<'_> {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        self.get_mut().write_with(cx, buf, buf.len(), |stream, cx| stream.poll_write(cx, buf))
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let first = bufs.iter().find(|buf| !buf.is_empty()).map_or(&[][..], |buf| &buf[..]);
        let len = bufs.iter().map(|buf| buf.len()).sum();
        self.get_mut().write_with(cx, first, len, |stream, cx| stream.poll_write_vectored(cx, bufs))
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let me = self.get_mut();
        let flushed = Pin::new(&mut me.stream).poll_flush(cx);
        match &flushed {
            Poll::Ready(_) => {
                me.track.change(FLUSHED, WRITE_BLOCKED);
                if me.track.running() == 0 {
                    me.settled = me.track.begun();
                }
            }
            Poll::Pending => me.track.change(WRITE_BLOCKED, FLUSHED),
        }
        flushed
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let me = self.get_mut();
        me.track.change(SHUT, 0);
        Pin::new(&mut me.stream).poll_shutdown(cx)
    }
}
