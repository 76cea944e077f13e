//! Where the server is killed, and what the chain does to it when it is back.

use std::collections::HashMap;
use std::time::Duration;

use super::Flow;
use crate::chain::Chain;
use crate::peer::{Does, Peer};
use crate::support::Store;

/// What the server is doing when it is killed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stop {
    /// The node has a call in hand, known by its method and a word of its parameters.
    Call(&'static str, &'static str, Does),
    /// The same, once another method was called.
    CallAfter(&'static str, &'static str, &'static str, Does),
    /// The facilitator is told to settle.
    Settle(Does),
    /// It commits a row of a table, and the database carries that out (or not) when it is gone (PostgreSQL).
    Commit(&'static str, bool),
    /// The sale has just been stored.
    Stored,
    /// It has answered.
    Answered,
    /// It is not running: the claim is made what another replica would have left, which signs nothing.
    Unsigned,
}

/// A boundary: what is reached by it, one kill after the other.
#[derive(Debug, Clone)]
pub struct Point {
    pub name: &'static str,
    pub stops: Vec<Stop>,
}

/// What comes upon the server at its next start.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    Nothing,
    /// Each kind of call is cut twice.
    Down,
    /// Each kind of call is answered late twice.
    Slow,
    /// Each kind of call is answered with nonsense twice.
    Garbage,
    /// The newest block is replaced by an empty one.
    Reorg,
    /// The node is one of another chain for a while.
    WrongChain,
    /// What is sent is taken, and said to be known.
    AlreadyKnown,
    /// Each kind of call is carried out and not answered, twice.
    Lost,
}

/// The token's `transferWithAuthorization`, `authorizationState`, and the topic of `AuthorizationUsed`.
const CARRY_OUT: &str = "0xe3ee160e";
const STATE: &str = "0xe94a0102";
const USED: &str = "0x98de5035";

const TRANSACTION: &str = "eth_getTransactionByHash";
const RECEIPT: &str = "eth_getTransactionReceipt";
const BLOCK: &str = "eth_getBlockByNumber";
const SEND: &str = "eth_sendRawTransaction";

/// Every boundary of a flow.
pub fn points(flow: Flow, store: Store) -> Vec<Point> {
    use Does::{HeldAfter, HeldBefore};
    use Stop::{Answered, Call, CallAfter, Commit, Settle, Stored, Unsigned};
    let mut points = Vec::new();
    let mut add = |name, stops: &[Stop]| points.push(Point { name, stops: stops.to_vec() });
    let commits = store == Store::Postgres;
    let exact = flow != Flow::Order;
    if exact {
        add("the chain is asked to try it", &[Call("eth_call", CARRY_OUT, HeldBefore)]);
        add("the chain has tried it", &[Call("eth_call", CARRY_OUT, HeldAfter)]);
        if commits {
            add("the claim is not committed", &[Commit("payments", false)]);
            add("the claim is committed", &[Commit("payments", true)]);
        }
    }
    match flow {
        Flow::Order => {
            add("the transaction is asked for", &[Call(TRANSACTION, "{hash}", HeldBefore)]);
            add("the transaction was told", &[Call(TRANSACTION, "{hash}", HeldAfter)]);
        }
        Flow::V1Key | Flow::V2Key => {
            add("signed, not sent", &[Call(SEND, "", HeldBefore)]);
            add("sent, not told", &[Call(SEND, "", HeldAfter)]);
            add("sent again", &[Call(SEND, "", HeldAfter), Call(SEND, "", HeldBefore)]);
            add("claimed, not signed", &[Call(SEND, "", HeldBefore), Unsigned]);
            let signing = |done| [Call(SEND, "", HeldBefore), Unsigned, Commit("settlements", done)];
            if commits {
                add("what is signed is not committed", &signing(false));
                add("what is signed is committed", &signing(true));
            }
        }
        Flow::V1Facilitator | Flow::V2Facilitator => {
            add("the facilitator is told to settle", &[Settle(HeldBefore)]);
            add("the facilitator has settled", &[Settle(HeldAfter)]);
            add("its use is asked for", &[Settle(HeldAfter), Call("eth_call", STATE, HeldBefore)]);
            add("its use is looked for", &[Settle(HeldAfter), Call("eth_getLogs", USED, HeldAfter)]);
        }
    }
    let of = if exact { "" } else { "{hash}" };
    add("the receipt is asked for", &[Call(RECEIPT, of, HeldBefore)]);
    add("the receipt was told", &[Call(RECEIPT, of, HeldAfter)]);
    add("its block was told", &[CallAfter(RECEIPT, BLOCK, "\"0x", HeldAfter)]);
    if commits {
        add("the grant is not committed", &[Commit("orders", false)]);
        add("the grant is committed", &[Commit("orders", true)]);
    } else {
        add("the grant is stored", &[Stored]);
    }
    add("it is answered", &[Answered]);
    points
}

impl Fault {
    /// Those that there are in a flow.
    pub const fn of(flow: Flow) -> [Self; 7] {
        let own = match flow {
            Flow::V1Key | Flow::V2Key => Self::AlreadyKnown,
            Flow::Order | Flow::V1Facilitator | Flow::V2Facilitator => Self::Lost,
        };
        [Self::Nothing, Self::Reorg, Self::Down, own, Self::Slow, Self::WrongChain, Self::Garbage]
    }

    /// Lets it come about, before the server is back.
    pub fn befall(self, chain: &Chain, node: &Peer) {
        match self {
            Self::Nothing => node.mend(),
            Self::Down => twice(node, Does::Cut),
            Self::Slow => twice(node, Does::Late(Duration::from_millis(1_500))),
            Self::Garbage => twice(node, Does::Garbage),
            Self::Lost => twice(node, Does::Lost),
            Self::Reorg => {
                node.mend();
                chain.reorg(1);
            }
            Self::WrongChain => {
                some(node, 2, |method, _| method == "eth_chainId", Does::Says("0x1"));
            }
            Self::AlreadyKnown => {
                some(node, 2, |method, _| method == SEND, Does::FailsAfter(-32_000, "already known"));
            }
        }
    }
}

/// Does something with the first of some calls.
fn some(node: &Peer, most: u32, which: fn(&str, &str) -> bool, does: Does) {
    let mut left = most;
    node.obey(move |method, params| {
        if left > 0 && which(method, params) {
            left -= 1;
            return does;
        }
        Does::Passes
    });
}

/// Does something with the first two calls of each kind, but for those by which the server finds out whether this is its
/// chain: it is ready at once, and what fails is what it asks of the payment.
fn twice(node: &Peer, does: Does) {
    let mut counts: HashMap<String, u32> = HashMap::new();
    node.obey(move |method, params| {
        let kind = match method {
            "eth_call" => [CARRY_OUT, STATE].into_iter().find(|word| params.contains(word)),
            BLOCK if params.contains("latest") => None,
            "eth_chainId" | "eth_getCode" => None,
            other => Some(other),
        };
        let Some(kind) = kind else { return Does::Passes };
        let count = counts.entry(kind.to_owned()).or_default();
        *count += 1;
        if *count <= 2 { does } else { Does::Passes }
    });
}
