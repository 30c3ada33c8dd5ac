"""What is allowed, as data: seccomp, capabilities, id maps, path confinement."""
