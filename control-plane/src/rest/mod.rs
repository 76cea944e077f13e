//! The REST contract: the table of routes, and one file of handlers a resource. A handler is decode → service → encode.

use std::str::FromStr;
use std::sync::Arc;

use axum::Router;
use axum::response::{IntoResponse as _, Response};
use axum::routing::{self, MethodFilter};
use otonix_sdk::error::ErrorCode;

use crate::app::App;
use crate::error::Error;
use crate::rest::call::Call;

pub mod answer;
pub mod call;
pub mod front;
pub mod paid;
pub mod problem;
pub mod sanitise;

mod agents;
mod enrolment;
mod handed;
mod keys;
mod payments;
mod purchases;
mod records;
mod system;
mod vendors;

/// What a handler gives back before it is encoded.
type Answered = Result<Response, Error>;

macro_rules! routes {
    ($($method:ident $path:literal => $wrap:ident $handler:path;)*) => {
        /// Every route: method and path, as in the contract.
        pub const ROUTES: &[(&str, &str)] = &[$((stringify!($method), $path)),*];

        fn table(mut router: Router<Arc<App>>) -> Router<Arc<App>> {
            $(router = router.route($path, routing::on(MethodFilter::$method, $wrap!($handler)));)*
            router
        }
    };
}

/// A route that reads, or whose repeat does no harm.
macro_rules! plain {
    ($handler:path) => {
        |call: Call| async move { $handler(call).await.unwrap_or_else(Error::into_response) }
    };
}

/// A POST that takes an idempotency key.
macro_rules! once {
    ($handler:path) => {
        |call: Call| answer::once(call, $handler)
    };
}

/// A POST that is paid, and takes an idempotency key.
macro_rules! sold {
    ($offer:path) => {
        |call: Call| answer::once(call, |call| paid::gate(call, $offer))
    };
}

/// The same for a route that belongs to its key's owner.
macro_rules! sold_to_owner {
    ($offer:path) => {
        |call: Call| answer::once(call, |call| paid::gate_of_owner(call, $offer))
    };
}

routes! {
    POST "/api/keys/generate" => once keys::generate;
    GET "/api/keys" => plain keys::list;
    DELETE "/api/keys/{id}" => plain keys::revoke;
    POST "/api/agents/register" => once agents::register;
    GET "/api/agents" => plain agents::list;
    GET "/api/agents/{id}" => plain agents::agent;
    POST "/api/agents/{id}/heartbeat" => once agents::heartbeat;
    GET "/api/agents/{id}/actions" => plain agents::actions;
    POST "/api/agents/{id}/actions" => once agents::log_action;
    POST "/api/agents/{id}/grant" => once agents::grant;
    POST "/api/agents/{id}/topup" => sold payments::offer_topup;
    POST "/api/agents/{id}/kill" => once agents::kill;
    POST "/api/agents/{id}/children" => once enrolment::create_child;
    GET "/api/agents/{id}/commands" => plain agents::commands;
    POST "/api/agents/{id}/commands" => once agents::command;
    GET "/api/agents/{id}/ledger" => plain agents::ledger;
    POST "/api/agents/{id}/events" => once agents::events;
    GET "/api/enrolment-tokens" => plain enrolment::tokens;
    POST "/api/enrolment-tokens" => once enrolment::create_token;
    DELETE "/api/enrolment-tokens/{id}" => plain enrolment::revoke_token;
    POST "/api/enrol" => once enrolment::enrol;
    GET "/api/laws/{sha256}" => plain enrolment::laws;
    GET "/api/agent-actions" => plain agents::feed;
    GET "/api/sandboxes" => plain records::sandboxes;
    POST "/api/sandboxes" => once records::create_sandbox;
    GET "/api/sandboxes/{id}" => plain records::sandbox;
    GET "/api/domains" => plain records::domains;
    POST "/api/domains" => once records::create_domain;
    GET "/api/domains/{id}" => plain records::domain;
    PATCH "/api/domains/{id}" => plain records::update_domain;
    GET "/api/compute-logs" => plain records::usage;
    POST "/api/compute-logs" => once records::log_usage;
    GET "/api/transactions" => plain records::transactions;
    POST "/api/transactions" => once records::create_transaction;
    GET "/api/price-table" => plain system::price_table;
    GET "/api/auth/status" => plain system::auth_status;
    GET "/api/autonomic/status" => plain system::autonomic_status;
    GET "/api/x402/config" => plain payments::config;
    GET "/api/orders" => plain payments::orders;
    GET "/api/refunds" => plain payments::refunds;
    POST "/api/refunds/{id}/resolve" => once payments::resolve_refund;
    GET "/api/purchases" => plain purchases::purchases;
    POST "/api/purchases/{id}/resolve" => once purchases::resolve_purchase;
    GET "/api/vercel/status" => plain vendors::vercel_status;
    GET "/api/vercel/payment-config" => plain payments::domain_config;
    POST "/api/vercel/check" => once vendors::check;
    POST "/api/vercel/register" => sold purchases::offer_domain;
    GET "/api/vercel/domains" => plain vendors::registered;
    GET "/api/vercel/dns/{domain}" => plain vendors::zone;
    POST "/api/vercel/dns/{domain}" => once vendors::add_record;
    DELETE "/api/vercel/dns/{domain}/{recordId}" => plain vendors::remove_record;
    GET "/api/cherry/status" => plain vendors::cherry_status;
    GET "/api/cherry/plans" => plain vendors::plans;
    GET "/api/cherry/regions" => plain vendors::regions;
    GET "/api/cherry/images" => plain vendors::images;
    GET "/api/cherry/teams" => plain vendors::teams;
    GET "/api/cherry/projects/{teamId}" => plain vendors::projects;
    GET "/api/cherry/servers/{id}" => plain vendors::servers;
    POST "/api/cherry/servers/{id}" => sold_to_owner purchases::offer_server;
    POST "/api/cherry/servers/{id}/extend" => sold_to_owner purchases::offer_period;
    DELETE "/api/cherry/servers/{id}" => plain vendors::end_server;
    POST "/api/cherry/servers/{id}/actions" => once vendors::act_on_server;
    GET "/healthz" => plain system::healthz;
    GET "/readyz" => plain system::readyz;
    GET "/metrics" => plain system::metrics;
}

/// The router of all routes.
pub fn router(app: Arc<App>) -> Router {
    let no_route = || async {
        Error::Malformed { code: ErrorCode::NoRoute, detail: "there is no such route".to_owned() }
            .into_response()
    };
    let no_method = || async {
        let detail = "this route does not take that method".to_owned();
        Error::Malformed { code: ErrorCode::MethodNotAllowed, detail }.into_response()
    };
    table(Router::new()).fallback(no_route).method_not_allowed_fallback(no_method).with_state(app)
}

/// The id in a path, its segment `index` counted from 0.
///
/// # Errors
/// 404 when it is no id: there is no such thing.
fn id_at<T: FromStr>(call: &Call, index: usize, what: &'static str) -> Result<T, Error> {
    let segment = call.uri.path().split('/').filter(|part| !part.is_empty()).nth(index).unwrap_or("");
    segment.parse().map_err(|_| Error::not_found(what, segment.chars().take(64).collect::<String>()))
}
