//! The wire of `otonix.v1.AgentLink`: generated messages, client and server. No logic.

pub mod codec;

/// Messages and services of package `otonix.v1`.
pub mod v1 {
    tonic::include_proto!("otonix.v1");
}

/// The encoded `FileDescriptorSet`, for gRPC reflection.
pub const DESCRIPTOR: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/descriptor.bin"));
