"""Instances that share the host's kernel: conmon and an OCI runtime."""
