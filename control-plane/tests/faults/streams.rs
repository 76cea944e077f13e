//! Agents on the session that send events, remember what was acknowledged, and afterwards hold the server to it.

use std::net::SocketAddr;
use std::time::Duration;

use otonix_proto::v1::{Event, Hello, down};
use rand::Rng as _;
use rand::rngs::StdRng;
use tokio_util::sync::CancellationToken;
use tonic::transport::Endpoint;

use crate::support::link::{Link, action, event_id, hello, usage};
use crate::support::{Agent, Server};

use super::load::Stored;

/// Events that may be sent ahead of their acknowledgement.
const AHEAD: u64 = 200;
/// Events of one frame.
const FRAME: u64 = 20;

/// One agent's spool.
#[derive(Debug, Clone)]
pub struct Streamer {
    pub agent: Agent,
    /// Numbers given out so far.
    pub sent: u64,
    /// Acknowledged up to here.
    pub acked: u64,
    /// Sessions that were welcomed.
    pub sessions: usize,
    addr: SocketAddr,
    chance: StdRng,
    costs: Vec<Option<i64>>,
}

/// Why a session ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum End {
    /// The server is gone, or closed the stream.
    Lost,
    /// It sent us away.
    Away(String),
    /// We were told to stop.
    Stopped,
}

impl Streamer {
    /// A spool of an agent that has sent nothing.
    pub fn new(server: &Server, agent: &Agent, chance: StdRng) -> Self {
        let agent = agent.clone();
        Self { agent, sent: 0, acked: 0, sessions: 0, addr: server.addr, chance, costs: Vec::new() }
    }

    fn event(&mut self, seq: u64) -> Event {
        let at = usize::try_from(seq - 1).expect("small");
        if at == self.costs.len() {
            let cost = self.chance.random_bool(0.5).then(|| self.chance.random_range(0..10_000));
            self.costs.push(cost);
        }
        match self.costs[at] {
            Some(cost) => usage(seq, cost),
            None => action(seq),
        }
    }

    async fn open(&mut self) -> Result<Link, End> {
        let endpoint = Endpoint::from_shared(format!("http://{}", self.addr)).expect("an address");
        let channel = endpoint.connect().await.map_err(|_| End::Lost)?;
        let last_event_id = if self.sent == 0 { String::new() } else { event_id(self.sent) };
        let first = Hello { next_seq: self.sent + 1, last_event_id, ..hello(&self.agent) };
        let link = Link::try_open_on(channel, Some(&self.agent.key.secret), first, &[]).await;
        let mut link = link.map_err(|status| match status.code() {
            // Where the key is not known yet it is looked up in the database, which may be away.
            tonic::Code::Unavailable | tonic::Code::Unknown | tonic::Code::Cancelled => End::Lost,
            _ => panic!("refused: {status:?}"),
        })?;
        match link.next().await {
            Some(Ok(down::Msg::Welcome(welcome))) => {
                assert!(welcome.acked_seq >= self.acked, "acked {}: {welcome:?}", self.acked);
                assert!(welcome.acked_seq <= self.sent, "sent {}: {welcome:?}", self.sent);
                if welcome.acked_seq > 0 {
                    assert_eq!(welcome.acked_event_id, event_id(welcome.acked_seq));
                }
                self.acked = welcome.acked_seq;
                self.sessions += 1;
                Ok(link)
            }
            Some(Ok(down::Msg::GoAway(away))) => Err(End::Away(away.reason)),
            Some(Ok(other)) => panic!("{other:?} before the welcome"),
            None | Some(Err(_)) => Err(End::Lost),
        }
    }

    async fn send(&mut self, link: &Link, first: u64, last: u64) {
        let mut from = first;
        while from <= last {
            let to = last.min(from + FRAME - 1);
            let events = (from..=to).map(|seq| self.event(seq)).collect();
            link.events(events).await;
            from = to + 1;
        }
        self.sent = self.sent.max(last);
    }

