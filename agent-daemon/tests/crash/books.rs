//! What was posted to local APIs and what became of it, compared with what the database holds in the end.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use serde_json::Value;

use crate::server::Server;

/// Every posted name begins with it, so that rows of the server itself are told apart.
const MARK: &str = "post ";

/// What a post is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    Action,
    Usage,
}

/// How a post ended for the one who posted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// It never left.
    Unsent,
    /// The answer was lost.
    Unanswered,
    /// 507: not recorded.
    Refused,
    /// 202 with this id.
    Accepted(String),
}

/// One post.
#[derive(Debug, Clone)]
pub struct Post {
    pub name: String,
    pub kind: Kind,
    /// Micro-USDC.
    pub cost: u64,
    pub outcome: Outcome,
}

/// All posts to one agent's daemons.
#[derive(Debug, Clone, Default)]
pub struct Books(Arc<Mutex<Vec<Post>>>);

/// What the database holds of the books.
#[derive(Debug)]
pub struct Found {
    pub accepted: u64,
    /// Posted without an answer.
    pub unanswered: u64,
    /// Of these, in the database.
    pub unanswered_stored: u64,
    pub refused: u64,
    /// Posts in the database.
    #[expect(dead_code, reason = "shown when a run fails")]
    pub stored: u64,
    /// Accepted and not in the database.
    pub missing: Vec<Post>,
    /// Actions that nobody posted: the server's and the daemon's own.
    pub others: Vec<Value>,
}

impl Found {
    /// The actions that nobody posted whose text contains this.
    pub fn others_with(&self, text: &str) -> Vec<&Value> {
        let has = |row: &&Value| row["action"].as_str().is_some_and(|action| action.contains(text));
        self.others.iter().filter(has).collect()
    }
}

impl Books {
    fn lock(&self) -> MutexGuard<'_, Vec<Post>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Notes a post before it is sent: its number and its name.
    pub fn draw(&self, kind: Kind, cost: u64) -> (usize, String) {
        let mut posts = self.lock();
        let number = posts.len();
        let name = format!("{MARK}{number}");
        posts.push(Post { name: name.clone(), kind, cost, outcome: Outcome::Unsent });
        (number, name)
    }

    /// Notes what became of it; an id once given does not change.
    pub fn note(&self, number: usize, outcome: Outcome) {
        let mut posts = self.lock();
        let post = &mut posts[number];
        match (&post.outcome, &outcome) {
            (Outcome::Accepted(before), Outcome::Accepted(now)) => {
                assert_eq!(before, now, "{}: another id for the same key", post.name);
            }
            // What may have been recorded stays so.
            (Outcome::Accepted(_), _) | (Outcome::Unanswered, Outcome::Refused | Outcome::Unsent) => {}
            (Outcome::Unsent | Outcome::Unanswered | Outcome::Refused, _) => post.outcome = outcome,
        }
    }

    /// How many were accepted so far.
    pub fn accepted(&self) -> u64 {
        self.lock().iter().filter(|post| matches!(post.outcome, Outcome::Accepted(_))).count() as u64
    }

    /// Compares with the database, over REST and in its file. `granted` in micro-USDC.
    pub fn compare(&self, server: &Server, agent: &str, granted: u64) -> Found {
        let posts = self.lock().clone();
        let by_name: HashMap<&str, &Post> = posts.iter().map(|post| (post.name.as_str(), post)).collect();
        let actions = server.list(&format!("/api/agents/{agent}/actions"));
        let usage = server.list(&format!("/api/compute-logs?agentId={agent}"));
        in_the_file_as_in_the_lists(server, &actions, &usage);

        let mut stored: BTreeMap<&str, &Value> = BTreeMap::new();
        let mut others = Vec::new();
        let mut spent = 0;
        let ours = actions.iter().map(|row| (Kind::Action, "action", row));
        for (kind, field, row) in ours.chain(usage.iter().map(|row| (Kind::Usage, "model", row))) {
            let name = row[field].as_str().expect("a text");
            if kind == Kind::Action && !name.starts_with(MARK) {
                others.push(row.clone());
                continue;
            }
            let post = by_name.get(name).unwrap_or_else(|| panic!("nobody posted {row}"));
            assert_eq!(post.kind, kind, "{row}");
            assert!(!matches!(post.outcome, Outcome::Unsent | Outcome::Refused), "{post:?} is stored: {row}");
            if let Outcome::Accepted(id) = &post.outcome {
                assert_eq!(row["id"].as_str(), Some(id.as_str()), "{name}");
            }
            if kind == Kind::Usage {
                assert_eq!(micros(&row["cost"]), post.cost, "{row}");
                spent += post.cost;
            }
            let twice = stored.insert(name, row);
            assert!(twice.is_none(), "twice: {row} and {twice:?}");
        }
        let shown = server.agent(agent);
        assert_eq!(micros(&shown["credits"]) + spent, granted, "{shown}");
        server.audit();

        let count =
            |wanted: fn(&Outcome) -> bool| posts.iter().filter(|post| wanted(&post.outcome)).count() as u64;
        let unanswered = |post: &&Post| post.outcome == Outcome::Unanswered;
        let is_stored = |post: &&Post| stored.contains_key(post.name.as_str());
        let accepted = |post: &&Post| matches!(post.outcome, Outcome::Accepted(_));
        Found {
            accepted: count(|outcome| matches!(outcome, Outcome::Accepted(_))),
            unanswered: count(|outcome| *outcome == Outcome::Unanswered),
            unanswered_stored: posts.iter().filter(unanswered).filter(is_stored).count() as u64,
            refused: count(|outcome| *outcome == Outcome::Refused),
            stored: stored.len() as u64,
            missing: posts.iter().filter(accepted).filter(|post| !is_stored(post)).cloned().collect(),
            others,
        }
    }
}

fn in_the_file_as_in_the_lists(server: &Server, actions: &[Value], usage: &[Value]) {
    for (table, field, rows) in [("agent_actions", "action", actions), ("compute_logs", "model", usage)] {
        let marked = |row: &&Value| row[field].as_str().is_some_and(|name| name.starts_with(MARK));
        let listed = rows.iter().filter(marked).count() as u64;
        let query =
            format!("SELECT COUNT(*), COUNT(DISTINCT {field}) FROM {table} WHERE {field} LIKE '{MARK}%'");
        let counts = server.sql(&query);
        assert_eq!(counts[0][0], listed, "{table}: the file and the list differ");
        assert_eq!(counts[0][1], listed, "{table}: something is there twice");
    }
}

/// An amount of an answer in micro-USDC; the amounts here are far below where a double loses one.
fn micros(amount: &Value) -> u64 {
    let amount = amount.as_f64().unwrap_or_else(|| panic!("{amount} is no amount"));
    let micros = (amount * 1e6).round();
    assert!((0.0..1e15).contains(&micros) && (micros / 1e6 - amount).abs() < 1e-9, "{amount}");
    micros as u64
}
