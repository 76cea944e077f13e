-- When the chain can turn a claim that was given up no more; until then it is looked after, with its private part.
ALTER TABLE payments ADD COLUMN closed_at TIMESTAMPTZ;
CREATE INDEX payments_given_up ON payments (created_at, id) WHERE status = 'failed' AND closed_at IS NULL;

-- Which requests an authorization was shown for that the chain had carried out before anybody claimed it here.
CREATE TABLE presentations (
    chain BIGINT NOT NULL,
    asset TEXT NOT NULL,
    from_address TEXT NOT NULL,
    nonce BYTEA NOT NULL,
    binding BYTEA NOT NULL,
    created_at TIMESTAMPTZ NOT NULL,
    PRIMARY KEY (chain, asset, from_address, nonce, binding)
);
CREATE INDEX presentations_by_time ON presentations (created_at);
