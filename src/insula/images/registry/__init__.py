"""The registry client: names to endpoints, authentication, manifests, blobs down and up."""
