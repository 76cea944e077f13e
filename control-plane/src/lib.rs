//! The Otonix control plane: REST and gRPC on one address, one database behind it.

pub mod net;
