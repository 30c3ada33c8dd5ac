"""The shapes of the Docker API, named as the published swagger names them (msgspec)."""
