-- Which lease wrote the times of a purchase, and since when a new server is missing at the vendor.

-- The epoch of the lease under which deadline and absent_since were written: another holder's clock may be another.
ALTER TABLE purchases ADD COLUMN lease_epoch BIGINT NOT NULL DEFAULT 0;
-- Until when the answer that is on its way has the right to show a server's password.
ALTER TABLE purchases ADD COLUMN secret_until TIMESTAMPTZ;

-- Since when the vendor does not know a server that it was to install.
ALTER TABLE sandboxes ADD COLUMN missing_since TIMESTAMPTZ;
