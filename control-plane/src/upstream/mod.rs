//! Services of others that this server asks. Each is bounded in time, trusted in nothing, and may be away.

pub mod chain;
pub mod cherry;
mod cherry_words;
pub mod compute;
pub mod deadline;
pub mod facilitator;
pub mod http;
pub mod names;
pub mod price;
pub mod providers;
pub mod registrar;
pub mod vendors;
pub mod vercel;
mod vercel_words;
mod vercel_zones;
