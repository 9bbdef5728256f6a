-- Where each key wants to be told what happens to its sandboxes.
CREATE TABLE webhooks (
    id               TEXT PRIMARY KEY,
    owner            TEXT NOT NULL,
    name             TEXT NOT NULL,
    url              TEXT NOT NULL,
    is_enabled       INTEGER NOT NULL,
    -- Which events, as JSON; an empty list stands for all.
    kinds            TEXT NOT NULL,
    -- What deliveries are signed with.
    secret           TEXT NOT NULL,
    -- Since when each delivery has failed, and why the last one did.
    failing_since_ms INTEGER,
    why              TEXT,
    created_at_ms    INTEGER NOT NULL
) STRICT;

CREATE INDEX webhooks_of_owner ON webhooks (owner, created_at_ms);
