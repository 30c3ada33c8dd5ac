"""The documents of the Docker API as msgspec structs, named as in its swagger.  Pure."""
