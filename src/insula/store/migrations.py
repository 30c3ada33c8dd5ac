"""The database's shape, as numbered steps.  Pure data; `database` applies them.

A step, once released, is never edited: a new shape is a new step at the end.  `PRAGMA user_version`
is how many have been applied.  Columns exist for uniqueness and look-up only; everything else is in
`record`, the JSON that `model.codec` makes, so that a new field with a default needs no step.
"""

from __future__ import annotations

_FIRST = (
    "CREATE TABLE meta (key TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID",
    # instances: `name` has no leading slash
    "CREATE TABLE instances (id TEXT PRIMARY KEY, name TEXT NOT NULL UNIQUE, image_id TEXT NOT NULL, "
    "record TEXT NOT NULL) WITHOUT ROWID",
    "CREATE INDEX instances_by_image ON instances (image_id)",
    # plans are read again after a restart; kept apart because an instance's record changes far more often
    "CREATE TABLE plans (instance_id TEXT PRIMARY KEY, record TEXT NOT NULL) WITHOUT ROWID",
    "CREATE TABLE images (id TEXT PRIMARY KEY, record TEXT NOT NULL) WITHOUT ROWID",
    # what an image needs in the content store: its layers' blobs and their uncompressed digests
    "CREATE TABLE image_content (image_id TEXT NOT NULL REFERENCES images ON DELETE CASCADE, "
    "digest TEXT NOT NULL, PRIMARY KEY (image_id, digest)) WITHOUT ROWID",
    "CREATE INDEX image_content_by_digest ON image_content (digest)",
    "CREATE TABLE tags (name TEXT PRIMARY KEY, image_id TEXT NOT NULL REFERENCES images ON DELETE CASCADE) "
    "WITHOUT ROWID",
    "CREATE INDEX tags_by_image ON tags (image_id)",
    "CREATE TABLE digests (name TEXT PRIMARY KEY, "
    "image_id TEXT NOT NULL REFERENCES images ON DELETE CASCADE) WITHOUT ROWID",
    "CREATE INDEX digests_by_image ON digests (image_id)",
    "CREATE TABLE networks (id TEXT PRIMARY KEY, name TEXT NOT NULL UNIQUE, record TEXT NOT NULL) "
    "WITHOUT ROWID",
    # no two instances have one address on one network
    "CREATE TABLE endpoints (instance_id TEXT NOT NULL, network_id TEXT NOT NULL, address TEXT NOT NULL, "
    "record TEXT NOT NULL, ports TEXT NOT NULL, PRIMARY KEY (instance_id, network_id), "
    "UNIQUE (network_id, address))",
    "CREATE TABLE volumes (name TEXT PRIMARY KEY, record TEXT NOT NULL) WITHOUT ROWID",
    # half-done operations, for recovery
    "CREATE TABLE operations (id INTEGER PRIMARY KEY AUTOINCREMENT, instance_id TEXT NOT NULL, "
    "kind TEXT NOT NULL, detail TEXT NOT NULL, started_ns INTEGER NOT NULL)",
)

# old clients may ask for a second network of a name (Docker's CheckDuplicate: false)
_NETWORK_NAMES = (
    "CREATE TABLE networks_by_id (id TEXT PRIMARY KEY, record TEXT NOT NULL) WITHOUT ROWID",
    "INSERT INTO networks_by_id SELECT id, record FROM networks",
    "DROP TABLE networks",
    "ALTER TABLE networks_by_id RENAME TO networks",
)

STEPS: tuple[tuple[str, ...], ...] = (_FIRST, _NETWORK_NAMES)
