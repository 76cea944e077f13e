-- The tables of the public API with all their columns, and what the ledger, the session and the replicas need.
-- One text for SQLite and PostgreSQL. Money is BIGINT micro-USDC. Times come from the server's clock.
-- Rows that belong to an agent carry agent_id first in their keys. The nil UUID stands for "no agent", "no owner".

CREATE TABLE owners (
    id UUID NOT NULL PRIMARY KEY,
    created_at TIMESTAMPTZ NOT NULL
);

CREATE TABLE api_keys (
    id UUID NOT NULL PRIMARY KEY,
    key TEXT NOT NULL,
    key_hash TEXT NOT NULL UNIQUE,
    key_prefix TEXT NOT NULL,
    name TEXT NOT NULL,
    owner_wallet TEXT,
    owner_id UUID NOT NULL,
    kind TEXT NOT NULL CHECK (kind IN ('owner', 'agent')),
    agent_id UUID,
    made_by UUID,
    agent_count BIGINT NOT NULL DEFAULT 0,
    status TEXT NOT NULL CHECK (status IN ('active', 'revoked')),
    created_at TIMESTAMPTZ NOT NULL,
    revoked_at TIMESTAMPTZ
);
CREATE INDEX api_keys_by_time ON api_keys (created_at, id);
CREATE INDEX api_keys_by_owner ON api_keys (owner_id, created_at, id);
CREATE INDEX api_keys_by_maker ON api_keys (made_by);
CREATE INDEX api_keys_by_agent ON api_keys (agent_id) WHERE agent_id IS NOT NULL;
CREATE INDEX api_keys_by_revocation ON api_keys (revoked_at) WHERE revoked_at IS NOT NULL;

CREATE TABLE agents (
    id UUID NOT NULL PRIMARY KEY,
    name TEXT NOT NULL,
    status TEXT NOT NULL CHECK (status IN ('active', 'inactive', 'terminated')),
    survival_tier TEXT NOT NULL CHECK (survival_tier IN ('full', 'conservation', 'critical', 'terminated')),
    credits BIGINT NOT NULL,
    wallet_address TEXT,
    wallet_proven BOOLEAN NOT NULL,
    genesis_prompt TEXT,
    model TEXT NOT NULL,
    heartbeat_interval BIGINT NOT NULL,
    -- Set by command; wins over heartbeat_interval.
    interval_override BIGINT,
    last_heartbeat TIMESTAMPTZ,
    api_key_id UUID,
    owner_id UUID NOT NULL,
    vps_ip TEXT,
    -- Whether the agent itself named vps_ip.
    vps_ip_sent BOOLEAN NOT NULL,
    -- Actions beside those that streams.actions counts; the sum of both is the agent's total.
    total_actions BIGINT NOT NULL,
    children_count BIGINT NOT NULL,
    parent_id UUID,
    funded BOOLEAN NOT NULL,
    grace_until TIMESTAMPTZ,
    killed_at TIMESTAMPTZ,
    kill_reason TEXT,
    -- Raised with every change that a cached copy must learn of.
    version BIGINT NOT NULL,
    -- The one session whose events are taken.
    session_id UUID,
    machine_id TEXT,
    boot_id TEXT,
    created_at TIMESTAMPTZ NOT NULL
);
CREATE INDEX agents_by_time ON agents (created_at, id);
CREATE INDEX agents_by_owner ON agents (owner_id, created_at, id);
CREATE INDEX agents_by_name ON agents (owner_id, name);
CREATE INDEX agents_by_key ON agents (api_key_id);
CREATE INDEX agents_by_parent ON agents (parent_id) WHERE parent_id IS NOT NULL;
CREATE INDEX agents_in_grace ON agents (grace_until) WHERE NOT funded AND survival_tier <> 'terminated';
CREATE UNIQUE INDEX agents_by_wallet ON agents (lower(wallet_address)) WHERE wallet_proven;

