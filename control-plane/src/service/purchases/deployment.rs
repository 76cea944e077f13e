//! New servers until the vendor has installed them.

use crate::app::App;
use crate::error::Error;
use crate::service::purchases::book;
use crate::store::purchases;
use crate::store::sandboxes::{self, AtVendor};
use crate::store::writer::Target;
use crate::upstream::providers::{Server, ServerStatus};
use otonix_sdk::error::ErrorCode;
use uuid::Uuid;

/// Servers looked at in one pass.
const BATCH: i64 = 50;

/// One pass over servers that are not running yet.
///
/// # Errors
/// 503 without database.
pub async fn look(app: &App) -> Result<(), Error> {
    let Some(compute) = &app.vendors.compute else { return Ok(()) };
    let waiting =
        app.db.read(move |conn| Box::pin(async move { sandboxes::deploying(conn, BATCH).await })).await?;
    for (sandbox, at) in waiting {
        let Ok(id) = at.vendor_id.parse() else { continue };
        match compute.server(id).await {
            Ok(Some(server)) => note(app, sandbox, at, server).await?,
            Ok(None) => tracing::warn!(server.id = id, "a new server is not there (any more)"),
            // It is asked for again in the next pass.
            Err(why) => {
                tracing::debug!(server.id = id, error = %why, "a new server could not be looked at");
            }
        }
    }
    Ok(())
}

async fn note(app: &App, sandbox: Uuid, at: AtVendor, server: Server) -> Result<(), Error> {
    let status = match server.status {
        ServerStatus::Deployed => "running",
        ServerStatus::Failed => "error",
        ServerStatus::Deploying | ServerStatus::Rescue | ServerStatus::Other(_) => return Ok(()),
    };
    let address = server.address.map(|address| address.to_string());
    let noted = app.writer.apply(Target::Alone, move |tx| {
        Box::pin(async move {
            if !sandboxes::deployed(tx, sandbox, status, address.as_deref()).await? || status != "error" {
                return Ok(());
            }
            // It is billed and does not run: a person ends it and gives the money back, or has it mended.
            let found = purchases::by_id(&mut tx.conn, at.purchase).await?;
            if let Some(purchase) = found.filter(|purchase| purchase.status == "delivered") {
                let detail = "the vendor could not install the server";
                book::escalate_in(tx, &purchase, ErrorCode::PurchaseFailed, detail).await?;
            }
            Ok(())
        })
    });
    noted.await
}
