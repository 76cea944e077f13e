//! API keys: made, listed, revoked.

use otonix_sdk::api::keys::{GenerateKey, Key, KeyKind, KeyRevoked, NewKey};
use otonix_sdk::error::ErrorCode;
use otonix_sdk::ids::{KeyId, OwnerId};
use otonix_sdk::limits;
use otonix_sdk::standing::AgentStatus;
use uuid::Uuid;

use crate::app::App;
use crate::auth::{Caller, KEY_PREFIX, Mode, Principal, Scope, hash_secret, random_hex};
use crate::error::Error;
use crate::store::actions::{self, ActionRow};
use crate::store::keys::{KnownKey, NewKeyRow};
use crate::store::list::{self, Page, Param, Query};
use crate::store::writer::{IdemFor, Notice, Target, Tx, Written};
use crate::store::{agents, keys};

/// Active keys that one owner may have.
const MAX_ACTIVE_KEYS: i64 = 20;

/// Whether this caller may make keys; with a key, the one that the new key joins.
///
/// # Errors
/// 401 for nobody where that is not enough, 403 for an agent's own key.
pub fn may_generate(caller: &Caller) -> Result<Option<KnownKey>, Error> {
    match caller.principal {
        Principal::Key(_) => caller.owner_key().map(Some),
        Principal::Operator => Ok(None),
        Principal::Anonymous if caller.mode == Mode::Open => Ok(None),
        Principal::Anonymous => Err(Error::Unauthenticated {
            code: ErrorCode::MissingKey,
            detail: "a key is made by the operator or with an owner's key",
        }),
    }
}

/// Makes a key. Without a key (or by the operator) it starts a new owner.
///
/// # Errors
/// As the contract says: 401, 403, 400, 409 `key_limit_reached`, 429.
pub async fn generate(
    app: &App,
    caller: &Caller,
    body: GenerateKey,
    idem: Option<IdemFor<NewKey>>,
) -> Result<Written<NewKey>, Error> {
    let (joins, made_by) = match may_generate(caller)? {
        Some(key) => (Some(key.owner), Some(key.id)),
        None if caller.principal == Principal::Operator => (body.owner_id, None),
        None => {
            app.rate_limits.anonymous_key(caller.ip)?;
            (None, None)
        }
    };
    limits::check_name("name", &body.name, limits::NAME)?;
    if let Some(wallet) = &body.owner_wallet {
        limits::check_text("ownerWallet", wallet, 0..=128)?;
    }
    let secret = format!("{KEY_PREFIX}{}", random_hex::<24>());
    let digits = &secret[KEY_PREFIX.len()..];
    let owner = joins.map_or_else(otonix_sdk::clock::new_id, OwnerId::uuid);
    let row = NewKeyRow {
        id: otonix_sdk::clock::new_id(),
        masked: format!("{KEY_PREFIX}{}****{}", &digits[..4], &digits[44..]),
        hash: hash_secret(&secret),
        prefix: format!("{KEY_PREFIX}{}", &digits[..4]),
        name: body.name,
        owner_wallet: body.owner_wallet,
        owner,
        kind: KeyKind::Owner,
        agent: None,
        made_by: made_by.map(KeyId::uuid),
    };
    let limited = made_by.is_some();
    let new_owner = joins.is_none();
    app.writer.run(Target::Alone, idem, move |tx| Box::pin(insert(tx, row, secret, new_owner, limited))).await
}

async fn insert(
    tx: &mut Tx,
    row: NewKeyRow,
    secret: String,
    new_owner: bool,
    limited: bool,
) -> Result<NewKey, Error> {
    if new_owner {
        keys::insert_owner(tx, row.owner).await?;
    } else if !keys::lock_owner(tx, row.owner).await? {
        return Err(Error::invalid("ownerId", "names no owner"));
    } else if limited && keys::active_count(tx, row.owner).await? >= MAX_ACTIVE_KEYS {
        return Err(Error::conflict(
            ErrorCode::KeyLimitReached,
            format!("an owner has at most {MAX_ACTIVE_KEYS} active keys; revoke one first"),
        ));
    }
    keys::insert(tx, &row).await?;
    Ok(NewKey {
        id: KeyId::from(row.id),
        key: Some(secret),
        key_prefix: row.prefix,
        name: row.name,
        kind: row.kind,
        owner_id: OwnerId::from(row.owner),
        owner_wallet: row.owner_wallet,
        status: "active".to_owned(),
        created_at: tx.at,
        secret_shown: None,
    })
}

/// Keys, newest first.
///
/// # Errors
/// 401 for nobody in guarded mode; 403 for an agent's key.
pub async fn list(app: &App, caller: &Caller, mut query: Query) -> Result<Page<Key>, Error> {
    match caller.private_scope()? {
        Scope::All | Scope::Sanitised => {}
        Scope::Owner(owner) => query.filter("owner_id = ", Param::Id(owner)),
        Scope::Agent(_) => {
            caller.owner_key()?;
        }
    }
    Ok(app.db.read(move |conn| Box::pin(async move { list::keys(conn, &query).await })).await?)
}

/// Revokes a key, with `descendants` also those it made. Its streams end; agents left without a key are inactive.
///
/// # Errors
/// 401, 403 for an agent's key, 404.
pub async fn revoke(app: &App, caller: &Caller, id: KeyId, descendants: bool) -> Result<KeyRevoked, Error> {
    if !caller.is_unrestricted() {
        caller.owner_key()?;
    }
    let caller = *caller;
    app.writer.apply(Target::Alone, move |tx| Box::pin(revoke_in(tx, caller, id, descendants))).await
}

async fn revoke_in(tx: &mut Tx, caller: Caller, id: KeyId, descendants: bool) -> Result<KeyRevoked, Error> {
    let key = keys::by_id(tx, id.uuid()).await?.ok_or_else(|| Error::not_found("key", id))?;
    if !caller.is_unrestricted() && !caller.owns(Some(key.owner.uuid()), None) {
        return Err(Error::not_found("key", id));
    }
    keys::lock_owner(tx, key.owner.uuid()).await?;
    let mut ids = vec![id.uuid()];
    let mut next = 0;
    while descendants && next < ids.len() {
        let made = keys::made_by(tx, ids[next]).await?;
        ids.extend(made.into_iter().filter(|made| !ids.contains(made)).collect::<Vec<_>>());
        next += 1;
    }
    for id in ids {
        keys::revoke(tx, id).await?;
        tx.notices.push(Notice::Key(id));
    }
    let orphans = agents::without_key(tx, key.owner.uuid()).await?;
    let deactivated = deactivate(tx, &orphans).await?;
    Ok(KeyRevoked { id, status: "revoked".to_owned(), agents_deactivated: deactivated })
}

async fn deactivate(tx: &mut Tx, ids: &[Uuid]) -> Result<u64, Error> {
    let states = agents::lock_states(tx, ids).await?;
    let mut changes = Vec::new();
    let mut lines = Vec::new();
    for mut state in states.into_iter().filter(|state| state.status == AgentStatus::Active) {
        state.status = AgentStatus::Inactive;
        lines.push(ActionRow::by_server(
            &state,
            "system",
            "agent is inactive: no active key is left",
            None,
            tx.at,
        ));
        changes.push(state);
    }
    actions::insert(tx, &lines).await?;
    agents::write_states(tx, &mut changes).await?;
    Ok(changes.len() as u64)
}