CREATE TABLE sandboxes (
    id UUID NOT NULL PRIMARY KEY,
    name TEXT NOT NULL,
    status TEXT NOT NULL CHECK (status IN ('running', 'stopped', 'deploying', 'error')),
    os TEXT,
    cpu BIGINT,
    memory BIGINT,
    disk BIGINT,
    region TEXT,
    ip_address TEXT,
    ports JSONB NOT NULL,
    agent_id UUID,
    owner_id UUID,
    managed BOOLEAN NOT NULL,
    paid_until TIMESTAMPTZ,
    created_at TIMESTAMPTZ NOT NULL
);
CREATE INDEX sandboxes_by_time ON sandboxes (created_at, id);
CREATE INDEX sandboxes_by_owner ON sandboxes (owner_id, created_at, id);
CREATE INDEX sandboxes_by_agent ON sandboxes (agent_id, created_at, id);

CREATE TABLE domains (
    id UUID NOT NULL PRIMARY KEY,
    name TEXT NOT NULL UNIQUE,
    status TEXT NOT NULL CHECK (status IN ('active', 'expired', 'pending')),
    registered_at TIMESTAMPTZ,
    expires_at TIMESTAMPTZ,
    dns_records JSONB NOT NULL,
    sandbox_id UUID,
    agent_id UUID,
    auto_renew BOOLEAN NOT NULL,
    owner_id UUID,
    managed BOOLEAN NOT NULL,
    created_at TIMESTAMPTZ NOT NULL
);
CREATE INDEX domains_by_time ON domains (created_at, id);
CREATE INDEX domains_by_owner ON domains (owner_id, created_at, id);
CREATE INDEX domains_by_agent ON domains (agent_id, created_at, id);

CREATE TABLE agent_actions (
    agent_id UUID NOT NULL,
    id UUID NOT NULL,
    owner_id UUID NOT NULL,
    action TEXT NOT NULL,
    category TEXT NOT NULL,
    details TEXT,
    status TEXT NOT NULL,
    autonomous BOOLEAN NOT NULL,
    created_at TIMESTAMPTZ NOT NULL,
    PRIMARY KEY (agent_id, id)
);
CREATE INDEX agent_actions_by_agent ON agent_actions (agent_id, created_at, id);
CREATE INDEX agent_actions_by_owner ON agent_actions (owner_id, created_at, id);
CREATE INDEX agent_actions_by_time ON agent_actions (created_at, id);

CREATE TABLE transactions (
    id UUID NOT NULL PRIMARY KEY,
    type TEXT NOT NULL CHECK (type IN ('debit', 'credit')),
    amount BIGINT NOT NULL CHECK (amount > 0),
    currency TEXT NOT NULL,
    description TEXT,
    status TEXT NOT NULL CHECK (status IN ('pending', 'completed', 'failed')),
    from_address TEXT,
    to_address TEXT,
    tx_hash TEXT,
    metadata JSONB,
    agent_id UUID,
    -- Who reported it; the nil UUID for nobody, and for rows that the server writes.
    owner_id UUID NOT NULL,
    by_server BOOLEAN NOT NULL,
    created_at TIMESTAMPTZ NOT NULL
);
CREATE INDEX transactions_by_time ON transactions (created_at, id);
CREATE INDEX transactions_by_owner ON transactions (owner_id, created_at, id);
CREATE INDEX transactions_by_agent ON transactions (agent_id, created_at, id);
CREATE UNIQUE INDEX transactions_by_claim ON transactions (owner_id, tx_hash) WHERE NOT by_server AND tx_hash IS NOT NULL;

CREATE TABLE compute_logs (
    agent_id UUID NOT NULL,
    id UUID NOT NULL,
    owner_id UUID NOT NULL,
    model TEXT NOT NULL,
    tokens_in BIGINT NOT NULL,
    tokens_out BIGINT NOT NULL,
    tokens_cached BIGINT NOT NULL,
    cost BIGINT NOT NULL CHECK (cost >= 0),
    list_cost BIGINT,
    created_at TIMESTAMPTZ NOT NULL,
    PRIMARY KEY (agent_id, id)
);
CREATE INDEX compute_logs_by_agent ON compute_logs (agent_id, created_at, id);
CREATE INDEX compute_logs_by_owner ON compute_logs (owner_id, created_at, id);
CREATE INDEX compute_logs_by_time ON compute_logs (created_at, id);

