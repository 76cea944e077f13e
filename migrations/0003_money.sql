-- Being paid. An order that nobody has paid is not stored: its id carries all that it binds.
-- Addresses are kept with their checksum. Hashes, nonces and signatures are BYTEA. The nil UUID stands for "no agent".

-- One transfer on chain, one use. log_index is the log's place within its transaction, which no reorganisation changes.
CREATE TABLE receipts (
    chain BIGINT NOT NULL,
    tx_hash BYTEA NOT NULL,
    log_index BIGINT NOT NULL,
    kind TEXT NOT NULL CHECK (kind IN ('order', 'exact', 'deposit', 'withdrawal', 'refund_due', 'unmatched')),
    status TEXT NOT NULL CHECK (status IN ('granted', 'final', 'reversed')),
    block_number BIGINT NOT NULL,
    block_hash BYTEA NOT NULL,
    block_time BIGINT NOT NULL,
    from_address TEXT NOT NULL,
    to_address TEXT NOT NULL,
    amount BIGINT NOT NULL CHECK (amount >= 0),
    -- Whose account it went to, or the nil UUID.
    agent_id UUID NOT NULL,
    -- The sale it paid, or the nil UUID.
    sale_id UUID NOT NULL,
    -- Since when it is not where it was seen.
    missing_since TIMESTAMPTZ,
    created_at TIMESTAMPTZ NOT NULL,
    PRIMARY KEY (chain, tx_hash, log_index)
);
CREATE INDEX receipts_not_final ON receipts (block_number) WHERE status <> 'final';
CREATE INDEX receipts_by_block ON receipts (chain, block_number);

-- Every sale that was paid, with the answer that a repeat of its payment gets.
CREATE TABLE orders (
    id UUID NOT NULL PRIMARY KEY,
    -- SHA-256 of the order's id: an order is paid once.
    order_hash BYTEA NOT NULL UNIQUE,
    order_id TEXT NOT NULL,
    scheme TEXT NOT NULL,
    resource TEXT NOT NULL,
    -- What the order was for: principal, method, path with query, body.
    binding BYTEA NOT NULL,
    goods JSONB NOT NULL,
    status TEXT NOT NULL CHECK (status IN ('delivered', 'refund_due', 'reversed')),
    price BIGINT NOT NULL,
    amount BIGINT NOT NULL,
    chain BIGINT NOT NULL,
    payer TEXT NOT NULL,
    pay_to TEXT NOT NULL,
    tx_hash BYTEA NOT NULL,
    agent_id UUID NOT NULL,
    owner_id UUID NOT NULL,
    answer_status BIGINT NOT NULL,
    answer TEXT NOT NULL,
    created_at TIMESTAMPTZ NOT NULL
);
CREATE INDEX orders_by_time ON orders (created_at, id);
CREATE INDEX orders_by_owner ON orders (owner_id, created_at, id);
CREATE INDEX orders_by_agent ON orders (agent_id, created_at, id);

-- Claims: a signed payment is taken once, before anything is done for it.
CREATE TABLE payments (
    id UUID NOT NULL PRIMARY KEY,
    chain BIGINT NOT NULL,
    asset TEXT NOT NULL,
    from_address TEXT NOT NULL,
    nonce BYTEA NOT NULL,
    status TEXT NOT NULL CHECK (status IN ('claimed', 'sent', 'done', 'failed')),
    x402_version BIGINT NOT NULL,
    order_hash BYTEA NOT NULL,
    order_id TEXT NOT NULL,
    binding BYTEA NOT NULL,
    resource TEXT NOT NULL,
    idem_scope BYTEA,
    idem_fingerprint BYTEA,
    goods JSONB NOT NULL,
    agent_id UUID NOT NULL,
    price BIGINT NOT NULL,
    amount BIGINT NOT NULL,
    pay_to TEXT NOT NULL,
    valid_after BIGINT NOT NULL,
    valid_before BIGINT NOT NULL,
    signature BYTEA NOT NULL,
    by_contract BOOLEAN NOT NULL,
    -- What a facilitator is sent.
    facilitator_body TEXT,
    -- From which block on its use is looked for.
    from_block BIGINT NOT NULL,
    failure TEXT,
    created_at TIMESTAMPTZ NOT NULL,
    ended_at TIMESTAMPTZ
);
CREATE UNIQUE INDEX payments_by_nonce ON payments (chain, asset, from_address, nonce);
CREATE UNIQUE INDEX payments_by_order ON payments (order_hash) WHERE status <> 'failed';
CREATE UNIQUE INDEX payments_by_idem ON payments (idem_scope) WHERE idem_scope IS NOT NULL AND status IN ('claimed', 'sent');
CREATE INDEX payments_open ON payments (created_at, id) WHERE status IN ('claimed', 'sent');

-- What the server's own key has signed to settle payments: every attempt with one account number has the same one.
CREATE TABLE settlements (
    chain BIGINT NOT NULL,
    signer TEXT NOT NULL,
    account_nonce BIGINT NOT NULL,
    attempt BIGINT NOT NULL,
    payment_id UUID NOT NULL,
    tx_hash BYTEA NOT NULL,
    raw BYTEA NOT NULL,
    max_fee BIGINT NOT NULL,
    priority_fee BIGINT NOT NULL,
    created_at TIMESTAMPTZ NOT NULL,
    PRIMARY KEY (chain, signer, account_nonce, attempt)
);
CREATE INDEX settlements_by_payment ON settlements (payment_id);

-- Up to which block everything that moved is booked.
CREATE TABLE cursors (
    name TEXT NOT NULL PRIMARY KEY,
    block_number BIGINT NOT NULL,
    updated_at TIMESTAMPTZ NOT NULL
);

CREATE TABLE refunds (
    id UUID NOT NULL PRIMARY KEY,
    status TEXT NOT NULL CHECK (status IN ('due', 'paid', 'credited', 'dismissed')),
    reason TEXT NOT NULL,
    amount BIGINT NOT NULL CHECK (amount > 0),
    payer TEXT NOT NULL,
    chain BIGINT NOT NULL,
    tx_hash BYTEA NOT NULL,
    sale_id UUID NOT NULL,
    agent_id UUID NOT NULL,
    owner_id UUID NOT NULL,
    note TEXT,
    refund_tx TEXT,
    created_at TIMESTAMPTZ NOT NULL,
    resolved_at TIMESTAMPTZ
);
CREATE INDEX refunds_by_time ON refunds (created_at, id);
CREATE INDEX refunds_by_owner ON refunds (owner_id, created_at, id);
