//! gRPC: the same services in another envelope, with health and reflection.

use std::sync::Arc;

use axum::Router;
use chrono::{DateTime, Utc};
use http::header::DATE;
use http::{HeaderMap, HeaderValue};
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

/// A session's headers are sent once. As fields that are never indexed (RFC 7541, 7.1.3) they take no room in the table
/// that its connection would keep for them as long as it lasts; HTTP's own date is one of them.
pub(crate) fn keep_out_of_table(headers: &mut HeaderMap, now: DateTime<Utc>) {
    if let Ok(now) = HeaderValue::from_str(&now.format("%a, %d %b %Y %H:%M:%S GMT").to_string()) {
        headers.insert(DATE, now);
    }
    headers.values_mut().for_each(|value| value.set_sensitive(true));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn headers_of_a_session_are_never_indexed() {
        let mut headers = HeaderMap::new();
        headers.insert("content-type", HeaderValue::from_static("application/grpc"));
        let now = DateTime::from_timestamp(784_111_777, 0).expect("a time");
        keep_out_of_table(&mut headers, now);
        assert_eq!(headers.get(DATE).expect("a date"), "Sun, 06 Nov 1994 08:49:37 GMT");
        assert!(headers.values().all(HeaderValue::is_sensitive));
    }
}
