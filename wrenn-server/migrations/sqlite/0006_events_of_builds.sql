-- The build that an event has happened to; its sandbox_id is empty then.
ALTER TABLE events ADD COLUMN build_id TEXT;
