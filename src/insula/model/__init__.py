"""The words: frozen dataclasses of what exists.  Pure; imports `errors` and nothing else of ours."""
