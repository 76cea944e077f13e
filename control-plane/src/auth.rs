//! Who is asking, and what they may touch.

use std::net::IpAddr;
use std::num::NonZeroU32;
use std::time::Duration;

use dashmap::DashMap;
use governor::clock::Clock as _;
use governor::{DefaultKeyedRateLimiter, Quota, RateLimiter};
use otonix_sdk::api::keys::KeyKind;
use otonix_sdk::error::ErrorCode;
use otonix_sdk::ids::KeyId;
use sha2::{Digest as _, Sha256};
use subtle::ConstantTimeEq as _;
use tokio::time::Instant;
use uuid::Uuid;

use crate::error::Error;
use crate::store::keys::KnownKey;
use crate::store::{Db, keys};

/// What every key starts with.
pub const KEY_PREFIX: &str = "otonix_";
/// Keys remembered; beyond it the oldest knowledge goes.
const MAX_CACHED: usize = 200_000;
/// A key is looked up again after this, whatever was heard of it.
const CACHED_FOR: Duration = Duration::from_secs(60);

/// How strictly callers are told apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// Anyone on this machine may do what the API documents as needing no key.
    Open,
    /// Keys and the operator token decide.
    Guarded,
}

/// Who is asking.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Principal {
    /// Holder of the operator token.
    Operator,
    /// Holder of an active key.
    Key(KnownKey),
    /// Nobody known.
    Anonymous,
}

/// One caller in the mode of this server.
#[derive(Debug, Clone, Copy)]
pub struct Caller {
    pub principal: Principal,
    pub mode: Mode,
    /// Where the call comes from.
    pub ip: IpAddr,
}

/// Which rows of a list a caller sees.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scope {
    /// All of them, whole.
    All,
    /// All of them, sanitised.
    Sanitised,
    /// Those of an owner.
    Owner(Uuid),
    /// Those of one agent.
    Agent(Uuid),
}

fn missing_key() -> Error {
    Error::Unauthenticated { code: ErrorCode::MissingKey, detail: "an API key is needed (X-API-Key)" }
}

fn operator_required() -> Error {
    Error::Forbidden { code: ErrorCode::OperatorRequired, detail: "only the operator may do this" }
}

impl Caller {
    /// A name of the principal, for what is kept per principal.
    pub fn name(&self) -> String {
        match self.principal {
            Principal::Operator => "operator".to_owned(),
            Principal::Key(key) => format!("key {}", key.id),
            Principal::Anonymous => "anonymous".to_owned(),
        }
    }

    /// The key; 401 without one.
    ///
    /// # Errors
    /// [`Error::Unauthenticated`] when no key was presented.
    pub fn key(&self) -> Result<KnownKey, Error> {
        match self.principal {
            Principal::Key(key) => Ok(key),
            Principal::Operator | Principal::Anonymous => Err(missing_key()),
        }
    }

    /// A key of kind `owner`.
    ///
    /// # Errors
    /// 401 without a key, 403 with one of an agent.
    pub fn owner_key(&self) -> Result<KnownKey, Error> {
        let key = self.key()?;
        match key.kind {
            KeyKind::Owner => Ok(key),
            KeyKind::Agent => Err(Error::Forbidden {
                code: ErrorCode::Forbidden,
                detail: "an agent's own key may not do this",
            }),
        }
    }

    /// The operator.
    ///
    /// # Errors
    /// 401 for nobody, 403 for a key.
    pub fn operator(&self) -> Result<(), Error> {
        match self.principal {
            Principal::Operator => Ok(()),
            Principal::Key(_) => Err(operator_required()),
            Principal::Anonymous => Err(Error::Unauthenticated {
                code: ErrorCode::OperatorRequired,
                detail: "the operator token is needed (Authorization: Bearer)",
            }),
        }
    }

    /// Whether everything may be read and written that the API documents as needing no key.
    pub fn is_unrestricted(&self) -> bool {
        self.mode == Mode::Open || self.principal == Principal::Operator
    }

    /// Whether a thing of an owner (and agent) is this caller's, by key.
    pub fn owns(&self, owner: Option<Uuid>, agent: Option<Uuid>) -> bool {
        match self.principal {
            Principal::Key(KnownKey { kind: KeyKind::Owner, owner: mine, .. }) => owner == Some(mine.uuid()),
            Principal::Key(KnownKey { kind: KeyKind::Agent, agent: mine, .. }) => {
                agent.is_some() && agent == mine.map(|id| id.uuid())
            }
            Principal::Operator | Principal::Anonymous => false,
        }
    }

    /// The rows of a list that the whole world may see sanitised.
    pub fn public_scope(&self) -> Scope {
        if self.is_unrestricted() {
            return Scope::All;
        }
        match self.principal {
            Principal::Key(key) => own_scope(key),
            Principal::Operator | Principal::Anonymous => Scope::Sanitised,
        }
    }

    /// The rows of a list that are a key's own, in every mode.
    pub fn own_rows(&self) -> Scope {
        match self.principal {
            Principal::Key(key) => own_scope(key),
            Principal::Operator | Principal::Anonymous => Scope::Owner(Uuid::nil()),
        }
    }

    /// The rows of a list that only its owner and the operator see.
    ///
    /// # Errors
    /// 401 for nobody.
    pub fn private_scope(&self) -> Result<Scope, Error> {
        if self.is_unrestricted() {
            return Ok(Scope::All);
        }
        Ok(own_scope(self.key()?))
    }

    /// May read one thing: open mode and operator all, a key its own, others 404; nobody 401.
    ///
    /// # Errors
    /// [`Error::Unauthenticated`] or [`Error::NotFound`].
    pub fn may_see(
        &self,
        what: &'static str,
        id: impl std::fmt::Display,
        owner: Option<Uuid>,
        agent: Option<Uuid>,
    ) -> Result<(), Error> {
        if self.is_unrestricted() || self.owns(owner, agent) {
            return Ok(());
        }
        self.key()?;
        Err(Error::not_found(what, id))
    }

