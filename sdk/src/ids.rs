//! Identifiers: newtypes over UUID, so that one kind is never taken for another.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use uuid::Uuid;

/// The text is not a UUID.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("not a UUID")]
pub struct BadId;

macro_rules! id {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
        #[serde(transparent)]
        pub struct $name(Uuid);

        impl $name {
            /// Wraps a UUID.
            pub const fn new(id: Uuid) -> Self {
                Self(id)
            }

            /// The UUID inside.
            pub const fn uuid(self) -> Uuid {
                self.0
            }
        }

        impl From<Uuid> for $name {
            fn from(id: Uuid) -> Self {
                Self(id)
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }

        impl FromStr for $name {
            type Err = BadId;

            fn from_str(text: &str) -> Result<Self, BadId> {
                Uuid::try_parse(text).map(Self).map_err(|_| BadId)
            }
        }
    };
}

id!(
    /// An agent.
    AgentId
);
id!(
    /// An API key (not the secret itself).
    KeyId
);
id!(
    /// A group of keys and agents that belong together.
    OwnerId
);
id!(
    /// One thing an agent did: an action, a usage record, a payment. Unique per agent.
    EventId
);
id!(
    /// A server, as seen by its agent.
    SandboxId
);
id!(
    /// A domain name held or recorded.
    DomainId
);
id!(
    /// A row of the money record.
    TransactionId
);
id!(
    /// A movement between two accounts of the ledger.
    TransferId
);
id!(
    /// A sale that was paid.
    SaleId
);
id!(
    /// Money that arrived and is owed back.
    RefundId
);
id!(
    /// A command for an agent's daemon.
    CommandId
);
id!(
    /// Something that is bought at a vendor.
    PurchaseId
);
id!(
    /// A one-time token by which machines enrol (not the secret itself).
    EnrolmentTokenId
);
