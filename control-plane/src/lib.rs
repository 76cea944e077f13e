//! The Otonix control plane.

pub mod error;
pub mod store;
