-- The same tables as SQLite's. Times are milliseconds since 1970.
CREATE TABLE api_keys (
    id            TEXT PRIMARY KEY,
    name          TEXT NOT NULL,
    -- Of the whole key, by SHA-256.
    hash          BYTEA NOT NULL,
    created_at_ms BIGINT NOT NULL,
    revoked_at_ms BIGINT,
    -- What a key may do, and until when, as JSON.
    terms         TEXT NOT NULL DEFAULT '{}'
);

CREATE TABLE sandboxes (
    id              TEXT PRIMARY KEY,
    -- The key that it was made with.
    owner           TEXT NOT NULL,
    template        TEXT NOT NULL,
    vcpus           BIGINT NOT NULL,
    memory_mib      BIGINT NOT NULL,
    timeout_sec     BIGINT NOT NULL,
    pauses_at_timeout BOOLEAN NOT NULL,
    status          TEXT NOT NULL,
    -- Why it no longer runs.
    why             TEXT,
    created_at_ms   BIGINT NOT NULL,
    started_at_ms   BIGINT NOT NULL,
    updated_at_ms   BIGINT NOT NULL,
    -- What was asked for that no query asks about, as JSON.
    asked           TEXT NOT NULL DEFAULT '{}'
);

-- As SQLite does, ids are compared by their bytes.
CREATE INDEX sandboxes_of_owner ON sandboxes (owner, created_at_ms DESC, id COLLATE "C");
CREATE INDEX sandboxes_by_start ON sandboxes (owner, started_at_ms DESC, id COLLATE "C");
CREATE INDEX sandboxes_by_status ON sandboxes (status);

-- Whose each snapshot is. What has no row, such as an image, is everybody's.
CREATE TABLE snapshots (
    name          TEXT PRIMARY KEY,
    owner         TEXT NOT NULL,
    vcpus         BIGINT NOT NULL,
    memory_mib    BIGINT NOT NULL,
    disk_mib      BIGINT NOT NULL,
    -- The sandbox that it was made of.
    sandbox_id    TEXT NOT NULL,
    created_at_ms BIGINT NOT NULL
);

-- What became of the requests that a client has given a key of its own (`Idempotency-Key`).
CREATE TABLE requests (
    owner         TEXT NOT NULL,
    key           TEXT NOT NULL,
    -- Of the request's body, by SHA-256.
    digest        BYTEA NOT NULL,
    -- What it has made; NULL while it is under way.
    sandbox_id    TEXT,
    created_at_ms BIGINT NOT NULL,
    PRIMARY KEY (owner, key)
);

-- What has happened to each sandbox.
CREATE TABLE events (
    seq        BIGSERIAL PRIMARY KEY,
    id         TEXT NOT NULL,
    owner      TEXT NOT NULL,
    sandbox_id TEXT NOT NULL,
    template   TEXT NOT NULL,
    kind       TEXT NOT NULL,
    -- Why, where that is told.
    why        TEXT,
    at_ms      BIGINT NOT NULL
);

CREATE INDEX events_of_owner ON events (owner, seq);
CREATE INDEX events_of_sandbox ON events (sandbox_id, seq);
