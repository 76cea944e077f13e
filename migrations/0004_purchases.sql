-- What is bought at vendors, for money that arrived or from an agent's credits. Each row goes once from `paid` to
-- `delivered` or `failed`; a request to a vendor is only ever sent by the attempt that the row names.

CREATE TABLE purchases (
    id UUID NOT NULL PRIMARY KEY,
    kind TEXT NOT NULL CHECK (kind IN ('domain', 'renewal', 'server', 'period')),
    status TEXT NOT NULL CHECK (status IN ('paid', 'executing', 'unknown', 'delivered', 'failed', 'needs_operator')),
    -- What it is about: a domain's name, or a server's.
    subject TEXT NOT NULL,
    item JSONB NOT NULL,
    -- Registrant contact and user data; erased at the end.
    private TEXT,
    -- Where its money is kept until the end: 'purchases_open' or 'reserved'.
    held_in TEXT NOT NULL CHECK (held_in IN ('purchases_open', 'reserved')),
    -- Micro-USDC.
    price BIGINT NOT NULL CHECK (price > 0),
    held BIGINT NOT NULL CHECK (held >= 0),
    -- The sale that paid it; NULL: paid from credits.
    sale_id UUID UNIQUE,
    -- Whose credits, and which reservation of them; the nil UUID: paid by a sale.
    payer_agent UUID NOT NULL,
    reservation_id UUID NOT NULL,
    -- Whom it is for, or the nil UUID.
    agent_id UUID NOT NULL,
    owner_id UUID NOT NULL,
    idem_scope BYTEA,
    idem_fingerprint BYTEA,
    attempts BIGINT NOT NULL,
    -- The attempt that may send a request to the vendor, and until when.
    attempt_id UUID NOT NULL,
    deadline TIMESTAMPTZ,
    -- The vendor's order or server.
    vendor_ref TEXT,
    -- When a look at the vendor first showed that nothing was done.
    absent_since TIMESTAMPTZ,
    -- When it is looked at again.
    next_at TIMESTAMPTZ NOT NULL,
    failure_code TEXT,
    failure TEXT,
    -- What came of it: the domain's row or the sandbox's.
    result_id UUID,
    -- Whether the server's password was shown, or there is none.
    secret_shown BOOLEAN NOT NULL,
    note TEXT,
    -- From when on it is tried: when it was paid, or sent on its way again by the operator.
    since TIMESTAMPTZ NOT NULL,
    created_at TIMESTAMPTZ NOT NULL,
    ended_at TIMESTAMPTZ
);
CREATE INDEX purchases_by_time ON purchases (created_at, id);
CREATE INDEX purchases_by_owner ON purchases (owner_id, created_at, id);
CREATE INDEX purchases_by_agent ON purchases (agent_id, created_at, id);
CREATE INDEX purchases_due ON purchases (next_at) WHERE status IN ('paid', 'executing', 'unknown');
-- One at a time for each domain.
CREATE UNIQUE INDEX purchases_of_domain ON purchases (subject) WHERE kind IN ('domain', 'renewal')
    AND status IN ('paid', 'executing', 'unknown', 'needs_operator');
CREATE UNIQUE INDEX purchases_by_idem ON purchases (idem_scope) WHERE idem_scope IS NOT NULL
    AND status IN ('paid', 'executing', 'unknown', 'needs_operator');

-- What a claimed payment is for, so that two of them never wait for the same thing, and what must not be kept.
ALTER TABLE payments ADD COLUMN subject TEXT;
ALTER TABLE payments ADD COLUMN private TEXT;
CREATE UNIQUE INDEX payments_by_subject ON payments (subject) WHERE subject IS NOT NULL
    AND status IN ('claimed', 'sent');

-- Managed things: who has them at the vendor, and what they cost there.
ALTER TABLE domains ADD COLUMN purchase_id UUID;
ALTER TABLE domains ADD COLUMN renewal_price BIGINT;
ALTER TABLE sandboxes ADD COLUMN purchase_id UUID;
ALTER TABLE sandboxes ADD COLUMN vendor_id TEXT;
ALTER TABLE sandboxes ADD COLUMN project_id TEXT;
ALTER TABLE sandboxes ADD COLUMN plan TEXT;
ALTER TABLE sandboxes ADD COLUMN cycle TEXT;
CREATE UNIQUE INDEX sandboxes_by_vendor ON sandboxes (vendor_id) WHERE vendor_id IS NOT NULL;

-- A sale may wait for its goods now, and end with its money credited.
CREATE TABLE orders_next (
    id UUID NOT NULL PRIMARY KEY,
    order_hash BYTEA NOT NULL UNIQUE,
    order_id TEXT NOT NULL,
    scheme TEXT NOT NULL,
    resource TEXT NOT NULL,
    binding BYTEA NOT NULL,
    goods JSONB NOT NULL,
    status TEXT NOT NULL CHECK (status IN ('pending', 'delivered', 'credited', 'refund_due', 'reversed')),
    price BIGINT NOT NULL,
    amount BIGINT NOT NULL,
    chain BIGINT NOT NULL,
    payer TEXT NOT NULL,
    pay_to TEXT NOT NULL,
    tx_hash BYTEA NOT NULL,
    agent_id UUID NOT NULL,
    owner_id UUID NOT NULL,
    -- 0 and '' while pending.
    answer_status BIGINT NOT NULL,
    answer TEXT NOT NULL,
    created_at TIMESTAMPTZ NOT NULL
);
INSERT INTO orders_next (id, order_hash, order_id, scheme, resource, binding, goods, status, price, amount, chain,
    payer, pay_to, tx_hash, agent_id, owner_id, answer_status, answer, created_at)
    SELECT id, order_hash, order_id, scheme, resource, binding, goods, status, price, amount, chain,
    payer, pay_to, tx_hash, agent_id, owner_id, answer_status, answer, created_at FROM orders;
DROP TABLE orders;
ALTER TABLE orders_next RENAME TO orders;
CREATE INDEX orders_by_time ON orders (created_at, id);
CREATE INDEX orders_by_owner ON orders (owner_id, created_at, id);
CREATE INDEX orders_by_agent ON orders (agent_id, created_at, id);

CREATE INDEX receipts_by_sale ON receipts (sale_id);
CREATE INDEX refunds_by_sale ON refunds (sale_id);
