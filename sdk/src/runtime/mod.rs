//! What both binaries share: logging, the life of the process, and the driver of workers.

pub mod lifecycle;
pub mod telemetry;
pub mod worker;

pub use lifecycle::Lifecycle;
pub use telemetry::LogFormat;
pub use worker::{Report, Schedule, Worker};
