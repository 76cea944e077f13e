//! Every bound of the front, with its default, and the process's limit of open files.

use std::net::IpAddr;
use std::time::Duration;

/// File descriptors left for everything that is not a client's connection.
const RESERVED_FILES: u64 = 512;

/// Bounds on connections and on what happens before a request reaches its handler.
#[derive(Debug, Clone)]
pub struct Limits {
    /// From the first byte of a request's head (for a fresh connection: from the connect) to its end.
    pub header_time: Duration,
    /// How long a connection may rest between requests.
    pub idle_time: Duration,
    /// How long a TLS handshake may take.
    pub tls_handshake_time: Duration,
    /// How long an answer may go without the client reading any of it.
    pub write_time: Duration,
    /// How long the server reads on after its last answer, so that the client gets to see it.
    pub linger_time: Duration,
    /// How long a stop waits for requests that are running.
    pub drain_time: Duration,
    /// Open connections in all; further ones are answered 503 and closed.
    pub max_connections: usize,
    /// Open connections of one address (of one /64 for IPv6).
    pub max_connections_per_ip: usize,
    /// Networks, as address and prefix length, to which `max_connections_per_ip` does not apply: trusted proxies.
    /// Loopback never counts.
    pub exempt_networks: Vec<(IpAddr, u8)>,
    /// Size of a request's head.
    pub max_header_bytes: usize,
    /// Lines of a request's head.
    pub max_headers: usize,
    /// Buffer of a running HTTP/1 request or answer.
    pub max_buffer_bytes: usize,
    /// HTTP/1 connections that may keep their buffers between requests that follow each other closely.
    pub max_warm: usize,
    /// Streams at a time on one HTTP/2 connection.
    pub h2_max_streams: u32,
    /// Bytes that a stream's sender may be ahead of its reader.
    pub h2_stream_window: u32,
    /// The same for a whole connection.
    pub h2_connection_window: u32,
    /// Unsent bytes of one stream.
    pub h2_send_buffer: usize,
    /// Size of a request's decoded headers.
    pub h2_max_header_list: u32,
    /// Time between the server's pings; `None` sends none.
    pub h2_keepalive_interval: Option<Duration>,
    /// How long a ping may go unanswered.
    pub h2_keepalive_timeout: Duration,
    /// Streams that a client reset before the server saw them; more end the connection.
    pub h2_max_pending_reset: usize,
    /// Streams that the server reset because of the client's mistakes; more end the connection.
    pub h2_max_error_reset: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            header_time: Duration::from_secs(10),
            idle_time: Duration::from_secs(120),
            tls_handshake_time: Duration::from_secs(10),
            write_time: Duration::from_secs(30),
            linger_time: Duration::from_secs(2),
            drain_time: Duration::from_secs(10),
            max_connections: 65_536,
            max_connections_per_ip: 1_024,
            exempt_networks: Vec::new(),
            max_header_bytes: 32 * 1024,
            max_headers: 100,
            max_buffer_bytes: 64 * 1024,
            max_warm: 1_024,
            h2_max_streams: 1_000,
            h2_stream_window: 128 * 1024,
            h2_connection_window: 256 * 1024,
            h2_send_buffer: 64 * 1024,
            h2_max_header_list: 32 * 1024,
            h2_keepalive_interval: Some(Duration::from_secs(60)),
            h2_keepalive_timeout: Duration::from_secs(20),
            h2_max_pending_reset: 20,
            h2_max_error_reset: 128,
        }
    }
}

impl Limits {
    /// Lowers the number of connections to what the process may open, keeping some files for the rest of it.
    #[must_use]
    pub fn fit(mut self, open_files: u64) -> Self {
        let room = open_files.saturating_sub(RESERVED_FILES).max(open_files / 2).max(1);
        self.max_connections = self.max_connections.min(usize::try_from(room).unwrap_or(usize::MAX));
        self
    }
}

/// Raises the soft limit of open files to the hard one and tells what it is now.
pub fn raise_nofile() -> u64 {
    use rustix::process::{Resource, getrlimit, setrlimit};

    let before = getrlimit(Resource::Nofile);
    let mut wanted = before;
    wanted.current = wanted.maximum;
    if let Err(error) = setrlimit(Resource::Nofile, wanted) {
        tracing::warn!(%error, "the limit of open files stays as it is");
    }
    getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn connections_never_exceed_the_open_files() {
        let fitted = |files| Limits::default().fit(files).max_connections;
        assert_eq!(fitted(1_000_000), 65_536);
        assert_eq!(fitted(20_000), 20_000 - 512);
        assert_eq!(fitted(600), 300);
        assert_eq!(fitted(0), 1);
    }

    #[test]
    fn the_limit_of_open_files_is_the_hard_one_after_raising() {
        let now = raise_nofile();
        let limit = rustix::process::getrlimit(rustix::process::Resource::Nofile);
        assert_eq!(limit.current, limit.maximum);
        assert_eq!(now, limit.current.unwrap_or(u64::MAX));
    }
}
