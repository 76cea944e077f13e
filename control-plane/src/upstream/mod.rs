//! Services of others that this server asks. Each is bounded in time, trusted in nothing, and may be away.

pub mod chain;
pub mod facilitator;
