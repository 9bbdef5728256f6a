-- What of a sandbox was asked for that no query asks about, as JSON.
ALTER TABLE sandboxes ADD COLUMN asked TEXT NOT NULL DEFAULT '{}';
CREATE INDEX sandboxes_by_start ON sandboxes (owner, started_at_ms DESC, id);

-- The shape of each snapshot, which its sandboxes have.
ALTER TABLE snapshots ADD COLUMN vcpus INTEGER NOT NULL DEFAULT 1;
ALTER TABLE snapshots ADD COLUMN memory_mib INTEGER NOT NULL DEFAULT 512;
ALTER TABLE snapshots ADD COLUMN disk_mib INTEGER NOT NULL DEFAULT 0;
-- The sandbox that it was made of.
ALTER TABLE snapshots ADD COLUMN sandbox_id TEXT NOT NULL DEFAULT '';

-- What a key may do, and until when, as JSON.
ALTER TABLE api_keys ADD COLUMN terms TEXT NOT NULL DEFAULT '{}';

-- What became of the requests that a client has given a key of its own (`Idempotency-Key`).
CREATE TABLE requests (
    owner         TEXT NOT NULL,
    key           TEXT NOT NULL,
    -- Of the request's body, by SHA-256.
    digest        BLOB NOT NULL,
    -- What it has made; NULL while it is under way.
    sandbox_id    TEXT,
    created_at_ms INTEGER NOT NULL,
    PRIMARY KEY (owner, key)
) STRICT;

-- What has happened to each sandbox.
CREATE TABLE events (
    seq        INTEGER PRIMARY KEY AUTOINCREMENT,
    id         TEXT NOT NULL,
    owner      TEXT NOT NULL,
    sandbox_id TEXT NOT NULL,
    template   TEXT NOT NULL,
    kind       TEXT NOT NULL,
    -- Why, where that is told.
    why        TEXT,
    at_ms      INTEGER NOT NULL
) STRICT;

CREATE INDEX events_of_owner ON events (owner, seq);
CREATE INDEX events_of_sandbox ON events (sandbox_id, seq);
