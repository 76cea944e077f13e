//! Stable error codes and the wire form of an error (`application/problem+json`, RFC 9457).

use std::borrow::Cow;

use serde::{Deserialize, Serialize};

macro_rules! codes {
    ($($(#[$doc:meta])* $variant:ident = $text:literal,)*) => {
        /// What went wrong, as a stable slug. Clients branch on it.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
        pub enum ErrorCode {
            $($(#[$doc])* $variant,)*
        }

        impl ErrorCode {
            /// Every code.
            pub const ALL: &'static [Self] = &[$(Self::$variant),*];

            /// The slug.
            pub const fn as_str(self) -> &'static str {
                match self { $(Self::$variant => $text,)* }
            }

            /// The code of a slug, if this version knows it.
            pub fn parse(text: &str) -> Option<Self> {
                match text { $($text => Some(Self::$variant),)* _ => None }
            }
        }
    };
}

codes! {
    /// The body is not JSON, or not a JSON object.
    InvalidJson = "invalid_json",
    /// A field is missing, of the wrong type or out of range.
    InvalidField = "invalid_field",
    /// A query parameter is unknown in value or form.
    InvalidQuery = "invalid_query",
    /// A linked id does not exist or is not the caller's.
    UnknownLink = "unknown_link",
    /// The request itself is malformed.
    BadRequest = "bad_request",
    /// Neither the request nor the price table says what the call cost.
    UnknownModel = "unknown_model",
    /// The wallet proof does not hold.
    InvalidWalletProof = "invalid_wallet_proof",
    /// A key is needed.
    MissingKey = "missing_key",
    /// The key is not known.
    UnknownKey = "unknown_key",
    /// The key was revoked.
    RevokedKey = "revoked_key",
    /// The enrolment token is not known, or was revoked.
    UnknownEnrolmentToken = "unknown_enrolment_token",
    /// The enrolment token's time is over.
    EnrolmentTokenExpired = "enrolment_token_expired",
    /// As many machines as may have enrolled by this token.
    EnrolmentTokenUsed = "enrolment_token_used",
    /// The operator token is needed or wrong.
    OperatorRequired = "operator_required",
    /// Known, but not allowed.
    Forbidden = "forbidden",
    /// Open access is for direct local callers.
    OpenModeLocalOnly = "open_mode_local_only",
    /// There is no such thing, or not for this caller.
    NotFound = "not_found",
    /// There is no such route.
    NoRoute = "no_route",
    /// The route exists, not with this method.
    MethodNotAllowed = "method_not_allowed",
    /// The agent was killed.
    AgentKilled = "agent_killed",
    /// The agent has no credits: nothing is bought or spawned for it.
    AgentTerminated = "agent_terminated",
    /// The agent has as many children, or ancestors, as an agent may have.
    LineageLimitReached = "lineage_limit_reached",
    /// The name is taken.
    NameTaken = "name_taken",
    /// The wallet belongs to another agent.
    WalletTaken = "wallet_taken",
    /// The transaction hash was reported before.
    DuplicateTxHash = "duplicate_tx_hash",
    /// The owner has as many active keys as allowed.
    KeyLimitReached = "key_limit_reached",
    /// The state of things does not allow this.
    Conflict = "conflict",
    /// The balance does not cover it.
    InsufficientCredits = "insufficient_credits",
    /// The idempotency key was used with another request.
    IdempotencyKeyReused = "idempotency_key_reused",
    /// A request with this idempotency key is still running.
    IdempotencyInProgress = "idempotency_in_progress",
    /// The sender's numbering does not fit what the server has: it must open a new epoch.
    NewEpochRequired = "new_epoch_required",
    /// Events are missing before the ones sent.
    SequenceGap = "sequence_gap",
    /// The body or the head is too large.
    PayloadTooLarge = "payload_too_large",
    /// The body is not `application/json`.
    UnsupportedMediaType = "unsupported_media_type",
    /// Too many requests.
    RateLimited = "rate_limited",
    /// The server has more to do than it can.
    Overloaded = "overloaded",
    /// The database cannot be reached.
    DatabaseUnavailable = "database_unavailable",
    /// A payment is needed.
    PaymentRequired = "payment_required",
    /// The payment header cannot be read.
    InvalidPayment = "invalid_payment",
    /// The payment is not one that can be taken.
    PaymentInvalid = "payment_invalid",
    /// The payment is for another request, or its order is not known.
    PaymentMismatch = "payment_mismatch",
    /// The payment is too small, or the payer has not enough.
    PaymentInsufficient = "payment_insufficient",
    /// The order or the authorization ran out before it was paid.
    PaymentExpired = "payment_expired",
    /// The payment failed on chain.
    PaymentFailed = "payment_failed",
    /// Nothing ties the transfer to this order.
    PayerNotProven = "payer_not_proven",
    /// Whether the payment was made is not known yet.
    PaymentPending = "payment_pending",
    /// The transfer was credited as a deposit.
    PaymentAlreadyCredited = "payment_already_credited",
    /// The payment was used for another request.
    PaymentAlreadyUsed = "payment_already_used",
    /// The order was paid by another payment.
    OrderAlreadyPaid = "order_already_paid",
    /// Payments are not configured.
    PaymentsNotConfigured = "payments_not_configured",
    /// The vendor is not configured.
    UpstreamNotConfigured = "upstream_not_configured",
    /// The vendor cannot be reached, or does not answer as it should.
    UpstreamUnavailable = "upstream_unavailable",
    /// The vendor was asked too often.
    UpstreamBusy = "upstream_busy",
    /// The vendor does not take this server's account or token.
    UpstreamRefused = "upstream_refused",
    /// Whether the vendor did it is not known yet.
    UpstreamPending = "upstream_pending",
    /// The exchange rate that prices are made with is too old.
    PriceUnavailable = "price_unavailable",
    /// The price is another than it was.
    PriceMoved = "price_moved",
    /// No such server can be had there now.
    OutOfStock = "out_of_stock",
    /// The domain cannot be registered.
    DomainNotAvailable = "domain_not_available",
    /// The registrar does not sell under this ending.
    TldNotSupported = "tld_not_supported",
    /// The order is above what the registrar takes.
    OrderTooExpensive = "order_too_expensive",
    /// The registrant's data are not enough, or wrong.
    ContactRefused = "contact_refused",
    /// The name needs the code of its language.
    LanguageCodeRequired = "language_code_required",
    /// The body did not arrive in time.
    RequestTimeout = "request_timeout",
    /// A fault of the server.
    Internal = "internal",
    /// The rules of the wallet's owner do not allow this payment.
    PaymentRefused = "payment_refused",
    /// Nothing is paid at the moment.
    PaymentsPaused = "payments_paused",
    /// The seller did not answer.
    NoAnswer = "no_answer",
    /// The chain cannot be asked, or is another than configured.
    ChainUnavailable = "chain_unavailable",
    /// The daemon's spool has no room for this.
    SpoolFull = "spool_full",
    /// The machine's disk refused the write.
    DiskFull = "disk_full",
    /// Installing the daemon on a new server is not configured.
    BootstrapNotConfigured = "bootstrap_not_configured",
    /// A registrant contact is needed.
    ContactRequired = "contact_required",
    /// What was paid for could not be bought.
    PurchaseFailed = "purchase_failed",
    /// The same thing is being bought already.
    PurchaseUnderWay = "purchase_under_way",
}

/// An error as it is sent.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Problem {
    /// `about:blank`-style URI of the kind of problem.
    #[serde(rename = "type", default)]
    pub kind: Cow<'static, str>,
    /// The status in words.
    #[serde(default)]
    pub title: Cow<'static, str>,
    /// The HTTP status.
    #[serde(default)]
    pub status: u16,
    /// What happened, for people.
    #[serde(default)]
    pub detail: String,
    /// A slug of [`ErrorCode`], or of a newer server.
    #[serde(default)]
    pub code: Cow<'static, str>,
    /// Repeats `detail`, for older clients.
    #[serde(default)]
    pub error: String,
    /// Names the request in the server's log.
    #[serde(default)]
    pub request_id: String,
}
