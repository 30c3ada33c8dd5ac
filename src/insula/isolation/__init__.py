"""The seam between the engine and what runs instances: `plan`, `backend`, and the backends themselves."""
