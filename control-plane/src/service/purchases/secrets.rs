//! A new server's password: shown to its buyer once, with the answer to the payment, and never stored. The vendor has
//! it for a day; whoever presents the payment first in that time gets it, on any replica and after a crash.
//!
//! An answer takes the right to show it for a while and gives up the right for good when it was handed to the network.
//! One that was never sent, because the process died or the buyer had hung up, leaves it to the next.

use std::sync::Arc;
use std::time::Duration;

use chrono::{DateTime, TimeDelta, Utc};
use serde_json::Value;
use uuid::Uuid;

use crate::app::App;
use crate::error::Error;
use crate::store::purchases::{self, Purchase};
use crate::store::writer::Target;
use crate::upstream::providers::{Created, Purpose};

/// How long the vendor is waited for; the answer goes out without it after that, and the next repeat tries again.
const PATIENCE: Duration = Duration::from_secs(8);
/// An answer that shows the password is sent by then, or never was.
const SENT_WITHIN: TimeDelta = TimeDelta::seconds(60);

/// The right of one answer to show a password.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Right {
    purchase: Uuid,
    until: DateTime<Utc>,
}

/// An answer, and the right that it uses when it shows a password.
#[derive(Debug)]
pub struct Revealed {
    /// The answer.
    pub body: String,
    /// The right; to be ended by [`end`].
    pub right: Option<Right>,
}

impl Revealed {
    const fn without(body: String) -> Self {
        Self { body, right: None }
    }
}

/// The answer with the password in it, if this is the answer that shows it.
pub async fn reveal(app: &App, sale: Uuid, body: String) -> Revealed {
    // Only a new server's answer has the place for it.
    if !body.contains("\"password\":null") {
        return Revealed::without(body);
    }
    match tokio::time::timeout(PATIENCE, with_secret(app, sale, &body)).await {
        Ok(Ok(Some(shown))) => shown,
        Ok(Ok(None)) => Revealed::without(body),
        Ok(Err(error)) => {
            tracing::warn!(%error, "a server's password could not be asked for");
            Revealed::without(body)
        }
        Err(_) => Revealed::without(body),
    }
}

/// The answer was handed to the network, or will never be.
pub async fn end(app: Arc<App>, right: Right, sent: bool) {
    let Right { purchase, until } = right;
    let ended = app.writer.apply(Target::Shared, move |tx| {
        Box::pin(async move { Ok(purchases::end_secret(tx, purchase, until, sent).await?) })
    });
    if let Err(error) = ended.await {
        tracing::warn!(purchase.id = %purchase, %error, "a server's password may be shown once more");
    }
}

async fn with_secret(app: &App, sale: Uuid, body: &str) -> Result<Option<Revealed>, Error> {
    let found =
        app.db.read(move |conn| Box::pin(async move { purchases::of_sale(conn, sale).await })).await?;
    let Some(purchase) = found.filter(|purchase| !purchase.secret_shown) else { return Ok(None) };
    let Some(created) = ask(app, &purchase).await? else { return Ok(None) };
    let Some(password) = &created.password else { return Ok(None) };
    let mut shown: Value = serde_json::from_str(body).map_err(|why| Error::internal(why.to_string()))?;
    shown["server"]["password"] = Value::from(password.expose());
    shown["server"]["username"] = created.username.map_or(Value::Null, Value::from);
    if let Some(fields) = shown.as_object_mut() {
        fields.remove("secretShown");
    }
    let id = purchase.id;
    let taken = app.writer.apply(Target::Shared, move |tx| {
        Box::pin(async move {
            let until = tx.at + SENT_WITHIN;
            Ok(purchases::take_secret(tx, id, until).await?.then_some(until))
        })
    });
    let right = taken.await?.map(|until| Right { purchase: id, until });
    Ok(right.map(|right| Revealed { body: shown.to_string(), right: Some(right) }))
}

async fn ask(app: &App, purchase: &Purchase) -> Result<Option<Created>, Error> {
    let id = purchase.vendor_ref.as_deref().and_then(|id| id.parse().ok());
    let (Some(compute), Some(id)) = (app.vendors.servers_for(Purpose::Purchase), id) else { return Ok(None) };
    compute.credentials(id).await.map_err(|why| Error::internal(why.to_string()))
}
