"""One module per resource of the Docker API."""