    /// The same for a route that is the owner's or operator's in every mode.
    ///
    /// # Errors
    /// [`Error::Unauthenticated`] or [`Error::NotFound`].
    pub fn must_own(
        &self,
        what: &'static str,
        id: impl std::fmt::Display,
        owner: Option<Uuid>,
        agent: Option<Uuid>,
    ) -> Result<(), Error> {
        if self.principal == Principal::Operator || self.owns(owner, agent) {
            return Ok(());
        }
        self.key()?;
        Err(Error::not_found(what, id))
    }
}

fn own_scope(key: KnownKey) -> Scope {
    match (key.kind, key.agent) {
        (KeyKind::Agent, Some(agent)) => Scope::Agent(agent.uuid()),
        (KeyKind::Agent, None) => Scope::Agent(Uuid::nil()),
        (KeyKind::Owner, _) => Scope::Owner(key.owner.uuid()),
    }
}

/// SHA-256 of a secret in hex, as it is stored.
pub fn hash_secret(secret: &str) -> String {
    hex::encode(Sha256::digest(secret.as_bytes()))
}

/// Compares two hashes without telling by time where they differ.
pub fn same_hash(a: &str, b: &str) -> bool {
    a.as_bytes().ct_eq(b.as_bytes()).into()
}

/// Random bytes as hex.
pub fn random_hex<const N: usize>() -> String {
    let mut bytes = [0_u8; N];
    rand::RngCore::fill_bytes(&mut rand::rng(), &mut bytes);
    hex::encode(bytes)
}

struct Cached {
    key: KnownKey,
    until: Instant,
}

/// The keys that were seen, so that a heartbeat needs no database.
pub struct Keys {
    by_hash: DashMap<[u8; 32], Cached>,
    /// Keys revoked lately: a look-up that was under way must not bring one back.
    revoked: DashMap<KeyId, Instant>,
    unknown: DefaultKeyedRateLimiter<IpAddr>,
}

impl Default for Keys {
    fn default() -> Self {
        let per_second = NonZeroU32::new(50).unwrap_or(NonZeroU32::MIN);
        let burst = NonZeroU32::new(500).unwrap_or(NonZeroU32::MIN);
        let quota = Quota::per_second(per_second).allow_burst(burst);
        Self { by_hash: DashMap::new(), revoked: DashMap::new(), unknown: RateLimiter::keyed(quota) }
    }
}

impl Keys {
    /// What a presented key is.
    ///
    /// # Errors
    /// 401 when it is unknown or revoked, 429 after too many unknown ones, 503 without database.
    pub async fn lookup(&self, db: &Db, presented: &str, ip: IpAddr) -> Result<KnownKey, Error> {
        let unknown =
            Error::Unauthenticated { code: ErrorCode::UnknownKey, detail: "this API key is not known" };
        let well_formed = presented.strip_prefix(KEY_PREFIX).is_some_and(|rest| rest.len() == 48);
        if !well_formed {
            return Err(unknown);
        }
        let hash: [u8; 32] = Sha256::digest(presented.as_bytes()).into();
        if let Some(cached) = self.by_hash.get(&hash)
            && (cached.until > Instant::now() || cached.key.revoked)
        {
            return active(cached.key);
        }
        if self.by_hash.get(&hash).is_none() {
            self.unknown.check_key(&ip).map_err(|not_until| Error::Busy {
                code: ErrorCode::RateLimited,
                retry_after: not_until.wait_time_from(governor::clock::DefaultClock::default().now()),
                detail: "too many unknown API keys",
            })?;
        }
        let text = hex::encode(hash);
        let found = db.read(move |conn| Box::pin(async move { keys::by_hash(conn, &text).await })).await;
        let mut key = match found {
            Ok(Some(key)) => key,
            Ok(None) => return Err(unknown),
            // Known a minute ago is better than not answering while the database is away.
            Err(error) => match self.by_hash.get(&hash) {
                Some(cached) => return active(cached.key),
                None => return Err(Error::Store(error)),
            },
        };
        if self.by_hash.len() >= MAX_CACHED {
            let now = Instant::now();
            self.by_hash.retain(|_, cached| cached.until > now);
        }
        self.by_hash.insert(hash, Cached { key, until: Instant::now() + CACHED_FOR });
        // Looked at after the insertion: a revocation before it is seen here, a later one finds the entry.
        if self.revoked.contains_key(&key.id) {
            key.revoked = true;
            self.by_hash.insert(hash, Cached { key, until: Instant::now() + CACHED_FOR });
        }
        active(key)
    }

    /// Marks a key revoked, at once.
    pub fn revoke(&self, id: KeyId) {
        self.revoked.insert(id, Instant::now());
        for mut cached in self.by_hash.iter_mut() {
            if cached.key.id == id {
                cached.key.revoked = true;
            }
        }
    }

    /// Forgets what was seen; everything is looked up anew.
    pub fn forget(&self) {
        self.by_hash.clear();
    }

    /// Forgets the limits of callers that have been quiet.
    pub fn tidy(&self) {
        let now = Instant::now();
        self.revoked.retain(|_, at| now.duration_since(*at) < 2 * CACHED_FOR);
        self.unknown.retain_recent();
    }
}

fn active(key: KnownKey) -> Result<KnownKey, Error> {
    if key.revoked {
        return Err(Error::Unauthenticated {
            code: ErrorCode::RevokedKey,
            detail: "this API key was revoked",
        });
    }
    Ok(key)
}
