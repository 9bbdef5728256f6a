-- The events that are still to be brought to webhooks.
CREATE TABLE deliveries (
    id            TEXT PRIMARY KEY,
    webhook_id    TEXT NOT NULL,
    event_id      TEXT NOT NULL,
    -- How often it was tried, and when it is tried next.
    attempts      INTEGER NOT NULL,
    due_at_ms     INTEGER NOT NULL,
    created_at_ms INTEGER NOT NULL
) STRICT;

CREATE INDEX deliveries_of_webhook ON deliveries (webhook_id);
CREATE INDEX deliveries_of_event ON deliveries (event_id);
-- What a delivery has to find.
CREATE INDEX events_by_id ON events (id);