    async fn hear(&mut self, link: &mut Link) -> Result<(), End> {
        match link.next().await {
            Some(Ok(down::Msg::Ack(ack))) => {
                assert!(ack.seq <= self.sent, "sent {}: {ack:?}", self.sent);
                assert!(ack.rejected.is_empty(), "{ack:?}");
                assert_eq!(ack.resend_from, 0, "there was no gap: {ack:?}");
                self.acked = self.acked.max(ack.seq);
                Ok(())
            }
            Some(Ok(down::Msg::GoAway(away))) => Err(End::Away(away.reason)),
            Some(Ok(_)) => Ok(()),
            None | Some(Err(_)) => Err(End::Lost),
        }
    }

    /// One session: what was not acknowledged again, then new events until it ends.
    async fn session(&mut self, stop: &CancellationToken) -> End {
        let mut link = match self.open().await {
            Ok(link) => link,
            Err(end) => return end,
        };
        self.send(&link, self.acked + 1, self.sent).await;
        while !stop.is_cancelled() {
            let more = self.sent + self.chance.random_range(1..60);
            self.send(&link, self.sent + 1, more).await;
            while self.acked + AHEAD < self.sent {
                if let Err(end) = self.hear(&mut link).await {
                    return end;
                }
            }
            tokio::task::yield_now().await;
        }
        End::Stopped
    }

    /// Sends until the server is gone.
    pub async fn until_lost(mut self) -> Self {
        let never = CancellationToken::new();
        let end = self.session(&never).await;
        assert_eq!(end, End::Lost);
        self
    }

    /// Sends until told to stop, whatever happens; it comes back each time.
    pub async fn until_stopped(mut self, stop: CancellationToken) -> Self {
        while !stop.is_cancelled() {
            match self.session(&stop).await {
                End::Stopped => break,
                End::Away(reason) if reason != "overloaded" => panic!("sent away: {reason}"),
                End::Lost | End::Away(_) => tokio::time::sleep(Duration::from_millis(50)).await,
            }
        }
        self
    }

    /// Comes back until everything sent is acknowledged.
    pub async fn settle(&mut self) {
        for _ in 0..200 {
            if let Ok(mut link) = self.open().await {
                self.send(&link, self.acked + 1, self.sent).await;
                while self.acked < self.sent && self.hear(&mut link).await.is_ok() {}
                if self.acked == self.sent {
                    return;
                }
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        panic!("acknowledged {} of {}", self.acked, self.sent);
    }

    /// Every acknowledged event is there once; of the others a part without gaps; nothing else.
    pub async fn verify(&self, server: &Server) {
        let stored = Stored::read(server, &self.agent).await;
        let mut there = vec![0_usize; self.costs.len()];
        let ids = stored.actions.iter().chain(&stored.usage).filter_map(|row| row["id"].as_str());
        for seq in ids.filter_map(number_of) {
            let at = usize::try_from(seq - 1).expect("small");
            *there.get_mut(at).unwrap_or_else(|| panic!("event {seq} was never sent")) += 1;
        }
        let acked = usize::try_from(self.acked).expect("small");
        for (at, count) in there.iter().enumerate() {
            let right = if at < acked { *count == 1 } else { *count <= 1 };
            assert!(right, "event {} is there {count} times; acknowledged: {acked}", at + 1);
        }
        let stored_up_to = there.iter().take_while(|count| **count == 1).count();
        assert_eq!(there.iter().sum::<usize>(), stored_up_to, "no gap");
        let spent: i64 = self.costs.iter().take(stored_up_to).flatten().sum();
        let by_rows: i64 = stored.usage.iter().filter_map(|row| row["cost"].as_f64()).map(to_micros).sum();
        assert_eq!(spent, by_rows);
        stored.check_books();
    }
}

fn to_micros(usdc: f64) -> i64 {
    (usdc * 1e6).round() as i64
}

/// The number in a test's event id.
fn number_of(id: &str) -> Option<u64> {
    let id = uuid::Uuid::parse_str(id).ok()?.as_u128();
    let base = uuid::Uuid::parse_str(&event_id(0)).ok()?.as_u128();
    (id >> 64 == base >> 64 && id >> 48 == base >> 48).then_some(())?;
    u64::try_from(id - base).ok().filter(|seq| *seq > 0)
}
