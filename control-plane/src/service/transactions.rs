//! Transactions: claims that move nothing, beside the rows that the server writes with its transfers.

use otonix_sdk::api::records::{NewTransaction, Transaction};
use otonix_sdk::error::ErrorCode;
use otonix_sdk::ids::TransactionId;
use otonix_sdk::limits;
use uuid::Uuid;

use crate::app::App;
use crate::auth::{Caller, Scope};
use crate::error::Error;
use crate::service::{linked_agent, may_record, record_owner};
use crate::store::StoreError;
use crate::store::list::{self, Page, Param, Query};
use crate::store::transactions::{self, Reporter};
use crate::store::writer::{IdemFor, Target, Written};

fn optional(field: &'static str, text: Option<&str>, most: usize) -> Result<(), Error> {
    if let Some(text) = text {
        limits::check_text(field, text, 0..=most)?;
    }
    Ok(())
}

/// Records a transaction.
///
/// # Errors
/// 401 in guarded mode, 400, 409 `duplicate_tx_hash`.
pub async fn create(
    app: &App,
    caller: &Caller,
    body: NewTransaction,
    idem: Option<IdemFor<Transaction>>,
) -> Result<Written<Transaction>, Error> {
    may_record(caller)?;
    if !matches!(body.kind.as_str(), "debit" | "credit") {
        return Err(Error::invalid("type", "must be debit or credit"));
    }
    let status = body.status.unwrap_or_else(|| "completed".to_owned());
    if !matches!(status.as_str(), "pending" | "completed" | "failed") {
        return Err(Error::invalid("status", "must be pending, completed or failed"));
    }
    let currency = body.currency.unwrap_or_else(|| "USDC".to_owned());
    limits::check_slug("currency", &currency)?;
    optional("description", body.description.as_deref(), 4096)?;
    optional("fromAddress", body.from_address.as_deref(), 128)?;
    optional("toAddress", body.to_address.as_deref(), 128)?;
    optional("txHash", body.tx_hash.as_deref(), 128)?;
    if let Some(metadata) = &body.metadata {
        metadata.check("metadata")?;
    }
    let agent = linked_agent(app, caller, body.agent_id).await?;
    let owner = record_owner(caller, agent.as_ref()).unwrap_or(Uuid::nil());
    let row = Transaction {
        id: TransactionId::from(otonix_sdk::clock::new_id()),
        kind: body.kind,
        amount: body.amount.get(),
        currency,
        description: body.description,
        status,
        from_address: body.from_address,
        to_address: body.to_address,
        tx_hash: body.tx_hash.map(|hash| hash.to_ascii_lowercase()).filter(|hash| !hash.is_empty()),
        metadata: body.metadata,
        agent_id: agent.map(|state| state.id),
        created_at: app.clock.now(),
    };
    app.writer
        .run(Target::Shared, idem, move |tx| {
            Box::pin(async move {
                transactions::insert(tx, &row, Reporter { owner, by_server: false })
                    .await
                    .map_err(duplicate)?;
                Ok(row)
            })
        })
        .await
}

fn duplicate(error: StoreError) -> Error {
    match error {
        StoreError::Taken(_) => {
            Error::conflict(ErrorCode::DuplicateTxHash, "this transaction hash was recorded already")
        }
        other => Error::Store(other),
    }
}

/// Transactions, newest first.
///
/// # Errors
/// 503 without database.
pub async fn list(app: &App, caller: &Caller, mut query: Query) -> Result<Page<Transaction>, Error> {
    match caller.public_scope() {
        Scope::All | Scope::Sanitised => {}
        Scope::Owner(owner) => query.filter("owner_id = ", Param::Id(owner)),
        Scope::Agent(agent) => query.filter("agent_id = ", Param::Id(agent)),
    }
    Ok(app.db.read(move |conn| Box::pin(async move { list::transactions(conn, &query).await })).await?)
}
