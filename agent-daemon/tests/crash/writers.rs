//! Programs on the agent's machine that post what they do, some with an `Idempotency-Key`, whatever happens to the
//! daemon meanwhile.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use serde_json::json;

use crate::books::{Books, Kind, Outcome};
use crate::random::Random;
use crate::support::request;

/// How long a writer keeps asking what became of a post with a key.
const PATIENCE: Duration = Duration::from_secs(120);

/// Posts once.
pub fn post(socket: &Path, kind: Kind, body: &str, key: Option<&str>) -> Outcome {
    let path = match kind {
        Kind::Action => "/v1/actions",
        Kind::Usage => "/v1/usage",
    };
    let headers: Vec<(&str, &str)> = key.iter().map(|key| ("Idempotency-Key", *key)).collect();
    let answer = match request(socket, "POST", path, &headers, body.as_bytes()) {
        Ok(answer) => answer,
        Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused) => {
            return Outcome::Unsent;
        }
        Err(_) => return Outcome::Unanswered,
    };
    match (answer.status, answer.body["id"].as_str()) {
        (202, Some(id)) => Outcome::Accepted(id.to_owned()),
        // The daemon ended while it answered.
        (202, None) | (503, _) => Outcome::Unanswered,
        (507, _) => {
            assert!(["disk_full", "spool_full"].contains(&answer.code()), "{answer:?}");
            Outcome::Refused
        }
        _ => panic!("{answer:?}"),
    }
}

/// The body of a post.
pub fn body(kind: Kind, name: &str, cost: u64, details: usize) -> String {
    match kind {
        Kind::Action => {
            json!({ "action": name, "category": "research", "details": "d".repeat(details) }).to_string()
        }
        Kind::Usage => {
            let cost = format!("{}.{:06}", cost / 1_000_000, cost % 1_000_000);
            json!({ "model": name, "tokensIn": 100, "tokensOut": 10, "cost": cost }).to_string()
        }
    }
}

/// Posts an action without a key and notes it.
pub fn act(books: &Books, socket: &Path, details: usize) -> Outcome {
    let (number, name) = books.draw(Kind::Action, 0);
    let outcome = post(socket, Kind::Action, &body(Kind::Action, &name, 0, details), None);
    books.note(number, outcome.clone());
    outcome
}

/// Posts actions without keys, each of which must be accepted.
pub fn act_times(books: &Books, socket: &Path, times: u64) {
    for _ in 0..times {
        let outcome = act(books, socket, 40);
        assert!(matches!(outcome, Outcome::Accepted(_)), "{outcome:?}");
    }
}

#[derive(Debug, Default)]
struct Flags {
    /// Nothing new is posted.
    finish: AtomicBool,
    /// Nobody waits for an answer any more either.
    abandon: AtomicBool,
}

/// Threads that write.
#[derive(Debug)]
pub struct Writers {
    flags: Arc<Flags>,
    threads: Vec<JoinHandle<()>>,
}

impl Writers {
    /// Starts some, each pausing at most so long between its posts.
    pub fn start(books: &Books, socket: PathBuf, count: u64, pause_ms: u64, random: &mut Random) -> Self {
        let flags = Arc::new(Flags::default());
        let threads = (0..count).map(|_| {
            let writer = Writer {
                books: books.clone(),
                socket: socket.clone(),
                pause_ms,
                random: random.split(),
                flags: Arc::clone(&flags),
            };
            std::thread::spawn(move || writer.work())
        });
        let threads = threads.collect();
        Self { flags, threads }
    }

    /// Ends them; what has a key is asked for until it is answered, so the daemon must be up.
    pub fn finish(mut self) {
        self.flags.finish.store(true, SeqCst);
        for thread in self.threads.drain(..) {
            if let Err(panic) = thread.join() {
                std::panic::resume_unwind(panic);
            }
        }
    }
}

impl Drop for Writers {
    fn drop(&mut self) {
        self.flags.finish.store(true, SeqCst);
        self.flags.abandon.store(true, SeqCst);
    }
}

struct Writer {
    books: Books,
    socket: PathBuf,
    pause_ms: u64,
    random: Random,
    flags: Arc<Flags>,
}

impl Writer {
    fn work(mut self) {
        while !self.flags.finish.load(SeqCst) {
            self.one();
            std::thread::sleep(self.random.millis(0, self.pause_ms.max(1)));
        }
    }

    fn one(&mut self) {
        let kind = if self.random.percent(40) { Kind::Usage } else { Kind::Action };
        let cost = if kind == Kind::Usage { self.random.below(3000) } else { 0 };
        let most = if self.random.percent(2) { 16_000 } else { 400 };
        let details = self.random.below(most);
        let (number, name) = self.books.draw(kind, cost);
        let body = body(kind, &name, cost, usize::try_from(details).unwrap_or(0));
        let key = self.random.percent(50).then(|| format!("key of {name}"));
        let began = Instant::now();
        let mut repeats = 0;
        loop {
            let outcome = post(&self.socket, kind, &body, key.as_deref());
            self.books.note(number, outcome.clone());
            let again = match outcome {
                // A caller who is not sure that it heard asks again.
                Outcome::Accepted(_) => key.is_some() && repeats == 0 && self.random.percent(15),
                Outcome::Refused => false,
                Outcome::Unanswered => key.is_some(),
                Outcome::Unsent => key.is_some() || !self.flags.finish.load(SeqCst),
            };
            if !again || self.flags.abandon.load(SeqCst) {
                return;
            }
            repeats += u64::from(matches!(outcome, Outcome::Accepted(_)));
            assert!(began.elapsed() < PATIENCE, "{name} has had no answer for {PATIENCE:?}");
            std::thread::sleep(self.random.millis(2, 30));
        }
    }
}
