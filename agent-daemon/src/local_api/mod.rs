//! What the agent's process may call, over a unix socket: HTTP/1.1 and JSON.
//!
//! Only root, the daemon's user and the agent's user are served. Connections, heads, bodies and open event streams
//! are bounded. What it accepts is on disk before it answers.

mod children;
mod connection;
mod events;
pub mod pay;
pub(crate) mod problem;
mod records;
mod refusals;
mod routes;
mod seats;

use std::fs;
use std::io;
use std::os::unix::fs::{FileTypeExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, bail};
use tokio::net::UnixListener;
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;

use self::seats::Seats;
use crate::accounts::Account;
use crate::shared::Shared;

/// The name of the socket in the state directory.
pub const SOCKET: &str = "agent.sock";
/// Connections told at a time that there is no place for them; more are closed.
const MAX_DISMISSED: usize = 32;
/// Longest path that the kernel takes for a socket.
const MAX_SOCKET_PATH: usize = 107;

/// Who is served besides root and the daemon's own user.
#[derive(Debug, Clone, Copy)]
struct Peers {
    own: u32,
    agent: Option<u32>,
}

impl Peers {
    const fn allow(self, uid: u32) -> bool {
        uid == 0 || uid == self.own || matches!(self.agent, Some(agent) if agent == uid)
    }
}

/// Who asks, by the kernel's word.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Peer {
    /// Its process.
    pub pid: Option<i32>,
    /// It has the agent's own user id, which is not the daemon's.
    pub is_agent: bool,
}

/// A bound socket, not yet served.
#[derive(Debug)]
pub struct LocalApi {
    listener: UnixListener,
    path: PathBuf,
    peers: Peers,
}

/// Whether a socket is there already.
///
/// # Errors
/// A sentence for people when none can be bound there.
pub fn check_path(path: &Path) -> anyhow::Result<bool> {
    if path.as_os_str().len() > MAX_SOCKET_PATH {
        bail!("{} is too long for a socket; use a shorter --state-dir", path.display());
    }
    match fs::symlink_metadata(path) {
        Ok(found) if found.file_type().is_socket() => Ok(true),
        Ok(_) => bail!("{} is in the way: it is not a socket", path.display()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(error).with_context(|| format!("failed to look at {}", path.display())),
    }
}

impl LocalApi {
    /// Binds the socket, in place of one that an earlier life left. Call it while holding the state directory's lock.
    ///
    /// # Errors
    /// A sentence for people: the path is too long, is something else than a socket, or cannot be written.
    pub fn bind(path: &Path, account: Option<&Account>) -> anyhow::Result<Self> {
        if check_path(path)? {
            fs::remove_file(path).with_context(|| format!("failed to replace {}", path.display()))?;
        }
        // The umask of the daemon leaves it to its owner until its group is set.
        let listener =
            UnixListener::bind(path).with_context(|| format!("failed to bind {}", path.display()))?;
        if let Some(account) = account {
            std::os::unix::fs::chown(path, None, Some(account.gid))
                .with_context(|| format!("failed to give {} to the agent's group", path.display()))?;
        }
        fs::set_permissions(path, fs::Permissions::from_mode(0o660))?;
        let own = rustix::process::getuid().as_raw();
        let peers = Peers { own, agent: account.map(|account| account.uid) };
        Ok(Self { listener, path: path.to_owned(), peers })
    }

    /// Serves until it is cancelled; then no new request is taken and the socket is removed.
    pub async fn serve(self, shared: Shared, cancel: CancellationToken) {
        let router = routes::router(shared, cancel.clone());
        let stranger = routes::stranger();
        let (seats, full) = (Seats::default(), routes::full());
        let dismissals = Arc::new(Semaphore::new(MAX_DISMISSED));
        loop {
            let accepted = tokio::select! {
                () = cancel.cancelled() => break,
                accepted = self.listener.accept() => accepted,
            };
            let stream = match accepted {
                Ok((stream, _)) => stream,
                Err(error) => {
                    tracing::warn!(%error, "failed to accept a local connection");
                    tokio::time::sleep(Duration::from_millis(100)).await;
                    continue;
                }
            };
            let credentials = stream.peer_cred().ok();
            let Some(seat) = seats.take(credentials.and_then(|credentials| credentials.pid())) else {
                if let Ok(place) = Arc::clone(&dismissals).try_acquire_owned() {
                    let dismissed = connection::dismiss(stream, full.clone());
                    tokio::spawn(async move {
                        dismissed.await;
                        drop(place);
                    });
                }
                continue;
            };
            let router = match credentials.filter(|peer| self.peers.allow(peer.uid())) {
                Some(credentials) => {
                    let is_agent = self.peers.agent == Some(credentials.uid());
                    router.clone().layer(axum::Extension(Peer { pid: credentials.pid(), is_agent }))
                }
                None => stranger.clone(),
            };
            tokio::spawn(connection::serve(stream, router, seat, cancel.clone()));
        }
        // It may have been removed by hand.
        let _ = fs::remove_file(&self.path);
    }
}
