-- Rows that change often keep room on their page, so that an update touches no index.
ALTER TABLE agents SET (fillfactor = 70, autovacuum_vacuum_scale_factor = 0.05);
ALTER TABLE streams SET (fillfactor = 70, autovacuum_vacuum_scale_factor = 0.05);
ALTER TABLE accounts SET (fillfactor = 50);
ALTER TABLE replicas SET (fillfactor = 50);
ALTER TABLE leases SET (fillfactor = 50);
