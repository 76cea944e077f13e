//! A network between a daemon and its server: one address that lasts, behind it delays, cuts at any byte, and
//! answers that are lost on their way.

use std::io::{self, Read as _, Write as _};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::SeqCst};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crate::random::Random;

/// How often a connection looks whether its time has come.
const LOOK: Duration = Duration::from_millis(10);

/// What the network did.
#[derive(Debug, Default)]
pub struct Counts {
    pub connections: AtomicU64,
    pub cuts: AtomicU64,
    /// Bytes of answers that never arrived.
    pub lost: AtomicU64,
}

#[derive(Debug)]
struct State {
    /// Where the server is; none while it is out of reach.
    target: Mutex<Option<String>>,
    faulty: AtomicBool,
    ended: AtomicBool,
    /// Connections of an earlier age are cut.
    age: AtomicU64,
    random: Mutex<Random>,
    counts: Counts,
}

/// The network.
#[derive(Debug)]
pub struct Proxy {
    address: String,
    state: Arc<State>,
    accepting: Option<JoinHandle<()>>,
}

/// What will happen to a connection.
#[derive(Debug, Clone, Copy, Default)]
struct Fate {
    /// Cut by then.
    cut_at: Option<Instant>,
    /// From then on the server's answers are lost, while it goes on hearing the daemon.
    lose_from: Option<Instant>,
    /// Cut after so many bytes of answers, wherever in a message that is.
    cut_after: Option<u64>,
    /// Longest delay of a part.
    delay_ms: u64,
}

impl Fate {
    fn draw(random: &mut Random) -> Self {
        let now = Instant::now();
        let mut fate = Self::default();
        match random.below(10) {
            0..4 => fate.cut_at = Some(now + random.millis(20, 2500)),
            4..7 => {
                let from = now + random.millis(10, 1500);
                fate.lose_from = Some(from);
                fate.cut_at = Some(from + random.millis(20, 700));
            }
            7 => fate.cut_after = Some(random.below(3000)),
            _ => {}
        }
        if random.percent(40) {
            fate.delay_ms = 1 + random.below(60);
        }
        fate
    }
}

impl Proxy {
    /// A network on a free port, sound, with no server behind it.
    pub fn start(random: Random) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let address = listener.local_addr().expect("an address").to_string();
        let state = Arc::new(State {
            target: Mutex::new(None),
            faulty: AtomicBool::new(false),
            ended: AtomicBool::new(false),
            age: AtomicU64::new(0),
            random: Mutex::new(random),
            counts: Counts::default(),
        });
        let shared = Arc::clone(&state);
        let accepting = std::thread::spawn(move || accept(&listener, &shared));
        Self { address, state, accepting: Some(accepting) }
    }

    /// What a daemon is told.
    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Puts a server behind it, or nothing.
    pub fn aim(&self, target: Option<&str>) {
        *self.state.target.lock().unwrap_or_else(PoisonError::into_inner) = target.map(str::to_owned);
    }

    /// Cuts every connection; from now on connections fare well or badly.
    pub fn faults(&self, faulty: bool) {
        self.state.faulty.store(faulty, SeqCst);
        self.cut();
    }

    /// Cuts every connection.
    pub fn cut(&self) {
        self.state.age.fetch_add(1, SeqCst);
    }

    /// What it did so far.
    pub fn counts(&self) -> &Counts {
        &self.state.counts
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.state.ended.store(true, SeqCst);
        self.cut();
        // Wakes the thread that accepts.
        let _ = TcpStream::connect(&self.address);
        if let Some(accepting) = self.accepting.take() {
            let _ = accepting.join();
        }
    }
}

fn accept(listener: &TcpListener, state: &Arc<State>) {
    while let Ok((daemon, _)) = listener.accept() {
        if state.ended.load(SeqCst) {
            return;
        }
        let target = state.target.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let Some(server) = target.and_then(|target| TcpStream::connect(target).ok()) else { continue };
        state.counts.connections.fetch_add(1, SeqCst);
        let faulty = state.faulty.load(SeqCst);
        let mut random = state.random.lock().unwrap_or_else(PoisonError::into_inner).split();
        let fate = if faulty { Fate::draw(&mut random) } else { Fate::default() };
        let age = state.age.load(SeqCst);
        let (Ok(daemon_too), Ok(server_too)) = (daemon.try_clone(), server.try_clone()) else { continue };
        let line = Line { state: Arc::clone(state), age, fate, random: random.split() };
        let back = Line { state: Arc::clone(state), age, fate, random };
        std::thread::spawn(move || line.carry(daemon, server, false));
        std::thread::spawn(move || back.carry(server_too, daemon_too, true));
    }
}

struct Line {
    state: Arc<State>,
    age: u64,
    fate: Fate,
    random: Random,
}

impl Line {
    fn carry(mut self, mut from: TcpStream, mut to: TcpStream, answers: bool) {
        let _ = from.set_nodelay(true).and_then(|()| to.set_nodelay(true));
        let _ = from.set_read_timeout(Some(LOOK));
        let _ = to.set_write_timeout(Some(Duration::from_secs(2)));
        let mut carried = 0;
        let mut buffer = vec![0; 16 * 1024];
        loop {
            let now = Instant::now();
            if self.state.age.load(SeqCst) != self.age || self.fate.cut_at.is_some_and(|at| at <= now) {
                self.state.counts.cuts.fetch_add(u64::from(answers), SeqCst);
                break;
            }
            let len = match from.read(&mut buffer) {
                Ok(0) => break,
                Ok(len) => len,
                Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut) => {
                    continue;
                }
                Err(_) => break,
            };
            if self.fate.delay_ms > 0 {
                std::thread::sleep(Duration::from_millis(self.random.below(self.fate.delay_ms)));
            }
            if answers && self.fate.lose_from.is_some_and(|from| from <= Instant::now()) {
                self.state.counts.lost.fetch_add(len as u64, SeqCst);
                continue;
            }
            let rest = self.fate.cut_after.filter(|_| answers).map_or(u64::MAX, |most| most - carried);
            let whole = rest >= len as u64;
            let part = if whole { len } else { usize::try_from(rest).unwrap_or(len) };
            carried += part as u64;
            if to.write_all(&buffer[..part]).is_err() || !whole {
                self.state.counts.cuts.fetch_add(u64::from(!whole), SeqCst);
                self.state.counts.lost.fetch_add((len - part) as u64, SeqCst);
                break;
            }
        }
        let _ = from.shutdown(Shutdown::Both);
        let _ = to.shutdown(Shutdown::Both);
    }
}
