//! What can go wrong in the business; knows nothing of HTTP or gRPC.

use std::fmt::Display;
use std::time::Duration;

use otonix_sdk::error::ErrorCode;
use otonix_sdk::limits::Invalid;
use uuid::Uuid;

use crate::demand::Demand;
use crate::store::StoreError;

/// A failed request.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// There is no such thing, or not for this caller.
    #[error("there is no {what} {id}")]
    NotFound {
        /// What was looked for.
        what: &'static str,
        /// Its id.
        id: String,
    },
    /// The state of things does not allow it.
    #[error("{detail}")]
    Conflict {
        /// Which conflict.
        code: ErrorCode,
        /// In words.
        detail: String,
    },
    /// A value is not acceptable.
    #[error("`{field}` {why}")]
    Invalid {
        /// The kind of fault.
        code: ErrorCode,
        /// The field, as it is written in requests.
        field: String,
        /// What it must be.
        why: String,
    },
    /// The body or head cannot be read.
    #[error("{detail}")]
    Malformed {
        /// Which fault.
        code: ErrorCode,
        /// In words.
        detail: String,
    },
    /// Nobody known is asking.
    #[error("{detail}")]
    Unauthenticated {
        /// Missing, unknown or revoked.
        code: ErrorCode,
        /// In words.
        detail: &'static str,
    },
    /// Known, and not allowed.
    #[error("{detail}")]
    Forbidden {
        /// Which rule.
        code: ErrorCode,
        /// In words.
        detail: &'static str,
    },
    /// Too much at once.
    #[error("{detail}")]
    Busy {
        /// Rate limited or overloaded.
        code: ErrorCode,
        /// When to try again.
        retry_after: Duration,
        /// In words.
        detail: &'static str,
    },
    /// Something was not configured.
    #[error("{detail}")]
    NotConfigured {
        /// What is missing.
        code: ErrorCode,
        /// In words.
        detail: &'static str,
    },
    /// A payment is needed, or the one presented does not do.
    #[error("{}", .0.detail)]
    PaymentRequired(Box<Demand>),
    /// Whether a payment was made is not known yet.
    #[error("{detail}")]
    PaymentPending {
        /// The order that it is for; the same payment may be presented again.
        order_id: String,
        /// When to try again.
        retry_after: Duration,
        /// In words.
        detail: &'static str,
    },
    /// The sender's numbering is that of a copy.
    #[error("these sequence numbers were used by another copy of this spool; open a new epoch")]
    NewEpochRequired,
    /// A newer session took over.
    #[error("a newer session took over")]
    Superseded,
    /// The database.
    #[error("a database error")]
    Store(#[from] StoreError),
    /// A fault of ours.
    #[error("an internal error")]
    Internal(String),
}

impl Error {
    /// There is no such thing.
    pub fn not_found(what: &'static str, id: impl Display) -> Self {
        Self::NotFound { what, id: id.to_string() }
    }

    /// A field is wrong.
    pub fn invalid(field: &str, why: impl Into<String>) -> Self {
        Self::Invalid { code: ErrorCode::InvalidField, field: field.to_owned(), why: why.into() }
    }

    /// A linked id is unknown or not the caller's.
    pub fn unknown_link(field: &str) -> Self {
        let why = "names nothing of yours".to_owned();
        Self::Invalid { code: ErrorCode::UnknownLink, field: field.to_owned(), why }
    }

    /// The state of things does not allow it.
    pub fn conflict(code: ErrorCode, detail: impl Into<String>) -> Self {
        Self::Conflict { code, detail: detail.into() }
    }

    /// The agent was killed.
    pub fn agent_killed(id: Uuid) -> Self {
        Self::conflict(ErrorCode::AgentKilled, format!("agent {id} was killed"))
    }

    /// A fault of ours.
    pub fn internal(what: impl Into<String>) -> Self {
        Self::Internal(what.into())
    }

    /// The stable code.
    pub fn code(&self) -> ErrorCode {
        match self {
            Self::NotFound { .. } => ErrorCode::NotFound,
            Self::Conflict { code, .. }
            | Self::Invalid { code, .. }
            | Self::Malformed { code, .. }
            | Self::Unauthenticated { code, .. }
            | Self::Forbidden { code, .. }
            | Self::Busy { code, .. }
            | Self::NotConfigured { code, .. } => *code,
            Self::PaymentRequired(demand) => demand.code,
            Self::PaymentPending { .. } => ErrorCode::PaymentPending,
            Self::NewEpochRequired => ErrorCode::NewEpochRequired,
            Self::Superseded => ErrorCode::Conflict,
            Self::Store(StoreError::Unavailable(_)) => ErrorCode::DatabaseUnavailable,
            Self::Store(StoreError::QueueFull | StoreError::LostRace) => ErrorCode::Overloaded,
            Self::Store(StoreError::Taken(_)) => ErrorCode::Conflict,
            Self::Store(StoreError::Corrupt { .. } | StoreError::Sql(_)) | Self::Internal(_) => {
                ErrorCode::Internal
            }
        }
    }
}

impl From<Invalid> for Error {
    fn from(invalid: Invalid) -> Self {
        Self::invalid(invalid.field, invalid.why)
    }
}
