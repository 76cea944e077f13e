//! A plain client of the session: sends the frames it is told to, shows the frames it gets.

use std::time::Duration;

use otonix_proto::v1::agent_link_client::AgentLinkClient;
use otonix_proto::v1::{
    Ack, Action, Command, Down, Event, Events, GoAway, Heartbeat, Hello, Standing, Up, Usage,
};
use otonix_proto::v1::{Pong, Welcome, down, event, up};
use prost_types::Timestamp;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Request, Status, Streaming};
use uuid::Uuid;

use super::calls::Agent;
use super::server::Server;

/// Longest that the server may take to say something.
const PATIENCE: Duration = Duration::from_secs(15);

/// One session of an agent.
#[derive(Debug)]
pub struct Link {
    up: mpsc::Sender<Up>,
    down: Streaming<Down>,
}

/// A way to the server.
pub async fn channel(server: &Server) -> Channel {
    let endpoint = Endpoint::from_shared(format!("http://{}", server.addr)).expect("an address");
    endpoint.connect().await.expect("the server listens")
}

/// The first frame of a spool that has given no number yet.
pub fn hello(agent: &Agent) -> Hello {
    Hello {
        agent_id: agent.id.clone(),
        boot_id: "boot-1".to_owned(),
        machine_id: "machine-1".to_owned(),
        epoch: "epoch-1".to_owned(),
        next_seq: 1,
        ..Hello::default()
    }
}

/// The id of a test's event: made of its number, the same at every sending.
pub fn event_id(seq: u64) -> String {
    Uuid::from_u128(0x0190_0000_0000_7000_8000_0000_0000_0000 | u128::from(seq)).to_string()
}

/// An action.
pub fn action(seq: u64) -> Event {
    event_of(
        seq,
        event::Body::Action(Action {
            action: format!("did {seq}"),
            category: "system".to_owned(),
            ..Action::default()
        }),
    )
}

/// A model call of a cost.
pub fn usage(seq: u64, cost_micro: i64) -> Event {
    event_of(
        seq,
        event::Body::Usage(Usage {
            model: "m".to_owned(),
            tokens_in: 1,
            tokens_out: 1,
            cost_micro: Some(cost_micro),
            ..Usage::default()
        }),
    )
}

/// An event of any body.
pub fn event_of(seq: u64, body: event::Body) -> Event {
    let now = chrono::Utc::now();
    let at = Timestamp { seconds: now.timestamp(), nanos: 0 };
    Event { seq, id: event_id(seq), at: Some(at), body: Some(body) }
}

impl Link {
    /// Opens a session with a key (or anything else) and a first frame.
    ///
    /// # Errors
    /// When the server refuses it.
    pub async fn try_open(server: &Server, key: Option<&str>, hello: Hello) -> Result<Self, Status> {
        Self::try_open_on(channel(server).await, key, hello, &[]).await
    }

    /// The same with metadata more.
    ///
    /// # Errors
    /// When the server refuses it.
    pub async fn try_open_with(
        server: &Server,
        key: Option<&str>,
        hello: Hello,
        metadata: &[(&'static str, &'static str)],
    ) -> Result<Self, Status> {
        Self::try_open_on(channel(server).await, key, hello, metadata).await
    }

    /// The same over a connection that is there already.
    ///
    /// # Errors
    /// When the server refuses it.
    pub async fn try_open_on(
        channel: Channel,
        key: Option<&str>,
        hello: Hello,
        metadata: &[(&'static str, &'static str)],
    ) -> Result<Self, Status> {
        let (up, frames) = mpsc::channel(64);
        up.send(Up { msg: Some(up::Msg::Hello(hello)) }).await.expect("we hold the other end");
        let mut request = Request::new(ReceiverStream::new(frames));
        if let Some(key) = key {
            request.metadata_mut().insert("x-api-key", key.parse().expect("readable"));
        }
        for (name, value) in metadata {
            request.metadata_mut().append(*name, value.parse().expect("readable"));
        }
        let mut client = AgentLinkClient::new(channel);
        let answer = tokio::time::timeout(PATIENCE, client.session(request));
        let response = answer.await.expect("the server answers in time")?;
        Ok(Self { up, down: response.into_inner() })
    }

