//! The network front: one port for REST over HTTP/1.1, gRPC over HTTP/2 with prior knowledge, and both under TLS.
//!
//! It owns sockets, limits and time: who may connect, how long a head, an idle connection or an unread answer may
//! take, how connections end at a stop. An idle connection holds its socket and a timer, nothing else: hyper's
//! state is built when a whole request head is there and dropped when the answer is out.
//! It knows nothing of routes. Size and time of request bodies are the handlers' business, through [`body::collect`].

pub mod body;
pub mod limits;
pub mod tls;

mod accept;
mod conn;
mod gate;
mod h1;
mod h2;
mod head;
mod io;
mod reply;
mod service;
mod stop;

use std::io::Result;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use tokio::net::{TcpListener, TcpSocket};

pub use self::accept::Front;
pub use self::body::{BodyError, Incoming, collect};
pub use self::limits::{Limits, raise_nofile};
pub use self::service::Service;
pub use self::tls::Tls;

/// Connections that the kernel completes before the server has accepted them.
const BACKLOG: u32 = 4096;

/// Where a request came from; an extension of every request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Peer {
    /// The other end of the connection.
    pub addr: SocketAddr,
    /// The address that the server listens on.
    pub listener: SocketAddr,
    /// Whether the connection is encrypted.
    pub tls: bool,
}

/// What the front counts.
#[derive(Debug, Default)]
pub struct Stats {
    /// Connections open now.
    pub open: AtomicU64,
    /// Connections accepted since the start.
    pub accepted: AtomicU64,
    /// Connections turned away because a limit was reached.
    pub refused: AtomicU64,
    /// Connections closed because a head, a handshake, a read or an answer took too long.
    pub timed_out: AtomicU64,
    /// Heads that were malformed or too large.
    pub malformed: AtomicU64,
    /// Failures of `accept` itself (mostly: no file descriptors left).
    pub accept_errors: AtomicU64,
}

impl Stats {
    fn add(counter: &AtomicU64) {
        counter.fetch_add(1, Ordering::Relaxed);
    }
}

/// Listens on an address. Must be called inside a runtime.
///
/// # Errors
/// What the system says: mostly that the address is taken or not this machine's.
pub fn bind(addr: SocketAddr) -> Result<TcpListener> {
    let socket = if addr.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
    socket.set_reuseaddr(true)?;
    socket.bind(addr)?;
    socket.listen(BACKLOG)
}

/// What all connections of one front share.
pub(crate) struct Shared<S> {
    pub(crate) limits: Limits,
    pub(crate) service: S,
    pub(crate) stats: Arc<Stats>,
    pub(crate) stop: stop::Stop,
    pub(crate) listener: SocketAddr,
    pub(crate) tls: Option<Arc<Tls>>,
    pub(crate) h1: hyper::server::conn::http1::Builder,
    pub(crate) h2: hyper::server::conn::http2::Builder<h2::Streams>,
    /// HTTP/1 connections whose buffers are kept although they are idle, because they are in lively use.
    pub(crate) warm: std::sync::atomic::AtomicUsize,
}
