-- What the registrar says of a domain beside its end.

-- When it is asked next.
ALTER TABLE domains ADD COLUMN registrar_at TIMESTAMPTZ;
-- Whether the registrant has confirmed the address; NULL: not known.
ALTER TABLE domains ADD COLUMN contact_verified BOOLEAN;
-- Until when it must be confirmed.
ALTER TABLE domains ADD COLUMN verify_by TIMESTAMPTZ;
CREATE INDEX domains_by_registrar ON domains (registrar_at) WHERE managed AND status = 'active';
