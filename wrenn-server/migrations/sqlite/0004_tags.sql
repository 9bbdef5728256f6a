-- Which template a name with a tag stands for, for each key.
CREATE TABLE tags (
    owner         TEXT NOT NULL,
    name          TEXT NOT NULL,
    tag           TEXT NOT NULL,
    template      TEXT NOT NULL,
    created_at_ms INTEGER NOT NULL,
    PRIMARY KEY (owner, name, tag)
) STRICT;

CREATE INDEX tags_of_template ON tags (template);
