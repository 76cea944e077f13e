//! The REST client: the whole contract, typed, over one pooled connection.
//!
//! It follows no redirects, speaks plain http to loopback only, trusts the roots built into the program, and repeats
//! a request only when repeating cannot do it twice. Whoever sends events for good uses the durable link instead.

mod http;
mod rest;
mod retry;
mod server;

use std::time::Duration;

pub use http::{Client, ClientConfig, Credential, tls};
pub use rest::{ListQuery, Page};
pub use retry::{Backoff, RetryPolicy, full_jitter};
pub use server::{BadServer, ServerUrl};

use crate::error::{ErrorCode, Problem};

/// Why a request did not succeed.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// The server's address is not one.
    #[error("the server's address {0}")]
    Server(#[from] BadServer),
    /// The credential, a name or a body cannot be sent.
    #[error("the request's {0} cannot be sent")]
    Unsendable(&'static str),
    /// The server answered with an error.
    #[error("{} {}: {}", .problem.status, .problem.code, .problem.detail)]
    Problem {
        /// As it was sent.
        problem: Box<Problem>,
        /// How long the server asks to wait.
        retry_after: Option<Duration>,
    },
    /// No answer came. The request may have been carried out unless `sent` is false.
    #[error("no answer from the server")]
    NoAnswer {
        /// Whether anything may have reached the server.
        sent: bool,
        /// What the connection said.
        source: reqwest::Error,
    },
    /// An answer came that is not of the contract.
    #[error("the server's answer ({status}) {why}")]
    BadAnswer {
        /// Its HTTP status.
        status: u16,
        /// What is wrong with it.
        why: String,
    },
}

impl ClientError {
    /// The HTTP status of the answer, if one came.
    pub fn status(&self) -> Option<u16> {
        match self {
            Self::Problem { problem, .. } => Some(problem.status),
            Self::BadAnswer { status, .. } => Some(*status),
            Self::Server(_) | Self::Unsendable(_) | Self::NoAnswer { .. } => None,
        }
    }

    /// The stable code of the answer, if this version knows it.
    pub fn code(&self) -> Option<ErrorCode> {
        match self {
            Self::Problem { problem, .. } => ErrorCode::parse(&problem.code),
            Self::Server(_) | Self::Unsendable(_) | Self::NoAnswer { .. } | Self::BadAnswer { .. } => None,
        }
    }

    /// How long the server asks to wait before the next try.
    pub fn retry_after(&self) -> Option<Duration> {
        match self {
            Self::Problem { retry_after, .. } => *retry_after,
            Self::Server(_) | Self::Unsendable(_) | Self::NoAnswer { .. } | Self::BadAnswer { .. } => None,
        }
    }

    /// Whether the same request may succeed later: overload, an outage, a lost connection.
    pub fn is_transient(&self) -> bool {
        match self {
            Self::NoAnswer { .. } => true,
            Self::Problem { .. } | Self::BadAnswer { .. } => {
                matches!(self.status(), Some(408 | 429 | 502 | 503 | 504))
                    || self.code() == Some(ErrorCode::IdempotencyInProgress)
            }
            Self::Server(_) | Self::Unsendable(_) => false,
        }
    }
}

#[cfg(test)]
mod tests;
