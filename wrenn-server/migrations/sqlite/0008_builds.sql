-- Builds of templates, as far as they are told of.
CREATE TABLE builds (
    id            TEXT PRIMARY KEY,
    owner         TEXT NOT NULL,
    created_at_ms INTEGER NOT NULL,
    changed_at_ms INTEGER NOT NULL,
    -- What was asked for, how far it is, and the end of its log, as JSON.
    told          TEXT NOT NULL
) STRICT;
