"""Building images from Dockerfiles, step by step, through the engine's own doors."""
