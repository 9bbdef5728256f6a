-- Whose each snapshot is. What has no row, such as an image, is everybody's.
CREATE TABLE snapshots (
    name          TEXT PRIMARY KEY,
    owner         TEXT NOT NULL,
    created_at_ms INTEGER NOT NULL
) STRICT;