-- System accounts; an agent's account is its row's credits. Sharded, so that writers do not wait for each other.
CREATE TABLE accounts (
    name TEXT NOT NULL,
    shard BIGINT NOT NULL,
    balance BIGINT NOT NULL,
    PRIMARY KEY (name, shard)
);

-- A positive amount from one account to another; one of them is the agent's ('agent').
CREATE TABLE transfers (
    agent_id UUID NOT NULL,
    id UUID NOT NULL,
    kind TEXT NOT NULL,
    from_account TEXT NOT NULL,
    to_account TEXT NOT NULL,
    amount BIGINT NOT NULL CHECK (amount > 0),
    balance_after BIGINT NOT NULL,
    ref TEXT,
    created_at TIMESTAMPTZ NOT NULL,
    PRIMARY KEY (agent_id, id)
);

CREATE TABLE reservations (
    agent_id UUID NOT NULL,
    id UUID NOT NULL,
    amount BIGINT NOT NULL CHECK (amount > 0),
    purpose TEXT NOT NULL,
    status TEXT NOT NULL CHECK (status IN ('held', 'settled', 'released')),
    created_at TIMESTAMPTZ NOT NULL,
    PRIMARY KEY (agent_id, id)
);

-- How far each life of a sender's spool is stored, and how many actions it brought. The epoch '' counts the actions
-- that came one by one over REST.
CREATE TABLE streams (
    agent_id UUID NOT NULL,
    epoch TEXT NOT NULL,
    acked_seq BIGINT NOT NULL,
    -- The acked_seq that the last writer found: a writer that found another one has lost a race.
    prior_seq BIGINT NOT NULL,
    actions BIGINT NOT NULL,
    acked_event_id UUID,
    updated_at TIMESTAMPTZ NOT NULL,
    PRIMARY KEY (agent_id, epoch)
);

-- Events that were refused for good: their numbers are used up.
CREATE TABLE rejected_events (
    agent_id UUID NOT NULL,
    id UUID NOT NULL,
    seq BIGINT NOT NULL,
    code TEXT NOT NULL,
    created_at TIMESTAMPTZ NOT NULL,
    PRIMARY KEY (agent_id, id)
);
CREATE INDEX rejected_events_by_time ON rejected_events (created_at);

CREATE TABLE commands (
    agent_id UUID NOT NULL,
    id UUID NOT NULL,
    kind TEXT NOT NULL,
    args JSONB NOT NULL,
    status TEXT NOT NULL CHECK (status IN ('queued', 'delivered', 'done', 'failed', 'expired')),
    result TEXT,
    created_at TIMESTAMPTZ NOT NULL,
    expires_at TIMESTAMPTZ NOT NULL,
    PRIMARY KEY (agent_id, id)
);
CREATE INDEX commands_by_agent ON commands (agent_id, created_at, id);
CREATE INDEX commands_open ON commands (expires_at) WHERE status IN ('queued', 'delivered');

CREATE TABLE idempotency (
    scope BYTEA NOT NULL PRIMARY KEY,
    fingerprint BYTEA NOT NULL,
    status BIGINT NOT NULL,
    body TEXT NOT NULL,
    created_at TIMESTAMPTZ NOT NULL
);
CREATE INDEX idempotency_by_time ON idempotency (created_at);

CREATE TABLE leases (
    name TEXT NOT NULL PRIMARY KEY,
    holder UUID NOT NULL,
    epoch BIGINT NOT NULL,
    expires_at TIMESTAMPTZ NOT NULL
);

CREATE TABLE replicas (
    id UUID NOT NULL PRIMARY KEY,
    seen_at TIMESTAMPTZ NOT NULL
);

CREATE TABLE settings (
    name TEXT NOT NULL PRIMARY KEY,
    value TEXT NOT NULL
);
