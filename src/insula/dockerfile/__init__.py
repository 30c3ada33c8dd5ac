"""Dockerfiles as text: their grammar, what their instructions say, `.dockerignore`.  Pure; builds nothing."""