    /// Opens a session that must be welcomed.
    pub async fn open(server: &Server, agent: &Agent, hello: Hello) -> (Self, Welcome) {
        let mut link = Self::try_open(server, Some(&agent.key.secret), hello).await.expect("it is let in");
        match link.next().await {
            Some(Ok(down::Msg::Welcome(welcome))) => (link, welcome),
            other => panic!("no welcome: {other:?}"),
        }
    }

    /// Sends a frame; one that the server no longer takes is dropped.
    pub async fn send(&self, msg: up::Msg) {
        self.frame(Up { msg: Some(msg) }).await;
    }

    /// Sends a frame as it is.
    pub async fn frame(&self, frame: Up) {
        let _closed = self.up.send(frame).await;
    }

    pub async fn event(&self, event: Event) {
        self.send(up::Msg::Event(event)).await;
    }

    pub async fn events(&self, events: Vec<Event>) {
        self.send(up::Msg::Events(Events { events })).await;
    }

    pub async fn beat(&self) {
        let beat = Heartbeat { load: 0.5, agent_process: "running".to_owned(), ..Heartbeat::default() };
        self.send(up::Msg::Heartbeat(beat)).await;
    }

    /// The next frame down that is no ping (pings are answered); `None` when the stream has ended.
    pub async fn next(&mut self) -> Option<Result<down::Msg, Status>> {
        loop {
            let frame = tokio::time::timeout(PATIENCE, self.down.message());
            let down = match frame.await.expect("the server says something in time") {
                Ok(Some(down)) => down,
                Ok(None) => return None,
                Err(status) => return Some(Err(status)),
            };
            match down.msg.expect("a frame says something") {
                down::Msg::Ping(ping) => self.send(up::Msg::Pong(Pong { nonce: ping.nonce })).await,
                msg => return Some(Ok(msg)),
            }
        }
    }

    /// Passes over frames until one is what is looked for.
    pub async fn wait_for<T>(&mut self, what: &str, mut pick: impl FnMut(down::Msg) -> Option<T>) -> T {
        loop {
            match self.next().await {
                Some(Ok(msg)) => {
                    if let Some(found) = pick(msg) {
                        return found;
                    }
                }
                other => panic!("the stream ended before {what}: {other:?}"),
            }
        }
    }

    /// Collects acks until everything up to `seq` is committed; the last one.
    pub async fn acked(&mut self, seq: u64) -> Ack {
        let mut rejected = Vec::new();
        let what = format!("the ack of {seq}");
        let mut ack = self
            .wait_for(&what, |msg| match msg {
                down::Msg::Ack(mut ack) => {
                    rejected.append(&mut ack.rejected);
                    (ack.seq >= seq).then_some(ack)
                }
                _ => None,
            })
            .await;
        ack.rejected = rejected;
        ack
    }

    pub async fn ack(&mut self) -> Ack {
        self.wait_for("an ack", |msg| match msg {
            down::Msg::Ack(ack) => Some(ack),
            _ => None,
        })
        .await
    }

    /// The next standing that says what is looked for.
    pub async fn standing(&mut self, pick: impl Fn(&Standing) -> bool) -> Standing {
        self.wait_for("a standing", |msg| match msg {
            down::Msg::Standing(standing) if pick(&standing) => Some(standing),
            _ => None,
        })
        .await
    }

    pub async fn command(&mut self) -> Command {
        self.wait_for("a command", |msg| match msg {
            down::Msg::Command(command) => Some(command),
            _ => None,
        })
        .await
    }

    /// Passes over frames until the server sends us away.
    pub async fn go_away(&mut self) -> GoAway {
        self.wait_for("a go-away", |msg| match msg {
            down::Msg::GoAway(away) => Some(away),
            _ => None,
        })
        .await
    }

    /// Passes over frames until the stream ends; the reasons given.
    pub async fn ended(&mut self) -> Vec<String> {
        let mut reasons = Vec::new();
        loop {
            match self.next().await {
                Some(Ok(down::Msg::GoAway(away))) => reasons.push(away.reason),
                Some(Ok(_)) => {}
                Some(Err(status)) => {
                    let code = match status.code() {
                        Code::Unauthenticated => "unauthenticated".to_owned(),
                        code => format!("{code:?}"),
                    };
                    reasons.push(code);
                    return reasons;
                }
                None => return reasons,
            }
        }
    }
}
