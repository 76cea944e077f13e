//! The Otonix control plane.

pub mod error;
pub mod net;
pub mod store;
