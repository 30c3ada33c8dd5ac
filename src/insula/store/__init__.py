"""SQLite: the only place with SQL in it."""
