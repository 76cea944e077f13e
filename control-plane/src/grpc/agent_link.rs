//! `AgentLink/Session`: who may open one.

use std::net::{IpAddr, Ipv4Addr};
use std::pin::Pin;
use std::sync::Arc;

use futures_util::Stream;
use otonix_proto::v1 as pb;
use otonix_sdk::error::ErrorCode;
use tonic::{Request, Response, Status, Streaming};

use crate::app::App;
use crate::auth::{Caller, Principal};
use crate::error::Error;
use crate::grpc::{session, status};
use crate::net::Peer;

/// The service.
#[derive(Clone)]
pub struct Service(Arc<App>);

impl Service {
    /// A service of the app.
    pub fn new(app: Arc<App>) -> Self {
        Self(app)
    }
}

#[tonic::async_trait]
impl pb::agent_link_server::AgentLink for Service {
    type SessionStream = Pin<Box<dyn Stream<Item = Result<pb::Down, Status>> + Send>>;

    async fn session(
        &self,
        request: Request<Streaming<pb::Up>>,
    ) -> Result<Response<Self::SessionStream>, Status> {
        let caller = identify(&self.0, &request).await.map_err(|error| status::of(&error))?;
        let stream = session::run(Arc::clone(&self.0), caller, request.into_inner());
        Ok(Response::new(Box::pin(stream)))
    }
}

async fn identify(app: &App, request: &Request<Streaming<pb::Up>>) -> Result<Caller, Error> {
    let missing = || Error::Unauthenticated {
        code: ErrorCode::MissingKey,
        detail: "an API key is needed (metadata x-api-key)",
    };
    let ip =
        request.extensions().get::<Peer>().map_or(IpAddr::V4(Ipv4Addr::UNSPECIFIED), |peer| peer.addr.ip());
    let mut keys = request.metadata().get_all("x-api-key").iter();
    let presented = keys.next().and_then(|value| value.to_str().ok()).ok_or_else(missing)?;
    if keys.next().is_some() {
        let detail = "the metadata x-api-key is there twice".to_owned();
        return Err(Error::Malformed { code: ErrorCode::BadRequest, detail });
    }
    let key = app.shared.keys.lookup(&app.db, presented.trim(), ip).await?;
    Ok(Caller { principal: Principal::Key(key), mode: app.settings.mode, ip })
}
