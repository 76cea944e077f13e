//! A new server's password: shown to its buyer once, with the answer to the payment, and never stored. The vendor has
//! it for a day; whoever presents the payment first in that time gets it, on any replica and after a crash.

use std::time::Duration;

use serde_json::Value;
use uuid::Uuid;

use crate::app::App;
use crate::error::Error;
use crate::store::purchases::{self, Purchase};
use crate::store::writer::Target;
use crate::upstream::providers::Created;

/// How long the vendor is waited for; the answer goes out without it after that, and the next repeat tries again.
const PATIENCE: Duration = Duration::from_secs(8);

/// The answer with the password in it, if this is the answer that shows it.
pub async fn reveal(app: &App, sale: Uuid, body: String) -> String {
    // Only a new server's answer has the place for it.
    if !body.contains("\"password\":null") {
        return body;
    }
    match tokio::time::timeout(PATIENCE, with_secret(app, sale, &body)).await {
        Ok(Ok(Some(shown))) => shown,
        Ok(Ok(None)) => body,
        Ok(Err(error)) => {
            tracing::warn!(%error, "a server's password could not be asked for");
            body
        }
        Err(_) => body,
    }
}

async fn with_secret(app: &App, sale: Uuid, body: &str) -> Result<Option<String>, Error> {
    let found =
        app.db.read(move |conn| Box::pin(async move { purchases::of_sale(conn, sale).await })).await?;
    let Some(purchase) = found.filter(|purchase| !purchase.secret_shown) else { return Ok(None) };
    let Some(created) = ask(app, &purchase).await? else { return Ok(None) };
    let Some(password) = &created.password else { return Ok(None) };
    let id = purchase.id;
    let taken = app
        .writer
        .apply(Target::Shared, move |tx| Box::pin(async move { Ok(purchases::take_secret(tx, id).await?) }));
    if !taken.await? {
        return Ok(None);
    }
    let mut shown: Value = serde_json::from_str(body).map_err(|why| Error::internal(why.to_string()))?;
    shown["server"]["password"] = Value::from(password.expose());
    shown["server"]["username"] = created.username.map_or(Value::Null, Value::from);
    if let Some(fields) = shown.as_object_mut() {
        fields.remove("secretShown");
    }
    Ok(Some(shown.to_string()))
}

async fn ask(app: &App, purchase: &Purchase) -> Result<Option<Created>, Error> {
    let id = purchase.vendor_ref.as_deref().and_then(|id| id.parse().ok());
    let (Some(compute), Some(id)) = (&app.vendors.compute, id) else { return Ok(None) };
    compute.credentials(id).await.map_err(|why| Error::internal(why.to_string()))
}
