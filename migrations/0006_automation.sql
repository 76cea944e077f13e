-- What keeps servers paid, domains renewed and pointed, and agents healed.

-- When a server of ours was powered off because nobody paid for it.
ALTER TABLE sandboxes ADD COLUMN powered_off_at TIMESTAMPTZ;
-- Since when it is to be deleted at the vendor; nobody can pay for it any more.
ALTER TABLE sandboxes ADD COLUMN ending_at TIMESTAMPTZ;
ALTER TABLE sandboxes ADD COLUMN deleted_at TIMESTAMPTZ;
CREATE INDEX sandboxes_by_end ON sandboxes (paid_until) WHERE managed AND vendor_id IS NOT NULL;
CREATE INDEX sandboxes_ending ON sandboxes (ending_at) WHERE ending_at IS NOT NULL AND deleted_at IS NULL;

-- When a domain's renewal is thought of next, and when its zone was last looked at.
ALTER TABLE domains ADD COLUMN renewal_at TIMESTAMPTZ;
ALTER TABLE domains ADD COLUMN zone_seen_at TIMESTAMPTZ;
-- The address that we last gave it.
ALTER TABLE domains ADD COLUMN zone_address TEXT;
CREATE INDEX domains_by_end ON domains (expires_at) WHERE managed AND status = 'active';
CREATE INDEX domains_with_zone ON domains (zone_seen_at) WHERE managed AND sandbox_id IS NOT NULL;

-- What was told once, and is not told again for the same date.
CREATE TABLE warnings (
    subject TEXT NOT NULL,
    due_at TIMESTAMPTZ NOT NULL,
    created_at TIMESTAMPTZ NOT NULL,
    PRIMARY KEY (subject, due_at)
);

-- What was tried to bring an agent back, each noted before it is tried.
CREATE TABLE healings (
    agent_id UUID NOT NULL,
    id UUID NOT NULL,
    step TEXT NOT NULL CHECK (step IN ('restart', 'reboot', 'operator')),
    command_id UUID,
    -- When the agent was heard again after it.
    recovered_at TIMESTAMPTZ,
    created_at TIMESTAMPTZ NOT NULL,
    PRIMARY KEY (agent_id, id)
);
CREATE INDEX healings_open ON healings (created_at) WHERE recovered_at IS NULL;

-- A token that may give its agent another wallet: it was made for a new machine.
ALTER TABLE enrolment_tokens ADD COLUMN moves_wallet BOOLEAN NOT NULL DEFAULT FALSE;

-- Few of all purchases, and counted.
CREATE INDEX purchases_renewals ON purchases (status) WHERE kind = 'renewal';
