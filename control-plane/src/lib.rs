//! The Otonix control plane: REST and gRPC on one address, one database behind it.

pub mod app;
pub mod auth;
pub mod config;
pub mod demand;
pub mod doctor;
pub mod error;
pub mod fleet;
pub mod grpc;
pub mod health;
pub mod limits;
pub mod links;
pub mod metrics;
pub mod net;
pub mod reconcile;
pub mod rest;
pub mod serve;
pub mod service;
pub mod store;
pub mod treasury;
pub mod upstream;
pub mod worker;
