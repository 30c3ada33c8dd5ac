"""The Docker Engine API over HTTP, and what it has no word for under `/insula/v1/`."""
