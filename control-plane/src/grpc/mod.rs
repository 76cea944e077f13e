//! gRPC: the same services in another envelope, with health and reflection.

use std::sync::Arc;

use axum::Router;
use otonix_proto::v1::agent_link_server::AgentLinkServer;
use tonic::service::Routes;

use crate::app::App;

pub mod agent_link;
mod session;
pub mod status;

/// Bytes of one message up.
const MAX_MESSAGE: usize = 1024 * 1024;

/// The router of all gRPC services.
///
/// # Errors
/// When the descriptor set cannot be read.
pub async fn router(app: Arc<App>) -> anyhow::Result<Router> {
    let link = AgentLinkServer::new(agent_link::Service::new(app))
        .max_decoding_message_size(MAX_MESSAGE)
        .max_encoding_message_size(MAX_MESSAGE);
    let (reporter, health) = tonic_health::server::health_reporter();
    reporter.set_serving::<AgentLinkServer<agent_link::Service>>().await;
    let reflection = tonic_reflection::server::Builder::configure()
        .register_encoded_file_descriptor_set(otonix_proto::DESCRIPTOR)
        .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
        .build_v1()?;
    let reflection_alpha = tonic_reflection::server::Builder::configure()
        .register_encoded_file_descriptor_set(otonix_proto::DESCRIPTOR)
        .build_v1alpha()?;
    let routes = Routes::new(link).add_service(health).add_service(reflection).add_service(reflection_alpha);
    Ok(routes.prepare().into_axum_router())
}
