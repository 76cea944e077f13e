-- What was done since the beginning, for people to see; counted in the transactions that do it.
CREATE TABLE counters (
    name TEXT NOT NULL PRIMARY KEY,
    value BIGINT NOT NULL
);
