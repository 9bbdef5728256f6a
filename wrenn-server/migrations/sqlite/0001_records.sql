-- Times are milliseconds since 1970.
CREATE TABLE api_keys (
    id            TEXT PRIMARY KEY,
    name          TEXT NOT NULL,
    -- Of the whole key, by SHA-256.
    hash          BLOB NOT NULL,
    created_at_ms INTEGER NOT NULL,
    revoked_at_ms INTEGER
) STRICT;

CREATE TABLE sandboxes (
    id              TEXT PRIMARY KEY,
    -- The key that it was made with.
    owner           TEXT NOT NULL,
    template        TEXT NOT NULL,
    vcpus           INTEGER NOT NULL,
    memory_mib      INTEGER NOT NULL,
    timeout_sec     INTEGER NOT NULL,
    pauses_at_timeout INTEGER NOT NULL,
    status          TEXT NOT NULL,
    -- Why it no longer runs.
    why             TEXT,
    created_at_ms   INTEGER NOT NULL,
    started_at_ms   INTEGER NOT NULL,
    updated_at_ms   INTEGER NOT NULL
) STRICT;

CREATE INDEX sandboxes_of_owner ON sandboxes (owner, created_at_ms DESC, id);
CREATE INDEX sandboxes_by_status ON sandboxes (status);
