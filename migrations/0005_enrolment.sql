-- Machines that enrol by a one-time token, children of agents, and the operator's laws.

-- How many ancestors an agent has.
ALTER TABLE agents ADD COLUMN depth BIGINT NOT NULL DEFAULT 0;
-- The laws it was born with, by their SHA-256 in hex.
ALTER TABLE agents ADD COLUMN laws_sha256 TEXT;
-- What its enrolment token said of it.
ALTER TABLE agents ADD COLUMN tag TEXT;

-- Every text that ever was the laws of an agent.
CREATE TABLE laws (
    sha256 TEXT NOT NULL PRIMARY KEY,
    text TEXT NOT NULL,
    created_at TIMESTAMPTZ NOT NULL
);

CREATE TABLE enrolment_tokens (
    id UUID NOT NULL PRIMARY KEY,
    -- SHA-256 of the token, hex.
    token_hash TEXT NOT NULL UNIQUE,
    owner_id UUID NOT NULL,
    -- The key that made it: once that is revoked, the token is worth nothing.
    made_by UUID,
    -- The agent whose machine enrols; without one every use makes an agent.
    agent_id UUID,
    name TEXT,
    model TEXT,
    genesis_prompt TEXT,
    tag TEXT,
    -- Micro-USDC for every agent that it makes.
    grant_amount BIGINT NOT NULL CHECK (grant_amount >= 0),
    uses BIGINT NOT NULL CHECK (uses > 0),
    uses_left BIGINT NOT NULL CHECK (uses_left >= 0),
    expires_at TIMESTAMPTZ NOT NULL,
    revoked_at TIMESTAMPTZ,
    created_at TIMESTAMPTZ NOT NULL
);
CREATE INDEX enrolment_tokens_by_agent ON enrolment_tokens (agent_id) WHERE agent_id IS NOT NULL;
CREATE INDEX enrolment_tokens_by_owner ON enrolment_tokens (owner_id, created_at, id);
CREATE INDEX enrolment_tokens_by_time ON enrolment_tokens (created_at, id);

-- Which machine (by its wallet) used which token: the same one may ask again when it did not hear the answer.
CREATE TABLE enrolments (
    token_id UUID NOT NULL,
    wallet_address TEXT NOT NULL,
    agent_id UUID NOT NULL,
    created_at TIMESTAMPTZ NOT NULL,
    PRIMARY KEY (token_id, wallet_address)
);

-- Children whose machine has yet to enrol, and what became of them.
CREATE TABLE births (
    agent_id UUID NOT NULL PRIMARY KEY,
    parent_id UUID NOT NULL,
    -- Micro-USDC that the parent gave.
    budget BIGINT NOT NULL CHECK (budget > 0),
    status TEXT NOT NULL CHECK (status IN ('waiting', 'enrolled', 'undone')),
    purchase_id UUID,
    -- Not enrolled by then: the budget goes back.
    expires_at TIMESTAMPTZ NOT NULL,
    created_at TIMESTAMPTZ NOT NULL
);
CREATE INDEX births_waiting ON births (expires_at) WHERE status = 'waiting';
